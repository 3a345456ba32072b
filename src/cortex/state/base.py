"""What a state store does; `sqlite` for one machine, `memory` for tests, a bucket for clusters."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Protocol

import msgspec

from cortex.errors import CortexError, Problem
from cortex.ids import ApiKey, DeploymentName, ReplicaId, Revision, Version
from cortex.planning.actions import RecordExit
from cortex.planning.batching import BatchingRecord, BatchingStop
from cortex.planning.model import ApiSettings, Desired, WantedApi
from cortex.wire.batching import BatchingVerdict
from cortex.wire.build import BuildSpec, ModelKey
from cortex.wire.fetch import Origin
from cortex.wire.launch import InspectReport
from cortex.wire.operator import StoredFile


class PackagesRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What the packages of an api were resolved to."""

    asked: str
    """Digest of what was asked: the same question keeps its answer until somebody refreshes."""
    lock: str = msgspec.field(name="environment")
    """Digest of the lock."""
    versions: dict[str, str]
    """By name, for people: a version, or the URL of an archive."""


class VersionRecord(msgspec.Struct, frozen=True, kw_only=True):
    """
    What a revision of an api was made of: everything needed to start it, also later on. One stored row.

    It is there as long as the revision may be started: see `StateStore.versions`. What it refers to, in the artifact
    store and among secrets, is kept as long.
    """

    build: BuildSpec
    """With the sample, the resources and the concurrency that it last ran with."""
    spec: dict[str, Any] = {}
    """The resolved configuration, as `cortex get -v` shows it."""
    inspection: InspectReport = InspectReport()
    """Signature and handler facts of `build`."""
    refresh: int = 0
    """Counts `cortex refresh`; part of the version."""
    project: tuple[StoredFile, ...] = ()
    """What the project's folder held, so that the next deploy can name the files that changed."""
    model_files: tuple[StoredFile, ...] = ()
    model_note: str = ""
    """What was chosen among several files, such as which version folder."""
    origin: Origin | None = None
    """What the model was where it was fetched from; None for one of this machine."""
    packages: PackagesRecord | None = None
    """None: nothing is asked for, and what is installed with Cortex serves."""
    turn: int = 0
    """Counts up each time that a revision of the api goes live; 0: it never did."""


class ApiRecord(msgspec.Struct, frozen=True, kw_only=True):
    """An api as read: what planning needs of it, and what its wanted version was made of."""

    wanted: WantedApi
    version: VersionRecord
    """Of `wanted.build`."""


class DeploymentRecord(msgspec.Struct, frozen=True, kw_only=True):
    name: DeploymentName
    source: str
    """Folder the deploy came from; guards its apis against another folder."""
    updated_wall_s: float


class VersionLine(msgspec.Struct, frozen=True, kw_only=True):
    """One line of an api's history: text, which outlives what it tells of."""

    api: ApiKey
    version: Version
    deployed_wall_s: float
    cause: str
    """What made it, e.g. `model changed, handler.py changed`."""
    outcome: str = ""
    """`live`, `failed: …`, `replaced`, `deleted`, or empty while under way."""
    revision: Revision | None = None
    """With which it was first deployed; None in lines that were written before this was kept."""
    deleted_wall_s: float | None = None
    """When its api was deleted."""


class DeployedApi(msgspec.Struct, frozen=True, kw_only=True):
    """What a deploy writes of one api. Bounds, but no number of replicas: that is decided while it serves."""

    settings: ApiSettings
    version: VersionRecord
    first_replicas: int = 1
    """How many an api has that is new."""
    cause: str = ""
    """What made its version a new one; empty: it is the wanted one already."""


class DeployChange(msgspec.Struct, frozen=True, kw_only=True):
    """Everything one deploy writes, in one transaction: all of it or nothing."""

    deployment: DeploymentRecord
    apis: tuple[DeployedApi, ...]
    """The complete new content of the deployment: apis absent here are removed."""
    wall_s: float


class StateError(CortexError):
    """The stored state cannot be used. What runs goes on running."""

    reference = "state-unusable"

    def __init__(self, place: str, reason: str, *, hint: str = "") -> None:
        self.place = place
        self.reason = reason
        self.hint = hint
        super().__init__(f"{place}: {reason}")


class StateCorrupt(StateError):
    """What is stored cannot be read back; names the file and what is wrong with it."""

    reference = "state-corrupt"


class StateFull(StateError):
    """There is no room to write; nothing of the change was written."""

    reference = "disk-full"


class StateBusy(StateError):
    """Someone else holds the state for longer than we wait; nothing of the change was written."""

    reference = "state-busy"


class StateTooNew(StateError):
    """A newer Cortex wrote this state: this one would misread it."""

    reference = "state-too-new"

    def __init__(self, place: str, *, found: int, known: int) -> None:
        self.found = found
        self.known = known
        super().__init__(
            place,
            f"its schema is version {found}, this Cortex knows up to {known}",
            hint="install the Cortex that wrote it, or a newer one",
        )


class StateStore(Protocol):
    """
    Durable state. Thread-safe; every method is one transaction, and raises StateError when it cannot be made.

    The contract suite `tests/contract/test_state.py` holds every implementation to this.
    """

    @property
    def revision(self) -> int:
        """Another number after each change of what `desired` answers; saves loading it again."""
        ...

    def desired(self, *, now_wall_s: float) -> Desired:
        """The wanted state; stored instants become ages against `now_wall_s`, never below 0."""
        ...

    def rebase(self, *, now_wall_s: float) -> None:
        """
        Let stored instants that lie in the future be now: the wall clock was set back while nobody looked.

        Called once at our start, so that ages count from there instead of staying 0 until the clock has caught up.
        """
        ...

    def deployments(self) -> tuple[DeploymentRecord, ...]:
        """Sorted by name."""
        ...

    def apis(self, deployment: DeploymentName | None = None) -> tuple[ApiRecord, ...]:
        """All apis, or one deployment's, sorted by name."""
        ...

    def api(self, key: ApiKey) -> ApiRecord | None: ...

    def commit_deploy(self, change: DeployChange) -> None:
        """
        Write a whole deploy; it survives a power failure once this returns.

        An api that exists keeps what serves, its number of replicas as far as the bounds allow it, whether its wanted
        revision is live when that is unchanged, and its run records; its `failed` mark is cleared and its revision's
        failed starts are forgotten, so that deploying the same thing again tries it again.
        """
        ...

    def delete(self, deployment: DeploymentName, api: ApiKey | None = None, *, wall_s: float) -> bool:
        """
        Remove a deployment or one api of it, with its versions and all that is remembered of it. False when there was
        none. The text of its history stays, see `forget_deleted`.
        """
        ...

    def set_scale(self, api: ApiKey, replicas: int, *, reason: str, wall_s: float, asleep: bool = False) -> None:
        """How many replicas from now on, within the api's bounds, and why. Ignored when the api is gone."""
        ...

    def mark_serving(self, api: ApiKey, revision: Revision) -> None:
        """
        `revision` carries the api alone, not yet at full size: a failing later version goes back to it.

        Ignored when `revision` is no longer the wanted one. Same for `mark_live` and `mark_failed`.
        """
        ...

    def mark_live(self, api: ApiKey, revision: Revision, *, wall_s: float) -> None:
        """`revision` serves at full size: it becomes `serving`, and a failure that was noted is over."""
        ...

    def mark_failed(self, api: ApiKey, revision: Revision, problem: Problem, *, wall_s: float) -> None: ...

    def record_exit(self, ended: RecordExit, *, wall_s: float) -> None:
        """Once for each (replica, attempt); repeats, and exits of apis that are gone, are ignored."""
        ...

    def record_ready(self, api: ApiKey, revision: Revision, replica: ReplicaId) -> None:
        """This replica's failed starts count from zero again."""
        ...

    def batching(self) -> tuple[BatchingRecord, ...]:
        """What is known of models' rows, by any rules: what `desired` holds of it."""
        ...

    def record_verdict(self, model: ModelKey, verdict: BatchingVerdict, *, place: str) -> None:
        """
        Keep what an inspection found out, by the rules that it was found out with; see `BatchingRecord.with_verdict`.

        Nothing of it is part of an api: better rules make no new versions.
        """
        ...

    def record_stop(self, model: ModelKey, stop: BatchingStop, *, rules: int) -> None:
        """
        A replica saw rows disagree. Once for each (replica, start); survives a power failure once this returns.

        Also of a model that nothing else is known of.
        """
        ...

    def prune_batching(self, trees: Collection[str]) -> None:
        """
        Forget what is known of models that lie in none of these stored folders.

        Disagreements stay for as long as there is the api that saw them: they are counted, and counts never go down.
        """
        ...

    def versions(self) -> tuple[VersionRecord, ...]:
        """
        Everything that may be started: of each api what is wanted, what serves, and the last ten versions that were
        live, each as it last was. Sorted by api, those that were live last in front.
        """
        ...

    def history(self, api: ApiKey) -> Sequence[VersionLine]:
        """Newest first; also of an api that was deleted, and of one of that name before it was."""
        ...

    def forget_deleted(self, *, now_wall_s: float) -> None:
        """Forget the history of what was deleted 14 days ago or earlier."""
        ...

    def take_epoch(self) -> int:
        """Become the one in charge: a number higher than anyone before got."""
        ...

    def meta(self, key: str) -> str | None: ...

    def set_meta(self, key: str, value: str) -> None: ...

    def close(self) -> None: ...
