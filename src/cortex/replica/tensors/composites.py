"""Inputs that are made of others: ragged tensors, sequences, maps."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

import numpy as np

from cortex.replica.tensors.elements import Plan
from cortex.replica.tensors.mismatch import LISTS, MAX_RANK, InputMismatch, describe, shown
from cortex.wire.signature import TensorSpec


class RaggedInput:
    """An input whose rows may have different lengths: lists of lists, as deep as its ragged rank, of arrays."""

    __slots__ = ("_row", "_spec")

    def __init__(self, spec: TensorSpec, row: Plan) -> None:
        self._spec = spec
        self._row = row

    def __call__(self, value: object) -> list[Any]:
        rows = list(value) if isinstance(value, np.ndarray) and value.ndim else value
        if type(rows) not in LISTS:
            raise InputMismatch(
                self._spec, describe(value), "a list of rows is expected", "put it in brackets: [[…], …]"
            )
        if len(cast("Sequence[Any]", rows)) and _depth(rows) == len(self._spec.shape or ()) - 1:
            rows = [rows]  # a single row
        return self._level(cast("Sequence[Any]", rows), self._spec.ragged_rank, self._spec.name)

    def _level(self, rows: Sequence[Any], rank: int, path: str) -> list[Any]:
        result = []
        for index, row in enumerate(rows):
            here = f"{path}[{index}]"
            if rank > 1 and type(row) in LISTS:
                result.append(self._level(row, rank - 1, here))
                continue
            if rank > 1 or not (type(row) in LISTS or isinstance(row, np.ndarray)):
                raise InputMismatch(
                    self._spec, describe(rows), f"{here} is no list", "make all rows equally deep, of any length"
                )
            try:
                result.append(self._row(row))
            except InputMismatch as error:
                error.input = here
                raise
        return result


def _depth(value: object) -> int:
    """How deep lists and arrays are nested, at the deepest place."""
    if isinstance(value, np.ndarray):
        return value.ndim
    depth = 0
    level = [value]
    while depth < MAX_RANK:
        lists = [item for item in level if type(item) in LISTS]
        if not lists:
            break
        depth += 1
        level = [item for row in lists for item in cast("Sequence[Any]", row)][:_MANY_ROWS]
    return depth + max((item.ndim for item in level if isinstance(item, np.ndarray)), default=0)


_MANY_ROWS: Final = 1 << 12  # of a list that holds itself twice there are more at each level


class SequenceInput:
    """An input that is a list of tensors, or of maps; each is converted by itself."""

    __slots__ = ("_element", "_spec")

    def __init__(self, spec: TensorSpec, element: Plan) -> None:
        self._spec = spec
        self._element = element

    def __call__(self, value: object) -> list[Any]:
        if not isinstance(value, list | tuple | np.ndarray) or (isinstance(value, np.ndarray) and not value.ndim):
            raise InputMismatch(self._spec, describe(value), "a list is expected", "put it in brackets: […]")
        result = []
        for index, item in enumerate(value):
            try:
                result.append(self._element(item))
            except InputMismatch as error:
                error.input = f"{self._spec.name}[{index}]"
                raise
        return result


class MapInput:
    """An input that maps text or integers to numbers. onnxruntime takes float32 values only."""

    __slots__ = ("_integer_keys", "_number", "_spec")

    def __init__(self, spec: TensorSpec, number: Plan) -> None:
        self._spec = spec
        self._integer_keys = spec.key_dtype != "string"
        self._number = number

    def __call__(self, value: object) -> dict[Any, Any]:
        if not isinstance(value, Mapping):
            raise InputMismatch(self._spec, describe(value), "an object is expected", "send {key: number, …}")
        result: dict[Any, Any] = {}
        for key, number in value.items():
            try:
                result[self._key(key, value)] = self._number(number).item()
            except InputMismatch as error:
                error.input = f"{self._spec.name}[{shown(key)}]"
                raise
        return result

    def _key(self, key: object, value: object) -> int | str:
        if not self._integer_keys:
            return str(key)
        try:
            integer = int(key) if isinstance(key, str) else operator.index(cast("int", key))
        except (TypeError, ValueError):
            raise InputMismatch(self._spec, describe(value), f"the key {shown(key)} is no integer") from None
        if not -(1 << 63) <= integer < 1 << 63:
            raise InputMismatch(self._spec, describe(value), f"the key {shown(key)} does not fit in 64 bits")
        return integer
