"""How an agent ends, and what it must not leave behind."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest
from agent_harness import DEADLINE_S, Node, eventually

from cortex.processes import is_alive
from cortex.wire.agent import GiveOrders, Refused, StopAgent
from cortex.wire.orders import Orders
from cortex.wire.reports import Phase

pytestmark = pytest.mark.slow

WAITS = """\
import pathlib, time

def pre_inference(sample, metadata):
    if sample:
        pathlib.Path(sample["mark"]).touch()
        while not pathlib.Path(sample["go"]).exists():
            time.sleep(0.01)
    return [[5.2, 3.6, 1.4, 0.3]]
"""
NEVER_LOADED = "import time\ntime.sleep(600)\n"


def test_a_stopped_node_finishes_its_requests_and_leaves_nothing(own_node: Node, api: str, tmp_path: Path):
    build = own_node.build(api, WAITS)
    own_node.serve(build, count=2, body=b"null")
    starting = own_node.build(f"{api}s", NEVER_LOADED)
    own_node.order(own_node.start_order(starting))
    own_node.until(own_node.start_order(starting).replica, Phase.LOADING)
    mark, go = tmp_path / "begun", tmp_path / "go"
    asking = own_node.posting(build, json.dumps({"mark": str(mark), "go": str(go)}).encode())
    eventually(mark.exists, "the handler works on it")
    own_node.ask(StopAgent(drain_timeout_s=DEADLINE_S))
    late = own_node.ask(GiveOrders(orders=Orders(epoch=own_node.epoch, orders=(own_node.start_order(build, 7),))))
    assert isinstance(late, Refused)
    assert not late.stale_epoch
    go.touch()
    assert asking.outcome()[0] == 200
    assert own_node.wait_for_end() == 0
    assert own_node.is_empty()
    assert list(own_node.layout.home.rglob("*.tmp")) == []
    assert not own_node.layout.agent_file.exists()


def test_an_agent_that_is_told_to_end_by_signal_leaves_everything_running(node: Node, api: str):
    build = node.build(api)
    (replica,) = node.serve(build)
    before = node.of(node.until(replica, Phase.READY))
    node.signal_agent(signal.SIGTERM)
    assert node.wait_for_end() == 0
    assert node.post(build)[0] == 200
    node.start()
    assert node.of(node.until(replica, Phase.READY)) == before


def test_a_second_agent_ends_at_once_and_changes_nothing(node: Node, api: str):
    build = node.build(api)
    node.serve(build)
    before = node.report().agent
    assert node.start_another().wait(DEADLINE_S) == 0
    assert node.report().agent == before
    assert node.post(build)[0] == 200


def test_a_node_whose_ingress_was_killed_stops_all_the_same(own_node: Node, api: str):
    own_node.serve(own_node.build(api))
    killed = own_node.haproxies()
    assert killed
    own_node.kill(*killed)
    assert own_node.stop(20.0) == 0
    assert own_node.is_empty()


def test_a_node_whose_home_was_removed_ends_by_itself(own_node: Node, api: str):
    own_node.serve(own_node.build(api))
    everybody = own_node.processes()
    assert own_node.agent_pid in {identity.pid for identity in everybody}
    home = own_node.layout.home
    removed = home.rename(home.with_name("removed"))  # at once: files come and go in it
    own_node.wait_for_end()
    eventually(lambda: not any(is_alive(identity) for identity in everybody), "nobody is left")
    assert not home.exists()
    shutil.rmtree(removed)


def test_a_disk_that_takes_no_records_keeps_nobody_from_serving(own_node: Node, api: str):
    records = own_node.layout.node / "replicas"
    records.write_bytes(b"")  # a file where a folder is needed: nothing can be written, even by root
    state = own_node.layout.node / "agent-state.json"
    state.unlink(missing_ok=True)
    state.mkdir()
    build = own_node.build(api)
    (replica,) = own_node.serve(build)
    assert own_node.post(build)[0] == 200
    records.unlink()
    state.rmdir()
    eventually(lambda: len(own_node.files_of(replica)) == 3 and state.is_file(), "what was owed is written")
