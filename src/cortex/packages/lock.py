"""What an installer resolved, as a `PackageLock`; and back into the lines that it installs. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import msgspec
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from cortex.errors import CortexError
from cortex.packages.requirements import RequirementLine
from cortex.wire.packages import LockedPackage, PackageLock

FILE_NAME = "lock.json"
"""The one file of a lock's tree in the artifact store."""
MOST_NAMED = 5


class UnreadableLock(CortexError):
    """An installer's answer, or a stored lock, is not what it should be."""

    reference = "unreadable-lock"


class HashRefused(CortexError):
    """None of the files of a package is one that the user accepts."""

    reference = "requirements-hash-mismatch"

    def __init__(self, line: RequirementLine, shown: str) -> None:
        self.line = line
        self.hint = "correct or remove the --hash in that line"
        super().__init__(f"no file of {line.name} {shown} has a digest that {line.where} accepts")


def parse_resolution(text: str) -> tuple[LockedPackage, ...]:
    """
    The packages of `uv pip compile --generate-hashes`.

    Raises:
        UnreadableLock: it is something else.
    """
    packages = []
    for line in text.replace("\\\n", " ").splitlines():
        line = line.partition(" #")[0].strip()
        if not line or line.startswith(("#", "-")):
            continue
        written, *hashes = (part.strip() for part in line.split(" --hash="))
        try:
            requirement = Requirement(written)
        except InvalidRequirement as error:
            raise UnreadableLock(f"the installer answered {written!r}: {error}") from error
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        pins = [specifier.version for specifier in requirement.specifier if specifier.operator == "=="]
        if not hashes or (requirement.url is None and len(pins) != 1):
            raise UnreadableLock(f"the installer did not pin {written!r}")
        packages.append(
            LockedPackage(
                name=canonicalize_name(requirement.name),
                version="" if requirement.url else pins[0],
                url=requirement.url or "",
                hashes=tuple(sorted(hashes)),
            )
        )
    return tuple(sorted(packages, key=lambda package: package.name))


def with_accepted_hashes(
    packages: Iterable[LockedPackage], lines: Iterable[RequirementLine]
) -> tuple[LockedPackage, ...]:
    """
    The packages, of each only the files that the user accepts.

    Raises:
        HashRefused: of one of them nothing is left.
    """
    accepted = {line.name: line for line in lines if line.hashes}

    def restricted(package: LockedPackage) -> LockedPackage:
        line = accepted.get(package.name)
        if line is None:
            return package
        hashes = tuple(value for value in package.hashes if value in line.hashes)
        if not hashes:
            raise HashRefused(line, package.shown)
        return msgspec.structs.replace(package, hashes=hashes)

    return tuple(restricted(package) for package in packages)


def installable(lock: PackageLock) -> str:
    """The lines of a requirements.txt that installs exactly this."""
    return "".join(f"{line}\n" for line in _installable(lock))


def encoded(lock: PackageLock) -> bytes:
    """The same bytes for the same lock: what its digest is of."""
    return msgspec.json.format(msgspec.json.encode(lock, order="deterministic"), indent=1) + b"\n"


def decoded(content: bytes) -> PackageLock:
    """Raises UnreadableLock."""
    try:
        return msgspec.json.decode(content, type=PackageLock)
    except msgspec.MsgspecError as error:
        raise UnreadableLock(f"a stored lock of packages cannot be read: {error}") from error


def versions(lock: PackageLock) -> dict[str, str]:
    """What people know each package by: its version, or its URL."""
    return {package.name: package.shown for package in lock.packages}


def version_changes(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """Packages that differ, in words: `pillow 10.4.0 -> 11.0.0`; the first few by name."""
    words = [f"{name} {old[name]} -> {new[name]}" for name in sorted(new) if name in old and old[name] != new[name]]
    words += [f"{name} {new[name]} added" for name in sorted(new.keys() - old.keys())]
    words += [f"{name} removed" for name in sorted(old.keys() - new.keys())]
    if len(words) > MOST_NAMED:
        words[MOST_NAMED - 1 :] = [f"and {len(words) - MOST_NAMED + 1} more packages"]
    return words


def _installable(lock: PackageLock) -> Iterator[str]:
    for package in lock.packages:
        what = f"{package.name} @ {package.url}" if package.url else f"{package.name}=={package.version}"
        yield " \\\n    ".join([what, *(f"--hash={value}" for value in package.hashes)])
