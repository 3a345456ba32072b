from __future__ import annotations

from typing import Any

import msgspec
import pytest

from cortex.agent.life import effects, events
from cortex.agent.life.adopting import Found, adopt
from cortex.agent.life.effects import Do, Effect, Next, ReplicaRecord
from cortex.agent.life.events import Event, Happened
from cortex.agent.life.starting import begin
from cortex.agent.life.state import Intent, Life, Now
from cortex.agent.life.step import step
from cortex.errors import Problem
from cortex.ids import replica_id
from cortex.processes import ProcessIdentity
from cortex.settings import Settings
from cortex.testing.builders import a_build
from cortex.testing.clock import FakeClock
from cortex.wire.launch import ReplicaStatus
from cortex.wire.orders import StartReplica
from cortex.wire.reports import Phase

BUILD = a_build()
PROCESS = ProcessIdentity(pid=4711, start_ticks=12, boot_id="b")


def an_order(attempt: int = 1, **build: Any) -> StartReplica:
    spec = msgspec.structs.replace(BUILD, **build)
    return StartReplica(replica=replica_id(BUILD.api, BUILD.revision, 0), attempt=attempt, build=spec)


class Story:
    """One life, moved on event by event, with a clock that is moved by hand."""

    PROCESS = PROCESS

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.clock = FakeClock()
        self.life: Life
        self.effects: list[Effect] = []
        """Of the last event."""

    @property
    def now(self) -> Now:
        return Now(self.clock.monotonic_s(), self.clock.wall_s(), self.settings)

    @property
    def kinds(self) -> list[Do | type[Effect]]:
        return [kind_of(effect) for effect in self.effects if not isinstance(effect, effects.Say)]

    def _follow(self, found: Next) -> Life:
        self.life, self.effects = found.life, list(found.effects)
        return self.life

    def order(self, attempt: int = 1, before: Life | None = None, **build: Any) -> Life:
        return self._follow(begin(an_order(attempt, **build), before, self.now))

    def adopt(self, record: dict[str, Any], **found: Any) -> Life:
        return self._follow(adopt(ReplicaRecord(**{"order": an_order(), **record}), Found(**found), self.now))

    def tell(self, *told: Event, after_s: float = 0.0) -> Life:
        self.clock.advance(after_s)
        for event in told:
            self._follow(step(self.life, event, self.now))
        return self.life

    def says(self, **fields: Any) -> Life:
        """The replica does."""
        return self.tell(events.StatusTold(status=self.status(**{"phase": self.life.phase, **fields})), after_s=0.01)

    def status(self, **fields: Any) -> ReplicaStatus:
        defaults = {
            "replica": an_order().replica,
            "attempt": 1,
            "pid": PROCESS.pid,
            "start_ticks": PROCESS.start_ticks,
            "phase": Phase.READY,
            "phase_wall_s": 0.0,
            "started_wall_s": 0.0,
        }
        return ReplicaStatus(**{**defaults, **fields})

    def check(self, *, after_s: float | None = None, **fields: Any) -> Problem | None:
        """A look at its health when one is due; what is held against it. Time beyond that was ours."""
        interval_s = self.settings.health_interval_s
        after_s = interval_s if after_s is None else after_s
        late_s = max(0.0, after_s - interval_s)
        return self.tell(events.Checked(late_s=late_s, **fields), after_s=after_s).fault

    def loading(self, **build: Any) -> Life:
        self.order(**build)
        return self.tell(Happened.PROVIDED, events.ProcessForked(identity=PROCESS))

    def running(self, phase: Phase = Phase.READY, **build: Any) -> Life:
        """One that is connected, and has come so far."""
        self.loading(**build)
        self.tell(Happened.CONNECTED)
        return self.says(phase=phase) if phase is not Phase.LOADING else self.life

    def draining(self, timeout_s: float = 10.0) -> Life:
        """One that has been told to drain."""
        self.running()
        return self.tell(events.DrainAsked(timeout_s=timeout_s), Happened.QUIETED)

    def of(self, kind: type[Any]) -> list[Any]:
        """Those effects of the last event."""
        return [effect for effect in self.effects if isinstance(effect, kind)]

    def wake(self) -> Life:
        """Let time pass until the next alarm is due."""
        due_s = self.life.next_alarm_s
        assert due_s is not None
        return self.tell(Happened.WOKE, after_s=max(0.0, due_s - self.clock.monotonic_s()))

    def is_killed(self) -> bool:
        return self.life.intent >= Intent.END


def kind_of(effect: Effect) -> Do | type[Effect]:
    return effect if isinstance(effect, Do) else type(effect)


@pytest.fixture
def story(settings: Settings) -> Story:
    return Story(settings)
