"""A home and ports of its own, and the commands that act on them: what every script here starts from."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from cortex.client.local import LocalEnvironment
from cortex.client.operator import OperatorClient
from cortex.settings import ControlLayout, Settings
from cortex.wire import localnodes
from cortex.wire.localnodes import LocalNode
from cortex.wire.operator import NodeState

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
IRIS_MODEL = EXAMPLES / "iris" / "models" / "sklearn.onnx"
NODES_READY_WITHIN_S = 60.0


class World:
    """
    A home, an empty project folder and the commands that act on them.

    Args:
        folder: ours alone, on a short path, since unix sockets lie in it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.project = folder / "project"
        self.project.mkdir()
        self.port, operator_port = free_ports(2)
        self.environ = {
            **os.environ,
            "CORTEX_HOME": str(self.home),
            "CORTEX_PORT": str(self.port),
            "CORTEX_OPERATOR_PORT": str(operator_port),
            "NO_COLOR": "1",
        }

    def cortex(self, *arguments: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
        command = self.begin(*arguments)
        try:
            out, err = command.communicate(timeout=timeout_s)
        except BaseException:
            command.kill()
            raise
        return subprocess.CompletedProcess(command.args, command.returncode, out, err)

    def begin(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a command, and do not wait for it."""
        return subprocess.Popen(
            [str(Path(sys.executable).with_name("cortex")), *arguments],
            env=self.environ,
            cwd=self.project,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def become_nodes(self, count: int) -> None:
        """Start as so many nodes, and wait until each has been heard."""
        self.must("up", "--nodes", str(count))
        deadline_s = time.monotonic() + NODES_READY_WITHIN_S
        while any(node.state is not NodeState.READY for node in self.operator().info().nodes):
            if time.monotonic() > deadline_s:
                raise SystemExit(f"{count} nodes were not ready within {NODES_READY_WITHIN_S:g} s")
            time.sleep(0.1)

    def nodes(self) -> tuple[LocalNode, ...]:
        """Those that it was started as; none where it is the one."""
        return localnodes.read(ControlLayout(self.home).nodes_file)

    def home_of(self, node: LocalNode) -> Path:
        return ControlLayout(self.home).nodes / node.name

    def processes(self) -> dict[int, str]:
        """Pids of this home's processes, with their titles."""
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    title = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    if str(self.home) in title:
                        found[int(entry.name)] = title.strip()
        return found

    def operator(self) -> OperatorClient:
        """A client of the control plane. Raises OperatorUnreachable where none runs."""
        return LocalEnvironment(Settings(home=self.home), environ={}).connect()

    def must(self, *arguments: str, timeout_s: float = 120) -> str:
        """Run a command that has to succeed; returns what it printed."""
        done = self.cortex(*arguments, timeout_s=timeout_s)
        if done.returncode != 0:
            raise SystemExit(f"cortex {' '.join(arguments)} failed:\n{done.stdout}{done.stderr}")
        return done.stdout


def end_in_order() -> None:
    """SIGTERM is an exit from here on, so that what is running is taken down."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


@contextlib.contextmanager
def a_world(prefix: str) -> Iterator[World]:
    """A world that is down and gone at the end."""
    folder = Path(tempfile.mkdtemp(prefix=f"{prefix}-", dir="/tmp"))
    world = World(folder)
    try:
        yield world
    finally:
        world.cortex("down")
        shutil.rmtree(folder, ignore_errors=True)


def free_ports(count: int) -> list[int]:
    """
    Ports that are free and stay so: none that the system gives to outgoing connections, which a control plane that is
    down for a moment would find taken when it comes back.
    """
    begin = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    candidates = range(10_000, begin) if begin > 11_000 else range(10_000, 65_536)
    found: list[int] = []
    while len(found) < count:
        port = random.choice(candidates)
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind(("127.0.0.1", port))
            found += [port] if port not in found else []
    return found
