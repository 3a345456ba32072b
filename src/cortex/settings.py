"""
Settings of this installation and where its files lie. Built once per process, at the edge, and passed in.

`SETTINGS` declares each setting once: flag, environment variable, default and help come from the same row. What else
begins with `CORTEX_` in an environment does nothing, which `without_effect` says.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import msgspec

from cortex.errors import CortexError, Problem

MAX_SOCKET_PATH_BYTES = 97
"""HAProxy's limit for the path of a unix socket it binds. Source: docs of HAProxy 2.8, `bind`, and our own runs."""
LOCAL = "local"
"""The environment on this machine, which is always there."""
OPERATOR_HOST = "127.0.0.1"
"""Where every control plane listens: its token is all that keeps others out."""
LONGEST_SOCKET_NAME = "l-0123456789ab.sock.tmp"


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Every setting of a local environment, with its default and the reason for it."""

    home: Path
    """State, artifacts, logs, sockets, token; mode 0700. `CORTEX_HOME`."""
    host: str = "127.0.0.1"
    """Bind address of the ingress. Loopback by default, since there are no keys yet. `CORTEX_HOST`."""
    host_given: bool = False
    """Somebody wants it, and is told when what runs listens elsewhere."""
    port: int = 8880
    """Ingress port. `CORTEX_PORT`."""
    port_given: bool = False
    """A port that was set and is taken is an error; the default one moves to the next free one."""
    operator_port: int = 8881
    """Control plane's port, always on loopback. `CORTEX_OPERATOR_PORT`."""
    operator_port_given: bool = False
    environment: str = LOCAL
    """`local`, or one that `cortex configure` knows. `CORTEX_ENV`."""
    hold_timeout_s: float = 5.0
    """How long requests wait in a dead replica's socket for its replacement: a replacement takes well under a
    second, and a caller that waits longer is better told."""
    start_timeout_s: float = 300.0
    """A replica that makes no progress for this long while starting is given up. `CORTEX_START_TIMEOUT`."""
    drain_timeout_s: float = 60.0
    """How long a replica that leaves may finish what it holds."""
    health_interval_s: float = 2.0
    """How often the agent asks each replica how it is."""
    hung_after_s: float = 5.0
    """No answer for this long, or an event loop that stood still this long with no request running: hung."""
    resolve_timeout_s: float = 300.0
    """For finding versions of packages: seconds, unless packages without wheels have to be built to know what they
    need."""
    install_timeout_s: float = 1800.0
    """For each step of installing packages: gigabytes are downloaded, and sources may be compiled."""
    artifact_bytes: int = 10 * 10**9
    """What the artifact store may hold. The least recently used goes first; what serves, or is among the last versions
    of an api, stays whatever the size. Large enough for some versions of most models; 0 keeps nothing beyond those.
    `CORTEX_ARTIFACTS_GB`."""
    view_bytes: int = 64 * 2**20
    """What a replica may write beside its handler: memory, and gone with it. Enough for caches and small databases;
    what is larger belongs on a disk. `CORTEX_VIEW_MB`."""
    downscale_window_s: float = 300.0
    """How long replicas stay that the load has just needed: less, and each pause would cost starts. Apis may say
    otherwise. `CORTEX_DOWNSCALE_WINDOW`."""
    log_bytes: int = 200 * 2**20
    """What the logs of replicas that are gone may take up together; those of live ones are bounded by rotation."""
    log_age_s: float = 7 * 86400.0
    """Older logs of replicas that are gone are removed: a week covers whoever looks for last night's failure."""


@dataclass(frozen=True)
class _Home:
    """What the control plane's home and a node's have in common. On one machine the two are one folder."""

    home: Path

    @property
    def artifacts(self) -> Path:
        return self.home / "artifacts"

    @property
    def logs(self) -> Path:
        """
        `controlplane.log` and `controlplane.out` are the control plane's; `agent.log`, `launcher-….log` and the like a
        node's.
        """
        return self.home / "logs"

    @property
    def probe_token_file(self) -> Path:
        """What the ingress knows our own requests by, with which change-overs are proved. Mode 0600."""
        return self.home / "probe-token"

    @property
    def sockets(self) -> Path:
        """Folder of the unix sockets: under the home if its path is short and plain, else in the runtime folder."""
        return _sockets_of(self.home)


class ControlLayout(_Home):
    """Where each file of a control plane lies. Knows names only; creates nothing but through `prepare`."""

    @property
    def state_file(self) -> Path:
        return self.home / "state.db"

    @property
    def secrets(self) -> Path:
        """What `cortex secret set` was given, one file each, mode 0600. Their values are nowhere else in the home."""
        return self.home / "secrets"

    @property
    def cloud_keys(self) -> Path:
        """What the last deploy of each api handed over for its handler, one file each, mode 0600."""
        return self.secrets / ".cloud"

    @property
    def cloud_file(self) -> Path:
        """With what remote models are fetched, as the last deploy of one handed it over; mode 0600."""
        return self.home / "cloud.json"

    @property
    def indexes_file(self) -> Path:
        """Where packages come from, as the last deploy's shell had it: may hold passwords, mode 0600."""
        return self.home / "indexes.json"

    @property
    def stats_file(self) -> Path:
        """What was counted, by minute and hour."""
        return self.home / "stats.db"

    @property
    def events_file(self) -> Path:
        """What was decided and what happened, for 14 days."""
        return self.home / "events.db"

    @property
    def reports(self) -> Path:
        """Reports of our own faults."""
        return self.home / "reports"

    @property
    def token_file(self) -> Path:
        """Bearer token of the control plane's API, mode 0600."""
        return self.home / "token"

    @property
    def metrics_token_file(self) -> Path:
        """Bearer token that reads `/metrics` and nothing else: for whoever watches. Mode 0600."""
        return self.home / "metrics-token"

    @property
    def tokens_file(self) -> Path:
        """Digests of operators' tokens with their roles, mode 0600."""
        return self.home / "tokens.json"

    @property
    def audit(self) -> Path:
        """Who changed what, a file a day."""
        return self.home / "audit"

    @property
    def down_mark(self) -> Path:
        """Present after `cortex down`: nothing starts by itself."""
        return self.home / "down"

    @property
    def controlplane_file(self) -> Path:
        """Pid, start ticks, boot id and port of the running control plane, as JSON."""
        return self.home / "controlplane.json"

    @property
    def ports_file(self) -> Path:
        """Ports chosen because the default ones were taken, remembered."""
        return self.home / "ports.json"

    @property
    def environments_file(self) -> Path:
        """What `cortex configure` was told of other environments, their tokens included, mode 0600."""
        return self.home / "environments.json"

    @property
    def lock_file(self) -> Path:
        """Held while starting or stopping, so that two commands do not both do it."""
        return self.home / "lock"

    @property
    def controlplane_lock(self) -> Path:
        """Held by the control plane for life."""
        return self.home / "controlplane.lock"

    @property
    def links_socket(self) -> Path:
        """Where the control plane takes in the agents that dial it."""
        return self.sockets / "links.sock"

    @property
    def nodes(self) -> Path:
        """Homes of the nodes of this machine that have one of their own, by name."""
        return self.home / "nodes"

    @property
    def nodes_file(self) -> Path:
        """Which nodes those are. Not there where the machine is the one node."""
        return self.home / "nodes.json"

    @property
    def authority_certificate(self) -> Path:
        """Who signs the certificates of nodes, PEM; made for a second node."""
        return self.home / "authority.pem"

    @property
    def authority_key(self) -> Path:
        """Its key, PEM, mode 0600."""
        return self.home / "authority.key"

    @property
    def certificate(self) -> Path:
        """What the control plane shows to agents of other machines, PEM with the key, mode 0600."""
        return self.home / "control-plane.pem"

    @property
    def members_file(self) -> Path:
        """Where agents of other machines dial in, and which nodes those are. Not there where there are none."""
        return self.home / "members.json"

    def prepare(self) -> None:
        """
        Create every folder with mode 0700.

        Raises:
            UnusableHome: a folder cannot be made or written, or belongs to someone else.
        """
        for folder in (self.home, self.artifacts, self.secrets, self.logs, self.sockets):
            _private_folder(folder)


class NodeLayout(_Home):
    """Where each file of a node lies. Knows names only; creates nothing but through `prepare`."""

    @property
    def installations(self) -> Path:
        """Installations of users' packages, by the digest of their lock."""
        return self.home / "environments"

    @property
    def replica_logs(self) -> Path:
        """`<replica id>.log` of each."""
        return self.logs / "replicas"

    @property
    def stats(self) -> Path:
        """Counters that replicas write; delivered and deleted by the agent."""
        return self.home / "stats"

    @property
    def node(self) -> Path:
        """What the agent needs to find its replicas, launchers and ingress again."""
        return self.home / "node"

    @property
    def certificate(self) -> Path:
        """What its door shows to those of other nodes, PEM with the key, mode 0600; made for a second node."""
        return self.node / "certificate.pem"

    @property
    def authority(self) -> Path:
        """Who has signed the certificates of all nodes, PEM."""
        return self.node / "authority.pem"

    @property
    def membership_file(self) -> Path:
        """Which node it is among others. Not there where the machine is the one node."""
        return self.home / "membership.json"

    @property
    def peers_file(self) -> Path:
        """Where the doors of the other nodes are, as was last heard."""
        return self.node / "peers.json"

    @property
    def scratch(self) -> Path:
        """A folder for each attempt of a replica, and each inspection, gone with it."""
        return self.home / "scratch"

    @property
    def ingress(self) -> Path:
        """Configuration, maps and log of HAProxy."""
        return self.home / "ingress"

    @property
    def agent_file(self) -> Path:
        """Pid, start ticks and boot id of the running agent, as JSON."""
        return self.home / "agent.json"

    @property
    def agent_lock(self) -> Path:
        """Held by the agent for life."""
        return self.home / "agent.lock"

    @property
    def agent_socket(self) -> Path:
        return self.sockets / "agent.sock"

    @property
    def keeper_socket(self) -> Path:
        return self.sockets / "keeper.sock"

    def launcher_socket(self, key: str) -> Path:
        return self.sockets / f"l-{key[:12]}.sock"

    def slot_socket(self, stem: str) -> Path:
        return self.sockets / f"r-{stem}.sock"

    def control_socket(self, stem: str) -> Path:
        return self.sockets / f"c-{stem}.sock"

    def prepare(self) -> None:
        """
        Create every folder with mode 0700.

        Raises:
            UnusableHome: a folder cannot be made or written, or belongs to someone else.
        """
        for folder in (
            self.home,
            self.artifacts,
            self.installations,
            self.logs,
            self.replica_logs,
            self.stats,
            self.node,
            self.sockets,
        ):
            _private_folder(folder)


_PLAIN_PATH = re.compile(r"[-A-Za-z0-9_./+=@]+")
"""What HAProxy takes for a path of a socket as it stands: not blanks, quotes, `$` or commas."""


@cache
def _sockets_of(home: Path) -> Path:
    """Made out once: it is asked for with every look at a socket, and looks are most of what an idle node does."""
    inside = home / "run"
    if len(os.fsencode(inside / LONGEST_SOCKET_NAME)) <= MAX_SOCKET_PATH_BYTES and _PLAIN_PATH.fullmatch(str(inside)):
        return inside
    digest = hashlib.sha256(os.fsencode(home)).hexdigest()[:12]
    # Not from XDG_RUNTIME_DIR: two shells with different environments must find the same sockets.
    runtime = Path(f"/run/user/{os.getuid()}")
    base = runtime if runtime.is_dir() else Path("/tmp")  # owner and mode are checked in `prepare`
    return base / f"cortex-{os.getuid()}-{digest}"


class UnusableHome(CortexError):
    """A folder of ours cannot be used; names it and says why."""

    reference = "unusable-home"

    def __init__(self, folder: Path, reason: str, hint: str) -> None:
        self.folder = folder
        self.hint = hint
        super().__init__(f"{folder}: {reason}")


def _private_folder(folder: Path) -> None:
    advice = "set CORTEX_HOME to a folder that you own and can write"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
    except FileExistsError as error:
        raise UnusableHome(folder, "is in the way: a folder is needed here, not a file", advice) from error
    except OSError as error:
        raise UnusableHome(folder, f"cannot be created ({error.strerror})", advice) from error
    if not stat.S_ISDIR(found.st_mode):
        raise UnusableHome(folder, "is a link or a file, not a folder", advice)
    if found.st_uid != os.getuid():
        raise UnusableHome(folder, f"belongs to user {found.st_uid}, not to you ({os.getuid()})", advice)
    if found.st_mode & 0o077:
        folder.chmod(0o700)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UnusableHome(folder, "cannot be written", advice)


class WrongSetting(CortexError):
    """A flag or environment variable has a value that cannot be meant."""

    reference = "wrong-setting"


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the settings table."""

    field: str
    flag: str
    variable: str
    default: str
    help: str


SETTINGS: tuple[Setting, ...] = (
    Setting(
        field="home",
        flag="--home",
        variable="CORTEX_HOME",
        default="~/.cortex",
        help="Folder of state, artifacts, logs, sockets and token.",
    ),
    Setting(field="port", flag="--port", variable="CORTEX_PORT", default="8880", help="Port of the prediction APIs."),
    Setting(
        field="operator_port",
        flag="--operator-port",
        variable="CORTEX_OPERATOR_PORT",
        default="8881",
        help="Port of the control plane, always on loopback.",
    ),
    Setting(
        field="host",
        flag="--host",
        variable="CORTEX_HOST",
        default="127.0.0.1",
        help="Address that the prediction APIs bind.",
    ),
    Setting(
        field="environment",
        flag="--env",
        variable="CORTEX_ENV",
        default=LOCAL,
        help="Environment to talk to; `cortex configure` lists and adds them.",
    ),
    Setting(
        field="start_timeout_s",
        flag="--start-timeout",
        variable="CORTEX_START_TIMEOUT",
        default="300",
        help="Seconds without progress after which a starting replica is given up.",
    ),
    Setting(
        field="artifact_bytes",
        flag="--artifacts-gb",
        variable="CORTEX_ARTIFACTS_GB",
        default="10",
        help="Gigabytes of stored models and projects beyond which unused ones are removed.",
    ),
    Setting(
        field="view_bytes",
        flag="--view-mb",
        variable="CORTEX_VIEW_MB",
        default="64",
        help="Megabytes that a replica may write beside its handler, in memory and for its own life.",
    ),
    Setting(
        field="downscale_window_s",
        flag="--downscale-window",
        variable="CORTEX_DOWNSCALE_WINDOW",
        default="5m",
        help="How long replicas stay that the load has just needed, such as 30s or 5m; compute: downscale_window of an "
        "api goes before it.",
    ),
)


PREFIX = "CORTEX_"

NOT_IN_EFFECT_YET: Mapping[str, str] = {
    "CORTEX_NODES_MIN": "there are no clusters yet",
    "CORTEX_NODES_MAX": "there are no clusters yet",
    "CORTEX_AUTH": "there are no prediction keys yet: whoever reaches the port is answered",
    "CORTEX_INSECURE": "there are no prediction keys yet: whoever reaches the port is answered",
    "CORTEX_TLS_CERT": "there is no TLS yet: the port speaks plain HTTP",
    "CORTEX_TLS_KEY": "there is no TLS yet: the port speaks plain HTTP",
    "CORTEX_OPERATOR_HOST": "the control plane always listens on loopback",
    "CORTEX_TRUSTED_PROXIES": "headers of proxies are not looked at yet",
    "CORTEX_SANDBOX": "handlers are not kept apart from the machine yet",
    "CORTEX_REQUIRE_SANDBOX": "handlers are not kept apart from the machine yet",
    "CORTEX_READABLE": "handlers are not kept apart from the machine yet: they read what you can read",
}
"""Variables that a later version will have, with what is so instead. Whoever makes one work deletes its row."""

_OWN = frozenset(
    f"{PREFIX}{name}"
    for name in (
        # what a handler finds, and a `cortex` that it starts
        *("DEPLOYMENT", "API", "VERSION", "REPLICA", "PROCESS"),
        # what tests and benchmarks are told
        *("GOLDEN", "SEED", "SIM_SEED", "SIM_MOOD", "SIM_RUNS", "TEST_FAILURES"),
    )
)
"""Variables of ours that are no settings."""

_OF_A_SERVICE = re.compile(r"CORTEX_(\w+_)?(SERVICE_(HOST|PORT)(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)")
_URL_OF_A_SERVICE = re.compile(r"(tcp|udp|sctp)://.*")
"""
What Kubernetes tells each container of a service called `cortex` or `cortex-…`, and the value of its `CORTEX_…_PORT`.

Source:
    Kubernetes, "Service": discovering services by environment variables.
"""
_SIMILAR = 0.7
"""Of what comes after `CORTEX_`: `HOEM` and `HOME` are 0.75 alike, `TOKEN` and `ENV` 0.5."""


def without_effect(environ: Mapping[str, str], *, also: Collection[str] = ()) -> tuple[Problem, ...]:
    """
    What to say of variables that look like settings and do nothing, by name: misspelt ones, unknown ones, and those of
    later versions. Empty ones count as absent, as everywhere.

    Args:
        also: variables that have an effect where this is asked, beside those of settings.
    """
    known = {*(setting.variable for setting in SETTINGS), *also}
    return tuple(
        _without_effect(name, known)
        for name, value in sorted(environ.items())
        if value
        and name.upper().startswith(PREFIX)
        and name not in known | _OWN
        and not (_OF_A_SERVICE.fullmatch(name) or _URL_OF_A_SERVICE.fullmatch(value))
    )


def _without_effect(name: str, known: Collection[str]) -> Problem:
    if name in NOT_IN_EFFECT_YET:
        return Problem(reference="not-in-effect", message=f"{name} does nothing yet: {NOT_IN_EFFECT_YET[name]}")
    meant = _meant(name, sorted({*known, *NOT_IN_EFFECT_YET}))
    hint = "`cortex --help` lists all settings with their variables"
    if meant is not None:
        later = ", which does nothing yet" if meant in NOT_IN_EFFECT_YET and meant not in known else ""
        hint = f"did you mean {meant}{later}?"
    return Problem(reference="unknown-variable", message=f"{name} is no setting of Cortex, and does nothing", hint=hint)


def _meant(name: str, choices: Iterable[str]) -> str | None:
    """The variable that was probably meant: spelled alike, or else the only one that it begins or ends like."""
    from difflib import get_close_matches  # most processes of ours never need it

    plain = {_letters(choice): choice for choice in choices}
    wanted = _letters(name)
    close = get_close_matches(wanted, plain, n=1, cutoff=_SIMILAR)
    if not close and len(wanted) > 2:
        close = [letters for letters in plain if wanted.startswith(letters) or letters.endswith(wanted)]
    return plain[close[0]] if len(close) == 1 else None


def _letters(variable: str) -> str:
    return variable.upper().removeprefix(PREFIX).replace("_", "")


def load_settings(environ: Mapping[str, str], **flags: str | None) -> Settings:
    """
    Settings from flags, then environment variables, then defaults. Empty values count as absent.

    Args:
        environ: the environment of the process.
        flags: values of flags by field name; None when a flag was not given.

    Raises:
        WrongSetting: a port is no number from 1 to 65535, a time no positive number or no duration, or a size no
            number; names the variable.
    """
    values: dict[str, str] = {}
    given: set[str] = set()
    for setting in SETTINGS:
        value = flags.get(setting.field) or environ.get(setting.variable)
        if value and _URL_OF_A_SERVICE.fullmatch(value):
            value = None
        if value:
            given.add(setting.field)
        values[setting.field] = value or setting.default
    return Settings(
        home=Path(os.path.abspath(os.path.expanduser(values["home"]))),
        host=values["host"],
        host_given="host" in given,
        port=_port("port", values["port"]),
        port_given="port" in given,
        operator_port=_port("operator_port", values["operator_port"]),
        operator_port_given="operator_port" in given,
        environment=values["environment"],
        start_timeout_s=_seconds("start_timeout_s", values["start_timeout_s"]),
        artifact_bytes=_gigabytes("artifact_bytes", values["artifact_bytes"]),
        view_bytes=_megabytes("view_bytes", values["view_bytes"]),
        downscale_window_s=_duration("downscale_window_s", values["downscale_window_s"]),
    )


def variables_of(settings: Settings) -> dict[str, str]:
    """The environment variables that give a child process the same settings."""
    return {
        "CORTEX_HOME": str(settings.home),
        "CORTEX_HOST": settings.host,
        "CORTEX_PORT": str(settings.port),
        "CORTEX_OPERATOR_PORT": str(settings.operator_port),
        "CORTEX_ENV": settings.environment,
        "CORTEX_START_TIMEOUT": str(settings.start_timeout_s),
        "CORTEX_ARTIFACTS_GB": str(settings.artifact_bytes / 10**9),
        "CORTEX_VIEW_MB": str(settings.view_bytes >> 20),
        "CORTEX_DOWNSCALE_WINDOW": str(settings.downscale_window_s),
    }


def _variable(field: str) -> str:
    return next(s.variable for s in SETTINGS if s.field == field)


def _port(field: str, value: str) -> int:
    if value.isascii() and value.isdigit() and 1 <= int(value) <= 65535:
        return int(value)
    raise WrongSetting(f"{_variable(field)} must be a port from 1 to 65535, not {value!r}")


def _seconds(field: str, value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = -1.0
    if 0 < seconds < 1e9:
        return seconds
    raise WrongSetting(f"{_variable(field)} must be a number of seconds above 0, not {value!r}")


def _duration(field: str, value: str) -> float:
    if value == "5m":
        return 300.0  # the default: what reads others takes as long to import as the rest of this module
    from cortex.spec.quantities import Duration, QuantityError

    try:
        return Duration.parse(value).seconds
    except QuantityError as error:
        raise WrongSetting(f"{_variable(field)} must be a duration such as 30s or 5m, not {value!r}") from error


def _gigabytes(field: str, value: str) -> int:
    try:
        gigabytes = float(value)
    except ValueError:
        gigabytes = -1.0
    if 0 <= gigabytes < 1e9:
        return round(gigabytes * 10**9)
    raise WrongSetting(f"{_variable(field)} must be a number of gigabytes, 0 or more, not {value!r}")


def _megabytes(field: str, value: str) -> int:
    if value.isascii() and value.isdigit() and 1 <= int(value) < 10**9:
        return int(value) << 20
    raise WrongSetting(f"{_variable(field)} must be a whole number of megabytes, 1 or more, not {value!r}")
