"""What is offered for a word that is not understood."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex.cli.main import NAMES
from cortex.cli.suggestion import HARMFUL, MEANT, OLD_COMMANDS, alike, are_opposite, command_hint, option_hint

OPTIONS = (
    "--follow",
    "--no-follow",
    "--no-wait",
    "--purge",
    "--prune",
    "--force",
    "--yes",
    "--all-deployments",
    "--help",
)


def misspelt(words: tuple[str, ...]) -> st.SearchStrategy[tuple[str, str]]:
    """A word, and it with one letter left out."""
    return st.sampled_from(words).flatmap(
        lambda word: st.integers(3, len(word) - 1).map(lambda at: (word, word[:at] + word[at + 1 :]))
    )


@given(misspelt(OPTIONS))
def test_nothing_harmful_or_opposite_is_offered_for_a_misspelt_option(pair: tuple[str, str]) -> None:
    _, typed = pair
    if typed in OPTIONS:
        return
    close = alike(typed, OPTIONS)
    assert not HARMFUL.intersection(close)
    assert not any(are_opposite(typed, choice) for choice in close)


@pytest.mark.parametrize(("word", "hint"), [("rm", "delete"), ("STOP", "down"), ("ls", "get"), ("apply", "deploy")])
def test_words_of_other_tools_are_told_what_they_are_called_here(word: str, hint: str) -> None:
    assert command_hint(word, NAMES) == f"here it is `cortex {hint}`"


def test_every_word_leads_to_a_command_that_there_is() -> None:
    assert {meant.split()[1] for meant in MEANT.values()} <= set(NAMES)
    assert not {*MEANT, *OLD_COMMANDS} & set(NAMES)


def test_the_beginning_of_an_option_is_completed_even_if_it_does_harm() -> None:
    assert option_hint("down", "--pur", OPTIONS) == "did you mean --purge?"


@pytest.mark.parametrize(
    ("command", "option", "hint"),
    [
        ("logs", "--nofollow", "did you mean --no-follow?"),
        ("delete", "-d", "a deployment is named without a flag"),
        ("configure", "--print", "without any flag"),
    ],
)
def test_what_is_typed_for_lack_of_a_dash_or_out_of_habit_is_told(command: str, option: str, hint: str) -> None:
    assert option_hint(command, option, OPTIONS).startswith(hint)
