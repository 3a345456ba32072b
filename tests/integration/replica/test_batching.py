"""Batches of real models: told to by order, watched by the guard, ended by what it sees."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
import orjson
import pytest
from replica_harness import LauncherProcess, Replica, eventually, running, spec_for

from cortex.replica.transport.http import LARGE_REQUEST_BYTES
from cortex.wire.batching import BatchingOrder, BatchingState, BatchingVerdict, Disagreement
from cortex.wire.launch import SetBatching

pytestmark = pytest.mark.slow

Start = Callable[..., Replica]
TOGETHER = BatchingOrder(batches=True)
ALONE = BatchingOrder()
CALLERS = 8
WIDTH = 1024
LAYERS = 16
"""A model that takes less than a millisecond runs each request alone, and four layers may on a fast machine."""


def save(path: Path, nodes: list[Any], inputs: dict[str, Any], outputs: dict[str, Any], **constants: Any) -> Path:
    def infos(named: dict[str, Any]) -> list[Any]:
        return [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, dims) for name, dims in named.items()]

    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(operator, taken, given, **attributes) for operator, taken, given, attributes in nodes],
        "g",
        infos(inputs),
        infos(outputs),
        [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def layered(path: Path, *, mixes: bool) -> Path:
    """
    x0: float [N, 1024] → tag: twice the sum of a row; if it mixes, the sum of a row and that of all rows. Many large
    layers make it so slow that others come while it runs.
    """
    rng = np.random.default_rng(0)
    layers = {f"w{layer}": rng.normal(0, 0.04, (WIDTH, WIDTH)).astype(np.float32) for layer in range(4)}
    nodes = [("MatMul", [f"x{layer}", f"w{layer % 4}"], [f"x{layer + 1}"], {}) for layer in range(LAYERS)]
    nodes += [("ReduceSum", ["x0", "along"], ["sum"], {}), ("Add", ["sum", "total" if mixes else "sum"], ["tag"], {})]
    if mixes:
        nodes.insert(-1, ("ReduceSum", ["sum", "across"], ["total"], {}))
    outputs = {"tag": ["N", 1], f"x{LAYERS}": ["N", WIDTH]}
    return save(path, nodes, {"x0": ["N", WIDTH]}, outputs, along=np.array([1]), across=np.array([0]), **layers)


@pytest.fixture(scope="module")
def models() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="cx", dir="/tmp"))
    layered(folder / "rowwise.onnx", mixes=False)
    layered(folder / "mixing.onnx", mixes=True)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


class Crowd:
    """
    Callers who ask all at once, again and again, each for its own number; in bodies so large that the model never runs
    on the event loop for them, however fast it is.
    """

    def __init__(self, replica: Replica, body: Callable[[int], bytes], answer: Callable[[Any], Any]) -> None:
        self.replica = replica
        self.body = body
        self.answer = answer

    def ask(self, turns: int = 3) -> dict[int, list[Any]]:
        """What each caller was answered."""
        found: dict[int, list[Any]] = {number: [] for number in range(1, CALLERS + 1)}

        def call(number: int) -> None:
            with self.replica.client() as client:
                for _ in range(turns):
                    answer = client.post(self.body(number).ljust(LARGE_REQUEST_BYTES))
                    assert answer.status == 200, answer.body
                    found[number].append(self.answer(answer.json))

        threads = [threading.Thread(target=call, args=(number,)) for number in found]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found

    def until(self, accept: Callable[[BatchingState], bool], what: str) -> BatchingState:
        """Ask until the replica says something of batches."""

        def look() -> BatchingState | None:
            self.ask()
            state = self.replica.status().batching
            return state if accept(state) else None

        return eventually(look, what)


def tags(replica: Replica) -> Crowd:
    return Crowd(
        replica, lambda number: orjson.dumps([[number] + [0] * (WIDTH - 1)]), lambda found: round(found[0][0][0])
    )


def right(turns: int = 3) -> dict[int, list[int]]:
    return {number: [2 * number] * turns for number in range(1, CALLERS + 1)}


def log_of(replica: Replica) -> list[str]:
    return [line.text for line in replica.lines() if line.level == "ERROR"]


def test_a_row_by_row_model_is_batched_and_guarded(start: Start, models: Path) -> None:
    replica = start(model=models / "rowwise.onnx", batches=TOGETHER)
    crowd = tags(replica)
    state = crowd.until(lambda state: state.guarded_rows >= 3, "the first batches were looked at")
    assert state.disagreement is None
    assert state.order == TOGETHER
    assert state.runtime.startswith("onnxruntime ")
    assert crowd.ask() == right()
    assert log_of(replica) == []


def test_a_wrong_proof_is_found_out_by_the_guard(start: Start, models: Path) -> None:
    replica = start(model=models / "mixing.onnx", batches=TOGETHER)
    with replica.control() as control:
        crowd = tags(replica)
        crowd.until(lambda state: state.disagreement is not None, "the guard has found it out")
        pushed = control.until(lambda status: status.batching.disagreement is not None)
    found = pushed.batching.disagreement
    assert found is not None
    assert found.output == "tag"
    assert float(found.together) > float(found.alone)
    assert (pushed.facts["batching"], pushed.facts["largest_batch"]) == (False, 1)
    assert crowd.ask() == right()
    (line,) = log_of(replica)
    assert all(part in line for part in ('output "tag"', found.alone, found.together, "cannot be taken back"))


def test_what_a_replica_has_seen_itself_wins_over_any_order(start: Start, models: Path) -> None:
    replica = start(model=models / "mixing.onnx", batches=TOGETHER)
    crowd = tags(replica)
    seen = crowd.until(lambda state: state.disagreement is not None, "the guard has found it out").disagreement
    for order in (ALONE, BatchingOrder(batches=True, rounding="labels")):
        with replica.control() as control:
            control.send(SetBatching(order=order))
            state = control.until(lambda status, order=order: status.batching.order == order).batching  # type: ignore[misc]
        assert state.disagreement == seen
        assert crowd.ask() == right()
    assert len(log_of(replica)) == 1


def test_an_order_is_obeyed_while_it_runs(start: Start, models: Path) -> None:
    replica = start(model=models / "rowwise.onnx", batches=ALONE)
    crowd = tags(replica)
    with replica.control() as control:
        assert control.status().facts["batching"] is False
        assert crowd.ask(10) == right(10)
        control.send(SetBatching(order=TOGETHER))
        changed = control.until(lambda status: status.batching.order == TOGETHER)
        assert changed.facts["batching"] is True
        assert changed.batching.guarded_rows == 0, "there was no batch before"
        crowd.until(lambda state: state.guarded_rows > 0, "requests shared a run")
        control.send(SetBatching(order=ALONE))
        assert control.until(lambda status: status.batching.order == ALONE).facts["batching"] is False
        assert crowd.ask() == right()


def test_an_order_may_come_before_the_model_is_loaded(start: Start, models: Path, folder: Path) -> None:
    waits = (
        "import os, time\nwhile not os.path.exists(os.environ['FOLDER'] + '/go'): time.sleep(0.005)\n"
        "def post_inference(p, m): return p\n"
    )
    replica = start(waits, model=models / "rowwise.onnx", wait=False)
    with replica.control() as control:
        control.send(SetBatching(order=TOGETHER))
        loading = control.until(lambda status: status.batching.order == TOGETHER)
        assert loading.facts == {}
        (folder / "go").touch()
        assert control.until(lambda status: bool(status.facts)).facts["batching"] is True


def test_batching_costs_nothing_before_the_first_batch(start: Start, folder: Path) -> None:
    """Pictures of any size: several of them together take a multiple of the memory of one."""
    rng = np.random.default_rng(0)
    channels = [3, *[176] * 2, 3]
    nodes = [("Conv", [f"x{n}", f"w{n}"], [f"x{n + 1}"], {"pads": [1] * 4}) for n in range(3)]
    weights = {f"w{n}": rng.normal(0, 0.05, (channels[n + 1], channels[n], 3, 3)).astype(np.float32) for n in range(3)}
    dims = ["N", 3, "height", "width"]
    model = save(folder / "pictures.onnx", nodes, {"x0": dims}, {"x3": dims}, **weights)
    assert model.stat().st_size > 1_000_000
    sizes_kib = {}
    for order in (TOGETHER, ALONE):
        replica = start(model=model, batches=order)
        assert replica.post([[[[0.5] * 32] * 32] * 3]).status == 200
        sizes_kib[order.batches] = replica.rss_kib()
    assert sizes_kib[True] < 1.05 * sizes_kib[False]


# ---- inspections ----------------------------------------------------------------------------------------------------


def test_an_inspection_proves_from_the_graph_and_tries_what_is_proved(
    shared_launcher: LauncherProcess, folder: Path, models: Path
) -> None:
    def verdict(name: str) -> BatchingVerdict:
        report = shared_launcher.link.inspect(spec_for(folder, models / name), rows="auto")
        assert report.problems == ()
        assert report.batching is not None
        return report.batching

    proved = verdict("rowwise.onnx")
    assert (proved.proof.proved, proved.proof.rounding) == (True, "rounding")
    assert proved.trial is not None
    assert proved.trial.rows > 0
    assert proved.trial.disagreement is None
    refused = verdict("mixing.onnx")
    assert (refused.proof.proved, refused.trial) == (False, None)
    assert refused.proof.operator.startswith("ReduceSum")


def test_an_inspection_tries_rows_with_the_runtime_that_replicas_have(
    shared_launcher: LauncherProcess, start: Start, folder: Path, models: Path
) -> None:
    model = models / "rowwise.onnx"
    report = shared_launcher.link.inspect(spec_for(folder, model, threads=2), rows="on")
    assert report.problems == ()
    assert report.batching is not None
    trial = report.batching.trial
    assert trial is not None
    assert trial.disagreement is None
    assert trial.rows > 0
    assert trial.runtime == start(model=model, threads=2).status().batching.runtime


def test_an_inspection_contradicts_a_users_word(shared_launcher: LauncherProcess, folder: Path, models: Path) -> None:
    report = shared_launcher.link.inspect(spec_for(folder, models / "mixing.onnx"), rows="on")
    assert report.batching is not None
    trial = report.batching.trial
    assert trial is not None
    assert trial.disagreement is not None
    assert trial.disagreement.output == "tag"


# ---- text, padded to the longest of a batch -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def text_model(tensorflow: Any) -> Iterator[Path]:
    """
    text: string [N] → ids, padded to the longest text of a batch, and a score for which padding counts too, as models
    of tutorials have it.
    """
    tf = tensorflow
    folder = Path(tempfile.mkdtemp(prefix="cx", dir="/tmp"))
    words = tf.constant(["the", "cat", "sat", "on", "mat"])
    numbers = tf.lookup.KeyValueTensorInitializer(words, tf.range(1, 6, dtype=tf.int64))
    rng = np.random.default_rng(0)

    class Text(tf.Module):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            super().__init__()
            self.table = tf.lookup.StaticVocabularyTable(numbers, 1)
            self.layer = tf.Variable(rng.normal(0, 0.04, (WIDTH, WIDTH)).astype(np.float32))
            self.words = tf.Variable(rng.normal(size=(7, WIDTH)).astype(np.float32))

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="text")])  # type: ignore[untyped-decorator]
        def serve(self, text: Any) -> Any:
            ids = self.table.lookup(tf.strings.split(text)).to_tensor()
            hidden = tf.reduce_mean(tf.nn.embedding_lookup(self.words, ids), axis=1)
            for _ in range(4):
                hidden = tf.tanh(tf.linalg.matmul(hidden, self.layer))
            return {"ids": ids, "score": tf.reduce_mean(hidden * hidden, axis=1, keepdims=True)}

    model = Text()
    tf.saved_model.save(model, str(folder), signatures={"serving_default": model.serve})
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def test_text_that_is_padded_to_the_longest_is_found_out(text_model: Path, folder: Path) -> None:
    texts = {number: " ".join(["the cat sat on the mat"] * number) for number in range(1, CALLERS + 1)}
    for launcher in running(folder, backend="tensorflow"):
        spec = spec_for(folder, text_model, runtime="tensorflow", batches=TOGETHER)
        report = launcher.link.inspect(spec, rows="on")
        assert report.batching is not None
        assert report.batching.trial is not None
        assert report.batching.trial.disagreement is not None
        replica = launcher.fork(spec).ready()
        crowd = Crowd(replica, lambda number: orjson.dumps([texts[number]]), lambda found: len(found["ids"]))
        found = crowd.until(lambda state: state.disagreement is not None, "the guard has found it out").disagreement
        assert isinstance(found, Disagreement)
        assert crowd.ask() == {number: [6 * number] * 3 for number in texts}, "ids of its own words and no others"
        assert len(log_of(replica)) == 1
