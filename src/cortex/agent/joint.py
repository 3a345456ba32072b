"""Work that several wait for at once is done once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

from cortex.agent.installer import Tell

T = TypeVar("T")


class JointWork(Generic[T]):
    """Whoever asks for what is under way already waits along, and is told what all are told."""

    def __init__(self) -> None:
        self._works: dict[str, asyncio.Task[T]] = {}
        self._listeners: dict[asyncio.Task[T], list[Tell]] = {}

    def __contains__(self, key: str) -> bool:
        """Whether it is under way."""
        return key in self._works

    async def of(self, key: str, work: Callable[[Tell], Coroutine[Any, Any, T]], tell: Tell) -> T:
        """
        What the work of this key comes to, which is begun if it is not under way. Called off once nobody waits for it.

        Raises:
            Whatever the work raises.
        """
        task = self._works.get(key)
        if task is None or task.cancelling():
            task = self._begun(key, work)
        listeners = self._listeners[task]
        listeners.append(tell)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if len(listeners) == 1:
                task.cancel()
            raise
        finally:
            listeners.remove(tell)

    def _begun(self, key: str, work: Callable[[Tell], Coroutine[Any, Any, T]]) -> asyncio.Task[T]:
        listeners: list[Tell] = []

        def tell(doing: str) -> None:
            for listener in tuple(listeners):
                listener(doing)

        task = self._works[key] = asyncio.ensure_future(work(tell))
        self._listeners[task] = listeners
        task.add_done_callback(lambda done: self._ended(key, done))
        return task

    def _ended(self, key: str, task: asyncio.Task[T]) -> None:
        if self._works.get(key) is task:
            del self._works[key]
        del self._listeners[task]
        if not task.cancelled():
            task.exception()  # whoever waits has it; nobody may be left

    async def close(self) -> None:
        """Call off everything that is under way."""
        works = tuple(self._listeners)
        for work in works:
            work.cancel()
        await asyncio.gather(*works, return_exceptions=True)
