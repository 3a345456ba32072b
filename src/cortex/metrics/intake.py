"""
What nodes deliver of their counts, into the store.

A node deletes the file of a replica that is gone once it is told that its counts are on our disk, and no sooner; see
`agent.countfiles`. What was last seen of a replica is forgotten a while after its node keeps no file of it any more.
"""

from __future__ import annotations

import logging
import secrets
from collections import deque
from collections.abc import Iterable
from collections.abc import Set as AbstractSet

import msgspec

from cortex.clock import CLOCKS_AGREE_S, Clock
from cortex.ids import ApiKey, NodeId
from cortex.metrics.slices import HOUR_S
from cortex.metrics.store import StatsStore
from cortex.wire.framing import UNREADABLE
from cortex.wire.needs import CountsTaken, DeliverCounts
from cortex.wire.stats import Attempt, StatsFile

log = logging.getLogger(__name__)

FORGET_AFTER_S = 60.0
"""
How long the last seen counters of a replica outlive its file. A replica that was thought gone and is not writes a
new file within a second of its next request, and what was sent on a connection that died may still be read; the rest is
for stalls.
"""
NODES_HERE_AFTER_S = HOUR_S
"""How long after our start a node that was not heard of is gone."""
REMEMBERED_AGENTS = 16
_decode = msgspec.json.Decoder(StatsFile).decode


class CountIntake:
    """
    Merges what is delivered into the store. For one thread at a time.

    Args:
        store: of which `by` is a name: nodes deliver everything to another one.
    """

    def __init__(self, store: StatsStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._by = secrets.token_hex(8)
        self._began_s = clock.monotonic_s()
        self._seen = store.known()
        """Attempts that the store has seen, by node."""
        self._nodes: dict[NodeId, _Node] = {}
        """Those that have delivered something since our start."""
        self._discarded: frozenset[Attempt] | None = None
        """Attempts that count for nobody, as their api was removed; None: the store knows."""
        self._maintained_hour: int | None = None
        self._warned: set[NodeId] = set()

    def take(
        self,
        node: NodeId,
        delivery: DeliverCounts,
        *,
        wanted: AbstractSet[ApiKey] | None = None,
        serving: AbstractSet[Attempt] = frozenset(),
    ) -> CountsTaken:
        """
        Count what is new in a delivery. The same again, or later than what followed it, counts nothing.

        Args:
            wanted: apis that there are; see `StatsStore.merge`.
            serving: attempts that answer requests of an api that there is.

        Raises:
            StatsStoreUnusable: nothing was counted; it may be delivered again.
        """
        files = [file for content in delivery.files if (file := self._read(content, node)) is not None]
        if files:
            now_wall_s = self._clock.wall_s()
            ahead_s = 0.0 if delivery.sent_wall_s is None else delivery.sent_wall_s - now_wall_s
            if abs(ahead_s) > CLOCKS_AGREE_S:
                files = [msgspec.structs.replace(file, wall_s=file.wall_s - ahead_s) for file in files]
            self._store.merge(files, now_wall_s, node=node, wanted=wanted)
            self._seen.setdefault(node, set()).update((file.replica, file.attempt) for file in files)
            if wanted is not None and any(file.api not in wanted for file in files):
                self._discarded = None
        self.take_back(serving)
        self._nodes.setdefault(node, _Node()).hear(delivery)
        return CountsTaken(by=self._by, durable=delivery.durably and self._store.sync())

    def forget_apis(self, apis: Iterable[ApiKey]) -> None:
        """See `StatsStore.forget_apis`."""
        self._store.forget_apis(apis)
        self._discarded = None

    def take_back(self, serving: AbstractSet[Attempt]) -> None:
        """
        Count what an api of the same name has taken over when one was removed: the same build was deployed again before
        its replicas were told to end. Those that were end with what they have in hand, and that counts for nobody.
        """
        if self._discarded is None:
            self._discarded = self._store.discarded()
        taken_over = self._discarded & serving
        if taken_over:
            self._store.count_again(taken_over)
            self._discarded -= taken_over

    def tidy(self, nodes: AbstractSet[NodeId]) -> None:
        """
        Forget what is over, and what is too old to be shown.

        Args:
            nodes: those that there are.

        Raises:
            StatsStoreUnusable
        """
        now_s = self._clock.monotonic_s()
        for name, node in self._nodes.items():
            seen = self._seen.get(name, set())
            due = node.due(seen, now_s)
            if due:
                self._store.forget(name, due)
                seen -= due
        wall_s = self._clock.wall_s()
        hour = int(wall_s // HOUR_S)
        if hour != self._maintained_hour:
            self._store.maintain(wall_s)
            if now_s - self._began_s >= NODES_HERE_AFTER_S:
                self._store.forget_nodes(but=nodes | self._nodes.keys(), now_wall_s=wall_s)
                self._seen = self._store.known()
            self._maintained_hour = hour

    def _read(self, content: msgspec.Raw, node: NodeId) -> StatsFile | None:
        try:
            return _decode(content)
        except UNREADABLE as error:
            if node not in self._warned:
                self._warned.add(node)
                log.warning("a stats file of node %s holds no counters: %s", node, error)
            return None


class _Node:
    """What a node has said of the files that it keeps."""

    def __init__(self) -> None:
        self._agent = ""
        self._number = -1
        self._former: deque[str] = deque(maxlen=REMEMBERED_AGENTS)
        """Agents that another one has followed: what they sent before they died may still arrive."""
        self._kept: frozenset[Attempt] | None = None
        """None: it has not said yet."""
        self._missing_since_s: dict[Attempt, float] = {}

    def hear(self, delivery: DeliverCounts) -> None:
        """Take in what a delivery says, unless it was overtaken."""
        if delivery.agent in self._former:
            return
        if delivery.agent != self._agent:
            if self._agent:
                self._former.append(self._agent)
            self._agent, self._number = delivery.agent, -1
        if delivery.number > self._number:
            self._number = delivery.number
            if delivery.kept is not None:
                self._kept = frozenset(delivery.kept)

    def due(self, seen: AbstractSet[Attempt], now_s: float) -> set[Attempt]:
        """Of the attempts that were seen there, those that have had neither a process nor a file for a while."""
        if self._kept is None:
            return set()
        missing = seen - self._kept
        self._missing_since_s = {attempt: self._missing_since_s.get(attempt, now_s) for attempt in missing}
        return {a for a, since_s in self._missing_since_s.items() if now_s - since_s >= FORGET_AFTER_S}
