"""What it takes to apply a changed field."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class Effect(StrEnum):
    """What a changed field does to what runs."""

    NEW_VERSION = "new version"
    """Another build of the api: replicas are replaced and statistics begin anew."""
    ROLLS_REPLICAS = "rolls replicas"
    """Replicas are replaced; the version and its statistics stay."""
    IN_PLACE = "in place"
    """Nothing is replaced."""


EFFECTS: Mapping[str, Effect] = {
    "model": Effect.NEW_VERSION,
    "model_format": Effect.NEW_VERSION,
    "request_handler": Effect.NEW_VERSION,
    "tf_signature_key": Effect.NEW_VERSION,
    "tracker": Effect.NEW_VERSION,
    "env": Effect.NEW_VERSION,
    "batching": Effect.NEW_VERSION,
    "compute.cpu": Effect.ROLLS_REPLICAS,
    "compute.gpu": Effect.ROLLS_REPLICAS,
    "compute.mem": Effect.ROLLS_REPLICAS,
    "compute.concurrency": Effect.ROLLS_REPLICAS,
    "compute.min_replicas": Effect.IN_PLACE,
    "compute.max_replicas": Effect.IN_PLACE,
    "compute.init_replicas": Effect.IN_PLACE,
    "compute.target_cpu_utilization": Effect.IN_PLACE,
    "compute.target_in_flight": Effect.IN_PLACE,
    "compute.downscale_window": Effect.IN_PLACE,
    "compute.idle_timeout": Effect.IN_PLACE,
    "sample": Effect.IN_PLACE,
    "retry": Effect.IN_PLACE,
    "timeout": Effect.IN_PLACE,
    "max_body": Effect.IN_PLACE,
    "rollout.watch": Effect.IN_PLACE,
}
"""Every field of an api but `name`: another name is another api."""
