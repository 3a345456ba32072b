"""
Events on disk: the last 14 days, bounded by number, in one SQLite file that nothing else depends on.

What happens again soon is counted on its line, which moves to the end: a crash loop is one line and not a thousand.
A line's serial is that of its last change, so whoever reads on after a serial misses nothing.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from cortex.database import Database, SchemaTooNew, Trouble, trouble_of
from cortex.errors import CortexError
from cortex.ids import ApiKey, DeploymentName
from cortex.wire.events import BEGINNINGS, COUNTED, ENDS, Event, EventKind

log = logging.getLogger(__name__)

KEPT_S = 14 * 86400.0
"""As long as the history of a deleted api."""
MOST_OF_API = 1000
"""Lines of one api, and likewise of the machine: what one does again and again leaves the lines of others alone."""
MOST = 20_000
"""Lines in all: some 20 MB."""
COUNTED_EVERY = 64
"""Of so many that are added one has all lines counted: that takes a millisecond."""
AGAIN_S = 3600.0
"""The same thing within so long is another time of it, later a line of its own."""
LONGEST_TEXT = 2000
PATIENCE_S = 0.05
"""How long a write waits for another process that holds the file: whoever tells an event has something else to do."""

MIGRATIONS = (
    """
    CREATE TABLE event (
        serial INTEGER PRIMARY KEY AUTOINCREMENT,
        api TEXT NOT NULL,  -- empty: of the machine
        deployment TEXT NOT NULL,
        kind TEXT NOT NULL,
        same TEXT NOT NULL,
        once TEXT NOT NULL,
        first_wall_s REAL NOT NULL,
        last_wall_s REAL NOT NULL,
        count INTEGER NOT NULL,
        event BLOB NOT NULL  -- Event, JSON
    );
    CREATE INDEX event_of_api ON event (api, serial);
    CREATE INDEX event_by_age ON event (last_wall_s);
    CREATE INDEX event_once ON event (once) WHERE once != '';
    CREATE TABLE place (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
    """,
)
"""Script n brings a file from schema version n to n + 1. Scripts are never changed, only appended."""

_encode = msgspec.json.Encoder().encode
_event = msgspec.json.Decoder(Event).decode


class EventsUnusable(CortexError):
    """Events cannot be kept or read; nothing else depends on them."""

    reference = "events-unusable"

    def __init__(self, file: Path, reason: str, hint: str = "") -> None:
        self.file = file
        self.hint = hint or f"free space, or move {file} away; what is told meanwhile is kept later, as far as it fits"
        super().__init__(f"events in {file}: {reason}")


class KeptEvent(msgspec.Struct, frozen=True, kw_only=True):
    """A line: an event with when, and how often."""

    serial: int
    """Of the last change; larger than that of every line that changed before."""
    event: Event
    """As it was told last."""
    first_wall_s: float
    last_wall_s: float
    count: int


class EventStore:
    """
    The events of a home. Thread-safe.

    Args:
        file: created when there is none; a damaged one is moved aside, as `<file>.damaged`, and begun anew.

    Raises:
        EventsUnusable: it cannot be opened.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._place = ""
        with self._named_errors():
            try:
                self.database = self._opened()
            except sqlite3.Error as error:
                if trouble_of(error) is not Trouble.DAMAGED:
                    raise
                log.error("events in %s: %s; moved aside, and begun anew", file, error)
                file.replace(file.with_name(f"{file.name}.damaged"))
                for left in ("-wal", "-shm"):
                    file.with_name(file.name + left).unlink(missing_ok=True)
                self.database = self._opened()
            self.database.connection.execute(f"PRAGMA busy_timeout = {round(PATIENCE_S * 1000)}")

    def close(self) -> None:
        with self._lock:
            self.database.close()

    @property
    def place(self) -> str:
        """Names the file's content: serials of another one mean something else."""
        return self._place

    def add(self, event: Event, *, wall_s: float) -> bool:
        """
        Keep an event, and forget what is one too many.

        Returns:
            False where it was told before under the same `once`.

        Raises:
            EventsUnusable
        """
        api, same = event.api or "", event.same or event.text
        if len(event.text) > LONGEST_TEXT:
            event = msgspec.structs.replace(event, text=event.text[: LONGEST_TEXT - 1] + "…")
        with self._lock, self._named_errors(), self.database.transaction() as connection:
            if event.once and connection.execute("SELECT 1 FROM event WHERE once = ?", (event.once,)).fetchone():
                return False
            first_wall_s, count = wall_s, 1
            if event.kind in COUNTED and (before := _last_time(connection, api, event.kind, same)) is not None:
                serial, first, last, times = before
                if abs(wall_s - last) < AGAIN_S:
                    connection.execute("DELETE FROM event WHERE serial = ?", (serial,))
                    first_wall_s, count = min(first, wall_s), times + 1
            deployment = api.partition("/")[0]
            added = connection.execute(
                "INSERT INTO event (api, deployment, kind, same, once, first_wall_s, last_wall_s, count, event)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (api, deployment, event.kind, same, event.once, first_wall_s, wall_s, count, _encode(event)),
            )
            _prune(connection, api, wall_s, all_apis=(added.lastrowid or 0) % COUNTED_EVERY == 0)
        return True

    def page(
        self,
        *,
        now_wall_s: float,
        limit: int,
        deployment: DeploymentName | None = None,
        api: ApiKey | None = None,
        after: int | None = None,
    ) -> tuple[KeptEvent, ...]:
        """
        Lines in the sequence of their last change.

        Args:
            limit: at most so many: the first ones after `after`, else the last ones.
            api: of this one only; with `deployment`, of all of that one. Neither: of everything.
            after: only lines that have changed since this serial.

        Raises:
            EventsUnusable
        """
        where, values = ["last_wall_s > ?"], [now_wall_s - KEPT_S]
        conditions = (("api = ?", api), ("deployment = ?", deployment), ("serial > ?", after))
        for condition, value in conditions:
            if value is not None:
                where.append(condition)
                values.append(value)  # type: ignore[arg-type]
        order = "DESC" if after is None else "ASC"
        query = f"SELECT {_COLUMNS} FROM event WHERE {' AND '.join(where)} ORDER BY serial {order} LIMIT ?"
        with self._lock, self._named_errors():
            rows = self.database.connection.execute(query, (*values, limit)).fetchall()
        kept = [_kept(row) for row in rows]
        return tuple(kept if after is not None else reversed(kept))

    def latest(self, api: ApiKey, kinds: Sequence[EventKind], *, now_wall_s: float) -> KeptEvent | None:
        """The last line of an api that is of one of these kinds. Raises EventsUnusable."""
        marks = ", ".join("?" * len(kinds))
        query = (
            f"SELECT {_COLUMNS} FROM event WHERE api = ? AND kind IN ({marks}) AND last_wall_s > ?"
            " ORDER BY serial DESC LIMIT 1"
        )
        with self._lock, self._named_errors():
            row = self.database.connection.execute(query, (api, *kinds, now_wall_s - KEPT_S)).fetchone()
        return None if row is None else _kept(row)

    def last_serial(self) -> int:
        """Of everything that was ever kept. Raises EventsUnusable."""
        with self._lock, self._named_errors():
            row = self.database.connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'event'").fetchone()
        return 0 if row is None else int(row[0])

    def standing(self) -> dict[tuple[str, EventKind], str]:
        """By api and the kind that began it, what has not ended yet: what makes it the same. Raises EventsUnusable."""
        found: dict[tuple[str, EventKind], str] = {}
        kinds = (*ENDS, *BEGINNINGS, EventKind.DELETED)
        marks = ", ".join("?" * len(kinds))
        query = f"SELECT api, kind, same FROM event WHERE kind IN ({marks}) ORDER BY serial"
        with self._lock, self._named_errors():
            rows = self.database.connection.execute(query, kinds).fetchall()
        for api, kind, same in rows:
            apply_to(found, api, EventKind(kind), same)
        return found

    def _opened(self) -> Database:
        database = Database(self._file, MIGRATIONS)
        try:
            if damage := database.damage():
                raise _Damaged(damage)
            with database.transaction() as connection:
                connection.execute("INSERT OR IGNORE INTO place VALUES ('place', ?)", (secrets.token_hex(4),))
            (self._place,) = database.connection.execute("SELECT value FROM place WHERE name = 'place'").fetchone()
        except BaseException:
            database.close()
            raise
        return database

    @contextlib.contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except SchemaTooNew as error:
            raise EventsUnusable(self._file, str(error), "start the newer Cortex, or move the file away") from error
        except (sqlite3.Error, OSError, msgspec.MsgspecError) as error:
            raise EventsUnusable(self._file, str(error)) from error


class _Damaged(sqlite3.DatabaseError):
    """What a look through the file has found."""

    sqlite_errorcode = sqlite3.SQLITE_CORRUPT


def _prune(connection: sqlite3.Connection, api: str, wall_s: float, *, all_apis: bool) -> None:
    connection.execute("DELETE FROM event WHERE last_wall_s <= ?", (wall_s - KEPT_S,))
    connection.execute(
        "DELETE FROM event WHERE api = ?1 AND serial <="
        " (SELECT serial FROM event WHERE api = ?1 ORDER BY serial DESC LIMIT 1 OFFSET ?2)",
        (api, MOST_OF_API),
    )
    if all_apis:
        connection.execute(
            "DELETE FROM event WHERE serial <= (SELECT serial FROM event ORDER BY serial DESC LIMIT 1 OFFSET ?)",
            (MOST,),
        )


def _last_time(
    connection: sqlite3.Connection, api: str, kind: EventKind, same: str
) -> tuple[int, float, float, int] | None:
    """The last line of the same thing: serial, first and last instant, count."""
    found: tuple[int, float, float, int] | None = connection.execute(
        "SELECT serial, first_wall_s, last_wall_s, count FROM event WHERE api = ? AND kind = ? AND same = ?"
        " ORDER BY serial DESC LIMIT 1",
        (api, kind, same),
    ).fetchone()
    return found


def apply_to(standing: dict[tuple[str, EventKind], str], api: str, kind: EventKind, same: str) -> None:
    """What an event of an api changes of what has begun and not ended."""
    if kind in ENDS:
        standing[api, kind] = same
    elif kind in BEGINNINGS:
        standing.pop((api, BEGINNINGS[kind]), None)
    elif kind is EventKind.DELETED:
        for beginning in ENDS:
            standing.pop((api, beginning), None)


_COLUMNS = "serial, event, first_wall_s, last_wall_s, count"


def _kept(row: tuple[int, bytes, float, float, int]) -> KeptEvent:
    serial, event, first_wall_s, last_wall_s, count = row
    return KeptEvent(
        serial=serial, event=_event(event), first_wall_s=first_wall_s, last_wall_s=last_wall_s, count=count
    )
