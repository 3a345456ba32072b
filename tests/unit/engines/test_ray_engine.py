"""What the engine of a Ray cluster makes of what happens to that, turn by turn."""

from __future__ import annotations

import threading
import time

import msgspec
import pytest

from cortex.engines.ray import groups
from cortex.engines.ray.engine import (
    AUTOSCALER_SILENT_S,
    PLACE_WITHIN_S,
    REFUSED_FOR_S,
    UNKNOWN_FOR_S,
    NodeType,
    RayEngine,
)
from cortex.engines.ray.messages import Additions, Booted, BootOrder, RayNode
from cortex.errors import RetryLater
from cortex.ids import ApiKey, NodeId, ReplicaId
from cortex.planning.model import Lease, LeaseRequest, LeaseState
from cortex.testing.builders import API
from cortex.testing.clock import FakeClock
from cortex.testing.fake_ray import FakeRay, a_raylet
from cortex.wire.build import Resources

A, B = NodeId("a"), NodeId("b")
DEADLINE_S = 60.0


class World:
    """An engine over a cluster, whose turns are taken when a test says so."""

    def __init__(self, *nodes: RayNode, addable: tuple[NodeType, ...] = ()) -> None:
        self.clock = FakeClock()
        self.ray = FakeRay(*nodes)
        self._addable = addable
        self.engine = self.restarted()

    def restarted(self) -> RayEngine:
        self.engine = RayEngine(calls=self.ray, clock=self.clock, addable=lambda: self._addable)
        self.engine.turn()
        return self.engine

    def ask(self, name: str, **asked: object) -> None:
        self.engine.acquire(a_request(name, **asked))

    def settle(self) -> None:
        while not self.engine.turn():
            pass

    def lease(self, name: str) -> Lease:
        return next(lease for lease in self.engine.leases() if lease.request.replica == name)

    def where(self) -> dict[str, str]:
        """Node of each lease, or its state."""
        return {lease.request.replica: lease.node or lease.state.value for lease in self.engine.leases()}


def a_request(name: str, *, cpu: int = 1000, gpus: int = 0, api: ApiKey = API, **fields: object) -> LeaseRequest:
    request = LeaseRequest(replica=ReplicaId(name), api=api, resources=Resources(cpu_millis=cpu, gpus=gpus))
    return msgspec.structs.replace(request, **fields)


def test_a_lease_is_granted_once_ray_holds_its_room_and_not_before() -> None:
    world = World(a_raylet("a"))
    world.ask("one")
    assert world.lease("one").state is LeaseState.PENDING
    assert world.lease("one").reason == "asked of Ray, on node a"
    world.engine.turn()
    assert world.ray.names() == {"cx:one:1": "PENDING"}
    world.engine.turn()
    assert world.where() == {"one": "a"}
    assert world.engine.is_settled


def test_what_has_no_room_is_demand_for_a_node_that_is_none_of_those_there_are() -> None:
    world = World(a_raylet("a", cpus=1.0), a_raylet("b", cpus=1.0))
    world.ask("large", cpu=2000)
    world.settle()
    (group,) = world.ray.groups
    assert group.selector is not None
    assert (group.selector.others, group.selector.raylets) == (True, ("raylet-a", "raylet-b"))
    assert world.lease("large").state is LeaseState.PENDING
    assert "cpu 0m of 1000m requested, 2000m asked" in world.lease("large").reason


def test_a_node_that_demand_has_added_holds_what_waited_for_it() -> None:
    world = World(a_raylet("a", cpus=1.0))
    world.ask("large", cpu=2000, gpus=2)
    world.settle()
    world.ray.nodes.append(a_raylet("b", cpus=4.0, gpus=2.0))
    world.settle()
    assert world.where() == {"large": "b"}
    assert world.lease("large").devices == ("0", "1")
    assert list(world.ray.names()) == ["cx:large:1"]  # the group that was the demand


def test_what_still_waits_when_a_node_has_come_is_demand_for_one_more() -> None:
    world = World(a_raylet("a", cpus=1.0))
    for name in ("one", "two"):
        world.ask(name, cpu=2000)
    world.settle()
    world.ray.nodes.append(a_raylet("b", cpus=2.0))
    world.settle()
    assert world.where() == {"one": "b", "two": "pending"}
    (group,) = (group for group in world.ray.groups if group.state != "CREATED")
    assert group.selector is not None
    assert group.selector.raylets == ("raylet-a", "raylet-b")


def test_what_waited_takes_room_that_becomes_free_and_is_no_demand_any_more() -> None:
    world = World(a_raylet("a", cpus=1.0))
    world.ask("one")
    world.ask("two")
    world.settle()
    world.engine.release(ReplicaId("one"))
    world.settle()
    assert world.where() == {"two": "a"}
    assert world.ray.names() == {"cx:two:2": "CREATED raylet-a"}


def test_room_that_is_wanted_on_one_node_is_no_demand_for_another() -> None:
    world = World(a_raylet("a", cpus=1.0), a_raylet("b"))
    world.ask("there", node=A)
    world.ask("waits", node=A)
    world.settle()
    assert world.where() == {"there": "a", "waits": "pending"}
    assert list(world.ray.names()) == ["cx:there:1"]


def test_a_surge_beyond_a_nodes_processor_asks_ray_for_what_is_left_of_it() -> None:
    world = World(a_raylet("a", cpus=1.0))
    world.ask("one", cpu=800)
    world.ask("surge", cpu=800, surge=True)
    world.settle()
    assert world.where() == {"one": "a", "surge": "a"}
    assert [group.bundle.cpus for group in world.ray.groups] == [0.8, 0.2]


def test_second_replicas_go_to_another_node_and_further_ones_where_most_is_held() -> None:
    world = World(a_raylet("a"), a_raylet("b"), a_raylet("c"))
    for name in ("one", "two", "three", "four"):
        world.ask(name)
    world.settle()
    assert sorted(world.where().values()) == ["a", "a", "a", "b"]


def test_however_many_wait_what_is_placed_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "MOST_DEMAND_BYTES", 2 * 56)
    world = World(a_raylet("a", cpus=1.0))
    for name in ("large-1", "large-2", "large-3"):
        world.ask(name, cpu=2000)
    world.ask("one")
    world.settle()
    assert list(world.ray.names()) == ["cx:large-1:1", "cx:large-2:1", "cx:one:1"]
    world.engine.release(ReplicaId("large-1"))
    world.settle()
    assert list(world.ray.names()) == ["cx:large-2:1", "cx:one:1", "cx:large-3:1"]


# ---- losses ---------------------------------------------------------------------------------------------------------


def test_what_was_on_a_lost_node_is_lost_and_its_moved_group_is_removed() -> None:
    world = World(a_raylet("a"), a_raylet("b", cpus=0.5))
    world.ask("one")
    world.settle()
    world.ray.nodes.append(a_raylet("c"))
    world.ray.lose("raylet-a")
    world.settle()
    assert (world.lease("one").state, world.lease("one").reason) == (LeaseState.LOST, "node a is gone")
    assert world.ray.names() == {}
    world.engine.release(ReplicaId("one"))
    world.ask("one")
    world.settle()
    assert world.where() == {"one": "c"}


@pytest.mark.parametrize("state", ["RESCHEDULING", "gone", "elsewhere"])
def test_a_group_that_is_not_where_it_was_is_a_lost_lease(state: str) -> None:
    world = World(a_raylet("a"), a_raylet("b"))
    world.ask("one")
    world.settle()
    (group,) = world.ray.groups
    changed = {"RESCHEDULING": {"state": "RESCHEDULING"}, "elsewhere": {"raylet": "raylet-b"}}
    world.ray.stingy = {"raylet-a"}
    world.ray.groups = [] if state == "gone" else [msgspec.structs.replace(group, **changed[state])]
    world.settle()
    assert world.lease("one").state is LeaseState.LOST
    assert world.lease("one").reason == "Ray holds no room for it on node a any more"
    assert world.ray.groups == []


def test_a_raylet_that_is_started_again_on_its_machine_is_asked_anew_and_nothing_is_lost() -> None:
    world = World(a_raylet("a"))
    world.ask("one")
    world.settle()
    world.ray.nodes.append(a_raylet("a", raylet="again", started_ms=1))
    world.ray.lose("raylet-a")
    world.engine.turn()
    assert world.where() == {"one": "a"}
    world.settle()
    assert world.where() == {"one": "a"}
    assert world.ray.names() == {"cx:one:2": "CREATED again"}


def test_a_node_that_gives_no_room_is_left_alone_for_a_while() -> None:
    world = World(a_raylet("a"), a_raylet("b"))
    world.ray.stingy = {"raylet-a"}
    world.ask("one")
    world.engine.turn()
    world.clock.advance(PLACE_WITHIN_S)
    world.settle()
    assert world.where() == {"one": "b"}
    world.ray.stingy = set()
    world.ask("two", node=A)
    assert world.lease("two").reason == "node a: Ray has not given the room that it says there is"
    world.clock.advance(REFUSED_FOR_S)
    world.settle()
    assert world.where() == {"one": "b", "two": "a"}


def test_while_ray_does_not_answer_everything_stays_and_requests_wait() -> None:
    world = World(a_raylet("a"))
    world.ask("one")
    world.settle()
    world.ray.unreachable = True
    world.ask("two")
    with pytest.raises(RetryLater):
        world.engine.turn()
    assert world.where() == {"one": "a", "two": "pending"}
    world.ray.unreachable = False
    world.settle()
    assert world.where() == {"one": "a", "two": "a"}


# ---- restarts -------------------------------------------------------------------------------------------------------


def test_after_our_restart_groups_are_found_by_their_names() -> None:
    world = World(a_raylet("a"), a_raylet("b"))
    world.ask("one")
    world.ask("two")
    world.settle()
    before, asked = world.ray.names(), world.ray.asked
    running = world.engine.leases()
    world.restarted()
    world.engine.recover(running)
    assert world.engine.leases() == running
    world.settle()
    assert (world.ray.names(), world.ray.asked) == (before, asked)


def test_what_runs_without_a_group_has_its_room_even_where_ray_has_none() -> None:
    world = World(a_raylet("a", cpus=1.0))
    request = a_request("one", cpu=2000)
    world.engine.recover([Lease(request=request, state=LeaseState.GRANTED, node=A)])
    world.settle()
    world.clock.advance(PLACE_WITHIN_S)
    world.settle()
    assert world.where() == {"one": "a"}


def test_what_runs_on_no_node_of_ours_is_not_taken_back() -> None:
    world = World(a_raylet("a"))
    world.engine.recover([Lease(request=a_request("one"), state=LeaseState.GRANTED, node=NodeId("gone"))])
    assert world.engine.leases() == ()


def test_a_group_that_nobody_asks_for_after_our_restart_is_removed_after_a_minute() -> None:
    world = World(a_raylet("a"))
    world.ask("one")
    world.ask("two")
    world.settle()
    world.restarted()
    world.ask("one")
    world.settle()
    world.clock.advance(UNKNOWN_FOR_S - 1)
    world.settle()
    assert list(world.ray.names()) == ["cx:one:1", "cx:two:1"]
    world.clock.advance(1)
    world.settle()
    assert list(world.ray.names()) == ["cx:one:1"]


# ---- nodes that come and go -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("additions", "words"),
    [
        (Additions(coming=1), "a node is being added"),
        (Additions(coming=2), "nodes are being added"),
        (Additions(failed=("no quota",)), "no node could be added: no quota"),
    ],
)
def test_what_waits_says_whether_a_node_is_being_added(additions: Additions, words: str) -> None:
    world = World(a_raylet("a", cpus=1.0))
    world.ask("large", cpu=2000)
    world.settle()
    before = world.engine.revision
    world.ray.additions = additions
    world.engine.turn()
    assert world.engine.revision != before
    assert world.lease("large").reason.endswith(f"2000m asked; {words}")


def test_an_autoscaler_that_looks_no_more_is_told_of() -> None:
    world = World(a_raylet("a", cpus=1.0))
    world.ask("large", cpu=2000)
    for turn in (1, 2):
        world.clock.advance(AUTOSCALER_SILENT_S - 1)
        world.ray.additions = Additions(coming=1, turn=turn)
        world.settle()
        assert world.lease("large").reason.endswith("a node is being added")
    before = world.engine.revision
    world.clock.advance(AUTOSCALER_SILENT_S)
    world.settle()
    assert world.engine.revision != before
    assert world.lease("large").reason.endswith("Ray's autoscaler does not run, so that no node is added")
    world.ray.additions = Additions(coming=1, turn=3)
    world.settle()
    assert world.lease("large").reason.endswith("a node is being added")


SMALL = NodeType(name="small", cpu_millis=2000, mem_bytes=2**30, most=1)


def test_the_second_of_an_apis_minimum_waits_for_a_second_node_where_one_may_be_added() -> None:
    world = World(a_raylet("a"), addable=(SMALL,))
    world.ask("one", minimum=True)
    world.ask("two", minimum=True)
    world.ask("more")
    world.settle()
    assert world.where() == {"one": "a", "two": "pending", "more": "a"}
    assert world.lease("two").reason == "node a: has all other replicas of the api, which is to be on two nodes"
    world.ray.nodes.append(a_raylet("b", cpus=2.0, kind="small"))
    world.settle()
    assert world.where() == {"one": "a", "two": "b", "more": "a"}


@pytest.mark.parametrize(
    ("addable", "additions", "fields"),
    [
        ((), Additions(), {}),
        ((SMALL,), Additions(failed=("no quota",)), {}),
        ((SMALL,), Additions(), {"cpu": 3000}),
        ((SMALL,), Additions(), {"surge": True}),
    ],
    ids=["none may be added", "none can be had", "it would not fit", "a rollout waits for it"],
)
def test_it_does_not_wait_where_that_leads_to_nothing(
    addable: tuple[NodeType, ...], additions: Additions, fields: dict[str, object]
) -> None:
    world = World(a_raylet("a"), addable=addable)
    world.ray.additions = additions
    world.engine.turn()
    world.ask("one", minimum=True)
    world.ask("two", minimum=True, **fields)
    world.settle()
    assert world.where() == {"one": "a", "two": "a"}


def test_a_node_that_is_given_back_takes_nothing_new() -> None:
    world = World(a_raylet("a"), a_raylet("b"))
    world.ask("there", node=A)
    world.settle()
    world.engine.give_back(A, "its replicas fit elsewhere")
    world.ask("waits", node=A)
    world.settle()
    assert world.ray.given_back == ["raylet-a"]
    assert world.where() == {"there": "a", "waits": "pending"}
    assert world.lease("waits").reason == "node a: is being given back"
    assert [machine.draining for machine in world.engine.machines()] == [True, False]


def test_what_fits_on_no_node_is_possible_where_one_may_be_added_on_which_it_fits() -> None:
    large = NodeType(name="large", cpu_millis=4000, mem_bytes=2**30, most=2)
    asked = Resources(cpu_millis=3000)
    assert World(a_raylet("a", cpus=2.0)).engine.impossible(asked) is not None
    world = World(a_raylet("a", cpus=2.0), addable=(large,))
    assert world.engine.impossible(asked, 2) is None
    assert world.engine.impossible(asked, 3) is not None
    world.ray.nodes.append(a_raylet("b", cpus=4.0, kind="large"))
    world.engine.turn()
    assert world.engine.impossible(asked, 2) is None
    assert world.engine.impossible(asked, 3) is not None


ORDER = BootOrder(home="/there", files={"a": b"1"}, arguments=("b",))


def test_an_agent_is_started_once_and_what_became_of_it_is_told() -> None:
    world = World(a_raylet("a"))
    world.engine.start_agent(A, ORDER)
    world.engine.turn()
    assert world.ray.boots == {"raylet-a": ORDER}
    assert world.engine.booted(A) is None
    assert not world.engine.is_settled
    world.ray.end_boot("raylet-a", "no index")
    world.settle()
    assert world.engine.booted(A) == Booted(raylet="raylet-a", problem="no index")
    assert world.ray.boots == {}


def test_a_start_of_an_agent_that_ray_has_forgotten_is_asked_for_again() -> None:
    world = World(a_raylet("a"))
    world.engine.start_agent(A, ORDER)
    world.engine.turn()
    world.ray.boots.clear()  # with the process that makes our calls
    world.engine.turn()
    assert world.ray.boots == {"raylet-a": ORDER}


def test_a_node_that_goes_is_not_waited_for() -> None:
    world = World(a_raylet("a"), a_raylet("b"))
    world.engine.start_agent(A, ORDER)
    world.engine.turn()
    world.ray.lose("raylet-a")
    world.settle()
    assert world.engine.booted(A) is None
    world.engine.start_agent(A, ORDER)
    world.settle()
    assert world.engine.is_settled


def test_the_thread_grants_tells_and_ends() -> None:
    ray, told = FakeRay(a_raylet("a")), threading.Event()
    engine = RayEngine(calls=ray, clock=FakeClock())
    engine.follow(told.set)
    engine.start()
    try:
        engine.acquire(a_request("one"))
        deadline_s = time.monotonic() + DEADLINE_S
        while not (engine.is_settled and [lease.state for lease in engine.leases()] == [LeaseState.GRANTED]):
            told.wait(1.0)
            told.clear()
            assert time.monotonic() < deadline_s
        ray.unreachable = True
        engine.acquire(a_request("two"))
        while not engine.trouble:
            told.wait(1.0)
            told.clear()
            assert time.monotonic() < deadline_s
        waits = engine.leases()[1]
        assert (waits.state, waits.reason) == (
            LeaseState.PENDING,
            "asked of Ray, on node a; Ray does not answer",
        )
    finally:
        engine.close()
    assert not any(thread.name == "ray-engine" for thread in threading.enumerate())
