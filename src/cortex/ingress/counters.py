"""
What HAProxy processes have counted, by api: what they answered themselves, also for a while after they ended, and what
has come to them since we began to look. Pure: no I/O here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from cortex.ids import ApiKey
from cortex.ingress.configuration import Refusal
from cortex.ingress.runtime import BackendRow, RefusalRow

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

    @property
    def overloaded(self) -> int:
        """503 because the queue was full."""
        return self.counts.get(Refusal.OVERLOADED, 0)


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


class ApiTraffic(msgspec.Struct, frozen=True):
    """What came for one api, all workers together. No sum of requests falls while we live."""

    api: ApiKey
    begun: int
    """Requests since we began to look, those that were refused included, and no probes."""
    done: int
    """What replicas have answered, probes too, but for a few around the coming of a server: what they can do."""
    queued: int
    """Those that wait for a replica now."""
    given: int
    """Those that replicas have now, also where they have not read them yet."""


class IngressTraffic:
    """
    Adds up what each process says of each backend, whoever's backend it is at the time.

    A process that we started has counted from 0. What was counted before somebody had a backend is nobody's:
    `pass_over` is told of it, before the backend is given away and when a running process is found.
    """

    def __init__(self) -> None:
        self._begun: dict[ApiKey, int] = {}
        self._done: dict[ApiKey, int] = {}
        self._read: dict[str, dict[int, BackendRow]] = {}
        """By process and backend, as last read."""

    def pass_over(self, instance: str, rows: Iterable[BackendRow]) -> None:
        """What these backends have counted so far is no api's."""
        self._read.setdefault(instance, {}).update((row.backend, row) for row in rows)

    def note(self, instance: str, rows: Iterable[BackendRow], owners: Mapping[int, ApiKey]) -> None:
        """A process says this now, and the backends are these apis'."""
        read = self._read.setdefault(instance, {})
        for row in rows:
            api = owners.get(row.backend)
            if api is None:
                continue
            before = read.get(row.backend, _NOTHING)
            if row.begun < before.begun:  # probes that began during the look were taken off
                row = msgspec.structs.replace(row, begun=before.begun)
            self._begun[api] = self._begun.get(api, 0) + row.begun - before.begun
            # A server that is seen for the first time may have been there before us.
            done = sum(done - before.done.get(server, done) for server, done in row.done.items())
            self._done[api] = self._done.get(api, 0) + done
            read[row.backend] = row

    def forget(self, instance: str) -> None:
        """A process has ended: nobody waits in it any more."""
        self._read.pop(instance, None)

    def rows(self, owners: Mapping[int, ApiKey]) -> tuple[ApiTraffic, ...]:
        """Of the apis that have a backend."""
        queued, given = dict.fromkeys(owners, 0), dict.fromkeys(owners, 0)
        for read in self._read.values():
            for backend, row in read.items():
                if backend in queued:
                    queued[backend] += row.queued
                    given[backend] += row.given
        return tuple(
            ApiTraffic(
                api=api,
                begun=self._begun.get(api, 0),
                done=self._done.get(api, 0),
                queued=queued[backend],
                given=given[backend],
            )
            for backend, api in owners.items()
        )


_NOTHING = BackendRow(backend=0, requests=0)
