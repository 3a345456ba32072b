from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cortex.replica.calls import Call
from cortex.replica.handler.hooks import Hook, HookFailed
from cortex.replica.observation import tracebacks
from cortex.replica.observation.tracebacks import format_user_traceback, one_line, user_location


def failure(source: str, path: Path) -> BaseException:
    """What a hook from a file raises, as it comes out of our own code."""
    path.write_text(source)
    namespace: dict[str, Any] = {}
    exec(compile(source, str(path), "exec"), namespace)
    with pytest.raises(HookFailed) as caught:
        Hook("pre_inference", namespace["pre_inference"]).call(1, 2, Call())
    assert caught.value.cause is not None
    return caught.value.cause


SOURCE = """
def deeper(x):
    return {}[x]

def pre_inference(sample, metadata):
    try:
        deeper("sepal")
    except KeyError as error:
        raise ValueError("no measurements") from error
"""


def test_only_the_users_frames_are_shown_in_chained_exceptions_too(tmp_path: Path) -> None:
    text = format_user_traceback(failure(SOURCE, tmp_path / "h.py"), str(tmp_path))
    assert "cortex" not in text
    assert text.splitlines()[0] == "Traceback (most recent call last):"
    assert '  File "h.py", line 7, in pre_inference\n    deeper("sepal")' in text
    assert '  File "h.py", line 3, in deeper' in text
    assert "KeyError: 'sepal'" in text
    assert text.endswith("ValueError: no measurements")


def test_the_place_is_the_innermost_frame_in_the_project(tmp_path: Path) -> None:
    source = "import json\ndef pre_inference(a, b):\n    return json.loads('{')\n"
    error = failure(source, tmp_path / "h.py")
    assert user_location(error, str(tmp_path)) == "h.py:3"
    assert user_location(error, None).startswith("/")


def test_an_exception_that_cannot_be_shown_is_shown_as_that(tmp_path: Path) -> None:
    source = """
class Bad(Exception):
    def __str__(self): raise RuntimeError("no")
def pre_inference(a, b):
    raise Bad()
"""
    error = failure(source, tmp_path / "h.py")
    assert "Bad" in format_user_traceback(error, str(tmp_path))
    assert one_line(error) == "Bad: <its message cannot be shown>"


def test_endless_recursion_is_short(tmp_path: Path) -> None:
    error = failure("def pre_inference(a, b):\n    return pre_inference(a, b)\n", tmp_path / "h.py")
    text = format_user_traceback(error, str(tmp_path))
    assert "RecursionError" in text
    assert len(text) < 3000


def test_a_huge_message_is_cut(tmp_path: Path) -> None:
    error = failure("def pre_inference(a, b):\n    raise ValueError('x' * 10**6)\n", tmp_path / "h.py")
    assert len(format_user_traceback(error, None)) < tracebacks.MAX_CHARS + 100
    assert len(one_line(error)) == 300


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (KeyError("a"), "KeyError: 'a'"),
        (ValueError(), "ValueError"),
        (ValueError("first\nsecond"), "ValueError: first"),
        (ValueError("half \ud800"), "ValueError: half \\ud800"),
    ],
)
def test_one_line(error: BaseException, line: str) -> None:
    assert one_line(error) == line
