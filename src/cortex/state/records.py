"""
The records of a state store, and what each call changes in them.

Everything is small enough to be kept in memory, so readers never wait for a disk. A call works out which records
change, hands all of them to `_persist` as one transaction, and only then changes what readers see.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Literal

import msgspec

from cortex.errors import Problem
from cortex.ids import ApiKey, DeploymentName, ReplicaId, Revision, Version, split_api_key
from cortex.planning import backoff, crashes
from cortex.planning.batching import BatchingRecord, Stop
from cortex.planning.crashes import Row
from cortex.planning.model import Desired, RunRecord, SlotRecord, WantedApi
from cortex.state.base import ApiRecord, DeployChange, DeploymentRecord, VersionRecord
from cortex.wire.batching import BatchingVerdict
from cortex.wire.build import ModelKey
from cortex.wire.reports import ExitReport

HISTORY_LINES = 100
"""Lines of history kept for each api."""

Kind = Literal["deployments", "apis", "runs", "history", "meta", "batching"]


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


class RecordStore:
    """
    Implements `StateStore` but for where records are kept; subclasses override `_persist`.

    Args:
        content: what is stored already, by kind and key.
    """

    def __init__(self, content: Iterable[Write] = ()) -> None:
        self._lock = threading.RLock()
        self._revision = 0
        self._content: dict[Kind, dict[str, Any]] = {}
        self._load(content)

    def _persist(self, writes: Sequence[Write], *, durable: bool) -> None:
        """
        Keep these records, all of them or none.

        Args:
            durable: on return they survive a power failure; otherwise only the end of the process.

        Raises:
            StateError: they could not be kept.
        """

    def _load(self, content: Iterable[Write]) -> None:
        self._content = {"deployments": {}, "apis": {}, "runs": {}, "history": {}, "meta": {}, "batching": {}}
        self._apply(content)

    def _apply(self, writes: Iterable[Write]) -> None:
        for write in writes:
            records = self._content[write.kind]
            if write.record is None:
                records.pop(write.key, None)
            else:
                records[write.key] = write.record
            if write.kind in ("apis", "runs", "batching"):
                self._revision += 1

    def _write(self, writes: Sequence[Write], *, durable: bool = False) -> None:
        """Keep what differs from what is kept already."""
        changed = [write for write in writes if self._content[write.kind].get(write.key) != write.record]
        if changed:
            self._persist(changed, durable=durable)
            self._apply(changed)

    # ---- reading ------------------------------------------------------------------------------------------------

    @property
    def revision(self) -> int:
        with self._lock:
            return self._revision

    def desired(self, *, now_wall_s: float) -> Desired:
        with self._lock:
            apis = self._content["apis"]
            runs = self._content["runs"]
            return Desired(
                apis=tuple(apis[key].wanted for key in sorted(apis)),
                records=tuple(runs[key].at(now_wall_s) for key in sorted(runs)),
                batching=self.batching(),
            )

    def deployments(self) -> tuple[DeploymentRecord, ...]:
        with self._lock:
            found = self._content["deployments"]
            return tuple(found[name] for name in sorted(found))

    def apis(self, deployment: DeploymentName | None = None) -> tuple[ApiRecord, ...]:
        with self._lock:
            apis: dict[ApiKey, ApiRecord] = self._content["apis"]  # type: ignore[assignment]
            return tuple(apis[key] for key in sorted(apis) if deployment is None or split_api_key(key)[0] == deployment)

    def api(self, key: ApiKey) -> ApiRecord | None:
        with self._lock:
            record: ApiRecord | None = self._content["apis"].get(key)
            return record

    def history(self, api: ApiKey) -> Sequence[VersionRecord]:
        with self._lock:
            return tuple(reversed(self._content["history"].get(api, ())))

    def meta(self, key: str) -> str | None:
        with self._lock:
            value: str | None = self._content["meta"].get(key)
            return value

    # ---- deploys ------------------------------------------------------------------------------------------------

    def commit_deploy(self, change: DeployChange) -> None:
        with self._lock:
            name = change.deployment.name
            writes = [Write("deployments", name, change.deployment)]
            kept = {record.wanted.api for record in change.apis}
            for old in self.apis(name):
                if old.wanted.api not in kept:
                    writes += self._removal(old.wanted.api)
            for record in change.apis:
                merged = deployed(self.api(record.wanted.api), record)
                writes.append(Write("apis", merged.wanted.api, merged))
                writes += self._runs_after_deploy(merged.wanted)
            for api in kept:
                lines = [line for line in change.versions if line.api == api]
                if lines:
                    writes.append(Write("history", api, self._history_with(api, lines)))
            self._write(writes, durable=True)

    def delete(self, deployment: DeploymentName, api: ApiKey | None = None) -> bool:
        with self._lock:
            if api is None:
                if deployment not in self._content["deployments"]:
                    return False
                writes = [Write("deployments", deployment, None)]
                for record in self.apis(deployment):
                    writes += self._removal(record.wanted.api)
            else:
                if self.api(api) is None or split_api_key(api)[0] != deployment:
                    return False
                writes = self._removal(api)
            self._write(writes, durable=True)
            return True

    def set_replicas(self, api: ApiKey, replicas: int) -> None:
        def changed(wanted: WantedApi) -> WantedApi:
            bounded = max(wanted.min_replicas, min(wanted.max_replicas, replicas))
            return msgspec.structs.replace(wanted, replicas=bounded)

        with self._lock:
            record = self.api(api)
            if record is not None:
                self._write([_wanted_write(record, changed(record.wanted))])

    def _removal(self, api: ApiKey) -> list[Write]:
        runs = [key for key, run in self._content["runs"].items() if run.api == api]
        return [
            Write("apis", api, None),
            Write("history", api, None),
            *(Write("runs", key, None) for key in runs),
        ]

    def _runs_after_deploy(self, wanted: WantedApi) -> list[Write]:
        """The new revision gets a fresh chance; runs of builds that cannot come back are forgotten."""
        writes = self._forget_other_runs(wanted)
        key = _run_key(wanted.api, wanted.build.revision)
        run: StoredRun | None = self._content["runs"].get(key)
        if run is not None:
            slots = {replica: StoredSlot(attempt=slot.attempt) for replica, slot in run.slots.items()}
            writes.append(Write("runs", key, msgspec.structs.replace(run, slots=slots, row=Row())))
        return writes

    def _forget_other_runs(self, wanted: WantedApi) -> list[Write]:
        keep = {wanted.build.revision}
        if wanted.serving is not None:
            keep.add(wanted.serving.revision)
        return [
            Write("runs", key, None)
            for key, run in self._content["runs"].items()
            if run.api == wanted.api and run.revision not in keep
        ]

    def _history_with(self, api: ApiKey, new: Sequence[VersionRecord]) -> tuple[VersionRecord, ...]:
        lines = [
            msgspec.structs.replace(line, outcome=line.outcome or "replaced")
            for line in self._content["history"].get(api, ())
        ]
        return (*lines, *new)[-HISTORY_LINES:]

    # ---- marks --------------------------------------------------------------------------------------------------

    def mark_serving(self, api: ApiKey, revision: Revision) -> None:
        with self._lock:
            record = self._wanted_as(api, revision)
            if record is not None:
                wanted = msgspec.structs.replace(record.wanted, serving=record.wanted.build, serving_was_live=False)
                self._write([_wanted_write(record, wanted), *self._forget_other_runs(wanted)])

    def mark_live(self, api: ApiKey, revision: Revision, *, wall_s: float) -> None:
        with self._lock:
            record = self._wanted_as(api, revision)
            if record is None:
                return
            wanted = msgspec.structs.replace(
                record.wanted,
                serving=record.wanted.build,
                serving_was_live=True,
                live_wall_s=wall_s if record.wanted.live_wall_s is None else record.wanted.live_wall_s,
                failed=None,
            )
            lines = [
                msgspec.structs.replace(line, outcome="replaced") if line.outcome == "live" else line
                for line in self._content["history"].get(api, ())
            ]
            self._write(
                [
                    _wanted_write(record, wanted),
                    *self._forget_other_runs(wanted),
                    Write("history", api, _with_outcome(lines, wanted.build.version, "live")),
                ]
            )

    def mark_failed(self, api: ApiKey, revision: Revision, problem: Problem, *, wall_s: float) -> None:
        with self._lock:
            record = self._wanted_as(api, revision)
            if record is None or record.wanted.live_wall_s is not None:
                return
            wanted = msgspec.structs.replace(record.wanted, failed=problem)
            writes = [_wanted_write(record, wanted)]
            serving = wanted.serving
            if serving is None or serving.version != wanted.build.version:
                # A roll of the version that serves (other resources) fails without making the version a failure.
                lines = self._content["history"].get(api, ())
                first_line = problem.message.partition("\n")[0]
                outcome = _with_outcome(lines, wanted.build.version, f"failed: {first_line}")
                writes.append(Write("history", api, outcome))
            self._write(writes)

    def _wanted_as(self, api: ApiKey, revision: Revision) -> ApiRecord | None:
        record = self.api(api)
        return record if record is not None and record.wanted.build.revision == revision else None

    # ---- runs ---------------------------------------------------------------------------------------------------

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
        with self._lock:
            if self.api(api) is None:
                return
            key = _run_key(api, revision)
            run: StoredRun = self._content["runs"].get(key) or StoredRun(api=api, revision=revision)
            before = run.at(wall_s)
            after = backoff.run_after_exit(before, replica, attempt, exit_report, was_ready=was_ready)
            if after is not before:
                self._write([Write("runs", key, StoredRun.of(after, wall_s))])

    def record_ready(self, api: ApiKey, revision: Revision, replica: ReplicaId) -> None:
        with self._lock:
            key = _run_key(api, revision)
            run: StoredRun | None = self._content["runs"].get(key)
            if run is None or replica not in run.slots:
                return
            slot = msgspec.structs.replace(run.slots[replica], failed_starts=0)
            self._write([Write("runs", key, msgspec.structs.replace(run, slots={**run.slots, replica: slot}))])

    def rebase(self, *, now_wall_s: float) -> None:
        with self._lock:
            self._write([Write("runs", key, _not_after(run, now_wall_s)) for key, run in self._content["runs"].items()])

    # ---- batching -----------------------------------------------------------------------------------------------

    def batching(self) -> tuple[BatchingRecord, ...]:
        with self._lock:
            found = self._content["batching"]
            return tuple(found[key] for key in sorted(found))

    def record_verdict(self, model: ModelKey, verdict: BatchingVerdict, *, place: str) -> None:
        with self._lock:
            key, record = self._batching_of(model, verdict.proof.rules)
            self._write([Write("batching", key, record.with_verdict(verdict, place))])

    def record_stop(self, model: ModelKey, stop: Stop, *, rules: int) -> None:
        with self._lock:
            key, record = self._batching_of(model, rules)
            if not any(known.is_of(stop.replica, stop.started_wall_s) for known in record.stops):
                stopped = msgspec.structs.replace(record, stops=(*record.stops, stop))
                self._write([Write("batching", key, stopped)], durable=True)

    def prune_batching(self, trees: Collection[str]) -> None:
        with self._lock:
            gone = {key: record for key, record in self._content["batching"].items() if record.model.tree not in trees}
            kept = {key for key, record in gone.items() if any(self.api(stop.api) for stop in record.stops)}
            self._write([Write("batching", key, None) for key in gone.keys() - kept])

    def _batching_of(self, model: ModelKey, rules: int) -> tuple[str, BatchingRecord]:
        key = msgspec.json.encode([model, rules]).decode()
        return key, self._content["batching"].get(key) or BatchingRecord(model=model, rules=rules)

    # ---- the rest -----------------------------------------------------------------------------------------------

    def take_epoch(self) -> int:
        with self._lock:
            epoch = int(self.meta("epoch") or 0) + 1
            self._write([Write("meta", "epoch", str(epoch))], durable=True)
            return epoch

    def set_meta(self, key: str, value: str) -> None:
        with self._lock:
            self._write([Write("meta", key, value)])

    def close(self) -> None:
        """Nothing to let go of."""


def deployed(old: ApiRecord | None, new: ApiRecord) -> ApiRecord:
    """What a deploy makes of an api: the new record, with what was reached before it."""
    if old is None:
        return new
    was, wanted = old.wanted, new.wanted
    serving = was.serving
    if serving is not None and serving.revision == wanted.build.revision:
        serving = wanted.build  # the same to run, but perhaps with another sample
    wanted = msgspec.structs.replace(
        wanted,
        serving=serving,
        serving_was_live=was.serving_was_live,
        live_wall_s=was.live_wall_s if was.build.revision == wanted.build.revision else None,
        failed=None,
    )
    return msgspec.structs.replace(new, wanted=wanted)


def _wanted_write(record: ApiRecord, wanted: WantedApi) -> Write:
    return Write("apis", wanted.api, msgspec.structs.replace(record, wanted=wanted))


def _with_outcome(lines: Iterable[VersionRecord], version: Version, outcome: str) -> tuple[VersionRecord, ...]:
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


def _run_key(api: ApiKey, revision: Revision) -> str:
    return f"{api}@{revision}"
