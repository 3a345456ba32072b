"""
What a `post_inference` is sure to fail with, seen in its source before any request is.

Handlers of Cortex 0.8 got lists where these get numpy arrays, base64 where these get text, and integers of 64 bits as
text. Most of what they do works all the same. What never does is told at the deploy, with the line to write; what may
work, as far as one can see, is left alone. Pure.
"""

from __future__ import annotations

import ast
import binascii
import copy
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Final

from cortex.errors import Problem
from cortex.wire.signature import Signature, TensorSpec

_LIST_METHODS: Final = frozenset({"append", "count", "extend", "index", "insert", "pop", "remove", "reverse"})
"""Of lists, and not of arrays."""
_DUMPS: Final = frozenset({"dump", "dumps"})
_DECODERS: Final = frozenset({"b64decode", "standard_b64decode", "decodebytes"})


def sure_failures(source: str, signature: Signature, *, file: str) -> list[Problem]:
    """
    Return what cannot work in the `post_inference` of a handler's file.

    Args:
        source: of the file.
        signature: of the model whose outputs it gets.
        file: as it is shown, relative to the project.
    """
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # said by whoever imports it
        return []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == "post_inference":
            parameters = [*node.args.posonlyargs, *node.args.args]
            if parameters:
                return _Look(node, parameters[0].arg, signature).problems(file)
    return []


def advice_for(error: BaseException) -> str:
    """The line to write where a handler failed with an array in place of a list or a number; empty if it did not."""
    try:
        text = str(error)
    except BaseException:  # of a class of the handler's own
        return ""
    for kind, pattern, line in _ADVICE:
        found = re.search(pattern, text)
        if isinstance(error, kind) and found:
            return line.format(*found.groups())
    return ""


_ADVICE: Final[tuple[tuple[type[BaseException], str, str], ...]] = (
    (
        AttributeError,
        r"'numpy\.ndarray' object has no attribute '(\w+)'",
        "outputs are numpy arrays: write `.tolist()` before `.{0}`",
    ),
    (
        TypeError,
        r"Object of type (?:ndarray|u?int\d+|float\d+|bool_?|Prediction) is not JSON serializable",
        "return the value itself, which Cortex writes as JSON, or write `json.dumps(value.tolist())`",
    ),
    (ValueError, r"truth value of an array .* is ambiguous", "write `value.any()`, or `len(value) > 0`"),
    (
        TypeError,
        r"only (?:integer scalar arrays|0-dimensional arrays|length-1 arrays) can be converted",
        "an output of one number is an array of it: write `value[0]` or `value.item()`",
    ),
    (TypeError, r"unhashable type: 'numpy\.ndarray'", "a key is one value: write `value[0]` or `value.item()`"),
    (binascii.Error, "", "text in outputs is text already, not base64 as in Cortex 0.8: leave the decoding out"),
)


class _Look:
    """One function, and which of its names stand for the prediction or an output of it."""

    def __init__(self, function: ast.FunctionDef | ast.AsyncFunctionDef, name: str, signature: Signature) -> None:
        self._function = function
        self._name = name
        self._outputs = signature.outputs
        self._by_name = signature.key is not None
        nodes = list(ast.walk(function))
        bound = Counter(node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store))
        bound.update(node.arg for node in nodes if isinstance(node, ast.arg))
        self._is_bound_again = bound[name] > 1
        self._aliases: dict[str, TensorSpec] = {}
        for node in nodes:
            if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
                target, spec = node.targets[0].id, self._output(node.value)
                if spec is not None and bound[target] == 1:
                    self._aliases[target] = spec

    def problems(self, file: str) -> list[Problem]:
        if self._is_bound_again:
            return []
        found = []
        for node in _surely_run(self._function):
            told = self._told(node)
            if told is not None:
                message, line = told
                found.append(
                    Problem(
                        reference="prediction-is-an-array",
                        message=message,
                        where=f"{file}:{getattr(node, 'lineno', self._function.lineno)}",
                        hint=line,
                    )
                )
        return found

    def _told(self, node: ast.AST) -> tuple[str, str] | None:
        """What is wrong with a node, and the line to write; None if nothing is."""
        match node:
            case ast.Call(func=ast.Attribute(value=of, attr=method)) if method in _LIST_METHODS and self._output(of):
                shown = ast.unparse(of)
                return (
                    f"{shown} is a numpy array, which has no `{method}`",
                    f"write `{shown}.tolist().{ast.unparse(node).removeprefix(shown + '.')}`",
                )
            case ast.Call(
                func=ast.Attribute(value=ast.Name("json"), attr=method), args=[written, *_], keywords=options
            ):
                named = {option.arg for option in options}
                if method in _DUMPS and named.isdisjoint({"default", "cls", None}) and self._has_array(written):
                    return (
                        f"`{ast.unparse(node)}` fails, as numpy arrays are not JSON",
                        f"return the value itself, which Cortex writes as JSON, or write `{self._as_lists(node)}`",
                    )
            case ast.Call(func=ast.Attribute(attr=name) | ast.Name(name), args=[ast.Subscript(of) | of, *_]):
                spec = self._output(of)
                if name in _DECODERS and self._by_name and spec is not None and spec.dtype == "string":
                    return (
                        f"{ast.unparse(of)} is text already, not base64 as in Cortex 0.8",
                        f"write `{ast.unparse(node.args[0])}`",
                    )
            case ast.Compare(
                left=ast.Subscript(of), ops=[ast.Eq() | ast.NotEq()], comparators=[ast.Constant(str(text))]
            ):
                spec = self._output(of)
                if self._by_name and spec is not None and "int" in spec.dtype:
                    changed = ast.unparse(node).removesuffix(repr(text)) + (text if _is_number(text) else "…")
                    return (
                        f"{ast.unparse(node.left)} is a number, and never equal to {text!r}",
                        f"write `{changed}`",
                    )
            case ast.If(test=test) | ast.While(test=test) | ast.IfExp(test=test) | ast.UnaryOp(ast.Not(), operand=test):
                spec = self._output(test)
                if spec is not None and _has_several(spec):
                    shown = ast.unparse(test)
                    return (
                        f"{shown} is a numpy array of several numbers, which is neither true nor false",
                        f"write `{shown}.any()`, or `len({shown}) > 0`",
                    )
        return None

    def _output(self, node: ast.AST) -> TensorSpec | None:
        """The output that an expression stands for, if that is surely an array."""
        match node:
            case ast.Name(name):
                return self._aliases.get(name)
            case ast.Subscript(ast.Name(name), ast.Constant(str() | int() as key)) if name == self._name:
                return self._spec(key)
            case ast.Call(ast.Attribute(ast.Name(name), "get"), [ast.Constant(str(key))]) if name == self._name:
                return self._spec(key) if self._by_name else None
        return None

    def _spec(self, key: str | int) -> TensorSpec | None:
        outputs: Mapping[Any, TensorSpec] = {spec.name: spec for spec in self._outputs}
        if not self._by_name:
            outputs = {**outputs, **dict(enumerate(self._outputs))}
        spec = outputs.get(key)
        return spec if spec is not None and spec.kind == "tensor" else None

    def _has_array(self, node: ast.AST) -> bool:
        """Whether an expression is an output, the prediction, or a literal that has one."""
        match node:
            case ast.Name(name) if name == self._name:
                return any(spec.kind == "tensor" for spec in self._outputs)
            case ast.Dict(values=items) | ast.List(elts=items) | ast.Tuple(elts=items):
                return any(map(self._has_array, items))
        return self._output(node) is not None

    def _as_lists(self, call: ast.Call) -> str:
        """A call with the arrays in its first argument as lists."""
        changed = copy.deepcopy(call)
        changed.args[0] = self._listed(changed.args[0])
        return ast.unparse(ast.fix_missing_locations(changed))

    def _listed(self, node: ast.expr) -> ast.expr:
        match node:
            case ast.Name(name) if name == self._name:
                form = "{k: v.tolist() for k, v in %s.items()}" if self._by_name else "[v.tolist() for v in %s]"
                return ast.parse(form % name, mode="eval").body
            case ast.Dict():
                node.values = list(map(self._listed, node.values))
            case ast.List() | ast.Tuple():
                node.elts = list(map(self._listed, node.elts))
            case _ if self._output(node) is not None:
                return ast.Call(ast.Attribute(node, "tolist", ast.Load()), [], [])
        return node


def _surely_run(function: ast.AST) -> Iterator[ast.AST]:
    """Yield a function's nodes, but for those that may be meant to fail, or are looked at before they are used."""
    for node in ast.iter_child_nodes(function):
        if isinstance(node, ast.Try):
            continue
        if isinstance(node, ast.If | ast.IfExp) and _looks_at_types(node.test):
            continue
        yield node
        yield from _surely_run(node)


def _looks_at_types(test: ast.AST) -> bool:
    return any(isinstance(node, ast.Name) and node.id in ("isinstance", "hasattr", "type") for node in ast.walk(test))


def _has_several(spec: TensorSpec) -> bool:
    """Whether an output has more than one number, whatever went in."""
    return any(isinstance(dim, int) and dim > 1 for dim in spec.shape or ())


def _is_number(text: str) -> bool:
    try:
        int(text)
    except ValueError:
        return False
    return True
