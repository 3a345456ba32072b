"""How `make conformance` reads what pytest says, and what its table shows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from engines import LEFT_OUT, left_out
from results import Result, differences, read_report, table

ROOT = Path(__file__).parents[2]
REPORT = """\
<testsuites><testsuite name="pytest" errors="1" failures="1" skipped="2" tests="5">
<testcase name="test_a" /><testcase name="test_b[1]"><failure message="no">trace</failure></testcase>
<testcase name="test_c"><skipped type="pytest.skip" message="no compiler">x.py:3</skipped></testcase>
<testcase name="test_d"><skipped type="pytest.skip" message="no compiler">x.py:3</skipped></testcase>
<testcase name="test_e"><error message="at teardown">trace</error></testcase>
</testsuite></testsuites>
"""
LOCAL = {"test_x.py": Result(3), "test_y.py": Result(1, left_out={"no compiler": 2})}
SEVERAL = {"test_x.py": Result(1, ("test_b[1]",), {"shares (docs/nodes.md)": 1})}
NAMED = ["shares (docs/nodes.md)"]


def test_a_report_is_read(tmp_path: Path) -> None:
    file = tmp_path / "report.xml"
    file.write_text(REPORT)
    assert read_report(file) == Result(1, ("test_b[1]", "test_e"), {"no compiler": 2})


def test_the_table_has_a_line_for_each_file_and_says_what_failed_and_why_tests_are_left_out() -> None:
    assert table({"local": LOCAL, "nodes-3": SEVERAL}) == (
        "           local                 nodes-3\n"
        "test_x.py  3 passed              1 passed, 1 FAILED, 1 left out\n"
        "test_y.py  1 passed, 2 left out  -\n"
        "\n"
        "left out on local\n"
        "  test_y.py: 2, no compiler\n"
        "\n"
        "left out on nodes-3\n"
        "  test_x.py: 1, shares (docs/nodes.md)\n"
        "\n"
        "failed on nodes-3\n"
        "  test_x.py: test_b[1]\n"
    )


@pytest.mark.parametrize(
    ("several", "wrong"),
    [
        (Result(3), []),
        (Result(2, left_out={"shares (docs/nodes.md)": 1}), []),
        (Result(2, left_out={"no compiler": 1}), []),
        (Result(2, left_out={"too slow": 1}), ["nodes-3: left out: too slow"]),
        (Result(2, ("test_b",)), ["nodes-3: test_x.py: test_b failed"]),
    ],
)
def test_engines_are_the_same_but_for_what_the_design_names(several: Result, wrong: list[str]) -> None:
    local = {"test_x.py": Result(2, left_out={"no compiler": 1})}
    nodes = {"test_x.py": several, "test_y.py": Result(left_out={"no compiler": 1})}
    assert differences({"local": local, "nodes-3": nodes}, NAMED) == wrong


@pytest.mark.parametrize(("what", "why"), LEFT_OUT.items())
def test_what_is_left_out_is_there_and_the_reason_names_a_page(what: str, why: str) -> None:
    file, _, test = what.partition("::")
    assert f"def {test}" in (ROOT / "tests" / "e2e" / file).read_text()
    pages = re.findall(r"docs/\S+\.md", why)
    assert pages
    assert all((ROOT / page).is_file() for page in pages)


def test_nothing_is_left_out_on_one_machine() -> None:
    file, _, test = next(iter(LEFT_OUT)).partition("::")
    assert left_out(file, test, "local") == ""
    assert left_out(file, test, "nodes-3") != ""
