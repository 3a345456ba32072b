"""Doors of several nodes, each with a real HAProxy: every one serves every api, whatever becomes of the others."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import ssl
import time
from collections import Counter

import msgspec
import pytest

from cortex import certificates
from cortex.certificates import Authority
from cortex.ids import NodeId
from cortex.ingress.configuration import IngressLimits, Refusal
from cortex.ingress.peers import PEER_KEY, IngressPeer, Peering, PeerShare
from cortex.ingress.routes import IngressRoute, Sleep

from .conftest import Answer, Backend, Connection, World, request_head

pytestmark = pytest.mark.slow

SMALL, LARGE = b"[1]", b"x" * 1_000_000
LIMITS = IngressLimits(replay_bytes=2_000_000)
"""So that a body of 1 MB is one that can be delivered twice."""


class Node:
    """One door with replicas of its own."""

    def __init__(self, name: str, world: World, authority: Authority) -> None:
        self.name = NodeId(name)
        self.world = world
        self.port = world.reserved_port()
        self.certificate, self.authority = world.directory / "node.pem", world.directory / "ca.pem"
        self.authority.write_bytes(authority.certificate)
        certificates.kept_certificate(self.certificate, authority, self.name, time.time())
        self.peers: tuple[IngressPeer, ...] = ()
        self.routes: tuple[IngressRoute, ...] = ()

    @property
    def peering(self) -> Peering:
        return Peering(host="127.0.0.1", port=self.port, certificate=self.certificate, authority=self.authority)

    @property
    def address(self) -> IngressPeer:
        return IngressPeer(name=self.name, host="127.0.0.1", port=self.port)

    async def start(self, **options) -> None:
        options.setdefault("limits", LIMITS)
        self.ingress = self.world.ingress(peering=self.peering, probe_token="the-token", **options)
        await self.ingress.start()
        self.world.port = self.ingress.status().addresses[0][1]

    async def apply(self) -> None:
        await self.ingress.apply(self.routes, self.peers)

    async def refused(self) -> dict[Refusal, int]:
        counts: Counter[Refusal] = Counter()
        for row in await self.ingress.refusals():
            counts.update(row.counts)
        return {refusal: count for refusal, count in counts.items() if count}

    async def pids(self) -> list[int]:
        return [worker["identity"]["pid"] for worker in self.world.workers()]

    async def kill(self) -> None:
        """kill -9 of all that it consists of; nobody starts it again."""
        await self.ingress.detach()
        for pid in await self.pids():
            self.world.kill(pid)


class Cluster:
    """
    Nodes of one authority, all in this process.

    Args:
        world: whose journal all replicas write.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self.signer = certificates.make_authority(time.time())
        self.nodes: dict[str, Node] = {}
        self._lost: list[Node] = []

    def node(self, name: str) -> Node:
        folder, sockets = self._world.directory / name, self._world.sockets / name
        folder.mkdir()
        sockets.mkdir()
        world = World(folder, sockets)
        world.journal = self._world.journal
        self.nodes[name] = Node(name, world, self.signer)
        return self.nodes[name]

    async def start(self, *names: str, **options) -> list[Node]:
        nodes = [self.node(name) for name in names]
        for node in nodes:
            await node.start(**options)
        return nodes

    async def serve(self, api: str, where: dict[str, list[Backend]], *, most: int = 64, **options) -> None:
        """Have an api at these nodes, and all doors know it: first those that have it, last those that had it."""
        for node in sorted(self.nodes.values(), key=lambda node: (node.name not in where, node.name)):
            servers = [backend.server(max_connections=most) for backend in where.get(node.name, ())]
            shares = tuple(
                PeerShare(peer=NodeId(name), ready=len(backends))
                for name, backends in where.items()
                if name != node.name and backends
            )
            route = node.world.route(api, *servers, peers=shares, **{"holds": True, **options})
            node.routes = (*(known for known in node.routes if known.api != route.api), route)
            node.peers = tuple(other.address for other in self.nodes.values() if other is not node)
            await node.apply()
        for node in self.nodes.values():
            await node.world.eventually(lambda node=node: self._watches(node))

    async def lose(self, node: Node) -> None:
        """kill -9 of all of it; the others are told nothing of it."""
        self._lost.append(self.nodes.pop(node.name))
        await node.kill()

    def let_go(self) -> None:
        """Let all replicas answer the requests that they hold (`?hold`)."""
        self._world.let_go()

    async def _watches(self, node: Node) -> bool:
        return len(await node.world.admin().places()) == len(node.peers)

    async def close(self) -> None:
        async with contextlib.AsyncExitStack() as stack:
            for node in (*self.nodes.values(), *self._lost):
                stack.push_async_callback(node.world.close)


@pytest.fixture
def cluster(run):
    """Run a scenario with a cluster of its own."""

    def run_(scenario) -> None:
        async def whole(world: World) -> None:
            found = Cluster(world)
            try:
                await scenario(found)
            finally:
                await found.close()

        run(whole)

    return run_


def server_of(answer: Answer) -> str:
    assert answer.status == 200, answer
    return answer.json()["server"]


# ---- who serves ---------------------------------------------------------------------------------------------------


def test_every_door_serves_an_api_that_lives_on_another(cluster):
    async def scenario(cluster):
        a, b, c = await cluster.start("a", "b", "c")
        await cluster.serve("iris/a", {"b": [b.world.backend("b1")]})
        await cluster.serve("iris/c", {"c": [c.world.backend("c1")]})
        for node in (a, b, c):
            answer = await node.world.ask("POST", "/iris/a", SMALL, {"x-request-id": f"of-{node.name}"})
            assert server_of(answer) == "b1"
            assert answer.headers["x-request-id"] == f"of-{node.name}"
            assert answer.headers["x-cortex-version"] == "of-replica"
            found = answer.json()["headers"]
            assert found["x-request-id"] == f"of-{node.name}"
            assert found["x-cortex-limits"] == "30000,4194304"
            assert not [name for name in found if name in ("x-cortex-only", "x-cortex-near", "x-cortex-probe")]
            large = await node.world.ask("POST", "/iris/c", LARGE)
            assert (server_of(large), large.json()["length"]) == ("c1", len(LARGE))
            assert (await node.world.ask("POST", "/iris/nothing")).status == 404

    cluster(scenario)


@pytest.mark.parametrize("body", [SMALL, LARGE])
def test_what_comes_one_by_one_stays_here(cluster, body):
    async def scenario(cluster):
        a, b = await cluster.start("a", "b")
        here = [a.world.backend("a1"), a.world.backend("a2")]
        await cluster.serve("iris/a", {"a": here, "b": [b.world.backend("b1")]})
        served = {server_of(await a.world.ask("POST", "/iris/a", body)) for _ in range(20)}
        assert served == {"a1", "a2"}

    cluster(scenario)


def test_what_the_replicas_here_have_no_room_for_goes_to_a_peer_and_then_waits_here(cluster):
    async def scenario(cluster):
        a, b = await cluster.start("a", "b")
        await cluster.serve("iris/a", {"a": [a.world.backend("a1")], "b": [b.world.backend("b1")]}, most=4)
        waiting = []
        for there in range(1, 51):
            waiting.append(asyncio.create_task(a.world.ask("POST", "/iris/a?hold")))
            await a.world.eventually(lambda there=there: arrived(a, there))
        # 4 are at the replica here, 40 at the peer, of which 36 wait there; the others wait here.
        ((_, here),) = await a.world.read(a.ingress, "iris/a")
        ((begun, there),) = await b.world.read(b.ingress, "iris/a")
        assert (here, begun, there) == (6, 0, 36)
        cluster.let_go()
        served = Counter(server_of(answer) for answer in await asyncio.gather(*waiting))
        assert served == {"a1": 10, "b1": 40}
        assert (await a.refused(), await b.refused()) == ({}, {})

    async def arrived(node, count):
        return (await node.world.admin().requests()) >= count

    cluster(scenario)


def test_peers_are_asked_by_how_much_they_have(cluster):
    async def scenario(cluster):
        a, b, c = await cluster.start("a", "b", "c")
        many = [b.world.backend(f"b{n}") for n in range(3)]
        await cluster.serve("iris/a", {"b": many, "c": [c.world.backend("c1")]})
        waiting = [asyncio.create_task(a.world.ask("POST", "/iris/a?hold")) for _ in range(16)]
        await a.world.until(lambda: len(a.world.journal.read_text().splitlines()) == 16)
        cluster.let_go()
        served = Counter(server_of(answer)[0] for answer in await asyncio.gather(*waiting))
        assert served["b"] > served["c"] > 0

    cluster(scenario)


def test_a_peer_is_served_here_or_not_at_all(cluster):
    async def scenario(cluster):
        a, b, c = await cluster.start("a", "b", "c")
        await cluster.serve("iris/a", {"c": [c.world.backend("c1")]})
        # What a believes is out of date: b has none, and knows of c.
        (route,) = a.routes
        a.routes = (msgspec.structs.replace(route, peers=(PeerShare(peer=b.name, ready=1),)),)
        await a.apply()
        answer = await a.world.ask("POST", "/iris/a", headers={"x-request-id": "lost"})
        assert (answer.status, answer.json()["error"]) == (503, "no-ready-replica")
        assert a.world.deliveries("lost") == []
        assert await a.refused() == {Refusal.NO_READY_REPLICA: 1}
        assert await b.refused() == {}
        # With another to ask it asks that.
        a.routes = (msgspec.structs.replace(route, peers=(PeerShare(b.name, 1), PeerShare(c.name, 1))),)
        await a.apply()
        assert {server_of(await a.world.ask("POST", "/iris/a")) for _ in range(6)} == {"c1"}

    cluster(scenario)


def test_what_waits_for_a_replica_that_sleeps_elsewhere_is_a_knock_there(cluster):
    async def scenario(cluster):
        a, b = await cluster.start("a", "b")
        sleeper = b.world.backend("b1")
        sleeper.kill()
        await cluster.serve("iris/a", {"b": [sleeper]}, most=20)
        (route,) = b.routes
        b.routes = (msgspec.structs.replace(route, sleep=Sleep.ASLEEP),)
        await b.apply()
        health = await a.world.ask("GET", "/iris/a/v2/health/ready")
        assert (health.status, health.headers["cortex-status"]) == (200, "asleep")
        probe = await a.world.ask("POST", "/iris/a", headers={"x-cortex-probe": "the-token"})
        assert (probe.status, probe.json()["error"], probe.headers["x-cortex-probe"]) == (503, "asleep", "1")
        waiting = asyncio.create_task(a.world.ask("POST", "/iris/a", SMALL))
        await b.world.until_requests(1)
        sleeper.start()
        assert server_of(await waiting) == "b1"

    cluster(scenario)


# ---- what is counted ----------------------------------------------------------------------------------------------


def test_what_a_peer_refuses_is_counted_once_by_the_door_that_was_asked(cluster):
    async def scenario(cluster):
        a, b = await cluster.start("a", "b")
        await cluster.serve("iris/a", {"b": [b.world.backend("b1")]}, most=1, max_queued=1, retry_after_s=7)
        waiting = [asyncio.create_task(b.world.ask("POST", "/iris/a?hold"))]
        waiting += [asyncio.create_task(a.world.ask("POST", "/iris/a?hold")) for _ in range(2)]
        await a.world.until(lambda: len(a.world.journal.read_text().splitlines()) == 2)
        await b.world.eventually(lambda: queued(b))
        full = await a.world.ask("POST", "/iris/a", SMALL)
        assert (full.status, full.json()["error"], full.headers["retry-after"]) == (503, "overloaded", "7")
        assert full.headers["x-cortex-version"] == "of-route"
        assert "x-cortex-refused" not in full.headers
        cluster.let_go()
        assert {server_of(answer) for answer in await asyncio.gather(*waiting)} == {"b1"}
        assert (await a.refused(), await b.refused()) == ({Refusal.OVERLOADED: 1}, {})

    async def queued(node):
        ((_, there),) = await node.world.read(node.ingress, "iris/a")
        return there == 1

    cluster(scenario)


@pytest.mark.parametrize("body", [SMALL, LARGE])
def test_what_a_peer_times_out_is_counted_once(cluster, body):
    async def scenario(cluster):
        a, b = await cluster.start("a", "b")
        await cluster.serve("iris/a", {"b": [b.world.backend("b1")]}, timeout_s=0.2)
        late = await a.world.ask("POST", "/iris/a?silent", body)
        assert (late.status, late.json()["error"]) == (504, "timeout")
        assert (await a.refused(), await b.refused()) == ({Refusal.TIMEOUT: 1}, {})

    cluster(scenario)


def test_a_status_of_a_handler_there_is_no_refusal_and_a_replica_cannot_feign_one(cluster):
    async def scenario(cluster):
        a, b = await cluster.start("a", "b")
        await cluster.serve("iris/a", {"b": [b.world.backend("b1")]})
        for status in (503, 504, 400):
            assert (await a.world.ask("POST", f"/iris/a?status={status}")).status == status
            assert (await a.world.ask("POST", f"/iris/a?status={status}&refused")).status == status
        assert (await a.refused(), await b.refused()) == ({}, {})

    cluster(scenario)


def test_requests_are_counted_as_begun_by_the_first_door_and_probes_by_none(cluster):
    async def scenario(cluster):
        a, b = await cluster.start("a", "b")
        await cluster.serve("iris/a", {"b": [b.world.backend("b1")]})
        assert await b.world.read(b.ingress, "iris/a") == [(0, 0)]
        for body in (SMALL, LARGE, SMALL):
            server_of(await a.world.ask("POST", "/iris/a", body))
        for body in (SMALL, LARGE):
            answer = await a.world.ask("POST", "/iris/a", body, {"x-cortex-probe": "the-token"})
            assert (server_of(answer), answer.headers["x-cortex-probe"]) == ("b1", "1")
            assert answer.json()["headers"]["x-cortex-probe"] == "1"
        feigned = await a.world.ask("POST", "/iris/a", SMALL, {"x-cortex-probe": "1", "x-cortex-near": "1"})
        assert "x-cortex-probe" not in feigned.json()["headers"]
        assert await a.world.read(a.ingress, "iris/a") == [(4, 0)]
        assert await b.world.read(b.ingress, "iris/a") == [(0, 0)]
        (found,) = (await b.ingress.traffic()).apis
        assert (found.done, found.given) == (6, 0)

    cluster(scenario)


# ---- deliveries ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [SMALL, LARGE])
def test_a_request_that_kills_replicas_is_delivered_twice_in_all(cluster, body):
    async def scenario(cluster):
        a, b = await cluster.start("a", "b")
        await cluster.serve("iris/a", {"b": [b.world.backend(f"b{n}") for n in range(4)]})
        answer = await a.world.ask("POST", "/iris/a?die", body, {"x-request-id": "poison"})
        assert (answer.status, answer.json()["error"]) == (502, "replica-lost")
        assert len(a.world.deliveries("poison")) == 2
        assert (await a.refused(), await b.refused()) == ({Refusal.REPLICA_LOST: 1}, {})

    cluster(scenario)


@pytest.mark.parametrize("body", [SMALL, LARGE])
def test_what_must_not_be_delivered_twice_is_not(cluster, body):
    async def scenario(cluster):
        a, b = await cluster.start("a", "b")
        await cluster.serve("iris/a", {"b": [b.world.backend("b1"), b.world.backend("b2")]}, retry=False)
        answer = await a.world.ask("POST", "/iris/a?die", body, {"x-request-id": "once"})
        assert (answer.status, answer.json()["error"]) == (502, "replica-lost")
        assert len(a.world.deliveries("once")) == 1
        assert await a.refused() == {Refusal.REPLICA_LOST: 1}

    cluster(scenario)


# ---- faults -------------------------------------------------------------------------------------------------------


def test_a_peer_that_is_killed_fails_no_request_of_another_door(cluster):
    async def scenario(cluster):
        a, b, c = await cluster.start("a", "b", "c")
        await cluster.serve("iris/a", {"b": [b.world.backend("b1")], "c": [c.world.backend("c1")]})
        async with a.world.load("/iris/a", clients=16) as load:
            await a.world.until(lambda: load.servers == {"b1", "c1"})
            await b.kill()
            await load.progress(200)
        assert load.failures == []

    cluster(scenario)


def test_a_peer_behind_a_cut_link_costs_no_request_but_some_that_were_on_their_way_there(cluster):
    async def scenario(cluster):
        a, b = await cluster.start("a", "b")
        here = a.world.backend("a1")
        await cluster.serve("iris/a", {"a": [here], "b": [b.world.backend("b1")]}, most=2)
        async with a.world.load("/iris/a?sleep=0.01", clients=16) as load:
            await a.world.until(lambda: load.servers == {"a1", "b1"})
            await b.ingress.detach()
            before = dict(load.answered)
            for pid in await b.pids():
                b.world.halt(pid)
            await a.world.until(lambda: all(load.answered[client] > count for client, count in before.items()))
            # HAProxy asks again for those that had a connection, and drops those that were just being connected.
            assert len(load.failures) < 16
            assert {failure for failure in load.failures if "IncompleteReadError" not in failure} == set()
            load.failures.clear()
            load.servers.clear()
            await load.progress(200)
            assert (load.failures, load.servers) == ([], {"a1"})
            for pid in await b.pids():
                os.kill(pid, signal.SIGCONT)
            await a.world.until(lambda: load.servers == {"a1", "b1"} or bool(load.failures))
        assert load.failures == []

    cluster(scenario)


def test_a_peer_comes_moves_and_goes_without_a_worker_being_replaced(cluster):
    async def scenario(cluster):
        a, b = await cluster.start("a", "b")
        await cluster.serve("iris/a", {"b": [b.world.backend("b1")]})
        pids = await a.pids()
        async with a.world.load("/iris/a") as load:
            c = cluster.node("c")
            await c.start()
            await cluster.serve("iris/a", {"c": [c.world.backend("c1")]})
            await load.progress(0)
            load.servers.clear()
            await load.progress(50)
            assert (load.failures, load.servers) == ([], {"c1"})
            # The same node at another address.
            await c.ingress.detach()
            moved = Node.__new__(Node)
            moved.__dict__.update(c.__dict__, port=c.world.reserved_port())
            await moved.start()
            cluster.nodes["c"] = moved
            await cluster.serve("iris/a", {"c": c.world.backends})
            await load.progress(50)
        assert load.failures == []
        assert await a.pids() == pids
        assert moved.address.address in (await a.world.admin().places()).values()

    cluster(scenario)


def test_a_peer_that_is_asked_no_more_finishes_what_it_has_and_is_then_forgotten(cluster):
    async def scenario(cluster):
        a, b, c = await cluster.start("a", "b", "c")
        await cluster.serve("iris/a", {"b": [b.world.backend("b1")]}, retry=False)
        asked = asyncio.create_task(a.world.ask("POST", "/iris/a?hold"))
        await a.world.until(lambda: a.world.journal.exists() and bool(a.world.journal.read_text()))
        await cluster.serve("iris/a", {"c": [c.world.backend("c1")]}, retry=False)
        assert server_of(await a.world.ask("POST", "/iris/a")) == "c1"
        assert len(await peers_of(a)) == 2
        cluster.let_go()
        assert server_of(await asked) == "b1"
        await a.world.eventually(lambda: one_peer(a))

    async def peers_of(node):
        return [row for row in await node.world.admin("bulk").servers() if row.address.key.startswith(PEER_KEY)]

    async def one_peer(node):
        return len(await peers_of(node)) == 1

    cluster(scenario)


def test_a_restarted_agent_finds_its_peers_where_they_are(cluster):
    async def scenario(cluster):
        a, b, c = await cluster.start("a", "b", "c")
        await cluster.serve("iris/a", {"b": [b.world.backend("b1")], "c": [c.world.backend("c1")]})
        youngest = a.world.workers()[-1]["name"]
        before = await a.world.admin().holdings(f"{youngest['tier']}-{youngest['generation']}.map")
        pids = await a.pids()
        async with a.world.load("/iris/a") as load:
            await a.ingress.detach()
            commands: list[str] = []

            class Watched(type(a.world.admin())):
                async def run(self, batch):
                    batch = list(batch)
                    commands.extend(command for command in batch if not command.startswith("show"))
                    return await super().run(batch)

            await a.start(admin=Watched)
            await a.apply()
            await load.progress(50)
        assert load.failures == []
        assert commands == []
        assert await a.pids() == pids
        assert before.servers

    cluster(scenario)


def test_a_new_certificate_is_taken_up_without_a_failure(cluster):
    async def scenario(cluster):
        a, b = await cluster.start("a", "b")
        await cluster.serve("iris/a", {"b": [b.world.backend("b1")]})
        async with a.world.load("/iris/a") as load:
            for node in (a, b):
                pids = await node.pids()
                await node.ingress.renew()
                assert await node.pids() == pids, "it is the same one"
                node.certificate.write_bytes(certificates.issue(cluster.signer, node.name, time.time()))
                await node.ingress.renew()
                assert await node.pids() != pids
                await load.progress(50)
        assert load.failures == []

    cluster(scenario)


# ---- nobody can be reached ----------------------------------------------------------------------------------------


async def held(node, count):
    """Wait until that many requests are held at a node."""

    async def there():
        return await node.world.admin("hold").requests() >= count

    await node.world.eventually(there)


@pytest.mark.parametrize("where", ["a", "c"])
@pytest.mark.parametrize("body", [SMALL, LARGE])
def test_requests_are_held_while_the_node_of_the_only_replica_is_lost(cluster, body, where):
    async def scenario(cluster):
        a, b, c = await cluster.start("a", "b", "c")
        await cluster.serve("iris/a", {"b": [b.world.backend("b1")]})
        async with a.world.load("/iris/a", clients=16, body=body) as load:
            await cluster.lose(b)
            await held(a, 16)
            await cluster.serve("iris/a", {})
            await held(a, 16)
            await cluster.serve("iris/a", {where: [cluster.nodes[where].world.backend("new")]})
            load.servers.clear()
            await load.progress(100)
        assert (load.failures, load.servers) == ([], {"new"})
        assert (await a.refused(), await c.refused()) == ({}, {})

    cluster(scenario)


@pytest.mark.parametrize("body", [SMALL, LARGE, b"x" * 3_000_000])
def test_what_is_delivered_once_only_is_held_with_its_body(cluster, body):
    async def scenario(cluster):
        a, b, c = await cluster.start("a", "b", "c")
        await cluster.serve("iris/a", {"b": [b.world.backend("b1")]}, retry=False)
        await cluster.lose(b)
        waiting = asyncio.create_task(a.world.ask("POST", "/iris/a", body, {"x-request-id": "once"}))
        await held(a, 1)
        await cluster.serve("iris/a", {"c": [c.world.backend("c1")]}, retry=False)
        answer = await waiting
        assert (server_of(answer), answer.json()["length"]) == ("c1", len(body))
        assert a.world.deliveries("once") == ["c1"]

    cluster(scenario)


@pytest.mark.parametrize("body", [SMALL, LARGE])
def test_what_a_lost_node_had_is_delivered_once_more_and_no_further_time(cluster, body):
    async def scenario(cluster):
        a, b, c = await cluster.start("a", "b", "c")
        await cluster.serve("iris/a", {"b": [b.world.backend("b1")]})
        first = asyncio.create_task(a.world.ask("POST", "/iris/a?silent", body, {"x-request-id": "silent"}))
        await a.world.until(lambda: a.world.deliveries("silent") == ["b1"])
        await cluster.lose(b)
        await held(a, 1)
        replicas = [c.world.backend(f"c{n}") for n in range(4)]
        await cluster.serve("iris/a", {"c": replicas})
        await a.world.until(lambda: len(a.world.deliveries("silent")) == 2)
        for replica in replicas:
            replica.kill()
        answer = await first
        assert (answer.status, answer.json()["error"]) == (502, "replica-lost")
        assert len(a.world.deliveries("silent")) == 2
        assert (await a.refused(), await c.refused()) == ({Refusal.REPLICA_LOST: 1}, {})

    cluster(scenario)


def test_a_replica_that_a_peer_hears_of_later_than_others_is_waited_for_there(cluster):
    async def scenario(cluster):
        a, b = await cluster.start("a", "b")
        new = b.world.backend("b1")
        for retry in (True, False):
            await cluster.serve("iris/a", {"b": []}, retry=retry)
            (route,) = a.routes
            a.routes = (msgspec.structs.replace(route, peers=(PeerShare(peer=b.name, ready=1),)),)
            await a.apply()
            waiting = asyncio.create_task(a.world.ask("POST", "/iris/a"))
            await held(b, 1)
            await cluster.serve("iris/a", {"b": [new]}, retry=retry)
            assert server_of(await waiting) == "b1"
        assert (await a.refused(), await b.refused()) == ({}, {})

    cluster(scenario)


def test_while_nobody_is_behind_the_replicas_here_peers_are_asked_and_ask_them(cluster):
    async def scenario(cluster):
        a, b = await cluster.start("a", "b")
        dead = a.world.backend("a1")
        dead.kill()
        await cluster.serve("iris/a", {"a": [dead], "b": [b.world.backend("b1")]})
        (route,) = a.routes
        a.routes = (msgspec.structs.replace(route, held=True),)
        await a.apply()
        for _ in range(4):
            assert server_of(await a.world.ask("POST", "/iris/a")) == "b1"
        await cluster.lose(b)
        waiting = asyncio.create_task(a.world.ask("POST", "/iris/a"))
        await held(a, 1)
        dead.start()
        a.routes = (msgspec.structs.replace(route, held=False),)
        await a.apply()
        assert server_of(await waiting) == "a1"

    cluster(scenario)


def test_who_is_waited_for_in_vain_is_told_so_and_counted_once(cluster):
    async def scenario(cluster):
        a, b = await cluster.start("a", "b", limits=IngressLimits(hold_s=1.0))
        await cluster.serve("iris/a", {})
        for body in (SMALL, LARGE):
            answer = await a.world.ask("POST", "/iris/a", body)
            assert (answer.status, answer.json()["error"]) == (503, "no-ready-replica")
            assert answer.headers["x-cortex-version"] == "of-route"
            assert "x-cortex-refused" not in answer.headers
        assert (await a.refused(), await b.refused()) == ({Refusal.NO_READY_REPLICA: 2}, {})

    cluster(scenario)


def test_who_is_held_when_the_door_is_closed_is_told_that_nobody_comes(cluster):
    async def scenario(cluster):
        a, _ = await cluster.start("a", "b", limits=IngressLimits(hold_s=600.0))
        await cluster.serve("iris/a", {})
        waiting = [asyncio.create_task(a.world.ask("POST", "/iris/a", body)) for body in (SMALL, LARGE)]
        await held(a, 2)
        await a.ingress.stop(600.0)
        for task in waiting:
            answer = await task
            assert (answer.status, answer.json()["error"]) == (503, "no-ready-replica")

    cluster(scenario)


def test_a_door_that_starts_anew_sends_nobody_where_nobody_listens_any_more(cluster):
    async def scenario(cluster):
        (a,) = await cluster.start("a")
        gone, there = a.world.backend("gone"), a.world.backend("there")
        await cluster.serve("iris/a", {"a": [gone, there]})
        await a.kill()
        gone.close()
        await a.start()
        (route,) = a.ingress.routes()
        assert [server.name for server in route.servers] == ["there"]
        async with a.world.load("/iris/a") as load:
            await load.progress(20)
        assert (load.failures, load.servers) == ([], {"there"})

    cluster(scenario)


def test_an_api_that_is_not_to_be_waited_for_is_refused_at_once(cluster):
    async def scenario(cluster):
        a, _ = await cluster.start("a", "b")
        await cluster.serve("iris/a", {}, holds=False, retry_after_s=7)
        answer = await a.world.ask("POST", "/iris/a")
        assert (answer.status, answer.json()["error"], answer.headers["retry-after"]) == (503, "no-ready-replica", "7")
        assert await a.refused() == {Refusal.NO_READY_REPLICA: 1}
        assert [row.begun for row in (await a.ingress.traffic()).apis] == [1]

    cluster(scenario)


def test_no_more_are_held_than_may_wait_and_each_has_begun_once(cluster):
    async def scenario(cluster):
        a, b = await cluster.start("a", "b")
        await cluster.serve("iris/a", {}, max_queued=2)
        waiting = [asyncio.create_task(a.world.ask("POST", "/iris/a")) for _ in range(2)]
        await held(a, 2)
        full = await a.world.ask("POST", "/iris/a")
        assert (full.status, full.json()["error"]) == (503, "overloaded")
        await cluster.serve("iris/a", {"b": [b.world.backend("b1")]})
        assert {server_of(answer) for answer in await asyncio.gather(*waiting)} == {"b1"}
        assert (await a.refused(), await b.refused()) == ({Refusal.OVERLOADED: 1}, {})
        assert await a.world.read(a.ingress, "iris/a") == [(3, 0)]
        assert await b.world.read(b.ingress, "iris/a") == [(0, 0)]

    cluster(scenario)


# ---- who is a peer ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("who", ["nobody", "stranger", "expired", "peer"])
def test_only_who_has_a_certificate_of_ours_that_is_valid_is_a_peer(cluster, tmp_path, who):
    async def scenario(cluster):
        (a,) = await cluster.start("a")
        await cluster.serve("iris/a", {"a": [a.world.backend("a1")]})
        now_s, name = time.time(), NodeId("x")
        tls = ssl.create_default_context(cadata=cluster.signer.certificate.decode())
        tls.check_hostname = False
        pem = {
            "nobody": b"",
            "stranger": certificates.issue(certificates.make_authority(now_s), name, now_s),
            "expired": certificates.issue(cluster.signer, name, now_s - 7200, life_s=3600),
            "peer": certificates.issue(cluster.signer, name, now_s),
        }[who]
        if pem:
            (tmp_path / "x.pem").write_bytes(pem)
            tls.load_cert_chain(tmp_path / "x.pem")
        try:
            connection = Connection(*await asyncio.open_connection("127.0.0.1", a.port, ssl=tls))
            await connection.send(request_head("GET", "/iris/a", {}))
            answer = await connection.receive("GET")
            connection.close()
        except (OSError, EOFError):
            assert who != "peer"
        else:
            assert (who, server_of(answer)) == ("peer", "a1")

    cluster(scenario)


def test_a_door_that_is_another_than_it_should_be_is_not_asked(cluster):
    async def scenario(cluster):
        a, b = await cluster.start("a", "b")
        await cluster.serve("iris/a", {"b": [b.world.backend("b1")]})
        # At the address of b there is now a node of ours that is not b.
        b.certificate.write_bytes(certificates.issue(cluster.signer, NodeId("c"), time.time()))
        await b.ingress.renew()
        answer = await a.world.ask("POST", "/iris/a", headers={"x-request-id": "secret"})
        assert answer.status in (502, 503)
        assert a.world.deliveries("secret") == []

    cluster(scenario)


def test_without_peering_nobody_can_have_peers(run):
    async def scenario(world):
        ingress = await world.started()
        route = msgspec.structs.replace(world.route("iris/a"), peers=(PeerShare(NodeId("b"), 1),))
        with pytest.raises(ValueError, match="api iris/a: b is no peer that is known"):
            await ingress.apply([route])
        with pytest.raises(ValueError, match="nobody has said how peers are reached"):
            await ingress.apply([], [IngressPeer(NodeId("b"), "127.0.0.1", 1)])

    run(scenario)
