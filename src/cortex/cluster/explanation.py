"""What pydantic found wrong with a cluster.yaml, in its words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from cortex.cluster.models import PROVIDERS, ClusterSpec
from cortex.cluster.values import EXAMPLES as EXAMPLES_OF
from cortex.errors import Problem
from cortex.spec.finding import Finding, Path, findings
from cortex.spec.problems import nearest, one_of, quoted

_SHOWN_CHARACTERS = 60
EXAMPLES = {
    "name": "name: prod",
    "provider": "provider: aws",
    "nodes_min": "nodes_min: 1",
    "nodes_max": "nodes_max: 5",
    "storage": "storage: s3://my-bucket/cortex",
    "door": "door:\n  port: 8880",
    "port": "port: 8880",
    "tls": "tls:\n  cert: door.pem\n  key: door.key",
    "cert": "cert: door.pem",
    "key": "key: door.key",
    "python": "python: 3.11",
    "index_url": "index_url: https://pypi.example.com/simple",
    "address": "address: 10.0.0.5:6379",
    "hosts": "hosts: [10.0.0.5, 10.0.0.6]",
    "ssh_user": "ssh_user: ubuntu",
    "ssh_key": "ssh_key: ~/.ssh/id_ed25519",
    "region": "region: eu-central-1",
    "instance_type": "instance_type: m5.xlarge",
    "gpu_instance_type": "gpu_instance_type: g4dn.xlarge",
    "spot": "spot: true",
    "disk": "disk: 50Gi",
    "network": "network: {}",
    "subnet": "subnet: subnet-0123456789abcdef0",
    "security_group": "security_group: sg-0123456789abcdef0",
    "key_file": "key_file: ~/.ssh/prod.pem",
    "project": "project: my-project",
    "zone": "zone: europe-west4-a",
    "subscription": "subscription: 00000000-0000-0000-0000-000000000000",
    "namespace": "namespace: default",
    "context": "context: prod",
    "node": "node:\n  cpu: 4\n  mem: 8Gi",
    "cpu": "cpu: 4",
    "mem": "mem: 8Gi",
    "gpu": "gpu: 1",
    "image": "image: rayproject/ray:2.60.0-py311",
}
"""One line, or a few, for every field."""
_OF_OTHERS = {
    "min_nodes": "nodes_min",
    "max_nodes": "nodes_max",
    "min_workers": "nodes_min",
    "max_workers": "nodes_max",
    "min_instances": "nodes_min",
    "max_instances": "nodes_max",
    "cluster_name": "name",
    "bucket": "storage",
    "machines": "hosts",
    "ssh_private_key": "ssh_key",
    "availability_zone": "region",
    "location": "region",
    "spot_instances": "spot",
}
"""What fields are called in files of others, where one word does not tell."""


def blocks(model: type[BaseModel]) -> Mapping[str, type[BaseModel]]:
    """The blocks inside a model, by field."""
    found = {}
    for name, field in model.model_fields.items():
        inner = _model_of(field.annotation)
        if inner is not None:
            found[name] = inner
    return found


def _model_of(annotation: Any) -> type[BaseModel] | None:
    parts = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    return next((part for part in parts if isinstance(part, type) and issubclass(part, BaseModel)), None)


def explain(
    error: ValidationError,
    document: object,
    *,
    model: type[ClusterSpec],
    written: Callable[[Path], str | None] = lambda path: None,
) -> tuple[Problem, ...]:
    """
    Return each error as a problem, with path, subject and hint but without a line.

    Args:
        document: the plain data of the file.
        model: what it was validated as; `ClusterSpec` itself where the provider is not known.
        written: the spelling of the scalar at a path.
    """

    class Of(_Finding):
        MODEL = model

    return findings(error, Of, document, path_of=lambda place: place, written=written)


def subject(path: Sequence[str | int], document: object) -> str:
    """A path in words: `cluster "prod": door: port`."""
    name = document.get("name") if isinstance(document, Mapping) else None
    head = f"cluster {quoted(name)}" if isinstance(name, str) and 0 < len(name) <= _SHOWN_CHARACTERS else "cluster"
    return ": ".join([head, *(f"index {part}" if isinstance(part, int) else part for part in path)])


class _Finding(Finding):
    """One error about a cluster.yaml."""

    EXAMPLES = EXAMPLES
    NAMED = "cluster"
    MODEL: type[ClusterSpec]

    def fields(self) -> Sequence[str]:
        return tuple(self._block().model_fields)

    def owner(self) -> str:
        if len(self.path) > 1:
            return str(self.path[-2])
        return f"a cluster of provider {self.MODEL.PROVIDER}" if self.MODEL.PROVIDER else "a cluster"

    def subject(self) -> str:
        return subject(self.path, self.document)

    def example(self) -> str:
        if self.field == "key" and self.path[-2:-1] == ("network",):
            return "for example, key: my-key-pair"
        of_provider = EXAMPLES_OF.get((self.MODEL.PROVIDER, self.field))
        if of_provider is not None and len(self.path) == 1:
            return f"for example, {self.field}: {of_provider}"
        return super().example()

    def known_otherwise(self) -> tuple[str, str] | None:
        if len(self.path) == 1:
            return self._at_the_top()
        if self.field in self.MODEL.model_fields:
            return "misplaced-field", f"`{self.field}` belongs to the cluster itself, beside `{self.path[0]}:`"
        if self.path[0] == "network":
            return self._of_another_network()
        return None

    def meant_elsewhere(self) -> str | None:
        if len(self.path) > 1:
            return None
        meant = nearest(self.field, self._of_others())
        return f'did you mean "{meant}"? {self._whose(meant)}' if meant is not None else None

    def _of_others(self) -> Sequence[str]:
        names = (name for model in PROVIDERS.values() for name in model.model_fields)
        return tuple(dict.fromkeys(name for name in names if name not in self.fields()))

    def _block(self) -> type[BaseModel]:
        block: type[BaseModel] = self.MODEL
        for part in self.path[:-1]:
            inner = blocks(block).get(part) if isinstance(part, str) else None
            if inner is None:
                break
            block = inner
        return block

    def _at_the_top(self) -> tuple[str, str] | None:
        if any(self.field in model.model_fields for model in PROVIDERS.values()):
            return "other-provider", f"{self._whose(self.field)}: delete it, or say another provider"
        if self.field in _OF_OTHERS:
            meant = _OF_OTHERS[self.field]
            return "unknown-field", f'here it is "{meant}"' if meant in self.fields() else self._whose(meant)
        if self.compares and nearest(self.field, self.fields(), by_parts=False) is None:
            other = nearest(self.field, self._of_others(), by_parts=False)
            if other is not None:
                return "unknown-field", f'did you mean "{other}"? {self._whose(other)}'
        for name, inner in blocks(self.MODEL).items():
            deeper = next(
                (f"{name}: {part}" for part, has in blocks(inner).items() if self.field in has.model_fields), name
            )
            if self.field in inner.model_fields or deeper != name:
                return "misplaced-field", f"`{self.field}` belongs under `{deeper}:`"
        return None

    def _whose(self, field: str) -> str:
        owners = [name for name, model in PROVIDERS.items() if field in model.model_fields]
        if len(owners) == len(PROVIDERS):
            return f"`{field}` is a field of all clusters"
        return f"`{field}` is for provider {one_of(owners)}".replace('"', "")

    def _of_another_network(self) -> tuple[str, str] | None:
        owners = [
            name
            for name, model in PROVIDERS.items()
            if (network := blocks(model).get("network")) is not None and self.field in network.model_fields
        ]
        if owners and self.MODEL.PROVIDER not in owners:
            return "other-provider", f"in `network:` it is for provider {one_of(owners)}: delete it".replace('"', "")
        return None
