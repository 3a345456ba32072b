"""
Quantities and durations as users write them: `200m`, `512Mi`, `1h30m`. Exact, never through a rounded float.

Source:
    Kubernetes, "Resource units" and `apimachinery/pkg/api/resource`: the grammar of a Quantity. Wider in one point:
    `K` is taken as `k`, as Cortex's own reference has always listed it.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Self

from cortex.errors import CortexError
from cortex.spec.problems import found, quoted

QUANTITY_PATTERN = r"([0-9]+\.?[0-9]*|\.[0-9]+)([numkKMGTPE]|[KMGTPE]i|[eE][+-]?[0-9]+)?"
"""An unsigned quantity, for JSON Schema (ECMA 262) as well as for `re`."""
DURATION_PATTERN = r"([0-9]+\.?[0-9]*|\.[0-9]+)|(([0-9]+\.?[0-9]*|\.[0-9]+)(ms|[smh]))+"
"""An unsigned duration, for JSON Schema as well as for `re`."""

MAX_DURATION_S = 576 * 3600
"""24 days: HAProxy counts timeouts in milliseconds, in 31 bits."""
MAX_NUMBER = 2**63 - 1
"""The most millis or bytes; Kubernetes has the same bound."""

MAX_CPU_MILLIS = 100_000_000
"""A hundred thousand cpus: more than any machine has, and `500M` was meant as `500m`."""

MIN_MEMORY_BYTES = 2**20
"""A mebibyte: no process runs in less, and `512` was meant as `512Mi`."""

_SUFFIXES = {
    **{
        suffix: Fraction(1000) ** power
        for power, suffix in enumerate(["n", "u", "m", "", "k", "M", "G", "T", "P", "E"], -3)
    },
    **{f"{suffix}i": Fraction(1024) ** power for power, suffix in enumerate("KMGTPE", 1)},
    "K": Fraction(1000),
}
_MAX_CHARACTERS = 64
_MAX_EXPONENT = 100
"""Nothing that is in range needs more, and `1e999999999` must not be computed."""
_QUANTITY = re.compile(
    r"(?P<number>[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+))"
    r"(?:(?P<suffix>[numkKMGTPE]|[KMGTPE]i)|[eE](?P<exponent>[+-]?[0-9]+))?"
)
_UNITS_MS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000}
_NUMBER = r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)"
_SECONDS = re.compile(_NUMBER)
_STEP = re.compile(rf"(?P<number>{_NUMBER})(?P<unit>ms|[smh])")

_QUANTITY_EXAMPLES = "a quantity is a number with or without a suffix, such as 200m, 0.5, 2, 512Mi or 1e9"
_DURATION_EXAMPLES = "a duration is such as 500ms, 30s, 10m or 1h30m; a plain number is seconds"

_MEANT_SUFFIX = {"b": "", "kb": "k", "kib": "Ki", "ki": "Ki"} | {
    spelling: suffix
    for letter in "mgtpe"
    for spelling, suffix in (
        (letter, letter.upper()),
        (f"{letter}b", letter.upper()),
        (f"{letter}i", f"{letter.upper()}i"),
        (f"{letter}ib", f"{letter.upper()}i"),
    )
}
_MEANT_UNIT = {
    **dict.fromkeys(["ms", "msec", "msecs", "millis", "millisecond", "milliseconds"], "ms"),
    **dict.fromkeys(["s", "sec", "secs", "second", "seconds"], "s"),
    **dict.fromkeys(["m", "min", "mins", "minute", "minutes"], "m"),
    **dict.fromkeys(["h", "hr", "hrs", "hour", "hours"], "h"),
}


class QuantityError(CortexError):
    """A quantity cannot be read or is out of range. `value` is what was found."""

    reference = "bad-quantity"

    def __init__(self, value: object, message: str, *, hint: str = "") -> None:
        self.value = value
        self.hint = hint
        super().__init__(message)


class DurationError(QuantityError):
    """A duration cannot be read or is out of range. `value` is what was found."""

    reference = "bad-duration"


@dataclass(frozen=True, slots=True)
class Cpu:
    """Processor time in thousandths of a cpu, above 0. Equal if the amount is, however it is spelled."""

    millis: int
    text: str = field(compare=False)
    """The user's own spelling."""

    @classmethod
    def parse(cls, value: str | int | float) -> Self:
        """Raises QuantityError, also for 0 and less."""
        millis = parse_cpu_millis(value)
        if millis <= 0:
            raise QuantityError(
                value, f"cpu has to be above 0, found {_spelling(value)}", hint="200m is a fifth of a cpu"
            )
        if millis > MAX_CPU_MILLIS:
            text = _spelling(value)
            message = f"{quoted(text)} is {millis // 1000} cpus"
            raise QuantityError(value, message, hint=_meant_cpus(text))
        return cls(millis, _spelling(value))


@dataclass(frozen=True, slots=True)
class Size:
    """A number of bytes, at least 1. Equal if the number is, however it is spelled."""

    bytes: int
    text: str = field(compare=False)
    """The user's own spelling."""

    @classmethod
    def parse(cls, value: str | int | float) -> Self:
        """
        Raises QuantityError, also for 0 and less, and for less than one byte: `512m` is half a byte in Kubernetes, and
        whoever writes it means `512M`.
        """
        exact = parse_quantity(value)
        text = _spelling(value)
        if exact <= 0:
            raise QuantityError(value, f"a size has to be above 0, found {text}", hint="512Mi is 512 mebibytes")
        if exact < 1:
            meant = re.sub("[num]$", "M", text)
            hint = f'did you mean "{meant}" or "{meant}i"?' if meant != text else "write a number of bytes, or 512Mi"
            raise QuantityError(value, f"{text} is less than one byte: the suffix m stands for thousandths", hint=hint)
        return cls(parse_bytes(value), text)


class Memory(Size):
    """What a process may take up: a `Size` of at least `MIN_MEMORY_BYTES`."""

    __slots__ = ()

    @classmethod
    def parse(cls, value: str | int | float) -> Self:
        """Raises QuantityError as `Size.parse`, and for what is too little for any process."""
        exact, text = parse_quantity(value), _spelling(value)
        is_plain = re.fullmatch(r"\+?[0-9.]+", text) is not None
        if 0 < exact < MIN_MEMORY_BYTES and (is_plain or exact >= 1):
            amount = "a number of bytes" if is_plain else f"{parse_bytes(value)} bytes"
            meant = _meant_memory(text)
            message = f"{text} is {amount}, and nothing runs in less than a mebibyte"
            raise QuantityError(value, message, hint=f'did you mean "{meant}"?' if meant else "such as 512Mi or 2Gi")
        return super().parse(value)


def _meant_memory(text: str) -> str:
    """The memory that a number of bytes, or of kilobytes, was probably meant as; empty if nobody can tell."""
    match = re.fullmatch(r"\+?(?P<number>[0-9]*\.?[0-9]+)\.?0*(?P<suffix>[kK]i?)?", text)
    if match is None:
        return ""
    number, suffix = match["number"], match["suffix"]
    is_few = float(number) < _LEAST_MEBIBYTES
    if suffix:
        return "" if is_few else f"{number}{'Mi' if suffix.endswith('i') else 'M'}"
    return f"{number}{'Gi' if is_few else 'Mi' if float(number) < _LEAST_KIBIBYTES else 'Ki'}"


_LEAST_MEBIBYTES = 16
_LEAST_KIBIBYTES = 2**16
"""Whoever writes 512 means mebibytes, who writes 2 means gibibytes, and who writes 524288 means kibibytes."""


@dataclass(frozen=True, slots=True)
class Duration:
    """A length of time in seconds, from 1 ms to 24 days. Equal if the length is, however it is spelled."""

    seconds: float
    text: str = field(compare=False)
    """The user's own spelling."""

    @classmethod
    def parse(cls, value: str | int | float) -> Self:
        """Raises DurationError, also out of range."""
        seconds = parse_duration(value)
        if not 0.001 <= seconds <= MAX_DURATION_S:
            raise DurationError(
                value, f"expected a duration from 1ms to 576h, found {_spelling(value)}", hint=_DURATION_EXAMPLES
            )
        return cls(seconds, _spelling(value))


LONGEST_WATCH_S = 3600.0
"""A version that was good for an hour is not compared with the one before any more."""


class WatchTime(Duration):
    """For how long a new version is watched: a `Duration` of at most an hour, or 0."""

    __slots__ = ()

    @classmethod
    def parse(cls, value: str | int | float) -> Self:
        """Raises DurationError as `Duration.parse`, but for 0, and above an hour."""
        seconds = parse_duration(value)
        if seconds > LONGEST_WATCH_S:
            message = f"expected a duration up to 1h, or 0, found {_spelling(value)}"
            raise DurationError(value, message, hint="2m unless given; 0 watches nothing")
        return super().parse(value) if seconds else cls(0.0, _spelling(value))


def _meant_cpus(text: str) -> str:
    """The hint for more cpus than any machine has: `500M` has the wrong case, and `2Gi` a suffix of memory."""
    number = re.sub(r"[kKMGTPE]i?$", "", text)
    if number == text:
        return "200m is a fifth of a cpu"
    return f'did you mean "{number}m"?' if text.endswith("M") else f'did you mean "{number}"? cpus have no such suffix'


def parse_quantity(value: str | int | float) -> Fraction:
    """
    Return the exact number that a Kubernetes quantity stands for; it may be 0 or negative.

    Raises:
        QuantityError: not a quantity, not finite, or absurdly long; names what was found and what is accepted.
    """
    text = _text(value, QuantityError, _QUANTITY_EXAMPLES)
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise QuantityError(value, f"{quoted(text)} is not a quantity", hint=_quantity_hint(text))
    if match["exponent"] is None:
        return Fraction(match["number"]) * _SUFFIXES[match["suffix"] or ""]
    exponent = int(match["exponent"])
    if abs(exponent) > _MAX_EXPONENT:
        raise QuantityError(value, f"{quoted(text)} is out of range", hint=_QUANTITY_EXAMPLES)
    return Fraction(match["number"]) * Fraction(10) ** exponent


def parse_cpu_millis(value: str | int | float) -> int:
    """Return thousandths of a cpu, rounded up. Raises QuantityError as `parse_quantity`, and beyond 63 bits."""
    return _whole(value, parse_quantity(value) * 1000)


def parse_bytes(value: str | int | float) -> int:
    """Return bytes, rounded up. Raises QuantityError as `parse_quantity`, and beyond 63 bits."""
    return _whole(value, parse_quantity(value))


def parse_duration(value: str | int | float) -> float:
    """
    Return seconds; 0 is allowed. Units run from large to small, each at most once.

    Raises:
        DurationError: not a duration, not finite, or absurdly long; names what was found and what is accepted.
    """
    text = _text(value, DurationError, _DURATION_EXAMPLES)
    exact = _seconds(text) if isinstance(value, str) else Fraction(text)
    if exact is None or exact < 0:
        raise DurationError(value, f"{quoted(text)} is not a duration", hint=_duration_hint(text))
    return float(exact)


def _seconds(text: str) -> Fraction | None:
    if _SECONDS.fullmatch(text):
        return Fraction(text)
    total_ms, end, last_ms = Fraction(0), 0, math.inf
    while match := _STEP.match(text, end):
        unit_ms = _UNITS_MS[match["unit"]]
        if unit_ms >= last_ms:
            return None
        total_ms += Fraction(match["number"]) * unit_ms
        end, last_ms = match.end(), unit_ms
    return total_ms / 1000 if 0 < end == len(text) else None


def _text(value: object, error: type[QuantityError], examples: str) -> str:
    """Return the spelling of a string or finite number; raises `error` for everything else."""
    if isinstance(value, str):
        if len(value) > _MAX_CHARACTERS:
            raise error(value, f"expected at most {_MAX_CHARACTERS} characters, found {len(value)}", hint=examples)
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        kind = "a duration" if error is DurationError else "a quantity"
        raise error(value, f"expected {kind}, found {found(value)}", hint=examples)
    if isinstance(value, float) and not math.isfinite(value):
        raise error(value, f"expected a finite number, found {value}", hint=examples)
    if isinstance(value, int) and value.bit_length() > 4 * _MAX_CHARACTERS:
        raise error(value, "the number is out of range", hint=examples)
    return _spelling(value)


def _spelling(value: str | int | float) -> str:
    return value if isinstance(value, str) else repr(value)


def _whole(value: str | int | float, exact: Fraction) -> int:
    rounded = math.ceil(exact)
    if abs(rounded) > MAX_NUMBER:
        raise QuantityError(value, f"{quoted(_spelling(value))} is out of range", hint=_QUANTITY_EXAMPLES)
    return rounded


def _quantity_hint(text: str) -> str:
    match = re.fullmatch(r"\s*([0-9.]+)\s*([a-zA-Z]*)\s*", text)
    if match is not None:
        suffix = match[2] if match[2] in _SUFFIXES else _MEANT_SUFFIX.get(match[2].lower())
        if suffix is not None and _QUANTITY.fullmatch(match[1] + suffix):
            return f'did you mean "{match[1]}{suffix}"?'
    return _QUANTITY_EXAMPLES


def _duration_hint(text: str) -> str:
    steps = re.findall(r"\s*([0-9.]+)\s*([a-zA-Z]+)\s*", text)
    meant = "".join(number + _MEANT_UNIT.get(unit.lower(), "?") for number, unit in steps)
    if len(steps) == 1 and steps[0][1].lower() in ("d", "day", "days") and steps[0][0].isdecimal():
        meant = f"{24 * int(steps[0][0])}h"
    return f'did you mean "{meant}"?' if meant != text and _seconds(meant) is not None else _DURATION_EXAMPLES
