"""
Redeploy, go back, fall asleep, kill and stop what can be killed while an outside client asks; count what went wrong.

    python bench/chaos.py [--seconds 180] [--rate 500] [--seed N] [--nodes 3]

What happens when follows from the seed (`faults/schedule.py`); it is printed first, and a run with the same seed and
seconds has the same schedule. The client is a process of its own (`client.py`), the apis and their bad versions are in
`faults/project.py`, what runs commands in `faults/operator.py`, what kills in `faults/killing.py`, and which answers
are right is judged at the end (`faults/judgement.py`). With several nodes one door is asked, what is killed is on any
of them, and now and then all of another node is.

Prints a receipt, and writes it as JSON. Exits 0 only when no request failed but for those that were at a killed replica
with a large body or `retry: off`, every answer was right and of a version that could serve then, the final state is as
wanted, and `cortex down` left no process, socket or temporary file behind. An api that had one replica may be away
while its node is.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import msgspec
from client import Answer, Counts, Plan, read_answers
from faults.judgement import Timeline, judge
from faults.killing import Killer
from faults.operator import Operator
from faults.project import APIS, DEPLOYMENT, LONE, MANY, ONCE, SLEEPER, Project
from faults.receipt import Receipt, receipt_of
from faults.schedule import Schedule, make_schedule
from world import World, end_in_order

SHARES = {LONE: 0.25, MANY: 0.5, ONCE: 0.25}
LARGE = {MANY: 3.0, LONE: 1.0}
"""Bodies of 1 MB a second."""


class Run:
    """One run in a folder of its own."""

    def __init__(
        self, folder: Path, seed: int, seconds: float, rate: float, *, nodes: int, one_at_a_time: bool
    ) -> None:
        self.schedule: Schedule = make_schedule(seed, seconds, nodes)
        self._nodes = nodes
        self._folder = folder
        self._seed = seed
        self._rate = rate
        self._story = (folder / "story.txt").open("w", buffering=1)
        self._begun_s = time.monotonic()
        self._late_s = 0.0
        self._timelines = {api: Timeline() for api in APIS}
        self.world = World(folder)
        project = Project(self.world.project, self._ledger)
        self._operator = Operator(self.world, project, self._timelines, lambda: self._killer.kills, self._tell)
        self._killer = Killer(self.world, self.schedule.faults, self._clock, self._tell, one_at_a_time=one_at_a_time)
        self._complaints: list[str] = []
        self._counts = Counts()

    @property
    def _ledger(self) -> Path:
        return self._folder / "ledger.txt"

    @property
    def _answers(self) -> Path:
        return self._folder / "answers.jsonl"

    def play(self) -> None:
        """All that is scheduled, and the end of it."""
        try:
            if self._nodes > 1:
                self.world.become_nodes(self._nodes)
            if not self._operator.first_deploy():
                return
            with self._client():
                self._begun_s = time.monotonic()
                self._killer.start()
                try:
                    for step in self.schedule.steps:
                        self._await(step.at_s)
                        self._tell(f"{step.command} {step.what}{' '.join(step.apis)}")
                        self._operator.act(step)
                    self._killer.join()
                finally:
                    self._killer.stop()
                self._operator.settle()
        finally:
            self._complaints += _end(self.world)

    def _clock(self) -> float:
        """Seconds of the schedule: those by which commands were late are none, so that faults do not run ahead."""
        return time.monotonic() - self._begun_s - self._late_s

    def _await(self, at_s: float) -> None:
        early_s = at_s - self._clock()
        time.sleep(max(0.0, early_s))
        self._late_s += max(0.0, -early_s)

    def receipt(self) -> Receipt:
        answers: list[Answer] = read_answers(self._answers) if self._answers.exists() else []
        reached: dict[str, list[int]] = defaultdict(list)
        for line in self._ledger.read_text().splitlines() if self._ledger.exists() else ():
            tag, pid = line.split()
            if tag != "sample":
                reached[tag].append(int(pid))
        verdict = judge(
            answers,
            self._timelines,
            self._killer.kills,
            once=ONCE,
            reached=reached,
            absences=self._killer.absences,
            begun_s=self._begun_s,
        )
        missing = self._counts.sent - len(answers)
        return receipt_of(
            verdict,
            answers,
            seed=self._seed,
            rate=self._rate,
            left_out=self._counts.left_out,
            asleep=self._counts.asleep,
            commands=self._operator.done,
            faults=self._killer.done,
            complaints=[
                *self._operator.faults,
                *self._killer.complaints,
                *self._complaints,
                *([f"{missing} requests have no answer at all"] if missing else []),
            ],
        )

    @contextlib.contextmanager
    def _client(self) -> Iterator[None]:
        """An outside client that asks meanwhile."""
        plan = Plan(
            port=self.world.nodes()[self.schedule.door].port if self._nodes > 1 else self.world.port,
            deployment=DEPLOYMENT,
            rate=self._rate,
            shares=SHARES,
            large=LARGE,
            bursts=self.schedule.bursts,
            burst_api=SLEEPER,
            seed=self._seed,
            answers=str(self._answers),
        )
        path = self._folder / "plan.json"
        path.write_bytes(msgspec.json.encode(plan))
        said = (self._folder / "client.txt").open("w+")
        with (
            said,
            subprocess.Popen([sys.executable, str(Path(__file__).with_name("client.py")), path], stdout=said) as client,
        ):
            try:
                yield
            finally:
                client.send_signal(signal.SIGTERM)
                if client.wait(timeout=120) != 0:
                    self._complaints.append(f"the client failed: exit {client.returncode}")
                said.seek(0)
                if lines := said.read().splitlines():
                    self._counts = msgspec.json.decode(lines[-1], type=Counts)

    def _tell(self, line: str) -> None:
        self._story.write(f"{time.monotonic() - self._begun_s:7.2f} s  {line}\n")


def _end(world: World) -> list[str]:
    """`cortex down`, then look for anything it left."""
    faults = []
    down = world.cortex("down")
    if down.returncode != 0:
        faults.append(f"cortex down failed:\n{down.stdout}{down.stderr}")
    for pid, title in world.processes().items():
        faults.append(f"a process was left: {pid} {title}")
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for path in sorted(world.home.rglob("*")) if world.home.exists() else ():
        if path.is_socket() or path.suffix == ".tmp":
            faults.append(f"a file was left: {path.relative_to(world.home)}")
    return faults


def _show(schedule: Schedule) -> None:
    commands = Counter(step.command for step in schedule.steps)
    kills = Counter(f"{'stop' if fault.stops else 'kill'} {fault.kind}" for fault in schedule.faults)
    for counts in (commands, kills):
        print("  " + ", ".join(f"{number} {name}" for name, number in sorted(counts.items())), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").strip().partition("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=180.0, help="that the schedule covers (default 180)")
    parser.add_argument("--rate", type=float, default=500.0, help="requests a second (default 500)")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument(
        "--nodes", type=int, default=1, metavar="N", help="have this machine be N nodes, as `cortex up --nodes` has it"
    )
    parser.add_argument(
        "--one-at-a-time",
        action="store_true",
        help="each fault only once the last is made up for: for machines with so much to do that this takes seconds",
    )
    parser.add_argument("--receipt", type=Path, default=Path("build/chaos.json"), help="where it is written as JSON")
    parser.add_argument("--keep", action="store_true", help="leave home, story and answers where they are")
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(2**32)
    receipt_path = options.receipt.resolve()
    folder = Path(tempfile.mkdtemp(prefix="chaos-", dir="/tmp"))
    end_in_order()
    run = Run(folder, seed, options.seconds, options.rate, nodes=options.nodes, one_at_a_time=options.one_at_a_time)
    print(f"seed {seed}, {options.seconds:g} s, in {folder}")
    _show(run.schedule)
    run.play()
    receipt = run.receipt()
    receipt.show()
    receipt.write(receipt_path)
    if receipt.is_good and not options.keep:
        shutil.rmtree(folder)
    else:
        print(f"story, answers, home and logs: {folder}")
    return 0 if receipt.is_good else 1


if __name__ == "__main__":
    sys.exit(main())
