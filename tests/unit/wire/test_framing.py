"""Tests of `cortex.wire.framing`."""

import os
import socket
import struct
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex.wire.framing import (
    LENGTH,
    MAX_FRAME_BYTES,
    ConnectionLost,
    FrameReader,
    framed,
    receive_frame,
    receive_some,
    send_frame,
    send_some,
)

PAYLOADS = st.lists(st.binary(max_size=40), max_size=6)


def read(stream: bytes, most: list[int]) -> list[tuple[bytes, list[int]]]:
    """
    The frames of a stream that comes in pieces.

    Args:
        most: how many bytes there are at each read; the last one holds for the rest.
    """
    reader, frames, place, turn = FrameReader(), [], 0, 0
    while place < len(stream):
        size = min(reader.wanted, most[min(turn, len(most) - 1)])
        frame = reader.take(stream[place : place + size])
        frames += [frame] if frame is not None else []
        place += size
        turn += 1
    return frames


@given(PAYLOADS, st.lists(st.integers(1, 60), min_size=1))
def test_frames_are_the_same_wherever_their_stream_is_split(payloads, most):
    stream = b"".join(map(framed, payloads))
    assert read(stream, most) == [(payload, []) for payload in payloads]


@given(PAYLOADS.filter(bool), st.data())
def test_a_stream_may_be_split_at_every_place_and_cut_at_every_place(payloads, data):
    stream = b"".join(map(framed, payloads))
    ends = [sum(len(framed(payload)) for payload in payloads[:count]) for count in range(len(payloads) + 1)]
    cut = data.draw(st.integers(0, len(stream)))
    reader, whole = FrameReader(), []
    for place in range(cut):
        assert reader.wanted >= 1
        frame = reader.take(stream[place : place + 1])
        whole += [frame[0]] if frame is not None else []
    assert whole == payloads[: sum(end <= cut for end in ends) - 1]
    with pytest.raises(ConnectionLost) as lost:
        reader.take(b"")
    assert str(lost.value).endswith("in the middle of a frame") == (cut not in ends)


@given(PAYLOADS)
def test_no_read_goes_on_into_the_next_frame(payloads):
    reader = FrameReader()
    for payload in payloads:
        assert reader.wanted == LENGTH.size
        frame = reader.take(LENGTH.pack(len(payload)))
        if payload:
            assert (frame, reader.wanted) == (None, len(payload))
            frame = reader.take(payload)
        assert frame == (payload, [])


@given(st.lists(st.lists(st.integers(0, 2), max_size=3), max_size=5), st.integers(1, 7))
def test_descriptors_are_of_the_frame_whose_first_byte_they_came_with(numbers, most):
    reader, frames = FrameReader(), []
    for fds in numbers:
        stream, coming = framed(b"payload"), fds
        while stream:
            size = min(reader.wanted, most)
            frame = reader.take(stream[:size], coming)
            frames += [frame] if frame is not None else []
            stream, coming = stream[size:], []
    assert frames == [(b"payload", fds) for fds in numbers]


@given(st.integers(0, 2**32 - 1))
def test_a_length_over_the_limit_is_refused_as_soon_as_it_is_known(length):
    reader = FrameReader()
    if length <= MAX_FRAME_BYTES:
        frame = reader.take(LENGTH.pack(length))
        assert frame == (None if length else (b"", []))
    else:
        with pytest.raises(ConnectionLost, match="over the limit"):
            reader.take(LENGTH.pack(length))


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


def test_descriptors_of_a_frame_that_does_not_become_whole_are_closed(pair):
    left, right = pair
    read_end, write_end = os.pipe()
    send_some(left, LENGTH.pack(100) + b"half", [write_end])
    os.close(write_end)
    left.close()
    with pytest.raises(ConnectionLost):
        receive_frame(right)
    assert os.read(read_end, 1) == b""
    os.close(read_end)


def test_descriptors_that_came_are_inherited_by_no_child(pair):
    left, right = pair
    send_some(left, b"x", [left.fileno()])
    data, (received,) = receive_some(right, 1)
    assert (data, os.get_inheritable(received)) == (b"x", False)
    os.close(received)


def test_a_peer_that_is_gone_is_an_error_and_no_signal(pair):
    left, right = pair
    right.close()
    with pytest.raises(BrokenPipeError):
        send_frame(left, b"nobody")
