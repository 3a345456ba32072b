"""Tests of `cortex.agent.rotation`."""

from pathlib import Path

import msgspec
import pytest

from cortex.agent.life.state import Hold, Intent, Life, Process, Progress
from cortex.agent.pace import HELD, QueueBound
from cortex.agent.rotation import (
    ASYNC_CONCURRENCY,
    LARGEST_BATCH,
    SPARE,
    Neighbours,
    ingress_routes,
    max_connections,
    peer_shares,
    readiness,
    start_s,
)
from cortex.ids import NodeId, replica_id, short, socket_stem
from cortex.ingress.peers import IngressPeer, PeerShare
from cortex.ingress.routes import Readiness, Sleep
from cortex.settings import NodeLayout
from cortex.testing.builders import a_build, a_route, a_wanted_api
from cortex.wire.launch import ReplicaStatus
from cortex.wire.orders import StartReplica
from cortex.wire.reports import Phase

BUILD = a_build()
LAYOUT = NodeLayout(Path("/home/ann/.cortex"))


def an_order(ordinal: int = 0) -> StartReplica:
    return StartReplica(replica=replica_id(BUILD.api, BUILD.revision, ordinal), attempt=1, build=BUILD)


def a_life(ordinal: int = 0, **fields) -> Life:
    defaults = {"process": Process.RUNNING, "phase": Phase.READY, "phase_since_s": 0.0, "started_wall_s": 0.0}
    progress = Progress(since_s=0.0, since_wall_s=0.0)
    return Life(**{"order": an_order(ordinal), "progress": progress, **defaults, **fields})


def stuck() -> ReplicaStatus:
    times = {"start_ticks": 1, "phase_wall_s": 0.0, "started_wall_s": 0.0}
    return ReplicaStatus(replica=an_order().replica, attempt=1, pid=1, phase=Phase.READY, stuck=True, **times)


HOLD = Hold(since_s=1.0, limit_s=5.0)
KNOCK = Hold(since_s=1.0, limit_s=30.0, is_knock=True)
ASLEEP = {"process": Process.OVER, "phase": Phase.ASLEEP}
GONE = {"process": Process.GONE, "hold": HOLD}
LONG_GONE = {"process": Process.OVER, "phase": Phase.EXITED, "hold": Hold(since_s=1.0, limit_s=5.0, is_over=True)}


@pytest.mark.parametrize(
    ("life", "hold", "expected"),
    [
        pytest.param(a_life(), True, Readiness.READY, id="ready"),
        pytest.param(a_life(phase=Phase.WARMING), True, Readiness.UNREADY, id="never was ready"),
        pytest.param(a_life(**GONE), True, Readiness.HELD, id="died a moment ago"),
        pytest.param(a_life(**GONE), False, Readiness.UNREADY, id="died, nobody comes"),
        pytest.param(a_life(**LONG_GONE), True, Readiness.UNREADY, id="died long ago"),
        pytest.param(a_life(phase=Phase.LOADING, hold=HOLD), True, Readiness.HELD, id="a successor loads"),
        pytest.param(a_life(intent=Intent.DRAIN), True, Readiness.DRAINING, id="about to be drained"),
        pytest.param(a_life(intent=Intent.DRAIN, phase=Phase.DRAINING), True, Readiness.DRAINING, id="drains"),
        pytest.param(a_life(intent=Intent.LEAVE), True, Readiness.HELD, id="told to end by somebody else"),
        pytest.param(a_life(intent=Intent.END), True, Readiness.HELD, id="killed"),
        pytest.param(a_life(status=stuck()), True, Readiness.HELD, id="sits in a handler for too long"),
        pytest.param(a_life(intent=Intent.LEAVE), False, Readiness.UNREADY, id="told to end, nobody comes"),
        pytest.param(a_life(**ASLEEP), True, Readiness.HELD, id="sleeps"),
        pytest.param(a_life(**ASLEEP), False, Readiness.HELD, id="sleeps, and waits for no replacement"),
        pytest.param(a_life(hold=KNOCK, **ASLEEP), True, Readiness.HELD, id="somebody has come"),
        pytest.param(
            a_life(hold=msgspec.structs.replace(KNOCK, is_over=True), **ASLEEP),
            True,
            Readiness.UNREADY,
            id="somebody has come in vain",
        ),
        pytest.param(a_life(intent=Intent.DRAIN, **ASLEEP), True, Readiness.DRAINING, id="sleeps no more"),
        pytest.param(a_life(intent=Intent.LEAVE, **GONE), True, Readiness.HELD, id="told to end, and has"),
        pytest.param(a_life(status=stuck(), **GONE), True, Readiness.HELD, id="sat in a handler, and has ended"),
    ],
)
def test_who_may_get_requests(life, hold, expected):
    assert readiness(life, hold=hold) is expected


def test_a_route_has_its_ready_replicas_by_the_paths_of_their_slots():
    wanted = a_wanted_api(BUILD)
    ready, loading = a_life(), a_life(1, phase=Phase.LOADING)
    lives = {life.id: life for life in (ready, loading)}
    asked = []

    def bound(api, ready):
        asked.append((api, ready))
        return QueueBound(300, 2)

    (route,) = ingress_routes([a_route(wanted, *lives)], lives, LAYOUT, bound)
    assert asked == [(wanted.api, 1)]
    assert (route.max_queued, route.retry_after_s) == (300, 2)
    stem = socket_stem(ready.order.replica)
    assert [(server.name, server.socket) for server in route.servers] == [(stem, str(LAYOUT.slot_socket(stem)))]
    assert (route.api, route.path, route.version) == (wanted.api, wanted.path, short(BUILD.version))


def neighbours(*names):
    peers = tuple(IngressPeer(NodeId(name), f"10.0.0.{n}", 8881) for n, name in enumerate(names, 2))
    return Neighbours(node=NodeId("a"), peers=peers)


def test_targets_that_run_elsewhere_are_left_out():
    wanted = a_wanted_api(BUILD)
    (route,) = ingress_routes([a_route(wanted, an_order().replica)], {}, LAYOUT, lambda _api, _ready: HELD)
    assert (route.servers, route.peers) == ((), ())


def test_targets_that_run_elsewhere_are_reached_through_the_doors_there():
    here = a_life()
    route = msgspec.structs.replace(
        a_route(a_wanted_api(BUILD), here.id, an_order(1).replica), nodes={NodeId("a"): 1, NodeId("b"): 1}
    )
    (found,) = ingress_routes([route], {here.id: here}, LAYOUT, lambda *_: HELD, neighbours("b", "c"))
    assert [server.name for server in found.servers] == [socket_stem(here.id)]
    assert (found.peers, found.held) == ((PeerShare(NodeId("b"), 1),), False)
    gone = {here.id: a_life(**GONE)}
    (found,) = ingress_routes([route], gone, LAYOUT, lambda *_: HELD, neighbours("b", "c"))
    assert (len(found.servers), found.held) == (1, True), "which is for those to whom it is the only one"


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ({}, {}),
        ({"a": 2}, {}),
        ({"a": 1, "c": 2, "b": 1}, {"b": 1, "c": 2}),
        ({"b": 0, "c": 1}, {"c": 1}),
        ({"d": 3, "b": 1}, {"b": 1}),
    ],
)
def test_a_door_asks_the_others_that_have_replicas_and_whose_address_is_known(nodes, expected):
    route = msgspec.structs.replace(
        a_route(a_wanted_api(BUILD)), nodes={NodeId(name): count for name, count in nodes.items()}
    )
    shares = peer_shares(route, neighbours("a", "b", "c"))
    assert {share.peer: share.ready for share in shares} == expected


def test_a_door_asks_no_more_than_it_can_hold():
    names = [f"n{n}" for n in range(40)]
    route = msgspec.structs.replace(a_route(a_wanted_api(BUILD)), nodes={NodeId(name): 1 for name in names})
    assert len(peer_shares(route, neighbours(*names))) == 16


def test_in_a_slot_that_nobody_serves_what_comes_from_peers_has_half_the_room():
    life = a_life(**GONE)
    (route,) = ingress_routes(
        [a_route(a_wanted_api(BUILD), life.id)], {life.id: life}, LAYOUT, lambda *_: HELD, neighbours("b")
    )
    assert [server.max_connections for server in route.servers] == [20]


def test_what_a_start_takes_is_that_of_the_slowest_replica_of_a_route():
    lives = {life.id: life for life in (a_life(0, start_s=0.5), a_life(1, start_s=2.0), a_life(2))}
    route = a_route(a_wanted_api(BUILD), *lives)
    assert start_s(route, lives) == 2.0
    assert start_s(route, {}) is None


STARTS = {"process": Process.FORKING, "phase": Phase.STARTING, "hold": KNOCK}


@pytest.mark.parametrize(
    ("lives", "servers", "sleep"),
    [
        pytest.param([a_life(0, **ASLEEP)], [0], Sleep.ASLEEP, id="sleeps"),
        pytest.param([a_life(0, **ASLEEP), a_life(1)], [1], Sleep.AWAKE, id="falls asleep"),
        pytest.param([a_life(0, **ASLEEP), a_life(1, **GONE)], [0, 1], Sleep.ASLEEP, id="one died, one sleeps"),
        pytest.param([a_life(0, hold=KNOCK, **ASLEEP)], [0], Sleep.WAKING, id="somebody has come"),
        pytest.param([a_life(0, **STARTS)], [0], Sleep.WAKING, id="is started"),
        pytest.param([a_life(0, **GONE)], [0], Sleep.AWAKE, id="died"),
        pytest.param([a_life(0)], [0], Sleep.AWAKE, id="serves"),
        pytest.param([a_life(0, intent=Intent.DRAIN, **ASLEEP)], [], Sleep.AWAKE, id="sleeps no more"),
    ],
)
def test_a_route_is_asleep_while_nobody_is_awake_and_waking_once_somebody_has_come(lives, servers, sleep):
    found = {life.id: life for life in lives}
    (route,) = ingress_routes([a_route(a_wanted_api(BUILD), *found)], found, LAYOUT, lambda _api, _ready: HELD)
    assert [server.name for server in route.servers] == [socket_stem(lives[number].id) for number in servers]
    assert route.sleep is sleep


@pytest.mark.parametrize(("fields", "expected"), [({}, 208), (ASLEEP, 40), (STARTS, 40), (GONE, 40)])
def test_no_more_wait_in_a_slot_that_nobody_serves_than_any_kernel_allows(fields, expected):
    build = msgspec.structs.replace(BUILD, concurrency=200)
    life = a_life(**{"order": msgspec.structs.replace(an_order(), build=build), **fields})
    (route,) = ingress_routes([a_route(a_wanted_api(build), life.id)], {life.id: life}, LAYOUT, lambda *_: HELD)
    assert [server.max_connections for server in route.servers] == [expected]


@pytest.mark.parametrize(
    ("concurrency", "expected"),
    [(None, ASYNC_CONCURRENCY + SPARE), (1, LARGEST_BATCH + SPARE), (200, 200 + SPARE)],
)
def test_a_replica_is_sent_a_whole_batch_and_what_its_handler_takes_at_once(concurrency, expected):
    assert max_connections(msgspec.structs.replace(BUILD, concurrency=concurrency)) == expected
