"""
A process that judges cases: one task a line on stdin, its result a line on stdout.

Graphs that nobody would write can end onnxruntime by a signal (a Scan over nothing does, and some graphs of float16 as
they are loaded), or keep it for minutes; that ends one of these, and the campaign goes on.
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

_MOST_MEMORY_BYTES: Final = 6 * 2**30


def main() -> int:
    results = os.fdopen(os.dup(1), "w")
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)  # nothing else may write there
    os.dup2(silent, 2)  # onnxruntime says of each graph that does not load why
    resource.setrlimit(resource.RLIMIT_AS, (_MOST_MEMORY_BYTES, _MOST_MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin:
        task = msgspec.json.decode(line)
        try:
            result = {"result": _TASKS[task["do"]](task)}
        except Exception as error:  # told, so that a mistake of ours is not taken for a crash
            result = {"error": f"{type(error).__name__}: {error}"}
        results.write(msgspec.json.encode(result).decode() + "\n")
        results.flush()
    return 0


def _judge(task: Mapping[str, Any]) -> Any:
    """Judge each case of a key."""
    from judging import judge
    from sources import cases_of

    return [
        judge(key, case, seed=task["seed"], batches=task["batches"], examine_refused=task["examine_refused"])
        for key, case in cases_of(task["key"]).items()
    ]


def _run_alone(task: Mapping[str, Any]) -> Any:
    """Run the requests of a case, none of them with others: after the runtime ended a process that judged it."""
    from judging import run_alone
    from sources import case_of

    run_alone(case_of(task["key"]), seed=task["seed"])


def _minimise(task: Mapping[str, Any]) -> Any:
    """Make a case that is wrongly proved smaller; return it as text."""
    from minimising import minimised
    from sources import case_of

    return minimised(case_of(task["key"]), seed=task["seed"])


def _trace(task: Mapping[str, Any]) -> Any:
    """Which functions of the prover each of the cases meets."""
    from mutants import traced
    from sources import graph_of_key

    return {key: traced(graph_of_key(key)) for key in task["keys"]}


def _mutant(task: Mapping[str, Any]) -> Any:
    """Which of the cases a prover without one of its checks proves; None if none."""
    from mutants import killer
    from sources import graph_of_key

    mixing, moving = (((key, graph_of_key(key)) for key in task[which]) for which in ("mixing", "moving"))
    return killer(task["mutant"], mixing, moving)


_TASKS: Final[Mapping[str, Callable[[Mapping[str, Any]], Any]]] = {
    "judge": _judge,
    "run alone": _run_alone,
    "minimise": _minimise,
    "trace": _trace,
    "mutant": _mutant,
}


if __name__ == "__main__":
    sys.exit(main())
