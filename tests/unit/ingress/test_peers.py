from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex.ids import ApiKey, NodeId
from cortex.ingress.peers import (
    MOST_PEERS,
    IngressPeer,
    PeerPlaces,
    PeerServer,
    PeerShare,
    check_peers,
    chosen,
    place_name,
    place_number,
    tickets,
)

API = ApiKey("iris/a")
names = st.integers(0, 60).map(lambda n: NodeId(f"n{n}"))


def peer(name, host="10.0.0.1", port=8881):
    return IngressPeer(NodeId(name), host, port)


def servers(*weights):
    return [PeerServer(peer=peer(f"n{n}"), place=n, weight=weight) for n, weight in enumerate(weights, 1)]


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        (("b c", "10.0.0.1", 1), "peer name 'b c' is not the name of a node"),
        (("b", "host.of.b", 1), "peer b: 'host.of.b' is not an IP address"),
        (("b", "10.0.0.1", 0), "peer b: port 0 is not 1 to 65535"),
    ],
)
def test_what_haproxy_could_misread_is_no_peer(facts, said):
    with pytest.raises(ValueError, match=said):
        IngressPeer(*facts)


def test_an_address_is_one_word_in_both_families():
    assert peer("b").address == "10.0.0.1:8881"
    assert peer("b", "fd00::2").address == "[fd00::2]:8881"


def test_a_peer_at_another_address_is_another_server():
    (first,) = servers(1)
    moved = PeerServer(peer=peer("n1", "10.0.0.2"), place=1, weight=1)
    assert first.key != moved.key
    assert first.key == PeerServer(peer=peer("n1"), place=1, weight=7).key
    assert ":" in first.key


def test_places_are_read_back():
    assert [place_number(place_name(n)) for n in (1, 16, 300)] == [1, 16, 300]
    assert (place_number("peer:1.00"), place_number("p"), place_number("bulk")) == (None, None, None)


@given(st.lists(st.lists(names, unique=True), max_size=4))
def test_a_peer_keeps_its_place_as_long_as_it_is_there_and_no_two_share_one(turns):
    places = PeerPlaces(size=2)
    for wanted in turns:
        after = places.placed(wanted)
        assert set(after.owners) == set(wanted)
        assert sorted(set(after.owners.values())) == sorted(after.owners.values())
        assert all(1 <= place <= after.size for place in after.owners.values())
        assert all(after.owners[name] == places.owners[name] for name in wanted if name in places.owners)
        places = after


def test_the_places_that_were_written_down_are_those_that_there_are():
    assert PeerPlaces(owners={NodeId("b"): 40}).placed([NodeId("b")]).size == 64


@given(st.lists(st.integers(1, 256), min_size=1, max_size=MOST_PEERS))
def test_everybody_is_drawn_and_who_has_more_more_often(weights):
    found = Counter(tickets(servers(*weights)).split(":"))
    assert found.total() == 16
    counts = [found[server.ticket] for server in servers(*weights)]
    assert all(count >= 1 for count in counts)
    assert all(one >= other for one, a in zip(counts, weights, strict=True)
               for other, b in zip(counts, weights, strict=True) if a > b)  # fmt: skip


def test_of_nobody_no_ticket_is_drawn():
    assert tickets([]) == ""


@given(st.lists(names, unique=True, min_size=1), names)
def test_a_peer_that_goes_changes_one_choice_at_most(found, gone):
    shares = [PeerShare(name, 1) for name in found]
    before = chosen(API, NodeId("door"), shares)
    after = chosen(API, NodeId("door"), [share for share in shares if share.peer != gone])
    assert len(before) == min(MOST_PEERS, len(found))
    assert len(set(before) - set(after)) <= 1
    assert before == tuple(sorted(before, key=lambda share: share.peer))


def test_together_the_doors_ask_everybody():
    shares = [PeerShare(NodeId(f"n{n}"), 1) for n in range(60)]
    asked = {share.peer for door in range(60) for share in chosen(API, NodeId(f"door{door}"), shares)}
    assert len(asked) == 60


@pytest.mark.parametrize(
    ("shares", "peers", "said"),
    [
        ((), ("b", "b"), "there are two peers b"),
        (("b", "b"), ("b",), "api iris/a has one peer twice"),
        (("b", "c"), ("b",), "api iris/a: c is no peer that is known"),
        (tuple(f"n{n}" for n in range(17)), (), "api iris/a has 17 peers, at most 16 are asked"),
    ],
)
def test_what_nobody_can_mean_is_refused(shares, peers, said):
    with pytest.raises(ValueError, match=said):
        check_peers({API: [PeerShare(NodeId(name), 1) for name in shares]}, [peer(name) for name in peers])
