"""
`python -m cortex.engines.ray.driver FD`: makes the calls to Ray that are asked for on a socket, one after another.

Started by `calls.py` and by nobody else. It may hang in a call, or be ended by Ray in the middle of one; whoever asks
has a deadline. It ends with whoever asks.
"""

from __future__ import annotations

import os
import select
import socket
import sys
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final

import msgspec
import setproctitle

from cortex.engines.ray import boot
from cortex.engines.ray.groups import read_selector, selector_text
from cortex.engines.ray.messages import (
    Additions,
    Answer,
    Boot,
    Booted,
    Bundle,
    Change,
    ClusterSeen,
    Connect,
    Done,
    Failed,
    GiveBack,
    Group,
    LookAtCluster,
    Missing,
    Probe,
    Probed,
    Question,
    RayNode,
    TokenRefused,
    Unreachable,
    VersionsDiffer,
)
from cortex.engines.ray.ourwheel import WHEEL_NAME, our_wheel
from cortex.version import __version__
from cortex.wire.framing import ConnectionLost, receive_frame, send_frame

if TYPE_CHECKING:
    from ray._raylet import GcsClient

DIAL_TIMEOUT_S: Final = 3.0
RPC_TIMEOUT_S: Final = 5
"""Seconds, whole ones, for Ray's own deadlines; whoever asks waits longer."""
NODE_ID_LABEL: Final = "ray.io/node-id"
"""Source: Ray's documentation, "Labels", default node labels."""


class Driver:
    """Answers questions, one at a time. Everything that it knows is lost with it, and none of it is missed."""

    def __init__(self) -> None:
        self._client: GcsClient | None = None
        self._accessor: Any = None
        self._namespace = ""
        self._boots: dict[str, Any] = {}
        """Tasks that have not ended, by their raylets."""
        self._wheel: Any = None

    def answer(self, question: Question) -> Answer:
        """The answer; what Ray raises is one as well."""
        try:
            match question:
                case Probe(address=address):
                    return self._probe(address)
                case Connect():
                    return self._connect(question)
                case LookAtCluster():
                    return self._look()
                case Change():
                    return self._change(question)
                case GiveBack():
                    return self._give_back(question)
                case Boot():
                    return self._boot(question)
        except ImportError as error:
            return Missing(why=str(error))
        except Exception as error:
            return TokenRefused() if _is_about_the_token(error) else Failed(what=_in_a_line(error))

    def _probe(self, address: str) -> Answer:
        """Ray's own clients wait for half a minute for a head that is not there, so it is dialled by hand before."""
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=DIAL_TIMEOUT_S).close()
        except (OSError, ValueError, OverflowError) as error:
            return Unreachable(why=_in_a_line(error))
        import ray
        from ray._common.usage import usage_lib
        from ray._raylet import GcsClient

        try:
            self._client = GcsClient(address=address)
            about = usage_lib.get_cluster_metadata(self._client)
        except Exception as error:
            return TokenRefused() if _is_about_the_token(error) else Unreachable(why=_in_a_line(error))
        python = ".".join(map(str, sys.version_info[:3]))
        ours = f"Ray {ray.__version__} on Python {python}"
        theirs = f"Ray {about['ray_version']} on Python {about['python_version']}"
        if ours != theirs:
            return VersionsDiffer(ours=ours, theirs=theirs)
        return Probed(nodes=self._nodes())

    def _connect(self, question: Connect) -> Answer:
        import ray
        from ray._raylet import GcsClientOptions, GlobalStateAccessor

        ray.init(
            address=question.address,
            namespace=question.namespace,
            log_to_driver=False,
            configure_logging=False,
            include_dashboard=False,
            _node_ip_address=question.beside,
        )
        self._namespace = question.namespace
        self._accessor = GlobalStateAccessor(GcsClientOptions.create(question.address, None, True, True))
        if not self._accessor.connect():
            return Failed(what="its tables cannot be read")
        return Done()

    def _look(self) -> ClusterSeen:
        from ray.core.generated import gcs_pb2

        # Groups first: one that was placed while we look is then on a node that we see.
        rows = map(gcs_pb2.PlacementGroupTableData.FromString, self._accessor.get_placement_group_table())
        groups = tuple(_group(row) for row in rows if self._is_ours(row))
        nodes, additions, booted = self._nodes(), self._additions(), self._booted()
        return ClusterSeen(nodes=nodes, groups=groups, additions=additions, booting=tuple(self._boots), booted=booted)

    def _is_ours(self, row: Any) -> bool:
        return bool(row.ray_namespace == self._namespace and row.state != row.REMOVED and len(row.bundles) == 1)

    def _nodes(self) -> tuple[RayNode, ...]:
        from ray.core.generated import gcs_pb2

        assert self._client is not None
        draining = set(self._client.get_draining_nodes(timeout=RPC_TIMEOUT_S))
        known = self._client.get_all_node_info(timeout=RPC_TIMEOUT_S, state_filter=gcs_pb2.GcsNodeInfo.ALIVE)
        return tuple(_node(info, draining=info.node_id.hex() in draining) for info in known.values())

    def _additions(self) -> Additions:
        from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply

        assert self._client is not None
        reply = GetClusterStatusReply()
        reply.ParseFromString(self._client.get_cluster_status(timeout_s=RPC_TIMEOUT_S))
        state = reply.autoscaling_state
        return Additions(
            coming=sum(request.count for request in state.pending_instance_requests) + len(state.pending_instances),
            failed=tuple(dict.fromkeys(request.reason for request in state.failed_instance_requests)),
            turn=state.autoscaler_state_version,
        )

    def _change(self, question: Change) -> Done:
        from ray._raylet import PlacementGroupID
        from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

        complaints = []

        def attempt(what: str, call: Callable[[], object]) -> None:
            try:
                call()
            except Exception as error:
                complaints.append(f"{what}: {_in_a_line(error)}")

        for group in question.remove:
            of_id = PlacementGroup(PlacementGroupID(bytes.fromhex(group)))
            attempt(f"removing group {group}", lambda of_id=of_id: remove_placement_group(of_id))  # type: ignore[misc]
        for new in question.make:
            attempt(
                f"making group {new.name}",
                lambda new=new: placement_group(  # type: ignore[misc]
                    [_resources(new.bundle)],
                    strategy="PACK",
                    name=new.name,
                    lifetime="detached",
                    bundle_label_selector=[{NODE_ID_LABEL: selector_text(new.selector)}],
                ),
            )
        return Done(complaints=tuple(complaints))

    def _give_back(self, question: GiveBack) -> Done:
        import time

        from ray.core.generated import autoscaler_pb2

        assert self._client is not None
        deadline_ms = int((time.time() + question.within_s) * 1000)
        accepted, why = self._client.drain_node(
            question.raylet,
            autoscaler_pb2.DRAIN_NODE_REASON_PREEMPTION,
            question.reason,
            deadline_ms,
        )
        return Done() if accepted else Done(complaints=(why,))

    def _boot(self, question: Boot) -> Done:
        """A task is gone when it has ended: nothing of Ray's stays on the node that would keep it busy."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        ray.cloudpickle.register_pickle_by_value(boot)  # workers have no `cortex`
        order = question.order
        if self._wheel is None:
            self._wheel = ray.put(our_wheel())
        there = NodeAffinitySchedulingStrategy(question.raylet, soft=False)
        task = ray.remote(num_cpus=0, max_retries=0)(boot.start_agent).options(scheduling_strategy=there)
        self._boots[question.raylet] = task.remote(
            home=order.home,
            files=order.files,
            arguments=order.arguments,
            version=__version__,
            wheel_name=WHEEL_NAME,
            wheel=self._wheel,
            installer=order.installer,
            use_installed=order.use_installed,
        )
        return Done()

    def _booted(self) -> tuple[Booted, ...]:
        import ray

        if not self._boots:
            return ()
        ended, _ = ray.wait([*self._boots.values()], num_returns=len(self._boots), timeout=0)
        found = []
        for raylet in [raylet for raylet, task in self._boots.items() if task in ended]:
            try:
                found.append(Booted(raylet=raylet, python=ray.get(self._boots.pop(raylet))["python"]))
            except Exception as error:
                cause = getattr(error, "cause", None) or error
                found.append(Booted(raylet=raylet, problem=_in_a_line(cause)))
        return tuple(found)


def _resources(bundle: Bundle) -> dict[str, float]:
    amounts = {"CPU": bundle.cpus, "memory": bundle.memory, "GPU": bundle.gpus}
    return {name: amount for name, amount in amounts.items() if amount}


def _bundle(amounts: Any) -> Bundle:
    return Bundle(cpus=amounts.get("CPU", 0.0), memory=amounts.get("memory", 0.0), gpus=amounts.get("GPU", 0.0))


def _group(row: Any) -> Group:
    (bundle,) = row.bundles
    selector = bundle.label_selector.get(NODE_ID_LABEL)
    raylet = bundle.node_id.hex()
    return Group(
        id=row.placement_group_id.hex(),
        name=row.name,
        state=type(row).PlacementGroupState.Name(row.state),
        raylet="" if set(raylet) <= {"f"} else raylet,
        bundle=_bundle(bundle.unit_resources),
        selector=read_selector(selector) if selector else None,
    )


def _node(info: Any, *, draining: bool) -> RayNode:
    amounts = info.resources_total
    return RayNode(
        raylet=info.node_id.hex(),
        name=info.node_name or info.node_manager_address,
        address=info.node_manager_address,
        kind=info.node_type_name,
        head=info.is_head_node,
        started_ms=info.start_time_ms,
        draining=draining,
        cpus=amounts.get("CPU", 0.0),
        memory=amounts.get("memory", 0.0),
        gpus=amounts.get("GPU", 0.0),
    )


def _is_about_the_token(error: BaseException) -> bool:
    """Ray has an error of its own for a missing token; a wrong one is said in an error of gRPC's, if at all."""
    text = str(error).lower()
    return type(error).__name__ == "AuthenticationError" or "unauthenticated" in text or "authentication token" in text


def _in_a_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def serve(sock: socket.socket, driver: Driver) -> None:
    """Answer until whoever asks is gone."""
    while True:
        try:
            payload, _ = receive_frame(sock)
        except (ConnectionLost, OSError):
            return
        answer = driver.answer(msgspec.json.decode(payload, type=Question))
        try:
            send_frame(sock, msgspec.json.encode(answer))
        except OSError:
            return


def _end_with(sock: socket.socket) -> None:
    """End, also in the middle of a call, once whoever asks is gone."""
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)
    poll.poll()
    os._exit(0)


def main(arguments: Iterable[str]) -> int:
    """Serve the socket whose number is the last argument."""
    setproctitle.setproctitle("cortex-cluster-driver")
    with socket.socket(fileno=int([*arguments][-1])) as sock:
        threading.Thread(target=_end_with, args=[sock], daemon=True).start()
        serve(sock, Driver())
    os._exit(0)  # Ray's own end takes seconds and has nothing to do: what we made is detached


if __name__ == "__main__":
    sys.exit(main(sys.argv))
