"""What is read from a cluster.yaml that is right, and what is noted about it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cortex.cluster.bounds import Bounds, BoundSource, NodeBound
from cortex.cluster.loading import SMALLEST_FILE, Cluster, load
from cortex.cluster.models import AwsSpec, GcpSpec, KubernetesSpec, MachinesSpec, RaySpec

Described = Callable[..., Cluster]


def noted(cluster: Cluster) -> list[tuple[str, str]]:
    return [(note.reference, note.where) for note in cluster.notes]


def test_the_smallest_file_of_each_provider_is_enough(described: Described, provider: str) -> None:
    cluster = described(provider)
    assert (cluster.spec.name, cluster.spec.PROVIDER, cluster.spec.door.port) == ("prod", provider, 8880)
    assert (cluster.bounds.minimum, cluster.python, cluster.index_url) == (
        NodeBound(1, BoundSource.DEFAULT),
        "3.11",
        None,
    )


def test_the_file_that_errors_show_is_right() -> None:
    assert load(SMALLEST_FILE, file="cluster.yaml", environ={}, python="3.11").notes == ()


def test_every_field_may_be_null_which_is_its_default(described: Described, provider: str) -> None:
    plain = described(provider)
    fields = set(type(plain.spec).model_fields) - plain.spec.model_fields_set
    assert described(provider, *(f"{name}: null" for name in fields)).spec == plain.spec


def test_every_field_of_a_cloud_is_taken_as_it_is_written(described: Described) -> None:
    cluster = described(
        "aws",
        "nodes_min: 2",
        "nodes_max: 9",
        "door: {port: 9000, tls: {cert: door.pem, key: door.key}}",
        "python: 3.12",
        "index_url: https://pypi.example.com/simple",
        "instance_type: c6i.2xlarge",
        "gpu_instance_type: g4dn.xlarge",
        "spot: true",
        "disk: 100e9",
        "network: {subnet: subnet-0123abcd, security_group: sg-0123abcd, key: ops, key_file: ~/ops.pem}",
    )
    spec = cluster.spec
    assert isinstance(spec, AwsSpec)
    assert cluster.bounds == Bounds(NodeBound(2, BoundSource.FILE), NodeBound(9, BoundSource.FILE))
    assert (cluster.python, cluster.index_url) == ("3.12", "https://pypi.example.com/simple")
    assert (spec.plain_type, spec.gpu_instance_type, spec.spot, spec.disk.text, spec.disk_gib) == (
        "c6i.2xlarge",
        "g4dn.xlarge",
        True,
        "100e9",
        94,
    )
    assert spec.network.model_dump() == {
        "subnet": "subnet-0123abcd",
        "security_group": "sg-0123abcd",
        "key": "ops",
        "key_file": "~/ops.pem",
    }


def test_pods_have_what_is_written(described: Described) -> None:
    spec = described("kubernetes", "node: {cpu: 1500m, mem: 8589934592, gpu: 1}", "namespace: models").spec
    assert isinstance(spec, KubernetesSpec)
    assert (spec.node.cpu.text, spec.node.mem.text, spec.node.gpu, spec.namespace) == (
        "1500m",
        "8589934592",
        1,
        "models",
    )


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("s3://models", "s3://models"),
        ("s3://models/", "s3://models"),
        ("az://models/a/b/", "az://models/a/b"),
        ("/mnt//cortex/", "/mnt/cortex"),
    ],
)
def test_one_place_has_one_spelling(written: str, kept: str) -> None:
    text = f"name: prod\nprovider: ray\naddress: head:6379\nstorage: {written}\n"
    assert load(text, file="cluster.yaml", environ={}, python="3.11").spec.storage == kept


@pytest.mark.parametrize("host", ["10.0.0.7", "box-7", "box_7.example.com", "fd00::7", "BOX"])
def test_a_host_is_whatever_ssh_takes_for_one(described: Described, host: str) -> None:
    spec = load(
        f"name: prod\nprovider: machines\nhosts: ['{host}']\nstorage: /mnt/cortex\n",
        file="cluster.yaml",
        environ={},
        python="3.11",
    ).spec
    assert isinstance(spec, MachinesSpec)
    assert spec.hosts == (host,)


@pytest.mark.parametrize("address", ["head:6379", "10.0.0.5:6379", "[fd00::5]:6379", "head.example.com:6379"])
def test_an_address_is_a_host_and_a_port(address: str) -> None:
    text = f"name: prod\nprovider: ray\naddress: '{address}'\nstorage: /mnt/cortex\n"
    spec = load(text, file="cluster.yaml", environ={}, python="3.11").spec
    assert isinstance(spec, RaySpec)
    assert spec.address == address


def test_variables_say_what_the_file_does_not() -> None:
    text = "name: prod\nprovider: aws\nstorage: s3://models/cortex\n"
    for environ in (
        {"AWS_REGION": "us-east-1", "AWS_DEFAULT_REGION": "us-east-2"},
        {"AWS_DEFAULT_REGION": "us-east-1"},
    ):
        spec = load(text, file="cluster.yaml", environ=environ, python="3.11").spec
        assert isinstance(spec, AwsSpec)
        assert spec.region == "us-east-1"
    text = "name: prod\nprovider: ray\nstorage: /mnt/cortex\n"
    spec = load(text, file="cluster.yaml", environ={"RAY_ADDRESS": "10.0.0.9:6379"}, python="3.11").spec
    assert isinstance(spec, RaySpec)
    assert spec.address == "10.0.0.9:6379"


def test_the_file_comes_before_variables_of_others(described: Described) -> None:
    spec = described("aws", environ={"AWS_REGION": "us-east-1", "RAY_ADDRESS": "auto"}).spec
    assert isinstance(spec, AwsSpec)
    assert spec.region == "eu-central-1"


def test_on_gcp_the_project_may_be_the_shells_or_is_left_open_with_a_note() -> None:
    text = "name: prod\nprovider: gcp\nregion: europe-west4\nstorage: gs://models/cortex\n"
    here = load(text, file="cluster.yaml", environ={"GOOGLE_CLOUD_PROJECT": "shop"}, python="3.11")
    assert isinstance(here.spec, GcpSpec)
    assert (here.spec.network.project, here.notes) == ("shop", ())
    assert noted(load(text, file="cluster.yaml", environ={}, python="3.11")) == [
        ("project-left-open", "cluster.yaml:1:1")
    ]


def test_python_is_that_of_who_asks_where_nodes_can_have_it(described: Described) -> None:
    assert described("aws", python="3.13").python == "3.13"
    assert described("aws", python="3.14").python == "3.13"


@pytest.mark.parametrize("variable", ["UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL"])
def test_packages_come_from_where_the_shell_gets_them_without_its_password(described: Described, variable: str) -> None:
    plain = described("aws", environ={variable: "https://pypi.example.com/simple"})
    assert (plain.index_url, plain.notes) == ("https://pypi.example.com/simple", ())
    secret = described("aws", environ={variable: "https://me:secret@pypi.example.com/simple"})
    assert (secret.index_url, noted(secret)) == ("https://pypi.example.com/simple", [("password-left-out", "")])


def test_a_directory_is_noted_where_nodes_are_new_machines(described: Described, provider: str) -> None:
    text = described(provider).spec
    new = provider in ("aws", "gcp", "azure", "kubernetes")
    lines = {"aws": "region: eu-central-1", "gcp": "region: europe-west4", "azure": "region: westeurope"}
    more = {"ray": "address: head:6379", "machines": "hosts: [a]"} | lines
    file = f"name: {text.name}\nprovider: {provider}\nstorage: /mnt/cortex\n{more.get(provider, '')}\n"
    found = noted(load(file, file="cluster.yaml", environ={"GOOGLE_CLOUD_PROJECT": "shop"}, python="3.11"))
    assert found == ([("storage-not-shared", "cluster.yaml:3:1")] if new else [])


def test_files_that_are_not_there_are_noted_each_at_its_place(described: Described) -> None:
    asked: list[str] = []

    def is_there(path: str) -> bool:
        asked.append(path)
        return path == "door.pem"

    lines = ("ssh_key: id_ed25519", "door: {tls: {cert: door.pem, key: door.key}}")
    cluster = described("machines", *lines, is_there=is_there)
    assert asked == ["id_ed25519", "door.pem", "door.key"]
    assert [(note.reference, note.where, note.subject) for note in cluster.notes] == [
        ("file-not-there", "cluster.yaml:5:1", 'cluster "prod": ssh_key'),
        ("file-not-there", "cluster.yaml:6:30", 'cluster "prod": door: tls: key'),
    ]
