"""The life of a replica reads no clock, no file and no socket: nothing that could is imported."""

import ast
import inspect
from pathlib import Path

import msgspec
import pytest

from cortex.agent import life
from cortex.agent.life import adopting, effects, events, state

OWN = "cortex.agent.life"
FACTS = ("cortex.errors", "cortex.ids", "cortex.processes", "cortex.settings", "cortex.wire", OWN)
LANGUAGE = {"__future__", "collections.abc", "enum", "math", "msgspec", "signal", "typing"}
STRUCTS = [
    struct
    for module in (adopting, effects, events, state)
    for struct in vars(module).values()
    if inspect.isclass(struct) and issubclass(struct, msgspec.Struct) and struct.__module__ == module.__name__
]
MODULES = sorted(Path(life.__file__).parent.glob("*.py"))


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.stem)
def test_only_facts_and_the_language_are_imported(module):
    tree = ast.parse(module.read_text())
    names = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    names |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert {name for name in names if not name.startswith(FACTS)} <= LANGUAGE


@pytest.mark.parametrize("struct", STRUCTS)
def test_what_is_known_told_and_asked_for_cannot_be_changed_and_is_made_by_name(struct):
    assert struct.__struct_config__.frozen
    kinds = {parameter.kind for parameter in inspect.signature(struct).parameters.values()}
    assert kinds <= {inspect.Parameter.KEYWORD_ONLY}
