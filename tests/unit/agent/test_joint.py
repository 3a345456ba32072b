"""Tests of `cortex.agent.joint`."""

import asyncio

import pytest

from cortex.agent.joint import JointWork


class Work:
    """Goes on until it is let go; counts how often it was begun."""

    def __init__(self) -> None:
        self.begun = 0
        self.called_off = 0
        self.tells = []
        self.go = asyncio.Event()

    async def __call__(self, tell) -> str:
        self.begun += 1
        self.tells.append(tell)
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.called_off += 1
            raise
        return f"run {self.begun}"


async def waiting(joint: JointWork, work: Work, told: list[str]) -> "asyncio.Task[str]":
    task = asyncio.ensure_future(joint.of("x", work, told.append))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return task


def test_what_several_want_at_once_is_done_once_and_all_are_told():
    async def story():
        joint, work, told = JointWork(), Work(), ([], [])
        tasks = [await waiting(joint, work, one) for one in told]
        assert "x" in joint
        work.tells[0]("half")
        work.go.set()
        assert await asyncio.gather(*tasks) == ["run 1", "run 1"]
        assert told == (["half"], ["half"])
        assert "x" not in joint
        assert await joint.of("x", work, lambda _: None) == "run 2"

    asyncio.run(story())


def test_it_goes_on_while_anybody_waits_and_is_called_off_with_the_last():
    async def story():
        joint, work = JointWork(), Work()
        first, second = await waiting(joint, work, []), await waiting(joint, work, [])
        first.cancel()
        await asyncio.wait([first])
        assert (work.called_off, "x" in joint) == (0, True)
        second.cancel()
        late = asyncio.ensure_future(joint.of("x", work, lambda _: None))  # while it is being called off
        await asyncio.wait([second])
        work.go.set()
        assert await late == "run 2"
        assert work.called_off == 1

    asyncio.run(story())


def test_what_it_raises_reaches_all_who_wait():
    async def failing(_tell):
        await asyncio.sleep(0)
        raise ValueError("no")

    async def story():
        joint = JointWork()
        results = await asyncio.gather(
            *(joint.of("x", failing, lambda _: None) for _ in range(2)), return_exceptions=True
        )
        assert [str(result) for result in results] == ["no", "no"]
        with pytest.raises(ValueError, match="no"):
            await joint.of("x", failing, lambda _: None)

    asyncio.run(story())


def test_closing_calls_off_what_is_under_way():
    async def story():
        joint, work = JointWork(), Work()
        task = await waiting(joint, work, [])
        await joint.close()
        assert work.called_off == 1
        await asyncio.wait([task])
        assert task.cancelled()

    asyncio.run(story())
