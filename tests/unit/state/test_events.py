"""Events in their file: what is counted as one, what is forgotten, and what holds when the file is not well."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex.ids import ApiKey, DeploymentName
from cortex.state import events
from cortex.state.events import AGAIN_S, KEPT_S, EventStore, EventsUnusable, KeptEvent
from cortex.wire.events import COUNTED, Event, EventKind, Severity

API, OTHER = ApiKey("iris/a"), ApiKey("iris/b")
NOW = 1_800_000_000.0


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "events.db"


@pytest.fixture
def store(file: Path) -> Iterator[EventStore]:
    made = EventStore(file)
    yield made
    made.close()


def crash(text: str = "exit code 1", api: ApiKey | None = API, **fields: str) -> Event:
    return Event(kind=EventKind.CRASHED, api=api, text=text, **fields)  # type: ignore[arg-type]


def live(text: str = "serves", api: ApiKey | None = API) -> Event:
    return Event(kind=EventKind.LIVE, api=api, text=text)


def texts(store: EventStore, *, now: float = NOW, limit: int = 100, **chosen: object) -> list[str]:
    return [line.event.text for line in store.page(now_wall_s=now, limit=limit, **chosen)]  # type: ignore[arg-type]


def test_what_was_told_is_there_as_it_was_told_also_after_a_restart(store: EventStore, file: Path) -> None:
    told = Event(
        kind=EventKind.CRASHED,
        api=API,
        text="killed by signal 9 (SIGKILL)",
        severity=Severity.WARNING,
        version="3fa1c09d",
        details={"signal": 9, "last_lines": ("a", "b"), "exit_code": None, "peak_bytes": 1.5, "was_ready": True},
    )
    assert store.add(told, wall_s=NOW)
    line = KeptEvent(serial=1, event=told, first_wall_s=NOW, last_wall_s=NOW, count=1)
    assert store.page(now_wall_s=NOW, limit=10) == (line,)
    store.close()
    again = EventStore(file)
    assert again.page(now_wall_s=NOW, limit=10) == (line,)
    assert again.place == store.place
    again.close()


def test_lines_come_in_the_sequence_in_which_they_were_told_whatever_the_clock_says(store: EventStore) -> None:
    for number, wall_s in enumerate((NOW, NOW - 5000, NOW + 5000)):
        store.add(live(str(number)), wall_s=wall_s)
    assert texts(store) == ["0", "1", "2"]


def test_the_last_lines_may_be_asked_for_and_what_came_after_one(store: EventStore) -> None:
    for number in range(5):
        store.add(live(str(number)), wall_s=NOW)
    assert texts(store, limit=2) == ["3", "4"]
    assert texts(store, limit=2, after=1) == ["1", "2"]
    assert texts(store, after=5) == []


def test_an_api_a_deployment_or_everything(store: EventStore) -> None:
    for api in (API, OTHER, ApiKey("iris2/a"), None):
        store.add(live(str(api), api), wall_s=NOW)
    assert texts(store, api=API) == ["iris/a"]
    assert texts(store, deployment=DeploymentName("iris")) == ["iris/a", "iris/b"]
    assert texts(store) == ["iris/a", "iris/b", "iris2/a", "None"]


# ---- the same again --------------------------------------------------------------------------------------------------


def test_the_same_again_is_counted_on_its_line_which_moves_to_the_end(store: EventStore) -> None:
    for wall_s in (NOW, NOW + 10, NOW + 20):
        store.add(crash("exit code 1", same="1"), wall_s=wall_s)
        store.add(live(f"at {wall_s - NOW:g}"), wall_s=wall_s)
    store.add(crash("exit code 1, once more", same="1"), wall_s=NOW + 30)
    assert texts(store, now=NOW + 30) == ["at 0", "at 10", "at 20", "exit code 1, once more"]
    (*_, last) = store.page(now_wall_s=NOW + 30, limit=10)
    assert (last.count, last.first_wall_s, last.last_wall_s, last.serial) == (4, NOW, NOW + 30, 7)


def test_who_reads_on_is_told_of_a_line_that_was_counted_up(store: EventStore) -> None:
    store.add(crash(), wall_s=NOW)
    store.add(crash(), wall_s=NOW + 1)
    assert [line.count for line in store.page(now_wall_s=NOW, limit=10, after=1)] == [2]


def test_after_an_hour_without_it_it_is_another_line(store: EventStore) -> None:
    for wall_s in (NOW, NOW + AGAIN_S - 1, NOW + 2 * AGAIN_S - 2, NOW + 3 * AGAIN_S):
        store.add(crash(), wall_s=wall_s)
    assert [line.count for line in store.page(now_wall_s=NOW, limit=10)] == [3, 1]


def test_of_another_api_or_kind_it_is_not_the_same(store: EventStore) -> None:
    store.add(crash("x"), wall_s=NOW)
    store.add(crash("x", api=OTHER), wall_s=NOW)
    store.add(Event(kind=EventKind.CRASHING, api=API, text="x"), wall_s=NOW)
    assert [line.count for line in store.page(now_wall_s=NOW, limit=10)] == [1, 1, 1]


def test_what_somebody_asked_for_is_a_line_each_time(store: EventStore) -> None:
    kinds = (EventKind.DEPLOYED, EventKind.LIVE, EventKind.ROLLED_BACK, EventKind.SCALED, EventKind.SLEPT)
    for kind in kinds:
        assert kind not in COUNTED
        store.add(Event(kind=kind, api=API, text="x"), wall_s=NOW)
        store.add(Event(kind=kind, api=API, text="x"), wall_s=NOW)
    assert len(store.page(now_wall_s=NOW, limit=100)) == 2 * len(kinds)


def test_told_again_under_the_same_key_it_is_kept_once(store: EventStore) -> None:
    assert store.add(crash(once="exit r 1"), wall_s=NOW)
    assert not store.add(crash(once="exit r 1"), wall_s=NOW + 1)
    assert store.add(crash(once="exit r 2"), wall_s=NOW + 2)
    assert [line.count for line in store.page(now_wall_s=NOW, limit=10)] == [2]


def test_what_has_begun_stands_until_its_end_or_until_the_api_is_deleted(store: EventStore, file: Path) -> None:
    full, room = EventKind.MACHINE_FULL, EventKind.ROOM
    told = (
        Event(kind=full, api=API, text="t", same="a"),
        Event(kind=EventKind.CRASHING, api=API, text="t", same="v1"),
        Event(kind=full, api=OTHER, text="t"),
        Event(kind=room, api=OTHER, text="t"),
        Event(kind=full, api=OTHER, text="t", same="b"),
        Event(kind=EventKind.RECOVERED, api=API, text="t"),
    )
    for event in told:
        store.add(event, wall_s=NOW)
    assert store.standing() == {(API, full): "a", (OTHER, full): "b"}
    store.add(Event(kind=EventKind.DELETED, api=API, text="t"), wall_s=NOW)
    assert store.standing() == {(OTHER, full): "b"}


# ---- bounds ----------------------------------------------------------------------------------------------------------


def test_after_14_days_a_line_is_gone_whoever_looks(store: EventStore) -> None:
    store.add(live("old"), wall_s=NOW)
    store.add(live("young"), wall_s=NOW + 10)
    assert texts(store, now=NOW + KEPT_S - 1) == ["old", "young"]
    assert texts(store, now=NOW + KEPT_S) == ["young"]
    store.add(live("new"), wall_s=NOW + KEPT_S)
    kept = store.database.connection.execute("SELECT count(*) FROM event").fetchone()[0]
    assert kept == 2


def test_a_clock_that_is_set_back_takes_nothing_away(store: EventStore) -> None:
    store.add(live("before"), wall_s=NOW)
    store.add(live("after"), wall_s=NOW - 30 * 86400)
    assert texts(store, now=NOW - 30 * 86400) == ["before", "after"]


def test_an_api_has_so_many_lines_and_its_noise_leaves_others_alone(
    store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "MOST_OF_API", 3)
    store.add(live("of another", OTHER), wall_s=NOW)
    for number in range(6):
        store.add(live(str(number)), wall_s=NOW)
    assert texts(store) == ["of another", "3", "4", "5"]


def test_all_apis_together_have_so_many_lines(store: EventStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "MOST", 4)
    monkeypatch.setattr(events, "COUNTED_EVERY", 3)
    for number in range(9):
        store.add(live(str(number), ApiKey(f"iris/a{number}")), wall_s=NOW)
    assert texts(store) == ["5", "6", "7", "8"]


def test_a_long_text_is_cut(store: EventStore) -> None:
    store.add(live("x" * 10_000), wall_s=NOW)
    assert texts(store) == ["x" * 1999 + "…"]


def test_serials_go_on_after_everything_was_forgotten(store: EventStore) -> None:
    store.add(live(), wall_s=NOW)
    store.add(live("much later"), wall_s=NOW + 2 * KEPT_S)
    assert store.last_serial() == 2
    assert texts(store, now=NOW + 2 * KEPT_S, after=1) == ["much later"]


told = st.builds(
    Event,
    kind=st.sampled_from([EventKind.CRASHED, EventKind.LIVE, EventKind.HELD]),
    api=st.sampled_from([API, OTHER, None]),
    text=st.sampled_from(["a", "b"]),
)


@given(st.lists(st.tuples(told, st.sampled_from([0.0, 1.0, AGAIN_S - 1, AGAIN_S, 5 * AGAIN_S])), max_size=30))
def test_every_time_is_counted_once_and_a_reader_who_reads_on_sees_the_end_of_it(
    tmp_path_factory: pytest.TempPathFactory, schedule: list[tuple[Event, float]]
) -> None:
    store = EventStore(tmp_path_factory.mktemp("events") / "events.db")
    now, seen, after = NOW, {}, 0
    for event, pause_s in schedule:
        now += pause_s
        store.add(event, wall_s=now)
        for line in store.page(now_wall_s=NOW, limit=100, after=after):
            after = line.serial
            seen[line.serial] = line
    lines = store.page(now_wall_s=NOW, limit=100)
    store.close()
    assert sum(line.count for line in lines) == len(schedule)
    assert [line.serial for line in lines] == sorted({line.serial for line in lines})
    assert lines == tuple(seen[line.serial] for line in lines)
    assert all(line.count == 1 for line in lines if line.event.kind is EventKind.LIVE)


# ---- several at once, and a file that is not well --------------------------------------------------------------------


def test_events_are_told_and_read_by_many_at_once_and_none_is_lost(store: EventStore) -> None:
    begin = threading.Barrier(5)
    read: list[int] = []

    def tell(number: int) -> None:
        begin.wait(60)
        for turn in range(50):
            store.add(live(f"{number} {turn}", ApiKey(f"iris/a{number}")), wall_s=NOW)

    def look() -> None:
        begin.wait(60)
        while len(read) < 200:
            last = read[-1] if read else 0
            read.extend(line.serial for line in store.page(now_wall_s=NOW, limit=17, after=last))

    threads = [threading.Thread(target=tell, args=(number,)) for number in range(4)]
    threads.append(threading.Thread(target=look))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert read == list(range(1, 201))
    for number in range(4):
        assert texts(store, api=ApiKey(f"iris/a{number}")) == [f"{number} {turn}" for turn in range(50)]


def test_a_full_disk_is_named_and_takes_nothing_away(store: EventStore) -> None:
    store.add(live("before"), wall_s=NOW)
    pages = store.database.connection.execute("PRAGMA page_count").fetchone()[0]
    store.database.connection.execute(f"PRAGMA max_page_count = {pages}")  # as if the disk were full
    with contextlib.suppress(EventsUnusable):
        for _ in range(100):
            store.add(live("x" * 2000), wall_s=NOW)
    with pytest.raises(EventsUnusable, match="full"):
        store.add(live("x" * 2000), wall_s=NOW)
    assert texts(store)[0] == "before"


def test_a_file_that_somebody_holds_is_not_waited_for(store: EventStore, file: Path) -> None:
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(EventsUnusable, match="locked"):
        store.add(live(), wall_s=NOW)
    assert texts(store) == []
    other.execute("ROLLBACK")
    other.close()
    store.add(live(), wall_s=NOW)
    assert texts(store) == ["serves"]


def test_a_damaged_file_is_moved_aside_and_begun_anew(file: Path) -> None:
    file.write_bytes(b"no database" * 1000)
    store = EventStore(file)
    store.add(live(), wall_s=NOW)
    assert texts(store) == ["serves"]
    store.close()
    assert file.with_name("events.db.damaged").read_bytes().startswith(b"no database")


def test_a_file_of_a_newer_cortex_is_left_alone(store: EventStore, file: Path) -> None:
    store.add(live(), wall_s=NOW)
    store.database.connection.execute("PRAGMA user_version = 99")
    store.close()
    before = file.read_bytes()
    with pytest.raises(EventsUnusable, match="newer Cortex"):
        EventStore(file)
    assert file.read_bytes() == before
