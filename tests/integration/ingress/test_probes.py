"""Probes at a real HAProxy: what makes a request one, and that it is in no count, wakes nobody and waits nowhere."""

from __future__ import annotations

import asyncio

import pytest

from cortex.ingress.counters import IngressTraffic
from cortex.ingress.routes import Sleep

pytestmark = pytest.mark.slow

TOKEN = "the-token_1"
PROBE = {"X-Cortex-Probe": TOKEN}


async def probe(world, target, body=b"[1]"):
    return await world.ask("POST", target, body, headers=PROBE)


def test_a_probe_is_told_as_such_to_the_replica_and_nobody_else_can_pass_for_one(run):
    async def scenario(world):
        await world.started(world.route("d/a", world.backend()), probe_token=TOKEN)
        for body in (b"[1]", b"1" * 20_000, b"1" * 400_000):
            answer = await probe(world, "/d/a", body)
            assert answer.json()["headers"]["x-cortex-probe"] == answer.headers["x-cortex-probe"] == "1"
            for forged in ("1", "true", TOKEN[:-1], TOKEN + "2", TOKEN.upper(), "", f'"{TOKEN}"'):
                answer = await world.ask("POST", "/d/a", body, headers={"x-cortex-probe": forged})
                assert "x-cortex-probe" not in {*answer.json()["headers"], *answer.headers}, forged
                assert TOKEN not in str(answer.body)

    run(scenario)


def test_without_a_token_nothing_is_a_probe(run):
    async def scenario(world):
        ingress = await world.started(world.route("d/a", world.backend()))
        assert (
            "x-cortex-probe" not in (await world.ask("POST", "/d/a", headers={"x-cortex-probe": ""})).json()["headers"]
        )
        assert await world.read(ingress, "d/a") == [(1, 0)]

    run(scenario)


def test_probes_are_in_no_count_whatever_becomes_of_them(run):
    async def scenario(world):
        a = world.backend("a")
        ingress = await world.started(world.route("d/a", a), world.route("d/none"), probe_token=TOKEN)
        for number in range(12):
            await probe(world, "/d/a", b"1" * 20_000 if number % 2 else b"[1]")
        await world.ask("POST", "/d/a")
        assert (await probe(world, "/d/none")).status == 503
        await world.ask("POST", "/d/none")
        assert (await world.ask("PUT", "/d/a", headers=PROBE)).status == 405
        assert await world.read(ingress, "d/a", "d/none") == [(1, 0), (1, 0)]
        refused = {row.api: row for row in await ingress.refusals()}
        assert (refused["d/none"].server_error, "d/a" in refused) == (1, False)

        # Under way: neither given nor begun, and the sums do not fall when it has ended.
        waiting = asyncio.create_task(world.ask("POST", "/d/a?hold", headers=PROBE))
        await world.until(lambda: world.journal.read_text().count("\n") >= 14)
        other = asyncio.create_task(world.ask("POST", "/d/a?hold"))

        async def other_is_there():
            return await world.read(ingress, "d/a") == [(2, 0)] and (await ingress.traffic()).apis[0].given == 1

        await world.eventually(other_is_there)
        world.let_go()
        assert {(await waiting).status, (await other).status} == {200}
        assert await world.read(ingress, "d/a") == [(2, 0)]

    run(scenario)


def test_a_probe_does_not_wait_where_others_wait(run):
    async def scenario(world):
        ingress = await world.started(world.route("d/a", world.backend().server(max_connections=1)), probe_token=TOKEN)
        first = asyncio.create_task(world.ask("POST", "/d/a?hold"))
        second = asyncio.create_task(world.ask("POST", "/d/a?hold"))

        async def one_waits():
            return await world.read(ingress, "d/a") == [(2, 1)]

        await world.eventually(one_waits)
        answer = await probe(world, "/d/a")
        assert (answer.status, answer.json()["error"], answer.headers["retry-after"]) == (503, "overloaded", "1")
        assert await world.read(ingress, "d/a") == [(2, 1)]
        world.let_go()
        assert {(await first).status, (await second).status} == {200}
        assert (await probe(world, "/d/a")).status == 200

    run(scenario)


@pytest.mark.parametrize("sleep", [Sleep.ASLEEP, Sleep.WAKING])
def test_a_probe_wakes_nobody(run, sleep):
    async def scenario(world):
        ingress = await world.started(world.route("d/a", world.backend(), sleep=sleep), probe_token=TOKEN)
        for body in (b"[1]", b"1" * 20_000):
            answer = await probe(world, "/d/a", body)
            assert (answer.status, answer.json()["error"]) == (503, "asleep")
        assert world.journal.read_text() == ""
        assert await world.read(ingress, "d/a") == [(0, 0)]

    run(scenario)


def test_what_a_backend_has_had_of_probes_is_not_taken_off_the_next_api_that_has_it(run):
    async def scenario(world):
        ingress = await world.started(world.route("d/a", world.backend("a")), pool_size=1, probe_token=TOKEN)
        for _ in range(5):
            await probe(world, "/d/a")
        await ingress.apply([])
        b = world.route("d/b", world.backend("b"))

        async def the_next_has_it():
            await ingress.apply([b])
            backends = await world.backends_in_use()
            if backends != {"1"}:
                await ingress.apply([])
            return backends == {"1"}

        await world.eventually(the_next_has_it)
        assert await world.read(ingress, "d/b") == [(0, 0)]
        await world.ask("POST", "/d/b")
        await probe(world, "/d/b")
        await world.ask("POST", "/d/b")
        assert await world.read(ingress, "d/b") == [(2, 0)]

    run(scenario)


def test_probes_that_come_and_go_while_counts_are_read_are_never_taken_for_requests(run):
    async def scenario(world):
        await world.started(world.route("d/a", world.backend()), probe_token=TOKEN)
        (backend,) = map(int, await world.backends_in_use())
        admin, counted = world.admin(), IngressTraffic()
        asked, seen = 0, set()

        async def ask_on():
            nonlocal asked
            connection = await world.connect()
            while True:
                assert (await connection.ask("POST", "/d/a", b"[1]", headers=PROBE)).status == 200
                asked += 1

        callers = [asyncio.create_task(ask_on()) for _ in range(4)]
        while asked < 2_000:
            counted.note("haproxy", await admin.traffic([backend]), {backend: "d/a"})
            (row,) = counted.rows({backend: "d/a"})
            seen.add((row.begun, row.queued, row.given))
        admin.close()
        for caller in callers:
            caller.cancel()
        await asyncio.gather(*callers, return_exceptions=True)
        assert seen == {(0, 0, 0)}

    run(scenario)
