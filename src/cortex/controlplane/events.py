"""
What is told of events, kept, and read by whoever waits for more.

Telling never fails and never takes long: what cannot be written now (a full disk, a file that somebody holds) is kept
in memory and written later, as far as it fits.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from pathlib import Path

from cortex.clock import Clock
from cortex.controlplane.awaiting import Awaited
from cortex.ids import ApiKey, DeploymentName
from cortex.planning.happenings import START_SECONDS
from cortex.state.events import EventStore, EventsUnusable, KeptEvent, apply_to
from cortex.wire.events import BEGINNINGS, ENDS, Event, EventKind
from cortex.wire.operator import EventLine, EventPage, rfc3339_ms

log = logging.getLogger(__name__)

MOST_UNWRITTEN = 200
TRY_EVERY_S = 1.0
"""While the file cannot be written: each try may wait for `state.events.PATIENCE_S`."""


class Events:
    """
    The events of this home.

    Args:
        file: of the store.
    """

    def __init__(self, *, file: Path, clock: Clock) -> None:
        self._file = file
        self._clock = clock
        self._lock = threading.Lock()
        self._store: EventStore | None = None
        self._standing: dict[tuple[str, EventKind], str] = {}
        self._unwritten: deque[tuple[Event, float]] = deque(maxlen=MOST_UNWRITTEN)
        self._try_again_s = float("-inf")
        self._closed = False
        self._news = Awaited()
        with self._lock:
            self._write()

    def close(self) -> None:
        with self._lock:
            self._try_again_s = float("-inf")
            self._write()
            self._closed = True
            if self._store is not None:
                self._store.close()

    def answer_waiting(self) -> None:
        """From now on nobody waits for more."""
        self._news.close()

    def tell(self, event: Event) -> None:
        """Keep an event; see `wire.events.TellEvent`."""
        api, same = event.api or "", event.same or event.text
        with self._lock:
            if self._closed or self._is_known(event, api, same):
                return
            apply_to(self._standing, api, event.kind, same)
            self._unwritten.append((event, self._clock.wall_s()))
            self._write()
        self._news.note()

    def page(
        self, *, limit: int, deployment: DeploymentName | None = None, api: ApiKey | None = None, after: str = ""
    ) -> EventPage:
        """
        What is kept, in the sequence of its last change.

        Args:
            limit: at most so many: the first ones after `after`, else the last ones.
            after: cursor of an earlier page; one of another file means its beginning.

        Raises:
            EventsUnusable: the file cannot be read.
        """
        with self._lock:
            self._write()
            store = self._store
        if store is None:
            raise EventsUnusable(self._file, "it cannot be opened now")
        place, _, number = after.rpartition("-")
        since = None if not after else int(number) if place == store.place and number.isdecimal() else 0
        last = store.last_serial()
        now_wall_s = self._clock.wall_s()
        kept = store.page(now_wall_s=now_wall_s, limit=limit, deployment=deployment, api=api, after=since)
        full = since is not None and len(kept) == limit
        reached = kept[-1].serial if full else max(last, kept[-1].serial if kept else 0)
        return EventPage(events=tuple(_line(one) for one in kept), cursor=f"{store.place}-{reached}", more=full)

    async def page_later(
        self,
        *,
        limit: int,
        wait_s: float,
        deployment: DeploymentName | None = None,
        api: ApiKey | None = None,
        after: str = "",
    ) -> EventPage:
        """The same; with a cursor after which there is nothing, as soon as there is, or when the time is up."""
        until_s = self._clock.monotonic_s() + wait_s
        while True:
            news = self._news.now
            page = await asyncio.to_thread(self.page, limit=limit, deployment=deployment, api=api, after=after)
            left_s = until_s - self._clock.monotonic_s()
            if page.events or not after or left_s <= 0 or self._news.closed:
                return page
            after = page.cursor
            await self._news.after(news, left_s)

    def last_start_s(self, api: ApiKey) -> float | None:
        """
        What the start of a replica took when an api last woke, else when it went live; None where nobody can tell.

        The first replica of a version goes on with what its inspection has loaded: whoever wakes it later waits longer.
        """
        for kind in (EventKind.WOKE, EventKind.LIVE):
            found = self.latest(api, kind)
            seconds = found.details.get(START_SECONDS) if found is not None else None
            if isinstance(seconds, float):
                return seconds
        return None

    def latest(self, api: ApiKey, *kinds: EventKind) -> Event | None:
        """The last event of an api that is of one of these kinds; None where there is none, or nobody can tell."""
        store = self._store
        try:
            found = None if store is None else store.latest(api, kinds, now_wall_s=self._clock.wall_s())
        except EventsUnusable as error:
            log.warning("%s", error)
            return None
        return None if found is None else found.event

    def _is_known(self, event: Event, api: str, same: str) -> bool:
        """What has begun goes on, or what has not begun ends."""
        if event.kind in ENDS:
            return self._standing.get((api, event.kind)) == same
        return event.kind in BEGINNINGS and (api, BEGINNINGS[event.kind]) not in self._standing

    def _write(self) -> None:
        """Open the file if need be, and write what is not written yet; later, where that does not work now."""
        now_s = self._clock.monotonic_s()
        if self._closed or now_s < self._try_again_s or (self._store is not None and not self._unwritten):
            return
        try:
            if self._store is None:
                store = EventStore(self._file)
                told, self._standing = self._standing, store.standing()
                self._standing.update(told)
                self._store = store
            while self._unwritten:
                event, wall_s = self._unwritten[0]
                self._store.add(event, wall_s=wall_s)
                self._unwritten.popleft()
            self._try_again_s = float("-inf")
        except EventsUnusable as error:
            if self._try_again_s == float("-inf"):
                log.warning("%s; it is tried again", error)
            self._try_again_s = now_s + TRY_EVERY_S


def _line(kept: KeptEvent) -> EventLine:
    event = kept.event
    deployment, _, name = (event.api or "").partition("/")
    return EventLine(
        serial=kept.serial,
        time=rfc3339_ms(kept.last_wall_s),
        kind=event.kind,
        text=event.text,
        severity=event.severity,
        deployment=deployment or None,
        api=name or None,
        version=event.version,
        replica=event.replica,
        count=kept.count,
        first=rfc3339_ms(kept.first_wall_s),
        details=event.details,
    )
