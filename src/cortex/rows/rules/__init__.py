"""What each operator does to rows: a function or a line of a table for each, by domain and name."""

from cortex.rows.rules import (  # noqa: F401  (importing them registers their rules)
    attention,
    classical,
    control,
    elementwise,
    indexing,
    layout,
    never,
    products,
    recurrent,
    reductions,
    sequences,
    shapes,
    tensorflow,
    windows,
)
