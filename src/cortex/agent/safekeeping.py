"""The agent's side of the keeper: started when missing, given each slot's socket, asked for them after our restart."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import subprocess

import msgspec

from cortex import processes
from cortex.agent import peers
from cortex.ids import ReplicaId
from cortex.oom import Rung
from cortex.processes import ProcessIdentity
from cortex.settings import NodeLayout
from cortex.wire.framing import close_all
from cortex.wire.keeper import HoldSocket, KeeperReply, KeeperRequest, Quit, Release, SlotHeld, Slots, SlotsEnd

log = logging.getLogger(__name__)

START_DEADLINE_S = 10.0
RECOVERY_TIMEOUT_S = 5.0
QUIT_TIMEOUT_S = 2.0


class Safekeeping:
    """
    Our connection to the keeper.

    Holding is a second line of defence: when the keeper is away, everything goes on, and it is given all slots again as
    soon as it is back.
    """

    def __init__(self, layout: NodeLayout) -> None:
        self._layout = layout
        self._channel: peers.Peer | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._identity: ProcessIdentity | None = None
        """Of the keeper that we were connected to last."""
        self._held: dict[ReplicaId, socket.socket] = {}
        self._recovered: dict[ReplicaId, socket.socket] = {}
        self._recovery: asyncio.Future[None] | None = None

    @property
    def pid(self) -> int | None:
        """Of the keeper, while it runs as our child. Collects its end."""
        if self._process is not None and self._process.poll() is not None:
            self._process = None
        return self._process.pid if self._process is not None else None

    async def keep(self) -> None:
        """Have a keeper, connected, holding every slot; called at start and from time to time."""
        if self._channel is not None:
            return
        deadline_s = asyncio.get_running_loop().time() + START_DEADLINE_S
        while self._channel is None:
            try:
                self._channel = await peers.connect(
                    self._layout.keeper_socket, on_frame=self._received, on_close=self._lost, timeout_s=2.0
                )
            except OSError:
                if asyncio.get_running_loop().time() > deadline_s:
                    log.error("the keeper does not start; see %s", self._layout.logs / "keeper.out")
                    return
                self._ensure_process()
                await asyncio.sleep(0.02)
        self._identity = processes.identify(self._channel.listener_pid)
        for replica, slot in tuple(self._held.items()):
            self._send(HoldSocket(replica=replica), slot)

    async def recover(self) -> dict[ReplicaId, socket.socket]:
        """The sockets that it held while there was no agent. The caller owns them."""
        await self.keep()
        if self._channel is None:
            return {}
        self._recovery = asyncio.get_running_loop().create_future()
        self._send(Slots())
        try:
            with contextlib.suppress(TimeoutError, ConnectionError):
                async with asyncio.timeout(RECOVERY_TIMEOUT_S):
                    await self._recovery
        finally:
            self._recovery = None
        recovered, self._recovered = self._recovered, {}
        return recovered

    def hold(self, replica: ReplicaId, slot: socket.socket) -> None:
        """Give it a copy of a slot's socket."""
        self._held[replica] = slot
        self._send(HoldSocket(replica=replica), slot)

    def release(self, replica: ReplicaId) -> None:
        """The slot is gone for good."""
        self._held.pop(replica, None)
        self._send(Release(replica=replica))

    async def stop(self) -> None:
        """End the keeper and everything it holds."""
        self._held.clear()
        self._send(Quit())
        identity = self._identity
        if self._process is not None and self._process.poll() is None:
            identity = processes.identify(self._process.pid)
        if identity is not None:
            await asyncio.to_thread(processes.ends_within, identity, QUIT_TIMEOUT_S)
            processes.send_signal(identity, signal.SIGKILL)
        if self._process is not None:
            await asyncio.to_thread(self._process.wait)
        self.close()
        self._layout.keeper_socket.unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of the keeper, which goes on holding."""
        if self._channel is not None:
            self._channel.close()

    def _send(self, request: KeeperRequest, *slots: socket.socket) -> None:
        if self._channel is not None:
            self._channel.send(msgspec.json.encode(request), [slot.fileno() for slot in slots])

    def _ensure_process(self) -> None:
        if self.pid is not None:
            return
        command = processes.module_command("cortex.agent.keeper", self._layout.keeper_socket, self._layout.home)
        self._process = processes.spawn(command, output=self._layout.logs / "keeper.out", by=Rung.NODE, to=Rung.NODE)

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
