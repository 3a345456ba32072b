"""Children of inspections that are kept and become replicas: nothing is loaded twice, and nobody sees a difference."""

from __future__ import annotations

import errno
import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from replica_harness import LauncherLink, LauncherProcess, Replica, eventually, running, spec_for

from cortex.processes import command_line, identify, is_alive
from cortex.replica.inspection.findings import do_in_fork
from cortex.replica.launcher import INSPECTIONS_AT_ONCE
from cortex.replica.process import isolation
from cortex.wire.batching import Proof
from cortex.wire.launch import CallOff, ChildExited, Inspect, Inspected, ReplicaSpec
from cortex.wire.signature import Signature

pytestmark = pytest.mark.slow

IRIS = Path(__file__).parents[3] / "examples" / "iris" / "models" / "sklearn.onnx"

NOTES = """
import logging, os, sys

print("printed at import")
logging.getLogger("mine").warning("logged at import")
os.write(1, b"written past Python\\n")
with open(os.path.join(os.environ["FOLDER"], "imports"), "a") as file:
    file.write(f"{os.getpid()}\\n")
ready_at_import = {"pid": os.getpid(), "replica": os.environ["CORTEX_REPLICA"]}

def pre_inference(sample, metadata):
    return [[5.2, 3.6, 1.4, 0.3]]

def post_inference(prediction, metadata):
    print("printed in a request")
    return {**ready_at_import, "now": os.environ["CORTEX_REPLICA"], "title": open("/proc/self/cmdline").read()}
"""


@pytest.fixture
def launcher(folder: Path) -> Iterator[LauncherProcess]:
    yield from running(folder)


def born(launcher: LauncherProcess, spec: ReplicaSpec, **options: object) -> Replica:
    """A replica that goes on with what an inspection has loaded."""
    report = launcher.keep(spec, **options)  # type: ignore[arg-type]
    assert report.problems == ()
    assert report.kept
    return launcher.fork(spec, kept=report.kept).ready()


def test_what_was_loaded_serves_and_is_not_loaded_again(shared_launcher: LauncherProcess, folder: Path) -> None:
    replica = born(shared_launcher, spec_for(folder, IRIS, handler_source=NOTES, replica="t.a.00000000.kept"))
    answer = replica.post({}).json
    assert answer["pid"] == replica.pid
    assert answer["replica"] == answer["now"] == "t.a.00000000.kept"
    assert answer["title"].startswith("cortex-replica ")
    assert (folder / "imports").read_text() == f"{replica.pid}\n"
    assert replica.status().facts["load_ms"] > 0


def test_what_was_printed_while_it_was_inspected_is_in_the_replicas_log_once(
    shared_launcher: LauncherProcess, folder: Path
) -> None:
    replica = born(shared_launcher, spec_for(folder, IRIS, handler_source=NOTES, attempt=3, replica=folder.name))
    replica.post({})
    lines = replica.lines()
    assert sorted(line.text for line in lines if "import" in line.text or "past" in line.text) == [
        "logged at import",
        "printed at import",
        "written past Python",
    ]
    assert {line.attempt for line in lines} == {3}
    assert [line.level for line in lines if line.text == "logged at import"] == ["WARNING"]
    assert "printed in a request" in [line.text for line in lines]


def test_nothing_of_an_inspections_bounds_is_left(launcher: LauncherProcess, folder: Path) -> None:
    source = """
import resource
def pre_inference(sample, metadata):
    return [[5.2, 3.6, 1.4, 0.3]]
def post_inference(prediction, metadata):
    return [resource.getrlimit(kind) for kind in (resource.RLIMIT_CPU, resource.RLIMIT_AS, resource.RLIMIT_CORE)]
"""
    replica = born(launcher, spec_for(folder, IRIS, handler_source=source))
    kinds = (resource.RLIMIT_CPU, resource.RLIMIT_AS, resource.RLIMIT_CORE)
    assert replica.post({}).json == [list(resource.prlimit(launcher.pid, kind)) for kind in kinds]
    os.kill(launcher.pid, signal.SIGKILL)
    launcher.process.wait()
    assert replica.post({}).status == 200, "it lives on without its launcher"


def test_one_that_nobody_wants_any_more_ends(shared_launcher: LauncherProcess, folder: Path) -> None:
    link = LauncherLink(shared_launcher.socket_path)
    for end in (lambda mark: link.send(CallOff(request=mark)), lambda _: link.close()):
        api = f"t/{os.urandom(3).hex()}"
        link.send(Inspect(request=api, spec=spec_for(folder, IRIS, api=api), keep=True))
        assert link.wait_for(Inspected).report.kept == api
        (pid,) = of_api(api)
        identity = identify(pid)
        assert identity is not None
        end(api)
        eventually(lambda kept=identity: not is_alive(kept), "it has ended")


def of_api(api: str) -> list[int]:
    numbers = [int(name) for name in os.listdir("/proc") if name.isdecimal()]
    return [pid for pid in numbers if command_line(pid).startswith("cortex-inspect ") and api in command_line(pid)]


def test_a_replica_is_forked_where_what_was_kept_is_gone(shared_launcher: LauncherProcess, folder: Path) -> None:
    spec = spec_for(folder, IRIS, handler_source=NOTES, api=f"t/{folder.name}", replica=folder.name)
    report = shared_launcher.keep(spec)
    (pid,) = of_api(f"t/{folder.name}")
    identity = identify(pid)
    assert identity is not None
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not is_alive(identity), "it has ended")
    replica = shared_launcher.fork(spec, kept=report.kept).ready()
    assert replica.post({}).json["pid"] == replica.pid != pid
    assert len((folder / "imports").read_text().split()) == 2


def test_how_it_ends_is_told_as_of_any_replica(launcher: LauncherProcess, folder: Path) -> None:
    replica = born(launcher, spec_for(folder, IRIS, handler_source=NOTES))
    replica.kill(signal.SIGSEGV)
    exited = launcher.link.wait_for(ChildExited)
    assert (exited.pid, exited.replica, exited.signal) == (replica.pid, replica.spec.replica, signal.SIGSEGV)


PASSES = "\ndef pre_inference(sample, metadata):\n    return sample\n"


@pytest.mark.parametrize(
    ("source", "env"),
    [
        ("import subprocess\nchild = subprocess.Popen(['sleep', '600'])", {}),
        ("import multiprocessing\npool = multiprocessing.get_context('fork').Pool(1)", {}),
        ("", {"OTEL_TRACES_EXPORTER": "console"}),
        ("raise ValueError", {}),
        ("import threading\nclass Mine(threading.Thread): pass\nthreading.Thread = Mine", {}),
        ("import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])", {}),
    ],
    ids=["has a program", "has a pool", "has traces", "has failed", "has other threads", "hears no signal"],
)
def test_what_would_be_another_state_than_a_replicas_is_not_kept(
    shared_launcher: LauncherProcess, folder: Path, source: str, env: dict[str, str]
) -> None:
    spec = spec_for(folder, IRIS, handler_source=source + PASSES, env=env, api=f"t/{folder.name}")
    assert shared_launcher.keep(spec).kept == ""
    assert of_api(f"t/{folder.name}") == []


def test_a_handlers_own_signal_handlers_stay(shared_launcher: LauncherProcess, folder: Path) -> None:
    source = """
import os, signal
signal.signal(signal.SIGTERM, lambda *_: open(os.path.join(os.environ["FOLDER"], "told"), "w").close())
def pre_inference(sample, metadata):
    return [[5.2, 3.6, 1.4, 0.3]]
"""
    replica = born(shared_launcher, spec_for(folder, IRIS, handler_source=source, replica=folder.name))
    replica.kill(signal.SIGTERM)
    eventually((folder / "told").exists, "it was told")
    assert replica.post({}).status == 200


def test_rows_are_run_aside_or_left_to_an_inspection_that_is_not_kept(
    shared_launcher: LauncherProcess, folder: Path
) -> None:
    alone = shared_launcher.keep(spec_for(folder, IRIS))
    assert alone.batching is not None
    assert alone.batching.trial is not None
    assert alone.batching.trial.rows > 0
    assert not alone.rows_left
    with_threads = shared_launcher.keep(spec_for(folder, IRIS, threads=2))
    assert with_threads.batching is not None
    assert with_threads.batching.proof == alone.batching.proof
    assert (with_threads.batching.trial, with_threads.rows_left) == (None, True)
    for report in (alone, with_threads):
        shared_launcher.link.send(CallOff(request=report.kept))


@pytest.mark.parametrize(
    ("how", "told"),
    [("os.abort()", "crashed while running rows"), ("os._exit(7)", "exit code 7")],
    ids=["abort", "exit"],
)
def test_a_model_that_ends_the_process_over_rows_fails_the_inspection(
    shared_launcher: LauncherProcess, folder: Path, how: str, told: str
) -> None:
    source = f"import os\nos.register_at_fork(after_in_child=lambda: {how})" + PASSES
    (problem,) = shared_launcher.keep(spec_for(folder, IRIS, handler_source=source)).problems
    assert problem.reference == "inspection-died"
    assert told in problem.message


def test_kept_ones_are_in_nobodys_way(shared_launcher: LauncherProcess, folder: Path) -> None:
    kept = [shared_launcher.keep(spec_for(folder, IRIS)).kept for _ in range(INSPECTIONS_AT_ONCE + 1)]
    assert all(kept)
    for mark in kept:
        shared_launcher.link.send(CallOff(request=mark))


def test_what_it_was_loaded_for_is_described_as_ever(shared_launcher: LauncherProcess, folder: Path) -> None:
    spec = spec_for(folder, IRIS, handler_source=NOTES)
    kept, ended = shared_launcher.keep(spec), shared_launcher.link.inspect(spec, rows="auto")
    assert isinstance(kept.signature, Signature)
    assert msgspec.structs.replace(kept, kept="") == ended
    shared_launcher.link.send(CallOff(request=kept.kept))


ROWS = "def pre_inference(sample, metadata):\n    return [[5.2, 3.6, 1.4, 0.3]]\n"


def test_no_program_that_a_handler_runs_gets_a_descriptor_of_the_replicas(
    shared_launcher: LauncherProcess, folder: Path
) -> None:
    source = """
import os
def post_inference(prediction, metadata):
    return [name for name in os.listdir("/proc/self/fd") if int(name) > 2 and is_inherited(int(name))]
def is_inherited(fd):
    try:
        return os.get_inheritable(fd)
    except OSError:  # the listing's own
        return False
"""
    replica = born(shared_launcher, spec_for(folder, IRIS, handler_source=ROWS + source, replica=folder.name))
    assert replica.post({}).json == []


def test_it_holds_no_more_files_than_one_that_was_forked(shared_launcher: LauncherProcess, folder: Path) -> None:
    def open_files(replica: Replica) -> int:
        assert replica.post([[5.2, 3.6, 1.4, 0.3]]).status == 200
        return len(os.listdir(f"/proc/{replica.pid}/fd"))

    kept = born(shared_launcher, spec_for(folder, IRIS, replica=f"{folder.name}k"))
    forked = shared_launcher.fork(spec_for(folder, IRIS, replica=f"{folder.name}f")).ready()
    assert open_files(kept) - open_files(forked) <= 3  # connections that have asked may be there still


def test_a_handler_that_replaces_what_forks_need_is_inspected_and_serves(
    shared_launcher: LauncherProcess, folder: Path
) -> None:
    source = """
import os, time
def fork():
    pid = really_fork()
    if pid == 0:
        time.sleep(600)
    return pid
really_fork, os.fork = os.fork, fork
"""
    spec = spec_for(folder, IRIS, handler_source=source + ROWS, replica=folder.name)
    report = shared_launcher.keep(spec)
    assert (report.problems, report.kept, report.rows_left) == ((), "", True)
    assert shared_launcher.fork(spec).ready().post({}).status == 200


def test_without_room_for_a_fork_rows_are_left_to_another(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room() -> int:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr(os, "fork", no_room)
    monkeypatch.setattr(isolation, "single_thread_offenders", list)
    assert do_in_fork(isolation.Machinery(), lambda: Proof(rules=0, proved=False), Proof) is None


def test_one_that_is_stopped_goes_on(shared_launcher: LauncherProcess, folder: Path) -> None:
    api = f"t/{folder.name}"
    source = "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)\n" + ROWS
    spec = spec_for(folder, IRIS, handler_source=source, api=api, replica=folder.name)
    report = shared_launcher.keep(spec)
    assert report.problems == ()
    (pid,) = of_api(api)
    os.kill(pid, signal.SIGSTOP)
    assert shared_launcher.fork(spec, kept=report.kept).ready().pid == pid


def test_a_large_sample_is_in_its_memory_once(shared_launcher: LauncherProcess, folder: Path) -> None:
    sample = b"[[5.2, 3.6, 1.4, 0.3" + b" " * (15 * 2**20) + b"]]"
    kept = born(shared_launcher, spec_for(folder, IRIS, replica=f"{folder.name}k", sample=sample))
    forked = shared_launcher.fork(spec_for(folder, IRIS, replica=f"{folder.name}f", sample=sample)).ready()
    assert kept.rss_kib() - forked.rss_kib() < 12 * 2**10


def test_limits_that_a_handler_has_set_stay(shared_launcher: LauncherProcess, folder: Path) -> None:
    source = """
import resource
resource.setrlimit(resource.RLIMIT_AS, (2**40, 2**40))
resource.setrlimit(resource.RLIMIT_CPU, (5000, 6000))
def post_inference(prediction, metadata):
    return [resource.getrlimit(kind) for kind in (resource.RLIMIT_AS, resource.RLIMIT_CPU)]
"""
    replica = born(shared_launcher, spec_for(folder, IRIS, handler_source=ROWS + source, replica=folder.name))
    assert replica.post({}).json == [[2**40, 2**40], [5000, 6000]]


def test_processes_that_it_starts_while_it_waits_have_no_limits_of_an_inspection(
    launcher: LauncherProcess, folder: Path
) -> None:
    source = """
import os, subprocess, threading
def start():
    while not os.path.exists(os.path.join(os.environ["FOLDER"], "go")):
        pass
    child = subprocess.Popen(["sleep", "600"])
    with open(os.path.join(os.environ["FOLDER"], "started.tmp"), "w") as file:
        file.write(str(child.pid))
    os.rename(file.name, os.path.join(os.environ["FOLDER"], "started"))
threading.Thread(target=start, daemon=True).start()
"""
    spec = spec_for(folder, IRIS, handler_source=ROWS + source)
    report = launcher.keep(spec)
    (folder / "go").touch()
    eventually((folder / "started").exists, "it has started a process")
    kinds = (resource.RLIMIT_CPU, resource.RLIMIT_AS)
    limits = [resource.prlimit(int((folder / "started").read_text()), kind) for kind in kinds]
    assert limits == [resource.prlimit(launcher.pid, kind) for kind in kinds]
    launcher.link.send(CallOff(request=report.kept))


def test_output_stays_where_a_handler_has_led_it(shared_launcher: LauncherProcess, folder: Path) -> None:
    source = """
import faulthandler, os
copy = os.fdopen(os.dup(1), "w", buffering=1)
own = open(os.path.join(os.environ["FOLDER"], "own"), "w")
os.dup2(own.fileno(), 1)
faulthandler.enable(open(os.path.join(os.environ["FOLDER"], "faults"), "w"))
def post_inference(prediction, metadata):
    os.write(1, b"to a file of its own")
    print("through a copy", file=copy)
    return 1
"""
    replica = born(shared_launcher, spec_for(folder, IRIS, handler_source=ROWS + source, replica=folder.name))
    assert replica.post({}).status == 200
    assert (folder / "own").read_text() == "to a file of its own"
    eventually(lambda: "through a copy" in [line.text for line in replica.lines()], "it is logged")
    replica.kill(signal.SIGSEGV)
    eventually(lambda: "Segmentation fault" in (folder / "faults").read_text(), "its own file has the fault")


def test_of_much_that_is_printed_at_import_the_end_is_kept(shared_launcher: LauncherProcess, folder: Path) -> None:
    source = """
import os
for number in range(40_000):
    print("x" * 1000, number)
size = next(os.stat(f"/proc/self/fd/{name}").st_blocks * 512
            for name in os.listdir("/proc/self/fd")
            if "cortex-inspection" in os.readlink(f"/proc/self/fd/{name}"))
def post_inference(prediction, metadata):
    return size
"""
    replica = born(shared_launcher, spec_for(folder, IRIS, handler_source=ROWS + source, replica=folder.name))
    assert replica.post({}).json < 20 * 2**20
    texts = [line.text for line in replica.lines()]
    assert "left out" in texts[0]
    assert any(text.endswith(" 39999") for text in texts)


def test_what_fails_behind_an_import_is_told(shared_launcher: LauncherProcess, folder: Path) -> None:
    source = """
import asyncio, concurrent.futures
def fails(where):
    raise ValueError(f"in {where}")
async def fails_in_a_task():
    fails("a task")
pool = concurrent.futures.ThreadPoolExecutor(1)
call = pool.submit(fails, "a call")
loop = asyncio.get_event_loop()
task = loop.create_task(fails_in_a_task())
loop.run_until_complete(asyncio.sleep(0))
"""
    replica = born(shared_launcher, spec_for(folder, IRIS, handler_source=ROWS + source, replica=folder.name))
    for where in ("a task", "a call"):
        told = f"ValueError: in {where}"
        eventually(lambda told=told: any(told in line.text for line in replica.lines()), "it is told")


def test_tasks_are_made_as_a_handler_wants_them(shared_launcher: LauncherProcess, folder: Path) -> None:
    source = """
import asyncio
def make(loop, coroutine, **options):
    return asyncio.Task(coroutine, loop=loop, **options)
asyncio.get_event_loop().set_task_factory(make)
def post_inference(prediction, metadata):
    return asyncio.get_event_loop().get_task_factory() is make
"""
    replica = born(shared_launcher, spec_for(folder, IRIS, handler_source=ROWS + source, replica=folder.name))
    assert replica.post({}).json is True


def test_a_signal_handler_can_pass_on_to_the_one_that_it_replaced(
    shared_launcher: LauncherProcess, folder: Path
) -> None:
    source = """
import os, signal
before = signal.getsignal(signal.SIGTERM)
def told(number, frame):
    open(os.path.join(os.environ["FOLDER"], "told"), "w").close()
    before(number, frame)
signal.signal(signal.SIGTERM, told)
"""
    replica = born(shared_launcher, spec_for(folder, IRIS, handler_source=ROWS + source, replica=folder.name))
    replica.kill(signal.SIGTERM)
    eventually(lambda: not replica.alive(), "it has ended in order")
    assert (folder / "told").exists()


def test_one_that_is_kept_ends_by_a_signal(shared_launcher: LauncherProcess, folder: Path) -> None:
    api = f"t/{folder.name}"
    shared_launcher.keep(spec_for(folder, IRIS, handler_source=ROWS, api=api))
    (pid,) = of_api(api)
    identity = identify(pid)
    assert identity is not None
    os.kill(pid, signal.SIGTERM)
    eventually(lambda: not is_alive(identity), "it has ended")
