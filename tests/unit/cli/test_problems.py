"""A problem as a person reads it."""

from __future__ import annotations

from cortex.cli.problems import rendered
from cortex.cli.terminal import Paint
from cortex.errors import Problem

LONG = Problem(reference="too-long", where="cortex.yaml:3:1", message="one two three", hint="four five six")


def test_notes_and_warnings_use_the_same_form() -> None:
    problem = Problem(reference="sample-failed", message="no")
    assert rendered(problem, Paint(False), level="warning") == "warning: sample-failed\n  no"


def test_sentences_are_broken_between_words_and_go_on_below_themselves() -> None:
    assert rendered(LONG, Paint(False), width=20).splitlines() == [
        "error: too-long",
        "  cortex.yaml:3:1",
        "  one two three",
        "  hint: four",
        "        five six",
    ]
