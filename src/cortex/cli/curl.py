"""A curl line that can be pasted: with the sample that the cortex.yaml of this folder names, if it is there."""

from __future__ import annotations

from pathlib import Path

from cortex.cli.text import quoted_for_shell, shown_path
from cortex.client.prediction import content_type_of
from cortex.wire.operator import ApiStatus

LONGEST_INLINE_BYTES = 200
SAMPLE_FILE = "sample.json"


def curl_command(api: ApiStatus, cwd: Path, *, folder: Path | None = None) -> str:
    """
    Return the command.

    Args:
        folder: where the cortex.yaml lies that samples are relative to; None looks for the nearest.
    """
    endpoint = quoted_for_shell(api.endpoint)
    sample = api.spec.get("sample")
    file = _sample_file(sample, cwd, folder)
    if file is not None:
        content_type = content_type_of(file.name)
        option = "-d" if content_type == "application/json" else "--data-binary"
        path = quoted_for_shell(f"@{shown_path(file, cwd)}")
        return f"curl {endpoint} -H 'content-type: {content_type}' {option} {path}"
    inline = _inline(sample)
    if inline is not None:
        return f"curl {endpoint} -H 'content-type: application/json' -d {quoted_for_shell(inline)}"
    return f"curl {endpoint}"


def _sample_file(sample: object, cwd: Path, folder: Path | None) -> Path | None:
    if folder is None:
        from cortex.client.addressing import find_file

        found = find_file(cwd)
        if found is None:
            return None
        folder = found.parent
    if sample is None:
        file = folder / SAMPLE_FILE
    elif isinstance(sample, str):
        file = folder / sample
    else:
        return None
    try:
        return file if file.is_file() else None
    except (OSError, ValueError):  # a text that can be no path
        return None


def _inline(sample: object) -> str | None:
    if sample is None:
        return None
    import msgspec

    body = msgspec.json.encode(sample)
    return body.decode() if len(body) <= LONGEST_INLINE_BYTES else None
