"""
Changes pure code in small ways and looks whether a unit test fails: `make mutants`.

`python tests/mutation/sample.py [--count N] [--seed SEED] [--module PART] [--keep FOLDER]`. A random sample of all
places that can be changed (`changes.py`) in the rooms of `rooms.toml`, one change at a time, in a copy of the tree.
Exits 0 only if of the mutants that are not listed in `equivalent.toml` no more than 5 % survive.
"""

from __future__ import annotations

import argparse
import random
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from changes import Change, Mutant, changes, mutant, sample
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from trying import Copy, Outcome, warm_up

ROOT: Final = Path(__file__).parents[2]
_HERE: Final = Path(__file__).parent
MOST_SURVIVING: Final = 0.05
_LONGEST_PATH: Final = 60


class Source(NamedTuple):
    """A file, or a class or function of it, and what tests it."""

    room: str
    path: str
    scope: str
    tests: tuple[tuple[str, ...], ...]
    """In stages: what mirrors the file first."""


def sources(root: Path, rooms: Mapping[str, Mapping[str, Sequence[str]]]) -> Iterator[Source]:
    """Find what the rooms name, in order."""
    for name, room in rooms.items():
        for pattern in room["sources"]:
            pattern, _, scope = pattern.partition(":")
            for file in sorted(root.glob(pattern)):
                path = file.relative_to(root)
                yield Source(name, str(path), scope, tuple(_stages(root, path, room["tests"])))


def _stages(root: Path, path: Path, tests: Sequence[str]) -> Iterator[tuple[str, ...]]:
    mirror = str(Path("tests/unit", *path.parts[2:-1], f"test_{path.name}"))
    files: list[str] = []
    for test in tests:
        found = sorted((root / test).rglob("test_*.py")) if (root / test).is_dir() else [root / test]
        files += [str(file.relative_to(root)) for file in found]
    if mirror in files:
        yield (mirror,)
    if rest := tuple(file for file in files if file != mirror):
        yield rest


def places(chosen: Sequence[Source], texts: Mapping[str, str]) -> Iterator[tuple[str, list[Change]]]:
    """Return all places of sources that can be changed, with the path of each."""
    for source in chosen:
        for of_place in changes(texts[source.path]):
            if f"{of_place[0].scope}.".startswith(f"{source.scope}." if source.scope else ""):
                yield source.path, of_place


class Report:
    """What became of a sample, by room."""

    def __init__(self, equivalent: Mapping[tuple[str, str, str, str], str]) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()
        self._equivalent = equivalent

    def add(self, room: str, mutant: Mutant, outcome: Outcome) -> str:
        """Count a mutant, and return what it is counted as."""
        counted = "equivalent" if outcome == "survived" and mutant.key in self._equivalent else outcome
        self.counts[room, counted] += 1
        return counted

    def lines(self) -> Iterator[str]:
        yield f"{'room':<12} {'tried':>6} " + " ".join(f"{kind:>10}" for kind in _KINDS) + "  caught"
        rooms = list(dict.fromkeys(room for room, _ in self.counts))
        for room in [*rooms, "all"]:
            of_room = [room] if room != "all" else rooms
            kinds = [sum(self.counts[name, kind] for name in of_room) for kind in _KINDS]
            changing = sum(kinds) - kinds[2]
            caught = f"{(kinds[0] + kinds[1]) / changing:.1%}" if changing else "-"
            yield f"{room:<12} {sum(kinds):>6} " + " ".join(f"{count:>10}" for count in kinds) + f"  {caught:>6}"

    @property
    def surviving(self) -> float:
        """Of those that change something, the share that no test has noticed."""
        of_kind = Counter[str]()
        for (_, kind), count in self.counts.items():
            of_kind[kind] += count
        changing = of_kind.total() - of_kind["equivalent"]
        return of_kind["survived"] / changing if changing else 0.0


_KINDS: Final = ("killed", "timed out", "equivalent", "survived")


def equivalents(text: str) -> dict[tuple[str, str, str, str], str]:
    """Read mutants that do what the source does, with the reason of each."""
    return {
        (entry["file"], entry["scope"], entry["before"], entry["after"]): entry["reason"]
        for entry in tomllib.loads(text).get("mutant", [])
    }


def diff(mutant: Mutant) -> str:
    """Show a mutant as it is reviewed."""
    where = f"{mutant.path}:{mutant.change.line}" + (f" in {mutant.change.scope}" if mutant.change.scope else "")
    return "\n".join(
        [
            where,
            *(f"- {line}" for line in mutant.before.splitlines()),
            *(f"+ {line}" for line in mutant.after.splitlines()),
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").strip(), formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--module", default="", help="only files whose path has this in it, or a room")
    parser.add_argument("--keep", type=Path, default=ROOT / "build" / "mutants", help="where the copy goes")
    options = parser.parse_args(arguments)
    console = Console(soft_wrap=True, highlight=False, markup=False)
    rooms = tomllib.loads((_HERE / "rooms.toml").read_text())
    chosen = [
        source for source in sources(ROOT, rooms) if options.module in source.path or options.module == source.room
    ]
    if not chosen:
        console.print(f"no room of {_HERE / 'rooms.toml'} has a file like {options.module!r}")
        return 2
    by_path = {source.path: source for source in chosen}
    texts = {path: (ROOT / path).read_text() for path in by_path}
    picked = sample(places(chosen, texts), options.count, options.seed)
    console.print(f"{len(picked)} mutants, seed {options.seed}")
    report = Report(equivalents((_HERE / "equivalent.toml").read_text()))
    code = 0
    warm_up()
    copy = Copy(ROOT, options.keep)
    progress = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
    )
    try:
        with progress:
            tests = sorted({test for path, _ in picked for stage in by_path[path].tests for test in stage})
            task = progress.add_task("tests as they are", total=len(tests))
            for test in tests:
                if copy.try_unchanged(test).code != 0:
                    console.print(f"without any change it fails: {test}\n{copy.log.read_text()}")
                    return 2
                progress.advance(task)
            task = progress.add_task("mutants", total=len(picked))
            for path, change in sorted(picked):
                made = mutant(path, texts[path], change)
                progress.update(task, description=f"{path[-_LONGEST_PATH:]}:{change.line}")
                outcome = copy.try_changed(path, made.source, by_path[path].tests)
                if report.add(by_path[path].room, made, outcome) == "survived":
                    console.print(f"survived: {diff(made)}\n")
                progress.advance(task)
    except KeyboardInterrupt:
        console.print("stopped")
        code = 130
    for line in report.lines():
        console.print(line)
    return code or int(report.surviving > MOST_SURVIVING)


if __name__ == "__main__":
    sys.exit(main())
