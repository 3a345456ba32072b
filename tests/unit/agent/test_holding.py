"""Tests of `cortex.agent.holding`."""

from __future__ import annotations

from cortex.agent import holding
from cortex.ids import ApiKey, NodeId, Version
from cortex.ingress.peers import PeerShare
from cortex.ingress.routes import IngressRoute, IngressServer
from cortex.wire.orders import SetRoute

API = ApiKey("d/x")
HERE = (IngressServer("r", "/run/r.sock", 8),)
THERE = (PeerShare(NodeId("b"), 1),)


def told(**options) -> IngressRoute:
    return IngressRoute(API, "/d/x", options.pop("servers", ()), 1.0, 100, True, "v1", **options)


def ordered(*, hold: bool = True) -> SetRoute:
    return SetRoute(api=API, path="/d/x", targets=(), version=Version("v1"), hold=hold)


def holds(last_s: float | None, now_s: float, *, hold: bool = True, **options) -> bool:
    reached = {} if last_s is None else {API: last_s}
    ((found),) = holding.with_holds([told(**options)], [ordered(hold=hold)], reached, now_s)
    return found.holds


def test_who_has_a_replica_anywhere_is_held_for_whatever_is_known():
    assert holds(None, 100.0, servers=HERE)
    assert holds(None, 100.0, peers=THERE)
    assert holds(None, 100.0, peers=THERE, hold=False), "it may still be there"


def test_who_had_one_is_held_for_half_a_minute():
    assert [holds(100.0, now_s) for now_s in (100.0, 129.9, 130.0)] == [True, True, False]


def test_who_never_had_one_or_gets_none_any_more_is_not_held_for():
    assert not holds(None, 100.0)
    assert not holds(100.0, 101.0, hold=False)


def test_a_replica_is_known_to_have_been_there_until_the_route_changes():
    with_one = told(peers=THERE)
    known = holding.reached({}, [], [with_one], 100.0)
    assert known == {API: 100.0}
    known = holding.reached(known, [with_one], [told()], 500.0)
    assert known == {API: 500.0}, "it was there all the time"
    assert holding.reached(known, [told()], [told()], 510.0) == {API: 500.0}
    assert holding.reached(known, [told()], [], 510.0) == {}, "one that is routed no more is forgotten"
