"""Tests of what `cortex.agent.door` says."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path
from typing import Any

import pytest

from cortex.agent.door import Door, ingress_problem
from cortex.agent.refusals import RefusalLog
from cortex.ingress.counters import ApiTraffic
from cortex.ingress.supervisor import IngressStatus, TrafficReading
from cortex.settings import HomeLayout, Settings
from cortex.testing.builders import API, a_route, a_wanted_api
from cortex.testing.clock import FakeClock
from cortex.wire.loads import DoorReading


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "predictions are not listened for, since the disk of /srv/cortex is full"),
        (errno.EACCES, "predictions are not listened for: [Errno 13] Permission denied"),
    ],
)
def test_why_the_ingress_does_not_start_is_told_in_words(number: int, message: str) -> None:
    problem = ingress_problem(OSError(number, os.strerror(number)), Path("/srv/cortex"))
    assert (problem.reference, problem.message) == ("ingress-failed", message)


class PretendedIngress:
    """Cannot be started while the disk is full."""

    def __init__(self) -> None:
        self.full = True
        self.applied = 0

    async def start(self) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async def apply(self, _routes: object) -> None:
        self.applied += 1

    def status(self) -> IngressStatus:
        return IngressStatus(up=not self.full, pid=None, restarts=0)


class BusyIngress(PretendedIngress):
    async def traffic(self) -> TrafficReading:
        return TrafficReading(at_s=12.5, apis=(ApiTraffic(api=API, begun=7, sent=5, queued=2),))


def a_door(tmp_path: Path, ingress: PretendedIngress, **options: Any) -> Door:
    values: dict[str, Any] = {
        "routes": tuple,
        "lives": dict,
        "on_change": lambda: None,
        "on_applied": lambda: None,
        **options,
    }
    return Door(
        settings=Settings(home=tmp_path),
        layout=HomeLayout(tmp_path),
        ingress=ingress,  # type: ignore[arg-type]
        refusal_log=RefusalLog(tmp_path, FakeClock()),
        **values,
    )


def test_what_came_for_each_api_is_told_with_its_instant(tmp_path: Path) -> None:
    reading = asyncio.run(a_door(tmp_path, BusyIngress()).traffic())
    assert reading == (12.5, (DoorReading(api=API, begun=7, queued=2),))


def test_an_ingress_that_could_not_be_started_is_started_later_and_told_everything(tmp_path: Path) -> None:
    ingress, route, changes, applied = PretendedIngress(), a_route(a_wanted_api()), [], []
    door = a_door(
        tmp_path,
        ingress,
        routes=lambda: (route,),
        on_change=lambda: changes.append(1),
        on_applied=lambda: applied.append(1),
    )

    async def scenario() -> None:
        await door.start()
        assert door.report().problem is not None
        assert door.pending_routes() == (API,)
        ingress.full = False
        await door.keep()
        assert (door.report().problem, changes) == (None, [1])
        await door.sync()
        await door.sync()
        assert (door.pending_routes(), ingress.applied, applied) == ((), 2, [1])
        await door.keep()
        assert changes == [1]

    asyncio.run(scenario())
