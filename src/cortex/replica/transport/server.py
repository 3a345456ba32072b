"""
What this replica answers: predictions, its signature, and errors; and how it stops.

The table of statuses for everything that can go wrong is here and nowhere else.
"""

from __future__ import annotations

import asyncio
import ctypes
import re
import select
import shlex
import socket
from collections.abc import Callable
from time import perf_counter
from typing import Any

import orjson

from cortex.errors import RequestError
from cortex.replica.handler.foresight import advice_for
from cortex.replica.handler.hooks import HookFailed
from cortex.replica.observation.debugging import Trace, wants_debug
from cortex.replica.observation.logs import LogFile
from cortex.replica.observation.places import as_called
from cortex.replica.observation.stats import Counters
from cortex.replica.observation.tracebacks import format_fault, format_user_traceback
from cortex.replica.observation.tracker import Mismatch, Tracker
from cortex.replica.prediction.predictors import HANDLED, ModelFailed, Predictor, Reply
from cortex.replica.process.condition import Condition
from cortex.replica.protocols.codec import BadBody, BodyTooLarge, UnsupportedContentType, UnsupportedEncoding
from cortex.replica.protocols.results import Unserialisable, encode
from cortex.replica.tensors.mismatch import InputMismatch
from cortex.replica.transport.http import (
    JSON,
    Connection,
    Exchange,
    Heads,
    HeadTooLarge,
    Limits,
    MalformedRequest,
    RequestStalled,
    Shapes,
)

METHODS = b"GET, HEAD, POST, OPTIONS"
MAX_IN_FLIGHT = 1000
"""More at once means that nobody in front of us counts: each holds its body in memory."""
RETRY_AFTER_S = 1
HEARTBEAT_S = 1.0
SETTLE_S = 0.05
"""How long nothing may have happened before a drain believes that nothing more comes."""
DRAIN_POLL_S = 0.01


class MethodNotAllowed(Exception):
    """Another method than `METHODS`."""


class OutOfTime(Exception):
    """The request was not answered within the api's timeout."""


class Overloaded(Exception):
    """More requests are in flight than this replica holds."""


class Stopping(Exception):
    """The replica ends before it could answer."""


STATUS: tuple[tuple[type[BaseException], int, str], ...] = (
    (BodyTooLarge, 413, "body-too-large"),
    (UnsupportedContentType, 415, "unsupported-content-type"),
    (UnsupportedEncoding, 415, "unsupported-content-encoding"),
    (BadBody, 400, ""),
    (InputMismatch, 422, "input-mismatch"),
    (RequestError, 0, "request-error"),
    (MalformedRequest, 400, "malformed-request"),
    (HeadTooLarge, 431, "head-too-large"),
    (RequestStalled, 408, "request-timeout"),
    (MethodNotAllowed, 405, "method-not-allowed"),
    (OutOfTime, 504, "timeout"),
    (Overloaded, 503, "overloaded"),
    (Stopping, 503, "stopping"),
    (asyncio.CancelledError, 503, "stopping"),
    (HookFailed, 500, "handler-failed"),
    (ModelFailed, 500, "model-failed"),
    (Unserialisable, 500, "result-not-serialisable"),
    (BaseException, 500, "internal-error"),
)
"""
Exception, status, code; the first that fits. Status 0: the exception's own. Code empty: its own `reference`.
"""


def describe(error: BaseException) -> tuple[int, str, str, dict[str, Any]]:
    """Status, code, message and further facts of an error's answer."""
    status, code = next((s, c) for kind, s, c in STATUS if isinstance(error, kind))
    facts: dict[str, Any] = dict(getattr(error, "facts", {}))
    message = str(error)
    if isinstance(error, RequestError):
        status, message = error.status, as_called(error.message)  # often the text of another exception
    elif isinstance(error, BadBody):
        code = code or error.reference
    elif isinstance(error, HookFailed | ModelFailed):
        message = as_called(message)
    elif code == "internal-error":
        message = "an error inside Cortex; its log has the details"
    elif code == "stopping":
        message = "the replica is stopping; try again"
    return status, code, message, facts


class Service:
    """
    Takes exchanges from connections and gives them to the predictor; also the desk where it hands in results.

    Lives on the event loop. Until `predictor` is set nothing may be handled.
    """

    def __init__(
        self,
        *,
        condition: Condition,
        counters: Counters,
        tracker: Tracker | None,
        log: LogFile,
        loop: asyncio.AbstractEventLoop,
        project_dir: str | None,
    ) -> None:
        self.heads = Heads(condition.spec.version[:8])
        self.limits = Limits()
        self.shapes = Shapes()
        self.draining = False
        self.connections: set[Connection] = set()
        self.huge = False
        self.predictor: Predictor | None = None
        self.description: dict[str, Any] = {}
        """What GET answers, without how to call it."""
        self.hint: Callable[[BaseException], str] = lambda error: ""
        """What a handler can do about an error of its own, for the log."""
        self.sample_type = "application/json"
        """Content type of the api's own sample."""
        self.unproven = ""
        """Why no request is shown as one that works; empty if there is one that was answered."""
        self._condition = condition
        self._in_flight = condition.in_flight
        self._in_hand = condition.in_hand
        self._counters = counters
        self._tracker = tracker
        self._log = log
        self._loop = loop
        self._project_dir = project_dir

    # ---- for connections ----------------------------------------------------------------------------------------

    def handle(self, exchange: Exchange) -> None:
        exchange.started_s = perf_counter()
        if exchange.method == b"POST" and exchange.refusal is None:
            in_flight = self._in_flight
            if len(in_flight) >= MAX_IN_FLIGHT:
                self.fail(exchange, Overloaded(f"more than {MAX_IN_FLIGHT} requests are in flight here"))
                return
            in_flight[exchange] = None
            exchange.place = self._in_hand.take(exchange.id_bytes, exchange.started_s)
            if b"?" in exchange.target and wants_debug(exchange.query):
                exchange.trace = Trace(self._log, exchange.id)
            self.predictor.start(exchange)  # type: ignore[union-attr]  # one check a request for nothing
            return
        if exchange.refusal is not None:
            self.fail(exchange, exchange.refusal)
        elif exchange.method in (b"GET", b"HEAD"):
            self._answer(exchange, 200, JSON, self._described(exchange), b"", counted=False)
        elif exchange.method == b"OPTIONS":
            self._answer(exchange, 204, b"", b"", b"allow: " + METHODS + b"\r\n", counted=False)
        else:
            method = exchange.method.decode("latin-1")
            self.fail(exchange, MethodNotAllowed(f"{method} is not allowed here: POST a sample, or GET the signature"))

    def gone(self, exchange: Exchange) -> None:
        if exchange.answered:
            return
        self._counters.abandoned += 1
        exchange.answered = True
        if exchange.timer is not None:
            exchange.timer.cancel()
        if exchange.cancel is not None:
            self._counters.dropped += 1
            exchange.cancel()
            self.release(exchange)

    def never_started(self, count: int) -> None:
        self._counters.abandoned += count
        self._counters.dropped += count

    # ---- for predictors -----------------------------------------------------------------------------------------

    def finish(self, exchange: Exchange, reply: Reply) -> None:
        duration_s = perf_counter() - exchange.started_s
        if duration_s > exchange.timeout_s and not exchange.answered:
            self.fail(exchange, _out_of_time(exchange))  # nobody could tell before: the loop was busy
            return
        status, content_type, body, extra, result, rows = reply
        if self._answer(exchange, status, content_type, body, extra, True, duration_s):
            if self._tracker is None:
                return
            try:
                if rows == HANDLED:
                    self._tracker.track_response(result)
                else:
                    self._tracker.track_prediction(result, rows)
            except Exception as error:  # a result's own classes may do anything when looked at
                self._log.record("log", "WARNING", f"tracker: {type(error).__name__}: {error}", exchange.id)
        elif exchange.warmup:
            exchange.reply = reply

    def fail(self, exchange: Exchange, error: BaseException) -> None:
        if exchange.warmup and exchange.failure is None:  # what was answered, not what came of that
            # Only the rehearsal asks. The traceback's frames hold the exchange, so a request's body would stay in
            # memory until the garbage collector finds the cycle, which with few requests is never.
            exchange.failure = error
        status, code, message, facts = describe(error)
        if status >= 500 and not isinstance(error, Stopping | asyncio.CancelledError):
            self._log_failure(exchange, code, error)
        elif isinstance(error, BodyTooLarge | RequestStalled) and not exchange.warmup:
            # Who is still sending may only see the connection close.
            self._log.record("log", "WARNING", f"{code}: {message}", exchange.id)
        if exchange.answered:
            return
        extra = b""
        if status == 405:
            extra = b"allow: " + METHODS + b"\r\n"
        elif status == 503:
            extra = b"retry-after: %d\r\n" % RETRY_AFTER_S
        body = {"error": code, "message": message, "request_id": exchange.id}
        counted = exchange.method not in (b"GET", b"HEAD")
        self._answer(exchange, status, JSON, _encode_error(body, facts), extra, counted)

    def never_tracked(self, exchange: Exchange) -> Mismatch | None:
        """Why the tracker counts neither what a rehearsal was answered nor anything like it; None if it may."""
        if self._tracker is None or exchange.reply is None:
            return None
        _, _, _, _, result, rows = exchange.reply
        try:
            if rows == HANDLED:
                return self._tracker.never_counts(result)
            return self._tracker.never_counts_prediction(result, rows)
        except Exception:  # a result's own classes may do anything when looked at
            return None

    def release(self, exchange: Exchange) -> None:
        self._in_flight.pop(exchange, None)
        if exchange.place:
            self._in_hand.put(exchange.place)
            exchange.place = 0
        if exchange.view is not None:
            exchange.view = None  # a cycle, which would keep the body

    def expect(self, exchange: Exchange) -> None:
        remaining_s = exchange.timeout_s - (perf_counter() - exchange.started_s)
        exchange.timer = self._loop.call_later(max(0.0, remaining_s), self._out_of_time, exchange)

    # ---- answers ------------------------------------------------------------------------------------------------

    def _answer(
        self,
        exchange: Exchange,
        status: int,
        content_type: bytes,
        body: bytes,
        extra: bytes = b"",
        counted: bool = True,
        duration_s: float | None = None,
    ) -> bool:
        """
        Send an answer, once. False: nobody got it, or it was nothing that is counted.

        Args:
            duration_s: since the request was there; None: until now.
        """
        if exchange.answered:
            return False
        exchange.answered = True
        if exchange.timer is not None:
            exchange.timer.cancel()
        if duration_s is None:
            duration_s = perf_counter() - exchange.started_s
        connection = exchange.connection
        # Too late, and the ingress has answered in our place: it has also counted the request.
        given_up = duration_s > exchange.timeout_s > 0 and connection.peer_has_left()
        delivered = connection.respond(exchange, status, content_type, body, extra) and not given_up
        if not counted or exchange.warmup:
            return False
        if delivered:
            self._counters.answered(status, duration_s)
        else:
            self._counters.abandoned += 1
        return delivered

    def _out_of_time(self, exchange: Exchange) -> None:
        """The timeout has come: answer, and end what can be ended. What cannot shows as overdue until it ends."""
        if exchange.answered:
            return
        self.fail(exchange, _out_of_time(exchange))
        if exchange.cancel is not None:
            exchange.cancel()
            if exchange.stop is None:
                self.release(exchange)
        if exchange.stop is not None:
            exchange.stop()

    def _described(self, exchange: Exchange) -> bytes:
        how = {"note": self.unproven} if self.unproven else {"call": self.call_line(exchange)}
        return orjson.dumps({**self.description, **how})

    def call_line(self, exchange: Exchange) -> str:
        """A line for a shell that calls this api as the asker reached it, with the sample that was answered."""
        host = exchange.headers.get(b"host", b"").decode("latin-1")
        path = exchange.target.partition(b"?")[0].decode("latin-1")
        where = f"http://{host}{path}" if host and _PLAIN_URL.fullmatch(host + path) else "<endpoint>"
        content_type = shlex.quote(f"content-type: {self.sample_type}")
        if "json" not in self.sample_type:
            return f"curl {where} -H {content_type} --data-binary @FILE"
        sample = self.description.get("sample")
        text = "" if sample is None else orjson.dumps(sample).decode()
        body = f"'{text}'" if text and len(text) <= 500 and "'" not in text else "@sample.json"
        return f"curl {where} -H {content_type} -d {body}"

    def _log_failure(self, exchange: Exchange, code: str, error: BaseException) -> None:
        """The whole story into the log, with the user's own frames first."""
        cause = error.cause if isinstance(error, HookFailed | ModelFailed) and error.cause is not None else error
        if code == "internal-error":
            trace = format_fault(error, self._project_dir)
        elif isinstance(error, OutOfTime | Overloaded | Unserialisable) or (
            isinstance(error, HookFailed) and error.cause is None
        ):
            trace = ""
        else:
            trace = format_user_traceback(cause, self._project_dir)
        if isinstance(error, Unserialisable):
            trace = f"hint: {error.hint}"
        elif isinstance(error, HookFailed) and error.cause is not None and (advice := advice_for(error.cause)):
            trace += f"\nhint: {advice}"
        text = "\n".join(filter(None, (f"{code}: {as_called(str(error))}", trace, self.hint(cause))))
        self._log.record("log", "ERROR", text, exchange.id)


def _out_of_time(exchange: Exchange) -> OutOfTime:
    return OutOfTime(f"no answer within {exchange.timeout_s:g} s, which is the api's `timeout` in cortex.yaml")


def _encode_error(body: dict[str, Any], facts: dict[str, Any]) -> bytes:
    """The JSON of an error. A handler's facts may name another `error`, but never replace message and request id."""
    own = {key: value for key, value in facts.items() if key not in ("message", "request_id")}
    try:
        return encode({**body, **own})
    except Exception:  # facts that have no JSON form: the answer is worth more than they are
        return encode(body)


_PLAIN_URL = re.compile(r"[A-Za-z0-9.:\[\]_/-]+")


class Server:
    """
    The slot's listening socket, and the loop around it.

    Stopping is this, in order: answers say `connection: close`; connections that wait in the socket's backlog are
    still taken; when nothing has arrived or is being worked on for a moment, or the time is up, what is left is
    cancelled and counted; nothing is accepted any more and connections close; then `stopped` is called.
    """

    def __init__(
        self,
        service: Service,
        *,
        condition: Condition,
        slot: socket.socket,
        loop: asyncio.AbstractEventLoop,
        log: LogFile,
        stopped: Callable[[], None],
    ) -> None:
        self._service = service
        self._condition = condition
        self._slot = slot
        self._loop = loop
        self._log = log
        self._stopped = stopped
        self._deadline_s: float | None = None
        self._quiet_since_s = 0.0
        self._beat_due_s = perf_counter()

    def open(self) -> None:
        """Accept from the loop's next turn on: what waited in the backlog comes first."""
        self._slot.setblocking(False)
        # A copy: the loop's server owns its socket, and ours is handed out on the control socket.
        creation = self._loop.create_unix_server(
            self._make_connection, sock=self._slot.dup(), backlog=_BACKLOG, start_serving=False
        )
        # Held for life: the loop does not, and the collector would close the socket once nobody is connected.
        self._listening = self._loop.run_until_complete(creation)
        self._starting = self._loop.create_task(self._listening.start_serving())
        self._beat_due_s = perf_counter()
        self._loop.call_soon(self._beat)

    def drain_soon(self, timeout_s: float) -> None:
        """`drain`, from any thread. Answers close their connections from now on, even while the loop is busy."""
        self._service.draining = True
        self._loop.call_soon_threadsafe(self.drain, timeout_s)

    def drain(self, timeout_s: float) -> None:
        """Stop as described above. On the loop; later calls may only shorten the time."""
        deadline_s = perf_counter() + timeout_s
        if self._deadline_s is not None:
            self._deadline_s = min(self._deadline_s, deadline_s)
            return
        self._deadline_s = deadline_s
        self._quiet_since_s = perf_counter()
        self._drain_on()

    def _drain_on(self) -> None:
        now_s = perf_counter()
        assert self._deadline_s is not None
        if self._condition.in_flight or any(c.busy for c in self._service.connections) or self._someone_knocks():
            self._quiet_since_s = now_s
        if now_s - self._quiet_since_s >= SETTLE_S:
            # Not one more turn of the loop before that: it could accept a connection that nobody would serve.
            self._close()
        elif now_s >= self._deadline_s:
            self._cancel_rest()
            self._loop.call_later(DRAIN_POLL_S, self._close)  # uvloop writes answers at the end of a turn
        else:
            # Behind what the loop owes by then: a connection is accepted first, and made known to us after timers.
            self._loop.call_later(DRAIN_POLL_S, self._loop.call_soon, self._drain_on)

    def _close(self) -> None:
        self._listening.close()
        for connection in tuple(self._service.connections):
            connection.close()
        self._stopped()

    def _someone_knocks(self) -> bool:
        """Whether a connection waits to be accepted, or an accepted one has sent what we have not read."""
        poll = select.poll()
        poll.register(self._slot.fileno(), select.POLLIN)
        for connection in self._service.connections:
            if connection.fileno() >= 0:
                poll.register(connection.fileno(), select.POLLIN)
        return bool(poll.poll(0))

    def _cancel_rest(self) -> None:
        left = list(self._condition.in_flight)
        if left:
            self._log.record("log", "WARNING", f"drain: out of time; {len(left)} requests are cancelled", "")
        for exchange in left:
            if exchange.cancel is not None:
                exchange.cancel()
            self._service.fail(exchange, Stopping())

    def _make_connection(self) -> Connection:
        return Connection(self._service, self._loop)

    def _beat(self) -> None:
        service = self._service
        now_s = self._condition.heartbeat_s = perf_counter()
        late_s = max(0.0, now_s - self._beat_due_s)
        self._beat_due_s = now_s + HEARTBEAT_S
        service.heads.tick()
        for connection in tuple(service.connections):
            connection.check_pace(now_s, late_s)
        if service.huge and not self._condition.in_flight:
            service.huge = False
            trim_memory()
        self._loop.call_later(HEARTBEAT_S, self._beat)


def trim_memory() -> None:
    """
    Give memory that is free back to the system.

    Pieces of a body are small enough for malloc to keep them once they are free: after one body of 100 MiB a replica
    would stay 70 MiB larger, and its memory is what placement goes by. Only glibc has this; it takes milliseconds.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


_BACKLOG = 4096
"""`listen` is called once more on the inherited socket and sets this anew; as the agent does. Capped by the kernel."""
