"""Ray as its engine sees it, without processes: raylets come and go, and groups are placed, moved and refused."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import msgspec

from cortex.engines.ray.groups import CREATED, WAITING
from cortex.engines.ray.messages import Additions, Booted, BootOrder, Bundle, ClusterSeen, Group, NewGroup, RayNode
from cortex.errors import RetryLater


def a_raylet(name: str, *, raylet: str = "", **fields: Any) -> RayNode:
    """
    A node of a cluster, with plenty of room and no GPU.

    Args:
        raylet: Ray's id of it; by default one that says its name.
    """
    plenty = {"cpus": 8.0, "memory": 8e9}
    return RayNode(raylet=raylet or f"raylet-{name}", name=name, address=name, **{**plenty, **fields})


class FakeRay:
    """A cluster. Groups are placed in the order of asking, whenever one looks."""

    def __init__(self, *nodes: RayNode) -> None:
        self.nodes = list(nodes)
        self.groups: list[Group] = []
        self.additions = Additions()
        self.unreachable = False
        """While true every call raises RetryLater."""
        self.stingy: set[str] = set()
        """Raylets that give no room, whatever they say that they have."""
        self.given_back: list[str] = []
        self.boots: dict[str, BootOrder] = {}
        """Boots that are under way, by their raylets, until `end_boot`."""
        self._booted: list[Booted] = []
        self.asked = 0
        """How many groups were ever made or removed."""
        self._ids = itertools.count(1)

    # ---- as the engine's calls ----------------------------------------------------------------------------------

    def look(self) -> ClusterSeen:
        self._reach()
        for number, group in enumerate(self.groups):
            self.groups[number] = self._placed(group)
        booted, self._booted = tuple(self._booted), []
        return ClusterSeen(
            nodes=tuple(self.nodes),
            groups=tuple(self.groups),
            additions=self.additions,
            booting=tuple(self.boots),
            booted=booted,
        )

    def change(self, *, remove: Sequence[str], make: Sequence[NewGroup]) -> None:
        self._reach()
        self.asked += len(remove) + len(make)
        self.groups = [group for group in self.groups if group.id not in remove]
        for new in make:
            if any(group.name == new.name for group in self.groups):
                continue  # of which Ray says so, and which one looks at again
            group = Group(
                id=f"{next(self._ids):032x}",
                name=new.name,
                state="PENDING",
                raylet="",
                bundle=new.bundle,
                selector=new.selector,
            )
            self.groups.append(group)

    def give_back(self, raylet: str, *, reason: str, within_s: float) -> None:
        self._reach()
        self.given_back.append(raylet)
        self.nodes = [
            msgspec.structs.replace(node, draining=True) if node.raylet == raylet else node for node in self.nodes
        ]

    def boot(self, raylet: str, order: BootOrder) -> None:
        self._reach()
        self.boots[raylet] = order

    def close(self) -> None:
        pass

    # ---- what happens -------------------------------------------------------------------------------------------

    def lose(self, raylet: str) -> None:
        """Ray has noticed that a node is gone, and moves what was there where it may be."""
        self.nodes = [node for node in self.nodes if node.raylet != raylet]
        self.groups = [
            msgspec.structs.replace(group, state="RESCHEDULING") if group.raylet == raylet else group
            for group in self.groups
        ]

    def end_boot(self, raylet: str, problem: str = "") -> None:
        del self.boots[raylet]
        self._booted.append(Booted(raylet=raylet, problem=problem))

    def names(self) -> dict[str, str]:
        """State and place of each group, by its name."""
        return {group.name: f"{group.state} {group.raylet}".strip() for group in self.groups}

    # ---- placing ------------------------------------------------------------------------------------------------

    def _reach(self) -> None:
        if self.unreachable:
            raise RetryLater("Ray does not answer", after_s=1.0)

    def _placed(self, group: Group) -> Group:
        if group.state not in WAITING and group.state != "RESCHEDULING":
            return group
        for node in self.nodes:
            if self._may_be_on(group, node) and self._has_room(node, group.bundle):
                return msgspec.structs.replace(group, state=CREATED, raylet=node.raylet)
        return group

    def _may_be_on(self, group: Group, node: RayNode) -> bool:
        selector = group.selector
        if node.draining or node.raylet in self.stingy:
            return False
        return selector is None or (node.raylet in selector.raylets) != selector.others

    def _has_room(self, node: RayNode, bundle: Bundle) -> bool:
        held = [group.bundle for group in self.groups if group.state == CREATED and group.raylet == node.raylet]
        return (
            sum(one.cpus for one in held) + bundle.cpus <= node.cpus
            and sum(one.memory for one in held) + bundle.memory <= node.memory
            and sum(one.gpus for one in held) + bundle.gpus <= node.gpus
        )
