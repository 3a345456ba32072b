"""What is judged of one moment: exits that nobody has stored, builds that fail, what is given up."""

from __future__ import annotations

import msgspec
import pytest

from cortex.ids import ApiKey, replica_id
from cortex.planning.actions import RecordExit
from cortex.planning.assessment import Runs, assess
from cortex.planning.model import Desired, RunRecord, SlotRecord, Snapshot, WantedApi
from cortex.testing.builders import API, a_build, a_replica, a_route, a_snapshot, a_wanted_api, an_exit
from cortex.wire.build import BuildSpec
from cortex.wire.reports import Phase

V1, V2, V3 = a_build("v1"), a_build("v2"), a_build("v3")


def a_record(build: BuildSpec, slot: SlotRecord, ordinal: int = 0) -> RunRecord:
    return RunRecord(api=API, revision=build.revision, slots={replica_id(API, build.revision, ordinal): slot})


def exits(wanted: WantedApi, seen: Snapshot, *records: RunRecord) -> list[tuple[str, int]]:
    (case,) = assess(Desired(apis=(wanted,), records=records), seen).cases
    return [(exit_.replica, exit_.attempt) for exit_ in case.exits]


@pytest.mark.parametrize(
    ("slot", "fails"),
    [
        (SlotRecord(attempt=1, failed_starts=1, last_exit=an_exit()), False),
        (SlotRecord(attempt=2, failed_starts=2, last_exit=an_exit()), True),  # half a second
        (SlotRecord(attempt=5, crash_pressure=5.0, last_exit=an_exit()), False),
        (SlotRecord(attempt=6, crash_pressure=6.0, last_exit=an_exit()), True),
    ],
)
def test_a_build_fails_as_soon_as_any_restart_of_it_is_delayed_at_all(slot: SlotRecord, fails: bool) -> None:
    runs = Runs({V1.revision: a_record(V1, slot, ordinal=1)})
    assert runs.fails(V1) is fails
    assert not runs.fails(V2)
    assert not runs.fails(None)


def test_an_end_that_nobody_asked_for_is_found_once_with_all_that_is_known_of_it() -> None:
    wanted = a_wanted_api(V1, live=True)
    ended = a_replica(V1, phase=Phase.EXITED, attempt=3, was_ready=True)
    (case,) = assess(Desired(apis=(wanted,)), a_snapshot(ended, routes=(a_route(wanted, ended),))).cases
    assert ended.exit is not None
    assert case.exits == (
        RecordExit(api=API, revision=V1.revision, replica=ended.replica, attempt=3, was_ready=True, exit=ended.exit),
    )
    known = case.runs.of(V1)
    assert known is not None
    assert known.slots[ended.replica].attempt == 3
    assert exits(wanted, a_snapshot(ended), a_record(V1, SlotRecord(attempt=2))) == [(ended.replica, 3)]
    assert exits(wanted, a_snapshot(ended), a_record(V1, SlotRecord(attempt=3))) == []
    assert exits(wanted, a_snapshot(ended), a_record(V1, SlotRecord(attempt=3), ordinal=1)) == [(ended.replica, 3)]


def test_ends_count_of_the_build_that_is_wanted_and_the_one_that_serves_unless_they_were_asked_for() -> None:
    wanted = a_wanted_api(V2, serving=V1)
    of_each = [a_replica(build, phase=Phase.EXITED) for build in (V1, V2, V3)]
    drained = a_replica(V2, 1, Phase.EXITED, exit=an_exit(drained=True))
    running = a_replica(V2, 2)
    assert sorted(exits(wanted, a_snapshot(*of_each, drained, running))) == sorted(
        (report.replica, 1) for report in of_each[:2]
    )
    assert exits(a_wanted_api(V2), a_snapshot(*of_each)) == [(of_each[1].replica, 1)]


@pytest.mark.parametrize(
    ("wanted", "given_up"),
    [
        (a_wanted_api(V2, serving=V1), True),
        (a_wanted_api(V2), True),
        (a_wanted_api(V2, live=True), False),
        # Deployed again while it serves: it has been live, though not since.
        (a_wanted_api(V2, serving=V2, live=False), False),
        (msgspec.structs.replace(a_wanted_api(V2, serving=V2, live=False), serving_was_live=False), True),
    ],
)
def test_a_build_that_was_never_live_at_full_size_is_given_up_once_it_has_failed_for_good(
    wanted: WantedApi, given_up: bool
) -> None:
    ended = a_replica(V2, phase=Phase.EXITED, exit=an_exit(permanent=True))
    (case,) = assess(Desired(apis=(wanted,)), a_snapshot(ended)).cases
    assert (case.given_up is not None, case.was_live) == (given_up, not given_up)
    assert case.wanted.failed == case.given_up


FAILING = SlotRecord(attempt=3, failed_starts=3, last_exit=an_exit())


@pytest.mark.parametrize(
    ("serving", "watched", "back"),
    [
        (V1, None, None),  # it fails while the one before serves
        (V2, None, V1.revision),  # it carried the api alone
        (V2, 50.0, V1.revision),  # it was live, and is watched
    ],
)
def test_a_new_version_that_fails_after_it_has_taken_over_goes_back(
    serving: BuildSpec, watched: float | None, back: str | None
) -> None:
    wanted = msgspec.structs.replace(
        a_wanted_api(V2, serving=serving, live=watched is not None),
        serving_was_live=serving is V1 or watched is not None,
        previous=V1.revision,
        watched_until_wall_s=watched,
    )
    (case,) = assess(Desired(apis=(wanted,), records=(a_record(V2, FAILING),)), a_snapshot()).cases
    assert case.given_up is not None
    assert case.goes_back_to == back
    assert (case.wanted.failed is None) is (back is not None)


def test_a_live_version_that_is_not_watched_any_more_is_not_given_up() -> None:
    wanted = a_wanted_api(V2, live=True)
    (case,) = assess(Desired(apis=(wanted,), records=(a_record(V2, FAILING),)), a_snapshot()).cases
    assert (case.given_up, case.goes_back_to) == (None, None)


def test_ages_go_on_since_they_were_true_and_never_back() -> None:
    slot = SlotRecord(attempt=2, failed_starts=3, last_exit=an_exit(), last_exit_age_s=0.25)
    wanted, record = a_wanted_api(V1, live=True), a_record(V1, slot)
    for as_of_s, left_s in ((None, 0.75), (1000.0, 0.75), (999.5, 0.25), (1001.0, 0.75), (990.0, 0.0)):
        desired = Desired(apis=(wanted,), records=(record,), as_of_s=as_of_s)
        (case,) = assess(desired, a_snapshot(a_replica(V1), now_s=1000.0)).cases
        (seen,) = case.seen.slots
        assert case.runs.wait_left_s(seen) == pytest.approx(left_s)


def test_cases_and_what_nobody_wants_come_by_name() -> None:
    names = [ApiKey(f"iris/{letter}") for letter in "cab"]
    wanted = tuple(a_wanted_api(a_build(api=api)) for api in names)
    unwanted = tuple(a_replica(a_build(api=ApiKey(f"iris/{letter}"))) for letter in "zyx")
    found = assess(Desired(apis=wanted), a_snapshot(*unwanted))
    assert [case.wanted.api for case in found.cases] == sorted(names)
    assert [api for api, _ in found.unwanted] == ["iris/x", "iris/y", "iris/z"]
