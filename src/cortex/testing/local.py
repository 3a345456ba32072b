"""
One api of a folder in this process, for unit tests of handlers and for debuggers: no home, no door, no replica.

A sample goes through what it goes through in a replica: the body is decoded, `pre_inference`, the model's signature,
the model, `post_inference`, and the result is written as JSON. What is missing is what a process of its own gives: the
environment's packages, memory limits, concurrency, batches, tracker, and a folder that the handler may write into.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, chdir, contextmanager
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cortex.client.prediction import PredictionRefused
from cortex.client.samples import decoded, encoded
from cortex.errors import CortexError

if TYPE_CHECKING:
    from cortex.replica.backends.base import Backend
    from cortex.replica.handler.hooks import Handler
    from cortex.spec.models import ApiSpec
    from cortex.wire.signature import Signature

TIMEOUT_S = 600.0
MOST_BODY_BYTES = 2**62


class NotLocal(CortexError):
    """Something of an api cannot be had in this process."""

    reference = "not-local"

    def __init__(self, message: str, hint: str) -> None:
        self.hint = hint
        super().__init__(message)


class LocalApi:
    """
    A handler and its model, as a function. `local_api` makes one.

    Attributes:
        signature: of the model.
    """

    def __init__(self, name: str, model: Backend, handler: Handler | None) -> None:
        from cortex.replica.prediction.pipeline import Pipeline
        from cortex.replica.protocols.cortex import CortexProtocol

        self.name = name
        self.signature: Signature = model.signature
        self._model = model
        self._pipeline = Pipeline(model, handler, tracks=False)
        self._protocol = CortexProtocol(
            has_pre_inference=self._pipeline.pre is not None,
            may_be_empty=all(one.optional for one in model.signature.inputs),
        )
        self._is_async = handler is not None and handler.is_async
        self._numbers = itertools.count(1)
        self._loop = asyncio.new_event_loop()
        if handler is not None and handler.start is not None:
            handler.start.run(self._loop)
        self._stop = handler.stop if handler is not None else None

    def close(self) -> None:
        """Have the handler's `on_stop` run."""
        try:
            if self._stop is not None:
                self._stop.run(self._loop)
        finally:
            self._loop.close()

    def __call__(
        self,
        sample: Any,
        *,
        content_type: str | None = None,
        headers: dict[str, str] | None = None,
        query: str = "",
    ) -> Any:
        """
        Send one sample and return the answer, as `Client.predict` does.

        Args:
            headers: of the request, as the handler finds them.
            query: what comes after the question mark.

        Raises:
            PredictionRefused: the door would have answered 4xx, or what was returned has no JSON form.
            Exception: what the handler or the model itself raised, with its traceback.
        """
        from cortex.replica.handler.hooks import HookFailed
        from cortex.replica.prediction.pipeline import ModelFailed
        from cortex.replica.transport.faults import describe
        from cortex.replica.transport.http import JSON, Exchange, Message

        body, found_type = encoded(sample, content_type)
        exchange = Exchange(_Nobody())
        exchange.method, exchange.target = b"POST", f"/{self.name}?{query}".rstrip("?").encode()
        given = {name.lower().encode("latin-1"): value.encode("latin-1") for name, value in (headers or {}).items()}
        exchange.take_headers({**given, b"content-type": found_type.encode("latin-1")})
        exchange.take_body(body)
        exchange.id = f"local-{next(self._numbers)}"
        exchange.protocol, exchange.timeout_s, exchange.max_body_bytes = self._protocol, TIMEOUT_S, MOST_BODY_BYTES
        try:
            written = self._loop.run_until_complete(self._awaited(exchange)) if self._is_async else self._done(exchange)
        except (HookFailed, ModelFailed) as error:
            if error.cause is not None:
                raise error.cause from None
            raise self._refused(describe(error), exchange) from error
        except Exception as error:
            raise self._refused(describe(error), exchange) from error
        answer = written if isinstance(written, Message) else Message(200, JSON, written)
        return decoded(answer.body, answer.content_type.decode("latin-1"))

    def _done(self, exchange: Any) -> Any:
        feeds = self._pipeline.feeds(exchange)
        return self._pipeline.answer(exchange, self._ran(feeds), feeds)

    async def _awaited(self, exchange: Any) -> Any:
        feeds = await self._pipeline.feeds_async(exchange)
        return await self._pipeline.answer_async(exchange, self._ran(feeds), feeds)

    def _ran(self, feeds: Any) -> Any:
        try:
            return self._model.run(feeds)
        except Exception as error:
            raise self._pipeline.failed(feeds, error) from error

    def _refused(self, fault: Any, exchange: Any) -> PredictionRefused:
        return PredictionRefused(
            f"{self.name} in this process",
            fault.status,
            error=fault.facts.get("error", fault.code),
            message=fault.message,
            request_id=exchange.id,
            facts={name: value for name, value in fault.facts.items() if name != "error"},
        )


class _Nobody:
    """Who waits for the answer of a call that is made in this process."""

    def respond(self, exchange: Any, status: int, content_type: bytes, body: bytes, extra: bytes = b"") -> bool:
        return False

    def peer_has_left(self) -> bool:
        return False

    def peer_is_gone(self) -> bool:
        return False


@contextmanager
def local_api(path: str | PathLike[str] = ".", api: str | None = None) -> Iterator[LocalApi]:
    """
    One api of a folder with a cortex.yaml, as a function in this process.

    >>> with local_api("examples/iris", "sklearn") as predict:
    ...     assert predict({"sepal_length": 5.2, ...}) == "iris-setosa"

    While it is open the folder is the working directory and first in `sys.path`, and `env` of the api is set, as for a
    replica. The handler is imported anew each time.

    Args:
        path: the folder, or a yaml file.
        api: its name; needed where the file has several.

    Raises:
        Problems: something is wrong with the file.
        NotLocal: the model is not of this machine, or a value of `env` is a secret.
        HandlerError, ModelError: as a deploy would say it.
    """
    from cortex.client.project import load, locate

    file = locate(os.fspath(path), Path.cwd())
    loaded = load(file, shown_file=str(file))
    spec = _chosen(loaded.spec.apis, api, file)
    folder = file.parent
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cortex-local-")))
        stack.enter_context(_as_in_a_replica(folder, spec))
        model, handler = _loaded(spec, folder, scratch)
        found = LocalApi(spec.name, model, handler)
        stack.callback(found.close)
        yield found


def _chosen(apis: Any, name: str | None, file: Path) -> ApiSpec:
    from cortex.client.project import ApiNotInFile

    names = tuple(one.name for one in apis)
    if name is None and len(apis) == 1:
        return apis[0]  # type: ignore[no-any-return]
    if name is None:
        raise NotLocal(f"{file} has several apis", f"say which: {', '.join(names)}")
    for one in apis:
        if one.name == name:
            return one  # type: ignore[no-any-return]
    raise ApiNotInFile(name, str(file), names)


@contextmanager
def _as_in_a_replica(folder: Path, spec: ApiSpec) -> Iterator[None]:
    secrets = [name for name, value in spec.env.items() if not isinstance(value, str)]
    if missing := [name for name in secrets if name not in os.environ]:
        hint = f"set {' and '.join(missing)} in the environment of the test"
        raise NotLocal(f"env {', '.join(missing)}: secrets are not read here", hint)
    before, path, modules = dict(os.environ), [*sys.path], set(sys.modules)
    writes_none, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # it would stand for a file that just changed
    os.environ.update({name: value for name, value in spec.env.items() if isinstance(value, str)})
    beside = str((folder / (spec.request_handler or "")).parent)
    sys.path[:] = [str(folder), *path, *([beside] if beside != str(folder) else [])]
    try:
        with chdir(folder):
            yield
    finally:
        sys.dont_write_bytecode = writes_none
        sys.path[:] = path
        os.environ.clear()
        os.environ.update(before)
        for name in set(sys.modules) - modules:
            if str(getattr(sys.modules[name], "__file__", None) or "").startswith(f"{folder}{os.sep}"):
                del sys.modules[name]


def _loaded(spec: ApiSpec, folder: Path, scratch: Path) -> tuple[Backend, Handler | None]:
    from cortex.artifacts.models import resolve
    from cortex.replica.backends.base import load
    from cortex.replica.handler.hooks import load_handler
    from cortex.spec.locations import is_remote

    if is_remote(spec.model):
        raise NotLocal(f"{spec.model} is not fetched here", "give the api a model of this machine, or deploy it")
    resolved = resolve(spec.model, folder=folder, scratch=scratch, model_format=spec.model_format)
    entry = dict(resolved.files).get(resolved.entry)
    if entry is None:  # a folder: its files lie below one
        first, source = resolved.files[0]
        entry = Path(str(source).removesuffix(first))
    model = load(resolved.format, str(entry), threads=1, gpu=False, signature_key=spec.tf_signature_key)
    handler = None
    if spec.request_handler is not None:
        handler = load_handler(str(folder), spec.request_handler, spec.name)
    return model, handler
