"""What happens when, made from the seed alone. Pure."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from faults.project import BAD_MODELS, BAD_VERSIONS, MODELLED

FULL_S = 180.0
"""For which the numbers below are meant; others get their share, at least one of each."""
CALM_S = (2.0, 4.0)
"""Nothing happens in the first and the last seconds."""
APART_S = 3.0
"""Between the end of a keeper and what is killed next: of what sleeps only the keeper and the agent have the socket."""
LATE = 4.0
"""Commands take as long as they take: bursts go on for so many times what is scheduled."""


class Command(StrEnum):
    """What whoever runs Cortex does."""

    HANDLER = "redeploy of the handler"
    MODEL = "redeploy of models"
    SETTINGS = "settings only"
    BOUNDS = "changed bounds"
    BAD = "bad version"
    BACK = "rollback"
    BACK_TO = "rollback to a named version"
    BACK_MEANWHILE = "rollback while a deploy is under way"


COMMANDS: Mapping[Command, int] = {
    Command.HANDLER: 12,
    Command.MODEL: 8,
    Command.SETTINGS: 3,
    Command.BOUNDS: 5,
    Command.BAD: 6,
    Command.BACK: 2,
    Command.BACK_TO: 2,
    Command.BACK_MEANWHILE: 3,
}

LOADING = "loading replica"
"""The next replica that is forked, killed before it can be ready."""
KILLS: Mapping[str, int] = {"replica": 20, LOADING: 4, "controlplane": 10, "agent": 5, "launcher": 5, "keeper": 2}
STOPS: Mapping[str, int] = {"controlplane": 2, "agent": 1, "launcher": 1}
"""Never told to go on by us: whoever needs them has to notice."""
NODE = "node"
"""All that runs on one of several nodes, at once; it comes back some seconds later."""
NODES_KILLED = 3
AWAY_S = (0.0, 12.0)
"""Nodes that were not heard for 5 s are lost: some are back before, some after."""


@dataclass(frozen=True)
class Step:
    """One command."""

    at_s: float
    command: Command
    what: str = ""
    """Of a bad version: how it is bad."""
    apis: tuple[str, ...] = ()
    """Whose model is another one, or who goes back."""
    bounds: tuple[int, int] = (0, 0)
    """Minimum and maximum, where they change."""
    chance: float = 0.0
    """In [0, 1): which of those that there are then, or how far a deploy may come."""


@dataclass(frozen=True)
class Fault:
    """One signal to one process."""

    at_s: float
    kind: str
    stops: bool = False
    """SIGSTOP instead of SIGKILL."""
    chance: float = 0.0
    """In [0, 1): which of those that there are."""
    node: int = 0
    """Of several, which is killed: its place among them."""
    away_s: float = 0.0
    """How long it is kept from coming back."""


@dataclass(frozen=True)
class Schedule:
    steps: tuple[Step, ...]
    faults: tuple[Fault, ...]
    bursts: tuple[tuple[float, int], ...]
    """Requests at once for the api that sleeps in between."""
    door: int = 0
    """The node whose door is asked: it is killed by nobody."""


def make_schedule(seed: int, seconds: float, nodes: int = 1) -> Schedule:
    """The same seed and seconds, the same schedule; on several nodes what they suffer comes on top."""
    chance = random.Random(f"{seed} {seconds}")
    steps, faults, bursts = _steps(chance, seconds), _faults(chance, seconds), tuple(_bursts(chance, seconds))
    door = 0
    if nodes > 1:
        chance = random.Random(f"{seed} {seconds} {nodes}")
        door = chance.randrange(nodes)
        others = [node for node in range(nodes) if node != door]
        faults += tuple(
            Fault(_instant(chance, seconds), NODE, node=chance.choice(others), away_s=chance.uniform(*AWAY_S))
            for _ in range(_share(NODES_KILLED, seconds))
        )
    return Schedule(steps=steps, faults=_apart(faults), bursts=bursts, door=door)


def _share(number: int, seconds: float) -> int:
    return max(1, round(number * seconds / FULL_S))


def _steps(chance: random.Random, seconds: float) -> tuple[Step, ...]:
    counts = Counter({command: _share(number, seconds) for command, number in COMMANDS.items()})
    first = [Command.HANDLER, Command.MODEL]
    """Who goes back needs somewhere to go back to."""
    rest = sorted((counts - Counter(first)).elements())
    chance.shuffle(rest)
    commands = [*first, *rest]
    bad = [*BAD_VERSIONS, *BAD_MODELS]
    chance.shuffle(bad)
    begin_s, width_s = CALM_S[0], (seconds - sum(CALM_S)) / len(commands)
    return tuple(
        _step(chance, begin_s + (index + chance.random() * 0.8) * width_s, command, bad)
        for index, command in enumerate(commands)
    )


def _step(chance: random.Random, at_s: float, command: Command, bad: list[str]) -> Step:
    step = Step(at_s=at_s, command=command, chance=chance.random())
    if command is Command.BAD:
        bad.append(bad.pop(0))
        return Step(at_s=at_s, command=command, what=bad[-1], chance=step.chance)
    if command is Command.BOUNDS:
        least = chance.randint(1, 4)
        return Step(at_s=at_s, command=command, bounds=(least, least + chance.randint(0, 3)))
    if command is Command.MODEL:
        apis = tuple(sorted(chance.sample(MODELLED, chance.randint(1, len(MODELLED)))))
        return Step(at_s=at_s, command=command, apis=apis)
    if command in (Command.BACK, Command.BACK_TO, Command.BACK_MEANWHILE):
        return Step(at_s=at_s, command=command, apis=(chance.choice(MODELLED),), chance=step.chance)
    return step


def _faults(chance: random.Random, seconds: float) -> tuple[Fault, ...]:
    kinds = [(kind, False) for kind, number in KILLS.items() for _ in range(_share(number, seconds))]
    kinds += [(kind, True) for kind, number in STOPS.items() for _ in range(_share(number, seconds))]
    chance.shuffle(kinds)
    instants = sorted(_instant(chance, seconds) for _ in kinds)
    return tuple(
        Fault(at_s=at_s, kind=kind, stops=stops, chance=chance.random())
        for at_s, (kind, stops) in zip(instants, kinds, strict=True)
    )


def _instant(chance: random.Random, seconds: float) -> float:
    return chance.uniform(CALM_S[0], seconds - CALM_S[1])


def _apart(faults: tuple[Fault, ...]) -> tuple[Fault, ...]:
    """In order; what comes too soon after a keeper, or a keeper too soon after anything, comes later."""
    found: list[Fault] = []
    not_before_s = 0.0
    for fault in sorted(faults, key=lambda fault: fault.at_s):
        at_s = max(fault.at_s, not_before_s)
        if fault.kind == "keeper" and found:
            at_s = max(at_s, found[-1].at_s + APART_S)
        not_before_s = at_s + APART_S if fault.kind == "keeper" else at_s
        found.append(replace(fault, at_s=at_s))
    return tuple(found)


def _bursts(chance: random.Random, seconds: float) -> list[tuple[float, int]]:
    """Pauses of which some are long enough to fall asleep in, some are not."""
    found, at_s = [], chance.uniform(1.0, 4.0)
    while at_s < LATE * seconds:
        found.append((at_s, chance.randint(1, 40)))
        at_s += chance.choice((chance.uniform(0.5, 2.0), chance.uniform(2.5, 7.0)))
    return found
