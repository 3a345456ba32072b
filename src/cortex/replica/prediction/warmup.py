"""The rehearsal before a replica gets traffic. It shows that the sample works, and how long the model takes."""

from __future__ import annotations

import asyncio
from time import perf_counter
from typing import Any

import msgspec
import orjson

from cortex.errors import CortexError, Problem
from cortex.replica.backends.base import Backend, InferenceFailed
from cortex.replica.backends.made_up_feeds import accepted_feeds, refusal
from cortex.replica.handler.foresight import advice_for
from cortex.replica.handler.hooks import Handler, HookFailed
from cortex.replica.inspection.made_up import forms
from cortex.replica.observation.tracebacks import format_user_traceback, user_location
from cortex.replica.prediction.inference import Inference
from cortex.replica.prediction.predictors import ModelFailed, Predictor, hide_loop
from cortex.replica.protocols.results import encode
from cortex.replica.tensors.conversion import Feeds
from cortex.replica.transport.http import Exchange
from cortex.replica.transport.server import OutOfTime, Service
from cortex.wire.build import Sample
from cortex.wire.launch import ReplicaSpec

MAX_SHOWN_SAMPLE_BYTES = 16 * 1024
"""A larger sample is not repeated by GET."""
_SHOWN_ANSWER_CHARS = 500
_QUICK_S = 0.1
"""A model that takes longer is timed once: nobody wants to wait for statistics."""


class SampleRefused(CortexError):
    """The gate is shut: the api's own sample was not answered with 2xx, or with nothing that its tracker counts."""

    reference = "sample-failed"

    def __init__(self, problem: Problem) -> None:
        self.problem_ = problem
        super().__init__(problem.message)

    def problem(self) -> Problem:
        return self.problem_


class Answer:
    """Plays the connection of a rehearsed request, and keeps the answer."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.status = 0
        self.body = b""

    @property
    def ok(self) -> bool:
        return 200 <= self.status <= 299

    def respond(self, exchange: Exchange, status: int, content_type: bytes, body: bytes, extra: bytes = b"") -> bool:
        self.status, self.body = status, body
        self._loop.stop()
        return True

    def peer_has_left(self) -> bool:
        return False


def rehearse(
    service: Service,
    predictor: Predictor,
    loop: asyncio.AbstractEventLoop,
    *,
    body: bytes,
    content_type: str,
    timeout_s: float,
) -> tuple[Answer, Exchange]:
    """Send one request through everything that a real one goes through, but the socket and the counters."""
    answer = Answer(loop)
    exchange = Exchange(answer)
    exchange.method, exchange.target = b"POST", b"/"
    exchange.take_headers({b"content-type": content_type.encode("latin-1", "replace")})
    exchange.body = body
    exchange.id, exchange.id_bytes = "warmup", b"warmup"
    exchange.timeout_s, exchange.max_body_bytes = timeout_s, 2**62
    exchange.warmup = True
    if predictor.hides_loop:
        loop.call_soon(hide_loop)
    loop.call_soon(service.handle, exchange)
    loop.run_forever()
    return answer, exchange


class WarmUp:
    """
    Warms up one replica.

    Args:
        service: with its predictor set.
    """

    def __init__(
        self,
        spec: ReplicaSpec,
        *,
        backend: Backend,
        handler: Handler | None,
        inference: Inference,
        service: Service,
        predictor: Predictor,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._spec = spec
        self._backend = backend
        self._has_handler = handler is not None and (handler.pre is not None or handler.post is not None)
        self._inference = inference
        self._service = service
        self._predictor = predictor
        self._loop = loop
        self.warnings: list[Problem] = []

    def run(self) -> None:
        """
        Try the sample or a made-up input, measure, and write what GET answers.

        Raises:
            SampleRefused: a sample that gates was not answered with 2xx.
        """
        sample = self._spec.sample
        shown: Any = None
        self._service.unproven = _NO_SAMPLE
        feeds: Feeds | None = None
        with self._inference.watched() as seen:
            if sample is not None:
                shown = self._try_sample(sample)
                feeds = seen[-1] if seen else None
            if feeds is None:
                feeds = self._accepted()
                if feeds is None and sample is None:
                    self.warnings.append(_not_tried(refusal(self._backend)))
                if feeds is not None and sample is None and not self._has_handler:
                    shown = self._prove(feeds)
        if feeds is not None:
            self._measure(feeds)
        self._service.description = self._describe(shown)
        if sample is not None:
            self._service.sample_type = sample.content_type

    def _try_sample(self, sample: Sample) -> Any:
        """Returns what GET shows of the sample: nothing if it did not work."""
        timeout_s = sample.timeout_s or self._spec.start_timeout_s
        answer, exchange = self._rehearse(sample.body, sample.content_type, timeout_s)
        if (
            isinstance(exchange.failure, OutOfTime) and sample.gate
        ):  # the first run of all may be slower than any after it
            answer, exchange = self._rehearse(sample.body, sample.content_type, timeout_s)
        if not answer.ok:
            problem = self._refusal(answer, exchange, gate=sample.gate)
            if sample.gate:
                raise SampleRefused(problem)
            self.warnings.append(problem)
            self._service.unproven = f"{problem.message}; {_NO_SAMPLE}"
            return None
        self._service.unproven = ""
        mismatch = self._service.never_tracked(exchange)
        if mismatch is not None:
            problem = Problem(
                reference="tracker-never-matches",
                message=f"the tracker can never match what the sample was answered: {mismatch.reason}",
                hint=mismatch.hint,
            )
            if sample.gate:
                raise SampleRefused(problem)
            self.warnings.append(problem)
        if len(sample.body) > MAX_SHOWN_SAMPLE_BYTES or "json" not in sample.content_type:
            return None
        try:
            return orjson.loads(sample.body)
        except orjson.JSONDecodeError:
            return None

    def _accepted(self) -> Feeds | None:
        try:
            return accepted_feeds(self._backend)
        except Exception:  # it only tries
            return None

    def _prove(self, feeds: Feeds) -> Any:
        """A made-up input as JSON, if that really is answered."""
        for value in forms(self._backend.signature, feeds):
            try:
                body = encode(value)
            except CortexError:
                continue
            if len(body) > MAX_SHOWN_SAMPLE_BYTES:
                continue
            answer, _ = self._rehearse(body, "application/json", self._spec.start_timeout_s)
            if answer.ok:
                self._service.unproven = ""
                return orjson.loads(body)
        return None

    def _rehearse(self, body: bytes, content_type: str, timeout_s: float) -> tuple[Answer, Exchange]:
        return rehearse(
            self._service,
            self._predictor,
            self._loop,
            body=body,
            content_type=content_type,
            timeout_s=timeout_s,
        )

    def _measure(self, feeds: Feeds) -> None:
        """Time the model, so that the first real request already runs in the right place."""
        durations_s = []
        for _ in range(3):
            started_s = perf_counter()
            try:
                self._backend.run(feeds)
            except InferenceFailed:
                return
            durations_s.append(perf_counter() - started_s)
            if durations_s[-1] > _QUICK_S:
                break
        self._inference.seed(min(durations_s))

    def _refusal(self, answer: Answer, exchange: Exchange, *, gate: bool) -> Problem:
        said, advice = _said(answer.body)
        failure = exchange.failure
        cause: BaseException | None = None
        if isinstance(failure, HookFailed | ModelFailed):
            cause = failure.cause
        project_dir = self._spec.project_dir
        mend = "mend the handler, or the sample"
        if isinstance(failure, OutOfTime):
            mend = "raise `timeout:`, or make it faster"
        is_users = isinstance(failure, HookFailed) and cause is not None
        if is_users and cause is not None:
            advice = advice_for(cause) or advice
        return Problem(
            reference=SampleRefused.reference,
            message=f"the sample was answered with {answer.status}{said}",
            where=user_location(cause, project_dir) if is_users and cause is not None else "",
            traceback=format_user_traceback(cause, project_dir) if is_users and cause is not None else "",
            hint=advice or (f"{_GATE}: {mend}" if gate else ""),
        )

    def _describe(self, sample: Any) -> dict[str, Any]:
        signature = self._backend.signature
        description: dict[str, Any] = {
            "api": self._spec.api,
            "version": self._spec.version[:8],
            "inputs": msgspec.to_builtins(signature.inputs),
            "outputs": msgspec.to_builtins(signature.outputs),
        }
        if sample is not None:
            description["sample"] = sample
        return description


def _said(body: bytes) -> tuple[str, str]:
    """What an answer that is an error says, in words, to stand behind its status; and the advice that it has."""
    try:
        facts = orjson.loads(body)
    except orjson.JSONDecodeError:  # a handler's own text
        facts = {"message": body.decode("utf-8", "replace").strip()}
    if not isinstance(facts, dict):
        return "", ""
    code = str(facts["error"]) if "error" in facts and "message" in facts else ""
    text = str(facts.get("message") or facts.get("error") or "")
    text = text if len(text) <= _SHOWN_ANSWER_CHARS else text[:_SHOWN_ANSWER_CHARS] + "…"
    advice = facts.get("hint")
    said = f" ({code}): {text}" if code else f": {text}"
    return said if text else "", advice if isinstance(advice, str) else ""


_GATE = "a new version must answer its sample with 2xx before it replaces anything"
_NO_SAMPLE = "no request is known that this api answers: `sample:` in cortex.yaml names one"


def _not_tried(reason: str) -> Problem:
    """`reason`: what the model said of the first input that was made up."""
    return Problem(
        reference="not-warmed-up",
        message="the model accepted none of the inputs that were made up for it, so it is untried"
        + (f"; of the first it said: {reason}" if reason else ""),
        hint="add `sample:` to the api in cortex.yaml",
    )
