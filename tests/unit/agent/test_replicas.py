"""Tests of `cortex.agent.replicas` with a fake clock and a launcher that is asked nothing or lies; no processes."""

import asyncio
import os
import signal
import socket
from pathlib import Path

import msgspec
import pytest

from cortex import processes
from cortex.agent import replicas as replicas_module
from cortex.agent.launchers import ForkRefused, LauncherLost
from cortex.agent.provisions import Provided
from cortex.agent.replicas import Replica, ReplicaRecord, Replicas, threads_for
from cortex.errors import CortexError, Problem
from cortex.ids import replica_id, socket_stem
from cortex.processes import own_identity
from cortex.testing.builders import a_build
from cortex.testing.clock import FakeClock
from cortex.wire.batching import BatchingOrder, BatchingState, Disagreement
from cortex.wire.launch import ChildExited, ReplicaRequest, ReplicaStatus, SetBatching
from cortex.wire.orders import StartReplica
from cortex.wire.reports import ExitReport, Phase
from cortex.wire.stats import EXIT_FILE_SUFFIX, LastWords

BUILD = a_build()
OWN = own_identity()


class FakeProvisions:
    """Has everything there at once, or after `ready` is set, or not at all."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.ready: asyncio.Event | None = None

    async def provide(self, build, tell=lambda _doing: None):
        if self.ready is not None:
            tell("installing packages")
            await self.ready.wait()
        if self.error is not None:
            raise self.error
        return Provided(Path("/m"), None, {})

    def python(self, environment):
        return Path("/usr/bin/python3")


class FakeLauncher:
    """Raises what it is given, one for each fork."""

    key = "k"

    def __init__(self, *outcomes: Exception) -> None:
        self.outcomes = list(outcomes)
        self.forks = 0

    def look(self) -> None:
        pass

    async def fork(self, spec, slot, control, secrets, *, kept=""):
        self.forks += 1
        raise self.outcomes.pop(0)


class Bench:
    """Replicas on a bench: everything around them is pretended."""

    def __init__(self, settings, layout, *outcomes: Exception) -> None:
        self.clock = FakeClock()
        self.layout = layout
        self.settings = settings
        self.changes = 0
        self.abandoned: list[str] = []
        self.provisions = FakeProvisions()
        self.replicas = Replicas(
            settings=settings,
            layout=layout,
            clock=self.clock,
            provisions=self.provisions,
            settle_routes=self._nothing,
            quiesced=self._nothing,
            abandon=self._abandon,
            end_strays=self._nothing,
            on_change=self._changed,
        )
        self.launcher = FakeLauncher(*outcomes)
        self.replicas.launchers.get = lambda *_args, **_kwargs: self.launcher

    async def _nothing(self, *_args) -> None:
        pass

    async def _abandon(self, stem: str) -> None:
        self.abandoned.append(stem)

    def _changed(self) -> None:
        self.changes += 1

    def running(self, phase: Phase = Phase.READY, **fields) -> Replica:
        """A replica whose process is this one, which is never signalled, since no descriptor of it is open."""
        order = an_order()
        slot, inode = self.replicas._bind_slot(order.replica)
        replica = Replica(order=order, slot=slot, slot_inode=inode, identity=OWN, **fields)
        self.replicas._replicas[order.replica] = replica
        replica.was_ready = phase in (Phase.READY, Phase.DRAINING)
        replica.answered_s = self.clock.monotonic_s()
        self.replicas._set_phase(replica, phase)
        return replica

    def says(self, replica: Replica, **fields) -> None:
        self.clock.advance(0.01)
        self.replicas._status_received(replica, a_status(**{"phase": replica.phase, **fields}))

    async def check(self, *, after_s: float | None = None) -> Problem | None:
        """A health check when it is due; what it found wrong."""
        self.clock.advance(self.settings.health_interval_s if after_s is None else after_s)
        for replica in self.replicas:
            replica.connecting = True  # nobody listens: do not try
        await self.replicas.check_health()
        return next((replica.ended_by_us for replica in self.replicas), None)

    def close(self) -> None:
        for replica in self.replicas:
            replica.slot.close()


@pytest.fixture
def play(settings, layout):
    """Run a story on a bench."""

    def play(story, *outcomes: Exception):
        async def run():
            bench = Bench(settings, layout, *outcomes)
            try:
                async with asyncio.timeout(60):
                    return await story(bench)
            finally:
                bench.close()

        return asyncio.run(run())

    return play


def an_order(attempt: int = 1) -> StartReplica:
    return StartReplica(replica=replica_id(BUILD.api, BUILD.revision, 0), attempt=attempt, build=BUILD)


def a_status(**fields) -> ReplicaStatus:
    defaults = {
        "replica": an_order().replica,
        "attempt": 1,
        "pid": OWN.pid,
        "start_ticks": OWN.start_ticks,
        "phase": Phase.READY,
        "phase_wall_s": 0.0,
        "started_wall_s": 0.0,
    }
    return ReplicaStatus(**{**defaults, **fields})


async def until(condition):
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.001)


# ---- health ----------------------------------------------------------------------------------------------------------


def test_a_replica_that_answers_is_left_alone(play):
    async def story(bench):
        replica = bench.running()
        for _ in range(20):
            bench.says(replica, heartbeat_age_s=0.5)
            assert await bench.check() is None

    play(story)


def test_a_replica_that_does_not_answer_for_5_s_is_hung(play):
    async def story(bench):
        bench.running()
        found = [await bench.check() for _ in range(4)]
        return [problem.reference if problem else None for problem in found]

    assert play(story) == [None, None, None, "hung"]


def test_time_in_which_the_agent_itself_did_not_run_is_not_held_against_replicas(play):
    async def story(bench):
        replica = bench.running()
        await bench.check()
        found = [await bench.check(after_s=600.0)]  # the machine was suspended, answers wait to be read
        bench.says(replica)
        found += [await bench.check() for _ in range(3)]
        bench.says(replica)
        found += [await bench.check(after_s=5.0) for _ in range(3)]  # a crowded machine: each check comes 3 s late
        return found

    assert play(story) == [None] * 7


def test_a_hung_replica_is_found_on_a_crowded_machine_too(play):
    async def story(bench):
        bench.running()
        for checks in range(1, 20):
            if await bench.check(after_s=5.0) is not None:
                return checks
        return None

    assert play(story) == 4


def test_an_event_loop_is_hung_only_when_two_answers_in_a_row_say_so(play):
    async def story(bench):
        replica = bench.running()
        found = []
        for age_s in (30.0, 0.5, 30.0, 32.0):  # the first: of a machine that was just woken up
            bench.says(replica, heartbeat_age_s=age_s)
            found.append(await bench.check())
        return [problem.message if problem else None for problem in found]

    assert play(story) == [None, None, None, "its event loop stood still for 32 s with no request running"]


def test_an_event_loop_that_stands_still_over_a_request_is_at_work(play):
    async def story(bench):
        replica = bench.running()
        for _ in range(5):
            bench.says(replica, heartbeat_age_s=30.0, oldest_request_age_s=30.0, in_flight=1)
            assert await bench.check() is None

    play(story)


def test_the_same_old_answer_does_not_count_twice(play):
    async def story(bench):
        replica = bench.running()
        bench.says(replica, heartbeat_age_s=30.0)
        return [await bench.check(), await bench.check()]

    assert play(story) == [None, None]


def test_a_request_that_outlived_its_timeout_costs_its_replica(play):
    async def story(bench):
        replica = bench.running()
        bench.says(replica, overdue=True, oldest_request_age_s=700.0)
        return (await bench.check()).reference

    assert play(story) == "overdue"


def test_a_replica_that_drains_may_be_overdue(play):
    async def story(bench):
        replica = bench.running(Phase.DRAINING, stopping=True)
        bench.says(replica, overdue=True, oldest_request_age_s=700.0)
        return await bench.check()

    assert play(story) is None


def test_a_start_without_progress_is_given_up_and_progress_begins_anew(play):
    async def story(bench):
        replica = bench.running(Phase.LOADING)
        limit_s = bench.settings.start_timeout_s
        checks = int(limit_s / bench.settings.health_interval_s)
        found = [await bench.check() for _ in range(checks)]
        bench.says(replica, progress="importing handler.py")
        found += [await bench.check() for _ in range(checks)]
        assert set(found) == {None}
        return await bench.check()

    problem = play(story)
    assert problem.reference == "start-timeout"
    assert "importing handler.py" in problem.message


def test_a_machine_that_slept_over_a_start_has_not_used_up_its_time(play):
    async def story(bench):
        bench.running(Phase.LOADING)
        return await bench.check(after_s=10_000.0)

    assert play(story) is None


def test_a_replica_whose_socket_file_is_gone_is_of_no_use(play):
    async def story(bench):
        replica = bench.running()
        bench.says(replica)
        bench.layout.slot_socket(replica.stem).unlink()
        return (await bench.check()).reference

    assert play(story) == "socket-removed"


# ---- batching --------------------------------------------------------------------------------------------------------

BATCH = BatchingOrder(True, "labels")
ORT = "onnxruntime 1.32.0, cpu, 1 thread"


class FakeChannel:
    """A control socket; keeps what is sent but for questions of health."""

    closed = False

    def __init__(self) -> None:
        self.sent: list[BatchingOrder] = []

    def send(self, payload: bytes) -> None:
        message = msgspec.json.decode(payload, type=ReplicaRequest)
        if isinstance(message, SetBatching):
            self.sent.append(message.order)


def batching(order=None, **fields) -> BatchingState:
    return BatchingState(order=order or BatchingOrder(), runtime=ORT, **fields)


def test_an_order_about_batches_is_passed_on_at_once_reported_and_remembered(play):
    async def story(bench):
        replica = bench.running(control=FakeChannel())
        bench.replicas.set_batching(replica.id, BATCH)
        (report,) = bench.replicas.reports()
        (record,) = bench.replicas._read_records()
        return replica.control.sent, report.batches, record.order.batches

    assert play(story) == ([BATCH], BATCH, BATCH)


def test_the_same_order_about_batches_again_changes_nothing(play):
    async def story(bench):
        replica = bench.running(control=FakeChannel())
        bench.replicas.set_batching(replica.id, BATCH)
        changes = bench.changes
        bench.replicas.set_batching(replica.id, BATCH)
        bench.replicas.set_batching(replica_id(BUILD.api, BUILD.revision, 7), BATCH)
        return replica.control.sent, bench.changes - changes

    assert play(story) == ([BATCH], 0)


def test_a_replica_that_is_still_starting_is_told_about_batches_once_it_says_something(play):
    async def story(bench):
        replica = bench.running(Phase.STARTING)
        bench.replicas.set_batching(replica.id, BATCH)
        assert bench.replicas.replica_spec(replica.order, Provided(Path("/m"), None, {})).batches == BATCH
        replica.control = FakeChannel()
        bench.says(replica, phase=Phase.LOADING, batching=batching())
        bench.says(replica, phase=Phase.WARMING, batching=batching())
        return replica.control.sent

    assert play(story) == [BATCH]


def test_a_replica_that_does_not_take_up_what_it_was_told_is_told_again_when_its_health_is_checked(play):
    async def story(bench):
        replica = bench.running(control=FakeChannel())
        bench.replicas.set_batching(replica.id, BATCH)
        for _ in range(3):
            bench.says(replica, batching=batching())
        sent = [len(replica.control.sent)]
        await bench.check()
        bench.says(replica, batching=batching(BATCH))
        await bench.check()
        return [*sent, len(replica.control.sent)]

    assert play(story) == [1, 2]


def test_rows_that_disagreed_are_news_and_counting_rows_is_none(play):
    async def story(bench):
        replica = bench.running(control=FakeChannel())
        apart = Disagreement(output="y", alone="1", together="2")
        changes = []
        for state in (
            batching(),
            batching(guarded_rows=1),
            batching(guarded_rows=2, disagreement=apart),
            batching(guarded_rows=3, disagreement=apart),
        ):
            before = bench.changes
            bench.says(replica, batching=state)
            changes.append(bench.changes - before)
        (report,) = bench.replicas.reports()
        return changes, report.batching, report.model

    changes, state, model = play(story)
    assert changes == [1, 0, 1, 0]
    assert state.disagreement.together == "2"
    assert model == BUILD.model_key


# ---- statuses --------------------------------------------------------------------------------------------------------


def test_what_a_replica_says_moves_it_on_and_never_back(play):
    async def story(bench):
        replica = bench.running(Phase.LOADING)
        phases = []
        for phase in (Phase.WARMING, Phase.READY, Phase.WARMING):
            bench.says(replica, phase=phase)
            phases.append(replica.phase)
        return phases, replica.was_ready

    assert play(story) == ([Phase.WARMING, Phase.READY, Phase.READY], True)


def test_what_another_attempt_says_does_not_count(play):
    async def story(bench):
        replica = bench.running(Phase.LOADING)
        bench.says(replica, phase=Phase.READY, attempt=2)
        return replica.phase

    assert play(story) is Phase.LOADING


def test_one_that_somebody_else_told_to_end_is_what_it_was_until_it_has(play):
    async def story(bench):
        replica = bench.running()
        bench.says(replica, phase=Phase.DRAINING)
        return replica.phase, replica.leaving

    assert play(story) == (Phase.READY, True)


def test_one_that_was_ready_before_we_heard_of_it_was_ready(play):
    async def story(bench):
        replica = bench.running(Phase.LOADING)
        bench.says(replica, phase=Phase.DRAINING, was_ready=True)
        return replica.phase, replica.was_ready, replica.leaving

    assert play(story) == (Phase.READY, True, True)


def test_a_record_that_cannot_be_written_is_owed_and_keeps_nobody_from_getting_ready(play, layout):
    records = layout.node / "replicas"

    async def story(bench):
        replica = bench.running(Phase.LOADING)
        records.write_bytes(b"")  # in the way of the folder
        bench.says(replica, phase=Phase.READY)
        assert (replica.phase, replica.unwritten) == (Phase.READY, True)
        records.unlink()
        await bench.check()
        return replica.unwritten

    assert play(story) is False
    record = msgspec.json.decode((records / f"{socket_stem(an_order().replica)}.json").read_bytes(), type=ReplicaRecord)
    assert (record.order, record.was_ready) == (an_order(), True)


# ---- starting --------------------------------------------------------------------------------------------------------


def exit_of(bench) -> ExitReport:
    (report,) = bench.replicas.reports()
    assert report.phase is Phase.EXITED
    return report.exit


async def started(bench, order: StartReplica) -> ExitReport:
    """Order a start that comes to nothing; how it ended."""
    bench.replicas.start(order)
    await bench.replicas.get(order.replica).launching
    return exit_of(bench)


def test_what_cannot_be_provided_is_the_reason_of_the_exit(play):
    async def story(bench):
        bench.provisions.error = CortexError("the model is damaged")
        return await started(bench, an_order())

    assert play(story).problem.message == "the model is damaged"


def test_a_launcher_that_refuses_is_not_asked_again(play):
    async def story(bench):
        return await started(bench, an_order()), bench.launcher.forks

    exit_report, forks = play(story, ForkRefused("too many processes"))
    assert (exit_report.problem.reference, forks) == ("fork-refused", 1)


def test_a_launcher_that_dies_is_asked_three_times(play):
    async def story(bench):
        return await started(bench, an_order()), bench.launcher.forks

    exit_report, forks = play(story, *[LauncherLost("it died")] * 3)
    assert (exit_report.problem.reference, forks) == ("launcher-lost", 3)


def test_a_machine_at_its_limits_is_the_reason_of_the_exit(play):
    async def story(bench):
        return await started(bench, an_order())

    assert play(story, OSError(24, "Too many open files")).problem.reference == "node-fault"


def test_a_launcher_that_has_yet_to_collect_an_ended_replica_is_waited_for(play, monkeypatch):
    looks = []
    monkeypatch.setattr(processes, "is_zombie", lambda pid: looks.append(pid) or True)
    monkeypatch.setattr(replicas_module, "EXIT_STATUS_WAIT_S", 0.001)
    monkeypatch.setattr(replicas_module, "EXIT_STATUS_WAITS", 10**6)

    async def story(bench):
        replica = bench.running()
        ending = asyncio.create_task(bench.replicas._ended(replica))
        await until(lambda: len(looks) > 20)
        assert not ending.done()
        exited = ChildExited(pid=OWN.pid, replica=replica.id, attempt=1, code=None, signal=9)
        bench.replicas._child_exited(exited)
        await ending
        return exit_of(bench)

    assert (play(story).signal, set(looks)) == (9, {OWN.pid})


def test_a_replica_that_somebody_else_collected_ended_for_reasons_unknown(play, monkeypatch):
    monkeypatch.setattr(replicas_module, "EXIT_STATUS_WAIT_S", 0.001)
    monkeypatch.setattr(replicas_module, "EXIT_STATUS_WAITS", 10**6)

    async def story(bench):
        await bench.replicas._ended(bench.running())
        return exit_of(bench)

    exit_report = play(story)
    assert (exit_report.code, exit_report.signal) == (None, None)


def test_an_attempt_that_was_seen_already_is_not_started_again(play):
    async def story(bench):
        await started(bench, an_order(attempt=2))
        for attempt in (1, 2):
            bench.replicas.start(an_order(attempt=attempt))
        return exit_of(bench).problem.reference, bench.launcher.forks

    assert play(story, ForkRefused("no")) == ("fork-refused", 1)


def test_the_next_attempt_listens_where_the_last_one_did(play):
    async def story(bench):
        await started(bench, an_order())
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.connect(str(bench.layout.slot_socket(socket_stem(an_order().replica))))
            await started(bench, an_order(attempt=2))
            accepted, _ = bench.replicas.get(an_order().replica).slot.accept()
            accepted.close()

    play(story, ForkRefused("no"), ForkRefused("no"))


def test_the_next_attempt_gets_another_slot_when_the_old_ones_file_is_gone(play):
    async def story(bench):
        await started(bench, an_order())
        path = bench.layout.slot_socket(socket_stem(an_order().replica))
        path.unlink()
        await started(bench, an_order(attempt=2))
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.connect(str(path))

    play(story, ForkRefused("no"), ForkRefused("no"))


def test_an_attempt_does_not_speak_the_last_words_of_an_earlier_life(play, layout):
    order = an_order()
    words = layout.stats / f"{order.replica}.{order.attempt}.json{EXIT_FILE_SUFFIX}"
    words.write_bytes(msgspec.json.encode(LastWords(problem=Problem(reference="old", message="old"))))

    async def story(bench):
        return await started(bench, order)

    assert play(story, ForkRefused("new")).problem.message == "new"
    assert not words.exists()


def test_a_replica_drained_while_its_packages_are_installed_ends_at_once(play):
    async def story(bench):
        bench.provisions.ready = asyncio.Event()
        bench.replicas.start(an_order())
        await until(lambda: bench.replicas.reports()[0].progress == "installing packages")
        bench.replicas.drain(an_order().replica, 600.0)
        await until(lambda: bench.replicas.reports()[0].phase is Phase.EXITED)
        return exit_of(bench).drained, bench.launcher.forks

    assert play(story) == (True, 0)


def test_a_replica_forgotten_while_its_packages_are_installed_is_closed_at_once(play, layout):
    async def story(bench):
        bench.provisions.ready = asyncio.Event()
        bench.replicas.start(an_order())
        await until(lambda: bench.replicas.reports()[0].progress == "installing packages")
        bench.replicas.forget(an_order().replica)
        await bench.replicas.closed()
        return bench.replicas.reports(), bench.launcher.forks

    assert play(story) == ((), 0)
    assert list(layout.sockets.iterdir()) == []
    assert list((layout.node / "replicas").iterdir()) == []


def test_a_replica_wanted_again_while_it_is_forgotten_keeps_what_is_its_own(play, layout):
    async def story(bench):
        bench.provisions.ready = asyncio.Event()
        bench.replicas.start(an_order())
        bench.replicas.forget(an_order().replica)
        bench.replicas.start(an_order())
        await bench.replicas.closed()
        path = layout.slot_socket(socket_stem(an_order().replica))
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.connect(str(path))
        bench.replicas.get(an_order().replica).slot.accept()[0].close()
        return (layout.node / "replicas" / f"{socket_stem(an_order().replica)}.json").exists()

    assert play(story)


def test_requests_are_turned_away_when_nobody_came_for_as_long_as_they_are_held(settings, layout):
    hasty = msgspec.structs.replace(settings, hold_timeout_s=0.02)

    async def run():
        bench = Bench(hasty, layout)
        replica = bench.running()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.connect(str(layout.slot_socket(replica.stem)))
            client.setblocking(False)
            replica.gone = True
            bench.replicas._hold(replica)
            bench.clock.advance(1.0)
            await until(lambda: replica.hold_expired and not replica.tasks)
            closed = client.recv(1)
        bench.close()
        return closed, bench.abandoned, replica.stem

    closed, abandoned, stem = asyncio.run(run())
    assert closed == b""
    assert abandoned == [stem]


# ---- words -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cpu_millis", "threads"), [(100, 1), (1000, 1), (1999, 1), (2000, 2), (7500, 7)])
def test_threads_are_whole_cores_of_the_request_and_at_least_one(cpu_millis, threads):
    assert threads_for(cpu_millis) == threads


def test_this_process_is_never_in_danger(play, monkeypatch):
    """It stands for the replicas of a bench, and some of those are found hung."""
    signalled = []
    monkeypatch.setattr(signal, "pidfd_send_signal", lambda *sent: signalled.append(sent))
    monkeypatch.setattr(os, "kill", lambda *sent: signalled.append(sent))

    async def story(bench):
        replica = bench.running()
        while await bench.check() is None:
            pass
        return replica.identity

    assert play(story) == OWN
    assert signalled == []
