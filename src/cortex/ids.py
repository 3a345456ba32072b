"""Names of things, each its own type, and how they are built. Deterministic: same inputs, same name."""

from __future__ import annotations

import hashlib
from typing import NewType

DeploymentName = NewType("DeploymentName", str)
"""`iris`; `default` when cortex.yaml names none."""
ApiKey = NewType("ApiKey", str)
"""`<deployment>/<api>`, also for deployment `default`: unique in a control plane."""
Version = NewType("Version", str)
"""64 hex digits: digest of everything that makes one immutable build of an api. Shown as its first 8."""
Revision = NewType("Revision", str)
"""64 hex digits: digest of a version and of what else rolls replicas (cpu, mem, gpu, concurrency)."""
ReplicaId = NewType("ReplicaId", str)
"""`<deployment>.<api>.<revision, 8 digits>.<ordinal>`. Kept across restarts: a restart is a new `attempt`."""
NodeId = NewType("NodeId", str)
"""`local`, or the cluster's own id of a machine."""
DeviceId = NewType("DeviceId", str)
"""A GPU of a node, by a name that `CUDA_VISIBLE_DEVICES` takes: `GPU-5d5b…`, `MIG-c6d4…`, or a number."""

DEFAULT_DEPLOYMENT = DeploymentName("default")
SHORT_DIGITS = 8


def api_key(deployment: str, api: str) -> ApiKey:
    return ApiKey(f"{deployment}/{api}")


def split_api_key(key: ApiKey) -> tuple[DeploymentName, str]:
    deployment, _, api = key.partition("/")
    return DeploymentName(deployment), api


def route_path(key: ApiKey) -> str:
    """The URL path of an api: `/iris/sklearn`, or `/sklearn` in deployment `default`."""
    deployment, api = split_api_key(key)
    return f"/{api}" if deployment == DEFAULT_DEPLOYMENT else f"/{deployment}/{api}"


def short(digest: str) -> str:
    return digest[:SHORT_DIGITS]


def replica_id(key: ApiKey, revision: Revision, ordinal: int) -> ReplicaId:
    deployment, api = split_api_key(key)
    return ReplicaId(f"{deployment}.{api}.{short(revision)}.{ordinal}")


def revision_of(replica: str) -> str:
    """The first digits of a replica's revision; empty for what is no id of a replica."""
    return replica.rsplit(".", 2)[-2] if replica.count(".") >= 2 else ""


def socket_stem(replica: ReplicaId) -> str:
    """A short file name for a replica's sockets: HAProxy takes at most 97 bytes of path. 12 hex digits."""
    return hashlib.sha256(replica.encode()).hexdigest()[:12]
