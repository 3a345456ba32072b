from __future__ import annotations

import pytest

from cortex.ids import ApiKey
from cortex.ingress.routes import IngressRoute, IngressServer, Readiness, check_unique, servers_in_rotation

READY, HELD, UNREADY, DRAINING = Readiness.READY, Readiness.HELD, Readiness.UNREADY, Readiness.DRAINING


def server(name="a", socket="/run/a.sock", **options):
    return IngressServer(name, socket, options.pop("max_connections", 8), **options)


def route(**options):
    values = {
        "api": ApiKey("iris/a"),
        "path": "/iris/a",
        "servers": (),
        "timeout_s": 1.0,
        "max_body_bytes": 1,
        "retry": True,
        "version": "",
    }
    return IngressRoute(**{**values, **options})


@pytest.mark.parametrize(
    ("states", "in_rotation"),
    [
        ((), ""),
        ((READY, READY), "01"),
        ((READY, UNREADY, READY), "02"),
        ((READY, HELD), "0"),
        ((HELD, READY), "1"),
        ((HELD, HELD), "01"),
        ((HELD, UNREADY), "0"),
        ((UNREADY, UNREADY), ""),
        ((DRAINING,), ""),
        ((DRAINING, HELD), "1"),
        ((DRAINING, READY, DRAINING), "1"),
        ((DRAINING, UNREADY), ""),
    ],
)
def test_ready_servers_are_in_rotation_else_the_held_ones_and_never_a_draining_one(states, in_rotation):
    servers = [server(str(n), f"/run/{n}") for n in range(len(states))]
    readiness = {str(n): state for n, state in enumerate(states)}
    assert servers_in_rotation(servers, readiness) == tuple(servers[int(n)] for n in in_rotation)


def test_a_server_of_which_nothing_is_known_is_not_in_rotation():
    assert servers_in_rotation([server("a"), server("b")], {"b": READY}) == (server("b"),)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"name": "a b"}, "server name"),
        ({"name": "a;b"}, "server name"),
        ({"name": ""}, "server name"),
        ({"socket": "relative"}, "absolute"),
        ({"socket": "/a\nb"}, "absolute"),
        ({"socket": "/" + "x" * 97}, "98 bytes, HAProxy takes at most 97"),
        ({"socket": "/" + "ä" * 49}, "99 bytes"),
        ({"max_connections": 0}, "at least 1"),
    ],
)
def test_a_server_that_haproxy_would_refuse_cannot_be_built(options, complaint):
    with pytest.raises(ValueError, match=complaint):
        server(**options)


def test_a_socket_path_of_97_bytes_is_taken():
    assert server(socket="/" + "x" * 96).socket == "/" + "x" * 96


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"api": "iris"}, "api key"),
        ({"api": "iris/a|b"}, "api key"),
        ({"path": "iris"}, "path"),
        ({"path": "/iris/"}, "path"),
        ({"path": "/iris/a b"}, "path"),
        ({"path": "/iris/a\n/x"}, "path"),
        ({"version": "a|b"}, "version"),
        ({"version": "a\r\nb: c"}, "version"),
        ({"timeout_s": 0.0}, "timeout_s"),
        ({"timeout_s": float("nan")}, "timeout_s"),
        ({"max_body_bytes": -1}, "max_body_bytes"),
        ({"max_queued": 0}, "at least 1"),
        ({"retry_after_s": 0}, "at least 1"),
        ({"servers": (server("a", "/1"), server("a", "/2"))}, "one name"),
    ],
)
def test_a_route_that_could_not_be_written_down_cannot_be_built(options, complaint):
    with pytest.raises(ValueError, match=complaint):
        route(**options)


@pytest.mark.parametrize(
    ("other", "complaint"),
    [
        (route(path="/iris/b"), "api iris/a is routed twice"),
        (route(api=ApiKey("iris/b")), "iris/a and iris/b both want the path /iris/a"),
        (
            route(api=ApiKey("iris/b"), path="/iris/b", servers=(server("a"),)),
            "iris/a and iris/b both have the server a",
        ),
    ],
)
def test_routes_that_contradict_each_other_are_named(other, complaint):
    with pytest.raises(ValueError, match=complaint):
        check_unique([route(servers=(server("a"),)), other])


def test_routes_of_different_apis_are_fine():
    check_unique([route(servers=(server("a"),)), route(api=ApiKey("iris/b"), path="/iris/b", servers=(server("b"),))])
