"""Where the doors of all nodes are, told to each: a door passes on to the others what it has no replicas for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable

from cortex.ids import NodeId
from cortex.wire.needs import FollowPeers, PeerDoor, PeerDoors
from cortex.wire.reports import AgentReport

LONGEST_WAIT_S = 30.0
"""Whoever follows is answered so often, also where nothing changes."""


class PeerBook:
    """
    Answers agents that follow it, each in a thread of its own.

    Args:
        reports: the agents' last reports. Of a node that is gone the last one stays: its door may be there again, and
            whether it answers is seen by those that ask it.
        nodes: that there are. What the asker has seen of one that we have not heard yet is left as it is: we may just
            have been started.
    """

    def __init__(self, reports: Callable[[], tuple[AgentReport, ...]], nodes: Callable[[], Collection[NodeId]]) -> None:
        self._reports = reports
        self._nodes = nodes
        self._changed = threading.Condition()

    def note(self) -> None:
        """There is another report."""
        with self._changed:
            self._changed.notify_all()

    def answer(self, need: FollowPeers, _node: NodeId) -> PeerDoors:
        with self._changed:
            self._changed.wait_for(lambda: self.doors(need.seen) != need.seen, min(need.wait_s, LONGEST_WAIT_S))
            return PeerDoors(doors=self.doors(need.seen))

    def doors(self, seen: Iterable[PeerDoor] = ()) -> tuple[PeerDoor, ...]:
        """By name, with those of nodes that have not been heard as somebody has seen them."""
        heard = {report.name: report.ingress for report in self._reports() if report.ingress is not None}
        found = [
            PeerDoor(node=node, host=ingress.peer_host, port=ingress.peer_port)
            for node, ingress in heard.items()
            if ingress.peer_host
        ]
        there = self._nodes()
        found += [door for door in seen if door.node not in heard and door.node in there]
        return tuple(sorted(found, key=lambda door: door.node))
