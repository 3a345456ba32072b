"""Tests of `cortex.planning.scaling_words`."""

from __future__ import annotations

import msgspec
import pytest

from cortex.ids import ApiKey
from cortex.planning.autoscale import Bound, Machine, Ruling, Scalable, ScalingDecision, ScalingMemory
from cortex.planning.load import Costs, RowCost
from cortex.planning.model import Lack
from cortex.planning.scaling_words import advice, figures, reason
from cortex.testing.builders import a_load
from cortex.wire.loads import HANDLER, LOOP

API = ApiKey("iris/a")
CPU = "cpu 412 % of request, target 80 %"


def costs(seat_s: float = 0.5, cpu_s: float = 0.02, seats: int = 1, row: str = HANDLER) -> Costs:
    rows = (RowCost(row=row, seats=seats, busy_s=seat_s),)
    return Costs(rows=rows, cpu_s=cpu_s, in_replica_s=seat_s, replica_s=seat_s / seats, fullest=row)


def decision(
    now: int = 2, replicas: int = 2, wanted: int = 5, bound: Bound | None = None, /, **fields
) -> ScalingDecision:
    asked = Scalable(api=API, replicas=now, max_replicas=3, min_replicas=1, lacks=fields.pop("lacks", None))
    asked = msgspec.structs.replace(asked, target_in_flight=fields.pop("target_in_flight", None))
    told = {
        "ruling": Ruling.CPU,
        "need": 5.15,
        "rate": 41.2,
        "costs": costs(),
        "load": a_load(API, in_flight=12),
        **fields,
    }
    return ScalingDecision(
        asked=asked,
        replicas=replicas,
        wanted=wanted,
        kept=1,
        bound=bound,
        memory=ScalingMemory(),
        machine=Machine(cores=2.0),
        **told,
    )


@pytest.mark.parametrize(
    ("one", "said"),
    [
        (decision(2, 5, 5), f"wanted 5: {CPU}"),
        (decision(2, 3, 5, Bound.MAXIMUM), f"wanted 5: {CPU}; capped by max_replicas 3"),
        (decision(3, 3, 5, Bound.MAXIMUM), f"wanted 5: {CPU}; capped by max_replicas 3"),
        (decision(2, 2, 5, Bound.PROCESSOR), f"held at 2: one more would only share the 2 cores; wanted 5: {CPU}"),
        (decision(1, 2, 5, Bound.PROCESSOR), f"wanted 5: {CPU}; one more would only share the 2 cores"),
        (
            decision(2, 2, 5, Bound.REQUESTS),
            f"held at 2: what is used of cpu requests takes up the 2 cores; wanted 5: {CPU}",
        ),
        (decision(2, 8, 20, Bound.LEAP), f"wanted 20: {CPU}; from 2 to at most 8 at once"),
        (decision(2, 2, 5, Bound.STARTS), f"held at 2: at most 3 replicas start at one time; wanted 5: {CPU}"),
        (
            decision(2, 2, 5, Bound.ROOM, lacks=Lack.GPU),
            f"held at 2: there is no GPU yet for one of these; wanted 5: {CPU}",
        ),
        (
            decision(4, 4, 0, Bound.WINDOW, ruling=None),
            "held at 4: more were needed within the last 5 min; wanted 0: there is nothing to do",
        ),
        (
            decision(4, 4, 1, Bound.ROLLOUT),
            f"held at 4: none goes before the new version is live; wanted 1: {CPU}",
        ),
        (
            decision(4, 1, 1, Bound.YIELDED),
            f"wanted 1: {CPU}; what is not needed goes at once, since another api has no room",
        ),
        (decision(1, 1, 0, Bound.MINIMUM, ruling=None), "wanted 0: there is nothing to do; kept at min_replicas 1"),
        (decision(2, 2, 2, Bound.UNKNOWN), "held at 2: nothing is known of its load yet"),
    ],
)
def test_a_decision_says_what_was_wanted_and_what_bounded_it(one, said):
    assert reason(one) == said


def test_every_bound_has_words():
    for bound in Bound:
        assert reason(decision(2, 2, 5, bound, lacks=Lack.MEMORY))


@pytest.mark.parametrize(
    ("one", "said"),
    [
        (
            decision(ruling=Ruling.SEATS, rate=6.0),
            "6 requests/s of 500 ms each fill 3.0 seats, 1 in a replica, target 80 %",
        ),
        (
            decision(ruling=Ruling.SEATS, rate=1234.0, costs=costs(2.0, 0.02)),
            "1234 requests/s of 2 s each fill 2468.0 seats, 1 in a replica, target 80 %",
        ),
        (
            decision(ruling=Ruling.TIME_IN_REPLICA, rate=40.0, target_in_flight=4.0),
            "40 requests/s of 500 ms each are 20.0 in flight, target 4 in a replica",
        ),
        (
            decision(ruling=Ruling.IN_FLIGHT, costs=None),
            "12 requests in flight, of which too few have ended to know what one takes",
        ),
        (decision(ruling=None), "there is nothing to do"),
    ],
)
def test_figures_are_those_that_the_number_follows_from(one, said):
    assert figures(one) == said


def test_a_handler_that_waits_could_serve_more_in_one_replica():
    said = "a request waits 480 of 500 ms in the handler: `concurrency: 8` or async would let one replica serve more"
    assert advice(decision()) == said


@pytest.mark.parametrize(
    "one",
    [
        decision(costs=None),
        decision(costs=costs(0.5, 0.2)),
        decision(costs=costs(0.5, 0.02, seats=64)),
        decision(costs=costs(row=LOOP)),
        decision(1, 1, 1),
    ],
    ids=["nothing known", "computes", "has seats", "another row", "one is enough"],
)
def test_there_is_no_advice_where_it_would_not_help(one):
    assert advice(one) is None
