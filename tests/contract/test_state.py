"""What every state store promises: the suite runs on each implementation."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from origin_harness import s3_storage

from cortex.errors import Problem
from cortex.ids import ApiKey, DeploymentName, NodeId, ReplicaId, replica_id
from cortex.planning.actions import RecordExit
from cortex.planning.batching import BatchingRecord, BatchingStop
from cortex.planning.crashes import Row
from cortex.planning.model import Desired, RolledBack, RunRecord, Scale, SlotRecord, WantedApi
from cortex.state.base import RollbackChange, VersionLine, VersionRecord
from cortex.state.bucket import BucketStateStore
from cortex.state.records import StateStore
from cortex.state.sqlite import SqliteStateStore
from cortex.storage.directory import DirectoryStorage
from cortex.testing.builders import API, a_build, a_deploy, a_record, a_sample, a_wanted_api, an_exit
from cortex.testing.clock import FakeClock
from cortex.testing.storage import FakeStorage
from cortex.wire.batching import BatchingVerdict, Disagreement, Proof, Trial
from cortex.wire.build import BuildSpec, Resources
from cortex.wire.launch import InspectReport
from cortex.wire.operator import Receipt, Verdict
from cortex.wire.reports import ExitReport

V1, V2 = a_build("v1"), a_build("v2")
IRIS = DeploymentName("iris")
SLOT = replica_id(API, V1.revision, 0)
BOOM = Problem(reference="model-broken", message="the model cannot be read\nat byte 3", traceback="Traceback …")


@pytest.fixture(
    params=[
        "memory",
        "sqlite",
        "bucket",
        "bucket-directory",
        pytest.param("bucket-s3", marks=[pytest.mark.slow, pytest.mark.takes("moto")]),
    ]
)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StateStore]:
    made: StateStore
    match request.param:
        case "memory":
            made = StateStore()
        case "sqlite":
            made = SqliteStateStore(tmp_path / "state.db")
        case "bucket":
            made = BucketStateStore(FakeStorage(), FakeClock())
        case "bucket-directory":
            made = BucketStateStore(DirectoryStorage(tmp_path), FakeClock())
        case _:
            made = BucketStateStore(s3_storage(request.getfixturevalue("moto")), FakeClock())
    yield made
    made.close()


def wanted_of(store: StateStore, api: ApiKey = API) -> WantedApi:
    record = store.api(api)
    assert record is not None
    return record.wanted


def bounded(least: int, most: int, *, build: BuildSpec = V1) -> WantedApi:
    """An api with these bounds, at first with as few replicas as they allow."""
    return msgspec.structs.replace(a_wanted_api(build, min_replicas=least, replicas=least), max_replicas=most)


def line(build: BuildSpec, *, wall_s: float = 0.0) -> VersionLine:
    return VersionLine(
        api=API, version=build.version, revision=build.revision, deployed_wall_s=wall_s, cause="first deploy"
    )


def outcomes(store: StateStore) -> list[tuple[str, str]]:
    """(version's label, outcome), newest first."""
    labels = {V1.version: "v1", V2.version: "v2"}
    return [(labels[line.version], line.outcome) for line in store.history(API)]


def ended(attempt: int, exit_: ExitReport, *, was_ready: bool = True, replica: ReplicaId = SLOT) -> RecordExit:
    return RecordExit(api=API, revision=V1.revision, replica=replica, attempt=attempt, was_ready=was_ready, exit=exit_)


def crash(store: StateStore, attempt: int, *, wall_s: float, was_ready: bool = True, signal: int = 11) -> None:
    store.record_exit(ended(attempt, an_exit(signal=signal), was_ready=was_ready), wall_s=wall_s)


# ---- deploys ---------------------------------------------------------------------------------------------------------


def test_an_empty_store_wants_nothing(store: StateStore) -> None:
    assert store.desired(now_wall_s=0.0) == Desired()
    assert (store.deployments(), store.apis(), store.api(API), store.history(API)) == ((), (), None, ())


def test_a_deploy_is_there_as_it_was_given(store: StateStore) -> None:
    wanted = msgspec.structs.replace(a_wanted_api(V1), scale=Scale(replicas=3, since_wall_s=5.0), rollout_replicas=3)
    change = a_deploy(wanted, wall_s=5.0)
    store.commit_deploy(change)
    assert store.desired(now_wall_s=0.0) == Desired(apis=(wanted,))
    assert store.deployments() == (change.deployment,)
    assert store.apis() == store.apis(IRIS) == (a_record(wanted),)
    assert store.api(API) == a_record(wanted)
    assert store.versions() == (VersionRecord(build=V1),)
    assert store.history(API) == (line(V1, wall_s=5.0),)


def test_apis_that_a_deploy_leaves_out_are_removed_with_what_is_remembered_of_them(store: StateStore) -> None:
    other = ApiKey("iris/other")
    store.commit_deploy(a_deploy(a_wanted_api(V1), a_wanted_api(a_build(api=other))))
    crash(store, 1, wall_s=0.0)
    store.commit_deploy(a_deploy(a_wanted_api(a_build(api=other))))
    assert [record.wanted.api for record in store.apis()] == [other]
    assert store.desired(now_wall_s=0.0).records == ()
    assert [version.build.api for version in store.versions()] == [other]


def test_a_deployment_may_be_without_apis(store: StateStore) -> None:
    store.commit_deploy(a_deploy(deployment="empty"))
    assert [deployment.name for deployment in store.deployments()] == ["empty"]


def test_deployments_leave_each_other_alone(store: StateStore) -> None:
    store.commit_deploy(a_deploy(a_wanted_api(V1)))
    store.commit_deploy(a_deploy(a_wanted_api(a_build(api=ApiKey("default/a"))), deployment="default"))
    assert [record.wanted.api for record in store.apis()] == ["default/a", API]
    assert [record.wanted.api for record in store.apis(IRIS)] == [API]


def test_a_new_version_keeps_what_served_and_is_not_live_yet(store: StateStore) -> None:
    store.commit_deploy(a_deploy(a_wanted_api(V1)))
    store.mark_live(API, V1.revision, wall_s=7.0)
    store.commit_deploy(a_deploy(a_wanted_api(V2)))
    wanted = wanted_of(store)
    assert (wanted.build, wanted.serving, wanted.serving_was_live) == (V2, V1, True)
    assert wanted.live_wall_s is None


def test_the_same_version_stays_live_when_only_settings_change(store: StateStore) -> None:
    store.commit_deploy(a_deploy(a_wanted_api(V1)))
    store.mark_live(API, V1.revision, wall_s=7.0)
    sampled = msgspec.structs.replace(V1, sample=a_sample(b"[1]"))
    changed = msgspec.structs.replace(a_wanted_api(sampled), timeout_s=3.0)
    store.commit_deploy(a_deploy(changed, cause=""))
    wanted = wanted_of(store)
    assert (wanted.live_wall_s, wanted.timeout_s) == (7.0, 3.0)
    assert wanted.serving == sampled
    assert [(version.build, version.turn) for version in store.versions()] == [(sampled, 1)]
    assert outcomes(store) == [("v1", "live")]


def test_deploying_a_failed_version_again_gives_it_a_fresh_chance(store: StateStore) -> None:
    store.commit_deploy(a_deploy(a_wanted_api(V1)))
    for attempt in (1, 2, 3):
        crash(store, attempt, wall_s=0.0, was_ready=False)
    store.mark_failed(API, V1.revision, BOOM, wall_s=0.0)
    assert wanted_of(store).failed == BOOM
    store.commit_deploy(a_deploy(a_wanted_api(V1)))
    assert wanted_of(store).failed is None
    (record,) = store.desired(now_wall_s=0.0).records
    assert record.slots == {SLOT: SlotRecord(attempt=3)}


def test_runs_of_versions_that_cannot_come_back_are_forgotten(store: StateStore) -> None:
    store.commit_deploy(a_deploy(a_wanted_api(V1)))
    crash(store, 1, wall_s=0.0)
    store.commit_deploy(a_deploy(a_wanted_api(V2)))
    assert store.desired(now_wall_s=0.0).records == ()


def test_runs_of_the_version_that_serves_are_kept(store: StateStore) -> None:
    store.commit_deploy(a_deploy(a_wanted_api(V1)))
    store.mark_live(API, V1.revision, wall_s=0.0)
    crash(store, 1, wall_s=0.0)
    store.commit_deploy(a_deploy(a_wanted_api(V2)))
    assert [record.revision for record in store.desired(now_wall_s=0.0).records] == [V1.revision]


def test_an_api_or_a_whole_deployment_can_be_deleted(store: StateStore) -> None:
    other = ApiKey("iris/other")
    store.commit_deploy(a_deploy(a_wanted_api(V1), a_wanted_api(a_build(api=other))))
    assert store.delete(IRIS, API, wall_s=0.0)
    assert not store.delete(IRIS, API, wall_s=0.0)
    assert not store.delete(DeploymentName("default"), other, wall_s=0.0)
    assert [record.wanted.api for record in store.apis()] == [other]
    assert store.delete(IRIS, wall_s=0.0)
    assert not store.delete(IRIS, wall_s=0.0)
    assert (store.apis(), store.deployments(), store.versions()) == ((), (), ())


# ---- how many --------------------------------------------------------------------------------------------------------


def test_the_number_of_replicas_stays_within_the_bounds(store: StateStore) -> None:
    store.commit_deploy(a_deploy(bounded(2, 5), wall_s=1.0))
    counts = []
    for replicas in (1, 4, 9):
        store.set_scale(API, replicas, reason="busy", wall_s=2.0)
        counts.append(wanted_of(store).replicas)
    assert counts == [2, 4, 5]
    store.set_scale(ApiKey("iris/gone"), 3, reason="busy", wall_s=2.0)


def test_a_number_is_kept_with_why_and_since_when(store: StateStore) -> None:
    store.commit_deploy(a_deploy(bounded(1, 5), wall_s=1.0))
    store.set_scale(API, 3, reason="8 of 8 seats are busy", wall_s=2.0)
    grown = Scale(replicas=3, last_up_wall_s=2.0, reason="8 of 8 seats are busy", since_wall_s=2.0)
    assert wanted_of(store).scale == grown
    store.set_scale(API, 3, reason="still", wall_s=3.0)
    assert wanted_of(store).scale == grown
    store.set_scale(API, 1, reason="1 of 24 seats is busy", wall_s=4.0)
    fallen = Scale(replicas=1, last_up_wall_s=2.0, reason="1 of 24 seats is busy", since_wall_s=4.0)
    assert wanted_of(store).scale == fallen


def test_an_api_falls_asleep_if_it_may_and_is_what_it_was_when_that_was_decided(store: StateStore) -> None:
    store.commit_deploy(a_deploy(bounded(0, 5), wall_s=1.0))
    assert not store.fall_asleep(API, V2.revision, reason="nobody asked", wall_s=5.0)
    assert not wanted_of(store).scale.asleep
    assert store.fall_asleep(API, V1.revision, reason="nobody asked", wall_s=5.0)
    asleep = wanted_of(store).scale
    assert (asleep.asleep, asleep.replicas, asleep.reason, asleep.since_wall_s) == (True, 1, "nobody asked", 5.0)
    store.commit_deploy(a_deploy(bounded(1, 5), wall_s=6.0))
    assert not store.fall_asleep(API, V1.revision, reason="nobody asked", wall_s=7.0)
    assert not wanted_of(store).scale.asleep
    assert not store.fall_asleep(ApiKey("iris/gone"), V1.revision, reason="nobody asked", wall_s=7.0)


def test_a_deploy_that_overlaps_a_change_of_the_number_loses_neither(store: StateStore) -> None:
    store.commit_deploy(a_deploy(bounded(1, 5)))
    being_checked = a_deploy(bounded(1, 9, build=V2), wall_s=9.0)
    store.set_scale(API, 4, reason="busy", wall_s=3.0)
    store.commit_deploy(being_checked)
    wanted = wanted_of(store)
    assert (wanted.build, wanted.max_replicas) == (V2, 9)
    assert wanted.scale == Scale(replicas=4, last_up_wall_s=3.0, reason="busy", since_wall_s=3.0)


def test_an_api_that_was_deleted_and_is_deployed_again_begins_with_its_first_number(store: StateStore) -> None:
    store.commit_deploy(a_deploy(bounded(1, 5)))
    store.set_scale(API, 4, reason="busy", wall_s=1.0)
    store.delete(IRIS, API, wall_s=2.0)
    store.commit_deploy(a_deploy(bounded(1, 5), wall_s=3.0))
    assert wanted_of(store).scale == Scale(replicas=1, since_wall_s=3.0)


def test_a_rollout_needs_what_was_wanted_when_it_began(store: StateStore) -> None:
    store.commit_deploy(a_deploy(bounded(1, 5)))
    store.set_scale(API, 2, reason="busy", wall_s=1.0)
    store.commit_deploy(a_deploy(bounded(1, 5, build=V2)))
    store.set_scale(API, 5, reason="busy", wall_s=2.0)
    assert (wanted_of(store).rollout_replicas, wanted_of(store).replicas) == (2, 5)
    store.mark_live(API, V2.revision, wall_s=3.0)
    store.commit_deploy(a_deploy(bounded(1, 5, build=V2), cause=""))
    assert wanted_of(store).rollout_replicas == 2


# ---- versions --------------------------------------------------------------------------------------------------------


def go_live(store: StateStore, *labels: str, **named: Resources) -> None:
    for label in labels:
        build = a_build(label, **named)
        store.commit_deploy(a_deploy(a_wanted_api(build)))
        store.mark_live(API, build.revision, wall_s=0.0)


def trees(store: StateStore) -> list[str]:
    """Labels of the models of all that is kept, the last live ones in front."""
    labels = {a_build(f"v{number}").model.tree: f"v{number}" for number in range(20)}
    return [labels[version.build.model.tree] for version in store.versions()]


def test_the_last_ten_live_versions_are_kept_with_what_they_were_made_of(store: StateStore) -> None:
    go_live(store, *(f"v{number}" for number in range(13)))
    assert trees(store) == [f"v{number}" for number in range(12, 2, -1)]


def test_a_version_that_never_was_live_goes_with_the_next_deploy(store: StateStore) -> None:
    go_live(store, "v1")
    for label in ("v2", "v3"):
        store.commit_deploy(a_deploy(a_wanted_api(a_build(label))))
        assert trees(store) == ["v1", label]


def test_what_is_wanted_is_kept_beside_the_last_ten(store: StateStore) -> None:
    go_live(store, *(f"v{number}" for number in range(1, 11)), "v0")
    store.commit_deploy(a_deploy(a_wanted_api(a_build("v1"))))
    store.mark_failed(API, a_build("v1").revision, BOOM, wall_s=0.0)
    assert wanted_of(store).serving == a_build("v0")
    assert trees(store) == ["v0", *(f"v{number}" for number in range(10, 0, -1))]


def test_a_version_is_kept_with_the_resources_that_it_last_ran_with(store: StateStore) -> None:
    go_live(store, "v1", resources=Resources(cpu_millis=100))
    go_live(store, "v1", resources=Resources(cpu_millis=300))
    assert [version.build.resources.cpu_millis for version in store.versions()] == [300]
    failing = a_build("v1", resources=Resources(cpu_millis=900))
    store.commit_deploy(a_deploy(a_wanted_api(failing), cause=""))
    assert [version.build.resources.cpu_millis for version in store.versions()] == [300, 900]
    go_live(store, "v2")
    assert [version.build.resources.cpu_millis for version in store.versions()] == [200, 300]


def test_a_version_that_comes_back_is_the_last_live_one_again(store: StateStore) -> None:
    go_live(store, "v1", "v2", "v1")
    assert trees(store) == ["v1", "v2"]


def test_the_history_of_a_deleted_api_stays_for_a_fortnight_as_text(store: StateStore) -> None:
    go_live(store, "v1")
    store.commit_deploy(a_deploy(a_wanted_api(V2)))
    store.delete(IRIS, API, wall_s=100.0)
    assert store.versions() == ()
    assert outcomes(store) == [("v2", "deleted"), ("v1", "deleted")]
    store.commit_deploy(a_deploy(a_wanted_api(V1), wall_s=200.0))
    assert outcomes(store) == [("v1", ""), ("v2", "deleted"), ("v1", "deleted")]
    store.forget_deleted(now_wall_s=100.0 + 14 * 86400.0 - 1.0)
    assert len(outcomes(store)) == 3
    store.forget_deleted(now_wall_s=100.0 + 14 * 86400.0)
    assert outcomes(store) == [("v1", "")]


# ---- going back ------------------------------------------------------------------------------------------------------


def go_back(store: StateStore, label: str, *, wall_s: float = 50.0, reason: str = "") -> bool:
    """Whether the api went back to a version, as a rollback has it."""
    version = next(one for one in store.versions() if one.build.version == a_build(label).version)
    change = RollbackChange(
        version=version,
        instead_of=wanted_of(store).build.revision,
        cause="rolled back",
        reason=reason,
        wall_s=wall_s,
    )
    return store.roll_back(change)


def forward(store: StateStore, label: str) -> WantedApi:
    """What a deploy that knows that the api went back has of it."""
    return msgspec.structs.replace(a_wanted_api(a_build(label)), rolled_back=wanted_of(store).rolled_back)


def back(store: StateStore) -> list[str]:
    """Labels of what the api went back from, the latest last."""
    labels = {a_build(f"v{number}").revision: f"v{number}" for number in range(20)}
    mark = wanted_of(store).rolled_back
    return [labels[revision] for revision in mark.passed] if mark is not None else []


def test_an_api_goes_back_to_a_version_and_what_serves_goes_on_until_that_is_live(store: StateStore) -> None:
    store.commit_deploy(a_deploy(bounded(1, 5)))
    go_live(store, "v1", "v2")
    store.set_scale(API, 3, reason="busy", wall_s=1.0)
    assert go_back(store, "v1")
    wanted = wanted_of(store)
    assert (wanted.build, wanted.serving, wanted.serving_was_live, wanted.live_wall_s) == (V1, V2, True, None)
    assert (wanted.replicas, wanted.rollout_replicas, wanted.deployed_wall_s) == (3, 3, 50.0)
    assert wanted.rolled_back == RolledBack(wall_s=50.0, passed=(V2.revision,))
    assert outcomes(store) == [("v1", ""), ("v2", "live"), ("v1", "replaced"), ("v1", "replaced")]
    store.mark_live(API, V1.revision, wall_s=60.0)
    assert outcomes(store)[:2] == [("v1", "live"), ("v2", "rolled back")]
    assert [(one.build.version, one.turn, one.withdrawn_wall_s) for one in store.versions()] == [
        (V1.version, 3, None),
        (V2.version, 2, 50.0),
    ]


def test_a_decision_on_what_is_not_wanted_any_more_changes_nothing(store: StateStore) -> None:
    go_live(store, "v1", "v2")
    before = store.apis(), store.versions(), store.history(API)
    stale = RollbackChange(
        version=VersionRecord(build=V1), instead_of=a_build("v0").revision, cause="rolled back", wall_s=50.0
    )
    assert not store.roll_back(stale)
    assert (store.apis(), store.versions(), store.history(API)) == before


def test_what_it_went_back_from_is_kept_as_long_as_it_stays_so(store: StateStore) -> None:
    go_live(store, "v1")
    store.commit_deploy(a_deploy(a_wanted_api(V2)))  # on its way
    assert go_back(store, "v1", reason="40 of 80 requests failed\nand more")
    store.mark_live(API, V1.revision, wall_s=60.0)
    assert (trees(store), back(store)) == (["v1", "v2"], ["v2"])
    assert outcomes(store) == [("v1", "live"), ("v2", "rolled back: 40 of 80 requests failed"), ("v1", "replaced")]
    store.commit_deploy(a_deploy(forward(store, "v3")))
    assert (trees(store), back(store)) == (["v1", "v3"], [])


def test_going_back_further_remembers_all_and_coming_again_undoes_it(store: StateStore) -> None:
    go_live(store, "v1", "v2", "v3")
    for label in ("v2", "v1"):
        assert go_back(store, label)
        store.mark_live(API, a_build(label).revision, wall_s=60.0)
    assert back(store) == ["v3", "v2"]
    assert go_back(store, "v3")
    assert back(store) == []
    withdrawn = {one.build.version for one in store.versions() if one.withdrawn_wall_s is not None}
    assert withdrawn == {V2.version}


def test_a_deploy_leaves_what_went_back_since_it_looked(store: StateStore) -> None:
    go_live(store, "v1", "v2")
    being_checked = a_deploy(a_wanted_api(a_build("v3")), wall_s=70.0)
    assert go_back(store, "v1")
    before = store.api(API), store.history(API)
    assert store.commit_deploy(being_checked) == (API,)
    assert (store.api(API), store.history(API)) == before
    assert store.commit_deploy(a_deploy(forward(store, "v3"))) == ()
    assert (wanted_of(store).build, back(store)) == (a_build("v3"), [])


def test_a_deploy_that_leaves_it_there_changes_settings_only(store: StateStore) -> None:
    go_live(store, "v1", "v2")
    assert go_back(store, "v1")
    store.commit_deploy(a_deploy(msgspec.structs.replace(forward(store, "v1"), timeout_s=3.0), cause="", stays=True))
    assert (wanted_of(store).build, wanted_of(store).timeout_s, back(store)) == (V1, 3.0, ["v2"])


def test_a_new_version_is_compared_with_the_one_before_while_it_is_watched(store: StateStore) -> None:
    go_live(store, "v1")
    assert (wanted_of(store).previous, wanted_of(store).watched_until_wall_s) == (None, None)
    store.commit_deploy(a_deploy(msgspec.structs.replace(a_wanted_api(V2), watch_s=30.0)))
    assert (wanted_of(store).previous, wanted_of(store).watched_until_wall_s) == (V1.revision, None)
    assert store.watched() == ()
    store.mark_serving(API, V2.revision)
    store.mark_live(API, V2.revision, wall_s=100.0)
    assert (wanted_of(store).previous, wanted_of(store).watched_until_wall_s) == (V1.revision, 130.0)
    store.mark_live(API, V2.revision, wall_s=110.0)
    store.commit_deploy(a_deploy(msgspec.structs.replace(a_wanted_api(V2), watch_s=5.0), cause=""))
    assert wanted_of(store).watched_until_wall_s == 130.0
    assert [record.wanted.api for record in store.watched()] == [API]
    store.end_watch(API, V1.revision)
    store.end_watch(ApiKey("iris/gone"), V1.revision)
    assert wanted_of(store).previous == V1.revision
    store.end_watch(API, V2.revision)
    assert (wanted_of(store).previous, store.watched()) == (None, ())


def test_neither_other_resources_nor_a_rollback_are_watched_nor_anything_where_nobody_wants_it(
    store: StateStore,
) -> None:
    go_live(store, "v1")
    go_live(store, "v1", resources=Resources(cpu_millis=900))
    assert wanted_of(store).watched_until_wall_s is None
    store.commit_deploy(a_deploy(msgspec.structs.replace(a_wanted_api(V2), watch_s=0.0)))
    store.mark_live(API, V2.revision, wall_s=0.0)
    assert (wanted_of(store).previous, wanted_of(store).watched_until_wall_s) == (None, None)
    assert go_back(store, "v1")
    assert wanted_of(store).previous is None


def test_of_a_version_that_replaces_one_on_its_way_the_last_live_one_is_before(store: StateStore) -> None:
    go_live(store, "v1")
    for label in ("v2", "v3"):
        store.commit_deploy(a_deploy(a_wanted_api(a_build(label))))
        store.mark_serving(API, a_build(label).revision)
    assert wanted_of(store).previous == V1.revision
    assert trees(store) == ["v1", "v3"]


def test_what_it_went_back_from_can_be_excused(store: StateStore) -> None:
    go_live(store, "v1", "v2")
    assert go_back(store, "v1", reason="9 of 20 requests failed")
    store.mark_live(API, V1.revision, wall_s=60.0)
    mark = wanted_of(store).rolled_back
    assert mark is not None
    store.excuse(API, msgspec.structs.replace(mark, wall_s=1.0), "of another one")
    store.excuse(API, mark, "no fault of that version")
    assert wanted_of(store).rolled_back == msgspec.structs.replace(mark, excuse="no fault of that version")
    assert [one.withdrawn_wall_s for one in store.versions()] == [None, None]
    assert outcomes(store)[1] == ("v2", "rolled back: 9 of 20 requests failed; no fault of that version")
    store.mark_serving(API, V1.revision)
    assert [one.withdrawn_wall_s for one in store.versions()] == [None, None]


def test_a_count_of_refreshes_is_given_once(store: StateStore) -> None:
    assert store.refreshes(API) == 0
    go_live(store, "v1")
    change = a_deploy(a_wanted_api(V2))
    refreshed = [msgspec.structs.replace(one, version=VersionRecord(build=V2, refresh=1)) for one in change.apis]
    store.commit_deploy(msgspec.structs.replace(change, apis=tuple(refreshed)))
    store.commit_deploy(a_deploy(a_wanted_api(V1)))
    assert [one.refresh for one in store.versions()] == [0]
    assert store.refreshes(API) == 1


# ---- marks -----------------------------------------------------------------------------------------------------------


def test_a_version_that_goes_live_is_what_serves(store: StateStore) -> None:
    store.commit_deploy(a_deploy(a_wanted_api(V1)))
    for wall_s in (7.0, 9.0):
        store.mark_live(API, V1.revision, wall_s=wall_s)
    wanted = wanted_of(store)
    assert (wanted.serving, wanted.serving_was_live, wanted.live_wall_s) == (V1, True, 7.0)


def test_a_version_that_serves_in_part_is_what_a_failure_goes_back_to_but_was_not_live(store: StateStore) -> None:
    store.commit_deploy(a_deploy(a_wanted_api(V1)))
    store.mark_serving(API, V1.revision)
    wanted = wanted_of(store)
    assert (wanted.serving, wanted.serving_was_live, wanted.live_wall_s) == (V1, False, None)


def test_marks_for_a_version_that_is_not_wanted_any_more_are_ignored(store: StateStore) -> None:
    store.commit_deploy(a_deploy(a_wanted_api(V2)))
    before = store.apis()
    store.mark_serving(API, V1.revision)
    store.mark_live(API, V1.revision, wall_s=0.0)
    store.mark_failed(API, V1.revision, BOOM, wall_s=0.0)
    store.mark_live(ApiKey("iris/gone"), V1.revision, wall_s=0.0)
    assert store.apis() == before


def test_a_live_version_cannot_fail(store: StateStore) -> None:
    store.commit_deploy(a_deploy(a_wanted_api(V1)))
    store.mark_live(API, V1.revision, wall_s=0.0)
    store.mark_failed(API, V1.revision, BOOM, wall_s=0.0)
    assert wanted_of(store).failed is None


def test_a_version_that_goes_live_after_all_has_not_failed(store: StateStore) -> None:
    store.commit_deploy(a_deploy(a_wanted_api(V1)))
    store.mark_serving(API, V1.revision)
    store.mark_failed(API, V1.revision, BOOM, wall_s=0.0)
    store.mark_live(API, V1.revision, wall_s=0.0)
    assert wanted_of(store).failed is None


def test_history_tells_how_each_version_ended_newest_first(store: StateStore) -> None:
    store.commit_deploy(a_deploy(a_wanted_api(V1), wall_s=1.0))
    assert outcomes(store) == [("v1", "")]
    store.mark_live(API, V1.revision, wall_s=2.0)
    assert outcomes(store) == [("v1", "live")]
    store.commit_deploy(a_deploy(a_wanted_api(V2), wall_s=3.0))
    assert outcomes(store) == [("v2", ""), ("v1", "live")]
    store.mark_failed(API, V2.revision, BOOM, wall_s=4.0)
    assert outcomes(store) == [("v2", "failed: the model cannot be read"), ("v1", "live")]
    store.commit_deploy(a_deploy(a_wanted_api(V2), wall_s=5.0))
    store.mark_live(API, V2.revision, wall_s=6.0)
    assert outcomes(store) == [
        ("v2", "live"),
        ("v2", "failed: the model cannot be read"),
        ("v1", "replaced"),
    ]


def test_a_version_replaced_on_its_way_is_said_to_be(store: StateStore) -> None:
    store.commit_deploy(a_deploy(a_wanted_api(V1)))
    store.commit_deploy(a_deploy(a_wanted_api(V2)))
    assert outcomes(store) == [("v2", ""), ("v1", "replaced")]


def test_history_is_kept_for_the_last_hundred_versions(store: StateStore) -> None:
    for number in range(105):
        store.commit_deploy(a_deploy(a_wanted_api(a_build(f"v{number}")), wall_s=float(number)))
    lines = store.history(API)
    assert (len(lines), lines[0].deployed_wall_s, lines[-1].deployed_wall_s) == (100, 104.0, 5.0)


# ---- runs ------------------------------------------------------------------------------------------------------------


def test_exits_become_ages(store: StateStore) -> None:
    store.commit_deploy(a_deploy(a_wanted_api(V1)))
    crash(store, 1, wall_s=100.0)
    (record,) = store.desired(now_wall_s=107.5).records
    assert record == RunRecord(
        api=API,
        revision=V1.revision,
        slots={SLOT: SlotRecord(attempt=1, crash_pressure=1.0, last_exit=an_exit(signal=11), last_exit_age_s=7.5)},
        crashes=1,
        last_exit=an_exit(signal=11),
        last_exit_age_s=7.5,
        row=Row(count=1, ages_s=(7.5,)),
    )


def test_an_end_before_it_was_ready_is_a_crash_like_any_other(store: StateStore) -> None:
    store.commit_deploy(a_deploy(a_wanted_api(V1)))
    crash(store, 1, wall_s=100.0)
    store.record_exit(ended(2, an_exit(), was_ready=False), wall_s=101.0)
    store.record_exit(ended(3, an_exit(drained=True)), wall_s=102.0)
    (record,) = store.desired(now_wall_s=103.0).records
    assert (record.crashes, record.row.count) == (2, 2)


def test_ends_in_a_row_are_remembered_until_the_next_deploy(store: StateStore) -> None:
    store.commit_deploy(a_deploy(a_wanted_api(V1)))
    for attempt in (1, 2, 3):
        crash(store, attempt, wall_s=100.0 + attempt)
    (record,) = store.desired(now_wall_s=104.0).records
    assert record.row == Row(count=3, ages_s=(3.0, 2.0, 1.0), crashing=True)
    store.commit_deploy(a_deploy(a_wanted_api(V1)))
    (record,) = store.desired(now_wall_s=104.0).records
    assert record.row == Row()


def test_an_exit_is_counted_once(store: StateStore) -> None:
    store.commit_deploy(a_deploy(a_wanted_api(V1)))
    for _ in range(2):
        crash(store, 1, wall_s=100.0)
    (record,) = store.desired(now_wall_s=100.0).records
    assert (record.crashes, record.slots[SLOT].crash_pressure) == (1, 1.0)


def test_failed_starts_count_up_until_the_replica_is_ready(store: StateStore) -> None:
    store.commit_deploy(a_deploy(a_wanted_api(V1)))
    for attempt in (1, 2):
        crash(store, attempt, wall_s=0.0, was_ready=False)
    (record,) = store.desired(now_wall_s=0.0).records
    assert (record.crashes, record.slots[SLOT].failed_starts) == (2, 2)
    store.record_ready(API, V1.revision, SLOT)
    (record,) = store.desired(now_wall_s=0.0).records
    assert (record.slots[SLOT].failed_starts, record.slots[SLOT].attempt) == (0, 2)
    store.record_ready(API, V2.revision, SLOT)


def test_an_exit_of_an_api_that_is_gone_is_not_kept(store: StateStore) -> None:
    crash(store, 1, wall_s=0.0)
    assert store.desired(now_wall_s=0.0).records == ()


def test_an_age_is_never_below_zero_when_the_wall_clock_was_set_back(store: StateStore) -> None:
    store.commit_deploy(a_deploy(a_wanted_api(V1)))
    crash(store, 1, wall_s=1000.0)
    (record,) = store.desired(now_wall_s=10.0).records
    assert (record.last_exit_age_s, record.slots[SLOT].last_exit_age_s) == (0.0, 0.0)


def test_after_a_rebase_ages_count_on_although_the_wall_clock_was_set_back(store: StateStore) -> None:
    store.commit_deploy(a_deploy(a_wanted_api(V1)))
    crash(store, 1, wall_s=1000.0)
    store.rebase(now_wall_s=10.0)
    (record,) = store.desired(now_wall_s=15.0).records
    assert (record.last_exit_age_s, record.slots[SLOT].last_exit_age_s) == (5.0, 5.0)


# ---- the rest --------------------------------------------------------------------------------------------------------


def test_each_epoch_is_higher_than_the_one_before(store: StateStore) -> None:
    assert [store.take_epoch() for _ in range(3)] == [1, 2, 3]


def test_small_facts_are_kept_by_name(store: StateStore) -> None:
    assert store.meta("ports") is None
    store.set_meta("ports", "8880")
    store.set_meta("ports", "8882")
    assert store.meta("ports") == "8882"


def test_nodes_that_leave_are_part_of_what_is_wanted(store: StateStore) -> None:
    assert store.desired(now_wall_s=0.0).leaving == frozenset()
    before = store.revision
    store.set_leaving([NodeId("n2"), NodeId("n1")])
    assert store.revision != before
    assert store.desired(now_wall_s=0.0).leaving == store.leaving() == {"n1", "n2"}
    store.set_leaving([])
    assert store.desired(now_wall_s=0.0).leaving == frozenset()


def test_the_revision_changes_with_what_is_wanted_and_only_then(store: StateStore) -> None:
    seen = [store.revision]

    def changed() -> bool:
        seen.append(store.revision)
        return seen[-1] != seen[-2]

    store.commit_deploy(a_deploy(a_wanted_api(V1)))
    assert changed()
    store.desired(now_wall_s=0.0)
    store.take_epoch()
    store.set_meta("a", "b")
    store.record_ready(API, V1.revision, SLOT)
    assert not changed()
    crash(store, 1, wall_s=0.0)
    assert changed()
    crash(store, 1, wall_s=5.0)
    assert not changed()
    store.mark_live(API, V1.revision, wall_s=0.0)
    assert changed()
    store.set_scale(API, 2, reason="busy", wall_s=0.0)
    assert changed()
    store.set_scale(API, 2, reason="still", wall_s=1.0)
    assert not changed()
    store.delete(IRIS, wall_s=0.0)
    assert changed()


def test_readers_never_see_half_a_deploy(store: StateStore) -> None:
    keys = [ApiKey(f"iris/a{number}") for number in range(20)]

    def change(label: str) -> None:
        store.commit_deploy(a_deploy(*[a_wanted_api(a_build(label, api=key)) for key in keys]))

    change("v0")
    seen: list[set[frozenset[str]]] = [set(), set()]
    stop = threading.Event()

    def read(found: set[frozenset[str]]) -> None:
        while not stop.is_set():
            found.add(frozenset(wanted.build.model.tree for wanted in store.desired(now_wall_s=0.0).apis))

    readers = [threading.Thread(target=read, args=(found,)) for found in seen]
    for reader in readers:
        reader.start()
    number = 0
    try:
        # At least so often, and until both have read while it went on.
        while number < 30 or (min(map(len, seen)) < 3 and all(reader.is_alive() for reader in readers)):
            number += 1
            change(f"v{number}")
    finally:
        stop.set()
        for reader in readers:
            reader.join()
    assert min(map(len, seen)) >= 3
    assert {len(trees) for found in seen for trees in found} == {1}


def test_many_threads_may_write(store: StateStore) -> None:
    store.commit_deploy(a_deploy(a_wanted_api(V1)))

    def work(slot: int) -> None:
        name = replica_id(API, V1.revision, slot)
        for attempt in range(1, 11):
            store.record_exit(ended(attempt, an_exit(), replica=name), wall_s=0.0)

    threads = [threading.Thread(target=work, args=(slot,)) for slot in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (record,) = store.desired(now_wall_s=0.0).records
    assert record.crashes == 40
    assert {slot.attempt for slot in record.slots.values()} == {10}


def test_everything_of_an_api_is_kept(store: StateStore) -> None:
    version = VersionRecord(
        build=V1,
        spec={"name": "sklearn", "compute": {"min_replicas": 1, "cpu": 0.2}, "env": None},
        inspection=InspectReport(warnings=(BOOM,), has_pre=True),
        refresh=3,
    )
    change = a_deploy(a_wanted_api(V1))
    (api,) = change.apis
    store.commit_deploy(msgspec.structs.replace(change, apis=(msgspec.structs.replace(api, version=version),)))
    assert store.api(API) == a_record(a_wanted_api(V1), version)


def test_versions_of_other_apis_do_not_mix_into_a_history(store: StateStore) -> None:
    other = a_build(api=ApiKey("iris/other"))
    store.commit_deploy(a_deploy(a_wanted_api(V1), a_wanted_api(other)))
    assert [line.api for line in store.history(API)] == [API]
    assert store.history(API) == (line(V1),)


# ---- batching --------------------------------------------------------------------------------------------------------

MODEL = V1.model_key
PROOF = Proof(rules=7, proved=True, rounding="labels", rounding_operator="ArgMax a", operators=12)
TRIAL = Trial(runtime="onnxruntime 1.32.0, cpu, 1 thread", rows=24, worst=0.5)
APART = Disagreement(output="y", alone="0.5", together="0.7", difference=0.2, tolerance=1e-5)
STOP = BatchingStop(api=API, replica=SLOT, started_wall_s=3.0, runtime=TRIAL.runtime, disagreement=APART, wall_s=5.0)


def test_a_verdict_is_kept_by_model_and_rules(store: StateStore) -> None:
    older = Proof(rules=6, proved=False, operator="Conv c", reason="rows are dimension 2, not 0")
    store.record_verdict(MODEL, BatchingVerdict(proof=older), place="here")
    store.record_verdict(MODEL, BatchingVerdict(proof=PROOF, trial=TRIAL), place="here")
    store.record_verdict(V2.model_key, BatchingVerdict(proof=older), place="here")
    of_model = [record for record in store.batching() if record.model == MODEL]
    assert sorted(of_model, key=lambda record: record.rules) == [
        BatchingRecord(model=MODEL, rules=6, proof=older),
        BatchingRecord(model=MODEL, rules=7, proof=PROOF, trials=(TRIAL,), runtimes={"here": TRIAL.runtime}),
    ]
    assert len(store.batching()) == 3
    assert store.desired(now_wall_s=0.0).batching == store.batching()


def test_each_runtime_keeps_its_trial(store: StateStore) -> None:
    gpu = Trial(runtime="onnxruntime 1.32.0, cuda, 1 thread", rows=8, disagreement=APART)
    again = msgspec.structs.replace(TRIAL, rows=30)
    for trial, place in ((TRIAL, "cpu"), (gpu, "gpu"), (again, "cpu")):
        store.record_verdict(MODEL, BatchingVerdict(proof=PROOF, trial=trial), place=place)
    (record,) = store.batching()
    assert (record.trials, record.runtimes) == ((gpu, again), {"cpu": again.runtime, "gpu": gpu.runtime})


def test_a_disagreement_is_kept_once_for_each_run_of_a_replica(store: StateStore) -> None:
    store.record_verdict(MODEL, BatchingVerdict(proof=PROOF, trial=TRIAL), place="here")
    for stop in (STOP, msgspec.structs.replace(STOP, wall_s=9.0), msgspec.structs.replace(STOP, started_wall_s=7.0)):
        store.record_stop(MODEL, stop, rules=7)
    (record,) = store.batching()
    assert record.stops == (STOP, msgspec.structs.replace(STOP, started_wall_s=7.0))
    assert (record.proof, record.trials) == (PROOF, (TRIAL,))


def test_a_disagreement_outlives_a_new_verdict_of_the_same_rules(store: StateStore) -> None:
    store.record_stop(MODEL, STOP, rules=7)
    store.record_verdict(MODEL, BatchingVerdict(proof=PROOF, trial=TRIAL), place="here")
    (record,) = store.batching()
    assert (record.proof, record.stops) == (PROOF, (STOP,))


def test_what_is_known_of_rows_changes_what_is_wanted(store: StateStore) -> None:
    revisions = [store.revision]
    store.record_verdict(MODEL, BatchingVerdict(proof=PROOF, trial=TRIAL), place="here")
    revisions.append(store.revision)
    store.record_stop(MODEL, STOP, rules=7)
    revisions.append(store.revision)
    assert len(set(revisions)) == 3
    store.record_stop(MODEL, STOP, rules=7)
    store.record_verdict(MODEL, BatchingVerdict(proof=PROOF, trial=TRIAL), place="here")
    assert store.revision == revisions[-1]


def test_a_deploy_and_a_delete_leave_what_is_known_of_rows(store: StateStore) -> None:
    store.commit_deploy(a_deploy(a_wanted_api(V1)))
    store.record_stop(MODEL, STOP, rules=7)
    store.commit_deploy(a_deploy(a_wanted_api(V2)))
    store.delete(IRIS, wall_s=0.0)
    assert [record.stops for record in store.batching()] == [(STOP,)]


def test_what_is_known_of_models_that_are_gone_is_forgotten(store: StateStore) -> None:
    for build in (V1, V2):
        store.record_verdict(build.model_key, BatchingVerdict(proof=PROOF), place="here")
    store.prune_batching({V2.model.tree, "f" * 64})
    assert [record.model for record in store.batching()] == [V2.model_key]
    store.prune_batching(())
    assert store.batching() == ()


def test_disagreements_are_not_forgotten_while_there_is_the_api_that_saw_them(store: StateStore) -> None:
    store.commit_deploy(a_deploy(a_wanted_api(V2)))
    store.record_stop(MODEL, STOP, rules=7)
    store.prune_batching({V2.model.tree})
    assert [record.stops for record in store.batching()] == [(STOP,)]
    store.delete(IRIS, wall_s=0.0)
    store.prune_batching({V2.model.tree})
    assert store.batching() == ()


# ---- receipts --------------------------------------------------------------------------------------------------------

PASSED = Receipt(verdict=Verdict.PASSED, requests=12, wrong_version=0, p99_ms=1.5, examples=("x",))


def in_proof(store: StateStore, build: BuildSpec) -> None:
    """Deploy a build whose change-over is being proved."""
    change = a_deploy(a_wanted_api(build), cause="model changed")
    (deployed,) = change.apis
    store.commit_deploy(msgspec.structs.replace(change, apis=(msgspec.structs.replace(deployed, in_proof=True),)))


def test_a_receipt_is_kept_with_the_last_deploy_of_its_version(store: StateStore) -> None:
    store.commit_deploy(a_deploy(a_wanted_api(V1)))
    in_proof(store, V2)
    assert [record.wanted.in_proof for record in store.in_proof()] == [V2.revision]
    store.record_receipt(API, V2.revision, V2.version, PASSED)
    assert [line.receipt for line in store.history(API)] == [PASSED, None]
    assert store.in_proof() == ()
    assert wanted_of(store).in_proof is None


def test_a_receipt_that_comes_late_ends_no_other_proof(store: StateStore) -> None:
    in_proof(store, V1)
    in_proof(store, V2)
    store.record_receipt(API, V1.revision, V1.version, PASSED)
    assert [line.receipt for line in store.history(API)] == [None, PASSED]
    assert wanted_of(store).in_proof == V2.revision
    store.commit_deploy(a_deploy(a_wanted_api(V2), cause=""))
    assert wanted_of(store).in_proof == V2.revision, "the same deployed again goes on being proved"
    store.commit_deploy(a_deploy(a_wanted_api(V1)))
    assert store.in_proof() == ()


def test_a_receipt_of_an_api_that_is_gone_is_kept_with_its_text(store: StateStore) -> None:
    in_proof(store, V1)
    store.delete(IRIS, wall_s=5.0)
    store.record_receipt(API, V1.revision, V1.version, PASSED)
    store.record_receipt(ApiKey("iris/never"), V1.revision, V1.version, PASSED)
    assert [line.receipt for line in store.history(API)] == [PASSED]


def test_going_back_leaves_what_is_being_proved_to_whoever_writes_the_receipt(store: StateStore) -> None:
    store.commit_deploy(a_deploy(a_wanted_api(V1)))
    store.mark_live(API, V1.revision, wall_s=1.0)
    in_proof(store, V2)
    back = RollbackChange(version=VersionRecord(build=V1), instead_of=V2.revision, cause="back", wall_s=2.0)
    assert store.roll_back(back)
    assert (wanted_of(store).build, wanted_of(store).in_proof) == (V1, V2.revision)
    store.record_receipt(API, V2.revision, V2.version, PASSED)
    assert wanted_of(store).in_proof is None
    assert [line.receipt for line in store.history(API)] == [None, PASSED, None]
