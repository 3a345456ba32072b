"""
What the replicas of an api wrote on several nodes, read as if it were one: in time order, with one cursor.

Who follows gets a line once it is `SETTLED_S` old, so that lines which are late by less than that are in order,
whichever node they are from. A node that does not answer holds nobody up; its lines come when it does. With one node
everything is left to that.
"""

from __future__ import annotations

import heapq
import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import msgspec

from cortex.clock import Clock
from cortex.errors import CortexError
from cortex.ids import NodeId
from cortex.wire.agent import LogLine, LogLines, ReadLogs

log = logging.getLogger(__name__)

SETTLED_S = 1.0
SLICE_S = 1.0
"""How long nodes wait for a first line in one go. The first line of any ends that, but all have to come round."""
LOOK_EVERY_S = 0.2
"""How often nodes are asked at most: whether lines that are there are old enough, whether they answer again."""
ANSWERS_WITHIN_S = 2.0
"""How long a node may take for its answer, on top of what it was asked to wait, until the others go on without it."""
MAX_LINES = 10_000
"""What one answer holds, as that of a node."""

Read = Callable[[ReadLogs], LogLines]
"""Asks a node. Raises CortexError: it cannot be asked now."""


class MergedLogs:
    """
    Reads the logs of all nodes.

    Args:
        nodes: who can be asked just now.
        pause: waits for so many seconds.
    """

    def __init__(
        self, nodes: Callable[[], Mapping[NodeId, Read]], clock: Clock, *, pause: Callable[[float], None] = time.sleep
    ) -> None:
        self._nodes = nodes
        self._clock = clock
        self._pause = pause
        self._overdue: Counter[NodeId] = Counter()
        """How many questions a node has not answered in time, nor since."""
        self._lock = threading.Lock()
        self._only: NodeId | None = None
        """The node that was the only one when somebody read last."""

    def read(self, request: ReadLogs) -> LogLines:
        """
        Lines as asked for, oldest first, and the cursor to go on from, whichever nodes there are by then.

        Raises:
            CortexError: no node can be asked.
        """
        nodes, standing = self._nodes(), _decode(request.cursor)
        if standing is None:
            if len(nodes) == 1:
                ((self._only, read),) = nodes.items()
                return read(request)
            # A cursor from a time when there was one node is that one's; where that is not known, its files say so.
            whose = [self._only] if self._only is not None else nodes
            at = dict.fromkeys(whose, request.cursor) if request.cursor else {}
            standing = _Standing(nodes=at, began_wall_s=self._clock.wall_s())
        if not request.cursor and request.tail is not None and request.tail <= MAX_LINES:
            return self._last(request, request.tail, standing)
        if not request.cursor:
            standing = msgspec.structs.replace(standing, nodes=dict.fromkeys(nodes, ""))
        if not (request.cursor and request.wait_s):
            return self._from(request, standing, wait_s=0.0).answer
        return self._follow(request, standing)

    def _last(self, request: ReadLogs, number: int, standing: _Standing) -> LogLines:
        """The last lines of all."""
        found = self._ask({node: msgspec.structs.replace(request, wait_s=0.0) for node in self._nodes()}, 0.0)
        found.raise_if_refused()
        lines = in_order(found.answers)
        return LogLines(
            lines=lines[-number:] if number else (),
            cursor=standing.moved(found.answers),
            missing=found.missing,
        )

    def _follow(self, request: ReadLogs, standing: _Standing) -> LogLines:
        """What is settled, once there is any, or the time is up."""
        until_s = self._clock.monotonic_s() + request.wait_s
        wait_s = 0.0
        while True:
            wall_s = self._clock.wall_s()
            settled = msgspec.structs.replace(request, until_wall_s=wall_s - SETTLED_S)
            asked_s = self._clock.monotonic_s()
            found = self._from(settled, standing, wait_s=wait_s)
            now_s = self._clock.monotonic_s()
            left_s = until_s - now_s
            if found.answer.lines or found.answer.more or left_s <= 0:
                return found.answer
            standing = _decode(found.answer.cursor) or standing
            pause_s = min(LOOK_EVERY_S - (now_s - asked_s), left_s)
            if pause_s > 0:
                self._pause(pause_s)
            wait_s = 0.0 if found.held else max(0.0, min(SLICE_S, left_s - pause_s))

    def _from(self, request: ReadLogs, standing: _Standing, *, wait_s: float) -> _Found:
        """From where reading stands, as far as all that answer are known."""
        asked = {
            node: msgspec.structs.replace(standing.question(request, node), wait_s=wait_s) for node in self._nodes()
        }
        found = self._ask(asked, wait_s)
        found.raise_if_refused()
        answers, missing = found.answers, found.missing
        begun = {node: answer for node, answer in answers.items() if answer.more and not answer.lines}
        if begun:  # much was looked through and nothing found: nobody knows yet what comes next
            held = any(answer.held for answer in answers.values())
            return _Found(LogLines(lines=(), cursor=standing.moved(begun), more=True, missing=missing), held)
        bound_s = _known_until(answers)
        if bound_s is not None:
            beyond = [node for node, answer in answers.items() if answer.lines and answer.lines[-1].wall_s > bound_s]
            bounds = {"until_wall_s": bound_s, "wait_s": 0.0}
            again = self._ask({node: msgspec.structs.replace(asked[node], **bounds) for node in beyond}, 0.0)
            kept = {node: answer for node, answer in answers.items() if node not in beyond}
            answers, missing = {**kept, **again.answers}, (*missing, *again.missing)
        return _Found(
            LogLines(
                lines=in_order(answers),
                cursor=standing.moved(answers),
                more=bound_s is not None,
                missing=tuple(sorted(missing)),
            ),
            any(answer.held for answer in answers.values()),
        )

    def _ask(self, questions: Mapping[NodeId, ReadLogs], wait_s: float) -> _Asked:
        """Ask nodes side by side."""
        nodes = self._nodes()
        replies: queue.SimpleQueue[tuple[NodeId, LogLines | CortexError | None]] = queue.SimpleQueue()
        with self._lock:
            due = {node for node in questions if node in nodes and not self._overdue[node]}
        waiting = set(due)
        done: set[NodeId] = set()
        given_up: set[NodeId] = set()

        def ask(node: NodeId, read: Read) -> None:
            reply: LogLines | CortexError | None = None
            try:
                reply = read(msgspec.structs.replace(questions[node], asked_wall_s=self._clock.wall_s()))
            except CortexError as error:
                reply = error
            except Exception:
                log.exception("logs of node %s cannot be read: a fault of ours", node)
            with self._lock:
                done.add(node)
                if node in given_up:
                    self._overdue[node] -= 1
            replies.put((node, reply))

        for node in due:
            threading.Thread(target=ask, args=(node, nodes[node]), name="read-logs", daemon=True).start()
        deadline_s = time.monotonic() + wait_s + ANSWERS_WITHIN_S
        answers: dict[NodeId, LogLines] = {}
        errors: list[CortexError] = []
        while waiting:
            try:
                node, reply = replies.get(timeout=max(0.0, deadline_s - time.monotonic()))
            except queue.Empty:
                break
            waiting.discard(node)
            if isinstance(reply, LogLines):
                answers[node] = reply
            elif reply is not None:
                errors.append(reply)
        with self._lock:
            given_up |= waiting - done
            self._overdue.update(given_up)
        return _Asked(
            answers={node: answers[node] for node in sorted(answers)},
            missing=tuple(sorted(questions.keys() - answers.keys())),
            refused=tuple(errors),
        )


def in_order(answers: Mapping[NodeId, LogLines]) -> tuple[LogLine, ...]:
    """The lines of all, by time."""
    return tuple(heapq.merge(*(answer.lines for answer in answers.values()), key=lambda line: line.wall_s))


def _known_until(answers: Mapping[NodeId, LogLines]) -> float | None:
    """Up to when it is known what was written, and one answer holds it; None: as far as was asked for."""
    times = [answer.lines[-1].wall_s for answer in answers.values() if answer.more]
    lines = in_order(answers)
    if len(lines) > MAX_LINES:
        times.append(lines[MAX_LINES - 1].wall_s)
    return min(times, default=None)


@dataclass(frozen=True, kw_only=True)
class _Asked:
    answers: Mapping[NodeId, LogLines]
    missing: tuple[NodeId, ...]
    refused: tuple[CortexError, ...]

    def raise_if_refused(self) -> None:
        """If all of them did."""
        if self.refused and len(self.refused) == len(self.missing) and not self.answers:
            raise self.refused[0]


@dataclass(frozen=True)
class _Found:
    answer: LogLines
    held: bool
    """Some lines are there that are too young."""


class _Standing(msgspec.Struct, frozen=True, kw_only=True):
    """Where a reader stands: what our cursor holds."""

    nodes: Mapping[NodeId, str]
    """The cursor of each node; empty: at the beginning."""
    began_wall_s: float
    """When it was first asked: of a node that comes later only what was written since then is news."""

    def question(self, request: ReadLogs, node: NodeId) -> ReadLogs:
        """What to ask a node for."""
        at = self.nodes.get(node)
        if at is not None:
            return msgspec.structs.replace(request, cursor=at, tail=None)
        since_s = max(self.began_wall_s, request.since_wall_s or 0.0)
        return msgspec.structs.replace(request, cursor="", tail=None, since_wall_s=since_s)

    def moved(self, answers: Mapping[NodeId, LogLines]) -> str:
        """The cursor after these answers."""
        at = {node: answer.cursor for node, answer in answers.items()}
        return msgspec.json.encode(msgspec.structs.replace(self, nodes={**self.nodes, **at})).decode()


def _decode(cursor: str) -> _Standing | None:
    """None: it is no cursor of ours."""
    try:
        return msgspec.json.decode(cursor, type=_Standing)
    except msgspec.MsgspecError:
        return None
