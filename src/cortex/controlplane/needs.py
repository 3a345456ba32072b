"""What agents ask of the control plane: each question goes to the one function that answers its kind."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Generator, Iterator, Mapping
from functools import reduce
from operator import or_
from typing import Any

import msgspec

from cortex.controlplane.links import AgentConnection
from cortex.errors import CortexError, Problem
from cortex.ids import NodeId
from cortex.wire.framing import UNREADABLE
from cortex.wire.link import Hello
from cortex.wire.needs import MAX_PART_BYTES, PART, Need, NeedRefused, NeedReply, PartsEnd

log = logging.getLogger(__name__)

SEND_TIMEOUT_S = 60.0
"""An agent that takes nothing of an answer for so long is left; it asks again."""

Answer = NeedReply | Iterator[bytes]
"""One frame, or the parts of what is long."""
Handlers = Mapping[type[Need], Callable[[Any, NodeId], Answer]]


class Needs:
    """
    Answers what agents need, each connection in a thread of its own.

    Args:
        handlers: by the kind of question, who answers it. They are called by several threads at once. A CortexError is
            told to the agent; whatever else is raised is a fault of ours, also in the middle of parts.
    """

    def __init__(self, handlers: Handlers) -> None:
        self._handlers = dict(handlers)
        kinds: Any = reduce(or_, self._handlers, _Nothing)
        self._decoder: msgspec.json.Decoder[Need] = msgspec.json.Decoder(kinds)

    def serve(self, connection: AgentConnection, hello: Hello) -> None:
        """Answer on a connection until the agent leaves."""
        try:
            while True:
                with contextlib.closing(self._frames(connection.receive(), hello.node)) as frames:
                    for frame in frames:
                        connection.send(frame, SEND_TIMEOUT_S)
        except OSError:
            pass  # it left, or was closed
        finally:
            connection.close()

    def _frames(self, payload: bytes, node: NodeId) -> Generator[bytes]:
        """All that answers a question."""
        reply: NeedReply = PartsEnd()
        try:
            need = self._decoder.decode(payload)
            answer = self._handlers[type(need)](need, node)
            if isinstance(answer, NeedReply):
                reply = answer
            else:
                for part in answer:
                    for start in range(0, len(part), MAX_PART_BYTES):
                        yield PART + part[start : start + MAX_PART_BYTES]
        except CortexError as error:
            reply = NeedRefused(problem=error.problem())
        except UNREADABLE as error:
            reply = _refused(f"the control plane does not understand the question: {error}")
        except Exception as error:
            log.exception("a need of node %s failed through a fault of ours", node)
            reply = _refused(f"the control plane failed: {error}")
        yield msgspec.json.encode(reply)


class _Nothing(Need, frozen=True, kw_only=True, tag="nothing"):
    """So that there is a kind of question, also where none is answered."""


def _refused(message: str) -> NeedRefused:
    return NeedRefused(problem=Problem(reference="internal-error", message=message))
