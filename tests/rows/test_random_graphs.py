from __future__ import annotations

from collections import Counter

import numpy as np
from judging import judge
from random_graphs import STEPS, random_case

SEEDS = range(120)


def test_a_seed_is_always_the_same_graph_and_the_same_requests() -> None:
    first, again = random_case(7), random_case(7)

    assert first.model == again.model
    for a, b in zip(first.draw(np.random.default_rng(1)), again.draw(np.random.default_rng(1)), strict=True):
        assert list(a) == list(b)
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


def test_requests_of_a_batch_differ_in_rows_alone() -> None:
    for seed in SEEDS:
        batch = random_case(seed).draw(np.random.default_rng(seed))

        assert len({tuple((name, one.shape[1:], one.dtype) for name, one in feeds.items()) for feeds in batch}) == 1
        assert all(len({len(one) for one in feeds.values()}) == 1 for feeds in batch)


def test_most_graphs_run_and_a_good_part_of_them_is_proved_and_a_good_part_mixes_rows() -> None:
    """A harness that tries nothing finds nothing."""
    found = [judge("", random_case(seed), batches=2) for seed in SEEDS]

    seen = Counter(one.seen for one in found)
    assert seen["right"] + seen["wrong"] > 0.7 * len(SEEDS)
    assert sum(one.proved and one.seen == "right" for one in found) > 0.25 * len(SEEDS)
    assert sum(not one.proved and one.seen == "wrong" for one in found) > 0.1 * len(SEEDS)


def test_every_step_is_taken_now_and_then() -> None:
    made = Counter(node.op_type for seed in range(1500) for node in random_case(seed).model.graph.node)

    rare = {"Conv", "LSTM", "If", "Loop", "Scan", "SplitToSequence", "QuantizeLinear", "GatherND", "Einsum", "Scaler"}
    assert len(STEPS) > 50
    assert rare <= set(made)
