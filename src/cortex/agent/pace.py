"""
How fast the replicas of an api do requests, and so how many more may wait in front of it. Pure.

A queue of about one second of work keeps replicas busy and answers in time; a longer one makes every caller wait for as
long as the queue is, and those that have less patience wait in vain. One that waits because nobody is ready yet, or any
more, is another matter: the queue of a route that is held is as long as there is room, and when a replica is back it
comes down to its bound before anybody is turned away for it.
"""

from __future__ import annotations

import itertools
import math

import msgspec

SHORTEST_QUEUE = 100
"""A burst that is not worth refusing, also of an api of which nothing is known yet."""
LONGEST_QUEUE = 2048
"""While nobody is ready to answer; see docs/limits.md for the connections that clients may have at all."""
QUEUE_S = 1.0
"""
Work that may wait.

Source: bench/overload.py: with clients that give up after 2 s and four times what a replica sustains, a queue of 2,048
leaves no answer in time, one of half a second to a second all that the replica can do.
"""
LONGEST_RETRY_AFTER_S = 30
"""Nobody waits longer in the queue (`IngressLimits.queue_timeout_s`)."""
AFTER_HOLD_S = 10.0
"""For at most so long a queue that filled up while nobody was ready may be longer than its bound."""
TOLERANCE = 0.1
"""By so much of it a bound has to be another one before the ingress is told."""
WINDOW_S = 2.0
"""A rate is one over so long: on a busy machine half a second is anything from a third to one."""


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """What was seen of an api at one instant."""

    at_s: float
    done: int
    """Requests that its replicas have answered so far."""
    queued: int
    """Those that wait in the ingress."""
    ready: int
    """Replicas that get requests."""
    start_s: float | None = None
    """What the start of one of them took; None: not known."""


class QueueBound(msgspec.Struct, frozen=True):
    """How many requests may wait, and when who is one too many may come again."""

    requests: int = SHORTEST_QUEUE
    retry_after_s: int = 1


HELD = QueueBound(LONGEST_QUEUE)


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of an api's pace."""

    seen: tuple[Look, ...] = ()
    """Since the number of ready replicas is what it is, at most those of `WINDOW_S`."""
    replica_rate: float = 0.0
    """Requests a second that one replica does; 0: not known."""
    bound: QueueBound = QueueBound()
    start_s: float = 0.0
    """What its last start took: who is refused while nobody is ready may come again after that."""
    after_hold_until_s: float = 0.0
    """Until then the queue may be one that filled up while nobody was ready."""


def followed(pace: Pace, look: Look) -> Pace:
    """What is known after one more look."""
    start_s = pace.start_s if look.start_s is None else look.start_s
    if look.ready == 0:
        until_s = look.at_s + AFTER_HOLD_S if look.queued else 0.0
        return msgspec.structs.replace(pace, seen=(), start_s=start_s, after_hold_until_s=until_s)
    seen = (*(had for had in pace.seen if had.ready == look.ready and look.at_s - had.at_s <= WINDOW_S), look)
    rate = _replica_rate(seen, pace.replica_rate)
    bound = pace.bound
    if rate > 0.0:
        now = queue_bound(rate * look.ready)
        if abs(now.requests - bound.requests) > TOLERANCE * bound.requests:
            bound = now
    until_s = pace.after_hold_until_s if look.queued >= bound.requests else 0.0
    return Pace(seen=seen, replica_rate=rate, bound=bound, start_s=start_s, after_hold_until_s=until_s)


def queue_bound(rate: float) -> QueueBound:
    """
    One second of work.

    Args:
        rate: requests a second that the ready replicas do, above 0.
    """
    requests = min(LONGEST_QUEUE, max(SHORTEST_QUEUE, round(rate * QUEUE_S)))
    return QueueBound(requests, _retry_after_s(requests / rate))


def bound_of(pace: Pace, ready: int, now_s: float) -> QueueBound:
    """How many may wait now, with so many replicas that get requests."""
    if ready == 0:
        return QueueBound(LONGEST_QUEUE, _retry_after_s(pace.start_s))
    return HELD if now_s < pace.after_hold_until_s else pace.bound


def _retry_after_s(wait_s: float) -> int:
    return min(LONGEST_RETRY_AFTER_S, max(1, math.ceil(wait_s - TOLERANCE)))


def _replica_rate(seen: tuple[Look, ...], known: float) -> float:
    """
    Requests a second of one replica.

    While somebody waits all the time, what is done is what can be done; otherwise it can do at least that.
    """
    busy = tuple(itertools.takewhile(lambda look: look.queued, reversed(seen)))
    if len(busy) > 1:
        return _done(busy[-1], busy[0])
    return max(known, _done(seen[0], seen[-1])) if seen[-1].at_s - seen[0].at_s >= 0.7 * WINDOW_S else known


def _done(before: Look, after: Look) -> float:
    """By one replica in a second."""
    return max(0, after.done - before.done) / max(0.001, after.at_s - before.at_s) / after.ready
