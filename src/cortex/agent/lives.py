"""
The lives on this node: events go in, one after the other, and what they ask for is carried out.

Nothing is decided here (see `agent.life`). What takes a while is a task, and what comes of it the next event.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
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
from cortex.agent.life.effects import Do, Effect, Next, ReplicaRecord
from cortex.agent.life.events import Event, Happened
from cortex.agent.life.sleeping import fall_asleep
from cortex.agent.life.starting import begin, may_begin
from cortex.agent.life.state import Closing, Life, Now, Process
from cortex.agent.life.step import step
from cortex.agent.memorykills import MemoryKills
from cortex.agent.provisions import Provided, Provisions
from cortex.agent.safekeeping import Safekeeping
from cortex.agent.slots import SlotSocket
from cortex.agent.specs import replica_spec
from cortex.clock import Clock
from cortex.errors import CortexError, Problem
from cortex.ids import ReplicaId
from cortex.settings import NodeLayout, Settings
from cortex.wire.launch import ChildExited, ReplicaStatus
from cortex.wire.orders import HoldSlot, StartReplica
from cortex.wire.places import Places

log = logging.getLogger(__name__)

SOONEST_S = 0.001
OUR_OWN_LIMITS = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS))
"""Why we cannot connect, when that says nothing about the replica."""
MOST_ENDS = 1000
_LEVELS = {"info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


class Replica:
    """One attempt: its life, and what that is carried out with."""

    def __init__(self, life: Life, slot: SlotSocket, layout: NodeLayout, on_gone: Callable[[Replica], None]) -> None:
        self.life = life
        self.slot = slot
        self.files = files_of(layout, life.order)
        self.label = f"{life.id} (attempt {life.order.attempt})"
        self.process = Attended(self.label, lambda: on_gone(self))
        self.provided: Provided | None = None
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


class Lives:
    """
    Every life of the node.

    Args:
        provisions: has everything there that a build needs.
        launchers: to tell `child_exited` how children ended.
        kept: what inspections have loaded.
        memory_kills: tells who was killed for memory.
        settle_routes: returns once the ingress has what orders and readiness say now.
        quiesced: returns once the ingress sends nothing more to a slot's socket (by stem).
        abandon: turns away the requests that wait at a slot (by stem).
        end_strays: ends what processes that are gone have left running.
        on_change: called after anything that a report shows has changed.
        on_active: called when a replica says that something is done there.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        layout: NodeLayout,
        clock: Clock,
        provisions: Provisions,
        launchers: Launchers,
        kept: KeptInspections,
        safekeeping: Safekeeping,
        memory_kills: MemoryKills,
        settle_routes: Callable[[], Awaitable[None]],
        quiesced: Callable[[str], Awaitable[None]],
        abandon: Callable[[str], Awaitable[None]],
        end_strays: Callable[..., Awaitable[None]],
        on_change: Callable[[], None],
        on_active: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._layout = layout
        self._clock = clock
        self._provisions = provisions
        self._launchers = launchers
        self._kept = kept
        self._safekeeping = safekeeping
        self._memory_kills = memory_kills
        self._places = Places(str(layout.home))
        self._settle_routes = settle_routes
        self._quiesced = quiesced
        self._abandon = abandon
        self._end_strays = end_strays
        self._on_change = on_change
        self._on_active = on_active
        self.current: dict[ReplicaId, Replica] = {}
        self.forgotten: set[Replica] = set()
        """Those whose slots are not closed yet."""
        self._clearing: set[asyncio.Task[None]] = set()
        self._events: deque[tuple[Replica, Event]] = deque()
        self._is_passing_on = False
        self._ends: dict[tuple[ReplicaId, int, int], ChildExited] = {}
        """How processes ended, by replica, attempt and pid, until somebody asks."""

    def begin(self, order: StartReplica) -> None:
        """
        The next attempt of a replica, if this is one.

        Raises:
            OSError: its slot cannot be bound; nothing was done.
        """
        known = self.current.get(order.replica)
        before = known.life if known is not None else None
        if not may_begin(before, order):
            return
        slot = known.slot if known is not None and known.slot.is_reachable() else self.bound(order)
        if known is not None:
            _succeeded(known, slot)
        files_of(self._layout, order).remove_remains()
        self.take_up(begin(order, before, self.now()), slot)

    def hold_slot(self, order: HoldSlot) -> None:
        """
        A replica that sleeps, if none of that id is known.

        Raises:
            OSError: its slot cannot be bound; nothing was done.
        """
        if order.replica not in self.current:
            begun = fall_asleep(order, self.now())
            self.take_up(begun, self.bound(begun.life.order))

    def bound(self, order: StartReplica) -> SlotSocket:
        """A new slot. Raises OSError."""
        slot = slots.bind(files_of(self._layout, order).slot)
        self._safekeeping.hold(order.replica, slot.socket)
        return slot

    def forget(self, replica_id: ReplicaId) -> None:
        replica = self.current.pop(replica_id, None)
        if replica is not None:
            self.forgotten.add(replica)
            self.tell(replica, Happened.FORGET_ASKED)

    def order(self, replica_id: ReplicaId, event: Event) -> None:
        """Tell whoever has this id now."""
        replica = self.current.get(replica_id)
        if replica is not None:
            self.tell(replica, event)

    async def closed(self) -> None:
        """Wait until the slots of forgotten replicas are closed."""
        await all_are(self.forgotten, lambda life: life.closing is Closing.CLOSED)
        await asyncio.gather(*self._clearing, return_exceptions=True)

    def pids(self) -> set[int]:
        """Of processes whose end is ours to learn."""
        lives = [replica.life for replica in (*self.current.values(), *self.forgotten)]
        return {
            life.identity.pid
            for life in lives
            if life.identity is not None and life.process in (Process.RUNNING, Process.GONE)
        }

    def launcher_of(self, replica: Replica) -> Launcher:
        build = replica.life.order.build
        return self._launchers.get(build.runtime, build.env, build.packages)

    # ---- events in ----------------------------------------------------------------------------------------------

    def now(self) -> Now:
        return Now(self._clock.monotonic_s(), self._clock.wall_s(), self._settings)

    def take_up(self, begun: Next, slot: SlotSocket) -> None:
        """A life begins."""
        replica = Replica(begun.life, slot, self._layout, self._gone)
        self.current[replica.id] = replica
        with self._passing_on():
            self._follow(replica, begun)
        self._pass_on()
        self._on_change()

    def _gone(self, replica: Replica) -> None:
        self.tell(replica, events.ProcessGone())

    def tell(self, replica: Replica, event: Event) -> None:
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
                try:
                    self._follow(replica, step(replica.life, event, self.now()))
                except Exception:
                    log.exception("%s: a fault of ours", replica.label)
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
        replica.timer = loop.call_later(delay_s, self.tell, replica, Happened.WOKE)

    def _is_succeeded(self, replica: Replica) -> bool:
        return self.current.get(replica.id) is not replica and replica not in self.forgotten

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
                self.end_unknown(lambda replica_id: replica_id == replica.id)
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
                self.launcher_of(replica).look()
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
            case Do.AWAIT_KNOCK:
                replica.slot.await_knock(lambda: self.tell(replica, Happened.KNOCKED))
            case Do.STOP_AWAITING:
                replica.slot.stop_awaiting()
            case Do.OPEN_SLOT:
                self._open_slot(replica)
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
                self.tell(replica, event)

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

    def _open_slot(self, replica: Replica) -> None:
        """In place of one whose path leads nowhere. What cannot be bound now is tried again."""
        lost = replica.slot
        try:
            replica.slot = self.bound(replica.life.order)
        except OSError as error:
            log.error("%s: its slot cannot be bound: %s", replica.label, error)
            return
        lost.turn_away()
        lost.close()

    def _write_record(self, replica: Replica, record: ReplicaRecord) -> None:
        """What cannot be written now (a full disk) is tried again, and keeps nobody from serving."""
        try:
            files.write_record(replica.files, record)
        except OSError as error:
            log.error("%s: its record cannot be written: %s", replica.label, error)
            self.tell(replica, Happened.NOT_WRITTEN)

    def end_unknown(self, are_ours: Callable[[str], bool]) -> None:
        """Processes that no life knows: their record could not be written, and they do not say who they are."""
        for identity, replica_id in attending.others(self._layout.home, self.pids()):
            if are_ours(replica_id):
                log.warning("%s runs, pid %s, but nobody knows why: it is ended", replica_id, identity.pid)
                attending.end(identity)

    # ---- starting -----------------------------------------------------------------------------------------------

    async def _provide(self, replica: Replica) -> Event:
        """Once earlier ones of its id that are forgotten have come to a process or to none."""
        for other in tuple(self.forgotten):
            if other.id == replica.id:
                await other.until(lambda life: not life.is_launching)
        try:
            replica.provided = await self._provisions.provide(
                replica.life.order.build, lambda doing: self.tell(replica, events.Doing(what=doing))
            )
        except (CortexError, OSError) as error:
            return _start_failed(replica, error)
        return Happened.PROVIDED

    async def _fork(self, replica: Replica) -> Event:
        """With what an inspection has loaded, if there is such a thing."""
        assert replica.provided is not None
        provided, launcher = replica.provided, self.launcher_of(replica)
        spec = replica_spec(replica.life.order, provided, settings=self._settings, layout=self._layout)
        kept = self._kept.take(launcher, spec, provided.secrets)
        pid = None
        try:
            with slots.listening(replica.files.control) as control:
                pid = await launcher.fork(spec, replica.slot.socket, control, provided.secrets, kept=kept)
            replica.provided = None  # values of secrets are its process's now
            return events.ProcessForked(identity=attending.newborn(pid))
        except LauncherLost as error:
            return events.LauncherDied(problem=error.problem())
        except (CortexError, OSError) as error:
            return _start_failed(replica, error)
        finally:
            if kept and pid is None:
                launcher.call_off(kept)

    async def _seek_orphan(self, replica: Replica) -> Event:
        answer = await recovery.ask(replica.files.control, timeout_s=self._settings.hung_after_s)
        answer.close()
        status = answer.status
        if status is None or status.attempt != replica.life.order.attempt:
            return events.OrphanSought(is_silent=answer.silent)
        return events.OrphanSought(identity=identity_of(status))

    def _watch(self, replica: Replica, identity: processes.ProcessIdentity) -> None:
        try:
            if not replica.process.watch(identity):
                self.tell(replica, events.ProcessGone(was_watched=False))
        except OSError as error:
            log.error("%s cannot be watched now: %s", replica.label, error)
            self.tell(replica, Happened.NOT_WATCHED)

    async def _connect(self, replica: Replica) -> Event:
        def told(status: ReplicaStatus) -> None:
            self.tell(replica, events.StatusTold(status=status))
            if status.active:
                self._on_active()

        try:
            await replica.process.connect(
                replica.files.control, told, lambda: self.tell(replica, Happened.DISCONNECTED)
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
        replica = self.current.get(message.replica)
        if replica is not None and replica.life.process is Process.GONE:
            self._look_at_end(replica)

    def _look_at_end(self, replica: Replica) -> None:
        """From whoever was its parent: its launcher, or we."""
        identity = replica.life.identity
        assert identity is not None
        end = self._ends.pop((replica.id, replica.life.order.attempt, identity.pid), None)
        end = end or attending.reap(identity.pid)
        self.tell(replica, events.EndSeen(end=end, is_uncollected=end is None and processes.is_zombie(identity.pid)))

    async def _read_remains(self, replica: Replica, with_lines: bool) -> Event:
        left = await asyncio.to_thread(files.read_remains, replica.files, self._places, with_lines=with_lines)
        return msgspec.structs.replace(
            left, memory_ran_out=self._memory_kills.is_recent(), peak_bytes=replica.process.peak_rss_bytes
        )

    async def _note_end(self, replica: Replica, effect: effects.NoteEnd) -> Event:
        await asyncio.to_thread(files.note_end, replica.files, effect)
        return Happened.END_NOTED

    async def _turn_away_waiting(self, replica: Replica) -> None:
        """Who is at the slot by then decides about those that wait there."""
        await self._abandon(replica.files.stem)
        self.order(replica.id, Happened.ABANDONED)

    async def _settle(self) -> Event:
        await self._settle_routes()
        return Happened.ROUTES_SETTLED

    async def _close(self, replica: Replica) -> None:
        for task in replica.works.values():
            task.cancel()
        replica.process.let_go()
        try:
            if not self._has_folder_of(replica):
                await asyncio.to_thread(replica.files.remove_scratch)
        finally:
            replica.slot.close()
            if replica.id not in self.current:
                self._safekeeping.release(replica.id)
                replica.files.remove()
            self.forgotten.discard(replica)

    def _has_folder_of(self, replica: Replica) -> bool:
        """Whether the successor of its id is the same attempt, as far as folders know."""
        successor = self.current.get(replica.id)
        return successor is not None and successor.files.scratch == replica.files.scratch


FAULT_OF_OURS = Problem(reference="node-fault", message="the node could not start it: a fault of ours, see agent.log")


def _start_failed(replica: Replica, error: CortexError | OSError) -> Event:
    problem = error.problem() if isinstance(error, CortexError) else _os_problem(error)
    log.error("%s could not be started: %s", replica.label, problem.message)
    return events.StartFailed(problem=problem)


def _os_problem(error: OSError) -> Problem:
    return Problem(reference="node-fault", message=f"the node could not start it: {error}")


def _stop(replica: Replica, kind: Do) -> None:
    task = replica.works.pop(kind, None)
    if task is not None:
        task.cancel()


def _disarm(replica: Replica) -> None:
    if replica.timer is not None:
        replica.timer.cancel()
        replica.timer = None


def _succeeded(known: Replica, slot: SlotSocket) -> None:
    """Its next attempt begins, in this slot."""
    known.files.remove_remains()
    _disarm(known)
    known.slot.stop_awaiting()
    if known.slot is not slot:
        known.slot.turn_away()
        known.slot.close()


async def all_are(replicas: Iterable[Replica], condition: Callable[[Life], bool]) -> None:
    await asyncio.gather(*(replica.until(condition) for replica in replicas))
