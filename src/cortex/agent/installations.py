"""
Users' packages as they are installed on this node: resolved, built once for each lock, shared, removed when nobody
needs them.

    <home>/environments/
    ├── <digest>/           one installation, there whole or not at all; read-only
    │   └── environment.json what it was made for
    ├── platform/cortex     a link to the package that we are: what installations see of us, and nothing beside it
    └── .new-…, .gone-…     being built, being removed

A lock is a tree of the artifact store with one file; its digest names the installation. Building runs installers in
confined processes (`agent.installer`); nothing of users' packages is ever imported here.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import secrets
import shutil
import stat
import sys
from collections.abc import Collection, Iterable
from pathlib import Path

import msgspec

import cortex
from cortex import processes
from cortex.agent.installer import Installer, InstallerFailed, Tell
from cortex.agent.joint import JointWork
from cortex.agent.supplies import Supplies, untold
from cortex.artifacts.hashing import is_sha256
from cortex.clock import Clock
from cortex.errors import CortexError, Problem
from cortex.packages import explanation, lock
from cortex.packages.runtime import platform_here, python_here
from cortex.settings import NodeLayout, Settings
from cortex.version import __version__
from cortex.wire.agent import ResolvePackages
from cortex.wire.build import Runtime
from cortex.wire.packages import PackageLock
from cortex.wire.places import Places

log = logging.getLogger(__name__)

UNUSED_GRACE_S = 900.0
"""An installation is kept for this long after its last use: a deploy that was just inspected may be about to commit."""
PROBE_TIMEOUT_S = 120.0
"""For importing what a launcher imports, from a disk that has never been read, on a busy machine."""

_NEW, _GONE = ".new-", ".gone-"
_MARK = "environment.json"
_PATH_FILE = "_cortex.pth"
_TO_PLATFORM = "../../../../platform"
"""From an installation's `lib/python3.x/site-packages` to the folder that holds a link to us, and nothing else."""

PROBE = """\
import sys
from cortex.replica import launcher
from cortex.replica.process import isolation
launcher.preload(sys.argv[1])
threads = isolation.single_thread_offenders()
if threads:
    sys.exit("importing these packages starts threads, so replicas cannot be forked: " + ", ".join(threads))
"""
"""Run in an installation before it is used for the first time: does what a launcher does as it starts."""


class PackagesFailed(CortexError):
    """Packages could not be resolved or installed; the problem has the installer's own words."""

    reference = "packages-failed"

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        super().__init__(problem.message)

    def problem(self) -> Problem:
        return self._problem


class _Mark(msgspec.Struct, frozen=True):
    """`environment.json`: what an installation was made for."""

    python: str
    """Of the interpreter that it links to: `3.11.7`."""
    cortex: str
    """The version of ours that it was last known to work with."""


class Installations:
    """
    Every installation of this node.

    Args:
        supplies: has locks, and projects with wheels of their own.
        package: the folder of this package, which installations import.
        probe: Python code that an installation must run, with the model format as its argument.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        layout: NodeLayout,
        supplies: Supplies,
        clock: Clock,
        installer: Installer,
        package: Path | None = None,
        probe: str = PROBE,
    ) -> None:
        self._settings = settings
        self._root = layout.installations
        self._supplies = supplies
        self._places = Places(str(settings.home))
        self._clock = clock
        self._installer = installer
        self._package = package or Path(os.path.abspath(cortex.__file__)).parent
        self._probe_code = probe
        self._builds: JointWork[None] = JointWork()
        self._known: set[str] = set()
        """Installations that were found fit to use since we started."""
        self._used_s: dict[str, float] = {}
        self._started_s = clock.monotonic_s()
        self._removing = asyncio.Lock()

    @property
    def pids(self) -> set[int]:
        """Of installers that run now."""
        return self._installer.pids

    def python(self, digest: str) -> Path:
        """The interpreter of an installation, whether or not it has been built."""
        return self._root / digest / "bin" / "python"

    def adopt(self) -> tuple[Path, ...]:
        """
        Let installations see the package that we are now. Never fails: who needs no packages is served anyway.

        Returns:
            What a former agent left unfinished, for `clear_away`.
        """
        try:
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._link_package()
            return tuple(self._root / name for name in os.listdir(self._root) if name.startswith((_NEW, _GONE)))
        except OSError as error:
            log.error("installations of users' packages cannot be used: %s", error)
            return ()

    async def clear_away(self, strays: Iterable[Path]) -> None:
        """Remove what `adopt` found; may take long."""
        for stray in strays:
            await asyncio.to_thread(_remove, stray)

    async def close(self) -> None:
        """End what is being built."""
        await self._builds.close()

    # ---- resolving ----------------------------------------------------------------------------------------------

    async def resolve(self, request: ResolvePackages, tell: Tell) -> PackageLock:
        """
        Find versions and files for what is asked.

        Raises:
            PackagesFailed, InstallerMissing
            CortexError: the project, whose wheels are asked for, cannot be had.
        """
        folder = self._root / f"{_NEW}{secrets.token_hex(8)}"
        folder.mkdir(mode=0o700)
        try:
            _write_lines(folder / "requirements.in", (*request.requirements, *request.needed))
            _write_lines(folder / "constraints.in", request.constraints)
            _write_lines(folder / "resolved.txt", (f"{n}=={v}" for n, v in request.preferred.items()))
            arguments = [
                *("pip", "compile", "--generate-hashes", "--no-header", "--no-annotate", "--quiet"),
                *("--python", sys.executable, "--output-file", "resolved.txt"),
                *("--constraints", "constraints.in", *(("--prerelease", "allow") if request.prerelease else ())),
                *await self._options(request.options, request.project, tell),
                "requirements.in",
            ]
            doing = "resolving packages"
            with self._supplies.using(*([request.project] if request.project is not None else ())):
                await self._install(arguments, folder, self._settings.resolve_timeout_s, tell, doing)
            packages = lock.parse_resolution((folder / "resolved.txt").read_text("utf-8"))
        finally:
            await asyncio.to_thread(_remove, folder)
        return PackageLock(
            python=python_here(), platform=platform_here(), packages=packages, options=tuple(request.options)
        )

    async def _options(self, options: Iterable[str], project: str | None, tell: Tell) -> list[str]:
        """Options of a lock with the paths of folders that the project brings along."""
        arguments: list[str] = []
        for option in options:
            if arguments and arguments[-1] == "--find-links" and "://" not in option and project is not None:
                arguments.append(str((await self._supplies.folders([project], tell))[project] / option))
            else:
                arguments.append(option)
        return arguments

    async def _install(self, arguments: list[str], cwd: Path, timeout_s: float, tell: Tell, doing: str) -> str:
        try:
            return await self._installer.uv(arguments, cwd=cwd, timeout_s=timeout_s, tell=tell, doing=doing)
        except InstallerFailed as error:
            raise PackagesFailed(self._places.told(_problem(error, doing))) from error

    # ---- building -----------------------------------------------------------------------------------------------

    async def ensure(self, digest: str, runtime: Runtime, *, project: str | None, tell: Tell = untold) -> Path:
        """
        The interpreter of an installation, which is built first if need be; whoever needs it meanwhile waits along.

        Args:
            digest: of the lock.
            runtime: what has to run with it.
            project: digest of a project that brings wheels along; None when the lock needs none.

        Raises:
            PackagesFailed: it cannot be built, or does not work.
            CortexError: lock or project cannot be had; uv is missing.
        """
        self._used_s[digest] = self._clock.monotonic_s()
        if digest in self._known and self.python(digest).exists():
            return self.python(digest)
        with self._supplies.using(digest, *([project] if project is not None else ())):
            await self._builds.of(digest, lambda all_told: self._make_usable(digest, runtime, project, all_told), tell)
        self._used_s[digest] = self._clock.monotonic_s()
        return self.python(digest)

    async def _make_usable(self, digest: str, runtime: Runtime, project: str | None, tell: Tell) -> None:
        mark = self._read_mark(digest)
        try:
            if mark is None or mark.python != _python_version():
                await self._build(digest, runtime, project, tell)
            elif mark.cortex != __version__:
                # Another Cortex made it: replicas may need by now what was not asked for then.
                await self._probe(self._root / digest, runtime, tell)
        except asyncio.CancelledError:
            log.info("building installation %s was called off", digest)
            raise
        except Exception as error:
            log.error("installation %s could not be built: %s", digest, error)
            raise
        self._known.add(digest)

    def _read_mark(self, digest: str) -> _Mark | None:
        """What an installation was made for; None when there is none that could be used."""
        mark = processes.read_record(self._root / digest / _MARK, _Mark)
        return mark if self.python(digest).exists() else None  # its base interpreter may have gone

    async def _build(self, digest: str, runtime: Runtime, project: str | None, tell: Tell) -> None:
        locked = await self._read_lock(digest, tell)
        count = len(locked.packages)
        doing = f"installing {count} packages"
        folder = self._root / f"{_NEW}{secrets.token_hex(8)}"
        log.info("building installation %s: %s packages", digest, count)
        try:
            timeout_s = self._settings.install_timeout_s
            create = ["venv", "--quiet", "--relocatable", "--no-project", "--python", sys.executable, str(folder)]
            await self._install(create, self._root, timeout_s, tell, doing)
            (folder / lock.FILE_NAME).write_bytes(lock.encoded(locked))
            (folder / "requirements.txt").write_text(lock.installable(locked), "utf-8")
            install = [
                *("pip", "install", "--require-hashes", "--no-deps", "--compile-bytecode", "--link-mode", "copy"),
                *("--python", str(folder / "bin" / "python"), *await self._options(locked.options, project, tell)),
                *("--requirement", "requirements.txt"),
            ]
            await self._install(install, folder, timeout_s, tell, doing)
            self._let_in(folder)
            await self._probe(folder, runtime, tell)
            mark = _Mark(python=_python_version(), cortex=__version__)
            (folder / _MARK).write_bytes(msgspec.json.encode(mark))
            await asyncio.to_thread(self._publish, folder, digest)
        except BaseException:
            await asyncio.shield(asyncio.to_thread(_remove, folder))
            raise
        log.info("installation %s is built", digest)

    async def _read_lock(self, digest: str, tell: Tell) -> PackageLock:
        folder = (await self._supplies.folders([digest], tell))[digest]
        locked = lock.decoded((folder / lock.FILE_NAME).read_bytes())
        if not self._supplies.are_here:
            _check_is_for_here(locked)
        return locked

    def _let_in(self, folder: Path) -> None:
        """Our own package enters by a path file, alone: what else lies beside it here must not be found there."""
        site_packages = folder / "lib" / f"python{python_here()}" / "site-packages"
        taken = next((name for name in ("cortex", "cortex.py") if (site_packages / name).exists()), None)
        if taken is not None:
            message = f"{_owner(site_packages)} brings a module named cortex, which is ours"
            hint = "take it out of requirements.txt"
            raise PackagesFailed(Problem(reference="packages-conflict", message=message, hint=hint))
        (site_packages / _PATH_FILE).write_text(_TO_PLATFORM + "\n")

    async def _probe(self, folder: Path, runtime: Runtime, tell: Tell) -> None:
        """Import what a launcher will: better now, with a message, than in a replica that does not come up."""
        doing = "trying the packages"
        command = [str(folder / "bin" / "python"), "-P", "-c", self._probe_code, runtime]
        try:
            await self._installer.run(command, cwd=folder, timeout_s=PROBE_TIMEOUT_S, tell=tell, doing=doing)
        except InstallerFailed as error:
            said = explanation.relevant(error.output) or str(error)
            raise PackagesFailed(
                Problem(
                    reference="packages-unusable",
                    message=f"the packages were installed, but replicas cannot start with them:\n{said}",
                    hint="another version of the package that is named there may work",
                )
            ) from error

    def _publish(self, folder: Path, digest: str) -> None:
        """Let an installation appear, whole, under its own name, and for good."""
        for parent, folders, files in os.walk(folder, topdown=False):
            for name in files:
                file = os.path.join(parent, name)
                if not os.path.islink(file):
                    os.chmod(file, stat.S_IMODE(os.stat(file).st_mode) & 0o555)
            for name in folders:
                if not os.path.islink(os.path.join(parent, name)):
                    os.chmod(os.path.join(parent, name), 0o555)
        _sync_file_system(folder)
        final = self._root / digest
        former = self._root / f"{_GONE}{secrets.token_hex(8)}"
        if final.exists():  # of another interpreter, or damaged
            final.rename(former)
        folder.rename(final)
        final.chmod(0o555)
        _sync_file_system(self._root)
        _remove(former)

    def _link_package(self) -> None:
        """Atomically: launchers may be importing through it."""
        platform = self._root / "platform"
        platform.mkdir(mode=0o700, exist_ok=True)
        link = platform / "cortex"
        if link.is_symlink() and os.readlink(link) == os.fspath(self._package):
            return
        fresh = platform / f".cortex.{os.getpid()}"
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(self._package)
        fresh.rename(link)

    # ---- removing -----------------------------------------------------------------------------------------------

    async def sweep(self, in_use: Collection[str], *, grace_s: float = UNUSED_GRACE_S) -> tuple[str, ...]:
        """
        Remove installations that nobody needs; returns their digests.

        Args:
            in_use: digests that are wanted, by stored builds or by what runs here.
            grace_s: how long ago one must have been used last.
        """
        async with self._removing:
            now_s = self._clock.monotonic_s()
            removed = []
            for name in sorted(os.listdir(self._root)) if self._root.is_dir() else ():
                idle_s = now_s - self._used_s.get(name, self._started_s)
                if not is_sha256(name) or name in in_use or name in self._builds or idle_s < grace_s:
                    continue
                self._known.discard(name)
                (self._root / name).rename(self._root / f"{_GONE}{name}")
                removed.append(name)
                log.info("installation %s is removed: nothing needs it any more", name)
            for name in removed:
                await asyncio.to_thread(_remove, self._root / f"{_GONE}{name}")
            return tuple(removed)


def _check_is_for_here(locked: PackageLock) -> None:
    """Raises PackagesFailed: it was resolved for another Python than that of this node, or for other machines."""
    wanted, found = (locked.python, locked.platform), (python_here(), platform_here())
    if wanted != found:
        resolved, here = (f"Python {python} on {platform}" for python, platform in (wanted, found))
        message = f"the packages were resolved for {resolved}, and this node has {here}"
        hint = "nodes need the Python version and the platform of the control plane"
        raise PackagesFailed(Problem(reference="packages-elsewhere", message=message, hint=hint))


def _problem(error: InstallerFailed, doing: str) -> Problem:
    if error.timeout_s is None:
        return explanation.failure(error.output, doing=doing)
    said = explanation.relevant(error.output)
    return Problem(
        reference="packages-timeout",
        message="\n".join(filter(None, (f"{doing} took more than {error.timeout_s:.0f} s and was ended", said))),
        hint="a package that is built from source takes long: pin a version that comes as a wheel",
    )


def _owner(site_packages: Path) -> str:
    """The distribution that brought a module named like us."""
    for record in sorted(site_packages.glob("*.dist-info/RECORD")):
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if any(line.startswith(("cortex/", "cortex.py,")) for line in record.read_text("utf-8").splitlines()):
                return record.parent.name.removesuffix(".dist-info")
    return "one of the packages"


def _write_lines(file: Path, lines: Iterable[str]) -> None:
    file.write_text("".join(f"{line}\n" for line in lines), "utf-8")


def _python_version() -> str:
    return ".".join(str(part) for part in sys.version_info[:3])


def _sync_file_system(folder: Path) -> None:
    """
    Have everything written on this disk: a rename must not outlive what it names.

    Source: syncfs(2). One call costs less than an fsync for each of thousands of files.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        ctypes.CDLL(None, use_errno=True).syncfs(descriptor)
    finally:
        os.close(descriptor)


def _remove(folder: Path) -> None:
    """Remove a folder of ours, read-only ones too."""
    for parent, folders, _files in os.walk(folder):
        with contextlib.suppress(OSError):
            os.chmod(parent, 0o700)
        for name in folders:
            path = os.path.join(parent, name)
            if not os.path.islink(path):
                with contextlib.suppress(OSError):
                    os.chmod(path, 0o700)
    shutil.rmtree(folder, ignore_errors=True)
