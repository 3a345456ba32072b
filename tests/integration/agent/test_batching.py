"""What an agent is ordered about batches reaches its replicas, and what their guards see reaches its reports."""

from __future__ import annotations

import json

import msgspec
import numpy as np
import onnx
import onnx.numpy_helper
import pytest
from agent_harness import Node, eventually
from onnx import TensorProto, helper

from cortex.ids import ReplicaId
from cortex.wire.batching import BatchingOrder, BatchingState
from cortex.wire.build import BuildSpec
from cortex.wire.orders import SetReplicaBatching

pytestmark = pytest.mark.slow

TOGETHER, ALONE = BatchingOrder(True), BatchingOrder()
WIDTH = 1024
LAYERS = 16
"""A model that takes less than a millisecond runs each request alone, and four layers may on a fast machine."""
BODY = json.dumps([[1] + [0] * (WIDTH - 1)]).encode()
CALLERS = 8


def mixing_model() -> bytes:
    """
    x: float [N, 1024] → tag: its row's sum and that of all rows. Large layers beside make it slow enough for batches.
    """
    rng = np.random.default_rng(0)
    constants = {f"w{layer}": rng.normal(0, 0.04, (WIDTH, WIDTH)).astype(np.float32) for layer in range(4)}
    constants |= {"along": np.array([1]), "across": np.array([0])}
    nodes = [helper.make_node("MatMul", [f"x{layer}", f"w{layer % 4}"], [f"x{layer + 1}"]) for layer in range(LAYERS)]
    nodes += [helper.make_node("ReduceSum", ["x0", "along"], ["sum"])]
    nodes += [helper.make_node("ReduceSum", ["sum", "across"], ["total"])]
    nodes += [helper.make_node("Add", ["sum", "total"], ["tag"])]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x0", TensorProto.FLOAT, ["N", WIDTH])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", size])
            for name, size in (("tag", 1), (f"x{LAYERS}", WIDTH))
        ],
        [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


@pytest.fixture(scope="module")
def mixing() -> bytes:
    return mixing_model()


def says(node: Node, replica: ReplicaId) -> BatchingState:
    found = node.seen(replica)
    assert found is not None
    assert found.batching is not None
    return found.batching


def until_it_follows(node: Node, replica: ReplicaId, order: BatchingOrder) -> None:
    eventually(lambda: says(node, replica).order == order, f"{replica} has taken up {order}")


def serving(node: Node, build: BuildSpec, *batches: BatchingOrder) -> tuple[ReplicaId, ...]:
    """Replicas of a build, each started with one of these orders."""
    starts = [msgspec.structs.replace(node.start_order(build, n), batches=order) for n, order in enumerate(batches)]
    node.order(*starts)
    return node.serve(build, len(batches), body=BODY)


def test_a_replica_starts_with_what_was_ordered_and_follows_what_is_ordered_later(node: Node, api: str, mixing: bytes):
    build = node.build(api, model=mixing)
    (replica,) = serving(node, build, TOGETHER)
    until_it_follows(node, replica, TOGETHER)
    assert says(node, replica).runtime.startswith("onnxruntime ")
    report = node.order(SetReplicaBatching(replica=replica, batches=ALONE))
    (found,) = [found for found in report.replicas if found.replica == replica]
    assert (found.batches, found.model) == (ALONE, build.model_key)
    until_it_follows(node, replica, ALONE)
    node.remove(build, replica)


def test_an_order_is_not_forgotten_when_the_agent_is_replaced(node: Node, api: str, mixing: bytes):
    build = node.build(api, model=mixing)
    (replica,) = serving(node, build, ALONE)
    node.order(SetReplicaBatching(replica=replica, batches=TOGETHER))
    until_it_follows(node, replica, TOGETHER)
    node.kill_agent()
    node.start()
    found = eventually(lambda: (seen := node.seen(replica)) and seen.batching is not None and seen, "it is adopted")
    assert found.batches == TOGETHER
    until_it_follows(node, replica, TOGETHER)
    node.remove(build, replica)


def test_rows_that_disagree_are_reported_and_still_known_to_the_next_agent(node: Node, api: str, mixing: bytes):
    build = node.build(api, model=mixing)
    first, second = serving(node, build, TOGETHER, ALONE)

    def disagreed() -> BatchingState | None:
        for asking in [node.posting(build, BODY) for _ in range(CALLERS)]:
            assert asking.outcome()[0] == 200
        state = says(node, first)
        return state if state.disagreement is not None else None

    state = eventually(disagreed, "the guard has found out that rows are mixed")
    assert state.disagreement is not None
    assert state.disagreement.output == "tag"
    assert says(node, second).disagreement is None, "it did not batch"
    node.kill_agent()
    node.start()
    found = eventually(lambda: (seen := node.seen(first)) and seen.batching is not None and seen, "it is adopted")
    assert found.batching is not None
    assert found.batching.disagreement == state.disagreement
    assert found.model == build.model_key
    node.remove(build, first, second)


def test_an_inspection_is_asked_about_rows_only_if_that_is_said(node: Node, api: str, mixing: bytes):
    build = node.build(api, model=mixing)
    assert node.inspect(build).batching is None
    verdict = node.inspect(build, rows="on").batching
    assert verdict is not None
    assert verdict.trial is not None
    assert verdict.trial.disagreement is not None
    (replica,) = serving(node, build, ALONE)
    assert says(node, replica).runtime == verdict.trial.runtime
    node.remove(build, replica)
