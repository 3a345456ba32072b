"""
What is called how, in a cloud and on its nodes. Pure.

Everything that is made for a cluster is named after it and carries its tags where there are any, so that it is found
again, shown apart in the cloud's console, and told from what others made.
"""

from __future__ import annotations

from cortex.cluster.models import ClusterSpec

RAY_VERSION = "2.60.0"
"""Of Ray on nodes that we make; the `ray` extra may be newer where a cluster is there already."""
CLUSTER_TAG = "cortex:cluster"
STORAGE_TAG = "cortex:storage"
_LONGEST_TAG = 256
"""Characters of a tag's value, on aws and azure alike."""

HEAD, WORKER, GPU = "head", "worker", "gpu"
"""Ray's node types."""


def own_name(name: str) -> str:
    """What everything of a cluster is called where it has a name of its own: `cortex-prod`."""
    return f"cortex-{name}"


def tags(spec: ClusterSpec) -> dict[str, str]:
    """By which what was made for a cluster is known: its name, and where its state lies, which is its own."""
    return {CLUSTER_TAG: spec.name, STORAGE_TAG: spec.storage[-_LONGEST_TAG:]}


def ray_image(python: str, *, gpus: int) -> str:
    """Ray's own container image, by the minor version of Python in it."""
    return f"rayproject/ray:{RAY_VERSION}-py{python.replace('.', '')}{'-gpu' if gpus else ''}"
