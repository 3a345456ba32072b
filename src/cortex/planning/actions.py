"""What planning decides: a plan is a tuple of frozen actions, each safe to repeat, and it prints."""

from __future__ import annotations

import msgspec

from cortex.errors import Problem
from cortex.ids import ApiKey, NodeId, ReplicaId, Revision
from cortex.wire.build import Resources
from cortex.wire.orders import Order
from cortex.wire.reports import ExitReport


class AcquireLease(msgspec.Struct, frozen=True, kw_only=True):
    replica: ReplicaId
    api: ApiKey
    resources: Resources
    surge: bool = False


class ReleaseLease(msgspec.Struct, frozen=True, kw_only=True):
    replica: ReplicaId


class OrderNode(msgspec.Struct, frozen=True, kw_only=True):
    """Give an order to a node's agent."""

    node: NodeId
    order: Order


class RecordExit(msgspec.Struct, frozen=True, kw_only=True):
    """Remember how an attempt ended. Recorded once for each (replica, attempt)."""

    api: ApiKey
    revision: Revision
    replica: ReplicaId
    attempt: int
    was_ready: bool
    exit: ExitReport


class RecordReady(msgspec.Struct, frozen=True, kw_only=True):
    """A replica of this revision has been ready: failed starts count from zero again."""

    api: ApiKey
    revision: Revision


class MarkLive(msgspec.Struct, frozen=True, kw_only=True):
    """The wanted build serves at full size: it becomes `serving`."""

    api: ApiKey
    revision: Revision


class MarkFailed(msgspec.Struct, frozen=True, kw_only=True):
    """The wanted build is given up; what served before goes on."""

    api: ApiKey
    revision: Revision
    problem: Problem


Action = AcquireLease | ReleaseLease | OrderNode | RecordExit | RecordReady | MarkLive | MarkFailed


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to do now, and when to look again even if nothing happens."""

    actions: tuple[Action, ...] = ()
    wake_after_s: float | None = None
    """Seconds until time alone changes the plan (a back-off ends); None: only events do."""
