from __future__ import annotations

import math

import msgspec
import pytest

from cortex.ids import ApiKey, ReplicaId, Version
from cortex.wire.stats import GAMMA, RELATIVE_ERROR, SMALLEST_MS, StatsFile, TrackerStats, bucket_middle_ms, bucket_of


@pytest.mark.parametrize("milliseconds", [0.001, 0.0351, 0.5, 1.0, 1.0001, 17.3, 999.9, 60_000.0, 3_600_000.0])
def test_a_buckets_middle_is_within_a_hundredth_of_what_is_in_it(milliseconds: float) -> None:
    middle = bucket_middle_ms(bucket_of(milliseconds))
    assert abs(middle - milliseconds) <= RELATIVE_ERROR * milliseconds * (1 + 1e-9)


def test_a_bucket_is_bounded_by_powers_of_gamma() -> None:
    bucket = bucket_of(5.0)
    assert math.pow(GAMMA, bucket - 1) < 5.0 <= math.pow(GAMMA, bucket)


def test_no_duration_is_too_short_for_a_bucket() -> None:
    assert bucket_of(0.0) == bucket_of(-1.0) == bucket_of(SMALLEST_MS)


def test_a_file_survives_its_way_through_json() -> None:
    file = StatsFile(
        replica=ReplicaId("t.a.0.0"),
        attempt=1,
        api=ApiKey("t/a"),
        version=Version("0" * 64),
        ok=3,
        latency_buckets={-12: 1, 40: 2},
        tracker=TrackerStats(classes={"ä": 1}, misses=2),
    )
    encoded = msgspec.json.encode(file)
    assert b'"2xx":3' in encoded
    assert msgspec.json.decode(encoded, type=StatsFile) == file
