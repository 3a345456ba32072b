"""Ourselves as a wheel."""

from __future__ import annotations

import base64
import hashlib
import io
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import cortex
from cortex.engines.ray.ourwheel import WHEEL_NAME, our_wheel
from cortex.version import __version__


def test_the_same_package_is_the_same_wheel() -> None:
    assert our_wheel() == our_wheel()


def test_the_wheel_has_every_module_and_says_what_is_in_it() -> None:
    with zipfile.ZipFile(io.BytesIO(our_wheel())) as wheel:
        names = set(wheel.namelist())
        record = wheel.read(f"cortex_serving-{__version__}.dist-info/RECORD").decode()
        root = Path(cortex.__file__).parents[1]
        assert {str(file.relative_to(root)) for file in root.glob("cortex/**/*.py")} <= names
        assert not any("__pycache__" in name for name in names)
        rows = [line.rsplit(",", 2) for line in record.splitlines()]
        assert {name for name, *_ in rows} == names
        for name, digest, size in rows[:-1]:
            content = wheel.read(name)
            expected = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
            assert (digest, size) == (f"sha256={expected}", str(len(content)))


@pytest.mark.slow
def test_it_can_be_installed(tmp_path: Path) -> None:
    wheel = tmp_path / WHEEL_NAME
    wheel.write_bytes(our_wheel())
    there = tmp_path / "there"
    uv = Path(sys.executable).with_name("uv")
    command = [uv, "pip", "install", "--quiet", "--offline", "--no-deps", "--target", there, wheel]
    subprocess.run(command, check=True, cwd="/")
    code = "import cortex.version; print(cortex.version.__version__)"
    ran = subprocess.run(
        [sys.executable, "-P", "-c", code], env={"PYTHONPATH": str(there)}, capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == __version__
