"""Children of ours: those that we started, and orphans, which become ours as we are a subreaper."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import psutil


class Children:
    """
    Tells the known from the others.

    Args:
        known: pids of those that somebody here waits for.
        ingress: folder of the ingress: one that does not answer yet is known by its files.
    """

    def __init__(self, *, known: Callable[[], set[int]], ingress: Path) -> None:
        self._known = known
        self._ingress = ingress

    def is_own(self, pid: int, command: str) -> bool:
        """Whether a child of ours is one that we started."""
        return pid in self._known() or str(self._ingress) in command

    def reap_strangers(self) -> None:
        """Orphans that became our children and that nobody waits for would stay zombies."""
        if _ended_child() is None:
            return  # as nearly always
        known = self._known()
        while (pid := _ended_child()) is not None and pid not in known:
            os.waitpid(pid, os.WNOHANG)
        # Whoever knows the one that is left collects it soon; the rest comes after that.

    def end(self, title: str = "") -> None:
        """Kill children of ours whose title begins so; never the control plane, which lives its own life."""
        for child in psutil.Process().children():
            with contextlib.suppress(psutil.Error):
                words = child.cmdline()
                of_the_control_plane = "cortex.controlplane" in words or " ".join(words).startswith("cortex-controlp")
                if words and " ".join(words).startswith(title) and not of_the_control_plane:
                    child.kill()


def _ended_child() -> int | None:
    """A child of ours that has ended and was not collected yet; it stays that."""
    try:
        found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None
    return None if found is None else found.si_pid
