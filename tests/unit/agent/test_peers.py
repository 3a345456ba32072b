"""Tests of `cortex.agent.peers`."""

import asyncio
import os
import socket

import msgspec
import pytest

from cortex.agent import peers
from cortex.agent.peers import Peer
from cortex.wire.framing import receive_frame, send_frame


async def until(condition, deadline_s=60.0):
    async with asyncio.timeout(deadline_s):
        while not condition():
            await asyncio.sleep(0.001)


def connected():
    ours, theirs = socket.socketpair()
    theirs.settimeout(60)
    frames, closed = [], []
    peer = Peer(ours, on_frame=lambda p, f: frames.append((p, f)), on_close=lambda: closed.append(True))
    return peer, theirs, frames, closed


async def _frames_and_descriptors_stay_together():
    peer, theirs, frames, _closed = connected()
    read_end, write_end = os.pipe()
    send_frame(theirs, b"one")
    send_frame(theirs, b"two", [write_end])
    send_frame(theirs, b"")
    os.close(write_end)
    await until(lambda: len(frames) == 3)
    assert [payload for payload, _ in frames] == [b"one", b"two", b""]
    assert [len(fds) for _, fds in frames] == [0, 1, 0]
    os.close(frames[1][1][0])
    os.close(read_end)
    peer.close()
    theirs.close()


def test_frames_and_their_descriptors_stay_together():
    asyncio.run(_frames_and_descriptors_stay_together())


async def _large_frame_does_not_block_the_loop():
    peer, theirs, _frames, _closed = connected()
    payload = os.urandom(4_000_000)
    peer.send(payload)
    peer.send(b"after")
    received = await asyncio.to_thread(receive_frame, theirs)
    assert received[0] == payload
    assert (await asyncio.to_thread(receive_frame, theirs))[0] == b"after"
    peer.close()
    theirs.close()


def test_a_large_frame_is_sent_without_blocking_the_loop():
    asyncio.run(_large_frame_does_not_block_the_loop())


async def _end_of_the_peer_is_told_once():
    peer, theirs, _frames, closed = connected()
    theirs.close()
    await until(lambda: closed)
    peer.close()
    peer.send(b"into the void")
    assert closed == [True]


def test_the_end_of_the_peer_is_told_once():
    asyncio.run(_end_of_the_peer_is_told_once())


async def _nonsense_is_the_end_of_a_peer():
    ours, theirs = socket.socketpair()
    closed = []
    peer = Peer(ours, on_frame=lambda p, _f: msgspec.json.decode(p, type=int), on_close=lambda: closed.append(1))
    read_end, write_end = os.pipe()
    send_frame(theirs, b'"\xff"', [write_end])
    os.close(write_end)
    await until(lambda: closed)
    assert os.read(read_end, 1) == b"", "the descriptor that came along was closed"
    os.close(read_end)
    theirs.close()
    assert peer.closed


def test_a_peer_that_sends_nonsense_is_let_go_with_its_descriptors():
    asyncio.run(_nonsense_is_the_end_of_a_peer())


def connect(path):
    return peers.connect(path, on_frame=lambda _p, _f: None, on_close=lambda: None, timeout_s=60)


async def _who_listens_is_known(path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen(4)
        peer = await connect(path)
        assert peer.listener_pid == os.getpid()
        peer.close()


def test_the_process_that_listens_is_known(layout):
    asyncio.run(_who_listens_is_known(layout.agent_socket))


async def _full_backlog_is_no_connection(path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen(0)
        peer = await connect(path)
        with pytest.raises(OSError):
            await connect(path)
        peer.close()


def test_a_listener_without_room_for_us_is_an_error_and_no_connection(layout):
    asyncio.run(_full_backlog_is_no_connection(layout.agent_socket))
