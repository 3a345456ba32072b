"""Tests of `cortex.agent.supplies`, `pulling` and `cache`: a node with a store of its own."""

import asyncio
import os
import time
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from cortex.agent import cache as cache_module
from cortex.agent.cache import RESERVE_BYTES, ArtifactCache, NodeDiskFull
from cortex.agent.pulling import TRIES, WrongListing
from cortex.agent.supplies import Supplies
from cortex.agent.upstream import ControlPlaneAway
from cortex.artifacts.errors import DigestMismatch
from cortex.artifacts.store import ArtifactStore
from cortex.controlplane.supplying import Supplying
from cortex.errors import CortexError, GiveUp
from cortex.ids import NodeId
from cortex.state.secrets import SecretStore, packed_cloud
from cortex.testing.builders import a_build, a_digest
from cortex.testing.clock import FakeClock
from cortex.wire.build import SecretPin
from cortex.wire.needs import FetchBlob, FetchTree
from cortex.wire.operator import StoredFile

NODE = NodeId("n1")
MODEL = {"model.onnx": bytes(range(256)) * 9000, "notes/a.txt": b"a", "notes/b.txt": b"b"}


class Everything:
    """Allows whatever is asked."""

    def allows(self, _node, _asked) -> bool:
        return True


class Upstream:
    """The handlers of a control plane, called as its sockets would; what goes wrong on the way is told beforehand."""

    def __init__(self, supplying: Supplying, clock: FakeClock) -> None:
        self.supplying = supplying
        self.asked: list[object] = []
        self.away = 0
        """So many questions find nobody."""
        self.breaks: list[int] = []
        """After so many parts a stream ends in the middle, each once."""
        self.spoilt = 0
        """So many streams have a wrong byte."""
        self.answers = lambda: True
        self.listing = lambda reply: reply
        self._clock = clock

    def _handled(self, need):
        self.asked.append(need)
        if self.away:
            self.away -= 1
            self._clock.advance(30.0)
            raise ControlPlaneAway("nobody is there")
        try:
            return self.supplying.handlers[type(need)](need, NODE)
        except CortexError as error:
            raise GiveUp(error.problem()) from error

    async def ask(self, need, kind):
        while not self.answers():
            await asyncio.sleep(0)
        reply = self._handled(need)
        assert isinstance(reply, kind)
        return self.listing(reply) if isinstance(need, FetchTree) else reply

    async def stream(self, need):
        parts_left = self.breaks.pop(0) if self.breaks else None
        spoil = self.spoilt > 0
        self.spoilt -= spoil
        for part in self._handled(need):
            if parts_left == 0:
                raise ControlPlaneAway("it left")
            parts_left = None if parts_left is None else parts_left - 1
            yield bytes([part[0] ^ 1]) + part[1:] if spoil else part
            spoil = False

    @property
    def blobs(self) -> list[FetchBlob]:
        return [need for need in self.asked if isinstance(need, FetchBlob)]


class World:
    def __init__(self, folder: Path, *, keep_bytes: int = 10**9) -> None:
        self.clock = FakeClock(wall_s=time.time() + 7200.0)  # what is here was used long enough ago to go
        self.control = ArtifactStore(folder / "control")
        self.secrets, self.cloud = SecretStore(folder / "secrets"), SecretStore(folder / "cloud")
        self.handed_over: dict[str, str] | None = None
        self.needed: set[str] = set()
        supplying = Supplying(
            store=self.control,
            secrets=self.secrets,
            cloud=self.cloud,
            indexes=lambda: self.handed_over,
            needed=Everything(),
        )
        self.upstream = Upstream(supplying, self.clock)
        self.store = ArtifactStore(folder / "node")
        self.cache = ArtifactCache(
            store=self.store, keep_bytes=keep_bytes, clock=self.clock, needed=lambda: self.needed
        )
        self.supplies = Supplies(
            store=self.store, upstream=self.upstream, clock=self.clock, patience_s=100.0, cache=self.cache
        )
        self.told: list[str] = []

    def put(self, files: dict[str, bytes]) -> str:
        stored = []
        for path, content in files.items():
            with self.control.writer() as writer:
                writer.write(content)
                sha256 = writer.commit().sha256
            stored.append(StoredFile(path=path, sha256=sha256, executable=path.endswith(".sh")))
        return self.control.put_tree(stored)

    def have(self, *trees: str) -> dict[str, Path]:
        return asyncio.run(self.supplies.folders(trees, self.told.append))


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def content_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- folders ---------------------------------------------------------------------------------------------------------


def test_what_is_missing_is_had_from_the_control_plane_and_then_is_here(world: World) -> None:
    files = {**MODEL, "run.sh": b"#!/bin/sh"}
    tree = world.put(files)
    found = world.have(tree)
    assert content_of(found[tree]) == files
    assert os.access(found[tree] / "run.sh", os.X_OK)
    assert world.store.verify(tree).path == found[tree]
    world.upstream.asked.clear()
    assert world.have(tree) == found
    assert world.upstream.asked == []


def test_files_that_another_folder_has_are_not_fetched_again(world: World) -> None:
    world.have(world.put({"a": b"same", "b": b"other"}))
    world.upstream.asked.clear()
    world.have(world.put({"c": b"same", "d": b"new"}))
    assert len(world.upstream.blobs) == 1


def test_on_one_machine_nothing_is_ever_asked_for(world: World, tmp_path: Path) -> None:
    supplies = Supplies(store=world.control, upstream=world.upstream, clock=world.clock, patience_s=1.0)
    tree = world.put(MODEL)
    assert asyncio.run(supplies.folders([tree])) == {tree: world.control.tree_path(tree)}
    with pytest.raises(CortexError) as missing:
        asyncio.run(supplies.folders([a_digest("nothing")]))
    assert missing.value.reference == "artifact-missing"
    assert world.upstream.asked == []


def test_a_pull_that_breaks_goes_on_with_the_byte_after_the_last(world: World) -> None:
    tree = world.put({"model.onnx": MODEL["model.onnx"]})
    world.upstream.breaks = [1, 0]
    assert content_of(world.have(tree)[tree]) == {"model.onnx": MODEL["model.onnx"]}
    offsets = [need.offset for need in world.upstream.blobs]
    assert offsets[0] == 0
    assert offsets[1] == offsets[2] > 0


def test_bytes_that_were_damaged_on_the_way_are_refused_and_fetched_again(world: World) -> None:
    tree = world.put({"a": b"content"})
    world.upstream.spoilt = TRIES - 1
    assert content_of(world.have(tree)[tree]) == {"a": b"content"}
    assert len(world.upstream.blobs) == TRIES


def test_bytes_that_are_always_others_are_given_up(world: World) -> None:
    tree = world.put({"a": b"content"})
    world.upstream.spoilt = TRIES
    with pytest.raises(DigestMismatch):
        world.have(tree)
    assert world.store.trees() == ()
    assert list((world.store.root / "tmp").iterdir()) == []


def test_a_listing_of_another_folder_is_not_believed(world: World) -> None:
    tree = world.put({"a": b"content"})
    world.upstream.listing = lambda reply: msgspec.structs.replace(
        reply, files=(msgspec.structs.replace(reply.files[0], path="b"),)
    )
    with pytest.raises(WrongListing):
        world.have(tree)
    assert world.upstream.blobs == []


def test_more_bytes_than_were_announced_are_not_taken(world: World) -> None:
    tree = world.put({"a": b"content"})
    world.upstream.listing = lambda reply: msgspec.structs.replace(reply, sizes_bytes=(3,))
    with pytest.raises(CortexError):
        world.have(tree)
    assert world.store.trees() == ()


def test_what_the_control_plane_does_not_have_is_said_in_its_words(world: World) -> None:
    with pytest.raises(GiveUp) as unknown:
        world.have(a_digest("nothing"))
    assert unknown.value.problem().reference == "artifact-missing"


def test_a_damaged_file_is_fetched_again(world: World) -> None:
    tree = world.put(MODEL)
    folder = world.have(tree)[tree]
    for path in (folder / "notes" / "a.txt", *(world.store.root / "blobs").rglob("*")):
        if path.is_file() and path.read_bytes() == b"a":
            path.chmod(0o644)
            path.write_bytes(b"!")
    world.upstream.asked.clear()
    assert content_of(world.have(tree)[tree]) == MODEL
    assert len(world.upstream.blobs) == 1


def test_starts_at_once_pull_once(world: World) -> None:
    tree = world.put(MODEL)

    async def story() -> None:
        await asyncio.gather(*(world.supplies.folders([tree], world.told.append) for _ in range(5)))

    asyncio.run(story())
    assert sum(isinstance(need, FetchTree) for need in world.upstream.asked) == 1
    assert len(world.upstream.blobs) == len(MODEL)


def test_a_control_plane_that_is_away_is_waited_for_and_then_given_up(world: World) -> None:
    tree = world.put({"a": b"content"})
    world.upstream.away = 3
    world.have(tree)
    world.upstream.away = 1000
    with pytest.raises(ControlPlaneAway):
        world.have(world.put({"a": b"other"}))
    assert 1000 - world.upstream.away < 10


def test_how_far_a_pull_is_is_told_in_megabytes(world: World) -> None:
    tree = world.put({"model.onnx": MODEL["model.onnx"]})
    world.clock.monotonic_s = iter(range(10**6)).__next__  # type: ignore[method-assign]
    world.upstream.breaks = [1]
    world.have(tree)
    assert "fetching 1 of 2 MB" in world.told
    assert "fetching 1 of 2 MB: waiting for the control plane" in world.told
    assert world.told[-1] == "fetching 2 of 2 MB"


# ---- the cache -------------------------------------------------------------------------------------------------------


def age(store: ArtifactStore, *trees: str) -> None:
    """They were used last long ago."""
    for tree in trees:
        os.utime(store.root / "records" / f"{tree}.json", (1.0, 1.0))


def test_what_was_used_least_recently_makes_room_and_what_runs_stays(tmp_path: Path) -> None:
    world = World(tmp_path, keep_bytes=3500)
    runs, idle, under_way = (world.put({"a": name * 1000}) for name in (b"r", b"i", b"u"))
    for tree in (runs, idle, under_way):
        world.have(tree)
    age(world.store, runs, under_way)
    world.needed = {runs}
    with world.supplies.using(under_way):
        new = world.put({"a": b"n" * 1000})
        world.have(new)
    assert set(world.store.trees()) == {runs, under_way, new}
    world.have(idle)
    assert set(world.store.trees()) == {runs, new, idle}


def test_a_store_over_its_limit_is_cleaned(tmp_path: Path) -> None:
    world = World(tmp_path, keep_bytes=0)
    trees = [world.put({"a": name * 1000}) for name in (b"r", b"i")]
    for tree in trees:
        world.have(tree)
    world.needed = {trees[1]}
    asyncio.run(world.cache.clean())
    assert world.store.trees() == (trees[1],)


def test_a_node_whose_disk_is_full_says_so_and_keeps_what_runs(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = world.put({"a": b"runs"})
    world.have(runs)
    world.needed = {runs}
    free = SimpleNamespace(f_bavail=RESERVE_BYTES + 3, f_frsize=1)
    monkeypatch.setattr(cache_module.os, "statvfs", lambda _path: free)
    with pytest.raises(NodeDiskFull) as full:
        world.have(world.put({"a": b"content"}))
    assert str(world.store.root) in str(full.value)
    assert world.store.trees() == (runs,)
    assert list((world.store.root / "tmp").iterdir()) == []
    free.f_bavail += 4
    world.have(world.put({"a": b"content"}))


# ---- what is never stored here ---------------------------------------------------------------------------------------


def test_secrets_are_asked_for_at_each_start_and_are_in_no_text(world: World, tmp_path: Path) -> None:
    facts = world.secrets.set("token", "hunter22", wall_s=0.0)
    keys = world.cloud.set("iris.sklearn", packed_cloud({"AWS_KEY": "sesame99", "HOME": "/x"}), wall_s=0.0)
    build = msgspec.structs.replace(
        a_build(),
        env={"HOME": "/mine"},
        secrets={"TOKEN": SecretPin(name="token", generation=facts.generation)},
        cloud=SecretPin(name="iris.sklearn", generation=keys.generation),
    )
    for _ in range(2):
        found = asyncio.run(world.supplies.values(build))
        assert found == {"TOKEN": "hunter22", "AWS_KEY": "sesame99"}
    assert len(world.upstream.asked) == 2
    assert asyncio.run(world.supplies.values(a_build())) == {}
    assert len(world.upstream.asked) == 2
    reply = world.upstream.supplying.values(world.upstream.asked[0], NODE)
    assert "hunter22" not in repr(reply)
    assert "sesame99" not in repr(reply)


def test_a_secret_that_is_gone_is_named(world: World) -> None:
    build = msgspec.structs.replace(a_build(), secrets={"TOKEN": SecretPin(name="token", generation="0")})
    with pytest.raises(GiveUp) as gone:
        asyncio.run(world.supplies.values(build))
    assert gone.value.problem().reference == "secret-missing"


def test_a_start_says_that_it_waits_for_the_control_plane(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cortex.agent.pulling.SAY_AFTER_S", 0.0)
    facts = world.secrets.set("token", "hunter22", wall_s=0.0)
    pin = SecretPin(name="token", generation=facts.generation)
    build = msgspec.structs.replace(a_build(), secrets={"TOKEN": pin})
    world.upstream.away = 2
    world.upstream.answers = lambda: bool(world.told)
    assert asyncio.run(world.supplies.values(build, world.told.append)) == {"TOKEN": "hunter22"}
    assert set(world.told) == {"fetching secrets from the control plane"}


def test_indexes_are_those_of_the_last_deploy(world: World) -> None:
    assert asyncio.run(world.supplies.indexes()) is None
    world.handed_over = {"UV_INDEX_URL": "https://me:hunter22@a/simple"}
    assert asyncio.run(world.supplies.indexes()) == world.handed_over
    assert "hunter22" not in repr(world.upstream.supplying.indexes(world.upstream.asked[-1], NODE))
