"""Tests of `cortex.simulation.tracefiles`."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex.simulation.tracefiles import BadTrace, LoadTrace, parse

FILE = "trace.csv"


@pytest.mark.parametrize(
    "text",
    [
        "0,5\n60,50",
        "seconds,requests_per_second\n0,5\n60,50\n",
        "requests_per_second , seconds\n5, 0\n\n# later\n50, 60",
        '\ufeff{"seconds": 0, "requests_per_second": 5}\r\n{"requests_per_second": 50.0, "seconds": 60}',
        'Seconds,Requests_per_second\n0,5\n{"seconds": 60, "requests_per_second": 50}',
    ],
)
def test_a_trace_is_csv_or_objects_a_line(text):
    (trace,) = parse(text, file=FILE)
    assert (trace.api, trace.seconds, trace.rates, trace.lasts_s) == ("", (0.0, 60.0), (5.0, 50.0), 120.0)


def test_apis_are_told_apart_in_the_order_in_which_they_are_named():
    traces = parse("0,5,b\n0,1,a\n30,7,b", file=FILE)
    assert [(trace.api, trace.line, trace.rates) for trace in traces] == [("b", 1, (5.0, 7.0)), ("a", 2, (1.0,))]


def test_a_rate_holds_until_the_next():
    trace = LoadTrace(api="", line=1, seconds=(10.0, 20.0), rates=(5.0, 0.5))
    assert [trace.rate(at_s) for at_s in (0, 9.9, 10, 19.9, 20, 1000)] == [0.0, 0.0, 5.0, 5.0, 0.5, 0.5]
    assert LoadTrace(api="", line=1, seconds=(10.0,), rates=(1.0,)).lasts_s == 70.0


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("", 0, "found none"),
        ("# nothing\n\n", 0, "found none"),
        ("0,5\nhello", 2, "expected seconds,requests_per_second, found 'hello'"),
        ("hello world", 1, "expected seconds,requests_per_second"),
        ("0,5\n\n10,x", 3, "expected requests_per_second as a number from 0 to 1,000,000, found 'x'"),
        ("0,5\n-1,5", 2, "expected seconds as a number from 0"),
        ("0,nan", 1, "found 'nan'"),
        ("0,inf", 1, "found 'inf'"),
        ("1e9,1", 1, "expected seconds as a number from 0 to 2,678,400"),
        ("0,5\n0,6", 2, "expected more seconds than the 0 before, found 0"),
        ("5,1\n3,1", 2, "found 3"),
        ("0,5\n1,5,iris", 2, "found '1,5,iris'"),
        ('0,5,iris\n{"seconds": 1, "requests_per_second": 2}', 2, "an api on each line or on none"),
        ("seconds,rps\n0,5", 1, "expected the columns seconds,requests_per_second,api"),
        ('{"seconds": 0', 1, "expected a JSON object"),
        ("[1, 2]", 1, "expected an object"),
        ('{"seconds": 0, "rps": 5}', 1, "expected an object"),
        ('{"seconds": true, "requests_per_second": 5}', 1, "found 'True'"),
        ('{"seconds": 0, "requests_per_second": [1]}', 1, "expected requests_per_second"),
        ('{"seconds": 0, "requests_per_second": 5, "api": 3}', 1, "expected the name of an api"),
        ('0,"5', 1, "comma-separated"),
    ],
)
def test_what_is_no_trace_is_refused_with_its_line_and_what_was_expected(text, line, said):
    with pytest.raises(BadTrace) as caught:
        parse(text, file=FILE)
    assert caught.value.line == line
    assert said in str(caught.value)
    assert caught.value.problem().where == (f"{FILE}:{line}" if line else FILE)
    assert "seconds,requests_per_second" in caught.value.hint


@given(st.text(max_size=60))
def test_any_text_is_a_trace_or_refused(text):
    try:
        traces = parse(text, file=FILE)
    except BadTrace:
        return
    assert all(trace.rate(1e9) >= 0 for trace in traces)
