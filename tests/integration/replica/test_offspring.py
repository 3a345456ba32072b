"""Processes that handlers start: ordinary children while they live, and gone with their replica."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from replica_harness import LauncherProcess, Replica, can_connect, either_birth, eventually, spec_for

from cortex.processes import ProcessIdentity, identify, is_alive

pytestmark = pytest.mark.slow

IRIS = Path(__file__).parents[3] / "examples" / "iris" / "models" / "sklearn.onnx"
SAMPLE = [5.1, 3.5, 1.4, 0.2]
GONE_WITHIN_S = 20.0
"""It is milliseconds on an idle machine; nobody may time a busy one."""
Start = Callable[..., Replica]

HANDLER = """
import asyncio, concurrent.futures, multiprocessing as mp, os, signal, subprocess, sys, time

def square(x):
    return x ** 2

def pool():
    with mp.Pool(2) as p:
        return p.map(square, [1, 2, 3])

def pool_closed():
    p = mp.Pool(2); found = p.map(square, [1, 2, 3]); p.close(); p.join(); return found

def terminated():
    p = mp.Process(target=time.sleep, args=(600,)); p.start(); p.terminate(); p.join(); return p.exitcode

def put(queue):
    queue.put(os.getpid())

def queue():
    q = mp.Queue(); p = mp.Process(target=put, args=(q,)); p.start(); found = q.get(); p.join()
    return [found == p.pid, p.exitcode]

def manager():
    with mp.Manager() as m:
        d = m.dict(); p = mp.Process(target=d.__setitem__, args=("a", 1)); p.start(); p.join(); return dict(d)

def executor():
    with concurrent.futures.ProcessPoolExecutor(2) as e:
        return list(e.map(square, [1, 2]))

def run():
    return subprocess.run("echo out; echo err >&2", shell=True, capture_output=True, text=True).stdout

def failing():
    p = mp.Process(target=square, args=("x",)); p.start(); p.join(); return p.exitcode

def system():
    return os.system("exit 3") >> 8

def signals():
    code = "import signal as s; print([s.getsignal(n) == s.SIG_DFL for n in (15, 1, 17)], s.pthread_sigmask(0, ()))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip()
    forked = in_child(lambda: [signal.getsignal(n) == signal.SIG_DFL for n in (15, 1, 17, 3)]
                      + [signal.getsignal(2) == signal.default_int_handler, len(signal.pthread_sigmask(0, ()))])
    return [ran, forked]

def in_child(work):
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, repr(work()).encode()); os._exit(0)
    os.close(write); os.waitpid(child, 0)
    return os.read(read, 65536).decode()

def descriptors():
    def look():
        links = []
        for fd in os.listdir("/proc/self/fd"):
            try: links.append(os.readlink(f"/proc/self/fd/{fd}"))
            except OSError: pass  # the listing's own
        return len([link for link in links if link.startswith(("socket:", "anon_inode:[io", "anon_inode:[eventfd"))])
    return in_child(look)

def asyncio_in_child():
    async def one(): return 1
    return in_child(lambda: asyncio.run(one()))

def forked(work):
    child = os.fork()
    if child == 0:
        return work()
    return [os.getpid(), os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])]

def fork_raises():
    def work(): raise ValueError("in the child")
    return forked(work)

def fork_returns(): return forked(lambda: print("from the child"))
def fork_exits(): return forked(lambda: sys.exit(7))
def fork_refuses():
    from cortex import RequestError
    def work(): raise RequestError(400, "in the child")
    return forked(work)

def pid():
    return os.getpid()
"""
SYNC = HANDLER + "\ndef post_inference(p, m, request):\n    return globals()[request.query['k']]()\n"
ASYNC = HANDLER + "\nasync def post_inference(p, m, request):\n    return globals()[request.query['k']]()\n"
KINDS = {"inline": (SYNC, {}), "pooled": (SYNC, {"concurrency": 3}), "async": (ASYNC, {})}


@pytest.fixture(params=KINDS)
def replica(request: pytest.FixtureRequest, start: Start) -> Replica:
    source, fields = KINDS[request.param]
    return start(source, **fields)


def ask(replica: Replica, k: str) -> Any:
    answer = replica.post(SAMPLE, target=f"/t/a?k={k}")
    assert answer.status == 200, answer.body
    return answer.json


# ---- while they live ------------------------------------------------------------------------------------------------


@either_birth
def test_processes_behave_as_in_a_plain_script(replica: Replica) -> None:
    before = ask(replica, "pid")
    assert ask(replica, "pool") == ask(replica, "pool_closed") == [1, 4, 9]
    assert ask(replica, "terminated") == -signal.SIGTERM
    assert ask(replica, "queue") == [True, 0]
    assert ask(replica, "manager") == {"a": 1}
    assert ask(replica, "executor") == [1, 4]
    assert ask(replica, "run") == "out\n"
    assert ask(replica, "failing") == 1
    assert ask(replica, "system") == 3
    assert ask(replica, "asyncio_in_child") == "1"
    assert ask(replica, "pid") == before == replica.pid


@either_birth
def test_a_child_has_default_signals_and_nothing_blocked(replica: Replica) -> None:
    ran, forked = ask(replica, "signals")
    assert ran == "[True, True, True] set()"
    assert forked == "[True, True, True, True, True, 0]"


@either_birth
def test_a_child_has_no_socket_and_no_loop_of_its_replica(replica: Replica) -> None:
    with replica.client() as kept:  # a connection that was accepted
        kept.post(b"[5.1, 3.5, 1.4, 0.2]", target="/t/a?k=pid")
        assert ask(replica, "descriptors") in ("0", "2"), "but for a pair by which uvloop hears of signals"


@either_birth
def test_signal_handlers_that_a_handler_sets_are_its_childrens_too(start: Start) -> None:
    replica = start(
        "import signal\nsignal.signal(signal.SIGTERM, mine := lambda *_: None)\n"
        + HANDLER
        + "\ndef post_inference(p, m):\n    return in_child(lambda: signal.getsignal(signal.SIGTERM) is mine)\n"
    )
    assert replica.post(SAMPLE).json == "True"


@pytest.mark.parametrize(
    ("k", "code"), [("fork_raises", 1), ("fork_returns", 0), ("fork_exits", 7), ("fork_refuses", 1)]
)
def test_a_forked_child_never_answers(replica: Replica, k: str, code: int) -> None:
    for _ in range(5):
        assert ask(replica, k) == [replica.pid, code]
    assert {ask(replica, "pid") for _ in range(5)} == {replica.pid}
    if k == "fork_raises":
        told = eventually(
            lambda: [line for line in replica.lines() if line.text == "ValueError: in the child"], "it is in the log"
        )
        assert len(told) >= 1
    if k == "fork_returns":
        eventually(lambda: [line for line in replica.lines() if line.text == "from the child"], "it is in the log")


def test_a_child_of_a_task_ends_where_the_task_ends_and_other_tasks_take_no_step_in_it(
    start: Start, folder: Path
) -> None:
    replica = start(
        """
import asyncio, os, pathlib
async def fork():
    if os.fork() == 0:
        raise ValueError("in the task's child")
async def post_inference(p, m, request):
    if request.query["k"] == "fork":
        task = asyncio.create_task(fork())
        others = [asyncio.create_task(step()) for _ in range(5)]
        await asyncio.gather(task, *others)
    return os.getpid()
async def step():
    with open(os.environ["FOLDER"] + "/steps", "a") as file:
        file.write(f"{os.getpid()}\\n")
"""
    )
    assert ask(replica, "fork") == replica.pid
    eventually(lambda: any("in the task's child" in line.text for line in replica.lines()), "it is in the log")
    steps = (folder / "steps").read_text().split()
    assert steps == [str(replica.pid)] * 5
    assert ask(replica, "pid") == replica.pid


@either_birth
@pytest.mark.parametrize("where", ["at import", "on_start", "thread"])
def test_a_child_forked_anywhere_is_no_second_replica(start: Start, where: str) -> None:
    source = {
        "at import": "if os.fork() == 0:\n    raise ValueError('no second')\n",
        "on_start": "def on_start():\n    if os.fork() == 0:\n        raise ValueError('no second')\n",
        "thread": "def work():\n    if os.fork() == 0:\n        raise ValueError('no second')\n"
        "threading.Thread(target=work).start()\n",
    }[where]
    replica = start(f"import os, threading\n{source}\ndef post_inference(p, m):\n    return os.getpid()\n")
    eventually(lambda: any("no second" in line.text for line in replica.lines()), "it ended with a traceback")
    assert {replica.post(SAMPLE).json for _ in range(10)} == {replica.pid}


def test_an_inspection_whose_handler_forks_reports_once(shared_launcher: LauncherProcess, folder: Path) -> None:
    source = "import os\nif os.fork() == 0:\n    raise ValueError('in the child')\ndef pre_inference(s, m): return s\n"
    report = shared_launcher.link.inspect(spec_for(folder, IRIS, handler_source=source))
    assert report.problems == ()
    assert report.has_pre


# ---- their end ------------------------------------------------------------------------------------------------------

LEAVES = """
import os, subprocess, sys, time, multiprocessing as mp

def note():
    with open(os.environ["NOTE"], "a") as file:
        file.write(f"{os.getpid()}\\n")

def stay():
    note()
    import signal
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(600)

def daemon():
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            stay()
        os._exit(0)
    os.wait()

def begin():
    mp.Process(target=stay).start()
    if os.fork() == 0:
        stay()
    daemon()
    code = "import os, time; open(os.environ['NOTE'], 'a').write(f'{os.getpid()}\\\\n'); time.sleep(600)"
    subprocess.Popen([sys.executable, "-c", code])
    subprocess.Popen([sys.executable, "-c", code], env={"NOTE": os.environ["NOTE"]}, start_new_session=True)
    subprocess.Popen(["bash", "-c", f"{sys.executable} -c \\"$0\\" & wait", code], env={"NOTE": os.environ["NOTE"]})
"""
LEFT = 6
AT_IMPORT = LEAVES + "begin()\ndef post_inference(p, m): return p\n"
IN_REQUEST = LEAVES + "def post_inference(p, m):\n    begin()\n    return os.getpid()\n"


def left_by(note: Path) -> list[ProcessIdentity]:
    """Processes that have written themselves down, once all have."""

    def look() -> list[ProcessIdentity] | None:
        pids = note.read_text().split() if note.exists() else []
        found = [identity for pid in pids if (identity := identify(int(pid))) is not None]
        return found if len(found) == LEFT else None

    return eventually(look, "they all run")


def none_of(left: list[ProcessIdentity]) -> bool:
    return not any(is_alive(identity) for identity in left)


@pytest.fixture
def launcher(own_launcher: LauncherProcess) -> LauncherProcess:
    return own_launcher


@pytest.mark.parametrize("how", ["drain", "SIGTERM", "SIGKILL", "SIGSEGV"])
def test_all_descendants_are_gone_with_their_replica_and_no_others(
    launcher: LauncherProcess, folder: Path, how: str
) -> None:
    notes = [folder / "note1", folder / "note2"]
    specs = [
        spec_for(folder, IRIS, replica=f"t.a.0.{n}", handler_source=IN_REQUEST, env={"NOTE": str(note)})
        for n, note in enumerate(notes)
    ]
    ended, other = (launcher.fork(spec).ready() for spec in specs)
    for replica in (ended, other):
        assert replica.post(SAMPLE).status == 200
    gone, kept = (left_by(note) for note in notes)
    if how == "drain":
        ended.drain()
    else:
        ended.kill(signal.Signals[how])
    eventually(lambda: none_of(gone), "all are gone", GONE_WITHIN_S)
    assert all(is_alive(identity) for identity in kept)
    other.kill()
    eventually(lambda: none_of(kept), "the others too", GONE_WITHIN_S)
    eventually(lambda: children_of(launcher.pid) == set(), "and are collected")


def test_all_descendants_are_gone_with_their_inspection(launcher: LauncherProcess, folder: Path) -> None:
    note = folder / "note"
    spec = spec_for(folder, IRIS, handler_source=AT_IMPORT, env={"NOTE": str(note)})
    assert launcher.link.inspect(spec).problems == ()
    eventually(lambda: children_of(launcher.pid) == set(), "all are gone", GONE_WITHIN_S)
    assert none_of([i for pid in note.read_text().split() if (i := identify(int(pid))) is not None])


def test_all_descendants_are_gone_with_an_inspection_that_nobody_waits_for(
    launcher: LauncherProcess, folder: Path
) -> None:
    note = folder / "note"
    source = AT_IMPORT + "time.sleep(600)\n"
    asking = threading.Thread(target=_asked, args=(launcher, folder, source, note), daemon=True)
    asking.start()
    left = left_by(note)

    launcher.link.sock.shutdown(2)
    eventually(lambda: none_of(left), "all are gone", GONE_WITHIN_S)
    asking.join()


def _asked(launcher: LauncherProcess, folder: Path, source: str, note: Path) -> None:
    try:
        launcher.link.inspect(spec_for(folder, IRIS, handler_source=source, env={"NOTE": str(note)}))
    except (ConnectionError, OSError):
        pass


def test_a_launcher_that_was_told_to_end_lives_until_its_last_child_is_gone(
    launcher: LauncherProcess, folder: Path
) -> None:
    note = folder / "note"
    replica = launcher.fork(spec_for(folder, IRIS, handler_source=IN_REQUEST, env={"NOTE": str(note)})).ready()
    launcher.process.terminate()
    eventually(lambda: not can_connect(launcher.socket_path), "it takes nobody in")
    assert replica.post(SAMPLE).status == 200
    left = left_by(note)
    assert launcher.process.poll() is None
    replica.kill()
    assert launcher.process.wait(GONE_WITHIN_S) == 0
    assert none_of(left)


def children_of(pid: int) -> set[int]:
    return {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}
