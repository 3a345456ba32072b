"""What may happen to HAProxy under traffic: new requests are answered as soon as it can be, and counts stay right."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Callable, Iterator

import pytest
from contract_harness import Home, Traffic, eventually, rows_model, running_home, write_project

pytestmark = pytest.mark.slow

CORTEX_YAML = """
    - {kind: deployment, name: f}
    - {kind: api, name: x, model: m.onnx, compute: {cpu: 20m, min_replicas: 2, max_replicas: 2}}
"""
SMALL = b"[1, 2, 3, 4]"
LARGE = json.dumps([[1, 2, 3, 4]] * 3000).encode()
"""Goes from the door to the other tier, which is for large bodies."""
CLIENTS, LARGE_CLIENTS = 8, 2


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    with running_home() as home:
        home.deploy(write_project(home.path.parent / "p", {"cortex.yaml": CORTEX_YAML, "m.onnx": rows_model()}))
        yield home
        home.cortex("down")
        assert home.processes() == [], "nothing is left behind"
        assert [path for node in home.nodes for path in node.sockets.iterdir() if path.is_socket()] == []


def tiers(home: Home) -> dict[str, int]:
    """Pids of the HAProxy that is asked here, by tier; of one that is being replaced, the successor's."""
    own = f" {home.nodes[0].home}/"
    found = [(pid, title) for pid, title in home.processes() if "haproxy -db" in title and own in title]
    return {tier: pid for pid, title in sorted(found) for tier in ("door", "bulk") if f"/{tier}-" in title}


@contextlib.contextmanager
def traffic(home: Home) -> Iterator[tuple[Traffic, Traffic]]:
    """Small and large requests before, during and after what the block does; all that were answered are counted."""
    counted = requests(home)
    with (
        Traffic(home.port, "/f/x", SMALL, clients=CLIENTS, per_s=200) as small,
        Traffic(home.port, "/f/x", LARGE, clients=LARGE_CLIENTS, per_s=20) as large,
    ):
        small.answered(100)
        large.answered(10)
        yield small, large
        small.answered(200)
        large.answered(20)
    heard = small.outcomes + large.outcomes
    # Of one whose connection was dropped nobody knows whether it had been answered.
    most = counted + heard["200"] + heard["dropped"]
    eventually(lambda: counted + heard["200"] <= requests(home) <= most, f"{heard} are counted: {requests(home)}")


def requests(home: Home) -> int:
    return int(home.cortex("get", "f/x", "-o", "json").json["requests"]["2xx"])


def is_replaced(home: Home, before: dict[str, int], *of: str) -> Callable[[], bool]:
    return lambda: all(tiers(home).get(tier) not in (None, before[tier]) for tier in of)


@pytest.mark.parametrize("killed", [("door",), ("bulk",), ("door", "bulk")], ids="+".join)
def test_a_killed_haproxy_costs_the_connections_that_it_has_and_none_that_come(home, killed):
    before = tiers(home)
    with traffic(home) as (small, large):
        for tier in killed:
            os.kill(before[tier], signal.SIGKILL)
        eventually(is_replaced(home, before, *killed), "others are there")
    assert {*small.outcomes, *large.outcomes} <= {"200", "dropped", "502"}
    # Whoever had a connection, once; 502 where the door lost the other tier with an answer on its way.
    assert small.outcomes["dropped"] <= CLIENTS * ("door" in killed)
    assert large.outcomes["dropped"] + large.outcomes["502"] <= LARGE_CLIENTS


@pytest.mark.parametrize("stopped", [("door",), ("bulk",), ("door", "bulk")], ids="+".join)
def test_a_stopped_haproxy_goes_on_and_everybody_is_answered(home, stopped):
    before = tiers(home)
    with traffic(home) as (small, large):
        for tier in stopped:
            os.kill(before[tier], signal.SIGSTOP)
    assert {*small.outcomes, *large.outcomes} == {"200"}
    assert tiers(home) == before


def test_its_files_may_be_gone_when_it_is_killed(home):
    before = tiers(home)
    with traffic(home) as (small, large):
        for file in home.nodes[0].ingress.iterdir():
            file.unlink()
        small.answered(100)
        for pid in before.values():
            os.kill(pid, signal.SIGKILL)
        eventually(is_replaced(home, before, "door", "bulk"), "others are there")
    assert {*small.outcomes, *large.outcomes} <= {"200", "dropped", "502"}


def test_whose_sockets_are_removed_is_replaced_and_finishes_what_it_has(home):
    before = tiers(home)
    with traffic(home) as (small, large):
        for path in home.nodes[0].sockets.glob("h-*.sock"):
            path.unlink()
        eventually(is_replaced(home, before, "door", "bulk"), "others are there")
        eventually(lambda: not {*before.values()} & {pid for pid, _ in home.processes()}, "the old ones have left")
    assert small.outcomes.keys() == {"200"}
    assert large.outcomes.keys() <= {"200", "503"}, "until that is noticed, nobody listens for large bodies"
    home.deploy(write_project(home.path.parent / "p", {"m.onnx": rows_model(2)}))
    with traffic(home):
        pass
