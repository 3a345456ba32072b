"""When a deploy is over, and when nothing moves any more."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from cortex.client.follow import NO_ROOM_PATIENCE_S, REPLACED_AFTER_S, Followed, Outcome, follow, judge, problem_of
from cortex.errors import Problem
from cortex.wire.operator import ApiChange, ApiStatus, ChangeKind, RequestCounts, Status, Watched


class FakeClock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def monotonic_s(self) -> float:
        return self.now_s

    def wall_s(self) -> float:
        return self.now_s


class FakeWatch:
    """Answers (seconds that pass, statuses), one after the other; then lets the asked time pass."""

    def __init__(self, clock: FakeClock, frames: Iterable[tuple[float, tuple[ApiStatus, ...]]]) -> None:
        self.clock = clock
        self.frames = list(frames)
        self.asked: list[tuple[str, float]] = []
        self.last: tuple[ApiStatus, ...] = ()

    def __call__(self, token: str, timeout_s: float) -> Watched:
        self.asked.append((token, timeout_s))
        if not self.frames:
            self.clock.now_s += timeout_s
            return Watched(token=token, apis=self.last)
        passed_s, self.last = self.frames.pop(0)
        self.clock.now_s += passed_s
        return Watched(token=f"{token}+", apis=self.last)


def run(
    frames: Iterable[tuple[float, tuple[ApiStatus, ...]]], changes: Iterable[ApiChange], patience_s: float = 60.0
) -> tuple[list[tuple[Followed, ...]], FakeWatch]:
    clock = FakeClock()
    watch = FakeWatch(clock, frames)
    return list(follow(watch, changes, deployment="iris", patience_s=patience_s, clock=clock)), watch


def outcomes(rows: tuple[Followed, ...]) -> dict[str, Outcome]:
    return {row.name: row.outcome for row in rows}


def test_one_whose_change_over_is_being_proved_is_followed_until_that_is_over(fakes: Any) -> None:
    seen, _ = run([(1.0, (fakes.api("a", in_proof=True),)), (6.0, (fakes.api("a"),))], [fakes.change("a")])
    assert [outcomes(rows)["a"] for rows in seen] == [Outcome.WAITING, Outcome.LIVE]


def test_each_api_is_followed_to_its_own_end(fakes: Any) -> None:
    failed = fakes.api("b", status=Status.UPDATE_FAILED)
    seen, watch = run(
        [
            (1.0, (fakes.api("a", status=Status.CREATING), fakes.api("b", status=Status.CREATING))),
            (2.0, (fakes.api("a"), fakes.api("b", status=Status.CREATING))),
            (4.0, (fakes.api("a"), failed)),
        ],
        [fakes.change("a"), fakes.change("b")],
    )
    assert [outcomes(rows) for rows in seen] == [
        {"a": Outcome.WAITING, "b": Outcome.WAITING},
        {"a": Outcome.LIVE, "b": Outcome.WAITING},
        {"a": Outcome.LIVE, "b": Outcome.FAILED},
    ]
    assert [row.elapsed_s(999.0) for row in seen[-1]] == [3.0, 7.0]
    assert [token for token, _ in watch.asked] == ["", "+", "++"]


def test_what_is_live_at_first_sight_did_not_have_to_wait(fakes: Any) -> None:
    seen, _ = run(
        [(0.0, (fakes.api("a"), fakes.api("b", status=Status.UPDATING))), (1.0, (fakes.api("a"), fakes.api("b")))],
        [fakes.change("a"), fakes.change("b")],
    )
    assert {row.name: row.had_to_wait for row in seen[-1]} == {"a": False, "b": True}


def test_removed_apis_and_other_deployments_are_not_waited_for(fakes: Any) -> None:
    seen, _ = run(
        [(0.0, (fakes.api("a"), fakes.api("b", deployment="other", status=Status.ERROR)))],
        [fakes.change("a"), fakes.change("b", ChangeKind.REMOVED)],
    )
    assert [outcomes(rows) for rows in seen] == [{"a": Outcome.LIVE}]


def test_nothing_to_follow_asks_nothing() -> None:
    seen, watch = run([], [])
    assert (seen, watch.asked) == ([], [])


def test_a_status_of_another_version_is_waited_out(fakes: Any) -> None:
    assert judge(fakes.api(version="11111111"), "3fa1c09d") is Outcome.WAITING
    assert judge(fakes.api(version="3fa1c09d"), "3fa1c09d" + "0" * 56) is Outcome.LIVE
    assert judge(fakes.api(version="11111111", status=Status.ERROR), "3fa1c09d") is Outcome.WAITING
    assert judge(fakes.api(version="11111111"), "") is Outcome.LIVE


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (Status.LIVE, Outcome.LIVE),
        (Status.CREATING, Outcome.WAITING),
        (Status.UPDATING, Outcome.WAITING),
        (Status.UPDATE_FAILED, Outcome.FAILED),
        (Status.ERROR, Outcome.FAILED),
        (Status.OUT_OF_MEMORY, Outcome.FAILED),
        (Status.COMPUTE_UNAVAILABLE, Outcome.WAITING),
        (Status.STOPPING, Outcome.WAITING),
    ],
)
def test_every_status_has_an_outcome(fakes: Any, status: Status, outcome: Outcome) -> None:
    assert judge(fakes.api(status=status), "") is outcome


def test_no_movement_for_too_long_stalls(fakes: Any) -> None:
    seen, watch = run([(1.0, (fakes.api("a", status=Status.CREATING),))], [fakes.change("a")], patience_s=60.0)
    assert outcomes(seen[-1]) == {"a": Outcome.STALLED}
    assert sum(timeout_s for _, timeout_s in watch.asked[1:]) == pytest.approx(60.0)


def test_movement_starts_the_patience_anew(fakes: Any) -> None:
    creating = [fakes.api("a", status=Status.CREATING, progress=f"step {n}") for n in range(5)]
    seen, _ = run([*((50.0, (status,)) for status in creating), (50.0, (fakes.api("a"),))], [fakes.change("a")])
    assert outcomes(seen[-1]) == {"a": Outcome.LIVE}


def test_traffic_and_crashes_are_no_movement(fakes: Any) -> None:
    frames = [
        (25.0, (fakes.api("a", status=Status.UPDATING, requests=RequestCounts(ok=n), crashes=n),)) for n in range(9)
    ]
    seen, _ = run(frames, [fakes.change("a")], patience_s=60.0)
    assert outcomes(seen[-1]) == {"a": Outcome.STALLED}


def test_no_room_is_waited_for_a_while_only(fakes: Any) -> None:
    no_room = fakes.api("a", status=Status.COMPUTE_UNAVAILABLE, reason="asked for 8 cpus, there are 2")
    seen, watch = run([(1.0, (no_room,))], [fakes.change("a")], patience_s=600.0)
    assert outcomes(seen[-1]) == {"a": Outcome.FAILED}
    assert sum(timeout_s for _, timeout_s in watch.asked[1:]) == pytest.approx(NO_ROOM_PATIENCE_S)
    assert seen[-1][0].problem().message == "asked for 8 cpus, there are 2"


def test_room_that_comes_back_is_no_failure(fakes: Any) -> None:
    no_room = fakes.api("a", status=Status.COMPUTE_UNAVAILABLE)
    creating = fakes.api("a", status=Status.CREATING)
    frames = [(1.0, (no_room,)), (20.0, (creating,)), (20.0, (no_room,)), (20.0, (fakes.api("a"),))]
    seen, _ = run(frames, [fakes.change("a")])
    assert outcomes(seen[-1]) == {"a": Outcome.LIVE}


def test_an_api_that_somebody_removes_meanwhile_has_failed(fakes: Any) -> None:
    seen, _ = run([(1.0, ()), (1.0, (fakes.api("a", status=Status.CREATING),)), (1.0, ())], [fakes.change("a")])
    assert [outcomes(rows)["a"] for rows in seen] == [Outcome.WAITING, Outcome.WAITING, Outcome.FAILED]
    assert seen[-1][0].problem().reference == "removed-meanwhile"


def test_an_api_that_another_deploy_replaced_meanwhile_has_failed_and_says_so(fakes: Any) -> None:
    ours, other = fakes.api("a", status=Status.CREATING), fakes.api("a", version="99999999")
    seen, _ = run([(1.0, (ours,)), (1.0, (other,))], [fakes.change("a")])
    assert [outcomes(rows)["a"] for rows in seen] == [Outcome.WAITING, Outcome.FAILED]
    problem = seen[-1][0].problem()
    assert problem.reference == "replaced-meanwhile"
    assert problem.message == "another deploy replaced it by version 99999999 before it was live"


def test_a_version_that_went_back_meanwhile_has_failed_and_says_why(fakes: Any) -> None:
    back = fakes.api("a", version="99999999", rolled_back="on 2027-01-15 07:50 UTC: exit code 1; deploys leave it")
    seen, _ = run([(1.0, (fakes.api("a", status=Status.UPDATING),)), (1.0, (back,))], [fakes.change("a")])
    assert outcomes(seen[-1]) == {"a": Outcome.FAILED}
    problem = seen[-1][0].problem()
    assert problem.reference == "rolled-back-meanwhile"
    assert problem.message.startswith("it went back to version 99999999 before this one was live: on 2027-01-15")


def test_another_version_at_first_may_be_of_before_the_deploy_but_not_for_long(fakes: Any) -> None:
    other = fakes.api("a", version="99999999")
    seen, _ = run([(1.0, (other,)), (1.0, (fakes.api("a"),))], [fakes.change("a")])
    assert outcomes(seen[-1]) == {"a": Outcome.LIVE}
    seen, watch = run([(1.0, (other,))], [fakes.change("a")], patience_s=600.0)
    assert outcomes(seen[-1]) == {"a": Outcome.FAILED}
    assert sum(timeout_s for _, timeout_s in watch.asked[1:]) == pytest.approx(REPLACED_AFTER_S)


def test_a_failure_names_api_and_next_step(fakes: Any) -> None:
    plain = problem_of(fakes.api(status=Status.OUT_OF_MEMORY, reason="killed at 512 MiB"))
    assert (plain.reference, plain.subject, plain.message) == (
        "error-out-of-memory",
        'api "sklearn"',
        "killed at 512 MiB",
    )
    assert "cortex logs iris/sklearn" in plain.hint
    own = Problem(reference="handler-import-failed", message="no torch", hint="add torch", traceback="Traceback…")
    told = problem_of(fakes.api(status=Status.ERROR, problem=own))
    assert told == Problem(
        reference="handler-import-failed",
        message="no torch",
        subject='api "sklearn"',
        hint="add torch",
        traceback="Traceback…",
    )
