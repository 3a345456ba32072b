"""
What inspections have loaded, kept for a moment: the first replica of the same build goes on with it.

A deploy looks at a model and a handler before it is accepted, and a moment later a replica would load both once more,
which takes as long again. So the child that looked stays as it is, and becomes that replica (see `replica.inspection`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from cortex.agent.launchers import Launcher
from cortex.ids import ApiKey
from cortex.wire.batching import BatchingOrder
from cortex.wire.launch import ReplicaSpec

KEPT_S = 20.0
"""From the end of an inspection to the order to start: a deploy may wait for the inspections of its other apis."""


class Kept(NamedTuple):
    """
    A child that has loaded what a replica needs.

    Attributes:
        mark: the inspection's.
        spec: what it was loaded by. Its scratch folder is this one's to remove.
        secrets: that it got.
    """

    mark: str
    launcher: Launcher
    spec: ReplicaSpec
    secrets: Mapping[str, str]

    def suits(self, launcher: Launcher, spec: ReplicaSpec, secrets: Mapping[str, str]) -> bool:
        """Whether a replica that loads by this spec would be in the same state."""
        return self.launcher is launcher and self.secrets == secrets and _loads(self.spec) == _loads(spec)


def _loads(spec: ReplicaSpec) -> ReplicaSpec:
    """Without what has no effect before a model is loaded and a handler is imported."""
    return msgspec.structs.replace(
        spec,
        attempt=0,
        tracker=None,
        batches=BatchingOrder(),
        concurrency=None,
        sample=None,
        sample_path=None,
        log_path="",
        stats_path="",
        scratch="",
        start_timeout_s=0.0,
    )


class KeptInspections:
    """Those of a node. Each is taken by a replica, or ended when its time is over."""

    def __init__(self, kept_s: float = KEPT_S) -> None:
        self._kept_s = kept_s
        self._kept: dict[str, tuple[Kept, asyncio.TimerHandle]] = {}
        """By mark, with what ends it."""

    def add(self, kept: Kept) -> None:
        timer = asyncio.get_running_loop().call_later(self._kept_s, self._end, kept.mark)
        self._kept[kept.mark] = kept, timer

    def take(self, launcher: Launcher, spec: ReplicaSpec, secrets: Mapping[str, str]) -> str:
        """
        The mark of one that a replica can go on with; it now has the replica's scratch folder. Empty if there is none.

        Whoever takes it sees to its end: a launcher that forks by it, or is told that nobody waits for it.
        """
        for kept, timer in self._kept.values():
            if kept.suits(launcher, spec, secrets):
                timer.cancel()
                del self._kept[kept.mark]
                shutil.rmtree(spec.scratch, ignore_errors=True)
                with contextlib.suppress(OSError):  # it made none
                    os.rename(kept.spec.scratch, spec.scratch)
                return kept.mark
        return ""

    def end(self, api: ApiKey | None = None) -> None:
        """End those of an api, or all: they hold what another inspection of it may need."""
        for mark, (kept, _) in tuple(self._kept.items()):
            if api is None or kept.spec.api == api:
                self._end(mark)

    def _end(self, mark: str) -> None:
        kept, timer = self._kept.pop(mark)
        timer.cancel()
        kept.launcher.call_off(mark)
        shutil.rmtree(kept.spec.scratch, ignore_errors=True)
