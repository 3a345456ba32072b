"""
Heads that follow each other, with pauses, lost answers, late writes and crashes between every two steps: nothing that
was acknowledged is lost, nothing of an older leader appears, and no number ever has two objects.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterable, Iterator
from enum import Enum, auto
from typing import TypeVar

import msgspec
import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from cortex.state import bucket
from cortex.state.base import NotLeader, StateInDoubt
from cortex.state.bucket import BucketStateStore
from cortex.state.leading import KEPT_S
from cortex.state.objects import Changed, Sealed, decoded
from cortex.state.sqlite import MIGRATIONS
from cortex.storage.base import StorageError, StorageUnreachable
from cortex.testing.clock import FakeClock
from cortex.testing.storage import FakeStorage

T = TypeVar("T")

DEADLINE_S = 60.0
SNAPSHOTS_EVERY = 3


class Killed(BaseException):
    """The process ends here, as by SIGKILL."""


@pytest.fixture(autouse=True)
def many_snapshots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket, "SNAPSHOT_EVERY", SNAPSHOTS_EVERY)


def meta(store: BucketStateStore) -> dict[str, str]:
    return {write.key: write.record for write in store.content() if write.kind == "meta" and write.key != "epoch"}


# ---- one head, killed at every step ----------------------------------------------------------------------------------


def life(storage: FakeStorage, clock: FakeClock, acknowledged: dict[str, str]) -> None:
    """Everything that a leader does, from its beginning on."""
    store = BucketStateStore(storage, clock)
    for number in range(10):
        store.set_meta(f"v{number}", "first")
        acknowledged[f"v{number}"] = "first"
        if number % 3 == 0:
            clock.advance(KEPT_S)
            store.tend()
        if number == 5:
            store.take_epoch()
            store.take_epoch()


def test_whenever_a_head_is_killed_the_next_one_has_all_that_was_acknowledged_and_at_most_one_change_more() -> None:
    steps = 0
    while kill_at(steps):
        steps += 1
    assert steps > 50, "calls and moments after them"


def kill_at(step: int) -> bool:
    """Kill a head around its n-th call, of which every second moment is the one after; False: it has not so many."""
    storage, acknowledged, count = FakeStorage(), dict[str, str](), 0

    def hook(asked: str, key: str) -> None:
        nonlocal count
        if count == step:
            raise Killed
        count += 1

    older = BucketStateStore(FakeStorage(storage), FakeClock())
    older.set_meta("older", "kept")
    line = FakeStorage(storage)
    line.before = line.after = hook
    try:
        life(line, FakeClock(), acknowledged)
    except Killed:
        pass
    else:
        return False
    found = meta(BucketStateStore(FakeStorage(storage), FakeClock()))
    assert found.pop("older") == "kept"
    assert acknowledged.items() <= found.items(), f"killed at step {step}"
    assert len(found) <= len(acknowledged) + 1
    assert BucketStateStore(FakeStorage(storage), FakeClock()).take_epoch() > 2
    return True


# ---- several heads, in any order -------------------------------------------------------------------------------------


class Verdict(Enum):
    """What becomes of a call to the storage."""

    DONE = auto()
    LOST = auto()
    """It is carried out, and the answer does not arrive."""
    FAILED = auto()
    """It is not carried out."""
    LATE = auto()
    """Whoever asked gives up, and it is carried out later."""
    TWICE = auto()
    """The client has lost an answer, asks again by itself, and says what it hears then."""
    KILLED_BEFORE = auto()
    KILLED_AFTER = auto()


class World:
    """One storage, and heads that take a step when they are told to."""

    def __init__(self) -> None:
        self.storage = FakeStorage()
        self.clock = FakeClock()
        self.ever: dict[str, bytes] = {}
        """What each key has held."""
        self.late: list[tuple[str, bytes]] = []
        self.heads: list[Head] = []

    def create(self, key: str, content: bytes) -> bool:
        created = self.storage.create(key, content)
        if created:
            assert self.ever.setdefault(key, content) == content, f"{key} has had two contents"
        return created

    def changes(self) -> Iterator[Changed]:
        """Every transaction that ever had a number."""
        contents = [decoded(content, known=len(MIGRATIONS)) for content in self.ever.values()]
        return (content for content in contents if isinstance(content, Changed))

    def start(self) -> None:
        self.heads.append(Head(self, f"head{len(self.heads)}"))

    def land(self) -> None:
        if self.late:
            self.create(*self.late.pop(0))

    def advance(self) -> None:
        """Nobody takes ten minutes to begin, and nothing is on its way for so long."""
        if not any(head.begins for head in self.heads if head.lives):
            while self.late:
                self.land()
            self.clock.advance(KEPT_S)


class Head:
    """A control plane, as far as state is concerned, in a thread that stands still before each call to the storage."""

    def __init__(self, world: World, name: str) -> None:
        self.place = "memory://storage"
        self.name = name
        self.begins = True
        self.lives = True
        self.epoch = 0
        self.acknowledged: dict[str, str] = {}
        self.refused: dict[str, str] = {}
        self.fault: BaseException | None = None
        self.ended_by = ""
        self._world = world
        self._verdict = Verdict.DONE
        self._go, self._stands = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._stands.acquire(timeout=DEADLINE_S)

    def step(self, verdict: Verdict) -> None:
        """Let it do its next call, and all that it does then without one."""
        if self.lives:
            self._verdict = verdict
            self._go.release()
            assert self._stands.acquire(timeout=DEADLINE_S)

    def _run(self) -> None:
        try:
            self._live()
        except (NotLeader, StorageError) as error:
            self.ended_by = type(error).__name__
        except Killed:
            self.ended_by = "killed"
        except BaseException as error:
            self.fault = error
        finally:
            self.lives = False
            self._stands.release()

    def _live(self) -> None:
        store = BucketStateStore(self, self._world.clock)
        self.begins, self.epoch = False, store.take_epoch()
        turn = 0
        while True:
            turn += 1
            key, value = "", f"{self.name}.{turn}"
            try:
                with store.together():
                    key = f"v{len(meta(store)):03}"
                    store.set_meta(key, value)
                self.acknowledged[key] = value
            except NotLeader:
                self.refused[key] = value
                raise
            except StateInDoubt:
                pass
            if turn % SNAPSHOTS_EVERY == 0:
                try:
                    store.tend()
                except (StateInDoubt, StorageError):
                    pass

    # ---- its line to the storage --------------------------------------------------------------------------------

    def create(self, key: str, content: bytes) -> bool:
        return self._asked(lambda: self._world.create(key, content), lambda: self._world.late.append((key, content)))

    def read(self, key: str) -> bytes | None:
        return self._asked(lambda: self._world.storage.read(key))

    def keys(self, folder: str) -> list[str]:
        return self._asked(lambda: self._world.storage.keys(folder))

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            self._asked(lambda key=key: self._world.storage.delete([key]))  # type: ignore[misc]

    def _asked(self, do: Callable[[], T], later: Callable[[], None] = lambda: None) -> T:
        self._stands.release()
        assert self._go.acquire(timeout=DEADLINE_S)
        verdict = self._verdict
        if verdict is Verdict.KILLED_BEFORE:
            raise Killed
        if verdict is Verdict.FAILED:
            raise StorageUnreachable(self.place, "no answer in time")
        if verdict is Verdict.LATE:
            later()
            raise StorageUnreachable(self.place, "no answer in time")
        answer = do()
        if verdict is Verdict.TWICE:
            answer = do()
        if verdict is Verdict.KILLED_AFTER:
            raise Killed
        if verdict is Verdict.LOST:
            raise StorageUnreachable(self.place, "no answer in time")
        return answer


def played(seed: int) -> World:
    """What became of 300 steps, drawn at random, and whatever was late."""
    chance = random.Random(seed)
    world = World()
    now = 0
    for _ in range(300):
        if chance.random() < 0.05 or not any(head.lives for head in world.heads):
            world.start()
        if chance.random() < 0.05:
            world.land()
        if chance.random() < 0.05:
            world.advance()
        living = [head for head in world.heads if head.lives]
        if chance.random() < 0.2:  # else the same one gets on
            now = chance.randrange(len(living))
        head = living[now % len(living)]
        is_well = chance.random() < (0.98 if head.begins else 0.85)
        head.step(Verdict.DONE if is_well else chance.choice(list(Verdict)))
    for head in world.heads:
        head.step(Verdict.KILLED_BEFORE)
    while world.late:
        world.land()
    return world


def check(world: World) -> None:
    faults = [head.fault for head in world.heads if head.fault is not None]
    if faults:
        raise faults[0]
    last = BucketStateStore(FakeStorage(world.storage), world.clock)
    found = meta(last)
    for epoch in range(1, last.take_epoch()):
        ends = world.storage.keys(f"state/{epoch:010}")[-1]
        assert isinstance(decoded(world.storage.objects[ends], known=len(MIGRATIONS)), Sealed), f"{epoch} is open"
    assert sorted(found) == [f"v{number:03}" for number in range(len(found))], "each was based on those before"
    written = [row for content in world.changes() for row in content.rows]
    assert all(found[row.key] == msgspec.json.decode(row.record) for row in written), "what has a number is kept"
    for head in world.heads:
        assert head.acknowledged.items() <= found.items(), f"{head.name} was told that these are kept"
        assert head.refused.items().isdisjoint(found.items()), f"{head.name} was told that these are not kept"
        followed = any(head.epoch < other.epoch for other in world.heads) or f"epoch/{head.epoch + 1:010}" in world.ever
        assert head.ended_by != "NotLeader" or head.begins or followed, f"{head.name} led all the same"


@given(st.integers(0, 2**32))
def test_whatever_happens_to_heads_what_was_acknowledged_is_there_and_nothing_else_is(seed: int) -> None:
    world = played(seed)
    for head in world.heads:
        event(f"a head ended by {head.ended_by}")
    check(world)
