"""Tests of `cortex.agent.life.adopting`: what becomes of a replica whose agent is another one now."""

import signal

import msgspec
import pytest

from cortex.agent.life import effects, events
from cortex.agent.life.effects import Do, ReplicaRecord
from cortex.agent.life.events import Happened
from cortex.agent.life.state import Intent, Process
from cortex.processes import ProcessIdentity
from cortex.wire.launch import Drain
from cortex.wire.reports import Phase

KILL = effects.Kill(number=signal.SIGKILL)
OTHER = ProcessIdentity(pid=99, start_ticks=1, boot_id="b")


def answers(story, **fields):
    return {"status": story.status(**fields), "identity": story.PROCESS}


def test_one_that_answers_goes_on_as_it_says(story):
    life = story.adopt({"identity": story.PROCESS}, **answers(story, phase=Phase.WARMING))
    assert (life.phase, life.process) == (Phase.WARMING, Process.RUNNING)
    assert story.kinds == [effects.Watch, Do.CONNECT]


@pytest.mark.parametrize(("was_ready", "phase"), [(True, Phase.READY), (False, Phase.LOADING)])
def test_one_that_does_not_answer_in_time_may_be_well(story, was_ready, phase):
    life = story.adopt({"identity": story.PROCESS, "was_ready": was_ready}, is_silent=True)
    assert (life.phase, life.intent, story.kinds) == (phase, Intent.SERVE, [effects.Watch, Do.CONNECT])
    assert not life.owes_record
    assert [story.check() is None for _ in range(4)] == [True, True, True, not was_ready], "its health is seen to"


@pytest.mark.parametrize(("written", "known"), [({"started_wall_s": 5.0}, 5.0), ({}, 0.0)])
def test_when_one_was_started_is_what_was_written_down_and_else_unknown(story, written, known):
    assert story.adopt({"identity": story.PROCESS, **written}, **answers(story)).started_wall_s == known


def test_one_whose_record_was_never_written_is_written_down(story):
    story.adopt({}, **answers(story, phase=Phase.LOADING))
    story.check()
    assert [effect.record.identity for effect in story.of(effects.WriteRecord)] == [story.PROCESS]


def test_one_that_nobody_can_reach_is_ended(story):
    life = story.adopt({"identity": story.PROCESS, "was_ready": True}, is_reachable=False, **answers(story))
    assert KILL in story.effects
    assert (life.is_ending, Do.CONNECT in story.kinds) == (True, False)


def test_one_that_died_without_an_agent_is_held_and_found_out_about(story):
    story.adopt({"identity": story.PROCESS, "was_ready": True})
    assert story.kinds[0] is effects.Watch
    life = story.tell(events.ProcessGone(was_watched=False))
    assert (life.hold is not None, story.kinds[-1]) == (True, Do.LOOK_AT_END)


def test_another_attempt_in_its_place_is_ended(story):
    story.adopt({"identity": story.PROCESS}, impostor=OTHER)
    assert story.effects[0] == effects.EndStray(identity=OTHER)


def test_one_that_was_never_forked_has_ended(story):
    story.adopt({})
    assert story.kinds == [effects.ReadRemains]
    life = story.tell(events.RemainsRead())
    assert (life.phase, life.exit.problem) == (Phase.EXITED, None)
    assert story.of(effects.NoteEnd) == []


def test_one_that_was_being_forked_is_sought(story):
    story.adopt({}, is_silent=True)
    assert story.kinds == [Do.SEEK_ORPHAN]
    assert story.tell(events.OrphanSought(identity=story.PROCESS)).phase is Phase.LOADING


def test_one_that_was_being_forked_and_is_not_there_is_not_forked_by_us(story):
    story.adopt({}, is_silent=True)
    assert story.tell(events.OrphanSought()).phase is Phase.EXITED
    assert Do.FORK not in story.kinds


def test_one_that_was_being_forked_for_a_slot_that_is_gone_is_ended_when_it_says_who_it_is(story):
    story.adopt({}, is_silent=True, is_reachable=False)
    story.tell(events.OrphanSought(identity=story.PROCESS))
    assert KILL in story.effects


@pytest.mark.parametrize("said", [Phase.READY, Phase.DRAINING])
def test_a_drain_goes_on_whether_it_was_told_or_not(story, said):
    record = {"identity": story.PROCESS, "was_ready": True, "draining": True}
    life = story.adopt(record, **answers(story, phase=said, was_ready=True))
    assert (life.phase, story.kinds) == (Phase.DRAINING, [effects.Watch, Do.CONNECT, Do.QUIET])
    story.tell(Happened.CONNECTED, Happened.QUIETED, after_s=1.0)
    assert story.effects == [effects.Send(request=Drain(timeout_s=pytest.approx(59.0)))]


def test_a_drain_of_one_that_never_was_ready_ends_it(story):
    story.adopt({"identity": story.PROCESS, "draining": True}, **answers(story, phase=Phase.LOADING))
    assert story.effects[-1] == effects.Kill(number=signal.SIGTERM)


def test_a_record_of_the_version_before_is_read(story):
    story.running()
    record = ReplicaRecord(order=story.life.order, identity=story.PROCESS, was_ready=True, started_wall_s=5.0)
    fields = {"order", "identity", "was_ready", "draining", "started_wall_s", "hold"}
    assert set(msgspec.json.decode(msgspec.json.encode(record))) == fields
