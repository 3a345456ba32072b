"""Where the doors of all nodes are, as agents are told."""

from __future__ import annotations

import threading

import msgspec

from cortex.controlplane.peerdoors import PeerBook
from cortex.ids import NodeId
from cortex.testing.builders import an_agent_report
from cortex.wire.needs import FollowPeers, PeerDoor
from cortex.wire.reports import AgentReport, IngressReport

A, B = NodeId("a"), NodeId("b")


def reported(node: NodeId, port: int = 0) -> AgentReport:
    ingress = IngressReport(up=True, host="0.0.0.0", port=80, peer_host="10.0.0.1" if port else "", peer_port=port)
    return msgspec.structs.replace(an_agent_report(node), ingress=ingress)


def test_who_has_seen_nothing_is_told_at_once_by_name_and_without_doors_that_listen_for_nobody() -> None:
    reports = (reported(B, 2), an_agent_report(NodeId("c")), reported(NodeId("d")), reported(A, 1))
    book = PeerBook(lambda: reports, lambda: set())
    told = book.answer(FollowPeers(seen=(), wait_s=1e9), A)
    assert told.doors == (PeerDoor(node=A, host="10.0.0.1", port=1), PeerDoor(node=B, host="10.0.0.1", port=2))


def test_who_has_seen_it_all_is_told_once_it_changes() -> None:
    reports = [reported(A, 1)]
    book = PeerBook(lambda: tuple(reports), lambda: set())
    seen = book.doors()
    told: list[tuple[PeerDoor, ...]] = []
    following = threading.Thread(target=lambda: told.append(book.answer(FollowPeers(seen=seen, wait_s=30.0), A).doors))
    following.start()
    reports.append(reported(B, 2))
    book.note()
    following.join(30.0)
    assert told == [book.doors()]
    assert told != [seen]


def test_nobody_waits_longer_than_they_want() -> None:
    book = PeerBook(lambda: (), lambda: set())
    assert book.answer(FollowPeers(seen=(), wait_s=0.0), A).doors == ()


def test_a_control_plane_that_has_just_come_leaves_alone_what_is_known_of_nodes_that_it_has_not_heard() -> None:
    reports: list[AgentReport] = []
    book = PeerBook(lambda: tuple(reports), lambda: {A, B})
    moved, other, former = (PeerDoor(node=NodeId(name), host="10.0.0.1", port=9) for name in "abc")
    seen = (moved, other)
    assert book.answer(FollowPeers(seen=(*seen, former), wait_s=1e9), A).doors == seen, "but for a node that is no more"
    reports.append(reported(A, 1))
    told = book.answer(FollowPeers(seen=seen, wait_s=1e9), A).doors
    assert told == (PeerDoor(node=A, host="10.0.0.1", port=1), other)
