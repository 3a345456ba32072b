"""Predictions from body to answer, with a fake model and every kind of handler, on a real event loop."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import orjson
import pytest
import uvloop
from replica_doubles import Answer, Log, Streams

from cortex.errors import RequestError, Response
from cortex.ids import ApiKey, ReplicaId, Revision, Version
from cortex.replica.backends.base import InferenceFailed, InputRefused
from cortex.replica.handler.hooks import Handler, Hook
from cortex.replica.inspection.warmup import Introduction
from cortex.replica.observation.logs import REQUEST_ID
from cortex.replica.observation.stats import Counters
from cortex.replica.observation.tracker import Tracker
from cortex.replica.prediction.inference import INLINE_BELOW_S, BatchingCondition, Inference
from cortex.replica.prediction.pipeline import Pipeline
from cortex.replica.prediction.predictors import Around, build_predictor, hide_loop
from cortex.replica.prediction.seats import Workload
from cortex.replica.process.condition import Condition
from cortex.replica.protocols.cortex import CortexProtocol
from cortex.replica.transport.http import Exchange
from cortex.replica.transport.service import MAX_IN_FLIGHT, Service
from cortex.wire.batching import BatchingOrder
from cortex.wire.build import TrackerConfig
from cortex.wire.launch import ReplicaSpec
from cortex.wire.signature import Signature, TensorSpec


class Backend:
    """Doubles numbers; fails on negative ones, and calls those over 1000 invalid; can be held up."""

    takes_bytes: ClassVar[bool] = False
    signature: Signature = Signature(
        inputs=(TensorSpec("x", "float32", (None, 2)),), outputs=(TensorSpec("y", "float32", (None, 2)),)
    )
    metadata_inputs = "inputs"
    metadata_outputs = "outputs"
    runtime = "fake 1.0, cpu, 1 thread"

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.runs = 0

    def run(self, feeds: Mapping[str, Any]) -> Sequence[Any]:
        self.runs += 1
        self.entered.set()
        assert self.gate.wait(60)
        if (feeds["x"] < 0).any():
            raise InferenceFailed("negative")
        if (feeds["x"] > 1000).any():
            raise InputRefused("index 1001 is out of range")
        return [feeds["x"] * 2]

    def present(self, outputs: Sequence[Any], feeds: Mapping[str, Any]) -> Any:
        return {"y": outputs[0]}

    def plain(self, prediction: Any) -> Any:
        return prediction

    def close(self) -> None:
        pass


class Replica:
    """A service with its predictor, on a loop that runs while we wait."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.backend = Backend()
        self.log = Log()
        self.counters = Counters()
        self.condition = Condition(SPEC)
        self.tracker = Tracker(
            TrackerConfig(model_type="regression", key="y"),
            output_names=["y"],
            warn=lambda text: None,
            monotonic_s=time.monotonic,
        )
        self.hides_loop = False

    def use(
        self, pre: Any = None, post: Any = None, *, concurrency: int | None = None, slow_model: bool = False
    ) -> Replica:
        handler = Handler(
            pre=Hook("pre_inference", pre) if pre else None, post=Hook("post_inference", post) if post else None
        )
        pipeline = Pipeline(self.backend, handler, tracks=True)
        self.protocol = CortexProtocol(has_pre_inference=pre is not None)
        self.service = Service(
            protocol=self.protocol,
            below={},
            condition=self.condition,
            counters=self.counters,
            tracker=self.tracker,
            log=self.log,  # type: ignore[arg-type]
            loop=self.loop,
            project_dir=None,
        )
        self.inference = Inference(
            self.backend.run,
            explain=pipeline.failed,
            signature=self.backend.signature,
            batching=BatchingCondition(BatchingOrder(batches=True)),
            loop=self.loop,
            say=lambda level, text: None,
            announce=lambda: None,
        )
        predictor = build_predictor(
            Around(pipeline, self.inference, self.service, self.loop, Streams()),  # type: ignore[arg-type]
            is_async=handler.is_async,
            concurrency=concurrency,
        )
        self.service.predictor = predictor
        self.hides_loop = predictor.hides_loop
        self.inference.seed(2 * INLINE_BELOW_S if slow_model else 0.0)
        return self

    @property
    def workload(self) -> Workload:
        assert self.service.predictor is not None
        return self.service.predictor.workload

    def begin(self, value: Any = (1, 2), *, timeout_s: float = 600.0, **fields: Any) -> tuple[Exchange, Answer]:
        answer = Answer()
        exchange = Exchange(answer)
        exchange.method = b"POST"
        exchange.take_body(value if isinstance(value, bytes) else orjson.dumps(value))
        exchange.id, exchange.id_bytes = "r-1", b"r-1"
        exchange.timeout_s, exchange.max_body_bytes = timeout_s, 1000
        exchange.take_headers(fields.pop("headers", {}))
        for name, field in fields.items():
            setattr(exchange, name, field)
        if self.hides_loop:
            self.loop.call_soon(hide_loop)
        self.loop.call_soon(self.service.handle, exchange)
        return exchange, answer

    def run_out_of_time(self, exchange: Exchange) -> None:
        """Have a request's timeout come now: a short one from the beginning may come before its code has begun."""
        assert exchange.timer is not None
        exchange.timer.cancel()
        exchange.timeout_s = 0.02
        self.loop.call_soon(self.service.expect, exchange)

    def until(self, done: Callable[[], Any]) -> None:
        """Let the loop run until something is so."""
        deadline_s = time.monotonic() + 60
        seen = False

        def look() -> None:
            nonlocal seen
            seen = bool(done())
            if seen or time.monotonic() > deadline_s:
                self.loop.stop()
            else:
                self.loop.call_later(0.001, look)

        if self.hides_loop:
            self.loop.call_soon(hide_loop)
        self.loop.call_soon(look)
        self.loop.run_forever()
        assert seen, "not within 60 s"

    def ask(self, value: Any = (1, 2), **fields: Any) -> Answer:
        exchange, answer = self.begin(value, **fields)
        self.until(lambda: answer.times and exchange not in self.condition.in_flight)
        assert answer.times == 1
        assert not self.condition.in_flight
        return answer


SPEC = ReplicaSpec(
    replica=ReplicaId("t.a.0.0"),
    attempt=1,
    api=ApiKey("t/a"),
    version=Version("1" * 64),
    revision=Revision("2" * 64),
    home="/h",
    runtime="onnx",
    model_path="/m",
)


@pytest.fixture
def replica() -> Iterator[Replica]:
    loop = uvloop.new_event_loop()
    made = Replica(loop)
    yield made
    made.backend.gate.set()
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True) if tasks else asyncio.sleep(0))
    loop.close()


def pre(sample: Any, metadata: Any) -> Any:
    assert metadata == "inputs"
    return [value + 1 for value in sample]


def post(prediction: Any, metadata: Any) -> Any:
    assert metadata == "outputs"
    return {"y": float(prediction["y"][0, 0])}


async def async_pre(sample: Any, metadata: Any) -> Any:
    await asyncio.sleep(0)
    return pre(sample, metadata)


async def async_post(prediction: Any, metadata: Any) -> Any:
    await asyncio.sleep(0)
    return post(prediction, metadata)


KINDS = pytest.mark.parametrize(
    ("hooks", "concurrency"),
    [
        ((pre, post), None),
        ((pre, post), 4),
        ((async_pre, async_post), None),
        ((async_pre, post), 1),
        ((pre, async_post), 2),
    ],
    ids=["inline", "pool", "async", "async-pre", "async-post"],
)
MODELS = pytest.mark.parametrize("slow_model", [False, True], ids=["small-model", "slow-model"])


@KINDS
@MODELS
def test_a_prediction_goes_all_the_way(
    replica: Replica, hooks: tuple[Any, Any], concurrency: int | None, slow_model: bool
) -> None:
    replica.use(*hooks, concurrency=concurrency, slow_model=slow_model)
    answer = replica.ask([1, 2])
    assert (answer.status, answer.json, answer.content_type) == (200, {"y": 4.0}, b"application/json")
    assert replica.counters.by_class[2] == 1
    assert replica.tracker.snapshot().total == 4.0


@MODELS
def test_without_a_handler_the_prediction_is_the_answer(replica: Replica, slow_model: bool) -> None:
    replica.use(slow_model=slow_model)
    assert replica.ask([1, 2]).json == {"y": [[2.0, 4.0]]}


@KINDS
@MODELS
def test_many_at_once_get_their_own_answers(
    replica: Replica, hooks: tuple[Any, Any], concurrency: int | None, slow_model: bool
) -> None:
    replica.use(*hooks, concurrency=concurrency, slow_model=slow_model)
    pairs = [replica.begin([number, 0]) for number in range(50)]
    replica.until(lambda: all(answer.times for _, answer in pairs))
    assert [answer.json["y"] for _, answer in pairs] == [2.0 * (number + 1) for number in range(50)]


def raising(error: BaseException) -> Callable[..., Any]:
    def hook(*_: Any) -> Any:
        raise error

    return hook


def raising_later(error: BaseException) -> Callable[..., Any]:
    async def hook(*_: Any) -> Any:
        await asyncio.sleep(0)
        raise error

    return hook


@pytest.mark.parametrize(
    "error",
    [
        ValueError("secret"),
        SystemExit(0),
        KeyboardInterrupt(),
        GeneratorExit(),
        StopIteration(),
        MemoryError(),
        RecursionError(),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("concurrency", [1, 3])
@pytest.mark.parametrize("make", [raising, raising_later])
def test_what_a_handler_raises_fails_its_own_request_only(
    replica: Replica, error: BaseException, concurrency: int, make: Any
) -> None:
    replica.use(make(error), concurrency=concurrency)
    answer = replica.ask()
    assert (answer.status, answer.json["error"], answer.json["request_id"]) == (500, "handler-failed", "r-1")
    assert type(error).__name__ in answer.json["message"]
    assert "Traceback" not in answer.body.decode()
    assert "Traceback" in replica.log.text
    assert replica.ask().status == 500, "and the replica goes on"


@pytest.mark.parametrize("make", [raising, raising_later])
@pytest.mark.parametrize("step", ["pre", "post"])
def test_a_request_error_is_the_handlers_answer(replica: Replica, make: Any, step: str) -> None:
    hook = make(RequestError(404, "no such flower", known=["iris"]))
    replica.use(**{step: hook})
    answer = replica.ask()
    assert answer.status == 404
    assert answer.json == {
        "error": "request-error",
        "message": "no such flower",
        "request_id": "r-1",
        "known": ["iris"],
    }
    assert replica.log.records == [], "no traceback"


def test_facts_without_a_json_form_are_left_out(replica: Replica) -> None:
    replica.use(raising(RequestError(400, "bad", what=object(), message="other", request_id="forged")))
    assert replica.ask().json == {"error": "request-error", "message": "bad", "request_id": "r-1"}


@MODELS
@pytest.mark.parametrize("hooks", [(), (pre,), (async_pre,)])
def test_a_failing_model_fails_its_own_request_only(replica: Replica, slow_model: bool, hooks: Any) -> None:
    replica.use(*hooks, slow_model=slow_model)
    answer = replica.ask([-9, 0])
    assert (answer.status, answer.json["error"]) == (500, "model-failed")
    assert "negative" in answer.json["message"]
    assert replica.ask().status == 200


@MODELS
@pytest.mark.parametrize("hooks", [(), (pre,), (async_pre,)])
@pytest.mark.parametrize("concurrency", [1, 3])
def test_what_the_model_calls_invalid_is_the_callers_mistake(
    replica: Replica, slow_model: bool, hooks: Any, concurrency: int
) -> None:
    replica.use(*hooks, slow_model=slow_model, concurrency=concurrency)
    answer = replica.ask((2000, 1))
    assert answer.status == 422
    said = "the model does not take these values: index 1001 is out of range"
    assert answer.json == {
        "error": "input-mismatch",
        "message": f'input "x": expected float32[?, 2], found float32[1, 2]: {said}',
        "request_id": answer.json["request_id"],
        "input": "x",
        "expected": {"dtype": "float32", "shape": [None, 2]},
        "found": {"dtype": "float32", "shape": [1, 2]},
        "hint": None,
        **({"after": "pre_inference"} if hooks else {}),
    }
    assert replica.log.text == ""
    assert replica.ask((1, 2)).status == 200


@pytest.mark.parametrize("make", ["sync", "async"])
@pytest.mark.parametrize("value", [{"y": [[1, 2]]}, {"x": [[1, 2]], "y": 1}, {}, {"instances": [[1, 2]]}])
def test_names_that_the_model_lacks_are_the_handlers_mistake(replica: Replica, make: str, value: Any) -> None:
    async def later(sample: Any, metadata: Any) -> Any:
        return value

    replica.use(later if make == "async" else lambda sample, metadata: value)
    answer = replica.ask()
    assert (answer.status, answer.json["error"]) == (500, "handler-failed")
    assert "pre_inference returned what the model has no use for" in answer.json["message"]
    assert "handler-failed: pre_inference returned" in replica.log.text


def test_a_hook_that_forgets_its_return_answers_nothing(replica: Replica) -> None:
    replica.use(lambda sample, metadata: None)
    answer = replica.ask()
    assert (answer.status, answer.json["error"]) == (500, "handler-failed")
    assert "pre_inference returned None: does it end without a `return`?" in answer.json["message"]


@pytest.mark.parametrize("sent", [{"y": [[1, 2]]}, {"x": [[1, 2]], "y": 1}, {}])
def test_names_that_a_hook_hands_on_as_they_came_are_the_callers_mistake(replica: Replica, sent: Any) -> None:
    replica.use(lambda sample, metadata: sample)
    answer = replica.ask(sent)
    assert (answer.status, answer.json["error"], answer.json["after"]) == (422, "input-mismatch", "pre_inference")
    assert replica.log.text == ""


def test_names_that_a_hook_adds_to_the_sample_are_its_own(replica: Replica) -> None:
    def add(sample: Any, metadata: Any) -> Any:
        sample["y"] = 1
        return sample

    replica.use(add)
    assert replica.ask({"x": [[1, 2]]}).status == 500


def test_what_is_told_of_a_long_integer_has_all_its_digits(replica: Replica) -> None:
    replica.backend.signature = Signature(inputs=(TensorSpec("x", "string", (None,)),), outputs=())
    replica.use()
    told = replica.ask(b"[123456789012345678901234567890]").json
    assert told["hint"] == 'put it in quotes: "123456789012345678901234567890"'


def test_an_integer_just_below_64_bits_is_refused_and_not_rounded(replica: Replica) -> None:
    replica.backend.signature = Signature(inputs=(TensorSpec("x", "int64", (None,)),), outputs=())
    replica.use()
    told = replica.ask(b"[-9223372036854775809]")
    assert told.status == 422
    assert "is -9223372036854775809, outside the range of int64" in told.json["message"]
    told = replica.ask(b"[-9223372036854775808.0]")
    assert told.status == 422
    assert told.json["hint"] == "write it without a point or exponent"


def test_a_mismatch_after_pre_inference_says_so(replica: Replica) -> None:
    replica.use(lambda sample, metadata: [1, 2, 3])
    answer = replica.ask()
    assert (answer.status, answer.json["error"], answer.json["after"]) == (422, "input-mismatch", "pre_inference")


@pytest.mark.parametrize(
    ("body", "headers", "status", "code"),
    [
        (b"[1,", {}, 400, "malformed-json"),
        (b"", {}, 400, "malformed-json"),
        (b"[1, 2, 3]", {}, 422, "input-mismatch"),
        (b"\xff\xd8\xff", {b"content-type": b"image/jpeg"}, 415, "unsupported-content-type"),
        (b"[1, 2]", {b"content-encoding": b"br"}, 415, "unsupported-content-encoding"),
        (b"no gzip", {b"content-encoding": b"gzip"}, 400, "malformed-compression"),
    ],
)
def test_what_the_caller_did_wrong_is_a_4xx(
    replica: Replica, body: bytes, headers: dict[bytes, bytes], status: int, code: str
) -> None:
    replica.use()
    answer = replica.ask(body, headers=headers)
    assert (answer.status, answer.json["error"]) == (status, code)
    assert replica.counters.by_class[4] == 1
    assert replica.log.records == []


def test_a_compressed_body_counts_as_what_it_unpacks_to(replica: Replica) -> None:
    import gzip

    replica.use()
    assert replica.ask(gzip.compress(b"[1, 2]"), headers={b"content-encoding": b"gzip"}).status == 200
    answer = replica.ask(gzip.compress(b" " * 2000 + b"1"), headers={b"content-encoding": b"gzip"})
    assert (answer.status, answer.json["error"], answer.json["limit"]) == (413, "body-too-large", 1000)
    assert "max_body" in answer.json["hint"]


@pytest.mark.parametrize(
    ("response", "status", "content_type", "body", "extra"),
    [
        (Response("hi"), 200, b"text/plain; charset=utf-8", b"hi", b""),
        (Response(b"\x00"), 200, b"application/octet-stream", b"\x00", b""),
        (Response({"a": np.float32(1)}, 201), 201, b"application/json", b'{"a":1.0}', b""),
        (Response(b"png", media_type="image/png", headers={"x-a": "1"}), 200, b"image/png", b"png", b"x-a: 1\r\n"),
        (Response("<a>", 404, "text/html"), 404, b"text/html", b"<a>", b""),
    ],
)
def test_a_handler_may_make_the_whole_response(
    replica: Replica, response: Response, status: int, content_type: bytes, body: bytes, extra: bytes
) -> None:
    replica.use(post=lambda prediction, metadata: response)
    answer = replica.ask()
    assert (answer.status, answer.content_type, answer.body, answer.extra) == (status, content_type, body, extra)


@pytest.mark.parametrize(
    "response",
    [
        Response("x", 100),
        Response("x", 600),
        Response("x", "200"),  # type: ignore[arg-type]
        Response("x", True),
        Response("x", headers={"a b": "c"}),
        Response("x", headers={"a": "b\r\nc: d"}),
        Response("x", media_type="text/html\r\nx: y"),
        Response("x", headers=["a"]),  # type: ignore[arg-type]
    ],
)
def test_a_response_that_cannot_be_sent_is_explained(replica: Replica, response: Response) -> None:
    replica.use(post=lambda prediction, metadata: response)
    answer = replica.ask()
    assert (answer.status, answer.json["error"]) == (500, "handler-failed")
    assert "cannot be sent" in answer.json["message"]


class Hostile:
    def __array__(self, *_: Any, **__: Any) -> Any:
        raise SystemExit("gotcha")


@pytest.mark.parametrize("result", [object(), {"a": {1, object()}}, Response(object()), Hostile()])
def test_a_result_without_a_json_form_is_explained(replica: Replica, result: Any) -> None:
    replica.use(post=lambda prediction, metadata: result)
    answer = replica.ask()
    assert (answer.status, answer.json["error"]) == (500, "result-not-serialisable")
    assert replica.tracker.snapshot().misses == 0, "only what was answered is tracked"


def test_asyncio_run_works_inside_a_sync_handler(replica: Replica) -> None:
    async def work(sample: Any) -> Any:
        await asyncio.sleep(0.001)
        return sample

    def with_run(sample: Any, metadata: Any) -> Any:
        with pytest.raises(RuntimeError):
            asyncio.get_running_loop()
        return asyncio.run(work(sample))

    replica.use(with_run)
    for _ in range(3):
        assert replica.ask().status == 200
    replica.use(with_run, async_post)
    assert replica.ask().status == 200


def test_the_request_id_is_known_to_handler_code(replica: Replica) -> None:
    seen: list[str] = []

    def look(value: Any, metadata: Any) -> Any:
        seen.append(REQUEST_ID.get())
        return value

    async def look_later(value: Any, metadata: Any) -> Any:
        await asyncio.sleep(0)
        return look(value, metadata)

    for hooks, concurrency in (((look, look), 1), ((look, look), 2), ((look_later, look_later), None)):
        for slow_model in (False, True):
            replica.use(*hooks, concurrency=concurrency, slow_model=slow_model)
            assert replica.ask().status == 200
    assert seen == ["r-1"] * 12
    assert REQUEST_ID.get() == ""


# ---- concurrency ----------------------------------------------------------------------------------------------------


class Crowd:
    """Counts who is inside, and lets them out on demand."""

    def __init__(self) -> None:
        self.inside = 0
        self.most = 0
        self.lock = threading.Lock()
        self.open = threading.Event()

    def __call__(self, value: Any, metadata: Any) -> Any:
        with self.lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
        assert self.open.wait(60)
        with self.lock:
            self.inside -= 1
        return value


def test_a_pool_runs_as_many_as_concurrency_says(replica: Replica) -> None:
    crowd = Crowd()
    replica.use(crowd, concurrency=3)
    pairs = [replica.begin() for _ in range(8)]
    replica.until(lambda: crowd.inside == 3)
    crowd.open.set()
    replica.until(lambda: all(answer.status == 200 for _, answer in pairs))
    assert crowd.most == 3


def test_async_handlers_are_bounded_by_concurrency(replica: Replica) -> None:
    inside = most = 0
    leave = asyncio.Event()

    async def hook(value: Any, metadata: Any) -> Any:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        await leave.wait()
        inside -= 1
        return value

    replica.use(hook, concurrency=5)
    pairs = [replica.begin() for _ in range(20)]
    replica.until(lambda: inside == 5)
    leave.set()
    replica.until(lambda: all(answer.status == 200 for _, answer in pairs))
    assert most == 5


@pytest.mark.parametrize("kind", [pre, async_pre])
def test_the_slot_is_free_while_the_model_works(replica: Replica, kind: Any) -> None:
    entered = 0

    def counting(value: Any, metadata: Any) -> Any:
        nonlocal entered
        entered += 1
        return value

    async def counting_later(value: Any, metadata: Any) -> Any:
        return counting(value, metadata)

    replica.use(counting_later if kind is async_pre else counting, concurrency=1, slow_model=True)
    replica.backend.gate.clear()
    pairs = [replica.begin() for _ in range(4)]
    replica.until(lambda: entered == 4)
    assert [answer.times for _, answer in pairs] == [0] * 4
    replica.backend.gate.set()
    replica.until(lambda: all(answer.status == 200 for _, answer in pairs))


# ---- time, and callers that leave -----------------------------------------------------------------------------------


def test_an_async_handler_out_of_time_is_cancelled(replica: Replica) -> None:
    begun: list[bool] = []
    cancelled: list[bool] = []

    async def forever(value: Any, metadata: Any) -> Any:
        begun.append(True)
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    replica.use(forever)
    exchange, answer = replica.begin()
    replica.until(lambda: begun)
    replica.run_out_of_time(exchange)
    replica.until(lambda: answer.times and not replica.condition.in_flight)
    assert (answer.status, answer.json["error"], answer.times) == (504, "timeout", 1)
    assert cancelled == [True]
    assert replica.counters.by_class[5] == 1


@pytest.mark.parametrize("given_up", [False, True])
def test_an_answer_that_comes_too_late_is_a_timeout_and_counted_by_who_answered(
    replica: Replica, given_up: bool
) -> None:
    """A handler on the event loop keeps us from noticing; the ingress waits a little longer, and then counts itself."""
    made: list[Exchange] = []

    def slow(value: Any, metadata: Any) -> Any:
        made[0].started_s -= made[0].timeout_s  # as if so long had passed
        return value

    replica.use(slow)
    exchange, answer = replica.begin(timeout_s=30.0)
    made.append(exchange)
    answer.left = given_up
    replica.until(lambda: answer.times and not replica.condition.in_flight)
    assert (answer.status, answer.json["error"]) == (504, "timeout")
    assert sum(replica.counters.by_class) == replica.counters.by_class[5] == (0 if given_up else 1)
    assert replica.counters.abandoned == (1 if given_up else 0)
    assert [(level, request) for _stream, level, _text, request in replica.log.records] == [("ERROR", "r-1")]


def test_a_sync_handler_out_of_time_is_answered_and_stays_in_sight(replica: Replica) -> None:
    crowd = Crowd()
    replica.use(crowd, concurrency=2)
    exchange, answer = replica.begin()
    replica.until(lambda: crowd.inside == 1)
    replica.run_out_of_time(exchange)
    replica.until(lambda: answer.status == 504)
    assert exchange in replica.condition.in_flight
    exchange.started_s -= 10
    status = replica.condition.status()
    assert status.overdue
    assert status.oldest_request_age_s > 9
    crowd.open.set()
    replica.until(lambda: not replica.condition.in_flight)
    assert answer.times == 1
    assert not replica.condition.status().overdue


@pytest.mark.parametrize("hooks", [(), (pre,), (async_pre,)])
def test_time_runs_out_while_waiting_for_the_model(replica: Replica, hooks: Any) -> None:
    replica.use(*hooks, slow_model=True)
    replica.backend.gate.clear()
    _, first = replica.begin()
    replica.until(replica.backend.entered.is_set)
    answer = replica.begin(timeout_s=0.02)[1]
    replica.until(lambda: answer.status == 504 and len(replica.condition.in_flight) == 1)
    replica.backend.gate.set()
    replica.until(lambda: first.status == 200 and not replica.condition.in_flight)
    assert replica.backend.runs == 1, "what nobody waits for is not run"


@pytest.mark.parametrize(
    ("hooks", "concurrency"),
    [((), None), ((pre, post), 2), ((async_pre, async_post), 1)],
    ids=["none", "pool", "async"],
)
def test_work_that_waits_for_the_model_is_dropped_when_the_caller_leaves(
    replica: Replica, hooks: Any, concurrency: int | None
) -> None:
    replica.use(*hooks, concurrency=concurrency, slow_model=True)
    replica.backend.gate.clear()
    _, first = replica.begin()
    replica.until(replica.backend.entered.is_set)
    exchange, answer = replica.begin()
    replica.until(lambda: replica.inference.waiting == 1)
    answer.lost = True
    replica.service.gone(exchange)
    replica.backend.gate.set()
    replica.until(lambda: first.status == 200 and not replica.condition.in_flight)
    assert (replica.counters.abandoned, replica.counters.dropped) == (1, 1)
    assert (answer.times, replica.backend.runs) == (0, 1)
    assert replica.counters.by_class[2] == 1


def test_work_that_waits_for_a_thread_is_dropped_when_the_caller_leaves(replica: Replica) -> None:
    crowd = Crowd()
    replica.use(crowd, concurrency=2)
    for _ in range(2):
        replica.begin()
    replica.until(lambda: crowd.inside == 2)
    exchange, _ = replica.begin()
    replica.until(lambda: exchange.cancel is not None)
    replica.service.gone(exchange)
    crowd.open.set()
    replica.until(lambda: not replica.condition.in_flight)
    assert (replica.counters.dropped, replica.counters.by_class[2]) == (1, 2)


def test_code_that_runs_is_not_stopped_when_its_caller_leaves(replica: Replica) -> None:
    crowd = Crowd()
    replica.use(crowd, concurrency=2)
    exchange, answer = replica.begin()
    replica.until(lambda: crowd.inside == 1)
    answer.lost = True
    replica.service.gone(exchange)
    assert exchange in replica.condition.in_flight
    crowd.open.set()
    replica.until(lambda: not replica.condition.in_flight)
    assert (replica.counters.abandoned, replica.counters.dropped, sum(replica.counters.by_class)) == (1, 0, 0)


@pytest.mark.parametrize(("took_s", "looks"), [(1.0, 1), (-60.0, 0)], ids=["long", "short"])
def test_what_waited_behind_a_long_request_is_not_begun_if_its_caller_is_gone(
    replica: Replica, took_s: float, looks: int
) -> None:
    waiting: list[tuple[Exchange, Answer]] = []
    handled: list[Any] = []

    def slow(value: Any, metadata: Any) -> Any:
        if not handled:
            made.started_s -= took_s  # as if so long had passed
            waiting.extend(replica.begin(number) for number in (2, 3))
            waiting[0][1].lost = True
        handled.append(value)
        return [[1.0, 2.0]]

    replica.use(slow)
    made, first = replica.begin(1)
    replica.until(lambda: 3 in handled and not replica.condition.in_flight)
    assert (first.status, first.looks) == (200, 0)
    assert [answer.looks for _, answer in waiting] == [looks, looks]
    assert handled == ([1, 3] if looks else [1, 2, 3])
    assert (replica.counters.abandoned, replica.counters.dropped) == (1, looks)


def test_too_many_at_once_are_turned_away(replica: Replica) -> None:
    replica.use(async_pre)
    for _ in range(MAX_IN_FLIGHT):
        replica.condition.in_flight[Exchange(Answer())] = None
    _, answer = replica.begin()
    replica.until(lambda: answer.times)
    assert (answer.status, answer.json["error"]) == (503, "overloaded")
    assert answer.extra == b"retry-after: 1\r\n"


# ---- what is not counted --------------------------------------------------------------------------------------------


def test_a_warm_up_is_seen_by_the_handler_and_by_no_counter(replica: Replica) -> None:
    seen: list[bool] = []
    replica.use(lambda sample, metadata, request: (seen.append(request.warmup), sample)[1])
    assert replica.ask(warmup=True, uncounted=True).status == 200
    assert seen == [True]
    assert sum(replica.counters.by_class) == 0
    assert replica.tracker.snapshot().count == 0


def test_debug_logs_every_step_with_the_request(replica: Replica) -> None:
    replica.use(pre, post)
    assert replica.ask(target=b"/a?debug=true").status == 200
    steps = [record[2].split(":")[1].strip() for record in replica.log.records]
    assert steps == ["sample", "pre_inference", "inference", "post_inference"]
    assert {record[3] for record in replica.log.records} == {"r-1"}


def test_the_signature_is_told_and_not_counted(replica: Replica) -> None:
    replica.use()
    replica.protocol.introduction = Introduction({"api": "t/a", "sample": [1, 2]})
    answer = replica.ask(method=b"GET", target=b"/t/a?x", headers={b"host": b"localhost:8880"})
    assert answer.json["api"] == "t/a"
    assert answer.json["call"] == "curl http://localhost:8880/t/a -H 'content-type: application/json' -d '[1,2]'"
    evil = replica.ask(method=b"GET", target=b"/t/a", headers={b"host": b"x; rm -rf /"})
    assert "rm -rf" not in evil.json["call"]
    assert sum(replica.counters.by_class) == 0


def test_other_methods_are_refused_with_what_is_allowed(replica: Replica) -> None:
    replica.use()
    answer = replica.ask(method=b"DELETE")
    assert (answer.status, answer.json["error"]) == (405, "method-not-allowed")
    assert answer.extra == b"allow: GET, HEAD, POST, OPTIONS\r\n"
    answer = replica.ask(method=b"OPTIONS")
    assert (answer.status, answer.body, answer.extra) == (204, b"", b"allow: GET, HEAD, POST, OPTIONS\r\n")


# ---- for how long seats were taken -------------------------------------------------------------------------------


@KINDS
@MODELS
def test_what_requests_had_of_the_seats_is_what_the_seats_were_taken_for(
    replica: Replica, hooks: tuple[Any, Any], concurrency: int | None, slow_model: bool
) -> None:
    replica.use(*hooks, concurrency=concurrency, slow_model=slow_model)
    calls = [replica.begin([number, 0]) for number in range(20)]
    replica.until(lambda: not replica.condition.in_flight and all(answer.times for _, answer in calls))
    workload = replica.workload
    assert workload.ended == 20
    assert 0 < workload.ended_handler_s <= workload.ended_s
    assert workload.ended_handler_s == pytest.approx(sum(call.handler_s for call, _ in calls))
    assert workload.handler.read().busy_s == pytest.approx(workload.ended_handler_s, abs=1e-3)
    assert workload.ended_model_s == workload.model.read().busy_s == 0.0, "there was room in each run"


@pytest.mark.parametrize("kind", ["sync", "pool", "async"])
def test_a_request_under_way_takes_its_seat_while_it_waits_for_others(replica: Replica, kind: str) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def waiting(sample: Any, metadata: Any) -> Any:
        begun.set()
        assert go_on.wait(60)
        return sample

    async def waiting_async(sample: Any, metadata: Any) -> Any:
        return await asyncio.to_thread(waiting, sample, metadata)

    replica.use(waiting_async if kind == "async" else waiting, concurrency={"pool": 2}.get(kind))
    row = replica.workload.handler
    assert row.seats == {"sync": 1, "pool": 2, "async": 64}[kind]
    looked: list[float] = []

    def look() -> None:
        """From another thread, as the loop may be in the handler."""
        assert begun.wait(60)
        while len(looked) < 2 or looked[-1] <= looked[0]:
            looked.append(row.read().busy_s)
        go_on.set()

    looking = threading.Thread(target=look)
    looking.start()
    answer = replica.ask([1, 2])
    looking.join()
    assert answer.status == 200
    assert replica.workload.ended_handler_s >= looked[-1] - looked[0] > 0
    busy_s, full_s = row.read()
    assert full_s == (busy_s if kind == "sync" else 0.0)


def test_a_failing_handler_leaves_its_seat(replica: Replica) -> None:
    for hook in (raising(ValueError("secret")), raising_later(ValueError("secret"))):
        for concurrency in (None, 2):
            replica.use(hook, concurrency=concurrency)
            assert replica.ask([1, 2]).status == 500
            workload = replica.workload
            busy_s, _ = workload.handler.read()
            assert workload.ended == 1
            assert workload.handler.read().busy_s == busy_s == pytest.approx(workload.ended_handler_s, abs=1e-3)


def test_one_that_comes_along_with_an_answer_has_the_seat_after_the_first(replica: Replica) -> None:
    """As pipelined requests do: the connection turns to the next one when it is given an answer."""
    replica.use(pre, post)
    second, answer = replica.begin([3, 4])
    replica.until(lambda: answer.times)  # ready to be begun again
    first, _ = replica.begin([1, 2])

    class Pipelining(Answer):
        def respond(self, *arguments: Any, **named: Any) -> bool:
            answered = super().respond(*arguments, **named)
            second.answered = False
            second.handler_s = 0.0
            replica.service.handle(second)
            return answered

    first.connection = Pipelining()
    before_s, ended_s = replica.workload.handler.read().busy_s, replica.workload.ended_handler_s
    replica.until(lambda: answer.times == 2 and not replica.condition.in_flight)
    grown_s = replica.workload.handler.read().busy_s - before_s
    assert grown_s == pytest.approx(first.handler_s + second.handler_s)
    assert replica.workload.ended_handler_s - ended_s == pytest.approx(grown_s)


def test_who_leaves_before_there_was_a_seat_is_counted_with_nobody(replica: Replica) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def waiting(sample: Any, metadata: Any) -> Any:
        begun.set()
        assert go_on.wait(60)
        return sample

    replica.use(waiting, concurrency=2)
    exchanges = [replica.begin([1, 2])[0] for _ in range(3)]
    replica.until(begun.is_set)
    replica.until(lambda: sum(exchange.cancel is None for exchange in exchanges) == 2)
    (last,) = [exchange for exchange in exchanges if exchange.cancel is not None]
    replica.loop.call_soon(replica.service.gone, last)
    replica.until(lambda: last not in replica.condition.in_flight)
    go_on.set()
    replica.until(lambda: not replica.condition.in_flight)
    assert replica.workload.ended == 2


def test_the_first_request_after_a_rest_stirs(replica: Replica) -> None:
    replica.use(pre, post)
    stirred: list[bool] = []
    replica.condition.announce = lambda: stirred.append(replica.condition.rests)
    replica.ask([1, 2])
    assert stirred == []
    replica.condition.rests = True
    replica.ask([1, 2])
    replica.ask([1, 2])
    assert stirred == [False]
