"""
The lives of the node's replicas: from an order to a process, its health, its end, and its slot throughout.

A slot is the listening socket of one replica id. We bind it once and hand it to each attempt, so that requests wait
in its backlog while an attempt is replaced.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import math
import os
import shutil
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec

from cortex import processes
from cortex.agent import channel, logs, recovery
from cortex.agent.kept import KeptInspections
from cortex.agent.launchers import ForkRefused, Launcher, LauncherLost, Launchers
from cortex.agent.provisions import Provided, Provisions
from cortex.agent.safekeeping import Safekeeping
from cortex.agent.usage import UsageMeter
from cortex.clock import Clock
from cortex.engines import machine
from cortex.errors import CortexError, Problem
from cortex.ids import ReplicaId, socket_stem
from cortex.processes import ProcessIdentity
from cortex.settings import HomeLayout, Settings
from cortex.wire import rawoutput
from cortex.wire.batching import BatchingOrder, BatchingState
from cortex.wire.build import BuildSpec, Sample
from cortex.wire.framing import UNREADABLE, close_all
from cortex.wire.inhand import SUFFIX as IN_HAND_SUFFIX
from cortex.wire.inhand import LeftInHand, left_in_hand
from cortex.wire.launch import ENDING_S, MOST_ENDING_S, Ask, ChildExited, Drain, ReplicaSpec, ReplicaStatus, SetBatching
from cortex.wire.orders import StartReplica
from cortex.wire.places import Places
from cortex.wire.reports import ExitReport, Phase, ReplicaReport
from cortex.wire.stats import EXIT_FILE_SUFFIX, LastWords

log = logging.getLogger(__name__)

SLOT_BACKLOG = 4096
"""Requests that can wait in a slot; the kernel caps it at net.core.somaxconn."""
EXIT_STATUS_WAIT_S = 0.3
"""After an ended process was collected, how long its launcher may take to tell how it ended; a dead one never does."""
EXIT_STATUS_WAITS = 6
"""So often, at most, is that time given to whoever has to collect it: on a busy machine its turn may not have come."""
KILL_AFTER_S = 2.0
"""A replica that should have ended, or was told to and is not serving, gets this long before SIGKILL."""
LAUNCH_TRIES = 3
SAMPLE_TRIES = 2
SAMPLE_GRACE_S = 5.0
"""
A replica tries a sample that came too late once more, as it was not warm. One that sits in code that cannot be stopped
says nothing: it is ended this long after both tries would have been over.
"""
ORPHAN_TIMEOUT_S = 30.0
"""A child whose launcher died over the fork gets this long to say that it is there."""
SLOT_CLOSE_TIMEOUT_S = 5.0
STILL_BEATS = 2
"""
A replica's event loop hangs when this many answers in a row say that it stood still. One may come right after the
machine was suspended, from the thread that woke up first.
"""
STARTING = (Phase.STARTING, Phase.LOADING, Phase.WARMING)
OUR_OWN_LIMITS = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS))
"""Why we cannot connect, when that says nothing about the replica."""


class ReplicaRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What is written down to find a replica again after our own restart."""

    order: StartReplica
    identity: ProcessIdentity | None = None
    was_ready: bool = False
    draining: bool = False
    """It was told to end, or is about to be."""
    started_wall_s: float = 0.0


@dataclass(eq=False)
class Replica:
    """One replica as this agent knows it."""

    order: StartReplica
    slot: socket.socket
    slot_inode: int = 0
    """Of the socket's file: another slot may have been bound on the same path since."""
    phase: Phase = Phase.STARTING
    phase_since_s: float = 0.0
    started_wall_s: float = 0.0
    identity: ProcessIdentity | None = None
    pidfd: int | None = None
    pulse: processes.Pulse | None = None
    """While it starts."""
    meter: UsageMeter | None = None
    """While its process is watched."""
    control: channel.Channel | None = None
    connecting: bool = False
    status: ReplicaStatus | None = None
    told: BatchingOrder | None = None
    """What it was told about batches on this connection; None: nothing."""
    answered_s: float = 0.0
    progress: str = ""
    progress_since_s: float = 0.0
    got_on_wall_s: float = 0.0
    """The same moment for people."""
    was_ready: bool = False
    exit: ExitReport | None = None
    ended_by_us: Problem | None = None
    """Why we killed it, when that was not asked for."""
    gone: bool = False
    """The process has ended; how is still being found out, so `phase` does not say so yet."""
    unready_since_s: float | None = None
    """Since when the slot, once ready, has had nobody to serve it; None while it has, or never had."""
    hold_expired: bool = False
    """Nobody will come soon: requests are not held for this slot any more."""
    stopping: bool = False
    leaving: bool = False
    """It ends in order, and not because we asked it to."""
    stuck: bool = False
    """It sits in a handler that is over its time, and can look at nothing else."""
    forgotten: bool = False
    unwritten: bool = False
    """Its record on disk is out of date."""
    heard: bool = False
    """It has answered since its health was checked last."""
    still_beats: int = 0
    launching: asyncio.Task[None] | None = None
    forking: bool = False
    """A launcher was asked for its process: from then on only who asked can say whether there is one."""
    told_counts: asyncio.Event = field(default_factory=asyncio.Event)
    """Set by each status, and when there will be none."""
    ending: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once it says that its handler's code is being ended, and when its process is gone."""
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once its process is gone, or there will be none."""
    oom_kills_before: int = 0
    rss_bytes: int = 0
    peak_rss_bytes: int = 0
    cpu_s: float = 0.0
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def id(self) -> ReplicaId:
        return self.order.replica

    @cached_property
    def stem(self) -> str:
        return socket_stem(self.order.replica)

    @property
    def key(self) -> tuple[ReplicaId, int]:
        return self.order.replica, self.order.attempt

    @property
    def label(self) -> str:
        return f"{self.id} (attempt {self.order.attempt})"


class Replicas:
    """
    Every replica of the node.

    Args:
        provisions: has everything there that a build needs.
        settle_routes: returns once the ingress has what orders and readiness say now.
        quiesced: returns once the ingress sends nothing more to a slot's socket (by stem).
        abandon: turns away the requests that wait at a slot (by stem).
        end_strays: ends what processes that are gone have left running.
        on_change: called after anything that a report shows has changed.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        layout: HomeLayout,
        clock: Clock,
        provisions: Provisions,
        settle_routes: Callable[[], Awaitable[None]],
        quiesced: Callable[[str], Awaitable[None]],
        abandon: Callable[[str], Awaitable[None]],
        end_strays: Callable[..., Awaitable[None]],
        on_change: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._layout = layout
        self._clock = clock
        self._provisions = provisions
        self._places = Places(str(layout.home))
        self._settle_routes = settle_routes
        self._quiesced = quiesced
        self._abandon = abandon
        self._end_strays = end_strays
        self._on_change = on_change
        self._replicas: dict[ReplicaId, Replica] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._launching: dict[ReplicaId, asyncio.Task[None]] = {}
        """The last one of each id, forgotten replicas included."""
        self._exit_statuses: dict[tuple[ReplicaId, int], ChildExited] = {}
        """How processes ended, by replica and attempt, until somebody asks."""
        self._exit_waiters: dict[tuple[ReplicaId, int], asyncio.Event] = {}
        self._checked_s = clock.monotonic_s()
        self._counts_asked = time.time_ns()
        """Grows; above what a former agent asked with, as replicas remember that."""
        self.safekeeping = Safekeeping(layout)
        self.kept = KeptInspections()
        self.launchers = Launchers(
            python=provisions.python,
            settings=settings,
            layout=layout,
            clock=clock,
            on_child_exited=self._child_exited,
        )

    def __iter__(self) -> Iterator[Replica]:
        return iter(tuple(self._replicas.values()))

    def by_id(self) -> Mapping[ReplicaId, Replica]:
        return self._replicas

    def get(self, replica: ReplicaId) -> Replica | None:
        return self._replicas.get(replica)

    # ---- orders -------------------------------------------------------------------------------------------------

    def start(self, order: StartReplica) -> None:
        """
        Carry out a start order; see `StartReplica` for what repeats do.

        Raises:
            OSError: its slot cannot be bound; nothing was done.
        """
        known = self._replicas.get(order.replica)
        if known is not None and (known.order.attempt >= order.attempt or known.phase is not Phase.EXITED):
            return
        if known is not None and self._is_reachable(known):
            slot, inode = known.slot, known.slot_inode
        else:
            slot, inode = self._bind_slot(order.replica)
        replica = Replica(order=order, slot=slot, slot_inode=inode)
        if known is not None:
            replica.unready_since_s = known.unready_since_s
            replica.hold_expired = known.hold_expired
            self._exit_file(known.order).unlink(missing_ok=True)
            self._in_hand_file(known.order).unlink(missing_ok=True)
            if known.slot is not slot:
                self._turn_away_waiting(known)
                known.slot.close()
        self._exit_file(order).unlink(missing_ok=True)
        self._in_hand_file(order).unlink(missing_ok=True)
        replica.started_wall_s = self._clock.wall_s()
        replica.oom_kills_before = machine.oom_kills()
        self._replicas[order.replica] = replica
        self._set_phase(replica, Phase.STARTING)
        self._remember(replica)
        before = self._launching.get(order.replica)
        launching = self._spawn(replica, self._launch(replica, before))
        replica.launching = self._launching[order.replica] = launching
        launching.add_done_callback(lambda task: self._launched(order.replica, task))

    def _launched(self, replica_id: ReplicaId, task: asyncio.Task[None]) -> None:
        if self._launching.get(replica_id) is task:
            del self._launching[replica_id]

    def drain(self, replica_id: ReplicaId, timeout_s: float) -> None:
        """Take it out of rotation, let it finish, end it."""
        replica = self._replicas.get(replica_id)
        if replica is None or replica.stopping or replica.phase is Phase.EXITED:
            return
        replica.stopping = True
        self._set_phase(replica, Phase.DRAINING)
        self._remember(replica)
        self._spawn(replica, self._drain(replica, timeout_s))

    def set_batching(self, replica_id: ReplicaId, batches: BatchingOrder) -> None:
        """Have it do this about batches; one that cannot be told now is told as soon as it says something."""
        replica = self._replicas.get(replica_id)
        if replica is None or replica.phase is Phase.EXITED or replica.order.batches == batches:
            return
        replica.order = msgspec.structs.replace(replica.order, batches=batches)
        self._remember(replica)
        self._tell_batching(replica)
        self._on_change()

    def _tell_batching(self, replica: Replica) -> None:
        if replica.control is not None:
            replica.told = replica.order.batches
            replica.control.send(msgspec.json.encode(SetBatching(order=replica.order.batches)))

    def forget(self, replica_id: ReplicaId) -> None:
        """End it now if it still runs, and drop its slot once the ingress has let go of it."""
        replica = self._replicas.pop(replica_id, None)
        if replica is None:
            return
        replica.forgotten = True
        self._kill(replica, signal.SIGKILL)
        for task in replica.tasks:
            if task is not replica.launching or not replica.forking:
                task.cancel()
        self._on_change()
        closing = asyncio.ensure_future(_logged(self._close(replica), replica.label))
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    async def _close(self, replica: Replica) -> None:
        """Requests may still wait there: the ingress has to have somewhere else to send them before they are let go."""
        try:
            try:
                async with asyncio.timeout(SLOT_CLOSE_TIMEOUT_S):
                    await self._settle_routes()
            except TimeoutError:
                log.warning("%s: the ingress did not let go of its slot", replica.label)
            self._turn_away_waiting(replica)
            if replica.launching is not None:
                await asyncio.wait([replica.launching])
            if replica.pidfd is not None and not await _ends(replica, SLOT_CLOSE_TIMEOUT_S):
                log.warning("%s: its process does not end", replica.label)
            if replica.id not in self._replicas:
                await asyncio.to_thread(shutil.rmtree, self._scratch_folder(replica.order), ignore_errors=True)
        finally:
            self._let_go(replica)

    def _let_go(self, replica: Replica) -> None:
        """Close and remove everything of a forgotten replica, but for what its successor of the same id has by now."""
        self._unwatch(replica)
        self._exit_statuses.pop(replica.key, None)
        slot = self._layout.slot_socket(replica.stem)
        if self._is_reachable(replica):
            slot.unlink(missing_ok=True)
        replica.slot.close()
        if replica.id in self._replicas:
            return
        self.safekeeping.release(replica.id)
        self._exit_file(replica.order).unlink(missing_ok=True)
        self._in_hand_file(replica.order).unlink(missing_ok=True)
        self._layout.control_socket(replica.stem).unlink(missing_ok=True)
        self._record_file(replica.stem).unlink(missing_ok=True)  # last: until then a successor of ours finds the rest

    async def closed(self) -> None:
        """Wait until the slots of forgotten replicas are closed."""
        await asyncio.gather(*self._closing, return_exceptions=True)

    # ---- reports ------------------------------------------------------------------------------------------------

    def reports(self) -> tuple[ReplicaReport, ...]:
        now_s = self._clock.monotonic_s()
        return tuple(self._report(replica, now_s) for replica in self._replicas.values())

    def _report(self, replica: Replica, now_s: float) -> ReplicaReport:
        status = replica.status
        build = replica.order.build
        return ReplicaReport(
            replica=replica.id,
            api=build.api,
            version=build.version,
            revision=build.revision,
            attempt=replica.order.attempt,
            phase=replica.phase,
            resources=build.resources,
            devices=replica.order.devices,
            was_ready=replica.was_ready,
            started_wall_s=replica.started_wall_s,
            phase_age_s=max(0.0, now_s - replica.phase_since_s),
            pid=replica.identity.pid if replica.identity and replica.phase is not Phase.EXITED else None,
            in_flight=status.in_flight if status else 0,
            rss_bytes=replica.rss_bytes,
            peak_rss_bytes=replica.peak_rss_bytes,
            cpu_s=replica.cpu_s,
            progress=replica.progress,
            **self._waits(replica),
            warnings=status.warnings if status else (),
            model=build.model_key,
            batches=replica.order.batches,
            batching=status.batching if status else None,
            exit=replica.exit,
        )

    def _waits(self, replica: Replica) -> dict[str, float]:
        """Of a process that starts: since when it is at what it does, and until when it may be."""
        if replica.phase not in (Phase.LOADING, Phase.WARMING):
            return {}
        limit_s = self._settings.start_timeout_s
        if replica.phase is Phase.WARMING:
            limit_s = min(limit_s, _sample_limit_s(replica.order.build))
        return {"got_on_wall_s": replica.got_on_wall_s, "given_up_wall_s": replica.got_on_wall_s + limit_s}

    # ---- after our own restart ----------------------------------------------------------------------------------

    async def adopt(self) -> None:
        """Find the replicas that a former agent left behind, with their sockets, and clear away what nobody needs."""
        _met, held = await asyncio.gather(self.launchers.adopt(), self.safekeeping.recover())
        records = self._read_records()
        await asyncio.gather(*(self._adopt(record, held) for record in records))
        for replica, sock in held.items():
            log.info("a slot is of no use any more: %s", replica)
            self.safekeeping.release(replica)
            sock.close()
        await self._clear_strays()
        self._on_change()

    def _read_records(self) -> list[ReplicaRecord]:
        folder = self._layout.node / "replicas"
        processes.remove_unfinished(folder)
        records = []
        for file in sorted(folder.glob("*.json")):
            try:
                records.append(msgspec.json.decode(file.read_bytes(), type=ReplicaRecord))
            except (OSError, *UNREADABLE) as error:
                log.error("a replica's record cannot be read and is dropped: %s: %s", file, error)
                file.unlink(missing_ok=True)
        return records

    async def _adopt(self, record: ReplicaRecord, held: dict[ReplicaId, socket.socket]) -> None:
        order = record.order
        path = self._layout.slot_socket(socket_stem(order.replica))
        answer = await self._ask(socket_stem(order.replica))
        status = answer.status
        runs = status is not None and (status.replica, status.attempt) == (order.replica, order.attempt)
        if status is not None and not runs:
            log.warning("%s runs in place of attempt %s and is ended", status.replica, order.attempt)
            processes.send_signal(_identity_of(status), signal.SIGKILL)
        identity = _identity_of(status) if status is not None and runs else record.identity
        kept = held.pop(order.replica, None)
        slot, spare = (answer.listener, kept) if runs else (kept, answer.listener)
        if spare is not None:
            spare.close()
        # One that does not answer in time may be well, as the machine may be busy: its health will be seen to.
        lives = identity is not None and processes.is_alive(identity) and (runs or answer.silent)
        if slot is not None and recovery.leads_somewhere(path):
            slot.setblocking(False)
            inode = path.stat().st_ino
            self.safekeeping.hold(order.replica, slot)
        else:
            if slot is not None:
                _turn_away(slot)
                slot.close()
            slot, inode = self._bind_slot(order.replica)
            lives = False  # what runs has a socket that nobody can reach
        replica = Replica(
            order=order,
            slot=slot,
            slot_inode=inode,
            identity=identity,
            was_ready=record.was_ready,
            # One that goes on although it was to be drained was not told yet, and will be again.
            stopping=record.draining and (not runs or _drains(status)),
            started_wall_s=record.started_wall_s,
        )
        replica.oom_kills_before = machine.oom_kills()
        replica.phase_since_s = replica.progress_since_s = replica.answered_s = self._clock.monotonic_s()
        replica.got_on_wall_s = self._clock.wall_s()
        self._replicas[order.replica] = replica
        if lives and self._watch(replica):
            log.info("adopted %s, pid %s", replica.label, identity.pid if identity else None)
            if status is not None and runs:
                self._status_received(replica, status)
            elif replica.stopping:
                self._set_phase(replica, Phase.DRAINING)
            else:
                self._set_phase(replica, Phase.READY if record.was_ready else Phase.LOADING)
            await self._connect_control(replica)
            return
        if identity is None:
            if record.was_ready:
                self._hold(replica)
            said = self._said_at_exit(replica)
            self._finish(replica, ExitReport(wall_s=self._clock.wall_s(), **said))  # type: ignore[arg-type]
            return
        if processes.send_signal(identity, signal.SIGKILL):
            log.warning("%s cannot be adopted and was ended", replica.label)
        await self._ended(replica)

    async def _ask(self, stem: str) -> recovery.Answer:
        return await recovery.ask(self._layout.control_socket(stem), timeout_s=self._settings.hung_after_s)

    async def _clear_strays(self) -> None:
        """End what runs without a record, and remove the files of replicas that are gone."""
        known = {replica.stem for replica in self}
        for path in self._layout.sockets.glob("c-*.sock"):
            if path.stem.removeprefix("c-") in known:
                continue
            answer = await recovery.ask(path, timeout_s=self._settings.hung_after_s)
            answer.close()
            if answer.status is not None:
                log.warning("%s runs, but nobody knows why: it is ended", answer.status.replica)
                processes.send_signal(_identity_of(answer.status), signal.SIGKILL)
            path.unlink(missing_ok=True)
        for path in self._layout.sockets.glob("r-*.sock"):
            if path.stem.removeprefix("r-") not in known:
                path.unlink(missing_ok=True)
        left = {self._exit_file(r.order).name for r in self} | {self._in_hand_file(r.order).name for r in self}
        for suffix in (EXIT_FILE_SUFFIX, IN_HAND_SUFFIX):
            for file in self._layout.stats.glob(f"*{suffix}"):
                if file.name not in left:
                    file.unlink(missing_ok=True)
        processes.remove_unfinished(self._layout.stats, f"*{EXIT_FILE_SUFFIX}")
        used = {self._scratch_folder(replica.order) for replica in self}
        for folder in self._layout.scratch.glob("*"):
            if folder not in used:
                await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    # ---- starting -----------------------------------------------------------------------------------------------

    async def _launch(self, replica: Replica, before: asyncio.Task[None] | None) -> None:
        """
        From an order to a process that is watched.

        Args:
            before: the same of an earlier replica of this id, which may be forgotten before it is over.
        """
        if before is not None:
            await asyncio.wait([before])
        build = replica.order.build
        try:
            provided = await self._provisions.provide(build, lambda doing: self._note_progress(replica, doing))
            spec = self.replica_spec(replica.order, provided)
            replica.forking = True
            pid = await self._started_once(self._launcher_of(build), spec, replica, provided.secrets)
        except (CortexError, OSError) as error:
            problem = error.problem() if isinstance(error, CortexError) else _os_problem(error)
            log.error("%s could not be started: %s", replica.label, problem.message)
            self._finish(replica, ExitReport(wall_s=self._clock.wall_s(), problem=problem))
            return
        if pid is None:
            self._finish(replica, ExitReport(wall_s=self._clock.wall_s(), drained=True))
            return
        gone = ProcessIdentity(pid=pid, start_ticks=-1, boot_id=processes.boot_id())
        replica.identity = processes.identify(pid) or gone
        replica.answered_s = self._clock.monotonic_s()
        if not self._watch(replica):
            await self._ended(replica)
            return
        if replica.forgotten:
            self._kill(replica, signal.SIGKILL)
            return
        self._remember(replica)
        if replica.phase is Phase.STARTING:
            self._set_phase(replica, Phase.LOADING)
        await self._connect_control(replica)

    async def _started_once(
        self, launcher: Launcher, spec: ReplicaSpec, replica: Replica, secrets: Mapping[str, str]
    ) -> int | None:
        """As `_forked_once`, if possible with what an inspection has loaded."""
        kept = self.kept.take(launcher, spec, secrets)
        pid = None
        try:
            pid = await self._forked_once(launcher, spec, replica, secrets, kept)
        finally:
            if kept and pid is None:
                launcher.call_off(kept)
        return pid

    async def _forked_once(
        self, launcher: Launcher, spec: ReplicaSpec, replica: Replica, secrets: Mapping[str, str], kept: str
    ) -> int | None:
        """
        Have the process forked, once, even by a launcher that dies over it; returns its pid.

        Returns:
            None when nobody wants it any more; nothing was forked.
        """
        for tries_left in reversed(range(LAUNCH_TRIES)):
            if replica.stopping or replica.forgotten:
                return None
            try:
                return await self._fork(launcher, spec, replica, secrets, kept)
            except LauncherLost:
                pid = await self._orphan(replica)
                if pid is not None:
                    return pid
                if not tries_left:
                    raise
        raise AssertionError("unreachable")

    async def _orphan(self, replica: Replica) -> int | None:
        """The child that a launcher forked before it died; None when there is none, and never will be."""
        deadline_s = self._clock.monotonic_s() + ORPHAN_TIMEOUT_S
        while True:
            answer = await self._ask(replica.stem)
            answer.close()
            if answer.status is not None:
                return answer.status.pid if answer.status.attempt == replica.order.attempt else None
            if not answer.silent:
                return None
            if self._clock.monotonic_s() > deadline_s:
                raise LauncherLost("the launcher ended over the fork, and what it forked does not answer")

    async def _fork(
        self, launcher: Launcher, spec: ReplicaSpec, replica: Replica, secrets: Mapping[str, str], kept: str
    ) -> int:
        path = self._layout.control_socket(replica.stem)
        path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as control:
            control.bind(str(path))
            control.listen(16)
            return await launcher.fork(spec, replica.slot, control, secrets, kept=kept)

    def _note_progress(self, replica: Replica, doing: str) -> None:
        if replica.progress != doing:
            replica.progress = doing
            self._on_change()

    def replica_spec(self, order: StartReplica, provided: Provided) -> ReplicaSpec:
        """A build with its digests resolved to paths of this node."""
        build = order.build
        return ReplicaSpec(
            replica=order.replica,
            attempt=order.attempt,
            api=build.api,
            version=build.version,
            revision=build.revision,
            home=str(self._settings.home),
            model_format=build.model.format,
            model_path=str(provided.model),
            signature_key=build.model.signature_key,
            project_dir=str(provided.project) if provided.project else None,
            handler=build.handler,
            tracker=build.tracker,
            env=build.env,
            batches=order.batches,
            concurrency=build.concurrency,
            resources=build.resources,
            devices=order.devices,
            threads=threads_for(build.resources.cpu_millis),
            sample=build.sample,
            log_path=str(self._log_file(order)),
            stats_path=str(self._stats_file(order)),
            scratch=str(self._scratch_folder(order)),
            read_only=(str(self._layout.artifacts), str(self._layout.environments)),
            view_bytes=self._settings.view_bytes,
            start_timeout_s=self._settings.start_timeout_s,
        )

    def _bind_slot(self, replica: ReplicaId) -> tuple[socket.socket, int]:
        path = self._layout.slot_socket(socket_stem(replica))
        path.parent.mkdir(mode=0o700, exist_ok=True)
        path.unlink(missing_ok=True)
        slot = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            slot.setblocking(False)
            slot.bind(str(path))
            slot.listen(SLOT_BACKLOG)
            inode = path.stat().st_ino
        except OSError:
            slot.close()
            raise
        self.safekeeping.hold(replica, slot)
        return slot, inode

    def _is_reachable(self, replica: Replica) -> bool:
        """Whether the path of its slot leads to it: somebody may have removed the file, or bound another slot there."""
        try:
            return self._layout.slot_socket(replica.stem).stat().st_ino == replica.slot_inode
        except FileNotFoundError:
            return False
        except OSError:
            return True

    def _launcher_of(self, build: BuildSpec) -> Launcher:
        return self.launchers.get(build.model.format, build.env, build.environment)

    def environments(self) -> set[str]:
        """Digests of users' packages that replicas or launchers here run with."""
        needed = {replica.order.build.environment for replica in self}
        needed |= {launcher.environment for launcher in self.launchers if launcher.pid is not None}
        return {digest for digest in needed if digest is not None}

    def raw_output(self) -> list[str]:
        """Where replicas here write past Python."""
        folder = self._layout.replica_logs
        return [f"{folder}/{replica.id}.log{rawoutput.SUFFIX}" for replica in self]

    def launcher_keys(self) -> set[str]:
        """Keys of the launchers that replicas here need."""
        return {self._launcher_of(r.order.build).key for r in self}

    # ---- living -------------------------------------------------------------------------------------------------

    async def _connect_control(self, replica: Replica) -> None:
        if replica.connecting or (replica.control is not None and not replica.control.closed):
            return
        replica.connecting = True

        def received(payload: bytes, fds: list[int]) -> None:
            close_all(fds)
            fds.clear()
            if self._replicas.get(replica.id) is replica:
                self._status_received(replica, _STATUS.decode(payload))

        def closed() -> None:
            replica.control = replica.told = None
            replica.told_counts.set()

        try:
            replica.control = await channel.connect(
                self._layout.control_socket(replica.stem), on_frame=received, on_close=closed, timeout_s=5.0
            )
        except OSError as error:
            log.warning("%s: its control socket does not answer: %s", replica.label, error)
            if error.errno in OUR_OWN_LIMITS:
                replica.answered_s = self._clock.monotonic_s()
        finally:
            replica.connecting = False
        if replica.control is not None and (replica.forgotten or replica.gone):
            replica.control.close()

    def _status_received(self, replica: Replica, status: ReplicaStatus) -> None:
        if status.attempt != replica.order.attempt or replica.phase is Phase.EXITED:
            return
        before, replica.status = replica.status, status
        replica.told_counts.set()
        replica.heard = True
        replica.answered_s = self._clock.monotonic_s()
        if status.ending:
            replica.ending.set()
        changed = False
        if status.progress != replica.progress:
            replica.progress = status.progress
            replica.progress_since_s = self._clock.monotonic_s()
            replica.got_on_wall_s = self._clock.wall_s()
            changed = True
        if status.stuck != replica.stuck:
            replica.stuck = status.stuck
            changed = True
        if _told(status.batching) != _told(before.batching if before is not None else None):
            changed = True
        if status.batching.order != replica.order.batches != replica.told:
            self._tell_batching(replica)
        if (status.was_ready or status.phase is Phase.READY) and not replica.was_ready:
            replica.was_ready = True
            self._remember(replica)
        phase = status.phase
        if phase is Phase.DRAINING and not replica.stopping:
            # Whoever told it to end was not us: until it has ended it is what it was before.
            changed = changed or not replica.leaving
            replica.leaving = True
            phase = Phase.READY if replica.was_ready else replica.phase
        if _order(phase) > _order(replica.phase):
            self._set_phase(replica, phase)
        elif changed:
            self._on_change()

    async def count_now(self, patience_s: float) -> None:
        """Have every replica write its counters. One that does not answer in time is not waited for."""
        self._counts_asked += 1
        number = self._counts_asked
        asked = [replica for replica in self if replica.control is not None and replica.was_ready and not replica.gone]
        for replica in asked:
            assert replica.control is not None
            replica.control.send(msgspec.json.encode(Ask(counts=number)))

        async def counted(replica: Replica) -> None:
            while replica.control is not None and (replica.status is None or replica.status.counts < number):
                replica.told_counts.clear()
                await replica.told_counts.wait()

        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                await asyncio.gather(*map(counted, asked))

    async def check_health(self) -> None:
        """
        Ask each replica how it is; end those that hang, are overdue or do not get on with starting.

        Time in which we ourselves did not run (a busy or suspended machine) is not held against them.
        """
        now_s, interval_s = self._clock.monotonic_s(), self._settings.health_interval_s
        late_s = max(0.0, now_s - self._checked_s - interval_s)
        for replica in self:
            replica.answered_s = min(now_s, replica.answered_s + late_s)
            replica.progress_since_s = min(now_s, replica.progress_since_s + late_s)
            if replica.unwritten:
                self._remember(replica)
            if replica.gone or replica.identity is None:
                continue
            self._sample_usage(replica)
            self._note_beat(replica)
            if replica.phase in STARTING:
                self._have_go_on(replica, now_s)
            problem = self._complaint(replica, now_s)
            if problem is not None and replica.ended_by_us is None:
                log.error("%s is ended: %s", replica.label, problem.message)
                replica.ended_by_us = problem
                self._kill(replica, signal.SIGKILL)
            elif replica.control is None:
                self._spawn(replica, self._connect_control(replica))
            else:
                if replica.status is not None and replica.status.batching.order != replica.order.batches:
                    self._tell_batching(replica)
                replica.control.send(_ASK)
        self._checked_s = now_s

    def _have_go_on(self, replica: Replica, now_s: float) -> None:
        """If somebody has stopped it: of one that starts nobody expects answers, so that it would not be missed."""
        assert replica.identity is not None
        if replica.pulse is None:
            replica.pulse = processes.Pulse(replica.identity, replica.label)
        replica.pulse.hangs(now_s)

    def _note_beat(self, replica: Replica) -> None:
        """Count in how many answers in a row the event loop stood still; without a new answer nothing changes."""
        status = replica.status
        if status is None or not replica.heard:
            return
        replica.heard = False
        still = status.heartbeat_age_s > self._settings.hung_after_s and status.oldest_request_age_s == 0.0
        replica.still_beats = replica.still_beats + 1 if still else 0

    def _complaint(self, replica: Replica, now_s: float) -> Problem | None:
        """Why a replica has to be replaced, if it has to."""
        status, limit_s = replica.status, self._settings.hung_after_s
        if replica.phase in STARTING:
            timeout_s = _guarding_timeout_s(replica.order.build.sample)
            limit_s = _sample_limit_s(replica.order.build)
            if replica.phase is Phase.WARMING and status is not None and status.oldest_request_age_s > limit_s:
                return Problem(
                    reference="sample-failed",
                    message=f"the sample was not answered within {timeout_s:g} s, which is the api's `timeout`",
                    hint="a new version must answer its sample before it replaces anything: raise `timeout:`, or "
                    "make it faster",
                )
            stalled_s = now_s - max(replica.phase_since_s, replica.progress_since_s)
            if stalled_s > self._settings.start_timeout_s:
                return Problem(
                    reference="start-timeout",
                    message=f"no progress for {stalled_s:.0f} s while {replica.progress or 'starting'}",
                    hint="if it needs longer, set CORTEX_START_TIMEOUT to more seconds and run `cortex down`, "
                    "`cortex up`",
                )
            return None
        if now_s - replica.answered_s > limit_s + self._settings.health_interval_s:
            return Problem(reference="hung", message=f"it did not answer its health check for {limit_s:.0f} s")
        if status is not None and status.overdue and replica.phase is Phase.READY:
            return Problem(
                reference="overdue",
                message="a request outlived its timeout inside code that cannot be stopped",
            )
        if status is not None and replica.still_beats >= STILL_BEATS:
            return Problem(
                reference="hung",
                message=f"its event loop stood still for {status.heartbeat_age_s:.0f} s with no request running",
            )
        if replica.was_ready and not replica.stopping and not self._is_reachable(replica):
            return Problem(
                reference="socket-removed",
                message=f"the file of its socket was removed: {self._layout.slot_socket(replica.stem)}",
            )
        return None

    def _sample_usage(self, replica: Replica) -> None:
        if replica.pidfd is None or replica.identity is None:
            return  # it has ended, and nobody would close what is opened now
        if replica.meter is None:
            try:
                replica.meter = UsageMeter(replica.identity)
            except OSError:
                return  # it ends just now, or we are out of descriptors
        used = replica.meter.read()
        if used is None:
            return
        replica.cpu_s = used.cpu_s
        replica.rss_bytes = used.rss_bytes
        replica.peak_rss_bytes = max(replica.peak_rss_bytes, used.rss_bytes)

    # ---- ending -------------------------------------------------------------------------------------------------

    async def _drain(self, replica: Replica, timeout_s: float) -> None:
        if replica.launching is not None:
            if not replica.forking:
                replica.launching.cancel()  # its packages may take minutes
            await asyncio.wait([replica.launching])  # until then there is nobody who could be told
        if replica.identity is None:
            if replica.exit is None:
                self._finish(replica, ExitReport(wall_s=self._clock.wall_s(), drained=True))
            return
        if not replica.was_ready:
            self._kill(replica, signal.SIGTERM)
            if not await _ends(replica, KILL_AFTER_S):
                self._kill(replica, signal.SIGKILL)
            return
        deadline_s = self._clock.monotonic_s() + timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                await self._quiesced(replica.stem)
        except TimeoutError:
            log.warning("%s: the ingress still had requests for it after %s s", replica.label, timeout_s)
        left_s = max(0.0, deadline_s - self._clock.monotonic_s())
        if replica.control is None:
            await self._connect_control(replica)
        if replica.control is not None:
            replica.control.send(msgspec.json.encode(Drain(timeout_s=left_s)))
        else:
            self._kill(replica, signal.SIGTERM)
        patience_s = left_s + ENDING_S + KILL_AFTER_S
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                await replica.ending.wait()
        # Code that never gives way may keep even the replica's watchdog from its turn.
        if not await _ends(replica, min(patience_s, MOST_ENDING_S + KILL_AFTER_S) if replica.ending.is_set() else 0.0):
            log.warning("%s did not end in time and is killed", replica.label)
            self._kill(replica, signal.SIGKILL)

    def _kill(self, replica: Replica, number: signal.Signals) -> None:
        if replica.pidfd is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(replica.pidfd, number)

    def _watch(self, replica: Replica) -> bool:
        """Notice the process's end. False: it has ended already."""
        assert replica.identity is not None
        try:
            replica.pidfd = processes.open_pidfd(replica.identity)
        except OSError as error:
            log.error("%s cannot be watched and is ended: %s", replica.label, error)
            os.kill(replica.identity.pid, signal.SIGKILL)
        if replica.pidfd is None:
            return False

        def readable() -> None:
            self._unwatch(replica)
            replica.ending.set()
            replica.ended.set()
            clearing = asyncio.ensure_future(_logged(self._end_strays(replica.identity), replica.label))
            self._closing.add(clearing)
            clearing.add_done_callback(self._closing.discard)
            if not replica.forgotten:
                self._spawn(replica, self._ended(replica))

        asyncio.get_running_loop().add_reader(replica.pidfd, readable)
        return True

    def _unwatch(self, replica: Replica) -> None:
        if replica.pidfd is not None:
            asyncio.get_running_loop().remove_reader(replica.pidfd)
            os.close(replica.pidfd)
            replica.pidfd = None
        if replica.meter is not None:
            replica.meter.close()
            replica.meter = None
        if replica.control is not None:
            replica.control.close()

    def _child_exited(self, message: ChildExited) -> None:
        key = (message.replica, message.attempt)
        self._exit_statuses[key] = message
        waiter = self._exit_waiters.get(key)
        if waiter is not None:
            waiter.set()
        while len(self._exit_statuses) > 1000:
            self._exit_statuses.pop(next(iter(self._exit_statuses)))

    async def _ended(self, replica: Replica) -> None:
        """The process is gone: find out how, and say so."""
        assert replica.identity is not None
        replica.gone = True
        if replica.was_ready and not replica.stopping:
            # Out of rotation before anything else; how it ended can wait.
            self._hold(replica)
            self._on_change()
        status = await self._exit_status(replica)
        self._exit_statuses.pop(replica.key, None)
        in_hand = left_in_hand(self._in_hand_file(replica.order))
        log_file, attempt = self._log_file(replica.order), replica.order.attempt
        await asyncio.to_thread(logs.take_leftover, log_file, attempt, self._places, in_hand.running)
        await asyncio.to_thread(shutil.rmtree, self._scratch_folder(replica.order), ignore_errors=True)
        said = self._said_at_exit(replica)
        if replica.ended_by_us is not None:
            permanent = replica.ended_by_us.reference in ("start-timeout", "sample-failed")
            said = {"problem": replica.ended_by_us, "permanent": permanent}
        killed = status.signal if status else None
        exit_report = ExitReport(
            wall_s=self._clock.wall_s(),
            code=status.code if status else None,
            signal=killed,
            oom=killed == signal.SIGKILL
            and replica.ended_by_us is None
            and not replica.stopping
            and machine.oom_kills() > replica.oom_kills_before,
            drained=replica.stopping,
            request=in_hand.running,
            last_lines=() if replica.stopping else await asyncio.to_thread(logs.last_lines, log_file, attempt),
            **said,  # type: ignore[arg-type]
        )
        lost = in_hand.requests and (replica.was_ready or not replica.stopping)  # else only its sample was on its way
        if lost or not (replica.stopping or said):
            await asyncio.to_thread(
                logs.note_end, log_file, attempt, _end_text(exit_report, in_hand), in_hand.requests, exit_report.wall_s
            )
        self._finish(replica, exit_report)

    async def _exit_status(self, replica: Replica) -> ChildExited | None:
        """How its process ended, from whoever was its parent; None when there is nobody who could tell."""
        assert replica.identity is not None
        waiter = self._exit_waiters.setdefault(replica.key, asyncio.Event())
        try:
            for _ in range(EXIT_STATUS_WAITS):
                status = self._exit_statuses.get(replica.key) or _reap(replica.identity.pid)
                if status is not None:
                    return status
                was_collected = not processes.is_zombie(replica.identity.pid)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(EXIT_STATUS_WAIT_S):
                        await waiter.wait()
                if was_collected:
                    break
                self._launcher_of(replica.order.build).look()  # who should collect it may have been stopped
        finally:
            self._exit_waiters.pop(replica.key, None)
        return self._exit_statuses.get(replica.key) or _reap(replica.identity.pid)

    def _finish(self, replica: Replica, exit_report: ExitReport) -> None:
        if self._replicas.get(replica.id) is not replica:
            return
        replica.exit = exit_report
        replica.gone = True
        replica.ending.set()
        replica.ended.set()
        self._set_phase(replica, Phase.EXITED)
        log.info("%s ended: %s", replica.label, exit_report.text)

    def _said_at_exit(self, replica: Replica) -> dict[str, object]:
        """What the replica left in writing about its end: it outlives a moment without an agent."""
        try:
            said = msgspec.json.decode(self._exit_file(replica.order).read_bytes(), type=LastWords)
        except (OSError, *UNREADABLE):
            return {}
        return {"problem": said.problem, "permanent": said.permanent}

    # ---- holding requests ---------------------------------------------------------------------------------------

    def _hold(self, replica: Replica) -> None:
        """Requests wait for a replacement for a while, then are told that there is none."""
        if replica.unready_since_s is None:
            replica.unready_since_s = self._clock.monotonic_s()
        hold_s = self._settings.hold_timeout_s

        def expire() -> None:
            current = self._replicas.get(replica.id)
            if current is None or current.unready_since_s is None or current.hold_expired:
                return
            if self._clock.monotonic_s() - current.unready_since_s >= hold_s:
                current.hold_expired = True
                self._on_change()
                self._spawn(current, self._turn_away(current))

        asyncio.get_running_loop().call_later(hold_s + 0.01, expire)

    async def _turn_away(self, replica: Replica) -> None:
        await self._abandon(replica.stem)
        if replica.hold_expired:
            self._turn_away_waiting(replica)

    def _turn_away_waiting(self, replica: Replica) -> None:
        """Close the connections that wait in a slot's backlog: the ingress then tries elsewhere or answers 503."""
        _turn_away(replica.slot)

    # ---- small things -------------------------------------------------------------------------------------------

    def _set_phase(self, replica: Replica, phase: Phase) -> None:
        replica.phase = phase
        replica.phase_since_s = replica.progress_since_s = self._clock.monotonic_s()
        replica.got_on_wall_s = self._clock.wall_s()
        if phase is Phase.READY:
            replica.unready_since_s = None
            replica.hold_expired = False
        self._on_change()

    def _log_file(self, order: StartReplica) -> Path:
        return self._layout.replica_logs / f"{order.replica}.log"

    def _stats_file(self, order: StartReplica) -> Path:
        return self._layout.stats / f"{order.replica}.{order.attempt}.json"

    def _scratch_folder(self, order: StartReplica) -> Path:
        return self._layout.scratch / f"{socket_stem(order.replica)}.{order.attempt}"

    def _exit_file(self, order: StartReplica) -> Path:
        """The replica's last words. They stay until its next attempt: a successor of ours may ask again."""
        return self._layout.stats / f"{order.replica}.{order.attempt}.json{EXIT_FILE_SUFFIX}"

    def _in_hand_file(self, order: StartReplica) -> Path:
        return Path(f"{self._stats_file(order)}{IN_HAND_SUFFIX}")

    def _record_file(self, stem: str) -> Path:
        return self._layout.node / "replicas" / f"{stem}.json"

    def _remember(self, replica: Replica) -> None:
        """Write its record. What cannot be written now (a full disk) is tried again, and keeps nobody from serving."""
        file = self._record_file(replica.stem)
        record = ReplicaRecord(
            order=replica.order,
            identity=replica.identity,
            was_ready=replica.was_ready,
            draining=replica.stopping,
            started_wall_s=replica.started_wall_s,
        )
        try:
            file.parent.mkdir(mode=0o700, exist_ok=True)
            processes.write_identity(file, record)
        except OSError as error:
            log.error("%s: its record cannot be written: %s", replica.label, error)
            replica.unwritten = True
        else:
            replica.unwritten = False

    def _spawn(self, replica: Replica, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(_logged(work, replica.label))
        replica.tasks.add(task)
        task.add_done_callback(replica.tasks.discard)
        task.add_done_callback(lambda _task: work.close())  # it may be cancelled before it has begun
        return task


_STATUS = msgspec.json.Decoder(ReplicaStatus)
_ASK = msgspec.json.encode(Ask())


def threads_for(cpu_millis: int) -> int:
    """Threads for numeric libraries: whole cores of the request, at least one."""
    return max(1, cpu_millis // 1000)


def _sample_limit_s(build: BuildSpec) -> float:
    """How long a build's sample may be on its way, with everything; infinite for one that guards nothing."""
    return SAMPLE_TRIES * _guarding_timeout_s(build.sample) + SAMPLE_GRACE_S


def _identity_of(status: ReplicaStatus) -> ProcessIdentity:
    return ProcessIdentity(pid=status.pid, start_ticks=status.start_ticks, boot_id=processes.boot_id())


def _told(batching: BatchingState | None) -> BatchingState | None:
    """What is news of it; how many rows were looked at is not."""
    return None if batching is None else msgspec.structs.replace(batching, guarded_rows=0)


def _drains(status: ReplicaStatus | None) -> bool:
    return status is not None and status.phase is Phase.DRAINING


async def _ends(replica: Replica, timeout_s: float) -> bool:
    """Wait for a replica's process to end; False when it still runs after `timeout_s`."""
    try:
        async with asyncio.timeout(timeout_s):
            await replica.ended.wait()
    except TimeoutError:
        return False
    return True


def _turn_away(slot: socket.socket) -> None:
    """Close every connection that waits in a listening socket's backlog."""
    try:
        while True:
            waiting, _ = slot.accept()
            waiting.close()
    except OSError:
        return


def _order(phase: Phase) -> int:
    return list(Phase).index(phase)


def _reap(pid: int) -> ChildExited | None:
    """The status of an orphan that became our child when its launcher died."""
    try:
        found, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return None
    if found == 0:
        return None
    code = os.waitstatus_to_exitcode(status)
    return ChildExited(
        pid=pid,
        replica=ReplicaId(""),
        attempt=0,
        code=code if code >= 0 else None,
        signal=-code if code < 0 else None,
    )


def _end_text(exit_report: ExitReport, in_hand: LeftInHand) -> str:
    """Of a replica that ended, for its log."""
    text = "killed as its time to drain was up" if exit_report.drained else exit_report.text
    others = len(in_hand.requests) - 1
    beside = f", with {others} more in hand" if others > 0 else ""
    return f"this replica ended{' with the request in hand' if in_hand.requests else ''}: {text}{beside}"


def _os_problem(error: OSError) -> Problem:
    return Problem(reference="node-fault", message=f"the node could not start it: {error}")


async def _logged(work: Awaitable[None], label: str) -> None:
    try:
        await work
    except asyncio.CancelledError:
        raise
    except Exception:
        log.exception("%s: a fault of ours", label)


__all__ = ["ForkRefused", "Replica", "Replicas", "threads_for"]


def _guarding_timeout_s(sample: Sample | None) -> float:
    """How long a sample may take before its replica is given up; infinite for one that guards nothing."""
    return math.inf if sample is None or not sample.gate or not sample.timeout_s else sample.timeout_s
