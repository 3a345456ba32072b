"""
The user's code: loading it, checking it, and calling it.

Loading raises `HandlerError`s that a user can act on. What a hook raises while it answers a request comes out as
`HookFailed` or as the user's own `RequestError`, whatever it was: SystemExit, RecursionError, anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib.machinery
import importlib.util
import inspect
import os
import re
import sys
import traceback
import types
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import CoroutineType, ModuleType
from typing import Any, TypeVar

from cortex.errors import CortexError, Problem, RequestError
from cortex.replica.calls import Call
from cortex.replica.handler import importing, offspring
from cortex.replica.handler.intended import HOOKS, LIFE_HOOKS, HookName, LifeHookName, find_slip
from cortex.replica.observation.tracebacks import format_user_traceback, one_line, user_location
from cortex.wire.cloud import leads_to_clouds

_VALUE = {"pre_inference": "sample", "post_inference": "prediction"}

REQUIREMENTS: Mapping[str, str] = {
    "PIL": "pillow",
    "attr": "attrs",
    "bs4": "beautifulsoup4",
    "Crypto": "pycryptodome",
    "cv2": "opencv-python-headless",
    "dateutil": "python-dateutil",
    "dotenv": "python-dotenv",
    "fitz": "pymupdf",
    "google.protobuf": "protobuf",
    "jose": "python-jose",
    "jwt": "pyjwt",
    "Levenshtein": "levenshtein",
    "magic": "python-magic",
    "nacl": "pynacl",
    "OpenSSL": "pyopenssl",
    "psycopg2": "psycopg2-binary",
    "sentence_transformers": "sentence-transformers",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "slugify": "python-slugify",
    "yaml": "pyyaml",
    "zmq": "pyzmq",
}
"""Packages whose name on PyPI is not the name they are imported by. Source: their own pages there."""


class HandlerError(CortexError):
    """
    The handler cannot be used; the same project will fail again.

    Args:
        reference: what is wrong, as a stable name.
        message: in one or a few lines.
        where: `file:line` when known.
        trace: the user's traceback, when their code failed.
    """

    def __init__(self, reference: str, message: str, *, where: str = "", hint: str = "", trace: str = "") -> None:
        self._problem = Problem(reference=reference, message=message, where=where, hint=hint, traceback=trace)
        super().__init__(message)

    def problem(self) -> Problem:
        return self._problem


class HookFailed(Exception):
    """A hook raised something that is no `RequestError`, or returned what cannot be used."""

    def __init__(self, hook: str, cause: BaseException | None, message: str = "") -> None:
        self.hook = hook
        self.cause = cause
        super().__init__(message or (f"{hook} raised {one_line(cause)}" if cause is not None else hook))


class Hook:
    """`pre_inference` or `post_inference`, and how it wants to be called."""

    __slots__ = ("function", "is_async", "name", "takes_request", "takes_request_by_name")

    def __init__(self, name: HookName, function: Callable[..., Any]) -> None:
        self.name = name
        self.function = function
        self.takes_request, self.takes_request_by_name = _check_parameters(name, function)
        self.is_async = _is_async(function)

    def call(self, value: Any, metadata: Any, call: Call) -> Any:
        """
        Call a sync hook.

        Raises:
            RequestError: the handler's answer to the caller.
            HookFailed: it raised anything else at all.
        """
        try:
            if self.takes_request:
                result = self.function(value, metadata, _view(call))
            elif self.takes_request_by_name:
                result = self.function(value, metadata, request=_view(call))
            else:
                result = self.function(value, metadata)
        except BaseException as error:
            if offspring.is_child:
                offspring.leave(error)
            if isinstance(error, RequestError):
                raise
            raise HookFailed(self.name, error) from error
        if offspring.is_child:
            offspring.leave(None)
        if type(result) is CoroutineType:
            result.close()
            raise HookFailed(
                self.name, None, f"{self.name} returned a coroutine: declare it with `async def`, or await it"
            )
        return result

    async def call_async(self, value: Any, metadata: Any, call: Call) -> Any:
        """
        Await an async hook; raises as `call` does. A cancellation of ours passes through.

        Nothing but `CancelledError` may leave a task as BaseException: asyncio would stop the event loop with it.
        """
        try:
            if self.takes_request:
                result = self.function(value, metadata, _view(call))
            elif self.takes_request_by_name:
                result = self.function(value, metadata, request=_view(call))
            else:
                result = self.function(value, metadata)
            # A decorator may have awaited already.
            result = await result if inspect.isawaitable(result) else result
        except BaseException as error:
            if offspring.is_child:
                offspring.leave(error)
            # Answered: cancelled by us, as it is out of time, or the replica ends.
            if isinstance(error, RequestError) or call.answered:
                raise
            raise HookFailed(self.name, error) from error
        if offspring.is_child:
            offspring.leave(None)
        return result


class LifeHook:
    """`on_start` or `on_stop`: called once, without arguments, plain or `async`."""

    def __init__(self, name: LifeHookName, function: Callable[..., Any], *, shown: str) -> None:
        self.name = name
        self.where = _where(function, shown)
        self._function = function
        _check_no_parameters(name, function)

    def run(self, loop: asyncio.AbstractEventLoop, *, timeout_s: float | None = None) -> None:
        """
        Call it; what it returns is awaited on `loop` if it can be, for at most `timeout_s`.

        Raises:
            Whatever it raises, and TimeoutError.
        """
        with offspring.ends_here():
            result = self._function()
            if inspect.isawaitable(result):
                error = loop.run_until_complete(_error_of(result, timeout_s))
                if error is not None:
                    raise error


async def _error_of(awaitable: Awaitable[Any], timeout_s: float | None) -> BaseException | None:
    """What awaiting it raises. As a result: a SystemExit that leaves a task would pass through the loop's own code."""
    try:
        async with asyncio.timeout(timeout_s):
            await awaitable
    except BaseException as error:
        return error
    return None


@dataclass(frozen=True)
class Handler:
    """A loaded handler. One of the hooks may be missing."""

    pre: Hook | None = None
    post: Hook | None = None
    start: LifeHook | None = None
    stop: LifeHook | None = None

    @property
    def is_async(self) -> bool:
        return any(hook is not None and hook.is_async for hook in (self.pre, self.post))


def load_handler(project_dir: str, handler: str, api: str) -> Handler:
    """
    Import a handler's file and check its hooks.

    Args:
        project_dir: the project's folder, which `sys.path` must already have.
        handler: path of the file in it.
        api: name of the api; the module gets a name of its own from it.

    Raises:
        HandlerError: with the user's own traceback where their code failed.
    """
    path = os.path.join(os.path.abspath(project_dir), handler)
    module = _import_file(path, handler, project_dir, api)
    life_hook = functools.partial(LifeHook, shown=handler)
    pre, post = (_find(module, name, handler, f"{name}({_VALUE[name]}, metadata)", Hook) for name in HOOKS)
    start, stop = (_find(module, name, handler, f"{name}()", life_hook) for name in LIFE_HOOKS)
    found = [hook.name for hook in (pre, post, start, stop) if hook is not None]
    slip = find_slip(vars(module), found, _source(path), functools.partial(_other_sources, project_dir, path))
    if slip is not None:
        raise HandlerError(slip.reference, slip.message, where=_place(slip.value, module, handler), hint=slip.hint)
    return Handler(pre, post, start, stop)


def run_on_start(hook: LifeHook, loop: asyncio.AbstractEventLoop, project_dir: str) -> None:
    """
    Have a handler begin.

    Raises:
        HandlerError: it failed, whatever it raised; with the user's own traceback.
    """
    try:
        hook.run(loop)
    except BaseException as error:
        where = user_location(error, project_dir) or hook.where
        raise HandlerError(
            "handler-start-failed",
            f"on_start raised {one_line(error)}",
            where=where,
            hint="on_start runs in each replica before its first request; what it needs must be there by then",
            trace=format_user_traceback(error, project_dir),
        ) from error


def _import_file(path: str, shown: str, project_dir: str, api: str) -> ModuleType:
    name = importing.module_name(api)
    importing.keep_out_of_the_way(path)
    loader = importlib.machinery.SourceFileLoader(name, path)
    spec = importlib.util.spec_from_file_location(name, path, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # pickle and dataclasses look it up
    try:
        with offspring.ends_here():
            loader.exec_module(module)
    except BaseException as error:
        sys.modules.pop(name, None)
        raise _import_failure(error, shown, path, project_dir) from error
    return module


def _source(path: str) -> str:
    """The text of a file that was imported."""
    with open(path, "rb") as file:
        return importlib.util.decode_source(file.read())


def _other_sources(project_dir: str, path: str) -> Iterator[str]:
    """The texts of a project's other files, but for those that nobody could import."""
    for file in sorted(Path(project_dir).rglob("*.py")):
        if str(file) != path:
            with contextlib.suppress(OSError, SyntaxError, ValueError):
                yield _source(str(file))


def _import_failure(error: BaseException, shown: str, path: str, project_dir: str) -> HandlerError:
    where = user_location(error, project_dir) or shown
    trace = format_user_traceback(error, project_dir)
    if isinstance(error, FileNotFoundError) and error.filename == path:
        return HandlerError("handler-not-found", f"{shown} is not in the project", where=shown)
    if isinstance(error, SyntaxError):
        return HandlerError(
            "handler-syntax-error", f"{where}: {one_line(error)}", where=where, hint=f"mend {where}", trace=trace
        )
    if isinstance(error, ModuleNotFoundError) and error.name:
        return HandlerError(
            "handler-missing-module",
            f"importing {shown} failed: No module named {error.name!r}",
            where=where,
            hint=_requirement_hint(error.name),
            trace=trace,
        )
    if isinstance(error, SystemExit):
        return HandlerError(
            "handler-exited",
            f"importing {shown} ended the process: sys.exit({error.code!r})",
            where=where,
            hint='a handler is imported, not run: move that call below `if __name__ == "__main__":`',
            trace=trace,
        )
    return HandlerError(
        "handler-import-failed",
        f"importing {shown} failed: {one_line(error)}",
        where=where,
        hint=_import_hint(error, shown),
        trace=trace,
    )


def _import_hint(error: BaseException, shown: str) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, KeyError) and error.args and frames and frames[-1].filename in (os.__file__, "<frozen os>"):
        return _variable_hint(str(error.args[0]))
    if type(error).__name__ in _NO_CREDENTIALS:
        return _cloud_hint("them")
    if isinstance(error, FileNotFoundError):
        return "paths start at the folder of cortex.yaml; a model that it names is not shipped with the project"
    variables = [name for name in _VARIABLE.findall(str(error)) if not name.startswith("CORTEX_")]
    if variables:
        return f"handlers do not get the shell's variables: {_variable_hint(variables[0])}"
    return f"`python {shown}` in the folder of cortex.yaml shows it without a deploy"


def _variable_hint(name: str) -> str:
    """How a handler gets a variable: what is confidential does not belong into a file."""
    if leads_to_clouds(name):
        return _cloud_hint(name)
    if any(word in name.upper() for word in _SECRET_WORDS):
        return f"`cortex secret set {name}`, and in cortex.yaml: env: {{{name}: {{secret: {name}}}}}"
    return f"set it in cortex.yaml: env: {{{name}: …}}"


def _cloud_hint(what: str) -> str:
    return f"handlers get the cloud credentials of the shell that deploys: export {what} there, and deploy again"


_NO_CREDENTIALS = frozenset(
    ("NoCredentialsError", "NoRegionError", "DefaultCredentialsError", "CredentialUnavailableError")
)
"""What the libraries of AWS, Google and Azure raise where they find no credentials."""
_SECRET_WORDS = ("TOKEN", "SECRET", "PASSWORD", "PASSWD", "KEY", "CREDENTIAL")
_VARIABLE = re.compile(r"\b[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+\b")
"""What in a message is most likely the name of an environment variable."""


def _requirement_hint(module: str) -> str:
    top = module.partition(".")[0]
    requirement = REQUIREMENTS.get(module) or REQUIREMENTS.get(top) or top
    return f"add {requirement} to requirements.txt beside cortex.yaml"


_Found = TypeVar("_Found", Hook, LifeHook)


def _find(
    module: ModuleType, name: str, shown: str, usual: str, make: Callable[[Any, Callable[..., Any]], _Found]
) -> _Found | None:
    """A function that Cortex calls; None if the file has none of that name."""
    function = getattr(module, name, None)
    if function is None:
        return None
    where = _where(function, shown)
    if not callable(function):
        message = f"{name} is {_article(type(function).__name__)}, not a function"
        raise HandlerError("handler-not-callable", message, where=where, hint=f"define `def {usual}:`, or leave it out")
    try:
        return make(name, function)
    except WrongParameters as error:
        raise HandlerError("handler-wrong-parameters", str(error), where=where, hint=error.hint) from error


class WrongParameters(Exception):
    """A hook cannot be called as hooks are."""

    def __init__(self, message: str, hint: str) -> None:
        self.hint = hint
        super().__init__(message)


def _check_parameters(name: HookName, function: Callable[..., Any]) -> tuple[bool, bool]:
    """
    How a hook takes the request: as third parameter, and by name.

    A third positional parameter gets it if it has no default or is called `request`: one with a default and another
    name is the handler's own business.

    Raises:
        WrongParameters: it cannot be called with value and metadata; says what was found and what is expected.
    """
    usual = f"{name}({_VALUE[name]}, metadata)"
    hint = f"write `def {usual}:`, with `request` as a third parameter if you need it"
    signature = _signature(name, function, "it has `yield` where `return` is expected", hint)
    if signature is None:
        return False, False
    found = f"{name}{signature}"
    positional = [p for p in signature.parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    any_number = any(p.kind is p.VAR_POSITIONAL for p in signature.parameters.values())
    by_name = [p for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY]
    required = [p for p in positional if p.default is p.empty]
    nameless = [p.name for p in by_name if p.default is p.empty and p.name != "request"]
    if nameless:
        raise WrongParameters(f"found {found}, expected {usual}: nothing is passed as {', '.join(nameless)}", hint)
    if (len(positional) < 2 and not any_number) or len(required) > 3:
        raise WrongParameters(
            f"found {found}, which takes {len(positional)}; "
            f"expected two or three parameters: {usual} or {usual[:-1]}, request)",
            hint,
        )
    third = positional[2] if len(positional) > 2 else None
    takes = third is not None and (third.default is third.empty or third.name == "request")
    return takes, not takes and any(p.name == "request" for p in by_name)


def _check_no_parameters(name: LifeHookName, function: Callable[..., Any]) -> None:
    """Raises WrongParameters unless it can be called without arguments, once."""
    hint = f"write `def {name}():` or `async def {name}():`"
    signature = _signature(name, function, "it has `yield`, and nobody would go on with it", hint)
    try:
        if signature is not None:
            signature.bind()
    except TypeError:
        message = f"found {name}{signature}, expected {name}(): it is called without arguments"
        raise WrongParameters(message, hint) from None


def _signature(name: str, function: Callable[..., Any], why: str, hint: str) -> inspect.Signature | None:
    """
    A hook's parameters; None: some functions written in C do not say.

    Raises:
        WrongParameters: it is a generator; `why` says what is wrong with that.
    """
    unwrapped = inspect.unwrap(function)
    if inspect.isgeneratorfunction(unwrapped) or inspect.isasyncgenfunction(unwrapped):
        raise WrongParameters(f"{name} is a generator: {why}", hint)
    try:
        return inspect.signature(function).replace(return_annotation=inspect.Signature.empty)
    except (TypeError, ValueError):
        return None


def _is_async(function: Callable[..., Any]) -> bool:
    while isinstance(function, functools.partial):
        function = function.func
    candidates = [function, inspect.unwrap(function)]
    if not isinstance(function, types.FunctionType | types.MethodType):
        candidates += [vars(kind)["__call__"] for kind in type(function).__mro__ if "__call__" in vars(kind)][:1]
    return any(inspect.iscoroutinefunction(candidate) for candidate in candidates)


def _where(function: Any, shown: str) -> str:
    code = getattr(inspect.unwrap(function) if callable(function) else function, "__code__", None)
    return f"{shown}:{code.co_firstlineno}" if code is not None else shown


def _place(value: Any, module: ModuleType, shown: str) -> str:
    """`file:line` of a function or class of the handler's own file, else the file."""
    if getattr(value, "__module__", None) != module.__name__:
        return shown
    if not inspect.isclass(value):
        return _where(value, shown)
    try:
        return f"{shown}:{inspect.getsourcelines(value)[1]}"
    except (OSError, TypeError):
        return shown


def _article(word: str) -> str:
    return f"an {word}" if word[:1].lower() in "aeiou" else f"a {word}"


def _view(call: Call) -> Any:
    view = call.view
    if view is None:
        view = call.view = call.protocol.view(call)
    return view
