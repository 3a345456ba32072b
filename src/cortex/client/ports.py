"""Which ports an environment gets: a port that was set is kept to, a default one moves out of the way."""

from __future__ import annotations

import errno
import re
import shlex
import socket
from collections.abc import Callable, Collection
from pathlib import Path

import msgspec

from cortex.binding import bind_tcp
from cortex.errors import CortexError
from cortex.processes import read_record, write_whole
from cortex.settings import OPERATOR_HOST, SETTINGS, Settings, WrongSetting

PORTS_TRIED = 200
"""How far above a default port a free one is looked for."""


class Ports(msgspec.Struct, frozen=True, kw_only=True):
    """Of the prediction APIs, and of the control plane."""

    port: int
    operator_port: int


class RememberedPorts(msgspec.Struct, frozen=True, kw_only=True):
    """Ports chosen because the default ones were taken. Content of `ports.json`."""

    port: int | None = None
    operator_port: int | None = None


class Holder(msgspec.Struct, frozen=True, kw_only=True):
    """The process that listens on a port."""

    pid: int
    name: str
    command: str

    def __str__(self) -> str:
        command = " ".join(self.command.split())  # a title that was set is filled up with blanks
        command = command if len(command) <= 60 else command[:59] + "…"
        return f"{self.name} (pid {self.pid}{f': {command}' if command and command != self.name else ''})"


class PortTaken(CortexError):
    """A port that was set is in use. `holder` is None when the process cannot be seen, e.g. another user's."""

    reference = "port-taken"

    def __init__(self, field: str, port: int, holder: Holder | None) -> None:
        setting = next(s for s in SETTINGS if s.field == field)
        self.field = field
        self.port = port
        self.holder = holder
        by = str(holder) if holder else "a process of another user"
        other = home_of(holder) if holder else None
        another = f"set another port ({setting.flag} or {setting.variable})"
        if other is not None:
            by = f"the Cortex of another home, {other}"
            stop = f"CORTEX_HOME={shlex.quote(str(other))} cortex down"
            self.hint = f"{another}; or stop that one: {stop}"
        elif holder:
            self.hint = f"end it, or {another}"
        else:
            self.hint = another
        use = setting.help[0].lower() + setting.help[1:].rstrip(".")
        super().__init__(f"port {port} ({use}) is taken by {by}")


class NoFreePort(CortexError):
    """No port near the default one is free."""

    reference = "no-free-port"

    def __init__(self, first: int, last: int) -> None:
        self.first = first
        self.last = last
        self.hint = "set CORTEX_PORT and CORTEX_OPERATOR_PORT to ports that are free"
        super().__init__(f"no port from {first} to {last} is free")


class UnusableAddress(CortexError):
    """Binding fails for another reason than that the port is taken."""

    reference = "unusable-address"

    def __init__(self, host: str, port: int, reason: str) -> None:
        self.host = host
        self.port = port
        self.hint = "CORTEX_HOST is an address of this machine; ports below 1024 are for root"
        super().__init__(f"cannot listen on {host} port {port}: {reason}")


def choose(
    settings: Settings,
    remembered: RememberedPorts,
    *,
    take: Callable[[str, int], bool],
    holder: Callable[[int], Holder | None],
    is_ours: Callable[[Holder], bool],
    say: Callable[[str], None],
) -> Ports:
    """
    Return the ports to start with.

    Args:
        take: whether (host, port) could be bound; from then on it is ours.
        is_ours: whether a process belongs to this home: a port that our own ingress still holds is not taken.
        say: told in a sentence when a default port had to move.

    Raises:
        WrongSetting: both ports were set, to the same number.
        PortTaken: a port that was set is in use by someone else; names who.
        NoFreePort: there is none above the default.
    """

    def usable(host: str, port: int) -> bool:
        if take(host, port):
            return True
        found = holder(port)
        if found is None:
            return take(host, port)  # it was let go in between, as by a control plane that has just been killed
        return is_ours(found)

    def chosen(field: str, host: str, wanted: int, given: bool, last: int | None, avoid: Collection[int | None]) -> int:
        if given:
            if usable(host, wanted):
                return wanted
            raise PortTaken(field, wanted, holder(wanted))
        if last is not None and last not in avoid and usable(host, last):
            return last
        if wanted not in avoid and usable(host, wanted):
            return wanted
        for port in range(wanted + 1, min(wanted + PORTS_TRIED, 65536)):
            if port not in avoid and take(host, port):
                by = holder(wanted)
                other = home_of(by) if by else None
                reason = f" by the Cortex of {other}" if other else f" by {by}" if by else ""
                who = "the prediction APIs use" if field == "port" else "the control plane uses"
                say(f"port {wanted} is taken{reason}: {who} {port} from now on")
                return port
        raise NoFreePort(wanted, min(wanted + PORTS_TRIED, 65536) - 1)

    if settings.port_given and settings.operator_port_given and settings.port == settings.operator_port:
        raise WrongSetting(f"CORTEX_PORT and CORTEX_OPERATOR_PORT are both {settings.port}; each needs its own")
    operator_wish = {settings.operator_port, remembered.operator_port}
    port = chosen("port", settings.host, settings.port, settings.port_given, remembered.port, operator_wish)
    operator_port = chosen(
        "operator_port",
        OPERATOR_HOST,
        settings.operator_port,
        settings.operator_port_given,
        remembered.operator_port,
        {port},
    )
    return Ports(port=port, operator_port=operator_port)


def bound(host: str, port: int) -> socket.socket | None:
    """
    A socket that listens on this address; None where it is taken.

    Raises:
        UnusableAddress: it cannot be listened on for another reason.
    """
    try:
        return bind_tcp(host, port)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return None
        raise UnusableAddress(host, port, str(error.strerror or error)) from error


def holder(port: int) -> Holder | None:
    """The process that listens on a port; None when that cannot be seen."""
    import psutil  # 30 ms, needed only when something is in the way

    try:
        connections = psutil.net_connections(kind="tcp")
    except (psutil.Error, OSError):
        return None
    for connection in connections:
        if connection.status != psutil.CONN_LISTEN or connection.laddr.port != port or not connection.pid:
            continue
        try:
            process = psutil.Process(connection.pid)
            name = process.name().partition(" ")[0]
            return Holder(pid=process.pid, name=name, command=" ".join(process.cmdline()))
        except psutil.Error:
            return None
    return None


def belongs_to(home: Path, holder: Holder) -> bool:
    """Whether a process is one of ours of this home: our processes name their home in their command line."""
    named = f" {holder.command} "
    return f" {home} " in named or f"{home}/" in named


def home_of(holder: Holder) -> Path | None:
    """The home of a process that is one of ours, of whichever home; None if it is not."""
    command = " ".join(holder.command.split())
    title = re.match(r"cortex-\S+ (/.*)", command) or re.search(
        r"haproxy\S* .*?(?:-C|-f) (/\S.*?)/ingress(?:/| |$)", command
    )
    return Path(title[1].rstrip()) if title else None


def read_remembered(file: Path) -> RememberedPorts:
    """What was remembered; nothing when there is no file, or it cannot be read."""
    return read_record(file, RememberedPorts) or RememberedPorts()


def remember(file: Path, settings: Settings, ports: Ports) -> None:
    """Write what differs from the defaults and was not set; remove the file when nothing does."""
    moved = RememberedPorts(
        port=ports.port if not settings.port_given and ports.port != settings.port else None,
        operator_port=(
            ports.operator_port
            if not settings.operator_port_given and ports.operator_port != settings.operator_port
            else None
        ),
    )
    if moved == RememberedPorts():
        file.unlink(missing_ok=True)
    else:
        write_whole(file, msgspec.json.encode(moved))
