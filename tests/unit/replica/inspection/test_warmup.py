"""What a rehearsal finds out, with a model whose every answer is known."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import numpy as np
import orjson
import pytest
import uvloop
from replica_doubles import Log, Streams

from cortex.errors import RequestError, Response
from cortex.ids import ApiKey, ReplicaId, Revision, Version
from cortex.replica.backends.base import InferenceFailed
from cortex.replica.handler.hooks import Handler, Hook
from cortex.replica.inspection.rehearsal import Rehearsal
from cortex.replica.inspection.warmup import SampleRefused, WarmUp
from cortex.replica.observation.stats import Counters
from cortex.replica.observation.tracker import Tracker
from cortex.replica.prediction.inference import INLINE_BELOW_S, Inference
from cortex.replica.prediction.pipeline import Pipeline
from cortex.replica.prediction.predictors import Around, build_predictor
from cortex.replica.process.condition import Condition
from cortex.replica.protocols.cortex import CortexProtocol, Introduction
from cortex.replica.transport.http import Exchange
from cortex.replica.transport.service import Service
from cortex.testing.builders import a_sample_at_hand
from cortex.wire.batching import BatchingOrder
from cortex.wire.build import TrackerConfig
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


def at_hand(folder: Path, fields: dict[str, Any]) -> dict[str, Any]:
    """Fields of a spec, of which `sample` is a body and how it is sent."""
    body, sample = fields.pop("sample", None) or (None, {})
    return fields if body is None else {**fields, **a_sample_at_hand(folder, body, **sample)}


def a_request(body: bytes, **fields: Any) -> tuple[bytes, dict[str, Any]]:
    return body, fields


class Replica:
    """A replica that warms up, around one backend."""

    def __init__(self, folder: Path, tracker: TrackerConfig | None = None, **fields: Any) -> None:
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
            runtime="onnx",
            model_path="/m",
            **at_hand(folder, fields),
        )
        self.tracker = (
            None
            if tracker is None
            else Tracker(tracker, output_names=["y"], warn=lambda text: None, monotonic_s=lambda: 0.0)
        )
        self.introduction = Introduction()

    def run(self, pre: Any = None, post: Any = None) -> WarmUp:
        handler = Handler(
            pre=Hook("pre_inference", pre) if pre else None, post=Hook("post_inference", post) if post else None
        )
        condition = Condition(self.spec)
        pipeline = Pipeline(self.backend, handler, tracks=self.tracker is not None)
        self.inference = Inference(
            self.backend.run,
            explain=pipeline.failed,
            signature=self.backend.signature,
            batching=condition.batching,
            loop=self.loop,
            say=lambda level, text: None,
            announce=lambda: None,
        )
        self.protocol = CortexProtocol(has_pre_inference=pre is not None)
        service = Service(
            protocol=self.protocol,
            below={},
            condition=condition,
            counters=self.counters,
            tracker=self.tracker,
            log=Log(),  # type: ignore[arg-type]
            loop=self.loop,
            project_dir=None,
        )
        predictor = build_predictor(
            Around(pipeline, self.inference, service, self.loop, Streams()),  # type: ignore[arg-type]
            is_async=handler.is_async,
            concurrency=None,
        )
        service.predictor = predictor
        warm_up = WarmUp(
            self.spec,
            backend=self.backend,
            has_hooks=pipeline.has_hooks,
            inference=self.inference,
            tracker=self.tracker,
            rehearsal=Rehearsal(service, predictor, self.loop),
        )
        self.introduction = self.protocol.introduction = warm_up.run()
        assert sum(self.counters.by_class) == 0
        return warm_up


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Replica]]:
    made: list[Replica] = []

    def build(**fields: Any) -> Replica:
        made.append(Replica(tmp_path, **fields))
        return made[-1]

    yield build
    for each in made:
        each.loop.close()


Make = Callable[..., Replica]


def pre(sample: Any, metadata: Any) -> Any:
    return sample["x"]


async def async_pre(sample: Any, metadata: Any) -> Any:
    return sample["x"]


@pytest.mark.parametrize("gate", [True, False])
def test_a_sample_whose_body_is_lost_says_nothing_about_the_api(make: Make, *, gate: bool) -> None:
    replica = make(sample=a_request(b'{"x": [3, 4]}', gate=gate))
    Path(replica.spec.sample_path or "").unlink()
    if gate:
        with pytest.raises(SampleRefused, match="the stored sample cannot be read"):
            replica.run(pre)
        return
    (warning,) = replica.run(pre).warnings
    assert (warning.reference, warning.hint) == ("sample-lost", "deploy again, which brings it back")
    assert "sample" not in replica.introduction.description


def test_without_a_sample_one_is_made_up_proven_and_shown(make: Make) -> None:
    replica = make()
    assert replica.run().warnings == []
    sample = replica.introduction.description["sample"]
    assert np.shape(sample) == (1, 2)
    described = orjson.loads(orjson.dumps(replica.introduction.description))
    assert described["inputs"] == [{"name": "x", "dtype": "float32", "shape": [None, 2]}]


def test_what_was_not_proven_with_the_handler_is_not_shown(make: Make) -> None:
    replica = make()
    assert replica.run(pre).warnings == []
    assert "sample" not in replica.introduction.description


def test_a_model_that_refuses_everything_made_up_only_warns(make: Make) -> None:
    replica = make()
    replica.backend.limit = -1
    (warning,) = replica.run().warnings
    assert warning.reference == "not-warmed-up"
    assert "sample:" in warning.hint


@pytest.mark.parametrize("hook", [pre, async_pre])
def test_a_sample_goes_through_handler_and_model(make: Make, hook: Any) -> None:
    replica = make(sample=a_request(b'{"x": [3, 4]}', gate=True))
    assert replica.run(hook).warnings == []
    assert replica.introduction.description["sample"] == {"x": [3, 4]}


@pytest.mark.parametrize(
    ("hook", "status"),
    [
        (lambda sample, metadata: 1 / 0, 500),
        (lambda sample, metadata: [1, 2, 3], 422),
        (lambda sample, metadata: [10, 10], 500),
    ],
)
@pytest.mark.parametrize("gate", [True, False])
def test_a_sample_that_is_not_answered_shuts_the_gate_or_warns(make: Make, hook: Any, status: int, gate: bool) -> None:
    replica = make(sample=a_request(b"[1, 2]", gate=gate))
    replica.backend.limit = 5
    if gate:
        with pytest.raises(SampleRefused) as caught:
            replica.run(hook)
        problem = caught.value.problem()
    else:
        (problem,) = replica.run(hook).warnings
        assert "sample" not in replica.introduction.description
    assert problem.reference == "sample-failed"
    assert f"answered with {status}" in problem.message
    assert ("ZeroDivisionError" in problem.traceback) is ("ZeroDivisionError" in problem.message)


@pytest.mark.parametrize("slow_times", [1, 2])
@pytest.mark.parametrize("is_async", [False, True])
def test_a_sample_has_the_apis_timeout_and_a_second_try_as_the_first_run_is_the_slowest(
    make: Make, is_async: bool, slow_times: int
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

    replica = make(sample=a_request(b"[1, 2]", gate=True, timeout_s=0.01))
    hook = async_slow_at_first if is_async else slow_at_first
    if slow_times == 1:
        # What is quick enough may still take longer than that here: only that it was tried again is certain.
        with contextlib.suppress(SampleRefused):
            replica.run(hook)
    else:
        with pytest.raises(SampleRefused, match=r"504.*no answer within 0\.01 s, which is") as found:
            replica.run(hook)
        assert "raise `timeout:`" in found.value.problem().hint
    assert len(calls) == 2


def test_a_sample_that_guards_nothing_is_tried_once_and_only_warned_of(make: Make) -> None:
    calls: list[int] = []

    async def too_slow(sample: Any, metadata: Any) -> Any:
        calls.append(1)
        await asyncio.sleep(1000)

    replica = make(sample=a_request(b"[1, 2]", timeout_s=0.01))
    assert [warning.reference for warning in replica.run(too_slow).warnings] == ["sample-failed"]
    assert len(calls) == 1


def test_a_handler_that_refuses_its_own_sample_shuts_the_gate(make: Make) -> None:
    def refuse(*_: Any) -> Any:
        raise RequestError(400, "never good enough")

    with pytest.raises(SampleRefused, match="answered with 400"):
        make(sample=a_request(b"1", gate=True)).run(refuse)


def test_a_gate_says_what_failed_and_the_line_to_write(make: Make) -> None:
    replica = make(sample=a_request(b"[1, 2]", gate=True))
    with pytest.raises(SampleRefused) as caught:
        replica.run(post=lambda prediction, metadata: prediction[0].index(2))
    problem = caught.value.problem()
    assert problem.message == (
        "the sample was answered with 500 (handler-failed): post_inference raised AttributeError: "
        "'numpy.ndarray' object has no attribute 'index'"
    )
    assert problem.hint == "outputs are numpy arrays: write `.tolist()` before `.index`"
    replica = make(sample=a_request(b"[1, 2]", gate=True))
    replica.backend.limit = 2.0
    with pytest.raises(SampleRefused, match=r"with 500 \(model-failed\): .*too large"):
        replica.run()


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
    make: Make, tracker: TrackerConfig, result: Any, message: str, hint: str, gate: bool
) -> None:
    replica = make(tracker=tracker, sample=a_request(b"[1, 2]", gate=gate))
    if gate:
        with pytest.raises(SampleRefused) as caught:
            replica.run(post=lambda prediction, metadata: result)
        problem = caught.value.problem()
    else:
        (problem,) = replica.run(post=lambda prediction, metadata: result).warnings
        assert replica.introduction.description["sample"] == [1, 2], "it was answered all the same"
    assert problem.reference == "tracker-never-matches"
    assert message in problem.message
    assert hint in problem.hint


def test_a_tracker_without_a_handler_is_tried_on_what_the_model_answers(make: Make) -> None:
    never = TrackerConfig(model_type="classification")
    with pytest.raises(SampleRefused, match="expected text or an integer, found an array of shape"):
        make(tracker=never, sample=a_request(b"[1, 2]", gate=True)).run()
    counted = TrackerConfig(model_type="regression")
    make(tracker=counted, sample=a_request(b"[1, 2]", gate=True)).run(post=lambda p, m: p[0].sum())


def test_what_was_not_answered_is_not_called_working(make: Make) -> None:
    for sample, post, told in (
        (b"[1, 2, 3]", None, "the sample was answered with 422 (input-mismatch): "),
        (b"[1, 2]", lambda prediction, metadata: {}["a"], "the sample was answered with 500 (handler-failed): "),
        (None, lambda prediction, metadata: prediction, "no request is known that this api answers"),
    ):
        replica = make(sample=None if sample is None else a_request(sample, gate=False))
        replica.run(post=post)
        assert replica.introduction.unproven.startswith(told)
    for fields in ({"sample": a_request(b"[1, 2]", gate=False)}, {}):
        replica = make(**fields)
        replica.run()
        assert replica.introduction.unproven == ""


def test_any_2xx_will_do(make: Make) -> None:
    sample = a_request(b"[1, 2]", gate=True)
    warm_up = make(sample=sample).run(post=lambda prediction, metadata: Response(b"", status=204))
    assert warm_up.warnings == []


def test_a_sample_that_is_no_json_opens_the_gate_and_is_not_shown(make: Make) -> None:
    replica = make(sample=a_request(b"\xff\xd8", content_type="image/jpeg", gate=True))
    assert replica.run(lambda sample, metadata: [len(sample), 0]).warnings == []
    assert "sample" not in replica.introduction.description


@pytest.mark.parametrize(
    ("content_type", "call"),
    [
        ("image/jpeg", "curl http://here/t/a -H 'content-type: image/jpeg' --data-binary @FILE"),
        ("audio/wav", "curl http://here/t/a -H 'content-type: audio/wav' --data-binary @FILE"),
        ("application/json", "curl http://here/t/a -H 'content-type: application/json' -d '[1,2]'"),
    ],
)
def test_get_says_how_to_send_a_sample_of_its_kind(make: Make, content_type: str, call: str) -> None:
    replica = make(sample=a_request(b"[1,2]", content_type=content_type, gate=True))
    replica.run(lambda sample, metadata: [1, 2])
    exchange = Exchange(None)
    exchange.headers, exchange.target = {b"host": b"here"}, b"/t/a?debug=1"
    assert replica.protocol.call_line(exchange) == call


def test_a_made_up_input_is_named_where_the_model_has_optional_ones_too(make: Make) -> None:
    replica = make()
    optional = TensorSpec("y", "float32", (None, 2), optional=True)
    replica.backend.signature = msgspec.structs.replace(Backend.signature, inputs=(*Backend.signature.inputs, optional))
    assert replica.run().warnings == []
    assert replica.introduction.description["sample"] == {"x": [[0.85, 0.63]]}


@pytest.mark.parametrize(("run_s", "inline"), [(0.0, True), (3 * INLINE_BELOW_S, False)])
def test_the_model_is_timed_before_the_first_request(
    make: Make, monkeypatch: pytest.MonkeyPatch, run_s: float, inline: bool
) -> None:
    replica = make()
    replica.backend.run_s = run_s
    monkeypatch.setattr("cortex.replica.inspection.warmup.perf_counter", lambda: replica.backend.now_s)
    replica.run()
    assert replica.inference.inline is inline


def test_no_replica_tries_rows_together(make: Make) -> None:
    replica = make(batches=BatchingOrder(batches=True))
    replica.run()
    assert set(replica.backend.rows) == {1}
