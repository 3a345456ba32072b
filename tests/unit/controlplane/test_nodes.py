"""What is told of nodes."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from cortex.controlplane.nodes import NodeUsage, described
from cortex.ids import NodeId
from cortex.testing.builders import NODE, a_build, a_node, a_replica, an_agent_report
from cortex.wire.build import Resources
from cortex.wire.operator import NodeShare, NodeState
from cortex.wire.reports import AgentReport, Phase, ReplicaReport

OTHER = NodeId("other")


def spending(*replicas: tuple[int, float], attempt: int = 1) -> AgentReport:
    """A report of replicas with what each has used, by ordinal."""
    return an_agent_report(
        replicas=tuple(
            msgspec.structs.replace(a_replica(ordinal=ordinal, attempt=attempt), cpu_s=cpu_s)
            for ordinal, cpu_s in replicas
        )
    )


def cores_after(*seen: tuple[float, AgentReport]) -> float | None:
    usage = NodeUsage()
    for now_s, report in seen:
        usage.take([report], now_s=now_s)
    return usage.cores.get(NODE)


def test_cores_are_what_was_used_between_two_reports() -> None:
    assert cores_after((10.0, spending((0, 1.0), (1, 5.0))), (14.0, spending((0, 2.0), (1, 6.0)))) == 0.5


def test_nothing_is_known_from_one_report() -> None:
    assert cores_after((10.0, spending((0, 1.0)))) is None


def test_the_same_report_again_says_nothing_new() -> None:
    first, second = spending((0, 1.0)), spending((0, 3.0))
    assert cores_after((10.0, first), (14.0, second), (18.0, second)) == 0.5


def test_reports_that_come_fast_are_taken_together() -> None:
    seen = [(10.0, spending((0, 0.0))), (10.4, spending((0, 0.1))), (10.8, spending((0, 0.2)))]
    assert cores_after(*seen) is None
    assert cores_after(*seen, (12.0, spending((0, 1.0)))) == 0.5


def test_a_replica_that_was_not_there_before_counts_from_its_beginning() -> None:
    assert cores_after((0.0, spending()), (4.0, spending((0, 2.0)))) == 0.5
    assert cores_after((0.0, spending((0, 9.0))), (4.0, spending((0, 2.0), attempt=2))) == 0.5


def test_a_replica_that_is_gone_takes_nothing_away() -> None:
    assert cores_after((0.0, spending((0, 9.0), (1, 1.0))), (4.0, spending((1, 3.0)))) == 0.5


def test_a_node_that_reports_no_more_is_forgotten() -> None:
    usage = NodeUsage()
    usage.take([spending((0, 1.0))], now_s=0.0)
    usage.take([spending((0, 2.0))], now_s=4.0)
    usage.take([], now_s=8.0)
    assert usage.cores == {}


def told(replicas: Sequence[ReplicaReport]) -> tuple[int, NodeShare]:
    (node,) = described([a_node()], [an_agent_report(replicas=tuple(replicas))], {}, {}, doors={}, homes={})
    return node.replicas, node.used


def test_only_processes_count_as_replicas() -> None:
    build = a_build()
    phases = [Phase.READY, Phase.LOADING, Phase.DRAINING, Phase.ASLEEP, Phase.EXITED]
    replicas = [
        msgspec.structs.replace(a_replica(build, ordinal, phase), rss_bytes=100) for ordinal, phase in enumerate(phases)
    ]
    assert told(replicas) == (3, NodeShare(mem=300))


def test_a_node_that_has_not_reported_is_starting_and_nothing_is_known_of_its_use() -> None:
    nodes = described(
        [a_node(cpu_millis=2500, gpus=2), a_node(OTHER)],
        [an_agent_report()],
        {NODE: Resources(cpu_millis=400, mem_bytes=2**20, gpus=1)},
        {NODE: 0.12345},
        doors={NODE: "http://127.0.0.1:1"},
        homes={NODE: "/h/a"},
    )
    ready, starting = nodes
    assert (ready.name, ready.state, ready.cpu, ready.gpu, ready.door, ready.home) == (
        *(NODE, NodeState.READY, 2.5, 2),
        *("http://127.0.0.1:1", "/h/a"),
    )
    assert (ready.requested, ready.used.cpu) == (NodeShare(cpu=0.4, mem=2**20, gpu=1), 0.123)
    assert (starting.name, starting.state, starting.door, starting.home) == (OTHER, NodeState.STARTING, "", None)
    assert (starting.requested, starting.used) == (NodeShare(cpu=0.0, mem=0, gpu=0), NodeShare())


def test_a_node_that_is_not_heard_is_gone_with_all_that_it_last_said() -> None:
    (node,) = described(
        [a_node()], [an_agent_report(replicas=(a_replica(),))], {}, {NODE: 1.0}, doors={}, homes={}, lost={NODE}
    )
    assert (node.state, node.replicas, node.used) == (NodeState.GONE, 0, NodeShare())
