"""Real processes for the artifact store's tests."""

import hashlib
import os
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from cortex.artifacts.store import ArtifactStore
from cortex.wire.operator import StoredFile

FILE_EVENTS = ("open", "os.", "shutil.", "fcntl.")
"""Audit events just before Python touches a file. Source: docs.python.org, "Audit events table"."""


class Ended(NamedTuple):
    """How a child process ended."""

    killed: bool
    code: int


class Children:
    """Processes forked from the test, which is much faster than starting Python anew each time."""

    def __init__(self) -> None:
        self._running: set[int] = set()

    def start(self, work: Callable[[], object], *, before_each_file_event: Callable[[], None] | None = None) -> int:
        with warnings.catch_warnings():  # Python warns of threads; the child touches none and leaves by `_exit`
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid:
            self._running.add(pid)
            return pid
        code = 70
        try:
            if before_each_file_event is not None:
                notice = before_each_file_event

                def audit(event: str, arguments: object) -> None:
                    if event.startswith(FILE_EVENTS):
                        notice()

                sys.addaudithook(audit)
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    def ended(self, pid: int) -> bool:
        """Whether it has ended; `wait` tells how."""
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def wait(self, pid: int) -> Ended:
        _, status = os.waitpid(pid, 0)
        self._running.discard(pid)
        if os.WIFSIGNALED(status):
            assert os.WTERMSIG(status) == signal.SIGKILL
            return Ended(True, 0)
        return Ended(False, os.WEXITSTATUS(status))

    def kill(self, pid: int) -> Ended:
        os.kill(pid, signal.SIGKILL)
        return self.wait(pid)

    def kill_all(self) -> None:
        for pid in tuple(self._running):
            self.kill(pid)

    def run_until_event(self, number: int, work: Callable[[], object]) -> Ended:
        """Run `work` in a child that is killed right before its `number`-th use of a file."""
        left = number

        def count() -> None:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        return self.wait(self.start(work, before_each_file_event=count))


@pytest.fixture
def children():
    children = Children()
    yield children
    children.kill_all()


@pytest.fixture
def store(memory: Path) -> ArtifactStore:
    return ArtifactStore(memory / "store")


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: a kill leaves the same traces there, and syncing is free."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


class Folder(NamedTuple):
    """A tree together with the bytes of its files."""

    files: tuple[StoredFile, ...]
    blobs: dict[str, bytes]

    def put_into(self, store: ArtifactStore) -> str:
        for sha256 in store.missing(self.blobs):
            content = self.blobs[sha256]
            middle = len(content) // 2
            store.put(sha256, [content[:middle], content[middle:]])
        return store.put_tree(self.files)

    def is_laid_out_at(self, tree: Path) -> bool:
        found = {
            (str(path.relative_to(tree)), path.read_bytes(), path.stat().st_mode & 0o777)
            for path in tree.rglob("*")
            if not path.is_dir()
        }
        return found == {(f.path, self.blobs[f.sha256], 0o555 if f.executable else 0o444) for f in self.files}


@pytest.fixture
def folder() -> Callable[[int], Folder]:
    """Build a small project: nested folders, an executable, one content twice. Each number makes another one."""

    def build(number: int = 0) -> Folder:
        contents = {
            "handler.py": b"print(%d)" % number,
            "sub/run.sh": b"echo",
            "sub/deep/same": b"echo",
            "weights.bin": b"%d" % number * 20_000,
        }
        blobs = {hashlib.sha256(content).hexdigest(): content for content in contents.values()}
        files = tuple(
            StoredFile(path=path, sha256=hashlib.sha256(content).hexdigest(), executable=path.endswith(".sh"))
            for path, content in contents.items()
        )
        return Folder(files, blobs)

    return build
