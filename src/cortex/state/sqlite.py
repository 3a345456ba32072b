"""
State in one SQLite file (`cortex.database`), for one machine.

Deploys are forced to disk before they count; marks and exits may lose the last moment at a power failure, and are then
simply found out again.
"""

from __future__ import annotations

import contextlib
import sqlite3
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from cortex.database import Database, Execute, Migration, SchemaTooNew, Trouble, trouble_of
from cortex.planning.batching import BatchingRecord
from cortex.planning.model import Scale
from cortex.state import older
from cortex.state.base import (
    DeploymentRecord,
    StateBusy,
    StateCorrupt,
    StateError,
    StateFull,
    StateTooNew,
    VersionLine,
    VersionRecord,
)
from cortex.state.records import KINDS, ApiRow, Kind, StateStore, StoredRun, Write
from cortex.wire.older import build_of_now

SampleStored = Callable[[bytes], str]
"""Stores a sample's body among the artifacts, and returns the digest of its folder."""


def _versions_as_rows(execute: Execute, _sample_stored: SampleStored) -> None:
    """Each api held two whole builds and its number of replicas, and each line of history what it had run from."""
    for kind in ("versions", "scale"):
        execute(f"CREATE TABLE {kind} (key TEXT PRIMARY KEY, record BLOB NOT NULL) WITHOUT ROWID")
    for (record,) in execute("SELECT record FROM apis").fetchall():
        for kind, row_key, row in older.rows_of(msgspec.json.decode(record)):
            execute(f"INSERT OR REPLACE INTO {kind} VALUES (?, ?)", (row_key, msgspec.json.encode(row)))


def _builds_of_now(execute: Execute, sample_stored: SampleStored) -> None:
    """Builds of before are brought to the form of today; see `wire.older`."""
    for key, record in execute("SELECT key, record FROM versions").fetchall():
        version = msgspec.json.decode(record)
        version["build"] = build_of_now(version["build"], sample_stored)
        execute("UPDATE versions SET record = ? WHERE key = ?", (msgspec.json.encode(version), key))


def _targets_in_effect(execute: Execute, _sample_stored: SampleStored) -> None:
    """`target_cpu_utilization` stood in the files of apis, and did nothing."""
    versions = dict(execute("SELECT key, record FROM versions").fetchall())
    for key, record in execute("SELECT key, record FROM apis").fetchall():
        row = older.with_target(msgspec.json.decode(record), versions)
        execute("UPDATE apis SET record = ? WHERE key = ?", (msgspec.json.encode(row), key))


MIGRATIONS: tuple[str | Callable[[Execute, SampleStored], None], ...] = (
    """
    CREATE TABLE deployments (key TEXT PRIMARY KEY, record BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE apis (key TEXT PRIMARY KEY, record BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE runs (key TEXT PRIMARY KEY, record BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE history (key TEXT PRIMARY KEY, record BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE meta (key TEXT PRIMARY KEY, record BLOB NOT NULL) WITHOUT ROWID;
    """,
    """
    CREATE TABLE batching (key TEXT PRIMARY KEY, record BLOB NOT NULL) WITHOUT ROWID;
    """,
    _versions_as_rows,
    _builds_of_now,  # they held bodies of samples
    _builds_of_now,  # they named no runtime
    _targets_in_effect,  # and nothing was rolled back: an older Cortex would forget that something is
)
"""What brings the file from schema version i to i + 1. Append only: released ones have run on users' files."""


def _steps(sample_stored: SampleStored, schema: int | None = None) -> tuple[Migration, ...]:
    """All that bring a file up to a schema; None: to today's."""
    steps = MIGRATIONS[:schema]
    return tuple(step if isinstance(step, str) else _with(step, sample_stored) for step in steps)


def _with(migration: Callable[[Execute, SampleStored], None], sample_stored: SampleStored) -> Migration:
    return lambda execute: migration(execute, sample_stored)


TYPES: dict[Kind, Any] = {
    "deployments": DeploymentRecord,
    "apis": ApiRow,
    "versions": VersionRecord,
    "scale": Scale,
    "runs": StoredRun,
    "history": tuple[VersionLine, ...],
    "meta": str,
    "batching": BatchingRecord,
}
"""What the records of each table are, as JSON. Fields that an older Cortex wrote may be missing, not renamed."""


class SqliteStateStore(StateStore):
    """
    State in a file, which is created (mode 0600) when there is none.

    Args:
        sample_stored: for the state of an older Cortex, which held bodies of samples; None: there are none in it.

    Raises:
        StateTooNew: a newer Cortex wrote the file.
        StateCorrupt: it is damaged, or no file of ours.
        StateError: it cannot be opened; says why.
        CortexError: a body of a sample cannot be stored; nothing was changed.
    """

    def __init__(self, file: Path, *, sample_stored: SampleStored | None = None) -> None:
        self._file = file
        self._decoders = {kind: msgspec.json.Decoder(type_) for kind, type_ in TYPES.items()}
        with self._named_errors():
            self.database = self._opened(sample_stored or self._has_no_samples)
            try:
                if damage := self.database.damage():
                    raise self._corrupt(damage)
                super().__init__(self._read_all())
                if (api := self._incomplete()) is not None:
                    raise self._corrupt(f"of the api {api!r} a version or the scale is missing")
            except BaseException:
                self.database.close()
                raise

    def take_epoch(self) -> int:
        with self._turn, self._named_errors(), self.database.transaction(durable=True) as connection:
            # Read within the transaction: another process may have taken one since we started.
            rows = connection.execute("SELECT record FROM meta WHERE key = 'epoch'").fetchall()
            epoch = 1 + (int(self._decoders["meta"].decode(rows[0][0])) if rows else 0)
            write = Write("meta", "epoch", str(epoch))
            connection.execute(_UPSERT["meta"], (write.key, msgspec.json.encode(write.record)))
        with self._lock:
            self._apply([write])
        return epoch

    def close(self) -> None:
        with self._turn:
            self.database.close()

    # ---- one transaction ---------------------------------------------------------------------------------------

    def _persist(self, writes: Sequence[Write], *, durable: bool) -> None:
        with self._named_errors(), self.database.transaction(durable=durable) as connection:
            for write in writes:
                if write.record is None:
                    connection.execute(_DELETE[write.kind], (write.key,))
                else:
                    connection.execute(_UPSERT[write.kind], (write.key, msgspec.json.encode(write.record)))

    # ---- the file -----------------------------------------------------------------------------------------------

    def _has_no_samples(self, _body: bytes) -> str:
        raise StateError(str(self._file), "an older Cortex wrote it", hint="start Cortex, which brings it up to date")

    def _opened(self, sample_stored: SampleStored) -> Database:
        try:
            return Database(self._file, _steps(sample_stored), version_table=True)
        except (msgspec.MsgspecError, LookupError, TypeError, ValueError) as error:
            raise self._corrupt(f"a record of an older Cortex cannot be read: {error}") from error

    def _read_all(self) -> Iterator[Write]:
        for kind in KINDS:
            for key, record in self.database.connection.execute(f"SELECT key, record FROM {kind}"):
                try:
                    yield Write(kind, key, self._decoders[kind].decode(record))
                except msgspec.MsgspecError as error:
                    raise self._corrupt(f"the record of {key!r} in {kind!r} cannot be read: {error}") from error

    def _corrupt(self, reason: str) -> StateCorrupt:
        return StateCorrupt(
            str(self._file),
            reason,
            hint=f"restore it from a backup, or move it away and deploy again: mv {self._file} {self._file}.broken",
        )

    @contextlib.contextmanager
    def _named_errors(self) -> Iterator[None]:
        """SQLite's errors as ours, by what a user can do about them."""
        place, hint = str(self._file), "check that the folder exists and can be written"
        try:
            yield
        except SchemaTooNew as error:
            raise StateTooNew(place, found=error.found, known=error.known) from error
        except sqlite3.Error as error:
            text = str(error)
            match trouble_of(error):
                case Trouble.FULL:
                    hint = "free some space; what was deployed before goes on serving"
                    raise StateFull(place, f"the disk is full ({text})", hint=hint) from error
                case Trouble.DAMAGED:
                    raise self._corrupt(text) from error
                case Trouble.BUSY:
                    raise StateBusy(place, f"another process holds it ({text})", hint="try again") from error
                case _:
                    raise StateError(place, text, hint=hint) from error
        except OSError as error:
            raise StateError(place, error.strerror or str(error), hint=hint) from error


_UPSERT = {
    kind: f"INSERT INTO {kind} VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET record = excluded.record" for kind in KINDS
}
_DELETE = {kind: f"DELETE FROM {kind} WHERE key = ?" for kind in KINDS}


def of_today(
    rows: Iterable[tuple[str, str, bytes]], schema: int, *, sample_stored: SampleStored | None = None
) -> list[Write]:
    """
    The records that rows of an older schema become, by the same migrations as a file of that age.

    Args:
        rows: kind, key and JSON of each.

    Raises:
        StateCorrupt: a row cannot be read.
        sqlite3.Error, OSError: the file that this takes cannot be made.
    """
    with tempfile.TemporaryDirectory(prefix="cortex-state-") as folder:
        file = Path(folder) / "state.db"
        database = Database(file, _steps(lambda _body: "", schema), version_table=True)  # of no rows yet
        try:
            with database.transaction() as connection:
                for kind, key, record in rows:
                    connection.execute(f"INSERT INTO {kind} VALUES (?, ?)", (key, record))
        finally:
            database.close()
        store = SqliteStateStore(file, sample_stored=sample_stored)
        try:
            return store.content()
        finally:
            store.close()
