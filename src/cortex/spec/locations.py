"""Where models and samples are, as far as their names tell. Looks at nothing but the text; light to import."""

from __future__ import annotations

import posixpath
import re
from typing import Literal

ModelFormat = Literal["onnx", "tensorflow"]

SCHEMES = ("file", "s3", "gs", "az", "https")
"""What `model` may begin with, followed by `://`, besides a path."""
SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
SAMPLE_SUFFIXES = frozenset(
    [
        *(".json", ".npy", ".txt", ".bin"),
        *(".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff"),
        *(".wav", ".mp3", ".flac", ".ogg", ".m4a"),
    ]
)
"""A `sample` that is a string with one of these endings is the path of a file."""


def infer_format(model: str) -> ModelFormat | None:
    """
    Return the format that a model's name tells, without looking at the model.

    None is a folder or a file of another name: what is in it decides. A name that ends in `.zip` says `tensorflow`;
    what is inside has the last word there too.
    """
    path = (model.partition("?")[0].partition("#")[0] if _is_url(model) else model).lower()
    if path.endswith(".onnx"):
        return "onnx"
    return "tensorflow" if path.endswith(".zip") else None


def is_remote(model: str) -> bool:
    """Whether a model has to be fetched: `s3://`, `gs://`, `az://`, `https://`."""
    scheme = SCHEME.match(model)
    return scheme is not None and scheme[1].lower() != "file"


def is_known_scheme(model: str) -> bool:
    """Whether a model is a path, or on a kind of place that it can be fetched from."""
    scheme = SCHEME.match(model)
    return scheme is None or scheme[1].lower() in SCHEMES


def masked_model(model: str) -> str:
    """Return a model's location as it may be shown: without the query, user and password of a URL."""
    if not _is_url(model):
        return model
    location, _, query = model.partition("#")[0].partition("?")
    scheme, _, rest = location.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}" + ("?***" if query else "")


def sample_path(sample: object) -> str | None:
    """Return `sample` if it is the path of a file rather than a value: a line that ends as such files do."""
    if not isinstance(sample, str) or "\n" in sample:
        return None
    return sample if posixpath.splitext(sample)[1].lower() in SAMPLE_SUFFIXES else None


def _is_url(model: str) -> bool:
    scheme = SCHEME.match(model)
    return scheme is not None and scheme[1].lower() in ("https", "http")
