"""Wanted state, reports and snapshots with sane defaults: a test states only what it is about."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cortex.artifacts import samples
from cortex.ids import (
    ApiKey,
    DeploymentName,
    DeviceId,
    NodeId,
    ReplicaId,
    Revision,
    Version,
    replica_id,
    route_path,
    split_api_key,
)
from cortex.planning.load import ApiLoad
from cortex.planning.model import ApiSettings, Lease, LeaseRequest, LeaseState, Scale, Snapshot, WantedApi
from cortex.state.base import ApiRecord, DeployChange, DeployedApi, DeploymentRecord, VersionRecord
from cortex.wire.batching import BatchingOrder, BatchingState
from cortex.wire.build import BuildSpec, ModelArtifact, Resources, Sample
from cortex.wire.orders import RoutesRevision, SetRoute
from cortex.wire.reports import AgentReport, ExitReport, IngressReport, Node, Phase, ReplicaReport

API = ApiKey("iris/sklearn")
NODE = NodeId("local")


def a_digest(label: str) -> str:
    """64 hex digits, the same for the same label."""
    return hashlib.sha256(label.encode()).hexdigest()


def a_build(
    label: str = "v1",
    *,
    api: ApiKey = API,
    resources: Resources | None = None,
    sample: Sample | None = None,
    model: str = "",
) -> BuildSpec:
    """
    A build; another label or other resources make another revision, another label another version.

    Args:
        model: label of its model; by default each label has a model of its own.
    """
    resources = resources or Resources()
    room = f"{resources.cpu_millis} {resources.mem_bytes} {resources.gpus}"
    return BuildSpec(
        api=api,
        version=Version(a_digest(f"{api} {label}")),
        revision=Revision(a_digest(f"{api} {label} {room}")),
        runtime="onnx",
        model=ModelArtifact(format="onnx", tree=a_digest(f"model {model or label}"), entry="model.onnx"),
        resources=resources,
        sample=sample,
    )


def a_sample(body: bytes, **fields: Any) -> Sample:
    """A sample with this body, which need not be stored anywhere."""
    return Sample(tree=samples.tree_of(body), **fields)


def a_sample_at_hand(folder: Path, body: bytes, **fields: Any) -> dict[str, Any]:
    """A sample's fields of a `ReplicaSpec`, with its body in a file of the folder."""
    sample = a_sample(body, **fields)
    file = folder / f"sample-{sample.tree[:8]}"
    file.write_bytes(body)
    return {"sample": sample, "sample_path": str(file)}


def a_wanted_api(
    build: BuildSpec | None = None,
    *,
    serving: BuildSpec | None = None,
    replicas: int = 1,
    live: bool | None = None,
    min_replicas: int = 1,
    force: bool = False,
    watch_s: float = 120.0,
) -> WantedApi:
    """
    An api as the store has it.

    Args:
        serving: the build that was live; by default none, i.e. a first deploy.
        replicas: wanted now, and when the rollout began.
        live: whether `build` is live; by default whether it is what serves.
    """
    build = build or a_build()
    if live is None:
        live = serving is not None and serving.revision == build.revision
    if live and serving is None:
        serving = build
    return WantedApi(
        api=build.api,
        build=build,
        serving=serving,
        serving_was_live=serving is not None,
        scale=Scale(replicas=replicas),
        rollout_replicas=replicas,
        min_replicas=min_replicas,
        path=route_path(build.api),
        force=force,
        watch_s=watch_s,
        live_wall_s=0.0 if live else None,
    )


def a_replica(
    build: BuildSpec | None = None,
    ordinal: int = 0,
    phase: Phase = Phase.READY,
    *,
    attempt: int = 1,
    was_ready: bool | None = None,
    in_flight: int = 0,
    exit: ExitReport | None = None,
    batches: bool | None = None,
    batching: BatchingState | None = None,
) -> ReplicaReport:
    """
    A replica as its agent reports it.

    Args:
        batches: what it was ordered; by default its agent takes no such orders.
    """
    build = build or a_build()
    if phase is Phase.EXITED and exit is None:
        exit = an_exit()
    return ReplicaReport(
        replica=replica_id(build.api, build.revision, ordinal),
        api=build.api,
        version=build.version,
        revision=build.revision,
        attempt=attempt,
        phase=phase,
        resources=build.resources,
        was_ready=phase in (Phase.READY, Phase.DRAINING) if was_ready is None else was_ready,
        in_flight=in_flight,
        model=build.model_key,
        batches=None if batches is None else BatchingOrder(batches),
        batching=batching,
        exit=exit,
    )


def an_exit(
    *,
    code: int | None = 1,
    signal: int | None = None,
    drained: bool = False,
    oom: bool = False,
    peak_bytes: int = 0,
    permanent: bool = False,
) -> ExitReport:
    """How a replica ended; by default with exit code 1."""
    if signal is not None or drained:
        code = 0 if drained else None
    return ExitReport(
        wall_s=0.0, code=code, signal=signal, drained=drained, oom=oom, peak_bytes=peak_bytes, permanent=permanent
    )


def a_lease(
    build: BuildSpec | None = None,
    ordinal: int = 0,
    state: LeaseState = LeaseState.GRANTED,
    *,
    node: NodeId | None = NODE,
    surge: bool = False,
    minimum: bool | None = None,
    reason: str = "",
) -> Lease:
    """
    A lease as the engine has it.

    Args:
        minimum: by default the first of a build is of its minimum.
    """
    build = build or a_build()
    return Lease(
        request=LeaseRequest(
            replica=replica_id(build.api, build.revision, ordinal),
            api=build.api,
            resources=build.resources,
            surge=surge,
            minimum=ordinal == 0 if minimum is None else minimum,
        ),
        state=state,
        node=None if state is LeaseState.PENDING else node,
        reason=reason,
    )


def a_route(
    wanted: WantedApi,
    *targets: ReplicaReport | ReplicaId,
    build: BuildSpec | None = None,
    hold: bool = True,
    nodes: Iterable[NodeId] = (),
) -> SetRoute:
    """The route of an api to these replicas."""
    return SetRoute(
        api=wanted.api,
        path=wanted.path or route_path(wanted.api),
        targets=tuple(sorted(t if isinstance(t, str) else t.replica for t in targets)),
        version=(build or wanted.build).version,
        timeout_s=wanted.timeout_s,
        max_body_bytes=wanted.max_body_bytes,
        retry=wanted.retry,
        hold=hold,
        nodes=dict(Counter(nodes)),
    )


def a_snapshot(
    *replicas: ReplicaReport,
    routes: tuple[SetRoute, ...] = (),
    leases: tuple[Lease, ...] | None = None,
    node: NodeId = NODE,
    now_s: float = 1000.0,
    settled: bool = True,
) -> Snapshot:
    """One node with these replicas; unless given, each has a granted lease there."""
    if leases is None:
        leases = tuple(Lease.of_running(report, node) for report in replicas)
    seen = an_agent_report(node, replicas=replicas, routes=routes)
    return Snapshot(now_s=now_s, nodes=(seen,), leases=leases, settled=settled)


def an_agent_report(
    node: NodeId | Node = NODE,
    *,
    replicas: tuple[ReplicaReport, ...] = (),
    routes: tuple[SetRoute, ...] = (),
    routes_revision: RoutesRevision | None = None,
    pending_routes: tuple[ApiKey, ...] = (),
    ingress: IngressReport | None = None,
) -> AgentReport:
    """What the agent of a node says."""
    return AgentReport(
        node=node if isinstance(node, Node) else a_node(node),
        serial=0,
        agent="",
        epoch=0,
        pid=1,
        started_wall_s=0.0,
        replicas=replicas,
        routes=routes,
        routes_revision=routes_revision,
        pending_routes=pending_routes,
        ingress=ingress,
    )


def a_node(node: NodeId = NODE, *, cpu_millis: int = 8000, mem_bytes: int = 16 * 2**30, gpus: int = 0) -> Node:
    """A machine with plenty of room."""
    devices = tuple(DeviceId(f"GPU-{number}") for number in range(gpus))
    return Node(node=node, cpu_millis=cpu_millis, mem_bytes=mem_bytes, gpus=gpus, devices=devices)


def a_load(api: ApiKey = API, **fields: Any) -> ApiLoad:
    """What an api has had to do lately: one replica, which nobody has asked."""
    nothing: dict[str, Any] = {
        "queued": 0,
        "in_flight": 0,
        "ready": 1,
        "seconds": 2.0,
        "begun": 0,
        "cpu_s": 0.0,
        "ready_s": 2.0,
        "always_full": False,
        "sudden_seconds": 1.0,
        "sudden_begun": 0,
        "sudden_full": False,
        "long_seconds": 30.0,
        "long_begun": 0,
        "long_ended": 0,
        "seats": 1,
    }
    return ApiLoad(api=api, **{**nothing, **fields})


def a_record(wanted: WantedApi | None = None, version: VersionRecord | None = None) -> ApiRecord:
    """An api as read from a store; of its version nothing but the build is known unless given."""
    wanted = wanted or a_wanted_api()
    return ApiRecord(wanted=wanted, version=version or VersionRecord(build=wanted.build))


def a_deploy(
    *wanted: WantedApi,
    deployment: str | None = None,
    wall_s: float = 0.0,
    cause: str = "first deploy",
    stays: bool = False,
) -> DeployChange:
    """
    A deploy of these apis, all of one deployment, which found each rolled back as it is here.

    Args:
        cause: what made the version of each a new one; empty: they are what is wanted already.
        stays: they stay rolled back.
    """
    name = DeploymentName(deployment) if deployment is not None else split_api_key(wanted[0].api)[0]
    return DeployChange(
        deployment=DeploymentRecord(name=name, source="/home/ann/iris", updated_wall_s=wall_s),
        apis=tuple(
            DeployedApi(
                settings=ApiSettings(**{field: getattr(one, field) for field in ApiSettings.__struct_fields__}),
                version=VersionRecord(build=one.build),
                first_replicas=one.replicas,
                cause=cause,
                rolled_back=one.rolled_back,
                stays=stays,
            )
            for one in wanted
        ),
        wall_s=wall_s,
    )
