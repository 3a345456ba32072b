"""
What goes wrong in a handler's background: exceptions of tasks and of an executor's calls that nobody looks at.

asyncio reports a task's only when the task is collected, which one that is kept never is; an executor reports none. So
whatever ends with an exception is remembered, and looked at again once the request that began it is over and some time
has passed: has nobody asked for the outcome by then, it is told. What is awaited has been asked for long before.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

from cortex.replica.observation.logs import REQUEST_ID
from cortex.replica.observation.tracebacks import format_user_traceback

GRACE_S = 5.0
"""After the end of work, before nobody is believed to look: some collect what they began in their own time."""
MOST_AT_ONCE = 20
"""Told in one look, which is a second's; of more there is only the number."""
MOST_REMEMBERED = 1000
"""Of more the oldest are given up: asyncio tells of theirs once they are collected, which what is kept never is."""

Tell = Callable[[str, str, str], None]
"""Takes level, text, and the request that it belongs to."""


_Work = asyncio.Future[Any] | Future[Any]
"""A task, or a call of an executor as the loop knows it or as the executor does."""


class _Ended(NamedTuple):
    work: _Work
    request: str
    due_s: float


class Background:
    """
    Watches what a handler begins and does not wait for.

    Args:
        is_in_hand: whether a request, by its id, is still being worked on.
        project_dir: tracebacks name files as they are called in there.
    """

    def __init__(
        self,
        *,
        tell: Tell,
        is_in_hand: Callable[[str], bool] = lambda _request: False,
        project_dir: str | None,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tell = tell
        self.is_in_hand = is_in_hand
        self._project_dir = project_dir
        self._clock_s = clock_s
        self._ended: deque[_Ended] = deque(maxlen=MOST_REMEMBERED)
        self._looking = threading.Lock()

    def watch_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        """
        From now on watch the tasks of a loop, unless users' code makes them in a way of its own, and what it has
        executors do: the loop asks them for the outcome, whether or not anybody asks the loop.
        """
        run = loop.run_in_executor

        def run_watched(executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
            future: asyncio.Future[Any] = run(executor, func, *args)
            future.add_done_callback(partial(self._work_ended, request=REQUEST_ID.get()))
            return future

        loop.set_task_factory(self._new_task)
        loop.run_in_executor = run_watched  # type: ignore[method-assign,assignment]

    def watch_executors(self) -> None:
        """From now on watch what is submitted to threads, in this process."""
        submit, result, exception = ThreadPoolExecutor.submit, Future.result, Future.exception

        def submit_watched(
            pool: ThreadPoolExecutor, fn: Callable[..., Any], /, *args: Any, **kwargs: Any
        ) -> Future[Any]:
            future = submit(pool, fn, *args, **kwargs)
            future.add_done_callback(partial(self._work_ended, request=REQUEST_ID.get()))
            return future

        def result_looked_at(future: Future[Any], timeout: float | None = None) -> Any:
            future._looked_at = True  # type: ignore[attr-defined]
            return result(future, timeout)

        def exception_looked_at(future: Future[Any], timeout: float | None = None) -> BaseException | None:
            future._looked_at = True  # type: ignore[attr-defined]
            return exception(future, timeout)

        ThreadPoolExecutor.submit = submit_watched  # type: ignore[method-assign,assignment]
        Future.result = result_looked_at  # type: ignore[method-assign,assignment]
        Future.exception = exception_looked_at  # type: ignore[method-assign,assignment]

    def look(self, *, last: bool = False) -> None:
        """
        Tell of those that nobody has asked for. From any thread.

        Args:
            last: there will be no other look.
        """
        with self._looking:
            now_s = self._clock_s()
            told = 0
            for _ in range(len(self._ended)):
                one = self._ended.popleft()
                if not _is_unseen(one.work):
                    continue
                if not last and (now_s < one.due_s or (one.request and self.is_in_hand(one.request))):
                    self._ended.append(one)
                    continue
                told += 1
                if told <= MOST_AT_ONCE:
                    self._tell("ERROR", self._text(one.work), one.request)
                if isinstance(one.work, asyncio.Future):
                    one.work.exception()  # asyncio does not tell of it once more when it is collected
            if told > MOST_AT_ONCE:
                self._tell(
                    "ERROR", f"{told - MOST_AT_ONCE} more exceptions in the background that nobody looked at", ""
                )

    def _new_task(self, loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(coro, loop=loop, **options)
        task.add_done_callback(partial(self._work_ended, request=REQUEST_ID.get()))
        return task

    def _work_ended(self, work: _Work, *, request: str) -> None:
        if _is_unseen(work):
            self._ended.append(_Ended(work, request, self._clock_s() + GRACE_S))

    def _text(self, work: _Work) -> str:
        error = work.exception()
        assert error is not None
        if isinstance(work, asyncio.Task):
            name = getattr(work.get_coro(), "__qualname__", "")
            what = f"task {work.get_name()}{f' ({name})' if name else ''}, which nobody has awaited"
        else:
            what = "call of an executor, whose outcome nobody has asked for"
        return f"exception in a {what}\n{format_user_traceback(error, self._project_dir)}"


def _is_unseen(work: _Work) -> bool:
    """Whether it ended with an exception that nobody has asked for."""
    if isinstance(work, asyncio.Future):
        return bool(getattr(work, "_log_traceback", False))  # cleared by `result`, `exception` and `await`
    failed = not work.cancelled() and getattr(work, "_exception", None) is not None
    return failed and not getattr(work, "_looked_at", False)
