"""Tests of `cortex.agent.files`: what a former agent has left."""

from pathlib import Path

import msgspec
import pytest

from cortex.agent.files import files_of, read_records, write_record
from cortex.agent.life.effects import ReplicaRecord
from cortex.ids import replica_id
from cortex.settings import HomeLayout
from cortex.testing.builders import a_build, a_sample
from cortex.wire.orders import StartReplica

SAMPLE = a_sample(b"[5.2, 3.6, 1.4, 0.3]", gate=True, timeout_s=600.0)
BUILD = a_build(sample=SAMPLE)
ORDER = StartReplica(replica=replica_id(BUILD.api, BUILD.revision, 0), attempt=1, build=BUILD)
RECORD = ReplicaRecord(order=ORDER, was_ready=True, started_wall_s=5.0)


@pytest.fixture
def layout(tmp_path: Path) -> HomeLayout:
    return HomeLayout(tmp_path)


def left(layout: HomeLayout, content: bytes) -> Path:
    record = files_of(layout, ORDER).record
    record.parent.mkdir(parents=True)
    record.write_bytes(content)
    return record


def test_a_record_is_read_as_it_was_written(layout: HomeLayout) -> None:
    layout.node.mkdir(parents=True)
    write_record(files_of(layout, ORDER), RECORD)
    assert read_records(layout) == [RECORD]


def test_a_record_of_an_older_cortex_which_held_a_samples_body_names_it_by_digest(layout: HomeLayout) -> None:
    left(layout, (Path(__file__).parent / "older" / "replica-with-a-samples-body.json").read_bytes())
    assert read_records(layout) == [RECORD]


@pytest.mark.parametrize(
    "content",
    [
        b"{}",
        b"[]",
        b"\xff",
        b'{"order": 1}',
        b'{"order": {"build": {"sample": {}}}}',
        b'{"order": {"build": {"sample": {"body": "abc"}}}}',
    ],
)
def test_what_is_no_record_is_removed(layout: HomeLayout, content: bytes) -> None:
    record = left(layout, content)
    assert read_records(layout) == []
    assert not record.exists()


def test_a_record_is_small_whatever_its_sample_holds() -> None:
    large = msgspec.structs.replace(RECORD.order, build=a_build(sample=a_sample(b"0" * 2**20)))
    assert len(msgspec.json.encode(msgspec.structs.replace(RECORD, order=large))) < 2000
