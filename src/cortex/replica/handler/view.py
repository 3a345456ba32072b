"""
A handler's view of its project: it may write there what it likes, and all of it is gone with the replica.

The project lies in the artifact store, where no byte may change. In a mount namespace of its own a process lays an
overlay over the project's folder: paths keep their names, reading costs nothing, and what is written goes to a tmpfs of
limited size. The rest of the store cannot be written at all in there. Where no namespace can be had the process gets a
copy, and where that would be too large the folder is read-only.

Called once, right after the fork: a process with threads cannot enter a user namespace.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from cortex.errors import Problem
from cortex.processes import own_mark
from cortex.wire.launch import VIEW_SOURCE, ReplicaSpec
from cortex.wire.places import COPY_NAME

COPIED_BYTES = 32 * 2**20
COPIED_FILES = 2_000
"""A larger project is not copied for each replica: 90 MB in 5,000 files take up to a second and a half."""

# Source: sched.h, sys/mount.h, linux/capability.h and linux/prctl.h.
_CLONE_NEWNS, _CLONE_NEWUSER = 0x0002_0000, 0x1000_0000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV = 1, 2, 4
_MS_REMOUNT, _MS_BIND, _MS_REC, _MS_SLAVE = 32, 4096, 1 << 14, 1 << 19
_MNT_DETACH = 2
_CAP_DAC_OVERRIDE, _CAPABILITY_VERSION = 1, 0x2008_0522
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE = 47, 2

Kind = Literal["none", "overlay", "copy", "read-only"]


class ProjectView(NamedTuple):
    """What a process sees of its project."""

    kind: Kind
    spec: ReplicaSpec
    """With the folder that it is to work in."""
    warning: Problem | None = None

    def hint(self, error: BaseException | None) -> str:
        """What to do about an error of users' code, if the view is the reason; else empty."""
        if self.kind == "overlay" and isinstance(error, OSError) and error.errno == errno.ENOSPC and self._is_full():
            megabytes = self.spec.view_bytes >> 20
            return f"what is written beside the handler is full: it holds CORTEX_VIEW_MB={megabytes}; {_elsewhere()}"
        return ""

    def _is_full(self) -> bool:
        try:
            return self.spec.project_dir is not None and os.statvfs(self.spec.project_dir).f_bavail == 0
        except OSError:
            return False


def enter(spec: ReplicaSpec, *, overlay: Callable[[ReplicaSpec], None] | None = None) -> ProjectView:
    """
    Give this process a view of its own. Never fails: where all else does, the folder is read-only.

    Args:
        overlay: lays it, or raises OSError where that cannot be.
    """
    if spec.project_dir is None or spec.handler is None:
        return ProjectView("none", spec)
    try:
        (overlay or lay_overlay)(spec)
    except OSError as error:
        return _without_namespace(spec, error)
    return ProjectView("overlay", spec)


def lay_overlay(spec: ReplicaSpec) -> None:
    """
    Enter a mount namespace with an overlay on the project. Raises OSError: this machine does not allow it.

    The tmpfs is mounted where the overlay comes to lie, which hides it: nobody reaches its files but through the view.
    Its source is this process's mark: whatever this process starts is in the same namespace, and found by that.
    """
    is_root = os.geteuid() == 0
    _enter_namespace(is_root)
    try:
        _lay(spec, "" if is_root else ",userxattr")
    finally:
        if not is_root:
            _keep_one_capability()


def _lay(spec: ReplicaSpec, more_options: str) -> None:
    assert spec.project_dir is not None
    project = os.path.realpath(spec.project_dir)
    # As a slave: what the system mounts or unmounts later is so here too, or its disks would stay busy.
    _mount(None, "/", None, _MS_REC | _MS_SLAVE)
    for folder in filter(os.path.isdir, map(os.path.realpath, spec.read_only)):
        _mount(folder, folder, None, _MS_BIND)
        _mount(None, folder, None, _MS_BIND | _MS_REMOUNT | _MS_RDONLY | _locked_flags(folder))
    lower = os.open(project, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        source = VIEW_SOURCE + own_mark()
        _mount(source, project, "tmpfs", _MS_NOSUID | _MS_NODEV, f"size={spec.view_bytes},mode=0700")
        try:
            for name in ("upper", "work"):
                os.mkdir(os.path.join(project, name), 0o755)
            os.chdir(project)  # relative paths: a comma or a colon in one would mean something else
            options = f"lowerdir=/proc/self/fd/{lower},upperdir=upper,workdir=work{more_options}"
            _mount(source, project, "overlay", _MS_NOSUID | _MS_NODEV, options)
        except OSError:
            os.chdir("/")
            _call("umount2", os.fsencode(project), _MNT_DETACH)
            raise
    finally:
        os.chdir("/")
        os.close(lower)


def _enter_namespace(is_root: bool) -> None:
    uid, gid = os.geteuid(), os.getegid()
    if is_root:
        _call("unshare", _CLONE_NEWNS)
        return
    _call("unshare", _CLONE_NEWNS | _CLONE_NEWUSER)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")


def _keep_one_capability() -> None:
    """
    Of those that a user namespace gives, which reach only the user's own files, keep the one to write what is 0444.

    The store's files are, and so the view's. Ambient, so that programs that the handler executes have it too.
    """
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    kept = 1 << _CAP_DAC_OVERRIDE
    _call("capset", header, (ctypes.c_uint32 * 6)(kept, kept, kept, 0, 0, 0))
    _call("prctl", _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, _CAP_DAC_OVERRIDE, 0, 0)


def _locked_flags(folder: str) -> int:
    """Flags of a mount that a user namespace may not take away, and that a change of others has to repeat."""
    found = os.statvfs(folder).f_flag
    kept = (os.ST_NOSUID, os.ST_NODEV, os.ST_NOEXEC, os.ST_NOATIME, os.ST_NODIRATIME, os.ST_RELATIME)
    flags = (_MS_NOSUID, _MS_NODEV, 8, 1024, 2048, 1 << 21)
    return sum(flag for shown, flag in zip(kept, flags, strict=True) if found & shown)


def _mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    encoded = [None if text is None else os.fsencode(text) for text in (source, target, kind)]
    _call("mount", *encoded, ctypes.c_ulong(flags), None if options is None else os.fsencode(options))


def _call(name: str, *arguments: Any) -> None:
    if getattr(_libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


_libc = ctypes.CDLL(None, use_errno=True)


# ---- without namespaces ---------------------------------------------------------------------------------------------


def _without_namespace(spec: ReplicaSpec, reason: OSError) -> ProjectView:
    assert spec.project_dir is not None
    copy = os.path.join(spec.scratch, COPY_NAME)
    try:
        size = measure(spec.project_dir)
        if spec.scratch and size is not None:
            shutil.copytree(spec.project_dir, copy, copy_function=_copy, dirs_exist_ok=True)
            for folder, _, _ in os.walk(copy):
                os.chmod(folder, 0o755)
            return ProjectView("copy", msgspec.structs.replace(spec, project_dir=copy))
    except (OSError, shutil.Error) as error:
        reason = OSError(errno.EIO, f"{reason}; nor a copy: {error}")
    refuse_writes(spec.project_dir)
    warning = Problem(
        reference="project-read-only",
        message=f"the project's folder is read-only: this machine allows no view of it ({reason.strerror}), and it is "
        f"not copied for each replica beyond {COPIED_BYTES >> 20} MiB or {COPIED_FILES} files",
        hint=_elsewhere(),
    )
    return ProjectView("read-only", spec, warning)


def measure(folder: str) -> int | None:
    """Bytes of a folder's files; None: it is too large to be copied. Raises OSError."""
    size = count = 0
    for parent, _, names in os.walk(folder):
        count += len(names)
        size += sum(os.lstat(os.path.join(parent, name)).st_size for name in names)
        if count > COPIED_FILES or size > COPIED_BYTES:
            return None
    return size


def _copy(source: str, target: str) -> str:
    shutil.copyfile(source, target)
    os.chmod(target, 0o755 if os.access(source, os.X_OK) and os.stat(source).st_mode & 0o100 else 0o644)
    return target


def refuse_writes(folder: str) -> None:
    """From now on have Python refuse whatever would change something in a folder, with an error that says where to."""
    inside = os.path.join(os.path.realpath(folder), "")

    def refuse(event: str, arguments: Sequence[Any]) -> None:
        for path, folder_fd in _changed(event, arguments):
            if isinstance(path, str | bytes | os.PathLike):
                folder = os.path.dirname(os.fsdecode(path)) or "."
                if isinstance(folder_fd, int) and folder_fd >= 0:
                    folder = os.path.join(f"/proc/self/fd/{folder_fd}", folder)
                if os.path.join(os.path.realpath(folder), "").startswith(inside):
                    raise OSError(errno.EROFS, f"the project's folder is read-only here: {_elsewhere()}", path)

    sys.addaudithook(refuse)


_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES: Mapping[str, Sequence[tuple[int, int | None]]] = {
    "os.chflags": [(0, None)],
    "os.chmod": [(0, 2)],
    "os.chown": [(0, 3)],
    "os.link": [(1, 3)],
    "os.mkdir": [(0, 2)],
    "os.remove": [(0, 1)],
    "os.removexattr": [(0, None)],
    "os.rename": [(0, 2), (1, 3)],
    "os.rmdir": [(0, 1)],
    "os.setxattr": [(0, None)],
    "os.symlink": [(1, 2)],
    "os.truncate": [(0, None)],
    "os.utime": [(0, 3)],
}
"""
Events of `sys.audit` that tell of a change: at which place their arguments have the path of what is changed, and the
descriptor of the folder that it is relative to. Source: Python's table of audit events.
"""


def _changed(event: str, arguments: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    """Yield paths that an event is about to change, and what each is relative to; None: to the working directory."""
    if event == "open":
        path, _, flags = arguments
        if isinstance(flags, int) and flags & _WRITING:
            yield path, None
    else:
        for path, folder_fd in _CHANGES.get(event, ()):
            yield arguments[path], None if folder_fd is None else arguments[folder_fd]


def _elsewhere() -> str:
    return f"write below TMPDIR, which is {tempfile.gettempdir()}"
