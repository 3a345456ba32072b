"""
The file of Ray's launcher, for aws, gcp and azure. Pure.

What `up` will make has names and tags of its own in it. The bounds are no tags of the head's machine here: Ray compares
what a head was started with, and would replace it as soon as they change. They are under `metadata`, which Ray passes
over, and are put on the machine once it is there.

Source:
    Ray 2.60, `autoscaler/ray-schema.json`, `autoscaler/*/defaults.yaml`, `_private/util.py: hash_launch_conf`.
"""

from __future__ import annotations

from cortex.cluster import nodesetup
from cortex.cluster.loading import Cluster
from cortex.cluster.machinetypes import is_arm, machine
from cortex.cluster.models import AwsSpec, AzureSpec, CloudSpec, GcpSpec
from cortex.cluster.names import GPU, HEAD, WORKER, own_name, tags
from cortex.cluster.writing import Plain

SSH_USER = "ubuntu"
IDLE_MINUTES = 1
"""A node that nobody needs goes after a minute: what it costs to get it back is about as much."""
_RAY_MEMORY = 0.7
"""Of a machine's memory, what Ray offers: as it has it on aws itself."""

_AWS_IMAGE = "resolve:ssm:/aws/service/canonical/ubuntu/server/24.04/stable/current/{}/hvm/ebs-gp3/ami-id"
"""The latest image of Ubuntu in whatever region: EC2 resolves it. Source: Canonical, "Finding an Ubuntu image"."""
_GCP_IMAGE = "projects/ubuntu-os-cloud/global/images/family/ubuntu-2404-lts-amd64"
_AZURE_IMAGE = {
    "imagePublisher": "Canonical",
    "imageOffer": "ubuntu-24_04-lts",
    "imageSku": "server",
    "imageVersion": "latest",
}

Config = dict[str, Plain]


def launcher_file(cluster: Cluster, *, group: str | None = None) -> Config:
    """
    Return what Ray's launcher takes.

    Args:
        group: on aws, the id of the security group that was made for the cluster; without it Ray makes one.
    """
    spec = cluster.spec
    assert isinstance(spec, CloudSpec)
    if group is not None and isinstance(spec, AwsSpec):
        spec = spec.model_copy(update={"network": spec.network.model_copy(update={"security_group": group})})
    fewest, most = cluster.bounds.workers
    types: Config = {
        HEAD: _node_type(spec, HEAD, 0, 0),
        WORKER: _node_type(spec, WORKER, fewest, most),
    }
    if spec.gpu_instance_type is not None:
        setup: list[Plain] = [*nodesetup.install(cluster), *nodesetup.install_for_gpus()]
        types[GPU] = {**_node_type(spec, GPU, 0, most), "worker_setup_commands": setup}
    return {
        "cluster_name": own_name(spec.name),
        "max_workers": most,
        "idle_timeout_minutes": IDLE_MINUTES,
        "provider": _provider(spec),
        "auth": _auth(cluster, spec),
        "available_node_types": types,
        "head_node_type": HEAD,
        "cluster_synced_files": [f"/home/{SSH_USER}/{nodesetup.TOKEN}"],
        "setup_commands": [*nodesetup.install(cluster)],
        "head_setup_commands": [*nodesetup.install_on_head(cluster)],
        "worker_setup_commands": [],
        "head_start_ray_commands": [nodesetup.start_head(["--autoscaling-config=~/ray_bootstrap_config.yaml"])],
        "worker_start_ray_commands": [nodesetup.start_worker("$RAY_HEAD_IP")],
        "metadata": {"head_tags": {**tags(spec), **cluster.bounds.tags()}, "door_port": spec.door.port},
    }


def _node_type(spec: CloudSpec, kind: str, fewest: int, most: int) -> Config:
    name = spec.gpu_instance_type or "" if kind == GPU else spec.plain_type
    match spec:
        case AwsSpec():
            config = _aws_node(spec, kind, name)
        case GcpSpec():
            config = _gcp_node(spec, kind, name)
        case _:
            assert isinstance(spec, AzureSpec)
            config = _azure_node(spec, kind, name)
    return {"resources": _resources(spec, name), "min_workers": fewest, "max_workers": most, "node_config": config}


def _resources(spec: CloudSpec, name: str) -> Config:
    """What Ray has to be told of a machine; on aws it finds out by itself."""
    if spec.PROVIDER == "aws":
        return {}
    has = machine(spec.PROVIDER, name)
    assert has is not None
    found: Config = {"CPU": has.cpus, "memory": int(has.mem_bytes * _RAY_MEMORY)}
    return {**found, "GPU": has.gpus} if has.gpus else found


def _provider(spec: CloudSpec) -> Config:
    never_stopped: Config = {"cache_stopped_nodes": False}
    match spec:
        case AwsSpec(network=network):
            found: Config = {"type": "aws", "region": spec.region, **never_stopped}
            if network.security_group is None:
                found["security_group"] = {"GroupName": own_name(spec.name)}
            if network.key is None:
                found["key_pair"] = {"key_name": own_name(spec.name)}
            return found
        case GcpSpec(network=of_gcp):
            return {
                "type": "gcp",
                "region": spec.region,
                "availability_zone": of_gcp.zone or f"{spec.region}-a",
                "project_id": of_gcp.project,
                **never_stopped,
            }
        case _:
            assert isinstance(spec, AzureSpec)
            subscription = spec.network.subscription
            return {
                "type": "azure",
                "location": spec.region,
                "resource_group": own_name(spec.name),
                **({"subscription_id": subscription} if subscription is not None else {}),
                "tags": {**tags(spec)},
                **never_stopped,
            }


def _auth(cluster: Cluster, spec: CloudSpec) -> Config:
    found: Config = {"ssh_user": SSH_USER}
    match spec:
        case AwsSpec(network=network) if network.key is not None:
            found["ssh_private_key"] = cluster.path(network.key_file or f"~/.ssh/{network.key}.pem")
        case AzureSpec(network=of_azure) if of_azure.key_file is not None:
            private = cluster.path(of_azure.key_file)
            found |= {"ssh_private_key": private, "ssh_public_key": f"{private}.pub"}
    return found


def _aws_node(spec: AwsSpec, kind: str, name: str) -> Config:
    tag_list: list[Plain] = [{"Key": key, "Value": value} for key, value in tags(spec).items()]
    config: Config = {
        "InstanceType": name,
        "ImageId": _AWS_IMAGE.format("arm64" if is_arm(name) else "amd64"),
        "BlockDeviceMappings": [
            {
                "DeviceName": "/dev/sda1",
                "Ebs": {"VolumeSize": spec.disk_gib, "VolumeType": "gp3", "DeleteOnTermination": True},
            }
        ],
        "MetadataOptions": {"HttpTokens": "required", "HttpEndpoint": "enabled"},
        "TagSpecifications": [
            {"ResourceType": "instance", "Tags": tag_list},
            {"ResourceType": "volume", "Tags": tag_list},
        ],
    }
    network = spec.network
    if kind == HEAD:
        config["IamInstanceProfile"] = {"Name": own_name(spec.name)}
    elif spec.spot:
        config["InstanceMarketOptions"] = {"MarketType": "spot"}
    if network.subnet is not None:
        config["SubnetIds"] = [network.subnet]
    if network.security_group is not None:
        config["SecurityGroupIds"] = [network.security_group]
    if network.key is not None:
        config["KeyName"] = network.key
    return config


def _gcp_node(spec: GcpSpec, kind: str, name: str) -> Config:
    scheduling: list[Plain] = []
    if spec.spot and kind != HEAD:
        scheduling.append({"preemptible": True})
    if kind == GPU:
        scheduling.append({"onHostMaintenance": "TERMINATE"})
    config: Config = {
        "machineType": name,
        "labels": {"cortex-cluster": spec.name},
        "disks": [
            {
                "boot": True,
                "autoDelete": True,
                "type": "PERSISTENT",
                "initializeParams": {"diskSizeGb": spec.disk_gib, "sourceImage": _GCP_IMAGE},
            }
        ],
        **({"scheduling": scheduling} if scheduling else {}),
    }
    if spec.network.subnet is not None:
        access: list[Plain] = [{"name": "External NAT", "type": "ONE_TO_ONE_NAT"}]
        path = spec.network.subnet
        subnetwork = path if "/" in path else f"regions/{spec.region}/subnetworks/{path}"
        config["networkInterfaces"] = [{"subnetwork": subnetwork, "accessConfigs": access}]
    return config


def _azure_node(spec: AzureSpec, kind: str, name: str) -> Config:
    parameters: Config = {"vmSize": name, **_AZURE_IMAGE, "osDiskSize": spec.disk_gib}
    if spec.spot and kind != HEAD:
        parameters["priority"] = "Spot"
    return {"azure_arm_parameters": parameters}
