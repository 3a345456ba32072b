"""Words in one sense, as far as they are names of classes."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import cortex

ROOT = Path(cortex.__file__).parent
OF_OTHERS = ("wire/onnx_schema.py", "wire/saved_model_schema.py")
"""Messages of protobuf files that others have written, under their own names."""


def test_no_two_classes_have_one_name() -> None:
    places = defaultdict(set)
    for file in ROOT.rglob("*.py"):
        place = file.relative_to(ROOT).as_posix()
        for one in ast.parse(file.read_text()).body:
            if isinstance(one, ast.ClassDef) and not one.name.startswith("_") and place not in OF_OTHERS:
                places[one.name].add(place)
    assert len(places) > 100
    assert {name: sorted(where) for name, where in places.items() if len(where) > 1} == {}
