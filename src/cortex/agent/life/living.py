"""What a replica says, and whether it is well."""

from __future__ import annotations

import math

import msgspec

from cortex.agent.life.effects import Do, Next, Say, Send, asking, in_turn, recorded
from cortex.agent.life.ending import ending_begun, killed, leaving, told_to_end, untold
from cortex.agent.life.events import BatchingAsked, Checked, NotConnected, StatusTold
from cortex.agent.life.sleeping import looked_after
from cortex.agent.life.state import Intent, Life, Line, Now, Process, Progress, Stage, changed, in_phase
from cortex.errors import Problem
from cortex.wire.build import BuildSpec
from cortex.wire.launch import Ask, ReplicaStatus, SetBatching
from cortex.wire.reports import Phase

SAMPLE_TRIES = 2
SAMPLE_GRACE_S = 5.0
"""
A replica tries a sample that came too late once more, as it was not warm. One that sits in code that cannot be stopped
says nothing: it is ended this long after both tries would have been over.
"""
STILL_BEATS = 2
"""
A replica's event loop hangs when this many answers in a row say that it stood still. One may come right after the
machine was suspended, from the thread that woke up first.
"""
STARVED_S = 10.0
"""So long may a replica be out of descriptors: those that it has used up may be freed, and clients wait."""
STARTING = (Phase.STARTING, Phase.LOADING, Phase.WARMING)


# ---- the connection --------------------------------------------------------------------------------------------------


def connected(life: Life, now: Now) -> Next:
    if not life.runs:
        return asking(life, Do.HANG_UP)
    life = changed(life, line=Line.UP)
    return told_to_end(life, now) if _waits_to_be_told(life) else Next(life)


def not_connected(life: Life, event: NotConnected, now: Now) -> Next:
    life = changed(life, line=Line.DOWN)
    if event.was_our_limit:
        life = changed(life, answered_s=now.s)
    return untold(life) if life.runs and _waits_to_be_told(life) else Next(life)


def disconnected(life: Life) -> Next:
    return Next(changed(life, line=Line.DOWN, told=None))


def _waits_to_be_told(life: Life) -> bool:
    return life.drain is not None and life.drain.stage is Stage.TELLING


# ---- what it says ----------------------------------------------------------------------------------------------------


def status_told(life: Life, event: StatusTold, now: Now) -> Next:
    """It moves on as far as it says, and never back."""
    status = event.status
    if not life.runs or life.intent is Intent.FORGET or status.attempt != life.order.attempt:
        return Next(life)
    begins_to_end = status.ending and not (life.status is not None and life.status.ending)
    life = changed(_got_on(life, status, now), status=status, heard=True, answered_s=now.s)
    return in_turn(
        life,
        lambda life: ending_begun(life, now) if begins_to_end else Next(life),
        lambda life: _tell_batching(life) if status.batching.order != life.order.batches != life.told else Next(life),
        lambda life: _was_ready(life, status, now),
        lambda life: Next(_moved_on(life, status, now)),
    )


def _got_on(life: Life, status: ReplicaStatus, now: Now) -> Life:
    if status.progress == life.progress.doing:
        return life
    return changed(life, progress=Progress(doing=status.progress, since_s=now.s, since_wall_s=now.wall_s))


def _was_ready(life: Life, status: ReplicaStatus, now: Now) -> Next:
    if life.was_ready or not (status.was_ready or status.phase is Phase.READY):
        return Next(life)
    start_s = now.s - life.began_s if life.began_s is not None else None
    return recorded(changed(life, was_ready=True, start_s=start_s))


def _moved_on(life: Life, status: ReplicaStatus, now: Now) -> Life:
    phase = status.phase
    if phase is Phase.DRAINING:
        life = leaving(life, now)
        phase = Phase.READY if life.was_ready else life.phase
    return in_phase(life, phase, now) if _ORDER[phase] > _ORDER[life.phase] else life


# ---- batches ---------------------------------------------------------------------------------------------------------


def batching_asked(life: Life, event: BatchingAsked) -> Next:
    """One that cannot be told now is told as soon as it says something."""
    is_ending = life.process is Process.OVER or life.intent is Intent.FORGET
    if is_ending or life.order.batches == event.batches:
        return Next(life)
    life = changed(life, order=msgspec.structs.replace(life.order, batches=event.batches))
    return in_turn(life, recorded, _tell_batching)


def _tell_batching(life: Life) -> Next:
    if life.line is not Line.UP:
        return Next(life)
    order = life.order.batches
    return asking(changed(life, told=order), Send(request=SetBatching(order=order)))


# ---- health ----------------------------------------------------------------------------------------------------------


def checked(life: Life, event: Checked, now: Now) -> Next:
    """End one that hangs, is overdue or does not get on with starting; ask the others how they are."""
    life = _forgiven(life, event.late_s, now)
    return in_turn(
        life,
        lambda life: recorded(life) if life.owes_record else Next(life),
        lambda life: _examined(_beat_noted(life, now), event, now) if life.runs else Next(life),
        lambda life: looked_after(life, event) if life.phase is Phase.ASLEEP else Next(life),
    )


def _forgiven(life: Life, late_s: float, now: Now) -> Life:
    """Time in which we ourselves did not run is not held against it."""
    progress = msgspec.structs.replace(life.progress, since_s=min(now.s, life.progress.since_s + late_s))
    return changed(life, answered_s=min(now.s, life.answered_s + late_s), progress=progress)


def _beat_noted(life: Life, now: Now) -> Life:
    """Count in how many answers in a row the event loop stood still; without a new answer nothing changes."""
    status = life.status
    if status is None or not life.heard:
        return life
    still = status.heartbeat_age_s > now.settings.hung_after_s and status.oldest_request_age_s == 0.0
    return changed(life, heard=False, still_beats=life.still_beats + 1 if still else 0)


def _examined(life: Life, event: Checked, now: Now) -> Next:
    problem = complaint(life, event, now) if life.intent is not Intent.END and life.fault is None else None
    if problem is not None:
        said = Say(level="error", text=f"is ended: {problem.message}")
        life = changed(life, fault=problem)
        return in_turn(life, lambda life: asking(life, said), lambda life: killed(life, now))
    # One that somebody has stopped is not ended for it: what it holds would be lost, or done twice.
    return in_turn(life, lambda life: asking(life, Do.HAVE_GO_ON), _asked)


def _asked(life: Life) -> Next:
    match life.line:
        case Line.CALLING:
            return Next(life)
        case Line.DOWN:
            return asking(changed(life, line=Line.CALLING), Do.CONNECT)
    untaken = life.status is not None and life.status.batching.order != life.order.batches
    return in_turn(
        life,
        lambda life: _tell_batching(life) if untaken else Next(life),
        lambda life: asking(life, Send(request=Ask())),
    )


def complaint(life: Life, event: Checked, now: Now) -> Problem | None:
    """Why a replica that runs has to be replaced, if it has to."""
    if life.phase in STARTING:
        return _late_sample(life) or _stalled(life, now)
    return _silent(life, now) or _overdue(life) or _starved(life) or _still(life) or _unreachable(life, event)


def _late_sample(life: Life) -> Problem | None:
    status, build = life.status, life.order.build
    if life.phase is not Phase.WARMING or status is None or status.oldest_request_age_s <= sample_limit_s(build):
        return None
    return Problem(
        reference="sample-failed",
        message=f"the sample was not answered within {guarding_timeout_s(build):g} s, which is the api's `timeout`",
        hint="a new version must answer its sample before it replaces anything: raise `timeout:`, or make it faster",
    )


def _stalled(life: Life, now: Now) -> Problem | None:
    stalled_s = now.s - life.progress.since_s
    if stalled_s <= now.settings.start_timeout_s:
        return None
    return Problem(
        reference="start-timeout",
        message=f"no progress for {stalled_s:.0f} s while {life.progress.doing or 'starting'}",
        hint="if it needs longer, set CORTEX_START_TIMEOUT to more seconds and run `cortex down`, `cortex up`",
    )


def _silent(life: Life, now: Now) -> Problem | None:
    limit_s = now.settings.hung_after_s
    if now.s - life.answered_s <= limit_s + now.settings.health_interval_s:
        return None
    return Problem(reference="hung", message=f"it did not answer its health check for {limit_s:.0f} s")


def _overdue(life: Life) -> Problem | None:
    if life.status is None or not life.status.overdue or life.phase is not Phase.READY:
        return None
    message = "a request outlived its timeout inside code that cannot be stopped"
    return Problem(reference="overdue", message=message)


def _starved(life: Life) -> Problem | None:
    if life.status is None or life.status.starved_s <= STARVED_S or life.phase is not Phase.READY:
        return None
    return Problem(
        reference="out-of-descriptors",
        message=f"it had no descriptors left for new connections for {STARVED_S:.0f} s",
        hint="close what the handler opens: files, sockets, sessions; `ulimit -n` says how many there may be",
    )


def _still(life: Life) -> Problem | None:
    if life.status is None or life.still_beats < STILL_BEATS:
        return None
    age_s = life.status.heartbeat_age_s
    return Problem(reference="hung", message=f"its event loop stood still for {age_s:.0f} s with no request running")


def _unreachable(life: Life, event: Checked) -> Problem | None:
    if not event.lost_path or not life.was_ready or life.intent >= Intent.DRAIN:
        return None
    return Problem(reference="socket-removed", message=f"the file of its socket was removed: {event.lost_path}")


def sample_limit_s(build: BuildSpec) -> float:
    """How long a build's sample may be on its way, with everything; infinite for one that guards nothing."""
    return SAMPLE_TRIES * guarding_timeout_s(build) + SAMPLE_GRACE_S


def guarding_timeout_s(build: BuildSpec) -> float:
    """How long a build's sample may take before its replica is given up; infinite for one that guards nothing."""
    sample = build.sample
    return math.inf if sample is None or not sample.gate or not sample.timeout_s else sample.timeout_s


_ORDER = {phase: place for place, phase in enumerate(Phase)}
