"""
Runs the end-to-end tests and chaos on each engine, and prints what passed where.

    python tests/conformance/compare.py [--engine local --engine nodes-3] [--only test_smoke.py] [--jobs 2] [--table]

Each file is a run of pytest of its own; what it said is kept in `build/conformance/<engine>`, so that a part may be run
again, and the table is of all that is there. Exits 0 only where nothing failed and engines differ in what the design
names alone (`tests/e2e/engines.py`).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final
from xml.etree.ElementTree import ParseError

ROOT: Final = Path(__file__).parents[2]
E2E: Final = ROOT / "tests" / "e2e"
sys.path.insert(0, str(E2E))

from engines import LEFT_OUT, NODES, VARIABLE  # noqa: E402
from results import Result, differences, read_report, table  # noqa: E402

CHAOS: Final = "chaos"
"""Beside the files of tests."""
TIMEOUT_S: Final = 360
"""Of a test that names none: three nodes are three times as many processes as one."""
CHAOS_OPTIONS: Final = ("--seconds", "60", "--rate", "200", "--one-at-a-time")


def run(engine: str, name: str, reports: Path) -> None:
    """Run a file, or chaos; what came of it is in `reports` then, and what it said beside it."""
    report = reports / engine / f"{name}.xml"
    report.parent.mkdir(parents=True, exist_ok=True)
    report.unlink(missing_ok=True)
    if name == CHAOS:
        script = (str(ROOT / "bench" / "chaos.py"), "--nodes", str(NODES[engine]), *CHAOS_OPTIONS)
        command = (*script, "--receipt", str(report.with_suffix(".json")))
    else:
        command = ("-m", "pytest", str(E2E / name), f"--junitxml={report}", f"--timeout={TIMEOUT_S}")
    with report.with_suffix(".txt").open("wb") as said:
        ended = subprocess.run(
            [sys.executable, *command],
            cwd=ROOT,
            env={**os.environ, VARIABLE: engine},
            stdout=said,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if name == CHAOS:
        verdict = "" if ended.returncode == 0 else "<failure/>"
        report.write_text(f'<testsuite><testcase name="chaos">{verdict}</testcase></testsuite>\n')
    print(f"{engine}: {name}: {result_of(report)}", flush=True)


def result_of(report: Path) -> Result:
    try:
        return read_report(report)
    except (FileNotFoundError, ParseError):
        return Result(failed=("it did not come to its end",))


def results_in(reports: Path, engines: Iterable[str]) -> dict[str, dict[str, Result]]:
    """By engine and file; also of those that did not come to their end, which have only said something."""
    return {
        engine: {said.stem: result_of(said.with_suffix(".xml")) for said in sorted((reports / engine).glob("*.txt"))}
        for engine in engines
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").strip().partition("\n\n")[0])
    parser.add_argument("--engine", action="append", choices=NODES, help="may be repeated; by default all")
    parser.add_argument("--only", action="append", metavar="FILE", help=f"may be repeated; `{CHAOS}` is one of them")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="files at a time (default 2)")
    parser.add_argument("--table", action="store_true", help="run nothing: print what earlier runs have left")
    parser.add_argument("--reports", type=Path, default=ROOT / "build" / "conformance", metavar="FOLDER")
    options = parser.parse_args(argv)
    engines = options.engine or list(NODES)
    names = options.only or [*sorted(file.name for file in E2E.glob("test_*.py")), CHAOS]
    if not options.table:
        with ThreadPoolExecutor(options.jobs) as pool:
            for _ in pool.map(lambda each: run(*each, options.reports), [(e, n) for e in engines for n in names]):
                pass
    results = results_in(options.reports, engines)
    print(f"\n{table(results)}", end="")
    wrong = differences(results, LEFT_OUT.values())
    print("\n" + ("\n".join(("NOT the same:", *wrong)) if wrong else "the same, but for what the design names"))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
