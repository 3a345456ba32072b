"""What holds for every store, whatever keeps its records: tests of `cortex.state.records`."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest

from cortex.state.base import StateFull
from cortex.state.records import StateStore, Write
from cortex.testing.builders import API, a_build, a_deploy, a_wanted_api

DEADLINE_S = 60.0


class Counting(StateStore):
    """Notes each transaction, and cannot make any once it is full."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[tuple[Sequence[Write], bool]] = []
        self.is_full = False

    def _persist(self, writes: Sequence[Write], *, durable: bool) -> None:
        if self.is_full:
            raise StateFull("state.db", "the disk is full")
        self.made.append((writes, durable))


class Held(StateStore):
    """Keeps nothing until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.let_go = threading.Event(), threading.Event()

    def _persist(self, writes: Sequence[Write], *, durable: bool) -> None:
        self.begun.set()
        assert self.let_go.wait(DEADLINE_S)


def test_readers_do_not_wait_for_what_is_being_kept_and_do_not_see_it() -> None:
    store = Held()
    writer = threading.Thread(target=store.commit_deploy, args=[a_deploy(a_wanted_api(a_build()))])
    writer.start()
    try:
        assert store.begun.wait(DEADLINE_S)
        assert (store.apis(), store.versions(), store.revision) == ((), (), 0)
    finally:
        store.let_go.set()
        writer.join()
    assert [record.wanted.api for record in store.apis()] == [API]


def test_what_is_changed_together_is_one_transaction_of_what_differs_at_the_end() -> None:
    store = Counting()
    with store.together():
        store.set_meta("a", "1")
        store.set_meta("b", "1")
        with store.together():
            store.set_meta("a", "2")
        store.set_meta("c", "1")
        assert store.meta("a") == "2"
        assert store.made == []
    assert store.made == [([Write("meta", "a", "2"), Write("meta", "b", "1"), Write("meta", "c", "1")], False)]
    with store.together():
        store.set_meta("a", "3")
        store.set_meta("a", "2")
    assert len(store.made) == 1
    with store.together():
        store.set_meta("a", "3")
        store.commit_deploy(a_deploy(a_wanted_api(a_build())))
    assert store.made[1][1], "it survives a power failure if anything in it has to"


def test_what_was_changed_together_is_taken_back_where_it_cannot_be_kept() -> None:
    store = Counting()
    store.set_meta("a", "1")
    before, store.is_full = store.content(), True

    def change(error: Exception | None = None) -> None:
        with store.together():
            store.set_meta("a", "2")
            store.set_meta("b", "1")
            store.commit_deploy(a_deploy(a_wanted_api(a_build())))
            assert [record.wanted.api for record in store.apis()] == [API]
            if error is not None:
                raise error

    with pytest.raises(StateFull):
        change()
    assert (store.content(), store.apis()) == (before, ())
    store.is_full = False
    with pytest.raises(ValueError):
        change(ValueError())
    assert store.content() == before
    store.set_meta("a", "4")
    assert store.made[-1] == ([Write("meta", "a", "4")], False)
