"""
A process that asks an api for its sample as a client does, through the ingress, until it is told to end: see
`wire.probing` for what it reads and writes.

Apart from the control plane, so that nothing that goes on there delays a request or is taken for a slow answer. One
half comes over a connection that is kept, the other half over a new one each time. An answer is waited for before the
next request, and each half is under way for a tenth of the time at most: a slow api is asked less often.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import msgspec
import setproctitle

from cortex.wire.probing import NO_ANSWER, ProbeAnswer, ProbeRequest

HEADER = "x-cortex-probe"
LONGEST_PERIOD_S = 10.0
PART = 0.1
"""So much of the time each half may be under way."""
BYTES_PER_S = 2**20
"""Of bodies, each half."""
FORGETTING = 0.1
"""How much an answer counts in the mean duration of answers."""
LONGEST_ERROR_BYTES = 2**16

Tell = Callable[[ProbeAnswer], None]


def period_s(mean_s: float, body_bytes: int, *, most_per_s: float) -> float:
    """
    How long after the beginning of one request the next one of a half begins.

    Args:
        mean_s: what answers take.
        most_per_s: requests of both halves.
    """
    return min(LONGEST_PERIOD_S, max(2 / most_per_s, mean_s / PART, body_bytes / BYTES_PER_S))


class Lane:
    """Asks one request after the other."""

    def __init__(self, request: ProbeRequest, bodies: list[bytes], *, keeps: bool, numbers: Iterator[int]) -> None:
        self._request = request
        self._bodies = bodies
        self._keeps = keeps
        self._numbers = numbers
        self._mean_s = 0.0
        self._connection = http.client.HTTPConnection(request.host, request.port, timeout=request.timeout_s)

    def run(self, tell: Tell) -> NoReturn:
        while True:
            answer = self._ask(next(self._numbers))
            tell(answer)
            took_s = answer.ended_s - answer.begun_s
            self._mean_s += (took_s - self._mean_s) * (FORGETTING if self._mean_s else 1.0)
            body_bytes = len(self._bodies[answer.sample])
            due_s = answer.begun_s + period_s(self._mean_s, body_bytes, most_per_s=self._request.most_per_s)
            time.sleep(max(0.0, due_s - time.monotonic()))

    def _ask(self, number: int) -> ProbeAnswer:
        request, connection = self._request, self._connection
        sample = number % len(self._bodies)
        name = f"{request.name}-{number}"
        headers = {
            "content-type": request.samples[sample].content_type,
            HEADER: request.token,
            "x-request-id": name,
        }
        begun_s = time.monotonic()
        try:
            connection.request("POST", request.path, self._bodies[sample], headers)
            response = connection.getresponse()
            content = response.read()
            status, version = response.status, response.headers.get("x-cortex-version", "")
            code = "" if 200 <= status <= 299 else _code(content)
            counted = response.headers.get(HEADER) is None
        except (http.client.HTTPException, OSError) as error:
            connection.close()
            status, version, code, counted = NO_ANSWER, "", _words(error), False
        ended_s = time.monotonic()
        if not self._keeps:
            connection.close()
        return ProbeAnswer(
            begun_s=begun_s,
            ended_s=ended_s,
            status=status,
            version=version,
            code=code,
            sample=sample,
            request=name,
            counted=counted,
        )


def _code(content: bytes) -> str:
    """What an error calls itself; empty if it is none of ours."""
    with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError):
        found = msgspec.json.decode(content[:LONGEST_ERROR_BYTES])
        if isinstance(found, dict) and isinstance(found.get("error"), str):
            return str(found["error"])
    return ""


def _words(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, ConnectionError | http.client.IncompleteRead):  # RemoteDisconnected is one of the former
        return "connection broken off"
    return f"{type(error).__name__}: {error}"


def main() -> NoReturn:
    """Ask until the pipe ends with whoever wants to know, however that comes about."""
    request = msgspec.json.decode(sys.stdin.buffer.readline(), type=ProbeRequest)
    setproctitle.setproctitle(f"cortex-prober {request.path}")
    bodies = [Path(sample.file).read_bytes() for sample in request.samples]
    numbers = itertools.count()
    guard = threading.Lock()

    def tell(answer: ProbeAnswer) -> None:
        with guard:
            try:
                sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
                sys.stdout.buffer.flush()
            except BrokenPipeError:
                os._exit(0)

    for keeps in (True, False):
        lane = Lane(request, bodies, keeps=keeps, numbers=numbers)
        threading.Thread(target=lane.run, args=(tell,), daemon=True).start()
    while os.read(0, 4096):
        pass
    os._exit(0)  # whatever is under way: nobody wants to know any more


if __name__ == "__main__":
    main()
