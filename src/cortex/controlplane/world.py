"""What the control plane works on, and the little it remembers between two ticks to save work."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from cortex.clock import Clock
from cortex.engines.base import Engine
from cortex.errors import CortexError, RetryLater
from cortex.ids import NodeId
from cortex.planning.actions import Action, Plan
from cortex.planning.assessment import Assessment
from cortex.planning.model import Desired, Lease, Rules
from cortex.planning.plan import plan
from cortex.state.records import StateStore
from cortex.wire.events import TellEvent, told_to_nobody
from cortex.wire.orders import Orders
from cortex.wire.reports import AgentReport

Planner = Callable[[Assessment], Plan]


class StaleEpoch(CortexError):
    """An agent has taken orders from a control plane newer than us: we are not in charge any more."""

    reference = "stale-epoch"


class Agents(Protocol):
    """
    The agents of all nodes, as the control plane sees them.

    What `reports` says must never go back in time for an agent, and after `order` has returned it must show what the
    orders changed. Orders given to one node must not overtake each other, not even those that were not answered.
    """

    def reports(self) -> tuple[AgentReport, ...]:
        """The last known report of each node that has an agent. Quick: asks nobody."""
        ...

    @property
    def settled(self) -> bool:
        """Whether every node that is known has reported since we started."""
        ...

    def order(self, batches: Mapping[NodeId, Orders]) -> Mapping[NodeId, RetryLater]:
        """
        Have batches of orders carried out, each in sequence, those of all nodes side by side.

        Returns:
            The nodes that cannot be reached, or have not answered in the time that the slowest may take: their orders
            may have been carried out or not, or will be yet.

        Raises:
            StaleEpoch: someone newer is in charge of one of them. All were tried.
        """
        ...

    def silent_s(self) -> Mapping[NodeId, float]:
        """For how many seconds each known node has not been heard. Some seconds are usual where nothing happens."""
        ...


@dataclass(kw_only=True)
class World:
    """
    Everything a tick works on.

    Nothing here needs to survive: a new World over the same state, engine and agents plans the same after one tick.

    Args:
        epoch: from `StateStore.take_epoch`; every order carries it.
        show: told in each tick what is about to be acted on: what people see comes from nothing else.
    """

    state: StateStore
    engine: Engine
    agents: Agents
    clock: Clock
    epoch: int
    rules: Rules = field(default_factory=Rules)
    planner: Planner = plan
    show: Callable[[Assessment], None] | None = None
    tell: TellEvent = told_to_nobody
    memory: TickMemory = field(default_factory=lambda: TickMemory())

    def __post_init__(self) -> None:
        self.memory.started_s = self.clock.monotonic_s()
        self.memory.started_wall_s = self.clock.wall_s()
        self.memory.attentive_since_s = self.memory.looked_s = self.memory.started_s
        self.engine.avoid(self.memory.lost, self.memory.leaving)

    def steady_wall_s(self) -> float:
        """
        The wall clock as read when we started, carried on by the monotonic one.

        Ages are counted on this, so that a wall clock that is set meanwhile neither ends nor prolongs a back-off.
        """
        return self.memory.started_wall_s + self.clock.monotonic_s() - self.memory.started_s


@dataclass
class TickMemory:
    """What the last tick saw, so that the next need not look again at what has not changed."""

    started_s: float = 0.0
    started_wall_s: float = 0.0
    attentive_since_s: float = 0.0
    """Since when we have looked at the nodes without a pause: what was not heard before that is nobody's silence."""
    looked_s: float = 0.0
    met_s: dict[NodeId, float] = field(default_factory=dict)
    """When each node of the engine that has not been heard was first seen there."""
    lost: frozenset[NodeId] = frozenset()
    """The nodes that count as lost."""
    leaving: frozenset[NodeId] = frozenset()
    """Those that are to be given back, as the engine has been told."""
    next_loss_s: float | None = None
    """Seconds until one more does, unless it is heard."""
    recovered: bool = False
    """The engine knows what runs, and stored instants lie in the past."""
    desired: Desired = field(default_factory=Desired)
    desired_revision: int | None = None
    leases: tuple[Lease, ...] = ()
    leases_revision: int | None = None
    reports_seen: tuple[tuple[NodeId, str, int], ...] | None = None
    """(node, agent, serial) of each report of the last tick."""
    reports: tuple[AgentReport, ...] = ()
    """Whose usage was passed on to the engine. A report may show more usage without another serial."""
    planned_for: object = None
    """What the last plan was made for; while it is the same and no time is up, so is the plan."""
    planned_s: float = 0.0
    plan: Plan = field(default_factory=Plan)
    applied: tuple[Action, ...] = ()
    """The actions of the last plan that had any."""
    complaints: frozenset[str] = frozenset()
    """What failed when it was applied, as logged."""
    tables: int = 0
    """How many tables of routes we have made; of some it may not be known who has them."""
    certain: set[NodeId] = field(default_factory=set)
    """Nodes that have answered the last orders they were given: what they report is not about to change by an order."""
