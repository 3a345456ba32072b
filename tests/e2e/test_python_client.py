"""`cortex.Client` on a home that is real: what it deploys, asks, reads and takes back."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from contract_harness import Home, rows_model, running_home, write_project

from cortex import AsyncClient, Client, PredictionRefused
from cortex.client.described import Values
from cortex.wire.operator import Status

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

YAML = """
    - {kind: deployment, name: d}
    - {kind: api, name: x, model: m.onnx, request_handler: h.py, tracker: {key: score, model_type: regression},
       compute: {cpu: 20m}, rollout: {watch: 0s}}
"""
HANDLER = """
def post_inference(prediction, metadata):
    return {{"score": float(prediction[0][0][0]), "made": {made}}}
"""
ROW = [1, 2, 3, 4]


@pytest.fixture
def home() -> Iterator[Home]:
    with running_home() as home:
        yield home


@pytest.fixture
def client(home: Home) -> Iterator[Client]:
    with Client(home=home.path, environ=home.environment()) as client:
        yield client


def test_a_client_deploys_asks_reads_and_takes_back_what_it_wants_to(home: Home, client: Client) -> None:
    project = write_project(
        home.path.parent / "p", {"cortex.yaml": YAML, "m.onnx": rows_model(), "h.py": HANDLER.format(made=1)}
    )
    (deployed,) = client.deploy(project)
    assert (deployed.name, deployed.status) == ("x", Status.LIVE)
    assert client.predict("d/x", ROW) == {"score": 10.0, "made": 1}
    assert client.predict("x", np.array([ROW], dtype=np.float32))["score"] == 10.0
    with pytest.raises(PredictionRefused) as refused:
        client.predict("x", ["a", "b"])
    assert refused.value.status == 422
    assert refused.value.request_id

    # A redeploy and a rollback meanwhile take no answer away, and the connections are the same.
    stop, answers, failures = threading.Event(), [], []

    def ask_on() -> None:
        while not stop.is_set():
            try:
                answers.append(client.predict("x", ROW)["made"])
            except Exception as error:
                failures.append(error)

    asking = threading.Thread(target=ask_on)
    asking.start()
    try:
        write_project(project, {"h.py": HANDLER.format(made=2)})
        client.deploy(project)
        assert client.predict("x", ROW)["made"] == 2
        back = client.rollback("x")
        assert client.predict("x", ROW)["made"] == 1
    finally:
        stop.set()
        asking.join()
    assert failures == []
    assert {1, 2} <= set(answers)
    assert client.connections.made <= 8
    assert [line.rolled_back for line in client.history("x")].count(True) == 1
    assert back.version == deployed.version

    assert client.predict_many("x", [[n, 0, 0, 0] for n in range(200)], concurrency=8) == [
        {"score": float(n), "made": 1} for n in range(200)
    ]
    assert {"deployed", "live", "rolled back"} <= {event.kind for event in client.events("x")}
    assert client.delete("d") == ("d/x",)


def test_an_api_tells_what_it_predicts_and_logs_are_followed(home: Home, client: Client) -> None:
    handler = HANDLER.format(made=1).replace("    return", "    print('asked')\n    return")
    client.deploy(write_project(home.path.parent / "p", {"cortex.yaml": YAML, "m.onnx": rows_model(), "h.py": handler}))
    followed = client.logs("x", follow=True)
    client.predict_many("x", [[n, 0, 0, 0] for n in range(4)])
    lines = []
    for line in followed:
        lines += [line.text] if line.text == "asked" else []
        if len(lines) == 4:
            break
    api = client.api("x")
    while api.requests.ok < 4:
        api = client.api("x")
    assert api.tracker == Values(count=4, missed=0, min=0.0, max=3.0, mean=1.5)
    assert "4 predictions" in api.html


def test_the_same_can_be_awaited(home: Home) -> None:
    project = write_project(
        home.path.parent / "p", {"cortex.yaml": YAML, "m.onnx": rows_model(), "h.py": HANDLER.format(made=1)}
    )

    async def story() -> None:
        async with AsyncClient(home=home.path, environ=home.environment()) as client:
            await client.deploy(project)
            answers = await asyncio.gather(*(client.predict("x", [n, 0, 0, 0]) for n in range(100)))
            assert [answer["score"] for answer in answers] == list(range(100))
            kinds = [event.kind async for event in client.events("x")]
            assert "live" in kinds

    asyncio.run(story())
