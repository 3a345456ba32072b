"""`bench/soak.py`: what it calls flat, and what it calls growth."""

from __future__ import annotations

import pytest
from drawing import page
from soak import Look, line_through, lines_of


def looks(*values: float, name: str = "agent, MB") -> list[Look]:
    return [Look(redeploys=number, requests=1000 * number, found={name: value}) for number, value in enumerate(values)]


def test_a_value_that_stays_is_flat() -> None:
    (line,) = lines_of(looks(*[50.0] * 30))
    assert line.is_flat
    assert line.per_thousand == 0.0


def test_a_value_that_rises_all_the_time_grows() -> None:
    (line,) = lines_of(looks(*[50.0 + number for number in range(30)]))
    assert not line.is_flat
    assert line.per_thousand == pytest.approx(1000.0)


def test_what_rises_at_the_beginning_alone_is_flat() -> None:
    (line,) = lines_of(looks(*range(10), *[10.0] * 20))
    assert line.is_flat


def test_what_goes_up_and_down_is_flat() -> None:
    (line,) = lines_of(looks(*[5.0, 40.0] * 20, name="replica, processes"))
    assert line.is_flat


@pytest.mark.parametrize(("rise", "is_flat"), [(2.0, True), (4.0, False)])
def test_a_small_rise_says_nothing_by_its_unit(rise: float, is_flat: bool) -> None:
    assert line_through("keeper, MB", [(0, 10.0), (100, 10.0 + rise)]).is_flat is is_flat


def test_what_is_kept_by_intent_is_not_judged() -> None:
    (line,) = lines_of(looks(*map(float, range(300)), name="home/artifacts, files"))
    assert not line.is_judged
    assert line_through("home/state.db, MB", [(0, 1.0), (1, 1.0)]).is_judged


def test_a_value_that_was_there_only_once_has_no_line() -> None:
    found = [*looks(1.0, 1.0, 1.0), Look(3, 3000, {"agent, MB": 1.0, "launcher, MB": 70.0})]
    assert [line.name for line in lines_of(found)] == ["agent, MB"]


def test_a_page_has_each_panel_and_each_line() -> None:
    drawn = page({"MB": {"agent": [(0, 1), (1000, 2)], "keeper": []}, "files": {"home": [(0, 0), (0, 0)]}}, "redeploys")
    assert drawn.count("<g ") == 2
    for word in ("MB", "files", "agent", "keeper", "home", "redeploys", "1,000"):
        assert f">{word}</text>" in drawn
