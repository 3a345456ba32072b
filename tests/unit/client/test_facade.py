"""`cortex.client.Client`, as Python users have it."""

from __future__ import annotations

import asyncio
import gc
import io
import threading
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cortex import AsyncClient, Client, CortexError, PredictionRefused
from cortex.client.addressing import ApiNotFound
from cortex.client.described import Classes, Values
from cortex.client.prediction import EndpointUnreachable
from cortex.errors import Problem, Problems
from cortex.wire.operator import DeployResult, Status

IRIS = Path(__file__).parents[3] / "examples" / "iris"


@pytest.fixture
def client(tmp_path: Path, fake: Any) -> Iterator[Client]:
    fake.write_home(tmp_path)
    with Client(home=tmp_path, environ={}) as client:
        yield client


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
    assert client.apis() == tuple(fake.apis)
    assert client.apis("nobody") == ()
    found = client.api("sklearn")
    assert found.described == fake.apis[0]
    assert (found.name, found.status, found.version) == ("iris/sklearn", Status.LIVE, "3fa1c09d")
    with pytest.raises(ApiNotFound) as caught:
        client.api("sklern")
    assert caught.value.candidates == ("iris/sklearn",)
    assert "did you mean" in caught.value.problem().hint


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


# ---- connections -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("served")
def test_connections_are_kept_and_the_control_plane_is_asked_once(client: Client, fake: Any) -> None:
    for _ in range(50):
        client.predict("sklearn", [1])
    assert client.connections.made == 1
    assert sum(request.path.startswith("/v1/") for request in fake.requests) <= 3
    client.close()
    assert client.predict("sklearn", [1]) == {"label": "setosa"}


@pytest.mark.usefixtures("served")
def test_a_kept_connection_that_ends_without_an_answer_is_tried_once_more(client: Client, fake: Any) -> None:
    client.predict("sklearn", [1])
    fake.hang_up_on.add("POST /iris/sklearn")
    assert client.predict("sklearn", [2]) == {"label": "setosa"}
    assert [r.body for r in fake.requests if r.method == "POST"] == [b"[1]", b"[2]", b"[2]"]


@pytest.mark.usefixtures("served")
def test_but_not_a_new_one_nor_where_the_api_says_retry_off(client: Client, fake: Any, fakes: Any) -> None:
    fake.hang_up_on.add("POST /iris/sklearn")
    with pytest.raises(EndpointUnreachable):
        client.predict("sklearn", [1])
    fake.apis = [fakes.api("once", endpoint=f"http://127.0.0.1:{fake.port}/iris/once", spec={"retry": False})]
    fake.answers["/iris/once"] = (200, {}, b"1")
    assert client.predict("once", [1]) == 1
    fake.hang_up_on.add("POST /iris/once")
    with pytest.raises(EndpointUnreachable):
        client.predict("once", [2])
    assert [r.body for r in fake.requests if r.call == "POST /iris/once"] == [b"[1]", b"[2]"]


@pytest.mark.usefixtures("served")
def test_an_api_that_has_gone_is_looked_up_again(client: Client, fake: Any, fakes: Any) -> None:
    client.predict("sklearn", [1])
    fake.answers["/iris/sklearn"] = (404, {}, b'{"error": "not-found", "message": "gone"}')
    with pytest.raises(PredictionRefused):
        client.predict("sklearn", [1])
    fake.apis = [fakes.api(deployment="other", endpoint=f"http://127.0.0.1:{fake.port}/other/sklearn")]
    fake.answers["/other/sklearn"] = (200, {}, b"2")
    assert client.predict("sklearn", [1]) == 2


@pytest.mark.usefixtures("served")
def test_a_client_that_nobody_has_any_more_keeps_no_connection(tmp_path: Path, fake: Any) -> None:
    fake.write_home(tmp_path)
    client = Client(home=tmp_path, environ={})
    client.predict("sklearn", [1])
    kept = client.connections
    assert kept.idle == 1
    del client
    gc.collect()
    assert kept.idle == 0


# ---- many ------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("served")
def test_many_are_answered_in_their_order_with_so_many_under_way_at_once(client: Client, fake: Any) -> None:
    together = threading.Barrier(4, timeout=30)
    lock = threading.Lock()
    under_way = most = 0

    def count(request: Any) -> None:
        nonlocal under_way, most
        if request.method == "POST":
            with lock:
                under_way += 1
                most = max(most, under_way)
            together.wait()
            with lock:
                under_way -= 1

    fake.on_request.append(count)
    fake.echo = True
    assert client.predict_many("sklearn", list(range(20)), concurrency=4) == list(range(20))
    assert most == 4
    assert client.connections.made == 4


@pytest.mark.usefixtures("served")
def test_the_first_refusal_ends_it_or_each_takes_the_place_of_its_answer(client: Client, fake: Any) -> None:
    fake.answers["/iris/sklearn"] = (422, {}, b'{"error": "wrong-shape", "message": "no", "input": "x"}')
    with pytest.raises(PredictionRefused) as caught:
        client.predict_many("sklearn", [1] * 100, concurrency=1)
    assert caught.value.facts == {"input": "x"}
    assert sum(r.method == "POST" for r in fake.requests) == 1
    found = client.predict_many("sklearn", iter([1, 2, 3]), errors="return")
    assert [type(one) for one in found] == [PredictionRefused] * 3


def test_nothing_at_all_is_answered_by_nothing(client: Client) -> None:
    assert client.predict_many("nobody", []) == []
    with pytest.raises(ValueError, match="at least 1"):
        client.predict_many("nobody", [1], concurrency=0)


@pytest.mark.usefixtures("served")
def test_a_bar_shows_on_stderr_if_it_is_wanted(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    client.predict_many("sklearn", [1], progress=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    client.predict_many("sklearn", [1])
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("served")
def test_tables_and_numbers_of_numpy_are_sent_as_json(client: Client, fake: Any) -> None:
    pandas = pytest.importorskip("pandas")
    client.predict("sklearn", pandas.DataFrame({"age": [22, 38], "name": ["a", "b"]}))
    client.predict("sklearn", {"x": np.float32(1.5), "y": np.arange(2)})
    bodies = [r.body for r in fake.requests if r.method == "POST"]
    assert bodies == [b'[{"age":22,"name":"a"},{"age":38,"name":"b"}]', b'{"x":1.5,"y":[0,1]}']
    with pytest.raises(TypeError, match="JSON has no word for it"):
        client.predict("sklearn", [object()])
    client.predict("sklearn", [Decimal("1.5")])


@pytest.mark.usefixtures("served")
def test_an_endpoint_may_be_named_by_its_url(client: Client, fake: Any) -> None:
    assert client.predict(f"http://127.0.0.1:{fake.port}/iris/sklearn", [1]) == {"label": "setosa"}
    assert not any(request.path.startswith("/v1/") for request in fake.requests)


# ---- looking ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("served")
def test_logs_are_read_and_followed(client: Client, fake: Any, fakes: Any) -> None:
    fake.log_batches = [(fakes.log_line("one"),), (fakes.log_line("two"),)]
    assert [line.text for line in client.logs("sklearn")] == ["one"]
    followed = client.logs("sklearn", follow=True)
    assert [next(followed).text for _ in range(2)] == ["one", "two"]


@pytest.mark.usefixtures("served")
def test_events_and_history_are_read(client: Client, fake: Any, fakes: Any) -> None:
    fake.happened = [fakes.happened(1, "was deployed"), fakes.happened(2, "serves")]
    assert [line.text for line in client.events("sklearn", limit=1)] == ["serves"]
    assert [line.text for line in client.api("sklearn").events()] == ["was deployed", "serves"]
    assert client.history("sklearn") == tuple(fake.history)


@pytest.mark.usefixtures("served")
def test_an_api_or_a_deployment_is_deleted(client: Client) -> None:
    assert client.delete("sklearn") == ("iris/sklearn",)
    assert client.delete("iris") == ("iris/sklearn",)


def test_trackers_are_typed_and_shown_in_a_notebook(client: Client, fake: Any, fakes: Any) -> None:
    classes = {"model_type": "classification", "count": 14, "missed": 1, "classes": {"<b>": 9, "b": 5}, "other": 0}
    values = {"model_type": "regression", "count": 2, "missed": 0, "min": 1.0, "max": 3.0, "mean": 2.0}
    fake.apis = [fakes.api("a", tracker=classes), fakes.api("b", tracker=values), fakes.api("c")]
    found = client.api("a")
    assert found.tracker == Classes(count=14, missed=1, classes={"<b>": 9, "b": 5}, other=0, approximate=False)
    assert client.api("b").tracker == Values(count=2, missed=0, min=1.0, max=3.0, mean=2.0)
    assert client.api("c").tracker is None
    shown = found.html
    assert "&lt;b&gt;" in shown
    assert "<b></td>" not in shown
    assert "64.3 %" in shown
    assert "min 1, mean 2, max 3" in client.api("b").html
    assert client.apis().html.count("<tr>") == 4
    assert repr(found).startswith("<Api iris/a 3fa1c09d: live, 1 of 1 replicas ready, http")


# ---- with an event loop ----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("served")
def test_every_call_can_be_awaited(tmp_path: Path, fake: Any, fakes: Any) -> None:
    fake.write_home(tmp_path)
    fake.happened = [fakes.happened(1, "serves")]

    async def story() -> None:
        async with AsyncClient(home=tmp_path, environ={}) as client:
            assert (
                await asyncio.gather(*(client.predict("sklearn", [n]) for n in range(4))) == [{"label": "setosa"}] * 4
            )
            assert await client.predict_many("sklearn", [1, 2], concurrency=2) == [{"label": "setosa"}] * 2
            assert await client.apis() == tuple(fake.apis)
            assert (await client.api("sklearn")).name == "iris/sklearn"
            assert [line.text async for line in client.events("sklearn")] == ["serves"]
            assert await client.history("sklearn") == ()
            assert await client.delete("sklearn") == ("iris/sklearn",)
            with pytest.raises(CortexError):
                await client.api("nobody")

    asyncio.run(story())
