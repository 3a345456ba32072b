"""What TensorFlow's models keep: variables and tables, which are read and not written while a request is served."""

from __future__ import annotations

from typing import Final

from cortex.rows.refusal import refuse
from cortex.rows.rules.registry import Op
from cortex.rows.rules.tensorflow.arrays import gathered_in_batches
from cortex.rows.rules.tensorflow.registry import rule
from cortex.rows.values import Kind, Value, tensors, uniform, vector

_HANDLE: Final = frozenset({Kind.TENSORS})
"""A variable is known as a list of what it holds, and a table as one of the values of its keys."""


def _declared(call: Op) -> Value:
    """A variable's value, as far as it is declared."""
    shape = call.attributes.get("shape")
    dtype = call.text("dtype")
    if not isinstance(shape, tuple):
        return uniform(None, dtype)
    return uniform((size if isinstance(size, int) and size >= 0 else call.fresh() for size in shape), dtype)


def _held(value: Value) -> Value:
    if value.kind is Kind.TENSORS:
        return value.item if value.item is not None else refuse("is no variable")
    return uniform()


@rule("VarHandleOp", when_uniform=False)
def variable(call: Op) -> Value:
    return tensors(_declared(call))


@rule("VariableV2", "Variable")
def variable_of_old(call: Op) -> Value:
    return _declared(call)


@rule("ReadVariableOp", takes=_HANDLE)
def read(call: Op) -> Value:
    return _held(call.x).typed(call.text("dtype"))


@rule("VariableShape", takes=_HANDLE)
def shape_of(call: Op) -> Value:
    return vector(_held(call.x).known_shape, call.text("out_type", "int32"))


@rule("VarIsInitializedOp", "IsVariableInitialized", takes=_HANDLE)
def is_there(call: Op) -> Value:
    return uniform((), "bool")


@rule("ResourceGather", takes=_HANDLE)
def gather(call: Op) -> Value:
    found = gathered_in_batches(call, _held(call.x), call.value(1), 0, call.integer("batch_dims", 0))
    return found.typed(call.text("dtype"))


@rule("ResourceGatherNd", takes=_HANDLE)
def gather_nd(call: Op) -> Value:
    """Of a variable by indices, whose last dimension is one index."""
    held, index = _held(call.x), call.value(1)
    depth = index.known_shape[-1]
    if not isinstance(depth, int):
        refuse("an index of unknown depth")
    shape = [*index.known_shape[:-1], *held.known_shape[depth:]]
    found = index.moved(shape, index.axis) if index.is_rows else uniform(shape)
    return found.typed(call.text("dtype"))


@rule("HashTable", "HashTableV2", "MutableHashTable", "MutableHashTableV2", when_uniform=False)
def table(call: Op) -> Value:
    return tensors(uniform(()))


@rule("MutableHashTableOfTensorsV2", when_uniform=False)
def table_of_tensors(call: Op) -> Value:
    shape = call.attributes.get("value_shape", ())
    return tensors(uniform(call.integers("value_shape") if isinstance(shape, tuple) else None))


@rule("LookupTableFind", "LookupTableFindV2", takes=_HANDLE)
def look_up(call: Op) -> Value:
    """
    Key by key. What a table holds for a key may be more than one value, and the default as many.

    A default of another shape is one for each key, of as many keys as there happen to be.
    """
    held, keys, default = _held(call.x).known_shape, call.value(1), call.value(2)
    if default.shape != held:
        refuse("a default that is not one for all keys")
    shape = [*keys.known_shape, *held]
    found = keys.moved(shape, keys.axis) if keys.is_rows else uniform(shape)
    return found.typed(call.text("Tout"))


@rule("LookupTableSize", "LookupTableSizeV2", takes=_HANDLE)
def table_size(call: Op) -> Value:
    return uniform((), "int64")


@rule("LookupTableExportV2", takes=_HANDLE)
def exported(call: Op) -> list[Value]:
    count = call.fresh()
    return [uniform((count,)), uniform((count,))]


@rule("DeviceIndex")
def device(call: Op) -> Value:
    return uniform((), "int32")
