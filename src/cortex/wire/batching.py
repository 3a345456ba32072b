"""
Whether requests may share a run of the model, what that rests on, and what was seen since. See `docs/models.md`.
"""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

import msgspec

RULES: Final = 2
"""Number of the rules in `cortex.rows`: grows whenever one of them changes, and voids every proof made before."""

MOST_ROWS: Final = 32
"""Rows that requests are run together with at most, which proofs rest on."""
MOST_ELEMENTS: Final = 2**24
"""
Elements of one row of an input; a request that has more runs alone.

Proofs rest on it: whatever is computed of sizes has to stay within its type. Rows of 64 MiB gain nothing by company.
"""

Rounding: TypeAlias = Literal["exact", "rounding", "labels", "steps"]
"""
What rounding may do to a row when others are beside it.

`exact`: nothing, every bit is the same. `rounding`: sums round in another order, within the tolerance. `labels`:
besides, a tie within the tolerance may fall the other way. `steps`: a rounding or quantisation stands behind a sum, so
that a value may move by a whole step.
"""

Mode: TypeAlias = Literal["auto", "on", "off"]
"""`batching` in cortex.yaml. `auto`: where it is proved. `on`: the user's word for what is not proved."""

TOLERANCES: Final[dict[str, tuple[float, float]]] = {
    "float64": (1e-12, 1e-9),
    "float32": (1e-6, 1e-4),
    "float16": (1e-3, 1e-2),
    "bfloat16": (1e-3, 1e-2),
}
"""
By type of the output: what a row may differ by, absolute, and as a share of the row's largest magnitude; both add up.

Source: `docs/batching.md`, 163 models alone against batched: sums in another order move a float32 row by at most
8.3e-6 of its largest value, and by 3.1e-7 where that is near 0.
"""


class SizeCondition(msgspec.Struct, frozen=True):
    """What a request must keep to, to be run with others: one size of one input. A request that does not runs alone."""

    input: str
    axis: int
    """At least 1: never the rows."""
    size: int | None = None
    """What the size must be."""
    at_most: int | None = None
    """What the size may be at most; None in both: as long as another one."""
    other_input: str = ""
    other_axis: int = 0


class Proof(msgspec.Struct, frozen=True, kw_only=True):
    """What a model's graph says about its rows."""

    rules: int
    """`RULES` that it was made by; another number voids it."""
    proved: bool
    """Each output row is a function of the input row of the same index, and of neither the number nor order of rows."""
    reason: str = ""
    """Why it is not proved, e.g. `rows are dimension 2, not 0`."""
    operator: str = ""
    """The first operator in the way, e.g. `Conv conv_7`; empty if none is."""
    rounding: Rounding = "exact"
    rounding_operator: str = ""
    """The operator that makes it `steps` or `labels`; empty for the others."""
    sizes: tuple[SizeCondition, ...] = ()
    """It is proved for requests that keep to these alone."""
    operators: int = 0
    """How many were looked at."""


class Disagreement(msgspec.Struct, frozen=True, kw_only=True):
    """A row that was answered differently alone and together."""

    output: str
    alone: str
    """The value where they differ most, as text."""
    together: str
    difference: float | None = None
    """None where values are not numbers, or shapes differ."""
    tolerance: float = 0.0


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """What running rows alone and together has shown. It guards against a wrong rule, and proves nothing."""

    runtime: str
    """What ran it, e.g. `onnxruntime 1.32.0, cpu, 2 threads`; the result says nothing about another."""
    rows: int = 0
    """How many were compared; 0: no input could be made up."""
    worst: float = 0.0
    """The largest difference, as a share of what the tolerance allows."""
    disagreement: Disagreement | None = None


class BatchingVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """What an inspection found out about a model's rows."""

    proof: Proof
    trial: Trial | None = None
    """None: nothing was to be tried."""


class BatchingOrder(msgspec.Struct, frozen=True):
    """What a replica does about batches: told at its start, and again when it changes."""

    batches: bool = False
    rounding: Rounding = "rounding"
    """What its guard takes for a disagreement."""
    sizes: tuple[SizeCondition, ...] = ()
    """Requests that do not keep to these run alone."""


class BatchingState(msgspec.Struct, frozen=True, kw_only=True):
    """What a replica does about batches now, and what its guard has seen."""

    order: BatchingOrder = BatchingOrder()
    """The last one that it was given."""
    runtime: str = ""
    """As in `Trial.runtime`."""
    guarded_rows: int = 0
    """How many rows of batches were computed again alone."""
    disagreement: Disagreement | None = None
    """Why it batches no more, whatever its order says: a row was answered differently alone and together."""
