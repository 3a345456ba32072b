"""From an order to a process that is watched: forked once, even by launchers that die over it."""

from __future__ import annotations

import msgspec

from cortex.agent.life.effects import Do, EndStray, Next, Watch, asking, in_turn, recorded
from cortex.agent.life.ending import finished, killed, leave
from cortex.agent.life.events import Doing, LauncherDied, OrphanSought, ProcessForked, StartFailed
from cortex.agent.life.sleeping import holding, owed
from cortex.agent.life.state import (
    Alarm,
    Intent,
    Life,
    Line,
    Now,
    Process,
    Progress,
    alarmed,
    changed,
    in_phase,
    silenced,
)
from cortex.errors import Problem
from cortex.wire.orders import StartReplica
from cortex.wire.reports import ExitReport, Phase

ORPHAN_TIMEOUT_S = 30.0
"""A child whose launcher died over the fork gets this long to say that it is there."""
ASK_AGAIN_S = 0.3
LOST = Problem(
    reference="launcher-lost", message="the launcher ended over the fork, and what it forked does not answer"
)


def may_begin(known: Life | None, order: StartReplica) -> bool:
    """Whether an order is one for a new attempt, given the attempt that is known."""
    if known is None:
        return True
    return known.phase in (Phase.ASLEEP, Phase.EXITED) and known.order.attempt < order.attempt


def begin(order: StartReplica, before: Life | None, now: Now) -> Next:
    """
    An attempt, from its order.

    Args:
        before: the attempt whose slot it takes over; requests may wait there.
    """
    life = Life(
        order=order,
        phase_since_s=now.s,
        began_s=now.s,
        progress=Progress(since_s=now.s, since_wall_s=now.wall_s),
        started_wall_s=now.wall_s,
    )
    return in_turn(holding(life, owed(before, now), now), recorded, lambda life: asking(life, Do.PROVIDE))


def doing(life: Life, event: Doing) -> Next:
    if life.process is not Process.PROVIDING:
        return Next(life)
    return Next(changed(life, progress=msgspec.structs.replace(life.progress, doing=event.what)))


def provided(life: Life) -> Next:
    return fork(life) if life.process is Process.PROVIDING else Next(life)


def fork(life: Life) -> Next:
    return asking(changed(life, process=Process.FORKING, tries_left=life.tries_left - 1), Do.FORK)


def start_failed(life: Life, event: StartFailed, now: Now) -> Next:
    if life.process not in (Process.PROVIDING, Process.FORKING):
        return Next(life)
    return finished(life, ExitReport(wall_s=now.wall_s, problem=event.problem), now)


def forked(life: Life, event: ProcessForked, now: Now) -> Next:
    """There is a process. One that nobody waits for is ended."""
    if life.process not in (Process.FORKING, Process.ORPHANED):
        known = event.identity == life.identity
        return Next(life) if known else asking(life, EndStray(identity=event.identity))
    life = silenced(life, Alarm.ORPHAN, Alarm.ASK)
    life = changed(life, process=Process.RUNNING, identity=event.identity, fault=None, answered_s=now.s)
    return in_turn(life, watched, lambda life: _begun(life, now))


def watched(life: Life) -> Next:
    assert life.identity is not None
    return asking(life, Watch(identity=life.identity))


def not_watched(life: Life, now: Now) -> Next:
    return Next(alarmed(life, Alarm.WATCH, now.s + now.settings.health_interval_s)) if life.runs else Next(life)


def watch_due(life: Life, _now: Now) -> Next:
    return watched(life) if life.runs else Next(life)


def _begun(life: Life, now: Now) -> Next:
    if life.intent in (Intent.END, Intent.FORGET):
        return killed(life, now)
    if life.phase is Phase.STARTING:
        life = in_phase(life, Phase.LOADING, now)
    life = changed(life, line=Line.CALLING)
    return in_turn(life, recorded, lambda life: asking(life, Do.CONNECT), lambda life: leave(life, now))


def launcher_died(life: Life, event: LauncherDied, now: Now) -> Next:
    """It may have forked before: only when nobody has the control socket can another launcher be asked."""
    if life.process is not Process.FORKING:
        return Next(life)
    return orphaned(changed(life, fault=event.problem), now)


def orphaned(life: Life, now: Now) -> Next:
    life = alarmed(changed(life, process=Process.ORPHANED), Alarm.ORPHAN, now.s + ORPHAN_TIMEOUT_S)
    return asking(life, Do.SEEK_ORPHAN)


def orphan_sought(life: Life, event: OrphanSought, now: Now) -> Next:
    """Who does not answer there is none of ours, or nobody ever will be."""
    if life.process is not Process.ORPHANED:
        return Next(life)
    if event.is_silent and event.identity is None:
        return Next(alarmed(life, Alarm.ASK, now.s + ASK_AGAIN_S))
    life = silenced(life, Alarm.ORPHAN, Alarm.ASK)
    if event.identity is None:
        return in_turn(life, _alone, lambda life: _tried_again(life, now))
    known = ProcessForked(identity=event.identity)
    return in_turn(life, lambda life: forked(life, known, now), _alone)


def _alone(life: Life) -> Next:
    return asking(life, Do.END_UNKNOWN)


def ask_due(life: Life, _now: Now) -> Next:
    return asking(life, Do.SEEK_ORPHAN) if life.process is Process.ORPHANED else Next(life)


def orphan_due(life: Life, now: Now) -> Next:
    """Somebody is there and does not say who."""
    if life.process is not Process.ORPHANED:
        return Next(life)
    exited = ExitReport(wall_s=now.wall_s, problem=LOST)
    return in_turn(life, _alone, lambda life: finished(life, exited, now))


def _tried_again(life: Life, now: Now) -> Next:
    """Nothing was forked."""
    drained = life.intent is Intent.DRAIN
    if life.intent >= Intent.END or life.tries_left == 0:
        problem = None if drained else life.fault
        return finished(life, ExitReport(wall_s=now.wall_s, problem=problem, drained=drained), now)
    return fork(life)
