"""
How long the control plane thinks: one assessment, its plan and the numbers of replicas, for many apis.

    python bench/planning.py

Processor time, the least of several tries, for apis of ten replicas each:

* **everything**: each replica reports something new, each api is to have one replica more, each load is another one;
* **nothing**: a tick that finds everything as it is wanted;
* **loads**: only loads are other ones, as each half second: who is asked, and what the rule says;
* **readings**: what comes before that: taking in the counters of all replicas, and the figures of all windows.

And for 1,000 apis on 1,000 nodes: where all is as it is wanted, and where one node is lost.

Exit code 1 where 1,000 apis take longer than is promised: 100 ms where everything changes, 10 ms where only loads do.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable

import msgspec

from cortex.controlplane.scaling import Scaling
from cortex.engines.fake import FakeEngine
from cortex.ids import ApiKey, NodeId
from cortex.planning.assessment import assess
from cortex.planning.model import Desired, Lease, Snapshot
from cortex.planning.plan import plan
from cortex.planning.reach import LOST_AFTER_S
from cortex.state.records import StateStore
from cortex.testing.builders import NODE, a_build, a_replica, a_route, a_snapshot, a_wanted_api, an_agent_report
from cortex.testing.clock import FakeClock
from cortex.wire.loads import HANDLER, DoorReading, LoadReading, NodeLoads, SeatReading
from cortex.wire.orders import RoutesRevision
from cortex.wire.reports import ReplicaReport

REPLICAS = 10
TRIES = 7
READ_S = 0.5
EVERYTHING_MS, LOADS_MS = 100.0, 10.0
PROMISED_FOR = 1000
NODES = 1000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("apis", nargs="*", type=int, default=[250, 500, 1000, 2000], help="how many apis")
    kept = True
    print(f"{'apis':>6} {'replicas':>9} {'everything':>11} {'nothing':>8} {'loads':>7} {'readings':>9}   (ms)")
    for apis in parser.parse_args().apis:
        everything, nothing, loads, readings = measured(apis)
        print(f"{apis:6} {apis * REPLICAS:9} {everything:11.1f} {nothing:8.1f} {loads:7.1f} {readings:9.1f}")
        if apis == PROMISED_FOR:
            kept = everything <= EVERYTHING_MS and loads <= LOADS_MS
    for what, took_ms in on_many_nodes().items():
        print(f"{NODES} nodes, {NODES * REPLICAS} replicas, {what}: {took_ms:.1f} ms")
    return 0 if kept else 1


def measured(apis: int) -> tuple[float, float, float, float]:
    """Milliseconds, of each in turn."""
    desired, seen = a_world(apis, more=0)
    changed = a_world(apis, more=1)
    assessment = assess(desired, seen)
    scaling = Scaling(
        state=StateStore(),
        clock=FakeClock(),
        latest=lambda: assessment,
        engine=FakeEngine((report.node for report in seen.nodes), clock=FakeClock(), shares_cpu=True),
        downscale_window_s=300.0,
        changed=lambda: None,
    )
    for number in range(1, 70):
        scaling.take(read(seen, number))
    scaling.step()

    def all_changed() -> None:
        nonlocal assessment
        assessment = assess(*changed)
        assert len(plan(assessment).actions) == apis
        scaling.step()

    def taken(reading: NodeLoads) -> Callable[[], None]:
        def take() -> None:
            scaling.take(reading)
            scaling.step()

        return take

    everything = least_ms([all_changed] * TRIES)
    loads = least_ms([scaling.step] * TRIES)
    both = least_ms([taken(read(seen, number)) for number in range(70, 70 + TRIES)])
    return everything, least_ms([lambda: plan(assess(desired, seen))] * TRIES), loads, both - loads


def a_world(apis: int, *, more: int) -> tuple[Desired, Snapshot]:
    wanted, reports, routes = [], [], []
    for number in range(apis):
        build = a_build(api=ApiKey(f"d{number // 10}/a{number}"))
        api = a_wanted_api(build, replicas=REPLICAS, live=True)
        of_api = [a_replica(build, ordinal, in_flight=(number + ordinal + more) % 3) for ordinal in range(REPLICAS)]
        scale = msgspec.structs.replace(api.scale, replicas=REPLICAS + more)
        wanted.append(msgspec.structs.replace(api, scale=scale))
        reports += of_api
        routes.append(a_route(api, *of_api))
    return Desired(apis=tuple(wanted)), a_snapshot(*reports, routes=tuple(routes))


def on_many_nodes() -> dict[str, float]:
    """Milliseconds of a plan, by what there is to do: as many apis as nodes, each on nodes of its own."""
    names = [NodeId(f"node-{number}") for number in range(NODES)]
    replicas: dict[NodeId, list[ReplicaReport]] = {name: [] for name in names}
    wanted, routes = [], []
    for number in range(NODES):
        build = a_build(api=ApiKey(f"d{number // 10}/a{number}"))
        where = [names[(7 * number + 13 * ordinal) % NODES] for ordinal in range(REPLICAS)]
        of_api = [a_replica(build, ordinal) for ordinal in range(REPLICAS)]
        for name, report in zip(where, of_api, strict=True):
            replicas[name].append(report)
        wanted.append(a_wanted_api(build, replicas=REPLICAS, live=True))
        routes.append(a_route(wanted[-1], *of_api, nodes=where))
    nodes = tuple(
        an_agent_report(
            name, replicas=tuple(there), routes=tuple(routes), routes_revision=RoutesRevision(epoch=1, number=1)
        )
        for name, there in replicas.items()
    )
    leases = tuple(Lease.of_running(report, node.name) for node in nodes for report in node.replicas)
    desired = Desired(apis=tuple(wanted))
    seen = Snapshot(now_s=0.0, nodes=nodes, leases=leases, silent_s=dict.fromkeys(names, 0.0))
    lost = msgspec.structs.replace(seen, silent_s={**seen.silent_s, names[0]: 2 * LOST_AFTER_S})
    return {
        "nothing": least_ms([lambda: plan(assess(desired, seen))] * TRIES),
        "one of them lost": least_ms([lambda: plan(assess(desired, lost))] * TRIES),
    }


def read(seen: Snapshot, number: int) -> NodeLoads:
    """Every replica is busy a third of the time."""
    at_s, busy_s = number * READ_S, number * READ_S / 3
    row = SeatReading(row=HANDLER, seats=1, busy_s=busy_s, ended_busy_s=busy_s, full_s=busy_s)
    (node,) = seen.nodes
    return NodeLoads(
        node=NODE,
        agent="agent",
        at_s=at_s,
        replicas=tuple(
            LoadReading(
                replica=report.replica,
                api=report.api,
                revision=report.revision,
                attempt=1,
                at_s=at_s,
                ready_s=0.0,
                rows=(row,),
                ended=number * 3,
                ended_s=busy_s,
                in_flight=1,
                cpu_s=busy_s / 2,
            )
            for report in node.replicas
        ),
        doors=tuple(DoorReading(api=route.api, begun=number * 3 * REPLICAS, queued=0) for route in node.routes),
        busy_cpu_s=number * READ_S * 32,
    )


def least_ms(tries: list[Callable[[], object]]) -> float:
    """Of the tries, without the collection of garbage, which a control plane has at other times."""
    found = []
    gc.collect()
    gc.disable()
    for one in tries:
        began_s = time.process_time()
        one()
        found.append(time.process_time() - began_s)
    gc.enable()
    return min(found) * 1000


if __name__ == "__main__":
    sys.exit(main())
