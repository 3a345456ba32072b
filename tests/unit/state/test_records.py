"""What holds for every store, whatever keeps its records: tests of `cortex.state.records`."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from cortex.state.records import StateStore, Write
from cortex.testing.builders import API, a_build, a_deploy, a_wanted_api

DEADLINE_S = 60.0


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
