"""What no replica can tell us after a restart: the highest epoch, and the table of routes that was ordered."""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec

from cortex import processes
from cortex.ids import ApiKey
from cortex.wire.framing import UNREADABLE
from cortex.wire.orders import UNNUMBERED, RoutesRevision, SetRoute, SetRoutes

log = logging.getLogger(__name__)


class Remembered(msgspec.Struct, kw_only=True):
    """The content of the file."""

    epoch: int = 0
    routes: list[SetRoute] = []
    revision: RoutesRevision = UNNUMBERED
    """Of `routes`."""


class AgentMemory:
    """
    Kept in a file.

    Args:
        file: `node/agent-state.json`.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._now = Remembered()
        self._unwritten = False

    @property
    def epoch(self) -> int:
        return self._now.epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._now.epoch = epoch

    @property
    def routes(self) -> tuple[SetRoute, ...]:
        """In the sequence in which they were ordered."""
        return tuple(self._now.routes)

    @property
    def revision(self) -> RoutesRevision:
        """Which table of routes it is."""
        return self._now.revision

    def set_routes(self, order: SetRoutes) -> bool:
        """Take a table over. False, and nothing is changed, where it says what changes in one that we do not have."""
        if order.base is not None and self._now.revision not in (order.base, order.revision):
            return False
        if self._now.revision != order.revision:
            changed = {*order.removed, *(route.api for route in order.routes)}
            kept = [] if order.base is None else [route for route in self._now.routes if route.api not in changed]
            self._now.routes = [*kept, *order.routes]
            self._now.revision = order.revision
        return True

    def set_route(self, route: SetRoute) -> None:
        self.remove_route(route.api)
        self._now.routes = [*self._now.routes, route]

    def remove_route(self, api: ApiKey) -> None:
        self._now.routes = [known for known in self._now.routes if known.api != api]
        self._now.revision = UNNUMBERED

    def clear_routes(self) -> None:
        self._now.routes = []
        self._now.revision = UNNUMBERED

    def recall(self) -> None:
        """What a former agent has left."""
        processes.remove_unfinished(self._file.parent)
        try:
            self._now = msgspec.json.decode(self._file.read_bytes(), type=Remembered)
        except FileNotFoundError:
            pass
        except (OSError, *UNREADABLE) as error:
            log.warning("%s cannot be read, the control plane will give the routes again: %s", self._file, error)

    def write(self) -> None:
        """What cannot be written now (a full disk) is tried again: serving does not depend on it."""
        try:
            processes.write_whole(self._file, msgspec.json.encode(self._now))
        except OSError as error:
            log.error("%s cannot be written: %s", self._file, error)
            self._unwritten = True
        else:
            self._unwritten = False

    def write_again(self) -> None:
        """If it could not be written the last time."""
        if self._unwritten:
            self.write()
