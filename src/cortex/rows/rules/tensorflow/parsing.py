"""TensorFlow's own format of records: one serialised `tf.Example` a row."""

from __future__ import annotations

from collections.abc import Sequence

from cortex.rows.refusal import refuse
from cortex.rows.rules.registry import Op, must_be_constant
from cortex.rows.rules.tensorflow.registry import rule
from cortex.rows.values import Value, mixed, rows
from cortex.wire.graphs import Shapes

_LISTS = "a list of what is in all rows"


@rule("ParseExample")
def parse(call: Op) -> list[Value]:
    return [*[mixed(_LISTS)] * (3 * call.integer("Nsparse")), *_dense(call)]


@rule("ParseExampleV2")
def parse_with_ragged(call: Op) -> list[Value]:
    ragged = call.length("ragged_value_types") or 0
    return [*[mixed(_LISTS)] * (3 * call.integer("num_sparse")), *_dense(call), *[mixed(_LISTS)] * (2 * ragged)]


def _dense(call: Op) -> Sequence[Value]:
    """Features of a shape that is the same in each record; of a free length they are padded to the longest."""
    records = call.x
    must_be_constant(*call.inputs[1:])
    if not records.is_rows or records.rank != 1:
        refuse("is not made of a record a row")
    dtypes, shapes = call.strings("Tdense"), call.attributes.get("dense_shapes")
    if not isinstance(dtypes, tuple) or not isinstance(shapes, Shapes) or len(dtypes) != len(shapes.shapes):
        refuse("shapes of features are not known")
    return [_feature(records, shape, dtype) for shape, dtype in zip(shapes.shapes, dtypes, strict=True)]


def _feature(records: Value, shape: tuple[int, ...] | None, dtype: str) -> Value:
    if shape is None:
        return mixed("a feature of unknown shape")
    if any(size < 0 for size in shape):
        return mixed("padded to the longest row of the batch")
    return rows([records.known_shape[0], *shape], before=records.before, after=records.after, dtype=dtype)
