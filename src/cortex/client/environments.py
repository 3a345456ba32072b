"""
Which environment is talked to: `local`, which is this machine, or one that `cortex configure` was told of.

What is known of the others is one file in the home, mode 0600, since it has their tokens.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import msgspec

from cortex.client.errors import UnknownEnvironment
from cortex.client.operator import OperatorClient
from cortex.clock import Clock
from cortex.errors import CortexError
from cortex.processes import write_whole
from cortex.settings import LOCAL, ControlLayout, Settings, load_settings

NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
LONGEST_NAME = 42
MASK = "****"
SHORTEST_SHOWN_END = 16
"""Of a token at least this long the last four characters are shown, to tell it from another."""


class Environment(Protocol):
    """What commands that talk to a control plane need of it."""

    @property
    def was_ever_up(self) -> bool:
        """False in a home that nothing was ever started in."""

    @property
    def is_marked_down(self) -> bool:
        """Whether `cortex down` was the last word."""

    def connect(self) -> OperatorClient:
        """A client of the control plane that runs; starts nothing."""

    def look(self) -> OperatorClient:
        """As `ensure`, where something was ever started."""

    def ensure(self, *, even_if_down: bool = False) -> OperatorClient:
        """A client of the control plane, which is started if it can be."""


class Remote(msgspec.Struct, frozen=True, kw_only=True):
    """An environment elsewhere: where its control plane answers, and what it is opened with."""

    name: str
    operator: str
    """URL of the control plane."""
    token: str
    predictions: str = ""
    """URL at which its prediction APIs are reached from here; empty: as the control plane says."""


class Environments(msgspec.Struct, frozen=True, kw_only=True):
    """Content of `environments.json`."""

    chosen: str = LOCAL
    """What is talked to when neither `--env` nor `CORTEX_ENV` says otherwise."""
    remotes: tuple[Remote, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return (LOCAL, *(remote.name for remote in self.remotes))

    def remote(self, name: str) -> Remote:
        """Raises UnknownEnvironment; `local` is not among the remotes."""
        for remote in self.remotes:
            if remote.name == name:
                return remote
        raise UnknownEnvironment(name, self.names)

    def with_remote(self, remote: Remote) -> Environments:
        """With this one, in the place of the one of its name if there is one."""
        others = [known for known in self.remotes if known.name != remote.name]
        remotes = tuple(sorted([*others, remote], key=lambda known: known.name))
        return msgspec.structs.replace(self, remotes=remotes)

    def without(self, name: str) -> Environments:
        """Without this one; if it was chosen, `local` is."""
        self.remote(name)
        remotes = tuple(known for known in self.remotes if known.name != name)
        return Environments(chosen=LOCAL if self.chosen == name else self.chosen, remotes=remotes)


class EnvironmentsUnreadable(CortexError):
    """The file of environments is there and says nothing that can be understood."""

    reference = "environments-unreadable"

    def __init__(self, file: Path, reason: str) -> None:
        self.file = file
        self.hint = "remove it, and add the environments again: cortex configure add URL"
        super().__init__(f"{file}: {reason}")


class UnusableUrl(CortexError):
    """A URL that leads to no control plane or prediction APIs."""

    reference = "unusable-url"
    hint = "it looks like https://cortex.example.com:8881"

    def __init__(self, url: str, reason: str) -> None:
        self.url = url
        super().__init__(f"{url}: {reason}" if url else reason)


class UnusableName(CortexError):
    """A name that no environment can have."""

    reference = "unusable-name"

    def __init__(self, name: str, reason: str, *, hint: str = "") -> None:
        self.name = name
        self.hint = hint
        super().__init__(f"an environment cannot be called {name!r}: {reason}" if name else reason)


class LocalIsFixed(CortexError):
    """`local` is what the settings say, and nothing that is configured."""

    reference = "local-is-fixed"
    hint = "its home and ports are settings: see `cortex --help`"

    def __init__(self) -> None:
        super().__init__(f'"{LOCAL}" is this machine: it cannot be changed or deleted')


class NotOnThisMachine(CortexError):
    """What was asked can only be done where the environment's processes are."""

    reference = "not-on-this-machine"

    def __init__(self, name: str, what: str) -> None:
        self.name = name
        self.hint = f"run it on the machine of {name}, or for this one: --env {LOCAL}"
        super().__init__(f'environment "{name}" is elsewhere: its processes cannot be {what} from here')


class RemoteEnvironment:
    """An environment elsewhere: it can be asked, and neither started nor stopped."""

    was_ever_up = True
    is_marked_down = False

    def __init__(self, remote: Remote) -> None:
        self._remote = remote

    def connect(self) -> OperatorClient:
        """A client; whether anything answers shows with the first call."""
        url = urlsplit(self._remote.operator)
        return OperatorClient(
            host=url.hostname or "",
            port=url.port or (443 if url.scheme == "https" else 80),
            token=self._remote.token,
            prefix=url.path.rstrip("/"),
            encrypted=url.scheme == "https",
            environment=self._remote.name,
            predictions=self._remote.predictions,
        )

    def look(self) -> OperatorClient:
        """The same."""
        return self.connect()

    def ensure(self, *, even_if_down: bool = False) -> OperatorClient:
        """The same: nothing can be started from here."""
        return self.connect()


def read(file: Path) -> Environments:
    """
    What was configured; nothing where there is no file.

    Raises:
        EnvironmentsUnreadable: it cannot be read, or is not of our making.
    """
    try:
        content = file.read_bytes()
        if stat.S_IMODE(file.stat().st_mode) & 0o077:
            file.chmod(0o600)  # somebody copied it here: tokens are for its owner alone
    except (FileNotFoundError, NotADirectoryError):  # of a home that is no folder its user hears when it is made
        return Environments()
    except OSError as error:
        raise EnvironmentsUnreadable(file, (error.strerror or str(error)).lower()) from error
    try:
        return msgspec.json.decode(content, type=Environments)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise EnvironmentsUnreadable(file, f"is no list of environments ({error})") from error


def write(file: Path, environments: Environments) -> None:
    """Replace the file, mode 0600; the folder is there."""
    write_whole(file, msgspec.json.format(msgspec.json.encode(environments), indent=2) + b"\n")


def settings_of(environ: Mapping[str, str], **flags: str | None) -> Settings:
    """
    Settings as `load_settings` gives them, with the chosen environment where neither flag nor variable names one.

    Raises:
        WrongSetting, EnvironmentsUnreadable.
    """
    settings = load_settings(environ, **flags)
    if flags.get("environment") or environ.get("CORTEX_ENV"):
        return settings
    chosen = read(ControlLayout(settings.home).environments_file).chosen
    return msgspec.structs.replace(settings, environment=chosen)


def open_environment(
    settings: Settings,
    *,
    environ: Mapping[str, str],
    say: Callable[[str], None] = lambda _sentence: None,
    clock: Clock | None = None,
    sleep: Callable[[float], None] | None = None,
) -> Environment:
    """
    The environment that the settings name; parameters as of `LocalEnvironment`.

    Raises:
        UnknownEnvironment: there is none of that name.
    """
    if settings.environment != LOCAL:
        return RemoteEnvironment(read(ControlLayout(settings.home).environments_file).remote(settings.environment))
    import time

    from cortex.client.local import LocalEnvironment

    return LocalEnvironment(settings, environ=environ, say=say, clock=clock, sleep=sleep or time.sleep)


def checked_name(name: str) -> str:
    """A name that a new environment can have. Raises UnusableName."""
    if name == LOCAL:
        raise UnusableName(name, "that is this machine, always")
    if NAME.fullmatch(name) is None or len(name) > LONGEST_NAME:
        rule = f"lower-case letters, digits and -, at most {LONGEST_NAME}, first a letter, last no -"
        raise UnusableName(name, f"a name has {rule}")
    return name


def deletable(name: str) -> str:
    """The name, unless it is `local`: that can be neither changed nor deleted. Raises LocalIsFixed."""
    if name == LOCAL:
        raise LocalIsFixed
    return name


def name_for(url: str) -> str:
    """
    The name of an environment that nobody named: the first part of its host's name.

    Raises:
        UnusableName: an address has no name.
    """
    host = urlsplit(url).hostname or ""
    first = host.partition(".")[0].lower()
    if NAME.fullmatch(first) is None or first in (LOCAL, "localhost"):
        raise UnusableName(
            "", f"{host} gives the environment no name", hint=f"say one: cortex configure add {url} NAME"
        )
    return first[:LONGEST_NAME].rstrip("-")


def checked_url(url: str) -> str:
    """A URL as it is kept: without a slash at its end. Raises UnusableUrl."""
    try:
        parts = urlsplit(url)
        port_is_fine = parts.port is None or parts.port > 0
    except ValueError as error:
        raise UnusableUrl(url, str(error).lower()) from error
    if parts.scheme not in ("http", "https"):
        raise UnusableUrl(url, "it has to begin with http:// or https://")
    if not parts.hostname or not port_is_fine:
        raise UnusableUrl(url, "it names no host" if not parts.hostname else "port 0 is no port")
    if parts.username is not None or parts.query or parts.fragment:
        hidden = url.replace(parts.netloc, parts.netloc.rpartition("@")[2])
        raise UnusableUrl(hidden, "a user, a query or a fragment has no place in it")
    if re.search(r"[\s\x00-\x1f\x7f]", url):
        raise UnusableUrl(url.strip(), "there are blanks in it")
    return url.rstrip("/")


def is_unprotected(url: str) -> bool:
    """Whether a token sent there can be read on the way: no TLS, and another machine."""
    parts = urlsplit(url)
    return parts.scheme == "http" and not is_loopback(parts.hostname or "")


def is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")


def masked(token: str) -> str:
    return f"{MASK}{token[-4:]}" if len(token) >= SHORTEST_SHOWN_END else MASK
