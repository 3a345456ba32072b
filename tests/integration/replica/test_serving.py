"""A replica over its real socket: HTTP as peers send it, handlers as users write them."""

from __future__ import annotations

import contextlib
import gzip
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
import orjson
import pytest
from replica_harness import Replica, eventually, request

from cortex.replica.prediction.batching import MAX_BATCH_ROWS
from cortex.wire.batching import BatchingOrder
from cortex.wire.build import TrackerConfig

pytestmark = pytest.mark.slow

Start = Callable[..., Replica]
SAMPLE = [5.1, 3.5, 1.4, 0.2]
WAITS = """
import os, time
def pre_inference(sample, metadata):
    print("began", sample[0])
    while not os.path.exists(os.environ["FOLDER"] + "/go"): time.sleep(0.005)
    return sample
"""
LABEL = """
def post_inference(prediction, metadata):
    return prediction["label"][0]
"""


@pytest.fixture(scope="module")
def slow_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Large layers: several milliseconds a row on any machine, so that it runs on its own thread, in batches."""
    width, layers = 1024, 16
    rng = np.random.default_rng(0)
    nodes, weights = [], []
    for number in range(4):
        weight = rng.normal(0, 0.04, (width, width)).astype(np.float32)
        weights.append(onnx.numpy_helper.from_array(weight, f"w{number}"))
    for layer in range(layers):
        nodes.append(onnx.helper.make_node("MatMul", [f"x{layer}", f"w{layer % 4}"], [f"x{layer + 1}"]))
    nodes.append(onnx.helper.make_node("ReduceSum", ["x0", "axes"], ["tag"], keepdims=1))
    weights.append(onnx.numpy_helper.from_array(np.array([1], np.int64), "axes"))
    floats = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [onnx.helper.make_tensor_value_info("x0", floats, ["N", width])],
        [
            onnx.helper.make_tensor_value_info("tag", floats, ["N", 1]),
            onnx.helper.make_tensor_value_info(f"x{layers}", floats, ["N", width]),
        ],
        weights,
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    path = tmp_path_factory.mktemp("model") / "slow.onnx"
    onnx.save(model, path)
    return path


def test_a_model_without_a_handler_answers(start: Start) -> None:
    replica = start()
    with replica.client() as client:
        for _ in range(3):
            answer = client.post(orjson.dumps(SAMPLE), {"x-request-id": "abc"})
            assert answer.status == 200
            assert answer.json[0] == ["iris-setosa"]
            assert answer.headers["x-request-id"] == "abc"
            assert answer.headers["x-cortex-version"] == "01234567"
            assert answer.headers["content-type"] == "application/json"


def test_the_signature_shows_a_sample_that_works(start: Start) -> None:
    replica = start()
    with replica.client() as client:
        described = client.get().json
        assert described["inputs"] == [{"name": "input", "dtype": "float32", "shape": [None, 4]}]
        assert [output["name"] for output in described["outputs"]] == ["label", "probabilities"]
        assert client.post(orjson.dumps(described["sample"])).status == 200
        assert described["call"].startswith("curl http://localhost:8880/t/a ")
        assert client.get("HEAD").body == b""
        assert client.get("OPTIONS").headers["allow"] == "GET, HEAD, POST, OPTIONS"
        assert client.get("PATCH").status == 405


def test_errors_are_json_with_the_request_id(start: Start) -> None:
    replica = start()
    answer = replica.post(b"[1, 2", {"x-request-id": "abc"})
    assert (answer.status, answer.json["error"], answer.json["request_id"]) == (400, "malformed-json", "abc")
    answer = replica.post([1, 2])
    assert (answer.status, answer.json["input"], answer.json["expected"]) == (
        422,
        "input",
        {"dtype": "float32", "shape": [None, 4]},
    )


def test_bodies_may_be_chunked_and_compressed(start: Start) -> None:
    replica = start()
    body = gzip.compress(orjson.dumps(SAMPLE))
    with replica.client() as client:
        assert client.post(body, {"content-encoding": "gzip"}).status == 200
        client.send(b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n")
        for part in (b"[5.1,", b"3.5, 1.4", b", 0.2]"):
            client.send(b"%x\r\n%b\r\n" % (len(part), part))
        client.send(b"0\r\n\r\n")
        assert client.receive().status == 200


def test_pipelined_requests_come_back_in_order(start: Start) -> None:
    replica = start()
    with replica.client() as client:
        client.send(b"".join(request(orjson.dumps(SAMPLE), {"x-request-id": f"n{n}"}) for n in range(200)))
        assert [client.receive().headers["x-request-id"] for _ in range(200)] == [f"n{n}" for n in range(200)]


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_over_the_limit_is_refused_and_the_answer_arrives(start: Start, chunked: bool) -> None:
    replica = start()
    with replica.client() as client:
        limits = b"x-cortex-limits: 60000,100000\r\n"
        if chunked:
            client.send(b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n" + limits + b"\r\n")
        else:
            client.send(b"POST / HTTP/1.1\r\ncontent-length: 10000000\r\n" + limits + b"\r\n")
        try:
            for _ in range(100):
                client.send(b"186a0\r\n" + b"x" * 100_000 + b"\r\n" if chunked else b"x" * 100_000)
        except (BrokenPipeError, ConnectionResetError):
            pass
        answer = client.receive()
        assert (answer.status, answer.json["error"], answer.json["limit"]) == (413, "body-too-large", 100_000)
        assert "max_body" in answer.json["hint"]


def test_half_a_close_still_gets_its_answer(start: Start, folder: Path) -> None:
    replica = start(WAITS, concurrency=2)
    with replica.client() as client:
        client.send(request(orjson.dumps(SAMPLE)))
        eventually(lambda: replica.status().in_flight == 1, "it is in flight")
        client.sock.shutdown(socket.SHUT_WR)
        with replica.client() as other:
            assert other.get().status == 200, "the loop has come round since, and seen half a close"
        (folder / "go").touch()
        assert client.receive().status == 200
        assert client.at_end()


def test_http_1_0_and_expect(start: Start) -> None:
    replica = start()
    body = orjson.dumps(SAMPLE)
    with replica.client() as client:
        client.send(b"POST / HTTP/1.0\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
        assert client.receive().status == 200
        assert client.at_end()
    with replica.client() as client:
        client.send(b"POST / HTTP/1.1\r\ncontent-length: %d\r\nexpect: 100-continue\r\n\r\n" % len(body))
        assert client.receive().status == 100
        client.send(body)
        assert client.receive().status == 200


def test_broken_peers_hurt_nobody(start: Start) -> None:
    replica = start()
    for data in (b"\x00\xff\r\n\r\n", b"POST", b"POST / HTTP/1.1\r\ncontent-length: 100\r\n\r\n[1", b""):
        with replica.client() as client:
            client.send(data)
    with replica.client() as client:
        client.send(b"GARBAGE\r\n\r\n")
        assert client.receive().status == 400
        assert client.at_end()
    assert replica.post(SAMPLE).status == 200


def test_a_peer_that_does_not_read_does_not_fill_memory(start: Start) -> None:
    replica = start("def post_inference(p, m):\n    return 'x' * 1_000_000\n")
    assert replica.post(SAMPLE).status == 200
    before_kib = replica.rss_kib()
    with replica.client() as client:
        client.sock.setblocking(False)
        unsent = memoryview(request(orjson.dumps(SAMPLE)) * 10_000)
        sent_bytes = 1
        while sent_bytes:
            sent_bytes = 0
            with contextlib.suppress(BlockingIOError):
                while unsent:
                    sent_bytes += (some := client.sock.send(unsent))
                    unsent = unsent[some:]
            # The loop comes round, and would read what has been sent.
            assert replica.post(SAMPLE).status == 200
        assert unsent, "the replica stopped reading"
        assert replica.rss_kib() - before_kib < 150_000


# ---- handlers -------------------------------------------------------------------------------------------------------


def test_a_handler_lives_in_its_own_world(start: Start, folder: Path) -> None:
    replica = start(
        """
import os, sys
def post_inference(prediction, metadata):
    return {
        "environ": dict(os.environ), "cwd": os.getcwd(), "path": sys.path[:2],
        "fds": sorted(os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if int(fd) < 3),
        "count": len(os.listdir("/proc/self/fd")), "sid": os.getsid(0) == os.getpid(), "stdin": sys.stdin.read(),
        "bytecode": sys.dont_write_bytecode,
        "title": open("/proc/self/cmdline").read().strip("\\0 "),
    }
""",
        env={"TOKEN": "t"},
        threads=2,
    )
    found = replica.post(SAMPLE).json
    environ = found["environ"]
    assert environ["TOKEN"] == "t"
    assert environ["CORTEX_API"] == "a"
    assert environ["OMP_NUM_THREADS"] == "2"
    assert not [name for name in environ if name.startswith(("CORTEX_TEST", "CORTEX_HOME", "PYTEST"))]
    assert found["cwd"] == str(folder / "project")
    assert found["path"][0] == str(folder / "project")
    assert found["fds"] == ["/dev/null", f"{replica.spec.log_path}.raw", f"{replica.spec.log_path}.raw"]
    assert found["count"] < 42, "two loops, sockets, logs, and nothing of the launcher"
    assert found["sid"]
    assert found["stdin"] == ""
    assert found["bytecode"]
    assert found["title"] == f"cortex-replica {folder} t/a 01234567 {replica.spec.replica}"


def test_replicas_draw_different_random_numbers(start: Start) -> None:
    source = "import random, numpy\ndef post_inference(p, m):\n    return [random.random(), numpy.random.random()]\n"
    drawn = [start(source).post(SAMPLE).json for _ in range(3)]
    assert len({pair[0] for pair in drawn}) == len({pair[1] for pair in drawn}) == 3


def test_what_a_handler_prints_carries_the_request_id(start: Start) -> None:
    replica = start(
        """
import logging
from cortex.lib.log import get_logger
print("at import")
def pre_inference(sample, metadata):
    print("printed")
    get_logger().info("logged")
    logging.getLogger("other").warning("by a library")
    return sample
"""
    )
    assert replica.post(SAMPLE, {"x-request-id": "r-1"}).status == 200
    lines = [(line.stream, line.level, line.request, line.text) for line in replica.lines()]
    assert lines == [
        ("out", "", "", "at import"),
        ("out", "", "r-1", "printed"),
        ("log", "INFO", "r-1", "logged"),
        ("log", "WARNING", "r-1", "by a library"),
    ]


def test_a_failing_handler_tells_the_caller_little_and_the_log_everything(start: Start) -> None:
    replica = start("def pre_inference(sample, metadata):\n    return sample['petals']\n")
    answer = replica.post(SAMPLE, {"x-request-id": "r-1"})
    assert (answer.status, answer.json["error"], answer.json["request_id"]) == (500, "handler-failed", "r-1")
    assert "Traceback" not in answer.body.decode()
    (line,) = [line for line in replica.lines() if line.request == "r-1"]
    assert line.level == "ERROR"
    assert 'File "handler.py", line 2, in pre_inference' in line.text
    assert "site-packages" not in line.text


@pytest.mark.parametrize(
    "code",
    [
        "raise SystemExit(3)",
        "raise KeyboardInterrupt",
        "return deeper(sample)",
        "import sys; sys.stdout.close(); sys.stderr.close(); print('x'); raise ValueError",
        "import os; os.close(1); print('\\ud800'); raise ValueError",
        "import threading; threading.Thread(target=lambda: 1/0).start(); raise ValueError",
    ],
)
def test_what_a_handler_does_wrong_hurts_only_its_own_request(start: Start, code: str) -> None:
    replica = start(
        "def deeper(x): return deeper(x)\n"
        f"def pre_inference(sample, metadata):\n    if sample != 1: return sample\n    {code}\n"
    )
    assert replica.post(1).status == 500
    assert replica.post(SAMPLE).status == 200
    assert replica.alive()


def test_asyncio_run_and_uvloop_run_work_in_a_sync_handler(start: Start) -> None:
    replica = start(
        """
import asyncio, uvloop
async def work(x):
    await asyncio.sleep(0.001)
    return x
def pre_inference(sample, metadata):
    return asyncio.run(work(sample))
def post_inference(prediction, metadata):
    return uvloop.run(work(prediction["label"][0]))
"""
    )
    with replica.client() as client:
        for _ in range(5):
            assert client.post(orjson.dumps(SAMPLE)).json == "iris-setosa"


@pytest.mark.parametrize("prefix", ["", "async "])
def test_concurrent_callers_get_their_own_answers(start: Start, prefix: str) -> None:
    replica = start(
        f"{prefix}def pre_inference(sample, metadata, request):\n    request.state['n'] = sample['n']\n"
        f"    return sample['x']\n"
        f"{prefix}def post_inference(prediction, metadata, request):\n    return request.state['n']\n",
        concurrency=4,
    )

    def call(number: int, results: dict[int, Any]) -> None:
        with replica.client() as client:
            for turn in range(20):
                tag = number * 100 + turn
                results[tag] = client.post(orjson.dumps({"n": tag, "x": SAMPLE})).json

    _check_callers(call, callers=8, turns=20)


def test_a_slow_model_answers_many_callers_in_batches(start: Start, slow_model: Path) -> None:
    replica = start(model=slow_model, batches=BatchingOrder(batches=True))
    facts = replica.status().facts
    assert (facts["batching"], facts["largest_batch"]) == (True, MAX_BATCH_ROWS)
    assert facts["model_us"] > 0

    def call(number: int, results: dict[int, Any]) -> None:
        with replica.client() as client:
            for turn in range(10):
                tag = number * 100 + turn
                answer = client.post(orjson.dumps([[float(tag)] + [0.0] * 1023]))
                results[tag] = round(answer.json[0][0][0])

    _check_callers(call, callers=12, turns=10)


def _check_callers(call: Callable[[int, dict[int, Any]], None], *, callers: int, turns: int) -> None:
    results: dict[int, Any] = {}
    threads = [threading.Thread(target=call, args=(number, results)) for number in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == callers * turns
    assert all(tag == found for tag, found in results.items())


def test_an_async_handler_out_of_time_gets_504(start: Start) -> None:
    replica = start("import asyncio\nasync def pre_inference(s, m):\n    await asyncio.sleep(600)\n")
    answer = replica.post(SAMPLE, {"x-cortex-limits": "100,1000"})
    assert (answer.status, answer.json["error"]) == (504, "timeout")
    eventually(lambda: replica.status().in_flight == 0, "the task has ended")


def test_requests_whose_caller_left_are_not_begun(start: Start, folder: Path) -> None:
    replica = start(WAITS, concurrency=2)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(replica.client()) for _ in range(5)]
        for number, client in enumerate(clients):
            client.send(request(orjson.dumps([number, 1, 1, 1])))
            eventually(lambda n=number: replica.status().in_flight == n + 1, "it is in flight")
        for client in clients[2:]:
            client.sock.close()
        eventually(lambda: replica.status().in_flight == 2, "the others are dropped")
        (folder / "go").touch()
        for client in clients[:2]:
            assert client.receive().status == 200
    assert sorted(line.text for line in replica.lines()) == ["began 0", "began 1"]  # on two threads
    assert replica.stats(lambda found: found.ok == 2).dropped == 3


def test_requests_that_waited_for_the_loop_and_whose_caller_left_are_not_begun(start: Start, folder: Path) -> None:
    replica = start(WAITS)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(replica.client()) for _ in range(5)]
        clients[0].send(request(orjson.dumps([0, 1, 1, 1])))
        eventually(lambda: [line.text for line in replica.lines()] == ["began 0"], "the loop is in the handler")
        for number, client in enumerate(clients[1:], 1):
            client.send(request(orjson.dumps([number, 1, 1, 1])))
        for client in clients[1:3]:
            client.sock.close()
        clients[3].sock.shutdown(socket.SHUT_WR)  # who has only said all it has to say still listens
        (folder / "go").touch()
        for client in (clients[0], *clients[3:]):
            assert client.receive().status == 200
    assert sorted(line.text for line in replica.lines()) == ["began 0", "began 3", "began 4"]
    assert replica.stats(lambda found: found.ok == 3).dropped == 2


# ---- counts ---------------------------------------------------------------------------------------------------------


def test_a_probe_is_answered_like_any_request_and_counted_nowhere(start: Start) -> None:
    replica = start(LABEL, tracker=TrackerConfig(model_type="classification"))
    probe = {"x-cortex-probe": "1"}
    with replica.client() as client:
        for _ in range(3):
            assert client.post(orjson.dumps(SAMPLE), probe).status == 200
            assert client.post(b"[1]", probe).status == 422
            assert client.post(b"nothing", probe).status == 400
            assert client.post(orjson.dumps(SAMPLE)).status == 200
    with replica.client() as client:
        client.send(request(orjson.dumps(SAMPLE), probe)[:-3])  # and it leaves in the middle
    found = replica.stats(lambda stats: stats.ok == 3)
    assert (found.ok, found.client_error, found.server_error, found.abandoned, found.dropped) == (3, 0, 0, 0, 0)
    assert sum(found.latency_buckets.values()) == 3
    assert found.tracker is not None
    assert sum(found.tracker.classes.values()) == 3


def test_counters_and_tracker_reach_the_stats_file(start: Start) -> None:
    replica = start(LABEL, tracker=TrackerConfig(model_type="classification"))
    for _ in range(3):
        assert replica.post(SAMPLE).status == 200
    assert replica.post([6.7, 3.0, 5.2, 2.3]).status == 200
    assert replica.post([1]).status == 422
    found = replica.stats(lambda found: sum(found.latency_buckets.values()) == 5)  # counted last, or a second later
    assert (found.ok, found.client_error, found.server_error) == (4, 1, 0)
    assert found.tracker is not None
    assert found.tracker.classes == {"iris-setosa": 3, "iris-virginica": 1}


def test_debug_is_logged_step_by_step(start: Start) -> None:
    replica = start(LABEL)
    assert replica.post(SAMPLE, {"x-request-id": "r-1"}, "/t/a?debug=true").status == 200
    steps = [line.text.split()[1] for line in replica.lines() if line.request == "r-1"]
    assert steps == ["sample:", "inference:", "post_inference:"]
