"""
Memory of an idle environment with one ONNX api, and CPU of control plane and agent with a hundred.

Prints proportional set sizes (memory shared by n processes counts 1/n for each). `python bench/footprint.py`.
"""

from __future__ import annotations

import os
import shutil
import time
import urllib.request
from collections import defaultdict
from pathlib import Path

from world import IRIS_MODEL, World, a_world

IDLE_S = 20.0
APIS = 100


def main() -> None:
    with a_world("foot") as world:
        shutil.copy(IRIS_MODEL, world.project / "model.onnx")
        _write(world, 1)
        world.must("deploy")
        time.sleep(5)
        _print_memory(world)
        _write(world, APIS)
        begun_s = time.monotonic()
        world.must("deploy", timeout_s=300)
        print(f"\n{APIS} apis deployed in {time.monotonic() - begun_s:.1f} s; {_answering(world)} of them answer")
        time.sleep(5)
        _print_idle_cpu(world)


def _write(world: World, count: int) -> None:
    apis = "".join(f"- {{kind: api, name: a{n}, model: model.onnx, compute: {{cpu: 5m}}}}\n" for n in range(count))
    (world.project / "cortex.yaml").write_text("- {kind: deployment, name: foot}\n" + apis)


def _answering(world: World) -> int:
    """How many apis answer a sample."""
    answers = 0
    for n in range(APIS):
        request = urllib.request.Request(
            f"http://127.0.0.1:{world.port}/foot/a{n}", b"[5.2, 3.6, 1.4, 0.3]", {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=10) as response:
            answers += b"iris-setosa" in response.read()
    return answers


def _print_memory(world: World) -> None:
    by_kind: dict[str, int] = defaultdict(int)
    for pid, title in world.processes().items():
        by_kind[_kind(title)] += _pss_kib(pid)
    print("proportional set size, idle, one ONNX api")
    for kind, kib in sorted(by_kind.items()):
        print(f"  {kind:<14} {kib / 1024:6.1f} MB")
    print(f"  {'together':<14} {sum(by_kind.values()) / 1024:6.1f} MB")


def _print_idle_cpu(world: World) -> None:
    watched = {
        pid: _kind(title) for pid, title in world.processes().items() if _kind(title) in ("controlplane", "agent")
    }
    before = {pid: _cpu_s(pid) for pid in watched}
    time.sleep(IDLE_S)
    total = 0.0
    print(f"\nCPU with {APIS} idle apis, over {IDLE_S:.0f} s")
    for pid, kind in watched.items():
        share = (_cpu_s(pid) - before[pid]) / IDLE_S
        total += share
        print(f"  {kind:<14} {share:6.2%} of a core")
    print(f"  {'together':<14} {total:6.2%} of a core")


def _kind(title: str) -> str:
    first = title.split(" ", 1)[0]
    return first.removeprefix("cortex-") if first.startswith("cortex-") else "ingress"


def _pss_kib(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    return 0


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
