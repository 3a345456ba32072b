"""
What a process may really use of this machine: cgroup quota and CPU affinity, memory limit, GPUs.

Containers see the host's cores in /proc/cpuinfo; sizing by that is how thread pools throttle their neighbours.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from cortex.engines import gpus
from cortex.ids import NodeId
from cortex.wire.reports import Node

CGROUP_ROOT = Path("/sys/fs/cgroup")
_UNLIMITED_BYTES = 2**60
"""cgroup v1 writes a number near 2**63 for "no limit"."""


def node_report(
    node: NodeId, *, environ: Mapping[str, str], root: Path = CGROUP_ROOT, proc: Path = Path("/proc")
) -> Node:
    """
    Capacity of this machine for us.

    Args:
        environ: our environment; may say which GPUs are ours.
    """
    devices = gpus.usable_devices(environ, proc=proc)
    return Node(
        node=node,
        cpu_millis=usable_cpu_millis(root=root, proc=proc),
        mem_bytes=usable_memory_bytes(root=root, proc=proc),
        gpus=len(devices),
        devices=devices,
    )


def usable_cpu_millis(*, root: Path = CGROUP_ROOT, proc: Path = Path("/proc")) -> int:
    """
    Thousandths of a core: the least of affinity and of each cgroup quota from ours up to the root.

    Source: kernel docs, admin-guide/cgroup-v2 (cpu.max) and scheduler/sched-bwc (cpu.cfs_quota_us).
    """
    millis = len(os.sched_getaffinity(0)) * 1000
    for folder in _cgroup_folders(root, proc, controller="cpu"):
        quota = _quota_millis(folder)
        if quota is not None:
            millis = min(millis, max(1, quota))
    return millis


def usable_memory_bytes(*, root: Path = CGROUP_ROOT, proc: Path = Path("/proc")) -> int:
    """
    The least of physical memory and of each cgroup limit from ours up to the root.

    Source: kernel docs, cgroup-v2 (memory.max) and cgroup-v1/memory (memory.limit_in_bytes).
    """
    memory = _meminfo_bytes(proc, "MemTotal")
    for folder in _cgroup_folders(root, proc, controller="memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            limit = _number(folder / name)
            if limit is not None and 0 < limit < _UNLIMITED_BYTES:
                memory = min(memory, limit)
    return memory


def free_memory_bytes(*, root: Path = CGROUP_ROOT, proc: Path = Path("/proc")) -> int:
    """
    What could still be had: of the machine, or within a cgroup's limit, whichever is less. Cached files count as free.

    Source: proc(5), meminfo `MemAvailable`; kernel docs, cgroup-v2 (memory.current, memory.stat inactive_file) and
    cgroup-v1/memory (memory.usage_in_bytes, total_inactive_file).

    Raises:
        OSError: the kernel does not say.
    """
    free = _meminfo_bytes(proc, "MemAvailable")
    for folder in _cgroup_folders(root, proc, controller="memory"):
        limit = _number(folder / "memory.max") or _number(folder / "memory.limit_in_bytes")
        used = _number(folder / "memory.current") or _number(folder / "memory.usage_in_bytes")
        if limit is not None and used is not None and 0 < limit < _UNLIMITED_BYTES:
            free = min(free, limit - used + _cached_bytes(folder))
    return free


def _cached_bytes(folder: Path) -> int:
    """Files that a cgroup has in memory and has not used lately."""
    try:
        fields = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return int(fields.get("total_inactive_file") or fields.get("inactive_file") or 0)
    except (OSError, ValueError):
        return 0


class ProcessorMeter:
    """
    Tells what anything has used of the processors that `usable_cpu_millis` counts: where a cgroup is allowed less than
    the machine has, what that cgroup has used, else what those of the machine have, that are ours by affinity.
    """

    def __init__(self, *, root: Path = CGROUP_ROOT, proc: Path = Path("/proc")) -> None:
        self._stat = proc / "stat"
        self._processors = {f"cpu{number}".encode() for number in os.sched_getaffinity(0)}
        millis = len(self._processors) * 1000
        self._cgroup: Path | None = None
        for folder in _cgroup_folders(root, proc, controller="cpu"):
            quota = _quota_millis(folder)
            if quota is not None and quota < millis and _cgroup_use_s(folder) is not None:
                millis, self._cgroup = quota, folder

    def used_s(self) -> float:
        """
        Seconds so far. Only differences say anything.

        Source: proc(5), /proc/stat: user, nice, system, idle, iowait, irq, softirq and steal, in ticks. What a
        hypervisor gave to somebody else is not there for us either.

        Raises:
            OSError: the kernel does not say.
        """
        if self._cgroup is not None:
            used_s = _cgroup_use_s(self._cgroup)
            if used_s is None:
                raise FileNotFoundError(f"{self._cgroup} does not say what it has used")
            return used_s
        ticks = 0
        for line in self._stat.read_bytes().splitlines():
            name, *counts = line.split()
            if name in self._processors:
                user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, counts[:8])
                ticks += user + nice + system + irq + softirq + steal
        return ticks / os.sysconf("SC_CLK_TCK")


def _cgroup_use_s(folder: Path) -> float | None:
    """Source: kernel docs, cgroup-v2 (cpu.stat, usage_usec) and cgroup-v1/cpuacct (cpuacct.usage, nanoseconds)."""
    try:
        for line in (folder / "cpu.stat").read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == "usage_usec":
                return int(value) / 1e6
    except (OSError, ValueError):
        pass
    nanoseconds = _number(folder / "cpuacct.usage")
    return None if nanoseconds is None else nanoseconds / 1e9


def oom_kills(proc: Path = Path("/proc")) -> int:
    """How many processes the kernel has killed for memory since boot. Source: proc(5), vmstat `oom_kill`."""
    try:
        for line in (proc / "vmstat").read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == "oom_kill":
                return int(value)
    except (OSError, ValueError):
        pass
    return 0


def _quota_millis(folder: Path) -> int | None:
    try:
        quota, period = (folder / "cpu.max").read_text().split()[:2]
        if quota != "max":
            return math.floor(int(quota) * 1000 / int(period))
    except (OSError, ValueError, ZeroDivisionError):
        pass
    quota_us, period_us = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
    if quota_us is not None and quota_us > 0 and period_us:
        return math.floor(quota_us * 1000 / period_us)
    return None


def _cgroup_folders(root: Path, proc: Path, *, controller: str) -> Iterator[Path]:
    """Our cgroup's folder and each above it, for v2 (line `0::/path`) and v1 (line `n:controllers:/path`)."""
    try:
        lines = (proc / "self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            mount = root
        elif controller in controllers.split(","):
            mount = root / controller
        else:
            continue
        folder = mount / path.lstrip("/")
        while True:
            yield folder
            if folder == mount or mount not in folder.parents:
                break
            folder = folder.parent


def _meminfo_bytes(proc: Path, name: str) -> int:
    for line in (proc / "meminfo").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"no {name} in /proc/meminfo")


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None
