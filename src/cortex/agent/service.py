"""
The agent itself: orders in, reports out, and what it does in between.

What must survive our own death is on disk (`node/`): replicas, launchers, routes, the highest epoch. After a restart
it is all found again before the first order is taken.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from typing import Any

from cortex import processes
from cortex.agent import beats, server
from cortex.agent.cache import ArtifactCache
from cortex.agent.children import Children
from cortex.agent.cleaning import Cleaning
from cortex.agent.counting import Counting
from cortex.agent.door import Door
from cortex.agent.inspections import Inspections
from cortex.agent.installations import Installations
from cortex.agent.installer import Tell
from cortex.agent.lines import SpareLines
from cortex.agent.logs import Clocks, LogReader
from cortex.agent.memory import AgentMemory
from cortex.agent.metering import Metering
from cortex.agent.neighbourhood import Neighbourhood
from cortex.agent.overseer import Overseer
from cortex.agent.renewal import Renewal
from cortex.agent.replicas import Replicas
from cortex.agent.server import AgentService
from cortex.agent.shortage import MemoryShortage
from cortex.agent.strays import Strays
from cortex.agent.upstream import LinkedUpstream
from cortex.clock import Clock
from cortex.errors import CortexError
from cortex.settings import NodeLayout, Settings
from cortex.wire.agent import InspectBuild, InstallPackages, LogLines, ReadLogs, ResolvePackages
from cortex.wire.launch import ENDING_S, InspectReport
from cortex.wire.loads import NodeLoads
from cortex.wire.orders import (
    DrainReplica,
    ForgetReplica,
    HoldSlot,
    Order,
    Orders,
    RemoveRoute,
    SetReplicaBatching,
    SetRoute,
    SetRoutes,
    StartReplica,
)
from cortex.wire.packages import PackageLock
from cortex.wire.reports import AgentReport, Node, Phase

log = logging.getLogger(__name__)

HOUSEKEEPING_S = 2.0
"""How soon a keeper or launcher that died is missed. Looks are most of what an idle node does."""
TRAFFIC_S = 0.5
"""How often is looked at what comes to the ingress: a queue that is too long is one for at most so long."""
STRAYS_S = 60.0
"""How often processes are looked for that a replica left behind; as each replica ends they are, too."""
LOG_POLL_S = 0.2
COUNT_PATIENCE_S = 0.15
"""How long a reader's question is held up by replicas that do not say that they have counted."""
DELIVERY_PATIENCE_S = 0.25
"""The same by a control plane that does not say that it has counted; it waits for half a second in all."""
LAST_DELIVERY_S = 1.0
LOG_CLEANING_S = 300.0
RAW_OUTPUT_S = 2.0
"""How often output past Python is looked at: a disk fills quickly."""
CACHE_S = 3600.0
"""How often a node with a store of its own removes from it what is beyond its limit; before each pull it does, too."""
LEFT_OUTPUT_S = 10.0
"""The same for that of replicas that are gone, whose subprocesses may go on: a whole folder has to be read for it."""
CERTIFICATES_S = 3600.0
HOME_GONE_LOOKS = 3
"""Looks in a row at a home that is not ours any more, until we believe it."""
DRAIN_WITHOUT_HOME_S = 30.0
SLOTS_CLOSE_S = 5.0


class Changes:
    """That something has changed which a report shows, and whether routes may have to be set."""

    def __init__(self) -> None:
        self.serial = 0
        self.routes_due = asyncio.Event()
        self._changed = asyncio.Event()

    def note(self) -> None:
        self.note_shown()
        self.routes_due.set()

    def note_shown(self) -> None:
        """The ingress has nothing to be told of it."""
        self.serial += 1
        self._changed.set()

    async def after(self, serial: int) -> None:
        """Wait while the serial is this one."""
        while self.serial == serial:
            self._changed.clear()
            await self._changed.wait()


class AgentStop:
    """Whether, and how, the agent was asked to end."""

    def __init__(self) -> None:
        self._asked: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    def ask(self, drain_timeout_s: float) -> None:
        """Negative: end ourselves only and leave everything running."""
        if not self._asked.done():
            self._asked.set_result(drain_timeout_s)

    @property
    def is_asked(self) -> bool:
        return self._asked.done()

    async def asked(self) -> float:
        """Wait for it."""
        return await self._asked


class Agent:
    """Implements `server.AgentService`."""

    def __init__(
        self,
        *,
        agent_id: str,
        settings: Settings,
        layout: NodeLayout,
        clock: Clock,
        node: Node,
        memory: AgentMemory,
        changes: Changes,
        spare_lines: Callable[[AgentService], SpareLines],
        upstream: LinkedUpstream,
        neighbourhood: Neighbourhood | None,
        renewal: Renewal | None,
        cache: ArtifactCache | None,
        stop: AgentStop,
        door: Door,
        installations: Installations,
        replicas: Replicas,
        metering: Metering,
        counting: Counting,
        inspections: Inspections,
        strays: Strays,
        children: Children,
        overseer: Overseer | None,
        cleaning: Cleaning,
        shortage: MemoryShortage,
        lock: int,
    ) -> None:
        self._settings = settings
        self._layout = layout
        self._clock = clock
        self._node = node
        self._memory = memory
        self._changes = changes
        self._upstream = upstream
        self._neighbourhood = neighbourhood
        self._renewal = renewal
        self._cache = cache
        self._stop = stop
        self._door = door
        self._installations = installations
        self._replicas = replicas
        self._metering = metering
        self._counting = counting
        self._inspections = inspections
        self._strays = strays
        self._children = children
        self._overseer = overseer
        self._cleaning = cleaning
        self._shortage = shortage
        self._lock = lock
        self._agent_id = agent_id
        self._started_s, self._started_wall_s = clock.monotonic_s(), clock.wall_s()
        self._logs = LogReader(layout.replica_logs)
        self._spare_lines = spare_lines(self)
        self._listening: asyncio.Server | None = None
        self._listening_inode = 0
        self._homeless_looks = 0
        self._last_turn = (0, 0)
        """Epoch and turn of the last orders that were taken."""

    async def run(self) -> None:
        """Take over what runs, then serve until told to stop."""
        self._memory.recall()
        strays = self._installations.adopt()
        await self._replicas.adopt()
        await self._strays.end()
        await self._door.start()
        every = partial(beats.every, clock=self._clock)
        health_s = self._settings.health_interval_s
        launchers, safekeeping = self._replicas.launchers, self._replicas.safekeeping
        works = (
            beats.whenever(self._changes.routes_due, self._door.sync, self._clock),
            every(health_s, self._replicas.check_health),
            every(health_s, self._door.count_refusals),
            every(TRAFFIC_S, self._door.follow),
            # One loop each: what takes long for one must not keep the others waiting.
            every(HOUSEKEEPING_S, self._keep_house),
            every(HOUSEKEEPING_S, self._door.keep),
            every(HOUSEKEEPING_S, safekeeping.keep),
            every(HOUSEKEEPING_S, lambda: launchers.keep(self._replicas.launcher_keys())),
            every(STRAYS_S, self._strays.end),
            every(LOG_CLEANING_S, self._cleaning.clean),
            every(RAW_OUTPUT_S, self._cleaning.bound_raw_output),
            every(LEFT_OUTPUT_S, self._cleaning.bound_left_output),
            *([every(CACHE_S, self._cache.clean)] if self._cache is not None else ()),
            *self._among_others(),
            self._counting.run(),
            self._prestart(),
            self._installations.clear_away(strays),
        )
        background = [asyncio.ensure_future(work) for work in works]
        self._changes.routes_due.set()
        await self._listen()
        lines = asyncio.ensure_future(self._spare_lines.keep())
        log.info("agent %s ready, %s replicas adopted", self._agent_id, len(self._replicas.reports()))
        drain_timeout_s = await self._stop.asked()
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        if drain_timeout_s < 0:
            log.info("the agent ends; what it looks after goes on")
            await self._door.detach()
            await self._installations.close()
        else:
            await self._stop_everything(drain_timeout_s)
        lines.cancel()
        await self._counting.close()
        await self._upstream.close()
        if self._listening is not None:
            self._listening.close()

    # ---- server.AgentService ------------------------------------------------------------------------------------

    def take_orders(self, orders: Orders, turn: int) -> AgentReport:
        self._refuse_while_ending()
        if orders.epoch < self._memory.epoch:
            raise server.OutdatedOrders(f"orders of epoch {orders.epoch}, but epoch {self._memory.epoch} is in charge")
        if turn and (orders.epoch, turn) < self._last_turn:
            raise server.OvertakenOrders("later orders were taken before these")
        self._last_turn = max(self._last_turn, (orders.epoch, turn))
        self._memory.epoch = orders.epoch
        try:
            # One that fails ends the batch: what comes later may take away what it was to replace.
            for order in orders.orders:
                if not self._take(order):
                    break
        finally:
            self._memory.write()
        return self.report()

    def _take(self, order: Order) -> bool:
        """Carry out an order. False: it does not fit what there is, which the report says."""
        match order:
            case StartReplica():
                self._replicas.start(order)
            case HoldSlot():
                self._replicas.hold_slot(order)
            case SetReplicaBatching(replica=replica, batches=batches):
                self._replicas.set_batching(replica, batches)
            case DrainReplica(replica=replica, timeout_s=timeout_s):
                self._replicas.drain(replica, timeout_s)
            case ForgetReplica(replica=replica):
                self._replicas.forget(replica)
            case SetRoutes(revision=revision, base=base):
                before = self._memory.revision
                if not self._memory.set_routes(order):
                    log.info("not taken: routes %s, which are based on %s, not on %s", revision, base, before)
                    return False
                if revision != before:
                    self._changes.note()
            case SetRoute():
                self._memory.set_route(order)
                self._changes.note()
            case RemoveRoute(api=api):
                self._memory.remove_route(api)
                self._changes.note()
        return True

    async def observe(self, agent: str, serial: int, timeout_s: float) -> AgentReport:
        if agent == self._agent_id:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._changes.after(serial)
        return self.report()

    async def follow_loads(self, agent: str, timeout_s: float) -> NodeLoads:
        return await self._metering.follow(agent, timeout_s)

    async def inspect(self, request: InspectBuild) -> InspectReport:
        self._refuse_while_ending()
        return await self._inspections.inspect(request)

    async def resolve_packages(self, request: ResolvePackages, tell: Tell) -> PackageLock:
        self._refuse_while_ending()
        return await self._installations.resolve(request, tell)

    async def install_packages(self, request: InstallPackages, tell: Tell) -> None:
        self._refuse_while_ending()
        await self._installations.ensure(request.packages, request.runtime, project=request.project, tell=tell)

    async def sweep_packages(self, in_use: tuple[str, ...]) -> tuple[str, ...]:
        return await self._installations.sweep({*in_use, *self._replicas.packages_in_use()})

    async def read_logs(self, request: ReadLogs) -> LogLines:
        deadline_s = self._clock.monotonic_s() + request.wait_s
        clocks = Clocks.of(request, self._clock.wall_s())
        request = clocks.here(request)
        while True:
            lines = await asyncio.to_thread(self._logs.read, request)
            if lines.lines or lines.more or lines.held or not request.cursor or self._clock.monotonic_s() >= deadline_s:
                return clocks.there(lines)
            await asyncio.sleep(LOG_POLL_S)

    async def count_now(self) -> AgentReport:
        await asyncio.gather(
            self._replicas.count_now(COUNT_PATIENCE_S), self._door.count_refusals_within(COUNT_PATIENCE_S)
        )
        await self._counting.deliver_within(DELIVERY_PATIENCE_S)
        return self.report()

    def stop(self, drain_timeout_s: float) -> None:
        self._stop.ask(drain_timeout_s)

    def _refuse_while_ending(self) -> None:
        if self._stop.is_asked:
            raise server.AgentEnding

    # ---- reports ------------------------------------------------------------------------------------------------

    def report(self) -> AgentReport:
        return AgentReport(
            node=self._node,
            serial=self._changes.serial,
            agent=self._agent_id,
            epoch=self._memory.epoch,
            pid=os.getpid(),
            started_wall_s=self._started_wall_s,
            up_s=self._clock.monotonic_s() - self._started_s,
            replicas=self._replicas.reports(),
            routes=self._memory.routes,
            routes_revision=self._memory.revision,
            pending_routes=self._door.pending_routes(),
            ingress=self._door.report(),
            memory_short=self._shortage.holds,
        )

    # ---- background ---------------------------------------------------------------------------------------------

    async def _keep_house(self) -> None:
        if self._overseer is not None:
            self._overseer.keep()
        self._door.look()
        self._children.reap_strangers()
        self._memory.write_again()
        if self._shortage.look():
            self._changes.note_shown()
        if self._is_at_home():
            await self._keep_listening()

    def _among_others(self) -> Iterator[Coroutine[Any, Any, None]]:
        """What there is to do where there are other nodes."""
        if self._neighbourhood is not None:
            yield self._neighbourhood.follow()
            yield beats.every(CERTIFICATES_S, self._door.renew, clock=self._clock)
        if self._renewal is not None:
            yield beats.every(CERTIFICATES_S, self._renewal.look, clock=self._clock)

    async def _prestart(self) -> None:
        """Have a launcher ready before the first deploy asks for one."""
        with contextlib.suppress(CortexError, OSError):
            await self._replicas.launchers.get("onnx", {}).connection()

    async def _listen(self) -> None:
        self._listening = await server.serve(self._layout.agent_socket, self)
        self._listening_inode = self._layout.agent_socket.stat().st_ino

    async def _keep_listening(self) -> None:
        """Without the file of our socket nobody would ever find us."""
        try:
            if self._layout.agent_socket.stat().st_ino == self._listening_inode:
                return
        except FileNotFoundError:
            pass
        log.error("the file of our socket was removed: made again")
        self._layout.sockets.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._listening is not None:
            self._listening.close()
        await self._listen()

    def _is_at_home(self) -> bool:
        """A home that was removed, or replaced by another one, has nobody who would ever end what runs for it."""
        if processes.is_same_file(self._lock, self._layout.agent_lock):
            self._homeless_looks = 0
            return True
        self._homeless_looks += 1
        if self._homeless_looks >= HOME_GONE_LOOKS:
            log.error("the home %s is gone: everything ends", self._layout.home)
            self.stop(DRAIN_WITHOUT_HOME_S)
        return False

    # ---- stopping -----------------------------------------------------------------------------------------------

    async def _stop_everything(self, drain_timeout_s: float) -> None:
        """
        Stop the node: 1. who waits at a replica that sleeps is told that nobody will wake it; 2. ingress takes no new
        connections and finishes what it has; 3. replicas drain, in the time that is left, and what they have counted is
        delivered; 4. launchers and keeper end, with whatever became our child; 5. sockets and records go.
        """
        log.info("stopping everything")
        await self._installations.close()
        for replica, life in self._replicas.lives.items():
            if life.phase is Phase.ASLEEP:
                self._replicas.forget(replica)
        await self._closed()
        deadline_s = self._clock.monotonic_s() + drain_timeout_s
        await self._door.close(drain_timeout_s)
        for replica in self._replicas.lives:
            self._replicas.drain(replica, max(1.0, deadline_s - self._clock.monotonic_s()))
        deadline_s = max(deadline_s, self._clock.monotonic_s() + 1.0) + ENDING_S + 3.0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(deadline_s - self._clock.monotonic_s()):
                await self._replicas.exited()
        for replica in self._replicas.lives:
            self._replicas.forget(replica)
        await self._closed()
        await self._counting.deliver_within(LAST_DELIVERY_S)
        self._inspections.kept.end()
        await self._replicas.launchers.stop()
        await self._replicas.safekeeping.stop()
        self._children.end()
        self._memory.clear_routes()
        self._memory.write()
        for pattern in ("r-*.sock", "c-*.sock", "l-*.sock", "*.sock.tmp"):
            for left in self._layout.sockets.glob(pattern):
                left.unlink(missing_ok=True)
        self._layout.agent_socket.unlink(missing_ok=True)
        self._layout.agent_file.unlink(missing_ok=True)

    async def _closed(self) -> None:
        """Until the slots of forgotten replicas are, or that takes too long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SLOTS_CLOSE_S):
                await self._replicas.closed()
