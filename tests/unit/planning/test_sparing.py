"""Which node is given back."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from cortex.ids import ApiKey, NodeId, ReplicaId
from cortex.planning.model import Lease, LeaseRequest, LeaseState
from cortex.planning.sparing import SPARE_FOR_S, NodeBounds, Sparing, spare
from cortex.testing.builders import a_node
from cortex.wire.build import Resources
from cortex.wire.reports import Node

HEAD, N2, N3 = NodeId("head"), NodeId("n2"), NodeId("n3")
KEPT = {HEAD: "it runs the control plane"}


def nodes(*names: NodeId, cpu: int = 4000) -> list[Node]:
    return [a_node(name, cpu_millis=cpu) for name in names]


def a_lease(node: NodeId | None, number: int, *, cpu: int = 1000, api: str | None = None) -> Lease:
    request = LeaseRequest(
        replica=ReplicaId(f"iris.a.{number:08x}.0"),
        api=ApiKey(api or f"iris/a{number}"),
        resources=Resources(cpu_millis=cpu),
    )
    return Lease(request=request, state=LeaseState.GRANTED if node else LeaseState.PENDING, node=node)


def looked_at(
    machines: list[Node],
    *leases: Lease,
    minimum: int = 1,
    maximum: int = 5,
    before: Sparing | None = None,
    now_s: float = 0.0,
) -> Sparing:
    bounds = NodeBounds(minimum=minimum, maximum=maximum)
    return spare(machines, leases, bounds=bounds, kept=KEPT, before=before or Sparing(), now_s=now_s)


def test_a_node_whose_replicas_fit_elsewhere_for_ten_minutes_leaves_and_is_given_back_once_it_is_empty() -> None:
    machines, leases = nodes(HEAD, N2), [a_lease(HEAD, 1), a_lease(N2, 2)]
    first = looked_at(machines, *leases)
    assert first.leaving == set()
    assert "given back in 600 s" in first.why[N2]
    assert first.why[HEAD] == "it runs the control plane"
    almost = looked_at(machines, *leases, before=first, now_s=SPARE_FOR_S - 1.0)
    assert almost.leaving == set()
    marked = looked_at(machines, *leases, before=almost, now_s=SPARE_FOR_S)
    assert (marked.leaving, marked.empty) == ({N2}, set())
    moved = looked_at(machines, a_lease(HEAD, 1), a_lease(HEAD, 2), before=marked, now_s=SPARE_FOR_S + 5.0)
    assert (moved.leaving, moved.empty) == ({N2}, {N2})


def test_ten_minutes_begin_anew_when_they_did_not_fit_for_a_moment() -> None:
    machines = nodes(HEAD, N2, cpu=2000)
    spare_now = looked_at(machines, a_lease(HEAD, 1), a_lease(N2, 2))
    full = looked_at(machines, a_lease(HEAD, 1, cpu=2000), a_lease(N2, 2), before=spare_now, now_s=300.0)
    assert full.why[N2] == "iris.a.00000002.0 fits on no other node"
    again = looked_at(machines, a_lease(HEAD, 1), a_lease(N2, 2), before=full, now_s=301.0)
    later = looked_at(machines, a_lease(HEAD, 1), a_lease(N2, 2), before=again, now_s=SPARE_FOR_S + 1.0)
    assert later.leaving == set()


def test_one_leaves_at_a_time_the_one_with_least_on_it_first() -> None:
    machines = nodes(HEAD, N2, N3)
    leases = [a_lease(N2, 1), a_lease(N2, 2), a_lease(N3, 3)]
    first = looked_at(machines, *leases)
    assert looked_at(machines, *leases, before=first, now_s=SPARE_FOR_S).leaving == {N3}


def test_two_replicas_of_an_api_stay_on_two_nodes() -> None:
    two = [a_lease(HEAD, 1, api="iris/many"), a_lease(N2, 2, api="iris/many")]
    assert "fits on no other node" not in looked_at(nodes(HEAD, N2), *two).why[N2]  # one node: there is no choice
    machines = [*nodes(HEAD), *nodes(N2, N3, cpu=1000)]
    found = looked_at(machines, *two, a_lease(N3, 3))
    assert found.why[N2] == "iris.a.00000002.0 fits on no other node beside those of its api"


def test_there_are_never_fewer_than_the_minimum() -> None:
    machines = nodes(HEAD, N2)
    for minimum, text in ((2, "at least 2 nodes are wanted"), (3, "at least 3 nodes are wanted")):
        found = looked_at(machines, a_lease(N2, 1), minimum=minimum)
        assert (found.leaving, found.why[N2]) == (set(), text)


def test_where_there_are_more_than_the_maximum_nobody_waits_ten_minutes() -> None:
    found = looked_at(nodes(HEAD, N2, N3), a_lease(N2, 1), a_lease(N3, 2), a_lease(N3, 3), maximum=2)
    assert found.leaving == {N2}
    assert found.why[N2] == "there are more nodes than 2"


def test_more_than_the_maximum_stay_while_what_runs_there_fits_nowhere_else() -> None:
    full = [a_lease(node, number, cpu=4000) for number, node in enumerate((HEAD, N2, N3))]
    found = looked_at(nodes(HEAD, N2, N3), *full, maximum=2)
    assert found.leaving == set()
    assert "fits on no other node" in found.why[N2]


def test_one_that_leaves_stays_when_somebody_waits_for_room_or_more_are_wanted() -> None:
    machines, leases = nodes(HEAD, N2), [a_lease(HEAD, 1), a_lease(N2, 2)]
    leaves = Sparing(leaving=frozenset({N2}))
    assert looked_at(machines, *leases, before=leaves).leaving == {N2}
    waiting = looked_at(machines, *leases, a_lease(None, 3), before=leaves)
    assert (waiting.leaving, waiting.why[N2]) == (set(), "somebody waits for room")
    assert looked_at(machines, *leases, before=leaves, minimum=2).leaving == set()


def test_a_node_that_is_not_there_any_more_leaves_no_trace() -> None:
    gone = Sparing(leaving=frozenset({N2}), spare_since_s={N3: 1.0})
    assert looked_at(nodes(HEAD), before=gone) == looked_at(nodes(HEAD))


@given(
    placed=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4), st.integers(0, 3)), max_size=12),
    minimum=st.integers(1, 4),
    above=st.integers(0, 3),
    spare_for_s=st.sampled_from([0.0, SPARE_FOR_S]),
)
def test_whoever_leaves_can_be_replaced_and_the_bounds_hold(
    placed: list[tuple[int, int, int]], minimum: int, above: int, spare_for_s: float
) -> None:
    names = [HEAD, N2, N3, NodeId("n4")]
    leases: list[Lease] = []
    used: Counter[NodeId] = Counter()
    for number, (where, cpu, api) in enumerate(placed):
        if used[names[where]] + cpu <= 8:
            used[names[where]] += cpu
            leases.append(a_lease(names[where], number, cpu=1000 * cpu, api=f"iris/a{api}"))
    machines = nodes(*names, cpu=8000)
    maximum = minimum + above
    first = looked_at(machines, *leases, minimum=minimum, maximum=maximum)
    found = looked_at(machines, *leases, minimum=minimum, maximum=maximum, before=first, now_s=spare_for_s)
    assert HEAD not in found.leaving
    assert not found.leaving or len(machines) - len(found.leaving) >= minimum
    assert set(found.why) == set(names)
    room = 8 * (len(machines) - len(found.leaving))
    assert sum(used.values()) <= room
    if len(machines) <= maximum and not spare_for_s:
        assert not found.leaving
    assert found.empty == {node for node in found.leaving if not used[node]}
