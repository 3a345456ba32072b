"""A replica that sleeps: an open slot that nobody serves, where somebody may come; and what is owed to who has."""

from __future__ import annotations

from cortex.agent.life.effects import Do, Next, ReplicaRecord, Say, asking, in_turn, recorded
from cortex.agent.life.events import Checked
from cortex.agent.life.state import Alarm, Hold, Intent, Life, Now, Process, Progress, alarmed, changed, silenced
from cortex.wire.orders import HoldSlot, StartReplica
from cortex.wire.reports import Phase

ATTEMPT = 0
"""Of one that sleeps: whoever is started in its slot is the first."""
KNOCK_HELD_S = 30.0
"""
So long, at most, waits who came first for somebody to be started. Not above the wait in the ingress's queue
(`ingress.configuration.IngressLimits.queue_timeout_s`), where most of those are who came later.
"""


def sleeps(order: StartReplica) -> bool:
    """Whether an attempt is one that only holds the slot."""
    return order.attempt == ATTEMPT


def fall_asleep(order: HoldSlot, now: Now) -> Next:
    """From an order, for a replica that is not known."""
    asleep = StartReplica(replica=order.replica, attempt=ATTEMPT, build=order.build)
    return in_turn(_asleep(asleep, now, now.wall_s), recorded, await_knock)


def found_asleep(record: ReplicaRecord, now: Now) -> Life:
    """As a former agent has left it. Who has knocked there does so again."""
    return _asleep(record.order, now, record.started_wall_s)


def _asleep(order: StartReplica, now: Now, since_wall_s: float) -> Life:
    return Life(
        order=order,
        process=Process.OVER,
        phase=Phase.ASLEEP,
        phase_since_s=now.s,
        progress=Progress(since_s=now.s, since_wall_s=now.wall_s),
        started_wall_s=since_wall_s,
    )


def await_knock(life: Life) -> Next:
    return asking(life, Do.AWAIT_KNOCK)


def knocked(life: Life, now: Now) -> Next:
    """Somebody has come, and waits."""
    if life.phase is not Phase.ASLEEP or life.intent > Intent.SERVE or life.hold is not None:
        return Next(life)
    return Next(holding(life, _knock(now), now))


def holding(life: Life, hold: Hold | None, now: Now) -> Life:
    """Have it owe this to who waits."""
    life = changed(life, hold=hold)
    return life if hold is None or hold.is_over else alarmed(life, Alarm.HOLD, max(now.s, hold.until_s))


def owed(before: Life | None, now: Now) -> Hold | None:
    """
    To who waits in the slot that an attempt takes over.

    One that is started without a knock is in rotation all the same, so that somebody may come at any moment.
    """
    if before is None or before.phase is not Phase.ASLEEP:
        return before.hold if before is not None else None
    return before.hold or _knock(now)


def asleep_again(life: Life) -> Next:
    """Who has waited was turned away: the next one to come is news."""
    return await_knock(silenced(changed(life, hold=None), Alarm.HOLD))


def looked_after(life: Life, event: Checked) -> Next:
    """Whether somebody can come, and is noticed."""
    if life.intent > Intent.SERVE:
        return Next(life)
    moves = []
    if event.lost_path:
        said = Say(level="warning", text=f"gets another socket, as the file of its own was removed: {event.lost_path}")
        moves.append(lambda life: asking(life, said, Do.OPEN_SLOT))
    if life.hold is None:
        moves.append(await_knock)
    elif life.hold.is_over:
        moves.append(lambda life: asking(life, Do.ABANDON))  # nobody has said that it was done
    return in_turn(life, *moves)


def _knock(now: Now) -> Hold:
    return Hold(since_s=now.s, limit_s=KNOCK_HELD_S, is_knock=True)
