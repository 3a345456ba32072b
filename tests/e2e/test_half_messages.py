"""An agent of several that is killed in the middle of a message: of any, whichever way it goes."""

from __future__ import annotations

import contextlib
import json
import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import pytest
from contract_harness import Connection, Home, Traffic, eventually, rows_model, running_home, write_project
from test_node_faults import counted
from test_nodes import ROW, door, nodes_of, up

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

BALLAST_BYTES = 300_000
"""Several reads, so that there is a middle."""
HANDLER = """
import os

def pre_inference(sample, metadata):
    assert os.environ["WORD"] == "of honour"
    return [[1, 2, 3, 4]]
"""


class Message(NamedTuple):
    """See `half_messages/sitecustomize.py`."""

    way: Literal["in", "out"]
    says: str


def asked(kind: str, more: str = "") -> Message:
    return Message("in", rf'^{{"type":"{kind}".*{more}')


def told(kind: str) -> Message:
    return Message("out", rf'^{{"type":"{kind}"')


class HalfMessages:
    """Of one home: armed one at a time."""

    def __init__(self, folder: Path) -> None:
        self._armed, self._fired = folder / "armed.json", folder / "fired.json"
        folder.mkdir()
        path = filter(None, [str(Path(__file__).with_name("half_messages")), os.environ.get("PYTHONPATH")])
        self.variables = {"HALF_MESSAGES": str(folder), "PYTHONPATH": os.pathsep.join(path)}

    @contextlib.contextmanager
    def armed(self, message: Message) -> Iterator[None]:
        """What happens meanwhile has to come to it."""
        written = self._armed.with_suffix(".new")
        written.write_text(json.dumps({"way": message.way, "says": message.says}))
        self._fired.unlink(missing_ok=True)
        written.rename(self._armed)
        try:
            yield
            eventually(self._fired.exists, f"{message} is come to")
        finally:
            self._armed.unlink(missing_ok=True)


@pytest.fixture
def messages(tmp_path: Path) -> HalfMessages:
    return HalfMessages(tmp_path / "half-messages")


@pytest.fixture
def home(messages: HalfMessages) -> Iterator[Home]:
    with running_home(**messages.variables) as home:
        yield home


def a_project(home: Home, number: int) -> Path:
    compute = "compute: {cpu: 20m, min_replicas: 2, max_replicas: 2}"
    own = "model: m.onnx, request_handler: h.py, rollout: {watch: 0}, env: {WORD: {secret: WORD}}"
    return write_project(
        home.path.parent / "p",
        {
            "cortex.yaml": f"- {{kind: deployment, name: d}}\n- {{kind: api, name: x, {own}, {compute}}}\n",
            "m.onnx": rows_model(float(number)),
            "h.py": HANDLER,
            "ballast.bin": random.Random(number).randbytes(BALLAST_BYTES),
        },
    )


SUPPLIES = (
    asked("inspect_build"),
    told("fetch_tree"),
    asked("tree_listing"),
    told("fetch_blob"),
    Message("in", r"^\0"),  # a part of a file
    asked("parts_end"),
    told("fetch_secrets"),
    asked("secret_values"),
    told("inspected_build"),
)


@pytest.mark.parametrize(
    "kinds",
    [
        pytest.param(SUPPLIES, id="what builds need"),
    ],
)
def test_a_deploy_is_finished_no_request_fails_and_counts_are_right_whichever_message_an_agent_dies_over(
    home: Home, messages: HalfMessages, kinds: Sequence[Message]
) -> None:
    nodes = up(home, 2)
    home.cortex("secret", "set", "WORD", stdin=b"of honour\n")
    home.deploy(a_project(home, 0))
    looks = 0
    with (
        Traffic(door(nodes[0]), "/d/x", ROW, per_s=40) as first,
        Traffic(door(nodes[1]), "/d/x", ROW, per_s=40) as second,
    ):
        for number, message in enumerate(kinds, start=1):
            with messages.armed(message):
                ran = home.deploy(a_project(home, number), code=None)
                home.cortex("get")
            assert ran.code == 0, f"{message}: {ran.out}\n{ran.err}"
            for node in nodes:
                with Connection(door(node)) as connection:

                    def is_new(connection: Connection = connection, number: int = number) -> bool:
                        nonlocal looks
                        looks += 1
                        return connection.ask("POST", "/d/x", ROW).json == [[[10.0 * number]]]

                    eventually(is_new, f"{node['name']} has {number}")
    outcomes = first.outcomes + second.outcomes
    assert set(outcomes) == {"200"}
    eventually(lambda: counted(home) >= outcomes["200"] + looks, "all that was answered is counted")
    assert counted(home) == outcomes["200"] + looks, "nothing is counted twice"
    eventually(lambda: all(node["state"] == "ready" for node in nodes_of(home)), "every node is there")
