"""
Statistics on disk: one SQLite file of sums by time, and of what was last seen of each source.

A source's counters only grow. What they grew by and the new "last seen" are written in one transaction, so that
reading a source twice counts once, and what it counted while nobody read is there at the next reading.
"""

from __future__ import annotations

import heapq
import logging
import os
import sqlite3
import threading
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgspec

from cortex.database import Database, SchemaTooNew, Trouble, trouble_of
from cortex.errors import CortexError
from cortex.ids import ApiKey, NodeId, ReplicaId, Version
from cortex.metrics.counts import (
    NOTHING,
    Counts,
    ImplausibleStats,
    Lifetime,
    Reading,
    Tally,
    add_all,
    growth,
    read,
    total,
)
from cortex.metrics.slices import DAY_S, HOUR_S, MINUTE_S, Slice, day_of, minutes_start, rollup, slice_of, window_start
from cortex.wire.localnodes import LOCAL_NODE
from cortex.wire.reports import IngressRefusals
from cortex.wire.stats import EXACT_CLASSES, Attempt, StatsFile

log = logging.getLogger(__name__)

NAMED_CLASSES = 20
"""Classes of an api that have a lifetime count of their own: scrapers keep one series for each."""
CACHED_WINDOWS = 256
"""Sums of windows kept in memory: two for each api and version that was asked for."""

MIGRATIONS = (
    """
    CREATE TABLE series (
        id INTEGER PRIMARY KEY,
        api TEXT NOT NULL,
        version TEXT NOT NULL,
        UNIQUE (api, version)
    );
    CREATE TABLE slice (  -- what was counted in a minute or an hour, and once more in each day
        series INTEGER NOT NULL,
        length_s INTEGER NOT NULL,
        start_s INTEGER NOT NULL,
        counts BLOB NOT NULL,  -- Counts, MessagePack
        PRIMARY KEY (series, length_s, start_s)
    ) WITHOUT ROWID;
    CREATE TABLE class (  -- at most EXACT_CLASSES of a series
        id INTEGER PRIMARY KEY,
        series INTEGER NOT NULL,
        name TEXT NOT NULL,
        UNIQUE (series, name)
    );
    CREATE TABLE class_count (  -- by day: 10,000 classes by minute would be a gigabyte
        class INTEGER NOT NULL,
        day_s INTEGER NOT NULL,
        count INTEGER NOT NULL,
        PRIMARY KEY (class, day_s)
    ) WITHOUT ROWID;
    CREATE TABLE seen (  -- what was last read of an attempt
        replica TEXT NOT NULL,
        attempt INTEGER NOT NULL,
        reading BLOB NOT NULL,  -- Reading, MessagePack
        PRIMARY KEY (replica, attempt)
    );
    CREATE TABLE ingress_seen (
        instance TEXT NOT NULL,
        api TEXT NOT NULL,
        client_error INTEGER NOT NULL,
        server_error INTEGER NOT NULL,
        PRIMARY KEY (instance, api)
    );
    CREATE TABLE lifetime (  -- never smaller than before, for scrapers
        api TEXT PRIMARY KEY,
        touched_s INTEGER NOT NULL,
        counts BLOB NOT NULL,  -- Counts, MessagePack
        rest INTEGER NOT NULL  -- predictions of classes that are not in named_class
    );
    CREATE TABLE named_class (  -- at most NAMED_CLASSES of an api
        api TEXT NOT NULL,
        name TEXT NOT NULL,
        count INTEGER NOT NULL,
        PRIMARY KEY (api, name)
    );
    """,
    """
    ALTER TABLE class ADD COLUMN weight INTEGER NOT NULL DEFAULT 0;  -- grows with its counts
    ALTER TABLE series ADD COLUMN floor INTEGER NOT NULL DEFAULT 0;  -- classes that weigh no more than this have left
    UPDATE class SET weight = (SELECT COALESCE(SUM(count), 0) FROM class_count WHERE class = class.id)
    """,
    """
    CREATE TABLE seen_run (  -- what was last read of a run: attempts are numbered anew after `cortex down`
        replica TEXT NOT NULL,
        attempt INTEGER NOT NULL,
        run TEXT NOT NULL,
        reading BLOB NOT NULL,  -- Reading, MessagePack
        PRIMARY KEY (replica, attempt, run)
    );
    INSERT INTO seen_run SELECT replica, attempt, '', reading FROM seen;
    DROP TABLE seen
    """,
    # 1: its api is gone, and it counts no more.
    "ALTER TABLE seen_run ADD COLUMN discarded INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE ingress_seen ADD COLUMN failed INTEGER NOT NULL DEFAULT 0",
    # Until then there was one node. The second is when a run was last seen to have counted more.
    """
    ALTER TABLE seen_run ADD COLUMN node TEXT NOT NULL DEFAULT 'local';
    ALTER TABLE seen_run ADD COLUMN seen_s INTEGER NOT NULL DEFAULT 0
    """,
)
"""Script n brings a file from schema version n to n + 1. Scripts are never changed, only appended."""

SILENT_INSTANCES = 256
"""Ingress processes that do not report and whose counters are remembered."""

_encode = msgspec.msgpack.Encoder().encode
_counts = msgspec.msgpack.Decoder(Counts).decode
_reading = msgspec.msgpack.Decoder(Reading).decode


class StatsStoreUnusable(CortexError):
    """The statistics cannot be read or written; serving does not depend on them."""

    reference = "stats-store-unusable"

    def __init__(self, file: Path, reason: str, hint: str = "") -> None:
        self.file = file
        self.hint = hint or f"free space or move {file} away; what replicas count meanwhile is merged later"
        super().__init__(f"statistics in {file}: {reason}")


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """Everything counted of a version, or of all versions of an api, from `window_start` on."""

    counts: Counts = NOTHING
    classes: Mapping[str, int] = {}
    """Every class that has a count, in no order; empty unless asked for."""


class StatsStore:
    """
    Statistics in one SQLite file. Thread-safe; every method is one transaction.

    Args:
        file: created when absent. A damaged one is moved aside, and counting begins anew with what the replicas'
            files hold.

    Raises:
        StatsStoreUnusable: by every method, when the file cannot be read or written. Nothing was changed then, and
            the same call may succeed later.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lock = threading.RLock()
        self._windows: dict[tuple[ApiKey, Version | None], _CachedWindow] = {}
        self._windows_version = 0
        self._warned: set[tuple[str, int | str]] = set()
        self.database = _open(file)

    def close(self) -> None:
        with self._lock:
            self.database.close()

    # ---- what is counted ----------------------------------------------------------------------------------------

    def merge(
        self,
        files: Iterable[StatsFile],
        now_wall_s: float,
        *,
        node: NodeId = LOCAL_NODE,
        wanted: Collection[ApiKey] | None = None,
    ) -> int:
        """
        Add what these files hold beyond what was seen of them before.

        Growth is counted in the minute in which the file was written. One that is older than what was seen adds
        nothing. A file of which some counters went backwards and others did not, or that is implausible, is left out
        with one warning.

        Args:
            node: on which they are.
            wanted: apis that there are. A run that is seen for the first time while its api is not among them counts
                for none of its name. None: all are.

        Returns:
            How many of the files held anything new.
        """
        new: dict[tuple[ApiKey, Version], _New] = {}
        grown_files = 0
        with self._changing() as db:
            for file in files:
                is_wanted = wanted is None or file.api in wanted
                grown = self._see(db, file, node, is_wanted=is_wanted, now_wall_s=now_wall_s)
                if grown is None:
                    continue
                grown_files += 1
                written_s = file.wall_s if 0.0 < file.wall_s <= now_wall_s else now_wall_s
                new.setdefault((file.api, file.version), _New()).add(grown, written_s, now_wall_s)
            for (api, version), part in new.items():
                self._count(db, api, version, part, now_wall_s)
        return grown_files

    def merge_ingress(self, counts: Iterable[IngressRefusals], *, live: Collection[str], now_wall_s: float) -> None:
        """
        Add what ingress processes answered themselves, beyond what was seen of them before.

        Args:
            counts: cumulative for each instance and api.
            live: instances that report now. Of the others those seen last are kept: a node whose agent has just been
                started anew says nothing of its ingress yet, and counts in full what was forgotten.
        """
        new: dict[tuple[ApiKey, Version], _New] = {}
        with self._changing() as db:
            for counted in counts:
                grown = self._see_ingress(db, counted)
                if grown is not None:
                    part = new.setdefault((counted.api, counted.version), _New())
                    part.add(Reading(grown, {}), now_wall_s, now_wall_s)
            latest = db.execute("SELECT instance FROM ingress_seen GROUP BY instance ORDER BY MAX(rowid) DESC")
            silent = [instance for (instance,) in latest.fetchall() if instance not in live]
            for instance in silent[SILENT_INSTANCES:]:
                db.execute("DELETE FROM ingress_seen WHERE instance = ?", (instance,))
            for (api, version), part in new.items():
                self._count(db, api, version, part, now_wall_s)

    def known(self) -> dict[NodeId, set[Attempt]]:
        """Attempts whose counters were seen and that were not forgotten, by the node that they are on."""
        found: dict[NodeId, set[Attempt]] = {}
        with self._reading() as db:
            for node, replica, attempt in db.execute("SELECT DISTINCT node, replica, attempt FROM seen_run"):
                found.setdefault(NodeId(node), set()).add((ReplicaId(replica), attempt))
        return found

    def forget(self, node: NodeId, attempts: Iterable[Attempt]) -> None:
        """Forget what was seen of attempts whose files are gone for good: a file seen later would count in full."""
        keys = list(attempts)
        with self._changing() as db:
            one = "DELETE FROM seen_run WHERE node = ? AND replica = ? AND attempt = ?"
            db.executemany(one, [(node, *key) for key in keys])
            self._warned.difference_update(keys)

    def forget_nodes(self, *, but: Collection[NodeId], now_wall_s: float) -> None:
        """
        Forget what was seen on nodes that nobody has heard of, once it is older than the window: what they still have
        was written before that, and is shown nowhere.

        Args:
            but: nodes that were heard of.
        """
        since_s = window_start(now_wall_s)
        with self._changing() as db:
            for (node,) in db.execute("SELECT DISTINCT node FROM seen_run WHERE seen_s < ?", (since_s,)).fetchall():
                if node not in but:
                    db.execute("DELETE FROM seen_run WHERE node = ? AND seen_s < ?", (node, since_s))

    def forget_apis(self, apis: Iterable[ApiKey]) -> None:
        """
        Forget what these apis have counted. What runs of theirs that were seen still count is left out for good.
        """
        with self._changing() as db:
            for api in apis:
                of_api = "(SELECT id FROM series WHERE api = ?)"
                db.execute(
                    "DELETE FROM class_count WHERE class IN (SELECT id FROM class WHERE series IN " + of_api + ")",
                    (api,),
                )
                db.execute("DELETE FROM class WHERE series IN " + of_api, (api,))
                db.execute("DELETE FROM slice WHERE series IN " + of_api, (api,))
                for table in ("series", "lifetime", "named_class"):
                    db.execute(f"DELETE FROM {table} WHERE api = ?", (api,))
                prefix = f"{api.replace('/', '.')}."
                db.execute("UPDATE seen_run SET discarded = 1 WHERE substr(replica, 1, ?) = ?", (len(prefix), prefix))
            self._windows.clear()

    def discarded(self) -> frozenset[Attempt]:
        """Attempts of removed apis with runs that are left out."""
        with self._reading() as db:
            rows = db.execute("SELECT DISTINCT replica, attempt FROM seen_run WHERE discarded = 1")
            return frozenset((ReplicaId(replica), attempt) for replica, attempt in rows)

    def count_again(self, attempts: Iterable[Attempt]) -> None:
        """From what was last seen of them on: an api of the same name has taken them over."""
        with self._changing() as db:
            db.executemany("UPDATE seen_run SET discarded = 0 WHERE replica = ? AND attempt = ?", attempts)

    def sync(self) -> bool:
        """
        Make everything merged so far survive a loss of power; merging alone survives only the end of processes.

        Returns:
            False when another process is in the way just now.
        """
        with self._reading() as db:
            # With synchronous = NORMAL the log is flushed to disk before it is copied, and only then.
            busy, in_log, copied = db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            return not busy and in_log == copied

    def image(self) -> bytes:
        """The whole file as it is now, between two transactions."""
        with self._reading() as db:
            return db.serialize()

    def maintain(self, now_wall_s: float) -> None:
        """Turn old minutes into hours, drop what is older than the window, choose anew which classes are named."""
        since_s = window_start(now_wall_s)
        with self._changing() as db:
            self._windows = {key: kept for key, kept in self._windows.items() if kept.since_s == since_s}
            for (series,) in db.execute("SELECT id FROM series").fetchall():
                _roll_up(db, series, now_wall_s)
            db.execute("DELETE FROM slice WHERE start_s < ?", (since_s,))
            db.execute("DELETE FROM class_count WHERE day_s < ?", (since_s,))
            db.execute("DELETE FROM class WHERE NOT EXISTS (SELECT 1 FROM class_count WHERE class = class.id)")
            db.execute(
                "DELETE FROM series WHERE NOT EXISTS (SELECT 1 FROM slice WHERE series = series.id)"
                " AND NOT EXISTS (SELECT 1 FROM class WHERE series = series.id)"
            )
            db.execute("DELETE FROM lifetime WHERE touched_s < ?", (since_s,))
            db.execute("DELETE FROM named_class WHERE api NOT IN (SELECT api FROM lifetime)")
            for (api,) in db.execute("SELECT DISTINCT api FROM named_class").fetchall():
                _rename_classes(db, api)

    # ---- what is shown ------------------------------------------------------------------------------------------

    def window(
        self, api: ApiKey, version: Version | None = None, *, now_wall_s: float, classes: bool = False
    ) -> Window:
        """
        Everything counted from `window_start` on, of one version or (None) of all together.

        Asked again, it costs microseconds; with `classes`, a copy of up to 10,000 counts.
        """
        with self._reading() as db:
            (changes,) = db.execute("PRAGMA data_version").fetchone()  # of other processes
            if changes != self._windows_version:
                self._windows.clear()
                self._windows_version = changes
            since_s = window_start(now_wall_s)
            cached = self._windows.get((api, version))
            if cached is None or cached.since_s != since_s:
                if len(self._windows) >= CACHED_WINDOWS:
                    self._windows.clear()
                days = _slices(db, api, version, since_s, (DAY_S,))
                cached = _CachedWindow(since_s, Tally(day.counts for day in days))
                self._windows[api, version] = cached
            if classes and cached.classes is None:
                cached.classes = _class_counts(db, api, version, since_s)
            return Window(counts=cached.tally.counts(), classes=dict(cached.classes or {}) if classes else {})

    def recent(
        self, api: ApiKey, version: Version | None = None, *, now_wall_s: float, minutes: int = 60
    ) -> tuple[Slice, ...]:
        """
        The last minutes in which anything was counted, oldest first; the newest is usually not over yet.

        Args:
            minutes: how far back; what is older than a day comes in hours.
        """
        start_s = int(now_wall_s // MINUTE_S) * MINUTE_S - (minutes - 1) * MINUTE_S
        with self._reading() as db:
            return rollup(_slices(db, api, version, start_s, (MINUTE_S, HOUR_S)), now_wall_s)

    def versions(self, api: ApiKey) -> tuple[Version, ...]:
        """Versions of which anything was counted in the window, the one counted first first."""
        with self._reading() as db:
            rows = db.execute("SELECT version FROM series WHERE api = ? ORDER BY id", (api,))
            return tuple(Version(version) for (version,) in rows)

    def lifetimes(self) -> dict[ApiKey, Lifetime]:
        """What each api counted since its counting began; an api without any request for 14 days begins anew."""
        with self._reading() as db:
            named: dict[str, dict[str, int]] = {}
            for api, name, count in db.execute("SELECT api, name, count FROM named_class ORDER BY api, name"):
                named.setdefault(api, {})[name] = count
            return {
                ApiKey(api): Lifetime(counts=_counts(counts), classes=named.get(api, {}), rest=rest)
                for api, counts, rest in db.execute("SELECT api, counts, rest FROM lifetime ORDER BY api")
            }

    # ---- one step each, inside a transaction --------------------------------------------------------------------

    def _see(
        self, db: sqlite3.Connection, file: StatsFile, node: NodeId, *, is_wanted: bool, now_wall_s: float
    ) -> Reading | None:
        """
        Store what a file holds as last seen and return what is new; None when nothing is.

        Also of a run that has counted nothing yet: should its api be removed, what it has in hand is known to be that
        one's.
        """
        key = (file.replica, file.attempt)
        try:
            now = read(file)
        except ImplausibleStats as error:
            self._warn_once(key, str(error))
            return None
        row = db.execute(
            "SELECT reading, discarded FROM seen_run WHERE replica = ? AND attempt = ? AND run = ?", (*key, file.run)
        ).fetchone()
        discarded = not is_wanted if row is None else row[1] == 1
        before = Reading(NOTHING, {}) if row is None else _reading(row[0])
        if before == now and row is not None:
            return None
        grown = growth(before, now)
        if grown is None:
            if growth(now, before) is None:  # else it was only overtaken on its way
                self._warn_once(key, f"counters of {file.replica} (attempt {file.attempt}) went backwards; left out")
            return None
        db.execute(
            "INSERT OR REPLACE INTO seen_run (replica, attempt, run, reading, discarded, node, seen_s)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            (*key, file.run, _encode(now), int(discarded), node, int(now_wall_s)),
        )
        return None if discarded or before == now else grown

    def _see_ingress(self, db: sqlite3.Connection, counted: IngressRefusals) -> Counts | None:
        key = (counted.instance, counted.api)
        row = db.execute(
            "SELECT client_error, server_error, failed FROM ingress_seen WHERE instance = ? AND api = ?", key
        ).fetchone()
        before_client, before_server, before_failed = row or (0, 0, 0)
        client, server = counted.client_error - before_client, counted.server_error - before_server
        failed = counted.failed - before_failed
        if client < 0 or server < 0 or failed < 0:
            self._warn_once(key, f"ingress {counted.instance}: counters of {counted.api} went backwards; left out")
            return None
        if not client and not server:
            return None
        db.execute(
            "INSERT OR REPLACE INTO ingress_seen (instance, api, client_error, server_error, failed)"
            " VALUES (?, ?, ?, ?, ?)",
            (*key, counted.client_error, counted.server_error, counted.failed),
        )
        return Counts(refused_client_error=client, refused_server_error=server, refused_failed=min(failed, server))

    def _count(self, db: sqlite3.Connection, api: ApiKey, version: Version, new: _New, now_wall_s: float) -> None:
        """Write what is new of a version, and keep the sums in memory up with it."""
        _count_lifetime(db, api, new, now_wall_s)
        for place, (tally, classes) in new.places.items():
            if place is None:
                continue
            start_s, length_s = place
            series = _series(db, api, version)
            counted, uncounted, some_left = _count_classes(db, series, day_of(start_s), classes)
            tally.add(uncounted)
            counts = tally.counts()
            _add_to_slice(db, series, start_s, length_s, counts)
            # A window is then the sum of 14 rows, not of 1,800: with 100 busy apis 0.03 s after a start, not 3 s.
            _add_to_slice(db, series, day_of(start_s), DAY_S, counts)
            for key in ((api, version), (api, None)):
                if some_left:
                    self._windows.pop(key, None)
                elif key in self._windows:
                    self._windows[key].add(counts, counted)

    def _warn_once(self, key: tuple[str, int | str], message: str) -> None:
        if key not in self._warned:
            self._warned.add(key)
            log.warning("%s", message)

    # ---- transactions -------------------------------------------------------------------------------------------

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                yield self.database.connection
            except sqlite3.Error as error:
                raise StatsStoreUnusable(self._file, str(error)) from error

    @contextmanager
    def _changing(self) -> Iterator[sqlite3.Connection]:
        with self._reading():
            try:
                with self.database.transaction() as db:
                    yield db
            except BaseException:
                self._windows.clear()  # they may hold what was not written
                raise


class _New:
    """What one merge adds to a version, by slice; under None what is older than the window."""

    def __init__(self) -> None:
        self.places: dict[tuple[int, int] | None, tuple[Tally, dict[str, int]]] = {}

    def add(self, grown: Reading, written_s: float, now_s: float) -> None:
        tally, classes = self.places.setdefault(slice_of(written_s, now_s), (Tally(), {}))
        tally.add(grown.counts)
        add_all(classes, grown.classes)


class _CachedWindow:
    """The sum of a window in memory; `classes` is None until someone asks."""

    def __init__(self, since_s: int, tally: Tally) -> None:
        self.since_s = since_s
        self.tally = tally
        self.classes: dict[str, int] | None = None

    def add(self, counts: Counts, classes: Mapping[str, int]) -> None:
        self.tally.add(counts)
        if self.classes is not None:
            add_all(self.classes, classes)


# ---- rows -----------------------------------------------------------------------------------------------------------


def _series(db: sqlite3.Connection, api: ApiKey, version: Version) -> int:
    """The id of a version's series, made when there is none."""
    row = db.execute("SELECT id FROM series WHERE api = ? AND version = ?", (api, version)).fetchone()
    if row is None:
        row = (db.execute("INSERT INTO series (api, version) VALUES (?, ?)", (api, version)).lastrowid,)
    found: int = row[0]
    return found


def _add_to_slice(db: sqlite3.Connection, series: int, start_s: int, length_s: int, counts: Counts) -> None:
    key = (series, length_s, start_s)
    row = db.execute("SELECT counts FROM slice WHERE series = ? AND length_s = ? AND start_s = ?", key).fetchone()
    if row is not None:
        counts = total((_counts(row[0]), counts))
    db.execute(
        "INSERT OR REPLACE INTO slice (series, length_s, start_s, counts) VALUES (?, ?, ?, ?)",
        (*key, _encode(counts)),
    )


def _count_classes(
    db: sqlite3.Connection, series: int, day_s: int, classes: Mapping[str, int]
) -> tuple[dict[str, int], Counts, bool]:
    """
    Add to a day's classes. A version has room for `EXACT_CLASSES` classes; beyond that the frequent ones stay.

    Returns:
        What was counted by class; what was not, with by how much any class may now be too low on top of before; whether
        classes have left.

    Source: Agarwal et al.: Mergeable summaries, PODS 2012, section 2: merging Misra-Gries summaries.
    """
    counted: dict[str, int] = {}
    new: list[tuple[str, int]] = []
    for name, n in classes.items():
        row = db.execute(
            "UPDATE class SET weight = weight + ? WHERE series = ? AND name = ? RETURNING id", (n, series, name)
        ).fetchone()
        if row is None:
            new.append((name, n))
        else:
            counted[name] = n
            _add_to_class(db, row[0], day_s, n)
    if not new:
        return counted, NOTHING, False
    (taken,) = db.execute("SELECT COUNT(*) FROM class WHERE series = ?", (series,)).fetchone()
    (floor,) = db.execute("SELECT floor FROM series WHERE id = ?", (series,)).fetchone()
    excess = taken + len(new) - EXACT_CLASSES
    light: list[tuple[int, int | None, str]] = []
    """Weight, and either the id of a stored class or the name of a new one: None comes first, so the stored stay."""
    if excess > 0:
        stored = "SELECT weight, id FROM class WHERE series = ? ORDER BY weight LIMIT ?"
        light = [(weight - floor, row_id, "") for weight, row_id in db.execute(stored, (series, excess))]
        light += [(n, None, name) for name, n in new]
        light = heapq.nsmallest(excess, light, key=lambda found: (found[0], found[1] is not None))
    lost = max(0, light[-1][0]) if light else 0
    if lost:
        db.execute("UPDATE series SET floor = ? WHERE id = ?", (floor + lost, series))
    leaving = [row_id for _, row_id, _ in light if row_id is not None]
    _drop_classes(db, series, leaving)
    left_out = {name: n for n, row_id, name in light if row_id is None}
    for name, n in new:
        if name in left_out:
            continue
        row_id = db.execute(
            "INSERT INTO class (series, name, weight) VALUES (?, ?, ?)", (series, name, n + floor)
        ).lastrowid
        assert row_id is not None
        counted[name] = n
        _add_to_class(db, row_id, day_s, n)
    return counted, Counts(other=sum(left_out.values()), undercount=lost), bool(leaving)


def _drop_classes(db: sqlite3.Connection, series: int, leaving: list[int]) -> None:
    """Take classes out; what they had stays in the sums of their days."""
    other: Counter[int] = Counter()
    for row_id in leaving:
        for day_s, n in db.execute("DELETE FROM class_count WHERE class = ? RETURNING day_s, count", (row_id,)):
            other[day_s] += n
    db.executemany("DELETE FROM class WHERE id = ?", ((row_id,) for row_id in leaving))
    for day_s, n in other.items():
        _add_to_slice(db, series, day_s, DAY_S, Counts(other=n))


def _add_to_class(db: sqlite3.Connection, row_id: int, day_s: int, n: int) -> None:
    db.execute(
        "INSERT INTO class_count (class, day_s, count) VALUES (?, ?, ?)"
        " ON CONFLICT (class, day_s) DO UPDATE SET count = count + excluded.count",
        (row_id, day_s, n),
    )


def _count_lifetime(db: sqlite3.Connection, api: ApiKey, new: _New, now_wall_s: float) -> None:
    row = db.execute("SELECT counts, rest FROM lifetime WHERE api = ?", (api,)).fetchone()
    tally, rest = (Tally(), 0) if row is None else (Tally((_counts(row[0]),)), row[1])
    for found, classes in new.places.values():
        counts = found.counts()
        tally.add(counts)
        rest += counts.other
        if classes:
            rest += _count_named(db, api, classes)
    counts = msgspec.structs.replace(tally.counts(), positive={}, negative={}, zeros=0, least=None, greatest=None)
    db.execute(
        "INSERT OR REPLACE INTO lifetime (api, touched_s, counts, rest) VALUES (?, ?, ?, ?)",
        (api, int(now_wall_s), _encode(counts), rest),
    )


def _count_named(db: sqlite3.Connection, api: ApiKey, classes: Mapping[str, int]) -> int:
    """Add to an api's named classes, naming new ones while there is room; returns the predictions of all others."""
    named = {name for (name,) in db.execute("SELECT name FROM named_class WHERE api = ?", (api,))}
    rest = 0
    for name, n in sorted(classes.items(), key=lambda found: -found[1]):
        if name not in named and len(named) >= NAMED_CLASSES:
            rest += n
            continue
        named.add(name)
        db.execute(
            "INSERT INTO named_class (api, name, count) VALUES (?, ?, ?)"
            " ON CONFLICT (api, name) DO UPDATE SET count = count + excluded.count",
            (api, name, n),
        )
    return rest


def _rename_classes(db: sqlite3.Connection, api: str) -> None:
    """
    Name the classes that were most frequent in the window.

    A class that is named anew counts from 0 and what it counted as one of the rest stays there, so that no counter
    ever goes down; the count of one that is no longer named ends.
    """
    frequent = {
        name
        for (name,) in db.execute(
            "SELECT class.name FROM class_count JOIN class ON class.id = class_count.class"
            " JOIN series ON series.id = class.series WHERE series.api = ?"
            " GROUP BY class.name ORDER BY SUM(class_count.count) DESC, class.name LIMIT ?",
            (api, NAMED_CLASSES),
        )
    }
    named = {name for (name,) in db.execute("SELECT name FROM named_class WHERE api = ?", (api,))}
    db.executemany("DELETE FROM named_class WHERE api = ? AND name = ?", ((api, n) for n in named - frequent))
    db.executemany("INSERT INTO named_class (api, name, count) VALUES (?, ?, 0)", ((api, n) for n in frequent - named))


def _roll_up(db: sqlite3.Connection, series: int, now_wall_s: float) -> None:
    """Replace a series' minutes that are too old by hours."""
    old = list(
        db.execute(
            "SELECT length_s, start_s, counts FROM slice WHERE series = ? AND length_s = ? AND start_s < ?",
            (series, MINUTE_S, minutes_start(now_wall_s)),
        )
    )
    if not old:
        return
    for start_s in {start_s // HOUR_S * HOUR_S for _, start_s, _ in old}:
        old += db.execute(
            "SELECT length_s, start_s, counts FROM slice WHERE series = ? AND length_s = ? AND start_s = ?",
            (series, HOUR_S, start_s),
        )
    new = rollup((Slice(start_s=start, length_s=length, counts=_counts(c)) for length, start, c in old), now_wall_s)
    db.executemany(
        "DELETE FROM slice WHERE series = ? AND length_s = ? AND start_s = ?",
        ((series, length_s, start_s) for length_s, start_s, _ in old),
    )
    db.executemany(
        "INSERT INTO slice (series, length_s, start_s, counts) VALUES (?, ?, ?, ?)",
        ((series, found.length_s, found.start_s, _encode(found.counts)) for found in new),
    )


def _slices(
    db: sqlite3.Connection, api: ApiKey, version: Version | None, since_s: int, lengths_s: tuple[int, ...]
) -> Iterator[Slice]:
    """Slices of these lengths, of a version or of all of an api, from an instant on."""
    rows = db.execute(
        "SELECT slice.length_s, slice.start_s, slice.counts FROM series JOIN slice ON slice.series = series.id"
        " WHERE series.api = ? AND (? IS NULL OR series.version = ?)"
        f" AND slice.length_s IN ({', '.join(map(str, lengths_s))}) AND slice.start_s >= ?",
        (api, version, version, since_s),
    )
    for length_s, start_s, counts in rows:
        yield Slice(start_s=start_s, length_s=length_s, counts=_counts(counts))


def _class_counts(db: sqlite3.Connection, api: ApiKey, version: Version | None, since_s: int) -> dict[str, int]:
    return dict(
        db.execute(
            "SELECT class.name, SUM(class_count.count) FROM series JOIN class ON class.series = series.id"
            " JOIN class_count ON class_count.class = class.id"
            " WHERE series.api = ? AND (? IS NULL OR series.version = ?) AND class_count.day_s >= ?"
            " GROUP BY class.name",
            (api, version, version, since_s),
        )
    )


# ---- the file -------------------------------------------------------------------------------------------------------


def _open(file: Path) -> Database:
    try:
        return _connect(file)
    except sqlite3.Error as error:
        if trouble_of(error) is not Trouble.DAMAGED:
            raise StatsStoreUnusable(file, str(error)) from error
        log.error("statistics in %s are damaged (%s): moved aside, counting begins anew", file, error)
    try:
        for ending in ("-shm", "-wal", ""):  # the file last: a new one would take over the old one's log
            part = file.with_name(file.name + ending)
            if part.exists():
                os.replace(part, file.with_name(f"{file.name}.damaged{ending}"))
        return _connect(file)
    except (OSError, sqlite3.Error) as error:
        raise StatsStoreUnusable(file, str(error)) from error


def _connect(file: Path) -> Database:
    """
    Open the file and bring it to the newest schema version.

    Raises:
        StatsStoreUnusable: there is no room for it, or it was written by a newer Cortex.
        sqlite3.Error: it cannot be opened, or is no database.
    """
    try:
        return Database(file, MIGRATIONS)
    except SchemaTooNew as error:
        hint = "install that version of Cortex again, or move the file away"
        raise StatsStoreUnusable(file, str(error), hint=hint) from error
    except OSError as error:
        raise StatsStoreUnusable(file, error.strerror or str(error)) from error
