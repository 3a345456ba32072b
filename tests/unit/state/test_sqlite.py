"""What the file adds to the contract: it outlives us, however we end, and says what is wrong with it."""

from __future__ import annotations

import errno
import os
import signal
import sqlite3
import subprocess
import sys
import tarfile
import textwrap
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from cortex.artifacts.errors import StoreUnavailable
from cortex.artifacts.samples import tree_of
from cortex.ids import replica_id, short
from cortex.planning.actions import RecordExit
from cortex.planning.batching import BatchingStop
from cortex.state import sqlite
from cortex.state.base import StateBusy, StateCorrupt, StateError, StateFull, StateTooNew
from cortex.state.sqlite import MIGRATIONS, SqliteStateStore
from cortex.testing.builders import API, a_build, a_deploy, a_sample, a_wanted_api, an_exit
from cortex.wire.batching import BatchingVerdict, Disagreement, Proof

V1, V2 = a_build("v1"), a_build("v2")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "state.db"


@pytest.fixture
def store(file: Path) -> Iterator[SqliteStateStore]:
    made = SqliteStateStore(file)
    yield made
    made.close()


def unpack_state(schema: int, file: Path) -> None:
    """The state of a home that an older one of us made."""
    with tarfile.open(Path(__file__).parents[2] / "homes" / f"schema_{schema}.tar.gz") as archive:
        content = archive.extractfile("home/state.db")
        assert content is not None
        file.write_bytes(content.read())


def reopened(file: Path) -> SqliteStateStore:
    store = SqliteStateStore(file)
    store.close()
    return store


def test_everything_is_there_again_after_a_restart(store: SqliteStateStore, file: Path) -> None:
    store.commit_deploy(a_deploy(a_wanted_api(V1), wall_s=1.0))
    store.mark_live(API, V1.revision, wall_s=2.0)
    replica = replica_id(API, V1.revision, 0)
    ended = RecordExit(api=API, revision=V1.revision, replica=replica, attempt=1, was_ready=True, exit=an_exit())
    store.record_exit(ended, wall_s=3.0)
    store.set_meta("ports", "8882")
    epoch = store.take_epoch()
    store.close()
    again = SqliteStateStore(file)
    assert again.desired(now_wall_s=4.0) == store.desired(now_wall_s=4.0)
    assert (again.apis(), again.deployments(), again.history(API)) == (
        store.apis(),
        store.deployments(),
        store.history(API),
    )
    assert again.meta("ports") == "8882"
    assert again.take_epoch() == epoch + 1
    again.close()


def test_the_file_is_for_its_owner_only(store: SqliteStateStore, file: Path) -> None:
    assert file.stat().st_mode & 0o777 == 0o600


def test_two_processes_never_get_the_same_epoch(store: SqliteStateStore, file: Path) -> None:
    other = SqliteStateStore(file)
    assert [store.take_epoch(), other.take_epoch(), store.take_epoch()] == [1, 2, 3]
    other.close()


WRITER = """
    import sys
    from pathlib import Path
    from cortex.state.sqlite import SqliteStateStore
    from cortex.testing.builders import a_build, a_deploy, a_wanted_api

    store = SqliteStateStore(Path(sys.argv[1]))
    store.commit_deploy(a_deploy(a_wanted_api(a_build("v1"))))
    statements = 0

    def stop_in_the_middle(statement):
        global statements
        statements += "INSERT" in statement
        if statements == int(sys.argv[2]):
            print("in the middle", flush=True)
            sys.stdin.readline()

    store.database.connection.set_trace_callback(stop_in_the_middle)
    store.commit_deploy(a_deploy(a_wanted_api(a_build("v2")), wall_s=9.0))
    print("committed", flush=True)
    sys.stdin.readline()
"""


@pytest.mark.parametrize(
    ("statement", "said", "label"),
    [(1, "in the middle", "v1"), (2, "in the middle", "v1"), (3, "in the middle", "v1"), (99, "committed", "v2")],
)
def test_a_process_killed_in_the_middle_of_a_deploy_leaves_all_of_it_or_nothing(
    file: Path, statement: int, said: str, label: str
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(WRITER), str(file), str(statement)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline().strip() == said
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdin.close()
    process.stdout.close()
    store = reopened(file)
    (record,) = store.apis()
    assert record.wanted.build == a_build(label)
    assert len(store.history(API)) == (1 if label == "v1" else 2)
    assert store.deployments()[0].updated_wall_s == (0.0 if label == "v1" else 9.0)


def test_a_full_disk_is_named_and_changes_nothing(store: SqliteStateStore, file: Path) -> None:
    store.commit_deploy(a_deploy(a_wanted_api(V1)))
    pages = store.database.connection.execute("PRAGMA page_count").fetchone()[0]
    store.database.connection.execute(f"PRAGMA max_page_count = {pages + 1}")
    many = [a_wanted_api(a_build("v2", api=API))] + [a_wanted_api(a_build(api=f"iris/a{n}")) for n in range(50)]  # type: ignore[arg-type]
    with pytest.raises(StateFull) as raised:
        store.commit_deploy(a_deploy(*many))
    assert raised.value.place == str(file)
    assert raised.value.problem().hint == "free some space; what was deployed before goes on serving"
    assert [record.wanted.build for record in store.apis()] == [V1]
    assert [record.wanted.build for record in reopened(file).apis()] == [V1]
    store.database.connection.execute("PRAGMA max_page_count = 100000")
    store.commit_deploy(a_deploy(*many))
    assert len(store.apis()) == 51


def test_a_damaged_file_is_named_with_what_to_do(file: Path) -> None:
    store = SqliteStateStore(file)
    store.commit_deploy(a_deploy(*[a_wanted_api(a_build(api=f"iris/a{n}")) for n in range(50)]))  # type: ignore[arg-type]
    store.close()
    content = bytearray(file.read_bytes())
    content[len(content) // 2 :] = os.urandom(len(content) - len(content) // 2)
    file.write_bytes(content)
    with pytest.raises(StateCorrupt) as raised:
        SqliteStateStore(file)
    assert f"mv {file} {file}.broken" in raised.value.hint


def test_a_file_that_is_not_ours_is_not_touched(file: Path) -> None:
    file.write_text("dear diary, " * 100)
    with pytest.raises(StateCorrupt):
        SqliteStateStore(file)
    assert file.read_text() == "dear diary, " * 100


def test_a_record_that_cannot_be_read_is_named(file: Path) -> None:
    SqliteStateStore(file).close()
    with sqlite3.connect(file) as connection:
        connection.execute("INSERT INTO apis VALUES ('iris/sklearn', '{\"wanted\": 5}')")
    connection.close()
    with pytest.raises(StateCorrupt, match="record of 'iris/sklearn' in 'apis' cannot be read"):
        SqliteStateStore(file)


@pytest.mark.parametrize("kind", ["versions", "scale"])
def test_an_api_without_its_version_or_scale_is_named(store: SqliteStateStore, file: Path, kind: str) -> None:
    store.commit_deploy(a_deploy(a_wanted_api(V1)))
    store.close()
    with sqlite3.connect(file) as connection:
        connection.execute(f"DELETE FROM {kind}")
    connection.close()
    with pytest.raises(StateCorrupt, match="of the api 'iris/sklearn' a version or the scale is missing"):
        SqliteStateStore(file)


def test_a_newer_schema_is_refused_by_number(file: Path) -> None:
    SqliteStateStore(file).close()
    with sqlite3.connect(file) as connection:
        connection.execute("UPDATE schema_version SET version = 99")
    connection.close()
    with pytest.raises(StateTooNew) as raised:
        SqliteStateStore(file)
    assert (raised.value.found, raised.value.known) == (99, len(MIGRATIONS))
    assert raised.value.problem().reference == "state-too-new"


def test_an_older_schema_is_brought_up_to_date_with_what_it_holds(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = SqliteStateStore(file)
    store.commit_deploy(a_deploy(a_wanted_api(V1)))
    store.close()
    monkeypatch.setattr(
        sqlite, "MIGRATIONS", (*MIGRATIONS, "CREATE TABLE later (key TEXT); CREATE TABLE more (k TEXT)")
    )
    assert [record.wanted.build for record in reopened(file).apis()] == [V1]
    with sqlite3.connect(file) as connection:
        assert connection.execute("SELECT version FROM schema_version").fetchall() == [(len(MIGRATIONS) + 1,)]
        assert connection.execute("SELECT * FROM later").fetchall() == []
    connection.close()


def test_a_file_from_before_rows_were_proved_is_brought_up_to_date(file: Path) -> None:
    unpack_state(2, file)
    with sqlite3.connect(file) as connection:
        connection.execute("DROP TABLE batching")
        connection.execute("UPDATE schema_version SET version = 1")
    connection.close()
    again = SqliteStateStore(file, sample_stored=tree_of)
    again.record_verdict(V1.model_key, BatchingVerdict(proof=Proof(rules=1, proved=True)), place="here")
    again.close()
    assert [record.wanted.api for record in again.apis()] == ["old/handled", "old/plain"]
    assert reopened(file).batching() == again.batching() != ()


def test_a_file_from_before_versions_were_rows_is_brought_up_to_date_with_all_it_held(file: Path) -> None:
    unpack_state(2, file)
    store = SqliteStateStore(file, sample_stored=tree_of)
    handled, plain = store.apis()
    wanted = handled.wanted
    assert wanted.serving is not None
    assert wanted.failed is not None
    assert [(short(build.version), short(build.revision)) for build in (wanted.build, wanted.serving)] == [
        ("1390bd7e", "d996f345"),
        ("d1783445", "274ed483"),
    ]
    assert (wanted.serving_was_live, wanted.live_wall_s, wanted.scale.replicas) == (True, None, 1)
    assert wanted.failed.message.endswith("of no use")
    assert (handled.version.spec["timeout"], handled.version.inspection.has_pre) == ("10m", True)
    assert (short(plain.wanted.build.version), short(plain.wanted.build.revision)) == ("2ce64a8d", "83073fe4")
    assert (plain.wanted.scale.replicas, plain.wanted.rollout_replicas) == (2, 2)
    assert [(short(version.build.revision), version.turn) for version in store.versions()] == [
        ("274ed483", 1),
        ("d996f345", 0),
        ("83073fe4", 1),
    ]
    assert {pin.generation for version in store.versions() for pin in version.build.secrets.values()} == {
        "2fa9cfce7a30a678"
    }
    assert [(short(line.version), line.outcome.partition(":")[0]) for line in store.history(wanted.api)] == [
        ("1390bd7e", "failed"),
        ("d1783445", "live"),
        ("1773a776", "replaced"),
    ]
    store.close()
    assert reopened(file).apis() == (handled, plain)


def test_nothing_of_the_schema_before_was_rolled_back(file: Path) -> None:
    unpack_state(5, file)
    store = reopened(file)
    assert [(record.wanted.api, record.wanted.rolled_back) for record in store.apis()] == [
        ("old/handled", None),
        ("old/plain", None),
    ]
    assert [(short(one.build.version), one.turn, one.withdrawn_wall_s) for one in store.versions()] == [
        ("d1783445", 2, None),
        ("1773a776", 1, None),
        ("1390bd7e", 0, None),
        ("2ce64a8d", 2, None),
    ]


def test_a_target_that_an_older_cortex_only_kept_is_in_effect(file: Path) -> None:
    store = SqliteStateStore(file)
    deployed = a_deploy(a_wanted_api(a_build("v1")))
    (one,) = deployed.apis
    spec = {"compute": {"target_cpu_utilization": 50}}
    version = msgspec.structs.replace(one.version, spec=spec)
    store.commit_deploy(msgspec.structs.replace(deployed, apis=(msgspec.structs.replace(one, version=version),)))
    store.close()
    with sqlite3.connect(file) as connection:
        connection.execute("UPDATE schema_version SET version = 5")
    connection.close()
    store = SqliteStateStore(file)
    (record,) = store.apis()
    assert record.wanted.target_cpu_utilization == 50
    store.close()


def test_a_record_of_an_older_schema_that_cannot_be_read_leaves_the_file_as_it_was(file: Path) -> None:
    unpack_state(2, file)
    with sqlite3.connect(file) as connection:
        connection.execute("UPDATE apis SET record = '{}' WHERE key = 'old/plain'")
    connection.close()
    with pytest.raises(StateCorrupt, match="a record of an older Cortex cannot be read"):
        SqliteStateStore(file, sample_stored=tree_of)
    with sqlite3.connect(file) as connection:
        assert connection.execute("SELECT version FROM schema_version").fetchall() == [(2,)]
    connection.close()


def test_bodies_of_samples_are_stored_and_named_by_digest_from_then_on(file: Path) -> None:
    unpack_state(2, file)
    stored: set[bytes] = set()

    def store(body: bytes) -> str:
        stored.add(body)
        return tree_of(body)

    migrated = SqliteStateStore(file, sample_stored=store)
    migrated.close()
    handled, plain = migrated.apis()
    assert handled.wanted.build.sample == a_sample(b'{"row":[1,2,3,4]}', gate=True, timeout_s=600.0)
    assert plain.wanted.build.sample is None
    assert {version.build.runtime for version in migrated.versions()} == {"onnx"}
    assert stored == {b'{"row":[1,2,3,4]}'}
    assert reopened(file).versions() == migrated.versions(), "and nothing is to be stored any more"


def test_a_body_that_cannot_be_stored_leaves_the_file_as_it_was(file: Path) -> None:
    def full(_body: bytes) -> str:
        raise StoreUnavailable(Path("/artifacts"), OSError(errno.ENOSPC, "no room"))

    unpack_state(2, file)
    with pytest.raises(StoreUnavailable):
        SqliteStateStore(file, sample_stored=full)
    with pytest.raises(StateError, match="an older Cortex wrote it"):
        SqliteStateStore(file)
    with sqlite3.connect(file) as connection:
        assert connection.execute("SELECT version FROM schema_version").fetchall() == [(2,)]
    connection.close()
    migrated = SqliteStateStore(file, sample_stored=tree_of)
    migrated.close()
    assert len(migrated.apis()) == 2


def test_a_disagreement_outlives_the_process(store: SqliteStateStore, file: Path) -> None:
    apart = Disagreement(output="y", alone="0.5", together="0.7")
    stop = BatchingStop(
        api=API, replica=replica_id(API, V1.revision, 0), started_wall_s=3.0, runtime="", disagreement=apart, wall_s=5.0
    )
    store.record_stop(V1.model_key, stop, rules=1)
    assert [record.stops for record in reopened(file).batching()] == [(stop,)]


def test_a_migration_that_fails_leaves_the_file_as_it_was(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = SqliteStateStore(file)
    store.commit_deploy(a_deploy(a_wanted_api(V1)))
    store.close()
    with monkeypatch.context() as patch:
        patch.setattr(sqlite, "MIGRATIONS", (*MIGRATIONS, "CREATE TABLE later (key TEXT); NONSENSE"))
        with pytest.raises(StateError):
            SqliteStateStore(file)
    assert [record.wanted.build for record in reopened(file).apis()] == [V1]


def test_a_file_that_someone_else_holds_is_busy_and_nothing_is_written(store: SqliteStateStore, file: Path) -> None:
    store.database.connection.execute("PRAGMA busy_timeout = 50")
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StateBusy):
        store.commit_deploy(a_deploy(a_wanted_api(V1)))
    assert store.apis() == ()
    other.execute("ROLLBACK")
    other.close()
    store.commit_deploy(a_deploy(a_wanted_api(V1)))
    assert [record.wanted.build for record in reopened(file).apis()] == [V1]


def test_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="No such file") as raised:
        SqliteStateStore(tmp_path / "nowhere" / "state.db")
    assert raised.value.reference == "state-unusable"
