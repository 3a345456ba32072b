"""From a committed deploy to live or failed: pure judgement of what was seen, and the loop that waits for more."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

import msgspec

from cortex.client.operator import WATCH_S
from cortex.clock import Clock
from cortex.errors import Problem
from cortex.wire.operator import ApiChange, ApiStatus, ChangeKind, Status, Watched

NO_ROOM_PATIENCE_S = 30.0
"""How long "compute unavailable" may last before it counts as failed: replicas of other apis may be about to leave."""

REPLACED_AFTER_S = 5.0
"""
How long another version may be wanted before ours counts as replaced by another deploy; at once if ours was seen
before. The first look may still be of before the deploy.
"""

_NOT_FOLLOWED = frozenset({ChangeKind.REMOVED, ChangeKind.LEFT})
_FAILED = frozenset({Status.UPDATE_FAILED, Status.CRASHING, Status.ERROR, Status.OUT_OF_MEMORY})


class Outcome(StrEnum):
    """How far one api has come."""

    WAITING = "waiting"
    LIVE = "live"
    """The version that was deployed serves, or sleeps after it has shown that it does."""
    FAILED = "failed"
    """It will not serve without a change by the user."""
    STALLED = "stalled"
    """Nothing moved for as long as the caller was ready to wait."""


@dataclass(frozen=True)
class Followed:
    """One api of the deploy, as it stands."""

    name: str
    outcome: Outcome
    since_s: float
    """Monotonic: when it began to be followed."""
    until_s: float | None
    """When its outcome was known; None while it is waited for."""
    status: ApiStatus | None
    """As last seen; None before that, and after somebody removed the api."""
    had_to_wait: bool
    """False when it was live at first sight."""
    replaced: bool = False
    """Another deploy wants another version of it by now."""

    @property
    def is_done(self) -> bool:
        return self.outcome is not Outcome.WAITING

    def elapsed_s(self, now_s: float) -> float:
        return (now_s if self.until_s is None else self.until_s) - self.since_s

    def problem(self) -> Problem:
        """Why it failed: the control plane's own words where there are any."""
        if self.status is None:
            return Problem(
                reference="removed-meanwhile",
                subject=f'api "{self.name}"',
                message="it was removed while its new version was on the way",
            )
        if self.replaced and self.status.rolled_back:
            return Problem(
                reference="rolled-back-meanwhile",
                subject=f'api "{self.name}"',
                message=f"it went back to version {self.status.version[:8]} before this one was live"
                f": {self.status.rolled_back}",
                hint=f"`cortex history {self.status.deployment}/{self.name}` shows what became of it",
            )
        if self.replaced:
            return Problem(
                reference="replaced-meanwhile",
                subject=f'api "{self.name}"',
                message=f"another deploy replaced it by version {self.status.version[:8]} before it was live",
                hint="`cortex get` shows how that one does; deploy again for this one",
            )
        return problem_of(self.status)


def problem_of(status: ApiStatus) -> Problem:
    """What is wrong with an api, with the api named and a next step."""
    found = status.problem
    hint = f"`cortex logs {status.deployment}/{status.name}` shows what its replicas wrote"
    if status.status is Status.COMPUTE_UNAVAILABLE:
        hint = (
            "ask for less under `compute:`, or delete what you do not need: `cortex get -a` shows everything that runs"
        )
    subject = f'api "{status.name}"'
    if found is None:
        reference = str(status.status).replace(" (", "-").replace(")", "").replace(" ", "-")
        return Problem(
            reference=reference, subject=subject, message=status.reason or f"it is in status {status.status}", hint=hint
        )
    return msgspec.structs.replace(found, subject=found.subject or subject, hint=found.hint or hint)


def judge(status: ApiStatus, version: str) -> Outcome:
    """
    How far an api has come, from one look.

    Args:
        version: what was deployed, 8 digits or more; a status of another version is from before or after it.
    """
    if _is_other(status, version):
        return Outcome.WAITING
    if status.status in (Status.LIVE, Status.ASLEEP):
        return Outcome.WAITING if status.in_proof else Outcome.LIVE
    return Outcome.FAILED if status.status in _FAILED else Outcome.WAITING


def follow(
    watch: Callable[[str, float], Watched],
    changes: Iterable[ApiChange],
    *,
    deployment: str,
    patience_s: float,
    clock: Clock,
) -> Iterator[tuple[Followed, ...]]:
    """
    Yield every api that a deploy keeps, each time something was seen, until all are done.

    Args:
        watch: (token, timeout in seconds) → what differs from the token, as `OperatorClient.watch`.
        changes: of the deploy's result; apis that it removed or left alone are not waited for.
        patience_s: when nothing has moved for this long, those that still wait are `STALLED`.
    """
    begin_s = clock.monotonic_s()
    versions = {change.api: change.version for change in changes if change.kind not in _NOT_FOLLOWED}
    rows = {name: _unseen(name, begin_s) for name in versions}
    no_room_since: dict[str, float] = {}
    other_since: dict[str, float] = {}
    """When another version than ours was wanted first; -infinity once ours was seen."""
    token, moved_s, before, first = "", begin_s, None, True
    while not all(row.is_done for row in rows.values()):
        now_s = clock.monotonic_s()
        deadlines = [moved_s + patience_s, *(since_s + NO_ROOM_PATIENCE_S for since_s in no_room_since.values())]
        deadlines += [since_s + REPLACED_AFTER_S for since_s in other_since.values() if since_s > -math.inf]
        watched = watch(token, max(min(WATCH_S, min(deadlines) - now_s), 0.0))
        now_s, token = clock.monotonic_s(), watched.token
        statuses = {api.name: api for api in watched.apis if api.deployment == deployment}
        moves = {name: _movement(status) for name, status in statuses.items()}
        if moves != before:
            moved_s, before = now_s, moves
        for name, row in rows.items():
            if row.is_done:
                continue
            status = statuses.get(name)
            outcome = _outcome(row, status, versions[name])
            replaced = False
            if status is not None and _is_other(status, versions[name]):
                replaced = now_s - other_since.setdefault(name, now_s) >= REPLACED_AFTER_S
                outcome = Outcome.FAILED if replaced else outcome
            elif status is not None:
                other_since[name] = -math.inf
            if outcome is Outcome.WAITING and status is not None and status.status is Status.COMPUTE_UNAVAILABLE:
                if now_s - no_room_since.setdefault(name, now_s) >= NO_ROOM_PATIENCE_S:
                    outcome = Outcome.FAILED
            else:
                no_room_since.pop(name, None)
            if outcome is Outcome.WAITING and now_s - moved_s >= patience_s:
                outcome = Outcome.STALLED
            rows[name] = replace(
                row,
                status=status,
                outcome=outcome,
                until_s=None if outcome is Outcome.WAITING else now_s,
                had_to_wait=not (first and outcome is Outcome.LIVE),
                replaced=replaced,
            )
            if outcome is not Outcome.WAITING:
                no_room_since.pop(name, None)
                other_since.pop(name, None)
        first = False
        yield tuple(rows.values())


def _unseen(name: str, now_s: float) -> Followed:
    return Followed(name=name, outcome=Outcome.WAITING, since_s=now_s, until_s=None, status=None, had_to_wait=False)


def _outcome(row: Followed, status: ApiStatus | None, version: str) -> Outcome:
    if status is None:
        return Outcome.WAITING if row.status is None else Outcome.FAILED
    return judge(status, version)


def _movement(status: ApiStatus) -> tuple[object, ...]:
    """What counts as progress: neither traffic nor failed attempts do."""
    replicas = status.replicas
    return (
        status.in_proof,
        status.status,
        status.version,
        status.serving,
        status.progress,
        replicas.ready,
        replicas.up_to_date,
    )


def _is_other(status: ApiStatus, version: str) -> bool:
    return bool(version and status.version) and not _same(version, status.version)


def _same(one: str, other: str) -> bool:
    return one.startswith(other) or other.startswith(one)
