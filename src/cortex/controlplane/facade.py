"""What the API calls: questions and changes, answered from the parts that `app.build` has put together."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from cortex.artifacts.store import ArtifactStore
from cortex.clock import Clock
from cortex.controlplane.agents import LinkedAgents
from cortex.controlplane.audit import Audit
from cortex.controlplane.changeovers import ChangeOvers
from cortex.controlplane.chores import Chore
from cortex.controlplane.events import Events
from cortex.controlplane.fetching import Models
from cortex.controlplane.loop import Loop
from cortex.controlplane.nodes import NodeUsage, described
from cortex.controlplane.rollback import Rollbacks
from cortex.controlplane.scaling import Scaling
from cortex.controlplane.secrets import CloudKeys, Secrets
from cortex.controlplane.statistics import Statistics
from cortex.controlplane.tokens import Tokens
from cortex.controlplane.versions import revisions_of_version
from cortex.controlplane.view import View, deployment_statuses, door_url
from cortex.engines.base import Engine
from cortex.errors import CortexError
from cortex.ids import ApiKey, DeploymentName, NodeId, api_key, short
from cortex.metrics.exposition import Exposed, exposition
from cortex.planning import happenings
from cortex.planning.reach import lost_nodes
from cortex.settings import OPERATOR_HOST, Settings
from cortex.state.records import StateStore
from cortex.version import __version__
from cortex.wire.agent import LogLines, ReadLogs
from cortex.wire.operator import (
    ApiStatus,
    ChangeKind,
    DeploymentStatus,
    DeployProgress,
    DeployRequest,
    DeployResult,
    EventLine,
    EventPage,
    HistoryLine,
    Info,
    NodeInfo,
    Removed,
    RollbackRequest,
    RollbackResult,
    StopRequest,
    Watched,
    rfc3339,
)

if TYPE_CHECKING:
    from cortex.controlplane.deploy import Deployer

log = logging.getLogger(__name__)

EVENTS_SHOWN = 3
"""With an api."""


class ControlPlane:
    """
    Implements `api.Operator`.

    Args:
        read_logs: asks the nodes.
        ingress_url: where predictions are asked for.
        wanted_changed: called when something is wanted or not wanted any more.
        make_deployer: called when the first deploy comes: what it needs takes longer to import than the rest together.
        parts: all that works in the background besides loop and agent.
        shut_down: ends this process in order.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        clock: Clock,
        state: StateStore,
        store: ArtifactStore,
        engine: Engine,
        agents: LinkedAgents,
        loop: Loop,
        view: View,
        statistics: Statistics,
        scaling: Scaling,
        secrets: Secrets,
        tokens: Tokens,
        audit: Audit,
        cloud_keys: CloudKeys,
        models: Models,
        make_deployer: Callable[[], Deployer],
        change_overs: ChangeOvers,
        rollbacks: Rollbacks,
        events: Events,
        usage: NodeUsage,
        homes: Mapping[NodeId, Path],
        read_logs: Callable[[ReadLogs], LogLines],
        ingress_url: Callable[[], str],
        wanted_changed: Callable[[], None],
        parts: Sequence[Chore],
        shut_down: Callable[[], None],
    ) -> None:
        self.store = store
        self.secrets = secrets
        self.tokens = tokens
        self.audit = audit
        self.stopped = False
        """It was told to end everything, and did."""
        self._settings = settings
        self._clock = clock
        self._state = state
        self._engine = engine
        self._agents = agents
        self._loop = loop
        self._view = view
        self._statistics = statistics
        self._scaling = scaling
        self._cloud_keys = cloud_keys
        self._models = models
        self._make_deployer = make_deployer
        self._change_overs = change_overs
        self._rollbacks = rollbacks
        self._events = events
        self._usage = usage
        self._homes = {node: str(home) for node, home in homes.items()}
        self._read_logs = read_logs
        self._ingress_url = ingress_url
        self._wanted_changed = wanted_changed
        self._parts = parts
        self._shut_down = shut_down
        self._started_wall_s = clock.wall_s()

    def start(self) -> None:
        try:
            self._change_overs.recover()
        except CortexError as error:
            log.warning("what was being proved stays without a receipt: %s", error)
        self._agents.start()
        self._loop.start()
        for part in self._parts:
            part.start()

    def answer_waiting(self) -> None:
        """Whoever waits for something to change is answered now: this process ends."""
        self._view.close()
        self._events.answer_waiting()

    def close(self) -> None:
        """Stop looking after the world. What runs goes on running."""
        self._change_overs.close()
        self._loop.stop()
        for part in self._parts:
            part.close()
        self._agents.close()
        self._loop.join(5.0)
        self._statistics.close()
        self._events.close()

    @property
    def stopping(self) -> bool:
        return self._loop.stopping

    def stop(self, request: StopRequest) -> Info:
        """
        Stop everything, in this order: no new decisions; replicas drained, ingress and launchers ended, agent gone;
        then this process, after it has answered.
        """
        info = self.info()
        self._loop.stop()
        self._loop.join(10.0)
        self._agents.stop_agents(request.drain_timeout_s)
        self.stopped = True
        self._shut_down()
        return info

    # ---- changes ------------------------------------------------------------------------------------------------

    @cached_property
    def _deployer(self) -> Deployer:
        return self._make_deployer()

    def deploy(
        self,
        name: str,
        request: DeployRequest,
        emit: Callable[[DeployProgress], None],
        left: threading.Event | None = None,
    ) -> DeployResult:
        result = self._deployer.deploy(name, request, emit, left)
        if result.committed:
            self._loop.catch_up()  # readers see the deploy from now on
            removed = [change.api for change in result.changes if change.kind is ChangeKind.REMOVED]
            self._forget(api_key(DeploymentName(name), api) for api in removed)
        return result

    def roll_back(self, api: ApiKey, request: RollbackRequest) -> RollbackResult | None:
        """
        Have an older version of an api serve; None when there is no such api.

        It waits for no deploy: one that is under way leaves the api as it then is.
        """
        result = self._rollbacks.roll_back(api, request)
        if result is not None and not result.already:
            self._loop.catch_up()
        return result

    def delete(self, deployment: DeploymentName, api: ApiKey | None) -> Removed | None:
        wanted = [r.wanted for r in self._state.apis(deployment) if api is None or r.wanted.api == api]
        gone = [one.api for one in wanted]
        if not self._state.delete(deployment, api, wall_s=self._clock.wall_s()):
            return None
        for one in wanted:
            self._events.tell(happenings.deleted(one.api, short(one.build.version), "by hand"))
        self._forget(gone)
        self._wanted_changed()
        self._loop.catch_up()
        return Removed(apis=tuple(gone))

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

    # ---- questions ----------------------------------------------------------------------------------------------

    def info(self) -> Info:
        nodes, reports = self._engine.nodes(), self._agents.reports()
        head = nodes[0].node if nodes else None
        report = next((found for found in reports if found.name == head), None)
        requested = self._engine.requested().values()
        # Nodes that share a processor have each all of it.
        cpus = (node.cpu_millis for node in (nodes[:1] if self._engine.shares_cpu else nodes))
        ingress = report.ingress if report else None
        problem = ingress.problem.message if ingress and ingress.problem else None
        return Info(
            version=__version__,
            environment=self._settings.environment,
            home=str(self._settings.home),
            operator=f"http://{OPERATOR_HOST}:{self._settings.operator_port}",
            ingress=self._ingress_url(),
            pid=os.getpid(),
            started=rfc3339(self._started_wall_s),
            agent_pid=report.pid if report else None,
            ingress_pid=ingress.pid if ingress else None,
            ingress_up=bool(ingress and ingress.up),
            cpu_millis=sum(cpus),
            mem_bytes=sum(node.mem_bytes for node in nodes),
            gpus=sum(node.gpus for node in nodes),
            requested_cpu_millis=sum(asked.cpu_millis for asked in requested),
            requested_mem_bytes=sum(asked.mem_bytes or 0 for asked in requested),
            requested_gpus=sum(asked.gpus for asked in requested),
            apis=len(self._state.apis()),
            replicas=sum(len(found.replicas) for found in reports),
            nodes=self._nodes(),
            notes=(problem,) if problem else (),
        )

    def _nodes(self) -> tuple[NodeInfo, ...]:
        reports, nodes = self._agents.reports(), self._engine.nodes()
        doors = {report.name: door_url(report.ingress) for report in reports if report.ingress is not None}
        return described(
            nodes,
            reports,
            self._engine.requested(),
            self._usage.cores,
            doors=doors,
            homes=self._homes,
            lost=lost_nodes(self._agents.silent_s()),
        )

    def deployments(self) -> tuple[DeploymentStatus, ...]:
        return deployment_statuses(self._state.deployments(), self._view.statuses())

    def apis(self, deployment: str | None) -> tuple[ApiStatus, ...]:
        self._collect_now()
        return self._counted(self._view.statuses(deployment))

    def api(self, deployment: str, name: str) -> ApiStatus | None:
        status = self._view.status(deployment, name)
        record = self._state.api(ApiKey(f"{deployment}/{name}"))
        if status is None or record is None:
            return status
        self._collect_now()
        build = record.wanted.build
        status = self._statistics.with_everything(status, build.version, build.tracker)
        version = record.version
        return msgspec.structs.replace(
            status,
            scaling=self._scaling.status(record.wanted),
            events=self._last_events(record.wanted.api),
            spec=version.spec,
            signature=version.inspection.signature,
        )

    def _last_events(self, api: ApiKey) -> tuple[EventLine, ...]:
        try:
            return self._events.page(limit=EVENTS_SHOWN, api=api).events
        except CortexError as error:
            log.warning("%s", error)
            return ()

    async def watch(self, token: str, timeout_s: float, deployment: str | None) -> Watched:
        seen = await self._view.changed(token, timeout_s, deployment)
        return msgspec.structs.replace(seen, apis=await asyncio.to_thread(self._counted, seen.apis))

    def _collect_now(self) -> None:
        """Readers see what was answered before they asked."""
        self._agents.count_now()
        self._statistics.collect()

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
            Exposed(
                version=__version__,
                apis=self._view.statuses(),
                lifetimes=self._statistics.lifetimes(),
                disagreements=Counter(stop.api for record in self._state.batching() for stop in record.stops),
                scaling=self._scaling.statuses(),
                agents=self._agents.reports(),
                planner=self._loop.counts,
                fetched=self._models.counts,
            )
        )

    def revisions(self, api: ApiKey, version: str) -> tuple[str, ...]:
        """
        Whose replicas are of a version of an api, 8 digits each; none if there is no such version.

        Args:
            version: its first digits, or `CURRENT`: what is wanted, and what serves until that is live.
        """
        record = self._state.api(api)
        if record is None:
            return ()
        state = self._state
        return tuple(sorted(revisions_of_version(record, state.versions(), state.history(api), version)))

    def logs(self, request: ReadLogs) -> LogLines:
        return self._read_logs(request)

    async def events(
        self, *, deployment: str | None, api: ApiKey | None, limit: int, after: str, wait_s: float
    ) -> EventPage | None:
        """What was decided and what happened; None where there is no such api, nor was there lately."""
        owner = None if deployment is None else DeploymentName(deployment)
        page = await self._events.page_later(deployment=owner, api=api, limit=limit, after=after, wait_s=wait_s)
        if api is None or page.events or self._state.api(api) is not None or self._state.history(api):
            return page
        deployment_, _, name = api.partition("/")
        return page if after or self._view.status(deployment_, name) is not None else None

    def history(self, api: ApiKey) -> tuple[HistoryLine, ...]:
        return self._rollbacks.history(api)
