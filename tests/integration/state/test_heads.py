"""Real processes that lead a cluster whose storage is a directory: killed, or stopped while another one takes over."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from cortex.state.bucket import BucketStateStore
from cortex.storage.directory import DirectoryStorage
from cortex.testing.clock import FakeClock

pytestmark = pytest.mark.slow

HEAD = """
    import sys
    from pathlib import Path
    from cortex.clock import SystemClock
    from cortex.errors import CortexError
    from cortex.state.bucket import BucketStateStore
    from cortex.storage.directory import DirectoryStorage

    store = BucketStateStore(DirectoryStorage(Path(sys.argv[1])), SystemClock())
    print("leads", store.take_epoch(), flush=True)
    for line in sys.stdin:
        try:
            store.set_meta(*line.split())
            print("done", flush=True)
        except CortexError as error:
            print(error.reference, flush=True)
"""

KILLED = """
    import os, signal, sys
    from pathlib import Path
    from cortex.state.bucket import BucketStateStore
    from cortex.storage.directory import DirectoryStorage
    from cortex.testing.clock import FakeClock

    def opened(folder):
        return BucketStateStore(DirectoryStorage(folder), FakeClock())

    def child(folder, step, told):
        left = step

        def killing(call):
            def counted(*args, **kwargs):
                nonlocal left
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left -= 1
                answer = call(*args, **kwargs)
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left -= 1
                return answer

            return counted

        for name in ("mkdir", "link", "unlink", "fsync"):
            setattr(os, name, killing(getattr(os, name)))
        store = opened(folder)
        for number in range(3):
            store.set_meta(f"v{number}", "kept")
            os.write(told, b".")
        os._exit(0)

    step = 0
    while True:
        folder = Path(sys.argv[1]) / str(step)
        folder.mkdir()
        opened(folder).set_meta("older", "kept")
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            child(folder, step, writing)
        os.close(writing)
        _, status = os.waitpid(pid, 0)
        acknowledged = len(os.read(reading, 100))
        os.close(reading)
        found = {write.key for write in opened(folder).content() if write.kind == "meta"}
        wanted = {"older", *(f"v{number}" for number in range(acknowledged))}
        assert wanted <= found, (step, wanted, found)
        assert len(found) <= len(wanted) + 1, (step, wanted, found)
        if status == 0:
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
        step += 1
    print("steps", step)
"""


class Head:
    """A process that leads, and changes what it is told to."""

    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(HEAD), str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def hear(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def tell(self, key: str, value: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{key} {value}\n")
        self.process.stdin.flush()


@contextlib.contextmanager
def started(folder: Path) -> Iterator[Head]:
    head = Head(folder)
    try:
        yield head
    finally:
        head.process.kill()
        head.process.communicate()


def kept(folder: Path) -> dict[str, str]:
    store = BucketStateStore(DirectoryStorage(folder), FakeClock())
    return {write.key: write.record for write in store.content() if write.kind == "meta"}


def test_one_that_was_stopped_and_goes_on_after_somebody_else_took_over_writes_nothing(tmp_path: Path) -> None:
    with started(tmp_path) as old:
        assert old.hear().startswith("leads")
        old.tell("a", "old")
        assert old.hear() == "done"
        old.process.send_signal(signal.SIGSTOP)
        old.tell("a", "woken")
        with started(tmp_path) as new:
            assert new.hear().startswith("leads")
            new.tell("b", "new")
            assert new.hear() == "done"
            old.process.send_signal(signal.SIGCONT)
            assert old.hear() == "not-the-leader"
            new.tell("c", "new")
            assert new.hear() == "done"
    assert kept(tmp_path) == {"a": "old", "b": "new", "c": "new"}


def test_a_process_killed_at_any_step_leaves_all_that_it_had_acknowledged(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[1]) > 40, "steps, of which every second is the moment after one"
