"""
What pydantic found wrong with a file that a person wrote, as problems that they can act on, of whatever kind it is.

A kind of file says what is its own by deriving from `Finding`: which fields stand where, and what is said of keys that
are none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import msgspec
from pydantic import ValidationError

from cortex.errors import Problem, Problems
from cortex.spec.document import Flaw
from cortex.spec.problems import found, lookup, nearest, one_of, quoted
from cortex.spec.rules import suggest_name

Path = tuple[str | int, ...]

COMPARED_KEYS = 100
"""More keys than this in one block are no misspellings, and comparing all of them would take seconds."""
_READABLE_DIGITS = 10
_TYPES = {"model_type": "a mapping", "mapping_type": "a mapping", "dict_type": "a mapping", "tuple_type": "a list"}
"""pydantic's own types of errors that say what had to be there."""


class Finding:
    """One error of pydantic's, and how to say it."""

    EXAMPLES: ClassVar[Mapping[str, str]] = {}
    """One line, or a few, for every field."""
    NAMED: ClassVar[str] = "api"
    """What has a name in it, mostly."""

    def __init__(
        self, kind: str, path: Path, document: object, facts: Mapping[str, Any], written: Callable[[Path], str | None]
    ) -> None:
        self.kind = kind
        self.path = path
        self.document = document
        self.facts = facts
        self.value = lookup(document, path)
        self.written = written(path)

    # ---- what a kind of file says ------------------------------------------------------------------------------------

    def fields(self) -> Sequence[str]:
        """What may stand beside the field."""
        raise NotImplementedError

    def owner(self) -> str:
        """Whose fields these are: `an api`, `compute`."""
        raise NotImplementedError

    def subject(self) -> str:
        """The path in words."""
        raise NotImplementedError

    def known_otherwise(self) -> tuple[str, str] | None:
        """Reference and hint for a key that is no field here, and of which more is known than its spelling."""
        return None

    def meant_elsewhere(self) -> str | None:
        """The hint for a key that nearly is a field of another block."""
        return None

    def says_the_missing(self, unknown: Sequence[str]) -> bool:
        """Whether one of the unknown keys beside a missing field stands for it, however it is spelled."""
        return False

    def example(self) -> str:
        """A hint with an example of the field."""
        return shown_example(self.EXAMPLES.get(self.field, ""))

    # ---- what is said of all of them ---------------------------------------------------------------------------------

    def problem(self, message: str) -> Problem | None:
        """Return the problem; None for an error that only follows from another one. `message` is pydantic's own."""
        match self.kind:
            case "default_factory_not_called":
                return None
            case "missing":
                return None if self._is_misspelled() else self._missing()
            case "extra_forbidden":
                return self._unknown()
            case "wrong-type":
                return self._wrong_type(self.facts["expected"])
            case "out-of-range":
                bound, hint = self.facts["bound"], f"write, for example, {self.field}: {self.facts['nearest']}"
                return self.said("out-of-range", f"expected {bound}, found {self._shown}", hint)
            case "unknown-value":
                return self._unknown_value(self.facts["words"])
            case kind if kind in _TYPES:
                return self._wrong_type(_TYPES[kind])
            case _ if "message_by_default" in self.facts and self.value is None:
                self.path = (*self.path[:-1], self.facts["blame"])
                return self.said(self.kind, self.facts["message_by_default"], self.facts["hint_by_default"])
            case _:
                return self.said(
                    self.kind, self.facts.get("message", message), self.facts.get("hint") or self.example()
                )

    def said(self, reference: str, message: str, hint: str = "") -> Problem:
        return Problem(reference=reference, message=message, hint=hint, path=self.path, subject=self.subject())

    @property
    def field(self) -> str:
        return str(self.path[-1]) if self.path else ""

    @property
    def beside(self) -> Mapping[str, Any]:
        """The block in which the field stands, or should."""
        block = lookup(self.document, self.path[:-1])
        return block if isinstance(block, Mapping) else {}

    @property
    def compares(self) -> bool:
        """Whether keys are compared with fields at all."""
        return len(self.beside) <= COMPARED_KEYS

    @property
    def _shown(self) -> str:
        return found(self.value, self.written)

    def _missing(self) -> Problem:
        return self.said("missing-field", f"{quoted(self.field)} is missing", self.example())

    def _is_misspelled(self) -> bool:
        """Whether an unknown key beside a missing field was meant to be it: one mistake, told once."""
        unknown = [key for key in self.beside if key not in self.fields()]
        if self.says_the_missing(unknown):
            return True
        return any(nearest(key, self.fields()) == self.field for key in unknown[:COMPARED_KEYS])

    def _unknown(self) -> Problem:
        message = f"{quoted(self.field)} is not a field of {self.owner()}"
        known = self.known_otherwise()
        if known is not None:
            return self.said(known[0], message, known[1])
        meant = nearest(self.field, self.fields()) if self.compares else None
        if meant is not None:
            return self.said("unknown-field", message, f'did you mean "{meant}"?')
        elsewhere = self.meant_elsewhere() if self.compares else None
        if elsewhere is not None:
            return self.said("unknown-field", message, elsewhere)
        return self.said("unknown-field", message, f"the fields are {', '.join(self.fields())}")

    def _wrong_type(self, expected: str) -> Problem:
        return self.said("wrong-type", f"expected {expected}, found {self._shown}", self._type_hint(expected))

    def _type_hint(self, expected: str) -> str:
        value = self.value
        if expected == "an integer" and isinstance(value, str | float):
            text = str(value).removesuffix(".0")
            if text.isascii() and text.isdecimal() and len(text) < _READABLE_DIGITS:
                return f"write {self.field}: {text}"
        if expected == "a string" and isinstance(value, bool | int | float):
            spelled = self.written or str(value).lower()
            name = suggest_name(spelled, self.NAMED)
            if self.field == "name" and name != spelled:
                return f'quoted it would be a string, but a name starts with a letter: "{name}"'
            named = isinstance(self.path[-1], str)
            return f'quote it: {self.field}: "{spelled}"' if named else f'quote it: "{spelled}"'
        if expected == "a mapping" and isinstance(value, str) and ":" in value:
            return "put a space after the colon"
        if expected == "a mapping" and isinstance(value, list):
            return 'delete the "- " in front of its fields'
        return self.example()

    def _unknown_value(self, words: Sequence[str]) -> Problem:
        meant = nearest(self.value, words) if isinstance(self.value, str) else None
        hint = f'did you mean "{meant}"?' if meant else self.example()
        return self.said("unknown-value", f"expected {one_of(words)}, found {self._shown}", hint)


def shown_example(example: str) -> str:
    """The hint that an example makes; empty for none."""
    if not example:
        return ""
    return f"for example\n{example}" if "\n" in example else f"for example, {example}"


def findings(
    error: ValidationError,
    kind: type[Finding],
    document: object,
    *,
    path_of: Callable[[tuple[str | int, ...]], Path],
    written: Callable[[Path], str | None],
) -> tuple[Problem, ...]:
    """
    Return each error as a problem, in pydantic's order, with path, subject and hint but without a line.

    Args:
        kind: how the file at hand says it.
        document: the whole plain data.
        path_of: pydantic's place to the path into `document`.
        written: the spelling of the scalar at a path, if a text was parsed.
    """
    problems = []
    for details in error.errors(include_url=False):
        finding = kind(details["type"], path_of(details["loc"]), document, details.get("ctx", {}), written)
        problem = finding.problem(details["msg"])
        if problem is not None:
            problems.append(problem)
    return tuple(problems)


def problem_of_flaw(flaw: Flaw, subject: str) -> Problem:
    """What is wrong with the text itself, as a problem. `subject` is `flaw.path` in words."""
    return Problem(reference=flaw.reference, message=flaw.message, hint=flaw.hint, path=flaw.path, subject=subject)


def in_order(found_: Iterable[tuple[int, int, Problem]], file: str) -> Problems:
    """All problems of a file as one error, by (line, column), each with its place."""
    by_place = sorted(found_, key=lambda item: item[:2])
    return Problems(with_place(problem, f"{file}:{line}:{column}") for line, column, problem in by_place)


def with_place(problem: Problem, where: str) -> Problem:
    return msgspec.structs.replace(problem, where=where)
