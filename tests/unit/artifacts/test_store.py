"""The artifact store: what it keeps, notices, repairs and lets go."""

import errno
import fcntl
import hashlib
import io
import os
import stat
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cortex.artifacts import disk, garbage, verification
from cortex.artifacts.blobs import FICLONE, Blobs, StoredBlob
from cortex.artifacts.errors import (
    ArtifactCorrupt,
    ArtifactMissing,
    BlobsMissing,
    BlobTooLarge,
    DigestMismatch,
    InvalidDigest,
    InvalidTree,
    StoreUnavailable,
)
from cortex.artifacts.garbage import STRAY_AGE_S, UNUSED_GRACE_S, UPLOAD_GRACE_S, Collected
from cortex.artifacts.scrub import SCRUB_STEP_BYTES
from cortex.artifacts.store import ArtifactStore
from cortex.artifacts.trees import tree_digest
from cortex.artifacts.verification import Verification, Verified
from cortex.wire.operator import StoredFile

Put = Callable[[Mapping[str, bytes]], tuple[StoredFile, ...]]
IN_MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
"""Where syncing is free, if there is such a place: for tests that make many stores."""
MUCH_LATER = 1e10
"""Wall clock at which nothing is recent any more."""


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def blob_path(store: ArtifactStore, content: bytes, executable: bool = False) -> Path:
    digest = sha256(content)
    return store.root / "blobs" / digest[:2] / (digest + (".x" if executable else ""))


def damage(path: Path, content: bytes = b"rotten") -> None:
    """Change a file's bytes and nothing else that a look at it would show."""
    before = path.stat()
    path.chmod(0o644)
    data = (content * (before.st_size // len(content) + 1))[: before.st_size]
    with path.open("r+b") as file:
        file.write(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    path.chmod(stat.S_IMODE(before.st_mode))


def touch(path: Path) -> None:
    """Give a file another time, however slowly the clock of the file system ticks."""
    found = path.stat()
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns + 1_000_000_000))


def touch_record(store: ArtifactStore, digest: str, wall_s: float) -> None:
    os.utime(store.root / "records" / f"{digest}.json", (wall_s, wall_s))


def content_of(tree: Path) -> dict[str, tuple[bytes, int]]:
    """Every file of a folder with its bytes and mode."""
    files = (path for path in tree.rglob("*") if not path.is_dir())
    return {str(path.relative_to(tree)): (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) for path in files}


def leftovers(store: ArtifactStore) -> list[str]:
    """Names of everything temporary."""
    names = [entry.name for entry in store.root.glob("trees/*") if entry.name.startswith(".")]
    return names + [entry.name for entry in store.root.glob("tmp/*")]


# --- blobs ---


def test_a_blob_is_kept_read_only_under_its_digest(store: ArtifactStore) -> None:
    assert store.put(sha256(b"abc"), [b"a", b"bc"]) == StoredBlob(sha256(b"abc"), 3)
    path = blob_path(store, b"abc")
    assert path.read_bytes() == b"abc"
    assert stat.S_IMODE(path.stat().st_mode) == 0o444
    assert leftovers(store) == []


def test_missing_names_what_is_not_there_once_and_in_order(store: ArtifactStore) -> None:
    store.put(sha256(b"here"), [b"here"])
    wanted = [sha256(b"z"), sha256(b"here"), sha256(b"a"), sha256(b"z")]
    assert store.missing(wanted) == (sha256(b"z"), sha256(b"a"))


def test_bytes_come_from_an_open_file_too(store: ArtifactStore) -> None:
    content = b"x" * 3_000_000
    assert store.put(sha256(content), io.BytesIO(content)).size_bytes == len(content)
    assert store.put(sha256(b""), []).size_bytes == 0


def test_other_bytes_than_announced_are_refused_and_not_kept(store: ArtifactStore) -> None:
    with pytest.raises(DigestMismatch) as caught:
        store.put(sha256(b"abc"), [b"abd"])
    assert (caught.value.expected, caught.value.found, caught.value.size_bytes) == (sha256(b"abc"), sha256(b"abd"), 3)
    assert store.missing([sha256(b"abc"), sha256(b"abd")]) == (sha256(b"abc"), sha256(b"abd"))
    assert leftovers(store) == []


def test_more_bytes_than_allowed_are_refused_before_they_are_all_read(store: ArtifactStore) -> None:
    read = []

    def endless() -> Iterator[bytes]:
        while True:
            read.append(1)
            yield b"x" * 1000

    with pytest.raises(BlobTooLarge, match=r"2\.4 KiB"):
        store.put(sha256(b"x"), endless(), size_limit=2500)
    assert len(read) == 3
    assert leftovers(store) == []


def test_exactly_the_allowed_size_passes(store: ArtifactStore) -> None:
    assert store.put(sha256(b"xyz"), [b"xyz"], size_limit=3).size_bytes == 3


def test_what_the_source_raises_comes_through_and_nothing_is_kept(store: ArtifactStore) -> None:
    def broken() -> Iterator[bytes]:
        yield b"ab"
        raise ConnectionResetError("gone")

    with pytest.raises(ConnectionResetError, match="gone"):
        store.put(sha256(b"abc"), broken())
    assert leftovers(store) == []


def test_a_blob_that_is_there_is_not_read_again(store: ArtifactStore) -> None:
    store.put(sha256(b"abc"), [b"abc"])
    inode = blob_path(store, b"abc").stat().st_ino
    assert store.put(sha256(b"abc"), iter([1])) == StoredBlob(sha256(b"abc"), 3)  # type: ignore[arg-type]
    assert blob_path(store, b"abc").stat().st_ino == inode


@pytest.mark.parametrize("digest", ["", "../../etc/passwd", "A" * 64, "a" * 63])
def test_what_is_no_digest_never_becomes_a_path(store: ArtifactStore, digest: str) -> None:
    for call in (
        lambda: store.put(digest, [b""]),
        lambda: store.missing([digest]),
        lambda: store.tree_path(digest),
        lambda: store.verify(digest),
        lambda: store.writer(digest),
        lambda: store.pin(digest).__enter__(),
    ):
        with pytest.raises(InvalidDigest):
            call()


def test_bytes_of_unknown_digest_are_named_by_what_they_are(store: ArtifactStore) -> None:
    with store.writer() as writer:
        writer.write(b"ab")
        writer.write(memoryview(b"c"))
        assert writer.commit() == StoredBlob(sha256(b"abc"), 3)
    assert store.missing([sha256(b"abc")]) == ()


def test_a_writer_left_without_commit_keeps_nothing(store: ArtifactStore) -> None:
    with store.writer(sha256(b"abc")) as writer:
        writer.write(b"abc")
    assert store.missing([sha256(b"abc")]) == (sha256(b"abc"),)
    assert leftovers(store) == []


def test_a_twin_shares_the_blocks_of_a_blob_where_that_is_possible(
    store: ArtifactStore, stored: Put, monkeypatch
) -> None:
    """Stands in for a file system with FICLONE, which the kernel offers on btrfs and xfs."""
    real = fcntl.ioctl

    def cloned(descriptor: int, request: int, argument: int) -> int:
        if request != FICLONE:
            return real(descriptor, request, argument)
        return os.sendfile(descriptor, argument, 0, os.fstat(argument).st_size)

    monkeypatch.setattr(fcntl, "ioctl", cloned)
    digest = store.put_tree(stored({"run.sh*": b"weights"}))
    assert content_of(store.tree_path(digest)) == {"run.sh": (b"weights", 0o555)}
    assert blob_path(store, b"weights", executable=True).read_bytes() == b"weights"


# --- trees ---


def test_a_tree_is_laid_out_read_only_with_links_to_blobs(store: ArtifactStore, stored: Put) -> None:
    files = stored({"handler.py": b"code", "sub/run.sh*": b"echo", "sub/deep/empty": b""})
    digest = store.put_tree(files)
    tree = store.tree_path(digest)
    assert digest == tree_digest(files)
    assert content_of(tree) == {
        "handler.py": (b"code", 0o444),
        "sub/run.sh": (b"echo", 0o555),
        "sub/deep/empty": (b"", 0o444),
    }
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tree, tree / "sub", tree / "sub/deep")} == {0o555}
    assert (tree / "handler.py").stat().st_ino == blob_path(store, b"code").stat().st_ino
    assert (tree / "sub/run.sh").stat().st_ino == blob_path(store, b"echo", True).stat().st_ino
    assert leftovers(store) == []


def test_one_content_serves_as_plain_and_as_executable_file(store: ArtifactStore, stored: Put) -> None:
    tree = store.tree_path(store.put_tree(stored({"plain": b"same", "run*": b"same", "also*": b"same"})))
    assert content_of(tree) == {"plain": (b"same", 0o444), "run": (b"same", 0o555), "also": (b"same", 0o555)}
    assert (tree / "run").stat().st_ino == (tree / "also").stat().st_ino


def test_putting_a_tree_again_changes_nothing(store: ArtifactStore, stored: Put) -> None:
    files = stored({"a": b"1", "b/c": b"2"})
    digest = store.put_tree(files)
    inode = store.tree_path(digest).stat().st_ino
    assert store.put_tree(tuple(reversed(files))) == digest
    assert store.tree_path(digest).stat().st_ino == inode


def test_a_tree_names_every_blob_it_lacks_and_leaves_nothing(store: ArtifactStore, stored: Put) -> None:
    present = stored({"a": b"1"})
    absent = tuple(StoredFile(path=f"x{i}", sha256=sha256(b"%d" % (i % 2))) for i in range(4))
    with pytest.raises(BlobsMissing) as caught:
        store.put_tree((*present, *absent))
    assert caught.value.digests == (sha256(b"0"),)
    assert store.trees() == ()


def test_a_list_that_is_no_folder_is_refused(store: ArtifactStore, stored: Put) -> None:
    files = stored({"a": b"1"})
    with pytest.raises(InvalidTree):
        store.put_tree((*files, StoredFile(path="a/b", sha256=files[0].sha256)))
    with pytest.raises(InvalidTree):
        store.put_tree((StoredFile(path="../escape", sha256=files[0].sha256),))


def test_an_empty_tree_is_a_tree(store: ArtifactStore) -> None:
    digest = store.put_tree(())
    assert store.verify(digest) == Verified(store.tree_path(digest), 0, ())
    assert store.put_tree(()) == digest


def test_a_tree_that_is_not_there_is_named(store: ArtifactStore) -> None:
    for call in (store.tree_path, store.verify):
        with pytest.raises(ArtifactMissing) as caught:
            call("0" * 64)
        assert caught.value.digest == "0" * 64


def test_an_inode_with_too_many_names_is_copied(store: ArtifactStore, stored: Put, monkeypatch) -> None:
    files = stored({"a": b"1", "b*": b"2"})

    def full(source: Path, target: Path, **options: object) -> None:
        raise OSError(errno.EMLINK, os.strerror(errno.EMLINK))

    monkeypatch.setattr(os, "link", full)
    tree = store.tree_path(store.put_tree(files))
    assert content_of(tree) == {"a": (b"1", 0o444), "b": (b"2", 0o555)}
    assert (tree / "a").stat().st_nlink == 1
    assert store.verify(tree.name).hashed_bytes == 2
    assert store.verify(tree.name).hashed_bytes == 0


# --- verify ---


def test_an_unchanged_tree_costs_no_hashing(store: ArtifactStore, stored: Put) -> None:
    digest = store.put_tree(stored({"a": b"123", "b/c*": b"45"}))
    assert store.verify(digest) == Verified(store.tree_path(digest), 0, ())
    assert ArtifactStore(store.root).verify(digest).hashed_bytes == 0


def test_after_a_restart_of_the_machine_everything_is_hashed_once(store: ArtifactStore, stored: Put) -> None:
    digest = store.put_tree(stored({"a": b"123", "b/c*": b"45"}))
    after_boot = ArtifactStore(store.root, boot_id="another")
    assert after_boot.verify(digest).hashed_bytes == 5
    assert after_boot.verify(digest).hashed_bytes == 0


def test_only_the_file_that_looks_different_is_hashed(store: ArtifactStore, stored: Put) -> None:
    digest = store.put_tree(stored({"a": b"123", "b": b"45"}))
    touch(store.tree_path(digest) / "b")
    assert store.verify(digest).hashed_bytes == 2
    assert store.verify(digest).hashed_bytes == 0


def test_a_lost_or_damaged_record_costs_hashing_and_nothing_else(store: ArtifactStore, stored: Put) -> None:
    digest = store.put_tree(stored({"a": b"123", "b/c*": b"45"}))
    record = store.root / "records" / f"{digest}.json"
    for content in (None, b"", b"{", b'{"boot_id":"","files":[["x","y",true,null]],"folders":{}}'):
        record.unlink()
        if content is not None:
            record.write_bytes(content)
        assert store.verify(digest) == Verified(store.tree_path(digest), 5, ())
        assert store.verify(digest).hashed_bytes == 0


def test_a_file_replaced_in_a_tree_is_put_right_from_its_blob(store: ArtifactStore, stored: Put) -> None:
    digest = store.put_tree(stored({"a": b"123", "sub/b": b"45"}))
    tree = store.tree_path(digest)
    (tree / "sub").chmod(0o755)
    (tree / "sub/b").unlink()
    (tree / "sub/b").write_bytes(b"99")
    assert store.verify(digest).repaired == ("sub/b",)
    assert content_of(tree) == {"a": (b"123", 0o444), "sub/b": (b"45", 0o444)}
    assert stat.S_IMODE((tree / "sub").stat().st_mode) == 0o555
    assert store.verify(digest) == Verified(tree, 0, ())


def test_missing_strange_and_misplaced_entries_are_put_right(store: ArtifactStore, stored: Put, tmp_path: Path) -> None:
    digest = store.put_tree(stored({"a": b"1", "sub/b": b"2", "sub/deep/c": b"3", "other/d": b"4"}))
    tree = store.tree_path(digest)
    before = content_of(tree)
    for folder in (tree, tree / "sub", tree / "sub/deep", tree / "other"):
        folder.chmod(0o755)
    (tree / "a").unlink()  # missing
    (tree / "a").mkdir()  # … and a folder in its place
    (tree / "a/x").write_bytes(b"")
    (tree / "planted.py").write_bytes(b"evil")
    (tree / "new/er").mkdir(parents=True)
    (tree / "new").chmod(0o555)
    (tree / "sub/deep/c").unlink()
    (tree / "sub/deep").rmdir()
    (tree / "sub/deep").symlink_to(tmp_path)  # a link where a folder belongs
    (tree / "other/d").unlink()
    (tree / "other/d").symlink_to("/etc/passwd")
    repaired = store.verify(digest).repaired
    assert set(repaired) == {"a", "a/x", "planted.py", "new", "new/er", "sub/deep/c", "other/d"}
    assert content_of(tree) == before
    assert tmp_path.is_dir()
    assert store.verify(digest) == Verified(tree, 0, ())


def test_modes_that_were_changed_are_put_back(store: ArtifactStore, stored: Put) -> None:
    digest = store.put_tree(stored({"a": b"1", "b*": b"2"}))
    tree = store.tree_path(digest)
    (tree / "a").chmod(0o666)
    (tree / "b").chmod(0o444)
    tree.chmod(0o777)
    store.verify(digest)
    assert content_of(tree) == {"a": (b"1", 0o444), "b": (b"2", 0o555)}
    assert stat.S_IMODE(tree.stat().st_mode) == 0o555


def test_a_damaged_blob_is_set_aside_named_and_asked_for_again(store: ArtifactStore, stored: Put) -> None:
    files = stored({"model.onnx": b"weights", "b": b"1"})
    digest = store.put_tree(files)
    tree = store.tree_path(digest)
    damage(blob_path(store, b"weights"))
    after_boot = ArtifactStore(store.root, boot_id="another")
    with pytest.raises(ArtifactCorrupt) as caught:
        after_boot.verify(digest)
    assert (caught.value.digest, caught.value.path) == (sha256(b"weights"), tree / "model.onnx")
    assert [entry.read_bytes() for entry in (store.root / "quarantine").iterdir()] == [b"rottenr"]
    assert (tree / "model.onnx").exists()  # what runs from it goes on
    assert after_boot.missing([file.sha256 for file in files]) == (sha256(b"weights"),)

    with pytest.raises(ArtifactCorrupt):  # still, and for other processes too
        ArtifactStore(store.root, boot_id="another").verify(digest)

    after_boot.put(sha256(b"weights"), [b"weights"])
    assert after_boot.put_tree(files) == digest
    assert content_of(tree) == {"model.onnx": (b"weights", 0o444), "b": (b"1", 0o444)}
    assert after_boot.verify(digest) == Verified(tree, 0, ())


def test_after_the_blob_was_put_again_verify_repairs_by_itself(store: ArtifactStore, stored: Put) -> None:
    digest = store.put_tree(stored({"a": b"weights"}))
    damage(store.tree_path(digest) / "a")
    touch(store.tree_path(digest) / "a")
    with pytest.raises(ArtifactCorrupt):
        store.verify(digest)
    store.put(sha256(b"weights"), [b"weights"])
    assert store.verify(digest).repaired == ("a",)


def test_while_one_file_is_lost_the_sound_ones_are_not_hashed_each_time(
    store: ArtifactStore, stored: Put, monkeypatch
) -> None:
    digest = store.put_tree(stored({"large": b"x" * 5000, "small": b"weights"}))
    damage(store.tree_path(digest) / "small")
    touch(store.tree_path(digest) / "small")
    with pytest.raises(ArtifactCorrupt):
        store.verify(digest)
    hashed = []
    original = disk.hash_stored
    monkeypatch.setattr(verification, "hash_stored", lambda path: hashed.append(path.name) or original(path))
    with pytest.raises(ArtifactCorrupt):
        store.verify(digest)
    assert hashed == ["small"]


def test_damage_found_in_one_tree_is_looked_for_in_all_that_share_the_bytes(store: ArtifactStore, stored: Put) -> None:
    one = store.put_tree(stored({"a": b"weights"}))
    other = store.put_tree(stored({"b": b"weights", "c": b"1"}))
    damage(blob_path(store, b"weights"))  # shows in nothing but the bytes
    assert store.verify(other).hashed_bytes == 0
    os.unlink(store.root / "records" / f"{one}.json")
    store.put_tree(stored({}))
    with pytest.raises(ArtifactCorrupt):
        store.verify(one)
    list(store.scrub(bytes_per_s=1e9))
    with pytest.raises(ArtifactCorrupt):
        store.verify(other)


def test_a_damaged_blob_is_made_again_from_its_twin(store: ArtifactStore, stored: Put) -> None:
    digest = store.put_tree(stored({"plain": b"script", "run*": b"script"}))
    tree = store.tree_path(digest)
    for executable, path in ((False, "plain"), (True, "run")):
        damage(blob_path(store, b"script", executable))
        touch(tree / path)
        assert store.verify(digest).repaired == (path,)
        assert content_of(tree) == {"plain": (b"script", 0o444), "run": (b"script", 0o555)}


@pytest.mark.parametrize(("first", "second"), [("a", "a*"), ("a*", "a")])
def test_a_blob_that_is_found_damaged_while_its_twin_is_made_is_asked_for_again(
    store: ArtifactStore, stored: Put, first: str, second: str
) -> None:
    store.put_tree(stored({first: b"weights"}))
    blob_path(store, b"weights", not first.endswith("*")).unlink(missing_ok=True)
    damage(blob_path(store, b"weights", first.endswith("*")))  # shows in nothing but the bytes: it is trusted still
    wanted = stored({second: b"weights"})
    with pytest.raises(ArtifactCorrupt):
        store.put_tree(wanted)
    assert store.missing([wanted[0].sha256]) == (wanted[0].sha256,)
    tree = store.tree_path(store.put_tree(stored({second: b"weights"})))
    assert content_of(tree) == {"a": (b"weights", 0o555 if second.endswith("*") else 0o444)}


def test_a_damaged_blob_never_gets_into_a_new_tree(store: ArtifactStore, stored: Put) -> None:
    files = stored({"a": b"weights"})
    damage(blob_path(store, b"weights"))
    fresh = ArtifactStore(store.root)  # trusts nothing that it did not hash
    with pytest.raises(ArtifactCorrupt):
        fresh.put_tree(files)
    assert fresh.trees() == ()
    assert fresh.missing([files[0].sha256]) == (files[0].sha256,)


def test_a_tree_without_its_list_that_holds_other_bytes_is_corrupt(store: ArtifactStore, stored: Put) -> None:
    files = stored({"a": b"weights"})
    digest = store.put_tree(files)
    (store.root / "records" / f"{digest}.json").unlink()
    damage(store.tree_path(digest) / "a")
    with pytest.raises(ArtifactCorrupt) as caught:
        store.verify(digest)
    assert (caught.value.digest, caught.value.path) == (digest, store.tree_path(digest))


def test_damage_that_cannot_be_set_aside_is_still_named(store: ArtifactStore, stored: Put, monkeypatch) -> None:
    digest = store.put_tree(stored({"a": b"weights"}))
    damage(store.tree_path(digest) / "a")
    touch(store.tree_path(digest) / "a")

    def read_only(self: Path, target: Path) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "rename", read_only)
    with pytest.raises(ArtifactCorrupt):
        store.verify(digest)


def test_a_file_the_disk_cannot_read_is_corrupt(store: ArtifactStore, stored: Put, monkeypatch) -> None:
    digest = store.put_tree(stored({"a": b"weights"}))
    touch(store.tree_path(digest) / "a")

    def failing(descriptor: int) -> str:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(disk, "hash_descriptor", failing)
    with pytest.raises(ArtifactCorrupt):
        store.verify(digest)


def test_without_a_boot_id_nothing_hashed_before_counts(store: ArtifactStore, stored: Put) -> None:
    digest = store.put_tree(stored({"a": b"123"}))
    unknown = ArtifactStore(store.root, boot_id="")
    assert [unknown.verify(digest).hashed_bytes for _ in range(2)] == [3, 3]


def test_a_tree_without_its_list_that_holds_a_link_is_corrupt(store: ArtifactStore, stored: Put) -> None:
    digest = store.put_tree(stored({"a": b"weights"}))
    (store.root / "records" / f"{digest}.json").unlink()
    tree = store.tree_path(digest)
    tree.chmod(0o755)
    (tree / "b").symlink_to("a")
    with pytest.raises(ArtifactCorrupt) as caught:
        store.verify(digest)
    assert caught.value.path == tree / "b"


def test_when_both_twins_are_damaged_both_are_set_aside(store: ArtifactStore, stored: Put) -> None:
    files = stored({"plain": b"script", "run*": b"script"})
    digest = store.put_tree(files)
    damage(blob_path(store, b"script"))
    damage(blob_path(store, b"script", True))
    with pytest.raises(ArtifactCorrupt):
        ArtifactStore(store.root, boot_id="another").verify(digest)
    assert len(list((store.root / "quarantine").iterdir())) == 2
    store.put(sha256(b"script"), [b"script"])
    assert store.put_tree(files) == digest
    assert content_of(store.tree_path(digest)) == {"plain": (b"script", 0o444), "run": (b"script", 0o555)}


def test_a_tree_collected_while_it_is_verified_is_missing(store: ArtifactStore, stored: Put, monkeypatch) -> None:
    digest = store.put_tree(stored({"a": b"1"}))
    verify = Verification.verify

    def after_collection(trees: Verification, wanted: str) -> Verified:
        store.collect_garbage(set(), 0, MUCH_LATER)
        return verify(trees, wanted)

    monkeypatch.setattr(Verification, "verify", after_collection)
    with pytest.raises(ArtifactMissing):
        store.verify(digest)


def test_a_blob_set_aside_while_a_tree_is_laid_out_is_asked_for(store: ArtifactStore, stored: Put, monkeypatch) -> None:
    files = stored({"a": b"1"})
    sound = Blobs.sound

    def set_aside_afterwards(blobs: Blobs, sha: str, executable: bool) -> tuple:
        found = sound(blobs, sha, executable)
        blob_path(store, b"1").unlink()
        return found

    monkeypatch.setattr(Blobs, "sound", set_aside_afterwards)
    with pytest.raises(BlobsMissing):
        store.put_tree(files)
    assert leftovers(store) == []


# --- scrub ---


def test_scrubbing_reads_everything_once_at_the_rate_asked_for(store: ArtifactStore, stored: Put) -> None:
    store.put_tree(stored({"large": b"x" * 9_000_000, "run*": b"echo"}))
    steps = list(store.scrub(bytes_per_s=1_000_000))
    assert sum(step.read_bytes for step in steps) == 9_000_000 + 4 + 4
    assert sum(step.wait_s for step in steps) == pytest.approx(9.000008)
    assert max(step.read_bytes for step in steps) <= SCRUB_STEP_BYTES
    assert {step.damage for step in steps} == {None}


def test_scrubbing_finds_damage_that_nothing_else_shows(store: ArtifactStore, stored: Put) -> None:
    digest = store.put_tree(stored({"a": b"weights", "b": b"fine"}))
    damage(blob_path(store, b"weights"))
    assert store.verify(digest).hashed_bytes == 0
    damages = [step.damage for step in store.scrub(bytes_per_s=1e9) if step.damage]
    assert [error.digest for error in damages] == [sha256(b"weights")]
    assert store.missing([sha256(b"weights")]) == (sha256(b"weights"),)
    with pytest.raises(ArtifactCorrupt):
        store.verify(digest)


def test_scrubbing_puts_right_what_has_a_sound_twin(store: ArtifactStore, stored: Put) -> None:
    digest = store.put_tree(stored({"a": b"script", "run*": b"script"}))
    damage(blob_path(store, b"script"))
    assert [step.damage for step in store.scrub(bytes_per_s=1e9) if step.damage] == []
    assert blob_path(store, b"script").read_bytes() == b"script"
    assert store.verify(digest).repaired == ("a",)


def test_scrubbing_looks_at_files_of_trees_that_share_no_blob(store: ArtifactStore, stored: Put, monkeypatch) -> None:
    files = stored({"a": b"weights"})
    with monkeypatch.context() as patch:
        patch.setattr(os, "link", lambda *args, **options: (_ for _ in ()).throw(OSError(errno.EMLINK, "")))
        digest = store.put_tree(files)
    damage(store.tree_path(digest) / "a")
    assert [step.damage for step in store.scrub(bytes_per_s=1e9) if step.damage] == []
    assert content_of(store.tree_path(digest)) == {"a": (b"weights", 0o444)}


def test_scrubbing_names_what_the_disk_cannot_read(store: ArtifactStore, monkeypatch) -> None:
    store.put(sha256(b"weights"), [b"weights"])

    def failing(descriptor: int, length: int, position: int) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pread", failing)
    damages = [step.damage for step in store.scrub(bytes_per_s=1e9) if step.damage]
    assert [error.digest for error in damages] == [sha256(b"weights")]


def test_scrubbing_leaves_missing_files_of_trees_to_verify(store: ArtifactStore, stored: Put) -> None:
    digest = store.put_tree(stored({"a": b"1"}))
    store.tree_path(digest).chmod(0o755)
    (store.tree_path(digest) / "a").unlink()
    assert [step.damage for step in store.scrub(bytes_per_s=1e9) if step.damage] == []


def test_scrubbing_an_empty_store_does_nothing(store: ArtifactStore) -> None:
    assert list(store.scrub(bytes_per_s=1.0)) == []


def test_scrubbing_passes_over_what_is_collected_meanwhile(store: ArtifactStore, stored: Put) -> None:
    stored({"a": b"x" * 10, "b": b"y" * 10, "c": b"z" * 10})
    steps = store.scrub(bytes_per_s=1e9)
    next(steps)
    store.collect_garbage(set(), 0, MUCH_LATER)
    assert [step.damage for step in steps] == []


# --- garbage ---


def test_the_least_recently_used_trees_go_first(store: ArtifactStore, stored: Put) -> None:
    digests = [store.put_tree(stored({"a": b"%d" % i * 100})) for i in range(4)]
    for age, digest in zip((3, 1, 4, 2), digests, strict=True):
        touch_record(store, digest, MUCH_LATER - age * UNUSED_GRACE_S * 2)
    collected = store.collect_garbage(set(), 200, MUCH_LATER)
    assert collected == Collected((digests[2], digests[0]), 2, 0, 200, 200)
    assert set(store.trees()) == {digests[1], digests[3]}


def test_using_a_tree_keeps_it(store: ArtifactStore, stored: Put) -> None:
    files = {name: stored({name: name.encode() * 100}) for name in "abc"}
    digests = {name: store.put_tree(listed) for name, listed in files.items()}
    for use in (
        lambda: store.tree_path(digests["b"]),
        lambda: store.verify(digests["b"]),
        lambda: store.put_tree(files["b"]),
    ):
        for digest in digests.values():
            touch_record(store, digest, 1.0)
        use()
        now = (store.root / "records" / f"{digests['b']}.json").stat().st_mtime
        assert now > 1.0
    store.collect_garbage(set(), 100, now + UNUSED_GRACE_S)
    assert store.trees() == (digests["b"],)


def test_what_is_in_use_stays_whatever_its_size(store: ArtifactStore, stored: Put) -> None:
    used = store.put_tree(stored({"a": b"x" * 1000, "shared": b"s" * 10}))
    unused = store.put_tree(stored({"b": b"y" * 1000, "shared": b"s" * 10}))
    collected = store.collect_garbage({used, "f" * 64}, 0, MUCH_LATER)
    assert collected == Collected((unused,), 1, 0, 1000, 1010)
    assert store.verify(used).hashed_bytes == 0
    assert store.missing([sha256(b"s" * 10), sha256(b"x" * 1000)]) == ()


def test_nothing_goes_while_there_is_room(store: ArtifactStore, stored: Put) -> None:
    digest = store.put_tree(stored({"a": b"x" * 1000, "also": b"x" * 1000}))
    assert store.collect_garbage(set(), 1000, MUCH_LATER) == Collected((), 0, 0, 0, 1000)
    assert store.trees() == (digest,)


def test_of_trees_that_nobody_needs_only_so_many_stay_however_small(
    store: ArtifactStore, stored: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(garbage, "MAX_UNUSED_TREES", 2)
    digests = [store.put_tree(stored({"a": b"%d" % i})) for i in range(5)]
    for age, digest in zip((5, 4, 3, 2, 1), digests, strict=True):
        touch_record(store, digest, MUCH_LATER - age * UNUSED_GRACE_S * 2)
    collected = store.collect_garbage({digests[0]}, 10**9, MUCH_LATER)
    assert collected == Collected((digests[1], digests[2]), 2, 0, 2, 3)
    assert set(store.trees()) == {digests[0], digests[3], digests[4]}


def test_a_tree_used_a_moment_ago_stays(store: ArtifactStore, stored: Put) -> None:
    digest = store.put_tree(stored({"a": b"1"}))
    now = (store.root / "records" / f"{digest}.json").stat().st_mtime
    assert store.collect_garbage(set(), 0, now + UNUSED_GRACE_S - 1).trees == ()
    assert store.collect_garbage(set(), 0, now - 1e6).trees == ()  # a clock that went back
    assert store.collect_garbage(set(), 0, now + UNUSED_GRACE_S + 1).trees == (digest,)


def test_a_pinned_tree_stays_while_the_deploy_runs(store: ArtifactStore, stored: Put) -> None:
    files = stored({"a": b"1"})
    later = stored({"b": b"2"})
    with store.pin(tree_digest(files)) as pin:
        store.put_tree(files)
        digest = store.put_tree(later)
        pin.add(digest)
        assert ArtifactStore(store.root).collect_garbage(set(), 0, MUCH_LATER).trees == ()
    assert len(store.collect_garbage(set(), 0, MUCH_LATER).trees) == 2
    assert list((store.root / "pins").iterdir()) == []


def test_a_pin_whose_process_died_does_not_count(store: ArtifactStore, stored: Put) -> None:
    digest = store.put_tree(stored({"a": b"1"}))
    (store.root / "pins").mkdir()
    (store.root / "pins" / "dead").write_text(f"{digest}\n")
    assert store.collect_garbage(set(), 0, MUCH_LATER).trees == (digest,)
    assert list((store.root / "pins").iterdir()) == []


def test_an_upload_that_no_tree_holds_stays_for_a_day(store: ArtifactStore) -> None:
    store.put(sha256(b"x"), [b"x"])
    now = blob_path(store, b"x").stat().st_ctime
    assert store.collect_garbage(set(), 0, now + UPLOAD_GRACE_S - 1).blobs == 0
    store.missing([sha256(b"x")])  # a deploy that counts on it
    touched = blob_path(store, b"x").stat().st_ctime
    assert store.collect_garbage(set(), 10**9, touched + UPLOAD_GRACE_S + 1) == Collected((), 1, 0, 1, 0)


def test_a_blob_a_deploy_counts_on_outlives_the_tree_that_held_it(store: ArtifactStore, stored: Put) -> None:
    digest = store.put_tree(stored({"a": b"x"}))
    touch_record(store, digest, 1.0)
    store.missing([sha256(b"x")])
    now = blob_path(store, b"x").stat().st_ctime
    assert store.collect_garbage(set(), 0, now + UNUSED_GRACE_S / 2) == Collected((digest,), 0, 0, 0, 1)
    assert store.put_tree(stored({"b": b"x"}))


def test_an_executable_needs_no_plain_twin(store: ArtifactStore, stored: Put) -> None:
    files = stored({"run*": b"echo"})
    digest = store.put_tree(files)
    assert store.collect_garbage({digest}, 0, MUCH_LATER).blobs == 1
    assert store.missing([files[0].sha256]) == ()
    assert store.put(files[0].sha256, []) == StoredBlob(files[0].sha256, 4)
    assert store.put_tree(stored({"plain": b"echo"}))


def test_what_dead_processes_left_is_removed_after_an_hour(store: ArtifactStore, stored: Put) -> None:
    digest = store.put_tree(stored({"a": b"1"}))
    (store.root / "tmp" / "blob-dead").write_bytes(b"half")
    half = store.root / "trees" / ".new-dead"
    (half / "sub").mkdir(parents=True)
    (half / "sub" / "a").write_bytes(b"")
    (half / "sub").chmod(0o555)
    (store.root / "records" / f"{'0' * 64}.json").write_bytes(b"{}")
    now = half.stat().st_ctime
    assert store.collect_garbage({digest}, 0, now + STRAY_AGE_S - 60).strays == 0
    assert store.collect_garbage({digest}, 0, now + STRAY_AGE_S + 60).strays == 3
    assert leftovers(store) == []
    assert store.verify(digest).hashed_bytes == 0


def test_a_removal_that_was_interrupted_is_finished_at_once(store: ArtifactStore, stored: Put) -> None:
    digest = store.put_tree(stored({"a/b": b"1"}))
    (store.root / "trees" / digest).rename(store.root / "trees" / ".gone-dead")
    assert store.collect_garbage(set(), 0, MUCH_LATER) == Collected((), 1, 1, 1, 0)
    assert leftovers(store) == []


def test_what_was_set_aside_is_removed_after_a_day(store: ArtifactStore, stored: Put) -> None:
    digest = store.put_tree(stored({"a": b"weights"}))
    damage(blob_path(store, b"weights"))
    list(store.scrub(bytes_per_s=1e9))
    (aside,) = (store.root / "quarantine").iterdir()
    moved = aside.stat().st_ctime
    assert store.collect_garbage({digest}, 0, moved + UPLOAD_GRACE_S - 60).strays == 0
    assert store.collect_garbage({digest}, 0, moved + UPLOAD_GRACE_S + 60).strays == 1


def test_a_tree_with_copies_instead_of_links_frees_what_it_holds(
    store: ArtifactStore, stored: Put, monkeypatch
) -> None:
    files = stored({"a": b"x" * 100})
    with monkeypatch.context() as patch:
        patch.setattr(os, "link", lambda *args, **options: (_ for _ in ()).throw(OSError(errno.EMLINK, "")))
        digest = store.put_tree(files)
    (store.root / "records" / f"{digest}.json").unlink()  # then its folder tells when it was made
    made = store.tree_path(digest).stat().st_ctime
    assert store.collect_garbage(set(), 0, made + UNUSED_GRACE_S - 60).trees == ()
    collected = store.collect_garbage(set(), 0, made + UNUSED_GRACE_S + 60)
    assert collected == Collected((digest,), 0, 0, 100, 100)


def test_collecting_in_an_empty_store_does_nothing(store: ArtifactStore) -> None:
    assert store.collect_garbage(set(), 0, 0.0) == Collected((), 0, 0, 0, 0)


# --- trouble ---


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("call", ["write", "fsync", "fchmod", "open"])
def test_trouble_while_putting_a_blob_is_named_and_leaves_nothing(
    store: ArtifactStore, monkeypatch, code: int, call: str
) -> None:
    store.missing([])
    with monkeypatch.context() as patch:

        def fail(*args: object, **options: object) -> None:
            raise OSError(code, os.strerror(code))

        patch.setattr(os, call, fail)
        with pytest.raises(StoreUnavailable) as caught:
            store.put(sha256(b"x"), [b"x"])
    assert caught.value.errno == code
    assert str(store.root) in caught.value.hint
    assert leftovers(store) == []
    assert store.put(sha256(b"x"), [b"x"]).size_bytes == 1


@pytest.mark.parametrize("call", ["link", "fsync"])
def test_trouble_while_laying_out_a_tree_is_named_and_leaves_nothing(
    store: ArtifactStore, stored: Put, monkeypatch, call: str
) -> None:
    files = stored({"a": b"1", "sub/b": b"2"})
    with monkeypatch.context() as patch:

        def fail(*args: object, **options: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        patch.setattr(os, call, fail)
        with pytest.raises(StoreUnavailable, match="No space left on device"):
            store.put_tree(files)
    assert leftovers(store) == []
    assert store.trees() == ()
    assert store.verify(store.put_tree(files)).hashed_bytes == 0


def test_a_folder_that_may_not_be_written_is_named(tmp_path: Path, unprivileged) -> None:
    (tmp_path / "locked").mkdir()
    unprivileged()
    (tmp_path / "locked").chmod(0o555)
    store = ArtifactStore(tmp_path / "locked" / "store")
    with pytest.raises(StoreUnavailable, match="Permission denied") as caught:
        store.put(sha256(b"x"), [b"x"])
    assert caught.value.problem().reference == "store-unavailable"
    assert "must belong to the user" in caught.value.problem().hint


def test_a_file_in_the_way_of_the_store_is_named(tmp_path: Path) -> None:
    (tmp_path / "store").write_bytes(b"")
    with pytest.raises(StoreUnavailable, match=r"store cannot be used: (Not a directory|File exists)"):
        ArtifactStore(tmp_path / "store").missing([])


def test_without_roots_rights_trees_are_made_repaired_and_removed(tmp_path: Path, unprivileged) -> None:
    """Read-only folders stop everyone but root, who runs these tests in many places."""
    unprivileged()
    store = ArtifactStore(tmp_path / "store")
    files = []
    for path, content in {"a": b"1", "sub/deep/b*": b"2"}.items():
        store.put(sha256(content), [content])
        files.append(StoredFile(path=path.rstrip("*"), sha256=sha256(content), executable=path.endswith("*")))
    digest = store.put_tree(files)
    tree = store.tree_path(digest)
    with pytest.raises(PermissionError):
        (tree / "sub" / "planted").write_bytes(b"")
    with pytest.raises(PermissionError):
        (tree / "a").write_bytes(b"")
    (tree / "sub/deep").chmod(0o755)
    (tree / "sub/deep/b").unlink()
    (tree / "sub/deep/planted").write_bytes(b"")
    assert store.verify(digest).repaired == ("sub/deep/b", "sub/deep/planted")
    assert content_of(tree) == {"a": (b"1", 0o444), "sub/deep/b": (b"2", 0o555)}
    assert store.collect_garbage(set(), 0, MUCH_LATER).trees == (digest,)
    assert leftovers(store) == []


def test_threads_that_put_the_same_things_at_once_agree(store: ArtifactStore) -> None:
    contents = [b"%d" % i * 500 for i in range(20)]
    files = [StoredFile(path=f"d{i % 3}/f{i}", sha256=sha256(c), executable=i % 4 == 0) for i, c in enumerate(contents)]
    start = threading.Barrier(4)
    digests: list[str] = []

    def deploy() -> None:
        start.wait()
        for content in contents:
            store.put(sha256(content), [content])
        digests.append(store.put_tree(files))

    threads = [threading.Thread(target=deploy) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert digests == [tree_digest(files)] * 4
    assert leftovers(store) == []
    assert store.verify(digests[0]).repaired == ()


# --- invariants over random histories ---

contents = st.sampled_from([b"", b"a", b"bb", b"ccc", b"dddd"])
trees = st.dictionaries(st.sampled_from(["a", "b", "c/d", "c/e", "f/g/h"]), st.tuples(contents, st.booleans()))
steps = st.one_of(
    st.tuples(st.just("put"), trees),
    st.tuples(st.just("damage blob"), contents, st.booleans()),
    st.tuples(st.just("damage tree"), st.integers(0, 20)),
    st.tuples(st.just("collect"), st.sets(st.integers(0, 20), max_size=3), st.integers(0, 12)),
    st.tuples(st.just("verify"), st.integers(0, 20)),
    st.tuples(st.just("scrub")),
    st.tuples(st.just("restart"), st.booleans()),
)


@settings(max_examples=80, deadline=None)
@given(st.lists(steps, max_size=14))
def test_whatever_happens_a_verified_tree_holds_its_bytes(history: list[tuple]) -> None:
    """Puts, damage, collection, scrubbing and restarts in any order; deploys repair what is reported."""
    with tempfile.TemporaryDirectory(dir=IN_MEMORY) as folder:
        store = ArtifactStore(Path(folder) / "store", boot_id="0")
        wanted: dict[str, dict[str, tuple[bytes, bool]]] = {}
        boots = 0

        def deploy(tree: dict[str, tuple[bytes, bool]]) -> str:
            files = [StoredFile(path=p, sha256=sha256(c), executable=x) for p, (c, x) in tree.items()]
            by_digest = {sha256(c): c for c, _ in tree.values()}
            for _ in range(len(files) + 1):
                for digest in store.missing(by_digest):
                    store.put(digest, [by_digest[digest]])
                try:
                    return store.put_tree(files)
                except ArtifactCorrupt:
                    continue
            return pytest.fail("putting what is missing again did not help")

        def holds_its_bytes(digest: str) -> None:
            expected = {p: (c, 0o555 if x else 0o444) for p, (c, x) in wanted[digest].items()}
            assert content_of(store.tree_path(digest)) == expected

        for step, *values in history:
            known = sorted(set(wanted) & set(store.trees()))
            if step == "put":
                digest = deploy(values[0])
                wanted[digest] = values[0]
                with_all_hashed(store, digest, deploy, wanted)
                holds_its_bytes(digest)
            elif step == "damage blob" and values[0] and blob_path(store, *values).exists():
                damage(blob_path(store, *values))
            elif step == "damage tree" and known:
                tree = store.tree_path(known[values[0] % len(known)])
                files = [path for path in sorted(tree.rglob("*")) if path.is_file()]
                if files:
                    files[values[0] % len(files)].parent.chmod(0o755)
                    files[values[0] % len(files)].unlink()
            elif step == "collect":
                in_use = {known[i % len(known)] for i in values[0]} if known else set()
                collected = store.collect_garbage(in_use, values[1], MUCH_LATER)
                assert in_use <= set(store.trees())
                assert not in_use & set(collected.trees)
                assert collected.kept_bytes <= values[1] or set(store.trees()) <= in_use
            elif step == "verify" and known:
                digest = known[values[0] % len(known)]
                with_all_hashed(store, digest, deploy, wanted)
                holds_its_bytes(digest)
            elif step == "scrub":
                list(store.scrub(bytes_per_s=1e9))
                for digest in known:
                    try:
                        store.verify(digest)
                    except ArtifactCorrupt:
                        deploy(wanted[digest])
                    holds_its_bytes(digest)
            elif step == "restart":
                boots += values[0]
                store = ArtifactStore(store.root, boot_id=str(boots))
            assert leftovers(store) == []


def with_all_hashed(store: ArtifactStore, digest: str, deploy: Callable, wanted: dict) -> None:
    """Verify a tree as after a restart of the machine, deploying again what turns out to be damaged."""
    fresh = ArtifactStore(store.root, boot_id=uuid.uuid4().hex)
    try:
        fresh.verify(digest)
    except ArtifactCorrupt:
        deploy(wanted[digest])
        fresh.verify(digest)
