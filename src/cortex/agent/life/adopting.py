"""After our own restart: what becomes of a replica that a former agent looked after."""

from __future__ import annotations

import msgspec

from cortex.agent.life.effects import Do, EndStray, Next, ReplicaRecord, Say, asking, in_turn
from cortex.agent.life.ending import ending_begun, finished, held, killed, leave, read_remains
from cortex.agent.life.events import StatusTold
from cortex.agent.life.living import status_told
from cortex.agent.life.sleeping import await_knock, found_asleep, holding, sleeps
from cortex.agent.life.starting import orphaned, watched
from cortex.agent.life.state import Draining, Intent, Life, Line, Now, Process, Progress, changed, in_phase
from cortex.processes import ProcessIdentity
from cortex.wire.launch import ReplicaStatus
from cortex.wire.reports import ExitReport, Phase


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """Who is behind the control socket that a record speaks of, and what became of the slot."""

    status: ReplicaStatus | None = None
    """Of a process of this attempt."""
    identity: ProcessIdentity | None = None
    """The same process."""
    impostor: ProcessIdentity | None = None
    """A process of another attempt answers."""
    is_silent: bool = False
    """Somebody has the socket, but did not answer in time. It may be well, as the machine may be busy."""
    is_reachable: bool = True
    """Its slot was found, and its path leads there."""


def adopt(record: ReplicaRecord, found: Found, now: Now) -> Next:
    """A life from what is written and what is there."""
    if sleeps(record.order):
        return _still_asleep(record, found, now)
    life = Life(
        order=record.order,
        identity=found.identity or record.identity,
        intent=Intent.DRAIN if record.draining else Intent.SERVE,
        phase_since_s=now.s,
        progress=Progress(since_s=now.s, since_wall_s=now.wall_s),
        started_wall_s=record.started_wall_s,
        was_ready=record.was_ready,
        answered_s=now.s,
        owes_record=found.identity is not None and found.identity != record.identity,
    )
    if record.draining:
        life = in_phase(changed(life, drain=Draining(timeout_s=now.settings.drain_timeout_s)), Phase.DRAINING, now)
    if record.hold is not None and not record.was_ready:
        since_s = min(now.s, record.hold.since_s)  # the machine may have been started anew
        life = holding(life, msgspec.structs.replace(record.hold, since_s=since_s), now)
    stray = () if found.impostor is None else (EndStray(identity=found.impostor),)
    return in_turn(life, lambda life: asking(life, *stray), lambda life: _taken_over(life, found, now))


def _still_asleep(record: ReplicaRecord, found: Found, now: Now) -> Next:
    """Whoever has its control socket was started by an agent that could not write that down any more."""
    stray = () if found.impostor is None else (EndStray(identity=found.impostor),)
    life = found_asleep(record, now)
    if record.draining:
        exited = ExitReport(wall_s=now.wall_s, drained=True)
        ended = changed(life, intent=Intent.DRAIN)
        return in_turn(ended, lambda life: asking(life, *stray), lambda life: finished(life, exited, now))
    return in_turn(life, lambda life: asking(life, *stray), await_knock)


def _taken_over(life: Life, found: Found, now: Now) -> Next:
    if life.identity is None:
        return _sought(life, found, now) if found.is_silent else read_remains(held(life, now))
    life = changed(life, process=Process.RUNNING)
    serves = found.is_reachable and (found.status is not None or found.is_silent)
    go_on = _goes_on if serves else _ended
    return in_turn(life, watched, lambda life: go_on(life, found, now))


def _sought(life: Life, found: Found, now: Now) -> Next:
    """Its former agent ended over the fork. Whoever it is has a slot that may lead nowhere."""
    intent = life.intent if found.is_reachable else max(life.intent, Intent.END)
    return orphaned(changed(life, tries_left=0, intent=intent), now)


def _goes_on(life: Life, found: Found, now: Now) -> Next:
    assert life.identity is not None
    said = Say(level="info", text=f"was adopted, pid {life.identity.pid}")
    life = changed(life, line=Line.CALLING)
    return in_turn(
        life,
        lambda life: asking(life, said),
        lambda life: _believed(life, found, now),
        lambda life: asking(life, Do.CONNECT),
        lambda life: leave(life, now),
        lambda life: ending_begun(life, now),
    )


def _believed(life: Life, found: Found, now: Now) -> Next:
    if found.status is not None:
        return status_told(life, StatusTold(status=found.status), now)
    return Next(_as_recorded(life, now))


def _ended(life: Life, _found: Found, now: Now) -> Next:
    """Nobody could reach it, or it could tell us nothing."""
    return killed(_as_recorded(life, now), now)


def _as_recorded(life: Life, now: Now) -> Life:
    if life.intent is Intent.DRAIN:
        return life
    return in_phase(life, Phase.READY if life.was_ready else Phase.LOADING, now)
