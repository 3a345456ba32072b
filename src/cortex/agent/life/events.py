"""What can happen to a replica. Each may come late, twice, or when nobody waits for it any more."""

from __future__ import annotations

from enum import Enum

import msgspec

from cortex.errors import Problem
from cortex.processes import ProcessIdentity
from cortex.wire.batching import BatchingOrder
from cortex.wire.inhand import LeftInHand
from cortex.wire.launch import ChildExited, ReplicaStatus
from cortex.wire.stats import LastWords


class Happened(Enum):
    """Where there is nothing more to be said than that it has."""

    FORGET_ASKED = "forget_asked"
    """It is to end now, and its slot to be closed."""
    PROVIDED = "provided"
    """What it needs is there."""
    CONNECTED = "connected"
    """To its control socket."""
    DISCONNECTED = "disconnected"
    """The connection has ended."""
    KNOCKED = "knocked"
    """Somebody waits in its slot."""
    WOKE = "woke"
    """An alarm may be due."""
    NOT_WRITTEN = "not_written"
    """Its record could not be written."""
    QUIETED = "quieted"
    """The ingress sends it nothing more and has nothing there."""
    NOT_WATCHED = "not_watched"
    """Whether it ends cannot be noticed now: we are out of descriptors."""
    END_NOTED = "end_noted"
    """Its log says how it ended, if that could be written."""
    ABANDONED = "abandoned"
    """The ingress has turned away who waited for its slot."""
    ROUTES_SETTLED = "routes_settled"
    """The ingress has what routes and readiness say now."""


# ---- orders ----------------------------------------------------------------------------------------------------------


class DrainAsked(msgspec.Struct, frozen=True, kw_only=True):
    """It is to finish what it holds for at most `timeout_s`, and end."""

    timeout_s: float


class BatchingAsked(msgspec.Struct, frozen=True, kw_only=True):
    """It is to do this about batches."""

    batches: BatchingOrder


# ---- starting --------------------------------------------------------------------------------------------------------


class Doing(msgspec.Struct, frozen=True, kw_only=True):
    """What it needs is being made ready, and this takes long."""

    what: str


class StartFailed(msgspec.Struct, frozen=True, kw_only=True):
    """There is no process, and none of this attempt will come."""

    problem: Problem


class ProcessForked(msgspec.Struct, frozen=True, kw_only=True):
    """A launcher has forked its process."""

    identity: ProcessIdentity


class LauncherDied(msgspec.Struct, frozen=True, kw_only=True):
    """Over the fork: whether there is a process is open."""

    problem: Problem


class OrphanSought(msgspec.Struct, frozen=True, kw_only=True):
    """Its control socket was asked who is there."""

    identity: ProcessIdentity | None = None
    """Of a process of this attempt."""
    is_silent: bool = False
    """Somebody has the socket, but did not answer in time."""


# ---- living ----------------------------------------------------------------------------------------------------------


class NotConnected(msgspec.Struct, frozen=True, kw_only=True):
    """Its control socket does not answer."""

    was_our_limit: bool = False
    """We are out of descriptors or memory, which says nothing about it."""


class StatusTold(msgspec.Struct, frozen=True, kw_only=True):
    """It says how it is."""

    status: ReplicaStatus


class Checked(msgspec.Struct, frozen=True, kw_only=True):
    """Its health is to be looked at."""

    late_s: float
    """For so long we ourselves did not run, or the machine was suspended: not held against it."""
    lost_path: str = ""
    """Of its slot, if that leads to it no more."""


# ---- ending ----------------------------------------------------------------------------------------------------------


class ProcessGone(msgspec.Struct, frozen=True, kw_only=True):
    """Its process has ended."""

    was_watched: bool = True
    """False: it was gone when we came."""


class EndSeen(msgspec.Struct, frozen=True, kw_only=True):
    """What is known about how it ended."""

    end: ChildExited | None = None
    is_uncollected: bool = False
    """Whoever has to collect it, and could tell, has not had its turn."""


class RemainsRead(msgspec.Struct, frozen=True, kw_only=True):
    """What it left in files."""

    words: LastWords | None = None
    in_hand: LeftInHand = LeftInHand()
    last_lines: tuple[str, ...] = ()
    memory_ran_out: bool = False
    """The kernel has killed somebody for memory lately."""
    peak_bytes: int = 0
    """The most memory that its process was seen to hold."""


Event = (
    Happened
    | DrainAsked
    | BatchingAsked
    | Doing
    | StartFailed
    | ProcessForked
    | LauncherDied
    | OrphanSought
    | NotConnected
    | StatusTold
    | Checked
    | ProcessGone
    | EndSeen
    | RemainsRead
)
