"""
`kill -9` at every step of a deploy, of falling asleep and of waking, while an outside client asks.

A step is a function of ours that is about to run or has just returned: `kill_points/sitecustomize.py`. So each of these
moments is hit every time, however short it is.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from contract_harness import Connection, Home, calling, eventually, rows_model, running_home, write_project

from cortex.artifacts.store import ArtifactStore

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

HANDLER = """
NUMBER = %d

def pre_inference(sample, metadata):
    return [[1, 2, 3, 4]]

def post_inference(prediction, metadata):
    return NUMBER
"""
BALLAST_BYTES = 3 * 2**20
"""Of a file that makes an upload long enough to be killed in the middle of it."""
MUCH_LATER = 1e10

WRITE = "cortex.artifacts.blobs:BlobWriter.write"
COMMIT_BLOB = "cortex.artifacts.blobs:BlobWriter.commit"
PUT_TREE = "cortex.artifacts.store:ArtifactStore.put_tree"
PREPARE = "cortex.controlplane.packages:Packages.prepare"
INSPECT = "cortex.agent.service:Agent.inspect"
COMMIT = "cortex.state.records:StateStore.commit_deploy"
LIVE = "cortex.state.records:StateStore.mark_live"
FALL_ASLEEP = "cortex.state.records:StateStore.fall_asleep"
WAKE = "cortex.state.records:StateStore.wake"
ORDER = "cortex.controlplane.agents:LinkedAgents.order"
SHOW = "cortex.controlplane.view:View.publish"
STEP = "cortex.agent.life.step:step"
SLEEPS = "cortex.agent.lives:Lives.hold_slot"
POINTS = (WRITE, COMMIT_BLOB, PUT_TREE, PREPARE, INSPECT, COMMIT, LIVE, FALL_ASLEEP, WAKE, ORDER, SHOW, STEP, SLEEPS)


@dataclass(frozen=True)
class KillPoint:
    """See `kill_points/sitecustomize.py`."""

    when: Literal["before", "after"]
    at: str
    says: str = ""
    times: int = 0


class KillPoints:
    """Of one home: armed one at a time."""

    def __init__(self, folder: Path) -> None:
        self._armed, self._fired = folder / "armed.json", folder / "fired.json"
        folder.mkdir()
        (folder / "points").write_text("".join(f"{point}\n" for point in POINTS))
        path = filter(None, [str(Path(__file__).with_name("kill_points")), os.environ.get("PYTHONPATH")])
        self.variables = {"KILL_POINTS": str(folder), "PYTHONPATH": os.pathsep.join(path)}

    @contextlib.contextmanager
    def armed(self, point: KillPoint, victims: Sequence[str]) -> Iterator[None]:
        """What happens meanwhile has to come to it."""
        written = self._armed.with_suffix(".new")
        written.write_text(json.dumps({**asdict(point), "victims": tuple(victims)}))
        self._fired.unlink(missing_ok=True)
        written.rename(self._armed)
        try:
            yield
            eventually(self._fired.exists, f"{point} is come to")
        finally:
            self._armed.unlink(missing_ok=True)


@pytest.fixture
def points(tmp_path: Path) -> KillPoints:
    return KillPoints(tmp_path / "kill-points")


@pytest.fixture
def home(points: KillPoints) -> Iterator[Home]:
    with running_home(**points.variables) as home:
        yield home


@dataclass
class Callers:
    """Each asks again and again, half of them on a connection that is kept; what was no right answer is noted."""

    port: int
    right: set[int] = field(default_factory=set)
    """Numbers of the versions that may answer what is sent now."""
    pause_s: float = 0.03
    answered: Counter[int] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def call(self, seed: int, enough: threading.Event) -> None:
        chance = random.Random(seed)
        with contextlib.ExitStack() as stack:
            kept = stack.enter_context(Connection(self.port)) if seed % 2 else None
            while not enough.wait(chance.uniform(0.0, self.pause_s)):
                right = set(self.right)
                try:
                    with contextlib.nullcontext(kept) if kept is not None else Connection(self.port) as connection:
                        answer = connection.ask("POST", "/k/x", b"[1]")
                    number = answer.json if answer.status == 200 else -1
                except OSError as error:
                    self.faults.append(repr(error))
                    return
                self.answered[number] += 1
                if number not in right | self.right:
                    self.faults.append(f"{answer.status} {answer.body!r}, not one of {right}")


def a_project(home: Home, number: int, compute: str = "cpu: 20m, max_replicas: 1", *, further: str = "") -> Path:
    own = f"model: m.onnx, request_handler: h.py, sample: [1], rollout: {{watch: 0}}{further}, compute: {{{compute}}}"
    api = f"{{kind: api, name: x, {own}}}"
    ballast = random.Random(number).randbytes(BALLAST_BYTES)
    return write_project(
        home.path.parent / "p",
        {
            "cortex.yaml": f"- {{kind: deployment, name: k}}\n- {api}\n",
            "m.onnx": rows_model(float(number)),
            "h.py": HANDLER % number,
            "ballast.bin": ballast,
        },
    )


def shown(home: Home) -> dict[str, Any]:
    found: dict[str, Any] = home.cortex("get", "k/x", "-o", "json").json
    return found


def nothing_is_left(home: Home) -> None:
    """Once everything has ended, and what is unfinished has had its time."""
    home.cortex("down")
    assert home.processes() == []
    assert [path for node in home.nodes for path in node.sockets.rglob("*") if path.is_socket()] == []
    assert list(home.path.rglob("*.tmp")) == []
    for artifacts in (folder / "artifacts" for folder in home.folders):
        store = ArtifactStore(artifacts)
        store.collect_garbage(store.trees(), 2**40, MUCH_LATER)
        assert [path for folder in ("tmp", "pins", "quarantine") for path in artifacts.glob(f"{folder}/*")] == []
        assert list(artifacts.glob("trees/.*")) == []
        unheld = [path for path in artifacts.glob("blobs/*/*") if path.stat().st_nlink == 1]
        assert unheld == []


TAKING_IN = (
    KillPoint("after", WRITE, times=2),  # an upload is half-way
    KillPoint("before", COMMIT_BLOB),
    KillPoint("after", COMMIT_BLOB),
    KillPoint("after", PUT_TREE),
    KillPoint("before", PREPARE),
    KillPoint("after", PREPARE),
    KillPoint("before", INSPECT),
    KillPoint("after", INSPECT),
    KillPoint("before", COMMIT),
)
COMING_UP = (
    KillPoint("after", COMMIT),  # nothing is planned yet
    KillPoint("before", ORDER, r"StartReplica\("),
    KillPoint("after", ORDER, r"StartReplica\("),
    KillPoint("before", STEP, r"ProcessForked\("),
    KillPoint("after", STEP, r"ProcessForked\("),
    KillPoint("before", STEP, r"StatusTold\("),  # it loads, most likely
    KillPoint("before", STEP, r"StatusTold\(.*Phase\.READY"),
    KillPoint("after", STEP, r"StatusTold\(.*Phase\.READY"),  # it is not routed to yet
)
TAKING_OVER = (
    KillPoint("before", ORDER, r"DrainReplica\("),
    KillPoint("after", ORDER, r"DrainReplica\("),
    KillPoint("before", STEP, r"DrainAsked\("),
    KillPoint("after", STEP, r"DrainAsked\("),
    KillPoint("before", LIVE),  # it serves, and is not live
    KillPoint("after", LIVE),  # nobody has heard of it yet
)


@pytest.mark.parametrize(
    ("victims", "steps"),
    [
        pytest.param(("controlplane",), TAKING_IN, id="control plane while a deploy is taken in"),
        pytest.param(("controlplane",), COMING_UP, id="control plane while a version comes up"),
        pytest.param(("controlplane",), TAKING_OVER, id="control plane while a version takes over"),
        pytest.param(("agent",), COMING_UP[1:], id="agent while a version comes up"),
        pytest.param(("agent",), (*TAKING_IN[6:], *TAKING_OVER[:4]), id="agent at other steps"),
        pytest.param(("launcher",), (*TAKING_IN[6:8], *COMING_UP[3:], TAKING_OVER[3]), id="launcher"),
        pytest.param(("keeper",), (*COMING_UP[3::2], *TAKING_OVER[2:4]), id="keeper"),
        pytest.param(
            ("controlplane", "agent", "launcher", "keeper"),
            (*TAKING_IN[::3], *COMING_UP[::2], *TAKING_OVER[::2]),
            id="all but replicas",
        ),
    ],
)
def test_a_deploy_is_finished_whoever_is_killed_at_whichever_step_and_no_request_fails(
    home: Home, points: KillPoints, victims: tuple[str, ...], steps: tuple[KillPoint, ...]
) -> None:
    home.deploy(a_project(home, 0))
    callers = Callers(home.port, {0})
    faults = []
    with calling(callers.call, 4):
        for number, point in enumerate(steps, start=1):
            project = a_project(home, number)
            callers.right.add(number)
            with points.armed(point, victims):
                ran = home.deploy(project, code=None)
            if ran.code != 0:
                faults.append(f"{point}: {ran.code}\n{ran.out}{ran.err}")
                home.deploy(project)
            callers.right = {number}
            eventually(lambda number=number: callers.answered[number] > 8 or callers.faults, f"{number} answers")
    assert (callers.faults, faults) == ([], [])
    eventually(lambda: shown(home)["status"] == "live", "it is live")
    assert len(home.settled_replicas("k/x")) == 1
    nothing_is_left(home)


FALLING_ASLEEP = (
    KillPoint("before", FALL_ASLEEP),
    KillPoint("after", FALL_ASLEEP),
    KillPoint("before", ORDER, r"HoldSlot\("),
    KillPoint("after", ORDER, r"HoldSlot\("),
    KillPoint("before", SLEEPS),  # the slot that joins is to be held
    KillPoint("after", SLEEPS),
    KillPoint("before", ORDER, r"DrainReplica\("),  # it has joined
    KillPoint("after", ORDER, r"DrainReplica\("),
    KillPoint("before", STEP, r"DrainAsked\("),
    KillPoint("after", STEP, r"DrainAsked\("),
    KillPoint("before", STEP, r"ProcessGone\("),  # the last one has left
    KillPoint("before", ORDER, r"ForgetReplica\("),
    KillPoint("after", ORDER, r"ForgetReplica\("),
)
WAKING = (
    KillPoint("before", STEP, r"Happened\.KNOCKED"),
    KillPoint("after", STEP, r"Happened\.KNOCKED"),
    KillPoint("before", WAKE),
    KillPoint("after", WAKE),
    KillPoint("before", ORDER, r"StartReplica\("),  # it has its lease
    KillPoint("after", ORDER, r"StartReplica\("),
    KillPoint("before", STEP, r"ProcessForked\("),
    KillPoint("after", STEP, r"ProcessForked\("),
    KillPoint("before", STEP, r"StatusTold\("),  # it loads, most likely
    KillPoint("before", STEP, r"StatusTold\(.*Phase\.READY"),
    KillPoint("after", STEP, r"StatusTold\(.*Phase\.READY"),
)
CROWD = 100
TOGETHER = ("controlplane", "agent", "launcher")
"""Without one who is served; the keeper holds what is open. Nobody is there to start them: a command does."""


@pytest.mark.parametrize(
    "victims",
    [
        pytest.param(("controlplane",), id="control plane"),
        pytest.param(("agent",), id="agent"),
        pytest.param(("keeper",), id="keeper"),
        pytest.param(("launcher",), id="launcher"),
        pytest.param(TOGETHER, id="all that may die together"),
    ],
)
def test_no_request_is_lost_whoever_is_killed_at_whichever_step_of_falling_asleep(
    home: Home, points: KillPoints, victims: tuple[str, ...]
) -> None:
    home.deploy(a_project(home, 1, "min_replicas: 0, idle_timeout: 200ms", further=", retry: off"))
    callers = Callers(home.port, {1}, pause_s=3.0)
    with calling(callers.call, 4):
        for point in FALLING_ASLEEP:
            with points.armed(point, victims):
                pass  # those who ask have it sleep and wake again and again
            if victims == TOGETHER:
                shown(home)
            enough = callers.answered.total() + 6
            eventually(lambda enough=enough: callers.answered.total() >= enough or callers.faults, "it answers")
            assert (point, callers.faults) == (point, [])
    assert callers.faults == []
    eventually(lambda: shown(home)["status"] == "asleep", "it sleeps")
    eventually(lambda: not home.replica_pids("k/x"), "no process is left")
    nothing_is_left(home)


@pytest.mark.parametrize(
    ("victims", "steps"),
    [
        pytest.param(("controlplane",), WAKING, id="control plane"),
        pytest.param(("agent",), WAKING, id="agent"),
        pytest.param(("keeper",), WAKING, id="keeper"),
        pytest.param(("launcher",), WAKING, id="launcher"),
        # Not once it is ready: it takes requests before its agent hears of it, which nobody else may have then.
        pytest.param(("replica",), WAKING[7:9], id="replica that starts"),
        pytest.param(TOGETHER, WAKING, id="all that may die together"),
    ],
)
def test_a_hundred_who_wait_for_one_that_sleeps_are_answered_whoever_is_killed_at_whichever_step_of_waking(
    home: Home, points: KillPoints, victims: tuple[str, ...], steps: tuple[KillPoint, ...]
) -> None:
    home.deploy(a_project(home, 1, "min_replicas: 0, idle_timeout: 500ms", further=", retry: off"))
    for point in steps:
        eventually(lambda: shown(home)["status"] == "asleep", "it sleeps")
        eventually(lambda: not home.replica_pids("k/x"), "no process is left")
        with points.armed(point, victims):
            crowd = Crowd(home.port)
        if victims == TOGETHER:
            shown(home)
        assert (point, crowd.answers()) == (point, {"200 1": CROWD})
    eventually(lambda: shown(home)["status"] == "asleep", "it sleeps")
    nothing_is_left(home)


class Crowd:
    """So many who ask at once, each on a connection of its own."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._told: Counter[str] = Counter()
        self._threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(CROWD)]
        for thread in self._threads:
            thread.start()

    def answers(self) -> dict[str, int]:
        """What they were told, once all were."""
        for thread in self._threads:
            thread.join()
        return dict(self._told)

    def _ask(self) -> None:
        try:
            with Connection(self._port) as connection:
                answer = connection.ask("POST", "/k/x", b"[1]")
            self._told[f"{answer.status} {answer.body.decode()}"] += 1
        except OSError as error:
            self._told[repr(error)] += 1
