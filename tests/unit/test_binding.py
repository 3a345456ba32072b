"""Tests of `cortex.binding`."""

import errno
import socket
import stat
import sys

import pytest

from cortex.binding import bind_tcp, bind_unix, leads_somewhere
from cortex.processes import spawn


def test_a_unix_socket_takes_the_place_of_a_dead_one_and_is_private(tmp_path):
    path = tmp_path / "s"
    bind_unix(path, 4).close()
    with bind_unix(path, 4) as listener, socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        listener.accept()[0].close()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert listener.getsockname() == str(path)


def test_a_path_leads_somewhere_as_long_as_somebody_listens(tmp_path):
    path = tmp_path / "s"
    assert not leads_somewhere(path)
    listener = bind_unix(path, 0)
    waiting = [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) for _ in range(3)]
    for client in waiting:
        client.connect_ex(str(path))
    assert leads_somewhere(path), "also when there is no room to wait"
    listener.close()
    assert not leads_somewhere(path)
    for client in waiting:
        client.close()


def test_a_unix_socket_that_is_there_at_once_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "s"
    path.with_name(f"{path.name}.tmp").touch()  # somebody was killed in the middle
    with bind_unix(path, 4, at_once=True) as listener, socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        listener.accept()[0].close()
    assert [file.name for file in path.parent.glob(f"{path.name}*")] == [path.name]


def test_what_cannot_be_bound_is_an_error(tmp_path):
    with pytest.raises(OSError, match="No such file"):
        bind_unix(tmp_path / "none" / "s", 4)


def test_a_tcp_socket_listens_where_it_was_asked_to_and_nobody_else_then():
    with bind_tcp("127.0.0.1", 0) as listener:
        address = listener.getsockname()
        with socket.create_connection(address):
            listener.accept()[0].close()
        with pytest.raises(OSError) as taken:
            bind_tcp(*address)
        assert taken.value.errno == errno.EADDRINUSE


def test_connections_that_were_closed_keep_nobody_from_their_port():
    with bind_tcp("127.0.0.1", 0) as listener:
        address = listener.getsockname()
        with socket.create_connection(address) as client:
            taken, _ = listener.accept()
            taken.close()  # the first to close waits for a minute, with the port
            assert client.recv(1) == b""
    bind_tcp(*address).close()


def test_who_looks_for_a_port_hands_the_socket_on_to_who_serves_there(tmp_path):
    program = """
import os, sys
from cortex.binding import handed_over
((port, sock),) = handed_over(sys.argv).items()
print(port, sock.getsockname()[1], sock.get_inheritable(), flush=True)
sock.accept()[0].sendall(b"served")
"""
    with bind_tcp("127.0.0.1", 0) as sock:
        address = sock.getsockname()
        child = spawn([sys.executable, "-c", program, "/home"], output=tmp_path / "out", sockets=[sock])
    with child, socket.create_connection(address, timeout=60) as client:
        client.settimeout(60)
        assert client.recv(10) == b"served"
    assert (tmp_path / "out").read_text() == f"{address[1]} {address[1]} False\n"
