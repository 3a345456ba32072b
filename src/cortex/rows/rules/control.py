"""Branches and loops: which branch and how many turns must not depend on rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Final

from cortex.rows.refusal import refuse
from cortex.rows.rules.registry import COUNTED, Op, axis_of, like, rule
from cortex.rows.sizes import Term, is_widened
from cortex.rows.values import Kind, Value, joined, mixed, uniform

_TURNS: Final = 8
"""What is known of a loop's state gets less with each turn; it settles after few, or the loop is not proved."""
_ANY: Final = frozenset(Kind) - {Kind.MIXED}


@rule("If", takes_counts=True, when_uniform=False)
def if_(call: Op) -> Sequence[Value]:
    condition = call.x
    if not condition.is_uniform:
        refuse("the condition depends on rows")
    then, otherwise = call.graph("then_branch"), call.graph("else_branch")
    if condition.elements is not None and not isinstance(condition.elements[0], Term):
        return call.flow.subgraph(then if condition.elements[0] else otherwise, call.scope)
    if condition.counts_rows:
        refuse("the condition depends on the number of rows")
    return [
        joined(a, b, call.symbols)
        for a, b in zip(call.flow.subgraph(then, call.scope), call.flow.subgraph(otherwise, call.scope), strict=True)
    ]


@rule("Loop", takes=_ANY, takes_counts=True, when_uniform=False)
def loop(call: Op) -> list[Value]:
    body = call.graph("body")
    for value in (call.optional(0), call.optional(1)):
        if value is not None and (not value.is_uniform or value.counts_rows):
            refuse("the number of turns depends on rows")
    state = [value if value is not None else refuse("a state is left out") for value in call.inputs[2:]]
    since = call.symbols.next_index
    for _ in range(_TURNS):
        turn, goes_on = uniform((), "int64"), uniform((), "bool")
        found, *results = call.flow.subgraph(body, call.scope, [turn, goes_on, *state])
        if found.kind is Kind.MIXED:
            refuse(f"the condition: {found.operator}: {found.reason}")
        if not found.is_uniform or found.counts_rows:
            refuse("the condition depends on rows")
        settled, state = next_state(call, state, results, since)
        if settled:
            return [finished(call, value, since) for value in state] + [
                finished(call, stacked(call, value, 0), since) for value in results[len(state) :]
            ]
    return refuse("what is known of its state does not settle")


@rule("Scan", takes=_ANY, takes_counts=True, when_uniform=False, since=9)
def scan(call: Op) -> list[Value]:
    body = call.graph("body")
    count = call.integer("num_scan_inputs")
    inputs = [value if value is not None else refuse("an input is left out") for value in call.inputs]
    state, walked = inputs[: len(inputs) - count], inputs[len(inputs) - count :]
    axes = call.integers("scan_input_axes", [0] * count)
    steps = [_step(value, axis) for value, axis in zip(walked, axes, strict=True)]
    since = call.symbols.next_index
    for _ in range(_TURNS):
        results = call.flow.subgraph(body, call.scope, [*state, *steps])
        settled, state = next_state(call, state, results, since)
        if settled:
            outputs = results[len(state) :]
            places = call.integers("scan_output_axes", [0] * len(outputs))
            return [finished(call, value, since) for value in state] + [
                finished(call, stacked(call, value, place), since) for value, place in zip(outputs, places, strict=True)
            ]
    return refuse("what is known of its state does not settle")


def _step(value: Value, axis: int) -> Value:
    """What the body sees of a value that is walked along."""
    if (not value.is_rows and not value.is_uniform) or value.counts_rows:
        refuse(COUNTED)
    shape = list(value.known_shape)
    axis = axis_of(axis, len(shape))
    if value.is_rows and axis == value.axis:
        refuse("walks along the rows")
    del shape[axis]
    return like(value, shape, value.axis - (axis < value.axis))


def next_state(call: Op, state: Sequence[Value], results: Sequence[Value], since: int) -> tuple[bool, list[Value]]:
    """Whether another turn tells nothing new, and the state that each turn may begin with."""
    if len(results) < len(state):
        refuse("the body has fewer outputs than states")
    merged = [joined(a, b, call.symbols, since) for a, b in zip(state, results, strict=False)]
    return merged == list(state), merged


def stacked(call: Op, value: Value, axis: int) -> Value:
    """The values of all turns along a new dimension."""
    if value.kind is Kind.MIXED:
        return value
    if value.counts_rows:
        return mixed(COUNTED)
    if not value.is_uniform and not value.is_rows:
        return mixed("row numbers used as data")
    if value.shape is None:
        return uniform(dtype=value.dtype)
    shape = list(value.shape)
    axis = axis_of(axis, len(shape) + 1)
    shape.insert(axis, call.fresh())
    return like(value, shape, value.axis + (axis <= value.axis))


def finished(call: Op, value: Value, since: int) -> Value:
    """A value after the loop: a size that differed from turn to turn is one that nothing else is equal to."""
    if value.shape is None:
        return value
    shape = tuple(call.fresh() if is_widened(dim, since) else dim for dim in value.shape)
    return dataclasses.replace(value, shape=shape)
