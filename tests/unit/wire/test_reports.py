"""How a process ended, as users and logs are told."""

from __future__ import annotations

import pytest

from cortex.errors import Problem
from cortex.wire.reports import ExitReport


@pytest.mark.parametrize(
    ("report", "words"),
    [
        (ExitReport(wall_s=0.0, code=0, drained=True), "drained"),
        (ExitReport(wall_s=0.0, signal=9, oom=True), "killed by the kernel for memory"),
        (ExitReport(wall_s=0.0, signal=9, oom=True, peak_bytes=2**20), "killed by the kernel for memory at 1Mi"),
        (ExitReport(wall_s=0.0, problem=Problem(reference="r", message="no handler"), code=3), "no handler"),
        (ExitReport(wall_s=0.0, signal=9), "killed by signal 9 (SIGKILL)"),
        (ExitReport(wall_s=0.0, code=7), "exit code 7"),
        (ExitReport(wall_s=0.0), "ended while nobody watched"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_how_a_process_ended_in_words(report, words):
    assert report.text == words
