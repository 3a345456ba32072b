"""
A replica's process, from the fork to its end.

Everything is built here, once, and passed in. Whatever happens, it ends in `os._exit`: the frames below ours are the
launcher's, and its clean-up is not for us to do.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from time import perf_counter
from types import FrameType
from typing import TYPE_CHECKING, NamedTuple, NoReturn

import uvloop

from cortex.errors import Problem
from cortex.ids import route_path, short, split_api_key
from cortex.replica.backends import base
from cortex.replica.handler import offspring
from cortex.replica.handler.background import Background
from cortex.replica.handler.ending import Ending, end_descendants, signal_descendants
from cortex.replica.handler.hooks import Handler, HandlerError, LifeHook, load_handler, run_on_start
from cortex.replica.inspection.rehearsal import Rehearsal
from cortex.replica.inspection.warmup import SampleRefused, WarmUp
from cortex.replica.observation import logs, places
from cortex.replica.observation.stats import Counters, StatsWriter, write_last_words
from cortex.replica.observation.tracebacks import format_fault, one_line
from cortex.replica.observation.tracker import Tracker
from cortex.replica.prediction.inference import Inference
from cortex.replica.prediction.pipeline import Pipeline
from cortex.replica.prediction.predictors import Around, build_predictor, hide_loop
from cortex.replica.prediction.seats import Workload
from cortex.replica.process import isolation
from cortex.replica.process.condition import Condition
from cortex.replica.process.control import Control
from cortex.replica.process.loads import LoadWriter
from cortex.replica.process.surroundings import Surroundings, settle
from cortex.replica.protocols import open_inference
from cortex.replica.protocols.cortex import CortexProtocol
from cortex.replica.protocols.open_inference import OpenInference
from cortex.replica.transport.server import Server
from cortex.replica.transport.service import Service
from cortex.wire.launch import ENDING_S, MOST_ENDING_S, ReplicaSpec
from cortex.wire.reports import Phase
from cortex.wire.secrecy import unpacked
from cortex.wire.stats import LastWords

if TYPE_CHECKING:  # imported only where traces are asked for: it takes half a second
    from cortex.replica.tracing import Tracing

EXIT_EXPLAINED = 3
"""The build cannot be served as it is; the problem says why, and the same build would fail again."""
EXIT_MEMORY = 4
EXIT_BUG = 1
DEFAULT_DRAIN_S = 30.0
"""After a SIGTERM, which carries no timeout."""
DRAIN_LOOK_S = 0.1
"""How often a drain's time is looked at: the agent kills what goes on for 2 s longer, and the counters with it."""
STUCK_AFTER_LOOKS = 4
"""
A main thread that sits in a handler when a drain is out of time is not waited for any longer than this, some 0.3 s.
Looks, not seconds: a process that was stopped or starved meanwhile may still answer what it cancels.
"""
LAST_STEPS_S = 1.0
"""So long before the end of all patience, processes that a handler's end may be waiting for are told to end."""
SAY_GOODBYE_S = 1.0
"""How long the last status may take to reach those who listen."""


class SignalRelay:
    """
    What handles the signals that end a replica, where users' code does not. That may call it, as the handler that its
    own replaces; in a process that becomes a replica after that code is imported, too.
    """

    NUMBERS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self.pass_on: Callable[[int], None] | None = None
        """Takes a signal's number; None: this is no replica yet, and ends."""
        self.was_called = False

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        self.was_called = True
        if self.pass_on is not None:
            self.pass_on(number)
            return
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    def stand_in(self) -> None:
        """Handle what nobody does so far."""
        for number in self.NUMBERS:
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):  # users' code goes first
                signal.signal(number, self)


class Begun(NamedTuple):
    """What stands ready for users' code; and what was loaded since, in a process that then became a replica."""

    loop: asyncio.AbstractEventLoop
    """The one that is current while the handler is imported."""
    background: Background
    """Watches that loop and executors."""
    relay: SignalRelay
    descriptors: Mapping[int, str]
    """Ours, of the time before (`offspring.Ours`)."""
    backend: base.Backend | None = None
    handler: Handler | None = None
    load_s: float = 0.0


def begin(here: Surroundings) -> Begun:
    """Make ready for users' code, none of which has run yet."""
    loop = uvloop.new_event_loop()
    background = Background(
        tell=lambda level, text, request: here.log.record("log", level, text, request),
        project_dir=here.spec.project_dir,
    )
    if here.spec.handler is not None:
        background.watch_executors()
        background.watch_loop(loop)
    return Begun(loop, background, SignalRelay(), offspring.own_descriptors())


def live(spec: ReplicaSpec, *, slot_fd: int, control_fd: int, secrets_fd: int | None = None) -> NoReturn:
    """Be this replica. Called in the forked child; does not return."""

    def run() -> int:
        surroundings = settle(
            spec,
            {} if secrets_fd is None else unpacked(secrets_fd),
            descriptors=(slot_fd, control_fd),
            open_log=lambda: logs.LogFile(spec.log_path, spec.attempt),
            title=_title(spec),
        )
        return _Replica(surroundings, begin(surroundings), slot_fd=slot_fd, control_fd=control_fd).run()

    _live(run)


def go_on(surroundings: Surroundings, begun: Begun, spec: ReplicaSpec, *, slot_fd: int, control_fd: int) -> NoReturn:
    """
    Be this replica from now on. Called in a child that has all of it loaded; does not return.

    Args:
        surroundings: its log has no path yet.
        spec: as the one that it was settled by, but for what has no effect before a model serves.
    """

    def run() -> int:
        surroundings.log.move_to(spec.log_path, spec.attempt)
        isolation.set_title(*_title(spec))
        isolation.move_import_folder(surroundings.spec.scratch, spec.scratch)
        view = surroundings.view._replace(spec=spec)
        return _Replica(surroundings._replace(view=view), begun, slot_fd=slot_fd, control_fd=control_fd).run()

    _live(run)


def _title(spec: ReplicaSpec) -> tuple[str, ...]:
    return "cortex-replica", spec.home, spec.api, short(spec.version), spec.replica


def _live(run: Callable[[], int]) -> NoReturn:
    code = EXIT_BUG
    try:
        code = run()
    except BaseException:
        try:
            os.write(2, traceback.format_exc().encode("utf-8", "backslashreplace"))
        except BaseException:  # nothing may reach the launcher's frames
            pass
    finally:
        os._exit(code)


class _Replica:
    def __init__(self, surroundings: Surroundings, begun: Begun, *, slot_fd: int, control_fd: int) -> None:
        self._view, self._log, self._streams = surroundings
        self._spec = spec = surroundings.spec
        self._begun = begun
        self._before = offspring.own_descriptors().keys() - {slot_fd, control_fd}
        """Descriptors that users' code may have opened, unless they are in `begun`."""
        self._slot = socket.socket(fileno=slot_fd)
        self._condition = Condition(spec)
        self._counters = Counters()
        self._stats = StatsWriter(spec, self._counters)
        self._lock = threading.Lock()
        self._leaving = threading.Lock()
        self._ending = False
        self._exit_code = 0
        self._server: Server | None = None
        self._drain_deadline_s: float | None = None
        self._looks_too_late = 0
        self._on_stop: LifeHook | None = None
        """Once the handler has begun."""
        self._ends: Ending | None = None
        """While the handler's code is being ended."""
        self._load: LoadWriter | None = None
        """Once it is ready."""
        self._tracing: Tracing | None = None
        self._idle_loop = begun.loop
        """The one that is current while the other one serves, see `_give_loop`."""
        self._loop = self._handlers_loop = begun.loop
        """The one that serves, and the handler's."""
        self._background = begun.background
        self._background.is_in_hand = self._condition.has_in_hand
        if spec.handler is not None:
            self._loop = uvloop.new_event_loop()
            self._background.watch_loop(self._loop)
        self._relay = begun.relay
        self._control = Control(
            self._condition,
            listener=socket.socket(fileno=control_fd),
            slot=self._slot,
            on_drain=self._drain,
            on_signal=self._signalled,
            every_second=self._every_second,
            tell_load=self._tell_load,
            write_counters=self._stats.write,
            complain=lambda text: self._say("ERROR", text),
        )
        self._condition.announce = self._control.announce
        self._relay.pass_on = self._control.pass_signal

    def run(self) -> int:
        """Load, warm up, serve. Returns the exit code when that failed; otherwise does not return."""
        by_now = offspring.own_descriptors()
        offspring.set_apart(
            offspring.Ours(
                title=isolation.child_title(self._spec),
                project_dir=self._spec.project_dir,
                descriptors={**self._begun.descriptors, **{fd: by_now[fd] for fd in by_now.keys() - self._before}},
                sockets=[self._slot.getsockname(), self._control.address],
                loops=[self._loop, self._idle_loop],
                handlers=[self._relay],
                forget_output=self._streams.forget,
            )
        )
        self._control.start()
        self._control.hear_signals()
        self._relay.stand_in()
        try:
            self._serve()
        except (HandlerError, base.ModelError, SampleRefused) as error:
            return self._fail(error.problem(), permanent=True, code=EXIT_EXPLAINED)
        except MemoryError as error:
            message = f"out of memory while {self._condition.progress}: {one_line(error)}"
            return self._fail(Problem(reference="out-of-memory", message=message), permanent=False, code=EXIT_MEMORY)
        except BaseException as error:
            trace = format_fault(error, self._spec.project_dir)
            problem = Problem(
                reference="replica-failed",
                message=f"while {self._condition.progress or 'starting'}: {one_line(error)}",
                traceback=trace,
            )
            return self._fail(problem, permanent=False, code=EXIT_BUG)
        return EXIT_BUG

    # ---- life ---------------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        spec, condition = self._spec, self._condition
        started_s = perf_counter()
        self._start_tracing()  # before the handler, which may add spans of its own
        handler = self._load_handler()
        loop = self._loop
        backend = self._begun.backend
        if backend is None:
            condition.report("loading the model")
            backend = base.load_for(spec)
        tracker = None
        if spec.tracker is not None:
            tracker = Tracker(
                spec.tracker,
                output_names=[output.name for output in backend.signature.outputs],
                warn=lambda text: self._say("WARNING", text),
                monotonic_s=time.monotonic,
            )
            self._stats.tracker = tracker
        condition.batching.runtime = backend.runtime
        make_service: Callable[..., Service] = Service
        make_pipeline: Callable[..., Pipeline] = Pipeline
        if self._tracing is not None:
            make_service, make_pipeline = self._tracing.service, self._tracing.pipeline
        pipeline = make_pipeline(backend, handler, tracks=tracker is not None)
        inference = Inference(
            backend.run,
            explain=pipeline.failed,
            signature=backend.signature,
            batching=condition.batching,
            loop=loop,
            say=self._say,
            announce=condition.announce,
        )
        protocol = CortexProtocol(
            has_pre_inference=pipeline.pre is not None,
            may_be_empty=all(one.optional for one in backend.signature.inputs),
        )
        service = make_service(
            protocol=protocol,
            below={
                open_inference.PATH: OpenInference(
                    endpoint=route_path(spec.api),
                    name=split_api_key(spec.api)[1],
                    version=short(spec.version),
                    platform=open_inference.PLATFORMS.get(spec.runtime, spec.runtime),
                    signature=backend.signature,
                    takes_bytes=backend.takes_bytes,
                    has_hooks=pipeline.has_hooks,
                )
            },
            condition=condition,
            counters=self._counters,
            tracker=tracker,
            log=self._log,
            loop=loop,
            project_dir=spec.project_dir,
        )
        predictor = build_predictor(
            Around(pipeline, inference, service, loop, self._streams),
            is_async=handler is not None and handler.is_async,
            concurrency=spec.concurrency,
        )
        service.predictor = predictor
        service.hint = self._view.hint
        self._log.raw_belongs_to_request = predictor.one_at_a_time
        if predictor.one_at_a_time:
            condition.in_hand.one_at_a_time()
        condition.report("warming up")
        condition.enter(Phase.WARMING)
        warm_up = WarmUp(
            spec,
            backend=backend,
            has_hooks=pipeline.has_hooks,
            inference=inference,
            tracker=tracker,
            rehearsal=Rehearsal(service, predictor, loop),
        )
        protocol.introduction = warm_up.run()
        warnings = [*warm_up.warnings, *([self._view.warning] if self._view.warning is not None else [])]
        for warning in map(places.as_told, warnings):
            condition.warn(warning)
            self._say("WARNING", warning.message)
        server = Server(
            service,
            condition=condition,
            slot=self._slot,
            loop=loop,
            stopped=self._stop_serving,
        )
        gc.collect()
        gc.freeze()  # what is loaded stays: the collector need not look at it again
        with self._lock:
            self._server = server
        condition.facts = {
            "load_ms": round((perf_counter() - started_s + self._begun.load_s) * 1000, 1),
            "model_us": round(inference.mean_s * 1e6, 1),
            "inline": inference.inline,
        }
        self._stats.write()  # before the first request, so that the process is known before it has one in hand
        server.open()
        if predictor.hides_loop:
            loop.call_soon(hide_loop)
        loop.call_soon(self._become_ready, predictor.workload)
        loop.run_forever()
        while not self._ending:
            self._say("WARNING", "a handler stopped the event loop that serves it; it goes on")
            if predictor.hides_loop:
                loop.call_soon(hide_loop)
            loop.run_forever()
        self._end(0)

    def _become_ready(self, workload: Workload) -> None:
        self._load = LoadWriter(self._spec.stats_path, workload, self._condition.in_flight)
        self._condition.enter(Phase.READY)

    def _start_tracing(self) -> None:
        """Traces are an extra, in every sense: whatever is wrong with them, predictions are served."""
        if not isolation.asks_for_traces(os.environ):
            return
        self._condition.report("starting traces")
        try:
            from cortex.replica.tracing import Tracing

            self._tracing = Tracing(self._spec, os.environ)
        except ImportError as error:
            hint = "install cortex-serving[otel], and with a requirements.txt add what the page on metrics says"
            self._say("WARNING", f"OTEL_… variables ask for traces, but there will be none: {error}; {hint}")
        except Exception as error:
            self._say("WARNING", f"OTEL_… variables ask for traces, but there will be none: {one_line(error)}")

    def _load_handler(self) -> Handler | None:
        spec = self._spec
        if spec.handler is None or spec.project_dir is None:
            isolation.enter_project(spec)
            return None
        handler = self._begun.handler
        if handler is None:
            isolation.enter_project(spec)
            self._condition.report(f"importing {spec.handler}")
            asyncio.set_event_loop(self._idle_loop)
            handler = load_handler(spec.project_dir, spec.handler, split_api_key(spec.api)[1])
        if self._idle_loop.is_closed():
            self._idle_loop = uvloop.new_event_loop()
            self._background.watch_loop(self._idle_loop)
        asyncio.set_event_loop(self._idle_loop)  # `asyncio.run` leaves none
        if handler.start is not None:
            self._condition.report(f"running on_start of {spec.handler}")
            run_on_start(handler.start, self._idle_loop, spec.project_dir)
        self._on_stop = handler.stop
        self._give_loop(handler)
        return handler

    def _give_loop(self, handler: Handler) -> None:
        """
        Have an async handler served by the loop that it found at import, so that what it made there belongs to it.

        The loop that does not serve is the current one: sync hooks can call `run_until_complete` on it, which they
        could not on a loop that runs, and so can what a sync handler made at import.
        """
        if handler.is_async:
            self._loop, self._idle_loop = self._idle_loop, self._loop
        self._handlers_loop = self._loop if handler.is_async else self._idle_loop
        asyncio.set_event_loop(self._idle_loop)

    # ---- ends ---------------------------------------------------------------------------------------------------

    def _fail(self, problem: Problem, *, permanent: bool, code: int) -> int:
        """Say why, to those who listen, to the log, and in writing."""
        self._ending = True
        problem = places.as_told(problem)
        write_last_words(self._spec, LastWords(problem=problem, permanent=permanent))
        text = f"{problem.reference}: {problem.message}"
        # What failed in the rehearsal was logged with its traceback as any request's is.
        trace = "" if problem.reference == SampleRefused.reference else problem.traceback
        self._say("ERROR", "\n".join(filter(None, (text, trace, problem.hint))))
        self._condition.fail(problem)
        self._control.flush(SAY_GOODBYE_S)
        self._end(code)

    def _stop_serving(self) -> None:
        """On the loop."""
        self._ending = True
        self._loop.stop()

    def _end(self, code: int) -> NoReturn:
        """End users' code, in the main thread, and leave."""
        self._ending = self._condition.ending = True
        self._condition.announce()
        self._stats.write()  # whatever that code does to this process
        self._tell_load()
        now_s = time.monotonic()
        left_s = (self._drain_deadline_s or 0.0) - now_s
        ends = Ending(
            on_stop=self._on_stop,
            loops=(self._loop, self._idle_loop),
            loop=self._handlers_loop,
            project_dir=self._spec.project_dir,
            say=self._say,
            until_s=now_s + min(max(left_s, ENDING_S), MOST_ENDING_S),
        )
        self._exit_code, self._ends = code, ends
        self._control.interval_s = DRAIN_LOOK_S  # the control thread sees to it that it ends
        ends.run()
        self._leave(code)

    def _signalled(self, number: int) -> None:
        ours = signal.getsignal(number) is self._relay  # unless users' code handles it
        if (ours or self._relay.was_called) and not self._ending:
            self._drain(DEFAULT_DRAIN_S)

    def _drain(self, timeout_s: float) -> None:
        """On the control thread."""
        if self._ends is not None:
            return
        with self._lock:
            server = self._server
        if server is None:
            self._condition.enter(Phase.DRAINING)
            self._leave(0)
        deadline_s = time.monotonic() + timeout_s
        if self._drain_deadline_s is None or deadline_s < self._drain_deadline_s:
            self._drain_deadline_s = deadline_s
        self._control.interval_s = DRAIN_LOOK_S
        if self._condition.phase is not Phase.DRAINING:
            self._condition.enter(Phase.DRAINING)
        server.drain_soon(timeout_s)

    def _tell_load(self) -> bool:
        return self._load is not None and self._load.write()

    def _every_second(self) -> None:
        self._stats.write()
        self._log.every_second()
        self._background.look()
        now_s = time.monotonic()
        if self._ends is not None:
            self._watch_end(self._ends, now_s)
            return
        deadline_s = self._drain_deadline_s
        if deadline_s is None or now_s <= deadline_s:
            return
        self._looks_too_late += 1
        if self._looks_too_late >= STUCK_AFTER_LOOKS:
            stuck = len(self._condition.in_flight)
            self._say("WARNING", f"drain: out of time; {stuck} requests are in code that cannot be ended")
            self._leave(0)

    def _watch_end(self, ends: Ending, now_s: float) -> None:
        """
        On the control thread: break off what does not end in time.

        First the processes that it may be waiting for, so that what comes after that wait gets its turn.
        """
        if now_s > ends.until_s:
            self._say("WARNING", f"out of time at {ends.step}; the rest of the handler's end is left out")
            self._leave(self._exit_code)
        if now_s > ends.until_s - LAST_STEPS_S:
            signal_descendants(signal.SIGTERM if now_s < ends.until_s - LAST_STEPS_S / 2 else signal.SIGKILL)

    def _leave(self, code: int) -> NoReturn:
        """Write counters last of all, and end. From any thread; whoever comes second waits for the end."""
        self._ending = True
        self._leaving.acquire()
        try:
            self._background.look(last=True)
            self._streams.finish()
            self._stats.write(last=True)
            if self._tracing is not None:
                self._tracing.close()
            end_descendants(patience_s=0.0)
        finally:
            os._exit(code)

    def _say(self, level: str, text: str) -> None:
        self._log.record("log", level, text, "")
