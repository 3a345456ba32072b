"""Lists of tensors that are all alike, of a length that does not depend on the rows."""

from __future__ import annotations

import dataclasses

from cortex.rows.refusal import refuse
from cortex.rows.rules.control import stacked
from cortex.rows.rules.registry import ALONG_ROWS, Call, axis_of, like, must_be_constant, rule
from cortex.rows.values import Kind, Value, joined, tensors, uniform

_LISTS = {Kind.TENSORS}


@rule("SequenceConstruct", when_uniform=False, since=11)
def construct(call: Call) -> Value:
    item = call.x
    for value in call.given[1:]:
        item = joined(item, value, call.symbols)
    return _list_of(item)


@rule("SequenceEmpty", when_uniform=False, since=11)
def empty(call: Call) -> Value:
    return tensors(None)


@rule("SequenceInsert", takes=_LISTS, when_uniform=False, since=11)
def insert(call: Call) -> Value:
    must_be_constant(call.optional(2))
    known = _list(call).item
    return _list_of(call.value(1) if known is None else joined(known, call.value(1), call.symbols))


@rule("SequenceErase", takes=_LISTS, when_uniform=False, since=11)
def erase(call: Call) -> Value:
    must_be_constant(call.optional(1))
    return _list(call)


@rule("SequenceAt", takes=_LISTS, when_uniform=False, since=11)
def at(call: Call) -> Value:
    must_be_constant(call.value(1))
    return _item(call)


@rule("SequenceLength", takes=_LISTS, when_uniform=False, since=11)
def length(call: Call) -> Value:
    _list(call)
    return uniform((), "int64")


@rule("SplitToSequence", when_uniform=False, since=11)
def split(call: Call) -> Value:
    x, sizes = call.x, call.optional(1)
    axis = axis_of(call.integer("axis", 0), x.rank)
    must_be_constant(sizes)
    if x.is_rows and axis == x.axis:
        refuse(ALONG_ROWS)
    shape = list(x.known_shape)
    if sizes is None and not call.integer("keepdims", 1):
        del shape[axis]
        return _list_of(like(x, shape, x.axis - (axis < x.axis)))
    shape[axis] = 1 if sizes is None else call.fresh()
    return _list_of(_of_any_size(call, like(x, shape, x.axis), axis) if sizes is not None else like(x, shape, x.axis))


@rule("ConcatFromSequence", takes=_LISTS, when_uniform=False, since=11)
def concat(call: Call) -> Value:
    item = _item(call)
    if call.integer("new_axis", 0):
        return stacked(call, item, call.integer("axis"))
    axis = axis_of(call.integer("axis"), item.rank)
    if item.is_rows and axis == item.axis:
        refuse("joins along the rows")
    shape = list(item.known_shape)
    shape[axis] = call.fresh()
    return like(item, shape, item.axis)


def _list(call: Call) -> Value:
    return call.x if call.x.kind is Kind.TENSORS else refuse("a tensor used as a list")


def _item(call: Call) -> Value:
    item = _list(call).item
    return item if item is not None else refuse("nothing is known of what is in an empty list")


def _list_of(item: Value) -> Value:
    if item.kind is Kind.MIXED:
        refuse(item.reason)
    if not item.is_rows and not item.is_uniform:
        refuse("a list of other things than tensors")
    return tensors(item)


def _of_any_size(call: Call, value: Value, axis: int) -> Value:
    """A value whose size along one dimension differs from item to item of a list."""
    shape = list(value.known_shape)
    shape[axis] = call.symbols.fresh(widened=True)
    return dataclasses.replace(value, shape=tuple(shape))
