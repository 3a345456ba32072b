"""The same for programs with an event loop: every call of `Client`, awaited."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from os import PathLike
from typing import Any, Literal, TypeVar

from cortex.client.facade import CONCURRENCY, WAIT_S, Api, Apis, Client
from cortex.wire.agent import LogLine
from cortex.wire.operator import EventLine, HistoryLine

THREADS = 64
"""Calls that are under way at once; further ones wait their turn."""

T = TypeVar("T")
_END = object()


class AsyncClient:
    """
    As `Client`, whose arguments it takes; calls run in threads of its own, so that none holds the loop.

    A call that is cancelled goes on in its thread, and its answer is lost.

    >>> async with AsyncClient() as client:
    ...     await client.predict("sklearn", sample)
    """

    def __init__(
        self,
        env: str | None = None,
        *,
        home: str | PathLike[str] | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self._client = Client(env, home=home, environ=environ)
        self._pool = ThreadPoolExecutor(THREADS, "cortex-client")

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Wait for nothing more, and close what is kept."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._client.close()

    async def deploy(
        self,
        path: str | PathLike[str] = ".",
        *,
        wait: bool = True,
        timeout_s: float = WAIT_S,
        force: bool = False,
        prune: bool = False,
    ) -> Apis:
        return await self._run(
            partial(self._client.deploy, path, wait=wait, timeout_s=timeout_s, force=force, prune=prune)
        )

    async def rollback(
        self, api: str, version: str = "", *, wait: bool = True, timeout_s: float = WAIT_S, force: bool = False
    ) -> Api:
        return await self._run(
            partial(self._client.rollback, api, version, wait=wait, timeout_s=timeout_s, force=force)
        )

    async def delete(self, name: str) -> tuple[str, ...]:
        return await self._run(partial(self._client.delete, name))

    async def apis(self, deployment: str | None = None) -> Apis:
        return await self._run(partial(self._client.apis, deployment))

    async def api(self, name: str) -> Api:
        return await self._run(partial(self._client.api, name))

    async def history(self, api: str) -> tuple[HistoryLine, ...]:
        return await self._run(partial(self._client.history, api))

    def logs(self, api: str, **options: Any) -> AsyncIterator[LogLine]:
        return self._each(partial(self._client.logs, api, **options))

    def events(self, api: str | None = None, *, follow: bool = False, limit: int = 100) -> AsyncIterator[EventLine]:
        return self._each(partial(self._client.events, api, follow=follow, limit=limit))

    async def predict(self, api: str, sample: Any, *, content_type: str | None = None, debug: bool = False) -> Any:
        return await self._run(partial(self._client.predict, api, sample, content_type=content_type, debug=debug))

    async def predict_many(
        self,
        api: str,
        samples: Iterable[Any],
        *,
        concurrency: int = CONCURRENCY,
        content_type: str | None = None,
        progress: bool | None = None,
        errors: Literal["raise", "return"] = "raise",
    ) -> list[Any]:
        return await self._run(
            partial(
                self._client.predict_many,
                api,
                samples,
                concurrency=concurrency,
                content_type=content_type,
                progress=progress,
                errors=errors,
            )
        )

    async def _run(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, call)

    async def _each(self, begin: Callable[[], Iterator[T]]) -> AsyncIterator[T]:
        items = await self._run(begin)
        while True:
            item: Any = await self._run(partial(next, items, _END))
            if item is _END:
                return
            yield item
