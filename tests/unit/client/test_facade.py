"""`cortex.client.Client`, as Python users have it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cortex.client import Client
from cortex.client.prediction import PredictionRefused
from cortex.errors import Problem, Problems
from cortex.wire.operator import DeployResult, Status

IRIS = Path(__file__).parents[3] / "examples" / "iris"


@pytest.fixture
def client(tmp_path: Path, fake: Any) -> Client:
    fake.write_home(tmp_path)
    return Client(home=tmp_path, environ={})


@pytest.fixture
def served(fake: Any, fakes: Any) -> None:
    fake.apis = [fakes.api(endpoint=f"http://127.0.0.1:{fake.port}/iris/sklearn")]
    fake.answers["/iris/sklearn"] = (200, {}, b'{"label": "setosa"}')


def test_a_folder_is_deployed_and_waited_for(client: Client, fake: Any, fakes: Any) -> None:
    fake.apis = [fakes.api("sklearn")]
    fake.events = [DeployResult(changes=(fakes.change(),), committed=True)]
    fake.push(fakes.api(status=Status.CREATING))
    fake.push(fakes.api())
    assert client.deploy(IRIS) == tuple(fake.apis)
    assert [api.spec["name"] for api in fake.deployed.apis] == ["sklearn", "xgboost", "pytorch", "raw"]
    assert set(fake.blobs) >= {file.sha256 for file in fake.deployed.project}


def test_a_refused_deploy_raises_its_problems_with_places(client: Client, fake: Any) -> None:
    problem = Problem(reference="handler-import-failed", message="no", path=("apis", 1, "request_handler"))
    fake.events = [DeployResult(problems=(problem,))]
    with pytest.raises(Problems) as caught:
        client.deploy(IRIS)
    assert caught.value.problems[0].where.startswith(str(IRIS / "cortex.yaml") + ":")


def test_an_api_that_fails_raises_why(client: Client, fake: Any, fakes: Any) -> None:
    fake.events = [DeployResult(changes=(fakes.change(),), committed=True)]
    fake.push(fakes.api(status=Status.ERROR, reason="no torch"))
    with pytest.raises(Problems, match="no torch"):
        client.deploy(IRIS)
    assert client.deploy(IRIS, wait=False) == ()


@pytest.mark.usefixtures("served")
def test_apis_are_listed_and_found(client: Client, fake: Any) -> None:
    assert client.get() == tuple(fake.apis)
    assert client.get("iris/sklearn") == (fake.apis[0],)


@pytest.mark.usefixtures("served")
def test_samples_of_every_kind_are_sent_as_what_they_are(client: Client, fake: Any, tmp_path: Path) -> None:
    image = tmp_path / "x.png"
    image.write_bytes(b"png")
    for sample in ([1, 2], b"raw", image, np.zeros(2)):
        assert client.predict("iris/sklearn", sample) == {"label": "setosa"}
    posted = [r for r in fake.requests if r.call == "POST /iris/sklearn"]
    assert [r.headers["content-type"] for r in posted] == [
        "application/json",
        "application/octet-stream",
        "image/png",
        "application/x-npy",
    ]
    assert [r.body for r in posted[:3]] == [b"[1,2]", b"raw", b"png"]
    assert np.load(io.BytesIO(posted[3].body)).tolist() == [0.0, 0.0]


@pytest.mark.usefixtures("served")
def test_a_refused_prediction_raises(client: Client, fake: Any) -> None:
    fake.answers["/iris/sklearn"] = (422, {}, b'{"error": "wrong-shape", "message": "no"}')
    with pytest.raises(PredictionRefused, match="no"):
        client.predict("iris/sklearn", [1], content_type="application/json")
