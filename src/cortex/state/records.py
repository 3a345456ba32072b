"""
The records of a state store, and what each call changes in them.

Everything is small enough to be kept in memory, so readers never wait for a disk or a network. A call works out which
records change, hands all of them to `_persist` as one transaction, and only then changes what readers see.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import msgspec

from cortex.errors import Problem
from cortex.ids import ApiKey, DeploymentName, NodeId, ReplicaId, Revision, Version, split_api_key
from cortex.planning import backoff, crashes, scale
from cortex.planning.actions import RecordExit
from cortex.planning.autoscale import ScalingDecision
from cortex.planning.batching import BatchingRecord, BatchingStop
from cortex.planning.crashes import Row
from cortex.planning.model import (
    ApiProgress,
    ApiSettings,
    Desired,
    RolledBack,
    RunRecord,
    Scale,
    SlotRecord,
    WantedApi,
)
from cortex.state.base import (
    ApiRecord,
    DeployChange,
    DeployedApi,
    DeploymentRecord,
    RollbackChange,
    VersionLine,
    VersionRecord,
)
from cortex.wire.batching import BatchingVerdict
from cortex.wire.build import BuildSpec, ModelKey
from cortex.wire.operator import Receipt
from cortex.wire.reports import ExitReport

HISTORY_LINES = 100
"""Lines of history kept for each api."""
DELETED_KEPT_S = 14 * 86400.0
"""For so long the history of a deleted api is there, as text."""
KEPT_VERSIONS = 10
"""Of each api, that were live: it can go back to them."""

_LEAVING = "leaving nodes"

Kind = Literal["deployments", "apis", "versions", "scale", "runs", "history", "meta", "batching"]
KINDS: tuple[Kind, ...] = ("deployments", "apis", "versions", "scale", "runs", "history", "meta", "batching")


class ApiRow(ApiProgress, frozen=True, kw_only=True):
    """An api as stored: what may change of it, and which of its versions are which."""

    wanted: Revision
    serving: Revision | None = None
    refreshes: int = 0
    """The most that any version of it was refreshed: a count that was given once makes no other version."""

    @property
    def in_use(self) -> set[Revision]:
        """What may be started, and what deploys are compared with."""
        passed = self.rolled_back.passed if self.rolled_back is not None else ()
        return {self.wanted, *passed, *(one for one in (self.serving, self.previous) if one is not None)}


class StoredSlot(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A `SlotRecord` with an instant instead of an age."""

    attempt: int = 0
    failed_starts: int = 0
    crash_pressure: float = 0.0
    last_exit: ExitReport | None = None
    last_exit_wall_s: float = 0.0

    def at(self, now_wall_s: float) -> SlotRecord:
        """The record as of now; an instant in the future counts as now."""
        return SlotRecord(
            attempt=self.attempt,
            failed_starts=self.failed_starts,
            crash_pressure=self.crash_pressure,
            last_exit=self.last_exit,
            last_exit_age_s=max(0.0, now_wall_s - self.last_exit_wall_s) if self.last_exit else 0.0,
        )

    @classmethod
    def of(cls, slot: SlotRecord, now_wall_s: float) -> StoredSlot:
        return cls(
            attempt=slot.attempt,
            failed_starts=slot.failed_starts,
            crash_pressure=slot.crash_pressure,
            last_exit=slot.last_exit,
            last_exit_wall_s=now_wall_s - slot.last_exit_age_s if slot.last_exit else 0.0,
        )


class StoredRun(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A `RunRecord` with instants instead of ages."""

    api: ApiKey
    revision: Revision
    slots: dict[ReplicaId, StoredSlot] = {}
    crashes: int = 0
    last_exit: ExitReport | None = None
    last_exit_wall_s: float = 0.0
    row: Row = Row()
    """As of the last exit."""

    def at(self, now_wall_s: float) -> RunRecord:
        """The record as of now."""
        return RunRecord(
            api=self.api,
            revision=self.revision,
            slots={replica: slot.at(now_wall_s) for replica, slot in self.slots.items()},
            crashes=self.crashes,
            last_exit=self.last_exit,
            last_exit_age_s=max(0.0, now_wall_s - self.last_exit_wall_s) if self.last_exit else 0.0,
            row=crashes.aged(self.row, max(0.0, now_wall_s - self.last_exit_wall_s)),
        )

    @classmethod
    def of(cls, run: RunRecord, now_wall_s: float) -> StoredRun:
        return cls(
            api=run.api,
            revision=run.revision,
            slots={replica: StoredSlot.of(slot, now_wall_s) for replica, slot in run.slots.items()},
            crashes=run.crashes,
            last_exit=run.last_exit,
            last_exit_wall_s=now_wall_s - run.last_exit_age_s if run.last_exit else 0.0,
            row=crashes.aged(run.row, -run.last_exit_age_s),
        )


class Write(msgspec.Struct, frozen=True):
    """One record as it shall be; None removes it."""

    kind: Kind
    key: str
    record: Any


class _Gathered:
    """What is to become one transaction."""

    def __init__(self) -> None:
        self.before: dict[tuple[Kind, str], Write] = {}
        """Each record that changes, as it is kept."""
        self.durable = False

    def take(self, changed: Iterable[Write], content: Mapping[Kind, Mapping[str, Any]], *, durable: bool) -> None:
        for kind, key in ((write.kind, write.key) for write in changed):
            self.before.setdefault((kind, key), Write(kind, key, content[kind].get(key)))
        self.durable |= durable


class StateStore:
    """
    Durable state. Thread-safe; every method is one transaction, and raises StateError when it cannot be made.

    This one keeps it for as long as the process lives; `sqlite` overrides `_persist`, as a bucket for clusters would.

    Args:
        content: what is stored already, by kind and key.
    """

    def __init__(self, content: Iterable[Write] = ()) -> None:
        self._turn = threading.RLock()
        """Held from reading what a change is based on until it is kept; readers do not wait for it."""
        self._lock = threading.RLock()
        """Held while what readers see is read or changed, which is never for long."""
        self._revision = 0
        self._content: dict[Kind, dict[str, Any]] = {kind: {} for kind in KINDS}
        self._gathered: _Gathered | None = None
        self._known: dict[ApiKey, ApiRecord] = {}
        """Those that were asked for and have not changed since."""
        self._apply(content)

    def _persist(self, writes: Sequence[Write], *, durable: bool) -> None:
        """
        Keep these records, all of them or none.

        Args:
            durable: on return they survive a power failure; otherwise only the end of the process.

        Raises:
            StateError: they could not be kept.
        """

    def _prepare(self) -> None:
        """
        Called before what a change is based on is read.

        Raises:
            StateError: nothing can be changed now.
        """

    def _apply(self, writes: Iterable[Write]) -> None:
        for write in writes:
            records = self._content[write.kind]
            if write.record is None:
                records.pop(write.key, None)
            else:
                records[write.key] = write.record
            if write.kind in ("apis", "versions", "scale"):
                self._known.pop(ApiKey(write.key.partition("@")[0]), None)
            if write.kind in ("apis", "versions", "scale", "runs", "batching") or write.key == _LEAVING:
                self._revision += 1

    def _write(self, writes: Sequence[Write], *, durable: bool = False) -> None:
        """Keep what differs from what is kept already."""
        changed = self._differing(writes)
        if not changed:
            return
        if self._gathered is not None:
            self._gathered.take(changed, self._content, durable=durable)
        else:
            self._persist(changed, durable=durable)
        with self._lock:
            self._apply(changed)

    def _differing(self, writes: Iterable[Write]) -> list[Write]:
        return [write for write in writes if self._content[write.kind].get(write.key) != write.record]

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        """Around whatever changes something, from reading what that is based on."""
        with self._turn:
            if self._gathered is None:
                self._prepare()
            yield

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """
        Make one transaction, at the end, of all that this thread changes within; other threads' changes wait for it.

        What is changed is seen at once. It is taken back if that transaction cannot be made.

        Raises:
            StateError: it could not be made; nothing of it was kept.
        """
        with self._changing():
            if self._gathered is not None:
                yield
                return
            gathered = self._gathered = _Gathered()
            try:
                try:
                    yield
                finally:
                    self._gathered = None
                changed = [
                    Write(one.kind, one.key, self._content[one.kind].get(one.key))
                    for one in self._differing(gathered.before.values())
                ]
                if changed:
                    self._persist(changed, durable=gathered.durable)
            except BaseException:
                with self._lock:
                    self._apply(gathered.before.values())
                raise

    def content(self) -> list[Write]:
        """Everything that is kept, by kind and key."""
        with self._lock:
            return [Write(kind, key, found[key]) for kind, found in self._content.items() for key in sorted(found)]

    # ---- reading ------------------------------------------------------------------------------------------------

    @property
    def revision(self) -> int:
        """Another number after each change of what `desired` answers; saves loading it again."""
        with self._lock:
            return self._revision

    def desired(self, *, now_wall_s: float) -> Desired:
        """The wanted state; stored instants become ages against `now_wall_s`, never below 0."""
        with self._lock:
            rows = self._content["apis"]
            runs = self._content["runs"]
            return Desired(
                apis=tuple(self._joined(rows[key]).wanted for key in sorted(rows)),
                records=tuple(runs[key].at(now_wall_s) for key in sorted(runs)),
                batching=self.batching(),
                leaving=self.leaving(),
            )

    def deployments(self) -> tuple[DeploymentRecord, ...]:
        """Sorted by name."""
        with self._lock:
            found = self._content["deployments"]
            return tuple(found[name] for name in sorted(found))

    def apis(self, deployment: DeploymentName | None = None) -> tuple[ApiRecord, ...]:
        """All apis, or one deployment's, sorted by name."""
        with self._lock:
            return tuple(self._joined(row) for row in self._rows(deployment))

    def api(self, key: ApiKey) -> ApiRecord | None:
        with self._lock:
            row = self._row(key)
            return self._joined(row) if row is not None else None

    def versions(self) -> tuple[VersionRecord, ...]:
        """
        Everything that may be started: of each api what is wanted, what serves, and the last ten versions that were
        live, each as it last was. Sorted by api, those that were live last in front.
        """
        with self._lock:
            found: Iterable[VersionRecord] = self._content["versions"].values()
            return tuple(sorted(found, key=lambda one: (one.build.api, -one.turn, one.build.revision)))

    def refreshes(self, api: ApiKey) -> int:
        """The most that any version of an api was refreshed, also of one that is gone."""
        with self._lock:
            row = self._row(api)
            known: list[int] = [version.refresh for _key, version in self._of_api("versions", api)]
            return max([0 if row is None else row.refreshes, *known])

    def _row(self, key: ApiKey) -> ApiRow | None:
        row: ApiRow | None = self._content["apis"].get(key)
        return row

    def _rows(self, deployment: DeploymentName | None) -> Iterator[ApiRow]:
        for key in sorted(self._content["apis"]):
            if deployment is None or split_api_key(ApiKey(key))[0] == deployment:
                yield self._content["apis"][key]

    def _joined(self, row: ApiRow) -> ApiRecord:
        """An api with its versions and its scale."""
        known = self._known.get(row.api)
        if known is not None:
            return known
        versions = self._content["versions"]
        version: VersionRecord = versions[_key(row.api, row.wanted)]
        serving = versions[_key(row.api, row.serving)].build if row.serving is not None else None
        shared = {name: getattr(row, name) for name in ApiProgress.__struct_fields__}
        wanted = WantedApi(**shared, build=version.build, serving=serving, scale=self._content["scale"][row.api])
        known = self._known[row.api] = ApiRecord(wanted=wanted, version=version)
        return known

    def _incomplete(self) -> str | None:
        """Of which api a row is missing, if of any."""
        for row in self._rows(None):
            known = all(_key(row.api, revision) in self._content["versions"] for revision in row.in_use)
            if not known or row.api not in self._content["scale"]:
                return row.api
        return None

    def history(self, api: ApiKey) -> Sequence[VersionLine]:
        """Newest first; also of an api that was deleted, and of one of that name before it was."""
        with self._lock:
            return tuple(reversed(self._content["history"].get(api, ())))

    def meta(self, key: str) -> str | None:
        with self._lock:
            value: str | None = self._content["meta"].get(key)
            return value

    def leaving(self) -> frozenset[NodeId]:
        """Nodes that are to be given back."""
        return frozenset(msgspec.json.decode(self.meta(_LEAVING) or "[]", type=list[NodeId]))

    # ---- deploys ------------------------------------------------------------------------------------------------

    def commit_deploy(self, change: DeployChange) -> tuple[ApiKey, ...]:
        """
        Write a whole deploy; it survives a power failure once this returns.

        An api that exists keeps what serves, its number of replicas as far as the bounds allow it, whether its wanted
        revision is live when that is unchanged, and its run records; its `failed` mark is cleared and its revision's
        failed starts are forgotten, so that deploying the same thing again tries it again.

        Returns:
            The apis that went back to an older version since the deploy looked: these were left as they are.
        """
        with self._changing():
            name = change.deployment.name
            writes = [Write("deployments", name, change.deployment)]
            kept = {deployed.settings.api for deployed in change.apis}
            for row in self._rows(name):
                if row.api not in kept:
                    writes += self._removal(row.api, change.wall_s)
            left: list[ApiKey] = []
            for deployed in change.apis:
                before = self._row(deployed.settings.api)
                if before is not None and before.rolled_back not in (None, deployed.rolled_back):
                    left.append(before.api)
                else:
                    writes += self._deployment(deployed, change.wall_s)
            self._write(writes, durable=True)
            return tuple(left)

    def _deployment(self, deployed: DeployedApi, wall_s: float) -> Iterator[Write]:
        """What a deploy changes of one api."""
        api, build = deployed.settings.api, deployed.version.build
        before = self._row(api)
        known: VersionRecord | None = self._content["versions"].get(_key(api, build.revision))
        version = msgspec.structs.replace(deployed.version, turn=known.turn if known is not None else 0)
        scaled = scale.deployed(
            self._content["scale"].get(api),
            before,
            deployed.settings,
            first=deployed.first_replicas,
            wall_s=wall_s,
            proves=before is not None and before.wanted != build.revision,
        )
        row = _deployed_row(before, deployed, scaled, previous=self._compared_with(before, build))
        yield Write("apis", api, row)
        yield Write("scale", api, scaled)
        yield from self._versions_after(row, version)
        yield from self._runs_after_deploy(row)
        if deployed.cause or before is None:
            line = VersionLine(
                api=api,
                version=build.version,
                revision=build.revision,
                deployed_wall_s=wall_s,
                cause=deployed.cause or "first deploy",
            )
            yield Write("history", api, (*_closed(self._lines(api), "replaced"), line)[-HISTORY_LINES:])

    def roll_back(self, change: RollbackChange) -> bool:
        """
        Write that an api goes back to a version; it survives a power failure once this returns.

        What it went back from is remembered, so that deploys of the same files leave the api alone. Taking it to one
        of these undoes that. Bounds, number of replicas and all other settings stay.

        Returns:
            False where something else is wanted by now than what the decision was made on; then nothing was changed.
        """
        with self._changing():
            version = change.version
            api, revision = version.build.api, version.build.revision
            row = self._row(api)
            if row is None or row.wanted != change.instead_of:
                return False
            back = None
            if version.build.version not in self._passed_versions(row):
                known = row.rolled_back.passed if row.rolled_back is not None else ()
                passed = dict.fromkeys((*known, *([] if row.serving is None else [row.serving]), row.wanted))
                passed.pop(revision, None)
                back = RolledBack(wall_s=change.wall_s, passed=tuple(passed), reason=change.reason)
            scaled = scale.deployed(self._content["scale"][api], row, row, first=1, wall_s=change.wall_s, proves=True)
            after = msgspec.structs.replace(
                row,
                wanted=revision,
                rolled_back=back,
                previous=None,
                watched_until_wall_s=None,
                failed=None,
                live_wall_s=None,
                rollout_replicas=scaled.replicas,
                force=change.force,
                deployed_wall_s=change.wall_s,
            )
            line = VersionLine(
                api=api,
                version=version.build.version,
                revision=revision,
                deployed_wall_s=change.wall_s,
                cause=change.cause,
            )
            lines = _closed(self._lines(api), _rolled_back_text(back))
            self._write(
                [
                    Write("apis", api, after),
                    Write("scale", api, scaled),
                    *self._versions_after(after, msgspec.structs.replace(version, withdrawn_wall_s=None)),
                    *self._runs_after_deploy(after),
                    Write("history", api, (*lines, line)[-HISTORY_LINES:]),
                ],
                durable=True,
            )
            return True

    def _compared_with(self, before: ApiRow | None, build: BuildSpec) -> Revision | None:
        """Once a build is live: the last one that was, if that is of another version."""
        if before is None:
            return None
        last = before.serving if before.serving_was_live else before.previous
        if last is None or self._content["versions"][_key(build.api, last)].build.version == build.version:
            return None
        return last

    def delete(self, deployment: DeploymentName, api: ApiKey | None = None, *, wall_s: float) -> bool:
        """
        Remove a deployment or one api of it, with its versions and all that is remembered of it. False when there was
        none. The text of its history stays, see `forget_deleted`.
        """
        with self._changing():
            if api is None:
                if deployment not in self._content["deployments"]:
                    return False
                writes = [Write("deployments", deployment, None)]
                for row in self._rows(deployment):
                    writes += self._removal(row.api, wall_s)
            else:
                if self._row(api) is None or split_api_key(api)[0] != deployment:
                    return False
                writes = [*self._removal(api, wall_s)]
            self._write(writes, durable=True)
            return True

    def _removal(self, api: ApiKey, wall_s: float) -> Iterator[Write]:
        yield Write("apis", api, None)
        yield Write("scale", api, None)
        yield from (Write("versions", key, None) for key, version in self._of_api("versions", api))
        yield from (Write("runs", key, None) for key, _run in self._of_api("runs", api))
        lines = [
            line if line.deleted_wall_s is not None else msgspec.structs.replace(line, deleted_wall_s=wall_s)
            for line in _closed(_ended(self._lines(api), "live", "deleted"), "deleted")
        ]
        yield Write("history", api, tuple(lines))

    def forget_deleted(self, *, now_wall_s: float) -> None:
        """Forget the history of what was deleted 14 days ago or earlier."""
        with self._changing():
            writes = []
            for api, lines in self._content["history"].items():
                kept = tuple(
                    line
                    for line in lines
                    if line.deleted_wall_s is None or now_wall_s - line.deleted_wall_s < DELETED_KEPT_S
                )
                writes.append(Write("history", api, kept or None))
            self._write(writes)

    def autoscale(self, decision: ScalingDecision, *, wall_s: float) -> None:
        """The number of replicas follows the load, as was decided. Ignored when the api is gone."""
        with self._changing():
            row = self._row(decision.api)
            if row is not None:
                after = scale.autoscaled(self._content["scale"][row.api], row, decision, wall_s=wall_s)
                self._write([Write("scale", row.api, after)])

    def wake(self, api: ApiKey, *, wall_s: float) -> None:
        """Somebody has asked, at `wall_s`, for an api that sleeps. Ignored when it does not, or is gone."""
        with self._changing():
            row = self._row(api)
            if row is not None and self._content["scale"][api].asleep:
                self.set_scale(api, 1, reason=scale.ASKED_WHILE_ASLEEP, wall_s=wall_s)

    def fall_asleep(self, api: ApiKey, revision: Revision, *, reason: str, wall_s: float) -> bool:
        """
        An api sleeps from now on.

        Args:
            revision: what was wanted when that was decided.

        Returns:
            Whether it does: it is left awake when something else is wanted by now, it may not sleep, or it is gone.
        """
        with self._changing():
            row = self._row(api)
            if row is None or row.wanted != revision or row.min_replicas > 0:
                return False
            after = scale.changed(self._content["scale"][api], row, 1, reason=reason, wall_s=wall_s, asleep=True)
            self._write([Write("scale", api, after)])
            return True

    def set_scale(self, api: ApiKey, replicas: int, *, reason: str, wall_s: float) -> None:
        """How many replicas from now on, within the api's bounds, and why; awake. Ignored when the api is gone."""
        with self._changing():
            row = self._row(api)
            if row is not None:
                before: Scale = self._content["scale"][api]
                after = scale.changed(before, row, replicas, reason=reason, wall_s=wall_s)
                self._write([Write("scale", api, after)])

    def _of_api(self, kind: Literal["versions", "runs"], api: ApiKey) -> Iterator[tuple[str, Any]]:
        start = _key(api, Revision(""))
        return ((key, record) for key, record in self._content[kind].items() if key.startswith(start))

    def _lines(self, api: ApiKey) -> tuple[VersionLine, ...]:
        lines: tuple[VersionLine, ...] = self._content["history"].get(api, ())
        return lines

    # ---- what is kept -------------------------------------------------------------------------------------------

    def _versions_after(self, row: ApiRow, changed: VersionRecord) -> Iterator[Write]:
        """One version as it is now, and those that the api went back from; those that are of no use any more go."""
        changed_key = _key(row.api, changed.build.revision)
        found: dict[str, VersionRecord] = {**dict(self._of_api("versions", row.api)), changed_key: changed}
        kept = kept_versions(found.values(), row.in_use)
        yield Write("versions", changed_key, changed)
        yield from (Write("versions", key, None) for key, one in found.items() if one.build.revision not in kept)
        if row.rolled_back is not None and not row.rolled_back.excuse:
            for key in (_key(row.api, revision) for revision in row.rolled_back.passed):
                if found[key].withdrawn_wall_s is None:
                    withdrawn = msgspec.structs.replace(found[key], withdrawn_wall_s=row.rolled_back.wall_s)
                    yield Write("versions", key, withdrawn)

    def _runs_after_deploy(self, row: ApiRow) -> Iterator[Write]:
        """The new revision gets a fresh chance; runs of builds that cannot come back are forgotten."""
        yield from self._forget_other_runs(row)
        key = _key(row.api, row.wanted)
        run: StoredRun | None = self._content["runs"].get(key)
        if run is not None:
            slots = {replica: StoredSlot(attempt=slot.attempt) for replica, slot in run.slots.items()}
            yield Write("runs", key, msgspec.structs.replace(run, slots=slots, row=Row()))

    def _forget_other_runs(self, row: ApiRow) -> Iterator[Write]:
        for key, run in self._of_api("runs", row.api):
            if run.revision not in (row.wanted, row.serving):
                yield Write("runs", key, None)

    # ---- marks --------------------------------------------------------------------------------------------------

    def mark_serving(self, api: ApiKey, revision: Revision) -> None:
        """
        `revision` carries the api alone, not yet at full size: a failing later version goes back to it.

        Ignored when `revision` is no longer the wanted one. Same for `mark_live` and `mark_failed`.
        """
        with self._changing():
            row = self._row(api)
            if row is not None and row.wanted == revision:
                row = msgspec.structs.replace(row, serving=revision, serving_was_live=False)
                version = self._content["versions"][_key(api, revision)]
                self._write(
                    [Write("apis", api, row), *self._versions_after(row, version), *self._forget_other_runs(row)]
                )

    def mark_live(self, api: ApiKey, revision: Revision, *, wall_s: float) -> None:
        """`revision` serves at full size: it becomes `serving`, and a failure that was noted is over."""
        with self._changing():
            row = self._row(api)
            if row is None or row.wanted != revision:
                return
            live = msgspec.structs.replace(
                row,
                serving=revision,
                serving_was_live=True,
                live_wall_s=wall_s if row.live_wall_s is None else row.live_wall_s,
                failed=None,
            )
            if row.live_wall_s is None:
                is_watched = row.previous is not None and row.watch_s > 0
                live = msgspec.structs.replace(
                    live,
                    previous=row.previous if is_watched else None,
                    watched_until_wall_s=wall_s + row.watch_s if is_watched else None,
                )
            version: VersionRecord = self._content["versions"][_key(api, revision)]
            if row.live_wall_s is None:
                last = max(one.turn for _key, one in self._of_api("versions", api))
                version = msgspec.structs.replace(version, turn=last + 1)
            lines = self._lines_replaced(row)
            self._write(
                [
                    Write("apis", api, live),
                    *self._versions_after(live, version),
                    *self._forget_other_runs(live),
                    Write("history", api, _with_outcome(lines, version.build.version, "live")),
                ]
            )

    def _lines_replaced(self, row: ApiRow) -> tuple[VersionLine, ...]:
        """The lines of an api whose wanted version goes live, with how the one that was live ended."""
        back = row.rolled_back
        if back is None:
            return _ended(self._lines(row.api), "live", "replaced")
        passed = self._passed_versions(row) - {self._content["versions"][_key(row.api, row.wanted)].build.version}
        ends = {True: _rolled_back_text(back), False: "replaced"}
        return tuple(
            msgspec.structs.replace(line, outcome=ends[line.version in passed]) if line.outcome == "live" else line
            for line in self._lines(row.api)
        )

    def _passed_versions(self, row: ApiRow) -> set[Version]:
        """What the api went back from, if it did."""
        passed = row.rolled_back.passed if row.rolled_back is not None else ()
        return {self._content["versions"][_key(row.api, revision)].build.version for revision in passed}

    def end_watch(self, api: ApiKey, revision: Revision) -> None:
        """`revision`, if it is still wanted, is not compared with the version before any more."""
        with self._changing():
            row = self._row(api)
            if row is None or row.wanted != revision or row.previous is None:
                return
            row = msgspec.structs.replace(row, previous=None, watched_until_wall_s=None)
            version = self._content["versions"][_key(api, revision)]
            self._write([Write("apis", api, row), *self._versions_after(row, version)])

    def excuse(self, api: ApiKey, back: RolledBack, excuse: str) -> None:
        """
        What an api went back from is not to blame, says `excuse`: it may be deployed again. Ignored unless `back` is
        still how the api went back.
        """
        with self._changing():
            row = self._row(api)
            if row is None or row.rolled_back != back:
                return
            row = msgspec.structs.replace(row, rolled_back=msgspec.structs.replace(back, excuse=excuse))
            keys = [_key(api, revision) for revision in back.passed]
            versions = self._content["versions"]
            told = _rolled_back_text(back)
            self._write(
                [
                    Write("apis", api, row),
                    *(Write("versions", k, msgspec.structs.replace(versions[k], withdrawn_wall_s=None)) for k in keys),
                    Write("history", api, _ended(self._lines(api), told, f"{told}; {excuse}")),
                ]
            )

    def record_receipt(self, api: ApiKey, revision: Revision, version: Version, receipt: Receipt) -> None:
        """
        What came of proving a change-over, which it is not any more. Kept with the last deploy of the version, also of
        an api that is gone.
        """
        with self._changing():
            found = list(self._lines(api))
            index = next((i for i in reversed(range(len(found))) if found[i].version == version), None)
            writes = []
            if index is not None:
                found[index] = msgspec.structs.replace(found[index], receipt=receipt)
                writes.append(Write("history", api, tuple(found)))
            row = self._row(api)
            if row is not None and row.in_proof == revision:
                writes.append(Write("apis", api, msgspec.structs.replace(row, in_proof=None)))
            self._write(writes, durable=True)

    def in_proof(self) -> tuple[ApiRecord, ...]:
        """Apis whose change-over is being proved, or was when the control plane ended."""
        with self._lock:
            return tuple(self._joined(row) for row in self._rows(None) if row.in_proof is not None)

    def watched(self) -> tuple[ApiRecord, ...]:
        """Apis whose wanted version is compared with the one before."""
        with self._lock:
            return tuple(self._joined(row) for row in self._rows(None) if row.watched_until_wall_s is not None)

    def mark_failed(self, api: ApiKey, revision: Revision, problem: Problem, *, wall_s: float) -> None:
        with self._changing():
            row = self._row(api)
            if row is None or row.wanted != revision or row.live_wall_s is not None:
                return
            writes = [Write("apis", api, msgspec.structs.replace(row, failed=problem))]
            wanted = self._joined(row).wanted
            if wanted.serving is None or wanted.serving.version != wanted.build.version:
                # A roll of the version that serves (other resources) fails without making the version a failure.
                outcome = "failed: " + problem.message.partition("\n")[0]
                writes.append(Write("history", api, _with_outcome(self._lines(api), wanted.build.version, outcome)))
            self._write(writes)

    # ---- runs ---------------------------------------------------------------------------------------------------

    def record_exit(self, ended: RecordExit, *, wall_s: float) -> None:
        """Once for each (replica, attempt); repeats, and exits of apis that are gone, are ignored."""
        with self._changing():
            if self._row(ended.api) is None:
                return
            key = _key(ended.api, ended.revision)
            run: StoredRun = self._content["runs"].get(key) or StoredRun(api=ended.api, revision=ended.revision)
            before = run.at(wall_s)
            after = backoff.run_after_exit(before, ended)
            if after is not before:
                self._write([Write("runs", key, StoredRun.of(after, wall_s))])

    def record_ready(self, api: ApiKey, revision: Revision, replica: ReplicaId) -> None:
        """This replica's failed starts count from zero again."""
        with self._changing():
            key = _key(api, revision)
            run: StoredRun | None = self._content["runs"].get(key)
            if run is None or replica not in run.slots:
                return
            slot = msgspec.structs.replace(run.slots[replica], failed_starts=0)
            self._write([Write("runs", key, msgspec.structs.replace(run, slots={**run.slots, replica: slot}))])

    def rebase(self, *, now_wall_s: float) -> None:
        """
        Let stored instants that lie in the future be now: the wall clock was set back while nobody looked.

        Called once at our start, so that ages count from there instead of staying 0 until the clock has caught up.
        """
        with self._changing():
            self._write([Write("runs", key, _not_after(run, now_wall_s)) for key, run in self._content["runs"].items()])

    # ---- batching -----------------------------------------------------------------------------------------------

    def batching(self) -> tuple[BatchingRecord, ...]:
        """What is known of models' rows, by any rules: what `desired` holds of it."""
        with self._lock:
            found = self._content["batching"]
            return tuple(found[key] for key in sorted(found))

    def record_verdict(self, model: ModelKey, verdict: BatchingVerdict, *, place: str) -> None:
        """
        Keep what an inspection found out, by the rules that it was found out with; see `BatchingRecord.with_verdict`.

        Nothing of it is part of an api: better rules make no new versions.
        """
        with self._changing():
            key, record = self._batching_of(model, verdict.proof.rules)
            self._write([Write("batching", key, record.with_verdict(verdict, place))])

    def record_stop(self, model: ModelKey, stop: BatchingStop, *, rules: int) -> None:
        """
        A replica saw rows disagree. Once for each (replica, start); survives a power failure once this returns.

        Also of a model that nothing else is known of.
        """
        with self._changing():
            key, record = self._batching_of(model, rules)
            if not any(known.is_of(stop.replica, stop.started_wall_s) for known in record.stops):
                stopped = msgspec.structs.replace(record, stops=(*record.stops, stop))
                self._write([Write("batching", key, stopped)], durable=True)

    def prune_batching(self, trees: Collection[str]) -> None:
        """
        Forget what is known of models that lie in none of these stored folders.

        Disagreements stay for as long as there is the api that saw them: they are counted, and counts never go down.
        """
        with self._changing():
            gone = {key: record for key, record in self._content["batching"].items() if record.model.tree not in trees}
            kept = {key for key, record in gone.items() if any(self._row(stop.api) for stop in record.stops)}
            self._write([Write("batching", key, None) for key in gone.keys() - kept])

    def _batching_of(self, model: ModelKey, rules: int) -> tuple[str, BatchingRecord]:
        key = msgspec.json.encode([model, rules]).decode()
        return key, self._content["batching"].get(key) or BatchingRecord(model=model, rules=rules)

    # ---- the rest -----------------------------------------------------------------------------------------------

    def take_epoch(self) -> int:
        """Become the one in charge: a number higher than anyone before got."""
        with self._changing():
            epoch = int(self.meta("epoch") or 0) + 1
            self._write([Write("meta", "epoch", str(epoch))], durable=True)
            return epoch

    def set_meta(self, key: str, value: str) -> None:
        with self._changing():
            self._write([Write("meta", key, value)])

    def set_leaving(self, nodes: Collection[NodeId]) -> None:
        """These nodes, and no others, are to be given back."""
        self.set_meta(_LEAVING, msgspec.json.encode(sorted(nodes)).decode())

    def close(self) -> None:
        """Nothing to let go of."""


def kept_versions(versions: Iterable[VersionRecord], in_use: Collection[Revision | None]) -> set[Revision]:
    """Which revisions of an api stay: those in use, and the last versions that were live, each as it last was."""
    kept = {version.build.revision for version in versions if version.build.revision in in_use}
    newest: dict[Version, Revision] = {}
    for version in sorted(versions, key=lambda version: -version.turn):
        if version.turn and len(newest) < KEPT_VERSIONS:
            newest.setdefault(version.build.version, version.build.revision)
    return kept | set(newest.values())


def _deployed_row(before: ApiRow | None, deployed: DeployedApi, scaled: Scale, *, previous: Revision | None) -> ApiRow:
    """
    What a deploy makes of an api: the new settings, with what was reached before.

    Args:
        previous: what its version is compared with, unless that is live already.
    """
    revision, refresh = deployed.version.build.revision, deployed.version.refresh
    told = {name: getattr(deployed.settings, name) for name in ApiSettings.__struct_fields__}
    if before is None:
        return ApiRow(
            **told,
            wanted=revision,
            rollout_replicas=scaled.replicas,
            refreshes=refresh,
            in_proof=revision if deployed.in_proof else None,
        )
    goes_on = before.wanted == revision and before.live_wall_s is not None
    in_proof = before.in_proof if before.wanted == revision else None
    return ApiRow(
        **told,
        wanted=revision,
        serving=before.serving,
        serving_was_live=before.serving_was_live,
        rollout_replicas=before.rollout_replicas if goes_on else scaled.replicas,
        live_wall_s=before.live_wall_s if goes_on else None,
        previous=before.previous if goes_on else previous,
        watched_until_wall_s=before.watched_until_wall_s if goes_on else None,
        rolled_back=before.rolled_back if deployed.stays else None,
        in_proof=revision if deployed.in_proof else in_proof,
        refreshes=max(before.refreshes, refresh),
    )


def _rolled_back_text(back: RolledBack | None) -> str:
    """How a version ended that an api went back from."""
    reason = back.reason.partition("\n")[0] if back is not None else ""
    return f"rolled back: {reason}" if reason else "rolled back"


def _closed(lines: Iterable[VersionLine], outcome: str) -> tuple[VersionLine, ...]:
    """The lines, with none under way any more."""
    return _ended(lines, "", outcome)


def _ended(lines: Iterable[VersionLine], before: str, after: str) -> tuple[VersionLine, ...]:
    """The lines, with another outcome where it was this one."""
    return tuple(msgspec.structs.replace(line, outcome=after) if line.outcome == before else line for line in lines)


def _with_outcome(lines: Iterable[VersionLine], version: Version, outcome: str) -> tuple[VersionLine, ...]:
    """The lines with the newest one of a version ending so."""
    found = list(lines)
    for index in reversed(range(len(found))):
        if found[index].version == version:
            found[index] = msgspec.structs.replace(found[index], outcome=outcome)
            break
    return tuple(found)


def _not_after(run: StoredRun, now_wall_s: float) -> StoredRun:
    slots = {
        replica: msgspec.structs.replace(slot, last_exit_wall_s=min(slot.last_exit_wall_s, now_wall_s))
        for replica, slot in run.slots.items()
    }
    return msgspec.structs.replace(run, slots=slots, last_exit_wall_s=min(run.last_exit_wall_s, now_wall_s))


def _key(api: ApiKey, revision: Revision) -> str:
    """Of a row that a revision of an api has."""
    return f"{api}@{revision}"
