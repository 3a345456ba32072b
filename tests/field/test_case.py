"""Whether a case file that is wrong, or a thing that is not as it should be, is noticed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from case import BadCase, Seen, Step, agrees, differences, read_case

HERE = Path(__file__).parent
HEAD = "finding: X\nwas: wrong\nright: better\nsteps:\n"


@pytest.mark.parametrize("path", sorted(HERE.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_case_can_be_read(path: Path) -> None:
    case = read_case(path)
    assert case.steps
    assert path.stem.startswith(case.finding.lower())


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ("  - {}\n", "step 1 has none of cortex, shell"),
        ("  - {cortex: deploy, get: a/b}\n", "step 1 has cortex and get"),
        ("  - {post: a/b, json: 1, text: one}\n", "step 1 has several bodies"),
        ("  - {cortex: deploy, sayz: [no]}\n", "sayz"),
        ("  - {cortex: deploy, exit: one}\n", "int"),
        ("  - [\n", "2.yaml"),
    ],
)
def test_a_file_that_is_no_case_says_what_is_wrong(tmp_path: Path, steps: str, words: str) -> None:
    (tmp_path / "2.yaml").write_text(HEAD + steps)
    with pytest.raises(BadCase, match=r"^2\.yaml: ") as raised:
        read_case(tmp_path / "2.yaml")
    assert words in str(raised.value)


@pytest.mark.parametrize(
    ("step", "seen", "wrong"),
    [
        (Step(cortex="get"), Seen(code=1), "exit code 1, not 0"),
        (Step(cortex="get", exit=1), Seen(code=0), "exit code 0, not 1"),
        (Step(post="a"), Seen(code=500), "status 500, not 200"),
        (Step(post="a", status=422), Seen(code=200), "status 200, not 422"),
        (Step(get="a", says=["b"]), Seen(code=200, text="a"), "it does not say 'b'"),
        (Step(cortex="get", width=3), Seen(code=0, text="abc\nabcd"), "it is wider than 3 columns: abcd"),
        (Step(get="a", never=["a"]), Seen(code=200, text="a"), "it says 'a'"),
        (Step(get="a", answer=[1]), Seen(code=200, text="a"), "it is no JSON"),
        (Step(get="a", answer=None), Seen(code=200, value=0), "it is not null"),
        (Step(get="a", has={"a": 1}), Seen(code=200, value={"b": 1}), 'it does not have {"a":1}'),
    ],
)
def test_what_is_not_as_the_step_says_is_told(step: Step, seen: Seen, wrong: str) -> None:
    assert differences(step, seen) == [wrong]


@pytest.mark.parametrize(
    ("step", "seen"),
    [
        (Step(cortex="get"), Seen(code=0)),
        (Step(post="a", status=422, says=["b"], never=["c"]), Seen(code=422, text="abd")),
        (Step(kill="a"), Seen()),
        (Step(cortex="get", width=3), Seen(code=0, text="abc\nde")),
        (Step(get="a", has={"a": [{"b": 1.0}]}), Seen(code=200, value={"a": [{"b": 1, "c": 2}], "d": 3})),
    ],
)
def test_what_is_as_the_step_says_is_right(step: Step, seen: Seen) -> None:
    assert differences(step, seen) == []


@pytest.mark.parametrize(
    ("seen", "wanted", "same"),
    [
        (1.0000001, 1.0, True),
        (1.001, 1.0, False),
        (1, 1.0, True),
        (True, 1, False),
        (True, 1.0, False),
        (None, msgspec.UNSET, False),
        ("1", 1, False),
        ([1, 2], [1], False),
        ({"a": 1, "b": 2}, {"a": 1}, False),
    ],
)
def test_values_are_the_same_up_to_rounding_and_no_further(seen: Any, wanted: Any, same: bool) -> None:
    assert agrees(seen, wanted, whole=True) is same
