"""What a client sees: routing, ids, errors, and which requests are delivered a second time."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal

import pytest

from cortex.ingress.routes import Sleep
from cortex.ingress.runtime import parse_csv

pytestmark = pytest.mark.slow

UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def chunked(*chunks: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in (*chunks, b""))


def test_only_the_exact_path_reaches_an_api(run):
    async def scenario(world):
        a, b, c = world.backend("a"), world.backend("b"), world.backend("c")
        await world.started(world.route("iris/a", a), world.route("iris/ab", b), world.route("default/solo", c))

        async def served_by(target):
            answer = await world.ask("POST", target)
            return answer.json()["server"] if answer.status == 200 else answer.status

        assert await served_by("/iris/a") == "a"
        assert await served_by("/iris/ab") == "b"
        assert await served_by("/iris/a/") == "a"
        assert await served_by("/iris/a?debug=true") == "a"
        assert await served_by("/iris/a/?x=/iris/ab") == "a"
        assert await served_by("/solo") == "c"
        for below in ("/v2", "/v2/", "/v2/models/a/infer", "/v2/v2", "/v2?x=/iris/ab"):
            assert await served_by(f"/iris/a{below}") == "a", below
            assert await served_by(f"/solo{below}") == "c", below
        unknown = (
            "/",
            "/iris",
            "/iris/",
            "/iris/a//",
            "/iris/a/b",
            "/iris/abc",
            "/IRIS/a",
            "//iris/a",
            "/default/solo",
            "/iris/a/v2x",
            "/iris/a/v2.1/health",
            "/iris/a/v1/v2",
            "/iris/ab/c/v2",
            "/iris/v2",
            "/iris/v2/health/live",
            "/v2",
            "/v2/health/live",
            "//v2",
            "/iris/a/%76%32",
        )
        for target in unknown:
            assert await served_by(target) == 404, target

    run(scenario)


def test_names_like_the_protocols_do_not_hide_each_other(run):
    async def scenario(world):
        a, b, c, d = (world.backend(name) for name in "abcd")
        await world.started(
            world.route("default/v2", a),
            world.route("v2/x", b),
            world.route("default/iris", c),
            world.route("iris/a", d),
        )
        for target, server in (
            ("/v2", "a"),
            ("/v2/v2", "a"),
            ("/v2/v2/models/v2", "a"),
            ("/v2/x", "b"),
            ("/v2/x/v2/health/live", "b"),
            ("/iris/v2/models/iris", "c"),
            ("/iris/a/v2/models/a", "d"),
        ):
            assert (await world.ask("POST", target)).json()["server"] == server, target

    run(scenario)


def test_the_target_reaches_the_replica_as_it_was_sent(run):
    async def scenario(world):
        await world.started(world.route("iris/a", world.backend()))
        assert (await world.ask("POST", "/iris/a/?q=%2F&q=2")).json()["target"] == "/iris/a/?q=%2F&q=2"

    run(scenario)


def test_an_unknown_path_is_404_and_lists_nothing(run):
    async def scenario(world):
        await world.started(world.route("iris/a", world.backend()))
        answer = await world.ask("POST", "/nope", headers={"x-request-id": "me"})
        assert answer.status == 404
        assert answer.json() == {
            "error": "not-found",
            "message": "nothing is deployed at this path",
            "request_id": "me",
        }
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["x-request-id"] == "me"
        assert "x-cortex-version" not in answer.headers

    run(scenario)


def test_a_sane_request_id_is_kept_and_any_other_replaced(run):
    async def scenario(world):
        await world.started(world.route("iris/a", world.backend()))
        for sane in ("a", "A.b_c-9", "x" * 128):
            answer = await world.ask("POST", "/iris/a", headers={"x-request-id": sane})
            assert answer.headers["x-request-id"] == sane
            assert answer.json()["headers"]["x-request-id"] == sane
        for insane in ("", "x" * 129, "a b", "a,b", 'a"b', "ä"):
            answer = await world.ask("POST", "/iris/a", headers={"x-request-id": insane})
            assert UUID.fullmatch(answer.headers["x-request-id"])
            assert answer.json()["headers"]["x-request-id"] == answer.headers["x-request-id"]
        assert UUID.fullmatch((await world.ask("POST", "/nope")).headers["x-request-id"])

    run(scenario)


def test_limits_are_told_to_the_replica_and_cannot_be_forged(run):
    async def scenario(world):
        await world.started(world.route("iris/a", world.backend(), timeout_s=2.5, max_body_bytes=1000))
        forged = {"x-cortex-limits": "9,9", "X-Cortex-Warmup": "1", "x-other": "2"}
        headers = (await world.ask("POST", "/iris/a", headers=forged)).json()["headers"]
        assert headers["x-cortex-limits"] == "2500,1000"
        assert headers["x-other"] == "2"
        assert [name for name in headers if name.startswith("x-cortex-")] == ["x-cortex-limits"]

    run(scenario)


def test_a_replicas_version_is_kept_and_the_ingress_gives_that_of_the_route(run):
    async def scenario(world):
        await world.started(world.route("iris/a", world.backend(), version="0a1b2c"))
        assert (await world.ask("POST", "/iris/a")).headers["x-cortex-version"] == "of-replica"
        assert (await world.ask("POST", "/iris/a?status=500")).headers["x-cortex-version"] == "of-replica"
        assert (await world.ask("PUT", "/iris/a")).headers["x-cortex-version"] == "0a1b2c"

    run(scenario)


def test_other_methods_are_405(run):
    async def scenario(world):
        ingress = await world.started(world.route("iris/a", world.backend()))
        for method in ("PUT", "DELETE", "PATCH", "TRACE", "FOO"):
            answer = await world.ask(method, "/iris/a")
            assert answer.status == 405
            assert answer.headers["allow"] == "GET, HEAD, POST, OPTIONS"
            assert answer.json()["error"] == "method-not-allowed"
        assert (await world.ask("PUT", "/nope")).status == 404
        (row,) = await ingress.refusals()
        assert (row.api, row.client_error, row.server_error) == ("iris/a", 5, 0)

    run(scenario)


def test_get_head_and_options_reach_the_replica(run):
    async def scenario(world):
        await world.started(world.route("iris/a", world.backend()))
        for method in ("GET", "OPTIONS"):
            assert (await world.ask(method, "/iris/a")).json()["method"] == method
        head = await world.ask("HEAD", "/iris/a")
        assert (head.status, head.body, head.headers["x-cortex-version"]) == (200, b"", "of-replica")
        refused = await world.raw(b"HEAD /nope HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        assert refused.startswith(b"HTTP/1.1 404")
        assert refused.endswith(b"\r\n\r\n")

    run(scenario)


def test_a_body_over_the_limit_is_413_and_names_limit_and_setting(run):
    async def scenario(world):
        # One limit below what the door replays itself, one in the range of bulk, one above.
        for name, limit in (("a", 1000), ("b", 100_000), ("c", 300_000)):
            ingress = world.ingresses[0] if world.ingresses else await world.started()
            await ingress.apply([world.route(f"iris/{name}", world.backend(), max_body_bytes=limit)])
            assert (await world.ask("POST", f"/iris/{name}", b"x" * limit)).json()["length"] == limit
            answer = await world.ask("POST", f"/iris/{name}", b"x" * (limit + 1), {"x-request-id": "me"})
            assert answer.status == 413
            assert answer.json() == {
                "error": "body-too-large",
                "message": f"the body is larger than {limit} bytes",
                "request_id": "me",
                "limit": limit,
                "hint": "raise max_body in cortex.yaml",
            }
            assert answer.headers["x-cortex-version"] == "of-route"

    run(scenario)


def test_an_api_without_replicas_is_503_with_retry_after(run):
    async def scenario(world):
        ingress = await world.started(world.route("iris/a"))
        answer = await world.ask("POST", "/iris/a", headers={"x-request-id": "me"})
        assert answer.status == 503
        assert answer.json() == {"error": "no-ready-replica", "message": "no replica is ready", "request_id": "me"}
        assert answer.headers["retry-after"] == "1"
        assert answer.headers["x-cortex-version"] == "of-route"
        (row,) = await ingress.refusals()
        assert (row.client_error, row.server_error) == (0, 1)

    run(scenario)


@pytest.mark.parametrize("sleep", [Sleep.ASLEEP, Sleep.WAKING])
def test_while_an_api_wakes_a_refusal_says_so_and_when_to_come_again(run, sleep):
    async def scenario(world):
        await world.started(world.route("iris/a", sleep=sleep, retry_after_s=7))
        answer = await world.ask("POST", "/iris/a", headers={"x-request-id": "me"})
        assert (answer.status, answer.headers["retry-after"]) == (503, "7")
        assert answer.json() == {
            "error": "no-ready-replica",
            "message": "no replica is ready: this api slept and is being woken, come again after 7 s",
            "request_id": "me",
        }

    run(scenario)


def test_beyond_connections_and_queue_requests_are_refused_at_once(run, limits):
    async def scenario(world):
        server = world.backend().server(max_connections=2)
        route = world.route("iris/a", server, max_queued=3, retry_after_s=7)
        ingress = await world.started(route, limits=limits(queue_timeout_s=100.0))
        asked = [asyncio.create_task(world.ask("POST", "/iris/a?hold")) for _ in range(12)]
        await world.until(lambda: sum(one.done() for one in asked) >= 7)
        refused = [one.result() for one in asked if one.done()]
        world.let_go()
        answers = await asyncio.gather(*asked)
        assert sorted(answer.status for answer in answers) == [200] * 5 + [503] * 7
        assert {answer.json()["error"] for answer in refused} == {"overloaded"}
        assert {answer.headers["retry-after"] for answer in refused} == {"7"}
        assert len(refused) == 7  # 2 at the server, 3 in the queue
        (row,) = await ingress.refusals()
        assert row.server_error == 7

    run(scenario)


@pytest.mark.parametrize("size", [10, 100_000])
def test_how_many_may_wait_changes_while_they_wait_and_turns_nobody_away_who_does(run, limits, size):
    async def scenario(world):
        server = world.backend().server(max_connections=1)
        options = {"limits": limits(queue_timeout_s=100.0)}
        ingress = await world.started(world.route("iris/a", server, max_queued=2), **options)
        asked = [asyncio.create_task(world.ask("POST", "/iris/a?hold", b"1" * size))]
        await world.eventually(lambda: begun_is(ingress, 1))

        async def ask(number):
            asked.extend(asyncio.create_task(world.ask("POST", "/iris/a?hold", b"1" * size)) for _ in range(number))
            tier = "door" if size < 16384 else "bulk"

            async def all_are_there():
                (row,) = await world.admin(tier).backends([1])
                return row.requests + sum(one.done() for one in asked) == len(asked)

            await world.eventually(all_are_there)
            return sum(one.done() for one in asked)

        assert await ask(3) == 1
        await ingress.apply([world.route("iris/a", server, max_queued=5, retry_after_s=3)])
        assert await ask(4) == 2
        await ingress.apply([world.route("iris/a", server, max_queued=1, retry_after_s=9)])
        assert await ask(1) == 3
        assert ingress.status().reloads == 0
        assert [one.result().headers["retry-after"] for one in asked if one.done()] == ["1", "3", "9"]
        world.let_go()
        assert sorted([answer.status for answer in await asyncio.gather(*asked)]) == [200] * 6 + [503] * 3

    run(scenario)


def test_when_the_last_server_leaves_who_waits_is_told_at_once_and_who_is_there_is_answered(run, limits):
    async def scenario(world):
        server = world.backend().server(max_connections=2)
        ingress = await world.started(world.route("iris/a", server), limits=limits(queue_timeout_s=100.0))
        asked = [asyncio.create_task(world.ask("POST", "/iris/a?hold")) for _ in range(6)]
        await world.until_requests(2)

        async def all_are_there():
            (row,) = await world.admin().backends([1])
            return row.requests == 6

        await world.eventually(all_are_there)
        await ingress.apply([world.route("iris/a")])
        await world.until(lambda: sum(one.done() for one in asked) == 4)
        assert {one.result().json()["error"] for one in asked if one.done()} == {"no-ready-replica"}
        world.let_go()
        assert sorted([answer.status for answer in await asyncio.gather(*asked)]) == [200] * 2 + [503] * 4

    run(scenario)


@pytest.mark.parametrize("size", [10, 100_000, 400_000])
def test_a_client_that_left_is_given_up_wherever_its_request_is(run, size):
    async def scenario(world):
        server = world.backend().server(max_connections=1)
        ingress = await world.started(world.route("iris/a", server))
        clients = {}
        for name in ("served", "waits"):
            clients[name] = await world.connect()
            await clients[name].begin("POST", "/iris/a?hold", b"1" * size, {"x-request-id": name})
            await world.eventually(lambda: begun_is(ingress, len(clients)))

        async def there_are(number):
            rows = [row for tier in ("door", "bulk") for row in await world.admin(tier).backends()]
            return sum(row.requests for row in rows) == number

        clients["waits"].abort()
        await world.eventually(lambda: there_are(1))
        clients["served"].abort()
        await world.eventually(lambda: there_are(0))
        assert await world.admin().requests() == 0
        assert world.deliveries("waits") == []
        counted = sum(row.client_error + row.server_error for row in await ingress.refusals())
        assert counted == (0 if size < 262_144 else 2)  # it does not know the end of a body that it need not keep

    run(scenario)


async def begun_is(ingress, number):
    return [row.begun for row in (await ingress.traffic()).apis] == [number]


def test_a_client_that_closes_its_end_is_told_so_or_is_given_up(run):
    """Like a client that has left, to HAProxy; see docs/limits.md."""

    async def scenario(world):
        server = world.backend().server(max_connections=1)
        ingress = await world.started(world.route("iris/a", server))
        half = await world.connect()
        await half.begin("POST", "/iris/a?hold", b"[1]")
        await world.until_requests(1)
        await half.close_own_end()
        answer = await half.receive()
        assert (answer.status, answer.json()["error"]) == (400, "bad-request")
        assert "the client closed its end before the answer" in answer.json()["message"]
        assert [row.counts for row in await ingress.refusals()] == []

        served = asyncio.create_task(world.ask("POST", "/iris/a?hold"))
        await world.until_requests(1)
        waits = await world.connect()
        await waits.begin("POST", "/iris/a?hold", b"[1]")
        await world.eventually(lambda: begun_is(ingress, 3))
        await waits.close_own_end()
        with pytest.raises(asyncio.IncompleteReadError):  # closed without an answer
            await waits.receive()
        world.let_go()
        assert (await served).status == 200

    run(scenario)


def test_the_wait_in_the_queue_is_bounded(run, limits):
    async def scenario(world):
        server = world.backend().server(max_connections=1)
        await world.started(world.route("iris/a", server), limits=limits(queue_timeout_s=0.3))
        first = asyncio.create_task(world.ask("POST", "/iris/a?hold"))
        await world.until_requests(1)
        second = await world.ask("POST", "/iris/a")
        assert (second.status, second.json()["error"]) == (503, "overloaded")
        assert not first.done()
        world.let_go()
        assert (await first).status == 200

    run(scenario)


def test_no_answer_within_the_timeout_is_504(run):
    async def scenario(world):
        a, b = world.backend(), world.backend()
        ingress = await world.started(world.route("iris/a", a, timeout_s=0.3), world.route("iris/b", b))
        answer = await world.ask("POST", "/iris/a?silent", headers={"x-request-id": "me"})
        assert (answer.status, answer.json()["error"]) == (504, "timeout")
        assert answer.headers["x-cortex-version"] == "of-route"
        # A timeout is never delivered again. The replica may read the request later than that.
        (counters,) = await world.admin().run(["show stat -1 2 -1"])
        assert [row["wretr"] for row in parse_csv(counters) if int(row["stot"])] == ["0"]
        await world.until(lambda: world.deliveries("me") == [a.name])
        assert (await world.ask("POST", "/iris/b?sleep=1")).status == 200
        (row,) = await ingress.refusals()
        assert row.server_error == 1

    run(scenario)


def test_a_body_that_does_not_arrive_is_408(run, limits):
    async def scenario(world):
        await world.started(world.route("iris/a", world.backend()), limits=limits(body_timeout_s=0.3))
        for length in (10, 100_000):
            head = f"POST /iris/a HTTP/1.1\r\nhost: x\r\nx-request-id: me\r\ncontent-length: {length}\r\n\r\n"
            connection = await world.connect()
            await connection.send(head.encode() + b"x")
            answer = await connection.receive()
            connection.close()
            assert (answer.status, answer.json()["error"]) == (408, "request-timeout")
            assert answer.headers["x-cortex-version"] == "of-route"
        assert world.deliveries("me") == []

    run(scenario)


def test_headers_that_do_not_arrive_end_the_connection(run, limits):
    async def scenario(world):
        await world.started(world.route("iris/a", world.backend()), limits=limits(header_timeout_s=0.3))
        # HAProxy is silent to a connection on which nothing ever came: it shall find the first bytes at once.
        pid = await world.pid_of("door")
        world.halt(pid)
        connection = await world.connect()
        await connection.send(b"POST /iris/a HTTP/1.1\r\nhost")
        os.kill(pid, signal.SIGCONT)
        assert (await connection.receive()).status == 408
        with pytest.raises(EOFError):
            await connection.receive()

    run(scenario)


@pytest.mark.parametrize(
    "request_",
    [
        b"NONSENSE\r\n\r\n",
        b"GET /iris/a HTTP/1.1\r\nhost: x\r\nbad header\r\n\r\n",
        b"POST /iris/a HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
        b"GET /iris/a HTTP/1.1\r\nhost: x\r\n" + b"a: b\r\n" * 300 + b"\r\n",
        b"GET /iris/a HTTP/1.1\r\nhost: x\r\na: " + b"b" * 40_000 + b"\r\n\r\n",
    ],
)
def test_what_is_not_http_is_400_and_reaches_nobody(run, request_):
    async def scenario(world):
        await world.started(world.route("iris/a", world.backend()))
        # HAProxy gives this answer before it has a request, so it has neither our JSON nor a request id.
        assert (await world.raw(request_)).startswith(b"HTTP/1.1 400")
        assert world.journal.read_text() == ""

    run(scenario)


def test_chunked_expect_pipelined_and_http_1_0_requests_are_served(run):
    async def scenario(world):
        await world.started(world.route("iris/a", world.backend()))
        head = "POST /iris/a HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
        for body in (b"abc", b"x" * 20_000):
            received = await world.raw(f"{head}transfer-encoding: chunked\r\n\r\n".encode(), chunked(body, b"12"))
            assert json.loads(received.rpartition(b"\r\n\r\n")[2])["length"] == len(body) + 2
        for length in (3, 20_000, 500_000):
            expecting = f"{head}expect: 100-continue\r\ncontent-length: {length}\r\n\r\n"
            received = await world.raw(expecting.encode(), b"x" * length)
            assert received.startswith(b"HTTP/1.1 100 ")
            assert json.loads(received.rpartition(b"\r\n\r\n")[2])["length"] == length
        two = b"GET /iris/a HTTP/1.1\r\nhost: x\r\n\r\nGET /iris/a HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
        assert (await world.raw(two)).count(b"HTTP/1.1 200") == 2
        old = await world.raw(b"POST /iris/a HTTP/1.0\r\ncontent-length: 2\r\n\r\nab")
        assert json.loads(old.rpartition(b"\r\n\r\n")[2])["length"] == 2

    run(scenario)


def test_bodies_of_every_size_arrive_whole(run):
    async def scenario(world):
        await world.started(world.route("iris/a", world.backend()))
        for size in (0, 1, 16_384, 16_385, 32_768, 100_000, 262_144, 262_145, 3_000_000):
            for split in (False, True):
                answer = await world.ask("POST", "/iris/a", b"x" * size, split=split)
                assert (answer.status, answer.json()["length"]) == (200, size)

    run(scenario)


# ---- delivered once, or twice -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "split"), [(3, False), (3, True), (16_384, True), (100_000, True), (262_144, False), (262_144, True)]
)
def test_a_request_that_kills_its_replica_is_delivered_to_one_other_only(run, size, split):
    async def scenario(world):
        a, b, c = world.backend(), world.backend(), world.backend()
        ingress = await world.started(world.route("iris/a", a, b, c))
        answer = await world.ask("POST", "/iris/a?die", b"x" * size, {"x-request-id": "poison"}, split=split)
        assert (answer.status, answer.json()["error"]) == (502, "replica-lost")
        assert answer.headers["x-cortex-version"] == "of-route"
        assert answer.headers["x-request-id"] == "poison"
        delivered = world.deliveries("poison")
        assert len(delivered) == 2 == len(set(delivered))
        await world.until(lambda: [backend.running for backend in (a, b, c)].count(True) == 1)
        (row,) = await ingress.refusals()
        assert row.server_error == 1

    run(scenario)


def test_a_chunked_request_is_delivered_again_too(run):
    async def scenario(world):
        await world.started(world.route("iris/a", world.backend(), world.backend()))
        head = b"POST /iris/a?die HTTP/1.1\r\nhost: x\r\nx-request-id: p\r\ntransfer-encoding: chunked\r\n\r\n"
        connection = await world.connect()
        await connection.send(head, chunked(b"x" * 50_000, b"y"))
        assert (await connection.receive()).status == 502
        connection.close()
        assert len(world.deliveries("p")) == 2

    run(scenario)


@pytest.mark.parametrize("size", [3, 100_000])
def test_without_retry_a_request_is_delivered_once(run, size):
    async def scenario(world):
        await world.started(world.route("iris/a", world.backend(), world.backend(), retry=False))
        answer = await world.ask("POST", "/iris/a?die", b"x" * size, {"x-request-id": "poison"})
        assert (answer.status, answer.json()["error"]) == (502, "replica-lost")
        assert len(world.deliveries("poison")) == 1

    run(scenario)


def test_a_body_over_the_replay_limit_is_delivered_once(run):
    async def scenario(world):
        await world.started(world.route("iris/a", world.backend(), world.backend()))
        answer = await world.ask("POST", "/iris/a?die", b"x" * 500_000, {"x-request-id": "big"})
        assert (answer.status, answer.json()["error"]) == (502, "replica-lost")
        assert len(world.deliveries("big")) == 1

    run(scenario)


@pytest.mark.parametrize(("size", "retry"), [(3, False), (100_000, False), (500_000, True)])
def test_what_is_delivered_once_is_told_of_a_lost_replica_also_on_a_connection_that_was_used_before(run, size, retry):
    async def scenario(world):
        ingress = await world.started(world.route("iris/a", world.backend(), world.backend(), retry=retry))
        connection = await world.connect()
        for target, status in (("", 200), ("?die", 502)):
            head = (
                f"POST /iris/a{target} HTTP/1.1\r\nhost: x\r\nx-request-id: r{status}\r\ncontent-length: {size}\r\n\r\n"
            )
            await connection.send(head.encode(), b"x" * size)
            assert (await connection.receive()).status == status
            assert len(world.deliveries(f"r{status}")) == 1
        connection.close()
        (row,) = await ingress.refusals()
        assert row.server_error == 1

    run(scenario)


def test_an_answer_is_never_asked_for_twice_whatever_its_status(run):
    async def scenario(world):
        await world.started(world.route("iris/a", world.backend(), world.backend()))
        for status in (400, 404, 408, 425, 429, 500, 502, 503, 504):
            name = f"s{status}"
            answer = await world.ask("POST", f"/iris/a?status={status}", b"[1]", {"x-request-id": name})
            assert (answer.status, answer.json()["length"]) == (status, 3)
            assert len(world.deliveries(name)) == 1

    run(scenario)


def test_a_server_whose_socket_is_gone_costs_no_request(run):
    async def scenario(world):
        a, b = world.backend(), world.backend()
        await world.started(world.route("iris/a", a, b))
        a.close()
        answers = [await world.ask("POST", "/iris/a", b"[1]") for _ in range(6)]
        assert [answer.status for answer in answers] == [200] * 6

    run(scenario)


def test_what_replicas_answer_is_not_counted_as_the_ingress_own(run):
    async def scenario(world):
        backend = world.backend()
        ingress = await world.started(world.route("iris/a", backend))
        for status in (200, 404, 500, 503):
            await world.ask("POST", f"/iris/a?status={status}")
        await world.ask("PUT", "/iris/a")
        (row,) = await ingress.refusals()
        assert (row.client_error, row.server_error) == (1, 0)

    run(scenario)
