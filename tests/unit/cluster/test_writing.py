"""YAML that every reader takes alike."""

from __future__ import annotations

import io
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from cortex.cluster.writing import as_yaml

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
SCALARS = st.none() | st.booleans() | st.integers() | FLOATS | TEXT
TREES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=12,
)


def readers() -> list[Any]:
    import yaml

    return [YAML(typ="safe", pure=True).load, yaml.safe_load]


@pytest.mark.parametrize("number", [0, 1], ids=["YAML 1.2", "YAML 1.1"])
@pytest.mark.parametrize(
    "value",
    [
        *(
            "no",
            "ON",
            "y",
            "null",
            "~",
            "~/x",
            "1_000",
            "012",
            "10:20",
            "1e3",
            "2.60",
            "a: b",
            "a #b",
            "- a",
            "*a",
            "&a",
        ),
        *(
            "!a",
            "%a",
            "@a",
            "`a`",
            "{a",
            "[a",
            "'a",
            '"a',
            "",
            " a",
            "a ",
            "a\n",
            "a\nb\n",
            "\n",
            "a\n\n",
            " a\nb\n",
            "=",
            "<<",
        ),
        *("s3://models/cortex", "x\\y", "é", "🙂", "/dev/sda1", "2026-01-31", ".inf", "0x10", "---", "..."),
        *(1, -1, 0.5, True, None, [], {}, [[1, [2]], {"a": []}], {"a": {"b": [{"c": 1, "d": [1]}, {}]}}),
    ],
    ids=repr,
)
def test_what_is_written_is_read_back(value: Any, number: int) -> None:
    pytest.importorskip("yaml")
    for document in ({"key": value}, {"key": [value, value]}, {"key": [{"a": value, "b": value}]}):
        assert readers()[number](io.StringIO(as_yaml(document, comment=("a cluster", "")))) == document


@given(st.dictionaries(TEXT, TREES, max_size=4))
def test_any_tree_is_read_back(tree: dict[str, Any]) -> None:
    assert (YAML(typ="safe", pure=True).load(io.StringIO(as_yaml(tree))) or {}) == tree


def test_it_reads_as_a_person_would_write_it() -> None:
    tree = {
        "name": "prod",
        "hosts": ["a", "b"],
        "node": {"cpu": "4", "env": [{"name": "A", "value": "no"}]},
        "empty": {},
    }
    assert as_yaml(tree, comment=("what it is",)) == (
        "# what it is\n"
        "name: prod\n"
        "hosts:\n"
        "  - a\n"
        "  - b\n"
        "node:\n"
        '  cpu: "4"\n'
        "  env:\n"
        "    - name: A\n"
        '      value: "no"\n'
        "empty: {}\n"
    )
