"""Tests of `cortex.wire.framing`."""

import os
import socket
import struct
import threading

import pytest

from cortex.wire.framing import ConnectionLost, receive_frame, send_frame


@pytest.fixture
def pair():
    left, right = socket.socketpair()
    left.settimeout(60)
    right.settimeout(60)
    yield left, right
    left.close()
    right.close()


def test_a_frame_arrives_as_it_was_sent(pair):
    left, right = pair
    send_frame(left, b"hello")
    send_frame(left, b"")
    assert receive_frame(right) == (b"hello", [])
    assert receive_frame(right) == (b"", [])


def test_a_frame_larger_than_the_socket_buffer_arrives_whole(pair):
    left, right = pair
    payload = os.urandom(5_000_000)
    sender = threading.Thread(target=send_frame, args=(left, payload))
    sender.start()
    assert receive_frame(right)[0] == payload
    sender.join()


def test_descriptors_arrive_with_their_own_frame(pair):
    left, right = pair
    read_end, write_end = os.pipe()
    send_frame(left, b"first")
    send_frame(left, b"second", [write_end])
    os.close(write_end)
    assert receive_frame(right) == (b"first", [])
    payload, (received,) = receive_frame(right)
    assert payload == b"second"
    os.write(received, b"through")
    os.close(received)
    assert os.read(read_end, 100) == b"through"
    os.close(read_end)


def test_a_peer_that_leaves_in_the_middle_is_noticed(pair):
    left, right = pair
    left.sendall(struct.pack("!I", 100) + b"half")
    left.close()
    with pytest.raises(ConnectionLost, match="in the middle"):
        receive_frame(right)


def test_an_absurd_length_is_refused_without_reading_on(pair):
    left, right = pair
    left.sendall(b"GET ")
    with pytest.raises(ConnectionLost, match="over the limit"):
        receive_frame(right)
