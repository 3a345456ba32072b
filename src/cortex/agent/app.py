"""The agent's process: everything is built here and passed in by keyword."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import logging.handlers
import os
import resource
import secrets
import signal
import sys
from functools import partial
from pathlib import Path

import msgspec
import setproctitle

from cortex import processes
from cortex.agent.cache import ArtifactCache
from cortex.agent.children import Children
from cortex.agent.cleaning import Cleaning
from cortex.agent.countfiles import CountFiles
from cortex.agent.counting import Counting
from cortex.agent.dialing import ControlPlanes, Introduce, Streams, dial_unix, introduce, introductions
from cortex.agent.door import Door
from cortex.agent.families import Families
from cortex.agent.inspections import Inspections
from cortex.agent.installations import Installations
from cortex.agent.installer import Installer
from cortex.agent.kept import KeptInspections
from cortex.agent.launchers import Launchers
from cortex.agent.lines import FAR_RETRY_LONGEST_S, RETRY_LONGEST_S, SpareLines
from cortex.agent.lives import Lives
from cortex.agent.loads import ReplicaLoads
from cortex.agent.memory import AgentMemory
from cortex.agent.memorykills import MemoryKills
from cortex.agent.metering import Metering
from cortex.agent.neighbourhood import Neighbourhood
from cortex.agent.overseer import Overseer
from cortex.agent.provisions import Provisions
from cortex.agent.refusals import RefusalLog
from cortex.agent.renewal import Renewal
from cortex.agent.replicas import Replicas
from cortex.agent.safekeeping import Safekeeping
from cortex.agent.service import Agent, AgentStop, Changes
from cortex.agent.shortage import MemoryShortage
from cortex.agent.strays import Strays
from cortex.agent.supplies import Supplies
from cortex.agent.upstream import LinkedUpstream
from cortex.artifacts.store import ArtifactStore
from cortex.binding import handed_over, say_when_out_of_descriptors
from cortex.clock import SystemClock
from cortex.engines import machine
from cortex.errors import CortexError
from cortex.ingress.handover import ListenAddress
from cortex.ingress.peers import Peering
from cortex.ingress.supervisor import Ingress
from cortex.settings import ControlLayout, NodeLayout, Settings, load_settings
from cortex.tls import TlsIdentity
from cortex.wire.link import NEEDS, ORDERS, Hello
from cortex.wire.localnodes import LOCAL_NODE
from cortex.wire.membership import Membership, UnusableMembership, file_among, membership_in

log = logging.getLogger(__name__)

MOST_OPEN_FILES = 2**16
"""Thousands of replicas; more only slows down programs that close every number there could be."""


def main(*, control_home: Path | None = None) -> int:
    """
    Run the agent until it is told to end. Returns an exit code.

    Args:
        control_home: the control plane's, on this machine; None: ours, or as our membership says.
    """
    try:
        file = file_among(sys.argv)
        membership = membership_in(file) if file is not None else None
        settings = load_settings(os.environ if membership is None else {**os.environ, **membership.variables})
        control: ControlLayout | None = ControlLayout(control_home or settings.home)
        if file is not None and membership is not None:
            host = membership.bind or membership.host
            settings = msgspec.structs.replace(settings, home=file.parent, host=host, port=membership.port)
            control = ControlLayout(Path(membership.control_home)) if membership.control_home else None
        layout = NodeLayout(settings.home)
        layout.prepare()
        lock = processes.hold_for_life(layout.agent_lock)
        if lock is None:
            sys.stderr.write("an agent already runs on this home\n")
            return 0
        _log_to_file(layout)
        setproctitle.setproctitle(f"cortex-agent {settings.home}")
        processes.become_subreaper()  # replicas whose launcher died become our children: so we learn how they end
        _raise_file_limit()
        processes.remove_unfinished(layout.home, layout.agent_file.name)
        processes.write_identity(layout.agent_file, processes.own_identity())
        asyncio.run(_run(settings, layout, control, membership, lock))
    except (CortexError, OSError) as error:
        log.exception("the agent could not start")
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


async def _run(
    settings: Settings, layout: NodeLayout, control: ControlLayout | None, membership: Membership | None, lock: int
) -> None:
    stop = AgentStop()
    say_when_out_of_descriptors(asyncio.get_running_loop())
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.ask, -1.0)
    await build(settings, layout, control, membership, stop, lock).run()


def build(
    settings: Settings,
    layout: NodeLayout,
    control: ControlLayout | None,
    membership: Membership | None,
    stop: AgentStop,
    lock: int,
) -> Agent:
    """
    Put the agent together.

    Args:
        control: of the control plane; None: it is on another machine. Where it has another home, our artifact store is
            a cache of its.
        membership: which node we are among others; None: the one that there is, and `control` is there.
        lock: held on the home for as long as we live.
    """
    clock = SystemClock()
    node = there = machine.node_report(LOCAL_NODE, environ=os.environ)
    peering: Peering | None = None
    if membership is not None:
        node = membership.report(there)
        peering = _peering(membership)
    agent_id = secrets.token_hex(8)
    control_planes = _control_planes(control, layout.membership_file if membership is not None else None, membership)

    async def introduced(hello: Hello) -> Streams:
        if not processes.is_same_file(lock, layout.agent_lock):
            raise ConnectionRefusedError("the home is another one now, and so is its control plane")
        return await control_planes.introduce(hello)

    upstream = LinkedUpstream(introduce=introduced, hello=Hello(node=node.node, agent=agent_id, way=NEEDS), clock=clock)
    changes = Changes()
    memory = AgentMemory(layout.node / "agent-state.json")
    store = ArtifactStore(layout.artifacts)
    cache: ArtifactCache | None = None
    if control is None or layout.artifacts != control.artifacts:
        keep_bytes = settings.artifact_bytes
        cache = ArtifactCache(store=store, keep_bytes=keep_bytes, clock=clock, needed=lambda: replicas.trees_in_use())
    supplies = Supplies(store=store, upstream=upstream, clock=clock, patience_s=settings.start_timeout_s, cache=cache)
    installations = Installations(
        settings=settings,
        layout=layout,
        supplies=supplies,
        clock=clock,
        installer=Installer(os.environ, handed_over=supplies.indexes),
    )
    provisions = Provisions(supplies=supplies, installations=installations)
    door = Door(
        settings=settings,
        layout=layout,
        ingress=Ingress(
            directory=layout.ingress,
            sockets=layout.sockets,
            listen=[ListenAddress(host=settings.host, port=settings.port)],
            clock=clock,
            bound=tuple(handed_over(sys.argv).values()),
            probe_token=processes.kept_token(layout.probe_token_file),
            peering=peering,
            on_change=changes.note,
        ),
        clock=clock,
        routes=lambda: memory.routes,
        lives=lambda: replicas.lives,
        peering=peering,
        neighbours=lambda: neighbourhood.now() if neighbourhood is not None else None,
        refusal_log=RefusalLog(layout.replica_logs, clock),
        on_change=changes.note,
        on_applied=changes.note_shown,
    )
    neighbourhood: Neighbourhood | None = None
    if membership is not None:
        neighbourhood = Neighbourhood(
            node=node.node, file=layout.peers_file, upstream=upstream, on_change=changes.routes_due.set
        )
    renewal: Renewal | None = None
    if membership is not None and control is None:
        renewal = Renewal(Path(membership.certificate), upstream)
    overseer: Overseer | None = None
    if control is not None:
        overseer = Overseer(settings=settings, layout=control, clock=clock, is_ending=lambda: stop.is_asked)
    launchers = Launchers(
        python=provisions.python,
        settings=settings,
        layout=layout,
        clock=clock,
        on_child_exited=lambda message: lives.child_exited(message),
    )
    safekeeping = Safekeeping(layout)

    def known() -> set[int]:
        single = (
            overseer.pid if overseer is not None else None,
            safekeeping.pid,
            *(launcher.pid for launcher in launchers),
        )
        pids = {pid for pid in single if pid is not None}
        return pids | replicas.pids() | door.pids() | installations.pids

    children = Children(known=known, ingress=layout.ingress)
    strays = Strays(children.is_own)
    kept = KeptInspections()
    memory_kills = MemoryKills(clock)

    def lives_changed() -> None:
        changes.note()
        counting.stir()

    def active() -> None:
        metering.stir()
        counting.stir()

    lives = Lives(
        settings=settings,
        layout=layout,
        clock=clock,
        provisions=provisions,
        launchers=launchers,
        kept=kept,
        safekeeping=safekeeping,
        memory_kills=memory_kills,
        settle_routes=door.settle,
        quiesced=door.quiesced,
        abandon=door.abandon,
        end_strays=strays.end,
        on_change=lives_changed,
        on_active=active,
    )
    replicas = Replicas(
        settings=settings,
        layout=layout,
        clock=clock,
        lives=lives,
        launchers=launchers,
        safekeeping=safekeeping,
        memory_kills=memory_kills,
    )
    metering = Metering(
        node=node.node,
        agent=agent_id,
        clock=clock,
        loads=ReplicaLoads(replicas.metered, clock, Families()),
        doors=door.traffic,
        used_cpu_s=machine.ProcessorMeter().used_s,
    )
    counting = Counting(
        agent=agent_id,
        files=CountFiles(layout.stats, clock),
        upstream=upstream,
        clock=clock,
        live=replicas.counting,
    )
    return Agent(
        agent_id=agent_id,
        settings=settings,
        layout=layout,
        clock=clock,
        node=node,
        memory=memory,
        changes=changes,
        spare_lines=lambda service: SpareLines(
            introduce=introduced,
            hello=Hello(node=node.node, agent=agent_id, way=ORDERS),
            service=service,
            clock=clock,
            longest_pause_s=RETRY_LONGEST_S if control is not None else FAR_RETRY_LONGEST_S,
            leave=control_planes.leave if control is None else None,
        ),
        upstream=upstream,
        neighbourhood=neighbourhood,
        renewal=renewal,
        cache=cache,
        stop=stop,
        door=door,
        installations=installations,
        replicas=replicas,
        metering=metering,
        counting=counting,
        inspections=Inspections(
            settings=settings,
            layout=layout,
            provisions=provisions,
            replicas=replicas,
            kept=kept,
            strays=strays,
            children=children,
            devices=node.devices,
            is_ending=lambda: stop.is_asked,
        ),
        strays=strays,
        children=children,
        overseer=overseer,
        cleaning=Cleaning(settings=settings, layout=layout, clock=clock, replicas=replicas),
        shortage=MemoryShortage(there.mem_bytes, machine.free_memory_bytes),
        lock=lock,
    )


def _peering(membership: Membership) -> Peering:
    return Peering(
        host=membership.peer_bind or membership.host,
        port=membership.peer_port,
        certificate=Path(membership.certificate),
        authority=Path(membership.authority),
        reached_at=membership.host,
    )


def _control_planes(control: ControlLayout | None, file: Path | None, membership: Membership | None) -> ControlPlanes:
    """Those that the membership names, read anew each time: a head that takes another's place is elsewhere."""
    if membership is None or file is None:
        assert control is not None
        here = partial(introduce, dial_unix(control.links_socket))
        return ControlPlanes(lambda: [here])
    pem = Path(membership.certificate)
    identity = TlsIdentity(authority=Path(membership.authority), certificate=pem, key=pem)

    def known() -> tuple[Introduce, ...]:
        try:
            addresses = membership_in(file).addresses
        except UnusableMembership as error:
            log.warning("where control planes listen is not known anew: %s", error)
            addresses = membership.addresses
        return introductions(addresses, identity)

    return ControlPlanes(known)


def _raise_file_limit() -> None:
    """Each replica costs us, the keeper and HAProxy some descriptors, and many systems start at 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _log_to_file(layout: NodeLayout) -> None:
    handler = logging.handlers.RotatingFileHandler(layout.logs / "agent.log", maxBytes=10 * 2**20, backupCount=3)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
