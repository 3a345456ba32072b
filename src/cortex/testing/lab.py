"""One turn of the control plane after another, on pretended nodes and a clock that is moved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from cortex.controlplane.tick import World, tick
from cortex.engines.fake import FakeEngine
from cortex.ids import ApiKey
from cortex.planning.actions import Plan
from cortex.planning.assessment import Assessment
from cortex.planning.model import WantedApi
from cortex.planning.status import statuses
from cortex.state.records import StateStore
from cortex.testing.builders import API, a_deploy, a_node
from cortex.testing.clock import FakeClock
from cortex.testing.fake_agent import FakeAgents
from cortex.wire.operator import ApiStatus, Status
from cortex.wire.reports import Node


@dataclass
class Lab:
    """
    A control plane with everything around it pretended.

    Args:
        nodes: the machines there are at first.
    """

    clock: FakeClock = field(default_factory=FakeClock)
    state: StateStore = field(default_factory=StateStore)
    nodes: Sequence[Node] = (a_node(),)

    def __post_init__(self) -> None:
        self.engine = FakeEngine(self.nodes, clock=self.clock)
        self.agents = FakeAgents(self.clock, self.nodes)
        self.world = self.a_world()

    def a_world(self) -> World:
        """A control plane that starts now."""
        return World(
            state=self.state,
            engine=self.engine,
            agents=self.agents,
            clock=self.clock,
            epoch=self.state.take_epoch(),
            show=self.show,
        )

    def show(self, assessment: Assessment) -> None:
        self.shown = assessment

    def restart(self) -> None:
        """The control plane ends and starts again, with an engine that has forgotten everything."""
        self.engine.forgets = True
        self.engine.restart()
        self.agents.forget_reports()
        self.world = self.a_world()

    def settle(self) -> Plan:
        """Tick until there is nothing to do at once."""
        for _ in range(50):
            plan = tick(self.world)
            if not plan.actions or (plan.wake_after_s or 0.0) > 0.0:
                return plan
        raise AssertionError(f"still something to do: {plan.describe()}")

    def run(self, seconds: float) -> Plan:
        """Let time pass as the loop would, from one thing that happens to the next."""
        end_s = self.clock.monotonic_s() + seconds
        while True:
            plan = self.settle()
            now_s = self.clock.monotonic_s()
            if now_s >= end_s:
                return plan
            due = [end_s, now_s + 5.0, self.agents.next_change_s()]
            due += [None if plan.wake_after_s is None else now_s + plan.wake_after_s]
            self.clock.advance(min(at_s for at_s in due if at_s is not None and at_s > now_s) - now_s)

    def deploy(self, *wanted: WantedApi, seconds: float = 5.0) -> Plan:
        self.state.commit_deploy(a_deploy(*wanted))
        return self.run(seconds)

    def phases(self) -> dict[str, str]:
        return {report.replica: report.phase for _node, report in self.agents.replicas()}

    def wanted(self) -> WantedApi:
        record = self.state.api(API)
        assert record is not None
        return record.wanted

    def status(self) -> Status:
        return self.statuses()[API].status

    def statuses(self) -> dict[ApiKey, ApiStatus]:
        """What is shown."""
        tick(self.world)
        return statuses(self.shown)
