from __future__ import annotations

import dataclasses
import math
import random
import threading
from collections import Counter
from typing import Any, Literal

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex.errors import Response
from cortex.metrics.counts import NOTHING, Reading, growth, read
from cortex.replica.tracker import MAX_NAME_CHARS, Tracker
from cortex.wire.build import TrackerConfig
from cortex.wire.stats import EXACT_CLASSES, StatsFile, number_bucket

FILE: dict[str, Any] = {"replica": "iris.sklearn.aaaaaaaa.0", "attempt": 1, "api": "iris/sklearn", "version": "a" * 64}


class Fixture:
    def __init__(self, model_type: Literal["classification", "regression"], key: str | None = None) -> None:
        self.now_s = 0.0
        self.warnings: list[str] = []
        self.tracker = Tracker(
            TrackerConfig(model_type=model_type, key=key),
            output_names=["label", "scores"],
            warn=self.warnings.append,
            monotonic_s=lambda: self.now_s,
        )

    @property
    def classes(self) -> dict[str, int]:
        return self.tracker.snapshot().classes

    @property
    def misses(self) -> int:
        return self.tracker.snapshot().misses


@pytest.fixture
def classes() -> Fixture:
    return Fixture("classification")


@pytest.fixture
def numbers() -> Fixture:
    return Fixture("regression")


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("iris", "iris"),
        ("", ""),
        ("日本", "日本"),
        (3, "3"),
        (-1, "-1"),
        (True, "true"),
        (np.int64(7), "7"),
        (np.uint8(7), "7"),
        (np.str_("a"), "a"),
        (np.bool_(False), "false"),
        (["a"], "a"),
        ([["a"]], "a"),
        (("a",), "a"),
        (np.array(["a"]), "a"),
        (np.array([[5]]), "5"),
        (np.array(5), "5"),
        (np.array(["a"], dtype=object), "a"),
        (np.array([b"a"]), "a"),
        (Response("a"), "a"),
    ],
)
def test_a_class_is_counted(classes: Fixture, value: Any, name: str) -> None:
    classes.tracker.track_response(value)
    assert classes.classes == {name: 1}
    assert classes.misses == 0


@pytest.mark.parametrize(
    "value",
    [
        None,
        1.5,
        np.float32(1),
        b"a",
        [],
        ["a", "b"],
        {"a": 1},
        np.array([1, 2]),
        np.array([]),
        object(),
        Response(None),
    ],
)
def test_what_is_no_class_is_a_miss(classes: Fixture, value: Any) -> None:
    classes.tracker.track_response(value)
    assert (classes.classes, classes.misses) == ({}, 1)


@pytest.mark.parametrize(
    "value", [2, 2.0, np.float32(2), np.float64(2), np.int8(2), np.array([2.0]), [2], np.float16(2)]
)
def test_a_number_is_counted(numbers: Fixture, value: Any) -> None:
    numbers.tracker.track_response(value)
    numbers.tracker.track_response(-4)
    found = numbers.tracker.snapshot()
    assert (found.count, found.total, found.least, found.greatest, found.misses) == (2, -2.0, -4.0, 2.0, 0)


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, -math.inf, "2", True, None, 10**400, np.complex64(1), np.bool_(True)]
)
def test_what_is_no_finite_number_is_a_miss(numbers: Fixture, value: Any) -> None:
    numbers.tracker.track_response(value)
    found = numbers.tracker.snapshot()
    assert (found.count, found.least, found.misses) == (0, None, 1)


def test_a_key_is_looked_up_at_the_top() -> None:
    @dataclasses.dataclass
    class Result:
        label: str

    fixture = Fixture("classification", "label")
    for response in ({"label": "a"}, Result("a"), {"label": ["a"]}):
        fixture.tracker.track_response(response)
    assert fixture.classes == {"a": 3}
    for response in ({"other": "a"}, "a", None, ["a"], {"x": {"label": "a"}}):
        fixture.tracker.track_response(response)
    assert fixture.misses == 5


def test_rows_of_a_raw_prediction_count_each() -> None:
    fixture = Fixture("classification", "label")
    fixture.tracker.track_prediction([np.array(["a", "b", "a"]), np.zeros((3, 3))], 3)
    fixture.tracker.track_prediction({"label": np.array([["b"]]), "scores": None}, 1)
    fixture.tracker.track_prediction([["c", "d"], None], 2)
    assert fixture.classes == {"a": 2, "b": 2, "c": 1, "d": 1}
    assert fixture.misses == 0


def test_one_row_of_several_values_is_one_miss(classes: Fixture) -> None:
    classes.tracker.track_prediction([np.array([1, 2, 3])], 1)
    assert classes.misses == 1


def test_several_outputs_need_a_key(classes: Fixture) -> None:
    classes.tracker.track_prediction([1, 2], 1)
    assert classes.misses == 1
    unknown = Fixture("classification", "nope")
    unknown.tracker.track_prediction([1, 2], 1)
    assert 'no output "nope"' in unknown.warnings[0]


def test_an_answer_that_is_an_error_is_no_prediction(classes: Fixture) -> None:
    classes.tracker.track_response(Response("a", status=404))
    assert (classes.classes, classes.misses) == ({}, 0)


def test_misses_warn_once_a_minute(classes: Fixture) -> None:
    for now_s in (0, 1, 59, 60, 61):
        classes.now_s = now_s
        classes.tracker.track_response(None)
    assert classes.misses == 5
    assert len(classes.warnings) == 2
    assert "4 misses" in classes.warnings[1]


def test_without_room_for_all_each_new_class_takes_the_place_of_one_that_is_rare(classes: Fixture) -> None:
    for number in range(EXACT_CLASSES):
        classes.tracker.track_response(number)
    classes.tracker.track_response(0)
    full = classes.tracker.snapshot()
    assert (len(full.classes), full.other, full.rounds, full.classes["0"]) == (EXACT_CLASSES, 0, 0, 2)
    for number in range(EXACT_CLASSES, EXACT_CLASSES + 5):
        classes.tracker.track_response(number)
    found = classes.tracker.snapshot()
    assert (len(found.classes), found.other, found.rounds, found.classes["0"]) == (EXACT_CLASSES, 5, 1, 2)
    assert len(found.admitted) == 4


def test_of_very_many_classes_the_frequent_ones_are_right_within_the_bound(classes: Fixture) -> None:
    true = Counter({f"frequent {n}": 200 + 50 * n for n in range(20)})
    rng = random.Random(5)
    stream = [*true.elements(), *(f"class {n}" for n in range(100_000))]
    rng.shuffle(stream)
    for name in stream:
        classes.tracker.track_response(name)
    found = classes.tracker.snapshot()
    assert len(found.classes) <= EXACT_CLASSES
    assert sum(found.classes.values()) + found.other == len(stream)
    assert found.rounds <= len(stream) // (EXACT_CLASSES + 1)
    assert {name for name, _ in Counter(found.classes).most_common(20)} == set(true)
    for name, count in true.items():
        assert count - found.rounds <= found.classes[name] <= count


@given(
    stream=st.lists(st.sampled_from("abcdefgh"), max_size=60),
    looks=st.sets(st.integers(0, 59)),
)
def test_growth_between_any_two_looks_keeps_every_prediction_and_the_bound(stream: list[str], looks: set[int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cortex.replica.tracker.EXACT_CLASSES", 3)
        fixture = Fixture("classification")
        stored, other, bound = Counter[str](), 0, 0
        seen = Reading(NOTHING, {})
        for place, name in enumerate([*stream, ""]):
            if place in looks or place == len(stream):
                now = read(StatsFile(**FILE, tracker=fixture.tracker.snapshot()))
                grown = growth(seen, now)
                assert grown is not None
                stored.update(grown.classes)
                other += grown.counts.other
                bound += grown.counts.undercount
                seen = now
            if place < len(stream):
                fixture.tracker.track_response(name)
    true = Counter(stream)
    assert stored.total() + other == true.total()
    assert bound * 4 <= true.total()
    for name in true:
        assert true[name] - bound <= stored[name] <= true[name]


def test_looks_from_another_thread_lose_and_double_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cortex.replica.tracker.EXACT_CLASSES", 5)
    fixture = Fixture("classification")
    rng = random.Random(1)
    stream = [f"{min(rng.randrange(30), rng.randrange(30))}" for _ in range(20_000)]
    begun, ended = threading.Event(), threading.Event()
    growths: list[Reading | None] = []

    def look() -> None:
        seen = Reading(NOTHING, {})
        while True:
            last = ended.is_set()
            now = read(StatsFile(**FILE, tracker=fixture.tracker.snapshot()))
            growths.append(growth(seen, now))
            seen = now
            begun.set()
            if last:
                return

    looking = threading.Thread(target=look)
    looking.start()
    assert begun.wait(60)
    for name in stream:
        fixture.tracker.track_response(name)
    ended.set()
    looking.join()
    assert all(grown is not None for grown in growths)
    counted = [sum(grown.classes.values()) + grown.counts.other for grown in growths if grown is not None]
    assert min(counted) >= 0
    assert sum(counted) == len(stream)


def test_half_a_character_is_counted_under_what_a_file_can_hold(classes: Fixture) -> None:
    for _ in range(2):
        classes.tracker.track_response(Response("\ud800"))
    assert classes.classes == {"\\ud800": 2}
    msgspec.json.encode(classes.tracker.snapshot())


def test_numbers_are_sorted_into_buckets_by_sign(numbers: Fixture) -> None:
    for number in (1.0, 1.001, -2.5, 0, 1e-300, 1e300, -1e300):
        numbers.tracker.track_response(number)
    found = numbers.tracker.snapshot()
    assert found.positive_buckets == {number_bucket(1.0): 1, number_bucket(1.001): 1, number_bucket(1e18): 1}
    assert found.negative_buckets == {number_bucket(2.5): 1, number_bucket(1e18): 1}
    assert (found.zeros, found.least, found.greatest) == (2, -1e300, 1e300)


def test_buckets_stay_few_whatever_is_predicted(numbers: Fixture) -> None:
    rng = random.Random(3)
    for _ in range(50_000):
        numbers.tracker.track_response(rng.choice((-1, 1)) * 10.0 ** rng.uniform(-300, 300))
    found = numbers.tracker.snapshot()
    assert len(found.positive_buckets) <= 3_800
    assert len(found.negative_buckets) <= 3_800


def test_long_names_are_counted_apart_but_shortened(classes: Fixture) -> None:
    for end in ("a", "b", "b"):
        classes.tracker.track_response("x" * 10_000 + end)
    assert sorted(classes.classes.values()) == [1, 2]
    assert all(len(name) < MAX_NAME_CHARS + 20 for name in classes.classes)


def test_sums_stay_within_what_json_knows(numbers: Fixture) -> None:
    for _ in range(3):
        numbers.tracker.track_response(1.7e308)
    assert math.isfinite(numbers.tracker.snapshot().total)


def test_a_list_that_holds_itself_is_a_miss(classes: Fixture) -> None:
    endless: list[Any] = []
    endless.append(endless)
    classes.tracker.track_response(endless)
    assert classes.misses == 1


def test_snapshots_do_not_change_afterwards(classes: Fixture) -> None:
    classes.tracker.track_response("a")
    before = classes.tracker.snapshot()
    classes.tracker.track_response("a")
    assert before.classes == {"a": 1}
