"""Tests of `cortex.agent.provisions`."""

import asyncio
from pathlib import Path

import msgspec
import pytest

from cortex.agent.provisions import Provided, Provisions
from cortex.agent.supplies import Supplies
from cortex.artifacts import samples
from cortex.artifacts.errors import ArtifactCorrupt, ArtifactMissing
from cortex.artifacts.store import ArtifactStore
from cortex.testing.builders import a_build, a_sample
from cortex.testing.clock import FakeClock
from cortex.wire.build import BuildSpec, Sample


class Nobody:
    """A control plane that is never asked for anything."""


class Node:
    """A store with the model of a build, and nothing else that a build could need."""

    def __init__(self, folder: Path) -> None:
        self.store = ArtifactStore(folder / "artifacts")
        self.model = samples.put_body(self.store, b"a model")
        supplies = Supplies(store=self.store, upstream=Nobody(), clock=FakeClock(), patience_s=0.0)
        self.provisions = Provisions(supplies=supplies, installations=None)  # type: ignore[arg-type]

    def provide(self, sample: Sample | None) -> Provided:
        return asyncio.run(self.provisions.provide(self.build(sample)))

    def build(self, sample: Sample | None) -> BuildSpec:
        build = a_build(sample=sample)
        return msgspec.structs.replace(build, model=msgspec.structs.replace(build.model, tree=self.model, entry="body"))


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_a_build_gets_the_files_of_its_model_and_its_sample(node: Node) -> None:
    sample = Sample(tree=samples.put_body(node.store, b"[1]"))
    provided = node.provide(sample)
    assert provided.model.read_bytes() == b"a model"
    assert provided.sample is not None
    assert provided.sample.read_bytes() == b"[1]"
    assert node.provide(None).sample is None


def test_a_build_may_have_no_model(node: Node) -> None:
    build = msgspec.structs.replace(node.build(None), model=None)
    assert asyncio.run(node.provisions.provide(build)) == Provided(None, None, None, {})


def test_a_sample_that_guards_has_to_be_there_and_sound(node: Node) -> None:
    with pytest.raises(ArtifactMissing):
        node.provide(a_sample(b"[1]", gate=True))
    sample = Sample(tree=samples.put_body(node.store, b"[1]"), gate=True)
    spoil(samples.body_file(node.store, sample.tree))
    with pytest.raises(ArtifactCorrupt):
        node.provide(sample)


def test_without_one_that_only_warns_a_replica_serves_all_the_same(node: Node) -> None:
    assert node.provide(a_sample(b"[1]")).sample is None
    sample = Sample(tree=samples.put_body(node.store, b"[1]"))
    spoil(samples.body_file(node.store, sample.tree))
    assert node.provide(sample).sample is None


def spoil(file: Path) -> None:
    file.chmod(0o644)
    file.write_bytes(b"[2]")
