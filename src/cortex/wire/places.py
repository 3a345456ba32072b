"""
What files are called by whoever deployed them, in texts of exceptions and of other programs, which have the paths of
the artifact store. Pure.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

import msgspec

from cortex.errors import Problem

COPY_NAME = "project"
"""What a process's own copy of its project is called in its scratch folder."""
_PLACE = rf"/(?:artifacts/trees/[0-9a-f]{{64}}|scratch/[^/\s]+/{COPY_NAME})"
"""Below a home: a folder of the artifact store, which has a project or a model; or such a copy."""
_ITS_END = r"(?P<slash>/+)?(?(slash)|(?![-\w/]|\.\w))"


class Places:
    """
    The folders whose paths are nobody's business.

    Args:
        home: of Cortex.
        folders: further ones, that are elsewhere.
    """

    def __init__(self, home: str, folders: Sequence[str] = ()) -> None:
        homes = {os.path.abspath(home), os.path.realpath(home)} if home else set()
        known = {path for folder in folders if folder and (path := os.path.abspath(folder)) != "/"}
        patterns = [re.escape(path) + _PLACE for path in homes] + [re.escape(path) for path in known]
        self._pattern = re.compile(f"(?:{'|'.join(sorted(patterns, key=len, reverse=True))}){_ITS_END}")
        self._knows_any = bool(patterns)

    def called(self, text: str) -> str:
        """A text in which files of a project or a model are called by their path in there, and these folders `.`."""
        if not self._knows_any or "/" not in text:
            return text
        return self._pattern.sub(lambda match: "" if match["slash"] else ".", text)

    def has(self, path: str) -> bool:
        """Whether a file lies in one of them."""
        return self.called(path) != path

    def told(self, problem: Problem) -> Problem:
        """A problem as its readers call things."""
        return msgspec.structs.replace(
            problem,
            message=self.called(problem.message),
            where=self.called(problem.where),
            hint=self.called(problem.hint),
            traceback=self.called(problem.traceback),
        )
