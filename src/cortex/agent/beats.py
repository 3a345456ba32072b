"""Work that is done again and again, and goes on after whatever fails."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from cortex.backoff import Backoff
from cortex.clock import Clock, until_beat_s
from cortex.errors import CortexError

log = logging.getLogger(__name__)

RETRY_S = 0.2
LONGEST_RETRY_S = 5.0

Work = Callable[[], Awaitable[None]]


async def whenever(due: asyncio.Event, work: Work, clock: Clock) -> None:
    """Do the work whenever the event is set; again after a while if it fails."""
    backoff = Backoff(first_s=RETRY_S, longest_s=LONGEST_RETRY_S)
    while True:
        await due.wait()
        due.clear()
        try:
            await work()
            backoff.note_success()
        except asyncio.CancelledError:
            raise
        except Exception as error:
            tell(error)
            await asyncio.sleep(backoff.note_failure(clock.monotonic_s()))
            due.set()


async def every(interval_s: float, work: Work, clock: Clock) -> None:
    """Do the work in each interval, together with what else is due on this machine then."""
    while True:
        await asyncio.sleep(until_beat_s(clock.monotonic_s(), interval_s))
        try:
            await work()
        except asyncio.CancelledError:
            raise
        except Exception as error:
            tell(error)


def tell(error: Exception) -> None:
    """What we foresaw is told in a line; what we did not, with where it happened."""
    if isinstance(error, CortexError | OSError):
        log.warning("will be tried again: %s", error)
    else:
        log.error("a fault of ours, will be tried again", exc_info=error)
