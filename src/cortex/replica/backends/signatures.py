"""Which signature of a SavedModel is served, and what handlers see of all of them. Pure: knows no TensorFlow."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from cortex.replica.backends.base import ModelError
from cortex.wire.signature import TensorSpec

PREFERRED: Final = ("predict", "serving_default")
"""Of several signatures the first of these is served: estimators name theirs `predict`, TensorFlow 2 the other."""

_LISTED: Final = 20
_PLAIN_SCALAR: Final = re.compile(r"[A-Za-z_][\w./-]*", re.ASCII)
_PARTS: Final = re.compile(r"([^0-9]*)([0-9]*)", re.ASCII)
_YAML_WORDS: Final = frozenset({"true", "false", "yes", "no", "on", "off", "null", "y", "n"})


class SignatureDef(dict[str, Any]):
    """
    One signature of a SavedModel, as handlers see it: `metadata["predict"].inputs["age"].dtype`.

    With keys it is what Cortex 0.8 gave: `metadata["predict"]["inputs"]["age"]["tensorShape"]["dim"][0]["size"]`.

    Args:
        inputs: by name, in the order of `Signature.inputs`; each has `.name`, `.dtype` and `.shape`.
        outputs: as `inputs`.
        method_name: what it was exported for, e.g. `tensorflow/serving/predict`.
        plain: the protobuf in its JSON form, with the keys `inputs`, `outputs` and `methodName`.
    """

    __slots__ = ("inputs", "method_name", "outputs")

    def __init__(
        self,
        inputs: Mapping[str, TensorSpec],
        outputs: Mapping[str, TensorSpec],
        method_name: str = "",
        plain: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(plain or {})
        self.inputs, self.outputs, self.method_name = inputs, outputs, method_name

    def __str__(self) -> str:
        return f"{_specs_text(self.inputs)} → {_specs_text(self.outputs)}"


class Choice(NamedTuple):
    """The signature that is served."""

    key: str
    note: str
    """Why this one, and how to have another; empty where there was nothing to choose."""


def choose(signatures: Mapping[str, SignatureDef], wanted: str | None = None) -> Choice:
    """
    Choose the signature to serve. The same signatures and wish give the same choice, wherever it is made.

    Args:
        signatures: those that are for serving, by key.
        wanted: `tf_signature_key`; None leaves the choice to the rules.

    Raises:
        NoSignature: there is none to serve.
        UnknownSignature: `wanted` is none of them.
        AmbiguousSignature: there are several, and no rule prefers one.
    """
    if not signatures:
        raise NoSignature(wanted)
    if wanted is not None:
        if wanted not in signatures:
            raise UnknownSignature(wanted, signatures)
        return Choice(wanted, "")
    if len(signatures) == 1:
        return Choice(next(iter(signatures)), "")
    key = next((key for key in PREFERRED if key in signatures), None)
    if key is None:
        raise AmbiguousSignature(signatures)
    others = sorted(signatures.keys() - {key}, key=natural_order)
    listed = ", ".join(others[:_LISTED]) + (", …" if len(others) > _LISTED else "")
    return Choice(key, f'serves its signature {key}; for another ({listed}) add e.g. "{yaml_line(others[0])}"')


class NoSignature(ModelError):
    """
    A SavedModel without a signature that could be served.

    Args:
        wanted: the key that was asked for, if any.
        unreadable: signatures that it has and that give nothing that can be read, by key: what they give, in words.
    """

    reference = "no-signature"

    def __init__(self, wanted: str | None = None, unreadable: Mapping[str, str] | None = None) -> None:
        self.wanted = wanted
        why = ", and ".join(
            f"{key} gives {what}, which has no form outside" for key, what in (unreadable or {}).items()
        )
        super().__init__(
            "the SavedModel has no signature to serve"
            + (f", so not {wanted} either" if wanted else "")
            + (f": {why}" if why else ""),
            hint="let it give plain tensors, such as ragged.to_tensor(), or ragged.values and ragged.row_splits"
            if why
            else "export it with one: model.export(folder) for a Keras model, or "
            'tf.saved_model.save(module, folder, signatures={"serving_default": function})',
        )


class UnknownSignature(ModelError):
    """
    The key that was asked for is not in the model.

    Args:
        wanted: the key.
        signatures: those that are there.
    """

    reference = "unknown-signature"

    def __init__(self, wanted: str, signatures: Mapping[str, SignatureDef]) -> None:
        self.wanted = wanted
        self.keys = tuple(sorted(signatures, key=natural_order))
        close = difflib.get_close_matches(wanted, self.keys, n=1) or difflib.get_close_matches(
            wanted.lower(), [key for key in self.keys if key.islower()], n=1
        )
        line = yaml_line(close[0] if close else self.keys[0])
        super().__init__(
            f"the model has no signature {wanted}; it has\n{_listing(signatures)}",
            hint=f"did you mean `{line}`?" if close else f"name one that it has, e.g. `{line}`",
        )


class AmbiguousSignature(ModelError):
    """
    There are several signatures, and nothing says which one is meant.

    Args:
        signatures: those that are there.
    """

    reference = "ambiguous-signature"

    def __init__(self, signatures: Mapping[str, SignatureDef]) -> None:
        self.keys = tuple(sorted(signatures, key=natural_order))
        super().__init__(
            f"the model has {len(self.keys)} signatures, and nothing says which one to serve\n{_listing(signatures)}",
            hint=f"add one to the api in cortex.yaml, e.g.\n{yaml_line(self.keys[0])}",
        )


def yaml_line(key: str) -> str:
    """The line of `cortex.yaml` that chooses a signature."""
    if not _PLAIN_SCALAR.fullmatch(key) or key.lower() in _YAML_WORDS:
        key = '"' + key.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return f"tf_signature_key: {key}"


def natural_order(name: str) -> tuple[tuple[str, int], ...]:
    """For sorting names so that `output_2` comes before `output_10`: a SavedModel keeps no order of its own."""
    return tuple((text, int(digits or -1)) for text, digits in _PARTS.findall(name))


def _listing(signatures: Mapping[str, SignatureDef]) -> str:
    keys = sorted(signatures, key=natural_order)
    lines = [f"  {key}: {signatures[key]}" for key in keys[:_LISTED]]
    return "\n".join([*lines, "  …"] if len(keys) > _LISTED else lines)


def _specs_text(specs: Mapping[str, TensorSpec]) -> str:
    return ", ".join(f"{name} {spec}" for name, spec in specs.items()) or "nothing"
