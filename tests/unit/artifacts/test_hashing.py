"""Hashing users' files, and not hashing them again."""

import errno
import hashlib
import os
from pathlib import Path

import pytest

from cortex.artifacts import hashing
from cortex.artifacts.errors import FileChanged, UnusableFile
from cortex.artifacts.hashing import FileDigest, HashCache, hash_file

LATER = 1e10  # any file written now is long settled by then


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_a_file_is_described_by_digest_size_and_executable_bit(tmp_path: Path) -> None:
    path = tmp_path / "run.sh"
    path.write_bytes(b"echo")
    path.chmod(0o755)
    assert hash_file(path) == FileDigest(sha256(b"echo"), 4, True)
    path.chmod(0o655)
    assert hash_file(path).executable is False


def test_a_file_saved_once_while_it_is_read_is_read_again(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    read = hashing.hash_descriptor
    calls = []

    def saved_meanwhile(descriptor: int) -> str:
        digest = read(descriptor)
        if not calls:
            path.write_bytes(b"newer")
        calls.append(digest)
        return digest

    monkeypatch.setattr(hashing, "hash_descriptor", saved_meanwhile)
    assert hash_file(path).sha256 == sha256(b"newer")


def test_a_file_that_never_rests_is_an_error(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"")
    read = hashing.hash_descriptor

    def appended_meanwhile(descriptor: int) -> str:
        with path.open("ab") as log:
            log.write(b"line\n")
        return read(descriptor)

    monkeypatch.setattr(hashing, "hash_descriptor", appended_meanwhile)
    with pytest.raises(FileChanged, match="log changed"):
        hash_file(path)


def test_a_pipe_is_refused_without_waiting_for_a_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UnusableFile, match="no regular file"):
        hash_file(tmp_path / "pipe")
    with pytest.raises(UnusableFile, match="no regular file"):
        hash_file(tmp_path)


def test_an_unreadable_file_is_named(tmp_path: Path, unprivileged) -> None:
    path = tmp_path / "secret"
    path.write_bytes(b"x")
    path.chmod(0)
    unprivileged()
    with pytest.raises(UnusableFile, match=r"secret cannot be read \(Permission denied\)"):
        hash_file(path)


def test_a_file_the_disk_cannot_read_is_named(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "a").write_bytes(b"x")

    def failing(descriptor: int) -> str:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(hashing, "hash_descriptor", failing)
    with pytest.raises(UnusableFile, match=r"a cannot be read \(Input/output error\)"):
        hash_file(tmp_path / "a")


def test_an_unchanged_file_is_not_read_again(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"content")
    kept_in = tmp_path / "cache" / "hashes.json"
    cache = HashCache(kept_in, now_wall_s=LATER)
    first = hash_file(path, cache)
    cache.save()
    monkeypatch.setattr(hashing, "hash_descriptor", lambda descriptor: pytest.fail("read again"))
    assert hash_file(path, HashCache(kept_in, now_wall_s=LATER)) == first


def test_a_file_changed_to_the_same_size_and_mtime_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"one")
    before = path.stat()
    cache = HashCache(now_wall_s=LATER)
    hash_file(path, cache)
    while path.stat().st_ctime_ns == before.st_ctime_ns:  # the clock of a file system may tick slowly
        path.write_bytes(b"two")
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert hash_file(path, cache).sha256 == sha256(b"two")


def test_a_file_written_a_moment_ago_is_not_remembered(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"one")
    found = path.stat()
    cache = HashCache(now_wall_s=found.st_ctime + HashCache.SETTLED_S / 2)
    hash_file(path, cache)
    assert cache.find(found) is None


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"1:2:3:4:5": "no digest"}'])
def test_a_damaged_cache_counts_as_empty(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "cache").write_bytes(content)
    (tmp_path / "a").write_bytes(b"x")
    cache = HashCache(tmp_path / "cache", now_wall_s=LATER)
    assert hash_file(tmp_path / "a", cache).sha256 == sha256(b"x")
    cache.save()


def test_the_cache_keeps_what_was_used_last(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(HashCache, "MAX_ENTRIES", 2)
    paths = [tmp_path / name for name in "abc"]
    for path in paths:
        path.write_bytes(path.name.encode())
    cache = HashCache(tmp_path / "cache", now_wall_s=LATER)
    for path in [*paths, paths[0]]:
        hash_file(path, cache)
    cache.save()
    kept = HashCache(tmp_path / "cache", now_wall_s=LATER)
    assert [kept.find(path.stat()) is not None for path in paths] == [True, False, True]


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    cache = HashCache(tmp_path / "file" / "cache", now_wall_s=LATER)
    hash_file(tmp_path / "file", cache)
    cache.save()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file"]
