"""Commands as somebody types them: in shells, on terminals, in pipes, with Ctrl-C, and for environments elsewhere."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from contract_harness import CORTEX, DEADLINE_S, Connection, Home, eventually, rows_model, running_home, write_project

pytestmark = pytest.mark.slow

TOLD = """
    def pre_inference(sample, metadata):
        print("asked", type(sample).__name__)
        return [[len(sample), 0, 0, 0]] if isinstance(sample, bytes) else sample
"""
PROJECT = {
    "cortex.yaml": """
        - {kind: deployment, name: flowers}
        - {kind: api, name: plain, model: model.onnx}
        - {kind: api, name: told, model: model.onnx, request_handler: handler.py}
        """,
    "handler.py": TOLD,
    "model.onnx": rows_model(),
}


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    """With two apis, that no test changes."""
    with running_home() as home:
        project = write_project(home.path.parent / "flowers", PROJECT)
        home.deploy(project)
        write_project(home.path.parent / "other", {**PROJECT, "cortex.yaml": PROJECT["cortex.yaml"].replace("fl", "")})
        home.deploy(home.path.parent / "other")
        yield home


def array(values: object) -> bytes:
    file = io.BytesIO()
    np.save(file, np.asarray(values, np.float32))
    return file.getvalue()


# ---- samples and names ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("api", "name", "content", "answer"),
    [
        ("plain", "sample.json", b"[1, 2, 3, 4]", [[[10]]]),
        ("plain", "x.npy", array([[1, 2, 3, 4], [0, 0, 0, 1]]), [[[10], [1]]]),
        ("plain", "-", b"[1, 2, 3, 4]", [[[10]]]),
        ("plain", "-", array([[1, 2, 3, 5]]), [[[11]]]),
        ("told", "photo.jpg", b"\xff\xd8\xff" + bytes(7), [[[10]]]),
        ("told", "sound.wav", b"RIFF" + bytes(4) + b"WAVE", [[[12]]]),
        ("told", "-", b"\x89PNG\r\n\x1a\n" + bytes(4), [[[12]]]),
        ("told", "anything.bin", b"1234", [[[4]]]),
    ],
)
def test_a_sample_is_sent_as_what_it_is(
    home: Home, tmp_path: Path, api: str, name: str, content: bytes, answer: object
) -> None:
    if name != "-":
        (tmp_path / name).write_bytes(content)
    ran = home.cortex("predict", f"flowers/{api}", name, cwd=tmp_path, stdin=content if name == "-" else b"")
    assert (ran.json, ran.err) == (answer, "")


def test_a_bare_name_means_the_deployment_of_the_folder(home: Home, tmp_path: Path) -> None:
    inside = home.path.parent / "flowers"
    assert home.cortex("get", "plain", "-o", "json", cwd=inside).json["deployment"] == "flowers"
    assert home.cortex("get", "owers/plain", "-o", "json", cwd=inside).json["deployment"] == "owers"
    elsewhere = home.cortex("get", "plain", cwd=tmp_path, code=1)
    assert "say which: flowers/plain, owers/plain" in elsewhere.err


def test_every_reading_command_prints_json_for_programs(home: Home) -> None:
    for argv in (
        ["get"],
        ["get", "-a"],
        ["get", "-s", "-a"],
        ["get", "flowers/plain"],
        ["info"],
        ["version"],
        ["history", "flowers/plain"],
        ["configure"],
        ["secret", "list"],
    ):
        ran = home.cortex(*argv, "-o", "json", FORCE_COLOR="1")
        assert ran.json is not None, argv
        assert "\x1b" not in ran.out


# ---- terminals and pipes --------------------------------------------------------------------------------------------


class Screen:
    """A command on a terminal of 80 columns."""

    def __init__(self, home: Home, *argv: str, cwd: Path | None = None, **variables: str) -> None:
        self.shown = b""
        ours, theirs = pty.openpty()
        self._ours = ours
        environment = {**home.environment(), "TERM": "xterm", **variables}
        del environment["COLUMNS"]
        subprocess.run(["stty", "cols", "80", "rows", "24"], stdin=theirs, check=True)
        self.process = subprocess.Popen(
            [CORTEX, *argv],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            cwd=cwd or home.path.parent,
            env=environment,
            start_new_session=True,
        )
        os.close(theirs)

    def __enter__(self) -> Screen:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)

    def wait_for(self, pattern: bytes, count: int = 1) -> None:
        until = time.monotonic() + DEADLINE_S
        while len(re.findall(pattern, self.shown)) < count:
            assert time.monotonic() < until, f"never shown: {pattern!r} in {self.shown!r}"
            self._read()

    def type(self, keys: bytes) -> None:
        os.write(self._ours, keys)

    def end(self) -> int:
        """The exit code, once it has ended and everything was read."""
        while self._read():
            pass
        return self.process.wait(DEADLINE_S)

    def _read(self) -> bytes:
        if not select.select([self._ours], [], [], DEADLINE_S)[0]:
            return b""
        try:
            piece = os.read(self._ours, 1 << 16)
        except OSError:  # EIO: nobody has the other side open any more
            return b""
        self.shown += piece
        return piece


def interrupt(screen: Screen) -> None:
    """Ctrl-C, as a terminal turns it into a signal; without a controlling terminal we send it ourselves."""
    screen.process.send_signal(signal.SIGINT)


def test_watching_redraws_in_place_until_ctrl_c(home: Home) -> None:
    with Screen(home, "get", "-a", "-w") as screen:
        screen.wait_for(rb"\x1b\[H", 2)
        interrupt(screen)
        assert screen.end() == 130
    assert b"\x1b[2J" not in screen.shown, "clearing the whole screen is what flickers"
    on_screen, _, left = screen.shown.partition(b"\x1b[?1049l")
    assert on_screen.count(b"\x1b[?1049h") == 1
    assert left.count(b"plain") == 2, "the last look stays"


def test_following_logs_ends_with_ctrl_c(home: Home) -> None:
    home.cortex("predict", "flowers/told", "-", stdin=b"[1, 2, 3, 4]")
    with Screen(home, "logs", "flowers/told") as screen:
        screen.wait_for(b"asked list")
        interrupt(screen)
        assert screen.end() == 130
    assert b"interrupted: no longer reading; the api is not affected" in screen.shown


@pytest.mark.parametrize("argv", [["get", "-a"], ["get", "flowers/plain", "-v"], ["info"], ["configure"]])
def test_nothing_is_wider_than_80_columns(home: Home, argv: list[str]) -> None:
    with Screen(home, *argv, NO_COLOR="1") as screen:
        assert screen.end() == 0
    assert b"\x1b" not in screen.shown
    too_long = [line for line in screen.shown.decode().splitlines() if len(line) > 80 and "curl" not in line]
    assert [line for line in too_long if str(home.path) not in line] == []


def test_deleting_asks_on_a_terminal_and_takes_no_for_no(home: Home) -> None:
    with Screen(home, "delete", "flowers") as screen:
        screen.wait_for(b"y/N")
        screen.type(b"n\n")
        assert screen.end() == 1
    assert b"nothing was deleted" in screen.shown
    assert len(home.operator().apis("flowers")) == 2


def test_a_reader_that_leaves_early_hears_nothing(home: Home) -> None:
    ran = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {CORTEX} get flowers/plain -v | head -1"],
        env=home.environment(),
        capture_output=True,
    )
    assert (ran.stdout.split(), ran.stderr) == ([b"api", b"flowers/plain"], b"")


# ---- shells ---------------------------------------------------------------------------------------------------------

COMPLETIONS = {
    "bash": """
        source <(cortex completion bash)
        complete -p cortex cx >/dev/null
        COMP_WORDS=(cortex get flowers/); COMP_CWORD=2
        _cortex_completion cortex
        printf '%s\\n' "${COMPREPLY[@]}"
        """,
    "zsh": """
        autoload -U compinit; compinit -D -u
        source <(cortex completion zsh)
        [[ -n ${_comps[cortex]} && -n ${_comps[cx]} ]] || exit 1
        COMP_WORDS='cortex get flowers/' COMP_CWORD=2 _CORTEX_COMPLETE=zsh_complete cortex | grep flowers/
        """,
    "fish": """
        cortex completion fish | source
        complete --do-complete 'cortex get flowers/'
        """,
}


@pytest.mark.parametrize("shell", COMPLETIONS)
def test_names_are_completed_in_a_real_shell(home: Home, shell: str) -> None:
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"{shell} is not installed")
    environment = {**home.environment(), "PATH": f"{CORTEX.parent}{os.pathsep}{os.environ['PATH']}"}

    def complete() -> subprocess.CompletedProcess[bytes] | None:
        """What the shell says; nothing while the names cannot be known at once, as on a busy machine."""
        ran = subprocess.run(
            [program, "-c", COMPLETIONS[shell]], env=environment, capture_output=True, timeout=DEADLINE_S
        )
        return ran if ran.stdout.strip() else None

    ran = eventually(complete, "names are completed")
    assert ran.returncode == 0, ran.stderr
    assert [line.split("\t")[0] for line in ran.stdout.decode().split()] == ["flowers/plain", "flowers/told"]


# ---- another machine's environment ----------------------------------------------------------------------------------


def test_an_environment_elsewhere_is_deployed_to_asked_and_not_stopped(home: Home, tmp_path: Path) -> None:
    """A second home stands for another machine: nothing but its file of environments says where the first one is."""
    here = Home(tmp_path / "home")
    token = (home.path / "token").read_bytes()
    here.cortex("configure", "add", f"http://127.0.0.1:{home.operator_port}", "gpu", stdin=token)
    project = write_project(
        tmp_path / "remote", {**PROJECT, "cortex.yaml": PROJECT["cortex.yaml"].replace("flowers", "remote")}
    )
    deployed = here.cortex("--env", "gpu", "deploy", project)
    assert f"http://127.0.0.1:{home.port}/remote/plain" in deployed.out
    assert here.cortex("predict", "remote/plain", "-", stdin=b"[1, 2, 3, 4]", CORTEX_ENV="gpu").json == [[[10]]]
    assert here.cortex("--env", "gpu", "info", "-o", "json").json["environment"] == "gpu"
    refused = here.cortex("--env", "gpu", "down", code=1)
    assert "not-on-this-machine" in refused.err
    here.cortex("--env", "gpu", "delete", "remote", "--yes")
    assert here.processes() == [], "nothing was started here"
    eventually(lambda: not home.operator().apis("remote"), "both apis are gone there")
    assert here.files_with(token.strip()) == [here.path / "environments.json"]


# ---- a life in the foreground ---------------------------------------------------------------------------------------


def test_the_foreground_deploys_prints_logs_and_drains_on_sigterm() -> None:
    with running_home() as home:
        project = write_project(home.path.parent / "flowers", PROJECT)
        process = home.start("up", "--foreground", project)
        assert process.stdin
        assert process.stdout
        assert process.stderr
        try:
            os.set_blocking(process.stdout.fileno(), False)
            eventually(lambda: answers(home), "the api answers")
            printed = b""

            def has_printed() -> bool:
                nonlocal printed
                printed += process.stdout.read() or b""  # type: ignore[union-attr]
                return b"flowers/told" in printed and b"asked list" in printed

            eventually(has_printed, "what the handler prints is on stdout")
            process.send_signal(signal.SIGTERM)
            assert process.wait(DEADLINE_S) == 0
            assert b"SIGTERM: stopping" in process.stderr.read()
        finally:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                stream.close()
        assert home.processes() == []
        assert home.cortex("get", "-a", code=1).err.startswith("error: down\n")


def answers(home: Home) -> bool:
    try:
        with Connection(home.port) as connection:
            return connection.ask("POST", "/flowers/told", b"[1, 2, 3, 4]").status == 200
    except OSError:
        return False


def test_the_foreground_ends_with_1_when_what_it_should_serve_cannot_go_live(tmp_path: Path) -> None:
    with running_home() as home:
        broken = write_project(tmp_path / "broken", {**PROJECT, "handler.py": "raise ValueError('no')"})
        ran = home.cortex("up", "--foreground", broken, code=1)
        assert "ValueError: no" in ran.err
        assert home.processes() == []


# ---- refresh, and the end -------------------------------------------------------------------------------------------


def test_refresh_down_up_and_purge(tmp_path: Path) -> None:
    with running_home() as home:
        project = write_project(tmp_path / "flowers", PROJECT)
        home.deploy(project)
        before = versions(home)
        home.cortex("refresh", "told", cwd=project)
        after = versions(home)
        assert (after["plain"], after["told"] != before["told"]) == (before["plain"], True)
        home.cortex("down")
        assert home.processes() == []
        assert home.cortex("get", "-a", code=1).err.startswith("error: down\n")
        home.cortex("up")
        eventually(lambda: answers(home), "what was deployed serves again")
        assert versions(home) == after
        (home.path / "notes.txt").write_text("mine")
        purged = home.cortex("down", "--purge", "--yes")
        assert "left alone, because they are not of Cortex: notes.txt" in purged.err
        assert [file.name for file in home.path.iterdir()] == ["notes.txt"]


def versions(home: Home) -> dict[str, str]:
    return {api["name"]: api["version"] for api in json.loads(home.cortex("get", "-a", "-o", "json").out)}


HANGING = {
    "cortex.yaml": """\
        - {kind: deployment, name: hanging}
        - {kind: api, name: x, model: m.onnx, request_handler: h.py, compute: {cpu: 50m}}
        """,
    "h.py": """\
        import time
        time.sleep(600)
        def post_inference(prediction, metadata):
            return 1
        """,
    "m.onnx": rows_model(),
}


def test_an_import_that_hangs_blocks_only_its_own_deploy_and_ends_with_ctrl_c(home: Home, tmp_path: Path) -> None:
    def inspecting() -> list[str]:
        return [title for _pid, title in home.processes() if title.startswith("cortex-inspect")]

    project = write_project(tmp_path / "hanging", HANGING)
    other = write_project(
        tmp_path / "other",
        {
            "cortex.yaml": "- {kind: deployment, name: beside}\n- {kind: api, name: y, model: m.onnx}\n",
            "m.onnx": rows_model(),
        },
    )
    for end in (signal.SIGINT, signal.SIGKILL):
        process = home.start("deploy", project)
        eventually(inspecting, "its handler is being imported")
        home.deploy(other)
        assert process.poll() is None
        process.send_signal(end)
        _out, err = process.communicate(timeout=60)
        if end is signal.SIGINT:
            assert process.returncode == 130
            assert "interrupted: the deploy is called off" in err.decode()
        eventually(lambda: not inspecting(), "its inspection has ended")
    write_project(project, {**HANGING, "h.py": HANGING["h.py"].replace("600", "0")})
    home.deploy(project)
    home.cortex("delete", "hanging", "-y")
    home.cortex("delete", "beside", "-y")
