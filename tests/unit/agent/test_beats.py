"""Work that goes on after whatever fails."""

from __future__ import annotations

import asyncio

from cortex.agent import beats
from cortex.clock import SystemClock


def test_work_that_fails_is_done_again_without_another_reason() -> None:
    async def scenario() -> int:
        due, done = asyncio.Event(), asyncio.Event()
        tries = 0

        async def work() -> None:
            nonlocal tries
            tries += 1
            if tries < 3:
                raise OSError("not yet")
            done.set()

        task = asyncio.ensure_future(beats.whenever(due, work, SystemClock()))
        due.set()
        async with asyncio.timeout(30.0):
            await done.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return tries

    assert asyncio.run(scenario()) == 3
