from __future__ import annotations

import re
from pathlib import Path

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from cortex.ids import ApiKey, NodeId
from cortex.ingress.configuration import Tier, WorkerPeering, parse_entry, render_entry, server_key, server_name
from cortex.ingress.convergence import (
    Holdings,
    ServerAddress,
    ServerState,
    WantedPeers,
    escaped,
    steps_between,
    wanted_of,
)
from cortex.ingress.peers import IngressPeer, PeerServer, PeerShare
from cortex.ingress.routes import IngressRoute, IngressServer

NOTHING = Holdings(entries={}, servers={})


def server(name, socket=None, max_connections=8):
    return IngressServer(name, socket or f"/run/{name}.sock", max_connections)


def route(api, *servers, **options):
    values = {"timeout_s": 1.0, "max_body_bytes": 100, "retry": True, "version": "v1", **options}
    return IngressRoute(ApiKey(api), "/" + api, servers, **values)


def wanted(*routes, backends=None, pool_size=8):
    known = backends or {r.api: n for n, r in enumerate(routes, 1)}
    return wanted_of(routes, known, pool_size)


def test_a_new_api_gets_its_servers_before_its_route():
    a = server("a")
    steps = steps_between(NOTHING, wanted(route("d/x", a)), "m.map")
    key = server_key(a)
    assert steps.add == (
        f"add server pool-0001/{key} unix@/run/a.sock maxconn 8",
        f"set server pool-0001/{key} state ready",
    )
    assert steps.point == ("add map m.map /d/x pool-0001|1000,100|1500|100|on|2048|d/x|v1|1|awake",)
    assert (steps.unpoint, steps.retire) == ((), ())


def test_what_is_as_wanted_needs_no_command():
    want = wanted(route("d/x", server("a")), route("d/y"))
    steps = steps_between(want.holdings(), want, "m.map")
    assert (steps.add, steps.point, steps.unpoint, steps.retire) == ((), (), (), ())
    assert steps.outcome == want.holdings()


def test_a_replaced_server_leaves_rotation_after_its_successor_came():
    before = wanted(route("d/x", server("a"))).holdings()
    steps = steps_between(before, wanted(route("d/x", server("b"))), "m.map")
    assert [command.split()[0] for command in steps.add] == ["add", "set"]
    assert steps.point == ()
    assert steps.retire == (f"set server pool-0001/{server_key(server('a'))} state maint",)
    assert steps.outcome.retired == (ServerAddress(backend=1, key=server_key(server("a"))),)


def test_a_removed_api_loses_its_route_before_its_servers():
    before = wanted(route("d/x", server("a"))).holdings()
    steps = steps_between(before, wanted(), "m.map")
    assert steps.unpoint == ("del map m.map /d/x",)
    assert len(steps.retire) == 1


def test_a_server_that_comes_back_is_not_added_again():
    address = ServerAddress(backend=1, key=server_key(server("a")))
    before = Holdings(entries={}, servers={address: ServerState(max_connections=8, in_rotation=False)})
    steps = steps_between(before, wanted(route("d/x", server("a"))), "m.map")
    assert steps.add == (f"set server {address} state ready",)


def test_a_changed_limit_is_set_in_place():
    before = wanted(route("d/x", server("a"))).holdings()
    steps = steps_between(before, wanted(route("d/x", server("a", max_connections=9))), "m.map")
    assert steps.add == (f"set maxconn server pool-0001/{server_key(server('a'))} 9",)
    assert steps.retire == ()


def test_a_server_with_another_socket_is_another_server():
    assert server_key(server("a")) != server_key(server("a", "/elsewhere"))
    assert server_name(server_key(server("a"))) == "a"


def test_a_changed_route_is_one_command():
    before = wanted(route("d/x")).holdings()
    steps = steps_between(before, wanted(route("d/x", timeout_s=2.0, version="v2", retry=False)), "m.map")
    assert steps.point == ("set map m.map /d/x pool-0001|2000,100|2500|100|off|2048|d/x|v2|1|awake",)


def test_an_api_whose_slot_the_worker_lacks_is_pointed_nowhere_and_gets_no_servers():
    routes = (route("d/x", server("a")), route("d/y", server("b")))
    want = wanted_of(routes, {routes[0].api: 1, routes[1].api: 9}, pool_size=8)
    assert want.entries["/d/y"].startswith("pool-0000|")
    assert [address.backend for address in want.servers] == [1]


def test_a_map_entry_is_read_back():
    entry = parse_entry(render_entry(route("d/x"), 7))
    assert (entry.backend, entry.api) == (7, "d/x")
    assert parse_entry("pool-0001|old layout") is None
    assert parse_entry("pool-0001|1000,100|1500|100|on|2048|d/x|v1|1") is None, "of the layout before"
    assert parse_entry("elsewhere|1,1|1|1|on|1|d/x|v") is None


def test_a_timeout_beyond_haproxys_timers_is_capped():
    assert render_entry(route("d/x", timeout_s=1e9), 1).split("|")[1] == "2000000000,100"


def test_words_of_commands_are_escaped():
    assert escaped("/a b;c\\d") == "/a\\ b\\;c\\\\d"


# ---- peers ---------------------------------------------------------------------------------------------------------

SOCKETS = (Path("/run/h-hold.sock"), Path("/run/h-near.sock"))
PEERING = WorkerPeering(
    bind="ipv4@10.0.0.1:8881",
    certificate=Path("/h o/node.pem"),
    authority=Path("/h o/ca.pem"),
    fingerprint="f",
    places=4,
    hold_sockets=SOCKETS,
    nobody_socket=Path("/run/h-nobody.sock"),
)
B, C = (IngressPeer(NodeId(f"node-{name}"), f"10.0.0.{n}", 8881) for n, name in ((2, "b"), (3, "c")))


def with_peers(*routes, peers=(B, C), places=4):
    known = WantedPeers(peering=PEERING, places={NodeId("node-b"): 1, NodeId("node-c"): 2}, peers=peers)
    return wanted_of(routes, {r.api: n for n, r in enumerate(routes, 1)}, 8, known, places)


def shared(api, *servers, **ready):
    return route(api, *servers, peers=tuple(PeerShare(NodeId(f"node-{name}"), n) for name, n in ready.items()))


def test_a_peer_is_watched_before_it_is_asked_and_replicas_are_there_for_peers_too():
    a, away = server("a"), PeerServer(peer=B, place=1, weight=2)
    steps = steps_between(NOTHING, with_peers(shared("d/x", a, b=2), peers=(B,)), "m.map", PEERING)
    added = (
        f"add server pool-0001/{away.key} 10.0.0.2:8881 ssl crt /h\\ o/node.pem ca-file /h\\ o/ca.pem verify required "
        "verifyhost node-b sni str(node-b) backup weight 2 track peers/p1 on-marked-down shutdown-sessions"
    )
    assert steps.add == (
        "set server peers/p1 addr 10.0.0.2 port 8881",
        "set server peers/p1 state ready",
        f"add server pool-0001/{server_key(a)} unix@/run/a.sock maxconn 8",
        f"set server pool-0001/{server_key(a)} state ready",
        f"add server near-0001/{server_key(a)} unix@/run/a.sock maxconn 8",
        f"set server near-0001/{server_key(a)} state ready",
        added,
        f"set server pool-0001/{away.key} state ready",
    )
    (point,) = steps.point
    assert point.endswith("|awake|80|" + ":".join([away.ticket] * 16) + "|off")


def test_to_who_holds_requests_peers_are_equals_of_replicas():
    steps = steps_between(NOTHING, with_peers(shared("d/x", server("a"), b=2)), "m.map", PEERING, Tier.HOLD)
    (added,) = (command for command in steps.add if "sni str(node-b)" in command)
    assert " sni str(node-b) weight 2 track peers/p1 " in added


def test_peers_are_equals_of_replicas_where_there_are_two_and_no_replica_here():
    def backups(*routes):
        steps = steps_between(NOTHING, with_peers(*routes), "m.map", PEERING)
        return [" backup " in command for command in steps.add if " ssl " in command]

    assert backups(shared("d/x", b=1, c=1)) == [False, False]
    assert backups(shared("d/x", b=1)) == [True]
    assert backups(shared("d/x", server("a"), b=1, c=1)) == [True, True]
    # A backup server stays one, so that the peer is another server once that changes.
    before = with_peers(shared("d/x", server("a"), b=1, c=1))
    steps = steps_between(before.holdings(), with_peers(shared("d/x", b=1, c=1)), "m.map", PEERING)
    assert [command.split()[0] for command in steps.add] == ["add", "set", "add", "set"]
    assert [command.split()[-1] for command in steps.retire] == ["maint", "maint", "drain", "drain"]


def test_replicas_that_nobody_serves_leave_clients_to_peers_and_are_there_for_peers():
    a, held = server("a"), shared("d/x", server("a"), b=1)
    held = msgspec.structs.replace(held, held=True)
    keys = [str(address) for address in with_peers(held).servers]
    assert keys == [f"near-0001/{server_key(a)}", f"pool-0001/{PeerServer(peer=B, place=1, weight=1).key}"]
    alone = msgspec.structs.replace(held, peers=())
    assert [str(address) for address in with_peers(alone).servers] == [
        f"pool-0001/{server_key(a)}",
        f"near-0001/{server_key(a)}",
    ]


def test_a_peer_with_more_replicas_gets_more_weight_in_place():
    before = with_peers(shared("d/x", b=1))
    steps = steps_between(before.holdings(), with_peers(shared("d/x", b=3)), "m.map", PEERING)
    key = PeerServer(peer=B, place=1, weight=3).key
    assert steps.add == (f"set server pool-0001/{key} weight 3",)
    assert steps.retire == ()


def test_a_peer_that_moved_is_another_server_at_the_same_place():
    moved = IngressPeer(B.name, "10.0.0.9", 8881)
    before = with_peers(shared("d/x", b=1), peers=(B,))
    steps = steps_between(before.holdings(), with_peers(shared("d/x", b=1), peers=(moved,)), "m.map", PEERING)
    old, new = (PeerServer(peer=peer, place=1, weight=1).key for peer in (B, moved))
    assert steps.add[0] == "set server peers/p1 addr 10.0.0.9 port 8881"
    assert steps.add[1].startswith(f"add server pool-0001/{new} 10.0.0.9:8881 ssl")
    assert steps.retire == (f"set server pool-0001/{old} state drain",)


def test_a_peer_that_goes_is_watched_until_it_is_not_asked_any_more():
    before = with_peers(shared("d/x", b=1))
    steps = steps_between(before.holdings(), with_peers(shared("d/x"), peers=(C,)), "m.map", PEERING)
    key = PeerServer(peer=B, place=1, weight=1).key
    assert steps.retire == (f"set server pool-0001/{key} state drain", "set server peers/p1 state maint")


def test_a_worker_that_knows_nothing_of_peers_is_told_nothing_of_them():
    routes = (shared("d/x", server("a"), b=1),)
    assert with_peers(*routes, places=0) == wanted_of(routes, {routes[0].api: 1}, 8)


def test_with_peers_what_is_as_wanted_needs_no_command():
    want = with_peers(shared("d/x", server("a"), b=1, c=2), shared("d/y", c=1))
    steps = steps_between(want.holdings(), want, "m.map", PEERING)
    assert (steps.add, steps.point, steps.unpoint, steps.retire) == ((), (), (), ())
    assert steps.outcome == want.holdings()
    texts = want.by_backend()
    assert [server_key(s).partition(".")[0] for s in texts[1]] == ["a", "peer:1", "peer:2"]


names = st.sampled_from("abcdef")
worlds = st.lists(st.tuples(names, st.sets(st.sampled_from("uvwxyz")), st.integers(1, 3)), unique_by=lambda w: w[0])


def world_of(drawn):
    routes = [
        route(f"d/{name}", *(server(f"{name}{s}", max_connections=limit) for s in sorted(servers)))
        for name, servers, limit in drawn
    ]
    return wanted_of(routes, {r.api: "abcdef".index(r.api[-1]) + 1 for r in routes}, 6)


def carried_out(holdings, commands):
    """The commands, carried out on a toy HAProxy that refuses what the real one refuses."""
    entries, servers = dict(holdings.entries), dict(holdings.servers)
    for command in commands:
        words = command.split()
        if words[1] == "map":
            _, _, _, path, *value = words
            assert (path in entries) == (words[0] != "add")
            entries.pop(path) if words[0] == "del" else entries.update({path: value[0]})
            continue
        backend, key = re.search(r"pool-(\d+)/(\S+)", command).groups()
        address = ServerAddress(backend=int(backend), key=key)
        assert (address in servers) == (words[0] != "add")
        old = servers.get(address)
        if words[0] == "add":
            servers[address] = ServerState(max_connections=int(words[-1]), in_rotation=False)
        elif words[1] == "maxconn":
            servers[address] = ServerState(max_connections=int(words[-1]), in_rotation=old.in_rotation)
        else:
            servers[address] = ServerState(max_connections=old.max_connections, in_rotation=words[-1] == "ready")
    return Holdings(entries=entries, servers=servers)


@settings(max_examples=50, deadline=None)
@given(first=worlds, second=worlds, third=worlds)
def test_any_worker_converges_and_then_needs_nothing(first, second, third):
    holdings = NOTHING
    for drawn in (first, second, third):
        want = world_of(drawn)
        steps = steps_between(holdings, want, "m.map")
        holdings = carried_out(holdings, (*steps.add, *steps.point, *steps.unpoint, *steps.retire))
        assert holdings == steps.outcome
        assert holdings.entries == want.entries
        in_rotation = {address for address, state in holdings.servers.items() if state.in_rotation}
        assert in_rotation == set(want.servers)
        again = steps_between(holdings, want, "m.map")
        assert (again.add, again.point, again.unpoint, again.retire) == ((), (), (), ())
