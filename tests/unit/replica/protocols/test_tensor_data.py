"""Tests of `cortex.replica.protocols.tensor_data`: elements from JSON and bytes, and back."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest

from cortex.replica.bodies.codec import BadBody
from cortex.replica.protocols.tensor_data import (
    DATATYPES,
    DataError,
    count,
    datatype_of,
    read_binary,
    read_json,
    read_shape,
    write_binary,
    write_json,
)
from cortex.replica.tensors.mismatch import InputMismatch
from cortex.wire.signature import TensorSpec


def spec(dtype: str = "float32") -> TensorSpec:
    return TensorSpec("x", dtype, None)


def said(of: Any) -> str:
    with pytest.raises(DataError) as caught:
        of()
    assert caught.value.input == "x"
    text = str(caught.value)
    assert text.startswith('input "x" ')
    return text.removeprefix('input "x" ')


def test_every_datatype_has_its_name() -> None:
    assert DATATYPES == {
        "bool": "BOOL",
        "int8": "INT8",
        "int16": "INT16",
        "int32": "INT32",
        "int64": "INT64",
        "uint8": "UINT8",
        "uint16": "UINT16",
        "uint32": "UINT32",
        "uint64": "UINT64",
        "float16": "FP16",
        "float32": "FP32",
        "float64": "FP64",
        "bfloat16": "BF16",
        "string": "BYTES",
    }


# ---- shapes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [[], [0], [2, 3], [2**63 - 1], [1] * 32], ids=str)
def test_a_shape_is_sizes(shape: list[int]) -> None:
    assert read_shape("x", shape) == tuple(shape)


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        (None, "needs a shape: a list of integers"),
        ((1, 2), "needs a shape: a list of integers"),
        ([1] * 33, "has 33 dimensions, more than 32"),
        ([2, -1], "has -1 in its shape, which is no size"),
        ([2**63], f"has {2**63} in its shape, which is no size"),
        ([True], "has True in its shape, which is no size"),
        ([1.0], "has 1.0 in its shape, which is no size"),
        ([None], "has None in its shape, which is no size"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_is_no_shape_is_refused(shape: object, words: str) -> None:
    assert said(lambda: read_shape("x", shape)) == words


@pytest.mark.parametrize(("shape", "elements"), [((), 1), ((3,), 3), ((2, 3, 4), 24), ((2, 0), 0)])
def test_elements_are_counted(shape: tuple[int, ...], elements: int) -> None:
    assert count(shape) == elements


# ---- JSON -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "data", "found"),
    [
        ((2, 2), [1, 2, 3, 4], [[1, 2], [3, 4]]),
        ((2, 2), [[1, 2], [3, 4]], [[1, 2], [3, 4]]),
        ((), 5, 5),
        ((), [5], 5),
        ((0,), [], []),
    ],
)
def test_data_are_read_flat_or_nested(shape: tuple[int, ...], data: object, found: object) -> None:
    array = read_json(spec(), shape, data, at_most=10, takes_bytes=False)
    assert (array.shape, array.dtype, array.tolist()) == (shape, np.float32, found)


@pytest.mark.parametrize(
    ("shape", "data", "words"),
    [
        ((1,), 5, "has int for data, and a list is expected"),
        ((1,), None, "has NoneType for data, and a list is expected"),
        ((11,), [1], "has fewer elements than its shape [11] says"),
    ],
)
def test_data_that_cannot_fill_a_shape_are_refused(shape: tuple[int, ...], data: object, words: str) -> None:
    assert said(lambda: read_json(spec(), shape, data, at_most=10, takes_bytes=False)) == words


def test_as_many_elements_as_a_request_can_hold_are_read() -> None:
    assert read_json(spec("int64"), (10,), list(range(10)), at_most=10, takes_bytes=False).tolist() == list(range(10))


def test_an_element_of_another_type_is_a_mismatch() -> None:
    with pytest.raises(InputMismatch):
        read_json(spec("int64"), (1,), ["a"], at_most=10, takes_bytes=False)


def test_bytes_are_taken_by_models_that_take_them() -> None:
    data = ["é", {"b64": "/w=="}]
    assert read_json(spec("string"), (2,), data, at_most=10, takes_bytes=True).tolist() == ["é", b"\xff"]
    with pytest.raises(InputMismatch):
        read_json(spec("string"), (2,), data, at_most=10, takes_bytes=False)


# ---- binary data ----------------------------------------------------------------------------------------------------

NUMBERS = [name for name in DATATYPES if name not in ("bool", "bfloat16", "string")]


@pytest.mark.parametrize("dtype", NUMBERS)
@pytest.mark.parametrize("behind", [0, 1])
def test_numbers_are_read_and_written_little_endian_and_row_by_row(dtype: str, behind: int) -> None:
    array = np.array([[1, 2, 3], [4, 5, 100]], np.dtype(dtype).newbyteorder(">"))
    data = write_binary(DATATYPES[dtype], array)
    assert data == array.astype(np.dtype(dtype).newbyteorder("<")).tobytes()
    assert write_binary(DATATYPES[dtype], np.asfortranarray(array)) == data
    found = read_binary(spec(dtype), (2, 3), memoryview(bytes(behind) + data)[behind:])
    assert (found.dtype, found.tolist()) == (np.dtype(dtype), array.tolist())
    assert found.flags.aligned, "also where its bytes begin anywhere"


@pytest.mark.parametrize(
    ("dtype", "data", "words"),
    [
        ("float32", bytes(7), "has too few bytes: 7, and FP32[2] takes 8"),
        ("float32", bytes(9), "has too many bytes: 9, and FP32[2] takes 8"),
        ("bfloat16", bytes(3), "has too few bytes: 3, and BF16[2] takes 4"),
        ("bool", bytes(3), "has too many bytes: 3, and BOOL[2] takes 2"),
        ("bool", b"\1\2", "has bytes other than 0 and 1 for BOOL"),
    ],
)
def test_bytes_that_are_not_their_tensors_are_refused(dtype: str, data: bytes, words: str) -> None:
    assert said(lambda: read_binary(spec(dtype), (2,), memoryview(data))) == words


def test_truths_are_bytes_of_0_and_1() -> None:
    found = read_binary(spec("bool"), (2,), memoryview(b"\1\0"))
    assert (found.dtype, found.tolist()) == (np.bool_, [True, False])
    assert write_binary("BOOL", found) == b"\1\0"


def test_a_bfloat16_is_the_upper_half_of_a_float32() -> None:
    found = read_binary(spec("bfloat16"), (2,), memoryview(b"\x80\x3f\x20\xc0"))
    assert (found.dtype, found.tolist()) == (np.float32, [1.0, -2.5])
    assert write_binary("BF16", found) == b"\x80\x3f\x20\xc0"


def text(*elements: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(one)) + one for one in elements)


def test_text_has_its_length_before_it() -> None:
    data = text(b"", b"one", "zwölf".encode())
    found = read_binary(spec("string"), (3, 1), memoryview(data))
    assert found.tolist() == [[b""], [b"one"], ["zwölf".encode()]]
    assert write_binary("BYTES", found) == data
    assert write_binary("BYTES", np.array(["", "one", "zwölf"])) == data


def test_no_text_at_all_is_no_bytes() -> None:
    assert read_binary(spec("string"), (0, 2), memoryview(b"")).shape == (0, 2)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\0" * 7, "has too few bytes for 2 elements: 7"),
        (text(b"abc") + b"\0", "has too few bytes for element 1"),
        (text(b"", b"abc")[:-1], "has too few bytes for element 1, which says that it has 3"),
        (text(b"a", b"b") + b"\0\0", "has 2 bytes behind its last element"),
    ],
)
def test_text_that_does_not_end_with_its_bytes_is_refused(data: bytes, words: str) -> None:
    assert said(lambda: read_binary(spec("string"), (2,), memoryview(data))) == words


@pytest.mark.parametrize("dtype", ["float32", "string"])
def test_a_shape_that_no_array_can_have_is_refused(dtype: str) -> None:
    shape = (0, 2**62, 2**62)
    words = f"has the shape [0,{2**62},{2**62}], which no array can have"
    assert said(lambda: read_binary(spec(dtype), shape, memoryview(b""))).replace(" ", "") == words.replace(" ", "")


# ---- outputs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "array", "datatype"),
    [
        ("float32", np.zeros(1, np.float32), "FP32"),
        ("float32", np.zeros(1, np.float64), "FP64"),  # what it holds counts
        ("bfloat16", np.zeros(1, np.float32), "BF16"),
        ("string", np.array(["a"]), "BYTES"),
        ("string", np.array([b"a"]), "BYTES"),
        ("string", np.array(["a"], object), "BYTES"),
        ("complex64", np.zeros(1, np.complex64), None),
    ],
)
def test_an_output_has_the_datatype_of_what_it_holds(dtype: str, array: Any, datatype: str | None) -> None:
    assert datatype_of(spec(dtype), array) == datatype


def test_elements_are_written_flat() -> None:
    assert write_json("y", np.array([[1, 2], [3, 4]])).tolist() == [1, 2, 3, 4]
    assert write_json("y", np.array([["a"], ["b"]])) == ["a", "b"]
    assert write_json("y", np.array([["é".encode()], ["b"]], object)) == ["é", "b"]


def test_bytes_that_json_has_no_text_for_are_asked_for_as_binary_data() -> None:
    with pytest.raises(BadBody) as caught:
        write_json("y", np.array([b"\xff"], object))
    assert str(caught.value) == 'output "y" has bytes that are no text: ask for it with "binary_data": true'
