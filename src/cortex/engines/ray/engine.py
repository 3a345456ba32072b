"""
The engine of a Ray cluster: our ledger places, placement groups hold, and a thread keeps both equal.

The thread looks at Ray once a second, sooner while it waits for something. What it sees goes into the ledger; what the
ledger then wants and Ray lacks is asked for. Nothing else asks Ray anything, so that no caller ever waits for it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Final, Protocol

import msgspec

from cortex.clock import Clock
from cortex.engines.ledger import LEAVING, Ledger, holds, impossible_text
from cortex.engines.ray import groups
from cortex.engines.ray.errors import ClusterError
from cortex.engines.ray.groups import AskedGroup, GroupFinding, WantedGroup
from cortex.engines.ray.messages import Additions, Booted, BootOrder, ClusterSeen, NewGroup, RayNode
from cortex.errors import RetryLater
from cortex.ids import NodeId, ReplicaId
from cortex.planning.model import Lease, LeaseRequest, LeaseState
from cortex.wire.build import Resources
from cortex.wire.reports import Node

log = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 1.0
TRY_AGAIN_S: Final = 2.0
"""After Ray has not answered: each try may begin a process."""
FIRST_LOOK_S: Final = 0.005
"""After something was asked for; each further look waits twice as long. Ray takes 2 ms."""
PLACE_WITHIN_S: Final = 5.0
"""A raylet that has not given us room by then has less than Ray says: other work of its own, or it is dead."""
REFUSED_FOR_S: Final = 30.0
"""For so long nothing is placed there."""
UNKNOWN_FOR_S: Final = 60.0
"""
A group that nobody wants is removed after that, not before: right after our own start nobody has said yet what runs and
what is wanted, and what is only asked for again would have to wait again.
"""
AUTOSCALER_SILENT_S: Final = 60.0
"""Ray's autoscaler looks every 5 s; its process can end without anybody being told."""
GIVE_BACK_WITHIN_S: Final = 600.0
"""A node that is given back holds nothing of ours; it ends at once unless other work of Ray's is there."""


class RayCluster(Protocol):
    """What the engine asks of Ray; `calls.RayCalls` is it, and says what is raised."""

    def look(self) -> ClusterSeen: ...

    def change(self, *, remove: Sequence[str], make: Sequence[NewGroup]) -> None: ...

    def give_back(self, raylet: str, *, reason: str, within_s: float) -> None: ...

    def boot(self, raylet: str, order: BootOrder) -> None: ...

    def close(self) -> None: ...


class NodeType(msgspec.Struct, frozen=True, kw_only=True):
    """A kind of machine that may be added."""

    name: str
    cpu_millis: int
    mem_bytes: int
    gpus: int = 0
    most: int
    """How many of them there may be, those that there are included."""


class RayEngine:
    """
    Grants leases on the nodes of a Ray cluster. Its cpu is not shared: what does not fit is pending, and adds a node.

    Args:
        calls: of a cluster that is there; closed with the engine.
        share: what of a node is for leases of ours; None: the node is none of ours.
        addable: kinds of machines that the cluster may be given, as far as it is known.
    """

    shares_cpu = False

    def __init__(
        self,
        *,
        calls: RayCluster,
        clock: Clock,
        share: Callable[[Node], Node | None] = lambda node: node,
        addable: Callable[[], Sequence[NodeType]] = lambda: (),
    ) -> None:
        self._calls = calls
        self._clock = clock
        self._share = share
        self._addable = addable
        self._guard = threading.RLock()
        self._ledger = Ledger((), apart=self._waits_for_a_second_node)
        self._ledger.follow(self._note_change)
        self._changed: Callable[[], None] = lambda: None
        self.revision = 0
        self._machines: dict[NodeId, RayNode] = {}
        self._additions = Additions()
        self._additions_since_s = clock.monotonic_s()
        """When Ray's autoscaler had last looked."""
        self._autoscaler_silent = False
        self._asked: dict[ReplicaId, AskedGroup] = {}
        self._granted: set[ReplicaId] = set()
        """Whoever asked has been told of its room: what Ray has held, and what ran before we asked it."""
        self._released_s: dict[ReplicaId, float] = {}
        """When: their groups go at once."""
        self._unknown_since_s: dict[ReplicaId, float] = {}
        self._avoided: dict[NodeId, str] = {}
        self._refused_until_s: dict[NodeId, float] = {}
        self._leaving: dict[NodeId, str] = {}
        """Nodes that are to be given back, with the reason."""
        self._boots: dict[NodeId, BootOrder] = {}
        """Orders that have not been carried out."""
        self._booted: dict[NodeId, Booted] = {}
        self._settled_at: int | None = None
        """The ledger's revision that Ray was seen to be equal to."""
        self._trouble = ""
        self._wake = threading.Event()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ray-engine", daemon=True)

    # ---- life ---------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """
        Look at the cluster for the first time, and have a thread go on with that.

        Raises:
            ClusterError: there is none that would have us; names what is wrong, within ten seconds.
            RetryLater: Ray does not answer.
        """
        self.turn()
        self._thread.start()

    def close(self) -> None:
        """Ask nothing more. What is leased stays leased."""
        self._closed.set()
        self._wake.set()
        self._calls.close()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def is_settled(self) -> bool:
        """Whether Ray has been seen to hold what is granted, to know what is wanted, and nothing else."""
        with self._guard:
            return self._settled_at == self._ledger.revision

    @property
    def trouble(self) -> str:
        """Why Ray was not asked or did not answer the last time, in words; empty: it did."""
        return self._trouble

    # ---- Engine -------------------------------------------------------------------------------------------------

    def follow(self, changed: Callable[[], None]) -> None:
        self._changed = changed

    def recover(self, running: Iterable[Lease]) -> None:
        with self._guard:
            there = [lease for lease in running if lease.node in self._machines]
            known = {lease.request.replica: lease for lease in self._ledger.leases()}
            for lease in there:
                replica = lease.request.replica
                before = known.get(replica)
                if before is None or before.state is not LeaseState.GRANTED or before.node != lease.node:
                    self._asked.pop(replica, None)
                self._grant(replica)
            self._ledger.recover(there)

    def nodes(self) -> tuple[Node, ...]:
        with self._guard:
            return self._ledger.nodes()

    def requested(self) -> dict[NodeId, Resources]:
        with self._guard:
            return self._ledger.requested()

    def leases(self) -> tuple[Lease, ...]:
        with self._guard:
            return tuple(map(self._shown, self._ledger.leases()))

    def acquire(self, request: LeaseRequest) -> None:
        with self._guard:
            self._ledger.acquire(request)

    def avoid(self, lost: Collection[NodeId], leaving: Collection[NodeId] = ()) -> None:
        with self._guard:
            self._avoided = {**dict.fromkeys(leaving, LEAVING), **dict.fromkeys(lost, "lost")}
            self._shut()

    def release(self, replica: ReplicaId) -> None:
        with self._guard:
            self._forget(replica)
            self._released_s[replica] = self._clock.monotonic_s()
            self._ledger.release(replica)

    def note_usage(self, peak_bytes: Mapping[ReplicaId, int]) -> None:
        with self._guard:
            self._ledger.note_usage(peak_bytes)

    def _waits_for_a_second_node(self, request: LeaseRequest) -> bool:
        """Only what is of an api's minimum, and only where a node can be had: others rather serve at once."""
        if not request.minimum or request.surge or self._additions.failed or self._autoscaler_silent:
            return False
        return any(count and holds(node, request.resources) for node, count in self._may_come())

    def impossible(self, resources: Resources, replicas: int = 1) -> str | None:
        with self._guard:
            there = list(self._ledger.nodes())
            for node, count in self._may_come():
                there += [node] * count
            return impossible_text(there, resources, replicas)

    def _may_come(self) -> list[tuple[Node, int]]:
        """Machines that may be added to those that there are, and how many of each kind."""
        kinds = [machine.kind for machine in self._machines.values()]
        return [
            (
                Node(node=NodeId(kind.name), cpu_millis=kind.cpu_millis, mem_bytes=kind.mem_bytes, gpus=kind.gpus),
                max(0, kind.most - kinds.count(kind.name)),
            )
            for kind in self._addable()
        ]

    # ---- what only a cluster has --------------------------------------------------------------------------------

    def machines(self) -> tuple[RayNode, ...]:
        """The raylets of our nodes, as they were last seen."""
        with self._guard:
            return tuple(self._machines.values())

    def give_back(self, node: NodeId, reason: str) -> None:
        """
        Have Ray end a node that holds nothing of ours any more. It takes nothing new from now on, and cannot be kept.

        Args:
            reason: in words, for whoever looks at Ray.
        """
        with self._guard:
            self._leaving[node] = reason
            self._shut()
            self._wake.set()

    def start_agent(self, node: NodeId, order: BootOrder) -> None:
        """
        Have our agent on a node: what becomes of it says `booted`. Once more is harmless there.

        A node that goes meanwhile is left alone; whoever wants an agent on the next of its name says so again.
        """
        with self._guard:
            self._boots[node] = order
            self._booted.pop(node, None)
            self._wake.set()

    def booted(self, node: NodeId) -> Booted | None:
        """What became of the last order to start an agent there; None: nothing yet, or there was none."""
        with self._guard:
            return self._booted.get(node)

    # ---- turns --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        wait_s = FIRST_LOOK_S
        while not self._closed.is_set():
            if self._wake.wait(wait_s):
                self._wake.clear()
                wait_s = FIRST_LOOK_S
            if self._closed.is_set():
                return
            try:
                wait_s = LOOK_EVERY_S if self.turn() else min(LOOK_EVERY_S, wait_s * 2)
                self._tell_of_trouble("")
            except (RetryLater, ClusterError) as error:
                wait_s = TRY_AGAIN_S
                self._tell_of_trouble(str(error))
            except Exception:
                wait_s = TRY_AGAIN_S
                log.exception("a look at the cluster failed")

    def _tell_of_trouble(self, trouble: str) -> None:
        with self._guard:
            before, self._trouble = self._trouble, trouble
            if trouble == before:
                return
            self.revision += 1  # and nobody is woken, as nothing is to be asked
            self._changed()
        if trouble:
            log.warning("%s", trouble)
        else:
            log.info("the cluster answers again")

    def turn(self) -> bool:
        """
        Look, take in, ask for what is lacking; whether nothing is awaited any more. What the thread does all the time.

        Raises:
            RetryLater, ClusterError: as `RayCalls.look`.
        """
        seen = self._calls.look()
        with self._guard:
            now_s = self._clock.monotonic_s()
            self._take_in(seen, now_s)
            revision = self._ledger.revision
            remove, make = self._lacking(seen, now_s)
            leaving = [
                (machine.raylet, reason)
                for node, reason in self._leaving.items()
                if (machine := self._machines.get(node)) is not None and not machine.draining
            ]
            boots = [
                (machine.raylet, order)
                for node, order in self._boots.items()
                if (machine := self._machines[node]).raylet not in seen.booting
            ]
        if remove or make:
            self._calls.change(remove=remove, make=[*make.values()])
        for raylet, reason in leaving:
            self._calls.give_back(raylet, reason=reason, within_s=GIVE_BACK_WITHIN_S)
        for raylet, order in boots:
            self._calls.boot(raylet, order)
        with self._guard:
            awaited = any(not one.placed for replica, one in self._asked.items() if replica not in self._granted)
            settled = not (remove or make or awaited or leaving or self._boots)
            self._settled_at = revision if settled else None
        return settled

    def _take_in(self, seen: ClusterSeen, now_s: float) -> None:
        """Have the ledger, and what we have asked for, be as Ray is seen to be."""
        found = groups.machines(seen.nodes)
        shares = {name: share for name, one in found.items() if (share := self._share(groups.node_of(one))) is not None}
        self._machines = {name: found[name] for name in shares}
        self._take_in_boots(seen)
        self._take_in_additions(seen.additions, now_s)
        of_replica = groups.by_replica(seen.groups)
        placed: dict[ReplicaId, NodeId] = {}
        lost: dict[ReplicaId, str] = {}
        refused: list[ReplicaId] = []
        for lease in self._ledger.leases():
            replica = lease.request.replica
            mine = of_replica.get(replica, ())
            if lease.state is LeaseState.PENDING and lease.request.node is None:
                node = groups.placed_on(mine, self._machines)
                if node is not None:
                    placed[replica] = node
                    self._hold(replica, node, now_s)
            elif lease.state is LeaseState.GRANTED and lease.node is not None:
                asked = self._asked.get(replica)
                match groups.finding(lease, asked, mine, self._machines):
                    case GroupFinding.HELD:
                        self._hold(replica, lease.node, now_s)
                    case GroupFinding.LOST:
                        is_there = lease.node in self._machines
                        why = f"Ray holds no room for it on node {lease.node} any more"
                        lost[replica] = why if is_there else f"node {lease.node} is gone"
                    case GroupFinding.WAITS:
                        late = asked is not None and now_s - asked.since_s >= PLACE_WITHIN_S
                        if late and replica not in self._granted:
                            refused.append(replica)
                            self._refused_until_s[lease.node] = now_s + REFUSED_FOR_S
        self._refused_until_s = {node: until for node, until in self._refused_until_s.items() if until > now_s}
        self._leaving = {node: why for node, why in self._leaving.items() if node in self._machines}
        self._shut()
        for replica in refused:
            self._asked.pop(replica, None)
            self._ledger.withdraw(replica)
        for replica in lost:
            self._forget(replica)
        self._ledger.take_in(shares.values(), placed=placed, lost=lost)

    def _take_in_additions(self, additions: Additions, now_s: float) -> None:
        before, self._additions = self._additions, additions
        if additions.turn != before.turn:
            self._additions_since_s = now_s
        silent = additions.turn > 0 and now_s - self._additions_since_s >= AUTOSCALER_SILENT_S
        if silent and not self._autoscaler_silent:
            log.error("Ray's autoscaler has not looked for %g s: no node is added or removed", AUTOSCALER_SILENT_S)
        if (additions.coming, additions.failed, silent) != (before.coming, before.failed, self._autoscaler_silent):
            self._autoscaler_silent = silent
            self._note_change()

    def _take_in_boots(self, seen: ClusterSeen) -> None:
        names = {machine.raylet: name for name, machine in self._machines.items()}
        for booted in seen.booted:
            if booted.raylet in names:
                self._booted[names[booted.raylet]] = booted
                self._boots.pop(names[booted.raylet], None)
        self._boots = {node: order for node, order in self._boots.items() if node in self._machines}
        self._booted = {node: booted for node, booted in self._booted.items() if node in self._machines}

    def _lacking(self, seen: ClusterSeen, now_s: float) -> tuple[list[str], dict[ReplicaId, NewGroup]]:
        """Groups to remove and to make, of which the latter are noted as asked for."""
        of_replica = groups.by_replica(seen.groups)
        leases = {lease.request.replica: lease for lease in self._ledger.leases()}
        raylets = [node.raylet for node in seen.nodes]
        wanted: dict[ReplicaId, WantedGroup] = {}
        left_millis = {node.node: node.cpu_millis for node in self._ledger.nodes()}
        may_wait = groups.most_demand(len(raylets))
        for replica, lease in leases.items():
            selector = groups.target(lease, self._machines, raylets)
            if selector is None:
                continue
            cpu_millis = lease.request.resources.cpu_millis
            if lease.node is not None:
                cpu_millis = min(cpu_millis, left_millis[lease.node])
                left_millis[lease.node] -= cpu_millis
            elif may_wait == 0:
                continue
            else:
                may_wait -= 1
            wanted[replica] = WantedGroup(resources=lease.request.resources, cpu_millis=cpu_millis, selector=selector)
        self._released_s = {
            one: since_s for one, since_s in self._released_s.items() if now_s - since_s < UNKNOWN_FOR_S
        }
        unknown = of_replica.keys() - leases.keys() - self._released_s.keys()
        self._unknown_since_s = {replica: self._unknown_since_s.get(replica, now_s) for replica in unknown}
        spare = {replica for replica, since_s in self._unknown_since_s.items() if now_s - since_s < UNKNOWN_FOR_S}
        remove, make = groups.changes(wanted, of_replica, spare=spare)
        for replica, new in make.items():
            if leases[replica].state is LeaseState.GRANTED:
                self._asked[replica] = AskedGroup(raylet=new.selector.raylets[0], since_s=now_s)
        return remove, make

    def _hold(self, replica: ReplicaId, node: NodeId, now_s: float) -> None:
        """Ray holds the room of a lease there."""
        raylet = self._machines[node].raylet
        asked = self._asked.get(replica)
        if asked is None or not asked.placed or asked.raylet != raylet:
            self._asked[replica] = AskedGroup(raylet=raylet, since_s=now_s, placed=True)
        self._grant(replica)

    def _grant(self, replica: ReplicaId) -> None:
        if replica not in self._granted:
            self._granted.add(replica)
            self._note_change()

    def _forget(self, replica: ReplicaId) -> None:
        self._asked.pop(replica, None)
        self._granted.discard(replica)

    def _shut(self) -> None:
        """Tell the ledger where nothing is to be placed, and why."""
        shut = dict.fromkeys(self._refused_until_s, "Ray has not given the room that it says there is")
        shut |= {node: "is being given back" for node, machine in self._machines.items() if machine.draining}
        shut |= dict.fromkeys(self._leaving, "is being given back")
        shut |= self._avoided
        self._ledger.shut(shut)

    def _shown(self, lease: Lease) -> Lease:
        """A lease as whoever asked is told of it: what our ledger has placed is granted once Ray has."""
        if lease.state is LeaseState.PENDING:
            outlook = self._outlook(lease)
            return msgspec.structs.replace(lease, reason=f"{lease.reason}; {outlook}") if outlook else lease
        if lease.state is LeaseState.GRANTED and lease.request.replica not in self._granted:
            reason = f"asked of Ray, on node {lease.node}"
            reason = f"{reason}; {self._trouble}" if self._trouble else reason
            return msgspec.structs.replace(lease, state=LeaseState.PENDING, node=None, devices=(), reason=reason)
        return lease

    def _outlook(self, lease: Lease) -> str:
        """What becomes of a lease for which there is no room."""
        if lease.request.node is not None:
            return ""
        if self._trouble:
            return self._trouble
        if self._autoscaler_silent:
            return "Ray's autoscaler does not run, so that no node is added"
        if self._additions.coming:
            return "a node is being added" if self._additions.coming == 1 else "nodes are being added"
        return f"no node could be added: {self._additions.failed[0]}" if self._additions.failed else ""

    def _note_change(self) -> None:
        self.revision += 1
        self._wake.set()
        self._changed()
