"""Processes that carry out tasks, and are replaced when one ends or does not come back."""

from __future__ import annotations

import contextlib
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

import msgspec

_WORKER: Final = Path(__file__).with_name("worker.py")

Task = Mapping[str, Any]


class Done(NamedTuple):
    """What became of a task."""

    task: Task
    result: Any = None
    lost: str = ""
    """Why there is no result: the process ended by a signal, or had to be ended."""
    crashed: bool = False
    """It ended by itself."""


class _Worker:
    """One process and the task that it has."""

    def __init__(self, command: Sequence[str]) -> None:
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
        )
        self.task: Task | None = None
        self.since_s = 0.0

    def give(self, task: Task, now_s: float) -> None:
        assert self.process.stdin is not None
        self.task, self.since_s = task, now_s
        with contextlib.suppress(BrokenPipeError):  # it ended: its stdout says so, too
            self.process.stdin.write(msgspec.json.encode(task) + b"\n")
            self.process.stdin.flush()

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


class Pool:
    """
    Args:
        size: how many processes.
        limit_s: how long a task may take.
        command: starts one.
        clock: seconds, from any time on.
    """

    def __init__(
        self,
        size: int,
        *,
        limit_s: float = 300.0,
        command: Sequence[str] = (sys.executable, str(_WORKER)),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limit_s = limit_s
        self._command = command
        self._clock = clock
        self._workers = [_Worker(command) for _ in range(size)]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for worker in self._workers:
            worker.close()

    def carry_out(self, tasks: Iterable[Task]) -> Iterator[Done]:
        """
        Yield what becomes of each task, in no order. Tasks are taken as there is somebody to do them.

        Raises:
            RuntimeError: a task failed by a mistake of ours.
        """
        waiting = iter(tasks)
        with selectors.DefaultSelector() as selector:
            for index in range(len(self._workers)):
                self._next(index, waiting, selector)
            while selector.get_map():
                for key, _ in selector.select(timeout=1.0):
                    index = key.data
                    done = self._outcome(index)
                    selector.unregister(key.fileobj)
                    if done.lost:
                        self._replace(index)
                    self._next(index, waiting, selector)
                    yield done
                for key in list(selector.get_map().values()):
                    worker = self._workers[key.data]
                    if self._clock() - worker.since_s > self._limit_s:
                        selector.unregister(key.fileobj)
                        task = worker.task or {}
                        self._replace(key.data)
                        self._next(key.data, waiting, selector)
                        yield Done(task, lost=f"no result within {self._limit_s:.0f} s")

    def _next(self, index: int, waiting: Iterator[Task], selector: selectors.BaseSelector) -> None:
        task = next(waiting, None)
        if task is not None:
            worker = self._workers[index]
            worker.give(task, self._clock())
            assert worker.process.stdout is not None
            selector.register(worker.process.stdout, selectors.EVENT_READ, index)

    def _outcome(self, index: int) -> Done:
        worker = self._workers[index]
        assert worker.process.stdout is not None
        task = worker.task or {}
        line = worker.process.stdout.readline()
        if not line.endswith(b"\n"):
            return Done(task, lost=f"its process ended with {worker.process.wait()}", crashed=True)
        answer = msgspec.json.decode(line)
        if "error" in answer:
            raise RuntimeError(f"{task}: {answer['error']}")
        return Done(task, answer["result"])

    def _replace(self, index: int) -> None:
        self._workers[index].close()
        self._workers[index] = _Worker(self._command)
