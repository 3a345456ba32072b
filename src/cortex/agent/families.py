"""The processes that come of a replica's: who they are, and what processor time all of them together have used."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from cortex.agent.usage import UsageMeter, used_by
from cortex.processes import ProcessIdentity

_TRIES = 3


class Families:
    """
    Knows who descends from whom, as it was when a process was first seen: who has lost its parent since, and has
    another one, still comes of it. So each process is looked at once, which costs little.

    Args:
        proc: where the system shows its processes.
    """

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._lines: dict[int, tuple[int, ...]] = {}
        """By pid, the pids of its ancestors, eldest first."""

    def look(self, heads: Collection[int]) -> Mapping[int, Sequence[int]]:
        """
        The descendants of some processes that are there now, by head; parents before their children.

        Args:
            heads: none descends from another.
        """
        pids = {int(name) for name in os.listdir(self._proc) if name.isdecimal()}
        self._lines = {pid: line for pid, line in self._lines.items() if pid in pids}
        parents = {pid: _parent(self._proc / str(pid)) for pid in pids - self._lines.keys()}
        while parents:
            self._line_of(next(iter(parents)), parents)
        found: dict[int, list[int]] = {head: [] for head in heads}
        for pid, line in self._lines.items():
            for ancestor in line:
                if ancestor in found:
                    found[ancestor].append(pid)
        return found

    def _line_of(self, pid: int, parents: dict[int, int | None]) -> tuple[int, ...]:
        """
        Args:
            parents: of those whose lines are not known yet; who is taken up leaves.
        """
        if pid in self._lines:
            return self._lines[pid]
        parent = parents.pop(pid, None)
        if parent is None:
            return ()
        line = self._lines[pid] = (*self._line_of(parent, parents), parent)
        return line


def _parent(entry: Path) -> int | None:
    """None: it has ended. Source: proc(5): field 4 of /proc/pid/stat is ppid."""
    try:
        return int((entry / "stat").read_bytes().rsplit(b")", 1)[1].split()[1])
    except (OSError, IndexError):
        return None


class FamilyMeter:
    """
    What a process and all that come of it have used of the processor. It never falls: what one of them has used, its
    parent has as soon as it is collected, and what goes to nobody stays counted all the same.

    Raises:
        OSError: there is no such process, or no descriptor left.
    """

    def __init__(self, identity: ProcessIdentity) -> None:
        self._own = UsageMeter(identity)
        self._seen_s = 0.0
        self._lost_s = 0.0
        """What none of those has who are there."""

    def read(self, descendants: Sequence[int]) -> float | None:
        """
        Seconds since its start; None when it has ended.

        Args:
            descendants: parents before their children.
        """
        for _ in range(_TRIES):
            own = self._own.read()
            if own is None:
                return None
            # Parents first: whoever is still there after its parent was read is not in what that has collected.
            others = [used_by(pid) for pid in descendants]
            there = [(pid, used) for pid, used in zip(descendants, others, strict=True) if used is not None]
            if len(there) == len(others):
                total_s = sum(used.cpu_s + used.collected_cpu_s for used in (own, *(used for _, used in there)))
                self._lost_s += max(0.0, self._seen_s - total_s)
                self._seen_s = total_s
                break
            descendants = [pid for pid, _ in there]
        return self._seen_s + self._lost_s

    def close(self) -> None:
        self._own.close()
