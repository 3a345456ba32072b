"""Tests of `cortex.polling`, on real descriptors."""

import errno
import os
import select
import socket

import pytest

from cortex import polling


@pytest.fixture
def ends():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def test_only_what_has_something_is_returned(ends):
    ours, theirs = ends
    watched = {ours.fileno(): select.POLLIN, theirs.fileno(): select.POLLIN}
    assert polling.wait(watched, 0) == set()
    theirs.send(b"x")
    assert polling.wait(watched, 0) == {ours.fileno()}
    assert polling.wait({**watched, theirs.fileno(): select.POLLOUT}, None) == {ours.fileno(), theirs.fileno()}


def test_the_end_of_a_peer_counts_whatever_is_waited_for(ends):
    ours, theirs = ends
    theirs.close()
    assert polling.wait({ours.fileno(): 0}, None) == {ours.fileno()}


def test_a_descriptor_that_was_closed_is_an_error_and_no_reason_to_come_round_again():
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        with pytest.raises(OSError, match=str(read_end)) as raised:
            polling.wait({read_end: select.POLLIN}, 0)
    finally:
        os.close(write_end)
    assert raised.value.errno == errno.EBADF


def test_a_time_that_has_passed_does_not_wait(ends):
    ours, _ = ends
    assert polling.wait({ours.fileno(): select.POLLIN}, -5) == set()


def test_a_connection_that_is_taken_is_returned_and_one_that_is_not_there_is_none():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        assert polling.accept(listener) is None
        with socket.create_connection(listener.getsockname()) as client:
            assert polling.wait({listener.fileno(): select.POLLIN}, None) == {listener.fileno()}
            taken = polling.accept(listener)
            assert taken is not None
            with taken:
                assert taken.getpeername() == client.getsockname()


def test_a_connection_for_which_there_is_no_descriptor_waits_for_a_moment(monkeypatch):
    class Full:
        def accept(self):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    paused = []
    monkeypatch.setattr(polling.time, "sleep", paused.append)
    assert polling.accept(Full()) is None
    assert paused == [polling.NO_DESCRIPTOR_PAUSE_S], "else a loop of ours spins until a descriptor is closed"
