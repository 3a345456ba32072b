"""Tests use what anybody may use: no private name of another object, in code, in a string, or patched by its name."""

from __future__ import annotations

import ast
import functools
import re
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from markdown import ROOT

PUBLIC_ALL_THE_SAME = {
    "os._exit": "documented by Python; ends a child without what the parent has registered",
    "sys._getframe": "documented by Python; `inspect` has nothing that is as fast",
    "*._replace": "of named tuples; documented so, as their fields have the plain names",
    "*._make_callable_from_options": "of TensorFlow: a session that lacks it, as future ones may",
    "node_cases._existing_names": "of onnx: its operators' cases can be listed in no other way",
    "node_cases._NodeTestCases": "of onnx: its operators' cases can be listed in no other way",
}
"""Names that begin with an underscore and are used, each with the reason."""
_PRIVATE = re.compile(r"_[a-zA-Z]\w*")
_PATCHES = ("setattr", "getattr", "delattr", "hasattr", "object", "patch")


def private_uses(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of each use of a private name that is not the code's own."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case (
                ast.Attribute(value=ast.Name(id="self" | "cls"))
                | ast.Attribute(value=ast.Call(func=ast.Name(id="super")))
            ):
                continue
            case ast.Attribute(value=whose, attr=name) if _PRIVATE.fullmatch(name):
                yield node.lineno, f"{ast.unparse(whose)}.{name}"
            case ast.ImportFrom(module=module, names=names):
                for name in (*(module or "").split("."), *(alias.name for alias in names)):
                    if _PRIVATE.fullmatch(name) and module != "__future__":
                        yield node.lineno, f"{module}.{name}"
            case ast.Call(func=ast.Name(id=called) | ast.Attribute(attr=called), args=args) if called in _PATCHES:
                for argument in args[:2]:
                    if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                        last = argument.value.rpartition(".")[2]
                        if _PRIVATE.fullmatch(last):
                            yield node.lineno, f'"{argument.value}"'
            case ast.Constant(value=str(text)) if "cortex" in text and "import" in text:
                try:
                    for line, use in private_uses(textwrap.dedent(text)):
                        yield node.lineno + line - 1, use
                except SyntaxError:
                    pass  # no code


@functools.cache
def uses_in_tests() -> Sequence[tuple[Path, int, str]]:
    """File, line and text of each use in any test; read once, since more than one test asks for it."""
    files = sorted((ROOT / "tests").rglob("*.py"))
    return [(file, line, use) for file in files for line, use in private_uses(file.read_text())]


def excused(use: str) -> bool:
    return not shapes(use).isdisjoint(PUBLIC_ALL_THE_SAME)


def shapes(use: str) -> set[str]:
    return {use, "*." + use.strip('"').rpartition(".")[2]}


def test_no_test_reaches_into_what_is_private() -> None:
    reaching = [
        f"{file.relative_to(ROOT)}:{line}: {use}"
        for file, line, use in uses_in_tests()
        if file != Path(__file__)  # whose samples do all that
        and not excused(use)
    ]
    assert reaching == [], "test what it does, or make public what is a part of its face"


def test_every_exception_is_needed() -> None:
    used = {shape for _file, _line, use in uses_in_tests() for shape in shapes(use)}
    assert sorted(PUBLIC_ALL_THE_SAME.keys() - used) == []


@pytest.mark.parametrize(
    ("code", "uses"),
    [
        ("self._a = cls._b + super()._c", []),
        ("thing.__dict__", []),
        ("thing._a.b", ["thing._a"]),
        ("self.thing._a()", ["self.thing._a"]),
        ("from cortex.x import _a, b", ["cortex.x._a"]),
        ("from cortex._x import a", ["cortex._x._x"]),
        ("monkeypatch.setattr(thing, '_a', 1)", ['"_a"']),
        ("monkeypatch.setattr('cortex.x._a', 1)", ['"cortex.x._a"']),
        ("getattr(thing, '_a')", ['"_a"']),
        ("run('from cortex.x import _a')", ["cortex.x._a"]),
        ("run('no code of cortex, import _a')", []),
    ],
)
def test_each_way_to_reach_in_is_noticed(code: str, uses: list[str]) -> None:
    assert [use for _, use in private_uses(code)] == uses
