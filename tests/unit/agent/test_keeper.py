"""Tests of `cortex.agent.keeper`: the loop in a thread, real sockets, no process."""

import fcntl
import os
import socket
import threading

import msgspec
import pytest

from cortex.agent import keeper
from cortex.agent.keeper import LOCK_SUFFIX, Keeper
from cortex.ids import ReplicaId
from cortex.wire.framing import LENGTH, ConnectionLost, framed, receive_frame, send_frame
from cortex.wire.keeper import HoldSocket, KeeperReply, Quit, Release, SlotHeld, Slots, SlotsEnd

DEADLINE_S = 30.0
"""For anything to happen; generous, since the machine may be busy."""
A, B = ReplicaId("t.a.00000000.0"), ReplicaId("t.b.00000000.0")
_REPLIES = msgspec.json.Decoder(KeeperReply)


class Line:
    """A connection to a keeper."""

    def __init__(self, path) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(DEADLINE_S)
        self.sock.connect(str(path))

    def send(self, request, *slots: socket.socket) -> None:
        send_frame(self.sock, msgspec.json.encode(request), [slot.fileno() for slot in slots])

    def slots(self) -> dict[ReplicaId, socket.socket]:
        self.send(Slots())
        return self.answer()

    def answer(self) -> dict[ReplicaId, socket.socket]:
        held = {}
        while True:
            payload, fds = receive_frame(self.sock)
            reply = _REPLIES.decode(payload)
            if isinstance(reply, SlotsEnd):
                return held
            assert isinstance(reply, SlotHeld)
            held[reply.replica] = socket.socket(fileno=fds[0])


@pytest.fixture
def path(layout):
    return layout.keeper_socket


@pytest.fixture
def running(path):
    """A keeper at `path`, and its thread."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen(16)
    thread = threading.Thread(target=Keeper(listener).run)
    thread.start()
    yield thread
    if thread.is_alive():
        with Line(path).sock as sock:
            send_frame(sock, msgspec.json.encode(Quit()))
            thread.join(DEADLINE_S)
    assert not thread.is_alive()
    listener.close()


@pytest.fixture
def line(path, running):
    line = Line(path)
    yield line
    line.sock.close()


@pytest.fixture
def a_slot(layout):
    made = []

    def make(name: str) -> socket.socket:
        slot = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        slot.bind(str(layout.slot_socket(name)))
        slot.listen(8)
        made.append(slot)
        return slot

    yield make
    for slot in made:
        slot.close()


def close(held) -> None:
    for slot in held.values():
        slot.close()


def test_a_slot_lives_on_although_whoever_bound_it_is_gone(line, a_slot):
    slot = a_slot("a")
    path = slot.getsockname()
    line.send(HoldSocket(replica=A), slot)
    close(line.slots())  # it has it by now
    slot.close()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.connect(path)
        held = line.slots()
        held[A].accept()[0].close()
    close(held)


def test_every_slot_is_given_to_whoever_asks(line, path, a_slot):
    line.send(HoldSocket(replica=A), a_slot("a"))
    line.send(HoldSocket(replica=B), a_slot("b"))
    close(line.slots())
    other = Line(path)
    held = other.slots()
    assert {replica: slot.getsockname().rpartition("-")[2] for replica, slot in held.items()} == {
        A: "a.sock",
        B: "b.sock",
    }
    close(held)
    other.sock.close()


def test_a_newer_slot_of_a_replica_takes_the_place_of_the_older(line, a_slot):
    line.send(HoldSocket(replica=A), a_slot("a"))
    line.send(HoldSocket(replica=A), a_slot("b"))
    held = line.slots()
    assert [slot.getsockname().rpartition("-")[2] for slot in held.values()] == ["b.sock"]
    close(held)


def test_a_released_slot_is_closed(line, a_slot):
    slot = a_slot("a")
    path = slot.getsockname()
    line.send(HoldSocket(replica=A), slot)
    line.send(Release(replica=A))
    line.send(Release(replica=B))
    assert line.slots() == {}
    slot.close()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client, pytest.raises(ConnectionRefusedError):
        client.connect(path)


def test_what_an_agent_said_before_it_died_counts_before_the_next_one_is_answered(path, a_slot):
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen(4)
        before, after = Line(path), Line(path)
        before.send(HoldSocket(replica=A), a_slot("a"))
        before.send(HoldSocket(replica=B), a_slot("b"))
        before.send(Release(replica=B))
        before.sock.close()
        send_frame(after.sock, msgspec.json.encode(Slots()))
        thread = threading.Thread(target=Keeper(listener).run)  # has all of it to read, of both
        thread.start()
        held = after.answer()
        after.send(Quit())
        thread.join(DEADLINE_S)
        after.sock.close()
    assert not thread.is_alive()
    assert set(held) == {A}
    close(held)


def test_a_peer_that_asks_twice_and_does_not_listen_is_let_go_and_nobody_else(line, path, a_slot):
    line.send(HoldSocket(replica=A), a_slot("a"))
    close(line.slots())
    other = Line(path)
    other.sock.shutdown(socket.SHUT_RD)
    question = msgspec.json.encode(Slots())
    other.sock.sendall(2 * framed(question))  # in one go: after the first it may be let go
    other.sock.close()
    held = line.slots()
    assert set(held) == {A}
    close(held)


def test_a_slot_that_comes_without_its_socket_is_none(line):
    line.send(HoldSocket(replica=A))
    assert line.slots() == {}


@pytest.mark.parametrize(
    "garbage",
    [
        pytest.param(b"no json", id="no json"),
        pytest.param(b'{"type":"unknown"}', id="unknown"),
        pytest.param(b'{"type":"\xff"}', id="no text"),
        pytest.param(b"[" * 100_000, id="deeply nested"),
        pytest.param(b"{}", id="nothing"),
    ],
)
def test_a_peer_that_sends_nonsense_is_let_go_and_nobody_else(line, path, a_slot, garbage):
    line.send(HoldSocket(replica=A), a_slot("a"))
    other = Line(path)
    send_frame(other.sock, garbage, [a_slot("b").fileno()])
    with pytest.raises(ConnectionLost):
        receive_frame(other.sock)
    other.sock.close()
    held = line.slots()
    assert set(held) == {A}
    close(held)


def test_a_peer_that_stops_in_the_middle_is_let_go(monkeypatch, line, path):
    monkeypatch.setattr(keeper, "FRAME_TIMEOUT_S", 0.05)
    other = Line(path)
    other.sock.sendall(LENGTH.pack(100) + b"half")
    with pytest.raises(ConnectionLost):
        receive_frame(other.sock)
    other.sock.close()
    assert line.slots() == {}


def test_it_ends_when_told_to(line, running, a_slot):
    slot = a_slot("a")
    path = slot.getsockname()
    line.send(HoldSocket(replica=A), slot)
    line.send(Quit())
    running.join(DEADLINE_S)
    assert not running.is_alive()
    slot.close()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client, pytest.raises(ConnectionRefusedError):
        client.connect(path)


def test_it_ends_by_itself_once_there_is_nothing_to_keep(path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen(1)
        Keeper(listener, idle_limit_s=0.01).run()


def test_a_second_keeper_of_a_home_leaves_the_first_ones_socket_alone(monkeypatch, path):
    monkeypatch.setattr(keeper.setproctitle, "setproctitle", lambda _title: None)
    path.touch()
    lock = os.open(f"{path}{LOCK_SUFFIX}", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    assert keeper.main(str(path), "home") == 0
    assert path.exists()
    os.close(lock)


def test_a_keeper_takes_its_files_away_with_it(monkeypatch, path):
    monkeypatch.setattr(keeper.setproctitle, "setproctitle", lambda _title: None)
    monkeypatch.setattr(keeper.Keeper.__init__, "__kwdefaults__", {"idle_limit_s": 0.01})
    path.touch()  # of a keeper that was killed
    assert keeper.main(str(path), "home") == 0
    assert not path.exists()
