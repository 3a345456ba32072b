"""Plain data as YAML that every reader takes alike, those of YAML 1.1 among them. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence

_PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9_./+-]*")
_OTHERWISE = frozenset(("y", "n", "yes", "no", "on", "off", "true", "false", "null"))
"""What some reader takes for a boolean or for nothing."""

Plain = str | int | float | bool | None | Mapping[str, "Plain"] | Sequence["Plain"]


def as_yaml(value: Mapping[str, Plain], *, comment: Sequence[str] = ()) -> str:
    """Return one YAML document, keys in their order. `comment` stands above it, a line each."""
    lines = [f"# {line}".rstrip() for line in comment]
    return "\n".join([*lines, *_block(value, "")]) + "\n"


def _block(value: Plain, indent: str) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _entry(f"{indent}{_scalar(key)}:", inner, f"{indent}  ")
    else:
        assert isinstance(value, Sequence)
        for inner in value:
            if isinstance(inner, Mapping) and inner:
                first, *others = _block(inner, f"{indent}  ")
                yield f"{indent}- {first.lstrip()}"
                yield from others
            else:
                yield from _entry(f"{indent}-", inner, f"{indent}  ")


def _entry(head: str, value: Plain, indent: str) -> Iterator[str]:
    if isinstance(value, str) and "\n" in value and _is_text(value):
        yield f"{head} |"
        yield from (f"{indent}{line}".rstrip() for line in value.splitlines())
    elif isinstance(value, Mapping | Sequence) and not isinstance(value, str) and value:
        yield head
        yield from _block(value, indent)
    else:
        yield f"{head} {_scalar(value)}"


def _is_text(value: str) -> bool:
    """Whether a block of lines says exactly this: one line end at its end, and no blanks that would be lost."""
    lines = value.split("\n")
    return (
        value.endswith("\n")
        and lines[-2] != ""
        and lines[0][:1].isprintable()
        and lines[0][:1] not in ("", " ")
        and all(line == line.rstrip() and line.isprintable() for line in lines)
    )


def _scalar(value: Plain) -> str:
    if not isinstance(value, str):
        return json.dumps(value)
    if _PLAIN.fullmatch(value) and value.lower() not in _OTHERWISE:
        return value
    return '"' + "".join(map(_escaped, value)) + '"'


def _escaped(character: str) -> str:
    if character in '"\\':
        return f"\\{character}"
    if character.isprintable():
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
