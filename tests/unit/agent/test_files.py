"""Tests of `cortex.agent.files`: what a former agent has left."""

from pathlib import Path

import msgspec
import pytest

from cortex.agent.files import clear_away, files_of, read_records, read_remains, write_record
from cortex.agent.life.effects import ReplicaRecord
from cortex.errors import Problem
from cortex.ids import replica_id
from cortex.settings import NodeLayout
from cortex.testing.builders import a_build, a_sample
from cortex.wire.orders import StartReplica
from cortex.wire.places import Places
from cortex.wire.stats import LastWords

SAMPLE = a_sample(b"[5.2, 3.6, 1.4, 0.3]", gate=True, timeout_s=600.0)
BUILD = a_build(sample=SAMPLE)
ORDER = StartReplica(replica=replica_id(BUILD.api, BUILD.revision, 0), attempt=1, build=BUILD)
OTHER = msgspec.structs.replace(ORDER, replica=replica_id(BUILD.api, BUILD.revision, 1))
RECORD = ReplicaRecord(order=ORDER, was_ready=True, started_wall_s=5.0)


@pytest.fixture
def layout(tmp_path: Path) -> NodeLayout:
    return NodeLayout(tmp_path)


def left(layout: NodeLayout, content: bytes) -> Path:
    record = files_of(layout, ORDER).record
    record.parent.mkdir(parents=True)
    record.write_bytes(content)
    return record


def test_a_record_is_read_as_it_was_written(layout: NodeLayout) -> None:
    layout.node.mkdir(parents=True)
    write_record(files_of(layout, ORDER), RECORD)
    assert read_records(layout) == [RECORD]


def test_a_record_of_an_older_cortex_which_held_a_samples_body_names_it_by_digest(layout: NodeLayout) -> None:
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
def test_what_is_no_record_is_removed(layout: NodeLayout, content: bytes) -> None:
    record = left(layout, content)
    assert read_records(layout) == []
    assert not record.exists()


def test_a_record_is_small_whatever_its_sample_holds() -> None:
    large = msgspec.structs.replace(RECORD.order, build=a_build(sample=a_sample(b"0" * 2**20)))
    assert len(msgspec.json.encode(msgspec.structs.replace(RECORD, order=large))) < 2000


def test_what_a_replica_left_is_read_and_its_scratch_folder_removed(layout: NodeLayout) -> None:
    layout.prepare()
    of_one, said = files_of(layout, ORDER), LastWords(problem=Problem(reference="r", message="m"), permanent=True)
    of_one.scratch.mkdir(parents=True)
    of_one.last_words.write_bytes(msgspec.json.encode(said))
    left = read_remains(of_one, Places(str(layout.home)), with_lines=True)
    assert (left.words, left.in_hand.requests, left.last_lines) == (said, (), ())
    assert not of_one.scratch.exists()
    assert read_remains(of_one, Places(str(layout.home)), with_lines=False).words == said, "it may be asked again"


def test_words_that_cannot_be_read_are_none(layout: NodeLayout) -> None:
    layout.prepare()
    of_one = files_of(layout, ORDER)
    of_one.last_words.write_bytes(b"{")
    assert read_remains(of_one, Places(str(layout.home)), with_lines=True).words is None


def test_files_of_replicas_that_nobody_knows_are_cleared_away(layout: NodeLayout) -> None:
    layout.prepare()
    known, unknown = files_of(layout, ORDER), files_of(layout, OTHER)
    for one in (known, unknown):
        one.scratch.mkdir(parents=True)
        for file in (one.slot, one.last_words, one.in_hand, one.stats):
            file.touch()
    clear_away(layout, [known])
    assert all(file.exists() for file in (known.slot, known.last_words, known.in_hand, known.scratch))
    assert not any(file.exists() for file in (unknown.slot, unknown.last_words, unknown.in_hand, unknown.scratch))
    assert unknown.stats.exists(), "what it counted is merged by others"
