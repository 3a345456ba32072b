"""Every case of this folder, done to Cortex as a user would: see README.md."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import shlex
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import onnx.parser
import pytest
from case import Case, Seen, Step, differences, read_case
from contract_harness import COMMAND_DEADLINE_S, CORTEX, Answer, Connection, Home, running_home, write_project

CASES = sorted(Path(__file__).parent.glob("*.yaml"))
LOOK_AGAIN_S = 0.2


@pytest.fixture(scope="session")
def shared() -> Iterator[Home]:
    with running_home() as home:
        yield home


@pytest.fixture
def own() -> Iterator[Home]:
    with running_home() as home:
        yield home


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_the_field(path: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    case = read_case(path)
    home: Home = request.getfixturevalue(case.home)
    project = write_project(tmp_path / "project", case.files)
    for name, text in case.onnx.items():
        model = onnx.parser.parse_model(text)
        onnx.checker.check_model(model)
        write_project(project, {name: model})
    if case.home == "own":
        home.variables |= case.env
    played = Played(case, home, project)
    try:
        for number, step in enumerate(case.steps, 1):
            wrong, seen = played.play(step)
            if wrong:
                pytest.fail(told(path, case, number, step, wrong, seen), pytrace=False)
    finally:
        if case.home == "shared":
            played.clear()


def told(path: Path, case: Case, number: int, step: Step, wrong: list[str], seen: Seen) -> str:
    """What somebody has to know who has never seen the case."""
    done = msgspec.json.format(msgspec.json.encode({step.kind: getattr(step, step.kind)})).decode()
    lines = (
        f"{case.finding} ({path.name}): {case.was.strip()}",
        f"right: {case.right.strip()}",
        f"step {number}: {done}",
        *(f"  {line}" for line in wrong),
        "seen:",
        seen.text or "(nothing)",
    )
    return "\n".join(lines)


class Played:
    """A case as it goes on."""

    def __init__(self, case: Case, home: Home, project: Path) -> None:
        self._case = case
        self._home = home
        self._project = project

    def play(self, step: Step) -> tuple[list[str], Seen]:
        """Do a step until all is as it says or its time is up. Returns what is wrong, and what was seen last."""
        deadline_s = time.monotonic() + (step.within or 0)
        while True:
            seen = self._do(step)
            wrong = [line for one in seen for line in differences(step, one)]
            last = next((one for one in seen if differences(step, one)), seen[-1])
            if not wrong or time.monotonic() >= deadline_s:
                return list(dict.fromkeys(wrong)), last
            time.sleep(LOOK_AGAIN_S)

    def clear(self) -> None:
        """Remove what the case has deployed, so that the next one finds the home as this one did."""
        listed = self._home.cortex("get", "-o", "json", code=None)
        if listed.code == 0:
            for name in {api["deployment"] for api in listed.json}:
                self._home.cortex("delete", name, "--yes", code=None)

    def _do(self, step: Step) -> list[Seen]:
        if step.cortex is not None:
            return [self._run([str(CORTEX), *shlex.split(step.cortex)], step)]
        if step.shell is not None:
            return [self._run(["bash", "-euo", "pipefail", "-c", step.shell], step)]
        if step.kill is not None:
            return [self._kill(step.kill, step.signal)]
        if step.edit is not None:
            for name, text in step.edit.items():
                if text is None:
                    (self._project / name).unlink()
                else:
                    write_project(self._project, {name: text})
            return [Seen()]
        return [_seen(answer) for answer in self._ask(step)]

    def _run(self, argv: list[str], step: Step) -> Seen:
        environment = {
            **self._home.environment(),
            "ENDPOINT": f"http://127.0.0.1:{self._home.port}",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            **self._case.env,
            **step.env,
        }
        if step.width is not None:
            return _on_a_terminal(argv, step.width, self._project, environment)
        try:
            ran = subprocess.run(
                argv,
                cwd=self._project,
                env={name: value for name, value in environment.items() if value},
                input=(step.input or "").encode(),
                capture_output=True,
                timeout=COMMAND_DEADLINE_S,
            )
        except subprocess.TimeoutExpired as error:
            said = b"\n".join(filter(None, (error.stdout, error.stderr))).decode("utf-8", "replace")
            return Seen(code=-1, text=f"it did not end within {COMMAND_DEADLINE_S:g} s:\n{said}")
        out, err = ran.stdout.decode("utf-8", "replace"), ran.stderr.decode("utf-8", "replace")
        return Seen(code=ran.returncode, text="\n".join(filter(None, (out, err))), value=_value(ran.stdout))

    def _kill(self, api: str, name: str) -> Seen:
        pids = self._home.replica_pids(api)
        assert pids, f"no replica of {api} is running"
        for pid in pids:
            os.kill(pid, signal.Signals[f"SIG{name}"])
        return Seen(text=f"processes {pids}")

    def _ask(self, step: Step) -> list[Answer]:
        method, path = ("GET", step.get) if step.get is not None else ("POST", step.post)
        headers = dict(step.headers)
        body: bytes | None = None
        if step.json is not msgspec.UNSET:
            body = msgspec.json.encode(step.json)
            headers.setdefault("content-type", "application/json")
        elif step.text is not None:
            body = step.text.encode()
        elif step.file is not None:
            body = (self._project / step.file).read_bytes()
        elif method == "POST":
            body = b""

        def ask(_: int) -> Answer:
            try:
                with Connection(self._home.port) as connection:
                    return connection.ask(method, f"/{path}", body, headers)
            except ConnectionError as error:
                return Answer(0, {}, f"no answer: {error}".encode())

        with ThreadPoolExecutor(step.times if step.together else 1) as pool:
            return list(pool.map(ask, range(step.times)))


def _on_a_terminal(argv: list[str], width: int, cwd: Path, environment: dict[str, str]) -> Seen:
    """What a command shows on a terminal, colours left out."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, width, 0, 0))
    environment = {name: value for name, value in environment.items() if value and name != "COLUMNS"} | {
        "TERM": "xterm"
    }
    child = subprocess.Popen(argv, cwd=cwd, env=environment, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = bytearray()
    deadline_s = time.monotonic() + COMMAND_DEADLINE_S
    try:
        while select.select([ours], [], [], max(0.0, deadline_s - time.monotonic()))[0]:
            try:
                shown += os.read(ours, 65536)
            except OSError:  # nobody has it open any more
                break
        else:
            child.kill()
    finally:
        os.close(ours)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode("utf-8", "replace"))
    return Seen(code=child.wait(), text=text.replace("\r\n", "\n").replace("\r", "\n"))


def _seen(answer: Answer) -> Seen:
    return Seen(code=answer.status, text=answer.body.decode("utf-8", "replace"), value=_value(answer.body))


def _value(data: bytes) -> object:
    try:
        return msgspec.json.decode(data)
    except msgspec.MsgspecError:
        return msgspec.UNSET
