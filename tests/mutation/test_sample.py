"""The harness itself: which changes there are, that a survivor is told from what is caught, and that it all ends."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
import sample as harness
from changes import changes, mutant, operators, sample
from cosmic_ray.mutating import mutate_code
from trying import Copy

SOURCE = """\
from __future__ import annotations

LIMIT = 3
Seen = list | tuple | None


@dataclass(frozen=True)
class Counter:
    @property
    def full(self) -> int | None:
        return self.seen if self.seen in (LIMIT, 4) else None

    def add(self, more: list[int | str], *, also: int) -> None:
        self.items.append(more)

    def all(self, *more: int, **named: int) -> list[int]:
        pairs = zip(more, self.items, strict=True)
        return [*self.items, *more, {**named}] if isinstance(more, list | tuple) else self.items * len(more)
"""


def test_constants_properties_and_calls_are_changed_and_annotations_types_and_signs_are_not() -> None:
    made = [mutant("counter.py", SOURCE, change) for of_place in changes(SOURCE) for change in of_place]
    assert {(one.change.scope, one.after) for one in made} == {
        ("", "LIMIT = 4"),
        ("", "LIMIT = 2"),
        ("Counter.full", "return self.seen if not self.seen in (LIMIT, 4) else None"),
        ("Counter.full", "return self.seen if self.seen not in (LIMIT, 4) else None"),
        ("Counter.full", "return self.seen if self.seen in (LIMIT, 5) else None"),
        ("Counter.full", "return self.seen if self.seen in (LIMIT, 3) else None"),
        ("Counter.add", "pass"),
        *(
            ("Counter.all", f"return [*self.items, *more, {{**named}}] {rest}")
            for rest in (
                "if not isinstance(more, list | tuple) else self.items * len(more)",
                "if isinstance(more, list | tuple) else self.items // len(more)",
                "if isinstance(more, list | tuple) else self.items + len(more)",
            )
        ),
    }


@pytest.mark.parametrize("name", sorted(operators()))
def test_every_operator_does_what_its_examples_say(name: str) -> None:
    operator = operators()[name]
    for example in operator.examples():
        changed = mutate_code(example.pre_mutation_code, operator, example.occurrence) or example.pre_mutation_code
        assert changed.split() == example.post_mutation_code.split()


def test_a_seed_chooses_the_same_places_again_and_each_place_once() -> None:
    places = [("counter.py", of_place) for of_place in changes(SOURCE)]
    chosen = sample(places, 4, seed=7)
    assert chosen == sample(places, 4, seed=7)
    assert len({(change.line, change.operator.split("_")[0]) for _, change in chosen}) == 4
    assert len(sample(places, 1000, seed=7)) == len(places)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A repository with one module and its test."""
    root = tmp_path / "root"
    for name, text in {
        "src/small/limits.py": "def least(count):\n    while count < 3:\n        count = count + 1\n    return count\n",
        "tests/unit/test_limits.py": "import small.limits\n\ndef test_it():\n    assert small.limits.least(2) == 3\n",
        "pyproject.toml": "[tool.pytest.ini_options]\naddopts = '-q --import-mode=importlib -p no:schemathesis'\n",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.slow
def test_a_change_is_killed_or_survives_and_the_tree_is_as_it_was(tree: Path, tmp_path: Path) -> None:
    before = {file: file.read_bytes() for file in tree.rglob("*") if file.is_file()}
    path, tests = "src/small/limits.py", ("tests/unit/test_limits.py",)
    source = (tree / path).read_text()
    copy = Copy(tree, tmp_path / "copy")
    assert copy.try_unchanged(*tests).code == 0
    assert copy.try_changed(path, source.replace("< 3", "< 4"), [tests]) == "killed"
    assert copy.try_changed(path, source.replace("< 3", "<= 2"), [tests]) == "survived"
    assert copy.try_changed(path, "not Python", [tests]) == "killed"
    assert copy.try_changed(path, source, [tests]) == "survived"
    assert (tmp_path / "copy" / path).read_text() == source
    assert {file: file.read_bytes() for file in tree.rglob("*") if file.is_file()} == before


@pytest.mark.slow
def test_a_change_that_loops_for_ever_is_ended(tree: Path, tmp_path: Path) -> None:
    path, tests = "src/small/limits.py", ("tests/unit/test_limits.py",)
    copy = Copy(tree, tmp_path / "copy", least_cpu_s=0, cpu_factor=1.5)
    copy.try_unchanged(*tests)
    endless = (tree / path).read_text().replace("count + 1", "count - 0")
    assert copy.try_changed(path, endless, [tests]) == "timed out"


def test_what_survives_counts_unless_it_is_listed_with_a_reason() -> None:
    first, second, *_ = (mutant("counter.py", SOURCE, of_place[0]) for of_place in changes(SOURCE))
    text = "".join(
        f"{key} = {value!r}\n"
        for key, value in zip(("file", "scope", "before", "after", "reason"), (*first.key, "it is"), strict=True)
    )
    report = harness.Report(harness.equivalents(f"[[mutant]]\n{text}"))
    assert report.add("room", first, "survived") == "equivalent"
    assert report.surviving == 0.0
    assert report.add("room", second, "survived") == "survived"
    assert report.add("room", second, "killed") == "killed"
    assert report.add("room", second, "timed out") == "timed out"
    assert report.surviving == pytest.approx(1 / 3)
    assert list(report.lines())[1:] == [
        "room              4          1          1          1          1   66.7%",
        "all               4          1          1          1          1   66.7%",
    ]


def test_every_room_has_sources_and_tests_that_are_there() -> None:
    rooms = tomllib.loads((Path(harness.__file__).parent / "rooms.toml").read_text())
    found = list(harness.sources(harness.ROOT, rooms))
    assert {source.room for source in found} == set(rooms)
    for source in found:
        assert source.tests, source.path
        assert all((harness.ROOT / test).is_file() for stage in source.tests for test in stage)


def test_every_equivalent_mutant_is_one_that_can_still_be_made() -> None:
    listed = harness.equivalents((Path(harness.__file__).parent / "equivalent.toml").read_text())
    for path in {path for path, *_ in listed}:
        source = (harness.ROOT / path).read_text()
        lines = source.splitlines()
        # To make one takes a third of a second: only where a listed one begins or goes on.
        places = {(scope, line) for file, scope, before, _ in listed if file == path for line in before.splitlines()}
        made = {
            mutant(path, source, change).key
            for of_place in changes(source)
            for change in of_place
            if (change.scope, lines[change.line - 1].strip()) in places
        }
        assert {key for key in listed if key[0] == path} <= made
    assert all(listed.values())


def test_what_is_no_file_of_a_room_is_refused(capfd: pytest.CaptureFixture[str]) -> None:
    assert harness.main(["--module", "nothing like it"]) == 2
    assert "nothing like it" in capfd.readouterr().out
