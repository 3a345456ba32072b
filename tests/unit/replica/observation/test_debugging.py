from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from cortex.replica.backends.onnx import Prediction
from cortex.replica.observation import secrecy
from cortex.replica.observation.debugging import Trace, shorten, wants_debug


@pytest.mark.parametrize("query", [b"debug", b"debug=true", b"debug=1", b"debug=yes", b"a=b&debug=True", b"debug="])
def test_debug_is_asked_for(query: bytes) -> None:
    assert wants_debug(query)


@pytest.mark.parametrize("query", [b"", b"debug=false", b"debug=0", b"debugging=true", b"a=debug"])
def test_debug_is_not_asked_for(query: bytes) -> None:
    assert not wants_debug(query)


class Unshowable:
    def __repr__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    "value",
    [
        [0.5] * 10**6,
        {str(n): n for n in range(10**5)},
        "x" * 10**6,
        b"x" * 10**6,
        np.zeros((1000, 1000)),
        [[[[[[1]]]]]],
        Unshowable(),
        [Unshowable()],
        "line\nbreak",
        Prediction.of([np.zeros(10**6)], {"a": 0}),
        [10**5000],
    ],
)
def test_any_value_becomes_one_short_line(value: Any) -> None:
    text = shorten(value)
    assert len(text) < 1000
    assert "\n" not in text


def test_values_stay_readable() -> None:
    assert shorten({"a": [1, 2.5, None], "b": "text"}) == "{'a': [1, 2.5, None], 'b': 'text'}"
    assert shorten(np.array([[1.5, 2]], dtype=np.float32)) == "float32[1, 2] [[1.5, 2. ]]"
    assert shorten(b"abc") == "b'abc'"
    assert shorten({"b": 1, "a": {}}) == "{'b': 1, 'a': {}}"


def test_of_a_large_array_type_shape_range_and_ends_are_shown() -> None:
    image = np.linspace(0, 1, 3 * 224 * 224, dtype=np.float32).reshape(1, 3, 224, 224)
    shown = shorten(image)
    assert shown.startswith("float32[1, 3, 224, 224] from 0 to 1, mean 0.5 [0, 6.6433e-06,")
    assert len(shown) < 200
    assert shorten(np.arange(100, dtype=np.uint8)) == (
        "uint8[100] from 0 to 99, mean 49.5 [ 0, 1, 2, 3, ..., 96, 97, 98, 99]"
    )


def test_values_that_are_not_finite_are_counted() -> None:
    assert " from 1 to 2, mean 1.5, 18 not finite [" in shorten(np.array([1.0, 2.0] + [np.nan] * 18))
    assert " without a finite value [" in shorten(np.full(20, np.inf))
    assert shorten(np.array(["text"] * 20)).startswith("<U4[20] ['text',")


def test_each_step_is_logged_with_its_time_and_request() -> None:
    class Log:
        def __init__(self) -> None:
            self.records: list[tuple[str, ...]] = []

        def record(self, *fields: str) -> None:
            self.records.append(fields)

    log = Log()
    trace = Trace(log, "r-1")  # type: ignore[arg-type]
    trace.note("sample", [1])
    trace.note("inference", 2)
    assert [record[3] for record in log.records] == ["r-1", "r-1"]
    assert log.records[0][2].startswith("debug: sample: [1] (")
    assert log.records[0][2].endswith(" µs)")


@pytest.fixture
def secret() -> Iterator[str]:
    secret = ("it's a secret " * 40).strip()
    secrecy.keep([secret])
    yield secret
    secrecy.keep([])


def test_a_secret_is_masked_before_what_it_stands_in_is_shortened(secret: str) -> None:
    assert shorten({"key": secret}) == "{'key': '****'}"
    assert shorten([np.str_(secret)]) == "['****']"
    assert shorten(secret.encode()) == "b'****'… (559 bytes)"
