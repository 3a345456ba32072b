"""
What makes a forked child a process of its own: session, descriptors, variables, random state, limits, title.

Every function here is called once, right after the fork, before any thread exists.
"""

from __future__ import annotations

import atexit
import logging
import os
import random
import resource
import signal
import sys
import time
import weakref
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path
from types import ModuleType

import setproctitle

from cortex.ids import short, split_api_key
from cortex.processes import own_mark
from cortex.replica.handler import importing
from cortex.wire.launch import CHILD_TITLE, PROCESS_VARIABLE, ReplicaSpec

_INHERITED_NAMES = frozenset(
    {
        *("PATH", "HOME", "TMPDIR", "TZ", "LANG", "LANGUAGE"),
        *("http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy"),
        *("HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "ALL_PROXY", "NO_PROXY"),
        "CUDA_DEVICE_ORDER",
    }
)
_INHERITED_PREFIXES = ("LC_", "OTEL_")
"""Locale, and where traces go. What leads to clouds comes with the secrets, as the api's last deploy handed it over."""

THREAD_VARIABLES = (
    *("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS"),
    *("VECLIB_MAXIMUM_THREADS", "NUMEXPR_NUM_THREADS", "RAYON_NUM_THREADS", "TF_NUM_INTRAOP_THREADS"),
)
"""Numeric libraries otherwise size their pools to the host's cores, not to the cpu request."""

SINGLE_THREADED: Mapping[str, str] = {
    "ORT_DISABLE_TELEMETRY": "1",
    **dict.fromkeys(THREAD_VARIABLES, "1"),
    "TF_NUM_INTEROP_THREADS": "1",
}
"""
Set in the launcher before numpy, onnxruntime or tensorflow is imported: a thread at fork time hangs children.

`import onnxruntime` starts a telemetry thread and numpy's OpenBLAS a pool (measured with onnxruntime 1.31).
"""


def replica_variables(
    spec: ReplicaSpec, inherited: Mapping[str, str], secrets: Mapping[str, str] | None = None
) -> dict[str, str]:
    """
    All variables of a replica: users' `env` wins over what is inherited, our names over users'.

    Of the node's GPUs a replica sees those that its lease holds, so one that asked for none sees none.
    """
    deployment, api = split_api_key(spec.api)
    return {
        **{
            name: value
            for name, value in inherited.items()
            if name in _INHERITED_NAMES or name.startswith(_INHERITED_PREFIXES)
        },
        **dict.fromkeys(THREAD_VARIABLES, str(spec.threads)),
        **spec.env,
        **(secrets or {}),
        "ORT_DISABLE_TELEMETRY": "1",
        "CUDA_VISIBLE_DEVICES": ",".join(spec.devices),
        "CORTEX_DEPLOYMENT": deployment,
        "CORTEX_API": api,
        "CORTEX_VERSION": short(spec.version),
        "CORTEX_REPLICA": spec.replica,
        PROCESS_VARIABLE: own_mark(),
    }


def asks_for_traces(variables: Mapping[str, str]) -> bool:
    """
    Whether OpenTelemetry's variables ask for traces: they name an exporter or a place, and do not say no.

    Source: OpenTelemetry, "Environment variable specification". Its default, a collector on this machine, would have
    every installation look for one.
    """
    if variables.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    exporter = variables.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    places = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    return exporter != "none" and (bool(exporter) or any(variables.get(place) for place in places))


def apply_variables(variables: Mapping[str, str]) -> None:
    """Replace the process's variables, for C code too."""
    os.environ.clear()
    os.environ.update(variables)
    time.tzset()


def detach() -> None:
    """A session of our own, so that a terminal's Ctrl-C or hang-up never reaches us; no input; default signals."""
    os.setsid()
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)


def close_descriptors_except(kept: Collection[int]) -> None:
    """Close every descriptor above 2 but these: the launcher's sockets and its copies of other replicas' slots."""
    for fd in map(int, os.listdir("/proc/self/fd")):
        if fd > 2 and fd not in kept:
            try:
                os.close(fd)
            except OSError:  # the listing's own
                pass


def reseed() -> None:
    """Random state is copied by a fork: without this every replica draws the same numbers."""
    seed = int.from_bytes(os.urandom(16), "big")
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed % 2**32)


def limit_inspection(cpu_s: float) -> Callable[[], None]:
    """
    Bounds for a short-lived child that loads unknown code and models; returns what takes them away again.

    Address space is bounded by the machine's memory on top of what is mapped already: a runaway allocation then
    raises MemoryError in the child, instead of waking the kernel's OOM killer.
    """
    page_bytes = os.sysconf("SC_PAGE_SIZE")
    mapped_pages = int(Path("/proc/self/statm").read_text().split()[0])
    limits = {
        resource.RLIMIT_CPU: max(1, int(cpu_s) + 1),
        resource.RLIMIT_AS: (mapped_pages + os.sysconf("SC_PHYS_PAGES")) * page_bytes,
        resource.RLIMIT_CORE: 0,
    }
    before = {kind: resource.getrlimit(kind) for kind in limits}
    for kind, limit in limits.items():
        hard = before[kind][1]
        resource.setrlimit(kind, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
    ours = {kind: resource.getrlimit(kind) for kind in limits}

    def lift() -> None:
        for kind, bounds in before.items():
            if resource.getrlimit(kind) == ours[kind]:  # else users' code has set one of its own
                resource.setrlimit(kind, bounds)

    return lift


class Machinery:
    """
    What of Python's own modules a replica runs on, which users' code may replace: gevent puts its own in the place of
    threads and sockets. A replica that began before keeps what it had; one that begins afterwards would get the other.
    """

    MODULES = ("_thread", "asyncio", "os", "select", "signal", "socket", "threading", "time")

    def __init__(self) -> None:
        self._before = self._functions()
        self._blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())

    def is_left(self) -> bool:
        """Whether all of it still is what it was when this was made, and threads would hear the same signals."""
        now = self._functions()
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        return blocked == self._blocked and all(now.get(name) is found for name, found in self._before.items())

    def _functions(self) -> dict[tuple[str, str], object]:
        return {
            (module, name): found
            for module in self.MODULES
            for name, found in vars(sys.modules[module]).items()
            if callable(found) and name != "excepthook"  # called only for what users' code starts
        }


def enter_project(spec: ReplicaSpec) -> None:
    """
    Working directory and first `sys.path` entry are the project's folder.

    Last are the handler's own folder, so that no file beside it is in the way of a package, and where other processes
    find the handler (see `importing`).
    """
    sys.dont_write_bytecode = True  # the project lies in the artifact store
    if spec.project_dir is None:
        os.chdir("/")
        return
    project = os.path.abspath(spec.project_dir)
    os.chdir(project)
    last = []
    if spec.handler is not None:
        beside = os.path.dirname(os.path.join(project, spec.handler))
        if beside != project:
            last.append(beside)
        if spec.scratch:
            last.append(os.path.join(spec.scratch, "import"))
            with suppress(OSError):  # a full disk is no reason not to serve
                importing.leave_shim(last[-1], os.path.join(project, spec.handler), split_api_key(spec.api)[1])
    own = ("", project, *last)
    sys.path[:] = [project, *(entry for entry in sys.path if entry not in own), *last]


def move_import_folder(before: str, now: str) -> None:
    """The scratch folder has another name by now: other processes find the handler there (see `importing`)."""
    former = os.path.join(before, "import")
    sys.path[:] = [os.path.join(now, "import") if entry == former else entry for entry in sys.path]


def forget_launcher() -> None:
    """
    Have `__main__` be an empty module: workers that `spawn` starts would import the launcher's in its place.

    Nor is it for us to do what the launcher wanted done at its end. `logging`, which registered itself when it was
    imported there, is registered anew, so that it comes last; see `ending` for `multiprocessing`.
    """
    sys.modules["__main__"] = ModuleType("__main__")
    atexit._clear()
    weakref.finalize._registry.clear()  # type: ignore[attr-defined]
    weakref.finalize._registered_with_atexit = False  # type: ignore[attr-defined]
    atexit.register(logging.shutdown)


def set_title(process: str, *words: str) -> None:
    """`cortex-replica <home> …`, in `ps` and `top`."""
    setproctitle.setproctitle(" ".join((process, *words)))


def child_title(spec: ReplicaSpec) -> str:
    """What a process that the handler forks is called, see `wire.launch.CHILD_TITLE`."""
    return " ".join((CHILD_TITLE, spec.home, spec.api, spec.replica, own_mark()))


def single_thread_offenders() -> list[str]:
    """Names of this process's threads besides the main one, as the kernel knows them."""
    own = str(os.getpid())
    names = []
    for task in os.listdir("/proc/self/task"):
        if task != own:
            try:
                names.append(Path(f"/proc/self/task/{task}/comm").read_text().strip())
            except OSError:  # it ended meanwhile
                pass
    return names
