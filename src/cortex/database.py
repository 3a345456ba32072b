"""
One SQLite file of ours: opened, brought to the newest schema, changed by whole transactions, its errors by what helps.

Write-ahead log, so that readers of the file see whole transactions even while one is written, and a process that is
killed at any moment leaves the last whole one.
"""

from __future__ import annotations

import contextlib
import enum
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

BUSY_TIMEOUT_S = 5.0
"""How long a write waits for another process: a backup that reads the file, a process of ours that is just ending."""
LOG_LIMIT_BYTES = 16 * 2**20
"""What the write-ahead log is cut to after a time in which readers kept it from being taken in."""

Execute = Callable[..., sqlite3.Cursor]
Migration = str | Callable[[Execute], None]
"""What brings a file from schema version i to i + 1: statements with `;` between them, or a function."""


class Trouble(enum.Enum):
    """Why SQLite refused something, by what can be done about it."""

    FULL = "the disk is full"
    DAMAGED = "the file is damaged, or no database"
    BUSY = "another process holds it"
    OTHER = "something else, which its text tells"


def trouble_of(error: sqlite3.Error) -> Trouble:
    code = (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return Trouble.FULL
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return Trouble.DAMAGED
    return Trouble.BUSY if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED) else Trouble.OTHER


class SchemaTooNew(Exception):
    """A newer Cortex wrote the file."""

    def __init__(self, found: int, known: int) -> None:
        self.found = found
        self.known = known
        super().__init__(f"written by a newer Cortex (schema version {found}, known are up to {known})")


class Database:
    """
    The file behind a store. Not thread-safe: the store has a lock.

    Args:
        file: created with mode 0600 when there is none.
        migrations: all there ever were. Append only: released ones have run on users' files.
        version_table: the schema's version is in a table of its own, and not in SQLite's `user_version`.

    Raises:
        SchemaTooNew
        sqlite3.Error, OSError: it cannot be opened or brought up to date; nothing was changed.
    """

    def __init__(self, file: Path, migrations: Sequence[Migration], *, version_table: bool = False) -> None:
        os.close(os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        self.connection = sqlite3.connect(file, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
        try:
            self.connection.execute("PRAGMA journal_mode = WAL")
            self.connection.execute(f"PRAGMA journal_size_limit = {LOG_LIMIT_BYTES}")
            self._migrate(migrations, version_table)
        except BaseException:
            self.connection.close()
            raise

    def close(self) -> None:
        self.connection.close()

    def damage(self) -> str:
        """What a look through the whole file finds wrong; empty when nothing is."""
        found = str(self.connection.execute("PRAGMA quick_check(1)").fetchone()[0])
        return "" if found == "ok" else found

    @contextlib.contextmanager
    def transaction(self, *, durable: bool = False) -> Iterator[sqlite3.Connection]:
        """
        All of it or nothing.

        Args:
            durable: forced to disk before it counts; else a power failure may take the last moment back.
        """
        connection = self.connection
        connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
        try:
            connection.execute("BEGIN IMMEDIATE")
            yield connection
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:  # a full disk has rolled back already
                with contextlib.suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
            raise

    def _migrate(self, migrations: Sequence[Migration], version_table: bool) -> None:
        with self.transaction(durable=True) as connection:
            execute = connection.execute
            if version_table:
                execute("CREATE TABLE IF NOT EXISTS schema_version (version INTEGER NOT NULL)")
            asked = "SELECT max(version) FROM schema_version" if version_table else "PRAGMA user_version"
            found = execute(asked).fetchone()[0] or 0
            if found > len(migrations):
                raise SchemaTooNew(found, len(migrations))
            for migration in migrations[found:]:
                if isinstance(migration, str):
                    for statement in migration.split(";"):
                        execute(statement)
                else:
                    migration(execute)
            if found == len(migrations):
                return
            if version_table:
                execute("DELETE FROM schema_version")
                execute("INSERT INTO schema_version VALUES (?)", (len(migrations),))
            else:
                execute(f"PRAGMA user_version = {len(migrations)}")
