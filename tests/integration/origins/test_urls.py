"""Models behind `https://`, from a local server with a certificate of its own authority."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import trustme
from origin_harness import Fetching, onnx_bytes, weights_bytes, zipped

from cortex.errors import GiveUp

pytestmark = pytest.mark.slow

SIGNATURE = "X-Amz-Signature=secret-of-the-url"


class Site:
    """
    A web server.

    Attributes:
        files: content by path.
        signed: paths that need the signature, and are only given to GET.
        ranges: whether it knows them.
        tells: whether it sends ETag and date.
    """

    def __init__(self, context: ssl.SSLContext) -> None:
        self.files: dict[str, bytes] = {}
        self.signed: set[str] = set()
        self.ranges = True
        self.tells = True
        self.asked: list[tuple[str, str]] = []
        """Method and path, without query."""
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.url = f"https://localhost:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handler(site) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                path, _, query = self.path.partition("?")
                site.asked.append((self.command, path))
                content = site.files.get(path)
                status = 200
                if path in site.signed and (query != SIGNATURE or self.command != "GET"):
                    status, content = 403, b"SignatureDoesNotMatch"
                elif content is None:
                    status, content = 404, b"nothing here"
                size = len(content)
                asked = self.headers.get("Range")
                if status == 200 and asked and site.ranges:
                    first, last = asked.removeprefix("bytes=").split("-")
                    content = content[int(first) : int(last) + 1]
                    status = 206
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                if status == 206:
                    self.send_header("Content-Range", f"bytes {first}-{int(first) + len(content) - 1}/{size}")
                if status < 300 and site.tells:
                    self.send_header("ETag", f'"{hash(site.files[path])}"')
                    self.send_header("Last-Modified", "Tue, 14 Nov 2023 22:13:20 GMT")
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

            do_HEAD = do_GET

            def log_message(self, *_: object) -> None: ...

        return Handler


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def site(authority: trustme.CA) -> Iterator[Site]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    site = Site(context)
    yield site
    site.close()


@pytest.fixture
def fetch(tmp_path: Path, authority: trustme.CA) -> Fetching:
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    return Fetching(tmp_path, SSL_CERT_FILE=str(tmp_path / "authority.pem"), NO_PROXY="localhost")


def test_a_signed_url_is_fetched_whole_and_its_query_is_kept_nowhere(fetch: Fetching, site: Site) -> None:
    site.files["/models/iris.onnx"] = onnx_bytes()
    site.signed.add("/models/iris.onnx")
    fetched = fetch(f"{site.url}/models/iris.onnx?{SIGNATURE}")
    assert fetch.content(fetched) == {"iris.onnx": onnx_bytes()}
    assert fetched.origin.url == f"{site.url}/models/iris.onnx?***"
    assert [one.url for one in fetched.origin.objects] == [f"{site.url}/models/iris.onnx"]
    assert "secret-of-the-url" not in f"{fetched}{fetch.told}"


def test_a_new_signature_of_the_same_object_reads_nothing(fetch: Fetching, site: Site) -> None:
    site.files["/iris.onnx"] = onnx_bytes()
    before = fetch(f"{site.url}/iris.onnx?one=1")
    again = fetch(f"{site.url}/iris.onnx?two=2", known=(before,))
    assert (again.read_bytes, again.model) == (0, before.model)


def test_a_signature_that_is_not_valid_any_more_is_refused_without_showing_it(fetch: Fetching, site: Site) -> None:
    site.files["/iris.onnx"] = onnx_bytes()
    site.signed.add("/iris.onnx")
    with pytest.raises(GiveUp) as caught:
        fetch(f"{site.url}/iris.onnx?X-Amz-Signature=an-old-secret")
    problem = caught.value.problem()
    assert problem.reference == "model-access-denied"
    assert problem.message.startswith(f"{site.url}/iris.onnx: access denied (403")
    assert "make a new one" in problem.hint
    assert "an-old-secret" not in f"{problem}"


def test_weights_are_found_beside_an_unsigned_url(fetch: Fetching, site: Site) -> None:
    site.files |= {"/m/model.onnx": onnx_bytes(external="model.onnx.data"), "/m/model.onnx.data": weights_bytes()}
    assert fetch.content(fetch(f"{site.url}/m/model.onnx"))["model.onnx.data"] == weights_bytes()


def test_weights_beside_a_signed_url_ask_for_a_zip(fetch: Fetching, site: Site) -> None:
    site.files |= {"/m/model.onnx": onnx_bytes(external="w"), "/m/w": weights_bytes()}
    with pytest.raises(GiveUp) as caught:
        fetch(f"{site.url}/m/model.onnx?{SIGNATURE}")
    assert caught.value.problem().hint == (
        "a signed URL gives one file only: pack both files into a zip and sign its URL"
    )


def test_a_download_without_a_telling_name_is_known_by_its_content(fetch: Fetching, site: Site) -> None:
    site.files["/download/42"] = zipped({"1/saved_model.pb": b"graph"})
    assert fetch.content(fetch(f"{site.url}/download/42")) == {"saved_model.pb": b"graph"}


def test_a_server_without_ranges_is_read_in_one_go(fetch: Fetching, site: Site) -> None:
    site.ranges = False
    weights = bytes(range(256)) * (9 * 2**20 // 256)
    site.files |= {"/m/model.onnx": onnx_bytes(external="w"), "/m/w": weights}
    assert fetch.content(fetch(f"{site.url}/m/model.onnx"))["w"] == weights


def test_without_an_etag_or_a_date_everything_is_read_each_time(fetch: Fetching, site: Site) -> None:
    site.tells = False
    site.files["/m.onnx"] = onnx_bytes()
    before = fetch(f"{site.url}/m.onnx")
    site.files["/m.onnx"] = onnx_bytes(2.0)
    again = fetch(f"{site.url}/m.onnx", known=(before,))
    assert fetch.content(again) == {"m.onnx": onnx_bytes(2.0)}


def test_a_certificate_that_nobody_signed_is_named_as_the_reason(fetch: Fetching, site: Site) -> None:
    site.files["/m.onnx"] = onnx_bytes()
    del fetch.variables["SSL_CERT_FILE"]
    with pytest.raises(GiveUp) as caught:
        fetch(f"{site.url}/m.onnx")
    assert "certificate" in caught.value.problem().message
