"""
Which packages the handlers of a deploy get: their requirements.txt becomes a lock, whose digest is part of versions.

What was resolved stays so until what is asked for changes, or somebody refreshes: a second deploy runs no installer.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from cortex.artifacts.store import ArtifactStore
from cortex.controlplane.keeping import keep
from cortex.controlplane.supplying import Allowance, UnderWay
from cortex.errors import GiveUp, Problem, Problems
from cortex.packages import explanation, lock
from cortex.packages.requirements import FILE_NAME, Requirements, read_requirements
from cortex.packages.runtime import (
    BACKENDS,
    out_of_range,
    platform_here,
    preferred_versions,
    python_here,
    runtime_requirements,
)
from cortex.state.base import ApiRecord, PackagesRecord
from cortex.wire.agent import ResolvePackages
from cortex.wire.build import BuildSpec, Runtime
from cortex.wire.indexes import index_variables, read_handed_over
from cortex.wire.operator import StoredFile
from cortex.wire.packages import PackageLock

MOST_REMEMBERED = 100

Tell = Callable[[str], None]


class PackageHost(Protocol):
    """Who has packages resolved and installed; `errands.Errands` is it."""

    def resolve_packages(self, request: ResolvePackages, tell: Tell) -> PackageLock:
        """Raises GiveUp with what the user has to know, or RetryLater."""
        ...

    def install_packages(self, build: BuildSpec, tell: Tell) -> None:
        """
        Have them ready where the build will be looked at.

        Raises GiveUp with what the user has to know, or RetryLater.
        """
        ...


class Packages:
    """
    Resolves and prepares what deploys ask for.

    Args:
        known: all apis that are stored: what one of them was resolved to, another one gets too.
        indexes_file: what was handed over, which installers on nodes are given.
        under_way: what nodes may ask for meanwhile.
    """

    def __init__(
        self,
        *,
        store: ArtifactStore,
        node: PackageHost,
        known: Callable[[], Iterable[ApiRecord]],
        indexes_file: Path,
        under_way: UnderWay,
    ) -> None:
        self._store = store
        self._node = node
        self._known = known
        self._indexes_file = indexes_file
        self._under_way = under_way
        self._remembered: dict[str, PackagesRecord] = {}
        """By what was asked: a deploy that fails afterwards need not be resolved again."""
        self._guard = threading.Lock()

    def take_over(self, indexes: Mapping[str, str]) -> None:
        """
        Let installers know where packages come from, from now on: packages may have to be installed again much later.

        Raises:
            NotKept
        """
        handed_over = index_variables(indexes)
        if handed_over == read_handed_over(self._indexes_file):
            return
        keep(self._indexes_file, handed_over)

    def of_deploy(
        self, project: str | None, files: Sequence[StoredFile], *, refresh: bool, tell: Tell
    ) -> DeployPackages:
        """
        What the handlers of one deploy get.

        Args:
            project: digest of its stored folder; None when no api has a handler.
            files: what that folder holds.
            refresh: resolve again, to the newest versions.

        Raises:
            Problems: everything that is wrong in requirements.txt.
        """
        requirements = None
        if project is not None:
            folder = self._store.tree_path(project)
            listed = {file.path for file in files}
            requirements = read_requirements(lambda path: (folder / path).read_bytes() if path in listed else None)
        return DeployPackages(self, requirements, project, files, refresh=refresh, tell=tell)

    def prepare(self, builds: Iterable[BuildSpec], tell: Tell) -> None:
        """
        Have the packages of builds ready where these will be looked at.

        Raises:
            Problems: one cannot be built; has the installer's own words.
            RetryLater: no node can be asked.
        """
        wanted = {(build.packages, build.resources): build for build in builds if build.packages is not None}
        for build in wanted.values():
            try:
                with self._under_way.needs(_asked_by(build.packages, build.project)):
                    self._node.install_packages(build, tell)
            except GiveUp as error:
                raise Problems([_placed(error.problem())]) from error

    # ---- for one deploy -----------------------------------------------------------------------------------------

    def recall(self, asked: str) -> PackagesRecord | None:
        """What was resolved for the same question before, if its lock is still there."""
        with self._guard:
            found = self._remembered.get(asked)
        for record in self._known():
            packages = record.version.packages
            if found is None and packages is not None and packages.asked == asked:
                found = packages
        return found if found is not None and self.is_there(found) else None

    def is_there(self, record: PackagesRecord) -> bool:
        """Whether its lock is still stored."""
        return self._store.has(record.lock)

    def keep(self, asked: str, locked: PackageLock) -> PackagesRecord:
        """Store a lock and remember what it is the answer to."""
        with self._store.writer() as writer:
            writer.write(lock.encoded(locked))
            sha256 = writer.commit().sha256
        digest = self._store.put_tree([StoredFile(path=lock.FILE_NAME, sha256=sha256)])
        record = PackagesRecord(asked=asked, lock=digest, versions=lock.versions(locked))
        with self._guard:
            self._remembered[asked] = record
            while len(self._remembered) > MOST_REMEMBERED:
                self._remembered.pop(next(iter(self._remembered)))
        return record

    def resolve(self, request: ResolvePackages, tell: Tell) -> PackageLock:
        with self._under_way.needs(_asked_by(request.project)):
            return self._node.resolve_packages(request, tell)


class DeployPackages:
    """The packages of one deploy; see `Packages.of_deploy`."""

    def __init__(
        self,
        packages: Packages,
        requirements: Requirements | None,
        project: str | None,
        files: Sequence[StoredFile],
        *,
        refresh: bool,
        tell: Tell,
    ) -> None:
        self._packages = packages
        self._requirements = requirements
        self._project = project
        self._files = tuple(files)
        self._refresh = refresh
        self._tell = tell
        self._settled: dict[tuple[Runtime, str], PackagesRecord] = {}
        """By runtime, and by the lock that an api had before."""
        self._resolved_anew: dict[str, PackagesRecord] = {}
        """What this deploy has resolved, by what was asked: once for all apis."""
        self._said: set[Runtime] = set()
        """Of these it was told why there are none."""

    @property
    def warnings(self) -> tuple[Problem, ...]:
        return self._requirements.warnings if self._requirements is not None else ()

    def of(self, runtime: Runtime, before: PackagesRecord | None) -> PackagesRecord | None:
        """
        What handlers in a runtime get; None when nothing is asked for.

        Args:
            before: what the api had until now: versions that still fit stay.

        Raises:
            Problems: they cannot be had. Without any problem when that was said before, for another api.
            RetryLater: no node can be asked.
        """
        if self._requirements is None:
            return None
        if runtime in self._said:
            raise Problems(())
        key = (runtime, before.lock if before is not None else "")
        if key not in self._settled:
            self._said.add(runtime)
            self._settled[key] = self._settle(self._requirements, runtime, before)
            self._said.remove(runtime)
        return self._settled[key]

    def _settle(self, requirements: Requirements, runtime: Runtime, before: PackagesRecord | None) -> PackagesRecord:
        names = {line.name for line in requirements.lines}
        while True:
            needed = runtime_requirements(runtime, names)
            conflicts = [
                explanation.direct_conflict(line, need, preferred_versions().get(line.name))
                for line, need in out_of_range(requirements.lines, needed)
            ]
            if conflicts:
                raise Problems(conflicts)
            asked = _digest_of_question(requirements, needed, self._files)
            found = self._recall(asked, before)
            if found is not None:
                return found
            locked = self._resolve(requirements, needed, before)
            others = _other_backends(runtime, needed, locked)
            if not others:
                self._resolved_anew[asked] = self._packages.keep(asked, locked)
                return self._resolved_anew[asked]
            names |= others  # they hold the same module: there can be only one of them

    def _recall(self, asked: str, before: PackagesRecord | None) -> PackagesRecord | None:
        """The answer to the same question: the one that the api had, else any."""
        if self._refresh:
            return self._resolved_anew.get(asked)
        if before is not None and before.asked == asked and self._packages.is_there(before):
            return before
        return self._packages.recall(asked)

    def _resolve(self, requirements: Requirements, needed: Sequence[str], before: PackagesRecord | None) -> PackageLock:
        preferred = preferred_versions()
        if before is not None and not self._refresh:
            preferred |= {name: version for name, version in before.versions.items() if "://" not in version}
        request = ResolvePackages(
            requirements=tuple(line.text for line in requirements.lines),
            needed=tuple(needed),
            constraints=tuple(line.text for line in requirements.constraints),
            options=requirements.options,
            prerelease=requirements.prerelease,
            preferred=preferred,
            project=self._project if requirements.folders else None,
        )
        lines = (*requirements.lines, *requirements.constraints)
        try:
            found = self._packages.resolve(request, self._tell)
        except GiveUp as error:
            raise Problems([_placed(explanation.placed(error.problem(), lines, needed))]) from error
        try:
            return msgspec.structs.replace(found, packages=lock.with_accepted_hashes(found.packages, lines))
        except lock.HashRefused as error:
            raise Problems([_placed(msgspec.structs.replace(error.problem(), where=error.line.where))]) from error


def _asked_by(*trees: str | None) -> Allowance:
    """What an installer needs: where packages come from, and folders."""
    return Allowance(trees=frozenset(tree for tree in trees if tree is not None), installs=True)


def _other_backends(runtime: Runtime, needed: Sequence[str], locked: PackageLock) -> set[str]:
    """Packages that run the same models as the one that is needed, and that came along with something else."""
    found = {package.name for package in locked.packages} & set(BACKENDS[runtime])
    ours = {name for name in found if any(need.startswith((f"{name}<", f"{name}>", f"{name}=")) for need in needed)}
    return found - ours if ours else set()


def _digest_of_question(requirements: Requirements, needed: Sequence[str], files: Sequence[StoredFile]) -> str:
    """Two deploys that ask the same get the same answer, until somebody refreshes."""
    question: Mapping[str, object] = {
        "lines": [[line.text, *line.hashes] for line in requirements.lines],
        "constraints": [[line.text, *line.hashes] for line in requirements.constraints],
        "options": requirements.options,
        "prerelease": requirements.prerelease,
        "needed": needed,
        "python": python_here(),
        "platform": platform_here(),
        "wheels": [
            [file.path, file.sha256]
            for file in sorted(files, key=lambda file: file.path)
            if any(folder == "." or file.path.startswith(f"{folder}/") for folder in requirements.folders)
            and file.path.endswith((".whl", ".tar.gz", ".zip"))
        ],
    }
    return hashlib.sha256(msgspec.json.encode(question, order="deterministic")).hexdigest()


def _placed(problem: Problem) -> Problem:
    return problem if problem.where else msgspec.structs.replace(problem, where=FILE_NAME)
