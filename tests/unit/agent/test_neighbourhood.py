"""The other nodes, as a node knows them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from cortex.agent.neighbourhood import Neighbourhood
from cortex.agent.rotation import Neighbours
from cortex.agent.upstream import ControlPlaneAway
from cortex.ids import NodeId
from cortex.ingress.peers import IngressPeer
from cortex.wire.needs import FollowPeers, Need, PeerDoor, PeerDoors

A, B = NodeId("a"), NodeId("b")
OURS = PeerDoor(node=A, host="127.0.0.1", port=1)
OTHER = PeerDoor(node=B, host="127.0.0.1", port=2)


class Told:
    """Stands for `Upstream`: answers as often as it was told to, then nobody answers any more."""

    def __init__(self, *answers: tuple[PeerDoor, ...] | None) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[PeerDoor, ...]] = []

    async def ask(self, need: Need, kind: type[Any]) -> Any:
        assert isinstance(need, FollowPeers)
        self.asked.append(need.seen)
        if not self.answers:
            await asyncio.Event().wait()
        answer = self.answers.pop(0)
        if answer is None:
            raise ControlPlaneAway("it is away")
        return PeerDoors(doors=answer)

    def stream(self, need: Need) -> AsyncIterator[bytes]:
        raise AssertionError


def followed(file: Path, told: Told, changes: int) -> Neighbours:
    """What is known once it has changed so often."""

    async def follow() -> Neighbours:
        changed = asyncio.Semaphore(0)
        neighbourhood = Neighbourhood(node=A, file=file, upstream=told, on_change=changed.release)
        following = asyncio.ensure_future(neighbourhood.follow())
        async with asyncio.timeout(30.0):
            for _ in range(changes):
                await changed.acquire()
        following.cancel()
        return neighbourhood.now()

    return asyncio.run(follow())


def test_a_node_knows_the_doors_of_the_others_and_is_told_of_what_it_has_not_seen(tmp_path: Path) -> None:
    told = Told((OURS,), (OURS, OTHER))
    found = followed(tmp_path / "peers.json", told, changes=2)
    assert found == Neighbours(A, (IngressPeer(B, "127.0.0.1", 2),))
    assert told.asked[:2] == [(), (OURS,)]


def test_it_is_known_after_a_restart_without_a_control_plane(tmp_path: Path) -> None:
    file = tmp_path / "peers.json"
    known = followed(file, Told((OURS, OTHER)), changes=1)
    assert followed(file, Told(), changes=0) == known


def test_a_control_plane_that_is_away_is_asked_again(tmp_path: Path) -> None:
    assert followed(tmp_path / "peers.json", Told(None, (OURS, OTHER)), changes=1).peers != ()


def test_what_cannot_be_written_is_known_all_the_same(tmp_path: Path) -> None:
    assert followed(tmp_path / "gone" / "peers.json", Told((OURS, OTHER)), changes=1).peers != ()
