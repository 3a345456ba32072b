"""The rehearsal before a replica gets traffic. It shows that the sample works, and how long the model takes."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter
from typing import Any

import msgspec
import orjson

from cortex.errors import CortexError, Problem
from cortex.replica.backends.base import Backend, InferenceFailed
from cortex.replica.backends.made_up_feeds import accepted_feeds, refusal
from cortex.replica.calls import Call, OutOfTime
from cortex.replica.handler.foresight import advice_for
from cortex.replica.handler.hooks import HookFailed
from cortex.replica.inspection.made_up import forms
from cortex.replica.inspection.rehearsal import Rehearsal, Rehearsed
from cortex.replica.observation.tracebacks import format_user_traceback, user_location
from cortex.replica.observation.tracker import Mismatch, Tracker
from cortex.replica.prediction.inference import Inference
from cortex.replica.prediction.pipeline import ModelFailed
from cortex.replica.protocols.cortex import Introduction
from cortex.replica.tensors.conversion import Feeds
from cortex.wire.build import Sample
from cortex.wire.launch import ReplicaSpec

MAX_SHOWN_SAMPLE_BYTES = 16 * 1024
"""A larger sample is not repeated by GET."""
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


class WarmUp:
    """Warms up one replica."""

    def __init__(
        self,
        spec: ReplicaSpec,
        *,
        backend: Backend,
        has_hooks: bool,
        inference: Inference,
        tracker: Tracker | None,
        rehearsal: Rehearsal,
    ) -> None:
        self._spec = spec
        self._backend = backend
        self._has_hooks = has_hooks
        self._inference = inference
        self._tracker = tracker
        self._rehearsal = rehearsal
        self._unproven = ""
        self.warnings: list[Problem] = []

    def run(self) -> Introduction:
        """
        Try the sample or a made-up input, and measure.

        Raises:
            SampleRefused: a sample that gates was not answered with 2xx.
        """
        sample = self._spec.sample
        shown: Any = None
        self._unproven = _NO_SAMPLE
        feeds: Feeds | None = None
        with self._inference.watched() as seen:
            if sample is not None:
                shown = self._try_sample(sample)
                feeds = seen[-1] if seen else None
            if feeds is None:
                feeds = self._accepted()
                if feeds is None and sample is None:
                    self.warnings.append(_not_tried(refusal(self._backend)))
                if feeds is not None and sample is None and not self._has_hooks:
                    shown = self._prove(feeds)
        if feeds is not None:
            self._measure(feeds)
        described = Introduction(self._describe(shown), unproven=self._unproven)
        return described if sample is None else described._replace(sample_type=sample.content_type)

    def _try_sample(self, sample: Sample) -> Any:
        """Returns what GET shows of the sample: nothing if it did not work."""
        try:
            body = self._read_body()
        except OSError as error:
            return self._untried(sample, error)
        timeout_s = sample.timeout_s or self._spec.start_timeout_s
        answer = self._rehearsal.ask(body, sample.content_type, timeout_s)
        if isinstance(answer.call.failure, OutOfTime) and sample.gate:
            # the first run of all may be slower than any after it
            answer = self._rehearsal.ask(body, sample.content_type, timeout_s)
        if not answer.ok:
            problem = self._refusal(answer, gate=sample.gate)
            if sample.gate:
                raise SampleRefused(problem)
            self.warnings.append(problem)
            self._unproven = f"{problem.message}; {_NO_SAMPLE}"
            return None
        self._unproven = ""
        mismatch = self._never_tracked(answer.call)
        if mismatch is not None:
            problem = Problem(
                reference="tracker-never-matches",
                message=f"the tracker can never match what the sample was answered: {mismatch.reason}",
                hint=mismatch.hint,
            )
            if sample.gate:
                raise SampleRefused(problem)
            self.warnings.append(problem)
        if len(body) > MAX_SHOWN_SAMPLE_BYTES or "json" not in sample.content_type:
            return None
        try:
            return orjson.loads(body)
        except orjson.JSONDecodeError:
            return None

    def _read_body(self) -> bytes:
        if self._spec.sample_path is None:
            raise FileNotFoundError("it is damaged, or gone")
        return Path(self._spec.sample_path).read_bytes()

    def _untried(self, sample: Sample, error: OSError) -> None:
        """A sample whose stored body cannot be read says nothing about the api."""
        problem = Problem(
            reference="sample-lost",
            message=f"the stored sample cannot be read, so it is untried: {error.strerror or error}",
            hint="deploy again, which brings it back",
        )
        if sample.gate:
            raise SampleRefused(problem)
        self.warnings.append(problem)

    def _accepted(self) -> Feeds | None:
        try:
            return accepted_feeds(self._backend)
        except Exception:  # it only tries
            return None

    def _prove(self, feeds: Feeds) -> Any:
        """A made-up input as JSON, if that really is answered."""
        for value in forms(self._backend.signature, feeds):
            answered, shown = self._rehearsal.ask_value(value, MAX_SHOWN_SAMPLE_BYTES, self._spec.start_timeout_s)
            if answered:
                self._unproven = ""
                return shown
        return None

    def _never_tracked(self, call: Call) -> Mismatch | None:
        """Why the tracker counts neither what a call was answered nor anything like it; None if it may."""
        if self._tracker is None or call.failure is not None:
            return None
        try:
            if call.rows is None:
                return self._tracker.never_counts(call.result)
            return self._tracker.never_counts_prediction(call.result, call.rows)
        except Exception:  # a result's own classes may do anything when looked at
            return None

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

    def _refusal(self, answer: Rehearsed, *, gate: bool) -> Problem:
        advice = answer.hint
        failure = answer.call.failure
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
            message=f"the sample was answered with {answer.said}",
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
