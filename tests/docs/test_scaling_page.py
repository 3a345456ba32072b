"""The traces of `docs/scaling.md` are those that the rule makes today."""

from __future__ import annotations

import pytest
import scaling


def case(name: str) -> scaling.Case:
    return next(case for case in scaling.CASES if case.name == name)


@pytest.mark.parametrize("name", ["Step", "Saw", "64 at once", "One that computes beside one that waits"])
def test_a_trace_is_up_to_date(name: str) -> None:
    one, page = case(name), scaling.PAGE.read_text()
    found = scaling.run(one)
    assert scaling.rows(one, found) in page, "run `python docs/scaling.py`"
    assert scaling.plot(one, found) in page, "run `python docs/scaling.py`"


def test_every_trace_is_on_the_page_once() -> None:
    page = scaling.PAGE.read_text()
    assert [page.count(f"### {case.name}\n") for case in scaling.CASES] == [1] * len(scaling.CASES)
    assert (page.count(scaling.BEGIN), page.count(scaling.END)) == (1, 1)
