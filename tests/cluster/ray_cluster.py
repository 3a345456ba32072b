"""
A real Ray cluster for tests: each node is a namespace of `machines.py` with a raylet in it, the head's as well.

Started one after another, as two that start at once in one folder take each other's sockets, and ended by the pids of
their namespaces: `ray stop` would end every Ray of the machine by its name.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from machines import Machine, Network, make_network, run

START_TIMEOUT_S = 300.0
STARTS = 5
"""On a busy machine: a raylet gives its helpers 15 s to say what they listen on, and aborts then."""
GCS_PORT = 6379
HEAD = 2
"""The number of its machine."""
HEAD_ID, HEAD_KIND = "head-1", "head"
IDLE_TIMEOUT_S = 12.0
LISTS = (
    *("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands"),
    *("head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files"),
)
"""What has to be in an autoscaler's file. Where something is missing its monitor ends, and nothing says so."""
RAY = str(Path(sys.executable).parent / "ray")


class RayCluster:
    """
    A cluster, from its head on.

    Args:
        resources: of the head's raylet, as arguments of `ray start` without their dashes: `{"num-cpus": 2}`.
        kinds: of machines that Ray's autoscaler may add, with what each has: `{"small": {"CPU": 2}}`. None: there is
            no autoscaler.
        most: machines that it may add.
    """

    def __init__(
        self,
        *,
        name: str = "head",
        resources: Mapping[str, object],
        kinds: Mapping[str, Mapping[str, float]] | None = None,
        most: int = 0,
    ) -> None:
        # Sockets lie in it, whose paths may have 107 bytes.
        self._folder = tempfile.TemporaryDirectory(prefix="cxr", dir="/tmp", ignore_cleanup_errors=True)
        self.folder = Path(self._folder.name)
        self.token_file = self.folder / "token"
        self.token_file.touch(mode=0o600)
        self.token_file.write_text(secrets.token_hex(32))
        self.network = make_network()
        self.nodes: dict[str, Machine] = {}
        """By Ray's name of them."""
        self._next = HEAD
        try:
            self.head = self._add_machine(name)
            arguments = ["--head", f"--port={GCS_PORT}", "--include-dashboard=false"]
            variables: dict[str, str] = {}
            self._kinds = kinds or {}
            if kinds is not None:
                self.bound(most)
                arguments.append(f"--autoscaling-config={self._autoscaling}")
                variables = {
                    "PYTHONPATH": str(Path(__file__).parent),
                    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
                    "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
                    "RAY_NODE_TYPE_NAME": HEAD_KIND,
                }
            self._start(self.head, name, *arguments, resources=resources, variables=variables)
        except BaseException:
            self.close()
            raise

    @property
    def address(self) -> str:
        """Of its head, `host:port`."""
        return f"{self.head.address}:{GCS_PORT}"

    @property
    def _autoscaling(self) -> Path:
        return self.folder / "autoscaling.yaml"

    def bound(self, most: int) -> None:
        """Have the autoscaler add no more machines than this; it reads its file again each second."""
        provider = {
            "type": "external",
            "module": "machines_provider.MachinesProvider",
            "network": {"name": self.network.name, "subnet": self.network.subnet, "outside": self.network.outside},
            "folder": str(self.folder),
            "gcs_address": self.address,
            "token_file": str(self.token_file),
            "head_id": HEAD_ID,
            "head_address": self.head.address,
        }
        workers = {
            kind: {"resources": dict(has), "min_workers": 0, "max_workers": most, "node_config": {}}
            for kind, has in self._kinds.items()
        }
        head = {"resources": {}, "min_workers": 0, "max_workers": 0, "node_config": {}}
        config = {
            "cluster_name": self.network.name,
            "provider": provider,
            "max_workers": most,
            "idle_timeout_minutes": IDLE_TIMEOUT_S / 60,
            "head_node_type": HEAD_KIND,
            "available_node_types": {HEAD_KIND: head, **workers},
            **{name: [] for name in LISTS},
        }
        unfinished = self._autoscaling.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(config))  # which is YAML as well
        unfinished.replace(self._autoscaling)

    def add_node(
        self, name: str, *, resources: Mapping[str, object], variables: Mapping[str, str] | None = None
    ) -> Machine:
        """A further raylet on a machine of its own, started with these variables beside its own."""
        machine = self._add_machine(name)
        self._start(machine, name, f"--address={self.address}", resources=resources, variables=variables or {})
        return machine

    def remove_node(self, name: str) -> None:
        self.nodes.pop(name).remove()

    def close(self) -> None:
        self.network.close()
        self._folder.cleanup()

    def _add_machine(self, name: str) -> Machine:
        machine = self.network.add(self._next)
        self._next += 1
        self.nodes[name] = machine
        return machine

    def _start(
        self,
        machine: Machine,
        name: str,
        *arguments: str,
        resources: Mapping[str, object],
        variables: Mapping[str, str],
    ) -> None:
        command = [*ray_start(machine, self.network, self.folder), f"--node-name={name}", *arguments]
        command += [f"--{resource}={amount}" for resource, amount in resources.items()]
        environ = {**variables_of_nodes(self.token_file), **variables}
        output = self.folder / f"{name}.out"
        for tries_left in range(STARTS - 1, -1, -1):
            try:
                run(machine.command(*command), environ=environ, output=output, timeout_s=START_TIMEOUT_S)
                return
            except RuntimeError as error:
                if "timed out during startup" not in str(error):
                    raise
                if machine.pids_of("raylet/raylet"):
                    wait = [sys.executable, "-c", WAIT_FOR_NODE, self.address, name, str(START_TIMEOUT_S)]
                    run(wait, environ=environ, output=output, timeout_s=2 * START_TIMEOUT_S)
                    return
                if not tries_left:
                    raise
                machine.end()


WAIT_FOR_NODE = """
import sys, time
from ray._raylet import GcsClient
client, name, until = GcsClient(address=sys.argv[1]), sys.argv[2], time.monotonic() + float(sys.argv[3])
while not any(node.node_name == name and node.state == 0 for node in client.get_all_node_info(timeout=30).values()):
    if time.monotonic() > until:
        sys.exit(f"{name} has not come")
    time.sleep(0.5)
"""
"""`ray start` gives a raylet half a minute, and then goes without ending it: on a busy machine it may still come."""


def ray_start(machine: Machine, network: Network, folder: Path) -> list[str]:
    """What every raylet is started with."""
    temporary = folder / machine.namespace.removeprefix(network.name)
    return [
        RAY,
        "start",
        f"--node-ip-address={machine.address}",
        f"--temp-dir={temporary}",
        "--object-store-memory=80000000",
        "--disable-usage-stats",
        "--dashboard-agent-listen-port=0",
        "--include-log-monitor=false",
    ]


def variables_of_nodes(token_file: Path) -> dict[str, str]:
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "CORTEX_", "PYTHON"))}
    return {**plain, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token_file), "RAY_enable_autoscaler_v2": "1"}
