"""A node's certificate is renewed by asking for the next one: no other machine can write it into the node's home."""

from __future__ import annotations

import logging
from pathlib import Path

from cortex.agent.upstream import Upstream
from cortex.processes import write_whole
from cortex.wire.needs import RenewCertificate, RenewedCertificate

log = logging.getLogger(__name__)

_KEY_BEGINS = b"-----BEGIN PRIVATE KEY"


class Renewal:
    """
    Asks now and then whether there is a next one.

    Args:
        file: PEM, of the certificate with its key.
    """

    def __init__(self, file: Path, upstream: Upstream) -> None:
        self._file = file
        self._upstream = upstream

    async def look(self) -> None:
        """Raises CortexError, OSError: it stays as it is for now."""
        shown = self._file.read_bytes().partition(_KEY_BEGINS)[0]
        renewed = await self._upstream.ask(RenewCertificate(certificate=shown.decode()), RenewedCertificate)
        if renewed.pem:
            write_whole(self._file, renewed.pem.encode())
            log.info("the certificate of this node was renewed")
