"""
What is promised, under generated schedules of faults.

In CI they are the same each time, everywhere else new ones. `CORTEX_SIM_SEED=<seed>` repeats one, `CORTEX_SIM_RUNS=<n>`
sets how many are run; `bench/simulate.py` runs a hundred thousand. The tests at the end break the planner on purpose: a
simulation that does not notice proves nothing.
"""

from __future__ import annotations

import os
import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from cortex.controlplane import apply as apply_module
from cortex.controlplane import observe as observe_module
from cortex.controlplane import tables as tables_module
from cortex.controlplane.world import Planner, World
from cortex.ids import ApiKey, NodeId
from cortex.planning import assessment as assessment_module
from cortex.planning import backoff, reach, rollout
from cortex.planning import plan as plan_module
from cortex.planning.actions import (
    Action,
    MarkLive,
    MarkServing,
    OrderNode,
    Plan,
    RecordExit,
    RecordStop,
    RecoverLease,
    ReleaseLease,
)
from cortex.planning.assessment import Assessment
from cortex.planning.autoscale import Rule, decide
from cortex.planning.batching import Known
from cortex.planning.model import Snapshot
from cortex.planning.parking import Parking
from cortex.planning.plan import plan
from cortex.planning.rollout import SURGE
from cortex.testing.builders import a_node
from cortex.testing.simulation import Mood, Simulation, Violation, broken, schedule
from cortex.wire.orders import UNNUMBERED, DrainReplica, RoutesRevision, SetReplicaBatching, SetRoute
from cortex.wire.reports import AgentReport

RUNS = int(os.environ.get("CORTEX_SIM_RUNS", "400"))
SEED = os.environ.get("CORTEX_SIM_SEED")
MOOD = os.environ.get("CORTEX_SIM_MOOD")
CHUNKS = 8
"""The schedules are spread over so many tests, each with a time limit of its own."""


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Thousands of pretended faults would each be logged."""
    caplog.set_level("CRITICAL", logger="cortex")


@pytest.mark.slow
@pytest.mark.skipif(SEED is not None, reason="one schedule is repeated instead")
@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_every_promise_is_kept_under_generated_faults(chunk: int) -> None:
    answers: Counter[str] = Counter()
    first = (
        0 if os.environ.get("CI") else random.randrange(10**9)
    )  # the same for each chunk: pytest-randomly sees to that
    for seed in range(first + chunk, first + RUNS, CHUNKS):
        answers += Simulation(seed).run().answers
    assert answers["answered"] > sum(answers.values()) / 3, "hardly anything was served: the schedules prove little"


@pytest.mark.skipif(SEED is None, reason="CORTEX_SIM_SEED names the schedule to repeat")
def test_one_schedule_is_repeated() -> None:
    Simulation(int(SEED or 0), mood=Mood(MOOD) if MOOD else None).run()


def test_the_same_seed_gives_the_same_schedule() -> None:
    for seed in (3, 4, 5):
        assert Simulation(seed).run() == Simulation(seed).run()


@pytest.mark.parametrize("mood", Mood)
def test_schedules_of_every_mood_do_what_they_say(mood: Mood) -> None:
    events: Counter[str] = Counter()
    answers: Counter[str] = Counter()
    for seed in range(12):
        outcome = Simulation(seed, mood=mood).run()
        events += outcome.events
        answers += outcome.answers
    assert ("kill" in events) is (mood in (Mood.KILLS, Mood.ROUGH))
    assert ("a node is lost" in events) is (mood is Mood.ROUGH)
    assert answers["answered"]
    assert events["up"]
    assert events["a knock is answered"]
    assert answers["held"] or mood in (Mood.CALM, Mood.TIGHT)


# ---- the simulation notices ------------------------------------------------------------------------------------------


def without(*kinds: type[Action]) -> Planner:
    """A planner that forgets some actions."""

    def forgetful(assessment: Assessment) -> Plan:
        found = plan(assessment)
        return msgspec.structs.replace(found, actions=tuple(a for a in found.actions if not isinstance(a, kinds)))

    return forgetful


def hasty(assessment: Assessment) -> Plan:
    """A planner that does not wait until every node has reported."""
    seen = msgspec.structs.replace(assessment.seen, settled=True)
    return plan(msgspec.structs.replace(assessment, seen=seen))


def violation(
    planner: Planner = plan,
    *,
    rule: Rule = decide,
    saying: str = "",
    schedules: int = 300,
    mood: Mood | None = None,
) -> str:
    """What the first schedule says that notices this (a pattern); by default the first that notices anything."""
    for seed in range(schedules):
        try:
            Simulation(seed, planner=planner, rule=rule, mood=mood).run()
        except Violation as found:
            if re.search(saying, str(found)):
                return str(found)
    raise AssertionError(f"{schedules} schedules noticed nothing")


def test_a_violation_tells_how_to_repeat_it_and_what_happened_before() -> None:
    said = violation(without(ReleaseLease))
    assert "repeat it with CORTEX_SIM_SEED=" in said
    assert "--- deploy" in said
    assert "route /" in said


def test_it_notices_an_old_version_taken_down_before_the_new_one_is_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    stays = rollout.who_stays

    def too_early(case: Any, groups: Any) -> Any:
        found = stays(case, groups)
        if found.news and not found.proven:
            gone = [slot for slot in found.olds if slot.ready]
            found.leave.extend(gone)
            found.olds = [slot for slot in found.olds if slot not in gone]
        return found

    monkeypatch.setattr(rollout, "who_stays", too_early)
    assert violation(saying=r"a route on .* leaves 0 of \d ready replicas", mood=Mood.CALM)


def test_it_notices_too_many_replicas_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout, "SURGE", SURGE + 2)
    assert violation(saying=r"makes \d replicas, \d (is|are) wanted", mood=Mood.CALM)


def test_it_notices_room_that_is_never_given_back() -> None:
    assert violation(without(ReleaseLease), saying=r"leases \[")


@pytest.mark.slow
def test_it_notices_exits_that_are_not_counted() -> None:
    assert violation(without(RecordExit), saying="not at rest")


def test_it_notices_deploys_without_an_end() -> None:
    assert violation(without(MarkLive), saying="neither live nor failed", mood=Mood.CALM)


def test_it_notices_a_first_version_that_is_given_up_although_it_serves() -> None:
    assert violation(without(MarkServing))


def test_it_notices_replicas_that_nobody_adopts() -> None:
    assert violation(without(RecoverLease), mood=Mood.ROUGH)


@pytest.mark.slow
def test_it_notices_a_control_plane_that_acts_before_it_knows_what_runs() -> None:
    assert violation(hasty, mood=Mood.ROUGH, schedules=600)


def test_it_notices_a_failed_version_that_is_tried_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backoff, "reason_to_give_up", lambda _record: None)
    assert violation(saying="not at rest")


def test_it_notices_requests_that_are_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    route_of = plan_module.wanted_route

    def ready_only(wanted: Any, decision: rollout.Decision, *rest: Any, **named: Any) -> Any:
        ready = tuple(slot for slot in decision.stay if slot.ready)
        return route_of(wanted, msgspec.structs.replace(decision, stay=ready), *rest, **named)

    monkeypatch.setattr(plan_module, "wanted_route", ready_only)
    assert violation(saying="a request is not held but unavailable", mood=Mood.KILLS)


def test_it_notices_a_surge_that_never_settles(monkeypatch: pytest.MonkeyPatch) -> None:
    room_of = rollout.room_for
    monkeypatch.setattr(rollout, "room_for", lambda *given, **named: replace(room_of(*given, **named), settle=[]))
    assert violation()


def test_it_notices_a_disagreement_that_is_not_remembered() -> None:
    assert violation(without(RecordStop), saying="are remembered", mood=Mood.CALM)


def test_it_notices_replicas_that_go_on_batching_after_a_disagreement() -> None:
    def deaf(assessment: Assessment) -> Plan:
        found = plan(assessment)
        told = [a for a in found.actions if not (isinstance(a, OrderNode) and isinstance(a.order, SetReplicaBatching))]
        return msgspec.structs.replace(found, actions=tuple(told))

    assert violation(deaf, saying="still batches", mood=Mood.CALM)


def test_it_notices_replicas_that_start_to_batch_after_a_disagreement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Known, "stop", lambda *_arguments: None)
    assert violation(saying="is to batch, and rows of its model are known", mood=Mood.ROUGH)


# ---- many nodes ------------------------------------------------------------------------------------------------------


def test_it_notices_a_replica_that_is_drained_before_a_slow_node_has_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_module, "is_out", lambda *_: True)
    assert violation(saying="is taken away while .* still routes to it", mood=Mood.CALM)


@pytest.mark.parametrize(
    ("after_s", "saying"), [(1.0, r"counts as lost, and was heard \d"), (60.0, "does not count as lost")]
)
def test_it_notices_nodes_that_are_lost_too_soon_or_too_late(
    monkeypatch: pytest.MonkeyPatch, after_s: float, saying: str
) -> None:
    monkeypatch.setattr(reach, "LOST_AFTER_S", after_s)
    assert violation(saying=saying, mood=Mood.ROUGH)


def test_it_notices_routes_that_are_given_to_one_node_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    side_by_side = apply_module.give_orders

    def one_after_the_other(actions: Sequence[OrderNode], world: World, failures: apply_module.Failures) -> None:
        for node in dict.fromkeys(action.node for action in actions):
            side_by_side([action for action in actions if action.node == node], world, failures)
            if node not in world.memory.certain:
                return  # who has not answered is waited for

    monkeypatch.setattr(apply_module, "give_orders", one_after_the_other)
    assert violation(saying="routes are not the same on", mood=Mood.ROUGH)


def test_it_notices_a_node_that_came_back_without_its_routes_and_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    has_table = tables_module.has_table

    def believed(report: AgentReport, revision: RoutesRevision, routes: Mapping[ApiKey, SetRoute]) -> bool:
        return report.routes_revision == UNNUMBERED or has_table(report, revision, routes)

    monkeypatch.setattr(tables_module, "has_table", believed)
    assert violation(saying="routes are not the same on", mood=Mood.ROUGH)


def test_it_notices_a_control_plane_that_waits_for_a_silent_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observe_module, "LOST_AFTER_S", 60.0)
    assert violation(saying="nothing is planned, since some node is silent", mood=Mood.ROUGH)


def test_it_notices_replicas_of_a_lost_node_that_count_as_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assessment_module, "within_reach", lambda seen: seen)
    assert violation(saying="whose node is lost", mood=Mood.ROUGH)


def test_it_notices_a_node_that_came_back_and_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    ever: set[NodeId] = set()

    def forgetting(seen: Snapshot) -> Snapshot:
        ever.update(reach.lost_nodes(seen.silent_s))
        silent_s = {node: 1000.0 if node in ever else silent for node, silent in seen.silent_s.items()}
        return reach.within_reach(msgspec.structs.replace(seen, silent_s=silent_s))

    monkeypatch.setattr(assessment_module, "within_reach", forgetting)
    assert violation(saying="routes are not the same|is there, .* is wanted|the route on", mood=Mood.ROUGH)


# ---- one that is parked ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mood", "comes_back"), [(Mood.CALM, True), (Mood.TIGHT, False)])
def test_replicas_are_parked_and_come_back(mood: Mood, comes_back: bool) -> None:
    answers: Counter[str] = Counter()
    events: Counter[str] = Counter()
    for seed in range(60):
        outcome = Simulation(seed, mood=mood).run()
        answers += outcome.answers
        events += outcome.events
        if answers["parked"] and (events["back to one that was parked"] or not comes_back):
            return
    raise AssertionError("nobody was ever parked, or came back")


def test_it_notices_a_parked_replica_that_is_never_drained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "PATIENCE_S", 3.0)  # most schedules never come to rest, and that is not looked for

    def keeping(assessment: Assessment) -> Plan:
        found = plan(assessment)
        told = [a for a in found.actions if not (isinstance(a, OrderNode) and isinstance(a.order, DrainReplica))]
        return msgspec.structs.replace(found, actions=tuple(told))

    assert violation(keeping, saying="is parked, and .* is not watched", mood=Mood.CALM)


def test_it_notices_a_parked_replica_in_the_way_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    here = frozenset({a_node().node})
    everywhere = Parking(here, here)
    monkeypatch.setattr(assessment_module, "parking_of", lambda _seen: everywhere)
    assert violation(saying="is parked while .* waits for room", mood=Mood.TIGHT)


def test_it_notices_a_parked_replica_that_is_routed(monkeypatch: pytest.MonkeyPatch) -> None:
    route_of = plan_module.wanted_route

    def with_parked(wanted: Any, decision: rollout.Decision, *rest: Any, **named: Any) -> Any:
        stay = decision.stay if decision.parked is None else (*decision.stay, decision.parked)
        return route_of(wanted, msgspec.structs.replace(decision, stay=stay), *rest, **named)

    monkeypatch.setattr(plan_module, "wanted_route", with_parked)
    assert violation(mood=Mood.CALM)


def test_it_notices_a_parked_replica_that_counts_as_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    stays = rollout.who_stays

    def counting(case: Any, groups: Any) -> Any:
        found = stays(case, groups)
        surplus = sum(slot.ready and not slot.routed for slot in groups.useless)
        for slot in [slot for slot in found.news if slot.ready and slot.routed][:surplus]:
            found.news.remove(slot)
            found.leave.append(slot)
        return found

    monkeypatch.setattr(rollout, "who_stays", counting)
    assert violation(saying=r"leaves \d of \d ready replicas", mood=Mood.CALM)


@pytest.mark.slow
def test_it_notices_a_rollback_that_starts_another_one_although_one_was_parked(monkeypatch: pytest.MonkeyPatch) -> None:
    route_of = plan_module.wanted_route

    def without_comers(wanted: Any, decision: rollout.Decision, *rest: Any, **named: Any) -> Any:
        back = wanted.rolled_back is not None
        stay = tuple(slot for slot in decision.stay if not (back and decision.is_new(slot)))
        return route_of(wanted, msgspec.structs.replace(decision, stay=stay), *rest, **named)

    monkeypatch.setattr(plan_module, "wanted_route", without_comers)
    assert violation(saying="was parked, and its version comes back", mood=Mood.CALM)


SHOWN = "no window shows a need for more than"
FED = "the machine feeds"
WITHIN_ITS_RIGHT = "burns within its request, and there is room"


@pytest.mark.parametrize(
    ("rule", "mood", "saying"),
    [
        (broken.AWindowThatAdds, Mood.CALM, f"{SHOWN}|{FED}"),
        (broken.CountsBeforeReady, Mood.CALM, f"{SHOWN}|{FED}"),
        (broken.PresentInsteadOfMean, Mood.CALM, f"{SHOWN}|{FED}"),
        (broken.IdleProcessorsStepByStep, Mood.CALM, FED),
        (broken.RawInFlight, Mood.CALM, f"{SHOWN}|{FED}"),
        (broken.RequestsOfIdleApis, Mood.KILLS, WITHIN_ITS_RIGHT),
        (broken.ForgetsItsWindow, Mood.CALM, "after an up"),
        (broken.NeverAdds, Mood.TIGHT, WITHIN_ITS_RIGHT),
        (broken.KnowsNoBounds, Mood.CALM, "outside of"),
        (broken.KeepsWhatOthersLack, Mood.TIGHT, "has no room"),
        (broken.WaitsForWhatIsBurnt, Mood.KILLS, "it waits for processors"),
    ],
    ids=lambda given: getattr(given, "__name__", None),
)
def test_it_notices_a_rule_of_scaling_that_is_wrong(rule: type[broken.BrokenRule], mood: Mood, saying: str) -> None:
    assert violation(rule=rule(), saying=saying, mood=mood)


def test_every_rule_that_is_wrong_is_tried() -> None:
    (marks,) = (m for m in test_it_notices_a_rule_of_scaling_that_is_wrong.pytestmark if m.name == "parametrize")
    assert {given[0] for given in marks.args[1]} == set(broken.BROKEN_RULES)
