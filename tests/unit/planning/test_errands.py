"""On which node an errand is run."""

from __future__ import annotations

from typing import Any

import pytest

from cortex.ids import NodeId
from cortex.planning.errands import NOTHING, ErrandPlace, best_place
from cortex.testing.builders import a_node
from cortex.wire.build import Resources

GIB = 2**30
ON_GPU = Resources(gpus=1)
IN_MEMORY = Resources(mem_bytes=4 * GIB)


def a_place(name: str, *, gpus: int = 0, mem_bytes: int = 16 * GIB, **facts: Any) -> ErrandPlace:
    return ErrandPlace(node=a_node(NodeId(name), gpus=gpus, mem_bytes=mem_bytes), **facts)


def chosen(*places: ErrandPlace, asked: Resources = NOTHING) -> str | None:
    found = best_place(places, asked)
    return found.node.node if found is not None else None


@pytest.mark.parametrize(
    ("worse", "better"),
    [
        ({"is_out": True}, {"failures": 3}),
        ({"failures": 1}, {"is_heard": False}),
        ({"is_heard": False}, {"is_short": True}),
        ({"is_short": True}, {"replicas": 9, "of_api": 9, "errands": 9}),
        ({"errands": 0}, {"errands": 4, "has_packages": True}),
        ({"errands": 2}, {"errands": 1, "of_api": 5}),
        ({"of_api": 1}, {"replicas": 7}),
        ({"replicas": 2}, {"replicas": 1}),
    ],
)
def test_of_two_places_that_fit_the_better_one_is_chosen(worse: dict[str, Any], better: dict[str, Any]) -> None:
    assert chosen(a_place("a", **worse), a_place("b", **better)) == "b"
    assert chosen(a_place("b", **better), a_place("a", **worse)) == "b"


def test_places_that_are_alike_are_told_apart_by_name() -> None:
    assert chosen(a_place("b"), a_place("a"), a_place("c")) == "a"


@pytest.mark.parametrize(("asked", "lacking"), [(ON_GPU, {}), (IN_MEMORY, {"mem_bytes": 2 * GIB})])
def test_a_node_that_never_has_what_is_asked_for_is_not_chosen(asked: Resources, lacking: dict[str, int]) -> None:
    assert chosen(a_place("a", **lacking), a_place("b", gpus=1, failures=9, is_out=True), asked=asked) == "b"
    assert chosen(a_place("a", **lacking), asked=asked) is None
    assert chosen(asked=asked) is None


@pytest.mark.parametrize(
    ("asked", "held"), [(ON_GPU, Resources(gpus=1)), (IN_MEMORY, Resources(cpu_millis=0, mem_bytes=13 * GIB))]
)
def test_room_that_nobody_holds_comes_before_where_packages_are(asked: Resources, held: Resources) -> None:
    busy, free = a_place("a", gpus=1, requested=held, has_packages=True), a_place("b", gpus=1)
    assert chosen(busy, free, asked=asked) == "b"
    assert chosen(busy, asked=asked) == "a", "what is held may be given up for it"


def test_cpu_that_is_requested_keeps_nothing_away() -> None:
    asked, requested = Resources(cpu_millis=64_000), Resources(cpu_millis=8000)
    assert chosen(a_place("a", requested=requested), a_place("b", replicas=1), asked=asked) == "a"
