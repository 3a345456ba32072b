"""Mutual TLS between nodes: both sides show a certificate that the cluster's own authority has signed."""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import cast

KEEP_ALIVE_S = 5
"""A connection on which nothing came for so long is asked whether it is still there."""
GONE_AFTER_S = 10
"""One over which nothing goes for so long is closed: the machine is gone, or the way to it."""


@dataclass(frozen=True)
class TlsIdentity:
    """Files in PEM: who is trusted, and who we are."""

    authority: Path
    certificate: Path
    key: Path

    def server_context(self) -> ssl.SSLContext:
        """For who listens: clients without a certificate of the authority are not taken. Raises OSError."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.verify_mode = ssl.CERT_REQUIRED
        return self._with_files(context)

    def client_context(self) -> ssl.SSLContext:
        """For who dials; the name in the server's certificate has to be the one that was dialed. Raises OSError."""
        return self._with_files(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))

    def _with_files(self, context: ssl.SSLContext) -> ssl.SSLContext:
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_verify_locations(self.authority)
        context.load_cert_chain(self.certificate, self.key)
        return context


def peer_names(sock: ssl.SSLSocket) -> tuple[str, ...]:
    """Names of whoever is on the other side, by the certificate that was verified."""
    certificate = sock.getpeercert() or {}
    names = cast("tuple[tuple[str, str], ...]", certificate.get("subjectAltName", ()))
    return tuple(name for kind, name in names if kind == "DNS")


def notice_silence(sock: socket.socket) -> None:
    """Have the kernel close a TCP connection whose other side is gone without a word."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEP_ALIVE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, GONE_AFTER_S - KEEP_ALIVE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, GONE_AFTER_S * 1000)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
