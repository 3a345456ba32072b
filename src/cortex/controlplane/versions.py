"""What makes a version, and what makes new replicas of the same version. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from cortex.ids import Revision, Version, short
from cortex.state.base import ApiRecord, VersionLine, VersionRecord
from cortex.wire.build import BuildSpec
from cortex.wire.operator import CURRENT

SETTINGS = ("timeout", "max_body", "retry", "rollout")
SETTINGS_OF_COMPUTE = (
    "min_replicas",
    "max_replicas",
    "init_replicas",
    "target_cpu_utilization",
    "target_in_flight",
    "downscale_window",
    "idle_timeout",
)
"""Fields that are no part of a version or of how its replicas run: of an api, and of its `compute`."""


def version_of(build: BuildSpec, *, secrets: Mapping[str, str], refresh: int) -> Version:
    """
    The digest of everything that makes one immutable build of an api.

    Where the model came from is not part of it: the same bytes are the same version.

    Args:
        secrets: names of secrets by the variable that gets the value; nothing of their values is part of a version.
    """
    model, tracker, batching = build.model, build.tracker, build.batching_mode
    # What was not asked for leaves no trace, so that versions from before it could be asked for stay what they are.
    asked_for = {
        "secrets": sorted(secrets.items()),
        "environment": build.packages,
        "runtime": None if model is not None and build.runtime == model.format else build.runtime,
    }
    return Version(
        _digest(
            {
                **{name: value for name, value in asked_for.items() if value},
                "model": None if model is None else [model.format, model.tree, model.entry, model.signature_key],
                "project": build.project,
                "handler": build.handler,
                "tracker": None if tracker is None else [tracker.model_type, tracker.key],
                "env": sorted(build.env.items()),
                # As it was when it could only be auto or off.
                "batching": batching if batching == "on" else batching == "auto",
                "refresh": refresh,
            }
        )
    )


def revision_of(build: BuildSpec) -> Revision:
    """The digest of a build's version and of what else needs new processes."""
    resources = build.resources
    facts: dict[str, object] = {
        "version": build.version,
        "resources": [resources.cpu_millis, resources.mem_bytes, resources.gpus],
        "concurrency": build.concurrency,
    }
    if build.cloud is not None:
        facts["cloud"] = build.cloud.generation
    return Revision(_digest(facts))


def with_settings_of(spec: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """A resolved configuration with the settings of another one; empty, and nothing is known of it, it stays so."""
    if not spec or not now:
        return dict(spec)
    compute = {**spec.get("compute", {}), **_of_these(SETTINGS_OF_COMPUTE, now.get("compute", {}))}
    return {**spec, **_of_these(SETTINGS, now), "compute": compute}


def is_same_content(one: BuildSpec, other: BuildSpec) -> bool:
    """Whether two builds come of the same files and the same `compute`; what leads to clouds says nothing of that."""
    return (one.version, one.resources, one.concurrency) == (other.version, other.resources, other.concurrency)


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


def _of_these(names: Iterable[str], block: Mapping[str, Any]) -> dict[str, Any]:
    return {name: block[name] for name in names if name in block}


def _digest(facts: object) -> str:
    return hashlib.sha256(msgspec.json.encode(facts, order="deterministic")).hexdigest()
