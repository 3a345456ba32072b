"""Tests of `cortex.agent.life.ending`: drains, kills, what is said of an end, and how a slot is closed."""

import itertools
import signal

import msgspec
import pytest

from cortex.agent.life import effects, events
from cortex.agent.life.effects import Do
from cortex.agent.life.ending import EXIT_STATUS_WAITS
from cortex.agent.life.events import Happened
from cortex.agent.life.state import Alarm, Closing, Intent, Process
from cortex.errors import Problem
from cortex.wire.build import Resources
from cortex.wire.inhand import LeftInHand
from cortex.wire.launch import ChildExited, Drain
from cortex.wire.reports import Phase
from cortex.wire.stats import LastWords

MIB = 2**20
KILL, TERM = effects.Kill(number=signal.SIGKILL), effects.Kill(number=signal.SIGTERM)
BROKEN = Problem(reference="handler-failed", message="it is broken")


def an_end(code=None, number=None) -> ChildExited:
    return ChildExited(pid=4711, replica="r", attempt=1, code=code, signal=number)


def ended(story, end=None, **left):
    """Until it has exited."""
    story.tell(events.ProcessGone(), events.EndSeen(end=end or an_end(code=0)), events.RemainsRead(**left))
    return story.tell(Happened.END_NOTED)


def left_to_kill_s(story) -> float:
    story.wake()
    assert KILL in story.effects
    return story.clock.monotonic_s()


# ---- drains ----------------------------------------------------------------------------------------------------------


def test_a_drained_replica_leaves_the_ingress_before_it_is_told(story):
    story.running()
    life = story.tell(events.DrainAsked(timeout_s=10.0))
    assert (life.phase, story.kinds) == (Phase.DRAINING, [effects.WriteRecord, Do.QUIET])
    story.tell(Happened.QUIETED, after_s=4.0)
    assert story.effects == [effects.Send(request=Drain(timeout_s=pytest.approx(6.0)))]


def test_one_that_ended_before_the_ingress_let_go_is_told_nothing(story):
    story.running()
    gone = story.tell(events.DrainAsked(timeout_s=10.0), events.ProcessGone())
    assert (story.tell(Happened.QUIETED), story.kinds) == (gone, [])


def test_the_same_drain_again_changes_nothing(story):
    before = story.draining()
    assert story.tell(events.DrainAsked(timeout_s=1.0), Happened.QUIETED) == before
    assert story.effects == []


def test_an_ingress_that_does_not_get_quiet_has_the_time_of_the_drain(story):
    story.running()
    story.tell(events.DrainAsked(timeout_s=10.0))
    story.wake()
    assert story.of(effects.Send) == [effects.Send(request=Drain(timeout_s=0.0))]


def test_a_replica_that_is_drained_gets_its_time_and_some_to_end_and_is_killed(story):
    story.draining(timeout_s=10.0)
    asked_s = story.clock.monotonic_s()
    assert left_to_kill_s(story) - asked_s == pytest.approx(10.0 + 3.0 + 2.0)


def test_an_end_that_has_begun_has_not_the_whole_drain(story):
    story.draining(timeout_s=600.0)
    story.says(phase=Phase.DRAINING, ending=True)
    said_s = story.clock.monotonic_s()
    story.says(phase=Phase.DRAINING, ending=True)
    assert left_to_kill_s(story) - said_s == pytest.approx(10.0 + 2.0)


def test_a_kill_is_repeated_until_the_process_is_gone(story):
    story.draining()
    times_s = [left_to_kill_s(story) for _ in range(3)]
    assert [later - earlier for earlier, later in itertools.pairwise(times_s)] == pytest.approx([5.0, 5.0])
    story.tell(events.ProcessGone())
    assert story.life.alarms == {}


def test_one_that_is_to_be_told_is_connected_to_first(story):
    story.running()
    story.tell(Happened.DISCONNECTED, events.DrainAsked(timeout_s=10.0), Happened.QUIETED)
    assert story.kinds == [Do.CONNECT]
    story.tell(Happened.CONNECTED)
    assert story.kinds == [effects.Send]


def test_one_that_cannot_be_told_gets_a_signal(story):
    story.running()
    story.tell(Happened.DISCONNECTED, events.DrainAsked(timeout_s=10.0), Happened.QUIETED, events.NotConnected())
    assert story.effects == [TERM]


def test_one_that_was_never_ready_gets_a_signal_at_once_and_2_s(story):
    story.running(Phase.WARMING)
    story.tell(events.DrainAsked(timeout_s=600.0))
    asked_s = story.clock.monotonic_s()
    assert TERM in story.effects
    assert left_to_kill_s(story) - asked_s == pytest.approx(2.0)


def test_one_that_was_never_ready_has_no_more_time_once_it_says_that_it_ends(story):
    story.running(Phase.WARMING)
    story.tell(events.DrainAsked(timeout_s=600.0))
    asked_s = story.clock.monotonic_s()
    story.says(phase=Phase.DRAINING, ending=True)
    assert left_to_kill_s(story) - asked_s == pytest.approx(2.0)


def test_one_that_says_that_it_ends_before_it_is_told_has_its_time_from_then(story):
    story.running()
    story.tell(events.DrainAsked(timeout_s=600.0))
    story.says(phase=Phase.DRAINING, ending=True)
    asked_s = story.tell(Happened.QUIETED).alarms[Alarm.KILL] - story.clock.monotonic_s()
    assert asked_s == pytest.approx(10.0 + 2.0)


def test_one_that_is_forked_when_it_was_drained_already_is_ended_then(story):
    story.order()
    story.tell(Happened.PROVIDED, events.DrainAsked(timeout_s=600.0))
    assert Do.QUIET not in story.kinds
    life = story.tell(events.ProcessForked(identity=story.PROCESS))
    assert (life.phase, story.effects[-1]) == (Phase.DRAINING, TERM)


def test_one_that_is_drained_before_there_is_anything_ends_at_once(story):
    story.order()
    life = story.tell(events.DrainAsked(timeout_s=600.0))
    assert story.kinds == [effects.WriteRecord, Do.STOP_PROVIDING]
    assert (life.phase, life.exit.drained) == (Phase.EXITED, True)
    story.tell(Happened.PROVIDED)
    assert story.effects == []


def test_one_that_is_killed_already_is_not_drained(story):
    story.running()
    story.says(overdue=True)
    story.check()
    story.tell(events.DrainAsked(timeout_s=600.0))
    assert story.kinds == [effects.WriteRecord]
    left_to_kill_s(story)


# ---- how it ended ----------------------------------------------------------------------------------------------------


def test_a_process_that_is_gone_is_out_of_rotation_before_anybody_knows_why(story):
    story.running()
    life = story.tell(events.ProcessGone())
    assert (life.runs, life.phase, life.hold is not None) == (False, Phase.READY, True)
    assert story.kinds == [Do.HANG_UP, Do.STOP_QUIETING, effects.EndDescendants, Do.LOOK_AT_END]


def test_nobody_is_sought_in_the_name_of_a_process_that_was_gone_when_we_came(story):
    story.running()
    story.tell(events.ProcessGone(was_watched=False))
    assert effects.EndDescendants not in story.kinds


def test_a_launcher_that_has_yet_to_collect_an_ended_replica_is_waited_for_and_looked_after(story):
    story.running()
    story.tell(events.ProcessGone())
    for _ in range(EXIT_STATUS_WAITS - 1):
        story.tell(events.EndSeen(is_uncollected=True))
        assert story.effects == []
        story.wake()
        assert story.kinds == [Do.HURRY_LAUNCHER, Do.LOOK_AT_END]
    story.tell(events.EndSeen(end=an_end(number=9)))
    assert (story.life.process, story.kinds) == (Process.READ, [effects.ReadRemains])


def test_it_is_not_waited_for_for_ever(story):
    story.running()
    story.tell(events.ProcessGone())
    looks = 0
    while story.life.process is Process.GONE:
        story.tell(events.EndSeen(is_uncollected=True))
        looks += 1
        if story.life.alarms.keys() - {"hold"} and story.life.process is Process.GONE:
            story.wake()
    assert looks == EXIT_STATUS_WAITS + 1


def test_a_replica_that_somebody_else_collected_ended_for_reasons_unknown(story):
    story.running()
    story.tell(events.ProcessGone(), events.EndSeen())
    story.wake()
    assert story.kinds == [Do.LOOK_AT_END]
    story.tell(events.EndSeen(), events.RemainsRead(), Happened.END_NOTED)
    assert (story.life.exit.code, story.life.exit.signal) == (None, None)
    assert story.life.exit.text == "ended while nobody watched"


def test_an_end_that_nobody_asked_for_is_noted_in_the_log_before_it_is_reported(story):
    story.running()
    in_hand = LeftInHand(("a", "b"), "a")
    story.tell(events.ProcessGone(), events.EndSeen(end=an_end(number=9)), events.RemainsRead(in_hand=in_hand))
    (note,) = story.of(effects.NoteEnd)
    assert note.text == "this replica ended with the request in hand: killed by signal 9 (SIGKILL), with 1 more in hand"
    assert (note.requests, story.life.phase) == (("a", "b"), Phase.READY)
    life = story.tell(Happened.END_NOTED)
    assert (life.phase, life.exit.signal, life.exit.request) == (Phase.EXITED, 9, "a")


def test_an_end_is_noted_once_and_not_before_it_is_known(story):
    story.running()
    gone = story.tell(events.ProcessGone(), events.EndSeen(end=an_end(number=9)))
    assert (story.tell(Happened.END_NOTED), story.kinds) == (gone, [])
    over = story.tell(events.RemainsRead(in_hand=LeftInHand(("a",), "a")), Happened.END_NOTED)
    assert (story.tell(Happened.END_NOTED, after_s=1.0), story.kinds) == (over, [])


@pytest.mark.parametrize("left", [{"words": LastWords(problem=BROKEN, permanent=True)}, {}])
def test_what_explains_itself_or_was_asked_for_is_not_noted(story, left):
    story.running(Phase.WARMING)
    if not left:
        story.tell(events.DrainAsked(timeout_s=1.0))
    story.tell(events.ProcessGone(), events.EndSeen(end=an_end(code=1)), events.RemainsRead(**left))
    assert story.of(effects.NoteEnd) == []
    assert story.life.phase is Phase.EXITED


def test_a_drained_replica_that_had_a_request_in_hand_has_lost_it(story):
    story.draining()
    in_hand = LeftInHand(("a",), "a")
    story.tell(events.ProcessGone(), events.EndSeen(end=an_end(number=9)), events.RemainsRead(in_hand=in_hand))
    (note,) = story.of(effects.NoteEnd)
    assert note.text == "this replica ended with the request in hand: killed as its time to drain was up"


def test_last_words_say_what_was_wrong_and_whether_it_would_be_again(story):
    story.running(Phase.WARMING)
    life = ended(story, an_end(code=1), words=LastWords(problem=BROKEN, permanent=True), last_lines=("x",))
    assert (life.exit.problem, life.exit.permanent, life.exit.last_lines) == (BROKEN, True, ("x",))


def test_why_it_was_killed_counts_more_than_what_it_said(story):
    story.loading()
    while story.check() is None:
        pass
    life = ended(story, an_end(number=9), words=LastWords(problem=BROKEN), memory_ran_out=True)
    assert (life.exit.problem.reference, life.exit.permanent, life.exit.oom) == ("start-timeout", True, False)


@pytest.mark.parametrize(
    ("end", "ran_out", "oom"),
    [(an_end(number=9), True, True), (an_end(number=9), False, False), (an_end(number=11), True, False)],
)
def test_a_kill_by_nobody_while_memory_ran_out_is_the_kernels(story, end, ran_out, oom):
    story.running()
    assert ended(story, end, memory_ran_out=ran_out).exit.oom is oom


@pytest.mark.parametrize(
    ("asked", "words"), [(None, "without a memory request"), (200 * MIB, "with a memory request of 200Mi")]
)
def test_a_kill_for_memory_is_noted_with_the_most_that_anybody_saw_it_hold_and_the_request(story, asked, words):
    story.running()
    build = msgspec.structs.replace(story.life.order.build, resources=Resources(mem_bytes=asked))
    story.life = msgspec.structs.replace(story.life, order=msgspec.structs.replace(story.life.order, build=build))
    end = msgspec.structs.replace(an_end(number=9), peak_bytes=300 * MIB)
    left = events.RemainsRead(memory_ran_out=True, peak_bytes=250 * MIB)
    story.tell(events.ProcessGone(), events.EndSeen(end=end), left)
    (note,) = story.of(effects.NoteEnd)
    assert note.text == f"this replica ended: killed by the kernel for memory at 300Mi, {words}"
    assert story.tell(Happened.END_NOTED).exit.peak_bytes == 300 * MIB


def test_a_drained_replica_is_asked_for_no_lines(story):
    story.draining()
    story.tell(events.ProcessGone(), events.EndSeen(end=an_end(code=0)))
    assert story.effects == [effects.ReadRemains(with_lines=False)]
    life = story.tell(events.RemainsRead(last_lines=("x",)))
    assert (life.exit.drained, life.exit.last_lines, life.hold) == (True, (), None)


# ---- holding requests ------------------------------------------------------------------------------------------------


def test_requests_are_turned_away_when_nobody_came_for_as_long_as_they_are_held(story):
    story.running()
    ended(story)
    story.wake()
    assert story.kinds == [Do.ABANDON]
    story.tell(Happened.ABANDONED)
    assert story.kinds == [Do.TURN_AWAY]


def test_a_successor_that_is_ready_by_then_keeps_those_that_wait(story):
    story.running()
    ended(story)
    story.wake()
    story.order(2, story.life)
    story.tell(Happened.PROVIDED, events.ProcessForked(identity=story.PROCESS))
    story.says(phase=Phase.READY, attempt=2)
    story.tell(Happened.ABANDONED)
    assert (story.effects, story.life.hold) == ([], None)


def test_nobody_waits_for_one_that_never_was_ready(story):
    story.running(Phase.WARMING)
    assert ended(story).alarms == {}


# ---- forgetting ------------------------------------------------------------------------------------------------------


def test_a_forgotten_replica_is_killed_and_its_slot_closed_once_the_ingress_has_let_go_and_it_is_gone(story):
    story.running()
    life = story.tell(Happened.FORGET_ASKED)
    assert KILL in story.effects
    assert story.kinds[-1] is Do.SETTLE_ROUTES
    story.tell(Happened.ROUTES_SETTLED)
    assert story.kinds == [Do.TURN_AWAY]
    life = story.tell(events.ProcessGone())
    assert (story.kinds[-1], life.closing) == (Do.CLOSE_SLOT, Closing.CLOSED)
    for again in (
        Happened.ROUTES_SETTLED,
        events.ProcessGone(),
        Happened.FORGET_ASKED,
        events.EndSeen(),
        Happened.WOKE,
    ):
        story.tell(again)
        assert story.effects == []


def test_an_ingress_that_does_not_let_go_has_5_s(story):
    story.running()
    story.tell(Happened.FORGET_ASKED, events.ProcessGone())
    assert Do.CLOSE_SLOT not in story.kinds
    asked_s = story.clock.monotonic_s()
    story.wake()
    assert story.kinds == [Do.TURN_AWAY, Do.CLOSE_SLOT]
    assert story.clock.monotonic_s() - asked_s == pytest.approx(5.0)


def test_a_slot_is_not_closed_before_the_process_is_gone(story):
    story.running()
    story.tell(Happened.FORGET_ASKED, Happened.ROUTES_SETTLED)
    for _ in range(5):
        story.wake()
        assert Do.CLOSE_SLOT not in story.kinds
        assert KILL in story.effects


def test_a_replica_forgotten_while_it_is_forked_is_killed_when_it_comes(story):
    story.order()
    story.tell(Happened.PROVIDED, Happened.FORGET_ASKED, Happened.ROUTES_SETTLED)
    assert Do.CLOSE_SLOT not in story.kinds
    story.tell(events.ProcessForked(identity=story.PROCESS))
    assert story.kinds == [effects.Watch, Do.STOP_QUIETING, effects.Kill]
    story.tell(events.ProcessGone())
    assert Do.CLOSE_SLOT in story.kinds


@pytest.mark.parametrize("until", ["ordered", "gone", "read", "exited"])
def test_one_that_is_forgotten_without_a_process_is_closed_as_soon_as_the_ingress_has_let_go(story, until):
    story.order()
    if until != "ordered":
        story.running()
        story.tell(events.ProcessGone())
    if until in ("read", "exited"):
        story.tell(events.EndSeen(end=an_end(code=0)))
    if until == "exited":
        story.tell(events.RemainsRead(), Happened.END_NOTED)
    story.tell(Happened.FORGET_ASKED, Happened.ROUTES_SETTLED)
    assert story.kinds == [Do.TURN_AWAY, Do.CLOSE_SLOT]
    assert story.life.intent is Intent.FORGET


def test_a_fork_that_failed_leaves_a_forgotten_one_nothing_to_wait_for(story):
    story.order()
    story.tell(Happened.PROVIDED, Happened.FORGET_ASKED, Happened.ROUTES_SETTLED, events.StartFailed(problem=BROKEN))
    assert story.kinds == [Do.CLOSE_SLOT]
