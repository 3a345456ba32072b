"""Tests of `cortex.controlplane.proving`: what is missing, and what an inspection finds out, come from lists."""

from __future__ import annotations

import msgspec
import pytest

from cortex.controlplane.proving import FIRST_PAUSE_S, LONGEST_PAUSE_S, Proving
from cortex.errors import CortexError, Problem, RetryLater
from cortex.planning.batching import place_of
from cortex.planning.guarding import to_prove
from cortex.state.base import StateFull
from cortex.state.records import StateStore
from cortex.testing.builders import a_build, a_deploy, a_replica, a_sample, a_snapshot, a_wanted_api
from cortex.testing.clock import FakeClock
from cortex.wire.batching import RULES, BatchingState, BatchingVerdict, Mode, Proof, Trial
from cortex.wire.build import BuildSpec, SecretPin, TrackerConfig
from cortex.wire.launch import InspectReport

ORT = "onnxruntime 1.32.0, cpu, 1 thread"
V1 = a_build("v1")
"""For what another thread does; generous, since the machine may be busy."""


def a_report(runtime: str = ORT) -> InspectReport:
    verdict = BatchingVerdict(proof=Proof(rules=RULES, proved=True), trial=Trial(runtime=runtime, rows=9))
    return InspectReport(batching=verdict)


class World:
    """Builds that are wanted, with one replica each that says what it runs on."""

    def __init__(self, *builds: BuildSpec) -> None:
        self.state = StateStore()
        self.state.commit_deploy(a_deploy(*(a_wanted_api(build, live=True) for build in builds)))
        self.clock = FakeClock()
        self.runtime = ""
        self.answer: InspectReport | CortexError = a_report()
        self.asked: list[tuple[BuildSpec, Mode]] = []
        self.proving = Proving(state=self.state, clock=self.clock, missing=self._missing, inspect=self.inspect)

    def _missing(self):
        desired = self.state.desired(now_wall_s=0.0)
        says = BatchingState(runtime=self.runtime)
        reports = (a_replica(wanted.build, batches=False, batching=says) for wanted in desired.apis)
        return to_prove(desired, a_snapshot(*reports))

    def inspect(self, build: BuildSpec, rows: Mode) -> InspectReport:
        self.asked.append((build, rows))
        if isinstance(self.answer, CortexError):
            raise self.answer
        return self.answer


def test_what_is_missing_is_looked_at_one_model_at_a_time_and_kept() -> None:
    world = World(V1, a_build("v2", api="iris/other"))  # type: ignore[arg-type]
    assert [world.proving.step() for _ in range(3)] == [0.0, 0.0, None]
    assert [rows for _build, rows in world.asked] == ["auto", "auto"]
    assert {(record.rules, *record.runtimes.items()) for record in world.state.batching()} == {
        (RULES, (place_of(V1), ORT))
    }


def test_nothing_missing_asks_nobody() -> None:
    world = World(msgspec.structs.replace(V1, batching=False))
    assert world.proving.step() is None
    assert world.asked == []


def test_only_the_model_is_looked_at() -> None:
    build = msgspec.structs.replace(
        V1,
        project="f" * 64,
        handler="handler.py",
        secrets={"TOKEN": SecretPin(name="token", generation="1")},
        tracker=TrackerConfig(model_type="regression"),
        sample=a_sample(b"[1]"),
        packages="e" * 64,
        env={"A": "1"},
    )
    world = World(build)
    world.proving.step()
    ((asked, _rows),) = world.asked
    assert (asked.project, asked.handler, asked.secrets, asked.tracker, asked.sample) == (None, None, {}, None, None)
    assert (asked.model, asked.packages, asked.env) == (build.model, build.packages, build.env)


def test_a_sample_that_the_model_takes_goes_along() -> None:
    world = World(msgspec.structs.replace(V1, sample=a_sample(b"[1]")))
    world.proving.step()
    assert world.asked[0][0].sample == a_sample(b"[1]")


@pytest.mark.parametrize(
    "answer",
    [
        RetryLater("the agent does not answer", after_s=0.2),
        InspectReport(problems=(Problem(reference="model-broken", message="boom"),)),
        InspectReport(),
    ],
)
def test_what_cannot_be_looked_at_is_tried_again_ever_less_often(answer: InspectReport | CortexError) -> None:
    world = World(V1)
    world.answer = answer
    pauses_s = []
    for _ in range(12):
        assert world.proving.step() == 0.0
        wait_s = world.proving.step()
        assert wait_s is not None
        pauses_s.append(wait_s)
        world.clock.advance(wait_s)
    assert pauses_s[:3] == [FIRST_PAUSE_S, 2 * FIRST_PAUSE_S, 4 * FIRST_PAUSE_S]
    assert pauses_s[-1] == LONGEST_PAUSE_S
    assert len(world.asked) == 12
    world.answer = a_report()
    assert [world.proving.step(), world.proving.step()] == [0.0, None]


def test_one_model_that_fails_does_not_keep_others_waiting() -> None:
    world = World(V1, a_build("v2", api="iris/other"))  # type: ignore[arg-type]
    world.answer = InspectReport()
    assert [world.proving.step(), world.proving.step()] == [0.0, 0.0]
    assert len({build.model for build, _rows in world.asked}) == 2


def test_a_runtime_that_no_inspection_has_is_not_tried_for_ever() -> None:
    world = World(V1)
    world.proving.step()
    world.runtime = "onnxruntime 1.30.0, cpu, 1 thread"  # of a replica from before an upgrade
    assert [world.proving.step(), world.proving.step()] == [0.0, FIRST_PAUSE_S]
    assert len(world.asked) == 2


def test_another_runtime_is_tried_when_a_replica_runs_on_it() -> None:
    world = World(V1)
    world.proving.step()
    world.runtime = "onnxruntime 1.33.0, cpu, 1 thread"
    world.answer = a_report(world.runtime)
    assert [world.proving.step(), world.proving.step()] == [0.0, None]
    (record,) = world.state.batching()
    assert [trial.runtime for trial in record.trials] == [ORT, world.runtime]


def test_a_disk_that_is_full_is_told_to_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(V1)

    def full(*_arguments: object, **_named: object) -> None:
        raise StateFull("state.db", "the disk is full")

    monkeypatch.setattr(world.state, "record_verdict", full)
    with pytest.raises(StateFull):
        world.proving.step()
