"""TensorFlow's lists of tensors, which loops are written with."""

from __future__ import annotations

import dataclasses

from cortex.rows.refusal import refuse
from cortex.rows.rules.registry import COUNTED, Op, dims_of, like, must_be_constant
from cortex.rows.rules.sequences import any_item
from cortex.rows.rules.tensorflow.registry import rule
from cortex.rows.sizes import Dim
from cortex.rows.values import Kind, Value, joined, mixed, scalar, tensors, uniform

_LIST = {Kind.TENSORS}


def list_of(item: Value | None, length: Dim | None) -> Value:
    """A list of tensors that are all like `item`; its shape is its length, where that is known."""
    return dataclasses.replace(tensors(item), shape=None if length is None else (length,))


def _list(value: Value) -> Value:
    return value if value.kind is Kind.TENSORS else refuse("is no list of tensors")


@rule("TensorListReserve", takes_counts=True, when_uniform=False)
def reserve(call: Op) -> Value:
    """The shape that its tensors will have may count the rows, their number may not."""
    count = call.value(1)
    must_be_constant(count)
    return list_of(None, dims_of(count, "its length")[0] if count.elements else None)


@rule("EmptyTensorList", takes_counts=True, when_uniform=False)
def empty(call: Op) -> Value:
    return list_of(None, None)


@rule("TensorListFromTensor", takes_counts=True, when_uniform=False)
def from_tensor(call: Op) -> Value:
    x = call.x
    shape = x.known_shape
    if x.counts_rows:
        refuse(COUNTED)
    if not shape:
        refuse("a list out of a scalar")
    if x.is_rows and x.axis == 0:
        refuse("walks along the rows")
    return list_of(like(x, shape[1:], x.axis - 1), shape[0])


@rule("TensorListGetItem", takes=_LIST, takes_counts=True)
def get_item(call: Op) -> Value:
    must_be_constant(call.value(1))
    return _item(call, call.x)


def _item(call: Op, value: Value) -> Value:
    """
    One of a list's tensors; a size that differs from one to the other is equal to no other.

    Raises:
        NotProved: nothing was put into the list, so that it is 0 in a shape that nobody knows.
    """
    item = _list(value).item
    if item is None:
        refuse("reads from an empty list")
    return any_item(call, item)


@rule("TensorListSetItem", takes=_LIST, when_uniform=False)
def set_item(call: Op) -> Value:
    must_be_constant(call.value(1))
    whole = _list(call.x)
    grows = call.attributes.get("resize_if_index_out_of_bounds") is True
    return _with_item(call, whole, call.value(2), whole.shape[0] if whole.shape and not grows else None)


@rule("TensorListPushBack", takes=_LIST, when_uniform=False)
def push_back(call: Op) -> Value:
    return _with_item(call, _list(call.x), call.value(1), None)


def _with_item(call: Op, whole: Value, item: Value, length: Dim | None) -> Value:
    if item.kind is Kind.TENSORS:
        refuse("lists in lists")
    if whole.item is not None:
        item = joined(whole.item, item, call.symbols)
    return mixed(item.reason) if item.kind is Kind.MIXED else list_of(item, length)


@rule("TensorListPopBack", takes=_LIST, takes_counts=True)
def pop_back(call: Op) -> list[Value]:
    return [list_of(_list(call.x).item, None), _item(call, call.x)]


@rule("TensorListStack", takes=_LIST, takes_counts=True)
def stack(call: Op) -> Value:
    whole = _list(call.x)
    item = _item(call, whole)
    length = whole.shape[0] if whole.shape else call.fresh()
    if item.shape is None:
        return uniform(None, item.dtype)
    return like(item, (length, *item.shape), item.axis + 1)


@rule("TensorListLength", takes=_LIST)
def length_of(call: Op) -> Value:
    whole = _list(call.x)
    return scalar(whole.shape[0], "int32") if whole.shape else uniform((), "int32")
