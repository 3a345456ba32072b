"""The agent's side of the keeper: started when missing, given each slot's socket, asked for them after our restart."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import subprocess
import sys

import msgspec

from cortex.agent import channel
from cortex.ids import ReplicaId
from cortex.settings import HomeLayout
from cortex.wire.framing import close_all
from cortex.wire.keeper import Hold, KeeperReply, KeeperRequest, Quit, Release, SlotHeld, Slots, SlotsEnd

log = logging.getLogger(__name__)

START_DEADLINE_S = 20.0
RECOVERY_TIMEOUT_S = 5.0


class Safekeeping:
    """
    Our connection to the keeper.

    Holding is a second line of defence: when the keeper is away, everything goes on, and it is given all slots again as
    soon as it is back.
    """

    def __init__(self, layout: HomeLayout) -> None:
        self._layout = layout
        self._channel: channel.Channel | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._held: dict[ReplicaId, socket.socket] = {}
        self._recovered: dict[ReplicaId, socket.socket] = {}
        self._recovery: asyncio.Future[None] | None = None

    @property
    def pid(self) -> int | None:
        """Of the keeper, if it is our child."""
        return self._process.pid if self._process is not None else None

    async def keep(self) -> None:
        """Have a keeper, connected, holding every slot; called at start and from time to time."""
        if self._channel is not None:
            return
        deadline_s = asyncio.get_running_loop().time() + START_DEADLINE_S
        while self._channel is None:
            try:
                self._channel = await channel.connect(
                    self._layout.keeper_socket, on_frame=self._received, on_close=self._lost, timeout_s=2.0
                )
            except OSError:
                if asyncio.get_running_loop().time() > deadline_s:
                    log.error("the keeper does not start; see %s", self._layout.logs / "keeper.out")
                    return
                self._ensure_process()
                await asyncio.sleep(0.02)
        for replica, slot in self._held.items():
            self._channel.send(msgspec.json.encode(Hold(replica=replica)), (slot.fileno(),))

    async def recover(self) -> dict[ReplicaId, socket.socket]:
        """The sockets that it held while there was no agent. The caller owns them."""
        await self.keep()
        if self._channel is None:
            return {}
        self._recovery = asyncio.get_running_loop().create_future()
        self._send(Slots())
        with contextlib.suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(RECOVERY_TIMEOUT_S):
                await self._recovery
        self._recovery = None
        recovered, self._recovered = self._recovered, {}
        return recovered

    def hold(self, replica: ReplicaId, slot: socket.socket) -> None:
        """Give it a copy of a slot's socket."""
        self._held[replica] = slot
        if self._channel is not None:
            self._channel.send(msgspec.json.encode(Hold(replica=replica)), (slot.fileno(),))

    def release(self, replica: ReplicaId) -> None:
        """The slot is gone for good."""
        self._held.pop(replica, None)
        self._send(Release(replica=replica))

    async def stop(self) -> None:
        """End the keeper and everything it holds."""
        self._held.clear()
        self._send(Quit())
        if self._process is not None:
            await asyncio.to_thread(self._process.wait)
        deadline_s = asyncio.get_running_loop().time() + 2.0
        while self._channel is not None and asyncio.get_running_loop().time() < deadline_s:
            await asyncio.sleep(0.01)

    def _send(self, request: KeeperRequest) -> None:
        if self._channel is not None:
            self._channel.send(msgspec.json.encode(request))

    def _ensure_process(self) -> None:
        if self._process is not None and self._process.poll() is None:
            return
        with (self._layout.logs / "keeper.out").open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "cortex.agent.keeper", str(self._layout.keeper_socket), str(self._layout.home)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd="/",
                start_new_session=True,
            )

    def _received(self, payload: bytes, fds: list[int]) -> None:
        match _REPLIES.decode(payload):
            case SlotHeld(replica=replica) if fds and self._recovery is not None:
                self._recovered[replica] = socket.socket(fileno=fds.pop(0))
            case SlotsEnd() if self._recovery is not None and not self._recovery.done():
                self._recovery.set_result(None)
            case _:
                pass
        close_all(fds)

    def _lost(self) -> None:
        self._channel = None
        if self._recovery is not None and not self._recovery.done():
            self._recovery.set_exception(ConnectionResetError("the keeper ended"))


_REPLIES: msgspec.json.Decoder[KeeperReply] = msgspec.json.Decoder(KeeperReply)
