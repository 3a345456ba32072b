"""When a worker is started, replaced, retired, asked whether it still answers, and ended. Pure: no I/O here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol, TypeVar

import msgspec

from cortex.clock import until_beat_s
from cortex.ingress.configuration import Tier
from cortex.ingress.convergence import Holdings
from cortex.ingress.files import WorkerName

FIRST_RESTART_S, LONGEST_RESTART_S = 0.1, 5.0
"""The first restart is at once, further ones wait for twice as long each time."""
SETTLED_AFTER_S = 10.0
"""A worker that ran this long had a good start: the next restart is at once."""


class IngressTimes(msgspec.Struct, frozen=True):
    """How often is looked, and what is waited for."""

    watch_s: float = 10.0
    """
    How often everything is looked at when nothing is known to be done; who was not heard of since is asked whether it
    still answers. The agent asks what was refused more often, and who does not answer that is looked at.
    """
    deaf_after_s: float = 10.0
    """A worker that runs but has not answered for this long is killed and started again."""
    leaving_poll_s: float = 0.25
    """How often is looked while servers, backends or workers are about to become free."""
    leaving_grace_s: float = 120.0
    """A replaced worker may live this much longer than the longest timeout of a route; then its connections are cut."""


class SeenWorker(Protocol):
    """What there is to know of a worker that runs; `workers.Worker` is one."""

    name: WorkerName
    digest: str
    pool_size: int
    answered_s: float
    holdings: Holdings | None
    leaving_until_s: float | None
    cut_off: bool


W = TypeVar("W", bound=SeenWorker)


class Start(msgspec.Struct, frozen=True):
    """Start a worker of a tier that has none."""

    tier: Tier


class Replace(msgspec.Struct, frozen=True):
    """Start a successor beside a worker, then let the old one finish what it has."""

    name: WorkerName


class Retire(msgspec.Struct, frozen=True):
    """Let a worker finish what it has."""

    name: WorkerName


def current(workers: Iterable[W], tier: Tier) -> W | None:
    """The worker that listens for a tier: the youngest, if a crash has left two."""
    found = [worker for worker in workers if worker.name.tier is tier and worker.leaving_until_s is None]
    return max(found, key=lambda worker: worker.name.generation, default=None)


def changes(
    workers: Sequence[SeenWorker], tiers: Sequence[Tier], digest: str, pool_size: int
) -> tuple[Start | Replace | Retire, ...]:
    """
    What it takes to have one worker in each wanted tier, started from `digest` and with such a pool, and no others.

    Returns:
        In the order in which they are to be carried out. One that fails keeps no other from it: the other tier serves
        most requests alone.
    """
    found: list[Start | Replace | Retire] = []
    for tier in tiers:
        worker = current(workers, tier)
        if worker is None:
            found.append(Start(tier))
        elif worker.cut_off or (worker.digest, worker.pool_size) != (digest, pool_size):
            found.append(Replace(worker.name))
    # A tier that is no longer wanted serves the old door until that has gone.
    old_door = any(worker.name.tier is Tier.DOOR and worker.leaving_until_s is not None for worker in workers)
    if not old_door and not any(isinstance(step, Replace) and step.name.tier is Tier.DOOR for step in found):
        found += [Retire(w.name) for w in workers if w.name.tier not in tiers and w.leaving_until_s is None]
    return tuple(found)


def pause_s(
    workers: Iterable[SeenWorker],
    due_s: Mapping[Tier, float],
    *,
    is_vacating: bool,
    now_s: float,
    times: IngressTimes,
) -> float:
    """
    How long nothing needs to be looked at, unless something happens.

    Args:
        due_s: tiers that lack a worker, with when they may have one.
        is_vacating: some backends of the pool are about to become free.
    """
    busy = is_vacating or any(w.leaving_until_s or w.holdings is None or w.holdings.retired for w in workers)
    pause = times.leaving_poll_s if busy else until_beat_s(now_s, times.watch_s)
    return min([pause, *(max(0.01, not_before_s - now_s) for not_before_s in due_s.values())])


def leaving_until_s(timeouts_s: Iterable[float], now_s: float, times: IngressTimes) -> float:
    """When the last connections of a worker are cut that is retired now: routes have these timeouts."""
    return now_s + max(timeouts_s, default=0.0) + times.leaving_grace_s


def has_left(worker: SeenWorker, connections: int, now_s: float) -> bool:
    """Whether a worker that was retired is to end: its last client has gone, or its time is up."""
    return not connections or (worker.leaving_until_s is not None and now_s >= worker.leaving_until_s)


def is_to_be_asked(worker: SeenWorker, now_s: float, times: IngressTimes) -> bool:
    """Whether it was not heard of for so long that it has to be asked whether it still answers."""
    return worker.holdings is None or now_s - worker.answered_s >= times.watch_s


def is_deaf(worker: SeenWorker, now_s: float, times: IngressTimes) -> bool:
    """Whether one that does not answer is to be killed."""
    return now_s - worker.answered_s >= times.deaf_after_s
