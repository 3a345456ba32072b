"""Tests of what `cortex.agent.app` says."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from cortex.agent.app import ingress_problem


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "predictions are not listened for, since the disk of /srv/cortex is full"),
        (errno.EACCES, "predictions are not listened for: [Errno 13] Permission denied"),
    ],
)
def test_why_the_ingress_does_not_start_is_told_in_words(number: int, message: str) -> None:
    problem = ingress_problem(OSError(number, os.strerror(number)), Path("/srv/cortex"))
    assert (problem.reference, problem.message) == ("ingress-failed", message)
