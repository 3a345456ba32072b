"""Tests of `cortex.agent.refusals`."""

from collections import Counter

import pytest

from cortex.agent.logs import LogReader
from cortex.agent.refusals import MAX_FILE_BYTES, QUIET_S, RefusalLog, refusals_text
from cortex.ids import ApiKey
from cortex.ingress.configuration import Refusal
from cortex.ingress.counters import ApiRefusals
from cortex.testing.clock import FakeClock
from cortex.wire.agent import ReadLogs

API = ApiKey("iris/a")


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def told(tmp_path, clock):
    return RefusalLog(tmp_path, clock)


def counts(instance="one", api=API, **named):
    return ApiRefusals(instance=instance, api=api, counts={Refusal[name.upper()]: n for name, n in named.items()})


def lines(folder, api=API):
    return [line.text for line in LogReader(folder).read(ReadLogs(api=api, tail=100)).lines]


def test_what_is_added_is_told_in_the_log_of_its_api(told, tmp_path):
    told.note([counts(body_too_large=2)])
    told.note([counts(body_too_large=5, timeout=1), counts(api=ApiKey("iris/ab"), timeout=1)])
    assert lines(tmp_path) == [
        "the ingress answered itself: 3 × 413 body-too-large: over max_body in cortex.yaml; 1 × 504 timeout"
    ]
    assert lines(tmp_path, ApiKey("iris/ab")) == ["the ingress answered itself: 1 × 504 timeout"]


def test_a_worker_that_was_not_there_before_counts_from_nothing(told, tmp_path):
    told.note([])
    told.note([counts("two", timeout=1)])
    assert len(lines(tmp_path)) == 1


def test_further_refusals_wait_for_a_quiet_minute_and_are_told_together(told, clock, tmp_path):
    told.note([])
    for number in range(1, 10):
        told.note([counts(overloaded=number)])
        clock.advance(1)
    assert len(lines(tmp_path)) == 1
    clock.advance(QUIET_S)
    told.note([counts(overloaded=9)])
    assert lines(tmp_path)[1].startswith("the ingress answered itself: 8 × 503 overloaded")
    clock.advance(QUIET_S)
    told.note([counts(overloaded=9)])
    assert len(lines(tmp_path)) == 2, "nothing new, nothing told"


def test_every_reason_has_its_words():
    for refusal in Refusal:
        assert refusal.value in refusals_text(Counter({refusal: 1}))


def test_a_large_file_makes_room_for_a_new_one(told, tmp_path):
    path = tmp_path / "iris.a.ingress.0.log"
    path.write_bytes(b"x" * (MAX_FILE_BYTES + 1))
    told.note([])
    told.note([counts(timeout=1)])
    assert path.stat().st_size < 1000
    assert (tmp_path / "iris.a.ingress.0.log.1").stat().st_size == MAX_FILE_BYTES + 1


def test_a_folder_that_cannot_be_written_is_no_failure(tmp_path, clock):
    told = RefusalLog(tmp_path / "missing", clock)
    told.note([])
    told.note([counts(timeout=1)])
    assert list(tmp_path.iterdir()) == []
