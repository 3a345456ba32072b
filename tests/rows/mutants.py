"""
The prover without one of its checks: whatever it then says wrongly shows that the check is needed, and tried.

A check is found in the source: an `if` that ends in a refusal, a call that may refuse and whose result nobody takes,
one of several conditions for going on. A rule is also tried as one that hands its first input on, and as one that never
rounds. Code is exchanged in place, so that thousands can be tried in seconds.

`python tests/rows/mutants.py` lists which case shows each rule to be needed, and the checks that no case shows.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import dataclasses
import functools
import importlib
import inspect
import sys
import tempfile
import textwrap
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import msgspec
from cases import Expected
from prover import graph_of
from saved_model_cases import CASES, write
from written import written_cases

import cortex
from cortex.rows import prove, prove_saved_model
from cortex.rows.refusal import NotProved
from cortex.rows.rules.registry import RULES, Rounds, Rule
from cortex.rows.rules.tensorflow.patterns import PATTERNS
from cortex.rows.rules.tensorflow.registry import DOMAIN
from cortex.wire.batching import Proof, Rounding
from cortex.wire.graphs import Model
from cortex.wire.saved_model_proto import read_graph

PACKAGE: Final = "cortex.rows"
_ROOT: Final = Path(cortex.__file__).parent / "rows"
_REFUSALS: Final = ("refuse", "mixed")
_OF_TENSORFLOW: Final = (f"{PACKAGE}.saved_models", f"{PACKAGE}.rules.tensorflow")
"""No ONNX model comes by there."""

GONE: Final = "the rule, instead of a refusal"
"""Only what is proved shows that."""
ROUNDS: Final = "what rounds"
"""Its operators round nothing."""


class Mutant(msgspec.Struct, frozen=True, order=True):
    """One check, and where it stands."""

    module: str
    """As it is imported."""
    function: str
    """By its qualified name, and if it stands in another one by that one's."""
    line: int
    text: str
    """The check, as it is written."""
    index: int
    """Among those of its function."""

    @property
    def place(self) -> str:
        return f"{self.module.removeprefix(PACKAGE + '.').replace('.', '/')}.py:{self.line}"

    @property
    def is_of_tensorflow(self) -> bool:
        return self.module.startswith(_OF_TENSORFLOW)


_ELEMENTS: Final = "each element by itself"
_SCALAR: Final = "each element by itself; what else it takes is a single element, as no row is"
_LIST: Final = "a list, of which `joined` and whatever takes a tensor out say what it may hold"
_KEPT: Final = "what the model keeps, which no row changes"
_AS_IT_IS: Final = "hands on what it gets"
_SHAPE: Final = "makes a constant"

ANSWERS_ONLY: Final[Mapping[tuple[str, str], str]] = {
    (f"{PACKAGE}.rules.{module}", function): reason
    for module, reason, functions in (
        ("classical", _ELEMENTS, "category_mapper"),
        ("elementwise", _ELEMENTS, "cast_like"),
        ("elementwise", _AS_IT_IS, "identity"),
        ("sequences", _LIST, "concat construct empty length"),
        ("shapes", _SHAPE, "constant"),
        ("tensorflow.arrays", _SHAPE, "constant lin_space rank"),
        ("tensorflow.elements", _AS_IT_IS, "checked default identities identity"),
        ("tensorflow.elements", _ELEMENTS, "bucketize cast matches number_of_text parsed_number text"),
        ("tensorflow.elements", _SCALAR, "fake_quantize matches_given"),
        ("tensorflow.lists", _LIST, "empty length_of pop_back reserve stack"),
        ("tensorflow.patterns", "a sign is a label, other bits are steps", "sign_bit"),
        ("tensorflow.state", _KEPT, "device exported is_there read shape_of table table_of_tensors table_size"),
        ("tensorflow.state", _KEPT, "variable variable_of_old"),
    )
    for function in functions.split()
}
"""
Rules that say what they know and cannot be wrong by themselves, with the reason: a case shows only that their word is
needed.
"""


# ---- finding checks ---------------------------------------------------------------------------------------------


def mutants() -> list[Mutant]:
    """All checks of the package, in the order of its files."""
    found = []
    for path in sorted(_ROOT.rglob("*.py")):
        relative = path.relative_to(_ROOT).with_suffix("")
        module = ".".join([PACKAGE, *(part for part in relative.parts if part != "__init__")])
        for name, node in _functions_in(module).items():
            if node.name in _NO_CHECK:
                continue
            for index, (line, text, _) in enumerate(_changes(node)):
                found.append(Mutant(module, name, line, text, index))
            registered = _registered(module, name)
            if registered:
                found += [Mutant(module, name, node.lineno, text, -1) for text in _INSTEAD]
            if any(set(rule.rounds) != {Rounds.NOTHING} for rule in registered.values()):
                found.append(Mutant(module, name, node.lineno, ROUNDS, -1))
    return found


_NO_CHECK: Final = ("refuse", "mixed", "not_proved")
"""They are the refusal itself."""


def rule_functions() -> set[tuple[str, str]]:
    """Module and name of each function that is the rule of an operator, or of two of TensorFlow together."""
    return set(map(_name_of, [*(rule.function for rule in RULES.values()), *PATTERNS.values()]))


def _name_of(function: Callable[..., Any]) -> tuple[str, str]:
    return function.__module__, function.__qualname__


def _registered(module: str, name: str) -> dict[tuple[str, str], Rule]:
    """The rules that a function is."""
    return {key: rule for key, rule in RULES.items() if _name_of(rule.function) == (module, name)}


@functools.cache
def _functions_in(module: str) -> Mapping[str, ast.FunctionDef]:
    """A module's functions, and its classes' methods, by qualified name."""
    found = {}
    for node in ast.parse(_path_of(module).read_text()).body:
        if isinstance(node, ast.FunctionDef):
            found[node.name] = node
        elif isinstance(node, ast.ClassDef):
            found.update({f"{node.name}.{one.name}": one for one in node.body if isinstance(one, ast.FunctionDef)})
    return found


_Change = tuple[int, str, Callable[[], None]]
"""The check's line, the check as text, and what takes it out of the tree."""


def _changes(function: ast.FunctionDef) -> Iterator[_Change]:
    for statement in function.body:
        for node in ast.walk(statement):
            if isinstance(node, ast.If):
                if _ends_in_refusal(node.body):
                    yield node.lineno, f"if {ast.unparse(node.test)}", functools.partial(_never, node)
                    yield from _parts(node.test, ast.Or)
                else:
                    yield from _parts(node.test, ast.And)
            elif (
                isinstance(node, ast.Expr)
                and isinstance(node.value, ast.Call)
                and isinstance(node.value.func, ast.Name)
            ):
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


_INSTEAD: Final = {
    "the rule, instead of its first rows": """
        found = [value for value in call.given if value.is_rows] or call.given
        return found[:1] * max(1, call.outputs)
    """,
    "the rule, instead of its first input": """
        found = [value for value in call.given if not value.is_uniform] or call.given
        return found[:1] * max(1, call.outputs)
    """,
    GONE: """
        raise NotImplementedError
    """,
}
"""Other bodies of a rule."""


def _mutated(mutant: Mutant) -> CodeType:
    """The code of the mutant's function without its check."""
    function = copy.deepcopy(_functions_in(mutant.module)[mutant.function])
    if mutant.text in _INSTEAD:
        function.body = ast.parse(textwrap.dedent(_INSTEAD[mutant.text])).body
    else:
        line, text, change = list(_changes(function))[mutant.index]
        if (line, text) != (mutant.line, mutant.text):
            raise ValueError(f"{mutant.place} was changed since")
        change()
    function.decorator_list = []
    body: list[ast.stmt] = [function]
    for around in mutant.function.split(".")[:-1]:  # a method may call `super`
        body = [ast.ClassDef(around, [], [], body, [])]
    module = ast.fix_missing_locations(ast.Module([ast.parse("from __future__ import annotations").body[0], *body], []))
    return _code_of(mutant.function.split("."), compile(module, str(_path_of(mutant.module)), "exec"))


def _code_of(names: Sequence[str], code: CodeType) -> CodeType:
    for name in names:
        code = next(one for one in code.co_consts if isinstance(one, CodeType) and one.co_name == name)
    return code


def _path_of(module: str) -> Path:
    path = _ROOT.joinpath(*module.removeprefix(PACKAGE).strip(".").split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _function(module: str, name: str) -> FunctionType:
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = inspect.getattr_static(found, part)
    if isinstance(found, property):
        found = found.fget
    if isinstance(found, staticmethod | classmethod):
        found = found.__func__
    return found  # type: ignore[no-any-return]


@contextlib.contextmanager
def without(mutant: Mutant) -> Iterator[None]:
    """The check is missing in the prover that everybody uses."""
    if mutant.text == ROUNDS:
        kept = _registered(mutant.module, mutant.function)
        RULES.update({key: dataclasses.replace(rule, rounds=(Rounds.NOTHING,)) for key, rule in kept.items()})
        try:
            yield
        finally:
            RULES.update(kept)
        return
    function = _function(mutant.module, mutant.function)
    code = function.__code__
    function.__code__ = _mutated(mutant)
    try:
        yield
    finally:
        function.__code__ = code


# ---- what shows that they are missing ---------------------------------------------------------------------------


class Known(NamedTuple):
    """A case whose truth is known: the runtime that runs it was asked."""

    key: str
    model: Model
    expected: Expected
    rounding: Rounding | None = None
    """What rounding may do, where the case says so."""


Function: TypeAlias = tuple[str, str]
"""Module and qualified name."""

Kill: TypeAlias = Literal["wrong", "rounding", "answer"]
"""
How a case shows that a check is missing. `wrong`: its rows mix, and it is proved; `rounding`: it is told that rounding
does something else; `answer`: what is right is refused, or what has to be refused is proved.
"""


def kill(mutant: Mutant, cases: Iterable[Known]) -> tuple[Kill, str] | None:
    """How the first case shows that the check is missing, and the case's key; the gravest that any shows."""
    found: dict[Kill, str] = {}
    with without(mutant):
        for case in cases:
            how = _how(case, said_of(case.model))
            if how == "wrong":
                return how, case.key
            if how is not None:
                found.setdefault(how, case.key)
    return next(((how, found[how]) for how in ("rounding", "answer") if how in found), None)


def _how(case: Known, said: Proof) -> Kill | None:
    if case.expected == "mixes":
        return "wrong" if said.proved else None
    if said.proved and case.rounding not in (None, said.rounding):
        return "rounding"
    return "answer" if said.proved != (case.expected == "proved") else None


def said_of(model: Model) -> Proof:
    is_saved_model = any(node.domain == DOMAIN for node in model.graph.nodes)
    return prove_saved_model(model) if is_saved_model else prove(model)


def killer(
    mutant: Mapping[str, Any], mixing: Iterable[tuple[str, Model]], moving: Iterable[tuple[str, Model]] = ()
) -> str | None:
    """
    Return the key of the first case that shows that the check is needed; None if none does.

    Args:
        mixing: wrong when run, and refused with the check.
        moving: proved with it, and its rows differ by bits: not `exact`.
    """
    with without(msgspec.convert(mutant, Mutant)):
        for key, model in mixing:
            if said_of(model).proved:
                return key
        for key, model in moving:
            found = said_of(model)
            if found.proved and found.rounding == "exact":
                return key
    return None


def known_onnx() -> list[Known]:
    """The cases in `written/` and `found/`."""
    return [Known(one.name, graph_of(one.model), one.expected, one.rounding) for one in written_cases() if one.expected]


def known_saved_models(tensorflow: Any, folder: Path) -> list[Known]:
    """The cases of `saved_model_cases`, written into an empty folder."""
    found = []
    for index, case in enumerate(CASES):
        path = folder / str(index)
        path.mkdir()
        write(tensorflow, case, path)
        found.append(Known(case.name, read_graph(path, None), case.expected, case.rounding))
    return found


def by_function(cases: Iterable[Known]) -> Mapping[str, list[Known]]:
    """Cases by the functions that they meet, as `module:function`; those that mix rows first."""
    found: dict[str, list[Known]] = defaultdict(list)
    for case in sorted(cases, key=lambda one: one.expected != "mixes"):
        for name in traced(case.model).ran:
            found[name].append(case)
    return found


class Notice(NamedTuple):
    """That a check is missing was seen."""

    how: Kill
    mutant: Mutant
    case: str


def notices(cases: Iterable[Known], found: Iterable[Mutant]) -> Iterator[tuple[Mutant, Notice | None]]:
    """Of each mutant the gravest that a case shows of it."""
    met = by_function(cases)
    for mutant in found:
        noticed = kill(mutant, met[f"{mutant.module}:{mutant.function}"])
        yield mutant, None if noticed is None else Notice(noticed[0], mutant, noticed[1])


def by_rule(functions: Iterable[Function], cases: Iterable[Known]) -> dict[Function, Notice | None]:
    """How the cases show that each rule is needed, or one of its checks; None where none does."""
    best: dict[Function, Notice | None] = dict.fromkeys(functions)

    def wanted() -> Iterator[Mutant]:
        for mutant in mutants():
            known = best.get((mutant.module, mutant.function), False)
            if known is None or (known and known.how != "wrong"):
                yield mutant

    for mutant, noticed in notices(cases, wanted()):
        known = best[mutant.module, mutant.function]
        if noticed is not None and (known is None or noticed.how == "wrong"):
            best[mutant.module, mutant.function] = noticed
    return best


class Trace(msgspec.Struct, frozen=True):
    """Functions of the prover, as `module:function`."""

    ran: list[str]
    refused: list[str]
    """Those of `ran` that were at work when something was refused."""


def traced(model: Model) -> Trace:
    """Prove, and see by which functions."""
    ran: set[str] = set()
    refused: set[str] = set()

    def name_of(frame: FrameType) -> str | None:
        module = frame.f_globals.get("__name__", "")
        name, _, _ = frame.f_code.co_qualname.partition(".<locals>")
        return f"{module}:{name}" if module.startswith(PACKAGE) else None

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
        said_of(model)
    finally:
        sys.setprofile(None)
        NotProved.__init__ = kept  # type: ignore[method-assign]
    return Trace(sorted(ran), sorted(refused))


def main() -> None:
    import tensorflow

    with tempfile.TemporaryDirectory() as folder:
        cases = [*known_onnx(), *known_saved_models(tensorflow, Path(folder))]
    for (module, function), found in sorted(by_rule(rule_functions(), cases).items()):
        shown = "NOTHING" if found is None else f"{found.how} without {found.mutant.text[:60]}: {found.case}"
        print(f"{module.removeprefix(PACKAGE + '.rules.')} {function}: {shown}")
    for mutant, noticed in notices(cases, mutants()):
        if noticed is None and mutant.text not in (*_INSTEAD, ROUNDS):
            print(f"no case: {mutant.place} {mutant.function}: {mutant.text}")


if __name__ == "__main__":
    main()
