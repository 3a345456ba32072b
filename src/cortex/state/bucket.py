"""
State in a cluster's storage, for control planes on machines that may be lost.

Whoever opens it becomes the leader (`leading`). Each transaction is one object there before it counts, and what is read
lies in memory as in every store. Nothing of it is on the machine's disk: the next leader reads it all from the storage.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable, Sequence

import msgspec

from cortex.clock import Clock
from cortex.state.base import StateCorrupt, StateError
from cortex.state.leading import SNAPSHOT_EVERY, Inherited, Leadership
from cortex.state.objects import StateRow
from cortex.state.records import KINDS, StateStore, Write
from cortex.state.sqlite import MIGRATIONS, TYPES, SampleStored, of_today
from cortex.storage.base import Storage

TEND_EVERY_S = 10.0
"""How long one who leads no more, and changes nothing, may take to find that out."""
IN_DOUBT_S = 1.0
"""Before it is asked again what became of a change that is in doubt."""


class BucketStateStore(StateStore):
    """
    Args:
        who: where this control plane runs; shown where another one finds that it leads.
        sample_stored: for the state of an older Cortex, see `SqliteStateStore`.

    Raises:
        NotLeader: another one became the leader while this one was about to.
        StateTooNew: a newer Cortex led; nothing was changed.
        StateCorrupt: an object is damaged or missing; names it.
        StorageError: the storage cannot be used; says why, and what to do.
    """

    def __init__(
        self, storage: Storage, clock: Clock, *, who: str = "", sample_stored: SampleStored | None = None
    ) -> None:
        super().__init__()
        self._place = storage.place
        self._sample_stored = sample_stored
        self._leadership = Leadership(storage, clock, schema=len(MIGRATIONS), who=who)
        self._tending = threading.Lock()
        """Held while a snapshot is written of the epoch that it belongs to. Taken before `_turn`."""
        self._fresh = True
        """Nobody has asked yet for the epoch that this store was opened with."""
        self._lead(above=0)

    @property
    def leads(self) -> bool:
        """Whether nobody is known to have become the leader after us. Once it does not lead, a store never will."""
        return self._leadership.leads

    def take_epoch(self) -> int:
        """The epoch that this store leads in; another one each time it is asked again."""
        with self._tending, self._turn:
            self._leadership.check()
            if not self._fresh:
                self._lead_anew()
            self._fresh = False
            return self._leadership.epoch

    def tend(self) -> float:
        """
        Do what has time: find out what is in doubt and who leads, write a snapshot, remove what is superfluous.

        Returns:
            Seconds until the next time.

        Raises:
            StateError, StorageError: it could not be done; it is tried again.
        """
        with self._tending:
            if self.leads:
                self._leadership.find_out()
            if not self.leads:
                return TEND_EVERY_S
            with self._changing():
                number, content = self._leadership.number, self.content()
                is_due = self._leadership.since_snapshot >= SNAPSHOT_EVERY
            if is_due:
                self._leadership.snapshot(number, _rows(content))
            self._leadership.clear_up()
            return TEND_EVERY_S

    # ---- one transaction --------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        """Find out what became of a change that is in doubt, and take it in if it is there after all."""
        landed = self._leadership.settle()
        if landed:
            writes = self._read(Inherited(len(MIGRATIONS), landed))
            with self._lock:
                self._apply(writes)

    def _persist(self, writes: Sequence[Write], *, durable: bool) -> None:
        self._leadership.append(_rows(writes))

    # ---- the whole state --------------------------------------------------------------------------------------------

    def _lead_anew(self) -> None:
        try:
            self._lead(above=int(self.meta("epoch") or 0))
        except BaseException:
            self._leadership.resign()  # between two epochs nothing can be written; the next process begins one
            raise

    def _lead(self, *, above: int) -> None:
        """Become the leader, with what the one before left."""
        inherited = self._leadership.take(above=above)
        writes = self._read(inherited)
        with self._lock:
            self._apply([Write(write.kind, write.key, None) for write in self.content()])
            self._apply(writes)
            if (api := self._incomplete()) is not None:
                raise self._corrupt(f"of the api {api!r} a version or the scale is missing")
        self._leadership.begin(_rows(self.content()))

    def _read(self, inherited: Inherited) -> list[Write]:
        """Rows as records of today."""
        if inherited.schema == len(MIGRATIONS):
            return [self._decoded(row) for row in inherited.rows]
        rows = [(row.kind, row.key, bytes(row.record)) for row in inherited.rows]
        try:
            return of_today(rows, inherited.schema, sample_stored=self._sample_stored)
        except StateCorrupt as error:
            raise self._corrupt(error.reason) from error
        except (sqlite3.Error, OSError) as error:
            reason = f"what an older Cortex wrote cannot be brought up to date: {error}"
            raise StateError(self._place, reason, hint="check the room on the disk for temporary files") from error

    def _decoded(self, row: StateRow) -> Write:
        kind = next((kind for kind in KINDS if kind == row.kind), None)
        if kind is None:
            raise self._corrupt(f"there is a record of the kind {row.kind!r}, which is not known")
        if row.is_removal:
            return Write(kind, row.key, None)
        try:
            return Write(kind, row.key, msgspec.json.decode(row.record, type=TYPES[kind]))
        except msgspec.MsgspecError as error:
            raise self._corrupt(f"the record of {row.key!r} in {row.kind!r} cannot be read: {error}") from error

    def _corrupt(self, reason: str) -> StateCorrupt:
        hint = "bring its objects back from a backup or the bucket's older versions; what runs goes on serving"
        return StateCorrupt(self._place, reason, hint=hint)


def _rows(writes: Iterable[Write]) -> list[StateRow]:
    return [StateRow(write.kind, write.key, msgspec.Raw(msgspec.json.encode(write.record))) for write in writes]
