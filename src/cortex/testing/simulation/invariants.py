"""
What has to hold at every step of a schedule:

* no order of ours takes the ready replicas in rotation below what the rollout allows, or takes one that is routed;
* never more replicas of an api are started than are wanted, plus one, nor routed than its maximum, plus one;
* the number of replicas is within the bounds that were deployed last, and only what may sleep does;
* who knocks at an api that sleeps is answered, or refused after 30 s where a fault or want of room keeps it asleep;
* where cpu is shared, every api has its minimum, and as many more as fit; a new size takes none that fits;
* while a new version is watched, one ready replica of the version before is parked: no route names it, it goes
  with the watch and when anybody waits for room, and a rollback to its version routes it with the first order;
* a client of a live api is answered; when its replicas were just killed it is held, and answered in time;
* only versions that were deployed answer, and under their own name;
* once rows have disagreed in a replica, no other one of that model is told to batch, whatever api it is of;
* the control plane may end between any two actions, and orders may be lost, late, doubled or unanswered;
* a replica is drained only once no node that is not lost has a route to it, in its ingress too;
* a node is lost once it was silent for five seconds and others were heard, not before, and no longer than that; whoever
  has just started waits no longer for it either;
* what ran on a lost node is in no route that others are ordered to have;
* all nodes that hear us and are heard have the same routes, at the latest a second after the last change of what is
  wanted, of who they are, or of who is in charge, whatever becomes of other nodes;
* once the faults stop, everything comes to rest with exactly what is wanted: each deploy live, or failed with a
  reason while what served before serves at full size; no replica, lease or route is left over.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from cortex.ids import ApiKey, NodeId, ReplicaId
from cortex.planning import backoff
from cortex.planning.model import LeaseState, Snapshot, WantedApi
from cortex.planning.rollout import SURGE
from cortex.testing.fake_agent import IngressAnswer
from cortex.testing.simulation.builds import SLOWEST_START_S, SOUND
from cortex.testing.simulation.world import LONGEST_LAG_S, LONGEST_WAIT_S, Mood, PretendedWorld
from cortex.wire.batching import BatchingOrder
from cortex.wire.build import BuildSpec, ModelKey
from cortex.wire.orders import DrainReplica, ForgetReplica, Order, Orders, SetReplicaBatching, SetRoutes, StartReplica
from cortex.wire.reports import Phase, ReplicaReport

ROUTES_EQUAL_S = 1.0
LOST_AFTER_S = 5.0
"""As promised, and not as planning has it."""
MOMENT_S = 0.01


@dataclass(frozen=True)
class _Issue:
    """What was true when a batch of orders was decided on."""

    fault: int
    true_until_s: float | None
    """Until when what the orders were decided on was true; None: it still was."""
    unready: frozenset[ReplicaId]
    """Replicas that were seen, and seen not to be ready."""
    wanted: dict[ApiKey, WantedApi]
    unplaced: Counter[ApiKey]
    stopped: frozenset[ModelKey]
    """Models whose rows were known to have disagreed."""
    lost: frozenset[NodeId]
    """Nodes that counted as lost: what is there is nobody's, and routes there are no reason to wait."""
    punctual: bool
    """The orders are carried out at once, and on fresh reports."""


class Invariants:
    """
    Looks at what happens in a world.

    Raises:
        Violation: from whatever was going on, at the first promise that is broken.
    """

    def __init__(self, world: PretendedWorld) -> None:
        self._world = world
        self._state = world.state
        self._engine = world.engine
        self._agents = world.agents
        self._issues: dict[int, tuple[Orders, _Issue]] = {}
        self._issue = self._issue_now(Snapshot(now_s=0.0))
        self.answers: Counter[str] = Counter()
        self._uneven: tuple[float, object] | None = None
        """Since when nodes in reach have other routes than others, and which nodes, what was wanted, by whom."""
        world.agents.before_order = self._check_order
        world.decided = self._decided
        world.ordering = self._ordering
        world.ticked = self._ticked
        world.refused = self._check_refused

    def _decided(self, seen: Snapshot) -> None:
        self._issue = self._issue_now(seen)

    def _ordering(self, orders: Orders) -> None:
        self._issues[id(orders)] = (orders, self._issue)

    def _ticked(self) -> None:
        if self._world.mood is not Mood.ROUGH:
            self._issues.clear()  # no orders are late

    def _issue_now(self, seen: Snapshot) -> _Issue:
        unplaced = Counter(
            lease.request.api
            for lease in self._engine.leases()
            if lease.state is LeaseState.PENDING and not lease.request.surge
        )
        wanted = {record.wanted.api: record.wanted for record in self._world.wanted()}
        lost = self._world.control.memory.lost if self._world.control is not None else frozenset[NodeId]()
        true_until_s = self._agents.true_until_s(but=lost)
        return _Issue(
            fault=self._world.faults,
            true_until_s=true_until_s,
            unready=frozenset(
                report.replica for node in seen.nodes for report in node.replicas if report.phase is not Phase.READY
            ),
            wanted=wanted,
            unplaced=unplaced,
            stopped=self._known_stops() | _disagreed(report for node in seen.nodes for report in node.replicas),
            lost=lost,
            punctual=true_until_s is None and self._world.order_trouble == 0,
        )

    def _check_order(self, node: NodeId, order: Order, orders: Orders) -> None:
        issue = self._issues[id(orders)][1]
        match order:
            case SetRoutes(routes=routes):
                for route in routes:
                    self._check_route(node, route.api, route.targets, issue)
            case DrainReplica(replica=replica) | ForgetReplica(replica=replica):
                self._check_taken(node, replica, issue)
            case StartReplica():
                self._check_devices(node, order)
                self._check_started(order, issue)
                if order.build.model_key is not None:
                    self._check_may_batch(order.replica, order.build.model_key, order.batches, issue)
            case SetReplicaBatching(replica=replica, batches=batches):
                for _node, report in self._agents.replicas():
                    if report.replica == replica and report.model is not None:
                        self._check_may_batch(replica, report.model, batches, issue)

    def check_rows(self) -> None:
        """The number of replicas is one that the api may have."""
        for record in self._world.wanted():
            wanted = record.wanted
            if not max(1, wanted.min_replicas) <= wanted.replicas <= wanted.max_replicas:
                bounds = f"{wanted.min_replicas} to {wanted.max_replicas}"
                self._world.violated(f"{wanted.api}: {wanted.replicas} replicas, outside of {bounds}")
            if wanted.scale.asleep and wanted.min_replicas > 0:
                self._world.violated(f"{wanted.api} sleeps, and its minimum is {wanted.min_replicas}")

    def _check_refused(self, api: ApiKey, since_s: float) -> None:
        """Somebody has waited for an api that sleeps, for as long as anybody does."""
        wanted = next((record.wanted for record in self._world.wanted() if record.wanted.api == api), None)
        if wanted is not None and self._promised(wanted) and self._world.trouble_until_s < since_s:
            self._world.violated(f"{api}: somebody knocked {self._world.now_s() - since_s:.1f} s ago, and nobody came")

    def _check_route(self, node: NodeId, api: ApiKey, targets: tuple[ReplicaId, ...], issue: _Issue) -> None:
        before = next((r.targets for n, r in self._agents.routes() if n == node and r.api == api), ())
        ready = {
            r.replica: r for where, r in self._agents.replicas() if r.phase is Phase.READY and where not in issue.lost
        }
        left = len(ready.keys() & set(targets))
        had = len(ready.keys() & set(before))
        wanted = issue.wanted.get(api)
        if wanted is not None:
            self._check_back(api, targets, ready)
            self._check_foreign(wanted, targets, ready)
        if wanted is not None and left > max(had, wanted.max_replicas + SURGE):
            most = f"{wanted.max_replicas} and {SURGE} are the most"
            self._world.violated(f"{api}: a route on {node} has {left} ready replicas, {most}")
        if left >= had or wanted is None or wanted.force:
            return
        asleep = {r.replica for _node, r in self._agents.replicas() if r.phase is Phase.ASLEEP}
        if wanted.scale.asleep and asleep & set(targets):
            return  # whoever comes waits there
        if left >= wanted.replicas - issue.unplaced[api] or self._excused(api, issue):
            return
        if wanted.failed is not None and wanted.serving is None and self._world.apis[api].deleted:
            return  # left over from before it was deleted and made anew
        ours = {build.revision for build in (wanted.build, wanted.serving) if build is not None}
        gone = (ready.keys() & set(before)) - set(targets) - issue.unready
        if not gone:
            return  # it became ready later than what the orders were decided on
        if not issue.punctual and not any(ready[replica].revision in ours for replica in gone):
            return  # of a version that was replaced before the control plane knew that it was routed
        self._world.violated(
            f"{api}: a route on {node} leaves {left} of {had} ready replicas, {wanted.replicas} are wanted"
        )

    def _check_back(self, api: ApiKey, targets: tuple[ReplicaId, ...], ready: dict[ReplicaId, ReplicaReport]) -> None:
        known = self._world.apis[api]
        expected, known.comes_back = known.comes_back, None
        if expected is not None and expected in ready and expected not in targets:
            self._world.violated(f"{expected} was parked, and its version comes back, but the route is {targets}")

    def _check_foreign(
        self, wanted: WantedApi, targets: tuple[ReplicaId, ...], ready: dict[ReplicaId, ReplicaReport]
    ) -> None:
        """Nobody comes into a route whose version is neither wanted nor served."""
        ours = {build.revision for build in wanted.builds}
        routed = {replica for _node, route in self._agents.routes() for replica in route.targets}
        for replica in (ready.keys() & set(targets)) - routed:
            if ready[replica].revision not in ours and self._world.mood is not Mood.ROUGH:
                self._world.violated(f"{replica} comes into the route of {wanted.api}, and nobody wants its version")

    def _check_taken(self, node: NodeId, replica: ReplicaId, issue: _Issue) -> None:
        report = next((r for n, r in self._agents.replicas() if n == node and r.replica == replica), None)
        if report is None or report.phase is not Phase.READY:
            return
        # Another node may have taken over the name of a replica that comes back from a node thought lost.
        alone = sum(r.replica == replica for _n, r in self._agents.replicas()) == 1
        # Orders that come late cannot know of routes that other nodes have been given since.
        routed = [
            n for n, r in self._agents.routes() if replica in r.targets and n not in issue.lost | {node}
        ] * issue.punctual
        # Its own agent waits for its own ingress.
        routed += [node for r in self._agents.ordered_routes(node) if replica in r.targets]
        if routed and alone and not self._excused(report.api, issue):
            self._world.violated(f"{replica} is taken away while {', '.join(routed)} still routes to it")

    def _check_devices(self, node: NodeId, order: StartReplica) -> None:
        """It gets as many GPUs as it asked for, and none that another one sees."""
        held = set(order.devices)
        if len(held) != order.build.resources.gpus:
            self._world.violated(f"{order.replica} gets {order.devices}")
        if self._world.mood is Mood.ROUGH:
            return  # leases are forgotten there
        for where, report in self._agents.replicas():
            other = where == node and report.replica != order.replica and report.phase is not Phase.EXITED
            if other and held & set(report.devices):
                self._world.violated(f"{order.replica} gets {order.devices}, and {report.replica} has {report.devices}")

    def _check_started(self, order: StartReplica, issue: _Issue) -> None:
        api = order.build.api
        wanted = issue.wanted.get(api)
        known = {report.replica for _node, report in self._agents.replicas()}
        if (
            wanted is None
            or order.replica in known
            or not issue.punctual
            or self._world.trouble_until_s > self._world.now_s()
        ):
            return
        leased = {
            lease.request.replica
            for lease in self._engine.leases()
            if lease.state is LeaseState.GRANTED and lease.request.api == api
        }
        # What never served and is of no use any more is forgotten in the same plan: its room is still held.
        ours = {build.revision for build in (wanted.build, wanted.serving) if build is not None}
        running = {
            report.replica
            for where, report in self._agents.replicas()
            if report.api == api
            and where not in issue.lost
            and report.phase not in (Phase.EXITED, Phase.DRAINING)
            and (report.revision in ours or report.phase is Phase.READY)
        }
        count = len(leased & running) + 1
        if count > wanted.replicas + 1:
            self._world.violated(f"{api}: {order.replica} makes {count} replicas, {wanted.replicas} are wanted")

    def _check_may_batch(self, replica: ReplicaId, model: ModelKey, batches: BatchingOrder, issue: _Issue) -> None:
        if batches.batches and model in issue.stopped:
            self._world.violated(f"{replica} is to batch, and rows of its model are known to have disagreed")

    def check_parked(self) -> None:
        """Once what can be done at once is done: one of each watched api at most, and none in anybody's way."""
        waiting = [lease.request.replica for lease in self._engine.leases() if lease.state is LeaseState.PENDING]
        for record in self._state.apis():
            wanted = record.wanted
            if any(wanted.api in node.pending_routes for node in self._agents.reports()):
                continue  # who leaves waits for the doors
            for number, report in enumerate(self._world.parked(wanted)):
                self.answers["parked"] += 1
                if report.revision != wanted.previous or wanted.watched_until_wall_s is None:
                    self._world.violated(f"{report.replica} is parked, and {wanted.api} is not watched")
                if number:
                    self._world.violated(f"{report.replica} is parked, and it is not the only one of {wanted.api}")
                if waiting:
                    self._world.violated(f"{report.replica} is parked while {', '.join(waiting)} waits for room")

    def check_routes(self) -> None:
        """Every door in reach sends requests to the same replicas, but for a moment."""
        world, now_s = self._world, self._world.now_s()
        # Who has just started waits for those that it has not heard.
        listened = self._agents.settled or now_s - world.began_s >= LOST_AFTER_S
        tables = dict(self._agents.tables())
        reached = [
            (node, agent)
            for node, agent in self._agents.reachable()
            if node not in world.link_lags_s and world.door_lags_s.get(node, 0.0) <= LONGEST_LAG_S
        ]
        even = all(tables[node] == tables[reached[0][0]] for node, _agent in reached[1:])
        if even or world.control is None or not listened or world.order_trouble or self._agents.report_delay_s:
            self._uneven = None
            return
        situation = (reached, self._state.revision, world.began_s)
        if self._uneven is None or self._uneven[1] != situation:
            self._uneven = now_s, situation
        elif now_s - self._uneven[0] > ROUTES_EQUAL_S:
            names = ", ".join(node for node, _agent in reached)
            world.violated(f"routes are not the same on {names}, for {now_s - self._uneven[0]:.2f} s")

    def check_lost(self) -> None:
        """Once what can be done at once is done: who counts as lost is, and no node in reach sends requests there."""
        world, now_s = self._world, self._world.now_s()
        if world.control is None:
            return
        lost, silent_s = world.control.memory.lost, self._agents.silent_s()
        for node in lost & silent_s.keys():
            if silent_s[node] < LOST_AFTER_S - MOMENT_S:
                world.violated(f"node {node} counts as lost, and was heard {silent_s[node]:.2f} s ago")
        missed = {node for node, silent in silent_s.items() if silent > LOST_AFTER_S + MOMENT_S}
        some_heard = any(silent < LOST_AFTER_S - MOMENT_S for silent in silent_s.values())
        if missed - lost and some_heard and now_s - world.began_s > LOST_AFTER_S + MOMENT_S:
            world.violated(f"{', '.join(missed - lost)} was not heard for 5 s, and does not count as lost")
        waits = len(silent_s) > 1 and some_heard and not world.control.memory.recovered
        if waits and not self._engine.unreachable and now_s - world.began_s > LOST_AFTER_S + MOMENT_S:
            world.violated("nothing is planned, since some node is silent")
        if world.order_trouble or self._agents.report_delay_s:
            return
        there = {report.replica for node in self._agents.reports() if node.name in lost for report in node.replicas}
        there -= {report.replica for node, report in self._agents.replicas() if node not in lost}
        for node, _agent in self._agents.reachable() if there else ():
            named = there & {target for route in self._agents.ordered_routes(node) for target in route.targets}
            if named and node not in world.link_lags_s:
                world.violated(f"node {node} routes to {', '.join(sorted(named))}, whose node is lost")

    def check_batching(self) -> None:
        """No replica is left to batch a model whose rows have disagreed."""
        for _node, report in self._agents.replicas():
            told = report.phase is not Phase.EXITED and report.batches is not None and report.batches.batches
            if told and report.model in self._world.stopped:
                self._world.violated(f"{report.replica} still batches, and rows of its model have disagreed")

    def _known_stops(self) -> frozenset[ModelKey]:
        return frozenset(record.model for record in self._state.batching() if record.stops)

    def _excused(self, api: ApiKey, issue: _Issue) -> bool:
        """A replica ended by itself after what the orders were decided on: nobody could know."""
        known = self._world.apis[api]
        unseen = issue.true_until_s is not None and known.fault_s >= issue.true_until_s
        return unseen or known.fault > issue.fault

    def ask_clients(self) -> None:
        for record in self._world.wanted():
            wanted = record.wanted
            for node in self._agents.nodes:
                if self._world.asleep(wanted.api):
                    continue
                answer = self._agents.ask(wanted.api, node)
                if not self._is_known(wanted.api, node):
                    continue  # it is not live before every door knows of a replica
                self.answers[answer.outcome] += 1
                self._check_answer(wanted, node, answer)

    def _is_known(self, api: ApiKey, node: NodeId) -> bool:
        """Whether a door has the route that it was ordered to have, or an earlier one to somebody who has served."""
        if not self._agents.route_delay_s(node):
            return True
        route = next((route for where, route in self._agents.routes() if where == node and route.api == api), None)
        if route is None or route in self._agents.ordered_routes(node):
            return route is not None and bool(route.targets)
        return any(report.was_ready and report.replica in route.targets for _node, report in self._agents.replicas())

    def _check_answer(self, wanted: WantedApi, node: NodeId, answer: IngressAnswer) -> None:
        known = self._world.apis[wanted.api]
        now_s = self._world.now_s()
        forced = wanted.force and wanted.live_wall_s is None
        known.gap = forced or (known.gap and answer.outcome != "answered")
        if answer.outcome == "answered":
            known.down_since_s = None
            if answer.version not in known.versions:
                self._world.violated(f"{wanted.api}: version {answer.version} answers and was never deployed")
            return
        if not self._promised(wanted):
            known.down_since_s = None
            return
        if known.down_since_s is None:
            known.down_since_s = now_s
        if self._world.mood is Mood.ROUGH:
            # Many faults at once: only that it does not last.
            limit_s = SLOWEST_START_S + LONGEST_WAIT_S
        elif known.fault_s == float("-inf"):
            limit_s = 0.0
        else:
            limit_s = SLOWEST_START_S
            if answer.outcome != "held" and known.fault_s <= known.down_since_s:
                self._world.violated(f"{wanted.api} on {node}: a request is not held but {answer.outcome}")
        waited_s = now_s - max(known.down_since_s, known.fault_s)
        if waited_s > limit_s or limit_s == 0.0:
            self._world.violated(f"{wanted.api} on {node}: a request is {answer.outcome}, for {waited_s:.2f} s")

    def _promised(self, wanted: WantedApi) -> bool:
        """Whether a request to this api is to be answered now."""
        serving = wanted.serving
        if serving is None or not wanted.serving_was_live:
            return False
        if self._world.kind(serving) not in SOUND or self._world.apis[wanted.api].gap:
            return False
        asleep = {report.replica for _node, report in self._agents.replicas() if report.phase is Phase.ASLEEP}
        if any(
            lease.request.replica in asleep and lease.state is LeaseState.PENDING for lease in self._engine.leases()
        ):
            return False  # it slept, and others have its room
        if self._world.mood is Mood.ROUGH:
            if self._world.standing_faults():
                self._world.trouble(0.0)
            if self._world.now_s() < self._world.trouble_until_s:
                return False
            unplaced = any(
                lease.state is not LeaseState.GRANTED and lease.request.api == wanted.api
                for lease in self._engine.leases()
            )
            if unplaced:
                return False
        desired = self._state.desired(now_wall_s=self._world.clock.wall_s())
        slots = [slot for record in desired.records if record.api == wanted.api for slot in record.slots.values()]
        return not any(backoff.restart_delay_s(slot) > 0 for slot in slots)

    def check_rest(self) -> None:
        """Exactly what is wanted is there, and every deploy has come to an end."""
        apis = {record.wanted.api: record.wanted for record in self._world.wanted()}
        running: dict[ApiKey, list[ReplicaReport]] = {}
        for _node, report in self._agents.replicas():
            running.setdefault(report.api, []).append(report)
        for api in running.keys() - apis.keys():
            self._world.violated(f"{api} is not wanted, and {[r.replica for r in running[api]]} are left")
        for api, wanted in apis.items():
            goal: BuildSpec | None = wanted.build
            if wanted.failed is not None:
                if not wanted.failed.message:
                    self._world.violated(f"{api}: failed without a reason")
                if (
                    self._world.kind(wanted.build) in SOUND
                    and not self._world.apis[api].killed
                    and self._world.mood is not Mood.ROUGH
                ):
                    self._world.violated(f"{api}: a sound version failed: {wanted.failed.message}")
                goal = wanted.serving
            elif wanted.live_wall_s is None:
                self._world.violated(f"{api}: neither live nor failed")
            found = [(r.phase, r.revision) for r in running.get(api, [])]
            expected = [(Phase.READY, goal.revision)] * wanted.replicas if goal is not None else []
            if goal is not None and wanted.scale.asleep:
                expected = [(Phase.ASLEEP, goal.revision)]
            if found != expected:
                self._world.violated(f"{api}: {found} is there, {expected} is wanted")
            for node in self._agents.nodes:
                route = next((r for n, r in self._agents.routes() if n == node and r.api == api), None)
                names = tuple(sorted(r.replica for r in running.get(api, [])))
                if route is None or route.targets != names or route.timeout_s != wanted.timeout_s:
                    self._world.violated(f"{api}: the route on {node} is {route}, replicas are {names}")
        # What a replica saw is lost if it ends before anybody has heard of it.
        if self._world.mood is not Mood.ROUGH and self._world.stopped != self._known_stops():
            self._world.violated(f"rows of {self._world.stopped} have disagreed, {self._known_stops()} are remembered")
        self._world.stopped = set(self._known_stops())
        self.check_batching()
        awake = [report for reports in running.values() for report in reports if report.phase is not Phase.ASLEEP]
        replicas = sorted(report.replica for report in awake)
        leases = sorted(
            lease.request.replica for lease in self._engine.leases() if lease.state is not LeaseState.PENDING
        )
        if leases != replicas:
            self._world.violated(f"leases {leases}, replicas {replicas}")
        held = [(lease.node, device) for lease in self._engine.leases() for device in lease.devices]
        seen = [(node, device) for node, report in self._agents.replicas() for device in report.devices]
        if sorted(held) != sorted(seen) or len(set(held)) != len(held):
            self._world.violated(f"leases hold the GPUs {held}, replicas {seen}")
        surges = [lease.request.replica for lease in self._engine.leases() if lease.request.surge]
        if surges:
            self._world.violated(f"{surges} still have a surge lease")
        strays = {route.api for _node, route in self._agents.routes()} - apis.keys()
        if strays:
            self._world.violated(f"routes of {strays} are left")


def _disagreed(reports: Iterable[ReplicaReport]) -> frozenset[ModelKey]:
    """Models whose rows have disagreed, by what replicas say."""
    return frozenset(
        report.model
        for report in reports
        if report.model is not None and report.batching is not None and report.batching.disagreement is not None
    )
