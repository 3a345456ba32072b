"""Tests of `cortex.agent.families`: on a made-up /proc, and on processes of their own."""

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cortex.agent.families import Families, FamilyMeter
from cortex.processes import identify

HEAD = """\
import os, signal, sys, time

def burn(seconds):
    until_s = time.process_time() + seconds
    while time.process_time() < until_s:
        pass

def child(seconds):
    pid = os.fork()
    if pid == 0:
        burn(seconds)
        print("burnt", flush=True)
        signal.pause()
        os._exit(0)
    return pid

for line in sys.stdin:
    word, *numbers = line.split()
    match word:
        case "child":
            print(child(float(numbers[0])), flush=True)
        case "end":
            os.kill(int(numbers[0]), signal.SIGKILL)
            os.waitid(os.P_PID, int(numbers[0]), os.WEXITED | os.WNOWAIT)
            print("ended", flush=True)
        case "collect":
            os.waitpid(int(numbers[0]), 0)
            print("collected", flush=True)
        case "ignore":
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)
            print("ignored", flush=True)
"""
"""A process that does what its input says."""


class Head:
    """Such a process, with its meter."""

    def __init__(self, process):
        self.process = process
        self.meter = FamilyMeter(identify(process.pid))
        self.families = Families()

    def tell(self, words):
        self.process.stdin.write(f"{words}\n".encode())
        self.process.stdin.flush()
        return self.heard()

    def heard(self):
        return self.process.stdout.readline().decode().strip()

    def child(self, seconds):
        """A child that has used so much of the processor."""
        pid = self.tell(f"child {seconds}")
        assert self.heard() == "burnt"
        return int(pid)

    def read(self):
        return self.meter.read(self.families.look([self.process.pid])[self.process.pid])

    def gone(self, pid):
        """Wait until nobody has this pid."""
        until_s = time.monotonic() + 60
        while Path(f"/proc/{pid}").exists():
            assert time.monotonic() < until_s
            time.sleep(0.005)


@pytest.fixture
def head():
    command = [sys.executable, "-c", HEAD]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True) as process:
        head = Head(process)
        yield head
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        head.meter.close()


BURNT_S = 0.2
CLOSE = pytest.approx(BURNT_S, abs=0.1)


def test_what_a_child_has_used_is_counted_once_while_it_runs_when_it_has_ended_and_when_it_was_collected(head):
    alone_s = head.read()
    pid = head.child(BURNT_S)
    readings = [head.read()]
    head.tell(f"end {pid}")
    readings.append(head.read())
    head.tell(f"collect {pid}")
    readings.append(head.read())
    assert [reading - alone_s for reading in readings] == [CLOSE] * 3
    assert readings == sorted(readings)


def test_what_a_child_has_used_that_nobody_collects_stays_counted(head):
    alone_s = head.read()
    head.tell("ignore")
    pid = head.child(BURNT_S)
    before_s = head.read()
    os.kill(pid, 9)
    head.gone(pid)
    after_s = head.read()
    assert before_s - alone_s == CLOSE
    assert after_s >= before_s
    other = head.child(BURNT_S)
    assert head.read() - after_s == CLOSE
    os.kill(other, 9)


def test_one_that_ended_between_two_looks_is_counted_with_its_parent(head):
    """Its pid is still among those that are asked for."""
    alone_s = head.read()
    pid = head.child(BURNT_S)
    family = head.families.look([head.process.pid])[head.process.pid]
    assert family == [pid]
    head.tell(f"end {pid}")
    head.tell(f"collect {pid}")
    assert head.meter.read(family) - alone_s == CLOSE


def test_a_family_whose_head_has_ended_reads_nothing(head):
    head.process.kill()
    head.process.wait()
    assert head.meter.read([]) is None


# ---- who descends from whom ------------------------------------------------------------------------------------------


class Proc:
    """A made-up /proc."""

    def __init__(self, folder):
        self.folder = folder
        self.reads = 0
        (folder / "uptime").touch()

    def born(self, **parents):
        """By name `p<pid>`, the parent."""
        for name, parent in parents.items():
            pid = int(name.removeprefix("p"))
            (self.folder / str(pid)).mkdir(exist_ok=True)
            (self.folder / str(pid) / "stat").write_text(f"{pid} (a ) name) S {parent} {pid} 0\n")

    def gone(self, pid):
        (self.folder / str(pid) / "stat").unlink()
        (self.folder / str(pid)).rmdir()


@pytest.fixture
def proc(tmp_path):
    return Proc(tmp_path)


def test_descendants_are_found_by_head_and_parents_come_first(proc):
    proc.born(p1=0, p90=1, p20=90, p30=20, p10=30, p40=1, p50=40)
    assert Families(proc.folder).look([90, 40, 77]) == {90: [20, 30, 10], 40: [50], 77: []}


@pytest.mark.parametrize("order", [*itertools.permutations((20, 30, 10))])
def test_in_whatever_order_they_are_born_parents_come_first(proc, order):
    parents = {20: 90, 30: 20, 10: 30}
    families = Families(proc.folder)
    proc.born(p90=1)
    for pid in sorted(order, key=lambda pid: [90, 20, 30, 10].index(pid)):
        proc.born(**{f"p{pid}": parents[pid]})
        families.look([90])
    assert families.look([90]) == {90: [20, 30, 10]}


def test_who_has_lost_its_parent_belongs_to_the_family_still(proc):
    families = Families(proc.folder)
    proc.born(p1=0, p90=1, p20=90, p30=20)
    families.look([90])
    proc.gone(20)
    proc.born(p30=1)
    assert families.look([90]) == {90: [30]}


def test_a_head_that_is_known_late_has_the_descendants_that_were_seen_before(proc):
    families = Families(proc.folder)
    proc.born(p1=0, p90=1, p20=90)
    families.look([])
    assert families.look([90]) == {90: [20]}


def test_who_has_ended_is_of_no_family(proc):
    families = Families(proc.folder)
    proc.born(p90=1, p20=90)
    families.look([90])
    proc.gone(20)
    assert families.look([90]) == {90: []}


def test_who_ends_while_we_look_is_of_no_family(proc):
    proc.born(p90=1, p20=90)
    (proc.folder / "20" / "stat").unlink()
    assert Families(proc.folder).look([90]) == {90: []}
