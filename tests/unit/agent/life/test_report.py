"""What the control plane is told of a life."""

from __future__ import annotations

import pytest

from cortex.agent.life import events
from cortex.agent.life.events import Happened
from cortex.agent.life.living import sample_limit_s
from cortex.agent.life.report import report
from cortex.errors import Problem
from cortex.testing.builders import a_digest
from cortex.wire.batching import BatchingState
from cortex.wire.build import Sample
from cortex.wire.launch import ChildExited
from cortex.wire.reports import Phase, ReplicaReport

NOTHING_USED = {"rss_bytes": 0, "peak_rss_bytes": 0, "cpu_s": 0.0}


def told(story) -> ReplicaReport:
    return report(story.life, story.now, **NOTHING_USED)


def test_a_replica_is_told_of_with_what_was_ordered_what_it_said_and_what_its_process_uses(story):
    started_wall_s = story.clock.wall_s()
    story.running()
    warning = Problem(reference="sample-failed", message="it was not answered")
    batching = BatchingState(runtime="r")
    story.says(in_flight=3, warnings=(warning,), batching=batching)
    story.tell(after_s=4.0)
    order, build = story.life.order, story.life.order.build
    assert report(story.life, story.now, rss_bytes=5, peak_rss_bytes=6, cpu_s=7.5) == ReplicaReport(
        replica=order.replica,
        api=build.api,
        version=build.version,
        revision=build.revision,
        attempt=1,
        phase=Phase.READY,
        resources=build.resources,
        was_ready=True,
        started_wall_s=started_wall_s,
        phase_age_s=pytest.approx(4.01),
        pid=story.PROCESS.pid,
        in_flight=3,
        rss_bytes=5,
        peak_rss_bytes=6,
        cpu_s=7.5,
        warnings=(warning,),
        model=build.model_key,
        batches=order.batches,
        batching=batching,
        steps=told(story).steps,
    )


def test_one_that_has_no_process_yet_or_has_said_nothing_is_told_of_without(story):
    story.order()
    found = told(story)
    assert (found.pid, found.in_flight, found.warnings, found.batching) == (None, 0, (), None)
    story.loading()
    assert (told(story).pid, told(story).in_flight) == (story.PROCESS.pid, 0)


def test_each_phase_of_a_start_is_told_with_its_seconds_once_it_is_over(story):
    story.loading()
    story.tell(after_s=1.5)
    assert [step.phase for step in told(story).steps] in ([], [Phase.STARTING])
    story.says(phase=Phase.WARMING)
    story.tell(after_s=0.25)
    assert told(story).start_s is None
    story.says(phase=Phase.READY)
    story.tell(after_s=60.0)
    steps = {step.phase: step.seconds for step in told(story).steps}
    assert list(steps)[-1] is Phase.WARMING
    assert steps[Phase.WARMING] == pytest.approx(0.26)
    assert told(story).start_s == pytest.approx(sum(steps.values()))


def test_of_one_that_was_taken_over_nobody_knows_how_it_started(story):
    story.adopt({"identity": story.PROCESS, "was_ready": True}, identity=story.PROCESS)
    story.says(phase=Phase.READY)
    assert (told(story).steps, told(story).start_s) == ((), None)


@pytest.mark.parametrize("gate", [True, False])
def test_until_when_it_may_be_at_what_it_does_is_told_while_it_starts(story, gate):
    sample = Sample(tree=a_digest("sample"), gate=gate, timeout_s=2.0)
    story.order(sample=sample)
    assert (told(story).got_on_wall_s, told(story).given_up_wall_s) == (0.0, 0.0)
    story.running(Phase.LOADING, sample=sample)
    since_s = story.life.progress.since_wall_s
    start_s = story.settings.start_timeout_s
    assert (told(story).got_on_wall_s, told(story).given_up_wall_s) == (since_s, since_s + start_s)
    story.says(phase=Phase.WARMING)
    since_s = story.life.progress.since_wall_s
    limit_s = min(start_s, sample_limit_s(story.life.order.build))
    assert (limit_s < start_s) is gate
    assert (told(story).got_on_wall_s, told(story).given_up_wall_s) == (since_s, since_s + limit_s)
    story.says(phase=Phase.READY)
    assert (told(story).got_on_wall_s, told(story).given_up_wall_s) == (0.0, 0.0)


def test_how_it_ended_is_told_once_it_has_and_no_process_any_more(story):
    story.running()
    assert told(story).exit is None
    end = ChildExited(pid=story.PROCESS.pid, replica=story.life.id, attempt=1, code=3, signal=None)
    story.tell(events.ProcessGone(), events.EndSeen(end=end), events.RemainsRead(), Happened.END_NOTED)
    found = told(story)
    assert (found.phase, found.pid, found.exit) == (Phase.EXITED, None, story.life.exit)
    assert found.exit is not None
    assert found.exit.code == 3
