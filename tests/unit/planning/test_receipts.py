from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex.planning import receipts
from cortex.planning.receipts import ChangeOver, SoFar
from cortex.wire.operator import Receipt, Verdict
from cortex.wire.probing import ProbeAnswer

OLD, NEW = "aaaaaaaa", "bbbbbbbb"
CHANGE = ChangeOver(old=OLD, new=NEW)
BEGUN_S, LIVE_S = 100.0, 101.0


def answer(ended_s: float, version: str = OLD, status: int = 200, **facts: object) -> ProbeAnswer:
    values = {"begun_s": ended_s - 0.01, "ended_s": ended_s, "status": status, "version": version, "request": "r-1"}
    return ProbeAnswer(**{**values, **facts})  # type: ignore[arg-type]


def seen(*answers: ProbeAnswer, live_s: float | None = LIVE_S) -> SoFar:
    return SoFar(answers=answers, begun_s=BEGUN_S, live_s=live_s)


def good() -> list[ProbeAnswer]:
    """Old ones until after the change-over began, then both, then new ones."""
    return [
        *(answer(97.0 + number / 10) for number in range(32)),
        answer(100.4, NEW),
        answer(100.9),
        *(answer(101.02 + number / 10, NEW) for number in range(30)),
    ]


def test_a_change_over_without_fault_is_told_with_its_figures() -> None:
    found = receipts.receipt(CHANGE, seen(*good()), Verdict.PASSED)
    assert receipts.fault(CHANGE, seen(*good())) == ""
    assert found == Receipt(
        verdict=Verdict.PASSED,
        previous=OLD,
        requests=64,
        wrong_version=0,
        p99_before_ms=10.0,
        p99_ms=10.0,
        overlap_s=pytest.approx(0.5),  # type: ignore[arg-type]
    )
    assert found.text == "64 requests · 0 failed · 0 wrong version after live · p99 10.0 → 10.0 ms · overlap 0.5 s"


def test_the_line_reads_as_it_was_promised() -> None:
    found = Receipt(
        verdict=Verdict.PASSED,
        requests=12480,
        wrong_version=0,
        p99_before_ms=9.1,
        p99_ms=9.8,
        overlap_s=1.4,
    )
    assert found.text == "12,480 requests · 0 failed · 0 wrong version after live · p99 9.1 → 9.8 ms · overlap 1.4 s"


@pytest.mark.parametrize(
    "bad",
    [
        {"status": 0, "version": "", "code": "connection broken off"},
        {"status": 502, "code": "replica-lost"},
        {"status": 503, "code": "no-ready-replica"},
        {"status": 503, "code": "stopping"},
        {"status": 503, "code": "request-error"},
        {"status": 504, "code": "timeout"},
        {"status": 500, "code": "handler-failed", "version": NEW},
        {"status": 422, "code": "input-mismatch", "version": NEW},
        {"status": 404, "code": "not-found"},
    ],
)
def test_one_failure_that_there_was_none_of_before_is_the_changes_fault(bad: dict[str, object]) -> None:
    found = seen(*good(), answer(100.5, **bad))  # type: ignore[arg-type]
    assert receipts.fault(CHANGE, found) == "1 of 35 requests failed during the change-over, before it 0 of 30"
    receipt = receipts.receipt(CHANGE, found, Verdict.FAILED, receipts.fault(CHANGE, found))
    assert (receipt.failed, receipt.requests) == (1, 65)
    assert receipt.text.startswith("failed: 1 of 35 requests failed during the change-over, before it 0 of 30 · 65 req")
    (example,) = receipt.examples
    assert str(bad["code"]) in example
    assert "request r-1" in example


def test_being_turned_away_for_load_is_told_and_no_failure() -> None:
    found = seen(*good(), *(answer(100.0 + n / 50, status=503, code="overloaded") for n in range(5)))
    assert receipts.fault(CHANGE, found) == ""
    receipt = receipts.receipt(CHANGE, found, Verdict.PASSED)
    assert (receipt.failed, receipt.turned_away, receipt.requests) == (0, 5, 69)
    assert "0 failed · 0 wrong version after live · 5 turned away for load" in receipt.text


def test_what_the_old_version_failed_before_is_not_the_changes_fault_and_neither_is_that_it_goes_on() -> None:
    before = [answer(97.05 + n / 10, status=500, code="handler-failed") for n in range(10)]
    since = [answer(101.05 + n / 10, NEW, status=500, code="handler-failed") for n in range(11)]
    assert receipts.fault(CHANGE, seen(*good(), *before, *since)) == ""
    receipt = receipts.receipt(CHANGE, seen(*good(), *before, *since), Verdict.PASSED)
    assert (receipt.failed_before, receipt.failed) == (10, 11)
    many = [answer(101.05 + n / 100, NEW, status=500, code="handler-failed") for n in range(100)]
    assert receipts.fault(CHANGE, seen(*good(), *before, *many)) == (
        "100 of 134 requests failed during the change-over, before it 10 of 40"
    )


def test_what_was_under_way_as_it_began_and_failed_is_its_fault() -> None:
    lost = answer(100.2, status=502, code="replica-lost", begun_s=90.0)
    assert receipts.fault(CHANGE, seen(*good(), lost)) != ""


def test_another_version_after_live_is_a_fault_and_before_it_is_none() -> None:
    assert receipts.fault(CHANGE, seen(*good(), answer(101.5, begun_s=100.99))) == "", "asked before"
    found = seen(*good(), answer(101.5, begun_s=101.001))
    assert receipts.fault(CHANGE, found) == "1 of 31 requests got another version after it was live"
    receipt = receipts.receipt(CHANGE, found, Verdict.FAILED, "x")
    assert (receipt.wrong_version, receipt.failed) == (1, 0)
    assert receipt.examples == (f"answered by version {OLD} (request r-1)",)


def test_nothing_is_said_of_what_was_not_seen() -> None:
    receipt = receipts.receipt(CHANGE, seen(*good()[:33], live_s=None), Verdict.CUT_SHORT, "the api was deleted")
    assert receipt.wrong_version is None
    assert receipt.text == (
        "cut short: the api was deleted · 33 requests · 0 failed · p99 10.0 → 10.0 ms · overlap 0 ms"
    )
    assert receipts.unseen(Verdict.NOT_PROVED, "it sleeps").text == "not proved: it sleeps"
    turned_away = [answer(100.0 + n / 50, status=503, code="overloaded") for n in range(5)]
    assert receipts.unanswered(seen(*turned_away)) == "none of 5 requests was answered"
    assert receipts.unanswered(seen()) == "nothing was asked"
    assert receipts.unanswered(seen(*good())) == ""


def test_a_roll_of_the_same_version_has_no_overlap_to_tell() -> None:
    change = ChangeOver(old=NEW, new=NEW)
    found = seen(*(answer(99.0 + n / 10, NEW) for n in range(40)))
    assert receipts.fault(change, found) == ""
    assert receipts.receipt(change, found, Verdict.PASSED).overlap_s is None


def test_a_version_may_find_fault_with_the_sample_of_the_other_but_not_lose_it() -> None:
    change = ChangeOver(old=OLD, new=NEW, own_sample={NEW: 0, OLD: 1})
    foreign = [
        answer(99.0, OLD, status=422, code="input-mismatch", sample=0),
        answer(101.5, NEW, status=500, code="handler-failed", sample=1),
    ]
    assert receipts.fault(change, seen(*good(), *foreign)) == ""
    own = answer(101.5, NEW, status=500, code="handler-failed", sample=0)
    assert receipts.fault(change, seen(*good(), own)) != ""
    lost = answer(101.5, NEW, status=502, code="replica-lost", sample=1)
    assert receipts.fault(change, seen(*good(), lost)) != ""


def test_of_a_first_version_only_what_came_since_is_judged() -> None:
    change = ChangeOver(old="", new=NEW)
    found = seen(*(answer(101.1 + n / 10, NEW) for n in range(20)), answer(101.5, NEW, status=500, code="x"))
    assert receipts.fault(change, found) == "1 of 21 requests failed during the change-over"
    assert receipts.receipt(change, found, Verdict.FAILED, "x").p99_before_ms is None


answers = st.builds(
    answer,
    st.floats(95, 110),
    st.sampled_from([OLD, NEW]),
    st.sampled_from([200, 201, 500, 502, 503, 504, 0]),
    code=st.sampled_from(["", "overloaded", "asleep", "replica-lost", "handler-failed"]),
)


@given(st.lists(answers), st.one_of(st.none(), st.floats(100, 110)))
def test_no_answer_is_two_things_at_once_and_faults_need_one_that_is_bad(
    found: list[ProbeAnswer], live_s: float | None
) -> None:
    for one in found:
        kinds = [
            receipts.is_good(one),
            receipts.is_turned_away(one),
            receipts.is_asleep(one),
            receipts.is_failed(CHANGE, one),
        ]
        assert sum(kinds) == 1
    told = seen(*found, live_s=live_s)
    receipt = receipts.receipt(CHANGE, told, Verdict.PASSED)
    if receipts.fault(CHANGE, told):
        assert receipt.failed or receipt.wrong_version
    elif not receipt.failed_before:
        assert not receipt.failed
    assert not receipt.wrong_version or receipts.fault(CHANGE, told)
