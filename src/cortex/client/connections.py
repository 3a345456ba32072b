"""
Connections to endpoints that are kept for the next request.

A door may close a connection that nobody uses, so one is looked at before it is used again. Where it is closed at the
very moment that a request is sent, nobody can tell whether that request arrived: it is sent once more, as the door
itself does when a replica dies over one, unless the api says `retry: off`.
"""

from __future__ import annotations

import http.client
import select
import threading
from collections import defaultdict
from urllib.parse import urlsplit

from cortex.client.operator import connection_to, failure_words
from cortex.client.prediction import CONNECT_TIMEOUT_S, PREDICT_TIMEOUT_S, Answer, EndpointUnreachable, answered

MOST_IDLE = 64
"""Of one door; more callers at once than that have connections of their own that are closed afterwards."""
_Door = tuple[str, str, int | None]
"""Scheme, host and port."""


class Connections:
    """Idle connections by door; each is for one request at a time. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: defaultdict[_Door, list[http.client.HTTPConnection]] = defaultdict(list)
        self.made = 0
        """How many connections were made so far."""

    @property
    def idle(self) -> int:
        """How many are kept for the next request."""
        with self._lock:
            return sum(map(len, self._idle.values()))

    def close(self) -> None:
        """Close those that are idle."""
        with self._lock:
            idle = [connection for of_door in self._idle.values() for connection in of_door]
            self._idle.clear()
        for connection in idle:
            connection.close()

    def post(
        self,
        endpoint: str,
        body: bytes,
        content_type: str,
        *,
        debug: bool = False,
        again: bool = True,
        timeout_s: float = PREDICT_TIMEOUT_S,
    ) -> Answer:
        """
        Send one sample; as `prediction.post`, but on a connection that may have been there.

        Args:
            again: send it once more where a kept connection ends without a byte of an answer.

        Raises:
            PredictionRefused, EndpointUnreachable
        """
        url = urlsplit(endpoint)
        door = url.scheme, url.hostname or "", url.port
        path = (url.path or "/") + ("?debug=true" if debug else "")
        try:
            connection, is_kept = self._take(door)
            try:
                return self._exchange(connection, door, endpoint, path, body, content_type, timeout_s)
            except (http.client.RemoteDisconnected, ConnectionError):
                if not (is_kept and again):
                    raise
            return self._exchange(self._made(door), door, endpoint, path, body, content_type, timeout_s)
        except TimeoutError as error:
            raise EndpointUnreachable(endpoint, "the time is up") from error
        except (http.client.HTTPException, OSError) as error:
            raise EndpointUnreachable(endpoint, failure_words(error)) from error

    def _exchange(
        self,
        connection: http.client.HTTPConnection,
        door: _Door,
        endpoint: str,
        path: str,
        body: bytes,
        content_type: str,
        timeout_s: float,
    ) -> Answer:
        keep = False
        try:
            connection.sock.settimeout(timeout_s)
            try:
                connection.request("POST", path, body=body, headers={"content-type": content_type})
            except (BrokenPipeError, ConnectionResetError):
                if connection.sock is None:
                    raise
                # refused before it was read whole, e.g. 413: the answer says why
            response = connection.getresponse()
            content = response.read()
            keep = not response.will_close
        finally:
            if keep:
                self._give_back(door, connection)
            else:
                connection.close()
        return answered(endpoint, response, content)

    def _take(self, door: _Door) -> tuple[http.client.HTTPConnection, bool]:
        """A connection, and whether it was there already."""
        while True:
            with self._lock:
                idle = self._idle[door]
                connection = idle.pop() if idle else None
            if connection is None:
                return self._made(door), False
            if _is_quiet(connection):
                return connection, True
            connection.close()

    def _made(self, door: _Door) -> http.client.HTTPConnection:
        scheme, host, port = door
        connection = connection_to(host, port, encrypted=scheme == "https", timeout_s=CONNECT_TIMEOUT_S)
        connection.connect()
        with self._lock:
            self.made += 1
        return connection

    def _give_back(self, door: _Door, connection: http.client.HTTPConnection) -> None:
        with self._lock:
            idle = self._idle[door]
            if len(idle) < MOST_IDLE:
                idle.append(connection)
                return
        connection.close()


def _is_quiet(connection: http.client.HTTPConnection) -> bool:
    """Whether nothing has come since: what comes unasked is that the other side has closed it."""
    sock = connection.sock
    if sock is None:
        return False
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return not poll.poll(0)
