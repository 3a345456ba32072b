"""
The `RayCluster` that KubeRay's operator makes a cluster of. Pure.

Each node is a pod, all alike, the head too: it counts, and has replicas as any other.

Source:
    KubeRay, `RayCluster` of `ray.io/v1`; the operator adds Ray's ports, probes, start commands and token by itself.
"""

from __future__ import annotations

from cortex.cluster.loading import Cluster
from cortex.cluster.models import KubernetesSpec
from cortex.cluster.names import RAY_VERSION, WORKER, ray_image
from cortex.cluster.nodesetup import RECONNECT_S
from cortex.cluster.writing import Plain

IDLE_S = 60
DRAIN_S = 120
"""What a pod that ends has for its replicas to finish: they take a minute at most, their node a moment more."""
_AUTOSCALER: dict[str, Plain] = {"cpu": "500m", "memory": "512Mi"}


def ray_cluster(cluster: Cluster) -> dict[str, Plain]:
    """Return the manifest that `kubectl apply` takes."""
    spec = cluster.spec
    assert isinstance(spec, KubernetesSpec)
    fewest, most = cluster.bounds.workers
    labels: dict[str, Plain] = {
        "app.kubernetes.io/part-of": "cortex",
        "app.kubernetes.io/managed-by": "cortex",
        "app.kubernetes.io/instance": spec.name,
    }
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": {
            "name": spec.name,
            "namespace": spec.namespace,
            "labels": labels,
            "annotations": {"cortex/storage": spec.storage},
        },
        "spec": {
            "rayVersion": RAY_VERSION,
            "enableInTreeAutoscaling": True,
            "autoscalerOptions": {
                "version": "v2",
                "idleTimeoutSeconds": IDLE_S,
                "resources": {"requests": _AUTOSCALER, "limits": _AUTOSCALER},
            },
            "authOptions": {"mode": "token"},
            "headGroupSpec": {"rayStartParams": {}, "template": _pod(cluster, spec, labels, "ray-head")},
            "workerGroupSpecs": [
                {
                    "groupName": WORKER,
                    "replicas": fewest,
                    "minReplicas": fewest,
                    "maxReplicas": most,
                    "rayStartParams": {},
                    "template": _pod(cluster, spec, labels, "ray-worker"),
                }
            ],
        },
    }


def _pod(cluster: Cluster, spec: KubernetesSpec, labels: dict[str, Plain], container: str) -> dict[str, Plain]:
    node = spec.node
    has: dict[str, Plain] = {"cpu": node.cpu.text, "memory": node.mem.text}
    if node.gpu:
        has["nvidia.com/gpu"] = node.gpu
    env: list[Plain] = [{"name": "RAY_gcs_rpc_server_reconnect_timeout_s", "value": str(RECONNECT_S)}]
    if cluster.index_url is not None:
        env += [{"name": name, "value": cluster.index_url} for name in ("PIP_INDEX_URL", "UV_DEFAULT_INDEX")]
    return {
        "metadata": {"labels": labels},
        "spec": {
            "terminationGracePeriodSeconds": DRAIN_S,
            "containers": [
                {
                    "name": container,
                    "image": spec.image or ray_image(cluster.python, gpus=node.gpu),
                    "env": env,
                    "ports": [{"name": "door", "containerPort": spec.door.port}],
                    "resources": {"requests": has, "limits": has},
                }
            ],
        },
    }
