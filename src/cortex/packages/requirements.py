"""
From the text of a requirements.txt to `Requirements`, or to all problems of the file at once. Pure.

What pip's format allows and a lock with digests can hold is taken: names with versions, extras, markers and hashes,
https archives, files included with `-r` and `-c`, and options that say where packages are looked for. What cannot be
pinned (git), what is not on the machine that serves (local paths), and what has no meaning there (`-e .`) is refused,
each with what to write instead.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Collection, Iterator
from urllib.parse import urlsplit

import msgspec
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

from cortex.errors import Problem, Problems
from cortex.spec.problems import nearest, quoted

FILE_NAME = "requirements.txt"
OURS = "cortex-serving"
"""The distribution of this package: replicas have it anyway."""
MAX_FILE_BYTES = 2**20
MAX_FILES = 50
"""Included files; more are a loop that goes unnoticed, or a mistake."""

Read = Callable[[str], bytes | None]
"""Bytes of a file by its path in the project; None: there is no such file."""


class RequirementLine(msgspec.Struct, frozen=True, kw_only=True):
    """One requirement, without comment and hashes."""

    text: str
    """As the installer takes it."""
    name: str
    """Normalised."""
    where: str
    """`requirements.txt:3`."""
    hashes: tuple[str, ...] = ()
    """`sha256:…` of the files that the user accepts; empty: any."""


class Requirements(msgspec.Struct, frozen=True, kw_only=True):
    """What a project asks for."""

    lines: tuple[RequirementLine, ...] = ()
    constraints: tuple[RequirementLine, ...] = ()
    """Versions for packages that only come along with others."""
    options: tuple[str, ...] = ()
    """For the installer; folders after `--find-links` are relative to the project."""
    prerelease: bool = False
    warnings: tuple[Problem, ...] = ()

    @property
    def folders(self) -> tuple[str, ...]:
        """Folders of the project in which packages are looked for."""
        pairs = zip(self.options, self.options[1:], strict=False)
        return tuple(value for name, value in pairs if name == "--find-links" and "://" not in value)


def read_requirements(read: Read, file: str = FILE_NAME, *, folder: str = "") -> Requirements | None:
    """
    Read a project's requirements.txt and the files that it includes.

    Args:
        read: gives the bytes of a file of the project.
        folder: of the project, put before names of files in messages.

    Returns:
        None when there is no such file, or it asks for nothing.

    Raises:
        Problems: everything that is wrong, in the order of the lines.
    """
    if read(file) is None:
        return None
    reading = _Reading(read, folder)
    reading.file(file, is_constraint=False)
    if reading.problems:
        raise Problems(reading.problems)
    if not reading.lines:
        return None
    return Requirements(
        lines=tuple(reading.lines),
        constraints=tuple(reading.constraints),
        options=tuple(reading.options),
        prerelease=reading.prerelease,
        warnings=tuple(reading.warnings),
    )


def modules_of_ones_own(requirements: Requirements, files: Collection[str]) -> dict[RequirementLine, str]:
    """
    The requirements that have the name of a module of the project, with its path: whoever wrote them may not know that
    anybody may own that name on an index, and that what lies there is installed and run.

    What an URL, a digest or a folder of wheels pins is what it is.

    Args:
        files: paths of the project's modules.
    """
    if "--no-index" in requirements.options:
        return {}
    modules: dict[str, str] = {}
    for path in sorted(files, reverse=True):
        inside = next((path.removeprefix(place) for place in _SOURCE_FOLDERS if path.startswith(place)), path)
        name, slash, rest = inside.partition("/")
        if rest == "__init__.py" or (not slash and name.endswith(".py")):
            modules[canonicalize_name(name.removesuffix(".py"))] = path.removesuffix("__init__.py")
    return {
        line: modules[line.name]
        for line in requirements.lines
        if line.name in modules and not line.hashes and "@" not in line.text
    }


_SOURCE_FOLDERS = ("src/", "lib/")
"""Where modules of a project often lie, beside its own folder."""

_COMMENT = re.compile(r"(^|\s+)#.*$")
_HASH = re.compile(r"\s+--hash[=\s]\s*(\S+)")
_OPTION = re.compile(r"(--?[A-Za-z][-A-Za-z]*)(?:\s*=\s*|\s+|$)(.*)$")
_SHORT_OPTION = re.compile(r"(-[rciefr])(?=[^\s=-])(.+)$")
_ONE_EQUALS = re.compile(r"^\s*([A-Za-z0-9][-._A-Za-z0-9]*(?:\[[^\]]*\])?)\s*=\s*([0-9][^\s=;]*)")
_VCS = re.compile(r"^(git|hg|svn|bzr)(\+|$)", re.IGNORECASE)
_VARIABLE = re.compile(r"\$\{[A-Za-z_][A-Za-z0-9_]*\}")
_SHA256 = re.compile(r"sha256:[0-9a-f]{64}")

_SUPPORTED = (
    *("--requirement", "--constraint", "--index-url", "--extra-index-url", "--find-links", "--no-index"),
    *("--only-binary", "--no-binary", "--pre", "--require-hashes", "--prefer-binary"),
)
_SHORT = {"-r": "--requirement", "-c": "--constraint", "-i": "--index-url", "-f": "--find-links", "-e": "--editable"}


class _Reading:
    """One pass over a file and what it includes, collecting requirements and problems."""

    def __init__(self, read: Read, folder: str) -> None:
        self._read = read
        self._folder = folder
        self._seen: set[tuple[str, bool]] = set()
        self.lines: list[RequirementLine] = []
        self.constraints: list[RequirementLine] = []
        self.options: list[str] = []
        self.prerelease = False
        self.problems: list[Problem] = []
        self.warnings: list[Problem] = []

    def file(self, path: str, *, is_constraint: bool, included_at: str = "") -> None:
        if (path, is_constraint) in self._seen:
            return
        self._seen.add((path, is_constraint))
        content = self._read(path)
        if content is None:
            hint = "the path is relative to the file that names it; is it left out by .cortexignore?"
            self._problem("requirements-file-missing", f"there is no file {path} in the project", included_at, hint)
        elif len(self._seen) > MAX_FILES:
            self._problem("requirements-too-large", f"more than {MAX_FILES} files are included", included_at)
        elif len(content) > MAX_FILE_BYTES:
            self._problem("requirements-too-large", f"it has more than {MAX_FILE_BYTES} bytes", self._shown(path))
        else:
            try:
                text = _decoded(content)
            except UnicodeDecodeError as error:
                number = content.count(b"\n", 0, error.start) + 1
                self._problem("not-utf8", "the file is not UTF-8 text", f"{self._shown(path)}:{number}")
                return
            for number, line in _logical_lines(text):
                self._line(line, path, f"{self._shown(path)}:{number}", is_constraint=is_constraint)

    def _line(self, line: str, path: str, where: str, *, is_constraint: bool) -> None:
        if _VARIABLE.search(line):
            self._problem(
                "requirements-variable",
                f"{quoted(line)} has a variable, and a lock is the same for everyone",
                where,
                "write the value out; credentials of an index belong into ~/.netrc or UV_INDEX_URL",
            )
        elif line.startswith("-"):
            self._option(line, path, where)
        else:
            self._requirement(line, where, is_constraint=is_constraint)

    # ---- options ------------------------------------------------------------------------------------------------

    def _option(self, line: str, path: str, where: str) -> None:
        match = _SHORT_OPTION.match(line) or _OPTION.match(line)
        name, value = (match[1], match[2].strip()) if match is not None else (line, "")
        name = _SHORT.get(name, name)
        if name == "--editable":
            if _VCS.match(value):
                self._vcs(value, where)
            else:
                self._local_source(value, where)
        elif name not in _SUPPORTED:
            near = nearest(name.lstrip("-"), [known.lstrip("-") for known in _SUPPORTED])
            hint = f"did you mean --{near}?" if near else f"supported are {', '.join(_SUPPORTED)}"
            self._problem("requirements-option", f"{name} is no option that is supported here", where, hint)
        elif name == "--pre":
            self.prerelease = True
        elif name in ("--require-hashes", "--prefer-binary"):
            pass  # digests are always required; wheels are always preferred
        elif name == "--no-index":
            self.options.append(name)
        elif not value:
            self._problem("requirements-option", f"{name} needs a value", where)
        elif name in ("--requirement", "--constraint"):
            self._include(value, path, where, is_constraint=name == "--constraint")
        elif name in ("--only-binary", "--no-binary"):
            self.options += [part for package in value.split(",") for part in (name, package.strip())]
        elif name == "--find-links" and "://" not in value:
            folder = posixpath.normpath(posixpath.join(posixpath.dirname(path), value))
            if self._is_inside(folder, where):
                self.options += [name, folder]
        elif self._is_usable_url(value, where):
            self.options += [name, value]

    def _include(self, value: str, path: str, where: str, *, is_constraint: bool) -> None:
        if "://" in value:
            hint = "copy the file into the project, and include it from there"
            self._problem(
                "requirements-include", f"{quoted(value)}: only files of the project are included", where, hint
            )
            return
        included = posixpath.normpath(posixpath.join(posixpath.dirname(path), value))
        if self._is_inside(included, where):
            self.file(included, is_constraint=is_constraint, included_at=where)

    def _is_inside(self, path: str, where: str) -> bool:
        if path.startswith(("/", "~")) or path.split("/")[0] == "..":
            message = f"{quoted(path)} is outside the project, and so not on the machine that serves"
            self._problem("requirements-outside", message, where, "copy it into the folder of cortex.yaml")
            return False
        return True

    def _is_usable_url(self, url: str, where: str) -> bool:
        parts = urlsplit(url)
        if parts.username or parts.password:
            message = f"the URL at {parts.hostname} has credentials, which would be kept with the project"
            hint = "take them out, and put them into ~/.netrc or UV_INDEX_URL of the shell that starts Cortex"
            self._problem("requirements-credentials", message, where, hint)
        elif parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in ("127.0.0.1", "localhost")):
            return True
        elif parts.scheme == "file" or not parts.scheme:
            self._is_inside("/", where)
        else:
            self._problem("requirements-url", f"{quoted(url)}: only https is fetched from", where)
        return False

    # ---- requirements -------------------------------------------------------------------------------------------

    def _requirement(self, line: str, where: str, *, is_constraint: bool) -> None:
        hashes = tuple(_HASH.findall(line))
        text = _HASH.sub("", line).strip()
        if self._is_path_or_bare_url(text, where):
            return
        try:
            requirement = Requirement(text)
        except InvalidRequirement as error:
            self._unreadable(text, str(error), where)
            return
        if any(not specifier.version for specifier in requirement.specifier):
            self._unreadable(text, "expected a version after ===", where)
            return
        if requirement.url is not None and not self._is_usable_archive(requirement, where):
            return
        wrong = [value for value in hashes if not _SHA256.fullmatch(value)]
        if wrong:
            message = f"{quoted(wrong[0])} is no sha256 digest"
            self._problem("requirements-hash", message, where, "write --hash=sha256: and 64 hex digits")
            return
        name = canonicalize_name(requirement.name)
        if name == OURS:
            message = f"{requirement.name} is left out: replicas have the Cortex that serves them"
            self.warnings.append(Problem(reference="requirements-ours", message=message, where=where))
            return
        found = RequirementLine(text=text, name=name, where=where, hashes=hashes)
        (self.constraints if is_constraint else self.lines).append(found)

    def _is_path_or_bare_url(self, text: str, where: str) -> bool:
        """Whether a line is something else than a name with conditions; says then what to write."""
        if _VCS.match(text):
            self._vcs(text, where)
        elif re.match(r"^[A-Za-z][A-Za-z0-9+.-]*://", text):
            hint = f"write its name before it: NAME @ {text.split()[0]}"
            self._problem("requirements-url", f"{quoted(text)} does not say which package it is", where, hint)
        elif text.startswith((".", "/", "~")) or re.match(r"^[^\s;@\[]*(/|\.(whl|tar\.gz|zip)$)", text):
            self._local_source(text, where)
        else:
            return False
        return True

    def _local_source(self, path: str, where: str) -> None:
        file = posixpath.basename(path.split(";")[0].strip())
        try:
            name, version, _, _ = parse_wheel_filename(file)
        except InvalidWheelFilename:
            message = f"{quoted(path)} is a folder or archive on this machine, and not on the one that serves"
            hint = (
                "modules of the project are imported as they are: the folder of cortex.yaml is on sys.path;\n"
                "of another package make a wheel, put it into a folder of the project, and name the folder\n"
                "with --find-links and the package by name and version"
            )
        else:
            folder = posixpath.dirname(path) or "."
            message = f"{quoted(path)}: a wheel is named by package and version, and its folder by --find-links"
            hint = f"write two lines:\n--find-links {folder}\n{name}=={version}"
        self._problem("requirements-local", message, where, hint)

    def _built_elsewhere(self, requirement: Requirement, where: str) -> None:
        """As `pip freeze` writes it in a folder of conda's, and of what was installed from a folder."""
        message = f"{requirement.name} is named by the folder that it was built in, which is on no other machine"
        hint = (
            f"write its version: {requirement.name}==VERSION\n"
            "`pip list --format=freeze > requirements.txt` writes that of every package"
        )
        self._problem("requirements-local", message, where, hint)

    def _vcs(self, url: str, where: str) -> None:
        message = f"{quoted(url)}: what a repository holds has no digest that could be pinned"
        hint = (
            "name an archive of one commit, such as\n"
            "NAME @ https://github.com/OWNER/NAME/archive/COMMIT.zip, or a released version"
        )
        self._problem("requirements-vcs", message, where, hint)

    def _is_usable_archive(self, requirement: Requirement, where: str) -> bool:
        url = requirement.url or ""
        if _VCS.match(url):
            self._vcs(url, where)
            return False
        if urlsplit(url).scheme in ("", "file"):
            if url.endswith((".whl", ".tar.gz", ".zip")):
                self._local_source(url, where)
            else:
                self._built_elsewhere(requirement, where)
            return False
        return self._is_usable_url(url, where)

    def _unreadable(self, text: str, reason: str, where: str) -> None:
        first, *drawing = reason.splitlines()
        one_equals = _ONE_EQUALS.match(text)
        hint = f"did you mean {one_equals[1]}=={one_equals[2]}?" if one_equals else ""
        if one_equals and one_equals[1].lower() == "python":  # as conda lists it
            hint = "delete this line: handlers run on the Python that runs Cortex"
        message = "\n".join([f"{quoted(text)} is no requirement: {first[:1].lower()}{first[1:]}", *drawing])
        self._problem("requirements-syntax", message, where, hint or "such as pillow, pillow==11.0.0 or pillow>=10,<12")

    def _shown(self, path: str) -> str:
        return posixpath.join(self._folder, path) if self._folder else path

    def _problem(self, reference: str, message: str, where: str, hint: str = "") -> None:
        self.problems.append(Problem(reference=reference, message=message, where=where, hint=hint))


def _decoded(content: bytes) -> str:
    """Text as pip reads it: UTF-8, or what a byte order mark says, as PowerShell's `>` writes it."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16")
    return content.decode("utf-8-sig")


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines with what they are continued by, without comments and blank ones; numbered from 1 by where they begin."""
    begun: int | None = None
    parts: list[str] = []
    for number, raw in enumerate(text.splitlines(), start=1):
        line = _COMMENT.sub("", raw) if not raw.rstrip().endswith("\\") or raw.lstrip().startswith("#") else raw
        goes_on = line.rstrip().endswith("\\")
        parts.append(line.rstrip().removesuffix("\\"))
        begun = number if begun is None else begun
        if goes_on:
            continue
        joined = " ".join(part.strip() for part in parts).strip()
        if joined:
            yield begun, joined
        begun, parts = None, []
    rest = " ".join(part.strip() for part in parts).strip()
    if begun is not None and rest:
        yield begun, rest


REFERENCES = {
    "requirements-credentials": "A URL in requirements.txt has a user name or password.",
    "requirements-file-missing": "requirements.txt includes a file that the project does not have.",
    "requirements-hash": "A `--hash` in requirements.txt is no sha256 digest.",
    "requirements-include": "requirements.txt includes a file by URL.",
    "requirements-local": "requirements.txt names a folder or archive on the user's own machine.",
    "requirements-option": "An option in requirements.txt is not supported, or has no value.",
    "requirements-own-module": "A warning: requirements.txt names a package like a module of the project.",
    "requirements-ours": "requirements.txt names Cortex itself, which is left out.",
    "requirements-outside": "A path in requirements.txt leads out of the project.",
    "requirements-syntax": "A line of requirements.txt is no requirement.",
    "requirements-too-large": "requirements.txt or what it includes is larger than such files are.",
    "requirements-url": "A URL in requirements.txt is not https, or lacks the package's name.",
    "requirements-variable": "requirements.txt has a variable such as ${TOKEN}.",
    "requirements-vcs": "requirements.txt names a repository, whose content cannot be pinned by digest.",
}
"""Every reference that this module gives but `not-utf8`, with its meaning in one sentence."""
