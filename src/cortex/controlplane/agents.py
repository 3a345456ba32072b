"""The agents of all nodes, each over a link of its own: what they report, orders side by side, questions."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import Future
from functools import partial

from cortex.clock import Clock
from cortex.controlplane.knowntables import KnownTables
from cortex.controlplane.lines import AgentUnreachable, Lines
from cortex.controlplane.links import AgentConnection, Links
from cortex.controlplane.nodelink import OBSERVE_TIMEOUT_S, NodeLink
from cortex.controlplane.supervision import AgentSupervisor
from cortex.controlplane.world import StaleEpoch
from cortex.errors import RetryLater
from cortex.ids import NodeId
from cortex.wire.link import Hello
from cortex.wire.loads import NodeLoads
from cortex.wire.orders import Orders
from cortex.wire.reports import AgentReport

log = logging.getLogger(__name__)

ORDER_LIMIT_S = 2.0
"""A node that has not answered by then keeps no other waiting. An agent takes orders in milliseconds."""
COUNT_LIMIT_S = 1.5
BEAT_S = 1.0
"""How often each of several nodes is heard: one that is silent for `planning.reach.LOST_AFTER_S` is lost."""


class LinkedAgents:
    """
    Implements `world.Agents`: nodes that are known from the beginning, and all that have dialed in since.

    Args:
        links: where they dial in; listens while we watch.
        supervisors: of the nodes whose agents are started here. These nodes are known.
        known: other nodes that are waited for.
        on_report: called from a thread of ours after each new report.
        on_loads: called from threads of ours with how much there is to do on a node, each half second while anything
            happens. None: nobody wants to know, and nothing is read for it.
    """

    def __init__(
        self,
        *,
        links: Links,
        lines: Lines,
        clock: Clock,
        supervisors: Mapping[NodeId, AgentSupervisor],
        known: Iterable[NodeId] = (),
        on_report: Callable[[], None],
        on_loads: Callable[[NodeLoads], None] | None = None,
    ) -> None:
        self._links = links
        self._lines = lines
        self._clock = clock
        self._supervisors = supervisors
        self._on_report = on_report
        self._on_loads = on_loads
        self.closing = threading.Event()
        """Set once nobody is watched any more."""
        self._lock = threading.Lock()
        self._tables = KnownTables()
        self._nodes: dict[NodeId, NodeLink] = {}
        self._started = self._closed = False
        for node in (*supervisors, *known):
            self._nodes[node] = self._link(node)

    def start(self) -> None:
        """Let agents dial in, and watch them; starts those of this machine that do not run. Raises OSError."""
        self._links.start()
        with self._lock:
            self._started = True
            for link in self._nodes.values():
                link.start()

    def close(self) -> None:
        """Stop watching. The agents go on."""
        self.closing.set()
        with self._lock:
            self._closed = True
        for link in self.nodes():
            link.close()
        if self._started:
            self._links.close()
        self._lines.close()

    def take_over(self, connection: AgentConnection, hello: Hello) -> None:
        """A node has dialed in, known or not, to be asked."""
        with self._lock:
            if hello.node not in self._nodes and not self._closed:
                log.info("node %s has come", hello.node)
                self._nodes[hello.node] = link = self._link(hello.node)
                if self._started:
                    link.start()
        self._lines.take_over(connection, hello)

    def nodes(self) -> tuple[NodeLink, ...]:
        """All that are known, in the order in which they came to be."""
        with self._lock:
            return tuple(self._nodes.values())

    def link(self, node: NodeId) -> NodeLink:
        """Raises AgentUnreachable: nobody has heard of such a node."""
        with self._lock:
            found = self._nodes.get(node)
        if found is None:
            raise AgentUnreachable(f"no node {node} is known")
        return found

    def _link(self, node: NodeId) -> NodeLink:
        return NodeLink(
            node,
            lines=self._lines,
            clock=self._clock,
            tables=self._tables,
            supervisor=self._supervisors.get(node),
            on_report=self._on_report,
            on_loads=self._on_loads,
            on_look=self._links.look,
            beat_s=lambda: OBSERVE_TIMEOUT_S if len(self._nodes) == 1 else BEAT_S,
        )

    # ---- world.Agents -------------------------------------------------------------------------------------------

    def reports(self) -> tuple[AgentReport, ...]:
        return tuple(report for link in self.nodes() if (report := link.report) is not None)

    @property
    def settled(self) -> bool:
        return all(link.report is not None for link in self.nodes())

    def order(self, batches: Mapping[NodeId, Orders]) -> Mapping[NodeId, RetryLater]:
        until_s = self._clock.monotonic_s() + ORDER_LIMIT_S
        links = {link.node: link for link in self.nodes()}
        given: dict[NodeId, Future[None]] = {}
        problems: dict[NodeId, RetryLater] = {}
        for node, orders in batches.items():
            try:
                if node not in links:
                    raise AgentUnreachable(f"no node {node} is known")
                given[node] = links[node].give(orders)
            except RetryLater as error:
                problems[node] = error
        stale: StaleEpoch | None = None
        for node, answer in given.items():
            try:
                answer.result(timeout=max(0.0, until_s - self._clock.monotonic_s()))
            except TimeoutError:
                problems[node] = AgentUnreachable("it has not answered yet")
            except RetryLater as error:
                problems[node] = error
            except StaleEpoch as error:
                stale = error
        if stale is not None:
            raise stale
        return problems

    def silent_s(self) -> Mapping[NodeId, float]:
        return {link.node: link.silent_s for link in self.nodes()}

    # ---- questions ----------------------------------------------------------------------------------------------

    def sweep_packages(self, in_use: Collection[str]) -> tuple[str, ...]:
        """
        Have installations removed on all nodes, as `NodeLink.sweep_packages`.

        Raises:
            AgentUnreachable: one of them cannot be reached. It was done on the others.
        """
        removed: list[str] = []
        away: AgentUnreachable | None = None
        for link in self.nodes():
            try:
                removed += link.sweep_packages(in_use)
            except AgentUnreachable as error:
                away = error
        if away is not None:
            raise away
        return tuple(removed)

    def count_now(self) -> None:
        """As `NodeLink.count_now`, of all nodes side by side."""
        _side_by_side([link.count_now for link in self.nodes()], COUNT_LIMIT_S)

    def stop_agents(self, drain_timeout_s: float) -> None:
        """Have everything on all nodes drained and ended, side by side, agents last. Returns when they are gone."""
        self.closing.set()
        _side_by_side([partial(link.stop_agent, drain_timeout_s) for link in self.nodes()], None)


def _side_by_side(calls: Collection[Callable[[], None]], limit_s: float | None) -> None:
    """Make calls at once, and wait for all of them, but not longer than so long for each."""
    if len(calls) == 1:
        for call in calls:
            call()
        return
    threads = [threading.Thread(target=call, name="side-by-side", daemon=True) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(limit_s)
