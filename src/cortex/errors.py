"""
What can go wrong, as facts. Imports nothing of the package.

Every error of ours derives from `CortexError` and carries its facts as fields; where a person or another process
has to see it, it becomes a `Problem`. HTTP statuses and exit codes are chosen at the edges, never here:
`controlplane/api/refusals.py`, `cli/main.py`, `replica/transport/server.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import msgspec


class Problem(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One thing that is wrong, in the words a user can act on. Travels between our processes as JSON."""

    reference: str
    """Stable kebab-case name that the docs index, e.g. `unknown-field`."""
    message: str
    """What was found and what was expected, one or a few lines."""
    subject: str = ""
    """Path with names instead of indexes, e.g. `api "iris": compute: max_replica`."""
    where: str = ""
    """`file:line:column` when known, else empty."""
    path: tuple[str | int, ...] = ()
    """Path into the document (list indexes and keys), so that the CLI can find line and column."""
    hint: str = ""
    """The next step, best of all a command or a line to paste."""
    traceback: str = ""
    """The user's own traceback, when users' code failed."""


class CortexError(Exception):
    """Base of all our errors. Subclasses set `reference` and carry facts as attributes."""

    reference: ClassVar[str] = "error"
    hint: str = ""
    problems: tuple[Problem, ...] = ()
    """What was found together, if it stands for several."""

    def problem(self) -> Problem:
        """This error as it is shown to a user."""
        return Problem(reference=self.reference, message=str(self), hint=self.hint)

    def all_problems(self) -> tuple[Problem, ...]:
        """All that it stands for; at least one."""
        return self.problems or (self.problem(),)


class Problems(CortexError):
    """Several problems found together, e.g. all mistakes of one `cortex.yaml`."""

    reference = "problems"

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(p.message for p in self.problems))


class RetryLater(CortexError):
    """The same step may succeed when tried again after `after_s` seconds."""

    reference = "retry-later"

    def __init__(self, reason: str, *, after_s: float) -> None:
        self.after_s = after_s
        super().__init__(reason)


class GiveUp(CortexError):
    """The step cannot succeed until the user changes something; `problem_` says what."""

    reference = "gave-up"

    def __init__(self, problem: Problem) -> None:
        self.problem_ = problem
        super().__init__(problem.message)

    def problem(self) -> Problem:
        return self.problem_


class RequestError(Exception):
    """
    Raised by a handler to answer a request with a client error of its choice.

    Args:
        status: 400 to 499.
        message: shown to the caller.
        facts: further keys of the JSON error body, JSON-serialisable.

    Raises:
        ValueError: `status` is not a 4xx.
    """

    def __init__(self, status: int, message: str, /, **facts: Any) -> None:
        if not (isinstance(status, int) and 400 <= status <= 499):
            raise ValueError(f"RequestError needs a status from 400 to 499, not {status!r}")
        self.status = int(status)
        self.message = str(message)
        self.facts = facts
        super().__init__(self.message)


@dataclass(slots=True)
class Response:
    """
    A complete HTTP response, returned by `post_inference` when JSON with status 200 is not what is wanted.

    Args:
        body: bytes and str are sent as they are; anything else is encoded as JSON.
        status: 200 to 599.
        media_type: content type; None means `application/json`, or for str `text/plain; charset=utf-8`,
            for bytes `application/octet-stream`.
        headers: further response headers.
    """

    body: Any
    status: int = 200
    media_type: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
