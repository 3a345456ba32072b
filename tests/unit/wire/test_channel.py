from __future__ import annotations

import os
import select
import socket
from collections.abc import Iterator

import pytest

from cortex.wire.channel import MAX_UNSENT_BYTES, Channel
from cortex.wire.framing import LENGTH, MAX_FRAME_BYTES, receive_frame, send_frame


@pytest.fixture
def ends() -> Iterator[tuple[Channel, socket.socket]]:
    ours, theirs = socket.socketpair()
    theirs.settimeout(60)
    channel = Channel(ours)
    yield channel, theirs
    channel.close()
    theirs.close()


Ends = tuple[Channel, socket.socket]


def test_frames_go_both_ways(ends: Ends) -> None:
    channel, peer = ends
    send_frame(peer, b"one")
    send_frame(peer, b"")
    assert list(channel.receive()) == [(b"one", []), (b"", [])]
    channel.send(b"two")
    assert receive_frame(peer) == (b"two", [])
    assert list(channel.receive()) == []
    assert not channel.closed


def test_descriptors_stay_with_their_frame(ends: Ends) -> None:
    channel, peer = ends
    with open(os.devnull) as first, open(os.devnull) as second:
        send_frame(peer, b"plain")
        send_frame(peer, b"with", [first.fileno(), second.fileno()])
        send_frame(peer, b"after")
        frames = list(channel.receive())
        assert [(payload, len(fds)) for payload, fds in frames] == [(b"plain", 0), (b"with", 2), (b"after", 0)]
        for fd in frames[1][1]:
            os.close(fd)
        channel.send(b"back", [first.fileno()])
    payload, fds = receive_frame(peer)
    assert (payload, len(fds)) == (b"back", 1)
    os.close(fds[0])


def test_a_frame_may_come_in_pieces(ends: Ends) -> None:
    channel, peer = ends
    data = LENGTH.pack(6) + b"pieces"
    for index in range(len(data) - 1):
        peer.sendall(data[index : index + 1])
        assert list(channel.receive()) == []
    peer.sendall(data[-1:])
    assert list(channel.receive()) == [(b"pieces", [])]


def test_what_does_not_fit_is_sent_later(ends: Ends) -> None:
    channel, peer = ends
    large = b"x" * 5_000_000
    channel.send(large)
    channel.send(b"next")
    assert channel.events & select.POLLOUT
    assert not channel.flushed
    received = b""
    while len(received) < len(large) + 4 + 8:
        received += peer.recv(1 << 20)
        channel.flush()
    assert channel.flushed
    assert received.endswith(LENGTH.pack(4) + b"next")


def test_a_peer_that_never_reads_is_given_up(ends: Ends) -> None:
    channel, _ = ends
    for _ in range(MAX_UNSENT_BYTES // 10_000_000 + 2):
        channel.send(b"x" * 10_000_000)
    assert channel.closed


def test_what_a_peer_said_before_it_left_is_still_heard(ends: Ends) -> None:
    channel, peer = ends
    send_frame(peer, b"goodbye")
    peer.close()
    channel.send(b"unheard")
    assert list(channel.receive()) == [(b"goodbye", [])]
    assert channel.closed
    channel.send(b"nobody")


@pytest.mark.parametrize("nonsense", [LENGTH.pack(MAX_FRAME_BYTES + 1), LENGTH.pack(10) + b"cut off", b"\0"])
def test_nonsense_closes_the_channel(ends: Ends, nonsense: bytes) -> None:
    channel, peer = ends
    peer.sendall(nonsense)
    peer.shutdown(socket.SHUT_WR)
    assert list(channel.receive()) == []
    assert channel.closed


def test_a_frame_that_cannot_be_sent_ends_the_channel_and_not_only_what_is_sent(ends: Ends) -> None:
    channel, peer = ends
    send_frame(peer, b"before")
    peer.shutdown(socket.SHUT_RD)
    channel.send(b"unheard")
    assert channel.flushed
    assert list(channel.receive()) == [(b"before", [])]
    assert channel.closed


def test_who_closes_it_over_a_frame_gets_no_more_of_them(ends: Ends) -> None:
    channel, peer = ends
    with open(os.devnull) as file:
        send_frame(peer, b"one")
        send_frame(peer, b"two", [file.fileno()])
    got = []
    for payload, _fds in channel.receive():
        got.append(payload)
        channel.close()
    assert got == [b"one"]


def test_without_a_limit_any_amount_waits_for_a_peer() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        channel = Channel(ours, max_unsent_bytes=None)
        for _ in range(MAX_UNSENT_BYTES // 10_000_000 + 2):
            channel.send(b"x" * 10_000_000)
        assert not channel.closed
        channel.close()
