"""
How full a replica is: for how long the seats of each row were taken, and what those requests had that have ended.

Written on the way of each request, without locks; another thread may read at any instant, what is under way included.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from time import perf_counter
from typing import NamedTuple, Protocol

import numpy as np

from cortex.replica.calls import Call


class SeatUse(NamedTuple):
    """Of one row, since it was made."""

    busy_s: float
    """Seat-seconds."""
    full_s: float
    """Seconds in which no seat was free."""


class Seats(Protocol):
    """Seats of one kind."""

    seats: int

    def read(self) -> SeatUse:
        """As of now. By one thread at a time, whichever it is; neither figure ever falls."""
        ...


class LoneSeat:
    """A row of one seat, which one thread takes and leaves."""

    __slots__ = ("_clock", "seats", "use_s")

    def __init__(self, clock: Callable[[], float] = perf_counter) -> None:
        self.seats = 1
        self._clock = clock
        self.use_s = 0.0
        """
        While the seat is free: the seconds for which it was taken. While it is taken: the same less the instant since
        when, which is below 0, as no seat is taken for longer than the clock has run. One number, so that a reader
        never sees half a change.
        """

    def take(self, since_s: float) -> None:
        """Nobody is in it."""
        self.use_s -= since_s

    def leave(self, since_s: float) -> float:
        """Returns for how long it was taken; 0 if it is free already."""
        use_s = self.use_s
        if use_s >= 0:
            return 0.0
        now_s = self._clock()
        self.use_s = use_s + now_s
        return now_s - since_s

    def read(self) -> SeatUse:
        use_s = self.use_s  # before the clock: who comes in between is not there yet
        if use_s < 0:
            use_s += self._clock()
        return SeatUse(use_s, use_s)


class SeatRow:
    """
    A row of several seats, each taken and left by whatever thread.

    On the way of a request its instants are only noted; what they come to is reckoned by the reader, many at once.
    """

    def __init__(self, seats: int, clock: Callable[[], float] = perf_counter) -> None:
        self.seats = seats
        self._clock = clock
        self._moves: deque[float] = deque()
        """Instants, in about their order: those above 0 at which a seat was taken; below 0, less those at which one was
        left."""
        self._read_s = clock()
        self._taken = 0
        self._busy_s = self._full_s = 0.0

    def take(self) -> float:
        """Returns since when it is taken, for `leave`."""
        now_s = self._clock()
        self._moves.append(now_s)
        return now_s

    def leave(self, since_s: float) -> float:
        """Returns for how long it was taken."""
        now_s = self._clock()
        self._moves.append(-now_s)
        return now_s - since_s

    def read(self) -> SeatUse:
        noted = self._moves.popleft  # one by one, as others go on adding
        moves = np.array([noted() for _ in range(len(self._moves))])  # (n,)
        now_s = self._clock()
        instants = np.maximum(np.abs(moves), self._read_s)  # one that came late cannot change what was read
        order = np.argsort(instants, kind="stable")
        spans_s = np.diff(instants[order], prepend=self._read_s, append=now_s)  # (n + 1,)
        taken = self._taken + np.concatenate(([0], np.cumsum(np.sign(moves[order]))))  # (n + 1,)
        self._busy_s += float(spans_s @ taken)
        self._full_s += float(spans_s[taken >= self.seats].sum())
        self._taken = int(taken[-1])
        self._read_s = now_s
        return SeatUse(self._busy_s, self._full_s)


class Workload:
    """
    What a replica has had to do: its rows, and the requests that have ended.

    Args:
        handler: the row of handler code.
        model: the seat at the model's own thread.
    """

    def __init__(self, handler: Seats, model: LoneSeat, clock: Callable[[], float] = perf_counter) -> None:
        self.handler = handler
        self.model = model
        self._clock = clock
        self.ended = 0
        """Requests that had a seat, and whose code has ended."""
        self.ended_s = 0.0
        """Seconds that those were here."""
        self.ended_handler_s = 0.0
        """Seat-seconds that those had, in each row."""
        self.ended_model_s = 0.0
        self.uncounted_begun = 0
        """Requests that are in no count, each before it is here: no more of them are here than this less the next."""
        self.uncounted_ended = 0
        """Each after it has left."""
        self.uncounted_handler_s = 0.0
        """Seat-seconds that such requests had which have ended: rows hold them, `ended_…_s` do not."""
        self.uncounted_model_s = 0.0

    def note_end(self, call: Call) -> None:
        """A request's code has ended. One that was given up before it had a seat says nothing of what requests cost."""
        handler_s = call.handler_s
        if call.uncounted:
            self.uncounted_ended += 1
            self.uncounted_handler_s += handler_s
            self.uncounted_model_s += call.model_s
            return
        if handler_s:
            self.ended += 1
            self.ended_s += self._clock() - call.started_s
            self.ended_handler_s += handler_s
            if call.model_s:
                self.ended_model_s += call.model_s
