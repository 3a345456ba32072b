"""Tests of `cortex.agent.life.starting`: from an order to a process."""

import pytest

from cortex.agent.life import effects, events
from cortex.agent.life.effects import Do
from cortex.agent.life.events import Happened
from cortex.agent.life.starting import may_begin
from cortex.agent.life.state import Hold, Process
from cortex.errors import Problem
from cortex.processes import ProcessIdentity
from cortex.wire.reports import Phase

LOST = Problem(reference="launcher-lost", message="it ended")
NO = Problem(reference="fork-refused", message="too many processes")
OTHER = ProcessIdentity(pid=99, start_ticks=1, boot_id="b")


def forking(story):
    story.order()
    return story.tell(Happened.PROVIDED)


def orphaned(story):
    forking(story)
    return story.tell(events.LauncherDied(problem=LOST))


def test_an_order_is_written_down_before_anything_is_asked_for(story):
    story.order()
    assert story.kinds == [effects.WriteRecord, Do.PROVIDE]
    assert (story.life.phase, story.life.process) == (Phase.STARTING, Process.PROVIDING)


def test_what_takes_long_before_a_process_is_progress(story):
    story.order()
    assert story.tell(events.Doing(what="installing packages")).progress.doing == "installing packages"


def test_a_process_is_watched_before_it_is_written_down_and_connected_to(story):
    forking(story)
    assert story.kinds == [Do.FORK]
    story.tell(events.ProcessForked(identity=story.PROCESS))
    assert story.kinds == [effects.Watch, effects.WriteRecord, Do.CONNECT]
    assert (story.life.phase, story.life.identity) == (Phase.LOADING, story.PROCESS)


def test_the_same_news_again_changes_nothing(story):
    forking(story)
    story.tell(Happened.PROVIDED)
    assert story.effects == []
    before = story.tell(events.ProcessForked(identity=story.PROCESS))
    assert story.tell(events.ProcessForked(identity=story.PROCESS)) == before
    assert story.effects == []


def test_a_process_that_comes_when_nobody_waits_for_it_is_ended(story):
    story.loading()
    story.tell(events.ProcessForked(identity=OTHER))
    assert story.effects == [effects.EndStray(identity=OTHER)]
    assert story.life.identity == story.PROCESS


@pytest.mark.parametrize("provided", [False, True])
def test_what_cannot_be_had_is_the_reason_of_the_exit(story, provided):
    story.order()
    if provided:
        story.tell(Happened.PROVIDED)
    life = story.tell(events.StartFailed(problem=NO))
    assert (life.phase, life.exit.problem) == (Phase.EXITED, NO)


def test_a_process_that_cannot_be_watched_is_watched_for_again_until_it_can(story):
    story.loading()
    for _ in range(3):
        story.tell(Happened.NOT_WATCHED)
        story.wake()
        assert story.kinds == [effects.Watch]


def test_a_launcher_that_dies_over_the_fork_may_have_forked(story):
    orphaned(story)
    assert story.kinds == [Do.SEEK_ORPHAN]
    life = story.tell(events.OrphanSought(identity=story.PROCESS))
    assert story.kinds == [effects.Watch, effects.WriteRecord, Do.CONNECT, Do.END_UNKNOWN]
    assert (life.identity, life.fault) == (story.PROCESS, None)


def test_launchers_that_die_are_asked_three_times(story):
    forking(story)
    for _ in range(2):
        story.tell(events.LauncherDied(problem=LOST), events.OrphanSought())
        assert story.kinds == [Do.END_UNKNOWN, Do.FORK]
    life = story.tell(events.LauncherDied(problem=LOST), events.OrphanSought())
    assert (life.phase, life.exit.problem) == (Phase.EXITED, LOST)


def test_an_orphan_that_does_not_answer_is_asked_again_for_30_s_and_then_ended(story):
    orphaned(story)
    began_s = story.clock.monotonic_s()
    while story.life.phase is Phase.STARTING:
        story.tell(events.OrphanSought(is_silent=True))
        story.wake()
        assert {Do.SEEK_ORPHAN, Do.END_UNKNOWN} & set(story.kinds)
    assert story.clock.monotonic_s() - began_s == pytest.approx(30.0)
    assert story.kinds == [Do.END_UNKNOWN]
    assert "does not answer" in story.life.exit.problem.message


def test_no_other_launcher_is_asked_for_one_that_is_to_end(story):
    orphaned(story)
    life = story.tell(events.DrainAsked(timeout_s=9.0), events.OrphanSought())
    assert (life.exit.drained, life.exit.problem) == (True, None)
    assert Do.FORK not in story.kinds


def test_an_attempt_that_was_seen_already_is_not_begun_again(story):
    story.order(2)
    second = story.tell(events.StartFailed(problem=NO))
    orders = [story.order(attempt).order for attempt in (1, 2, 3)]
    assert [may_begin(second, order) for order in orders] == [False, False, True]
    assert may_begin(None, orders[0])


def test_a_next_attempt_is_not_begun_before_the_last_one_has_exited(story):
    life = story.running()
    assert not may_begin(life, story.order(2).order)


def test_the_next_attempt_holds_requests_only_for_what_is_left_of_their_time(story):
    story.running()
    story.tell(events.ProcessGone(), events.EndSeen(), after_s=1.0)
    story.wake()
    story.tell(events.EndSeen(), events.RemainsRead(), Happened.END_NOTED)
    began_s = story.life.hold.since_s
    story.order(2, story.life)
    assert story.life.hold == Hold(since_s=began_s, limit_s=story.settings.hold_timeout_s)
    story.wake()
    assert story.clock.monotonic_s() - began_s == pytest.approx(story.settings.hold_timeout_s)
    assert (story.life.hold.is_over, story.kinds) == (True, [Do.ABANDON])
