"""
State in one SQLite file, for one machine.

Write-ahead log, so that readers of the file see whole transactions even while one is written, and a process that is
killed at any moment leaves the last whole one. Deploys are forced to disk before they count; marks and exits may
lose the last moment at a power failure, and are then simply found out again.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

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
from cortex.state.records import KINDS, ApiRow, Kind, RecordStore, StoredRun, Write

BUSY_TIMEOUT_S = 5.0
"""How long a write waits for another process, e.g. a backup that reads the file."""

Execute = Callable[..., sqlite3.Cursor]


def _versions_as_rows(execute: Execute) -> None:
    """Each api held two whole builds and its number of replicas, and each line of history what it had run from."""
    for kind in ("versions", "scale"):
        execute(f"CREATE TABLE {kind} (key TEXT PRIMARY KEY, record BLOB NOT NULL) WITHOUT ROWID")
    for (record,) in execute("SELECT record FROM apis").fetchall():
        for kind, row_key, row in older.rows_of(msgspec.json.decode(record)):
            execute(f"INSERT OR REPLACE INTO {kind} VALUES (?, ?)", (row_key, msgspec.json.encode(row)))


MIGRATIONS: tuple[str | Callable[[Execute], None], ...] = (
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
)
"""What brings the file from schema version i to i + 1. Append only: released ones have run on users' files."""

_TYPES: dict[Kind, Any] = {
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


class SqliteStateStore(RecordStore):
    """
    Implements `StateStore` in a file, which is created (mode 0600) when there is none.

    Raises:
        StateTooNew: a newer Cortex wrote the file.
        StateCorrupt: it is damaged, or no file of ours.
        StateError: it cannot be opened; says why.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._decoders = {kind: msgspec.json.Decoder(type_) for kind, type_ in _TYPES.items()}
        with self._named_errors():
            os.close(os.open(file, os.O_RDWR | os.O_CREAT, 0o600))
            self._connection = sqlite3.connect(
                file, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
            )
        try:
            with self._named_errors():
                self._connection.execute("PRAGMA journal_mode = WAL")
                self._check()
                self._migrate()
                super().__init__(self._read_all())
                if (api := self._incomplete()) is not None:
                    raise self._corrupt(f"of the api {api!r} a version or the scale is missing")
        except BaseException:
            self._connection.close()
            raise

    def take_epoch(self) -> int:
        with self._lock, self._named_errors(), self._transaction(durable=True) as execute:
            # Read within the transaction: another process may have taken one since we started.
            rows = execute("SELECT record FROM meta WHERE key = 'epoch'").fetchall()
            epoch = 1 + (int(self._decoders["meta"].decode(rows[0][0])) if rows else 0)
            write = Write("meta", "epoch", str(epoch))
            execute(_UPSERT["meta"], (write.key, msgspec.json.encode(write.record)))
        self._apply([write])
        return epoch

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    # ---- RecordStore --------------------------------------------------------------------------------------------

    def _persist(self, writes: Sequence[Write], *, durable: bool) -> None:
        with self._named_errors(), self._transaction(durable=durable) as execute:
            for write in writes:
                if write.record is None:
                    execute(_DELETE[write.kind], (write.key,))
                else:
                    execute(_UPSERT[write.kind], (write.key, msgspec.json.encode(write.record)))

    # ---- the file -----------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _transaction(self, *, durable: bool) -> Iterator[Any]:
        connection = self._connection
        connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection.execute
            connection.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            raise

    def _check(self) -> None:
        found = self._connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            raise self._corrupt(found)

    def _migrate(self) -> None:
        with self._transaction(durable=True) as execute:
            execute("CREATE TABLE IF NOT EXISTS schema_version (version INTEGER NOT NULL)")
            row = execute("SELECT version FROM schema_version").fetchone()
            found = row[0] if row is not None else 0
            if found > len(MIGRATIONS):
                raise StateTooNew(str(self._file), found=found, known=len(MIGRATIONS))
            for migration in MIGRATIONS[found:]:
                self._bring_up(migration, execute)
            execute("DELETE FROM schema_version")
            execute("INSERT INTO schema_version VALUES (?)", (len(MIGRATIONS),))

    def _bring_up(self, migration: str | Callable[[Execute], None], execute: Execute) -> None:
        if isinstance(migration, str):
            for statement in migration.split(";"):
                if statement.strip():
                    execute(statement)
            return
        try:
            migration(execute)
        except (msgspec.MsgspecError, LookupError, TypeError, ValueError) as error:
            raise self._corrupt(f"a record of an older Cortex cannot be read: {error}") from error

    def _read_all(self) -> Iterator[Write]:
        for kind in KINDS:
            for key, record in self._connection.execute(f"SELECT key, record FROM {kind}"):
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
        try:
            yield
        except sqlite3.Error as error:
            code = (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF
            place, text = str(self._file), str(error)
            if code == sqlite3.SQLITE_FULL:
                hint = "free some space; what was deployed before goes on serving"
                raise StateFull(place, f"the disk is full ({text})", hint=hint) from error
            if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                raise self._corrupt(text) from error
            if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise StateBusy(place, f"another process holds it ({text})", hint="try again") from error
            raise StateError(place, text, hint="check that the folder exists and can be written") from error
        except OSError as error:
            hint = "check that the folder exists and can be written"
            raise StateError(str(self._file), error.strerror or str(error), hint=hint) from error


_UPSERT = {
    kind: f"INSERT INTO {kind} VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET record = excluded.record" for kind in KINDS
}
_DELETE = {kind: f"DELETE FROM {kind} WHERE key = ?" for kind in KINDS}
