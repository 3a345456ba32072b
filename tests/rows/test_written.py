"""Models as they are found in the field, and graphs that were once proved wrongly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cases import Case, as_text
from judging import judge
from prover import proof_of
from written import read_cases, written_cases

WRITTEN = written_cases()


@pytest.mark.parametrize("case", WRITTEN, ids=[case.name for case in WRITTEN])
def test_what_is_written_is_proved_or_refused_as_it_says(case: Case) -> None:
    found = judge("", case)

    assert found.is_as_expected, found


def test_a_case_says_how_its_inputs_are_drawn(tmp_path: Path) -> None:
    path = tmp_path / "some.txt"
    path.write_text(
        "# about these\n\n== proved: the first\n"
        "# opset: 11\n# draw: ids whole 2 to 3\n# draw: text one of a 'b c'\n# size: L one of 4\n"
        "g (int64[N,L] ids, string[N] text) => (int64[N,L] y, string[N] z) { y = Add(ids, one) z = Identity(text) }\n"
        "== mixes: the second\ng (float[N] x) => (float[N] y) { y = Softmax<axis=0>(x) }\n"
    )

    first, second = read_cases(path)

    assert (first.name, first.expected, first.model.opset_import[0].version) == ("the first", "proved", 11)
    assert (second.name, second.expected) == ("the second", "mixes")
    for feeds in first.draw(np.random.default_rng(0)):
        assert feeds["ids"].shape == (len(feeds["text"]), 4)
        assert set(feeds["ids"].reshape(-1).tolist()) <= {2, 3}
        assert set(feeds["text"].tolist()) <= {"a", "b c"}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("== right: one\ng (float[N] x) => (float[N] y) { y = Relu(x) }", "right is none of"),
        ("== proved: one\n# colour: red\ng (float[N] x) => (float[N] y) { y = Relu(x) }", "# colour: red"),
        ("== proved: one\n# draw: x odd\ng (float[N] x) => (float[N] y) { y = Relu(x) }", "no way to draw values: odd"),
        ("== proved: one\ng (float[N] x => (float[N] y) { y = Relu(x) }", "some.txt: proved: one"),
    ],
)
def test_a_case_that_is_not_understood_names_its_file_and_what_is_wrong(
    tmp_path: Path, text: str, problem: str
) -> None:
    path = tmp_path / "some.txt"
    path.write_text(text)

    with pytest.raises(ValueError, match=r"some\.txt") as raised:
        list(read_cases(path))

    assert problem in str(raised.value)


def test_a_graph_that_was_written_as_text_is_the_same_when_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "some.txt"
    for case in WRITTEN:
        path.write_text(f"== {case.expected}: {case.name}\n{as_text(case.model)}\n")

        (again,) = read_cases(path)

        assert proof_of(again.model) == proof_of(case.model), case.name
