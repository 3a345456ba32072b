"""The misfortunes that the fake engine can be told to have."""

from __future__ import annotations

import pytest

from cortex.engines.fake import FakeEngine
from cortex.errors import RetryLater
from cortex.ids import NodeId, ReplicaId
from cortex.planning.model import LeaseRequest, LeaseState
from cortex.testing.builders import API, a_node
from cortex.testing.clock import FakeClock
from cortex.wire.build import Resources


def a_request(name: str, cpu: int = 1000) -> LeaseRequest:
    return LeaseRequest(replica=ReplicaId(name), api=API, resources=Resources(cpu_millis=cpu))


def an_engine(clock: FakeClock | None = None, **settings: object) -> FakeEngine:
    nodes = [a_node(NodeId("n1"), cpu_millis=1000), a_node(NodeId("n2"), cpu_millis=1000)]
    return FakeEngine(nodes, clock=clock or FakeClock(), **settings)  # type: ignore[arg-type]


def placed(engine: FakeEngine) -> dict[str, tuple[LeaseState, str | None]]:
    return {lease.request.replica: (lease.state, lease.node) for lease in engine.leases()}


def test_room_can_take_a_while() -> None:
    clock = FakeClock()
    engine = an_engine(clock)
    engine.grant_delay_s = 2.0
    engine.acquire(a_request("a"))
    before = engine.revision
    clock.advance(1.5)
    assert engine.leases()[0].reason == "asked for 1.5 s ago, granted after 2.0 s"
    clock.advance(0.5)
    assert engine.revision != before
    assert placed(engine) == {"a": (LeaseState.GRANTED, "n1")}


def test_room_can_be_refused_for_some() -> None:
    engine = an_engine()
    engine.deny = lambda request: "not today" if request.replica == "a" else None
    engine.acquire(a_request("a"))
    engine.acquire(a_request("b"))
    assert placed(engine) == {"a": (LeaseState.PENDING, None), "b": (LeaseState.GRANTED, "n1")}
    assert engine.leases()[0].reason == "not today"
    engine.deny = lambda _request: None
    assert placed(engine)["a"] == (LeaseState.GRANTED, "n2")


def test_a_lost_lease_stays_until_it_is_released_and_its_room_is_free() -> None:
    engine = an_engine()
    engine.acquire(a_request("a"))
    engine.lose_lease(ReplicaId("a"))
    engine.acquire(a_request("b"))
    assert placed(engine) == {"a": (LeaseState.LOST, "n1"), "b": (LeaseState.GRANTED, "n1")}
    engine.release(ReplicaId("a"))
    assert "a" not in placed(engine)


def test_a_lost_node_takes_its_leases_with_it_and_others_go_elsewhere() -> None:
    engine = an_engine()
    for name in ("a", "b", "c"):
        engine.acquire(a_request(name))
    engine.lose_node(NodeId("n1"))
    assert [node.node for node in engine.nodes()] == ["n2"]
    assert placed(engine) == {
        "a": (LeaseState.LOST, "n1"),
        "b": (LeaseState.GRANTED, "n2"),
        "c": (LeaseState.PENDING, None),
    }
    engine.add_node(a_node(NodeId("n3"), cpu_millis=1000))
    assert placed(engine)["c"] == (LeaseState.GRANTED, "n3")


def test_demand_adds_nodes_up_to_the_maximum() -> None:
    clock = FakeClock()
    engine = an_engine(clock, new_node=a_node(NodeId("extra"), cpu_millis=1000), max_nodes=3)
    engine.node_delay_s = 30.0
    for name in ("a", "b", "c", "d"):
        engine.acquire(a_request(name))
    assert len(engine.nodes()) == 2
    clock.advance(30.0)
    assert placed(engine)["c"] == (LeaseState.GRANTED, "extra-1")
    clock.advance(60.0)
    assert engine.added == ["extra-1"]
    assert placed(engine)["d"][0] is LeaseState.PENDING


def test_an_engine_that_forgets_is_empty_after_a_restart() -> None:
    engine = an_engine()
    engine.acquire(a_request("a"))
    engine.restart()
    assert len(engine.leases()) == 1
    engine.forgets = True
    engine.restart()
    assert engine.leases() == ()


def test_a_single_lease_can_be_forgotten() -> None:
    engine = an_engine()
    engine.acquire(a_request("a"))
    engine.forget_lease(ReplicaId("a"))
    assert engine.leases() == ()


def test_an_engine_out_of_reach_asks_to_be_tried_later() -> None:
    engine = an_engine()
    engine.unreachable = True
    with pytest.raises(RetryLater):
        engine.acquire(a_request("a"))
    with pytest.raises(RetryLater):
        engine.release(ReplicaId("a"))
    with pytest.raises(RetryLater):
        engine.recover([])
    assert engine.leases() == ()


def test_many_nodes_without_room_are_told_in_short() -> None:
    nodes = [a_node(NodeId(f"n{number}"), cpu_millis=100) for number in range(5)]
    engine = FakeEngine(nodes, clock=FakeClock())
    engine.acquire(a_request("a", cpu=200))
    assert engine.leases()[0].reason == (
        "node n0: cpu 0m of 100m requested, 200m asked; node n1: cpu 0m of 100m requested, 200m asked; "
        "node n2: cpu 0m of 100m requested, 200m asked; and 2 more nodes without room"
    )
