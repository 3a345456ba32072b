"""What is seen becomes events where it begins and ends, once, whoever was restarted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from cortex.controlplane.chronicle import Chronicle
from cortex.controlplane.events import Events
from cortex.ids import NodeId
from cortex.planning.assessment import assess
from cortex.planning.crashes import Row
from cortex.planning.model import Desired, LeaseState, RunRecord, Snapshot, WantedApi
from cortex.planning.status import statuses
from cortex.testing.builders import API, a_build, a_lease, a_replica, a_route, a_snapshot, a_wanted_api, an_exit
from cortex.testing.clock import FakeClock
from cortex.wire.reports import AgentReport, IngressReport

V1 = a_build("v1")


class Lab:
    """A chronicle over a file of events; `restart` makes both anew."""

    def __init__(self, folder: Path) -> None:
        self.clock = FakeClock()
        self.folder = folder
        self.restart()

    def restart(self, pid: int = 1) -> None:
        self.events = Events(file=self.folder / "events.db", clock=self.clock)
        self.chronicle = Chronicle(tell=self.events.tell, clock=self.clock, version="1.0", pid=pid)

    def take(self, wanted: WantedApi, seen: Snapshot, *records: RunRecord) -> None:
        assessment = assess(Desired(apis=(wanted,), records=records), seen)
        self.chronicle.take(assessment, statuses(assessment))

    def told(self, *, of_machine: bool = False) -> list[tuple[str, str]]:
        return [
            (line.kind, line.text) for line in self.events.page(limit=100).events if (line.api is None) is of_machine
        ]


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    made = Lab(tmp_path)
    yield made
    made.events.close()


def well(wanted: WantedApi) -> Snapshot:
    replica = a_replica(V1)
    return a_snapshot(replica, routes=(a_route(wanted, replica),))


def test_a_full_machine_is_told_once_until_there_is_room_also_across_a_restart(lab: Lab) -> None:
    wanted = a_wanted_api(V1, live=True, replicas=2)
    replica = a_replica(V1)
    leases = (a_lease(V1, 0), a_lease(V1, 1, LeaseState.PENDING, reason="100Mi are left"))
    full = a_snapshot(replica, leases=leases, routes=(a_route(wanted, replica),))
    lab.take(wanted, well(wanted))
    assert lab.told() == []
    lab.take(wanted, full)
    lab.take(wanted, full)
    lab.events.close()
    lab.restart()
    lab.take(wanted, full)
    assert [kind for kind, _ in lab.told()] == ["machine full"]
    lab.take(wanted, well(wanted))
    assert [kind for kind, _ in lab.told()] == ["machine full", "room"]


def test_replicas_that_end_again_and_again_are_told_as_one_condition_that_ends(lab: Lab) -> None:
    wanted = a_wanted_api(V1, live=True)
    crashing = RunRecord(
        api=API,
        revision=V1.revision,
        crashes=3,
        last_exit=an_exit(signal=9),
        row=Row(count=3, ages_s=(2.0, 1.0, 0.0), crashing=True),
    )
    lab.take(wanted, well(wanted), crashing)
    lab.take(
        wanted,
        well(wanted),
        msgspec.structs.replace(crashing, crashes=4, row=Row(count=4, ages_s=(2.0, 1.0, 0.0), crashing=True)),
    )
    lab.take(wanted, well(wanted))
    assert lab.told() == [
        ("crashing", "3 crashes in a row; the last: killed by signal 9 (SIGKILL)"),
        ("recovered", "its replicas stay up: 1 of 1 ready"),
    ]


def test_before_every_node_has_reported_nothing_is_told(lab: Lab) -> None:
    wanted = a_wanted_api(V1, live=True)
    lab.take(wanted, a_snapshot(settled=False))
    assert (lab.told(), lab.told(of_machine=True)) == ([], [])


# ---- Cortex itself ---------------------------------------------------------------------------------------------------


def node(lab: Lab, agent: str, *, started_ago_s: float = 0.0, restarts: int = 0, pid: int = 7) -> Snapshot:
    (report,) = a_snapshot().nodes
    ingress = IngressReport(up=True, host="h", port=1, pid=9, restarts=restarts)
    report = msgspec.structs.replace(
        report, agent=agent, pid=pid, started_wall_s=0.0, up_s=started_ago_s, ingress=ingress
    )
    assert isinstance(report, AgentReport)
    return msgspec.structs.replace(a_snapshot(), nodes=(report,))


def test_starts_of_our_processes_are_told_once(lab: Lab) -> None:
    wanted = a_wanted_api(V1)
    for _ in range(3):
        lab.take(wanted, node(lab, "a1"))
    assert lab.told(of_machine=True) == [
        ("started", "the control plane 1.0 (pid 1) was started"),
        ("started", "the agent (pid 7) was started"),
    ]


def test_another_control_plane_says_that_it_took_over_and_nothing_of_what_ran_on(lab: Lab) -> None:
    wanted = a_wanted_api(V1)
    lab.take(wanted, node(lab, "a1"))
    lab.clock.advance(4000)
    lab.restart(pid=2)
    lab.take(wanted, node(lab, "a1", started_ago_s=4000))
    assert lab.told(of_machine=True)[2:] == [
        ("started", "the control plane 1.0 (pid 2) was started again: the one before had ended, what served went on")
    ]


def test_agents_of_several_nodes_are_told_each_with_its_node_and_not_again_across_a_restart(lab: Lab) -> None:
    wanted = a_wanted_api(V1)

    def three() -> Snapshot:
        reports = [report for number in (1, 2, 3) for report in node(lab, f"a{number}", pid=number).nodes]
        nodes = tuple(
            msgspec.structs.replace(
                report, node=msgspec.structs.replace(report.node, node=NodeId(f"node-{report.pid}"))
            )
            for report in reports
        )
        return msgspec.structs.replace(a_snapshot(), nodes=nodes)

    lab.take(wanted, three())
    agents = [("started", f"the agent of node-{number} (pid {number}) was started") for number in (1, 2, 3)]
    assert lab.told(of_machine=True) == [("started", "the control plane 1.0 (pid 1) was started"), *agents]
    lab.restart(pid=2)
    lab.take(wanted, three())
    assert [line for line in lab.told(of_machine=True) if "agent" in line[1]] == agents


def test_another_agent_and_another_ingress_are_told(lab: Lab) -> None:
    wanted = a_wanted_api(V1)
    lab.take(wanted, node(lab, "a1"))
    lab.clock.advance(4000)
    lab.take(wanted, node(lab, "a2", pid=8))
    lab.take(wanted, node(lab, "a2", pid=8, restarts=1))
    lab.take(wanted, node(lab, "a2", pid=8, restarts=1))
    assert lab.told(of_machine=True)[2:] == [
        ("started", "the agent (pid 8) was started again: the one before (pid 7) had ended, what served went on"),
        ("started", "the ingress (pid 9) was started again: the one before had ended, and its connections with it"),
    ]
