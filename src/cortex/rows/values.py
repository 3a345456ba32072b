"""What is known of a value while rows are followed through a graph."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from enum import Enum
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cortex.rows.refusal import refuse
from cortex.rows.sizes import NUMBER_OF_ROWS, Dim, Symbols, Term, counts_rows, divided, is_widened
from cortex.wire.graphs import MAX_ELEMENTS

Element: TypeAlias = int | float | bool | str | Term
Shape: TypeAlias = tuple[Dim, ...]


class Kind(Enum):
    """What a value has to do with the rows of the batch."""

    UNIFORM = "uniform"
    """The same for each row and any number of rows, but that sizes and known elements may count the rows."""
    ROWS = "rows"
    """
    Along `axis` the size is before × N × after, and index (b × N + i) × after + a is made of input row i alone, in the
    same way whichever b and i, N and other rows are.
    """
    PLACES = "places"
    """
    As `ROWS`, but what stands there is i × `stride` + j with 0 ≤ j < `stride`, and j made of row i alone: where row i's
    elements are after N × `stride` of them have been merged. With a stride of 1 it is i itself.
    """
    NUMBERED = "numbered"
    """As `ROWS`, but made of i in another way: it has a shape, and no more use."""
    ROW_INDICES = "row indices"
    """As `ROWS`; along the last dimension the first element is i, the others are made of row i."""
    PADDED = "padded rows"
    """As `ROWS`, but filled up along the last dimension with `padding` to the longest row of the batch."""
    ITEMS = "items"
    """A list with an item a row."""
    TENSORS = "tensors"
    """A list of tensors that are all like `item`; its length, as its shape where known, does not depend on the rows."""
    MIXED = "mixed"
    """Anything else: `reason` says why."""


NUMBERS: Final = frozenset({Kind.PLACES, Kind.NUMBERED})
"""What is made of row numbers, in an array's shape."""


class Grade(Enum):
    """How far a row may move when others are beside it; see `wire.batching.Rounding`."""

    EXACT = 0
    ROUNDING = 1
    LABELS = 2
    STEPS = 3


class Noise(NamedTuple):
    """What rounding may have done to a value so far."""

    grade: Grade = Grade.EXACT
    bits: int = 64
    """Width of the coarsest float that was rounded to in another order."""
    operator: str = ""
    """What made it `labels` or `steps`."""

    def joined(self, other: Noise) -> Noise:
        worse = self if self.grade.value >= other.grade.value else other
        return Noise(worse.grade, min(self.bits, other.bits), worse.operator)


EXACT: Final = Noise()


@dataclasses.dataclass(frozen=True, slots=True)
class Value:
    """Use the functions below to make one."""

    kind: Kind
    shape: Shape | None = None
    """None: of unknown rank."""
    axis: int = -1
    before: Dim = 1
    after: Dim = 1
    elements: tuple[Element, ...] | None = None
    """Row-major; only of uniform values, and only where all are known."""
    dtype: str = ""
    """numpy's name; empty where nobody has said."""
    noise: Noise = EXACT
    is_dequantized: bool = False
    """Of a constant: onnxruntime may multiply with it in whole numbers, and rounds what is multiplied for that."""
    padding: str = ""
    item: Value | None = None
    """None in an empty list."""
    stride: Dim = 1
    """Of places: how many there are for each row."""
    is_start: bool = False
    """Of places: the first one of each row, so that j is 0."""
    below: Dim | None = None
    """Of what is uniform or made of rows: its elements are whole numbers from 0 to below this, where that is known."""
    is_whole: bool = False
    """Of floats: its elements were integers before, so that as integers they are again what they were."""
    reason: str = ""
    operator: str = ""
    """Where the rows were lost, e.g. `Conv conv_7`."""

    @property
    def rank(self) -> int:
        return len(self.known_shape)

    @property
    def known_shape(self) -> Shape:
        """
        Raises:
            NotProved: the rank is unknown.
        """
        if self.shape is None:
            refuse("a value of unknown rank")
        return self.shape

    @property
    def is_uniform(self) -> bool:
        return self.kind is Kind.UNIFORM

    @property
    def is_rows(self) -> bool:
        return self.kind is Kind.ROWS

    @property
    def counts_rows(self) -> bool:
        """A uniform value whose size or elements depend on the number of rows."""
        if self.kind is Kind.TENSORS:
            return self.item is not None and self.item.counts_rows
        if self.kind is not Kind.UNIFORM:
            return False
        return any(map(counts_rows, self.shape or ())) or any(map(counts_rows, self.elements or ()))

    @property
    def layout(self) -> tuple[Dim, Dim]:
        """How rows are merged with other sizes along `axis`."""
        return (self.before, self.after)

    def array(self) -> NDArray[Any]:
        """
        Return the known elements in shape.

        Raises:
            NotProved: they are not known.
        """
        if self.elements is None or self.shape is None or not all(isinstance(dim, int) for dim in self.shape):
            refuse("a value that has to be known is not")
        array = np.empty(len(self.elements), dtype=object)
        array[:] = self.elements
        return array.reshape(tuple(int(dim) for dim in self.shape if isinstance(dim, int)))

    def moved(self, shape: Iterable[Dim], axis: int) -> Value:
        """
        Return the same rows in another shape, with the same layout along `axis`.

        Raises:
            NotProved: the number of rows is in another dimension too.
        """
        dims = tuple(shape)
        if any(counts_rows(dim) for index, dim in enumerate(dims) if index != axis):
            refuse("the number of rows is in a second dimension")
        return dataclasses.replace(self, shape=dims, axis=axis, elements=None)

    def typed(self, dtype: str) -> Value:
        return dataclasses.replace(self, dtype=dtype)


def uniform(shape: Iterable[Dim] | None = None, dtype: str = "") -> Value:
    return Value(Kind.UNIFORM, None if shape is None else tuple(shape), dtype=dtype)


def known(array: NDArray[Any], dtype: str = "int64") -> Value:
    """
    A uniform value with these elements, an array of objects; without them if there are too many.

    Raises:
        NotProved: there are too many, and some count the rows.
    """
    shape = tuple(int(size) for size in array.shape)
    elements: tuple[Element, ...] | None = tuple(_plain(element) for element in array.reshape(-1))
    if array.size > MAX_ELEMENTS:
        if any(map(counts_rows, elements or ())):
            refuse("the number of rows used as data")
        elements = None
    return Value(Kind.UNIFORM, shape, elements=elements, dtype=dtype)


def unknown(value: Value) -> Value:
    """The same rows in the same shape, whatever the elements are."""
    return value if value.elements is None else dataclasses.replace(value, elements=None)


def vector(elements: Sequence[Element], dtype: str = "int64") -> Value:
    """A uniform vector of known elements."""
    return Value(Kind.UNIFORM, (len(elements),), elements=tuple(elements), dtype=dtype)


def scalar(element: Element, dtype: str = "int64") -> Value:
    return Value(Kind.UNIFORM, (), elements=(element,), dtype=dtype)


def rows(shape: Iterable[Dim], axis: int = 0, *, before: Dim = 1, after: Dim = 1, dtype: str = "") -> Value:
    return Value(Kind.ROWS, before=before, after=after, dtype=dtype).moved(shape, axis)


def filled(shape: Iterable[Dim], axis: int, dtype: str = "") -> Value:
    """
    A value that is the same all over, as long along `axis` as a multiple of the number of rows.

    Raises:
        NotProved: it is no multiple.
    """
    dims = tuple(shape)
    size = dims[axis]
    if not isinstance(size, Term) or not size.is_multiple_of_rows:
        refuse("the number of rows in a formula")
    after = divided(size, NUMBER_OF_ROWS)
    return rows(dims, axis, after=1 if after is None else after, dtype=dtype)


def tensors(item: Value | None) -> Value:
    return Value(Kind.TENSORS, item=item, noise=item.noise if item is not None else EXACT)


def items() -> Value:
    return Value(Kind.ITEMS)


def mixed(reason: str, operator: str = "") -> Value:
    return Value(Kind.MIXED, reason=reason, operator=operator)


def _plain(element: Any) -> Element:
    """A Python number for a numpy one."""
    plain: Element = element.item() if isinstance(element, np.generic) else element
    return plain


def joined(a: Value, b: Value, symbols: Symbols, since: int | None = None) -> Value:
    """
    What is known of a value that is either `a` or `b`: of two branches, or of two turns of a loop.

    Args:
        since: index of the first symbol made within the loop. A size that it widened before needs not be widened again;
            one that was widened outside is a certain size in all turns.
    """
    if a.kind is Kind.MIXED or b.kind is Kind.MIXED:
        return a if a.kind is Kind.MIXED else b
    if a == b:
        return a
    noise = a.noise.joined(b.noise)
    dtype = a.dtype if a.dtype == b.dtype else ""
    if a.kind is b.kind is Kind.TENSORS:
        length = a.shape if a.shape == b.shape else None
        if a.item is None or b.item is None:
            return dataclasses.replace(a if b.item is None else b, shape=length, noise=noise)
        item = joined(a.item, b.item, symbols, since)
        return item if item.kind is Kind.MIXED else dataclasses.replace(tensors(item), shape=length, noise=noise)
    if a.kind is b.kind is Kind.ITEMS:
        return dataclasses.replace(a, noise=noise)
    if a.counts_rows or b.counts_rows:
        return mixed("the number of rows used as data")
    if a.kind is b.kind is Kind.UNIFORM:
        if a.shape is None or b.shape is None or len(a.shape) != len(b.shape):
            return uniform(dtype=dtype)
        return uniform(_widened(a.shape, b.shape, symbols, since), dtype)
    if (
        a.kind is b.kind is Kind.ROWS
        and a.rank == b.rank
        and a.axis == b.axis
        and a.layout == b.layout
        and a.known_shape[a.axis] == b.known_shape[b.axis]
    ):
        shape = _widened(a.known_shape, b.known_shape, symbols, since)
        below = a.below if a.below == b.below else None
        is_whole = a.is_whole and b.is_whole
        return dataclasses.replace(a, shape=shape, noise=noise, dtype=dtype, below=below, is_whole=is_whole)
    return mixed("branches or turns of a loop differ in where the rows are")


def _widened(a: Shape, b: Shape, symbols: Symbols, since: int | None) -> Shape:
    def one(p: Dim, q: Dim) -> Dim:
        if p == q or (since is not None and is_widened(p, since)):
            return p
        return symbols.fresh(widened=True)

    return tuple(one(p, q) for p, q in zip(a, b, strict=True))


def element_count(shape: Sequence[Dim]) -> int | None:
    """How many elements, where each size is a number."""
    sizes = [dim for dim in shape if isinstance(dim, int)]
    return math.prod(sizes) if len(sizes) == len(shape) else None
