"""
Proves cases and runs them, and says where the two differ: `make rows`.

`python tests/rows/campaign.py [--graphs N] [--seconds S] [--seed SEED] [--jobs J] [--parts PART…]`. Exits 0 only when
nothing that is proved was wrong, every case that somebody wrote is as it says, and each rule of the prover has a case
that fails without its check. Wrongly proved graphs are printed as small as they could be made, and kept in `--keep`; so
are those that end the runtime by a signal, which is no failure unless it survives each request alone.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final

import msgspec
from cases import as_text
from judging import Judgement, crashed
from mutants import ANSWERS_ONLY, GONE, Mutant, Trace, mutants, rule_functions
from operator_cases import modules, nodes_of
from pool import Done, Pool, Task
from sources import case_of, cases_of, written

PARTS: Final = ("cases", "operators", "graphs", "mutants")
GRAPHS: Final = 50_000
_BATCHES: Final = 6
_GRAPHS_BEFORE_MUTANTS: Final = 3_000
"""So many graphs of which some are refused and wrong help to show that a check is needed."""
_REFUSED_GRAPHS_RUN: Final = 10
"""Of the graphs that are refused one in so many is run: whether many look right."""
_MOST_CASES_A_MUTANT: Final = 300
"""So many that were refused in its function, and so many that only met it,"""
_MOST_MOVING_A_MUTANT: Final = 60
"""and of those that round so many."""
_SHOWN: Final = 25


@dataclass
class Totals:
    """What a campaign has seen so far."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By part and outcome."""
    wrong: list[Judgement] = field(default_factory=list)
    unexpected: list[Judgement] = field(default_factory=list)
    crashed: list[Judgement] = field(default_factory=list)
    lost: list[Done] = field(default_factory=list)
    missed: Counter[str] = field(default_factory=Counter)
    """Why what looked right was refused."""
    missed_names: dict[str, str] = field(default_factory=dict)
    """An example of each."""
    operators: Counter[str] = field(default_factory=Counter)
    """In graphs that are proved and right."""
    rows: Counter[str] = field(default_factory=Counter)
    """Rows of what is proved and right, by what rounding may do."""
    flipped: Counter[str] = field(default_factory=Counter)
    """Those of them that were labelled or stepped otherwise,"""
    unexplained: Counter[str] = field(default_factory=Counter)
    """and of these the ones that are not by themselves, however sums round."""
    worst: dict[str, float] = field(default_factory=dict)
    """The largest difference of each kind, as a share of what the tolerance allows."""
    mixing: list[str] = field(default_factory=list)
    """Keys of cases that are refused and wrong: one of them has to be proved where a check is missing,"""
    moving: list[str] = field(default_factory=list)
    """or one of these, whose rows differ by bits, be `exact`."""

    def add(self, part: str, judgement: Judgement) -> None:
        outcome = f"{'proved' if judgement.proved else 'refused'}, {judgement.seen}"
        self.counts[part, outcome] += 1
        if judgement.is_wrongly_proved:
            self.wrong.append(judgement)
        if judgement.seen == "crashed":
            self.crashed.append(judgement)
        if judgement.expected and not judgement.is_as_expected:
            self.unexpected.append(judgement)
        if judgement.proved:
            kind = judgement.rounding
            self.operators.update(judgement.operators)
            self.rows[kind] += judgement.rows
            self.flipped[kind] += judgement.flipped
            self.unexplained[kind] += judgement.unexplained
            self.worst[kind] = max(judgement.worst, self.worst.get(kind, 0.0))
            if judgement.moved:
                self.moving.append(judgement.key)
        elif judgement.seen == "wrong":
            self.mixing.append(judgement.key)
        elif judgement.seen == "right" and judgement.expected != "refused":
            operator = judgement.operator.split(" ")[0]
            reason = f"{operator}: {judgement.reason}" if operator else judgement.reason
            self.missed[reason] += 1
            self.missed_names.setdefault(reason, judgement.name)


class Campaign:
    """
    Args:
        pool: who carries out tasks.
        seed: of requests and of the first graph.
        progress: what is told how far it is.
        until_s: on `time.monotonic`, after which nothing new begins.
    """

    def __init__(self, pool: Pool, *, seed: int, progress: Progress, until_s: float | None = None) -> None:
        self.totals = Totals()
        self.survivors: list[Mutant] = []
        self.killed: dict[Mutant, str] = {}
        self._pool = pool
        self._seed = seed
        self._progress = progress
        self._until_s = until_s

    def cases(self) -> None:
        """Those that somebody wrote, or that were found."""
        keys = list(written())
        self._judge("cases", (self._task(key) for key in keys), len(keys))

    def operators(self, share: int = 1, most: int | None = None) -> None:
        """
        Node cases of the `onnx` package, and our own.

        Args:
            share: those of one module of so many.
            most: of each of these at most so many nodes.
        """
        names = modules()
        keys = []
        for module in names[self._seed % share :: share]:
            nodes = range(len(nodes_of(module)))
            step = 1 if most is None else -(-len(nodes) // most) or 1
            keys += [f"operator:{module}:{node}" for node in nodes[self._seed % step :: step]]
        self._judge("operators", (self._task(key) for key in keys), len(keys))

    def graphs(self, first: int, count: int) -> None:
        """Random graphs, numbered from the seed."""
        seeds = range(self._seed + first, self._seed + first + count)
        tasks = (
            self._task(f"random:{seed}", examine_refused=seed % _REFUSED_GRAPHS_RUN == 0 or first == 0)
            for seed in seeds
        )
        self._judge("graphs", tasks, count)

    def mutants(self) -> None:
        """Take each check out by itself, and ask for the cases that its function looked at."""
        refused, ran = self._traced([*self.totals.mixing, *self.totals.moving])
        moving = frozenset(self.totals.moving)
        # SavedModels have cases of their own, and that a rule is needed at all only what is proved shows.
        found = [one for one in mutants() if not one.is_of_tensorflow and one.text != GONE]
        spread = random.Random(self._seed)

        def some(keys: Sequence[str], most: int = _MOST_CASES_A_MUTANT) -> list[str]:
            return spread.sample(keys, min(len(keys), most))

        def task(mutant: Mutant) -> Task:
            name = f"{mutant.module}:{mutant.function}"
            met = ran.get(name, [*self.totals.mixing, *self.totals.moving])
            mixing = [key for key in met if key not in moving]
            written = [key for key in mixing if key.startswith("case:")]
            return {
                "do": "mutant",
                "mutant": msgspec.to_builtins(mutant),
                "mixing": list(
                    dict.fromkeys([*written, *some([key for key in refused[name] if key not in moving]), *some(mixing)])
                ),
                "moving": some([key for key in met if key in moving], _MOST_MOVING_A_MUTANT),
            }

        for done in self._carry_out("mutants", map(task, found), len(found)):
            mutant = msgspec.convert(done.task["mutant"], Mutant)
            if done.result is None:
                self.survivors.append(mutant)
            else:
                self.killed[mutant] = done.result
        self.survivors.sort()

    def _traced(self, keys: Sequence[str]) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
        """Keys of cases by the functions that were at work when something was refused, and by those that ran at all."""
        refused: dict[str, list[str]] = defaultdict(list)
        ran: dict[str, list[str]] = defaultdict(list)
        chunks = [keys[start : start + 50] for start in range(0, len(keys), 50)]
        tasks: Iterable[Task] = ({"do": "trace", "keys": chunk} for chunk in chunks)
        for done in self._carry_out("what cases meet", tasks, len(chunks)):
            for key, trace in msgspec.convert(done.result or {}, dict[str, Trace]).items():
                for function in trace.refused:
                    refused[function].append(key)
                for function in trace.ran:
                    ran[function].append(key)
        return refused, ran

    def unkilled_rules(self) -> list[tuple[str, str]]:
        """Rules without which nothing that was tried goes wrong."""
        killed = {(mutant.module, mutant.function) for mutant in self.killed}
        ours = {(mutant.module, mutant.function) for mutant in [*self.killed, *self.survivors]} & rule_functions()
        return sorted(ours - killed - set(ANSWERS_ONLY))

    def minimised(self, judgement: Judgement) -> str:
        """A wrongly proved case as text, as small as it could be made."""
        (done,) = self._pool.carry_out([{"do": "minimise", "key": judgement.key, "seed": self._seed}])
        return str(done.result) if not done.lost else as_text(case_of(judgement.key).model)

    def _task(self, key: str, *, examine_refused: bool = True) -> Task:
        return {
            "do": "judge", "key": key, "seed": self._seed, "batches": _BATCHES, "examine_refused": examine_refused,
        }  # fmt: skip

    def _judge(self, part: str, tasks: Iterable[Task], count: int) -> None:
        """Judge what keys stand for; where a process ends one of several cases each is judged by itself."""
        ended = list(self._judged(part, tasks, count))
        keys = [(done.task, key) for done in ended for key in cases_of(done.task["key"])]
        if len(keys) > len(ended):
            ended = list(self._judged(f"{part} again", ({**task, "key": key} for task, key in keys), len(keys)))
        again: Iterable[Task] = ({**done.task, "do": "run alone"} for done in ended)
        for done in self._pool.carry_out(again):  # also when time is over: they are few, and would go untold
            key = done.task["key"]
            self._add(part, crashed(key, case_of(key), alone=done.crashed))

    def _judged(self, part: str, tasks: Iterable[Task], count: int) -> Iterator[Done]:
        """Add what comes of tasks; yield those whose process ended."""
        for done in self._carry_out(part, tasks, count):
            for judgement in msgspec.convert(done.result or [], list[Judgement]):
                self._add(part.removesuffix(" again"), judgement)
            if done.crashed:
                yield done

    def _add(self, part: str, judgement: Judgement) -> None:
        self.totals.add(part, judgement)
        if judgement.is_wrongly_proved:
            self._progress.tell(_wrong(judgement))

    def _carry_out(self, what: str, tasks: Iterable[Task], count: int) -> Iterator[Done]:
        with self._progress.of(what, count) as step:
            for done in self._pool.carry_out(self._in_time(tasks)):
                if done.lost and not done.crashed:
                    self.totals.lost.append(done)
                step(len(self.totals.wrong))
                yield done

    def _in_time(self, tasks: Iterable[Task]) -> Iterator[Task]:
        for task in tasks:
            if self._until_s is not None and time.monotonic() > self._until_s:
                return
            yield task


# ---- what is told -----------------------------------------------------------------------------------------------


class Progress:
    """A bar where somebody looks, a line now and then where not."""

    def __init__(self, stream: IO[str] | None) -> None:
        self._stream = stream
        self._is_terminal = stream is not None and stream.isatty()

    def tell(self, text: str) -> None:
        """Write a line at once."""
        if self._stream is not None:
            self._stream.write(("\r\033[K" if self._is_terminal else "") + text + "\n")
            self._stream.flush()

    def of(self, what: str, count: int) -> _Part:
        return _Part(self._stream, self._is_terminal, what, count)


class _Part:
    def __init__(self, stream: IO[str] | None, is_terminal: bool, what: str, count: int) -> None:
        self._stream, self._is_terminal, self._what, self._count = stream, is_terminal, what, count
        self._done = 0
        self._told_s = -math.inf
        self._since_s = time.monotonic()

    def __enter__(self) -> Callable[[int], None]:
        return self._step

    def __exit__(self, *_: object) -> None:
        if self._stream is not None and self._count:
            seconds = time.monotonic() - self._since_s
            self._write(f"{self._what}: {self._done:,} of {self._count:,} in {seconds:.0f} s", is_last=True)

    def _step(self, wrong: int) -> None:
        self._done += 1
        now_s = time.monotonic()
        if self._stream is None or now_s - self._told_s < (0.2 if self._is_terminal else 30):
            return
        self._told_s = now_s
        filled = 30 * self._done // max(1, self._count)
        bar = f"[{'#' * filled}{'.' * (30 - filled)}] " if self._is_terminal else ""
        self._write(f"{bar}{self._what}: {self._done:,} of {self._count:,}, {wrong} proved and wrong")

    def _write(self, text: str, *, is_last: bool = False) -> None:
        assert self._stream is not None
        if self._is_terminal:
            self._stream.write(f"\r\033[K{text}" + ("\n" if is_last else ""))
        else:
            self._stream.write(text + "\n")
        self._stream.flush()


def report(campaign: Campaign, *, with_mutants: bool) -> Iterator[str]:
    """What came out, line by line."""
    totals = campaign.totals
    parts = [part for part in PARTS if any(one == part for one, _ in totals.counts)]
    yield f"{'':34}" + "".join(f"{part:>12}" for part in parts)
    for outcome in sorted({outcome for _, outcome in totals.counts}):
        yield f"{_OUTCOMES.get(outcome, outcome):34}" + "".join(f"{totals.counts[part, outcome]:12,}" for part in parts)
    yield f"operators in what is proved and right: {len(totals.operators)}"
    for kind, rows in sorted(totals.rows.items()):
        flipped = (
            f", {totals.flipped[kind]:,} fell the other way, {totals.unexplained[kind]:,} of them not by themselves"
            if kind in ("labels", "steps")
            else ""
        )
        yield f"{kind}: {rows:,} rows, the worst off by {totals.worst[kind]:.2g} of the tolerance{flipped}"
    if totals.missed:
        yield "refused, though it looked right:"
        for reason, count in totals.missed.most_common(_SHOWN):
            yield f"  {count:6,}  {reason[:110]}   e.g. {totals.missed_names[reason]}"
    for judgement in totals.crashed:
        yield f"runtime crashed: {judgement.key}"
    for done in totals.lost:
        yield f"lost: {done.task.get('key') or done.task.get('mutant')}: {done.lost}"
    for judgement in totals.unexpected:
        yield f"unexpected: {judgement.name}: {_said(judgement)}, expected: {judgement.expected}"
    for judgement in totals.wrong:
        yield _wrong(judgement)
    if with_mutants:
        yield f"checks taken out: {len(campaign.killed):,} noticed, {len(campaign.survivors):,} not"
        for mutant in campaign.survivors:
            yield f"  not noticed: {mutant.place} {mutant.function}: {mutant.text[:100]}"
        for module, function in campaign.unkilled_rules():
            yield f"NO CASE FOR THE RULE {function} of {module}"


_OUTCOMES: Final = {
    "proved, right": "proved and right",
    "proved, wrong": "PROVED AND WRONG",
    "proved, untested": "proved, no input taken",
    "proved, unloadable": "proved, does not load",
    "proved, crashed": "proved, the runtime crashed",
    "refused, right": "refused, though it looked right",
    "refused, wrong": "refused, and wrong when run",
    "refused, untested": "refused, no input taken",
    "refused, unloadable": "refused, does not load",
    "refused, unexamined": "refused, not run",
    "refused, crashed": "refused, the runtime crashed",
}


def _wrong(judgement: Judgement) -> str:
    return f"PROVED AND WRONG: {judgement.name} ({judgement.rounding}): {judgement.problem}: {judgement.text}"


def _said(judgement: Judgement) -> str:
    said = "proved" if judgement.proved else f"refused ({judgement.operator}: {judgement.reason})"
    return f"{said}, seen {judgement.seen} {judgement.problem} {judgement.text}".rstrip()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").strip().splitlines()[0])
    parser.add_argument("--graphs", type=int, default=GRAPHS, help="how many random graphs")
    parser.add_argument("--seconds", type=float, default=None, help="nothing new begins after that")
    parser.add_argument("--seed", type=int, default=None, help="of requests and of the first graph")
    parser.add_argument("--share", type=int, default=1, help="operators of one module of so many")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--keep", type=Path, default=None, help="a folder for wrongly proved graphs")
    given = parser.parse_args(arguments)
    seed = random.SystemRandom().randrange(10**9) if given.seed is None else given.seed
    print(f"seed {seed}", flush=True)
    until_s = None if given.seconds is None else time.monotonic() + given.seconds
    with Pool(given.jobs) as pool:
        campaign = Campaign(pool, seed=seed, progress=Progress(sys.stderr), until_s=until_s)
        _run(campaign, given)
        for line in report(campaign, with_mutants="mutants" in given.parts):
            print(line, flush=True)
        for judgement in campaign.totals.wrong[:_SHOWN]:
            text = campaign.minimised(judgement)
            print(f"---- {judgement.name}\n{text}", flush=True)
            if given.keep is not None:
                _keep(given.keep, judgement, text)
        for judgement in campaign.totals.crashed if given.keep is not None else ():
            _keep(given.keep, judgement, as_text(case_of(judgement.key).model))
    is_good = not campaign.totals.wrong and not campaign.totals.unexpected
    return 0 if is_good and not ("mutants" in given.parts and campaign.unkilled_rules()) else 1


def _run(campaign: Campaign, given: argparse.Namespace) -> None:
    early = min(given.graphs, _GRAPHS_BEFORE_MUTANTS)
    if "cases" in given.parts:
        campaign.cases()
    if "operators" in given.parts:
        campaign.operators(given.share)
    if "graphs" in given.parts:
        campaign.graphs(0, early)
    if "mutants" in given.parts:
        campaign.mutants()
    if "graphs" in given.parts:
        campaign.graphs(early, given.graphs - early)


def _keep(folder: Path, judgement: Judgement, text: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    name = "".join(char if char.isalnum() else "_" for char in judgement.name)[:80]
    seen = "the runtime crashed" if judgement.seen == "crashed" else f"{judgement.problem} {judgement.text}"
    expected = "refused" if judgement.seen == "crashed" else "mixes"
    head = f"== {expected}: {judgement.name}\n# seen: {seen}\n"
    (folder / f"{name}.txt").write_text(head + text + "\n")


if __name__ == "__main__":
    sys.exit(main())
