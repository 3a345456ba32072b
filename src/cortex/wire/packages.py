"""Python packages as they travel: what shall be installed, by version and by the digests of its files."""

from __future__ import annotations

import msgspec


class LockedPackage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One package of a lock."""

    name: str
    """Normalised as PEP 503 has it: lower case, dashes."""
    version: str = ""
    """Empty when it comes from a URL."""
    url: str = ""
    """Of an archive, when that was asked for."""
    hashes: tuple[str, ...] = ()
    """`sha256:…` of each file that may be installed for it."""

    @property
    def shown(self) -> str:
        """What people know it by: a version, or a URL."""
        return self.version or self.url


class PackageLock(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Everything that is installed together. Its digest names the installation."""

    python: str
    """`3.11`: what was resolved for."""
    platform: str
    """`linux-x86_64`."""
    packages: tuple[LockedPackage, ...]
    """Sorted by name."""
    options: tuple[str, ...] = ()
    """Where packages are looked for, as arguments of the installer; relative folders are in the project."""
