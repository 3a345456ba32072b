"""Tests of `cortex.agent.attending` on processes of their own."""

import asyncio
import signal
import subprocess
import sys

import msgspec
import pytest

from cortex import processes
from cortex.agent import attending
from cortex.agent.attending import Attended

TITLED = "import setproctitle, sys\nsetproctitle.setproctitle(sys.argv[1])\nprint(flush=True)\ninput()\n"


@pytest.fixture
def child():
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        process.kill()


def titled(title: str, **options) -> subprocess.Popen:
    command = [sys.executable, "-c", TITLED, title]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, **options)
    process.stdout.readline()
    return process


def test_the_end_of_a_process_that_is_watched_is_noticed_once(child):
    async def story():
        gone = asyncio.Event()
        process = Attended("r", gone.set)
        identity = processes.identify(child.pid)
        assert process.watch(identity)
        assert process.watch(identity)
        process.signal(signal.SIGKILL)
        async with asyncio.timeout(60):
            await gone.wait()
        process.signal(signal.SIGKILL)
        process.let_go()

    asyncio.run(story())
    assert attending.reap(child.pid).signal == signal.SIGKILL


def test_a_process_that_took_over_the_pid_is_neither_watched_nor_signalled(child):
    async def story():
        process = Attended("r", lambda: None)
        meant = msgspec.structs.replace(processes.identify(child.pid), start_ticks=1)
        assert not process.watch(meant)
        process.signal(signal.SIGKILL)
        process.let_go()

    asyncio.run(story())
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(0.05)


def test_a_process_that_was_gone_when_its_launcher_told_of_it_is_no_other_one():
    with subprocess.Popen(["true"]) as process:
        process.wait()
    assert attending.newborn(process.pid).start_ticks == -1


def test_replicas_of_this_home_that_nobody_knows_are_found_and_what_they_forked_is_not(tmp_path):
    home = tmp_path / "h"
    stray, known = (titled(f"cortex-replica {home} a v {name}", start_new_session=True) for name in ("s", "k"))
    others = [
        titled(f"cortex-replica {home} a v f"),
        titled(f"cortex-replica {tmp_path} a v o", start_new_session=True),
    ]
    try:
        found = attending.others(home, {known.pid})
        assert found == [(processes.identify(stray.pid), "s")]
    finally:
        for process in (stray, known, *others):
            with process:
                process.kill()
