"""
An outside client, a process of its own: so many tagged requests a second, at random instants, and what came of each.

    python bench/client.py PLAN.json

Each request carries a tag and features of its own; the handler returns the tag, the label and what it was built of, so
that a lost, doubled, mixed-up or stale answer is told from a right one. What was answered is written to a file, a line
each, or only counted; once a second the counts so far go to stdout. It ends on SIGTERM, once all is answered.
"""

from __future__ import annotations

import asyncio
import math
import random
import signal
import sys
import time
from pathlib import Path
from typing import IO, Any, cast

import msgspec
import uvloop

SAMPLES = (
    ([5.2, 3.6, 1.4, 0.3], "iris-setosa"),
    ([5.9, 2.8, 4.2, 1.3], "iris-versicolor"),
    ([6.9, 3.1, 5.6, 2.3], "iris-virginica"),
)
KEPT_FOR_S = 5.0
"""A kept connection that was idle for longer is not used again: a server may close it at any moment."""
PATIENCE_S = 60.0
"""Whoever has no answer by then has none."""
CLOSED = "closed before an answer"
MOST_AT_ONCE = 25
"""Requests in one go by a client that got no processor for a while: the others are left out, since they are no load
that an outside client makes."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked of whom."""

    port: int
    deployment: str
    rate: float
    """Requests a second to the apis in `shares`."""
    shares: dict[str, float]
    """By api, of `rate`."""
    seed: int = 0
    swing_s: float = 0.0
    """Not 0: the rate goes from a fifth to nine fifths of itself and back, once in so many seconds."""
    large: dict[str, float] = {}
    """By api: bodies of `large_bytes` a second, beside `rate`."""
    large_bytes: int = 1_000_000
    bursts: tuple[tuple[float, int], ...] = ()
    """Seconds from the beginning, and requests at once, to the api `burst_api`."""
    burst_api: str = ""
    answers: str = ""
    """File for the answers; empty: they are counted only."""


class Answer(msgspec.Struct, frozen=True, array_like=True):
    """One request and what came of it. Instants are those of the system's monotonic clock, the same in each process."""

    api: str
    kind: str
    """How it was sent: `kept`, `new`, `large`, `burst`."""
    tag: str
    sent_s: float
    done_s: float
    status: int
    """0: no answer came."""
    version: str = ""
    """As the header `x-cortex-version` says."""
    error: str = ""
    """Code of an answer that is no 200, or why there is none."""
    build: str = ""
    """What handler and model said of themselves."""
    fine: bool = False
    """200 with the tag that was sent and the right label."""


class Counts(msgspec.Struct):
    """What came of all so far."""

    sent: int = 0
    fine: int = 0
    failed: int = 0
    wrong: int = 0
    refused: int = 0
    """Of the failed, those told `overloaded`."""
    left_out: int = 0
    """Not sent, since the client itself was late."""
    asleep: int = 0
    """Bursts that found their api asleep."""
    first_failure: str = ""


class Response(msgspec.Struct):
    status: int
    version: str
    slept: bool
    closing: bool
    body: bytes


class Connection(asyncio.Protocol):
    """One request at a time."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.used_s: float | None = None
        """When it was answered last."""
        self._received = bytearray()
        self._answer: asyncio.Future[Response] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def ask(self, request: bytes) -> asyncio.Future[Response]:
        """Raises ConnectionResetError in the future when the connection ends before the answer."""
        assert self.transport is not None
        self._received.clear()
        self._answer = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return self._answer

    def data_received(self, data: bytes) -> None:
        self._received += data
        head_ends = self._received.find(b"\r\n\r\n")
        if head_ends < 0 or self._answer is None or self._answer.done():
            return
        lines = bytes(self._received[:head_ends]).split(b"\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines[1:])}
        if len(self._received) < head_ends + 4 + int(headers.get(b"content-length", b"0")):
            return
        self._answer.set_result(
            Response(
                status=int(lines[0].split()[1]),
                version=headers.get(b"x-cortex-version", b"").decode(),
                slept=headers.get(b"cortex-status") == b"asleep",
                closing=b"close" in headers.get(b"connection", b"").lower(),
                body=bytes(self._received[head_ends + 4 :]),
            )
        )

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionResetError(str(exc or CLOSED)))


class Client:
    """Asks as the plan has it until it is stopped."""

    def __init__(self, plan: Plan, answers: IO[bytes] | None) -> None:
        self._plan = plan
        self._answers = answers
        self._chance = random.Random(plan.seed)
        self._counts = Counts()
        self._idle: list[Connection] = []
        self._asked: set[asyncio.Task[None]] = set()
        self._padding = "x" * plan.large_bytes
        self._number = 0
        self._stopped = asyncio.Event()

    async def run(self) -> None:
        plan = self._plan
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._stopped.set)
        lanes = [self._steadily(plan.rate, plan.shares, large=False), self._in_bursts(), self._say()]
        if plan.large:
            lanes.append(self._steadily(sum(plan.large.values()), plan.large, large=True))
        await asyncio.gather(*lanes)
        if self._asked:
            await asyncio.wait(self._asked, timeout=PATIENCE_S + 5)
        self._say_once()

    async def _steadily(self, rate: float, shares: dict[str, float], *, large: bool) -> None:
        apis, weights = list(shares), list(shares.values())
        due_s = time.monotonic()
        while not await self._pauses_until(due_s):
            for _ in range(MOST_AT_ONCE):
                (api,) = self._chance.choices(apis, weights)
                kept = self._chance.random() < 0.5
                self._begin(api, "large" if large else "kept" if kept else "new", keep=kept)
                due_s += self._chance.expovariate(rate * self._swing(due_s))
                if due_s > time.monotonic():
                    break
            while (now_s := time.monotonic()) > due_s + 0.1:
                self._counts.left_out += round((now_s - due_s) * rate)
                due_s = now_s

    def _swing(self, at_s: float) -> float:
        period_s = self._plan.swing_s
        return 1.0 - 0.8 * math.cos(2 * math.pi * at_s / period_s) if period_s else 1.0

    async def _in_bursts(self) -> None:
        begun_s = time.monotonic()
        for at_s, size in self._plan.bursts:
            if await self._pauses_until(begun_s + at_s):
                return
            health = f"GET /{self._plan.deployment}/{self._plan.burst_api}/v2/health/ready HTTP/1.1\r\nhost: x\r\n\r\n"
            try:
                self._counts.asleep += (await (await self._connected()).ask(health.encode())).slept
            except OSError:
                pass
            for _ in range(size):
                self._begin(self._plan.burst_api, "burst", keep=self._chance.random() < 0.5)

    async def _say(self) -> None:
        while not await self._pauses_until(time.monotonic() + 1.0):
            self._say_once()

    def _say_once(self) -> None:
        print(msgspec.json.encode(self._counts).decode(), flush=True)
        if self._answers is not None:
            self._answers.flush()

    async def _pauses_until(self, at_s: float) -> bool:
        """Whether it is to end now."""
        try:
            await asyncio.wait_for(self._stopped.wait(), max(0.0, at_s - time.monotonic()))
        except TimeoutError:
            pass
        return self._stopped.is_set()

    def _begin(self, api: str, kind: str, *, keep: bool) -> None:
        self._number += 1
        self._counts.sent += 1
        task = asyncio.create_task(self._one(api, kind, self._number, keep=keep))
        self._asked.add(task)
        task.add_done_callback(self._asked.discard)

    async def _one(self, api: str, kind: str, number: int, *, keep: bool) -> None:
        tag = f"t{number}"
        features, label = SAMPLES[number % len(SAMPLES)]
        sample: dict[str, Any] = {"tag": tag, "features": features}
        if kind == "large":
            sample["padding"] = self._padding
        body = msgspec.json.encode(sample)
        head = (
            f"POST /{self._plan.deployment}/{api} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
            f"x-request-id: {tag}\r\ncontent-length: {len(body)}\r\n"
            f"connection: {'keep-alive' if keep else 'close'}\r\n\r\n"
        )
        sent_s = time.monotonic()
        try:
            async with asyncio.timeout(PATIENCE_S):
                connection = await self._connected(kept=keep)
                response = await self._response(connection, head.encode() + body, keep=keep)
        except (OSError, ValueError) as error:
            why = f"{type(error).__name__}: {error}"
            self._note(Answer(api, kind, tag, sent_s, time.monotonic(), 0, error=why))
            return
        answer = Answer(api, kind, tag, sent_s, time.monotonic(), response.status)
        self._note(_judged(answer, label, response))

    async def _response(self, connection: Connection, request: bytes, *, keep: bool) -> Response:
        try:
            response = await connection.ask(request)
        except BaseException:
            if connection.transport is not None:
                connection.transport.abort()
            raise
        if connection.transport is not None:
            if keep and not response.closing:
                connection.used_s = time.monotonic()
                self._idle.append(connection)
            else:
                connection.transport.close()
        return response

    async def _connected(self, *, kept: bool = False) -> Connection:
        """A kept connection that was used a moment ago, or a new one."""
        while kept and self._idle:
            connection = self._idle.pop()
            if connection.transport is None:
                continue
            if connection.used_s is not None and time.monotonic() - connection.used_s < KEPT_FOR_S:
                return connection
            connection.transport.close()
        _, made = await asyncio.get_running_loop().create_connection(Connection, "127.0.0.1", self._plan.port)
        return made

    def _note(self, answer: Answer) -> None:
        if answer.fine:
            self._counts.fine += 1
        elif answer.status == 200:
            self._counts.wrong += 1
        else:
            self._counts.failed += 1
            self._counts.refused += answer.status == 503 and answer.error.startswith("overloaded")
        if not answer.fine and not self._counts.first_failure:
            self._counts.first_failure = f"{answer.tag} to {answer.api}: {answer.status} {answer.error}"
        if self._answers is not None:
            self._answers.write(msgspec.json.encode(answer) + b"\n")


def _judged(answer: Answer, label: str, response: Response) -> Answer:
    """With what the body says."""
    try:
        said = msgspec.json.decode(response.body, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError):
        said = {"error": f"no JSON object: {response.body[:80]!r}"}
    if answer.status != 200:
        error = f"{said.get('error')}: {said.get('message')}" if "message" in said else str(said.get("error"))
    elif said.get("tag") != answer.tag or said.get("label") != label:
        error = f"expected {label} for {answer.tag}, got {said}"
    else:
        error = ""
    return msgspec.structs.replace(
        answer,
        version=response.version,
        error=error,
        build=str(said.get("build", "")),
        fine=not error,
    )


def read_answers(path: Path) -> list[Answer]:
    decoder = msgspec.json.Decoder(Answer)
    with path.open("rb") as lines:
        return [decoder.decode(line) for line in lines]


async def _run(plan: Plan) -> None:
    if plan.answers:
        with open(plan.answers, "wb") as answers:
            await Client(plan, answers).run()
    else:
        await Client(plan, None).run()


if __name__ == "__main__":
    uvloop.run(_run(msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Plan)))
