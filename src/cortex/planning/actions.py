"""What planning decides: a plan is a tuple of frozen actions, each safe to repeat, and it prints."""

from __future__ import annotations

import msgspec

from cortex.errors import Problem
from cortex.ids import ApiKey, NodeId, ReplicaId, Revision, short
from cortex.planning.batching import BatchingStop, disagreement_text
from cortex.planning.model import Lease, LeaseRequest
from cortex.wire.build import ModelKey, Resources, mem_text
from cortex.wire.orders import (
    DrainReplica,
    ForgetReplica,
    HoldSlot,
    Order,
    RemoveRoute,
    SetReplicaBatching,
    SetRoute,
    SetRoutes,
    StartReplica,
)
from cortex.wire.reports import ExitReport


class AcquireLease(msgspec.Struct, frozen=True, kw_only=True):
    """Ask for room. For a lease that was asked for already: whether it is a surge, or of the minimum, by now."""

    request: LeaseRequest

    @property
    def api(self) -> ApiKey:
        return self.request.api


class RecoverLease(msgspec.Struct, frozen=True, kw_only=True):
    """Take back the room of a replica that runs and that the engine does not know of."""

    lease: Lease

    @property
    def api(self) -> ApiKey:
        return self.lease.request.api


class ReleaseLease(msgspec.Struct, frozen=True, kw_only=True):
    """Give room back, after its replica has been forgotten."""

    replica: ReplicaId
    api: ApiKey


class OrderNode(msgspec.Struct, frozen=True, kw_only=True):
    """Give an order to a node's agent."""

    node: NodeId
    api: ApiKey
    order: Order


class RouteApi(msgspec.Struct, frozen=True, kw_only=True):
    """Have every node send requests for an api where this says."""

    route: SetRoute

    @property
    def api(self) -> ApiKey:
        return self.route.api


class UnrouteApi(msgspec.Struct, frozen=True, kw_only=True):
    """Have no node know of an api any more."""

    api: ApiKey


class RecordExit(msgspec.Struct, frozen=True, kw_only=True):
    """Remember how an attempt ended. Recorded once for each (replica, attempt)."""

    api: ApiKey
    revision: Revision
    replica: ReplicaId
    attempt: int
    was_ready: bool
    exit: ExitReport
    peak_rss_bytes: int = 0


class RecordStop(msgspec.Struct, frozen=True, kw_only=True):
    """A replica saw rows disagree: its model is not batched on that runtime any more, by any api."""

    model: ModelKey
    stop: BatchingStop

    @property
    def api(self) -> ApiKey:
        return self.stop.api


class RecordReady(msgspec.Struct, frozen=True, kw_only=True):
    """This replica became ready after failed starts: they count from zero again."""

    api: ApiKey
    revision: Revision
    replica: ReplicaId


class MarkServing(msgspec.Struct, frozen=True, kw_only=True):
    """
    The wanted build carries the api alone, with at least one ready replica, but not yet at full size.

    From now on it is what a failing later version goes back to.
    """

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


class MarkAwake(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody has knocked at an api that sleeps."""

    api: ApiKey
    waited_s: float = 0.0
    """How long ago, as far as is known."""


class GoBack(msgspec.Struct, frozen=True, kw_only=True):
    """The wanted build failed after it had taken over: the version that was live before comes back."""

    api: ApiKey
    revision: Revision
    to: Revision
    problem: Problem


Action = (
    AcquireLease
    | RecoverLease
    | ReleaseLease
    | OrderNode
    | RouteApi
    | UnrouteApi
    | RecordExit
    | RecordStop
    | RecordReady
    | MarkServing
    | MarkLive
    | MarkFailed
    | MarkAwake
    | GoBack
)


class Note(msgspec.Struct, frozen=True, kw_only=True):
    """Why nothing more happens to an api now, in words with numbers."""

    api: ApiKey
    text: str


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to do now, and when to look again even if nothing happens."""

    actions: tuple[Action, ...] = ()
    """In the sequence in which they are safe: an api's drains come after its routes, its releases last."""
    wake_after_s: float | None = None
    """Seconds until time alone changes the plan (a back-off ends); None: only events do."""
    notes: tuple[Note, ...] = ()

    def __bool__(self) -> bool:
        """Whether there is anything to do; an empty plan means settled."""
        return bool(self.actions)

    def describe(self) -> str:
        """One line for each action and note; for logs and dry runs."""
        lines = [describe(action) for action in self.actions]
        lines += [f"{note.api}: waits: {note.text}" for note in self.notes]
        if self.wake_after_s is not None:
            lines.append(f"look again in {self.wake_after_s:.3g} s")
        return "\n".join(lines) or "settled"


def describe(action: Action) -> str:
    """An action in words."""
    match action:
        case AcquireLease(request=asked):
            kinds = [word for word, holds in (("surge", asked.surge), ("minimum", asked.minimum)) if holds]
            kind = f" ({', '.join(kinds)})" if kinds else ""
            return f"{action.api}: ask for {room_text(asked.resources)} for {asked.replica}{kind}"
        case RecoverLease(lease=lease):
            room = f"{room_text(lease.request.resources)} on {lease.node}"
            return f"{action.api}: take back {room} for {lease.request.replica}, which runs there"
        case ReleaseLease(replica=replica):
            return f"{action.api}: release the room of {replica}"
        case OrderNode(node=node, order=order):
            return f"{action.api}: on {node}: {_describe_order(order)}"
        case RouteApi(route=route):
            return f"{action.api}: {_describe_order(route)}"
        case UnrouteApi():
            return f"{action.api}: remove the route"
        case RecordExit(replica=replica, attempt=attempt, exit=report):
            return f"{action.api}: {replica} (attempt {attempt}) ended: {report.text}"
        case RecordStop(stop=stop):
            why = disagreement_text(stop.disagreement)
            return f"{action.api}: {stop.replica} batches no more: rows disagreed ({why})"
        case RecordReady(replica=replica):
            return f"{action.api}: {replica} is ready after failed starts"
        case MarkServing(revision=revision):
            return f"{action.api}: revision {short(revision)} carries the api"
        case MarkLive(revision=revision):
            return f"{action.api}: revision {short(revision)} is live"
        case MarkAwake():
            return f"{action.api}: somebody has knocked: it wakes"
        case MarkFailed(revision=revision, problem=problem):
            return f"{action.api}: revision {short(revision)} is given up: {problem.message}"
        case GoBack(revision=revision, to=to, problem=problem):
            return f"{action.api}: back from revision {short(revision)} to {short(to)}: {problem.message}"


def _describe_order(order: Order) -> str:
    match order:
        case StartReplica(replica=replica, attempt=attempt, devices=devices):
            return " on ".join((f"start {replica} (attempt {attempt})", *([", ".join(devices)] if devices else [])))
        case HoldSlot(replica=replica):
            return f"hold the slot of {replica}, which sleeps"
        case SetReplicaBatching(replica=replica, batches=batches):
            return f"have {replica} {'batch' if batches.batches else 'not batch'}"
        case DrainReplica(replica=replica, timeout_s=timeout_s):
            return f"drain {replica} (at most {timeout_s:g} s)"
        case ForgetReplica(replica=replica):
            return f"forget {replica}"
        case SetRoute(path=path, targets=targets, hold=hold):
            return f"route {path} to {', '.join(targets) or 'nobody'}{'' if hold else ', holding nothing'}"
        case RemoveRoute():
            return "remove the route"
        case SetRoutes(routes=routes, removed=removed):
            return f"set {len(routes)} routes, remove {len(removed)}"


def room_text(resources: Resources) -> str:
    """`200m cpu, 512Mi mem, 1 gpu`."""
    words = [f"{resources.cpu_millis}m cpu"]
    if resources.mem_bytes is not None:
        words.append(f"{mem_text(resources.mem_bytes)} mem")
    if resources.gpus:
        words.append(f"{resources.gpus} gpu")
    return ", ".join(words)
