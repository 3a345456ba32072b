"""
Collects a project: the files beside a `cortex.yaml` that its handlers are shipped with.

Left out for good: names that begin with a dot, `cortex.yaml` itself, `__pycache__`, `*.pyc`, `node_modules`,
`*.egg-info`, virtual environments (folders with a `pyvenv.cfg`), and what the caller names (models). Left out unless
`.cortexignore` says otherwise: `*.md`, `*.ipynb`, `tests/`. Left out on top: what `.cortexignore` matches, in gitignore
syntax with git's own reading of it: a folder that is left out is not looked into, and the last pattern that matches an
entry decides. A negated pattern with a slash (`!tests/fixtures/`) reaches into folders that are only left out by
default. Only the `.cortexignore` beside `cortex.yaml` counts.

Symbolic links are followed as long as they stay inside the project: what they point to is shipped under the link's own
path. One that leaves the project is an error, since its target is not on the machine that serves; one that points
nowhere, or to a folder it lies in itself, is left out with a warning. Sockets, pipes and devices are left out silently.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import NamedTuple

import msgspec
from pathspec import GitIgnoreSpec

from cortex.artifacts.errors import FileChanged, IgnoreFileInvalid, ProjectTooLarge, ProjectTooManyFiles, UnusableFile
from cortex.artifacts.hashing import HashCache, hash_file
from cortex.errors import Problem, Problems
from cortex.wire.operator import StoredFile

IGNORE_FILE = ".cortexignore"
SIZE_LIMIT_BYTES = 100 * 2**20
MAX_ENTRIES = 50_000
"""Files and folders looked at. No project of handlers has as many; links that multiply one another have more."""
LARGEST_SHOWN = 5

DEFAULT_PATTERNS = ("*.md", "*.ipynb", "tests/")
_NAMES_LEFT_OUT = {"__pycache__": "Python makes it again", "node_modules": "handlers are Python"}
_ENDINGS_LEFT_OUT = {".pyc": "Python makes it again", ".egg-info": "it describes an installed package"}
_DIR_MARK = "ps_d"
"""Group in which pathspec's expressions catch the slash after a folder. Source: pathspec, patterns/gitignore."""


class ProjectFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file that is shipped."""

    path: str
    """Relative to the project, with forward slashes."""
    sha256: str
    executable: bool
    size_bytes: int

    @property
    def stored(self) -> StoredFile:
        return StoredFile(path=self.path, sha256=self.sha256, executable=self.executable)


class Project(msgspec.Struct, frozen=True, kw_only=True):
    """What is shipped of a project, sorted by path."""

    folder: Path
    files: tuple[ProjectFile, ...]
    warnings: tuple[Problem, ...] = ()

    @property
    def total_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)

    @property
    def stored(self) -> tuple[StoredFile, ...]:
        """The files as `DeployRequest.project` has them; the bytes of each are at `folder / path`."""
        return tuple(file.stored for file in self.files)


def collect_project(
    folder: Path,
    *,
    leave_out: Iterable[Path] = (),
    cache: HashCache | None = None,
    size_limit_bytes: int = SIZE_LIMIT_BYTES,
) -> Project:
    """
    List and hash the files of a project that are shipped.

    Args:
        folder: the folder of `cortex.yaml`.
        leave_out: files and folders that are not shipped, relative to `folder` or absolute: the models named in the
            yaml with the files they resolved to, and the yaml itself if it has another name. The project's own folder
            and folders above it are ignored here, so that `model: .` leaves out only the model's files.

    Raises:
        Problems: every file that cannot be read or keeps changing, every name that is not UTF-8, every link that leaves
            the project; references `unreadable-file`, `file-changed`, `file-name-not-utf8`, `link-leaves-project`.
        ProjectTooLarge: more than `size_limit_bytes`; names the five largest.
        ProjectTooManyFiles: more than `MAX_ENTRIES` files and folders; names the fullest folders.
        IgnoreFileInvalid: `.cortexignore` cannot be read or understood; names the line.
    """
    walk = _Walk(folder, _Rules.read(folder, leave_out))
    found = sorted(walk.files(), key=lambda entry: entry.path.encode())
    if walk.problems:
        raise Problems(walk.problems)
    total = sum(entry.size_bytes for entry in found)
    if total > size_limit_bytes:
        largest = sorted(found, key=lambda entry: (-entry.size_bytes, entry.path))[:LARGEST_SHOWN]
        raise ProjectTooLarge(total, size_limit_bytes, [(entry.path, entry.size_bytes) for entry in largest])
    files: list[ProjectFile] = []
    problems: list[Problem] = []
    for entry in found:
        try:
            digest = hash_file(folder / entry.path, cache)
        except FileNotFoundError:
            continue  # gone since it was listed: an editor's temporary file
        except UnusableFile as error:
            problems.append(_problem("unreadable-file", entry.path, error.reason, hint=_UNREADABLE_HINT))
        except FileChanged as error:
            problems.append(_problem("file-changed", entry.path, "changed while it was read", hint=error.hint))
        else:
            files.append(
                ProjectFile(
                    path=entry.path,
                    sha256=digest.sha256,
                    executable=digest.executable,
                    size_bytes=digest.size_bytes,
                )
            )
    if problems:
        raise Problems(problems)
    return Project(folder=folder, files=tuple(files), warnings=tuple(walk.warnings))


def why_left_out(folder: Path, path: str, *, leave_out: Iterable[Path] = ()) -> str | None:
    """
    Say why `collect_project` does not ship a path, e.g. a handler's; None if it does, provided the file is there.

    Args:
        path: relative to `folder`, with forward slashes.

    Raises:
        IgnoreFileInvalid: see `collect_project`.
    """
    rules = _Rules.read(folder, leave_out)
    parts = [part for part in path.split("/") if part not in ("", ".")]
    by_default: str | None = None
    for depth in range(1, len(parts) + 1):
        above = "/".join(parts[:depth])
        is_folder = depth < len(parts) or (folder / above).is_dir()
        verdict = rules.verdict(above, is_folder=is_folder, within_default=by_default is not None)
        if verdict.kind is _Kind.OUT:
            return verdict.reason
        if is_folder and (folder / above / "pyvenv.cfg").is_file():
            return f"{above} is left out: it is a virtual environment"
        by_default = None if verdict.kind is _Kind.IN else verdict.reason or by_default
    return by_default


_UNREADABLE_HINT = f"make it readable, or add it to {IGNORE_FILE}"


class _Kind(Enum):
    IN = "in"
    OUT = "out"
    OUT_BY_DEFAULT = "out by default"
    """Unless `.cortexignore` names it, or something in it."""


class _Verdict(NamedTuple):
    kind: _Kind
    reason: str = ""


class _Pattern:
    """One line of an ignore file."""

    def __init__(self, text: str, line: int = 0) -> None:
        self.text = text
        self.line = line
        compiled = GitIgnoreSpec.from_lines([_as_pathspec_reads(text)]).patterns
        self.expressions = [pattern.regex for pattern in compiled if pattern.regex is not None]
        """Empty for comments and blank lines."""
        self.leaves_out = any(pattern.include for pattern in compiled)
        self.names_a_path = "/" in text.removeprefix("!").rstrip().rstrip("/")
        """It has a slash other than at its end."""

    def matches(self, path: str, *, is_folder: bool) -> bool:
        """
        Whether it matches this very entry, which is what git asks while it walks.

        pathspec asks whether a pattern matches an entry or anything above it, and then weighs the answers; the result
        differs from git's where both happen. Its regular expressions tell them apart: the slash they catch is the
        entry's own if it is the last one.
        """
        text = f"{path}/" if is_folder else path
        for expression in self.expressions:
            for found in expression.finditer(text):
                if _DIR_MARK in expression.groupindex and found.start(_DIR_MARK) >= 0:
                    if found.start(_DIR_MARK) == len(path):
                        return True
                elif not (is_folder and found.end() == len(text)):  # `data/**` is what is in data, not data
                    return True
        return False


class _Rules:
    """What is left out of a project, and why."""

    def __init__(self, top: Path, patterns: Sequence[_Pattern], leave_out: Iterable[Path]) -> None:
        self._patterns = patterns
        self._defaults = [_Pattern(text) for text in DEFAULT_PATTERNS]
        self._named = {"cortex.yaml", *_paths_inside(top, leave_out)}
        self.reaches_into_defaults = any(not p.leaves_out and p.names_a_path for p in patterns)

    @classmethod
    def read(cls, top: Path, leave_out: Iterable[Path]) -> _Rules:
        return cls(top, tuple(_read_patterns(top / IGNORE_FILE)), leave_out)

    def verdict(self, path: str, *, is_folder: bool, within_default: bool) -> _Verdict:
        """
        Judge one entry of a folder that is not left out for good.

        Args:
            within_default: the folder is left out by default.
        """
        name = path.rpartition("/")[2]
        if name.startswith("."):
            return _Verdict(_Kind.OUT, f"{path} is left out: its name begins with a dot")
        if path in self._named:
            return _Verdict(_Kind.OUT, f"{path} is left out: cortex.yaml and the models it names are not shipped")
        if is_folder and name in _NAMES_LEFT_OUT:
            return _Verdict(_Kind.OUT, f"{path} is left out: {_NAMES_LEFT_OUT[name]}")
        for ending, reason in _ENDINGS_LEFT_OUT.items():
            if name.endswith(ending):
                return _Verdict(_Kind.OUT, f"{path} is left out: {reason}")
        for pattern in reversed(self._patterns):
            if pattern.matches(path, is_folder=is_folder):
                if pattern.leaves_out:
                    reason = f"{path} is left out by line {pattern.line} of {IGNORE_FILE}: {pattern.text}"
                    return _Verdict(_Kind.OUT, reason)
                if pattern.names_a_path or not within_default:
                    return _Verdict(_Kind.IN)
        for pattern in self._defaults:
            if pattern.matches(path, is_folder=is_folder):
                reason = f"{path} is left out by default ({pattern.text}); `!/{path}` in {IGNORE_FILE} ships it"
                return _Verdict(_Kind.OUT_BY_DEFAULT, reason)
        return _Verdict(_Kind.OUT_BY_DEFAULT if within_default else _Kind.IN)

    def names(self, path: str) -> bool:
        """Whether a path, or a folder it lies in, is one of those the caller leaves out."""
        parts = path.split("/")
        return any("/".join(parts[:depth]) in self._named for depth in range(1, len(parts) + 1))


class _Found(NamedTuple):
    path: str
    size_bytes: int


class _Folder(NamedTuple):
    """A folder still to be listed."""

    path: str
    above: frozenset[tuple[int, int]]
    """Device and inode of the folders it lies in, by way of links too."""
    within_default: bool


class _Walk:
    """One pass over a project. Problems and warnings are gathered, so that all are told at once."""

    def __init__(self, top: Path, rules: _Rules) -> None:
        self._top = top
        self._real_top = os.path.realpath(top)
        self._rules = rules
        self._entries: Counter[str] = Counter()
        self.problems: list[Problem] = []
        self.warnings: list[Problem] = []

    def files(self) -> Iterator[_Found]:
        """Every file that is shipped, in no particular order. Raises ProjectTooManyFiles."""
        waiting = [_Folder("", frozenset(), within_default=False)]
        while waiting:
            folder = waiting.pop()
            try:
                here = os.stat(self._top / folder.path)
                with os.scandir(self._top / folder.path) as listing:
                    entries = list(listing)
            except FileNotFoundError:
                continue  # gone since it was listed
            except OSError as error:
                self._problem("unreadable-file", folder.path or ".", f"cannot be read ({error.strerror})")
                continue
            if folder.path and any(entry.name == "pyvenv.cfg" for entry in entries):
                continue
            self._count(folder, len(entries))
            inside = folder._replace(above=folder.above | {(here.st_dev, here.st_ino)})
            for entry in entries:
                path = f"{folder.path}/{entry.name}" if folder.path else entry.name
                yield from self._entry(entry, path, inside, waiting)

    def _entry(self, entry: os.DirEntry[str], path: str, folder: _Folder, waiting: list[_Folder]) -> Iterator[_Found]:
        found: os.stat_result | None = None
        failure: OSError | None = None
        try:
            found = entry.stat()
        except FileNotFoundError:
            if not entry.is_symlink():
                return  # gone since it was listed
        except OSError as error:
            failure = error if error.errno != errno.ELOOP else None
        is_folder = found is not None and stat.S_ISDIR(found.st_mode)
        verdict = self._rules.verdict(path, is_folder=is_folder, within_default=folder.within_default)
        if verdict.kind is _Kind.OUT:
            return
        by_default = verdict.kind is _Kind.OUT_BY_DEFAULT
        if by_default and not (is_folder and self._rules.reaches_into_defaults):
            return
        if not self._is_utf8(path):
            return
        if failure is not None:
            self._problem("unreadable-file", path, f"cannot be read ({failure.strerror})")
        elif entry.is_symlink() and not self._may_follow(path, found, folder):
            return
        elif is_folder:
            waiting.append(_Folder(path, folder.above, by_default))
        elif found is not None and stat.S_ISREG(found.st_mode):
            yield _Found(path, found.st_size)

    def _may_follow(self, path: str, found: os.stat_result | None, folder: _Folder) -> bool:
        """Whether what a link points to is shipped under the link's path; says why not where someone should know."""
        link = self._top / path
        target = os.readlink(link)
        real = os.path.realpath(link)
        inside = os.path.relpath(real, self._real_top)
        if inside == ".." or inside.startswith("../"):
            self._problem(
                "link-leaves-project",
                path,
                f"is a link to {target}, outside the project: it would be missing where the project is served",
                hint=f"copy what it points to into the project, or add {path} to {IGNORE_FILE}",
            )
            return False
        if found is None:
            self.warnings.append(_problem("link-broken", path, f"is a link to {target}, which is not there: left out"))
            return False
        if (found.st_dev, found.st_ino) in folder.above:
            self.warnings.append(
                _problem("link-loops", path, f"is a link to {target}, a folder it lies in itself: left out")
            )
            return False
        return not self._rules.names(inside)

    def _is_utf8(self, path: str) -> bool:
        try:
            path.encode()
        except UnicodeEncodeError:
            shown = os.fsencode(path).decode(errors="backslashreplace")
            self._problem("file-name-not-utf8", shown, "is not a UTF-8 name", hint="rename it")
            return False
        return True

    def _count(self, folder: _Folder, entries: int) -> None:
        self._entries[folder.path.partition("/")[0] or "."] += entries
        if self._entries.total() > MAX_ENTRIES:
            raise ProjectTooManyFiles(MAX_ENTRIES, self._entries.most_common(LARGEST_SHOWN))

    def _problem(self, reference: str, path: str, message: str, *, hint: str = _UNREADABLE_HINT) -> None:
        self.problems.append(_problem(reference, path, message, hint=hint))


def _problem(reference: str, path: str, message: str, *, hint: str = "") -> Problem:
    return Problem(reference=reference, message=f"{path} {message}", subject=f"project: {path}", hint=hint)


def _read_patterns(file: Path) -> Iterator[_Pattern]:
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        return
    except OSError as error:
        raise IgnoreFileInvalid(file, None, f"cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise IgnoreFileInvalid(file, line, "is not UTF-8 text") from error
    for number, raw in enumerate(text.split("\n"), start=1):
        line_text = raw.rstrip("\r")
        if "[:" in line_text and ":]" in line_text:
            raise IgnoreFileInvalid(file, number, f"{line_text}: instead of [:alpha:] or [:digit:] write a-z or 0-9")
        try:
            pattern = _Pattern(line_text, number)
        except (ValueError, re.error) as error:
            raise IgnoreFileInvalid(file, number, f"{line_text}: is no gitignore pattern") from error
        if pattern.expressions:
            yield pattern


def _as_pathspec_reads(text: str) -> str:
    """
    Say in other words what pathspec reads otherwise than git.

    A trailing `**/` means any folder below, not the folder itself; `!/` means nothing.
    """
    stripped = text.rstrip()
    if stripped == "!/":
        return ""
    return f"{stripped.removesuffix('**/')}**/*/" if stripped.endswith("**/") else text


def _paths_inside(top: Path, paths: Iterable[Path]) -> Iterator[str]:
    """Paths relative to a folder, as written and with links resolved, without those that are not inside it."""
    for path in paths:
        written = os.path.relpath(os.path.normpath(top.absolute() / path), os.path.normpath(top.absolute()))
        resolved = os.path.relpath(os.path.realpath(top / path), os.path.realpath(top))
        for relative in (written, resolved):
            if relative not in (".", "..") and not relative.startswith("../"):
                yield relative
