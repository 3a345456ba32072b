"""What `cortex cluster export` prints: a cluster as whoever makes its machines takes it. Pure."""

from __future__ import annotations

from cortex.cluster.bounds import NodeBound
from cortex.cluster.hosts import of_ray, ssh_steps
from cortex.cluster.launcher import launcher_file
from cortex.cluster.loading import Cluster
from cortex.cluster.manifest import ray_cluster
from cortex.cluster.models import CloudSpec, KubernetesSpec, MachinesSpec
from cortex.cluster.writing import as_yaml


def export(cluster: Cluster) -> str:
    """Return one YAML document, with what it is, and where the bounds come from, in comments above it."""
    spec = cluster.spec
    minimum, maximum = cluster.bounds.minimum, cluster.bounds.maximum
    bounds = f"{minimum.nodes} ({_from(minimum)}) to {maximum.nodes} ({_from(maximum)}) nodes, the head among them"
    head = f"Cluster {spec.name}, made from {cluster.file} by `cortex cluster export`."
    match spec:
        case CloudSpec():
            what = f"For Ray's launcher, on {spec.PROVIDER}."
            return as_yaml(launcher_file(cluster), comment=(head, what, bounds))
        case KubernetesSpec(context=context):
            where = f" --context {context}" if context is not None else ""
            what = f"For KubeRay's operator: kubectl{where} apply -f FILE"
            return as_yaml(ray_cluster(cluster), comment=(head, what, bounds))
        case MachinesSpec():
            what = "What is run on each machine, over SSH."
            return as_yaml(ssh_steps(cluster), comment=(head, what, bounds))
        case _:
            what = "What is used of a Ray cluster that is there: nothing but replicas is started or stopped in it."
            return as_yaml(of_ray(cluster), comment=(head, what, bounds))


def _from(bound: NodeBound) -> str:
    return f"from {bound.source}" if bound.source != "default" else "default"
