"""Tests of `cortex.agent.safekeeping`, against a keeper in a thread."""

import asyncio
import socket
import threading

import msgspec
import pytest

from cortex.agent.keeper import Keeper
from cortex.agent.safekeeping import Safekeeping
from cortex.ids import ReplicaId
from cortex.wire.framing import send_frame
from cortex.wire.keeper import Quit

DEADLINE_S = 30.0
"""For anything to happen; generous, since the machine may be busy."""
A, B = ReplicaId("t.a.00000000.0"), ReplicaId("t.b.00000000.0")


class KeeperThread:
    """A keeper that can be ended and started again."""

    def __init__(self, layout) -> None:
        self._path = layout.keeper_socket

    def start(self) -> None:
        self._path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(self._path))
        self._listener.listen(4)
        self._thread = threading.Thread(target=Keeper(self._listener).run)
        self._thread.start()

    def end(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.connect(str(self._path))
            send_frame(sock, msgspec.json.encode(Quit()))
            self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive()
        self._listener.close()


@pytest.fixture
def keeper(layout):
    keeper = KeeperThread(layout)
    keeper.start()
    yield keeper
    keeper.end()


@pytest.fixture
def slot(layout):
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as slot:
        slot.bind(str(layout.slot_socket("a")))
        slot.listen(4)
        yield slot


async def recovered(layout) -> dict[ReplicaId, str]:
    """What a next agent gets."""
    safekeeping = Safekeeping(layout)
    found = await safekeeping.recover()
    names = {replica: slot.getsockname() for replica, slot in found.items()}
    for held in found.values():
        held.close()
    safekeeping.close()
    return names


def test_the_next_agent_gets_the_slots_of_the_one_before(layout, keeper, slot):
    async def story():
        first = Safekeeping(layout)
        await first.keep()
        first.hold(A, slot)
        first.hold(B, slot)
        first.release(B)
        first.close()
        return await recovered(layout)

    assert asyncio.run(story()) == {A: slot.getsockname()}


def test_a_new_keeper_is_given_every_slot_again(layout, keeper, slot):
    async def story():
        safekeeping = Safekeeping(layout)
        await safekeeping.keep()
        safekeeping.hold(A, slot)
        await asyncio.to_thread(keeper.end)
        safekeeping.hold(B, slot)  # while there is none
        keeper.start()
        await safekeeping.keep()
        safekeeping.close()
        return await recovered(layout)

    assert set(asyncio.run(story())) == {A, B}


def test_without_slots_there_is_nothing_to_recover(layout, keeper):
    assert asyncio.run(recovered(layout)) == {}
