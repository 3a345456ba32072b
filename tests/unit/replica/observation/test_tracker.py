from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import math
import random
import threading
import uuid
from collections import Counter
from typing import Any, Literal

import attrs
import msgspec
import numpy as np
import orjson
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex.errors import Response
from cortex.metrics.counts import NOTHING, Reading, growth, read
from cortex.replica.bodies.results import encode
from cortex.replica.observation.tracker import MAX_ITEMS, MAX_NAME_CHARS, Tracker
from cortex.wire.build import TrackerConfig
from cortex.wire.stats import EXACT_CLASSES, StatsFile, number_bucket

FILE: dict[str, Any] = {"replica": "iris.sklearn.aaaaaaaa.0", "attempt": 1, "api": "iris/sklearn", "version": "a" * 64}


class Colour(enum.Enum):
    RED = "red"
    A = "a"


class Level(enum.IntEnum):
    LOW = 1


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
        ({"a"}, "a"),
        (frozenset([3]), "3"),
        ({"a": 1}.keys(), "a"),
        ([{"a"}], "a"),
        (decimal.Decimal(3), "3"),
        (datetime.date(2020, 1, 2), "2020-01-02"),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (Colour.RED, "red"),
        ([Colour.RED], "red"),
        (Level.LOW, "1"),
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
        ["a", ["b", "c"]],
        [0.1, 0.9],
        {"a": 1},
        {1.5},
        np.array([[1, 2], [3, 4]]),
        np.array([]),
        decimal.Decimal("1.5"),
        np.timedelta64(1),
        list(range(MAX_ITEMS + 1)),
        object(),
        Response(None),
    ],
)
def test_what_is_no_class_is_a_miss(classes: Fixture, value: Any) -> None:
    classes.tracker.track_response(value)
    assert (classes.classes, classes.misses) == ({}, 1)


@pytest.mark.parametrize(
    "value",
    [
        *(2, 2.0, np.float32(2), np.float64(2), np.int8(2), np.array([2.0]), [2], np.float16(2)),
        *({2}, frozenset([2.0]), decimal.Decimal("2.0"), [decimal.Decimal(2)]),
    ],
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


def test_a_model_of_pydantic_or_attrs_is_looked_into_as_its_json() -> None:
    class Model(pydantic.BaseModel):
        label: str = "a"

    @attrs.define
    class Attrs:
        label: frozenset[str] = frozenset({"a"})

    fixture = Fixture("classification", "label")
    for response in (Model(), Attrs(), [], 3):
        fixture.tracker.track_response(response)
    assert (fixture.classes, fixture.misses) == ({"a": 2}, 2)


@pytest.mark.parametrize(
    "value",
    [
        ["a", "b", "a"],
        ("a", "b", "a"),
        np.array(["a", "b", "a"]),
        np.array([["a"], ["b"], ["a"]]),
        [["a"], ["b"], np.array(["a"])],
        [Colour.A, "b", "a"],
    ],
)
@pytest.mark.parametrize("key", [None, "labels"])
def test_a_list_of_scalars_counts_each(value: Any, key: str | None) -> None:
    fixture = Fixture("classification", key)
    fixture.tracker.track_response(value if key is None else {key: value})
    assert (fixture.classes, fixture.misses) == ({"a": 2, "b": 1}, 0)


def test_of_a_list_of_scalars_those_that_do_not_count_are_misses_and_a_list_of_none_is_one(numbers: Fixture) -> None:
    numbers.tracker.track_response([1.0, None, 3.0])
    assert (numbers.tracker.snapshot().count, numbers.misses) == (2, 1)
    numbers.tracker.track_response(["a", "b", "c"])
    assert numbers.misses == 2


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63),
    st.floats(),
    st.text(st.characters(codec="utf-8"), max_size=3),
    st.decimals(allow_nan=False, allow_infinity=False, places=2),
    st.dates(),
    st.uuids(),
    st.sampled_from([*Colour, *Level, np.float32(0.5), np.int8(3), np.bool_(True), np.str_("a")]),
)


@pytest.mark.parametrize("model_type", ["classification", "regression"])
@given(
    result=SCALARS | st.lists(SCALARS, max_size=4) | SCALARS.map(lambda x: [[x]]) | st.frozensets(SCALARS, max_size=1)
)
def test_what_is_counted_is_what_the_json_would_be_counted_as(model_type: Any, result: Any) -> None:
    counted, read = Fixture(model_type), Fixture(model_type)
    counted.tracker.track_response(result)
    read.tracker.track_response(orjson.loads(encode(result)))
    assert counted.tracker.snapshot() == read.tracker.snapshot()


@pytest.mark.parametrize(
    ("model_type", "key", "response", "reason", "hint"),
    [
        ("classification", None, {"label": "a"}, "found an object", 'add `key:` below `tracker:`, with one of "label"'),
        ("classification", "lable", {"label": "a"}, 'no key "lable"', 'did you mean "label"?'),
        ("classification", "x", {"label": "a"}, 'no key "x"', 'set `key:` to one of "label"'),
        ("classification", "x", {}, 'no key "x"', "once it has some"),
        ("classification", "label", "a", "an object with the key", "take `key:` out"),
        ("classification", None, 0.5, "found float", "`model_type: regression`"),
        ("classification", None, [0.1, 0.9], "found a list of 2", "`model_type: regression`"),
        ("classification", None, [[1, 2], [3, 4]], "found a list of 2", "return a single value"),
        ("classification", "p", {"p": {"a": 0.5}}, "found an object", "track a value of its own"),
        ("regression", None, "a", "found str", "`model_type: classification`"),
        ("regression", None, True, "found bool", "`model_type: classification`"),
        ("regression", None, Response({"a": 1}), "found an object", 'with one of "a"'),
    ],
)
def test_a_response_like_which_none_is_ever_counted_is_told(
    model_type: Any, key: str | None, response: Any, reason: str, hint: str
) -> None:
    mismatch = Fixture(model_type, key).tracker.never_counts(response)
    assert mismatch is not None
    assert reason in mismatch.reason
    assert hint in mismatch.hint


@pytest.mark.parametrize(
    ("model_type", "key", "response"),
    [
        *(("classification", None, value) for value in ("a", 3, True, ["a"], ["a", "b"], {"a"}, None, [], Colour.A)),
        *(("regression", None, value) for value in (1, 0.5, math.nan, [0.1, None], decimal.Decimal(1), None)),
        ("classification", "a", {"a": None}),
        ("classification", "a", Response({"error": "x"}, status=404)),
    ],
)
def test_what_is_counted_or_may_be_another_time_is_no_mismatch(model_type: Any, key: str | None, response: Any) -> None:
    assert Fixture(model_type, key).tracker.never_counts(response) is None


def test_a_raw_prediction_like_which_none_is_ever_counted_is_told() -> None:
    tracker = Fixture("classification", "scores").tracker
    assert tracker.never_counts_prediction({"scores": np.array([0.1, 0.9])}, 1) is not None
    assert tracker.never_counts_prediction({"scores": np.array([[1], [2]])}, 2) is None
    assert tracker.never_counts_prediction({"label": 1}, 1) is not None


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
        patch.setattr("cortex.replica.observation.tracker.EXACT_CLASSES", 3)
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
    monkeypatch.setattr("cortex.replica.observation.tracker.EXACT_CLASSES", 5)
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
