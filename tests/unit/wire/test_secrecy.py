"""Tests of `cortex.wire.secrecy`."""

import json
import os
from urllib.parse import quote, quote_plus

import pytest

from cortex.errors import Problem
from cortex.wire.secrecy import MASK, packed, problem_without, to_mask, unpacked, without


def test_what_is_packed_is_unpacked_once():
    descriptor = packed({"TOKEN": "hunter2\n€", "EMPTY": ""})
    assert unpacked(os.dup(descriptor)) == {"TOKEN": "hunter2\n€", "EMPTY": ""}
    assert unpacked(os.dup(descriptor)) == {"TOKEN": "hunter2\n€", "EMPTY": ""}  # a copy shares no position
    unpacked(descriptor)
    with pytest.raises(OSError):
        os.fstat(descriptor)


def test_a_value_is_masked_wherever_it_stands():
    parts = to_mask(["hunter2"])
    assert without(parts, "https://x/?token=hunter2&again=hunter2") == f"https://x/?token={MASK}&again={MASK}"


@pytest.mark.parametrize(
    "quoted",
    [
        repr,
        json.dumps,
        lambda text: json.dumps(text, ensure_ascii=False),
        quote,
        quote_plus,
        lambda t: quote(t, safe=""),
    ],
    ids=["Python", "JSON in ASCII", "JSON", "a URL", "a form", "a URL's part"],
)
def test_a_value_is_masked_as_others_quote_it(quoted):
    value = "pa'ss \\ wörd/\"+1"
    assert without(to_mask([value]), f"<{quoted(value)}>").strip("<>'\"") == MASK


def test_each_line_of_a_value_is_masked():
    parts = to_mask(["-----BEGIN KEY-----\nabcdef123456\n"])
    assert without(parts, "found abcdef123456") == f"found {MASK}"


def test_of_values_that_contain_one_another_the_longer_goes_first():
    assert without(to_mask(["secret", "secret-and-more"]), "a secret-and-more b") == f"a {MASK} b"


def test_a_very_short_value_is_not_looked_for():
    assert to_mask(["yes", "on"]) == ()


def test_a_problem_is_masked_in_all_its_words():
    problem = Problem(reference="x", message="hunter22", hint="a hunter22", traceback="b hunter22", where="f:1")
    found = problem_without(to_mask(["hunter22"]), problem)
    assert found == Problem(reference="x", message=MASK, hint=f"a {MASK}", traceback=f"b {MASK}", where="f:1")
