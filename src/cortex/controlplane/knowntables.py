"""
The tables of routes that the control plane knows, so that no report has to repeat them.

A table holds the routes of all apis, and is the same on every node: a thousand nodes that each say theirs every second
would say hardly anything else. So they are asked for reports without a table that is known here, because we have made
it or the node has said it before. And all reports here share it.
"""

from __future__ import annotations

import threading

import msgspec

from cortex.wire.agent import KnownRoutes
from cortex.wire.orders import UNNUMBERED, Orders, RoutesRevision, SetRoute, SetRoutes
from cortex.wire.reports import AgentReport

MOST = 64
"""Tables that are kept, those that were of use last. Who has one that is not is asked for it."""

Table = tuple[SetRoute, ...]


class KnownTables:
    """Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._epoch = 0
        self._tables: dict[RoutesRevision, Table] = {}
        """The one that was of use last comes last."""

    def known(self, last: AgentReport | None) -> KnownRoutes:
        """What a node is told that is asked for a report after this one."""
        with self._lock:
            return KnownRoutes(epoch=self._epoch, revision=last.routes_revision if last is not None else None)

    def note_ordered(self, orders: Orders) -> None:
        """Remember the tables that these orders come to."""
        with self._lock:
            self._epoch = max(self._epoch, orders.epoch)
            for order in orders.orders:
                if isinstance(order, SetRoutes) and order.revision not in self._tables:
                    base = () if order.base is None else self._tables.get(order.base)
                    if base is not None:
                        self._keep(order.revision, _changed(base, order))

    def completed(self, report: AgentReport) -> AgentReport | None:
        """A report with its table. None: it leaves out one that is not known any more."""
        revision = report.routes_revision
        if revision is None or revision == UNNUMBERED:
            return report
        with self._lock:
            table = self._tables.pop(revision, None)
            if table is None and report.routes_known:
                return None
            table = report.routes if table is None else table
            self._keep(revision, table)
        return msgspec.structs.replace(report, routes=table, routes_known=False)

    def _keep(self, revision: RoutesRevision, table: Table) -> None:
        self._tables[revision] = table
        if len(self._tables) > MOST:
            del self._tables[next(iter(self._tables))]


def _changed(base: Table, order: SetRoutes) -> Table:
    changed = {*order.removed, *(route.api for route in order.routes)}
    return (*(route for route in base if route.api not in changed), *order.routes)
