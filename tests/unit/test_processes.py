"""Tests of `cortex.processes`."""

import asyncio
import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import psutil
import pytest

from cortex import processes
from cortex.processes import ProcessIdentity

DEADLINE_S = 60.0


def eventually(look: Callable[[], bool]) -> None:
    until_s = time.monotonic() + DEADLINE_S
    while not look():
        assert time.monotonic() < until_s
        time.sleep(0.001)


def test_this_process_is_alive_by_its_own_identity():
    assert processes.is_alive(processes.own_identity())


def test_a_recycled_pid_is_not_taken_for_the_old_process():
    own = processes.own_identity()
    before_us = ProcessIdentity(pid=own.pid, start_ticks=own.start_ticks - 1, boot_id=own.boot_id)
    assert not processes.is_alive(before_us)
    assert processes.open_pidfd(before_us) is None
    assert not processes.send_signal(before_us, signal.SIGKILL)


def test_a_process_of_another_boot_is_not_alive():
    own = processes.own_identity()
    assert not processes.is_alive(ProcessIdentity(pid=own.pid, start_ticks=own.start_ticks, boot_id="another"))


def test_a_signal_reaches_exactly_the_identified_process():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    identity = processes.identify(child.pid)
    assert identity is not None
    assert processes.send_signal(identity, signal.SIGKILL)
    assert child.wait(timeout=50) == -signal.SIGKILL  # sooner than it would end by itself
    assert not processes.is_alive(identity)


def test_a_zombie_does_not_count_as_alive():
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as child:
        identity = processes.identify(child.pid)
        assert identity is not None
        assert processes.is_alive(identity)
        assert not processes.is_zombie(child.pid)
        pidfd = processes.open_pidfd(identity)
        assert pidfd is not None
        assert not processes.has_ended(pidfd)
        child.stdin.close()  # that is the end of it
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert processes.identify(child.pid) is None
        assert not processes.is_alive(identity)
        assert processes.is_zombie(child.pid)
        assert processes.has_ended(pidfd)
        os.close(pidfd)
    assert not processes.is_zombie(child.pid), "collected"


@pytest.mark.parametrize("content", [b"", b"{", b'{"pid": 1}', b'"\xff"', b"[" * 100_000])
def test_a_record_that_cannot_be_read_is_none(tmp_path, content):
    file = tmp_path / "record.json"
    assert processes.read_record(file, ProcessIdentity) is None
    processes.write_identity(file, processes.own_identity())
    assert processes.read_record(file, ProcessIdentity) == processes.own_identity()
    file.write_bytes(content)
    assert processes.read_record(file, ProcessIdentity) is None


def test_a_file_is_replaced_whole_and_private(tmp_path):
    file = tmp_path / "record.json"
    processes.write_whole(file, b"old")
    processes.write_whole(file, b"new")
    assert file.read_bytes() == b"new"
    assert file.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [file]


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no room for another file."""

    def full(file: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))

    monkeypatch.setattr(processes, "write_whole", full)


def a_record(environment: str = "local") -> processes.ControlPlaneRecord:
    own = processes.own_identity()
    return processes.ControlPlaneRecord(
        pid=own.pid,
        start_ticks=own.start_ticks,
        boot_id=own.boot_id,
        operator_port=1,
        host="h",
        port=2,
        environment=environment,
    )


@pytest.mark.parametrize("before", ["l", "local", "longer than that"])
def test_on_a_full_disk_a_record_takes_the_place_of_the_one_before(tmp_path, full_disk, before):
    file = tmp_path / "record.json"
    file.write_bytes(msgspec.json.encode(a_record(before)))
    processes.write_identity(file, a_record())
    assert processes.read_record(file, processes.ControlPlaneRecord) == a_record()


def test_on_a_full_disk_a_record_that_has_no_place_is_not_written_and_harms_none(tmp_path, full_disk):
    file = tmp_path / "record.json"
    with pytest.raises(OSError, match="No space left"):
        processes.write_identity(file, a_record())
    assert not file.exists()
    file.write_bytes(msgspec.json.encode(a_record()))
    with pytest.raises(OSError, match="No space left"):
        processes.write_identity(file, a_record("x" * 2**20))
    assert processes.read_record(file, processes.ControlPlaneRecord) == a_record()


def test_a_process_that_dies_after_a_good_life_is_started_again_at_once():
    budget = processes.RestartBudget()
    for start_s in (0.0, 10.0, 20.0, 30.0):
        assert budget.may_start(start_s)
        budget.note_start(start_s)


def test_a_process_that_keeps_dying_young_is_started_about_five_times_a_minute():
    budget = processes.RestartBudget()
    starts = 0
    for tenth in range(6000):
        if budget.may_start(tenth / 10):
            budget.note_start(tenth / 10)
            starts += 1
    assert 45 <= starts <= 65  # in ten minutes


def test_one_good_life_ends_the_pauses():
    budget = processes.RestartBudget()
    now_s = 0.0
    for _ in range(8):
        while not budget.may_start(now_s):
            now_s += 0.1
        budget.note_start(now_s)
        now_s += 0.1
    assert not budget.may_start(now_s)
    while not budget.may_start(now_s):
        now_s += 0.1
    budget.note_start(now_s)
    assert budget.may_start(now_s + 60.0)


def test_what_a_killed_writer_left_is_removed_and_nothing_else(tmp_path):
    for name in (".record.json.123.tmp", ".other.json.123.tmp", "record.json", "record.json.tmp"):
        (tmp_path / name).touch()
    processes.remove_unfinished(tmp_path, "record.json")
    assert sorted(file.name for file in tmp_path.iterdir()) == [".other.json.123.tmp", "record.json", "record.json.tmp"]
    processes.remove_unfinished(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["record.json", "record.json.tmp"]
    processes.remove_unfinished(tmp_path / "missing")


def test_a_path_that_leads_elsewhere_is_told_from_the_file_that_was_opened(tmp_path):
    file = tmp_path / "lock"
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT)
    assert processes.is_same_file(descriptor, file)
    (tmp_path / "new").touch()
    (tmp_path / "new").rename(file)
    assert not processes.is_same_file(descriptor, file)
    file.unlink()
    assert not processes.is_same_file(descriptor, file)
    os.close(descriptor)


def test_only_one_holds_a_lock_for_life(tmp_path):
    held = processes.hold_for_life(tmp_path / "a.lock")
    assert held is not None
    assert processes.hold_for_life(tmp_path / "a.lock") is None
    os.close(held)  # as the end of the process does
    again = processes.hold_for_life(tmp_path / "a.lock")
    assert again is not None
    os.close(again)


def test_several_threads_may_write_one_file_at_once(tmp_path):
    file = tmp_path / "f"
    together = threading.Barrier(4, timeout=30)

    def write(number: int) -> None:
        for _ in range(50):
            together.wait()
            processes.write_whole(file, b"%d" % number * 1000)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    assert file.read_bytes() in [b"%d" % number * 1000 for number in range(4)]
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


# ---- what a silent process does ------------------------------------------------------------------------------------


@pytest.fixture
def silent() -> Iterator[Callable[[str], ProcessIdentity]]:
    """Starts a process that runs some code; returns once it prints that it has begun."""
    begun: list[subprocess.Popen[bytes]] = []

    def start(code: str) -> ProcessIdentity:
        child = subprocess.Popen([sys.executable, "-c", f"print(flush=True)\n{code}"], stdout=subprocess.PIPE)
        begun.append(child)
        assert child.stdout is not None
        assert child.stdout.readline()
        identity = processes.identify(child.pid)
        assert identity is not None
        return identity

    yield start
    for child in begun:
        child.kill()
        child.communicate()


def in_state(identity: ProcessIdentity, state: str) -> bool:
    return psutil.Process(identity.pid).status() == state


def test_a_process_that_was_stopped_is_known_by_two_looks_and_goes_on(silent):
    identity = silent("import signal; signal.pause()")
    eventually(lambda: in_state(identity, psutil.STATUS_SLEEPING))
    pulse = processes.Pulse(identity, "it")
    processes.send_signal(identity, signal.SIGSTOP)
    eventually(lambda: in_state(identity, psutil.STATUS_STOPPED))
    assert [pulse.look(0.0), pulse.look(0.1)] == ["well", "stopped"]
    assert not pulse.hangs(0.2)
    eventually(lambda: in_state(identity, psutil.STATUS_SLEEPING))
    assert pulse.look(0.2) == "well"


def test_a_process_hangs_that_sleeps_although_it_owes_something(silent):
    identity = silent("import signal; signal.pause()")
    eventually(lambda: in_state(identity, psutil.STATUS_SLEEPING))
    pulse = processes.Pulse(identity, "it", hangs_after_s=3.0)
    assert [pulse.look(now_s, owes=False) for now_s in (0.0, 100.0)] == ["well", "well"]
    assert [pulse.look(now_s) for now_s in (101.0, 102.9, 103.0)] == ["well", "well", "hung"]


def test_a_process_that_works_or_waits_for_its_turn_does_not_hang_however_long_it_takes(silent):
    identity = silent("while True: pass")
    eventually(lambda: in_state(identity, psutil.STATUS_RUNNING))
    pulse = processes.Pulse(identity, "it", hangs_after_s=3.0)
    assert {pulse.look(now_s) for now_s in (0.0, 100.0, 200.0)} == {"well"}


def test_a_process_that_is_gone_or_another_one_by_now_is_left_to_others(silent):
    identity = silent("import signal; signal.pause()")
    before_it = ProcessIdentity(pid=identity.pid, start_ticks=identity.start_ticks - 1, boot_id=identity.boot_id)
    pulse = processes.Pulse(before_it, "it", hangs_after_s=0.0)
    assert [pulse.look(0.0), pulse.look(9.0)] == ["well", "well"]


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        process.kill()


def identify(child) -> ProcessIdentity:
    identity = processes.identify(child.pid)
    assert identity is not None
    return identity


def test_the_end_of_a_process_that_is_watched_is_told_once_and_known_at_once(child):
    async def story():
        ends = []
        ended = asyncio.Event()
        watched = processes.WatchedProcess(
            identify(child), "it", lambda: (ends.append(watched.is_watched), ended.set())
        )
        assert not watched.has_ended()
        assert watched.watch()
        assert watched.watch()
        watched.signal(signal.SIGKILL)
        eventually(watched.has_ended)  # while the event loop gets no turn
        assert ends == []
        async with asyncio.timeout(60):
            await ended.wait()
        assert ends == [False]
        assert not watched.watch()
        watched.signal(signal.SIGKILL)
        watched.close()

    asyncio.run(story())


def test_of_a_process_that_is_watched_no_more_no_end_is_told(child):
    async def story():
        ends = []
        other = processes.WatchedProcess(identify(child), "other", lambda: ends.append("other"))
        watched = processes.WatchedProcess(identify(child), "it", lambda: ends.append("it"))
        assert other.watch()
        assert watched.watch()
        other.close()
        watched.signal(signal.SIGKILL)
        async with asyncio.timeout(60):
            while "it" not in ends:
                await asyncio.sleep(0.001)
        assert ends == ["it"]

    asyncio.run(story())


def test_who_has_taken_over_a_pid_is_neither_watched_nor_signalled(child):
    async def story():
        identity = identify(child)
        former = ProcessIdentity(pid=identity.pid, start_ticks=identity.start_ticks - 1, boot_id=identity.boot_id)
        watched = processes.WatchedProcess(former, "it", lambda: None)
        assert not watched.watch()
        watched.signal(signal.SIGKILL)

    asyncio.run(story())
    assert processes.is_alive(identify(child))
