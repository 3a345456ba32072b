"""What a rehearsal finds out, with a model whose every answer is known."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import msgspec
import numpy as np
import orjson
import pytest
import uvloop

from cortex.errors import RequestError, Response
from cortex.ids import ApiKey, ReplicaId, Revision, Version
from cortex.replica.backends.base import InferenceFailed
from cortex.replica.handler.hooks import Handler, Hook
from cortex.replica.observation.stats import Counters
from cortex.replica.observation.tracker import Tracker
from cortex.replica.prediction.inference import INLINE_BELOW_S, Inference
from cortex.replica.prediction.predictors import Steps, build_predictor
from cortex.replica.prediction.warmup import SampleRefused, WarmUp
from cortex.replica.process.condition import Condition
from cortex.replica.transport.http import Exchange
from cortex.replica.transport.server import Service
from cortex.wire.batching import BatchingOrder
from cortex.wire.build import Sample, TrackerConfig
from cortex.wire.launch import ReplicaSpec
from cortex.wire.signature import Signature, TensorSpec


class Backend:
    """Takes rows of two numbers that are all below a limit, and as long as it is told, by a watch of its own."""

    takes_bytes: ClassVar[bool] = False
    signature = Signature((TensorSpec("x", "float32", (None, 2)),), (TensorSpec("y", "float32", (None, 2)),))
    metadata_inputs = metadata_outputs = None
    runtime = "fake 1.0, cpu, 1 thread"

    def __init__(self) -> None:
        self.limit = 1e9
        self.run_s = self.now_s = 0.0
        self.rows: list[int] = []

    def run(self, feeds: Mapping[str, Any]) -> Sequence[Any]:
        self.now_s += self.run_s
        self.rows.append(len(feeds["x"]))
        if (feeds["x"] >= self.limit).any():
            raise InferenceFailed("too large")
        return [feeds["x"] * 2]

    def present(self, outputs: Sequence[Any], feeds: Mapping[str, Any]) -> Any:
        return outputs

    def plain(self, prediction: Any) -> Any:
        return prediction

    def close(self) -> None:
        pass


class Log:
    def record(self, *_: Any) -> None:
        pass


class Streams:
    def finish_lines(self, request: str) -> None:
        pass


class Rehearsal:
    """Everything that a warm-up needs, around one backend."""

    def __init__(self, tracker: TrackerConfig | None = None, **fields: Any) -> None:
        self.backend = Backend()
        self.loop = uvloop.new_event_loop()
        self.counters = Counters()
        self.spec = ReplicaSpec(
            replica=ReplicaId("t.a.0.0"),
            attempt=1,
            api=ApiKey("t/a"),
            version=Version("1" * 64),
            revision=Revision("2" * 64),
            home="/h",
            model_format="onnx",
            model_path="/m",
            **fields,
        )
        condition = Condition(self.spec)
        self.inference = Inference(
            self.backend.run,
            signature=self.backend.signature,
            batching=condition.batching,
            loop=self.loop,
            say=lambda level, text: None,
            announce=lambda: None,
        )
        self.service = Service(
            condition=condition,
            counters=self.counters,
            tracker=None
            if tracker is None
            else Tracker(tracker, output_names=["y"], warn=lambda text: None, monotonic_s=lambda: 0.0),
            log=Log(),  # type: ignore[arg-type]
            loop=self.loop,
            project_dir=None,
        )

    def run(self, pre: Any = None, post: Any = None) -> WarmUp:
        handler = Handler(
            pre=Hook("pre_inference", pre) if pre else None, post=Hook("post_inference", post) if post else None
        )
        predictor = build_predictor(
            Steps(self.backend, handler, tracks=False),
            self.inference,
            is_async=handler.is_async,
            concurrency=None,
            desk=self.service,
            loop=self.loop,
            streams=Streams(),  # type: ignore[arg-type]
        )
        self.service.predictor = predictor
        warm_up = WarmUp(
            self.spec,
            backend=self.backend,
            handler=handler,
            inference=self.inference,
            service=self.service,
            predictor=predictor,
            loop=self.loop,
        )
        warm_up.run()
        assert sum(self.counters.by_class) == 0
        return warm_up


@pytest.fixture
def rehearse() -> Iterator[Callable[..., Rehearsal]]:
    made: list[Rehearsal] = []

    def rehearse(**fields: Any) -> Rehearsal:
        made.append(Rehearsal(**fields))
        return made[-1]

    yield rehearse
    for each in made:
        each.loop.close()


Make = Callable[..., Rehearsal]


def pre(sample: Any, metadata: Any) -> Any:
    return sample["x"]


async def async_pre(sample: Any, metadata: Any) -> Any:
    return sample["x"]


def test_without_a_sample_one_is_made_up_proven_and_shown(rehearse: Make) -> None:
    rehearsal = rehearse()
    assert rehearsal.run().warnings == []
    sample = rehearsal.service.description["sample"]
    assert np.shape(sample) == (1, 2)
    described = orjson.loads(orjson.dumps(rehearsal.service.description))
    assert described["inputs"] == [{"name": "x", "dtype": "float32", "shape": [None, 2]}]


def test_what_was_not_proven_with_the_handler_is_not_shown(rehearse: Make) -> None:
    rehearsal = rehearse()
    assert rehearsal.run(pre).warnings == []
    assert "sample" not in rehearsal.service.description


def test_a_model_that_refuses_everything_made_up_only_warns(rehearse: Make) -> None:
    rehearsal = rehearse()
    rehearsal.backend.limit = -1
    (warning,) = rehearsal.run().warnings
    assert warning.reference == "not-warmed-up"
    assert "sample:" in warning.hint


@pytest.mark.parametrize("hook", [pre, async_pre])
def test_a_sample_goes_through_handler_and_model(rehearse: Make, hook: Any) -> None:
    rehearsal = rehearse(sample=Sample(body=b'{"x": [3, 4]}', gate=True))
    assert rehearsal.run(hook).warnings == []
    assert rehearsal.service.description["sample"] == {"x": [3, 4]}


@pytest.mark.parametrize(
    ("hook", "status"),
    [
        (lambda sample, metadata: 1 / 0, 500),
        (lambda sample, metadata: [1, 2, 3], 422),
        (lambda sample, metadata: [10, 10], 500),
    ],
)
@pytest.mark.parametrize("gate", [True, False])
def test_a_sample_that_is_not_answered_shuts_the_gate_or_warns(
    rehearse: Make, hook: Any, status: int, gate: bool
) -> None:
    rehearsal = rehearse(sample=Sample(body=b"[1, 2]", gate=gate))
    rehearsal.backend.limit = 5
    if gate:
        with pytest.raises(SampleRefused) as caught:
            rehearsal.run(hook)
        problem = caught.value.problem()
    else:
        (problem,) = rehearsal.run(hook).warnings
        assert "sample" not in rehearsal.service.description
    assert problem.reference == "sample-failed"
    assert f"answered with {status}" in problem.message
    assert ("ZeroDivisionError" in problem.traceback) is ("ZeroDivisionError" in problem.message)


@pytest.mark.parametrize("slow_times", [1, 2])
@pytest.mark.parametrize("is_async", [False, True])
def test_a_sample_has_the_apis_timeout_and_a_second_try_as_the_first_run_is_the_slowest(
    rehearse: Make, is_async: bool, slow_times: int
) -> None:
    calls: list[int] = []

    def slow_at_first(sample: Any, metadata: Any) -> Any:
        calls.append(1)
        if len(calls) <= slow_times:
            time.sleep(0.02)
        return sample

    async def async_slow_at_first(sample: Any, metadata: Any) -> Any:
        calls.append(1)
        if len(calls) <= slow_times:
            await asyncio.sleep(1000)
        return sample

    rehearsal = rehearse(sample=Sample(body=b"[1, 2]", gate=True, timeout_s=0.01))
    hook = async_slow_at_first if is_async else slow_at_first
    if slow_times == 1:
        # What is quick enough may still take longer than that here: only that it was tried again is certain.
        with contextlib.suppress(SampleRefused):
            rehearsal.run(hook)
    else:
        with pytest.raises(SampleRefused, match=r"504.*no answer within 0\.01 s, which is") as found:
            rehearsal.run(hook)
        assert "raise `timeout:`" in found.value.problem().hint
    assert len(calls) == 2


def test_a_sample_that_guards_nothing_is_tried_once_and_only_warned_of(rehearse: Make) -> None:
    calls: list[int] = []

    async def too_slow(sample: Any, metadata: Any) -> Any:
        calls.append(1)
        await asyncio.sleep(1000)

    rehearsal = rehearse(sample=Sample(body=b"[1, 2]", timeout_s=0.01))
    assert [warning.reference for warning in rehearsal.run(too_slow).warnings] == ["sample-failed"]
    assert len(calls) == 1


def test_a_handler_that_refuses_its_own_sample_shuts_the_gate(rehearse: Make) -> None:
    def refuse(*_: Any) -> Any:
        raise RequestError(400, "never good enough")

    with pytest.raises(SampleRefused, match="answered with 400"):
        rehearse(sample=Sample(body=b"1", gate=True)).run(refuse)


def test_a_gate_says_what_failed_and_the_line_to_write(rehearse: Make) -> None:
    rehearsal = rehearse(sample=Sample(body=b"[1, 2]", gate=True))
    with pytest.raises(SampleRefused) as caught:
        rehearsal.run(post=lambda prediction, metadata: prediction[0].index(2))
    problem = caught.value.problem()
    assert problem.message == (
        "the sample was answered with 500 (handler-failed): post_inference raised AttributeError: "
        "'numpy.ndarray' object has no attribute 'index'"
    )
    assert problem.hint == "outputs are numpy arrays: write `.tolist()` before `.index`"
    rehearsal = rehearse(sample=Sample(body=b"[1, 2]", gate=True))
    rehearsal.backend.limit = 2.0
    with pytest.raises(SampleRefused, match=r"with 500 \(model-failed\): .*too large"):
        rehearsal.run()


@pytest.mark.parametrize("gate", [True, False])
@pytest.mark.parametrize(
    ("tracker", "result", "message", "hint"),
    [
        (TrackerConfig(model_type="classification"), {"label": "a"}, "found an object", "add `key:` below `tracker:`"),
        (TrackerConfig(model_type="classification", key="x"), {"label": "a"}, 'no key "x"', "set `key:` to"),
        (TrackerConfig(model_type="regression"), "a", "found str", "model_type: classification"),
    ],
)
def test_a_tracker_that_cannot_count_what_the_sample_is_answered_shuts_the_gate_or_warns(
    rehearse: Make, tracker: TrackerConfig, result: Any, message: str, hint: str, gate: bool
) -> None:
    rehearsal = rehearse(tracker=tracker, sample=Sample(body=b"[1, 2]", gate=gate))
    if gate:
        with pytest.raises(SampleRefused) as caught:
            rehearsal.run(post=lambda prediction, metadata: result)
        problem = caught.value.problem()
    else:
        (problem,) = rehearsal.run(post=lambda prediction, metadata: result).warnings
        assert rehearsal.service.description["sample"] == [1, 2], "it was answered all the same"
    assert problem.reference == "tracker-never-matches"
    assert message in problem.message
    assert hint in problem.hint


def test_a_tracker_without_a_handler_is_tried_on_what_the_model_answers(rehearse: Make) -> None:
    never = TrackerConfig(model_type="classification")
    with pytest.raises(SampleRefused, match="expected text or an integer, found an array of shape"):
        rehearse(tracker=never, sample=Sample(body=b"[1, 2]", gate=True)).run()
    counted = TrackerConfig(model_type="regression")
    rehearse(tracker=counted, sample=Sample(body=b"[1, 2]", gate=True)).run(post=lambda p, m: p[0].sum())


def test_what_was_not_answered_is_not_called_working(rehearse: Make) -> None:
    for sample, post, told in (
        (b"[1, 2, 3]", None, "the sample was answered with 422 (input-mismatch): "),
        (b"[1, 2]", lambda prediction, metadata: {}["a"], "the sample was answered with 500 (handler-failed): "),
        (None, lambda prediction, metadata: prediction, "no request is known that this api answers"),
    ):
        rehearsal = rehearse(sample=None if sample is None else Sample(body=sample, gate=False))
        rehearsal.run(post=post)
        assert rehearsal.service.unproven.startswith(told)
    for fields in ({"sample": Sample(body=b"[1, 2]", gate=False)}, {}):
        rehearsal = rehearse(**fields)
        rehearsal.run()
        assert rehearsal.service.unproven == ""


def test_any_2xx_will_do(rehearse: Make) -> None:
    sample = Sample(body=b"[1, 2]", gate=True)
    warm_up = rehearse(sample=sample).run(post=lambda prediction, metadata: Response(b"", status=204))
    assert warm_up.warnings == []


def test_a_sample_that_is_no_json_opens_the_gate_and_is_not_shown(rehearse: Make) -> None:
    rehearsal = rehearse(sample=Sample(body=b"\xff\xd8", content_type="image/jpeg", gate=True))
    assert rehearsal.run(lambda sample, metadata: [len(sample), 0]).warnings == []
    assert "sample" not in rehearsal.service.description


@pytest.mark.parametrize(
    ("content_type", "call"),
    [
        ("image/jpeg", "curl http://here/t/a -H 'content-type: image/jpeg' --data-binary @FILE"),
        ("audio/wav", "curl http://here/t/a -H 'content-type: audio/wav' --data-binary @FILE"),
        ("application/json", "curl http://here/t/a -H 'content-type: application/json' -d '[1,2]'"),
    ],
)
def test_get_says_how_to_send_a_sample_of_its_kind(rehearse: Make, content_type: str, call: str) -> None:
    rehearsal = rehearse(sample=Sample(body=b"[1,2]", content_type=content_type, gate=True))
    rehearsal.run(lambda sample, metadata: [1, 2])
    exchange = Exchange(None)
    exchange.headers, exchange.target = {b"host": b"here"}, b"/t/a?debug=1"
    assert rehearsal.service.call_line(exchange) == call


def test_a_made_up_input_is_named_where_the_model_has_optional_ones_too(rehearse: Make) -> None:
    rehearsal = rehearse()
    optional = TensorSpec("y", "float32", (None, 2), optional=True)
    rehearsal.backend.signature = msgspec.structs.replace(
        Backend.signature, inputs=(*Backend.signature.inputs, optional)
    )
    assert rehearsal.run().warnings == []
    assert rehearsal.service.description["sample"] == {"x": [[0.85, 0.63]]}


@pytest.mark.parametrize(("run_s", "inline"), [(0.0, True), (3 * INLINE_BELOW_S, False)])
def test_the_model_is_timed_before_the_first_request(
    rehearse: Make, monkeypatch: pytest.MonkeyPatch, run_s: float, inline: bool
) -> None:
    rehearsal = rehearse()
    rehearsal.backend.run_s = run_s
    monkeypatch.setattr("cortex.replica.prediction.warmup.perf_counter", lambda: rehearsal.backend.now_s)
    rehearsal.run()
    assert rehearsal.inference.inline is inline


def test_no_replica_tries_rows_together(rehearse: Make) -> None:
    rehearsal = rehearse(batches=BatchingOrder(batches=True))
    rehearsal.run()
    assert set(rehearsal.backend.rows) == {1}
