"""Starting, finding and stopping the environment on this machine."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cortex.client import local
from cortex.client.errors import ControlPlaneNotUp, OperatorDown, OperatorUnreachable
from cortex.client.local import LocalEnvironment, NotOursAlone, Stopped, layout_entries
from cortex.client.ports import PortTaken
from cortex.processes import ControlPlaneRecord, ProcessIdentity, identify, is_alive, own_identity, write_identity
from cortex.settings import ControlLayout, NodeLayout, UnusableHome, load_settings

FAKE_CONTROLPLANE = str(Path(__file__).resolve().parent / "fake_controlplane.py")

Build = Callable[..., LocalEnvironment]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def build(home: Path, said: list[str]) -> Iterator[Build]:
    """Makes environments whose control plane is `fake_controlplane.py`; ends what they started."""
    built: list[LocalEnvironment] = []
    reserved: list[socket.socket] = []

    def free_port() -> int:
        """Bound so, nobody else is given it until the test is over, and whoever wants to may listen on it."""
        holder = socket.socket()
        reserved.append(holder)
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        return int(holder.getsockname()[1])

    def make(**environ: str) -> LocalEnvironment:
        everything = {
            "PATH": os.environ["PATH"],
            "CORTEX_HOME": str(home),
            "CORTEX_PORT": str(free_port()),
            "CORTEX_OPERATOR_PORT": str(free_port()),
            **environ,
        }
        environment = LocalEnvironment(
            load_settings(everything),
            environ=everything,
            say=said.append,
            command=(sys.executable, "-S", FAKE_CONTROLPLANE),
        )
        built.append(environment)
        return environment

    yield make
    for pid in {start["pid"] for start in starts(home)}:
        try:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass
    for holder in reserved:
        holder.close()


def starts(home: Path) -> list[dict[str, Any]]:
    """What each started control plane found around itself."""
    file = home / "starts"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def record(home: Path, identity: ProcessIdentity, **fields: Any) -> ControlPlaneRecord:
    facts = {"pid": identity.pid, "start_ticks": identity.start_ticks, "boot_id": identity.boot_id} | fields
    written = ControlPlaneRecord(**({"operator_port": 1, "port": 2, "host": "127.0.0.1"} | facts))
    write_identity(home / "controlplane.json", written)
    return written


# ---- finding --------------------------------------------------------------------------------------------------------


def test_a_control_plane_is_known_by_what_it_wrote(build: Build, home: Path) -> None:
    home.mkdir()
    written = record(home, own_identity())
    assert build().control_plane() == written


@pytest.mark.parametrize("recycled", [{"start_ticks": 1}, {"boot_id": "another-boot"}, {"pid": 2**22 + 1}])
def test_a_recycled_pid_is_not_taken_for_ours(build: Build, home: Path, recycled: dict[str, Any]) -> None:
    home.mkdir()
    record(home, own_identity(), **recycled)
    assert build().control_plane() is None


@pytest.mark.parametrize("content", ["", "{", '{"pid": 1}', "[]"])
def test_a_damaged_record_counts_as_none(build: Build, home: Path, content: str) -> None:
    home.mkdir()
    (home / "controlplane.json").write_text(content)
    assert build().control_plane() is None


def test_connecting_starts_nothing(build: Build, home: Path) -> None:
    with pytest.raises(OperatorUnreachable):
        build().connect()
    assert not home.exists()


def test_after_down_connecting_says_down(build: Build, home: Path) -> None:
    home.mkdir()
    (home / "down").touch()
    with pytest.raises(OperatorDown):
        build().connect()
    with pytest.raises(OperatorDown):
        build().ensure()
    assert starts(home) == []


def test_a_missing_token_is_told(build: Build, home: Path) -> None:
    home.mkdir()
    record(home, own_identity())
    with pytest.raises(OperatorUnreachable, match="token"):
        build().connect()


# ---- starting -------------------------------------------------------------------------------------------------------


def test_what_is_missing_is_started_apart_from_us(build: Build, home: Path) -> None:
    environment = build(MINE="kept")
    assert environment.ensure().info().environment == "local"
    (started,) = starts(home)
    assert started == {
        "pid": started["pid"],
        "session": started["pid"],
        "cwd": "/",
        "port": str(environment.settings.port),
        "path": None,
        "mine": "kept",
        "stdin": True,
        "bound": sorted((environment.settings.port, environment.settings.operator_port)),
    }
    assert (home / "logs" / "controlplane.out").stat().st_mode & 0o777 == 0o600
    assert environment.connect().info().pid == started["pid"]
    environment.ensure()
    assert len(starts(home)) == 1


def test_relative_module_paths_reach_the_control_plane_as_absolute(build: Build, home: Path) -> None:
    build(PYTHONPATH="src:/else").ensure()
    assert starts(home)[0]["path"] == f"{os.path.abspath('src')}:/else"


def test_the_down_mark_goes_when_it_is_started_on_purpose(build: Build, home: Path) -> None:
    home.mkdir()
    (home / "down").touch()
    environment = build()
    environment.ensure(even_if_down=True)
    assert not environment.is_marked_down


def test_a_control_plane_that_dies_is_told_with_its_last_words(build: Build, home: Path) -> None:
    (home / "logs").mkdir(parents=True)
    (home / "logs" / "controlplane.out").write_text("from an earlier start\n")
    with pytest.raises(ControlPlaneNotUp, match="exit code 1") as caught:
        build(FAKE="dies").ensure()
    assert caught.value.output == "working on it\nthere is no room for me\nanywhere"
    assert caught.value.problem().traceback == caught.value.output


def test_the_down_mark_stays_when_starting_fails(build: Build, home: Path) -> None:
    home.mkdir()
    (home / "down").touch()
    environment = build(FAKE="dies")
    with pytest.raises(ControlPlaneNotUp):
        environment.ensure(even_if_down=True)
    assert environment.is_marked_down


def test_a_control_plane_that_does_not_answer_in_time_is_told(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "START_TIMEOUT_S", 0.1)
    with pytest.raises(ControlPlaneNotUp, match=r"no answer within .* \(pid \d+\)") as caught:
        build(FAKE="silent").ensure()
    # It may not have written down yet that it is there: then nobody else knows of it.
    pid = int(re.findall(r"pid (\d+)", str(caught.value))[0])
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_two_commands_at_once_make_one_control_plane(build: Build, home: Path) -> None:
    ours = build().settings
    same = {"CORTEX_OPERATOR_PORT": str(ours.operator_port), "CORTEX_PORT": str(ours.port)}
    environments = [build(**same) for _ in range(3)]
    threads = [threading.Thread(target=environment.ensure) for environment in environments]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(starts(home)) == 1
    assert len({environment.connect().url for environment in environments}) == 1


def test_a_given_port_that_is_taken_is_an_error_naming_us(build: Build, home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(PortTaken) as caught:
            build(CORTEX_OPERATOR_PORT=str(port)).ensure()
    assert caught.value.holder is not None
    assert caught.value.holder.pid == os.getpid()
    assert starts(home) == []


def test_an_unusable_home_is_told(build: Build, home: Path) -> None:
    home.write_text("a file")
    with pytest.raises(UnusableHome):
        build().ensure()


# ---- stopping -------------------------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No long waiting for what does not answer."""
    monkeypatch.setattr(local, "PROBE_TIMEOUT_S", 0.2)


def test_stopping_ends_it_and_leaves_the_mark(build: Build, home: Path) -> None:
    environment = build()
    environment.ensure()
    running = environment.control_plane()
    assert running is not None
    assert environment.stop(drain_timeout_s=1.0) == Stopped(was_running=True)
    assert not is_alive(running)
    assert environment.is_marked_down
    assert environment.stop(drain_timeout_s=1.0) == Stopped(was_running=False)


def test_stopping_where_nothing_ever_ran_makes_no_home(build: Build, home: Path) -> None:
    assert build().stop() == Stopped(was_running=False)
    assert not home.exists()


@pytest.mark.usefixtures("quick")
def test_a_hung_control_plane_is_ended_by_its_recorded_identity(build: Build, home: Path, said: list[str]) -> None:
    home.mkdir()
    (home / "token").write_text("secret")
    with socket.create_server(("127.0.0.1", 0)) as silent, subprocess.Popen(["sleep", "60"]) as process:
        identity = identify(process.pid)
        assert identity is not None
        record(home, identity, operator_port=silent.getsockname()[1])
        assert build().stop(drain_timeout_s=0.1) == Stopped(was_running=True, killed=(process.pid,))
        assert not is_alive(identity)
    assert said == [f"the control plane does not answer: ending it (pid {process.pid})"]


@pytest.mark.usefixtures("quick")
def test_an_agent_alone_is_ended_too(build: Build, home: Path) -> None:
    home.mkdir()
    with subprocess.Popen(["sleep", "60"]) as process:
        identity = identify(process.pid)
        assert identity is not None
        write_identity(home / "agent.json", identity)
        assert build().stop(drain_timeout_s=0.1) == Stopped(was_running=True, killed=(process.pid,))


def test_a_process_with_a_recycled_pid_is_left_alone(build: Build, home: Path) -> None:
    home.mkdir()
    with subprocess.Popen(["sleep", "60"]) as process:
        identity = identify(process.pid)
        assert identity is not None
        record(home, identity, start_ticks=identity.start_ticks - 1)
        assert build().stop(drain_timeout_s=0.1) == Stopped(was_running=False)
        process.kill()
    assert process.returncode == -signal.SIGKILL  # ours; a SIGTERM from `stop` would have come before


@pytest.mark.usefixtures("quick")
def test_what_was_left_behind_is_found_by_its_title_and_home(build: Build, home: Path) -> None:
    home.mkdir()
    sleep = "/bin/sleep"
    with (
        subprocess.Popen(["cortex-replica", "-c", f": {home} ; read x"], executable="/bin/sh", stdin=-1) as ours,
        subprocess.Popen(["cortex-replica", "60"], executable=sleep) as others,
    ):
        stopped = build().stop(drain_timeout_s=0.1)
        assert stopped == Stopped(was_running=True, killed=(ours.pid,))
        others.kill()
    assert others.returncode == -signal.SIGKILL  # ours; a SIGTERM from `stop` would have come before


@pytest.mark.usefixtures("quick")
def test_what_was_only_just_started_is_ended_before_it_has_a_title(build: Build, home: Path) -> None:
    home.mkdir()
    command = [sys.executable, "-P", "-c", "import time; time.sleep(60)", "-m", "cortex.agent", os.fspath(home)]
    with subprocess.Popen(command) as starting:
        stopped = build().stop(drain_timeout_s=0.1)
        assert stopped == Stopped(was_running=True, killed=(starting.pid,))


@pytest.mark.usefixtures("quick")
def test_what_is_started_by_one_that_is_being_ended_is_ended_too(build: Build, home: Path) -> None:
    home.mkdir()
    starter = f"trap '(exec -a cortex-agent\\ {home} sleep 60) & exit' TERM; echo ready; while :; do read -t 1 x; done"
    argv = ["cortex-controlplane", "-c", starter, f" {home} "]
    with subprocess.Popen(argv, executable="/bin/bash", stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == b"ready\n"  # until then a SIGTERM ends it without a successor
        stopped = build().stop(drain_timeout_s=0.1)
    assert first.pid in stopped.killed
    assert len(stopped.killed) == 2


def test_up_waits_for_a_down_that_was_interrupted(build: Build, home: Path, fake: Any, fakes: Any) -> None:
    layout = fake.write_home(home)
    layout.down_mark.touch()
    environment = build()
    environment.ensure(even_if_down=True)  # it answers: it was not stopped after all
    assert not environment.is_marked_down
    assert starts(home) == []


# ---- purging --------------------------------------------------------------------------------------------------------


def test_only_files_of_ours_are_removed(build: Build, home: Path) -> None:
    ControlLayout(home).prepare()
    NodeLayout(home).prepare()
    for name in ("state.db", "state.db-wal", "token", "down", "ports.json", "lock", "controlplane.lock", "hashes.json"):
        (home / name).touch()
    (home / ".token.123.tmp").touch()
    (home / "artifacts" / "blobs").mkdir()
    (home / "artifacts" / "blobs" / "x").write_text("model")
    (home / "artifacts" / "blobs").chmod(0o555)
    (home / "notes.txt").write_text("mine")
    (home / ".token-of-mine").write_text("mine")
    (home / "states").mkdir()
    assert build().purge() == (".token-of-mine", "notes.txt", "states")
    assert sorted(entry.name for entry in home.iterdir()) == [".token-of-mine", "notes.txt", "states"]


def test_a_home_with_nothing_else_goes_too(build: Build, home: Path) -> None:
    ControlLayout(home).prepare()
    NodeLayout(home).prepare()
    assert build().purge() == ()
    assert not home.exists()
    assert build().purge() == ()


def test_homes_of_nodes_go_with_their_sockets_wherever_those_lie(build: Build, home: Path) -> None:
    ControlLayout(home).prepare()
    (near, far) = (NodeLayout(ControlLayout(home).nodes / name) for name in ("a", "b" * 100))
    for node in (near, far):
        node.prepare()
    assert not far.sockets.is_relative_to(home)
    (far.artifacts / "trees").mkdir(mode=0o555)
    assert build().purge() == ()
    assert not home.exists()
    assert not far.sockets.exists()


def test_of_a_link_only_the_link_goes(build: Build, home: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").touch()
    home.mkdir()
    (home / "artifacts").symlink_to(elsewhere)
    assert build().purge() == ()
    assert (elsewhere / "precious").exists()


@pytest.mark.parametrize("folder", ["/", "~"])
def test_folders_that_cannot_be_ours_alone_are_not_purged(build: Build, folder: str) -> None:
    with pytest.raises(NotOursAlone):
        build(CORTEX_HOME=folder).purge()


def test_every_name_of_the_layout_counts_as_ours() -> None:
    names = {path.name for path in layout_entries(Path("/h"))}  # short enough for sockets
    assert {"state.db", "artifacts", "logs", "token", "down", "controlplane.json", "agent.json", "lock", "run"} <= names


def test_agents_of_all_nodes_are_found(build: Build, home: Path) -> None:
    nodes = (
        NodeLayout(home),
        NodeLayout(ControlLayout(home).nodes / "n1"),
        NodeLayout(ControlLayout(home).nodes / "n2"),
    )
    for node in nodes:
        node.prepare()
    for node in nodes[:2]:
        write_identity(node.agent_file, own_identity())
    assert build().nodes() == nodes
    assert build().agents() == {node: own_identity() for node in nodes[:2]}
