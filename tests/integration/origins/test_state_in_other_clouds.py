"""
State of a cluster in Google Cloud Storage and Azure Blob Storage, as far as a server on this machine can tell: each is
asked to create an object only where there is none, in its own way, and what it answers then is understood.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

import pytest

from cortex.state.base import NotLeader
from cortex.state.bucket import BucketStateStore
from cortex.storage.base import Storage, StorageDenied
from cortex.storage.opening import open_storage
from cortex.testing.clock import FakeClock


class Cloud:
    """
    Blobs by name, in the protocol of Google's XML API or of Azure.

    Source: Google Cloud Storage, XML API, "x-goog-if-generation-match: 0"; Azure, Blob service REST API, "Put Blob",
    where `If-None-Match: *` is answered with 409 BlobAlreadyExists.
    """

    def __init__(self, condition: tuple[str, str], there_is_one: tuple[int, str], listing: Callable[..., str]) -> None:
        self.blobs: dict[str, bytes] = {}
        self.refuse = False
        self._condition, self._there_is_one, self._listing = condition, there_is_one, listing
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, method: str, target: str, headers: Mapping[str, str], sent: bytes) -> tuple[int, bytes]:
        parts = urlsplit(target)
        query, name = parse_qs(parts.query), unquote(parts.path).removeprefix("/bucket").lstrip("/")
        if self.refuse:
            return 403, b"<Error><Code>AccessDenied</Code></Error>"
        if method == "PUT":
            header, value = self._condition
            if headers.get(header) == value and name in self.blobs:
                status, code = self._there_is_one
                return status, f"<Error><Code>{code}</Code></Error>".encode()
            self.blobs[name] = sent
            return 201, b""
        if method == "DELETE":
            return (202, b"") if self.blobs.pop(name, None) is not None else (404, b"")
        if "prefix" in query:
            prefix = query["prefix"][0]
            return 200, self._listing({key: self.blobs[key] for key in self.blobs if key.startswith(prefix)}).encode()
        return (200, self.blobs[name]) if name in self.blobs else (404, b"<Error><Code>BlobNotFound</Code></Error>")

    def _handler(cloud) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                status, content = cloud.answer(self.command, self.path, self.headers, sent)
                self.send_response(status)
                self.send_header("ETag", '"1"')
                self.send_header("Last-Modified", "Tue, 14 Nov 2023 22:13:20 GMT")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

            do_HEAD = do_PUT = do_DELETE = do_GET

            def log_message(self, *_: object) -> None: ...

        return Handler


WHEN = "2023-11-14T22:13:20.000Z"


def google_listing(blobs: Mapping[str, bytes]) -> str:
    rows = "".join(
        f"<Contents><Key>{escape(name)}</Key><LastModified>{WHEN}</LastModified><ETag>1</ETag>"
        f"<Size>{len(content)}</Size></Contents>"
        for name, content in sorted(blobs.items())
    )
    return f"<ListBucketResult>{rows}</ListBucketResult>"


def azure_listing(blobs: Mapping[str, bytes]) -> str:
    rows = "".join(
        f"<Blob><Name>{escape(name)}</Name><Properties><Last-Modified>Tue, 14 Nov 2023 22:13:20 GMT</Last-Modified>"
        f"<Etag>1</Etag><Content-Length>{len(content)}</Content-Length><Content-Type>text/plain</Content-Type>"
        "</Properties></Blob>"
        for name, content in sorted(blobs.items())
    )
    return f"<EnumerationResults><Blobs>{rows}</Blobs><NextMarker/></EnumerationResults>"


@pytest.fixture
def google(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Cloud, Callable[[], Storage]]]:
    cloud = Cloud(("x-goog-if-generation-match", "0"), (412, "PreconditionFailed"), google_listing)
    account = {"gcs_base_url": cloud.url, "disable_oauth": True}
    account |= {"client_email": "", "private_key": "", "private_key_id": ""}
    (tmp_path / "account.json").write_text(json.dumps(account))
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", str(tmp_path / "account.json"))
    variables = {"GOOGLE_SERVICE_ACCOUNT": str(tmp_path / "account.json"), "GOOGLE_ALLOW_HTTP": "true"}
    yield cloud, lambda: open_storage("gs://bucket/cluster", variables)
    cloud.close()


@pytest.fixture
def azure() -> Iterator[tuple[Cloud, Callable[[], Storage]]]:
    cloud = Cloud(("If-None-Match", "*"), (409, "BlobAlreadyExists"), azure_listing)
    connection = f"AccountName=ours;AccountKey=c2VjcmV0;BlobEndpoint={cloud.url}"
    variables = {"AZURE_STORAGE_CONNECTION_STRING": connection, "AZURE_ALLOW_HTTP": "true"}
    yield cloud, lambda: open_storage("az://bucket/cluster", variables)
    cloud.close()


@pytest.mark.parametrize("which", ["google", "azure"])
def test_a_new_head_has_everything_and_the_old_one_changes_nothing_any_more(
    which: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    cloud, opened = request.getfixturevalue(which)
    storage = opened()
    assert (storage.create("a/b", b"1"), storage.create("a/b", b"2"), storage.read("a/b")) == (True, False, b"1")
    assert (storage.size("a/b"), storage.size("a/none"), storage.read("a/none")) == (1, None, None)
    if which == "google":  # Azure's client deletes by batches, which this server does not know
        storage.delete(["a/b", "a/none"])
        assert storage.keys("a") == []
    old = BucketStateStore(storage, FakeClock())
    old.set_meta("a", "old")
    new = BucketStateStore(opened(), FakeClock())
    with pytest.raises(NotLeader):
        old.set_meta("a", "woken")
    new.set_meta("b", "new")
    again = BucketStateStore(opened(), FakeClock())
    assert (again.meta("a"), again.meta("b")) == ("old", "new")
    assert "cluster/epoch/0000000003" in cloud.blobs
    cloud.refuse = True
    with pytest.raises(StorageDenied, match="AccessDenied"):
        BucketStateStore(opened(), FakeClock())
