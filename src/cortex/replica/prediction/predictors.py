"""
The life of one prediction: body to sample, `pre_inference`, tensors, model, `post_inference`, JSON.

`Steps` knows what happens in which order; a `Predictor` knows where handler code runs:

* `InlinePredictor`: in the main thread, one request after the other. For sync handlers with concurrency 1, which is
  the default, and for apis without a handler. No thread hop: with a small model the whole prediction is one callback.
* `PooledPredictor`: sync handlers with a higher concurrency, on so many threads.
* `AsyncPredictor`: async handlers, as tasks on the event loop.

`concurrency` bounds handler code only: a slot is held in pre and in post, and released while waiting for the model.
"""

from __future__ import annotations

import asyncio
import threading
from asyncio.events import _get_running_loop, _set_running_loop
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from queue import SimpleQueue
from typing import Any, ClassVar, Protocol

from cortex.errors import Response
from cortex.replica.backends.base import Backend, InputRefused
from cortex.replica.handler.hooks import Handler, Hook, HookFailed
from cortex.replica.observation.logs import REQUEST_ID, Streams, work_ended, work_for
from cortex.replica.observation.tracebacks import one_line
from cortex.replica.prediction.batching import Outputs, count_rows
from cortex.replica.prediction.inference import LARGE_BODY_BYTES, Inference
from cortex.replica.protocols.codec import Decoder, reread, unpack
from cortex.replica.protocols.results import Unserialisable, encode
from cortex.replica.tensors.conversion import Feeds, build_converter
from cortex.replica.tensors.mismatch import InputMismatch, WrongNames
from cortex.replica.transport.http import JSON, Exchange, render_headers

DEFAULT_ASYNC_CONCURRENCY = 64
"""Async handlers mostly wait for others; so many at once keeps one replica busy without hiding an overload."""
HANDLED = 0
"""In place of a number of rows: the prediction went through `post_inference`."""

Reply = tuple[int, bytes, bytes, bytes, Any, int]
"""
Status, content type, body, further header lines, and what the tracker looks at: the object that was encoded, with
`HANDLED` or, for a raw prediction, its number of rows.
"""


class ModelFailed(Exception):
    """The model raised."""

    def __init__(self, cause: BaseException) -> None:
        self.cause = cause
        super().__init__(str(cause) or one_line(cause))


class Desk(Protocol):
    """Where predictions hand in what came of them. Every call is made on the event loop."""

    def finish(self, exchange: Exchange, reply: Reply) -> None:
        """Answer with a prediction."""
        ...

    def fail(self, exchange: Exchange, error: BaseException) -> None:
        """Answer with an error; the table of statuses is there."""
        ...

    def release(self, exchange: Exchange) -> None:
        """The exchange's code has ended, whether it was in time or not."""
        ...

    def expect(self, exchange: Exchange) -> None:
        """The exchange goes on after this callback: keep an eye on its timeout."""
        ...


class Predictor(Protocol):
    """Where and when the steps of a prediction run."""

    hides_loop: ClassVar[bool]
    """`hide_loop` must be called each time the event loop has begun to run, before `start`."""
    one_at_a_time: ClassVar[bool]
    """Whether handler code is only ever run for one request at once."""

    def start(self, exchange: Exchange) -> None:
        """Begin, on the event loop. Never raises; the desk is told what comes of it."""
        ...


class Steps:
    """What is done for a prediction, wherever it is done. Safe to use from several threads."""

    def __init__(self, backend: Backend, handler: Handler | None, *, tracks: bool) -> None:
        self._tracks = tracks
        self.pre: Hook | None = handler.pre if handler is not None else None
        self.post: Hook | None = handler.post if handler is not None else None
        may_be_empty = all(spec.optional for spec in backend.signature.inputs)
        self._decode = Decoder(has_pre_inference=self.pre is not None, may_be_empty=may_be_empty).decode
        self._converter = build_converter(backend.signature, takes_bytes=backend.takes_bytes)
        self._convert = self._converter.convert
        self._present = backend.present
        self._plain = backend.plain
        self._inputs = backend.metadata_inputs
        self._outputs = backend.metadata_outputs

    def feeds(self, exchange: Exchange) -> Feeds:
        """
        Everything before the model.

        Raises:
            BadBody, InputMismatch: the caller's doing; the latter may also be `pre_inference`'s.
            RequestError: the handler's answer to the caller.
            HookFailed: `pre_inference` failed, or named other inputs than the model's.
        """
        sample = self.sample(exchange)
        pre = self.pre
        if pre is None:
            return self._plainly(exchange, sample)
        return self.converted(exchange, pre.call(sample, self._inputs, exchange), sample)

    async def feeds_async(self, exchange: Exchange) -> Feeds:
        """As `feeds`, with a `pre_inference` of either kind."""
        sample = self.sample(exchange)
        pre = self.pre
        if pre is None:
            return self._plainly(exchange, sample)
        if pre.is_async:
            value = await pre.call_async(sample, self._inputs, exchange)
        else:
            with hidden_loop():
                value = pre.call(sample, self._inputs, exchange)
        return self.converted(exchange, value, sample)

    def reply(self, exchange: Exchange, outputs: Outputs, feeds: Feeds) -> Reply:
        """
        Everything after the model.

        Raises:
            RequestError: the handler's answer to the caller.
            HookFailed: `post_inference` failed, or made a `Response` that cannot be sent.
            Unserialisable: its result has no JSON form.
        """
        prediction = self._present(outputs, feeds)
        if exchange.trace is not None:
            exchange.trace.note("inference", prediction)
        post = self.post
        if post is None:
            return 200, JSON, encode(self._plain(prediction)), b"", prediction, self._rows(feeds)
        return self.replied(exchange, post.call(prediction, self._outputs, exchange))

    async def reply_async(self, exchange: Exchange, outputs: Outputs, feeds: Feeds) -> Reply:
        """As `reply`, with a `post_inference` of either kind."""
        prediction = self._present(outputs, feeds)
        if exchange.trace is not None:
            exchange.trace.note("inference", prediction)
        post = self.post
        if post is None:
            return 200, JSON, encode(self._plain(prediction)), b"", prediction, self._rows(feeds)
        if post.is_async:
            result = await post.call_async(prediction, self._outputs, exchange)
        else:
            with hidden_loop():
                result = post.call(prediction, self._outputs, exchange)
        return self.replied(exchange, result)

    def _rows(self, feeds: Feeds) -> int:
        return count_rows(feeds) if self._tracks else 1

    def sample(self, exchange: Exchange) -> Any:
        """Body to sample. Raises BadBody."""
        encoding = exchange.headers.get(b"content-encoding")
        if encoding is not None:
            exchange.body = unpack(exchange.body, encoding.decode("latin-1"), limit=exchange.max_body_bytes)
        sample = self._decode(exchange.body, exchange.content_type)
        if exchange.trace is not None:
            exchange.trace.note("sample", sample)
        return sample

    def converted(self, exchange: Exchange, value: Any, sample: Any) -> Feeds:
        """What `pre_inference` made of the sample, as the model's input. Raises InputMismatch, HookFailed."""
        if exchange.trace is not None:
            exchange.trace.note("pre_inference", value)
        if value is None and sample is not None and self._converter.needs_value:
            # for a float it would be NaN, and an answer
            raise HookFailed("pre_inference", None, "pre_inference returned None: does it end without a `return`?")
        try:
            return self._convert(value, "pre_inference")
        except WrongNames as error:
            if value is sample and self._is_as_sent(exchange, sample):
                raise  # handed on as it came: the names are the caller's
            said = str(error) if error.input else error.reason
            message = f"pre_inference returned what the model has no use for: {said}"
            raise HookFailed("pre_inference", None, f"{message} ({error.hint})" if error.hint else message) from None

    def _is_as_sent(self, exchange: Exchange, sample: Any) -> bool:
        """Whether a sample still has the keys that it came with: a hook may have changed it in place."""
        sent = self._decode(exchange.body, exchange.content_type)
        if not isinstance(sent, Mapping) or not isinstance(sample, Mapping):
            return isinstance(sent, Mapping) == isinstance(sample, Mapping)
        return sent.keys() == sample.keys()

    def failed(self, feeds: Feeds, error: BaseException) -> InputMismatch | ModelFailed:
        """What it means that the model raised: a mistake in its input, or a failure."""
        if isinstance(error, InputRefused):
            after = None if self.pre is None else "pre_inference"
            return self._converter.refused(feeds, error.reason, after)
        return ModelFailed(error)

    def _plainly(self, exchange: Exchange, sample: Any) -> Feeds:
        """A sample as the model's input, without a hook in between. Raises InputMismatch."""
        try:
            return self._convert(sample)
        except InputMismatch:
            exact = reread(exchange.body)  # what is told of a number is told of all its digits
            if exact is None:
                raise
            return self._convert(exact)

    def replied(self, exchange: Exchange, result: Any) -> Reply:
        if exchange.trace is not None:
            exchange.trace.note("post_inference", result)
        if isinstance(result, Response):
            return _custom_reply(result)
        return 200, JSON, _encoded(result), b"", result, HANDLED


class InlinePredictor:
    """
    Handler code in the main thread, between two turns of the event loop.

    The running loop is hidden while we serve (`Predictor.hides_loop`), so that a handler may call `asyncio.run`:
    asyncio refuses only when it finds a running loop, and uvloop does not mind a second loop on top of it. A thread
    for the handler would cost every request two hops.
    """

    hides_loop: ClassVar[bool] = True
    one_at_a_time: ClassVar[bool] = True

    def __init__(self, steps: Steps, inference: Inference, *, desk: Desk, streams: Streams) -> None:
        self._steps = steps
        self._inference = inference
        self._desk = desk
        self._streams = streams
        self._has_handler = steps.pre is not None or steps.post is not None

    def start(self, exchange: Exchange) -> None:
        desk, steps, inference = self._desk, self._steps, self._inference
        has_handler = self._has_handler
        if has_handler:
            work_for(exchange.id)
        try:
            feeds = steps.feeds(exchange)
            if inference.inline and len(exchange.body) < LARGE_BODY_BYTES:
                try:
                    outputs = inference.run(feeds)
                except BaseException as error:
                    raise steps.failed(feeds, error) from error
                desk.finish(exchange, steps.reply(exchange, outputs, feeds))
            else:
                job = inference.submit(feeds, partial(self._modelled, exchange, feeds))
                exchange.cancel = job.cancel
                desk.expect(exchange)
                return
        except BaseException as error:
            desk.fail(exchange, error)
        finally:
            if has_handler:
                self._streams.finish_lines(exchange.id)
                work_ended()
        desk.release(exchange)

    def _modelled(self, exchange: Exchange, feeds: Feeds, outputs: Outputs, failure: BaseException | None) -> None:
        desk = self._desk
        exchange.cancel = None
        work_for(exchange.id)
        try:
            if failure is not None:
                raise self._steps.failed(feeds, failure) from failure
            desk.finish(exchange, self._steps.reply(exchange, outputs, feeds))
        except BaseException as error:
            desk.fail(exchange, error)
        finally:
            self._streams.finish_lines(exchange.id)
            work_ended()
        desk.release(exchange)


class PooledPredictor:
    """Handler code of up to `concurrency` requests at once, each on a thread of a pool."""

    hides_loop: ClassVar[bool] = False
    one_at_a_time: ClassVar[bool] = False

    def __init__(
        self,
        steps: Steps,
        inference: Inference,
        *,
        concurrency: int,
        desk: Desk,
        loop: asyncio.AbstractEventLoop,
        streams: Streams,
    ) -> None:
        self._steps = steps
        self._inference = inference
        self._desk = desk
        self._loop = loop
        self._streams = streams
        self._work: SimpleQueue[_Turn] = SimpleQueue()
        for number in range(concurrency):
            threading.Thread(target=self._serve, name=f"cortex-handler-{number}", daemon=True).start()

    def start(self, exchange: Exchange) -> None:
        turn = _Turn(exchange, self._before)
        exchange.cancel = turn.cancel
        self._desk.expect(exchange)
        self._work.put(turn)

    def _serve(self) -> None:
        while True:
            turn = self._work.get()
            if not turn.claim():
                continue
            exchange = turn.exchange
            REQUEST_ID.set(exchange.id)
            try:
                outcome = turn.step(exchange)
            except BaseException as error:
                outcome = partial(self._failed, exchange, error)
            self._streams.finish_lines(exchange.id)
            REQUEST_ID.set("")
            try:
                self._loop.call_soon_threadsafe(outcome)
            except RuntimeError:  # the loop is closed: the process is about to end
                return
            del turn, exchange, outcome  # while this thread waits it keeps nobody's body in memory

    def _before(self, exchange: Exchange) -> Callable[[], None]:
        """On a pool thread: everything before the model, and with a small model the rest too."""
        feeds = self._steps.feeds(exchange)
        if self._inference.inline and len(exchange.body) < LARGE_BODY_BYTES:
            try:
                outputs = self._inference.run(feeds)
            except BaseException as error:
                raise self._steps.failed(feeds, error) from error
            return partial(self._finished, exchange, self._steps.reply(exchange, outputs, feeds))
        return partial(self._submit, exchange, feeds)

    def _submit(self, exchange: Exchange, feeds: Feeds) -> None:
        if exchange.answered:
            self._desk.release(exchange)
            return
        job = self._inference.submit(feeds, partial(self._modelled, exchange, feeds))
        exchange.cancel = job.cancel

    def _modelled(self, exchange: Exchange, feeds: Feeds, outputs: Outputs, failure: BaseException | None) -> None:
        if failure is not None:
            self._failed(exchange, self._steps.failed(feeds, failure))
            return
        turn = _Turn(exchange, partial(self._after, outputs, feeds))
        exchange.cancel = turn.cancel
        self._work.put(turn)

    def _after(self, outputs: Outputs, feeds: Feeds, exchange: Exchange) -> Callable[[], None]:
        """On a pool thread: everything after the model."""
        return partial(self._finished, exchange, self._steps.reply(exchange, outputs, feeds))

    def _finished(self, exchange: Exchange, reply: Reply) -> None:
        exchange.cancel = None
        self._desk.finish(exchange, reply)
        self._desk.release(exchange)

    def _failed(self, exchange: Exchange, error: BaseException) -> None:
        exchange.cancel = None
        self._desk.fail(exchange, error)
        self._desk.release(exchange)


class AsyncPredictor:
    """Handler code as tasks on the event loop, up to `concurrency` of them inside it at once."""

    hides_loop: ClassVar[bool] = False
    one_at_a_time: ClassVar[bool] = False

    def __init__(
        self,
        steps: Steps,
        inference: Inference,
        *,
        concurrency: int,
        desk: Desk,
        loop: asyncio.AbstractEventLoop,
        streams: Streams,
    ) -> None:
        self._steps = steps
        self._inference = inference
        self._desk = desk
        self._loop = loop
        self._streams = streams
        self._slots = asyncio.Semaphore(concurrency)
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, exchange: Exchange) -> None:
        task = asyncio.Task(self._predict(exchange), loop=self._loop)  # none of those that are watched for the handler
        self._tasks.add(task)
        exchange.cancel = exchange.stop = partial(_cancel, task)
        task.add_done_callback(partial(self._ended, exchange))
        self._desk.expect(exchange)

    async def _predict(self, exchange: Exchange) -> None:
        REQUEST_ID.set(exchange.id)
        desk, slots = self._desk, self._slots
        try:
            async with slots:
                exchange.cancel = None
                feeds = await self._steps.feeds_async(exchange)
            if self._inference.inline and len(exchange.body) < LARGE_BODY_BYTES:
                try:
                    outputs = self._inference.run(feeds)
                except BaseException as error:
                    raise self._steps.failed(feeds, error) from error
            else:
                outputs = await self._modelled(exchange, feeds)
            exchange.cancel = exchange.stop
            async with slots:
                exchange.cancel = None
                reply = await self._steps.reply_async(exchange, outputs, feeds)
            desk.finish(exchange, reply)
        except asyncio.CancelledError as error:
            # Ours: out of time, or nobody waits any more. Users' own are HookFailed by now.
            desk.fail(exchange, error)
        except BaseException as error:
            desk.fail(exchange, error)
        finally:
            self._streams.finish_lines(exchange.id)

    async def _modelled(self, exchange: Exchange, feeds: Feeds) -> Outputs:
        """The model's turn on its own thread. Raises InputMismatch, ModelFailed."""
        future: asyncio.Future[Outputs] = self._loop.create_future()

        def deliver(outputs: Outputs, failure: BaseException | None) -> None:
            if future.done():
                return
            if failure is None:
                future.set_result(outputs)
            else:
                future.set_exception(self._steps.failed(feeds, failure))

        job = self._inference.submit(feeds, deliver)
        stop = exchange.stop

        def give_up() -> None:
            job.cancel()  # at once: the task only hears of it when it is next awake
            if stop is not None:
                stop()

        exchange.cancel = give_up
        try:
            return await future
        finally:
            job.cancel()

    def _ended(self, exchange: Exchange, task: asyncio.Task[None]) -> None:
        """Also called for a task that was cancelled before its first step."""
        self._tasks.discard(task)
        self._desk.release(exchange)


def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()


class _Turn:
    """A step that waits for a thread of the pool: either a thread claims it, or the loop cancels it."""

    __slots__ = ("_token", "exchange", "step")

    def __init__(self, exchange: Exchange, step: Callable[[Exchange], Callable[[], None]]) -> None:
        self.exchange = exchange
        self.step = step
        self._token = [True]

    def claim(self) -> bool:
        """For the thread: whether the step is to be done."""
        if not self._take():
            return False
        self.exchange.cancel = None
        return True

    def cancel(self) -> None:
        """For the loop: the step is not done, unless it has begun."""
        self._take()

    def _take(self) -> bool:
        try:
            self._token.pop()  # atomic: exactly one taker
        except IndexError:
            return False
        return True


def hide_loop() -> None:
    """Make asyncio in this thread believe that no loop runs, until the loop ends."""
    _set_running_loop(None)


@contextmanager
def hidden_loop() -> Iterator[None]:
    """Make asyncio believe that no loop runs, for a sync hook beside an async one."""
    loop = _get_running_loop()
    _set_running_loop(None)
    try:
        yield
    finally:
        _set_running_loop(loop)


def build_predictor(
    steps: Steps,
    inference: Inference,
    *,
    is_async: bool,
    concurrency: int | None,
    desk: Desk,
    loop: asyncio.AbstractEventLoop,
    streams: Streams,
) -> Predictor:
    """The predictor that fits a handler; `concurrency` None means the default for its kind."""
    if is_async:
        return AsyncPredictor(
            steps,
            inference,
            concurrency=concurrency or DEFAULT_ASYNC_CONCURRENCY,
            desk=desk,
            loop=loop,
            streams=streams,
        )
    if concurrency is not None and concurrency > 1 and (steps.pre is not None or steps.post is not None):
        return PooledPredictor(steps, inference, concurrency=concurrency, desk=desk, loop=loop, streams=streams)
    return InlinePredictor(steps, inference, desk=desk, streams=streams)


def _encoded(result: Any) -> bytes:
    """
    A handler's result as JSON.

    Raises:
        Unserialisable: also when code of the result's own classes fails on the way.
    """
    try:
        return encode(result)
    except Unserialisable:
        raise
    except BaseException as error:
        found = f"{type(result).__name__}, whose conversion raised {one_line(error)},"
        raise Unserialisable("result", found) from error


def _custom_reply(response: Response) -> Reply:
    """
    The reply that a handler made itself.

    Raises:
        HookFailed: HTTP cannot carry it; says what is wrong.
        Unserialisable: its body has no JSON form.
    """
    status, body = response.status, response.body
    if not isinstance(status, int) or isinstance(status, bool) or not 200 <= status <= 599:
        raise _unusable(f"status must be 200 to 599, not {status!r}")
    if isinstance(body, str):
        media_type, content = "text/plain; charset=utf-8", body.encode("utf-8", "replace")
    elif isinstance(body, bytes | bytearray | memoryview):
        media_type, content = "application/octet-stream", bytes(body)
    else:
        media_type, content = "application/json", _encoded(body)
    if response.media_type is not None:
        media_type = str(response.media_type)
        if not media_type.isascii() or not media_type.isprintable() or not media_type:
            raise _unusable(f"media_type {media_type!r} is not a content type")
    try:
        extra = render_headers(response.headers or {})
    except (ValueError, AttributeError) as error:
        raise _unusable(str(error)) from error
    return int(status), media_type.encode("ascii"), content, extra, response, HANDLED


def _unusable(reason: str) -> HookFailed:
    return HookFailed("post_inference", None, f"post_inference returned a Response that cannot be sent: {reason}")
