"""Errors as facts."""

from __future__ import annotations

from cortex.errors import CortexError, Problem, Problems

BAD = Problem(reference="too-long", message="one two three")


def test_an_error_stands_for_all_the_problems_that_it_carries() -> None:
    assert Problems([BAD, BAD]).all_problems() == (BAD, BAD)
    assert [problem.message for problem in CortexError("no").all_problems()] == ["no"]
