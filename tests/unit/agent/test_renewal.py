"""A node of another machine asks for its next certificate."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any, cast

from cortex import certificates
from cortex.agent.renewal import Renewal
from cortex.ids import NodeId
from cortex.wire.needs import Need, RenewCertificate, RenewedCertificate

NOW_S = 1_800_000_000.0
PEM = certificates.issue(certificates.make_authority(NOW_S), NodeId("n1"), NOW_S)


class Upstream:
    """Answers so, and keeps what it was asked."""

    def __init__(self, pem: str) -> None:
        self.pem = pem
        self.asked: list[Need] = []

    async def ask(self, need: Need, kind: type[Any]) -> Any:
        assert kind is RenewedCertificate
        self.asked.append(need)
        return RenewedCertificate(pem=self.pem)

    def stream(self, need: Need) -> AsyncGenerator[bytes, None]:
        raise AssertionError(need)


def looked(file: Path, upstream: Upstream) -> bytes:
    asyncio.run(Renewal(file, upstream).look())
    return file.read_bytes()


def test_its_certificate_is_shown_and_its_key_stays(tmp_path: Path) -> None:
    file, upstream = tmp_path / "certificate.pem", Upstream("")
    file.write_bytes(PEM)
    assert looked(file, upstream) == PEM
    (asked,) = upstream.asked
    shown = cast(RenewCertificate, asked).certificate
    assert PEM.startswith(shown.encode())
    assert "END CERTIFICATE" in shown
    assert "KEY" not in shown


def test_the_next_one_takes_its_place_and_nobody_else_may_read_it(tmp_path: Path) -> None:
    file = tmp_path / "certificate.pem"
    file.write_bytes(PEM)
    assert looked(file, Upstream("another")) == b"another"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_what_is_sent_is_not_told_by_its_name() -> None:
    assert "secret" not in repr(RenewedCertificate(pem="secret"))
