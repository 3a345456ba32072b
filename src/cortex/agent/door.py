"""The node's ingress as the agent sees it: started, told who is in rotation, and asked what it refused."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from cortex.agent import holding, pace, rotation
from cortex.agent.life.state import Life
from cortex.agent.pace import Look, Pace, QueueBound
from cortex.agent.refusals import RefusalLog
from cortex.agent.rotation import Neighbours
from cortex.clock import Clock
from cortex.errors import CortexError, Problem
from cortex.ids import ApiKey, ReplicaId
from cortex.ingress.peers import Peering
from cortex.ingress.routes import IngressRoute, Sleep
from cortex.ingress.supervisor import Ingress
from cortex.settings import NodeLayout, Settings
from cortex.wire.loads import DoorReading
from cortex.wire.orders import SetRoute
from cortex.wire.reports import IngressRefusals, IngressReport

log = logging.getLogger(__name__)

RETRY_S = 0.2


class Door:
    """
    Keeps the ingress to what was ordered.

    Args:
        clock: the one of the ingress.
        routes: as ordered.
        lives: of the node's replicas.
        peering: how it listens for the doors of other nodes; None where there is one node.
        neighbours: those; None likewise.
        refusal_log: where is written what the ingress refused.
        on_change: called when the ingress is another one, which has to be told everything.
        on_applied: called when it has other routes than before.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        layout: NodeLayout,
        ingress: Ingress,
        clock: Clock,
        routes: Callable[[], tuple[SetRoute, ...]],
        lives: Callable[[], Mapping[ReplicaId, Life]],
        peering: Peering | None,
        neighbours: Callable[[], Neighbours | None],
        refusal_log: RefusalLog,
        on_change: Callable[[], None],
        on_applied: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._layout = layout
        self._ingress = ingress
        self._clock = clock
        self._routes = routes
        self._lives = lives
        self._peering = peering
        self._neighbours = neighbours
        self._refusal_log = refusal_log
        self._on_change = on_change
        self._on_applied = on_applied
        self._closed = False
        self._problem: Problem | None = None
        self._applied: tuple[SetRoute, ...] = ()
        self._refusals: tuple[IngressRefusals, ...] = ()
        self._paces: dict[ApiKey, Pace] = {}
        self._reached: dict[ApiKey, float] = {}
        """When each api last had a replica anywhere, where there are other nodes."""

    async def start(self) -> None:
        """What keeps it from being started is reported, and tried again by `keep`."""
        try:
            await self._ingress.start()
            self._problem = None
            for route in self._ingress.routes():
                self._paces.setdefault(route.api, _pace_of(route))
                if route.holds:
                    self._reached.setdefault(route.api, self._clock.monotonic_s())
        except (CortexError, OSError) as error:
            self._problem = ingress_problem(error, self._layout.home)
            log.error("the ingress could not be started: %s", error)

    async def keep(self) -> None:
        """Start it if that failed."""
        if self._problem is not None:
            await self.start()
            self._on_change()

    async def renew(self) -> None:
        """Take up certificates that were renewed."""
        try:
            await self._ingress.renew()
        except (CortexError, OSError) as error:
            log.warning("the ingress could not be given its certificates anew: %s", error)

    async def detach(self) -> None:
        """Leave it running."""
        await self._ingress.detach()

    async def close(self, drain_timeout_s: float) -> None:
        """Take no new connections, finish what there is, and end."""
        try:
            await self._ingress.stop(drain_timeout_s)
        except (CortexError, OSError) as error:
            log.error("the ingress could not be stopped in order: %s", error)
        self._closed = True

    def look(self) -> None:
        self._ingress.look()

    def pids(self) -> frozenset[int]:
        return self._ingress.pids()

    # ---- who is in rotation -------------------------------------------------------------------------------------

    async def sync(self) -> None:
        """Bring the ingress to what routes and readiness say now."""
        routes, neighbours = self._routes(), self._neighbours()
        wanted = rotation.ingress_routes(routes, self._lives(), self._layout, self._bound, neighbours)
        if neighbours is not None:
            now_s = self._clock.monotonic_s()
            self._reached = holding.reached(self._reached, self._ingress.routes(), wanted, now_s)
            wanted = holding.with_holds(wanted, routes, self._reached, now_s)
        await self._ingress.apply(wanted, neighbours.peers if neighbours is not None else ())
        if self._applied != routes:
            self._applied = routes
            self._on_applied()

    async def settle(self) -> None:
        """The same, where nobody minds that it may fail."""
        try:
            await self.sync()
        except (CortexError, OSError) as error:
            log.info("the ingress does not have the routes yet: %s", error)

    async def quiesced(self, stem: str) -> None:
        """Take a replica that drains out of the ingress, and wait until no request is there any more."""
        while not self._closed:
            try:
                await self.settle()
                await self._ingress.quiesced(stem)
                return
            except (CortexError, OSError) as error:
                log.warning("the ingress could not be asked whether %s is quiet: %s", stem, error)
            await asyncio.sleep(RETRY_S)

    async def abandon(self, stem: str) -> None:
        """Tell the requests that wait for a replica that nobody will come."""
        try:
            await self.settle()
            await self._ingress.abandon(stem)
        except (CortexError, OSError) as error:
            log.warning("requests at %s could not be turned away: %s", stem, error)

    # ---- how many may wait --------------------------------------------------------------------------------------

    async def follow(self) -> None:
        """Have about as many requests wait as are done in a second. To be called each half second."""
        found = await self._ingress.traffic()
        seen = {api.api: api for api in found.apis}
        lives = self._lives()
        routes = {route.api: route for route in self._routes()}
        ready = {api: rotation.ready(route, lives) for api, route in routes.items()}
        self._paces = {
            api: pace.followed(
                self._paces.get(api, Pace()),
                Look(
                    at_s=found.at_s,
                    done=seen[api].done,
                    queued=seen[api].queued,
                    ready=ready[api],
                    start_s=rotation.start_s(routes[api], lives),
                ),
            )
            for api in ready.keys() & seen.keys()
        }
        known = self._ingress.routes()
        told = {route.api: QueueBound(route.max_queued, route.retry_after_s) for route in known}
        if any(told[api] != self._bound(api, ready[api]) for api in ready.keys() & told.keys()) or (
            self._peering is not None
            and known != holding.with_holds(known, routes.values(), self._reached, self._clock.monotonic_s())
        ):
            await self.sync()

    def _bound(self, api: ApiKey, ready: int) -> QueueBound:
        return pace.bound_of(self._paces.get(api, Pace()), ready, self._clock.monotonic_s())

    # ---- what is read -------------------------------------------------------------------------------------------

    async def traffic(self) -> tuple[float, tuple[DoorReading, ...]]:
        """
        Monotonic seconds, and what had come for each routed api by then; at most `supervisor.FRESH_S` old.

        Counters begin at 0 with the agent.
        """
        found = await self._ingress.traffic()
        return found.at_s, tuple(
            DoorReading(api=api.api, begun=api.begun, queued=api.queued, given=api.given) for api in found.apis
        )

    # ---- what is reported ---------------------------------------------------------------------------------------

    async def count_refusals(self) -> None:
        """Requests that the ingress answered itself are counted with those that replicas answered."""
        versions = {route.api: route.version for route in self._routes()}
        refused = await self._ingress.refusals()
        self._refusal_log.note(refused)
        self._refusals = tuple(
            IngressRefusals(
                instance=found.instance,
                api=found.api,
                version=versions[found.api],
                client_error=found.client_error,
                server_error=found.server_error,
                failed=found.failed,
                overloaded=found.overloaded,
            )
            for found in refused
            if found.api in versions
        )

    async def count_refusals_within(self, patience_s: float) -> None:
        """The same; if it takes longer, what is known already has to do."""
        with contextlib.suppress(TimeoutError, CortexError, OSError):
            async with asyncio.timeout(patience_s):
                await self.count_refusals()

    def pending_routes(self) -> tuple[ApiKey, ...]:
        """Apis whose route is not in the ingress yet."""
        before, after = ({route.api: route for route in routes} for routes in (self._applied, self._routes()))
        return tuple(sorted(api for api in before.keys() | after.keys() if before.get(api) != after.get(api)))

    def report(self) -> IngressReport:
        status = self._ingress.status()
        return IngressReport(
            up=status.up,
            host=self._settings.host,
            port=self._settings.port,
            peer_host=self._peering.told_host if self._peering is not None else "",
            peer_port=self._peering.port if self._peering is not None else 0,
            pid=status.pid,
            restarts=status.restarts,
            problem=self._problem,
            refusals=self._refusals,
        )


def _pace_of(route: IngressRoute) -> Pace:
    """What a former agent knew, as far as it has told the ingress."""
    if route.sleep is Sleep.AWAKE:
        return Pace(bound=QueueBound(route.max_queued, route.retry_after_s))
    return Pace(start_s=route.retry_after_s)


def ingress_problem(error: CortexError | OSError, home: Path) -> Problem:
    """Why the ingress does not start, in words: whoever runs Cortex may have to make room."""
    if isinstance(error, CortexError):
        return error.problem()
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Problem(
            reference="ingress-failed",
            message=f"predictions are not listened for, since the disk of {home} is full",
            hint="free space there: nothing has to be started anew",
        )
    return Problem(reference="ingress-failed", message=f"predictions are not listened for: {error}")
