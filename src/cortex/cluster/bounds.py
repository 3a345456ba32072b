"""How many nodes there may be, and who said so: the file, a variable, a flag, or whoever wrote last since. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from cortex.cluster.models import DEFAULT_NODES_MAX
from cortex.errors import Problem
from cortex.spec.problems import quoted
from cortex.spec.rules import MAX_COUNT

VARIABLES = ("CORTEX_NODES_MIN", "CORTEX_NODES_MAX")
FLAGS = ("--nodes-min", "--nodes-max")
FIELDS = ("nodes_min", "nodes_max")
TAGS = ("cortex:nodes-min", "cortex:nodes-max")
"""Of the head instance on aws."""


class BoundSource(StrEnum):
    """Who said it."""

    DEFAULT = "default"
    """Nobody did."""
    HOSTS = "hosts"
    """There are no more machines."""
    FILE = "file"
    """cluster.yaml."""
    VARIABLE = "environment"
    """A variable of the shell in which the cluster was started."""
    FLAG = "flag"
    """A flag of the command that started it."""
    SCALE = "scale"
    """`cortex cluster scale`."""
    TAGS = "AWS tags"
    """Tags of the head instance."""


@dataclass(frozen=True, slots=True)
class NodeBound:
    nodes: int
    """At least 1: the head counts."""
    source: BoundSource


@dataclass(frozen=True, slots=True)
class Bounds:
    """1 ≤ minimum ≤ maximum."""

    minimum: NodeBound
    maximum: NodeBound

    @property
    def workers(self) -> tuple[int, int]:
        """Fewest and most nodes beside the head."""
        return self.minimum.nodes - 1, self.maximum.nodes - 1

    def tags(self) -> dict[str, str]:
        return dict(zip(TAGS, (str(self.minimum.nodes), str(self.maximum.nodes)), strict=True))


class _Refused(Exception):
    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        super().__init__(problem.message)


def decide(
    file: tuple[int | None, int | None],
    environ: Mapping[str, str],
    flags: tuple[int | None, int | None],
    *,
    hosts: int | None = None,
) -> tuple[Bounds | None, tuple[Problem, ...]]:
    """
    Return the bounds of a cluster that starts: a flag before a variable, a variable before the file.

    Args:
        file: nodes_min and nodes_max as the file has them.
        flags: the same, as they were given on the command line.
        hosts: how many machines there are, if that is known.

    Returns:
        The bounds, None if something is wrong with them; and what is wrong. A problem with a `path` is about the file.
    """
    found: list[NodeBound | None] = []
    problems: list[Problem] = []
    for in_file, variable, flag in zip(file, VARIABLES, flags, strict=True):
        try:
            found.append(_said(in_file, variable, environ.get(variable, ""), flag))
        except _Refused as refused:
            problems.append(refused.problem)
            found.append(None)
    if problems:
        return None, tuple(problems)
    minimum = found[0] or NodeBound(1, BoundSource.DEFAULT)
    maximum = found[1]
    if maximum is None:
        maximum = NodeBound(hosts, BoundSource.HOSTS) if hosts else NodeBound(DEFAULT_NODES_MAX, BoundSource.DEFAULT)
    elif hosts and maximum.nodes > hosts and maximum.source is not BoundSource.DEFAULT:
        maximum = NodeBound(hosts, BoundSource.HOSTS)
    if minimum.nodes <= maximum.nodes:
        return Bounds(minimum, maximum), ()
    return None, (_crossed(minimum, maximum),)


def from_tags(before: Bounds, tags: Mapping[str, str]) -> tuple[Bounds, str]:
    """
    Return the bounds that somebody has written into the tags of the head, and what is wrong with what they wrote.

    Args:
        before: what holds now; where a tag is missing or cannot be meant, that stays.
    """
    told = []
    found = []
    for tag, now in zip(TAGS, (before.minimum, before.maximum), strict=True):
        text = tags.get(tag, "").strip()
        if not text or text == str(now.nodes):
            found.append(now)
        elif (nodes := _number(text)) is None:
            told.append(f"tag {tag}: expected a number of nodes from 1, found {quoted(text)}")
            found.append(now)
        else:
            found.append(NodeBound(nodes, BoundSource.TAGS))
    if found[0].nodes > found[1].nodes:
        told.append(f"tags: {TAGS[0]} {found[0].nodes} is more than {TAGS[1]} {found[1].nodes}")
        return before, "; ".join(told)
    return Bounds(found[0], found[1]), "; ".join(told)


def _said(in_file: int | None, variable: str, value: str, flag: int | None) -> NodeBound | None:
    if flag is not None:
        return NodeBound(flag, BoundSource.FLAG)
    if value.strip():
        nodes = _number(value.strip())
        if nodes is None:
            message = f"{variable}: expected a number of nodes from 1, found {quoted(value)}"
            raise _Refused(Problem(reference="wrong-setting", message=message, hint=f"such as {variable}=3"))
        return NodeBound(nodes, BoundSource.VARIABLE)
    return None if in_file is None else NodeBound(in_file, BoundSource.FILE)


def _number(text: str) -> int | None:
    if not (text.isascii() and text.isdecimal()) or len(text) > len(str(MAX_COUNT)):
        return None
    return int(text) if 1 <= int(text) <= MAX_COUNT else None


def _crossed(minimum: NodeBound, maximum: NodeBound) -> Problem:
    """What is said of a minimum above the maximum, at the place of whoever can be blamed for it."""
    names = [_named(number, bound.source) for number, bound in enumerate((minimum, maximum))]
    if maximum.source is BoundSource.HOSTS:
        message = f"{names[0]} {minimum.nodes} is more than there are hosts, which is {maximum.nodes}"
        hint = "name more hosts, or ask for fewer nodes"
    elif maximum.source is BoundSource.DEFAULT:
        message = f"{names[0]} {minimum.nodes} is more than nodes_max, which is {maximum.nodes} unless given"
        hint = f"add nodes_max: {minimum.nodes}"
    else:
        message = f"{names[0]} {minimum.nodes} is more than {names[1]} {maximum.nodes}"
        hint = f"raise {names[1]} to {minimum.nodes} or more"
    path = (
        ("nodes_min",)
        if minimum.source is BoundSource.FILE
        else ("nodes_max",)
        if maximum.source is BoundSource.FILE
        else ()
    )
    return Problem(reference="node-bounds", message=message, hint=hint, path=path)


def _named(number: int, source: BoundSource) -> str:
    names = {BoundSource.FLAG: FLAGS, BoundSource.VARIABLE: VARIABLES, BoundSource.TAGS: TAGS}
    return names.get(source, FIELDS)[number]
