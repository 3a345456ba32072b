"""How problems are worded and printed. Light to import: the CLI uses it for every problem, wherever it comes from."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence

from cortex.errors import Problem

REFERENCES: Mapping[str, str] = {
    "alias-loop": "A YAML alias stands inside the value that it repeats.",
    "bad-character": "A character that YAML does not allow, e.g. NUL or another control character.",
    "bad-duration": "A duration that cannot be read, or is out of range.",
    "bad-env-name": "The name of an environment variable has other than letters, digits and underscores.",
    "bad-handler": "`request_handler` is not the path of a Python file inside the project folder.",
    "bad-merge": "`<<:` merges something other than mappings.",
    "bad-model": "`model` is neither a path nor a location of a kind that Cortex reads.",
    "bad-name": "A name breaks the rule for names.",
    "bad-quantity": "A quantity that cannot be read, or is out of range.",
    "bad-sample": "`sample` holds a value that JSON cannot express.",
    "bad-text": "A text is empty, too long or has control characters.",
    "duplicate-key": "The same key stands twice in one mapping, or both beside `name` and in its block.",
    "duplicate-name": "Two apis of one deployment have the same name.",
    "empty-file": "The file has no resources.",
    "file-too-large": "The file is larger than a cortex.yaml can be.",
    "flat-form": "A note: fields of `compute` or `tracker` stand beside `name`, and are taken as if they stood there.",
    "key-not-text": "A key is not a string.",
    "misplaced-field": "A field that exists, but in another block.",
    "missing-field": "A required field is not there.",
    "not-a-list": "The file is not a list of resources.",
    "not-in-effect": "A variable is set that has no effect in this release.",
    "not-utf8": "The file is not UTF-8 text.",
    "out-of-range": "A number is too small or too large.",
    "replica-bounds": "min_replicas ≤ init_replicas ≤ max_replicas does not hold.",
    "reserved-env-name": "An environment variable that Cortex sets itself.",
    "reserved-name": "An api or deployment has a name whose path belongs to something else.",
    "several-deployments": "More than one `kind: deployment` in a file.",
    "several-documents": "More than one YAML document in a file.",
    "signature-key-with-onnx": "`tf_signature_key` with an ONNX model.",
    "tab": "A tab where YAML wants spaces.",
    "too-deep": "Values are nested too deeply.",
    "too-many-values": "The file has, or its aliases expand to, too many values.",
    "unknown-alias": "A YAML alias without its anchor.",
    "unknown-field": "A key that is not a field.",
    "unknown-kind": "A resource of a kind that does not exist.",
    "unknown-value": "A field takes one of a few words, and this is another.",
    "unsupported-tag": "A YAML tag that cortex.yaml has no use for.",
    "wrong-type": "A value of another type than the field takes.",
    "yaml-syntax": "The text is not YAML.",
}
"""Every reference that this package gives, with its meaning in one sentence: the index of the docs."""

_SHOWN_CHARACTERS = 60
_COMPARED_CHARACTERS = 64
"""Comparing is quadratic in the length, and no field is as long as this."""
_NEAR = 0.78
"""Similarity from which a word is offered: `max_replica` and `concurency` are, `command` for `compute` is not."""


def render(problem: Problem, *, level: str = "error") -> str:
    """
    Return a problem as lines of plain text, without colour and without a final newline.

    Args:
        level: the first word, e.g. `error` or `note`.
    """
    lines = [f"{level}: {problem.reference}"]
    place = "   ".join(part for part in (problem.where, problem.subject) if part)
    if place:
        lines.append(f"  {place}")
    lines += [f"    {line}" for line in problem.traceback.splitlines()]
    lines += [f"  {line}" for line in problem.message.splitlines()]
    for number, line in enumerate(problem.hint.splitlines()):
        lines.append(f"        {line}" if number else f"  hint: {line}")
    return "\n".join(line.rstrip() for line in lines)


def subject(path: Sequence[str | int], document: object) -> str:
    """
    Return a path in words, with names instead of indexes: `api "iris": compute: cpu`.

    Args:
        path: starts with a resource's index, as in the file, or with `apis` and an index, as in a `ProjectSpec`.
        document: the data that the path leads into; only names and kinds are read, whatever else is wrong with it.
    """
    if len(path) >= 2 and path[0] == "apis":
        head, rest = _resource_words(_child(_child(document, "apis"), path[1]), path[1], "api"), path[2:]
    elif path and isinstance(path[0], int):
        head, rest = _resource_words(_child(document, path[0]), path[0], ""), path[1:]
    else:
        head, rest = "", path
    return ": ".join([head] * bool(head) + [f"index {part}" if isinstance(part, int) else part for part in rest])


def lookup(document: object, path: Iterable[str | int]) -> object:
    """Return what a path leads to in plain data, None if it leads nowhere."""
    for part in path:
        document = _child(document, part)
    return document


def quoted(text: str) -> str:
    """Return text in double quotes, shortened, with everything unprintable escaped: safe to print on a terminal."""
    short = text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"
    return '"' + "".join(_visible(character) for character in short) + '"'


def found(value: object, written: str | None = None) -> str:
    """
    Return what was found in words: `the number 2.0`, `a list`.

    Args:
        written: the spelling in the file, if known: `1e3` rather than 1000.0.
    """
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return written or str(value).lower()
    if isinstance(value, int | float):
        return f"the number {written or _number(value)}"
    if isinstance(value, str):
        return f"the string {quoted(value)}"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    return type(value).__name__


def one_of(words: Sequence[str]) -> str:
    """Return `"a"`, `"a" or "b"`, `"a", "b" or "c"`."""
    shown = [f'"{word}"' for word in words]
    return " or ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)


def nearest(word: str, choices: Iterable[str], *, by_parts: bool = True) -> str | None:
    """
    Return the choice that was probably meant, None if no choice is near.

    Case, dashes and underscores do not count (`minReplicas`), then spelling (`max_replica`), then the choice that
    alone starts or ends alike for longest (`memory` for `mem`, `handler` for `request_handler`): names of things are
    not found `by_parts`, since `iris-2` is another thing than `iris`.
    """
    if len(word) > _COMPARED_CHARACTERS:
        return None
    plain = {_letters(choice): choice for choice in choices}
    wanted = _letters(word)
    if wanted in plain:
        return plain[wanted]
    close = difflib.get_close_matches(wanted, plain, n=1, cutoff=_NEAR)
    if close:
        return plain[close[0]]
    if not by_parts:
        return None
    alike = {letters: min(len(letters), len(wanted)) for letters in plain if _starts_or_ends_alike(wanted, letters)}
    longest = [letters for letters, length in alike.items() if length == max(alike.values())]
    return plain[longest[0]] if len(longest) == 1 else None


def _letters(word: str) -> str:
    return re.sub(r"[^a-z0-9]", "", word.lower())


def _starts_or_ends_alike(one: str, other: str) -> bool:
    short, long = sorted((one, other), key=len)
    return len(short) >= 3 and (long.startswith(short) or long.endswith(short))


def _visible(character: str) -> str:
    if character == '"':
        return '\\"'
    if character.isprintable():
        return character
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


def _number(value: int | float) -> str:
    if isinstance(value, int) and value.bit_length() > 4 * _SHOWN_CHARACTERS:
        return "with very many digits"
    return str(value)


def _child(value: object, part: str | int) -> object:
    if isinstance(value, Mapping) and isinstance(part, str):
        return value.get(part)
    if isinstance(value, list | tuple) and isinstance(part, int) and 0 <= part < len(value):
        return value[part]
    return None


def _resource_words(resource: object, index: str | int, kind: str) -> str:
    stated = _child(resource, "kind")
    kind = kind or (stated if stated in ("api", "deployment") else "resource")
    name = _child(resource, "name")
    if isinstance(name, str) and name and len(name) <= _SHOWN_CHARACTERS:
        return f"{kind} {quoted(name)}"
    return f"{kind} at index {index}"
