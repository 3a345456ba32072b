"""How much there is to do, from a replica's process through a real agent to whoever follows it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest
from agent_harness import DEADLINE_S, Node, eventually

from cortex.ids import ReplicaId
from cortex.testing.linked_agents import local_agents
from cortex.wire.agent import FollowedLoads, FollowLoads
from cortex.wire.loads import HANDLER, LOOP, LoadReading, NodeLoads

pytestmark = pytest.mark.slow

WAITS_S = 0.1
WAITING = f"import time\ndef pre_inference(sample, metadata):\n    time.sleep({WAITS_S})\n    return sample\n"
BURNS_S = 0.3
CHILD = f"import time\nuntil_s = time.process_time() + {BURNS_S}\nwhile time.process_time() < until_s: pass\n"
WITH_CHILDREN = f"""\
import subprocess, sys
def pre_inference(sample, metadata):
    subprocess.run([sys.executable, "-c", {CHILD!r}], check=True)
    return sample
"""


class Follower:
    """A control plane's line to the agent, and what it was told."""

    def __init__(self, node: Node) -> None:
        self.told: list[NodeLoads] = []
        self.stumbles = False
        """Whoever is told fails over it."""
        self._news = threading.Condition()
        self.agent = local_agents(node.settings, node.layout, on_loads=self._take)
        self.agent.start()

    def _take(self, loads: NodeLoads) -> None:
        with self._news:
            self.told.append(loads)
            self._news.notify_all()
        if self.stumbles:
            raise ValueError("a fault of whoever is told")

    def until(self, accept: Callable[[NodeLoads], bool], what: str) -> NodeLoads:
        """The first that is told from now on and acceptable."""
        seen = len(self.told)
        with self._news:
            found = self._news.wait_for(lambda: [one for one in self.told[seen:] if accept(one)], DEADLINE_S)
        assert found, f"not told within {DEADLINE_S:g} s: {what}"
        return found[0]

    def reading(self, replica: ReplicaId, accept: Callable[[LoadReading], bool], what: str) -> LoadReading:
        def has(loads: NodeLoads) -> bool:
            return any(one.replica == replica and accept(one) for one in loads.replicas)

        return next(one for one in self.until(has, what).replicas if one.replica == replica)


@pytest.fixture
def follower(own_node: Node) -> Iterator[Follower]:
    follower = Follower(own_node)
    yield follower
    follower.agent.stop_agents(0.5)  # it starts one itself when the test has killed the node's, and has to collect it
    follower.agent.close()


def busy_s(reading: LoadReading, row: str = HANDLER) -> float:
    return next(one.busy_s for one in reading.rows if one.row == row)


def test_what_is_asked_of_a_replica_is_told_within_seconds_and_what_it_used_with_it(
    own_node: Node, follower: Follower, api: str
) -> None:
    build = own_node.build(api, WAITING)
    (replica,) = own_node.serve(build)
    before = follower.reading(replica, lambda one: one.in_flight == 0, "it is ready")
    asked = [own_node.posting(build) for _ in range(5)]
    under_way = follower.reading(replica, lambda one: one.in_flight > 0, "a request is under way")
    assert under_way.at_s > before.at_s
    assert all(one.outcome()[0] == 200 for one in asked)
    after = follower.reading(replica, lambda one: one.ended >= before.ended + 5, "they have ended")
    assert (after.api, after.revision, after.attempt) == (build.api, build.revision, 1)
    assert busy_s(after) - busy_s(before) >= 5 * WAITS_S
    assert busy_s(after) <= after.at_s - after.ready_s
    assert busy_s(after, LOOP) < busy_s(after)
    assert after.ready_s == before.ready_s
    loads = follower.told[-1]
    assert loads.busy_cpu_s > 0
    assert after.at_s <= time.monotonic()


def test_what_children_of_a_replica_use_is_told_and_stays_told_once_they_have_ended(
    own_node: Node, follower: Follower, api: str
) -> None:
    build = own_node.build(api, WITH_CHILDREN)
    (replica,) = own_node.serve(build)
    before = follower.reading(replica, lambda one: one.in_flight == 0 and one.ended > 0, "it has answered")
    for _ in range(2):
        assert own_node.post(build)[0] == 200
    after = follower.reading(
        replica, lambda one: one.ended >= before.ended + 2 and not one.in_flight, "they have ended"
    )
    assert after.cpu_s - before.cpu_s >= 2 * BURNS_S - 0.1
    told = [one.cpu_s for loads in follower.told for one in loads.replicas if one.replica == replica]
    assert told == sorted(told)


def test_a_replica_that_is_killed_is_told_no_more_and_its_next_attempt_begins_anew(
    own_node: Node, follower: Follower, api: str
) -> None:
    build = own_node.build(api, WAITING)
    (replica,) = own_node.serve(build)
    first = follower.reading(replica, lambda one: one.ended > 0, "it has answered")
    own_node.kill(own_node.of(own_node.report().replicas[0]))
    follower.until(lambda loads: not loads.replicas, "it is gone")
    own_node.restart(build)
    second = follower.reading(replica, lambda one: one.attempt == 2, "it is there again")
    assert second.ended == 0
    assert second.ready_s > first.ready_s


def test_an_agent_that_is_killed_is_followed_again_and_what_replicas_did_meanwhile_is_not_lost(
    own_node: Node, follower: Follower, api: str
) -> None:
    build = own_node.build(api, WAITING)
    (replica,) = own_node.serve(build)
    before = follower.reading(replica, lambda one: one.ended > 0, "it has answered")
    former = follower.told[-1].agent
    own_node.kill_agent()
    assert own_node.post(build)[0] == 200
    loads = follower.until(lambda loads: loads.agent != former and bool(loads.replicas), "another agent tells")
    (after,) = loads.replicas
    assert (after.replica, after.attempt, after.ready_s) == (before.replica, before.attempt, before.ready_s)
    assert after.ended >= before.ended
    follower.reading(replica, lambda one: one.ended == before.ended + 1, "what was done meanwhile is told")


def test_who_fails_over_what_it_is_told_is_told_on(own_node: Node, follower: Follower, api: str) -> None:
    own_node.serve(own_node.build(api))
    follower.stumbles = True
    for _ in range(2):
        follower.until(lambda loads: True, "it is told again")


def test_a_replica_that_leaves_is_told_no_more(own_node: Node, follower: Follower, api: str) -> None:
    build = own_node.build(api)
    (replica,) = own_node.serve(build)
    follower.reading(replica, lambda one: True, "it is ready")
    own_node.remove(build, replica)
    follower.until(lambda loads: not loads.replicas, "it has left")
    eventually(lambda: not list(own_node.layout.stats.glob("*.load")), "its page is gone")


def test_who_asks_for_the_first_time_is_answered_at_once_and_then_when_something_has_happened(
    node: Node, api: str
) -> None:
    build = node.build(api)
    node.serve(build)
    with node.another_line() as line:
        first = line.ask(FollowLoads(timeout_s=DEADLINE_S))
        assert isinstance(first, FollowedLoads)
        assert [one.api for one in first.loads.replicas] == [build.api]
        eventually(lambda: not _moves(line, first.loads.agent), "it is quiet")
        node.post(build)
        began_s = time.monotonic()
        told = line.ask(FollowLoads(agent=first.loads.agent, timeout_s=DEADLINE_S))
    assert isinstance(told, FollowedLoads)
    assert time.monotonic() - began_s < DEADLINE_S / 2
    assert told.loads.replicas[0].ended > first.loads.replicas[0].ended


def _moves(line: Node, agent: str) -> bool:
    """Whether answers come before their time."""
    began_s = time.monotonic()
    line.ask(FollowLoads(agent=agent, timeout_s=1.5))
    return time.monotonic() - began_s < 1.4
