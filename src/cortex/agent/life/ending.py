"""How a replica ends: told to, killed, or by itself; what is said of it; and how its slot is closed."""

from __future__ import annotations

import signal

import msgspec

from cortex.agent.life.effects import (
    Do,
    EndDescendants,
    Kill,
    Next,
    NoteEnd,
    ReadRemains,
    Say,
    Send,
    asking,
    in_turn,
    recorded,
)
from cortex.agent.life.events import DrainAsked, EndSeen, ProcessGone, RemainsRead
from cortex.agent.life.sleeping import asleep_again, holding
from cortex.agent.life.state import (
    Alarm,
    Closing,
    Draining,
    Hold,
    Intent,
    Life,
    Line,
    Now,
    Process,
    Stage,
    alarmed,
    changed,
    in_phase,
    silenced,
)
from cortex.wire import launch
from cortex.wire.build import mem_text
from cortex.wire.inhand import LeftInHand
from cortex.wire.launch import ENDING_S, MOST_ENDING_S
from cortex.wire.reports import ExitReport, Phase

KILL_AFTER_S = 2.0
"""A replica that should have ended, or was told to and is not serving, gets this long before SIGKILL."""
KILL_AGAIN_S = 5.0
EXIT_STATUS_WAIT_S = 0.3
"""After an ended process was collected, how long its launcher may take to tell how it ended; a dead one never does."""
EXIT_STATUS_WAITS = 6
"""So often, at most, is that time given to whoever has to collect it: on a busy machine its turn may not have come."""
SLOT_CLOSE_TIMEOUT_S = 5.0
PERMANENT = frozenset(("start-timeout", "sample-failed"))
"""Why we end replicas although the next attempt would fare the same."""


# ---- a drain ---------------------------------------------------------------------------------------------------------


def drain_asked(life: Life, event: DrainAsked, now: Now) -> Next:
    """Out of rotation; what comes next depends on whether there is a process."""
    if life.intent >= Intent.DRAIN or life.phase is Phase.EXITED:
        return Next(life)
    drain = Draining(timeout_s=event.timeout_s) if life.intent < Intent.END else None
    life = changed(life, intent=Intent.DRAIN, drain=drain)
    return in_turn(in_phase(life, Phase.DRAINING, now), recorded, lambda life: _let_leave(life, now))


def _let_leave(life: Life, now: Now) -> Next:
    match life.process:
        case Process.PROVIDING | Process.OVER:
            idle = Do.STOP_PROVIDING if life.process is Process.PROVIDING else Do.STOP_AWAITING
            exited = ExitReport(wall_s=now.wall_s, drained=True)
            return in_turn(life, lambda life: asking(life, idle), lambda life: finished(life, exited, now))
        case Process.RUNNING:
            return leave(life, now)
        case _:
            return Next(life)  # until it is known whether there is a process, there is nobody who could be told


def leave(life: Life, now: Now) -> Next:
    """Begin a drain of a process that runs. One that holds nothing has nothing to finish."""
    drain = life.drain
    if drain is None or drain.stage is not None:
        return Next(life)
    if not life.was_ready:
        life = alarmed(_at(life, Stage.TOLD), Alarm.KILL, now.s + KILL_AFTER_S)
        return asking(life, Kill(number=signal.SIGTERM))
    until_s = now.s + drain.timeout_s
    return asking(alarmed(_at(life, Stage.QUIETING, until_s), Alarm.QUIET, until_s), Do.QUIET)


def quieted(life: Life, now: Now) -> Next:
    """The ingress has nothing there any more: it can be told."""
    if not life.runs or life.drain is None or life.drain.stage is not Stage.QUIETING:
        return Next(life)
    return _tell_to_end(silenced(life, Alarm.QUIET), now)


def quiet_due(life: Life, now: Now) -> Next:
    """The ingress had its time; what it still has is in danger now."""
    say = Say(level="warning", text="is told to end although the ingress still had requests for it")
    return in_turn(life, lambda life: asking(life, say, Do.STOP_QUIETING), lambda life: quieted(life, now))


def _tell_to_end(life: Life, now: Now) -> Next:
    life = alarmed(life, Alarm.KILL, _kill_at_s(life, now))
    if life.line is Line.UP:
        return told_to_end(life, now)
    life = _at(life, Stage.TELLING)
    return asking(changed(life, line=Line.CALLING), Do.CONNECT) if life.line is Line.DOWN else Next(life)


def told_to_end(life: Life, now: Now) -> Next:
    """Over the connection that is there now."""
    assert life.drain is not None
    left_s = max(0.0, life.drain.until_s - now.s)
    return asking(_at(life, Stage.TOLD), Send(request=launch.Drain(timeout_s=left_s)))


def untold(life: Life) -> Next:
    """It cannot be reached: a signal says the same, but for the time."""
    return asking(_at(life, Stage.TOLD), Kill(number=signal.SIGTERM))


def leaving(life: Life, now: Now) -> Life:
    """Whoever told it to end was not us: until it has ended it is what it was before."""
    if life.intent >= Intent.LEAVE:
        return life
    until_s = now.s + now.settings.drain_timeout_s + MOST_ENDING_S + KILL_AFTER_S
    return alarmed(changed(life, intent=Intent.LEAVE), Alarm.KILL, until_s)


def ending_begun(life: Life, now: Now) -> Next:
    """It has said that no request is in hand any more: the rest is quick. A handler's code may never give way."""
    if life.drain is None or life.drain.stage not in (Stage.TELLING, Stage.TOLD) or not life.was_ready:
        return Next(life)
    return Next(alarmed(life, Alarm.KILL, _kill_at_s(life, now)))


def _kill_at_s(life: Life, now: Now) -> float:
    assert life.drain is not None
    patience_s = max(0.0, life.drain.until_s - now.s) + ENDING_S + KILL_AFTER_S
    if life.status is not None and life.status.ending:
        patience_s = min(patience_s, MOST_ENDING_S + KILL_AFTER_S)
    return now.s + patience_s


def _at(life: Life, stage: Stage, until_s: float | None = None) -> Life:
    assert life.drain is not None
    until_s = life.drain.until_s if until_s is None else until_s
    return changed(life, drain=msgspec.structs.replace(life.drain, stage=stage, until_s=until_s))


# ---- SIGKILL ---------------------------------------------------------------------------------------------------------


def killed(life: Life, now: Now) -> Next:
    """End it now: again and again, as we may be short of what that takes."""
    life = changed(silenced(life, Alarm.QUIET), intent=max(life.intent, Intent.END), drain=None)
    return asking(alarmed(life, Alarm.KILL, now.s + KILL_AGAIN_S), Do.STOP_QUIETING, Kill(number=signal.SIGKILL))


def kill_due(life: Life, now: Now) -> Next:
    if not life.runs:
        return Next(life)
    say = Say(level="warning", text="did not end in time and is killed")
    return in_turn(life, lambda life: asking(life, say), lambda life: killed(life, now))


# ---- its process is gone ---------------------------------------------------------------------------------------------


def process_gone(life: Life, event: ProcessGone, now: Now) -> Next:
    """Out of rotation before anything else; how it ended can wait."""
    if not life.runs:
        return Next(life)
    assert life.identity is not None
    left = (EndDescendants(identity=life.identity),) if event.was_watched else ()
    life = changed(_with_only(life, Alarm.HOLD, Alarm.ROUTES), process=Process.GONE, line=Line.DOWN, told=None, looks=0)
    return in_turn(
        life,
        lambda life: asking(life, Do.HANG_UP, Do.STOP_QUIETING, *left),
        lambda life: over(life) if life.intent is Intent.FORGET else _asked_how(held(life, now)),
    )


def _asked_how(life: Life) -> Next:
    return asking(life, Do.LOOK_AT_END)


def end_seen(life: Life, event: EndSeen, now: Now) -> Next:
    """How it ended; when nobody can say, they are given a little time, and more while its end was not collected."""
    if life.process is not Process.GONE:
        return Next(life)
    if event.end is None and life.looks < EXIT_STATUS_WAITS:
        looks = life.looks + 1 if event.is_uncollected else EXIT_STATUS_WAITS  # then the next one is the last
        return Next(alarmed(changed(life, looks=looks), Alarm.LOOK, now.s + EXIT_STATUS_WAIT_S))
    return read_remains(changed(silenced(life, Alarm.LOOK), end=event.end))


def look_due(life: Life, _now: Now) -> Next:
    """Who should collect it may have been stopped."""
    if life.process is not Process.GONE:
        return Next(life)
    return asking(life, *((Do.HURRY_LAUNCHER,) if life.looks < EXIT_STATUS_WAITS else ()), Do.LOOK_AT_END)


def read_remains(life: Life) -> Next:
    """Have its files read, now that nobody writes them any more."""
    return asking(changed(life, process=Process.READ), ReadRemains(with_lines=life.intent is not Intent.DRAIN))


def remains_read(life: Life, event: RemainsRead, now: Now) -> Next:
    """Say how it ended, in its log first if that is news there."""
    if life.process is not Process.READ or life.exit is not None:
        return Next(life)
    exited = _exit_report(life, event, now)
    drained, requests = life.intent is Intent.DRAIN, event.in_hand.requests
    lost = requests and (life.was_ready or not drained)  # else only its sample was on its way
    explained = drained or exited.problem is not None or life.identity is None
    if not lost and explained:
        return finished(life, exited, now)
    text = _end_text(life, exited, event.in_hand)
    return asking(changed(life, exit=exited), NoteEnd(text=text, requests=requests, wall_s=exited.wall_s))


def end_noted(life: Life, now: Now) -> Next:
    if life.process is not Process.READ or life.exit is None:
        return Next(life)
    return finished(life, life.exit, now)


def finished(life: Life, exited: ExitReport, now: Now) -> Next:
    """There is no process and there will be none. Its slot waits for the next attempt, or to be forgotten."""
    if life.intent is Intent.FORGET:
        return over(life)
    life = changed(_with_only(life, Alarm.HOLD), process=Process.OVER, exit=exited, drain=None)
    return asking(in_phase(life, Phase.EXITED, now), Say(level="info", text=f"ended: {exited.text}"))


def _exit_report(life: Life, left: RemainsRead, now: Now) -> ExitReport:
    words, end, drained = left.words, life.end, life.intent is Intent.DRAIN
    killed_by = end.signal if end is not None else None
    return ExitReport(
        wall_s=now.wall_s,
        code=end.code if end is not None else None,
        signal=killed_by,
        oom=killed_by == signal.SIGKILL and life.fault is None and not drained and left.memory_ran_out,
        peak_bytes=max(left.peak_bytes, end.peak_bytes if end is not None else 0),
        drained=drained,
        problem=life.fault or (words.problem if words is not None else None),
        permanent=life.fault.reference in PERMANENT if life.fault else words is not None and words.permanent,
        request=left.in_hand.running,
        last_lines=() if drained else left.last_lines,
    )


def _end_text(life: Life, exited: ExitReport, in_hand: LeftInHand) -> str:
    """Of a replica that ended, for its log."""
    text = "killed as its time to drain was up" if exited.drained else exited.text
    if exited.oom:
        asked = life.order.build.resources.mem_bytes
        text += ", without a memory request" if asked is None else f", with a memory request of {mem_text(asked)}"
    others = len(in_hand.requests) - 1
    beside = f", with {others} more in hand" if others > 0 else ""
    return f"this replica ended{' with the request in hand' if in_hand.requests else ''}: {text}{beside}"


# ---- its slot --------------------------------------------------------------------------------------------------------


def held(life: Life, now: Now) -> Life:
    """Requests wait for a replacement for a while, then are told that there is none."""
    if not life.was_ready or life.intent is Intent.DRAIN or life.hold is not None:
        return life
    return holding(life, Hold(since_s=now.s, limit_s=now.settings.hold_timeout_s), now)


def hold_due(life: Life, _now: Now) -> Next:
    if life.hold is None:
        return Next(life)
    return asking(changed(life, hold=msgspec.structs.replace(life.hold, is_over=True)), Do.ABANDON)


def abandoned(life: Life) -> Next:
    """Who waits in the slot itself is turned away as well, unless somebody has come to serve it after all."""
    if life.hold is None or not life.hold.is_over:
        return Next(life)
    sleeps_on = life.phase is Phase.ASLEEP and life.intent is Intent.SERVE
    return in_turn(
        life,
        lambda life: asking(life, Do.TURN_AWAY),
        lambda life: asleep_again(life) if sleeps_on else Next(life),
    )


def forget_asked(life: Life, now: Now) -> Next:
    """End what runs, and have the ingress let go of its slot."""
    if life.intent is Intent.FORGET:
        return Next(life)
    life = changed(life, intent=Intent.FORGET, closing=Closing.LEAVING, drain=None, owes_record=False)
    life = _with_only(life, Alarm.WATCH, Alarm.ASK, Alarm.ORPHAN)
    life = alarmed(life, Alarm.ROUTES, now.s + SLOT_CLOSE_TIMEOUT_S)
    idle = (Do.STOP_AWAITING,) if life.phase is Phase.ASLEEP else ()
    return in_turn(
        life,
        lambda life: _ended(life, now),
        lambda life: asking(life, *idle, Do.STOP_QUIETING, Do.SETTLE_ROUTES),
    )


def _ended(life: Life, now: Now) -> Next:
    match life.process:
        case Process.RUNNING:
            return killed(life, now)
        case Process.PROVIDING:
            return asking(changed(life, process=Process.OVER), Do.STOP_PROVIDING)
        case Process.FORKING | Process.ORPHANED:
            return Next(life)  # whether there is anybody to be ended is open
        case _:
            return Next(changed(life, process=Process.OVER))  # nobody will ask how it ended


def routes_settled(life: Life) -> Next:
    """The ingress sends requests elsewhere: those that wait in the slot are let go."""
    if life.closing is not Closing.LEAVING:
        return Next(life)
    life = changed(silenced(life, Alarm.ROUTES), closing=Closing.EMPTY)
    return in_turn(life, lambda life: asking(life, Do.TURN_AWAY), _closed_once_over)


def routes_due(life: Life, _now: Now) -> Next:
    say = Say(level="warning", text="is closed although the ingress did not let go of its slot")
    return in_turn(life, lambda life: asking(life, say), routes_settled)


def over(life: Life) -> Next:
    """Of a forgotten one: there is no process any more, and nobody asks how it ended."""
    return _closed_once_over(changed(life, process=Process.OVER))


def _closed_once_over(life: Life) -> Next:
    if life.closing is not Closing.EMPTY or life.process is not Process.OVER:
        return Next(life)
    return asking(changed(life, closing=Closing.CLOSED, alarms={}), Do.CLOSE_SLOT)


def _with_only(life: Life, *alarms: Alarm) -> Life:
    return silenced(life, *(set(Alarm) - set(alarms)))
