from __future__ import annotations

import asyncio
import socket
import tempfile
from pathlib import Path

import pytest

from cortex.binding import bind_unix
from cortex.ingress.errors import AdminUnreachable, IngressPortTaken
from cortex.ingress.handover import (
    Lender,
    ListenAddress,
    bind_argument,
    bind_patiently,
    bind_public,
    borrowed,
    matches,
)


@pytest.fixture
def folder():
    with tempfile.TemporaryDirectory(prefix="cortex-", dir="/tmp") as name:
        yield Path(name)


@pytest.fixture
def listener():
    with socket.socket() as reserved:
        # Bound so, nobody else is given the port when a test lets it go, and whoever wants to may listen on it.
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(("127.0.0.1", 0))
        with bind_public(ListenAddress("127.0.0.1", reserved.getsockname()[1])) as found:
            yield found


def test_lent_sockets_are_the_very_same_sockets(folder, listener):
    with bind_unix(folder / "u.sock", 4) as other, Lender(folder / "l.sock", [listener, other]):
        copies = borrowed(folder / "l.sock")
        try:
            assert [copy.getsockname() for copy in copies] == [listener.getsockname(), str(folder / "u.sock")]
            assert not any(copy.get_inheritable() for copy in copies)
            with socket.create_connection(listener.getsockname()):
                copies[0].settimeout(60)
                copies[0].accept()[0].close()
        finally:
            for copy in copies:
                copy.close()


def test_more_sockets_are_lent_than_go_into_one_message(folder, listener):
    copies = [listener.dup() for _ in range(300)]
    with Lender(folder / "l.sock", copies):
        got = borrowed(folder / "l.sock")
    assert len(got) == 300
    for each in (*copies, *got):
        each.close()


def test_a_lender_whom_nobody_asks_ends_at_once(folder, listener):
    with Lender(folder / "l.sock", [listener]):
        pass
    assert not (folder / "l.sock").exists()


def test_a_lender_survives_a_borrower_that_goes_away(folder, listener):
    with Lender(folder / "l.sock", [listener]):
        with socket.socket(socket.AF_UNIX) as rude:
            rude.connect(str(folder / "l.sock"))
        (copy,) = borrowed(folder / "l.sock")
        copy.close()


def test_nobody_to_borrow_from_is_an_error(folder):
    with pytest.raises(AdminUnreachable):
        borrowed(folder / "nobody.sock")


def test_a_bind_argument_says_family_address_and_port(folder, listener):
    port = listener.getsockname()[1]
    assert bind_argument(listener) == f"ipv4@127.0.0.1:{port}"
    with bind_unix(folder / "u.sock", 4) as unix:
        assert bind_argument(unix) == f"unix@{folder}/u.sock"
        assert (folder / "u.sock").stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6")
def test_an_ipv6_socket_is_found_by_its_family_alone():
    with bind_public(ListenAddress("::1", 0)) as listener:
        port = listener.getsockname()[1]
        assert bind_argument(listener) == f"ipv6@[::1]:{port} v6only"
        assert matches(listener, ListenAddress("::1", port))
        assert not matches(listener, ListenAddress("127.0.0.1", port))


def test_a_socket_matches_its_address_and_any_port(listener, folder):
    port = listener.getsockname()[1]
    assert matches(listener, ListenAddress("127.0.0.1", port))
    assert matches(listener, ListenAddress("127.0.0.1", 0))
    assert not matches(listener, ListenAddress("127.0.0.1", port + 1))
    assert not matches(listener, ListenAddress("0.0.0.0", port))
    with bind_unix(folder / "u.sock", 4) as unix:
        assert not matches(unix, ListenAddress("127.0.0.1", 0))


def test_a_taken_port_and_an_impossible_address_are_named(listener):
    port = listener.getsockname()[1]
    with pytest.raises(IngressPortTaken, match=f"127.0.0.1 port {port}: Address already in use"):
        bind_public(ListenAddress("127.0.0.1", port))
    with pytest.raises(IngressPortTaken, match=r"192\.0\.2\.1"):
        bind_public(ListenAddress("192.0.2.1", 80))


async def _let_go_after_a_try(listener):
    waiting = asyncio.create_task(bind_patiently(ListenAddress("127.0.0.1", listener.getsockname()[1])))
    await asyncio.sleep(0)  # it has tried once and failed
    assert not waiting.done()
    listener.close()
    with await waiting as bound:
        return bound.getsockname()


def test_a_port_that_is_free_again_in_a_moment_is_waited_for(listener):
    name = listener.getsockname()
    assert asyncio.run(_let_go_after_a_try(listener)) == name


def test_a_port_that_stays_taken_is_named_in_the_end(listener):
    with pytest.raises(IngressPortTaken, match="Address already in use"):
        asyncio.run(bind_patiently(ListenAddress("127.0.0.1", listener.getsockname()[1]), tries=2))
