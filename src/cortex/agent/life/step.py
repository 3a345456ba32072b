"""The door to a life: each event has one function, and so has each alarm."""

from __future__ import annotations

import math
from collections.abc import Callable

from cortex.agent.life import ending, events, living, sleeping, starting
from cortex.agent.life.effects import Next, in_turn
from cortex.agent.life.events import Event, Happened
from cortex.agent.life.state import Alarm, Intent, Life, Now, changed, silenced


def step(life: Life, event: Event, now: Now) -> Next:
    """
    What an event leads to.

    Same arguments, same result. An event that comes late, twice or for nobody leads nowhere.
    """
    match event:
        case events.DrainAsked():
            return ending.drain_asked(life, event, now)
        case events.BatchingAsked():
            return living.batching_asked(life, event)
        case Happened.FORGET_ASKED:
            return ending.forget_asked(life, now)
        case events.Doing():
            return starting.doing(life, event)
        case Happened.PROVIDED:
            return starting.provided(life)
        case events.StartFailed():
            return starting.start_failed(life, event, now)
        case events.ProcessForked():
            return starting.forked(life, event, now)
        case events.LauncherDied():
            return starting.launcher_died(life, event, now)
        case events.OrphanSought():
            return starting.orphan_sought(life, event, now)
        case Happened.CONNECTED:
            return living.connected(life, now)
        case events.NotConnected():
            return living.not_connected(life, event, now)
        case Happened.DISCONNECTED:
            return living.disconnected(life)
        case events.StatusTold():
            return living.status_told(life, event, now)
        case events.Checked():
            return in_turn(life, lambda life: _rung(life, now), lambda life: living.checked(life, event, now))
        case Happened.KNOCKED:
            return sleeping.knocked(life, now)
        case Happened.WOKE:
            return _rung(life, now)
        case Happened.NOT_WRITTEN:
            return Next(changed(life, owes_record=life.intent is not Intent.FORGET))
        case Happened.QUIETED:
            return ending.quieted(life, now)
        case Happened.NOT_WATCHED:
            return starting.not_watched(life, now)
        case events.ProcessGone():
            return ending.process_gone(life, event, now)
        case events.EndSeen():
            return ending.end_seen(life, event, now)
        case events.RemainsRead():
            return ending.remains_read(life, event, now)
        case Happened.END_NOTED:
            return ending.end_noted(life, now)
        case Happened.ABANDONED:
            return ending.abandoned(life)
        case Happened.ROUTES_SETTLED:
            return ending.routes_settled(life)


def _rung(life: Life, now: Now) -> Next:
    """Every alarm that is due, once."""
    due = [alarm for alarm in Alarm if life.alarms.get(alarm, math.inf) <= now.s]
    return in_turn(life, *(_ringing(alarm, now) for alarm in due))


def _ringing(alarm: Alarm, now: Now) -> Callable[[Life], Next]:
    def ring(life: Life) -> Next:
        if life.alarms.get(alarm, math.inf) > now.s:
            return Next(life)  # one before it has put it off
        return ALARMS[alarm](silenced(life, alarm), now)

    return ring


ALARMS: dict[Alarm, Callable[[Life, Now], Next]] = {
    Alarm.HOLD: ending.hold_due,
    Alarm.QUIET: ending.quiet_due,
    Alarm.KILL: ending.kill_due,
    Alarm.WATCH: starting.watch_due,
    Alarm.ASK: starting.ask_due,
    Alarm.ORPHAN: starting.orphan_due,
    Alarm.LOOK: ending.look_due,
    Alarm.ROUTES: ending.routes_due,
}
