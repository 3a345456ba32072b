"""Packages are installed with the real installer, from wheels made here: no network, no packages of replicas."""

import asyncio
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from cortex.agent.installations import PROBE, Installations, PackagesFailed
from cortex.agent.installer import Installer, InstallerFailed
from cortex.agent.supplies import Supplies
from cortex.artifacts.store import ArtifactStore
from cortex.packages import lock
from cortex.processes import ProcessIdentity, identify, is_alive
from cortex.settings import NodeLayout, Settings
from cortex.testing.clock import FakeClock
from cortex.testing.wheels import a_source_archive, a_wheel
from cortex.wire.agent import ResolvePackages
from cortex.wire.operator import StoredFile

NOTHING = "import sys"
"""A probe that asks for nothing."""
CHILDREN_OF_BUILDS = """\
import os, sys, time
def get_requires_for_build_wheel(config_settings=None): return []
def prepare_metadata_for_build_wheel(folder, config_settings=None):
    {what}
"""


class Node:
    """An agent's installations without the agent."""

    def __init__(
        self,
        folder: Path,
        *,
        probe: str = NOTHING,
        environ=None,
        package: Path | None = None,
        supplies=Supplies,
        **settings,
    ) -> None:
        self.folder = folder
        self.wheels = folder / "wheels"
        self.wheels.mkdir(exist_ok=True)
        self.layout = NodeLayout(folder / "home")
        self.store = ArtifactStore(self.layout.artifacts)
        self.clock = FakeClock()
        self.told: list[str] = []
        self.runs: list[str] = []
        self.installer = CountingInstaller(
            {**os.environ, "UV_CACHE_DIR": str(folder / "cache"), **(environ or {})}, self.runs
        )
        self.installations = Installations(
            settings=Settings(home=self.layout.home, **settings),
            layout=self.layout,
            supplies=supplies(store=self.store, upstream=None, clock=self.clock, patience_s=0.0),
            clock=self.clock,
            installer=self.installer,
            package=package,
            probe=probe,
        )

    async def lock(self, *requirements: str, **fields):
        self.installations.adopt()
        request = {"needed": (), "options": ("--no-index", "--find-links", str(self.wheels)), **fields}
        return await self.installations.resolve(ResolvePackages(requirements=requirements, **request), self.told.append)

    def digest(self, locked) -> str:
        return a_tree(self.store, {lock.FILE_NAME: lock.encoded(locked)})

    async def build(self, *requirements: str, **fields) -> tuple[str, Path]:
        digest = self.digest(await self.lock(*requirements, **fields))
        return digest, await self.ensure(digest)

    async def ensure(self, digest: str, project: str | None = None) -> Path:
        return await self.installations.ensure(digest, "onnx", project=project, tell=self.told.append)

    @property
    def left(self) -> list[str]:
        return sorted(os.listdir(self.layout.installations))


class CountingInstaller(Installer):
    """Remembers what it was asked to run."""

    def __init__(self, environ, runs: list[str]) -> None:
        super().__init__(environ)
        self._runs = runs

    async def uv(self, arguments, **options):
        self._runs.append(" ".join(arguments[:2]))
        return await super().uv(arguments, **options)


def a_tree(store: ArtifactStore, files: dict[str, bytes]) -> str:
    stored = []
    for path, content in files.items():
        with store.writer() as writer:
            writer.write(content)
            stored.append(StoredFile(path=path, sha256=writer.commit().sha256))
    return store.put_tree(stored)


def said_by(python: Path, code: str) -> str:
    return subprocess.run(
        [python, "-P", "-c", code], capture_output=True, text=True, check=True, cwd="/"
    ).stdout.strip()


class Copied(Supplies):
    """As of a node whose store is a copy of the control plane's."""

    are_here = False


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_versions_and_digests_are_resolved_together(node):
    a_wheel(node.wheels, "tinya", "1.0")
    a_wheel(node.wheels, "tinya", "2.0")
    a_wheel(node.wheels, "tinyb", "1.0", requires=["tinya<2"])
    found = asyncio.run(node.lock("tinyb"))
    assert lock.versions(found) == {"tinya": "1.0", "tinyb": "1.0"}
    assert all(package.hashes[0].startswith("sha256:") for package in found.packages)
    assert node.left == ["platform"]


def test_a_preferred_version_is_taken_where_nothing_speaks_against_it(node):
    for version in ("1.0", "2.0"):
        a_wheel(node.wheels, "tinya", version)
    assert lock.versions(asyncio.run(node.lock("tinya", preferred={"tinya": "1.0"}))) == {"tinya": "1.0"}
    assert lock.versions(asyncio.run(node.lock("tinya>1", preferred={"tinya": "1.0"}))) == {"tinya": "2.0"}


def test_the_same_is_resolved_to_the_same_digest(node):
    a_wheel(node.wheels, "tinya", "1.0")
    assert node.digest(asyncio.run(node.lock("tinya"))) == node.digest(
        asyncio.run(node.lock("tinya", preferred={"x": "1"}))
    )


def test_an_environment_has_its_packages_and_ours_and_nothing_else(node):
    a_wheel(node.wheels, "tinya", "1.0")
    _, python = asyncio.run(node.build("tinya"))
    assert said_by(python, "import tinya; print(tinya.VERSION)") == "1.0"
    assert said_by(python, "import importlib.util as u; print(u.find_spec('cortex').origin)").endswith("__init__.py")
    code = "import importlib.util as u; print([n for n in ('numpy', 'msgspec', 'uv', 'pytest') if u.find_spec(n)])"
    assert said_by(python, code) == "[]"


def test_two_environments_hold_conflicting_versions(node):
    for version in ("1.0", "2.0"):
        a_wheel(node.wheels, "tinya", version)

    async def both():
        (_, one), (_, two) = await node.build("tinya==1.0"), await node.build("tinya==2.0")
        return [said_by(python, "import tinya; print(tinya.VERSION)") for python in (one, two)]

    assert asyncio.run(both()) == ["1.0", "2.0"]


def test_an_environment_is_built_once_for_all_who_need_it(node):
    a_wheel(node.wheels, "tinya", "1.0")

    async def many():
        digest = node.digest(await node.lock("tinya"))
        pythons = await asyncio.gather(*(node.ensure(digest) for _ in range(5)))
        return {*pythons, await node.ensure(digest)}

    assert len(asyncio.run(many())) == 1
    assert node.runs == ["pip compile", "venv --quiet", "pip install"]
    assert node.told.count("installing 1 packages") >= 1


def test_a_build_that_is_called_off_ends_with_its_installer_unless_another_waits_for_it(node):
    a_wheel(node.wheels, "tinya", "1.0", files={f"tinya/{n}.py": f"N = {n}\n" for n in range(500)})

    async def called_off(waiters: int) -> None:
        digest = node.digest(await node.lock("tinya"))
        waiting = [asyncio.ensure_future(node.ensure(digest)) for _ in range(waiters)]
        while not node.installer.pids:
            await asyncio.sleep(0.001)
        waiting[0].cancel()
        await asyncio.wait(waiting)
        while node.installer.pids:
            await asyncio.sleep(0.001)

    # What it had made so far is removed on a thread, which the end of the loop waits for.
    asyncio.run(called_off(1))
    assert node.left == ["platform"]
    asyncio.run(called_off(2))
    assert len(node.left) == 2


def test_a_later_agent_finds_what_a_former_one_built(node, tmp_path):
    a_wheel(node.wheels, "tinya", "1.0")
    digest, python = asyncio.run(node.build("tinya"))
    later = Node(tmp_path)
    assert asyncio.run(later.ensure(digest)) == python
    assert later.runs == []


def test_nothing_half_is_left_when_a_build_breaks_off(node):
    a_wheel(node.wheels, "tinya", "1.0")

    async def broken_off():
        digest = node.digest(await node.lock("tinya"))
        build = asyncio.ensure_future(node.ensure(digest))
        while "venv --quiet" not in node.runs:
            await asyncio.sleep(0)
        await node.installations.close()
        with pytest.raises(asyncio.CancelledError):
            await build

    asyncio.run(broken_off())
    assert node.left == ["platform"]
    assert node.installer.pids == set()


def test_what_a_killed_agent_left_is_cleared_away_by_the_next(node):
    half = node.layout.installations / ".new-0011"
    (half / "bin").mkdir(parents=True)
    half.chmod(0o555)
    asyncio.run(node.installations.clear_away(node.installations.adopt()))
    assert node.left == ["platform"]


def test_an_environment_without_its_mark_is_built_again(node, tmp_path):
    a_wheel(node.wheels, "tinya", "1.0")
    digest, python = asyncio.run(node.build("tinya"))
    folder = python.parent.parent
    folder.chmod(0o700)
    (folder / "environment.json").unlink()
    again = Node(tmp_path)
    asyncio.run(again.ensure(digest))
    assert again.runs == ["venv --quiet", "pip install"]
    assert again.left == sorted([digest, "platform"])


def test_an_environment_cannot_be_written_into(node):
    a_wheel(node.wheels, "tinya", "1.0")
    _, python = asyncio.run(node.build("tinya"))
    folder = python.parent.parent
    modes = {path.lstat().st_mode & 0o222 for path in [folder, *folder.rglob("*")] if not path.is_symlink()}
    assert modes == {0}


def test_an_environment_sees_the_package_that_we_are_now(node, tmp_path):
    a_wheel(node.wheels, "tinya", "1.0")
    digest, python = asyncio.run(node.build("tinya"))
    moved = tmp_path / "elsewhere" / "cortex"
    moved.mkdir(parents=True)
    (moved / "__init__.py").write_text("HERE = True")
    later = Node(tmp_path, package=moved)
    later.installations.adopt()
    assert said_by(python, "import cortex; print(cortex.HERE)") == "True"
    assert digest in later.left


def test_wheels_of_the_project_are_found(node):
    a_wheel(node.folder / "project", "tinya", "1.0")
    wheel = next((node.folder / "project").iterdir())
    project = a_tree(node.store, {f"vendored/{wheel.name}": wheel.read_bytes()})

    async def built():
        locked = await node.lock("tinya", options=("--no-index", "--find-links", "vendored"), project=project)
        assert locked.options == ("--no-index", "--find-links", "vendored")
        return await node.ensure(node.digest(locked), project)

    assert said_by(asyncio.run(built()), "import tinya; print(tinya.VERSION)") == "1.0"


def test_a_file_with_other_bytes_than_were_locked_is_refused(node):
    wheel = a_wheel(node.wheels, "tinya", "1.0")

    async def swapped():
        digest = node.digest(await node.lock("tinya"))
        wheel.unlink()
        shutil.rmtree(node.folder / "cache")
        a_wheel(node.wheels, "tinya", "1.0", files={"tinya/__init__.py": "VERSION = 'evil'"})
        await node.ensure(digest)

    with pytest.raises(PackagesFailed, match=r"(?s)installing 1 packages failed:.*[Hh]ash mismatch"):
        asyncio.run(swapped())
    assert node.left == ["platform"]


def failing(node: Node, *requirements: str, **fields):
    with pytest.raises(PackagesFailed) as caught:
        asyncio.run(node.build(*requirements, **fields))
    assert node.left == ["platform"]
    return caught.value.problem()


def test_a_package_that_nobody_has_is_named(node):
    problem = failing(node, "nosuchpackage")
    assert problem.reference == "packages-unknown"
    assert "nosuchpackage was not found in the provided package locations" in problem.message
    assert 'spelling of "nosuchpackage"' in problem.hint


def test_a_conflict_is_told_in_the_resolvers_words(node):
    a_wheel(node.wheels, "tinya", "1.0")
    a_wheel(node.wheels, "tinya", "2.0")
    a_wheel(node.wheels, "tinyb", "1.0", requires=["tinya<2"])
    problem = failing(node, "tinyb", needed=("tinya>=2",))
    assert problem.reference == "packages-conflict"
    assert "tinyb" in problem.message
    assert "tinya>=2" in problem.message


def test_a_missing_compiler_is_told_with_the_builds_own_words(node):
    backend = CHILDREN_OF_BUILDS.format(what="os.execvp('sh', ['sh', '-c', 'no-such-gcc -c x.c'])")
    a_source_archive(node.wheels, "needscc", "1.0", backend=backend)
    problem = failing(node, "needscc")
    assert problem.reference == "packages-build-failed"
    assert "no-such-gcc: " in problem.message
    assert "no-such-gcc is missing" in problem.hint


def test_a_build_that_never_ends_is_ended_with_its_children(tmp_path):
    node = Node(tmp_path, resolve_timeout_s=600.0)
    pid_file = tmp_path / "pid"
    what = f"open({str(pid_file)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    a_source_archive(node.wheels, "endless", "1.0", backend=CHILDREN_OF_BUILDS.format(what=what))

    async def out_of_time():
        building = asyncio.ensure_future(node.build("endless"))
        while not (pid_file.exists() and pid_file.read_text()):
            assert not building.done()
            await asyncio.sleep(0.01)
        child = identify(int(pid_file.read_text()))
        loop = asyncio.get_running_loop()
        loop.time = lambda now=loop.time: now() + 600.0  # the time is up
        return child, (await asyncio.gather(building, return_exceptions=True))[0]

    child, error = asyncio.run(out_of_time())
    assert node.left == ["platform"]
    assert isinstance(error, PackagesFailed)
    problem = error.problem()
    assert problem.reference == "packages-timeout"
    assert problem.message.startswith("resolving packages took more than 600 s and was ended")
    assert child is not None
    ended(child)


def ended(process: ProcessIdentity) -> None:
    """Wait until a process that was killed is gone: left alone it would go on for ten minutes."""
    deadline_s = time.monotonic() + 60.0
    while is_alive(process):
        assert time.monotonic() < deadline_s, f"{process} still runs"
        time.sleep(0.01)


def test_a_build_does_not_see_credentials(node):
    secretive = Node(node.folder, environ={"AWS_SECRET_ACCESS_KEY": "hunter2", "GITHUB_TOKEN": "hunter2"})
    what = "sys.exit(repr(sorted(os.environ.items())) + 'no-such-gcc: not found')"
    a_source_archive(node.wheels, "curious", "1.0", backend=CHILDREN_OF_BUILDS.format(what=what))
    problem = failing(secretive, "curious")
    assert "PATH" in problem.message
    assert "hunter2" not in problem.message


def test_a_module_of_our_name_is_refused_with_the_package_that_brings_it(node):
    a_wheel(node.wheels, "brain", "1.0", files={"cortex/__init__.py": ""})
    problem = failing(node, "brain")
    assert problem.reference == "packages-conflict"
    assert problem.message == "brain-1.0 brings a module named cortex, which is ours"


def test_packages_that_replicas_cannot_start_with_are_told_before_any_does(tmp_path):
    node = Node(tmp_path, probe=PROBE)
    a_wheel(node.wheels, "tinya", "1.0")
    problem = failing(node, "tinya")
    assert problem.reference == "packages-unusable"
    assert "ModuleNotFoundError: No module named" in problem.message


def test_environments_that_nobody_needs_are_removed(node):
    for version in ("1.0", "2.0", "3.0"):
        a_wheel(node.wheels, "tinya", version)

    async def swept():
        (used, _), (unused, _) = [await node.build(f"tinya=={n}.0") for n in (1, 2)]
        node.clock.advance(1000.0)
        recent, _ = await node.build("tinya==3.0")
        return used, unused, recent, await node.installations.sweep({used}, grace_s=500.0)

    used, unused, recent, removed = asyncio.run(swept())
    assert removed == (unused,)
    assert node.left == sorted([used, recent, "platform"])


def test_an_environment_that_was_just_used_is_kept(node):
    a_wheel(node.wheels, "tinya", "1.0")

    async def swept():
        await node.build("tinya")
        return await node.installations.sweep(())

    assert asyncio.run(swept()) == ()


def test_a_removed_environment_is_built_again_when_it_is_needed(node):
    a_wheel(node.wheels, "tinya", "1.0")

    async def again():
        digest, _ = await node.build("tinya")
        await node.installations.sweep((), grace_s=0.0)
        return await node.ensure(digest)

    assert said_by(asyncio.run(again()), "import tinya; print(tinya.VERSION)") == "1.0"


AN_AGENT = """\
import asyncio, os
from pathlib import Path
from cortex.agent.installer import Installer

async def main():
    installer = Installer(os.environ)
    options = dict(cwd=Path("/"), timeout_s=600, tell=lambda doing: None, doing="sleeping")
    running = asyncio.ensure_future(installer.run(["/bin/sleep", "600"], **options))
    while not installer.pids:
        await asyncio.sleep(0.01)
    (pid,) = installer.pids
    while not Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"/bin/sleep"):
        await asyncio.sleep(0.01)
    print(pid, flush=True)
    await running

asyncio.run(main())
"""


def test_an_installer_ends_with_the_agent_that_started_it():
    agent = subprocess.Popen([sys.executable, "-c", AN_AGENT], stdout=subprocess.PIPE, text=True)
    with agent:
        assert agent.stdout is not None
        installer = identify(int(agent.stdout.readline()))
        assert installer is not None
        agent.kill()
    ended(installer)


def test_what_an_installer_wrote_is_in_its_error(tmp_path):
    installer = Installer(os.environ)
    command = ["/bin/sh", "-c", "echo to stdout; echo to stderr >&2; exit 3"]
    with pytest.raises(InstallerFailed) as caught:
        asyncio.run(installer.run(command, cwd=tmp_path, timeout_s=60.0, tell=lambda _: None, doing="trying"))
    assert sorted(caught.value.output.splitlines()) == ["to stderr", "to stdout"]


def test_a_lock_that_was_resolved_for_other_machines_is_refused_with_both_named(node, tmp_path):
    a_wheel(node.wheels, "tinya", "1.0")
    locked = asyncio.run(node.lock("tinya"))
    elsewhere = Node(tmp_path, supplies=Copied)
    asyncio.run(elsewhere.ensure(elsewhere.digest(locked)))
    for changed in ({"python": "3.99"}, {"platform": "linux-vax"}):
        digest = elsewhere.digest(msgspec.structs.replace(locked, **changed))
        with pytest.raises(PackagesFailed) as refused:
            asyncio.run(elsewhere.ensure(digest))
        problem = refused.value.problem()
        assert problem.reference == "packages-elsewhere"
        here, there = f"Python {locked.python} on {locked.platform}", next(iter(changed.values()))
        assert here in problem.message
        assert there in problem.message
