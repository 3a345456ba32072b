"""
Keeps HAProxy running and routing as wanted. The only module of this package that the agent talks to.

Workers come in generations: to change what commands cannot change (pool size, listening address, version), a new
worker is started beside the old one on the same listening socket; the old one stops listening, gets every further
command as well, and ends when its last client has gone. Both tiers (`configuration.Tier`) live by the same rules.

What must survive our own death is with HAProxy (routes, servers, listening sockets) or in `ingress.json` (which
processes are ours, and where the servers' sockets are, which HAProxy does not tell).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import resource
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from cortex.clock import Clock, until_beat_s
from cortex.errors import CortexError
from cortex.ids import ApiKey
from cortex.ingress import handover
from cortex.ingress.configuration import (
    LAYOUT,
    IngressLimits,
    Refusal,
    Tier,
    WorkerConfiguration,
    configuration_digest,
    max_clients,
    parse_entry,
    render_configuration,
    render_map,
    server_name,
)
from cortex.ingress.convergence import Holdings, Steps, steps_between, wanted_of
from cortex.ingress.errors import (
    AdminUnreachable,
    CommandsRefused,
    IngressDown,
    IngressError,
    IngressStartFailed,
    PathTooLong,
    StillInRotation,
)
from cortex.ingress.handover import ListenAddress
from cortex.ingress.process import HaproxyProcess, find_haproxy, last_words
from cortex.ingress.routes import SOCKET_PATH_LIMIT_BYTES, IngressRoute, check_unique
from cortex.ingress.runtime import AdminSocket, SlotRow
from cortex.ingress.slots import NOWHERE, assign_slots, grown_pool_size
from cortex.ingress.workers import (
    Patience,
    Worker,
    WorkerName,
    WorkerRecord,
    next_generation,
    read_record,
    remove_leftovers,
    write_record,
)
from cortex.processes import boot_id, send_signal, write_whole

log = logging.getLogger(__name__)

POOL_SIZE = 512
"""Source: 512 empty backends cost about 4 MB and 3 ms of start in each worker (bench: 12 MB with two backends)."""
START_TIMEOUT_S = 10.0
ATTEMPTS = 3
QUIET_POLL_S = 0.02
RETIRED_POLL_S = 0.25
WATCH_S = 10.0
"""
How often everything is looked at when nothing is known to be done; who was not heard of since is asked whether it still
answers. The agent asks what was refused more often, and who does not answer that is looked at.
"""
DEAF_AFTER_S = 10.0
"""A worker that runs but has not answered for this long is killed and started again."""
SETTLED_AFTER_S = 10.0
"""A worker that ran this long had a good start: the next restart is at once."""
LEAVING_GRACE_S = 120.0
"""A replaced worker may live this much longer than the longest timeout of a route; then its connections are cut."""
LOG_LIMIT_BYTES = 4 * 2**20
REMEMBERED_INSTANCES = 16
"""Ended processes whose counters can still be read, so that a reader who comes once a second misses none."""
_LONGEST_SOCKET_NAME = "h-door-99999.sock"


class ApiRefusals(msgspec.Struct, frozen=True):
    """What one HAProxy process answered itself for one api. Cumulative: counters only grow while `instance` lives."""

    instance: str
    """Names the process: `<pid>-<start ticks>-<boot>`."""
    api: ApiKey
    counts: dict[Refusal, int]

    @property
    def client_error(self) -> int:
        """4xx."""
        return sum(n for refusal, n in self.counts.items() if refusal in _CLIENT_ERRORS)

    @property
    def server_error(self) -> int:
        """5xx."""
        return sum(self.counts.values()) - self.client_error


_CLIENT_ERRORS = frozenset(
    (Refusal.BAD_REQUEST, Refusal.METHOD_NOT_ALLOWED, Refusal.REQUEST_TIMEOUT, Refusal.BODY_TOO_LARGE)
)


class SlotTraffic(msgspec.Struct, frozen=True):
    """HAProxy's own counters of one pool backend. Cumulative per process *and slot*, whatever api the slot served."""

    instance: str
    api: ApiKey | None
    """Whose slot it is now."""
    row: SlotRow


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
    slots_used: int = 0
    reloads: int = 0
    """How often workers were replaced on purpose since our start."""
    restarts: int = 0
    """How often a worker ended by itself and was started again since our start."""
    last_error: str = ""


class Ingress:
    """
    The HTTP door of this node.

    Args:
        directory: folder for configuration, maps, logs and `ingress.json`; created with mode 0700.
        sockets: folder with a short path for unix sockets; by default `directory`.
        listen: public addresses. They are bound here and outlive HAProxy; after a restart of this process they are
            taken back from the running HAProxy.
        clock: for backoff and deadlines.
        limits: how HAProxy is dimensioned.
        pool_size: APIs that can come and go without replacing a worker.
        fd_limit: open files HAProxy may have; by default the hard limit of this process.
        on_change: called without arguments in the event loop after `status()` changed.
    """

    def __init__(
        self,
        *,
        directory: Path,
        listen: Sequence[ListenAddress],
        clock: Clock,
        sockets: Path | None = None,
        limits: IngressLimits | None = None,
        pool_size: int = POOL_SIZE,
        fd_limit: int | None = None,
        on_change: Callable[[], None] | None = None,
    ) -> None:
        self._directory = directory
        self._sockets = sockets or directory
        self._listen = tuple(listen)
        self._clock = clock
        self._limits = limits or IngressLimits()
        self._pool_size = pool_size
        self._fd_limit = fd_limit
        self._clients = 0
        self._on_change = on_change
        self._binary = Path()
        self._version = ""
        self._digest = ""
        self._public: list[socket.socket] = []
        self._bulk: socket.socket | None = None
        self._workers: list[Worker] = []
        self._routes: tuple[IngressRoute, ...] = ()
        self._slots: dict[ApiKey, int] = {}
        self._vacating: set[int] = set()
        self._patience = {tier: Patience() for tier in Tier}
        self._refusals: dict[str, tuple[ApiRefusals, ...]] = {}
        self._reloads = 0
        self._restarts = 0
        self._last_error = ""
        self._shown: IngressStatus | None = None
        self._running = False
        self._ended = False
        self._lock = asyncio.Lock()
        self._wake = asyncio.Event()
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
        """
        async with self._lock:
            if self._running:
                return
            self._prepare_folders()
            self._clients = max_clients(self._fd_limit or _hard_fd_limit())
            self._binary, self._version = await asyncio.to_thread(find_haproxy)
            try:
                await self._recover()
            except BaseException:
                # What was adopted goes on; only our hold on it is given up, so that start() can be tried again.
                self._let_go()
                raise
            self._running, self._ended = True, False
            self._keeper = asyncio.create_task(self._keep(), name="ingress")
        self._show()

    async def apply(self, routes: Sequence[IngressRoute]) -> None:
        """
        Make these the routes, by as few commands as possible; returns when every worker has them.

        Servers come before the routes that need them and leave after the routes that had them; a server that
        leaves finishes what it has (`quiesced`).

        Raises:
            ValueError: two routes share an api, a path or a server; nothing was changed.
            IngressDown: HAProxy is not running and not to be started yet; it will start with these routes.
            IngressError: a worker did not take its commands; they are given again until it does.
        """
        check_unique(routes)
        async with self._lock:
            self._require_running()
            wanted = tuple(routes)
            changed = wanted != self._routes
            self._routes = wanted
            try:
                await self._settle()
            finally:
                if changed:
                    self._write_record()
                self._wake.set()
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
            for worker in self._live():
                with self._noting_errors(worker):
                    holdings = await self._holdings(worker)
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
        for worker in self._live():
            worker.process.look(self._clock.monotonic_s())

    async def refusals(self) -> tuple[ApiRefusals, ...]:
        """
        What the ingress answered itself, by process and api; processes that ended since our start are included.

        The counters of a process that was killed are those last read.
        """
        async with self._lock:
            await asyncio.gather(*(self._note_refusals(worker) for worker in self._live()))
            if any(worker.holdings is None for worker in self._workers):
                self._wake.set()  # one that does not answer is to be looked at
            return tuple(row for rows in self._refusals.values() for row in rows)

    async def traffic(self) -> tuple[SlotTraffic, ...]:
        """HAProxy's own counters of every slot that had requests, for every worker that runs."""
        owners = {slot: api for api, slot in self._slots.items()}
        found: list[SlotTraffic] = []
        async with self._lock:
            for worker in self._live():
                with self._noting_errors(worker):
                    found += [
                        SlotTraffic(instance=worker.instance, api=owners.get(row.slot), row=row)
                        for row in await worker.admin.slots()
                        if row.requests_total
                    ]
        return tuple(found)

    def status(self) -> IngressStatus:
        """How it is now, without asking HAProxy."""
        door = self._current(Tier.DOOR)
        addresses = [listener.getsockname()[:2] for listener in self._public if listener.fileno() >= 0]
        return IngressStatus(
            up=self._running and door is not None,
            pid=door.process.pid if door else None,
            addresses=tuple((str(host), int(port)) for host, port in addresses),
            workers=len(self._workers),
            pool_size=self._pool_size,
            slots_used=len(self._slots),
            reloads=self._reloads,
            restarts=self._restarts,
            last_error=self._last_error,
        )

    def pids(self) -> frozenset[int]:
        """Processes that are waited for here and nowhere else."""
        return frozenset(worker.process.pid for worker in self._workers)

    async def stop(self, drain_timeout_s: float) -> None:
        """
        End the ingress: 1. it stops listening; 2. requests in flight finish, for at most `drain_timeout_s`;
        3. the remaining connections are cut, and logged how many; 4. processes end; 5. files go.
        """
        await self._stop_keeping()
        async with self._lock:
            self._running = False
            workers = self._live()
            for worker in workers:
                with self._noting_errors(worker):
                    await worker.admin.run(["shutdown frontend ingress"])
            for listener in self._public:
                _stop_listening(listener)
            self._public = []
            deadline_s = self._clock.monotonic_s() + drain_timeout_s
            while (requests := await self._requests_in_flight()) and self._clock.monotonic_s() < deadline_s:
                await asyncio.sleep(QUIET_POLL_S)
            if requests:
                log.warning("%d requests were still running after %g s and are cut", requests, drain_timeout_s)
            for worker in workers:
                with self._noting_errors(worker):
                    await self._remember_refusals(worker)
            await asyncio.gather(*(worker.process.end(grace_s=5.0) for worker in workers))
            for worker in list(self._workers):
                self._forget(worker)
            self._let_go()
            for known in read_record(self._record_file).workers:
                send_signal(known.identity, signal.SIGTERM)  # of an earlier life, should start() never have succeeded
            remove_leftovers(self._directory, self._sockets, ())  # of one that was just being started, or of that life
            self._bulk_socket.unlink(missing_ok=True)
            self._record_file.unlink(missing_ok=True)
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
                await self._converge()
            except (AdminUnreachable, CommandsRefused) as error:
                self._note_error(error)
                if attempt == ATTEMPTS:
                    raise
            else:
                if down is not None:
                    raise down
                return

    async def _ensure_workers(self) -> None:
        self._drop_ended()
        assignment = assign_slots((route.api for route in self._routes), self._slots, self._vacating, self._pool_size)
        size = grown_pool_size(self._pool_size, assignment)
        if size != self._pool_size:
            self._pool_size = size
            assignment = assign_slots((route.api for route in self._routes), self._slots, self._vacating, size)
        self._vacating |= set(self._slots.values()) - set(assignment.slots.values())
        self._slots = dict(assignment.slots)
        down: IngressDown | IngressStartFailed | None = None
        for tier in self._limits.tiers:
            current = self._current(tier)
            try:
                if current is None:
                    await self._start_worker(tier)
                elif (current.digest, current.pool_size) != (self._digest, self._pool_size):
                    await self._replace(current)
            except (IngressDown, IngressStartFailed) as error:
                down = error  # the other tier serves most requests alone
        if not any(worker.tier is Tier.DOOR and worker.leaving_until_s for worker in self._live()):
            # A tier that is no longer wanted serves the old door until that has gone.
            for worker in self._live():
                if worker.tier not in self._limits.tiers and worker.leaving_until_s is None:
                    await self._retire_worker(worker)
        if down is not None:
            raise down

    async def _converge(self) -> None:
        """
        Give every worker the commands it lacks, all workers one batch at a time.

        Raises:
            IngressError: a worker that listens did not take them. Those that did have them.
        """
        order = {tier: position for position, tier in enumerate(self._limits.tiers)}
        plans: list[tuple[Worker, Steps]] = []
        failed: dict[Worker, IngressError] = {}
        for worker in sorted(self._live(), key=lambda worker: order.get(worker.tier, 0)):
            try:
                holdings = await self._holdings(worker)
            except (AdminUnreachable, CommandsRefused) as error:
                failed[worker] = error
                continue
            wanted = wanted_of(self._routes, self._slots, worker.pool_size)
            plans.append((worker, steps_between(holdings, wanted, worker.name.map_file)))
            worker.holdings = None  # until everything is known to have been carried out
        # Whoever passes requests on hears of a route last and forgets it first.
        batches = [
            *((worker, steps.add) for worker, steps in plans),
            *((worker, steps.point) for worker, steps in plans),
            *((worker, steps.unpoint) for worker, steps in reversed(plans)),
            *((worker, steps.retire) for worker, steps in reversed(plans)),
        ]
        for worker, commands in batches:
            if commands and worker not in failed:
                try:
                    await worker.admin.run(commands)
                    worker.answered_s = self._clock.monotonic_s()
                except (AdminUnreachable, CommandsRefused) as error:
                    failed[worker] = error
        for worker, steps in plans:
            if worker not in failed:
                worker.holdings = steps.outcome
        for worker, problem in failed.items():
            if worker.leaving_until_s is None:
                raise problem
            self._note_error(problem)  # it may be on its way out

    async def _holdings(self, worker: Worker) -> Holdings:
        if worker.holdings is None:
            worker.holdings = await worker.admin.holdings(worker.name.map_file)
            worker.answered_s = self._clock.monotonic_s()
        return worker.holdings

    # ---- workers ------------------------------------------------------------------------------------------------

    async def _start_worker(self, tier: Tier) -> Worker:
        """
        Start a worker with everything that is wanted already in its configuration.

        Raises:
            IngressDown: it failed lately and is not to be started yet.
            IngressStartFailed: it ended or did not answer.
        """
        patience = self._patience[tier]
        now_s = self._clock.monotonic_s()
        if now_s < patience.not_before_s:
            raise IngressDown(
                self._last_error or f"haproxy ({tier.value}) keeps ending",
                after_s=patience.not_before_s - now_s,
            )
        listeners = self._listeners(tier)
        name = WorkerName(tier=tier, generation=next_generation(self._directory, self._workers))
        admin = AdminSocket(self._sockets / name.admin_socket)
        configuration = WorkerConfiguration(
            tier=tier,
            generation=name.generation,
            digest=self._digest,
            binds=tuple(handover.bind_argument(listener) for listener in listeners),
            admin_socket=admin.path,
            map_file=name.map_file,
            bulk_socket=self._bulk_socket,
            pool_size=self._pool_size,
            max_clients=self._clients,
            limits=self._limits,
        )
        wanted = wanted_of(self._routes, self._slots, self._pool_size)
        config = self._directory / name.config_file
        write_whole(config, render_configuration(configuration, wanted.by_slot()).encode())
        write_whole(self._directory / name.map_file, render_map(wanted.entries).encode())

        with handover.Lender(self._sockets / "h-lend.sock", listeners) as lender:
            process = HaproxyProcess.start(
                self._binary,
                config,
                lender=lender.path,
                directory=self._directory,
                log=self._directory / name.log_file,
                on_exit=self._wake.set,
            )
            worker = Worker(
                process=process,
                name=name,
                layout=LAYOUT,
                digest=self._digest,
                pool_size=self._pool_size,
                admin=admin,
                started_s=now_s,
                answered_s=now_s,
                holdings=wanted.holdings(),
            )
            try:
                # Written before it listens: whoever comes after us knows every process that was ever started.
                self._write_record(worker)
                await self._answering(worker)
            except BaseException as error:
                process.signal(signal.SIGKILL)
                await process.wait(5.0)
                process.close()
                if isinstance(error, AdminUnreachable):
                    patience.note_failure(self._clock.monotonic_s())
                    failure = IngressStartFailed(config, last_words(self._directory / name.log_file))
                    self._note_error(failure)
                    raise failure from error
                raise
        worker.answered_s = self._clock.monotonic_s()
        self._workers.append(worker)
        log.info("haproxy %s runs as pid %d with %d slots", name, process.pid, self._pool_size)
        return worker

    async def _answering(self, worker: Worker) -> None:
        """
        Raises:
            AdminUnreachable: the worker ended, or did not answer in time.
        """
        deadline_s = self._clock.monotonic_s() + START_TIMEOUT_S
        while True:
            try:
                info = await worker.admin.info()
                if info.pid == worker.process.pid:
                    return
            except AdminUnreachable:
                if self._clock.monotonic_s() >= deadline_s:
                    raise
            if await worker.process.wait(0.005):
                raise AdminUnreachable(worker.admin.path, "the process ended")

    async def _replace(self, old: Worker) -> None:
        """Start a successor beside a worker, then let the old one finish what it has."""
        await self._start_worker(old.tier)
        self._reloads += 1
        await self._retire_worker(old)
        log.info("haproxy %s is replaced and finishes what it has", old.name)

    async def _retire_worker(self, worker: Worker) -> None:
        worker.leaving_until_s = self._clock.monotonic_s() + self._leaving_s()
        try:
            # Not SIGUSR1, with which it would close its admin socket too: it still needs to hear of every change.
            await worker.admin.run(["shutdown frontend ingress"])
        except CommandsRefused as error:
            log.info("haproxy pid %d: %s", worker.process.pid, error)
        except AdminUnreachable as error:
            self._note_error(error)
            worker.admin.close()  # it waits for whoever is connected
            worker.process.signal(signal.SIGUSR1)

    def _leaving_s(self) -> float:
        """How long a replaced worker may take to finish what it has."""
        return max((route.timeout_s for route in self._routes), default=0.0) + LEAVING_GRACE_S

    def _drop_ended(self) -> None:
        """Forget workers that ended; one that ended by itself counts as a failure of its tier."""
        for worker in list(self._workers):
            if worker.process.alive():
                continue
            if worker.leaving_until_s is None:
                now_s = self._clock.monotonic_s()
                patience = self._patience[worker.tier]
                if now_s - worker.started_s >= SETTLED_AFTER_S:
                    patience.failures = 0
                patience.note_failure(now_s)
                self._restarts += 1
                kept = self._directory / f"{worker.tier.value}-ended.log"
                with contextlib.suppress(OSError):
                    (self._directory / worker.name.log_file).replace(kept)
                reason = worker.process.exit_reason or "nobody knows why"
                self._note_error(IngressError(f"haproxy {worker.name} ended by itself ({reason}); see {kept}"))
            self._forget(worker)

    def _forget(self, worker: Worker) -> None:
        worker.process.close()
        worker.admin.close()
        if worker in self._workers:
            self._workers.remove(worker)
        worker.admin.path.unlink(missing_ok=True)
        for file in (worker.name.config_file, worker.name.map_file, worker.name.log_file):
            (self._directory / file).unlink(missing_ok=True)
        self._write_record()

    def _current(self, tier: Tier) -> Worker | None:
        found = [w for w in self._live() if w.tier is tier and w.leaving_until_s is None]
        return max(found, key=lambda worker: worker.name.generation, default=None)

    def _live(self) -> list[Worker]:
        return [worker for worker in self._workers if worker.process.alive()]

    # ---- adoption -----------------------------------------------------------------------------------------------

    async def _recover(self) -> None:
        """Find the workers of an earlier life, take back the listening sockets, and read what is routed."""
        record = read_record(self._record_file)
        self._routes = record.routes
        if record.boot_id != boot_id():
            # After a reboot no socket of then answers; the paths are still known, and callers are told to come back.
            self._routes = tuple(msgspec.structs.replace(route, servers=()) for route in record.routes)
        found = [worker for known in record.workers if (worker := await self._adopted(known)) is not None]
        self._workers = [worker for worker in found if worker.layout == LAYOUT]
        strangers = [worker for worker in found if worker.layout != LAYOUT]
        remove_leftovers(self._directory, self._sockets, found)
        surplus = await self._recover_listeners(found)
        self._digest = configuration_digest(
            {tier: [handover.bind_argument(li) for li in self._listeners(tier)] for tier in self._limits.tiers},
            self._sockets,
            self._clients,
            self._limits,
            self._version,
        )
        await self._recover_slots()
        self._patience = {tier: Patience() for tier in Tier}
        await self._settle()
        for worker in strangers:
            # Of another version of ours: it cannot be given commands, so it finishes with what it knows.
            worker.process.signal(signal.SIGUSR1)
            worker.process.close()
        for listener in surplus:
            _stop_listening(listener)

    async def _adopted(self, known: WorkerRecord) -> Worker | None:
        """The worker of a record, if it still runs and answers; one that runs and does not answer is killed."""
        process = HaproxyProcess(known.identity, on_exit=self._wake.set)
        if not process.alive():
            process.close()
            return None
        name = known.name
        admin = AdminSocket(self._sockets / name.admin_socket)
        try:
            info = await admin.info()
            label = info.label if info.label and info.label.layout == LAYOUT else None
            listening = label is None or (await admin.frontend()).listening
        except (AdminUnreachable, CommandsRefused) as error:
            log.warning("haproxy %s (pid %d) does not answer and is killed: %s", name, process.pid, error)
            process.signal(signal.SIGKILL)
            await process.wait(5.0)
            process.close()
            return None
        if info.pid != process.pid:
            process.close()
            return None
        now_s = self._clock.monotonic_s()
        log.info("haproxy %s found running as pid %d", name, process.pid)
        return Worker(
            process=process,
            name=name,
            layout=label.layout if label else 0,
            digest=label.digest if label else "",
            pool_size=label.pool_size if label else 0,
            admin=admin,
            started_s=now_s,
            answered_s=now_s,
            leaving_until_s=None if listening else now_s + self._leaving_s(),
        )

    async def _recover_listeners(self, found: Sequence[Worker]) -> list[socket.socket]:
        """
        Take the listening sockets back from the workers that hold them, and bind those that nobody holds.

        Returns:
            Public sockets that are not wanted any more.
        """
        surplus: list[socket.socket] = []
        for worker in sorted(found, key=lambda worker: worker.name.generation, reverse=True):
            try:
                borrowed = await asyncio.to_thread(handover.borrowed, worker.admin.path)
            except AdminUnreachable as error:
                self._note_error(error)
                continue
            for listener in borrowed:
                if self._keep_listener(listener):
                    continue
                if listener.family == socket.AF_UNIX or self._is_public(listener):
                    listener.close()
                else:
                    surplus.append(listener)
        for address in self._listen:
            if not any(handover.matches(listener, address) for listener in self._public):
                self._public.append(await handover.bind_patiently(address))
        if self._bulk is None and Tier.BULK in self._limits.tiers:
            self._bulk = handover.bind_unix(self._bulk_socket)
        return surplus

    def _is_public(self, listener: socket.socket) -> bool:
        return any(listener.getsockname() == kept.getsockname() for kept in self._public)

    def _keep_listener(self, listener: socket.socket) -> bool:
        if listener.family == socket.AF_UNIX:
            if listener.getsockname() == str(self._bulk_socket) and self._bulk is None:
                self._bulk = listener
                return True
            return False
        for address in self._listen:
            taken = any(handover.matches(other, address) for other in self._public)
            if handover.matches(listener, address) and not taken:
                self._public.append(listener)
                return True
        return False

    async def _recover_slots(self) -> None:
        """Read who has which slot from the youngest door, and which slots are still in use from all."""
        workers = sorted(self._workers, key=lambda worker: (worker.tier is Tier.DOOR, worker.name.generation))
        for worker in workers:
            self._pool_size = max(self._pool_size, worker.pool_size)
            holdings = await self._holdings(worker)
            busy = {address.slot for address in holdings.servers}
            busy |= {row.slot for row in await worker.admin.slots() if row.requests}
            for value in holdings.entries.values():
                entry = parse_entry(value)
                if entry is not None and entry.slot != NOWHERE:
                    self._slots[entry.api] = entry.slot
                    busy.add(entry.slot)
            self._vacating |= busy
        # Two apis of different workers may claim one slot: the younger worker wins, the other gets a new one.
        owners = {slot: api for api, slot in self._slots.items()}
        self._slots = {api: slot for slot, api in owners.items()}
        self._vacating -= set(owners)

    def _write_record(self, *starting: Worker) -> None:
        write_record(self._record_file, [*self._workers, *starting], self._routes)

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
                self._note_error(error)
            except Exception as error:
                self._note_error(error)
                log.exception("looking after haproxy failed")
            self._show()

    def _pause_s(self) -> float:
        now_s = self._clock.monotonic_s()
        pause_s = until_beat_s(now_s, WATCH_S)
        if self._vacating or any(w.leaving_until_s or w.holdings is None or w.holdings.retired for w in self._workers):
            pause_s = RETIRED_POLL_S
        for tier in self._limits.tiers:
            if self._current(tier) is None:
                pause_s = min(pause_s, max(0.01, self._patience[tier].not_before_s - now_s))
        return pause_s

    async def _look_after(self) -> None:
        problem: CortexError | None = None
        try:
            await self._settle()
        except CortexError as error:
            problem = error  # one tier that is down must not keep the other from being looked after
        for worker in self._live():
            with self._noting_errors(worker):
                await self._delete_retired(worker)
                await self._end_if_left(worker)
            await self._probe(worker)
            self._cap_log(worker)
        await self._release_slots()
        if problem is not None:
            raise problem

    async def _delete_retired(self, worker: Worker) -> None:
        """Delete servers that left rotation and have nothing connected to them any more."""
        holdings = await self._holdings(worker)
        if not holdings.retired:
            return
        gone = set(await worker.admin.delete(holdings.retired))
        worker.holdings = Holdings(
            entries=holdings.entries,
            servers={address: state for address, state in holdings.servers.items() if address not in gone},
        )

    async def _end_if_left(self, worker: Worker) -> None:
        """End a replaced worker once its last client has gone or its time is up."""
        if worker.leaving_until_s is None:
            return
        connections = (await worker.admin.frontend()).connections
        if connections and self._clock.monotonic_s() < worker.leaving_until_s:
            return
        if connections:
            log.warning("haproxy pid %d still has %d connections; they are cut", worker.process.pid, connections)
        await self._remember_refusals(worker)
        await worker.process.end(grace_s=5.0)
        self._forget(worker)

    async def _release_slots(self) -> None:
        """Give slots back to the pool that no worker has servers or requests in."""
        if not self._vacating:
            return
        used: set[int] = set()
        for worker in self._live():
            holdings = await self._holdings(worker)
            used |= {address.slot for address in holdings.servers}
            slots = sorted(slot for slot in self._vacating if slot <= worker.pool_size)
            used |= {row.slot for row in await worker.admin.slots(slots) if row.requests}
        self._vacating &= used

    async def _probe(self, worker: Worker) -> None:
        """Kill a worker that runs but does not answer."""
        now_s = self._clock.monotonic_s()
        heard = worker.holdings is not None and now_s - worker.answered_s < WATCH_S
        if heard or not worker.process.alive():
            return
        try:
            await worker.admin.info()
            worker.answered_s = self._clock.monotonic_s()
        except AdminUnreachable as error:
            self._note_error(error)
            if self._clock.monotonic_s() - worker.answered_s >= DEAF_AFTER_S:
                log.error("haproxy pid %d has not answered for %g s and is killed", worker.process.pid, DEAF_AFTER_S)
                worker.process.signal(signal.SIGKILL)
                await worker.process.wait(5.0)
                self._wake.set()

    def _cap_log(self, worker: Worker) -> None:
        """HAProxy writes a few lines for every server that comes or goes, for as long as it runs."""
        file = self._directory / worker.name.log_file
        with contextlib.suppress(OSError):
            if file.stat().st_size > LOG_LIMIT_BYTES:
                os.truncate(file, 0)

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
        for worker in self._live():
            try:
                holdings = await self._holdings(worker)
                addresses = {a: s for a, s in holdings.servers.items() if server_name(a.key) == server}
                if any(state.in_rotation for state in addresses.values()):
                    return False
                if addresses:
                    rows = await worker.admin.servers(sorted({address.slot for address in addresses}))
                    if any(row.requests for row in rows if row.address in addresses):
                        return False
            except (AdminUnreachable, CommandsRefused) as error:
                self._note_error(error)
                if worker.process.alive():
                    return False
        return True

    async def _requests_in_flight(self) -> int:
        requests = 0
        for worker in self._live():
            with self._noting_errors(worker):
                requests += await worker.admin.requests()
        return requests

    async def _note_refusals(self, worker: Worker) -> None:
        with self._noting_errors(worker):
            await self._remember_refusals(worker)

    async def _remember_refusals(self, worker: Worker) -> None:
        rows = await worker.admin.refusals()
        worker.answered_s = self._clock.monotonic_s()  # which saves asking it whether it answers
        self._refusals[worker.instance] = tuple(
            ApiRefusals(instance=worker.instance, api=ApiKey(row.api), counts=row.counts) for row in rows
        )
        while len(self._refusals) > REMEMBERED_INSTANCES:
            del self._refusals[next(iter(self._refusals))]

    def _require_running(self) -> None:
        if not self._running:
            raise IngressDown("the ingress was not started", after_s=1.0)

    def _require_out_of_rotation(self, server: str) -> None:
        if any(server == wanted.name for route in self._routes for wanted in route.servers):
            raise StillInRotation(server)

    def _listeners(self, tier: Tier) -> list[socket.socket]:
        if tier is Tier.DOOR:
            return self._public
        assert self._bulk is not None
        return [self._bulk]

    @property
    def _bulk_socket(self) -> Path:
        return self._sockets / "h-bulk.sock"

    @property
    def _record_file(self) -> Path:
        return self._directory / "ingress.json"

    def _prepare_folders(self) -> None:
        longest = str(self._sockets / _LONGEST_SOCKET_NAME)
        if len(longest.encode()) > SOCKET_PATH_LIMIT_BYTES:
            raise PathTooLong(longest, SOCKET_PATH_LIMIT_BYTES)
        for folder in (self._directory, self._sockets):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def _let_go(self) -> None:
        """Close everything of ours; processes are left as they are."""
        for worker in self._workers:
            worker.process.close()
            worker.admin.close()
        for listener in (*self._public, *([self._bulk] if self._bulk else [])):
            listener.close()
        self._workers = []
        self._public = []
        self._bulk = None
        self._slots = {}
        self._vacating = set()

    @contextlib.contextmanager
    def _noting_errors(self, worker: Worker) -> Iterator[None]:
        """What one worker fails to do must not keep the others from it."""
        try:
            yield
        except (AdminUnreachable, CommandsRefused) as error:
            worker.holdings = None
            if worker.process.alive():
                self._note_error(error)

    def _note_error(self, error: BaseException) -> None:
        self._last_error = str(error)
        log.warning("%s", error)

    def _show(self) -> None:
        status = self.status()
        if status != self._shown:
            self._shown = status
            if self._on_change is not None:
                self._on_change()


def _stop_listening(listener: socket.socket) -> None:
    """
    Close a listening socket for everyone who has it.

    HAProxy keeps its copy open as long as it runs; without the shutdown, clients would connect and wait for nothing.
    """
    with contextlib.suppress(OSError):
        listener.shutdown(socket.SHUT_RDWR)
    listener.close()


def _hard_fd_limit() -> int:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return 2**20 if limit == resource.RLIM_INFINITY else limit
