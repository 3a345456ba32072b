"""
The other nodes, as this one knows them: where their doors are.

It is told by the control plane, and kept on the disk: a node that starts anew while the control plane is away passes
requests on to whom it knew.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

import msgspec

from cortex import processes
from cortex.agent.rotation import Neighbours
from cortex.agent.upstream import Upstream
from cortex.errors import CortexError
from cortex.ids import NodeId
from cortex.ingress.peers import IngressPeer
from cortex.wire.needs import FollowPeers, PeerDoor, PeerDoors

log = logging.getLogger(__name__)

FOLLOW_S = 20.0
"""How long the control plane may wait for a change until it answers; it is asked again at once."""
RETRY_S = 1.0


class Neighbourhood:
    """
    Follows where the doors of the others are.

    Args:
        node: we.
        file: `peers.json`.
        on_change: called when they are elsewhere.
    """

    def __init__(self, *, node: NodeId, file: Path, upstream: Upstream, on_change: Callable[[], None]) -> None:
        self._node = node
        self._file = file
        self._upstream = upstream
        self._on_change = on_change
        known = processes.read_record(file, PeerDoors)
        self._doors: tuple[PeerDoor, ...] = known.doors if known is not None else ()

    def now(self) -> Neighbours:
        """As was last heard."""
        return Neighbours(
            node=self._node,
            peers=tuple(
                IngressPeer(name=door.node, host=door.host, port=door.port)
                for door in self._doors
                if door.node != self._node
            ),
        )

    async def follow(self) -> None:
        """Until it is cancelled."""
        while True:
            try:
                found = await self._upstream.ask(FollowPeers(seen=self._doors, wait_s=FOLLOW_S), PeerDoors)
            except CortexError as error:
                log.info("where other nodes are is not known anew: %s", error)
                await asyncio.sleep(RETRY_S)
                continue
            if found.doors != self._doors:
                self._doors = found.doors
                self._keep(found)
                self._on_change()

    def _keep(self, found: PeerDoors) -> None:
        try:
            processes.write_whole(self._file, msgspec.json.encode(found))
        except OSError as error:  # it is asked for again after a restart
            log.warning("%s cannot be written: %s", self._file, error)
