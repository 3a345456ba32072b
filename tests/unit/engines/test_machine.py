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


def test_what_is_free_is_what_the_machine_says_where_nothing_else_bounds_it(host):
    root, proc = host
    (proc / "meminfo").write_text("MemTotal: 8388608 kB\nMemAvailable: 1048576 kB\n")
    assert machine.free_memory_bytes(root=root, proc=proc) == 2**30


@pytest.mark.parametrize(
    ("group", "files"),
    [
        ("0::/box", {"memory__max": "1000", "memory__current": "900", "memory__stat": "anon 5\ninactive_file 50\n"}),
        (
            "4:memory:/box",
            {
                "memory__limit_in_bytes": "1000",
                "memory__usage_in_bytes": "900",
                "memory__stat": "inactive_file 1\ntotal_inactive_file 50\n",
            },
        ),
    ],
)
def test_within_a_limit_it_is_what_is_left_of_that_and_what_files_take(host, group, files):
    root, proc = host
    (proc / "meminfo").write_text("MemTotal: 8388608 kB\nMemAvailable: 1048576 kB\n")
    (proc / "self/cgroup").write_text(f"{group}\n")
    put(root / ("memory/box" if group[0] == "4" else "box"), **files)
    assert machine.free_memory_bytes(root=root, proc=proc) == 150


def test_kills_for_memory_are_counted(host):
    _root, proc = host
    (proc / "vmstat").write_text("nr_free_pages 1\noom_kill 3\n")
    assert machine.oom_kills(proc) == 3


# ---- what is used ----------------------------------------------------------------------------------------------------

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def put_ticks(proc, *, user, idle=10**6, steal=0, foreign=10**7):
    """Of each processor of ours, and of one that is not."""
    ours = [f"cpu{number} {user} 0 0 {idle} 5 0 0 {steal} 0 0" for number in os.sched_getaffinity(0)]
    (proc / "stat").write_text(
        "\n".join([f"cpu {foreign} 0 0 0", *ours, f"cpu99999 {foreign} 0 0 0 0 0 0 0", "intr 5"])
    )


def test_without_limits_what_our_processors_did_is_what_was_used(host):
    root, proc = host
    put_ticks(proc, user=100)
    meter = machine.ProcessorMeter(root=root, proc=proc)
    before_s = meter.used_s()
    put_ticks(proc, user=100 + TICKS_PER_S, idle=10**7, steal=TICKS_PER_S)
    assert meter.used_s() - before_s == pytest.approx(2 * len(os.sched_getaffinity(0)))


@pytest.mark.parametrize(
    ("groups", "files", "folder"),
    [
        (
            "0::/pod/container\n",
            {"cpu__max": "50000 100000\n", "cpu__stat": "usage_usec 1500000\nuser_usec 1\n"},
            "pod",
        ),
        (
            "2:cpu,cpuacct:/box\n",
            {"cpu__cfs_quota_us": "25000", "cpu__cfs_period_us": "100000", "cpuacct__usage": "1500000000"},
            "cpu/box",
        ),
    ],
    ids=["version 2", "version 1"],
)
def test_in_a_group_that_may_use_less_what_the_group_did_is_what_was_used(host, groups, files, folder):
    root, proc = host
    put_ticks(proc, user=100)
    (proc / "self/cgroup").write_text(groups)
    put(root / folder, **files)
    assert machine.ProcessorMeter(root=root, proc=proc).used_s() == 1.5


def test_a_group_without_a_limit_of_its_own_shares_the_machine(host):
    root, proc = host
    put_ticks(proc, user=TICKS_PER_S)
    (proc / "self/cgroup").write_text("0::/pod\n")
    put(root / "pod", cpu__max="max 100000\n", cpu__stat="usage_usec 1500000\n")
    assert machine.ProcessorMeter(root=root, proc=proc).used_s() == len(os.sched_getaffinity(0))
