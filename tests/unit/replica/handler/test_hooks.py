"""Loading users' files, and calling what is in them."""

from __future__ import annotations

import asyncio
import functools
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cortex.errors import RequestError
from cortex.replica.calls import Call
from cortex.replica.handler.hooks import Handler, HandlerError, Hook, HookFailed, load_handler


@pytest.fixture
def load(tmp_path: Path) -> Iterator[Callable[..., Handler]]:
    def load(source: str, name: str = "handler.py") -> Handler:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(source))
        return load_handler(str(tmp_path), name, "a")

    yield load
    sys.modules.pop("cortex_handler_a", None)


class Protocol:
    """Shows hooks a call's id, and a place for what they share."""

    def view(self, call: Call) -> Any:
        return SimpleNamespace(id=call.id, state={})


def call(**fields: Any) -> Call:
    made = Call()
    made.protocol = Protocol()  # type: ignore[assignment]
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def problem_of(load: Callable[..., Handler], source: str, name: str = "handler.py") -> HandlerError:
    with pytest.raises(HandlerError) as caught:
        load(source, name)
    return caught.value


# ---- loading --------------------------------------------------------------------------------------------------------


NEITHER = "`def pre_inference(sample, metadata):` or `def post_inference(prediction, metadata):`"


@pytest.mark.parametrize(
    ("source", "message", "hint"),
    [
        ("", "the file has neither pre_inference nor post_inference", NEITHER),
        ("post_inference = None", "neither pre_inference nor post_inference", NEITHER),
        ("import json\ndef clean(x): pass\nclass Box: pass", "it defines clean, Box", "take `request_handler` out"),
        ("import json\nfrom json import dumps", "the file has neither pre_inference nor post_inference", NEITHER),
        ("def predict(sample): pass", "predict is never called", "make what it does before the model a `def pre_inf"),
        (
            "def lambda_handler(event, context): pass",
            "lambda_handler is never called",
            "what it does after it a `def post",
        ),
        (
            "def pre_process(x): pass",
            "pre_process is never called",
            "write it as `def pre_inference(sample, metadata):`",
        ),
        (
            "def output_fn(x, y): pass",
            "output_fn is never called",
            "write it as `def post_inference(prediction, metadata):`",
        ),
        (
            "class PythonPredictor:\n    def __init__(self, config): pass\n    def predict(self, payload): pass",
            "class PythonPredictor with `predict` is how Cortex 0.10 and later had it; here Cortex runs",
            "docs/from-cortex-0.md",
        ),
        (
            "class Handler:\n    def handle_post(self, payload): pass",
            "class Handler with `handle_post`",
            "from-cortex-0.md",
        ),
        (
            "class Mine:\n    def post_inference(self, prediction, metadata): pass",
            "post_inference of class Mine cannot be called: hooks are functions of the file itself",
            "add `post_inference = Mine().post_inference` below the class",
        ),
    ],
)
def test_a_file_without_a_hook_is_an_error_that_says_what_to_write(
    load: Callable[..., Handler], source: str, message: str, hint: str
) -> None:
    problem = problem_of(load, source).problem()
    assert problem.reference == "handler-without-hook"
    assert message in problem.message
    assert hint in problem.hint


@pytest.mark.parametrize(
    "name",
    ["preinference", "pre_infernce", "Pre_Inference", "pre_inferences", "preInference", "pre_infer", "_pre_inference"],
)
@pytest.mark.parametrize("beside", ["", "def post_inference(prediction, metadata): return prediction"])
def test_a_hook_that_is_misspelt_is_an_error_whether_there_is_another_or_not(
    load: Callable[..., Handler], name: str, beside: str
) -> None:
    problem = problem_of(load, f"{beside}\n\ndef {name}(sample, metadata): return sample").problem()
    assert problem.reference == "handler-hook-misspelt"
    assert problem.message.startswith(f"{name} is never called")
    assert problem.hint == 'did you mean "pre_inference"?'
    assert problem.where == "handler.py:3"


@pytest.mark.parametrize(
    ("name", "hook"),
    [
        *(
            (name, "on_start")
            for name in ("onstart", "on_startup", "On_Start", "on_strat", "on_init", "startup", "init")
        ),
        *((name, "on_stop") for name in ("onstop", "on_shutdown", "on_sotp", "on_exit", "shutdown", "teardown")),
    ],
)
@pytest.mark.parametrize("kind", ["def", "async def"])
def test_a_misspelt_on_start_or_on_stop_is_an_error(
    load: Callable[..., Handler], name: str, hook: str, kind: str
) -> None:
    source = f"def pre_inference(sample, metadata): return sample\n\n{kind} {name}(): pass"
    problem = problem_of(load, source).problem()
    assert (problem.reference, problem.where) == ("handler-hook-misspelt", "handler.py:3")
    assert problem.message == f"{name} is never called: Cortex calls `on_start` and `on_stop`"
    assert problem.hint == f'did you mean "{hook}"?'


@pytest.mark.parametrize(
    "rest",
    [
        "def startup(): pass\nstartup()",
        "import atexit\ndef shutdown(): pass\natexit.register(shutdown)",
        "import atexit\n@atexit.register\ndef on_shutdown(): pass",
        "def on_start(): startup()\ndef startup(): pass",
        "def on_start(): pass\ndef on_startup(): pass",
        "def on_exit(code): pass",
        "def on_step(): pass",
        "def on_state(): pass",
        "from asyncio import run as startup",
        "class startup: pass",
        "close = open",
        "__all__ = ['setup']\ndef setup(): pass",
        "def setup(): pass\ndef other(): return globals()['setup']()",
    ],
)
def test_what_a_handler_uses_itself_or_cannot_be_meant_is_no_misspelt_on_start_or_on_stop(
    load: Callable[..., Handler], rest: str
) -> None:
    assert load(f"def pre_inference(sample, metadata): return sample\n{rest}").pre is not None


@pytest.mark.parametrize(
    ("other", "is_meant"),
    [
        ("from handler import setup", True),
        ("import handler\nhandler.setup()", True),
        ("from unittest import mock\nmock.patch('handler.setup')", True),
        ("def setup(): pass", False),
        ("# setup", False),
        ("print 'setup'", True),
        ("x = '\0'", False),
    ],
)
def test_what_another_file_of_the_project_asks_for_is_no_misspelt_on_start(
    load: Callable[..., Handler], tmp_path: Path, other: str, is_meant: bool
) -> None:
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "train.py").write_text(other)
    source = "def setup(): pass\ndef pre_inference(sample, metadata): return sample"
    if is_meant:
        assert load(source).pre is not None
    else:
        assert problem_of(load, source).problem().reference == "handler-hook-misspelt"


@pytest.mark.parametrize(
    ("source", "reference"),
    [
        ("def on_startup(): pass", "handler-hook-misspelt"),
        ("def init(): pass\ndef run(raw_data): pass", "handler-without-hook"),
    ],
)
def test_a_file_with_nothing_but_a_misspelt_on_start_is_told_that_first(
    load: Callable[..., Handler], source: str, reference: str
) -> None:
    assert problem_of(load, source).problem().reference == reference


def test_helpers_beside_a_hook_may_have_any_name(load: Callable[..., Handler]) -> None:
    handler = load(
        """
        class PostInference: pass
        def predict(x): return x
        def postprocess(x): return x
        def inference(x): return x
        def pre_inference(sample, metadata): return sample
        """
    )
    assert handler.pre is not None
    handler = load(
        """
        def _pre_inference(x): return x
        def pre_inference(sample, metadata): return _pre_inference(sample)
        """
    )
    assert handler.pre is not None


def test_hooks_are_found_and_none_means_absent(load: Callable[..., Handler]) -> None:
    handler = load("def pre_inference(sample, metadata): return sample\npost_inference = None")
    assert handler.pre is not None
    assert handler.post is None
    assert not handler.is_async


def test_a_handler_may_bear_the_name_of_a_package(load: Callable[..., Handler]) -> None:
    load("import numpy\ndef pre_inference(sample, metadata): return numpy.array(sample)", "handlers/numpy.py")


def test_the_module_can_be_found_by_pickle_and_dataclasses(load: Callable[..., Handler]) -> None:
    handler = load(
        """
        from __future__ import annotations
        import dataclasses, pickle

        @dataclasses.dataclass
        class Point:
            x: int

        def pre_inference(sample, metadata):
            return pickle.loads(pickle.dumps(Point(sample))).x
        """
    )
    assert handler.pre is not None
    assert handler.pre.call(3, None, call()) == 3


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(HandlerError, match=r"handlers/no\.py is not in the project"):
        load_handler(str(tmp_path), "handlers/no.py", "a")


def test_a_syntax_error_has_file_and_line(load: Callable[..., Handler]) -> None:
    problem = problem_of(load, "x = 1\ndef pre_inference(:\n").problem()
    assert problem.reference == "handler-syntax-error"
    assert problem.where == "handler.py:2"
    assert problem.traceback.startswith('  File "handler.py", line 2')


@pytest.mark.parametrize(
    ("module", "requirement"),
    [("PIL", "pillow"), ("sklearn.svm", "scikit-learn"), ("no_such_module", "no_such_module")],
)
def test_a_missing_module_hints_at_its_requirement(
    load: Callable[..., Handler], module: str, requirement: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module.partition(".")[0], None)
    problem = problem_of(load, f"raise ModuleNotFoundError('No module named {module}', name='{module}')").problem()
    assert problem.reference == "handler-missing-module"
    assert problem.hint == f"add {requirement} to requirements.txt beside cortex.yaml"
    assert problem.where == "handler.py:1"


def test_an_exception_at_import_comes_with_the_users_own_frames(load: Callable[..., Handler], tmp_path: Path) -> None:
    (tmp_path / "vocabulary.py").write_text("def read():\n    return open('missing.txt')\n")
    sys.path.insert(0, str(tmp_path))
    try:
        error = problem_of(load, "import vocabulary\nWORDS = vocabulary.read()\n")
    finally:
        sys.path.remove(str(tmp_path))
        sys.modules.pop("vocabulary", None)
    problem = error.problem()
    assert problem.reference == "handler-import-failed"
    assert problem.where == "vocabulary.py:2"
    lines = problem.traceback.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[1] == '  File "handler.py", line 2, in <module>', "users' frames first, none of ours"
    assert lines[-1].startswith("FileNotFoundError")


@pytest.mark.parametrize(
    ("source", "hint"),
    [
        ("import os; os.environ['NO_SUCH_PLACE']", "set it in cortex.yaml: env: {NO_SUCH_PLACE: …}"),
        (
            "import os; os.environ['NO_SUCH_TOKEN']",
            "`cortex secret set NO_SUCH_TOKEN`, and in cortex.yaml: env: {NO_SUCH_TOKEN: {secret: NO_SUCH_TOKEN}}",
        ),
        (
            "import os; os.environ['AWS_NO_SUCH_KEY']",
            "handlers get the cloud credentials of the shell that deploys: export AWS_NO_SUCH_KEY there, and deploy",
        ),
        (
            "class NoCredentialsError(Exception): pass\nraise NoCredentialsError('Unable to locate credentials')",
            "handlers get the cloud credentials of the shell that deploys: export them there, and deploy again",
        ),
        (
            "raise RuntimeError('pass api_key or set the OPENAI_API_KEY environment variable')",
            "handlers do not get the shell's variables: `cortex secret set OPENAI_API_KEY`, and in cortex.yaml: env: "
            "{OPENAI_API_KEY: {secret: OPENAI_API_KEY}}",
        ),
        ("{}['key']", "`python handler.py` in the folder of cortex.yaml shows it without a deploy"),
        ("open('no.txt')", "paths start at the folder of cortex.yaml; a model that it names is not shipped"),
    ],
)
def test_an_exception_at_import_comes_with_a_next_step(load: Callable[..., Handler], source: str, hint: str) -> None:
    assert problem_of(load, source).problem().hint.startswith(hint)


@pytest.mark.parametrize(
    ("source", "reference", "text"),
    [
        ("import sys; sys.exit(2)", "handler-exited", "sys.exit(2)"),
        ("raise KeyboardInterrupt", "handler-import-failed", "KeyboardInterrupt"),
        ("def f(): f()\nf()", "handler-import-failed", "RecursionError"),
        ("raise Exception", "handler-import-failed", "Exception"),
    ],
)
def test_nothing_at_import_escapes(load: Callable[..., Handler], source: str, reference: str, text: str) -> None:
    error = problem_of(load, source)
    assert error.problem().reference == reference
    assert text in str(error)
    assert "cortex_handler_a" not in sys.modules


# ---- parameters -----------------------------------------------------------------------------------------------------


class Callable_:
    def __call__(self, sample: Any, metadata: Any) -> Any:
        return sample


class AsyncCallable:
    async def __call__(self, sample: Any, metadata: Any) -> Any:
        return sample


def decorated(function: Any) -> Any:
    @functools.wraps(function)
    def wrapper(*arguments: Any, **named: Any) -> Any:
        return function(*arguments, **named)

    return wrapper


async def async_hook(sample: Any, metadata: Any) -> Any:
    return sample


@pytest.mark.parametrize(
    ("function", "takes_request"),
    [
        (lambda a, b: a, False),
        (lambda a, b, /: a, False),
        (lambda a, b, c: c, True),
        (lambda a, b, request=None: request, True),
        (lambda a, b, threshold=0.5: threshold, False),
        (lambda a, b, c, d=1: c, True),
        (lambda *a: a[0], False),
        (lambda a, *rest: a, False),
        (lambda a, b=None, **k: a, False),
        (functools.partial(lambda x, a, b: a, 1), False),
        (Callable_(), False),
        (Callable_().__call__, False),
        (decorated(lambda a, b, c: c), True),
    ],
)
def test_parameters_are_matched_by_position(function: Any, takes_request: bool) -> None:
    hook = Hook("pre_inference", function)
    assert hook.takes_request is takes_request
    result = hook.call("sample", "metadata", call(id="r"))
    assert (result.id == "r") if takes_request and result is not None else result in ("sample", 0.5)


def test_a_request_may_be_taken_by_name() -> None:
    def hook(sample: Any, metadata: Any, *, request: Any) -> str:
        return request.id

    assert Hook("pre_inference", hook).call(1, 2, call(id="r")) == "r"


@pytest.mark.parametrize(
    ("definition", "found"),
    [
        ("def pre_inference(): pass", "pre_inference()"),
        ("def pre_inference(sample): pass", "pre_inference(sample)"),
        ("def pre_inference(a, b, c, d): pass", "pre_inference(a, b, c, d)"),
        ("def pre_inference(a, b, *, key): pass", "nothing is passed as key"),
        ("def pre_inference(sample: dict, *, request): pass", "pre_inference(sample: dict, *, request)"),
        ("class H:\n  def pre_inference(self): pass\npre_inference = H().pre_inference", "pre_inference()"),
    ],
)
def test_a_wrong_number_shows_found_and_expected(load: Callable[..., Handler], definition: str, found: str) -> None:
    error = problem_of(load, "\n" + definition)
    assert error.problem().reference == "handler-wrong-parameters"
    assert found in str(error)
    assert "pre_inference(sample, metadata)" in str(error)
    assert "handler.py:" in error.problem().where


def test_a_generator_and_a_constant_are_no_hooks(load: Callable[..., Handler]) -> None:
    assert "yield" in str(problem_of(load, "def post_inference(a, b):\n  yield a"))
    error = problem_of(load, "post_inference = 3")
    assert error.problem().reference == "handler-not-callable"
    assert "an int" in str(error)


@pytest.mark.parametrize(
    ("function", "is_async"),
    [
        (lambda a, b: a, False),
        (async_hook, True),
        (functools.partial(async_hook), True),
        (decorated(async_hook), True),
        (AsyncCallable(), True),
        (Callable_(), False),
    ],
)
def test_async_hooks_are_recognised(function: Any, is_async: bool) -> None:
    hook = Hook("pre_inference", function)
    assert hook.is_async is is_async
    assert Handler(pre=hook).is_async is is_async
    if is_async:
        assert asyncio.run(hook.call_async(5, None, call())) == 5


# ---- calling --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        ValueError("x"),
        SystemExit(1),
        KeyboardInterrupt(),
        GeneratorExit(),
        StopIteration(),
        MemoryError(),
        RecursionError(),
        asyncio.CancelledError(),
    ],
)
def test_whatever_a_hook_raises_is_its_failure(error: BaseException) -> None:
    def fail(*_: Any) -> None:
        raise error

    async def fail_later(*_: Any) -> None:
        raise error

    with pytest.raises(HookFailed) as caught:
        Hook("pre_inference", fail).call(1, 2, call())
    assert caught.value.cause is error
    with pytest.raises(HookFailed):
        asyncio.run(Hook("post_inference", fail_later).call_async(1, 2, call()))


def test_a_request_error_passes_through() -> None:
    def refuse(*_: Any) -> None:
        raise RequestError(404, "no such customer")

    with pytest.raises(RequestError):
        Hook("pre_inference", refuse).call(1, 2, call())


def test_a_coroutine_from_a_sync_hook_is_explained() -> None:
    with pytest.raises(HookFailed, match="declare it with `async def`"):
        Hook("pre_inference", lambda a, b: async_hook(a, b)).call(1, 2, call())


# ---- what they see --------------------------------------------------------------------------------------------------


def test_pre_and_post_of_a_request_share_the_view() -> None:
    both = call()
    Hook("pre_inference", lambda a, b, request: request.state.update(a=a)).call(1, 2, both)
    assert Hook("post_inference", lambda a, b, request: request.state["a"]).call(0, 0, both) == 1
