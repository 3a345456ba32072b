"""What is told of nodes: what each has, what is requested of it, and what its replicas use."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from cortex.ids import NodeId
from cortex.wire.build import Resources
from cortex.wire.operator import NodeInfo, NodeShare, NodeState
from cortex.wire.reports import AgentReport, Node, Phase

SHORTEST_WINDOW_S = 1.0
"""Processor time is told in ticks of 10 ms, and reports say it as of when they were made: less would be noise."""


class NodeUsage:
    """
    How many cores the replicas of each node use, from two reports that are far enough apart. Told by one thread; what
    it has found may be read by any.
    """

    def __init__(self) -> None:
        self.cores: Mapping[NodeId, float] = {}
        """Replaced as a whole. A node is absent until two reports have come from it."""
        self._last: dict[NodeId, _Seen] = {}

    def take(self, reports: Iterable[AgentReport], *, now_s: float) -> None:
        """
        Args:
            now_s: monotonic seconds.
        """
        cores: dict[NodeId, float] = {}
        last: dict[NodeId, _Seen] = {}
        for report in reports:
            node, seen = report.name, self._last.get(report.name)
            if seen is None:
                last[node] = _Seen(now_s, report)
                continue
            if node in self.cores:
                cores[node] = self.cores[node]
            last[node] = seen
            passed_s = now_s - seen.at_s
            if report is not seen.report and passed_s >= SHORTEST_WINDOW_S:
                cores[node] = _spent_s(seen.report, report) / passed_s
                last[node] = _Seen(now_s, report)
        self._last, self.cores = last, cores


class _Seen(NamedTuple):
    """A report, and when it was there first."""

    at_s: float
    report: AgentReport


def _spent_s(before: AgentReport, after: AgentReport) -> float:
    """Processor seconds that replicas have used in between."""
    spent = {(one.replica, one.attempt): one.cpu_s for one in before.replicas}
    return sum(max(0.0, one.cpu_s - spent.get((one.replica, one.attempt), 0.0)) for one in after.replicas)


def described(
    nodes: Iterable[Node],
    reports: Iterable[AgentReport],
    requested: Mapping[NodeId, Resources],
    used_cores: Mapping[NodeId, float],
    *,
    doors: Mapping[NodeId, str],
    homes: Mapping[NodeId, str],
    lost: Collection[NodeId] = (),
) -> tuple[NodeInfo, ...]:
    """
    Args:
        nodes: in the order in which they are told.
        requested: by node, what its replicas ask for.
        used_cores: by node, as `NodeUsage` has it.
        doors: by node, the URL of its ingress.
        homes: of those that are on this machine.
        lost: those that are not heard.
    """
    by_node = {report.name: report for report in reports}
    return tuple(
        _described(
            node,
            by_node.get(node.node),
            requested.get(node.node, Resources(cpu_millis=0)),
            used_cores.get(node.node),
            door=doors.get(node.node, ""),
            home=homes.get(node.node),
            is_lost=node.node in lost,
        )
        for node in nodes
    )


def _described(
    node: Node,
    report: AgentReport | None,
    requested: Resources,
    used_cores: float | None,
    *,
    door: str,
    home: str | None,
    is_lost: bool,
) -> NodeInfo:
    replicas = () if report is None or is_lost else report.replicas
    running = [one for one in replicas if one.phase not in (Phase.ASLEEP, Phase.EXITED)]
    return NodeInfo(
        name=node.node,
        state=NodeState.GONE if is_lost else NodeState.STARTING if report is None else NodeState.READY,
        door=door,
        home=home,
        cpu=node.cpu_millis / 1000,
        mem=node.mem_bytes,
        gpu=node.gpus,
        requested=NodeShare(cpu=requested.cpu_millis / 1000, mem=requested.mem_bytes or 0, gpu=requested.gpus),
        used=NodeShare(
            cpu=None if used_cores is None or is_lost else round(used_cores, 3),
            mem=None if report is None or is_lost else sum(one.rss_bytes for one in running),
        ),
        replicas=len(running),
    )
