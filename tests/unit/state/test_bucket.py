"""What a bucket adds to the contract of state: who leads, what the next one finds, and what is wrong with it."""

from __future__ import annotations

import gzip
import sqlite3
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from cortex.ids import ApiKey, replica_id, short
from cortex.planning.actions import RecordExit
from cortex.state.base import NotLeader, StateCorrupt, StateError, StateInDoubt, StateTooNew
from cortex.state.bucket import BucketStateStore
from cortex.state.leading import KEPT_S, SNAPSHOT_EVERY, Leadership
from cortex.state.objects import Changed, Content, StateRow, Unused, decoded
from cortex.state.sqlite import MIGRATIONS
from cortex.storage.base import StorageUnreachable
from cortex.testing.builders import API, a_build, a_deploy, a_wanted_api, an_exit
from cortex.testing.clock import FakeClock
from cortex.testing.storage import FakeStorage

V1 = a_build("v1")
SLOT = replica_id(API, V1.revision, 0)
KNOWN = len(MIGRATIONS)


@pytest.fixture
def storage() -> FakeStorage:
    return FakeStorage()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def opened(storage: FakeStorage, clock: FakeClock | None = None, *, who: str = "") -> BucketStateStore:
    """A store over a line of its own to the same objects."""
    return BucketStateStore(FakeStorage(storage), clock or FakeClock(), who=who)


def key(epoch: int, number: int, folder: str = "state") -> str:
    return f"{folder}/{epoch:010}/{number:010}"


def at(storage: FakeStorage, epoch: int, number: int, folder: str = "state") -> Content:
    return decoded(storage.objects[key(epoch, number, folder)], known=KNOWN)


def meta(store: BucketStateStore) -> dict[str, str]:
    return {write.key: write.record for write in store.content() if write.kind == "meta"}


def fail(*_: object) -> None:
    raise StorageUnreachable("memory://storage", "no answer in time", hint="check the network")


# ---- who leads -------------------------------------------------------------------------------------------------------


def test_everything_is_there_for_the_next_leader_on_another_machine(storage: FakeStorage) -> None:
    store = opened(storage)
    store.commit_deploy(a_deploy(a_wanted_api(V1), wall_s=1.0))
    store.mark_live(API, V1.revision, wall_s=2.0)
    store.record_exit(
        RecordExit(api=API, revision=V1.revision, replica=SLOT, attempt=1, was_ready=True, exit=an_exit()), wall_s=3.0
    )
    again = opened(storage)
    assert again.content() == store.content()
    assert again.desired(now_wall_s=5.0) == store.desired(now_wall_s=5.0)


def test_whoever_opens_it_leads_in_the_next_epoch(storage: FakeStorage) -> None:
    assert [opened(storage).take_epoch() for _ in range(3)] == [1, 2, 3]


def test_one_that_was_followed_writes_nothing_any_more_and_says_so(storage: FakeStorage) -> None:
    old = opened(storage)
    old.set_meta("a", "old")
    new = opened(storage)
    before = dict(storage.objects)
    for _ in range(2):
        with pytest.raises(NotLeader) as raised:
            old.set_meta("a", "woken")
        assert (raised.value.epoch, raised.value.by, old.leads, new.leads) == (1, 2, False, True)
    with pytest.raises(NotLeader):
        old.take_epoch()
    assert (old.meta("a"), storage.objects) == ("old", before)
    new.set_meta("b", "new")
    assert meta(opened(storage)) == {"a": "old", "b": "new"}


def test_one_that_was_followed_and_changes_nothing_finds_out_by_itself(storage: FakeStorage) -> None:
    old = opened(storage)
    old.tend()
    assert old.leads
    opened(storage)
    old.tend()
    assert not old.leads


def test_an_epoch_may_be_taken_anew_above_what_agents_have_heard(storage: FakeStorage) -> None:
    store = opened(storage)
    store.commit_deploy(a_deploy(a_wanted_api(V1)))
    assert store.take_epoch() == 1
    store.set_meta("epoch", "50")
    assert store.take_epoch() == 51
    store.set_meta("a", "b")
    again = opened(storage)
    assert (again.take_epoch(), again.meta("a"), [one.wanted.build for one in again.apis()]) == (52, "b", [V1])


def test_one_that_cannot_begin_another_epoch_leads_no_more(storage: FakeStorage) -> None:
    line = FakeStorage(storage)
    store = BucketStateStore(line, FakeClock())
    store.take_epoch()
    line.before = lambda asked, key: fail() if key == "state/0000000002/0000000000" else None
    with pytest.raises(StorageUnreachable):
        store.take_epoch()
    line.before = lambda asked, key: None
    with pytest.raises(NotLeader, match="could not begin another epoch"):
        store.set_meta("a", "b")
    assert not store.leads


def test_of_two_who_take_the_same_epoch_at_once_one_leads(storage: FakeStorage) -> None:
    line = FakeStorage(storage)
    others: list[BucketStateStore] = []

    def overtake(asked: str, key: str) -> None:
        if (asked, key) == ("create", "epoch/0000000001") and not others:
            others.append(opened(storage))

    line.before = overtake
    with pytest.raises(NotLeader):
        BucketStateStore(line, FakeClock())
    others[0].set_meta("a", "b")
    assert meta(opened(storage)) == {"a": "b"}


# ---- one object a transaction ----------------------------------------------------------------------------------------


def test_a_transaction_is_one_object_and_one_call_and_what_changes_nothing_is_none(storage: FakeStorage) -> None:
    line = FakeStorage(storage)
    store = BucketStateStore(line, FakeClock())
    calls: list[tuple[str, str]] = []
    line.before = lambda asked, key: calls.append((asked, key))
    store.commit_deploy(a_deploy(*[a_wanted_api(a_build(api=f"iris/a{n}")) for n in range(5)]))  # type: ignore[arg-type]
    store.set_meta("a", "b")
    store.set_meta("a", "b")
    with store.together():
        for number in range(10):
            store.set_meta("n", str(number))
        store.set_scale(ApiKey("iris/a1"), 1, reason="", wall_s=0.0)
    assert calls == [("create", key(1, number)) for number in (1, 2, 3)]


def test_what_is_in_an_object_can_be_read_by_people(storage: FakeStorage) -> None:
    opened(storage).set_meta("a", "b")
    found = msgspec.json.decode(gzip.decompress(storage.objects[key(1, 1)]))
    assert (found["type"], found["schema"], found["rows"]) == ("changed", KNOWN, [["meta", "a", "b"]])


def test_a_creation_that_is_told_twice_is_recognised_by_its_content(storage: FakeStorage) -> None:
    class Retrying(FakeStorage):
        """As a client that has lost the first answer, and asks again."""

        def create(self, key: str, content: bytes) -> bool:
            super().create(key, content)
            return super().create(key, content)

    store = BucketStateStore(Retrying(storage), FakeClock())
    store.set_meta("a", "b")
    assert store.leads
    assert meta(opened(storage)) == {"a": "b"}


def test_a_change_whose_answer_is_lost_is_in_doubt_and_found_before_the_next(storage: FakeStorage) -> None:
    line = FakeStorage(storage)
    store = BucketStateStore(line, FakeClock())
    line.after = fail
    with pytest.raises(StateInDoubt, match=r"it is not known whether the change was written: .* no answer in time"):
        store.set_meta("a", "b")
    assert store.meta("a") is None
    line.after = lambda asked, key: None
    with store.together():
        assert meta(store) == {"a": "b"}, "before anybody reads what the next one is based on"
        store.set_meta("c", "d")
    assert meta(opened(storage)) == meta(store) == {"a": "b", "c": "d"}


def test_what_is_in_doubt_is_found_out_while_nobody_changes_anything(storage: FakeStorage) -> None:
    line = FakeStorage(storage)
    store = BucketStateStore(line, FakeClock())
    line.after = fail
    with pytest.raises(StateInDoubt):
        store.set_meta("a", "b")
    line.after = lambda asked, key: None
    store.tend()
    assert meta(store) == {"a": "b"}
    store.set_meta("c", "d")


def test_a_change_that_did_not_arrive_cannot_arrive_later(storage: FakeStorage) -> None:
    line = FakeStorage(storage)
    store = BucketStateStore(line, FakeClock())
    line.before = fail
    with pytest.raises(StateInDoubt):
        store.set_meta("a", "b")
    with pytest.raises(StateInDoubt):
        store.set_meta("c", "d")
    line.before = lambda asked, key: None
    store.set_meta("e", "f")
    assert isinstance(at(storage, 1, 1), Unused)
    assert isinstance(at(storage, 1, 2), Changed)
    assert meta(opened(storage)) == meta(store) == {"e": "f"}


def test_an_answer_that_is_lost_while_somebody_else_takes_over_is_found_to_be_too_late(storage: FakeStorage) -> None:
    line = FakeStorage(storage)
    store = BucketStateStore(line, FakeClock())
    line.before = fail
    with pytest.raises(StateInDoubt):
        store.set_meta("a", "b")
    line.before = lambda asked, key: None
    opened(storage)
    with pytest.raises(NotLeader):
        store.set_meta("c", "d")
    assert meta(opened(storage)) == {}


# ---- snapshots -------------------------------------------------------------------------------------------------------


def change(store: BucketStateStore, times: int) -> None:
    for _ in range(times):
        store.set_meta("n", str(int(store.meta("n") or 0) + 1))


def test_after_every_hundred_objects_there_is_a_snapshot_and_the_next_leader_reads_from_there(
    storage: FakeStorage,
) -> None:
    store = opened(storage)
    change(store, SNAPSHOT_EVERY - 1)
    store.tend()
    assert storage.keys("snapshots") == []
    change(store, 1)
    store.tend()
    store.tend()
    assert storage.keys("snapshots") == [key(1, 100, "snapshots")]
    change(store, 3)
    line = FakeStorage(storage)
    read: list[str] = []
    line.before = lambda asked, key: read.append(key) if asked == "read" else None
    again = BucketStateStore(line, FakeClock())
    assert again.content() == store.content()
    assert read == ["epoch/0000000001", key(1, 100, "snapshots"), *(key(1, number) for number in (101, 102, 103))]


def test_what_a_snapshot_replaces_is_removed_once_there_is_a_later_one_and_time_has_passed(
    storage: FakeStorage, clock: FakeClock
) -> None:
    store = opened(storage, clock)
    for _ in range(3):
        change(store, SNAPSHOT_EVERY)
        store.tend()
    assert len(storage.keys("state")) == 301
    clock.advance(KEPT_S)
    store.tend()
    assert storage.keys("snapshots") == [key(1, 200, "snapshots"), key(1, 300, "snapshots")]
    assert storage.keys("state") == [key(1, number) for number in range(201, 301)]
    assert meta(opened(storage)) == {"n": "300"}


def test_where_there_is_nothing_to_do_it_is_looked_for_a_later_leader_and_no_more(
    storage: FakeStorage, clock: FakeClock
) -> None:
    opened(storage)
    line = FakeStorage(storage)
    store = BucketStateStore(line, clock)
    for _ in range(3):
        change(store, SNAPSHOT_EVERY)
        store.tend()
    clock.advance(KEPT_S)
    store.tend()
    calls: list[tuple[str, str]] = []
    line.before = lambda asked, key: calls.append((asked, key))
    store.tend()
    assert calls == [("keys", "epoch")]


def test_of_older_epochs_their_leader_and_their_seal_stay(storage: FakeStorage, clock: FakeClock) -> None:
    for _ in range(3):
        change(opened(storage, clock), 5)
    store = opened(storage, clock)
    clock.advance(KEPT_S)
    store.tend()
    assert storage.keys("epoch") == [f"epoch/{epoch:010}" for epoch in (1, 2, 3, 4)]
    assert storage.keys("state") == [key(1, 6), key(2, 6), *(key(3, number) for number in range(7)), key(4, 0)]
    assert meta(opened(storage)) == {"n": "15"}


def test_a_snapshot_that_cannot_be_written_is_tried_again_and_holds_up_nothing(storage: FakeStorage) -> None:
    line = FakeStorage(storage)
    store = BucketStateStore(line, FakeClock())
    change(store, SNAPSHOT_EVERY)
    line.before = lambda asked, key: fail() if key.startswith("snapshots/") else None
    with pytest.raises(StorageUnreachable):
        store.tend()
    change(store, 1)
    line.before = lambda asked, key: None
    store.tend()
    assert storage.keys("snapshots") == [key(1, 101, "snapshots")]


# ---- what is wrong with it -------------------------------------------------------------------------------------------


@pytest.fixture
def left(storage: FakeStorage) -> FakeStorage:
    """What a leader left that had changed five things."""
    change(opened(storage), 5)
    return storage


def corrupt(storage: FakeStorage) -> StateCorrupt:
    with pytest.raises(StateCorrupt) as raised:
        opened(storage)
    return raised.value


def test_a_missing_object_is_named(left: FakeStorage) -> None:
    del left.objects[key(1, 3)]
    error = corrupt(left)
    assert (error.place, error.reason) == (f"memory://storage/{key(1, 3)}", "it is missing, and it was there")
    assert "bring it back" in error.hint


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "a bit": lambda content: content[:-6] + bytes([content[-6] ^ 1]) + content[-5:],
    "not compressed": lambda content: b"dear diary",
    "no object of ours": lambda content: gzip.compress(b'{"schema": 1, "type": "letter"}'),
    "not even JSON": lambda content: gzip.compress(b"\xff"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_object_is_named(left: FakeStorage, damage: Callable[[bytes], bytes]) -> None:
    left.objects[key(1, 3)] = damage(left.objects[key(1, 3)])
    error = corrupt(left)
    assert error.place == f"memory://storage/{key(1, 3)}"
    assert error.reason


def test_an_object_in_the_place_of_another_one_is_named(left: FakeStorage) -> None:
    left.objects[key(1, 3)] = left.objects[key(1, 2)]
    assert corrupt(left).reason == "it is another object than its key says"
    left.objects[key(1, 3)] = left.objects["epoch/0000000001"]
    assert corrupt(left).reason == "it is another object than its key says"


def test_of_a_damaged_snapshot_it_is_said_that_it_can_be_done_without(storage: FakeStorage) -> None:
    store = opened(storage)
    change(store, SNAPSHOT_EVERY)
    store.tend()
    snapshot = key(1, SNAPSHOT_EVERY, "snapshots")
    storage.objects[snapshot] = b""
    assert f"remove {snapshot}" in corrupt(storage).hint
    del storage.objects[snapshot]
    assert meta(opened(storage)) == {"n": "100"}


def test_a_record_that_cannot_be_read_is_named(storage: FakeStorage) -> None:
    leadership = Leadership(storage, FakeClock(), schema=KNOWN)
    leadership.take()
    leadership.begin([StateRow("apis", API, msgspec.Raw(b'{"wanted": 5}'))])
    assert f"the record of {API!r} in 'apis' cannot be read" in corrupt(storage).reason


def test_an_api_without_its_version_or_scale_is_named(storage: FakeStorage) -> None:
    store = opened(storage)
    store.commit_deploy(a_deploy(a_wanted_api(V1)))
    rows = [write for write in store.content() if write.kind != "scale"]
    leadership = Leadership(storage, FakeClock(), schema=KNOWN)
    leadership.take()
    leadership.begin(StateRow(w.kind, w.key, msgspec.Raw(msgspec.json.encode(w.record))) for w in rows)
    assert corrupt(storage).reason == f"of the api {API!r} a version or the scale is missing"


def test_a_newer_schema_is_refused_by_number_before_its_leader_notices(storage: FakeStorage) -> None:
    newer = Leadership(FakeStorage(storage), FakeClock(), schema=KNOWN + 1)
    newer.take()
    newer.begin([])
    before = dict(storage.objects)
    with pytest.raises(StateTooNew) as raised:
        opened(storage)
    assert (raised.value.found, raised.value.known) == (KNOWN + 1, KNOWN)
    assert storage.objects == before


def rows_of_schema(schema: int, file: Path) -> Iterator[StateRow]:
    """What the state of a home held that an older one of us made."""
    with tarfile.open(Path(__file__).parents[2] / "homes" / f"schema_{schema}.tar.gz") as archive:
        content = archive.extractfile("home/state.db")
        assert content is not None
        file.write_bytes(content.read())
    connection = sqlite3.connect(file)
    for kind in ("deployments", "apis", "versions", "scale", "runs", "history", "meta", "batching"):
        for row_key, record in connection.execute(f"SELECT key, record FROM {kind}"):
            yield StateRow(kind, row_key, msgspec.Raw(record.encode() if isinstance(record, str) else record))
    connection.close()


def test_what_an_older_cortex_wrote_is_brought_up_to_date_whatever_object_it_is_in(
    storage: FakeStorage, tmp_path: Path
) -> None:
    first, *others = rows_of_schema(5, tmp_path / "state.db")
    older = Leadership(storage, FakeClock(), schema=5)
    older.take()
    older.begin([first])
    older.append(others)
    store = opened(storage)
    assert [record.wanted.api for record in store.apis()] == ["old/handled", "old/plain"]
    assert [short(one.build.version) for one in store.versions()] == ["d1783445", "1773a776", "1390bd7e", "2ce64a8d"]
    again = opened(storage)
    assert again.content() == store.content()
    with pytest.raises(NotLeader):
        older.append([first])


def test_a_record_of_an_older_schema_that_cannot_be_read_is_named(storage: FakeStorage) -> None:
    older = Leadership(storage, FakeClock(), schema=5)
    older.take()
    older.begin([StateRow("apis", "old/plain", msgspec.Raw(b"{}"))])
    assert "a record of an older Cortex cannot be read" in corrupt(storage).reason


def test_a_storage_that_cannot_be_used_is_named_and_a_later_start_goes_on_from_what_there_is(left: FakeStorage) -> None:
    line = FakeStorage(left)
    line.before = fail
    with pytest.raises(StorageUnreachable):
        BucketStateStore(line, FakeClock())
    assert meta(opened(left)) == {"n": "5"}


def test_every_state_error_of_a_bucket_says_what_to_do(left: FakeStorage) -> None:
    old = opened(left)
    opened(left)
    with pytest.raises(StateError) as raised:
        old.set_meta("a", "b")
    assert raised.value.problem().hint.startswith("repeat the command")
