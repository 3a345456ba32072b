"""Who kills and stops processes as the schedule has it."""

from __future__ import annotations

import contextlib
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
from cortex.wire.operator import Status
from faults.judgement import Kill
from faults.schedule import LOADING, Fault

LOOKS_EACH_S = 0.02
ASKS_AGAIN_AFTER_S = 0.2
ANSWERS_WITHIN_S = 2.0
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
        while (waiting or ambush) and not self._stopped.wait(LOOKS_EACH_S):
            if ambush is not None and ambush.sprung(self._hit):
                ambush = None
            if not waiting or waiting[0].at_s > self._clock():
                continue
            if waiting[0].kind == LOADING:
                if ambush is None and (not self._one_at_a_time or self._is_whole()):
                    ambush = Ambush(self._world, waiting.pop(0))
            elif self._may_strike(waiting[0]) and self._strike(waiting[0]):
                waiting.pop(0)
            else:
                self._stopped.wait(ASKS_AGAIN_AFTER_S)

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

    def _control_plane(self) -> OperatorClient | None:
        """One that answers, and has an agent that runs."""
        try:
            operator = self._world.operator()
            agent_pid = operator.info(timeout_s=ANSWERS_WITHIN_S).agent_pid
        except CortexError:
            return None
        return operator if agent_pid in self._world.processes() else None

    def _is_whole(self) -> bool:
        """Whether each api has a replica, or sleeps."""
        operator = self._control_plane()
        try:
            apis = operator.apis(timeout_s=ANSWERS_WITHIN_S) if operator is not None else ()
        except CortexError:
            return False
        return bool(apis) and all(api.status is Status.ASLEEP or api.replicas.ready for api in apis)

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


def _replicas(world: World) -> dict[int, str]:
    return {pid: title for pid, title in world.processes().items() if title.startswith("cortex-replica ")}


def _api(title: str) -> str:
    """Of `cortex-replica HOME chaos/one 69327b78 …`."""
    return title.split()[2].partition("/")[2]


def _is_stopped(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_bytes().rsplit(b")", 1)[1].split()[0] == b"T"
    return False
