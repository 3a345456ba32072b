from __future__ import annotations

import math
import os
from typing import Any

import msgspec
import pytest

from cortex.errors import Problem
from cortex.ids import ApiKey, ReplicaId, Revision, Version
from cortex.replica.calls import Call
from cortex.replica.prediction.batching import MAX_BATCH_ROWS
from cortex.replica.process.condition import OVERDUE_GRACE_S, STUCK_AFTER_S, Condition
from cortex.wire.batching import BatchingOrder, BatchingState, Disagreement
from cortex.wire.launch import ReplicaSpec
from cortex.wire.reports import Phase

NOW_S = 1000.0
"""The time at which everything here happens."""


@pytest.fixture
def condition(monkeypatch: pytest.MonkeyPatch) -> Condition:
    monkeypatch.setattr("cortex.replica.process.condition.perf_counter", lambda: NOW_S)
    return Condition(
        ReplicaSpec(
            replica=ReplicaId("t.a.0.0"),
            attempt=3,
            api=ApiKey("t/a"),
            version=Version("1" * 64),
            revision=Revision("2" * 64),
            home="/h",
            runtime="onnx",
            model_path="/m",
        )
    )


def call(age_s: float, timeout_s: float = 60.0) -> Any:
    made = Call()
    made.started_s = NOW_S - age_s
    made.timeout_s = timeout_s
    return made


def test_it_knows_who_it_is(condition: Condition) -> None:
    status = condition.status()
    assert (status.replica, status.attempt, status.pid, status.phase) == ("t.a.0.0", 3, os.getpid(), Phase.LOADING)
    assert status.start_ticks > 0


def test_each_change_is_announced(condition: Condition) -> None:
    seen: list[tuple[Phase, str]] = []
    condition.announce = lambda: seen.append((condition.phase, condition.progress))
    condition.report("importing a.py")
    condition.enter(Phase.WARMING)
    condition.enter(Phase.READY)
    condition.warn(Problem(reference="w", message="w"))
    condition.fail(Problem(reference="f", message="f"))
    assert seen[:3] == [(Phase.LOADING, "importing a.py"), (Phase.WARMING, "importing a.py"), (Phase.READY, "")]
    status = condition.status()
    assert status.was_ready
    assert [warning.reference for warning in status.warnings] == ["w"]
    assert status.problem is not None


def test_the_oldest_request_is_told(condition: Condition) -> None:
    assert condition.status().oldest_request_age_s == 0.0
    condition.in_flight |= dict.fromkeys((call(5), call(1)))
    status = condition.status()
    assert (status.in_flight, status.oldest_request_age_s, status.overdue) == (2, 5.0, False)


def test_any_request_past_its_timeout_is_overdue_after_a_grace(condition: Condition) -> None:
    condition.in_flight |= dict.fromkeys((call(100, 600), call(10, 10 - OVERDUE_GRACE_S / 2)))
    assert not condition.status().overdue
    condition.in_flight[call(10, 10 - OVERDUE_GRACE_S * 2)] = None
    assert condition.status().overdue


def test_the_loop_is_stuck_once_a_request_is_over_its_time_and_was_not_even_told_so(condition: Condition) -> None:
    condition.enter(Phase.READY)
    assert condition.until_stuck_s() == math.inf
    told = call(10, 5)
    told.answered = True
    condition.in_flight |= dict.fromkeys((told, call(10, 10), call(1)))
    assert not condition.status().stuck
    assert condition.until_stuck_s() == STUCK_AFTER_S
    late = call(10, 10 - 2 * STUCK_AFTER_S)
    condition.in_flight[late] = None
    assert condition.status().stuck
    del condition.in_flight[late]
    assert not condition.status().stuck


def test_a_process_that_stood_still_is_no_hung_loop(condition: Condition) -> None:
    condition.enter(Phase.READY)
    condition.heartbeat_s = NOW_S - 50
    condition.resumed_s = NOW_S - 1
    assert condition.status().heartbeat_age_s == 1


def test_a_heartbeat_matters_only_while_serving(condition: Condition) -> None:
    condition.heartbeat_s = NOW_S - 50
    assert condition.status().heartbeat_age_s == 0
    condition.enter(Phase.READY)
    assert condition.status().heartbeat_age_s == 50


DISAGREEMENT = Disagreement(output="y", alone="1", together="2")


@pytest.mark.parametrize(
    ("ordered", "possible", "disagreement", "batches"),
    [
        (True, True, None, True),
        (False, True, None, False),
        (True, False, None, False),
        (True, True, DISAGREEMENT, False),
    ],
)
def test_what_it_does_about_batches_is_in_its_status(
    condition: Condition, ordered: bool, possible: bool, disagreement: Disagreement | None, batches: bool
) -> None:
    batching = condition.batching
    batching.order = BatchingOrder(batches=ordered, rounding="labels")
    batching.possible, batching.runtime, batching.guarded_rows = possible, "fake 1.0, cpu, 1 thread", 7
    batching.disagreement = disagreement
    assert (batching.most_rows > 1) is batches
    assert condition.status().facts == {}, "nothing is known while it starts"
    condition.facts = {"load_ms": 1.5}
    status = condition.status()
    assert status.batching == BatchingState(
        order=batching.order, runtime="fake 1.0, cpu, 1 thread", guarded_rows=7, disagreement=disagreement
    )
    assert status.facts == {"load_ms": 1.5, "batching": batches, "largest_batch": MAX_BATCH_ROWS if batches else 1}


def test_it_starts_with_the_order_of_its_spec(condition: Condition) -> None:
    order = BatchingOrder(batches=True, rounding="exact")
    started = Condition(msgspec.structs.replace(condition.spec, batches=order))
    assert started.status().batching == BatchingState(order=order)
    assert started.batching.most_rows == 1, "no model is loaded yet"
