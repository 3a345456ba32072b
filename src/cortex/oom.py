"""
Who goes first when memory runs out: users' code, then what begins it, the control plane last.

The kernel kills the process with the highest sum of what it holds and `oom_score_adj`, both in thousandths of memory. A
process may always raise its own; lower than it began only with CAP_SYS_RESOURCE. So the control plane keeps what it was
given by a shell, service or container, and everybody else stands above that, by steps from whoever begins them: an
administrator who moves the first moves all.
"""

from __future__ import annotations

from contextlib import suppress
from enum import IntEnum
from pathlib import Path

HIGHEST = 1000
"""Source: proc(5), oom_score_adj."""


class Rung(IntEnum):
    """Where a kind of process stands, in thousandths of memory above the control plane."""

    CONTROL_PLANE = 0
    NODE = 100
    """Agent, keeper and ingress; what fetches models."""
    LAUNCHER = 300
    """It holds what its replicas share with it, so that its end alone frees little."""
    USERS = 800
    """Replicas, inspections and installers, and whatever these begin: a control plane would have to hold four fifths of
    the memory more than a replica to be killed before it."""


def step_up(pid: int, *, by: Rung, to: Rung) -> None:
    """
    Have a process that has just been begun stand where it should. Best effort: some containers refuse any change.

    Args:
        by: where who began it stands; it has inherited that.
        to: where it is to stand.
    """
    file = Path(f"/proc/{pid}/oom_score_adj")
    with suppress(OSError, ValueError):
        file.write_text(str(min(HIGHEST, int(file.read_text()) + to - by)))
