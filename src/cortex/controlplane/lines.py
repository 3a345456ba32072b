"""The connections on which agents can be asked: each agent keeps some open on which nobody asks."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable
from typing import TypeVar

import msgspec

from cortex.clock import until_beat_s
from cortex.controlplane.links import AgentConnection, Incarnations
from cortex.controlplane.world import StaleEpoch
from cortex.errors import GiveUp, RetryLater
from cortex.ids import NodeId
from cortex.wire.agent import AgentReply, AgentRequest, PackageProgress, PackagesRefused, Refused
from cortex.wire.framing import UNREADABLE
from cortex.wire.link import Hello

R = TypeVar("R", bound=AgentReply)

MOST_IDLE = 8
"""Of a node. An agent keeps `agent.lines.SPARE` of them; more are left when many questions were asked at once."""
LINE_WAIT_S = 0.5
"""For how long an agent may have no line to us until it counts as away. It dials another as soon as one is used."""
SEND_TIMEOUT_S = 5.0
LOOK_EVERY_S = 1.0


class AgentUnreachable(RetryLater):
    """The node's agent does not answer now."""

    reference = "agent-unreachable"

    def __init__(self, reason: str) -> None:
        super().__init__(f"the agent of this node does not answer: {reason}", after_s=0.2)


class AgentRefused(AgentUnreachable):
    """The node's agent answers, and does not do what it was asked."""


class NoLine(AgentUnreachable):
    """The node's agent has no connection to us now: it starts, or the way to it is cut."""


class CalledOff(Exception):
    """Nobody waits for an answer any more, and the agent knows."""


class AgentLine:
    """A connection to an agent, for one question at a time."""

    def __init__(self, connection: AgentConnection, agent: str) -> None:
        self.agent = agent
        self._connection = connection

    @property
    def is_sound(self) -> bool:
        """Whether the agent is still there, and has said nothing unasked."""
        try:
            return not self._connection.has_word()
        except OSError:
            return False

    def ask(
        self,
        request: AgentRequest,
        *,
        silence_s: float,
        tell: Callable[[str], None] = lambda _: None,
        look: Callable[[], None] | None = None,
        look_every_s: float = LOOK_EVERY_S,
    ) -> AgentReply:
        """
        Ask and wait for the last answer.

        Args:
            tell: gets what is said on the way to it.
            look: called meanwhile. What it raises ends the question: the agent is told that nobody waits any more.

        Raises:
            AgentUnreachable: nobody knows what became of the request; also when nothing is said for `silence_s`.
                Whatever is raised, the line cannot be used any more.
        """
        try:
            self._connection.send(msgspec.json.encode(request), SEND_TIMEOUT_S)
            while True:
                if look is not None:
                    self._look_until_word(silence_s, look, look_every_s)
                reply = _REPLIES.decode(self._connection.receive(silence_s))
                if not isinstance(reply, PackageProgress):
                    return reply
                tell(reply.message)
        except (OSError, *UNREADABLE) as error:
            raise AgentUnreachable(str(error) or type(error).__name__) from error
        except BaseException:
            self._connection.never_mind()
            raise

    def close(self) -> None:
        self._connection.close()

    def _look_until_word(self, silence_s: float, look: Callable[[], None], every_s: float) -> None:
        """Return when there is something to read, or after `silence_s`; call `look` meanwhile."""
        deadline_s = time.monotonic() + silence_s
        while not self._connection.has_word(until_beat_s(time.monotonic(), every_s)):
            if time.monotonic() > deadline_s:
                return
            look()


class Lines:
    """
    The lines to the agents of all nodes. Each is lent for one question.

    A line ends with its agent, with a question that failed, and when another agent of its node has followed.
    """

    def __init__(self, incarnations: Incarnations) -> None:
        self._incarnations = incarnations
        self._changed = threading.Condition()
        self._idle: defaultdict[NodeId, list[AgentLine]] = defaultdict(list)
        """Those that came back last are lent first."""
        self._lent: defaultdict[NodeId, set[AgentLine]] = defaultdict(set)
        self._closed = False

    def take_over(self, connection: AgentConnection, hello: Hello) -> None:
        """Have one more."""
        line = AgentLine(connection, hello.agent)
        with self._changed:
            former = self._taken_from_former(hello.node)
            if self._closed or not self._incarnations.is_present(hello.node, hello.agent):
                former.append(line)
            else:
                self._idle[hello.node].append(line)
                self._changed.notify_all()
        for one in former:
            one.close()

    def ask(
        self,
        node: NodeId,
        request: AgentRequest,
        kind: type[R],
        *,
        silence_s: float,
        wait_s: float = LINE_WAIT_S,
        tell: Callable[[str], None] = lambda _: None,
        look: Callable[[], None] | None = None,
        look_every_s: float = LOOK_EVERY_S,
    ) -> R:
        """
        Ask a node's agent, and wait for the last answer; as `AgentLine.ask`.

        Args:
            kind: what answers this request, unless it is refused.
            wait_s: for how long there may be no line; the agent may just be starting.

        Raises:
            AgentUnreachable: nobody knows what became of the request.
            NoLine: it was not sent.
            AgentRefused, StaleEpoch, GiveUp: it was not carried out.
        """
        line = self._taken(node, wait_s)
        try:
            reply = line.ask(request, silence_s=silence_s, tell=tell, look=look, look_every_s=look_every_s)
        except BaseException:
            self._put_back(node, line, sound=False)
            raise
        self._put_back(node, line, sound=True)
        if isinstance(reply, kind):
            return reply
        match reply:
            case Refused(stale_epoch=True, reason=reason):
                raise StaleEpoch(reason)
            case Refused(reason=reason):
                raise AgentRefused(reason)
            case PackagesRefused(problem=problem):
                raise GiveUp(problem)
        raise AgentRefused("an unexpected answer")

    def close(self) -> None:
        """End all of them; whoever asks or waits hears that the agent cannot be reached."""
        with self._changed:
            self._closed = True
            lines = [line for of_node in (*self._idle.values(), *self._lent.values()) for line in of_node]
            self._idle.clear()
            self._changed.notify_all()
        for line in lines:
            line.close()

    def _taken(self, node: NodeId, wait_s: float) -> AgentLine:
        deadline_s = time.monotonic() + wait_s
        with self._changed:
            while not self._closed:
                while idle := self._idle[node]:
                    line = idle.pop()
                    if line.is_sound:
                        self._lent[node].add(line)
                        return line
                    line.close()
                left_s = deadline_s - time.monotonic()
                if left_s <= 0:
                    break
                self._changed.wait(left_s)
        raise NoLine(f"node {node} has not connected")

    def _put_back(self, node: NodeId, line: AgentLine, *, sound: bool) -> None:
        with self._changed:
            self._lent[node].discard(line)
            kept = sound and not self._closed and len(self._idle[node]) < MOST_IDLE
            if kept and self._incarnations.is_present(node, line.agent):
                self._idle[node].append(line)
                self._changed.notify_all()  # they may wait for lines to other nodes
                return
        line.close()

    def _taken_from_former(self, node: NodeId) -> list[AgentLine]:
        """What is left of agents that another has followed; those that are lent are closed by whoever has them."""
        former = [
            line
            for line in (*self._idle[node], *self._lent[node])
            if not self._incarnations.is_present(node, line.agent)
        ]
        self._idle[node] = [line for line in self._idle[node] if line not in former]
        return former


_REPLIES: msgspec.json.Decoder[AgentReply] = msgspec.json.Decoder(AgentReply)
