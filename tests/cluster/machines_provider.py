"""
A provider of nodes for Ray's autoscaler: each is a machine of `machines.py` with a raylet in it.

Imported by the autoscaler's monitor, so that all it knows is in its configuration and in a folder, where each node is
a file. What it is asked to create it says is there at once, as the autoscaler asks for; raylets are started one by one.
"""

from __future__ import annotations

import json
import subprocess
import threading
from pathlib import Path
from typing import Any

from machines import Network
from ray.autoscaler.node_provider import NodeProvider
from ray.autoscaler.tags import (
    NODE_KIND_HEAD,
    STATUS_UP_TO_DATE,
    TAG_RAY_NODE_KIND,
    TAG_RAY_NODE_NAME,
    TAG_RAY_NODE_STATUS,
    TAG_RAY_USER_NODE_TYPE,
)
from ray_cluster import HEAD_KIND, ray_start, variables_of_nodes

FIRST = 100
"""Number of the first machine that is added."""


class MachinesProvider(NodeProvider):
    """
    Nodes of one network.

    Its configuration has, beside what Ray asks for: `network` (name, subnet, outside), `folder`, `gcs_address`,
    `token_file`, and of the head `head_id` and `head_address`.
    """

    def __init__(self, provider_config: dict[str, Any], cluster_name: str) -> None:
        super().__init__(provider_config, cluster_name)
        self._network = Network(**provider_config["network"])
        self._folder = Path(provider_config["folder"])
        self._files = self._folder / "nodes"
        self._files.mkdir(exist_ok=True)
        self._guard = threading.RLock()
        self._starting = threading.Lock()

    # ---- which there are ----------------------------------------------------------------------------------------

    def non_terminated_nodes(self, tag_filters: dict[str, str]) -> list[str]:
        with self._guard:
            return [node for node, about in self._all().items() if tag_filters.items() <= about["tags"].items()]

    def is_running(self, node_id: str) -> bool:
        return node_id in self._all()

    def is_terminated(self, node_id: str) -> bool:
        return node_id not in self._all()

    def node_tags(self, node_id: str) -> dict[str, str]:
        return dict(self._all()[node_id]["tags"])

    def internal_ip(self, node_id: str) -> str:
        return str(self._all()[node_id]["address"])

    external_ip = internal_ip

    def set_node_tags(self, node_id: str, tags: dict[str, str]) -> None:
        with self._guard:
            about = self._all().get(node_id)
            if about is not None and node_id != self.provider_config["head_id"]:
                about["tags"].update(tags)
                self._write(node_id, about)

    def _all(self) -> dict[str, dict[str, Any]]:
        with self._guard:
            found = {file.stem: json.loads(file.read_text()) for file in sorted(self._files.glob("*.json"))}
        tags = {
            TAG_RAY_NODE_KIND: NODE_KIND_HEAD,
            TAG_RAY_USER_NODE_TYPE: HEAD_KIND,
            TAG_RAY_NODE_NAME: "head",
            TAG_RAY_NODE_STATUS: STATUS_UP_TO_DATE,
        }
        return {
            self.provider_config["head_id"]: {"tags": tags, "address": self.provider_config["head_address"]},
            **found,
        }

    def _write(self, node_id: str, about: dict[str, Any]) -> None:
        unfinished = self._files / f"{node_id}.unfinished"
        unfinished.write_text(json.dumps(about))
        unfinished.replace(self._files / f"{node_id}.json")

    # ---- coming and going ---------------------------------------------------------------------------------------

    def create_node(self, node_config: Any, tags: Any, count: int) -> None:
        raise NotImplementedError("resources are said: see below")

    def create_node_with_resources_and_labels(
        self, node_config: Any, tags: dict[str, str], count: int, resources: dict[str, float], labels: dict[str, str]
    ) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for _ in range(count):
            with self._guard:
                number = FIRST + len(list(self._folder.glob("made-*")))
                (self._folder / f"made-{number}").touch()
                node_id = f"node-{number}"
                machine = self._network.machine(number)
                about = {"tags": {**tags, TAG_RAY_NODE_NAME: node_id}, "address": machine.address, "number": number}
                self._write(node_id, about)
            made[node_id] = {}
            threading.Thread(target=self._start, args=(number, node_id, tags, resources), daemon=True).start()
        return made

    def terminate_node(self, node_id: str) -> dict[str, Any]:
        with self._guard:
            about = self._all().get(node_id)
            (self._files / f"{node_id}.json").unlink(missing_ok=True)
        if about is not None and "number" in about:
            self._network.machine(about["number"]).remove()
        return {node_id: {}}

    def _start(self, number: int, node_id: str, tags: dict[str, str], resources: dict[str, float]) -> None:
        config = self.provider_config
        with self._starting:
            machine = self._network.add(number)
            command = [
                *ray_start(machine, self._network, self._folder),
                f"--address={config['gcs_address']}",
                f"--node-name={node_id}",
                f"--num-cpus={int(resources.get('CPU', 1))}",
                f"--num-gpus={int(resources.get('GPU', 0))}",
                f"--memory={int(resources.get('memory', 2**30))}",
            ]
            environ = variables_of_nodes(Path(config["token_file"]))
            environ |= {"RAY_CLOUD_INSTANCE_ID": node_id, "RAY_NODE_TYPE_NAME": tags[TAG_RAY_USER_NODE_TYPE]}
            with (self._folder / f"{node_id}.out").open("ab") as output:
                subprocess.run(
                    machine.command(*command), env=environ, stdout=output, stderr=output, cwd="/", check=False
                )

    @staticmethod
    def bootstrap_config(cluster_config: dict[str, Any]) -> dict[str, Any]:
        return cluster_config
