"""A package index on loopback that tests can hold up, and that may want a password."""

from __future__ import annotations

import base64
import contextlib
import html
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from packaging.utils import canonicalize_name


@dataclass
class Index:
    """Serves a folder of wheels as PEP 503 has it."""

    folder: Path
    port: int = 0
    wanted: str = ""
    """`user:password`; empty: everybody may look."""
    is_open: threading.Event = field(default_factory=threading.Event)
    """Until it is set, nobody is answered."""
    asked: threading.Event = field(default_factory=threading.Event)
    """Somebody has asked for something."""

    def url(self, credentials: str = "") -> str:
        return f"http://{credentials}{'@' if credentials else ''}127.0.0.1:{self.port}/simple"


@contextlib.contextmanager
def package_index(folder: Path, *, wanted: str = "") -> Iterator[Index]:
    index = Index(folder, wanted=wanted)
    index.is_open.set()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            index.asked.set()
            index.is_open.wait()
            authorization = f"Basic {base64.b64encode(index.wanted.encode()).decode()}"
            if index.wanted and self.headers.get("authorization") != authorization:
                self._answer(401, b"")
                return
            name = self.path.strip("/").partition("/")[2]
            if name.endswith((".whl", ".tar.gz")):
                self._answer(200, (index.folder / Path(name).name).read_bytes())
                return
            files = [
                file.name
                for file in sorted(index.folder.iterdir())
                if canonicalize_name(file.name.split("-")[0]) == canonicalize_name(name)
            ]
            links = "".join(f'<a href="/simple/files/{html.escape(file)}">{html.escape(file)}</a>' for file in files)
            self._answer(200 if files else 404, f"<!DOCTYPE html><html><body>{links}</body></html>".encode())

        def _answer(self, status: int, body: bytes) -> None:
            with contextlib.suppress(OSError):
                self.send_response(status)
                self.send_header("content-type", "text/html")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            pass  # an installer that was ended leaves its connections

    with Server(("127.0.0.1", 0), Handler) as server:
        index.port = server.server_port
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield index
        finally:
            index.is_open.set()
            server.shutdown()
            thread.join()
