"""Environments elsewhere: where their control plane and their predictions are reached from here."""

from __future__ import annotations

import http.server
import json
import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cortex.client.environments import Remote, RemoteEnvironment, masked
from cortex.client.errors import OperatorUnreachable
from cortex.client.operator import OperatorClient
from cortex.client.prediction import EndpointUnreachable, post


def client(**fields: Any) -> OperatorClient:
    return RemoteEnvironment(Remote(name="there", token="t", **fields)).connect()


@pytest.mark.parametrize(
    ("operator", "predictions", "told", "from_here"),
    [
        ("https://gpu.example.com", "", "http://10.0.0.3:8880/a/b", "http://10.0.0.3:8880/a/b"),
        ("https://gpu.example.com", "", "http://127.0.0.1:8880/a/b", "http://gpu.example.com:8880/a/b"),
        ("https://gpu.example.com", "", "http://0.0.0.0:8880/a/b", "http://gpu.example.com:8880/a/b"),
        ("http://[::2]:8881", "", "http://[::1]:8880/a/b", "http://[::2]:8880/a/b"),
        ("https://gpu.example.com", "https://api.example.com/x", "http://127.0.0.1:1/a", "https://api.example.com/x/a"),
        ("https://gpu.example.com", "", "", ""),
    ],
)
def test_this_machine_said_elsewhere_is_that_machine(
    operator: str, predictions: str, told: str, from_here: str
) -> None:
    assert client(operator=operator, predictions=predictions).from_here(told) == from_here


def test_what_the_control_plane_on_this_machine_says_is_taken_as_it_is() -> None:
    assert OperatorClient(port=8881, token="t").from_here("http://0.0.0.0:8880/a") == "http://0.0.0.0:8880/a"


@pytest.mark.parametrize(
    ("operator", "url"),
    [
        ("https://gpu.example.com", "https://gpu.example.com:443"),
        ("http://gpu.example.com/cortex", "http://gpu.example.com:80/cortex"),
        ("http://[::1]:8881", "http://[::1]:8881"),
    ],
)
def test_a_url_may_leave_the_port_to_its_scheme(operator: str, url: str) -> None:
    assert client(operator=operator).url == url


@pytest.mark.parametrize(("token", "shown"), [("short", "****"), ("0123456789abcdef", "****cdef")])
def test_only_the_end_of_a_long_token_shows(token: str, shown: str) -> None:
    assert masked(token) == shown


class _Door(http.server.BaseHTTPRequestHandler):
    """Answers whatever is asked with the path and the authorization, as if they were digests."""

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("content-length") or 0))
        body = json.dumps({"digests": [self.path, self.headers.get("authorization")]}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def encrypted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """URL of a server with TLS, and the certificate that it shows."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("making a certificate takes openssl")
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    command = f"{openssl} req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    extension = ["-addext", "subjectAltName=DNS:localhost"]
    subprocess.run([*command.split(), *extension, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = http.server.HTTPServer(("127.0.0.1", 0), _Door)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients that do not trust it hang up
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield f"https://localhost:{server.server_port}", certificate
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_control_plane_behind_a_proxy_with_tls_is_talked_to(
    encrypted: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, certificate = encrypted
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    asked = client(operator=f"{url}/cortex").missing_blobs(())
    assert asked == ("/cortex/v1/blobs/missing", "Bearer t")
    assert json.loads(post(f"{url}/iris/a", b"1", "application/json").body)["digests"][0] == "/iris/a"


def test_a_certificate_that_is_not_trusted_is_told(
    encrypted: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    with pytest.raises(OperatorUnreachable, match=r"its certificate is not trusted here: .*SSL_CERT_FILE"):
        client(operator=encrypted[0]).info()
    with pytest.raises(EndpointUnreachable, match="its certificate is not trusted here"):
        post(f"{encrypted[0]}/iris/a", b"1", "application/json")
