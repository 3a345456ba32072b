"""
Values of secrets on their way from the agent into a process: in a descriptor, never in a message. And how they are kept
out of what is written down.

A launcher passes the descriptor on without reading it: whatever a launcher has had in memory, every process that it
forks later has in memory too, of other apis as well.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from cortex.errors import Problem
from cortex.wire.cloud import is_confidential

MASK = "****"
SHORTEST_MASKED = 6
"""Shorter values are not looked for: they would be found in every other word."""
_PIECE_BYTES = 2**20


def to_mask(values: Iterable[str]) -> tuple[str, ...]:
    """
    What is looked for, longest first: values, and of those with several lines each line too; as they are, and as
    Python, JSON and URLs quote them.
    """
    plain = {part.strip() for value in values for part in (value, *value.splitlines())}
    parts = {form for part in plain for form in (part, *_quoted(part))}
    return tuple(sorted((part for part in parts if len(part) >= SHORTEST_MASKED), key=lambda part: (-len(part), part)))


def _quoted(value: str) -> tuple[str, ...]:
    if value.isalnum():
        return ()
    import json
    from urllib.parse import quote, quote_plus

    in_json = [json.dumps(value, ensure_ascii=ascii)[1:-1] for ascii in (False, True)]
    return (repr(value)[1:-1], *in_json, quote(value, safe=""), quote(value), quote_plus(value))


def confidential(values: Mapping[str, str]) -> list[str]:
    """What is to be masked of the variables that a process gets."""
    return [value for name, value in values.items() if is_confidential(name)]


def without(parts: Sequence[str], text: str) -> str:
    """Text with what `to_mask` returned masked."""
    for part in parts:
        if part in text:
            text = text.replace(part, MASK)
    return text


def problem_without(parts: Sequence[str], problem: Problem) -> Problem:
    """A problem with what `to_mask` returned masked."""
    if not parts:
        return problem
    return msgspec.structs.replace(
        problem,
        message=without(parts, problem.message),
        hint=without(parts, problem.hint),
        traceback=without(parts, problem.traceback),
    )


def packed(values: Mapping[str, str]) -> int:
    """
    A descriptor that holds values by the name of their variable. The caller closes it.

    Its content is in memory only, and gone with the last descriptor.
    """
    descriptor = os.memfd_create("cortex-secrets")
    try:
        data = memoryview(msgspec.json.encode(dict(values)))
        while data:
            data = data[os.write(descriptor, data) :]
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def unpacked(descriptor: int) -> dict[str, str]:
    """What `packed` packed. Closes the descriptor."""
    try:
        content = b""
        while piece := os.pread(descriptor, _PIECE_BYTES, len(content)):
            content += piece
    finally:
        os.close(descriptor)
    return msgspec.json.decode(content, type=dict[str, str])
