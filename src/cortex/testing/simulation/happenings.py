"""What happens in a schedule: what users do, and what goes wrong."""

from __future__ import annotations

import random
from collections.abc import Callable

import msgspec

from cortex.ids import ApiKey, DeploymentName, NodeId, split_api_key
from cortex.planning.batching import place_of
from cortex.planning.model import WantedApi
from cortex.state.base import RollbackChange
from cortex.testing.builders import a_build, a_deploy, a_wanted_api
from cortex.testing.fake_agent import RUNTIME, Way
from cortex.testing.simulation.builds import BuildKind
from cortex.testing.simulation.load import MovingLoad
from cortex.testing.simulation.world import REPLICA_MEM_BYTES, KnownApi, Mood, PretendedWorld
from cortex.wire.batching import RULES, BatchingVerdict, Proof, Trial
from cortex.wire.build import BuildSpec, Resources
from cortex.wire.reports import Phase

MODELS = 3
"""That builds share; others have one of their own."""


class Happenings:
    """
    Has things happen, one at a time.

    Args:
        ask: has clients ask every api.
    """

    def __init__(self, world: PretendedWorld, traffic: MovingLoad, *, ask: Callable[[], None]) -> None:
        self._world = world
        self._random = world.random
        self._state = world.state
        self._engine = world.engine
        self._agents = world.agents
        self._ask = ask
        self._traffic = traffic
        self._builds = 0

    def begin(self) -> None:
        """Somebody deploys for the first time."""
        self._deploy()

    def one(self) -> None:
        """One thing more."""
        name, event = self._picked()
        self._world.events[name] += 1
        self._world.note(f"--- {name}")
        event()

    def _picked(self) -> tuple[str, Callable[[], None]]:
        is_any_parked = any(self._world.parked(record.wanted) for record in self._world.wanted())
        users: list[tuple[float, str, Callable[[], None]]] = [
            (5, "deploy", self._deploy),
            (4, "load moves", self._move_load),
            (8 if is_any_parked else 2, "roll back", self._roll_back),
            (1, "delete", self._delete),
            (1, "wall clock jumps", self._jump_wall),
            (1, "rows disagree", self._disagree),
            (1, "models are proved", self._prove),
            (2, "control plane restarts", self._restart_between_ticks),
            (2, "sleep", self._sleep),
        ]
        kills: list[tuple[float, str, Callable[[], None]]] = [(6, "kill", self._kill)]
        rough: list[tuple[float, str, Callable[[], None]]] = [
            (3, "control plane ends midway", self._crash_soon),
            (1, "control plane is away", self._control_plane_away),
            (2, "agent restarts", self._restart_agent),
            (2, "orders get lost", self._trouble_orders),
            (1, "reports are late", self._delay_reports),
            (1, "leases are refused", self._refuse_leases),
            (1, "the engine is away", self._engine_away),
            (1, "a lease is lost", self._lose_lease),
            (1, "a lease is forgotten", self._forget_lease),
            (3, "better times", self._world.mend),
        ]
        of_nodes: list[tuple[float, str, Callable[[], None]]] = [
            (2, "a node is lost", self._lose_node),
            (2, "a node is gone and nobody says so", self._lose_node_unnoticed),
            (2, "a node is back at once", self._replace_node),
            (2, "a node comes back", self._return_node),
            (2, "a node is cut off", self._cut_off),
            (2, "a node is cut off one way", self._cut_off_one_way),
            (1, "a node is heard again", self._reconnect),
            (1, "a link lags", self._lag_link),
            (1, "an ingress lags", self._lag_door),
        ]
        if len(self._world.machines) == 1:
            of_nodes = [(1, "a node is cut off", self._cut_off)]
        table = {
            Mood.CALM: users,
            Mood.TIGHT: users,
            Mood.KILLS: users + kills,
            Mood.ROUGH: users + kills + rough + of_nodes,
        }[self._world.mood]
        (chosen,) = self._random.choices(table, weights=[weight for weight, _name, _event in table])
        return chosen[1], chosen[2]

    def _deploy(self) -> None:
        """One deployment gets new content: versions, sizes, settings; now and then an old version again."""
        roll = self._random
        deployment = roll.choice(["iris", "default"])
        known = {record.wanted.api: record.wanted for record in self._state.apis(DeploymentName(deployment))}
        keys = [ApiKey(f"{deployment}/{name}") for name in ("a", "b")]
        for one in known.values():
            if one.scale.asleep:
                self._world.apis[one.api].fault_s = self._world.now_s()  # it may have to wake for it
        wanted: list[WantedApi] = []
        for key in keys:
            was = known.get(key)
            if was is None and roll.random() < 0.4:
                continue
            if was is not None and roll.random() < 0.1 and len(keys) > 1:
                continue  # left out of the file: removed
            if was is not None and roll.random() < 0.3:
                wanted.append(self._as_deployed(was, was.build))
                continue
            if was is not None and was.serving is not None and roll.random() < 0.2:
                wanted.append(self._as_deployed(was, was.serving))  # the files of before
                continue
            wanted.append(self._as_deployed(was, self._new_build(key)))
        for key in known.keys() - {one.api for one in wanted}:
            self._forget(key)
        if not wanted and not known:
            return
        for one in wanted:
            self._world.apis.setdefault(one.api, KnownApi()).versions.add(one.build.version)
            self._traffic.meet(one.api)
            self._world.note(
                f"{one.api}: build {one.build.revision[:8]} ({self._world.kind(one.build)}), {one.replicas} replicas"
                f"{', force' if one.force else ''}"
            )
        self._state.commit_deploy(a_deploy(*wanted, deployment=deployment, wall_s=self._world.clock.wall_s()))

    def _as_deployed(self, was: WantedApi | None, build: BuildSpec) -> WantedApi:
        roll = self._random
        replicas = was.replicas if was is not None else roll.choice([1, 1, 2, 3])
        force = self._world.mood is Mood.TIGHT and roll.random() < 0.3
        minimum = roll.choice([0, 0, 1, 1, replicas])
        wanted = a_wanted_api(build, replicas=replicas, min_replicas=minimum, live=False, force=force)
        return msgspec.structs.replace(
            wanted,
            serving=None,
            serving_was_live=False,
            timeout_s=roll.choice([600.0, 30.0]),
            watch_s=roll.choice([0.0, 0.5, 5.0, 120.0]),
            max_replicas=max(replicas, roll.choice([2, 5, 8])),
            idle_timeout_s=roll.choice([1.5, 4.0, 300.0]),
            target_cpu_utilization=roll.choice([50, 80]),
            downscale_window_s=roll.choice([None, 5.0, 300.0]),
            rolled_back=was.rolled_back if was is not None else None,
        )

    def _new_build(self, key: ApiKey) -> BuildSpec:
        roll = self._random
        self._builds += 1
        kind = BuildKind.GOOD if roll.random() < 0.4 else roll.choice(list(BuildKind))
        if self._world.mood in (Mood.CALM, Mood.KILLS) and kind is BuildKind.CRASHING:
            kind = BuildKind.GOOD  # nobody can promise answers from a build that crashes by itself
        resources = Resources(cpu_millis=roll.choice([200, 200, 1000]))
        if self._world.mood is Mood.TIGHT:
            resources = Resources(cpu_millis=200, mem_bytes=REPLICA_MEM_BYTES, gpus=roll.randint(0, 1))
        model = roll.choice(["", *(f"m{number}" for number in range(MODELS))])
        build = a_build(f"v{self._builds}", api=key, resources=resources, model=model)
        if roll.random() < 0.5:
            self._record_proof(build)
        self._world.apis.setdefault(key, KnownApi()).kinds[build.version] = kind
        return build

    def _record_proof(self, build: BuildSpec) -> None:
        verdict = BatchingVerdict(proof=Proof(rules=RULES, proved=True), trial=Trial(runtime=RUNTIME, rows=2))
        assert build.model_key is not None
        self._state.record_verdict(build.model_key, verdict, place=place_of(build))

    def _prove(self) -> None:
        """What the deploys have not looked at is looked at now."""
        for record in self._world.wanted():
            self._record_proof(record.wanted.build)

    def _disagree(self) -> None:
        batching = [
            report
            for _node, report in self._agents.replicas()
            if report.phase in (Phase.READY, Phase.DRAINING) and report.batches is not None and report.batches.batches
        ]
        if batching:
            chosen = self._random.choice(batching)
            self._world.note(f"rows disagree in {chosen.replica}")
            self._agents.disagree(chosen.replica)
            assert chosen.model is not None
            self._world.stopped.add(chosen.model)

    def _move_load(self) -> None:
        records = self._world.wanted()
        if records:
            self._traffic.move(self._random.choice(records).wanted.api)

    def _sleep(self) -> None:
        """Nobody has asked an api for a while."""
        for record in self._world.wanted():
            wanted = record.wanted
            if wanted.live_wall_s is not None and not wanted.min_replicas and self._random.random() < 0.5:
                self._world.note(f"{wanted.api} falls asleep")
                wall_s = self._world.clock.wall_s()
                self._state.fall_asleep(wanted.api, wanted.build.revision, reason="nobody asked", wall_s=wall_s)

    def _roll_back(self) -> None:
        """An api goes back to any version that was live, or to the one that serves."""
        records = self._world.wanted()
        if not records:
            return
        parked = [record for record in records if self._world.parked(record.wanted)]
        wanted = self._random.choice(parked if parked and self._random.random() < 0.7 else records).wanted
        kept = [
            one
            for one in self._state.versions()
            if one.build.api == wanted.api
            and one.build.revision != wanted.build.revision
            and (one.turn or one.build == wanted.serving)
        ]
        if kept:
            before = [one for one in kept if one.build.revision == wanted.previous]
            version = self._random.choice(before if before and self._random.random() < 0.7 else kept)
            self._world.note(f"{wanted.api}: back to {version.build.revision[:8]} ({self._world.kind(version.build)})")
            if any(r.phase is Phase.ASLEEP and r.api == wanted.api for _node, r in self._agents.replicas()):
                self._world.apis[wanted.api].fault_s = self._world.now_s()  # it may have to wake for it
            self._note_who_comes_back(wanted, version.build)
            self._state.roll_back(
                RollbackChange(
                    version=version,
                    instead_of=wanted.build.revision,
                    cause="rolled back",
                    force=self._world.mood is Mood.TIGHT and self._random.random() < 0.3,
                    wall_s=self._world.clock.wall_s(),
                )
            )

    def _note_who_comes_back(self, wanted: WantedApi, build: BuildSpec) -> None:
        """Where no orders get lost, it is to be routed at once."""
        if self._world.mood is Mood.ROUGH:
            return
        parked = [report for report in self._world.parked(wanted) if report.revision == build.revision]
        if parked and not wanted.scale.asleep:
            self._world.apis[wanted.api].comes_back = parked[0].replica
            self._world.events["back to one that was parked"] += 1

    def _delete(self) -> None:
        records = self._world.wanted()
        if records and self._random.random() < 0.5:
            key = self._random.choice(records).wanted.api
            self._forget(key)
            self._state.delete(split_api_key(key)[0], key, wall_s=self._world.clock.wall_s())

    def _forget(self, key: ApiKey) -> None:
        self._world.apis[key].deleted = True
        self._world.apis[key].down_since_s = None

    def _jump_wall(self) -> None:
        self._world.clock.jump_wall(self._random.choice([-86400.0, -3600.0, -1.0, 1.0, 3600.0, 86400.0]))

    def _kill(self) -> None:
        running = [
            report for _node, report in self._agents.replicas() if report.phase not in (Phase.EXITED, Phase.DRAINING)
        ]
        if not running:
            return
        victims = running if self._random.random() < 0.1 else [self._random.choice(running)]
        for victim in victims:
            self._world.note(f"kill {victim.replica}")
            self._world.apis[victim.api].killed = True
            self._agents.kill(victim.replica)
        if self._world.mood is Mood.KILLS:
            self._ask()  # before the control plane has even noticed

    # ---- faults of ours, of nodes and of lines between them -----------------------------------------------------

    def _restart_between_ticks(self) -> None:
        """Where there are several nodes, now and then one of them is not heard from then on."""
        self._world.stop_control_plane()
        if self._world.mood is Mood.ROUGH and len(self._agents.nodes) > 1 and self._random.random() < 0.5:
            self._cut_off()
        self._world.start_control_plane()

    def _crash_soon(self) -> None:
        self._world.crash_in = self._random.randint(1, 6)
        self._deploy()

    def _control_plane_away(self) -> None:
        self._world.stop_control_plane()
        self._world.back_s = self._world.clock.monotonic_s() + self._random.uniform(0.1, 10.0)

    def _restart_agent(self) -> None:
        if self._agents.nodes:
            down_s = self._random.choice([0.0, 0.1, 2.0])
            self._agents.restart_agent(self._random.choice(self._agents.nodes), down_s=down_s)
            self._world.trouble(down_s)

    def _trouble_orders(self) -> None:
        self._world.order_trouble = self._random.choice([0.2, 0.5, 0.9])

    def _delay_reports(self) -> None:
        self._agents.report_delay_s = self._random.choice([0.05, 0.5, 2.0])

    def _refuse_leases(self) -> None:
        share = self._random.random()
        self._engine.deny = lambda request: "nobody gets room today" if hash_share(request.replica) < share else None
        self._engine.grant_delay_s = self._random.choice([0.0, 0.5, 5.0])

    def _engine_away(self) -> None:
        self._engine.unreachable = True

    def _lose_lease(self) -> None:
        leases = self._engine.leases()
        if leases:
            lease = self._random.choice(leases)
            self._world.note(f"lease of {lease.request.replica} is lost")
            self._world.fault(lease.request.api)
            self._engine.lose_lease(lease.request.replica)
            self._agents.kill(lease.request.replica)

    def _forget_lease(self) -> None:
        leases = self._engine.leases()
        if leases:
            replica = self._random.choice(leases).request.replica
            self._world.note(f"lease of {replica} is forgotten")
            self._engine.forget_lease(replica)

    # ---- nodes ----------------------------------------------------------------------------------------------------

    def _lose_node(self) -> None:
        """Whoever lends machines says so."""
        node = self._lost()
        if node is not None:
            self._engine.lose_node(node)

    def _lose_node_unnoticed(self) -> None:
        self._lost()

    def _replace_node(self) -> None:
        """It begins anew before anybody has missed it."""
        node = self._lost()
        if node is not None:
            self._add_node(node)

    def _return_node(self) -> None:
        """One that was lost is there again."""
        gone = [machine.node for machine in self._world.machines if machine.node not in self._agents.nodes]
        if gone:
            self._add_node(self._random.choice(gone))

    def _lost(self) -> NodeId | None:
        """One that is lost now, with everything on it; None: there is just one left."""
        if len(self._agents.nodes) == 1:
            return None
        node = self._random.choice(self._agents.nodes)
        self._world.note(f"node {node} is lost")
        for api in self._world.apis:
            self._world.fault(api)
        self._agents.lose_node(node)
        return node

    def _add_node(self, node: NodeId) -> None:
        """Under its name, with another agent; now and then with the routes that it had."""
        keeps_routes = self._random.random() < 0.5
        self._world.note(f"node {node} is back {'with its routes' if keeps_routes else 'empty'}")
        machine = next(machine for machine in self._world.machines if machine.node == node)
        self._engine.add_node(machine)
        self._agents.add_node(machine, keeps_routes=keeps_routes)

    def _cut_off(self) -> None:
        if self._agents.nodes:
            self._agents.cut_off(self._random.choice(self._agents.nodes))

    def _cut_off_one_way(self) -> None:
        node, way = self._random.choice(self._agents.nodes), self._random.choice([Way.ORDERS, Way.REPORTS])
        self._world.note(f"{way} do not come through, to or from node {node}")
        self._agents.cut_off(node, way)

    def _reconnect(self) -> None:
        for node in self._agents.nodes:
            self._agents.reconnect(node)

    def _lag_link(self) -> None:
        node = self._random.choice(self._agents.nodes)
        self._world.link_lags_s[node] = self._random.choice([0.3, 2.5, 6.0])
        self._world.note(f"what goes to and from node {node} is {self._world.link_lags_s[node]:g} s late")

    def _lag_door(self) -> None:
        node = self._random.choice(self._agents.nodes)
        self._world.door_lags_s[node] = self._random.choice([2.0, 8.0])
        self._world.note(f"the ingress of node {node} has routes {self._world.door_lags_s[node]:g} s late")


def hash_share(name: str) -> float:
    """A number from 0 to 1 that is always the same for a name."""
    return random.Random(name).random()
