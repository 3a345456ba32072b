"""
A curl line that can be pasted: with the sample that the cortex.yaml of this folder names, if it is there, else with the
one that the api's own page offers.
"""

from __future__ import annotations

from pathlib import Path

from cortex.cli.text import quoted_for_shell, shown_path
from cortex.client import prediction
from cortex.client.prediction import content_type_of
from cortex.spec.locations import sample_path
from cortex.wire.operator import ApiStatus

LONGEST_INLINE_BYTES = 200
SAMPLE_FILE = "sample.json"


def curl_command(api: ApiStatus, cwd: Path) -> str:
    """The command for an api that is deployed; sample files are looked for beside the nearest cortex.yaml."""
    from cortex.client.addressing import find_file

    file = find_file(cwd)
    return proven_line(api, api.endpoint, api.spec.get("sample"), folder=file.parent if file else None, cwd=cwd)


def proven_line(api: ApiStatus, endpoint: str, sample: object, *, folder: Path | None, cwd: Path) -> str:
    """As `curl_line`, with nothing that failed; and without a sample at hand, with one that a replica has answered."""
    if has_failing_sample(api):
        return curl_line(endpoint, None, folder=None, cwd=cwd)
    line = curl_line(endpoint, sample, folder=folder, cwd=cwd)
    if line == curl_line(endpoint, None, folder=None, cwd=cwd) and api.replicas.ready:
        body = _body(prediction.answered_sample(endpoint))
        return line if body is None else _with_json(line, body)
    return line


def has_failing_sample(api: ApiStatus) -> bool:
    """Whether the api's own sample was tried and not answered: then nobody is told to send it."""
    return api.sample_problem is not None and api.sample_problem.reference == "sample-failed"


def curl_line(endpoint: str, sample: object, *, folder: Path | None, cwd: Path) -> str:
    """
    Return the command; without a known sample, the one that asks for a description of the api.

    Args:
        sample: as cortex.yaml has it: None, the path of a file, or a value.
        folder: what a sample's path is relative to; None when that is not known.
    """
    url = quoted_for_shell(endpoint)
    file = _sample_file(sample, folder)
    if file is not None:
        content_type = content_type_of(file.name)
        option = "-d" if content_type == "application/json" else "--data-binary"
        path = quoted_for_shell(f"@{shown_path(file, cwd)}")
        return f"curl {url} -H 'content-type: {content_type}' {option} {path}"
    body = None if sample_path(sample) is not None else _body(sample)
    return f"curl {url}" if body is None else _with_json(f"curl {url}", body)


def _with_json(line: str, body: str) -> str:
    return f"{line} -H 'content-type: application/json' -d {quoted_for_shell(body)}"


def _sample_file(sample: object, folder: Path | None) -> Path | None:
    if folder is None:
        return None
    name = SAMPLE_FILE if sample is None else sample_path(sample)
    return folder / name if name is not None and (folder / name).is_file() else None


def _body(sample: object) -> str | None:
    """A value as JSON, if it is short enough for a line. None is no sample."""
    if sample is None:
        return None
    import msgspec

    body = msgspec.json.encode(sample)
    return body.decode() if len(body) <= LONGEST_INLINE_BYTES else None
