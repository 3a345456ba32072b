"""Tests of `cortex.replica.tensors.conversion` and of the words in `cortex.replica.tensors.mismatch`."""

import base64
import decimal
import math
import struct
import types
import warnings

import ml_dtypes
import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cortex.replica.tensors.conversion import Converter
from cortex.replica.tensors.mismatch import InputMismatch, WrongNames
from cortex.replica.tensors.numbers import to_bfloat16
from cortex.wire.signature import Signature, TensorSpec

FLOATS = ("float16", "float32", "float64", "bfloat16")
INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
NUMBERS = FLOATS + INTEGERS


def converter(*inputs, **options):
    return Converter(Signature(tuple(inputs), ()), **options)


def one(dtype, shape, sample, **options):
    """The tensor that `sample` becomes for a model whose only input, x, has this type and shape."""
    return converter(TensorSpec("x", dtype, shape), **options).convert(sample)["x"]


def mismatch(*inputs, sample, **options):
    with pytest.raises(InputMismatch) as caught:
        converter(*inputs, **options).convert(sample)
    return caught.value


def same(found, dtype, expected):
    expected = np.array(expected, "float32" if dtype == "bfloat16" else dtype)
    return (
        found.dtype == expected.dtype
        and found.shape == expected.shape
        and np.array_equal(found, expected, equal_nan=expected.dtype.kind == "f")
    )


# ---- the element table ----------------------------------------------------------------------------------------------


def table(dtype, value):
    """What one JSON element becomes, straight from the table of the API; None for 422."""
    if isinstance(value, str) or (value is None and dtype not in FLOATS):
        return None
    if dtype == "bool":
        return bool(value) if value in (0, 1) else None
    if dtype in INTEGERS:
        limits = np.iinfo(dtype)
        if isinstance(value, float) and not value.is_integer():
            return None
        return int(value) if limits.min <= int(value) <= limits.max else None
    if value is None:
        return math.nan
    scalar = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype).type
    with np.errstate(over="ignore"):
        nearest = float(scalar(float(value)))
    return None if math.isinf(nearest) else nearest


JSON_SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.integers(-300, 300),
    st.floats(allow_nan=False, allow_infinity=False),
    st.integers(-(2**70), 2**70).map(float),
    st.sampled_from([65504.0, 65519.9, 65520, 3.4028235677973366e38, 2.0**63, 2.0**64, -0.0, 0.1, 1e-45, 3.39e38]),
    st.sampled_from(["", "1", "1.5", "abc", "true"]),
)


@pytest.mark.slow
@given(st.sampled_from([*NUMBERS, "bool"]), JSON_SCALARS)
@settings(max_examples=500, deadline=None)
def test_every_json_element_becomes_what_the_table_says(dtype, value):
    value = orjson.loads(orjson.dumps(value))
    expected = table(dtype, value)
    for dims, sample, shape in (
        ((), value, ()),
        (("N", 1), value, (1, 1)),
        (("N", 2), [[value, 1], [0, value]], (2, 2)),
    ):
        if expected is None:
            mismatch(TensorSpec("x", dtype, dims), sample=sample)
        else:
            found = one(dtype, dims, sample)
            assert found.shape == shape
            assert same(found.reshape(-1)[-1:], dtype, [expected])


@given(st.lists(st.one_of(st.text(), st.binary()), min_size=1, max_size=4))
@settings(deadline=None)
def test_text_inputs_take_text_and_base64(values):
    sample = [v if isinstance(v, str) else {"b64": base64.b64encode(v).decode()} for v in values]
    found = one("string", ("N",), sample, takes_bytes=True)
    assert found.dtype == object
    assert found.tolist() == values


@given(st.binary(max_size=200), st.integers(1, 80), st.booleans(), st.booleans(), st.booleans(), st.booleans())
@settings(deadline=None)
def test_base64_is_taken_in_each_of_its_forms(value, width, is_broken, is_url_safe, is_padded, is_url):
    text = (base64.urlsafe_b64encode if is_url_safe else base64.b64encode)(value).decode()
    text = text if is_padded else text.rstrip("=")
    text = "\r\n".join(text[at : at + width] for at in range(0, len(text), width)) + "\n" if is_broken else text
    text = f"data:image/png;base64,{text}" if is_url else text
    assert one("string", ("N",), [{"b64": text}], takes_bytes=True).tolist() == [value]


@pytest.mark.parametrize("text", ["%", "a", "YQ=Q", "data:,YQ==", "data:text/plain,a", "data:image/png;base64", "äöü="])
def test_what_is_not_base64_is_refused(text):
    assert '"b64"' in str(mismatch(TensorSpec("x", "string", ("N",)), sample=[{"b64": text}]))


@pytest.mark.parametrize("value", [1, 1.5, True, None, {"b64": 1}, {"b64": "%"}, {"a": "b"}, [["a"]], {"b64": "/w=="}])
def test_text_inputs_refuse_everything_else_and_bytes_that_are_no_utf8(value):
    mismatch(TensorSpec("x", "string", ("N",)), sample=[value])


def test_bytes_that_are_utf8_become_text_where_the_backend_wants_text():
    assert one("string", ("N",), [{"b64": "w6k="}, b"a"]).tolist() == ["é", "a"]


def test_half_a_character_is_refused():
    assert "lone surrogate" in str(mismatch(TensorSpec("x", "string", ("N",)), sample="\ud800"))


@pytest.mark.parametrize("dtype", NUMBERS)
@pytest.mark.parametrize("value", [10**400, -(10**400)])
def test_a_huge_integer_is_out_of_range(dtype, value):
    assert "outside the range" in str(mismatch(TensorSpec("x", dtype, ("N",)), sample=[value]))


@pytest.mark.parametrize(
    ("dtype", "bounds"),
    [("float16", "-65504 to 65504"), ("float32", "-3.403e+38 to 3.403e+38"), ("int8", "-128 to 127")],
)
def test_what_is_out_of_range_is_told_the_range(dtype, bounds):
    assert bounds in str(mismatch(TensorSpec("x", dtype, ("N",)), sample=[10**400]))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nan_and_infinities_of_handlers_reach_floats_only(value):
    assert same(one("float32", ("N",), [value]), "float32", [value])
    assert same(one("bfloat16", ("N",), np.array([value])), "bfloat16", [value])
    mismatch(TensorSpec("x", "int64", ("N",)), sample=[value])
    mismatch(TensorSpec("x", "int8", ("N",)), sample=np.array([value]))


def test_json_that_came_as_text_is_told_how_to_be_sent():
    assert "content-type: application/json" in mismatch(TensorSpec("x", "float32", (None, 2)), sample="[1, 2]").hint


def test_what_lies_under_the_mask_of_an_array_is_never_used():
    masked = np.ma.array([1.0, 2.0], mask=[False, True])
    assert str(one("float32", (None,), masked).tolist()) == "[1.0, nan]"
    assert one("int64", (None,), np.ma.array([1, 2])).tolist() == [1, 2]
    found = mismatch(TensorSpec("x", "int64", (None,)), sample=masked.astype("int64"))
    assert "[1] is null" in str(found)


def test_integers_beyond_the_precision_of_floats_stay_exact():
    assert one("int64", ("N",), [9007199254740993, 1.0]).tolist() == [9007199254740993, 1]
    assert one("uint64", ("N",), [2**64 - 1]).tolist() == [2**64 - 1]


@given(hnp.arrays(np.float64, hnp.array_shapes(), elements=st.floats(-1e39, 1e39)) | hnp.arrays(np.float32, (3,)))
@settings(deadline=None)
def test_bfloat16_rounds_as_ml_dtypes_does_but_once(values):
    direct = to_bfloat16(values)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        reference = values.astype(np.float32).astype(ml_dtypes.bfloat16).astype(np.float32)
        # ml_dtypes rounds float64 by way of float32, twice: at most one step apart, and then ours is nearer
        apart = ~((direct == reference) | (np.isnan(direct) & np.isnan(reference)))
        wide = values.astype(np.float64)
        assert (np.abs(direct - wide)[apart] <= np.abs(reference - wide)[apart]).all()
    assert not (direct.view(np.uint32) & 0xFFFF).any()


def test_every_nan_of_bfloat16_is_the_same_one():
    for nan in (np.array([0x7F800001, 0xFFC12345], np.uint32).view(np.float32), np.array([math.nan, -math.nan])):
        assert to_bfloat16(nan).view(np.uint32).tolist() == [0x7FC00000] * 2


@pytest.mark.parametrize(("bits", "rounded"), [(0x3F808000, 0x3F800000), (0x3F818000, 0x3F820000)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_tie_of_bfloat16_goes_to_even(bits, rounded, dtype):
    tie = np.array([bits], np.uint32).view(np.float32).astype(dtype)
    assert to_bfloat16(tie).view(np.uint32).tolist() == [rounded]


def test_bfloat16_does_not_round_twice():
    just_above_a_tie = 1.00390625 + 2**-40  # float32 rounds this to the tie itself, and the tie goes to even, down
    assert to_bfloat16(np.array(just_above_a_tie)).item() == 1.0078125


# ---- shapes ---------------------------------------------------------------------------------------------------------

DIMS = st.lists(st.one_of(st.none(), st.just("N"), st.integers(0, 4)), max_size=4).map(tuple)


@given(st.sampled_from(NUMBERS), DIMS, st.lists(st.integers(0, 4), max_size=4).map(tuple))
@settings(max_examples=400, deadline=None)
def test_lists_and_arrays_of_one_shape_are_treated_alike(dtype, dims, shape):
    values = np.arange(math.prod(shape)).reshape(shape)
    spec = TensorSpec("x", dtype, dims)
    try:
        from_array = converter(spec).convert(values)["x"]
    except InputMismatch:
        if math.prod(shape):  # a list of nothing does not know its inner dimensions
            mismatch(spec, sample=values.tolist())
        return
    assert same(from_array.reshape(-1), dtype, values.reshape(-1))
    if math.prod(shape):
        from_list = converter(spec).convert(values.tolist())["x"]
        assert same(from_list, dtype, from_array)


@pytest.mark.parametrize(
    ("dims", "sample", "shape"),
    [
        (("N", 4), [1, 2, 3, 4], (1, 4)),
        (("N", 4), [[1, 2, 3, 4]], (1, 4)),
        (("N", 4), [[1, 2, 3, 4]] * 4, (4, 4)),
        (("N", 4), [[1, 2, 3, 4]] * 300, (300, 4)),
        (("N", 1), 33, (1, 1)),
        (("N", 1), [33], (1, 1)),
        (("N", 1), [[1], [2]], (2, 1)),
        ((), [16000], ()),
        ((), 16000, ()),
        (("N",), 5, (1,)),
        (("N",), [1, 2, 3], (3,)),
        (("N",), [], (0,)),
        ((2, 3), [1, 2, 3, 4, 5, 6], (2, 3)),
        ((1, None), [1, 2, 3], (1, 3)),
        (("N", 2, 2), [[1, 2], [3, 4]], (1, 2, 2)),
        (("N", "M"), [[], []], (2, 0)),
        ((None, None, None), [[[1, 2]], [[3, 4]]], (2, 1, 2)),
        (None, 1, ()),
        (None, [[1, 2], [3, 4]], (2, 2)),
        (None, [[[[[[1]]]]]], (1,) * 6),
    ],
)
def test_a_sample_gets_the_models_shape(dims, sample, shape):
    found = one("float32", dims, sample)
    assert found.shape == shape
    assert found.reshape(-1).tolist() == np.array(sample, dtype=float).reshape(-1).tolist()
    texts = one("string", dims, np.array(sample).astype(str).tolist())
    assert texts.shape == shape


@pytest.mark.parametrize(
    ("dims", "sample"),
    [
        (("N", 4), [[1, 2], [3, 4]]),
        (("N", 4), [1, 2, 3]),
        (("N", 4), [[[1, 2, 3, 4]]]),
        ((2, 4), []),
        (("N", 4), [[]]),
        (("N", 4), [[1, 2, 3, 4], [1, 2, 3]]),
        (("N", 4), [[1, 2, 3, 4], 5]),
        (("N", 4), [1, [2], 3, 4]),
        (("N", 4), [[1, 2, 3, 4], "abcd"]),
        (("N", 4), [[1, 2, 3, 4], {"a": 1, "b": 2, "c": 3, "d": 4}]),
        (("N", 4), [[1, 2, 3, 4], None]),
        (("N", 0), [[], ""]),
        ((), [1, 2]),
        ((), [[1]]),
        ((3,), 1),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "int64", "uint8", "bool", "string", "bfloat16"])
def test_a_sample_of_another_shape_is_refused(dtype, dims, sample):
    mismatch(TensorSpec("x", dtype, dims), sample=sample)


def test_deep_nesting_and_lists_that_hold_themselves_are_refused():
    deep = 1.0
    for _ in range(900):
        deep = [deep]
    knot: list = []
    knot.extend([knot, knot])
    for dims in (("N", 4), (), None):
        for dtype in ("float32", "string", "bool"):
            for sample in (deep, knot):
                assert "nest" in str(mismatch(TensorSpec("x", dtype, dims), sample=sample))


def test_long_text_among_numbers_allocates_nothing_for_the_others():
    sample = [1.0] * 100_000 + ["x" * 1_000_000]
    error = mismatch(TensorSpec("x", "float32", ("N",)), sample=sample)
    assert error.found_shape == (100_001,)
    assert len(str(error)) < 300
    assert one("string", ("N",), ["y"] * 10_000 + ["x" * 1_000_000]).dtype == object


# ---- any JSON, any input --------------------------------------------------------------------------------------------

SPECS = st.builds(
    TensorSpec,
    st.just("x"),
    st.sampled_from([*NUMBERS, "bool", "string"]),
    st.one_of(st.none(), DIMS),
    st.booleans(),
    st.sampled_from(["tensor", "sequence"]),
)
JSON = st.recursive(
    JSON_SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["x", "y", "b64", ""]), inner, max_size=3)
    ),
    max_leaves=20,
)


def assert_matches(spec, value):
    if spec.kind == "sequence":
        for item in value:
            assert_matches(TensorSpec(spec.name, spec.dtype, spec.shape), item)
        return
    assert value.dtype == {"string": object, "bfloat16": np.float32}.get(spec.dtype, spec.dtype)
    if spec.shape is not None:
        assert len(value.shape) == len(spec.shape)
        assert all(n == d for n, d in zip(value.shape, spec.shape, strict=True) if isinstance(d, int))


def assert_explains_itself(error):
    assert str(error)
    assert error.problem().message == str(error)
    facts = orjson.loads(orjson.dumps(error.facts))
    assert set(facts) == {"input", "expected", "found", "hint", "after"}
    assert set(facts["expected"]) == set(facts["found"]) == {"dtype", "shape"}


@pytest.mark.slow
@given(st.lists(SPECS, min_size=1, max_size=2), JSON)
@settings(max_examples=500, deadline=None)
def test_any_json_becomes_matching_tensors_or_a_mismatch(specs, sample):
    specs = [TensorSpec(name, s.dtype, s.shape, s.optional, s.kind) for name, s in zip("xy", specs, strict=False)]
    try:
        feeds = converter(*specs).convert(sample, "pre_inference")
    except InputMismatch as error:
        assert_explains_itself(error)
        return
    for spec in specs:
        assert spec.optional or spec.name in feeds
        if spec.name in feeds:
            assert_matches(spec, feeds[spec.name])


# ---- what handlers return -------------------------------------------------------------------------------------------


@given(
    st.sampled_from([*NUMBERS, "bool"]),
    st.sampled_from([*(n for n in NUMBERS if n != "bfloat16"), "bool", ">f4", ">i2"]),
    st.lists(st.integers(0, 100), max_size=6),
)
@settings(max_examples=300, deadline=None)
def test_arrays_are_cast_between_all_kinds_of_numbers(target, source, values):
    array = np.array(values, source)
    found = one(target, ("N",), array)
    assert found.dtype.isnative
    assert same(found, target, array.astype(np.float64).astype(bool) if target == "bool" else array.astype(np.float64))


def test_arrays_are_cast_as_numpy_casts():
    assert one("int64", ("N",), np.array([1.9, -1.9])).tolist() == [1, -1]
    assert one("bool", ("N",), np.array([0.0, 2.5])).tolist() == [False, True]
    assert one("float32", ("N",), np.array([1e-300])).tolist() == [0.0]


@pytest.mark.parametrize(
    ("dtype", "array"),
    [
        ("uint8", np.array([1, 256])),
        ("uint8", np.array([-1])),
        ("uint8", np.array([-1.0])),
        ("int64", np.array([2**63], np.uint64)),
        ("int64", np.array([2.0**63])),
        ("int32", np.array([3e9], np.float32)),
        ("float32", np.array([1.0, 1e39])),
        ("float16", np.array([70000])),
        ("float16", np.array([70000.0], np.float32)),
        ("bfloat16", np.array([3.4e38])),
        ("bool", np.array([np.nan])),
        ("float32", np.array([10**400], object)),
    ],
)
def test_arrays_that_would_turn_into_something_else_are_refused(dtype, array):
    assert isinstance(mismatch(TensorSpec("x", dtype, ("N",)), sample=array), InputMismatch)


def test_minus_a_half_truncates_to_an_unsigned_zero():
    assert one("uint8", ("N",), np.array([-0.5])).tolist() == [0]


@pytest.mark.parametrize("dtype", ["float32", "int64", "bool", "bfloat16"])
@pytest.mark.parametrize(
    "array",
    [np.array(["1"]), np.array([b"1"]), np.array([1 + 1j]), np.array(["2020"], "M8[D]"), np.zeros(1, [("a", "f4")])],
)
def test_arrays_of_other_things_are_no_numbers(dtype, array):
    mismatch(TensorSpec("x", dtype, ("N",)), sample=array)


def test_arrays_of_text_reach_text_inputs():
    for array in (np.array(["a", "é"]), np.array(["a", "é"], object), np.char.encode(np.array(["a", "é"]), "utf-8")):
        assert one("string", ("N",), array).tolist() == ["a", "é"]
    mismatch(TensorSpec("x", "string", ("N",)), sample=np.array([1, 2]))
    broken = np.frombuffer(b"\xff\xff\xff\xff", "<U1")
    assert "not Unicode" in str(mismatch(TensorSpec("x", "string", ("N",)), sample=broken))


def test_an_array_of_the_right_type_and_shape_is_passed_on_as_it_is():
    array = np.ones((2, 4), np.float32)
    assert one("float32", ("N", 4), array) is array


class Wrapped:
    """As a tensor of another library."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.array, dtype)


class Broken:
    def __array__(self, dtype=None, copy=None):
        raise RuntimeError("call detach() first")


def test_anything_with_an_array_interface_is_an_array():
    assert same(one("float32", ("N", 2), Wrapped(np.ones((3, 2)))), "float32", np.ones((3, 2)))
    assert same(one("float32", ("N", 2), [Wrapped(np.ones(2)), Wrapped(np.ones(2))]), "float32", np.ones((2, 2)))
    assert one("bool", ("N",), Wrapped(np.array([1, 0]))).tolist() == [True, False]
    assert one("string", ("N",), Wrapped(np.array(["a"]))).tolist() == ["a"]
    for dtype in ("float32", "bool", "string"):
        assert "call detach() first" in str(mismatch(TensorSpec("x", dtype, ("N",)), sample=Broken()))


@pytest.mark.parametrize(
    "value",
    [
        (1, 2, 3, 4),
        ((1, 2, 3, 4),),
        [np.float32(1), np.int64(2), 3, np.float16(4)],
        np.array([1, 2, 3, 4], np.uint8),
        [np.array([1, 2, 3, 4])],
        [[*np.array([1.0, 2.0]), 3, 4]],
        [decimal.Decimal(1), 2, 3.0, decimal.Decimal("4")],
        np.array([1, 2, 3, 4], object),
        np.arange(1, 9).reshape(1, 8)[:, :4],
        types.MappingProxyType({"x": [1, 2, 3, 4]}),
        {"x": np.array([[1, 2, 3, 4]])},
        ml_dtypes.bfloat16(1) * np.arange(1, 5).astype(ml_dtypes.bfloat16),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "int64", "uint8", "bfloat16", "float16"])
def test_handlers_may_return_what_they_have(value, dtype):
    found = one(dtype, ("N", 4), value)
    assert found.reshape(-1).tolist()[-2:] == [3, 4]
    assert found.shape == (1, 4)


@pytest.mark.parametrize("value", [object(), b"1234", [object()] * 4, {1, 2}, np.float32, [np.ones(4), np.ones(3)]])
@pytest.mark.parametrize("dtype", ["float32", "int64", "bool", "string"])
def test_what_is_no_tensor_at_all_is_refused(value, dtype):
    mismatch(TensorSpec("x", dtype, ("N", 4)), sample=value)


# ---- names, optional inputs, other kinds ----------------------------------------------------------------------------

X = TensorSpec("x", "float32", ("N", 4))


def test_a_single_input_may_be_named_or_not():
    for sample in ([1, 2, 3, 4], {"x": [1, 2, 3, 4]}):
        assert converter(X).convert(sample)["x"].tolist() == [[1, 2, 3, 4]]


def test_several_inputs_are_named_in_any_order():
    both = converter(X, TensorSpec("y", "string", ("N", 1)))
    feeds = both.convert({"y": "a", "x": [1, 2, 3, 4]})
    assert list(feeds) == ["x", "y"]
    assert feeds["y"].tolist() == [["a"]]


MASK = TensorSpec("mask", "float32", ("N", 3), optional=True)


@pytest.mark.parametrize(
    ("inputs", "sample", "reason", "hint"),
    [
        ([X], {"x": [1, 2, 3, 4], "more": 1}, 'the model has no input "more"', 'the only input is "x"'),
        (
            [X, MASK],
            {"x": [1, 2, 3, 4], "maks": [[0, 0, 0]]},
            'the model has no input "maks"',
            'did you mean "mask" where you wrote "maks"?',
        ),
        (
            [X, MASK],
            {"x": [1, 2, 3, 4], "mask": None, "b": 1, "c": 2},
            'the model has no input "b", "c"',
            'its inputs are "x", "mask"',
        ),
        ([], {"a": 1}, 'the model has no input "a"', "the model has no inputs: send {}"),
    ],
)
def test_a_name_that_the_model_lacks_is_refused(inputs, sample, reason, hint):
    error = mismatch(*inputs, sample=sample)
    assert isinstance(error, WrongNames)
    assert (str(error), error.hint) == (reason, hint)


@given(
    st.lists(st.sampled_from(["ids", "mask", "age", "city", "fare"]), min_size=1, max_size=5, unique=True),
    st.dictionaries(st.text(max_size=6), st.integers(0, 3), max_size=4),
    st.data(),
)
def test_of_all_objects_only_those_with_the_models_names_are_taken(names, more, data):
    optional = data.draw(st.sets(st.sampled_from(names)))
    left_out = data.draw(st.sets(st.sampled_from(names)))
    specs = [TensorSpec(name, "float32", ("N",), optional=name in optional) for name in names]
    sample = {**more, **{name: 1 for name in names if name not in left_out}}
    if set(names) - optional <= sample.keys() <= set(names):
        assert set(converter(*specs).convert(sample)) == sample.keys()
    elif not (sample.keys() <= {"inputs", "instances", "dataframe_split"}):
        assert isinstance(mismatch(*specs, sample=sample), WrongNames)


def test_a_value_without_a_name_is_for_the_only_input_that_is_needed():
    model = converter(X, TensorSpec("k", "float32", (1,), optional=True))
    for sample in ([1, 2, 3, 4], {"x": [1, 2, 3, 4]}, {"x": [1, 2, 3, 4], "k": None}):
        assert {name: value.tolist() for name, value in model.convert(sample).items()} == {"x": [[1, 2, 3, 4]]}
    assert model.convert({"x": [1, 2, 3, 4], "k": 10})["k"].tolist() == [10]
    text = converter(TensorSpec("t", "string", ("N",)), TensorSpec("k", "float32", (1,), optional=True))
    assert text.convert({"b64": "YQ=="})["t"].tolist() == ["a"]


def test_nothing_is_enough_where_everything_may_be_left_out():
    one_input = converter(TensorSpec("k", "float32", (1,), optional=True))
    several = converter(MASK, TensorSpec("k", "float32", (1,), optional=True))
    for sample in ({}, None):
        assert one_input.convert(sample) == {}
        assert several.convert(sample) == {}
    assert isinstance(mismatch(TensorSpec("k", "float32", (1,), optional=True), sample={"kk": 1}), WrongNames)


def test_a_pipeline_with_named_columns_takes_plain_values():
    columns = [
        TensorSpec("age", "float32", ("N", 1)),
        TensorSpec("sex", "string", ("N", 1)),
        TensorSpec("n", "int64", (None, 1)),
    ]
    feeds = converter(*columns).convert({"age": 33, "sex": "male", "n": 2.0})
    assert {name: value.tolist() for name, value in feeds.items()} == {"age": [[33]], "sex": [["male"]], "n": [[2]]}
    assert math.isnan(converter(*columns).convert({"age": None, "sex": "é", "n": 1})["age"].item())
    rows = converter(*columns).convert({"age": [[1], [2]], "sex": [["a"], ["b"]], "n": [[1], [2]]})
    assert rows["sex"].shape == (2, 1)


def test_a_missing_input_is_named_with_what_was_probably_meant():
    error = mismatch(X, TensorSpec("mask", "int64", ("N",)), sample={"x": [1, 2, 3, 4], "maks": [1]})
    assert (error.input, error.found_dtype, error.hint) == ("mask", None, 'did you mean "mask" where you wrote "maks"?')
    assert error.facts == {
        "input": "mask",
        "expected": {"dtype": "int64", "shape": ["N"]},
        "found": {"dtype": None, "shape": None},
        "hint": 'did you mean "mask" where you wrote "maks"?',
    }


@pytest.mark.parametrize(
    ("sample", "hint"),
    [
        ({"X": [1, 2, 3, 4]}, 'did you mean "x" where you wrote "X"?'),
        (
            {"X": [1, 2, 3]},
            'did you mean "x" where you wrote "X"? Its value does not fit either: '
            'input "x": expected float32[N, 4], found int64[3]: 4 values expected, 3 found',
        ),
        ({"data": [[1, 2, 3, 4]]}, 'send what is in "data", without the object around it'),
        ({"data": [{"x": [1, 2, 3, 4]}]}, 'send what is in "data", without the object around it'),
        ({"data": [1]}, 'send the value itself, or {"x": value}'),
        ({}, 'send the value itself, or {"x": value}'),
    ],
)
def test_an_object_without_the_only_input_is_told_what_to_send(sample, hint):
    assert mismatch(X, sample=sample).hint == hint


@pytest.mark.parametrize(
    ("spec", "sample", "blamed", "reason"),
    [
        (TensorSpec("x", "float32", (None, 1)), [{}], "x", "[0] is an object where a number is expected"),
        (TensorSpec("x", "float32", (None, 1)), [{"y": 1}], "x", 'which is missing; the model has no input "y"'),
        (TensorSpec("x", "string", (None, 1)), [{"b64": "%"}], "x", '[0] has a "b64" that is not base64'),
        (TensorSpec("b64", "string", (None, 1)), [{"b64": 1}], "b64", "[0] is 1, which is no text"),
        (
            TensorSpec("x", "string", (None,), features=(TensorSpec("age", "float32", ()),)),
            [{"agee": 1}],
            'x["age"]',
            'which is missing; the model has no feature "agee"',
        ),
    ],
    ids=["of nothing", "of another name", "of bytes", "of a name that bytes have", "of features"],
)
def test_objects_in_a_list_are_rows_only_where_nothing_else_is_meant_by_them(spec, sample, blamed, reason):
    error = mismatch(spec, sample=sample, takes_bytes=True)
    assert (error.input, error.reason) == (blamed, reason)


def test_a_sample_without_names_for_several_inputs_is_told_the_names():
    error = mismatch(X, TensorSpec("y", "int64", ()), sample=[1, 2])
    assert str(error) == "the model has 2 inputs, and the sample is no object that names them"
    assert error.hint == 'send an object with the keys "x", "y"'


def test_null_for_an_optional_input_means_absent():
    optional = TensorSpec("o", "float32", ("N",), optional=True)
    assert converter(optional).convert(None) == {}
    assert converter(optional).convert({"o": None}) == {}
    assert converter(X, optional).convert({"x": [1, 2, 3, 4], "o": None}).keys() == {"x"}
    assert converter(X, optional).convert({"x": [1, 2, 3, 4]}).keys() == {"x"}
    assert converter(X, optional).convert({"x": [1, 2, 3, 4], "o": [1]}).keys() == {"x", "o"}


def test_a_model_without_inputs_takes_anything():
    for sample in ({}, [], None, 1, "a"):
        assert converter().convert(sample) == {}


def test_a_sequence_takes_a_list_of_tensors():
    sequence = TensorSpec("s", "float32", (None, 2), kind="sequence")
    tensors = converter(sequence).convert([[1, 2], [[3, 4], [5, 6]]])["s"]
    assert [t.tolist() for t in tensors] == [[[1, 2]], [[3, 4], [5, 6]]]
    assert converter(sequence).convert([])["s"] == []
    error = mismatch(sequence, sample=[[1, 2], [3]])
    assert error.input == "s[1]"
    assert "sequence of float32[?, 2]" in str(mismatch(sequence, sample=1))


def test_a_map_takes_an_object_of_numbers():
    words = TensorSpec("m", "float32", (), kind="map", key_dtype="string")
    ids = TensorSpec("m", "float32", (), kind="map", key_dtype="int64")
    assert converter(words).convert({"a": 1, "b": 2.5})["m"] == {"a": 1.0, "b": 2.5}
    assert converter(words).convert({"m": {"a": True}})["m"] == {"a": 1.0}
    assert converter(ids).convert({"7": 1, "-1": 0.1})["m"] == {7: 1.0, -1: float(np.float32(0.1))}
    assert mismatch(words, sample={"a": "1"}).input == "m['a']"
    for sample in ({"x": 1}, {str(2**63): 1}, {1.5: 1}, [1]):
        mismatch(ids, sample=sample)


# ---- what the caller reads ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "sample", "message", "hint"),
    [
        (
            X,
            [1, 2, 3],
            'input "x": expected float32[N, 4], found int64[3]: 4 values expected, 3 found',
            "",
        ),
        (
            X,
            [1, 2, 3, "4"],
            "input \"x\": expected float32[N, 4], found mixed[4]: [3] is text, '4', where a number is expected",
            "send numbers without quotes",
        ),
        (
            X,
            [[1, 2, 3, 4], [5, 6, 7]],
            'input "x": expected float32[N, 4], found int64: [1] has 3 values while [0] has 4',
            "the model takes [N, 4]: give every one 4",
        ),
        (
            TensorSpec("i", "int64", ("N",)),
            [1, 1.5],
            'input "i": expected int64[N], found float64[2]: [1] is 1.5, which is not a whole number',
            "",
        ),
        (
            TensorSpec("i", "uint8", (None, 2)),
            [[0, 1], [2, 300]],
            'input "i": expected uint8[?, 2], found int64[2, 2]: [1][1] is 300, outside the range of uint8 (0 to 255)',
            "",
        ),
        (
            TensorSpec("i", "int32", ()),
            None,
            'input "i": expected a single int32, found a single null: is null',
            "only float inputs take null, as NaN",
        ),
        (
            TensorSpec("t", "string", ("N",)),
            [5],
            'input "t": expected string[N], found int64[1]: [0] is 5, which is no text',
            'put it in quotes: "5"',
        ),
        (
            TensorSpec("b", "bool", ("N",)),
            [2],
            'input "b": expected bool[N], found int64[1]: [0] is 2, and only 0 and 1 are booleans',
            "",
        ),
        (
            TensorSpec("image", "float32", ("N", 3, 4, 4)),
            np.zeros((1, 4, 4, 3)),
            'input "image": expected float32[N, 3, 4, 4], found float64[1, 4, 4, 3]: '
            "channels come last, and the model wants them first",
            "the model takes [N, 3, 4, 4]: transpose the image",
        ),
    ],
)
def test_a_mismatch_says_what_was_expected_what_was_found_and_what_to_do(spec, sample, message, hint):
    error = mismatch(spec, sample=sample)
    assert str(error) == message
    assert error.hint == hint


def test_a_mismatch_says_when_a_handler_made_the_value():
    with pytest.raises(InputMismatch) as caught:
        converter(X).convert([1], "pre_inference")
    assert caught.value.facts["after"] == "pre_inference"
    assert "after" not in mismatch(X, sample=[1]).facts


def test_results_are_exact_for_every_float32_that_json_can_write():
    bits = np.random.default_rng(1).integers(0, 2**32, 5000, dtype=np.uint32)
    values = bits.view(np.float32)
    values = values[np.isfinite(values)]
    sample = orjson.loads(orjson.dumps(values, option=orjson.OPT_SERIALIZE_NUMPY))
    assert np.array_equal(one("float32", ("N",), sample), values)
    assert struct.pack("=2f", *one("float32", (2,), [0.1, -0.0]).tolist()) == struct.pack("=2f", 0.1, -0.0)


# ---- what only the model knows --------------------------------------------------------------------------------------

IDS, TYPES = TensorSpec("ids", "int64", ("batch", "seq")), TensorSpec("types", "int64", ("batch", "seq"))


@pytest.mark.parametrize(
    ("sample", "reason", "words"),
    [
        (
            {"ids": [[1, 999]], "types": [[0, 1]]},
            "Gather: indices element out of data bounds, idx=999 must be within the inclusive range [-10,9]",
            'input "ids": expected int64[batch, seq], found int64[1, 2]: the model does not take these values: Gat',
        ),
        (
            {"ids": [[1, 2]], "types": [[0, 7]]},
            "indices[0,1] = 7 is not in [0, 2)",
            'input "types": expected int64[batch, seq], found int64[1, 2]: the model does not take these values: ind',
        ),
        (
            {"ids": [[7, 7]], "types": [[0, 7]]},
            "indices[0,1] = 7 is not in [0, 2)",
            "the model does not take these values: indices[0,1] = 7 is not in [0, 2); "
            'it was given "ids" int64[1, 2], "types" int64[1, 2]',
        ),
    ],
)
def test_what_the_model_refuses_is_told_of_the_input_that_it_is_about(sample, reason, words):
    model = converter(IDS, TYPES)
    error = model.refused(model.convert(sample), reason, "pre_inference")
    assert str(error).startswith(words)
    assert error.facts["after"] == "pre_inference"


def test_rows_that_differ_are_named_where_the_model_refuses_them():
    model = converter(TensorSpec("a", "float32", (None, 2)), TensorSpec("b", "float32", (None, 2)))
    error = model.refused(model.convert({"a": [[1, 2]] * 3, "b": [[1, 2]] * 2}), "3 vs. 2")
    assert error.reason == '2 rows (dimension 0), and "a" has 3; the model says: 3 vs. 2'
