"""
Nodes that are apart: each in a network namespace of its own, with an address of its own, joined by a bridge that the
control plane and the tests are on.

Needs `ip` (Debian: iproute2) and the right to make namespaces; `unusable` says what is missing.
"""

from __future__ import annotations

import contextlib
import functools
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from contract_harness import Home, eventually, free_port, running_home

from cortex.controlplane.bundles import bundle, lay_down
from cortex.ids import NodeId
from cortex.processes import module_command
from cortex.settings import ControlLayout, NodeLayout
from cortex.wire import membership
from cortex.wire.membership import Capacity, Members, Membership, written

PORT, PEER_PORT, LINKS_PORT = 8880, 8882, 8883
MEMORY_BYTES = 2**30
BETWEEN = random.SystemRandom()


class NoNamespace(Exception):
    """The kernel, or whoever runs us, does not let us have one."""


def ip(*arguments: str) -> str:
    """What `ip` says. Raises NoNamespace."""
    try:
        done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise NoNamespace("there is no `ip`: Debian has it in iproute2") from error
    if done.returncode:
        raise NoNamespace(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


@functools.cache
def unusable() -> str:
    """Why there can be no nodes apart here; empty: there can."""
    if shutil.which("nsenter") is None:
        return "there is no `nsenter`: Debian has it in util-linux"
    try:
        with network() as net:
            net.join("probe", 2)
    except NoNamespace as error:
        return str(error)
    return ""


@dataclass
class Network:
    """A bridge, and the namespaces that are joined to it."""

    label: str
    prefix: str
    """The first three numbers of all addresses."""
    namespaces: list[str] = field(default_factory=list)

    def address(self, number: int) -> str:
        return f"{self.prefix}.{number}"

    def join(self, name: str, number: int) -> str:
        """A new namespace with an address on the bridge. Returns its name."""
        namespace, outer, inner = f"{self.label}-{name}", f"{self.label}{number}", f"{self.label}i{number}"
        ip("netns", "add", namespace)
        self.namespaces.append(namespace)
        ip("link", "add", outer, "type", "veth", "peer", "name", inner, "netns", namespace)
        ip("link", "set", outer, "master", self.label, "up")
        for device in ("lo", inner):
            ip("-n", namespace, "link", "set", device, "up")
        ip("-n", namespace, "address", "add", f"{self.address(number)}/24", "dev", inner)
        return namespace

    def link(self, number: int, state: str) -> None:
        """Set a namespace's link `up` or `down`."""
        ip("link", "set", f"{self.label}{number}", state)


@contextlib.contextmanager
def network() -> Iterator[Network]:
    """A bridge with the first address of its own, that is taken away again."""
    net = Network(f"cx{BETWEEN.randrange(16**6):06x}", f"10.{BETWEEN.randrange(64, 128)}.{BETWEEN.randrange(256)}")
    ip("link", "add", net.label, "type", "bridge")
    try:
        ip("address", "add", f"{net.address(1)}/24", "dev", net.label)
        ip("link", "set", net.label, "up")
        yield net
    finally:
        for namespace in net.namespaces:
            ip("netns", "delete", namespace)  # with its end of the link, and so with ours
        ip("link", "delete", net.label)


@dataclass
class Node:
    """A machine of its own, as far as its network and its home are concerned."""

    number: int
    namespace: str
    layout: NodeLayout
    membership: Membership
    net: Network

    @property
    def name(self) -> str:
        return self.membership.node

    @property
    def host(self) -> str:
        return self.membership.host

    def start(self) -> None:
        """Start its agent, in no environment of ours."""
        command = module_command("cortex.agent", membership.argument(self.layout.membership_file))
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("CORTEX_", "PYTEST"))}
        with (self.layout.logs / "agent.out").open("ab") as output:
            process = subprocess.Popen(
                ["nsenter", f"--net=/run/netns/{self.namespace}", *command],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd="/",
                start_new_session=True,
            )
        process.returncode = 0  # it is ended by `kill`: keeps Popen from warning about it

    def pids(self) -> list[int]:
        return [int(pid) for pid in ip("netns", "pids", self.namespace).split()]

    def kill(self) -> None:
        """End all that runs there at once."""

        def ended() -> bool:
            left = self.pids()
            for pid in left:
                with contextlib.suppress(ProcessLookupError, ChildProcessError):
                    os.kill(pid, signal.SIGKILL)
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
            return not left

        eventually(ended, f"everything of {self.name} has ended")

    def cut_off(self) -> None:
        self.net.link(self.number, "down")

    def mend(self) -> None:
        self.net.link(self.number, "up")


@dataclass
class Apart:
    """A control plane, and nodes that dial in."""

    home: Home
    net: Network
    nodes: list[Node]

    def told(self) -> list[dict[str, Any]]:
        """What is told of the nodes."""
        found: list[dict[str, Any]] = self.home.cortex("info", "-o", "json").json["nodes"]
        return found

    def states(self) -> dict[str, str]:
        return {node["name"]: node["state"] for node in self.told()}

    def is_whole(self) -> bool:
        """Whether all nodes are ready, with a door."""
        return all(node["state"] == "ready" and node["door"] for node in self.told())

    def started(self) -> None:
        """Start everything, and wait until it is there."""
        self.home.cortex("up")
        for node in self.nodes:
            node.start()
        eventually(self.is_whole, "all nodes have come")


@contextlib.contextmanager
def nodes_apart(count: int = 3) -> Iterator[Apart]:
    """A control plane and nodes, not yet started, that are ended and removed afterwards."""
    with contextlib.ExitStack() as stack:
        net = stack.enter_context(network())
        home = stack.enter_context(running_home())
        folder = Path(tempfile.mkdtemp(prefix="cx", dir="/tmp"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        control = ControlLayout(home.path)
        control.prepare()
        members = tuple(
            Membership(
                node=NodeId(f"n{number}"),
                host=net.address(1 + number),
                port=PORT,
                peer_port=PEER_PORT,
                capacity=Capacity(cpu_millis=2000, mem_bytes=MEMORY_BYTES),
                # Nobody is at the first address: the agents go on to the next.
                control_planes=(f"{net.address(1)}:{free_port()}", f"{net.address(1)}:{LINKS_PORT}"),
            )
            for number in range(1, count + 1)
        )
        control.members_file.write_bytes(written(Members(bind=net.address(1), port=LINKS_PORT, nodes=members)))
        nodes = []
        for number, member in enumerate(members, 2):
            layout = NodeLayout(folder / member.node)
            node = Node(number, net.join(member.node, number), layout, member, net)
            lay_down(layout.home, bundle(control, member, now_wall_s=time.time()))
            stack.callback(node.kill)
            nodes.append(node)
        yield Apart(home, net, nodes)
