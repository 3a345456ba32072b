"""
Stores that models are fetched from: a real S3 protocol server (moto's), a door in front of it that watches and
disturbs, and a server of any number of bytes.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import secrets
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Mapping
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

import numpy as np
import onnx
from onnx import TensorProto, helper

from cortex.artifacts.fetching import fetch_in_process
from cortex.storage.base import Storage
from cortex.storage.opening import open_storage
from cortex.wire.fetch import Fetched, FetchProgress, FetchRequest, KnownModel

DEADLINE_S = 60.0
HELD_AFTER_BYTES = 2**17
_HEADERS = {
    "Content-Type": "application/octet-stream",
    "Authorization": "AWS4-HMAC-SHA256 Credential=key/20260101/us-east-1/s3/aws4_request",
}


@contextlib.contextmanager
def running_moto() -> Iterator[str]:
    with socket.socket() as reserved:
        # Bound so, nobody else is given the port as long as the server may need it; the server itself can listen on it.
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
        server = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        url = f"http://127.0.0.1:{port}"
        try:
            deadline_s = time.monotonic() + DEADLINE_S
            while True:
                try:
                    urllib.request.urlopen(f"{url}/moto-api/", timeout=20).close()
                    break
                except OSError as error:
                    if server.poll() is not None or time.monotonic() > deadline_s:
                        raise AssertionError("moto's server does not start") from error
                    time.sleep(0.02)
            yield url
        finally:
            server.kill()
            server.wait()


class S3:
    """A bucket on an S3 protocol server, as whoever uploads models uses it."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.bucket = f"models-{secrets.token_hex(4)}"
        self._ask("PUT", "")

    def put(self, key: str, content: bytes, *, acl: str = "private") -> None:
        self._ask("PUT", f"/{quote(key)}", content, {"x-amz-acl": acl})

    def put_all(self, files: Mapping[str, bytes]) -> None:
        for key, content in files.items():
            self.put(key, content)

    def delete(self, key: str) -> None:
        self._ask("DELETE", f"/{quote(key)}")

    def url(self, key: str = "") -> str:
        return f"s3://{self.bucket}/{key}"

    def _ask(self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None) -> None:
        request = urllib.request.Request(
            f"{self.endpoint}/{self.bucket}{path}", data=body, method=method, headers=_HEADERS | (headers or {})
        )
        urllib.request.urlopen(request, timeout=DEADLINE_S).close()


def s3_storage(endpoint: str, url: str = "") -> Storage:
    """A cluster's storage on an S3 protocol server; in a bucket of its own if no URL is given."""
    variables = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret-of-the-key",
    }
    return open_storage(url or S3(endpoint).url("cluster"), variables)


class Asked(NamedTuple):
    """A request that came to the door."""

    method: str
    path: str
    range: str | None
    if_match: str | None

    @property
    def reads_content(self) -> bool:
        return self.method == "GET" and "list-type" not in self.path


class Door:
    """
    Stands in front of a store, notes what is asked, and disturbs on demand.

    Attributes:
        before: called with each request before it is passed on.
        refuse: answers a request itself: a status and a body, or None.
        lose: of a request that was passed on, whether nothing at all is answered to it.
        cut_after: how many bytes of an answer's body get through before the connection is cut; None passes all.
        hold: while not set, bodies of objects that are larger stop after `HELD_AFTER_BYTES`.
    """

    def __init__(self, behind: str) -> None:
        self.behind = behind.removeprefix("http://")
        self.asked: list[Asked] = []
        self.before: Callable[[Asked], None] = lambda asked: None
        self.refuse: Callable[[Asked], tuple[int, bytes] | None] = lambda asked: None
        self.lose: Callable[[Asked], bool] = lambda asked: False
        self.cut_after: Callable[[Asked], int | None] = lambda asked: None
        self.hold = threading.Event()
        self.hold.set()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def reads(self) -> list[Asked]:
        """Requests for objects' bytes: none of them, and nothing was read."""
        return [asked for asked in self.asked if asked.reads_content]

    def __enter__(self) -> Door:
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.hold.set()
        self._server.shutdown()
        self._server.server_close()

    def _handler(door) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                asked = Asked(self.command, self.path, self.headers.get("Range"), self.headers.get("If-Match"))
                door.asked.append(asked)
                sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                door.before(asked)
                refused = door.refuse(asked)
                if refused is not None:
                    status, body = refused
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    if self.command != "HEAD":
                        self.wfile.write(body)
                    return
                behind = http.client.HTTPConnection(door.behind, timeout=DEADLINE_S)
                try:
                    behind.request(self.command, plainly(self.path), sent, dict(self.headers))
                    answer = behind.getresponse()
                    body = answer.read()
                finally:
                    behind.close()
                if door.lose(asked):
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                self.send_response(answer.status)
                for name, value in answer.getheaders():
                    if name.lower() not in ("connection", "transfer-encoding", "date", "server"):
                        self.send_header(name, value)
                self.end_headers()
                if self.command == "HEAD":
                    return
                cut = door.cut_after(asked)
                if cut is not None and cut < len(body):
                    self.wfile.write(body[:cut])
                    self.wfile.flush()
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                if asked.reads_content and len(body) > HELD_AFTER_BYTES and not door.hold.is_set():
                    self.wfile.write(body[:HELD_AFTER_BYTES])
                    self.wfile.flush()
                    door.hold.wait(DEADLINE_S)
                    body = body[HELD_AFTER_BYTES:]
                with contextlib.suppress(OSError):  # whoever asked may be gone
                    self.wfile.write(body)

            do_HEAD = do_PUT = do_DELETE = do_GET

            def log_message(self, *_: object) -> None: ...

        return Handler


def plainly(target: str) -> str:
    """A path with nothing escaped that need not be: Google's client escapes more than moto understands in a bucket."""
    path, mark, query = target.partition("?")
    return quote(unquote(path)) + mark + query


class Endless:
    """
    An object of any size at every path but those of `files`, as S3 answers for it: HEAD, GET, Range, ETag, If-Match.
    Its bytes are made up as they are asked for, a repeated block, so that the size costs neither memory nor disk.
    """

    def __init__(self, size_bytes: int, files: Mapping[str, bytes] | None = None) -> None:
        self.size_bytes = size_bytes
        self.files = dict(files or {})
        self.block = np.ones(2**18, np.float32).tobytes()
        self.read_bytes = 0
        """Of the large object."""
        self._guard = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Endless:
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def pieces(self, path: str, start: int, end: int) -> Iterator[bytes]:
        if path in self.files:
            yield self.files[path][start:end]
            return
        size = len(self.block)
        while start < end:
            piece = self.block[start % size : start % size + end - start]
            yield piece
            start += len(piece)
            with self._guard:
                self.read_bytes += len(piece)

    def _handler(store) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                size = len(store.files[self.path]) if self.path in store.files else store.size_bytes
                etag = f'"{size}-bytes"'
                if self.headers.get("If-Match") not in (None, etag):
                    self.send_response(412)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                start, end = 0, size
                asked = self.headers.get("Range")
                if asked:
                    first, last = asked.removeprefix("bytes=").split("-")
                    start, end = int(first), min(int(last) + 1, size)
                self.send_response(206 if asked else 200)
                self.send_header("Content-Length", str(end - start))
                self.send_header("ETag", etag)
                self.send_header("Last-Modified", formatdate(1_700_000_000, usegmt=True))
                if asked:
                    self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
                self.end_headers()
                if self.command == "GET":
                    for piece in store.pieces(self.path, start, end):
                        self.wfile.write(piece)

            do_HEAD = do_GET

            def log_message(self, *_: object) -> None: ...

        return Handler


class Fetching:
    """Fetches into a store of its own, in the real process, with the variables that a shell would hand over."""

    def __init__(self, root: Path, **variables: str) -> None:
        self.root = root / "artifacts"
        self.variables = {"HOME": str(root), "AWS_EC2_METADATA_DISABLED": "true", **variables}
        self.told: list[FetchProgress] = []
        self.stop = threading.Event()

    @classmethod
    def from_s3(cls, root: Path, endpoint: str, **variables: str) -> Fetching:
        usual = {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret-of-the-key",
        }
        return cls(root, **usual | variables)

    def __call__(self, model: str, *, model_format: Any = None, known: tuple[Fetched, ...] = ()) -> Fetched:
        return fetch_in_process(
            FetchRequest(
                model=model,
                store=str(self.root),
                model_format=model_format,
                known=tuple(KnownModel(origin=one.origin, model=one.model) for one in known),
            ),
            cloud={name: value for name, value in self.variables.items() if value},
            environ=_plain_environment(),
            tell=self.told.append,
            stop=self.stop,
        )

    def content(self, fetched: Fetched) -> dict[str, bytes]:
        """What is in the stored folder."""
        return {
            file.path: (self.root / "blobs" / file.sha256[:2] / file.sha256).read_bytes()
            for file in fetched.model.files
        }

    def leftovers(self) -> list[str]:
        """Half-written files."""
        folder = self.root / "tmp"
        return [file.name for file in folder.iterdir()] if folder.exists() else []


def _plain_environment() -> dict[str, str]:
    import os

    return {name: value for name, value in os.environ.items() if not name.startswith(("CORTEX_", "AWS_"))}


def onnx_bytes(weight: float = 1.0, *, external: str = "", rows: int = 4) -> bytes:
    """A model `features[n, rows]` → `score[n, 1]`; with `external`, its weights are in a file of that name."""
    weights = onnx.numpy_helper.from_array(np.full((rows, 1), weight, np.float32), "weights")
    if external:
        weights.ClearField("raw_data")
        weights.data_location = TensorProto.EXTERNAL
        for key, value in (("location", external), ("offset", "0"), ("length", str(4 * rows))):
            weights.external_data.add(key=key, value=value)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["features", "weights"], ["score"])],
        "g",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", rows])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["n", 1])],
        [weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def weights_bytes(weight: float = 1.0, rows: int = 4) -> bytes:
    return np.full((rows, 1), weight, np.float32).tobytes()


def zipped(files: Mapping[str, bytes]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return content.getvalue()


def wait_until(happened: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while not happened():
        assert time.monotonic() < deadline_s, "not in time"
        time.sleep(0.01)
