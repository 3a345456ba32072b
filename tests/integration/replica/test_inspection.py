"""What the launcher finds out about models and handlers, and how little it minds when they are hostile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from replica_harness import LauncherLink, LauncherProcess, eventually, spec_for

from cortex.ids import ApiKey
from cortex.replica.launcher import INSPECTIONS_AT_ONCE, next_in_turn
from cortex.wire.build import TrackerConfig
from cortex.wire.launch import CallOff, Inspect, Inspected, InspectReport

pytestmark = pytest.mark.slow

IRIS = Path(__file__).parents[3] / "examples" / "iris" / "models" / "sklearn.onnx"

HANDLER = "def post_inference(prediction, metadata): return prediction\n"


@pytest.fixture
def inspect(shared_launcher: LauncherProcess, folder: Path) -> Callable[..., InspectReport]:
    def inspect(
        source: str | None = None,
        *,
        model_path: Path = IRIS,
        model: bool = True,
        handler: bool = True,
        **fields: Any,
    ) -> InspectReport:
        spec = spec_for(folder, model_path, handler_source=source, **fields)
        return shared_launcher.link.inspect(spec, model=model, handler=handler)

    return inspect


Look = Callable[..., InspectReport]


def only_problem(report: InspectReport) -> Any:
    (problem,) = report.problems
    return problem


def test_a_model_and_a_handler_are_described(inspect: Look) -> None:
    report = inspect("async def post_inference(prediction, metadata): pass")
    assert report.problems == report.warnings == ()
    assert report.signature is not None
    assert [spec.name for spec in report.signature.inputs] == ["input"]
    assert [spec.name for spec in report.signature.outputs] == ["label", "probabilities"]
    assert report.batching is None, "nobody has asked"
    assert (report.has_pre, report.is_async) == (False, True)


def test_only_what_is_asked_for_is_looked_at(inspect: Look, folder: Path) -> None:
    assert inspect("raise ValueError", handler=False).problems == ()
    report = inspect(HANDLER, model=False, model_path=folder / "missing.onnx")
    assert (report.problems, report.signature) == ((), None)


def test_problems_of_model_and_handler_come_together(inspect: Look, folder: Path) -> None:
    (folder / "m.onnx").write_bytes(b"nonsense")
    report = inspect("import no_such_module", model_path=folder / "m.onnx")
    assert [problem.reference for problem in report.problems] == ["handler-missing-module", "model-unreadable"]
    assert report.problems[0].hint == "add no_such_module to requirements.txt beside cortex.yaml"
    assert 'File "handler.py", line 1' in report.problems[0].traceback


@pytest.mark.parametrize(
    ("source", "reference", "text"),
    [
        (
            "import ctypes; print('so far'); ctypes.string_at(0)",
            "inspection-died",
            "crashed while importing handler.py",
        ),
        ("import os; os._exit(0)", "inspection-died", "ended while importing handler.py, with exit code 0"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "inspection-died", "most likely for memory"),
        ("import sys; sys.exit(1)", "handler-exited", "sys.exit(1)"),
        ("x = 'x' * 10**13", "handler-import-failed", "MemoryError"),
        ("import threading\nthreading.Thread(target=lambda: 1/0).start()\n" + HANDLER, None, ""),
        ("", "handler-without-hook", "neither pre_inference nor post_inference"),
    ],
)
def test_whatever_a_handler_does_there_is_an_answer(
    inspect: Look, source: str, reference: str | None, text: str
) -> None:
    report = inspect(source)
    assert [problem.reference for problem in report.problems] == ([reference] if reference else [])
    assert all(text in problem.message for problem in report.problems)
    if "ctypes" in source:
        assert "so far" in report.problems[0].traceback
        assert "Fatal Python error: Segmentation fault" in report.problems[0].traceback


@pytest.fixture
def other_agent(shared_launcher: LauncherProcess) -> Iterator[LauncherLink]:
    """Its inspections end with it, whatever becomes of the test."""
    link = LauncherLink(shared_launcher.socket_path)
    yield link
    link.close()


def test_an_endless_import_is_ended_and_others_go_on_meanwhile(
    other_agent: LauncherLink, folder: Path, start: Callable[..., Any]
) -> None:
    endless = spec_for(folder, IRIS, handler_source="import time\ntime.sleep(600)", start_timeout_s=5.0)
    for number in range(INSPECTIONS_AT_ONCE):
        other_agent.send(Inspect(request=str(number), spec=endless))
    other_agent.send(Inspect(request="waits", spec=spec_for(folder, IRIS)))
    assert start().post([1, 2, 3, 4]).status == 200
    reports = {(reply := other_agent.wait_for(Inspected)).request: reply.report for _ in range(INSPECTIONS_AT_ONCE + 1)}
    assert reports.pop("waits").problems == (), "its turn has come"
    assert set(reports) == {str(number) for number in range(INSPECTIONS_AT_ONCE)}
    for report in reports.values():
        assert only_problem(report).reference == "inspection-timeout"
        assert only_problem(report).message == "importing handler.py took more than 5 s"


def test_a_deployment_does_not_wait_for_the_endless_imports_of_another(other_agent: LauncherLink, folder: Path) -> None:
    endless = spec_for(folder, IRIS, handler_source="import time\ntime.sleep(600)", start_timeout_s=600.0)
    for number in range(INSPECTIONS_AT_ONCE + 1):
        other_agent.send(Inspect(request=str(number), spec=endless))
    for number in range(3):
        mark = f"other-{number}"
        other_agent.send(Inspect(request=mark, spec=spec_for(folder, IRIS, api=ApiKey(f"other/{number}"))))
    ended = [other_agent.wait_for(Inspected).request for _ in range(3)]
    assert ended == ["other-0", "other-1", "other-2"]


@pytest.mark.parametrize(
    ("waiting", "running", "begins"),
    [
        ([], [], None),
        (["a", "b"], [], 0),
        (["a", "b"], ["a"] * (INSPECTIONS_AT_ONCE - 1), 0),
        (["a", "a", "b"], ["a"] * INSPECTIONS_AT_ONCE, 2),
        (["a", "b"], ["a"] * INSPECTIONS_AT_ONCE + ["b"], None),
    ],
)
def test_whose_turn_it_is(waiting: list[str], running: list[str], begins: int | None) -> None:
    assert next_in_turn(waiting, running) == begins


def test_an_inspection_that_is_called_off_is_ended_or_never_begun(other_agent: LauncherLink, folder: Path) -> None:
    begin_inspections(other_agent, folder)
    for number in reversed(range(2 * INSPECTIONS_AT_ONCE)):
        other_agent.send(CallOff(request=str(number)))
    ended = {other_agent.wait_for(Inspected).request for _ in range(INSPECTIONS_AT_ONCE)}
    assert ended == {str(number) for number in range(INSPECTIONS_AT_ONCE)}
    assert len(marks_in(folder)) == INSPECTIONS_AT_ONCE, "those that waited had not begun"


def test_a_replica_is_forked_while_as_many_inspections_run_as_may(
    other_agent: LauncherLink, folder: Path, start: Callable[..., Any]
) -> None:
    begin_inspections(other_agent, folder)
    assert start().post([1, 2, 3, 4]).status == 200
    (folder / "go").touch()
    reports = [other_agent.wait_for(Inspected).report for _ in range(2 * INSPECTIONS_AT_ONCE)]
    assert [report.problems for report in reports] == [()] * len(reports)


def begin_inspections(link: LauncherLink, folder: Path) -> list[Path]:
    """Ask for twice as many as run at once, which all wait for a file `go`; returns the marks of those that run."""
    spec = spec_for(  # made once: whoever already runs would read a file that is just being written again
        folder,
        IRIS,
        handler_source="import os, time\nopen(os.environ['FOLDER'] + f'/began-{os.getpid()}', 'w').close()\n"
        "while not os.path.exists(os.environ['FOLDER'] + '/go'): time.sleep(0.01)\n" + HANDLER,
    )
    for number in range(2 * INSPECTIONS_AT_ONCE):
        link.send(Inspect(request=str(number), spec=spec))
    return eventually(
        lambda: found if len(found := marks_in(folder)) == INSPECTIONS_AT_ONCE else None, "as many run as may"
    )


def marks_in(folder: Path) -> list[Path]:
    return sorted(folder.glob("began-*"))


def test_an_agent_that_leaves_takes_its_questions_along(
    shared_launcher: LauncherProcess, other_agent: LauncherLink, folder: Path
) -> None:
    running = begin_inspections(other_agent, folder)
    other_agent.close()
    assert shared_launcher.link.inspect(spec_for(folder, IRIS)).problems == (), "those that ran were ended"
    assert marks_in(folder) == running, "none of those that waited was begun"


def test_a_tracker_that_can_never_match_is_a_problem(inspect: Look) -> None:
    problem = only_problem(inspect(tracker=TrackerConfig(model_type="classification", key="lable")))
    assert problem.reference == "tracker-never-matches"
    assert problem.hint == 'did you mean "label"?'
    assert inspect(tracker=TrackerConfig(model_type="classification", key="label")).problems == ()
    with_post = inspect("def post_inference(p, m): pass", tracker=TrackerConfig(model_type="classification", key="x"))
    assert with_post.problems == (), "nobody can foresee what a handler returns"


def test_files_that_shadow_packages_are_warned_about(inspect: Look, folder: Path) -> None:
    (folder / "project").mkdir()
    (folder / "project" / "numpy.py").touch()
    (folder / "project" / "json").mkdir()
    (folder / "project" / "json" / "__init__.py").touch()
    (folder / "project" / "mine.py").touch()
    report = inspect("")
    assert [(warning.reference, warning.where) for warning in report.warnings] == [
        ("shadowed-package", "json"),
        ("shadowed-package", "numpy.py"),
    ]
