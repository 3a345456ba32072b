"""What a life asks for. Each is safe to repeat, and may fail: what comes of it is told as an event."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Literal, NamedTuple

import msgspec

from cortex.agent.life.state import Intent, Life, changed
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


class Say(msgspec.Struct, frozen=True, kw_only=True):
    """Into our log, after its name."""

    level: Literal["info", "warning", "error"]
    text: str


class WriteRecord(msgspec.Struct, frozen=True, kw_only=True):
    """On disk. Told only if it fails: `NotWritten`."""

    record: ReplicaRecord


class Provide(msgspec.Struct, frozen=True, kw_only=True):
    """Have everything there that its build needs: `Doing`, then `Provided` or `StartFailed`."""


class StopProviding(msgspec.Struct, frozen=True, kw_only=True):
    """Nobody needs it any more."""


class Fork(msgspec.Struct, frozen=True, kw_only=True):
    """Have a launcher fork it: `Forked`, `LauncherDied` or `StartFailed`."""


class SeekOrphan(msgspec.Struct, frozen=True, kw_only=True):
    """Ask its control socket who is there: `OrphanSought`."""


class EndUnknown(msgspec.Struct, frozen=True, kw_only=True):
    """End processes of this replica that nobody looks after, if there are any."""


class EndStray(msgspec.Struct, frozen=True, kw_only=True):
    """End this process, which is in the place of another or came when nobody wanted it any more."""

    identity: ProcessIdentity


class Watch(msgspec.Struct, frozen=True, kw_only=True):
    """Notice when its process ends: `ProcessGone`, at once if it has. `NotWatched` if that cannot be done now."""

    identity: ProcessIdentity


class Connect(msgspec.Struct, frozen=True, kw_only=True):
    """To its control socket: `Connected` or `NotConnected`; then `StatusTold` and `Disconnected`."""


class HangUp(msgspec.Struct, frozen=True, kw_only=True):
    """Close that connection."""


class Send(msgspec.Struct, frozen=True, kw_only=True):
    """Over that connection, if it still is there."""

    request: ReplicaRequest


class HaveGoOn(msgspec.Struct, frozen=True, kw_only=True):
    """If somebody has stopped it."""


class Quiet(msgspec.Struct, frozen=True, kw_only=True):
    """Have the ingress send it nothing more: `Quieted` once nothing is there."""


class StopQuieting(msgspec.Struct, frozen=True, kw_only=True):
    """There is nobody left to be drained."""


class Kill(msgspec.Struct, frozen=True, kw_only=True):
    """Signal its process, and no other one."""

    number: signal.Signals


class EndDescendants(msgspec.Struct, frozen=True, kw_only=True):
    """What a process that has ended has left running."""

    identity: ProcessIdentity


class LookAtEnd(msgspec.Struct, frozen=True, kw_only=True):
    """How its process ended: `EndSeen`."""


class HurryLauncher(msgspec.Struct, frozen=True, kw_only=True):
    """Have its launcher go on if somebody has stopped it: it owes an answer."""


class ReadRemains(msgspec.Struct, frozen=True, kw_only=True):
    """What it left in files: `RemainsRead`. Clears away what nobody needs."""

    with_lines: bool


class NoteEnd(msgspec.Struct, frozen=True, kw_only=True):
    """In its log, for each of these requests or for none: `EndNoted`."""

    text: str
    requests: tuple[str, ...]
    wall_s: float


class Abandon(msgspec.Struct, frozen=True, kw_only=True):
    """Tell the requests that wait in the ingress for its slot that nobody will come: `Abandoned`."""


class TurnAway(msgspec.Struct, frozen=True, kw_only=True):
    """Close the connections that wait in its slot: the ingress then tries elsewhere or answers 503."""


class SettleRoutes(msgspec.Struct, frozen=True, kw_only=True):
    """Have the ingress know what routes and readiness say now: `RoutesSettled`."""


class CloseSlot(msgspec.Struct, frozen=True, kw_only=True):
    """Close and remove everything of it, but for what its successor of the same id has by now."""


Effect = (
    Say
    | WriteRecord
    | Provide
    | StopProviding
    | Fork
    | SeekOrphan
    | EndUnknown
    | EndStray
    | Watch
    | Connect
    | HangUp
    | Send
    | HaveGoOn
    | Quiet
    | StopQuieting
    | Kill
    | EndDescendants
    | LookAtEnd
    | HurryLauncher
    | ReadRemains
    | NoteEnd
    | Abandon
    | TurnAway
    | SettleRoutes
    | CloseSlot
)


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
    )
    return asking(changed(life, owes_record=False), WriteRecord(record=record))
