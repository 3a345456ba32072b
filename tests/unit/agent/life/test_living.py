"""Tests of `cortex.agent.life.living`: what a replica says, and whether it is well."""

import pytest

from cortex.agent.life import effects, events
from cortex.agent.life.effects import Do
from cortex.agent.life.events import Happened
from cortex.agent.life.state import Intent, Line
from cortex.testing.builders import a_sample
from cortex.wire.batching import BatchingOrder, BatchingState, Disagreement
from cortex.wire.launch import Ask, SetBatching
from cortex.wire.reports import Phase

BATCH = BatchingOrder(True, "labels")
ORT = "onnxruntime 1.32.0, cpu, 1 thread"


# ---- health ----------------------------------------------------------------------------------------------------------


def test_a_replica_that_answers_is_left_alone(story):
    story.running()
    for _ in range(20):
        story.says(heartbeat_age_s=0.5)
        assert story.check() is None
        assert [sent.request for sent in story.of(effects.Send)] == [Ask()]


def test_a_replica_that_does_not_answer_for_5_s_is_hung(story):
    story.running()
    found = [story.check() for _ in range(4)]
    assert [problem.reference if problem else None for problem in found] == [None, None, None, "hung"]
    assert story.of(effects.Kill)


def test_nothing_is_held_against_one_that_is_told_to_end_nor_a_second_thing_against_anybody(story):
    story.running()
    hung = [story.check() for _ in range(4)][-1]
    assert [story.check(lost_path="/gone") for _ in range(3)] == [hung] * 3


def test_one_that_is_killed_for_not_ending_is_not_held_to_be_hung_too(story):
    story.running()
    story.says(phase=Phase.DRAINING)
    story.wake()
    assert story.of(effects.Kill)
    assert [story.check() for _ in range(4)] == [None] * 4


def test_one_that_is_killed_is_not_killed_for_the_same_again_when_it_is_drained(story):
    story.running()
    hung = [story.check() for _ in range(4)][-1]
    story.tell(events.DrainAsked(timeout_s=60.0))
    assert (story.check(), story.of(effects.Kill), story.of(effects.Say)) == (hung, [], [])


def test_time_in_which_the_agent_itself_did_not_run_is_not_held_against_replicas(story):
    story.running()
    story.check()
    found = [story.check(after_s=600.0)]  # the machine was suspended, answers wait to be read
    story.says()
    found += [story.check() for _ in range(3)]
    story.says()
    found += [story.check(after_s=5.0) for _ in range(3)]  # a crowded machine: each check comes 3 s late
    assert found == [None] * 7


def test_a_hung_replica_is_found_on_a_crowded_machine_too(story):
    story.running()
    found = [story.check(after_s=5.0) for _ in range(4)]
    assert [problem is None for problem in found] == [True, True, True, False]


def test_an_event_loop_is_hung_only_when_two_answers_in_a_row_say_so(story):
    story.running()
    found = []
    for age_s in (30.0, 0.5, 30.0, 32.0):  # the first: of a machine that was just woken up
        story.says(heartbeat_age_s=age_s)
        found.append(story.check())
    messages = [problem.message if problem else None for problem in found]
    assert messages == [None, None, None, "its event loop stood still for 32 s with no request running"]


def test_an_event_loop_that_stands_still_over_a_request_is_at_work(story):
    story.running()
    for _ in range(5):
        story.says(heartbeat_age_s=30.0, oldest_request_age_s=30.0, in_flight=1)
        assert story.check() is None


def test_the_same_old_answer_does_not_count_twice(story):
    story.running()
    story.says(heartbeat_age_s=30.0)
    assert [story.check(), story.check()] == [None, None]


def test_a_request_that_outlived_its_timeout_costs_its_replica(story):
    story.running()
    story.says(overdue=True, oldest_request_age_s=700.0)
    assert story.check().reference == "overdue"


@pytest.mark.parametrize(("starved_s", "reference"), [(9.0, None), (11.0, "out-of-descriptors")])
def test_one_without_descriptors_is_replaced_once_that_lasts(story, starved_s, reference):
    story.running()
    story.says(starved_s=starved_s)
    found = story.check()
    assert (found and found.reference) == reference


def test_a_replica_that_drains_may_be_overdue(story):
    story.draining(timeout_s=600.0)
    story.says(phase=Phase.DRAINING, overdue=True, oldest_request_age_s=700.0)
    assert story.check() is None


def test_a_start_without_progress_is_given_up_and_progress_begins_anew(story):
    story.loading()
    checks = int(story.settings.start_timeout_s / story.settings.health_interval_s)
    found = [story.check() for _ in range(checks)]
    story.says(progress="importing handler.py")
    found += [story.check() for _ in range(checks)]
    assert set(found) == {None}
    problem = story.check()
    assert problem.reference == "start-timeout"
    assert "importing handler.py" in problem.message


def test_a_machine_that_slept_over_a_start_has_not_used_up_its_time(story):
    story.loading()
    assert story.check(after_s=10_000.0) is None


def test_a_guarding_sample_that_came_too_late_twice_costs_its_replica_and_one_that_only_warns_does_not(story):
    story.running(Phase.WARMING, sample=a_sample(b"[]", gate=True, timeout_s=3.0))
    story.says(oldest_request_age_s=11.0)
    assert story.check() is None
    story.says(oldest_request_age_s=11.1)
    assert "not answered within 3 s" in story.check().message
    story.running(Phase.WARMING, sample=a_sample(b"[]", gate=False, timeout_s=3.0))
    story.says(oldest_request_age_s=900.0)
    assert story.check() is None


def test_a_sample_is_late_only_while_its_replica_warms_up(story):
    story.running(Phase.LOADING, sample=a_sample(b"[]", gate=True, timeout_s=3.0))
    story.says(oldest_request_age_s=900.0)
    assert story.check() is None


def test_a_replica_whose_socket_file_is_gone_is_of_no_use(story):
    story.running()
    story.says()
    assert story.check(lost_path="/s").reference == "socket-removed"


def test_the_socket_of_one_that_never_was_ready_or_is_to_end_may_be_gone(story):
    story.running(Phase.WARMING)
    assert story.check(lost_path="/s") is None
    story.draining()
    assert story.check(lost_path="/s") is None


def test_one_that_starts_or_serves_is_told_to_go_on_in_case_somebody_stopped_it(story):
    story.running(Phase.WARMING)
    story.check()
    assert Do.HAVE_GO_ON in story.kinds
    story.says(phase=Phase.READY)
    story.check()
    assert Do.HAVE_GO_ON in story.kinds


def test_what_is_wrong_is_found_once_and_the_kill_is_repeated(story):
    story.running()
    story.says(overdue=True)
    story.check()
    assert (story.life.intent, len(story.of(effects.Kill))) == (Intent.END, 1)
    story.check()
    assert (story.life.fault.reference, story.of(effects.Kill)) == ("overdue", [])
    story.tell(Happened.WOKE, after_s=5.0)
    assert len(story.of(effects.Kill)) == 1


# ---- the connection --------------------------------------------------------------------------------------------------


def test_a_connection_that_was_lost_is_made_again_when_health_is_looked_at(story):
    story.running()
    story.tell(Happened.DISCONNECTED)
    story.check()
    assert story.kinds == [Do.HAVE_GO_ON, Do.CONNECT]
    story.check()
    assert story.kinds == [Do.HAVE_GO_ON], "one is under way"
    story.tell(events.NotConnected())
    story.check()
    assert story.kinds == [Do.HAVE_GO_ON, Do.CONNECT]


def test_that_we_are_short_of_descriptors_is_not_held_against_it_and_that_it_does_not_answer_is(story):
    story.running()
    story.tell(Happened.DISCONNECTED)
    for _ in range(10):
        assert story.check() is None
        story.tell(events.NotConnected(was_our_limit=True))
    for _ in range(3):
        assert story.check() is None
        story.tell(events.NotConnected())
    assert story.check().reference == "hung"


def test_a_connection_that_comes_when_its_process_is_gone_is_hung_up(story):
    story.loading()
    story.tell(events.ProcessGone(), Happened.CONNECTED)
    assert (story.kinds, story.life.line) == ([Do.HANG_UP], Line.DOWN)


# ---- statuses --------------------------------------------------------------------------------------------------------


def test_what_a_replica_says_moves_it_on_and_never_back(story):
    story.loading()
    phases = [story.says(phase=phase).phase for phase in (Phase.WARMING, Phase.READY, Phase.WARMING)]
    assert phases == [Phase.WARMING, Phase.READY, Phase.READY]
    assert story.life.was_ready


def test_that_it_is_ready_is_written_down_once(story):
    story.loading()
    story.says(phase=Phase.READY)
    assert [effect.record.was_ready for effect in story.of(effects.WriteRecord)] == [True]
    story.says(phase=Phase.READY)
    assert story.kinds == []


def test_what_another_attempt_says_does_not_count(story):
    story.loading()
    assert story.says(phase=Phase.READY, attempt=2).phase is Phase.LOADING


def test_what_comes_when_it_has_ended_does_not_count(story):
    story.running(Phase.WARMING)
    story.tell(events.ProcessGone())
    assert story.says(phase=Phase.READY).phase is Phase.WARMING


def test_one_that_somebody_else_told_to_end_is_what_it_was_until_it_has(story):
    story.running()
    life = story.says(phase=Phase.DRAINING)
    assert (life.phase, life.intent) == (Phase.READY, Intent.LEAVE)


def test_one_that_somebody_else_told_to_end_and_that_never_does_is_killed(story):
    story.running()
    story.says(phase=Phase.DRAINING)
    story.says(phase=Phase.DRAINING)
    story.wake()
    assert story.of(effects.Kill)
    assert story.clock.monotonic_s() - story.life.phase_since_s == pytest.approx(60.0 + 10.0 + 2.0, abs=0.1)


def test_one_that_was_ready_before_we_heard_of_it_was_ready(story):
    story.loading()
    life = story.says(phase=Phase.DRAINING, was_ready=True)
    assert (life.phase, life.was_ready, life.intent) == (Phase.READY, True, Intent.LEAVE)


def test_a_record_that_cannot_be_written_is_owed_and_keeps_nobody_from_getting_ready(story):
    story.loading()
    story.says(phase=Phase.READY)
    life = story.tell(Happened.NOT_WRITTEN)
    assert (life.phase, life.owes_record) == (Phase.READY, True)
    story.check()
    assert (effects.WriteRecord in story.kinds, story.life.owes_record) == (True, False)


# ---- batches ---------------------------------------------------------------------------------------------------------


def batching(order=None, **fields) -> BatchingState:
    return BatchingState(order=order or BatchingOrder(), runtime=ORT, **fields)


def told(story) -> list[BatchingOrder]:
    return [sent.request.order for sent in story.of(effects.Send) if isinstance(sent.request, SetBatching)]


def test_an_order_about_batches_is_passed_on_at_once_and_remembered(story):
    story.running()
    story.tell(events.BatchingAsked(batches=BATCH))
    assert told(story) == [BATCH]
    assert [effect.record.order.batches for effect in story.of(effects.WriteRecord)] == [BATCH]


def test_the_same_order_about_batches_again_changes_nothing(story):
    story.running()
    before = story.tell(events.BatchingAsked(batches=BATCH))
    assert story.tell(events.BatchingAsked(batches=BATCH)) == before
    assert story.effects == []


def test_a_replica_that_is_still_starting_is_told_about_batches_once_it_says_something(story):
    story.loading()
    story.tell(events.BatchingAsked(batches=BATCH), Happened.CONNECTED)
    story.says(phase=Phase.LOADING, batching=batching())
    assert told(story) == [BATCH]
    story.says(phase=Phase.WARMING, batching=batching())
    assert told(story) == []


def test_a_replica_that_does_not_take_up_what_it_was_told_is_told_again_when_its_health_is_checked(story):
    story.running()
    story.tell(events.BatchingAsked(batches=BATCH))
    for _ in range(3):
        story.says(batching=batching())
        assert told(story) == []
    story.check()
    assert told(story) == [BATCH]
    story.says(batching=batching(BATCH))
    story.check()
    assert told(story) == []


def test_what_was_told_over_a_connection_that_is_gone_is_told_again(story):
    story.running()
    story.tell(events.BatchingAsked(batches=BATCH), Happened.DISCONNECTED, Happened.CONNECTED)
    story.says(batching=batching())
    assert told(story) == [BATCH]


def test_rows_that_disagreed_are_news_and_counting_rows_is_none(story):
    story.running()
    apart = Disagreement(output="y", alone="1", together="2")
    news = []
    for state in (
        batching(),
        batching(guarded_rows=1),
        batching(guarded_rows=2, disagreement=apart),
        batching(guarded_rows=3, disagreement=apart),
    ):
        before = story.life.news
        news.append(story.says(batching=state).news != before)
    assert news == [True, False, True, False]
