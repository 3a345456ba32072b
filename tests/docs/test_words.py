"""Words that had several senses are used in one: nothing is called by them but in the rooms that the glossary names."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator, Mapping

import pytest
from markdown import ROOT

SOURCE = ROOT / "src" / "cortex"
GLOSSARY = "docs/ARCHITECTURE.md"


def rooms_by_word() -> dict[str, tuple[str, ...]]:
    """As the glossary lists them."""
    lines = re.findall(r"^\* \*\*(\w+)\*\*: (`.*)$", (ROOT / GLOSSARY).read_text(), re.MULTILINE)
    return {word: tuple(re.findall(r"`([^`]+)`", rooms)) for word, rooms in lines}


def defined(source: str) -> Iterator[str]:
    """Classes, functions, parameters, fields and variables that a module brings into being."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield name
            case ast.arg(arg=name):
                yield name
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                yield name


@functools.cache
def all_defined() -> Mapping[str, frozenset[str]]:
    """What each file defines; read once, since each word asks for it."""
    files = sorted(SOURCE.rglob("*.py"))
    return {str(file.relative_to(SOURCE)): frozenset(defined(file.read_text())) - {"__slots__"} for file in files}


def definitions(word: str) -> dict[str, list[str]]:
    """What has this word in its name, by file."""
    found = {file: sorted(name for name in names if word in name.lower()) for file, names in all_defined().items()}
    return {file: names for file, names in found.items() if names}


@pytest.mark.parametrize("word", ["environment", "slot", "seat", "backend"])
def test_a_word_is_used_only_in_the_rooms_of_its_sense(word: str) -> None:
    rooms = rooms_by_word()[word]
    elsewhere = {file: names for file, names in definitions(word).items() if not file.startswith(rooms)}
    assert elsewhere == {}, f'say what it is in another word, or what "{word}" means there: {GLOSSARY}'


@pytest.mark.parametrize("word", ["environment", "slot", "seat", "backend"])
def test_the_glossary_names_no_room_in_which_a_word_is_not_used(word: str) -> None:
    files = definitions(word)
    assert [room for room in rooms_by_word()[word] if not any(file.startswith(room) for file in files)] == []


def test_whatever_has_a_name_is_looked_at() -> None:
    code = "class A:\n  b: int\n  def c(self, d):\n    self.e = f = 1\n    with d as g: pass\n    return g.h(i=1)"
    assert sorted(defined(code)) == ["A", "b", "c", "d", "e", "f", "g", "self"]
