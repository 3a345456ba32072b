"""Tests of `cortex.agent.replicas` and `lives`, with a launcher that refuses, dies, or starts `sleep`."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
from pathlib import Path

import msgspec
import pytest

from cortex import processes
from cortex.agent.files import files_of, read_records
from cortex.agent.kept import KeptInspections
from cortex.agent.launchers import ForkRefused, LauncherLost
from cortex.agent.life.events import Happened
from cortex.agent.life.sleeping import KNOCK_HELD_S
from cortex.agent.lives import Lives
from cortex.agent.memorykills import MemoryKills
from cortex.agent.provisions import Provided
from cortex.agent.replicas import Replicas
from cortex.agent.safekeeping import Safekeeping
from cortex.errors import CortexError, Problem
from cortex.ids import replica_id
from cortex.testing.builders import a_build
from cortex.testing.clock import FakeClock
from cortex.wire.batching import BatchingOrder
from cortex.wire.framing import LENGTH, framed
from cortex.wire.launch import Ask, ChildExited, Drain, ReplicaRequest, ReplicaStatus, SetBatching
from cortex.wire.orders import HoldSlot, StartReplica
from cortex.wire.reports import ExitReport, Phase
from cortex.wire.stats import LastWords

BUILD = a_build()
REPLICA = replica_id(BUILD.api, BUILD.revision, 0)
BATCH = BatchingOrder(True, "labels")


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
        return Provided(Path("/m"), None, None, {})


class FakeLauncher:
    """Raises what it is given, one for each fork; afterwards it starts a process, whose control socket is here."""

    key = "k"

    def __init__(self, *outcomes: Exception) -> None:
        self.outcomes = list(outcomes)
        self.forks = 0
        self.looks = 0
        self.phase = Phase.READY
        self.processes: list[subprocess.Popen] = []
        self.asked: list[ReplicaRequest] = []
        self._servers = []

    def look(self) -> None:
        self.looks += 1

    async def fork(self, spec, slot, control, secrets, *, kept=""):
        self.forks += 1
        if self.outcomes:
            raise self.outcomes.pop(0)
        process = subprocess.Popen(["sleep", "600"], start_new_session=True)
        self.processes.append(process)
        serve = self._serving(spec, process)
        self._servers.append(await asyncio.start_unix_server(serve, sock=control.dup()))
        return process.pid

    def _serving(self, spec, process):
        identity = processes.identify(process.pid)

        async def serve(reader, writer):
            counts = 0
            with contextlib.suppress(asyncio.IncompleteReadError, OSError):
                while True:
                    status = a_status(spec, identity, phase=self.phase, counts=counts)
                    writer.write(framed(msgspec.json.encode(status)))
                    (length,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
                    request = msgspec.json.decode(await reader.readexactly(length), type=ReplicaRequest)
                    self.asked.append(request)
                    counts = request.counts if isinstance(request, Ask) else counts
                    if isinstance(request, Drain):
                        process.terminate()
            writer.close()

        return serve

    async def close(self) -> None:
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                process.wait()
        for server in self._servers:
            server.close()


class FakeLaunchers:
    """One for all."""

    def __init__(self, launcher: FakeLauncher) -> None:
        self._launcher = launcher

    def get(self, *_args, **_kwargs) -> FakeLauncher:
        return self._launcher

    def __iter__(self):
        return iter(())

    async def adopt(self) -> None:
        pass


class Bench:
    """Replicas on a bench: everything around them is pretended."""

    def __init__(self, settings, layout, *outcomes: Exception) -> None:
        self.clock = FakeClock()
        self.layout = layout
        self.settings = settings
        self.changes = 0
        self.abandoned: list[str] = []
        self.quieted: list[str] = []
        self.cleared: list[object] = []
        self.provisions = FakeProvisions()
        self.launcher = FakeLauncher(*outcomes)
        launchers, self.safekeeping = FakeLaunchers(self.launcher), Safekeeping(layout)
        memory_kills = MemoryKills(self.clock)
        self.lives = Lives(
            settings=settings,
            layout=layout,
            clock=self.clock,
            provisions=self.provisions,
            launchers=launchers,
            kept=KeptInspections(),
            safekeeping=self.safekeeping,
            memory_kills=memory_kills,
            settle_routes=self._settle,
            quiesced=self._quiet,
            abandon=self._abandon,
            end_strays=self._clear,
            on_active=lambda: None,
            on_change=self._changed,
        )
        self.replicas = Replicas(
            settings=settings,
            layout=layout,
            clock=self.clock,
            lives=self.lives,
            launchers=launchers,
            safekeeping=self.safekeeping,
            memory_kills=memory_kills,
        )

    async def _settle(self) -> None:
        pass

    async def _quiet(self, stem: str) -> None:
        self.quieted.append(stem)

    async def _abandon(self, stem: str) -> None:
        self.abandoned.append(stem)

    async def _clear(self, *gone) -> None:
        self.cleared += gone

    def _changed(self) -> None:
        self.changes += 1

    @property
    def report(self):
        (report,) = self.replicas.reports()
        return report

    async def until(self, phase: Phase) -> None:
        await until(lambda: self.report.phase is phase)

    async def exit_of(self, order: StartReplica | None = None) -> ExitReport:
        """How what was ordered last has ended."""
        if order is not None:
            self.replicas.start(order)
        await self.until(Phase.EXITED)
        return self.report.exit

    async def serve(self) -> subprocess.Popen:
        """A replica that is ready."""
        self.replicas.start(an_order())
        await self.until(Phase.READY)
        return self.launcher.processes[-1]

    async def close(self) -> None:
        for replica in self.replicas.lives:
            self.replicas.forget(replica)
        await self.replicas.closed()
        await self.launcher.close()


@pytest.fixture
def play(settings, layout):
    """Run a story on a bench."""

    def play(story, *outcomes: Exception, **other):
        async def run():
            bench = Bench(msgspec.structs.replace(settings, **other), layout, *outcomes)
            try:
                async with asyncio.timeout(60):
                    return await story(bench)
            finally:
                async with asyncio.timeout(60):
                    await bench.close()

        return asyncio.run(run())

    return play


def an_order(attempt: int = 1) -> StartReplica:
    return StartReplica(replica=REPLICA, attempt=attempt, build=BUILD)


def a_status(spec, identity, **fields) -> ReplicaStatus:
    return ReplicaStatus(
        replica=spec.replica,
        attempt=spec.attempt,
        pid=identity.pid,
        start_ticks=identity.start_ticks,
        phase_wall_s=0.0,
        started_wall_s=0.0,
        **fields,
    )


async def until(condition):
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.001)


# ---- starting --------------------------------------------------------------------------------------------------------


def test_what_cannot_be_provided_is_the_reason_of_the_exit(play):
    async def story(bench):
        bench.provisions.error = CortexError("the model is damaged")
        return await bench.exit_of(an_order())

    assert play(story).problem.message == "the model is damaged"


def test_a_fault_of_ours_is_the_reason_of_the_exit(play):
    async def story(bench):
        bench.provisions.error = RuntimeError("never thought of")
        return await bench.exit_of(an_order())

    assert play(story).problem.reference == "node-fault"


def test_a_launcher_that_refuses_is_not_asked_again(play):
    async def story(bench):
        return await bench.exit_of(an_order()), bench.launcher.forks

    exit_report, forks = play(story, ForkRefused("too many processes"))
    assert (exit_report.problem.reference, forks) == ("fork-refused", 1)


def test_a_launcher_that_dies_is_asked_three_times(play):
    async def story(bench):
        return await bench.exit_of(an_order()), bench.launcher.forks

    exit_report, forks = play(story, *[LauncherLost("it died")] * 3)
    assert (exit_report.problem.reference, forks) == ("launcher-lost", 3)


def test_a_machine_at_its_limits_is_the_reason_of_the_exit(play):
    async def story(bench):
        return await bench.exit_of(an_order())

    assert play(story, OSError(24, "Too many open files")).problem.reference == "node-fault"


def test_a_replica_that_says_that_it_is_ready_is_reported_and_remembered(play):
    async def story(bench):
        process = await bench.serve()
        (record,) = read_records(bench.layout)
        return bench.report, process.pid, record, processes.identify(process.pid)

    report, pid, record, identity = play(story)
    assert (report.was_ready, report.pid, report.exit) == (True, pid, None)
    assert (record.order, record.identity, record.was_ready) == (an_order(), identity, True)


def test_an_attempt_that_was_seen_already_is_not_started_again(play):
    async def story(bench):
        await bench.exit_of(an_order(attempt=2))
        for attempt in (1, 2):
            bench.replicas.start(an_order(attempt=attempt))
        return (await bench.exit_of()).problem.reference, bench.launcher.forks

    assert play(story, ForkRefused("no")) == ("fork-refused", 1)


def test_one_that_sleeps_is_told_of_when_somebody_comes_and_is_started_in_its_slot(play, layout):
    async def story(bench):
        bench.replicas.hold_slot(HoldSlot(replica=REPLICA, build=BUILD))
        assert (bench.report.phase, bench.report.attempt, bench.report.knocked_age_s) == (Phase.ASLEEP, 0, None)
        changes = bench.changes
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.connect(str(files_of(layout, an_order()).slot))
            await until(lambda: bench.report.knocked_age_s is not None)
            assert bench.changes == changes + 1
            bench.replicas.hold_slot(HoldSlot(replica=REPLICA, build=BUILD))
            assert bench.report.knocked_age_s is not None
            bench.replicas.start(an_order())
            await bench.until(Phase.READY)
            client.setblocking(False)
            with pytest.raises(BlockingIOError):
                client.recv(1)

    play(story)


def test_who_waits_for_nobody_is_turned_away_and_the_next_one_is_told_of(play, layout):
    async def story(bench):
        bench.replicas.hold_slot(HoldSlot(replica=REPLICA, build=BUILD))
        (replica,) = bench.lives.current.values()
        for _ in range(2):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
                client.settimeout(60)
                client.connect(str(files_of(layout, an_order()).slot))
                await until(lambda: bench.report.knocked_age_s is not None)
                bench.clock.advance(KNOCK_HELD_S)
                bench.lives.tell(replica, Happened.WOKE)
                assert await asyncio.to_thread(client.recv, 1) == b""
                await until(lambda: replica.life.hold is None)
        return bench.abandoned

    assert play(story) == [files_of(layout, an_order()).stem] * 2


def test_one_that_sleeps_and_whose_path_is_removed_gets_another(play, layout):
    async def story(bench):
        bench.replicas.hold_slot(HoldSlot(replica=REPLICA, build=BUILD))
        path = files_of(layout, an_order()).slot
        path.unlink()
        await bench.replicas.check_health()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.connect(str(path))
            await until(lambda: bench.report.knocked_age_s is not None)

    play(story)


def test_who_waits_at_a_slot_is_taken_by_the_next_attempt(play, layout):
    async def story(bench):
        await bench.exit_of(an_order())
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.connect(str(files_of(layout, an_order()).slot))
            bench.replicas.start(an_order(attempt=2))
            await bench.until(Phase.READY)
            client.setblocking(False)
            with pytest.raises(BlockingIOError):
                client.recv(1)

    play(story, ForkRefused("no"))


def test_the_next_attempt_gets_another_slot_when_the_old_ones_file_is_gone(play, layout):
    async def story(bench):
        await bench.exit_of(an_order())
        path = files_of(layout, an_order()).slot
        path.unlink()
        await bench.exit_of(an_order(attempt=2))
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.connect(str(path))

    play(story, ForkRefused("no"), ForkRefused("no"))


def test_an_attempt_does_not_speak_the_last_words_of_an_earlier_life(play, layout):
    words = files_of(layout, an_order()).last_words
    words.write_bytes(msgspec.json.encode(LastWords(problem=Problem(reference="old", message="old"))))

    async def story(bench):
        return await bench.exit_of(an_order())

    assert play(story, ForkRefused("new")).problem.message == "new"
    assert not words.exists()


def test_a_record_that_cannot_be_written_is_written_when_it_can(play, layout):
    records = layout.node / "replicas"

    async def story(bench):
        records.write_bytes(b"")  # in the way of the folder
        await bench.serve()
        records.unlink()
        await bench.replicas.check_health()
        (record,) = read_records(layout)
        return record.was_ready

    assert play(story)


# ---- living ----------------------------------------------------------------------------------------------------------


def test_an_order_about_batches_is_passed_on_reported_and_remembered(play, layout):
    async def story(bench):
        await bench.serve()
        bench.replicas.set_batching(REPLICA, BATCH)
        await until(lambda: SetBatching(order=BATCH) in bench.launcher.asked)
        (record,) = read_records(layout)
        return bench.report.batches, record.order.batches

    assert play(story) == (BATCH, BATCH)


def test_counters_are_asked_for_and_waited_for(play):
    async def story(bench):
        await bench.serve()
        await bench.replicas.count_now(60.0)
        return [request.counts > 0 for request in bench.launcher.asked if isinstance(request, Ask)]

    assert play(story) == [True]


def test_what_a_process_uses_is_measured_when_its_health_is_looked_at(play):
    async def story(bench):
        await bench.serve()
        await bench.replicas.check_health()
        return bench.report.rss_bytes, bench.report.peak_rss_bytes

    rss_bytes, peak_bytes = play(story)
    assert peak_bytes >= rss_bytes > 0


def test_a_replica_whose_socket_file_was_removed_is_ended(play, layout):
    async def story(bench):
        await bench.serve()
        files_of(layout, an_order()).slot.unlink()
        await bench.replicas.check_health()
        return await bench.exit_of()

    assert play(story).problem.reference == "socket-removed"


# ---- ending ----------------------------------------------------------------------------------------------------------


def test_a_replica_that_dies_is_missed_at_once_and_reported_with_how_it_died(play):
    async def story(bench):
        process = await bench.serve()
        identity = processes.identify(process.pid)
        os.kill(process.pid, signal.SIGKILL)
        exited = await bench.exit_of()
        return exited.signal, bench.cleared == [identity]

    assert play(story) == (signal.SIGKILL, True)


def test_what_a_launcher_says_of_an_end_counts_for_that_process_alone(play):
    async def story(bench):
        bench.lives.child_exited(ChildExited(pid=1, replica=REPLICA, attempt=1, code=3, signal=None))
        process = await bench.serve()
        told = ChildExited(pid=process.pid, replica=REPLICA, attempt=1, code=4, signal=None)
        bench.lives.child_exited(told)  # a launcher may be faster than the kernel
        os.kill(process.pid, signal.SIGKILL)
        return (await bench.exit_of()).code

    assert play(story) == 4


def test_a_drained_replica_leaves_the_ingress_and_is_told_how_long_it_has(play, layout):
    async def story(bench):
        await bench.serve()
        bench.replicas.drain(REPLICA, 20.0)
        exited = await bench.exit_of()
        (drain,) = (request for request in bench.launcher.asked if isinstance(request, Drain))
        return exited.drained, drain.timeout_s, bench.quieted

    assert play(story) == (True, 20.0, [files_of(layout, an_order()).stem])


def test_a_replica_drained_while_its_packages_are_installed_ends_at_once(play):
    async def story(bench):
        bench.provisions.ready = asyncio.Event()
        bench.replicas.start(an_order())
        await until(lambda: bench.report.progress == "installing packages")
        bench.replicas.drain(REPLICA, 600.0)
        return (await bench.exit_of()).drained, bench.launcher.forks

    assert play(story) == (True, 0)


def test_a_forgotten_replica_leaves_no_process_and_no_file(play, layout):
    async def story(bench):
        process = await bench.serve()
        identity = processes.identify(process.pid)
        bench.replicas.forget(REPLICA)
        await bench.replicas.closed()
        return processes.is_alive(identity), bench.replicas.reports()

    assert play(story) == (False, ())
    assert list(layout.sockets.iterdir()) == []
    assert list((layout.node / "replicas").iterdir()) == []


def test_a_replica_forgotten_while_its_packages_are_installed_is_closed_at_once(play, layout):
    async def story(bench):
        bench.provisions.ready = asyncio.Event()
        bench.replicas.start(an_order())
        await until(lambda: bench.report.progress == "installing packages")
        bench.replicas.forget(REPLICA)
        await bench.replicas.closed()
        return bench.replicas.reports(), bench.launcher.forks

    assert play(story) == ((), 0)
    assert list(layout.sockets.iterdir()) == []
    assert list((layout.node / "replicas").iterdir()) == []


def test_a_replica_wanted_again_while_it_is_forgotten_keeps_what_is_its_own(play, layout):
    async def story(bench):
        bench.provisions.ready = asyncio.Event()
        bench.replicas.start(an_order())
        bench.replicas.forget(REPLICA)
        bench.replicas.start(an_order())
        await bench.replicas.closed()
        files = files_of(layout, an_order())
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.connect(str(files.slot))
        return files.record.exists()

    assert play(story)


def test_requests_are_turned_away_when_nobody_came_for_as_long_as_they_are_held(play, layout):
    files = files_of(layout, an_order())

    async def story(bench):
        process = await bench.serve()
        os.kill(process.pid, signal.SIGKILL)
        await bench.exit_of()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.connect(str(files.slot))
            client.setblocking(False)
            bench.clock.advance(1.0)
            await until(lambda: bench.abandoned and _is_closed(client))
        return bench.abandoned

    assert play(story, hold_timeout_s=0.02) == [files.stem]


def _is_closed(client: socket.socket) -> bool:
    with contextlib.suppress(BlockingIOError):
        return client.recv(1) == b""
    return False


# ---- after our own restart -------------------------------------------------------------------------------------------


def test_what_was_ordered_and_never_forked_has_ended_for_the_next_agent(play, settings, layout):
    async def story(bench):
        bench.provisions.ready = asyncio.Event()
        bench.replicas.start(an_order())
        other = Bench(settings, layout)
        await other.replicas.adopt()
        exited = other.report.exit
        await other.close()
        await other.safekeeping.stop()
        return exited.text

    assert play(story) == "ended while nobody watched"
