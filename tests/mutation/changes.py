"""
Small changes to a source, as somebody might get it wrong: Cosmic Ray's operators, and two of our own.

Of the operators those are taken that leave a program which still makes sense: `+` becomes `-`, and not `|`, which only
raises a TypeError that any test notices. Annotations are left alone, since nothing reads them,
and so is that a class is frozen. So are signs that look like an operator and are none, as the `*` before named
arguments, and the `|` between types: without them there is no program, or none that gets past its imports. That a `zip`
is strict asserts what is so.
"""

from __future__ import annotations

import ast
import random
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

import parso
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.operator import Example, Operator
from cosmic_ray.operators.provider import OperatorProvider
from parso.python.tree import Name

_Position = tuple[int, int]


class SwapIn(Operator):  # type: ignore[misc]
    """`in` becomes `not in`, and the other way round."""

    _OTHER: Final = {"in": "not in", "not in": "in"}

    def mutation_positions(self, node: Any) -> Iterator[tuple[_Position, _Position]]:
        for index in self._indices(node):
            yield node.children[index].start_pos, node.children[index].end_pos

    def mutate(self, node: Any, index: int) -> Any:
        at = self._indices(node)[index]
        node.children[at] = parso.parse(" " + self._OTHER[node.children[at].get_code().strip()])
        return node

    def _indices(self, node: Any) -> list[int]:
        if node.type != "comparison":
            return []
        return [at for at in range(1, len(node.children), 2) if node.children[at].get_code().strip() in self._OTHER]

    @classmethod
    def examples(cls) -> Collection[Example]:
        return Example("x in y", "x not in y"), Example("x not in y", "x in y")


class DropCall(Operator):  # type: ignore[misc]
    """A call whose result nobody takes becomes `pass`."""

    def mutation_positions(self, node: Any) -> Iterator[tuple[_Position, _Position]]:
        if node.type == "simple_stmt" and node.children[0].type in ("atom_expr", "power"):
            call = node.children[0]
            if call.children[-1].type == "trailer" and call.children[-1].children[0].value == "(":
                yield call.start_pos, call.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        leaf = node.get_first_leaf()
        node.children[0] = Name("pass", leaf.start_pos, prefix=leaf.prefix)
        return node

    @classmethod
    def examples(cls) -> Collection[Example]:
        return (Example("x.append(1)\ny = f()\n", "pass\ny = f()\n"),)


_TAKEN: Final = frozenset(
    {f"ReplaceBinaryOperator_{pair}" for pair in (
        "Add_Sub", "Sub_Add", "Mul_FloorDiv", "Mul_Add", "Div_Mul", "FloorDiv_Mul", "Mod_FloorDiv", "Pow_Mul",
        "LShift_RShift", "RShift_LShift", "BitOr_BitAnd", "BitAnd_BitOr", "BitXor_BitOr",
    )}
    | {f"ReplaceComparisonOperator_{pair}" for pair in (
        "Eq_NotEq", "NotEq_Eq", "Is_IsNot", "IsNot_Is",
        "Lt_LtE", "Lt_GtE", "LtE_Lt", "LtE_Gt", "Gt_GtE", "Gt_LtE", "GtE_Gt", "GtE_Lt",
    )}
    | {f"ReplaceUnaryOperator_{pair}" for pair in ("USub_UAdd", "Invert_UAdd", "Delete_Not")}
    | {
        "AddNot", "ReplaceTrueWithFalse", "ReplaceFalseWithTrue", "ReplaceAndWithOr", "ReplaceOrWithAnd",
        "ReplaceBreakWithContinue", "ReplaceContinueWithBreak", "ExceptionReplacer", "NumberReplacer",
        "ZeroIterationForLoop",
    }
)  # fmt: skip


_DECLARED: Final = ("frozen", "kw_only", "slots", "gc")
"""What is said of a class so that it is used as it is meant: a program that does so runs the same without."""


def operators() -> dict[str, Operator]:
    """All that are tried, by name."""
    provided = OperatorProvider()
    return {name: provided[name]() for name in sorted(_TAKEN)} | {"SwapIn": SwapIn(), "DropCall": DropCall()}


class Change(NamedTuple):
    """One change of a source, not yet made."""

    line: int
    scope: str
    """The qualified name of the function or class that it is in; empty in the module itself."""
    operator: str
    occurrence: int
    """Among all of this operator in the source."""


class Mutant(NamedTuple):
    """A source with one change."""

    path: str
    """As seen from the root of the repository."""
    change: Change
    source: str
    before: str
    """The lines that are changed, without their indentation."""
    after: str

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What it is known by wherever its lines move to."""
        return self.path, self.change.scope, self.before, self.after


def changes(source: str) -> list[list[Change]]:
    """Return for each place in a source the changes that it can have, in order."""
    nodes = list(ast_nodes(get_ast(source)))
    scopes, unread = _scopes(source), _unread(source)
    places: Mapping[tuple[_Position, str], list[Change]] = defaultdict(list)
    for name, operator in operators().items():
        found = ((node, start) for node in nodes for start, _ in operator.mutation_positions(node))
        for occurrence, (node, start) in enumerate(found):
            if not _is_no_operator(node) and not any(first <= start < last for first, last in unread):
                scope = max(
                    ((first, scope) for first, last, scope in scopes if first <= start[0] <= last), default=(0, "")
                )
                places[start, name.split("_")[0]].append(Change(start[0], scope[1], name, occurrence))
    return [places[place] for place in sorted(places)]


def mutant(path: str, source: str, change: Change) -> Mutant:
    """Make a change."""
    changed = mutate_code(source, operators()[change.operator], change.occurrence)
    assert changed is not None, change
    old, new = source.splitlines(), changed.splitlines()
    first = next((at for at, pair in enumerate(zip(old, new, strict=False)) if pair[0] != pair[1]), 0)
    same = zip(reversed(old[first:]), reversed(new[first:]), strict=False)
    last = next((at for at, pair in enumerate(same) if pair[0] != pair[1]), 0)
    before, after = ("\n".join(line.strip() for line in lines[first : len(lines) - last]) for lines in (old, new))
    return Mutant(path, change, changed, before, after)


def sample(places: Iterable[tuple[str, list[Change]]], count: int, seed: int) -> list[tuple[str, Change]]:
    """
    Choose places at random, and for each one of its changes.

    Args:
        places: with the path of the source that each is in.
        count: so many, or all where there are fewer.
        seed: the same seed, the same choice.
    """
    chance = random.Random(seed)
    known = list(places)
    return [(path, chance.choice(of_place)) for path, of_place in chance.sample(known, min(count, len(known)))]


def _is_true(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant) and value.value is True


def _is_type(name: str) -> bool:
    """Whether something is called as a class is, and no constant."""
    return re.fullmatch(r"_?[A-Z][A-Za-z0-9]*[a-z][A-Za-z0-9]*", name) is not None


def _scopes(source: str) -> list[tuple[int, int, str]]:
    """First and last line of each function and class, with its qualified name."""
    found: list[tuple[int, int, str]] = []

    def visit(node: ast.AST, inside: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                name = f"{inside}.{child.name}" if inside else child.name
                found.append((child.lineno, child.end_lineno or child.lineno, name))
                visit(child, name)
            else:
                visit(child, inside)

    visit(ast.parse(source), "")
    return found


def _is_no_operator(node: Any) -> bool:
    """Whether this is a `*` or `**` of a signature, or before what is unpacked."""
    return node.type == "operator" and node.value in ("*", "**") and node.parent.type not in ("term", "power")


def _unread(source: str) -> list[tuple[_Position, _Position]]:
    """Where annotations, types and what is declared of classes for those who use them begin and end."""
    found: list[ast.expr | None] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            found += node.args[1:] if node.func.id == "isinstance" else []
            found += [word.value for word in node.keywords if node.func.id == "zip" and _is_true(word.value)]
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and _is_type(node.targets[0].id):
            found.append(node.value)
        if isinstance(node, ast.arg | ast.AnnAssign):
            found.append(node.annotation)
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.annotation) == "TypeAlias":
            found.append(node.value)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.append(node.returns)
        if isinstance(node, ast.ClassDef):
            declared = [node, *(each for each in node.decorator_list if isinstance(each, ast.Call))]
            found += [word.value for of in declared for word in of.keywords if word.arg in _DECLARED]
    return [
        ((node.lineno, node.col_offset), (node.end_lineno or node.lineno, node.end_col_offset or node.col_offset))
        for node in found
        if node is not None
    ]
