"""
What any rule of scaling has to keep, checked against what the model knows and the rule does not: what really comes, and
what it really takes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from cortex.ids import ApiKey
from cortex.planning.autoscale import ENOUGH_ENDED, MARGIN, QUEUE_S, USABLE
from cortex.planning.load import LONGEST_S, SUDDEN_S, WINDOWS_S
from cortex.simulation.scaling import READ_S, Moment, ScalingRun, Served

SLACK = 1.25
"""What a rule measures may be more than what is true by so much."""
PATIENCE_S = 6.0
"""For so long an api may have too few although there is room: to see a load, to double, to start."""


class BrokenPromise(Exception):
    """A rule did what none may do; the text says which api, when, and what."""


class Promises:
    """
    Looks at each moment of a run.

    Raises:
        BrokenPromise: by `look`, at the first one.
    """

    def __init__(self, run: ScalingRun) -> None:
        self._run = run
        self._served = {served.scalable.api: served for served in run.apis}
        self._past: dict[ApiKey, list[Moment]] = {api: [] for api in self._served}
        self._last_up_s: dict[ApiKey, float] = {}
        self._short_since_s: dict[ApiKey, float] = {}
        self._shown_before: dict[ApiKey, float] = {}
        self._lacked: set[ApiKey] = set()

    def look(self, moments: Mapping[ApiKey, Moment]) -> None:
        """Check what was decided since the last moments."""
        lacking = {api for api, moment in moments.items() if moment.decision.asked.lacks is not None}
        for api, moment in moments.items():
            before = self._past[api][-1].replicas if self._past[api] else self._served[api].scalable.replicas
            self._past[api].append(moment)
            del self._past[api][: -round(LONGEST_S / READ_S) - 2]
            self._bounds(moment)
            if moment.replicas > before:
                self._up(moment)
                self._last_up_s[api] = moment.at_s
            elif moment.replicas < before:
                self._down(moment, lacking | self._lacked)
            self._shown_before[api] = self._shown(self._served[api], moment)
        self._rights(moments)
        self._lacked = lacking

    def _bounds(self, moment: Moment) -> None:
        scalable = moment.decision.asked
        if not scalable.min_replicas <= moment.replicas <= scalable.max_replicas:
            raise self._broken(moment, f"outside of {scalable.min_replicas} to {scalable.max_replicas}")

    def _up(self, moment: Moment) -> None:
        served = self._served[moment.decision.api]
        low = served.scalable.min_replicas
        shown = max(self._shown(served, moment), self._shown_before.get(moment.decision.api, 0.0))
        most = max(low, math.ceil(shown * SLACK) + 2)
        if moment.replicas > most:
            raise self._broken(moment, f"no window shows a need for more than {most}")
        burn = _burn(served)
        fed = max(low, math.ceil(SLACK * USABLE * self._run.node.cores / burn - MARGIN)) if burn else moment.replicas
        known = all(decision.costs is not None for _, decision in moment.changed)
        if known and burn > SLACK * served.scalable.cpu_millis / 1000 and moment.replicas > fed:
            raise self._broken(moment, f"the machine feeds {fed} at most")

    def _down(self, moment: Moment, lacking: set[ApiKey]) -> None:
        api = moment.decision.api
        since_s = moment.at_s - self._last_up_s.get(api, -math.inf)
        if since_s < moment.decision.asked.downscale_window_s - READ_S and not lacking - {api}:
            raise self._broken(moment, f"fewer {since_s:.1f} s after an up")

    def _rights(self, moments: Mapping[ApiKey, Moment]) -> None:
        """What burns within its request gets what it needs while all that is used fits the machine."""
        used = {api: self._used(api, moment) for api, moment in moments.items()}
        for api, moment in moments.items():
            served = self._served[api]
            burn, request = _burn(served), served.scalable.cpu_millis / 1000
            fits = sum(used.values()) - used[api] + SLACK * (moment.replicas + 1) * burn <= self._run.node.cores
            capped = moment.replicas >= served.scalable.max_replicas or moment.decision.asked.lacks is not None
            come = self._begun(moment, WINDOWS_S[0]) * WINDOWS_S[0]
            need = self._need(served, (come - 2 * math.sqrt(come)) / WINDOWS_S[0])
            short = need > SLACK * moment.replicas + 0.5
            if burn * SLACK > request or not fits or capped or not short:
                self._short_since_s.pop(api, None)
            elif moment.at_s - self._short_since_s.setdefault(api, moment.at_s) > PATIENCE_S:
                raise self._broken(moment, f"needs {need:.1f}, burns within its request, and there is room")

    # ---- what is true -------------------------------------------------------------------------------------------

    def _shown(self, served: Served, moment: Moment) -> float:
        """The most replicas that any window, or what waits, can be taken to ask for."""
        waiting = moment.waiting / max(QUEUE_S, served.work.seat_s)
        rates = [self._begun(moment, window_s) + waiting for window_s in (SUDDEN_S, *WINDOWS_S)]
        need = max(self._need(served, rate) for rate in rates)
        past = self._past[moment.decision.api]
        for known in past[-2:]:  # it may have been decided between the two
            if known.ended - past[0].ended < ENOUGH_ENDED:
                need = max(need, (known.in_service + known.waiting) / served.work.seats)
        return need

    def _begun(self, moment: Moment, window_s: float) -> float:
        """Requests a second."""
        past = self._past[moment.decision.api]
        first = past[max(0, len(past) - 1 - round(window_s / READ_S))]
        if moment.at_s <= window_s:
            return moment.begun / moment.at_s
        return (moment.begun - first.begun) / (moment.at_s - first.at_s)

    def _need(self, served: Served, rate: float) -> float:
        work, scalable = served.work, served.scalable
        by_cpu = work.cpu_s * 1000 / scalable.cpu_millis
        return rate * max(1 / work.sustained, by_cpu) / (scalable.target_cpu_utilization / 100)

    def _used(self, api: ApiKey, moment: Moment) -> float:
        """Processors that an api has a right to as far as it uses them."""
        served = self._served[api]
        need = self._need(served, self._begun(moment, LONGEST_S))
        return min(need, float(moment.replicas)) * min(_burn(served), served.scalable.cpu_millis / 1000)

    def _broken(self, moment: Moment, what: str) -> BrokenPromise:
        decision = moment.decision
        return BrokenPromise(f"{decision.api} has {moment.replicas} at {moment.at_s:.1f} s: {what}")


def _burn(served: Served) -> float:
    return min(1.0, served.work.cpu_s * served.work.sustained)
