"""What a run came to, for people and for programs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from client import Answer

from faults.judgement import Verdict

SHOWN = 20
"""Of complaints of one kind."""


@dataclass(frozen=True)
class Receipt:
    seed: int
    seconds: float
    """From the first request to the last."""
    rate: float
    """Requests a second that were to be sent; bursts and large bodies come on top."""
    sent_per_second: float
    left_out: int
    """What the client was too late for."""
    sent: dict[str, int]
    right: dict[str, int]
    lost: dict[str, int]
    """`replica-lost` where it is promised: a large body or `retry: off`, under kill -9."""
    away: dict[str, int]
    """`no-ready-replica` where it is promised: an api with one replica, whose node was killed."""
    latency_ms: dict[str, dict[str, float]]
    """By api and how it was asked: p50, p99, worst."""
    asleep: int
    """Bursts that found their api asleep."""
    commands: dict[str, int]
    faults: dict[str, int]
    failed: list[str]
    wrong: list[str]
    complaints: list[str]
    """Whatever else is not as it should be."""

    @property
    def is_good(self) -> bool:
        return not (self.failed or self.wrong or self.complaints) and sum(self.sent.values()) > 0

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"good": self.is_good, **asdict(self)}, indent=1) + "\n")

    def show(self) -> None:
        rows = [
            ("seed", f"{self.seed}"),
            ("seconds", f"{self.seconds:.0f}"),
            ("requests", f"{sum(self.sent.values()):,}, {self.sent_per_second:.0f}/s ({self.left_out} left out)"),
            ("answered right", f"{sum(self.right.values()):,}"),
            ("replica-lost, as said", _listed(self.lost)),
            ("away, as said", _listed(self.away)),
            ("failed", f"{len(self.failed)}"),
            ("wrong", f"{len(self.wrong)}"),
            ("bursts that woke", f"{self.asleep}"),
        ]
        print("\nreceipt")
        for name, value in rows:
            print(f"  {name:<24} {value}")
        print(f"\n  {'requests':<24} {'sent':>8} {'right':>8} {'p50':>9} {'p99':>9} {'worst':>9}")
        for name in sorted(self.sent):
            took = self.latency_ms.get(name, {})
            times = " ".join(f"{took.get(key, 0.0):>6.1f} ms" for key in ("p50", "p99", "worst"))
            print(f"  {name:<24} {self.sent[name]:>8,} {self.right.get(name, 0):>8,} {times}")
        for title, counts in (("commands", self.commands), ("faults", self.faults)):
            print(f"\n  {title}")
            for name, count in sorted(counts.items()):
                print(f"    {count:>4}  {name}")
        for title, items in (("failed", self.failed), ("wrong", self.wrong), ("not as it should be", self.complaints)):
            for item in items[:SHOWN]:
                print(f"  {title}: {item}")
        print(f"\n{'good' if self.is_good else 'NOT GOOD'}", flush=True)


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {name}" for name, number in sorted(counts.items())) or "0"


def receipt_of(
    verdict: Verdict,
    answers: Sequence[Answer],
    *,
    seed: int,
    rate: float,
    left_out: int,
    asleep: int,
    commands: Counter[str],
    faults: Counter[str],
    complaints: Sequence[str],
) -> Receipt:
    took_s: dict[str, list[float]] = {}
    for answer in answers:
        if answer.status == 200:
            took_s.setdefault(f"{answer.api}, {answer.kind}", []).append(answer.done_s - answer.sent_s)
    seconds = max((a.done_s for a in answers), default=0.0) - min((a.sent_s for a in answers), default=0.0)
    return Receipt(
        seed=seed,
        seconds=seconds,
        rate=rate,
        sent_per_second=len(answers) / seconds if seconds else 0.0,
        left_out=left_out,
        sent=dict(verdict.sent),
        right=dict(verdict.right),
        lost=dict(verdict.lost),
        away=dict(verdict.away),
        latency_ms={name: _quantiles(found) for name, found in took_s.items()},
        asleep=asleep,
        commands=dict(commands),
        faults=dict(faults),
        failed=verdict.failed,
        wrong=verdict.wrong,
        complaints=list(complaints),
    )


def _quantiles(took_s: list[float]) -> dict[str, float]:
    took_s.sort()
    at = {"p50": 0.5, "p99": 0.99, "worst": 1.0}
    return {name: round(took_s[min(len(took_s) - 1, int(len(took_s) * q))] * 1000, 1) for name, q in at.items()}
