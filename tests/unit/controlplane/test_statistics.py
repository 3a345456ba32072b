"""Tests of `cortex.controlplane.statistics`: from what nodes deliver to what is shown of an api."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cortex.controlplane.statistics import Statistics
from cortex.ids import ApiKey, NodeId, ReplicaId, Version
from cortex.metrics.store import StatsStoreUnusable
from cortex.planning.watching import Answers
from cortex.testing.builders import a_build, a_replica, an_agent_report
from cortex.testing.clock import FakeClock
from cortex.wire.build import TrackerConfig
from cortex.wire.needs import CountsTaken, DeliverCounts
from cortex.wire.operator import ApiStatus, Status
from cortex.wire.reports import AgentReport, IngressRefusals, IngressReport, Node, Phase, ReplicaReport
from cortex.wire.stats import StatsFile, TrackerStats

API, OLD, NEW = ApiKey("iris/sklearn"), Version("a" * 64), Version("b" * 64)
CLASSES = TrackerConfig(model_type="classification")
STATUS = ApiStatus(
    deployment="iris", name="sklearn", status=Status.LIVE, endpoint="", version=NEW[:8], last_updated=None
)


class World:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "stats.db"
        self.files: dict[ReplicaId, StatsFile] = {}
        """What replicas have written and their node has not seen deleted."""
        self.clock = FakeClock()
        self.reports: tuple[AgentReport, ...] = ()
        self.wanted = {API}
        self.statistics = self.restarted()

    def restarted(self) -> Statistics:
        """Another control plane on the same files."""
        return Statistics(
            file=self.file,
            clock=self.clock,
            reports=lambda: self.reports,
            wanted=lambda: self.wanted,
        )

    def wrote(self, version: Version, classes: dict[str, int], **facts: Any) -> None:
        """A replica of this version has answered so many requests."""
        replica = ReplicaId(f"iris.sklearn.{version[:8]}.0")
        self.files[replica] = StatsFile(
            replica=replica,
            attempt=1,
            api=API,
            version=version,
            wall_s=self.clock.wall_s(),
            ok=sum(classes.values()),
            tracker=TrackerStats(classes=classes),
            **facts,
        )

    def deliver(self) -> CountsTaken:
        files = tuple(msgspec.Raw(msgspec.json.encode(file)) for file in self.files.values())
        return self.statistics.take(DeliverCounts(agent="a", number=1, files=files, durably=True), NodeId("local"))

    def collect(self) -> None:
        self.deliver()
        self.statistics.collect()

    def shown(self, version: Version = NEW, tracker: TrackerConfig | None = CLASSES) -> ApiStatus:
        self.collect()
        return self.statistics.with_everything(STATUS, version, tracker)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.statistics.close()


def test_a_version_is_shown_by_itself_and_all_together(world: World) -> None:
    world.wrote(OLD, {"a": 2, "b": 1}, client_error=4)
    world.wrote(NEW, {"b": 5})
    shown = world.shown()
    assert (shown.requests.ok, shown.requests.client_error) == (5, 0)
    assert shown.tracker is not None
    assert shown.tracker["classes"] == {"b": 5}
    assert shown.all_versions is not None
    assert shown.all_versions.versions == 2
    assert (shown.all_versions.requests.ok, shown.all_versions.requests.client_error) == (8, 4)
    assert shown.all_versions.tracker is not None
    assert shown.all_versions.tracker["classes"] == {"b": 6, "a": 2}


def test_the_last_hour_is_shown_by_minute(world: World) -> None:
    world.wrote(NEW, {"a": 6})
    world.collect()
    world.clock.advance(120.0)
    world.wrote(NEW, {"a": 7})
    traffic = world.shown().traffic
    assert traffic is not None
    assert traffic.minutes[-3:] == (6, 0, 1)
    assert (len(traffic.minutes), sum(traffic.minutes)) == (60, 7)
    assert traffic.per_second == pytest.approx(1 / 60, abs=0.001)


def test_without_a_tracker_there_is_traffic_and_no_prediction(world: World) -> None:
    world.wrote(NEW, {"a": 1})
    shown = world.shown(tracker=None)
    assert shown.tracker is None
    assert shown.all_versions is not None
    assert shown.all_versions.tracker is None
    assert shown.traffic is not None


def test_what_the_ingress_refused_is_in_the_counts_of_the_version_it_routed_to(world: World) -> None:
    refusals = IngressRefusals(instance="haproxy 1", api=API, version=NEW, client_error=2, server_error=3)
    ingress = IngressReport(up=True, host="127.0.0.1", port=8880, refusals=(refusals,))
    node = Node(node="local", cpu_millis=1000, mem_bytes=1)  # type: ignore[arg-type]
    world.reports = (AgentReport(node=node, serial=1, agent="a", epoch=1, pid=1, started_wall_s=0.0, ingress=ingress),)
    shown = world.shown()
    assert (shown.requests.client_error, shown.requests.server_error) == (2, 3)
    assert shown.traffic is not None
    assert shown.traffic.minutes[-1] == 5


def test_counts_outlive_the_control_plane_and_the_replicas_files(world: World) -> None:
    world.wrote(NEW, {"a": 3}, last=True)
    before = world.shown()
    assert world.deliver().durable
    world.files.clear()
    world.statistics.close()
    world.statistics = world.restarted()
    assert world.shown() == before


def test_an_unusable_file_shows_no_figures_and_breaks_nothing(world: World) -> None:
    world.statistics.close()
    world.file = world.folder / "nowhere" / "stats.db"
    world.statistics = world.restarted()
    world.statistics.collect()
    assert world.statistics.with_everything(STATUS, NEW, CLASSES) == STATUS
    with pytest.raises(StatsStoreUnusable):
        world.deliver()


def test_what_is_delivered_to_a_control_plane_that_ends_is_not_taken(world: World) -> None:
    world.wrote(NEW, {"a": 3})
    world.statistics.close()
    with pytest.raises(StatsStoreUnusable, match="ends"):
        world.deliver()
    world.statistics = world.restarted()
    assert world.shown().requests.ok == 3


def removed_with_a_request_in_hand(world: World) -> ReplicaReport:
    """The replica, as it was; nothing had been answered yet."""
    replica = a_replica(a_build("v1", api=API))
    replica = msgspec.structs.replace(replica, replica=ReplicaId(f"iris.sklearn.{replica.version[:8]}.0"))
    world.wrote(replica.version, {}, run="old")
    world.reports = (a_report(replica),)
    world.collect()
    world.wanted.clear()
    world.collect()
    world.statistics.forget([API])
    return replica


def a_report(*replicas: ReplicaReport) -> AgentReport:
    node = Node(node=NodeId("local"), cpu_millis=4000, mem_bytes=2**32)
    return AgentReport(node=node, serial=1, agent="a", epoch=1, pid=1, started_wall_s=0.0, replicas=replicas)


def test_what_a_removed_api_had_in_hand_counts_neither_for_it_nor_for_the_next_of_its_name(world: World) -> None:
    replica = removed_with_a_request_in_hand(world)
    world.reports = (a_report(msgspec.structs.replace(replica, phase=Phase.DRAINING)),)
    world.wanted.add(API)
    world.collect()
    world.wrote(replica.version, {"a": 1}, run="old", last=True)
    assert world.shown(replica.version).requests.ok == 0
    world.wrote(replica.version, {"a": 2}, run="new")
    world.reports = (a_report(replica),)
    assert world.shown(replica.version).requests.ok == 2, "attempts are numbered anew"


def test_a_replica_that_was_first_seen_after_the_removal_counts_as_well_once_it_is_taken_over(world: World) -> None:
    replica = a_replica(a_build("v1", api=API))
    replica = msgspec.structs.replace(replica, replica=ReplicaId(f"iris.sklearn.{replica.version[:8]}.0"))
    world.reports = (a_report(replica),)
    world.wanted.clear()
    world.collect()
    world.statistics.forget([API])
    world.collect()
    world.wrote(replica.version, {"a": 1}, run="late")
    world.collect()
    world.wanted.add(API)
    world.collect()
    world.wrote(replica.version, {"a": 3}, run="late")
    assert world.shown(replica.version).requests.ok == 2


def test_a_replica_that_the_next_api_of_its_name_takes_over_goes_on_counting(world: World) -> None:
    replica = removed_with_a_request_in_hand(world)
    world.wanted.add(API)
    world.collect()
    world.wrote(replica.version, {"a": 3}, run="old")
    assert world.shown(replica.version).requests.ok == 3


def test_what_a_new_version_is_compared_with_is_told_by_version_and_by_minute(world: World) -> None:
    world.clock.advance(30.0)
    world.wrote(OLD, {"a": 20}, client_error=5, server_error=6, unavailable=2)
    refused = IngressRefusals(instance="haproxy 1", api=API, version=OLD, client_error=2, server_error=5, failed=3)
    ingress = IngressReport(up=True, host="", port=1, refusals=(refused,))
    world.reports = (an_agent_report(ingress=ingress),)
    world.collect()
    world.clock.advance(60.0)
    world.wrote(OLD, {"a": 30}, client_error=5, server_error=6, unavailable=2)
    world.collect()
    assert world.statistics.answers(API, OLD) == Answers(37, 7)
    assert world.statistics.answers(API, NEW) == Answers()
    now_s = world.clock.wall_s()
    assert world.statistics.minutes(API, OLD, until_wall_s=now_s, minutes=60) == (Answers(27, 7), Answers(10, 0))
    assert world.statistics.minutes(API, OLD, until_wall_s=now_s - 60.0, minutes=60) == (Answers(27, 7),)
