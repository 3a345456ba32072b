"""
Whether rows are answered alike alone and together: by running them, in the way that a replica runs them.

What is proved is judged by this, so nothing here may look at the prover.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, Protocol, TypeAlias

import numpy as np
import onnx
from noise import RUNS, SEED, explained, noisy
from numpy.typing import NDArray

from cortex.replica.backends.base import InferenceFailed, ModelError
from cortex.replica.backends.onnx import load
from cortex.replica.prediction.batching import merge
from cortex.wire.batching import TOLERANCES, Rounding
from cortex.wire.signature import Signature

Feeds: TypeAlias = Mapping[str, NDArray[Any]]
"""What one request feeds the model: inputs with as many rows each."""
Batch: TypeAlias = Sequence[Feeds]
"""Requests of equal trailing shapes, which are run together."""

THREADS: Final = (1, 2)
"""A run is split differently among threads, and sums with it."""
MOST_UNEXPLAINED: Final = 0.02
"""
Share of rows that may be labelled, or stepped, otherwise than they are by themselves, however sums round there.

Where two labels are as likely as rounding is fine, or a value stands as near to a border, the last bit decides: such a
row is also answered otherwise by itself once noise is added to what is between, see `noise`. How many of them there are
says nothing: of a sum in 32-bit floats that becomes a 64-bit one nearly all differ beyond what 64 bits are allowed.
What is left are rows whose rounding that noise does not reach, behind inner graphs or exact numbers: one in thousands.
Where rows mix it is nearly every one.
"""
_CONFIRMED_BY: Final = 40
"""Batches that are run besides when a label or step was seen to fall the other way."""

Problem: TypeAlias = Literal["values", "rows", "failure"]
"""`values`: rows differ; `rows`: another number of them; `failure`: only the batch is refused."""


class Wrong(NamedTuple):
    """Rows that are answered differently together."""

    problem: Problem
    text: str


@dataclasses.dataclass
class Truth:
    """What was seen."""

    rows: int = 0
    """How many were compared; 0: of no batch the model took two requests."""
    moved: int = 0
    """How many were not equal in each bit."""
    flipped: int = 0
    """How many differed beyond the tolerance in a model whose labels or steps may,"""
    unexplained: int = 0
    """and of these how many are not answered like that by themselves, however sums round."""
    worst: float = 0.0
    """The largest difference, as a share of what the tolerance allows."""
    wrong: Wrong | None = None

    @property
    def is_right(self) -> bool:
        return self.rows > 0 and self.wrong is None


class DoesNotLoad(Exception):
    """onnxruntime, or Cortex, does not take the model."""


@contextlib.contextmanager
def stored(model: onnx.ModelProto) -> Iterator[Path]:
    """A model as a file, where a file costs next to nothing."""
    folder = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.NamedTemporaryFile(dir=folder, prefix="cortex-rows-", suffix=".onnx") as file:
        file.write(model.SerializeToString())
        file.flush()
        yield Path(file.name)


def examine(
    model: onnx.ModelProto,
    draw: Callable[[], Batch],
    *,
    rounding: Rounding = "rounding",
    batches: int = 6,
    threads: Iterable[int] = THREADS,
) -> Truth:
    """
    Run requests alone and together, and compare.

    Args:
        model: loaded as a replica loads it.
        draw: returns requests that a replica may put into one batch, other ones each time.
        rounding: what the proof says that rounding may do.
        batches: how many are drawn for each number of threads. Those of which no request is accepted count.

    Raises:
        DoesNotLoad: the model cannot be served.
    """
    truth = Truth()
    with stored(model) as path:
        for count in threads:
            try:
                backend = load(str(path), threads=count)
            except ModelError as error:
                raise DoesNotLoad(str(error)) from error
            noise = _Noise(model)
            try:
                compare(backend, draw, rounding, batches=batches, truth=truth, noise=noise)
            finally:
                backend.close()
                noise.close()
            if truth.wrong is not None:
                break
    return truth


class Model(Protocol):
    """Something that runs: a backend of a replica."""

    @property
    def signature(self) -> Signature: ...

    def run(self, feeds: Mapping[str, Any]) -> Sequence[Any]: ...


class Rerun(Protocol):
    """Says what a request may come to."""

    def __call__(self, feeds: Feeds, /) -> list[Sequence[Any]] | None:
        """Outputs of several runs, with sums rounded otherwise in each; None where that cannot be done."""
        ...


class _Noise:
    """The runs of a noisy model, which is loaded once it is asked for."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = model
        self._is_made = False
        self._rng = np.random.default_rng(0)
        self._backend: Any = None

    def __call__(self, feeds: Feeds) -> list[Sequence[Any]] | None:
        if not self._is_made:
            self._is_made = True
            self._backend = self._loaded()
        if self._backend is None:
            return None
        try:
            return [self._backend.run({**feeds, SEED: np.array(seed)}) for seed in self._rng.uniform(1, 1e3, RUNS)]
        except InferenceFailed:
            return None

    def close(self) -> None:
        if self._backend is not None:
            self._backend.close()

    def _loaded(self) -> Any:
        made = noisy(self._model)
        if made is None:
            return None
        with stored(made) as path:
            try:
                return load(str(path), threads=1)
            except ModelError:
                return None


def compare(
    model: Model,
    draw: Callable[[], Batch],
    rounding: Rounding,
    *,
    batches: int,
    truth: Truth | None = None,
    noise: Rerun = lambda feeds: None,
) -> Truth:
    """As `examine`, of a model that is loaded; what is seen is added to a truth."""
    truth = Truth() if truth is None else truth
    left = batches
    last: Wrong | None = None
    was_confirmed = False
    while left:
        left -= 1
        found, is_flip = _try(model, draw(), rounding, truth, noise)
        if found is not None and not is_flip:
            truth.wrong = found
            return truth
        last = found or last
        if found is not None and not was_confirmed:
            left, was_confirmed = left + _CONFIRMED_BY, True
    if truth.unexplained > max(1.0, MOST_UNEXPLAINED * truth.rows):
        truth.wrong = last
    return truth


def _try(model: Model, batch: Batch, rounding: Rounding, truth: Truth, noise: Rerun) -> tuple[Wrong | None, bool]:
    """
    Run one batch, and add to the truth what was seen. Returns what differs, and whether it may, now and then.

    Where labels or steps may differ, nothing does that noise explains.
    """
    feeds, alone = [], []
    for one in batch:
        try:
            outputs = model.run(one)
        except InferenceFailed:
            continue
        feeds.append(one)
        alone.append(outputs)
    if not feeds:
        return None, False
    total = sum(_rows(one) for one in feeds)
    for one, outputs in zip(feeds, alone, strict=True):
        problem = _misshapen(outputs, _rows(one))
        if problem:
            truth.rows += total
            return Wrong("rows", f"alone: {problem}"), False
    if len(feeds) == 1:
        return None, False
    try:
        together = model.run(merge([dict(one) for one in feeds]))
    except InferenceFailed as error:
        truth.rows += total
        return Wrong("failure", str(error)), False
    truth.rows += total
    problem = _misshapen(together, total)
    if problem:
        return Wrong("rows", f"together: {problem}"), False
    moved = np.zeros(total, bool)
    beyond = np.zeros(total, bool)
    compared = np.concatenate([_is_finite(one) for one in feeds])
    text = ""
    for index, spec in enumerate(model.signature.outputs):
        found = difference([outputs[index] for outputs in alone], together[index], spec.dtype)
        if found is None:
            return Wrong("values", f'output "{spec.name}": shapes of rows differ'), False
        found = np.where(compared, found, 0.0)
        if compared.all():
            found = np.where(_one_is_nan([outputs[index] for outputs in alone], together[index]), 0.0, found)
        moved |= found > 0
        finite = found[np.isfinite(found) & (found <= 1)]
        truth.worst = max(truth.worst, float(finite.max(initial=0.0)))
        far = found > (0 if rounding == "exact" else 1)
        if far.any() and not text:
            row = int(found.argmax())
            text = f'output "{spec.name}", row {row} of {total} in {len(feeds)} requests: ' + _both(
                [outputs[index] for outputs in alone], together[index], row, float(found[row])
            )
        beyond |= far
    truth.moved += int(moved.sum())
    if not text:
        return None, False
    if rounding not in ("labels", "steps"):
        return Wrong("values", text), False
    truth.flipped += int(beyond.sum())
    left = beyond & ~_explained(model.signature, feeds, together, beyond, noise)
    truth.unexplained += int(left.sum())
    return (Wrong("values", text), True) if left.any() else (None, False)


def _explained(
    signature: Signature, feeds: Sequence[Feeds], together: Sequence[Any], beyond: NDArray[np.bool_], noise: Rerun
) -> NDArray[np.bool_]:
    """Which rows of a batch are answered as they may be by themselves; only those asked for are looked at."""
    result = np.zeros(len(beyond), bool)
    for row in np.flatnonzero(beyond):
        runs = noise(_row(feeds, int(row)))
        result[row] = runs is not None and all(
            explained(together[index][row : row + 1], [run[index] for run in runs], spec.dtype).all()
            for index, spec in enumerate(signature.outputs)
        )
    return result


def _row(feeds: Sequence[Feeds], row: int) -> Feeds:
    """One row of a batch, by itself: beside what is not finite noise would not be either."""
    for one in feeds:
        if row < _rows(one):
            return {name: value[row : row + 1] for name, value in one.items()}
        row -= _rows(one)
    raise IndexError(row)


def difference(alone: Sequence[Any], together: Any, dtype: str) -> NDArray[np.float64] | None:
    """
    How far each row is off, as a share of what the tolerance allows.

    Args:
        alone: one output of each request.
        together: the same of the batch.
        dtype: as the signature has it: bfloat16 comes in float32 arrays.

    Returns:
        Shape (rows,): 0 only where all bits are equal, and infinite for text, integers and whatever else has no
        tolerance. None if the shapes of rows differ.
    """
    if isinstance(together, list):
        return _difference_of_items([item for output in alone for item in output], together, dtype)
    if len({output.shape[1:] for output in (*alone, together)}) > 1:
        return None
    a, b = np.concatenate(alone), together
    rows = len(b)
    a, b = a.reshape(rows, -1), b.reshape(rows, -1)
    if dtype not in TOLERANCES:
        return np.where((a != b).any(axis=1), np.inf, 0.0)
    absolute, relative = TOLERANCES[dtype]
    a, b = a.astype(np.float64), b.astype(np.float64)
    equal = ((a == b) & (np.signbit(a) == np.signbit(b))) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore", over="ignore"):
        off = np.where(equal, 0.0, np.abs(a - b))
    off = np.where(np.isnan(off), np.inf, off)
    off = np.where((off == 0) & ~equal, np.finfo(np.float64).tiny, off)  # zeros of either sign
    largest = np.where(np.isfinite(a), np.abs(a), 0.0).max(axis=1, initial=0.0)
    shares: NDArray[np.float64] = off.max(axis=1, initial=0.0) / (absolute + relative * largest)
    return shares


def _difference_of_items(alone: Sequence[Any], together: Sequence[Any], dtype: str) -> NDArray[np.float64] | None:
    """As `difference`, of lists with an item a row: maps, or tensors."""
    found = []
    for a, b in zip(alone, together, strict=True):
        if isinstance(b, Mapping):
            if list(a) != list(b):
                return None
            a, b = np.array(list(a.values())), np.array(list(b.values()))
        a, b = np.asarray(a)[None], np.asarray(b)[None]
        one = difference([a], b, dtype)
        if one is None:
            return None
        found.append(float(one[0]))
    return np.array(found)


def _is_finite(feeds: Feeds) -> NDArray[np.bool_]:
    """
    Rows that are fed numbers only.

    The others are there for what they may do to their neighbours. What becomes of themselves depends on where in a
    vector they stand: onnxruntime's ReduceMax and TopK find NaN in the first elements and overlook it in the last.
    """
    result = np.ones(_rows(feeds), bool)
    for value in feeds.values():
        if value.dtype.kind == "f":
            result &= np.isfinite(value).reshape(len(value), -1).all(axis=1)
    return result


def _one_is_nan(alone: Sequence[Any], together: Any) -> NDArray[np.bool_]:
    """Rows with a NaN in one of both answers. Where none was fed the model made it itself: see `_is_finite`."""
    if isinstance(together, list) or together.dtype.kind != "f" or len({one.ndim for one in alone}) > 1:
        return np.zeros(len(together), bool)
    a, b = (np.isnan(one).reshape(len(one), -1).any(axis=1) for one in (np.concatenate(alone), together))
    return np.asarray(a != b)


def _misshapen(outputs: Sequence[Any], rows: int) -> str:
    """Which output has not as many rows; empty if all have."""
    for index, output in enumerate(outputs):
        if isinstance(output, np.ndarray):
            if output.ndim == 0 or output.shape[0] != rows:
                return f"{rows} rows went in, output {index} of shape {list(output.shape)} came out"
        elif not isinstance(output, list) or len(output) != rows:
            size = f" of {len(output)}" if isinstance(output, list) else ""
            return f"{rows} rows went in, output {index} came out as a {type(output).__name__}{size}"
    return ""


def _both(alone: Sequence[Any], together: Any, row: int, share: float) -> str:
    a = [item for output in alone for item in output][row]
    text = f"{_short(a)} alone, {_short(together[row])} together"
    return text if not np.isfinite(share) else f"{text} ({share:.3g} of the tolerance)"


def _short(value: Any) -> str:
    text = np.array2string(value, threshold=8, precision=8) if isinstance(value, np.ndarray) else str(value)
    text = " ".join(text.split())
    return text if len(text) <= 160 else text[:159] + "…"


def _rows(feeds: Feeds) -> int:
    return len(next(iter(feeds.values())))
