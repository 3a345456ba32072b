"""What a Cortex that came before has written, as JSON, brought to what it is now. Pure."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any


def build_of_now(build: dict[str, Any], sample_stored: Callable[[bytes], str]) -> dict[str, Any]:
    """
    A `BuildSpec` in the form of today; one that has it stays as it is, and so does what is none.

    Args:
        sample_stored: of a sample's body, which lay in the build itself: the digest of the stored folder that holds it.

    Raises:
        ValueError: the body is no Base64.
    """
    sample, model = build.get("sample"), build.get("model")
    if isinstance(sample, dict) and isinstance(sample.get("body"), str):
        rest = {name: value for name, value in sample.items() if name != "body"}
        build = {**build, "sample": {"tree": sample_stored(base64.b64decode(sample["body"])), **rest}}
    if "runtime" not in build and isinstance(model, dict):  # the format named it
        build = {**build, "runtime": model.get("format")}
    return build
