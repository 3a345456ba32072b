"""
What a cluster needs on AWS beside machines, which Ray's launcher makes: made, found again and removed with boto3.

Everything has the cluster's own name and its tags; without both tags nothing is taken for ours.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cortex.cluster import bounds
from cortex.cluster.made import NameTaken, Thing
from cortex.cluster.models import AwsSpec
from cortex.cluster.names import own_name, tags
from cortex.errors import CortexError

KEY_PAIR, ROLE, PROFILE, GROUP, MACHINES = "key pair", "role", "instance profile", "security group", "machines"
WAIT_S, WAITS = 5, 120
"""Between looks at machines that end, and how many: they take a minute, the largest some more."""
CONNECT_S, ANSWER_S = 10, 30
_LIVING = ["pending", "running", "stopping", "stopped", "shutting-down"]
_TRUST = {
    "Version": "2012-10-17",
    "Statement": [{"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"}],
}
_GONE = frozenset(("NoSuchEntity", "InvalidKeyPair.NotFound", "InvalidGroup.NotFound", "InvalidGroupId.NotFound"))
_DENIED = frozenset(("UnauthorizedOperation", "AccessDenied", "AccessDeniedException"))
_BAD_KEYS = frozenset(
    ("AuthFailure", "InvalidClientTokenId", "SignatureDoesNotMatch", "ExpiredToken", "RequestExpired")
)


class NoBoto(CortexError):
    """boto3 is not installed, without which nothing can be asked of AWS."""

    reference = "boto3-missing"
    hint = "pip install 'cortex-serving[aws]'"

    def __init__(self) -> None:
        super().__init__("AWS is asked through boto3, which is not installed")


class AwsRefused(CortexError):
    """AWS refused something, or did not answer; says what was asked, and why not."""

    reference = "aws-refused"

    def __init__(self, what: str, code: str, reason: str, hint: str = "") -> None:
        self.code = code
        self.hint = hint
        super().__init__(f"{what}: {reason}" + (f" ({code})" if code else ""))


class NoHead(CortexError):
    """No machine of a cluster is its head: it was never started, or is gone."""

    reference = "no-head"

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(f"cluster {name} has no head on AWS")


class NoNetwork(CortexError):
    """A region has no default network, and cluster.yaml names no subnet."""

    reference = "no-network"
    hint = "name a subnet in cluster.yaml: network: {subnet: subnet-…}"

    def __init__(self, region: str) -> None:
        self.region = region
        super().__init__(f"region {region} has no default network")


def things(spec: AwsSpec) -> tuple[Thing, ...]:
    """Return what is made for a cluster, in the order in which one needs the other."""
    name = own_name(spec.name)
    kinds = [
        *([KEY_PAIR] if spec.network.key is None else []),
        *(ROLE, PROFILE),
        *([GROUP] if spec.network.security_group is None else []),
        MACHINES,
    ]
    return tuple(Thing(kind, name) for kind in kinds)


def head_rights(spec: AwsSpec) -> dict[str, Any]:
    """
    Return the policy of the head's role: what Ray's autoscaler asks there, the bounds in its tags, and the storage.

    Machines are made in one region, and ended only where they carry the cluster's tag.
    """
    in_region = {"StringEquals": {"aws:RequestedRegion": spec.region}}
    of_cluster = {"StringEquals": {f"ec2:ResourceTag/{key}": value for key, value in tags(spec).items()}}
    look = ["Instances", "InstanceTypes", "Images", "Tags", "Subnets", "SecurityGroups", "KeyPairs"]
    statements: list[dict[str, Any]] = [
        {"Action": [f"ec2:Describe{what}" for what in look], "Resource": "*"},
        {"Action": ["ec2:RunInstances", "ec2:CreateTags"], "Resource": "*", "Condition": in_region},
        {"Action": ["ec2:TerminateInstances"], "Resource": "*", "Condition": of_cluster},
        {"Action": ["ssm:GetParameters"], "Resource": "arn:aws:ssm:*::parameter/aws/service/canonical/*"},
    ]
    if spec.storage.startswith("s3://"):
        bucket, _, prefix = spec.storage.removeprefix("s3://").partition("/")
        inside = f"arn:aws:s3:::{bucket}/{prefix}/*" if prefix else f"arn:aws:s3:::{bucket}/*"
        statements += [
            {"Action": ["s3:GetObject", "s3:PutObject", "s3:DeleteObject"], "Resource": inside},
            {"Action": ["s3:ListBucket"], "Resource": f"arn:aws:s3:::{bucket}"},
        ]
    return {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", **statement} for statement in statements]}


class Aws:
    """
    A cluster's things on AWS: a `Maker`.

    Args:
        keys: the folder of private keys, in which Ray looks for `<name of the key pair>.pem`.
        launch: has Ray's launcher make the head, in the security group with this id.
    """

    def __init__(self, spec: AwsSpec, *, keys: Path, launch: Callable[[str], None]) -> None:
        """Raises NoBoto."""
        try:
            import boto3
            from botocore.config import Config
        except ImportError:
            raise NoBoto from None
        config = Config(connect_timeout=CONNECT_S, read_timeout=ANSWER_S, retries={"mode": "standard"})
        with _in_words("AWS"):
            self._ec2: Any = boto3.client("ec2", region_name=spec.region, config=config)
            self._iam: Any = boto3.client("iam", region_name=spec.region, config=config)
        self._spec = spec
        self._keys = keys
        self._launch = launch
        self._tags = tags(spec)

    def make(self, thing: Thing, *, resumed: bool) -> str:
        with _in_words(f"{thing.kind} {thing.name}"):
            match thing.kind:
                case "key pair":
                    return self._make_key_pair(thing, resumed)
                case "role":
                    return self._make_role(thing)
                case "instance profile":
                    return self._make_profile(thing)
                case "security group":
                    return self._make_group(thing)
                case _:
                    assert thing.kind == MACHINES
                    self._launch(self.group_id())
                    return self.head()

    def remove(self, thing: Thing, id: str) -> bool:
        with _in_words(f"{thing.kind} {thing.name}"):
            match thing.kind:
                case "key pair":
                    return self._remove_key_pair(thing)
                case "role":
                    return self._remove_role(thing)
                case "instance profile":
                    return self._remove_profile(thing)
                case "security group":
                    return self._remove_group(thing)
                case _:
                    assert thing.kind == MACHINES
                    return self._end_machines()

    def head(self) -> str:
        """Return the id of the head's machine. Raises NoHead."""
        heads = [each["InstanceId"] for each in self._machines(head=True)]
        if not heads:
            raise NoHead(self._spec.name)
        return str(heads[0])

    def head_tags(self) -> dict[str, str]:
        """Return the tags of the head, the bounds among them, as somebody may have changed them. Raises NoHead."""
        with _in_words("tags of the head"):
            found = next(iter(self._machines(head=True)), None)
        if found is None:
            raise NoHead(self._spec.name)
        return _as_dict(found.get("Tags", ()))

    def write_bounds(self, held: bounds.Bounds) -> None:
        """Put the bounds on the head. Raises NoHead."""
        with _in_words("tags of the head"):
            self._ec2.create_tags(Resources=[self.head()], Tags=_as_list({**self._tags, **held.tags()}))

    # ---- key pair ----------------------------------------------------------------------------------------------------

    def _make_key_pair(self, thing: Thing, resumed: bool) -> str:
        """The private half is made here and written first: it is never lost, and never on the network."""
        file = self.key_file
        there = self._key_pair(thing)
        if there is not None and not self._is_ours(there.get("Tags", ())):
            raise NameTaken(thing)
        if file.exists() and not (resumed or there is not None):
            raise NameTaken(thing, f"a file {file}")
        if there is not None and not file.exists():
            self._ec2.delete_key_pair(KeyName=thing.name)
            there = None
        public = _public_half(file) if file.exists() else _new_key(file)
        if there is None:
            there = self._ec2.import_key_pair(
                KeyName=thing.name, PublicKeyMaterial=public, TagSpecifications=self._tagged("key-pair")
            )
        return str(there["KeyPairId"])

    def _remove_key_pair(self, thing: Thing) -> bool:
        there = self._key_pair(thing)
        ours = there is not None and self._is_ours(there.get("Tags", ()))
        if ours:
            self._ec2.delete_key_pair(KeyName=thing.name)
        if there is None or ours:
            self.key_file.unlink(missing_ok=True)
        return ours

    def _key_pair(self, thing: Thing) -> dict[str, Any] | None:
        found = _unless_gone(self._ec2.describe_key_pairs, KeyNames=[thing.name])
        return _first(found["KeyPairs"]) if found is not None else None

    @property
    def key_file(self) -> Path:
        return self._keys / f"{own_name(self._spec.name)}.pem"

    # ---- role and instance profile -----------------------------------------------------------------------------------

    def _make_role(self, thing: Thing) -> str:
        there = self._role(thing)
        if there is None:
            there = self._iam.create_role(
                RoleName=thing.name,
                AssumeRolePolicyDocument=json.dumps(_TRUST),
                Description=f"Head of the Cortex cluster {self._spec.name}",
                Tags=_as_list(self._tags),
            )["Role"]
        elif not self._is_ours(there.get("Tags", ())):
            raise NameTaken(thing)
        rights = json.dumps(head_rights(self._spec))
        self._iam.put_role_policy(RoleName=thing.name, PolicyName=thing.name, PolicyDocument=rights)
        return str(there["RoleId"])

    def _remove_role(self, thing: Thing) -> bool:
        there = self._role(thing)
        if there is None or not self._is_ours(there.get("Tags", ())):
            return False
        _unless_gone(self._iam.delete_role_policy, RoleName=thing.name, PolicyName=thing.name)
        _unless_gone(self._iam.delete_role, RoleName=thing.name)
        return True

    def _role(self, thing: Thing) -> dict[str, Any] | None:
        found = _unless_gone(self._iam.get_role, RoleName=thing.name)
        return found["Role"] if found is not None else None

    def _make_profile(self, thing: Thing) -> str:
        there = self._profile(thing)
        if there is None:
            there = self._iam.create_instance_profile(InstanceProfileName=thing.name, Tags=_as_list(self._tags))[
                "InstanceProfile"
            ]
        elif not self._is_ours(there.get("Tags", ())):
            raise NameTaken(thing)
        if not there["Roles"]:
            self._iam.add_role_to_instance_profile(InstanceProfileName=thing.name, RoleName=thing.name)
        return str(there["InstanceProfileId"])

    def _remove_profile(self, thing: Thing) -> bool:
        there = self._profile(thing)
        if there is None or not self._is_ours(there.get("Tags", ())):
            return False
        for role in there["Roles"]:
            _unless_gone(
                self._iam.remove_role_from_instance_profile, InstanceProfileName=thing.name, RoleName=role["RoleName"]
            )
        _unless_gone(self._iam.delete_instance_profile, InstanceProfileName=thing.name)
        return True

    def _profile(self, thing: Thing) -> dict[str, Any] | None:
        found = _unless_gone(self._iam.get_instance_profile, InstanceProfileName=thing.name)
        return found["InstanceProfile"] if found is not None else None

    # ---- security group ----------------------------------------------------------------------------------------------

    def _make_group(self, thing: Thing) -> str:
        """Lets in SSH, and everything that comes from the cluster itself."""
        network = self._network()
        there = self._group(thing, network)
        if there is None:
            id = self._ec2.create_security_group(
                GroupName=thing.name,
                Description=f"Nodes of the Cortex cluster {self._spec.name}",
                VpcId=network,
                TagSpecifications=self._tagged("security-group"),
            )["GroupId"]
            has: Sequence[Any] = ()
        elif not self._is_ours(there.get("Tags", ())):
            raise NameTaken(thing)
        else:
            id, has = there["GroupId"], there["IpPermissions"]
        if not has:
            among = {"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": id}]}
            ssh = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}
            self._ec2.authorize_security_group_ingress(GroupId=id, IpPermissions=[among, ssh])
        return str(id)

    def _remove_group(self, thing: Thing) -> bool:
        found = [group for group in self._groups(thing) if self._is_ours(group.get("Tags", ()))]
        for group in found:
            _unless_gone(self._ec2.delete_security_group, GroupId=group["GroupId"])
        return bool(found)

    def group_id(self) -> str:
        """Return the id of the security group that nodes are in. Raises AwsRefused where it was not made yet."""
        if self._spec.network.security_group is not None:
            return self._spec.network.security_group
        found = self._group(Thing(GROUP, own_name(self._spec.name)), self._network())
        if found is None:
            raise AwsRefused("machines", "", "the cluster's security group is gone")
        return str(found["GroupId"])

    def _group(self, thing: Thing, network: str) -> Any:
        return _first([group for group in self._groups(thing) if group["VpcId"] == network])

    def _groups(self, thing: Thing) -> Sequence[dict[str, Any]]:
        found: Sequence[dict[str, Any]] = self._ec2.describe_security_groups(
            Filters=[{"Name": "group-name", "Values": [thing.name]}]
        )["SecurityGroups"]
        return found

    def _network(self) -> str:
        subnet = self._spec.network.subnet
        if subnet is not None:
            return str(self._ec2.describe_subnets(SubnetIds=[subnet])["Subnets"][0]["VpcId"])
        found = _first(self._ec2.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"])
        if found is None:
            raise NoNetwork(self._spec.region)
        return str(found["VpcId"])

    # ---- machines ----------------------------------------------------------------------------------------------------

    def _end_machines(self) -> bool:
        """The head first, so that it adds no more; then all of them, and those that it added meanwhile."""
        heads = [each["InstanceId"] for each in self._machines(head=True)]
        if heads:
            self._ec2.terminate_instances(InstanceIds=heads)
        ended: set[str] = set()
        while found := {each["InstanceId"] for each in self._machines()}:
            self._ec2.terminate_instances(InstanceIds=sorted(found))
            config = {"Delay": WAIT_S, "MaxAttempts": WAITS}
            self._ec2.get_waiter("instance_terminated").wait(InstanceIds=sorted(found), WaiterConfig=config)
            ended |= found
        return bool(ended or heads)

    def _machines(self, *, head: bool = False) -> Iterator[dict[str, Any]]:
        filters = [{"Name": f"tag:{key}", "Values": [value]} for key, value in self._tags.items()]
        filters.append({"Name": "instance-state-name", "Values": _LIVING[:2] if head else _LIVING})
        if head:
            filters.append({"Name": "tag:ray-node-type", "Values": ["head"]})
        for page in self._ec2.get_paginator("describe_instances").paginate(Filters=filters):
            for reservation in page["Reservations"]:
                yield from reservation["Instances"]

    # ---- tags --------------------------------------------------------------------------------------------------------

    def _is_ours(self, tag_list: Sequence[Mapping[str, str]]) -> bool:
        has = _as_dict(tag_list)
        return all(has.get(key) == value for key, value in self._tags.items())

    def _tagged(self, what: str) -> list[dict[str, Any]]:
        return [{"ResourceType": what, "Tags": _as_list(self._tags)}]


def _as_list(tags: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"Key": key, "Value": value} for key, value in tags.items()]


def _as_dict(tag_list: Sequence[Mapping[str, str]]) -> dict[str, str]:
    return {tag["Key"]: tag["Value"] for tag in tag_list}


def _first(found: Sequence[Any]) -> Any:
    return found[0] if found else None


def _new_key(file: Path) -> bytes:
    """Write a new private key, readable by its owner alone, and return its public half as OpenSSH has it."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    private = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
        stream.write(private)
    return _public_half(file)


def _public_half(file: Path) -> bytes:
    from cryptography.hazmat.primitives import serialization

    private = serialization.load_ssh_private_key(file.read_bytes(), password=None)
    return private.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)


def _unless_gone(ask: Callable[..., Any], **given: str | list[str]) -> Any:
    """What AWS answers; None where what is asked about is not there, which is no failure."""
    from botocore.exceptions import ClientError

    try:
        return ask(**given)
    except ClientError as error:
        if error.response.get("Error", {}).get("Code") not in _GONE:
            raise
        return None


@contextlib.contextmanager
def _in_words(what: str) -> Iterator[None]:
    """Raises AwsRefused for whatever boto3 says."""
    from botocore.exceptions import (
        BotoCoreError,
        ClientError,
        ConnectionError,
        HTTPClientError,
        NoCredentialsError,
        PartialCredentialsError,
    )

    try:
        yield
    except (NoCredentialsError, PartialCredentialsError) as error:
        hint = "`aws configure`, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        raise AwsRefused(what, "", "there are no credentials for AWS in this shell", hint) from error
    except ClientError as error:
        told = error.response.get("Error", {})
        code, reason = told.get("Code", ""), told.get("Message", str(error)).rstrip(".")
        hint = (
            f"the credentials of this shell need the right to {error.operation_name}"
            if code in _DENIED
            else "see whether the credentials of this shell are right, and have not expired"
            if code in _BAD_KEYS
            else ""
        )
        raise AwsRefused(what, code, reason, hint) from error
    except (ConnectionError, HTTPClientError) as error:
        raise AwsRefused(what, "", f"AWS does not answer: {error}", "see whether this machine reaches it") from error
    except BotoCoreError as error:
        raise AwsRefused(what, "", str(error)) from error
