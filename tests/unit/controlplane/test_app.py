"""What the control plane's process does before it is built."""

from __future__ import annotations

import errno
import threading

import pytest

from cortex.binding import bind_tcp
from cortex.clock import SystemClock
from cortex.controlplane.app import operator_socket
from cortex.settings import OPERATOR_HOST


def test_a_port_that_somebody_lets_go_is_waited_for() -> None:
    bound: list[int] = []
    with bind_tcp(OPERATOR_HOST, 0) as other:
        port = other.getsockname()[1]

        def bind() -> None:
            with operator_socket(port, SystemClock(), patience_s=30.0) as sock:
                bound.append(sock.getsockname()[1])

        waiting = threading.Thread(target=bind)
        waiting.start()
    waiting.join(30.0)
    assert bound == [port]


def test_a_port_that_nobody_lets_go_is_an_error() -> None:
    with bind_tcp(OPERATOR_HOST, 0) as other, pytest.raises(OSError) as taken:
        operator_socket(other.getsockname()[1], SystemClock(), patience_s=0.2)
    assert taken.value.errno == errno.EADDRINUSE


def test_an_address_that_cannot_be_had_is_not_waited_for() -> None:
    with pytest.raises(OSError) as refused:
        operator_socket(-1, SystemClock(), patience_s=1e9)
    assert refused.value.errno != errno.EADDRINUSE
