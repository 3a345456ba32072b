"""kill -9 at any point: the store stays consistent, and trying again works."""

import hashlib
import os
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from cortex.artifacts.errors import ArtifactCorrupt
from cortex.artifacts.garbage import STRAY_AGE_S
from cortex.artifacts.store import ArtifactStore

pytestmark = pytest.mark.slow
MUCH_LATER = 1e10


def check(store: ArtifactStore) -> None:
    """Everything that has a digest for a name has the bytes of that digest; nothing was found damaged."""
    for blob in store.root.glob("blobs/*/*"):
        assert hashlib.sha256(blob.read_bytes()).hexdigest() == blob.name.removesuffix(".x")
    after_boot = ArtifactStore(store.root, boot_id="after the crash")
    for digest in after_boot.trees():
        assert after_boot.verify(digest).repaired == ()
    assert not list(store.root.glob("quarantine/*"))


def leftovers(store: ArtifactStore) -> list[Path]:
    return [*store.root.glob("tmp/*"), *store.root.glob("trees/.*")]


def test_killed_before_any_use_of_a_file_while_putting(children, memory: Path, folder) -> None:
    wanted = folder()
    for number in range(1, 1000):
        store = ArtifactStore(memory / f"store{number}")
        ended = children.run_until_event(number, partial(wanted.put_into, store))
        check(store)
        digest = wanted.put_into(store)
        assert wanted.is_laid_out_at(store.tree_path(digest))
        store.collect_garbage({digest}, 0, store.tree_path(digest).stat().st_ctime + STRAY_AGE_S + 60)
        assert leftovers(store) == []
        assert store.verify(digest).hashed_bytes == 0
        if not ended.killed:
            assert ended.code == 0
            break
    assert number > 30


def test_killed_before_any_use_of_a_file_while_collecting(children, memory: Path, folder) -> None:
    for number in range(1, 1000):
        store = ArtifactStore(memory / f"store{number}")
        kept = folder(0).put_into(store)
        folder(1).put_into(store)
        collect = partial(store.collect_garbage, {kept}, 0, MUCH_LATER)
        ended = children.run_until_event(number, collect)
        check(store)
        assert folder(0).is_laid_out_at(store.tree_path(kept))
        store.collect_garbage({kept}, 0, MUCH_LATER)
        assert leftovers(store) == []
        assert store.trees() == (kept,)
        assert folder(1).is_laid_out_at(store.tree_path(folder(1).put_into(store)))
        if not ended.killed:
            assert ended.code == 0
            break
    assert number > 30


def test_killed_before_any_use_of_a_file_while_repairing(children, memory: Path, folder) -> None:
    for number in range(1, 1000):
        store = ArtifactStore(memory / f"store{number}")
        digest = folder().put_into(store)
        tree = store.tree_path(digest)
        for path in (tree / "sub", tree):
            path.chmod(0o755)
        (tree / "sub/run.sh").unlink()
        (tree / "handler.py").unlink()
        (tree / "handler.py").write_bytes(b"other")
        (tree / "planted").write_bytes(b"")
        ended = children.run_until_event(number, partial(store.verify, digest))
        store.verify(digest)
        assert folder().is_laid_out_at(tree)
        assert store.verify(digest).hashed_bytes == 0
        if not ended.killed:
            assert ended.code == 0
            break
    assert number > 30


def test_killed_before_any_use_of_a_file_while_setting_a_blob_aside(children, memory: Path, folder) -> None:
    wanted = folder()
    for number in range(1, 1000):
        store = ArtifactStore(memory / f"store{number}")
        digest = wanted.put_into(store)
        path = store.tree_path(digest) / "weights.bin"
        path.chmod(0o644)
        path.write_bytes(b"short")

        def find(store: ArtifactStore = store, digest: str = digest) -> None:
            with pytest.raises(ArtifactCorrupt):
                store.verify(digest)

        ended = children.run_until_event(number, find)
        with pytest.raises(ArtifactCorrupt):
            store.verify(digest)
        assert wanted.put_into(store) == digest
        assert wanted.is_laid_out_at(store.tree_path(digest))
        if not ended.killed:
            assert ended.code == 0
            break
    assert number > 30


def test_killed_at_random_moments_again_and_again_in_one_store(children, store: ArtifactStore, folder) -> None:
    """The kill comes from outside, so that it also falls into the middle of writes, renames and syncs."""
    chance = random.Random(os.urandom(8))
    killed = 0
    for round_ in range(40):
        told, telling = os.pipe()

        def deploy_for_ever(telling: int = telling, round_: int = round_) -> None:
            number = round_ * 1000
            while True:
                number += 1
                folder(number % 7).put_into(ArtifactStore(store.root))
                store.collect_garbage(set(), 100_000, MUCH_LATER)

        pid = children.start(deploy_for_ever, before_each_file_event=lambda telling=telling: os.write(telling, b"."))
        os.close(telling)
        left = chance.randrange(1, 1500)
        while left > 0:
            heard = os.read(told, left)
            assert heard, "it ended by itself"
            left -= len(heard)
        killed += children.kill(pid).killed
        os.close(told)
        check(store)
    assert killed == 40
    for number in range(7):
        digest = folder(number).put_into(store)
        assert folder(number).is_laid_out_at(store.tree_path(digest))
    store.collect_garbage(set(store.trees()), 0, MUCH_LATER)
    assert leftovers(store) == []


def test_the_pin_of_a_killed_deploy_does_not_keep_anything(children, store: ArtifactStore, folder) -> None:
    told, telling = os.pipe()

    def deploy() -> None:
        digest = folder().put_into(store)
        with store.pin(digest):
            os.write(telling, b"pinned")
            os.read(os.pipe()[0], 1)

    pid = children.start(deploy)
    assert os.read(told, 6) == b"pinned"
    assert store.collect_garbage(set(), 0, MUCH_LATER).trees == ()
    children.kill(pid)
    assert len(store.collect_garbage(set(), 0, MUCH_LATER).trees) == 1
    os.close(told)
    os.close(telling)


def test_processes_that_put_the_same_tree_at_once_agree(children, memory: Path, folder: Callable) -> None:
    wanted = folder()
    for number in range(25):
        store = ArtifactStore(memory / f"store{number}")
        gate, opener = os.pipe()

        def deploy(store: ArtifactStore = store, gate: int = gate, opener: int = opener) -> None:
            os.close(opener)
            os.read(gate, 1)  # returns when the test closes its end
            wanted.put_into(ArtifactStore(store.root))

        pids = [children.start(deploy) for _ in range(3)]
        os.close(gate)
        os.close(opener)
        assert [children.wait(pid) for pid in pids] == [(False, 0)] * 3
        (digest,) = store.trees()
        assert wanted.is_laid_out_at(store.tree_path(digest))
        assert leftovers(store) == []
        check(store)


def test_collecting_while_others_deploy_never_takes_what_they_were_promised(
    children, store: ArtifactStore, folder
) -> None:
    """Blobs that `missing` did not name must be there for `put_tree`, whatever is collected in between."""

    def deploy() -> None:
        for number in range(60):
            wanted = folder(number % 3)
            digest = wanted.put_into(store)
            assert wanted.is_laid_out_at(store.tree_path(digest))

    now = store.root.parent.stat().st_ctime
    pids = [children.start(deploy) for _ in range(2)]
    while not all(children.ended(pid) for pid in pids):
        store.collect_garbage(set(), 0, now)
    assert [children.wait(pid) for pid in pids] == [(False, 0)] * 2
    check(store)
