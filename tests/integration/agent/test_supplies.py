"""A node with a home of its own, whose agent has by message what it needs from a control plane with another home."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from agent_harness import Node, eventually

from cortex.artifacts.store import ArtifactStore
from cortex.controlplane.links import AgentConnection, Incarnations, Links
from cortex.controlplane.needs import Needs
from cortex.controlplane.supplying import Needed, Supplying, UnderWay, allowance_of
from cortex.engines.ledger import Ledger
from cortex.ids import NodeId
from cortex.processes import send_signal
from cortex.settings import ControlLayout
from cortex.state.records import StateStore
from cortex.state.secrets import SecretStore
from cortex.wire.build import BuildSpec, SecretPin
from cortex.wire.link import NEEDS, ORDERS, Hello
from cortex.wire.needs import FetchBlob, FetchTree, Need
from cortex.wire.operator import StoredFile
from cortex.wire.reports import Phase

pytestmark = pytest.mark.slow

VALUE = "hunter22-of-the-control-plane"
TELLS = """\
import os
import pathlib

HERE = pathlib.Path(__file__).parent

def pre_inference(sample, metadata):
    return [[5.2, 3.6, 1.4, 0.3]]

def post_inference(prediction, metadata):
    big = HERE / "big.bin"
    return [len(os.environ.get("TOKEN", "")), big.stat().st_size if big.exists() else 0]
"""


class Cut(BaseException):
    """A connection ends in the middle of an answer."""


class ControlPlane:
    """As much of one as agents ask: what is under way may be asked for."""

    def __init__(self, home: Path) -> None:
        self.layout = ControlLayout(home)
        self.layout.prepare()
        self.under_way = UnderWay()
        self.secrets = SecretStore(self.layout.secrets)
        self.asked: list[Need] = []
        self.cuts = 0
        """So many answers with the bytes of a file end after the first part."""
        self._supplying = Supplying(
            store=ArtifactStore(self.layout.artifacts),
            secrets=self.secrets,
            cloud=SecretStore(self.layout.cloud_keys),
            indexes=lambda: None,
            needed=Needed(
                state=StateStore(),
                engine=Ledger([]),
                under_way=self.under_way,
                settled=lambda: True,
                stopping=threading.Event(),
            ),
        )
        self._links: Links | None = None
        self._connections: list[AgentConnection] = []

    def open(self) -> None:
        needs = Needs({**self._supplying.handlers, FetchTree: self._tree, FetchBlob: self._blob})

        def serve(connection: AgentConnection, hello: Hello) -> None:
            self._connections.append(connection)
            with contextlib.suppress(Cut):
                needs.serve(connection, hello)

        ways = {NEEDS: serve, ORDERS: lambda connection, _hello: connection.close()}
        self._links = Links(path=self.layout.links_socket, epoch=lambda: 1, incarnations=Incarnations(), ways=ways)
        self._links.start()

    def close(self) -> None:
        if self._links is not None:
            self._links.close()
        self._links = None
        for connection in self._connections:
            connection.close()
        self._connections.clear()

    def pin(self, name: str, value: str) -> SecretPin:
        return SecretPin(name=name, generation=self.secrets.set(name, value, wall_s=0.0).generation)

    def _tree(self, need: FetchTree, node: NodeId) -> object:
        self.asked.append(need)
        return self._supplying.tree(need, node)

    def _blob(self, need: FetchBlob, node: NodeId) -> Iterator[bytes]:
        self.asked.append(need)
        for index, part in enumerate(self._supplying.blob(need, node)):
            if index == 1 and self.cuts:
                self.cuts -= 1
                raise Cut
            yield part


@pytest.fixture
def home() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="cx", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def control(home: Path) -> Iterator[ControlPlane]:
    control = ControlPlane(home)
    control.open()
    yield control
    control.close()


@pytest.fixture
def node(home: Path, control: ControlPlane) -> Iterator[Node]:
    node = Node(control.layout.nodes / "n1", control_home=home)
    try:
        node.start()
        yield node
    finally:
        node.close()


def a_project(store: ArtifactStore, **files: bytes) -> str:
    stored = []
    for name, content in files.items():
        with store.writer() as writer:
            writer.write(content)
            stored.append(StoredFile(path=name.replace("_", "."), sha256=writer.commit().sha256))
    return store.put_tree(stored)


def with_project(node: Node, build: BuildSpec, **files: bytes) -> BuildSpec:
    project = a_project(node.store, handler_py=TELLS.encode(), **files)
    return msgspec.structs.replace(build, project=project, handler="handler.py")


def files_with(folder: Path, text: str) -> list[Path]:
    found = []
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink() and text.encode() in path.read_bytes():
            found.append(path)
    return found


def test_a_replica_serves_what_its_node_was_given_and_no_secret_lies_there(
    node: Node, control: ControlPlane, api: str
) -> None:
    build = node.build(api, TELLS, sample=b"[]")
    build = msgspec.structs.replace(build, secrets={"TOKEN": control.pin("token", VALUE)})
    with control.under_way.needs(allowance_of([build])):
        (replica,) = node.serve(build)
    own = ArtifactStore(node.layout.artifacts)
    assert set(own.trees()) == set(build.trees)
    status, answer = node.post(build)
    assert (status, json.loads(answer)) == (200, [len(VALUE), 0])
    assert files_with(node.layout.home, VALUE) == []

    control.asked.clear()
    send_signal(node.of(node.until(replica, Phase.READY)), signal.SIGKILL)
    node.until(replica, Phase.EXITED)
    with control.under_way.needs(allowance_of([build])):
        node.restart(build)
        node.until(replica, Phase.READY, attempt=2)
    assert control.asked == [], "its files are here"


def test_a_build_is_looked_at_on_a_node_that_has_nothing_of_it(node: Node, control: ControlPlane, api: str) -> None:
    build = node.build(api, TELLS)
    with control.under_way.needs(allowance_of([build])):
        assert node.inspect(build).problems == ()
    assert set(ArtifactStore(node.layout.artifacts).trees()) == set(build.trees)


def test_a_pull_that_is_cut_off_goes_on_where_it_was(node: Node, control: ControlPlane, api: str) -> None:
    size = 5 * 2**20 + 3
    build = with_project(node, node.build(api), big_bin=b"x" * size)
    control.cuts = 2
    with control.under_way.needs(allowance_of([build])):
        node.serve(build)
    assert json.loads(node.post(build)[1]) == [0, size]
    offsets = [need.offset for need in control.asked if isinstance(need, FetchBlob) and need.offset]
    assert len(offsets) == 2
    assert 0 < offsets[0] < offsets[1] < size


def test_a_start_waits_for_a_control_plane_that_is_away(node: Node, control: ControlPlane, api: str) -> None:
    build = node.build(api)
    control.close()
    start = node.start_order(build)
    node.order(start)

    def waits() -> bool:
        found = node.seen(start.replica)
        return found is not None and "from the control plane" in found.progress

    eventually(waits, "it says what it waits for")
    with control.under_way.needs(allowance_of([build])):
        control.open()
        node.until(start.replica, Phase.READY)


def test_what_nothing_there_needs_is_refused(node: Node, control: ControlPlane, api: str) -> None:
    build = node.build(api)
    foreign = msgspec.structs.replace(build, secrets={"TOKEN": control.pin("token", VALUE)})
    with control.under_way.needs(allowance_of([build])):
        start = node.start_order(foreign)
        node.order(start)
        found = node.until(start.replica, Phase.EXITED)
    assert found.exit is not None
    assert found.exit.problem is not None
    assert found.exit.problem.reference == "not-needed-there"
    assert files_with(node.layout.home, VALUE) == []
