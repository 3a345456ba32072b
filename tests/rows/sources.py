"""Cases by key: what one process names, another makes again."""

from __future__ import annotations

import functools
from collections.abc import Mapping

from cases import Case
from operator_cases import nodes_of, variant, variants
from prover import graph_of
from random_graphs import random_case
from written import written_cases

from cortex.wire.graphs import Model


@functools.cache
def written() -> Mapping[str, Case]:
    """Cases that somebody wrote, or that were found, by key."""
    return {f"case:{case.name}": case for case in written_cases()}


def cases_of(key: str) -> Mapping[str, Case]:
    """
    Return the cases of `case:NAME`, `random:SEED`, `operator:MODULE:NODE` (each variant of it) or
    `operator:MODULE:NODE:VARIANT`, each under a key of its own.
    """
    kind, _, rest = key.partition(":")
    if kind == "case":
        return {key: written()[key]}
    if kind == "random":
        return {key: random_case(int(rest))}
    if kind == "operator":
        module, node, *number = rest.split(":")
        named = nodes_of(module)[int(node)]
        if number:
            return {key: variant(named, int(number[0]))}
        return {f"{key}:{number}": case for number, case in enumerate(variants(named))}
    raise ValueError(key)


def case_of(key: str) -> Case:
    """The one case of a key."""
    (case,) = cases_of(key).values()
    return case


@functools.lru_cache(maxsize=30_000)
def graph_of_key(key: str) -> Model:
    """What the prover is handed of the one case of a key."""
    return graph_of(case_of(key).model)
