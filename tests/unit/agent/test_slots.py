"""Tests of `cortex.agent.slots`."""

import asyncio
import socket

import pytest

from cortex.agent import slots


@pytest.fixture
def path(layout):
    return layout.slot_socket("a")


def connected(path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.settimeout(60)
    client.connect(str(path))
    return client


def test_a_slot_is_reachable_until_its_file_is_removed_or_another_one_is_bound_there(path):
    first = slots.bind(path)
    assert first.is_reachable()
    second = slots.bind(path)
    assert (first.is_reachable(), second.is_reachable()) == (False, True)
    path.unlink()
    assert not second.is_reachable()
    first.close()
    second.close()


def test_a_slot_that_is_closed_takes_its_file_along_and_no_other_ones(path):
    first, second = slots.bind(path), slots.bind(path)
    first.close()
    first.close()
    assert path.exists()
    second.close()
    assert not path.exists()


def test_who_waits_is_turned_away_and_who_comes_later_is_not(path):
    slot = slots.bind(path)
    with connected(path) as waiting:
        slot.turn_away()
        assert waiting.recv(1) == b""
    with connected(path) as later:
        later.setblocking(False)
        with pytest.raises(BlockingIOError):
            later.recv(1)
    slot.close()


def test_a_slot_that_a_former_agent_has_bound_is_used_again(path):
    former = slots.bind(path)
    found = slots.found_again(path, former.socket.dup())
    assert found.is_reachable()
    found.close()
    former.close()


def test_who_waits_at_a_slot_that_nobody_would_reach_is_turned_away(path):
    former = slots.bind(path)
    with connected(path) as waiting:
        path.unlink()
        assert slots.found_again(path, former.socket.dup()) is None
        assert waiting.recv(1) == b""
    former.close()
    assert slots.found_again(path, None) is None


# ---- knocks ----------------------------------------------------------------------------------------------------------


class Knocks:
    """How often somebody was said to have come."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1

    async def come(self, count: int) -> None:
        async with asyncio.timeout(60):
            while self.count < count:
                await asyncio.sleep(0.001)


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.mark.parametrize("before", [True, False])
def test_somebody_who_comes_is_noticed_once_whether_before_or_after_that_was_asked(path, before):
    async def story():
        slot, knocks = slots.bind(path), Knocks()
        clients = [connected(path)] if before else []
        slot.await_knock(knocks)
        clients += [] if before else [connected(path)]
        await knocks.come(1)
        clients.append(connected(path))
        await turns()
        assert knocks.count == 1
        slot.await_knock(knocks)
        await knocks.come(2)
        for client in clients:
            client.close()
        slot.close()

    asyncio.run(story())


def test_who_has_left_again_has_come(path):
    async def story():
        slot, knocks = slots.bind(path), Knocks()
        connected(path).close()
        slot.await_knock(knocks)
        await knocks.come(1)
        slot.turn_away()
        slot.await_knock(knocks)
        await turns()
        assert knocks.count == 1
        slot.close()

    asyncio.run(story())


@pytest.mark.parametrize("end", [slots.SlotSocket.stop_awaiting, slots.SlotSocket.close])
def test_nobody_is_noticed_any_more_although_others_hold_the_socket(path, end):
    async def story():
        slot, knocks = slots.bind(path), Knocks()
        with slot.socket.dup(), connected(path) as client:
            slot.await_knock(knocks)
            end(slot)
            await turns()
            assert knocks.count == 0
            assert client.fileno() >= 0
        slot.close()

    asyncio.run(story())


def test_asking_whether_a_path_leads_anywhere_is_no_knock(path):
    async def story():
        former, knocks = slots.bind(path), Knocks()
        found = slots.found_again(path, former.socket.dup())
        found.await_knock(knocks)
        await turns()
        assert knocks.count == 0
        found.close()
        former.close()

    asyncio.run(story())
