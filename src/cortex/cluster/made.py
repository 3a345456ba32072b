"""
The list of what is made for a cluster, kept in its storage: written before and after each thing, gone through backwards
to remove it all.

Each thing has a number and up to two objects: `made/<number>/begun` and `made/<number>/done`, created once and never
changed. Either says all that is known, so that it is no matter which of them a command that was killed has left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

from cortex.errors import CortexError, Problem

FOLDER = "made"
_BEGUN, _DONE = "begun", "done"


class Thing(msgspec.Struct, frozen=True):
    """What a cloud can be asked to make."""

    kind: str
    """As people call it: `key pair`, `role`."""
    name: str
    """Its own name, which nothing else of its kind has."""


class Mark(msgspec.Struct, frozen=True):
    """One line of the list."""

    number: int
    thing: Thing
    id: str = ""
    """By which the cloud knows it; empty until it is made."""
    is_done: bool = False


class Objects(Protocol):
    """What the list needs of a storage; as `Storage` has it."""

    def create(self, key: str, content: bytes) -> bool: ...

    def read(self, key: str) -> bytes | None: ...

    def keys(self, folder: str) -> list[str]: ...

    def delete(self, keys: Iterable[str]) -> None: ...


class Maker(Protocol):
    """A cloud, as far as things are made and removed in it. Everything may be asked again."""

    def make(self, thing: Thing, *, resumed: bool) -> str:
        """
        Make a thing, or what is missing of it, and return its id.

        Args:
            resumed: it was begun before, so that what is there may be ours.

        Raises:
            NameTaken: somebody else has one of this name.
        """
        ...

    def remove(self, thing: Thing, id: str) -> bool:
        """Remove a thing if it is there and is this cluster's. False: there is none."""
        ...


class NameTaken(CortexError):
    """Something that a cluster needs exists already, and another cluster or somebody else made it."""

    reference = "name-taken"

    def __init__(self, thing: Thing, what: str = "") -> None:
        self.thing = thing
        self.hint = "give the cluster another name, or remove what is there"
        super().__init__(f"{what or f'a {thing.kind} {thing.name}'} exists already, and was not made for this cluster")


class StillThere(CortexError):
    """Not everything that was made for a cluster could be removed."""

    reference = "still-there"

    def __init__(self, left: Sequence[tuple[Thing, CortexError]]) -> None:
        self.left = tuple(thing for thing, _ in left)
        self.problems = tuple(
            Problem(
                reference=self.reference,
                message=f"{thing.kind} {thing.name} could not be removed: {error}",
                hint=error.hint or "do it again: what is gone already is passed over",
            )
            for thing, error in left
        )
        super().__init__("; ".join(problem.message for problem in self.problems))


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to make."""

    thing: Thing
    number: int
    resumed: bool
    """It is on the list already."""


def plan_up(wanted: Sequence[Thing], marks: Sequence[Mark]) -> tuple[Step, ...]:
    """Return what is still to be made, in its order; empty when all of it is there. Pure."""
    known = {mark.thing: mark for mark in marks}
    number = max((mark.number for mark in marks), default=0)
    steps = []
    for thing in wanted:
        mark = known.get(thing)
        if mark is None:
            number += 1
            steps.append(Step(thing, number, resumed=False))
        elif not mark.is_done:
            steps.append(Step(thing, mark.number, resumed=True))
    return tuple(steps)


def plan_down(marks: Sequence[Mark]) -> tuple[Mark, ...]:
    """Return what is to be removed, the last first: what came later may need what came before. Pure."""
    return tuple(sorted(marks, key=lambda mark: -mark.number))


def read_marks(objects: Objects) -> tuple[Mark, ...]:
    """Return the list, by number."""
    found: dict[int, Mark] = {}
    for key in objects.keys(FOLDER):
        content = objects.read(key)
        if content is not None:  # else somebody removes it at this moment
            mark = msgspec.json.decode(content, type=Mark)
            found[mark.number] = max(found.get(mark.number, mark), mark, key=lambda one: one.is_done)
    return tuple(found[number] for number in sorted(found))


def bring_up(
    wanted: Sequence[Thing], objects: Objects, maker: Maker, *, say: Callable[[str], None] = lambda line: None
) -> dict[Thing, str]:
    """
    Make what is still missing of a cluster.

    Returns:
        The ids of all that is wanted.

    Raises:
        NameTaken: something of somebody else is in the way, which is not put on the list.
    """
    marks = read_marks(objects)
    for step in plan_up(wanted, marks):
        _write(objects, Mark(step.number, step.thing))
        try:
            id = maker.make(step.thing, resumed=step.resumed)
        except NameTaken:
            objects.delete([_key(step.number, _BEGUN)])
            raise
        _write(objects, Mark(step.number, step.thing, id, is_done=True))
        say(f"{step.thing.kind} {step.thing.name} is there")
    ids = {mark.thing: mark.id for mark in read_marks(objects)}
    return {thing: ids[thing] for thing in wanted}


def take_down(objects: Objects, maker: Maker, *, say: Callable[[str], None] = lambda line: None) -> None:
    """
    Remove all that is on the list, and nothing else. What is gone already is passed over.

    Raises:
        StillThere: something could not be removed; it stays on the list, everything else is gone.
    """
    left: list[tuple[Thing, CortexError]] = []
    for mark in plan_down(read_marks(objects)):
        try:
            was_there = maker.remove(mark.thing, mark.id)
        except CortexError as error:
            left.append((mark.thing, error))
            continue
        objects.delete([_key(mark.number, _BEGUN), _key(mark.number, _DONE)])
        say(f"{mark.thing.kind} {mark.thing.name} {'is removed' if was_there else 'was gone already'}")
    if left:
        raise StillThere(left)


def _key(number: int, state: str) -> str:
    return f"{FOLDER}/{number:04d}/{state}"


def _write(objects: Objects, mark: Mark) -> None:
    objects.create(_key(mark.number, _DONE if mark.is_done else _BEGUN), msgspec.json.encode(mark))
