"""Which of several control planes an agent comes to talk with."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from cortex.agent.dialing import ControlPlanes, Introduce, RefusedByControlPlane, Streams
from cortex.ids import NodeId
from cortex.wire.link import ORDERS, Hello

HELLO = Hello(node=NodeId("n1"), agent="a", way=ORDERS)


class Listeners:
    """Control planes: each takes us, or fails so."""

    def __init__(self, *outcomes: Exception | None) -> None:
        self.outcomes = list(outcomes)
        self.asked: list[int] = []
        self.planes = ControlPlanes(lambda: [self._listener(number) for number in range(len(self.outcomes))])

    def _listener(self, number: int) -> Introduce:
        async def introduce(hello: Hello) -> Streams:
            assert hello is HELLO
            self.asked.append(number)
            outcome = self.outcomes[number]
            if outcome is not None:
                raise outcome
            return cast(Streams, number)

        return introduce

    def introduce(self) -> int:
        """By whom we were taken."""
        return cast(int, asyncio.run(self.planes.introduce(HELLO)))


def test_the_first_that_takes_us_is_the_one() -> None:
    listeners = Listeners(ConnectionRefusedError("nobody"), None, None)
    assert (listeners.introduce(), listeners.asked) == (1, [0, 1])


def test_who_took_us_last_is_asked_first_until_it_is_gone() -> None:
    listeners = Listeners(ConnectionRefusedError("nobody"), None, ConnectionRefusedError("nobody"))
    listeners.introduce()
    listeners.asked.clear()
    assert (listeners.introduce(), listeners.asked) == (1, [1])
    listeners.outcomes = [None, TimeoutError(), ConnectionRefusedError("nobody")]
    listeners.asked.clear()
    assert (listeners.introduce(), listeners.asked) == (0, [1, 2, 0])


def test_where_nobody_answers_it_is_said_of_the_one_that_was_asked_first() -> None:
    listeners = Listeners(ConnectionRefusedError("first"), TimeoutError("second"))
    with pytest.raises(OSError, match="first"):
        listeners.introduce()
    assert listeners.asked == [0, 1]


def test_who_turns_us_away_is_heard_if_no_other_takes_us() -> None:
    refused = RefusedByControlPlane("another version")
    with pytest.raises(RefusedByControlPlane, match="another version"):
        Listeners(ConnectionRefusedError("nobody"), refused, TimeoutError()).introduce()
    assert Listeners(refused, None).introduce() == 1


def test_one_that_is_elsewhere_by_now_is_found_there() -> None:
    listeners = Listeners(ConnectionRefusedError("gone"))
    with pytest.raises(OSError, match="gone"):
        listeners.introduce()
    listeners.outcomes = [ConnectionRefusedError("gone"), None]
    assert listeners.introduce() == 1
    listeners.outcomes = [None]
    assert listeners.introduce() == 0
