"""How traces that were printed are shown."""

from __future__ import annotations

import pytest

from cortex.wire.places import Places
from cortex.wire.stacks import readable, readable_text

HOME = "/home/ann/.cortex"
PLACES = Places(HOME)
PROJECT = f"{HOME}/artifacts/trees/{'0123456789abcdef' * 4}"
COPY = f"{HOME}/scratch/t.a.11111111.0.1/project"
OURS = "/opt/venv/lib/python3.11/site-packages/cortex"
ORT = "/opt/venv/lib/python3.11/site-packages/onnxruntime/capi/session.py"


def shown(text: str) -> str:
    return readable_text(text.strip("\n"), PLACES)


def test_a_fatal_error_shows_the_users_frames_under_their_names_and_none_of_our_threads() -> None:
    assert (
        shown(f"""
Fatal Python error: Segmentation fault

Thread 0x00007f1c (most recent call first):
  File "{OURS}/polling.py", line 30 in wait
  File "{OURS}/replica/process/control.py", line 128 in _serve
  File "/usr/lib/python3.11/threading.py", line 982 in run
  File "/usr/lib/python3.11/threading.py", line 1002 in _bootstrap

Thread 0x00007f1d (most recent call first):
  File "{PROJECT}/lib/worker.py", line 3 in work
  File "/usr/lib/python3.11/threading.py", line 982 in run

Current thread 0x00007f1e (most recent call first):
  File "/usr/lib/python3.11/ctypes/__init__.py", line 517 in string_at
  File "{PROJECT}/handler.py", line 3 in post_inference
  File "{OURS}/replica/handler/hooks.py", line 210 in call
  File "{OURS}/replica/launcher.py", line 460 in <module>
  File "<frozen runpy>", line 88 in _run_code

Extension modules: numpy.core._multiarray_umath (total: 1)
""")
        == """
Fatal Python error: Segmentation fault

Thread 0x00007f1d (most recent call first):
  File "lib/worker.py", line 3 in work

Current thread 0x00007f1e (most recent call first):
  File "/usr/lib/python3.11/ctypes/__init__.py", line 517 in string_at
  File "handler.py", line 3 in post_inference

Extension modules: numpy.core._multiarray_umath (total: 1)
""".strip("\n")
    )


def test_a_fatal_error_in_a_models_runtime_shows_the_runtime() -> None:
    assert (
        shown(f"""
Current thread 0x00007f1e (most recent call first):
  File "{ORT}", line 294 in run
  File "{OURS}/replica/backends/onnx.py", line 300 in run
  File "{OURS}/replica/prediction/inference.py", line 100 in _run
""")
        == f"""
Current thread 0x00007f1e (most recent call first):
  File "{ORT}", line 294 in run
""".strip("\n")
    )


def test_our_frames_are_shown_where_there_are_no_others() -> None:
    text = f"""
Current thread 0x00007f1e (most recent call first):
  File "{OURS}/replica/transport/server.py", line 294 in handle
  File "{OURS}/replica/child.py", line 300 in _serve""".strip("\n")
    assert shown(text) == text


TRACEBACK = f"""
Traceback (most recent call last):
  File "{OURS}/replica/handler/hooks.py", line 210, in call
    return self._function(sample, metadata)
           ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  File "{PROJECT}/handler.py", line 7, in pre_inference
    deeper(sample)
  File "{PROJECT}/handler.py", line 3, in deeper
    deeper(sample)
  [Previous line repeated 996 more times]
RecursionError: maximum recursion depth exceeded
"""


def test_a_traceback_that_passes_through_users_code_shows_none_of_ours() -> None:
    assert (
        shown(TRACEBACK)
        == """
Traceback (most recent call last):
  File "handler.py", line 7, in pre_inference
    deeper(sample)
  File "handler.py", line 3, in deeper
    deeper(sample)
  [Previous line repeated 996 more times]
RecursionError: maximum recursion depth exceeded
""".strip("\n")
    )


def test_a_traceback_of_our_own_stays_as_it_is() -> None:
    text = f"""
Traceback (most recent call last):
  File "{OURS}/replica/child.py", line 210, in run
    self._serve()
  File "{ORT}", line 7, in load
    raise ValueError
ValueError""".strip("\n")
    assert shown(text) == text


def test_exception_groups_are_read_as_well() -> None:
    assert (
        shown(f"""
  + Exception Group Traceback (most recent call last):
  |   File "{OURS}/replica/prediction/predictors.py", line 9, in _predict
  |     await self._steps
  |   File "{COPY}/handler.py", line 3, in post_inference
  |     async with group
  | ExceptionGroup: two (2 sub-exceptions)
""")
        == """
  + Exception Group Traceback (most recent call last):
  |   File "handler.py", line 3, in post_inference
  |     async with group
  | ExceptionGroup: two (2 sub-exceptions)
""".strip("\n")
    )


def test_pieces_of_a_trace_that_are_ours_alone_are_left_out() -> None:
    piece = f'  File "{OURS}/replica/handler/hooks.py", line 210, in call\n    return self._function()'
    assert readable(piece.split("\n"), PLACES, in_pieces=True) == []
    assert shown(piece) == piece.strip("\n")


def test_a_users_own_cortex_folder_is_theirs() -> None:
    assert (
        shown(f'  File "{PROJECT}/cortex/replica/a.py", line 2, in f') == '  File "cortex/replica/a.py", line 2, in f'
    )


@pytest.mark.parametrize(
    "path",
    [
        f"{PROJECT}/threading.py",
        "/opt/venv/lib/python3.11/site-packages/sentry_sdk/integrations/threading.py",
        "/opt/venv/lib/python3.11/site-packages/cortexlib/replica/a.py",
    ],
)
def test_frames_of_files_that_are_called_like_ours_are_shown(path: str) -> None:
    frame = [f'  File "{path}", line 2, in f']
    assert readable(frame, PLACES, in_pieces=True) == [frame[0].replace(f"{PROJECT}/", "")]


@pytest.mark.parametrize(
    "path",
    [
        "/usr/lib/python3.11/threading.py",
        "/home/ann/.local/share/uv/python/cpython-3.13.1-linux-x86_64-gnu/lib/python3.13t/threading.py",
        f"{HOME}/environments/platform/cortex/replica/child.py",
        f"{OURS}/polling.py",
    ],
)
def test_frames_of_ours_and_of_a_threads_beginning_are_not(path: str) -> None:
    assert readable([f'  File "{path}", line 2, in f'], PLACES, in_pieces=True) == []


def test_what_is_no_trace_is_left_alone() -> None:
    text = f'say File "{PROJECT}/handler.py", line 3, in f\n{PROJECT}/handler.py\n\nFile "x"'
    assert shown(text) == text
