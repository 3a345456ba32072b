"""Tests of `cortex.agent.launchers`, against a pretended launcher on this test's own event loop."""

import asyncio
import gc
import signal
import socket
import sys
from pathlib import Path

import msgspec
import pytest

from cortex.agent import launchers
from cortex.agent.launchers import (
    IDLE_STOP_S,
    ForkRefused,
    Launcher,
    LauncherLost,
    LauncherRecord,
    Launchers,
    import_time_variables,
    launcher_key,
)
from cortex.ids import ReplicaId
from cortex.processes import ProcessIdentity, identify, own_identity, write_identity
from cortex.testing.builders import a_build
from cortex.testing.clock import FakeClock
from cortex.wire.framing import LENGTH, framed
from cortex.wire.launch import (
    ChildExited,
    Fork,
    Forked,
    ForkFailed,
    Inspect,
    Inspected,
    InspectReport,
    LauncherRequest,
    ReplicaSpec,
)

BUILD = a_build()
SPEC = ReplicaSpec(
    replica=ReplicaId("t.a.00000000.0"),
    attempt=3,
    api=BUILD.api,
    version=BUILD.version,
    revision=BUILD.revision,
    home="/h",
    runtime="onnx",
    model_path="/m",
)
_REQUESTS = msgspec.json.Decoder(LauncherRequest)


class PretendedLauncher:
    """Listens where a launcher would, and answers as it is told. Its process is of nobody who could be hurt."""

    def __init__(self, launcher: Launcher, *replies) -> None:
        self._launcher = launcher
        self._path = launcher.socket_path
        self._replies = list(replies)
        self.connections = 0
        self.asked: list[object] = []
        self._writers: list[asyncio.StreamWriter] = []

    async def __aenter__(self):
        self._path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._serve, self._path)
        return self

    async def __aexit__(self, *_):
        self._server.close()
        self.hang_up()
        await until(lambda: not self._launcher.connected)
        await asyncio.gather(*(writer.wait_closed() for writer in self._writers), return_exceptions=True)
        self._path.unlink(missing_ok=True)

    def hang_up(self) -> None:
        for writer in self._writers:
            writer.close()

    async def _serve(self, reader, writer):
        self.connections += 1
        self._writers.append(writer)
        try:
            while True:
                (length,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
                self.asked.append(_REQUESTS.decode(await reader.readexactly(length)))
                for reply in self._replies.pop(0) if self._replies else ():
                    if reply is None:
                        writer.close()
                        return
                    self.say(reply(self.asked[-1]) if callable(reply) else reply)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    def say(self, reply) -> None:
        self._writers[-1].write(framed(msgspec.json.encode(reply)))


@pytest.fixture(autouse=True)
def _nobody_is_hurt(monkeypatch):
    """Whoever listens at a pretended launcher's socket is this process: it must not be taken for a launcher."""
    gone = ProcessIdentity(pid=0, start_ticks=-1, boot_id="none")
    monkeypatch.setattr(launchers.processes, "identify", lambda _pid: gone)


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def exits():
    return []


@pytest.fixture
def all_launchers(settings, layout, clock, exits):
    return Launchers(
        python=lambda _environment: Path(sys.executable),
        settings=settings,
        layout=layout,
        clock=clock,
        on_child_exited=exits.append,
    )


@pytest.fixture
def launcher(all_launchers):
    return all_launchers.get("onnx", {})


async def until(condition):
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.001)


async def forked(launcher):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        return await asyncio.wait_for(launcher.fork(SPEC, ours, theirs, {}), 60)


# ---- which launcher --------------------------------------------------------------------------------------------------


def test_only_variables_that_libraries_read_at_import_tell_launchers_apart():
    env = {"OMP_NUM_THREADS": "2", "TOKEN": "x", "LD_PRELOAD": "y", "PYTHONHASHSEED": "0"}
    assert import_time_variables(env) == {"LD_PRELOAD": "y", "OMP_NUM_THREADS": "2", "PYTHONHASHSEED": "0"}


def test_a_key_is_the_same_exactly_for_the_same_interpreter_backend_and_variables():
    python = Path("/usr/bin/python3")
    key = launcher_key(python, "onnx", {"A": "1", "B": "2"})
    assert key == launcher_key(python, "onnx", {"B": "2", "A": "1"})
    others = [
        launcher_key(Path("/other/python3"), "onnx", {"A": "1", "B": "2"}),
        launcher_key(python, "tensorflow", {"A": "1", "B": "2"}),
        launcher_key(python, "onnx", {"A": "1", "B": "3"}),
        launcher_key(python, "onnx", {}),
    ]
    assert len({key, *others}) == 5


def test_builds_share_a_launcher_unless_something_tells_them_apart(all_launchers):
    assert all_launchers.get("onnx", {"TOKEN": "a"}) is all_launchers.get("onnx", {"TOKEN": "b"})
    assert all_launchers.get("onnx", {"OMP_NUM_THREADS": "1"}) is not all_launchers.get("onnx", {})


# ---- asking it -------------------------------------------------------------------------------------------------------


def test_a_fork_is_answered_with_the_pid(launcher):
    async def story():
        replies = [Forked(replica=SPEC.replica, attempt=2, pid=1), Forked(replica=SPEC.replica, attempt=3, pid=77)]
        async with PretendedLauncher(launcher, replies) as pretended:
            pid = await forked(launcher)
            return pid, pretended.asked

    pid, (asked,) = asyncio.run(story())
    assert pid == 77, "the answer to an earlier attempt is not taken for this one's"
    assert isinstance(asked, Fork)
    assert asked.spec == SPEC


def test_a_launcher_that_cannot_fork_says_why(launcher):
    async def story():
        reply = ForkFailed(replica=SPEC.replica, attempt=3, reason="too many processes")
        async with PretendedLauncher(launcher, [reply]):
            await forked(launcher)

    with pytest.raises(ForkRefused, match="too many processes"):
        asyncio.run(story())


def test_a_launcher_that_ends_over_a_fork_is_lost_and_the_next_one_answers(launcher):
    async def story():
        forked_ = Forked(replica=SPEC.replica, attempt=3, pid=78)
        async with PretendedLauncher(launcher, [None], [forked_]):
            with pytest.raises(LauncherLost):
                await forked(launcher)
            return await forked(launcher)

    assert asyncio.run(story()) == 78


def test_a_launcher_that_does_not_answer_a_fork_is_given_up(monkeypatch, launcher, clock):
    monkeypatch.setattr(launchers, "FORK_LOOK_S", 0.001)

    unheard = []

    async def story():
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: unheard.append(context["message"]))
        async with PretendedLauncher(launcher) as pretended:
            fork = asyncio.create_task(forked(launcher))
            await until(lambda: pretended.asked)
            clock.advance(launchers.FORK_TIMEOUT_S + 0.1)
            with pytest.raises(LauncherLost, match="did not answer"):
                await fork
            return launcher.connected

    assert asyncio.run(story()) is False
    gc.collect()
    assert unheard == [], "nobody is left who waits for the answer"


def test_a_launcher_that_was_stopped_over_a_fork_goes_on_and_one_that_hangs_is_given_up(monkeypatch, launcher):
    monkeypatch.setattr(launchers, "FORK_LOOK_S", 0.001)
    found, signalled = ["well", "stopped", "well", "hung"], []
    monkeypatch.setattr(launchers.processes.Pulse, "look", lambda _self, _now_s, **_more: found.pop(0))
    monkeypatch.setattr(launchers.processes, "send_signal", lambda _identity, number: signalled.append(number))

    async def story():
        async with PretendedLauncher(launcher):
            with pytest.raises(LauncherLost, match="did not answer"):
                await forked(launcher)

    asyncio.run(story())
    assert (found, signalled) == ([], [signal.SIGCONT])


def test_a_lost_launcher_that_still_runs_is_ended_before_anything_is_forked_again(monkeypatch, launcher):
    signalled = []
    living = own_identity()
    monkeypatch.setattr(launchers.processes, "identify", lambda _pid: living)
    monkeypatch.setattr(launchers.processes, "is_alive", lambda _identity: not signalled)
    monkeypatch.setattr(launchers.processes, "send_signal", lambda identity, _number: signalled.append(identity))

    async def story():
        async with PretendedLauncher(launcher, [None]):
            with pytest.raises(LauncherLost):
                await forked(launcher)

    asyncio.run(story())
    assert signalled == [living]


def test_inspections_are_answered_by_their_mark_in_any_order(launcher):
    async def story():
        async with PretendedLauncher(launcher) as pretended:
            asking = [
                asyncio.create_task(launcher.inspect(SPEC, {}, model=True, handler=handler))
                for handler in (True, False)
            ]
            await until(lambda: len(pretended.asked) == 2)
            for asked in reversed(pretended.asked):
                assert isinstance(asked, Inspect)
                report = InspectReport(has_pre=asked.handler)
                pretended.say(Inspected(request=asked.request, report=report))
            return [report.has_pre for report in await asyncio.gather(*asking)]

    assert asyncio.run(story()) == [True, False]


def test_how_children_ended_is_passed_on(launcher, exits):
    exited = ChildExited(pid=5, replica=SPEC.replica, attempt=3, code=None, signal=9)

    async def story():
        async with PretendedLauncher(launcher) as pretended:
            await launcher.connection()
            await until(lambda: pretended.connections)
            pretended.say(exited)
            await until(lambda: exits)

    asyncio.run(story())
    assert exits == [exited]


@pytest.mark.slow
def test_a_launcher_that_ends_as_soon_as_it_is_started_is_told_with_its_words(
    monkeypatch, settings, layout, clock, tmp_path
):
    monkeypatch.setattr(launchers.processes, "identify", identify)  # a process of its own, whose end is waited for
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho no module named numpy\nexit 1\n")
    program.chmod(0o755)
    all_launchers = Launchers(
        python=lambda _environment: program,
        settings=settings,
        layout=layout,
        clock=clock,
        on_child_exited=lambda _exited: None,
    )
    launcher = all_launchers.get("onnx", {})
    starts = []

    async def story():
        for _ in range(2):  # the second time it is not even tried
            with pytest.raises(LauncherLost, match="no module named numpy"):
                await launcher.connection()
            starts.append(launcher.log_file.read_text().count("no module"))
        clock.advance(60)
        with pytest.raises(LauncherLost):
            await launcher.connection()
        starts.append(launcher.log_file.read_text().count("no module"))

    asyncio.run(story())
    assert starts == [3, 3, 6]


# ---- looking after them ----------------------------------------------------------------------------------------------


def test_a_wanted_launcher_that_was_lost_is_connected_again(all_launchers, launcher):
    async def story():
        async with PretendedLauncher(launcher) as pretended:
            await all_launchers.keep({launcher.key})
            await until(lambda: pretended.connections)
            pretended.hang_up()
            await until(lambda: not launcher.connected)
            await all_launchers.keep({launcher.key})
            await until(lambda: pretended.connections == 2)
            return launcher.connected

    assert asyncio.run(story())


def test_a_launcher_that_nobody_has_needed_for_long_is_stopped_unless_it_is_at_work(all_launchers, launcher, clock):
    async def story():
        async with PretendedLauncher(launcher) as pretended:
            inspecting = asyncio.create_task(launcher.inspect(SPEC, {}, model=True, handler=False))
            await until(lambda: pretended.asked)
            clock.advance(IDLE_STOP_S + 1)
            await all_launchers.keep(set())
            seen = [launcher.connected]
            pretended.say(Inspected(request=pretended.asked[0].request, report=InspectReport()))
            await inspecting
            await all_launchers.keep(set())
            seen.append(launcher.connected)
            clock.advance(IDLE_STOP_S + 1)
            await all_launchers.keep(set())
            return [*seen, launcher.connected]

    assert asyncio.run(story()) == [True, True, False]
    assert not launcher.record_file.exists()


def test_records_of_launchers_that_are_gone_or_cannot_be_read_are_cleared_away(all_launchers, layout):
    folder = layout.node / "launchers"
    folder.mkdir()
    dead = LauncherRecord(
        key=launcher_key(Path(sys.executable), "onnx", {}),
        runtime="onnx",
        variables={},
        identity=ProcessIdentity(pid=1, start_ticks=-1, boot_id="another"),
    )
    write_identity(folder / "dead.json", dead)
    (folder / "broken.json").write_bytes(b'{"key":"\xff"}')
    layout.launcher_socket(dead.key).touch()
    asyncio.run(all_launchers.adopt())
    assert list(folder.iterdir()) == []
    assert not layout.launcher_socket(dead.key).exists()
    assert list(all_launchers) == []
