"""What a cluster becomes for whoever makes its machines: whole texts, and what has to hold in them."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from ruamel.yaml import YAML

from cortex.cluster.export import export
from cortex.cluster.hosts import ssh_arguments
from cortex.cluster.loading import Cluster
from cortex.cluster.names import RAY_VERSION

Described = Callable[..., Cluster]

HERE = Path(__file__).resolve().parent
CRD = HERE.parents[2].parent / "shared" / "data" / "kuberay-raycluster-v1.openapi.json"
FULL: Mapping[str, tuple[str, ...]] = {
    "ray": ("nodes_max: 9", "python: 3.12"),
    "machines": (
        "ssh_user: ubuntu",
        "ssh_key: ~/.ssh/id_ed25519",
        "index_url: https://pypi.example.com/simple",
        "door: {port: 9000}",
    ),
    "aws": (
        "nodes_min: 2",
        "nodes_max: 9",
        "instance_type: m7g.2xlarge",
        "gpu_instance_type: g4dn.xlarge",
        "spot: true",
        "disk: 100Gi",
        "network: {subnet: subnet-0123abcd, security_group: sg-0123abcd, key: ops}",
    ),
    "gcp": (
        "nodes_min: 2",
        "nodes_max: 9",
        "instance_type: n2-highmem-8",
        "gpu_instance_type: g2-standard-8",
        "spot: true",
    ),
    "azure": (
        "nodes_max: 3",
        "gpu_instance_type: Standard_NC4as_T4_v3",
        "spot: true",
        "network: {subscription: 0-1, key_file: /keys/prod}",
    ),
    "kubernetes": (
        "nodes_min: 2",
        "nodes_max: 9",
        "namespace: models",
        "context: prod",
        "python: 3.12",
        "node: {cpu: 3500m, mem: 8Gi, gpu: 1}",
        "index_url: https://pypi.example.com/simple",
        "door: {port: 9000}",
    ),
}
"""Nearly everything that can be said of each."""


def parsed(text: str) -> Any:
    return YAML(typ="safe", pure=True).load(io.StringIO(text))


@pytest.fixture(params=["smallest", "full"])
def cluster(request: pytest.FixtureRequest, described: Described, provider: str) -> Cluster:
    return described(provider, *(FULL[provider] if request.param == "full" else ()))


@pytest.mark.parametrize("size", ["smallest", "full"])
def test_what_is_printed_is_this(described: Described, provider: str, size: str) -> None:
    """`WRITE_GOLDEN=1 pytest …` writes the files anew."""
    text = export(described(provider, *(FULL[provider] if size == "full" else ())))
    file = HERE / "golden" / f"{provider}-{size}.yaml"
    if os.environ.get("WRITE_GOLDEN"):
        file.write_text(text)
    assert text == file.read_text()


def test_the_same_file_is_always_the_same_text(cluster: Cluster) -> None:
    assert export(cluster) == export(cluster)


def test_bounds_count_the_head_and_say_where_they_come_from(described: Described) -> None:
    cluster = described("aws", "nodes_min: 2", environ={"CORTEX_NODES_MAX": "8"}, flags=(3, None))
    text = export(cluster)
    assert "# 3 (from flag) to 8 (from environment) nodes, the head among them" in text.splitlines()
    found = parsed(text)
    worker = found["available_node_types"]["worker"]
    assert (found["max_workers"], worker["min_workers"], worker["max_workers"]) == (7, 2, 7)
    assert found["metadata"]["head_tags"]["cortex:nodes-min"] == "3"


def test_a_cluster_of_one_node_has_no_workers(described: Described) -> None:
    assert parsed(export(described("gcp", "nodes_max: 1")))["max_workers"] == 0
    (group,) = parsed(export(described("kubernetes", "nodes_max: 1")))["spec"]["workerGroupSpecs"]
    assert (group["minReplicas"], group["maxReplicas"]) == (0, 0)


@pytest.mark.parametrize("provider", ["aws", "gcp", "azure"])
def test_the_head_is_never_a_spot_machine(described: Described, provider: str) -> None:
    text = ("MarketType", "preemptible", "Spot")
    types = parsed(export(described(provider, *FULL[provider])))["available_node_types"]
    assert [any(word in json.dumps(types[name]) for word in text) for name in ("head", "worker", "gpu")] == [
        False,
        True,
        True,
    ]


def test_changed_bounds_change_nothing_that_ray_replaces_the_head_for(described: Described) -> None:
    few, many = (parsed(export(described("aws", f"nodes_max: {most}"))) for most in (2, 9))
    assert few["available_node_types"]["head"] == many["available_node_types"]["head"]
    assert (few["auth"], few["provider"]) == (many["auth"], many["provider"])


def test_no_command_ends_what_others_started(cluster: Cluster) -> None:
    assert "ray stop" not in export(cluster)


def test_ssh_asks_nobody_and_takes_no_host_for_an_option(described: Described) -> None:
    cluster = described("machines", "ssh_user: ops", "ssh_key: /k")
    arguments = ssh_arguments(cluster, "10.0.0.6")
    assert ("BatchMode=yes" in arguments, arguments[-2:]) == (True, ("--", "10.0.0.6"))
    assert arguments[arguments.index("-l") + 1] == "ops"


@pytest.mark.parametrize(
    ("file", "key", "reached"),
    [
        ("cluster.yaml", "key", "key"),
        ("there/cluster.yaml", "key", "there/key"),
        ("there/cluster.yaml", "/key", "/key"),
        ("there/cluster.yaml", "~/key", "~/key"),
    ],
)
def test_a_path_begins_at_the_folder_of_the_file(described: Described, file: str, key: str, reached: str) -> None:
    cluster = replace(described("machines", f"ssh_key: {key}"), file=file)
    arguments = ssh_arguments(cluster, "10.0.0.6")
    assert arguments[arguments.index("-i") + 1] == reached


# ---- held to what takes it ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def launcher() -> Any:
    """Ray's own module that prepares and checks launcher files."""
    return pytest.importorskip("ray.autoscaler._private.util", reason="Ray is not installed")


@pytest.mark.slow
@pytest.mark.parametrize("provider", ["aws", "gcp", "azure"])
def test_rays_launcher_takes_the_file(cluster: Cluster, launcher: Any) -> None:
    prepared = launcher.prepare_config(parsed(export(cluster)))
    launcher.validate_config(prepared)
    types = prepared["available_node_types"]
    assert prepared["head_node_type"] == "head"
    assert types["head"]["max_workers"] == 0
    assert all(kind["max_workers"] <= prepared["max_workers"] for kind in types.values())
    assert "conda" not in json.dumps(prepared), "nothing of Ray's own defaults is run on a node"
    assert "ray stop" not in json.dumps(prepared)


@pytest.mark.slow
def test_nodes_have_the_ray_that_this_is_tested_with() -> None:
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    assert ray.__version__ == RAY_VERSION


@pytest.mark.parametrize("provider", ["kubernetes"])
def test_the_operator_takes_the_manifest(cluster: Cluster) -> None:
    if not CRD.exists():
        pytest.skip(f"{CRD} is not there")
    schema = json.loads(CRD.read_text())
    manifest = parsed(export(cluster))
    jsonschema.Draft202012Validator(schema).validate(manifest)
    assert list(unknown(manifest, schema)) == [], "the operator would pass over these"


def unknown(value: Any, schema: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """Paths of fields that a schema of Kubernetes does not know; where it lists none it takes any."""
    if isinstance(value, dict) and "properties" in schema:
        for name, inner in value.items():
            if name in schema["properties"]:
                yield from unknown(inner, schema["properties"][name], f"{path}.{name}")
            else:
                yield f"{path}.{name}"
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from unknown(item, schema.get("items", {}), f"{path}[{number}]")


def test_a_field_that_no_schema_has_is_noticed() -> None:
    schema = {"properties": {"a": {"items": {"properties": {"b": {}}}}}}
    assert list(unknown({"a": [{"b": 1, "c": 2}], "d": 3}, schema)) == [".a[0].c", ".d"]
