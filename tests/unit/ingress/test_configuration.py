from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from cortex.ids import ApiKey, NodeId
from cortex.ingress.configuration import (
    Entry,
    IngressLimits,
    Tier,
    WorkerConfiguration,
    WorkerLabel,
    WorkerPeering,
    configuration_digest,
    max_clients,
    parse_entry,
    parse_label,
    quoted,
    render_configuration,
    render_entry,
    render_map,
)
from cortex.ingress.errors import TooFewFiles
from cortex.ingress.peers import IngressPeer, PeerServer, PeerShare
from cortex.ingress.routes import IngressRoute, IngressServer, Sleep

GOLDEN = Path(__file__).parent / "golden"


def configuration(tier=Tier.DOOR, **options):
    binds = {
        Tier.DOOR: ("ipv4@127.0.0.1:8880",),
        Tier.BULK: ("unix@/run/h-bulk.sock",),
        Tier.HOLD: ("unix@/run/h-hold.sock", "unix@/run/h-near.sock"),
    }[tier]
    values = {
        "tier": tier,
        "generation": 3,
        "digest": "0123456789abcdef",
        "binds": binds,
        "admin_socket": Path(f"/run/h-{tier.value}-3.sock"),
        "map_file": f"{tier.value}-3.map",
        "bulk_socket": Path("/run/h-bulk.sock"),
        "pool_size": 2,
        "max_clients": 1000,
        "limits": IngressLimits(),
        "probe_token": "the-token",
    }
    return WorkerConfiguration(**{**values, **options})


SERVERS = {1: (IngressServer("3f2a9c", "/run/r-3f2a9c.sock", 9), IngressServer("77aa01", "/run/r-77aa01.sock", 9))}


@pytest.mark.parametrize("tier", IngressLimits().tiers())
def test_the_configuration_reads_as_written_down(tier):
    """After a wanted change: write what the failure shows into golden/<tier>.cfg, and read the difference."""
    assert render_configuration(configuration(tier), SERVERS) == (GOLDEN / f"{tier.value}.cfg").read_text()


PEERING = WorkerPeering(
    bind="ipv4@10.0.0.1:8881",
    certificate=Path("/home/of it/node.pem"),
    authority=Path("/home/of it/ca.pem"),
    fingerprint="fedcba9876543210",
    places=2,
    hold_sockets=(Path("/run/h-hold.sock"), Path("/run/h-near.sock")),
    nobody_socket=Path("/run/h-nobody.sock"),
)
PEER = IngressPeer(name=NodeId("node-b"), host="10.0.0.2", port=8881)


@pytest.mark.parametrize("tier", list(Tier))
def test_the_configuration_with_peers_reads_as_written_down(tier):
    servers = {1: (*SERVERS[1], PeerServer(peer=PEER, place=2, weight=3))}
    text = render_configuration(configuration(tier, peering=PEERING), servers, {2: PEER}, SERVERS)
    assert text == (GOLDEN / f"{tier.value}-with-peers.cfg").read_text()


def test_the_map_says_how_many_may_be_away_and_whom_to_draw():
    shares = (PeerShare(NodeId("node-b"), 2), PeerShare(NodeId("node-c"), 1))
    route = IngressRoute(ApiKey("iris/a"), "/iris/a", (), 2.5, 1000, True, "v1", peers=shares)
    peer = PeerServer(peer=PEER, place=2, weight=2)
    value = render_entry(route, 7, [peer])
    assert value.split("|")[10:] == ["120", ":".join([peer.ticket] * 16), "off"]
    assert parse_entry(value) == Entry(backend=7, api=route.api)
    assert render_entry(msgspec.structs.replace(route, holds=True), 7, []).split("|")[10:] == ["120", "", "on"]
    assert render_entry(msgspec.structs.replace(route, peers=()), 7, []).split("|")[10:] == ["0", "", "off"]
    first = msgspec.structs.replace(peer, first=True)
    assert render_entry(route, 7, [first]).split("|")[11] == "", "who is a server like any other is not drawn"
    assert len(render_entry(route, 7).split("|")) == 10, "to a worker that knows nothing of peers"


def test_a_label_says_how_many_peers_can_be_watched():
    label = WorkerLabel(layout=1, tier=Tier.BULK, generation=12, pool_size=512, digest="abc", places=16)
    assert parse_label(str(label)) == label


def test_without_large_replays_there_is_no_bulk():
    limits = IngressLimits(replay_bytes=16384)
    assert limits.tiers() == (Tier.DOOR,)
    text = render_configuration(configuration(limits=limits), {})
    assert "use_backend bulk" not in text
    assert "backend bulk" not in text


def test_without_a_token_nothing_is_marked_as_a_probe():
    for tier in Tier:
        peering = PEERING if tier is Tier.HOLD else None
        text = render_configuration(configuration(tier, probe_token="", peering=peering), {})
        assert "set-var(txn.probe)" not in text
        assert "del-header x-cortex- -m beg" in text


def test_the_map_names_every_fact_of_an_api():
    servers = (IngressServer("a", "/a", 9), IngressServer("b", "/b", 9))
    route = IngressRoute(ApiKey("iris/a"), "/iris/a", servers, 2.5, 1000, False, "v1", max_queued=15, retry_after_s=3)
    assert render_map({route.path: render_entry(route, 7)}) == (
        "/iris/a pool-0007|2500,1000|3000|1000|off|15|iris/a|v1|3|awake\n"
    )


@pytest.mark.parametrize("sleep", list(Sleep))
def test_the_map_says_whether_anybody_is_there_and_what_it_says_is_read_back(sleep):
    route = IngressRoute(ApiKey("iris/a"), "/iris/a", (), 2.5, 1000, False, "v1", sleep=sleep)
    value = render_entry(route, 7)
    assert value.rpartition("|")[2] == sleep.value
    assert parse_entry(value) == Entry(backend=7, api=route.api)


def test_a_label_is_read_back_and_a_strangers_is_none():
    label = WorkerLabel(layout=1, tier=Tier.BULK, generation=12, pool_size=512, digest="abc")
    assert parse_label(str(label)) == label
    for description in ("", "haproxy of someone", "cortex-ingress", "cortex-ingress layout=x tier=door"):
        assert parse_label(description) is None


def test_the_digest_names_everything_that_commands_cannot_change():
    def digest(binds=("ipv4@0.0.0.0:1",), sockets="/run", clients=100, haproxy="2.8.25", peering=None, **limits):
        every = {Tier.DOOR: binds, Tier.BULK: ("unix@/run/b",), Tier.HOLD: ("unix@/run/h", "unix@/run/n")}
        return configuration_digest(every, Path(sockets), clients, IngressLimits(**limits), haproxy, peering=peering)

    variants = [
        digest(),
        digest(binds=("ipv4@0.0.0.0:2",)),
        digest(sockets="/elsewhere"),
        digest(clients=200),
        digest(haproxy="2.8.26"),
        digest(threads=2),
        digest(keep_alive_s=10.0),
        digest(replay_bytes=100_000),
        digest(replay_bytes=0),
        digest(peering=PEERING),
        digest(peering=msgspec.structs.replace(PEERING, fingerprint="0")),
        digest(peering=msgspec.structs.replace(PEERING, places=4)),
        digest(peering=msgspec.structs.replace(PEERING, bind="ipv4@10.0.0.1:8882")),
    ]
    assert len(set(variants)) == len(variants)
    assert digest() == variants[0]


@pytest.mark.parametrize(("fd_limit", "clients"), [(1024, 179), (20_000, 3974), (1 << 20, 8192)])
def test_clients_and_the_connections_they_keep_fit_the_open_files(fd_limit, clients):
    assert max_clients(fd_limit) == clients


def test_peers_are_clients_too():
    assert max_clients(20_000, frontends=2) == 1987


def test_too_low_a_limit_of_open_files_is_named():
    with pytest.raises(TooFewFiles, match="at most 256 files may be open, the ingress needs at least 288"):
        max_clients(256)


def test_paths_with_quotes_and_blanks_stay_one_word():
    assert quoted("/a b'c\"d") == "'/a b'\"'\"'c\"d'"
