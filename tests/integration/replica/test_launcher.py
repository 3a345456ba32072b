"""The launcher across agents, and what becomes of its children without it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from replica_harness import (
    DEADLINE_S,
    LAUNCHER_DEADLINE_S,
    LauncherLink,
    LauncherProcess,
    Replica,
    can_connect,
    eventually,
    spec_for,
)

from cortex.replica.launcher import AlreadyRunning, bind
from cortex.wire.launch import ChildExited, Fork, ForkFailed, Inspect

pytestmark = pytest.mark.slow

IRIS = Path(__file__).parents[3] / "examples" / "iris" / "models" / "sklearn.onnx"
SAMPLE = [5.1, 3.5, 1.4, 0.2]


@pytest.fixture
def launcher(own_launcher: LauncherProcess) -> LauncherProcess:
    return own_launcher


@pytest.fixture
def replica(launcher: LauncherProcess, folder: Path) -> Replica:
    return launcher.fork(spec_for(folder, IRIS)).ready()


@pytest.fixture
def other_agent(launcher: LauncherProcess) -> Iterator[LauncherLink]:
    link = LauncherLink(launcher.socket_path)
    yield link
    link.close()


def test_it_names_itself_and_has_one_thread(launcher: LauncherProcess) -> None:
    title = Path(f"/proc/{launcher.pid}/cmdline").read_text().strip("\0 ")
    assert title == f"cortex-launcher {launcher.folder} onnx"
    assert os.listdir(f"/proc/{launcher.pid}/task") == [str(launcher.pid)]
    assert (launcher.socket_path.stat().st_mode & 0o777) == 0o600


def test_replicas_survive_their_agent_and_the_next_one_hears_of_their_end(
    launcher: LauncherProcess, replica: Replica
) -> None:
    launcher.link.close()
    assert replica.post(SAMPLE).status == 200
    replica.kill()
    launcher.link = LauncherLink(launcher.socket_path)
    exited = launcher.link.wait_for(ChildExited)
    assert (exited.pid, exited.replica, exited.code, exited.signal) == (
        replica.pid,
        replica.spec.replica,
        None,
        signal.SIGKILL,
    )


def test_every_agent_hears_of_an_end_and_a_new_attempt_ends_the_matter(
    launcher: LauncherProcess, replica: Replica, folder: Path, other_agent: LauncherLink
) -> None:
    replica.kill()
    assert launcher.link.wait_for(ChildExited) == other_agent.wait_for(ChildExited)
    again = launcher.fork(spec_for(folder, IRIS, attempt=2), slot=replica.slot)
    third = LauncherLink(launcher.socket_path)
    again.ready().kill()
    assert third.wait_for(ChildExited).attempt == 2
    third.close()


def test_replicas_do_not_hold_the_launchers_sockets(launcher: LauncherProcess, folder: Path) -> None:
    first = launcher.fork(spec_for(folder, IRIS, replica="t.a.0.1")).ready()
    second = launcher.fork(spec_for(folder, IRIS, replica="t.a.0.2")).ready()
    sockets = [_sockets(pid) for pid in (first.pid, second.pid, launcher.pid)]
    assert all(sockets)
    assert not sockets[0] & sockets[1], "no replica has another's slot"
    assert not (sockets[0] | sockets[1]) & sockets[2], (
        "and none has anything of the launcher's, nor the other way round"
    )


def _sockets(pid: int) -> set[str]:
    links = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        try:
            links.add(os.readlink(fd))
        except FileNotFoundError:
            continue
    return {link for link in links if link.startswith("socket:")}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_replicas_survive_the_launcher(launcher: LauncherProcess, replica: Replica, number: signal.Signals) -> None:
    launcher.process.send_signal(number)
    eventually(lambda: not can_connect(launcher.socket_path), "it takes nobody in")
    assert replica.post(SAMPLE).status == 200
    replica.drain()
    assert replica.stats(lambda found: found.last).ok == 1
    assert launcher.process.wait(DEADLINE_S) == (0 if number is signal.SIGTERM else -number)


def test_a_fork_without_descriptors_is_refused_with_a_reason(launcher: LauncherProcess, folder: Path) -> None:
    launcher.link.send(Fork(spec=spec_for(folder, IRIS)))
    failed = launcher.link.wait_for(ForkFailed)
    assert (failed.replica, failed.attempt) == ("t.a.00000000.0", 1)
    assert "two descriptors" in failed.reason
    with open(os.devnull) as null:
        launcher.link.send(Inspect(request="x", spec=spec_for(folder, IRIS)), [null.fileno()])
    assert launcher.fork(spec_for(folder, IRIS)).ready()


def test_an_agent_that_talks_nonsense_is_cut_off_and_nobody_else(
    launcher: LauncherProcess, replica: Replica, other_agent: LauncherLink
) -> None:
    other_agent.sock.sendall(b"\0\0\0\4{no}")
    other_agent.sock.sendall(b"\xff\xff\xff\xff")
    with pytest.raises(ConnectionError):
        other_agent.next()
    replica.kill()
    assert launcher.link.wait_for(ChildExited).pid == replica.pid


def test_a_second_launcher_leaves_the_first_its_socket(launcher: LauncherProcess) -> None:
    with pytest.raises(AlreadyRunning):
        bind(launcher.socket_path)
    command = [sys.executable, "-m", "cortex.replica.launcher", "--socket", str(launcher.socket_path)]
    done = subprocess.run(
        [*command, "--home", "/h", "--backend", "onnx"],
        capture_output=True,
        text=True,
        timeout=LAUNCHER_DEADLINE_S,
        check=False,
    )
    assert done.returncode == 1
    assert "another launcher answers" in done.stderr
    LauncherLink(launcher.socket_path).close()


def test_a_dead_launchers_socket_is_taken_over(folder: Path) -> None:
    with bind(folder / "l"):
        pass
    assert (folder / "l").is_socket()
    with bind(folder / "l") as listener:
        assert listener.getsockname()


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=LAUNCHER_DEADLINE_S,
        check=False,
    )


def test_it_ends_by_itself_without_agent_and_children(folder: Path) -> None:
    code = """
import signal, sys
from pathlib import Path
from cortex.replica.launcher import IDLE_EXIT_S, LauncherLoop, bind
signal.alarm(int(IDLE_EXIT_S / 2))  # is the end of it, should it wait for as long as it does unless told otherwise
LauncherLoop(bind(Path(sys.argv[1])), idle_exit_s=0.1).run()
"""
    assert run_python(code, str(folder / "l")).returncode == 0


def test_it_rests_after_a_child_that_was_reaped_in_the_turn_in_which_its_pipe_ended(folder: Path) -> None:
    """Children have always ended when the launcher collects them: it finds the ends of their pipes after that."""
    code = """
import os, sys
from pathlib import Path
from cortex.replica.launcher import LauncherLoop, bind, preload

collect, turns = os.waitpid, 0

def waitpid(pid, options):
    global turns
    turns += 1
    os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)  # raises as waitpid does when there is no child
    return collect(pid, options)

preload("onnx")
os.waitpid = waitpid
LauncherLoop(bind(Path(sys.argv[1])), idle_exit_s=0.5).run()
print(turns)
"""
    with subprocess.Popen(
        [sys.executable, "-c", code, str(folder / "l")], stdout=subprocess.PIPE, text=True, cwd="/"
    ) as process:
        try:
            eventually((folder / "l").exists, "it listens", LAUNCHER_DEADLINE_S)
            link = LauncherLink(folder / "l")
            found = [link.inspect(spec_for(folder, model)).problems for model in (IRIS, folder / "no.onnx")]
            link.close()
            turns = int(process.communicate(timeout=DEADLINE_S)[0])
        finally:
            process.kill()
    assert [len(problems) for problems in found] == [0, 1]
    assert turns < 100, "a loop that spins makes tens of thousands in the half second in which nothing happens"


def test_it_refuses_to_fork_with_a_second_thread_and_names_it() -> None:
    code = """
import threading
from cortex.replica.launcher import UnsafeFork, fork_alone
named, stop = threading.Event(), threading.Event()
def second():
    open(f"/proc/self/task/{threading.get_native_id()}/comm", "w").write("the-second")
    named.set()
    stop.wait()
threading.Thread(target=second).start()
named.wait()
try:
    fork_alone()
except UnsafeFork as error:
    print(error)
stop.set()
"""
    done = run_python(code)
    assert done.stdout == "the launcher has threads besides the main one: the-second\n"


def test_importing_replica_code_starts_no_thread_once_the_environment_is_set() -> None:
    code = """
import os
from cortex.replica.launcher import preload
preload("onnx")
print(os.listdir("/proc/self/task") == [str(os.getpid())])
"""
    assert run_python(code).stdout == "True\n"


def test_the_launcher_module_itself_imports_nothing_that_reads_the_environment() -> None:
    code = """
import sys
import cortex.replica.launcher
print([name for name in ("numpy", "onnxruntime", "uvloop", "tensorflow") if name in sys.modules])
"""
    assert run_python(code).stdout == "[]\n"
