"""What replicas and processes of ours write is kept within bounds."""

from __future__ import annotations

import asyncio
import logging
import os

from cortex.agent import logs
from cortex.agent.replicas import Replicas
from cortex.clock import Clock
from cortex.settings import NodeLayout, Settings

log = logging.getLogger(__name__)


class Cleaning:
    """Removes and cuts log files."""

    def __init__(self, *, settings: Settings, layout: NodeLayout, clock: Clock, replicas: Replicas) -> None:
        self._settings = settings
        self._layout = layout
        self._clock = clock
        self._replicas = replicas

    async def clean(self) -> None:
        removed = await asyncio.to_thread(
            logs.clean_up,
            self._layout.replica_logs,
            frozenset(self._replicas.lives),
            keep_bytes=self._settings.log_bytes,
            keep_s=self._settings.log_age_s,
            now_wall_s=self._clock.wall_s(),
        )
        if removed:
            log.info("removed %d old log files of replicas that are gone", len(removed))
        await asyncio.to_thread(logs.cut_process_logs, self._layout.logs)

    async def bound_raw_output(self) -> None:
        await _cut(logs.oversized(self._replicas.raw_output()))

    async def bound_left_output(self) -> None:
        files = await asyncio.to_thread(logs.raw_output, self._layout.replica_logs)
        await _cut(logs.oversized(files))


async def _cut(files: list[str]) -> None:
    for file in await asyncio.to_thread(logs.cut_raw_output, files) if files else ():
        log.warning("%s: more is written than can be kept; only the end stays", os.path.basename(file))
