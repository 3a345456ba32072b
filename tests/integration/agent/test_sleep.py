"""Replicas that sleep, and who comes to them: nobody is lost, whatever is killed meanwhile."""

from __future__ import annotations

import asyncio
import collections
import http.client
import json
import threading
import time

import msgspec
import pytest
from agent_harness import DEADLINE_S, SETOSA, Asking, Node, eventually

from cortex.agent.pace import LONGEST_QUEUE
from cortex.agent.rotation import HELD_CONNECTIONS
from cortex.ids import ApiKey, replica_id, route_path
from cortex.wire.build import BuildSpec
from cortex.wire.orders import DrainReplica, ForgetReplica, HoldSlot, SetRoute
from cortex.wire.reports import Phase

pytestmark = pytest.mark.slow

SLOW_START = """\
import time
time.sleep({start_s})

def pre_inference(sample, metadata):
    return sample
"""
SLOW_BY_FILE = """\
import os, time
while not os.path.exists({go!r}):
    time.sleep(0.01)

def pre_inference(sample, metadata):
    return sample
"""


class Answer(msgspec.Struct, frozen=True):
    status: int
    after_s: float
    headers: dict[str, str]


class Crowd:
    """So many callers at once, each on a connection of its own, in a thread."""

    def __init__(self, node: Node, build: BuildSpec, count: int, *, body: bytes = SETOSA) -> None:
        self.answered = 0
        self.sent = 0
        self._node, self._build, self._body = node, build, body
        self._asking = Asking(lambda: asyncio.run(self._all(count)))

    def answers(self) -> list[Answer]:
        return self._asking.outcome()

    def statuses(self) -> dict[int, int]:
        return dict(collections.Counter(answer.status for answer in self.answers()))

    async def _all(self, count: int) -> list[Answer]:
        return await asyncio.gather(*(self._ask() for _ in range(count)))

    async def _ask(self) -> Answer:
        head = (
            f"POST {route_path(self._build.api)} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
            f"content-type: application/json\r\ncontent-length: {len(self._body)}\r\n\r\n"
        )
        begun_s = time.monotonic()
        reader, writer = await asyncio.open_connection("127.0.0.1", self._node.settings.port)
        writer.write(head.encode() + self._body)
        await writer.drain()
        self.sent += 1
        answer = await asyncio.wait_for(reader.read(), DEADLINE_S)
        writer.close()
        self.answered += 1
        lines = answer.partition(b"\r\n\r\n")[0].decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines[1:])
        return Answer(int(lines[0].split()[1]), time.monotonic() - begun_s, headers)


def a_crowd_that_waits(node: Node, build: BuildSpec, count: int = 100) -> Crowd:
    crowd = Crowd(node, build, count)
    eventually(lambda: node.at_door() == count, f"{count} wait")
    return crowd


@pytest.fixture
def go(node: Node, api: str):
    """A file without which a replica does not get ready."""
    path = node.layout.home / f"go-{api}"
    yield path
    path.unlink(missing_ok=True)


def test_a_slot_is_held_without_a_process_and_a_knock_is_told_at_once(node: Node, api: str):
    build = node.build(api)
    replica = node.lay_asleep(build)
    found = node.seen(replica)
    assert found is not None
    assert (found.attempt, found.pid, found.knocked_age_s, found.exit) == (0, None, None, None)
    asking = node.posting(build)
    assert node.until_knocked(replica).knocked_age_s < DEADLINE_S
    node.restart(build, attempt=1)
    assert asking.outcome()[0] == 200
    assert node.until(replica, Phase.READY, attempt=1).knocked_age_s is None
    assert node.post(build)[0] == 200
    node.remove(build, replica)
    eventually(lambda: node.files_of(replica) == [], "nothing is left of it")


def test_a_hundred_that_come_at_once_are_answered_by_who_starts_for_2_s(node: Node, api: str):
    build = node.build(api, SLOW_START.format(start_s=2.0))
    replica = node.lay_asleep(build)
    crowd = Crowd(node, build, 100)
    node.until_knocked(replica)
    node.restart(build, attempt=1)
    assert crowd.statuses() == {200: 100}


def test_one_more_than_may_wait_is_told_at_once(node: Node, api: str, go):
    build = node.build(api, SLOW_BY_FILE.format(go=str(go)))
    replica = node.lay_asleep(build)
    room = LONGEST_QUEUE + HELD_CONNECTIONS
    crowd = Crowd(node, build, room + 50)
    node.until_knocked(replica)
    eventually(lambda: crowd.answered == 50, "who is one too many is told", 20.0)
    node.restart(build, attempt=1)
    go.touch()
    answers = crowd.answers()
    assert collections.Counter(answer.status for answer in answers) == {200: room, 503: 50}
    assert all("retry-after" in answer.headers for answer in answers if answer.status == 503)


def test_who_waits_for_nobody_is_told_so_and_who_comes_later_knocks_anew(curt_node: Node, names):
    curt_node.serve(curt_node.build(names()))  # a launcher's own start may take longer than is waited here
    build = curt_node.build(names())
    replica = curt_node.lay_asleep(build)
    begun_s = time.monotonic()
    crowd = Crowd(curt_node, build, 100)
    answers = crowd.answers()
    assert time.monotonic() - begun_s >= 2.0
    assert {answer.status for answer in answers} == {503}
    assert all("retry-after" in answer.headers for answer in answers)
    eventually(lambda: curt_node.seen(replica).knocked_age_s is None, "it sleeps again")

    def knocking() -> Asking[tuple[int, bytes]] | None:
        """None for one that came before the ingress knew that it sleeps again."""
        asking = curt_node.posting(build)
        eventually(lambda: not asking.waits or curt_node.seen(replica).knocked_age_s is not None, "a new knock")
        return asking if asking.waits else None

    asking = eventually(knocking, "it is held again")
    curt_node.restart(build, attempt=1)
    assert asking.outcome()[0] == 200


def test_a_start_that_takes_longer_than_anybody_waits_goes_on(curt_node: Node, api: str, tmp_path):
    go = tmp_path / "go"
    build = curt_node.build(api, SLOW_BY_FILE.format(go=str(go)))
    replica = curt_node.lay_asleep(build)
    crowd = Crowd(curt_node, build, 60)
    curt_node.until_knocked(replica)
    curt_node.restart(build, attempt=1)
    assert crowd.statuses() == {503: 60}
    begun_s = time.monotonic()
    assert curt_node.post(build)[0] == 503, "nobody is held any more"
    assert time.monotonic() - begun_s < 2.0
    go.touch()
    curt_node.until(replica, Phase.READY)
    eventually(lambda: curt_node.answers(build), "it answers")


@pytest.mark.parametrize("when", ["asleep", "starting"])
def test_a_killed_agent_loses_nobody_who_waits(own_node: Node, api: str, tmp_path, when: str):
    go = tmp_path / "go"
    build = own_node.build(api, SLOW_BY_FILE.format(go=str(go)))
    replica = own_node.lay_asleep(build)
    crowd = a_crowd_that_waits(own_node, build)
    own_node.until_knocked(replica)
    if when == "starting":
        own_node.restart(build, attempt=1)
        own_node.until(replica, Phase.LOADING)
    own_node.kill_agent()
    own_node.start()
    if when == "asleep":
        own_node.until_knocked(replica)
        own_node.restart(build, attempt=1)
    go.touch()
    assert crowd.statuses() == {200: 100}


def test_a_killed_keeper_loses_nobody_who_waits(own_node: Node, api: str):
    build = own_node.build(api)
    replica = own_node.lay_asleep(build)
    crowd = a_crowd_that_waits(own_node, build)
    own_node.kill(own_node.only("cortex-keeper"))
    eventually(lambda: own_node.is_kept(replica), "another one has the slot")
    own_node.kill_agent()
    own_node.start()
    own_node.until_knocked(replica)
    own_node.restart(build, attempt=1)
    assert crowd.statuses() == {200: 100}


def test_a_replica_that_is_killed_while_it_starts_loses_nobody_who_waits(node: Node, api: str, go):
    build = node.build(api, SLOW_BY_FILE.format(go=str(go)))
    replica = node.lay_asleep(build)
    crowd = a_crowd_that_waits(node, build)
    node.until_knocked(replica)
    node.restart(build, attempt=1)
    node.kill(node.of(node.until(replica, Phase.LOADING)))
    node.until(replica, Phase.EXITED)
    node.restart(build, attempt=2)
    go.touch()
    assert crowd.statuses() == {200: 100}


def test_another_haproxy_loses_nobody_who_waits(own_node: Node, api: str):
    """More apis than its pool has backends for make it another one; the old one finishes."""
    build = own_node.build(api)
    replica = own_node.lay_asleep(build)
    before = set(own_node.haproxies())
    crowd = a_crowd_that_waits(own_node, build)
    others = [
        SetRoute(api=ApiKey(f"t/x{number}"), path=f"/t/x{number}", targets=(), version=build.version)
        for number in range(500)
    ]
    own_node.order(*others)
    eventually(lambda: set(own_node.haproxies()) - before, "there is another HAProxy")
    eventually(lambda: not own_node.report().pending_routes, "it has the routes")
    more = Crowd(own_node, build, 20)
    eventually(lambda: more.sent == 20, "more have come")
    own_node.restart(build, attempt=1)
    assert crowd.statuses() == {200: 100}
    assert more.statuses() == {200: 20}
    assert own_node.seen(replica).attempt == 1


def test_who_leaves_has_woken_it_and_keeps_nobody_from_being_answered(node: Node, api: str):
    build = node.build(api)
    replica = node.lay_asleep(build)
    connection = http.client.HTTPConnection("127.0.0.1", node.settings.port, timeout=DEADLINE_S)
    connection.request("POST", route_path(build.api), SETOSA, {"content-type": "application/json"})
    node.until_knocked(replica)
    connection.close()
    eventually(lambda: node.at_door() == 0, "the client has left")
    assert node.seen(replica).knocked_age_s is not None
    asking = node.posting(build)
    node.restart(build, attempt=1)
    assert asking.outcome()[0] == 200


def test_health_is_answered_and_wakes_nobody(node: Node, api: str):
    build = node.build(api)
    replica = node.lay_asleep(build)
    paths = {
        "/v2/health/live": {"live": True},
        "/v2/health/ready": {"ready": True},
        f"/v2/models/{api}/ready": {"name": api, "ready": True},
    }
    for path, expected in paths.items():
        assert health(node, build, path) == (200, "asleep", expected)
        assert health(node, build, path, "HEAD") == (200, "asleep", None)
    found = node.seen(replica)
    assert found is not None
    assert (found.phase, found.knocked_age_s) == (Phase.ASLEEP, None)
    asking = Asking(lambda: health(node, build, "/v2/models/other/ready"))
    node.until_knocked(replica)
    eventually(lambda: health(node, build, "/v2/health/ready")[1] == "waking", "it is told that it wakes")
    node.restart(build, attempt=1)
    assert asking.outcome()[0] == 404
    node.until(replica, Phase.READY)
    eventually(lambda: health(node, build, "/v2/health/ready") == (200, None, {"ready": True}), "the replica says so")


def health(node: Node, build: BuildSpec, path: str, method: str = "GET") -> tuple[int, str | None, object]:
    connection = http.client.HTTPConnection("127.0.0.1", node.settings.port, timeout=DEADLINE_S)
    try:
        connection.request(method, route_path(build.api) + path)
        answer = connection.getresponse()
        body = answer.read()
        return answer.status, answer.getheader("cortex-status"), json.loads(body) if body else None
    finally:
        connection.close()


class Traffic:
    """Clients that ask again and again, on connections that they keep. How often an answer was another one is kept."""

    def __init__(self, node: Node, build: BuildSpec, clients: int, body: bytes) -> None:
        self.statuses: collections.Counter[object] = collections.Counter()
        self._node, self._build, self._body = node, build, body
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(clients)]
        for thread in self._threads:
            thread.start()

    def goes_on(self) -> None:
        """Wait until more was answered."""
        before = self.statuses[200]
        eventually(lambda: self.statuses[200] > before + 20, "there is traffic")

    def end(self) -> dict[object, int]:
        self._over.set()
        for thread in self._threads:
            thread.join(DEADLINE_S)
        return dict(self.statuses)

    def _ask(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._node.settings.port, timeout=DEADLINE_S)
        while not self._over.is_set():
            try:
                connection.request(
                    "POST", route_path(self._build.api), self._body, {"content-type": "application/json"}
                )
                answer = connection.getresponse()
                answer.read()
                self.statuses[answer.status] += 1
            except (OSError, http.client.HTTPException) as error:
                self.statuses[repr(error)] += 1
                connection.close()
        connection.close()


@pytest.mark.parametrize("body", [SETOSA, SETOSA + b" " * 400_000], ids=["small", "400 KB"])
def test_one_that_falls_asleep_under_traffic_loses_nothing_although_nothing_is_sent_twice(
    node: Node, api: str, body: bytes
):
    build = node.build(api)
    (awake,) = node.serve(build)
    node.route(build, awake, retry=False)
    traffic = Traffic(node, build, 8, body)
    for ordinal in range(1, 6):
        traffic.goes_on()
        asleep = replica_id(build.api, build.revision, ordinal)
        node.order(HoldSlot(replica=asleep, build=build))
        node.until(asleep, Phase.ASLEEP, attempt=0)
        node.route(build, asleep, retry=False)
        node.order(DrainReplica(replica=awake, timeout_s=DEADLINE_S))
        node.until_knocked(asleep)
        node.restart(build, ordinal, attempt=1)
        node.until(awake, Phase.EXITED, attempt=min(1, ordinal))
        node.order(ForgetReplica(replica=awake))
        node.until(asleep, Phase.READY)
        awake = asleep
    assert traffic.end().keys() == {200}


def test_one_that_sleeps_is_drained_and_forgotten_like_others(node: Node, api: str):
    build = node.build(api)
    replica = node.lay_asleep(build)
    node.order(node.route_order(build), DrainReplica(replica=replica, timeout_s=5.0))
    found = node.until(replica, Phase.EXITED, attempt=0)
    assert found.exit is not None
    assert found.exit.drained
    node.order(ForgetReplica(replica=replica))
    eventually(lambda: node.files_of(replica) == [], "nothing is left of it")


def test_who_waits_where_one_that_sleeps_is_forgotten_goes_to_another(node: Node, api: str):
    build = node.build(api)
    replica = node.lay_asleep(build)
    crowd = a_crowd_that_waits(node, build)
    other = node.start_order(build, 1)
    node.order(other)
    node.until(other.replica, Phase.READY)
    node.order(node.route_order(build, other.replica), ForgetReplica(replica=replica))
    assert crowd.statuses() == {200: 100}
    eventually(lambda: node.files_of(replica) == [], "nothing is left of it")


def test_one_that_sleeps_and_whose_socket_is_removed_gets_another(node: Node, api: str):
    build = node.build(api)
    replica = node.lay_asleep(build)
    (slot, _record) = node.files_of(replica)
    slot.unlink()
    eventually(slot.exists, "it has a socket again")
    asking = node.posting(build)
    node.until_knocked(replica)
    node.restart(build, attempt=1)
    assert asking.outcome()[0] == 200


def test_an_agent_that_is_restarted_knocks_nowhere(own_node: Node, api: str):
    build = own_node.build(api)
    replica = own_node.lay_asleep(build)
    own_node.kill_agent()
    own_node.start()
    found = own_node.until(replica, Phase.ASLEEP, attempt=0)
    assert found.knocked_age_s is None


def test_a_node_that_stops_tells_who_waits_for_one_that_sleeps(own_node: Node, api: str):
    build = own_node.build(api)
    own_node.lay_asleep(build)
    crowd = a_crowd_that_waits(own_node, build)
    begun_s = time.monotonic()
    assert own_node.stop(drain_timeout_s=DEADLINE_S) == 0
    assert time.monotonic() - begun_s < DEADLINE_S / 2
    assert crowd.statuses() == {503: 100}
    assert own_node.is_empty()
