"""
Packages made on the spot, so that tests of installing need no network: wheels, source archives, and what is installed
here packed up again.
"""

from __future__ import annotations

import base64
import hashlib
import io
import tarfile
import zipfile
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path

TAG = "py3-none-any"


def a_wheel(
    folder: Path,
    name: str,
    version: str,
    *,
    requires: Iterable[str] = (),
    files: Mapping[str, str] | None = None,
) -> Path:
    """
    A wheel of pure Python.

    Args:
        folder: made if it is not there.
        requires: lines of what it depends on.
        files: content by path; by default a package of its name with `VERSION`.
    """
    content = {f"{name}/__init__.py": f"VERSION = {version!r}\n"} if files is None else dict(files)
    about = f"{name}-{version}.dist-info"
    content[f"{about}/METADATA"] = _metadata(name, version, requires)
    content[f"{about}/WHEEL"] = f"Wheel-Version: 1.0\nGenerator: cortex\nRoot-Is-Purelib: true\nTag: {TAG}\n"
    return _written(folder / f"{name}-{version}-{TAG}.whl", about, {p: text.encode() for p, text in content.items()})


def a_source_archive(folder: Path, name: str, version: str, *, backend: str) -> Path:
    """
    A package that has to be built.

    Args:
        backend: Python source of its build backend (PEP 517), which is part of the archive.
    """
    folder.mkdir(parents=True, exist_ok=True)
    top = f"{name}-{version}"
    project = "[build-system]\nrequires = []\nbuild-backend = 'backend'\nbackend-path = ['.']\n"
    files = {"pyproject.toml": project, "backend.py": backend, "PKG-INFO": _metadata(name, version, ())}
    path = folder / f"{top}.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for file, text in files.items():
            about = tarfile.TarInfo(f"{top}/{file}")
            about.size = len(text.encode())
            archive.addfile(about, io.BytesIO(text.encode()))
    return path


def repacked(folder: Path, name: str) -> Path:
    """
    A wheel of a package that is installed here, uncompressed.

    Raises:
        metadata.PackageNotFoundError: it is not.
    """
    distribution = metadata.distribution(name)
    content: dict[str, bytes] = {}
    about = ""
    for file in distribution.files or ():
        path = Path(str(file.locate()))
        if file.parts[0] == ".." or "__pycache__" in file.parts or not path.is_file():
            continue
        if file.parts[0].endswith(".dist-info"):
            about = file.parts[0]
            if file.name in ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json"):
                continue
        content[str(file)] = path.read_bytes()
    tags = [line.removeprefix("Tag: ") for line in content[f"{about}/WHEEL"].decode().splitlines() if "Tag: " in line]
    compressed = "-".join(".".join(dict.fromkeys(parts)) for parts in zip(*(t.split("-") for t in tags), strict=True))
    return _written(folder / f"{about.removesuffix('.dist-info')}-{compressed}.whl", about, content)


def repacked_with_needs(folder: Path, names: Iterable[str]) -> None:
    """As `repacked`, with everything that these packages depend on."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    waiting, done = [Requirement(name).name for name in names], set[str]()
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in done:
            continue
        done.add(name)
        repacked(folder, name)
        needs = map(Requirement, metadata.requires(name) or ())
        waiting += [need.name for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]


def _metadata(name: str, version: str, requires: Iterable[str]) -> str:
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    return "\n".join([*lines, *(f"Requires-Dist: {need}" for need in requires)]) + "\n"


def _written(path: Path, about: str, content: Mapping[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    record = []
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for file, data in content.items():
            archive.writestr(zipfile.ZipInfo(file), data)  # of 1980: the same content is the same wheel
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            record.append(f"{file},sha256={digest},{len(data)}")
        archive.writestr(f"{about}/RECORD", "\n".join([*record, f"{about}/RECORD,,"]) + "\n")
    return path
