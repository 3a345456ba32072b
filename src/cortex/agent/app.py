"""
The agent's process: everything is built here and passed in by keyword.

What must survive our own death is on disk (`node/`): replicas, launchers, routes, the highest epoch. After a restart
it is all found again before the first order is taken.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import logging.handlers
import os
import resource
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path

import msgspec
import psutil
import setproctitle

from cortex import processes
from cortex.agent import logs, rotation, server
from cortex.agent.environments import Environments
from cortex.agent.installer import Installer, Tell
from cortex.agent.kept import Kept, KeptInspections
from cortex.agent.launchers import Launcher, LauncherLost, Launchers
from cortex.agent.lives import Lives
from cortex.agent.logs import LogReader
from cortex.agent.provisions import Provisions
from cortex.agent.refusals import RefusalLog
from cortex.agent.replicas import Replicas
from cortex.agent.safekeeping import Safekeeping
from cortex.agent.specs import replica_spec
from cortex.agent.strays import Strays
from cortex.artifacts.store import ArtifactStore
from cortex.backoff import Backoff
from cortex.clock import Clock, SystemClock, until_beat_s
from cortex.engines import machine
from cortex.errors import CortexError, Problem
from cortex.ids import ApiKey, DeviceId, NodeId, replica_id
from cortex.ingress.handover import ListenAddress
from cortex.ingress.supervisor import Ingress
from cortex.processes import ControlPlaneRecord, ProcessIdentity
from cortex.settings import HomeLayout, Settings, environment_of, load_settings
from cortex.state.secrets import SecretStore
from cortex.wire.agent import InspectBuild, LogLines, PrepareEnvironment, ReadLogs, ResolvePackages
from cortex.wire.batching import Mode
from cortex.wire.build import BuildSpec
from cortex.wire.framing import UNREADABLE
from cortex.wire.indexes import read_handed_over
from cortex.wire.launch import ENDING_S, InspectReport, ReplicaSpec
from cortex.wire.orders import (
    DrainReplica,
    ForgetReplica,
    Order,
    Orders,
    RemoveRoute,
    SetReplicaBatching,
    SetRoute,
    StartReplica,
)
from cortex.wire.packages import PackageLock
from cortex.wire.reports import AgentReport, IngressRefusals, IngressReport
from cortex.wire.secrecy import confidential, problem_without, to_mask

log = logging.getLogger(__name__)

LOCAL_NODE = NodeId("local")
HOUSEKEEPING_S = 2.0
"""How soon a keeper or launcher that died is missed. Looks are most of what an idle node does."""
STRAYS_S = 60.0
"""How often processes are looked for that a replica left behind; as each replica ends they are, too."""
LOG_POLL_S = 0.2
COUNT_PATIENCE_S = 0.15
"""How long a reader's question is held up by replicas that do not say that they have counted."""
LOG_CLEANING_S = 300.0
RAW_OUTPUT_S = 2.0
"""How often output past Python is looked at: a disk fills quickly."""
LEFT_OUTPUT_S = 10.0
"""The same for that of replicas that are gone, whose subprocesses may go on: a whole folder has to be read for it."""
INSPECT_TRIES = 3
"""A launcher that dies over an inspection says nothing about what was inspected."""
RETRY_S = 0.2
LONGEST_RETRY_S = 5.0
HOME_GONE_LOOKS = 3
"""Looks in a row at a home that is not ours any more, until we believe it."""
DRAIN_WITHOUT_HOME_S = 30.0
MOST_OPEN_FILES = 2**16
"""Thousands of replicas; more only slows down programs that close every number there could be."""


class Remembered(msgspec.Struct, kw_only=True):
    """`node/agent-state.json`: what no replica can tell us after a restart."""

    epoch: int = 0
    routes: list[SetRoute] = []


class Agent:
    """Orders in, reports out. Implements `server.Service`."""

    def __init__(
        self,
        *,
        settings: Settings,
        layout: HomeLayout,
        clock: Clock,
        store: ArtifactStore,
        ingress: Ingress,
        lock: int,
    ) -> None:
        self._settings = settings
        self._layout = layout
        self._clock = clock
        self._ingress = ingress
        self._lock = lock
        self._node = machine.node_report(LOCAL_NODE, environ=os.environ)
        self._agent_id = secrets.token_hex(8)
        self._started_wall_s = clock.wall_s()
        self._serial = 0
        self._changed = asyncio.Event()
        self._routes_changed = asyncio.Event()
        self._remembered = Remembered()
        self._logs = LogReader(layout.replica_logs)
        self._stop_asked: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._control_plane_restarts = processes.RestartBudget()
        self._control_plane: subprocess.Popen[bytes] | None = None
        """The one that we started last."""
        self._control_plane_fd: int | None = None
        """A pidfd, while one runs that we know of."""
        self._control_plane_pulse: processes.Pulse | None = None
        self._listening: asyncio.Server | None = None
        self._listening_inode = 0
        self._homeless_looks = 0
        self._door_closed = False
        self._unwritten = False
        self._ingress_problem: Problem | None = None
        self._applied_routes: tuple[SetRoute, ...] = ()
        self._refusals: tuple[IngressRefusals, ...] = ()
        self._refusal_log = RefusalLog(layout.replica_logs, clock)
        self.environments = Environments(
            settings=settings,
            layout=layout,
            store=store,
            clock=clock,
            installer=Installer(os.environ, handed_over=partial(read_handed_over, layout.indexes_file)),
        )
        self._provisions = Provisions(
            store=store,
            environments=self.environments,
            secrets=SecretStore(layout.secrets),
            cloud=SecretStore(layout.cloud_keys),
        )
        self._strays = Strays(self._is_own)
        launchers = Launchers(
            python=self._provisions.python,
            settings=settings,
            layout=layout,
            clock=clock,
            on_child_exited=lambda message: lives.child_exited(message),
        )
        safekeeping = Safekeeping(layout)
        self._kept = KeptInspections()
        lives = Lives(
            settings=settings,
            layout=layout,
            clock=clock,
            provisions=self._provisions,
            launchers=launchers,
            kept=self._kept,
            safekeeping=safekeeping,
            settle_routes=self._settle_routes,
            quiesced=self._quiesced,
            abandon=self._abandon,
            end_strays=self._strays.end,
            on_change=self.note_change,
        )
        self.replicas = Replicas(
            settings=settings,
            layout=layout,
            clock=clock,
            lives=lives,
            launchers=launchers,
            safekeeping=safekeeping,
        )

    async def run(self) -> None:
        """Take over what runs, then serve until told to stop."""
        self._recall()
        strays = self.environments.adopt()
        await self.replicas.adopt()
        await self._strays.end()
        await self._start_ingress()
        health_s = self._settings.health_interval_s
        launchers, safekeeping = self.replicas.launchers, self.replicas.safekeeping
        works = (
            self._keep(self._sync_ingress_once, wait=self._routes_changed),
            self._every(health_s, self.replicas.check_health),
            self._every(health_s, self._count_refusals),
            # One loop each: what takes long for one must not keep the others waiting.
            self._every(HOUSEKEEPING_S, self._keep_house),
            self._every(HOUSEKEEPING_S, self._keep_ingress),
            self._every(HOUSEKEEPING_S, safekeeping.keep),
            self._every(HOUSEKEEPING_S, lambda: launchers.keep(self.replicas.launcher_keys())),
            self._every(STRAYS_S, self._strays.end),
            self._every(LOG_CLEANING_S, self._clean_logs),
            self._every(RAW_OUTPUT_S, self._bound_raw_output),
            self._every(LEFT_OUTPUT_S, self._bound_left_output),
            self._prestart(),
            self.environments.clear_away(strays),
        )
        background = [asyncio.ensure_future(work) for work in works]
        self._routes_changed.set()
        await self._listen()
        log.info("agent %s ready, %s replicas adopted", self._agent_id, len(self.replicas.reports()))
        drain_timeout_s = await self._stop_asked
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        if drain_timeout_s < 0:
            log.info("the agent ends; what it looks after goes on")
            await self._ingress.detach()
            await self.environments.close()
        else:
            await self._stop_everything(drain_timeout_s)
        if self._listening is not None:
            self._listening.close()

    # ---- server.Service -----------------------------------------------------------------------------------------

    def take_orders(self, orders: Orders) -> AgentReport:
        if self._stop_asked.done():
            raise server.Ending
        if orders.epoch < self._remembered.epoch:
            raise server.StaleEpoch(f"orders of epoch {orders.epoch}, but epoch {self._remembered.epoch} is in charge")
        self._remembered.epoch = orders.epoch
        try:
            # One that fails ends the batch: what comes later may take away what it was to replace.
            for order in orders.orders:
                self._take(order)
        finally:
            self._remember()
        return self.report()

    def _take(self, order: Order) -> None:
        match order:
            case StartReplica():
                self.replicas.start(order)
            case SetReplicaBatching(replica=replica, batches=batches):
                self.replicas.set_batching(replica, batches)
            case DrainReplica(replica=replica, timeout_s=timeout_s):
                self.replicas.drain(replica, timeout_s)
            case ForgetReplica(replica=replica):
                self.replicas.forget(replica)
            case SetRoute():
                routes = [route for route in self._remembered.routes if route.api != order.api]
                self._remembered.routes = [*routes, order]
                self.note_change()
            case RemoveRoute(api=api):
                self._remembered.routes = [route for route in self._remembered.routes if route.api != api]
                self.note_change()

    async def observe(self, agent: str, serial: int, timeout_s: float) -> AgentReport:
        if (agent, serial) == (self._agent_id, self._serial):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    while (agent, serial) == (self._agent_id, self._serial):
                        self._changed.clear()
                        await self._changed.wait()
        return self.report()

    async def inspect(self, request: InspectBuild) -> InspectReport:
        if self._stop_asked.done():
            raise server.Ending
        build = request.build
        order = StartReplica(
            replica=replica_id(build.api, build.revision, 0),  # what is kept becomes the first one
            attempt=0,
            build=build,
            devices=self._devices_to_inspect_on(build),
        )
        self._kept.end(build.api)
        scratch = self._layout.scratch / f"inspection-{secrets.token_hex(8)}"
        is_kept = False
        try:
            provided = await self._provisions.provide(build)
            spec = msgspec.structs.replace(
                replica_spec(order, provided, settings=self._settings, layout=self._layout),
                start_timeout_s=request.timeout_s,
                log_path="",
                stats_path="",
                scratch=str(scratch),
            )
            launcher = self.replicas.launchers.get(build.runtime, build.env, build.environment)
            keep = request.keep and not order.devices  # which others may be waiting for
            report = await self._inspected(launcher, spec, provided.secrets, request.rows, keep=keep)
            if report.kept:
                self._kept.add(Kept(report.kept, launcher, spec, provided.secrets))
                is_kept = True
            return _masked(msgspec.structs.replace(report, kept="", rows_left=False), provided.secrets)
        except CortexError as error:
            return InspectReport(problems=(error.problem(),))
        except TimeoutError:
            return InspectReport(
                problems=(
                    Problem(
                        reference="inspection-timeout",
                        message=f"model and handler could not be checked within {request.timeout_s:.0f} s",
                    ),
                )
            )
        except OSError as error:
            message = f"this machine cannot check models and handlers now: {error}"
            return InspectReport(problems=(Problem(reference="node-fault", message=message),))
        finally:
            if not is_kept:
                await asyncio.to_thread(shutil.rmtree, scratch, ignore_errors=True)

    def _devices_to_inspect_on(self, build: BuildSpec) -> tuple[DeviceId, ...]:
        """As many GPUs as its replicas get: those that no replica holds, others only when these are too few."""
        held = {device for life in self.replicas.lives.values() for device in life.order.devices}
        return tuple(sorted(self._node.devices, key=held.__contains__)[: build.resources.gpus])

    async def _inspected(
        self, launcher: Launcher, spec: ReplicaSpec, values: Mapping[str, str], rows: Mode, *, keep: bool
    ) -> InspectReport:
        report = await self._looked(launcher, spec, values, rows, keep=keep)
        if not report.rows_left:
            return report
        alone = _model_alone(spec, with_sample=not report.has_pre)
        try:
            of_rows = await self._looked(launcher, alone, {}, rows, keep=False)
        except BaseException:
            launcher.call_off(report.kept)
            raise
        if of_rows.problems:
            launcher.call_off(report.kept)
            report = msgspec.structs.replace(report, kept="")
        problems = (*report.problems, *of_rows.problems)
        return msgspec.structs.replace(report, problems=problems, batching=of_rows.batching or report.batching)

    async def _looked(
        self, launcher: Launcher, spec: ReplicaSpec, values: Mapping[str, str], rows: Mode, *, keep: bool
    ) -> InspectReport:
        for tries_left in reversed(range(INSPECT_TRIES)):
            try:
                async with asyncio.timeout(spec.start_timeout_s + 10.0):
                    return await launcher.inspect(
                        spec,
                        values,
                        model=True,
                        handler=spec.handler is not None,
                        rows=rows,
                        keep=keep,
                    )
            except LauncherLost:
                self._end_children("cortex-inspect")  # nobody waits for what it had begun
                await self._strays.end()
                if not tries_left or self._stop_asked.done():
                    raise
        raise AssertionError("unreachable")

    async def resolve_packages(self, request: ResolvePackages, tell: Tell) -> PackageLock:
        if self._stop_asked.done():
            raise server.Ending
        return await self.environments.resolve(request, tell)

    async def prepare_environment(self, request: PrepareEnvironment, tell: Tell) -> None:
        if self._stop_asked.done():
            raise server.Ending
        await self.environments.ensure(request.environment, request.runtime, project=request.project, tell=tell)

    async def sweep_environments(self, in_use: tuple[str, ...]) -> tuple[str, ...]:
        return await self.environments.sweep({*in_use, *self.replicas.environments()})

    async def read_logs(self, request: ReadLogs) -> LogLines:
        deadline_s = self._clock.monotonic_s() + request.wait_s
        while True:
            lines = await asyncio.to_thread(self._logs.read, request)
            if lines.lines or lines.more or not request.cursor or self._clock.monotonic_s() >= deadline_s:
                return lines
            await asyncio.sleep(LOG_POLL_S)

    async def count_now(self) -> AgentReport:
        await asyncio.gather(self.replicas.count_now(COUNT_PATIENCE_S), self._count_refusals_soon())
        return self.report()

    async def _count_refusals_soon(self) -> None:
        with contextlib.suppress(TimeoutError, CortexError, OSError):
            async with asyncio.timeout(COUNT_PATIENCE_S):
                await self._count_refusals()

    def stop(self, drain_timeout_s: float) -> None:
        """Negative: end ourselves only and leave everything running."""
        if not self._stop_asked.done():
            self._stop_asked.set_result(drain_timeout_s)

    # ---- reports ------------------------------------------------------------------------------------------------

    def report(self) -> AgentReport:
        return AgentReport(
            node=self._node,
            serial=self._serial,
            agent=self._agent_id,
            epoch=self._remembered.epoch,
            pid=os.getpid(),
            started_wall_s=self._started_wall_s,
            replicas=self.replicas.reports(),
            routes=tuple(self._remembered.routes),
            pending_routes=self._pending_routes(),
            ingress=self._ingress_report(),
        )

    def _pending_routes(self) -> tuple[ApiKey, ...]:
        ordered = set(self._remembered.routes)
        applied = set(self._applied_routes)
        return tuple(sorted({route.api for route in ordered ^ applied}))

    def _ingress_report(self) -> IngressReport:
        status = self._ingress.status()
        return IngressReport(
            up=status.up,
            host=self._settings.host,
            port=self._settings.port,
            pid=status.pid,
            restarts=status.restarts,
            problem=self._ingress_problem,
            refusals=self._refusals,
        )

    def note_change(self) -> None:
        self._serial += 1
        self._changed.set()
        self._routes_changed.set()

    # ---- what survives us ---------------------------------------------------------------------------------------

    @property
    def _state_file(self) -> Path:
        return self._layout.node / "agent-state.json"

    def _recall(self) -> None:
        processes.remove_unfinished(self._layout.node)
        try:
            self._remembered = msgspec.json.decode(self._state_file.read_bytes(), type=Remembered)
        except FileNotFoundError:
            pass
        except (OSError, *UNREADABLE) as error:
            log.warning("%s cannot be read, the control plane will give the routes again: %s", self._state_file, error)

    def _remember(self) -> None:
        """What cannot be written now (a full disk) is tried again: serving does not depend on it."""
        try:
            processes.write_whole(self._state_file, msgspec.json.encode(self._remembered))
        except OSError as error:
            log.error("%s cannot be written: %s", self._state_file, error)
            self._unwritten = True
        else:
            self._unwritten = False

    # ---- ingress ------------------------------------------------------------------------------------------------

    async def _start_ingress(self) -> None:
        try:
            await self._ingress.start()
            self._ingress_problem = None
        except (CortexError, OSError) as error:
            self._ingress_problem = ingress_problem(error, self._layout.home)
            log.error("the ingress could not be started: %s", error)

    async def _sync_ingress_once(self) -> None:
        """Bring the ingress to what routes and readiness say now."""
        routes = tuple(self._remembered.routes)
        await self._ingress.apply(rotation.ingress_routes(routes, self.replicas.lives, self._layout))
        if self._applied_routes != routes:
            self._applied_routes = routes
            self._serial += 1
            self._changed.set()

    async def _count_refusals(self) -> None:
        """Requests that the ingress answered itself are counted with those that replicas answered."""
        versions = {route.api: route.version for route in self._remembered.routes}
        refused = await self._ingress.refusals()
        self._refusal_log.note(refused)
        self._refusals = tuple(
            IngressRefusals(
                instance=found.instance,
                api=found.api,
                version=versions[found.api],
                client_error=found.client_error,
                server_error=found.server_error,
            )
            for found in refused
            if found.api in versions
        )

    async def _settle_routes(self) -> None:
        try:
            await self._sync_ingress_once()
        except (CortexError, OSError) as error:
            log.info("the ingress does not have the routes yet: %s", error)

    async def _quiesced(self, stem: str) -> None:
        """Take a replica that drains out of the ingress, and wait until no request is there any more."""
        while not self._door_closed:
            try:
                await self._settle_routes()
                await self._ingress.quiesced(stem)
                return
            except (CortexError, OSError) as error:
                log.warning("the ingress could not be asked whether %s is quiet: %s", stem, error)
            await asyncio.sleep(RETRY_S)

    async def _abandon(self, stem: str) -> None:
        """Tell the requests that wait for a replica that nobody will come."""
        try:
            await self._settle_routes()
            await self._ingress.abandon(stem)
        except (CortexError, OSError) as error:
            log.warning("requests at %s could not be turned away: %s", stem, error)

    # ---- background ---------------------------------------------------------------------------------------------

    async def _keep(self, work: Callable[[], Awaitable[None]], *, wait: asyncio.Event) -> None:
        """Do the work whenever the event is set; again after a while if it fails."""
        backoff = Backoff(first_s=RETRY_S, longest_s=LONGEST_RETRY_S)
        while True:
            await wait.wait()
            wait.clear()
            try:
                await work()
                backoff.note_success()
            except asyncio.CancelledError:
                raise
            except Exception as error:
                _tell(error)
                await asyncio.sleep(backoff.note_failure(self._clock.monotonic_s()))
                wait.set()

    async def _every(self, interval_s: float, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            await asyncio.sleep(until_beat_s(self._clock.monotonic_s(), interval_s))
            try:
                await work()
            except asyncio.CancelledError:
                raise
            except Exception as error:
                _tell(error)

    async def _keep_house(self) -> None:
        self._keep_control_plane()
        self._ingress.look()
        self._reap_strangers()
        if self._unwritten:
            self._remember()
        if self._is_at_home():
            await self._keep_listening()

    async def _keep_ingress(self) -> None:
        if self._ingress_problem is not None:
            await self._start_ingress()
            self.note_change()

    async def _prestart(self) -> None:
        """Have a launcher ready before the first deploy asks for one."""
        with contextlib.suppress(CortexError, OSError):
            await self.replicas.launchers.get("onnx", {}).connection()

    async def _clean_logs(self) -> None:
        removed = await asyncio.to_thread(
            logs.clean_up,
            self._layout.replica_logs,
            frozenset(self.replicas.lives),
            keep_bytes=self._settings.log_bytes,
            keep_s=self._settings.log_age_s,
            now_wall_s=self._clock.wall_s(),
        )
        if removed:
            log.info("removed %d old log files of replicas that are gone", len(removed))
        await asyncio.to_thread(logs.cut_process_logs, self._layout.logs)

    async def _bound_raw_output(self) -> None:
        await _cut(logs.oversized(self.replicas.raw_output()))

    async def _bound_left_output(self) -> None:
        files = await asyncio.to_thread(logs.raw_output, self._layout.replica_logs)
        await _cut(logs.oversized(files))

    async def _listen(self) -> None:
        self._listening = await server.serve(self._layout.agent_socket, self)
        self._listening_inode = self._layout.agent_socket.stat().st_ino

    async def _keep_listening(self) -> None:
        """Without the file of our socket nobody would ever find us."""
        try:
            if self._layout.agent_socket.stat().st_ino == self._listening_inode:
                return
        except FileNotFoundError:
            pass
        log.error("the file of our socket was removed: made again")
        self._layout.sockets.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._listening is not None:
            self._listening.close()
        await self._listen()

    def _is_at_home(self) -> bool:
        """A home that was removed, or replaced by another one, has nobody who would ever end what runs for it."""
        if processes.is_same_file(self._lock, self._layout.agent_lock):
            self._homeless_looks = 0
            return True
        self._homeless_looks += 1
        if self._homeless_looks >= HOME_GONE_LOOKS:
            log.error("the home %s is gone: everything ends", self._layout.home)
            self.stop(DRAIN_WITHOUT_HOME_S)
        return False

    def _keep_control_plane(self) -> None:
        """Start the control plane again when it has died, unless the environment is meant to be down."""
        if self._control_plane_fd is not None:
            if self._control_plane_pulse is not None:
                self._control_plane_pulse.hangs(self._clock.monotonic_s())
            return
        if self._control_plane is not None and self._control_plane.poll() is None:
            return
        self._control_plane = None
        if self._layout.down_mark.exists() or self._stop_asked.done():
            return
        try:
            record = msgspec.json.decode(self._layout.controlplane_file.read_bytes(), type=ControlPlaneRecord)
        except (OSError, *UNREADABLE):
            return  # it ended in order, or never ran: whoever wants it starts it
        if self._watch_control_plane(record):
            return
        now_s = self._clock.monotonic_s()
        if not self._control_plane_restarts.may_start(now_s):
            return
        self._control_plane_restarts.note_start(now_s)
        env = {**os.environ, **environment_of(self._settings), "CORTEX_OPERATOR_PORT": str(record.operator_port)}
        command = processes.module_command("cortex.controlplane", self._layout.home)  # the home for `down`
        self._control_plane = processes.spawn(command, output=self._layout.logs / "controlplane.out", environ=env)
        log.warning("the control plane had died; started it again, pid %s", self._control_plane.pid)
        started = processes.identify(self._control_plane.pid)
        if started is not None:
            self._watch_control_plane(started)

    def _watch_control_plane(self, identity: ProcessIdentity) -> bool:
        """Replace it as soon as it ends: until then nothing else that dies is replaced. False: it has ended already."""
        pidfd = processes.open_pidfd(identity)
        if pidfd is None:
            return False

        def ended() -> None:
            asyncio.get_running_loop().remove_reader(pidfd)
            os.close(pidfd)
            self._control_plane_fd = None
            try:
                self._keep_control_plane()
            except Exception as error:
                _tell(error)

        asyncio.get_running_loop().add_reader(pidfd, ended)
        self._control_plane_fd = pidfd
        self._control_plane_pulse = processes.Pulse(identity, "the control plane")
        return True

    def _reap_strangers(self) -> None:
        """Orphans that became our children and that nobody waits for would stay zombies."""
        if _ended_child() is None:
            return  # as nearly always
        known = self._own_pids()
        while (pid := _ended_child()) is not None and pid not in known:
            os.waitpid(pid, os.WNOHANG)
        # Whoever knows the one that is left collects it soon; the rest comes after that.

    def _is_own(self, pid: int, command: str) -> bool:
        """Whether a child of ours is one that we started. An ingress that does not answer yet is known by its files."""
        return pid in self._own_pids() or str(self._layout.ingress) in command

    def _own_pids(self) -> set[int]:
        known = self.replicas.pids()
        known |= {launcher.pid for launcher in self.replicas.launchers if launcher.pid is not None}
        known |= {self._control_plane.pid} if self._control_plane is not None else set()
        known |= self._ingress.pids()
        known |= self.environments.pids
        known |= {self.replicas.safekeeping.pid} if self.replicas.safekeeping.pid is not None else set()
        return known

    def _end_children(self, title: str = "") -> None:
        """Kill children of ours whose title begins so; never the control plane, which lives its own life."""
        for child in psutil.Process().children():
            with contextlib.suppress(psutil.Error):
                words = child.cmdline()
                of_the_control_plane = "cortex.controlplane" in words or " ".join(words).startswith("cortex-controlp")
                if words and " ".join(words).startswith(title) and not of_the_control_plane:
                    child.kill()

    # ---- stopping -----------------------------------------------------------------------------------------------

    async def _stop_everything(self, drain_timeout_s: float) -> None:
        """
        Stop the node: 1. ingress takes no new connections and finishes what it has; 2. replicas drain, in the time
        that is left; 3. launchers and keeper end, with whatever became our child; 4. sockets and records go.
        """
        log.info("stopping everything")
        await self.environments.close()
        deadline_s = self._clock.monotonic_s() + drain_timeout_s
        try:
            await self._ingress.stop(drain_timeout_s)
        except (CortexError, OSError) as error:
            log.error("the ingress could not be stopped in order: %s", error)
        self._door_closed = True
        for replica in self.replicas.lives:
            self.replicas.drain(replica, max(1.0, deadline_s - self._clock.monotonic_s()))
        deadline_s = max(deadline_s, self._clock.monotonic_s() + 1.0) + ENDING_S + 3.0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(deadline_s - self._clock.monotonic_s()):
                await self.replicas.exited()
        for replica in self.replicas.lives:
            self.replicas.forget(replica)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(5.0):
                await self.replicas.closed()
        self._kept.end()
        await self.replicas.launchers.stop()
        await self.replicas.safekeeping.stop()
        self._end_children()
        self._remembered.routes = []
        self._remember()
        for pattern in ("r-*.sock", "c-*.sock", "l-*.sock", "*.sock.tmp"):
            for left in self._layout.sockets.glob(pattern):
                left.unlink(missing_ok=True)
        self._layout.agent_socket.unlink(missing_ok=True)
        self._layout.agent_file.unlink(missing_ok=True)


def ingress_problem(error: CortexError | OSError, home: Path) -> Problem:
    """Why the ingress does not start, in words: whoever runs Cortex may have to make room."""
    if isinstance(error, CortexError):
        return error.problem()
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Problem(
            reference="ingress-failed",
            message=f"predictions are not listened for, since the disk of {home} is full",
            hint="free space there: nothing has to be started anew",
        )
    return Problem(reference="ingress-failed", message=f"predictions are not listened for: {error}")


def _ended_child() -> int | None:
    """A child of ours that has ended and was not collected yet; it stays that."""
    try:
        found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None
    return None if found is None else found.si_pid


async def _cut(files: list[str]) -> None:
    for file in await asyncio.to_thread(logs.cut_raw_output, files) if files else ():
        log.warning("%s: more is written than can be kept; only the end stays", os.path.basename(file))


def _tell(error: Exception) -> None:
    """What we foresaw is told in a line; what we did not, with where it happened."""
    if isinstance(error, CortexError | OSError):
        log.warning("will be tried again: %s", error)
    else:
        log.error("a fault of ours, will be tried again", exc_info=error)


def _model_alone(spec: ReplicaSpec, *, with_sample: bool) -> ReplicaSpec:
    """Without its handler, which says nothing about rows."""
    return msgspec.structs.replace(
        spec,
        handler=None,
        project_dir=None,
        env={},
        scratch="",
        tracker=None,
        sample=spec.sample if with_sample else None,
        sample_path=spec.sample_path if with_sample else None,
    )


def _masked(report: InspectReport, secrets: Mapping[str, str]) -> InspectReport:
    """Users' code knows its secrets, and may have died quoting one."""
    parts = to_mask(confidential(secrets))
    return msgspec.structs.replace(
        report,
        problems=tuple(problem_without(parts, problem) for problem in report.problems),
        warnings=tuple(problem_without(parts, problem) for problem in report.warnings),
    )


def main() -> int:
    """Run the agent until it is told to end. Returns an exit code."""
    settings = load_settings(os.environ)
    layout = HomeLayout(settings.home)
    try:
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
        asyncio.run(_run(settings, layout, lock))
    except (CortexError, OSError) as error:
        log.exception("the agent could not start")
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


async def _run(settings: Settings, layout: HomeLayout, lock: int) -> None:
    clock = SystemClock()
    agent: Agent
    ingress = Ingress(
        directory=layout.ingress,
        sockets=layout.sockets,
        listen=[ListenAddress(host=settings.host, port=settings.port)],
        clock=clock,
        on_change=lambda: agent.note_change(),
    )
    store = ArtifactStore(layout.artifacts)
    agent = Agent(settings=settings, layout=layout, clock=clock, store=store, ingress=ingress, lock=lock)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, agent.stop, -1.0)
    await agent.run()


def _raise_file_limit() -> None:
    """Each replica costs us, the keeper and HAProxy some descriptors, and many systems start at 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _log_to_file(layout: HomeLayout) -> None:
    handler = logging.handlers.RotatingFileHandler(layout.logs / "agent.log", maxBytes=10 * 2**20, backupCount=3)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
