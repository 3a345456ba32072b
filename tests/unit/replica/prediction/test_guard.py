"""Which rows of batches are computed again, and when."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cortex.replica.prediction.guard import FIRST_BATCHES, ONE_IN, WITHIN_S, Guard
from cortex.wire.batching import Disagreement
from cortex.wire.signature import Signature, TensorSpec

SIGNATURE = Signature(
    (TensorSpec("x", "float32", (None, 2)),),
    (TensorSpec("y", "float32", (None, 2)), TensorSpec("label", "int64", (None,))),
)


def last_row(rows: int) -> int:
    return rows - 1


def batch(*tags: int) -> tuple[dict[str, Any], list[Any]]:
    x = np.array([[tag, tag] for tag in tags], np.float32)
    return {"x": x}, [x * 2, np.array(tags)]


def chosen(guard: Guard, batches: int) -> list[int]:
    """Numbers of the batches that are looked at, each as soon as it was seen."""
    found = []
    for number in range(1, batches + 1):
        guard.saw(*batch(1, 2), now_s=0.0)
        if guard.take() is not None:
            found.append(number)
    return found


def test_the_first_batches_are_looked_at_then_fewer_and_fewer_until_it_is_one_in_a_thousand() -> None:
    assert chosen(Guard(SIGNATURE), 3 * ONE_IN) == [
        *range(1, FIRST_BATCHES + 1),
        *(4, 8, 16, 32, 64, 128, 256, 512),
        *(ONE_IN, 2 * ONE_IN, 3 * ONE_IN),
    ]


def test_one_waits_at_a_time_and_those_that_come_meanwhile_are_not_forgotten() -> None:
    guard = Guard(SIGNATURE, choose=last_row)
    for tag in range(3):
        guard.saw(*batch(9, tag), now_s=0.0)
    first = guard.take()
    assert first is not None
    assert first.feeds["x"].tolist() == [[0, 0]], "the first that was seen"
    assert guard.take() is None
    assert chosen(guard, 6) == [1, 2, 3, 5], "two that were put off, the fourth with them, and the eighth"


def test_what_waits_is_due_after_a_second_whoever_else_waits() -> None:
    guard = Guard(SIGNATURE)
    assert not guard.has_check()
    assert not guard.is_due(1e9)
    guard.saw(*batch(1, 2), now_s=100.0)
    guard.saw(*batch(1, 2), now_s=100.0 + WITHIN_S)
    assert guard.has_check()
    assert not guard.is_due(100.0 + 0.99 * WITHIN_S)
    assert guard.is_due(100.0 + WITHIN_S)
    assert guard.take() is not None
    assert not guard.has_check()


@pytest.mark.parametrize("row", [0, 1, 2])
def test_one_row_is_kept_and_nobody_can_write_into_it(row: int) -> None:
    guard = Guard(SIGNATURE, choose=lambda rows: row)
    feeds, outputs = batch(1, 2, 3)
    outputs.append([{"a": 1.0}, {"a": 2.0}, {"a": 3.0}])
    guard.saw(feeds, outputs, now_s=0.0)
    feeds["x"][:] = outputs[0][:] = outputs[1][:] = -1
    for each in outputs[2]:
        each["a"] = -1.0
    check = guard.take()
    assert check is not None
    tag = row + 1
    assert check.feeds["x"].tolist() == [[tag, tag]]
    assert [np.asarray(part).tolist() for part in check.together] == [[[2 * tag, 2 * tag]], [tag], [{"a": float(tag)}]]
    assert check.feeds["x"].base is None, "a view would keep the whole batch"


def test_a_row_is_compared_by_what_rounding_may_do() -> None:
    guard = Guard(SIGNATURE, choose=last_row)
    guard.saw(*batch(1, 2), now_s=0.0)
    check = guard.take()
    assert check is not None
    right, near = batch(2)[1], [np.array([[4, 4.0001]], np.float32), np.array([2])]
    assert guard.judge(check, right, "exact") is None
    assert guard.judge(check, near, "rounding") is None
    found = guard.judge(check, near, "exact")
    assert found is not None
    assert (found.output, found.alone, found.together) == ("y", "4.0001", "4.0")
    flipped = [right[0], np.array([7])]
    other_label = Disagreement(output="label", alone="7", together="2", difference=5.0)
    assert guard.judge(check, flipped, "labels") is None, "a tie, perhaps"
    assert guard.judge(check, flipped, "labels") == other_label
    assert guard.judge(check, flipped, "rounding") == other_label
    assert guard.rows == 6
