"""What pydantic found wrong with a spec, as problems that a user can act on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from cortex.errors import Problem
from cortex.spec.models import BLOCKS, IS_SECRET, IS_TEXT, RESOURCES, SecretRef
from cortex.spec.problems import found, lookup, nearest, one_of, quoted, subject
from cortex.spec.rules import suggest_name

Path = tuple[str | int, ...]

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
_READABLE_DIGITS = 10
_COMPARED_KEYS = 100
"""More keys than this in one block are no misspellings, and comparing all of them would take seconds."""
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
_TYPES = {"model_type": "a mapping", "mapping_type": "a mapping", "dict_type": "a mapping", "tuple_type": "a list"}
"""pydantic's own types of errors that say what had to be there."""


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
    problems = []
    for details in error.errors(include_url=False):
        path = prefix + _cleaned(details["loc"])
        problem = _Finding(details["type"], path, document, details.get("ctx", {}), written).problem(details["msg"])
        if problem is not None:
            problems.append(problem)
    return tuple(problems)


class _Finding:
    """One error of pydantic's, and how to say it."""

    def __init__(
        self, kind: str, path: Path, document: object, facts: Mapping[str, Any], written: Callable[[Path], str | None]
    ) -> None:
        self._kind = kind
        self._path = path
        self._document = document
        self._facts = facts
        self._value = lookup(document, path)
        self._written = written(path)

    def problem(self, message: str) -> Problem | None:
        """Return the problem; None for an error that only follows from another one. `message` is pydantic's own."""
        match self._kind:
            case "default_factory_not_called":
                return None
            case "missing":
                return None if self._is_misspelled() else self._missing()
            case "extra_forbidden":
                return self._unknown()
            case "wrong-type":
                return self._wrong_type(self._facts["expected"])
            case "out-of-range":
                bound, hint = self._facts["bound"], f"write, for example, {self._field}: {self._facts['nearest']}"
                return self._said("out-of-range", f"expected {bound}, found {self._shown}", hint)
            case "unknown-value":
                return self._unknown_value(self._facts["words"])
            case kind if kind in _TYPES:
                return self._wrong_type(_TYPES[kind])
            case _ if "message_by_default" in self._facts and self._value is None:
                self._path = (*self._path[:-1], self._facts["blame"])
                return self._said(self._kind, self._facts["message_by_default"], self._facts["hint_by_default"])
            case _:
                return self._said(
                    self._kind, self._facts.get("message", message), self._facts.get("hint") or self._example()
                )

    def _said(self, reference: str, message: str, hint: str = "") -> Problem:
        return Problem(
            reference=reference,
            message=message,
            hint=hint,
            path=self._path,
            subject=subject(self._path, self._document),
        )

    @property
    def _shown(self) -> str:
        return found(self._value, self._written)

    @property
    def _beside(self) -> Mapping[str, Any]:
        """The block in which the field stands, or should."""
        block = lookup(self._document, self._path[:-1])
        return block if isinstance(block, Mapping) else {}

    @property
    def _field(self) -> str:
        return str(self._path[-1]) if self._path else ""

    def _example(self) -> str:
        """Return a hint with an example of the field; a variable in `env` has the user's name and just some value."""
        in_env = self._path[-2:-1] == ("env",)
        example = f"{self._field}: value" if in_env else EXAMPLES.get(self._field, "")
        if not example:
            return ""
        return f"for example\n{example}" if "\n" in example else f"for example, {example}"

    def _missing(self) -> Problem:
        return self._said("missing-field", f"{quoted(self._field)} is missing", self._example())

    def _is_misspelled(self) -> bool:
        """Whether an unknown key beside a missing field was meant to be it: one mistake, told once."""
        block = block_of(self._path, self._document)
        unknown = [key for key in self._beside if key not in _FIELDS[block]]
        if self._field in ("model", "request_handler") and any(key in _OLD_BLOCKS for key in unknown):
            return True
        return any(nearest(key, _FIELDS[block]) == self._field for key in unknown[:_COMPARED_KEYS])

    def _unknown(self) -> Problem:
        block = block_of(self._path, self._document)
        message = f"{quoted(self._field)} is not a field of {_BLOCK_WORDS.get(block, block)}"
        home = _home(self._field, block)
        if home:
            return self._said("misplaced-field", message, home)
        if block == "api" and self._field in _OLD_BLOCKS:
            return self._said("unknown-field", message, f"{self._without_block()}; {_SIDE_BY_SIDE}")
        if block == "api" and self._field in _GONE:
            return self._said("unknown-field", message, f"{_GONE[self._field]}; {_SIDE_BY_SIDE}")
        if block == "compute" and self._field in _GONE_OF_COMPUTE:
            return self._said("unknown-field", message, _GONE_OF_COMPUTE[self._field])
        compares = len(self._beside) <= _COMPARED_KEYS
        meant = nearest(self._field, _FIELDS[block]) if compares else None
        if meant is not None:
            return self._said("unknown-field", message, f'did you mean "{meant}"?')
        elsewhere = _meant_elsewhere(self._field, block) if compares else None
        if elsewhere is not None:
            hint = f'did you mean "{elsewhere}"? {_home(elsewhere, block)}'
            return self._said("unknown-field", message, hint)
        return self._said("unknown-field", message, f"the fields are {', '.join(_FIELDS[block])}")

    def _without_block(self) -> str:
        """Say where the fields of a block of old stand here."""
        fields = self._value if isinstance(self._value, Mapping) else {}
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
        if any(line.startswith("model:") for line in meant) or "model" in self._beside:
            return hint
        return f"{hint}, and a `model:`, a file of ONNX or a SavedModel, which Cortex runs itself"

    def _wrong_type(self, expected: str) -> Problem:
        return self._said("wrong-type", f"expected {expected}, found {self._shown}", self._type_hint(expected))

    def _type_hint(self, expected: str) -> str:
        value = self._value
        if expected == "an integer" and isinstance(value, str | float):
            text = str(value).removesuffix(".0")
            if text.isascii() and text.isdecimal() and len(text) < _READABLE_DIGITS:
                return f"write {self._field}: {text}"
        if expected == "a string" and isinstance(value, bool | int | float):
            spelled = self._written or str(value).lower()
            name = suggest_name(spelled)
            if self._field == "name" and name != spelled:
                return f'quoted it would be a string, but a name starts with a letter: "{name}"'
            return f'quote it: {self._field}: "{spelled}"'
        if expected == "a mapping" and isinstance(value, str) and ":" in value:
            return "put a space after the colon"
        if expected == "a mapping" and isinstance(value, list):
            return 'delete the "- " in front of its fields'
        return self._example()

    def _unknown_value(self, words: Sequence[str]) -> Problem:
        meant = nearest(self._value, words) if isinstance(self._value, str) else None
        hint = f'did you mean "{meant}"?' if meant else self._example()
        return self._said("unknown-value", f"expected {one_of(words)}, found {self._shown}", hint)


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
