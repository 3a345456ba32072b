"""What it takes to apply a changed field, and which fields are checked but not yet in effect."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from pydantic import BaseModel

from cortex.errors import Problem
from cortex.spec.models import ApiSpec, ProjectSpec


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
    "rollout.watch": Effect.IN_PLACE,
}
"""Every field of an api but `name`: another name is another api."""


@dataclass(frozen=True, slots=True)
class Pending:
    """A field that is accepted and checked, but does not do yet what it is for."""

    reason: str
    """What happens instead, in words for the user."""
    holds: Callable[[ApiSpec], bool] = lambda _api: False
    """Whether what was written is true all the same."""


NOT_IN_EFFECT_YET: Mapping[str, Pending] = {
    "compute.max_replicas": Pending(
        "replicas are not scaled yet: their number stays as it is",
        holds=lambda api: api.compute.max_replicas == api.compute.min_replicas,
    ),
    "compute.target_cpu_utilization": Pending("replicas are not scaled yet: their number stays as it is"),
}
"""Fields by path. Whoever makes one work deletes its row."""


def not_in_effect(project: ProjectSpec) -> tuple[Problem, ...]:
    """
    Return a note for every field that the user wrote and that does nothing yet, whatever its value: who writes the
    default relies on it. Paths lead into the `ProjectSpec`.
    """
    return tuple(
        Problem(
            reference="not-in-effect",
            message=pending.reason,
            subject=f'api "{api.name}": {path.replace(".", ": ")}',
            path=("apis", number, *path.split(".")),
        )
        for number, api in enumerate(project.apis)
        for path, pending in NOT_IN_EFFECT_YET.items()
        if _is_written(api, path.split(".")) and not pending.holds(api)
    )


def _is_written(block: BaseModel, path: Sequence[str]) -> bool:
    """Whether a field stands in the file. An explicit null does not: it means the default."""
    name, *below = path
    if name not in block.model_fields_set:
        return False
    return not below or _is_written(getattr(block, name), below)
