"""When memory is short, and when it is not any more."""

from __future__ import annotations

import pytest

from cortex.agent.shortage import MemoryShortage, is_short


@pytest.mark.parametrize(
    ("before", "free_bytes", "short"),
    [(False, 50, False), (False, 49, True), (True, 50, True), (True, 99, True), (True, 100, False)],
)
def test_it_is_short_until_there_is_clearly_more_again(before: bool, free_bytes: int, short: bool) -> None:
    assert is_short(before, free_bytes=free_bytes, there_bytes=1000) is short


def test_only_a_change_is_news_and_a_kernel_that_does_not_say_changes_nothing() -> None:
    answers: list[int | OSError] = [500, 10, 20, OSError(), 500]

    def free_bytes() -> int:
        found = answers.pop(0)
        if isinstance(found, OSError):
            raise found
        return found

    shortage = MemoryShortage(1000, free_bytes)
    seen = [(shortage.look(), shortage.holds) for _ in range(len(answers))]
    assert seen == [(False, False), (True, True), (False, True), (False, True), (True, False)]
