"""Ourselves as a wheel, for nodes that have nothing of ours: made from what runs here, the same bytes each time."""

from __future__ import annotations

import base64
import hashlib
import io
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Final

from cortex.version import __version__

DISTRIBUTION: Final = "cortex-serving"
TAG: Final = "py3-none-any"
_STEM: Final = f"{DISTRIBUTION.replace('-', '_')}-{__version__}"
WHEEL_NAME: Final = f"{_STEM}-{TAG}.whl"


def our_wheel() -> bytes:
    """
    Content of a wheel with the package as it is here, whether it was installed or lies in a source tree.

    Raises:
        metadata.PackageNotFoundError: Python knows of no installation of ours, and so of nothing that we need.
    """
    about = f"{_STEM}.dist-info"
    described = (metadata.distribution(DISTRIBUTION).read_text("METADATA") or "").encode()
    wheel = f"Wheel-Version: 1.0\nGenerator: cortex\nRoot-Is-Purelib: true\nTag: {TAG}\n".encode()
    files = [*_package(), (f"{about}/METADATA", described), (f"{about}/WHEEL", wheel)]
    record = [f"{name},sha256={_digest(content)},{len(content)}" for name, content in files]
    files.append((f"{about}/RECORD", "\n".join([*record, f"{about}/RECORD,,"]).encode() + b"\n"))
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files:
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)  # of 1980, whenever it is made
    return written.getvalue()


def _package() -> Iterator[tuple[str, bytes]]:
    package = Path(__file__).parents[2]
    for file in sorted(package.rglob("*")):
        if file.is_file() and "__pycache__" not in file.parts:
            yield str(file.relative_to(package.parent)), file.read_bytes()


def _digest(content: bytes) -> str:
    """Source: PEP 427, "RECORD": urlsafe base64 without its padding."""
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
