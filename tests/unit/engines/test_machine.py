"""Tests of `cortex.engines.machine`."""

import os

import pytest

from cortex.engines import machine

CORES = len(os.sched_getaffinity(0)) * 1000


@pytest.fixture
def host(tmp_path):
    """A /proc with 8 GiB of memory and no cgroup."""
    proc = tmp_path / "proc"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal:        8388608 kB\nMemFree: 1 kB\n")
    (proc / "self/cgroup").write_text("")
    root = tmp_path / "cgroup"
    root.mkdir()
    return root, proc


def put(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content)


def test_without_limits_the_whole_machine_may_be_used(host):
    root, proc = host
    assert machine.usable_cpu_millis(root=root, proc=proc) == CORES
    assert machine.usable_memory_bytes(root=root, proc=proc) == 8 * 2**30


def test_a_quota_of_version_2_bounds_cpu_and_memory(host):
    root, proc = host
    (proc / "self/cgroup").write_text("0::/pod/container\n")
    put(root / "pod/container", cpu__max="50000 100000\n", memory__max="1073741824\n")
    assert machine.usable_cpu_millis(root=root, proc=proc) == 500
    assert machine.usable_memory_bytes(root=root, proc=proc) == 2**30


def test_the_tightest_group_above_counts(host):
    root, proc = host
    (proc / "self/cgroup").write_text("0::/pod/container\n")
    put(root / "pod", cpu__max="20000 100000\n")
    put(root / "pod/container", cpu__max="max 100000\n")
    assert machine.usable_cpu_millis(root=root, proc=proc) == 200


def test_a_quota_of_version_1_bounds_cpu_and_memory(host):
    root, proc = host
    (proc / "self/cgroup").write_text("4:memory:/box\n2:cpu,cpuacct:/box\n")
    put(root / "cpu/box", cpu__cfs_quota_us="25000", cpu__cfs_period_us="100000")
    put(root / "memory/box", memory__limit_in_bytes="536870912")
    assert machine.usable_cpu_millis(root=root, proc=proc) == 250
    assert machine.usable_memory_bytes(root=root, proc=proc) == 2**29


def test_version_1_without_a_limit_is_no_limit(host):
    root, proc = host
    (proc / "self/cgroup").write_text("4:memory:/\n1:cpu:/\n")
    put(root / "cpu", cpu__cfs_quota_us="-1", cpu__cfs_period_us="100000")
    put(root / "memory", memory__limit_in_bytes="9223372036854771712")
    assert machine.usable_cpu_millis(root=root, proc=proc) == CORES
    assert machine.usable_memory_bytes(root=root, proc=proc) == 8 * 2**30


def test_kills_for_memory_are_counted(host):
    _root, proc = host
    (proc / "vmstat").write_text("nr_free_pages 1\noom_kill 3\n")
    assert machine.oom_kills(proc) == 3
