"""What a replica tells of how much it has to do, for each way in which requests are worked on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from replica_harness import Replica, either_birth, eventually

from cortex.replica.transport.http import LARGE_REQUEST_BYTES
from cortex.wire.batching import BatchingOrder
from cortex.wire.loadpage import SUFFIX, Load, LoadPageReader
from cortex.wire.loads import HANDLER, LOOP, MODEL, SeatReading

pytestmark = pytest.mark.slow

Start = Callable[..., Replica]
FLOWER = [[5.1, 3.5, 1.4, 0.2]]
WAITS_S = 0.05
WAITING = f"import time\ndef pre_inference(sample, metadata):\n    time.sleep({WAITS_S})\n    return sample\n"
WAITING_ASYNC = (
    WAITING.replace("import time", "import asyncio").replace("def", "async def").replace("time.", "await asyncio.")
)
COMPUTES_S = 0.02
COMPUTING = f"""\
import time

def compute():
    until_s = time.thread_time() + {COMPUTES_S}
    while time.thread_time() < until_s:
        pass

def pre_inference(sample, metadata):
    compute()
    return sample
"""
COMPUTING_ASYNC = COMPUTING.replace("def pre", "async def pre")
HELD = """\
import os, time
def pre_inference(sample, metadata):
    open(sample["begun"], "w").close()
    while not os.path.exists(sample["go_on"]):
        time.sleep(0.01)
    return [[5.1, 3.5, 1.4, 0.2]]
"""


class Meter:
    """Reads a replica's page, as an agent does."""

    def __init__(self, replica: Replica) -> None:
        self.path = Path(f"{replica.spec.stats_path}{SUFFIX}")

    def read(self) -> Load | None:
        if not self.path.exists():
            return None
        reader = LoadPageReader(self.path)
        found = reader.read()
        reader.close()
        return found

    def until(self, accept: Callable[[Load], bool], what: str) -> Load:
        def look() -> Load | None:
            found = self.read()
            return found if found is not None and accept(found) else None

        return eventually(look, what)

    def after(self, count: int) -> Load:
        """Once so many requests have ended and none is in flight."""
        return self.until(lambda load: (load.ended, load.in_flight) == (count, 0), f"{count} requests have ended")


def row(load: Load, name: str) -> SeatReading:
    (found,) = [row for row in load.rows if row.row == name]
    return found


def ask(
    replica: Replica, count: int, *, at_once: int = 1, body: Any = FLOWER, headers: dict[str, str] | None = None
) -> float:
    """Have so many requests answered; returns how long that took."""
    began_s = time.monotonic()

    def call(turns: int) -> None:
        with replica.client() as client:
            for _ in range(turns):
                answer = client.post(body if isinstance(body, bytes) else orjson.dumps(body), headers)
                assert answer.status == 200, answer.body

    callers = [threading.Thread(target=call, args=(count // at_once,)) for _ in range(at_once)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    return time.monotonic() - began_s


PROBE = {"x-cortex-probe": "1"}


@either_birth
def test_a_replica_that_has_just_become_ready_has_had_nothing_to_do(start: Start, birth: str) -> None:
    """Whatever it rehearsed."""
    load = Meter(start(COMPUTING)).until(lambda load: True, "it is ready")
    assert (load.ended, load.ended_s, load.in_flight) == (0, 0.0, 0)
    assert load.cpu_before_s > 0
    assert [(one.row, one.seats) for one in load.rows] == [(HANDLER, 1), (MODEL, 1), (LOOP, 1)]
    assert (row(load, HANDLER).busy_s, row(load, MODEL).busy_s) == (0.0, 0.0)
    assert load.ready_s <= load.at_s <= time.monotonic()


@pytest.mark.parametrize(
    ("source", "concurrency", "seats"),
    [(WAITING, None, 1), (WAITING, 4, 4), (WAITING_ASYNC, None, 64), (WAITING_ASYNC, 2, 2)],
    ids=["inline", "pool", "async", "async, 2"],
)
def test_a_handler_that_waits_takes_its_seat_and_computes_nothing(
    start: Start, source: str, concurrency: int | None, seats: int
) -> None:
    replica = start(source, concurrency=concurrency)
    took_s = ask(replica, 12, at_once=6)
    load = Meter(replica).after(12)
    handler = row(load, HANDLER)
    assert handler.seats == seats
    assert 12 * WAITS_S <= handler.ended_busy_s <= handler.busy_s + 1e-6
    assert handler.busy_s <= seats * (load.at_s - load.ready_s)
    assert handler.ended_busy_s <= load.ended_s <= 12 * took_s
    assert (handler.full_s > 0) == (seats < 6)
    assert handler.full_s <= handler.busy_s / seats + 1e-6
    assert row(load, LOOP).busy_s < handler.busy_s / 2


@pytest.mark.parametrize("source", [COMPUTING, COMPUTING_ASYNC], ids=["inline", "async"])
def test_a_handler_that_computes_on_the_loop_fills_the_loop_whatever_its_seats(start: Start, source: str) -> None:
    replica = start(source)
    ask(replica, 10, at_once=5)
    load = Meter(replica).after(10)
    assert row(load, LOOP).busy_s >= 10 * COMPUTES_S
    assert row(load, LOOP).busy_s == row(load, LOOP).ended_busy_s
    assert row(load, HANDLER).ended_busy_s >= 10 * COMPUTES_S


def test_handlers_that_compute_in_a_pool_take_their_threads_and_not_the_loop(start: Start) -> None:
    replica = start(COMPUTING, concurrency=3)
    ask(replica, 12, at_once=6)
    load = Meter(replica).after(12)
    assert row(load, HANDLER).ended_busy_s >= 12 * COMPUTES_S
    assert row(load, LOOP).busy_s < 12 * COMPUTES_S


def test_without_a_handler_the_loop_is_the_seat(start: Start) -> None:
    replica = start()
    ask(replica, 200)
    load = Meter(replica).after(200)
    assert row(load, HANDLER).seats == 1
    assert 0 < row(load, HANDLER).ended_busy_s <= load.ended_s
    assert row(load, MODEL).busy_s == 0.0, "it runs on the loop"


def test_what_is_under_way_is_told_while_it_is(start: Start, folder: Path) -> None:
    """Also by a replica whose loop sits in the handler: the control thread reads."""
    replica, files = start(HELD), {"begun": str(folder / "begun"), "go_on": str(folder / "go-on")}
    asking = threading.Thread(target=ask, args=(replica, 1), kwargs={"body": files})
    asking.start()
    meter = Meter(replica)
    first = meter.until(lambda load: load.in_flight == 1, "it is in flight")
    later = meter.until(lambda load: load.at_s > first.at_s, "it is told again")
    grown_s = row(later, HANDLER).busy_s - row(first, HANDLER).busy_s
    assert (later.ended, row(later, HANDLER).ended_busy_s) == (0, 0.0)
    assert grown_s == pytest.approx(later.at_s - first.at_s, abs=0.01)
    assert row(later, HANDLER).full_s == row(later, HANDLER).busy_s
    Path(files["go_on"]).touch()
    asking.join()
    last = meter.after(1)
    assert row(last, HANDLER).ended_busy_s == pytest.approx(row(last, HANDLER).busy_s, abs=1e-6)
    assert last.ended_s >= row(last, HANDLER).ended_busy_s


def test_readings_never_fall_and_a_replica_at_rest_writes_none(start: Start) -> None:
    replica = start(WAITING)
    meter, seen = Meter(replica), []
    asking = threading.Thread(target=ask, args=(replica, 40))
    asking.start()
    while asking.is_alive():
        seen.append(meter.read())
    loads = [load for load in seen if load is not None]
    for figure in (
        lambda load: load.at_s,
        lambda load: load.ended,
        lambda load: load.ended_s,
        lambda load: row(load, HANDLER).busy_s,
        lambda load: row(load, HANDLER).full_s,
        lambda load: row(load, LOOP).busy_s,
    ):
        figures = list(map(figure, loads))
        assert figures == sorted(figures)
    last = meter.after(40)
    eventually(lambda: not replica.status().active, "it rests")
    assert meter.read() == last
    ask(replica, 1)
    assert meter.after(41).at_s > last.at_s


LARGE = orjson.dumps(FLOWER).ljust(LARGE_REQUEST_BYTES)
"""So large that the model runs on its own thread, however fast it is."""


def test_a_model_that_runs_each_request_alone_is_a_seat(start: Start) -> None:
    replica = start(batches=BatchingOrder())
    ask(replica, 16, at_once=8, body=LARGE)
    load = Meter(replica).after(16)
    model = row(load, MODEL)
    assert 0 < model.ended_busy_s == pytest.approx(model.busy_s, abs=1e-6)
    assert model.full_s == model.busy_s <= load.at_s - load.ready_s
    assert model.ended_busy_s <= load.ended_s


def test_a_model_with_room_in_each_batch_is_busy_with_nobody(start: Start) -> None:
    replica = start(batches=BatchingOrder(batches=True))
    ask(replica, 16, at_once=8, body=LARGE)
    load = Meter(replica).after(16)
    assert (row(load, MODEL).busy_s, row(load, MODEL).ended_busy_s) == (0.0, 0.0)


def test_a_replica_that_is_killed_leaves_what_it_told_last(start: Start) -> None:
    replica = start(WAITING)
    ask(replica, 3)
    meter = Meter(replica)
    before = meter.after(3)
    replica.kill()
    eventually(lambda: not replica.alive(), "it is gone")
    assert meter.read() == before


def test_a_replica_that_drains_tells_once_more(start: Start) -> None:
    replica = start(WAITING)
    ask(replica, 3)
    replica.drain()
    eventually(lambda: not replica.alive(), "it is gone")
    load = Meter(replica).read()
    assert load is not None
    assert (load.ended, load.in_flight) == (3, 0)


@pytest.mark.parametrize(
    ("source", "concurrency"),
    [(COMPUTING, None), (COMPUTING, 3), (COMPUTING_ASYNC, None)],
    ids=["inline", "pool", "async"],
)
def test_a_probe_is_no_request_and_its_part_of_what_was_used_is_told_apart(
    start: Start, source: str, concurrency: int | None
) -> None:
    """By that part a request's cost is reckoned from what the whole replica has used."""
    replica = start(source, concurrency=concurrency)
    ask(replica, 6)
    ask(replica, 18, headers=PROBE)
    ask(replica, 6)
    load = Meter(replica).after(12)
    handler, loop = row(load, HANDLER), row(load, LOOP)
    assert handler.ended_busy_s >= 12 * COMPUTES_S
    assert handler.busy_s - handler.ended_busy_s >= 18 * COMPUTES_S
    assert load.ended_s < handler.busy_s
    assert 0 < loop.ended_busy_s == loop.full_s < loop.busy_s
    if concurrency is None:  # but for those at whose ends it was written, of which there are few
        assert loop.ended_busy_s >= 8 * COMPUTES_S
        assert loop.busy_s - loop.ended_busy_s >= 12 * COMPUTES_S


def test_a_probe_that_is_under_way_is_not_told_and_takes_the_seat_from_nobody(start: Start, folder: Path) -> None:
    replica, files = start(HELD), {"begun": str(folder / "begun"), "go_on": str(folder / "go-on")}
    meter = Meter(replica)
    asking = threading.Thread(target=ask, args=(replica, 1), kwargs={"body": files, "headers": PROBE})
    asking.start()
    eventually(lambda: (folder / "begun").exists(), "it is in the handler")
    found = meter.read()
    assert found is not None
    assert (found.in_flight, found.ended) == (0, 0)
    assert not replica.status().active
    Path(files["go_on"]).touch()
    asking.join()
    load = meter.until(lambda load: row(load, HANDLER).busy_s > 0, "that the seat was taken is told")
    assert (load.in_flight, load.ended, load.ended_s) == (0, 0, 0.0)
    assert (row(load, HANDLER).ended_busy_s, row(load, HANDLER).full_s) == (0.0, 0.0)
    ask(replica, 1, body=files)
    assert meter.after(1).in_flight == 0
