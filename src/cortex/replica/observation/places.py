"""
What the files of this process are called by whoever deployed them: told once, right after the fork, and asked for by
whatever passes the text of an exception on.
"""

from __future__ import annotations

from collections.abc import Sequence

from cortex.errors import Problem
from cortex.replica.observation.secrecy import masked_problem
from cortex.wire import stacks
from cortex.wire.launch import ReplicaSpec
from cortex.wire.places import Places

_places = Places("")


def of(spec: ReplicaSpec) -> Places:
    """Those of a replica or an inspection."""
    return Places(spec.home, () if spec.project_dir is None else (spec.project_dir,))


def keep(spec: ReplicaSpec) -> None:
    """From now on this process's files are called as in there."""
    global _places
    _places = of(spec)


def as_called(text: str) -> str:
    """A text without paths of the artifact store, and of this process's view of its project."""
    return _places.called(text)


def as_told(problem: Problem) -> Problem:
    """A problem as its readers call things, without the values of secrets."""
    return _places.told(masked_problem(problem))


def readable(lines: Sequence[str], *, in_pieces: bool = False) -> list[str]:
    """See `wire.stacks.readable`."""
    return stacks.readable(lines, _places, in_pieces=in_pieces)


def readable_text(text: str) -> str:
    """See `wire.stacks.readable_text`."""
    return stacks.readable_text(text, _places)
