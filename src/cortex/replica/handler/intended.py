"""What the writer of a handler's file meant, where the functions that Cortex calls are not there. Pure."""

from __future__ import annotations

import ast
import difflib
import inspect
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, Final, Literal, NamedTuple

HookName = Literal["pre_inference", "post_inference"]
LifeHookName = Literal["on_start", "on_stop"]
HOOKS: Final[tuple[HookName, ...]] = ("pre_inference", "post_inference")
LIFE_HOOKS: Final[tuple[LifeHookName, ...]] = ("on_start", "on_stop")
LINES: Final[Mapping[str, str]] = {
    "pre_inference": "def pre_inference(sample, metadata):",
    "post_inference": "def post_inference(prediction, metadata):",
}
"""How each begins."""

_NEAR: Final = 0.87
"""`inference` alone is as near as 0.86, and `post_inference` is to `pre_inference` as 0.8."""
_SHORT: Final = {"preinfer": "pre_inference", "postinfer": "post_inference"}
_START: Final = frozenset({"start", "startup", "started", "begin", "boot", "init", "initialize", "initialise", "setup"})
_STOP: Final = frozenset(
    {"stop", "stopped", "shutdown", "exit", "end", "close", "cleanup", "teardown", "terminate", "finalize", "finalise"}
)
"""What others call `on_start` and `on_stop`, with `on_` before it or without."""
_PAGE: Final = "docs/from-cortex-0.md has both side by side"


class Slip(NamedTuple):
    """Why a file is no handler as it was meant."""

    reference: str
    message: str
    hint: str
    value: Any
    """What to look for in the file; None for nothing in particular."""


def find_slip(
    names: Mapping[str, Any], found: Collection[str], source: str, others: Callable[[], Iterable[str]] = tuple
) -> Slip | None:
    """
    Return what is wrong with the names of a handler's file; None if nothing is.

    Args:
        names: its global variables.
        found: the hooks that it has, `on_start` and `on_stop` among them.
        source: its text: a `shutdown` that the file itself calls or registers is no misspelt `on_stop`.
        others: the texts of the project's other files, asked for only where they matter: nor is one that these import.

    Returns:
        A hook whose name is misspelt, whether the other one is there or not; where neither is, what else there is.
    """
    for hook in HOOKS:
        if hook not in found:
            for name, function in _functions(names):
                if _is_near(name, hook):
                    return Slip(
                        reference="handler-hook-misspelt",
                        message=f"{name} is never called: Cortex calls `pre_inference` and `post_inference`",
                        hint=f'did you mean "{hook}"?',
                        value=function,
                    )
    slip = _life_slip(names, found, source, others)
    if found:
        return slip
    return slip if slip is not None and slip.value.__name__.startswith("on") else _without_hooks(names)


def _life_slip(
    names: Mapping[str, Any], found: Collection[str], source: str, others: Callable[[], Iterable[str]]
) -> Slip | None:
    """A function that nobody calls, with a name like `on_start` or `on_stop` and as easily called."""
    module = names.get("__name__")
    for name, function in names.items():
        hook = _meant_life_hook(name)
        if (
            hook is not None
            and hook not in found
            and inspect.isfunction(function)
            and (function.__module__, function.__name__) == (module, name)
            and _takes_nothing(function)
            and not _is_used(name, source)
            and not any(_is_asked_for(name, text) for text in others())
        ):
            return Slip(
                reference="handler-hook-misspelt",
                message=f"{name} is never called: Cortex calls `on_start` and `on_stop`",
                hint=f'did you mean "{hook}"?',
                value=function,
            )
    return None


def _meant_life_hook(name: str) -> LifeHookName | None:
    plain = _plain(name)
    for hook, others in zip(LIFE_HOOKS, (_START, _STOP), strict=True):
        wanted = _plain(hook)
        is_misspelt = sorted(plain) == sorted(wanted) or difflib.SequenceMatcher(None, plain, wanted).ratio() > _NEAR
        if name not in LIFE_HOOKS and (plain.removeprefix("on") in others or is_misspelt):
            return hook
    return None


def _takes_nothing(function: Any) -> bool:
    try:
        inspect.signature(function).bind()
    except TypeError:
        return False
    return True


def _is_used(name: str, source: str) -> bool:
    """Whether a file does something with a function of its own, be it a decorator's doing. In doubt it does."""
    nodes = _nodes(source)
    return nodes is None or any(
        (isinstance(node, ast.Name) and node.id == name)
        or (isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name and node.decorator_list)
        or _is_text_of(node, name)
        for node in nodes
    )


def _is_asked_for(name: str, source: str) -> bool:
    """Whether a file may do something with a function of another one."""
    nodes = _nodes(source) if name in source else []
    return nodes is None or any(
        (isinstance(node, ast.alias) and node.name == name)
        or (isinstance(node, ast.Attribute) and node.attr == name)
        or _is_text_of(node, name)
        for node in nodes
    )


def _is_text_of(node: ast.AST, name: str) -> bool:
    """As `__all__`, `getattr` and `mock.patch` name what they mean."""
    return isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.split(".")[-1] == name


def _nodes(source: str) -> list[ast.AST] | None:
    try:
        return list(ast.walk(ast.parse(source)))
    except (SyntaxError, ValueError, RecursionError):
        return None


def _without_hooks(names: Mapping[str, Any]) -> Slip:
    for name, kind in _classes(names):
        methods = [hook for hook in HOOKS if hasattr(kind, hook)]
        if methods:
            return _slip(
                f"{_listed(methods)} of class {name} cannot be called: hooks are functions of the file itself",
                "; ".join(f"{method} = {name}().{method}" for method in methods).join(("add `", "` below the class")),
                kind,
            )
        method = next((method for method in _LATER_METHODS if hasattr(kind, method)), None)
        if method is not None:
            return _slip(
                f"class {name} with `{method}` is how Cortex 0.10 and later had it; here Cortex runs `model:` itself",
                f"make what `{method}` does before the model a `{LINES['pre_inference']}`, what it does after it "
                f"a `{LINES['post_inference']}`, and `__init__` the top of the file; {_PAGE}",
                kind,
            )
    for name, function in _functions(names):
        hook = _OTHERS.get(_plain(name))
        if hook is not None:
            return _slip(f"{name} is never called, nor is anything else", f"write it as `{LINES[hook]}`", function)
        if _plain(name) in _RUNS:
            return _slip(
                f"{name} is never called, nor is anything else: Cortex runs `model:` itself",
                f"make what it does before the model a `{LINES['pre_inference']}`, and what it does after it "
                f"a `{LINES['post_inference']}`; {_PAGE}",
                function,
            )
    module = names.get("__name__")
    own = [name for name, value in _functions(names) if getattr(value, "__module__", None) == module]
    own += [name for name, _ in _classes(names)]
    defined = f"; it defines {_listed(own)}" if own else ""
    return _slip(
        f"the file has neither pre_inference nor post_inference{defined}",
        " or ".join(f"`{LINES[hook]}`" for hook in HOOKS).join(
            ("write ", ", or take `request_handler` out of cortex.yaml")
        ),
        None,
    )


def _slip(message: str, hint: str, value: Any) -> Slip:
    return Slip(reference="handler-without-hook", message=message, hint=hint, value=value)


_LATER_METHODS: Final = ("predict", "handle_post", "handle_batch", "handle_async")
"""Of classes of later versions of Cortex 0.x and of its kin."""
_RUNS: Final = frozenset(
    {"predict", "predictfn", "inference", "infer", "handler", "handle", "lambdahandler", "run", "main", "serve"}
)
"""What servers of models call that have their users run the model."""
_OTHERS: Final[Mapping[str, HookName]] = {
    **dict.fromkeys(("pre", "preprocess", "preprocessing", "prepredict", "inputfn", "transforminput"), HOOKS[0]),
    **dict.fromkeys(("post", "postprocess", "postprocessing", "postpredict", "outputfn", "transformoutput"), HOOKS[1]),
}
"""What others call the same."""


def _plain(name: str) -> str:
    return name.replace("_", "").lower()


def _is_near(name: str, hook: HookName) -> bool:
    plain = _plain(name)
    if _SHORT.get(plain) == hook:
        return True
    return difflib.SequenceMatcher(None, plain, _plain(hook)).ratio() > _NEAR


def _functions(names: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield what can be called, of the file's own first."""
    called = [(name, value) for name, value in names.items() if callable(value) and not isinstance(value, type)]
    own = names.get("__name__")
    yield from sorted(called, key=lambda item: getattr(item[1], "__module__", None) != own)


def _classes(names: Mapping[str, Any]) -> Iterator[tuple[str, type]]:
    """Yield the file's own classes."""
    for name, value in names.items():
        if inspect.isclass(value) and value.__module__ == names.get("__name__"):
            yield name, value


def _listed(words: Collection[str]) -> str:
    shown = list(words)[:5]
    return ", ".join(shown) + (", …" if len(words) > len(shown) else "")
