"""What a handler started is gone with its replica, whoever else was killed before."""

from __future__ import annotations

from pathlib import Path

import pytest
from agent_harness import Node, eventually

from cortex.ids import ReplicaId, socket_stem
from cortex.processes import ProcessIdentity, identify, is_alive
from cortex.wire.orders import ForgetReplica
from cortex.wire.reports import Phase

pytestmark = pytest.mark.slow

LEAVES = """
import os, signal, subprocess, sys, time

def stay():
    with open({note!r}, "a") as file:
        file.write(f"{{os.getpid()}}\\n")
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(600)

def post_inference(prediction, metadata, request):
    if request.query.get("k") == "begin":
        if os.fork() == 0:
            stay()
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                stay()
            os._exit(0)
        code = "import os, time; open({note!r}, 'a').write(f'{{os.getpid()}}\\\\n'); time.sleep(600)"
        subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
        subprocess.Popen([sys.executable, "-c", code], env={{}}, start_new_session=True)
        argv = ["cortex-replica", "-c", code]
        subprocess.Popen(argv, executable=sys.executable, env={{}}, start_new_session=True)
    return os.getpid()
"""
LEFT = 5


def _left(node: Node, api: str, tmp_path: Path) -> tuple[ProcessIdentity, list[ProcessIdentity]]:
    """A replica, and what its handler has started."""
    note = tmp_path / f"note-{api}"
    build = node.build(api, LEAVES.format(note=str(note)))
    (replica,) = node.serve(build)
    assert node.post(build, target="?k=begin")[0] == 200

    def look() -> list[ProcessIdentity] | None:
        pids = note.read_text().split() if note.exists() else []
        found = [identity for pid in pids if (identity := identify(int(pid))) is not None]
        return found if len(found) == LEFT else None

    return node.of(node.until(replica, Phase.READY)), eventually(look, "they all run")


def _cleared(node: Node, replica: ReplicaId) -> None:
    folders = f"{socket_stem(replica)}.*"
    eventually(lambda: not list(node.layout.scratch.glob(folders)), "nor a folder")


def _gone(left: list[ProcessIdentity]) -> None:
    eventually(lambda: not any(is_alive(identity) for identity in left), "they are gone")


@pytest.mark.parametrize("killed", ["replica", "launcher first", "both", "agent first", "agent and launcher first"])
def test_whatever_is_killed_nothing_of_a_handlers_is_left(own_node: Node, names, tmp_path: Path, killed: str):
    node = own_node
    replica, left = _left(node, names(), tmp_path)
    _, others = _left(node, names(), tmp_path)
    launcher = node.only("cortex-launcher")
    match killed:
        case "replica":
            node.kill(replica)
        case "launcher first":
            node.kill(launcher)
            node.kill(replica)
        case "both":
            node.kill(launcher, replica)
        case "agent first":
            node.kill_agent()
            node.kill(replica)
        case "agent and launcher first":
            node.kill_agent()
            node.kill(launcher)
            node.start()
            node.kill(replica)
    _gone(left)
    assert all(is_alive(identity) for identity in others)
    if killed == "agent first":
        node.start()
    assert node.stop() == 0
    _gone(others)


def test_a_new_agent_ends_what_names_a_replica_that_is_gone(node: Node, names, tmp_path: Path):
    replica, left = _left(node, names(), tmp_path)
    _, others = _left(node, names(), tmp_path)
    launcher = node.only("cortex-launcher")
    node.kill_agent()
    node.kill(launcher)
    node.kill(replica)
    node.start()
    _gone(left)
    assert all(is_alive(identity) for identity in others)


def test_a_replica_that_is_drained_or_forgotten_leaves_nothing(node: Node, names, tmp_path: Path):
    for way in ("drained", "forgotten"):
        api = names()
        _, left = _left(node, api, tmp_path)
        build = node.build(api, LEAVES.format(note=str(tmp_path / f"note-{api}")))
        replica = node.start_order(build).replica
        if way == "drained":
            node.retire(build, replica)
            node.until(replica, Phase.EXITED)
        else:
            node.order(ForgetReplica(replica=replica))
        _gone(left)
        _cleared(node, replica)
