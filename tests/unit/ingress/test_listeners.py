from __future__ import annotations

import asyncio
import contextlib
import socket
import tempfile
from pathlib import Path

import pytest

from cortex.binding import bind_unix
from cortex.ingress.configuration import Tier
from cortex.ingress.handover import ListenAddress, bind_public
from cortex.ingress.listeners import Listeners

ANYWHERE = ListenAddress("127.0.0.1", 0)
BOTH = (Tier.BULK, Tier.DOOR)


@pytest.fixture
def bulk():
    with tempfile.TemporaryDirectory(prefix="cortex-", dir="/tmp") as folder:
        yield Path(folder) / "b.sock"


@pytest.fixture
def listeners(bulk):
    with contextlib.closing(Listeners([ANYWHERE], {Tier.BULK: (bulk,)})) as listeners:
        yield listeners


def test_what_nobody_holds_is_bound(listeners, bulk):
    asyncio.run(listeners.bind_missing(BOTH))
    ((host, port),) = listeners.addresses()
    assert (host, listeners.binds(Tier.DOOR)) == ("127.0.0.1", (f"ipv4@127.0.0.1:{port}",))
    assert listeners.binds(Tier.BULK) == (f"unix@{bulk}",)


def test_sockets_of_a_worker_are_kept_where_they_are_wanted(listeners, bulk):
    public, behind = bind_public(ANYWHERE), bind_unix(bulk, 4)
    copies = [socket.socket(fileno=listener.detach()) for listener in (public.dup(), behind.dup())]
    other = bind_public(ANYWHERE)
    address = public.getsockname()
    with other:
        assert listeners.take_back([public, behind]) == []
        assert listeners.take_back([*copies, other]) == [other]
        assert [copy.fileno() for copy in copies] == [-1, -1]
        asyncio.run(listeners.bind_missing(BOTH))
        assert (listeners.addresses(), listeners.of(Tier.BULK)) == ((address,), [behind])


def test_the_socket_for_peers_is_no_public_one(bulk):
    peer = bind_public(ANYWHERE)
    host, port = peer.getsockname()
    with contextlib.closing(
        Listeners([ANYWHERE], {Tier.BULK: (bulk,)}, for_peers=ListenAddress(host, port))
    ) as listeners:
        copy = socket.socket(fileno=peer.dup().detach())
        assert listeners.take_back([peer, copy]) == []
        asyncio.run(listeners.bind_missing([Tier.DOOR]))
        ((_, public),) = listeners.addresses()
        assert public != port
        assert listeners.peer_bind() == f"ipv4@127.0.0.1:{port}"
        assert listeners.binds(Tier.DOOR) == (f"ipv4@127.0.0.1:{public}",)
        assert peer in listeners.of(Tier.DOOR)
        listeners.stop_public()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, port))


def test_of_what_is_bound_already_the_wanted_is_kept_and_the_rest_closed(bulk):
    first, second = bind_public(ANYWHERE), bind_public(ANYWHERE)
    address = first.getsockname()
    with contextlib.closing(Listeners([ANYWHERE], {Tier.BULK: (bulk,)}, [first, second])) as listeners:
        asyncio.run(listeners.bind_missing([Tier.DOOR]))
        assert (listeners.addresses(), second.fileno()) == ((address,), -1)


def test_nobody_connects_to_what_was_given_up_though_others_hold_it_open(listeners):
    asyncio.run(listeners.bind_missing([Tier.DOOR]))
    (address,) = listeners.addresses()
    (listener,) = listeners.of(Tier.DOOR)
    with listener.dup():
        socket.create_connection(address).close()
        listeners.stop_public()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)
    assert listeners.addresses() == ()
