"""
What the end-to-end tests run on, and which of them are about one machine.

`CORTEX_TEST_ENGINE` names the engine: the tests are the same text for all of them, and homes begin as it wants them.
What is different there, because the design says so, is left out, with the words of the design; they all stand here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

NODES: Mapping[str, int] = {"local": 1, "nodes-3": 3}
"""Engines by name: how many nodes a home of this machine is."""
LOCAL = "local"
VARIABLE = "CORTEX_TEST_ENGINE"

_DEALT = "GPUs are dealt out to the nodes, so that none has two of the two (docs/nodes.md)"

LEFT_OUT: Mapping[str, str] = {
    "test_nodes.py": "chooses its number of nodes, which is remembered until another one is given (docs/nodes.md)",
    "test_gpus.py::test_a_replica_that_asks_for_several_sees_all_of_them_and_who_comes_later_waits": _DEALT,
    "test_gpus.py::test_with_every_gpu_in_use_an_update_waits_and_is_forced": _DEALT,
}
"""By file, or `file::test`: what is not run on several nodes, and why."""


def chosen() -> str:
    """
    The engine of this run.

    Raises:
        ValueError: there is none of that name.
    """
    name = os.environ.get(VARIABLE, LOCAL)
    if name not in NODES:
        raise ValueError(f"{VARIABLE} is {name!r}; there are {', '.join(NODES)}")
    return name


def left_out(file: str, test: str, engine: str) -> str:
    """
    Why a test is not run; empty: it is.

    Args:
        test: the name of its function.
    """
    if NODES[engine] == 1:
        return ""
    return LEFT_OUT.get(file) or LEFT_OUT.get(f"{file}::{test}") or ""
