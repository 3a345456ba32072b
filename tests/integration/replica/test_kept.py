"""Children of inspections that are kept and become replicas: nothing is loaded twice, and nobody sees a difference."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from replica_harness import LauncherLink, LauncherProcess, Replica, eventually, running, spec_for

from cortex.processes import command_line, identify, is_alive
from cortex.replica.launcher import INSPECTIONS_AT_ONCE
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
    ],
    ids=["has a program", "has a pool", "has traces", "has failed"],
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
