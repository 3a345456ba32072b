"""The life of a replica reads no clock, no file and no socket: nothing that could is imported."""

import ast
from pathlib import Path

import pytest

from cortex.agent import life

OWN = "cortex.agent.life"
FACTS = ("cortex.errors", "cortex.ids", "cortex.processes", "cortex.settings", "cortex.wire", OWN)
LANGUAGE = {"__future__", "collections.abc", "enum", "math", "msgspec", "signal", "typing"}
MODULES = sorted(Path(life.__file__).parent.glob("*.py"))


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.stem)
def test_only_facts_and_the_language_are_imported(module):
    tree = ast.parse(module.read_text())
    names = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    names |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert {name for name in names if not name.startswith(FACTS)} <= LANGUAGE
