"""Tests of `cortex.agent.slots`."""

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
