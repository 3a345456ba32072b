"""Tests of `cortex.controlplane.packages`, on a node that answers from a table."""

import errno
import time
from pathlib import Path

import msgspec
import pytest

from cortex.artifacts.store import ArtifactStore
from cortex.controlplane.keeping import NotKept
from cortex.controlplane.packages import Packages
from cortex.controlplane.supplying import UnderWay
from cortex.errors import GiveUp, Problem, Problems
from cortex.packages import lock
from cortex.packages.runtime import REPLICA
from cortex.state.base import VersionRecord
from cortex.testing.builders import a_build, a_record
from cortex.wire.indexes import read_handed_over
from cortex.wire.operator import StoredFile
from cortex.wire.packages import LockedPackage, PackageLock

HASH = "sha256:" + "a" * 64


class FakeNode:
    """Pins everything that is asked for to version 1, or to what is preferred."""

    def __init__(self) -> None:
        self.asked = []
        self.prepared = []
        self.refusal: Problem | None = None
        self.along: tuple[str, ...] = ()
        """Further packages that come along."""

    def resolve_packages(self, request, tell):
        self.asked.append(request)
        if self.refusal is not None:
            raise GiveUp(self.refusal)
        tell("resolving")
        names = {line.partition("=")[0].partition(">")[0] for line in (*request.requirements, *request.needed)}
        packages = [
            LockedPackage(name=name, version=request.preferred.get(name, "1"), hashes=(HASH,))
            for name in sorted({*names, *self.along})
        ]
        return PackageLock(python="3.11", platform="linux-x86_64", packages=tuple(packages), options=request.options)

    def install_packages(self, build, tell):
        self.prepared.append(build.packages)
        if self.refusal is not None:
            raise GiveUp(self.refusal)


class World:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = ArtifactStore(folder)
        self.node = FakeNode()
        self.records = []
        self.told = []
        self.packages = self.anew()

    def anew(self) -> Packages:
        return Packages(
            under_way=UnderWay(),
            store=self.store,
            node=self.node,
            known=lambda: self.records,
            indexes_file=self.folder / "indexes.json",
        )

    def project(self, **files: str):
        """`files` by name, with `__` for a dot."""
        stored = []
        for name, content in files.items():
            with self.store.writer() as writer:
                writer.write(content.encode())
                stored.append(StoredFile(path=name.replace("__", "."), sha256=writer.commit().sha256))
        return self.store.put_tree(stored), stored

    def settle(self, requirements: str, before=None, *, refresh=False, model_format="onnx", packages=None, **files):
        digest, stored = self.project(requirements__txt=requirements, **files)
        deploy = (packages or self.packages).of_deploy(digest, stored, refresh=refresh, tell=self.told.append)
        return deploy.of(model_format, before)


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def problems(world: World, *args, **options):
    with pytest.raises(Problems) as caught:
        world.settle(*args, **options)
    return caught.value.problems


def test_what_is_asked_for_is_resolved_together_with_what_replicas_need(world):
    found = world.settle("pillow==11\n-c limits.txt", limits__txt="six<2")
    (asked,) = world.node.asked
    assert asked.requirements == ("pillow==11",)
    assert asked.constraints == ("six<2",)
    assert {need.partition(">")[0] for need in asked.needed} == {*REPLICA, "onnxruntime"}
    assert found.versions["pillow"] == "1"
    stored = world.store.tree_path(found.lock) / lock.FILE_NAME
    assert lock.versions(lock.decoded(stored.read_bytes())) == found.versions
    assert world.told == ["resolving"]


@pytest.mark.parametrize("text", ["", "# nothing\n"])
def test_without_requirements_the_packages_of_cortex_serve(world, text):
    assert world.settle(text) is None
    assert world.node.asked == []


def test_a_project_without_the_file_asks_for_nothing(world):
    digest, stored = world.project(handler__py="")
    assert world.packages.of_deploy(digest, stored, refresh=False, tell=print).of("onnx", None) is None


def test_the_same_question_is_asked_once(world):
    first = world.settle("pillow")
    assert world.settle("pillow  # the same\n", other__py="1") == first
    assert len(world.node.asked) == 1


def test_a_control_plane_that_was_started_anew_knows_the_answer_from_what_is_stored(world):
    first = world.settle("pillow")
    world.records = [a_record(version=VersionRecord(build=a_build(), packages=first))]
    assert world.settle("pillow", packages=world.anew()) == first
    assert len(world.node.asked) == 1


def test_an_answer_whose_lock_is_gone_is_asked_for_again(world):
    world.settle("pillow")
    world.store.collect_garbage((), 0, time.time() + 10 * 365 * 86400.0)
    world.settle("pillow")
    assert len(world.node.asked) == 2


@pytest.mark.parametrize(
    "other",
    [
        {"requirements": "pillow==2"},
        {"requirements": "pillow", "refresh": True},
        {"requirements": "pillow\n--pre"},
        {"requirements": "pillow\n-i https://example.com/simple"},
        {"requirements": "pillow", "model_format": "tensorflow"},
    ],
)
def test_another_question_is_asked_again(world, other):
    world.settle("pillow")
    world.settle(**other)
    assert len(world.node.asked) == 2


def test_another_wheel_under_the_same_name_is_another_question(world):
    text = "--find-links .\nthing"
    first = world.settle(text, **{"thing-1-py3-none-any__whl": "one"})
    second = world.settle(text, **{"thing-1-py3-none-any__whl": "two"})
    assert len(world.node.asked) == 2
    assert first.asked != second.asked
    assert all(asked.project is not None for asked in world.node.asked)


def test_versions_that_still_fit_stay_and_a_refresh_lets_go_of_them(world):
    before = world.settle("pillow")
    before = type(before)(asked="x", lock=before.lock, versions={"pillow": "0.9", "url": "https://x/y.zip"})
    world.settle("pillow\nsix", before)
    world.settle("pillow\nsix\nmore", before, refresh=True)
    kept, fresh = (asked.preferred for asked in world.node.asked[1:])
    assert (kept["pillow"], "url" in kept) == ("0.9", False)
    assert "pillow" not in fresh
    assert fresh["numpy"] == kept["numpy"]


def test_a_problem_of_the_file_is_told_before_anything_is_asked(world):
    assert [p.where for p in problems(world, "pillow=1\n-e .")] == ["requirements.txt:1", "requirements.txt:2"]
    assert world.node.asked == []


def test_a_pin_that_replicas_cannot_live_with_names_both(world):
    (problem,) = problems(world, "six\nnumpy==1.20.0")
    assert (problem.reference, problem.where) == ("packages-conflict", "requirements.txt:2")
    assert "numpy==1.20.0, and replicas of this Cortex need numpy>=" in problem.message
    assert world.node.asked == []


def test_a_refusal_of_the_installer_is_placed_at_the_line_it_is_about(world):
    world.node.refusal = Problem(reference="packages-unknown", message="Because pilow was not found")
    (problem,) = problems(world, "six\npilow")
    assert (problem.where, problem.message) == ("requirements.txt:2", "Because pilow was not found")


def test_a_refusal_about_nothing_in_particular_is_placed_at_the_file(world):
    world.node.refusal = Problem(reference="packages-unreachable", message="no network")
    assert problems(world, "six")[0].where == "requirements.txt"


def test_one_refusal_is_told_once_for_all_apis_of_a_deploy(world):
    world.node.refusal = Problem(reference="packages-unreachable", message="no network")
    digest, stored = world.project(requirements__txt="six")
    deploy = world.packages.of_deploy(digest, stored, refresh=False, tell=print)
    told = []
    for _ in range(3):
        with pytest.raises(Problems) as caught:
            deploy.of("onnx", None)
        told += caught.value.problems
    assert len(told) == len(world.node.asked) == 1


def test_all_apis_of_a_deploy_get_the_same_even_when_it_is_a_refresh(world):
    digest, stored = world.project(requirements__txt="six")
    deploy = world.packages.of_deploy(digest, stored, refresh=True, tell=print)
    assert deploy.of("onnx", None) is deploy.of("onnx", None)
    assert len(world.node.asked) == 1


def test_only_one_of_the_packages_with_a_backends_module_is_locked(world):
    world.node.along = ("onnxruntime-gpu",)
    world.settle("something")
    backends = [{need.partition(">")[0] for need in asked.needed} - set(REPLICA) for asked in world.node.asked]
    assert backends == [{"onnxruntime"}, {"onnxruntime-gpu"}]


def test_digests_that_the_user_accepts_count(world):
    (problem,) = problems(world, "six --hash=sha256:" + "b" * 64)
    assert (problem.reference, problem.where) == ("requirements-hash-mismatch", "requirements.txt:1")
    world.settle(f"six --hash={HASH}")


def test_each_environment_is_prepared_once(world):
    builds = [msgspec.structs.replace(a_build(), packages=lock_digest) for lock_digest in ("a", None, "b", "a")]
    world.packages.prepare(builds, print)
    assert world.node.prepared == ["a", "b"]


def test_an_environment_that_cannot_be_built_is_a_problem_of_the_file(world):
    world.node.refusal = Problem(reference="packages-build-failed", message="no compiler")
    with pytest.raises(Problems) as caught:
        world.packages.prepare([msgspec.structs.replace(a_build(), packages="a")], print)
    assert [p.where for p in caught.value.problems] == ["requirements.txt"]


# ---- where packages come from ----------------------------------------------------------------------------------------


def test_what_a_deploys_shell_says_about_indexes_is_kept_for_installers_alone(world):
    world.packages.take_over({"UV_INDEX_URL": "https://me:pw@a/simple", "PATH": "/bin"})
    file = world.folder / "indexes.json"
    assert read_handed_over(file) == {"UV_INDEX_URL": "https://me:pw@a/simple"}
    assert file.stat().st_mode & 0o777 == 0o600
    world.packages.take_over({})
    assert read_handed_over(file) == {}


def test_indexes_that_cannot_be_kept_are_a_problem_that_names_the_file(world):
    (world.folder / "indexes.json").mkdir()
    with pytest.raises(NotKept, match=r"indexes.json cannot be written: Is a directory") as refused:
        world.packages.take_over({"UV_OFFLINE": "1"})
    assert refused.value.reference == "unusable-home"


def test_a_full_disk_is_told_as_such_whichever_file_finds_out():
    refused = NotKept(Path("/home/ann/.cortex/cloud.json"), OSError(errno.ENOSPC, "No space left on device"))
    assert refused.problem().reference == "disk-full"
    assert "free space on the disk that holds /home/ann/.cortex" in refused.problem().hint
