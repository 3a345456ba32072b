"""The replicas of the node, for the agent: orders, reports, health, and those that a former agent left behind."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time

from cortex.agent import attending, files, recovery, slots
from cortex.agent.attending import identity_of
from cortex.agent.files import files_of
from cortex.agent.launchers import Launchers
from cortex.agent.life import events
from cortex.agent.life.adopting import Found, adopt
from cortex.agent.life.effects import ReplicaRecord
from cortex.agent.life.report import report
from cortex.agent.life.state import Life, Process
from cortex.agent.lives import Lives, Replica, all_are
from cortex.agent.loads import Metered
from cortex.agent.memorykills import MemoryKills
from cortex.agent.safekeeping import Safekeeping
from cortex.clock import Clock
from cortex.ids import ReplicaId
from cortex.settings import NodeLayout, Settings
from cortex.wire import rawoutput
from cortex.wire.batching import BatchingOrder
from cortex.wire.launch import Ask
from cortex.wire.orders import HoldSlot, StartReplica
from cortex.wire.reports import Phase, ReplicaReport
from cortex.wire.stats import Attempt

log = logging.getLogger(__name__)

ADOPTION_TIMEOUT_S = 10.0
"""For finding out how those have ended that a former agent left: the first report should say it."""


class Replicas:
    """
    Every replica of the node.

    Args:
        lives: moves them on.
        launchers: fork them.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        layout: NodeLayout,
        clock: Clock,
        lives: Lives,
        launchers: Launchers,
        safekeeping: Safekeeping,
        memory_kills: MemoryKills,
    ) -> None:
        self._settings = settings
        self._layout = layout
        self._clock = clock
        self._lives = lives
        self.launchers = launchers
        self.safekeeping = safekeeping
        self._memory_kills = memory_kills
        self._checked_s = clock.monotonic_s()
        self._counts_asked = time.time_ns()
        """Grows; above what a former agent asked with, as replicas remember that."""

    @property
    def lives(self) -> dict[ReplicaId, Life]:
        """Of those that are reported."""
        return {replica.id: replica.life for replica in self._lives.current.values()}

    def _all(self) -> tuple[Replica, ...]:
        return tuple(self._lives.current.values())

    # ---- orders -------------------------------------------------------------------------------------------------

    def start(self, order: StartReplica) -> None:
        """
        Carry out a start order; see `StartReplica` for what repeats do.

        Raises:
            OSError: its slot cannot be bound; nothing was done.
        """
        self._lives.begin(order)

    def hold_slot(self, order: HoldSlot) -> None:
        """
        Carry out an order to sleep; see `HoldSlot` for what repeats do.

        Raises:
            OSError: its slot cannot be bound; nothing was done.
        """
        self._lives.hold_slot(order)

    def drain(self, replica_id: ReplicaId, timeout_s: float) -> None:
        """Take it out of rotation, let it finish, end it."""
        self._lives.order(replica_id, events.DrainAsked(timeout_s=timeout_s))

    def set_batching(self, replica_id: ReplicaId, batches: BatchingOrder) -> None:
        """Have it do this about batches."""
        self._lives.order(replica_id, events.BatchingAsked(batches=batches))

    def forget(self, replica_id: ReplicaId) -> None:
        """End it now if it still runs, and drop its slot once the ingress has let go of it."""
        self._lives.forget(replica_id)

    async def exited(self) -> None:
        """Wait until none has a process."""
        await all_are(self._all(), lambda life: life.phase is Phase.EXITED)

    async def closed(self) -> None:
        """Wait until the slots of forgotten replicas are closed."""
        await self._lives.closed()

    # ---- what others ask ----------------------------------------------------------------------------------------

    def reports(self) -> tuple[ReplicaReport, ...]:
        now = self._lives.now()
        return tuple(
            report(
                replica.life,
                now,
                rss_bytes=replica.process.usage.rss_bytes,
                peak_rss_bytes=replica.process.peak_rss_bytes,
                cpu_s=replica.process.usage.cpu_s,
            )
            for replica in self._all()
        )

    def metered(self) -> list[Metered]:
        """The ready ones."""
        return [
            Metered(replica.life.order, replica.life.identity, replica.files.load)
            for replica in self._all()
            if replica.life.phase is Phase.READY and replica.life.identity is not None
        ]

    def pids(self) -> set[int]:
        """Of processes whose end is ours to learn."""
        return self._lives.pids()

    def packages_in_use(self) -> set[str]:
        """Digests of users' packages that replicas or launchers here run with."""
        needed = {replica.life.order.build.packages for replica in self._all()}
        needed |= {launcher.packages for launcher in self.launchers if launcher.pid is not None}
        return {digest for digest in needed if digest is not None}

    def trees_in_use(self) -> set[str]:
        """Digests of the stored folders that replicas here need, those that are on their way out among them."""
        replicas = (*self._all(), *self._lives.forgotten)
        return {tree for replica in replicas for tree in replica.life.order.build.trees}

    def raw_output(self) -> list[str]:
        """Where replicas here write past Python."""
        return [f"{replica.files.log}{rawoutput.SUFFIX}" for replica in self._all()]

    def counting(self) -> frozenset[Attempt]:
        """Attempts whose process may still count something."""
        replicas = (*self._lives.current.values(), *self._lives.forgotten)
        over = (Process.GONE, Process.READ, Process.OVER)
        return frozenset((r.id, r.life.order.attempt) for r in replicas if r.life.process not in over)

    def launcher_keys(self) -> set[str]:
        """Keys of the launchers that replicas here need."""
        return {self._lives.launcher_of(replica).key for replica in self._all()}

    async def count_now(self, patience_s: float) -> None:
        """Have every replica write its counters. One that does not answer in time is not waited for."""
        self._counts_asked += 1
        number = self._counts_asked
        asked = [replica for replica in self._all() if replica.process.is_connected and replica.life.was_ready]
        for replica in asked:
            replica.process.send(Ask(counts=number))

        async def counted(replica: Replica) -> None:
            await replica.until(lambda life: not replica.process.is_connected or _has_counted(life, number))

        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                await asyncio.gather(*map(counted, asked))

    async def check_health(self) -> None:
        """
        Have each life look at its replica.

        Time in which we ourselves did not run (a busy or suspended machine) is not held against them.
        """
        now_s = self._clock.monotonic_s()
        late_s = max(0.0, now_s - self._checked_s - self._settings.health_interval_s)
        self._checked_s = now_s
        self._memory_kills.look()
        for replica in self._all():
            replica.process.measure()
            needed = replica.life.runs or replica.life.phase is Phase.ASLEEP
            lost = needed and not replica.slot.is_reachable()
            self._lives.tell(replica, events.Checked(late_s=late_s, lost_path=str(replica.slot.path) if lost else ""))

    # ---- after our own restart ----------------------------------------------------------------------------------

    async def adopt(self) -> None:
        """Find the replicas that a former agent left behind, with their sockets, and clear away what nobody needs."""
        _met, held = await asyncio.gather(self.launchers.adopt(), self.safekeeping.recover())
        await asyncio.gather(*(self._adopt(record, held) for record in files.read_records(self._layout)))
        for replica_id, sock in held.items():
            log.info("a slot is of no use any more: %s", replica_id)
            self.safekeeping.release(replica_id)
            sock.close()
        await self._clear_strays()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ADOPTION_TIMEOUT_S):
                await all_are(self._all(), lambda life: not life.is_ending)

    async def _adopt(self, record: ReplicaRecord, held: dict[ReplicaId, socket.socket]) -> None:
        order, path = record.order, files_of(self._layout, record.order).slot
        answer = await self._who_answers(record.order)
        status = answer.status
        runs = status is not None and (status.replica, status.attempt) == (order.replica, order.attempt)
        answered_by = identity_of(status) if status is not None else None
        kept = held.pop(order.replica, None)
        sock, spare = (answer.listener, kept) if runs else (kept, answer.listener)
        if spare is not None:
            spare.close()
        slot = slots.found_again(path, sock)
        if slot is not None:
            self.safekeeping.hold(order.replica, slot.socket)
        found = Found(
            status=status if runs else None,
            identity=answered_by if runs else None,
            impostor=None if runs else answered_by,
            is_silent=answer.silent,
            is_reachable=slot is not None,
        )
        self._lives.take_up(adopt(record, found, self._lives.now()), slot or self._lives.bound(order))

    async def _who_answers(self, order: StartReplica) -> recovery.SocketOwner:
        return await recovery.ask(files_of(self._layout, order).control, timeout_s=self._settings.hung_after_s)

    async def _clear_strays(self) -> None:
        """End what runs without a record, and remove the files of replicas that are gone."""
        known = {replica.files.control for replica in self._all()}
        for path in self._layout.sockets.glob("c-*.sock"):
            if path in known:
                continue
            answer = await recovery.ask(path, timeout_s=self._settings.hung_after_s)
            answer.close()
            if answer.status is not None:
                log.warning("%s runs, but nobody knows why: it is ended", answer.status.replica)
                attending.end(identity_of(answer.status))
            path.unlink(missing_ok=True)
        starting = {replica.id for replica in self._all() if replica.life.is_launching}
        self._lives.end_unknown(lambda replica_id: replica_id not in starting)
        await asyncio.to_thread(files.clear_away, self._layout, [replica.files for replica in self._all()])


def _has_counted(life: Life, number: int) -> bool:
    return life.status is not None and life.status.counts >= number
