"""`cortex logs`, as somebody meets it who looks for what a handler wrote."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import secrets
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from contract_harness import DEADLINE_S, Connection, Home, eventually, rows_model, running_home, write_project

from cortex.errors import CortexError

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

HANDLER = """\
import asyncio, ctypes, logging, os, subprocess, sys, threading
from concurrent.futures import ThreadPoolExecutor

pool = ThreadPoolExecutor(2)
logger = logging.getLogger("a.library")

def flood_in_python(): [print("p" * 1000) for _ in range(100_000)]
def flood_in_c(): [os.write(1, b"c" * 999 + b"\\n") for _ in range(100_000)]
def flood_elsewhere():
    flood = "head -c 100000000 /dev/zero | tr '\\\\0' s | fold -w 1000"
    subprocess.run(["sh", "-c", flood])

def pre_inference(sample, metadata):
    what = sample.get("do") if isinstance(sample, dict) else None
    if what == "speak":
        print("printed")
        logger.warning("logged")
        ctypes.CDLL(None).puts(b"from C")
        subprocess.run(["sh", "-c", "echo from a subprocess"])
        thread = threading.Thread(target=print, args=("from a thread",)); thread.start(); thread.join()
        pool.submit(print, "from a pool").result()
        print("unfinished", end="")
    elif what == "fail":
        try:
            {}["missing"]
        except KeyError as error:
            raise ValueError("two\\nlines") from error
    elif what == "crash":
        ctypes.string_at(0)
    elif what in ("flood_in_python", "flood_in_c", "flood_elsewhere"):
        globals()[what]()
        print("after the flood", sample["n"])
    elif what == "say":
        print("said", sample["n"])
    return [[1, 2, 3, 4]]
"""
ASYNC_HANDLER = """\
import asyncio
turn = asyncio.Event()

async def pre_inference(sample, metadata):
    for step in range(3):
        print(sample["name"], step)
        await asyncio.sleep(0.01)
    await asyncio.to_thread(print, sample["name"], "in a thread")
    return [[1, 2, 3, 4]]
"""


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    with running_home() as home:
        yield home


@pytest.fixture(scope="module")
def folder(home: Home, tmp_path_factory: pytest.TempPathFactory) -> Path:
    api = "- kind: api\n  name: {0}\n  model: m.onnx\n  request_handler: {1}.py\n  compute: {{min_replicas: {2}}}\n"
    folder = write_project(
        tmp_path_factory.mktemp("project"),
        {
            "cortex.yaml": "- kind: deployment\n  name: l\n"
            + api.format("x", "handler", 1)
            + api.format("two", "handler", 2)
            + api.format("a", "interleaved", 1),
            "handler.py": HANDLER,
            "interleaved.py": ASYNC_HANDLER,
            "m.onnx": rows_model(),
        },
    )
    home.deploy(folder)
    return folder


def ask(home: Home, api: str, request: str, **sample: object) -> int:
    with Connection(home.port, timeout_s=200.0) as connection:  # a flood takes its time
        body = json.dumps(sample).encode()
        return connection.ask("POST", f"/l/{api}", body, {"x-request-id": request}).status


def lines(home: Home, api: str, *argv: str) -> list[dict[str, Any]]:
    ran = home.cortex("logs", f"l/{api}", "--no-follow", "-o", "json", *argv)
    return [json.loads(line) for line in ran.out.splitlines()]


class Following:
    """`cortex logs` that runs on."""

    def __init__(self, home: Home, *argv: str) -> None:
        self._process = home.start("logs", *argv, "-o", "json", PYTHONUNBUFFERED="1")
        self._arrived: queue.Queue[dict[str, Any]] = queue.Queue()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._arrived.put(json.loads(line))

    def until(self, text: str) -> list[str]:
        """Texts that arrive, to the one that is waited for."""
        texts: list[str] = []
        while text not in texts:
            texts.append(self._arrived.get(timeout=DEADLINE_S)["text"])
        return texts

    def rest(self) -> list[str]:
        """Texts that nobody has waited for, after the end."""
        return [self._arrived.get_nowait()["text"] for _ in range(self._arrived.qsize())]

    def end(self) -> tuple[int, str]:
        self._process.send_signal(signal.SIGINT)
        code = self._process.wait(DEADLINE_S)
        self._thread.join()
        assert self._process.stderr is not None
        err = self._process.stderr.read().decode()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert stream is not None
            stream.close()
        return code, err


def test_whatever_a_request_writes_is_found_by_its_id(home, folder):
    assert ask(home, "x", "req-speak", do="speak") == 200
    found = eventually(lambda: len(got := lines(home, "x", "--request", "req-speak")) == 7 and got, "all is there")
    assert [(line["text"], line["level"]) for line in found] == [
        ("printed", ""),
        ("logged", "WARNING"),
        ("from C", ""),
        ("from a subprocess", ""),
        ("from a thread", ""),
        ("from a pool", ""),
        ("unfinished", ""),
    ]
    shown = home.cortex("logs", "l/x", "--no-follow").out
    assert " req-speak  printed\n" in shown or " req-sp…  printed\n" in shown
    assert home.cortex("logs", "l/x", "--no-follow", "--request", "req-sp…").out.count("printed") == 1


def test_async_requests_that_run_at_once_keep_their_lines_apart(home, folder):
    names = [f"n{number}" for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda name: ask(home, "a", f"req-{name}", name=name), names)) == {200}
    for name in names:
        texts = [line["text"] for line in lines(home, "a", "--request", f"req-{name}")]
        assert texts == [f"{name} 0", f"{name} 1", f"{name} 2", f"{name} in a thread"]


def test_a_failure_is_one_record_with_the_users_frames_first(home, folder):
    assert ask(home, "x", "req-fail", do="fail") == 500
    (record,) = lines(home, "x", "--request", "req-fail")
    text = record["text"].splitlines()
    assert text[0] == "handler-failed: pre_inference raised ValueError: two"
    files = [line.strip() for line in text if line.strip().startswith("File ")]
    assert [file.split(",")[0] for file in files] == ['File "handler.py"'] * 2
    assert text[-2:] == ["ValueError: two", "lines"]


def test_what_a_crash_wrote_last_is_in_the_log(home, folder):
    assert ask(home, "two", "req-crash", do="crash") in (502, 503)
    eventually(
        lambda: any("Segmentation fault" in line["text"] for line in lines(home, "two", "--since", "5m")),
        "the fault handler's words are there",
    )
    eventually(lambda: home.cortex("get", "l/two", "-o", "json").json["replicas"]["ready"] == 2, "both are back")


def test_replicas_are_interleaved_in_time_order_and_one_can_be_asked_for(home, folder):
    asked = 0
    while len({line["replica"] for line in lines(home, "two", "--since", "1h") if line["text"].startswith("said")}) < 2:
        assert ask(home, "two", f"req-{asked}", do="say", n=asked) == 200
        asked += 1
    found = [line for line in lines(home, "two", "--since", "1h") if line["text"].startswith("said")]
    assert [line["text"] for line in found] == [f"said {number}" for number in range(asked)]
    short = ".".join(found[0]["replica"].rsplit(".", 2)[1:])
    only = [line for line in lines(home, "two", "--since", "1h", "--replica", short) if line["text"].startswith("said")]
    assert only == [line for line in found if line["replica"] == found[0]["replica"]]


def test_following_goes_on_over_a_redeploy_and_over_deaths_of_control_plane_and_agent(home, folder):
    following = Following(home, "l/x")
    said = []
    once = secrets.token_hex(4)

    def say(words: str) -> list[str]:
        said.append(f"said {words} {once}")
        assert ask(home, "x", f"req-{once}", do="say", n=f"{words} {once}") == 200
        return following.until(said[-1])

    got = say("first")
    (folder / "handler.py").write_text((folder / "handler.py").read_text() + "# changed\n")
    home.deploy(folder)
    got += say("by another version")
    record = home.control_plane()
    assert record is not None
    os.kill(record.pid, signal.SIGKILL)
    got += say("without a control plane")
    os.kill(eventually(lambda: agent_pid(home), "the agent is known again"), signal.SIGKILL)
    got += say("without an agent")
    code, err = following.end()
    got += following.rest()
    assert [text for text in got if text in said] == said, "each once"
    assert code == 130
    assert "no longer reading; the api is not affected" in err


def agent_pid(home: Home) -> int | None:
    try:
        return home.operator().info().agent_pid
    except CortexError:  # the control plane is not back yet
        return None


@pytest.mark.parametrize("flood", ["flood_in_python", "flood_in_c", "flood_elsewhere"])
def test_a_hundred_megabytes_cannot_fill_the_disk(home, folder, flood):
    for number in range(2):
        assert ask(home, "x", f"req-{flood}-{number}", do=flood, n=f"{flood} {number}") == 200
    eventually(
        lambda: any(f"after the flood {flood} 1" in line["text"] for line in lines(home, "x")),
        "what came last is shown",
    )
    eventually(lambda: 0 < bytes_of(home, "l.x.*") < 2 * 36 * 2**20, "two versions' logs are small")
    assert ask(home, "x", "req-after", do="say", n=1) == 200


def bytes_of(home: Home, pattern: str) -> int:
    """On disk, of logs that may be renamed or removed meanwhile."""
    total = 0
    for file in (file for node in home.nodes for file in node.logs.rglob(pattern)):
        with contextlib.suppress(FileNotFoundError):
            total += file.stat().st_blocks * 512
    return total


def test_an_api_that_is_deleted_ends_who_follows_it(home, folder, tmp_path):
    other = write_project(
        tmp_path / "other",
        {
            "cortex.yaml": "- kind: deployment\n  name: m\n"
            "- kind: api\n  name: y\n  model: m.onnx\n  request_handler: h.py\n",
            "h.py": "print('imported')\ndef pre_inference(sample, metadata): return sample\n",
            "m.onnx": rows_model(),
        },
    )
    home.deploy(other)
    process = home.start("logs", "m/y", PYTHONUNBUFFERED="1")
    try:
        assert process.stdout is not None
        assert b"imported" in process.stdout.readline(), "it has begun to follow"
        home.cortex("delete", "m", "-y")
        _out, err = process.communicate(timeout=DEADLINE_S)
    except BaseException:
        process.kill()
        process.communicate()
        raise
    assert process.returncode == 0
    assert "m/y is gone: it was deleted" in err.decode()
