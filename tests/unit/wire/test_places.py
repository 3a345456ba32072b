"""What files are called in texts that come from exceptions and other programs."""

from __future__ import annotations

from pathlib import Path

import pytest

from cortex.errors import Problem
from cortex.wire.places import Places

DIGEST = "0123456789abcdef" * 4
TREE = f"/srv/my home/artifacts/trees/{DIGEST}"
PLACES = Places("/srv/my home", ("/var/elsewhere",))


@pytest.mark.parametrize(
    ("text", "called"),
    [
        (f"cannot import name 'x' from 'm' ({TREE}/m.py)", "cannot import name 'x' from 'm' (m.py)"),
        (f"[Errno 2] No such file: '{TREE}/data/a b.txt'", "[Errno 2] No such file: 'data/a b.txt'"),
        (f"Load model from {TREE}//model.onnx failed", "Load model from model.onnx failed"),
        (f"there is nothing in {TREE}.", "there is nothing in .."),
        (f"there is nothing in '{TREE}'", "there is nothing in '.'"),
        ("/srv/my home/scratch/t.a.1.0.1/project/h.py:3", "h.py:3"),
        ("/srv/my home/scratch/t.a.1.0.1/projects/h.py:3", "/srv/my home/scratch/t.a.1.0.1/projects/h.py:3"),
        ("/var/elsewhere/h.py:3", "h.py:3"),
        ("/var/elsewhere-too/h.py:3", "/var/elsewhere-too/h.py:3"),
        (f"{TREE}0/h.py", f"{TREE}0/h.py"),
        ("/srv/my home/state.db is locked", "/srv/my home/state.db is locked"),
        ("no path at all", "no path at all"),
    ],
)
def test_files_of_a_project_or_a_model_are_called_by_their_path_in_it(text: str, called: str) -> None:
    assert PLACES.called(text) == called


def test_a_home_that_is_a_link_is_known_by_both_names(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    places = Places(str(tmp_path / "link"))
    for home in ("real", "link"):
        assert places.called(f"{tmp_path}/{home}/artifacts/trees/{DIGEST}/h.py") == "h.py"


def test_where_nothing_is_known_nothing_is_changed() -> None:
    assert Places("").called(f"{TREE}/m.py") == f"{TREE}/m.py"
    assert Places("", ("", "/")).called("/m.py") == "/m.py"


def test_all_words_of_a_problem_are_told_so() -> None:
    path = f"{TREE}/m.py"
    problem = Problem(reference="r", message=path, where=f"{path}:1", hint=path, traceback=path, path=("apis", 0))
    told = Problem(reference="r", message="m.py", where="m.py:1", hint="m.py", traceback="m.py", path=("apis", 0))
    assert PLACES.told(problem) == told
