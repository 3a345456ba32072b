"""What Python has as the body of a request, and an answer as what Python has."""

from __future__ import annotations

import io
from os import PathLike
from pathlib import Path
from typing import Any

import msgspec

from cortex.client import prediction


def encoded(sample: Any, content_type: str | None = None) -> tuple[bytes, str]:
    """
    Body and content type of a sample.

    Args:
        sample: bytes, a `Path` of a file, a numpy array, a DataFrame, or anything that JSON can express.
        content_type: overrides the one that follows from the sample.

    Raises:
        TypeError: JSON has no word for something in it.
        OSError: the file cannot be read.
    """
    body, found_type = _body(sample)
    return body, content_type or found_type


def decoded(body: bytes, content_type: str) -> Any:
    """What an answer says: decoded JSON, or the bytes of anything else."""
    return msgspec.json.decode(body) if "json" in content_type else body


def _body(sample: Any) -> tuple[bytes, str]:
    if isinstance(sample, bytes | bytearray | memoryview):
        return bytes(sample), prediction.OTHER_CONTENT_TYPE
    if isinstance(sample, PathLike):
        return prediction.read_sample(Path(sample))
    if hasattr(sample, "to_dict") and hasattr(sample, "columns"):  # a DataFrame: rows, as the door takes tables
        return msgspec.json.encode(sample.to_dict(orient="records"), enc_hook=_plain), "application/json"
    if hasattr(sample, "__array__"):
        import numpy as np

        stream = io.BytesIO()
        np.save(stream, np.asarray(sample), allow_pickle=False)
        return stream.getvalue(), "application/x-npy"
    return msgspec.json.encode(sample, enc_hook=_plain), "application/json"


def _plain(value: Any) -> Any:
    """What JSON has no word for, below the top of a sample: numpy's numbers and arrays."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"a sample cannot hold a {type(value).__name__}: JSON has no word for it")
