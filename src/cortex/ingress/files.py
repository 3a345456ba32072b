"""What the ingress keeps on disk: each worker's files, and `ingress.json`, by which a later agent finds them again."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from cortex.ids import NodeId
from cortex.ingress.configuration import Tier
from cortex.ingress.errors import PathTooLong
from cortex.ingress.peers import IngressPeer
from cortex.ingress.routes import SOCKET_PATH_LIMIT_BYTES, IngressRoute
from cortex.processes import ProcessIdentity, boot_id, write_whole

log = logging.getLogger(__name__)

LOG_LIMIT_BYTES = 4 * 2**20
"""HAProxy writes a few lines for every server that comes or goes, for as long as it runs."""
_FILE = re.compile(r"((?:door|bulk|hold)-(\d+))\.(?:cfg|map|log)")
_SOCKET = re.compile(r"h-((?:door|bulk|hold)-\d+)\.sock(?:\.\d+\.tmp)?")
_LONGEST_SOCKET_NAME = "h-door-99999.sock"


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


class WorkerRecord(msgspec.Struct, frozen=True):
    """A worker in `ingress.json`."""

    identity: ProcessIdentity
    name: WorkerName


class IngressRecord(msgspec.Struct, frozen=True):
    """`ingress.json`: which processes are ours, and what was applied last."""

    workers: tuple[WorkerRecord, ...] = ()
    routes: tuple[IngressRoute, ...] = ()
    peers: tuple[IngressPeer, ...] = ()
    places: dict[NodeId, int] = {}
    """Where each peer is watched, which HAProxy knows by address alone."""
    boot_id: str = ""

    def routes_today(self) -> tuple[IngressRoute, ...]:
        """After a reboot no socket of then answers; the paths are still known, and callers are told to come back."""
        if self.boot_id == boot_id():
            return self.routes
        return tuple(msgspec.structs.replace(route, servers=()) for route in self.routes)


class IngressFiles:
    """
    The two folders of an ingress.

    Args:
        directory: for configuration, maps, logs and `ingress.json`.
        sockets: with a short path, for unix sockets.
    """

    def __init__(self, directory: Path, sockets: Path) -> None:
        self.directory = directory
        self.sockets = sockets
        self.bulk_socket = sockets / "h-bulk.sock"
        self.hold_sockets = sockets / "h-hold.sock", sockets / "h-near.sock"
        self.nobody_socket = sockets / "h-nobody.sock"
        self.lend_socket = sockets / "h-lend.sock"
        self._record = directory / "ingress.json"

    def prepare(self) -> None:
        """
        Make both folders, mode 0700.

        Raises:
            PathTooLong: the folder for sockets is too deep.
        """
        longest = str(self.sockets / _LONGEST_SOCKET_NAME)
        if len(longest.encode()) > SOCKET_PATH_LIMIT_BYTES:
            raise PathTooLong(longest, SOCKET_PATH_LIMIT_BYTES)
        for folder in (self.directory, self.sockets):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def read(self) -> IngressRecord:
        """What was written last; empty when there is nothing, or nothing that can be read."""
        try:
            return msgspec.json.decode(self._record.read_bytes(), type=IngressRecord)
        except FileNotFoundError:
            return IngressRecord()
        except (OSError, msgspec.MsgspecError, ValueError) as error:
            log.warning("%s cannot be read and is ignored: %s", self._record, error)
            return IngressRecord()

    def write(
        self,
        workers: Iterable[WorkerRecord],
        routes: Iterable[IngressRoute],
        peers: Iterable[IngressPeer] = (),
        places: Mapping[NodeId, int] | None = None,
    ) -> None:
        record = IngressRecord(
            workers=tuple(workers),
            routes=tuple(routes),
            peers=tuple(peers),
            places=dict(places or {}),
            boot_id=boot_id(),
        )
        write_whole(self._record, msgspec.json.encode(record))

    def next_generation(self, taken: Iterable[int] = ()) -> int:
        """A number that is not taken, and that no file of a worker has."""
        found = [int(match[2]) for file in self.directory.iterdir() if (match := _FILE.fullmatch(file.name))]
        return max([*taken, *found], default=0) + 1

    def cap_log(self, name: WorkerName) -> None:
        file = self.directory / name.log_file
        with contextlib.suppress(OSError):
            if file.stat().st_size > LOG_LIMIT_BYTES:
                os.truncate(file, 0)

    def keep_log(self, name: WorkerName) -> Path:
        """Put the log of a worker that ended by itself where it stays until the next one of its tier does."""
        kept = self.directory / f"{name.tier.value}-ended.log"
        with contextlib.suppress(OSError):
            (self.directory / name.log_file).replace(kept)
        return kept

    def remove(self, name: WorkerName) -> None:
        """Remove the files of a worker."""
        (self.sockets / name.admin_socket).unlink(missing_ok=True)
        for file in (name.config_file, name.map_file, name.log_file):
            (self.directory / file).unlink(missing_ok=True)

    def remove_leftovers(self, kept: Iterable[WorkerName] = ()) -> None:
        """Remove the files of all workers but these, from folders that need not be there."""
        names = {str(name) for name in kept}
        for folder, pattern in ((self.directory, _FILE), (self.sockets, _SOCKET)):
            for file in folder.glob("*"):
                match = pattern.fullmatch(file.name)
                if match and match[1] not in names:
                    file.unlink(missing_ok=True)

    def remove_all(self) -> None:
        """Leave nothing of an ingress that ended but the logs of those that ended by themselves."""
        self.remove_leftovers()
        for socket in (self.bulk_socket, *self.hold_sockets, self.nobody_socket):
            socket.unlink(missing_ok=True)
        self._record.unlink(missing_ok=True)
