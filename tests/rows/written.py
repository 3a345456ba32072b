"""
Cases that somebody wrote, and graphs that were once proved wrongly: as text, in `written/` and `found/`.

A case begins with `== EXPECTED: NAME`, where EXPECTED is `proved` (and right when run), `mixes` (refused, and wrong
when run) or `refused` (whatever a run shows). Lines that may follow:

    # opset: 11                       of the standard domain; 18 unless the model says something itself
    # draw: ids whole 0 to 9          values of an input: `whole A to B`, `one of WORD…`, `plain`, `scaled`, `mask`
    # size: L one of 2 3              what to choose from for a dimension, or `ids 1` for one without a name
    # rounding: steps                 what is proved of rounding; anything unless it is said

and then the graph as onnx writes it. It may use the constants below by name.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, get_args

import numpy as np
from cases import Array, Case, Draw, Expected, text_case

from cortex.wire.batching import Rounding

_HERE: Final = Path(__file__).parent
WRITTEN: Final = _HERE / "written"
FOUND: Final = _HERE / "found"

_RNG: Final = np.random.default_rng(4)


def _noise(*shape: int) -> Array:
    return _RNG.standard_normal(shape).astype(np.float32)


def _vector(*values: int) -> Array:
    return np.array(values, np.int64)


CONSTANTS: Final[Mapping[str, Any]] = {
    # whole numbers: scalars, and vectors that begin with v
    "zero": np.int64(0), "one": np.int64(1), "two": np.int64(2), "three": np.int64(3), "four": np.int64(4),
    "five": np.int64(5), "nine": np.int64(9), "twenty": np.int64(20),
    "v0": _vector(0), "v1": _vector(1), "v2": _vector(2), "v3": _vector(3), "v4": _vector(4), "v6": _vector(6),
    "v8": _vector(8), "v01": _vector(0, 1), "v02": _vector(0, 2), "v12": _vector(1, 2), "v23": _vector(2, 3),
    "none": _vector(), "last": _vector(-1),
    "far": _vector(-(2**62)), "ends": _vector(0, 3), "any_four": _vector(-1, 4), "four_any": _vector(4, -1),
    "any_one": _vector(-1, 1), "any_two": _vector(-1, 2), "rest": _vector(0, -1), "twice": _vector(2, 1),
    "any": _vector(-1), "any_3": _vector(-1, 3), "any_3_4": _vector(-1, 3, 4), "any_3_8": _vector(-1, 3, 8),
    "any_3_2": _vector(-1, 3, 2), "any_2_4": _vector(-1, 2, 4), "any_4_1": _vector(-1, 4, 1),
    "any_1_4": _vector(-1, 1, 4), "any_4_2": _vector(-1, 4, 2), "any_1_2_2": _vector(-1, 1, 2, 2),
    "any_3_4_4": _vector(-1, 3, 4, 4), "any_3_2_4": _vector(-1, 3, 2, 4), "any_3_4_2": _vector(-1, 3, 4, 2),
    "one_any": _vector(1, -1), "one_any_4": _vector(1, -1, 4), "one_any_2": _vector(1, -1, 2),
    "before": _vector(0, 0, 1, 0), "first": _vector(0).reshape(1, 1),
    # floats: scalars, and weights whose names end in their sizes
    "f0": np.float32(0), "f1": np.float32(1), "half": np.float32(0.5), "little": np.float32(0.01),
    "low": np.float32(-1e9), "eight_rows": _noise(8, 4), "one_row": _noise(1, 4), "w44": _noise(4, 4),
    "w88": _noise(8, 8), "w43": _noise(4, 3), "w4": _noise(4), "w1": _noise(1), "table": _noise(10, 4),
    "kernel3": _noise(4, 4, 3), "spread": abs(_noise(4)), "scale_2_1_4": _noise(2, 1, 4), "lstm_w": _noise(1, 8, 4),
    "lstm_r": _noise(1, 8, 2), "lstm_w2": _noise(2, 8, 4), "lstm_r2": _noise(2, 8, 2), "cosines_5_2": _noise(5, 2),
    "w4_12": _noise(4, 12), "w12": _noise(12), "kernel1": _noise(4, 4, 1),
    # the rest
    "yes": np.bool_(True), "scale": np.float32(0.05), "middle": np.uint8(128), "zero_u8": np.uint8(0),
    "two_scales": np.array([0.05, 0.1], np.float32), "two_zeros": np.zeros(2, np.uint8),
    "two_rows_u8": _RNG.integers(0, 255, (2, 4)).astype(np.uint8),
    "kernel_u8": _RNG.integers(0, 9, (1, 4, 3)).astype(np.uint8),
    "packed_u8": _RNG.integers(0, 255, (2, 1, 16)).astype(np.uint8),
    "weights_u8": _RNG.integers(0, 255, (4, 3)).astype(np.uint8),
}  # fmt: skip
"""Only those that a graph names are put into its model."""


def written_cases() -> list[Case]:
    """All of them, in the order of their files."""
    paths = [*sorted(WRITTEN.glob("*.txt")), *sorted(FOUND.glob("*.txt"))]
    cases = [case for path in paths for case in read_cases(path)]
    names = [case.name for case in cases]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(f"several cases have the name {', '.join(sorted(twice))}")
    return cases


def read_cases(path: Path) -> Iterator[Case]:
    """
    Raises:
        ValueError: of something that is not understood; names the file and the case.
    """
    for block in re.split(r"^== ", path.read_text(), flags=re.MULTILINE)[1:]:
        head, _, rest = block.partition("\n")
        expected, _, name = head.partition(": ")
        try:
            yield _case(name.strip(), expected, rest.splitlines())
        except Exception as error:
            raise ValueError(f"{path.name}: {head}: {error}") from error


def _case(name: str, expected: str, lines: Sequence[str]) -> Case:
    if expected not in get_args(Expected):
        raise ValueError(f"{expected} is none of {', '.join(get_args(Expected))}")
    opset = 18
    draws: dict[str, Draw] = {}
    sizes: dict[str, list[int]] = {}
    rounding: Rounding | None = None
    for line in lines:
        key, _, value = line.removeprefix("# ").partition(": ")
        if not line.startswith("# ") or line.startswith("# --"):
            continue
        if key == "opset":
            opset = int(value)
        elif key == "draw":
            given, _, how = value.partition(" ")
            draws[given] = _draw(how)
        elif key == "size":
            dim, numbers = _matched(r"(.+) one of ([\d ]+)", value)
            sizes[dim] = [int(number) for number in numbers.split()]
        elif key == "rounding" and value in get_args(Rounding):
            rounding = value  # type: ignore[assignment]
        elif key != "seen":
            raise ValueError(f"not understood: {line}")
    text = "\n".join(line for line in lines if not line.startswith("#"))
    words = set(re.findall(r"\w+", text))
    constants = {key: value for key, value in CONSTANTS.items() if key in words}
    case = text_case(name, text, expected, opset=opset, constants=constants, draws=draws, sizes=sizes)  # type: ignore[arg-type]
    return dataclasses.replace(case, rounding=rounding)


def _draw(how: str) -> Draw:
    if how.startswith("whole "):
        low, high = map(int, _matched(r"whole (-?\d+) to (-?\d+)", how))
        return lambda rng, shape: rng.integers(low, high + 1, shape)
    if how.startswith("one of "):
        words = np.array(shlex.split(how.removeprefix("one of ")), object)
        return lambda rng, shape: rng.choice(words, shape)
    if how in _DRAWS:
        return _DRAWS[how]
    raise ValueError(f"no way to draw values: {how}")


_DRAWS: Final[Mapping[str, Callable[[np.random.Generator, tuple[int, ...]], Array]]] = {
    "plain": lambda rng, shape: rng.standard_normal(shape),
    "scaled": lambda rng, shape: rng.standard_normal(shape) * rng.choice([0.1, 1.0, 10.0]),
    "mask": lambda rng, shape: np.maximum(rng.random(shape) < 0.6, np.arange(shape[-1]) == 0),
}
"""`scaled`: a request has small ones or large ones; `mask`: 0 and 1 along the last dimension, which begins with 1."""


def _matched(pattern: str, text: str) -> tuple[str, ...]:
    found = re.fullmatch(pattern, text)
    if found is None:
        raise ValueError(f"not understood: {text}")
    return found.groups()
