"""
What older ones of us stored, as rows of today. Pure: decoded JSON in and out, since the types of then are gone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

_SHARED = (
    "api",
    "min_replicas",
    "max_replicas",
    "path",
    "timeout_s",
    "max_body_bytes",
    "retry",
    "force",
    "deployed_wall_s",
    "serving_was_live",
    "failed",
    "live_wall_s",
)
_OF_VERSION = ("spec", "inspection", "refresh", "project", "model_files", "model_note", "origin", "packages")


def with_target(row: dict[str, Any], versions: Mapping[str, bytes]) -> dict[str, Any]:
    """
    The row of an api with the target that its wanted version's spec names, if it does.

    Args:
        versions: all rows, by key.
    """
    version = msgspec.json.decode(versions[f"{row['api']}@{row['wanted']}"])
    target = ((version.get("spec") or {}).get("compute") or {}).get("target_cpu_utilization")
    return row if target is None else {**row, "target_cpu_utilization": target}


def rows_of(record: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """
    The rows that come of an api that held two whole builds: kind, key and record of each.

    Of the build that serves while another is wanted only the build itself was known.
    """
    wanted = record["wanted"]
    api, build, serving = wanted["api"], wanted["build"], wanted.get("serving")
    replicas = wanted.get("replicas", 1)
    row = {name: wanted[name] for name in _SHARED if name in wanted}
    row |= {"wanted": build["revision"], "rollout_replicas": replicas}
    versions = {build["revision"]: {"build": build, **{name: record[name] for name in _OF_VERSION if name in record}}}
    if serving is not None:
        row["serving"] = serving["revision"]
        of_same_version = versions[build["revision"]] if serving["version"] == build["version"] else {}
        versions.setdefault(serving["revision"], {**of_same_version, "build": serving})
        if wanted.get("serving_was_live"):
            versions[serving["revision"]]["turn"] = 1
    yield "apis", api, row
    yield "scale", api, {"replicas": replicas, "since_wall_s": wanted.get("deployed_wall_s", 0.0)}
    for revision, version in versions.items():
        yield "versions", f"{api}@{revision}", version
