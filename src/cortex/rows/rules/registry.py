"""Where rules are kept, and what a rule is told."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Final, TypeAlias

from cortex.rows.refusal import refuse
from cortex.rows.sizes import Dim, Symbols, Term
from cortex.rows.values import Element, Kind, Value
from cortex.wire.graphs import Attribute, Graph, LongList, Tensor

if TYPE_CHECKING:
    from cortex.rows.flow import Flow, Scope

NEWEST: Final = {"": 28, "ai.onnx.ml": 5, "com.microsoft": 1, "tensorflow": 1}
"""The newest operator set of each domain whose operators were read for these rules. A newer one is not proved."""

CHOOSES: Final = "chooses rows by their number"
ALONG_ROWS: Final = "works along the rows"
COUNTED: Final = "the number of rows used as data"


class Rounds(Enum):
    """What an operator adds to the noise of a float that depends on rows."""

    NOTHING = "nothing"
    """Bit by bit the same in a batch of any size; noise of its inputs passes through it."""
    SUMS = "sums"
    """Sums, or a curve: vector and remainder of a loop round in other ways."""
    CHOOSES = "chooses"
    """Its result jumps at a border, so that noise before it may move a label."""
    VOTES = "votes"
    """Trees: sums of what was chosen."""
    ELECTS = "elects"
    """A label that is chosen by sums of its own."""
    STEPS = "steps"
    """Rounds to a grid, so that noise before it may move the result by a whole step."""
    SUMS_AND_STEPS = "sums and steps"
    """Rounds sums of its own to a grid."""


Result: TypeAlias = "Value | Sequence[Value]"
Function: TypeAlias = "Callable[[Op], Result]"


@dataclasses.dataclass(frozen=True, slots=True)
class Rule:
    """What one operator does to rows."""

    function: Function
    rounds: tuple[Rounds, ...]
    """By output; the last counts for all further ones."""
    since: int
    until: int
    takes: frozenset[Kind]
    """Kinds besides uniform values and rows that the function expects among its inputs."""
    takes_counts: bool
    """The function copes with uniform values that count the rows."""
    keeps_bounds: bool
    """The function says what elements are below and whether they are whole; of other rules nothing is known of that."""
    when_uniform: bool
    """Of uniform inputs its outputs are uniform, whatever the function says."""


RULES: Final[dict[tuple[str, str], Rule]] = {}
"""By domain and operator."""


def rule(
    *operators: str,
    domain: str = "",
    rounds: Rounds | Iterable[Rounds] = Rounds.NOTHING,
    since: int = 1,
    until: int | None = None,
    takes: Collection[Kind] = (),
    takes_counts: bool = False,
    keeps_bounds: bool = False,
    when_uniform: bool = True,
) -> Callable[[Function], Function]:
    """Register a function as the rule of these operators."""

    def register(function: Function) -> Function:
        made = Rule(
            function,
            (rounds,) if isinstance(rounds, Rounds) else tuple(rounds),
            since,
            NEWEST[domain] if until is None else until,
            frozenset(takes),
            takes_counts,
            keeps_bounds,
            when_uniform,
        )
        for operator in operators:
            if (domain, operator) in RULES:
                raise ValueError(f"two rules for {domain} {operator}")
            RULES[domain, operator] = made
        return function

    return register


@dataclasses.dataclass(slots=True)
class Op:
    """One operator, as its rule sees it."""

    operator: str
    domain: str
    opset: int
    inputs: Sequence[Value | None]
    attributes: Mapping[str, Attribute]
    outputs: int
    """How many are named; rules may return more."""
    symbols: Symbols
    flow: Flow
    scope: Scope
    rounds: Rounds | None = None
    """Set by a rule whose operator's noise depends on types or attributes; counts for all outputs."""

    @property
    def x(self) -> Value:
        """The first input."""
        return self.value(0)

    def value(self, index: int) -> Value:
        """
        Raises:
            NotProved: it is left out.
        """
        found = self.optional(index)
        return found if found is not None else refuse(f"input {index} is left out")

    def optional(self, index: int) -> Value | None:
        return self.inputs[index] if index < len(self.inputs) else None

    @property
    def given(self) -> list[Value]:
        """Inputs that are not left out."""
        return [value for value in self.inputs if value is not None]

    def has(self, name: str) -> bool:
        return self.attributes.get(name) is not None

    def integer(self, name: str, default: int | None = None) -> int:
        found = self.attributes.get(name, default)
        if isinstance(found, bool) or not isinstance(found, int):
            refuse(f"{name} is not known")
        return found

    def integers(self, name: str, default: Sequence[int] | None = None) -> list[int]:
        found = self.attributes.get(name, default)
        if not isinstance(found, Sequence) or isinstance(found, str):
            refuse(f"{name} is not known")
        return [one if isinstance(one, int) else refuse(f"{name} is not known") for one in found]

    def optional_integers(self, name: str) -> list[int] | None:
        return self.integers(name) if self.has(name) else None

    def text(self, name: str, default: str = "") -> str:
        found = self.attributes.get(name, default)
        return found if isinstance(found, str) else refuse(f"{name} is not known")

    def strings(self, name: str) -> tuple[str, ...] | LongList:
        found = self.attributes.get(name, ())
        if isinstance(found, LongList):
            return found
        if not isinstance(found, tuple):
            refuse(f"{name} is not known")
        return tuple(one if isinstance(one, str) else refuse(f"{name} is not known") for one in found)

    def length(self, name: str) -> int | None:
        """How many elements a list attribute has; None where it is too long to have been read, or absent."""
        found = self.attributes.get(name)
        return len(found) if isinstance(found, tuple) else None

    def graph(self, name: str) -> Graph:
        found = self.attributes.get(name)
        return found if isinstance(found, Graph) else refuse(f"{name} is not known")

    def tensor(self, name: str) -> Tensor | None:
        found = self.attributes.get(name)
        return found if isinstance(found, Tensor) else None

    def fresh(self) -> Term:
        """A size that nothing is known of; it may be 0."""
        return self.symbols.fresh()

    def formula(self, name: str, *arguments: object, least: int | None = None, most: int | None = None) -> Term:
        return self.symbols.formula(name, *arguments, least=least, most=most)


def axis_of(axis: int, rank: int) -> int:
    """
    Count a negative axis from the end.

    Raises:
        NotProved: there is no such axis.
    """
    found = axis + rank if axis < 0 else axis
    return found if 0 <= found < rank else refuse(f"there is no dimension {axis} of {rank}")


def elements_of(value: Value, what: str) -> list[Element]:
    """
    Return the known elements of a uniform value.

    Raises:
        NotProved: it depends on rows, or is not known.
    """
    if not value.is_uniform:
        refuse(f"{what} depends on rows")
    if value.elements is None:
        refuse(f"{what} is not known")
    return list(value.elements)


def dims_of(value: Value, what: str) -> list[Dim]:
    """As `elements_of`, of sizes."""
    return [_dim(element, what) for element in elements_of(value, what)]


def _dim(element: Element, what: str) -> Dim:
    if isinstance(element, Term) or (isinstance(element, int) and not isinstance(element, bool)):
        return element
    return refuse(f"{what} is no size")


def numbers_of(value: Value, what: str) -> list[int]:
    """As `elements_of`, of plain integers."""
    return [dim if isinstance(dim, int) else refuse(f"{what} is not known") for dim in dims_of(value, what)]


def must_be_constant(*values: Value | None) -> None:
    """
    Raises:
        NotProved: a value depends on rows or counts them.
    """
    for value in values:
        if value is not None and (not value.is_uniform or value.counts_rows):
            refuse("an operand that must be constant depends on rows")


def must_have_rows_first(value: Value) -> None:
    """
    Raises:
        NotProved: dimension 0 is not the rows.
    """
    if not value.is_rows:
        refuse("is not made of rows")
    if value.axis != 0:
        refuse(f"rows are dimension {value.axis}, not 0")


def like(value: Value, shape: Iterable[Dim], axis: int) -> Value:
    """A value of another shape: `moved` for rows, and for what is uniform as it is."""
    if value.is_uniform:
        return dataclasses.replace(value, shape=tuple(shape), elements=None)
    return value.moved(shape, axis)
