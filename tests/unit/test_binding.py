"""Tests of `cortex.binding`."""

import errno
import socket
import stat

import pytest

from cortex.binding import bind_tcp, bind_unix


def test_a_unix_socket_takes_the_place_of_a_dead_one_and_is_private(tmp_path):
    path = tmp_path / "s"
    bind_unix(path, 4).close()
    with bind_unix(path, 4) as listener, socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        listener.accept()[0].close()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert listener.getsockname() == str(path)


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
    with bind_tcp("127.0.0.1", 0, 4) as listener:
        address = listener.getsockname()
        with socket.create_connection(address):
            listener.accept()[0].close()
        with pytest.raises(OSError) as taken:
            bind_tcp(*address, 4)
        assert taken.value.errno == errno.EADDRINUSE


def test_connections_that_were_closed_keep_nobody_from_their_port():
    with bind_tcp("127.0.0.1", 0, 4) as listener:
        address = listener.getsockname()
        with socket.create_connection(address) as client:
            taken, _ = listener.accept()
            taken.close()  # the first to close waits for a minute, with the port
            assert client.recv(1) == b""
    bind_tcp(*address, 4).close()


def test_who_only_looks_is_in_nobodys_way():
    with bind_tcp("127.0.0.1", 0, None) as looking:
        bind_tcp(*looking.getsockname(), 4).close()
