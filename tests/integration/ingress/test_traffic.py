"""What a real HAProxy says of what came to it, added up over all its processes."""

from __future__ import annotations

import asyncio

from cortex.ingress.runtime import AdminSocket
from cortex.testing.clock import FakeClock


def test_requests_are_counted_exactly_over_reloads_refused_and_large_ones_too(run):
    async def scenario(world):
        routes = [world.route("d/a", world.backend()), world.route("d/b", world.backend()), world.route("d/none")]
        ingress = await world.started(*routes, pool_size=4)
        begun = dict.fromkeys(("d/a", "d/b", "d/none"), 0)
        counted = {}

        async def ask(api, times, body=b"[1]"):
            for _ in range(times):
                await world.ask("POST", f"/{api}", body)
            begun[api] += times

        async def check():
            found = await world.read(ingress, *begun)
            assert dict(zip(begun, found, strict=True)) == {api: (number, 0) for api, number in begun.items()}
            counted.update(begun)

        await check()
        await ask("d/a", 5)
        await ask("d/b", 3, b"1" * 100_000)
        await ask("d/none", 2)
        await check()
        old = await world.connect()
        assert (await old.ask("POST", "/d/a")).status == 200
        begun["d/a"] += 1
        # Not read before the reload: the worker that is replaced is asked until its last client has gone.
        await ingress.apply([*routes, *(world.route(f"d/more-{number}") for number in range(8))])
        assert ingress.status().reloads == 2
        assert (await old.ask("POST", "/d/b")).status == 200
        begun["d/b"] += 1
        await ask("d/a", 4, b"1" * 20_000)
        await ask("d/none", 1)
        old.close()
        await world.until(lambda: ingress.status().workers == 2)
        await check()

    run(scenario)


def test_those_that_wait_for_a_slow_server_are_told(run):
    async def scenario(world):
        ingress = await world.started(world.route("d/a", world.backend().server(max_connections=2)))
        bodies = [b"1"] * 5 + [b"1" * 100_000] * 3
        waiting = [asyncio.create_task(world.ask("POST", "/d/a?hold", body)) for body in bodies]

        async def all_wait():
            return await world.read(ingress, "d/a") == [(8, 4)]  # each worker has two connections to the server

        await world.eventually(all_wait)
        world.let_go()
        assert {answer.status for answer in await asyncio.gather(*waiting)} == {200}
        assert await world.read(ingress, "d/a") == [(8, 0)]

    run(scenario)


def test_an_api_is_not_charged_with_what_its_backend_counted_before(run):
    async def scenario(world):
        a, b = world.backend("a"), world.backend("b")
        ingress = await world.started(world.route("d/a", a))
        for _ in range(3):
            await world.ask("POST", "/d/a")
        assert await world.read(ingress, "d/a") == [(3, 0)]
        for _ in range(4):
            await world.ask("POST", "/d/a")  # nobody looks at these before its backend is the other's
        await ingress.apply([])
        a.close()

        async def the_next_has_it():
            await ingress.apply([world.route("d/b", b)])
            backends = await world.backends_in_use()
            if backends != {"1"}:
                await ingress.apply([])
            return backends == {"1"}

        await world.eventually(the_next_has_it)
        assert await world.read(ingress, "d/a", "d/b") == [None, (0, 0)]
        await world.ask("POST", "/d/b")
        assert await world.read(ingress, "d/b") == [(1, 0)]
        await ingress.apply([world.route("d/b", b), world.route("d/a")])
        assert await world.read(ingress, "d/a") == [(3, 0)]  # those that it had when it was looked at

    run(scenario)


def test_a_killed_worker_and_a_new_agent_begin_anew_without_a_jump(run):
    async def scenario(world):
        route = world.route("d/a", world.backend())
        first = await world.started(route)
        for _ in range(3):
            await world.ask("POST", "/d/a")
        assert await world.read(first, "d/a") == [(3, 0)]
        world.kill(first.status().pid)

        async def serves():
            try:
                return (await world.ask("POST", "/d/a")).status == 200
            except (OSError, EOFError):
                return False

        await world.eventually(serves)
        assert await world.read(first, "d/a") == [(4, 0)]
        await first.detach()
        second = world.ingress(port=world.port)
        await second.start()
        assert await world.read(second, "d/a") == [(0, 0)]
        await world.ask("POST", "/d/a")
        assert await world.read(second, "d/a") == [(1, 0)]

    run(scenario)


def test_however_many_follow_haproxy_is_asked_once_and_only_for_what_is_routed(run):
    async def scenario(world):
        asked = []

        class Watched(AdminSocket):
            async def traffic(self, backends):
                asked.append(tuple(backends))
                return await super().traffic(backends)

        ingress = await world.started(world.route("d/a", world.backend()), admin=Watched, clock=FakeClock())
        assert asked == []
        found = await asyncio.gather(*(ingress.traffic() for _ in range(5)))
        assert len({reading.at_s for reading in found}) == 1
        assert asked == [(1,), (1,)]  # each worker once

    run(scenario)
