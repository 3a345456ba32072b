"""Batching as users meet it: what a deploy says of it, and what becomes of a model that was taken for row by row."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from contract_harness import Connection, Home, eventually, model_of, rows_model, running_home, write_project
from onnx import TensorProto, helper
from prometheus_client.parser import text_string_to_metric_families

from cortex.ids import ReplicaId
from cortex.planning.batching import place_of
from cortex.state.sqlite import SqliteStateStore
from cortex.wire.agent import AgentReply, Observe, Observed
from cortex.wire.batching import RULES, BatchingOrder, BatchingVerdict, Proof, Trial
from cortex.wire.framing import receive_frame, send_frame

pytestmark = pytest.mark.slow

WIDTH = 1024
LAYERS = 16
"""A model that takes less than a millisecond runs each request alone, and four layers may on a fast machine."""
CALLERS = 8
TWO = """\
- {kind: deployment, name: f}
- {kind: api, name: x, model: m.onnx, compute: {min_replicas: 2, cpu: 20m}}
- {kind: api, name: y, model: m.onnx, compute: {cpu: 20m}, env: {OTHER: api}}
"""
ONE = "- {{kind: deployment, name: f}}\n- kind: api\n  name: x\n  model: m.onnx\n  batching: {batching}\n"


def mixing_model() -> onnx.ModelProto:
    """x: float [N, 1024] → its row's sum and that of all rows. Large layers beside make it slow enough for batches."""
    rng = np.random.default_rng(0)
    constants = {f"w{layer}": rng.normal(0, 0.04, (WIDTH, WIDTH)).astype(np.float32) for layer in range(4)}
    constants |= {"along": np.array([1]), "across": np.array([0])}
    nodes = [helper.make_node("MatMul", [f"x{layer}", f"w{layer % 4}"], [f"x{layer + 1}"]) for layer in range(LAYERS)]
    nodes += [helper.make_node("ReduceSum", ["x0", "along"], ["sum"])]
    nodes += [helper.make_node("ReduceSum", ["sum", "across"], ["total"])]
    nodes += [helper.make_node("Add", ["sum", "total"], ["tag"])]
    sizes = {"tag": 1, f"x{LAYERS}": WIDTH}
    return model_of(
        nodes,
        [helper.make_tensor_value_info("x0", TensorProto.FLOAT, ["N", WIDTH])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", size]) for name, size in sizes.items()],
        constants=constants,
    )


@pytest.fixture
def home() -> Iterator[Home]:
    with running_home() as home:
        yield home


def project(home: Home, yaml: str, model: onnx.ModelProto) -> Path:
    return write_project(home.path.parent / "p", {"cortex.yaml": yaml, "m.onnx": model})


def shown(home: Home, api: str = "f/x") -> dict[str, object]:
    found = home.cortex("get", api, "-o", "json").json["batching"]
    assert isinstance(found, dict)
    return found


def ordered(home: Home) -> dict[ReplicaId, BatchingOrder | None]:
    """What each replica was last ordered, as its agent says; nothing while that starts."""
    found = {}
    for node in home.nodes:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
            line.connect(str(node.agent_socket))
            send_frame(line, msgspec.json.encode(Observe()))
            reply = msgspec.json.decode(receive_frame(line)[0], type=AgentReply)
            assert isinstance(reply, Observed)
            found.update({report.replica: report.batches for report in reply.report.replicas})
    return found


def tags(home: Home, path: str = "/f/x") -> list[float]:
    """What callers are answered who all ask at once: each twice its own number, if nobody's rows are mixed."""

    def ask(number: int) -> float:
        with Connection(home.port) as connection:
            answer = connection.ask("POST", path, json.dumps([[number] + [0] * (WIDTH - 1)]).encode())
        assert answer.status == 200, answer
        return round(float(answer.json[0][0][0]))

    with ThreadPoolExecutor(CALLERS) as pool:
        return list(pool.map(ask, range(1, CALLERS + 1)))


def disagreements(home: Home) -> dict[str, float]:
    """By api, as Prometheus reads them."""
    token = (home.path / "metrics-token").read_text().strip()
    with Connection(home.operator_port) as connection:
        page = connection.ask("GET", "/metrics", headers={"authorization": f"Bearer {token}"}).body.decode()
    return {
        sample.labels["api"]: sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name == "cortex_batching_disagreements_total"
    }


RIGHT = [2 * number for number in range(1, CALLERS + 1)]


def pretend_it_was_proved(home: Home, runtime: str) -> None:
    """Write into the stopped home what a wrong rule would have said: row by row, and no trial noticed anything."""
    store = SqliteStateStore(home.path / "state.db")
    try:
        for record in store.apis():
            build = record.wanted.build
            proof = Proof(rules=RULES, proved=True, rounding="rounding", operators=7)
            verdict = BatchingVerdict(proof=proof, trial=Trial(runtime=runtime, rows=8))
            store.record_verdict(build.model_key, verdict, place=place_of(build))
    finally:
        store.close()


def test_a_model_that_mixes_rows_is_not_batched_and_the_deploy_says_what_is_in_the_way(home: Home):
    ran = home.deploy(project(home, ONE.format(batching="auto"), mixing_model()))
    assert "note: not batched: " in ran.out
    assert "(x)" in ran.out
    assert shown(home)["batches"] is False
    assert str(shown(home)["text"]) in " ".join(home.cortex("get", "f/x", "-v").out.split())
    assert tags(home) == RIGHT


def test_the_users_word_is_refused_where_a_trial_contradicts_it(home: Home):
    folder = project(home, ONE.format(batching="on"), mixing_model())
    ran = home.deploy(folder, code=1)
    assert "\nerror: batching-contradicted\n" in ran.err
    assert 'cortex.yaml:5:3   api "x": batching' in ran.err
    assert 'output "tag" is ' in ran.err
    assert home.cortex("get", "-o", "json").json == []


def test_the_users_word_is_taken_where_nothing_contradicts_it(home: Home):
    home.deploy(project(home, ONE.format(batching="on"), rows_model()))
    found = eventually(lambda: (one := shown(home))["trial"] and one, "it was tried")
    assert (found["batches"], found["mode"]) == (True, "on")
    eventually(lambda: [order and order.batches for order in ordered(home).values()] == [True], "it is told to batch")


def test_once_rows_disagree_nobody_batches_the_model_any_more_whatever_restarts(home: Home):
    home.deploy(project(home, TWO, mixing_model()))
    runtime = str(eventually(lambda: shown(home)["runtime"], "a replica has said what it runs on"))
    home.cortex("down")
    pretend_it_was_proved(home, runtime)
    home.cortex("up")

    def all_ordered(batches: bool) -> bool:
        orders = ordered(home)
        return len(orders) == 3 and {order.batches for order in orders.values() if order is not None} == {batches}

    def all_live() -> bool:
        found = home.cortex("get", "-o", "json").json
        return [(one["status"], one["replicas"]["ready"]) for one in found] == [("live", 2), ("live", 1)]

    eventually(all_live, "both apis serve")
    eventually(lambda: all_ordered(True), "three replicas of two apis are told to batch")

    def disagreed() -> bool:
        tags(home)
        return shown(home)["disagreement"] is not None

    eventually(disagreed, "a guard has found out that rows are mixed")
    eventually(lambda: all_ordered(False), "all replicas are told not to batch any more")
    assert tags(home) == RIGHT
    assert tags(home, "/f/y") == RIGHT
    for api in ("f/x", "f/y"):
        found = shown(home, api)
        assert (found["batches"], str(found["disagreed_in"]).startswith("f.x.")) == (False, True)
    table = " ".join(home.cortex("get").out.split())
    assert table.count('batching off: rows disagreed (output "tag" is ') == 1, "once, as it is true of all"
    assert 'rows disagreed (output "tag" is ' in (home.path / "logs" / "controlplane.log").read_text()
    counts = disagreements(home)
    assert (counts["x"] > 0, counts["y"]) == (True, 0)

    record = home.control_plane()
    assert record is not None
    os.kill(record.pid, signal.SIGKILL)
    eventually(lambda: (again := home.control_plane()) is not None and again.pid != record.pid, "it is started again")
    home.cortex("down")
    home.cortex("up")
    eventually(all_live, "both apis serve again")
    assert all_ordered(False)
    assert shown(home)["disagreement"] is not None
    assert tags(home) == RIGHT


def test_what_is_void_after_an_upgrade_is_found_out_again_by_itself(home: Home):
    home.deploy(project(home, ONE.format(batching="on"), rows_model()))
    before = home.cortex("get", "f/x", "-o", "json").json
    home.cortex("down")
    store = SqliteStateStore(home.path / "state.db")
    store.prune_batching(())
    store.close()
    home.cortex("up")
    eventually(lambda: shown(home)["trial"], "the model was looked at again")
    after = home.cortex("get", "f/x", "-o", "json").json
    assert (after["version"], after["batching"]["text"]) == (before["version"], before["batching"]["text"])
