"""
OpenTelemetry traces: a span for each prediction, and below it one for `pre_inference`, inference, `post_inference`.

Imported only in a replica whose environment asks for traces, and after the fork, since the exporter has a thread.
`TracedService` and `TracedPipeline` stand in for the plain ones, so that without traces nothing is asked on the way.

While a hook runs its span is the current one: calls that a handler makes carry it on (`traceparent`) if their library
is instrumented, and spans of its own are below it.

Source: W3C Trace Context, and OpenTelemetry's "Environment variable specification" and "Semantic conventions for HTTP
spans".
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from time import perf_counter
from typing import Any

from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, StatusCode

from cortex.errors import RequestError
from cortex.ids import route_path, short
from cortex.replica.backends.base import Backend
from cortex.replica.calls import Call
from cortex.replica.handler.hooks import Handler, Hook, HookFailed
from cortex.replica.observation.tracebacks import one_line
from cortex.replica.prediction.batching import Outputs
from cortex.replica.prediction.pipeline import ModelFailed, Pipeline
from cortex.replica.tensors.conversion import Feeds
from cortex.replica.transport.http import Exchange
from cortex.replica.transport.service import Service
from cortex.version import __version__
from cortex.wire.launch import ReplicaSpec

FLUSH_S = 1.0
"""How long the last spans may take to be sent when a replica ends: an absent collector must not hold up a drain."""


_BUILT_IN = {
    ("OTEL_TRACES_EXPORTER",): ("otlp",),
    ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"): ("http/protobuf",),
}
"""What these variables may say; of several the first that is set counts."""


class NotBuiltIn(ValueError):
    """A variable asks for something that is not here."""

    def __init__(self, variable: str, value: str, built_in: str) -> None:
        super().__init__(f"{variable} is {value}, and only {built_in} is built in")


class Request:
    """A prediction that is being traced."""

    __slots__ = ("context", "model_from_ns", "span")

    def __init__(self, span: Span, context: Context) -> None:
        self.span = span
        self.context = context
        """In which spans below this one are made."""
        self.model_from_ns = 0
        """When everything before the model was done; 0 before that."""


class Tracing:
    """
    Makes spans and sends them off. What and where to is in the process's `OTEL_…` variables.

    Raises:
        NotBuiltIn: the variables name another way of sending than OTLP over HTTP.
    """

    def __init__(self, spec: ReplicaSpec, environ: Mapping[str, str]) -> None:
        for names, built_in in _BUILT_IN.items():
            name = next((name for name in names if environ.get(name)), None)
            if name is not None and environ[name].strip().lower() not in built_in:
                raise NotBuiltIn(name, environ[name], built_in[0])
        attributes = {"service.version": short(spec.version), "service.instance.id": spec.replica}
        if not environ.get("OTEL_SERVICE_NAME") and f"{SERVICE_NAME}=" not in environ.get(
            "OTEL_RESOURCE_ATTRIBUTES", ""
        ):
            attributes[SERVICE_NAME] = spec.api
        self._provider = TracerProvider(resource=Resource.create(attributes), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        trace.set_tracer_provider(self._provider)  # handlers' own spans go the same way
        self._tracer = self._provider.get_tracer("cortex", __version__)
        self._route = route_path(spec.api)

    def pipeline(self, backend: Backend, handler: Handler | None, *, tracks: bool) -> TracedPipeline:
        return TracedPipeline(self, backend, handler, tracks=tracks)

    def service(self, **parts: Any) -> TracedService:
        return TracedService(self, **parts)

    def begin(self, call: Call) -> None:
        """Open the span of a prediction, below its caller's; it began when the whole request was there."""
        if call.answered or call.uncounted:  # the former: out of time while it waited for a thread
            return
        origin = call.origin()
        parent = propagate.extract(origin.carried)
        route = self._route + origin.below
        started_ns = time.time_ns() - int((perf_counter() - call.started_s) * 1e9)
        span = self._tracer.start_span(
            f"POST {route}",
            parent,
            SpanKind.SERVER,
            {"http.route": route, **origin.attributes, "cortex.request_id": call.id},
            start_time=started_ns,
        )
        call.span = Request(span, trace.set_span_in_context(span, parent))

    def model_next(self, request: Request | None) -> None:
        """Everything before the model is done."""
        if request is not None:
            request.model_from_ns = time.time_ns()

    def model_ended(self, request: Request | None, error: BaseException | None = None) -> None:
        """Make the span of inference, from when its input was ready: waiting for its turn and its batch included."""
        if request is None:
            return
        started_ns, request.model_from_ns = request.model_from_ns, 0
        if not started_ns:
            return
        span = self._tracer.start_span("inference", request.context, start_time=started_ns)
        if error is not None:
            _failed(span, error)
        span.end()

    @contextmanager
    def hook(self, request: Request, name: str) -> Iterator[None]:
        """The span of a hook, current while it runs."""
        with self._tracer.start_as_current_span(
            name, request.context, record_exception=False, set_status_on_exception=False
        ) as span:
            try:
                yield
            except HookFailed as error:
                _failed(span, error.cause or error)
                raise

    def failed(self, request: Request, error: BaseException) -> None:
        """An error is about to be answered."""
        if isinstance(error, ModelFailed):
            self.model_ended(request, error.cause)
        if not isinstance(error, RequestError):  # else it is the handler's answer
            request.span.record_exception(getattr(error, "cause", None) or error)

    def answered(self, call: Call, status: int | None) -> None:
        """A call has its answer, or (None) nobody waits for one any more: end its span."""
        request: Request | None = call.span
        if request is None:
            return
        call.span = None
        if status is None:
            request.span.set_status(StatusCode.ERROR, "the caller went away")
        else:
            request.span.set_attribute("http.response.status_code", status)
            if status >= 500:
                request.span.set_status(StatusCode.ERROR)
        request.span.end()

    def close(self) -> None:
        """Send what is left, if that takes no longer than `FLUSH_S`."""
        flushing = threading.Thread(target=self._provider.shutdown, name="cortex-traces", daemon=True)
        flushing.start()
        flushing.join(FLUSH_S)


class TracedPipeline(Pipeline):
    """A `Pipeline` that tells what it does. Warm-ups are not traced."""

    def __init__(self, tracing: Tracing, backend: Backend, handler: Handler | None, *, tracks: bool) -> None:
        super().__init__(backend, handler, tracks=tracks)
        self._tracing = tracing
        self.pre = self.pre and _TracedHook(tracing, self.pre)
        self.post = self.post and _TracedHook(tracing, self.post)

    def feeds(self, call: Call) -> Feeds:
        if call.span is None:
            self._tracing.begin(call)
        feeds = super().feeds(call)
        self._tracing.model_next(call.span)
        return feeds

    async def feeds_async(self, call: Call) -> Feeds:
        self._tracing.begin(call)
        feeds = await super().feeds_async(call)
        self._tracing.model_next(call.span)
        return feeds

    def answer(self, call: Call, outputs: Outputs, feeds: Feeds) -> Any:
        self._tracing.model_ended(call.span)
        return super().answer(call, outputs, feeds)

    async def answer_async(self, call: Call, outputs: Outputs, feeds: Feeds) -> Any:
        self._tracing.model_ended(call.span)
        return await super().answer_async(call, outputs, feeds)


class TracedService(Service):
    """Ends the span of each prediction with its answer."""

    def __init__(self, tracing: Tracing, **parts: Any) -> None:
        super().__init__(**parts)
        self._tracing = tracing

    def fail(self, exchange: Exchange, error: BaseException) -> None:
        if exchange.span is not None:
            self._tracing.failed(exchange.span, error)
        super().fail(exchange, error)

    def gone(self, exchange: Exchange) -> None:
        super().gone(exchange)
        self._tracing.answered(exchange, None)

    def _answer(self, exchange: Exchange, status: int, *more: Any, **options: Any) -> bool:
        delivered = super()._answer(exchange, status, *more, **options)
        self._tracing.answered(exchange, status)
        return delivered


class _TracedHook(Hook):
    """A hook whose calls are spans."""

    __slots__ = ("_tracing",)

    def __init__(self, tracing: Tracing, hook: Hook) -> None:
        super().__init__(hook.name, hook.function)
        self._tracing = tracing

    def call(self, value: Any, metadata: Any, call: Call) -> Any:
        request: Request | None = call.span
        if request is None:
            return super().call(value, metadata, call)
        with self._tracing.hook(request, self.name):
            return super().call(value, metadata, call)

    async def call_async(self, value: Any, metadata: Any, call: Call) -> Any:
        request: Request | None = call.span
        if request is None:
            return await super().call_async(value, metadata, call)
        with self._tracing.hook(request, self.name):
            return await super().call_async(value, metadata, call)


def _failed(span: Span, error: BaseException) -> None:
    span.record_exception(error)
    span.set_status(StatusCode.ERROR, one_line(error))
