"""`bench/faults/judgement.py`: which answers the chaos run calls right, lost as promised, failed or wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import pytest
from client import CLOSED, Answer
from faults.judgement import Absence, Kill, Timeline, Verdict, judge, kills_explain_crashing

GOOD = Answer("three", "kept", "t1", 10.0, 11.0, 200, version="aaaaaaaa", build="h1m1", fine=True)
LOST = Answer("three", "kept", "t1", 10.0, 11.0, 502, error="replica-lost: the replica died with this request")
NOBODY = Answer("three", "kept", "t1", 10.0, 11.0, 503, error="no-ready-replica: no replica is ready")


def said(answer: Answer, **changes: object) -> Answer:
    return msgspec.structs.replace(answer, **changes)


def one_build() -> Timeline:
    timeline = Timeline()
    timeline.may(0.0, "h1m1")
    timeline.only(5.0, "aaaaaaaa")
    return timeline


def judged(
    *answers: Answer,
    timeline: Timeline | None = None,
    kills: Sequence[Kill] = (),
    reached: Mapping[str, Sequence[int]] | None = None,
    absences: Sequence[Absence] = (),
) -> Verdict:
    timelines = dict.fromkeys(("three", "once"), timeline or one_build())
    return judge(answers, timelines, kills, once="once", reached=reached or {}, absences=absences)


def test_a_right_answer_of_the_version_that_serves_is_right() -> None:
    verdict = judged(GOOD)
    assert verdict.is_good
    assert verdict.right == {"three, kept": 1}


def test_a_run_without_a_request_is_not_good() -> None:
    assert not judged().is_good


def test_an_answer_with_another_tag_or_label_is_wrong() -> None:
    verdict = judged(said(GOOD, fine=False, error="expected iris-setosa for t1"))
    assert len(verdict.wrong) == 1
    assert "expected iris-setosa for t1" in verdict.wrong[0]


def test_the_version_before_may_answer_what_was_sent_before_a_command_returned() -> None:
    timeline = one_build()
    timeline.may(8.0, "h2m1")
    timeline.only(10.5, "bbbbbbbb")
    assert judged(GOOD, timeline=timeline).is_good


def test_the_version_before_is_wrong_for_what_was_sent_after_a_command_returned() -> None:
    timeline = one_build()
    timeline.may(8.0, "h2m1")
    timeline.only(9.5, "bbbbbbbb")
    assert not judged(GOOD, timeline=timeline).is_good


def test_a_version_may_answer_once_its_command_has_begun_and_not_before() -> None:
    new = said(GOOD, version="bbbbbbbb", build="h2m1")
    for begun_s, is_good in ((10.5, True), (11.5, False)):
        timeline = one_build()
        timeline.may(begun_s, "h2m1")
        assert judged(new, timeline=timeline).is_good is is_good


def test_a_version_that_answers_as_two_builds_is_wrong() -> None:
    timeline = one_build()
    timeline.may(8.0, "h2m1")
    verdict = judged(GOOD, said(GOOD, tag="t2", build="h2m1"), timeline=timeline)
    assert len(verdict.wrong) == 1


@pytest.mark.parametrize(
    ("answer", "killed_s", "is_promised"),
    [
        (said(LOST, kind="large"), [10.5], True),
        (said(LOST, kind="large"), [9.9], True),
        (said(LOST, kind="large"), [-0.1, 11.1], False),
        (said(LOST, api="once"), [10.5], True),
        (LOST, [10.5], False),
        (LOST, [10.2, 10.5], True),
        (said(LOST, kind="large", status=503, error="overloaded: every replica is busy"), [10.5], False),
        (said(LOST, kind="large", status=0, error=f"ConnectionResetError: {CLOSED}"), [10.5], False),
    ],
)
def test_a_replica_is_lost_as_promised_only_where_it_was_killed(
    answer: Answer, killed_s: Sequence[float], is_promised: bool
) -> None:
    verdict = judged(answer, kills=[Kill(at_s, answer.api, 7) for at_s in killed_s])
    assert bool(verdict.lost) is is_promised
    assert bool(verdict.failed) is not is_promised


def test_a_replica_of_another_api_explains_nothing() -> None:
    assert judged(said(LOST, kind="large"), kills=[Kill(10.5, "once", 7)]).failed


def test_what_reached_a_replica_that_lives_is_not_lost_with_another() -> None:
    lost = said(LOST, api="once")
    kills = [Kill(10.5, "once", 7)]
    assert judged(lost, kills=kills, reached={"t1": [8]}).failed
    assert judged(lost, kills=kills, reached={"t1": [7]}).lost
    assert judged(lost, kills=[Kill(9.9, "once", 7)], reached={"t1": [7]}).failed


def test_a_request_that_reaches_two_replicas_with_retry_off_is_wrong() -> None:
    assert judged(said(GOOD, api="once"), reached={"t1": [7, 8]}).wrong


@pytest.mark.parametrize(
    ("answer", "absence", "is_promised"),
    [
        (NOBODY, Absence(10.5, frozenset({"three"})), True),
        (NOBODY, Absence(9.0, frozenset({"three"}), until_s=10.1), True),
        (NOBODY, Absence(11.1, frozenset({"three"})), False),
        (NOBODY, Absence(9.0, frozenset({"three"}), until_s=9.9), False),
        (NOBODY, Absence(10.5, frozenset({"once"})), False),
        (said(NOBODY, error="overloaded: every replica is busy"), Absence(10.5, frozenset({"three"})), False),
        (said(NOBODY, status=0, error=f"ConnectionResetError: {CLOSED}"), Absence(10.5, frozenset({"three"})), False),
    ],
)
def test_an_api_with_one_replica_may_be_away_while_its_node_is(
    answer: Answer, absence: Absence, is_promised: bool
) -> None:
    verdict = judged(answer, absences=[absence])
    assert bool(verdict.away) is is_promised
    assert bool(verdict.failed) is not is_promised


def test_an_api_may_be_called_crashing_only_if_its_replicas_were_killed_often_and_lately() -> None:
    often = [Kill(at_s, "three", 7) for at_s in (50.0, 60.0, 70.0)]
    assert kills_explain_crashing(often, 100.0)
    assert not kills_explain_crashing(often, 120.0)
    assert not kills_explain_crashing([*often[1:], Kill(70.0, "once", 8)], 100.0)
    assert not kills_explain_crashing([], 100.0)
