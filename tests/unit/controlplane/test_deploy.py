"""Tests of `cortex.controlplane.deploy`: state in memory, a real artifact store, inspections from a table."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from cortex.artifacts import samples
from cortex.artifacts.errors import ArtifactCorrupt, InvalidTree
from cortex.artifacts.fetching import FetchStopped
from cortex.artifacts.store import ArtifactStore
from cortex.controlplane import candidates
from cortex.controlplane.changeovers import BEFORE_S, LONGEST_BEFORE_S, LONGEST_S, ChangeOvers
from cortex.controlplane.deploy import Deployer
from cortex.controlplane.fetching import DeployLeft, Models
from cortex.controlplane.lines import CalledOff
from cortex.controlplane.packages import Packages
from cortex.controlplane.rollback import Rollbacks
from cortex.controlplane.secrets import CloudKeys
from cortex.controlplane.supplying import UnderWay
from cortex.controlplane.upkeep import wanted_trees
from cortex.engines.local import LocalEngine
from cortex.errors import CortexError, GiveUp, Problem, Problems
from cortex.ids import ApiKey, DeploymentName, short
from cortex.planning.batching import BatchingStop, place_of
from cortex.spec.locations import masked_model
from cortex.spec.models import ApiSpec
from cortex.state.records import StateStore
from cortex.state.secrets import SecretStore, unpacked_cloud
from cortex.testing.builders import a_node
from cortex.testing.clock import FakeClock
from cortex.wire.batching import RULES, BatchingVerdict, Disagreement, Proof, Trial
from cortex.wire.events import Event, EventKind
from cortex.wire.fetch import Fetched, FetchProgress, Origin, OriginObject
from cortex.wire.launch import InspectReport
from cortex.wire.operator import (
    ApiChange,
    ApiUpload,
    ChangeKind,
    CloudVariables,
    DeployProgress,
    DeployRequest,
    ModelUpload,
    RollbackRequest,
    SampleUpload,
    StoredFile,
)
from cortex.wire.probing import ProbeAnswer
from cortex.wire.signature import Signature, TensorSpec

SIGNATURE = Signature(inputs=(TensorSpec("x", "float32", (None, 4)),), outputs=(TensorSpec("y", "string", (None,)),))
PROVED = BatchingVerdict(proof=Proof(rules=RULES, proved=True, operators=3), trial=Trial(runtime="ort, cpu", rows=9))
GOOD = InspectReport(signature=SIGNATURE)
KEY = ApiKey("iris/a")
DEADLINE_S = 60.0
"""For anything that another thread does; generous, since the machine may be busy."""


class NoNode:
    """Nothing here has packages."""

    def resolve_packages(self, request, tell):
        raise AssertionError("no requirements.txt, no resolving")

    def install_packages(self, build, tell):
        raise AssertionError("no packages, no environment")


class FakeFetcher:
    """Stands for the process that fetches: puts bytes into the store, as they are at the origin right now."""

    def __init__(self, store: ArtifactStore) -> None:
        self.store = store
        self.at_origin: dict[str, str] = {}
        """Content by URL."""
        self.failure: CortexError | None = None
        self.asked: list[str] = []
        self.clouds: list[dict[str, str]] = []
        self.known: list[list[str]] = []
        """ETags that each fetch was told of."""
        self.before: Callable[[threading.Event], None] = lambda stop: None
        """Called while it fetches."""

    def __call__(self, request, *, cloud, environ, tell, stop) -> Fetched:
        self.asked.append(request.model)
        self.clouds.append(dict(cloud))
        self.known.append([one.etag for known in request.known for one in known.origin.objects])
        tell(FetchProgress(done_bytes=0, total_bytes=len(self.at_origin.get(request.model, ""))))
        self.before(stop)
        if stop.is_set():
            raise FetchStopped("nobody waits")
        if self.failure is not None:
            raise self.failure
        content = self.at_origin[request.model].encode()
        tell(FetchProgress(done_bytes=len(content), total_bytes=len(content)))
        with self.store.writer() as writer:
            writer.write(content)
            blob = writer.commit()
        shown = masked_model(request.model)
        one = OriginObject(
            url=shown, size_bytes=len(content), etag=f'"{content.decode()}"', modified_wall_s=0.0, sha256=blob.sha256
        )
        return Fetched(
            origin=Origin(url=shown, objects=(one,)),
            model=ModelUpload(
                files=(StoredFile(path="m.onnx", sha256=blob.sha256),), entry="m.onnx", format="onnx", note="m.onnx"
            ),
            read_bytes=len(content),
            read_objects=1,
        )


class Asked(list):
    """An api that is asked: its answers."""

    has_ended = False
    is_closed = False

    def answers(self):
        return tuple(self)

    def close(self):
        self.is_closed = True


class World:
    """A deployer with everything around it; describes deploys in a few words."""

    def __init__(self, folder: Path) -> None:
        self.store = ArtifactStore(folder / "artifacts")
        self.fetcher = FakeFetcher(self.store)
        self.state = StateStore()
        self.clock = FakeClock()
        self.reports: dict[str, InspectReport | CortexError] = {}
        """By api; all others are fine."""
        self.verdicts: dict[str, BatchingVerdict | None] = {}
        """Of an api's model's rows; of all others they are proved."""
        self.inspected: list[str] = []
        self.kept: list[str] = []
        """Inspected to be started at once."""
        self.asked_of_rows: list[tuple[str, str]] = []
        self.inspect = self.looked_at
        self.committed = 0
        self.events: list[Event] = []
        self.starts_s: dict[str, float] = {}
        """What the last start took, by api."""
        self.told: list[DeployProgress] = []
        self.cloud = SecretStore(folder / "secrets" / ".cloud")
        self.secrets = SecretStore(folder / "secrets")
        self.rollbacks = Rollbacks(
            state=self.state,
            secrets=self.secrets,
            clock=self.clock,
            committed=self._commit,
            ingress_url=lambda: "http://127.0.0.1:8880",
        )
        self.models = Models(
            store=self.store,
            known=self.state.apis,
            cloud_file=folder / "cloud.json",
            environ={},
            run=self.fetcher,
        )
        self.asked: list[Asked] = []
        """Whom change-overs were proved of, the last one last."""
        self.serves_alone = False
        self.seen_alone = threading.Event()
        self.change_overs = ChangeOvers(
            state=self.state,
            store=self.store,
            clock=self.clock,
            ask=self.ask,
            serves_alone=self._looked_alone,
            ingress_url=lambda: "http://127.0.0.1:8880",
            token=lambda: "the-token",
            committed=self._commit,
            tell=self.events.append,
        )
        self.deployer = Deployer(
            state=self.state,
            store=self.store,
            engine=LocalEngine(a_node()),
            clock=self.clock,
            inspect=lambda *what, **how: self.inspect(*what, **how),
            models=self.models,
            packages=Packages(
                under_way=UnderWay(),
                store=self.store,
                node=NoNode(),
                known=self.state.apis,
                indexes_file=folder / "indexes.json",
            ),
            secrets=self.secrets,
            cloud=CloudKeys(self.cloud, self.clock),
            change_overs=self.change_overs,
            committed=self._commit,
            ingress_url=lambda: "http://127.0.0.1:8880",
            tell=self.events.append,
            last_start_s=self.starts_s.get,
        )

    def looked_at(self, build, rows, left, *, keep) -> InspectReport:
        name = build.api.partition("/")[2]
        self.inspected.append(name)
        self.kept += [name] if keep else []
        self.asked_of_rows.append((name, rows))
        report = self.reports.get(name, GOOD)
        if isinstance(report, CortexError):
            raise report
        return report if rows == "off" else msgspec.structs.replace(report, batching=self.verdicts.get(name, PROVED))

    def _commit(self) -> None:
        self.committed += 1

    def _looked_alone(self, api) -> bool:
        if self.serves_alone:
            self.seen_alone.set()
        return self.serves_alone

    def ask(self, request) -> Asked:
        self.probed = request
        self.asked.append(Asked())
        return self.asked[-1]

    def stored(self, **files: str) -> tuple[StoredFile, ...]:
        """Files by name, `__` for a dot, uploaded."""
        uploaded = []
        for name, content in files.items():
            with self.store.writer() as writer:
                writer.write(content.encode())
                uploaded.append(StoredFile(path=name.replace("__", "."), sha256=writer.commit().sha256))
        return tuple(uploaded)

    def api(self, name="a", *, model="bytes", sample=None, entry="model.onnx", **fields) -> ApiUpload:
        spec = ApiSpec(name=name, model="model.onnx", **fields)
        return ApiUpload(
            spec=spec.model_dump(mode="json", exclude_unset=True),
            model=ModelUpload(files=self.stored(model__onnx=model), entry=entry, format="onnx"),
            sample=None if sample is None else self.sample(sample),
        )

    def sample(self, body: bytes) -> SampleUpload:
        """A sample, uploaded."""
        with self.store.writer() as writer:
            writer.write(body)
            return SampleUpload(sha256=writer.commit().sha256, content_type="application/json", gate=True)

    def remote(self, model: str, name="a", **fields) -> ApiUpload:
        """An api whose model has to be fetched."""
        return ApiUpload(spec=ApiSpec(name=name, model=model, **fields).model_dump(mode="json", exclude_unset=True))

    def deploy(self, *apis: ApiUpload, name="iris", source="/home/ann/iris", project=(), **fields):
        request = DeployRequest(deployment=name, source=source, apis=apis, project=tuple(project), **fields)
        return self.deployer.deploy(name, request, self.told.append)

    def problems(self, *apis: ApiUpload, **fields) -> list[Problem]:
        """What a deploy that is refused is refused for; nothing may have changed."""
        before = self.everything()
        with pytest.raises(Problems) as refused:
            self.deploy(*apis, **fields)
        assert self.everything() == before
        return list(refused.value.problems)

    def everything(self):
        histories = [self.state.history(record.wanted.api) for record in self.state.apis()]
        return self.state.apis(), self.state.deployments(), histories, self.committed

    def change(self, *apis: ApiUpload, **fields) -> ApiChange:
        """What a deploy says about its one api."""
        (change,) = self.deploy(*apis, **fields).changes
        return change

    def wanted(self, key=KEY):
        return self.state.api(key).wanted

    def live(self, *apis: ApiUpload, **fields) -> str:
        """Deploy, and the first api goes live; returns its version."""
        change = self.deploy(*apis, **fields).changes[0]
        self.state.mark_live(KEY, self.wanted().build.revision, wall_s=self.clock.wall_s())
        return change.version

    def roll_back(self, version="", key=KEY) -> ApiChange:
        change = self.rollbacks.roll_back(key, RollbackRequest(version=version)).change
        self.state.mark_live(KEY, self.wanted().build.revision, wall_s=self.clock.wall_s())
        return change


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


# ---- what changes ----------------------------------------------------------------------------------------------------


def test_a_first_deploy_adds_its_apis_and_makes_them_wanted(world):
    result = world.deploy(world.api("a"), world.api("b", model="others"))
    assert [(c.api, c.kind, c.endpoint) for c in result.changes] == [
        ("a", ChangeKind.ADDED, "http://127.0.0.1:8880/iris/a"),
        ("b", ChangeKind.ADDED, "http://127.0.0.1:8880/iris/b"),
    ]
    assert result.committed
    assert world.committed == 1
    record = world.state.api(KEY)
    assert record.version.inspection == GOOD
    assert (record.wanted.replicas, record.wanted.path) == (1, "/iris/a")
    assert [short(line.version) for line in world.state.history(KEY)] == [result.changes[0].version]
    assert world.state.deployments()[0].source == "/home/ann/iris"


def happened(world) -> list[tuple[str, str, str | None]]:
    told = [(str(event.kind), event.text, event.api) for event in world.events]
    world.events.clear()
    return told


def test_what_a_deploy_changes_is_told_api_by_api_once_it_is_written(world):
    world.deploy(world.api("a"), world.api("b"), dry_run=True)
    assert happened(world) == []
    world.deploy(world.api("a"), world.api("b"))
    assert happened(world) == [("deployed", "added", "iris/a"), ("deployed", "added", "iris/b")]
    world.deploy(world.api("a"), world.api("b"))
    assert happened(world) == []
    world.deploy(world.api("a", compute={"min_replicas": 3}))
    assert happened(world) == [
        ("deployed", "settings changed: min_replicas 1 -> 3, init_replicas 1 -> 3", "iris/a"),
        ("scaled", "1 -> 3 replicas: the bounds have changed", "iris/a"),
        ("deleted", "left out of its cortex.yaml", "iris/b"),
    ]
    world.problems(world.api("a", model="other", sample=None), world.api("a"))
    assert happened(world) == []


def test_an_api_that_sleeps_and_starts_for_longer_than_its_timeout_is_warned_of(world):
    sleeps = {"compute": {"min_replicas": 0}, "timeout": "5s"}
    assert world.deploy(world.api("a", **sleeps)).warnings == ()
    world.starts_s["iris/a"] = 5.0
    assert world.deploy(world.api("a", **sleeps)).warnings == ()
    world.starts_s["iris/a"] = 7.2
    (warning,) = world.deploy(world.api("a", **sleeps), dry_run=True).warnings
    assert (warning.reference, warning.subject, warning.path) == (
        "timeout-shorter-than-start",
        'api "a": timeout',
        ("apis", 0, "timeout"),
    )
    assert warning.message == "its last start took 7.2 s, longer than its `timeout` of 5 s: who wakes it is told 504"
    assert "above 8s" in warning.hint
    assert world.deploy(world.api("a", timeout="5s")).warnings == (), "one that does not sleep"


def test_what_a_version_is_made_of_is_kept(world):
    project = world.stored(handler__py="pass")
    world.deploy(world.api(request_handler="handler.py"), project=project)
    build = world.wanted().build
    assert wanted_trees(world.state) == ({build.model.tree, build.project}, {build.version})


def test_the_same_again_changes_nothing_and_is_not_inspected_again(world):
    first = world.change(world.api())
    deployed_s = world.wanted().deployed_wall_s
    world.clock.advance(60)
    again = world.change(world.api())
    assert (again.kind, again.version, again.causes) == (ChangeKind.UNCHANGED, first.version, ())
    assert world.wanted().deployed_wall_s == deployed_s
    assert world.inspected == ["a"]
    assert len(world.state.history(KEY)) == 1


def test_the_same_again_is_no_update_in_any_view(world):
    world.deploy(world.api())
    (before,) = world.state.deployments()
    world.clock.advance(60.0)
    world.deploy(world.api())
    (again,) = world.state.deployments()
    assert again.updated_wall_s == before.updated_wall_s == world.wanted().deployed_wall_s
    world.clock.advance(60.0)
    world.deploy(world.api(timeout="5s"))
    (changed,) = world.state.deployments()
    assert changed.updated_wall_s == world.wanted().deployed_wall_s > before.updated_wall_s


def test_only_what_is_fine_is_called_checked(world):
    world.reports["b"] = InspectReport(problems=(Problem(reference="model-broken", message="boom"),))
    world.problems(world.api(), world.api("b", model="other"))
    told = {(event.api, event.message) for event in world.told if event.api}
    assert told == {("a", "checked model"), ("b", "found fault with model")}


def test_other_bytes_make_a_new_version_and_say_which_file(world):
    first = world.change(world.api())
    again = world.change(world.api(model="new bytes"))
    assert (again.kind, again.previous) == (ChangeKind.NEW_VERSION, first.version)
    assert again.causes == ("model changed (model.onnx changed)",)
    assert world.inspected == ["a", "a"]
    assert [line.cause for line in world.state.history(KEY)] == ["model changed (model.onnx changed)", "first deploy"]


def test_a_changed_handler_makes_a_new_version_of_the_apis_that_have_one(world):
    apis = (world.api("a", request_handler="handler.py"), world.api("b"))
    world.deploy(*apis, project=world.stored(handler__py="1"))
    result = world.deploy(*apis, project=world.stored(handler__py="2"))
    assert [(c.api, c.kind, c.causes) for c in result.changes] == [
        ("a", ChangeKind.NEW_VERSION, ("handler.py changed",)),
        ("b", ChangeKind.UNCHANGED, ()),
    ]


def test_other_resources_roll_the_same_version(world):
    first = world.change(world.api())
    revision = world.wanted().build.revision
    again = world.change(world.api(compute={"cpu": "500m"}))
    assert (again.kind, again.version, again.causes) == (ChangeKind.ROLLED, first.version, ("cpu 200m -> 500m",))
    assert world.wanted().build.revision != revision
    assert world.inspected == ["a"]


def test_settings_change_in_place(world):
    world.deploy(world.api())
    build = world.wanted().build
    change = world.change(world.api(timeout="5s", compute={"max_replicas": 7}))
    assert change.kind is ChangeKind.SETTINGS
    assert (world.wanted().timeout_s, world.wanted().max_replicas) == (5.0, 7)
    assert world.wanted().build == build


def test_another_sample_makes_no_new_replicas(world):
    world.deploy(world.api(sample=b"1"))
    revision = world.wanted().build.revision
    change = world.change(world.api(sample=b"2"))
    assert (change.kind, change.causes, change.sample_untried) == (ChangeKind.SETTINGS, ("sample changed",), True)
    told = "the new sample is tried when a replica starts next: `cortex refresh iris/a` does it now"
    assert change.notes[-1] == told
    assert not world.change(world.api(sample=b"2")).sample_untried
    assert world.change(world.api(sample=b"2", timeout="5s")).causes == ("timeout 10m -> 5s",)
    assert world.wanted().build.revision == revision
    assert world.wanted().build.sample.tree == samples.tree_of(b"2")
    assert world.change(world.api(sample=b"3", timeout="6s")).causes == ("timeout 5s -> 6s", "sample changed")


def test_the_body_of_a_sample_is_stored_and_kept_as_long_as_its_build(world):
    world.deploy(world.api(sample=b"[1]"))
    tree = world.wanted().build.sample.tree
    assert samples.body_file(world.store, tree).read_bytes() == b"[1]"
    assert tree in wanted_trees(world.state)[0]


def test_a_sample_that_was_not_uploaded_changes_nothing(world):
    upload = msgspec.structs.replace(
        world.api(), sample=SampleUpload(sha256="0" * 64, content_type="application/json", gate=True)
    )
    (problem,) = world.problems(upload)
    assert (problem.reference, problem.path) == ("blobs-missing", ("apis", 0))
    assert "sample" in problem.message


def test_a_sample_whose_stored_body_was_damaged_is_put_right_by_deploying_it_again(world):
    world.deploy(world.api(sample=b"[1]"))
    file = samples.body_file(world.store, world.wanted().build.sample.tree)
    file.chmod(0o644)
    file.write_bytes(b"[2]")
    with pytest.raises(ArtifactCorrupt):
        samples.body_file(world.store, world.wanted().build.sample.tree)
    world.deploy(world.api(sample=b"[1]"))
    assert samples.body_file(world.store, world.wanted().build.sample.tree).read_bytes() == b"[1]"


def test_an_api_that_is_not_in_the_file_any_more_is_removed(world):
    world.deploy(world.api("a"), world.api("b"))
    result = world.deploy(world.api("a"))
    assert [(c.api, c.kind) for c in result.changes] == [("a", ChangeKind.UNCHANGED), ("b", ChangeKind.REMOVED)]
    assert [record.wanted.api for record in world.state.apis()] == [KEY]


def test_a_deploy_touches_no_other_deployment(world):
    world.deploy(world.api())
    world.deploy(world.api("b"), name="other")
    assert [record.wanted.api for record in world.state.apis()] == ["iris/a", "other/b"]


def test_a_refresh_makes_new_versions_of_the_same_bytes(world):
    first = world.change(world.api())
    again = world.change(world.api(), refresh=True)
    assert (again.kind, again.causes) == (ChangeKind.NEW_VERSION, ("refreshed",))
    assert again.version != first.version
    assert world.change(world.api()).kind is ChangeKind.UNCHANGED


def test_one_api_may_be_refreshed_alone(world):
    world.deploy(world.api("b"), world.api("a"))
    result = world.deploy(world.api("b"), world.api("a"), refresh=True, refresh_only="a")
    assert [(c.api, c.kind, c.causes) for c in result.changes] == [
        ("b", ChangeKind.UNCHANGED, ()),
        ("a", ChangeKind.NEW_VERSION, ("refreshed",)),
    ]


def test_what_failed_is_tried_again_by_the_same_deploy(world):
    world.deploy(world.api())
    problem = Problem(reference="replica-failed", message="it died")
    world.state.mark_failed(KEY, world.wanted().build.revision, problem, wall_s=0.0)
    change = world.change(world.api())
    assert (change.kind, change.causes) == (ChangeKind.UNCHANGED, ("it failed before and is tried again",))
    assert world.wanted().failed is None


def test_a_changed_signature_that_breaks_callers_is_told(world):
    world.deploy(world.api())
    other = msgspec.structs.replace(SIGNATURE, inputs=(TensorSpec("x", "float32", (None, 5)),))
    world.reports["a"] = InspectReport(signature=other)
    assert world.change(world.api(model="new")).breaking == ('input "x" was float32[N,4], is float32[N,5]',)


def test_a_dry_run_says_the_same_and_changes_nothing(world):
    before = world.everything()
    dry = world.deploy(world.api(), dry_run=True)
    assert not dry.committed
    assert world.everything() == before
    assert world.deploy(world.api()).changes == dry.changes


# ---- how many --------------------------------------------------------------------------------------------------------


def test_init_replicas_count_only_when_an_api_is_new(world):
    compute = {"min_replicas": 1, "init_replicas": 3, "max_replicas": 10}
    world.deploy(world.api(compute=compute))
    assert world.wanted().replicas == 3
    world.state.set_scale(KEY, 6, reason="busy", wall_s=0.0)
    world.deploy(world.api(compute=compute, model="new"))
    assert world.wanted().replicas == 6


@pytest.mark.parametrize(
    ("reached", "compute", "expected"),
    [
        pytest.param(6, {"max_replicas": 4}, 4, id="over the new maximum"),
        pytest.param(6, {"min_replicas": 8}, 8, id="under the new minimum"),
        pytest.param(2, {"min_replicas": 1}, 1, id="at the old minimum, which falls"),
        pytest.param(2, {"min_replicas": 3}, 3, id="at the old minimum, which rises"),
        pytest.param(5, {"min_replicas": 1}, 5, id="above the old minimum, which falls"),
    ],
)
def test_a_redeploy_keeps_the_count_within_the_new_bounds(world, reached, compute, expected):
    world.deploy(world.api(compute={"min_replicas": 2, "max_replicas": 10}))
    world.state.set_scale(KEY, reached, reason="busy", wall_s=0.0)
    world.deploy(world.api(compute=compute))
    assert world.wanted().replicas == expected


# ---- what is refused: nothing changes --------------------------------------------------------------------------------


def test_problems_of_an_inspection_are_placed_at_their_api_and_change_nothing(world):
    world.deploy(world.api("a"), world.api("b"))
    world.reports["b"] = InspectReport(problems=(Problem(reference="handler-import-failed", message="no module"),))
    (problem,) = world.problems(world.api("a", model="new"), world.api("b", model="newer"))
    assert (problem.reference, problem.subject, problem.path) == ("handler-import-failed", 'api "b"', ("apis", 1))


def test_problems_of_several_apis_are_told_together(world):
    for name in ("a", "b"):
        world.reports[name] = InspectReport(problems=(Problem(reference=f"bad-{name}", message="no"),))
    found = world.problems(world.api("a", model="1"), world.api("b", model="2"))
    assert [problem.reference for problem in found] == ["bad-a", "bad-b"]


def test_a_node_that_cannot_be_asked_changes_nothing(world):
    world.reports["a"] = CortexError("the agent does not answer")
    (problem,) = world.problems(world.api())
    assert problem.message == "the agent does not answer"


def test_a_dry_run_keeps_nothing_of_what_it_looks_at(world):
    world.deploy(world.api("a"), dry_run=True)
    world.deploy(world.api("b"))
    assert (world.inspected, world.kept) == (["a", "b"], ["b"])


def test_a_fault_of_ours_in_an_inspection_changes_nothing(world):
    before = world.everything()
    world.inspect = lambda *_what, **_how: 1 / 0
    with pytest.raises(ZeroDivisionError):
        world.deploy(world.api())
    assert world.everything() == before


def test_a_missing_handler_is_told_with_the_nearest_name_for_each_api(world):
    project = world.stored(handler__py="pass")
    found = world.problems(
        world.api("a", request_handler="handlr.py"), world.api("b", request_handler="x/y.py"), project=project
    )
    assert [(p.reference, p.path) for p in found] == [
        ("handler-not-found", ("apis", 0, "request_handler")),
        ("handler-not-found", ("apis", 1, "request_handler")),
    ]
    assert found[0].hint == "did you mean handler.py?"


def test_files_that_were_not_uploaded_are_named(world):
    api = world.api()
    lost = StoredFile(path="weights.bin", sha256="0" * 64)
    half = msgspec.structs.replace(api, model=msgspec.structs.replace(api.model, files=(*api.model.files, lost)))
    (problem,) = world.problems(half)
    assert problem.reference == "blobs-missing"
    assert "weights.bin" in problem.message


def test_a_model_that_nobody_uploaded_is_refused(world):
    (problem,) = world.problems(msgspec.structs.replace(world.api(), model=None))
    assert problem.reference == "model-not-available"


@pytest.mark.parametrize("entry", ["/etc/passwd", "../../../etc/passwd", "other.onnx", "", "model.onn"])
def test_an_entry_that_is_not_among_the_models_files_reaches_nothing(world, entry):
    (problem,) = world.problems(world.api(entry=entry))
    assert problem.reference == "bad-request"


def test_a_path_that_leaves_its_folder_is_refused(world):
    api = world.api()
    outside = tuple(msgspec.structs.replace(file, path="../model.onnx") for file in api.model.files)
    model = msgspec.structs.replace(api.model, files=outside, entry="../model.onnx")
    with pytest.raises(InvalidTree):
        world.deploy(msgspec.structs.replace(api, model=model))


def test_a_replica_larger_than_any_node_can_be_is_refused_at_once(world):
    (problem,) = world.problems(world.api(compute={"cpu": 64}))
    assert (problem.reference, problem.path) == ("compute-unavailable", ("apis", 0, "compute"))
    assert world.inspected == []


def test_a_sample_that_is_too_large_to_travel_is_refused(world, monkeypatch):
    monkeypatch.setattr(candidates, "MAX_SAMPLE_BYTES", 10)
    (problem,) = world.problems(world.api(sample=b"x" * 11))
    assert (problem.reference, problem.path) == ("sample-too-large", ("apis", 0, "sample"))


def test_a_sample_that_no_caller_could_send_is_refused(world):
    (problem,) = world.problems(world.api(sample=b"12345", max_body="4"))
    assert (problem.reference, problem.path) == ("sample-too-large", ("apis", 0, "sample"))
    assert str(problem.message) == "the sample has 5 bytes, and `max_body` takes no more than 4"
    world.deploy(world.api(sample=b"1234", max_body="4"))


def test_a_specification_is_not_believed_because_a_client_sent_it(world):
    api = world.api()
    found = world.problems(
        msgspec.structs.replace(api, spec={**api.spec, "name": "Not A Name"}),
        msgspec.structs.replace(api, spec={**api.spec, "surprise": 1}),
    )
    assert {problem.reference for problem in found} == {"invalid-spec"}
    assert {problem.subject for problem in found} == {"api at index 0", "api at index 1"}


def test_names_of_paths_that_are_taken_are_refused(world):
    (problem,) = world.problems(world.api("v2"))
    assert problem.reference == "reserved-name"


def test_two_apis_of_one_name_are_refused(world):
    (problem,) = world.problems(world.api(), world.api(model="other"))
    assert (problem.reference, problem.path) == ("duplicate-name", ("apis", 1))


def test_a_missing_secret_is_told_before_anything_takes_long(world):
    found = world.problems(world.api(env={"TOKEN": {"secret": "nobody-set-it"}}))
    assert "nobody-set-it" in found[0].message
    assert world.inspected == []


# ---- a deployment belongs to a folder ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        (
            "default",
            "name this group of apis: add\n    - kind: deployment\n      name: <name>\nto this cortex.yaml, "
            "or pass --prune to remove them",
        ),
        (
            "iris",
            "name this group of apis otherwise: change `name` below `kind: deployment` of this cortex.yaml, "
            "or pass --prune to remove them",
        ),
    ],
)
def test_every_deployment_is_guarded_against_another_folder_that_would_remove_its_apis(world, name, hint):
    world.deploy(world.api("a"), world.api("c"), name=name, source="/home/ann/one")
    (problem,) = world.problems(world.api("b"), name=name, source="/home/ann/two")
    assert problem.reference == "from-another-folder"
    assert problem.message == (
        f"deployment `{name}` came from /home/ann/one; deploying /home/ann/two would remove a, c"
    )
    assert problem.hint == hint
    assert len(world.state.apis(DeploymentName(name))) == 2


def test_prune_removes_them_all_the_same(world):
    world.deploy(world.api("a"), name="default", source="/home/ann/one")
    result = world.deploy(world.api("b"), name="default", source="/home/ann/two", prune=True)
    assert [(c.api, c.kind) for c in result.changes] == [("b", ChangeKind.ADDED), ("a", ChangeKind.REMOVED)]


def test_another_folder_that_removes_nothing_is_welcome(world):
    world.deploy(world.api("a"), name="default", source="/home/ann/one")
    assert world.deploy(world.api("a"), world.api("b"), name="default", source="/home/ann/two").committed


def test_the_same_folder_may_remove_and_apis_of_default_live_at_the_top(world):
    world.deploy(world.api("a"), name="default", source="/home/ann/one")
    result = world.deploy(world.api("b"), name="default", source="/home/ann/one")
    assert result.changes[0].endpoint == "http://127.0.0.1:8880/b"
    assert [record.wanted.api for record in world.state.apis(DeploymentName("default"))] == ["default/b"]


def test_a_deployment_without_apis_is_legal_and_empties_it(world):
    world.deploy(world.api())
    assert [c.kind for c in world.deploy().changes] == [ChangeKind.REMOVED]
    assert world.state.apis() == ()
    assert len(world.state.deployments()) == 1


# ---- one at a time ---------------------------------------------------------------------------------------------------


class Held:
    """Inspections of api `a` that last until they are let go, or called off."""

    def __init__(self, world):
        self.begun, self.go_on, self.called_off = threading.Event(), threading.Event(), threading.Event()
        world.inspect = self._inspect

    def _inspect(self, build, _rows, left, *, keep):
        if build.api != KEY:
            return GOOD
        self.begun.set()
        while not self.go_on.wait(0.01):
            if left.is_set():
                self.called_off.set()
                raise CalledOff
        return GOOD


def in_thread(world, name, api, emit=lambda _event: None, left=None):
    outcome = []

    def run():
        try:
            request = DeployRequest(deployment=name, source="/x", apis=(api,))
            outcome.append(world.deployer.deploy(name, request, emit, left))
        except DeployLeft as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, outcome


def test_a_second_deploy_of_a_deployment_waits_for_the_first_and_says_so(world):
    held = Held(world)
    first, _ = in_thread(world, "iris", world.api("a"))
    assert held.begun.wait(DEADLINE_S)
    told = []
    waiting = threading.Event()

    def emit(event):
        told.append(event.message)
        waiting.set()

    second, _ = in_thread(world, "iris", world.api("b", model="b"), emit)
    assert waiting.wait(DEADLINE_S)
    assert world.state.apis() == ()
    held.go_on.set()
    first.join(DEADLINE_S)
    second.join(DEADLINE_S)
    assert told[0] == "waiting for another deploy of iris"
    assert [record.wanted.api for record in world.state.apis()] == ["iris/b"]


def test_a_hanging_import_blocks_no_deploy_of_another_deployment(world):
    held = Held(world)
    hanging, _ = in_thread(world, "iris", world.api("a"))
    assert held.begun.wait(DEADLINE_S)
    other, outcome = in_thread(world, "other", world.api("b", model="b"))
    other.join(DEADLINE_S)
    assert outcome[0].committed
    assert [record.wanted.api for record in world.state.apis()] == ["other/b"]
    held.go_on.set()
    hanging.join(DEADLINE_S)
    assert [record.wanted.api for record in world.state.apis()] == ["iris/a", "other/b"]


def test_a_caller_that_leaves_ends_what_is_being_looked_at_and_the_deploy(world):
    held = Held(world)
    left = threading.Event()
    deploying, outcome = in_thread(world, "iris", world.api("a"), left=left)
    assert held.begun.wait(DEADLINE_S)
    left.set()
    deploying.join(DEADLINE_S)
    assert held.called_off.is_set()
    assert isinstance(outcome[0], DeployLeft)
    assert world.state.apis() == ()
    held.go_on.set()
    assert world.deploy(world.api("a")).committed, "and nothing is in the way of the next"


def test_what_is_being_deployed_cannot_be_collected_as_garbage_meanwhile(world):
    seen = []

    def inspect(_build, _rows, _left, *, keep):
        world.clock.advance(3600.0)  # long after the store would have forgotten that it was touched
        collected = world.store.collect_garbage((), 0, world.clock.wall_s() + 10 * 365 * 86400.0)
        seen.append(collected.trees)
        return GOOD

    world.inspect = inspect
    world.deploy(world.api())
    assert seen == [()]
    assert world.store.verify(world.wanted().build.model.tree)


# ---- remote models ---------------------------------------------------------------------------------------------------

URL = "s3://bucket/m.onnx"


def test_a_remote_model_is_served_from_the_store_and_keeps_what_it_was(world):
    world.fetcher.at_origin[URL] = "one"
    world.deploy(world.remote(URL))
    record = world.state.api(KEY)
    assert (record.wanted.build.model.source, record.wanted.build.model.entry) == (URL, "m.onnx")
    assert [one.etag for one in record.version.origin.objects] == ['"one"']
    assert (world.store.tree_path(record.wanted.build.model.tree) / "m.onnx").read_text() == "one"


def test_a_changed_remote_model_is_told_with_both_etags_and_dates(world):
    world.fetcher.at_origin[URL] = "one"
    world.deploy(world.remote(URL))
    world.fetcher.at_origin[URL] = "two"
    change = world.change(world.remote(URL))
    date = "1970-01-01 00:00:00 UTC"
    assert change.kind is ChangeKind.NEW_VERSION
    assert change.causes == (f"model changed (m.onnx: ETag one of {date} -> ETag two of {date})",)


def test_the_next_deploy_tells_the_fetcher_what_is_known(world):
    world.fetcher.at_origin[URL] = "one"
    world.deploy(world.remote(URL))
    world.deploy(world.remote(URL))
    assert [sorted(set(known)) for known in world.fetcher.known] == [[], ['"one"']]


def test_a_refresh_asks_the_origin_again_and_makes_a_new_version_of_the_same_bytes(world):
    world.fetcher.at_origin[URL] = "one"
    world.deploy(world.remote(URL))
    change = world.change(world.remote(URL), refresh=True)
    assert world.fetcher.asked == [URL, URL]
    assert (change.kind, change.causes) == (ChangeKind.NEW_VERSION, ("refreshed",))


def test_what_was_fetched_for_a_dry_run_is_known_to_the_deploy(world):
    world.fetcher.at_origin[URL] = "one"
    world.deploy(world.remote(URL), dry_run=True)
    assert world.state.apis() == ()
    world.deploy(world.remote(URL))
    assert world.fetcher.known[1] == ['"one"']


def test_two_apis_with_one_model_fetch_it_once(world):
    world.fetcher.at_origin[URL] = "one"
    world.deploy(world.remote(URL, "a"), world.remote(URL, "b"))
    assert world.fetcher.asked == [URL]


def test_models_that_cannot_be_had_are_told_together_with_their_places(world):
    world.fetcher.failure = GiveUp(Problem(reference="model-access-denied", message="no"))
    problems = world.problems(world.remote("s3://b/1.onnx", "a"), world.remote("s3://b/2.onnx", "b"))
    assert [(p.reference, p.subject, p.path) for p in problems] == [
        ("model-access-denied", 'api "a": model', ("apis", 0, "model")),
        ("model-access-denied", 'api "b": model', ("apis", 1, "model")),
    ]


def test_a_signature_is_used_for_fetching_and_kept_nowhere(world):
    url = "https://host/m.onnx?X-Amz-Signature=SECRET"
    world.fetcher.at_origin[url] = "one"
    result = world.deploy(world.remote(url))
    assert world.fetcher.asked == [url]
    assert "SECRET" not in f"{world.state.apis()}{result}{world.told}"
    assert world.state.api(KEY).version.spec["model"] == "https://host/m.onnx?***"


def is_fetching(told):
    """Whether who is told of a deploy has heard how far a download is."""
    return any(progress.message.startswith("fetching") for progress in told)


def test_two_deploys_of_one_model_share_a_download(world):
    world.fetcher.at_origin[URL] = "one"
    go_on, begun = threading.Event(), threading.Event()

    def wait(_stop: threading.Event) -> None:
        begun.set()
        assert go_on.wait(DEADLINE_S)

    world.fetcher.before = wait
    told: list[DeployProgress] = []
    request = DeployRequest(deployment="other", source="/x", apis=(world.remote(URL),))
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(world.deploy, world.remote(URL))
        assert begun.wait(DEADLINE_S)
        second = pool.submit(world.deployer.deploy, "other", request, told.append, threading.Event())
        until(lambda: is_fetching(told))
        go_on.set()
        assert all(future.result(DEADLINE_S).committed for future in (first, second))
    assert world.fetcher.asked == [URL]


def test_other_deploys_go_through_while_one_fetches(world):
    world.fetcher.at_origin[URL] = "one"
    go_on, begun = threading.Event(), threading.Event()
    world.fetcher.before = lambda _stop: (begun.set(), go_on.wait(DEADLINE_S))
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(world.deploy, world.remote(URL))
        assert begun.wait(DEADLINE_S)
        assert world.deploy(world.api(), name="other").committed
        assert not slow.done()
        go_on.set()
        assert slow.result(DEADLINE_S).committed


def test_a_caller_that_leaves_while_its_model_is_fetched_ends_the_download_and_the_deploy(world):
    world.fetcher.at_origin[URL] = "one"
    left, stopped = threading.Event(), threading.Event()

    def leave(stop: threading.Event) -> None:
        left.set()
        assert stop.wait(DEADLINE_S)
        stopped.set()

    world.fetcher.before = leave
    request = DeployRequest(deployment="iris", source="/x", apis=(world.remote(URL),))
    with pytest.raises(DeployLeft):
        world.deployer.deploy("iris", request, world.told.append, left)
    assert stopped.wait(DEADLINE_S)
    assert world.everything()[:2] == ((), ())
    assert world.told[-1].in_bytes


def test_one_of_two_that_leaves_does_not_end_the_others_download(world):
    world.fetcher.at_origin[URL] = "one"
    left, go_on, begun = threading.Event(), threading.Event(), threading.Event()
    world.fetcher.before = lambda _stop: (begun.set(), go_on.wait(DEADLINE_S))
    told: list[DeployProgress] = []
    request = DeployRequest(deployment="other", source="/x", apis=(world.remote(URL),))
    with ThreadPoolExecutor(2) as pool:
        stays = pool.submit(world.deploy, world.remote(URL))
        assert begun.wait(DEADLINE_S)
        leaves = pool.submit(world.deployer.deploy, "other", request, told.append, left)
        until(lambda: is_fetching(told))
        left.set()
        with pytest.raises(DeployLeft):
            leaves.result(DEADLINE_S)
        go_on.set()
        assert stays.result(DEADLINE_S).committed


def test_credentials_are_kept_for_later_once_a_deploy_was_accepted(world, tmp_path):
    world.fetcher.at_origin[URL] = "one"
    cloud = CloudVariables(variables={"AWS_SECRET_ACCESS_KEY": "the-value"})
    world.deploy(world.remote(URL), cloud=cloud, dry_run=True)
    assert not list(tmp_path.rglob("cloud.json"))
    world.deploy(world.remote(URL), cloud=cloud)
    world.deploy(world.remote(URL))
    assert world.fetcher.clouds == [cloud.variables] * 3
    (file,) = tmp_path.rglob("cloud.json")
    assert file.stat().st_mode & 0o777 == 0o600
    assert "the-value" not in f"{cloud}{world.state.apis()}"


def test_credentials_go_with_the_last_api_whose_model_they_might_fetch_again(world, tmp_path):
    world.fetcher.at_origin[URL] = "one"
    cloud = CloudVariables(variables={"AWS_SECRET_ACCESS_KEY": "the-value"})
    world.deploy(world.remote(URL), cloud=cloud)
    world.models.forget_cloud()
    assert len(list(tmp_path.rglob("cloud.json"))) == 1
    world.change(world.api())
    world.models.forget_cloud()
    assert not list(tmp_path.rglob("cloud.json"))
    world.models.forget_cloud()


KEYS_A = {"AWS_ACCESS_KEY_ID": "a", "AWS_REGION": "eu-west-1"}
KEYS_B = {"AWS_ACCESS_KEY_ID": "b", "AWS_REGION": "eu-west-1"}


def with_keys(world, keys, **fields):
    cloud = None if keys is None else CloudVariables(variables={"HOME": "/home/ann", **keys})
    project = world.stored(h__py="x")
    return world.change(world.api(request_handler="h.py", **fields), project=project, cloud=cloud)


def keys_of(world):
    pin = world.wanted().build.cloud
    return None if pin is None else unpacked_cloud(world.cloud.value(pin))


def test_a_handler_gets_what_the_last_deploy_handed_over_until_the_next_one(world):
    with_keys(world, KEYS_A)
    first = world.wanted().build
    assert keys_of(world) == KEYS_A, "and nothing that does not lead to clouds"
    assert with_keys(world, KEYS_A).kind is ChangeKind.UNCHANGED
    assert with_keys(world, None).kind is ChangeKind.UNCHANGED, "nobody said anything"
    change = with_keys(world, KEYS_B)
    assert (change.kind, change.causes) == (ChangeKind.ROLLED, ("cloud credentials changed",))
    assert keys_of(world) == KEYS_B
    assert unpacked_cloud(world.cloud.value(first.cloud)) == KEYS_A, "for what still serves"
    with_keys(world, {})
    assert keys_of(world) == {}


def test_where_there_is_nothing_to_hand_over_or_no_handler_nothing_is_kept(world):
    with_keys(world, {})
    assert world.wanted().build.cloud is None
    world.deploy(world.api("model"), cloud=CloudVariables(variables=KEYS_A))
    assert world.wanted(ApiKey("iris/model")).build.cloud is None
    assert world.cloud.all() == ()


def test_what_serves_or_may_be_wanted_back_is_never_removed_however_small_the_store_may_be(world):
    trees = []
    for content in ("one", "two"):
        world.fetcher.at_origin[URL] = content
        world.deploy(world.remote(URL))
        trees.append(world.wanted().build.model.tree)
        world.state.mark_live(KEY, world.wanted().build.revision, wall_s=0.0)
    world.fetcher.at_origin["s3://bucket/unused.onnx"] = "three"
    world.deploy(world.remote("s3://bucket/unused.onnx"), name="tried", dry_run=True)
    in_use, _ = wanted_trees(world.state)
    assert set(trees) <= in_use
    long_after_s = time.time() + 7 * 86400
    removed = world.store.collect_garbage(in_use, 0, long_after_s).trees
    assert len(removed) == 1
    assert set(world.store.trees()) == set(trees)


def until(happened: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while not happened():
        assert time.monotonic() < deadline_s, "not in time"
        time.sleep(0.001)


# ---- batching --------------------------------------------------------------------------------------------------------

REFUSED = Proof(rules=RULES, proved=False, operator="Conv conv_7", reason="rows are dimension 2, not 0")
APART = Disagreement(output="y", alone="0.5", together="0.7")
CONTRADICTED = Trial(runtime="ort, cpu", rows=9, disagreement=APART)


def modes(world) -> list[str]:
    return [rows for _name, rows in world.asked_of_rows]


def test_what_an_inspection_finds_out_of_rows_is_kept_beside_the_version(world):
    world.deploy(world.api())
    (record,) = world.state.batching()
    build = world.wanted().build
    assert (record.model, record.rules, record.proof, record.trials) == (
        build.model_key,
        RULES,
        PROVED.proof,
        (PROVED.trial,),
    )
    assert record.runtimes == {place_of(build): "ort, cpu"}
    assert world.state.api(KEY).version.inspection.batching is None


def test_a_version_is_the_same_whatever_is_known_of_its_rows(world):
    version = world.change(world.api()).version
    world.state.prune_batching(())
    world.verdicts["a"] = BatchingVerdict(proof=REFUSED)
    assert world.change(world.api()).version == version


def test_rows_of_a_known_model_are_not_looked_at_again(world):
    world.deploy(world.api(env={"A": "1"}))
    world.deploy(world.api(env={"A": "2"}))
    assert world.asked_of_rows == [("a", "auto"), ("a", "off")]


def test_rows_are_looked_at_again_where_the_runtime_may_be_another_one(world):
    world.deploy(world.api(env={"A": "1"}))
    world.deploy(world.api(env={"A": "2"}, compute={"cpu": "4"}))
    assert modes(world) == ["auto", "auto"]


def test_a_model_of_several_new_apis_is_looked_at_once(world):
    world.deploy(world.api("a"), world.api("b", env={"B": "1"}), world.api("c", model="others"))
    assert sorted(world.asked_of_rows) == [("a", "auto"), ("b", "off"), ("c", "auto")]
    assert len(world.state.batching()) == 2


def test_batching_off_asks_nothing_and_on_asks_for_a_trial(world):
    world.deploy(world.api("a", batching="off"), world.api("b", batching="on"))
    assert sorted(world.asked_of_rows) == [("a", "off"), ("b", "on")]
    assert world.wanted().build.batching_mode == "off"
    assert world.wanted(ApiKey("iris/b")).build.batching_mode == "on"


def test_a_model_that_is_refused_is_not_asked_about_again_until_the_user_gives_their_word(world):
    world.verdicts["a"] = BatchingVerdict(proof=REFUSED)
    world.deploy(world.api(env={"A": "1"}))
    world.deploy(world.api(env={"A": "2"}))
    world.deploy(world.api(batching="on"))
    assert modes(world) == ["auto", "off", "on"]


def test_a_new_version_that_is_not_batched_says_so_once(world):
    world.verdicts["a"] = BatchingVerdict(proof=REFUSED)
    note = 'not batched: Conv conv_7: rows are dimension 2, not 0. "batching: on" if you know better'
    assert world.change(world.api()).notes == (note,)
    assert world.change(world.api()).notes == ()
    assert world.change(world.api(timeout="5s")).notes == ()
    assert world.change(world.api(env={"A": "2"})).notes == (note,)


@pytest.mark.parametrize("batching", ["auto", "on", "off"])
def test_what_is_as_everybody_expects_is_no_news(world, batching):
    assert world.change(world.api(batching=batching)).notes == ()


def test_a_trial_that_contradicts_the_users_word_refuses_the_deploy_with_the_numbers(world):
    world.verdicts["a"] = BatchingVerdict(proof=REFUSED, trial=CONTRADICTED)
    (problem,) = world.problems(world.api(batching="on"))
    assert (problem.reference, problem.path, problem.subject) == (
        "batching-contradicted",
        ("apis", 0, "batching"),
        'api "a": batching',
    )
    assert problem.message == (
        "requests are not batched, as rows disagreed when they were tried: "
        'output "y" is 0.5 alone and 0.7 beside others'
    )


def test_a_trial_that_contradicts_a_proof_is_a_warning(world):
    world.verdicts["a"] = BatchingVerdict(proof=PROVED.proof, trial=CONTRADICTED)
    result = world.deploy(world.api())
    assert result.committed
    assert [(warning.reference, warning.path) for warning in result.warnings] == [
        ("batching-contradicted", ("apis", 0, "batching"))
    ]
    assert result.changes[0].notes == ()
    assert world.deploy(world.api()).warnings == ()


def test_where_a_trial_spoke_against_batches_it_is_made_again(world):
    world.verdicts["a"] = BatchingVerdict(proof=REFUSED, trial=CONTRADICTED)
    world.problems(world.api(batching="on"))
    world.verdicts["a"] = BatchingVerdict(proof=REFUSED, trial=Trial(runtime="ort 2, cpu", rows=9))
    assert world.deploy(world.api(batching="on")).committed
    assert modes(world) == ["on", "on"]


@pytest.mark.parametrize("batching", ["auto", "on"])
def test_rows_that_disagreed_in_a_replica_are_a_warning_for_later_versions(world, batching):
    world.deploy(world.api())
    stop = BatchingStop(
        api=KEY, replica="iris.a.01234567.0", started_wall_s=1.0, runtime="ort, cpu", disagreement=APART, wall_s=2.0
    )
    world.state.record_stop(world.wanted().build.model_key, stop, rules=RULES)
    result = world.deploy(world.api(env={"A": "2"}, batching=batching))
    assert result.committed
    (warning,) = result.warnings
    assert warning.message.startswith("requests are not batched, as rows disagreed in a replica: ")


def test_an_inspection_that_says_nothing_of_rows_is_no_error(world):
    world.verdicts["a"] = None
    assert world.change(world.api()).notes == (
        "not batched yet: whether rows depend on each other is still to be found out",
    )
    assert world.state.batching() == ()


# ---- what was rolled back --------------------------------------------------------------------------------------------


@pytest.fixture
def gone_back(world):
    """The api went live with `1` and `2`, and back to `1`; the versions of both."""
    versions = [world.live(world.api(model=content)) for content in ("1", "2")]
    world.roll_back()
    world.inspected.clear()
    return versions


def test_a_deploy_of_the_same_files_leaves_what_was_rolled_back(world, gone_back):
    first, second = gone_back
    deployed_s = world.wanted().deployed_wall_s
    world.clock.advance(60.0)
    change = world.change(world.api(model="2"))
    assert (change.kind, change.version) == (ChangeKind.LEFT, first)
    (cause,) = change.causes
    assert cause.startswith(f"rolled back from {second} on 20")
    assert cause.endswith("; --force deploys it all the same")
    assert (short(world.wanted().build.version), world.wanted().deployed_wall_s) == (first, deployed_s)
    assert world.inspected == []
    assert world.change(world.api(model="2")).kind is ChangeKind.LEFT


def test_settings_of_what_is_left_change_all_the_same(world, gone_back):
    change = world.change(world.api(model="2", timeout="5s", compute={"min_replicas": 2}))
    assert (change.kind, change.causes[1:]) == (
        ChangeKind.LEFT,
        ("min_replicas 1 -> 2", "init_replicas 1 -> 2", "timeout 10m -> 5s"),
    )
    assert (world.wanted().timeout_s, world.wanted().min_replicas) == (5.0, 2)
    assert world.state.api(KEY).version.spec["timeout"] == "5s"
    assert world.state.api(KEY).version.spec["compute"]["min_replicas"] == 2


@pytest.mark.parametrize(
    ("fields", "causes"),
    [
        ({"model": "3"}, ["model changed (model.onnx changed)", "model changed (model.onnx changed)"]),
        (
            {"model": "2", "env": {"A": "1"}},
            ["env changed (A)", "model changed (model.onnx changed)", "env changed (A)"],
        ),
        (
            {"model": "2", "compute": {"cpu": "1"}},
            ["cpu 200m -> 1", "model changed (model.onnx changed)", "cpu 200m -> 1"],
        ),
    ],
)
def test_other_files_go_forward_again_and_say_which(world, gone_back, fields, causes):
    first, second = gone_back
    change = world.change(world.api(**fields))
    only, *rest = causes
    again = f"goes forward again: since {second}, which it was rolled back from, only {only}"
    assert (change.kind, change.previous, change.causes) == (ChangeKind.NEW_VERSION, first, (again, *rest))
    assert world.wanted().rolled_back is None
    assert world.change(world.api(**fields)).kind is ChangeKind.UNCHANGED


def test_force_goes_forward_to_the_very_same_version(world, gone_back):
    first, second = gone_back
    change = world.change(world.api(model="2"), force=True)
    assert (change.kind, change.previous, change.version) == (ChangeKind.NEW_VERSION, first, second)
    assert change.causes[0] == f"goes forward again to {second}, which it was rolled back from: --force"
    assert world.wanted().rolled_back is None
    assert [one.withdrawn_wall_s for one in world.state.versions()] == [None, None]


def test_files_of_what_serves_end_the_rollback(world, gone_back):
    assert world.change(world.api(model="1")).kind is ChangeKind.UNCHANGED
    assert world.wanted().rolled_back is None
    assert world.change(world.api(model="2")).kind is ChangeKind.NEW_VERSION


def test_files_of_any_version_that_was_gone_back_from_leave_it(world):
    for content in ("1", "2", "3"):
        world.live(world.api(model=content))
    for _ in range(2):
        world.roll_back()
    assert [world.change(world.api(model=content)).kind for content in ("2", "3")] == [ChangeKind.LEFT] * 2


def test_a_rollback_that_failed_holds_nothing(world, gone_back):
    world.rollbacks.roll_back(KEY, RollbackRequest(version=gone_back[1]))
    world.state.mark_live(KEY, world.wanted().build.revision, wall_s=0.0)
    world.rollbacks.roll_back(KEY, RollbackRequest())
    world.state.mark_failed(KEY, world.wanted().build.revision, Problem(reference="x", message="boom"), wall_s=0.0)
    assert world.change(world.api(model="2")).kind is ChangeKind.NEW_VERSION
    assert short(world.wanted().build.version) == gone_back[1]


def test_a_refresh_is_one_of_what_serves_and_keeps_it_there(world, gone_back):
    change = world.change(world.api(model="2"), refresh=True)
    assert (change.kind, change.causes) == (
        ChangeKind.NEW_VERSION,
        ("what it was rolled back to is refreshed", "refreshed"),
    )
    record = world.state.api(KEY)
    assert (record.version.refresh, record.version.model_files) == (1, world.stored(model__onnx="1"))
    assert world.inspected == ["a"]
    world.state.mark_live(KEY, record.wanted.build.revision, wall_s=0.0)
    assert world.change(world.api(model="2")).kind is ChangeKind.LEFT
    assert [line.outcome for line in world.state.history(KEY)][:2] == ["live", "replaced"]


def test_a_count_of_refreshes_that_was_gone_back_from_is_not_given_again(world):
    world.live(world.api())
    refreshed = world.live(world.api(), refresh=True)
    world.roll_back()
    assert world.change(world.api()).kind is ChangeKind.LEFT
    again = world.change(world.api(), refresh=True)
    assert again.version != refreshed
    assert world.state.api(KEY).version.refresh == 2


def test_a_refresh_fetches_the_model_of_what_serves(world):
    other = "s3://bucket/other.onnx"
    world.fetcher.at_origin = {URL: "1", other: "2"}
    world.live(world.remote(URL))
    world.live(world.remote(other))
    world.roll_back()
    world.fetcher.at_origin[URL] = "1 again"
    world.change(world.remote(other), refresh=True)
    build = world.wanted().build
    assert build.model.source == URL
    assert world.store.tree_path(build.model.tree).joinpath("m.onnx").read_text() == "1 again"


def test_a_deploy_leaves_what_went_back_while_it_looked(world):
    for content in ("1", "2"):
        world.live(world.api(model=content), world.api("b", model=content))
    looked_at = world.inspect

    def while_it_looks(build, *what, **how):
        if build.api == KEY:
            world.roll_back()
        return looked_at(build, *what, **how)

    world.inspect = while_it_looks
    result = world.deploy(world.api(model="3"), world.api("b", model="3"))
    assert [(change.api, change.kind) for change in result.changes] == [
        ("a", ChangeKind.LEFT),
        ("b", ChangeKind.NEW_VERSION),
    ]
    left = result.changes[0]
    assert left.causes == (f"it was rolled back to {left.version} meanwhile; --force deploys it all the same",)
    assert short(world.wanted().build.version) == left.version
    assert world.wanted().rolled_back is not None


# ---- proving change-overs --------------------------------------------------------------------------------------------


def told_answer(ended_s, version, status=200, **facts):
    return ProbeAnswer(begun_s=ended_s - 0.001, ended_s=ended_s, status=status, version=version, **facts)


class Proved:
    """A change-over from one live version to the next, that is being proved."""

    def __init__(self, world, **fields):
        self.world = world
        self.old = world.live(world.api(sample=b"1", model="old"))
        world.told.clear()
        deployer, self.new = world.deployer, ""
        request = DeployRequest(
            deployment="iris",
            source="/home/ann/iris",
            apis=(world.api(sample=b"1", model="new", **fields),),
            prove=True,
            prove_unrepeatable=True,
        )

        def emit(event):
            """What serves answers, and time passes, until it was asked for long enough."""
            world.told.append(event)
            if event.message.startswith("proving"):
                self.answer(self.old, times=5)
                world.clock.advance(0.5)

        (change,) = deployer.deploy("iris", request, emit).changes
        assert change.proved
        self.new = change.version
        assert world.state.api(KEY).wanted.in_proof == world.wanted().build.revision
        self.revision = world.wanted().build.revision

    def answer(self, version, status=200, *, times=1, **facts):
        now_s = self.world.clock.monotonic_s()
        self.world.asked[-1] += [told_answer(now_s, version, status, **facts) for _ in range(times)]

    def goes_live(self):
        self.world.state.mark_live(KEY, self.world.wanted().build.revision, wall_s=self.world.clock.wall_s())
        self.world.serves_alone = True

    def receipt(self, *, answered=True):
        """Once it is written; the clock goes on until then."""
        until_s = time.monotonic() + DEADLINE_S
        while (found := self.told()) is None:
            assert time.monotonic() < until_s
            self.world.clock.advance(1.0)
            if self.world.serves_alone and answered:
                self.answer(self.new, times=3)
            threading.Event().wait(0.01)
        self.world.change_overs.close()
        assert self.world.asked[-1].is_closed
        return found

    def told(self):
        lines = self.world.rollbacks.history(KEY)
        return next(line.receipt for line in lines if line.version == self.new)


def test_what_serves_is_asked_before_anything_changes_and_what_is_new_after_it_is_live(world):
    proved = Proved(world)
    assert world.told[-1].message == "proving: asking what serves now (a)"
    assert len(world.asked[-1].answers()) >= 30
    assert world.probed.token == "the-token"
    assert world.probed.path == "/iris/a"
    assert Path(world.probed.samples[0].file).read_bytes() == b"1"
    proved.goes_live()
    receipt = proved.receipt()
    assert (receipt.verdict, receipt.failed, receipt.wrong_version, receipt.previous) == ("passed", 0, 0, proved.old)
    assert world.wanted().in_proof is None
    assert world.wanted().rolled_back is None
    assert [event.text for event in world.events if event.kind is EventKind.PROVED] == [receipt.text]


def test_the_first_failure_of_a_change_takes_it_back_also_before_it_is_live(world):
    proved = Proved(world)
    world.clock.advance(0.1)
    proved.answer("", 503, code="no-ready-replica")
    receipt = proved.receipt()
    assert (receipt.verdict, receipt.failed) == ("failed", 1)
    assert receipt.reason.startswith("1 of 1 requests failed during the change-over, before it 0 of 3")
    back = world.wanted().rolled_back
    assert (back.passed, back.reason) == ((proved.revision,), receipt.reason)
    assert short(world.wanted().build.version) == proved.old


def test_a_failure_before_the_change_over_is_not_held_against_it(world):
    old = world.live(world.api(sample=b"1", model="old"))

    def emit(event):
        if event.message.startswith("proving"):
            now_s = world.clock.monotonic_s()
            world.asked[-1] += [told_answer(now_s, old), told_answer(now_s, old, 500, code="handler-failed")]
            world.clock.advance(0.5)

    request = DeployRequest(
        deployment="iris", source="/home/ann/iris", apis=(world.api(sample=b"1", model="new"),), prove=True
    )
    before_s = world.clock.monotonic_s()
    world.deployer.deploy("iris", request, emit)
    assert BEFORE_S <= world.clock.monotonic_s() - before_s <= LONGEST_BEFORE_S
    world.clock.advance(0.1)
    new = short(world.wanted().build.version)
    world.asked[-1].append(told_answer(world.clock.monotonic_s(), new, 500, code="handler-failed"))
    world.change_overs.close()
    receipt = world.rollbacks.history(KEY)[0].receipt
    assert (receipt.verdict, receipt.reason) == ("cut short", "the control plane was stopped")
    assert receipt.failed_before >= 5
    assert world.wanted().rolled_back is None


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("deploy", "another deploy replaced it"),
        ("rollback", "it was rolled back"),
        ("delete", "the api was deleted"),
        ("fails", "the new version did not start: boom"),
        ("sleeps", "it fell asleep"),
        ("killed", "the process that asks was killed"),
        ("long", f"it was not over after {LONGEST_S / 60:g} min"),
        ("busy", "none of 60 requests was answered"),
    ],
)
def test_what_was_not_seen_to_its_end_is_said_to_be_cut_short(world, what, reason):
    proved = Proved(world)
    world.clock.advance(0.1)
    if what == "deploy":
        world.deploy(world.api(sample=b"1", model="third"))
    elif what == "rollback":
        world.rollbacks.roll_back(KEY, RollbackRequest())
    elif what == "delete":
        world.state.delete(DeploymentName("iris"), wall_s=0.0)
    elif what == "fails":
        world.state.mark_failed(KEY, proved.revision, Problem(reference="x", message="boom\nbang"), wall_s=0.0)
    elif what == "sleeps":
        proved.answer(proved.old, 503, code="asleep")
    elif what == "killed":
        world.asked[-1].has_ended = True
    elif what == "busy":
        proved.answer("", 503, code="overloaded", times=60)
        proved.goes_live()
    receipt = proved.receipt(answered=what != "busy")
    assert (receipt.verdict, receipt.reason) == ("cut short", reason)
    assert receipt.failed == 0
    assert receipt.requests >= 30


def test_one_that_falls_asleep_once_it_was_asked_often_enough_is_proved(world):
    proved = Proved(world)
    proved.goes_live()
    assert world.seen_alone.wait(DEADLINE_S)
    until_s = time.monotonic() + DEADLINE_S
    while (receipt := proved.told()) is None:
        assert time.monotonic() < until_s
        world.clock.advance(0.01)
        proved.answer(proved.new, times=20)
        proved.answer(proved.new, 503, code="asleep")
        threading.Event().wait(0.01)
    assert receipt.verdict == "passed"


def test_an_api_that_sleeps_is_not_asked(world):
    world.live(world.api(sample=b"1", model="old", compute={"min_replicas": 0}))
    world.state.fall_asleep(KEY, world.wanted().build.revision, reason="nobody asked", wall_s=0.0)
    change = world.change(world.api(sample=b"1", model="new", compute={"min_replicas": 0}), prove=True)
    assert (change.proved, change.unproved) == (False, "it sleeps, and whoever asks wakes it")
    receipt = world.rollbacks.history(KEY)[0].receipt
    assert receipt.text == "not proved: it sleeps, and whoever asks wakes it"
    assert world.asked == []
    assert world.wanted().in_proof is None


def test_what_is_proved_needs_a_sample_and_requests_that_may_be_repeated(world):
    world.live(world.api(sample=b"1", model="old"))
    before = len(world.inspected)
    (problem,) = world.problems(world.api(model="new"), prove=True)
    assert (problem.reference, problem.path) == ("no-sample-to-prove-with", ("apis", 0))
    assert "add `sample:`" in problem.hint
    (problem,) = world.problems(world.api(sample=b"1", model="new", retry="off"), prove=True)
    assert (problem.reference, problem.path) == ("proof-repeats-requests", ("apis", 0, "retry"))
    assert "--yes" in problem.hint
    assert len(world.inspected) == before, "told before anything takes long"
    assert not world.change(world.api(sample=b"1", model="old", retry="off"), prove=True).proved


def test_whoever_leaves_while_what_serves_is_asked_changes_nothing(world):
    world.live(world.api(sample=b"1", model="old"))
    wanted, left = world.wanted(), threading.Event()

    def emit(event):
        if event.message.startswith("proving"):
            left.set()

    request = DeployRequest(
        deployment="iris", source="/home/ann/iris", apis=(world.api(sample=b"1", model="new"),), prove=True
    )
    with pytest.raises(DeployLeft):
        world.deployer.deploy("iris", request, emit, left)
    assert world.wanted() == wanted
    assert world.asked[-1].is_closed


def test_an_ingress_that_would_count_what_is_asked_is_not_asked(world):
    world.live(world.api(sample=b"1", model="old"))

    def emit(event):
        if event.message.startswith("proving"):
            world.asked[-1].append(told_answer(world.clock.monotonic_s(), "x", counted=True))

    request = DeployRequest(
        deployment="iris", source="/home/ann/iris", apis=(world.api(sample=b"1", model="new"),), prove=True
    )
    wanted = world.wanted()
    with pytest.raises(CortexError, match="the ingress that runs is an older one"):
        world.deployer.deploy("iris", request, emit)
    assert world.wanted() == wanted
    assert world.asked[-1].is_closed


def test_both_samples_are_sent_where_the_versions_have_different_ones(world):
    world.live(world.api(sample=b"1", model="old"))
    request = DeployRequest(
        deployment="iris", source="/home/ann/iris", apis=(world.api(sample=b"2", model="new"),), prove=True
    )

    def emit(event):
        world.clock.advance(LONGEST_BEFORE_S)

    world.deployer.deploy("iris", request, emit)
    assert [Path(one.file).read_bytes() for one in world.probed.samples] == [b"2", b"1"]
    world.change_overs.close()


def test_a_first_version_is_asked_from_when_it_is_live_and_has_nothing_to_go_back_to(world):
    change = world.change(world.api(sample=b"1"), prove=True)
    assert change.proved
    assert world.asked == []
    world.state.mark_live(KEY, world.wanted().build.revision, wall_s=0.0)
    world.serves_alone = True
    until_s = time.monotonic() + DEADLINE_S
    while not world.asked:
        assert time.monotonic() < until_s
        threading.Event().wait(0.01)
    world.clock.advance(0.1)
    world.asked[-1].append(told_answer(world.clock.monotonic_s(), change.version, 500, code="handler-failed"))
    while (receipt := world.rollbacks.history(KEY)[0].receipt) is None:
        assert time.monotonic() < until_s
        threading.Event().wait(0.01)
    assert receipt.verdict == "failed"
    assert receipt.reason.endswith("there is no version to go back to")
    assert world.wanted().rolled_back is None


def test_after_a_restart_what_was_being_proved_is_said_to_be_cut_short(world):
    Proved(world)
    thread_ends = world.change_overs
    again = ChangeOvers(
        state=world.state,
        store=world.store,
        clock=world.clock,
        ask=world.ask,
        serves_alone=lambda api: False,
        ingress_url=lambda: "",
        token=lambda: "",
        committed=lambda: None,
        tell=world.events.append,
    )
    again.recover()
    assert [event.text for event in world.events if event.kind is EventKind.PROVED] == [
        "cut short: the control plane ended meanwhile; what it saw is not known"
    ]
    receipt = world.rollbacks.history(KEY)[0].receipt
    assert receipt.text == "cut short: the control plane ended meanwhile; what it saw is not known"
    assert world.wanted().in_proof is None
    thread_ends.close()
