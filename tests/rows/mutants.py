"""
The prover without one of its checks: whatever it then proves wrongly shows that the check is needed, and tried.

A check is found in the source: an `if` that ends in a refusal, a call that may refuse and whose result nobody takes,
one of several conditions for going on. A rule is also tried as one that hands its first input on, and as one that never
rounds.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import CodeType, FrameType, ModuleType
from typing import Any, Final

import msgspec

import cortex
from cortex.wire.graphs import Model

PACKAGE: Final = "cortex.rows"
_ROOT: Final = Path(cortex.__file__).parent / "rows"
_REFUSALS: Final = ("refuse", "mixed")
_OF_TENSORFLOW: Final = (f"{PACKAGE}.saved_models", f"{PACKAGE}.rules.tensorflow")
"""No ONNX model comes by there: `tests/unit/rows/test_tensorflow_rules.py` has refusals of its own."""


class Mutant(msgspec.Struct, frozen=True, order=True):
    """One check, and where it stands."""

    module: str
    """As it is imported."""
    function: str
    line: int
    text: str
    """The check, as it is written."""
    index: int
    """Among those of its module."""

    @property
    def place(self) -> str:
        return f"{self.module.removeprefix(PACKAGE + '.').replace('.', '/')}.py:{self.line}"


# ---- finding checks ---------------------------------------------------------------------------------------------


def mutants() -> list[Mutant]:
    """All checks of the package that ONNX models come by, in the order of its files."""
    found = []
    for path in sorted(_ROOT.rglob("*.py")):
        relative = path.relative_to(_ROOT).with_suffix("")
        parts = [part for part in relative.parts if part != "__init__"]
        module = ".".join([PACKAGE, *parts])
        if module.startswith(_OF_TENSORFLOW):
            continue
        for index, (function, line, text, _) in enumerate(_changes(ast.parse(path.read_text()))):
            found.append(Mutant(module, function, line, text, index))
    return found


_ELEMENTWISE: Final = "each element by itself; nothing to check"
_LISTS: Final = "a list handed on is no tensor; what it may hold is checked by `joined`, `stacked` and the output"
WITHOUT_A_CASE: Final[Mapping[tuple[str, str], str]] = {
    **{
        (f"{PACKAGE}.rules.{module}", function): reason
        for module, reason, functions in (
            ("classical", _ELEMENTWISE, ("binarizer", "category_mapper", "label_encoder")),
            ("elementwise", _ELEMENTWISE, ("cast", "cast_like", "clip", "identity", "quantized_curve")),
            ("products", "rows stay where they are; weights are wherever onnxruntime packed them", ("mat_mul_n_bits",)),
            ("sequences", _LISTS, ("at", "concat", "construct", "empty", "erase", "insert", "length")),
            ("shapes", "makes what no tensor can be handed on for", ("constant", "constant_of_shape")),
        )
        for function in functions
    },
}
"""Rules of which no check can be missed by itself, with the reason."""


def rule_functions() -> set[tuple[str, str]]:
    """Module and name of each function that is the rule of an operator of ONNX."""
    from cortex.rows.rules.registry import RULES

    return {
        (rule.function.__module__, rule.function.__name__)
        for (domain, _), rule in RULES.items()
        if domain != "tensorflow"
    }


_Change = tuple[str, int, str, Callable[[], None]]
"""The function it is in, its line, the check as text, and what takes it out of the tree."""


def _changes(tree: ast.Module) -> list[_Change]:
    found: list[_Change] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and not _is_refusal_itself(node):
            found += [(node.name, *change) for change in _changes_in(node)]
            registrations = _registrations(node, tree)
            if registrations:
                found.append((node.name, node.lineno, "the rule as a whole", functools.partial(_hand_on, node)))
            for call in registrations:
                found += [
                    (node.name, call.lineno, ast.unparse(keyword), functools.partial(call.keywords.remove, keyword))
                    for keyword in call.keywords
                    if keyword.arg == "rounds"
                ]
    return found


def _changes_in(function: ast.FunctionDef) -> Iterator[tuple[int, str, Callable[[], None]]]:
    for node in _own_nodes(function):
        if isinstance(node, ast.If):
            if _ends_in_refusal(node.body):
                yield node.lineno, f"if {ast.unparse(node.test)}", functools.partial(_never, node)
                yield from _parts(node.test, ast.Or)
            else:
                yield from _parts(node.test, ast.And)
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and isinstance(node.value.func, ast.Name):
            if node.value.func.id != "refuse":
                yield node.lineno, ast.unparse(node), functools.partial(_drop, node)
        elif isinstance(node, ast.IfExp):
            if _is_refusal(node.orelse):
                yield node.lineno, ast.unparse(node.test), functools.partial(_always, node, True)
            elif _is_refusal(node.body):
                yield node.lineno, ast.unparse(node.test), functools.partial(_always, node, False)
        elif isinstance(node, ast.Assign | ast.Return) and node.value is not None:
            yield from _parts(node.value, ast.And)
        elif isinstance(node, ast.BoolOp) and isinstance(node.op, ast.Or) and any(map(_is_refusal, node.values)):
            yield node.lineno, ast.unparse(node), functools.partial(_without_refusal, node)


def _own_nodes(function: ast.FunctionDef) -> Iterator[ast.AST]:
    """Nodes of a function, but not of functions in it: those are looked at by themselves."""
    waiting: list[ast.AST] = list(function.body)
    while waiting:
        node = waiting.pop(0)
        yield node
        if not isinstance(node, ast.FunctionDef):
            waiting += ast.iter_child_nodes(node)


def _parts(test: ast.expr, kind: type[ast.boolop]) -> Iterator[tuple[int, str, Callable[[], None]]]:
    """Each operand of an `and`, or an `or`, to be left out by itself."""
    if not isinstance(test, ast.BoolOp) or not isinstance(test.op, kind):
        return
    for index, value in enumerate(test.values):
        yield value.lineno, ast.unparse(value), functools.partial(_leave_out, test, index)


def _is_refusal(node: ast.AST | None) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _REFUSALS


def _ends_in_refusal(body: Sequence[ast.stmt]) -> bool:
    last = body[-1]
    if isinstance(last, ast.Raise):
        return True
    if isinstance(last, ast.Expr):
        return _is_refusal(last.value)
    if isinstance(last, ast.Return) and last.value is not None:
        reason = isinstance(last.value, ast.JoinedStr) or (
            isinstance(last.value, ast.Constant) and isinstance(last.value.value, str) and bool(last.value.value)
        )
        return _is_refusal(last.value) or reason
    return False


def _is_refusal_itself(node: ast.FunctionDef) -> bool:
    return node.name in ("refuse", "mixed", "not_proved")


def _registrations(node: ast.FunctionDef, tree: ast.Module) -> list[ast.Call]:
    """The calls of `rule` that make it one: a decorator, or the first half of `rule(…)(name)`."""
    found = [one for one in node.decorator_list if isinstance(one, ast.Call) and ast.unparse(one.func) == "rule"]
    for call in ast.walk(tree):
        if (
            isinstance(call, ast.Call)
            and isinstance(call.func, ast.Call)
            and ast.unparse(call.func.func) == "rule"
            and any(isinstance(name, ast.Name) and name.id == node.name for one in call.args for name in ast.walk(one))
        ):
            found.append(call.func)
    return found


# ---- taking them out --------------------------------------------------------------------------------------------


def _never(node: ast.If) -> None:
    node.test = ast.Constant(False)


def _drop(node: ast.Expr) -> None:
    node.value = ast.Constant(None)


def _always(node: ast.IfExp, value: bool) -> None:
    node.test = ast.Constant(value)


def _leave_out(node: ast.BoolOp, index: int) -> None:
    node.values[index] = ast.Constant(isinstance(node.op, ast.And))


def _without_refusal(node: ast.BoolOp) -> None:
    node.values = [value for value in node.values if not _is_refusal(value)] * 2


def _hand_on(function: ast.FunctionDef) -> None:
    """Each output is the first input that has rows, as it is."""
    (argument, *_) = function.args.args
    source = (
        f"given = [value for value in {argument.arg}.given if not value.is_uniform] or {argument.arg}.given\n"
        f"return [given[0]] * max(1, {argument.arg}.outputs)"
    )
    function.body = ast.parse(source).body


def mutated(mutant: Mutant) -> CodeType:
    """The code of the mutant's module without its check."""
    path = _path_of(mutant.module)
    tree = ast.parse(path.read_text())
    function, line, text, change = _changes(tree)[mutant.index]
    if (function, line, text) != (mutant.function, mutant.line, mutant.text):
        raise ValueError(f"{mutant.place} was changed since")
    change()
    return compile(ast.fix_missing_locations(tree), str(path), "exec")


def _path_of(module: str) -> Path:
    path = _ROOT.joinpath(*module.removeprefix(PACKAGE).strip(".").split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


# ---- running without them ---------------------------------------------------------------------------------------


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Has one module of the package made of other code."""

    def __init__(self, module: str, code: CodeType) -> None:
        self._module = module
        self._code = code

    def find_spec(self, name: str, path: object = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != self._module:
            return None
        file = _path_of(name)
        return importlib.util.spec_from_file_location(
            name, file, loader=self, submodule_search_locations=[str(file.parent)] if self.is_package(name) else None
        )

    def is_package(self, name: str) -> bool:
        return _path_of(name).name == "__init__.py"

    def get_source(self, name: str) -> None:
        return None

    def get_code(self, name: str) -> CodeType:
        return self._code


@contextlib.contextmanager
def prover_without(mutant: Mutant) -> Iterator[Callable[[Any], Any]]:
    """`prove`, of a package of its own in which a check is missing."""
    kept = {name: module for name, module in sys.modules.items() if name == PACKAGE or name.startswith(PACKAGE + ".")}
    before = getattr(cortex, "rows", None)
    finder = _Finder(mutant.module, mutated(mutant))
    for name in kept:
        del sys.modules[name]
    sys.meta_path.insert(0, finder)
    try:
        yield importlib.import_module(PACKAGE).prove
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name == PACKAGE or name.startswith(PACKAGE + ".")]:
            del sys.modules[name]
        sys.modules.update(kept)
        if before is not None:
            cortex.rows = before


def killer(
    mutant: Mapping[str, Any], mixing: Iterable[tuple[str, Model]], moving: Iterable[tuple[str, Model]] = ()
) -> str | None:
    """
    Return the key of the first case that shows that the check is needed; None if none does.

    Args:
        mixing: wrong when run, and refused with the check.
        moving: proved with it, and its rows differ by bits: not `exact`.
    """
    try:
        with prover_without(msgspec.convert(mutant, Mutant)) as prove:
            for key, model in mixing:
                if prove(model).proved:
                    return key
            for key, model in moving:
                found = prove(model)
                if found.proved and found.rounding == "exact":
                    return key
    except (ImportError, ValueError, TypeError, AttributeError):
        return None  # without it the package does not even load
    return None


class Trace(msgspec.Struct, frozen=True):
    """Functions of the prover, as `module:function`."""

    ran: list[str]
    refused: list[str]
    """Those of `ran` that were at work when something was refused."""


def traced(model: Model) -> Trace:
    """Prove, and see by which functions."""
    from cortex.rows import prove
    from cortex.rows.refusal import NotProved

    ran: set[str] = set()
    refused: set[str] = set()

    def name_of(frame: FrameType) -> str | None:
        module = frame.f_globals.get("__name__", "")
        return f"{module}:{frame.f_code.co_name}" if module.startswith(PACKAGE) else None

    def enter(frame: FrameType, event: str, argument: object) -> None:
        name = name_of(frame) if event == "call" else None
        if name is not None:
            ran.add(name)

    def note(self: Exception, *arguments: object) -> None:
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            refused.update(filter(None, [name_of(frame)]))
            frame = frame.f_back

    kept = NotProved.__init__
    NotProved.__init__ = note  # type: ignore[method-assign, assignment]
    sys.setprofile(enter)
    try:
        prove(model)
    finally:
        sys.setprofile(None)
        NotProved.__init__ = kept  # type: ignore[method-assign]
    return Trace(sorted(ran), sorted(refused))
