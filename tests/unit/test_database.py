from __future__ import annotations

import sqlite3
import stat
from pathlib import Path

import pytest

from cortex.database import Database, SchemaTooNew, Trouble, trouble_of

FIRST = "CREATE TABLE a (x INTEGER); INSERT INTO a VALUES (1)"
SECOND = "CREATE TABLE b (x INTEGER)"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "some.db"


@pytest.fixture(params=[False, True], ids=["user_version", "table"])
def version_table(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def rows(database: Database, table: str = "a") -> list[int]:
    return [x for (x,) in database.connection.execute(f"SELECT x FROM {table}")]


def test_a_file_is_brought_to_the_newest_schema_step_by_step_and_each_step_once(
    file: Path, version_table: bool
) -> None:
    Database(file, [FIRST], version_table=version_table).close()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    steps = [FIRST, SECOND, lambda execute: execute("INSERT INTO b SELECT x + 1 FROM a")]
    for _ in range(2):
        database = Database(file, steps, version_table=version_table)
        assert (rows(database), rows(database, "b"), database.damage()) == ([1], [2], "")
        database.close()


def test_a_file_of_a_newer_version_is_refused_and_left_alone(file: Path, version_table: bool) -> None:
    Database(file, [FIRST, SECOND], version_table=version_table).close()
    with pytest.raises(SchemaTooNew) as refused:
        Database(file, [FIRST], version_table=version_table)
    assert (refused.value.found, refused.value.known) == (2, 1)
    Database(file, [FIRST, SECOND], version_table=version_table).close()


def test_a_step_that_fails_leaves_the_file_as_it_was(file: Path, version_table: bool) -> None:
    Database(file, [FIRST], version_table=version_table).close()
    with pytest.raises(sqlite3.OperationalError):
        Database(file, [FIRST, SECOND, "NONSENSE"], version_table=version_table)
    database = Database(file, [FIRST, SECOND], version_table=version_table)
    assert (rows(database), rows(database, "b")) == ([1], [])
    database.close()


@pytest.mark.parametrize("durable", [False, True])
def test_a_transaction_is_all_or_nothing(file: Path, durable: bool) -> None:
    database = Database(file, [FIRST])
    with database.transaction(durable=durable) as connection:
        connection.execute("INSERT INTO a VALUES (2)")
    with pytest.raises(sqlite3.OperationalError), database.transaction(durable=durable) as connection:
        connection.execute("INSERT INTO a VALUES (3)").execute("NONSENSE")
    assert rows(database) == [1, 2]
    database.close()


def trouble(file: Path) -> Trouble:
    with pytest.raises(sqlite3.Error) as raised:
        Database(file, [FIRST]).close()
    return trouble_of(raised.value)


def test_errors_are_told_apart_by_what_helps(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cortex.database.BUSY_TIMEOUT_S", 0.05)
    database = Database(file, [FIRST])
    with database.transaction():
        assert trouble(file) is Trouble.BUSY
    pages = database.connection.execute("PRAGMA page_count").fetchone()[0]
    database.connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(sqlite3.Error) as full, database.transaction() as connection:
        connection.execute("CREATE TABLE more (x)")
    assert trouble_of(full.value) is Trouble.FULL
    database.close()
    (tmp_path / "other.db").write_bytes(b"no database" * 100)
    assert trouble(tmp_path / "other.db") is Trouble.DAMAGED
    assert trouble_of(sqlite3.OperationalError("no code")) is Trouble.OTHER
