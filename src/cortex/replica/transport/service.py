"""
Where a replica's requests meet what answers them: each gets its protocol by its path, and its place in hand; and the
desk where predictions are handed in, counted and sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from time import perf_counter
from typing import Protocol, cast

from cortex.ids import route_path
from cortex.replica.bodies.codec import BodyTooLarge
from cortex.replica.bodies.results import Unserialisable
from cortex.replica.calls import OutOfTime, Overloaded, ReplicaEnding, RequestProtocol
from cortex.replica.handler.foresight import advice_for
from cortex.replica.handler.hooks import HookFailed
from cortex.replica.observation.debugging import Trace, wants_debug
from cortex.replica.observation.logs import LogFile
from cortex.replica.observation.places import as_called
from cortex.replica.observation.stats import Counters
from cortex.replica.observation.tracebacks import format_fault, format_user_traceback
from cortex.replica.observation.tracker import Tracker
from cortex.replica.prediction.pipeline import ModelFailed
from cortex.replica.prediction.predictors import Predictor
from cortex.replica.process.condition import Condition
from cortex.replica.transport.faults import Fault, describe
from cortex.replica.transport.http import (
    JSON,
    Connection,
    Exchange,
    Heads,
    KnownHeads,
    Limits,
    Message,
    RequestStalled,
)

MAX_IN_FLIGHT = 1000
"""More at once means that nobody in front of us counts: each holds its body in memory."""

LONG_S = 0.001
"""
After a request that took longer the next one may have waited for the loop, and its caller may have left. That look
takes 0.7 µs; what waited for shorter ones has hardly waited.
"""


class HttpProtocol(RequestProtocol, Protocol):
    """A protocol whose calls come over HTTP. It `write`s a message, or of one that is well (200) only the JSON."""

    def answer(self, exchange: Exchange) -> Message | None:
        """
        The answer to a request that is no prediction; None: it is one.

        Raises:
            Exception: `refuse` knows it.
        """
        ...

    def refuse(self, exchange: Exchange, fault: Fault) -> Message:
        """The form that an error has."""
        ...


class Service:
    """
    Takes exchanges from connections and gives them to the predictor; also the desk where it hands in results.

    Lives on the event loop. Until `predictor` is set nothing may be handled.

    Args:
        protocol: of the endpoint itself, and of everything that no other claims.
        below: others, by the path below the endpoint at which they begin.
    """

    def __init__(
        self,
        *,
        protocol: HttpProtocol,
        below: Mapping[bytes, HttpProtocol],
        condition: Condition,
        counters: Counters,
        tracker: Tracker | None,
        log: LogFile,
        loop: asyncio.AbstractEventLoop,
        project_dir: str | None,
    ) -> None:
        self.heads = Heads(condition.spec.version[:8])
        self.limits = Limits()
        self.shapes = KnownHeads()
        self.draining = False
        self.connections: set[Connection] = set()
        self.huge = False
        self.predictor: Predictor | None = None
        self.hint: Callable[[BaseException], str] = lambda error: ""
        """What a handler can do about an error of its own, for the log."""
        self._protocol = protocol
        self._endpoint = route_path(condition.spec.api).encode()
        self._below = {self._endpoint + path: other for path, other in below.items()}
        self._condition = condition
        self._in_flight = cast("dict[Exchange, None]", condition.in_flight)  # only we add to it
        self._in_hand = condition.in_hand
        self._counters = counters
        self._tracker = tracker
        self._log = log
        self._loop = loop
        self._project_dir = project_dir
        self._was_long = False
        """Whether the request answered last took longer than `LONG_S`."""

    # ---- for connections ----------------------------------------------------------------------------------------

    def handle(self, exchange: Exchange) -> None:
        exchange.started_s = perf_counter()
        if exchange.target == self._endpoint and exchange.method == b"POST" and exchange.refusal is None:
            exchange.protocol = self._protocol  # nearly always
        elif not self._is_prediction(exchange):
            return
        if self._was_long and exchange.connection.peer_is_gone():
            exchange.answered = True
            if not exchange.uncounted:
                self.never_started(1)
            return
        in_flight = self._in_flight
        if len(in_flight) >= MAX_IN_FLIGHT:
            self.fail(exchange, Overloaded(f"more than {MAX_IN_FLIGHT} requests are in flight here"))
            return
        if exchange.uncounted:
            self.predictor.workload.uncounted_begun += 1  # type: ignore[union-attr]  # as below
        in_flight[exchange] = None
        if self._condition.rests:
            self._condition.stir()
        exchange.place = self._in_hand.take(exchange.id_bytes, exchange.started_s)
        self.predictor.start(exchange)  # type: ignore[union-attr]  # one check a request for nothing

    def _is_prediction(self, exchange: Exchange) -> bool:
        """Give an exchange its protocol, and answer it if it is none of a prediction."""
        protocol = exchange.protocol = self._protocol_at(exchange.path)
        try:
            if exchange.refusal is not None:
                raise exchange.refusal
            message = protocol.answer(exchange)
        except Exception as error:
            self.fail(exchange, error)
            return False
        if message is not None:
            self._answer(exchange, *message, counted=False)
            return False
        if b"?" in exchange.target and wants_debug(exchange.query):
            exchange.trace = Trace(self._log, exchange.id)
        return True

    def _protocol_at(self, path: bytes) -> HttpProtocol:
        for begin, protocol in self._below.items():
            if path.startswith(begin) and path[len(begin) : len(begin) + 1] in (b"", b"/"):
                return protocol
        return self._protocol

    def gone(self, exchange: Exchange) -> None:
        if exchange.answered:
            return
        counted = not exchange.uncounted
        self._counters.abandoned += counted
        exchange.answered = True
        if exchange.timer is not None:
            exchange.timer.cancel()
        if exchange.cancel is not None:
            self._counters.dropped += counted
            exchange.cancel()
            self.release(exchange)

    def never_started(self, count: int) -> None:
        self._counters.abandoned += count
        self._counters.dropped += count

    def cancel_rest(self) -> None:
        """Give up everything that is in flight."""
        left = list(self._in_flight)
        if left:
            self._log.record("log", "WARNING", f"drain: out of time; {len(left)} requests are cancelled", "")
        for exchange in left:
            if exchange.cancel is not None:
                exchange.cancel()
            self.fail(exchange, ReplicaEnding())

    # ---- for predictors -----------------------------------------------------------------------------------------

    def finish(self, exchange: Exchange, answer: bytes | Message) -> None:
        duration_s = perf_counter() - exchange.started_s
        if duration_s > exchange.timeout_s and not exchange.answered:
            self.fail(exchange, _out_of_time(exchange))  # nobody could tell before: the loop was busy
            return
        if isinstance(answer, bytes):
            delivered = self._answer(exchange, 200, JSON, answer, b"", True, duration_s)
        else:
            delivered = self._answer(exchange, *answer, duration_s=duration_s)
        tracker = self._tracker
        if not delivered or tracker is None:
            return
        try:
            if exchange.rows is None:
                tracker.track_response(exchange.result)
            else:
                tracker.track_prediction(exchange.result, exchange.rows)
        except Exception as error:  # a result's own classes may do anything when looked at
            self._log.record("log", "WARNING", f"tracker: {type(error).__name__}: {error}", exchange.id)

    def fail(self, exchange: Exchange, error: BaseException) -> None:
        if exchange.warmup and exchange.failure is None:  # what was answered, not what came of that
            # Only the rehearsal asks. The traceback's frames hold the exchange, so a request's body would stay in
            # memory until the garbage collector finds the cycle, which with few requests is never.
            exchange.failure = error
        fault = describe(error)
        if fault.status >= 500 and not isinstance(error, ReplicaEnding | asyncio.CancelledError):
            self._log_failure(exchange, fault, error)
        elif isinstance(error, BodyTooLarge | RequestStalled) and not exchange.warmup:
            # Who is still sending may only see the connection close.
            self._log.record("log", "WARNING", f"{fault.code}: {fault.message}", exchange.id)
        if exchange.answered:
            return
        protocol: HttpProtocol = exchange.protocol  # type: ignore[assignment]  # we gave it
        self._answer(exchange, *protocol.refuse(exchange, fault), counted=exchange.method not in (b"GET", b"HEAD"))

    def release(self, exchange: Exchange) -> None:
        if self._in_flight.pop(exchange, exchange) is None:  # the first time
            self.predictor.workload.note_end(exchange)  # type: ignore[union-attr]  # as in `handle`
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
        headers: bytes = b"",
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
        self._was_long = duration_s > LONG_S
        connection = exchange.connection
        # Too late, and the ingress has answered in our place: it has also counted the request.
        given_up = duration_s > exchange.timeout_s > 0 and connection.peer_has_left()
        delivered = connection.respond(exchange, status, content_type, body, headers) and not given_up
        if not counted or exchange.uncounted:
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

    def _log_failure(self, exchange: Exchange, fault: Fault, error: BaseException) -> None:
        """The whole story into the log, with the user's own frames first."""
        cause = error.cause if isinstance(error, HookFailed | ModelFailed) and error.cause is not None else error
        if fault.code == "internal-error":
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
        text = "\n".join(filter(None, (f"{fault.code}: {as_called(str(error))}", trace, self.hint(cause))))
        self._log.record("log", "ERROR", text, exchange.id)


def _out_of_time(exchange: Exchange) -> OutOfTime:
    return OutOfTime(f"no answer within {exchange.timeout_s:g} s, which is the api's `timeout` in cortex.yaml")
