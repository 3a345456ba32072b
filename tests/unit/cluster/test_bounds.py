"""Who says how many nodes there may be."""

from __future__ import annotations

import pytest

from cortex.cluster.bounds import Bounds, BoundSource, NodeBound, decide, from_tags

VARIABLES = {"CORTEX_NODES_MIN": "3", "CORTEX_NODES_MAX": "8"}
HELD = Bounds(NodeBound(2, BoundSource.FILE), NodeBound(6, BoundSource.FLAG))


def decided(*args: object, **kwargs: object) -> Bounds:
    bounds, problems = decide(*args, **kwargs)  # type: ignore[arg-type]
    assert problems == ()
    assert bounds is not None
    return bounds


@pytest.mark.parametrize(
    ("file", "environ", "flags", "expected"),
    [
        ((None, None), {}, (None, None), ((1, "default"), (5, "default"))),
        ((2, 7), {}, (None, None), ((2, "file"), (7, "file"))),
        ((2, 7), VARIABLES, (None, None), ((3, "environment"), (8, "environment"))),
        ((2, 7), VARIABLES, (4, 9), ((4, "flag"), (9, "flag"))),
        ((2, None), {"CORTEX_NODES_MAX": "8"}, (4, None), ((4, "flag"), (8, "environment"))),
        ((2, 7), {"CORTEX_NODES_MIN": "", "CORTEX_NODES_MAX": " "}, (None, None), ((2, "file"), (7, "file"))),
        ((9, 3), {}, (1, None), ((1, "flag"), (3, "file"))),
    ],
)
def test_a_flag_comes_before_a_variable_and_that_before_the_file(
    file: tuple[int | None, int | None],
    environ: dict[str, str],
    flags: tuple[int | None, int | None],
    expected: tuple[tuple[int, str], tuple[int, str]],
) -> None:
    bounds = decided(file, environ, flags)
    assert tuple((bound.nodes, str(bound.source)) for bound in (bounds.minimum, bounds.maximum)) == expected


def test_there_are_no_more_nodes_than_hosts() -> None:
    assert decided((None, None), {}, (None, None), hosts=3).maximum == NodeBound(3, BoundSource.HOSTS)
    assert decided((None, 9), {}, (None, None), hosts=3).maximum == NodeBound(3, BoundSource.HOSTS)
    assert decided((None, 2), {}, (None, None), hosts=3).maximum == NodeBound(2, BoundSource.FILE)


def test_the_head_is_one_of_the_nodes() -> None:
    assert decided((1, 1), {}, (None, None)).workers == (0, 0)
    assert decided((2, 7), {}, (None, None)).workers == (1, 6)


def test_every_variable_that_is_wrong_is_told() -> None:
    bounds, problems = decide((None, None), {"CORTEX_NODES_MIN": "0", "CORTEX_NODES_MAX": "1e3"}, (None, None))
    assert bounds is None
    assert [problem.message for problem in problems] == [
        'CORTEX_NODES_MIN: expected a number of nodes from 1, found "0"',
        'CORTEX_NODES_MAX: expected a number of nodes from 1, found "1e3"',
    ]


def test_bounds_are_read_back_from_the_tags_that_they_are_written_as() -> None:
    assert HELD.tags() == {"cortex:nodes-min": "2", "cortex:nodes-max": "6"}
    assert from_tags(HELD, HELD.tags()) == (HELD, "")


@pytest.mark.parametrize(
    ("tags", "expected", "told"),
    [
        ({}, HELD, ""),
        ({"cortex:nodes-max": " 9 ", "Name": "x"}, Bounds(HELD.minimum, NodeBound(9, BoundSource.TAGS)), ""),
        ({"cortex:nodes-min": "6"}, Bounds(NodeBound(6, BoundSource.TAGS), HELD.maximum), ""),
        ({"cortex:nodes-min": ""}, HELD, ""),
        (
            {"cortex:nodes-min": "many", "cortex:nodes-max": "4"},
            Bounds(HELD.minimum, NodeBound(4, BoundSource.TAGS)),
            'tag cortex:nodes-min: expected a number of nodes from 1, found "many"',
        ),
        ({"cortex:nodes-min": "7"}, HELD, "tags: cortex:nodes-min 7 is more than cortex:nodes-max 6"),
        (
            {"cortex:nodes-max": "0"},
            HELD,
            'tag cortex:nodes-max: expected a number of nodes from 1, found "0"',
        ),
    ],
)
def test_what_is_typed_into_tags_holds_as_far_as_it_can_be_meant(
    tags: dict[str, str], expected: Bounds, told: str
) -> None:
    assert from_tags(HELD, tags) == (expected, told)
