"""
The middle of a prediction: sample to `pre_inference` to tensors, the model's outputs to `post_inference`. For a
protocol of tensors and a model without hooks: tensors in, and the model's outputs as they are.

Knows what happens in which order, not where and when: that is a predictor's business.
"""

from __future__ import annotations

from asyncio.events import _get_running_loop, _set_running_loop
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from cortex.replica.backends.base import Backend, InputRefused
from cortex.replica.calls import Call
from cortex.replica.handler.hooks import Handler, Hook, HookFailed
from cortex.replica.observation.tracebacks import one_line
from cortex.replica.prediction.batching import Outputs, count_rows
from cortex.replica.tensors.conversion import Converter, Feeds
from cortex.replica.tensors.mismatch import InputMismatch, WrongNames


class ModelFailed(Exception):
    """The model raised."""

    def __init__(self, cause: BaseException) -> None:
        self.cause = cause
        super().__init__(str(cause) or one_line(cause))


class Pipeline:
    """What is done for a prediction, wherever it is done. Safe to use from several threads."""

    def __init__(self, backend: Backend, handler: Handler | None, *, tracks: bool) -> None:
        self._tracks = tracks
        self.pre: Hook | None = handler.pre if handler is not None else None
        self.post: Hook | None = handler.post if handler is not None else None
        self._converter = Converter(backend.signature, takes_bytes=backend.takes_bytes)
        self._convert = self._converter.convert
        self._present = backend.present
        self._plain = backend.plain
        self._inputs = backend.metadata_inputs
        self._outputs = backend.metadata_outputs

    @property
    def has_hooks(self) -> bool:
        return self.pre is not None or self.post is not None

    def feeds(self, call: Call) -> Feeds:
        """
        Everything before the model.

        Raises:
            InputMismatch: the caller's doing, or `pre_inference`'s.
            RequestError: the handler's answer to the caller.
            HookFailed: `pre_inference` failed, or named other inputs than the model's.
            Exception: what came with the call cannot be read.
        """
        sample = call.protocol.read(call)
        if call.trace is not None:
            call.trace.note("sample", sample)
        pre = self.pre
        if pre is None:
            return self._plainly(call, sample)
        return self._converted(call, pre.call(sample, self._inputs, call), sample)

    async def feeds_async(self, call: Call) -> Feeds:
        """As `feeds`, with a `pre_inference` of either kind."""
        pre = self.pre
        if pre is None or not pre.is_async:
            with hidden_loop():
                return self.feeds(call)
        sample = call.protocol.read(call)
        if call.trace is not None:
            call.trace.note("sample", sample)
        return self._converted(call, await pre.call_async(sample, self._inputs, call), sample)

    def answer(self, call: Call, outputs: Outputs, feeds: Feeds) -> Any:
        """
        Everything after the model.

        Returns:
            What the call's protocol has written. What the tracker looks at is the call's `result` by then.

        Raises:
            RequestError: the handler's answer to the caller.
            HookFailed: `post_inference` failed, or made a `Response` that cannot be sent.
            Exception: the result cannot be written.
        """
        prediction = self._present(outputs, feeds)
        if call.trace is not None:
            call.trace.note("inference", prediction)
        post = self.post
        if post is None:
            call.result = prediction
            call.rows = count_rows(feeds) if self._tracks else 1
            protocol = call.protocol
            return protocol.write(call, outputs if protocol.takes_tensors else self._plain(prediction))
        return self._written(call, post.call(prediction, self._outputs, call))

    async def answer_async(self, call: Call, outputs: Outputs, feeds: Feeds) -> Any:
        """As `answer`, with a `post_inference` of either kind."""
        post = self.post
        if post is None or not post.is_async:
            with hidden_loop():
                return self.answer(call, outputs, feeds)
        prediction = self._present(outputs, feeds)
        if call.trace is not None:
            call.trace.note("inference", prediction)
        return self._written(call, await post.call_async(prediction, self._outputs, call))

    def failed(self, feeds: Feeds, error: BaseException) -> InputMismatch | ModelFailed:
        """What it means that the model raised: a mistake in its input, or a failure."""
        if isinstance(error, InputRefused):
            after = None if self.pre is None else "pre_inference"
            return self._converter.refused(feeds, error.reason, after)
        return ModelFailed(error)

    def _plainly(self, call: Call, sample: Any) -> Feeds:
        """A sample as the model's input, without a hook in between. Raises InputMismatch."""
        try:
            return self._convert(sample)
        except InputMismatch:
            exact = call.protocol.exact(call)  # what is told of a number is told of all its digits
            if exact is None:
                raise
            return self._convert(exact)

    def _converted(self, call: Call, value: Any, sample: Any) -> Feeds:
        """What `pre_inference` made of the sample, as the model's input. Raises InputMismatch, HookFailed."""
        if call.trace is not None:
            call.trace.note("pre_inference", value)
        if value is None and sample is not None and self._converter.needs_value:
            # for a float it would be NaN, and an answer
            raise HookFailed("pre_inference", None, "pre_inference returned None: does it end without a `return`?")
        try:
            return self._convert(value, "pre_inference")
        except WrongNames as error:
            if value is sample and _has_same_keys(call.protocol.read_again(call), sample):
                raise  # handed on as it came: the names are the caller's
            said = str(error) if error.input else error.reason
            message = f"pre_inference returned what the model has no use for: {said}"
            raise HookFailed("pre_inference", None, f"{message} ({error.hint})" if error.hint else message) from None

    def _written(self, call: Call, result: Any) -> Any:
        if call.trace is not None:
            call.trace.note("post_inference", result)
        call.result = result
        return call.protocol.write(call, result)


def _has_same_keys(sent: Any, sample: Any) -> bool:
    """Whether a sample still has the keys that it came with: a hook may have changed it in place."""
    if not isinstance(sent, Mapping) or not isinstance(sample, Mapping):
        return isinstance(sent, Mapping) == isinstance(sample, Mapping)
    return sent.keys() == sample.keys()


@contextmanager
def hidden_loop() -> Iterator[None]:
    """Make asyncio believe that no loop runs, for a sync hook beside an async one."""
    loop = _get_running_loop()
    _set_running_loop(None)
    try:
        yield
    finally:
        _set_running_loop(loop)
