"""
How much each api had to do lately: readings of nodes in, figures of windows that end now out. No I/O, no clock.

For each api and node sums are kept, which only grow, and what they were every half second for as long as the longest
window; of a replica nothing but its last reading. So what a replica did is not lost with it, and a window is the
difference of two sums, however many replicas there are.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from operator import sub

import msgspec

from cortex.ids import ApiKey, NodeId, ReplicaId
from cortex.wire.loads import HANDLER, LOOP, MODEL, DoorReading, LoadReading, NodeLoads, SeatReading

WINDOWS_S = (2.0, 5.0, 10.0, 30.0)
"""
What an api does is judged by the shortest window that has seen `ENOUGH_BEGUN` requests: a busy one within seconds, a
quiet one, whose seconds differ by chance, over half a minute. A window of 2 s alone hunts: of ten requests in a second
their number in it varies by a fifth.
"""
LONGEST_S = WINDOWS_S[-1]
SUDDEN_S = 1.0
"""What comes all of a sudden is seen sooner in this."""
ENOUGH_BEGUN = 20
PROCESSOR_S = 5.0
"""Over how long the use of the processor by the machine and by apis is compared."""
ALWAYS = 0.9
"""Every seat was busy all the time if in so much of it: between two requests a seat is free for a moment."""
CLOSEST_S = 0.25
"""A reading that comes sooner after another is left out: counters only grow, so the next one says it as well."""
UNSEEN_S = 2.0
"""A replica that is first read when it has been ready for no longer counts from when it became so."""

ROWS = (HANDLER, MODEL, LOOP)

_BEGUN, _ENDED, _ENDED_S, _CPU_S, _RUNNABLE_S, _READY_S = range(6)
_FIRST_ROW = 6
_ENDED_BUSY, _FULL = 1, 2
_NUMBERS = {row: number for number, row in enumerate(ROWS)}
_WIDTH = _FIRST_ROW + 3 * len(ROWS)
"""Sums of one api on one node, in this order: those above, then for each row of seats busy, ended and full ones."""
_FIRST_PLACES = range(_FIRST_ROW, _WIDTH, 3)
_NOTHING = SeatReading(row="", seats=0, busy_s=0.0, ended_busy_s=0.0, full_s=0.0)


class RowLoad(msgspec.Struct, frozen=True, kw_only=True):
    """A row of seats of all replicas of an api, in a window."""

    row: str
    seats: int
    """Of one replica."""
    busy_s: float
    ended_busy_s: float
    """Seat-seconds of the requests that ended."""
    full_s: float
    """Replica-seconds in which no seat was free."""


class LoadWindow(msgspec.Struct, frozen=True, kw_only=True):
    """What happened to an api in the `seconds` before now."""

    seconds: float
    """0 as long as there is only one reading: then nothing is known."""
    begun: int = 0
    """Requests that came, those that were refused included."""
    ended: int = 0
    ended_s: float = 0.0
    """Seconds that those which ended spent in a replica."""
    cpu_s: float = 0.0
    runnable_s: float = 0.0
    """Seconds in which main threads had to wait for a processor."""
    ready_s: float = 0.0
    """Seconds of ready replicas, summed."""
    rows: tuple[RowLoad, ...] = ()

    @property
    def ready_mean(self) -> float:
        """How many replicas were ready, on average."""
        return self.ready_s / self.seconds if self.seconds else 0.0

    @property
    def always_full(self) -> bool:
        """Every seat of some row was busy for the whole window."""
        return self.ready_s > 0 and any(row.full_s >= ALWAYS * self.ready_s for row in self.rows)


class RowCost(msgspec.Struct, frozen=True, kw_only=True):
    """What one request takes of a row of seats."""

    row: str
    seats: int
    busy_s: float
    """Without the time in which the main thread waited for a processor."""


class Costs(msgspec.Struct, frozen=True, kw_only=True):
    """What one request takes, on average."""

    rows: tuple[RowCost, ...]
    cpu_s: float
    in_replica_s: float
    """From coming to a replica to its answer, but for waiting for a seat."""
    replica_s: float
    """How long one replica would be at it if it did nothing else: the most that a row takes, over its seats."""
    fullest: str
    """The row which that is."""

    @property
    def burn(self) -> float:
        """Processors that one fully used replica takes: at most 1, since Python in one process computes by turns."""
        return min(1.0, self.cpu_s / self.replica_s) if self.replica_s > 0 else 1.0


class ApiLoad(msgspec.Struct, frozen=True, kw_only=True):
    """What the number of replicas of an api follows from: what comes, lately and for long, and what it costs."""

    api: ApiKey
    queued: int
    """Requests that wait at the ingress now."""
    in_flight: int
    """Requests that are in replicas now, those that wait there for a seat included."""
    ready: int
    """Replicas that are ready now."""
    seconds: float
    """The shortest of the windows that has seen enough; what follows happened in it. 0: nothing is known yet."""
    begun: int
    cpu_s: float
    ready_s: float
    """Seconds of ready replicas, summed."""
    always_full: bool
    """Every seat was busy for the whole of it: callers may wait in replicas, where the ingress sees no queue."""
    sudden_seconds: float
    sudden_begun: int
    """In a window of `SUDDEN_S`."""
    sudden_full: bool
    """As `always_full`, in that window."""
    long_seconds: float
    """The longest window, or as much of it as has been read."""
    long_begun: int
    long_ended: int
    seats: int
    """Of one replica, in its largest row; 0: none has been read."""
    costs: Costs | None = None
    """Over the longest window, of however few have ended in it; None: none has."""
    cores: float = 0.0
    """Processors that its replicas use, over `PROCESSOR_S`."""
    sudden_cores: float = 0.0
    """Likewise, over `SUDDEN_S`."""

    @property
    def waiting(self) -> float:
        """
        Requests that have no seat now, beyond those that have none by chance.

        Source:
            How many there are at one time is Poisson's, as what comes by chance: more than there are seats, by the root
            of that, are no sign that seats are too few.
        """
        seats = self.ready * self.seats
        return max(0.0, self.queued + max(0, self.in_flight - seats) - math.sqrt(seats))


class Loads:
    """What all readings come to. Not thread-safe."""

    def __init__(self) -> None:
        self._nodes: dict[NodeId, _NodeTrack] = {}
        self._lately: dict[ApiKey, ApiLoad] | None = {}

    def take(self, loads: NodeLoads) -> None:
        """Take in what a node reads now; one that is not newer than the last one is ignored."""
        track = self._nodes.get(loads.node)
        if track is None or (loads.agent != track.agent and loads.at_s < track.at_s):  # a new one, or it has booted
            track = self._nodes[loads.node] = _NodeTrack(loads.agent)
        elif loads.at_s < track.at_s + CLOSEST_S:
            return
        track.take(loads)
        self._lately = None

    def keep_nodes(self, nodes: Iterable[NodeId]) -> None:
        """Forget all others: they are gone, and what their last reading said is no longer so."""
        gone = self._nodes.keys() - set(nodes)
        for node in gone:
            del self._nodes[node]
        if gone:
            self._lately = None

    def lately(self) -> dict[ApiKey, ApiLoad]:
        """By api; computed once after each reading."""
        if self._lately is None:
            of_api: dict[ApiKey, list[tuple[_NodeTrack, _ApiTrack]]] = {}
            for node in self._nodes.values():
                for api, track in node.apis.items():
                    of_api.setdefault(api, []).append((node, track))
            self._lately = {api: _load(api, tracks) for api, tracks in of_api.items()}
        return self._lately

    def over(self, api: ApiKey, window_s: float) -> LoadWindow:
        """
        What happened to an api in the seconds before now.

        Args:
            window_s: at most `LONGEST_S`. The window begins at the reading that is nearest to that, so where nothing
                happens and readings come rarely it may be longer or shorter.
        """
        tracks = [(node, node.apis[api]) for node in self._nodes.values() if api in node.apis]
        return _window(tracks, window_s) if tracks else LoadWindow(seconds=0.0)

    def ended(self, api: ApiKey) -> float:
        """Predictions of an api that have ended since it was first read; only ever grows, for as long as nodes stay."""
        return sum(node.apis[api].sums[_ENDED] for node in self._nodes.values() if api in node.apis)

    @property
    def busy_cores(self) -> float:
        """Processors in use by anything on the machine that the nodes are, ours or not, over `PROCESSOR_S`."""
        return max((track.busy_cores for track in self._nodes.values()), default=0.0)


class _ApiTrack:
    """One api on one node."""

    __slots__ = ("begun", "given", "in_flight", "kept", "queued", "ready", "seats", "seen_s", "sums")

    def __init__(self, *, of_known_node: bool) -> None:
        self.sums = [0.0] * _WIDTH
        self.kept = array("d", self.sums if of_known_node else [])
        """The sums at each of the node's instants, the newest last; of a new api, from the one before it on."""
        self.seats = [0] * len(ROWS)
        self.begun: int | None = 0 if of_known_node else None
        """As the door last read it. None: whatever it reads first is of another time."""
        self.queued = self.given = self.in_flight = self.ready = 0
        self.seen_s = 0.0


class _NodeTrack:
    """One node, on its own monotonic clock, since it booted or was first read."""

    def __init__(self, agent: str) -> None:
        self.agent = agent
        self.at_s = float("-inf")
        self.apis: dict[ApiKey, _ApiTrack] = {}
        self._last: dict[ReplicaId, LoadReading] = {}
        self._instants: list[float] = []
        self._busy_cpu_s: list[float] = []
        self._starts: dict[float, int] = {}

    # ---- taking in ----------------------------------------------------------------------------------------------

    def take(self, loads: NodeLoads) -> None:
        before_s, self.at_s = self.at_s, loads.at_s
        for track in self.apis.values():
            track.queued = track.given = track.in_flight = track.ready = 0
            if loads.agent != self.agent:
                track.begun = 0
        self.agent = loads.agent
        for door in loads.doors:
            self._take_door(door, before_s)
        for reading in loads.replicas:
            self._take_replica(reading, before_s)
        self._forget(loads)
        self._keep(loads)

    def _take_door(self, door: DoorReading, before_s: float) -> None:
        track = self._track(door.api, before_s)
        if track.begun is not None:
            track.sums[_BEGUN] += door.begun - track.begun if door.begun >= track.begun else door.begun
        track.begun = door.begun
        track.queued = door.queued
        track.given = door.given

    def _take_replica(self, reading: LoadReading, before_s: float) -> None:
        track = self._track(reading.api, before_s)
        track.ready += 1
        track.in_flight += reading.in_flight
        last = self._last.get(reading.replica)
        self._last[reading.replica] = reading
        if last is not None and (last.attempt, last.ready_s) == (reading.attempt, reading.ready_s):
            track.sums[_READY_S] += self.at_s - max(before_s, reading.ready_s)
            if reading.at_s > last.at_s:
                _add(track, reading, last)
        elif last is not None or reading.ready_s >= before_s - UNSEEN_S > float("-inf"):
            track.sums[_READY_S] += max(0.0, self.at_s - reading.ready_s)
            _add(track, reading, None)
        else:
            _add(track, reading, reading)

    def _track(self, api: ApiKey, before_s: float) -> _ApiTrack:
        track = self.apis.get(api)
        if track is None:
            track = self.apis[api] = _ApiTrack(of_known_node=before_s > float("-inf"))
        track.seen_s = self.at_s
        return track

    def _forget(self, loads: NodeLoads) -> None:
        """Replicas and apis that no reading has named for as long as the longest window."""
        past_s = self.at_s - LONGEST_S
        if len(self._last) > len(loads.replicas):
            for replica in [replica for replica, last in self._last.items() if last.at_s < past_s]:
                del self._last[replica]
        for api in [api for api, track in self.apis.items() if track.seen_s < past_s]:
            del self.apis[api]

    def _keep(self, loads: NodeLoads) -> None:
        self._instants.append(self.at_s)
        self._busy_cpu_s.append(loads.busy_cpu_s)
        surplus = max(0, bisect_right(self._instants, self.at_s - LONGEST_S) - 1)
        del self._instants[:surplus], self._busy_cpu_s[:surplus]
        longest = len(self._instants) * _WIDTH
        for track in self.apis.values():
            track.kept.extend(track.sums)
            if len(track.kept) > longest:
                del track.kept[:-longest]
        self._starts = {}

    # ---- answering ----------------------------------------------------------------------------------------------

    @property
    def busy_cores(self) -> float:
        start = self._start(PROCESSOR_S)
        seconds = self.at_s - self._instants[start]
        return max(0.0, (self._busy_cpu_s[-1] - self._busy_cpu_s[start]) / seconds) if seconds > 0 else 0.0

    def growth(self, track: _ApiTrack, window_s: float) -> tuple[float, list[float]]:
        """How long such a window really is, and what each sum grew by in it."""
        kept, row = track.kept, self._row(track, window_s)
        seconds = self.at_s - self._instants[(row - len(kept)) // _WIDTH]
        return seconds, list(map(sub, track.sums, kept[row : row + _WIDTH]))

    def cores(self, track: _ApiTrack) -> float:
        """Processors that an api uses."""
        row = self._row(track, PROCESSOR_S)
        seconds = self.at_s - self._instants[(row - len(track.kept)) // _WIDTH]
        return (track.sums[_CPU_S] - track.kept[row + _CPU_S]) / seconds if seconds > 0 else 0.0

    def begun(self, track: _ApiTrack, window_s: float) -> float:
        return track.sums[_BEGUN] - track.kept[self._row(track, window_s) + _BEGUN]

    def _start(self, window_s: float) -> int:
        """Which of the instants such a window begins at: the one that is nearest, and never the last."""
        start = self._starts.get(window_s)
        if start is None:
            instants, wanted_s = self._instants, self.at_s - window_s
            start = min(bisect_left(instants, wanted_s), max(0, len(instants) - 2))
            if start and wanted_s - instants[start - 1] < instants[start] - wanted_s:
                start -= 1
            self._starts[window_s] = start
        return start

    def _row(self, track: _ApiTrack, window_s: float) -> int:
        """Where in the sums kept of an api those stand that such a window begins with."""
        unread = len(self._instants) - len(track.kept) // _WIDTH
        return max(0, self._start(window_s) - unread) * _WIDTH


def _add(track: _ApiTrack, now: LoadReading, before: LoadReading | None) -> None:
    """
    What a replica did since another reading of the same attempt, or since it became ready.

    A counter that fell, which none should, adds nothing.
    """
    sums = track.sums
    if before is None:
        before = msgspec.structs.replace(now, rows=(), ended=0, ended_s=0.0, cpu_s=0.0, runnable_s=0.0)
    if now.ended > before.ended:
        sums[_ENDED] += now.ended - before.ended
    if now.ended_s > before.ended_s:
        sums[_ENDED_S] += now.ended_s - before.ended_s
    if now.cpu_s > before.cpu_s:
        sums[_CPU_S] += now.cpu_s - before.cpu_s
    if now.runnable_s > before.runnable_s:
        sums[_RUNNABLE_S] += now.runnable_s - before.runnable_s
    alike = len(now.rows) == len(before.rows)
    for index, row in enumerate(now.rows):
        old = before.rows[index] if alike else _NOTHING
        number = _NUMBERS.get(row.row)
        if number is None:
            continue
        track.seats[number] = row.seats
        place = _FIRST_ROW + 3 * number
        if row.busy_s > old.busy_s:
            sums[place] += row.busy_s - old.busy_s
        if row.ended_busy_s > old.ended_busy_s:
            sums[place + _ENDED_BUSY] += row.ended_busy_s - old.ended_busy_s
        if row.full_s > old.full_s:
            sums[place + _FULL] += row.full_s - old.full_s


def _load(api: ApiKey, tracks: list[tuple[_NodeTrack, _ApiTrack]]) -> ApiLoad:
    long_seconds, long = _growth(tracks, LONGEST_S)
    seconds, recent = long_seconds, long
    if long[_BEGUN] >= ENOUGH_BEGUN:
        recent_s = next(
            window_s for window_s in WINDOWS_S if sum([node.begun(of, window_s) for node, of in tracks]) >= ENOUGH_BEGUN
        )
        if recent_s < LONGEST_S:
            seconds, recent = _growth(tracks, recent_s)
    sudden_seconds, sudden = _growth(tracks, SUDDEN_S)
    seats = _seats(tracks)
    return ApiLoad(
        api=api,
        queued=sum([of.queued for _, of in tracks]),
        in_flight=max(sum([of.in_flight for _, of in tracks]), sum([of.given for _, of in tracks])),
        ready=sum([of.ready for _, of in tracks]),
        seconds=seconds,
        begun=round(recent[_BEGUN]),
        cpu_s=recent[_CPU_S],
        ready_s=recent[_READY_S],
        always_full=_is_full(recent),
        sudden_seconds=sudden_seconds,
        sudden_begun=round(sudden[_BEGUN]),
        sudden_full=_is_full(sudden),
        long_seconds=long_seconds,
        long_begun=round(long[_BEGUN]),
        long_ended=round(long[_ENDED]),
        seats=max(seats),
        costs=_costs(long, seats) if long[_ENDED] else None,
        cores=sum([node.cores(of) for node, of in tracks]),
        sudden_cores=sudden[_CPU_S] / sudden_seconds if sudden_seconds > 0 else 0.0,
    )


def _is_full(grown: list[float]) -> bool:
    return grown[_READY_S] > 0 and max(grown[_FIRST_ROW + _FULL :: 3]) >= ALWAYS * grown[_READY_S]


def _costs(grown: list[float], seats: list[int]) -> Costs:
    """
    What one request took.

    Of processor time the part that ended requests had of seat-seconds: all of it, over those that ended, would be too
    much while long ones are under way.
    """
    ended = grown[_ENDED]
    rows = []
    replica_s = most_s = in_seats_s = 0.0
    ended_part, fullest = 1.0, ""
    for name, place, of_row in zip(ROWS, _FIRST_PLACES, seats, strict=True):
        if not of_row:
            continue
        busy_s, ended_busy_s = grown[place], grown[place + _ENDED_BUSY]
        waited = min(1.0, grown[_RUNNABLE_S] / busy_s) if name == HANDLER and busy_s > 0 else 0.0
        each_s = ended_busy_s / ended * (1.0 - waited)
        rows.append(RowCost(row=name, seats=of_row, busy_s=each_s))
        if each_s > replica_s * of_row:
            replica_s, fullest = each_s / of_row, name
        if ended_busy_s > most_s:
            most_s, ended_part = ended_busy_s, min(1.0, ended_busy_s / busy_s) if busy_s > 0 else 1.0
        if name != LOOP or not in_seats_s:
            in_seats_s += each_s
    in_replica_s = grown[_ENDED_S] / ended
    return Costs(
        rows=tuple(rows),
        cpu_s=grown[_CPU_S] * ended_part / ended,
        in_replica_s=min(in_replica_s, in_seats_s) if in_seats_s > 0 else in_replica_s,
        replica_s=replica_s,
        fullest=fullest,
    )


def _window(tracks: list[tuple[_NodeTrack, _ApiTrack]], window_s: float) -> LoadWindow:
    seconds, grown = _growth(tracks, window_s)
    return LoadWindow(
        seconds=seconds,
        begun=round(grown[_BEGUN]),
        ended=round(grown[_ENDED]),
        ended_s=grown[_ENDED_S],
        cpu_s=grown[_CPU_S],
        runnable_s=grown[_RUNNABLE_S],
        ready_s=grown[_READY_S],
        rows=tuple(
            RowLoad(
                row=name,
                seats=of_row,
                busy_s=grown[place],
                ended_busy_s=grown[place + _ENDED_BUSY],
                full_s=grown[place + _FULL],
            )
            for name, place, of_row in zip(ROWS, _FIRST_PLACES, _seats(tracks), strict=True)
            if of_row
        ),
    )


def _growth(tracks: list[tuple[_NodeTrack, _ApiTrack]], window_s: float) -> tuple[float, list[float]]:
    """How long a window is, and what each sum grew by in it: on all nodes, whose windows differ by moments only."""
    if len(tracks) == 1:
        node, of = tracks[0]
        return node.growth(of, window_s)
    parts = [node.growth(of, window_s) for node, of in tracks]
    return max(seconds for seconds, _ in parts), [
        sum(column) for column in zip(*(grown for _, grown in parts), strict=True)
    ]


def _seats(tracks: list[tuple[_NodeTrack, _ApiTrack]]) -> list[int]:
    """Of one replica, by row; a node may have the door alone."""
    if len(tracks) == 1:
        return tracks[0][1].seats
    return [max(row) for row in zip(*(of.seats for _, of in tracks), strict=True)]
