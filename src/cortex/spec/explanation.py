"""What pydantic found wrong with a cortex.yaml, in its words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from pydantic import ValidationError

from cortex.errors import Problem
from cortex.spec.finding import Finding, Path, findings, shown_example
from cortex.spec.models import BLOCKS, IS_SECRET, IS_TEXT, RESOURCES, SecretRef
from cortex.spec.problems import lookup, nearest, subject

_FIELDS: Mapping[str, tuple[str, ...]] = {
    **{kind: ("kind", *model.model_fields) for kind, model in RESOURCES.items()},
    **{block: tuple(model.model_fields) for block, model in BLOCKS.items()},
    "env": tuple(SecretRef.model_fields),
    "": ("deployment", "apis"),
}
"""What may stand in each block."""
_BLOCK_WORDS = {"api": "an api", "deployment": "a deployment", "env": "a reference to a secret", "": "a project"}
EXAMPLES = {
    "kind": "kind: api",
    "name": "name: iris",
    "model": "model: model.onnx",
    "model_format": "model_format: onnx",
    "request_handler": "request_handler: handler.py",
    "tf_signature_key": "tf_signature_key: predict",
    "tracker": "tracker:\n  model_type: classification",
    "key": "key: class",
    "model_type": "model_type: classification",
    "compute": "compute:\n  cpu: 200m",
    "min_replicas": "min_replicas: 1",
    "max_replicas": "max_replicas: 10",
    "init_replicas": "init_replicas: 1",
    "target_cpu_utilization": "target_cpu_utilization: 80",
    "target_in_flight": "target_in_flight: 4",
    "downscale_window": "downscale_window: 5m",
    "idle_timeout": "idle_timeout: 5m",
    "cpu": "cpu: 200m",
    "gpu": "gpu: 1",
    "mem": "mem: 512Mi",
    "concurrency": "concurrency: 1",
    "sample": "sample: sample.json",
    "retry": "retry: off",
    "env": "env:\n  NAME: value\n  TOKEN: {secret: token}",
    "secret": "secret: token",
    "timeout": "timeout: 30s",
    "max_body": "max_body: 100Mi",
    "batching": "batching: off",
    "rollout": "rollout:\n  watch: 2m",
    "watch": "watch: 2m",
}
"""One line, or a few, for every field."""
_GONE = {
    "tags": "tags never had an effect and are gone: delete them",
    "autoscaling": "its fields belong under `compute:`",
    "endpoint": "an api answers at /<deployment>/<name>: delete it",
    "networking": "an api answers at /<deployment>/<name>: delete it",
    "monitoring": "it is called `tracker:` here",
    "update_strategy": "new replicas are always started before old ones end: delete it",
}
"""Fields of other versions, with what is done about them."""
_GONE_OF_COMPUTE = {
    **dict.fromkeys(
        ("processes_per_replica", "workers_per_replica"), "here it is `min_replicas`: each replica is one process"
    ),
    **dict.fromkeys(
        ("threads_per_process", "threads_per_worker", "max_replica_concurrency"), "here it is `concurrency`"
    ),
}
"""The same, of what stands below `compute:`."""
_OLD_BLOCKS = ("onnx", "tensorflow", "predictor", "python")
"""Blocks of later versions of old: what stood in them stands beside `name` here."""
_SIDE_BY_SIDE = "docs/from-cortex-0.md has both side by side"
_OLD_NAMES = {
    "model": "model",
    "model_path": "model",
    "request_handler": "request_handler",
    "predictor": "request_handler",
    "path": "request_handler",
    "signature_key": "tf_signature_key",
    "env": "env",
}
"""What the fields of `_OLD_BLOCKS` are called here."""


def explain(
    error: ValidationError,
    document: object,
    *,
    prefix: Path = (),
    written: Callable[[Path], str | None] = lambda path: None,
) -> tuple[Problem, ...]:
    """
    Return each error as a problem, in pydantic's order, with path, subject and hint but without a line.

    Args:
        document: the whole plain data: a list of resources as in the file, or the JSON form of a `ProjectSpec`.
        prefix: where in `document` the validated part is; empty if all of it was validated.
        written: the spelling of the scalar at a path, if a text was parsed.
    """
    return findings(error, _Finding, document, path_of=lambda place: prefix + _cleaned(place), written=written)


class _Finding(Finding):
    """One error about a cortex.yaml."""

    EXAMPLES = EXAMPLES

    @property
    def block(self) -> str:
        return block_of(self.path, self.document)

    def fields(self) -> Sequence[str]:
        return _FIELDS[self.block]

    def owner(self) -> str:
        return _BLOCK_WORDS.get(self.block, self.block)

    def subject(self) -> str:
        return subject(self.path, self.document)

    def example(self) -> str:
        """A variable in `env` has the user's name and just some value."""
        return shown_example(f"{self.field}: value") if self.path[-2:-1] == ("env",) else super().example()

    def says_the_missing(self, unknown: Sequence[str]) -> bool:
        return self.field in ("model", "request_handler") and any(key in _OLD_BLOCKS for key in unknown)

    def known_otherwise(self) -> tuple[str, str] | None:
        home = _home(self.field, self.block)
        if home:
            return "misplaced-field", home
        if self.block == "api" and self.field in _OLD_BLOCKS:
            return "unknown-field", f"{self._without_block()}; {_SIDE_BY_SIDE}"
        if self.block == "api" and self.field in _GONE:
            return "unknown-field", f"{_GONE[self.field]}; {_SIDE_BY_SIDE}"
        if self.block == "compute" and self.field in _GONE_OF_COMPUTE:
            return "unknown-field", _GONE_OF_COMPUTE[self.field]
        return None

    def meant_elsewhere(self) -> str | None:
        elsewhere = _meant_elsewhere(self.field, self.block)
        return f'did you mean "{elsewhere}"? {_home(elsewhere, self.block)}' if elsewhere is not None else None

    def _without_block(self) -> str:
        """Say where the fields of a block of old stand here."""
        fields = self.value if isinstance(self.value, Mapping) else {}
        if isinstance(models := fields.get("models"), Mapping):
            fields = {**models, **fields, "model_path": models.get("path")}
        lines = [
            f"{name}: {value}" if isinstance(value, str) else f"{name}:"
            for old, name in _OLD_NAMES.items()
            if (value := fields.get(old)) is not None
        ]
        meant = lines or ["model: model.onnx", "request_handler: handler.py"]
        *others, last = [f"`{line}`" for line in meant]
        hint = f"its fields stand beside `name:` here: {' and '.join([', '.join(others), last] if others else [last])}"
        if any(line.startswith("model:") for line in meant) or "model" in self.beside:
            return hint
        return f"{hint}, and a `model:`, a file of ONNX or a SavedModel, which Cortex runs itself"


def block_of(path: Path, document: object) -> str:
    """Return which block a field stands in: `compute`, `tracker`, `env`, a kind, or empty for a whole project."""
    if path[:1] == ("apis",):
        inside, kind = path[2:], "api"
    elif path and isinstance(path[0], int):
        inside, stated = path[1:], lookup(document, (path[0], "kind"))
        kind = "deployment" if stated == "deployment" else "api"
    else:
        return ""
    return str(inside[0]) if len(inside) > 1 and inside[0] in _FIELDS else kind


def _cleaned(place: tuple[str | int, ...]) -> Path:
    """Return pydantic's place without its marks for members of unions and for keys."""
    parts = [part for part in place if part not in (IS_SECRET, IS_TEXT)]
    return tuple(parts[:-1] if parts[-1:] == ["[key]"] else parts)


def _home(field: str, block: str) -> str:
    """Return where a field belongs, empty if it is no field, or one of `block`."""
    if field in _FIELDS[block] or block in ("env", ""):
        return ""
    for home in BLOCKS:
        if field in _FIELDS[home]:
            return f"`{field}` belongs under `{home}:`" + ("" if block == "api" else " of an api")
    if field not in _FIELDS["api"]:
        return ""
    if block in BLOCKS:
        return f"`{field}` belongs to the api itself, beside `{block}:`"
    return f"`{field}` belongs to an api: `- kind: api`"


def _meant_elsewhere(field: str, block: str) -> str | None:
    known = [name for home in ("api", *BLOCKS) if home != block for name in _FIELDS[home] if _home(name, block)]
    return nearest(field, known)
