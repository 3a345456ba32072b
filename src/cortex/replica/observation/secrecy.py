"""
Keeps the values of secrets out of what a replica writes down: logs, tracebacks, problems, answers to failed requests.

Users' code gets secrets to use them, and what it does with them is its own business; but exceptions like to quote what
they failed on (a URL with a token), and that must not end up in a file. The values are the process's own, told once
right after the fork, before any of users' code runs.
"""

from __future__ import annotations

from collections.abc import Iterable

from cortex.errors import Problem
from cortex.wire.secrecy import problem_without, to_mask, without

_parts: tuple[str, ...] = ()


def keep(values: Iterable[str]) -> None:
    """These values are masked from now on."""
    global _parts
    _parts = to_mask(values)


def masked(text: str) -> str:
    """Text without the values of secrets. Costs nothing where there are none."""
    return without(_parts, text) if _parts else text


def masked_problem(problem: Problem) -> Problem:
    """A problem without the values of secrets."""
    return problem_without(_parts, problem)
