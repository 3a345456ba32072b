"""The agent's unix socket: requests of the control plane in, replies out. Parses, calls one function, renders."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from pathlib import Path
from typing import Protocol

import msgspec

from cortex.wire.agent import (
    AgentReply,
    AgentRequest,
    GiveOrders,
    InspectBuild,
    InspectedBuild,
    LogLines,
    Observe,
    Observed,
    ReadLogs,
    Refused,
    StopAgent,
    Stopping,
)
from cortex.wire.framing import LENGTH, MAX_FRAME_BYTES
from cortex.wire.launch import InspectReport
from cortex.wire.orders import Orders
from cortex.wire.reports import AgentReport

log = logging.getLogger(__name__)


class StaleEpoch(Exception):
    """Orders from a control plane that is no longer in charge."""


class Service(Protocol):
    """What the socket's requests are passed on to; `app.Agent` is it."""

    def take_orders(self, orders: Orders) -> AgentReport:
        """Raises StaleEpoch."""
        ...

    async def observe(self, agent: str, serial: int, timeout_s: float) -> AgentReport: ...
    async def inspect(self, request: InspectBuild) -> InspectReport: ...
    async def read_logs(self, request: ReadLogs) -> LogLines: ...
    def stop(self, drain_timeout_s: float) -> None: ...


async def serve(path: Path, service: Service) -> asyncio.Server:
    """Listen on the agent's socket, mode 0600."""
    path.unlink(missing_ok=True)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await _talk(reader, writer, service)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the peer left, or we end
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    server = await asyncio.start_unix_server(connected, path)
    path.chmod(0o600)
    return server


async def _talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, service: Service) -> None:
    while True:
        head = await reader.read(LENGTH.size)
        if not head:
            return
        head += await reader.readexactly(LENGTH.size - len(head))
        (length,) = LENGTH.unpack(head)
        if length > MAX_FRAME_BYTES:
            return
        reply = await _answer(await reader.readexactly(length), service)
        payload = msgspec.json.encode(reply)
        writer.write(LENGTH.pack(len(payload)) + payload)
        await writer.drain()


async def _answer(payload: bytes, service: Service) -> AgentReply:
    try:
        request = _REQUESTS.decode(payload)
    except msgspec.MsgspecError as error:
        return Refused(reason=f"the agent does not understand the request: {error}")
    try:
        match request:
            case Observe(agent=agent, serial=serial, timeout_s=timeout_s):
                return Observed(report=await service.observe(agent, serial, timeout_s))
            case GiveOrders(orders=orders):
                return Observed(report=service.take_orders(orders))
            case InspectBuild():
                return InspectedBuild(report=await service.inspect(request))
            case ReadLogs():
                return await service.read_logs(request)
            case StopAgent(drain_timeout_s=drain_timeout_s):
                service.stop(drain_timeout_s)
                return Stopping()
    except StaleEpoch as error:
        return Refused(reason=str(error), stale_epoch=True)
    except Exception as error:
        log.exception("a request failed through a fault of ours: %s", type(request).__name__)
        return Refused(reason=f"the agent failed: {error}")


_REQUESTS: msgspec.json.Decoder[AgentRequest] = msgspec.json.Decoder(AgentRequest)
