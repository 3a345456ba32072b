"""What HAProxy processes answered themselves, by api, and for a while after they ended."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from cortex.ids import ApiKey
from cortex.ingress.configuration import Refusal
from cortex.ingress.runtime import RefusalRow

REMEMBERED_INSTANCES = 16
"""Ended processes whose counters can still be read, so that a reader who comes once a second misses none."""
_CLIENT_ERRORS = frozenset(
    (Refusal.BAD_REQUEST, Refusal.METHOD_NOT_ALLOWED, Refusal.REQUEST_TIMEOUT, Refusal.BODY_TOO_LARGE)
)
_OF_REPLICAS = frozenset((Refusal.REPLICA_LOST, Refusal.TIMEOUT))


class ApiRefusals(msgspec.Struct, frozen=True):
    """What one HAProxy process answered itself for one api. Cumulative: counters only grow while `instance` lives."""

    instance: str
    """Names the process: `<pid>-<start ticks>-<boot>`."""
    api: ApiKey
    counts: dict[Refusal, int]

    @property
    def client_error(self) -> int:
        """4xx."""
        return sum(n for refusal, n in self.counts.items() if refusal in _CLIENT_ERRORS)

    @property
    def server_error(self) -> int:
        """5xx."""
        return sum(self.counts.values()) - self.client_error

    @property
    def failed(self) -> int:
        """502 and 504: replicas ended over a request, or did not answer in time."""
        return sum(n for refusal, n in self.counts.items() if refusal in _OF_REPLICAS)


class IngressCounters:
    """The counters last read of each process; the oldest ones are forgotten."""

    def __init__(self) -> None:
        self._read: dict[str, tuple[ApiRefusals, ...]] = {}

    def note(self, instance: str, rows: Iterable[RefusalRow]) -> None:
        """A process has these now."""
        self._read[instance] = tuple(
            ApiRefusals(instance=instance, api=ApiKey(row.api), counts=row.counts) for row in rows
        )
        while len(self._read) > REMEMBERED_INSTANCES:
            del self._read[next(iter(self._read))]

    def rows(self) -> tuple[ApiRefusals, ...]:
        return tuple(row for rows in self._read.values() for row in rows)
