"""
Replicas with seats, and requests that wait for them: a model in steps, which reads as a real node does.

Requests come by chance. One takes up a seat for a while, and computes for a part of it; replicas share the processors
evenly, none uses more than one. What finds no seat waits in a replica as long as that takes connections, then in the
queue of the ingress; what finds that full is refused.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Iterable

import msgspec

from cortex.ids import ApiKey, NodeId, ReplicaId, Revision, replica_id
from cortex.wire.loads import HANDLER, LOOP, DoorReading, LoadReading, NodeLoads, SeatReading

QUEUE_LIMIT = 2048
"""Requests that may wait at the ingress for one api."""
CONNECTIONS = 40
"""Requests that the ingress gives to one replica at once, or as many as it has seats if these are more."""
NODE = NodeId("local")
REVISION = Revision("0" * 64)

_MANY = 30.0
"""Where so many are expected, how many come is as good as normal."""


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """What a request of an api takes, and what a replica of it has."""

    seat_s: float = 0.05
    cpu_s: float = 0.005
    """Of `seat_s`; the rest is waiting."""
    seats: int = 1
    start_s: float = 0.2
    """Until a replica is ready."""

    @property
    def sustained(self) -> float:
        """Requests a second that one replica can keep up with on an idle machine."""
        return 1 / max(self.seat_s / self.seats, self.cpu_s)


class Present(msgspec.Struct, frozen=True, kw_only=True):
    """A replica that is there, or on its way."""

    replica: ReplicaId
    revision: Revision = REVISION
    attempt: int = 1
    ready_s: float


class Queue:
    """
    One api: its replicas, what is under way in them, what waits.

    Args:
        rate: requests a second that come, at a second of the model.
    """

    def __init__(self, api: ApiKey, work: Work, rate: Callable[[float], float], chance: random.Random) -> None:
        self.api = api
        self.work = work
        self.begun = self.refused = self.ended = self.waiting = self.in_service = self.ready = 0
        self.closed = False
        """Nobody comes: it is known to no ingress."""
        self._rate = rate
        self._chance = chance
        self._replicas: list[_Replica] = []
        self._ordinals = 0
        self._under_way: deque[tuple[float, int, float]] = deque()
        """Until which progress, how many, since when; the first that ends is first, since all take as long."""
        self._progress_s = 0.0
        """Seconds of work that each seat got done."""
        self._carried = 0.0
        self._came = False
        self._counts = _Counts()
        """What has not been added to any replica's yet."""

    # ---- replicas -----------------------------------------------------------------------------------------------

    @property
    def moved(self) -> bool:
        """Something came, or is under way."""
        return self._came or self.in_service + self.waiting > 0

    @property
    def replicas(self) -> int:
        """Those that start among them."""
        return len(self._replicas)

    def add(self, now_s: float) -> None:
        name = replica_id(self.api, REVISION, self._ordinals)
        self._replicas.append(_Replica(Present(replica=name, ready_s=now_s + self.work.start_s)))
        self._ordinals += 1

    def have(self, present: Iterable[Present]) -> None:
        """These replicas, which are ready, and no others; one that was there before goes on counting."""
        known = {replica.present: replica for replica in self._replicas}
        self._replicas = [known.get(one) or _Replica(one) for one in present]
        self.ready = len(self._replicas)

    def give_up(self) -> int:
        """Who waits is refused. Returns how many."""
        given_up, self.waiting = self.waiting, 0
        self.refused += given_up
        return given_up

    def remove(self) -> None:
        """The newest one: if any still starts, it does. What it holds is finished."""
        self._replicas.pop()
        self.ready = min(self.ready, len(self._replicas))

    # ---- time ---------------------------------------------------------------------------------------------------

    def arrive(self, now_s: float, step_s: float) -> None:
        """What is ready, and what has come, at the beginning of a step."""
        if self.ready != len(self._replicas):
            self.ready = sum([replica.ready_s <= now_s + 1e-9 for replica in self._replicas])
        come = 0 if self.closed else self._come(self._rate(now_s) * step_s)
        self.begun += come
        self._came = come > 0
        room = max(0, QUEUE_LIMIT + self._held_by_replicas() - self.in_service - self.waiting)
        self.refused += max(0, come - room)
        self.waiting += min(come, room)

    def appetite(self, step_s: float) -> float:
        """Processors that each ready replica would use if there were no end of them."""
        if not self.ready:
            return 0.0
        if self._is_short(step_s):
            occupied = self.waiting * self.work.seat_s / step_s
        else:
            occupied = self.in_service + self.waiting
        return min(occupied / self.ready, self.work.seats) * self.work.cpu_s / self.work.seat_s

    def serve(self, now_s: float, step_s: float, slower: float) -> float:
        """
        What happens in a step.

        Args:
            slower: how many times as long computing takes as on a processor of one's own.

        Returns:
            Processor time that it used (s).
        """
        work, counts = self.work, self._counts
        takes_s = work.seat_s + work.cpu_s * (slower - 1)
        busy_before_s = counts.busy_s
        if self._is_short(step_s):
            self._serve_short(step_s, takes_s)
        else:
            self._serve_long(now_s, step_s, takes_s)
        busy_s = counts.busy_s - busy_before_s
        used_s = busy_s / takes_s * work.cpu_s
        counts.cpu_s += used_s
        if self.ready:
            at_once = max(1.0, busy_s / step_s / self.ready)
            counts.runnable_s += busy_s * (1 - work.seat_s / takes_s) / at_once
        counts.ended_s += max(0, min(self.waiting, self._held_by_replicas() - self.in_service)) * step_s
        return used_s

    def _serve_short(self, step_s: float, takes_s: float) -> None:
        """Many come and go in one step: each seat does as many as fit."""
        seats = self.ready * self.work.seats
        could = seats * step_s / takes_s + self._carried
        done = min(self.waiting, int(could))
        self._carried = could - done if self.waiting > done else 0.0
        self.waiting -= done
        self._end(done, done * takes_s)
        self._counts.busy_s += done * takes_s
        self._counts.full_s += self.ready * step_s if self.waiting else 0.0

    def _serve_long(self, now_s: float, step_s: float, takes_s: float) -> None:
        """What is under way goes on; a seat that gets free is taken at once."""
        work, under_way, counts = self.work, self._under_way, self._counts
        seats = self.ready * work.seats
        speed = work.seat_s / takes_s
        passed_s = 0.0
        while True:
            begin = min(self.waiting, seats - self.in_service)
            if begin > 0:
                under_way.append((self._progress_s + work.seat_s, begin, now_s + passed_s))
                self.in_service += begin
                self.waiting -= begin
            left_s = step_s - passed_s
            to_end_s = (under_way[0][0] - self._progress_s) / speed if under_way else math.inf
            spent_s = max(0.0, min(left_s, to_end_s))
            counts.busy_s += self.in_service * spent_s
            if self.in_service >= seats:
                counts.full_s += self.ready * spent_s
            self._progress_s += spent_s * speed
            passed_s += spent_s
            if to_end_s > left_s:
                return
            _, number, since_s = under_way.popleft()
            self.in_service -= number
            self._end(number, number * (now_s + passed_s - since_s))

    def _end(self, number: int, seat_s: float) -> None:
        self.ended += number
        self._counts.ended += number
        self._counts.ended_busy_s += seat_s
        self._counts.ended_s += seat_s

    def _is_short(self, step_s: float) -> bool:
        return self.work.seat_s < step_s

    def _held_by_replicas(self) -> int:
        return self.ready * max(CONNECTIONS, self.work.seats)

    def _come(self, expected: float) -> int:
        """
        A number that is Poisson's.

        Source:
            Knuth, The Art of Computer Programming, volume 2, section 3.4.1: products of uniform numbers.
        """
        if expected <= 0:
            return 0
        if expected > _MANY:
            return max(0, round(self._chance.gauss(expected, math.sqrt(expected))))
        least, product, number = math.exp(-expected), self._chance.random(), 0
        while product > least:
            product *= self._chance.random()
            number += 1
        return number

    # ---- readings -----------------------------------------------------------------------------------------------

    def door(self) -> DoorReading:
        return DoorReading(
            api=self.api,
            begun=self.begun,
            queued=max(0, self.waiting - max(0, self._held_by_replicas() - self.in_service)),
        )

    def readings(self, now_s: float) -> list[LoadReading]:
        """What each ready replica would say; what happened since the last time is split among them evenly."""
        ready = [replica for replica in self._replicas if replica.ready_s <= now_s + 1e-9]
        if not ready:
            return []
        in_replicas = self.in_service + max(0, min(self.waiting, self._held_by_replicas() - self.in_service))
        each, ended_more = self._counts.divided(len(ready))
        flights, more_flights = divmod(in_replicas, len(ready))
        self._counts = _Counts()
        readings = []
        for number, replica in enumerate(ready):
            counts = replica.counts
            counts.add(each)
            counts.ended += number < ended_more
            readings.append(
                LoadReading(
                    replica=replica.present.replica,
                    api=self.api,
                    revision=replica.present.revision,
                    attempt=replica.present.attempt,
                    at_s=now_s,
                    ready_s=replica.ready_s,
                    rows=self._rows(counts),
                    ended=counts.ended,
                    ended_s=counts.ended_s,
                    in_flight=flights + (number < more_flights),
                    cpu_s=counts.cpu_s,
                    runnable_s=counts.runnable_s,
                )
            )
        return readings

    def _rows(self, counts: _Counts) -> tuple[SeatReading, ...]:
        work = self.work
        handler = SeatReading(
            row=HANDLER,
            seats=work.seats,
            busy_s=counts.busy_s,
            ended_busy_s=counts.ended_busy_s,
            full_s=counts.full_s,
        )
        if work.seats == 1:
            return (handler,)
        computing_s = counts.cpu_s
        loop = SeatReading(row=LOOP, seats=1, busy_s=computing_s, ended_busy_s=computing_s, full_s=computing_s)
        return handler, loop


class _Replica:
    __slots__ = ("counts", "present", "ready_s")

    def __init__(self, present: Present) -> None:
        self.present = present
        self.ready_s = present.ready_s
        self.counts = _Counts()


class _Counts:
    """What a replica counts."""

    __slots__ = ("busy_s", "cpu_s", "ended", "ended_busy_s", "ended_s", "full_s", "runnable_s")

    def __init__(self) -> None:
        self.ended = 0
        self.busy_s = self.ended_busy_s = self.full_s = self.ended_s = self.cpu_s = self.runnable_s = 0.0

    def add(self, other: _Counts) -> None:
        self.ended += other.ended
        self.busy_s += other.busy_s
        self.ended_busy_s += other.ended_busy_s
        self.full_s += other.full_s
        self.ended_s += other.ended_s
        self.cpu_s += other.cpu_s
        self.runnable_s += other.runnable_s

    def divided(self, parts: int) -> tuple[_Counts, int]:
        """One part, and how many parts have one ended request more."""
        part = _Counts()
        part.ended, more = divmod(self.ended, parts)
        part.busy_s = self.busy_s / parts
        part.ended_busy_s = self.ended_busy_s / parts
        part.full_s = self.full_s / parts
        part.ended_s = self.ended_s / parts
        part.cpu_s = self.cpu_s / parts
        part.runnable_s = self.runnable_s / parts
        return part, more


class NodeModel:
    """
    A machine on which all of them run.

    Args:
        cores: processors.
        busy_cores: in use by what is none of ours, at a second of the model.
    """

    def __init__(
        self, queues: list[Queue], *, cores: float, busy_cores: Callable[[float], float] = lambda _at_s: 0.0
    ) -> None:
        self.queues = queues
        self.cores = cores
        self._busy_cores = busy_cores
        self.busy_cpu_s = 0.0
        """Used so far by anything on it."""

    @property
    def ready(self) -> int:
        """Replicas."""
        return sum([queue.ready for queue in self.queues])

    def step(self, now_s: float, step_s: float) -> None:
        for queue in self.queues:
            queue.arrive(now_s, step_s)
        appetites = [queue.appetite(step_s) for queue in self.queues]
        wants = [(min(1.0, appetite), queue.ready) for appetite, queue in zip(appetites, self.queues, strict=True)]
        busy_cores = self._busy_cores(now_s)
        others = math.ceil(busy_cores)
        if others:
            wants.append((busy_cores / others, others))
        share = even_share(wants, self.cores)
        self.busy_cpu_s += min(busy_cores, share * others) * step_s if others else 0.0
        for appetite, queue in zip(appetites, self.queues, strict=True):
            self.busy_cpu_s += queue.serve(now_s, step_s, max(1.0, appetite / min(1.0, share)))

    def read(self, now_s: float, agent: str = "model") -> NodeLoads:
        """What an agent on it would say."""
        return NodeLoads(
            node=NODE,
            agent=agent,
            at_s=now_s,
            replicas=tuple(reading for queue in self.queues for reading in queue.readings(now_s)),
            doors=tuple(queue.door() for queue in self.queues),
            busy_cpu_s=self.busy_cpu_s,
        )


def even_share(wants: list[tuple[float, int]], cores: float) -> float:
    """
    The most that any one may use so that all together use no more than there is; infinite where all get what they want.

    Args:
        wants: processors that each of so many wants.
    """
    if sum([want * number for want, number in wants]) <= cores:
        return math.inf
    left, remaining = cores, sum([number for _, number in wants])
    for want, number in sorted(wants):
        if want * remaining > left:
            break
        left -= want * number
        remaining -= number
    return left / remaining if remaining else math.inf
