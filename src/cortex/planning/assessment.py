"""
What is wanted and what is seen, judged once: both the plan and the statuses follow from it.

Each wanted api becomes a `Case`. It takes in what was seen just now: an exit counts before anybody has stored it, and a
build that deserves no further try is failed from here on. So what is shown is never behind what is done about it.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from cortex.errors import Problem
from cortex.ids import ApiKey, NodeId, ReplicaId, Revision
from cortex.planning import backoff, guarding
from cortex.planning.actions import RecordExit, RecordStop
from cortex.planning.batching import Known
from cortex.planning.model import Desired, Rules, RunRecord, SlotRecord, Snapshot, WantedApi
from cortex.planning.parking import Parking, parking_of
from cortex.planning.reach import within_reach
from cortex.planning.rollout import Decision, decide, goal_and_fallback
from cortex.planning.slots import NOTHING_SEEN, SeenApi, Slot, SlotState, join, of_revision
from cortex.wire.build import BuildSpec

DEFAULT_RULES = Rules()


class Runs(msgspec.Struct, frozen=True):
    """What is remembered of the runs of an api's builds, as of now."""

    records: Mapping[Revision, RunRecord]

    def of(self, build: BuildSpec | None) -> RunRecord | None:
        return self.records.get(build.revision) if build is not None else None

    def of_slot(self, slot: Slot) -> SlotRecord | None:
        for revision, record in self.records.items():
            if of_revision(slot, revision):
                return record.slots.get(slot.replica)
        return None

    def wait_left_s(self, slot: Slot) -> float:
        """Seconds until back-off lets a slot be started again; 0: now."""
        return backoff.wait_left_s(self.of_slot(slot))

    def fails(self, build: BuildSpec | None) -> bool:
        """Whether a build's replicas end by themselves again and again."""
        record = self.of(build)
        return record is not None and any(backoff.restart_delay_s(slot) > 0 for slot in record.slots.values())


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """A wanted api with all that is known of it, and what shall become of its replicas."""

    wanted: WantedApi
    """With `failed`, if `given_up` says so."""
    seen: SeenApi
    runs: Runs
    """With `exits`."""
    exits: tuple[RecordExit, ...]
    """Those that are not stored yet."""
    given_up: Problem | None
    """Why the wanted build is given up now."""
    goes_back_to: Revision | None
    """If it had taken over already: the build that was live before."""
    decision: Decision

    @property
    def was_live(self) -> bool:
        """Whether the wanted build has been live at full size: then it is never given up."""
        return _was_live(self.wanted)


class Assessment(msgspec.Struct, frozen=True, kw_only=True):
    """Everything there is to say of one moment, before anything is done about it."""

    desired: Desired
    seen: Snapshot
    """Without what lost nodes have told."""
    rules: Rules
    stops: tuple[RecordStop, ...]
    """Disagreements that are not stored yet."""
    known: Known
    """What is known of models' rows, with `stops`."""
    cases: tuple[Case, ...]
    """Sorted by api."""
    unwanted: tuple[tuple[ApiKey, SeenApi], ...]
    """What is still there of apis that nobody wants; sorted."""
    reachable: frozenset[NodeId]
    """Nodes that orders can be given to."""


def assess(desired: Desired, seen: Snapshot, rules: Rules = DEFAULT_RULES) -> Assessment:
    """Judge what is wanted and seen. Reads no clock: time is `seen.now_s`."""
    seen = within_reach(seen)
    by_api = join(seen, desired.leaving)
    older_s = 0.0 if desired.as_of_s is None else max(0.0, seen.now_s - desired.as_of_s)
    records: dict[ApiKey, dict[Revision, RunRecord]] = {}
    for record in desired.records:
        records.setdefault(record.api, {})[record.revision] = backoff.run_aged(record, older_s)
    stops = guarding.stops_to_record(desired, seen)
    is_any_watched = any(wanted.watched_until_wall_s is not None for wanted in desired.apis)
    parking = parking_of(seen) if is_any_watched else Parking()
    return Assessment(
        desired=desired,
        seen=seen,
        rules=rules,
        stops=stops,
        known=guarding.known_with(desired, stops),
        cases=tuple(
            _judged(wanted, by_api.get(wanted.api, NOTHING_SEEN), records.get(wanted.api, {}), parking, seen.beyond)
            for wanted in sorted(desired.apis, key=lambda wanted: wanted.api)
        ),
        unwanted=tuple((api, by_api[api]) for api in sorted(by_api.keys() - {wanted.api for wanted in desired.apis})),
        reachable=frozenset(node.name for node in seen.nodes),
    )


def _judged(
    wanted: WantedApi,
    seen: SeenApi,
    records: dict[Revision, RunRecord],
    parking: Parking,
    beyond: frozenset[ReplicaId],
) -> Case:
    exits = _new_exits(wanted, seen, records)
    for ended in exits:
        known = records.get(ended.revision) or RunRecord(api=wanted.api, revision=ended.revision)
        records[ended.revision] = backoff.run_after_exit(known, ended)
    given_up = None
    if wanted.failed is None and (not _was_live(wanted) or wanted.watched_until_wall_s is not None):
        given_up = backoff.reason_to_give_up(records.get(wanted.build.revision))
    goes_back_to = wanted.previous if given_up is not None and _has_taken_over(wanted) else None
    if given_up is not None and goes_back_to is None:
        wanted = msgspec.structs.replace(wanted, failed=given_up)
    runs = Runs(records)
    decision = decide(
        wanted,
        seen.slots,
        runs.wait_left_s,
        fallback_fails=runs.fails(goal_and_fallback(wanted)[1]),
        parking=parking,
        beyond=beyond,
    )
    return Case(
        wanted=wanted,
        seen=seen,
        runs=runs,
        exits=exits,
        given_up=given_up,
        goes_back_to=goes_back_to,
        decision=decision,
    )


def _new_exits(wanted: WantedApi, seen: SeenApi, records: Mapping[Revision, RunRecord]) -> tuple[RecordExit, ...]:
    """Exits that nobody asked for and that are not stored yet, of the builds whose runs are remembered."""
    found = []
    for slot in seen.slots:
        report = slot.report
        if slot.state is not SlotState.EXITED or report is None or report.exit is None or slot.drained:
            continue
        if not any(report.revision == build.revision for build in wanted.builds):
            continue
        record = records.get(report.revision)
        known = record.slots.get(slot.replica) if record is not None else None
        if known is None or known.attempt < report.attempt:
            found.append(
                RecordExit(
                    api=wanted.api,
                    revision=report.revision,
                    replica=slot.replica,
                    attempt=report.attempt,
                    was_ready=report.was_ready,
                    exit=report.exit,
                    peak_rss_bytes=report.peak_rss_bytes,
                )
            )
    return tuple(found)


def _has_taken_over(wanted: WantedApi) -> bool:
    """Whether what served before is gone: some of its replicas were ready, and carried the api alone."""
    return wanted.serving is not None and wanted.serving.revision == wanted.build.revision


def _was_live(wanted: WantedApi) -> bool:
    if wanted.live_wall_s is not None:
        return True
    return wanted.serving_was_live and wanted.serving is not None and wanted.serving.revision == wanted.build.revision
