"""The loop of autoscaling: readings of nodes in, numbers of replicas into the state. `planning.autoscale` decides."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import msgspec

from cortex.clock import Clock
from cortex.engines.base import Engine
from cortex.ids import ApiKey, ReplicaId
from cortex.planning import happenings, scale, scaling_words
from cortex.planning.assessment import Assessment, Case
from cortex.planning.autoscale import Machine, Rule, Scalable, ScalingDecision, ScalingMemory, decide
from cortex.planning.load import Loads
from cortex.planning.model import Lack, LeaseState, WantedApi
from cortex.planning.sleep import Idleness, idled, sleeps_in_s
from cortex.planning.slots import SlotState
from cortex.state.records import StateStore
from cortex.wire.events import TellEvent, told_to_nobody
from cortex.wire.loads import NodeLoads
from cortex.wire.operator import ScalingStatus, rfc3339

log = logging.getLogger(__name__)


class Scaling:
    """
    Has the number of replicas of each api follow its load.

    What it remembers of an api begins anew with this process, but for what its row says.

    Args:
        latest: what the control loop acted on last; None before it has.
        engine: knows whether replicas share one machine.
        downscale_window_s: of apis that say nothing of it.
        changed: called when a number has changed.
        rule: what decides.
    """

    def __init__(
        self,
        *,
        state: StateStore,
        clock: Clock,
        latest: Callable[[], Assessment | None],
        engine: Engine,
        downscale_window_s: float,
        changed: Callable[[], None],
        tell: TellEvent = told_to_nobody,
        rule: Rule = decide,
    ) -> None:
        self.decisions: Mapping[ApiKey, ScalingDecision] = {}
        """The last of each api. Replaced as a whole."""
        self._state = state
        self._clock = clock
        self._latest = latest
        self._engine = engine
        self._downscale_window_s = downscale_window_s
        self._changed = changed
        self._tell = tell
        self._rule = rule
        self._arrived: list[NodeLoads] = []
        self._arriving = threading.Lock()
        self._loads = Loads()
        self._memories: dict[ApiKey, ScalingMemory] = {}
        self._idle: dict[ApiKey, Idleness] = {}
        self._asked_of: Assessment | None = None
        self._cases: list[Case] = []
        self._asked: list[Scalable] = []
        """What was decided about last, and what of it the rule was told."""

    def take(self, loads: NodeLoads) -> None:
        """A node has been read; it is looked at in the next step. From any thread."""
        with self._arriving:
            self._arrived.append(loads)

    def step(self) -> float | None:
        """
        Look at what has arrived, and decide.

        Returns:
            Seconds until an api is to fall asleep if nobody asks for it; None: none is.
        """
        with self._arriving:
            arrived, self._arrived = self._arrived, []
        assessment = self._latest()
        parked = _parked(assessment)
        for loads in arrived:
            self._loads.take(_without(loads, parked))
        if assessment is None or not assessment.seen.settled:
            return None
        self._loads.keep_nodes(node.name for node in assessment.seen.nodes)
        now_s, wall_s = self._clock.monotonic_s(), self._clock.wall_s()
        if assessment is not self._asked_of:
            self._asked_of, self._cases = assessment, _awake(assessment)
            # Who is parked gives up its room before anybody else gives up any.
            is_room_coming = any(case.decision.gives_way for case in assessment.cases)
            window_s = self._downscale_window_s
            self._asked = [_scalable(case, window_s, is_room_coming=is_room_coming) for case in self._cases]
        cases = self._cases
        memories = {
            case.wanted.api: self._memories.get(case.wanted.api)
            or scale.remembered(case.wanted.scale, wall_s=wall_s, now_s=now_s)
            for case in cases
        }
        decisions = self._rule(self._asked, self._loads.lately(), memories, self._machine(assessment), now_s=now_s)
        self._memories = {api: decision.memory for api, decision in decisions.items()}
        before, self.decisions = self.decisions, decisions
        sleeps_in = self._drowse([case for case in cases if not case.wanted.min_replicas], now_s)
        sleepy = [case for case, left_s in sleeps_in if left_s <= 0]
        for case in sleepy:
            self._sleep(case, wall_s)
        asleep = {case.wanted.api for case in sleepy}
        moved = [one for one in decisions.values() if one.replicas != one.asked.replicas and one.api not in asleep]
        if moved:
            with self._state.together():
                for decision in moved:
                    self._state.autoscale(decision, wall_s=wall_s)
        for decision in moved:
            text = scaling_words.reason(decision)
            log.info("%s: %s -> %s replicas: %s", decision.api, decision.asked.replicas, decision.replicas, text)
            self._tell(happenings.scaled(decision))
        for api, decision in decisions.items():
            self._tell_bound(before.get(api), decision)
        if moved or sleepy:
            self._changed()
        return min((left_s for _case, left_s in sleeps_in if left_s > 0), default=None)

    def _drowse(self, cases: Sequence[Case], now_s: float) -> list[tuple[Case, float]]:
        """The apis that may sleep, each with the seconds until it does; 0 or less: now."""
        loads, before = self._loads.lately(), self._idle
        self._idle = {}
        for case in cases:
            api = case.wanted.api
            ended = self._loads.ended(api)
            self._idle[api] = idled(before.get(api), case, loads.get(api), ended=ended, now_s=now_s)
        return [(case, sleeps_in_s(case, self._idle[case.wanted.api], now_s=now_s)) for case in cases]

    def _sleep(self, case: Case, wall_s: float) -> None:
        wanted = case.wanted
        reason = f"nobody asked for {wanted.idle_timeout_s:g} s"
        if self._state.fall_asleep(wanted.api, wanted.build.revision, reason=reason, wall_s=wall_s):
            log.info("%s: falls asleep: %s", wanted.api, reason)
            self._tell(happenings.slept(wanted.api, reason))

    def _tell_bound(self, before: ScalingDecision | None, now: ScalingDecision) -> None:
        if before is None or (before.bound, before.replicas) != (now.bound, now.replicas):
            event = happenings.bounded(now)
            if event is not None:
                self._tell(event)

    def statuses(self) -> dict[ApiKey, ScalingStatus]:
        """What is told of each api that was decided on."""
        known = {record.wanted.api: record.wanted for record in self._state.apis()}
        found = {api: self.status(wanted) for api, wanted in known.items()}
        return {api: status for api, status in found.items() if status is not None}

    def status(self, wanted: WantedApi) -> ScalingStatus | None:
        """What is told of an api; None while nothing was decided of it. From any thread."""
        decision = self.decisions.get(wanted.api)
        if decision is None:
            return None
        row = wanted.scale
        return ScalingStatus(
            wanted=decision.wanted,
            reason=scaling_words.reason(decision),
            bound=decision.bound or "",
            advice=scaling_words.advice(decision) or "",
            changed=rfc3339(row.since_wall_s) if row.reason else None,
            change=row.reason,
        )

    def _machine(self, assessment: Assessment) -> Machine | None:
        if not self._engine.shares_cpu:
            return None
        # Its nodes have each all of it, and see all that is used of it.
        cores = max((report.node.cpu_millis for report in assessment.seen.nodes), default=0) / 1000
        return Machine(cores=cores, busy_cores=self._loads.busy_cores)


def _parked(assessment: Assessment | None) -> set[ReplicaId]:
    """Who is ready and out of rotation: nothing that is done comes from there."""
    cases = assessment.cases if assessment is not None else ()
    return {case.decision.parked.replica for case in cases if case.decision.parked is not None}


def _without(loads: NodeLoads, parked: Collection[ReplicaId]) -> NodeLoads:
    if not parked:
        return loads
    kept = tuple(reading for reading in loads.replicas if reading.replica not in parked)
    return msgspec.structs.replace(loads, replicas=kept)


def _awake(assessment: Assessment) -> list[Case]:
    return [case for case in assessment.cases if case.decision.goal is not None and not case.wanted.scale.asleep]


def _scalable(case: Case, downscale_window_s: float, *, is_room_coming: bool) -> Scalable:
    wanted, decision = case.wanted, case.decision
    assert decision.goal is not None
    resources = decision.goal.resources
    own_window_s = wanted.downscale_window_s
    return Scalable(
        api=wanted.api,
        replicas=wanted.replicas,
        min_replicas=max(1, wanted.min_replicas),
        max_replicas=wanted.max_replicas,
        cpu_millis=resources.cpu_millis,
        gpus=resources.gpus,
        target_cpu_utilization=wanted.target_cpu_utilization,
        target_in_flight=wanted.target_in_flight,
        downscale_window_s=downscale_window_s if own_window_s is None else own_window_s,
        starting=sum(one.state in (SlotState.STARTING, SlotState.WAITING) for one in decision.stay),
        lacks=next(_lacks(case), None),
        room_is_coming=is_room_coming,
        in_rollout=decision.fallback is not None or (wanted.live_wall_s is None and wanted.failed is None),
    )


def _lacks(case: Case) -> Iterator[Lack]:
    """What its replicas wait for that have no room."""
    for one in case.decision.stay:
        lease = one.lease
        if lease is not None and lease.state is LeaseState.PENDING and lease.lacks is not None:
            yield lease.lacks
