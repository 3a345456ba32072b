"""The HAProxy processes of a node: found, started, replaced, told what they lack, and forgotten."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from cortex.backoff import Backoff
from cortex.clock import Clock
from cortex.ingress import generations, handover
from cortex.ingress.configuration import (
    FRONTEND,
    LAYOUT,
    PEER_FRONTEND,
    IngressLimits,
    Tier,
    WorkerConfiguration,
    WorkerPeering,
    render_configuration,
    render_map,
)
from cortex.ingress.convergence import Holdings, Steps, WantedHoldings, WantedPeers, steps_between, wanted_of
from cortex.ingress.counters import IngressCounters, IngressTraffic
from cortex.ingress.errors import AdminUnreachable, CommandsRefused, IngressDown, IngressError, IngressStartFailed
from cortex.ingress.files import IngressFiles, IngressRecord, WorkerName, WorkerRecord
from cortex.ingress.generations import (
    FIRST_RESTART_S,
    LONGEST_RESTART_S,
    SETTLED_AFTER_S,
    IngressTimes,
    Replace,
    Retire,
    Start,
)
from cortex.ingress.listeners import Listeners
from cortex.ingress.peers import NOBODY_KEY, IngressPeer, PeerPlaces
from cortex.ingress.pool import Pool, backend_name, near_name
from cortex.ingress.process import HaproxyProcess, last_words
from cortex.ingress.routes import IngressRoute
from cortex.ingress.runtime import AdminSocket
from cortex.processes import write_whole

log = logging.getLogger(__name__)

START_TIMEOUT_S = 10.0
END_GRACE_S = 5.0
SAY_AGAIN_S = 60.0


@dataclass(eq=False)
class Worker:
    """A running HAProxy and what we know of it."""

    process: HaproxyProcess
    name: WorkerName
    layout: int
    """0 for one whose configuration is not ours to understand."""
    digest: str
    pool_size: int
    admin: AdminSocket
    started_s: float
    answered_s: float
    """When it last answered at its admin socket."""
    holdings: Holdings | None = None
    """None: to be read again."""
    leaving_until_s: float | None = None
    """Set once it no longer listens: when its last connections are cut."""
    places: int = 0
    """For peers; 0: it knows nothing of peers."""
    cut_off: bool = False
    """The file of a socket by which it is reached was removed, and nothing brings that back."""

    @property
    def instance(self) -> str:
        """Names the process among all that ever were."""
        identity = self.process.identity
        return f"{identity.pid}-{identity.start_ticks}-{identity.boot_id[:8]}"

    @property
    def frontends(self) -> tuple[str, ...]:
        """Those by which it is reached."""
        return (FRONTEND, PEER_FRONTEND) if self.places and self.name.tier is Tier.DOOR else (FRONTEND,)


class Blueprint(msgspec.Struct, frozen=True):
    """What every worker is started from."""

    binary: Path
    digest: str
    """Names everything here and the addresses: a worker with another one is replaced."""
    max_clients: int
    limits: IngressLimits
    probe_token: str
    peering: WorkerPeering | None = None


class Wanted(msgspec.Struct, frozen=True):
    """What all workers are to have."""

    routes: tuple[IngressRoute, ...] = ()
    pool: Pool = Pool(size=0)
    peers: tuple[IngressPeer, ...] = ()
    places: PeerPlaces = PeerPlaces()


class Workers:
    """
    Those that run, and what they are to have.

    Args:
        admin: makes the client of a worker's admin socket.
        wake: called when one has ended, or wants to be looked at.
    """

    def __init__(
        self,
        *,
        files: IngressFiles,
        listeners: Listeners,
        clock: Clock,
        times: IngressTimes,
        admin: Callable[[Path], AdminSocket],
        wake: Callable[[], None],
    ) -> None:
        self._files = files
        self._listeners = listeners
        self._clock = clock
        self._times = times
        self._admin = admin
        self._wake = wake
        self._patience = _patience()
        self.wanted = Wanted()
        self.counters = IngressCounters()
        self.traffic = IngressTraffic()
        self.all: list[Worker] = []
        """Also those that have ended and were not looked at since."""
        self.reloads = 0
        """How often workers were replaced on purpose."""
        self.restarts = 0
        """How often a worker ended by itself."""
        self.last_error = ""
        self._said: dict[str, float] = {}
        """What was logged lately, and when."""

    def live(self) -> list[Worker]:
        return [worker for worker in self.all if worker.process.alive()]

    def current(self, tier: Tier) -> Worker | None:
        return generations.current(self.live(), tier)

    def due_s(self, tiers: Sequence[Tier]) -> dict[Tier, float]:
        """Tiers that lack a worker, with when they may have one."""
        return {tier: self._patience[tier].not_before_s for tier in tiers if self.current(tier) is None}

    def note(self, error: BaseException) -> None:
        """Something went wrong, and is seen to. What goes on going wrong is logged once in a while."""
        self.last_error, now_s = str(error), self._clock.monotonic_s()
        self._said = {text: at_s for text, at_s in self._said.items() if now_s - at_s < SAY_AGAIN_S}
        if self.last_error not in self._said:
            self._said[self.last_error] = now_s
            log.warning("%s", error)

    # ---- which there are ----------------------------------------------------------------------------------------

    async def adopt(self, record: IngressRecord) -> tuple[list[Worker], list[Worker]]:
        """
        Find the workers of an earlier life, remove the files of those that are gone.

        Returns:
            All that run, and those among them that are of another version of ours: they cannot be given commands, and
            are not counted among ours.
        """
        found = [worker for known in record.workers if (worker := await self._adopted(known)) is not None]
        self.all = [worker for worker in found if worker.layout == LAYOUT]
        self._files.remove_leftovers(worker.name for worker in found)
        self._patience = _patience()
        return found, [worker for worker in found if worker.layout != LAYOUT]

    async def carry_out(self, step: Start | Replace | Retire, blueprint: Blueprint) -> None:
        """
        Raises:
            IngressDown: a worker failed lately and is not to be started yet.
            IngressStartFailed: it ended or did not answer.
        """
        match step:
            case Start(tier):
                await self._start(tier, blueprint)
            case Replace(name):
                await self._start(name.tier, blueprint)
                self.reloads += 1
                await self._retire(name)
                log.info("haproxy %s is replaced and finishes what it has", name)
            case Retire(name):
                await self._retire(name)

    def drop_ended(self) -> None:
        """Forget workers that ended; one that ended by itself counts as a failure of its tier."""
        for worker in [worker for worker in self.all if not worker.process.alive()]:
            if worker.leaving_until_s is None:
                now_s, patience = self._clock.monotonic_s(), self._patience[worker.name.tier]
                if now_s - worker.started_s >= SETTLED_AFTER_S:
                    patience.note_success()
                patience.note_failure(now_s)
                self.restarts += 1
                kept = self._files.keep_log(worker.name)
                reason = worker.process.exit_reason or "nobody knows why"
                self.note(IngressError(f"haproxy {worker.name} ended by itself ({reason}); see {kept}"))
            self._forget(worker)

    async def end(self) -> None:
        """End all of them, and leave nothing of theirs."""
        await asyncio.gather(*(worker.process.end(grace_s=END_GRACE_S) for worker in self.all))
        for worker in list(self.all):
            self._forget(worker)

    def record(self, *starting: Worker) -> None:
        """Write down which processes are ours, and what they are to route."""
        workers = (WorkerRecord(identity=w.process.identity, name=w.name) for w in (*self.all, *starting))
        self._files.write(workers, self.wanted.routes, self.wanted.peers, self.wanted.places.owners)

    def let_go(self) -> None:
        """Forget all of them, and leave them as they are."""
        for worker in self.all:
            worker.process.close()
            worker.admin.close()
            self.traffic.forget(worker.instance)
        self.all = []

    def note_cut_off(self, moved: Collection[Tier]) -> None:
        """
        See who can be reached no longer.

        Args:
            moved: tiers that listen on another socket from now on.
        """
        for worker in self.live():
            if worker.leaving_until_s is None and (not worker.admin.path.exists() or worker.name.tier in moved):
                log.warning("a socket of haproxy %s was removed: it is replaced", worker.name)
                worker.cut_off = True

    # ---- what they have -----------------------------------------------------------------------------------------

    async def holdings(self, worker: Worker) -> Holdings:
        if worker.holdings is None:
            worker.holdings = await worker.admin.holdings(worker.name.map_file)
            worker.answered_s = self._clock.monotonic_s()
        return worker.holdings

    def wanted_of(self, pool_size: int, peering: WorkerPeering | None, places: int) -> WantedHoldings:
        """What a worker of these sizes ought to have."""
        wanted = self.wanted
        peers = None
        if peering is not None:
            peers = WantedPeers(peering=peering, places=wanted.places.owners, peers=wanted.peers)
        return wanted_of(wanted.routes, wanted.pool.owners, pool_size, peers, places)

    async def converge(self, tiers: Sequence[Tier], peering: WorkerPeering | None) -> None:
        """
        Give every worker the commands it lacks, all workers one batch at a time.

        Args:
            tiers: in the order in which they hear of new routes.
            peering: by which those that have peers reach them.

        Raises:
            IngressError: a worker that listens did not take them. Those that did have them.
        """
        order = {tier: position for position, tier in enumerate(tiers)}
        plans: list[tuple[Worker, Steps]] = []
        failed: dict[Worker, IngressError] = {}
        for worker in sorted(self.live(), key=lambda worker: order.get(worker.name.tier, 0)):
            if _leaves_unheard(worker):
                continue
            try:
                holdings = await self.holdings(worker)
            except (AdminUnreachable, CommandsRefused) as error:
                failed[worker] = error
                continue
            wanted = self.wanted_of(worker.pool_size, peering, worker.places)
            plans.append((worker, steps_between(holdings, wanted, worker.name.map_file, peering, worker.name.tier)))
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
            self.note(problem)  # it may be on its way out

    async def give_up_held(self, worker: Worker) -> None:
        """Tell who is held that nobody comes; who can be reached gets what is there."""
        if worker.name.tier is Tier.HOLD:
            backends = [backend for backend in self.wanted.pool.owners.values() if backend <= worker.pool_size]
            names = [name(backend) for backend in backends for name in (backend_name, near_name)]
            await worker.admin.run(f"set server {name}/{NOBODY_KEY} state maint" for name in names)

    async def count(self, worker: Worker) -> None:
        """Read what a worker answered itself."""
        rows = await worker.admin.refusals()
        worker.answered_s = self._clock.monotonic_s()  # which saves asking it whether it answers
        self.counters.note(worker.instance, rows)

    async def watch(self, worker: Worker) -> None:
        """Read what has come to a worker."""
        apis = {backend: api for backend, api in self.wanted.pool.apis.items() if backend <= worker.pool_size}
        rows = await worker.admin.traffic(sorted(apis))
        worker.answered_s = self._clock.monotonic_s()
        if worker.name.tier is Tier.HOLD:  # it has begun at whoever passed it on
            rows = [msgspec.structs.replace(row, begun=0) for row in rows]
        self.traffic.note(worker.instance, rows, apis)

    @contextlib.contextmanager
    def noting_errors(self, worker: Worker) -> Iterator[None]:
        """What one worker fails to do must not keep the others from it."""
        try:
            yield
        except (AdminUnreachable, CommandsRefused) as error:
            worker.holdings = None
            if worker.process.alive():
                self.note(error)

    # ---- looking after one --------------------------------------------------------------------------------------

    async def look_after(self, worker: Worker) -> None:
        """Clear what a worker is done with, end it if it has left, and see that it answers."""
        if _leaves_unheard(worker):
            if generations.has_left(worker, 1, self._clock.monotonic_s()):  # else it ends by itself
                await worker.process.end(grace_s=END_GRACE_S)
                self._forget(worker)
            return
        with self.noting_errors(worker):
            await self._delete_retired(worker)
            await self._end_if_left(worker)
        await self._probe(worker)
        self._files.cap_log(worker.name)

    async def _delete_retired(self, worker: Worker) -> None:
        """Delete servers that left rotation and have nothing connected to them any more."""
        holdings = await self.holdings(worker)
        if not holdings.retired:
            return
        gone = set(await worker.admin.delete(holdings.retired))
        worker.holdings = Holdings(
            entries=holdings.entries,
            servers={address: state for address, state in holdings.servers.items() if address not in gone},
            places=holdings.places,
        )

    async def _end_if_left(self, worker: Worker) -> None:
        if worker.leaving_until_s is None:
            return
        connections = (await worker.admin.frontend()).connections
        if not generations.has_left(worker, connections, self._clock.monotonic_s()):
            return
        if connections:
            log.warning("haproxy pid %d still has %d connections; they are cut", worker.process.pid, connections)
        await self.count(worker)
        await self.watch(worker)
        await worker.process.end(grace_s=END_GRACE_S)
        self._forget(worker)

    async def _probe(self, worker: Worker) -> None:
        """Kill a worker that runs but does not answer."""
        now_s = self._clock.monotonic_s()
        if not generations.is_to_be_asked(worker, now_s, self._times) or not worker.process.alive():
            return
        try:
            await worker.admin.info()
            worker.answered_s = self._clock.monotonic_s()
        except AdminUnreachable as error:
            self.note(error)
            if generations.is_deaf(worker, self._clock.monotonic_s(), self._times):
                deaf_s = self._times.deaf_after_s
                log.error("haproxy pid %d has not answered for %g s and is killed", worker.process.pid, deaf_s)
                await worker.process.kill()
                self._wake()

    # ---- inside -------------------------------------------------------------------------------------------------

    async def _adopted(self, known: WorkerRecord) -> Worker | None:
        """The worker of a record, if it still runs and answers; one that runs and does not answer is killed."""
        process = HaproxyProcess(known.identity, on_exit=self._wake)
        if not process.alive():
            process.close()
            return None
        name = known.name
        admin = self._admin(self._files.sockets / name.admin_socket)
        try:
            info = await admin.info()
            label = info.label if info.label and info.label.layout == LAYOUT else None
            admin.has_peers = label is not None and label.places > 0
            listening = label is None or (await admin.frontend()).listening
        except (AdminUnreachable, CommandsRefused) as error:
            log.warning("haproxy %s (pid %d) does not answer and is killed: %s", name, process.pid, error)
            await process.kill()
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
            places=label.places if label else 0,
            admin=admin,
            started_s=now_s,
            answered_s=now_s,
            leaving_until_s=None if listening else self._leaving_until_s(),
        )

    async def _start(self, tier: Tier, blueprint: Blueprint) -> None:
        """Start a worker with everything that is wanted already in its configuration."""
        patience = self._patience[tier]
        now_s = self._clock.monotonic_s()
        if now_s < patience.not_before_s:
            reason = self.last_error or f"haproxy ({tier.value}) keeps ending"
            raise IngressDown(reason, after_s=patience.not_before_s - now_s)
        files, pool = self._files, self.wanted.pool
        name = WorkerName(tier=tier, generation=files.next_generation(worker.name.generation for worker in self.all))
        admin = self._admin(files.sockets / name.admin_socket)
        configuration = WorkerConfiguration(
            tier=tier,
            generation=name.generation,
            digest=blueprint.digest,
            binds=self._listeners.binds(tier),
            admin_socket=admin.path,
            map_file=name.map_file,
            bulk_socket=files.bulk_socket,
            pool_size=pool.size,
            max_clients=blueprint.max_clients,
            limits=blueprint.limits,
            probe_token=blueprint.probe_token,
            peering=blueprint.peering,
        )
        places = blueprint.peering.places if blueprint.peering else 0
        admin.has_peers = places > 0
        wanted = self.wanted_of(pool.size, blueprint.peering, places)
        config = files.directory / name.config_file
        near = wanted.by_backend(near=True)
        write_whole(config, render_configuration(configuration, wanted.by_backend(), wanted.places, near).encode())
        write_whole(files.directory / name.map_file, render_map(wanted.entries).encode())

        with handover.Lender(files.lend_socket, self._listeners.of(tier)) as lender:
            process = HaproxyProcess.start(
                blueprint.binary,
                config,
                lender=lender.path,
                directory=files.directory,
                log=files.directory / name.log_file,
                on_exit=self._wake,
            )
            worker = Worker(
                process=process,
                name=name,
                layout=LAYOUT,
                digest=blueprint.digest,
                pool_size=pool.size,
                places=places,
                admin=admin,
                started_s=now_s,
                answered_s=now_s,
                holdings=wanted.holdings(),
            )
            try:
                # Written before it listens: whoever comes after us knows every process that was ever started.
                self.record(worker)
                await self._answering(worker)
            except BaseException as error:
                await process.kill()
                process.close()
                if isinstance(error, AdminUnreachable):
                    patience.note_failure(self._clock.monotonic_s())
                    failure = IngressStartFailed(config, last_words(files.directory / name.log_file))
                    self.note(failure)
                    raise failure from error
                raise
        worker.answered_s = self._clock.monotonic_s()
        self.all.append(worker)
        log.info("haproxy %s runs as pid %d with %d backends", name, process.pid, pool.size)

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

    async def _retire(self, name: WorkerName) -> None:
        for worker in [worker for worker in self.all if worker.name == name]:
            worker.leaving_until_s = self._leaving_until_s()
            try:
                # Not SIGUSR1, with which it would close its admin socket too: it still needs to hear of every change.
                await worker.admin.run(f"shutdown frontend {frontend}" for frontend in worker.frontends)
            except CommandsRefused as error:
                log.info("haproxy pid %d: %s", worker.process.pid, error)
            except AdminUnreachable as error:
                self.note(error)
                worker.admin.close()  # it waits for whoever is connected
                worker.process.signal(signal.SIGUSR1)

    def _leaving_until_s(self) -> float:
        timeouts_s = (route.timeout_s for route in self.wanted.routes)
        return generations.leaving_until_s(timeouts_s, self._clock.monotonic_s(), self._times)

    def _forget(self, worker: Worker) -> None:
        worker.process.close()
        worker.admin.close()
        if worker in self.all:
            self.all.remove(worker)
        self.traffic.forget(worker.instance)
        self._files.remove(worker.name)
        self.record()


def _leaves_unheard(worker: Worker) -> bool:
    """Whether it finishes what it has and can be told nothing meanwhile."""
    return worker.leaving_until_s is not None and worker.cut_off and not worker.admin.path.exists()


def _patience() -> dict[Tier, Backoff]:
    """When each tier may be started again."""
    return {tier: Backoff(first_s=FIRST_RESTART_S, longest_s=LONGEST_RESTART_S, free=1) for tier in Tier}
