"""The steps over SSH that make a cluster of machines; and what is asked of a Ray cluster that is there. Pure."""

from __future__ import annotations

from cortex.cluster import nodesetup
from cortex.cluster.loading import Cluster
from cortex.cluster.models import MachinesSpec, RaySpec
from cortex.cluster.names import own_name
from cortex.cluster.writing import Plain

CONNECT_S = 10
AUTOSCALING_CONFIG = "$HOME/.cortex-ray/autoscaling.yaml"


def ssh_arguments(cluster: Cluster, host: str) -> tuple[str, ...]:
    """
    What `ssh` is called with before a command: it asks nobody, and gives up soon.

    A host key that is new is taken, and one that has changed is refused.
    """
    spec = cluster.spec
    assert isinstance(spec, MachinesSpec)
    options = ("BatchMode=yes", f"ConnectTimeout={CONNECT_S}", "StrictHostKeyChecking=accept-new")
    flags = [part for option in options for part in ("-o", option)]
    if spec.ssh_key is not None:
        flags += ["-i", cluster.path(spec.ssh_key), "-o", "IdentitiesOnly=yes"]
    if spec.ssh_user is not None:
        flags += ["-l", spec.ssh_user]
    return ("ssh", *flags, "--", host)


def ssh_steps(cluster: Cluster) -> dict[str, Plain]:
    """
    Return each host with how it is reached and what is run there.

    The head is started first. The others are prepared, and started when their turn comes: a host is in use or is not,
    it is never switched off.
    """
    spec = cluster.spec
    assert isinstance(spec, MachinesSpec)
    head, *others = spec.hosts
    token = f"$HOME/{nodesetup.TOKEN}"
    first = [
        *nodesetup.install(cluster),
        *nodesetup.install_on_head(cluster),
        nodesetup.start_head([f"--autoscaling-config={AUTOSCALING_CONFIG}"]),
    ]
    later = [
        *nodesetup.install(cluster),
        f"umask 077; mkdir -p $(dirname {token}); cat >{token}  # the head's token, by stdin",
        nodesetup.start_worker(head),
    ]
    steps: list[Plain] = [
        {"host": host, "ssh": [*ssh_arguments(cluster, host)], "run": [*(first if host == head else later)]}
        for host in (head, *others)
    ]
    return {**_said(cluster), "head": head, "steps": steps}


def of_ray(cluster: Cluster) -> dict[str, Plain]:
    """Return what is used of a Ray cluster that is there: nothing is started or stopped in it but replicas."""
    spec = cluster.spec
    assert isinstance(spec, RaySpec)
    return {**_said(cluster), "address": spec.address}


def _said(cluster: Cluster) -> dict[str, Plain]:
    spec = cluster.spec
    return {
        "cluster": own_name(spec.name),
        "provider": spec.PROVIDER,
        "nodes_min": cluster.bounds.minimum.nodes,
        "nodes_max": cluster.bounds.maximum.nodes,
        "storage": spec.storage,
        "door_port": spec.door.port,
        "python": cluster.python,
        **({"index_url": cluster.index_url} if cluster.index_url is not None else {}),
    }
