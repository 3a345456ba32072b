"""Tests of `cortex.agent.recovery`."""

import asyncio
import os
import socket
import threading

import msgspec

from cortex.agent import recovery
from cortex.agent.recovery import SocketOwner
from cortex.ids import ReplicaId
from cortex.wire.framing import receive_frame, send_frame
from cortex.wire.launch import ReplicaStatus
from cortex.wire.reports import Phase


def a_status() -> ReplicaStatus:
    return ReplicaStatus(
        replica=ReplicaId("t.a.00000000.0"),
        attempt=1,
        pid=os.getpid(),
        start_ticks=1,
        phase=Phase.READY,
        phase_wall_s=0.0,
        started_wall_s=0.0,
    )


def listening(path, backlog: int = 4) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen(backlog)
    listener.settimeout(60)
    return listener


def ask(path, answer=None, timeout_s=60.0) -> SocketOwner:
    """Ask, with `answer` called in a thread with the connection that comes."""
    listener = listening(path)

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(60)
            receive_frame(connection)
            answer(connection)

    thread = threading.Thread(target=serve) if answer is not None else None
    if thread is not None:
        thread.start()
    try:
        return asyncio.run(recovery.ask(path, timeout_s=timeout_s))
    finally:
        if thread is not None:
            thread.join()
        listener.close()


def test_a_replica_answers_with_its_status_and_a_copy_of_its_slot(tmp_path, layout):
    slot = listening(layout.slot_socket("a"))

    def answer(connection):
        send_frame(connection, msgspec.json.encode(a_status()))  # pushed, without a socket
        send_frame(connection, msgspec.json.encode(a_status()), [slot.fileno()])

    found = ask(layout.control_socket("a"), answer)
    assert (found.status, found.silent) == (a_status(), False)
    assert found.listener.getsockname() == slot.getsockname()
    found.close()
    slot.close()


def test_where_nobody_listens_there_is_no_process(layout):
    path = layout.control_socket("a")
    assert asyncio.run(recovery.ask(path, timeout_s=60)) == SocketOwner()
    listening(path).close()
    assert asyncio.run(recovery.ask(path, timeout_s=60)) == SocketOwner()


def test_a_process_that_ends_while_it_is_asked_is_none(layout):
    assert ask(layout.control_socket("a"), lambda connection: connection.close()) == SocketOwner()


def test_a_process_that_talks_nonsense_is_not_believed(layout):
    slot = listening(layout.slot_socket("a"))
    found = ask(layout.control_socket("a"), lambda connection: send_frame(connection, b"\xff{", [slot.fileno()]))
    assert found == SocketOwner()
    slot.close()


def test_somebody_who_does_not_answer_in_time_is_there_all_the_same(layout):
    assert ask(layout.control_socket("a"), timeout_s=0.01) == SocketOwner(silent=True)
