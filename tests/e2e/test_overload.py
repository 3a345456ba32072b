"""More than replicas can do: who is one too many hears at once, who left costs nothing, and a deploy loses nothing."""

from __future__ import annotations

import asyncio
import contextlib
import random
import select
import socket
from collections import Counter
from collections.abc import Iterator

import pytest
from contract_harness import Answer, Connection, Home, eventually, request, rows_model, running_home, write_project

from cortex.ingress.runtime import AdminSocket

pytestmark = pytest.mark.slow

AT_THE_REPLICA = 72
"""What the ingress gives one replica at once: `agent.rotation.max_connections`."""
MAY_WAIT = 100
"""For an api that was never busy: `agent.pace.SHORTEST_QUEUE`."""
CORTEX_YAML = """
    - {kind: deployment, name: t}
    - {kind: api, name: full, model: m.onnx, request_handler: held.py, env: {FOLDER: %s}, compute: {cpu: 50m}}
    - {kind: api, name: left, model: m.onnx, request_handler: held.py, env: {FOLDER: %s}, compute: {cpu: 50m}}
    - kind: api
      name: late
      model: m.onnx
      request_handler: held.py
      env: {FOLDER: %s}
      timeout: 1s
      compute: {cpu: 50m}
    - {kind: api, name: slow, model: m.onnx, request_handler: slow.py, compute: {cpu: 50m, max_replicas: 1}}
"""
HELD = """
    import os, time

    def pre_inference(sample, metadata):
        with open(os.environ["FOLDER"] + "/began", "a") as file:
            print(sample, file=file)
        while not os.path.exists(os.environ["FOLDER"] + "/go"):
            time.sleep(0.005)
        return [1, 2, 3, 4]
"""
SLOW = """
    import time

    VERSION = %d

    def pre_inference(sample, metadata):
        time.sleep(0.02)
        return [1, 2, 3, 4]

    def post_inference(prediction, metadata):
        return VERSION
"""


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    with running_home() as home:
        project = home.path.parent / "p"
        files = {"held.py": HELD, "slow.py": SLOW % 0, "m.onnx": rows_model()}
        home.deploy(write_project(project, {"cortex.yaml": CORTEX_YAML % ((home.path.parent,) * 3), **files}))
        yield home


class Held:
    """Requests to an api whose handler goes on when it is told, each on a connection of its own."""

    def __init__(self, home: Home, api: str) -> None:
        self._home = home
        self._target = f"/t/{api}"
        self._go = home.path.parent / "go"
        self._began = home.path.parent / "began"
        self._stack = contextlib.ExitStack()
        self.clients: list[Connection] = []

    def __enter__(self) -> Held:
        self._go.unlink(missing_ok=True)
        self._began.unlink(missing_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._go.touch()
        self._stack.close()

    def send(self, count: int) -> list[Connection]:
        """So many more requests; each one's body is its number."""
        sent = []
        for number in range(len(self.clients), len(self.clients) + count):
            client = self._stack.enter_context(Connection(self._home.port))
            client.send(request("POST", self._target, b"%d" % number, {"content-type": "application/json"}))
            self.clients.append(client)
            sent.append(client)
        return sent

    def began(self) -> list[int]:
        """The numbers of those that the handler has begun."""
        return [int(line) for line in self._began.read_text().split()] if self._began.exists() else []

    def begin(self) -> Connection:
        (first,) = self.send(1)
        eventually(self.began, "the handler has one")
        return first

    def let_go(self) -> None:
        self._go.touch()

    def wait_until_held(self, count: int) -> None:
        """Wait until so many requests are in the ingress."""
        (path,) = self._home.nodes[0].sockets.glob("h-door-*.sock")
        eventually(lambda: asyncio.run(AdminSocket(path).requests()) == count, f"{count} requests are held")


def answered(clients: list[Connection]) -> list[Connection]:
    """Those that have something to read."""
    return [client for client in clients if select.select([client.sock], [], [], 0)[0]]


def test_who_is_one_too_many_is_told_at_once_and_when_to_come_again(home: Home) -> None:
    with Held(home, "full") as held:
        held.begin()
        held.send(AT_THE_REPLICA + MAY_WAIT - 1)
        held.send(60)
        eventually(lambda: len(answered(held.clients)) == 60, "those that are too many have their answer")
        refused = [(client, client.receive()) for client in answered(held.clients)]
        assert {(answer.status, answer.json["error"]) for _, answer in refused} == {(503, "overloaded")}
        assert {answer.headers["retry-after"] for _, answer in refused} == {"1"}
        assert held.began() == [0]
        held.let_go()
        waited = [client for client in held.clients if client not in {client for client, _ in refused}]
        assert Counter(client.receive().status for client in waited) == {200: AT_THE_REPLICA + MAY_WAIT}


def test_nothing_is_computed_for_clients_that_left_wherever_they_waited(home: Home) -> None:
    with Held(home, "left") as held:
        first = held.begin()
        leaving = held.send(AT_THE_REPLICA + 30)
        (stays,) = held.send(1)
        held.wait_until_held(len(held.clients))
        for client in leaving:
            client.sock.close()
        held.wait_until_held(2)
        held.let_go()
        assert first.receive().status == stays.receive().status == 200
        assert held.began() == [0, len(held.clients) - 1]


def test_nothing_is_computed_for_a_request_whose_time_was_up_while_it_waited(home: Home) -> None:
    with Held(home, "late") as held:
        held.begin()
        (late,) = held.send(1)
        answer = late.receive()
        assert (answer.status, answer.json["error"]) == (504, "timeout")
        held.let_go()
        (after,) = held.send(1)
        assert after.receive().status == 200
        assert 1 not in held.began()


def test_a_client_that_closes_its_end_is_told_so(home: Home) -> None:
    with Held(home, "left") as held:
        first = held.begin()
        (half,) = held.send(1)
        half.sock.shutdown(socket.SHUT_WR)
        answer = half.receive()
        assert (answer.status, answer.json["error"]) == (400, "bad-request")
        assert "the client closed its end before the answer" in answer.json["message"]
        held.let_go()
        assert first.receive().status == 200
        assert held.began() == [0]


class Crowd:
    """Clients that come at random, each with one request, whether or not others were answered."""

    def __init__(self, port: int, target: str, rate: float) -> None:
        self._port, self._target, self._rate = port, target, rate
        self._tasks: set[asyncio.Task[None]] = set()
        self.answers: Counter[str] = Counter()
        self.versions: Counter[int] = Counter()

    async def come(self, stop: asyncio.Event) -> None:
        chance = random.Random(1)
        while not stop.is_set():
            await asyncio.sleep(chance.expovariate(self._rate))
            task = asyncio.create_task(self._ask())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        await asyncio.gather(*self._tasks)

    async def _ask(self) -> None:
        try:
            answer = await asked(self._port, self._target)
        except (OSError, EOFError) as error:
            self.answers[repr(error)] += 1
            return
        if answer.status == 200:
            self.answers["200"] += 1
            self.versions[answer.json] += 1
        else:
            self.answers[f"{answer.status} {answer.json['error']} {answer.headers.get('retry-after')}"] += 1


async def asked(port: int, target: str) -> Answer:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request("POST", target, b"1", {"content-type": "application/json", "connection": "close"}))
        received = await reader.read()
    finally:
        writer.close()
    head, _, body = received.partition(b"\r\n\r\n")
    if not head:
        raise EOFError("closed without an answer")
    status, *lines = head.decode("latin-1").split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    return Answer(int(status.split()[1]), headers, body)


def test_a_deploy_under_three_times_what_a_replica_does_loses_nothing(home: Home) -> None:
    crowd = Crowd(home.port, "/t/slow", 150.0)

    def deploy(version: int) -> None:
        project = write_project(home.path.parent / "p", {"slow.py": SLOW % version})
        home.deploy(project)

    async def scenario() -> None:
        stop = asyncio.Event()
        coming = asyncio.create_task(crowd.come(stop))
        for version in (1, 2):
            await asyncio.to_thread(deploy, version)
        stop.set()
        await coming

    asyncio.run(scenario())
    retry_after = {answer.removeprefix("503 overloaded ") for answer in crowd.answers if answer != "200"}
    assert retry_after <= {"1", "2", "3", "4", "5"}, crowd.answers
    assert retry_after
    assert set(crowd.versions) == {0, 1, 2}
