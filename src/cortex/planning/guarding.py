"""
What follows from what replicas say of batches: disagreements to remember, replicas to tell, models to prove. Pure.

Level-triggered like all of planning: what a replica was ordered is compared with what it should be, each time.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from cortex.ids import Revision
from cortex.planning.actions import OrderNode, RecordStop
from cortex.planning.batching import BatchingRecord, BatchingStop, Known
from cortex.planning.model import Desired, Snapshot
from cortex.wire.batching import RULES, BatchingOrder, Mode
from cortex.wire.build import BuildSpec, ModelKey
from cortex.wire.orders import SetReplicaBatching
from cortex.wire.reports import Phase, ReplicaReport


def stops_to_record(desired: Desired, seen: Snapshot) -> tuple[RecordStop, ...]:
    """Disagreements that replicas have seen and that are not remembered yet, also of replicas that nobody wants."""
    known = {(record.model, stop.replica, stop.started_wall_s) for record in desired.batching for stop in record.stops}
    return tuple(
        RecordStop(
            model=report.model,
            stop=BatchingStop(
                api=report.api,
                replica=report.replica,
                started_wall_s=report.started_wall_s,
                runtime=report.batching.runtime,
                disagreement=report.batching.disagreement,
            ),
        )
        for node in seen.nodes
        for report in node.replicas
        if report.batching is not None
        and report.batching.disagreement is not None
        and report.model is not None
        and (report.model, report.replica, report.started_wall_s) not in known
    )


def known_with(desired: Desired, stops: tuple[RecordStop, ...]) -> Known:
    """Everything that is known of models' rows once the stops are recorded."""
    added = (BatchingRecord(model=found.model, rules=RULES, stops=(found.stop,)) for found in stops)
    return Known([*added, *desired.batching])


def batching_orders(desired: Desired, seen: Snapshot, known: Known) -> Iterator[OrderNode]:
    """Replicas that were ordered something else about batches than they should do."""
    builds = {build.revision: build for wanted in desired.apis for build in wanted.builds}
    found: dict[tuple[Revision, str, BatchingOrder, ModelKey | None], BatchingOrder] = {}
    for node in seen.nodes:
        for report in node.replicas:
            if report.batches is None or report.phase is Phase.EXITED:
                continue
            runtime = report.batching.runtime if report.batching is not None else ""
            asked = (report.revision, runtime, report.batches, report.model)
            batches = found.get(asked)
            if batches is None:
                batches = found[asked] = _wanted(report, builds.get(report.revision), known)
            if batches != report.batches:
                order = SetReplicaBatching(replica=report.replica, batches=batches)
                yield OrderNode(node=node.name, api=report.api, order=order)


def _wanted(report: ReplicaReport, build: BuildSpec | None, known: Known) -> BatchingOrder:
    assert report.batches is not None
    runtime = report.batching.runtime if report.batching is not None else ""
    if build is None:  # on its way out: what speaks against batches holds for it as well
        stopped = report.model is not None and known.stop(report.model, runtime) is not None
        return BatchingOrder() if stopped else report.batches
    wanted = known.decision(build, runtime).order
    # What it started with was decided for the runtime that it was expected to have. It may be told to begin only once
    # it has said which one that is: replicas from before there were such orders never do.
    return report.batches if wanted.batches and not runtime else wanted


class ToProve(msgspec.Struct, frozen=True, kw_only=True):
    """A model that an inspection should look at, for replicas that do not batch until it has."""

    build: BuildSpec
    model: ModelKey
    """That of the build."""
    runtime: str
    """What a replica says that it runs on and the model was not tried on; empty if the proof itself is missing."""
    rows: Mode


def to_prove(desired: Desired, seen: Snapshot) -> tuple[ToProve, ...]:
    """
    What is not known of models that are wanted: after a change of the rules or of the runtime, or of a lost record.

    A new version's model is looked at by its deploy. Nothing that failed for good is of interest.
    """
    known, runtimes_of = Known(desired.batching), _runtimes(seen)
    found: dict[tuple[ModelKey, str], ToProve] = {}
    for wanted in desired.apis:
        for build in wanted.builds:
            model = build.model_key
            if model is None or (wanted.failed is not None and build.revision == wanted.build.revision):
                continue
            runtimes = {""} if known.verdict(model, "") is None else runtimes_of.get(build.revision, set())
            for runtime in sorted(runtimes):
                rows = known.to_be_asked(build, runtime)
                if rows != "off":
                    one = ToProve(build=build, model=model, runtime=runtime, rows=rows)
                    found.setdefault((model, runtime), one)
    return tuple(found.values())


def _runtimes(seen: Snapshot) -> dict[Revision, set[str]]:
    """What replicas of each revision say that they run on."""
    found: dict[Revision, set[str]] = {}
    for node in seen.nodes:
        for report in node.replicas:
            if report.phase is not Phase.EXITED and report.batching is not None and report.batching.runtime:
                found.setdefault(report.revision, set()).add(report.batching.runtime)
    return found
