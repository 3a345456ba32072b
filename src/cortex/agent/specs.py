"""From a build to what a replica's process needs to know on this node."""

from __future__ import annotations

from cortex.agent.files import files_of
from cortex.agent.provisions import Provided
from cortex.settings import NodeLayout, Settings
from cortex.wire.launch import ReplicaSpec
from cortex.wire.orders import StartReplica


def replica_spec(order: StartReplica, provided: Provided, *, settings: Settings, layout: NodeLayout) -> ReplicaSpec:
    """A build with its digests resolved to paths of this node."""
    build, files = order.build, files_of(layout, order)
    return ReplicaSpec(
        replica=order.replica,
        attempt=order.attempt,
        api=build.api,
        version=build.version,
        revision=build.revision,
        home=str(settings.home),
        runtime=build.runtime,
        model_path=str(provided.model) if provided.model else None,
        signature_key=build.model.signature_key if build.model is not None else None,
        project_dir=str(provided.project) if provided.project else None,
        handler=build.handler,
        tracker=build.tracker,
        env=build.env,
        batches=order.batches,
        concurrency=build.concurrency,
        resources=build.resources,
        devices=order.devices,
        threads=threads_for(build.resources.cpu_millis),
        sample=build.sample,
        sample_path=str(provided.sample) if provided.sample else None,
        log_path=str(files.log),
        stats_path=str(files.stats),
        scratch=str(files.scratch),
        read_only=(str(layout.artifacts), str(layout.installations)),
        view_bytes=settings.view_bytes,
        start_timeout_s=settings.start_timeout_s,
    )


def threads_for(cpu_millis: int) -> int:
    """Threads for numeric libraries: whole cores of the request, at least one."""
    return max(1, cpu_millis // 1000)
