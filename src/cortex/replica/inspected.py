"""
The process of an inspection, which may crash, hang, or eat all memory.

`Inspection` is the launcher's side and never waits; `_live` is the child's. Between them is a pipe with lines of JSON:
what the child is about to do, and last of all its report.

A child may be kept after its report, and become a replica: what took long to load is not loaded again.
"""

from __future__ import annotations

import os
import signal
import socket
import traceback
from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import Any, NoReturn

import msgspec

from cortex import processes
from cortex.errors import Problem
from cortex.replica import child
from cortex.replica.handler import offspring
from cortex.replica.inspection.findings import Findings, do_here, do_in_fork, inspect
from cortex.replica.observation import logs, places, secrecy
from cortex.replica.process import isolation
from cortex.replica.process.surroundings import Surroundings, settle
from cortex.wire.framing import receive_frame, send_frame
from cortex.wire.launch import Inspect, InspectReport, ReplicaSpec
from cortex.wire.logline import parse_line
from cortex.wire.secrecy import unpacked
from cortex.wire.stacks import readable_text

_MAX_REPORT_BYTES = 64 * 2**20
_TAIL_BYTES = 4000
"""Of what a dead child wrote, to be shown with its end."""


class _Line(msgspec.Struct, omit_defaults=True):
    """One line of the pipe: a step that begins, or the report."""

    step: str = ""
    report: InspectReport | None = None


class Inspection:
    """
    A running inspection, as the launcher sees it: made, it runs.

    Args:
        fork: as `os.fork`; what it raises passes through.
        secrets_fd: stays the caller's.
    """

    def __init__(
        self,
        request: Inspect,
        *,
        fork: Callable[[], int],
        asked_by: Any,
        now_s: float,
        secrets_fd: int | None = None,
    ) -> None:
        self.request = request.request
        self.spec = request.spec
        self.asked_by = asked_by
        self.deadline_s = now_s + request.spec.start_timeout_s
        self.exit_code: int | None = None
        """As from `os.waitstatus_to_exitcode`; the launcher sets it."""
        self.kept = False
        """It has reported, which was told, and waits for what it is to be."""
        self.killed = False
        """It took too long, or nobody waits for it any more."""
        self._received = bytearray()
        read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
        self.fd: int | None = read_fd
        """Readable when the child has said something, or has ended; None once there is nothing more to read."""
        self._output_fd = os.memfd_create("cortex-inspection")
        self._successor: socket.socket | None
        """Where a child that is kept hears which replica it is to be; None: it is not to be kept."""
        self._successor, its = socket.socketpair() if request.keep else (None, None)
        try:
            self.pid = fork()
        except BaseException:
            self.close()
            os.close(write_fd)
            if its is not None:
                its.close()
            raise
        if self.pid == 0:
            _live(request, pipe_fd=write_fd, output_fd=self._output_fd, secrets_fd=secrets_fd, successor=its)
        os.close(write_fd)
        if its is not None:
            its.close()
        os.set_blocking(read_fd, False)

    def keep(self) -> InspectReport | None:
        """The report of a child that is kept, once; None if it has not come yet, or it is not kept."""
        if self._successor is None or self.kept or self.fd is not None or self.killed:
            return None
        _, report = self._said()
        if report is None or not report.kept:
            return None
        self.kept = True
        return report

    def become(self, spec: ReplicaSpec, *, slot_fd: int, control_fd: int) -> None:
        """
        Have a kept child be this replica. Descriptors stay the caller's; the inspection is over.

        Raises:
            OSError: it is about to end.
        """
        assert self._successor is not None
        order_fd = os.memfd_create("cortex-replica")  # variables may make it too large for a socket's buffer
        try:
            with open(order_fd, "wb", closefd=False) as order:
                order.write(msgspec.json.encode(spec))
            send_frame(self._successor, b"", (order_fd, slot_fd, control_fd))
        finally:
            os.close(order_fd)
        os.kill(self.pid, signal.SIGCONT)  # if somebody has stopped it just now, nobody would hear of it any more
        self.close()

    def close(self) -> None:
        """Let go of everything."""
        self._close_pipe()  # a process that the child started may still have its other end
        if self._successor is not None:
            self._successor.close()
        os.close(self._output_fd)

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
        step, report = self._said()
        try:
            if report is not None:
                return msgspec.structs.replace(report, kept="")
            return InspectReport(problems=(self._death(step),))
        finally:
            self.close()

    def _said(self) -> tuple[str, InspectReport | None]:
        """What the child was doing last, and its report if that has come."""
        step = "starting"
        report: InspectReport | None = None
        for data in bytes(self._received).splitlines():
            try:
                line = _LINES.decode(data)
            except msgspec.MsgspecError:
                continue
            step = line.step or step
            report = line.report or report
        return step, report

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
        text = "\n".join(parse_line(line).text for line in data.splitlines())
        its = places.of(self.spec)
        return its.called(readable_text(text, its))


_LINES = msgspec.json.Decoder(_Line)


def _live(
    request: Inspect, *, pipe_fd: int, output_fd: int, secrets_fd: int | None, successor: socket.socket | None
) -> NoReturn:
    """Be the child. Does not return."""
    code = 1
    try:
        spec = request.spec
        secrets = {} if secrets_fd is None else unpacked(secrets_fd)
        processes.end_with_parent()
        os.dup2(output_fd, 1)
        os.dup2(output_fd, 2)
        here = settle(
            spec,
            secrets,
            descriptors=(pipe_fd,) if successor is None else (pipe_fd, successor.fileno()),
            open_log=lambda: logs.LogFile("", 0),
            title=("cortex-inspect", spec.home, spec.api),
        )
        lift_limits = isolation.limit_inspection(spec.start_timeout_s * max(2, spec.threads))
        begun = child.begin(here)
        if successor is not None:
            begun.relay.stand_in()
        has_before = isolation.Machinery()
        offspring.set_apart(
            offspring.Ours(
                title=isolation.child_title(spec),
                project_dir=here.spec.project_dir,
                descriptors={**begun.descriptors, pipe_fd: os.readlink(f"/proc/self/fd/{pipe_fd}")},
                loops=(begun.loop,),
                handlers=(begun.relay,),
                forget_output=here.streams.forget,
            )
        )
        began_s = perf_counter()
        found = inspect(
            msgspec.structs.replace(request, spec=here.spec),
            announce=lambda step: _write_line(pipe_fd, _Line(step=step)),
            loop=begun.loop,
            aside=do_here if successor is None else partial(do_in_fork, has_before),
        )
        report = found.report
        lift_limits()  # before it is known that there are no children, who would keep them
        if successor is not None and has_before.is_left() and _can_serve(found, here):
            report = msgspec.structs.replace(report, kept=request.request)
        load_s = perf_counter() - began_s
        _write_line(pipe_fd, _Line(report=_told(report)))
        os.close(pipe_fd)
        if successor is not None and report.kept:
            begun = begun._replace(backend=found.backend, handler=found.handler, load_s=load_s)
            _wait_to_serve(here, begun, successor)
        code = 0
    except BaseException:
        os.write(2, secrecy.masked(traceback.format_exc()).encode("utf-8", "backslashreplace"))
    finally:
        os._exit(code)


def _can_serve(found: Findings, here: Surroundings) -> bool:
    """Whether this process is as a replica would be that had loaded the same."""
    return (
        found.backend is not None
        and not found.report.problems
        and here.view.kind != "copy"  # lies where a replica's does not
        and not isolation.asks_for_traces(os.environ)  # begin before the handler
        and not processes.children()  # of the handler, with an inspection's limits
    )


def _wait_to_serve(here: Surroundings, begun: child.Begun, successor: socket.socket) -> NoReturn:
    """Become the replica that the launcher names. Raises ConnectionLost: it is gone."""
    _, (order_fd, slot_fd, control_fd) = receive_frame(successor)
    successor.close()
    with open(order_fd, "rb") as order:
        order.seek(0)
        spec = msgspec.json.decode(order.read(), type=ReplicaSpec)
    processes.outlive_parent()
    child.go_on(here, begun, spec, slot_fd=slot_fd, control_fd=control_fd)


def _told(report: InspectReport) -> InspectReport:
    return msgspec.structs.replace(
        report,
        problems=tuple(map(places.as_told, report.problems)),
        warnings=tuple(map(places.as_told, report.warnings)),
    )


def _write_line(fd: int, line: _Line) -> None:
    data = memoryview(msgspec.json.encode(line) + b"\n")
    while data:
        data = data[os.write(fd, data) :]
