"""A control plane's side of the links to agents, put together as `controlplane.app` does it, and without the rest."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from cortex.clock import Clock, SystemClock
from cortex.controlplane.agents import LinkedAgents
from cortex.controlplane.lines import Lines
from cortex.controlplane.links import Incarnations, Links
from cortex.controlplane.supervision import AgentSupervisor
from cortex.ids import NodeId
from cortex.settings import ControlLayout, NodeLayout, Settings
from cortex.wire.link import ORDERS
from cortex.wire.loads import NodeLoads


def linked_agents(
    path: Path,
    *,
    supervisors: Mapping[NodeId, AgentSupervisor] | None = None,
    known: Iterable[NodeId] = (),
    wide: tuple[socket.socket, ssl.SSLContext] | None = None,
    clock: Clock | None = None,
    on_report: Callable[[], None] = lambda: None,
    on_loads: Callable[[NodeLoads], None] | None = None,
) -> LinkedAgents:
    """Agents that dial in at a socket."""
    incarnations = Incarnations()
    agents = LinkedAgents(
        links=Links(
            path=path,
            wide=wide,
            epoch=lambda: 1,
            incarnations=incarnations,
            ways={ORDERS: lambda connection, hello: agents.take_over(connection, hello)},
        ),
        lines=Lines(incarnations),
        clock=clock or SystemClock(),
        supervisors=supervisors or {},
        known=known,
        on_report=on_report,
        on_loads=on_loads,
    )
    return agents


def local_agents(
    settings: Settings, layout: NodeLayout, *, on_loads: Callable[[NodeLoads], None] | None = None
) -> LinkedAgents:
    """The agent of this machine, which is started."""
    control = ControlLayout(settings.home)
    supervisor = AgentSupervisor(
        settings=settings, layout=layout, down_mark=control.down_mark, clock=SystemClock(), bound=()
    )
    return linked_agents(control.links_socket, supervisors={NodeId("local"): supervisor}, on_loads=on_loads)
