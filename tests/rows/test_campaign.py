"""A share of what `make rows` does: of the operators some others each time, of the graphs the same and new ones."""

from __future__ import annotations

import io
import os
import random
import re
from collections.abc import Iterator

import pytest
from campaign import Campaign, Progress, main, report
from pool import Pool

pytestmark = pytest.mark.slow

MODULES = 12
"""Operators of one module of so many are tried,"""
NODES = 6
"""of each at most so many cases."""
KNOWN_GRAPHS = 500
NEW_GRAPHS = 300


@pytest.fixture
def seed() -> int:
    """Another one each time, which pytest-randomly prints the origin of; in CI always the same."""
    return 0 if os.environ.get("CI") else random.randrange(10**6)


@pytest.fixture
def pool() -> Iterator[Pool]:
    with Pool(1) as pool:
        yield pool


def assert_nothing_is_wrong(campaign: Campaign) -> None:
    told = "\n".join(report(campaign, with_mutants=False))
    graphs = "\n".join(campaign.minimised(judgement) for judgement in campaign.totals.wrong)
    assert not campaign.totals.wrong, f"{told}\n{graphs}"
    assert campaign.totals.counts, "nothing was tried"


def test_what_is_proved_of_operators_is_right(pool: Pool, seed: int) -> None:
    campaign = Campaign(pool, seed=seed, progress=Progress(None))

    campaign.operators(MODULES, NODES)

    assert_nothing_is_wrong(campaign)
    assert campaign.totals.counts["operators", "proved, right"] > 10


def test_what_is_proved_of_known_graphs_is_right(pool: Pool) -> None:
    campaign = Campaign(pool, seed=0, progress=Progress(None))

    campaign.graphs(0, KNOWN_GRAPHS)

    assert_nothing_is_wrong(campaign)
    assert campaign.totals.counts["graphs", "proved, right"] > KNOWN_GRAPHS / 4


def test_what_is_proved_of_new_graphs_is_right(pool: Pool, seed: int) -> None:
    campaign = Campaign(pool, seed=10**6 + seed, progress=Progress(None))

    campaign.graphs(0, NEW_GRAPHS)

    assert_nothing_is_wrong(campaign)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_a_bar_on_a_terminal_and_lines_in_a_pipe() -> None:
    for stream in (Terminal(), io.StringIO()):
        with Progress(stream).of("graphs", 2) as step:
            step(0)
            step(1)

        told = stream.getvalue()
        assert ("[###" in told) == stream.isatty()
        assert re.search(r"graphs: 2 of 2 in \d+ s\n$", told)


def test_a_campaign_prints_its_seed_and_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["--seed", "5", "--graphs", "12", "--parts", "graphs", "--jobs", "1"])

    told = capsys.readouterr()
    assert code == 0
    assert told.out.startswith("seed 5\n")
    assert "proved and right" in told.out
    assert "graphs: 12 of 12 in" in told.err


def test_a_campaign_stops_when_its_time_is_over(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--seed", "5", "--graphs", "12", "--parts", "graphs", "--jobs", "1", "--seconds", "0"])

    assert "graphs: 0 of 12 in" in capsys.readouterr().err
