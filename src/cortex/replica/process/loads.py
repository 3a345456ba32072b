"""
Tells how much this replica has to do: from its rows and clocks into its page (`wire.loadpage`).

What is in no count (`Call.uncounted`) is no sign of load. The seats that it took were taken all the same, and the
processor that it used: so rows are busy with it, and it is missing in what requests had that have ended. By that part
the cost of a request is reckoned (`planning.load`).
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Sized
from pathlib import Path

from cortex.replica.prediction.seats import Workload
from cortex.wire.loadpage import SUFFIX, Load, LoadPage
from cortex.wire.loads import HANDLER, LOOP, MODEL, SeatReading


class LoadWriter:
    """
    Writes the page of this replica. Made on the main thread as the replica becomes ready, from when on all is counted.

    Args:
        stats_path: beside which the page lies; empty: nowhere.
        in_flight: the requests that are being worked on.
    """

    def __init__(self, stats_path: str, workload: Workload, in_flight: Sized) -> None:
        self._page = LoadPage(f"{stats_path}{SUFFIX}" if stats_path else "")
        self._workload = workload
        self._in_flight = in_flight
        self._main_clock = time.pthread_getcpuclockid(threading.get_ident())
        self._lock = threading.Lock()
        times = os.times()
        self._cpu_before_s = times.user + times.system + times.children_user + times.children_system
        self._runnable_before_s = _runnable_s()
        self._before = self._counted()
        self._uncounted_ended = workload.uncounted_ended
        self._uncounted_before = self._uncounted = (workload.uncounted_handler_s, workload.uncounted_model_s)
        self._uncounted_main_s = 0.0
        """Of the main thread's time, the part that seats were taken for what is in no count."""
        self._last = self._before
        self._written = self._before._replace(ready_s=self._before.at_s, ended=0, ended_s=0.0, rows=_NO_ROWS)
        self._written = self._since_ready()
        self._page.write(self._written)

    def write(self) -> bool:
        """
        Write the page, unless nothing has happened since it was written; returns whether anything has.

        From any thread. A request that was given up before it had a seat is nothing that has happened.
        """
        with self._lock:
            written, workload = self._written, self._workload
            nothing = self._before.ended + written.ended == workload.ended
            nothing = nothing and not written.in_flight and not self._in_flight_now()
            if nothing and self._uncounted_ended == workload.uncounted_ended:
                return False
            self._written = self._since_ready()
            self._page.write(self._written)
            return not nothing

    def _in_flight_now(self) -> int:
        """Without any that is in no count, also where such ones come and go meanwhile."""
        ended = self._workload.uncounted_ended
        in_flight = len(self._in_flight)
        return max(0, in_flight - (self._workload.uncounted_begun - ended))

    def _counted(self) -> Load:
        """Since the process began."""
        workload = self._workload
        ended, ended_s = workload.ended, workload.ended_s
        handler, model, main_s = workload.handler.read(), workload.model.read(), time.clock_gettime(self._main_clock)
        return Load(
            at_s=time.perf_counter(),
            ready_s=0.0,
            ended=ended,
            ended_s=ended_s,
            in_flight=self._in_flight_now(),
            cpu_before_s=self._cpu_before_s,
            runnable_before_s=self._runnable_before_s,
            rows=(
                _row(HANDLER, workload.handler.seats, handler.busy_s, workload.ended_handler_s, handler.full_s),
                _row(MODEL, workload.model.seats, model.busy_s, workload.ended_model_s, model.full_s),
                _row(LOOP, 1, main_s, main_s, main_s),  # nobody can say for which request it computed
            ),
        )

    def _since_ready(self) -> Load:
        workload = self._workload
        self._uncounted_ended = workload.uncounted_ended
        uncounted = (workload.uncounted_handler_s, workload.uncounted_model_s)
        now, before = self._counted(), self._before
        handler, _model, main = (_difference(*rows) for rows in zip(now.rows, self._last.rows, strict=True))
        if handler.busy_s > 0:
            part = min(1.0, (uncounted[0] - self._uncounted[0]) / handler.busy_s)
            self._uncounted_main_s += part * main.busy_s
        self._last, self._uncounted = now, uncounted
        handler, model, main = (_difference(*rows) for rows in zip(now.rows, before.rows, strict=True))
        handler_s, model_s = (is_now - was for is_now, was in zip(uncounted, self._uncounted_before, strict=True))
        main_s = main.busy_s - self._uncounted_main_s
        rows = (
            handler if handler.seats > 1 else _less_full(handler, handler_s),
            _less_full(model, model_s),
            _row(LOOP, 1, main.busy_s, main_s, main_s),
        )
        return now._replace(
            ready_s=before.at_s,
            ended=now.ended - before.ended,
            ended_s=now.ended_s - before.ended_s,
            rows=tuple(_not_below(row, earlier) for row, earlier in zip(rows, self._written.rows, strict=True)),
        )


def _row(row: str, seats: int, busy_s: float, ended_busy_s: float, full_s: float) -> SeatReading:
    return SeatReading(row=row, seats=seats, busy_s=busy_s, ended_busy_s=ended_busy_s, full_s=full_s)


def _difference(row: SeatReading, before: SeatReading) -> SeatReading:
    return _row(
        row.row,
        row.seats,
        row.busy_s - before.busy_s,
        row.ended_busy_s - before.ended_busy_s,
        row.full_s - before.full_s,
    )


def _less_full(row: SeatReading, uncounted_s: float) -> SeatReading:
    """A row of one seat, whose seat was not wanted by others while it was taken for what is in no count."""
    return _row(row.row, row.seats, row.busy_s, row.ended_busy_s, row.full_s - uncounted_s)


def _not_below(row: SeatReading, earlier: SeatReading) -> SeatReading:
    """The row, with no figure that has fallen: what is under way turns out to be in no count when it ends."""
    return _row(
        row.row,
        row.seats,
        row.busy_s,
        max(row.ended_busy_s, earlier.ended_busy_s),
        max(row.full_s, earlier.full_s),
    )


def _runnable_s() -> float:
    """
    For how long this process's first thread has waited for a processor.

    Source: Documentation/scheduler/sched-stats, /proc/<pid>/schedstat: the second number, in nanoseconds.
    """
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/self/schedstat").read_bytes().split()[1]) / 1e9
    return 0.0


_NO_ROWS = tuple(_row(name, 1, 0.0, 0.0, 0.0) for name in (HANDLER, MODEL, LOOP))
