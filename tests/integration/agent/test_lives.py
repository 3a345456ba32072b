"""Replicas from an order to their end, with a real agent, launcher, keeper and HAProxy."""

from __future__ import annotations

import json
import signal
import socket
from pathlib import Path

import msgspec
import pytest
from agent_harness import DEADLINE_S, Asking, Node, eventually

from cortex.ids import socket_stem
from cortex.processes import is_alive, send_signal
from cortex.wire.agent import GiveOrders, Observed, Refused
from cortex.wire.framing import receive_frame, send_frame
from cortex.wire.orders import ForgetReplica, Orders
from cortex.wire.reports import Phase

pytestmark = pytest.mark.slow

SLOW = """\
import pathlib, time

def pre_inference(sample, metadata):
    if sample:
        pathlib.Path(sample["mark"]).touch()
        while not pathlib.Path(sample["go"]).exists():
            time.sleep(0.01)
    return [[5.2, 3.6, 1.4, 0.3]]

def post_inference(prediction, metadata):
    return "done"
"""
NEVER_GIVES_WAY = """\
import ctypes

def pre_inference(sample, metadata):
    return [[5.2, 3.6, 1.4, 0.3]]

def on_stop():
    ctypes.PyDLL(None).sleep(600)  # with the GIL held: no other thread of the process runs meanwhile
"""
SLOW_IMPORT = "import time\ntime.sleep(600)\n"
SLOW_LOADING = """\
import os, time
while not os.path.exists({go!r}):
    time.sleep(0.01)

def pre_inference(sample, metadata):
    return sample
"""


def test_an_ordered_replica_gets_ready_and_answers_over_http(node: Node, api: str):
    build = node.build(api)
    (replica,) = node.serve(build)
    assert node.post(build)[0] == 200
    found = node.until(replica, Phase.READY)
    assert (found.was_ready, found.exit, found.version) == (True, None, build.version)
    assert is_alive(node.of(found))


NOTES_IMPORT = """\
import os

with open({notes!r}, "a") as file:
    file.write(f"{{os.getpid()}}\\n")

def pre_inference(sample, metadata):
    return [[5.2, 3.6, 1.4, 0.3]]
"""


def test_a_replica_goes_on_with_what_was_loaded_to_look_at_it(node: Node, api: str, tmp_path: Path):
    notes = tmp_path / "imports"
    build = node.build(api, NOTES_IMPORT.format(notes=str(notes)))
    assert node.inspect(build, rows="auto", keep=True).kept == "", "an affair of the node"
    (replica,) = node.serve(build)
    found = node.until(replica, Phase.READY)
    assert notes.read_text() == f"{found.pid}\n"
    send_signal(node.of(found), signal.SIGKILL)
    node.until(replica, Phase.EXITED)
    node.restart(build)
    second = node.until(replica, Phase.READY, attempt=2)
    assert notes.read_text() == f"{found.pid}\n{second.pid}\n", "the next attempt loads by itself"
    node.remove(build, replica)
    scratch = node.layout.scratch
    eventually(lambda: not node.files_of(replica) and not list(scratch.glob(f"{socket_stem(replica)}.*")), "it is gone")


def test_rows_of_a_model_with_threads_are_tried_beside_what_is_kept(node: Node, api: str, tmp_path: Path):
    notes = tmp_path / "imports"
    build = node.build(api, NOTES_IMPORT.format(notes=str(notes)))
    build = msgspec.structs.replace(build, resources=msgspec.structs.replace(build.resources, cpu_millis=2000))
    report = node.inspect(build, rows="auto", keep=True)
    assert report.batching is not None
    assert report.batching.trial is not None
    assert (report.rows_left, len(notes.read_text().split())) == (False, 1)
    (replica,) = node.serve(build)
    assert notes.read_text() == f"{node.until(replica, Phase.READY).pid}\n"


def test_looking_again_ends_what_was_kept_before(node: Node, api: str):
    build = node.build(api)
    kept = f"cortex-inspect {node.layout.home} {build.api}"
    for _ in range(2):
        node.inspect(build, keep=True)
        assert len(node.processes(kept)) == 1
    node.inspect(build)
    eventually(lambda: not node.processes(kept), "it has ended")


WAITS_FOR_ITS_SAMPLE = """\
import os, time

def pre_inference(sample, metadata):
    open({begun!r}, "w").close()
    time.sleep(600)
"""


def test_a_replica_told_to_end_over_its_sample_has_lost_nobodys_request(node: Node, api: str, tmp_path: Path):
    begun = tmp_path / "begun"
    build = node.build(api, WAITS_FOR_ITS_SAMPLE.format(begun=str(begun)), sample=b"[]")
    start = node.start_order(build)
    node.order(start)
    eventually(begun.exists, "the sample is on its way")
    node.retire(build, start.replica)
    node.until(start.replica, Phase.EXITED)
    assert "ended with the request" not in (node.layout.replica_logs / f"{start.replica}.log").read_text()


def test_the_same_order_again_changes_nothing(node: Node, api: str):
    build = node.build(api)
    (replica,) = node.serve(build)
    before = node.until(replica, Phase.READY)
    node.order(node.start_order(build), node.start_order(build))
    assert node.until(replica, Phase.READY).pid == before.pid


def test_a_drained_replica_finishes_what_it_holds(node: Node, api: str, tmp_path: Path):
    build = node.build(api, SLOW)
    (replica,) = node.serve(build, body=b"null")
    mark, go = tmp_path / "begun", tmp_path / "go"
    asking = node.posting(build, json.dumps({"mark": str(mark), "go": str(go)}).encode())
    eventually(mark.exists, "the handler works on it")
    node.retire(build, replica)
    node.until(replica, Phase.DRAINING)
    go.touch()
    assert asking.outcome() == (200, b'"done"')
    found = node.until(replica, Phase.EXITED)
    assert found.exit is not None
    assert (found.exit.drained, found.exit.code) == (True, 0)


def test_an_end_that_keeps_even_the_replicas_watchdog_from_its_turn_has_not_the_whole_drain(hasty_node: Node, api: str):
    build = hasty_node.build(api, NEVER_GIVES_WAY)
    (replica,) = hasty_node.serve(build)
    hasty_node.retire(build, replica, timeout_s=600)
    found = hasty_node.until(replica, Phase.EXITED)
    assert found.exit is not None
    assert (found.exit.drained, found.exit.signal) == (True, signal.SIGKILL)


def test_a_replica_told_to_end_by_somebody_else_loses_no_request(node: Node, api: str):
    build = node.build(api)
    (replica,) = node.serve(build)
    send_signal(node.of(node.until(replica, Phase.READY)), signal.SIGTERM)
    asking = [node.posting(build) for _ in range(5)]
    found = node.until(replica, Phase.EXITED)
    assert found.exit is not None
    assert not found.exit.drained
    node.restart(build)
    assert [each.outcome()[0] for each in asking] == [200] * 5


def test_a_forgotten_replica_leaves_no_process_and_no_file(node: Node, api: str):
    build = node.build(api)
    (replica,) = node.serve(build)
    identity = node.of(node.until(replica, Phase.READY))
    node.remove(build, replica)
    eventually(lambda: not is_alive(identity) and not node.files_of(replica), "everything of it is gone")
    assert node.seen(replica) is None
    eventually(lambda: node.post(build)[0] == 404, "its route is gone")


def test_a_replica_forgotten_while_it_is_forked_leaves_no_process(node: Node, names):
    for _ in range(10):
        build = node.build(names())
        start = node.start_order(build)
        node.order(start, ForgetReplica(replica=start.replica))
        title = f"cortex-replica {node.layout.home} {build.api} "
        eventually(lambda start=start: not node.files_of(start.replica), "its files are gone")
        eventually(lambda title=title: not node.processes(title), "its process is gone")


def test_a_replica_that_is_wanted_again_while_it_is_forgotten_serves(node: Node, api: str):
    build = node.build(api)
    (replica,) = node.serve(build)
    first = node.of(node.until(replica, Phase.READY))
    node.remove(build, replica)
    node.serve(build)
    eventually(lambda: not is_alive(first), "the first one has ended")
    assert node.post(build)[0] == 200
    assert len(node.files_of(replica)) == 3


def test_a_replica_drained_before_it_is_ready_ends_at_once(node: Node, api: str):
    build = node.build(api, SLOW_IMPORT)
    start = node.start_order(build)
    node.order(start)
    identity = node.of(node.until(start.replica, Phase.LOADING))
    node.retire(build, start.replica, timeout_s=600)
    found = node.until(start.replica, Phase.EXITED)
    assert found.exit is not None
    assert found.exit.drained
    assert not is_alive(identity)


def test_orders_of_an_earlier_control_plane_are_refused(node: Node, api: str):
    build = node.build(api)
    node.epoch += 1
    node.order()
    late = GiveOrders(orders=Orders(epoch=node.epoch - 1, orders=(node.start_order(build),)))
    reply = node.ask(late)
    assert isinstance(reply, Refused)
    assert reply.stale_epoch
    assert node.seen(node.start_order(build).replica) is None


def test_orders_that_later_ones_have_overtaken_are_refused_and_those_of_the_next_control_plane_are_not(node: Node):
    def given(turn: int) -> object:
        return node.ask(GiveOrders(orders=Orders(epoch=node.epoch, orders=()), turn=turn))

    assert isinstance(given(2), Observed)
    assert given(1) == Refused(reason="later orders were taken before these")
    assert isinstance(given(2), Observed)
    node.epoch += 1
    assert isinstance(given(1), Observed)


def test_a_usable_build_is_described_without_becoming_a_replica(node: Node, api: str):
    report = node.inspect(node.build(api, SLOW))
    assert report.problems == ()
    assert report.signature is not None
    assert [tensor.name for tensor in report.signature.inputs] == ["input"]
    assert report.has_pre


@pytest.mark.parametrize(
    ("handler", "model", "reference"),
    [
        pytest.param("import no_such_module\n", None, "handler-missing-module", id="handler"),
        pytest.param("import os\nos._exit(7)\n", None, "inspection-died", id="handler that ends its process"),
        pytest.param(None, b"no model at all", "model-unreadable", id="model"),
    ],
)
def test_a_broken_build_is_refused_with_the_reason(node: Node, api: str, handler, model, reference):
    (problem,) = node.inspect(node.build(api, handler, model=model)).problems
    assert problem.reference == reference
    assert problem.message


def test_an_inspection_outlives_its_launcher(node: Node, api: str, tmp_path: Path):
    build = node.build(api, SLOW_LOADING.format(go=str(tmp_path / "go")))
    title = f"cortex-inspect {node.layout.home} {build.api}"
    with node.another_line() as other:
        asking = Asking(lambda: other.inspect(build))
        orphan = eventually(lambda: node.processes(title), "it is being inspected")[0]
        node.kill(node.only("cortex-launcher"))
        eventually(lambda: not is_alive(orphan), "the first inspection was ended")
        (tmp_path / "go").touch()
        assert asking.outcome().problems == ()


@pytest.mark.parametrize(
    "garbage",
    [
        pytest.param(b"\xff" * 64, id="absurd length"),
        pytest.param(b"\0\0\0\5hello", id="no json"),
        pytest.param(b'\0\0\0\7{"a":1}', id="another message"),
        pytest.param(b'\0\0\0\4"\xff\xff"', id="no text"),
        pytest.param(b"\0\0\x27\x10" + b"[" * 10000, id="deeply nested"),
        pytest.param(b"\0\0", id="half a length"),
    ],
)
def test_garbage_on_the_agents_socket_harms_nobody(node: Node, garbage: bytes):
    before = node.report().agent
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
        line.settimeout(DEADLINE_S)
        line.connect(str(node.layout.agent_socket))
        line.sendall(garbage)
        line.shutdown(socket.SHUT_WR)
        try:
            while line.recv(1 << 16):
                pass
        except ConnectionResetError:
            pass
    assert node.report().agent == before


def test_a_request_that_is_none_is_refused_and_the_connection_goes_on(node: Node):
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
        line.settimeout(DEADLINE_S)
        line.connect(str(node.layout.agent_socket))
        for _ in range(2):
            send_frame(line, b'{"type": "no_such_request"}')
            assert b"does not understand" in receive_frame(line)[0]
