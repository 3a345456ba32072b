"""Which nodes count as lost, and what is left of what they told."""

from __future__ import annotations

import msgspec
import pytest

from cortex.ids import NodeId
from cortex.planning.assessment import assess
from cortex.planning.model import Desired, LeaseState, Snapshot
from cortex.planning.reach import LOST_AFTER_S, lost_nodes, next_loss_s, within_reach
from cortex.testing.builders import NODE, a_build, a_lease, a_replica, a_snapshot, a_wanted_api, an_agent_report

V1 = a_build("v1")
N2 = NodeId("n2")


@pytest.mark.parametrize(
    ("silent_s", "lost"),
    [
        ({}, set()),
        ({NODE: 1000.0}, set()),
        ({NODE: 1.0, N2: 4.9}, set()),
        ({NODE: 1.0, N2: 5.0}, {N2}),
        ({NODE: 9.0, N2: 5.0}, set()),
        ({NODE: 100.0, N2: 100.0}, set()),
        ({NODE: 100.0, N2: 4.9}, {NODE}),
        ({NODE: 100.0, N2: 5.0}, {NODE}),
        ({NODE: 200.0, N2: 105.0, NodeId("n3"): 108.0}, {NODE}),
    ],
)
def test_a_node_is_lost_once_it_was_silent_for_long_and_another_one_was_not(
    silent_s: dict[NodeId, float], lost: set[NodeId]
) -> None:
    assert lost_nodes(silent_s) == lost


def test_the_next_loss_is_that_of_the_one_that_has_been_silent_for_longest() -> None:
    assert next_loss_s({NODE: 1.0, N2: 4.0, NodeId("lost"): 7.0}) == LOST_AFTER_S - 4.0
    assert next_loss_s({NODE: 7.0, N2: 7.0}) is None
    assert next_loss_s({NODE: 1.0}) is None


def seen(silent_s: float) -> Snapshot:
    here = an_agent_report(NODE, replicas=(a_replica(V1, 0),))
    there = an_agent_report(N2, replicas=(a_replica(V1, 1), a_replica(V1, 2)))
    leases = (
        a_lease(V1, 0),
        a_lease(V1, 1, node=N2),
        a_lease(V1, 3, node=N2, state=LeaseState.LOST),
        a_lease(V1, 4, state=LeaseState.PENDING),
    )
    return Snapshot(now_s=0.0, nodes=(here, there), silent_s={NODE: 0.0, N2: silent_s}, leases=leases)


def test_nothing_is_left_out_while_every_node_is_heard() -> None:
    assert within_reach(seen(4.0)) == seen(4.0)


def test_what_a_lost_node_told_is_left_out_and_its_leases_are_lost() -> None:
    found = within_reach(seen(5.0))
    assert [node.name for node in found.nodes] == [NODE]
    states = [lease.state for lease in found.leases]
    assert states == [LeaseState.GRANTED, LeaseState.LOST, LeaseState.LOST, LeaseState.PENDING]
    assert found.leases[1].reason == "node n2 has not been heard for 5 s"
    assert found.beyond == {a_replica(V1, 1).replica, a_replica(V1, 2).replica}


def test_names_that_may_be_in_use_out_of_reach_are_not_given_to_others() -> None:
    wanted = a_wanted_api(V1, live=True, replicas=2)
    (case,) = assess(Desired(apis=(wanted,)), a_snapshot(a_replica(V1, 0))).cases
    assert [request.replica for request in case.decision.add] == [a_replica(V1, 1).replica]
    there = msgspec.structs.replace(a_snapshot(a_replica(V1, 0)), beyond=frozenset({a_replica(V1, 1).replica}))
    (case,) = assess(Desired(apis=(wanted,)), there).cases
    assert [request.replica for request in case.decision.add] == [a_replica(V1, 2).replica]
