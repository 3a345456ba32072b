"""Models in Google Cloud Storage and Azure Blob Storage, from servers on this machine that speak their protocols."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

import pytest
from origin_harness import S3, Door, Fetching, onnx_bytes

from cortex.errors import GiveUp

pytestmark = pytest.mark.slow


def refused(fetch: Fetching, model: str) -> tuple[str, str, str]:
    with pytest.raises(GiveUp) as caught:
        fetch(model)
    problem = caught.value.problem()
    return problem.reference, problem.message, problem.hint


# ---- Google: its XML protocol is that of S3 -------------------------------------------------------------------------


@pytest.fixture
def google(tmp_path: Path, door: Door) -> Fetching:
    account = {
        "gcs_base_url": door.url,
        "disable_oauth": True,
        "client_email": "",
        "private_key": "",
        "private_key_id": "",
    }
    (tmp_path / "account.json").write_text(json.dumps(account))
    return Fetching(tmp_path, GOOGLE_SERVICE_ACCOUNT=str(tmp_path / "account.json"), GOOGLE_ALLOW_HTTP="true")


def test_a_folder_is_fetched_from_google_and_not_read_again(google: Fetching, s3: S3, door: Door) -> None:
    for key, content in {"m/1/saved_model.pb": b"old", "m/2/saved_model.pb": b"graph", "m/2/variables/v": b"x"}.items():
        s3.put(key, content, acl="public-read")
    model = f"gs://{s3.bucket}/m"
    fetched = google(model)
    assert google.content(fetched) == {"saved_model.pb": b"graph", "variables/v": b"x"}
    door.asked.clear()
    assert google(model, known=(fetched,)).model == fetched.model
    assert door.reads == []


def test_what_google_refuses_names_the_credentials_and_the_role(google: Fetching, door: Door) -> None:
    door.refuse = lambda asked: (403, b"")
    reference, message, hint = refused(google, "gs://bucket/m.onnx")
    assert (reference, message) == (
        "model-access-denied",
        "gs://bucket/m.onnx: access denied (403; credentials: environment (GOOGLE_SERVICE_ACCOUNT))",
    )
    assert "Storage Object Viewer" in hint


# ---- Azure ----------------------------------------------------------------------------------------------------------


class Azure:
    """One container of an Azure storage account. Source: Azure docs, REST API of Blob Storage, "List Blobs"."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.reads: list[str] = []
        self.refuse = False
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def listing(self, prefix: str) -> bytes:
        blobs = "".join(
            f"<Blob><Name>{escape(name)}</Name><Properties><Last-Modified>Tue, 14 Nov 2023 22:13:20 GMT</Last-Modified>"
            f"<Etag>{etag(content)}</Etag><Content-Length>{len(content)}</Content-Length>"
            "<Content-Type>application/octet-stream</Content-Type></Properties></Blob>"
            for name, content in sorted(self.blobs.items())
            if name.startswith(prefix)
        )
        start = '<?xml version="1.0" encoding="utf-8"?><EnumerationResults>'
        return f"{start}<Blobs>{blobs}</Blobs><NextMarker/></EnumerationResults>".encode()

    def _handler(azure) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                parts = urlsplit(self.path)
                query = parse_qs(parts.query)
                name = unquote(parts.path).removeprefix("/models/")
                headers = {}
                if azure.refuse or "authorization" not in self.headers:
                    status, content = 403, b"<Error><Code>AuthorizationFailure</Code></Error>"
                elif query.get("comp") == ["list"]:
                    status, content = 200, azure.listing(query.get("prefix", [""])[0])
                elif name not in azure.blobs:
                    status, content = 404, b"<Error><Code>BlobNotFound</Code></Error>"
                else:
                    status, content = 200, azure.blobs[name]
                    headers = {"ETag": etag(content), "Last-Modified": "Tue, 14 Nov 2023 22:13:20 GMT"}
                    asked = self.headers.get("x-ms-range") or self.headers.get("Range")
                    if asked:
                        first, last = (int(number) for number in asked.removeprefix("bytes=").split("-"))
                        headers["Content-Range"] = f"bytes {first}-{min(last + 1, len(content)) - 1}/{len(content)}"
                        status, content = 206, content[first : last + 1]
                    if self.command == "GET":
                        azure.reads.append(name)
                self.send_response(status)
                for key, value in {**headers, "Content-Length": str(len(content))}.items():
                    self.send_header(key, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(content)

            do_HEAD = do_GET

            def log_message(self, *_: object) -> None: ...

        return Handler


def etag(content: bytes) -> str:
    return f'"0x{hash(content) & 0xFFFFFFFF:X}"'


@pytest.fixture
def azure() -> Iterator[Azure]:
    azure = Azure()
    yield azure
    azure.close()


@pytest.fixture
def fetch(tmp_path: Path, azure: Azure) -> Fetching:
    return Fetching(
        tmp_path,
        AZURE_STORAGE_CONNECTION_STRING=f"AccountName=ours;AccountKey=c2VjcmV0;BlobEndpoint={azure.url}",
        AZURE_ALLOW_HTTP="true",
    )


def test_a_folder_is_fetched_from_azure_and_not_read_again(fetch: Fetching, azure: Azure) -> None:
    azure.blobs = {"m/1/saved_model.pb": b"old", "m/2/saved_model.pb": b"graph", "m/2/variables/v": b"x"}
    fetched = fetch("az://models/m")
    assert fetch.content(fetched) == {"saved_model.pb": b"graph", "variables/v": b"x"}
    assert "m/1/saved_model.pb" not in azure.reads
    azure.reads.clear()
    assert fetch("az://models/m", known=(fetched,)).model == fetched.model
    assert azure.reads == []


def test_a_file_is_fetched_from_azure(fetch: Fetching, azure: Azure) -> None:
    azure.blobs = {"iris/model.onnx": onnx_bytes()}
    assert fetch.content(fetch("az://models/iris/model.onnx")) == {"model.onnx": onnx_bytes()}


def test_what_azure_refuses_names_the_credentials_and_the_role(fetch: Fetching, azure: Azure) -> None:
    azure.refuse = True
    reference, message, hint = refused(fetch, "az://models/m/")
    assert (reference, message) == (
        "model-access-denied",
        "az://models/m: access denied (AuthorizationFailure; "
        "credentials: environment (AZURE_STORAGE_CONNECTION_STRING))",
    )
    assert "Storage Blob Data Reader" in hint
