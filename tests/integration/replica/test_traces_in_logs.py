"""What a handler's exceptions and crashes look like in the log, wherever they happen."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest
from replica_harness import LauncherProcess, Replica, eventually, request
from test_life import exit_of

from cortex.agent.logs import take_leftover
from cortex.replica.observation.places import of
from cortex.wire.logline import LoggedLine

pytestmark = pytest.mark.slow

SAMPLE = [5.1, 3.5, 1.4, 0.2]
Start = Callable[..., Replica]
BACKGROUND = """
import asyncio, threading
from concurrent.futures import ThreadPoolExecutor
kept, pool = [], ThreadPoolExecutor(1)
def fails(what):
    raise ValueError(f"unseen of a {what}")
async def work(what):
    fails(what)
async def post_inference(prediction, metadata):
    awaited = asyncio.create_task(work("task that is awaited"))
    kept.append(asyncio.create_task(work("task")))
    kept.append(pool.submit(fails, "call"))
    kept.append(threading.Thread(target=fails, args=("thread",)))
    kept[-1].start()
    try:
        await awaited
    except ValueError:
        return "fine"
"""


def lines_with(replica: Replica, text: str) -> list[LoggedLine]:
    return [line for line in replica.lines() if text in line.text]


def test_exceptions_in_the_background_are_logged_with_level_request_and_the_users_traceback(
    start: Start, shared_launcher: LauncherProcess
) -> None:
    replica = start(BACKGROUND)
    assert replica.post(SAMPLE, headers={"x-request-id": "r1"}).json == "fine"
    for what in ("task", "call", "thread"):
        found = eventually(lambda what=what: lines_with(replica, f"ValueError: unseen of a {what}"), what)
        (line,) = [line for line in found if line.text.endswith(f"unseen of a {what}")]
        assert (line.level, line.request) == ("ERROR", "r1")
        assert '  File "handler.py", line 6, in fails' in line.text
        assert "cortex" not in line.text
    assert lines_with(replica, "that is awaited") == []
    replica.drain(5)
    assert exit_of(shared_launcher, replica) == (0, None)
    assert len(lines_with(replica, "unseen of a")) == 3


def test_what_is_not_told_yet_is_told_when_the_replica_ends(start: Start, shared_launcher: LauncherProcess) -> None:
    replica = start(BACKGROUND)
    assert replica.post(SAMPLE).json == "fine"
    replica.drain(5)
    assert exit_of(shared_launcher, replica) == (0, None)
    assert len(lines_with(replica, "unseen of a")) == 3


PRINTS = """
import logging, sys, traceback
def deeper():
    raise ValueError("deep")
def post_inference(prediction, metadata):
    try:
        deeper()
    except ValueError:
        logging.getLogger("mine").exception("logged")
        traceback.print_exc()
        traceback.print_stack()
    return "done"
"""


def test_tracebacks_that_a_handler_logs_or_prints_name_its_files_as_it_does(start: Start) -> None:
    replica = start(PRINTS)
    assert replica.post(SAMPLE).json == "done"
    lines = [line.text for line in replica.lines()]
    (logged,) = [line for line in lines if line.startswith("logged")]
    assert '  File "handler.py", line 7, in post_inference\n    deeper()\n' in logged
    assert lines.count('  File "handler.py", line 7, in post_inference') == 1
    assert lines.count('  File "handler.py", line 11, in post_inference') == 1
    text = "\n".join(lines)
    assert replica.spec.project_dir is not None
    assert (replica.spec.project_dir in text, "cortex/replica" in text) == (False, False)


WARNS = """
import warnings
from cortex import RequestError
warnings.warn("careful")
def post_inference(prediction, metadata):
    raise RequestError(404, f"there is no {__file__}")
"""


def test_warnings_and_answers_of_a_handler_name_its_files_as_it_does(start: Start) -> None:
    replica = start(WARNS)
    assert replica.post(SAMPLE).json["message"] == "there is no handler.py"
    lines = [line.text for line in replica.lines()]
    assert [line for line in lines if "careful" in line] == [
        "handler.py:4: UserWarning: careful",
        '  warnings.warn("careful")',
    ]


def test_a_crash_shows_the_users_frames_alone(start: Start, shared_launcher: LauncherProcess) -> None:
    replica = start("import ctypes\ndef post_inference(p, m):\n    ctypes.string_at(0)\n")
    with replica.client() as client:
        client.send(request(orjson.dumps(SAMPLE)))
        assert client.at_end()
    assert exit_of(shared_launcher, replica) == (None, signal.SIGSEGV)
    take_leftover(Path(replica.spec.log_path), 1, of(replica.spec))  # as the agent does
    text = "\n".join(line.text for line in replica.lines())
    assert "Fatal Python error: Segmentation fault" in text
    assert '  File "handler.py", line 3 in post_inference' in text
    assert "cortex/replica" not in text
