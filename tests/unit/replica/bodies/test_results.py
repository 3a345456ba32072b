"""Tests of `cortex.replica.bodies.results`."""

import array
import base64
import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import inspect
import io
import ipaddress
import json
import math
import os
import pathlib
import re
import sys
import types
import uuid

import ml_dtypes
import numpy as np
import orjson
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from cortex.replica.bodies.results import Unserialisable, encode


class Colour(enum.Enum):
    RED = "red"
    BOTH = ("red", "blue")
    HUGE = 2**70


class Level(enum.IntEnum):
    LOW = 1


class Name(enum.StrEnum):
    IRIS = "iris"


@dataclasses.dataclass
class Point:
    x: float
    _y: object = None


class Foo:
    """Has no JSON form."""


Pair = collections.namedtuple("Pair", "a b")


class Temperature(float):
    """A number of its own class."""


class Stamp(datetime.datetime):
    """As pandas has."""


class Arrayed:
    def __array__(self, dtype=None, copy=None):
        return np.array([1, 2])


def text(value):
    return encode(value).decode()


def nested(value, levels):
    """A value in so many lists."""
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        ("iris é", '"iris é"'),
        (True, "true"),
        (None, "null"),
        (-(2**63), "-9223372036854775808"),
        (2**64 - 1, "18446744073709551615"),
        (2**64, "18446744073709551616"),
        (-(10**30), "-1000000000000000000000000000000"),
        (1.5, "1.5"),
        (math.nan, "null"),
        ([math.inf, -math.inf], "[null,null]"),
        (Temperature(1.5), "1.5"),
        ((1, [2]), "[1,[2]]"),
        (Pair(1, 2), "[1,2]"),
        (array.array("f", [0.1]), "[0.1]"),
        (array.array("q", [1, 2]), "[1,2]"),
        ({1}, "[1]"),
        (frozenset(["a"]), '["a"]'),
        ({"b": 1, "a": 2}, '{"b":1,"a":2}'),
        (collections.OrderedDict(b=1, a=2), '{"b":1,"a":2}'),
        (types.MappingProxyType({"a": {1}}), '{"a":[1]}'),
        ({"a": 1}.keys(), '["a"]'),
        ({"a": 1}.values(), "[1]"),
        (range(3), "[0,1,2]"),
        (collections.deque([1, 2]), "[1,2]"),
        (b"\xff\x00", '{"b64":"/wA="}'),
        (bytearray(b"ab"), '{"b64":"YWI="}'),
        (memoryview(b"ab"), '{"b64":"YWI="}'),
        (decimal.Decimal("1.50"), "1.50"),
        (decimal.Decimal("123456789012345678901234567890.5"), "123456789012345678901234567890.5"),
        ([decimal.Decimal("NaN"), decimal.Decimal("-Infinity")], "[null,null]"),
        (datetime.date(2020, 1, 2), '"2020-01-02"'),
        (datetime.datetime(2020, 1, 2, 3, 4, 5, tzinfo=datetime.UTC), '"2020-01-02T03:04:05+00:00"'),
        (Stamp(2020, 1, 2), '"2020-01-02T00:00:00"'),
        (datetime.time(3, 4), '"03:04:00"'),
        (datetime.time(3, 4, tzinfo=datetime.UTC), '"03:04:00+00:00"'),
        (uuid.UUID(int=1), '"00000000-0000-0000-0000-000000000001"'),
        (Colour.RED, '"red"'),
        (Colour.BOTH, '["red","blue"]'),
        (Colour.HUGE, "1180591620717411303424"),
        (Level.LOW, "1"),
        (Name.IRIS, '"iris"'),
        (Point(1.5, {1}), '{"x":1.5,"_y":[1]}'),
        (Point(1.5, 2**70), '{"x":1.5,"_y":1180591620717411303424}'),
        (1 + 2j, "[1.0,2.0]"),
        ("\ud800", '"\\ud800"'),
        (Arrayed(), "[1,2]"),
    ],
)
def test_python_values(result, expected):
    assert text(result) == expected
    assert text([result]) == f"[{expected}]"
    assert text({"k": result, "beyond 64 bits": 2**64}) == f'{{"k":{expected},"beyond 64 bits":18446744073709551616}}'


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (np.float32(0.1), "0.1"),
        (np.float64(0.1), "0.1"),
        (np.float16(0.5), "0.5"),
        (np.longdouble(1.5), "1.5"),
        (np.int8(-3), "-3"),
        (np.uint64(2**64 - 1), "18446744073709551615"),
        (np.bool_(True), "true"),
        (np.str_("é"), '"é"'),
        (np.bytes_(b"a"), '{"b64":"YQ=="}'),
        (np.float32("nan"), "null"),
        (np.datetime64("2020-01-02"), '"2020-01-02T00:00:00"'),
        (np.datetime64("NaT"), "null"),
        (np.complex64(1 + 2j), "[1.0,2.0]"),
        (np.array([1, 2], ">i4"), "[1,2]"),
        (np.array([0.5, np.nan], np.float16), "[0.5,null]"),
        (np.array([1.5, 2.5], ml_dtypes.bfloat16), "[1.5,2.5]"),
        (np.array(1.5), "1.5"),
        (np.array("a"), '"a"'),
        (np.array(None, object), "null"),
        (np.array([["a", "é"]]), '[["a","é"]]'),
        (np.array([b"a"]), '[{"b64":"YQ=="}]'),
        (np.array([{"a": 1}, None, 2**70], object), '[{"a":1},null,1180591620717411303424]'),
        (np.arange(6).reshape(2, 3)[:, ::2], "[[0,2],[3,5]]"),
        (np.arange(3)[::-1], "[2,1,0]"),
        (np.asfortranarray([[1, 2], [3, 4]]), "[[1,2],[3,4]]"),
        (np.array([True, False]), "[true,false]"),
        (np.zeros((2, 0, 3)), "[[],[]]"),
        (np.array(["NaT", "2020-01-02"], "M8[s]"), '[null,"2020-01-02T00:00:00"]'),
        (np.datetime64("20000", "Y"), '"20000"'),
        (np.ma.array([1, 2], mask=[False, True]), "[1,null]"),
        (np.array([1 + 2j]), "[[1.0,2.0]]"),
        (np.array([1.5], np.longdouble), "[1.5]"),
    ],
)
def test_numpy_values(result, expected):
    assert text(result) == expected
    assert text({"k": [result], "n": 2**64}) == f'{{"k":[{expected}],"n":18446744073709551616}}'


def test_a_raw_prediction_with_maps():
    prediction = [np.array([1]), [{0: np.float32(0.25), 1: 0.5}, {"a": math.nan}]]
    assert text(prediction) == '[[1],[{"0":0.25,"1":0.5},{"a":null}]]'


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        (1, "1"),
        (None, "null"),
        (True, "true"),
        (1.5, "1.5"),
        (math.nan, "null"),
        (2**64, "18446744073709551616"),
        (np.int64(7), "7"),
        (np.float32(1.5), "1.5"),
        (np.str_("a"), "a"),
        (np.bool_(False), "false"),
        ((1, 2), "(1, 2)"),
        ((np.float32(0.1), np.int64(1), None, True), "(0.1, 1, None, True)"),
        ((datetime.date(2024, 1, 2), ("a", Level.LOW)), "('2024-01-02', ('a', 1))"),
        (b"a", "a"),
        (Colour.RED, "red"),
        (Level.LOW, "1"),
        (datetime.date(2020, 1, 2), "2020-01-02"),
        (decimal.Decimal("1.50"), "1.50"),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (frozenset([1]), "frozenset({1})"),
    ],
)
def test_keys_become_text_the_same_way_on_every_path(key, expected):
    assert json.loads(encode({key: 1})) == {expected: 1}
    assert json.loads(encode({key: 1, "other": 2**70})) == {expected: 1, "other": 2**70}


def test_an_integer_of_any_length_is_written_exactly():
    written = encode({10**5000: -(10**5000) + 1})
    assert written == b'{"1' + b"0" * 5000 + b'":-' + b"9" * 5000 + b"}"


@pytest.mark.parametrize(
    ("result", "path", "keys"),
    [
        ({1: "a", "1": "b"}, "result", 'keys 1 and "1" both become "1"'),
        ({"1": "a", 1: "b"}, "result", 'keys "1" and 1 both become "1"'),
        ({"deep": [{None: 1, "null": 2}]}, 'result["deep"][0]', 'keys None and "null" both become "null"'),
        ({True: 1, "true": 2}, "result", 'keys True and "true" both become "true"'),
        ({math.nan: 1, None: 2}, "result", 'keys nan and None both become "null"'),
        ({math.inf: 1, -math.inf: 2}, "result", 'keys inf and -inf both become "null"'),
        ({Colour.RED: 1, "red": 2}, "result", 'keys Colour.RED and "red" both become "red"'),
        ({b"a": 1, "a": 2}, "result", 'keys b\'a\' and "a" both become "a"'),
        ({"\ud800": 1, "?": 2}, "result", 'both become "?"'),
        (types.MappingProxyType({1: 1, "1": 2}), "result", 'keys 1 and "1" both become "1"'),
        (Point(0, {1: 1, "1": 2}), 'result["_y"]', 'keys 1 and "1" both become "1"'),
        (np.array([{1: 1, "1": 2}], object), "result[0]", 'keys 1 and "1" both become "1"'),
        (
            {datetime.date(2020, 1, 2): 1, "2020-01-02": 2},
            "result",
            'keys date(2020-01-02) and "2020-01-02" both become "2020-01-02"',
        ),
    ],
)
def test_two_keys_that_become_one_are_an_error_that_names_both(result, path, keys):
    with pytest.raises(Unserialisable) as caught:
        encode(result)
    assert caught.value.path == path
    assert keys in caught.value.found
    assert "str(key)" in caught.value.hint


def test_half_a_character_in_a_key_is_replaced():
    assert json.loads(encode({"\ud800": "\udfff"})) == {"?": "\udfff"}


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (Foo(), "result: object of type Foo cannot be written as JSON"),
        ({"a": [1, 2, 3, Foo()]}, 'result["a"][3]: object of type Foo cannot be written as JSON'),
        ({"a": {2: (Foo,)}}, 'result["a"][2][0]: object of type type cannot be written as JSON'),
        ({Foo(): 1}, "result: a key of type Foo cannot be written as JSON"),
        ({"k": {Foo(): 1}}, 'result["k"]: a key of type Foo cannot be written as JSON'),
        (datetime.timedelta(1), "result: object of type timedelta cannot be written as JSON"),
        (np.timedelta64(1, "s"), "result: object of type timedelta64 cannot be written as JSON"),
        ((x for x in "ab"), "result: object of type generator cannot be written as JSON"),
        (Point(0, Foo()), 'result["_y"]: object of type Foo cannot be written as JSON'),
        (np.array([1, Foo()], object), "result[1]: object of type Foo cannot be written as JSON"),
    ],
)
def test_what_has_no_json_form_is_named_with_its_place(result, message):
    with pytest.raises(Unserialisable) as caught:
        encode(result)
    assert str(caught.value) == message
    assert caught.value.facts["path"] == message.split(":")[0]


def test_a_value_that_holds_itself_is_named():
    knot = {"a": [1]}
    knot["a"].append(knot)
    with pytest.raises(Unserialisable, match=r'result\["a"\]\[1\]: a value that contains itself'):
        encode(knot)


@pytest.mark.parametrize("depth", [300, 100_000])
def test_too_deep_a_nesting_is_named_rather_than_crashing(depth):
    deep = 1
    for _ in range(depth):
        deep = [deep]
    with pytest.raises(Unserialisable, match="nested"):
        encode(deep)
    while isinstance(deep, list):  # take it apart here: freeing it at once is a recursion of its own
        deep = deep[0]


@pytest.mark.parametrize("depth", [19, 20])
def test_a_place_of_up_to_20_steps_is_told_whole(depth):
    with pytest.raises(Unserialisable) as caught:
        encode(nested(Foo(), depth))
    assert caught.value.path == "result" + "[0]" * depth


def test_of_a_place_of_more_than_20_steps_the_first_and_the_last_10_are_told():
    deep = nested([0, [0, Foo()]], 9)
    with pytest.raises(Unserialisable) as caught:
        encode(nested([0, deep], 9))
    assert caught.value.path == "result" + "[0]" * 9 + "[1]" + "…" + "[0]" * 8 + "[1][1]"


@pytest.mark.parametrize(
    ("key", "shown"),
    [
        ("x" * 40, f'"{"x" * 40}"'),
        ("x" * 41, f'"{"x" * 39}…"'),
        ("é", '"é"'),
        (2**254, str(2**254)),
        (2**255, "…"),
        (True, "True"),
        (1.5, "1.5"),
        (None, "None"),
        (b"a" * 40, "b'" + "a" * 38),
        (Level.LOW, "Level"),
        (np.int64(1), "int64"),
        ((1, 2), "tuple"),
    ],
    ids=str,
)
def test_a_place_names_a_key_as_it_is_written_but_not_at_any_length(key, shown):
    with pytest.raises(Unserialisable) as caught:
        encode({key: Foo()})
    assert caught.value.path == f"result[{shown}]"


def test_a_result_that_is_deeper_than_the_stack_that_is_left_is_named():
    def on_a_high_stack(frames):
        return encode(nested(2**70, 200)) if frames == 0 else on_a_high_stack(frames - 1)

    left = sys.getrecursionlimit() - len(inspect.stack(0))
    assert on_a_high_stack(left - 400)
    with pytest.raises(Unserialisable, match="a value nested too deep") as caught:
        on_a_high_stack(left - 150)
    assert caught.value.path.startswith("result[0][0][0]")


def test_two_hundred_levels_are_written_even_with_a_value_that_needs_care():
    deep = 2**64
    for _ in range(200):
        deep = {"a": deep}
    assert encode(deep).count(b"a") == 200


def test_the_same_list_twice_is_no_cycle():
    shared = [2**64]
    assert text([shared, shared]) == "[[18446744073709551616],[18446744073709551616]]"


def test_an_array_interface_that_fails_is_explained():
    class Failing:
        def __array__(self, dtype=None, copy=None):
            raise RuntimeError("call detach() first")

    with pytest.raises(Unserialisable, match=r"object of type Failing \(RuntimeError: call detach\(\) first\)"):
        encode([Failing()])


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ((x for x in "ab"), "list(value)"),
        (map(str, [1]), "list(value)"),
        (io.BytesIO(b"a"), "buffer.getvalue()"),
        (open(os.devnull, "rb"), "file.read()"),  # noqa: SIM115  # a handler's own mistake
        (pathlib.Path("a"), "str(path)"),
        (datetime.timedelta(1), "delta.total_seconds()"),
        (np.timedelta64(1, "s"), 'numpy.timedelta64(1, "s")'),
        (np.array([1], "m8[ns]"), 'numpy.timedelta64(1, "s")'),
        (Image.new("L", (2, 2)), 'image.save(buffer, "PNG")'),
        (ValueError("a"), "str(error)"),
        (len, "call it"),
        (Foo.__init__, "call it"),
        (Foo, "Class.__name__"),
        (math, "of that module"),
        (types.SimpleNamespace(a=1), "vars(value)"),
        (pydantic.SecretStr("a"), "str(value), which masks it"),
        (fractions.Fraction(1, 3), "float(value)"),
        (ipaddress.ip_address("127.0.0.1"), "str(value)"),
        (np.dtype("float32"), "str(value)"),
        (object(), "text, numbers, lists or dicts"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_has_no_json_form_comes_with_the_line_to_write(value, line):
    with pytest.raises(Unserialisable) as caught:
        encode({"a": value})
    assert line in caught.value.hint
    assert caught.value.path == 'result["a"]'
    getattr(value, "close", lambda: None)()


def test_a_coroutine_comes_with_the_line_to_write():
    async def later():
        pass

    coroutine = later()
    with pytest.raises(Unserialisable) as caught:
        encode([coroutine])
    coroutine.close()
    assert caught.value.hint == "return what it comes to: await value"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@pytest.mark.slow
@given(JSON)
@settings(max_examples=300, deadline=None)
def test_plain_json_comes_back_as_it_was(value):
    assert json.loads(encode(value)) == value


ANYTHING = st.recursive(
    st.one_of(
        st.none(),
        st.integers(-(2**80), 2**80),
        st.floats(),
        st.text(st.characters(), max_size=3),
        st.binary(max_size=3),
        st.decimals(),
        st.datetimes(),
        st.uuids(),
        st.complex_numbers(),
        st.fractions(),
        hnp.arrays(hnp.scalar_dtypes(), hnp.array_shapes(max_dims=2, max_side=2, min_side=0)),
        hnp.scalar_dtypes().map(lambda dtype: np.zeros((), dtype)[()]),
        st.sampled_from([Colour.BOTH, Level.LOW, Point(1), Pair(1, 2), Foo()]),
    ),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(
            st.none() | st.booleans() | st.integers() | st.text() | st.tuples(st.integers()), inner, max_size=3
        )
    ),
    max_leaves=8,
)


@pytest.mark.parametrize("shape", [(1,), (1, 1), (2, 1), (1, 2)])
@pytest.mark.parametrize("year", ["-001", "12020"])
def test_dates_out_of_range_in_an_array_leave_no_half_written_json(year, shape):
    array = np.full(shape, np.datetime64(year, "Y"))
    written = json.loads(encode({"a": array, "b": [array]}))
    assert written == {"a": array.astype(str).tolist(), "b": [array.astype(str).tolist()]}


@pytest.mark.slow
@given(ANYTHING)
@settings(max_examples=600, deadline=None)
def test_anything_becomes_valid_json_or_a_named_error(value):
    try:
        written = encode(value)
    except Unserialisable as error:
        named = str(error)
    else:
        json.loads(written, parse_constant=pytest.fail)
        return
    assert named.startswith("result")


@given(
    hnp.arrays(hnp.floating_dtypes(sizes=(16, 32, 64)) | hnp.integer_dtypes(), hnp.array_shapes(min_dims=0, min_side=0))
)
@settings(deadline=None)
def test_numeric_arrays_come_back_exactly(array):
    back = np.array(
        orjson.loads(encode(array)), np.float64 if array.dtype.kind == "f" else array.dtype.newbyteorder("=")
    )
    finite = np.where(np.isfinite(array), array, np.nan).astype(back.dtype) if array.dtype.kind == "f" else array
    if array.dtype.itemsize < 8 and array.dtype.kind == "f":
        back = back.astype(array.dtype)
        finite = finite.astype(array.dtype)
    assert np.array_equal(back.reshape(-1), finite.reshape(-1), equal_nan=array.dtype.kind == "f")


KEYS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.floats(-2, 2, width=16) | st.sampled_from([math.nan, math.inf]),
    st.text("01.trueNna-", max_size=4),
    st.sampled_from([Colour.RED, Level.LOW, Name.IRIS, "iris", "red", np.int8(1), np.bool_(True), np.float32(0.1)]),
    st.sampled_from([np.str_("1"), b"1", decimal.Decimal("0.1"), (1,), datetime.date(2020, 1, 2)]),
)


@given(st.dictionaries(KEYS, st.integers(), max_size=6))
@settings(deadline=None)
def test_no_key_is_lost_and_none_is_written_twice(mapping):
    try:
        written = encode([mapping])
    except Unserialisable as error:
        refusal = str(error)
    else:
        assert len(json.loads(written)[0]) == len(mapping)
        assert len(json.loads(written, object_pairs_hook=list)[0]) == len(mapping)
        return
    assert "both become" in refusal


@given(st.floats(width=32, allow_nan=False, allow_infinity=False), st.integers(1, 3))
def test_a_float32_is_the_shortest_text_that_reads_back_wherever_it_stands(value, dimensions):
    number = np.float32(value)
    shape = (1,) * dimensions
    places = [
        number,
        np.array(number),
        np.full(shape, number),
        np.full(shape, number).astype(">f4"),
        np.ma.array(np.full(shape, number), mask=False),
        np.array([number, "x"], object)[:1],
        {"a": number},
        {number},
        Point(number),
        np.full(1, number, [("a", "f4")]),
        np.full(1, number, np.complex64),
        {number: 1},
        {"big": 2**70, "a": [number]},
    ]
    shortest = orjson.dumps(number, None, orjson.OPT_SERIALIZE_NUMPY).decode()
    assert np.float32(shortest) == number
    for place in places:
        assert re.search(rf'[\[{{:" ]{re.escape(shortest)}[\]}},"]', f"[{text(place)}]"), text(place)


def test_a_structured_array_keeps_its_names():
    array = np.array([(1, 0.1, "a")], [("n", "i4"), ("x", "f4"), ("t", "U1")])
    assert text(array) == '[{"n":1,"x":0.1,"t":"a"}]'
    assert text(array[0]) == text(array.reshape(())) == '{"n":1,"x":0.1,"t":"a"}'


@given(st.binary())
def test_bytes_come_back_from_base64(value):
    assert base64.b64decode(orjson.loads(encode(value))["b64"]) == value
