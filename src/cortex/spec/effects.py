"""What it takes to apply a changed field, and which fields are checked but not yet in effect."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from cortex.errors import Problem
from cortex.spec.models import ApiSpec, ComputeSpec, ProjectSpec


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
    "sample": Effect.IN_PLACE,
    "retry": Effect.IN_PLACE,
    "timeout": Effect.IN_PLACE,
    "max_body": Effect.IN_PLACE,
}
"""Every field of an api but `name`: another name is another api."""


@dataclass(frozen=True, slots=True)
class Pending:
    """A field that is accepted and checked, but does not do yet what it is for."""

    reason: str
    """What happens instead, in words for the user."""
    applies: Callable[[ApiSpec], bool]
    """Whether the user asked for what is not there yet."""


_DEFAULTS = ComputeSpec()

NOT_IN_EFFECT_YET: Mapping[str, Pending] = {
    "compute.max_replicas": Pending(
        "replicas are not scaled yet: their number stays as it is",
        lambda api: api.compute.max_replicas not in (_DEFAULTS.max_replicas, api.compute.min_replicas),
    ),
    "compute.target_cpu_utilization": Pending(
        "replicas are not scaled yet: their number stays as it is",
        lambda api: api.compute.target_cpu_utilization != _DEFAULTS.target_cpu_utilization,
    ),
}
"""Fields by path. Whoever makes one work deletes its row."""


def not_in_effect(project: ProjectSpec) -> tuple[Problem, ...]:
    """Return a note for every field that the user set and that does nothing yet. Paths lead into the `ProjectSpec`."""
    return tuple(
        Problem(
            reference="not-in-effect",
            message=pending.reason,
            subject=f'api "{api.name}": {path.replace(".", ": ")}',
            path=("apis", number, *path.split(".")),
        )
        for number, api in enumerate(project.apis)
        for path, pending in NOT_IN_EFFECT_YET.items()
        if pending.applies(api)
    )
