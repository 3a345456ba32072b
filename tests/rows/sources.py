"""Cases by key: what one process names, another makes again."""

from __future__ import annotations

import functools
from collections.abc import Mapping

from cases import Case
from operator_cases import nodes_of, variants
from random_graphs import random_case
from written import written_cases


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
        module, node, *variant = rest.split(":")
        cases = variants(*nodes_of(module)[int(node)])
        found = {f"operator:{module}:{node}:{number}": case for number, case in enumerate(cases)}
        return {key: found[key]} if variant else found
    raise ValueError(key)


def case_of(key: str) -> Case:
    """The one case of a key."""
    (case,) = cases_of(key).values()
    return case
