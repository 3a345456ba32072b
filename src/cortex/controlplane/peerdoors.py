"""Where the doors of all nodes are, told to each: a door passes on to the others what it has no replicas for."""

from __future__ import annotations

import threading
from collections.abc import Callable

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
    """

    def __init__(self, reports: Callable[[], tuple[AgentReport, ...]]) -> None:
        self._reports = reports
        self._changed = threading.Condition()

    def note(self) -> None:
        """There is another report."""
        with self._changed:
            self._changed.notify_all()

    def answer(self, need: FollowPeers, _node: NodeId) -> PeerDoors:
        with self._changed:
            self._changed.wait_for(lambda: self.doors() != need.seen, min(need.wait_s, LONGEST_WAIT_S))
            return PeerDoors(doors=self.doors())

    def doors(self) -> tuple[PeerDoor, ...]:
        """By name."""
        found = [
            PeerDoor(node=report.name, host=report.ingress.peer_host, port=report.ingress.peer_port)
            for report in self._reports()
            if report.ingress is not None and report.ingress.peer_host
        ]
        return tuple(sorted(found, key=lambda door: door.node))
