"""The words themselves: numbers, singular and plural, what is left out where there is nothing to say."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from cortex.ids import replica_id
from cortex.planning import wording
from cortex.planning.model import LeaseState, RunRecord, SlotRecord
from cortex.planning.slots import Slot, join
from cortex.testing.builders import API, a_build, a_lease, a_replica, a_snapshot, an_exit
from cortex.wire.reports import Phase, ReplicaReport

V1 = a_build("v1")


def slots(*replicas: ReplicaReport, leases: tuple[Any, ...] | None = None) -> tuple[Slot, ...]:
    return join(a_snapshot(*replicas, leases=leases))[API].slots


def a_record(*of_slots: SlotRecord, crashes: int = 0) -> RunRecord:
    known = {replica_id(API, V1.revision, ordinal): slot for ordinal, slot in enumerate(of_slots)}
    return RunRecord(api=API, revision=V1.revision, slots=known, crashes=crashes)


def ended(ordinal: int = 0, *, drained: bool = False, peak_bytes: int = 0) -> ReplicaReport:
    exit_report = an_exit(drained=drained, oom=peak_bytes > 0, peak_bytes=peak_bytes)
    return a_replica(V1, ordinal, Phase.EXITED, exit=exit_report)


def test_progress_counts_each_state_and_tells_what_those_that_start_do() -> None:
    starting = [
        msgspec.structs.replace(a_replica(V1, ordinal, phase), progress=doing)
        for ordinal, phase, doing in (
            (1, Phase.LOADING, "loading model.onnx"),
            (2, Phase.WARMING, "asking the sample"),
            (3, Phase.STARTING, "loading model.onnx"),
            (4, Phase.STARTING, ""),
        )
    ]
    ready = msgspec.structs.replace(a_replica(V1, 0), progress="nothing any more")
    replicas = (ready, *starting, ended(5), ended(6, drained=True), a_replica(V1, 7, Phase.DRAINING))
    leases = (a_lease(V1, 8), a_lease(V1, 9, LeaseState.PENDING), a_lease(V1, 10, LeaseState.PENDING))
    assert wording.progress(slots(*replicas, leases=leases)) == (
        "1 ready, 4 starting (asking the sample, loading model.onnx), 1 about to start, 2 waiting for room, 1 ended"
    )
    assert wording.progress(()) == ""
    assert wording.progress(slots(a_replica(V1, phase=Phase.LOADING))) == "1 starting"


def test_ends_are_told_of_those_that_fail_or_have_to_wait() -> None:
    down = slots(*(ended(ordinal) for ordinal in range(6)))
    once = SlotRecord(attempt=1, last_exit=an_exit())
    record = a_record(
        msgspec.structs.replace(once, failed_starts=1),
        msgspec.structs.replace(once, failed_starts=2),
        msgspec.structs.replace(once, crash_pressure=6.0),
        once,
        SlotRecord(),
    )
    waits_s = {1: 0.99, 2: 1.0, 4: 5.0, 5: 5.0}
    told = wording.ends(down, record, lambda slot: waits_s.get(slot.ordinal, 0.0))
    first, second, third = (down[ordinal].replica for ordinal in range(3))
    assert told == (
        f"{first} failed 1 start in a row (exit code 1)\n"
        f"{second} failed 2 starts in a row (exit code 1)\n"
        f"{third} keeps crashing (exit code 1), tried again in 1 s"
    )
    assert wording.ends(down[3:], record, lambda slot: 0.0) is None


@pytest.mark.parametrize(
    ("number", "replicas", "words"), [(1, 3, "1 replica of 3 restarts"), (2, 3, "2 replicas of 3 restart")]
)
def test_replicas_that_are_back_in_a_moment_restart(number: int, replicas: int, words: str) -> None:
    assert wording.returning(number, replicas) == words


def test_crashes_in_a_row_name_the_last_and_the_request_it_was_at() -> None:
    last = an_exit()
    assert wording.crashing(1, last) == "1 crash in a row; the last: exit code 1"
    assert wording.crashing(3, msgspec.structs.replace(last, request="r-1")) == (
        "3 crashes in a row; the last: exit code 1 while it served request r-1"
    )


def test_a_kill_for_memory_names_how_many_are_down_the_highest_peak_and_the_request() -> None:
    mib = 2**20
    own = slots(
        ended(0, peak_bytes=300 * mib),
        ended(1, peak_bytes=200 * mib),
        ended(2, drained=True),
        a_replica(V1, 3),
        leases=(a_lease(V1, 4),),
    )
    assert wording.killed_for_memory(own, a_record(crashes=2), 200 * mib) == (
        "2 replicas killed by the kernel for memory, peak 300Mi, request 200Mi, 2 crashes so far"
    )
    assert wording.killed_for_memory(own[1:], a_record(crashes=1), 100 * mib) == (
        "1 replica killed by the kernel for memory, peak 200Mi, request 100Mi, 1 crash so far"
    )
    back = msgspec.structs.replace(a_record(), last_exit=an_exit(signal=9, oom=True, peak_bytes=100 * mib))
    assert wording.killed_for_memory(own[3:], back, None) == (
        "killed by the kernel for memory, peak 100Mi, no memory request"
    )
    assert wording.killed_for_memory((), a_record(), None) == "killed by the kernel for memory, no memory request"


def test_why_there_is_no_room_is_the_first_reason_that_anybody_gave() -> None:
    leases = [a_lease(V1, ordinal, LeaseState.PENDING, reason=reason) for ordinal, reason in enumerate(("", "a", "b"))]
    placing = slots(leases=tuple(leases))
    assert wording.room(placing) == "a"
    assert wording.room(placing[:1]) == wording.room(()) == "waiting for room"
    assert wording.room((msgspec.structs.replace(placing[0], lease=None), *placing)) == "a"
