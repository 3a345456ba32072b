"""What a replica executes and with which resources: everything by digest, nothing by path."""

from __future__ import annotations

from typing import Literal

import msgspec

from cortex.ids import ApiKey, Revision, Version
from cortex.wire.batching import Mode

ModelFormat = Literal["onnx", "tensorflow"]
"""What a model's files are."""
Runtime = Literal["onnx", "tensorflow"]
"""What executes a build: names its launcher, what users' packages have to hold, and the backend in its replicas."""


class Resources(msgspec.Struct, frozen=True, kw_only=True):
    """Room that one replica asks for."""

    cpu_millis: int = 200
    mem_bytes: int | None = None
    """None: no request; counts as the most that this version was seen to use."""
    gpus: int = 0


def mem_text(mem_bytes: int) -> str:
    """`512Mi`; rounded up, so that what is asked never looks smaller than it is."""
    return f"{-(-mem_bytes // 2**20)}Mi"


class ModelArtifact(msgspec.Struct, frozen=True, kw_only=True):
    """A model in the artifact store."""

    format: ModelFormat
    tree: str
    """Digest of the stored folder that holds the model's files under their own names."""
    entry: str
    """Path inside that folder: `model.onnx`, or `.` for a SavedModel folder."""
    signature_key: str | None = None
    source: str = ""
    """Where it came from, for people; never used to load it, secrets masked."""


class ModelKey(msgspec.Struct, frozen=True):
    """Which model it is, wherever it came from: what is known of its rows is known by this."""

    format: ModelFormat
    tree: str
    entry: str
    signature_key: str | None = None
    gpu: bool = False
    """A SavedModel on a GPU: TensorFlow may take a graph or functions there that the model brings for it alone."""

    def may_be(self, other: ModelKey) -> bool:
        """Whether both may be the same function: without a key, it is one of the model's signatures."""
        same_file = (self.format, self.tree, self.entry) == (other.format, other.tree, other.entry)
        return same_file and (
            self.signature_key == other.signature_key or None in (self.signature_key, other.signature_key)
        )


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """A request that should work. Its body is in the artifact store: `artifacts.samples`."""

    tree: str
    """Digest of the stored folder that holds the body and nothing else."""
    content_type: str = "application/json"
    gate: bool = False
    """True: a replica that does not answer it with 2xx never becomes ready. False: a failure only warns."""
    timeout_s: float | None = None
    """The api's `timeout`, which holds for it as for any request; None: from before it was sent along."""


class TrackerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What is counted of each prediction."""

    model_type: Literal["classification", "regression"]
    key: str | None = None


class SecretPin(msgspec.Struct, frozen=True, kw_only=True):
    """Which value of which secret a build gets. Nothing here follows from the value itself."""

    name: str
    generation: str
    """Drawn anew each time that the secret is set."""


class BuildSpec(msgspec.Struct, frozen=True, kw_only=True):
    """
    One immutable build of an api plus what else rolls its replicas.

    `version` covers runtime, model, project, handler, signature key, tracker, batching, env, names of secrets, packages
    and the refresh counter; which value a secret has is pinned when the version is made.
    `revision` covers `version`, resources, concurrency and what leads to clouds. The sample is in neither: it only
    guards the start.
    """

    api: ApiKey
    version: Version
    revision: Revision
    runtime: Runtime
    model: ModelArtifact | None = None
    """cortex.yaml has one for each api."""
    project: str | None = None
    """Digest of the project's stored folder; None when the api has no handler."""
    handler: str | None = None
    """Path of the handler's file inside the project."""
    tracker: TrackerConfig | None = None
    env: dict[str, str] = {}
    secrets: dict[str, SecretPin] = {}
    """Further variables, by name; the node looks their values up when it starts a process."""
    cloud: SecretPin | None = None
    """Which variables that lead to clouds its handler gets: those that the last deploy of the api handed over."""
    packages: str | None = msgspec.field(default=None, name="environment")
    """Digest of the lock of users' packages; None: what is installed with Cortex serves."""
    batching: bool = True
    """`batching` in cortex.yaml is not `off`."""
    trust_rows: bool = False
    """It is `on`: that no row depends on others is the user's word."""
    concurrency: int | None = None
    """Requests inside handler code at once; None: 1 for sync handlers, 64 for async."""
    resources: Resources = Resources()
    sample: Sample | None = None

    @property
    def trees(self) -> tuple[str, ...]:
        """Digests of all that it needs of the artifact store: model, project, lock of its packages, sample."""
        model = self.model.tree if self.model is not None else None
        sample = self.sample.tree if self.sample is not None else None
        return tuple(tree for tree in (model, self.project, self.packages, sample) if tree is not None)

    @property
    def model_key(self) -> ModelKey | None:
        """Which model it runs, if it has one."""
        model = self.model
        if model is None:
            return None
        gpu = model.format == "tensorflow" and self.resources.gpus > 0
        return ModelKey(model.format, model.tree, model.entry, model.signature_key, gpu)

    @property
    def batching_mode(self) -> Mode:
        """`batching` as cortex.yaml has it."""
        return "off" if not self.batching else "on" if self.trust_rows else "auto"
