"""
Who leads a cluster, and the sequence of what its leader writes: decided by nothing but objects that are created once.

A leader has an epoch, by creating `epoch/<e>`, and writes its transactions to `state/<e>/0, 1, 2, …`, each when the one
before is there. Whoever leads next first seals all epochs before: it creates the first number of each that is free. So
that number, too, is taken by one of the two: either the older leader's transaction is there, and the newer one reads
it, or the seal is, and the older one finds out that it leads no more.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterable

import msgspec

from cortex.clock import Clock
from cortex.errors import CortexError
from cortex.state.base import NotLeader, StateCorrupt, StateInDoubt, StateTooNew
from cortex.state.objects import (
    EPOCHS,
    SNAPSHOTS,
    STATE,
    Changed,
    Content,
    Damaged,
    EpochBegun,
    Numbered,
    Sealed,
    StateRow,
    TooNew,
    Unused,
    Whole,
    decoded,
    encoded,
    epoch_key,
    epochs,
    folded,
    numbers,
    snapshot_key,
    state_key,
)
from cortex.storage.base import Storage, StorageError
from cortex.version import __version__

log = logging.getLogger(__name__)

SNAPSHOT_EVERY = 100
"""Objects. Whoever leads next reads these one after the other: 3 to 5 s where an object takes 30 to 50 ms."""
KEPT_S = 600.0
"""
For so long what a later snapshot has made superfluous is kept: for whoever is reading it just now, and so that a list
of keys may be that old, as those of a shared file system can be, and the one who goes by it still misses nothing.
"""


class Inherited(msgspec.Struct, frozen=True):
    """What the leader before left."""

    schema: int
    """Of the rows."""
    rows: tuple[StateRow, ...]


class Leadership:
    """
    The sequence of objects that one leader writes. Not thread-safe but for `find_out`, `snapshot` and `clear_up`, which
    one other thread may call.

    Args:
        schema: of the rows that are written, and the newest that can be read.
        who: where this leader runs, for people.

    Attributes:
        epoch: under which it leads; 0 before `take`.
        number: of its last transaction.
    """

    def __init__(self, storage: Storage, clock: Clock, *, schema: int, who: str = "") -> None:
        self._storage = storage
        self._clock = clock
        self._schema = schema
        self._who = who
        self._token = secrets.token_hex(8)
        self._in_doubt: Changed | None = None
        self._wholes: list[tuple[int, float]] = []
        """Number of each whole state of this epoch that is there, and when it was written."""
        self._cleared = 0
        """The whole state of this epoch before which nothing is left."""
        self._older_cleared = False
        self._followed_by: int | None = None
        self._resigned = False
        self.epoch = 0
        self.number = -1

    @property
    def leads(self) -> bool:
        """Whether nobody is known to have become the leader after us, and we have not resigned."""
        return self._followed_by is None and not self._resigned

    @property
    def since_snapshot(self) -> int:
        """How many transactions are newer than the newest snapshot."""
        return self.number - self._wholes[-1][0]

    def check(self) -> None:
        """Raises NotLeader where it is known that we lead no more."""
        if self._followed_by is not None:
            raise self._followed(self._followed_by)
        if self._resigned:
            raise NotLeader(self._storage.place, epoch=self.epoch, by=None)

    # ---- becoming the leader ----------------------------------------------------------------------------------------

    def take(self, *, above: int = 0) -> Inherited:
        """
        Become the leader, and end whoever was it, ourselves included. Follow with `begin`.

        Args:
            above: the epoch is to be greater than this.

        Raises:
            NotLeader: somebody else became it meanwhile.
            StateTooNew: a newer Cortex led; nothing was changed.
            StateCorrupt: what the leader before left cannot be read: names the object.
            StorageError
        """
        self.check()
        newest = max(self._epochs(), default=0)
        if self.epoch and newest > self.epoch:
            raise self._followed(newest)
        if newest:
            self._check_schema(newest)
        self._token = secrets.token_hex(8)
        self.epoch, self.number = max(newest, above) + 1, -1
        self._in_doubt, self._wholes, self._cleared, self._older_cleared = None, [], 0, False
        begun = EpochBegun(
            schema=self._schema,
            epoch=self.epoch,
            token=self._token,
            who=self._who,
            version=__version__,
            wall_s=self._clock.wall_s(),
        )
        if not self._created(epoch_key(self.epoch), begun):
            raise self._followed(self.epoch)
        # Only now: of two who begin at once, at least one sees the other.
        known = self._epochs()
        if max(known) > self.epoch:
            raise self._followed(max(known))
        for epoch in sorted(known - {self.epoch}, reverse=True):
            inherited = self._sealed(epoch)
            if inherited is not None:
                return inherited  # its leader has sealed all before it
        return Inherited(self._schema, ())

    def begin(self, rows: Iterable[StateRow]) -> None:
        """
        Write the state that this epoch begins with.

        Raises:
            NotLeader: somebody else became the leader meanwhile.
            StorageError
        """
        whole = Whole(schema=self._schema, epoch=self.epoch, number=0, token=self._token, rows=tuple(rows))
        if not self._created(state_key(self.epoch, 0), whole):
            raise self._followed(self._sealed_by(0))
        self.number = 0
        self._wholes.append((0, self._clock.monotonic_s()))

    # ---- leading ----------------------------------------------------------------------------------------------------

    def append(self, rows: Iterable[StateRow]) -> None:
        """
        Write a transaction. `settle` first.

        Raises:
            NotLeader: it was not written, and nothing will be.
            StateInDoubt: it is not known whether it was written; `settle` will find out.
        """
        self.check()
        assert self._in_doubt is None, "what became of the one before has to be known first"
        changed = Changed(
            schema=self._schema, epoch=self.epoch, number=self.number + 1, token=self._token, rows=tuple(rows)
        )
        try:
            was_created = self._created(state_key(self.epoch, changed.number), changed)
        except StorageError as error:
            self._in_doubt = changed
            raise StateInDoubt(error) from error
        if not was_created:
            raise self._followed(self._sealed_by(changed.number))
        self.number = changed.number

    def settle(self) -> tuple[StateRow, ...]:
        """
        Find out what became of a transaction that was in doubt. If it is not there, it never will be after this.

        Returns:
            What it changed, if it is there after all.

        Raises:
            NotLeader: it was not written, and nothing will be.
            StateInDoubt: it is still not known.
        """
        self.check()
        doubtful = self._in_doubt
        if doubtful is None:
            return ()
        number, key = doubtful.number, state_key(self.epoch, doubtful.number)
        unused = Unused(schema=self._schema, epoch=self.epoch, number=number, token=self._token)
        try:
            was_created = self._created(key, unused)
            found = unused if was_created else self._numbered(key)
        except StorageError as error:
            raise StateInDoubt(error) from error
        if found not in (unused, doubtful):
            raise self._followed(self._sealed_by(number))
        self._in_doubt, self.number = None, number
        return doubtful.rows if found == doubtful else ()

    def resign(self) -> None:
        """Write nothing any more."""
        self._resigned = True

    def find_out(self) -> None:
        """Look whether somebody else has become the leader. Raises StorageError."""
        newest = max(self._epochs(), default=0)
        if newest > self.epoch:
            self._followed(newest)

    def snapshot(self, number: int, rows: Iterable[StateRow]) -> None:
        """Keep the whole state as it is after a transaction. Raises StorageError."""
        whole = Whole(schema=self._schema, epoch=self.epoch, number=number, token=self._token, rows=tuple(rows))
        self._storage.create(snapshot_key(self.epoch, number), encoded(whole))
        self._wholes.append((number, self._clock.monotonic_s()))

    def clear_up(self) -> None:
        """
        Remove what nobody will read again: of this epoch what comes before the last whole state but one, and epochs
        before the last but one. What later leaders go by stays: who led, and each epoch's seal. Raises StorageError.
        """
        old_enough_s = self._clock.monotonic_s() - KEPT_S
        old = [number for number, written_s in self._wholes if written_s <= old_enough_s]
        if len(old) >= 2 and (first := old[-2]) > self._cleared:
            of_state, snapshots = self._numbers_in(STATE, self.epoch), self._numbers_in(SNAPSHOTS, self.epoch)
            self._storage.delete(state_key(self.epoch, number) for number in of_state if number <= first)
            self._storage.delete(snapshot_key(self.epoch, number) for number in snapshots if number < first)
            self._wholes = [(number, at_s) for number, at_s in self._wholes if number >= first]
            self._cleared = first
        if old and not self._older_cleared:
            for epoch in sorted(epochs(self._storage.keys(STATE)) - {self.epoch}, reverse=True)[1:]:
                of_state = self._numbers_in(STATE, epoch)
                if epoch < self.epoch and len(of_state) > 1:
                    self._storage.delete(snapshot_key(epoch, number) for number in self._numbers_in(SNAPSHOTS, epoch))
                    self._storage.delete(state_key(epoch, number) for number in of_state[:-1])
            self._older_cleared = True

    # ---- inside -----------------------------------------------------------------------------------------------------

    def _epochs(self) -> set[int]:
        return epochs(self._storage.keys(EPOCHS))

    def _numbers_in(self, folder: str, epoch: int) -> list[int]:
        return numbers(self._storage.keys(f"{folder}/{epoch:010}"))

    def _created(self, key: str, content: Content) -> bool:
        """
        Whether this object is there now. One that a broken line kept us from hearing of is recognised by its bytes.

        Raises:
            StorageError: not known.
        """
        written = encoded(content)
        if self._storage.create(key, written):
            return True
        found = self._storage.read(key)
        if found is None:
            raise StorageError(self._storage.place, f"{key} is said to be there, and is not", hint="try again")
        return found == written

    def _sealed(self, epoch: int) -> Inherited | None:
        """End an epoch, and read what there is of it; None where its leader never began."""
        snapshots = self._numbers_in(SNAPSHOTS, epoch)
        listed = self._numbers_in(STATE, epoch)
        last = max(listed, default=-1)
        rows: dict[tuple[str, str], StateRow] | None = None
        schema, number = self._schema, 0
        if snapshots:
            whole = self._numbered(snapshot_key(epoch, snapshots[-1]))
            schema, rows = whole.schema, folded({}, _rows_of(whole))
            number = snapshots[-1] + 1
        while True:
            key = state_key(epoch, number)
            if number > last:
                seal = Sealed(schema=self._schema, epoch=epoch, number=number, token=self._token, by=self.epoch)
                if self._created(key, seal):
                    break
            match found := self._numbered(key):
                case Sealed():
                    break
                case Whole():
                    schema, rows = found.schema, folded({}, found.rows)
                case Changed():
                    rows = folded(rows or {}, found.rows)
                case Unused():
                    pass
            number += 1
        return None if rows is None else Inherited(schema, tuple(rows[key] for key in sorted(rows)))

    def _numbered(self, key: str) -> Numbered:
        """What an object of the sequence holds. Raises StateCorrupt, StateTooNew."""
        found = self._content(key)
        if isinstance(found, EpochBegun) or not key.endswith(f"/{found.epoch:010}/{found.number:010}"):
            raise self._corrupt(key, "it is another object than its key says")
        return found

    def _content(self, key: str) -> Content:
        content = self._storage.read(key)
        if content is None:
            self.find_out()  # whoever leads by now may have removed it
            self.check()
            raise self._corrupt(key, "it is missing, and it was there")
        try:
            return decoded(content, known=self._schema)
        except Damaged as error:
            raise self._corrupt(key, str(error)) from error
        except TooNew as error:
            raise StateTooNew(self._storage.place, found=error.found, known=self._schema) from error

    def _check_schema(self, epoch: int) -> None:
        """Refuse to follow a leader that is newer than we are, before it has noticed anything."""
        self._content(epoch_key(epoch))

    def _corrupt(self, key: str, reason: str) -> StateCorrupt:
        if key.startswith(SNAPSHOTS):
            hint = f"remove {key}: what was before it and what came after are still there; then start Cortex again"
        else:
            hint = "bring it back from a backup or the bucket's older versions; what runs goes on serving"
        return StateCorrupt(f"{self._storage.place}/{key}", reason, hint=hint)

    def _sealed_by(self, number: int) -> int:
        """Who has taken one of our numbers, as far as it can be told."""
        try:
            found = self._numbered(state_key(self.epoch, number))
        except CortexError:
            return self.epoch + 1
        return found.by if isinstance(found, Sealed) else self.epoch + 1

    def _followed(self, by: int) -> NotLeader:
        if self._followed_by is None:
            log.error("another control plane has epoch %s, ours was %s: this one leads no more", by, self.epoch)
        self._followed_by = by
        return NotLeader(self._storage.place, epoch=self.epoch, by=by)


def _rows_of(found: Numbered) -> tuple[StateRow, ...]:
    return found.rows if isinstance(found, Whole | Changed) else ()
