"""`kill -9` of everything that can be killed on a node, alone and together: nothing is lost, and all comes back."""

from __future__ import annotations

import random
import signal
import time

import pytest
from agent_harness import Node, eventually

from cortex.ids import ReplicaId
from cortex.processes import is_alive, send_signal
from cortex.wire.orders import ForgetReplica
from cortex.wire.reports import Phase

pytestmark = pytest.mark.slow


def _exit_of(node: Node, replica: ReplicaId, *, attempt: int = 1):
    report = node.until(replica, Phase.EXITED, attempt=attempt)
    assert report.exit is not None
    return report.exit


def test_a_request_waits_for_the_successor_of_a_killed_replica(node: Node, api: str):
    build = node.build(api)
    (replica,) = node.serve(build)
    node.kill(node.of(node.until(replica, Phase.READY)))
    found = _exit_of(node, replica)
    assert (found.signal, found.code, found.drained) == (signal.SIGKILL, None, False)
    asking = node.posting(build)
    node.restart(build)
    assert asking.outcome()[0] == 200
    assert node.until(replica, Phase.READY, attempt=2).was_ready


def test_requests_that_nobody_comes_for_are_told_so(hasty_node: Node, api: str):
    """They would wait for ten minutes, the api's own timeout, and this test for one."""
    build = hasty_node.build(api)
    (replica,) = hasty_node.serve(build)
    hasty_node.kill(hasty_node.of(hasty_node.until(replica, Phase.READY)))
    status, _ = hasty_node.posting(build).outcome()
    assert status == 503


def test_the_next_agent_adopts_what_runs(node: Node, names):
    builds = [node.build(names()) for _ in range(2)]
    replicas = [node.serve(build)[0] for build in builds]
    before = [node.until(replica, Phase.READY).pid for replica in replicas]
    last = node.report()
    node.kill_agent()
    assert [node.post(build)[0] for build in builds] == [200, 200], "requests need no agent"
    report = node.start()
    assert report.agent != last.agent
    assert (report.epoch, report.routes) == (last.epoch, last.routes)
    assert [node.until(replica, Phase.READY).pid for replica in replicas] == before
    assert [node.post(build)[0] for build in builds] == [200, 200]


def test_what_died_without_an_agent_is_reported_with_how_it_died(node: Node, api: str):
    build = node.build(api)
    (replica,) = node.serve(build)
    identity = node.of(node.until(replica, Phase.READY))
    node.kill_agent()
    node.kill(identity)
    asking = node.posting(build)
    node.start()
    assert _exit_of(node, replica).signal == signal.SIGKILL
    node.restart(build)
    assert asking.outcome()[0] == 200


def test_a_killed_launcher_costs_nothing_and_its_replicas_are_still_watched(node: Node, names):
    node.kill(*node.processes("cortex-launcher"))  # one that a former agent started would leave its orphans to init
    build = node.build(names())
    (replica,) = node.serve(build)
    before = node.until(replica, Phase.READY)
    launcher = node.only("cortex-launcher")
    node.kill(launcher)
    assert node.post(build)[0] == 200
    assert node.until(replica, Phase.READY).pid == before.pid
    other = node.build(names())
    node.serve(other)
    assert node.only("cortex-launcher") != launcher
    node.kill(node.of(before))
    assert _exit_of(node, replica).signal == signal.SIGKILL


def test_a_launcher_killed_again_and_again_forks_each_replica_once(node: Node, names):
    rng = random.Random(1)
    node.serve(node.build(names()))  # without anybody who needs it there may be no launcher
    for _ in range(3):
        build = node.build(names())
        start = node.start_order(build)
        launcher = node.only("cortex-launcher")
        node.order(start)
        time.sleep(rng.uniform(0, 0.02))
        node.kill(launcher)
        node.until(start.replica, Phase.READY)
        title = f"cortex-replica {node.layout.home} {build.api} "
        assert len(node.processes(title)) == 1
        node.remove(build, start.replica)


def test_a_killed_keeper_is_replaced_and_given_every_slot(node: Node, api: str):
    build = node.build(api)
    (replica,) = node.serve(build)
    keeper = node.only("cortex-keeper")
    node.kill(keeper)
    other = eventually(lambda: [one for one in node.processes("cortex-keeper") if one != keeper], "there is another")[0]
    assert node.report().agent
    eventually(lambda: node.is_kept(replica), "it holds the slot")
    # Only the keeper is left to hold it now.
    replica_process = node.of(node.until(replica, Phase.READY))
    launcher = node.only("cortex-launcher")
    node.kill_agent()
    node.kill(replica_process, launcher)
    asking = node.posting(build)
    node.start()
    assert is_alive(other)
    node.until(replica, Phase.EXITED)
    node.restart(build)
    assert asking.outcome()[0] == 200


def test_a_request_waits_while_agent_launcher_and_replica_die_together(node: Node, api: str):
    build = node.build(api)
    (replica,) = node.serve(build)
    identity = node.of(node.until(replica, Phase.READY))
    launcher = node.only("cortex-launcher")
    node.kill_agent()
    node.kill(launcher, identity)
    asking = node.posting(build)
    node.start()
    node.until(replica, Phase.EXITED)
    node.restart(build)
    assert asking.outcome()[0] == 200


def test_everything_on_the_node_killed_at_once_comes_back(own_node: Node, api: str):
    node = own_node
    build = node.build(api)
    (replica,) = node.serve(build)
    node.kill_agent()
    node.kill(*node.processes())
    node.start()
    node.until(replica, Phase.EXITED)
    node.restart(build)
    node.until(replica, Phase.READY, attempt=2)
    eventually(lambda: node.answers(build), "it answers again")
    assert node.stop() == 0
    assert node.is_empty()


def test_a_record_that_cannot_be_read_costs_its_replica_and_nothing_else(node: Node, names):
    broken, well = node.build(names()), node.build(names())
    (lost,), (kept,) = node.serve(broken), node.serve(well)
    identity = node.of(node.until(lost, Phase.READY))
    node.kill_agent()
    node.files_of(lost)[-1].write_bytes(b"\xff{")
    node.start()
    assert node.seen(lost) is None
    assert node.until(kept, Phase.READY)
    eventually(lambda: not is_alive(identity) and not node.files_of(lost), "it is gone")
    node.order(node.start_order(broken))
    node.until(lost, Phase.READY)
    eventually(lambda: node.answers(broken), "it answers again")


def test_a_replica_whose_socket_file_was_removed_is_started_again_on_another(node: Node, api: str):
    build = node.build(api)
    (replica,) = node.serve(build)
    node.files_of(replica)[0].unlink()
    found = _exit_of(node, replica)
    assert found.problem is not None
    assert found.problem.reference == "socket-removed"
    node.restart(build)
    node.until(replica, Phase.READY, attempt=2)
    eventually(lambda: node.answers(build), "it answers again")


def test_the_next_agent_does_not_trust_a_slot_whose_file_is_gone(node: Node, api: str):
    build = node.build(api)
    (replica,) = node.serve(build)
    node.kill_agent()
    node.files_of(replica)[0].unlink()
    node.start()
    node.until(replica, Phase.EXITED)
    node.restart(build)
    node.until(replica, Phase.READY, attempt=2)
    eventually(lambda: node.answers(build), "it answers again")


def test_an_agent_whose_socket_file_was_removed_makes_it_again(node: Node):
    before = node.report().agent
    node.layout.agent_socket.unlink()
    eventually(node.layout.agent_socket.exists, "there is a socket again")
    with node.another_line() as other:
        assert other.report().agent == before


def test_an_agent_killed_at_any_moment_leaves_nothing_that_the_next_one_does_not_know(node: Node, names):
    """Starts and forgets under fire, then counts: one process for each replica that is reported, none besides."""
    rng = random.Random(20)
    wanted = {}
    for _ in range(6):
        build = node.build(names())
        wanted[node.start_order(build).replica] = build
        orders = [node.start_order(build)]
        if rng.random() < 0.5 and len(wanted) > 1:
            gone = rng.choice(sorted(wanted))
            del wanted[gone]
            orders.append(ForgetReplica(replica=gone))
        node.order(*orders)
        time.sleep(rng.uniform(0, 0.05))
        node.kill_agent()
        node.start()
    for replica, build in wanted.items():
        if node.seen(replica) is None:
            node.order(node.start_order(build))
    for replica in wanted:
        found = eventually(lambda replica=replica: _settled(node, replica), f"{replica} has come to rest")
        assert len(node.processes(f"cortex-replica {node.layout.home} {found.api} ")) == (found.phase is Phase.READY)
    node.order(*(ForgetReplica(replica=replica) for replica in wanted))
    for replica, build in wanted.items():
        title = f"cortex-replica {node.layout.home} {build.api} "
        eventually(lambda r=replica, t=title: not node.files_of(r) and not node.processes(t), "nothing is left of it")


def _settled(node: Node, replica: ReplicaId):
    found = node.seen(replica)
    return found if found is not None and found.phase in (Phase.READY, Phase.EXITED) else None


def test_a_stopped_launcher_goes_on_as_soon_as_it_is_needed_and_the_waiting_request_is_answered(node: Node, api):
    """
    Two looks, 0.3 s apart while the end of the replica is found out and 0.25 s apart during the fork: well below the
    5 s that a request waits for a replica.
    """
    build = node.build(api)
    (replica,) = node.serve(build)
    identity = node.of(node.until(replica, Phase.READY))
    launcher = node.only("cortex-launcher")
    send_signal(launcher, signal.SIGSTOP)
    node.kill(identity)
    asking = node.posting(build)
    assert _exit_of(node, replica).signal == signal.SIGKILL
    send_signal(launcher, signal.SIGSTOP)
    node.restart(build)
    assert asking.outcome()[0] == 200
    assert node.only("cortex-launcher") == launcher


def test_what_is_stopped_while_it_waits_to_become_a_replica_goes_on(node: Node, api: str):
    build = node.build(api)
    assert node.inspect(build, keep=True).problems == ()
    waiting = node.only(f"cortex-inspect {node.layout.home} {build.api}")
    send_signal(waiting, signal.SIGSTOP)
    (replica,) = node.serve(build)
    assert node.until(replica, Phase.READY).pid == waiting.pid


def test_a_stopped_launcher_inspects_all_the_same(node: Node, api):
    node.serve(node.build(api))
    launcher = node.only("cortex-launcher")
    send_signal(launcher, signal.SIGSTOP)
    assert node.inspect(node.build(f"{api}i")).problems == ()
