"""
HAProxy's configuration and map file, as text. Pure: no I/O here.

One HAProxy process is a *worker*, of one of three tiers:

* The **door** listens on the public addresses. Its buffers are small, because HAProxy copies the whole buffer of
  every request that it may have to deliver a second time.
* **bulk** listens on a unix socket behind the door and has buffers in which `replay_bytes` of body fit. The door
  passes it every request whose body is too large for its own buffers, or of unknown length. Each worker has so many
  connections to a replica: bodies that trickle in for minutes use up those of bulk, and small requests go on.
* **hold** is there where there are peers. It listens on unix sockets behind the other two, which pass it what nobody
  can be reached for.

All have the same pool of empty backends and the same routes, and all talk to replicas directly.

Everything HAProxy knows about an api is one map entry, so that an api changes as a whole:

    /iris/sklearn pool-0001|600000,104857600|600500|104857600|on|188|iris/sklearn|0a1b2c3d|1|awake
                  backend   limits           wait   max body  retry queue api      version  | sleep
                                                                                    retry-after

`queue` is how many may wait in front of it, in each worker; one more is told 503 at once, with `retry-after` seconds.
`sleep` says of an api that is asleep, or waking, that its health is answered here: asking for it wakes nobody.

A *probe* is a request of our own, by which a change-over is proved. It has `x-cortex-probe` with a token that is in
this configuration and in a file of the home; without the right one it is a request like any other. Replicas are told
of it by `x-cortex-probe: 1`, which, as all that begins with `x-cortex-`, nobody else can send them. It is in no count,
wakes nobody, and does not wait where others wait. Its answer says so, too: it was taken for what it is.

Where there are *peers* (`peers`), every door serves every api. A pool backend has them as backup servers: they are
asked when no replica of this node is in rotation, and, one of them drawn, when all are busy. Two and more of an api
that has no replica here are servers like any other. Beside each there is a
backend `near-<n>` with the same replicas and no peers, for what comes from peers. It tries once and then closes the
connection, so that the first door decides about a second delivery; what it refuses itself it marks
(`x-cortex-refused`), and the first door counts it. So a request has two deliveries at most, and one count. Three fields
more are in the map entry: how many requests may be away, the tickets to draw from, and whether requests are held.

    /iris/sklearn pool-0001|…|awake|80|1.5f0c2a9b:1.5f0c2a9b:…:2.77aa01cd|on

A request is *held* while neither a replica here nor a peer can be reached. HAProxy 2.8 has no queue without a server
that serves somebody: with all of them down it answers 503 at once. So the last backup server of a pool backend is the
tier **hold**, whose only work it is to try to connect: once a second, `hold_s` long, to whoever of replicas and peers
is there by then, else to a server that turns everybody away. It delivers a request once, and closes the connection
if that is lost, as a peer does: whoever passed it the request decides about a second delivery. What has come from a
peer is held for replicas of this node alone, for `near_hold_s`, and only if the peer knows of nobody else to ask.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

from cortex.ids import ApiKey
from cortex.ingress.errors import TooFewFiles
from cortex.ingress.peers import (
    AWAY_PER_REPLICA,
    DRAWS,
    HOLD_KEY,
    NOBODY_KEY,
    PEER_KEY,
    WATCHED,
    IngressPeer,
    PeerServer,
    place_name,
    tickets,
)
from cortex.ingress.pool import NOWHERE, backend_name, backend_number, near_name
from cortex.ingress.routes import IngressRoute, IngressServer

LAYOUT = 5
"""Changes when the names or the fields that admin commands rely on change: then an older worker takes no commands."""
FRONTEND = "ingress"
TABLE = "refusals"
PROBES = "probes"
"""The table of the probes that each backend has had, and has now."""
PROBE_HEADER = "x-cortex-probe"
BULK_BACKEND = "bulk"
PEER_FRONTEND = "from-peers"
NEAR_BIND = "near"
"""Name of the socket of hold for what has come from peers."""
NEAR_BULK_BACKEND = "bulk-near"
AWAY = "away"
"""The table of the requests that each backend has at peers although there are replicas here."""

DOOR_BUFFER_BYTES = 32768
"""CPU of HAProxy for a small request that it may retry: 17 µs with buffers of 16 KiB, 20 at 32, 31 at 64, 65 at 256."""
DOOR_BODY_BYTES = 16384
"""Largest body that the door itself can deliver twice; the rest of its buffer is for the headers."""
HEADER_ROOM_BYTES = 32768
"""Added to `replay_bytes` for the buffer of bulk: headers and HAProxy's own bookkeeping share it with the body."""
REPLICA_GRACE_MS = 500
"""HAProxy waits this much longer than an api's timeout, so that the replica's own, better 504 comes first."""
LONGEST_TIMEOUT_MS = 2_000_000_000
"""23 days: HAProxy's timers are 31 bits of milliseconds."""
KEPT_CONNECTIONS = 3
"""Idle connections to replicas that one client connection may keep, for `max-session-srv-conns`."""
POLL_S = 1.0
"""
A request that is held tries so often to connect: HAProxy waits so long after a connection that failed. And so long it
waits at first, so that who has just died is known to have: two checks, and some.
"""
CHECK_MS = 300
"""A peer is asked so often whether it answers, and is left out after the second time that it does not."""
FD_RESERVE = 128
"""File descriptors for everything that is no client: admin connections, listeners, log."""
MAX_CLIENTS = 8192
"""Client connections at most, however high the fd limit: each may hold buffers."""
MIN_CLIENTS = 32


class Tier(enum.Enum):
    """What a worker is for."""

    DOOR = "door"
    """Takes the public connections."""
    BULK = "bulk"
    """Takes from the door the bodies that fit only into large buffers."""
    HOLD = "hold"
    """Takes from both what nobody can be reached for, until somebody can."""


class Refusal(enum.Enum):
    """Why the ingress answered itself; the value is the `error` of the body and the name of the counter."""

    BAD_REQUEST = "bad-request"
    """400: what came is not valid HTTP, or its body broke off."""
    METHOD_NOT_ALLOWED = "method-not-allowed"
    """405."""
    REQUEST_TIMEOUT = "request-timeout"
    """408: the request did not arrive in time."""
    BODY_TOO_LARGE = "body-too-large"
    """413: the content-length is over the limit of the api."""
    REPLICA_LOST = "replica-lost"
    """502: the replica died with the request, and it could not be delivered again."""
    NO_READY_REPLICA = "no-ready-replica"
    """503: the route has no server in rotation."""
    OVERLOADED = "overloaded"
    """503: every server is full and so is the queue, or the wait in it was too long."""
    TIMEOUT = "timeout"
    """504: no answer within the api's timeout."""
    INGRESS_FAULT = "ingress-fault"
    """500: HAProxy ran out of something."""


ASLEEP = "asleep"
"""The `error` with which a probe is turned away (503) that would wake an api; others wake it."""


class IngressLimits(msgspec.Struct, frozen=True):
    """How HAProxy is dimensioned."""

    threads: int = 1
    """HAProxy threads. Default 1: one core carries about 40,000 requests/s, more than replicas on few cores answer."""
    replay_bytes: int = 262144
    """Largest body that is delivered again when a replica dies with it. At most 16 KiB leaves out the bulk worker."""
    queue_timeout_s: float = 30.0
    """
    Longest wait in the queue of a route, then 503. Its bound by number comes first, a second of work, so that only
    apis that do fewer than 4 requests a second come to this, and who waits for a replica that slept. Who waits when the
    last server of a route leaves rotation is told at once.
    """
    header_timeout_s: float = 15.0
    """Time for the headers of a request to arrive, then 408."""
    body_timeout_s: float = 60.0
    """Time for a body to arrive that is to be delivered twice if need be, then 408."""
    client_timeout_s: float = 75.0
    """Longest silence of a client that sends or receives. Above `body_timeout_s`, whose answer is the better one."""
    hold_s: float = 30.0
    """Longest wait for somebody who can be reached, then 503. As long as for a replica that slept."""
    near_hold_s: float = 5.0
    """The same of what has come from a peer, which knows of a replica here before this node does, or mistakes."""
    keep_alive_s: float = 75.0
    """How long an idle client connection stays open; above the usual 60 s of load balancers in front."""

    def tiers(self, *, peers: bool = False) -> tuple[Tier, ...]:
        """In the order in which workers are started and routes are added, with peers or without."""
        tiers = (Tier.BULK, Tier.DOOR) if self.replay_bytes > DOOR_BODY_BYTES else (Tier.DOOR,)
        return (Tier.HOLD, *tiers) if peers else tiers


class WorkerPeering(msgspec.Struct, frozen=True):
    """What a worker knows of peers from the start."""

    bind: str
    """Argument of `bind`, for the door."""
    certificate: Path
    authority: Path
    fingerprint: str
    """Of what is in both files: HAProxy reads them once."""
    places: int
    """Peers that it can watch."""
    hold_sockets: tuple[Path, Path]
    """Where hold listens: for what clients have asked here, and for what peers have."""
    nobody_socket: Path
    """Where hold turns everybody away."""


class WorkerConfiguration(msgspec.Struct, frozen=True):
    """One worker's configuration, apart from routes and servers."""

    tier: Tier
    generation: int
    digest: str
    """Of everything that is not routes, servers or names of this generation; see `configuration_digest`."""
    binds: tuple[str, ...]
    """Arguments of `bind`; the sockets themselves are handed over (`handover`)."""
    admin_socket: Path
    map_file: str
    """Relative to HAProxy's working folder (`-C`); admin commands name the map by it."""
    bulk_socket: Path
    pool_size: int
    max_clients: int
    limits: IngressLimits
    probe_token: str = ""
    """What makes a request a probe, hex digits; empty: nothing does."""
    peering: WorkerPeering | None = None
    """None: there is one door."""


class WorkerLabel(msgspec.Struct, frozen=True):
    """What a worker says about itself in `show info`, so that a restarted agent knows what it found."""

    layout: int
    tier: Tier
    generation: int
    pool_size: int
    digest: str
    places: int = 0
    """For peers; 0: it knows nothing of peers."""

    def __str__(self) -> str:
        places = f"places={self.places} " if self.places else ""
        return (
            f"cortex-ingress layout={self.layout} tier={self.tier.value} generation={self.generation} "
            f"pool={self.pool_size} {places}digest={self.digest}"
        )


class Entry(msgspec.Struct, frozen=True):
    """What of a map entry is read back."""

    backend: int
    api: ApiKey


def parse_label(description: str) -> WorkerLabel | None:
    """The reverse of `str(WorkerLabel)`; None for an HAProxy that is not ours or too different."""
    words = description.split()
    if words[:1] != ["cortex-ingress"]:
        return None
    facts = dict(word.split("=", 1) for word in words[1:] if "=" in word)
    try:
        return WorkerLabel(
            layout=int(facts["layout"]),
            tier=Tier(facts["tier"]),
            generation=int(facts["generation"]),
            pool_size=int(facts["pool"]),
            digest=facts["digest"],
            places=int(facts.get("places", 0)),
        )
    except (KeyError, ValueError):
        return None


def max_clients(fd_limit: int, *, frontends: int = 1) -> int:
    """
    Client connections that fit the fd limit, with the connections to replicas that each of them may keep.

    Args:
        frontends: each may have so many; peers are clients, too.

    Raises:
        TooFewFiles: not even 32 fit; names the limit and what is needed.
    """
    descriptors = frontends * (2 + KEPT_CONNECTIONS)
    clients = min(MAX_CLIENTS, (fd_limit - FD_RESERVE) // descriptors)
    if clients < MIN_CLIENTS:
        raise TooFewFiles(fd_limit, MIN_CLIENTS * descriptors + FD_RESERVE)
    return clients


def server_key(server: IngressServer | PeerServer) -> str:
    """
    The server's name inside HAProxy: its own, and a digest of its socket, which HAProxy does not tell.

    So a server that got another socket is another server, also after we forgot everything.
    """
    if isinstance(server, PeerServer):
        return server.key
    return f"{server.name}.{hashlib.sha256(server.socket.encode()).hexdigest()[:8]}"


def server_name(key: str) -> str:
    """The `IngressServer.name` in a `server_key`."""
    return key.rpartition(".")[0] or key


def render_entry(route: IngressRoute, backend: int, peers: Sequence[PeerServer] | None = None) -> str:
    """
    The map entry's value for a route; see the module's docstring.

    Args:
        peers: those of the route; None for a worker that knows nothing of peers.
    """
    timeout_ms = min(LONGEST_TIMEOUT_MS, max(1, round(route.timeout_s * 1000)))
    fields: tuple[str, ...] = (
        backend_name(backend),
        f"{timeout_ms},{route.max_body_bytes}",
        str(timeout_ms + REPLICA_GRACE_MS),
        str(route.max_body_bytes),
        "on" if route.retry else "off",
        str(route.max_queued),
        route.api,
        route.version,
        str(route.retry_after_s),
        route.sleep.value,
    )
    if peers is not None:
        room = AWAY_PER_REPLICA * sum(share.ready for share in route.peers)
        drawn = tickets([peer for peer in peers if not peer.first])
        fields += (str(room), drawn, "on" if route.holds else "off")
    return "|".join(fields)


def parse_entry(value: str) -> Entry | None:
    """Backend and api of a map entry; None if it is not one of this layout."""
    fields = value.split("|")
    if len(fields) not in (10, 13):
        return None
    backend = backend_number(fields[0])
    return None if backend is None else Entry(backend=backend, api=ApiKey(fields[6]))


def render_map(entries: Mapping[str, str]) -> str:
    """The map file with which a worker starts."""
    return "".join(f"{path} {value}\n" for path, value in sorted(entries.items()))


def configuration_digest(
    binds: Mapping[Tier, Sequence[str]],
    sockets: Path,
    clients: int,
    limits: IngressLimits,
    haproxy: str,
    probe_token: str = "",
    peering: WorkerPeering | None = None,
) -> str:
    """
    Name everything a running worker cannot be told by commands: a worker with another digest is replaced.

    Args:
        haproxy: version of the binary.
    """
    text = haproxy
    for tier in limits.tiers(peers=peering is not None):
        text += render_configuration(
            WorkerConfiguration(
                tier=tier,
                generation=0,
                digest="",
                binds=tuple(binds[tier]),
                admin_socket=sockets / "admin",
                map_file="map",
                bulk_socket=sockets / "bulk",
                pool_size=0,
                max_clients=clients,
                limits=limits,
                probe_token=probe_token,
                peering=peering,
            ),
            {},
        )
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def render_configuration(
    configuration: WorkerConfiguration,
    servers: Mapping[int, Sequence[IngressServer | PeerServer]],
    watched: Mapping[int, IngressPeer] | None = None,
    near: Mapping[int, Sequence[IngressServer | PeerServer]] | None = None,
) -> str:
    """
    The whole haproxy.cfg.

    Args:
        servers: by backend, those that the worker starts with.
        watched: by place, the peers that it watches from the start.
        near: by backend, the same for what comes from peers.
    """
    peering = configuration.peering
    has_bulk = configuration.tier is Tier.DOOR and Tier.BULK in configuration.limits.tiers()
    blocks = [_global(configuration), _table()]
    if peering is not None:
        blocks.append(_away_table())
    blocks += [_base(configuration), _frontend(configuration)]
    if peering is not None and configuration.tier is Tier.DOOR:
        blocks.append(_peer_frontend(configuration, peering))
    if peering is not None and configuration.tier is Tier.HOLD:
        blocks += [_nobody_frontend(peering), *_hold_defaults(configuration)]
    else:
        blocks.append(_pool_defaults(configuration))
        if peering is not None:
            blocks.append(_near_defaults(configuration))
    if has_bulk:
        blocks.append(_bulk_backend(configuration))
    if has_bulk and peering is not None:
        blocks.append(_near_bulk_backend(configuration))
    if peering is not None:
        blocks.append(_watched(peering, watched or {}))
    for backend in range(NOWHERE, configuration.pool_size + 1):
        found = servers.get(backend, ())
        blocks.append(_pool_backend(configuration, backend, found))
        if peering is not None:
            blocks.append(_near_backend(configuration.tier, backend, (near or {}).get(backend, ()), peering))
    return "".join(blocks)


def _global(configuration: WorkerConfiguration) -> str:
    limits = configuration.limits
    label = WorkerLabel(
        layout=LAYOUT,
        tier=configuration.tier,
        generation=configuration.generation,
        pool_size=configuration.pool_size,
        digest=configuration.digest,
        places=configuration.peering.places if configuration.peering else 0,
    )
    buffer = limits.replay_bytes + HEADER_ROOM_BYTES if configuration.tier is Tier.BULK else DOOR_BUFFER_BYTES
    # HAProxy sizes its fd table as twice the global maxconn; the frontend's own, lower one leaves room for the
    # connections to replicas that idle clients keep.
    frontends = 2 if configuration.peering else 1
    maxconn = frontends * configuration.max_clients * (2 + KEPT_CONNECTIONS) // 2
    tls = ""
    if configuration.peering:
        tls = f"""\
    # certificates {configuration.peering.fingerprint}
    ssl-default-bind-options ssl-min-ver TLSv1.3
    ssl-default-server-options ssl-min-ver TLSv1.3
"""
    return f"""\
# Written by Cortex at every start of HAProxy; changes are lost.
global
    description {label}
    stats socket {quoted(str(configuration.admin_socket))} mode 600 level admin expose-fd listeners
    stats timeout 1h
    stats maxconn 64
    nbthread {limits.threads}
    maxconn {maxconn}
    tune.bufsize {buffer}
    hard-stop-after 15m
{tls}
"""


def _table() -> str:
    return f"""\
# What the ingress answered itself, by api: gpc<n> counts the n-th reason (configuration.Refusal).
backend {TABLE}
    stick-table type string len 128 size 20k store gpc({len(Refusal)})

# Probes, by backend: how many there were, and are now. They are taken off what the backend has counted.
backend {PROBES}
    stick-table type string len 32 size 20k store conn_cnt,conn_cur

"""


def _away_table() -> str:
    return f"""\
# Requests that are at peers because all replicas here are busy, by backend.
backend {AWAY}
    stick-table type string len 32 size 20k store conn_cur

"""


def _base(configuration: WorkerConfiguration) -> str:
    limits = configuration.limits
    # iif tells a full api from one without replicas; HAProxy has one 503 for both.
    unavailable = "%[be_name,nbsrv,bool,iif(overloaded,no-ready-replica)]"
    why = "%[be_name,nbsrv,bool,iif(every replica is busy and the queue is full,no replica is ready)]"
    connect_s, retries, retry_on = 5.0, 1, "conn-failure empty-response"
    if configuration.tier is Tier.HOLD:
        unavailable, why = Refusal.NO_READY_REPLICA.value, "no replica is ready"
        connect_s, retries, retry_on = POLL_S, _polls(limits.hold_s), "conn-failure"
    broken = "the request is not valid HTTP, or its body broke off"
    errors = [
        _error(400, Refusal.BAD_REQUEST.value, f"{broken}, or the client closed its end before the answer"),
        _error(408, Refusal.REQUEST_TIMEOUT.value, "the request did not arrive in time"),
        _error(500, Refusal.INGRESS_FAULT.value, "the ingress could not handle this request"),
        _error(502, Refusal.REPLICA_LOST.value, "the replica died with this request or broke off its answer"),
        _error(503, unavailable, why + _WAKES) + _RETRY_AFTER,
        _error(504, Refusal.TIMEOUT.value, "no answer within the timeout of this api"),
    ]
    lines = "".join(f"    http-error {error}\n" for error in errors)
    return f"""\
defaults base
    mode http
    timeout connect {_ms(connect_s)}
    timeout http-request {_ms(limits.header_timeout_s)}
    timeout http-keep-alive {_ms(limits.keep_alive_s)}
    timeout client {_ms(limits.client_timeout_s)}
    timeout queue {_ms(limits.queue_timeout_s)}
    timeout server 1h
    option abortonclose
    option idle-close-on-response
    option http-ignore-probes
    http-reuse never
    max-session-srv-conns {KEPT_CONNECTIONS}
    balance leastconn
    retries {retries}
    retry-on {retry_on}
    option redispatch 1
{lines}
"""


def _frontend(configuration: WorkerConfiguration) -> str:
    binds = [f"    bind {bind} proto h1" for bind in configuration.binds]
    relayed, near, marks = "", "", _marks(configuration.probe_token)
    if configuration.peering is not None and configuration.tier is Tier.BULK:
        # Said by the door that is in front, of what has come from a peer. A client cannot say it.
        relayed = "".join(
            f"    http-request set-var(txn.{name}) bool(true) if {{ req.fhdr(x-cortex-{name}) -m found }}\n"
            for name in ("near", "only")
        )
    elif configuration.tier is Tier.HOLD:
        binds[-1] += f" name {NEAR_BIND}"
        relayed = f"    http-request set-var(txn.near) bool(true) if {{ so_name -m str {NEAR_BIND} }}\n"
        marks = _marks_of_doors(configuration.probe_token)
    if relayed:
        near = f"    use_backend {_NEAR_OF_ROUTE} if {{ var(txn.near) -m found }}\n"
    listening = "".join(f"{bind}\n" for bind in binds)
    return f"""\
frontend {FRONTEND} from base
{listening}\
    maxconn {configuration.max_clients}
{relayed}\
{marks}\
{_route_rules(configuration.map_file)}\
    http-request return {_error(404, "not-found", "nothing is deployed at this path")} if !{{ var(txn.route) -m found }}
{_health()}\
{_to_bulk(configuration, BULK_BACKEND)}\
{near}\
    use_backend %[var(txn.route),field(1,|)]
{_said_of_all()}
"""


def _peer_frontend(configuration: WorkerConfiguration, peering: WorkerPeering) -> str:
    # Whoever passes on takes care that it leaves an idle connection first: one that is closed under a request looks as
    # if a replica had died with it.
    keep_alive = _ms(2 * configuration.limits.keep_alive_s)
    # Who has another door to ask is better served by that than by our answer.
    nobody = _error(503, Refusal.NO_READY_REPLICA.value, "no replica is ready")
    return f"""\
# The doors of other nodes, known by their certificates. What they ask goes to replicas of this node and no further.
frontend {PEER_FRONTEND} from base
    bind {peering.bind} ssl {_credentials(peering, quoted)} verify required proto h1
    maxconn {configuration.max_clients}
    timeout http-keep-alive {keep_alive}
    http-request set-var(txn.only) bool(true) if {{ req.fhdr(x-cortex-only) -m found }}
{_marks_of_doors(configuration.probe_token)}\
{_route_rules(configuration.map_file)}\
    http-request return {nobody} hdr {_REFUSED} {_NOBODY} if !{{ var(txn.route) -m found }} {{ var(txn.only) -m found }}
    http-request reject if !{{ var(txn.route) -m found }}
{_health()}\
{_to_bulk(configuration, NEAR_BULK_BACKEND)}\
    use_backend {_NEAR_OF_ROUTE}
{_said_of_all()}
"""


def _route_rules(map_file: str) -> str:
    """Rules that give a request its id, and find its route."""
    file = quoted(map_file)
    # Below an endpoint only the Open Inference Protocol is found: `/sklearn/v2/…`, `/iris/sklearn/v2/…`.
    below_api, below_both = (f"{{ path_reg ^(/[^/]+){{{names}}}/v2(/|$) }}" for names in (1, 2))
    return f"""\
    http-request set-var(txn.id) req.fhdr(x-request-id) if {{ req.fhdr(x-request-id) -m reg ^[A-Za-z0-9._-]{{1,128}}$ }}
    http-request set-var(txn.id) uuid() if !{{ var(txn.id) -m found }}
    http-request set-header x-request-id %[var(txn.id)]
    http-request set-var(txn.route) path,map({file})
    http-request set-var(txn.route) path,regsub(/$,),map({file}) if !{{ var(txn.route) -m found }} {{ path_end / }}
    http-request set-var(txn.route) path,field(1,/,2),map({file}) if !{{ var(txn.route) -m found }} {below_api}
    http-request set-var(txn.route) path,field(1,/,3),map({file}) if !{{ var(txn.route) -m found }} {below_both}
"""


def _to_bulk(configuration: WorkerConfiguration, backend: str) -> str:
    """Rules of the door for what only bulk can deliver twice."""
    if configuration.tier is not Tier.DOOR or Tier.BULK not in configuration.limits.tiers():
        return ""
    # A chunked body has no length to judge by: bulk reads until it ends or its buffer is full.
    return f"""\
    use_backend {backend} if {{ req.hdr_val(content-length) gt {DOOR_BODY_BYTES} }}
    use_backend {backend} if {{ req.hdr(transfer-encoding) -m found }}
    use_backend {backend} if {{ var(txn.route),field(5,|) off }}
"""


def _said_of_all() -> str:
    """Rules for every answer, whoever gave it."""
    return f"""\
    http-after-response set-header x-request-id %[var(txn.id)]
    http-after-response set-header {PROBE_HEADER} 1 if {_IS_PROBE}
"""


def _marks(probe_token: str) -> str:
    """Rules that take away what a client must not say to a replica, and mark a probe."""
    if not probe_token:
        return "    http-request del-header x-cortex- -m beg\n"
    return f"""\
    http-request set-var(txn.probe) bool(true) if {{ req.fhdr({PROBE_HEADER}) -m str {probe_token} }}
    http-request del-header x-cortex- -m beg
    http-request set-header {PROBE_HEADER} 1 if {_IS_PROBE}
"""


def _marks_of_doors(probe_token: str) -> str:
    """The same for what doors ask: they say what is a probe as they say it to replicas."""
    if not probe_token:
        return _marks(probe_token)
    return f"""\
    http-request set-var(txn.probe) bool(true) if {{ req.fhdr({PROBE_HEADER}) -m found }}
    http-request del-header x-cortex- -m beg
    http-request set-header {PROBE_HEADER} 1 if {_IS_PROBE}
"""


def _nobody_frontend(peering: WorkerPeering) -> str:
    return f"""\
# Where a held request tries to connect while there is nobody else.
frontend nobody from base
    bind {quoted("unix@" + str(peering.nobody_socket))}
    tcp-request connection reject

"""


def _health() -> str:
    """
    Rules that answer the health of an api that sleeps or wakes as a replica would, in no count, and wake nobody.

    Whoever asks so each few seconds, a load balancer, would keep every api awake, or find it ill while it wakes.
    """
    name = "var(txn.route),field(7,|),field(2,/)"
    sleeps = "{ var(txn.route),field(10,|) -m str asleep waking } { method GET HEAD }"
    below = "^(/[^/]+){1,2}/v2"
    status = " hdr cortex-status %[var(txn.route),field(10,|)] hdr x-cortex-version %[var(txn.route),field(8,|)]"

    def answers(path: str, body: str, *conditions: str) -> str:
        rule = f"status 200 content-type application/json lf-string '{body}'{status}"
        return (
            f"    http-request return {rule} if {' '.join([sleeps, f'{{ path_reg {below}{path}$ }}', *conditions])}\n"
        )

    return (
        answers("/health/live", '{"live":true}')
        + answers("/health/ready", '{"ready":true}')
        + f"    http-request set-var(txn.name) {name} if {sleeps}\n"
        + answers(
            "/models/[^/]+/ready",
            '{"name":"%[var(txn.name)]","ready":true}',
            "{ path,field(-2,/),strcmp(txn.name) eq 0 }",
        )
    )


def _pool_defaults(configuration: WorkerConfiguration) -> str:
    peering = configuration.peering
    away = _hold_rules() + _away_rules(configuration) if peering else ""
    return f"""\
defaults pool from base
{"    option allbackups" + chr(10) if peering else ""}\
{_track()}\
{_prediction_rules(configuration)}\
{away}\
{_queue_rule(" !{ var(txn.draw) -m found }" if peering else "")}\
{_account(peers=peering is not None)}
"""


def _near_defaults(configuration: WorkerConfiguration) -> str:
    # Who has another door to ask is better served by that than by waiting here.
    return f"""\
# For peers: as above, but tried once, passed on to nobody, and counted by the door that has the client.
defaults near from base
    errorfile 502 /dev/null
    errorfile 503 /dev/null
    http-request reject if {{ be_conn_free lt 0 }} !{{ var(txn.only) -m found }}
{_hold_rules()}\
{_prediction_rules(configuration)}\
    http-request disable-l7-retry
{_queue_rule()}\
{_NO_FEIGNED_REFUSAL}\
{_mark_own()}
"""


def _hold_rules() -> str:
    """Rules for when nobody can be reached and there is but hold: who would wait in vain is told."""
    nobody = _error(503, Refusal.NO_READY_REPLICA.value, "no replica is ready" + _WAKES)
    alone = "{ be_conn_free lt 0 } { nbsrv eq 1 }"
    return f"""\
    http-request set-var(txn.nobody) bool(true) if {alone} !{{ var(txn.route),field(13,|) on }}
    http-request return {nobody}{_RETRY_AFTER} if {{ var(txn.nobody) -m found }}
"""


def _hold_defaults(configuration: WorkerConfiguration) -> tuple[str, str]:
    """
    Of what has been asked here, and of what peers have asked. Both are delivered once, and counted elsewhere.

    At first they wait for as long as a peer that has just died may be taken for one that is there, unless there are
    others.
    """
    limits = configuration.limits
    full = _error(503, Refusal.OVERLOADED.value, "no replica is ready and the queue is full" + _WAKES)
    extra_ms = round(limits.queue_timeout_s * 1000)  # it may have to wait there, too
    held_enough = "{ var(txn.held),sub(txn.max_queued) gt 0 }"  # with this one, when it came
    rules = f"""\
    errorfile 502 /dev/null
    tcp-request inspect-delay {_ms(POLL_S)}
    tcp-request content set-var(txn.held) be_conn if !{{ var(txn.held) -m found }}
    tcp-request content set-var(txn.max_queued) var(txn.route),field(6,|)
    tcp-request content accept if {{ nbsrv gt 1 }} || {held_enough}
    tcp-request content accept if WAIT_END
{_prediction_rules(configuration)}\
    http-request set-var(txn.full) bool(true) if {held_enough}
    http-request return {full}{_RETRY_AFTER} if {{ var(txn.full) -m found }}
    http-request disable-l7-retry
    http-request set-header x-cortex-only 1
    http-request set-timeout server var(txn.route),field(3,|),add({extra_ms})
{_NO_FEIGNED_REFUSAL}\
{_mark_own()}
"""
    near = f"""\
defaults near from base
    retries {_polls(limits.near_hold_s)}
{rules}"""
    return f"defaults pool from base\n{rules}", near


def _prediction_rules(configuration: WorkerConfiguration) -> str:
    """What is asked of a prediction, and told to a replica, before one is chosen."""
    limits = configuration.limits
    unrepeatable = _unrepeatable(configuration)
    too_large = _error(
        413,
        Refusal.BODY_TOO_LARGE.value,
        # Word for word what a replica answers, which counts the bodies that have no length.
        "the body is larger than %[var(txn.max_body)] bytes",
        ',"limit":%[var(txn.max_body)],"hint":"raise max_body in cortex.yaml"',
    )
    wakes = ": this api slept and is being woken, come again after %[var(txn.route),field(9,|)] s"
    no_room = _error(503, Refusal.OVERLOADED.value, "every replica is busy")
    sleeps = _error(503, ASLEEP, "the api sleeps, and a probe wakes nobody")
    wrong_method = _error(405, Refusal.METHOD_NOT_ALLOWED.value, "this endpoint takes GET, HEAD, POST and OPTIONS")
    # Without wait-for-body, a request whose body arrives in a later packet than its headers (as most clients send
    # it) goes to the replica in pieces, and HAProxy can then not deliver it again; and whoever sends slowly holds a
    # connection to the replica meanwhile. A body that is too large for the buffer is not waited for, nor is its
    # beginning copied for a second delivery that cannot be.
    return f"""\
    http-request track-sc1 be_name table {PROBES} if {_IS_PROBE}
    http-request return {sleeps} if {_IS_PROBE} {{ var(txn.route),field(10,|) -m str asleep waking }}
    http-request return {no_room}{_RETRY_AFTER} if {_IS_PROBE} {{ nbsrv gt 0 }} {{ be_conn_free eq 0 }}
    http-request return {wrong_method} hdr allow 'GET, HEAD, POST, OPTIONS' if !{{ method GET HEAD POST OPTIONS }}
    http-request set-var(txn.max_body) var(txn.route),field(4,|)
    http-request return {too_large} if {{ req.hdr_val(content-length),sub(txn.max_body) gt 0 }}
    http-request set-header x-cortex-limits %[var(txn.route),field(2,|)]
    http-request set-timeout server var(txn.route),field(3,|)
    http-request disable-l7-retry if {{ var(txn.route),field(5,|) off }} || {unrepeatable}
    http-request wait-for-body time {_ms(limits.body_timeout_s)} if !{unrepeatable}
    http-request set-var(txn.whole) bool(true) if !{unrepeatable}
    http-request set-var-fmt(txn.wakes) {quoted(wakes)} if {{ var(txn.route),field(10,|) -m str asleep waking }}
    http-request set-var(txn.max_queued) var(txn.route),field(6,|)
"""


def _unrepeatable(configuration: WorkerConfiguration) -> str:
    """A condition: the body does not fit where it would have to be kept for a second delivery."""
    largest = configuration.limits.replay_bytes if configuration.tier is Tier.BULK else DOOR_BODY_BYTES
    return f"{{ req.hdr_val(content-length) gt {largest} }}"


def _queue_rule(but: str = "") -> str:
    full = _error(503, Refusal.OVERLOADED.value, "every replica is busy and the queue is full" + _WAKES)
    return f"    http-request return {full}{_RETRY_AFTER} if{but} {{ queue,sub(txn.max_queued) ge 0 }}\n"


def _polls(seconds: float) -> int:
    """How often is tried again within a time, of which the first second has passed when it is tried first."""
    return max(1, round(seconds / POLL_S) - 1)


def _away_rules(configuration: WorkerConfiguration) -> str:
    """
    Rules that draw a peer when every replica here is full, unless there are enough requests at peers already, or where
    there are a peer and hold to choose from.

    HAProxy counts no free connections (-1) where peers are all that is left. It takes an idle server before a busy one
    whatever their weights, so that as equals of replicas peers would be sent a share of the requests that come one by
    one, and so would hold as an equal of a peer. It has to be that for second tries, none of which goes to the server
    of the first if there is another.
    """
    ticket = "var(txn.route),field(12,|),field"
    draws = "".join(
        f"    http-request set-var(txn.away) {ticket}({draw + 1},:) if {{ var(txn.draw) -m int {draw} }}\n"
        for draw in range(DRAWS)
    )
    limits = configuration.limits
    full = "{ nbsrv gt 0 } { be_conn_free eq 0 }"
    extra_ms = round((limits.hold_s + limits.queue_timeout_s) * 1000)  # it may have to wait there, too
    goes_away = "{ var(txn.peers) -m found } || { var(txn.draw) -m found }"
    # Who may be delivered once has nobody else to ask.
    away = "{ var(txn.peers) -m found }"
    only = f"{away} {{ var(txn.route),field(5,|) off }} || {away} {_unrepeatable(configuration)}"
    return f"""\
    http-request set-var(txn.room) var(txn.route),field(11,|)
    http-request set-var(txn.draw) rand({DRAWS}) if {full} {{ be_name,table_conn_cur({AWAY}),sub(txn.room) lt 0 }}
    http-request track-sc2 be_name table {AWAY} if {{ var(txn.draw) -m found }}
    http-request set-var(txn.peers) bool(true) if {{ be_conn_free lt 0 }}
    http-request set-var(txn.draw) rand({DRAWS}) if {{ var(txn.peers) -m found }} {{ nbsrv gt 1 }}
{draws}\
    http-request set-header x-cortex-only 1 if {only}
    http-request set-timeout server var(txn.route),field(3,|),add({extra_ms}) if {goes_away}
"""


def _bulk_backend(configuration: WorkerConfiguration) -> str:
    return f"""\
# The bulk worker, which does everything that a pool backend does, and the waiting.
backend {BULK_BACKEND} from base
    option http-server-close
{_track()}\
{_bulk_rules(configuration)}\
{_account(Refusal.BAD_REQUEST)}\
    server bulk {quoted("unix@" + str(configuration.bulk_socket))}

"""


def _near_bulk_backend(configuration: WorkerConfiguration) -> str:
    return f"""\
backend {NEAR_BULK_BACKEND} from base
    option http-server-close
    errorfile 502 /dev/null
    errorfile 503 /dev/null
    http-request set-header x-cortex-near 1
    http-request set-header x-cortex-only 1 if {{ var(txn.only) -m found }}
{_bulk_rules(configuration)}\
{_mark_own()}\
    server bulk {quoted("unix@" + str(configuration.bulk_socket))}

"""


def _bulk_rules(configuration: WorkerConfiguration) -> str:
    limits = configuration.limits
    waits_s = limits.body_timeout_s + limits.queue_timeout_s
    if configuration.peering:
        waits_s += limits.hold_s + limits.queue_timeout_s  # a peer's queue
    extra_ms = round(waits_s * 1000) + REPLICA_GRACE_MS
    token = configuration.probe_token
    marks = f"    http-request set-header {PROBE_HEADER} {token} if {_IS_PROBE}\n" if token else ""
    return f"""\
{marks}\
    http-request set-timeout server var(txn.route),field(3,|),add({extra_ms})
    http-request disable-l7-retry
"""


def _track() -> str:
    return f"    http-request track-sc0 var(txn.route),field(7,|) table {TABLE}\n"


def _account(*others: Refusal, peers: bool = False) -> str:
    """
    Rules that leave a replica's answers alone, and complete and count those that HAProxy makes itself.

    Args:
        others: what somebody else counts.
        peers: whether what peers have refused is to be counted, too.
    """
    statuses = {
        # Of a whole request it means that the client left (abortonclose), which is no refusal.
        Refusal.BAD_REQUEST: "{ status 400 } !{ var(txn.whole) -m found }",
        Refusal.METHOD_NOT_ALLOWED: "{ status 405 }",
        Refusal.REQUEST_TIMEOUT: "{ status 408 }",
        Refusal.BODY_TOO_LARGE: "{ status 413 }",
        Refusal.REPLICA_LOST: "{ status 502 }",
        Refusal.NO_READY_REPLICA: "{ status 503 } { be_name,nbsrv eq 0 }",
        Refusal.OVERLOADED: "{ status 503 } { be_name,nbsrv gt 0 }",
        Refusal.TIMEOUT: "{ status 504 }",
        Refusal.INGRESS_FAULT: "{ status 500 }",
    }
    answered = "    http-response set-var(txn.answered) bool(true)"
    if peers:
        answered += f" if !{{ srv_name -m beg {PEER_KEY} }} || !{{ res.hdr({_REFUSED}) -m found }}\n"
        answered += f"    http-response set-var(txn.nobody) bool(true) if {{ res.hdr({_REFUSED}) -m str {_NOBODY} }}\n"
        answered += f"    http-response del-header {_REFUSED}"
        statuses[Refusal.NO_READY_REPLICA] += " || { status 503 } { var(txn.nobody) -m found }"
        statuses[Refusal.OVERLOADED] += " !{ var(txn.nobody) -m found }"
    counts = "".join(
        f"    http-after-response sc-inc-gpc({index},0) if {statuses[refusal]}\n"
        for index, refusal in enumerate(Refusal)
        if refusal not in others
    )
    return f"""\
{answered}
    http-after-response allow if {{ var(txn.answered) -m found }}
    http-after-response set-header x-cortex-version %[var(txn.route),field(8,|)]
    http-after-response allow if {_IS_PROBE}
{counts}"""


def _mark_own() -> str:
    """
    Rules that leave answers of replicas and of other doors alone, and say of those that HAProxy makes itself that it
    made them.
    """
    nobody = "{ status 503 } { be_conn_free lt 0 } !{ var(txn.full) -m found }"
    return f"""\
    http-response set-var(txn.answered) bool(true)
    http-after-response allow if {{ var(txn.answered) -m found }}
    http-after-response set-header x-cortex-version %[var(txn.route),field(8,|)]
    http-after-response set-header {_REFUSED} 1
    http-after-response set-header {_REFUSED} {_NOBODY} if {nobody}
"""


def _watched(peering: WorkerPeering, watched: Mapping[int, IngressPeer]) -> str:
    """The places of the peers. None of these servers gets a request."""
    how = f"ssl {_credentials(peering, quoted)} verify required check inter {CHECK_MS}ms fall 2 rise 1"
    lines = "".join(
        f"    server {place_name(place)} {watched[place].address} {how}\n"
        if place in watched
        else f"    server {place_name(place)} 127.0.0.1:1 {how} disabled\n"
        for place in range(1, peering.places + 1)
    )
    return f"""\
# Whether the doors of other nodes answer, asked once of each.
backend {WATCHED} from base
{lines}
"""


def peer_arguments(server: PeerServer, peering: WorkerPeering, tier: Tier, word: Callable[[str], str]) -> str:
    """
    What HAProxy is told of a peer as a server, after its name.

    Args:
        tier: of the worker that is told.
        word: makes one word of a path, where this is said.
    """
    name = server.peer.name
    rank = "" if tier is Tier.HOLD or server.first else "backup "
    return (
        f"{server.peer.address} ssl {_credentials(peering, word)} verify required verifyhost {name} sni str({name}) "
        f"{rank}weight {server.weight} track {WATCHED}/{place_name(server.place)} on-marked-down shutdown-sessions"
    )


def _credentials(peering: WorkerPeering, word: Callable[[str], str]) -> str:
    return f"crt {word(str(peering.certificate))} ca-file {word(str(peering.authority))}"


def _pool_backend(
    configuration: WorkerConfiguration, backend: int, servers: Iterable[IngressServer | PeerServer]
) -> str:
    lines, tier, peering = _server_lines(servers), configuration.tier, configuration.peering
    if peering is not None:
        if tier is not Tier.HOLD:
            lines += f"    use-server {PEER_KEY}%[var(txn.away)] if {{ var(txn.away) -m found }}\n"
        lines += "".join(
            f"    server {server.key} {peer_arguments(server, peering, tier, quoted)}\n"
            for server in servers
            if isinstance(server, PeerServer)
        )
        lines += _last_resort(tier, peering, peering.hold_sockets[0])
    return f"backend {backend_name(backend)} from pool\n{lines}"


def _near_backend(
    tier: Tier, backend: int, servers: Iterable[IngressServer | PeerServer], peering: WorkerPeering
) -> str:
    last = _last_resort(tier, peering, peering.hold_sockets[1])
    return f"backend {near_name(backend)} from near\n{_server_lines(servers)}{last}"


def _last_resort(tier: Tier, peering: WorkerPeering, hold: Path) -> str:
    if tier is not Tier.HOLD:
        return f"    server {HOLD_KEY} {quoted('unix@' + str(hold))} backup\n"
    # A handshake that is cut short is a connection that failed, which is tried again after POLL_S; a connection that
    # is refused would be tried again at once.
    return f"    server {NOBODY_KEY} {quoted('unix@' + str(peering.nobody_socket))} ssl verify none backup\n"


def _server_lines(servers: Iterable[IngressServer | PeerServer]) -> str:
    return "".join(
        f"    server {server_key(server)} {quoted('unix@' + server.socket)} maxconn {server.max_connections}\n"
        for server in servers
        if isinstance(server, IngressServer)
    )


def _error(status: int, code: str, message: str, facts: str = "") -> str:
    body = f'{{"error":"{code}","message":"{message}","request_id":"%[var(txn.id)]"{facts}}}'
    return f"status {status} content-type application/json lf-string '{body}'"


_IS_PROBE = "{ var(txn.probe) -m found }"
_WAKES = "%[var(txn.wakes)]"
"""What is added for who asks for an api that sleeps or wakes; nothing for all others."""
_RETRY_AFTER = " hdr retry-after %[var(txn.route),field(9,|)]"
_REFUSED = "x-cortex-refused"
_NOBODY = "nobody"
_NO_FEIGNED_REFUSAL = f"    http-response del-header {_REFUSED} if !{{ srv_name -m beg {PEER_KEY} }}\n"
_NEAR_OF_ROUTE = "near-%[var(txn.route),field(1,|),bytes(5)]"


def _ms(seconds: float) -> str:
    return f"{max(1, round(seconds * 1000))}ms"


def quoted(text: str) -> str:
    """`text` as one word of HAProxy's configuration language, whatever is in it."""
    return "'" + text.replace("'", "'\"'\"'") + "'"
