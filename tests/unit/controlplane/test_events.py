"""The sink of events: it never fails and never tells twice, and readers wait for more."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from cortex.controlplane.events import MOST_UNWRITTEN, TRY_EVERY_S, Events
from cortex.ids import ApiKey, DeploymentName
from cortex.state.events import EventsUnusable
from cortex.testing.clock import FakeClock
from cortex.wire.events import BEGINNINGS, ENDS, Event, EventKind, Severity
from cortex.wire.operator import EventLine

API = ApiKey("iris/a")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "events.db"


@pytest.fixture
def sink(file: Path, clock: FakeClock) -> Iterator[Events]:
    made = Events(file=file, clock=clock)
    yield made
    made.close()


def live(text: str = "serves") -> Event:
    return Event(kind=EventKind.LIVE, api=API, text=text)


def texts(sink: Events) -> list[str]:
    return [line.text for line in sink.page(limit=1000).events]


def test_an_event_is_told_with_its_instant_and_its_place(sink: Events) -> None:
    sink.tell(Event(kind=EventKind.LIVE, api=API, text="serves", version="3fa1c09d", details={"seconds": 1.5}))
    sink.tell(Event(kind=EventKind.STARTED, text="the agent", severity=Severity.WARNING))
    of_api, of_machine = sink.page(limit=10).events
    when = "2026-01-01T00:00:00.000Z"
    assert of_api == EventLine(
        serial=1,
        time=when,
        kind="live",
        text="serves",
        severity="info",
        deployment="iris",
        api="a",
        version="3fa1c09d",
        first=when,
        details={"seconds": 1.5},
    )
    assert (of_machine.deployment, of_machine.api, of_machine.severity) == (None, None, "warning")


def test_a_page_says_where_to_read_on(sink: Events) -> None:
    for number in range(5):
        sink.tell(live(str(number)))
    first = sink.page(limit=2)
    assert ([line.text for line in first.events], first.more) == (["3", "4"], False)
    sink.tell(live("5"))
    sink.tell(live("6"))
    one = sink.page(limit=1, after=first.cursor)
    two = sink.page(limit=5, after=one.cursor)
    assert ([line.text for line in (*one.events, *two.events)], one.more, two.more) == (["5", "6"], True, False)
    assert sink.page(limit=5, after=two.cursor).events == ()


def test_what_others_do_is_passed_over_by_who_reads_of_one_api(sink: Events) -> None:
    cursor = sink.page(limit=1, api=ApiKey("iris/b")).cursor
    sink.tell(live())
    page = sink.page(limit=1, api=ApiKey("iris/b"), after=cursor)
    assert (page.events, page.cursor != cursor) == ((), True)
    assert sink.page(limit=5, deployment=DeploymentName("iris"), after=cursor).events != ()


@pytest.mark.parametrize("after", ["zzz", "0-5", "-", "abcd-x", "12345678-99999999999"])
def test_a_cursor_of_another_file_begins_at_the_beginning(sink: Events, after: str) -> None:
    sink.tell(live())
    assert [line.text for line in sink.page(limit=5, after=after).events] == ["serves"]


# ---- what holds for a while ------------------------------------------------------------------------------------------


def full(same: str = "512Mi", text: str = "no room") -> Event:
    return Event(kind=EventKind.MACHINE_FULL, api=API, text=text, same=same)


ROOM = Event(kind=EventKind.ROOM, api=API, text="room")


def test_what_goes_on_is_told_once_with_its_end_also_across_a_restart(
    sink: Events, file: Path, clock: FakeClock
) -> None:
    sink.tell(ROOM)
    sink.tell(full())
    sink.tell(full(text="no room, with other figures"))
    sink.close()
    again = Events(file=file, clock=clock)
    again.tell(full())
    assert texts(again) == ["no room"]
    again.tell(full("1024Mi", "no room for more"))
    again.tell(ROOM)
    again.tell(ROOM)
    assert texts(again) == ["no room", "no room for more", "room"]
    again.close()


def test_every_beginning_has_an_end_of_its_own() -> None:
    assert len(BEGINNINGS) == len(ENDS)
    assert not set(BEGINNINGS) & set(ENDS)


def test_a_new_api_of_a_deleted_name_begins_with_nothing(sink: Events) -> None:
    sink.tell(full())
    sink.tell(Event(kind=EventKind.DELETED, api=API, text="by hand"))
    sink.tell(ROOM)
    assert texts(sink) == ["no room", "by hand"]


# ---- when it cannot be written ---------------------------------------------------------------------------------------


def test_what_is_told_while_somebody_holds_the_file_is_there_later(sink: Events, file: Path, clock: FakeClock) -> None:
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    sink.tell(live("first"))
    sink.tell(full())
    sink.tell(full())
    clock.advance(TRY_EVERY_S)
    sink.tell(live("second"))
    assert texts(sink) == []
    other.execute("ROLLBACK")
    other.close()
    clock.advance(TRY_EVERY_S)
    assert texts(sink) == ["first", "no room", "second"]
    assert sink.page(limit=9).events[0].time == "2026-01-01T00:00:00.000Z"


def test_of_more_than_is_kept_unwritten_the_oldest_are_lost(sink: Events, file: Path, clock: FakeClock) -> None:
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    for number in range(MOST_UNWRITTEN + 3):
        sink.tell(live(str(number)))
    other.close()
    clock.advance(TRY_EVERY_S)
    assert texts(sink) == [str(number) for number in range(3, MOST_UNWRITTEN + 3)]


def test_where_there_is_no_file_telling_goes_on_and_reading_says_why(tmp_path: Path, clock: FakeClock) -> None:
    place = tmp_path / "taken"
    place.mkdir()
    sink = Events(file=place, clock=clock)
    sink.tell(live())
    sink.tell(full())
    with pytest.raises(EventsUnusable) as raised:
        sink.page(limit=1)
    assert str(place) in raised.value.hint
    place.rmdir()
    clock.advance(TRY_EVERY_S)
    assert texts(sink) == ["serves", "no room"]
    assert sink.latest(API, EventKind.LIVE) == live()
    assert sink.latest(API, EventKind.WOKE) is None
    sink.close()


def test_after_its_end_nothing_is_told_and_nothing_fails(file: Path, clock: FakeClock) -> None:
    sink = Events(file=file, clock=clock)
    sink.close()
    sink.tell(live())


def test_what_the_last_start_took_is_told_by_the_last_waking_else_by_going_live(sink: Events) -> None:
    def told(kind: EventKind, **details: float) -> float | None:
        sink.tell(Event(kind=kind, api=API, text="t", details={**details}))
        return sink.last_start_s(API)

    assert told(EventKind.LIVE) is None
    assert told(EventKind.LIVE, start_seconds=1.5) == 1.5
    assert told(EventKind.WOKE, seconds=9.0, start_seconds=7.25) == 7.25
    assert told(EventKind.LIVE, start_seconds=0.1) == 7.25, "it went on with what its inspection had loaded"


# ---- waiting ---------------------------------------------------------------------------------------------------------


def test_who_waits_is_answered_as_soon_as_something_happens(sink: Events) -> None:
    async def scenario() -> list[str]:
        cursor = sink.page(limit=1).cursor
        waiting = asyncio.create_task(sink.page_later(limit=5, wait_s=3600, api=API, after=cursor))
        await asyncio.sleep(0)
        await asyncio.to_thread(sink.tell, Event(kind=EventKind.LIVE, api=ApiKey("iris/b"), text="of another"))
        await asyncio.to_thread(sink.tell, live())
        return [line.text for line in (await asyncio.wait_for(waiting, 60)).events]

    assert asyncio.run(scenario()) == ["serves"]


def test_who_waits_is_answered_when_we_end(sink: Events) -> None:
    async def scenario() -> int:
        cursor = sink.page(limit=1).cursor
        waiting = asyncio.create_task(sink.page_later(limit=5, wait_s=3600, after=cursor))
        await asyncio.sleep(0)
        sink.answer_waiting()
        late = await asyncio.wait_for(sink.page_later(limit=5, wait_s=3600, after=cursor), 60)
        return len((await asyncio.wait_for(waiting, 60)).events) + len(late.events)

    assert asyncio.run(scenario()) == 0


def test_without_a_cursor_or_with_no_time_nobody_waits(sink: Events) -> None:
    assert asyncio.run(sink.page_later(limit=5, wait_s=3600)).events == ()
    cursor = sink.page(limit=1).cursor
    assert asyncio.run(sink.page_later(limit=5, wait_s=0, after=cursor)).events == ()
