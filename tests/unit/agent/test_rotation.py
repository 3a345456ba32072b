"""Tests of `cortex.agent.rotation`."""

from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest

from cortex.agent.rotation import ASYNC_CONCURRENCY, LARGEST_BATCH, SPARE, ingress_routes, max_connections, readiness
from cortex.ids import replica_id, short, socket_stem
from cortex.ingress.routes import Readiness
from cortex.settings import HomeLayout
from cortex.testing.builders import a_build, a_route, a_wanted_api
from cortex.wire.orders import StartReplica
from cortex.wire.reports import Phase

BUILD = a_build()
LAYOUT = HomeLayout(Path("/home/ann/.cortex"))


def an_order(ordinal: int = 0) -> StartReplica:
    return StartReplica(replica=replica_id(BUILD.api, BUILD.revision, ordinal), attempt=1, build=BUILD)


@dataclass
class Seen:
    phase: Phase = Phase.READY
    gone: bool = False
    unready_since_s: float | None = None
    hold_expired: bool = False
    stopping: bool = False
    leaving: bool = False
    stuck: bool = False
    order: StartReplica = field(default_factory=an_order)


@pytest.mark.parametrize(
    ("seen", "hold", "expected"),
    [
        pytest.param(Seen(), True, Readiness.READY, id="ready"),
        pytest.param(Seen(phase=Phase.WARMING), True, Readiness.UNREADY, id="never was ready"),
        pytest.param(Seen(gone=True, unready_since_s=1.0), True, Readiness.HELD, id="died a moment ago"),
        pytest.param(Seen(gone=True, unready_since_s=1.0), False, Readiness.UNREADY, id="died, nobody comes"),
        pytest.param(
            Seen(gone=True, unready_since_s=1.0, hold_expired=True), True, Readiness.UNREADY, id="died long ago"
        ),
        pytest.param(Seen(phase=Phase.LOADING, unready_since_s=1.0), True, Readiness.HELD, id="its successor loads"),
        pytest.param(Seen(stopping=True), True, Readiness.DRAINING, id="about to be drained"),
        pytest.param(Seen(phase=Phase.DRAINING), True, Readiness.DRAINING, id="drains"),
        pytest.param(Seen(leaving=True), True, Readiness.HELD, id="told to end by somebody else"),
        pytest.param(Seen(stuck=True), True, Readiness.HELD, id="sits in a handler for too long"),
        pytest.param(Seen(leaving=True), False, Readiness.UNREADY, id="told to end, nobody comes"),
        pytest.param(
            Seen(leaving=True, gone=True, unready_since_s=1.0), True, Readiness.HELD, id="told to end, and has"
        ),
    ],
)
def test_who_may_get_requests(seen, hold, expected):
    assert readiness(seen, hold=hold) is expected


def test_a_route_has_its_ready_replicas_by_the_paths_of_their_slots():
    wanted = a_wanted_api(BUILD)
    ready, loading = Seen(), Seen(phase=Phase.LOADING, order=an_order(1))
    replicas = {seen.order.replica: seen for seen in (ready, loading)}
    (route,) = ingress_routes([a_route(wanted, *replicas)], replicas, LAYOUT)
    stem = socket_stem(ready.order.replica)
    assert [(server.name, server.socket) for server in route.servers] == [(stem, str(LAYOUT.slot_socket(stem)))]
    assert (route.api, route.path, route.version) == (wanted.api, wanted.path, short(BUILD.version))


def test_targets_that_run_elsewhere_are_left_out():
    wanted = a_wanted_api(BUILD)
    (route,) = ingress_routes([a_route(wanted, an_order().replica)], {}, LAYOUT)
    assert route.servers == ()


@pytest.mark.parametrize(
    ("concurrency", "expected"),
    [(None, ASYNC_CONCURRENCY + SPARE), (1, LARGEST_BATCH + SPARE), (200, 200 + SPARE)],
)
def test_a_replica_is_sent_a_whole_batch_and_what_its_handler_takes_at_once(concurrency, expected):
    assert max_connections(msgspec.structs.replace(BUILD, concurrency=concurrency)) == expected
