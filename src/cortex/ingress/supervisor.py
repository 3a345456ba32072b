"""
Keeps HAProxy running and routing as wanted. What the agent talks to.

Workers come in generations: to change what commands cannot change (pool size, listening address, version), a new
worker is started beside the old one on the same listening socket; the old one stops listening, gets every further
command as well, and ends when its last client has gone. All tiers (`configuration.Tier`) live by the same rules.

What must survive our own death is with HAProxy (routes, servers, listening sockets) or in `ingress.json` (which
processes are ours, and where the servers' sockets are, which HAProxy does not tell).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import resource
import signal
import socket
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import msgspec

from cortex.binding import leads_somewhere
from cortex.certificates import fingerprint
from cortex.clock import Clock
from cortex.errors import CortexError
from cortex.ingress import generations, handover
from cortex.ingress.configuration import (
    IngressLimits,
    Tier,
    WorkerPeering,
    configuration_digest,
    max_clients,
    parse_entry,
    server_name,
)
from cortex.ingress.counters import ApiRefusals, ApiTraffic
from cortex.ingress.errors import AdminUnreachable, CommandsRefused, IngressDown, IngressStartFailed, StillInRotation
from cortex.ingress.files import IngressFiles
from cortex.ingress.generations import IngressTimes
from cortex.ingress.handover import ListenAddress
from cortex.ingress.listeners import Listeners, stop_listening
from cortex.ingress.peers import IngressPeer, Peering, PeerPlaces, check_peers
from cortex.ingress.pool import NOWHERE, HeldPool, Pool
from cortex.ingress.process import find_haproxy
from cortex.ingress.routes import IngressRoute, check_unique
from cortex.ingress.runtime import AdminSocket
from cortex.ingress.workers import Blueprint, Wanted, Worker, Workers
from cortex.processes import send_signal

log = logging.getLogger(__name__)

POOL_SIZE = 512
"""Source: 512 empty backends cost about 4 MB and 3 ms of start in each worker (bench: 12 MB with two backends)."""
ATTEMPTS = 3
QUIET_POLL_S = 0.02
FRESH_S = 0.4
"""So old may be what is known of the traffic for who asks: those who follow it each half second get the same."""


class IngressStatus(msgspec.Struct, frozen=True):
    """How the ingress is."""

    up: bool
    """A worker takes public connections."""
    pid: int | None
    """Of that worker."""
    addresses: tuple[tuple[str, int], ...] = ()
    """Host and port of every public socket."""
    workers: int = 0
    """HAProxy processes, those that are being replaced included."""
    pool_size: int = 0
    reloads: int = 0
    """How often workers were replaced on purpose since our start."""
    restarts: int = 0
    """How often a worker ended by itself and was started again since our start."""
    last_error: str = ""


class TrafficReading(msgspec.Struct, frozen=True):
    """What had come to the ingress at one instant."""

    at_s: float
    """Monotonic seconds."""
    apis: tuple[ApiTraffic, ...]
    """Those that are routed."""


class Ingress:
    """
    The HTTP door of this node.

    Args:
        directory: folder for configuration, maps, logs and `ingress.json`; created with mode 0700.
        sockets: folder with a short path for unix sockets; by default `directory`.
        listen: public addresses. They are bound here and outlive HAProxy; after a restart of this process they are
            taken back from the running HAProxy.
        bound: sockets that whoever started us has bound to those addresses.
        clock: for backoff and deadlines.
        limits: how HAProxy is dimensioned.
        times: how often is looked, and what is waited for.
        pool_size: APIs that can come and go without replacing a worker.
        probe_token: what makes a request a probe (`configuration`); empty: nothing does.
        peering: where and how doors of other nodes are listened for; None: there are none.
        fd_limit: open files HAProxy may have; by default the hard limit of this process.
        on_change: called without arguments in the event loop after `status()` changed.
        admin: makes the client of a worker's admin socket.
    """

    def __init__(
        self,
        *,
        directory: Path,
        listen: Sequence[ListenAddress],
        clock: Clock,
        sockets: Path | None = None,
        bound: Sequence[socket.socket] = (),
        limits: IngressLimits | None = None,
        times: IngressTimes | None = None,
        pool_size: int = POOL_SIZE,
        probe_token: str = "",
        peering: Peering | None = None,
        fd_limit: int | None = None,
        on_change: Callable[[], None] | None = None,
        admin: Callable[[Path], AdminSocket] = AdminSocket,
    ) -> None:
        self._files = IngressFiles(directory, sockets or directory)
        for_peers = ListenAddress(peering.host, peering.port) if peering else None
        behind = {Tier.BULK: (self._files.bulk_socket,), Tier.HOLD: self._files.hold_sockets}
        self._listeners = Listeners(listen, behind, bound, for_peers)
        self._clock = clock
        self._limits = limits or IngressLimits()
        self._tiers = self._limits.tiers(peers=peering is not None)
        self._times = times or IngressTimes()
        self._probe_token = probe_token
        self._peering = peering
        self._fd_limit = fd_limit
        self._on_change = on_change
        self._wake = asyncio.Event()
        self._workers = Workers(
            files=self._files,
            listeners=self._listeners,
            clock=clock,
            times=self._times,
            admin=admin,
            wake=self._wake.set,
        )
        self._workers.wanted = Wanted(pool=Pool(size=pool_size))
        self._blueprint: Blueprint | None = None
        self._binary, self._version, self._clients = Path(), "", 0
        self._shown: IngressStatus | None = None
        self._traffic: TrafficReading | None = None
        self._running = False
        self._ended = False
        self._lock = asyncio.Lock()
        self._keeper: asyncio.Task[None] | None = None

    # ---- life ---------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """
        Adopt the workers that run, replace those that are not as wanted, start what is missing, and keep it so.

        Until the first `apply`, the routes last applied stay in force. Safe to call again after it failed.

        Raises:
            HaproxyMissing: no binary; the hint says what to install.
            HaproxyUnsupported: it is too old or does not run here.
            PortTaken: something else listens on a public address.
            PathTooLong: the folder for sockets is too deep.
            TooFewFiles: the limit of open files leaves no room for clients.
            IngressStartFailed: HAProxy ended while starting; carries what it said.
            OSError: certificates for peers cannot be read.
        """
        async with self._lock:
            if self._running:
                return
            try:
                self._files.prepare()
                clients = max_clients(self._fd_limit or _hard_fd_limit(), frontends=2 if self._peering else 1)
                binary, version = await asyncio.to_thread(find_haproxy)
                await self._recover(clients, binary, version)
            except BaseException:
                # What was adopted goes on; only our hold on it is given up, so that start() can be tried again.
                self._let_go()
                raise
            self._running, self._ended = True, False
            self._keeper = asyncio.create_task(self._keep(), name="ingress")
        self._show()

    async def apply(self, routes: Sequence[IngressRoute], peers: Sequence[IngressPeer] = ()) -> None:
        """
        Make these the routes, by as few commands as possible; returns when every worker has them.

        Servers come before the routes that need them and leave after the routes that had them; a server that
        leaves finishes what it has (`quiesced`).

        Args:
            peers: the doors of other nodes, at least those that a route names.

        Raises:
            ValueError: two routes share an api, a path or a server, one names a peer that is not there, or there are
                peers and no `peering`; nothing was changed.
            IngressDown: HAProxy is not running and not to be started yet; it will start with these routes.
            IngressError: a worker did not take its commands; they are given again until it does.
        """
        check_unique(routes)
        check_peers({route.api: route.peers for route in routes}, peers)
        if peers and self._peering is None:
            raise ValueError("nobody has said how peers are reached")
        async with self._lock:
            if not self._running:
                raise IngressDown("the ingress was not started", after_s=1.0)
            workers, before = self._workers, self._workers.wanted
            workers.wanted = msgspec.structs.replace(before, routes=tuple(routes), peers=tuple(peers))
            changed = (workers.wanted.routes, workers.wanted.peers) != (before.routes, before.peers)
            try:
                await self._settle()
            finally:
                if changed:
                    workers.record()
                self._wake.set()
        self._show()

    async def renew(self) -> None:
        """
        Have workers that know the certificates as they are now, if those that run know others.

        Raises:
            OSError: they cannot be read.
            IngressError: a worker could not be replaced; that is tried again.
        """
        async with self._lock:
            if self._running:
                self._draw_up()
                await self._settle()
        self._show()

    async def quiesced(self, server: str) -> None:
        """
        Wait until no request is at a server and none can come: from then on its process may end.

        Idle connections do not count; they close when the process ends.

        Args:
            server: `IngressServer.name`. One that no worker knows is quiet.

        Raises:
            StillInRotation: a wanted route has it.
        """
        quiet = 0
        # Two looks: with several threads, a request may have been given a server and not yet be counted there.
        while quiet < 2:
            async with self._lock:
                quiet = quiet + 1 if await self._is_quiet(server) else 0
            if quiet < 2:
                await asyncio.sleep(QUIET_POLL_S)

    async def abandon(self, server: str) -> None:
        """
        Answer 503 to the requests that wait at a server which left rotation and will not come back.

        For a held server whose replacement did not come: its requests wait in the backlog of its socket and would
        otherwise wait for their whole timeout. Answers that have begun are cut off.

        Raises:
            StillInRotation: a wanted route has it.
        """
        async with self._lock:
            self._require_out_of_rotation(server)
            for worker in self._workers.live():
                with self._workers.noting_errors(worker):
                    holdings = await self._workers.holdings(worker)
                    await worker.admin.run(
                        f"shutdown sessions server {address}"
                        for address in holdings.servers
                        if server_name(address.key) == server
                    )

    def look(self) -> None:
        """
        Have workers go on that somebody has stopped: nobody else takes their requests. To be called every now and then,
        whatever else goes on, which may be waiting for them.
        """
        for worker in self._workers.live():
            worker.process.look(self._clock.monotonic_s())

    async def refusals(self) -> tuple[ApiRefusals, ...]:
        """
        What the ingress answered itself, by process and api; processes that ended since our start are included.

        The counters of a process that was killed are those last read.
        """
        async with self._lock:
            await asyncio.gather(*(self._count(worker) for worker in self._workers.live()))
            if any(worker.holdings is None for worker in self._workers.all):
                self._wake.set()  # one that does not answer is to be looked at
            return self._workers.counters.rows()

    async def traffic(self) -> TrafficReading:
        """
        What has come for each api since our start, and waits now. HAProxy is asked at most each `FRESH_S`.

        Of a worker that does not answer it is what it said last; what came since to one that was killed is not known.
        """
        async with self._lock:
            now_s = self._clock.monotonic_s()
            if self._traffic is None or now_s - self._traffic.at_s >= FRESH_S:
                await asyncio.gather(*(self._watch(worker) for worker in self._workers.live()))
                apis = self._workers.traffic.rows(self._workers.wanted.pool.apis)
                # Between question and answer: on a busy machine either may take as long.
                self._traffic = TrafficReading(at_s=(now_s + self._clock.monotonic_s()) / 2, apis=apis)
            return self._traffic

    def routes(self) -> tuple[IngressRoute, ...]:
        """Those last applied, by whoever was here before us if not by us."""
        return self._workers.wanted.routes

    def status(self) -> IngressStatus:
        """How it is now, without asking HAProxy."""
        workers = self._workers
        door = workers.current(Tier.DOOR)
        return IngressStatus(
            up=self._running and door is not None,
            pid=door.process.pid if door else None,
            addresses=self._listeners.addresses(),
            workers=len(workers.all),
            pool_size=workers.wanted.pool.size,
            reloads=workers.reloads,
            restarts=workers.restarts,
            last_error=workers.last_error,
        )

    def pids(self) -> frozenset[int]:
        """Processes that are waited for here and nowhere else."""
        return frozenset(worker.process.pid for worker in self._workers.all)

    async def stop(self, drain_timeout_s: float) -> None:
        """
        End the ingress: 1. it stops listening, and who is held is told that nobody comes; 2. requests in flight finish,
        for at most `drain_timeout_s`; 3. the remaining connections are cut, and logged how many; 4. processes end;
        5. files go.
        """
        await self._stop_keeping()
        async with self._lock:
            self._running = False
            workers = self._workers.live()
            for worker in workers:
                with self._workers.noting_errors(worker):
                    await worker.admin.run(f"shutdown frontend {frontend}" for frontend in worker.frontends)
                    await self._workers.give_up_held(worker)
            self._listeners.stop_public()
            deadline_s = self._clock.monotonic_s() + drain_timeout_s
            while (requests := await self._requests_in_flight()) and self._clock.monotonic_s() < deadline_s:
                await asyncio.sleep(QUIET_POLL_S)
            if requests:
                log.warning("%d requests were still running after %g s and are cut", requests, drain_timeout_s)
            for worker in workers:
                await self._count(worker)
            await self._workers.end()
            self._let_go()
            for known in self._files.read().workers:
                send_signal(known.identity, signal.SIGTERM)  # of an earlier life, should start() never have succeeded
            self._files.remove_all()  # also of one that was just being started, and of that life
            self._ended = True
        self._show()

    async def detach(self) -> None:
        """Stop looking after HAProxy and leave it running: the next `start`, of any process, adopts it."""
        await self._stop_keeping()
        async with self._lock:
            self._running = False
            self._let_go()

    # ---- the one tick -------------------------------------------------------------------------------------------

    async def _settle(self) -> None:
        """
        Bring everything to what is wanted: workers, pool size, routes. Repairs whatever a crash left half done.

        A worker that ends or refuses a command in the middle is looked at anew and the whole is tried again.
        """
        for attempt in itertools.count(1):
            down: IngressDown | IngressStartFailed | None = None
            try:
                try:
                    await self._ensure_workers()
                except (IngressDown, IngressStartFailed) as error:
                    down = error  # the workers there are get their commands all the same
                assert self._blueprint is not None
                await self._workers.converge(self._tiers, self._blueprint.peering)
            except (AdminUnreachable, CommandsRefused) as error:
                self._workers.note(error)
                if attempt == ATTEMPTS:
                    raise
            else:
                if down is not None:
                    raise down
                return

    async def _ensure_workers(self) -> None:
        assert self._blueprint is not None
        workers = self._workers
        workers.drop_ended()
        workers.note_cut_off(self._listeners.renew())
        pool = workers.wanted.pool.placed(route.api for route in workers.wanted.routes)
        places = workers.wanted.places.placed(peer.name for peer in workers.wanted.peers)
        workers.wanted = msgspec.structs.replace(workers.wanted, pool=pool, places=places)
        if self._blueprint.peering is not None and self._blueprint.peering.places != places.size:
            self._draw_up()
        down: IngressDown | IngressStartFailed | None = None
        for step in generations.changes(workers.live(), self._tiers, self._blueprint.digest, pool.size):
            try:
                await workers.carry_out(step, self._blueprint)
            except (IngressDown, IngressStartFailed) as error:
                down = error
        if down is not None:
            raise down

    # ---- adoption -----------------------------------------------------------------------------------------------

    async def _recover(self, clients: int, binary: Path, version: str) -> None:
        """Find the workers of an earlier life, take back the listening sockets, and read what is routed."""
        workers = self._workers
        record = self._files.read()
        peers = record.peers if self._peering else ()
        places = PeerPlaces(owners=record.places) if self._peering else PeerPlaces()
        workers.wanted = msgspec.structs.replace(
            workers.wanted, routes=record.routes_today(), peers=peers, places=places.placed(peer.name for peer in peers)
        )
        found, strangers = await workers.adopt(record)
        if not workers.all:
            # Who took HAProxy away may have taken replicas as well, and nobody is to be sent where nobody listens.
            workers.wanted = msgspec.structs.replace(workers.wanted, routes=_with_listeners(workers.wanted.routes))
        surplus = await self._take_back(found)
        self._binary, self._version, self._clients = binary, version, clients
        self._draw_up()
        # The youngest door is asked last, so that it is right.
        ours = sorted(workers.all, key=lambda worker: (worker.name.tier is Tier.DOOR, worker.name.generation))
        pool = workers.wanted.pool.recovered([await self._held_pool(worker) for worker in ours])
        workers.wanted = msgspec.structs.replace(workers.wanted, pool=pool)
        await self._settle()
        for worker in strangers:
            # Of another version of ours: it cannot be given commands, so it finishes with what it knows.
            worker.process.signal(signal.SIGUSR1)
            worker.process.close()
        for listener in surplus:
            stop_listening(listener)

    def _draw_up(self) -> None:
        """Say what workers are started from; those that were started from something else are replaced."""
        limits, listeners = self._limits, self._listeners
        peering = None
        if self._peering is not None:
            certificate, authority = self._peering.certificate, self._peering.authority
            peering = WorkerPeering(
                bind=listeners.peer_bind(),
                certificate=certificate,
                authority=authority,
                fingerprint=fingerprint(certificate, authority),
                places=self._workers.wanted.places.size,
                hold_sockets=self._files.hold_sockets,
                nobody_socket=self._files.nobody_socket,
            )
        binds = {tier: listeners.binds(tier) for tier in self._tiers}
        digest = configuration_digest(
            binds, self._files.sockets, self._clients, limits, self._version, self._probe_token, peering
        )
        self._blueprint = Blueprint(
            binary=self._binary,
            digest=digest,
            max_clients=self._clients,
            limits=limits,
            probe_token=self._probe_token,
            peering=peering,
        )

    async def _take_back(self, found: Sequence[Worker]) -> list[socket.socket]:
        """
        Take the listening sockets back from the workers that hold them, and bind those that nobody holds.

        Returns:
            Public sockets that are not wanted any more.
        """
        surplus: list[socket.socket] = []
        for worker in sorted(found, key=lambda worker: worker.name.generation, reverse=True):
            try:
                surplus += self._listeners.take_back(await asyncio.to_thread(handover.borrowed, worker.admin.path))
            except AdminUnreachable as error:
                self._workers.note(error)
        await self._listeners.bind_missing(self._tiers)
        return surplus

    async def _held_pool(self, worker: Worker) -> HeldPool:
        holdings = await self._workers.holdings(worker)
        entries = [entry for value in holdings.entries.values() if (entry := parse_entry(value)) is not None]
        busy = {address.backend for address in holdings.servers}
        rows = await worker.admin.backends()
        self._workers.traffic.pass_over(worker.instance, rows)
        busy |= {row.backend for row in rows if row.requests}
        return HeldPool(
            pool_size=worker.pool_size,
            owners={entry.api: entry.backend for entry in entries if entry.backend != NOWHERE},
            busy=frozenset(busy),
        )

    # ---- in the background --------------------------------------------------------------------------------------

    async def _keep(self) -> None:
        """Restart what ended, clear what is done with, and see that HAProxy answers."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._pause_s()):
                    await self._wake.wait()
            self._wake.clear()
            try:
                async with self._lock:
                    await self._look_after()
            except IngressDown:
                pass  # noted when it happened, and tried again as soon as it may be
            except CortexError as error:
                self._workers.note(error)
            except Exception as error:
                self._workers.note(error)
                log.exception("looking after haproxy failed")
            self._show()

    def _pause_s(self) -> float:
        return generations.pause_s(
            self._workers.all,
            self._workers.due_s(self._tiers),
            is_vacating=bool(self._workers.wanted.pool.vacating),
            now_s=self._clock.monotonic_s(),
            times=self._times,
        )

    async def _look_after(self) -> None:
        problem: CortexError | None = None
        try:
            await self._settle()
        except CortexError as error:
            problem = error  # one tier that is down must not keep the other from being looked after
        for worker in self._workers.live():
            await self._workers.look_after(worker)
        await self._release_backends()
        if problem is not None:
            raise problem

    async def _release_backends(self) -> None:
        """Give backends back to the pool that no worker has servers or requests in."""
        workers, pool = self._workers, self._workers.wanted.pool
        if not pool.vacating:
            return
        used: set[int] = set()
        for worker in workers.live():
            used |= {address.backend for address in (await workers.holdings(worker)).servers}
            backends = sorted(backend for backend in pool.vacating if backend <= worker.pool_size)
            rows = await worker.admin.backends(backends)
            workers.traffic.pass_over(worker.instance, rows)
            used |= {row.backend for row in rows if row.requests}
        workers.wanted = msgspec.structs.replace(workers.wanted, pool=pool.released(used))

    async def _stop_keeping(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
            self._keeper = None

    # ---- small things -------------------------------------------------------------------------------------------

    async def _is_quiet(self, server: str) -> bool:
        self._require_out_of_rotation(server)
        if not self._running:
            return self._ended  # a worker that was not adopted yet may still send it requests
        for worker in self._workers.live():
            try:
                holdings = await self._workers.holdings(worker)
                addresses = {a: s for a, s in holdings.servers.items() if server_name(a.key) == server}
                if any(state.in_rotation for state in addresses.values()):
                    return False
                if addresses:
                    rows = await worker.admin.servers(sorted({address.backend for address in addresses}))
                    if any(row.requests for row in rows if row.address in addresses):
                        return False
            except (AdminUnreachable, CommandsRefused) as error:
                self._workers.note(error)
                if worker.process.alive():
                    return False
        return True

    async def _requests_in_flight(self) -> int:
        requests = 0
        for worker in self._workers.live():
            with self._workers.noting_errors(worker):
                requests += await worker.admin.requests()
        return requests

    async def _count(self, worker: Worker) -> None:
        with self._workers.noting_errors(worker):
            await self._workers.count(worker)

    async def _watch(self, worker: Worker) -> None:
        with self._workers.noting_errors(worker):
            await self._workers.watch(worker)

    def _require_out_of_rotation(self, server: str) -> None:
        if any(server == wanted.name for route in self._workers.wanted.routes for wanted in route.servers):
            raise StillInRotation(server)

    def _let_go(self) -> None:
        """Close everything of ours; processes are left as they are."""
        self._workers.let_go()
        self._listeners.close()
        pool = self._workers.wanted.pool
        self._workers.wanted = msgspec.structs.replace(
            self._workers.wanted, pool=Pool(size=pool.size), places=PeerPlaces()
        )

    def _show(self) -> None:
        status = self.status()
        if status != self._shown:
            self._shown = status
            if self._on_change is not None:
                self._on_change()


def _with_listeners(routes: Iterable[IngressRoute]) -> tuple[IngressRoute, ...]:
    """The routes without servers whose sockets lead nowhere any more."""
    return tuple(
        msgspec.structs.replace(
            route, servers=tuple(server for server in route.servers if leads_somewhere(Path(server.socket)))
        )
        for route in routes
    )


def _hard_fd_limit() -> int:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return 2**20 if limit == resource.RLIM_INFINITY else limit
