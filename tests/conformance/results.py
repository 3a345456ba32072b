"""What came of the end-to-end tests by engine and file, and the table of that. Pure, but for reading reports."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

NOT_RUN = "-"


@dataclass(frozen=True)
class Result:
    """Of a file on an engine."""

    passed: int = 0
    failed: tuple[str, ...] = ()
    """Names of tests."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """By reason, how many tests."""

    def __str__(self) -> str:
        left_out = sum(self.left_out.values())
        parts = [(self.passed, "passed"), (len(self.failed), "FAILED"), (left_out, "left out")]
        return ", ".join(f"{number} {what}" for number, what in parts if number) or "nothing in it"


def read_report(file: Path) -> Result:
    """
    What pytest's `--junitxml` says of the tests of one file.

    Raises:
        ParseError: it was not written to its end.
    """
    passed, failed, left_out = 0, [], Counter[str]()
    for case in ElementTree.parse(file).iter("testcase"):
        if case.find("failure") is not None or case.find("error") is not None:
            failed.append(case.get("name", ""))
        elif (skipped := case.find("skipped")) is not None:
            left_out[skipped.get("message", "")] += 1
        else:
            passed += 1
    return Result(passed, tuple(dict.fromkeys(failed)), left_out)


def table(results: Mapping[str, Mapping[str, Result]]) -> str:
    """
    A line for each file, a column for each engine; below, why tests are left out, and which have failed.

    Args:
        results: by engine and file.
    """
    files = sorted({file for found in results.values() for file in found})
    rows = [["", *results]]
    rows += [[file, *(str(found.get(file, NOT_RUN)) for found in results.values())] for file in files]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    for engine, found in results.items():
        lines += _listed(f"left out on {engine}", (f"{f}: {n}, {why}" for f, n, why in _left_out(found)))
        lines += _listed(f"failed on {engine}", (f"{f}: {test}" for f in sorted(found) for test in found[f].failed))
    return "\n".join(lines) + "\n"


def differences(results: Mapping[str, Mapping[str, Result]], named: Iterable[str]) -> list[str]:
    """
    What is not as it has to be: tests that fail, and what is left out on some engines although no design says so.

    Args:
        named: reasons that name where the design says it.
    """
    allowed = set(named)
    found = [
        f"{engine}: {file}: {test} failed"
        for engine, files in results.items()
        for file, result in sorted(files.items())
        for test in result.failed
    ]
    reasons = {engine: {why for _, _, why in _left_out(files)} - allowed for engine, files in results.items()}
    everywhere = set.intersection(*reasons.values()) if reasons else set()
    return found + [
        f"{engine}: left out: {why}" for engine, whys in reasons.items() for why in sorted(whys - everywhere)
    ]


def _left_out(files: Mapping[str, Result]) -> list[tuple[str, int, str]]:
    return [(file, number, why) for file in sorted(files) for why, number in sorted(files[file].left_out.items())]


def _listed(title: str, lines: Iterable[str]) -> Sequence[str]:
    listed = [f"  {line}" for line in lines]
    return ["", title, *listed] if listed else []
