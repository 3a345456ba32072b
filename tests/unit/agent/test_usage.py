"""Tests of `cortex.agent.usage` on processes of their own."""

import os
import subprocess
import sys

import msgspec
import psutil
import pytest

from cortex.agent.usage import UsageMeter, used_by
from cortex.processes import identify, own_identity

BUSY = "import sys\nx = b'x' * 64 * 2**20\nprint(flush=True)\nfor _ in range(10**6): pass\nprint(flush=True)\ninput()\n"


@pytest.fixture
def child():
    with subprocess.Popen([sys.executable, "-c", BUSY], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        yield process
        process.kill()


@pytest.fixture
def meter(child):
    child.stdout.readline()
    meter = UsageMeter(identify(child.pid))
    yield meter
    meter.close()


def test_a_meter_tells_time_and_memory_of_now_each_time_it_is_read(child, meter):
    before = meter.read()
    assert before.rss_bytes >= 64 * 2**20
    child.stdout.readline()
    after, times = meter.read(), psutil.Process(child.pid).cpu_times()
    assert before.cpu_s <= after.cpu_s == pytest.approx(times.user + times.system, abs=0.1)
    assert after.cpu_s > 0


def test_a_meter_of_a_process_that_was_collected_reads_nothing(child, meter):
    child.kill()
    child.wait()
    assert meter.read() is None


def test_a_process_that_took_over_the_pid_is_not_taken_for_the_one_that_was_meant():
    own = own_identity()
    meter = UsageMeter(msgspec.structs.replace(own, start_ticks=own.start_ticks - 1))
    assert meter.read() is None
    meter.close()


def test_a_closed_meter_leaves_no_descriptor_open():
    before = len(os.listdir("/proc/self/fd"))
    meter = UsageMeter(own_identity())
    assert len(os.listdir("/proc/self/fd")) == before + 1
    meter.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_a_collected_child_has_used_is_told_beside_what_the_process_itself_has():
    own = os.times()
    used = used_by(os.getpid())
    assert used.cpu_s == pytest.approx(own.user + own.system, abs=0.1)
    assert used.collected_cpu_s == pytest.approx(own.children_user + own.children_system, abs=0.1)


def test_one_that_is_not_collected_yet_has_used_what_it_has(child):
    child.stdout.readline()
    child.stdout.readline()
    before = used_by(child.pid)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert used_by(child.pid).cpu_s >= before.cpu_s > 0
    child.wait()
    assert used_by(child.pid) is None
