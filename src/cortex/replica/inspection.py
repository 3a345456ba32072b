"""
What a model and a handler are, found out in a short-lived child: they may crash, hang, or eat all memory.

`Inspection` is the launcher's side and never waits; `inspect` is the child's. Between them is a pipe with lines of
JSON: what the child is about to do, and last of all its report.
"""

from __future__ import annotations

import asyncio
import difflib
import faulthandler
import importlib.machinery
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import msgspec
import uvloop

from cortex import processes
from cortex.errors import Problem
from cortex.ids import split_api_key
from cortex.replica import logs, offspring, process, secrecy, view
from cortex.replica.backends import base
from cortex.replica.codec import BadBody, Decoder
from cortex.replica.foresight import sure_failures
from cortex.replica.handler import Handler, HandlerError, load_handler
from cortex.replica.made_up import make_up_sample
from cortex.replica.mismatch import InputMismatch
from cortex.replica.tensors import Feeds, build_converter
from cortex.replica.tracebacks import one_line
from cortex.replica.trial import try_rows
from cortex.wire.batching import RULES, BatchingVerdict, Mode, Proof, Trial
from cortex.wire.build import Sample, TrackerConfig
from cortex.wire.launch import Inspect, InspectReport, MadeUpSample, ReplicaSpec
from cortex.wire.logline import parse_line
from cortex.wire.secrecy import confidential, unpacked
from cortex.wire.signature import Signature, TensorSpec

_MAX_REPORT_BYTES = 64 * 2**20
_TAIL_BYTES = 4000
"""Of what a dead child wrote, to be shown with its end."""


class _Line(msgspec.Struct, omit_defaults=True):
    """One line of the pipe: a step that begins, or the report."""

    step: str = ""
    report: InspectReport | None = None


class Inspection:
    """A running inspection, as the launcher sees it. Use `start`."""

    def __init__(
        self, request: Inspect, *, pid: int, fd: int, output_fd: int, asked_by: Any, deadline_s: float
    ) -> None:
        self.request = request.request
        self.pid = pid
        self.fd: int | None = fd
        """Readable when the child has said something, or has ended; None once there is nothing more to read."""
        self.asked_by = asked_by
        self.deadline_s = deadline_s
        self.exit_code: int | None = None
        """As from `os.waitstatus_to_exitcode`; the launcher sets it."""
        self.spec = request.spec
        self._output_fd = output_fd
        self._received = bytearray()
        self.killed = False
        """It took too long, or nobody waits for it any more."""

    @classmethod
    def start(
        cls,
        request: Inspect,
        *,
        fork: Callable[[], int],
        asked_by: Any,
        now_s: float,
        secrets_fd: int | None = None,
    ) -> Inspection:
        """Fork the child. `secrets_fd` stays the caller's. Raises what `fork` raises."""
        read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
        output_fd = os.memfd_create("cortex-inspection")
        try:
            pid = fork()
        except BaseException:
            for fd in (read_fd, write_fd, output_fd):
                os.close(fd)
            raise
        if pid == 0:
            _live(request, pipe_fd=write_fd, output_fd=output_fd, secrets_fd=secrets_fd)
        os.close(write_fd)
        os.set_blocking(read_fd, False)
        return cls(
            request,
            pid=pid,
            fd=read_fd,
            output_fd=output_fd,
            asked_by=asked_by,
            deadline_s=now_s + request.spec.start_timeout_s,
        )

    def receive(self) -> None:
        """Take what the child has written, and close the pipe once there will be no more. Does not wait."""
        try:
            while self.fd is not None:
                data = os.read(self.fd, 65536)
                self._received += data
                if not data or len(self._received) > _MAX_REPORT_BYTES:
                    self._close_pipe()
        except BlockingIOError:
            pass

    def _close_pipe(self) -> None:
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None

    def kill(self) -> None:
        """End a child that takes too long or that nobody waits for, with whatever it has started."""
        self.killed = True
        for kill in (os.killpg, os.kill):  # it may not have its own group yet
            try:
                kill(self.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                pass

    def finish(self) -> InspectReport:
        """The child has ended: its report, or what there is to say without one."""
        self.receive()
        step = "starting"
        report: InspectReport | None = None
        for data in bytes(self._received).splitlines():
            try:
                line = _LINES.decode(data)
            except msgspec.MsgspecError:
                continue
            step = line.step or step
            report = line.report or report
        try:
            if report is not None:
                return report
            return InspectReport(problems=(self._death(step),))
        finally:
            self._close_pipe()  # a process that the child started may still have its other end
            os.close(self._output_fd)

    def _death(self, step: str) -> Problem:
        code = self.exit_code or 0
        output = self._output()
        if self.killed:
            return Problem(
                reference="inspection-timeout",
                message=f"{step} took more than {self.spec.start_timeout_s:g} s",
                hint="if it needs longer, set CORTEX_START_TIMEOUT to more seconds",
                traceback=output,
            )
        if code == -signal.SIGXCPU:
            message = f"{step} used more processor time than a start may take"
            hint = "do less of it at import, or set CORTEX_START_TIMEOUT to more seconds"
        elif code == -signal.SIGKILL:
            message = f"the process was killed while {step}, most likely for memory"
            hint = "free memory on this machine, or load less"
        elif code < 0:
            message = f"the process crashed while {step}: {signal.strsignal(-code) or 'unknown'} (signal {-code})"
            hint = "a native library crashed: the lines above say where; try another version of it"
        else:
            message = f"the process ended while {step}, with exit code {code}"
            hint = "find what ends the process, such as os._exit, and have it raise an exception instead"
        return Problem(reference="inspection-died", message=message, hint=hint, traceback=output)

    def _output(self) -> str:
        """The end of what the child wrote, as text."""
        size = os.fstat(self._output_fd).st_size
        data = os.pread(self._output_fd, _TAIL_BYTES, max(0, size - _TAIL_BYTES))
        return "\n".join(parse_line(line).text for line in data.splitlines())


_LINES = msgspec.json.Decoder(_Line)


def _live(request: Inspect, *, pipe_fd: int, output_fd: int, secrets_fd: int | None) -> NoReturn:
    """Be the child. Does not return."""
    code = 1
    try:
        spec = request.spec
        secrets = {} if secrets_fd is None else unpacked(secrets_fd)
        processes.end_with_parent()
        process.detach()
        os.dup2(output_fd, 1)
        os.dup2(output_fd, 2)
        process.close_descriptors_except((pipe_fd,))
        faulthandler.enable(2)
        process.reseed()
        process.raise_oom_score()
        process.apply_environment(process.replica_environment(spec, os.environ, secrets))
        process.forget_launcher()
        secrecy.keep(confidential(secrets))
        process.set_title("cortex-inspect", spec.home, spec.api)
        seen = view.enter(spec)
        request = msgspec.structs.replace(request, spec=seen.spec)
        process.limit_inspection(spec.start_timeout_s * max(2, spec.threads))
        streams = logs.install(logs.LogFile("", 0))
        processes.become_subreaper()
        offspring.set_apart(
            title=process.child_title(spec),
            project_dir=seen.spec.project_dir,
            descriptors=(pipe_fd,),
            forget_output=streams.forget,
        )
        report = inspect(request, announce=lambda step: _write_line(pipe_fd, _Line(step=step)))
        _write_line(pipe_fd, _Line(report=_masked(report)))
        code = 0
    except BaseException:
        os.write(2, secrecy.masked(traceback.format_exc()).encode("utf-8", "backslashreplace"))
    finally:
        os._exit(code)


def _masked(report: InspectReport) -> InspectReport:
    return msgspec.structs.replace(
        report,
        problems=tuple(map(secrecy.masked_problem, report.problems)),
        warnings=tuple(map(secrecy.masked_problem, report.warnings)),
    )


def _write_line(fd: int, line: _Line) -> None:
    data = memoryview(msgspec.json.encode(line) + b"\n")
    while data:
        data = data[os.write(fd, data) :]


def prove_rows(spec: ReplicaSpec) -> Proof:
    """What a model's graph says about its rows. Reads the graph without weights; one it cannot read proves nothing."""
    try:
        if spec.model_format == "onnx":
            from cortex.rows import prove
            from cortex.wire import onnx_proto

            return prove(onnx_proto.read_graph(spec.model_path))
        from cortex.rows import prove_saved_model
        from cortex.wire import saved_model_proto

        gpu = spec.resources.gpus > 0
        return prove_saved_model(saved_model_proto.read_graph(spec.model_path, spec.signature_key, gpu=gpu))
    except Exception as error:
        return Proof(rules=RULES, proved=False, reason=f"the graph cannot be read: {one_line(error)}")


def inspect(
    request: Inspect, *, announce: Callable[[str], None], prove: Callable[[ReplicaSpec], Proof] = prove_rows
) -> InspectReport:
    """
    Load what is asked for and describe it. What is wrong with it is in the report; other errors pass through.

    Args:
        announce: told what comes next, in case it never ends.
        prove: what the graph of the spec's model says about rows.
    """
    spec = request.spec
    problems: list[Problem] = []
    warnings: list[Problem] = []
    handler: Handler | None = None
    backend: base.Backend | None = None
    proof: Proof | None = None
    trial: Trial | None = None
    made_up: MadeUpSample | None = None
    if request.handler and spec.handler is not None and spec.project_dir is not None:
        announce(f"importing {spec.handler}")
        process.enter_project(spec)
        asyncio.set_event_loop(uvloop.new_event_loop())  # as in a replica
        warnings += shadowed_packages(spec.project_dir, spec.handler)
        try:
            handler = load_handler(spec.project_dir, spec.handler, split_api_key(spec.api)[1])
        except HandlerError as error:
            problems.append(_about("request_handler", error.problem()))
    if request.model and request.rows != "off":
        announce("reading the graph")  # before the model is loaded: a proof costs its memory to nobody
        proof = prove(spec)
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
        if request.run_sample and spec.sample is not None and (handler is None or handler.pre is None):
            refused = _try_sample(backend, spec.sample)
            if refused is not None:
                (problems if spec.sample.gate else warnings).append(_about("sample", refused))
        if request.make_up_sample:
            made_up = make_up_sample(backend)
        if proof is not None and _is_tried(request.rows, proof):
            announce("running rows alone and together")
            trial = _try_rows(backend, proof, spec, handler)
    return InspectReport(
        problems=tuple(problems),
        warnings=tuple(warnings),
        signature=backend.signature if backend is not None else None,
        signature_keys=tuple(getattr(backend, "signature_keys", ())),
        has_pre=handler is not None and handler.pre is not None,
        has_post=handler is not None and handler.post is not None,
        is_async=handler is not None and handler.is_async,
        batching=None if proof is None else BatchingVerdict(proof=proof, trial=trial),
        notes=tuple(getattr(backend, "notes", ())),
        made_up=made_up,
    )


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
        return base.load(
            spec.model_format,
            spec.model_path,
            threads=spec.threads,
            gpu=spec.resources.gpus > 0,
            signature_key=spec.signature_key,
        )
    except base.ModelError:
        raise
    except MemoryError as error:
        raise base.ModelError(f"there is not enough memory to load {Path(spec.model_path).name}") from error
    except Exception as error:
        raise base.ModelError(f"{Path(spec.model_path).name} cannot be loaded: {one_line(error)}") from error


def _try_sample(backend: base.Backend, sample: Sample) -> Problem | None:
    """What is wrong with the sample as the model's input."""
    try:
        backend.run(_sample_feeds(backend, sample))
    except (BadBody, InputMismatch, base.InferenceFailed) as error:
        problem = error.problem()
        return Problem(
            reference="sample-failed",
            message=f"the model does not take the sample: {problem.message}",
            hint=problem.hint,
        )
    return None


def _sample_feeds(backend: base.Backend, sample: Sample) -> Feeds:
    """The sample as the model's input, without a handler. Raises BadBody, InputMismatch."""
    converter = build_converter(backend.signature, takes_bytes=backend.takes_bytes)
    return converter.convert(Decoder(has_pre_inference=False).decode(sample.body, sample.content_type))


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
    if spec.sample is not None and (spec.handler is None or (handler is not None and handler.pre is None)):
        try:
            sample = _sample_feeds(backend, spec.sample)
        except (BadBody, InputMismatch):
            pass
    if not proof.proved:  # the user's word: for all sizes, and of rounding nobody knows better
        return try_rows(backend, "rounding", sample=sample, clock_s=time.monotonic)
    return try_rows(backend, proof.rounding, sample=sample, clock_s=time.monotonic, sizes=proof.sizes)
