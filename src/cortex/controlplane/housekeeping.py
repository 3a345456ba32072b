"""
What nobody needs any more is removed: installations of packages, replaced values of secrets, keys to clouds, and the
history of what was deleted long ago.

Apart from `upkeep`, which waits for quiet moments and reads much: this is quick, and done after each deploy.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection

from cortex.clock import Clock, SettledWall
from cortex.controlplane.secrets import CloudKeys
from cortex.controlplane.upkeep import wanted_trees
from cortex.errors import CortexError
from cortex.state.records import StateStore
from cortex.state.secrets import SecretStore

log = logging.getLogger(__name__)

INTERVAL_S = 600.0
"""Even if nothing is deployed: what was in use until lately is only removed some time later."""
SETTLING_S = 5.0
"""After a deploy, before looking: what it replaced is still draining."""


class Housekeeping:
    """
    Clears up.

    Args:
        sweep: has installations removed that are not among those given. Raises CortexError when the node is away.
        forget_cloud: drops what models were fetched with, if none might be fetched again. Raises OSError.
    """

    def __init__(
        self,
        *,
        state: StateStore,
        secrets: SecretStore,
        cloud: CloudKeys,
        sweep: Callable[[Collection[str]], object],
        forget_cloud: Callable[[], None],
        clock: Clock,
    ) -> None:
        self._state = state
        self._secrets = secrets
        self._cloud = cloud
        self._sweep = sweep
        self._forget_cloud = forget_cloud
        self._wall = SettledWall(clock)

    def clear_up(self) -> None:
        """
        Once, now.

        Raises:
            CortexError, OSError: the node is away, or the disk fails; what could be removed is.
        """
        self._forget_cloud()
        wall_s = self._wall.wall_s()
        self._state.forget_deleted(now_wall_s=wall_s)
        pins = [pin for kept in self._state.versions() for pin in kept.build.secrets.values()]
        self._secrets.prune(pins, wall_s=wall_s)
        # What leads to clouds is of use to what runs only: with a version that comes back today's go.
        self._cloud.prune(build for record in self._state.apis() for build in record.wanted.builds)
        trees, _versions = wanted_trees(self._state)  # the digest of a lock is also that of its installation
        self._sweep(trees)

    def step(self) -> float:
        """The same, or another time. Returns seconds until the next, at the latest."""
        try:
            self.clear_up()
        except (CortexError, OSError) as error:
            log.info("clearing up is put off: %s", error)
        return INTERVAL_S
