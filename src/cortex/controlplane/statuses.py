"""From what was observed to what is shown: one `ApiStatus` an api. Glue between `planning.status` and the wire."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

from cortex.controlplane.observe import observe
from cortex.controlplane.world import World
from cortex.ids import ApiKey, route_path, short, split_api_key
from cortex.planning.batching import Decision
from cortex.planning.model import RunRecord, WantedApi
from cortex.planning.status import StatusView, statuses
from cortex.state.base import DeploymentRecord
from cortex.wire.operator import ApiStatus, Batching, DeploymentStatus, Ends, Status, Waits
from cortex.wire.reports import ReplicaReport

_MOVING = frozenset((Status.CREATING, Status.UPDATING, Status.STOPPING))


def current(world: World, ingress_url: str) -> tuple[ApiStatus, ...]:
    """The status of every api now. A `World` belongs to one thread."""
    observation = observe(world)
    wanted = {api.api: api for api in observation.desired.apis}
    views = statuses(observation.desired, observation.seen, world.rules)
    return tuple(_shown(key, wanted.get(key), view, ingress_url) for key, view in views.items())


def deployments(records: Iterable[DeploymentRecord], apis: Iterable[ApiStatus]) -> tuple[DeploymentStatus, ...]:
    """Every deployment with what is true of its apis together."""
    known = {str(record.name): record for record in records}
    by_name: dict[str, list[ApiStatus]] = {name: [] for name in known}
    for api in apis:
        by_name.setdefault(api.deployment, []).append(api)
    return tuple(
        DeploymentStatus(
            name=name,
            status=_together([api.status for api in found]),
            apis=len(found),
            last_updated=rfc3339(known[name].updated_wall_s) if name in known else None,
            source=known[name].source if name in known else "",
        )
        for name, found in sorted(by_name.items())
    )


def rfc3339(wall_s: float) -> str:
    """`2026-01-31T12:00:00Z`."""
    return datetime.fromtimestamp(wall_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _shown(key: ApiKey, wanted: WantedApi | None, view: StatusView, ingress_url: str) -> ApiStatus:
    deployment, name = split_api_key(key)
    return ApiStatus(
        deployment=deployment,
        name=name,
        status=view.status,
        endpoint=ingress_url + route_path(key),
        version=short(wanted.build.version) if wanted else "",
        last_updated=rfc3339(wanted.deployed_wall_s) if wanted and wanted.deployed_wall_s else None,
        replicas=view.counts,
        reason=view.reason,
        problem=view.problem,
        ends=_ends(view.ends) if view.ends is not None else None,
        waits=_waits(view.waits) if view.waits is not None else None,
        crashes=view.crashes,
        progress=view.progress,
        serving=view.serving,
        notes=view.notes,
        batching=_batching(view.batching) if view.batching is not None else None,
        sample_problem=view.sample_problem,
    )


def _ends(record: RunRecord) -> Ends:
    last = record.last_exit
    return Ends(
        count=record.row.count,
        since=rfc3339(record.row.since_wall_s),
        exit_code=last.code if last is not None else None,
        signal=last.signal if last is not None else None,
        last_lines=last.last_lines if last is not None else (),
        request=last.request if last is not None else "",
    )


def _waits(report: ReplicaReport) -> Waits:
    return Waits(
        replica=report.replica,
        doing=report.progress or report.phase,
        since=rfc3339(report.got_on_wall_s),
        until=rfc3339(report.given_up_wall_s),
    )


def _batching(decision: Decision) -> Batching:
    verdict, stop = decision.verdict, decision.stop
    seen_in = stop if decision.disagreement is not None else None
    return Batching(
        batches=decision.order.batches,
        text=decision.text,
        mode=decision.mode,
        runtime=decision.runtime,
        proof=verdict.proof if verdict is not None else None,
        trial=verdict.trial if verdict is not None else None,
        disagreement=decision.disagreement,
        disagreed=rfc3339(seen_in.wall_s) if seen_in is not None else None,
        disagreed_in=seen_in.replica if seen_in is not None else "",
    )


def _together(found: list[Status]) -> str:
    if not found:
        return "empty"
    if all(status is Status.LIVE for status in found):
        return "live"
    if any(status in _MOVING for status in found):
        return "updating"
    return "error"
