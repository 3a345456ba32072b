"""What every engine promises: the suite that keeps the fake honest."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import msgspec
import pytest

from cortex.engines.base import Engine
from cortex.engines.fake import FakeEngine
from cortex.engines.local import LocalEngine
from cortex.engines.ray.calls import RayCalls
from cortex.engines.ray.engine import RayCluster, RayEngine
from cortex.ids import ApiKey, DeviceId, NodeId, ReplicaId
from cortex.planning.model import Lease, LeaseRequest, LeaseState
from cortex.testing.builders import API, NODE, a_node
from cortex.testing.clock import FakeClock
from cortex.testing.fake_ray import FakeRay, a_raylet
from cortex.wire.build import Resources
from cortex.wire.reports import Node

MakeEngine = Callable[..., Engine]

DEADLINE_S = 60.0
ON_A_CLUSTER = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.takes("ray_calls"), pytest.mark.timeout(1200)]
"""The first of them waits until there is one."""


N2, N3 = NodeId("n2"), NodeId("n3")


class Followed:
    """A Ray engine whose answers are awaited: each call returns once Ray has been seen to agree."""

    def __init__(self, engine: RayEngine) -> None:
        self._engine = engine
        self.settle()

    def settle(self) -> None:
        deadline_s = time.monotonic() + DEADLINE_S
        while not self._engine.turn():
            assert time.monotonic() < deadline_s, "Ray does not come to what is wanted"

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._engine, name)
        if name not in ("acquire", "release", "recover", "avoid", "note_usage"):
            return attribute

        def awaited(*arguments: Any) -> None:
            attribute(*arguments)
            self.settle()

        return awaited


def over_ray(calls: RayCluster, nodes: Iterable[Node]) -> Engine:
    """An engine that sees these nodes of a cluster, with these capacities."""
    shares = {node.node: node for node in nodes}
    return cast(Engine, Followed(RayEngine(calls=calls, clock=FakeClock(), share=lambda node: shares.get(node.node))))


@pytest.fixture(
    params=[
        "local",
        "local, of other machines",
        "fake",
        "fake, cpu shared",
        "fake ray",
        pytest.param("ray", marks=ON_A_CLUSTER),
    ]
)
def make_engine(request: pytest.FixtureRequest) -> Iterator[MakeEngine]:
    """An engine with nodes of the given capacity, by default one."""
    calls: RayCalls | None = request.getfixturevalue("ray_calls") if request.param == "ray" else None

    def make(*names: NodeId, **capacity: int) -> Engine:
        nodes = [a_node(name, **capacity) for name in names or (NODE,)]
        if calls is not None:
            return over_ray(calls, nodes)
        if request.param == "fake ray":
            return over_ray(FakeRay(*(a_raylet(node.node, cpus=64.0, memory=1e12, gpus=8.0) for node in nodes)), nodes)
        if "local" in request.param:
            return LocalEngine(*nodes, shares_cpu=request.param == "local")
        return FakeEngine(nodes, clock=FakeClock(), shares_cpu=request.param != "fake")

    yield make
    if calls is not None:
        calls.change(remove=[group.id for group in calls.look().groups], make=[])


def a_request(
    name: str,
    *,
    cpu: int = 200,
    mem: int | None = None,
    gpus: int = 0,
    surge: bool = False,
    minimum: bool = False,
    api: ApiKey = API,
) -> LeaseRequest:
    return LeaseRequest(
        replica=ReplicaId(name),
        api=api,
        resources=Resources(cpu_millis=cpu, mem_bytes=mem, gpus=gpus),
        surge=surge,
        minimum=minimum,
    )


def lease_of(engine: Engine, name: str) -> Lease:
    return next(lease for lease in engine.leases() if lease.request.replica == name)


def states(engine: Engine) -> dict[str, LeaseState]:
    return {lease.request.replica: lease.state for lease in engine.leases()}


def test_room_is_granted_on_a_node_and_counted_there(make_engine: MakeEngine) -> None:
    engine = make_engine(cpu_millis=2000, mem_bytes=1000, gpus=1)
    engine.acquire(a_request("a", cpu=500, mem=300, gpus=1))
    assert engine.leases() == (
        Lease(
            request=a_request("a", cpu=500, mem=300, gpus=1),
            state=LeaseState.GRANTED,
            node=NODE,
            devices=a_node(gpus=1).devices,
        ),
    )
    assert engine.requested() == {NODE: Resources(cpu_millis=500, mem_bytes=300, gpus=1)}


def test_each_gpu_is_held_by_one_lease_and_handed_on_when_it_is_released(make_engine: MakeEngine) -> None:
    engine = make_engine(gpus=4)
    first, second, third, fourth = a_node(gpus=4).devices
    engine.acquire(a_request("a", gpus=1))
    engine.acquire(a_request("none"))
    engine.acquire(a_request("b", gpus=2))
    assert {lease.request.replica: lease.devices for lease in engine.leases()} == {
        "a": (first,),
        "none": (),
        "b": (second, third),
    }
    engine.acquire(a_request("c", gpus=2))
    assert lease_of(engine, "c").devices == ()
    engine.release(ReplicaId("a"))
    assert lease_of(engine, "c").devices == (first, fourth)
    engine.release(ReplicaId("b"))
    engine.acquire(a_request("d", gpus=1))
    assert lease_of(engine, "d").devices == (second,)


def test_what_runs_keeps_its_gpus_and_others_get_others(make_engine: MakeEngine) -> None:
    engine = make_engine(gpus=3)
    first, second, third = a_node(gpus=3).devices
    running = Lease(request=a_request("a", gpus=1), state=LeaseState.GRANTED, node=NODE, devices=(second,))
    engine.recover([running])
    engine.acquire(a_request("b", gpus=2))
    assert lease_of(engine, "a") == running
    assert lease_of(engine, "b").devices == (first, third)


def test_what_ran_on_a_gpu_that_is_gone_gets_another(make_engine: MakeEngine) -> None:
    engine = make_engine(gpus=2)
    request = a_request("a", gpus=1)
    engine.recover([Lease(request=request, state=LeaseState.GRANTED, node=NODE, devices=(DeviceId("GPU-gone"),))])
    assert lease_of(engine, "a").devices == a_node(gpus=2).devices[:1]


def test_asking_twice_is_asking_once(make_engine: MakeEngine) -> None:
    engine = make_engine(mem_bytes=1000 * 2**20)
    for _ in range(2):
        engine.acquire(a_request("a", mem=600 * 2**20))
    assert states(engine) == {"a": LeaseState.GRANTED}
    assert engine.requested()[NODE].mem_bytes == 600 * 2**20


def test_released_room_can_be_had_again(make_engine: MakeEngine) -> None:
    engine = make_engine(mem_bytes=1000 * 2**20)
    engine.acquire(a_request("a", mem=800 * 2**20))
    engine.release(ReplicaId("a"))
    engine.acquire(a_request("b", mem=800 * 2**20))
    assert states(engine) == {"b": LeaseState.GRANTED}


def test_releasing_an_unknown_name_is_nothing(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.release(ReplicaId("nobody"))
    assert engine.leases() == ()


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        (
            {"mem": 900 * 2**20},
            {"mem": 200 * 2**20},
            "node local: mem 900Mi of 1000Mi requested (iris/sklearn 900Mi), 200Mi asked",
        ),
        ({"gpus": 1}, {"gpus": 1}, "node local: gpu 1 of 1 requested (iris/sklearn 1), 1 asked"),
        (
            {"mem": 900 * 2**20, "gpus": 1},
            {"mem": 200 * 2**20, "gpus": 1},
            "node local: mem 900Mi of 1000Mi requested (iris/sklearn 900Mi), 200Mi asked, "
            "gpu 1 of 1 requested (iris/sklearn 1), 1 asked",
        ),
    ],
    ids=["memory", "gpu", "several"],
)
def test_without_room_a_lease_is_pending_and_says_why_with_numbers(
    make_engine: MakeEngine, first: dict[str, int], second: dict[str, int], reason: str
) -> None:
    engine = make_engine(cpu_millis=1000, mem_bytes=1000 * 2**20, gpus=1)
    engine.acquire(a_request("a", **first))
    engine.acquire(a_request("b", **second))
    assert states(engine) == {"a": LeaseState.GRANTED, "b": LeaseState.PENDING}
    assert lease_of(engine, "b").node is None
    assert lease_of(engine, "b").reason == reason


def test_a_pending_lease_is_granted_when_room_becomes_free_and_the_reason_goes(make_engine: MakeEngine) -> None:
    engine = make_engine(mem_bytes=1000 * 2**20)
    engine.acquire(a_request("a", mem=800 * 2**20))
    engine.acquire(a_request("b", mem=800 * 2**20))
    engine.release(ReplicaId("a"))
    assert engine.leases() == (Lease(request=a_request("b", mem=800 * 2**20), state=LeaseState.GRANTED, node=NODE),)


def test_who_asked_first_is_served_first(make_engine: MakeEngine) -> None:
    engine = make_engine(mem_bytes=1000 * 2**20)
    engine.acquire(a_request("a", mem=800 * 2**20))
    for name in ("c", "b", "d"):
        engine.acquire(a_request(name, mem=800 * 2**20))
    engine.release(ReplicaId("a"))
    assert [name for name, state in states(engine).items() if state is LeaseState.GRANTED] == ["c"]


def test_one_that_fits_may_pass_one_that_does_not(make_engine: MakeEngine) -> None:
    engine = make_engine(mem_bytes=1000 * 2**20)
    engine.acquire(a_request("a", mem=800 * 2**20))
    engine.acquire(a_request("large", mem=500 * 2**20))
    engine.acquire(a_request("small", mem=100 * 2**20))
    assert states(engine) == {"a": LeaseState.GRANTED, "large": LeaseState.PENDING, "small": LeaseState.GRANTED}


def test_a_surge_is_served_before_the_rest(make_engine: MakeEngine) -> None:
    engine = make_engine(mem_bytes=1000)
    engine.acquire(a_request("a", mem=800))
    engine.acquire(a_request("first", mem=800))
    engine.acquire(a_request("surge", mem=800, surge=True))
    engine.release(ReplicaId("a"))
    assert states(engine) == {"first": LeaseState.PENDING, "surge": LeaseState.GRANTED}


def test_a_surge_may_overcommit_cpu_but_neither_memory_nor_gpus(make_engine: MakeEngine) -> None:
    engine = make_engine(cpu_millis=1000, mem_bytes=1000, gpus=1)
    engine.acquire(a_request("a", cpu=1000, mem=900, gpus=1))
    engine.acquire(a_request("cpu", cpu=1000, surge=True))
    engine.acquire(a_request("mem", mem=200, surge=True))
    engine.acquire(a_request("gpu", gpus=1, surge=True))
    assert states(engine) == {
        "a": LeaseState.GRANTED,
        "cpu": LeaseState.GRANTED,
        "mem": LeaseState.PENDING,
        "gpu": LeaseState.PENDING,
    }


def test_a_surge_that_becomes_an_ordinary_lease_keeps_its_room(make_engine: MakeEngine) -> None:
    engine = make_engine(cpu_millis=1000)
    engine.acquire(a_request("a", cpu=1000))
    engine.acquire(a_request("b", cpu=1000, surge=True))
    engine.acquire(a_request("b", cpu=1000))
    assert states(engine) == {"a": LeaseState.GRANTED, "b": LeaseState.GRANTED}
    assert not lease_of(engine, "b").request.surge


def test_only_where_cpu_is_shared_replicas_are_placed_however_much_cpu_is_requested(make_engine: MakeEngine) -> None:
    engine = make_engine(cpu_millis=1000, mem_bytes=1000, gpus=1)
    for name in ("a", "b", "c"):
        engine.acquire(a_request(name, cpu=900))
    granted = [lease.request.replica for lease in engine.leases() if lease.state is LeaseState.GRANTED]
    assert granted == (["a", "b", "c"] if engine.shares_cpu else ["a"])
    reason = "" if engine.shares_cpu else "node local: cpu 900m of 1000m requested, 900m asked"
    assert lease_of(engine, "b").reason == reason
    engine.acquire(a_request("mem", mem=1001, minimum=True))
    engine.acquire(a_request("gpu", gpus=2, minimum=True))
    assert {states(engine)["mem"], states(engine)["gpu"]} == {LeaseState.PENDING}


def test_a_minimum_is_served_before_what_was_asked_for_earlier(make_engine: MakeEngine) -> None:
    engine = make_engine(mem_bytes=1000)
    engine.acquire(a_request("a", mem=800))
    engine.acquire(a_request("more", mem=800))
    engine.acquire(a_request("minimum", mem=800, minimum=True))
    engine.release(ReplicaId("a"))
    assert states(engine) == {"more": LeaseState.PENDING, "minimum": LeaseState.GRANTED}


def test_what_runs_gets_its_room_back_even_over_capacity(make_engine: MakeEngine) -> None:
    engine = make_engine(mem_bytes=1000 * 2**20)
    running = [
        Lease(request=a_request(name, mem=800 * 2**20), state=LeaseState.GRANTED, node=NODE) for name in ("a", "b")
    ]
    for _ in range(2):
        engine.recover(running)
    assert engine.leases() == tuple(running)
    engine.acquire(a_request("c", mem=100 * 2**20))
    assert lease_of(engine, "c").reason == (
        "node local: mem 1600Mi of 1000Mi requested (iris/sklearn 1600Mi), 100Mi asked"
    )


def test_recovering_grants_a_lease_that_was_pending_and_leaves_others_as_they_are(make_engine: MakeEngine) -> None:
    engine = make_engine(mem_bytes=1000 * 2**20)
    engine.acquire(a_request("a", mem=800 * 2**20, surge=True))
    engine.acquire(a_request("b", mem=800 * 2**20))
    engine.recover(
        Lease(request=a_request(name, mem=800 * 2**20), state=LeaseState.GRANTED, node=NODE) for name in ("a", "b")
    )
    assert states(engine) == {"a": LeaseState.GRANTED, "b": LeaseState.GRANTED}
    assert lease_of(engine, "a").request.surge


def test_memory_that_is_not_stated_counts_as_what_the_replica_was_seen_to_use(make_engine: MakeEngine) -> None:
    engine = make_engine(mem_bytes=1000 * 2**20)
    engine.acquire(a_request("a"))
    engine.acquire(a_request("stated", mem=100 * 2**20))
    engine.note_usage({ReplicaId(name): 700 * 2**20 for name in ("a", "stated", "nobody")})
    engine.note_usage({ReplicaId("a"): 600 * 2**20})
    assert engine.requested()[NODE].mem_bytes == 800 * 2**20
    engine.acquire(a_request("b", mem=300 * 2**20))
    assert lease_of(engine, "b").state is LeaseState.PENDING


def test_the_revision_changes_with_every_change_and_only_then(make_engine: MakeEngine) -> None:
    engine = make_engine(cpu_millis=1000)
    seen = [engine.revision]

    def changed() -> bool:
        seen.append(engine.revision)
        return seen[-1] != seen[-2]

    assert not changed()
    engine.acquire(a_request("a", cpu=800))
    assert changed()
    engine.acquire(a_request("a", cpu=800))
    assert not changed()
    engine.acquire(a_request("b", cpu=800))
    assert changed()
    engine.leases()
    engine.nodes()
    assert not changed()
    engine.note_usage({ReplicaId("a"): 5})
    assert changed()
    engine.release(ReplicaId("a"))
    assert changed()


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (Resources(cpu_millis=2000), None),
        (Resources(cpu_millis=2001), "a replica asks for 2001m cpu, but the largest node has 2000m"),
        (Resources(mem_bytes=2**30 + 1), "a replica asks for 1025Mi mem, but the largest node has 1024Mi"),
        (Resources(gpus=2), "a replica asks for 2 gpu, but no node has more than 1"),
        (
            Resources(cpu_millis=2001, gpus=2),
            "a replica asks for 2001m cpu, but the largest node has 2000m; 2 gpu, but no node has more than 1",
        ),
    ],
)
def test_a_request_larger_than_any_node_can_be_is_known_beforehand(
    make_engine: MakeEngine, asked: Resources, reason: str | None
) -> None:
    engine = make_engine(cpu_millis=2000, mem_bytes=2**30, gpus=1)
    engine.acquire(a_request("a", cpu=2000))
    assert engine.impossible(asked) == reason


@pytest.mark.parametrize(
    ("asked", "have"),
    [
        (Resources(cpu_millis=100, mem_bytes=2**29), "1024Mi mem"),
        (Resources(cpu_millis=100, gpus=1), "2 gpu"),
        (Resources(cpu_millis=900), ""),
    ],
    ids=["memory", "gpus", "cpu"],
)
def test_more_replicas_than_an_empty_machine_holds_are_known_beforehand(
    make_engine: MakeEngine, asked: Resources, have: str
) -> None:
    engine = make_engine(cpu_millis=2000, mem_bytes=2**30, gpus=2)
    assert engine.impossible(asked, 2) is None
    found = engine.impossible(asked, 3)
    if engine.shares_cpu and not have:
        assert found is None
    else:
        assert found is not None
        assert found.startswith("at least 3 replicas are wanted, each asks for ")
        assert have in found


def test_without_gpus_a_request_for_one_is_known_to_be_impossible(make_engine: MakeEngine) -> None:
    assert make_engine().impossible(Resources(gpus=1)) == "a replica asks for 1 gpu, but no node has any"


def test_what_is_returned_does_not_change_afterwards(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.acquire(a_request("a"))
    before = engine.leases()
    copy = msgspec.json.decode(msgspec.json.encode(before), type=tuple[Lease, ...])
    engine.acquire(a_request("b"))
    engine.release(ReplicaId("a"))
    assert before == copy


def test_on_a_node_to_be_avoided_nothing_is_placed_and_what_is_there_stays(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.acquire(a_request("there"))
    engine.avoid([NODE])
    engine.acquire(a_request("waits"))
    assert states(engine) == {"there": LeaseState.GRANTED, "waits": LeaseState.PENDING}
    assert lease_of(engine, "waits").reason
    engine.avoid([])
    assert states(engine) == {"there": LeaseState.GRANTED, "waits": LeaseState.GRANTED}


def test_on_a_node_that_leaves_only_what_was_asked_for_there_by_name_is_placed(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.avoid([], [NODE])
    engine.acquire(a_request("anywhere"))
    engine.acquire(msgspec.structs.replace(a_request("there"), node=NODE))
    assert states(engine) == {"anywhere": LeaseState.PENDING, "there": LeaseState.GRANTED}
    assert "leaving" in lease_of(engine, "anywhere").reason
    engine.avoid([NODE], [NODE])
    engine.acquire(msgspec.structs.replace(a_request("late"), node=NODE))
    assert states(engine)["late"] is LeaseState.PENDING
    engine.avoid([])
    assert set(states(engine).values()) == {LeaseState.GRANTED}


def test_replicas_of_an_api_are_on_two_nodes_where_there_are_two_with_room(make_engine: MakeEngine) -> None:
    engine = make_engine(N3, NODE, N2, mem_bytes=300)
    for name in ("a", "b", "c", "d"):
        engine.acquire(a_request(name, mem=100, api=ApiKey("iris/many")))
    assert len({lease.node for lease in engine.leases()}) >= 2
    first, second = (lease_of(engine, name).node for name in ("a", "b"))
    assert first == NODE  # the first by name: the same requests are placed the same way
    assert second != first
    engine.acquire(a_request("large", mem=300, api=ApiKey("iris/large")))
    assert lease_of(engine, "large").state is (LeaseState.PENDING if engine.shares_cpu else LeaseState.GRANTED)


def test_a_second_replica_goes_to_the_same_node_where_no_other_has_room(make_engine: MakeEngine) -> None:
    engine = make_engine(NODE, N2, mem_bytes=300)
    engine.acquire(a_request("other", mem=300, api=ApiKey("iris/other")))
    for name in ("a", "b"):
        engine.acquire(a_request(name, mem=100))
    assert [lease.node for lease in engine.leases()] == [NODE, N2, N2]


def test_room_that_is_wanted_on_one_node_is_waited_for_there(make_engine: MakeEngine) -> None:
    engine = make_engine(NODE, N2, mem_bytes=100)
    engine.acquire(msgspec.structs.replace(a_request("there", mem=100), node=N2))
    engine.acquire(msgspec.structs.replace(a_request("waits", mem=100), node=N2))
    assert (lease_of(engine, "there").node, lease_of(engine, "waits").state) == (N2, LeaseState.PENDING)
    engine.release(ReplicaId("there"))
    assert lease_of(engine, "waits").node == N2


def test_whoever_follows_is_told_when_a_lease_is_another_one(make_engine: MakeEngine) -> None:
    engine = make_engine(mem_bytes=100)
    told: list[int] = []
    engine.follow(lambda: told.append(engine.revision))
    engine.acquire(a_request("a", mem=100))
    engine.acquire(a_request("b", mem=100))
    engine.release(ReplicaId("a"))
    assert lease_of(engine, "b").state is LeaseState.GRANTED
    assert told[-1] == engine.revision
    before = len(told)
    engine.acquire(a_request("b", mem=100))
    assert len(told) == before
