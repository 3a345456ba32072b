"""
The control plane's process: everything is built here and passed in by keyword.

The loop is a handful of lines: wait for something to happen or for time to matter, then one `tick`. The API runs on
uvicorn's loop, deploys in threads; both only change the stored state and wake the loop.

After a crash, dead replicas wait for the loop: it starts before FastAPI, uvicorn and pydantic are imported, which takes
longer than everything else together.
"""

from __future__ import annotations

import asyncio
import logging
import logging.handlers
import os
import secrets
import signal
import socket
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import setproctitle

from cortex import processes
from cortex.artifacts.store import ArtifactStore
from cortex.clock import Clock, SystemClock, until_beat_s
from cortex.controlplane import statuses
from cortex.controlplane.agents import LocalAgent
from cortex.controlplane.fetching import Models
from cortex.controlplane.healing import Healing
from cortex.controlplane.housekeeping import Housekeeping
from cortex.controlplane.observe import look
from cortex.controlplane.proving import Proving
from cortex.controlplane.secrets import CloudKeys, Secrets
from cortex.controlplane.statistics import Statistics
from cortex.controlplane.tick import StaleEpoch, World, tick
from cortex.controlplane.upkeep import Upkeep
from cortex.controlplane.versions import revisions_of_version
from cortex.controlplane.view import View
from cortex.engines import machine
from cortex.engines.base import Engine
from cortex.engines.local import LocalEngine
from cortex.errors import CortexError
from cortex.ids import ApiKey, DeploymentName, NodeId, api_key, short
from cortex.metrics.exposition import Observed, PlannerCounts, exposition
from cortex.planning.actions import OrderNode, Plan
from cortex.planning.guarding import ToProve, to_prove
from cortex.processes import ControlPlaneRecord
from cortex.settings import HomeLayout, Settings, load_settings
from cortex.state.base import StateStore
from cortex.state.secrets import SecretStore
from cortex.state.sqlite import SqliteStateStore
from cortex.version import __version__
from cortex.wire.agent import LogLines, ReadLogs
from cortex.wire.batching import Mode
from cortex.wire.build import BuildSpec
from cortex.wire.launch import InspectReport
from cortex.wire.operator import (
    ApiStatus,
    ChangeKind,
    DeploymentStatus,
    DeployProgress,
    DeployRequest,
    DeployResult,
    HistoryLine,
    Info,
    Removed,
    StopRequest,
    Watched,
)

if TYPE_CHECKING:
    from cortex.controlplane.deploy import Deployer
    from cortex.controlplane.serving import SleepingServer

log = logging.getLogger(__name__)

LOCAL_NODE = NodeId("local")
LONGEST_WAIT_S = 5.0
"""Even if nothing happens, the world is looked at this often."""
FAULT_PAUSE_S = 1.0
"""After a tick that failed through a fault of ours, before the next."""


class ControlPlane:
    """
    What the API calls, and the loop that keeps the world as it is wanted. Implements `api.Operator`.

    Args:
        in_charge: whether this is still the one control plane of its home.
        shut_down: ends this process in order.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        layout: HomeLayout,
        clock: Clock,
        state: StateStore,
        store: ArtifactStore,
        engine: Engine,
        in_charge: Callable[[], bool],
        shut_down: Callable[[], None],
    ) -> None:
        self.store = store
        self.stopped = False
        """It was told to end everything, and did."""
        self._settings = settings
        self._layout = layout
        self._clock = clock
        self._state = state
        self._engine = engine
        self._in_charge = in_charge
        self._shut_down = shut_down
        self._view = View()
        self._publishing = threading.Lock()
        self._planner_counts = PlannerCounts()
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._started_wall_s = clock.wall_s()
        self._agent = LocalAgent(settings=settings, layout=layout, clock=clock, on_report=self._wake.set)
        self._statistics = Statistics(
            folder=layout.stats,
            file=layout.stats_file,
            clock=clock,
            reports=self._agent.reports,
            wanted=lambda: (record.wanted.api for record in state.apis()),
        )
        self._upkeep = Upkeep(
            state=state,
            store=store,
            clock=clock,
            keep_bytes=settings.artifact_bytes,
            reports=self._agent.reports,
        )
        self._secret_store = SecretStore(layout.secrets)
        self._cloud_keys = CloudKeys(SecretStore(layout.cloud_keys), clock)
        self.secrets = Secrets(store=self._secret_store, known=state.apis, clock=clock)
        self._models = Models(store=store, known=state.apis, cloud_file=layout.cloud_file, environ=os.environ)
        self._healing = Healing(store=store, known=state.apis, reports=self._agent.reports, fetch=self._models.again)
        self._housekeeping = Housekeeping(
            state=state,
            secrets=self._secret_store,
            cloud=self._cloud_keys,
            sweep=self._agent.sweep_environments,
            forget_cloud=self._models.forget_cloud,
            clock=clock,
        )
        self._proving = Proving(state=state, clock=clock, missing=self._to_prove, inspect=self._inspect)
        self._considered: object = None
        """The situation in which the last look for models to prove was asked for."""
        self._epoch = state.take_epoch()
        self._world = self._new_world()
        self._loop = threading.Thread(target=self._run, name="control-loop", daemon=True)

    def start(self) -> None:
        self._agent.start()
        self._loop.start()
        self._statistics.start()
        self._upkeep.start()
        self._housekeeping.start()
        self._healing.start()
        self._proving.start()

    def close(self) -> None:
        """Stop looking after the world. What runs goes on running."""
        self._stopping.set()
        self._wake.set()
        self._upkeep.close()
        self._housekeeping.close()
        self._healing.close()
        self._proving.close()
        self._agent.close()
        self._loop.join(timeout=5.0)
        self._statistics.close()

    # ---- the loop -----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        wait_s = 0.0
        while not self._stopping.is_set():
            self._wake.wait(wait_s)
            self._wake.clear()
            if self._stopping.is_set():
                return
            begun_s = self._clock.monotonic_s()
            try:
                if not self._in_charge():
                    log.error("the home %s is gone or is another one now: this control plane ends", self._layout.home)
                    self._shut_down()
                    return
                plan = tick(self._world)
                self._publish(self._world)
                if self._world.memory.planned_for != self._considered:
                    self._considered = self._world.memory.planned_for
                    self._proving.wake()
                self._count_tick(plan, begun_s)
                wait_s = until_beat_s(self._clock.monotonic_s(), LONGEST_WAIT_S)
                if plan.wake_after_s is not None:
                    wait_s = min(wait_s, plan.wake_after_s)
            except StaleEpoch as error:
                wait_s = self._overtake(error)
            except Exception:
                log.exception("a tick failed through a fault of ours")
                counts = self._planner_counts
                self._planner_counts = msgspec.structs.replace(counts, failed_ticks=counts.failed_ticks + 1)
                self._stopping.wait(FAULT_PAUSE_S)
                wait_s = 0.0

    def _overtake(self, error: StaleEpoch) -> float:
        """
        The agent has heard of a later epoch than ours, and yet nobody else can be in charge while we hold the home.

        So the state is an older one, or a new one: moved away and made again, or restored from a backup.

        Returns:
            When to try again, in seconds.
        """
        latest = max((report.epoch for report in self._agent.reports()), default=0)
        log.warning("%s: the state must have been replaced; going on from epoch %s", error, latest)
        try:
            if latest >= self._epoch:
                self._state.set_meta("epoch", str(latest))
            self._epoch = self._state.take_epoch()
        except CortexError as problem:
            log.error("no later epoch could be taken: %s", problem)
            return FAULT_PAUSE_S
        self._world = self._new_world()
        return 0.0

    def _count_tick(self, plan: Plan, begun_s: float) -> None:
        counts = self._planner_counts
        actions = Counter(counts.actions)
        actions.update(type(a.order if isinstance(a, OrderNode) else a).__name__ for a in plan.actions)
        self._planner_counts = msgspec.structs.replace(
            counts,
            ticks=counts.ticks + 1,
            tick_s=counts.tick_s + self._clock.monotonic_s() - begun_s,
            last_tick_wall_s=self._clock.wall_s(),
            actions=dict(actions),
        )

    def _publish(self, world: World) -> None:
        """Look and show as one step, so that an older look never replaces a newer one."""
        with self._publishing:
            self._view.publish(statuses.current(world, self._ingress_url()))

    def _new_world(self) -> World:
        """What one thread works on; the loop keeps one, others make one for a single look."""
        return World(state=self._state, engine=self._engine, agents=self._agent, clock=self._clock, epoch=self._epoch)

    def _inspect(
        self, build: BuildSpec, rows: Mode, left: threading.Event | None = None, *, keep: bool = False
    ) -> InspectReport:
        return self._agent.inspect(build, self._settings.start_timeout_s, rows=rows, keep=keep, left=left)

    def _to_prove(self) -> tuple[ToProve, ...]:
        observation = look(self._new_world())
        return to_prove(observation.desired, observation.seen) if observation.seen.settled else ()

    def _ingress_url(self) -> str:
        for report in self._agent.reports():
            if report.ingress is not None:
                host = report.ingress.host
                shown = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)
                return f"http://{f'[{shown}]' if ':' in shown else shown}:{report.ingress.port}"
        return f"http://{self._settings.host}:{self._settings.port}"

    @property
    def stopping(self) -> bool:
        return self._stopping.is_set()

    # ---- api.Operator -------------------------------------------------------------------------------------------

    def info(self) -> Info:
        report = next(iter(self._agent.reports()), None)
        node = next(iter(self._engine.nodes()), None)
        ingress = report.ingress if report else None
        problem = ingress.problem.message if ingress and ingress.problem else None
        return Info(
            version=__version__,
            environment=self._settings.environment,
            home=str(self._settings.home),
            operator=f"http://127.0.0.1:{self._settings.operator_port}",
            ingress=self._ingress_url(),
            pid=os.getpid(),
            started=statuses.rfc3339(self._started_wall_s),
            agent_pid=report.pid if report else None,
            ingress_pid=ingress.pid if ingress else None,
            ingress_up=bool(ingress and ingress.up),
            cpu_millis=node.cpu_millis if node else 0,
            mem_bytes=node.mem_bytes if node else 0,
            gpus=node.gpus if node else 0,
            requested_cpu_millis=node.requested_cpu_millis if node else 0,
            requested_mem_bytes=node.requested_mem_bytes if node else 0,
            requested_gpus=node.requested_gpus if node else 0,
            apis=len(self._state.apis()),
            replicas=len(report.replicas) if report else 0,
            notes=(problem,) if problem else (),
        )

    @cached_property
    def _deployer(self) -> Deployer:
        from cortex.controlplane.deploy import Deployer  # pydantic: see the module's docstring
        from cortex.controlplane.packages import Packages

        return Deployer(
            settings=self._settings,
            state=self._state,
            store=self.store,
            engine=self._engine,
            clock=self._clock,
            inspect=self._inspect,
            models=self._models,
            packages=Packages(
                store=self.store, node=self._agent, known=self._state.apis, indexes_file=self._layout.indexes_file
            ),
            secrets=self._secret_store,
            cloud=self._cloud_keys,
            committed=self._wanted_changed,
            ingress_url=self._ingress_url,
        )

    def _wanted_changed(self) -> None:
        self._wake.set()
        self._housekeeping.wake()

    def deploy(
        self,
        name: str,
        request: DeployRequest,
        emit: Callable[[DeployProgress], None],
        left: threading.Event | None = None,
    ) -> DeployResult:
        result = self._deployer.deploy(name, request, emit, left)
        if result.committed:
            # Readers must see the deploy from now on, even before the next tick.
            self._publish(self._new_world())
            removed = [change.api for change in result.changes if change.kind is ChangeKind.REMOVED]
            self._forget(api_key(DeploymentName(name), api) for api in removed)
        return result

    def _forget(self, apis: Iterable[ApiKey]) -> None:
        """What apis that are gone have left: one of that name is another one, and begins at 0."""
        gone = tuple(apis)
        if gone:
            self._collect_now()
            self._statistics.forget(gone)
            try:
                self._cloud_keys.forget(gone)
                self._models.forget_cloud()
            except (CortexError, OSError) as error:
                log.warning("credentials of removed apis could not be removed: %s", error)

    def _collect_now(self) -> None:
        """Readers see what was answered before they asked."""
        self._agent.count_now()
        self._statistics.collect()

    def delete(self, deployment: DeploymentName, api: ApiKey | None) -> Removed | None:
        gone = [r.wanted.api for r in self._state.apis(deployment) if api is None or r.wanted.api == api]
        if not self._state.delete(deployment, api):
            return None
        self._forget(gone)
        self._publish(self._new_world())
        self._wanted_changed()
        return Removed(apis=tuple(gone))

    def deployments(self) -> tuple[DeploymentStatus, ...]:
        return statuses.deployments(self._state.deployments(), self._view.statuses())

    def apis(self, deployment: str | None) -> tuple[ApiStatus, ...]:
        self._collect_now()
        return self._counted(self._view.statuses(deployment))

    def _counted(self, found: tuple[ApiStatus, ...]) -> tuple[ApiStatus, ...]:
        """With the requests of each api's wanted version."""
        versions = {record.wanted.api: record.wanted.build.version for record in self._state.apis()}
        keyed = ((api_key(status.deployment, status.name), status) for status in found)
        return tuple(
            self._statistics.with_requests(status, versions[key]) if key in versions else status
            for key, status in keyed
        )

    def metrics(self) -> str:
        """The page that Prometheus scrapes."""
        self._statistics.collect()
        return exposition(
            Observed(
                version=__version__,
                apis=self._view.statuses(),
                lifetimes=self._statistics.lifetimes(),
                disagreements=Counter(stop.api for record in self._state.batching() for stop in record.stops),
                agents=self._agent.reports(),
                planner=self._planner_counts,
                fetched=self._models.counts,
            )
        )

    def api(self, deployment: str, name: str) -> ApiStatus | None:
        status = self._view.status(deployment, name)
        record = self._state.api(ApiKey(f"{deployment}/{name}"))
        if status is None or record is None:
            return status
        self._collect_now()
        build = record.wanted.build
        status = self._statistics.with_everything(status, build.version, build.tracker)
        return msgspec.structs.replace(status, spec=record.spec, signature=record.inspection.signature)

    async def watch(self, token: str, timeout_s: float, deployment: str | None) -> Watched:
        seen = await self._view.changed(token, timeout_s, deployment)
        return msgspec.structs.replace(seen, apis=await asyncio.to_thread(self._counted, seen.apis))

    def revisions(self, api: ApiKey, version: str) -> tuple[str, ...]:
        """
        Whose replicas are of a version of an api, 8 digits each; none if there is no such version.

        Args:
            version: its first digits, or `CURRENT`: what is wanted, and what serves until that is live.
        """
        record = self._state.api(api)
        if record is None:
            return ()
        return tuple(sorted(revisions_of_version(record, self._state.history(api), version)))

    def logs(self, request: ReadLogs) -> LogLines:
        return self._agent.read_logs(request)

    def history(self, api: ApiKey) -> tuple[HistoryLine, ...]:
        return tuple(
            HistoryLine(
                version=short(line.version),
                deployed=statuses.rfc3339(line.deployed_wall_s),
                cause=line.cause,
                outcome=line.outcome,
            )
            for line in self._state.history(api)
        )

    def stop(self, request: StopRequest) -> Info:
        """
        Stop everything, in this order: no new decisions; replicas drained, ingress and launchers ended, agent gone;
        then this process, after it has answered.
        """
        info = self.info()
        self._stopping.set()
        self._wake.set()
        self._loop.join(timeout=10.0)
        self._agent.stop_agent(request.drain_timeout_s)
        self.stopped = True
        self._shut_down()
        return info


def main() -> int:
    """Run the control plane until it is told to end. Returns an exit code."""
    settings = load_settings(os.environ)
    layout = HomeLayout(settings.home)
    clock = SystemClock()
    try:
        layout.prepare()
        lock = processes.hold_for_life(layout.controlplane_lock)
        if lock is None:
            sys.stderr.write("a control plane already runs on this home\n")
            return 0
        _log_to_file(layout)
        setproctitle.setproctitle(f"cortex-controlplane {settings.home}")
        for file in (layout.controlplane_file, layout.token_file, layout.metrics_token_file):
            processes.remove_unfinished(layout.home, file.name)
        sock = _bind(settings)
        return _serve(settings, layout, clock, sock, lock)
    except (CortexError, OSError) as error:
        log.exception("the control plane could not start")
        hint = getattr(error, "hint", "")  # whoever started us shows it: there is no other place to say it
        sys.stderr.write(f"{error}\nhint: {hint}\n" if hint else f"{error}\n")
        return 1


def _serve(settings: Settings, layout: HomeLayout, clock: Clock, sock: socket.socket, lock: int) -> int:
    state = SqliteStateStore(layout.state_file)
    store = ArtifactStore(layout.artifacts)
    node = machine.node_report(LOCAL_NODE, environ=os.environ)
    server: SleepingServer | None = None
    ended = threading.Event()

    def shut_down() -> None:
        ended.set()
        if server is not None:
            server.end()

    plane = ControlPlane(
        settings=settings,
        layout=layout,
        clock=clock,
        state=state,
        store=store,
        engine=LocalEngine(node),
        in_charge=lambda: processes.is_same_file(lock, layout.controlplane_lock),
        shut_down=shut_down,
    )
    # Also while uvicorn is not there yet; and once it has ended it raises the signal again that it was ended by.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: shut_down())
    # Before the record: whoever finds that goes on to read the token.
    token, metrics_token = _token(layout.token_file), _token(layout.metrics_token_file)
    _write_record(settings, layout)
    plane.start()
    try:
        from cortex.controlplane.api import build_app
        from cortex.controlplane.serving import SleepingServer

        server = SleepingServer(build_app(plane, token, metrics_token), timeout_graceful_shutdown_s=5)
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


def _bind(settings: Settings) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", settings.operator_port))
    sock.listen(128)
    return sock


def _token(file: Path) -> str:
    """The token in a file; made once, mode 0600."""
    try:
        token = file.read_text().strip()
        if token:
            return token
    except FileNotFoundError:
        pass
    token = secrets.token_urlsafe(32)
    processes.write_whole(file, token.encode())
    return token


def _write_record(settings: Settings, layout: HomeLayout) -> None:
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


def _log_to_file(layout: HomeLayout) -> None:
    handler = logging.handlers.RotatingFileHandler(layout.logs / "controlplane.log", maxBytes=10 * 2**20, backupCount=3)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
