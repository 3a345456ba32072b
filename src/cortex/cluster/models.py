"""
A cluster.yaml as a frozen model, one for each provider: every field with its default and its rule.

Fields keep the user's own spelling; properties that end in a unit are what code computes with. Explicit `null` means
the default everywhere. Whether files, buckets, hosts and credentials are there is not looked at here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, field_validator, model_validator

from cortex.cluster import values
from cortex.spec import rules
from cortex.spec.quantities import Cpu, Memory, Size

ProviderName = Literal["ray", "machines", "aws", "gcp", "azure", "kubernetes"]

DEFAULT_NODES_MAX = 5


def _any(check: Callable[[Any], Any]) -> PlainValidator:
    return PlainValidator(check)


Name = Annotated[str, _any(values.check_cluster_name)]
Count = Annotated[int, _any(rules.check_at_least(1))]
CountOrZero = Annotated[int, _any(rules.check_at_least(0))]
Text = Annotated[str, _any(rules.check_text)]
Word = Annotated[str, _any(values.check_word)]
Storage = Annotated[str, _any(values.check_storage)]
Port = Annotated[int, _any(values.check_port)]
Python = Annotated[str, _any(values.check_python)]
Url = Annotated[str, _any(values.check_url)]
Disk = Annotated[Size, _any(values.check_disk)]
CpuField = Annotated[Cpu, _any(rules.check_parsed(Cpu))]
PodMemory = Annotated[Memory, _any(values.check_pod_memory)]


def _check_bool(value: object) -> bool:
    if not isinstance(value, bool):
        raise rules.wrong_type("true or false")
    return value


Bool = Annotated[bool, _any(_check_bool)]


class _Block(BaseModel):
    """One mapping of a cluster.yaml."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _nulls_are_defaults(cls, data: Any) -> Any:
        return rules.drop_nulls(data)


class TlsSpec(_Block):
    """The certificate that doors show to clients."""

    cert: Text = Field(
        description="PEM file with the certificate and those that it is signed by, relative to this file."
    )
    key: Text = Field(description="PEM file with its key, relative to this file.")


class DoorSpec(_Block):
    """The ingress of each node."""

    port: Port = Field(default=8880, description="Port of the prediction APIs on each node.")
    tls: TlsSpec | None = Field(
        default=None, description="The certificate that doors show to clients; none: plain HTTP."
    )


class AwsNetwork(_Block):
    """What is there already on aws and is used."""

    subnet: Annotated[str, _any(lambda value: values.check_aws_id(value, "subnet"))] | None = Field(
        default=None, description="A subnet for the nodes; one of the default network unless given."
    )
    security_group: Annotated[str, _any(lambda value: values.check_aws_id(value, "security_group"))] | None = Field(
        default=None, description="A security group; one that is named after the cluster is made unless given."
    )
    key: Word | None = Field(
        default=None, description="Name of a key pair; one that is named after the cluster is made unless given."
    )
    key_file: Text | None = Field(default=None, description="Its private key; `~/.ssh/<key>.pem` unless given.")


class GcpNetwork(_Block):
    """What is there already on gcp and is used."""

    project: Word | None = Field(default=None, description="The project; GOOGLE_CLOUD_PROJECT unless given.")
    zone: Word | None = Field(default=None, description="The zone of the nodes; `<region>-a` unless given.")
    subnet: Word | None = Field(default=None, description="A subnetwork; the region's first unless given.")


class AzureNetwork(_Block):
    """What is there already on azure and is used."""

    subscription: Word | None = Field(default=None, description="The subscription; that of `az login` unless given.")
    key_file: Text | None = Field(
        default=None, description="A private key, beside which `.pub` lies; one is made unless given."
    )


class NodeSpec(_Block):
    """What each pod of the cluster has."""

    cpu: CpuField = Field(default=Cpu.parse("2"), description="Processors of a node, such as 4 or 1500m.")
    mem: PodMemory = Field(default=Memory.parse("4Gi"), description="Memory of a node, such as 8Gi; at least 1Gi.")
    gpu: CountOrZero = Field(default=0, description="GPUs of a node.")


class ClusterSpec(_Block):
    """What clusters of all providers have."""

    PROVIDER: ClassVar[str] = ""
    MADE_BY_US: ClassVar[bool] = True
    """Whether Ray is started by us, on nodes that are ours."""

    name: Name = Field(
        description="Name of the cluster, and of the environment that it is for commands: lower-case letters, digits "
        "and dashes, at most 42 characters, on gcp 28."
    )
    provider: str = Field(description="Where nodes come from: ray, machines, aws, gcp, azure or kubernetes.")
    nodes_min: Count | None = Field(
        default=None, description="Fewest nodes, the head among them. CORTEX_NODES_MIN comes before it. Default 1."
    )
    nodes_max: Count | None = Field(
        default=None,
        description=f"Most nodes, the head among them. CORTEX_NODES_MAX comes before it. Default {DEFAULT_NODES_MAX}.",
    )
    storage: Storage = Field(
        description="Where state, models and projects lie: s3://bucket/prefix, gs://, az://, or a directory that all "
        "nodes share. One cluster each."
    )
    door: DoorSpec = Field(default=DoorSpec(), description="The ingress of each node.")
    python: Python | None = Field(
        default=None,
        description="Minor version of Python on the nodes, such as 3.12; that of this command unless given.",
    )
    index_url: Url | None = Field(
        default=None,
        description="Where nodes get packages from; what PIP_INDEX_URL or UV_INDEX_URL of the shell says unless given.",
    )

    @field_validator("door")
    @classmethod
    def _door_is_not_rays(cls, door: DoorSpec) -> DoorSpec:
        if cls.MADE_BY_US:
            values.check_free_port(door.port, ("port",))
        return door


class RaySpec(ClusterSpec):
    """A Ray cluster that is there already."""

    PROVIDER = "ray"
    MADE_BY_US = False

    address: Annotated[str, _any(values.check_address)] = Field(
        description="host:port of its GCS; what RAY_ADDRESS says unless given."
    )


class MachinesSpec(ClusterSpec):
    """Machines that are there already and are reached by SSH."""

    PROVIDER = "machines"

    hosts: Annotated[tuple[str, ...], _any(values.check_hosts)] = Field(
        description="Names or addresses, as `ssh` takes them; the first is the head."
    )
    ssh_user: Annotated[str, _any(values.check_user)] | None = Field(
        default=None, description="The user on all hosts; what `ssh` takes by itself unless given."
    )
    ssh_key: Text | None = Field(
        default=None, description="Private key, relative to this file; what `ssh` takes by itself unless given."
    )


class CloudSpec(ClusterSpec):
    """Machines of a cloud."""

    region: Text = Field(description="Where the machines are; on aws AWS_REGION unless given.")
    instance_type: Text | None = Field(
        default=None, description="Type of machine; one with 4 cpus and 16 GiB unless given."
    )
    gpu_instance_type: Text | None = Field(
        default=None, description="Type of machine for apis with gpu; no such nodes unless given."
    )
    spot: Bool = Field(default=False, description="Whether nodes other than the head are spot machines.")
    disk: Disk = Field(default=Size.parse("50Gi"), description="Disk of each node, 30Gi to 16Ti.")

    @field_validator("name")
    @classmethod
    def _name_fits(cls, name: str) -> str:
        return values.check_length(name, cls.PROVIDER)

    @field_validator("region")
    @classmethod
    def _region_is_one(cls, region: str) -> str:
        return values.check_region(region, cls.PROVIDER)

    @field_validator("instance_type")
    @classmethod
    def _type_is_one(cls, name: str | None) -> str | None:
        return None if name is None else values.check_instance_type(name, cls.PROVIDER, with_gpu=False)

    @field_validator("gpu_instance_type")
    @classmethod
    def _gpu_type_is_one(cls, name: str | None) -> str | None:
        return None if name is None else values.check_instance_type(name, cls.PROVIDER, with_gpu=True)

    @property
    def plain_type(self) -> str:
        """The type of machines without GPU."""
        return self.instance_type or values.DEFAULT_TYPES[self.PROVIDER]

    @property
    def disk_gib(self) -> int:
        """Whole GiB, rounded up."""
        return -(-self.disk.bytes // 1024**3)


class AwsSpec(CloudSpec):
    """EC2 instances."""

    PROVIDER = "aws"

    network: AwsNetwork = Field(default=AwsNetwork(), description="What is there already and is used.")


class GcpSpec(CloudSpec):
    """Machines of Google's Compute Engine."""

    PROVIDER = "gcp"

    network: GcpNetwork = Field(default=GcpNetwork(), description="What is there already and is used.")


class AzureSpec(CloudSpec):
    """Virtual machines of Azure."""

    PROVIDER = "azure"

    network: AzureNetwork = Field(default=AzureNetwork(), description="What is there already and is used.")


class KubernetesSpec(ClusterSpec):
    """Pods of a RayCluster, which KubeRay's operator makes."""

    PROVIDER = "kubernetes"

    namespace: Annotated[str, _any(values.check_namespace)] = Field(
        default="default", description="Namespace of the RayCluster."
    )
    context: Word | None = Field(default=None, description="Context of `kubectl`; the current one unless given.")
    node: NodeSpec = Field(default=NodeSpec(), description="What each node, which is a pod, has.")
    image: Annotated[str, _any(values.check_image)] | None = Field(
        default=None, description="Container image with Ray in it; Ray's own unless given."
    )


PROVIDERS: Mapping[str, type[ClusterSpec]] = {
    model.PROVIDER: model for model in (RaySpec, MachinesSpec, AwsSpec, GcpSpec, AzureSpec, KubernetesSpec)
}
"""The model of each provider, in the order in which they are told."""
KEPT_AS_WRITTEN = frozenset([("python",), ("disk",), ("node", "cpu"), ("node", "mem")])
"""Fields whose value is wanted as it is spelled: `3.10`, not 3.1."""
