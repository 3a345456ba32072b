"""Agents that keep slots and routes in memory, dial a control plane as the real one does, and have misfortunes."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from functools import partial

from cortex.agent.dialing import Dial, Streams, introduce
from cortex.agent.lines import SpareLines
from cortex.agent.server import OutdatedOrders, OvertakenOrders
from cortex.agent.service import Changes
from cortex.clock import SystemClock
from cortex.ids import ApiKey, NodeId, ReplicaId
from cortex.testing.builders import a_node
from cortex.wire.link import ORDERS, Hello
from cortex.wire.orders import (
    UNNUMBERED,
    ForgetReplica,
    HoldSlot,
    Order,
    Orders,
    RemoveRoute,
    SetRoute,
    SetRoutes,
)
from cortex.wire.reports import AgentReport, Phase, ReplicaReport

DEADLINE_S = 60.0
TURNS_TO_CLOSE = 8
"""Of a loop: what is aborted is closed in its next turns, TLS below TLS."""


class Disk:
    """What outlives an agent."""

    def __init__(self) -> None:
        self.epoch = 0
        self.slots: dict[ReplicaId, HoldSlot] = {}
        self.routes: dict[ApiKey, SetRoute] = {}
        self.revision = UNNUMBERED


class SmallAgent:
    """
    One agent, in a thread of its own. Implements what is asked of `server.AgentService` here.

    Args:
        dial: where the control plane listens.
    """

    def __init__(self, node: NodeId, name: str, dial: Dial, disk: Disk) -> None:
        self.loses_answer = False
        """The next orders are carried out, and the connection breaks."""
        self.is_cut = False
        """No connection comes about."""
        self.taken: list[tuple[Orders, int]] = []
        self._node, self._name, self._dial, self._disk = node, name, dial, disk
        self._going = threading.Event()
        self._going.set()
        self._last_turn = (0, 0)
        self._began = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self._thread.start()
        assert self._began.wait(DEADLINE_S)

    # ---- misfortunes --------------------------------------------------------------------------------------------

    def stall(self) -> None:
        """Stand still, as if it were stopped."""
        standing = threading.Event()

        def stand() -> None:
            standing.set()
            self._going.wait()

        self._going.clear()
        self._loop.call_soon_threadsafe(stand)
        assert standing.wait(DEADLINE_S)

    def go_on(self) -> None:
        self._going.set()

    def cut(self) -> None:
        """Every connection breaks, and none comes about until `mend`."""
        self.is_cut = True
        self._loop.call_soon_threadsafe(self._broken.set)

    def mend(self) -> None:
        self.is_cut = False

    def end(self) -> None:
        self._going.set()
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive()

    # ---- its loop -----------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._transports: list[asyncio.WriteTransport] = []
        self._changes, self._ended, self._broken = Changes(), asyncio.Event(), asyncio.Event()
        hello = Hello(node=self._node, agent=self._name, way=ORDERS)
        self._began.set()
        ended = asyncio.ensure_future(self._ended.wait())
        while not ended.done():
            introduced = partial(introduce, self._dialed)
            lines = SpareLines(introduce=introduced, hello=hello, service=self, clock=SystemClock())  # type: ignore[arg-type]
            keeping = asyncio.ensure_future(lines.keep())
            broken = asyncio.ensure_future(self._broken.wait())
            await asyncio.wait([ended, broken], return_when=asyncio.FIRST_COMPLETED)
            for task in (keeping, broken):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
            self._broken.clear()
        # Its process ends, and with that its connections, whatever state each is in.
        for transport in self._transports:
            transport.abort()
        for _ in range(TURNS_TO_CLOSE):
            await asyncio.sleep(0)

    async def _dialed(self) -> Streams:
        if self.is_cut:
            raise ConnectionRefusedError("the link is down")
        streams = await self._dial()
        self._transports.append(streams[1].transport)
        return streams

    # ---- server.AgentService ------------------------------------------------------------------------------------

    def take_orders(self, orders: Orders, turn: int) -> AgentReport:
        if orders.epoch < self._disk.epoch:
            raise OutdatedOrders(f"orders of epoch {orders.epoch}, but epoch {self._disk.epoch} is in charge")
        if (orders.epoch, turn) < self._last_turn:
            raise OvertakenOrders("later orders were taken before these")
        self._disk.epoch, self._last_turn = orders.epoch, (orders.epoch, turn)
        self.taken.append((orders, turn))
        for order in orders.orders:
            if isinstance(order, SetRoutes) and order.base not in (None, self._disk.revision):
                break
            self._take(order)
        if self.loses_answer:
            self.loses_answer = False
            raise asyncio.CancelledError
        return self._report()

    def _take(self, order: Order) -> None:
        before = (set(self._disk.slots), dict(self._disk.routes), self._disk.revision)
        match order:
            case HoldSlot(replica=replica):
                self._disk.slots.setdefault(replica, order)
            case ForgetReplica(replica=replica):
                self._disk.slots.pop(replica, None)
            case SetRoute(api=api):
                self._disk.routes[api] = order
            case RemoveRoute(api=api):
                self._disk.routes.pop(api, None)
            case SetRoutes(routes=routes, removed=removed):
                kept = {} if order.base is None else self._disk.routes
                kept = {api: route for api, route in kept.items() if api not in removed}
                self._disk.routes = {**kept, **{route.api: route for route in routes}}
                self._disk.revision = order.revision
            case _:
                raise AssertionError(order)
        if before != (set(self._disk.slots), dict(self._disk.routes), self._disk.revision):
            self._changes.note_shown()

    async def observe(self, agent: str, serial: int, timeout_s: float) -> AgentReport:
        if agent == self._name:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._changes.after(serial)
        return self._report()

    def _report(self) -> AgentReport:
        return AgentReport(
            node=a_node(self._node),
            serial=self._changes.serial,
            agent=self._name,
            epoch=self._disk.epoch,
            pid=1,
            started_wall_s=0.0,
            replicas=tuple(
                ReplicaReport(
                    replica=slot.replica,
                    api=slot.build.api,
                    version=slot.build.version,
                    revision=slot.build.revision,
                    attempt=0,
                    phase=Phase.ASLEEP,
                    resources=slot.build.resources,
                    model=slot.build.model_key,
                )
                for slot in self._disk.slots.values()
            ),
            routes=tuple(self._disk.routes.values()),
            routes_revision=self._disk.revision,
        )
