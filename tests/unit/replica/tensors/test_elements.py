"""What every tensor has in common, whatever its elements are: how deep it may be nested, and what to do about it."""

from __future__ import annotations

from typing import Any

import pytest

from cortex.replica.tensors.conversion import plan
from cortex.replica.tensors.mismatch import InputMismatch
from cortex.wire.signature import Dim, TensorSpec


@pytest.mark.parametrize("dtype", ["float32", "int64", "bool", "string"])
@pytest.mark.parametrize(
    ("shape", "value", "reason", "hint"),
    [
        ((3,), [[1, 2, 3]], "nested more than 1 level deep", "take away the outermost brackets"),
        ((3,), [[[1, 2, 3]]], "nested more than 1 level deep", "the model takes [3]"),
        ((2,), [[1, 2], [3, 4]], "nested more than 1 level deep", "the model takes [2]"),
        ((None, 2), [[[1, 2], [3, 4]]], "nested more than 2 levels deep", "take away the outermost brackets"),
        ((None, 2), [[[1, 2]], [[3, 4]]], "nested more than 2 levels deep", "the model takes [?, 2]"),
        ((None, 2), [[[1, 2, 3]]], "nested more than 2 levels deep", "the model takes [?, 2]"),
    ],
)
def test_what_is_nested_too_deep_is_told_which_brackets_are_too_many(
    dtype: str, shape: tuple[Dim, ...], value: Any, reason: str, hint: str
) -> None:
    with pytest.raises(InputMismatch) as caught:
        plan(TensorSpec("x", dtype, shape), takes_bytes=False)(value)
    assert (caught.value.reason, caught.value.hint) == (reason, hint)
