"""
The keeper: a process that does nothing but hold copies of the slots' listening sockets.

`python -m cortex.agent.keeper SOCKET HOME`. Requests wait in a listening socket's backlog for as long as any process
holds the socket. Agent, launcher and replica do work and may die of it, even all at once; this one has nothing to die
of. It outlives agents, and ends when told to, or when it has held nothing and nobody has been connected for a while.
"""

from __future__ import annotations

import os
import select
import socket
import sys
from pathlib import Path

import msgspec
import setproctitle

from cortex import polling, processes
from cortex.binding import CONTROL_BACKLOG, bind_unix
from cortex.ids import ReplicaId
from cortex.wire.framing import UNREADABLE, close_all, receive_frame, send_frame
from cortex.wire.keeper import HoldSocket, KeeperRequest, Quit, Release, SlotHeld, Slots, SlotsEnd

IDLE_LIMIT_S = 60.0
"""With nothing to hold and nobody connected for this long, there is no node to keep anything for."""
FRAME_TIMEOUT_S = 5.0
"""A peer that stops in the middle of a frame is let go."""
LOCK_SUFFIX = ".lock"
"""Of the file beside the socket that the one keeper of a home holds locked for life."""


class Keeper:
    """Holds sockets for whoever connects; one loop, no threads."""

    def __init__(self, listener: socket.socket, *, idle_limit_s: float = IDLE_LIMIT_S) -> None:
        self._listener = listener
        self._idle_limit_s = idle_limit_s
        self._peers: list[socket.socket] = []
        self._held: dict[ReplicaId, int] = {}
        self._asking: set[socket.socket] = set()
        """Peers that want to be told what is held."""
        self._quit = False

    def run(self) -> None:
        """Serve until told to quit, or idle for too long. Lets everything go at the end."""
        while not self._quit:
            ready = polling.wait(self._watched(), 0.0 if self._asking else self._idle_limit_s)
            speaking = [peer for peer in self._peers if peer.fileno() in ready]
            for peer in speaking:
                self._serve(peer)
            if self._asking and not speaking:
                self._tell()
            elif not ready and not self._held and not self._peers:
                break
            if self._listener.fileno() in ready and (new := polling.accept(self._listener)) is not None:
                new.settimeout(FRAME_TIMEOUT_S)
                self._peers.append(new)
        for peer in tuple(self._peers):
            self._drop(peer)
        for replica in tuple(self._held):
            self._let_go(replica)

    def _watched(self) -> dict[int, int]:
        return {sock.fileno(): select.POLLIN for sock in (self._listener, *self._peers)}

    def _serve(self, peer: socket.socket) -> None:
        """Take one frame of a peer's."""
        try:
            payload, fds = receive_frame(peer)
            try:
                self._obey(peer, _REQUESTS.decode(payload), fds)
            finally:
                close_all(fds)
        except (OSError, *UNREADABLE):
            self._drop(peer)

    def _obey(self, peer: socket.socket, request: KeeperRequest, fds: list[int]) -> None:
        """Takes out of `fds` what is kept."""
        match request:
            case HoldSocket(replica=replica) if fds:
                self._let_go(replica)
                self._held[replica] = fds.pop(0)
            case Release(replica=replica):
                self._let_go(replica)
            case Slots():
                self._asking.add(peer)
            case Quit():
                self._quit = True

    def _tell(self) -> None:
        """
        Answer whoever asked what is held, now that nobody has anything left to say.

        A new agent asks on a connection of its own, and what the one before it said last may still be unread on the
        other: a slot that was let go must not come back.
        """
        asking, self._asking = self._asking, set()
        for peer in asking:
            try:
                for replica, fd in self._held.items():
                    send_frame(peer, msgspec.json.encode(SlotHeld(replica=replica)), [fd])
                send_frame(peer, msgspec.json.encode(SlotsEnd()))
            except OSError:
                self._drop(peer)

    def _drop(self, peer: socket.socket) -> None:
        self._peers.remove(peer)
        self._asking.discard(peer)
        peer.close()

    def _let_go(self, replica: ReplicaId) -> None:
        fd = self._held.pop(replica, None)
        if fd is not None:
            os.close(fd)


_REQUESTS: msgspec.json.Decoder[KeeperRequest] = msgspec.json.Decoder(KeeperRequest)


def main(path: str, home: str) -> int:
    """Be the keeper of a home. Returns an exit code, at once if there is one already."""
    setproctitle.setproctitle(f"cortex-keeper {home}")
    if processes.hold_for_life(Path(path + LOCK_SUFFIX)) is None:
        return 0
    with bind_unix(Path(path), CONTROL_BACKLOG, at_once=True) as listener:
        Keeper(listener).run()
    Path(path).unlink(missing_ok=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
