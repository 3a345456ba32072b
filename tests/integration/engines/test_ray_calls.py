"""What is said where there is no cluster, or no Ray; with the real process that would make the calls."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import pytest

from cortex.engines.ray.calls import RayCalls, driver_variables
from cortex.engines.ray.errors import ClusterUnreachable, RayMissing
from cortex.errors import RetryLater

pytestmark = pytest.mark.slow


def some_calls(folder: Path, address: str, environ: Mapping[str, str] = os.environ) -> RayCalls:
    return RayCalls(
        address=address,
        beside="127.0.0.1",
        namespace="nowhere",
        token_file=None,
        output=folder / "driver.out",
        environ=environ,
    )


def test_where_nobody_listens_there_is_no_cluster(tmp_path: Path) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # and does not listen
        calls = some_calls(tmp_path, f"127.0.0.1:{bound.getsockname()[1]}")
        with pytest.raises(ClusterUnreachable, match=r"cannot be reached: .*refused"):
            calls.look()
    assert calls.pid is None
    assert (tmp_path / "driver.out").read_text() == ""


def test_without_ray_the_extra_is_named_that_brings_it(tmp_path: Path) -> None:
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray/__init__.py").write_text("raise ModuleNotFoundError(\"No module named 'ray'\")")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    with socket.create_server(("127.0.0.1", 0)) as listener:
        calls = some_calls(
            tmp_path, f"127.0.0.1:{listener.getsockname()[1]}", environ={**os.environ, "PYTHONPATH": path}
        )
        with pytest.raises(RayMissing, match="No module named 'ray'") as caught:
            calls.look()
    assert caught.value.problem().hint == "pip install 'cortex-serving[ray]'"


@pytest.mark.skipif(find_spec("ray") is None, reason="who has no Ray is told that, as soon as something answers")
def test_closing_ends_a_question_that_is_under_way(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(60.0)
        calls = some_calls(tmp_path, f"127.0.0.1:{listener.getsockname()[1]}")
        raised: list[Exception] = []

        def ask() -> None:
            try:
                calls.look()
            except Exception as error:
                raised.append(error)

        asking = threading.Thread(target=ask)
        asking.start()
        with listener.accept()[0]:
            calls.close()
            asking.join(60.0)
    assert not asking.is_alive()
    assert [type(error) for error in raised] == [RetryLater]


def test_the_process_knows_nothing_of_ray_but_the_token_file() -> None:
    found = {"RAY_ADDRESS": "elsewhere", "ray_gcs": "1", "HOME": "/h"}
    assert driver_variables(found, None) == {"HOME": "/h", "RAY_USAGE_STATS_ENABLED": "0"}
    assert driver_variables(found, Path("/t")) == {
        "HOME": "/h",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": "/t",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
