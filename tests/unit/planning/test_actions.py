"""Plans in words."""

from __future__ import annotations

import pytest

from cortex.errors import Problem
from cortex.ids import replica_id
from cortex.planning.actions import (
    AcquireLease,
    Action,
    MarkFailed,
    MarkLive,
    MarkServing,
    Note,
    OrderNode,
    Plan,
    RecordExit,
    RecordReady,
    RecordStop,
    RecoverLease,
    ReleaseLease,
    RouteApi,
    UnrouteApi,
    describe,
)
from cortex.planning.batching import BatchingStop
from cortex.planning.model import Lease, LeaseRequest
from cortex.testing.builders import API, NODE, a_build, a_replica, a_route, a_wanted_api, an_exit
from cortex.wire.batching import BatchingOrder, Disagreement
from cortex.wire.build import Resources
from cortex.wire.orders import (
    DrainReplica,
    ForgetReplica,
    Order,
    RemoveRoute,
    RoutesRevision,
    SetReplicaBatching,
    SetRoutes,
    StartReplica,
)

V1 = a_build("v1")
R0 = replica_id(API, V1.revision, 0)
BOOM = Problem(reference="x", message="boom")
APART = Disagreement(output="y", alone="0.5", together="0.7", difference=0.2, tolerance=1e-5)
ROOM = Resources(cpu_millis=200, mem_bytes=2**30, gpus=1)


def ordered(order: Order) -> Action:
    return OrderNode(node=NODE, api=API, order=order)


def acquire(room: Resources, *, surge: bool = False) -> Action:
    return AcquireLease(request=LeaseRequest(replica=R0, api=API, resources=room, surge=surge))


@pytest.mark.parametrize(
    ("action", "words"),
    [
        (acquire(ROOM), f"ask for 200m cpu, 1024Mi mem, 1 gpu for {R0}"),
        (acquire(Resources(), surge=True), f"ask for 200m cpu for {R0} (surge)"),
        (
            RecoverLease(lease=Lease.of_running(a_replica(V1), NODE)),
            f"take back 200m cpu on local for {R0}, which runs there",
        ),
        (ReleaseLease(replica=R0, api=API), f"release the room of {R0}"),
        (ordered(StartReplica(replica=R0, attempt=2, build=V1)), f"on local: start {R0} (attempt 2)"),
        (
            ordered(StartReplica(replica=R0, attempt=1, build=V1, devices=("GPU-1", "GPU-2"))),
            f"on local: start {R0} (attempt 1) on GPU-1, GPU-2",
        ),
        (ordered(SetReplicaBatching(replica=R0, batches=BatchingOrder(True))), f"on local: have {R0} batch"),
        (ordered(SetReplicaBatching(replica=R0, batches=BatchingOrder())), f"on local: have {R0} not batch"),
        (
            RecordStop(
                model=V1.model_key,
                stop=BatchingStop(api=API, replica=R0, started_wall_s=0.0, runtime="", disagreement=APART),
            ),
            f'{R0} batches no more: rows disagreed (output "y" is 0.5 alone and 0.7 beside others, 0.2 apart where '
            "rounding explains 1e-05)",
        ),
        (ordered(DrainReplica(replica=R0, timeout_s=60.0)), f"on local: drain {R0} (at most 60 s)"),
        (ordered(ForgetReplica(replica=R0)), f"on local: forget {R0}"),
        (ordered(a_route(a_wanted_api(V1), R0)), f"on local: route /iris/sklearn to {R0}"),
        (
            ordered(a_route(a_wanted_api(V1), hold=False)),
            "on local: route /iris/sklearn to nobody, holding nothing",
        ),
        (ordered(RemoveRoute(api=API)), "on local: remove the route"),
        (
            ordered(SetRoutes(revision=RoutesRevision(1, 2), routes=(a_route(a_wanted_api(V1)),), removed=(API,))),
            "on local: set 1 routes, remove 1",
        ),
        (RouteApi(route=a_route(a_wanted_api(V1), R0)), f"route /iris/sklearn to {R0}"),
        (UnrouteApi(api=API), "remove the route"),
        (
            RecordExit(api=API, revision=V1.revision, replica=R0, attempt=3, was_ready=True, exit=an_exit(signal=11)),
            f"{R0} (attempt 3) ended: killed by signal 11 (SIGSEGV)",
        ),
        (RecordReady(api=API, revision=V1.revision, replica=R0), f"{R0} is ready after failed starts"),
        (MarkServing(api=API, revision=V1.revision), f"revision {V1.revision[:8]} carries the api"),
        (MarkLive(api=API, revision=V1.revision), f"revision {V1.revision[:8]} is live"),
        (
            MarkFailed(api=API, revision=V1.revision, problem=BOOM),
            f"revision {V1.revision[:8]} is given up: boom",
        ),
    ],
)
def test_each_action_can_be_read(action: Action, words: str) -> None:
    assert describe(action) == f"iris/sklearn: {words}"


def test_a_plan_is_told_line_by_line_with_why_nothing_more_happens() -> None:
    plan = Plan(
        actions=(MarkLive(api=API, revision=V1.revision),),
        notes=(Note(api=API, text="no room"),),
        wake_after_s=2.5,
    )
    assert plan.describe().splitlines() == [
        f"iris/sklearn: revision {V1.revision[:8]} is live",
        "iris/sklearn: waits: no room",
        "look again in 2.5 s",
    ]
    assert plan


def test_a_plan_with_notes_only_is_empty() -> None:
    assert not Plan(notes=(Note(api=API, text="no room"),))
