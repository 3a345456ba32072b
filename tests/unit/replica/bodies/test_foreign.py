"""Tests of `cortex.replica.bodies.foreign`: results made of types of pandas, pydantic, attrs and msgspec."""

import datetime
import enum
import json
import subprocess
import sys

import attrs
import msgspec
import numpy as np
import pandas as pd
import pydantic
import pytest
from pydantic import v1 as pydantic_1

from cortex.replica.bodies.results import Unserialisable, encode

FRAME = pd.DataFrame(
    {
        "label": ["a", "b"],
        "score": np.array([0.1, np.nan], np.float32),
        "n": pd.array([1, None], dtype="Int64"),
        "at": pd.to_datetime(["2024-01-01", None], utc=True),
        "kind": pd.Categorical(["x", "y"]),
    }
)
RECORDS = (
    '[{"label":"a","score":0.1,"n":1,"at":"2024-01-01T00:00:00+00:00","kind":"x"},'
    '{"label":"b","score":null,"n":null,"at":null,"kind":"y"}]'
)


def text(value):
    return encode(value).decode()


class Kind(enum.Enum):
    GOOD = "good"


class Model(pydantic.BaseModel):
    label: str
    score: float
    at: datetime.datetime
    kind: Kind = Kind.GOOD
    inner: list["Model"] = []


class Model1(pydantic_1.BaseModel):
    label: str
    score: float
    at: datetime.datetime


class Holder(pydantic.BaseModel, arbitrary_types_allowed=True):
    array: np.ndarray


class Holder1(pydantic_1.BaseModel):
    array: np.ndarray

    class Config:
        arbitrary_types_allowed = True


class Labels(pydantic.RootModel[list[str]]):
    pass


@attrs.define
class Point:
    x: float
    inner: object = None


class Struct(msgspec.Struct, rename="camel"):
    first_name: str
    inner: object = None


AT = datetime.datetime(2024, 1, 1)


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (FRAME, RECORDS),
        (FRAME.head(0), "[]"),
        (FRAME.set_index("label")["score"], '{"a":0.1,"b":null}'),
        (FRAME["label"], '{"0":"a","1":"b"}'),
        (FRAME.groupby("label", observed=True)["n"].sum(), '{"a":1,"b":0}'),
        (pd.cut(pd.Series([1, 5]), 2).value_counts(), '{"(0.996, 3.0]":1,"(3.0, 5.0]":1}'),
        (pd.cut(pd.Series([1, 5]), 2).value_counts().to_dict(), '{"(0.996, 3.0]":1,"(3.0, 5.0]":1}'),
        (FRAME["score"].sum(), "0.1"),
        (FRAME.columns, '["label","score","n","at","kind"]'),
        (FRAME["n"].array, "[1,null]"),
        (FRAME["kind"].array, '["x","y"]'),
        (pd.Index([0.1], dtype="float32"), "[0.1]"),
        (pd.MultiIndex.from_tuples([(1, "a")]), '[[1,"a"]]'),
        (
            pd.DataFrame([[1, 2]], columns=pd.MultiIndex.from_tuples([(1, "a"), (1, "b")])),
            "[{\"(1, 'a')\":1,\"(1, 'b')\":2}]",
        ),
        (pd.DataFrame({1: [1], None: [2]}), '[{"1.0":1,"null":2}]'),
        (pd.DataFrame({"deep": [[{"a": pd.NaT}]]}), '[{"deep":[{"a":null}]}]'),
        (pd.NaT, "null"),
        (pd.NA, "null"),
        (pd.Timestamp("2024-01-01", tz="Europe/Berlin"), '"2024-01-01T00:00:00+01:00"'),
        (pd.Timestamp("2024-01-01 00:00:00.123456789"), '"2024-01-01T00:00:00.123456789"'),
        ({pd.Timestamp("2024-01-01"): 1, pd.NaT: 2}, '{"2024-01-01T00:00:00":1,"null":2}'),
        ({pd.Period("2024-01"): 1, pd.Interval(0, 1): 2}, '{"2024-01":1,"(0, 1]":2}'),
        (FRAME["at"].to_dict(), '{"0":"2024-01-01T00:00:00+00:00","1":null}'),
    ],
)
def test_pandas(result, expected):
    assert text(result) == expected
    assert text({"k": [result], "beyond 64 bits": 2**64}) == f'{{"k":[{expected}],"beyond 64 bits":{2**64}}}'


@pytest.mark.parametrize(
    ("result", "found", "line"),
    [
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), "two columns 'a'", "df.columns = "),
        (pd.Series([1, 2], index=["a", "a"]), "'a' twice", "series.tolist()"),
        (pd.Series([1, 2], index=[1, "1"]), 'keys 1 and "1" both become "1"', "str(key)"),
        (pd.DataFrame([[1, 2]], columns=[1, "1"]), 'keys 1 and "1" both become "1"', "str(key)"),
        ({pd.Timestamp("2024"): 1, "2024-01-01T00:00:00": 2}, "keys Timestamp(2024-01-01T00:00:00) and", "str(key)"),
        (pd.Timedelta("1D"), "object of type Timedelta", "delta.total_seconds()"),
        (pd.Period("2024-01"), "object of type Period", "str(value)"),
        (pd.Interval(0, 1), "object of type Interval", "str(value)"),
        (FRAME.groupby("label"), "object of type DataFrameGroupBy", "groups.size()"),
    ],
)
def test_what_pandas_has_and_json_does_not_comes_with_the_line_to_write(result, found, line):
    with pytest.raises(Unserialisable) as caught:
        encode({"k": result})
    assert found in caught.value.found
    assert line in caught.value.hint


def test_the_place_within_a_data_frame_is_named():
    with pytest.raises(Unserialisable) as caught:
        encode(pd.DataFrame({"a": [1, 2], "took": [1, pd.Timedelta("1D")]}))
    assert caught.value.path == 'result[1]["took"]'


@pytest.mark.parametrize("kind", [Model, Model1])
def test_a_pydantic_model_is_its_json(kind):
    model = kind(label="a", score=0.5, at=AT)
    assert json.loads(encode({"items": [model]})) == {
        "items": [json.loads(getattr(model, "model_dump_json", model.json)())]
    }
    assert json.loads(encode(kind(label="a", score=float("nan"), at=AT)))["score"] is None


def test_models_within_models():
    assert json.loads(encode(Model(label="a", score=1, at=AT, inner=[Model(label="b", score=2, at=AT)]))) == {
        "label": "a",
        "score": 1.0,
        "at": "2024-01-01T00:00:00",
        "kind": "good",
        "inner": [{"label": "b", "score": 2.0, "at": "2024-01-01T00:00:00", "kind": "good", "inner": []}],
    }
    assert text(Labels(["a", "b"])) == '["a","b"]'


@pytest.mark.parametrize("kind", [Holder, Holder1])
def test_a_pydantic_model_of_what_only_we_can_write(kind):
    assert text(kind(array=np.array([0.1], np.float32))) == '{"array":[0.1]}'


def test_attrs_and_structs_are_objects_of_their_fields():
    assert text(Point(0.5, [Point(np.float32(0.1))])) == '{"x":0.5,"inner":[{"x":0.1,"inner":null}]}'
    assert text(Struct("a", Point(1.0))) == '{"firstName":"a","inner":{"x":1.0,"inner":null}}'


def test_a_table_that_gives_its_rows_is_written_by_them():
    class Table:
        """As polars has: without names when it is taken for an array."""

        def __array__(self, dtype=None, copy=None):
            return np.array([[1]])

        def to_dicts(self):
            return [{"a": 1}]

    assert text(Table()) == '[{"a":1}]'


def test_results_need_neither_pandas_nor_pydantic():
    script = (
        "import sys, datetime; from cortex.replica.bodies.results import encode; "
        "encode({1: datetime.datetime(2024, 1, 1)}); "
        "print(sorted({'pandas', 'pydantic', 'attrs'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
