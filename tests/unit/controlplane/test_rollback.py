"""Going back: which version it is, what it comes back as, and what history says of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from cortex.controlplane.rollback import AmbiguousVersion, NothingOlder, Rollbacks, UnknownVersion, VersionGone
from cortex.controlplane.versions import revision_of
from cortex.errors import Problem
from cortex.ids import Version, short
from cortex.planning.model import WantedApi
from cortex.state.base import VersionRecord
from cortex.state.records import StateStore
from cortex.state.secrets import SecretStore
from cortex.testing.builders import API, a_build, a_deploy, a_sample, a_wanted_api
from cortex.testing.clock import FakeClock
from cortex.wire.build import BuildSpec, Resources, SecretPin
from cortex.wire.events import Event, EventKind
from cortex.wire.operator import ChangeKind, HistoryLine, RollbackRequest, RollbackResult

BOOM = Problem(reference="model-broken", message="boom")


class World:
    """Rollbacks on a state in memory."""

    def __init__(self, folder: Path) -> None:
        self.clock = FakeClock()
        self.state = StateStore()
        self.secrets = SecretStore(folder)
        self.committed = 0
        self.events: list[Event] = []
        self.rollbacks = Rollbacks(
            state=self.state,
            secrets=self.secrets,
            clock=self.clock,
            committed=self._commit,
            ingress_url=lambda: "http://i",
            tell=self.events.append,
        )

    def _commit(self) -> None:
        self.committed += 1

    def deploy(self, build: str | BuildSpec, *, live: bool = True, **version: Any) -> BuildSpec:
        """A version is deployed, and goes live unless told otherwise."""
        build = a_build(build) if isinstance(build, str) else build
        change = a_deploy(a_wanted_api(build), wall_s=self.clock.wall_s())
        apis = tuple(msgspec.structs.replace(one, version=VersionRecord(build=build, **version)) for one in change.apis)
        self.state.commit_deploy(msgspec.structs.replace(change, apis=apis))
        if live:
            self.goes_live()
        return build

    def goes_live(self) -> None:
        self.state.mark_live(API, self.wanted.build.revision, wall_s=self.clock.wall_s())

    def back(self, version: str = "", *, live: bool = True, force: bool = False) -> RollbackResult:
        result = self.rollbacks.roll_back(API, RollbackRequest(version=version, force=force))
        assert result is not None
        if live:
            self.goes_live()
        return result

    @property
    def wanted(self) -> WantedApi:
        record = self.state.api(API)
        assert record is not None
        return record.wanted

    def history(self) -> list[HistoryLine]:
        return list(self.rollbacks.history(API))


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_going_back_is_told_once_it_is_written(world: World) -> None:
    v1, v2 = map(world.deploy, ("v1", "v2"))
    world.back()
    world.back(short(v1.version))
    (event,) = world.events
    assert (event.kind, event.text, event.version) == (
        EventKind.ROLLED_BACK,
        f"from {short(v2.version)}",
        short(v1.version),
    )


# ---- which version ---------------------------------------------------------------------------------------------------


def test_it_is_the_version_that_was_live_before_and_again_one_further_back(world: World) -> None:
    v1, v2, v3 = map(world.deploy, ("v1", "v2", "v3"))
    result = world.back()
    assert (result.change.kind, result.change.previous, result.change.version, result.already) == (
        ChangeKind.ROLLED_BACK,
        short(v3.version),
        short(v2.version),
        False,
    )
    assert result.change.endpoint == "http://i/iris/sklearn"
    assert world.wanted.build == v2
    world.back()
    assert world.wanted.build == v1
    with pytest.raises(NothingOlder) as refused:
        world.back()
    assert refused.value.candidates == (short(v2.version), short(v3.version))
    assert (world.wanted.build, world.committed) == (v1, 2)


def test_repeated_at_once_it_goes_further_back_and_not_forward_to_what_serves(world: World) -> None:
    v1, _v2, v3 = map(world.deploy, ("v1", "v2", "v3"))
    world.back(live=False)
    world.back(live=False)
    assert (world.wanted.build, world.wanted.serving) == (v1, v3)


def test_what_was_gone_back_from_is_not_gone_back_to_unless_it_is_named(world: World) -> None:
    v1, v2 = map(world.deploy, ("v1", "v2"))
    world.back()
    world.state.commit_deploy(
        a_deploy(msgspec.structs.replace(a_wanted_api(a_build("v3")), rolled_back=world.wanted.rolled_back))
    )
    world.goes_live()
    world.back()
    assert world.wanted.build == v1
    with pytest.raises(NothingOlder):
        world.back()
    world.back(short(v2.version))
    assert world.wanted.build == v2


@pytest.mark.parametrize("failed", [False, True])
def test_while_a_new_version_is_on_its_way_or_has_failed_it_is_the_one_that_serves(world: World, failed: bool) -> None:
    world.deploy("v1")
    v2 = world.deploy("v2")
    v3 = world.deploy("v3", live=False)
    if failed:
        world.state.mark_failed(API, v3.revision, BOOM, wall_s=0.0)
    world.back(live=False)
    assert (world.wanted.build, world.wanted.serving, world.wanted.failed) == (v2, v2, None)


def test_of_other_resources_on_their_way_it_is_those_that_serve(world: World) -> None:
    served = world.deploy(a_build("v1", resources=Resources(cpu_millis=100)))
    world.deploy(a_build("v1", resources=Resources(cpu_millis=900)), live=False)
    world.back()
    assert world.wanted.build == served


def test_a_version_goes_by_its_first_digits(world: World) -> None:
    v1, _v2 = map(world.deploy, ("v1", "v2"))
    world.back(v1.version[:4])
    assert world.wanted.build == v1


def test_the_version_that_is_wanted_is_said_to_be(world: World) -> None:
    world.deploy("v1")
    v2 = world.deploy("v2")
    before = world.state.history(API)
    assert world.back(short(v2.version)).already
    assert (world.state.history(API), world.committed) == (before, 0)


def test_an_unknown_version_is_refused_with_those_that_can_come_back(world: World) -> None:
    v1, _v2 = map(world.deploy, ("v1", "v2"))
    with pytest.raises(UnknownVersion) as refused:
        world.back("nonsense")
    assert refused.value.candidates == (short(v1.version),)
    assert short(v1.version) in refused.value.hint


def test_digits_that_fit_several_versions_are_refused(world: World) -> None:
    builds = [
        msgspec.structs.replace(a_build(label), version=Version(digest.ljust(64, "0")))
        for label, digest in (("v1", "aaaaaaaa1"), ("v2", "aaaaaaaa2"), ("v3", "bb"))
    ]
    for build in builds:
        world.deploy(build)
    with pytest.raises(AmbiguousVersion) as refused:
        world.back("aa")
    assert refused.value.candidates == ("aaaaaaaa1", "aaaaaaaa2")
    world.back("aaaaaaaa1")
    assert world.wanted.build == builds[0]


def test_a_version_that_was_never_live_or_is_not_kept_cannot_come_back(world: World) -> None:
    v0 = world.deploy("v0")
    never = world.deploy("never", live=False)
    for number in range(1, 12):
        world.deploy(f"v{number}")
    for build in (v0, never):
        with pytest.raises(VersionGone) as refused:
            world.back(short(build.version))
        assert refused.value.obstacle == "it is not kept: only the last 10 versions that were live are"
        assert len(refused.value.candidates) == 9


def test_a_version_that_was_rolled_back_on_its_way_never_was_live(world: World) -> None:
    world.deploy("v1")
    v2 = world.deploy("v2", live=False)
    world.back()
    with pytest.raises(VersionGone) as refused:
        world.back(short(v2.version))
    assert refused.value.obstacle == "it never was live"


def test_of_an_api_that_is_not_there_nothing_comes_back(world: World) -> None:
    assert world.rollbacks.roll_back(API, RollbackRequest()) is None
    world.deploy("v1")
    world.state.delete(API.partition("/")[0], wall_s=1.0)  # type: ignore[arg-type]
    assert world.rollbacks.roll_back(API, RollbackRequest()) is None


def test_what_a_deploy_makes_wanted_meanwhile_is_taken_into_account(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    _v1, v2 = map(world.deploy, ("v1", "v2"))
    write = world.state.roll_back

    def overtaken(change: Any) -> bool:
        monkeypatch.setattr(world.state, "roll_back", write)
        world.deploy("v3")
        return write(change)

    monkeypatch.setattr(world.state, "roll_back", overtaken)
    world.back()
    assert world.wanted.build == v2


# ---- what it comes back as -------------------------------------------------------------------------------------------


def spec(cpu: str, timeout: str, **compute: int) -> dict[str, Any]:
    return {"name": "sklearn", "timeout": timeout, "retry": "on", "compute": {"cpu": cpu, "max_replicas": 9, **compute}}


def test_it_comes_back_as_it_ran_with_the_settings_of_now(world: World) -> None:
    sampled = msgspec.structs.replace(
        a_build("v1", resources=Resources(cpu_millis=100)), sample=a_sample(b"1", timeout_s=9.0), concurrency=3
    )
    world.deploy(sampled, spec=spec("100m", "9s", min_replicas=1))
    world.deploy("v2", spec=spec("200m", "10m", min_replicas=2))
    result = world.back(force=True)
    record = world.state.api(API)
    assert record is not None
    assert record.version.build == msgspec.structs.replace(sampled, sample=a_sample(b"1", timeout_s=600.0))
    assert record.version.spec == spec("100m", "10m", min_replicas=2)
    assert record.wanted.force
    assert result.change.causes == ("model changed", "cpu 200m -> 100m")


def test_what_leads_to_clouds_is_what_was_handed_over_last(world: World) -> None:
    first, last = (SecretPin(name="iris.sklearn", generation=g) for g in ("1", "2"))

    def handled(label: str, pin: SecretPin) -> BuildSpec:
        build = msgspec.structs.replace(a_build(label), handler="h.py", project="p", cloud=pin)
        return msgspec.structs.replace(build, revision=revision_of(build))

    v1, v2 = (world.deploy(handled(label, pin)) for label, pin in (("v1", first), ("v2", last)))
    world.back()
    assert (world.wanted.build.version, world.wanted.build.cloud) == (v1.version, last)
    assert world.wanted.build.revision != v1.revision
    assert world.back(short(v1.version)).already
    world.deploy(msgspec.structs.replace(handled("v3", last), cloud=None), live=False)
    world.back(short(v2.version), live=False)
    assert world.wanted.build.cloud == last


def with_token(world: World, label: str, value: str) -> BuildSpec:
    facts = world.secrets.set("api-token", value, wall_s=world.clock.wall_s())
    pin = SecretPin(name="api-token", generation=facts.generation)
    return msgspec.structs.replace(a_build(label), secrets={"TOKEN": pin})


def test_a_value_of_before_is_told(world: World) -> None:
    world.deploy(with_token(world, "v1", "old"))
    v2 = world.deploy(with_token(world, "v2", "new"))
    (note,) = world.back().change.notes
    assert note.startswith("TOKEN has the value of ")
    assert note.endswith(" again: `cortex refresh iris/sklearn` takes today's")
    assert world.back(short(v2.version)).change.notes == ()


def test_a_version_whose_secret_was_deleted_cannot_come_back(world: World) -> None:
    v0 = world.deploy("v0")
    v1 = world.deploy(with_token(world, "v1", "old"))
    world.deploy("v2")
    world.secrets.delete("api-token")
    world.secrets.set("api-token", "another", wall_s=0.0)
    with pytest.raises(VersionGone) as refused:
        world.back(short(v1.version))
    obstacle = "the value of the secret api-token that it had was deleted"
    assert (refused.value.obstacle, refused.value.candidates) == (obstacle, (short(v0.version),))
    assert [line.obstacle for line in world.history()] == ["", obstacle, ""]
    world.back()
    assert world.wanted.build == v0


# ---- history ---------------------------------------------------------------------------------------------------------


def test_history_says_what_serves_what_is_wanted_and_what_cannot_come_back(world: World) -> None:
    world.deploy("v1")
    world.deploy("v2")
    world.back(live=False)
    told = [(line.outcome, line.serving, line.wanted, line.rolled_back, line.obstacle) for line in world.history()]
    assert told == [
        ("", False, True, False, ""),
        ("live", True, False, False, ""),
        ("replaced", False, False, False, ""),
    ]
    world.goes_live()
    told = [(line.outcome, line.serving, line.wanted, line.rolled_back, line.obstacle) for line in world.history()]
    assert told == [
        ("live", True, True, False, ""),
        ("rolled back", False, False, True, ""),
        ("replaced", False, False, False, ""),
    ]
    world.state.delete(API.partition("/")[0], wall_s=1.0)  # type: ignore[arg-type]
    assert {(line.serving, line.wanted, line.obstacle) for line in world.history()} == {
        (False, False, "its api was deleted")
    }
