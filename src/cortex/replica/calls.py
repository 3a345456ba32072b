"""
One request for a prediction, as all of a replica but its edge sees it: no headers, no statuses, no bytes.

How it came and how it is answered is a matter of its `RequestProtocol`, which stands at the edge.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol


class CallOrigin(NamedTuple):
    """What a trace tells of where a call came from."""

    below: str
    """Where below the api's route."""
    attributes: Mapping[str, str]
    carried: Mapping[str, str]
    """What came along with it, among which may be the caller's own trace."""


class RequestProtocol(Protocol):
    """
    Reads what calls carry, and writes what comes of them. Safe to use from several threads.

    What it gets is a call that came its own way, with all that it needs for that.
    """

    takes_tensors: bool
    """Whether `read` returns the model's inputs by name, rather than a sample, and `write` takes its outputs."""

    def read(self, call: Any) -> Any:
        """
        Return the sample that a call carries.

        Raises:
            Exception: for the caller; `refuse` of the same protocol knows it.
        """
        ...

    def read_again(self, call: Any) -> Any:
        """The sample once more, as the caller sent it."""
        ...

    def exact(self, call: Any) -> Any:
        """The sample with all digits of its numbers, for an error that names one; None if it has no more of them."""
        ...

    def write(self, call: Any, result: Any) -> Any:
        """
        Return the answer for a result; if it `takes_tensors`, for the model's outputs. The desk knows its form.

        Raises:
            Exception: it has no form that can be sent.
        """
        ...

    def view(self, call: Any) -> Any:
        """What a handler sees of the request."""
        ...


class Call:
    """One request for a prediction, and what is to become of it."""

    # Defaults live on the class: a request then pays only for what it sets.
    protocol: RequestProtocol
    id = ""
    timeout_s = 0.0
    started_s = 0.0
    """`perf_counter` when the whole request was there; 0 before."""
    is_large = False
    """So much came with it that its run says nothing like the mean."""
    warmup = False
    uncounted = False
    """It is in no statistics and no sign of load: a warm-up, or a probe of our own. Else it is like any other."""
    answered = False
    place = 0
    """Among the requests in hand (`wire.inhand`)."""
    handler_s = 0.0
    """For how long it has had room in handler code, so far; 0: it has not had any yet."""
    model_s = 0.0
    """The same at the model's own thread, as far as there was room for nobody else."""
    timer: asyncio.TimerHandle | None = None
    cancel: Callable[[], object] | None = None
    """Gives up work that has not begun, or waits for the model; None while that is not so."""
    stop: Callable[[], object] | None = None
    """Ends the work wherever it is; None if its code cannot be ended."""
    view: Any = None
    """What handlers see of the request; made on demand."""
    trace: Any = None
    """Takes notes when the caller asked for `debug`."""
    span: Any = None
    """Of the trace, when there is one (`replica.tracing`)."""
    failure: BaseException | None = None
    """What a rehearsal was answered with, if that is an error."""
    result: Any = None
    """What was answered, before it was written: it is counted."""
    rows: int | None = None
    """Of a model's own prediction; None: the result is `post_inference`'s."""

    def origin(self) -> CallOrigin:
        """For traces."""
        return CallOrigin("", {}, {})


class Desk(Protocol):
    """Where predictions hand in what came of them. Every method is called on the event loop."""

    def finish(self, call: Any, answer: Any) -> None:
        """Answer with a prediction, in the form that the call's protocol has written."""
        ...

    def fail(self, call: Any, error: BaseException) -> None:
        """Answer with an error; what form it gets is known there."""
        ...

    def release(self, call: Any) -> None:
        """The call's code has ended, whether it was in time or not."""
        ...

    def expect(self, call: Any) -> None:
        """The call goes on after this callback: keep an eye on its timeout."""
        ...


class OutOfTime(Exception):
    """The call was not answered within the api's timeout."""


class Overloaded(Exception):
    """More calls are in flight than this replica holds."""


class ReplicaEnding(Exception):
    """The replica ends before it could answer."""
