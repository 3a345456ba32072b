"""What we know of each running HAProxy, and `ingress.json`, by which a later agent finds them again."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from cortex.ingress.configuration import Tier
from cortex.ingress.convergence import Holdings
from cortex.ingress.process import HaproxyProcess
from cortex.ingress.routes import IngressRoute
from cortex.ingress.runtime import AdminSocket
from cortex.processes import ProcessIdentity, boot_id, write_whole

log = logging.getLogger(__name__)

LONGEST_BACKOFF_S = 5.0
_FILE = re.compile(r"((?:door|bulk)-(\d+))\.(?:cfg|map|log)")
_SOCKET = re.compile(r"h-((?:door|bulk)-\d+)\.sock(?:\.\d+\.tmp)?")


class WorkerName(msgspec.Struct, frozen=True):
    """What a worker is called, and so are its files."""

    tier: Tier
    generation: int
    """Never the same twice among the workers of a folder, whatever their tier."""

    def __str__(self) -> str:
        return f"{self.tier.value}-{self.generation}"

    @property
    def config_file(self) -> str:
        return f"{self}.cfg"

    @property
    def map_file(self) -> str:
        return f"{self}.map"

    @property
    def log_file(self) -> str:
        return f"{self}.log"

    @property
    def admin_socket(self) -> str:
        """Short: HAProxy takes 97 bytes of path."""
        return f"h-{self}.sock"


@dataclass(eq=False)
class Worker:
    """A running HAProxy and what we know of it."""

    process: HaproxyProcess
    name: WorkerName
    layout: int
    """0 for one whose configuration is not ours to understand."""
    digest: str
    pool_size: int
    admin: AdminSocket
    started_s: float
    answered_s: float
    """When it last answered at its admin socket."""
    holdings: Holdings | None = None
    """None: to be read again."""
    leaving_until_s: float | None = None
    """Set once it no longer listens: when its last connections are cut."""

    @property
    def tier(self) -> Tier:
        return self.name.tier

    @property
    def instance(self) -> str:
        """Names the process among all that ever were."""
        identity = self.process.identity
        return f"{identity.pid}-{identity.start_ticks}-{identity.boot_id[:8]}"


class WorkerRecord(msgspec.Struct, frozen=True):
    """A worker in `ingress.json`."""

    identity: ProcessIdentity
    name: WorkerName


class IngressRecord(msgspec.Struct, frozen=True):
    """`ingress.json`: which processes are ours, and what was applied last."""

    workers: tuple[WorkerRecord, ...] = ()
    routes: tuple[IngressRoute, ...] = ()
    boot_id: str = ""


@dataclass
class Patience:
    """When a tier may be started again."""

    failures: int = 0
    not_before_s: float = field(default=float("-inf"))

    def note_failure(self, now_s: float) -> None:
        """The first restart is at once, further ones wait for twice as long each time."""
        self.failures += 1
        delay_s = 0.0 if self.failures == 1 else min(LONGEST_BACKOFF_S, 0.1 * 2 ** (self.failures - 2))
        self.not_before_s = now_s + delay_s


def read_record(file: Path) -> IngressRecord:
    """What was written last; empty when there is nothing, or nothing that can be read."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=IngressRecord)
    except FileNotFoundError:
        return IngressRecord()
    except (OSError, msgspec.MsgspecError, ValueError) as error:
        log.warning("%s cannot be read and is ignored: %s", file, error)
        return IngressRecord()


def write_record(file: Path, workers: Iterable[Worker], routes: Sequence[IngressRoute]) -> None:
    record = IngressRecord(
        workers=tuple(WorkerRecord(identity=worker.process.identity, name=worker.name) for worker in workers),
        routes=tuple(routes),
        boot_id=boot_id(),
    )
    write_whole(file, msgspec.json.encode(record))


def next_generation(directory: Path, workers: Iterable[Worker]) -> int:
    """A number that no worker and no file of one has."""
    taken = [worker.name.generation for worker in workers]
    taken += [int(match[2]) for file in directory.iterdir() if (match := _FILE.fullmatch(file.name))]
    return max(taken, default=0) + 1


def remove_leftovers(directory: Path, sockets: Path, kept: Iterable[Worker]) -> None:
    """Remove the files of workers that are gone, from folders that need not be there."""
    names = {str(worker.name) for worker in kept}
    for folder, pattern in ((directory, _FILE), (sockets, _SOCKET)):
        for file in folder.glob("*"):
            match = pattern.fullmatch(file.name)
            if match and match[1] not in names:
                file.unlink(missing_ok=True)
