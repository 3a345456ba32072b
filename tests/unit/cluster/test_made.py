"""The list of what is made: commands are killed at every step, a cloud refuses, and nothing is left behind."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest

from cortex.cluster.made import (
    Mark,
    NameTaken,
    Step,
    StillThere,
    Thing,
    bring_up,
    plan_down,
    plan_up,
    read_marks,
    take_down,
)
from cortex.errors import CortexError

KEY, ROLE, GROUP = (Thing(kind, "cortex-prod") for kind in ("key pair", "role", "group"))
WANTED = (KEY, ROLE, GROUP)


class Killed(BaseException):
    """The command ends here."""


class Shelf:
    """Objects in memory, counting what is asked; ends the command before or after one of the calls."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.left = -1
        """Calls that change something until the command ends; an odd number of half calls: after it was done."""

    def create(self, key: str, content: bytes) -> bool:
        self._half()
        is_new = key not in self.objects
        self.objects.setdefault(key, content)
        self._half()
        return is_new

    def read(self, key: str) -> bytes | None:
        return self.objects.get(key)

    def keys(self, folder: str) -> list[str]:
        return sorted(key for key in self.objects if key.startswith(f"{folder}/"))

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            self._half()
            self.objects.pop(key, None)
        self._half()

    def _half(self) -> None:
        if self.left == 0:
            raise Killed
        self.left -= 1


class Cloud:
    """Things by kind and name, each with an owner."""

    def __init__(self, shelf: Shelf) -> None:
        self.things: dict[Thing, str] = {}
        self.asked: list[tuple[str, Thing]] = []
        self.refuses: dict[Thing, str] = {}
        self._shelf = shelf

    def make(self, thing: Thing, *, resumed: bool) -> str:
        self.asked.append(("make", thing))
        self._half()
        if self.things.setdefault(thing, "us") != "us":
            raise NameTaken(thing)
        self._half()
        return f"id of {thing.kind}"

    def remove(self, thing: Thing, id: str) -> bool:
        self.asked.append(("remove", thing))
        if thing in self.refuses:
            raise CortexError(self.refuses[thing])
        self._half()
        there = self.things.get(thing) == "us"
        if there:
            del self.things[thing]
        self._half()
        return there

    def _half(self) -> None:
        if self._shelf.left == 0:
            raise Killed
        self._shelf.left -= 1


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


@pytest.fixture
def cloud(shelf: Shelf) -> Cloud:
    return Cloud(shelf)


def test_what_is_missing_is_made_in_its_order() -> None:
    marks = (Mark(1, KEY, "k", is_done=True), Mark(4, ROLE))
    assert plan_up(WANTED, marks) == (Step(ROLE, 4, resumed=True), Step(GROUP, 5, resumed=False))
    assert plan_up(WANTED, ()) == tuple(Step(thing, number, resumed=False) for number, thing in enumerate(WANTED, 1))
    assert plan_up((KEY,), marks) == ()


def test_what_came_last_is_removed_first() -> None:
    marks = (Mark(1, KEY), Mark(3, GROUP), Mark(2, ROLE))
    assert [mark.number for mark in plan_down(marks)] == [3, 2, 1]


def test_a_cluster_is_made_once(shelf: Shelf, cloud: Cloud) -> None:
    said: list[str] = []
    ids = {KEY: "id of key pair", ROLE: "id of role", GROUP: "id of group"}
    assert bring_up(WANTED, shelf, cloud, say=said.append) == ids
    assert said == ["key pair cortex-prod is there", "role cortex-prod is there", "group cortex-prod is there"]
    assert bring_up(WANTED, shelf, cloud) == ids
    assert cloud.asked == [("make", thing) for thing in WANTED]


def test_a_cluster_is_removed_once_and_what_is_not_listed_stays(shelf: Shelf, cloud: Cloud) -> None:
    other = Thing("role", "somebody's")
    cloud.things[other] = "us"
    bring_up(WANTED, shelf, cloud)
    take_down(shelf, cloud)
    assert (cloud.things, shelf.objects) == ({other: "us"}, {})
    assert cloud.asked[3:] == [("remove", thing) for thing in reversed(WANTED)]
    take_down(shelf, cloud)
    assert len(cloud.asked) == 6


def test_what_is_gone_already_is_passed_over_and_said(shelf: Shelf, cloud: Cloud) -> None:
    bring_up(WANTED, shelf, cloud)
    del cloud.things[ROLE]
    said: list[str] = []
    take_down(shelf, cloud, say=said.append)
    assert said == [
        "group cortex-prod is removed",
        "role cortex-prod was gone already",
        "key pair cortex-prod is removed",
    ]


def test_what_somebody_else_has_is_neither_listed_nor_removed(shelf: Shelf, cloud: Cloud) -> None:
    cloud.things[ROLE] = "them"
    with pytest.raises(NameTaken, match="a role cortex-prod exists already"):
        bring_up(WANTED, shelf, cloud)
    assert [mark.thing for mark in read_marks(shelf)] == [KEY]
    take_down(shelf, cloud)
    assert (cloud.things, shelf.objects) == ({ROLE: "them"}, {})


def test_what_cannot_be_removed_stays_on_the_list_and_the_rest_is_gone(shelf: Shelf, cloud: Cloud) -> None:
    bring_up(WANTED, shelf, cloud)
    cloud.refuses[ROLE] = "no rights"
    with pytest.raises(StillThere) as caught:
        take_down(shelf, cloud)
    assert [problem.message for problem in caught.value.problems] == [
        "role cortex-prod could not be removed: no rights"
    ]
    assert (list(cloud.things), [mark.thing for mark in read_marks(shelf)]) == ([ROLE], [ROLE])
    cloud.refuses.clear()
    take_down(shelf, cloud)
    assert (cloud.things, shelf.objects) == ({}, {})


def steps_until_done(command: Callable[[], object], shelf: Shelf) -> int:
    shelf.left = 10_000
    command()
    return 10_000 - shelf.left


def test_a_command_that_is_killed_anywhere_is_taken_up_or_taken_back_by_the_next() -> None:
    count = (new := Shelf(), Cloud(new))
    ups = steps_until_done(lambda: bring_up(WANTED, *count), count[0])
    downs = steps_until_done(lambda: take_down(*count), count[0])
    assert (ups, downs) == (18, 15)
    for after in range(ups):
        for goes_on in (True, False):
            shelf = Shelf()
            cloud = Cloud(shelf)
            shelf.left = after
            with pytest.raises(Killed):
                bring_up(WANTED, shelf, cloud)
            shelf.left = -1
            listed = {mark.thing for mark in read_marks(shelf)}
            assert set(cloud.things) <= listed, "nothing is there that is on no list"
            if goes_on:
                assert len(bring_up(WANTED, shelf, cloud)) == 3
                assert set(cloud.things) == set(WANTED)
            for killed in range(downs):
                shelf.left = killed
                try:
                    take_down(shelf, cloud)
                except Killed:
                    shelf.left = -1
                    assert set(cloud.things) <= {mark.thing for mark in read_marks(shelf)}
            shelf.left = -1
            take_down(shelf, cloud)
            assert (cloud.things, shelf.objects) == ({}, {})
