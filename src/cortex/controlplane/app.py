"""
The control plane's process: everything is built here and passed in by keyword.

The API runs on uvicorn's loop, deploys in threads; both only change the stored state and wake the control loop.

After a crash, dead replicas wait for that: it starts before FastAPI, uvicorn and pydantic are imported, which takes
longer than everything else together.
"""

from __future__ import annotations

import errno
import logging
import logging.handlers
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import setproctitle

from cortex import processes
from cortex.artifacts import samples
from cortex.artifacts.store import ArtifactStore
from cortex.binding import bind_tcp, handed_over
from cortex.clock import Clock, SystemClock
from cortex.controlplane import changeovers
from cortex.controlplane.agents import LinkedAgents
from cortex.controlplane.audit import Audit
from cortex.controlplane.changeovers import ChangeOvers
from cortex.controlplane.chores import Chore
from cortex.controlplane.chronicle import Chronicle
from cortex.controlplane.elsewhere import Elsewhere
from cortex.controlplane.errands import Errands
from cortex.controlplane.events import Events
from cortex.controlplane.facade import ControlPlane
from cortex.controlplane.fetching import Models
from cortex.controlplane.healing import LOOK_EVERY_S, Healing
from cortex.controlplane.housekeeping import SETTLING_S, Housekeeping
from cortex.controlplane.lines import Lines
from cortex.controlplane.links import Incarnations, Links
from cortex.controlplane.localnodes import RENEW_EVERY_S, NodePlace, local_nodes, prepare_nodes
from cortex.controlplane.loop import Loop
from cortex.controlplane.merging import MergedLogs
from cortex.controlplane.needs import Needs
from cortex.controlplane.nodes import NodeUsage
from cortex.controlplane.peerdoors import PeerBook
from cortex.controlplane.probing import Probing
from cortex.controlplane.proving import Proving
from cortex.controlplane.rollback import Rollbacks
from cortex.controlplane.scaling import Scaling
from cortex.controlplane.secrets import CloudKeys, Secrets
from cortex.controlplane.statistics import Statistics
from cortex.controlplane.supervision import AgentSupervisor
from cortex.controlplane.supplying import Needed, Supplying, UnderWay, allowance_of
from cortex.controlplane.tokens import Tokens
from cortex.controlplane.upkeep import EVERY_S, FIRST_AFTER_S, SCRUB_EVERY_S, Upkeep
from cortex.controlplane.view import View, ingress_url
from cortex.controlplane.watching import Watching
from cortex.engines import machine
from cortex.engines.base import Engine
from cortex.engines.local import LocalEngine
from cortex.errors import CortexError
from cortex.ids import NodeId
from cortex.planning.assessment import Assessment
from cortex.planning.guarding import ToProve, to_prove
from cortex.planning.reach import lost_nodes
from cortex.planning.status import statuses
from cortex.planning.watching import LOOK_EVERY_S as WATCHED_EVERY_S
from cortex.processes import ControlPlaneRecord
from cortex.settings import OPERATOR_HOST, ControlLayout, NodeLayout, Settings, load_settings
from cortex.state.records import StateStore
from cortex.state.secrets import SecretStore
from cortex.state.sqlite import SqliteStateStore
from cortex.version import __version__
from cortex.wire.batching import Mode
from cortex.wire.build import BuildSpec
from cortex.wire.events import TellEvent
from cortex.wire.indexes import read_handed_over
from cortex.wire.launch import InspectReport
from cortex.wire.link import NEEDS, ORDERS
from cortex.wire.loads import NodeLoads
from cortex.wire.localnodes import LOCAL_NODE
from cortex.wire.membership import members_in
from cortex.wire.needs import DeliverCounts, FollowPeers, RenewCertificate

if TYPE_CHECKING:
    from cortex.controlplane.deploy import Deployer
    from cortex.controlplane.serving import SleepingServer

log = logging.getLogger(__name__)

PORT_PATIENCE_S = 10.0
"""Usually a fifth of a second: a Python that starts up, and sees that it is not needed."""
PORT_AGAIN_S = 0.05


def build(
    *,
    settings: Settings,
    layout: ControlLayout,
    nodes: Mapping[NodeId, NodeLayout],
    supervisors: Callable[[TellEvent], Mapping[NodeId, AgentSupervisor]],
    clock: Clock,
    state: StateStore,
    store: ArtifactStore,
    engine: Engine,
    in_charge: Callable[[], bool],
    shut_down: Callable[[], None],
    chores: Sequence[Chore] = (),
    elsewhere: Elsewhere | None = None,
) -> ControlPlane:
    """
    Put the control plane together.

    Args:
        nodes: where the files of this machine's nodes lie, that of the head first.
        supervisors: who looks after their agents.
        in_charge: whether this is still the one control plane of its home.
        shut_down: ends this process in order.
        chores: what else is done now and then.
        elsewhere: nodes of other machines; None: there are none.
    """
    head = next(iter(nodes), None)
    view = View()
    events = Events(file=layout.events_file, clock=clock)
    chronicle = Chronicle(tell=events.tell, clock=clock, version=__version__, pid=os.getpid())
    secret_store = SecretStore(layout.secrets)
    cloud_keys = CloudKeys(SecretStore(layout.cloud_keys), clock)
    under_way = UnderWay()
    models = Models(store=store, known=state.apis, cloud_file=layout.cloud_file, environ=os.environ)

    def read(loads: NodeLoads) -> None:
        scaling.take(loads)
        scaler.wake()

    def reported() -> None:
        if elsewhere is not None:
            elsewhere.take(agents.reports())
        loop.wake()
        peer_book.note()

    incarnations = Incarnations()
    agents = LinkedAgents(
        links=Links(
            path=layout.links_socket,
            wide=elsewhere.wide if elsewhere is not None else None,
            epoch=lambda: loop.epoch,
            incarnations=incarnations,
            ways={
                ORDERS: lambda connection, hello: agents.take_over(connection, hello),
                NEEDS: lambda connection, hello: needs.serve(connection, hello),
            },
        ),
        lines=Lines(incarnations),
        clock=clock,
        supervisors=supervisors(events.tell),
        known=elsewhere.known if elsewhere is not None else (),
        on_report=reported,
        on_loads=read,
    )
    errands = Errands(agents=agents, engine=engine, state=state, clock=clock, out=lambda: lost_nodes(agents.silent_s()))
    peer_book = PeerBook(agents.reports, lambda: {link.node for link in agents.nodes()})

    def where() -> str:
        return ingress_url(agents.reports(), settings, head)

    def inspect(
        build: BuildSpec, rows: Mode, left: threading.Event | None = None, *, keep: bool = False
    ) -> InspectReport:
        with under_way.needs(allowance_of([build])):
            return errands.inspect(build, settings.start_timeout_s, rows=rows, keep=keep, left=left)

    def settled() -> bool:
        return loop.latest is not None and loop.latest.seen.settled

    def missing_proofs() -> tuple[ToProve, ...]:
        latest = loop.latest
        return to_prove(latest.desired, latest.seen) if latest is not None and latest.seen.settled else ()

    stopping = threading.Event()
    proving = Chore(
        "proving", Proving(state=state, clock=clock, missing=missing_proofs, inspect=inspect).step, first_after_s=None
    )

    def changed() -> None:
        proving.wake()
        watching.wake()

    def show(assessment: Assessment) -> None:
        found = statuses(assessment, where())
        view.publish(tuple(found.values()))
        chronicle.take(assessment, found)

    loop = Loop(
        state=state,
        engine=engine,
        agents=agents,
        clock=clock,
        in_charge=in_charge,
        resign=shut_down,
        show=show,
        changed=changed,
        tell=events.tell,
    )
    supplying = Supplying(
        store=store,
        secrets=secret_store,
        cloud=SecretStore(layout.cloud_keys),
        indexes=partial(read_handed_over, layout.indexes_file),
        needed=Needed(state=state, engine=engine, under_way=under_way, settled=settled, stopping=stopping),
    )
    needs = Needs(
        {
            **supplying.handlers,
            DeliverCounts: lambda delivery, node: statistics.take(delivery, node),
            FollowPeers: peer_book.answer,
            **({RenewCertificate: elsewhere.certificate} if elsewhere is not None else {}),
        }
    )
    engine.follow(loop.wake)
    scaling = Scaling(
        state=state,
        engine=engine,
        clock=clock,
        latest=lambda: loop.latest,
        downscale_window_s=settings.downscale_window_s,
        changed=lambda: loop.wake(),
        tell=events.tell,
    )
    scaler = Chore("scaling", scaling.step, first_after_s=None, fault_pause_s=1.0)
    clearing = Housekeeping(
        state=state,
        secrets=secret_store,
        cloud=cloud_keys,
        sweep=agents.sweep_packages,
        forget_cloud=models.forget_cloud,
        clock=clock,
    )
    housekeeping = Chore("housekeeping", clearing.step, settle_s=SETTLING_S)
    upkeep = Upkeep(
        state=state,
        store=store,
        clock=clock,
        keep_bytes=settings.artifact_bytes,
        reports=agents.reports,
        stopping=stopping,
        tell=events.tell,
    )
    healing = Healing(
        store=store, known=state.apis, reports=agents.reports, fetch=models.again, stopping=stopping, tell=events.tell
    )
    statistics = Statistics(
        file=layout.stats_file,
        clock=clock,
        reports=agents.reports,
        wanted=lambda: (record.wanted.api for record in state.apis()),
    )

    usage = NodeUsage()

    def count() -> float:
        left_s = statistics.step()
        reports = agents.reports()
        chronicle.count(reports)
        usage.take(reports, now_s=clock.monotonic_s())
        return left_s

    def wanted_changed() -> None:
        loop.wake()
        housekeeping.wake()

    watching = Chore(
        "watching",
        Watching(state=state, counted=statistics, clock=clock, committed=wanted_changed, tell=events.tell).step,
        fault_pause_s=WATCHED_EVERY_S,
    )

    change_overs = ChangeOvers(
        state=state,
        store=store,
        clock=clock,
        ask=Probing,
        serves_alone=view.is_live,
        ingress_url=where,
        token=changeovers.token_in(layout.probe_token_file),
        committed=wanted_changed,
        tell=events.tell,
    )

    def make_deployer() -> Deployer:
        from cortex.controlplane.deploy import Deployer  # pydantic: see the module's docstring
        from cortex.controlplane.packages import Packages

        return Deployer(
            state=state,
            store=store,
            engine=engine,
            clock=clock,
            inspect=inspect,
            models=models,
            packages=Packages(
                store=store,
                node=errands,
                known=state.apis,
                indexes_file=layout.indexes_file,
                under_way=under_way,
            ),
            secrets=secret_store,
            cloud=cloud_keys,
            change_overs=change_overs,
            committed=wanted_changed,
            ingress_url=where,
            tell=events.tell,
            last_start_s=events.last_start_s,
        )

    return ControlPlane(
        settings=settings,
        clock=clock,
        state=state,
        store=store,
        engine=engine,
        agents=agents,
        loop=loop,
        view=view,
        statistics=statistics,
        scaling=scaling,
        secrets=Secrets(store=secret_store, known=state.apis, clock=clock, tell=events.tell),
        tokens=Tokens(file=layout.tokens_file, home=processes.kept_token(layout.token_file), clock=clock),
        audit=Audit(layout.audit, clock),
        cloud_keys=cloud_keys,
        models=models,
        make_deployer=make_deployer,
        change_overs=change_overs,
        rollbacks=Rollbacks(
            state=state,
            secrets=secret_store,
            clock=clock,
            committed=wanted_changed,
            ingress_url=where,
            tell=events.tell,
        ),
        events=events,
        usage=usage,
        homes={node: found.home for node, found in nodes.items()},
        read_logs=MergedLogs(lambda: {link.node: link.read_logs for link in agents.nodes()}, clock).read,
        ingress_url=where,
        wanted_changed=wanted_changed,
        parts=(
            Chore("statistics", count),
            Chore("garbage collection", upkeep.collect, first_after_s=FIRST_AFTER_S, fault_pause_s=EVERY_S),
            Chore("scrub", upkeep.scrub, first_after_s=EVERY_S, fault_pause_s=SCRUB_EVERY_S, stopping=stopping),
            Chore("healing", healing.look, first_after_s=LOOK_EVERY_S, stopping=stopping),
            housekeeping,
            proving,
            scaler,
            watching,
            *chores,
        ),
        shut_down=shut_down,
    )


def main() -> int:
    """Run the control plane until it is told to end. Returns an exit code."""
    settings = load_settings(os.environ)
    layout = ControlLayout(settings.home)
    clock = SystemClock()
    try:
        layout.prepare()
        lock = processes.hold_for_life(layout.controlplane_lock)
        if lock is None:
            sys.stderr.write("a control plane already runs on this home\n")
            return 0
        _log_to_file(layout)
        setproctitle.setproctitle(f"cortex-controlplane {settings.home}")
        tokens = (layout.token_file, layout.metrics_token_file, layout.probe_token_file)
        for file in (layout.controlplane_file, *tokens):
            processes.remove_unfinished(layout.home, file.name)
        bound = handed_over(sys.argv)
        with bound.pop(settings.operator_port, None) or operator_socket(settings.operator_port, clock) as sock:
            return _serve(settings, layout, clock, sock, tuple(bound.values()), lock)
    except (CortexError, OSError) as error:
        log.exception("the control plane could not start")
        hint = error.hint if isinstance(error, CortexError) else ""
        sys.stderr.write(f"{error}\nhint: {hint}\n" if hint else f"{error}\n")  # shown by whoever started us
        return 1


def operator_socket(
    port: int, clock: Clock, *, host: str = OPERATOR_HOST, patience_s: float = PORT_PATIENCE_S
) -> socket.socket:
    """
    Bind a port of the control plane, which somebody may be about to let go.

    Where one has died, two may start another at once: the agent, and a command. The command's has the port, and ends
    when it finds that we hold the home.

    Raises:
        OSError: it cannot be bound, or was still in use after `patience_s`.
    """
    until_s = clock.monotonic_s() + patience_s
    while True:
        try:
            return bind_tcp(host, port)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or clock.monotonic_s() >= until_s:
                raise
        time.sleep(PORT_AGAIN_S)


def _serve(
    settings: Settings,
    layout: ControlLayout,
    clock: Clock,
    sock: socket.socket,
    bound: tuple[socket.socket, ...],
    lock: int,
) -> int:
    store = ArtifactStore(layout.artifacts)
    state = SqliteStateStore(layout.state_file, sample_stored=partial(samples.put_body, store))
    members = members_in(layout.members_file)
    places: tuple[NodePlace, ...] = ()
    elsewhere: Elsewhere | None = None
    if members is None:
        places = local_nodes(settings, layout, machine.node_report(LOCAL_NODE, environ=os.environ))
    else:
        listener = operator_socket(members.port, clock, host=members.bind)
        elsewhere = Elsewhere(layout, members, listener, clock)
    engine = elsewhere.engine if elsewhere is not None else LocalEngine(*(place.room for place in places))
    is_alone = elsewhere is None and all(place.membership is None for place in places)
    doors = {taken: place for taken in bound for place in places if taken.getsockname()[1] in place.ports}
    for taken in set(bound) - doors.keys():
        taken.close()  # nobody of this machine answers there
    server: SleepingServer | None = None
    ended = threading.Event()

    def shut_down() -> None:
        ended.set()
        plane.answer_waiting()
        if server is not None:
            server.end()

    def renew() -> float:
        prepare_nodes(layout, places, now_wall_s=clock.wall_s())
        if elsewhere is not None:
            elsewhere.renew()
        return RENEW_EVERY_S

    plane = build(
        settings=settings,
        layout=layout,
        nodes={place.node: place.layout for place in places},
        supervisors=lambda tell: {
            place.node: AgentSupervisor(
                settings=place.settings,
                layout=place.layout,
                down_mark=layout.down_mark,
                clock=clock,
                bound=[taken for taken, whose in doors.items() if whose is place],
                is_member=place.membership is not None,
                tell=tell,
            )
            for place in places
        },
        clock=clock,
        state=state,
        store=store,
        engine=engine,
        in_charge=lambda: processes.is_same_file(lock, layout.controlplane_lock),
        shut_down=shut_down,
        chores=[Chore("certificates", renew, first_after_s=RENEW_EVERY_S)] if not is_alone else (),
        elsewhere=elsewhere,
    )
    # Also while uvicorn is not there yet; and once it has ended it raises the signal again that it was ended by.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: shut_down())
    # Before the record: whoever finds that goes on to read the token.
    metrics_token = processes.kept_token(layout.metrics_token_file)
    processes.kept_token(layout.probe_token_file)  # before there is an agent, which would make another
    if not is_alone:
        prepare_nodes(layout, places, now_wall_s=clock.wall_s())
    _write_record(settings, layout)
    plane.start()
    try:
        from cortex.controlplane.api.application import build_app
        from cortex.controlplane.serving import SleepingServer

        server = SleepingServer(build_app(plane, metrics_token), timeout_graceful_shutdown_s=5)
        log.info("control plane %s on port %s", __version__, settings.operator_port)
        if not ended.is_set():
            server.run(sockets=[sock])
    finally:
        plane.close()
        state.close()
        if plane.stopped:
            # Otherwise it stays: the agent starts us again.
            layout.controlplane_file.unlink(missing_ok=True)
    log.info("the control plane has ended")
    return 0


def _write_record(settings: Settings, layout: ControlLayout) -> None:
    identity = processes.own_identity()
    processes.write_identity(
        layout.controlplane_file,
        ControlPlaneRecord(
            pid=identity.pid,
            start_ticks=identity.start_ticks,
            boot_id=identity.boot_id,
            operator_port=settings.operator_port,
            host=settings.host,
            port=settings.port,
            version=__version__,
            environment=settings.environment,
        ),
    )


def _log_to_file(layout: ControlLayout) -> None:
    handler = logging.handlers.RotatingFileHandler(layout.logs / "controlplane.log", maxBytes=10 * 2**20, backupCount=3)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
