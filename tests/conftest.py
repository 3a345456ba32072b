from __future__ import annotations

import gc
import json
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# On a busy machine an example may take its time. CI tries the same examples each time, so that a change is judged by
# itself; everywhere else new ones are found.
settings.register_profile(
    "cortex", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=bool(os.environ.get("CI"))
)
settings.load_profile("cortex")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As a shell starts what it runs in the background. Tests press Ctrl-C, and commands that they start inherit this.
    signal.signal(signal.SIGINT, signal.default_int_handler)


class FailureRecord:
    """Lines of JSON in a file: how to run a test again, each failure with what it said, and how it all ended."""

    def __init__(self, path: str, config: pytest.Config) -> None:
        self._path = path
        self._write(python=sys.executable, seed=config.getoption("randomly_seed"))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            sections = [f"---- {name} ----\n{text}" for name, text in report.sections]
            self._write(test=report.nodeid, output="\n".join([report.longreprtext, *sections]))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._write(uncollected=report.nodeid)

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        self._write(exit=int(exitstatus))

    def _write(self, **line: object) -> None:
        with open(self._path, "a") as file:
            file.write(json.dumps(line) + "\n")


@pytest.hookimpl(trylast=True)  # by then the seed is chosen
def pytest_configure(config: pytest.Config) -> None:
    path = os.environ.get("CORTEX_TEST_FAILURES")  # CI asks for it: .ci/retry.py
    if path and not hasattr(config, "workerinput"):
        config.pluginmanager.register(FailureRecord(path, config))


SHARED = ("tensorflow", "shared_launcher", "moto")
"""Fixtures of a session that take seconds of processor time in each process that asks for them."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """
    Have files that share what is dear come first, side by side.

    Each worker is given a stretch of the tests, and once it has none left it takes from the end of another's: so what
    is at the beginning is made by one of them. Within its group the order of files is as random as it was.
    """
    turns: dict[Path, int] = {}
    for item in items:
        taken = {
            *getattr(item, "fixturenames", ()),
            *(name for mark in item.iter_markers("takes") for name in mark.args),
        }
        if "tensorflow" in taken:
            item.add_marker(pytest.mark.slow)  # its import alone takes seconds
        turn = next((turn for turn, name in enumerate(SHARED) if name in taken), len(SHARED))
        turns[item.path] = min(turn, turns.get(item.path, turn))
    items.sort(key=lambda item: turns[item.path])


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()  # eleven thousand tests are looked through for garbage again and again otherwise


@pytest.fixture(scope="session")
def tensorflow() -> Any:
    """TensorFlow, for tests that make or serve its models; where it is not installed they are skipped."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own, while it is imported
        return pytest.importorskip("tensorflow", reason="needs the extra `tensorflow`")
