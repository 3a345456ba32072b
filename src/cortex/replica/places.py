"""
What the files of this process are called by whoever deployed them: told once, right after the fork, and asked for by
whatever passes the text of an exception on.
"""

from __future__ import annotations

from cortex.errors import Problem
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


def as_called_in_frames(text: str) -> str:
    """As `as_called`, of nothing but the files of a traceback's frames."""
    return _places.called_in_frames(text)


def as_told(problem: Problem) -> Problem:
    """A problem as its readers call things."""
    return _places.told(problem)
