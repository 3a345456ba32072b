"""The admin socket's client against a stand-in that answers as HAProxy was seen to answer."""

from __future__ import annotations

import asyncio
import os

import pytest

from cortex.ingress.configuration import Refusal, Tier
from cortex.ingress.convergence import ServerAddress, ServerState
from cortex.ingress.errors import AdminUnreachable, CommandsRefused
from cortex.ingress.runtime import AdminSocket, BackendRow, FrontendRow, parse_csv

COLUMNS = (
    "# pxname,svname,qcur,scur,slim,stot,status,wretr,wredis,hrsp_1xx,hrsp_2xx,hrsp_3xx,hrsp_4xx,hrsp_5xx,req_tot,"
)


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a short, relative path, whatever tmp_path is
    return type(tmp_path)("admin.sock")


def talk(path, answers, use, *, pieces=None):
    """Run `use(admin)` against a server that gives these answers to these commands, by list one after another."""
    heard = []
    serving = set()
    answers = {command: list(given) if isinstance(given, list) else given for command, given in answers.items()}

    async def serve(reader, writer):
        serving.add(asyncio.current_task())
        try:
            while line := await reader.readline():
                command = line.decode().rstrip("\n")
                answer = answers.get(command, "")
                answer = answer.pop(0) if isinstance(answer, list) else answer
                if command not in ("prompt", "set severity-output number"):
                    heard.append(command)
                if answer is None:
                    return
                data = (answer + "\n> ").encode()
                step = pieces or len(data)
                for start in range(0, len(data), step):
                    writer.write(data[start : start + step])
                    await writer.drain()
        finally:
            writer.close()

    async def whole():
        server = await asyncio.start_unix_server(serve, path)
        async with server:
            admin = AdminSocket(path, timeout_s=60.0)
            try:
                return await use(admin)
            finally:
                admin.close()
                await asyncio.gather(*serving)

    return asyncio.run(whole()), heard


def test_commands_are_answered_in_order_over_one_connection(path):
    answers = {"one": "first\n", "two": "", "three": "a\nb\n"}
    found, heard = talk(path, answers, lambda admin: admin.run(["one", "two", "three"]))
    assert found == ["first", "", "a\nb"]
    assert heard == ["one", "two", "three"]


def test_answers_may_come_in_pieces(path):
    found, _ = talk(path, {"one": "x" * 50 + "\n"}, lambda admin: admin.run(["one", "two"]), pieces=3)
    assert found == ["x" * 50, ""]


def test_nothing_to_say_opens_no_connection(path):
    assert asyncio.run(AdminSocket(path).run([])) == []


def test_refused_commands_are_named_and_the_others_carried_out(path):
    answers = {
        "a": "[3]: No such server.\n",
        "b": "[6]: New server registered.\n",
        "c": "[6]: Unknown command: 'c', but maybe\n  help\n",
    }
    with pytest.raises(CommandsRefused) as refused:
        talk(path, answers, lambda admin: admin.run(["a", "b", "c", "d"]))
    assert refused.value.refused == (("a", "No such server."), ("c", "Unknown command: 'c', but maybe"))


def test_a_missing_socket_is_named(path):
    with pytest.raises(AdminUnreachable, match=r"admin\.sock: No such file"):
        asyncio.run(AdminSocket(path).run(["one"]))


def test_a_connection_that_breaks_off_is_an_error(path):
    with pytest.raises(AdminUnreachable, match="middle of an answer"):
        talk(path, {"two": None}, lambda admin: admin.run(["one", "two"]))


def test_silence_is_an_error_after_the_timeout(path):
    async def whole():
        gone = asyncio.Event()

        async def serve(reader, writer):
            await reader.read()
            writer.close()
            gone.set()

        async with await asyncio.start_unix_server(serve, path):
            with pytest.raises(AdminUnreachable, match=r"no answer within 0\.05 s"):
                await AdminSocket(path, timeout_s=0.05).run(["one"])
            await gone.wait()

    asyncio.run(whole())


def test_info_tells_who_answers(path):
    label = "cortex-ingress layout=1 tier=bulk generation=4 pool=512 digest=abc"
    answer = f"Name: HAProxy\nVersion: 2.8.25\nPid: {os.getpid()}\ndescription: {label}\n"
    info, _ = talk(path, {"show info": answer}, lambda admin: admin.info())
    assert (info.pid, info.version, info.label.tier, info.label.digest) == (os.getpid(), "2.8.25", Tier.BULK, "abc")


def test_a_process_that_speaks_for_another_is_not_believed(path):
    with pytest.raises(AdminUnreachable, match="process 1 answers for listener"):
        talk(path, {"show info": "Pid: 1\n"}, lambda admin: admin.info())


def test_statistics_are_typed_rows(path):
    answers = {
        "show stat -1 4 -1": f"{COLUMNS}\npool-0001,a.00,1,2,8,30,no check,0,0,,,,,,,\n"
        "pool-0002,b.00,0,0,,4,MAINT,0,0,,,,,,,\nbulk,bulk,0,0,,4,no check,0,0,,,,,,,\n",
        "show stat pool-0003 2 -1": f"{COLUMNS}\npool-0003,BACKEND,3,5,,90,UP,2,1,0,80,0,6,4,90,\n",
        "show stat ingress 1 -1": f"{COLUMNS}\ningress,FRONTEND,,7,,9,STOP,,,0,0,0,0,0,12,\n",
        "show map m.map": "0x1 /d/a pool-0001|x y\n0x2 /d/b pool-0002|\n",
        "show table refusals": "# table: refusals, type: string, size:20480, used:2\n"
        "0x1: key=d/a use=0 exp=0 shard=0 gpc0=0 gpc1=2 gpc5=3\n0x2: key=d/b use=0 exp=0 shard=0 gpc0=0\n",
    }

    async def use(admin):
        return (
            await admin.holdings("m.map"),
            await admin.servers(),
            await admin.backends([3]),
            await admin.frontend(),
            await admin.refusals(),
        )

    (holdings, servers, backends, frontend, refusals), _ = talk(path, answers, use)
    a, b = ServerAddress(backend=1, key="a.00"), ServerAddress(backend=2, key="b.00")
    assert holdings.entries == {"/d/a": "pool-0001|x y", "/d/b": "pool-0002|"}
    assert holdings.servers == {
        a: ServerState(max_connections=8, in_rotation=True),
        b: ServerState(max_connections=0, in_rotation=False),
    }
    assert [row.requests for row in servers] == [3, 0]
    assert backends == [BackendRow(backend=3, requests=5, begun=90, queued=3)]
    assert frontend == FrontendRow(connections=7, listening=False)
    (row,) = refusals
    assert row.api == "d/a"
    assert {k: n for k, n in row.counts.items() if n} == {Refusal.METHOD_NOT_ALLOWED: 2, Refusal.NO_READY_REPLICA: 3}


TRAFFIC = (
    "# pxname,svname,qcur,qmax,scur,smax,slim,stot,bin,bout,dreq,status,\n"
    "pool-0002,b0.5a6dd29a,0,1,4,4,4,11,0,0,,no check,\npool-0002,b1.00000000,0,0,1,4,4,2,0,0,,MAINT,\n"
    "pool-0002,BACKEND,6,6,11,20,1,22,0,0,0,UP,\n"
)
"""As 2.8.25 was seen to answer, but for the columns behind these."""
BACKEND = "".join(line for line in TRAFFIC.splitlines(keepends=True) if not line.startswith("pool-0002,b"))
EMPTY = "# pxname,svname,qcur,qmax,scur,smax,slim,stot,\npool-0005,BACKEND,,0,0,0,1,0,\n"


SHOW_PROBES = "show table probes"
SOME_PROBES = (
    "# table: probes, type: string, size:20480, used:2\n"
    "0x1: key=pool-0002 use=2 exp=0 shard=0 conn_cnt=9 conn_cur=2\n"
    "0x2: key=pool-0077 use=0 exp=0 shard=0 conn_cnt=5 conn_cur=0\n"
)


def test_probes_are_taken_off_what_a_backend_has_had_and_its_servers_have_now(path):
    answers = {SHOW_PROBES: SOME_PROBES, "show stat pool-0002 6 -1": TRAFFIC, "show stat pool-0002 2 -1": BACKEND}

    async def use(admin):
        return await admin.traffic([2]), await admin.backends([2])

    ((traffic,), (backend,)), _ = talk(path, answers, use)
    assert (traffic.begun, traffic.given, traffic.queued, traffic.done["b0.5a6dd29a"]) == (22 - 9, 5 - 2, 6, 7)
    assert (backend.begun, backend.requests) == (22 - 9, 11), (
        "one that is there keeps its backend from being given away"
    )


@pytest.mark.parametrize(
    ("before", "after", "begun", "given"),
    [
        ((0, 0), (5, 5), 17, 0),  # all of those that servers have came in between
        ((4, 4), (9, 5), 13, 0),  # four went, five came
        ((9, 2), (10, 1), 12, 2),  # one that went was there as the rows were read, or not: it is taken off
        ((9, 2), (9, 0), 13, 3),
    ],
)
def test_whatever_probes_come_and_go_meanwhile_are_no_requests(path, before, after, begun, given):
    shown = [f"0x1: key=pool-0002 use=0 exp=0 shard=0 conn_cnt={n} conn_cur={now}\n" for n, now in (before, after)]
    answers = {SHOW_PROBES: ["" if before == (0, 0) else shown[0], shown[1]], "show stat pool-0002 6 -1": TRAFFIC}
    (row,), _ = talk(path, answers, lambda admin: admin.traffic([2]))
    assert (row.begun, row.given) == (begun, given)


def test_traffic_tells_what_came_to_a_backend_and_what_each_server_has_done(path):
    answers = {SHOW_PROBES: "", "show stat pool-0002 6 -1": TRAFFIC, "show stat pool-0005 6 -1": EMPTY}

    async def use(admin):
        assert await admin.traffic([]) == []
        return await admin.traffic([2, 5]), await admin.traffic([5])

    (rows, again), heard = talk(path, answers, use)
    done = {"b0.5a6dd29a": 7, "b1.00000000": 1}
    busy = BackendRow(backend=2, requests=11, begun=22, queued=6, done=done, given=5)
    assert rows == [busy, *again] == [busy, BackendRow(backend=5, requests=0)]
    assert heard == [*answers, SHOW_PROBES, SHOW_PROBES, "show stat pool-0005 6 -1", SHOW_PROBES]


def test_of_many_backends_all_are_asked_for_at_once_and_the_others_left_out(path):
    everything = TRAFFIC + TRAFFIC.partition("\n")[2].replace("pool-0002", "pool-0100") + "bulk,BACKEND,1,1,1,1,1,1,\n"
    rows, heard = talk(path, {"show stat -1 6 -1": everything}, lambda admin: admin.traffic(range(1, 66)))
    assert [row.backend for row in rows] == [2]
    assert heard == [SHOW_PROBES, "show stat -1 6 -1", SHOW_PROBES]


def test_a_refused_question_about_traffic_is_an_error(path):
    with pytest.raises(CommandsRefused, match="No such proxy"):
        talk(path, {"show stat pool-0001 6 -1": "[3]: No such proxy.\n"}, lambda admin: admin.traffic([1]))


WITH_PEERS = (
    "# pxname,svname,qcur,qmax,scur,smax,slim,stot,bin,bout,dreq,status,weight,\n"
    "pool-0002,b0.5a6dd29a,0,1,3,4,4,11,0,0,,no check,1,\n"
    "pool-0002,peer:1.00000000,0,0,5,9,,40,0,0,,UP,3,\n"
    "pool-0002,BACKEND,6,6,14,20,1,60,0,0,0,UP,1,\n"
    "near-0002,b0.5a6dd29a,0,1,2,4,4,7,0,0,,no check,1,\n"
    "near-0002,BACKEND,1,6,4,20,1,9,0,0,0,UP,1,\n"
)
PLACES = (
    "1\n# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_port\n"
    "6 peers 1 p1 127.0.0.1 0 5 1 1\n6 peers 2 p2 10.0.0.2 2 4 1 8881\n6 peers 3 p3 fd00::3 0 4 1 8881\n"
)
"""As 2.8.25 was seen to answer, but for columns in between and behind: in maintenance, up, and down."""


def test_what_is_at_a_peer_is_counted_there_and_what_a_peer_asked_was_begun_there(path):
    probes = f"{SOME_PROBES}0x3: key=near-0002 use=0 exp=0 shard=0 conn_cnt=4 conn_cur=1\n"
    servers = "".join(line for line in WITH_PEERS.splitlines(keepends=True) if "BACKEND" not in line)
    answers = {
        SHOW_PROBES: probes,
        "show stat pool-0002 6 -1": WITH_PEERS.partition("near")[0],
        "show stat near-0002 6 -1": WITH_PEERS.partition("\n")[0] + "\nnear" + WITH_PEERS.partition("near")[2],
        "show stat -1 4 -1": servers,
        "show servers state peers": PLACES,
        "show stat -1 1 -1": f"{COLUMNS}\nfrom-peers,FRONTEND,,3,,9,OPEN,\ningress,FRONTEND,,7,,9,OPEN,\n",
    }

    async def use(admin):
        admin.has_peers = True
        return await admin.traffic([2]), await admin.holdings("m.map"), await admin.frontend()

    ((traffic,), holdings, frontend), _ = talk(path, answers, use)
    assert traffic == BackendRow(
        backend=2,
        requests=18,
        begun=60 - 9,
        queued=7,
        done={"b0.5a6dd29a": 8, "near/b0.5a6dd29a": 5},
        given=5 - 3,
    )
    assert holdings.places == {2: "10.0.0.2:8881", 3: "[fd00::3]:8881"}
    assert holdings.servers == {
        ServerAddress(2, "b0.5a6dd29a"): ServerState(max_connections=4, in_rotation=True),
        ServerAddress(2, "peer:1.00000000"): ServerState(max_connections=0, in_rotation=True, weight=3),
        ServerAddress(2, "b0.5a6dd29a", near=True): ServerState(max_connections=4, in_rotation=True),
    }
    assert frontend == FrontendRow(connections=10, listening=True)


def test_a_server_that_was_moved_is_no_refusal(path):
    moved = "[4]: IP changed from '127.0.0.1' to '127.0.0.2' by 'stats socket command'"
    answers = {"move": moved, "stay": "[4]: Invalid addr family"}
    assert talk(path, answers, lambda admin: admin.run(["move"]))[0] == [moved]
    with pytest.raises(CommandsRefused, match="Invalid addr family"):
        talk(path, answers, lambda admin: admin.run(["stay"]))


ASK = "show table refusals"
NONE_REFUSED = "# table: refusals, type: string, size:20480, used:0\n"
ONE_REFUSED = f"{NONE_REFUSED}0x1: key=d/a use=0 exp=0 shard=0 gpc0=1\n"


def test_what_is_refused_is_asked_for_over_a_connection_that_stays(path, monkeypatch):
    connections = []
    connect = asyncio.open_unix_connection

    async def noted(*args, **options):
        connections.append(args)
        return await connect(*args, **options)

    monkeypatch.setattr(asyncio, "open_unix_connection", noted)

    async def use(admin):
        return [await admin.refusals() for _ in range(3)], await admin.run(["one"]), await admin.refusals()

    (found, answer, again), heard = talk(path, {ASK: [NONE_REFUSED, ONE_REFUSED, "", ONE_REFUSED], "one": "1\n"}, use)
    assert [[row.api for row in rows] for rows in (*found, again)] == [[], ["d/a"], [], ["d/a"]]
    assert answer == ["1"]
    assert heard == [ASK, ASK, ASK, "one", ASK]
    assert len(connections) == 2  # whatever else is said is said over one of its own


def test_a_connection_that_stayed_and_has_ended_is_made_again(path):
    async def use(admin):
        return [await admin.refusals() for _ in range(2)]

    found, heard = talk(path, {ASK: [NONE_REFUSED, None, ONE_REFUSED]}, use)
    assert [[row.api for row in rows] for rows in found] == [[], ["d/a"]]
    assert heard == [ASK, ASK, ASK]


def test_whoever_breaks_off_twice_is_unreachable_and_asked_anew_the_next_time(path):
    async def use(admin):
        await admin.refusals()
        with pytest.raises(AdminUnreachable, match="middle of an answer"):
            await admin.refusals()
        return await admin.refusals()

    (row,), _ = talk(path, {ASK: [NONE_REFUSED, None, None, ONE_REFUSED]}, use)
    assert row.api == "d/a"


def test_an_answer_that_nobody_waits_for_any_more_is_not_taken_for_the_next(path):
    async def whole():
        asked, go = asyncio.Event(), asyncio.Event()
        serving = []

        async def serve(reader, writer):
            serving.append(asyncio.current_task())
            while line := await reader.readline():
                if line.decode().rstrip("\n") != ASK:
                    writer.write(b"\n> ")
                elif asked.is_set():
                    writer.write(f"{NONE_REFUSED}\n> ".encode())
                else:
                    asked.set()
                    await go.wait()
                    writer.write(f"{ONE_REFUSED}\n> ".encode())
            writer.close()

        async with await asyncio.start_unix_server(serve, path):
            admin = AdminSocket(path, timeout_s=60.0)
            asking = asyncio.ensure_future(admin.refusals())
            await asked.wait()
            asking.cancel()
            await asyncio.wait([asking])
            go.set()
            assert await admin.refusals() == []
            admin.close()
            await asyncio.gather(*serving)

    asyncio.run(whole())


def test_a_refused_question_about_refusals_is_an_error(path):
    with pytest.raises(CommandsRefused, match="No such table"):
        talk(path, {ASK: "[3]: No such table\n"}, lambda admin: admin.refusals())


def test_of_servers_to_delete_those_that_are_gone_are_told(path):
    a, b, c = (ServerAddress(backend=1, key=key) for key in "abc")
    answers = {
        f"del server {a}": "[6]: Server deleted.\n",
        f"del server {b}": "[3]: Server still has connections attached to it, cannot remove it.\n",
        f"del server {c}": "[3]: No such server.\n",
    }
    gone, _ = talk(path, answers, lambda admin: admin.delete([a, b, c]))
    assert gone == [a, c]


def test_csv_without_rows_is_empty():
    assert parse_csv(COLUMNS) == []
    assert parse_csv("") == []
