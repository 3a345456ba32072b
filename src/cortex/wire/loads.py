"""
How much the replicas of a node have to do: counters with the instant at which they were read, every half second.

Counters only grow. What a replica did before it was ready is in none of them, and what is under way is in them as far
as it has come; so a difference of two readings says what happened between their instants, and nothing has to be known
of what lies before or after.
"""

from __future__ import annotations

import msgspec

from cortex.ids import ApiKey, NodeId, ReplicaId, Revision

HANDLER = "handler"
"""The row of seats for handler code: one, or so many threads or tasks as `concurrency` says."""
MODEL = "model"
"""The model's own thread: one seat, busy only while there is room in its run for no other request, or one waits."""
LOOP = "loop"
"""The main thread: one seat, busy while it computes."""


class SeatReading(msgspec.Struct, frozen=True, kw_only=True):
    """One row of a replica's seats. A request needs one of each row; the fullest row is what limits a replica."""

    row: str
    seats: int
    busy_s: float
    """Seat-seconds, those of requests under way included."""
    ended_busy_s: float
    """Seat-seconds of requests that have ended: over those that ended, what one costs."""
    full_s: float
    """Seconds in which no seat was free."""


class LoadReading(msgspec.Struct, frozen=True, kw_only=True):
    """One replica, at one instant."""

    replica: ReplicaId
    api: ApiKey
    revision: Revision
    attempt: int
    at_s: float
    """Monotonic seconds of the node."""
    ready_s: float
    """Likewise: when it became ready, and all that follows began at 0."""
    rows: tuple[SeatReading, ...]
    ended: int
    """Requests that have ended."""
    ended_s: float
    """Seconds that those spent in the replica, waiting for a seat included."""
    in_flight: int
    cpu_s: float
    """Of its process and of those that come of it."""
    runnable_s: float = 0.0
    """Seconds in which its main thread could have run, and had no processor."""


class DoorReading(msgspec.Struct, frozen=True, kw_only=True):
    """What came to the ingress for one api."""

    api: ApiKey
    begun: int
    """Requests so far, those that it refused included."""
    queued: int
    """Requests that wait for a replica now."""
    given: int = 0
    """Requests that replicas have now, also where they have not read them yet; 0 where it is not known."""


class NodeLoads(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that was read on a node at one time."""

    node: NodeId
    agent: str
    """Identifies the agent process: with another one the counters of the door begin anew."""
    at_s: float
    """Monotonic seconds of the node, of the readings of the door."""
    replicas: tuple[LoadReading, ...] = ()
    doors: tuple[DoorReading, ...] = ()
    busy_cpu_s: float = 0.0
    """Seconds of processor that anything on the node has used since it booted."""
