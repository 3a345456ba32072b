"""
What a model and a handler are, found out in a child of the launcher's.

The child may become a replica. So whatever only the report needs is done aside, in a fork of the child that takes its
memory along.
"""

from __future__ import annotations

import asyncio
import difflib
import importlib.machinery
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

import msgspec

from cortex import processes
from cortex.errors import Problem
from cortex.ids import split_api_key
from cortex.replica.backends import base
from cortex.replica.bodies.codec import BadBody
from cortex.replica.handler.foresight import sure_failures
from cortex.replica.handler.hooks import Handler, HandlerError, load_handler
from cortex.replica.inspection.made_up import feeds_of, make_up_sample
from cortex.replica.inspection.trial import try_rows
from cortex.replica.observation import secrecy
from cortex.replica.observation.tracebacks import one_line
from cortex.replica.process import isolation
from cortex.replica.tensors.conversion import Feeds
from cortex.replica.tensors.mismatch import InputMismatch
from cortex.wire.batching import RULES, BatchingVerdict, Mode, Proof, Trial
from cortex.wire.build import TrackerConfig
from cortex.wire.launch import Inspect, InspectReport, MadeUpSample, ReplicaSpec
from cortex.wire.signature import Signature, TensorSpec


def prove_rows(spec: ReplicaSpec) -> Proof:
    """What a model's graph says about its rows. Reads the graph without weights; one it cannot read proves nothing."""
    assert spec.model_path is not None
    try:
        if spec.runtime == "onnx":
            from cortex.rows import prove
            from cortex.wire import onnx_proto

            return prove(onnx_proto.read_graph(spec.model_path))
        from cortex.rows import prove_saved_model
        from cortex.wire import saved_model_proto

        gpu = spec.resources.gpus > 0
        return prove_saved_model(saved_model_proto.read_graph(spec.model_path, spec.signature_key, gpu=gpu))
    except Exception as error:
        return Proof(rules=RULES, proved=False, reason=f"the graph cannot be read: {one_line(error)}")


Result = TypeVar("Result", Proof, Trial)


class Aside(Protocol):
    """Does what leaves nothing behind in this process; returns None where it cannot."""

    def __call__(self, work: Callable[[], Result], kind: type[Result], /) -> Result | None: ...


def do_here(work: Callable[[], Result], _kind: type[Result]) -> Result | None:
    """In a process that has nothing to become afterwards."""
    return work()


def do_in_fork(machinery: isolation.Machinery, work: Callable[[], Result], kind: type[Result]) -> Result | None:
    """
    In a fork of this process, which ends with it, and as it does if that ends badly.

    Returns:
        None if there are threads, which a fork would lack with their locks held for ever, or if it would be another's
        idea of a fork, such as gevent's, which waits for its own threads in the child; or if there is no room for it.
    """
    if isolation.single_thread_offenders() or not machinery.is_left():
        return None
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    try:
        pid = os.fork()
    except OSError:
        os.close(read_fd)
        os.close(write_fd)
        return None
    if pid == 0:
        code = 1
        try:
            processes.end_with_parent()
            with open(write_fd, "wb") as pipe:
                pipe.write(msgspec.json.encode(work()))
            code = 0
        except BaseException:
            os.write(2, secrecy.masked(traceback.format_exc()).encode("utf-8", "backslashreplace"))
        finally:
            os._exit(code)
    os.close(write_fd)
    with open(read_fd, "rb") as pipe:
        data = pipe.read()
    code = 0 if data else 1
    with suppress(ChildProcessError):  # users' code may have it collected
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code == 0:
        return msgspec.json.decode(data, type=kind)
    if code < 0:
        with suppress(OSError):  # of SIGKILL, which nobody can handle
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code if code > 0 else 1)


class Findings(NamedTuple):
    report: InspectReport
    handler: Handler | None
    backend: base.Backend | None


def inspect(
    request: Inspect,
    *,
    announce: Callable[[str], None],
    prove: Callable[[ReplicaSpec], Proof] = prove_rows,
    loop: asyncio.AbstractEventLoop | None = None,
    aside: Aside = do_here,
) -> Findings:
    """
    Load what is asked for and describe it. What is wrong with it is in the report; other errors pass through.

    Args:
        announce: told what comes next, in case it never ends.
        prove: what the graph of the spec's model says about rows.
        loop: the current one while the handler is imported; None: whichever is.
        aside: for what only the report needs.
    """
    spec = request.spec
    problems: list[Problem] = []
    warnings: list[Problem] = []
    handler: Handler | None = None
    backend: base.Backend | None = None
    proof: Proof | None = None
    trial: Trial | None = None
    rows_left = False
    made_up: MadeUpSample | None = None
    if request.model and spec.model_path is not None and request.rows != "off":
        announce("reading the graph")
        proof = aside(lambda: prove(spec), Proof) or prove(spec)
    if request.handler and spec.handler is not None and spec.project_dir is not None:
        announce(f"importing {spec.handler}")
        isolation.enter_project(spec)
        if loop is not None:
            asyncio.set_event_loop(loop)
        warnings += shadowed_packages(spec.project_dir, spec.handler)
        try:
            handler = load_handler(spec.project_dir, spec.handler, split_api_key(spec.api)[1])
        except HandlerError as error:
            problems.append(_about("request_handler", error.problem()))
    if request.model:
        announce("loading the model")
        try:
            backend = _load(spec)
        except base.ModelError as error:
            problems.append(_about("model", error.problem()))
    if backend is not None:
        announce("trying the model")
        if handler is not None and handler.post is not None:
            problems += _foreseen(spec, backend.signature)
        if spec.tracker is not None and (spec.handler is None or (handler is not None and handler.post is None)):
            problems += tracker_problems(spec.tracker, backend.signature)
        if request.make_up_sample:
            made_up = make_up_sample(backend)
        if proof is not None and _is_tried(request.rows, proof):
            announce("running rows alone and together")
            trial = aside(partial(_try_rows, backend, proof, spec, handler), Trial)
            rows_left = trial is None
    report = InspectReport(
        problems=tuple(problems),
        warnings=tuple(warnings),
        signature=backend.signature if backend is not None else None,
        signature_keys=tuple(getattr(backend, "signature_keys", ())),
        has_pre=handler is not None and handler.pre is not None,
        is_async=handler is not None and handler.is_async,
        batching=None if proof is None else BatchingVerdict(proof=proof, trial=trial),
        notes=tuple(getattr(backend, "notes", ())),
        made_up=made_up,
        rows_left=rows_left,
    )
    return Findings(report, handler, backend)


def tracker_problems(tracker: TrackerConfig, signature: Signature) -> list[Problem]:
    """
    Why a tracker can never match a model's raw predictions. Empty unless that is certain.

    Only for apis without `post_inference`: what a handler returns nobody can foresee.
    """
    outputs = {output.name: output for output in signature.outputs}
    names = ", ".join(f'"{name}"' for name in outputs)
    if tracker.key is None and len(outputs) != 1:
        return [
            _tracker_problem(
                f"the model has {len(outputs)} outputs ({names}), and nothing says which is counted",
                f"add `key:` below `tracker:`, with one of {names}",
            )
        ]
    if tracker.key is not None and tracker.key not in outputs:
        close = difflib.get_close_matches(tracker.key, outputs, n=1)
        hint = f'did you mean "{close[0]}"?' if close else f"the model's outputs are {names}"
        return [_tracker_problem(f'the model has no output "{tracker.key}"', hint)]
    output = outputs[tracker.key] if tracker.key is not None else signature.outputs[0]
    reason = _never_counts(tracker, output)
    return [_tracker_problem(f'the output "{output.name}" is {output}: {reason}', _TRACKER_HINT)] if reason else []


_TRACKER_HINT = "track another output with `key:`, or return a single value from a post_inference"


def _never_counts(tracker: TrackerConfig, output: TensorSpec) -> str:
    if output.kind != "tensor":
        return "it is no single value"
    sizes = [dim for dim in (output.shape or ())[1:] if isinstance(dim, int)]
    if any(size > 1 for size in sizes):
        return "each row has several values"
    if tracker.model_type == "classification" and "float" in output.dtype:
        return "a class is text or an integer"
    if tracker.model_type == "regression" and output.dtype in ("string", "bool"):
        return "a regression's result is a number"
    return ""


def _tracker_problem(message: str, hint: str) -> Problem:
    problem = Problem(reference="tracker-never-matches", message=f"the tracker can never match: {message}", hint=hint)
    return _about("tracker", problem)


def _about(field: str, problem: Problem) -> Problem:
    """The problem with the field of cortex.yaml that it is about, so that the CLI can show its line."""
    return msgspec.structs.replace(problem, subject=": ".join(filter(None, (field, problem.subject))), path=(field,))


def shadowed_packages(project_dir: str, handler: str) -> list[Problem]:
    """
    Files of a project that have the name of something else that can be imported.

    Those in the project's folder are found in place of a module of Python's or an installed package. Those beside the
    handler are not found where there is one. The handler itself is never in the way.
    """
    file = os.path.join(project_dir, handler)
    beside = os.path.dirname(file)
    elsewhere = [entry for entry in sys.path if entry and os.path.abspath(entry) not in (project_dir, beside)]
    folders = [project_dir] if beside == project_dir else [project_dir, beside]
    warnings = []
    for folder in folders:
        for name, path in _modules_in(folder):
            if path == file:
                continue
            shown = os.path.relpath(path, project_dir)
            if name in sys.stdlib_module_names:
                what = "a module of Python's standard library"
            elif _is_installed(name, elsewhere):
                what = "an installed package"
            else:
                continue
            message = f"`import {name}` in this project finds {shown}, not {what}"
            if folder != project_dir:
                message = f"`import {name}` in this project finds {what}, not {shown}"
            warnings.append(Problem(reference="shadowed-package", message=message, where=shown, hint=f"rename {shown}"))
    return warnings


def _modules_in(folder: str) -> Iterator[tuple[str, str]]:
    """Name and path of what can be imported from a folder."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        name = entry.name.removesuffix(".py")
        is_module = entry.name.endswith(".py") and name.isidentifier()
        if is_module or (entry.name.isidentifier() and os.path.isfile(os.path.join(entry.path, "__init__.py"))):
            yield name, entry.path


def _is_installed(name: str, path: list[str]) -> bool:
    try:
        spec = importlib.machinery.PathFinder.find_spec(name, path)
    except (ImportError, ValueError):
        return False
    return spec is not None and spec.origin is not None  # without: just a folder of that name


def _load(spec: ReplicaSpec) -> base.Backend:
    """Raises ModelError, whatever the library behind the backend raised."""
    try:
        return base.load_for(spec)
    except base.ModelError:
        raise
    except MemoryError as error:
        raise base.ModelError(f"there is not enough memory to load {_model_name(spec)}") from error
    except Exception as error:
        raise base.ModelError(f"{_model_name(spec)} cannot be loaded: {one_line(error)}") from error


def _model_name(spec: ReplicaSpec) -> str:
    return Path(spec.model_path or "").name


def _is_tried(mode: Mode, proof: Proof) -> bool:
    """Whether to run rows alone and together. Of what moves by whole steps now and then no trial shows anything."""
    return mode == "on" or (mode == "auto" and proof.proved and proof.rounding != "steps")


def _foreseen(spec: ReplicaSpec, signature: Signature) -> list[Problem]:
    """What the handler's `post_inference` cannot do with the outputs of this model."""
    assert spec.project_dir is not None
    assert spec.handler is not None
    try:
        source = Path(spec.project_dir, spec.handler).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):  # in another encoding it can be imported all the same
        return []
    return [_about("request_handler", found) for found in sure_failures(source, signature, file=spec.handler)]


def _try_rows(backend: base.Backend, proof: Proof, spec: ReplicaSpec, handler: Handler | None) -> Trial:
    sample: Feeds | None = None
    is_the_models = spec.handler is None or (handler is not None and handler.pre is None)
    if spec.sample is not None and spec.sample_path is not None and is_the_models:
        try:
            sample = feeds_of(backend, Path(spec.sample_path).read_bytes(), spec.sample.content_type)
        except (BadBody, InputMismatch, OSError):
            pass
    if not proof.proved:  # the user's word: for all sizes, and of rounding nobody knows better
        return try_rows(backend, "rounding", sample=sample, clock_s=time.monotonic)
    return try_rows(backend, proof.rounding, sample=sample, clock_s=time.monotonic, sizes=proof.sizes)
