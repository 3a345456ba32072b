"""Tests of `cortex.controlplane.statuses`: what is shown of batches."""

from __future__ import annotations

from cortex.controlplane import statuses
from cortex.controlplane.world import World
from cortex.engines.fake import FakeEngine
from cortex.planning.batching import Stop, place_of
from cortex.state.memory import MemoryStateStore
from cortex.testing.builders import API, a_build, a_deploy, a_node, a_wanted_api
from cortex.testing.clock import FakeClock
from cortex.testing.fake_agent import FakeAgents
from cortex.wire.batching import RULES, BatchingVerdict, Disagreement, Proof, Trial
from cortex.wire.operator import Batching

BUILD = a_build()
PROOF = Proof(rules=RULES, proved=True, operators=3)
TRIAL = Trial(runtime="ort, cpu", rows=9)
APART = Disagreement(output="y", alone="0.5", together="0.7")


def shown(state: MemoryStateStore) -> Batching | None:
    clock = FakeClock()
    engine = FakeEngine([a_node()], clock=clock)
    world = World(state=state, engine=engine, agents=FakeAgents(clock), clock=clock, epoch=1)
    (status,) = statuses.current(world, "http://x")
    return status.batching


def a_state() -> MemoryStateStore:
    state = MemoryStateStore()
    state.commit_deploy(a_deploy(a_wanted_api(BUILD)))
    state.record_verdict(BUILD.model_key, BatchingVerdict(proof=PROOF, trial=TRIAL), place=place_of(BUILD))
    return state


def test_what_batching_rests_on_is_shown_as_facts() -> None:
    assert shown(a_state()) == Batching(
        batches=True,
        text="batching: proved from 3 operators, every bit stays the same; tried with 9 rows, no difference",
        mode="auto",
        runtime="ort, cpu",
        proof=PROOF,
        trial=TRIAL,
    )


def test_a_disagreement_is_shown_with_when_and_where_it_was_seen() -> None:
    state = a_state()
    stop = Stop(api=API, replica="r.0", started_wall_s=1.0, runtime="ort, cpu", disagreement=APART, wall_s=60.0)  # type: ignore[arg-type]
    state.record_stop(BUILD.model_key, stop, rules=RULES)
    found = shown(state)
    assert found is not None
    assert (found.batches, found.disagreement, found.disagreed, found.disagreed_in) == (
        False,
        APART,
        "1970-01-01T00:01:00Z",
        "r.0",
    )
