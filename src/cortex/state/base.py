"""What is stored, and what can go wrong with it."""

from __future__ import annotations

from typing import Any

import msgspec

from cortex.errors import CortexError
from cortex.ids import ApiKey, DeploymentName, Revision, Version
from cortex.planning.model import ApiSettings, RolledBack, WantedApi
from cortex.wire.build import BuildSpec
from cortex.wire.fetch import Origin
from cortex.wire.launch import InspectReport
from cortex.wire.operator import Receipt, StoredFile


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
    withdrawn_wall_s: float | None = None
    """When its api went back from it to an older one; None: it did not, or was taken there again since."""


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
    """`live`, `failed: …`, `replaced`, `rolled back`, `deleted`, or empty while under way."""
    revision: Revision | None = None
    """With which it was first deployed; None in lines that were written before this was kept."""
    deleted_wall_s: float | None = None
    """When its api was deleted."""
    receipt: Receipt | None = None
    """Of its change-over, if that was proved."""


class DeployedApi(msgspec.Struct, frozen=True, kw_only=True):
    """What a deploy writes of one api. Bounds, but no number of replicas: that is decided while it serves."""

    settings: ApiSettings
    version: VersionRecord
    first_replicas: int = 1
    """How many an api has that is new."""
    cause: str = ""
    """What made its version a new one; empty: it is the wanted one already."""
    rolled_back: RolledBack | None = None
    """As the deploy found it. Another one by now, and the api is left as it is: it went back meanwhile."""
    in_proof: bool = False
    """Its change-over is being proved."""
    stays: bool = False
    """It stays rolled back: this is the version that it went back to, or that one refreshed."""


class RollbackChange(msgspec.Struct, frozen=True, kw_only=True):
    """What going back to a version writes."""

    version: VersionRecord
    """As it shall run: with what leads to clouds today."""
    instead_of: Revision
    """What was wanted when this was decided."""
    cause: str
    force: bool = False
    """A gap is accepted when there is no room for one replica more."""
    reason: str = ""
    """Why, where nobody asked for it."""
    wall_s: float


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


class StateInDoubt(StateError):
    """It is not known whether a change was written; that is found out before anything else is."""

    reference = "state-in-doubt"

    def __init__(self, error: CortexError) -> None:
        super().__init__(
            "state",
            f"it is not known whether the change was written: {error}",
            hint=error.hint or "look again in a while; what runs goes on serving",
        )


class NotLeader(StateError):
    """Another control plane leads the cluster by now: this one changes nothing any more, and ends."""

    reference = "not-the-leader"

    def __init__(self, place: str, *, epoch: int, by: int | None) -> None:
        self.epoch = epoch
        self.by = by
        """The later epoch; None: this one gave up, since it could not begin another one."""
        who = f"another one leads since epoch {by}" if by is not None else "it could not begin another epoch"
        super().__init__(
            place,
            f"this control plane, of epoch {epoch}, leads no more: {who}; nothing was changed",
            hint="repeat the command: it is answered by the one that leads",
        )


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
