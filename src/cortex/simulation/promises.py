"""
What any rule of scaling has to keep, checked against what is known and the rule is not told: what really comes, and
what it really takes.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping

import msgspec

from cortex.ids import ApiKey
from cortex.planning.autoscale import ENOUGH_ENDED, MARGIN, QUEUE_S, USABLE, Bound, ScalingDecision
from cortex.planning.load import LONGEST_S, SUDDEN_S, WINDOWS_S
from cortex.planning.model import Lack
from cortex.planning.reach import LOST_AFTER_S
from cortex.simulation.queues import Work

READ_S = 0.5
"""Between two readings, each with a decision."""
SLACK = 1.25
"""What a rule measures may be more than what is true by so much."""
PATIENCE_S = 6.0
"""For so long an api may have too few although there is room: to see a load, to double, to start."""


STALE_S = LOST_AFTER_S + READ_S
"""What a node said last counts for so long after it fell silent, beside what has gone to others since."""


class BrokenPromise(Exception):
    """A rule did what none may do; the text says which api, when, and what."""


class Truth(msgspec.Struct, frozen=True, kw_only=True):
    """What is so of an api at one instant."""

    at_s: float
    begun: int
    """All so far, as `ended`."""
    ended: int
    in_service: int
    """Requests that have a seat."""
    waiting: int
    """Those that have none."""


class Promises:
    """
    Looks at what a rule decides.

    Args:
        works: what a request of each api takes. One that is missing is not judged.
        cores: of the machine; None: there is more than one.

    Raises:
        BrokenPromise: by `judge`, at the first one.
    """

    def __init__(self, works: Mapping[ApiKey, Work], *, cores: float | None) -> None:
        self._works = works
        self._cores = cores
        self._past: dict[ApiKey, list[Truth]] = {}
        self._began_s = -math.inf
        """When the rule began, with nothing remembered."""
        self._missed_s = -math.inf
        """When it was last not told what it should have been."""
        self._silent_since_s = -math.inf
        """Since when some node or other has not been heard."""
        self._last_up_s: dict[ApiKey, float] = {}
        self._short_since_s: dict[ApiKey, float] = {}
        self._lacks_since_s: dict[ApiKey, float] = {}
        self._lacked: set[ApiKey] = set()

    def begin(self, at_s: float) -> None:
        """The rule has forgotten everything; it began at this instant."""
        if at_s != self._began_s:
            self._began_s = self._missed_s = at_s
            self._short_since_s.clear()
            self._lacks_since_s.clear()

    def miss(self, at_s: float) -> None:
        """A reading did not come through: windows begin where they can."""
        self._missed_s = at_s
        self._short_since_s.clear()
        self._lacks_since_s.clear()

    def fall_silent(self, at_s: float) -> None:
        """A node is not heard any more. Whether it is gone nobody knows until it is lost."""
        self._silent_since_s = at_s

    def note(self, api: ApiKey, truth: Truth) -> None:
        """What is so at a reading; to be called before what is decided then is judged."""
        past = self._past.setdefault(api, [])
        past.append(truth)
        del past[: -round(LONGEST_S / READ_S) - 2]

    def judge(
        self, decisions: Mapping[ApiKey, ScalingDecision], before: Mapping[ApiKey, int], *, at_s: float, knows: bool
    ) -> None:
        """
        Check what was decided since the last time.

        Args:
            before: how many replicas there were to be then.
            knows: costs were known whenever a number grew.
        """
        for since_s in (self._short_since_s, self._lacks_since_s):
            for api in since_s.keys() - decisions.keys():
                del since_s[api]
        lacking = {api for api, decision in decisions.items() if decision.asked.lacks is not None}
        for api, decision in decisions.items():
            if api not in self._past or api not in self._works:
                continue
            self._bounds(decision, at_s)
            if decision.replicas > before[api]:
                self._up(decision, at_s, knows=knows)
                self._last_up_s[api] = at_s
            elif decision.replicas < before[api]:
                self._down(decision, lacking | self._lacked, at_s)
        if self._cores is not None:
            self._turns(decisions, at_s)
            self._rights(decisions, self._cores, at_s)
        self._room(decisions, at_s)
        self._lacked = lacking

    def _bounds(self, decision: ScalingDecision, at_s: float) -> None:
        asked = decision.asked
        if not asked.min_replicas <= decision.replicas <= asked.max_replicas:
            raise _broken(decision, at_s, f"outside of {asked.min_replicas} to {asked.max_replicas}")

    def _up(self, decision: ScalingDecision, at_s: float, *, knows: bool) -> None:
        asked, work = decision.asked, self._works[decision.api]
        most = max(asked.min_replicas, math.ceil(self._shown(decision, at_s) * SLACK) + 2)
        if decision.replicas > most:
            raise _broken(decision, at_s, f"no window shows a need for more than {most}")
        burn = burn_of(work)
        if self._cores is None or not knows or burn <= SLACK * asked.cpu_millis / 1000:
            return
        fed = max(asked.min_replicas, math.ceil(SLACK * USABLE * self._cores / burn - MARGIN))
        if decision.replicas > fed:
            raise _broken(decision, at_s, f"the machine feeds {fed} at most")

    def _down(self, decision: ScalingDecision, lacking: set[ApiKey], at_s: float) -> None:
        asked = decision.asked
        since_s = at_s - self._last_up_s.get(decision.api, -math.inf)
        too_many = asked.replicas > asked.max_replicas
        if since_s < asked.downscale_window_s - READ_S and not lacking - {decision.api} and not too_many:
            raise _broken(decision, at_s, f"fewer {since_s:.1f} s after an up")

    def _turns(self, decisions: Mapping[ApiKey, ScalingDecision], at_s: float) -> None:
        """What burns within its request never waits for processors that others burn beyond theirs."""
        for decision in decisions.values():
            within = decision.costs is not None and self._is_within_its_right(decision, SLACK)
            if within and decision.bound is Bound.PROCESSOR and decision.replicas < decision.asked.max_replicas:
                raise _broken(decision, at_s, "it waits for processors, and burns within its request")

    def _room(self, decisions: Mapping[ApiKey, ScalingDecision], at_s: float) -> None:
        """What is not needed goes when another has no room for what it needs."""
        for api, decision in decisions.items():
            asked, load = decision.asked, decision.load
            ready = load.ready if load is not None else 0
            if asked.lacks is None or decision.kept <= ready + asked.starting:
                self._lacks_since_s.pop(api, None)
                continue
            if at_s - self._lacks_since_s.setdefault(api, at_s) <= 2 * READ_S:
                continue
            for other in decisions.values():
                of_use = asked.lacks is not Lack.GPU or other.asked.gpus > 0
                needed = max(other.kept, other.wanted, other.asked.min_replicas)
                if other.api != api and of_use and not other.asked.in_rollout and other.replicas > needed:
                    raise _broken(other, at_s, f"{needed} would do, and {api} has no room")

    def _rights(self, decisions: Mapping[ApiKey, ScalingDecision], cores: float, at_s: float) -> None:
        """What burns within its request gets what it needs while all that is used fits the machine."""
        used: dict[ApiKey, float] | None = None
        for api, decision in decisions.items():
            asked = decision.asked
            if api not in self._past or api not in self._works:
                continue
            known = decision.costs is not None or (decision.load is not None and decision.load.ready > 0)
            capped = decision.replicas >= asked.max_replicas or asked.lacks is not None or not known
            if capped or not self._is_within_its_right(decision, SLACK):
                self._short_since_s.pop(api, None)
                continue
            come = min(self._begun(api, WINDOWS_S[0])) * WINDOWS_S[0]
            need = self._need(decision, (come - 2 * math.sqrt(come)) / WINDOWS_S[0])
            if need <= SLACK * decision.replicas + 0.5:
                self._short_since_s.pop(api, None)
                continue
            if used is None:
                used = {one: self._used(decisions[one]) for one in decisions if one in self._works}
            burn = burn_of(self._works[api])
            if sum(used.values()) - used[api] + SLACK * (decision.replicas + 1) * burn > cores:
                self._short_since_s.pop(api, None)
            elif at_s - self._short_since_s.setdefault(api, at_s) > PATIENCE_S:
                raise _broken(decision, at_s, f"needs {need:.1f}, burns within its request, and there is room")

    # ---- what is true -------------------------------------------------------------------------------------------

    def _is_within_its_right(self, decision: ScalingDecision, slack: float) -> bool:
        work = self._works.get(decision.api)
        return work is not None and burn_of(work) * slack <= decision.asked.cpu_millis / 1000

    def _shown(self, decision: ScalingDecision, at_s: float) -> float:
        """The most replicas that any window, or what waits, can be taken to ask for."""
        past = self._past[decision.api]
        work = self._works[decision.api]
        known = [truth for truth in past if truth.at_s >= self._began_s]
        windows: list[float] = [SUDDEN_S, *WINDOWS_S]
        if at_s - self._missed_s <= LONGEST_S:
            windows = [READ_S * number for number in range(1, round(LONGEST_S / READ_S) + 1)]
        need = 0.0
        for ago, truth in enumerate(reversed(past[-2:])):  # it may have been decided between the two
            waiting = truth.waiting / max(QUEUE_S, work.seat_s)
            rates = [max(self._begun(decision.api, window_s, ago)) + waiting for window_s in windows]
            stale = self._stale(decision.api, windows, at_s)
            need = max(need, *(self._need(decision, rate + stale) for rate in rates))
            if not known or truth.ended - known[0].ended < ENOUGH_ENDED:
                need = max(need, (truth.in_service + truth.waiting) / work.seats)
        return need

    def _stale(self, api: ApiKey, windows: list[float], at_s: float) -> float:
        """Requests a second that a node may have said last, which has fallen silent and is not lost yet."""
        if at_s - self._silent_since_s > STALE_S:
            return 0.0
        past = self._past[api]
        ago = sum(truth.at_s > self._silent_since_s for truth in past)
        waiting = past[max(0, len(past) - 1 - ago)].waiting / max(QUEUE_S, self._works[api].seat_s)
        return max(max(self._begun(api, window_s, ago)) for window_s in windows) + waiting

    def _begun(self, api: ApiKey, window_s: float, ago: int = 0) -> tuple[float, float]:
        """
        Requests a second, in a window that ended so many readings ago.

        Twice: as it begins at the last reading that is old enough, and at the next one. Where readings are missing
        these are not the same, and the rule may take either.
        """
        past = self._past[api]
        end = max(0, len(past) - 1 - ago)
        last = past[end]
        place = bisect_right(past, last.at_s - window_s + READ_S / 4, key=lambda truth: truth.at_s)
        return self._rate(past[max(0, place - 1)], last), self._rate(past[max(0, min(place, end - 1))], last)

    def _rate(self, first: Truth, last: Truth) -> float:
        seconds = last.at_s - first.at_s
        return (last.begun - first.begun) / seconds if seconds > 0 else last.begun / READ_S

    def _need(self, decision: ScalingDecision, rate: float) -> float:
        work, asked = self._works[decision.api], decision.asked
        by_cpu = work.cpu_s * 1000 / asked.cpu_millis
        return rate * max(1 / work.sustained, by_cpu) / (asked.target_cpu_utilization / 100)

    def _used(self, decision: ScalingDecision) -> float:
        """Processors that an api has a right to as far as it uses them."""
        need = self._need(decision, self._begun(decision.api, LONGEST_S)[0]) if decision.api in self._past else 0.0
        burn = burn_of(self._works[decision.api])
        return min(need, float(decision.replicas)) * min(burn, decision.asked.cpu_millis / 1000)


def burn_of(work: Work) -> float:
    """Processors that one fully used replica takes."""
    return min(1.0, work.cpu_s * work.sustained)


def _broken(decision: ScalingDecision, at_s: float, what: str) -> BrokenPromise:
    return BrokenPromise(f"{decision.api} has {decision.replicas} at {at_s:.1f} s: {what}")
