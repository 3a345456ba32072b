"""Tests of `cortex.agent.life.report`."""

import pytest

from cortex.agent.life import events
from cortex.agent.life.events import Happened
from cortex.agent.life.report import report
from cortex.testing.builders import a_sample
from cortex.wire.batching import BatchingOrder
from cortex.wire.launch import ChildExited
from cortex.wire.reports import Phase


def reported(story):
    return report(story.life, story.now, rss_bytes=1, peak_rss_bytes=2, cpu_s=3.0)


def test_one_without_a_process_has_no_pid_and_says_nothing(story):
    story.order()
    story.clock.advance(2.0)
    found = reported(story)
    assert (found.phase, found.pid, found.in_flight, found.warnings, found.batching) == (
        Phase.STARTING,
        None,
        0,
        (),
        None,
    )
    assert (found.phase_age_s, found.rss_bytes, found.peak_rss_bytes, found.cpu_s) == (2.0, 1, 2, 3.0)
    assert (found.got_on_wall_s, found.given_up_wall_s) == (0.0, 0.0)


def test_one_that_runs_is_reported_with_what_it_says(story):
    story.running()
    story.says(in_flight=3)
    found = reported(story)
    assert (found.pid, found.in_flight, found.was_ready, found.exit) == (story.PROCESS.pid, 3, True, None)
    assert (found.batches, found.model) == (BatchingOrder(), story.life.order.build.model_key)
    assert found.started_wall_s == story.life.started_wall_s


def test_one_that_starts_says_since_when_it_is_at_what_it_does_and_until_when_it_may_be(story):
    story.loading()
    story.says(progress="loading the model")
    found, said_wall_s = reported(story), story.clock.wall_s()
    assert (found.progress, found.got_on_wall_s) == ("loading the model", said_wall_s)
    assert found.given_up_wall_s == said_wall_s + story.settings.start_timeout_s


@pytest.mark.parametrize(("timeout_s", "limit_s"), [(2.0, 2 * 2.0 + 5.0), (1000.0, 300.0)])
def test_a_sample_is_waited_for_no_longer_than_it_may_take(story, timeout_s, limit_s):
    story.running(Phase.WARMING, sample=a_sample(b"[]", gate=True, timeout_s=timeout_s))
    found = reported(story)
    assert found.given_up_wall_s - found.got_on_wall_s == pytest.approx(limit_s)


def test_how_one_has_ended_is_reported_with_its_phase_and_not_before(story):
    story.running()
    end = ChildExited(pid=1, replica="r", attempt=1, code=1, signal=None)
    story.tell(events.ProcessGone(), events.EndSeen(end=end), events.RemainsRead())
    assert (reported(story).phase, reported(story).exit) == (Phase.READY, None)
    story.tell(Happened.END_NOTED)
    found = reported(story)
    assert (found.phase, found.pid, found.exit.code) == (Phase.EXITED, None, 1)
