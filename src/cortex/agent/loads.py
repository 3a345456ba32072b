"""What the replicas of this node have to do, read from their pages and from what the kernel counts."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from cortex.agent.families import Families, FamilyMeter
from cortex.clock import Clock
from cortex.ids import ReplicaId
from cortex.processes import ProcessIdentity
from cortex.wire.loadpage import INTERVAL_S, Load, LoadPageReader
from cortex.wire.loads import LoadReading
from cortex.wire.orders import StartReplica

IDLE_LAG_S = 1.5 * INTERVAL_S
"""A page on which nothing is in flight says that nothing has happened until so long ago: else it would say so."""

IDLE_LOOK_S = 4.0
"""How often is looked what a replica uses in which nothing happens: that is most of what a reading costs, 0.1 ms."""


class Metered(NamedTuple):
    """A replica that can be read."""

    order: StartReplica
    identity: ProcessIdentity
    page: Path


class ReplicaLoads:
    """
    Reads the replicas of this node.

    Args:
        metered: those that are ready.
    """

    def __init__(self, metered: Callable[[], Iterable[Metered]], clock: Clock, families: Families) -> None:
        self._metered = metered
        self._clock = clock
        self._families = families
        self._meters: dict[tuple[ReplicaId, int, ProcessIdentity], _LoadMeter] = {}

    def have_moved(self) -> bool:
        """Whether anything has happened since `read` was called last, as far as pages say."""
        self._keep_meters()
        return any(meter.has_moved() for meter in self._meters.values())

    def read(self) -> tuple[LoadReading, ...]:
        """A replica that has not written its page yet is left out."""
        self._keep_meters()
        families = self._families.look([meter.pid for meter in self._meters.values()])
        readings = [meter.read(families[meter.pid], self._clock.monotonic_s()) for meter in self._meters.values()]
        return tuple(reading for reading in readings if reading is not None)

    def close(self) -> None:
        for meter in self._meters.values():
            meter.close()
        self._meters.clear()

    def _keep_meters(self) -> None:
        """One for each that can be read now."""
        wanted = {(one.order.replica, one.order.attempt, one.identity): one for one in self._metered()}
        for key in self._meters.keys() - wanted.keys():
            self._meters.pop(key).close()
        for key in wanted.keys() - self._meters.keys():
            with contextlib.suppress(OSError):  # not there yet, gone already, or we are out of descriptors
                self._meters[key] = _LoadMeter(wanted[key])


class _LoadMeter:
    """
    Reads one run of a replica.

    Raises:
        OSError: it has no page yet, or no process any more.
    """

    def __init__(self, metered: Metered) -> None:
        self._order = metered.order
        self.pid = metered.identity.pid
        self._load: Load | None = None
        """As of the last reading, like the others."""
        self._cpu_s: float | None = 0.0
        self._runnable_s = 0.0
        self._looked_s = float("-inf")
        with contextlib.ExitStack() as opened:
            self._page = LoadPageReader(metered.page)
            opened.callback(self._page.close)
            self._cpu = FamilyMeter(metered.identity)
            opened.callback(self._cpu.close)
            self._schedule: int | None = None
            with contextlib.suppress(FileNotFoundError):  # not every kernel has them
                self._schedule = os.open(f"/proc/{self.pid}/schedstat", os.O_RDONLY | os.O_CLOEXEC)
                opened.callback(os.close, self._schedule)
            self._opened = opened.pop_all()

    def close(self) -> None:
        self._opened.close()

    def has_moved(self) -> bool:
        now, before = self._page.read(), self._load
        return now is not None and (before is None or now.in_flight > 0 or now.ended != before.ended)

    def read(self, descendants: Sequence[int], now_s: float) -> LoadReading | None:
        """
        None: it has ended, or its page was never read.

        Args:
            now_s: monotonic.
        """
        load = self._page.read() or self._load
        if load is None:
            return None
        if load != self._load or load.in_flight or now_s - self._looked_s >= IDLE_LOOK_S:
            self._cpu_s, self._runnable_s, self._looked_s = self._cpu.read(descendants), self._waited_s(), now_s
        self._load = load
        if self._cpu_s is None:
            return None
        return LoadReading(
            replica=self._order.replica,
            api=self._order.build.api,
            revision=self._order.build.revision,
            attempt=self._order.attempt,
            at_s=load.at_s if load.in_flight else max(load.at_s, now_s - IDLE_LAG_S),
            ready_s=load.ready_s,
            rows=load.rows,
            ended=load.ended,
            ended_s=load.ended_s,
            in_flight=load.in_flight,
            cpu_s=max(0.0, self._cpu_s - load.cpu_before_s),
            runnable_s=max(0.0, self._runnable_s - load.runnable_before_s),
        )

    def _waited_s(self) -> float:
        """
        For how long its main thread has been ready to run, and had no processor.

        Source: Documentation/scheduler/sched-stats, /proc/<pid>/schedstat: the second number, in nanoseconds.
        """
        if self._schedule is not None:
            with contextlib.suppress(OSError, IndexError):
                return int(os.pread(self._schedule, 100, 0).split()[1]) / 1e9
        return self._runnable_s
