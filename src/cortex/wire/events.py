"""
Events: one line each of what was decided about, or happened to, an api or the machine.

Whoever decides or does something tells it once, after it is done (`TellEvent`). The control plane keeps what is told,
and `cortex events` shows it. What holds for a while is told as a pair, a beginning and an end (`ENDS`): whoever looks
may tell what holds each time, and only what is new is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum

import msgspec

from cortex.ids import ApiKey, ReplicaId


class EventKind(StrEnum):
    """What was decided or happened."""

    DEPLOYED = "deployed"
    """A deploy changed the api: added it, gave it a new version, other resources or other settings."""
    DELETED = "deleted"
    """The api was deleted, or left out of its file."""
    LIVE = "live"
    """The wanted version serves at full size."""
    FAILED = "failed"
    """The wanted version could not go live, and was given up."""
    PROVED = "proved"
    """A change-over was watched by asking for the sample (`cortex deploy --prove`): the receipt."""
    ROLLED_BACK = "rolled back"
    """An older version is wanted again, by hand or by itself."""
    EXCUSED = "excused"
    """The version that went back by itself was not to blame: the one before fails as well."""
    SCALED = "scaled"
    """The number of replicas changed."""
    HELD = "held"
    """The load asks for more replicas than a bound lets it have."""
    RELEASED = "released"
    """No bound holds the number of replicas any more."""
    SLEPT = "slept"
    """Nobody had asked for a while: the api fell asleep."""
    WOKE = "woke"
    """Somebody asked while it slept, and a replica is ready."""
    REFUSING = "refusing"
    """Requests are told 503: there are more than replicas can do, or none is ready."""
    ACCEPTING = "accepting"
    """No request has been turned away for a while: that is over."""
    CRASHED = "crashed"
    """A replica ended unasked."""
    CRASHING = "crashing"
    """Replicas end again and again: three times within a minute."""
    RECOVERED = "recovered"
    """A minute has passed without such an end, or another version serves."""
    BATCHING_STOPPED = "batching stopped"
    """Rows were answered differently alone and together: requests go through the model one by one from now on."""
    MACHINE_FULL = "machine full"
    """A replica that is wanted has no room."""
    ROOM = "room"
    """Every replica that is wanted has room again."""
    DAMAGED = "damaged"
    """Stored bytes are not what they were."""
    REPAIRED = "repaired"
    """Damaged bytes were put right."""
    SECRET = "secret"
    """A secret was set or deleted."""
    STARTED = "started"
    """A process of Cortex was started: control plane, agent or ingress."""
    HUNG = "hung"
    """A process of Cortex did not answer, and was killed."""


ENDS: Mapping[EventKind, EventKind] = {
    EventKind.HELD: EventKind.RELEASED,
    EventKind.REFUSING: EventKind.ACCEPTING,
    EventKind.CRASHING: EventKind.RECOVERED,
    EventKind.MACHINE_FULL: EventKind.ROOM,
}
"""What holds from one event on, by its kind, and what ends it. A deleted api ends all of its own."""
COUNTED = frozenset(
    (
        *ENDS,
        *ENDS.values(),
        EventKind.CRASHED,
        EventKind.BATCHING_STOPPED,
        EventKind.DAMAGED,
        EventKind.STARTED,
        EventKind.HUNG,
    )
)
"""Of these the same thing that happens again soon is counted on its line. All others are lines of their own."""
BEGINNINGS: Mapping[EventKind, EventKind] = {end: begin for begin, end in ENDS.items()}


class Severity(StrEnum):
    INFO = "info"
    WARNING = "warning"
    """Worth a look: less is served than was asked for, or something was put right that should not have to be."""
    ERROR = "error"
    """Requests fail, or a version does."""


Detail = str | int | float | bool | None | tuple[str, ...]


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is told. Its instant is the one at which it is told."""

    kind: EventKind
    text: str
    """One line for people, with figures and the reason; the api is shown beside it."""
    api: ApiKey | None = None
    """None: it is about the machine."""
    severity: Severity = Severity.INFO
    version: str = ""
    """8 digits."""
    replica: ReplicaId | None = None
    details: dict[str, Detail] = {}
    """For programs: stable keys, with units in their names. Never a value of a secret."""
    same: str = ""
    """What makes two events of one kind and api the same thing that happens again; empty: the text. See `COUNTED`."""
    once: str = ""
    """What is told of one thing under a key is kept once, however often it is told."""


TellEvent = Callable[[Event], None]
"""Keeps an event. Raises nothing, and does not keep its caller waiting. From any thread."""


def told_to_nobody(event: Event) -> None:
    """For whoever is built where no events are kept."""
