"""Requests of the control plane in, replies out. Parses, calls one function, renders."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import msgspec

from cortex.agent.installer import Tell
from cortex.binding import bind_unix
from cortex.errors import CortexError
from cortex.wire.agent import (
    NEVER_MIND,
    AgentReply,
    AgentRequest,
    CountNow,
    FollowedLoads,
    FollowLoads,
    GiveOrders,
    InspectBuild,
    InspectedBuild,
    InstalledPackages,
    InstallPackages,
    KnownRoutes,
    LogLines,
    Observe,
    Observed,
    PackageProgress,
    PackagesRefused,
    ReadLogs,
    Refused,
    ResolvedPackages,
    ResolvePackages,
    StopAgent,
    Stopping,
    SweepPackages,
    SweptPackages,
)
from cortex.wire.framing import UNREADABLE, FrameReader, framed
from cortex.wire.launch import InspectReport
from cortex.wire.loads import NodeLoads
from cortex.wire.orders import Orders
from cortex.wire.packages import PackageLock
from cortex.wire.reports import AgentReport

log = logging.getLogger(__name__)

BACKLOG = 100


class OutdatedOrders(Exception):
    """Orders from a control plane that is no longer in charge."""


class OvertakenOrders(Exception):
    """Orders that come after later ones of the same control plane."""


class AgentEnding(Exception):
    """The agent is on its way out and begins nothing new."""


class AgentService(Protocol):
    """What the socket's requests are passed on to; `service.Agent` is it."""

    def take_orders(self, orders: Orders, turn: int) -> AgentReport:
        """
        Raises OutdatedOrders, OvertakenOrders, AgentEnding, and OSError where one could not be carried out: nor were
        those after it.
        """
        ...

    async def observe(self, agent: str, serial: int, timeout_s: float) -> AgentReport: ...

    async def follow_loads(self, agent: str, timeout_s: float) -> NodeLoads: ...

    async def inspect(self, request: InspectBuild) -> InspectReport:
        """Raises Ending."""
        ...

    async def resolve_packages(self, request: ResolvePackages, tell: Tell) -> PackageLock:
        """Raises Ending, and CortexError with what the user has to know."""
        ...

    async def install_packages(self, request: InstallPackages, tell: Tell) -> None:
        """Raises Ending, and CortexError with what the user has to know."""
        ...

    async def sweep_packages(self, in_use: tuple[str, ...]) -> tuple[str, ...]: ...

    async def read_logs(self, request: ReadLogs) -> LogLines: ...
    async def count_now(self) -> AgentReport: ...
    def stop(self, drain_timeout_s: float) -> None: ...


async def serve(path: Path, service: AgentService) -> asyncio.Server:
    """
    Listen on the agent's socket, mode 0600, in place of whatever was there.

    Raises:
        OSError: it cannot be bound.
    """

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await talk(reader, writer, service)
        except (OSError, asyncio.CancelledError):
            pass  # the peer left, or we end
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    return await asyncio.start_unix_server(connected, sock=bind_unix(path, BACKLOG, at_once=True), backlog=BACKLOG)


async def talk(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    service: AgentService,
    note: Callable[[bool], None] = lambda _: None,
) -> None:
    """
    Answer on a connection, one request after the other.

    Args:
        note: called with whether a request is being answered, each time that this changes.

    Raises:
        OSError: the peer is gone.
    """
    frames = FrameReader()
    while True:
        while (frame := frames.take(await reader.read(frames.wanted))) is None:
            pass

        def tell(message: str) -> None:
            if not writer.is_closing():
                _write(writer, PackageProgress(message=message))

        note(True)
        answering = asyncio.ensure_future(_answer(frame[0], service, tell))
        called_off = asyncio.ensure_future(_called_off(reader, answering))
        try:
            reply = await answering
        finally:
            answering.cancel()
            called_off.cancel()
            await asyncio.wait([called_off])
        _write(writer, reply)
        note(False)
        await writer.drain()


async def _called_off(reader: asyncio.StreamReader, answering: asyncio.Future[AgentReply]) -> None:
    """
    End the answer to a request that its sender takes back. One that only dies does not: its successor asks the same.
    """
    if await reader.read(len(NEVER_MIND)) == NEVER_MIND:
        answering.cancel()


def _write(writer: asyncio.StreamWriter, reply: AgentReply) -> None:
    writer.write(framed(msgspec.json.encode(reply)))


def _observed(report: AgentReport, known: KnownRoutes | None) -> Observed:
    if known is None or not known.covers(report.routes_revision):
        return Observed(report=report)
    return Observed(report=msgspec.structs.replace(report, routes=(), routes_known=True))


async def _answer(payload: bytes, service: AgentService, tell: Tell) -> AgentReply:
    try:
        request = _REQUESTS.decode(payload)
    except UNREADABLE as error:
        return Refused(reason=f"the agent does not understand the request: {error}")
    try:
        match request:
            case Observe(agent=agent, serial=serial, timeout_s=timeout_s, known=known):
                return _observed(await service.observe(agent, serial, timeout_s), known)
            case FollowLoads(agent=agent, timeout_s=timeout_s):
                return FollowedLoads(loads=await service.follow_loads(agent, timeout_s))
            case GiveOrders(orders=orders, turn=turn, known=known):
                return _observed(service.take_orders(orders, turn), known)
            case InspectBuild():
                return InspectedBuild(report=await service.inspect(request))
            case ResolvePackages():
                return ResolvedPackages(lock=await service.resolve_packages(request, tell))
            case InstallPackages():
                await service.install_packages(request, tell)
                return InstalledPackages()
            case SweepPackages(in_use=in_use):
                return SweptPackages(removed=await service.sweep_packages(in_use))
            case ReadLogs():
                return await service.read_logs(request)
            case CountNow(known=known):
                return _observed(await service.count_now(), known)
            case StopAgent(drain_timeout_s=drain_timeout_s):
                service.stop(drain_timeout_s)
                return Stopping()
    except OutdatedOrders as error:
        return Refused(reason=str(error), stale_epoch=True)
    except OvertakenOrders as error:
        return Refused(reason=str(error))
    except AgentEnding:
        return Refused(reason="the agent is ending")
    except CortexError as error:
        if isinstance(request, ResolvePackages | InstallPackages):
            return PackagesRefused(problem=error.problem())
        log.exception("a request failed: %s", type(request).__name__)
        return Refused(reason=f"the agent failed: {error}")
    except OSError as error:
        log.warning("a request failed, %s: %s", type(request).__name__, error)
        return Refused(reason=f"the agent failed: {error}")
    except Exception as error:
        log.exception("a request failed through a fault of ours: %s", type(request).__name__)
        return Refused(reason=f"the agent failed: {error}")


_REQUESTS: msgspec.json.Decoder[AgentRequest] = msgspec.json.Decoder(AgentRequest)
