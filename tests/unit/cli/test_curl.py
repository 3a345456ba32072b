"""Lines that can be pasted into a shell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cortex.cli.curl import curl_command, curl_line
from cortex.errors import Problem
from cortex.wire.operator import ReplicaCounts

URL = "http://127.0.0.1:8880/iris/a"


@pytest.mark.parametrize(
    ("sample", "line"),
    [
        (None, f"curl {URL}"),
        ([1, 2.5], f"curl {URL} -H 'content-type: application/json' -d '[1,2.5]'"),
        ("it's", f"""curl {URL} -H 'content-type: application/json' -d '"it'"'"'s"'"""),
        ("photo.jpg", f"curl {URL} -H 'content-type: image/jpeg' --data-binary @in/photo.jpg"),
        ("a b.json", f"curl {URL} -H 'content-type: application/json' -d '@in/a b.json'"),
        ("missing.json", f"curl {URL}"),
        (list(range(300)), f"curl {URL}"),
    ],
)
def test_a_sample_becomes_data(tmp_path: Path, sample: object, line: str) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("photo.jpg", "a b.json"):
        (folder / name).touch()
    assert curl_line(URL, sample, folder=folder, cwd=tmp_path) == line


def test_a_sample_json_beside_the_file_is_used(tmp_path: Path, fakes: Any) -> None:
    (tmp_path / "cortex.yaml").touch()
    (tmp_path / "sample.json").touch()
    inner = tmp_path / "handlers"
    inner.mkdir()
    assert curl_command(fakes.api(endpoint=URL), inner).endswith(" -d @../sample.json")
    assert curl_line(URL, None, folder=None, cwd=tmp_path) == f"curl {URL}"
    failed = Problem(reference="sample-failed", message="the sample was answered with 422")
    assert curl_command(fakes.api(endpoint=URL, sample_problem=failed), inner) == f"curl {URL}"
    counts_nothing = Problem(reference="tracker-never-matches", message="it counts nothing")
    assert curl_command(fakes.api(endpoint=URL, sample_problem=counts_nothing), inner).endswith("sample.json")


def test_without_a_sample_at_hand_the_one_that_the_api_has_answered_is_offered(
    tmp_path: Path, fakes: Any, pages: dict[str, Any]
) -> None:
    pages[URL] = {"x": [0.5]}
    proven = f"""curl {URL} -H 'content-type: application/json' -d '{{"x":[0.5]}}'"""
    assert curl_command(fakes.api(endpoint=URL), tmp_path) == proven
    assert curl_command(fakes.api(endpoint=URL, spec={"sample": "a.json"}), tmp_path) == proven, "it is not here"
    assert curl_command(fakes.api(endpoint=URL, spec={"sample": [1]}), tmp_path).endswith(" -d '[1]'"), "its own"
    failed = Problem(reference="sample-failed", message="the sample was answered with 422")
    assert curl_command(fakes.api(endpoint=URL, sample_problem=failed), tmp_path) == f"curl {URL}"
    none_ready = ReplicaCounts(requested=1, ready=0)
    assert curl_command(fakes.api(endpoint=URL, replicas=none_ready), tmp_path) == f"curl {URL}", "nobody is asked"
    pages[URL] = list(range(300))
    assert curl_command(fakes.api(endpoint=URL), tmp_path) == f"curl {URL}", "too long for a line"
