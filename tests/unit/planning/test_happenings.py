"""What is told of what was decided and what happened: kinds, words with figures, and what makes two the same."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest

from cortex.errors import Problem
from cortex.ids import replica_id, short
from cortex.planning import happenings
from cortex.planning.actions import RecordExit, RecordStop
from cortex.planning.assessment import assess
from cortex.planning.autoscale import Bound, Ruling, Scalable, ScalingDecision, ScalingMemory
from cortex.planning.batching import BatchingStop
from cortex.planning.model import Desired, LeaseState, Scale, Snapshot, WantedApi
from cortex.planning.scale import ASKED_WHILE_ASLEEP
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
from cortex.wire.batching import Disagreement
from cortex.wire.build import Resources
from cortex.wire.events import Event, EventKind, Severity
from cortex.wire.operator import ApiChange, ChangeKind, Receipt, Verdict
from cortex.wire.reports import ExitReport, Phase

V1, V2 = a_build("v1"), a_build("v2")
SHORT1, SHORT2 = short(V1.version), short(V2.version)
SMALL = a_build("v1", resources=Resources(cpu_millis=200, mem_bytes=200 * 2**20))
NOW = 1_800_000_000.0


def told(event: Event | None) -> tuple[str, str, Severity, str]:
    assert event is not None
    return event.kind, event.text, event.severity, event.version


# ---- deploys ---------------------------------------------------------------------------------------------------------


def change(kind: ChangeKind, *causes: str, **fields: str) -> ApiChange:
    return ApiChange(api="sklearn", kind=kind, causes=causes, **{"version": SHORT2, **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (change(ChangeKind.ADDED), "added"),
        (
            change(ChangeKind.NEW_VERSION, "model changed (a.onnx)", "a.py changed", previous=SHORT1),
            f"new version after {SHORT1}: model changed (a.onnx), a.py changed",
        ),
        (change(ChangeKind.ROLLED, "cpu 200m -> 500m", previous=SHORT2), "new replicas: cpu 200m -> 500m"),
        (change(ChangeKind.SETTINGS, "timeout 60s -> 30s"), "settings changed: timeout 60s -> 30s"),
    ],
)
def test_a_deploy_is_told_with_what_it_changed_and_why(made: ApiChange, text: str) -> None:
    event = happenings.deployed(API, made)
    assert told(event) == (EventKind.DEPLOYED, text, Severity.INFO, SHORT2)
    assert event is not None
    assert event.details == {"change": made.kind, "causes": made.causes, "previous": made.previous}


@pytest.mark.parametrize("kind", [ChangeKind.UNCHANGED, ChangeKind.LEFT, ChangeKind.ROLLED_BACK])
def test_a_deploy_that_changes_nothing_is_no_event(kind: ChangeKind) -> None:
    assert happenings.deployed(API, change(kind)) is None


def test_what_a_deploy_removes_is_deleted() -> None:
    event = happenings.deployed(API, change(ChangeKind.REMOVED, version="", previous=SHORT1))
    assert told(event) == (EventKind.DELETED, "left out of its cortex.yaml", Severity.INFO, SHORT1)


def test_a_version_that_serves_is_told_with_how_long_that_took() -> None:
    wanted = msgspec.structs.replace(a_wanted_api(V1, live=False), deployed_wall_s=NOW)
    assert told(happenings.live(wanted, wall_s=NOW + 0.184)) == (
        EventKind.LIVE,
        "serves, 0.18 s after it was asked for",
        Severity.INFO,
        SHORT1,
    )
    assert happenings.live(wanted, wall_s=NOW + 185).text == "serves, 3m 05s after it was asked for"
    assert happenings.live(wanted, wall_s=NOW - 9).details == {"seconds": 0.0}, "the clock was set back"
    assert happenings.live(a_wanted_api(V1, live=False), wall_s=NOW).text == "serves", "nobody knows when it began"


def test_a_version_that_is_given_up_is_told_with_the_reason_and_what_serves() -> None:
    problem = Problem(reference="model-broken", message="the model cannot be read\nat byte 3")
    first = happenings.failed(a_wanted_api(V1), problem)
    assert told(first) == (
        EventKind.FAILED,
        "could not go live: the model cannot be read",
        Severity.ERROR,
        SHORT1,
    )
    second = happenings.failed(a_wanted_api(V2, serving=V1), problem)
    assert second.text == f"could not go live: the model cannot be read; {SHORT1} goes on serving"
    assert second.details == {"problem": "model-broken", "serving": SHORT1}


@pytest.mark.parametrize(
    ("verdict", "severity"),
    [
        (Verdict.PASSED, Severity.INFO),
        (Verdict.FAILED, Severity.ERROR),
        (Verdict.CUT_SHORT, Severity.WARNING),
        (Verdict.NOT_PROVED, Severity.WARNING),
    ],
)
def test_a_change_over_is_told_with_its_receipt(verdict: Verdict, severity: Severity) -> None:
    receipt = Receipt(verdict=verdict, requests=30, failed=2, reason="" if verdict is Verdict.PASSED else "why")
    event = happenings.proved(API, V2.version, receipt)
    assert told(event) == (EventKind.PROVED, receipt.text, severity, short(V2.version))
    assert event.details == {"verdict": verdict, "requests": 30, "failed": 2}


def test_going_back_is_told_by_who_wanted_it() -> None:
    by_hand = happenings.rolled_back(API, V1.version, V2.version)
    assert told(by_hand) == (EventKind.ROLLED_BACK, f"from {SHORT2}", Severity.INFO, SHORT1)
    alone = happenings.rolled_back(API, V1.version, V2.version, reason="20 of 40 requests failed\nmore")
    text = f"by itself, from {SHORT2}: 20 of 40 requests failed"
    assert told(alone) == (EventKind.ROLLED_BACK, text, Severity.WARNING, SHORT1)
    assert [event.details["automatic"] for event in (by_hand, alone)] == [False, True]


def test_who_is_not_to_blame_is_told() -> None:
    event = happenings.excused(API, V2.version, "no fault of that version")
    assert told(event) == (EventKind.EXCUSED, "no fault of that version", Severity.INFO, SHORT2)


# ---- the number of replicas ------------------------------------------------------------------------------------------


def decision(now: int, replicas: int, wanted: int, bound: Bound | None = None) -> ScalingDecision:
    return ScalingDecision(
        asked=Scalable(api=API, replicas=now, max_replicas=3),
        replicas=replicas,
        wanted=wanted,
        kept=1,
        bound=bound,
        ruling=Ruling.CPU,
        need=float(wanted),
        rate=0.0,
        load=None,
        costs=None,
        memory=ScalingMemory(),
    )


def test_another_number_is_told_with_its_figures() -> None:
    event = happenings.scaled(decision(2, 3, 5, Bound.MAXIMUM))
    assert event.text == "2 -> 3 replicas: wanted 5: there is nothing to do; capped by max_replicas 3"
    assert (event.kind, event.details["from"], event.details["to"]) == (EventKind.SCALED, 2, 3)


@pytest.mark.parametrize(
    ("before", "now", "text"),
    [
        (
            Scale(replicas=2),
            Scale(replicas=4, reason="the bounds have changed"),
            "2 -> 4 replicas: the bounds have changed",
        ),
        (Scale(replicas=3), Scale(replicas=1, reason="why"), "3 -> 1 replica: why"),
        (Scale(replicas=1, asleep=True), Scale(replicas=1, reason="it proves"), "0 -> 1 replica: it proves"),
        (Scale(replicas=2), Scale(replicas=2), None),
        (Scale(replicas=2), Scale(replicas=2, reason="another"), None),
        (None, Scale(replicas=2), None),
    ],
)
def test_what_a_deploy_changes_of_the_number_is_told(before: Scale | None, now: Scale, text: str | None) -> None:
    event = happenings.rescaled(API, before, now)
    assert (None if event is None else event.text) == text


@pytest.mark.parametrize("bound", [Bound.MAXIMUM, Bound.PROCESSOR, Bound.REQUESTS, Bound.ROOM])
def test_a_bound_that_holds_the_number_is_told_once_for_each_number(bound: Bound) -> None:
    first, again = happenings.bounded(decision(2, 2, 5, bound)), happenings.bounded(decision(2, 2, 6, bound))
    assert first is not None
    assert again is not None
    assert (first.kind, first.severity) == (EventKind.HELD, Severity.WARNING)
    assert first.text.startswith("held at 2: ")
    assert "wanted 5" in first.text
    assert first.same == again.same
    other = happenings.bounded(decision(3, 3, 5, bound))
    assert other is not None
    assert other.same != first.same


def test_who_has_what_the_load_asks_for_is_held_by_nothing() -> None:
    for bound in (None, Bound.MINIMUM, Bound.WINDOW, Bound.MAXIMUM):
        event = happenings.bounded(decision(3, 3, 3, bound))
        assert event is not None
        assert event.kind is EventKind.RELEASED


@pytest.mark.parametrize("bound", [Bound.LEAP, Bound.STARTS, Bound.UNKNOWN])
def test_who_is_on_the_way_or_unknown_is_neither(bound: Bound) -> None:
    assert happenings.bounded(decision(2, 4, 9, bound)) is None


def test_falling_asleep_is_told_with_its_reason() -> None:
    assert told(happenings.slept(API, "nobody asked for 300 s")) == (
        EventKind.SLEPT,
        "nobody asked for 300 s",
        Severity.INFO,
        "",
    )


# ---- replicas --------------------------------------------------------------------------------------------------------


def ended(exit_: ExitReport, *, was_ready: bool = True, attempt: int = 3, peak: int = 0) -> RecordExit:
    return RecordExit(
        api=API,
        revision=SMALL.revision,
        replica=replica_id(API, SMALL.revision, 0),
        attempt=attempt,
        was_ready=was_ready,
        exit=exit_,
        peak_rss_bytes=peak,
    )


def crashed(exit_: ExitReport, *, was_ready: bool = True, attempt: int = 3, peak: int = 0) -> Event:
    one = ended(exit_, was_ready=was_ready, attempt=attempt, peak=peak)
    return happenings.crashed(one, a_wanted_api(SMALL, live=True))


def with_words(exit_: ExitReport, **fields: object) -> ExitReport:
    return msgspec.structs.replace(exit_, **fields)


def test_an_end_is_told_with_how_over_what_and_the_last_words() -> None:
    lines = tuple(f"line {number}" for number in range(30))
    event = crashed(with_words(an_exit(signal=11), last_lines=lines, request="r-1"))
    text = "killed by signal 11 (SIGSEGV) while it served request r-1; it wrote last: line 29"
    assert told(event) == (EventKind.CRASHED, text, Severity.WARNING, SHORT1)
    assert event.replica == replica_id(API, SMALL.revision, 0)
    assert event.details == {
        "attempt": 3,
        "was_ready": True,
        "exit_code": None,
        "signal": 11,
        "out_of_memory": False,
        "peak_bytes": 0,
        "request": "r-1",
        "last_lines": lines[-10:],
    }


def test_an_end_before_ready_and_what_the_replica_said_itself() -> None:
    problem = Problem(reference="handler-failed", message="the handler raised KeyError\nTraceback")
    event = crashed(with_words(an_exit(), problem=problem, last_lines=("KeyError",)), was_ready=False)
    assert event.text == "the handler raised KeyError before it was ready"


def test_of_memory_peak_and_request_are_told() -> None:
    event = crashed(an_exit(signal=9, oom=True), peak=300 * 2**20)
    assert event.text == "killed by the kernel for memory, peak 300Mi, request 200Mi"
    plain = happenings.crashed(
        RecordExit(
            api=API,
            revision=V1.revision,
            replica=replica_id(API, V1.revision, 0),
            attempt=1,
            was_ready=True,
            exit=an_exit(oom=True),
        ),
        a_wanted_api(V1, live=True),
    )
    assert plain.text == "killed by the kernel for memory, no memory request"


def test_ends_of_one_kind_are_the_same_and_each_attempt_is_told_once() -> None:
    first, second = crashed(an_exit(signal=9), attempt=1), crashed(an_exit(signal=9), attempt=2)
    assert first.same == second.same
    assert first.once != second.once
    assert crashed(an_exit(signal=11)).same != first.same
    assert crashed(an_exit(signal=9), was_ready=False).same != first.same
    later = crashed(with_words(an_exit(signal=9), wall_s=5.0), attempt=1)
    assert later.once != first.once, "attempts are numbered anew after `cortex down`"


def test_rows_that_disagree_are_told_once_for_each_run_of_a_replica() -> None:
    disagreement = Disagreement(output="y", alone="0.5", together="0.7", difference=0.2, tolerance=1e-5)
    stop = BatchingStop(
        api=API, replica=replica_id(API, V1.revision, 0), started_wall_s=5.0, runtime="cpu", disagreement=disagreement
    )
    assert V1.model_key is not None
    event = happenings.batching_stopped(RecordStop(model=V1.model_key, stop=stop))
    assert event.kind is EventKind.BATCHING_STOPPED
    assert 'output "y" is 0.5 alone and 0.7 beside others' in event.text
    assert event.text.endswith("on cpu: its model is asked row by row now")
    unnamed = RecordStop(model=V1.model_key, stop=msgspec.structs.replace(stop, runtime=""))
    assert "on a runtime that it did not name" in happenings.batching_stopped(unnamed).text


# ---- what holds for a while ------------------------------------------------------------------------------------------


def conditions(wanted: WantedApi, seen: Snapshot, *, now_wall_s: float = NOW) -> dict[EventKind, Event]:
    assessment = assess(Desired(apis=(wanted,)), seen)
    (case,) = assessment.cases
    found: Sequence[Event] = tuple(
        happenings.conditions(case.wanted, case.seen, statuses(assessment)[wanted.api], now_wall_s=now_wall_s)
    )
    return {event.kind: event for event in found}


def settled(wanted: WantedApi, *phases: Phase) -> Snapshot:
    replicas = [a_replica(wanted.build, number, phase) for number, phase in enumerate(phases)]
    return a_snapshot(*replicas, routes=(a_route(wanted, *replicas),))


def test_of_an_api_that_is_well_only_ends_are_told() -> None:
    wanted = a_wanted_api(V1, live=True)
    found = conditions(wanted, settled(wanted, Phase.READY))
    assert {kind: event.text for kind, event in found.items()} == {
        EventKind.RECOVERED: "its replicas stay up: 1 of 1 ready",
        EventKind.ROOM: "every replica that is wanted has room",
    }


def test_a_replica_without_room_is_told_with_what_it_asks_for_and_what_there_is() -> None:
    wanted = a_wanted_api(SMALL, live=True, replicas=3)
    reason = "node local has 100Mi of 1024Mi mem left"
    leases = (
        a_lease(SMALL, 0),
        a_lease(SMALL, 1, LeaseState.PENDING, reason=reason),
        a_lease(SMALL, 2, LeaseState.PENDING, reason=reason),
    )
    found = conditions(wanted, a_snapshot(a_replica(SMALL, 0), leases=leases))
    event = found[EventKind.MACHINE_FULL]
    assert event.text == f"2 replicas have no room; each asks for 200m cpu, 200Mi mem: {reason}"
    assert event.details == {"waiting": 2, "asked": "200m cpu, 200Mi mem"}
    one = conditions(wanted, a_snapshot(a_replica(SMALL, 0), leases=leases[:2]))[EventKind.MACHINE_FULL]
    assert one.text.startswith("1 replica has no room; ")
    assert one.same == event.same, "the same want, whatever the figures are now"


def woken(*, since: float = NOW - 3.0, reason: str = ASKED_WHILE_ASLEEP, asleep: bool = False) -> WantedApi:
    scale = Scale(replicas=1, reason=reason, since_wall_s=since, asleep=asleep)
    return msgspec.structs.replace(a_wanted_api(V1, live=True, min_replicas=0), scale=scale)


def test_waking_is_told_once_a_replica_is_ready_with_how_long_it_took() -> None:
    wanted = woken()
    assert EventKind.WOKE not in conditions(wanted, settled(wanted, Phase.LOADING))
    ready = msgspec.structs.replace(a_replica(V1), phase_age_s=2.8)
    found = conditions(wanted, a_snapshot(ready, routes=(a_route(wanted, ready),)))
    event = found[EventKind.WOKE]
    assert event.text == "somebody asked while it slept; ready after 0.2 s"
    assert event.details == {"seconds": 0.2}
    later = conditions(wanted, settled(wanted, Phase.READY), now_wall_s=NOW + 60)
    assert later[EventKind.WOKE].once == event.once


@pytest.mark.parametrize(
    "wanted",
    [
        woken(reason="wanted 1: there is nothing to do"),
        woken(asleep=True),
        woken(since=NOW - 2 * happenings.LONGEST_WAKE_S),
        woken(since=NOW + 100.0),
    ],
    ids=["scaled since", "asleep", "long ago", "the clock was set back"],
)
def test_what_was_not_just_woken_is_not_told_to_be(wanted: WantedApi) -> None:
    assert EventKind.WOKE not in conditions(wanted, settled(wanted, Phase.READY))
