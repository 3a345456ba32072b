"""
Rows alone and together, run by an inspection before anyone's requests are: a guard against a wrong proof, and no proof.

Rows come from the api's own sample and are made up, of several lengths where those are free, and several magnitudes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from cortex.replica.backends.base import Backend, InferenceFailed
from cortex.replica.backends.made_up_feeds import candidates, synthetic_feeds
from cortex.replica.prediction.agreement import Judge, compare, failed_together, row_of, rows_lost
from cortex.replica.prediction.batching import Job, NotRowwise, Outputs, keeps_to, may_be_batched, merge, split
from cortex.replica.tensors.conversion import Feeds
from cortex.wire.batching import Disagreement, Rounding, SizeCondition, Trial
from cortex.wire.signature import Signature, TensorSpec

MAX_ROWS: Final = 8
"""Of a batch."""
MAX_S: Final = 2.0
"""For all of it, but for the run during which the time ends."""
MAX_FEEDS_BYTES: Final = 64 * 2**20
"""Of rows held at once, each of them alone and in a batch."""

_LENGTHS: Final = (1, 2, 3, 7)
"""Free dimensions in multiples of the first size that was accepted."""
_MAGNITUDES: Final = (1.0, 0.01, 10.0)
"""
Of floats, in one batch: what scales by the largest of all rows shows so. No larger: behind a softmax of large numbers a
sum's rounding alone is beyond the tolerance.
"""
_LIMITS: Final = (2, 3, 10, 100)
"""Integers are below one of these: masks, tokens of a small vocabulary, and of larger ones."""
_TEXTS: Final = ("a", "b a", "", "the cat sat on the mat", "hello world", "x y z")
"""Of different lengths, since text is padded to the longest."""


def try_rows(
    backend: Backend,
    rounding: Rounding,
    *,
    sample: Feeds | None,
    clock_s: Callable[[], float],
    sizes: Sequence[SizeCondition] = (),
) -> Trial:
    """
    Run rows alone and together, and compare.

    Args:
        backend: with the options that replicas run it with.
        rounding: what may differ.
        sample: the api's own as the model gets it; None where only a handler can tell.
        clock_s: any clock in seconds.
        sizes: rows that do not keep to these are not tried, since they are never together.

    Returns:
        With no rows where none could be made up that the model accepts, or a run takes too long.
    """
    attempt = _Attempt(backend, rounding, clock_s, sizes)
    disagreement = None
    if may_be_batched(backend.signature):
        try:
            disagreement = attempt.disagreement(sample)
        except _TimeUp:
            pass
    judge = attempt.judge
    return Trial(runtime=backend.runtime, rows=judge.rows, worst=judge.worst, disagreement=disagreement)


class _TimeUp(Exception):
    """No further run is begun."""


class _Attempt:
    def __init__(
        self, backend: Backend, rounding: Rounding, clock_s: Callable[[], float], sizes: Sequence[SizeCondition]
    ) -> None:
        self.judge = Judge()
        self._backend = backend
        self._signature = backend.signature
        self._sizes = sizes
        self._rounding = rounding
        self._clock_s = clock_s
        self._deadline_s = clock_s() + MAX_S
        self._random = np.random.default_rng(0)

    def disagreement(self, sample: Feeds | None) -> Disagreement | None:
        """The first one found. Raises _TimeUp."""
        for rows in self._groups(sample):
            if not keeps_to(self._sizes, rows[0]):
                continue
            found = self._try_together(rows)
            if found is not None:
                return found
        return None

    def _run(self, feeds: Feeds) -> Outputs:
        """Raises InferenceFailed, _TimeUp."""
        if self._clock_s() >= self._deadline_s:
            raise _TimeUp
        return self._backend.run(feeds)

    # ---- rows ---------------------------------------------------------------------------------------------------

    def _groups(self, sample: Feeds | None) -> Iterator[list[Feeds]]:
        """Yield rows that may be in one batch; not all of them need be accepted."""
        if sample is not None and (rows := self._rows_of_sample(sample)):
            yield rows
        for base in self._made_up():
            if rows := self._varied([base], self._made_up_value):
                yield rows

    def _rows_of_sample(self, sample: Feeds) -> list[Feeds]:
        job = Job(sample, lambda *_: None, [spec.name for spec in self._signature.inputs if spec.optional])
        if job.key is None:
            return []
        first = range(min(job.rows, MAX_ROWS))
        rows = [{name: value[row : row + 1] for name, value in sample.items()} for row in first]
        return self._varied(rows, self._sampled_value)

    def _made_up(self) -> Iterator[Feeds]:
        """Yield a row of each length, once one is found that the model accepts."""
        signature = _narrowed(self._signature, self._sizes)
        for candidate in candidates(signature):
            try:
                self._run(candidate.feeds)
            except InferenceFailed:
                continue
            break
        else:
            return
        seen = []
        for multiple in _LENGTHS:
            try:
                feeds = synthetic_feeds(signature, free=multiple * candidate.free, whole=candidate.whole)
            except ValueError:
                return
            shapes = [np.shape(value) for value in feeds.values()]
            if shapes not in seen and all(shape[:1] == (1,) for shape in shapes):
                seen.append(shapes)
                yield feeds

    def _varied(self, rows: list[Feeds], vary: Callable[[NDArray[Any], int], NDArray[Any]]) -> list[Feeds]:
        """The rows with others that are like them, as many as are run together; none if not even two may be held."""
        size_bytes = sum(value.nbytes for value in rows[0].values())
        most = min(MAX_ROWS, MAX_FEEDS_BYTES // (2 * max(size_bytes, 1)))
        if most < 2:
            return []
        missing = range(max(0, most - len(rows)))
        return rows[:most] + [
            {name: vary(value, number) for name, value in rows[number % len(rows)].items()} for number in missing
        ]

    def _made_up_value(self, value: NDArray[Any], number: int) -> NDArray[Any]:
        shape, kind = value.shape, value.dtype.kind
        if kind == "f":
            draw = self._random.random if number % 2 else self._random.standard_normal
            return (draw(shape) * _MAGNITUDES[number % len(_MAGNITUDES)]).astype(value.dtype)
        if kind in "iu":
            limit = 256 if value.dtype == np.uint8 else _LIMITS[number % len(_LIMITS)]
            return self._random.integers(0, limit, shape).astype(value.dtype)
        if kind == "b":
            return self._random.random(shape) < 0.5
        return self._chosen(_TEXTS, shape)

    def _sampled_value(self, value: NDArray[Any], number: int) -> NDArray[Any]:
        """Of the sample's own elements, so that tokens stay in the vocabulary; floats also of other magnitudes."""
        elements = value.ravel()
        if value.dtype.kind == "f":
            shuffled: NDArray[Any] = self._random.permutation(elements).reshape(value.shape)
            with np.errstate(over="ignore"):
                return (shuffled * _MAGNITUDES[number % len(_MAGNITUDES)]).astype(value.dtype)
        if value.dtype.kind == "O":
            return self._chosen(elements.tolist() if number % 2 else _TEXTS, value.shape)
        drawn: NDArray[Any] = self._random.choice(elements, value.shape)
        return drawn if number % 2 else np.zeros_like(value)

    def _chosen(self, texts: Sequence[Any], shape: tuple[int, ...]) -> NDArray[Any]:
        chosen = np.empty(shape, dtype=object)
        for place in np.ndindex(shape):
            chosen[place] = texts[int(self._random.integers(len(texts)))]
        return chosen

    # ---- runs ---------------------------------------------------------------------------------------------------

    def _try_together(self, rows: list[Feeds]) -> Disagreement | None:
        """Run rows in several orders. Raises _TimeUp."""
        everyone = list(range(len(rows)))
        shuffled = self._random.permutation(everyone).tolist()
        known: dict[int, Outputs | None] = {}
        for order in ([0, 1], [2, 1, 0], everyone, shuffled):
            taken = [row for row in order if row < len(rows) and self._alone(rows, row, known) is not None]
            if len(taken) < 2:
                continue
            alone = [known[row] for row in taken]
            try:
                outputs = self._run(merge([rows[row] for row in taken]))
                split(outputs, [1] * len(taken))
            except NotRowwise as error:
                return rows_lost(error, self._signature)
            except InferenceFailed as error:
                return failed_together(str(error))
            for place, one in enumerate(alone):
                assert one is not None
                found = self.judge.weigh(compare(one, row_of(outputs, place), self._signature, self._rounding))
                if found is not None:
                    return found
        return None

    def _alone(self, rows: list[Feeds], row: int, known: dict[int, Outputs | None]) -> Outputs | None:
        """What a row gives alone, run once; None if it fails."""
        if row not in known:
            try:
                known[row] = self._run(rows[row])
            except InferenceFailed:
                known[row] = None
        return known[row]


def _narrowed(signature: Signature, sizes: Sequence[SizeCondition]) -> Signature:
    """A signature with sizes fixed that have to be one number; those that are free are all made up alike."""
    fixed = {(one.input, one.axis): one.size for one in sizes if one.size is not None}
    for spec in signature.inputs:
        fixed |= {(spec.name, axis): dim for axis, dim in enumerate(spec.shape or ()) if isinstance(dim, int)}
    for _ in sizes:  # what is as long as a fixed one is fixed too, over any number of steps
        for one in sizes:
            ends = ((one.input, one.axis), (one.other_input, one.other_axis))
            for end, other in (ends, ends[::-1]):
                if one.size is None and one.at_most is None and other in fixed:
                    fixed.setdefault(end, fixed[other])

    def narrowed(spec: TensorSpec) -> TensorSpec:
        if spec.shape is None:
            return spec
        return msgspec.structs.replace(
            spec, shape=tuple(fixed.get((spec.name, axis), dim) for axis, dim in enumerate(spec.shape))
        )

    return msgspec.structs.replace(signature, inputs=tuple(map(narrowed, signature.inputs)))
