"""
The launcher: a process that has imported everything heavy once and forks replicas in milliseconds.

    python -m cortex.replica.launcher --socket PATH --home HOME --backend onnx --key KEY

Single-threaded, one `poll` loop, no locks: whatever is true at a fork is true in the child. It loads no model and no
user's code itself. An agent that goes away leaves it and its replicas running, and takes its inspections along.

Whatever a child of its leaves behind when it ends becomes its own child, and is ended: so it lives until its last child
is gone. On SIGTERM it only stops to fork; without that it ends when it has had neither agent nor child for a minute.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast, get_args

import msgspec

from cortex import polling, processes
from cortex.binding import CONTROL_BACKLOG, bind_unix
from cortex.errors import CortexError, Problem
from cortex.ids import ReplicaId, split_api_key
from cortex.replica.process import isolation
from cortex.wire.build import Runtime
from cortex.wire.channel import Channel
from cortex.wire.framing import close_all
from cortex.wire.launch import (
    CallOff,
    ChildExited,
    Fork,
    Forked,
    ForkFailed,
    Inspect,
    Inspected,
    InspectReport,
    LauncherReply,
    LauncherRequest,
    ReplicaSpec,
)

if TYPE_CHECKING:  # imported by `preload`, once the variables are right
    from cortex.replica.inspected import Inspection

IDLE_EXIT_S = 60.0
INSPECTIONS_AT_ONCE = 8
"""Each loads a model; more at once would only swap. A deployment that has none among them does not wait for others'."""
KEPT_EXITS = 1000
"""Reports of ended children that are kept for an agent to come."""

_REQUESTS = msgspec.json.Decoder(LauncherRequest)


class UnsafeFork(Exception):
    """Forking now would make a broken child; says why."""


class _Queued(NamedTuple):
    """An inspection that waits for its turn."""

    agent: Channel
    request: Inspect
    fds: tuple[int, ...]
    """What its secrets are in, if it gets any."""


def next_in_turn(waiting: Iterable[str], running: Collection[str]) -> int | None:
    """
    Which inspection begins next, by its place among those that wait; None: none of them yet.

    Args:
        waiting: their deployments, first come first.
        running: the deployments of those that run.
    """
    has_room = len(running) < INSPECTIONS_AT_ONCE
    return next((place for place, deployment in enumerate(waiting) if has_room or deployment not in running), None)


class LauncherLoop:
    """
    The loop and what it looks after.

    Args:
        listener: where agents connect.
        complete_preload: imports what was missing when the launcher began, and returns whether it is there by now;
            None if nothing was. As long as it is missing, inspections say so.
        monotonic_s: the clock.
        idle_exit_s: how long without agent and children until `run` returns.
    """

    def __init__(
        self,
        listener: socket.socket,
        *,
        complete_preload: Callable[[], bool] | None = None,
        monotonic_s: Callable[[], float] = time.monotonic,
        idle_exit_s: float = IDLE_EXIT_S,
    ) -> None:
        listener.setblocking(False)
        self._listener = listener
        self._complete_preload = complete_preload
        self._monotonic_s = monotonic_s
        self._idle_exit_s = idle_exit_s
        self._agents: list[Channel] = []
        self._replicas: dict[int, tuple[ReplicaId, int]] = {}
        """Replica and attempt by pid."""
        self._exits: dict[ReplicaId, ChildExited] = {}
        """The last end of each replica, until its next attempt."""
        self._inspections: dict[int, Inspection] = {}
        """By pid."""
        self._queued: list[_Queued] = []
        self._signals, self._signal_writer = socket.socketpair()
        self._signals.setblocking(False)
        self._signal_writer.setblocking(False)
        self._terminated = False
        self._idle_since_s = monotonic_s()

    def run(self) -> None:
        """Serve until idle for long, or told to end and without children."""
        signal.signal(signal.SIGCHLD, lambda *_: None)  # a handler, so that the wakeup descriptor is written
        signal.signal(signal.SIGTERM, self._terminate)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.set_wakeup_fd(self._signal_writer.fileno(), warn_on_full_buffer=False)
        processes.become_subreaper()
        while True:
            if self._terminated:
                self._close()
            self._agents = [agent for agent in self._agents if not agent.closed]
            if self._idle():
                break
            self._hear(polling.wait(self._watched(), self._wait_s()))
            self._reap()
            self._watch_inspections()

    def _close(self) -> None:
        """Take in nothing any more. Inspections end, as nobody waits for them."""
        self._listener.close()
        for agent in self._agents:
            agent.close()

    def _terminate(self, *_: object) -> None:
        self._terminated = True

    # ---- waiting ------------------------------------------------------------------------------------------------

    def _watched(self) -> dict[int, int]:
        """Everything open that may have something for us."""
        watched = {self._signals.fileno(): select.POLLIN}
        if not self._terminated:
            watched[self._listener.fileno()] = select.POLLIN
        watched |= {agent.fileno(): agent.events for agent in self._agents}
        watched |= {running.fd: select.POLLIN for running in self._inspections.values() if running.fd is not None}
        return watched

    def _wait_s(self) -> float | None:
        deadlines = [
            running.deadline_s for running in self._inspections.values() if not (running.killed or running.kept)
        ]
        if not self._agents and not self._replicas and not self._inspections:
            deadlines.append(self._idle_since_s + self._idle_exit_s)
        return min(deadlines) - self._monotonic_s() if deadlines else None

    def _idle(self) -> bool:
        if self._agents or self._replicas or self._inspections:
            self._idle_since_s = self._monotonic_s()
            return False
        is_due = self._terminated or self._monotonic_s() - self._idle_since_s >= self._idle_exit_s
        return is_due and not processes.children()  # what the last ones left behind is ended first

    def _hear(self, ready: set[int]) -> None:
        """Take in whatever has come. Someone new comes last: its descriptor may have the number of one just closed."""
        if self._signals.fileno() in ready:
            with suppress(BlockingIOError):
                self._signals.recv(4096)
        for agent in self._agents:
            if agent.fileno() in ready:
                agent.flush()
                for payload, fds in agent.receive():
                    self._serve(agent, payload, fds)
        for inspection in self._inspections.values():
            if inspection.fd in ready:
                inspection.receive()
        if self._listener.fileno() in ready and (sock := polling.accept(self._listener)) is not None:
            agent = Channel(sock)
            self._agents.append(agent)
            for exited in self._exits.values():
                self._reply(agent, exited)

    def _reply(self, agent: Channel, reply: LauncherReply) -> None:
        agent.send(msgspec.json.encode(reply))

    # ---- requests -----------------------------------------------------------------------------------------------

    def _serve(self, agent: Channel, payload: bytes, fds: list[int]) -> None:
        try:
            request = _REQUESTS.decode(payload)
        except msgspec.MsgspecError as error:
            _say(f"unreadable request: {error}")
            close_all(fds)
            return
        match request:
            case Fork() if len(fds) in (2, 3):
                self._fork(agent, request, *fds)
            case Inspect() if len(fds) <= 1:
                self._queued.append(_Queued(agent, request, tuple(fds)))
                self._start_inspections()
            case CallOff(request=mark):
                close_all(fds)
                self._call_off(mark)
            case _:
                close_all(fds)
                _say(f"{type(request).__name__} came with {len(fds)} descriptors")
                if isinstance(request, Fork):
                    reason = f"two descriptors are needed, three with secrets; {len(fds)} came"
                    spec = request.spec
                    self._reply(agent, ForkFailed(replica=spec.replica, attempt=spec.attempt, reason=reason))

    # ---- children -----------------------------------------------------------------------------------------------

    def _fork(
        self, agent: Channel, request: Fork, slot_fd: int, control_fd: int, secrets_fd: int | None = None
    ) -> None:
        from cortex.replica import child

        spec = request.spec
        fds = (slot_fd, control_fd) if secrets_fd is None else (slot_fd, control_fd, secrets_fd)
        pid = self._taken_from_inspection(request, slot_fd=slot_fd, control_fd=control_fd)
        try:
            pid = pid or fork_alone()
        except (OSError, UnsafeFork) as error:
            close_all(fds)
            _say(f"cannot fork {spec.replica}: {error}")
            self._reply(agent, ForkFailed(replica=spec.replica, attempt=spec.attempt, reason=str(error)))
            return
        if pid == 0:
            child.live(spec, slot_fd=slot_fd, control_fd=control_fd, secrets_fd=secrets_fd)
        close_all(fds)
        self._replicas[pid] = (spec.replica, spec.attempt)
        self._exits.pop(spec.replica, None)
        self._reply(agent, Forked(replica=spec.replica, attempt=spec.attempt, pid=pid))

    def _taken_from_inspection(self, request: Fork, *, slot_fd: int, control_fd: int) -> int | None:
        """The pid of the child that becomes this replica; None if there is none that could."""
        for pid, inspection in self._inspections.items():
            if inspection.kept and inspection.request == request.kept and inspection.exit_code is None:
                try:
                    inspection.become(request.spec, slot_fd=slot_fd, control_fd=control_fd)
                except OSError as error:
                    _say(f"{request.spec.replica} is forked, as what was loaded for it is gone: {error}")
                    inspection.kill()
                    return None
                del self._inspections[pid]
                return pid
        return None

    def _reap(self) -> None:
        """Collect every child that has ended, and end what it has left behind. Inspections that were stopped go on."""
        has_reaped = False
        while True:
            try:
                pid, status, used = os.wait4(-1, os.WNOHANG | os.WUNTRACED)
            except ChildProcessError:
                return
            if pid == 0:
                break
            if os.WIFSTOPPED(status):
                if pid in self._inspections:  # a deploy waits for it
                    os.kill(pid, signal.SIGCONT)
                continue
            has_reaped = True
            code = os.waitstatus_to_exitcode(status)
            inspection = self._inspections.get(pid)
            if inspection is not None:
                inspection.exit_code = code
                continue
            known = self._replicas.pop(pid, None)
            if known is None:
                continue
            replica, attempt = known
            exited = ChildExited(
                pid=pid,
                replica=replica,
                attempt=attempt,
                code=code if code >= 0 else None,
                signal=-code if code < 0 else None,
                peak_bytes=processes.peak_bytes(used),
            )
            self._exits[replica] = exited
            while len(self._exits) > KEPT_EXITS:
                self._exits.pop(next(iter(self._exits)))
            for agent in self._agents:
                self._reply(agent, exited)
        if has_reaped:
            self._end_orphans()

    def _end_orphans(self) -> None:
        """
        Kill children that we did not fork. Theirs become ours as they are collected, so that it goes on until none is
        left. None is of a replica that runs: what its own children leave behind stays with it.
        """
        for pid in processes.children() - self._replicas.keys() - self._inspections.keys():
            os.kill(pid, signal.SIGKILL)

    # ---- inspections --------------------------------------------------------------------------------------------

    def _start_inspections(self) -> None:
        from cortex.replica.inspected import Inspection

        while (place := self._next_in_turn()) is not None:
            agent, request, fds = self._queued.pop(place)
            if agent.closed:  # nobody waits for it any more
                close_all(fds)
                continue
            if self._complete_preload is not None and self._complete_preload():
                self._complete_preload = None
            try:
                started = Inspection(
                    request,
                    fork=fork_alone,
                    asked_by=agent,
                    now_s=self._monotonic_s(),
                    secrets_fd=fds[0] if fds else None,
                )
            except (OSError, UnsafeFork) as error:
                problem = Problem(reference="node-fault", message=f"cannot inspect it here: {error}")
                report = InspectReport(problems=(problem,))
                self._reply(agent, Inspected(request=request.request, report=report))
                continue
            finally:
                close_all(fds)
            self._inspections[started.pid] = started

    def _next_in_turn(self) -> int | None:
        if not self._queued:
            return None
        waiting = (_deployment(queued.request.spec) for queued in self._queued)
        running = [_deployment(running.spec) for running in self._inspections.values() if not running.kept]
        return next_in_turn(waiting, running)

    def _call_off(self, mark: str) -> None:
        for queued in tuple(self._queued):
            if queued.request.request == mark:
                self._queued.remove(queued)
                close_all(queued.fds)
        for running in self._inspections.values():
            if running.request == mark and running.exit_code is None:
                running.kill()

    def _watch_inspections(self) -> None:
        """Report those that are done, end those that take too long or nobody waits for, begin those that waited."""
        now_s = self._monotonic_s()
        for pid, inspection in tuple(self._inspections.items()):
            agent = cast(Channel, inspection.asked_by)
            if inspection.exit_code is None:
                is_late = now_s >= inspection.deadline_s and not inspection.kept
                if (agent.closed or is_late) and not inspection.killed:
                    inspection.kill()
                elif (report := inspection.keep()) is not None:
                    self._reply(agent, Inspected(request=inspection.request, report=report))
                continue
            del self._inspections[pid]
            report = inspection.finish()
            if not inspection.kept:
                self._reply(agent, Inspected(request=inspection.request, report=report))
        self._start_inspections()


def preload(backend: Runtime) -> None:
    """
    Import everything that replicas need, with one thread.

    The variables come first: numpy and onnxruntime start threads as they are imported, unless told not to.

    Raises:
        BackendMissing: the library that runs models is not installed; the rest is imported.
    """
    os.environ.update(isolation.SINGLE_THREADED)
    for name in _PRELOADED:
        importlib.import_module(name)
    from cortex.replica.backends import base

    base.preload(backend)
    gc.collect()
    gc.freeze()  # the collector would touch, and so copy, every page that children share with us


def _try_to_preload(backend: Runtime) -> bool:
    """Preload all that can be; returns whether nothing is missing."""
    try:
        preload(backend)
    except CortexError as error:
        _say(f"{error}: {error.hint}")
        return False
    return True


_PRELOADED = (
    *("cortex.lib.log", "cortex.replica.child", "cortex.replica.inspected"),
    # What these import only when it is first needed.
    *("numpy.ma", "numpy.random", "encodings.idna", "encodings.latin_1", "concurrent.futures.thread"),
)
"""What every replica imports: a fork copies it for nothing, and no file of a project can get in its way."""


def bind(path: Path) -> socket.socket:
    """
    A listening socket at `path`, in place of a dead launcher's.

    Raises:
        AlreadyRunning: another launcher answers there.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            pass
        else:
            raise AlreadyRunning(f"another launcher answers at {path}")
    return bind_unix(path, CONTROL_BACKLOG, at_once=True)


class AlreadyRunning(Exception):
    """There is a launcher at this socket already."""


def _deployment(spec: ReplicaSpec) -> str:
    return split_api_key(spec.api)[0]


def fork_alone() -> int:
    """
    Fork; returns as `os.fork` does.

    Raises:
        ForkRefused: there is a second thread, which the child would lack with its locks held for ever.
        OSError: no memory or too many processes.
    """
    offenders = isolation.single_thread_offenders()
    if offenders:
        raise UnsafeFork(f"the launcher has threads besides the main one: {', '.join(offenders)}")
    sys.stdout.flush()
    sys.stderr.flush()
    return os.fork()


def _say(text: str) -> None:
    """One line into the launcher's log, which the agent made our stderr."""
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} launcher: {text}", file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="cortex-launcher", description="Forks replicas. Run by the agent.")
    parser.add_argument("--socket", required=True, type=Path, help="unix socket to listen on")
    parser.add_argument("--home", required=True, help="shown in the process title")
    parser.add_argument("--backend", required=True, choices=get_args(Runtime))
    parser.add_argument("--key", default="", help="what this launcher is for; shown by `ps`")
    options = parser.parse_args(arguments)
    if not sys.flags.safe_path and sys.path and sys.path[0] == os.getcwd():
        del sys.path[0]  # put there by `-m`: users' code must not import from wherever we were started
    backend: Runtime = options.backend
    is_whole = _try_to_preload(backend)
    isolation.set_title("cortex-launcher", options.home, backend)
    try:
        listener = bind(options.socket)
    except (OSError, AlreadyRunning) as error:
        _say(str(error))
        return 1
    LauncherLoop(listener, complete_preload=None if is_whole else partial(_try_to_preload, backend)).run()
    return 0


if __name__ == "__main__":
    # Under its own name, so that what children import is not a second copy of this file.
    from cortex.replica.launcher import main as run

    sys.exit(run())
