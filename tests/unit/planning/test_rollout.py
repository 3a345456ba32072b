"""Which slots are worth more than others, and when one more than wanted becomes one of those that are."""

from __future__ import annotations

from itertools import pairwise

import pytest

from cortex.planning.assessment import assess
from cortex.planning.model import Desired, Lease, LeaseState, RunRecord, SlotRecord, WantedApi
from cortex.testing.builders import API, a_build, a_lease, a_replica, a_route, a_snapshot, a_wanted_api, an_exit
from cortex.wire.reports import Phase, ReplicaReport

V1, V2 = a_build("v1"), a_build("v2")

FROM_BEST = [
    "ready",
    "ready, out of the route",
    "warming",
    "loading",
    "starting",
    "about to start",
    "ended",
    "ended, and waits",
    "has no room",
]


def leaves(*situations: str) -> list[str]:
    """Of slots in these situations, all of one build, those that leave when one less is wanted."""
    wanted = a_wanted_api(V1, live=True, replicas=len(situations) - 1)
    replicas, routed, leases, slots = [], [], [], {}
    for ordinal, situation in enumerate(situations):
        lease = a_lease(V1, ordinal, LeaseState.PENDING if situation == "has no room" else LeaseState.GRANTED)
        leases.append(lease)
        phase = {"ended": "exited"}.get(situation.split(", ")[0], situation.split(", ")[0])
        if phase in list(Phase):
            replicas.append(a_replica(V1, ordinal, Phase(phase)))
            routed += [replicas[-1]] * (situation == "ready")
        if situation == "ended, and waits":
            slots[lease.request.replica] = SlotRecord(attempt=1, crash_pressure=9.0, last_exit=an_exit())
    seen = a_snapshot(*replicas, leases=tuple(leases), routes=(a_route(wanted, *routed),))
    record = RunRecord(api=API, revision=V1.revision, slots=slots)
    (case,) = assess(Desired(apis=(wanted,), records=(record,)), seen).cases
    return [situations[slot.ordinal] for slot in case.decision.leave]


@pytest.mark.parametrize(("better", "worse"), list(pairwise(FROM_BEST)))
def test_what_has_come_less_far_goes_first_whichever_was_there_first(better: str, worse: str) -> None:
    assert leaves(worse, better) == leaves(better, worse) == [worse]


def test_of_all_at_once_the_last_goes() -> None:
    assert leaves(*FROM_BEST) == leaves(*reversed(FROM_BEST)) == [FROM_BEST[-1]]


def settling(wanted: WantedApi, *replicas: ReplicaReport, leases: tuple[Lease, ...]) -> list[str]:
    """Surges that become ordinary replicas."""
    routed = [report for report in replicas if report.was_ready]
    seen = a_snapshot(*replicas, leases=leases, routes=(a_route(wanted, *routed),))
    (case,) = assess(Desired(apis=(wanted,)), seen).cases
    return [request.replica for request in case.decision.renew if not request.surge]


@pytest.mark.parametrize("phase", [Phase.STARTING, Phase.READY, Phase.EXITED])
def test_a_surge_that_is_all_there_is_becomes_an_ordinary_replica_however_far_it_has_come(phase: Phase) -> None:
    surge = a_replica(V1, 0, phase)
    leases = (a_lease(V1, 0, surge=True, minimum=True),)
    assert settling(a_wanted_api(V1, live=True), surge, leases=leases) == [surge.replica]


@pytest.mark.parametrize(
    ("phase", "was_ready", "settles"),
    [
        (Phase.READY, True, True),
        (Phase.EXITED, True, True),  # it is back in a moment
        (Phase.STARTING, False, False),
        (Phase.EXITED, False, False),
    ],
)
def test_a_surge_beside_an_old_replica_takes_the_place_of_a_missing_one_once_it_has_served(
    phase: Phase, was_ready: bool, settles: bool
) -> None:
    old, surge = a_replica(V1), a_replica(V2, 0, phase, was_ready=was_ready)
    leases = (a_lease(V1), a_lease(V2, surge=True, minimum=True))
    wanted = a_wanted_api(V2, serving=V1, replicas=2)
    assert settling(wanted, old, surge, leases=leases) == [surge.replica] * settles
