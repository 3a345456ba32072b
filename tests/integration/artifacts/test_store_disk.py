"""A full, a tiny and a read-only disk: trouble has a name, nothing half-written stays, serving goes on."""

import errno
import hashlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cortex.artifacts.errors import StoreUnavailable
from cortex.artifacts.store import ArtifactStore

pytestmark = pytest.mark.slow
MUCH_LATER = 1e10


class Disk:
    """A small file system of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def mount(self, options: str) -> None:
        self.folder.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", self.folder], capture_output=True, text=True, check=False
        )
        if done.returncode:
            pytest.skip(f"cannot mount a tmpfs here: {done.stderr.strip()}")

    def remount(self, options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", self.folder], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    if os.geteuid() != 0:
        pytest.skip("mounting a file system needs root")
    disk = Disk(tmp_path / "disk")
    yield disk
    subprocess.run(["umount", disk.folder], capture_output=True, check=False)


def leftovers(store: ArtifactStore) -> list[Path]:
    return [*store.root.glob("tmp/*"), *store.root.glob("trees/.*")]


def test_a_full_disk_is_named_and_nothing_half_written_stays(disk: Disk, folder) -> None:
    disk.mount("size=1m")
    store = ArtifactStore(disk.folder / "store")
    small = folder(1)
    digest = small.put_into(store)
    large = os.urandom(3_000_000)
    sha256 = hashlib.sha256(large).hexdigest()
    with pytest.raises(StoreUnavailable) as caught:
        store.put(sha256, [large[start : start + 100_000] for start in range(0, len(large), 100_000)])
    assert caught.value.errno == errno.ENOSPC
    assert "free space" in caught.value.hint
    assert leftovers(store) == []
    assert store.missing([sha256]) == (sha256,)
    assert small.is_laid_out_at(store.tree_path(digest))
    assert store.verify(digest).hashed_bytes == 0


def test_on_a_full_disk_stored_trees_are_still_verified_and_served(disk: Disk, folder) -> None:
    disk.mount("size=1m")
    store = ArtifactStore(disk.folder / "store")
    digest = folder(1).put_into(store)
    with pytest.raises(OSError, match="No space left"):
        (disk.folder / "filler").write_bytes(b"x" * 2_000_000)
    after_boot = ArtifactStore(store.root, boot_id="another")
    assert after_boot.verify(digest).hashed_bytes > 0
    assert folder(1).is_laid_out_at(after_boot.tree_path(digest))
    assert leftovers(store) == []
    with pytest.raises(StoreUnavailable):
        folder(2).put_into(store)
    assert leftovers(store) == []


@pytest.mark.parametrize("room", range(3, 21))
def test_a_disk_without_room_for_more_files_leaves_no_half_tree(disk: Disk, folder, room: int) -> None:
    """Runs out of inodes at every point of laying out a tree."""
    disk.mount(f"size=4m,nr_inodes={room}")
    store = ArtifactStore(disk.folder / "store")
    wanted = folder(1)
    with pytest.raises(StoreUnavailable) as caught:
        wanted.put_into(store)
    assert caught.value.errno == errno.ENOSPC
    assert leftovers(store) == []
    assert store.trees() == ()
    disk.remount("nr_inodes=100")
    assert wanted.is_laid_out_at(store.tree_path(wanted.put_into(store)))


def test_collecting_makes_room_on_a_full_disk(disk: Disk, folder) -> None:
    disk.mount("size=1m")
    store = ArtifactStore(disk.folder / "store")
    put = []
    with pytest.raises(StoreUnavailable):
        put.extend(folder(number).put_into(store) for number in range(100))
    assert len(put) > 5
    collected = store.collect_garbage(set(), 0, MUCH_LATER)
    assert set(put) <= set(collected.trees)
    assert collected.kept_bytes == 0
    assert folder(99).is_laid_out_at(store.tree_path(folder(99).put_into(store)))


def test_a_read_only_disk_is_read_from_and_named_when_written_to(disk: Disk, folder) -> None:
    disk.mount("size=2m")
    store = ArtifactStore(disk.folder / "store")
    wanted = folder(1)
    digest = wanted.put_into(store)
    disk.remount("ro")
    after_boot = ArtifactStore(store.root, boot_id="another")
    assert after_boot.verify(digest).hashed_bytes > 0
    assert after_boot.missing(wanted.blobs) == ()
    assert wanted.put_into(after_boot) == digest
    assert wanted.is_laid_out_at(after_boot.tree_path(digest))
    assert [step.damage for step in after_boot.scrub(bytes_per_s=1e9) if step.damage] == []
    for write in (
        lambda: folder(2).put_into(after_boot),
        lambda: after_boot.collect_garbage(set(), 0, MUCH_LATER),
        lambda: after_boot.pin(digest).__enter__(),
    ):
        with pytest.raises(StoreUnavailable) as caught:
            write()
        assert caught.value.errno == errno.EROFS
        assert "read-only" in caught.value.hint
