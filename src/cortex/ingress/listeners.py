"""The listening sockets of a node's ingress: taken back from HAProxy where it has them, else bound; kept; given up."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from cortex.binding import bind_unix
from cortex.ingress import handover
from cortex.ingress.configuration import Tier
from cortex.ingress.handover import ListenAddress


class Listeners:
    """
    Those of all tiers. They are kept here so that they outlive HAProxy.

    Args:
        wanted: public addresses.
        for_peers: where other doors are listened for, if there are any; never with port 0.
        behind: where the tiers behind the door listen.
        bound: those that are there already.
    """

    def __init__(
        self,
        wanted: Sequence[ListenAddress],
        behind: Mapping[Tier, Sequence[Path]],
        bound: Sequence[socket.socket] = (),
        for_peers: ListenAddress | None = None,
    ) -> None:
        self._wanted = tuple(wanted)
        self._for_peers = for_peers
        self._peer: socket.socket | None = None
        self._behind = {tier: tuple(paths) for tier, paths in behind.items()}
        self._public: list[socket.socket] = []
        self._unix: dict[Path, socket.socket] = {}
        self._inodes: dict[Path, int | None] = {}
        """Of the paths; None: it leads nowhere."""
        for listener in bound:
            if not self._keeps(listener):
                listener.close()

    def of(self, tier: Tier) -> list[socket.socket]:
        if tier is Tier.DOOR:
            return [*self._public, *([self._peer] if self._peer else [])]
        return [self._unix[path] for path in self._behind[tier]]

    def binds(self, tier: Tier) -> tuple[str, ...]:
        """
        Arguments of HAProxy's `bind` by which a worker of a tier finds its sockets among those lent to it, but for the
        one for peers.
        """
        listeners = self._public if tier is Tier.DOOR else self.of(tier)
        return tuple(handover.bind_argument(listener) for listener in listeners)

    def peer_bind(self) -> str:
        """The one for peers, once it is bound."""
        assert self._peer is not None
        return handover.bind_argument(self._peer)

    def addresses(self) -> tuple[tuple[str, int], ...]:
        """Host and port of every public socket."""
        names = [listener.getsockname()[:2] for listener in self._public if listener.fileno() >= 0]
        return tuple((str(host), int(port)) for host, port in names)

    def take_back(self, borrowed: Iterable[socket.socket]) -> list[socket.socket]:
        """
        Keep those of a worker's sockets that are wanted and not here yet.

        Returns:
            Public ones that are not wanted any more: nobody shall listen there. The other ones are closed.
        """
        surplus: list[socket.socket] = []
        for listener in borrowed:
            if self._keeps(listener):
                continue
            if listener.family == socket.AF_UNIX or self._is_here(listener):
                listener.close()
            else:
                surplus.append(listener)
        return surplus

    async def bind_missing(self, tiers: Iterable[Tier]) -> None:
        """
        Bind what nobody holds.

        Raises:
            PortTaken: something else listens on a public address.
        """
        for address in self._wanted:
            if not self._has(address):
                self._public.append(await handover.bind_patiently(address))
        if self._for_peers is not None and self._peer is None:
            self._peer = await handover.bind_patiently(self._for_peers)
        for path in (path for tier in tiers for path in self._behind.get(tier, ()) if path not in self._unix):
            self._keep(path, bind_unix(path))

    def renew(self) -> set[Tier]:
        """
        Bind the sockets anew whose paths do not lead to them any more; returns the tiers of which that was so.

        Raises:
            OSError: one cannot be bound.
        """
        lost = {path for path in self._unix if _inode(path) != self._inodes[path]}
        for path in lost:
            before = self._unix[path]
            self._keep(path, bind_unix(path))
            before.close()
        return {tier for tier, paths in self._behind.items() if not lost.isdisjoint(paths)}

    def stop_public(self) -> None:
        """Take no new clients, whoever else has the sockets."""
        for listener in self.of(Tier.DOOR):
            stop_listening(listener)
        self._public, self._peer = [], None

    def close(self) -> None:
        """Hold them no longer; a HAProxy that has them goes on listening."""
        for listener in (*self.of(Tier.DOOR), *self._unix.values()):
            listener.close()
        self._public, self._peer, self._unix = [], None, {}

    def _keeps(self, listener: socket.socket) -> bool:
        if listener.family == socket.AF_UNIX:
            path = Path(listener.getsockname())
            if path in self._unix or not any(path in paths for paths in self._behind.values()):
                return False
            self._keep(path, listener)
            return True
        if self._for_peers is not None and handover.matches(listener, self._for_peers):
            if self._peer is None:
                self._peer = listener
                return True
            return False
        for address in self._wanted:
            if handover.matches(listener, address) and not self._has(address):
                self._public.append(listener)
                return True
        return False

    def _keep(self, path: Path, listener: socket.socket) -> None:
        self._unix[path], self._inodes[path] = listener, _inode(path)

    def _has(self, address: ListenAddress) -> bool:
        return any(handover.matches(listener, address) for listener in self._public)

    def _is_here(self, listener: socket.socket) -> bool:
        return any(listener.getsockname() == kept.getsockname() for kept in self.of(Tier.DOOR))


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None


def stop_listening(listener: socket.socket) -> None:
    """
    Close a listening socket for everyone who has it.

    HAProxy keeps its copy open as long as it runs; without the shutdown, clients would connect and wait for nothing.
    """
    with contextlib.suppress(OSError):
        listener.shutdown(socket.SHUT_RDWR)
    listener.close()
