"""Who kills and stops processes as the schedule has it."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from world import World

from cortex.client.operator import OperatorClient
from cortex.errors import CortexError
from cortex.wire.operator import ApiStatus, NodeState, Status
from faults.judgement import Absence, Kill
from faults.schedule import LOADING, NODE, Fault

LOOKS_EACH_S = 0.02
ASKS_AGAIN_AFTER_S = 0.2
ANSWERS_WITHIN_S = 2.0
MADE_UP_FOR_WITHIN_S = 90.0
"""After a node may be back; nobody else is hit until then."""
FORKED_WITHIN_S = 20.0
"""A loading replica is waited for so long; then another one is killed."""


class Killer:
    """
    A thread of its own.

    Args:
        clock: seconds of the schedule.
        one_at_a_time: nothing is hit before what was hit last is made up for, for machines with much else to do.
        tell: takes a line about what happens.
    """

    def __init__(
        self,
        world: World,
        faults: Sequence[Fault],
        clock: Callable[[], float],
        tell: Callable[[str], None],
        *,
        one_at_a_time: bool = False,
    ) -> None:
        self._world = world
        self._faults = faults
        self._clock = clock
        self._one_at_a_time = one_at_a_time
        self._tell = tell
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="killer")
        self.kills: list[Kill] = []
        """Of replicas."""
        self.absences: list[Absence] = []
        """Of nodes."""
        self.complaints: list[str] = []
        self.done: Counter[str] = Counter()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Whatever has not happened yet does not."""
        self._stopped.set()
        self.join()

    def join(self) -> None:
        self._thread.join()

    def _run(self) -> None:
        waiting = list(self._faults)
        ambush: Ambush | None = None
        emptied: EmptiedNode | None = None
        while (waiting or ambush or emptied) and not self._stopped.wait(LOOKS_EACH_S):
            if emptied is not None:
                if emptied.may_be_back() and self._is_made_up_for(emptied):
                    self.absences[-1].until_s = time.monotonic()
                    emptied = None
                continue
            if ambush is not None and ambush.sprung(self._hit):
                ambush = None
            if not waiting or waiting[0].at_s > self._clock():
                continue
            if waiting[0].kind == NODE:
                if ambush is None and (emptied := self._emptied(waiting[0])) is not None:
                    waiting.pop(0)
                else:
                    self._stopped.wait(ASKS_AGAIN_AFTER_S)
                continue
            if waiting[0].kind == LOADING:
                if ambush is None and (not self._one_at_a_time or self._is_whole()):
                    ambush = Ambush(self._world, waiting.pop(0))
            elif self._may_strike(waiting[0]) and self._strike(waiting[0]):
                waiting.pop(0)
            else:
                self._stopped.wait(ASKS_AGAIN_AFTER_S)
        if emptied is not None:
            emptied.let_go()

    def _may_strike(self, fault: Fault) -> bool:
        """
        Whether it is time.

        Of ours nobody is hit before control plane and agent are back, who look after each other and the rest; nobody at
        all while one is stopped; and nobody is stopped, which takes seconds to be noticed, while an api has no replica.
        """
        if any(map(_is_stopped, self._world.processes())):
            return False
        if self._one_at_a_time or fault.stops:
            return self._is_whole()
        return fault.kind == "replica" or self._control_plane() is not None

    def _emptied(self, fault: Fault) -> EmptiedNode | None:
        """The node, once nothing runs there; None: it is not time, since not everything is as it should be."""
        apis = self._apis()
        if any(map(_is_stopped, self._world.processes())) or not _are_whole(apis):
            return None
        alone = frozenset(api.name for api in apis if min(api.replicas.ready, api.replicas.requested) < 2)
        node = EmptiedNode(self._world, self._world.home_of(self._world.nodes()[fault.node]), fault.away_s)
        self.absences.append(Absence(time.monotonic(), alone))
        self._tell(f"kills {node.home.name}, for {fault.away_s:.1f} s; alone: {', '.join(sorted(alone))}")
        for pid, title in node.empty():
            if title.startswith("cortex-replica "):
                self.kills.append(Kill(self.absences[-1].at_s, _api(title), pid))
            self._tell(f"killed {pid} {title}")
        self.done["kill -9 of a whole node"] += 1
        return node

    def _is_made_up_for(self, node: EmptiedNode) -> bool:
        if not node.is_overdue():
            return self._is_whole()
        self.complaints.append(f"{node.home.name} came back, and not all was well after {MADE_UP_FOR_WITHIN_S:g} s")
        return True

    def _control_plane(self) -> OperatorClient | None:
        """One that answers, and has agents that run."""
        try:
            operator = self._world.operator()
            info = operator.info(timeout_s=ANSWERS_WITHIN_S)
        except CortexError:
            return None
        processes = self._world.processes()
        homes = [self._world.home_of(node) for node in self._world.nodes()]
        is_well = (
            info.agent_pid in processes
            and all(node.state is NodeState.READY for node in info.nodes)
            and all(f"cortex-agent {home}" in processes.values() for home in homes)
        )
        return operator if is_well else None

    def _is_whole(self) -> bool:
        return _are_whole(self._apis())

    def _apis(self) -> tuple[ApiStatus, ...]:
        """Empty while control plane or agents are not what they should be."""
        operator = self._control_plane()
        try:
            return operator.apis(timeout_s=ANSWERS_WITHIN_S) if operator is not None else ()
        except CortexError:
            return ()

    def _strike(self, fault: Fault) -> bool:
        """Whether there was anybody to hit."""
        found = [
            (pid, title)
            for pid, title in sorted(self._world.processes().items())
            if title.startswith(f"cortex-{fault.kind} ")
        ]
        return bool(found) and self._hit(*found[int(fault.chance * len(found))], fault)

    def _hit(self, pid: int, title: str, fault: Fault) -> bool:
        if fault.kind in ("replica", LOADING):
            self.kills.append(Kill(time.monotonic(), _api(title), pid))
        try:
            os.kill(pid, signal.SIGSTOP if fault.stops else signal.SIGKILL)
        except ProcessLookupError:
            return False
        self.done[f"{'stop' if fault.stops else 'kill -9'} of {fault.kind}"] += 1
        self._tell(f"{'stopped' if fault.stops else 'killed'} {fault.kind} {pid} {title}")
        return True


class EmptiedNode:
    """
    A node on which nothing runs, and on which nothing shall for a while: its agent is started again at once by whoever
    looks after it, and is held before it has begun, as a machine is that takes its time to come up.
    """

    def __init__(self, world: World, home: Path, away_s: float) -> None:
        self.home = home
        self._world = world
        self._away_s = away_s
        self._back_s = math.inf
        self._held: set[int] = set()

    def empty(self) -> list[tuple[int, str]]:
        """Kill all that runs there; returns who that was."""
        killed: dict[int, str] = {}
        # Who starts others goes first; whom they had just started is found with another look.
        while found := {pid: title for pid, title in self._running().items() if pid not in killed}:
            if killed and all("agent" in title for title in found.values()):
                break
            for pid in sorted(found, key=lambda pid: ("agent" not in found[pid], "launcher" not in found[pid])):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            killed |= found
        self._back_s = time.monotonic() + self._away_s
        return sorted(killed.items())

    def may_be_back(self) -> bool:
        """Whether its time is over; until then who is started there is held."""
        if time.monotonic() >= self._back_s:
            self.let_go()
            return True
        for pid in self._running().keys() - self._held:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
                self._held.add(pid)
        return False

    def let_go(self) -> None:
        for pid in self._held:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        self._held.clear()

    def is_overdue(self) -> bool:
        return time.monotonic() > self._back_s + MADE_UP_FOR_WITHIN_S

    def _running(self) -> dict[int, str]:
        home = str(self.home)
        return {
            pid: title
            for pid, title in self._world.processes().items()
            if f"{home} " in f"{title} " or f"{home}/" in title
        }


class Ambush:
    """Waits for a replica that was not there."""

    def __init__(self, world: World, fault: Fault) -> None:
        self._world = world
        self._fault = fault
        self._there = set(_replicas(world))
        self._ends_s = time.monotonic() + FORKED_WITHIN_S

    def sprung(self, hit: Callable[[int, str, Fault], bool]) -> bool:
        """Whether it is over."""
        now = _replicas(self._world)
        for pid in now.keys() - self._there:
            return hit(pid, now[pid], self._fault)
        if time.monotonic() < self._ends_s or not now:
            return False
        pid = sorted(now)[int(self._fault.chance * len(now))]
        return hit(pid, now[pid], Fault(self._fault.at_s, "replica"))


def _are_whole(apis: Sequence[ApiStatus]) -> bool:
    """Whether each api has a replica, or sleeps."""
    return bool(apis) and all(api.status is Status.ASLEEP or api.replicas.ready for api in apis)


def _replicas(world: World) -> dict[int, str]:
    return {pid: title for pid, title in world.processes().items() if title.startswith("cortex-replica ")}


def _api(title: str) -> str:
    """Of `cortex-replica HOME chaos/one 69327b78 …`."""
    return title.split()[2].partition("/")[2]


def _is_stopped(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_bytes().rsplit(b")", 1)[1].split()[0] == b"T"
    return False
