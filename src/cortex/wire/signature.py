"""What a model takes and gives, in words that every process of ours understands. Travels as JSON."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, TypeAlias

import msgspec

Dim: TypeAlias = int | str | None
"""One dimension: a fixed size, the model's own name for a free one, or None for a free one without a name."""

Kind: TypeAlias = Literal["tensor", "sequence", "map", "sequence_of_maps", "ragged"]
"""
`tensor`; `sequence`: list of tensors; `map`: numbers by key; `sequence_of_maps`: a map a row; `ragged`: a tensor whose
rows may have different lengths.
"""

DTYPES = frozenset(
    {
        "float16", "bfloat16", "float32", "float64",
        "int8", "int16", "int32", "int64",
        "uint8", "uint16", "uint32", "uint64",
        "bool", "string",
    }
)  # fmt: skip
"""Element types that can be fed. `bfloat16` travels in float32 arrays: numpy has no type for it."""


class TensorSpec(msgspec.Struct, frozen=True, omit_defaults=True):
    """One input or output of a model."""

    name: str
    dtype: str
    """numpy's name (`float32`), `bfloat16` or `string`. Of a sequence: its tensors'; of a map: its values'."""
    shape: tuple[Dim, ...] | None
    """None: any rank. `()`: a scalar. Of a sequence: its tensors'; of a map: `()`."""
    optional: bool = False
    """May be absent."""
    kind: Kind = "tensor"
    key_dtype: str | None = None
    """`int64` or `string`, of maps only."""
    features: tuple[TensorSpec, ...] = ()
    """Of text that is parsed as serialised `tf.Example`s: what is looked for in each."""
    ragged_rank: int = 0
    """Of a ragged tensor: how many dimensions after the first may differ in length."""

    def __str__(self) -> str:
        tensor = self.dtype + ("[…]" if self.shape is None else shape_text(self.shape))
        if self.kind == "tensor":
            return tensor
        if self.kind == "ragged":
            return f"ragged {tensor}"
        if self.kind == "sequence":
            return f"sequence of {tensor}"
        mapping = f"map from {self.key_dtype} to {self.dtype}"
        return mapping if self.kind == "map" else f"sequence of {mapping}"


class Signature(msgspec.Struct, frozen=True, omit_defaults=True):
    """A model's inputs and outputs, in model order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    key: str | None = None
    """TensorFlow's signature key; None for formats without keys."""


def shape_text(shape: Iterable[Dim]) -> str:
    """`[N, 4]`; `?` stands for a free dimension without a name."""
    return "[" + ", ".join("?" if dim is None else str(dim) for dim in shape) + "]"
