"""A share of what `make rows` does: of the operators some others each time, of the graphs the same and new ones."""

from __future__ import annotations

import io
import os
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from campaign import Campaign, Progress, main, report
from operator_cases import modules
from pool import Pool
from prover import proof_of
from random_graphs import random_case
from sources import cases_of

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


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    """One for all that end nothing in it: its process takes a second to import what it runs."""
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


CRASHING = """
import os, signal, sys
sys.path.insert(0, {here!r})
from worker import main, _TASKS
judge, alone = _TASKS["judge"], _TASKS["run alone"]
def crash(task):
    os.kill(os.getpid(), signal.SIGSEGV)
def judged(task):
    return crash(task) if task["key"] in {judged!r} else judge(task)
def run_alone(task):
    return crash(task) if task["key"] in {alone!r} else alone(task)
_TASKS.update({{"judge": judged, "run alone": run_alone}})
sys.exit(main())
"""


def crashing(tmp_path: Path, *, judged: list[str], alone: list[str]) -> Pool:
    """Processes that a runtime ends at these keys, as they are judged, and as their requests run alone."""
    path = tmp_path / "worker.py"
    path.write_text(CRASHING.format(here=str(Path(__file__).parent), judged=judged, alone=alone))
    return Pool(1, command=[sys.executable, str(path)])


def test_a_graph_that_ends_the_runtime_is_told_and_counted_and_the_rest_goes_on(tmp_path: Path) -> None:
    with crashing(tmp_path, judged=["random:3"], alone=["random:3"]) as pool:
        campaign = Campaign(pool, seed=0, progress=Progress(None))
        campaign.graphs(0, 6)

    assert [judgement.key for judgement in campaign.totals.crashed] == ["random:3"]
    assert not campaign.totals.wrong
    assert not campaign.totals.lost
    assert campaign.totals.counts.total() == 6
    assert "runtime crashed: random:3" in report(campaign, with_mutants=False)


def test_a_proved_graph_that_ends_the_runtime_in_batches_alone_is_proved_wrongly(tmp_path: Path) -> None:
    proved = next(f"random:{seed}" for seed in range(100) if proof_of(random_case(seed).model).proved)
    with crashing(tmp_path, judged=[proved], alone=[]) as pool:
        campaign = Campaign(pool, seed=int(proved.partition(":")[2]), progress=Progress(None))
        campaign.graphs(0, 1)

    assert [(judgement.key, judgement.problem) for judgement in campaign.totals.wrong] == [(proved, "failure")]


def test_of_an_operator_that_ends_the_runtime_the_other_cases_are_judged(tmp_path: Path) -> None:
    names = modules()
    node = f"operator:{names[0]}:0"
    variants = list(cases_of(node))
    assert len(variants) > 1
    with crashing(tmp_path, judged=[node, variants[0]], alone=[variants[0]]) as pool:
        campaign = Campaign(pool, seed=0, progress=Progress(None))
        campaign.operators(len(names), 1)

    assert [judgement.key for judgement in campaign.totals.crashed] == [variants[0]]
    assert campaign.totals.counts.total() == len(variants)


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
