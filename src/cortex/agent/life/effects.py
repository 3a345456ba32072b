"""What a life asks for. Each is safe to repeat, and may fail: what comes of it is told as an event."""

from __future__ import annotations

import signal
from collections.abc import Callable
from enum import Enum
from typing import Literal, NamedTuple

import msgspec

from cortex.agent.life.state import Hold, Intent, Life, changed
from cortex.processes import ProcessIdentity
from cortex.wire.launch import ReplicaRequest
from cortex.wire.orders import StartReplica


class ReplicaRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What is written down to find a replica again after our own restart."""

    order: StartReplica
    identity: ProcessIdentity | None = None
    was_ready: bool = False
    draining: bool = False
    """It was told to end, or is about to be."""
    started_wall_s: float = 0.0
    hold: Hold | None = None
    """What was owed to those who waited when it began. Until it is ready the next agent owes it to them."""


class Do(Enum):
    """Where there is nothing more to be said than what."""

    PROVIDE = "provide"
    """Have everything there that its build needs: `Doing`, then `PROVIDED` or `StartFailed`."""
    STOP_PROVIDING = "stop_providing"
    """Nobody needs it any more."""
    FORK = "fork"
    """Have a launcher fork it: `ProcessForked`, `LauncherDied` or `StartFailed`."""
    SEEK_ORPHAN = "seek_orphan"
    """Ask its control socket who is there: `OrphanSought`."""
    END_UNKNOWN = "end_unknown"
    """End processes of this replica that nobody looks after, if there are any."""
    CONNECT = "connect"
    """To its control socket: `CONNECTED` or `NotConnected`; then `StatusTold` and `DISCONNECTED`."""
    HANG_UP = "hang_up"
    """Close that connection."""
    HAVE_GO_ON = "have_go_on"
    """If somebody has stopped it."""
    QUIET = "quiet"
    """Have the ingress send it nothing more: `QUIETED` once nothing is there."""
    STOP_QUIETING = "stop_quieting"
    """There is nobody left to be drained."""
    LOOK_AT_END = "look_at_end"
    """How its process ended: `EndSeen`."""
    HURRY_LAUNCHER = "hurry_launcher"
    """Have its launcher go on if somebody has stopped it: it owes an answer."""
    ABANDON = "abandon"
    """Tell the requests that wait in the ingress for its slot that nobody will come: `ABANDONED`."""
    TURN_AWAY = "turn_away"
    """Close the connections that wait in its slot: the ingress then tries elsewhere or answers 503."""
    SETTLE_ROUTES = "settle_routes"
    """Have the ingress know what routes and readiness say now: `ROUTES_SETTLED`."""
    AWAIT_KNOCK = "await_knock"
    """Notice when somebody waits in its slot: `KNOCKED`, once."""
    STOP_AWAITING = "stop_awaiting"
    """Whoever waits there is nothing to it any more."""
    OPEN_SLOT = "open_slot"
    """Bind its slot anew: its path leads nowhere."""
    CLOSE_SLOT = "close_slot"
    """Close and remove everything of it, but for what its successor of the same id has by now."""


class Say(msgspec.Struct, frozen=True, kw_only=True):
    """Into our log, after its name."""

    level: Literal["info", "warning", "error"]
    text: str


class WriteRecord(msgspec.Struct, frozen=True, kw_only=True):
    """On disk. Told only if it fails: `NOT_WRITTEN`."""

    record: ReplicaRecord


class EndStray(msgspec.Struct, frozen=True, kw_only=True):
    """End this process, which is in the place of another or came when nobody wanted it any more."""

    identity: ProcessIdentity


class Watch(msgspec.Struct, frozen=True, kw_only=True):
    """Notice when its process ends: `ProcessGone`, at once if it has. `NOT_WATCHED` if that cannot be done now."""

    identity: ProcessIdentity


class Send(msgspec.Struct, frozen=True, kw_only=True):
    """Over that connection, if it still is there."""

    request: ReplicaRequest


class Kill(msgspec.Struct, frozen=True, kw_only=True):
    """Signal its process, and no other one."""

    number: signal.Signals


class EndDescendants(msgspec.Struct, frozen=True, kw_only=True):
    """What a process that has ended has left running."""

    identity: ProcessIdentity


class ReadRemains(msgspec.Struct, frozen=True, kw_only=True):
    """What it left in files: `RemainsRead`. Clears away what nobody needs."""

    with_lines: bool


class NoteEnd(msgspec.Struct, frozen=True, kw_only=True):
    """In its log, for each of these requests or for none: `END_NOTED`."""

    text: str
    requests: tuple[str, ...]
    wall_s: float


Effect = Do | Say | WriteRecord | EndStray | Watch | Send | Kill | EndDescendants | ReadRemains | NoteEnd


class Next(NamedTuple):
    """What an event leads to: the next state, and what it asks for, in this sequence."""

    life: Life
    effects: tuple[Effect, ...] = ()


def asking(life: Life, *effects: Effect) -> Next:
    return Next(life, effects)


def in_turn(life: Life, *moves: Callable[[Life], Next]) -> Next:
    """Several moves, each from where the one before has led."""
    effects: tuple[Effect, ...] = ()
    for move in moves:
        life, more = move(life)
        effects += more
    return Next(life, effects)


def recorded(life: Life) -> Next:
    """Have it found again after our own restart as it is now."""
    record = ReplicaRecord(
        order=life.order,
        identity=life.identity,
        was_ready=life.was_ready,
        draining=life.intent is Intent.DRAIN,
        started_wall_s=life.started_wall_s,
        hold=None if life.was_ready else life.hold,
    )
    return asking(changed(life, owes_record=False), WriteRecord(record=record))
