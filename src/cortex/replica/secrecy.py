"""
Keeps the values of secrets out of what a replica writes down: logs, tracebacks, problems, answers to failed requests.

Users' code gets secrets to use them, and what it does with them is its own business; but exceptions like to quote what
they failed on (a URL with a token), and that must not end up in a file. The values are the process's own, told once
right after the fork, before any of users' code runs.
"""

from __future__ import annotations

from collections.abc import Iterable

MASK = "****"
SHORTEST = 6
"""Shorter values are not looked for: they would be found in every other word."""

_values: tuple[str, ...] = ()


def keep(values: Iterable[str]) -> None:
    """These values are masked from now on; of several lines, each line too."""
    global _values
    parts = {part.strip() for value in values for part in (value, *value.splitlines())}
    _values = tuple(sorted((part for part in parts if len(part) >= SHORTEST), key=len, reverse=True))


def masked(text: str) -> str:
    """Text without the values of secrets. Costs nothing where there are none."""
    for value in _values:
        if value in text:
            text = text.replace(value, MASK)
    return text
