"""From fork to end: starting, failing to start, health, draining, dying."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from replica_harness import LAUNCHER_DEADLINE_S, LauncherProcess, Replica, eventually, request, spec_for

from cortex.agent.logs import take_leftover
from cortex.errors import Problem
from cortex.processes import identify, is_alive
from cortex.replica.observation.places import of
from cortex.wire.launch import AskListener, ChildExited, Drain
from cortex.wire.reports import Phase

pytestmark = pytest.mark.slow

Start = Callable[..., Replica]
SAMPLE = [5.1, 3.5, 1.4, 0.2]
WAITS = """
import os, time
def pre_inference(sample, metadata):
    print("began")
    while not os.path.exists(os.environ["FOLDER"] + "/go"): time.sleep(0.005)
    return sample
"""


WAITS_AT_IMPORT = """
import os, time
while not os.path.exists(os.environ["FOLDER"] + "/go"): time.sleep(0.005)
def post_inference(prediction, metadata): return prediction
"""


def exit_of(launcher: LauncherProcess, replica: Replica) -> tuple[int | None, int | None]:
    """Code and signal with which a replica ended."""
    ended = (replica.pid, replica.spec.replica, replica.spec.attempt)
    exited = launcher.link.wait_for(ChildExited, lambda m: (m.pid, m.replica, m.attempt) == ended)
    return exited.code, exited.signal


def begin(replica: Replica, expected: int = 1) -> Any:
    """A client whose request is being worked on."""
    client = replica.client()
    client.send(request(orjson.dumps(SAMPLE)))
    eventually(lambda: replica.status().in_flight == expected, "the request is in flight")
    return client


# ---- starting -------------------------------------------------------------------------------------------------------


def test_phases_and_progress_are_pushed_in_order(start: Start, folder: Path) -> None:
    """What follows faster than it is pushed is left out; what is pushed never goes back, and ends with the last one."""
    replica = start(WAITS_AT_IMPORT, wait=False)
    seen: list[tuple[Phase, str]] = []
    with replica.control() as control:

        def ready(status: Any) -> bool:
            seen.append((status.phase, status.progress))
            return status.phase is Phase.READY and not status.progress

        control.until(lambda status: not ready(status) and status.progress == "importing handler.py")
        (folder / "go").touch()
        last = control.until(ready)
    phases = [phase for phase, _ in seen]
    assert phases == sorted(phases, key=list(Phase).index)
    steps = [progress for _, progress in seen if progress]
    assert steps == sorted(steps, key=["importing handler.py", "loading the model", "warming up"].index)
    assert last.was_ready
    assert (last.pid, last.replica, last.attempt) == (replica.pid, replica.spec.replica, 1)
    stat = Path(f"/proc/{replica.pid}/stat").read_bytes().rsplit(b")", 1)[1].split()
    assert last.start_ticks == int(stat[19])


def test_requests_wait_in_the_slot_until_the_replica_serves(start: Start, folder: Path) -> None:
    replica = start(WAITS_AT_IMPORT, wait=False)
    with replica.client() as client:
        client.send(request(orjson.dumps(SAMPLE)))
        assert replica.status().phase is Phase.LOADING
        (folder / "go").touch()
        assert client.receive().status == 200


def test_several_agents_may_listen_and_one_may_ask_for_the_slot(start: Start) -> None:
    import msgspec

    from cortex.wire.framing import close_all, receive_frame
    from cortex.wire.launch import ReplicaStatus

    replica = start()
    with replica.control() as first, replica.control() as second:
        assert first.status().phase is second.status().phase is Phase.READY
        assert first.ask().phase is Phase.READY
        second.send(AskListener())
        while not (frame := receive_frame(second.sock))[1]:
            pass  # pushed to everybody
        payload, fds = frame
        status = msgspec.json.decode(payload, type=ReplicaStatus)
        assert (status.replica, status.attempt) == (replica.spec.replica, replica.spec.attempt)
        assert Path(f"/proc/self/fd/{fds[0]}").readlink() == Path(f"/proc/self/fd/{replica.slot.fileno()}").readlink()
        close_all(fds)


def test_nonsense_on_the_control_socket_changes_nothing(start: Start) -> None:
    replica = start()
    with replica.control() as control:
        control.status()
        control.sock.sendall(b"\0\0\0\3abc")
        assert control.ask().phase is Phase.READY
        control.sock.sendall(b"\xff\xff\xff\xff")
    assert replica.status().phase is Phase.READY
    eventually(lambda: any("unreadable request" in line.text for line in replica.lines()), "it is in the log")


@pytest.mark.parametrize(
    ("source", "reference"),
    [
        ("import no_such_module", "handler-missing-module"),
        ("def pre_inference(: pass", "handler-syntax-error"),
        ("def pre_inference(sample): pass", "handler-wrong-parameters"),
        ("import sys; sys.exit(0)", "handler-exited"),
        ("raise ValueError('no vocabulary')", "handler-import-failed"),
    ],
)
def test_a_handler_that_cannot_be_used_is_explained(
    start: Start, shared_launcher: LauncherProcess, folder: Path, source: str, reference: str
) -> None:
    replica = start(WAITS_AT_IMPORT + source, wait=False)
    problem = problem_told_by(replica, folder)
    assert exit_of(shared_launcher, replica) == (3, None)
    words = replica.last_words()
    assert words.permanent
    assert words.problem.reference == reference
    assert problem in (None, words.problem)
    assert any(reference in line.text and line.level == "ERROR" for line in replica.lines())


def problem_told_by(replica: Replica, folder: Path) -> Problem | None:
    """What a replica that waits at import says before it ends; None if it had ended before anybody could ask."""
    try:
        with replica.control() as control:
            control.status()
            (folder / "go").touch()
            return control.until(lambda status: status.problem is not None).problem
    except ConnectionError:
        return None


def test_a_model_that_cannot_be_loaded_is_explained(
    start: Start, shared_launcher: LauncherProcess, folder: Path
) -> None:
    (folder / "bad.onnx").write_bytes(b"no model at all")
    replica = start(model=folder / "bad.onnx", wait=False)
    assert exit_of(shared_launcher, replica) == (3, None)
    assert replica.last_words().problem.reference == "model-unreadable"
    assert replica.last_words().permanent


def test_a_gate_that_is_not_answered_with_2xx_keeps_the_replica_out(
    start: Start, shared_launcher: LauncherProcess
) -> None:
    replica = start(
        "def pre_inference(sample, metadata):\n    return sample['petals']\n",
        sample=b'{"sepals": 1}',
        gate=True,
        wait=False,
    )
    assert exit_of(shared_launcher, replica) == (3, None)
    problem = replica.last_words().problem
    assert problem.reference == "sample-failed"
    assert "answered with 500" in problem.message
    assert problem.where == "handler.py:2"
    assert problem.traceback.splitlines()[1] == '  File "handler.py", line 2, in pre_inference'
    assert problem.traceback.endswith("KeyError: 'petals'")
    assert replica.last_words().permanent


@pytest.mark.parametrize(
    ("source", "extra"),
    [
        ("def pre_inference(s, m, request):\n    assert request.warmup\n    return s\n", {}),
        ("async def pre_inference(s, m, request):\n    assert request.warmup\n    return s\n", {}),
        ("def pre_inference(s, m, request):\n    assert request.warmup\n    return s\n", {"concurrency": 2}),
    ],
)
def test_a_gate_that_is_answered_is_shown_and_not_counted(start: Start, source: str, extra: dict[str, Any]) -> None:
    replica = start(source, sample=b"[1, 2, 3, 4]", gate=True, **extra)
    with replica.client() as client:
        assert client.get().json["sample"] == [1, 2, 3, 4]
    replica.drain()
    assert replica.stats(lambda found: found.last).ok == 0


def test_a_found_sample_that_fails_only_warns(start: Start) -> None:
    replica = start(sample=b"[1]", gate=False)
    (warning,) = replica.status().warnings
    assert warning.reference == "sample-failed"
    assert "answered with 422" in warning.message
    with replica.client() as client:
        assert "sample" not in client.get().json
    assert replica.post(SAMPLE).status == 200


def test_a_replica_to_which_nobody_is_connected_outlives_pythons_garbage_collector(start: Start, folder: Path) -> None:
    replica = start(
        """
import gc, os, threading, time
def collect():
    while not os.path.exists(os.environ["FOLDER"] + "/go"): time.sleep(0.005)
    while gc.collect(): pass
    open(os.environ["FOLDER"] + "/collected", "w").close()
threading.Thread(target=collect, daemon=True).start()
def post_inference(prediction, metadata): return prediction
"""
    )
    (folder / "go").touch()
    eventually((folder / "collected").exists, "what nobody holds is gone")
    assert replica.post(SAMPLE).status == 200


# ---- health ---------------------------------------------------------------------------------------------------------


def test_health_answers_while_a_handler_blocks(start: Start, folder: Path) -> None:
    replica = start(WAITS)
    with begin(replica) as client, replica.control() as control:
        control.status()
        status = eventually(lambda: (s := control.ask()).oldest_request_age_s > 0.05 and s, "the request grows old")
        assert (status.phase, status.in_flight, status.overdue) == (Phase.READY, 1, False)
        (folder / "go").touch()
        assert client.receive().status == 200
        status = eventually(lambda: (s := control.ask()).in_flight == 0 and s, "the request is over")
        assert status.oldest_request_age_s == 0


def test_a_blocked_handler_past_its_timeout_is_overdue(start: Start, folder: Path) -> None:
    replica = start(WAITS)
    with replica.client() as client:
        client.send(request(orjson.dumps(SAMPLE), {"x-cortex-limits": "10,1000"}))
        eventually(lambda: replica.status().overdue, "the request is overdue")
        (folder / "go").touch()
        client.receive()
    eventually(lambda: not replica.status().overdue, "its code has ended, which may be after it was answered")


def test_a_replica_that_was_stopped_does_not_look_hung_when_it_goes_on(start: Start) -> None:
    replica = start()
    replica.kill(signal.SIGSTOP)
    threads = [task / "stat" for task in Path(f"/proc/{replica.pid}/task").iterdir()]
    eventually(lambda: {stat.read_bytes().rsplit(b")", 1)[1].split()[0] for stat in threads} == {b"T"}, "it stands")
    with replica.control() as control:  # waits in the backlog
        stopped_s = time.monotonic()
        eventually(lambda: time.monotonic() - stopped_s > 3.5, "it has stood still for a while")
        resumed_s = time.monotonic()
        replica.kill(signal.SIGCONT)
        assert control.status().heartbeat_age_s <= time.monotonic() - resumed_s, "only what came after that counts"


def test_health_answers_while_a_handler_is_imported(start: Start) -> None:
    replica = start(WAITS_AT_IMPORT, wait=False)
    status = eventually(lambda: (s := replica.status()).progress == "importing handler.py" and s, "it imports")
    assert status.phase is Phase.LOADING
    assert status.heartbeat_age_s == 0


# ---- draining -------------------------------------------------------------------------------------------------------


def test_an_idle_replica_drains_at_once_and_counts_are_last(start: Start, shared_launcher: LauncherProcess) -> None:
    replica = start()
    with replica.client() as client:
        assert client.post(orjson.dumps(SAMPLE)).status == 200
        replica.drain(timeout_s=600)  # longer than anybody waits here
        assert exit_of(shared_launcher, replica) == (0, None)
        assert client.at_end()
    counted = replica.stats()
    assert (counted.last, counted.ok) == (True, 1)


@pytest.mark.parametrize(
    ("source", "concurrency"),
    [
        (WAITS, 1),
        (WAITS, 2),
        (WAITS.replace("def ", "async def ").replace("time.sleep", "await __import__('asyncio').sleep"), None),
    ],
)
def test_a_drain_finishes_what_is_in_flight_and_what_waits(
    start: Start, shared_launcher: LauncherProcess, folder: Path, source: str, concurrency: int | None
) -> None:
    replica = start(source, concurrency=concurrency)
    with begin(replica) as client, replica.client() as late:
        with replica.control() as control:
            control.send(Drain(timeout_s=600))
            assert control.until(lambda status: status.phase is Phase.DRAINING).in_flight == 1
        late.send(request(orjson.dumps(SAMPLE)))
        (folder / "go").touch()
        for each in (client, late):
            answer = each.receive()
            assert answer.status == 200
            assert answer.headers["connection"] == "close"
            assert each.at_end()
    assert exit_of(shared_launcher, replica) == (0, None)
    assert replica.stats().ok == 2


def test_a_drain_out_of_time_cancels_and_says_how_many(start: Start, shared_launcher: LauncherProcess) -> None:
    replica = start("import asyncio\nasync def pre_inference(s, m):\n    await asyncio.sleep(600)\n")
    with begin(replica) as first, begin(replica, 2) as second:
        replica.drain(timeout_s=0.1)
        for client in (first, second):
            answer = client.receive()
            assert (answer.status, answer.json["error"]) == (503, "stopping")
    assert exit_of(shared_launcher, replica) == (0, None)
    assert any("2 requests are cancelled" in line.text for line in replica.lines())


def test_a_drain_does_not_wait_for_code_that_cannot_be_ended(start: Start, shared_launcher: LauncherProcess) -> None:
    replica = start(WAITS)
    with begin(replica) as client:
        replica.drain(timeout_s=0.1)
        assert exit_of(shared_launcher, replica) == (0, None)
        assert client.at_end()
    assert replica.stats().last
    assert any("1 requests are in code that cannot be ended" in line.text for line in replica.lines())


def test_sigterm_is_a_drain(start: Start, shared_launcher: LauncherProcess, folder: Path) -> None:
    replica = start(WAITS)
    with begin(replica) as client:
        replica.kill(signal.SIGTERM)
        eventually(lambda: replica.status().phase is Phase.DRAINING, "it drains")
        (folder / "go").touch()
        assert client.receive().status == 200
    assert exit_of(shared_launcher, replica) == (0, None)


def test_a_drain_that_lost_the_processor_serves_who_came_meanwhile(folder: Path) -> None:
    """A loop accepts a connection and looks at its timers before it makes the connection known."""
    code = """
import os, socket, sys, time
from pathlib import Path
import uvloop
from replica_harness import listen, spec_for
from cortex.replica.process.condition import Condition
from cortex.replica.observation.logs import LogFile
from cortex.replica.protocols.cortex import CortexProtocol
from cortex.replica.transport.server import SETTLE_S, Server
from cortex.replica.transport.service import Service
from cortex.replica.observation.stats import Counters

folder = Path(sys.argv[1])
loop, log = uvloop.new_event_loop(), LogFile("", 1)
condition = Condition(spec_for(folder, folder))
service = Service(
    protocol=CortexProtocol(has_pre_inference=False),
    below={},
    condition=condition,
    counters=Counters(),
    tracker=None,
    log=log,
    loop=loop,
    project_dir=None,
)
slot, client = listen(folder / "s"), socket.socket(socket.AF_UNIX)

def drain() -> None:
    server.drain(600)
    client.connect(str(folder / "s"))
    client.sendall(b"GET / HTTP/1.1\\r\\n\\r\\n")
    time.sleep(2 * SETTLE_S)  # the processor is somewhere else

def stopped() -> None:
    client.setblocking(False)
    try:
        print(client.recv(12), flush=True)
    finally:
        os._exit(0)

server = Server(service, condition=condition, slot=slot, loop=loop, stopped=stopped)
server.open()
loop.call_later(0.05, drain)
loop.run_forever()
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=LAUNCHER_DEADLINE_S,
        check=False,
    )
    assert done.stdout == f"{b'HTTP/1.1 200'}\n", done.stderr


@pytest.mark.parametrize("by_signal", [True, False])
def test_a_replica_that_still_loads_ends_at_once(
    start: Start, shared_launcher: LauncherProcess, by_signal: bool
) -> None:
    replica = start("import time\ntime.sleep(600)\n", wait=False)
    eventually(lambda: replica.status().progress == "importing handler.py", "it imports")
    replica.kill(signal.SIGTERM) if by_signal else replica.drain()
    assert exit_of(shared_launcher, replica) == (0, None)


def test_processes_that_a_handler_started_end_with_it(start: Start, shared_launcher: LauncherProcess) -> None:
    replica = start(
        "import subprocess\nchild = subprocess.Popen(['sleep', '600'])\ndef post_inference(p, m): return child.pid\n"
    )
    child = identify(replica.post(SAMPLE).json)
    assert child is not None
    replica.drain()
    assert exit_of(shared_launcher, replica) == (0, None)
    eventually(lambda: not is_alive(child), "the subprocess has ended")


# ---- dying ----------------------------------------------------------------------------------------------------------


def test_a_request_that_waits_when_the_replica_is_killed_reaches_the_next_attempt(
    shared_launcher: LauncherProcess, folder: Path, start: Start
) -> None:
    replica = start(WAITS)
    with begin(replica) as lost, replica.client() as waiting:
        waiting.send(request(orjson.dumps(SAMPLE)))  # connected, and not accepted: the handler blocks the loop
        replica.kill(signal.SIGKILL)
        assert exit_of(shared_launcher, replica) == (None, signal.SIGKILL)
        assert lost.at_end()
        (folder / "go").touch()
        spec = spec_for(folder, Path(replica.spec.model_path), replica=replica.spec.replica, attempt=2)
        again = shared_launcher.fork(spec, slot=replica.slot)
        assert waiting.receive().status == 200
        again.kill()


def test_a_crash_leaves_a_python_traceback_in_the_log(start: Start, shared_launcher: LauncherProcess) -> None:
    replica = start("import ctypes\ndef post_inference(p, m):\n    ctypes.string_at(0)\n")
    with replica.client() as client:
        client.send(request(orjson.dumps(SAMPLE)))
        assert client.at_end()
    assert exit_of(shared_launcher, replica) == (None, signal.SIGSEGV)
    take_leftover(Path(replica.spec.log_path), 1, of(replica.spec))  # as the agent does
    text = "\n".join(line.text for line in replica.lines())
    assert "Fatal Python error: Segmentation fault" in text
    assert "in post_inference" in text


def test_counters_outlive_a_kill_but_for_the_last_second(start: Start, shared_launcher: LauncherProcess) -> None:
    replica = start()
    assert replica.post(SAMPLE).status == 200
    assert replica.stats(lambda found: found.ok == 1)
    replica.kill()
    assert exit_of(shared_launcher, replica) == (None, signal.SIGKILL)
    counted = replica.stats()
    assert (counted.last, counted.ok) == (False, 1)
