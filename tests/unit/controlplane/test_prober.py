from __future__ import annotations

import pytest

from cortex.controlplane.prober import LONGEST_PERIOD_S, period_s


@pytest.mark.parametrize(
    ("mean_s", "body_bytes", "most_per_s", "expected_s"),
    [
        (0.0, 10, 100.0, 0.02),
        (0.001, 10, 100.0, 0.02),
        (0.1, 10, 100.0, 1.0),
        (0.0, 10, 10.0, 0.2),
        (0.001, 2**21, 100.0, 2.0),
        (60.0, 10, 100.0, LONGEST_PERIOD_S),
    ],
)
def test_a_slow_api_and_a_large_sample_are_asked_less_often(
    mean_s: float, body_bytes: int, most_per_s: float, expected_s: float
) -> None:
    assert period_s(mean_s, body_bytes, most_per_s=most_per_s) == pytest.approx(expected_s)
