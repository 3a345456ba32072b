"""
The replicas of the node: what their lives ask for is carried out, and what comes of it is told to them.

Nothing is decided here (see `agent.life`): orders, observations and the outcome of what was done go in as events, one
after the other, and effects come out.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from typing import Any

import msgspec

from cortex import processes
from cortex.agent import attending, files, recovery, slots
from cortex.agent.attending import Attended, identity_of
from cortex.agent.files import files_of
from cortex.agent.kept import KeptInspections
from cortex.agent.launchers import Launcher, LauncherLost, Launchers
from cortex.agent.life import effects, events
from cortex.agent.life.adopting import Found, adopt
from cortex.agent.life.effects import Do, Effect, Next, ReplicaRecord
from cortex.agent.life.events import Event, Happened
from cortex.agent.life.report import report
from cortex.agent.life.starting import begin, may_begin
from cortex.agent.life.state import Closing, Life, Now, Process
from cortex.agent.life.step import step
from cortex.agent.provisions import Provided, Provisions
from cortex.agent.safekeeping import Safekeeping
from cortex.agent.slots import Slot
from cortex.agent.specs import replica_spec
from cortex.clock import Clock
from cortex.engines import machine
from cortex.errors import CortexError, Problem
from cortex.ids import ReplicaId
from cortex.settings import HomeLayout, Settings
from cortex.wire import rawoutput
from cortex.wire.batching import BatchingOrder
from cortex.wire.launch import Ask, ChildExited, ReplicaStatus
from cortex.wire.orders import StartReplica
from cortex.wire.places import Places
from cortex.wire.reports import Phase, ReplicaReport

log = logging.getLogger(__name__)

ADOPTION_TIMEOUT_S = 10.0
"""For finding out how those have ended that a former agent left: the first report should say it."""
SOONEST_S = 0.001
OUR_OWN_LIMITS = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS))
"""Why we cannot connect, when that says nothing about the replica."""
MOST_ENDS = 1000
_LEVELS = {"info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


class Replica:
    """One attempt: its life, and what that is carried out with."""

    def __init__(self, life: Life, slot: Slot, layout: HomeLayout, on_gone: Callable[[Replica], None]) -> None:
        self.life = life
        self.slot = slot
        self.files = files_of(layout, life.order)
        self.label = f"{life.id} (attempt {life.order.attempt})"
        self.process = Attended(self.label, lambda: on_gone(self))
        self.provided: Provided | None = None
        self.oom_kills_before = machine.oom_kills()
        self.works: dict[Do | type[Effect], asyncio.Task[None]] = {}
        self.timer: asyncio.TimerHandle | None = None
        self.moved = asyncio.Event()
        """Set by each event."""

    @property
    def id(self) -> ReplicaId:
        return self.life.id

    async def until(self, condition: Callable[[Life], bool]) -> None:
        """Wait until something is true of its life."""
        while not condition(self.life):
            self.moved.clear()
            await self.moved.wait()


class Replicas:
    """
    Every replica of the node.

    Args:
        provisions: has everything there that a build needs.
        launchers: to tell `child_exited` how children ended.
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
        launchers: Launchers,
        safekeeping: Safekeeping,
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
        self._forgotten: set[Replica] = set()
        """Those whose slots are not closed yet."""
        self._clearing: set[asyncio.Task[None]] = set()
        self._events: deque[tuple[Replica, Event]] = deque()
        self._is_passing_on = False
        self._ends: dict[tuple[ReplicaId, int, int], ChildExited] = {}
        """How processes ended, by replica, attempt and pid, until somebody asks."""
        self._checked_s = clock.monotonic_s()
        self._counts_asked = time.time_ns()
        """Grows; above what a former agent asked with, as replicas remember that."""
        self.launchers = launchers
        self.safekeeping = safekeeping
        self.kept = KeptInspections()

    @property
    def lives(self) -> dict[ReplicaId, Life]:
        """Of those that are reported."""
        return {replica.id: replica.life for replica in self._replicas.values()}

    def _all(self) -> tuple[Replica, ...]:
        return tuple(self._replicas.values())

    # ---- orders -------------------------------------------------------------------------------------------------

    def start(self, order: StartReplica) -> None:
        """
        Carry out a start order; see `StartReplica` for what repeats do.

        Raises:
            OSError: its slot cannot be bound; nothing was done.
        """
        known = self._replicas.get(order.replica)
        if not may_begin(known.life if known is not None else None, order):
            return
        slot = known.slot if known is not None and known.slot.is_reachable() else self._bound(order)
        if known is not None:
            self._succeeded(known, slot)
        files_of(self._layout, order).remove_remains()
        self._take_up(begin(order, known.life if known is not None else None, self._now()), slot)

    def _bound(self, order: StartReplica) -> Slot:
        slot = slots.bind(files_of(self._layout, order).slot)
        self.safekeeping.hold(order.replica, slot.socket)
        return slot

    def _succeeded(self, known: Replica, slot: Slot) -> None:
        """Its next attempt begins, in this slot."""
        known.files.remove_remains()
        _disarm(known)
        if known.slot is not slot:
            known.slot.turn_away()
            known.slot.close()

    def drain(self, replica_id: ReplicaId, timeout_s: float) -> None:
        """Take it out of rotation, let it finish, end it."""
        self._order(replica_id, events.DrainAsked(timeout_s=timeout_s))

    def set_batching(self, replica_id: ReplicaId, batches: BatchingOrder) -> None:
        """Have it do this about batches."""
        self._order(replica_id, events.BatchingAsked(batches=batches))

    def forget(self, replica_id: ReplicaId) -> None:
        """End it now if it still runs, and drop its slot once the ingress has let go of it."""
        replica = self._replicas.pop(replica_id, None)
        if replica is not None:
            self._forgotten.add(replica)
            self._tell(replica, Happened.FORGET_ASKED)

    def _order(self, replica_id: ReplicaId, event: Event) -> None:
        replica = self._replicas.get(replica_id)
        if replica is not None:
            self._tell(replica, event)

    async def exited(self) -> None:
        """Wait until none has a process."""
        await _all_are(self._all(), lambda life: life.phase is Phase.EXITED)

    async def closed(self) -> None:
        """Wait until the slots of forgotten replicas are closed."""
        await asyncio.gather(
            *(replica.until(lambda life: life.closing is Closing.CLOSED) for replica in self._forgotten)
        )
        await asyncio.gather(*self._clearing, return_exceptions=True)

    # ---- what others ask ----------------------------------------------------------------------------------------

    def reports(self) -> tuple[ReplicaReport, ...]:
        now = self._now()
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

    def pids(self) -> set[int]:
        """Of processes whose end is ours to learn."""
        lives = [replica.life for replica in (*self._all(), *self._forgotten)]
        return {
            life.identity.pid
            for life in lives
            if life.identity is not None and life.process in (Process.RUNNING, Process.GONE)
        }

    def environments(self) -> set[str]:
        """Digests of users' packages that replicas or launchers here run with."""
        needed = {replica.life.order.build.environment for replica in self._all()}
        needed |= {launcher.environment for launcher in self.launchers if launcher.pid is not None}
        return {digest for digest in needed if digest is not None}

    def raw_output(self) -> list[str]:
        """Where replicas here write past Python."""
        return [f"{replica.files.log}{rawoutput.SUFFIX}" for replica in self._all()]

    def launcher_keys(self) -> set[str]:
        """Keys of the launchers that replicas here need."""
        return {self._launcher_of(replica).key for replica in self._all()}

    def _launcher_of(self, replica: Replica) -> Launcher:
        build = replica.life.order.build
        return self.launchers.get(build.runtime, build.env, build.environment)

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
        for replica in self._all():
            replica.process.measure()
            lost = replica.life.runs and not replica.slot.is_reachable()
            self._tell(replica, events.Checked(late_s=late_s, lost_path=str(replica.slot.path) if lost else ""))

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
        self._on_change()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ADOPTION_TIMEOUT_S):
                await _all_are(self._all(), lambda life: not life.is_ending)

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
        self._take_up(adopt(record, found, self._now()), slot or self._bound(order))

    async def _who_answers(self, order: StartReplica) -> recovery.Answer:
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
        self._end_unknown(lambda replica_id: replica_id not in starting)
        await asyncio.to_thread(files.clear_away, self._layout, [replica.files for replica in self._all()])

    # ---- events in ----------------------------------------------------------------------------------------------

    def _now(self) -> Now:
        return Now(self._clock.monotonic_s(), self._clock.wall_s(), self._settings)

    def _take_up(self, begun: Next, slot: Slot) -> None:
        """A life begins."""
        replica = Replica(begun.life, slot, self._layout, self._gone)
        self._replicas[replica.id] = replica
        with self._passing_on():
            self._follow(replica, begun)
        self._pass_on()
        self._on_change()

    def _gone(self, replica: Replica) -> None:
        self._tell(replica, events.ProcessGone())

    def _tell(self, replica: Replica, event: Event) -> None:
        self._events.append((replica, event))
        self._pass_on()

    def _pass_on(self) -> None:
        """One event after the other: what an effect brings about at once has to wait until the rest is done."""
        if self._is_passing_on:
            return
        with self._passing_on():
            while self._events:
                replica, event = self._events.popleft()
                before = replica.life.news
                self._follow(replica, step(replica.life, event, self._now()))
                if replica.life.news != before:
                    self._on_change()

    @contextlib.contextmanager
    def _passing_on(self) -> Iterator[None]:
        was, self._is_passing_on = self._is_passing_on, True
        try:
            yield
        finally:
            self._is_passing_on = was

    def _follow(self, replica: Replica, next_: Next) -> None:
        replica.life = next_.life
        replica.moved.set()
        for effect in next_.effects:
            try:
                self._carry_out(replica, effect)
            except Exception:
                log.exception("%s: a fault of ours", replica.label)
        self._arm(replica)

    def _arm(self, replica: Replica) -> None:
        """Wake up when its next alarm is due, if it is still the one of its id, or forgotten."""
        _disarm(replica)
        due_s = replica.life.next_alarm_s
        if due_s is None or self._is_succeeded(replica):
            return
        delay_s = max(SOONEST_S, due_s - self._clock.monotonic_s())
        loop = asyncio.get_running_loop()
        replica.timer = loop.call_later(delay_s, self._tell, replica, Happened.WOKE)

    def _is_succeeded(self, replica: Replica) -> bool:
        return self._replicas.get(replica.id) is not replica and replica not in self._forgotten

    # ---- effects out --------------------------------------------------------------------------------------------

    def _carry_out(self, replica: Replica, effect: Effect) -> None:
        match effect:
            case effects.Say(level=level, text=text):
                log.log(_LEVELS[level], "%s %s", replica.label, text)
            case effects.WriteRecord(record=record):
                self._write_record(replica, record)
            case Do.PROVIDE:
                self._work(replica, effect, self._provide(replica), events.StartFailed(problem=FAULT_OF_OURS))
            case Do.STOP_PROVIDING:
                _stop(replica, Do.PROVIDE)
            case Do.FORK:
                self._work(replica, effect, self._fork(replica), events.LauncherDied(problem=FAULT_OF_OURS))
            case Do.SEEK_ORPHAN:
                self._work(replica, effect, self._seek_orphan(replica), events.OrphanSought(is_silent=True))
            case Do.END_UNKNOWN:
                self._end_unknown(lambda replica_id: replica_id == replica.id)
            case effects.EndStray(identity=identity):
                log.warning("%s: pid %s is in its place and is ended", replica.label, identity.pid)
                attending.end(identity)
            case effects.Watch(identity=identity):
                self._watch(replica, identity)
            case Do.CONNECT:
                self._work(replica, effect, self._connect(replica), events.NotConnected())
            case Do.HANG_UP:
                replica.process.hang_up()
            case effects.Send(request=request):
                replica.process.send(request)
            case Do.HAVE_GO_ON:
                replica.process.have_go_on(self._clock.monotonic_s())
            case Do.QUIET:
                self._work(replica, effect, self._quiet(replica))
            case Do.STOP_QUIETING:
                _stop(replica, Do.QUIET)
            case effects.Kill(number=number):
                replica.process.signal(number)
            case effects.EndDescendants(identity=identity):
                self._clear(self._end_strays(identity), replica)
            case Do.LOOK_AT_END:
                self._look_at_end(replica)
            case Do.HURRY_LAUNCHER:
                self._launcher_of(replica).look()
            case effects.ReadRemains(with_lines=with_lines):
                self._work(replica, effect, self._read_remains(replica, with_lines), events.RemainsRead())
            case effects.NoteEnd():
                self._work(replica, effect, self._note_end(replica, effect), Happened.END_NOTED)
            case Do.ABANDON:
                self._clear(self._turn_away_waiting(replica), replica)
            case Do.TURN_AWAY:
                replica.slot.turn_away()
            case Do.SETTLE_ROUTES:
                self._work(replica, effect, self._settle(), Happened.ROUTES_SETTLED)
            case Do.CLOSE_SLOT:
                self._clear(self._close(replica), replica)

    def _work(
        self, replica: Replica, effect: Effect, work: Coroutine[Any, Any, Event], failed: Event | None = None
    ) -> None:
        """
        Carry out what takes a while; what it returns is told, or `failed`. The same effect again meanwhile is the same
        work.
        """
        kind = effect if isinstance(effect, Do) else type(effect)
        if kind in replica.works:
            work.close()
            return

        async def run() -> None:
            event = failed
            try:
                event = await work
            except Exception:
                log.exception("%s: a fault of ours", replica.label)
            replica.works.pop(kind, None)
            if event is not None:
                self._tell(replica, event)

        task = replica.works[kind] = asyncio.ensure_future(run())
        task.add_done_callback(lambda _task: work.close())  # it may be cancelled before it has begun

    def _clear(self, work: Awaitable[None], replica: Replica) -> None:
        """What nobody waits for but `closed`."""

        async def run() -> None:
            try:
                await work
            except Exception:
                log.exception("%s: a fault of ours", replica.label)

        task = asyncio.ensure_future(run())
        self._clearing.add(task)
        task.add_done_callback(self._clearing.discard)

    def _write_record(self, replica: Replica, record: ReplicaRecord) -> None:
        """What cannot be written now (a full disk) is tried again, and keeps nobody from serving."""
        try:
            files.write_record(replica.files, record)
        except OSError as error:
            log.error("%s: its record cannot be written: %s", replica.label, error)
            self._tell(replica, Happened.NOT_WRITTEN)

    def _end_unknown(self, are_ours: Callable[[str], bool]) -> None:
        """Processes that no life knows: their record could not be written, and they do not say who they are."""
        for identity, replica_id in attending.others(self._layout.home, self.pids()):
            if are_ours(replica_id):
                log.warning("%s runs, pid %s, but nobody knows why: it is ended", replica_id, identity.pid)
                attending.end(identity)

    # ---- starting -----------------------------------------------------------------------------------------------

    async def _provide(self, replica: Replica) -> Event:
        """Once earlier ones of its id that are forgotten have come to a process or to none."""
        for other in tuple(self._forgotten):
            if other.id == replica.id:
                await other.until(lambda life: not life.is_launching)
        try:
            replica.provided = await self._provisions.provide(
                replica.life.order.build, lambda doing: self._tell(replica, events.Doing(what=doing))
            )
        except (CortexError, OSError) as error:
            return _start_failed(replica, error)
        return Happened.PROVIDED

    async def _fork(self, replica: Replica) -> Event:
        """With what an inspection has loaded, if there is such a thing."""
        assert replica.provided is not None
        provided, launcher = replica.provided, self._launcher_of(replica)
        spec = replica_spec(replica.life.order, provided, settings=self._settings, layout=self._layout)
        kept = self.kept.take(launcher, spec, provided.secrets)
        pid = None
        try:
            with slots.listening(replica.files.control) as control:
                pid = await launcher.fork(spec, replica.slot.socket, control, provided.secrets, kept=kept)
            return events.Forked(identity=attending.newborn(pid))
        except LauncherLost as error:
            return events.LauncherDied(problem=error.problem())
        except (CortexError, OSError) as error:
            return _start_failed(replica, error)
        finally:
            if kept and pid is None:
                launcher.call_off(kept)

    async def _seek_orphan(self, replica: Replica) -> Event:
        answer = await self._who_answers(replica.life.order)
        answer.close()
        status = answer.status
        if status is None or status.attempt != replica.life.order.attempt:
            return events.OrphanSought(is_silent=answer.silent)
        return events.OrphanSought(identity=identity_of(status))

    def _watch(self, replica: Replica, identity: processes.ProcessIdentity) -> None:
        try:
            if not replica.process.watch(identity):
                self._tell(replica, events.ProcessGone(was_watched=False))
        except OSError as error:
            log.error("%s cannot be watched now: %s", replica.label, error)
            self._tell(replica, Happened.NOT_WATCHED)

    async def _connect(self, replica: Replica) -> Event:
        def told(status: ReplicaStatus) -> None:
            self._tell(replica, events.StatusTold(status=status))

        try:
            await replica.process.connect(
                replica.files.control, told, lambda: self._tell(replica, Happened.DISCONNECTED)
            )
        except OSError as error:
            log.warning("%s: its control socket does not answer: %s", replica.label, error)
            return events.NotConnected(was_our_limit=error.errno in OUR_OWN_LIMITS)
        return Happened.CONNECTED

    # ---- ending -------------------------------------------------------------------------------------------------

    async def _quiet(self, replica: Replica) -> Event:
        await self._quiesced(replica.files.stem)
        return Happened.QUIETED

    def child_exited(self, message: ChildExited) -> None:
        """A launcher tells how a process ended; it may be known already that it has, or not."""
        self._ends[message.replica, message.attempt, message.pid] = message
        while len(self._ends) > MOST_ENDS:
            self._ends.pop(next(iter(self._ends)))
        replica = self._replicas.get(message.replica)
        if replica is not None and replica.life.process is Process.GONE:
            self._look_at_end(replica)

    def _look_at_end(self, replica: Replica) -> None:
        """From whoever was its parent: its launcher, or we."""
        identity = replica.life.identity
        assert identity is not None
        end = self._ends.pop((replica.id, replica.life.order.attempt, identity.pid), None)
        end = end or attending.reap(identity.pid)
        self._tell(replica, events.EndSeen(end=end, is_uncollected=end is None and processes.is_zombie(identity.pid)))

    async def _read_remains(self, replica: Replica, with_lines: bool) -> Event:
        left = await asyncio.to_thread(files.read_remains, replica.files, self._places, with_lines=with_lines)
        return msgspec.structs.replace(left, memory_ran_out=machine.oom_kills() > replica.oom_kills_before)

    async def _note_end(self, replica: Replica, effect: effects.NoteEnd) -> Event:
        await asyncio.to_thread(files.note_end, replica.files, effect)
        return Happened.END_NOTED

    async def _turn_away_waiting(self, replica: Replica) -> None:
        """Who is at the slot by then decides about those that wait there."""
        await self._abandon(replica.files.stem)
        self._order(replica.id, Happened.ABANDONED)

    async def _settle(self) -> Event:
        await self._settle_routes()
        return Happened.ROUTES_SETTLED

    async def _close(self, replica: Replica) -> None:
        for task in replica.works.values():
            task.cancel()
        replica.process.let_go()
        successor = self._replicas.get(replica.id)
        if successor is None or successor.files.scratch != replica.files.scratch:
            await asyncio.to_thread(replica.files.remove_scratch)
        replica.slot.close()
        if replica.id not in self._replicas:
            self.safekeeping.release(replica.id)
            replica.files.remove()
        self._forgotten.discard(replica)


FAULT_OF_OURS = Problem(reference="node-fault", message="the node could not start it: a fault of ours, see agent.log")


def _start_failed(replica: Replica, error: CortexError | OSError) -> Event:
    problem = error.problem() if isinstance(error, CortexError) else _os_problem(error)
    log.error("%s could not be started: %s", replica.label, problem.message)
    return events.StartFailed(problem=problem)


def _os_problem(error: OSError) -> Problem:
    return Problem(reference="node-fault", message=f"the node could not start it: {error}")


async def _all_are(replicas: Iterable[Replica], condition: Callable[[Life], bool]) -> None:
    await asyncio.gather(*(replica.until(condition) for replica in replicas))


def _has_counted(life: Life, number: int) -> bool:
    return life.status is not None and life.status.counts >= number


def _stop(replica: Replica, kind: Do) -> None:
    task = replica.works.pop(kind, None)
    if task is not None:
        task.cancel()


def _disarm(replica: Replica) -> None:
    if replica.timer is not None:
        replica.timer.cancel()
        replica.timer = None
