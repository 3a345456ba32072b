"""Errors carry facts, a stable reference and a next step."""

import inspect

import pytest

from cortex.artifacts import errors
from cortex.artifacts.errors import ProjectTooLarge, StoreUnavailable, in_words
from cortex.errors import CortexError

CLASSES = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if kind.__module__ == errors.__name__]


def test_every_error_has_a_reference_of_its_own() -> None:
    references = [kind.reference for kind in CLASSES]
    assert len(set(references)) == len(references)
    assert all(issubclass(kind, CortexError) and kind.reference != "error" for kind in CLASSES)


@pytest.mark.parametrize(
    ("size", "words"),
    [
        *[(0, "0 bytes"), (1023, "1023 bytes"), (1024, "1 KiB"), (1536, "1.5 KiB"), (100 * 2**20, "100 MiB")],
        *[(2**20 - 1, "1024 KiB"), (150 * 2**30 + 1, "150 GiB"), (3 * 2**40, "3 TiB"), (5000 * 2**40, "5000 TiB")],
    ],
)
def test_sizes_are_told_as_people_read_them(size: int, words: str) -> None:
    assert in_words(size) == words


def test_an_unknown_trouble_of_the_disk_still_names_the_folder(tmp_path) -> None:
    error = StoreUnavailable(tmp_path, OSError("odd"))
    assert str(error) == f"the artifact store {tmp_path} cannot be used: odd"
    assert str(tmp_path) in error.problem().hint


def test_the_largest_files_line_up() -> None:
    error = ProjectTooLarge(200 * 2**20, 100 * 2**20, [("data.bin", 150 * 2**20), ("b", 5)])
    assert str(error).splitlines() == [
        "the project has 200 MiB, at most 100 MiB are shipped. Largest files:",
        "    150 MiB  data.bin",
        "    5 bytes  b",
    ]
