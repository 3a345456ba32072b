"""Tests of what `cortex.agent.door` says."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cortex.agent.door import Door, ingress_problem
from cortex.agent.life.state import Life, Process, Progress
from cortex.agent.pace import LONGEST_QUEUE, SHORTEST_QUEUE
from cortex.agent.refusals import RefusalLog
from cortex.agent.rotation import Neighbours
from cortex.ids import NodeId, replica_id
from cortex.ingress.counters import ApiTraffic
from cortex.ingress.peers import IngressPeer, Peering, PeerShare
from cortex.ingress.routes import IngressRoute
from cortex.ingress.supervisor import IngressStatus, TrafficReading
from cortex.settings import NodeLayout, Settings
from cortex.testing.builders import API, a_build, a_route, a_wanted_api
from cortex.testing.clock import FakeClock
from cortex.wire.loads import DoorReading
from cortex.wire.orders import StartReplica
from cortex.wire.reports import Phase


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
        self.wanted: tuple[IngressRoute, ...] = ()

    async def start(self) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async def apply(self, routes: tuple[IngressRoute, ...], peers: tuple[IngressPeer, ...] = ()) -> None:
        self.applied += 1
        self.wanted, self.peers = routes, peers

    def routes(self) -> tuple[IngressRoute, ...]:
        return self.wanted

    def status(self) -> IngressStatus:
        return IngressStatus(up=not self.full, pid=None, restarts=0)


class BusyIngress(PretendedIngress):
    async def traffic(self) -> TrafficReading:
        return TrafficReading(at_s=12.5, apis=(ApiTraffic(api=API, begun=7, done=5, queued=2, given=3),))


class FollowedIngress(PretendedIngress):
    def __init__(self) -> None:
        super().__init__()
        self.reading = TrafficReading(at_s=0.0, apis=())

    def come(self, at_s: float, *, done: int, queued: int) -> None:
        api = ApiTraffic(api=API, begun=done + queued, done=done, queued=queued, given=0)
        self.reading = TrafficReading(at_s=at_s, apis=(api,))

    async def traffic(self) -> TrafficReading:
        return self.reading


def a_ready_life() -> Life:
    build = a_build()
    order = StartReplica(replica=replica_id(build.api, build.revision, 0), attempt=1, build=build)
    progress = Progress(since_s=0.0, since_wall_s=0.0)
    return Life(
        order=order,
        progress=progress,
        process=Process.RUNNING,
        phase=Phase.READY,
        phase_since_s=0.0,
        started_wall_s=0.0,
    )


def a_door(tmp_path: Path, ingress: PretendedIngress, **options: Any) -> Door:
    values: dict[str, Any] = {
        "clock": FakeClock(),
        "routes": tuple,
        "lives": dict,
        "peering": None,
        "neighbours": lambda: None,
        "on_change": lambda: None,
        "on_applied": lambda: None,
        **options,
    }
    return Door(
        settings=Settings(home=tmp_path),
        layout=NodeLayout(tmp_path),
        ingress=ingress,  # type: ignore[arg-type]
        refusal_log=RefusalLog(tmp_path, FakeClock()),
        **values,
    )


def test_a_door_is_told_of_the_other_doors_and_of_what_they_have(tmp_path: Path) -> None:
    ingress = PretendedIngress()
    peers = (IngressPeer(NodeId("b"), "10.0.0.2", 8881), IngressPeer(NodeId("c"), "10.0.0.3", 8881))
    route = msgspec.structs.replace(a_route(a_wanted_api()), nodes={NodeId("a"): 1, NodeId("b"): 2})
    door = a_door(
        tmp_path, ingress, routes=lambda: (route,), neighbours=lambda: Neighbours(node=NodeId("a"), peers=peers)
    )
    assert door.pending_routes() == (route.api,)
    asyncio.run(door.sync())
    assert ingress.peers == peers
    assert [wanted.peers for wanted in ingress.wanted] == [(PeerShare(NodeId("b"), 2),)]
    assert door.pending_routes() == ()


def test_a_door_holds_for_an_api_whose_node_is_lost_and_gives_it_up_by_itself(tmp_path: Path) -> None:
    ingress, clock = FollowedIngress(), FakeClock()
    ingress.full = False
    peer = IngressPeer(NodeId("b"), "10.0.0.2", 8881)
    there = msgspec.structs.replace(a_route(a_wanted_api()), nodes={NodeId("b"): 1})
    routes = [there]

    def a_new_door() -> Door:
        return a_door(
            tmp_path,
            ingress,
            clock=clock,
            routes=lambda: tuple(routes),
            peering=Peering(host="10.0.0.1", port=8881, certificate=tmp_path / "n", authority=tmp_path / "a"),
            neighbours=lambda: Neighbours(node=NodeId("a"), peers=(peer,)),
        )

    async def scenario() -> list[bool]:
        door, found = a_new_door(), []

        async def look(now: Door) -> None:
            await now.follow()
            (wanted,) = ingress.wanted
            found.append(wanted.holds)

        await door.sync()
        clock.advance(600)
        await look(door)
        routes[:] = [msgspec.structs.replace(there, nodes={})]
        await door.sync()
        clock.advance(20)
        await look(door)
        door = a_new_door()
        await door.start()
        await door.sync()
        clock.advance(20)
        await look(door)
        clock.advance(20)
        await look(door)
        routes[:] = [there]
        await door.sync()
        await look(door)
        return found

    assert asyncio.run(scenario()) == [True, True, True, False, True]


def test_what_came_for_each_api_is_told_with_its_instant(tmp_path: Path) -> None:
    reading = asyncio.run(a_door(tmp_path, BusyIngress()).traffic())
    assert reading == (12.5, (DoorReading(api=API, begun=7, queued=2, given=3),))


def test_who_may_wait_follows_what_replicas_do_and_the_ingress_hears_only_of_changes(tmp_path: Path) -> None:
    life = a_ready_life()
    route = a_route(a_wanted_api(life.order.build), life.id)
    ingress, clock = FollowedIngress(), FakeClock()
    ingress.full = False
    door = a_door(tmp_path, ingress, clock=clock, routes=lambda: (route,), lives=lambda: {life.id: life})

    def bound() -> tuple[int, int, int]:
        (wanted,) = ingress.wanted
        return wanted.max_queued, wanted.retry_after_s, ingress.applied

    async def scenario() -> None:
        await door.start()
        await door.follow()  # nothing is routed yet
        await door.sync()
        assert bound() == (100, 1, 1)
        for looks, (done, queued, expected) in enumerate(
            [(0, 0, (100, 1, 1)), (5, 500, (100, 1, 1)), (305, 500, (600, 1, 2)), (610, 500, (600, 1, 2))], 1
        ):
            clock.advance(0.5)
            ingress.come(0.5 * looks, done=done, queued=queued)
            await door.follow()
            assert bound() == expected

    asyncio.run(scenario())


def test_an_agent_that_was_restarted_goes_on_with_the_bound_that_there_was(tmp_path: Path) -> None:
    ingress = FollowedIngress()
    ingress.full = False
    life = a_ready_life()
    route = a_route(a_wanted_api(life.order.build), life.id)
    before = a_door(tmp_path, ingress, routes=lambda: (route,), lives=lambda: {life.id: life})
    asyncio.run(before.sync())
    ingress.wanted = tuple(msgspec.structs.replace(had, max_queued=700, retry_after_s=2) for had in ingress.wanted)
    after = a_door(tmp_path, ingress, routes=lambda: (route,), lives=lambda: {life.id: life})

    async def scenario() -> None:
        await after.start()
        await after.sync()

    asyncio.run(scenario())
    assert [(had.max_queued, had.retry_after_s) for had in ingress.wanted] == [(700, 2)]


def test_an_agent_that_was_restarted_knows_what_a_start_takes_of_one_that_sleeps(tmp_path: Path) -> None:
    ingress = FollowedIngress()
    ingress.full = False
    life = a_ready_life()
    asleep = msgspec.structs.replace(life, process=Process.OVER, phase=Phase.ASLEEP)
    route = a_route(a_wanted_api(life.order.build), life.id)
    lives = {life.id: asleep}
    door = a_door(tmp_path, ingress, routes=lambda: (route,), lives=lambda: lives)

    def bound() -> tuple[int, int]:
        (wanted,) = ingress.wanted
        return wanted.max_queued, wanted.retry_after_s

    async def scenario() -> None:
        await door.sync()
        assert bound() == (LONGEST_QUEUE, 1)
        ingress.wanted = tuple(msgspec.structs.replace(had, retry_after_s=7) for had in ingress.wanted)
        await door.start()
        await door.sync()
        assert bound() == (LONGEST_QUEUE, 7)
        lives[life.id] = life
        await door.sync()
        assert bound() == (SHORTEST_QUEUE, 1)

    asyncio.run(scenario())


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
