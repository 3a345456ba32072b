"""
What becomes of 1,000 nodes and 10,000 replicas when one node is lost: how long the control plane thinks, and how long
it takes until all others have the same routes.

    python bench/many_nodes.py

docs/nodes.md has what it says. The control plane is the real one, its nodes are pretended, and so is the clock. It goes
on by what the control plane really computed (processor time of this machine), messages written and read included, and
by what is pretended: how long a message takes to a node or back, and how long an ingress takes to have other routes.

* **a plan**: one assessment and its plan, the least of several tries: where all is as it is wanted; where one node is
  lost; where every api is to have one replica more;
* **hearing**: processor time to read one report of each node, which each sends every second;
* **lost**: from the death of a node until it counts as lost; what follows is counted from then;
* **acknowledged**: every other node has said that it has a table without the replicas that were there;
* **in effect**: the ingress of every one has it;
* **replaced**: as many replicas as before are ready, and all nodes have the same routes again.

Exit code 1 where a promise is broken: acknowledged within 2 s, a plan for one lost node within 100 ms, any within 1 s.
"""

from __future__ import annotations

import argparse
import gc
import logging
import sys
import time
from collections.abc import Callable, Mapping

import msgspec

from cortex.controlplane.knowntables import KnownTables
from cortex.controlplane.tick import World, tick
from cortex.engines.fake import FakeEngine
from cortex.errors import RetryLater
from cortex.ids import ApiKey, DeploymentName, NodeId, replica_id
from cortex.planning.assessment import assess
from cortex.planning.model import Desired, Lease, LeaseRequest, LeaseState, Snapshot
from cortex.planning.plan import plan
from cortex.planning.reach import LOST_AFTER_S
from cortex.state.records import StateStore
from cortex.testing.builders import a_build, a_deploy, a_node, a_wanted_api
from cortex.testing.clock import FakeClock
from cortex.testing.fake_agent import FakeAgents, FakeLife
from cortex.wire.agent import GiveOrders, KnownRoutes, Observed
from cortex.wire.orders import Orders, StartReplica
from cortex.wire.reports import AgentReport, Phase

REPLICAS = 10
"""Of each api; there are as many apis as nodes."""
TRIES = 5
BEAT_S = 1.0
LINK_S = 0.005
"""To a node, or back."""
INGRESS_S = 0.1
"""Until an ingress has other routes."""
START_S = 0.3
"""Until a replica is ready."""
HEARD = 10
"""As many different reports are read, each as often as there are nodes for it."""
ONE_LOST = "one node lost"
ACKNOWLEDGED_S, LOST_PLAN_MS, ANY_PLAN_MS = 2.0, 100.0, 1000.0


class TimedAgents(FakeAgents):
    """Pretended nodes to and from which messages really are written and read, and take their time."""

    def __init__(self, clock: FakeClock, nodes: list[NodeId]) -> None:
        super().__init__(clock, [a_node(node, cpu_millis=64_000) for node in nodes])
        self.clock = clock
        self.pretended_s = 0.0
        """Processor time that the pretending takes, which no control plane has to spend."""

        self._tables = KnownTables()
        self._heard: dict[NodeId, tuple[str, int]] = {}

    def reports(self) -> tuple[AgentReport, ...]:
        began_s = time.process_time()
        found = super().reports()
        said = []
        for report in found:
            if self._heard.get(report.name) != (report.agent, report.serial):
                self._heard[report.name] = (report.agent, report.serial)
                said.append(message(report, self._tables.known(report)))
        self.pretended_s += time.process_time() - began_s
        for one in said:
            self._tables.completed(_OBSERVED.decode(one).report)
        return found

    def order(self, batches: Mapping[NodeId, Orders]) -> Mapping[NodeId, RetryLater]:
        for turn, orders in enumerate(batches.values()):
            self._tables.note_ordered(orders)
            msgspec.json.encode(GiveOrders(orders=orders, turn=turn, known=self._tables.known(None)))
        began_s = time.process_time()
        self.clock.advance(LINK_S)
        problems = super().order(batches)
        self.clock.advance(LINK_S)
        self.pretended_s += time.process_time() - began_s
        self.reports()
        return problems


def message(report: AgentReport, known: KnownRoutes) -> bytes:
    """What an agent answers."""
    if known.covers(report.routes_revision):
        report = msgspec.structs.replace(report, routes=(), routes_known=True)
    return msgspec.json.encode(Observed(report=report))


class Cluster:
    """A control plane at rest, with an api for each node, whose replicas are on `REPLICAS` nodes each."""

    def __init__(self, nodes: int) -> None:
        self.names = [NodeId(f"node-{number}") for number in range(nodes)]
        self.clock = FakeClock()
        self.state = StateStore()
        self.agents = TimedAgents(self.clock, self.names)
        self.agents.lives = lambda _order: FakeLife(ready_after_s=START_S)
        self.agents.route_delay_s = lambda _node: INGRESS_S
        self.engine = FakeEngine([a_node(name, cpu_millis=64_000) for name in self.names], clock=self.clock)
        self.watched: dict[str, Callable[[], bool]] = {}
        self.marks: dict[str, float] = {}
        """When each of these was so first."""
        leases, starts = [], {name: list[StartReplica]() for name in self.names}
        wanted = []
        for number in range(nodes):
            build = a_build(api=ApiKey(f"d{number}/a"))
            wanted.append(a_wanted_api(build, replicas=REPLICAS, live=True))
            for ordinal in range(REPLICAS):
                name = self.names[(7 * number + 13 * ordinal) % nodes]
                replica = replica_id(build.api, build.revision, ordinal)
                request = LeaseRequest(replica=replica, api=build.api, resources=build.resources, minimum=ordinal == 0)
                leases.append(Lease(request=request, state=LeaseState.GRANTED, node=name))
                starts[name].append(StartReplica(replica=replica, attempt=1, build=build))
        for one in wanted:
            self.state.commit_deploy(a_deploy(one, deployment=DeploymentName(one.api.partition("/")[0])))
        self.engine.recover(leases)
        for name, orders in starts.items():
            FakeAgents.order(self.agents, {name: Orders(epoch=0, orders=tuple(orders))})
        self.clock.advance(START_S + 1.0)
        self.world = World(
            state=self.state,
            engine=self.engine,
            agents=self.agents,
            clock=self.clock,
            epoch=self.state.take_epoch(),
        )

    def react(self) -> float:
        """Tick until there is nothing to do at once; when to look again (s from now)."""
        while True:
            pretended_s, began_s = self.agents.pretended_s, time.process_time()
            looked_s = self.clock.monotonic_s()
            done = tick(self.world)
            self.clock.advance(time.process_time() - began_s - (self.agents.pretended_s - pretended_s))
            if self.world.memory.lost:
                self.marks.setdefault("lost", looked_s)
                for name, so in self.watched.items():
                    if name not in self.marks and so():
                        self.marks[name] = self.clock.monotonic_s()
            if done.wake_after_s != 0:
                return BEAT_S if done.wake_after_s is None else done.wake_after_s

    def run_until(self, so: Callable[[], bool], *, limit_s: float = 60.0) -> None:
        """Let time pass until something is so."""
        end_s = self.clock.monotonic_s() + limit_s
        wake_s = self.react()
        while not so():
            now_s = self.clock.monotonic_s()
            if now_s > end_s:
                raise AssertionError(f"it takes longer than {limit_s:g} s")
            change_s = self.agents.next_change_s()
            self.clock.advance(min(wake_s, BEAT_S, BEAT_S if change_s is None else max(0.0, change_s - now_s)))
            wake_s = self.react()

    def lose(self, node: NodeId) -> dict[str, float]:
        """Have a node die. Returns when (s after that) it was lost, and what the others then had."""
        died_s = self.clock.monotonic_s()
        self.agents.lose_node(node)
        self.watched = {"acknowledged": self.acknowledged, "in effect": self.in_effect, "replaced": self.replaced}
        self.run_until(lambda: "replaced" in self.marks)
        return {name: at_s - died_s for name, at_s in self.marks.items()}

    def seen(self) -> tuple[Desired, Snapshot]:
        memory = self.world.memory
        silent_s = dict(self.agents.silent_s())
        return memory.desired, Snapshot(
            now_s=self.clock.monotonic_s(), nodes=self.agents.reports(), silent_s=silent_s, leases=self.engine.leases()
        )

    # ---- what is waited for -------------------------------------------------------------------------------------

    def at_rest(self) -> bool:
        return not self.world.memory.plan.actions and self.in_effect()

    def acknowledged(self) -> bool:
        """All nodes in reach say that they have the same table, and it names nobody on a lost one."""
        lost = self.world.memory.lost
        reports = [report for report in self.agents.reports() if report.name not in lost]
        if len({report.routes_revision for report in reports}) > 1:
            return False
        return not any(lost & route.nodes.keys() for route in reports[0].routes)

    def in_effect(self) -> bool:
        lost = self.world.memory.lost
        return self.acknowledged() and not any(
            report.pending_routes for report in self.agents.reports() if report.name not in lost
        )

    def replaced(self) -> bool:
        ready = sum(report.phase is Phase.READY for _node, report in self.agents.replicas())
        return ready == len(self.names) * REPLICAS and self.at_rest()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=1000, help="how many, with as many apis (default: %(default)s)")
    nodes = parser.parse_args().nodes
    logging.disable(logging.CRITICAL)
    gc.disable()
    cluster = Cluster(nodes)
    cluster.run_until(cluster.at_rest)
    plans = plans_ms(cluster)
    hearing_ms = least_ms(heard(cluster))
    marks = cluster.lose(cluster.names[nodes // 2])
    lost_s = marks.pop("lost")
    print(f"{nodes} nodes, {nodes} apis, {nodes * REPLICAS} replicas, of which one node is lost")
    for what, took_ms in plans.items():
        print(f"  a plan, {what}: {took_ms:.1f} ms")
    print(f"  hearing each node once: {hearing_ms:.0f} ms")
    print(f"  lost: {lost_s:.2f} s after its death")
    for what, at_s in marks.items():
        print(f"  {what}: {at_s - lost_s:.2f} s after that")
    in_time = marks["acknowledged"] - lost_s <= ACKNOWLEDGED_S
    kept = in_time and plans[ONE_LOST] <= LOST_PLAN_MS and max(plans.values()) <= ANY_PLAN_MS
    return 0 if kept else 1


def heard(cluster: Cluster) -> Callable[[], None]:
    """What it takes to read what each node says every second."""
    tables = KnownTables()
    reports = cluster.agents.reports()[:HEARD]
    said = [message(report, tables.known(tables.completed(report))) for report in reports]

    def hear() -> None:
        for one in said * (len(cluster.names) // len(said)):
            tables.completed(_OBSERVED.decode(one).report)

    return hear


def plans_ms(cluster: Cluster) -> dict[str, float]:
    """Milliseconds of an assessment and its plan, by what there is to do."""
    desired, seen = cluster.seen()
    lost = msgspec.structs.replace(seen, silent_s={**seen.silent_s, cluster.names[0]: 2 * LOST_AFTER_S})
    more = tuple(
        msgspec.structs.replace(api, scale=msgspec.structs.replace(api.scale, replicas=REPLICAS + 1))
        for api in desired.apis
    )
    everything = msgspec.structs.replace(desired, apis=more)
    return {
        "nothing to do": least_ms(lambda: plan(assess(desired, seen))),
        ONE_LOST: least_ms(lambda: plan(assess(desired, lost))),
        "one replica more of each api": least_ms(lambda: plan(assess(everything, seen))),
    }


def least_ms(what: Callable[[], object]) -> float:
    found = []
    for _ in range(TRIES):
        began_s = time.process_time()
        what()
        found.append(time.process_time() - began_s)
    return min(found) * 1000


_OBSERVED = msgspec.json.Decoder(Observed)

if __name__ == "__main__":
    sys.exit(main())
