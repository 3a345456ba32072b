"""What a state store does; `sqlite` for one machine, `memory` for tests, a bucket for clusters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

from cortex.errors import Problem
from cortex.ids import ApiKey, DeploymentName, ReplicaId, Revision, Version
from cortex.planning.model import Desired, WantedApi
from cortex.wire.launch import InspectReport
from cortex.wire.operator import StoredFile
from cortex.wire.reports import ExitReport


class ApiRecord(msgspec.Struct, frozen=True, kw_only=True):
    """An api as stored: what planning needs, and what only people need."""

    wanted: WantedApi
    spec: dict[str, Any]
    """The resolved configuration, as `cortex get -v` shows it."""
    inspection: InspectReport
    """Signature and handler facts of `wanted.build`."""
    refresh: int = 0
    """Counts `cortex refresh`; part of the version."""
    project: tuple[StoredFile, ...] = ()
    """What the project's folder held, so that the next deploy can name the files that changed."""
    model_files: tuple[StoredFile, ...] = ()


class DeploymentRecord(msgspec.Struct, frozen=True, kw_only=True):
    name: DeploymentName
    source: str
    """Folder the deploy came from; guards `default` against another folder."""
    updated_wall_s: float


class VersionRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One line of an api's history."""

    api: ApiKey
    version: Version
    deployed_wall_s: float
    cause: str
    """What made it, e.g. `model changed, handler.py changed`."""
    outcome: str = ""
    """`live`, `failed: …`, `replaced`, or empty while under way."""


class DeployChange(msgspec.Struct, frozen=True, kw_only=True):
    """Everything one deploy writes, in one transaction: all of it or nothing."""

    deployment: DeploymentRecord
    apis: tuple[ApiRecord, ...]
    """The complete new content of the deployment: apis absent here are removed."""
    versions: tuple[VersionRecord, ...] = ()
    """New lines of history."""


class StateStore(Protocol):
    """
    Durable state. Thread-safe; every method is one transaction.

    The contract suite `tests/contract/test_state.py` holds every implementation to this.
    """

    def desired(self, *, now_wall_s: float) -> Desired:
        """The wanted state; stored instants become ages against `now_wall_s`, never below 0."""
        ...

    def deployments(self) -> tuple[DeploymentRecord, ...]: ...

    def apis(self, deployment: DeploymentName | None = None) -> tuple[ApiRecord, ...]:
        """All apis, or one deployment's, sorted by name."""
        ...

    def api(self, key: ApiKey) -> ApiRecord | None: ...

    def commit_deploy(self, change: DeployChange) -> None:
        """
        Write a whole deploy.

        An api that exists keeps `serving`, `live_wall_s` when its revision is unchanged, and its run records;
        its `failed` mark is cleared, so that deploying the same thing again tries it again.
        """
        ...

    def delete(self, deployment: DeploymentName, api: ApiKey | None = None) -> bool:
        """Remove a deployment or one api of it. False when there was none."""
        ...

    def mark_live(self, api: ApiKey, revision: Revision, *, wall_s: float) -> None:
        """Ignored when `revision` is no longer the wanted one. Same for `mark_failed`."""
        ...

    def mark_failed(self, api: ApiKey, revision: Revision, problem: Problem, *, wall_s: float) -> None: ...

    def record_exit(
        self,
        api: ApiKey,
        revision: Revision,
        replica: ReplicaId,
        attempt: int,
        exit_report: ExitReport,
        *,
        was_ready: bool,
        wall_s: float,
    ) -> None:
        """Once for each (replica, attempt); repeats are ignored."""
        ...

    def record_ready(self, api: ApiKey, revision: Revision) -> None: ...

    def history(self, api: ApiKey) -> Sequence[VersionRecord]:
        """Newest first."""
        ...

    def take_epoch(self) -> int:
        """Become the one in charge: a number higher than anyone before got."""
        ...

    def meta(self, key: str) -> str | None: ...

    def set_meta(self, key: str, value: str) -> None: ...

    def close(self) -> None: ...
