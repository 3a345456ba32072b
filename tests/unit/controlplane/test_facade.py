"""What the API calls, on the real loop, view and statistics, with pretended nodes and a deployer that only stores."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cortex.artifacts.store import ArtifactStore
from cortex.controlplane.audit import Audit
from cortex.controlplane.changeovers import ChangeOvers
from cortex.controlplane.events import Events
from cortex.controlplane.facade import ControlPlane
from cortex.controlplane.fetching import Models
from cortex.controlplane.loop import Loop
from cortex.controlplane.nodes import NodeUsage
from cortex.controlplane.probing import Probing
from cortex.controlplane.rollback import Rollbacks
from cortex.controlplane.scaling import Scaling
from cortex.controlplane.secrets import CloudKeys, Secrets
from cortex.controlplane.statistics import Statistics
from cortex.controlplane.tokens import Tokens
from cortex.controlplane.view import View
from cortex.engines.fake import FakeEngine
from cortex.ids import ApiKey, DeploymentName, NodeId, ReplicaId
from cortex.planning.model import WantedApi
from cortex.planning.status import statuses
from cortex.settings import load_settings
from cortex.state.base import StateFull, VersionRecord
from cortex.state.records import StateStore
from cortex.state.secrets import SecretStore
from cortex.testing.builders import API, a_build, a_deploy, a_node, a_wanted_api
from cortex.testing.clock import FakeClock
from cortex.testing.fake_agent import FakeAgents
from cortex.wire.agent import LogLine, LogLines, ReadLogs
from cortex.wire.build import BuildSpec, TrackerConfig
from cortex.wire.events import Event, EventKind
from cortex.wire.launch import InspectReport
from cortex.wire.needs import DeliverCounts
from cortex.wire.operator import (
    CURRENT,
    ApiChange,
    ChangeKind,
    CloudVariables,
    DeployProgress,
    DeployRequest,
    DeployResult,
    EventPage,
    NodeState,
    Removed,
    RollbackRequest,
    Status,
    StopRequest,
)
from cortex.wire.signature import Signature, TensorSpec
from cortex.wire.stats import StatsFile, TrackerStats

DEADLINE_S = 30.0
OTHER = ApiKey("iris/other")
IRIS = DeploymentName("iris")
V1 = a_build("v1")
REQUEST = DeployRequest(deployment="iris", source="/home/ann/iris", apis=())
SIGNATURE = Signature((TensorSpec("x", "float32", (None, 4)),), (TensorSpec("y", "float32", (None,)),))


class FakeAgent(FakeAgents):
    """Stands for `LinkedAgents`: notes in `story` what it was told."""

    def __init__(self, clock: FakeClock, story: list[str]) -> None:
        super().__init__(clock)
        self._story = story

    def start(self) -> None:
        self._story.append("agent started")

    def close(self) -> None:
        self._story.append("agent closed")

    def stop_agents(self, drain_timeout_s: float) -> None:
        self._story.append(f"agent stopped, draining {drain_timeout_s:g} s")

    def read_logs(self, request: ReadLogs) -> LogLines:
        return LogLines(lines=(LogLine(wall_s=1.0, replica=ReplicaId("r"), text=f"of {request.api}"),), cursor="c")

    def count_now(self) -> None:
        self._story.append("counted")


class Lab:
    """A control plane whose deployer stores what `deploys` says."""

    def __init__(self, folder: Path) -> None:
        self.story: list[str] = []
        """What was done to the parts around it, in order."""
        self.clock = clock = FakeClock()
        self.state = StateStore()
        self.agent = FakeAgent(clock, self.story)
        self.cloud = SecretStore(folder / "cloud")
        self.cloud_file = folder / "cloud.json"
        self.view = View()
        self.loop = Loop(
            state=self.state,
            engine=FakeEngine([a_node()], clock=clock),
            agents=self.agent,
            clock=clock,
            in_charge=lambda: True,
            resign=lambda: None,
            show=lambda assessment: self.view.publish(tuple(statuses(assessment, "http://i").values())),
            changed=lambda: None,
        )
        self.events = Events(file=folder / "events.db", clock=clock)
        store = ArtifactStore(folder / "artifacts")
        self.deploys: list[tuple[DeployResult, Sequence[WantedApi]]] = []
        self.statistics = Statistics(
            file=folder / "stats.db",
            clock=clock,
            reports=self.agent.reports,
            wanted=lambda: (record.wanted.api for record in self.state.apis()),
        )
        self.plane = ControlPlane(
            settings=load_settings({"CORTEX_HOME": str(folder / "home"), "CORTEX_OPERATOR_PORT": "4321"}),
            clock=clock,
            state=self.state,
            store=store,
            engine=FakeEngine([a_node()], clock=clock),
            agents=self.agent,  # type: ignore[arg-type]
            loop=self.loop,
            view=self.view,
            statistics=self.statistics,
            scaling=Scaling(
                state=self.state,
                engine=FakeEngine([a_node()], clock=clock),
                clock=clock,
                latest=lambda: self.loop.latest,
                downscale_window_s=300.0,
                changed=self.loop.wake,
            ),
            secrets=Secrets(store=SecretStore(folder / "secrets"), known=self.state.apis, clock=clock),
            tokens=Tokens(file=folder / "tokens.json", home="a-token", clock=clock),
            audit=Audit(folder / "audit", clock),
            cloud_keys=CloudKeys(self.cloud, clock),
            models=Models(store=store, known=self.state.apis, cloud_file=self.cloud_file, environ={}),
            make_deployer=self.make_deployer,  # type: ignore[arg-type]
            change_overs=ChangeOvers(
                state=self.state,
                store=store,
                clock=clock,
                ask=Probing,
                serves_alone=lambda api: False,
                ingress_url=lambda: "",
                token=lambda: "",
                committed=lambda: None,
            ),
            rollbacks=Rollbacks(
                state=self.state,
                secrets=SecretStore(folder / "secrets"),
                clock=clock,
                committed=lambda: self.story.append("an older version is wanted"),
                ingress_url=lambda: "http://i",
            ),
            events=self.events,
            usage=NodeUsage(),
            homes={a_node().node: folder / "home"},
            read_logs=self.agent.read_logs,
            ingress_url=lambda: "http://i",
            wanted_changed=lambda: self.story.append("other things are wanted"),
            parts=(self,),
            shut_down=lambda: self.story.append("shut down"),
        )

    # ---- a part, and the deployer -------------------------------------------------------------------------------

    def start(self) -> None:
        self.story.append("part started")

    def close(self) -> None:
        self.story.append("part closed")

    def make_deployer(self) -> Lab:
        self.story.append("deployer made")
        return self

    def deploy(self, name: str, request: DeployRequest, emit: Any, left: threading.Event | None) -> DeployResult:
        emit(DeployProgress(message="checking"))
        result, apis = self.deploys.pop(0)
        if result.committed:
            self.state.commit_deploy(a_deploy(*apis, deployment=name))
        return result

    # ---- what tests do ------------------------------------------------------------------------------------------

    def store(self, *builds: BuildSpec, **version: Any) -> None:
        """What a deploy leaves in the state."""
        change = a_deploy(*map(a_wanted_api, builds), wall_s=self.clock.wall_s())
        apis = tuple(
            msgspec.structs.replace(api, version=VersionRecord(build=api.version.build, **version))
            for api in change.apis
        )
        self.state.commit_deploy(msgspec.structs.replace(change, apis=apis))
        self.loop.catch_up()

    def wrote(self, build: BuildSpec, ok: int) -> None:
        """A replica of a build has answered so many requests, with class `a`, and its node has delivered that."""
        replica = ReplicaId(f"{build.api.replace('/', '.')}.{build.revision[:8]}.0")
        file = StatsFile(
            replica=replica,
            attempt=1,
            api=build.api,
            version=build.version,
            wall_s=self.clock.wall_s(),
            ok=ok,
            tracker=TrackerStats(classes={"a": ok}),
        )
        files = (msgspec.Raw(msgspec.json.encode(file)),)
        self.statistics.take(DeliverCounts(agent="a", number=1, files=files), NodeId("local"))

    def keep_cloud(self, api: ApiKey) -> None:
        """A deploy of an api has handed over credentials."""
        CloudKeys(self.cloud, self.clock).pinned(api, CloudVariables(variables={"AWS_REGION": "eu"}), None)
        self.cloud_file.write_bytes(b"{}")

    def has_cloud(self) -> bool:
        return bool(self.cloud.all()) or self.cloud_file.exists()

    def requests(self) -> dict[str, int]:
        return {f"{api.deployment}/{api.name}": api.requests.ok for api in self.plane.apis(None)}


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    lab = Lab(tmp_path)
    lab.plane.start()
    lab.story.clear()
    yield lab
    lab.plane.close()


def change(api: str, kind: ChangeKind) -> ApiChange:
    return ApiChange(api=api, kind=kind)


# ---- life -----------------------------------------------------------------------------------------------------------


def test_all_parts_are_started_and_closed_with_it(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.plane.start()
    lab.plane.close()
    assert lab.story == ["agent started", "part started", "part closed", "agent closed"]
    assert lab.plane.stopping
    assert not lab.plane.stopped, "what runs goes on"


def test_it_stops_in_order_and_answers_with_what_it_was(lab: Lab) -> None:
    lab.store(V1)
    lab.story.clear()
    info = lab.plane.stop(StopRequest(drain_timeout_s=7.0))
    assert (lab.plane.stopping, lab.plane.stopped) == (True, True)
    assert lab.story == ["agent stopped, draining 7 s", "shut down"]
    assert info.apis == 1
    lab.store(a_build("v2"))
    assert lab.plane.apis("iris")[0].version == V1.version[:8], "nothing more is decided"


# ---- changes --------------------------------------------------------------------------------------------------------


def test_a_deploy_shows_once_it_is_done(lab: Lab) -> None:
    told: list[DeployProgress] = []
    lab.deploys = [
        (DeployResult(changes=(change("sklearn", ChangeKind.ADDED),), committed=True), [a_wanted_api(V1)]),
        (DeployResult(changes=(), committed=False), []),
    ]
    assert lab.plane.deploy("iris", REQUEST, told.append).committed
    assert [(api.name, api.version) for api in lab.plane.apis("iris")] == [("sklearn", V1.version[:8])]
    assert not lab.plane.deploy("iris", REQUEST, told.append).committed
    assert told == [DeployProgress(message="checking")] * 2
    assert lab.story.count("deployer made") == 1


@pytest.mark.parametrize("committed", [True, False])
def test_what_a_deploy_removes_is_forgotten_with_its_counts_and_credentials(lab: Lab, committed: bool) -> None:
    lab.store(V1, a_build("v1", api=OTHER))
    lab.wrote(V1, 3)
    lab.keep_cloud(API)
    assert lab.requests() == {"iris/sklearn": 3, "iris/other": 0}
    removal = DeployResult(changes=(change("sklearn", ChangeKind.REMOVED),), committed=committed)
    lab.deploys = [(removal, [a_wanted_api(a_build("v1", api=OTHER))])]
    lab.plane.deploy("iris", REQUEST, lambda _progress: None)
    lab.store(V1, a_build("v1", api=OTHER))
    assert lab.requests()["iris/sklearn"] == (0 if committed else 3)
    assert lab.has_cloud() != committed


def test_a_deleted_api_is_gone_with_its_counts_and_credentials(lab: Lab) -> None:
    other = a_build("v1", api=OTHER)
    lab.store(V1, other)
    lab.wrote(V1, 3)
    lab.wrote(other, 4)
    lab.keep_cloud(API)
    assert lab.plane.delete(IRIS, API) == Removed(apis=(API,))
    assert "other things are wanted" in lab.story
    assert not lab.has_cloud()
    lab.store(V1, other)
    assert lab.requests() == {"iris/sklearn": 0, "iris/other": 4}


def test_a_whole_deployment_is_deleted_with_all_its_apis(lab: Lab) -> None:
    lab.store(V1, a_build("v1", api=OTHER))
    removed = lab.plane.delete(IRIS, None)
    assert removed is not None
    assert sorted(removed.apis) == [OTHER, API]
    assert {api.status for api in lab.plane.apis("iris")} <= {Status.STOPPING}


@pytest.mark.parametrize(("deployment", "api"), [("iris", OTHER), ("nobody", None)])
def test_deleting_what_is_not_there_changes_nothing(lab: Lab, deployment: str, api: ApiKey | None) -> None:
    lab.store(V1)
    lab.story.clear()
    assert lab.plane.delete(DeploymentName(deployment), api) is None
    assert (lab.story, len(lab.state.apis())) == ([], 1)


def test_credentials_that_cannot_be_removed_do_not_fail_the_delete(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    lab.store(V1)
    lab.cloud_file.mkdir()
    assert lab.plane.delete(IRIS, None) == Removed(apis=(API,))
    assert "credentials of removed apis could not be removed" in caplog.text


def test_a_delete_that_cannot_be_stored_forgets_nothing(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.store(V1)
    lab.wrote(V1, 3)
    lab.keep_cloud(API)

    def full(*_: object, **__: object) -> bool:
        raise StateFull("state.db", "no space left")

    monkeypatch.setattr(lab.state, "delete", full)
    with pytest.raises(StateFull):
        lab.plane.delete(IRIS, None)
    assert (lab.requests(), lab.has_cloud()) == ({"iris/sklearn": 3}, True)


# ---- questions ------------------------------------------------------------------------------------------------------


def test_info_says_what_is_here_and_what_it_asks_for(lab: Lab) -> None:
    before = lab.plane.info()
    lab.store(V1)
    info = lab.plane.info()
    assert (before.apis, info.apis) == (0, 1)
    assert (info.pid, info.operator, info.ingress) == (os.getpid(), "http://127.0.0.1:4321", "http://i")
    assert (info.cpu_millis, info.mem_bytes) == (a_node().cpu_millis, a_node().mem_bytes)
    assert info.notes == ()
    assert [(node.name, node.home) for node in info.nodes] == [(a_node().node, info.home)]


def test_info_is_answered_before_anything_was_heard_of_a_node(lab: Lab) -> None:
    lab.agent.lose_node(a_node().node)
    lab.agent.forget_reports()
    info = lab.plane.info()
    assert (info.agent_pid, info.ingress_pid, info.ingress_up, info.replicas) == (None, None, False, 0)
    assert [node.state for node in info.nodes] == [NodeState.STARTING]


def test_requests_shown_are_those_of_the_wanted_version(lab: Lab) -> None:
    v2 = a_build("v2")
    lab.store(V1)
    lab.wrote(V1, 3)
    assert lab.requests() == {"iris/sklearn": 3}
    lab.store(v2)
    lab.wrote(v2, 1)
    assert lab.requests() == {"iris/sklearn": 1}
    assert "counted" in lab.story, "the ingress is asked for its own before anybody is answered"


def test_one_api_is_told_with_all_that_is_known_of_it(lab: Lab) -> None:
    build = msgspec.structs.replace(V1, tracker=TrackerConfig(model_type="classification"))
    lab.store(build, spec={"name": "sklearn"}, inspection=InspectReport(signature=SIGNATURE))
    lab.wrote(build, 2)
    api = lab.plane.api("iris", "sklearn")
    assert api is not None
    assert (api.spec, api.signature, api.requests.ok) == ({"name": "sklearn"}, SIGNATURE, 2)
    assert api.tracker is not None
    assert api.tracker["classes"] == {"a": 2}
    for number in range(5):
        lab.events.tell(Event(kind=EventKind.LIVE, api=API, text=str(number)))
    api = lab.plane.api("iris", "sklearn")
    assert api is not None
    assert [event.text for event in api.events] == ["2", "3", "4"]
    assert lab.plane.api("iris", "nobody") is None


def test_deployments_are_told_by_what_is_true_of_their_apis(lab: Lab) -> None:
    lab.store(V1)
    (deployment,) = lab.plane.deployments()
    assert (deployment.name, deployment.apis, deployment.source) == ("iris", 1, "/home/ann/iris")


def test_a_watcher_is_answered_with_counts_as_soon_as_something_has_changed(lab: Lab) -> None:
    lab.store(V1)
    lab.wrote(V1, 3)
    lab.plane.apis(None)

    async def watched() -> tuple[str, dict[str, int], str]:
        first = await lab.plane.watch("", DEADLINE_S, "iris")
        waiting = asyncio.create_task(lab.plane.watch(first.token, DEADLINE_S, "iris"))
        await asyncio.to_thread(lab.store, a_build("v1", api=OTHER))
        return first.token, {api.name: api.requests.ok for api in first.apis}, (await waiting).token

    before, counts, after = asyncio.run(watched())
    assert counts == {"sklearn": 3}
    assert before != after


def test_prometheus_is_told_of_every_api(lab: Lab) -> None:
    lab.store(V1)
    lab.wrote(V1, 3)
    page = lab.plane.metrics()
    assert 'api="sklearn"' in page
    assert "cortex_build_info" in page


def test_revisions_and_history_of_an_api_are_found_by_its_version(lab: Lab) -> None:
    lab.store(V1)
    assert lab.plane.revisions(API, CURRENT) == (V1.revision[:8],)
    assert lab.plane.revisions(API, V1.version[:8]) == (V1.revision[:8],)
    assert lab.plane.revisions(API, "00000000") == ()
    assert lab.plane.revisions(OTHER, CURRENT) == ()
    (line,) = lab.plane.history(API)
    assert (line.version, line.cause) == (V1.version[:8], "first deploy")
    assert lab.plane.history(OTHER) == ()


def events(lab: Lab, api: ApiKey | None = None, after: str = "") -> EventPage | None:
    return asyncio.run(lab.plane.events(deployment=None, api=api, limit=10, after=after, wait_s=0.0))


def test_events_are_told_of_what_there_is_and_of_what_was_there_lately(lab: Lab) -> None:
    assert events(lab, API) is None
    page = events(lab)
    assert page is not None
    assert events(lab, API, page.cursor) is not None, "who follows it is told that it is gone by its last event"
    lab.store(V1)
    assert events(lab, API) == page
    lab.plane.delete(IRIS, None)
    found = events(lab, API)
    assert found is not None
    assert [(line.kind, line.text, line.version) for line in found.events] == [("deleted", "by hand", V1.version[:8])]
    assert events(lab, OTHER) is None


def test_a_rollback_shows_once_it_is_done(lab: Lab) -> None:
    v2 = a_build("v2")
    for build in (V1, v2):
        lab.store(build)
        lab.state.mark_live(API, build.revision, wall_s=0.0)
    result = lab.plane.roll_back(API, RollbackRequest())
    assert result is not None
    assert (result.change.kind, result.change.version) == (ChangeKind.ROLLED_BACK, V1.version[:8])
    assert lab.plane.apis(None)[0].version == V1.version[:8]
    assert lab.plane.roll_back(OTHER, RollbackRequest()) is None
    assert lab.story.count("an older version is wanted") == 1


def test_logs_are_read_by_the_agent(lab: Lab) -> None:
    assert lab.plane.logs(ReadLogs(api=API)).lines[0].text == f"of {API}"
