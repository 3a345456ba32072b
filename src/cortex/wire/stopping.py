"""An agent is told to end at its own socket: where there is no control plane, or none that it has dialed."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import msgspec

from cortex.wire.agent import StopAgent
from cortex.wire.framing import ConnectionLost, receive_frame, send_frame


def tell_to_stop(agent_socket: Path, drain_timeout_s: float, *, patience_s: float) -> bool:
    """
    Tell an agent to end everything of its node. False when it cannot be told.

    Args:
        patience_s: for each step of it.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as channel:
        channel.settimeout(patience_s)
        try:
            channel.connect(os.fspath(agent_socket))
            send_frame(channel, msgspec.json.encode(StopAgent(drain_timeout_s=drain_timeout_s)))
            receive_frame(channel)
        except ConnectionLost:
            return True
        except OSError:
            return False
    return True
