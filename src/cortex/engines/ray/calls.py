"""
Asks Ray through a process of ours, each time with a deadline.

A call of Ray's may hang for a minute, and now and then ends the process that made it. So it is made in a process that
may: one that does not answer in time is killed, and the next question starts another. What was held in Ray stays, since
placement groups are detached; a question that was cut off may have been carried out.
"""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from cortex import oom
from cortex.engines.ray.errors import (
    ClusterTokenRefused,
    ClusterUnreachable,
    ClusterVersionsDiffer,
    NotOnTheCluster,
    RayMissing,
)
from cortex.engines.ray.messages import (
    Answer,
    Boot,
    BootOrder,
    Change,
    ClusterSeen,
    Connect,
    Done,
    Failed,
    GiveBack,
    LookAtCluster,
    Missing,
    NewGroup,
    Probe,
    Probed,
    Question,
    TokenRefused,
    Unreachable,
    VersionsDiffer,
)
from cortex.errors import RetryLater
from cortex.oom import Rung
from cortex.processes import module_command
from cortex.wire.framing import UNREADABLE, ConnectionLost, receive_frame, send_frame

log = logging.getLogger(__name__)

A = TypeVar("A", Probed, ClusterSeen, Done)

PROBE_TIMEOUT_S: Final = 10.0
"""Until it is known whether there is a cluster that would have us."""
CONNECT_TIMEOUT_S: Final = 30.0
"""Beside a raylet it takes 0.4 s; one that has to be waited for, half a minute and then the end of the process."""
CALL_TIMEOUT_S: Final = 10.0
"""Any other call takes milliseconds; a head that starts again, some seconds."""
RETRY_AFTER_S: Final = 1.0


class RayCalls:
    """
    What we ask of a cluster. For one thread at a time; `close` for any.

    Args:
        address: `host:port` of the cluster's head.
        beside: the address of the raylet on this machine; the process becomes a driver next to it.
        namespace: of our placement groups: whoever has the same one shares them.
        token_file: what the cluster's nodes were started with; None: they want none.
        output: where the process writes what it has to say; Ray says a lot.
        environ: ours; variables of Ray's are not passed on.
        before: a command that runs the process somewhere else, as in a network namespace.
    """

    def __init__(
        self,
        *,
        address: str,
        beside: str,
        namespace: str,
        token_file: Path | None,
        output: Path,
        environ: Mapping[str, str],
        before: Sequence[str] = (),
    ) -> None:
        self._address = address
        self._beside = beside
        self._namespace = namespace
        self._token_file = token_file
        self._output = output
        self._environ = driver_variables(environ, token_file)
        self._command = [*before, *module_command("cortex.engines.ray.driver", python=sys.executable)]
        self._guard = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._sock: socket.socket | None = None
        self._connected = False
        self._closed = False

    @property
    def pid(self) -> int | None:
        """Of the process that makes the calls, while there is one."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def look(self) -> ClusterSeen:
        """
        All nodes and groups as they are now.

        Raises:
            RetryLater: Ray did not answer in time, or refused; a restart of its head looks like this.
            ClusterError: there is no cluster that would have us; names what is wrong.
        """
        return self._asked(LookAtCluster(), ClusterSeen)

    def change(self, *, remove: Sequence[str], make: Sequence[NewGroup]) -> None:
        """
        Remove and make placement groups, by their ids. What was not done shows when one looks again.

        Raises:
            RetryLater, ClusterError: as for `look`; part of it may have been done.
        """
        done = self._asked(Change(remove=tuple(remove), make=tuple(make)), Done)
        for complaint in done.complaints:
            log.info("Ray: %s", complaint)

    def give_back(self, raylet: str, *, reason: str, within_s: float) -> None:
        """
        Have a raylet end once it holds nothing, and take nothing new; that cannot be taken back.

        Raises:
            RetryLater, ClusterError: as for `look`, and where Ray declines.
        """
        done = self._asked(GiveBack(raylet=raylet, reason=reason, within_s=within_s), Done)
        if done.complaints:
            raise RetryLater(f"Ray does not give the node back: {done.complaints[0]}", after_s=RETRY_AFTER_S)

    def boot(self, raylet: str, order: BootOrder) -> None:
        """
        Begin to have an agent on a node. What becomes of it shows when one looks; with the process it is lost.

        Raises:
            RetryLater, ClusterError: as for `look`.
        """
        self._asked(Boot(raylet=raylet, order=order), Done)

    def close(self) -> None:
        """End the process."""
        self._closed = True
        self._end()

    # ---- the process --------------------------------------------------------------------------------------------

    def _asked(self, question: Question, kind: type[A]) -> A:
        if not self._connected:
            self._connect()
        return self._ask(question, kind, CALL_TIMEOUT_S)

    def _connect(self) -> None:
        probed = self._ask(Probe(address=self._address), Probed, PROBE_TIMEOUT_S)
        if not any(node.address == self._beside for node in probed.nodes):
            self._end()
            raise NotOnTheCluster(self._address, self._beside)
        question = Connect(address=self._address, namespace=self._namespace, beside=self._beside)
        self._ask(question, Done, CONNECT_TIMEOUT_S)
        self._connected = True

    def _ask(self, question: Question, kind: type[A], timeout_s: float) -> A:
        answer = self._answer(question, timeout_s)
        if isinstance(answer, kind):
            return answer
        if not self._connected:
            self._end()  # what it has begun to be is not known
        match answer:
            case Missing(why=why):
                raise RayMissing(why)
            case Unreachable(why=why):
                raise ClusterUnreachable(self._address, why)
            case TokenRefused():
                raise ClusterTokenRefused(self._address, str(self._token_file or ""))
            case VersionsDiffer(ours=ours, theirs=theirs):
                raise ClusterVersionsDiffer(self._address, ours=ours, theirs=theirs)
            case Failed(what=what):
                raise RetryLater(f"Ray: {what}", after_s=RETRY_AFTER_S)
            case _:
                raise AssertionError(f"{answer} is no answer to {question}")

    def _answer(self, question: Question, timeout_s: float) -> Answer:
        what = type(question).__name__.lower()
        sock = self._started()
        try:
            sock.settimeout(timeout_s)
            send_frame(sock, msgspec.json.encode(question))
            payload, _ = receive_frame(sock)
            return msgspec.json.decode(payload, type=Answer)
        except TimeoutError:
            self._end()
            if isinstance(question, Probe):
                raise ClusterUnreachable(self._address, f"it has not answered for {timeout_s:g} s") from None
            raise RetryLater(f"Ray has not answered for {timeout_s:g} s ({what})", after_s=RETRY_AFTER_S) from None
        except (ConnectionLost, OSError, *UNREADABLE) as error:
            self._end()
            raise RetryLater(
                f"the process that calls Ray has ended ({what}): {error}", after_s=RETRY_AFTER_S
            ) from error

    def _started(self) -> socket.socket:
        with self._guard:
            if self._closed:
                raise RetryLater("the engine is closed", after_s=RETRY_AFTER_S)
            if self._sock is not None:
                return self._sock
            ours, theirs = socket.socketpair()
            with theirs:
                output = os.open(self._output, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
                try:
                    self._process = subprocess.Popen(
                        [*self._command, str(theirs.fileno())],
                        stdin=subprocess.DEVNULL,
                        stdout=output,
                        stderr=output,
                        cwd="/",
                        env=self._environ,
                        start_new_session=True,
                        pass_fds=[theirs.fileno()],
                    )
                finally:
                    os.close(output)
            oom.step_up(self._process.pid, by=Rung.CONTROL_PLANE, to=Rung.NODE)
            self._sock = ours
            return ours

    def _end(self) -> None:
        with self._guard:
            process, sock = self._process, self._sock
            self._process, self._sock, self._connected = None, None, False
        if process is not None:
            process.kill()  # whoever waits for its answer hears of its end
            process.wait()
        if sock is not None:
            sock.close()


def driver_variables(environ: Mapping[str, str], token_file: Path | None) -> dict[str, str]:
    """What the process finds in its environment: nothing of Ray's but how it shows who it is."""
    plain = {name: value for name, value in environ.items() if not name.upper().startswith("RAY_")}
    if token_file is not None:
        plain |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token_file)}
    return {**plain, "RAY_USAGE_STATS_ENABLED": "0"}
