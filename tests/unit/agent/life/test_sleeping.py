"""Tests of `cortex.agent.life.sleeping`: a slot that nobody serves, who comes, and what becomes of them."""

import pytest

from cortex.agent.life import effects, events
from cortex.agent.life.adopting import Found, adopt
from cortex.agent.life.effects import Do
from cortex.agent.life.events import Happened
from cortex.agent.life.report import report
from cortex.agent.life.sleeping import ATTEMPT, KNOCK_HELD_S, fall_asleep
from cortex.agent.life.starting import may_begin
from cortex.agent.life.state import Alarm, Closing, Hold, Intent, Process
from cortex.agent.rotation import readiness
from cortex.ingress.routes import Readiness
from cortex.processes import ProcessIdentity
from cortex.wire.batching import BatchingOrder
from cortex.wire.orders import HoldSlot
from cortex.wire.reports import Phase

from .conftest import an_order

OTHER = ProcessIdentity(pid=99, start_ticks=1, boot_id="b")


@pytest.fixture
def asleep(story):
    order = an_order()
    begun = fall_asleep(HoldSlot(replica=order.replica, build=order.build), story.now)
    story.life, story.effects = begun.life, list(begun.effects)
    return story


@pytest.fixture
def woken(asleep):
    """Somebody has come, and 4 s later it is started."""
    asleep.tell(Happened.KNOCKED)
    asleep.clock.advance(4.0)
    asleep.order(1, asleep.life)
    return asleep


def knocked_age_s(story):
    return report(story.life, story.now, rss_bytes=0, peak_rss_bytes=0, cpu_s=0.0).knocked_age_s


def test_it_has_no_process_is_written_down_and_waits_for_somebody(asleep):
    life = asleep.life
    assert (life.phase, life.process, life.order.attempt, life.hold) == (Phase.ASLEEP, Process.OVER, ATTEMPT, None)
    assert asleep.kinds == [effects.WriteRecord, Do.AWAIT_KNOCK]
    assert readiness(life, hold=True) is Readiness.HELD


def test_who_comes_first_is_told_of_and_whoever_comes_then_is_not(asleep):
    assert knocked_age_s(asleep) is None
    news = asleep.life.news
    life = asleep.tell(Happened.KNOCKED, after_s=100.0)
    assert life.news != news
    assert life.hold == Hold(since_s=asleep.now.s, limit_s=KNOCK_HELD_S, is_knock=True)
    assert asleep.tell(Happened.KNOCKED, after_s=3.0) == life
    assert knocked_age_s(asleep) == pytest.approx(3.0)


def test_who_waits_for_nobody_is_turned_away_after_30_s_and_it_sleeps_on(asleep):
    asleep.tell(Happened.KNOCKED)
    knocked_s = asleep.now.s
    life = asleep.wake()
    assert asleep.now.s - knocked_s == pytest.approx(30.0)
    assert (asleep.kinds, readiness(life, hold=True), knocked_age_s(asleep)) == ([Do.ABANDON], Readiness.UNREADY, None)
    life = asleep.tell(Happened.ABANDONED)
    assert asleep.kinds == [Do.TURN_AWAY, Do.AWAIT_KNOCK], "or it would be told of those that were turned away"
    assert (life.hold, life.alarms, readiness(life, hold=True)) == (None, {}, Readiness.HELD)
    assert asleep.tell(Happened.ABANDONED) == life
    assert asleep.tell(Happened.KNOCKED).hold is not None


def test_one_whose_callers_were_not_turned_away_has_it_done_again(asleep):
    asleep.tell(Happened.KNOCKED)
    asleep.wake()
    asleep.check()
    assert asleep.kinds == [Do.ABANDON]


def test_who_comes_is_looked_for_again_and_again_until_somebody_has(asleep):
    asleep.check()
    assert asleep.kinds == [Do.AWAIT_KNOCK]
    asleep.tell(Happened.KNOCKED)
    asleep.check()
    assert asleep.kinds == []


def test_one_that_nobody_can_reach_gets_another_slot(asleep):
    assert asleep.check(lost_path="/run/r.sock") is None
    assert asleep.kinds == [Do.OPEN_SLOT, Do.AWAIT_KNOCK]


def test_a_start_takes_over_who_waits_for_what_is_left_of_their_time(woken):
    life = woken.life
    assert (life.phase, life.order.attempt) == (Phase.STARTING, 1)
    assert readiness(life, hold=True) is Readiness.HELD
    assert life.alarms[Alarm.HOLD] - woken.now.s == pytest.approx(KNOCK_HELD_S - 4.0)
    assert knocked_age_s(woken) is None


def test_a_start_that_takes_longer_goes_on_out_of_rotation_and_comes_back(woken):
    woken.tell(Happened.PROVIDED, events.ProcessForked(identity=woken.PROCESS), Happened.CONNECTED)
    life = woken.wake()
    assert (woken.kinds, readiness(life, hold=True)) == ([Do.ABANDON], Readiness.UNREADY)
    life = woken.tell(Happened.ABANDONED)
    assert (woken.kinds, life.intent, life.runs) == ([Do.TURN_AWAY], Intent.SERVE, True)
    assert readiness(woken.says(phase=Phase.READY), hold=True) is Readiness.READY
    assert woken.life.hold is None


def test_what_a_start_took_is_remembered(woken):
    woken.tell(Happened.PROVIDED, events.ProcessForked(identity=woken.PROCESS), Happened.CONNECTED, after_s=2.0)
    assert woken.life.start_s is None
    assert woken.says(phase=Phase.READY).start_s == pytest.approx(2.01)
    woken.clock.advance(5.0)
    assert woken.says(phase=Phase.READY).start_s == pytest.approx(2.01)


def test_the_next_attempt_owes_them_no_more_than_the_first(woken):
    since_s = woken.life.hold.since_s
    woken.tell(events.StartFailed(problem=None))
    woken.clock.advance(2.0)
    life = woken.order(2, woken.life)
    assert life.hold == Hold(since_s=since_s, limit_s=KNOCK_HELD_S, is_knock=True)


def test_one_that_is_started_without_a_knock_stays_in_rotation(asleep):
    life = asleep.order(1, asleep.life)
    assert life.hold == Hold(since_s=asleep.now.s, limit_s=KNOCK_HELD_S, is_knock=True)
    assert readiness(life, hold=True) is Readiness.HELD


def test_one_that_was_ready_and_dies_owes_what_others_do(woken):
    woken.tell(Happened.PROVIDED, events.ProcessForked(identity=woken.PROCESS), Happened.CONNECTED)
    woken.says(phase=Phase.READY)
    life = woken.tell(events.ProcessGone())
    assert life.hold == Hold(since_s=woken.now.s, limit_s=woken.settings.hold_timeout_s)


def test_it_is_started_once(asleep):
    assert may_begin(asleep.life, an_order(1))
    assert not may_begin(asleep.life, an_order(ATTEMPT))
    assert not may_begin(asleep.order(1, asleep.life), an_order(1))


def test_it_is_told_of_no_batches(asleep):
    assert asleep.tell(events.BatchingAsked(batches=BatchingOrder(True))).order.batches == BatchingOrder()


@pytest.mark.parametrize("knocked", [False, True])
def test_a_drain_ends_it_at_once(asleep, knocked):
    if knocked:
        asleep.tell(Happened.KNOCKED)
    life = asleep.tell(events.DrainAsked(timeout_s=600.0))
    assert asleep.kinds == [effects.WriteRecord, Do.STOP_AWAITING]
    assert (life.phase, life.exit.drained, readiness(life, hold=True)) == (Phase.EXITED, True, Readiness.DRAINING)
    assert asleep.tell(Happened.KNOCKED) == life
    assert asleep.tell(events.DrainAsked(timeout_s=1.0)) == life


def test_who_waits_in_a_drained_one_that_nobody_forgets_is_turned_away_all_the_same(asleep):
    asleep.tell(Happened.KNOCKED, events.DrainAsked(timeout_s=600.0))
    asleep.wake()
    assert asleep.kinds == [Do.ABANDON]
    life = asleep.tell(Happened.ABANDONED)
    assert (asleep.kinds, life.phase) == ([Do.TURN_AWAY], Phase.EXITED)


def test_one_that_is_forgotten_is_closed_once_nobody_is_sent_there(asleep):
    asleep.tell(Happened.KNOCKED, Happened.FORGET_ASKED)
    assert asleep.kinds == [Do.STOP_AWAITING, Do.STOP_QUIETING, Do.SETTLE_ROUTES]
    assert asleep.tell(Happened.KNOCKED).closing is Closing.LEAVING
    life = asleep.tell(Happened.ROUTES_SETTLED)
    assert (asleep.kinds, life.closing) == ([Do.TURN_AWAY, Do.CLOSE_SLOT], Closing.CLOSED)


# ---- after our own restart -------------------------------------------------------------------------------------------


def restarted(story, record, **found):
    next_ = adopt(record, Found(**found), story.now)
    story.life, story.effects = next_.life, list(next_.effects)
    return story.life


def written(story):
    """The record that was written last."""
    return [effect.record for effect in story.effects if isinstance(effect, effects.WriteRecord)][-1]


def test_the_next_agent_lets_it_sleep_on_and_waits_for_somebody(asleep):
    life = restarted(asleep, written(asleep))
    assert (life.phase, life.order.attempt, asleep.kinds) == (Phase.ASLEEP, ATTEMPT, [Do.AWAIT_KNOCK])


def test_one_that_serves_although_that_could_not_be_written_down_is_ended(asleep):
    restarted(asleep, written(asleep), impostor=OTHER)
    assert asleep.effects[0] == effects.EndStray(identity=OTHER)


def test_a_drain_before_the_restart_is_remembered(asleep):
    asleep.tell(events.DrainAsked(timeout_s=600.0))
    life = restarted(asleep, written(asleep))
    assert (life.phase, life.exit.drained, Do.AWAIT_KNOCK in asleep.kinds) == (Phase.EXITED, True, False)


def test_who_waits_for_one_that_starts_is_held_by_the_next_agent(woken):
    record, hold = written(woken), woken.life.hold
    woken.clock.advance(3.0)
    life = restarted(woken, record)
    assert (life.hold, readiness(life, hold=True)) == (hold, Readiness.HELD)
    assert life.alarms == {Alarm.HOLD: hold.until_s}
    life = restarted(woken, record, is_silent=True)
    assert (life.hold, life.process) == (hold, Process.ORPHANED)


def test_who_has_waited_too_long_by_then_is_turned_away_at_once(woken):
    record = written(woken)
    woken.clock.advance(100.0)
    restarted(woken, record)
    woken.tell(Happened.WOKE)
    assert woken.kinds == [Do.ABANDON]


def test_one_that_was_ready_before_the_restart_owes_nothing_for_that_start(woken):
    woken.tell(Happened.PROVIDED, events.ProcessForked(identity=woken.PROCESS), Happened.CONNECTED)
    woken.says(phase=Phase.READY)
    record = written(woken)
    woken.clock.advance(1000.0)
    restarted(woken, record)
    assert woken.tell(events.ProcessGone(was_watched=False)).hold.since_s == woken.now.s
