"""What a handler's code is owed when its replica ends."""

from __future__ import annotations

import bz2
import gzip
import signal
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from replica_harness import LauncherProcess, Replica, either_birth, eventually, spec_for
from test_life import exit_of

from cortex.wire.reports import Phase

pytestmark = pytest.mark.slow

SAMPLE = [5.1, 3.5, 1.4, 0.2]
Start = Callable[..., Replica]
NOTES = """
import os
def note(text):
    with open(os.environ["NOTE"], "a") as file:
        file.write(text + "\\n")
def post_inference(prediction, metadata): return prediction
"""


@pytest.fixture
def note(folder: Path) -> Path:
    return folder / "note"


def end(replica: Replica, launcher: LauncherProcess, timeout_s: float = 10.0) -> None:
    replica.drain(timeout_s)
    assert exit_of(launcher, replica) == (0, None)


def serve(start: Start, note: Path, source: str, **fields: object) -> Replica:
    return start(NOTES + source, env={"NOTE": str(note)}, **fields)


@either_birth
def test_nothing_that_is_buffered_is_lost(start: Start, shared_launcher: LauncherProcess, folder: Path) -> None:
    replica = start(
        """
import atexit, bz2, csv, gzip, io, logging, logging.handlers, os, tempfile, zipfile
folder = os.environ["OUT"]
table = open(folder + "/table.csv", "a", newline="")
rows = csv.writer(table)
memory = logging.handlers.MemoryHandler(1000, target=logging.FileHandler(folder + "/audit.log"))
audit = logging.getLogger("audit")
audit.addHandler(memory)
zipped = gzip.open(folder + "/lines.gz", "wt")
squeezed = bz2.open(folder + "/lines.bz2", "wt")
archive = zipfile.ZipFile(folder + "/files.zip", "w")
scratch = tempfile.TemporaryDirectory(dir=folder, prefix="scratch")
queue = []
@atexit.register
def send():
    with open(folder + "/queue.txt", "a") as file:
        file.write(f"sent {len(queue)}")
def post_inference(p, m, request):
    late = open(f"{folder}/late{len(queue)}", "w")   # made after the start, and still open
    late.write("late")
    queue.append(late)
    rows.writerow([len(queue), 1])
    audit.info("answered %d", len(queue))
    zipped.write("line\\n")
    squeezed.write("line\\n")
    archive.writestr(f"{len(queue)}", "content")
    return os.path.exists(scratch.name)
""",
        env={"OUT": str(folder)},
    )
    assert [replica.post(SAMPLE).json for _ in range(5)] == [True] * 5
    end(replica, shared_launcher)
    assert (folder / "table.csv").read_text().splitlines() == [f"{n},1" for n in range(1, 6)]
    assert (folder / "audit.log").read_text().splitlines() == [f"answered {n}" for n in range(1, 6)]
    assert (folder / "queue.txt").read_text() == "sent 5"
    assert {(folder / f"late{n}").read_text() for n in range(5)} == {"late"}
    assert gzip.decompress((folder / "lines.gz").read_bytes()) == b"line\n" * 5
    assert bz2.decompress((folder / "lines.bz2").read_bytes()) == b"line\n" * 5
    with zipfile.ZipFile(folder / "files.zip") as files:
        assert len(files.namelist()) == 5
    assert not list(folder.glob("scratch*"))
    assert replica.stats().ok == 5
    assert replica.stats().last


@either_birth
@pytest.mark.parametrize("kind", ["async def", "def"])
@pytest.mark.parametrize("hook", ["async def", "def"])
def test_its_end_has_an_order(start: Start, shared_launcher: LauncherProcess, note: Path, kind: str, hook: str) -> None:
    replica = serve(
        start,
        note,
        f"""
import asyncio, atexit, concurrent.futures, threading, time
async def work():
    try:
        await asyncio.sleep(600)
    except asyncio.CancelledError:
        note("task cancelled")
        raise
tasks = []
pool = concurrent.futures.ThreadPoolExecutor(1)
{hook} on_start():
    tasks.append(asyncio.get_event_loop().create_task(work()))
    note(f"start {{threading.current_thread() is threading.main_thread()}}")
{hook} on_stop():
    note(f"stop {{tasks[0].done()}}")
atexit.register(lambda: note(f"atexit {{threading.current_thread() is threading.main_thread()}}"))
def slow():
    time.sleep(0.1)
    note("submitted")
{kind} post_inference(p, m, request):
    pool.submit(slow)
    asyncio.get_event_loop()
    return 1
""",
    )
    assert replica.post(SAMPLE).status == 200
    end(replica, shared_launcher)
    assert [line for line in note.read_text().splitlines() if line != "task cancelled"] == [
        "start True",
        "stop False",
        "submitted",
        "atexit True",
    ]
    if kind == "async def":
        assert "task cancelled" in note.read_text()


@pytest.mark.parametrize("raised", ["ValueError('at the end')", "SystemExit(3)", "KeyboardInterrupt"])
@pytest.mark.parametrize("kind", ["async def", "def"])
def test_an_on_stop_that_fails_is_told_and_the_rest_goes_on(
    start: Start, shared_launcher: LauncherProcess, note: Path, kind: str, raised: str
) -> None:
    replica = serve(
        start,
        note,
        f"""
import atexit
atexit.register(lambda: note("atexit"))
def broken():
    raise ValueError("in atexit")
atexit.register(broken)
{kind} on_stop():
    raise {raised}
""",
    )
    end(replica, shared_launcher)
    assert note.read_text() == "atexit\n"
    texts = [line.text for line in replica.lines()]
    assert any(text.startswith("on_stop: Traceback") and 'File "handler.py"' in text for text in texts)


@pytest.mark.parametrize(
    "stuck",
    [
        "def on_stop():\n    time.sleep(600)\n",
        "import atexit\natexit.register(time.sleep, 600)\n",
        "async def on_stop():\n    time.sleep(600)\n",
    ],
)
def test_an_end_that_does_not_end_is_broken_off_and_counts_are_written(
    start: Start, shared_launcher: LauncherProcess, note: Path, stuck: str
) -> None:
    replica = serve(start, note, "import time\n" + stuck)
    assert replica.post(SAMPLE).status == 200
    replica.drain(0.1)
    assert exit_of(shared_launcher, replica) == (0, None)
    assert replica.stats().last
    assert replica.stats().ok == 1
    assert any("out of time at" in line.text for line in replica.lines())


def test_a_drains_time_is_for_requests_and_not_for_an_end_that_hangs(
    start: Start, shared_launcher: LauncherProcess, note: Path
) -> None:
    replica = serve(start, note, "import time\ndef on_stop():\n    note('stop')\n    time.sleep(600)\n")
    assert replica.post(SAMPLE).status == 200
    replica.drain(600)
    assert exit_of(shared_launcher, replica) == (0, None)
    assert note.read_text() == "stop\n"
    assert (replica.stats().ok, replica.stats().last) == (1, True)
    assert any("out of time at on_stop" in line.text for line in replica.lines())


@pytest.mark.parametrize(
    "waits",
    [
        "async def on_stop():\n    await asyncio.sleep(600)\n",
        "pool = concurrent.futures.ThreadPoolExecutor(1)\ndef on_start():\n    pool.submit(time.sleep, 600)\n",
        "import multiprocessing as m\ndef on_start():\n    m.Process(target=time.sleep, args=(600,)).start()\n",
        "async def forever():\n    while True:\n        try: await asyncio.sleep(600)\n"
        "        except asyncio.CancelledError: pass\n"
        "async def on_start():\n    global task\n    task = asyncio.create_task(forever())\n",
    ],
)
def test_what_never_ends_does_not_keep_the_rest_from_its_turn(
    start: Start, shared_launcher: LauncherProcess, note: Path, waits: str
) -> None:
    source = f"import asyncio, atexit, concurrent.futures, time\natexit.register(lambda: note('atexit'))\n{waits}"
    replica = serve(start, note, source)
    replica.drain(0.1)
    assert exit_of(shared_launcher, replica) == (0, None)
    assert note.read_text() == "atexit\n"


def test_processes_are_told_to_end_before_they_are_killed(
    start: Start, shared_launcher: LauncherProcess, note: Path
) -> None:
    replica = serve(
        start,
        note,
        """
import subprocess, sys
code = "import signal, sys, time; signal.signal(15, lambda *_: (open(sys.argv[1], 'a').write('told\\\\n'), sys.exit()))"
code += "; open(sys.argv[1], 'a').write('runs\\\\n'); time.sleep(600)"
def on_start():
    subprocess.Popen([sys.executable, "-c", code, os.environ["NOTE"]], start_new_session=True)
""",
    )
    eventually(lambda: note.exists() and note.read_text() == "runs\n", "it runs")
    end(replica, shared_launcher)
    assert note.read_text() == "runs\ntold\n"


@either_birth
def test_sigterm_ends_a_handler_as_a_drain_does(start: Start, shared_launcher: LauncherProcess, note: Path) -> None:
    replica = serve(start, note, "def on_stop():\n    note('stop')\n")
    replica.kill(signal.SIGTERM)
    assert exit_of(shared_launcher, replica) == (0, None)
    assert note.read_text() == "stop\n"


def test_a_replica_that_fails_its_sample_ends_its_handler_too(
    start: Start, shared_launcher: LauncherProcess, note: Path
) -> None:
    source = "import atexit\natexit.register(lambda: note('atexit'))\ndef on_stop():\n    note('stop')\n"
    source += "def post_inference(p, m):\n    raise ValueError\n"
    replica = serve(start, note, source, sample=b"[1, 2, 3, 4]", gate=True, wait=False)
    assert exit_of(shared_launcher, replica) == (3, None)
    assert note.read_text() == "stop\natexit\n"


def test_what_a_launcher_registered_for_its_end_is_not_done_by_its_replicas(start: Start) -> None:
    replica = start("import atexit\ndef post_inference(p, m):\n    return atexit._ncallbacks()\n")
    assert replica.post(SAMPLE).json <= 3, "logging, multiprocessing, finalizers"


def test_requests_wait_in_the_slot_while_a_replica_ends(
    start: Start, shared_launcher: LauncherProcess, note: Path, folder: Path
) -> None:
    """They are for the next attempt: nothing is accepted once the last request was answered."""
    replica = serve(
        start,
        note,
        "import time\ndef on_stop():\n    note('stop')\n"
        "    while not os.path.exists(os.environ['FOLDER'] + '/go'): time.sleep(0.01)\n",
    )
    with replica.client() as idle:
        idle.post(b"[5.1, 3.5, 1.4, 0.2]")
        replica.drain(600)
        eventually(note.exists, "it ends")
        assert idle.at_end()
    with replica.client() as late:
        late.send(b"POST /t/a HTTP/1.1\r\ncontent-length: 4\r\n\r\ntrue")
        assert replica.slot_path.exists()
        with replica.control() as control:
            assert control.status().heartbeat_age_s == 0.0
            assert control.ask().phase is Phase.DRAINING
        (folder / "go").touch()
        assert exit_of(shared_launcher, replica) == (0, None)
        again = shared_launcher.fork(
            spec_for(folder, Path(replica.spec.model_path), attempt=2, replica=replica.spec.replica), slot=replica.slot
        ).ready()
        assert late.receive().status == 422
        again.kill()
