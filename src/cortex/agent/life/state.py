"""What is known of one attempt of a replica: frozen; each event makes the next one."""

from __future__ import annotations

from enum import Enum, IntEnum
from typing import Any, NamedTuple

import msgspec

from cortex.errors import Problem
from cortex.ids import ReplicaId
from cortex.processes import ProcessIdentity
from cortex.settings import Settings
from cortex.wire.batching import BatchingOrder, BatchingState
from cortex.wire.launch import ChildExited, ReplicaStatus
from cortex.wire.orders import StartReplica
from cortex.wire.reports import ExitReport, Phase, StartStep

LAUNCH_TRIES = 3


class Now(NamedTuple):
    """What holds as an event comes in."""

    s: float
    """Never goes back; durations are compared on this."""
    wall_s: float
    """For people; never compared."""
    settings: Settings


class Process(Enum):
    """Where the process of an attempt is; it only moves down this list, but for the second and the third."""

    PROVIDING = "providing"
    """What it needs is made ready; nobody has been asked for a process."""
    FORKING = "forking"
    """A launcher was asked: from now on only who asked can say whether there is one."""
    ORPHANED = "orphaned"
    """The launcher died over the fork: there is one if somebody has its control socket."""
    RUNNING = "running"
    """There is one, and its end will be noticed."""
    GONE = "gone"
    """It has ended; how is being found out."""
    READ = "read"
    """How it ended is known as far as it ever will be; what it left is being read."""
    OVER = "over"
    """There is none, and there never will be one."""


class Intent(IntEnum):
    """What is meant to become of it; only ever grows."""

    SERVE = 0
    LEAVE = 1
    """It ends in order, and not because it was ordered here."""
    END = 2
    """It is of no use and killed, although nobody has ordered that."""
    DRAIN = 3
    """It was ordered to finish what it holds and end."""
    FORGET = 4
    """It was ordered to end now and be forgotten, slot and all."""


class Line(Enum):
    """Our connection to its control socket."""

    DOWN = "down"
    CALLING = "calling"
    UP = "up"


class Stage(Enum):
    """How far a drain has come."""

    QUIETING = "quieting"
    """The ingress is to send it nothing more, and to have nothing there any more."""
    TELLING = "telling"
    """It is to be told, and cannot be reached yet."""
    TOLD = "told"
    """It ends, or is killed when its time is up."""


class Closing(Enum):
    """How far a forgotten one has come."""

    OPEN = "open"
    """Not forgotten."""
    LEAVING = "leaving"
    """The ingress has to let go of its slot: requests that wait there need somewhere else to go."""
    EMPTY = "empty"
    """Nobody waits in its slot; it is closed once there is no process."""
    CLOSED = "closed"


class Alarm(Enum):
    """What is to be done at a certain time, unless something happens before."""

    HOLD = "hold"
    """Requests have waited long enough for a successor."""
    QUIET = "quiet"
    """The ingress has had its share of a drain."""
    KILL = "kill"
    """It should have ended; again and again until it has."""
    WATCH = "watch"
    """Its end could not be watched for: try again."""
    ASK = "ask"
    """Who has its control socket did not answer: ask again."""
    ORPHAN = "orphan"
    """Whoever has its control socket has been asked for long enough."""
    LOOK = "look"
    """How it ended was not known yet: look again."""
    ROUTES = "routes"
    """The ingress has not let go of its slot in time."""


class Hold(msgspec.Struct, frozen=True, kw_only=True):
    """Its slot is in rotation, and has nobody to serve it."""

    since_s: float
    limit_s: float
    """For so long, at most, requests are held."""
    is_knock: bool = False
    """They came while it slept; else whoever served them has died."""
    is_over: bool = False
    """Nobody will come soon: requests are not held for this slot any more."""

    @property
    def until_s(self) -> float:
        return self.since_s + self.limit_s


class Draining(msgspec.Struct, frozen=True, kw_only=True):
    """An order to drain, under way."""

    timeout_s: float
    stage: Stage | None = None
    """None: there is no process yet that could be told."""
    until_s: float = 0.0
    """Requests have until then."""


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """What it is at while it starts."""

    doing: str = ""
    since_s: float
    since_wall_s: float
    """The same moment for people."""


class Life(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt of a replica."""

    order: StartReplica
    process: Process = Process.PROVIDING
    identity: ProcessIdentity | None = None
    intent: Intent = Intent.SERVE
    phase: Phase = Phase.STARTING
    phase_since_s: float
    progress: Progress
    started_wall_s: float
    was_ready: bool = False
    began_s: float | None = None
    """When it was ordered; None: a former agent knew."""
    start_s: float | None = None
    """From then to ready."""
    steps: tuple[StartStep, ...] = ()
    """What of that is over."""
    tries_left: int = LAUNCH_TRIES
    fault: Problem | None = None
    """What is held against it: why it was not forked, or why it was ended although nobody asked for that."""

    line: Line = Line.DOWN
    status: ReplicaStatus | None = None
    """What it said last."""
    told: BatchingOrder | None = None
    """What it was told about batches on this connection."""
    answered_s: float = 0.0
    heard: bool = False
    """It has answered since its health was checked last."""
    still_beats: int = 0
    """In so many answers in a row its event loop stood still."""

    hold: Hold | None = None
    drain: Draining | None = None
    end: ChildExited | None = None
    looks: int = 0
    """So often was looked for how it ended."""
    exit: ExitReport | None = None
    """There before `phase` says so while the end is noted in its log."""
    closing: Closing = Closing.OPEN
    owes_record: bool = False
    """What is on disk is out of date."""
    alarms: dict[Alarm, float] = {}
    """When each is due."""

    @property
    def id(self) -> ReplicaId:
        return self.order.replica

    @property
    def is_stuck(self) -> bool:
        """It sits in a handler that is over its time, and can look at nothing else."""
        return self.process is Process.RUNNING and self.status is not None and self.status.stuck

    @property
    def runs(self) -> bool:
        """As far as is known: whoever asks a moment later may find it gone."""
        return self.process is Process.RUNNING

    @property
    def is_launching(self) -> bool:
        """Whether there is a process is still open."""
        return self.process in (Process.PROVIDING, Process.FORKING, Process.ORPHANED)

    @property
    def is_ending(self) -> bool:
        """Its process has ended, or is killed: in a moment it is known how."""
        return self.process in (Process.GONE, Process.READ) or (self.runs and self.intent is Intent.END)

    @property
    def next_alarm_s(self) -> float | None:
        return min(self.alarms.values(), default=None)

    @property
    def news(self) -> tuple[object, ...]:
        """What others wait for: the control plane for what a report shows, the ingress for who is in rotation."""
        batching = self.status.batching if self.status is not None else None
        return (
            self.phase,
            self.intent,
            self.runs,
            self.was_ready,
            self.is_stuck,
            self.progress.doing,
            self.hold,
            self.order.batches,
            _without_counts(batching),
            self.phase is Phase.EXITED and self.exit,
        )


_OF_A_START = (Phase.STARTING, Phase.LOADING, Phase.WARMING)


def changed(life: Life, **fields: Any) -> Life:
    return msgspec.structs.replace(life, **fields)


def alarmed(life: Life, alarm: Alarm, at_s: float) -> Life:
    """Set an alarm, in place of the same one that was set before."""
    return changed(life, alarms={**life.alarms, alarm: at_s})


def silenced(life: Life, *alarms: Alarm) -> Life:
    return changed(life, alarms={alarm: at_s for alarm, at_s in life.alarms.items() if alarm not in alarms})


def in_phase(life: Life, phase: Phase, now: Now) -> Life:
    """Begin a phase."""
    if life.phase in _OF_A_START and life.began_s is not None:
        life = changed(life, steps=(*life.steps, StartStep(phase=life.phase, seconds=now.s - life.phase_since_s)))
    progress = msgspec.structs.replace(life.progress, since_s=now.s, since_wall_s=now.wall_s)
    life = changed(life, phase=phase, phase_since_s=now.s, progress=progress)
    return silenced(changed(life, hold=None), Alarm.HOLD) if phase is Phase.READY else life


def _without_counts(batching: BatchingState | None) -> BatchingState | None:
    """How many rows were looked at is no news."""
    return None if batching is None else msgspec.structs.replace(batching, guarded_rows=0)
