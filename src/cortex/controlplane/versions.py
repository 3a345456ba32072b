"""What makes a version, and what makes new replicas of the same version. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import msgspec

from cortex.ids import Revision, Version, short
from cortex.state.base import ApiRecord, VersionLine, VersionRecord
from cortex.wire.batching import Mode
from cortex.wire.build import BuildSpec, ModelArtifact, Resources, Runtime, SecretPin, TrackerConfig
from cortex.wire.operator import CURRENT


def version_of(
    *,
    runtime: Runtime,
    model: ModelArtifact | None,
    project: str | None,
    handler: str | None,
    tracker: TrackerConfig | None,
    env: Mapping[str, str],
    batching: Mode,
    refresh: int,
    secrets: Mapping[str, str] | None = None,
    packages: str | None = None,
) -> Version:
    """
    The digest of everything that makes one immutable build of an api.

    Where the model came from is not part of it: the same bytes are the same version.

    Args:
        secrets: names of secrets by the variable that gets the value; nothing of their values is part of a version.
        packages: digest of the lock of users' packages.
    """
    # What was not asked for leaves no trace, so that versions from before it could be asked for stay what they are.
    asked_for = {
        "secrets": sorted((secrets or {}).items()),
        "environment": packages,
        "runtime": None if model is not None and runtime == model.format else runtime,
    }
    return Version(
        _digest(
            {
                **{name: value for name, value in asked_for.items() if value},
                "model": None if model is None else [model.format, model.tree, model.entry, model.signature_key],
                "project": project,
                "handler": handler,
                "tracker": None if tracker is None else [tracker.model_type, tracker.key],
                "env": sorted(env.items()),
                # As it was when it could only be auto or off.
                "batching": batching if batching == "on" else batching == "auto",
                "refresh": refresh,
            }
        )
    )


def revision_of(
    version: Version, resources: Resources, concurrency: int | None, cloud: SecretPin | None = None
) -> Revision:
    """The digest of a version and of what else needs new processes."""
    facts: dict[str, object] = {
        "version": version,
        "resources": [resources.cpu_millis, resources.mem_bytes, resources.gpus],
        "concurrency": concurrency,
    }
    if cloud is not None:
        facts["cloud"] = cloud.generation
    return Revision(_digest(facts))


def revisions_of_version(
    record: ApiRecord, kept: Iterable[VersionRecord], history: Iterable[VersionLine], version: str
) -> set[str]:
    """
    The revisions of a version of an api, 8 digits each: that of its first deploy, and those that are kept.

    Args:
        kept: of all apis.
        version: its first digits, or `CURRENT`: what is wanted, and what serves until that is live.
    """
    if version == CURRENT:
        return {short(build.revision) for build in record.wanted.builds}
    builds = (one.build for one in kept if one.build.api == record.wanted.api)
    found = {build.revision for build in builds if build.version.startswith(version)}
    found |= {line.revision for line in history if line.revision is not None and line.version.startswith(version)}
    return {short(revision) for revision in found}


def trees_of(build: BuildSpec) -> tuple[str, ...]:
    """Digests of everything in the artifact store that a build needs: model, project, lock of its packages, sample."""
    model = build.model.tree if build.model is not None else None
    sample = build.sample.tree if build.sample is not None else None
    return tuple(tree for tree in (model, build.project, build.packages, sample) if tree is not None)


def _digest(facts: object) -> str:
    return hashlib.sha256(msgspec.json.encode(facts, order="deterministic")).hexdigest()
