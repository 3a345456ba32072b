"""The world that a handler finds: under which name it is imported, what shadows what, which loop runs it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from replica_harness import Replica, either_birth, eventually

from cortex.wire.reports import Phase

pytestmark = pytest.mark.slow

SAMPLE = [5.1, 3.5, 1.4, 0.2]
Start = Callable[..., Replica]


def ask(replica: Replica, k: str) -> Any:
    """What the handler answers to `?k=…`."""
    answer = replica.post(SAMPLE, target=f"/t/a?k={k}")
    assert answer.status == 200, answer.body
    return answer.json


CALLS_ITSELF = """
def post_inference(prediction, metadata, request):
    return globals()[request.query["k"]]() if not request.warmup else None
"""


# ---- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("handler", ["msgspec.py", "handlers/msgspec.py", "json.py", "handlers/json.py"])
def test_a_handler_may_have_the_name_of_a_package(start: Start, folder: Path, handler: str) -> None:
    file = folder / "project" / handler
    file.parent.mkdir(parents=True)
    name = file.stem
    file.write_text(f"import {name}\ndef post_inference(p, m):\n    return {name}.__file__\n")
    replica = start(project_dir=str(folder / "project"), handler=handler)
    assert str(folder) not in replica.post(SAMPLE).json


def test_what_lies_beside_a_handler_is_found_last(start: Start, folder: Path) -> None:
    (folder / "project" / "handlers").mkdir(parents=True)
    (folder / "project" / "handlers" / "a.py").write_text(
        "import msgspec, own\ndef post_inference(p, m):\n    return [msgspec.__file__, own.__file__]\n"
    )
    for name in ("msgspec.py", "own.py"):
        (folder / "project" / "handlers" / name).write_text("")
    package, own = start(project_dir=str(folder / "project"), handler="handlers/a.py").post(SAMPLE).json
    assert str(folder) not in package
    assert own.endswith("handlers/own.py")


@either_birth
def test_nothing_of_the_launcher_is_the_main_module(start: Start) -> None:
    replica = start("import __main__\ndef post_inference(p, m):\n    return sorted(vars(__main__))\n")
    assert all(name.startswith("__") for name in replica.post(SAMPLE).json)


@either_birth
def test_workers_that_are_started_anew_find_the_handlers_functions(start: Start) -> None:
    replica = start(
        CALLS_ITSELF
        + """
import concurrent.futures, multiprocessing, pickle, subprocess, sys
import json  # a handler json.py would be in the way of it

def square(x):
    return x ** 2

def spawn():
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(square, [1, 2, 3]))

def forkserver():
    with multiprocessing.get_context("forkserver").Pool(1) as pool:
        return pool.map(square, [1, 2, 3])

def unpickled():
    code = "import pickle, sys; sys.path[:] = eval(sys.argv[1]); print(pickle.loads(sys.stdin.buffer.read())(3))"
    return int(subprocess.run([sys.executable, "-c", code, repr(sys.path)], input=pickle.dumps(square),
                              capture_output=True, check=True).stdout)
"""
    )
    assert ask(replica, "spawn") == [1, 4, 9]
    assert ask(replica, "forkserver") == [1, 4, 9]
    assert ask(replica, "unpickled") == 9


# ---- loops ----------------------------------------------------------------------------------------------------------

MADE_AT_IMPORT = """
import asyncio
loop = asyncio.get_event_loop()
queue = asyncio.Queue()
lock = asyncio.Lock()
async def prepare():
    return "made at import"
made = loop.run_until_complete(prepare())
ticks = []
async def tick():
    while True:
        ticks.append(1)
        await asyncio.sleep(0.01)
task = loop.create_task(tick())
"""


@either_birth
def test_an_async_handler_is_served_by_the_loop_that_it_found_at_import(start: Start) -> None:
    replica = start(
        MADE_AT_IMPORT
        + """
async def post_inference(p, m, request):
    loop.call_later(0.01, queue.put_nowait, "from a timer")
    async with lock:
        found = await asyncio.wait_for(queue.get(), 30)
    while len(ticks) < 3:
        await asyncio.sleep(0.01)
    return [loop is asyncio.get_running_loop(), found, made]
"""
    )
    assert replica.post(SAMPLE).json == [True, "from a timer", "made at import"]


@either_birth
def test_a_sync_handler_runs_coroutines_on_the_loop_that_it_found_at_import(start: Start) -> None:
    replica = start(
        MADE_AT_IMPORT
        + """
async def use():
    loop.call_later(0.01, queue.put_nowait, "from a timer")
    async with lock:
        return await asyncio.wait_for(queue.get(), 30)
def post_inference(p, m, request):
    return [loop.run_until_complete(use()), asyncio.get_event_loop().run_until_complete(prepare())]
"""
    )
    for _ in range(2):
        assert replica.post(SAMPLE).json == ["from a timer", "made at import"]


def test_a_sync_hook_beside_an_async_one_can_run_a_coroutine(start: Start) -> None:
    replica = start(
        """
import asyncio
async def one():
    return 1
def pre_inference(sample, metadata):
    asyncio.get_event_loop().run_until_complete(one())
    return [sample]
async def post_inference(p, m):
    return await one()
"""
    )
    assert [replica.post(SAMPLE).json for _ in range(2)] == [1, 1]


@either_birth
@pytest.mark.parametrize("at_import", ["loop.close()", "asyncio.run(prepare())", "asyncio.set_event_loop(None)"])
@pytest.mark.parametrize("kind", ["async def", "def"])
def test_a_handler_may_do_with_loops_at_import_what_it_likes(start: Start, at_import: str, kind: str) -> None:
    replica = start(
        f"""
import asyncio
async def prepare():
    pass
loop = asyncio.get_event_loop()
loop.run_until_complete(prepare())
{at_import}
{kind} post_inference(p, m):
    return 1
"""
    )
    assert replica.post(SAMPLE).json == 1


def test_a_handler_that_stops_the_loop_is_told_and_served_on(start: Start) -> None:
    replica = start(
        "import asyncio\nasync def post_inference(p, m):\n    asyncio.get_running_loop().stop()\n    return 1\n"
    )
    for _ in range(3):
        assert replica.post(SAMPLE).status == 200
    assert any("stopped the event loop" in line.text for line in replica.lines())


# ---- on_start -------------------------------------------------------------------------------------------------------


@either_birth
@pytest.mark.parametrize("start_kind", ["async def", "def"])
@pytest.mark.parametrize("kind", ["async def", "def"])
def test_on_start_runs_once_before_the_first_request(start: Start, start_kind: str, kind: str) -> None:
    replica = start(
        f"""
import asyncio
begun = []
{start_kind} on_start():
    begun.append(asyncio.get_event_loop())
{kind} post_inference(p, m, request):
    return [len(begun), begun[0] is asyncio.get_event_loop()]
"""
    )
    assert [replica.post(SAMPLE).json for _ in range(2)] == [[1, True]] * 2


@pytest.mark.parametrize("error", ["ValueError('no database')", "SystemExit(1)", "KeyError('DB')"])
@pytest.mark.parametrize("kind", ["async def", "def"])
def test_an_on_start_that_fails_keeps_the_replica_out(start: Start, kind: str, error: str) -> None:
    replica = start(f"{kind} on_start():\n    raise {error}\ndef post_inference(p, m):\n    return 1\n", wait=False)
    eventually(lambda: not replica.alive(), "it has ended")
    words = replica.last_words()
    assert (words.permanent, words.problem.reference) == (True, "handler-start-failed")
    assert words.problem.where == "handler.py:2"
    assert error.partition("(")[0] in words.problem.message
    assert words.problem.traceback.splitlines()[1] == '  File "handler.py", line 2, in on_start'


def test_on_start_is_named_while_it_runs(start: Start, folder: Path) -> None:
    replica = start(
        "import os, time\ndef on_start():\n"
        "    while not os.path.exists(os.environ['FOLDER'] + '/go'): time.sleep(0.005)\n",
        wait=False,
    )
    status = eventually(lambda: (s := replica.status()).progress == "running on_start of handler.py" and s, "it runs")
    assert status.phase is Phase.LOADING
    (folder / "go").touch()
    replica.ready()
