"""
Rules for single values of a cluster.yaml: each takes a value and returns it cleaned, or raises a refusal, as those of
cortex.yaml do.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from urllib.parse import urlsplit

from pydantic import ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from cortex.cluster.machinetypes import machine
from cortex.settings import LOCAL
from cortex.spec.locations import SCHEME
from cortex.spec.problems import nearest, one_of, quoted
from cortex.spec.quantities import Memory, Size
from cortex.spec.rules import check_name, check_parsed, check_string, check_text, refusal, wrong_type

PYTHONS = ("3.11", "3.12", "3.13")
"""Minor versions that Cortex and Ray both run on."""
BUCKETS = ("s3", "gs", "az")
SMALLEST_DISK = Size.parse("30Gi")
LARGEST_DISK = Size.parse("16Ti")
SMALLEST_POD = Memory.parse("1Gi")
MOST_CHARACTERS: Mapping[str, int] = {"gcp": 28}
"""
Of a name: Google's machines have at most 63 characters, of which Ray takes 28 and `cortex-` 7.

Source:
    Ray 2.60, `gcp/node.py: _generate_node_name`: `ray-<cluster>-worker-<8 digits>-compute`.
"""

RAY_PORTS: Mapping[int, str] = {
    6379: "its GCS",
    8076: "its object managers",
    8265: "its dashboard",
    10001: "its clients",
}
RAY_WORKER_PORTS = range(10002, 20000)
"""Source: Ray, "Configuring Ray": `--min-worker-port` and `--max-worker-port`."""

_MEANT_SCHEMES = {
    **dict.fromkeys(["s3a", "s3n"], "s3"),
    **dict.fromkeys(["gcs"], "gs"),
    **dict.fromkeys(["azure", "abfs", "abfss", "wasb", "wasbs"], "az"),
}
_SCHEME_TYPO = re.compile(r"(s3|gs|az|file):/?(?!/)", re.IGNORECASE)
_STORAGE = "storage is s3://, gs:// or az:// with a bucket, or a directory that all nodes share"
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")
_HOST = re.compile(
    r"(?=.{1,253}$)[A-Za-z0-9]([A-Za-z0-9_-]{0,62}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9_-]{0,62}[A-Za-z0-9])?)*\.?"
)
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_IMAGE = re.compile(r"[a-z0-9][A-Za-z0-9._:/@-]*")
_MINOR = re.compile(r"(\d+\.\d+)(\.\d+.*)?")
_REGIONS = {
    "aws": (re.compile(r"[a-z]{2}(-[a-z]+)+-\d"), "eu-central-1"),
    "gcp": (re.compile(r"[a-z]+-[a-z]+\d+"), "europe-west4"),
    "azure": (re.compile(r"[a-z]+\d*"), "westeurope"),
}
_TYPES = {
    "aws": (re.compile(r"[a-z0-9][a-z0-9-]*\.[a-z0-9-]+"), "m5.xlarge", "g4dn.xlarge"),
    "gcp": (re.compile(r"[a-z]\d?[a-z]*\d*-[a-z0-9-]+"), "n2-standard-4", "g2-standard-8"),
    "azure": (re.compile(r"(Standard|Basic)_[A-Za-z0-9_-]+"), "Standard_D4s_v5", "Standard_NC4as_T4_v3"),
}
DEFAULT_TYPES: Mapping[str, str] = {provider: example for provider, (_, example, _) in _TYPES.items()}
"""Four cpus and 16 GiB each: a general machine of its provider."""
EXAMPLES: Mapping[tuple[str, str], str] = {
    **{(provider, "region"): example for provider, (_, example) in _REGIONS.items()},
    **{(provider, "instance_type"): example for provider, example in DEFAULT_TYPES.items()},
    **{(provider, "gpu_instance_type"): example for provider, (_, _, example) in _TYPES.items()},
}
"""By provider and field, where each has others."""
_ZONED = {"aws": re.compile(r"([a-z]{2}(?:-[a-z]+)+-\d)[a-z]"), "gcp": re.compile(r"([a-z]+-[a-z]+\d+)-[a-z]")}
_IDS = {
    "subnet": (re.compile(r"subnet-[0-9a-f]{8,17}"), "subnet-0123456789abcdef0"),
    "security_group": (re.compile(r"sg-[0-9a-f]{8,17}"), "sg-0123456789abcdef0"),
}


def check_cluster_name(value: object) -> str:
    name = check_name(value, "cluster")
    if name == LOCAL:
        message = f"no cluster can be named {quoted(name)}: that is the environment on this machine"
        raise refusal("reserved-name", message, hint='choose another name, such as "local-cluster"')
    return name


def check_length(name: str, provider: str) -> str:
    most = MOST_CHARACTERS.get(provider)
    if most is not None and len(name) > most:
        message = f"on {provider} a cluster's name has at most {most} characters, {quoted(name)} has {len(name)}"
        raise refusal("name-too-long", message, hint=f"did you mean {quoted(name[:most].rstrip('-'))}?")
    return name


def check_storage(value: object) -> str:
    """Where state and artifacts lie; without a slash at its end, so that one place has one spelling."""
    text = check_text(value)
    if text != text.strip():
        raise refusal("bad-storage", f"{quoted(text)} begins or ends with a space", hint="delete the space")
    scheme = SCHEME.match(text)
    if scheme is None:
        return _check_directory(text)
    rest = text[scheme.end() :]
    if scheme[1] == "file":
        raise refusal(
            "bad-storage", f"{_STORAGE}, without file://", hint=f"did you mean {quoted('/' + rest.lstrip('/'))}?"
        )
    if scheme[1] not in BUCKETS:
        near = _MEANT_SCHEMES.get(scheme[1].lower()) or nearest(scheme[1], BUCKETS)
        hint = f"did you mean {quoted(f'{near}://{_shown(rest)}')}?" if near else "such as s3://my-bucket/cortex"
        raise refusal("bad-storage", f"{scheme[0]} is not supported: {_STORAGE}", hint=hint)
    return _check_bucket(scheme[1], rest)


def _check_bucket(scheme: str, rest: str) -> str:
    bucket, _, prefix = rest.partition("/")
    example = f"such as {scheme}://my-bucket/cortex"
    if "@" in bucket:
        message = "credentials do not belong into storage: they are those of the shell, and of the nodes"
        raise refusal("bad-storage", message, hint=f"did you mean {quoted(f'{scheme}://{_shown(rest)}')}?")
    if not bucket:
        raise refusal("bad-storage", f"{quoted(f'{scheme}://{rest}')} names no bucket", hint=example)
    if _BUCKET.fullmatch(bucket) is None:
        rule = "lower-case letters, digits, dots, dashes and underscores, at least three"
        raise refusal("bad-storage", f"{quoted(bucket)} is not the name of a bucket: {rule}", hint=example)
    if "?" in prefix or "#" in prefix:
        message = (
            f"{quoted(_shown(prefix.partition('?')[0]))} is followed by a query, which a place in a bucket has none of"
        )
        raise refusal("bad-storage", message, hint=example)
    parts = prefix.strip("/").split("/") if prefix.strip("/") else []
    if any(part in ("", ".", "..") for part in parts):
        meant = "/".join(part for part in parts if part not in ("", ".", ".."))
        message = f"{quoted(prefix)} has an empty part, . or .., and in a bucket these are names"
        raise refusal(
            "bad-storage", message, hint=f"did you mean {quoted(f'{scheme}://{bucket}/{meant}'.rstrip('/'))}?"
        )
    return f"{scheme}://{'/'.join([bucket, *parts])}"


def _check_directory(path: str) -> str:
    typo = _SCHEME_TYPO.match(path)
    if typo is not None and typo[1].lower() != "file":
        hint = f"did you mean {quoted(f'{typo[1].lower()}://{_shown(path[typo.end() :])}')}?"
        raise refusal("bad-storage", f"{typo[1]}: is not followed by two slashes", hint=hint)
    if path.startswith("~"):
        raise refusal("bad-storage", f"{quoted(path)}: ~ is another folder on each node", hint="write the path out")
    if not path.startswith("/"):
        message = f"{quoted(path)} is neither a bucket nor an absolute path: {_STORAGE}"
        bucket = path if _BUCKET.fullmatch(path.partition("/")[0]) else "my-bucket/cortex"
        raise refusal("bad-storage", message, hint=f"such as s3://{bucket}, or /mnt/cortex")
    parts = [part for part in path.split("/") if part]
    if not parts or any(part in (".", "..") for part in parts):
        raise refusal("bad-storage", f"{quoted(path)} is not the plain path of a directory", hint="such as /mnt/cortex")
    return "/" + "/".join(parts)


def _shown(rest: str) -> str:
    """What follows a scheme, without credentials."""
    head, slash, path = rest.partition("/")
    return head.rpartition("@")[2] + slash + path


def check_port(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise wrong_type("an integer")
    if not 1 <= value <= 65535:
        raise refusal("bad-port", f"a port is a number from 1 to 65535, found {value}", hint="such as port: 8880")
    return value


def check_free_port(port: int, place: tuple[str, ...]) -> None:
    """That Ray leaves a port alone on nodes that we make. `place` is that of the port."""
    if port in RAY_PORTS or port in RAY_WORKER_PORTS:
        whose = RAY_PORTS.get(port, f"its workers, {RAY_WORKER_PORTS[0]} to {RAY_WORKER_PORTS[-1]}")
        message = f"port {port} is taken on each node: Ray has it for {whose}"
        error = refusal("bad-port", message, hint="such as port: 8880")
        raise ValidationError.from_exception_data("port", [InitErrorDetails(type=error, loc=place, input=port)])


def check_python(value: object) -> str:
    """A minor version; as it is written, since 3.10 as a number would be 3.1."""
    if isinstance(value, bool) or not isinstance(value, str):
        raise wrong_type("a minor version of Python")
    match = _MINOR.fullmatch(value)
    if match is not None and match[1] in PYTHONS:
        if match[2] is None:
            return value
        message = f"{quoted(value)} is more than a minor version: nodes get the latest {match[1]}"
        raise refusal("bad-python", message, hint=f"write python: {match[1]}")
    raise refusal(
        "bad-python", f"expected {one_of(PYTHONS)}, found {quoted(value)}", hint=f"such as python: {PYTHONS[0]}"
    )


def check_url(value: object) -> str:
    text = check_text(value)
    if any(character.isspace() for character in text):
        raise refusal("bad-url", "a URL has no spaces", hint="delete the space")
    try:
        parts = urlsplit(text)
        has_host = bool(parts.hostname)
    except ValueError:
        has_host = False
    if not has_host or parts.scheme not in ("https", "http"):
        shown = quoted(text.rpartition("@")[2] if "@" in text else text)
        raise refusal(
            "bad-url", f"{shown} is not the URL of a package index", hint="such as https://pypi.example.com/simple"
        )
    if parts.username or parts.password:
        message = "user name and password do not belong into this file"
        raise refusal("bad-url", message, hint="put the whole URL into PIP_INDEX_URL of the shell instead")
    return text


def check_address(value: object) -> str:
    text = check_text(value)
    if "://" in text:
        scheme, _, rest = text.partition("://")
        host = rest.partition("/")[0].partition(":")[0]
        message = f"{quoted(text)} is not the address of a Ray cluster" + (
            ": ray:// is that of Ray's client" if scheme == "ray" else ""
        )
        raise refusal("bad-address", message, hint=f"its GCS is meant, mostly at port 6379: {host or 'host'}:6379")
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdecimal() or not 1 <= int(port[:6]) <= 65535 or not _is_host(host):
        hint = (
            "such as 10.0.0.5:6379"
            if text == "auto" or not _is_host(text)
            else f"did you mean {quoted(text + ':6379')}?"
        )
        raise refusal("bad-address", f"expected host:port of a Ray cluster, found {quoted(text)}", hint=hint)
    return text


def _is_host(text: str) -> bool:
    """A name, an IPv4 address, or an IPv6 address in brackets."""
    if text.startswith("[") and text.endswith("]"):
        return _ip_version(text[1:-1]) == 6
    return _ip_version(text) == 4 or (_HOST.fullmatch(text) is not None and re.fullmatch(r"[\d.]+", text) is None)


def _ip_version(text: str) -> int | None:
    try:
        return ipaddress.ip_address(text).version
    except ValueError:
        return None


def check_host(value: object) -> str:
    """A host as `ssh` takes it: a name, an address, or an alias of ~/.ssh/config."""
    text = check_text(value)
    user, at, host = text.rpartition("@")
    if at:
        message = f"{quoted(text)} has a user in it, and that is one for all hosts"
        raise refusal("bad-host", message, hint=f"write {host}, and ssh_user: {user} beside `hosts:`")
    name, colon, port = text.rpartition(":")
    if colon and port.isdecimal() and _is_host(name):
        message = f"{quoted(text)} has a port in it"
        raise refusal("bad-host", message, hint=f"write {name}, and `Port {port}` for it into ~/.ssh/config")
    if _is_host(text) or _ip_version(text) == 6:
        return text
    raise refusal("bad-host", f"{quoted(text)} is neither a name nor an address of a machine", hint="such as 10.0.0.5")


def check_hosts(value: object) -> tuple[str, ...]:
    """All hosts, each of them right and there once."""
    if not isinstance(value, list | tuple):
        raise wrong_type("a list")
    if not value:
        message = "expected at least one host, the first is the head"
        raise refusal("bad-host", message, hint="for example\nhosts: [10.0.0.5]")
    errors: list[InitErrorDetails] = []
    hosts: list[str] = []
    for number, item in enumerate(value):
        try:
            host = check_host(item)
            if host in hosts:
                raise refusal("bad-host", f"{quoted(host)} stands there twice", hint="delete one of the two")
            hosts.append(host)
        except PydanticCustomError as error:
            errors.append(InitErrorDetails(type=error, loc=(number,), input=item))
    if errors:
        raise ValidationError.from_exception_data("hosts", errors)
    return tuple(hosts)


def check_user(value: object) -> str:
    text = check_text(value)
    if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]*", text) is None:
        raise refusal("bad-host", f"{quoted(text)} is not the name of a user", hint="such as ssh_user: ubuntu")
    return text


def check_region(value: object, provider: str) -> str:
    text = check_text(value)
    pattern, example = _REGIONS[provider]
    if pattern.fullmatch(text):
        return text
    zone = _ZONED[provider].fullmatch(text) if provider in _ZONED else None
    if zone is not None:
        message = f"{quoted(text)} is a zone, and nodes are made in a region"
        beside = f", and network: {{zone: {text}}}" if provider == "gcp" else ""
        raise refusal("bad-region", message, hint=f"write region: {zone[1]}{beside}")
    meant = re.sub(r"[^a-z0-9]", "", text.lower()) if provider == "azure" else ""
    owner = next((name for name, (of, _) in _REGIONS.items() if name != provider and of.fullmatch(text)), None)
    looks = f", it looks like one of {owner}" if owner is not None else ""
    hint = (
        f"did you mean {quoted(meant)}?"
        if meant and pattern.fullmatch(meant) and owner is None
        else f"such as region: {example}"
    )
    raise refusal("bad-region", f"{quoted(text)} is not a region of {provider}{looks}", hint=hint)


def check_instance_type(value: object, provider: str, *, with_gpu: bool) -> str:
    text = check_text(value)
    pattern, plain, gpu = _TYPES[provider]
    example = f"such as {gpu if with_gpu else plain}"
    if pattern.fullmatch(text) is None:
        owner = next((name for name, (of, _, _) in _TYPES.items() if name != provider and of.fullmatch(text)), None)
        looks = f", it looks like one of {owner}" if owner is not None else ""
        raise refusal(
            "bad-instance-type", f"{quoted(text)} is not a type of machine of {provider}{looks}", hint=example
        )
    if provider == "aws":
        return text
    has = machine(provider, text)
    if has is None:
        message = f"what a {text} has is not known here, and Ray adds no nodes of which it does not know that"
        raise refusal("bad-instance-type", message, hint=example)
    if with_gpu and not has.gpus:
        raise refusal("bad-instance-type", f"a {text} has no GPU", hint=example)
    return text


def check_disk(value: object) -> Size:
    size = check_parsed(Size)(value)
    assert isinstance(size, Size)
    if not SMALLEST_DISK.bytes <= size.bytes <= LARGEST_DISK.bytes:
        message = f"expected a disk from {SMALLEST_DISK.text} to {LARGEST_DISK.text}, found {size.text}"
        raise refusal("bad-quantity", message, hint="such as disk: 50Gi, for the system, Ray, packages and models")
    return size


def check_pod_memory(value: object) -> Memory:
    memory = check_parsed(Memory)(value)
    assert isinstance(memory, Memory)
    if memory.bytes < SMALLEST_POD.bytes:
        message = f"expected at least {SMALLEST_POD.text}, found {memory.text}: Ray alone takes most of that"
        raise refusal("bad-quantity", message, hint="such as mem: 4Gi")
    return memory


def check_namespace(value: object) -> str:
    text = check_text(value)
    if _LABEL.fullmatch(text) is None:
        rule = "lower-case letters, digits and dashes, at most 63, no dash at either end"
        raise refusal(
            "bad-name", f"{quoted(text)} is not the name of a namespace: {rule}", hint="such as namespace: models"
        )
    return text


def check_image(value: object) -> str:
    text = check_text(value)
    if _IMAGE.fullmatch(text) is None:
        hint = "such as rayproject/ray:2.60.0-py311; it needs Ray in it"
        raise refusal("bad-image", f"{quoted(text)} is not the name of a container image", hint=hint)
    return text


def check_aws_id(value: object, field: str) -> str:
    text = check_string(value)
    pattern, example = _IDS[field]
    if pattern.fullmatch(text) is None:
        raise refusal(
            "bad-network", f"{quoted(text)} is not the id of a {field.replace('_', ' ')}", hint=f"such as {example}"
        )
    return text


def check_word(value: object) -> str:
    """A name in a cloud: no spaces."""
    text = check_text(value)
    if re.search(r"\s", text):
        raise refusal("bad-network", f"{quoted(text)} has a space in it", hint="delete it")
    return text
