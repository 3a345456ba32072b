"""What is told of a handler's work that ends with an exception in the background."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
import uvloop

from cortex.replica.handler.background import GRACE_S, MOST_AT_ONCE, Background
from cortex.replica.observation.logs import REQUEST_ID
from cortex.testing.clock import FakeClock


class World:
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.clock = FakeClock()
        self.told: list[tuple[str, str, str]] = []
        self.in_hand: set[str] = set()
        self.background = Background(
            tell=lambda *told: self.told.append(told),
            is_in_hand=self.in_hand.__contains__,
            project_dir=None,
            clock_s=self.clock.monotonic_s,
        )
        self.background.watch_loop(loop)

    def later(self) -> list[tuple[str, str, str]]:
        """What has been told once a task's time to be looked at is over."""
        self.clock.advance(GRACE_S)
        self.background.look()
        return self.told


@pytest.fixture(params=["asyncio", "uvloop"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    loop = asyncio.new_event_loop() if request.param == "asyncio" else uvloop.new_event_loop()
    yield World(loop)
    loop.close()


@pytest.fixture
def executors(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    for owner, name in ((ThreadPoolExecutor, "submit"), (Future, "result"), (Future, "exception")):
        monkeypatch.setattr(owner, name, getattr(owner, name))  # and back afterwards
    world.background.watch_executors()
    return world


async def fails() -> None:
    raise ValueError("nobody looks")


async def settled(*tasks: asyncio.Task[Any]) -> None:
    while not all(task.done() for task in tasks):
        await asyncio.sleep(0)
    await asyncio.sleep(0)


def test_a_task_that_is_kept_and_never_awaited_is_told_with_its_request_once(world: World) -> None:
    async def begin() -> asyncio.Task[None]:
        REQUEST_ID.set("r1")
        task = asyncio.create_task(fails(), name="refresh")
        await settled(task)
        return task

    kept = world.loop.run_until_complete(begin())
    world.background.look()
    assert world.told == [], "somebody may still look"
    ((level, text, request),) = world.later()
    assert (level, request) == ("ERROR", "r1")
    assert text.startswith("exception in a task refresh (fails), which nobody has awaited\nTraceback")
    assert text.endswith("ValueError: nobody looks")
    assert len(world.later()) == 1
    assert kept.done()


@pytest.mark.parametrize("how", ["await", "gather", "result", "exception", "callback", "group"])
def test_what_somebody_looks_at_is_not_told(world: World, how: str) -> None:
    async def begin() -> None:
        if how == "group":
            with pytest.raises(BaseExceptionGroup):
                async with asyncio.TaskGroup() as group:
                    group.create_task(fails())
            return
        task = asyncio.create_task(fails())
        if how == "callback":
            task.add_done_callback(lambda done: done.exception())
        if how == "await":
            with pytest.raises(ValueError, match="nobody"):
                await task
        elif how == "gather":
            await asyncio.gather(task, asyncio.create_task(fails()), return_exceptions=True)
        else:
            await settled(task)
            if how == "result":
                with pytest.raises(ValueError, match="nobody"):
                    task.result()
            elif how == "exception":
                assert task.exception() is not None

    world.loop.run_until_complete(begin())
    assert world.later() == []


def test_a_task_is_not_told_while_the_request_that_began_it_may_look_at_it(world: World) -> None:
    async def begin() -> asyncio.Task[None]:
        REQUEST_ID.set("r1")
        task = asyncio.create_task(fails())
        await settled(task)
        return task

    task = world.loop.run_until_complete(begin())
    world.in_hand.add("r1")
    assert world.later() == []
    with pytest.raises(ValueError, match="nobody"):
        task.result()
    world.in_hand.clear()
    assert world.later() == []


def test_a_task_that_is_dropped_is_told_once_and_in_our_words(world: World, caplog: pytest.LogCaptureFixture) -> None:
    async def begin() -> None:
        await settled(asyncio.create_task(fails()))

    world.loop.run_until_complete(begin())
    gc.collect()
    assert len(world.later()) == 1
    gc.collect()
    assert caplog.records == []


def test_tasks_that_are_cancelled_or_fine_are_not_told(world: World) -> None:
    async def begin() -> None:
        cancelled, fine = asyncio.create_task(asyncio.sleep(600)), asyncio.create_task(asyncio.sleep(0))
        cancelled.cancel()
        await settled(cancelled, fine)

    world.loop.run_until_complete(begin())
    assert world.later() == []


def test_the_last_look_waits_for_nobody(world: World) -> None:
    world.in_hand.add("")
    world.loop.run_until_complete(settled(world.loop.create_task(fails())))
    world.background.look(last=True)
    assert len(world.told) == 1


def test_a_flood_is_told_in_part_with_its_size(world: World) -> None:
    async def begin() -> None:
        await settled(*(asyncio.create_task(fails()) for _ in range(MOST_AT_ONCE + 5)))

    world.loop.run_until_complete(begin())
    *first, (_, rest, _) = world.later()
    assert (len(first), rest) == (MOST_AT_ONCE, "5 more exceptions in the background that nobody looked at")


def test_a_call_of_an_executor_is_told_unless_somebody_asks_for_its_outcome(executors: World) -> None:
    def call(text: str) -> None:
        raise ValueError(text)

    with ThreadPoolExecutor(1) as pool:
        REQUEST_ID.set("r2")
        seen = [pool.submit(call, "result"), pool.submit(call, "exception"), pool.submit(call, "callback")]
        seen[2].add_done_callback(lambda future: future.exception())
        unseen, fine = pool.submit(call, "unseen"), pool.submit(int, "1")
        REQUEST_ID.set("")
        with pytest.raises(ValueError, match="result"):
            seen[0].result()
        assert seen[1].exception() is not None
        assert fine.result() == 1
    ((level, text, request),) = executors.later()
    assert (level, request) == ("ERROR", "r2")
    assert text.startswith("exception in a call of an executor, whose outcome nobody has asked for\nTraceback")
    assert text.endswith("ValueError: unseen")
    assert unseen.done()


@pytest.mark.parametrize("is_kept", [True, False])
def test_what_the_loop_has_an_executor_do_is_told_unless_it_is_awaited(
    executors: World, caplog: pytest.LogCaptureFixture, is_kept: bool
) -> None:
    kept = []

    async def begin() -> None:
        REQUEST_ID.set("r3")
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(None, int, "nothing")
        await asyncio.wait([future])
        if is_kept:
            kept.append(future)

    executors.loop.run_until_complete(begin())
    executors.loop.run_until_complete(executors.loop.shutdown_default_executor())
    ((level, text, request),) = executors.later()
    assert (level, request) == ("ERROR", "r3")
    assert text.startswith("exception in a call of an executor, whose outcome nobody has asked for\nTraceback")
    assert len(executors.later()) == 1
    gc.collect()
    assert "never retrieved" not in caplog.text


def test_what_the_loop_awaits_of_an_executor_is_not_told(executors: World) -> None:
    async def begin() -> None:
        with pytest.raises(ValueError, match="invalid"):
            await asyncio.get_running_loop().run_in_executor(None, int, "x")
        with pytest.raises(ValueError, match="invalid"):
            await asyncio.to_thread(int, "x")

    executors.loop.run_until_complete(begin())
    executors.loop.run_until_complete(executors.loop.shutdown_default_executor())
    assert executors.later() == []
