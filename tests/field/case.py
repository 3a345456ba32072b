"""
What a case file may say, and whether what was seen is what it says. README.md tells it to those who write one.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import msgspec
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

TOLERANCE = 1e-5
"""Relative, between a number in `answer` or `has` and one that was seen: cases are about values, not about rounding."""


class Step(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """One thing that is done, and what has to be seen. Exactly one of the first six is set."""

    cortex: str | None = None
    """A command as it is typed after `cortex`."""
    shell: str | None = None
    post: str | None = None
    """Path of a prediction, with its query: `masked/mask?debug=true`."""
    get: str | None = None
    kill: str | None = None
    """Every replica of `deployment/api`."""
    edit: dict[str, str | None] | None = None
    """New content of files of the project; null removes one."""

    json: Any = msgspec.UNSET
    text: str | None = None
    file: str | None = None
    """The body: a value to be sent as JSON, text as it is, or the bytes of a file of the project."""
    headers: dict[str, str] = {}
    times: int = 1
    """How often the same request is sent, one after the other."""
    together: bool = False
    """All of them at once."""

    input: str | None = None
    """What a command reads from a pipe."""
    env: dict[str, str] = {}
    """Further variables of a command."""
    width: int | None = None
    """The command is run on a terminal of so many columns, which no line may exceed, instead of in a pipe."""
    signal: str = "KILL"

    status: int | None = None
    exit: int | None = None
    """Unless it is said: 200, and 0."""
    answer: Any = msgspec.UNSET
    """The whole answer."""
    has: Any = msgspec.UNSET
    """Part of it: of objects these keys, of lists as many items."""
    says: list[str] = []
    never: list[str] = []
    """What is somewhere in the answer, or in what a command prints; and what is not."""
    within: float | None = None
    """It may take this many seconds until all that is seen: it is done again until then."""

    @property
    def kind(self) -> str:
        return next(kind for kind in KINDS if getattr(self, kind) is not None)


KINDS = ("cortex", "shell", "post", "get", "kill", "edit")


class Case(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """One file."""

    finding: str
    was: str
    right: str
    home: Literal["shared", "own"] = "shared"
    """`own`: nothing else is deployed there. For cases that stop and start Cortex, or fill it."""
    env: dict[str, str] = {}
    """Variables of each command. With a home of its own also of what it starts."""
    files: dict[str, str] = {}
    onnx: dict[str, str] = {}
    """Models, in the text form of `onnx.parser`."""
    steps: list[Step]


class BadCase(Exception):
    """A file that is no case; says where."""


def read_case(path: Path) -> Case:
    """Raises BadCase."""
    try:
        case = msgspec.convert(YAML(typ="safe", pure=True).load(path.read_text()), Case)
    except (msgspec.MsgspecError, YAMLError) as error:
        raise BadCase(f"{path.name}: {error}") from None
    for number, step in enumerate(case.steps, 1):
        kinds = [kind for kind in KINDS if getattr(step, kind) is not None]
        if len(kinds) != 1:
            raise BadCase(f"{path.name}: step {number} has {' and '.join(kinds) or 'none'} of {', '.join(KINDS)}")
        bodies = [step.json is not msgspec.UNSET, step.text is not None, step.file is not None]
        if sum(bodies) > 1:
            raise BadCase(f"{path.name}: step {number} has several bodies")
    return case


class Seen(msgspec.Struct, kw_only=True):
    """What a step led to."""

    code: int | None = None
    """Status or exit code; None for steps that have neither."""
    text: str = ""
    value: Any = msgspec.UNSET
    """The answer, or what a command wrote to stdout, as JSON; unset if it is none."""


def differences(step: Step, seen: Seen) -> list[str]:
    """What is not as the step says, in words. Empty: all is."""
    found = []
    name, wanted = ("exit code", step.exit or 0) if step.kind in ("cortex", "shell") else ("status", step.status or 200)
    if seen.code is not None and seen.code != wanted:
        found.append(f"{name} {seen.code}, not {wanted}")
    found += [f"it does not say {text!r}" for text in step.says if text not in seen.text]
    found += [f"it says {text!r}" for text in step.never if text in seen.text]
    if step.width is not None:
        wide = [line for line in seen.text.splitlines() if len(line) > step.width]
        found += [f"it is wider than {step.width} columns: {line}" for line in wide]
    for wanted, whole in (step.answer, True), (step.has, False):
        if wanted is msgspec.UNSET:
            continue
        if seen.value is msgspec.UNSET:
            found.append("it is no JSON")
        elif not agrees(seen.value, wanted, whole=whole):
            found.append(f"it {'is not' if whole else 'does not have'} {msgspec.json.encode(wanted).decode()}")
    return found


def agrees(seen: Any, wanted: Any, *, whole: bool) -> bool:
    """Whether a value is the wanted one; unless `whole`, objects may have further keys."""
    if isinstance(wanted, dict) and isinstance(seen, dict):
        if whole and seen.keys() != wanted.keys():
            return False
        return all(key in seen and agrees(seen[key], value, whole=whole) for key, value in wanted.items())
    if isinstance(wanted, list) and isinstance(seen, list):
        return len(seen) == len(wanted) and all(
            agrees(one, other, whole=whole) for one, other in zip(seen, wanted, strict=True)
        )
    if isinstance(wanted, float) and _is_number(seen):
        return math.isclose(seen, wanted, rel_tol=TOLERANCE, abs_tol=TOLERANCE * 1e-3)
    return type(seen) is type(wanted) and bool(seen == wanted)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
