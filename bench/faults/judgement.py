"""Which answers are right. Pure: from what was sent and answered, what commands said, and what was killed when."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from client import Answer

REPLICA_LOST = "replica-lost"
NO_READY_REPLICA = "no-ready-replica"
STILL_ASKED_S = 10.0
"""So long a replica that was killed may still be sent requests: its agent, which sees to that, may be dead too."""

CRASHES, CRASHES_WITHIN_S = 3, 60.0
"""So many ends of an api's replicas, each so soon after the one before, and its status is `crashing`."""


@dataclass(frozen=True)
class Kill:
    """A replica that was killed."""

    at_s: float
    api: str
    pid: int


@dataclass
class Absence:
    """A node that was killed."""

    at_s: float
    apis: frozenset[str]
    """Those that had fewer than two replicas then: nobody says that they stay up."""
    until_s: float = math.inf
    """When everything was as it should be again."""


@dataclass
class Timeline:
    """
    Which builds may answer requests to one api, from what commands said.

    A build is named by what it says of itself, or by its version: commands know the one or the other.
    """

    _events: list[tuple[float, bool, str]] = field(default_factory=list)

    def may(self, at_s: float, *builds: str) -> None:
        """From now on these, too: a command that wants them has begun."""
        self._events += [(at_s, False, build) for build in builds]

    def only(self, at_s: float, build: str) -> None:
        """Whatever is sent from now on gets this one: a command said so."""
        self._events.append((at_s, True, build))

    def possible(self, sent_s: float, done_s: float) -> set[str]:
        """Builds that may have answered a request."""
        events = sorted(self._events)
        first = max((index for index, (at_s, only, _) in enumerate(events) if only and at_s <= sent_s), default=0)
        return {build for at_s, _, build in events[first:] if at_s <= done_s}


@dataclass
class Verdict:
    """What came of all requests."""

    sent: Counter[str] = field(default_factory=Counter)
    """By api and how they were sent."""
    right: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)
    """Told `replica-lost`, as is promised where a body is large or `retry` is off and the replica was killed."""
    away: Counter[str] = field(default_factory=Counter)
    """Told `no-ready-replica`, as is promised where an api had one replica and its node was killed."""
    failed: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        return not (self.failed or self.wrong) and self.sent.total() > 0


def judge(
    answers: Iterable[Answer],
    timelines: Mapping[str, Timeline],
    kills: Sequence[Kill],
    *,
    once: str,
    reached: Mapping[str, Sequence[int]],
    absences: Sequence[Absence] = (),
    begun_s: float = 0.0,
) -> Verdict:
    """
    Tell right answers from wrong ones, and failures from what is promised.

    Args:
        kills: of replicas.
        once: the api with `retry: off`.
        reached: by tag of a request to `once`, the processes whose handler got it.
        absences: of nodes.
        begun_s: instants are told as seconds after this one.
    """
    verdict = Verdict()
    builds: dict[str, dict[str, str]] = defaultdict(dict)
    for answer in answers:
        name = f"{answer.api}, {answer.kind}"
        verdict.sent[name] += 1
        where = f"{answer.done_s - begun_s:7.2f} s {answer.tag} to {name}, {answer.done_s - answer.sent_s:.2f} s"
        if answer.status == 200:
            complaint = _complaint(answer, timelines[answer.api], builds[answer.api])
            if complaint:
                verdict.wrong.append(f"{where}: {complaint}")
            else:
                verdict.right[name] += 1
        elif _is_promised(answer, kills, once, reached.get(answer.tag, ())):
            verdict.lost[name] += 1
        elif _is_away(answer, absences):
            verdict.away[name] += 1
        else:
            verdict.failed.append(f"{where}: {answer.status} {answer.error}")
    for tag, pids in reached.items():
        if len(pids) > 1:
            verdict.wrong.append(f"{tag} to {once}, which has `retry: off`, was delivered {len(pids)} times")
    return verdict


def kills_explain_crashing(kills: Sequence[Kill], begun_s: float) -> bool:
    """Whether replicas of one api were killed so often that a command that began then may call it crashing."""
    since = Counter(kill.api for kill in kills if kill.at_s >= begun_s - CRASHES_WITHIN_S)
    return max(since.values(), default=0) >= CRASHES


def _complaint(answer: Answer, timeline: Timeline, builds: dict[str, str]) -> str:
    if not answer.fine:
        return answer.error
    if builds.setdefault(answer.version, answer.build) != answer.build:
        return f"version {answer.version} is {builds[answer.version]} and {answer.build}"
    possible = timeline.possible(answer.sent_s, answer.done_s)
    if not possible & {answer.version, answer.build}:
        return f"{answer.build} ({answer.version}) answered where only {', '.join(sorted(possible)) or 'nothing'} could"
    return ""


def _is_away(answer: Answer, absences: Sequence[Absence]) -> bool:
    return (
        answer.status == 503
        and answer.error.startswith(NO_READY_REPLICA)
        and any(
            answer.api in absence.apis and absence.at_s <= answer.done_s and answer.sent_s <= absence.until_s
            for absence in absences
        )
    )


def _is_promised(answer: Answer, kills: Sequence[Kill], once: str, reached: Sequence[int]) -> bool:
    """
    Whether a request may be told that its replica is lost.

    It may where it could have been at a replica that was killed; at two of them, if it is delivered a second time. What
    a handler has got was there before the kill; what none has got may have come right after.
    """
    if answer.status != 502 or not answer.error.startswith(REPLICA_LOST):
        return False
    since_s = answer.sent_s if reached else answer.sent_s - STILL_ASKED_S
    hit = [kill for kill in kills if kill.api == answer.api and since_s <= kill.at_s <= answer.done_s]
    if reached:
        hit = [kill for kill in hit if kill.pid in reached]
    delivered = 1 if answer.kind == "large" or answer.api == once else 2
    return len(hit) >= delivered
