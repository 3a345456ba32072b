"""The control plane's loop: wait for something to happen or for time to matter, then one `tick`."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable

import msgspec

from cortex.clock import Clock, until_beat_s
from cortex.controlplane.tick import StaleEpoch, World, tick
from cortex.controlplane.world import Agents
from cortex.engines.base import Engine
from cortex.errors import CortexError
from cortex.metrics.exposition import PlannerCounts
from cortex.planning.actions import OrderNode, Plan
from cortex.planning.assessment import Assessment
from cortex.state.records import StateStore
from cortex.wire.events import TellEvent, told_to_nobody

log = logging.getLogger(__name__)

LONGEST_WAIT_S = 5.0
"""Even if nothing happens, the world is looked at this often."""
FAULT_PAUSE_S = 1.0
"""After a tick that failed through a fault of ours, before the next."""
CATCH_UP_S = 5.0
"""How long a change waits to be shown: a tick whose orders an agent does not take may be in its way."""


class Loop:
    """
    Keeps the world as it is wanted, in a thread of its own.

    Args:
        in_charge: whether this is still the one control plane of its home.
        resign: called when it is not; then the loop has ended.
        show: told in each tick what is about to be acted on.
        changed: called after a tick that found another situation than the one before.
    """

    def __init__(
        self,
        *,
        state: StateStore,
        engine: Engine,
        agents: Agents,
        clock: Clock,
        in_charge: Callable[[], bool],
        resign: Callable[[], None],
        show: Callable[[Assessment], None],
        changed: Callable[[], None],
        tell: TellEvent = told_to_nobody,
    ) -> None:
        self._state = state
        self._engine = engine
        self._agents = agents
        self._clock = clock
        self._in_charge = in_charge
        self._resign = resign
        self._show = show
        self._changed = changed
        self._tell = tell
        self.counts = PlannerCounts()
        self.latest: Assessment | None = None
        """What the last tick saw and acted on."""
        self._shown = threading.Condition()
        self._shown_revision = -1
        """Of the state, as `latest` has it."""
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._world = self._new_world()
        self._thread = threading.Thread(target=self._run, name="control-loop", daemon=True)

    @property
    def epoch(self) -> int:
        """Under which orders are given now."""
        return self._world.epoch

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """Something has happened."""
        self._wake.set()

    def catch_up(self) -> None:
        """Return once what is shown takes in everything that is stored now, at the latest after `CATCH_UP_S`."""
        revision = self._state.revision
        self._wake.set()
        with self._shown:
            self._shown.wait_for(
                lambda: self._shown_revision >= revision or self.stopping or not self._thread.is_alive(), CATCH_UP_S
            )

    @property
    def stopping(self) -> bool:
        """Whether nothing more is decided."""
        return self._stopping.is_set()

    def stop(self) -> None:
        """Decide nothing more; what runs goes on running."""
        self._stopping.set()
        self._wake.set()
        with self._shown:
            self._shown.notify_all()

    def join(self, timeout_s: float) -> None:
        """Wait for a tick that is under way."""
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def _run(self) -> None:
        wait_s = 0.0
        while not self._stopping.is_set():
            self._wake.wait(wait_s)
            self._wake.clear()
            if self._stopping.is_set():
                return
            try:
                if not self._in_charge():
                    log.error("the home is gone or is another one now: this control plane ends")
                    self._resign()
                    return
                wait_s = self._tick()
            except StaleEpoch as error:
                wait_s = self._overtake(error)
            except Exception:
                log.exception("a tick failed through a fault of ours")
                self.counts = msgspec.structs.replace(self.counts, failed_ticks=self.counts.failed_ticks + 1)
                self._stopping.wait(FAULT_PAUSE_S)
                wait_s = 0.0

    def _tick(self) -> float:
        """One turn. Returns seconds until the next, at the latest."""
        begun_s = self._clock.monotonic_s()
        before = self._world.memory.planned_for
        plan = tick(self._world)
        if self._world.memory.planned_for != before:
            self._changed()
        self._count(plan, begun_s)
        wait_s = until_beat_s(self._clock.monotonic_s(), LONGEST_WAIT_S)
        return wait_s if plan.wake_after_s is None else min(wait_s, plan.wake_after_s)

    def _overtake(self, error: StaleEpoch) -> float:
        """
        The agent has heard of a later epoch than ours, and yet nobody else can be in charge while we hold the home.

        So the state is an older one, or a new one: moved away and made again, or restored from a backup.

        Returns:
            When to try again, in seconds.
        """
        latest = max((report.epoch for report in self._agents.reports()), default=0)
        log.warning("%s: the state must have been replaced; going on from epoch %s", error, latest)
        try:
            if latest >= self._world.epoch:
                self._state.set_meta("epoch", str(latest))
            self._world = self._new_world()
        except CortexError as problem:
            log.error("no later epoch could be taken: %s", problem)
            return FAULT_PAUSE_S
        return 0.0

    def _new_world(self) -> World:
        return World(
            state=self._state,
            engine=self._engine,
            agents=self._agents,
            clock=self._clock,
            epoch=self._state.take_epoch(),
            show=self._note,
            tell=self._tell,
        )

    def _note(self, assessment: Assessment) -> None:
        self._show(assessment)
        with self._shown:
            self.latest = assessment
            self._shown_revision = self._world.memory.desired_revision or 0
            self._shown.notify_all()

    def _count(self, plan: Plan, begun_s: float) -> None:
        counts = self.counts
        actions = Counter(counts.actions)
        actions.update(type(a.order if isinstance(a, OrderNode) else a).__name__ for a in plan.actions)
        self.counts = msgspec.structs.replace(
            counts,
            ticks=counts.ticks + 1,
            tick_s=counts.tick_s + self._clock.monotonic_s() - begun_s,
            last_tick_wall_s=self._clock.wall_s(),
            actions=dict(actions),
        )
