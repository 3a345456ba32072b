"""Lists of tensors that are all alike, of a length that does not depend on the rows."""

from __future__ import annotations

import dataclasses

from cortex.rows.refusal import refuse
from cortex.rows.rules.control import stacked
from cortex.rows.rules.registry import ALONG_ROWS, Op, axis_of, like, must_be_constant, rule
from cortex.rows.sizes import Dim
from cortex.rows.values import Kind, Value, joined, tensors, uniform

_LISTS = {Kind.TENSORS}


@rule("SequenceConstruct", when_uniform=False, since=11)
def construct(call: Op) -> Value:
    item = call.x
    for value in call.given[1:]:
        item = joined(item, value, call.symbols)
    return _list_of(item)


@rule("SequenceEmpty", when_uniform=False, since=11)
def empty(call: Op) -> Value:
    return tensors(None)


@rule("SequenceInsert", takes=_LISTS, when_uniform=False, since=11)
def insert(call: Op) -> Value:
    must_be_constant(call.optional(2))
    known = _list(call).item
    return _list_of(call.value(1) if known is None else joined(known, call.value(1), call.symbols))


@rule("SequenceErase", takes=_LISTS, when_uniform=False, since=11)
def erase(call: Op) -> Value:
    must_be_constant(call.optional(1))
    return _list(call)


@rule("SequenceAt", takes=_LISTS, when_uniform=False, since=11)
def at(call: Op) -> Value:
    must_be_constant(call.value(1))
    return _item(call)


@rule("SequenceLength", takes=_LISTS, when_uniform=False, since=11)
def length(call: Op) -> Value:
    _list(call)
    return uniform((), "int64")


@rule("SplitToSequence", when_uniform=False, since=11)
def split(call: Op) -> Value:
    x, sizes = call.x, call.optional(1)
    axis = axis_of(call.integer("axis", 0), x.rank)
    must_be_constant(sizes)
    if x.is_rows and axis == x.axis:
        refuse(ALONG_ROWS)
    shape = list(x.known_shape)
    if sizes is None and not call.integer("keepdims", 1):
        del shape[axis]
        return tensors(like(x, shape, x.axis - (axis < x.axis)))
    shape[axis] = 1 if sizes is None else call.symbols.fresh(widened=True)
    return tensors(like(x, shape, x.axis))


@rule("ConcatFromSequence", takes=_LISTS, when_uniform=False, since=11)
def concat(call: Op) -> Value:
    """
    All items one after the other, or along a new dimension.

    That their other sizes fit has to be proved: onnxruntime leaves part of the result unfilled where one without
    elements does not.
    """
    item = _item(call)
    if call.integer("new_axis", 0):
        _must_be_of_one_shape(call, but_for=None)
        return stacked(call, item, call.integer("axis"))
    axis = axis_of(call.integer("axis"), item.rank)
    if item.is_rows and axis == item.axis:
        refuse("joins along the rows")
    _must_be_of_one_shape(call, but_for=axis)
    shape = list(item.known_shape)
    shape[axis] = call.fresh()
    return like(item, shape, item.axis)


def _must_be_of_one_shape(call: Op, *, but_for: int | None) -> None:
    """
    Raises:
        NotProved: rows of a list's items have sizes that may differ from item to item.
    """
    item = _list(call).item
    if item is None or not item.is_rows:
        return
    if any(axis != but_for and not _is_of_inputs(size) for axis, size in enumerate(item.known_shape)):
        refuse("sizes that differ from item to item")


def _list(call: Op) -> Value:
    return call.x if call.x.kind is Kind.TENSORS else refuse("a tensor used as a list")


def _item(call: Op) -> Value:
    item = _list(call).item
    return any_item(call, item) if item is not None else refuse("nothing is known of what is in an empty list")


def any_item(call: Op, item: Value) -> Value:
    """
    One of a list's items, which need not have the sizes of another one.

    Items that were put in by turns of a loop have the same symbols, and not the same sizes: equal to others are only
    those that the inputs have.
    """
    if item.shape is None:
        return item
    if not all(map(_is_of_inputs, item.layout)):
        refuse("rows are merged with what may differ from item to item")
    shape = tuple(dim if _is_of_inputs(dim) else call.fresh() for dim in item.shape)
    return dataclasses.replace(item, shape=shape)


def _is_of_inputs(dim: Dim) -> bool:
    return isinstance(dim, int) or all(symbol.of_input or symbol.of_rows for symbol in dim.symbols)


def _list_of(item: Value) -> Value:
    if item.kind is Kind.MIXED:
        refuse("a list of things that are not alike")
    return tensors(item)
