"""A real agent in a home of its own, ordered over its socket as a control plane would, and a client of its ingress."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from cortex.artifacts import samples
from cortex.artifacts.store import ArtifactStore
from cortex.ids import ReplicaId, Revision, Version, api_key, replica_id, route_path, socket_stem
from cortex.ingress.runtime import AdminSocket
from cortex.processes import ProcessIdentity, identify, is_alive, send_signal
from cortex.settings import ControlLayout, NodeLayout, Settings, variables_of
from cortex.testing.builders import a_digest
from cortex.wire.agent import (
    AgentReply,
    AgentRequest,
    GiveOrders,
    InspectBuild,
    InspectedBuild,
    Observe,
    Observed,
    StopAgent,
)
from cortex.wire.batching import Mode
from cortex.wire.build import BuildSpec, ModelArtifact, Sample
from cortex.wire.framing import close_all, receive_frame, send_frame
from cortex.wire.keeper import KeeperReply, SlotHeld, Slots, SlotsEnd
from cortex.wire.launch import InspectReport
from cortex.wire.operator import StoredFile
from cortex.wire.orders import (
    DrainReplica,
    ForgetReplica,
    HoldSlot,
    Order,
    Orders,
    RemoveRoute,
    SetRoute,
    StartReplica,
)
from cortex.wire.reports import AgentReport, Phase, ReplicaReport

IRIS = Path(__file__).parents[3] / "examples" / "iris" / "models" / "sklearn.onnx"
SETOSA = b"[[5.2, 3.6, 1.4, 0.3]]"
DEADLINE_S = 60.0
"""For anything to happen; generous, since the machine may be busy."""
HOLD_S = 60.0
"""How long requests wait for a replacement here: one that is slow to come on a busy machine loses none of them."""
HUNG_AFTER_S = 30.0
KNOCK_HELD_S = 60.0
"""The same for those that come to a replica that sleeps, but for most of them the ingress's queue ends before."""
PATIENT_AGENT = """\
import sys
from pathlib import Path
import msgspec
from cortex.agent import app
from cortex.agent.life import sleeping

load = app.load_settings
hold_s, hung_s, sleeping.KNOCK_HELD_S = map(float, sys.argv[1:4])
app.load_settings = lambda environ: msgspec.structs.replace(load(environ), hold_timeout_s=hold_s, hung_after_s=hung_s)
sys.exit(app.main(control_home=Path(sys.argv[4]) if sys.argv[4:] else None))
"""
"""The agent as it is, but for times that are no settings of users."""
_REPLIES: msgspec.json.Decoder[AgentReply] = msgspec.json.Decoder(AgentReply)
T = TypeVar("T")


def eventually(look: Callable[[], T | None], what: str, deadline_s: float = DEADLINE_S) -> T:
    """Look until there is something to see."""
    until = time.monotonic() + deadline_s
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > until:
            raise AssertionError(f"not within {deadline_s:g} s: {what}")
        time.sleep(0.01)


class Asking(Generic[T]):
    """A call that is under way, in a thread of its own."""

    def __init__(self, ask: Callable[[], T]) -> None:
        self._outcome: list[T] = []
        self._error: BaseException | None = None

        def run() -> None:
            try:
                self._outcome.append(ask())
            except BaseException as error:
                self._error = error

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()

    @property
    def waits(self) -> bool:
        return self._thread.is_alive()

    def outcome(self) -> T:
        """What came of it, once something has."""
        self._thread.join(DEADLINE_S)
        if self._error is not None:
            raise self._error
        assert self._outcome, "it is still under way"
        return self._outcome[0]


class Node:
    """
    One home with its agent.

    Args:
        control_home: of a control plane that has another one, whose store is where builds are put.
    """

    def __init__(
        self,
        home: Path,
        *,
        hold_timeout_s: float = HOLD_S,
        knock_held_s: float = KNOCK_HELD_S,
        hung_after_s: float = HUNG_AFTER_S,
        control_home: Path | None = None,
    ) -> None:
        # Bound for as long as we need it, so that nobody else is given it; our agent may listen there all the same.
        self._port = socket.socket()
        self._port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._port.bind(("127.0.0.1", 0))
        port = self._port.getsockname()[1]
        self.settings = Settings(
            home=home, port=port, port_given=True, hold_timeout_s=hold_timeout_s, hung_after_s=hung_after_s
        )
        self.knock_held_s = knock_held_s
        self.control_home = control_home
        self.layout = NodeLayout(home)
        self.layout.prepare()
        self.store = ArtifactStore(ControlLayout(control_home or home).artifacts)
        self.epoch = 1
        self._agent: subprocess.Popen[bytes] | None = None
        self.line: socket.socket | None = None

    # ---- the agent's process ------------------------------------------------------------------------------------

    def start(self) -> AgentReport:
        """Start an agent and wait until it answers."""
        if self._agent is not None:
            self._agent.poll()  # one that was ended is collected here, and not while the next test runs
        self._agent = self.start_another()
        return self.report()

    def start_another(self) -> subprocess.Popen[bytes]:
        times = map(str, (self.settings.hold_timeout_s, self.settings.hung_after_s, self.knock_held_s))
        with (self.layout.home / "agent.out").open("ab") as output:
            return subprocess.Popen(
                [
                    sys.executable,
                    "-P",
                    "-c",
                    PATIENT_AGENT,
                    *times,
                    *([str(control)] if (control := self.control_home) else ()),
                ],
                env={**os.environ, **variables_of(self.settings)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd="/",
                start_new_session=True,
            )

    @property
    def agent_pid(self) -> int:
        assert self._agent is not None
        return self._agent.pid

    def kill_agent(self) -> None:
        assert self._agent is not None
        self._agent.kill()
        self._agent.wait()
        self.hang_up()

    def signal_agent(self, number: signal.Signals) -> None:
        assert self._agent is not None
        self._agent.send_signal(number)
        self.hang_up()

    def wait_for_end(self) -> int:
        """The agent's exit code, once it has one."""
        assert self._agent is not None
        return self._agent.wait(DEADLINE_S)

    def stop(self, drain_timeout_s: float = 5.0) -> int:
        """Have everything ended in order."""
        self.ask(StopAgent(drain_timeout_s=drain_timeout_s))
        self.hang_up()
        return self.wait_for_end()

    def close(self) -> None:
        """End whatever is left, each process by its own id."""
        if self._agent is not None and self._agent.poll() is None:
            try:
                self.stop(0.5)
            except (OSError, AssertionError, subprocess.TimeoutExpired):
                self.kill_agent()
        self.hang_up()
        self._port.close()
        for identity in self.processes():
            send_signal(identity, signal.SIGKILL)
        eventually(lambda: not self.processes(), "every process of the home has ended")

    # ---- asking it ----------------------------------------------------------------------------------------------

    def ask(self, request: AgentRequest, timeout_s: float = DEADLINE_S) -> AgentReply:
        """Ask on the connection that is kept; made again, until it can be, when the agent is another one."""
        until = time.monotonic() + DEADLINE_S
        while True:
            try:
                if self.line is None:
                    self.line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                    self.line.settimeout(timeout_s)
                    self.line.connect(str(self.layout.agent_socket))
                self.line.settimeout(timeout_s)
                send_frame(self.line, msgspec.json.encode(request))
                payload, _fds = receive_frame(self.line)
                return _REPLIES.decode(payload)
            except OSError:
                self.hang_up()
                if time.monotonic() > until:
                    raise
                time.sleep(0.02)

    def report(self) -> AgentReport:
        reply = self.ask(Observe())
        assert isinstance(reply, Observed)
        return reply.report

    def seen(self, replica: ReplicaId) -> ReplicaReport | None:
        return next((found for found in self.report().replicas if found.replica == replica), None)

    def until(self, replica: ReplicaId, phase: Phase, *, attempt: int = 1) -> ReplicaReport:
        """Wait until a replica is reported to be in a phase."""

        def look() -> ReplicaReport | None:
            found = self.seen(replica)
            return found if found and (found.phase, found.attempt) == (phase, attempt) else None

        try:
            return eventually(look, f"{replica} is {phase}")
        except AssertionError as error:
            raise AssertionError(f"{error}; it is {self.seen(replica)}") from None

    def order(self, *orders: Order) -> AgentReport:
        reply = self.ask(GiveOrders(orders=Orders(epoch=self.epoch, orders=orders)))
        assert isinstance(reply, Observed), reply
        return reply.report

    def inspect(
        self, build: BuildSpec, timeout_s: float = 60.0, *, rows: Mode = "off", keep: bool = False
    ) -> InspectReport:
        request = InspectBuild(build=build, timeout_s=timeout_s, rows=rows, keep=keep)
        reply = self.ask(request, timeout_s + DEADLINE_S)
        assert isinstance(reply, InspectedBuild), reply
        return reply.report

    @contextlib.contextmanager
    def another_line(self) -> Iterator[Node]:
        """The same node on a connection of its own: for questions that take long."""
        other = copy.copy(self)
        other.line = None
        try:
            yield other
        finally:
            other.hang_up()

    def hang_up(self) -> None:
        if self.line is not None:
            self.line.close()
            self.line = None

    # ---- what it is told to run ---------------------------------------------------------------------------------

    def build(
        self, api: str, handler: str | None = None, *, model: bytes | None = None, sample: bytes | None = None
    ) -> BuildSpec:
        """A build of the iris model, or of these bytes, in the store."""
        key = api_key("t", api)
        project = self._stored({"handler.py": handler.encode()}) if handler is not None else None
        tree = self._stored({"model.onnx": IRIS.read_bytes() if model is None else model})
        digest = a_digest(f"{api} {tree} {project} {sample!r}")
        return BuildSpec(
            api=key,
            version=Version(digest),
            revision=Revision(digest),
            runtime="onnx",
            model=ModelArtifact(format="onnx", tree=tree, entry="model.onnx"),
            project=project,
            handler="handler.py" if handler is not None else None,
            sample=None if sample is None else Sample(tree=samples.put_body(self.store, sample), gate=True),
        )

    def _stored(self, files: Mapping[str, bytes]) -> str:
        stored = []
        for path, content in files.items():
            with self.store.writer() as writer:
                writer.write(content)
                stored.append(StoredFile(path=path, sha256=writer.commit().sha256))
        return self.store.put_tree(stored)

    def start_order(self, build: BuildSpec, ordinal: int = 0, *, attempt: int = 1) -> StartReplica:
        return StartReplica(replica=replica_id(build.api, build.revision, ordinal), attempt=attempt, build=build)

    def route_order(self, build: BuildSpec, *replicas: ReplicaId) -> SetRoute:
        return SetRoute(api=build.api, path=route_path(build.api), targets=replicas, version=build.version)

    def serve(self, build: BuildSpec, count: int = 1, *, body: bytes = SETOSA) -> tuple[ReplicaId, ...]:
        """Have replicas of a build running, ready and routed."""
        starts = [self.start_order(build, ordinal) for ordinal in range(count)]
        replicas = tuple(start.replica for start in starts)
        self.order(*starts, self.route_order(build, *replicas))
        for replica in replicas:
            self.until(replica, Phase.READY)
        eventually(lambda: build.api not in self.report().pending_routes, "the route is in the ingress")
        eventually(lambda: self.answers(build, body), "it answers")
        return replicas

    def lay_asleep(self, build: BuildSpec, ordinal: int = 0, *, retry: bool = True) -> ReplicaId:
        """Have a replica sleep, and be all that is routed to."""
        replica = replica_id(build.api, build.revision, ordinal)
        self.order(HoldSlot(replica=replica, build=build))
        self.until(replica, Phase.ASLEEP, attempt=0)
        self.route(build, replica, retry=retry)
        return replica

    def route(self, build: BuildSpec, *replicas: ReplicaId, retry: bool = True) -> None:
        """Wait until the ingress has it."""
        self.order(msgspec.structs.replace(self.route_order(build, *replicas), retry=retry))
        eventually(lambda: build.api not in self.report().pending_routes, "the route is in the ingress")

    def until_knocked(self, replica: ReplicaId) -> ReplicaReport:
        def look() -> ReplicaReport | None:
            found = self.seen(replica)
            return found if found and found.knocked_age_s is not None else None

        return eventually(look, f"somebody knocks at {replica}")

    def restart(self, build: BuildSpec, ordinal: int = 0, *, attempt: int = 2) -> None:
        self.order(self.start_order(build, ordinal, attempt=attempt))

    def remove(self, build: BuildSpec, *replicas: ReplicaId) -> None:
        self.order(RemoveRoute(api=build.api), *(ForgetReplica(replica=replica) for replica in replicas))

    def retire(self, build: BuildSpec, replica: ReplicaId, timeout_s: float = DEADLINE_S) -> None:
        self.order(self.route_order(build), DrainReplica(replica=replica, timeout_s=timeout_s))

    # ---- the ingress --------------------------------------------------------------------------------------------

    def post(
        self, build: BuildSpec, body: bytes = SETOSA, timeout_s: float = DEADLINE_S, *, target: str = ""
    ) -> tuple[int, bytes]:
        """Ask an api, with this after its path; returns status and body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.settings.port, timeout=timeout_s)
        try:
            connection.request("POST", route_path(build.api) + target, body, {"content-type": "application/json"})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def at_door(self) -> int:
        """Requests that are in the ingress now, whatever they wait for."""
        sockets = self.layout.sockets.glob("h-door-*.sock")
        return sum(row.requests for path in sockets for row in asyncio.run(AdminSocket(path).backends()))

    def answers(self, build: BuildSpec, body: bytes = SETOSA) -> bool:
        """Whether an api answers now, with 200."""
        try:
            return self.post(build, body)[0] == 200
        except (OSError, http.client.HTTPException):
            return False

    def posting(self, build: BuildSpec, body: bytes = SETOSA) -> Asking[tuple[int, bytes]]:
        return Asking(lambda: self.post(build, body))

    # ---- what there is ------------------------------------------------------------------------------------------

    def processes(self, title: str = "") -> list[ProcessIdentity]:
        """Processes of this home whose title begins so."""
        found = []
        home = str(self.layout.home)
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
                    identity = identify(int(entry.name))
                    if command.startswith(title) and f"{home}" in command and identity is not None:
                        found.append(identity)
        return found

    def haproxies(self) -> list[ProcessIdentity]:
        found = []
        for identity in self.processes():
            with contextlib.suppress(OSError):  # it has ended since
                if "haproxy" in Path(f"/proc/{identity.pid}/comm").read_text():
                    found.append(identity)
        return found

    def only(self, title: str) -> ProcessIdentity:
        """The one process whose title begins so, once there is exactly one."""
        return eventually(
            lambda: found[0] if len(found := self.processes(title)) == 1 else None, f"there is one {title}"
        )

    def kill(self, *identities: ProcessIdentity) -> None:
        """`kill -9`, and wait until they are gone."""
        for identity in identities:
            send_signal(identity, signal.SIGKILL)
        eventually(lambda: not any(is_alive(identity) for identity in identities), "they are gone")

    def of(self, report: ReplicaReport) -> ProcessIdentity:
        assert report.pid is not None
        identity = identify(report.pid)
        assert identity is not None
        return identity

    def is_empty(self) -> bool:
        """Nothing of it runs any more; what was killed last may take a moment, and anything else much longer."""
        eventually(lambda: not self.processes(), "no process is left", 20.0)
        return self.sockets() == []

    def files_of(self, replica: ReplicaId) -> list[Path]:
        """Sockets and records that an agent has for a replica."""
        stem = socket_stem(replica)
        return [
            path
            for path in (
                self.layout.slot_socket(stem),
                self.layout.control_socket(stem),
                self.layout.node / "replicas" / f"{stem}.json",
            )
            if path.exists()
        ]

    def is_kept(self, replica: ReplicaId) -> bool:
        """Whether the keeper has a replica's slot: asked of it as an agent would."""
        decode = msgspec.json.Decoder[KeeperReply](KeeperReply).decode
        found = False
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
            line.settimeout(DEADLINE_S)
            try:
                line.connect(str(self.layout.keeper_socket))
                send_frame(line, msgspec.json.encode(Slots()))
                while not isinstance(reply := decode((received := receive_frame(line))[0]), SlotsEnd):
                    close_all(received[1])
                    found = found or (isinstance(reply, SlotHeld) and reply.replica == replica)
            except OSError:
                return False
        return found

    def sockets(self) -> list[Path]:
        return [path for path in self.layout.sockets.iterdir() if path.is_socket()]
