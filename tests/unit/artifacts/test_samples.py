"""Tests of `cortex.artifacts.samples`."""

from pathlib import Path

import pytest

from cortex.artifacts import samples
from cortex.artifacts.errors import ArtifactCorrupt, ArtifactMissing
from cortex.artifacts.store import ArtifactStore


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "artifacts")


def test_a_body_is_found_by_what_storing_it_returned(store: ArtifactStore) -> None:
    tree = samples.put_body(store, b"[1, 2]")
    assert samples.body_file(store, tree).read_bytes() == b"[1, 2]"


def test_the_digest_of_a_body_is_known_before_it_is_stored(store: ArtifactStore) -> None:
    assert samples.tree_of(b"[1, 2]") == samples.put_body(store, b"[1, 2]") == samples.put_body(store, b"[1, 2]")
    assert samples.tree_of(b"[1]") != samples.tree_of(b"[1, 2]")


def test_an_empty_body_is_one_as_well(store: ArtifactStore) -> None:
    assert samples.body_file(store, samples.put_body(store, b"")).read_bytes() == b""


def test_a_body_that_is_not_there_or_damaged_is_told_as_such_and_can_be_brought_back(store: ArtifactStore) -> None:
    tree = samples.tree_of(b"[1, 2]")
    with pytest.raises(ArtifactMissing):
        samples.body_file(store, tree)
    file = samples.body_file(store, samples.put_body(store, b"[1, 2]"))
    file.chmod(0o644)
    file.write_bytes(b"[1, 3]")
    with pytest.raises(ArtifactCorrupt):
        samples.body_file(store, tree)
    samples.put_body(store, b"[1, 2]")
    assert samples.body_file(store, tree).read_bytes() == b"[1, 2]"
