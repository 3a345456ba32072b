"""What a cluster needs on AWS, against a real server of its protocols; the head is made by Ray's own provider."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from cortex.cluster import aws as aws_module
from cortex.cluster.aws import KEY_PAIR, MACHINES, Aws, AwsRefused, NoHead, things
from cortex.cluster.bounds import Bounds, BoundSource, NodeBound, from_tags
from cortex.cluster.launcher import launcher_file
from cortex.cluster.loading import Cluster, load
from cortex.cluster.made import NameTaken, Objects, Thing, bring_up, read_marks, take_down
from cortex.cluster.models import AwsSpec

boto3 = pytest.importorskip("boto3", reason="boto3 is not installed")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # with its first answer the server reads AWS's catalogue

NAME = "cortex-prod"
FILE = "name: prod\nprovider: aws\nregion: eu-central-1\nstorage: s3://models/cortex\nnodes_max: 4\n"
LAUNCH = """
import json, sys
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

config = prepare_config(json.load(sys.stdin))
validate_config(config)
config = AWSNodeProvider.fillout_available_node_types_resources(AWSNodeProvider.bootstrap_config(config))
provider = AWSNodeProvider(config["provider"], config["cluster_name"])
for kind, count in (("head", 1), ("worker", 1)):
    tags = {"ray-node-type": kind, "ray-node-name": f"ray-{config['cluster_name']}-{kind}"}
    provider.create_node(config["available_node_types"][kind]["node_config"], tags, count)
print(json.dumps(config["available_node_types"]["worker"]["resources"]))
"""
"""What Ray's launcher does, but for SSH, and a worker as its autoscaler adds one."""


class Shelf:
    """Objects in memory."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}

    def create(self, key: str, content: bytes) -> bool:
        return self.objects.setdefault(key, content) is content

    def read(self, key: str) -> bytes | None:
        return self.objects.get(key)

    def keys(self, folder: str) -> list[str]:
        return sorted(key for key in self.objects if key.startswith(f"{folder}/"))

    def delete(self, keys: Any) -> None:
        for key in keys:
            self.objects.pop(key, None)


class Place:
    """An account that is empty, a home, and the cluster that is made there."""

    def __init__(self, home: Path, storage: str = "s3://models/cortex") -> None:
        self.home = home
        self.keys = home / ".ssh"
        self.cluster: Cluster = load(
            FILE.replace("s3://models/cortex", storage), file="cluster.yaml", environ={}, python="3.11"
        )
        assert isinstance(self.cluster.spec, AwsSpec)
        self.spec = self.cluster.spec
        self.shelf: Objects = Shelf()
        self.resources: Mapping[str, Any] = {}
        self.ec2 = boto3.client("ec2", region_name="eu-central-1")
        self.iam = boto3.client("iam", region_name="eu-central-1")
        self.aws = Aws(self.spec, keys=self.keys, launch=self.launch)

    def launch(self, group: str) -> None:
        """A head and a worker from the launcher's file, without the launcher, which takes half a minute."""
        types: Any = launcher_file(self.cluster, group=group)["available_node_types"]
        for kind in ("head", "worker"):
            config = types[kind]["node_config"]
            machine, volume = config["TagSpecifications"]
            of_ray = {"Key": "ray-node-type", "Value": kind}
            self.ec2.run_instances(
                **{**config, "TagSpecifications": [{**machine, "Tags": [*machine["Tags"], of_ray]}, volume]},
                MinCount=1,
                MaxCount=1,
            )

    def launch_with_ray(self, group: str) -> None:
        pytest.importorskip("ray", reason="Ray is not installed")
        text = json.dumps(launcher_file(self.cluster, group=group))
        ran = subprocess.run([sys.executable, "-W", "ignore", "-c", LAUNCH], input=text, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr + ran.stdout
        self.resources = json.loads(ran.stdout.splitlines()[-1])

    def up(self) -> dict[Thing, str]:
        return bring_up(things(self.spec), self.shelf, self.aws)

    def down(self) -> None:
        take_down(self.shelf, self.aws)

    def machines(self, *states: str) -> list[dict[str, Any]]:
        filters = [{"Name": "instance-state-name", "Values": [*states]}] if states else []
        found = self.ec2.describe_instances(Filters=filters)["Reservations"]
        return [instance for reservation in found for instance in reservation["Instances"]]

    def there(self) -> dict[str, list[str]]:
        """Everything of the account that a cluster may have, by kind."""
        groups = self.ec2.describe_security_groups()["SecurityGroups"]
        return {
            "key pair": [pair["KeyName"] for pair in self.ec2.describe_key_pairs()["KeyPairs"]],
            "role": [role["RoleName"] for role in self.iam.list_roles()["Roles"]],
            "instance profile": [
                p["InstanceProfileName"] for p in self.iam.list_instance_profiles()["InstanceProfiles"]
            ],
            "security group": [group["GroupName"] for group in groups if group["GroupName"] != "default"],
            "machines": sorted(one["InstanceId"] for one in self.machines("pending", "running", "stopped")),
            "file": sorted(str(file.relative_to(self.home)) for file in self.home.rglob("*.pem")),
        }


NOTHING: dict[str, list[str]] = {
    name: [] for name in ("key pair", "role", "instance profile", "security group", "machines", "file")
}


@pytest.fixture
def place(moto: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Place]:
    """Makes places; the account is emptied first."""
    urllib.request.urlopen(urllib.request.Request(f"{moto}/moto-api/reset", method="POST"), timeout=60).close()
    for name, value in {
        "AWS_ENDPOINT_URL": moto,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_EC2_METADATA_DISABLED": "true",
        "HOME": str(tmp_path),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(aws_module, "WAIT_S", 0)
    monkeypatch.setattr(aws_module, "ANSWER_S", 300)
    return lambda **given: Place(tmp_path, **given)


def tags_of(found: Any) -> dict[str, str]:
    return {tag["Key"]: tag["Value"] for tag in found.get("Tags", ())}


OURS = {"cortex:cluster": "prod", "cortex:storage": "s3://models/cortex"}


def test_everything_has_the_clusters_name_and_tags_and_rays_launcher_takes_it(place: Callable[..., Place]) -> None:
    here = place()
    here.aws = Aws(here.spec, keys=here.keys, launch=here.launch_with_ray)
    ids = here.up()
    assert [thing.kind for thing in ids] == ["key pair", "role", "instance profile", "security group", "machines"]
    there = here.there()
    assert {kind: there[kind] for kind in ("key pair", "role", "instance profile", "security group", "file")} == {
        **{kind: [NAME] for kind in ("key pair", "role", "instance profile", "security group")},
        "file": [f".ssh/{NAME}.pem"],
    }
    assert (here.keys / f"{NAME}.pem").stat().st_mode & 0o777 == 0o600
    (group,) = [g for g in here.ec2.describe_security_groups()["SecurityGroups"] if g["GroupName"] == NAME]
    assert [tags_of(one) | OURS == tags_of(one) for one in (group, *here.machines())] == [True] * 3
    head, worker = sorted(here.machines(), key=lambda one: tags_of(one)["ray-node-type"])
    assert (head["InstanceId"], tags_of(head)["ray-cluster-name"]) == (ids[Thing(MACHINES, NAME)], NAME)
    assert [one["KeyName"] for one in (head, worker)] == [NAME, NAME]
    assert [[g["GroupId"] for g in one["SecurityGroups"]] for one in (head, worker)] == [[group["GroupId"]]] * 2
    assert head["IamInstanceProfile"]["Arn"].endswith(f"/{NAME}")
    assert "IamInstanceProfile" not in worker, "a handler on it could make machines"
    assert (here.resources["CPU"], here.resources["memory"] > 8 * 10**9) == (4, True)
    here.down()
    assert here.there() == NOTHING


def test_making_it_again_makes_nothing_more(place: Callable[..., Place]) -> None:
    here = place()
    first = here.up()
    there = here.there()
    assert (here.up(), here.there()) == (first, there)


def test_down_removes_all_of_it_and_may_be_repeated(place: Callable[..., Place]) -> None:
    here = place()
    here.up()
    here.down()
    assert (here.there(), read_marks(here.shelf)) == (NOTHING, ())
    here.down()
    assert {one["State"]["Name"] for one in here.machines()} == {"terminated"}


def test_a_cluster_that_is_half_gone_is_removed(place: Callable[..., Place]) -> None:
    here = place()
    here.up()
    here.ec2.terminate_instances(InstanceIds=[here.aws.head()])
    here.iam.remove_role_from_instance_profile(InstanceProfileName=NAME, RoleName=NAME)
    here.iam.delete_role_policy(RoleName=NAME, PolicyName=NAME)
    here.iam.delete_role(RoleName=NAME)
    here.ec2.delete_key_pair(KeyName=NAME)
    here.down()
    assert (here.there(), read_marks(here.shelf)) == (NOTHING, ())


@pytest.mark.parametrize("last", range(4))
def test_a_cluster_that_was_never_whole_is_finished_or_removed(place: Callable[..., Place], last: int) -> None:
    """The command ends after it had made one thing, and before it wrote that down."""
    here = place()
    kinds = things(here.spec)
    bring_up(kinds[:last], here.shelf, here.aws)

    class Ends(Shelf):
        def create(self, key: str, content: bytes) -> bool:
            if key.endswith("/done"):
                raise KeyboardInterrupt
            return super().create(key, content)

    ends = Ends()
    assert isinstance(here.shelf, Shelf)
    ends.objects = here.shelf.objects
    with pytest.raises(KeyboardInterrupt):
        bring_up(kinds[: last + 1], ends, here.aws)
    assert [mark.is_done for mark in read_marks(here.shelf)] == [True] * last + [False]
    ids = bring_up(kinds[:-1], here.shelf, here.aws)
    assert len(ids) == 4
    assert {kind: len(found) for kind, found in here.there().items()} == {**dict.fromkeys(NOTHING, 1), "machines": 0}
    here.down()
    assert here.there() == NOTHING


@pytest.mark.parametrize("kind", ["key pair", "role", "instance profile", "security group"])
def test_what_has_the_name_already_is_left_alone(place: Callable[..., Place], kind: str) -> None:
    """Somebody else's, and another cluster's of the same name."""
    here = place()
    other = place(storage="s3://others/cortex")
    theirs = [thing for thing in things(other.spec) if thing.kind == kind]
    if kind == "instance profile":
        other.iam.create_role(RoleName=NAME, AssumeRolePolicyDocument="{}")
    bring_up(theirs, other.shelf, other.aws)
    if kind == "instance profile":
        other.iam.remove_role_from_instance_profile(InstanceProfileName=NAME, RoleName=NAME)
        other.iam.delete_role(RoleName=NAME)
    (here.keys / f"{NAME}.pem").unlink(missing_ok=True)
    before = other.there()
    with pytest.raises(NameTaken, match=f"{kind} {NAME} exists already"):
        here.up()
    here.down()
    assert other.there() == before
    assert here.aws.remove(theirs[0], "") is False
    assert other.there() == before


def test_a_key_of_somebody_else_is_neither_taken_nor_removed(place: Callable[..., Place]) -> None:
    here = place()
    here.keys.mkdir()
    (here.keys / f"{NAME}.pem").write_text("mine")
    with pytest.raises(NameTaken, match=r"a file .*/\.ssh/cortex-prod\.pem exists already"):
        here.up()
    here.down()
    assert (here.keys / f"{NAME}.pem").read_text() == "mine"


def test_machines_of_others_are_never_ended(place: Callable[..., Place]) -> None:
    here = place()
    image = here.ec2.describe_images(Owners=["amazon"])["Images"][0]["ImageId"]
    tags = [{"Key": "cortex:cluster", "Value": "prod"}, {"Key": "cortex:storage", "Value": "s3://others/cortex"}]
    made = here.ec2.run_instances(
        ImageId=image, MinCount=1, MaxCount=1, TagSpecifications=[{"ResourceType": "instance", "Tags": tags}]
    )
    here.up()
    here.down()
    assert here.there() == {**NOTHING, "machines": [made["Instances"][0]["InstanceId"]]}


def test_bounds_are_tags_of_the_head_that_anybody_may_change(place: Callable[..., Place]) -> None:
    here = place()
    with pytest.raises(NoHead):
        here.aws.write_bounds(here.cluster.bounds)
    here.up()
    here.aws.write_bounds(here.cluster.bounds)
    held = here.cluster.bounds
    assert from_tags(held, here.aws.head_tags()) == (held, "")
    here.ec2.create_tags(Resources=[here.aws.head()], Tags=[{"Key": "cortex:nodes-max", "Value": "9"}])
    changed = Bounds(held.minimum, NodeBound(9, BoundSource.TAGS))
    assert from_tags(held, here.aws.head_tags()) == (changed, "")
    here.down()
    with pytest.raises(NoHead):
        here.aws.head_tags()


def test_a_network_and_a_key_that_are_there_are_used_and_stay(place: Callable[..., Place]) -> None:
    here = place()
    subnet = here.ec2.describe_subnets()["Subnets"][0]
    group = here.ec2.create_security_group(GroupName="mine", Description="-", VpcId=subnet["VpcId"])["GroupId"]
    lines = f"network: {{subnet: {subnet['SubnetId']}, security_group: {group}, key: mine}}\n"
    spec = load(FILE + lines, file="cluster.yaml", environ={}, python="3.11").spec
    assert isinstance(spec, AwsSpec)
    assert [thing.kind for thing in things(spec)] == ["role", "instance profile", "machines"]
    assert Aws(spec, keys=here.keys, launch=here.launch).group_id() == group


def test_whoever_has_no_credentials_is_told(place: Callable[..., Place], monkeypatch: pytest.MonkeyPatch) -> None:
    here = place()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    boto3.setup_default_session()
    with pytest.raises(AwsRefused, match="there are no credentials for AWS in this shell") as caught:
        Aws(here.spec, keys=here.keys, launch=here.launch).make(Thing(KEY_PAIR, NAME), resumed=False)
    assert "AWS_ACCESS_KEY_ID" in caught.value.hint


def test_a_server_that_is_not_there_is_told(place: Callable[..., Place], monkeypatch: pytest.MonkeyPatch) -> None:
    here = place()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    lost = Aws(here.spec, keys=here.keys, launch=here.launch)
    with pytest.raises(AwsRefused, match=f"role {NAME}: AWS does not answer"):
        lost.make(Thing("role", NAME), resumed=False)
