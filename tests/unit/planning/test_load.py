"""Tests of `cortex.planning.load`."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex.ids import ApiKey, NodeId, ReplicaId, Revision
from cortex.planning.load import LONGEST_S, Costs, Loads, LoadWindow, RowCost
from cortex.wire.loads import HANDLER, LOOP, MODEL, DoorReading, LoadReading, NodeLoads, SeatReading

API = ApiKey("iris/a")
OTHER = ApiKey("iris/b")


def seats(row: str = HANDLER, number: int = 1, busy_s: float = 0.0, ended_busy_s: float = 0.0, full_s: float = 0.0):
    return SeatReading(row=row, seats=number, busy_s=busy_s, ended_busy_s=ended_busy_s, full_s=full_s)


def replica(at_s: float, *rows: SeatReading, name: str = "1", api: ApiKey = API, **fields) -> LoadReading:
    told = {"attempt": 1, "ready_s": 0.0, "ended": 0, "ended_s": 0.0, "in_flight": 0, "cpu_s": 0.0, **fields}
    return LoadReading(
        replica=ReplicaId(f"iris.a.0.{name}"), api=api, revision=Revision("0"), at_s=at_s, rows=rows, **told
    )


def door(begun: int, queued: int = 0, api: ApiKey = API) -> DoorReading:
    return DoorReading(api=api, begun=begun, queued=queued)


def read(at_s: float, *parts: LoadReading | DoorReading, node: str = "local", agent: str = "a", cpu_s: float = 0.0):
    return NodeLoads(
        node=NodeId(node),
        agent=agent,
        at_s=at_s,
        replicas=tuple(part for part in parts if isinstance(part, LoadReading)),
        doors=tuple(part for part in parts if isinstance(part, DoorReading)),
        busy_cpu_s=cpu_s,
    )


def taken(*readings: NodeLoads) -> Loads:
    loads = Loads()
    for reading in readings:
        loads.take(reading)
    return loads


# ---- windows --------------------------------------------------------------------------------------------------------


def test_a_window_is_the_difference_of_two_readings():
    first = replica(0.0, seats(busy_s=1.0, ended_busy_s=0.5, full_s=0.25), ended=7, ended_s=2.0, cpu_s=3.0)
    second = replica(
        2.0, seats(busy_s=2.0, ended_busy_s=1.0, full_s=0.5), ended=9, ended_s=2.5, cpu_s=3.5, runnable_s=0.25
    )
    window = taken(read(0.0, first, door(100)), read(2.0, second, door(130))).over(API, 2.0)
    row = window.rows[0]
    assert msgspec.structs.replace(window, rows=()) == LoadWindow(
        seconds=2.0, begun=30, ended=2, ended_s=0.5, cpu_s=0.5, runnable_s=0.25, ready_s=2.0
    )
    assert (row.row, row.seats, row.busy_s, row.ended_busy_s, row.full_s) == (HANDLER, 1, 1.0, 0.5, 0.25)


def test_one_reading_says_nothing_of_what_lies_before_it():
    loads = taken(read(100.0, replica(100.0, seats(busy_s=50.0), ended=9, cpu_s=4.0), door(1000)))
    assert loads.over(API, 30.0) == LoadWindow(seconds=0.0, rows=loads.over(API, 30.0).rows)
    assert loads.over(API, 30.0).rows[0].busy_s == 0.0


def test_an_api_that_nobody_read_has_done_nothing():
    assert taken(read(0.0, door(1))).over(OTHER, 5.0) == LoadWindow(seconds=0.0)


def test_a_window_ends_with_the_last_reading_and_begins_at_the_one_so_long_before():
    loads = taken(*(read(at / 2, door(begun=at)) for at in range(41)))
    assert [(loads.over(API, s).seconds, loads.over(API, s).begun) for s in (2.0, 5.0, 10.0, 30.0)] == [
        (2.0, 4),
        (5.0, 10),
        (10.0, 20),
        (20.0, 40),
    ]


def test_a_gap_between_readings_makes_the_window_longer_and_not_the_rate_higher():
    window = taken(read(0.0, door(0)), read(40.0, door(400))).over(API, 2.0)
    assert (window.seconds, window.begun) == (40.0, 400)


def test_a_window_begins_at_the_nearest_reading():
    """Where nothing happens, readings come every four seconds, and one comes at once when something does."""
    loads = taken(*(read(s, door(begun)) for s, begun in ((0.0, 0), (4.0, 0), (7.5, 1), (8.0, 51))))
    assert [(loads.over(API, s).seconds, loads.over(API, s).begun) for s in (1.0, 2.0, 5.0)] == [
        (0.5, 50),
        (0.5, 50),
        (4.0, 51),
    ]


def test_a_reading_right_after_another_waits_for_the_next():
    loads = taken(read(0.0, door(0)), read(1.0, door(10)), read(1.1, door(11)), read(1.5, door(15)))
    assert (loads.over(API, 0.5).seconds, loads.over(API, 0.5).begun) == (0.5, 5)


def test_what_is_kept_does_not_grow_with_time():
    loads = Loads()
    for at in range(1000):
        loads.take(read(at / 10 * 3, door(at)))
    window = loads.over(API, 1e9)
    assert LONGEST_S <= window.seconds < LONGEST_S + 1


# ---- what is judged -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("each_s", "seconds"), [(0.1, 2.0), (0.25, 5.0), (0.5, 10.0), (1.0, 30.0), (9.0, 30.0)])
def test_the_shortest_window_that_has_seen_twenty_requests_is_taken(each_s, seconds):
    loads = taken(*(read(at / 2, door(int(at / 2 / each_s))) for at in range(81)))
    load = loads.lately()[API]
    assert (load.seconds, load.long_seconds) == (seconds, 30.0)
    assert load.begun == loads.over(API, seconds).begun


def test_all_seats_are_busy_where_one_row_had_none_free():
    def busy(full_s: float) -> bool:
        readings = [read(s, replica(s, seats(HANDLER, 4), seats(MODEL, full_s=full_s * s))) for s in (0.0, 30.0)]
        return taken(*readings).lately()[API].always_full

    assert [busy(0.0), busy(0.8), busy(0.95)] == [False, False, True]


def test_an_api_without_a_ready_replica_is_not_full():
    assert not taken(read(0.0, door(0)), read(2.0, door(50, 50))).lately()[API].always_full


def test_a_window_without_a_ready_replica_is_not_full():
    idle = replica(0.0, seats())
    window = taken(read(0.0, idle, door(0)), read(2.0, door(5))).over(API, 2.0)
    assert (window.ready_s, window.always_full) == (0.0, False)


def test_cores_are_those_of_the_moments_that_were_read_however_few():
    def using(cpu_s: float) -> float:
        readings = [read(s, replica(s, seats(), cpu_s=cpu_s * s)) for s in (0.0, 0.5)]
        return taken(*readings).lately()[API].cores

    assert (using(0.0), using(0.6)) == (0.0, pytest.approx(0.6))


def test_what_waits_and_what_is_under_way_are_those_of_now():
    earlier = read(0.0, replica(0.0, seats(), in_flight=3), door(0, queued=9))
    now = read(2.0, replica(2.0, seats(), in_flight=1), replica(2.0, seats(), name="2", in_flight=1), door(0, queued=4))
    load = taken(earlier, now).lately()[API]
    assert (load.queued, load.in_flight, load.ready) == (4, 2, 2)
    assert taken(earlier, now, read(4.0)).lately()[API].ready == 0


def test_the_mean_number_of_ready_replicas_is_that_of_the_window():
    readings = [read(0.0, replica(0.0))]
    readings += [read(s, replica(s), replica(s, name="2", ready_s=6.0)) for s in (7.0, 8.0)]
    loads = taken(readings[0], read(6.0, replica(6.0)), *readings[1:])
    assert loads.over(API, 8.0).ready_mean == pytest.approx((8 + 2) / 8)
    assert loads.lately()[API].ready == 2


# ---- costs ----------------------------------------------------------------------------------------------------------


def costs(*rows: SeatReading, **fields) -> Costs | None:
    """Of one replica that did all this within ten seconds."""
    nothing = [msgspec.structs.replace(row, busy_s=0.0, ended_busy_s=0.0, full_s=0.0) for row in rows]
    return taken(read(0.0, replica(0.0, *nothing)), read(10.0, replica(10.0, *rows, **fields))).lately()[API].costs


def test_what_a_request_costs_is_what_ended_ones_took():
    found = costs(seats(busy_s=2.5, ended_busy_s=2.0), ended=10, ended_s=3.0, cpu_s=0.5)
    assert found == Costs(
        rows=(RowCost(row=HANDLER, seats=1, busy_s=0.2),),
        cpu_s=pytest.approx(0.04),
        in_replica_s=0.2,
        replica_s=0.2,
        fullest=HANDLER,
    )


def test_what_a_request_costs_is_not_known_before_one_has_ended():
    assert costs(seats(busy_s=2.0), ended=0, cpu_s=1.0) is None


def test_the_row_that_is_fullest_limits_a_replica():
    rows = (seats(HANDLER, 64, busy_s=6.4, ended_busy_s=6.4), seats(LOOP, 1, busy_s=2.0, ended_busy_s=2.0))
    found = costs(*rows, ended=10, cpu_s=2.0)
    assert found is not None
    assert (found.fullest, found.replica_s) == (LOOP, pytest.approx(0.2))


def test_waiting_for_a_processor_is_no_use_of_a_seat():
    found = costs(seats(busy_s=2.0, ended_busy_s=2.0), ended=10, cpu_s=1.0, runnable_s=1.0)
    assert found is not None
    assert (found.replica_s, found.burn) == (pytest.approx(0.1), 1.0)


def test_what_the_main_thread_computed_has_no_waiting_in_it():
    found = costs(seats(LOOP, busy_s=2.0, ended_busy_s=2.0), ended=10, cpu_s=2.0, runnable_s=1.0)
    assert found is not None
    assert found.replica_s == pytest.approx(0.2)


def test_waiting_for_a_seat_is_no_time_in_the_replica():
    found = costs(seats(busy_s=1.0, ended_busy_s=1.0), ended=10, ended_s=40.0)
    assert found is not None
    assert found.in_replica_s == pytest.approx(0.1)


@pytest.mark.parametrize(("cpu_s", "burn"), [(0.0, 0.0), (1.0, 0.1), (10.0, 1.0), (20.0, 1.0)])
def test_a_full_replica_burns_what_computing_takes_of_its_time(cpu_s, burn):
    found = costs(seats(busy_s=10.0, ended_busy_s=10.0), ended=10, cpu_s=cpu_s)
    assert found is not None
    assert found.burn == pytest.approx(burn)


def test_requests_that_took_up_no_seat_were_in_the_replica_all_the_same():
    found = costs(seats(), ended=10, ended_s=2.0)
    assert found is not None
    assert found.in_replica_s == pytest.approx(0.2)


# ---- ends and beginnings --------------------------------------------------------------------------------------------


def test_a_replica_that_becomes_ready_counts_from_then_on():
    new = replica(2.0, seats(busy_s=0.5), name="2", ready_s=1.5, ended=3, cpu_s=0.25)
    window = taken(read(0.0, replica(0.0)), read(1.0, replica(1.0)), read(2.0, replica(2.0), new)).over(API, 2.0)
    assert (window.ended, window.cpu_s, window.ready_s) == (3, 0.25, 2.5)


def test_all_that_a_new_replica_did_before_it_was_first_read_counts():
    new = replica(2.0, seats(busy_s=3.0, ended_busy_s=2.0, full_s=1.5), name="2", ready_s=1.5)
    (row,) = taken(read(0.0, replica(0.0, seats())), read(2.0, replica(2.0, seats()), new)).over(API, 2.0).rows
    assert (row.busy_s, row.ended_busy_s, row.full_s) == (3.0, 2.0, 1.5)


def test_a_replica_that_was_ready_long_before_it_was_read_counts_from_the_reading_on():
    old = [replica(s, name="2", ready_s=-500.0, ended=3000 + int(s), cpu_s=900.0 + s) for s in (2.0, 3.0)]
    window = taken(read(0.0), read(2.0, old[0]), read(3.0, old[1])).over(API, 3.0)
    assert (window.ended, window.cpu_s, window.ready_s) == (1, 1.0, pytest.approx(1.0))


def test_another_attempt_counts_from_its_own_ready():
    first = replica(2.0, ended=100, cpu_s=50.0)
    second = replica(4.0, attempt=2, ready_s=3.5, ended=5, cpu_s=0.5)
    window = taken(read(0.0, replica(0.0, ended=90, cpu_s=45.0)), read(2.0, first), read(4.0, second)).over(API, 4.0)
    assert (window.ended, window.cpu_s, window.ready_s) == (15, 5.5, pytest.approx(2.5))


def test_a_run_that_became_ready_anew_counts_from_then_on():
    first, second = replica(2.0, ended=100), replica(4.0, ready_s=3.0, ended=120)
    window = taken(read(0.0, replica(0.0, ended=90)), read(2.0, first), read(4.0, second)).over(API, 4.0)
    assert window.ended == 10 + 120


def test_what_an_ended_replica_was_read_to_have_done_stays():
    loads = taken(read(0.0, replica(0.0)), read(2.0, replica(2.0, ended=8, cpu_s=1.0)), read(4.0))
    assert (loads.over(API, 4.0).ended, loads.over(API, 4.0).cpu_s, loads.over(API, 4.0).ready_s) == (8, 1.0, 2.0)


def test_a_new_agent_counts_at_its_door_anew():
    loads = taken(read(0.0, door(1000)), read(2.0, door(1010)), read(4.0, door(1500), agent="b"))
    assert loads.over(API, 4.0).begun == 1510


def test_a_replica_that_a_new_agent_takes_over_goes_on():
    loads = taken(read(0.0, replica(0.0, ended=5)), read(5.0, agent="b"), read(8.0, replica(8.0, ended=25), agent="b"))
    assert loads.over(API, 8.0).ended == 20


def test_a_new_api_counts_from_its_first_request_on():
    loads = taken(read(0.0), read(2.0, door(7)))
    assert (loads.over(API, 30.0).seconds, loads.over(API, 30.0).begun) == (2.0, 7)


def test_a_machine_that_has_booted_begins_anew():
    loads = taken(read(900.0, door(50), cpu_s=100.0), read(902.0, door(60), cpu_s=101.0))
    loads.take(read(3.0, door(5), agent="b", cpu_s=1.0))
    assert loads.over(API, 30.0).seconds == 0.0
    loads.take(read(5.0, door(9), agent="b", cpu_s=3.0))
    assert (loads.over(API, 30.0).begun, loads.busy_cores) == (4, 1.0)


def test_an_older_reading_that_comes_late_is_left_out():
    loads = taken(read(2.0, door(10)), read(4.0, door(20)), read(3.0, door(15)))
    assert loads.over(API, 30.0).begun == 10


def test_an_api_that_nothing_names_is_forgotten_after_the_longest_window():
    loads = taken(read(0.0, door(5), door(0, api=OTHER)), *(read(float(s), door(5)) for s in range(1, 60)))
    assert set(loads.lately()) == {API}


# ---- several nodes --------------------------------------------------------------------------------------------------


def test_nodes_are_summed_each_on_its_own_clock_and_the_processor_that_they_share_is_not():
    loads = Loads()
    for s in (0.0, 2.0):
        loads.take(read(s, replica(s, ended=int(s), cpu_s=s / 2), door(int(10 * s), 1), cpu_s=s))
        there = replica(5000 + s, name="9", ready_s=0.0, ended=int(2 * s), cpu_s=s / 4, in_flight=2)
        loads.take(read(5000 + s, there, door(int(20 * s), 2), node="n2", cpu_s=s))
    window, load = loads.over(API, 2.0), loads.lately()[API]
    assert (window.begun, window.ended, window.cpu_s, window.ready_mean) == (60, 6, 1.5, 2.0)
    assert (load.queued, load.in_flight, load.ready, load.cores, loads.busy_cores) == (3, 2, 2, 0.75, 1.0)


def test_a_node_may_have_a_door_and_no_replicas():
    loads = Loads()
    for s in (0.0, 30.0):
        loads.take(read(s, replica(s, seats(HANDLER, 4, busy_s=s, ended_busy_s=s), ended=int(s)), node="n1"))
        loads.take(read(s, door(int(s)), node="n2"))
    load = loads.lately()[API]
    assert (load.seats, load.costs and load.costs.replica_s) == (4, 0.25)


def test_of_replicas_on_a_node_that_has_just_come_it_is_known_what_they_hold_and_not_what_they_have_done():
    loads = Loads()
    for s in (0.0, 2.0):
        loads.take(read(s, door(int(10 * s)), node="n1"))
    loads.take(read(5000.0, replica(5000.0, ready_s=4999.7, ended=16, in_flight=14), node="n2"))
    load = loads.lately()[API]
    assert (load.begun, load.in_flight, load.long_ended, load.ready_s, load.costs) == (20, 14, 0, 0.0, None)


def test_a_node_that_is_gone_counts_no_more():
    loads = Loads()
    for node in ("n1", "n2"):
        for s in (0.0, 2.0):
            loads.take(read(s, door(int(10 * s), 1), node=node))
    loads.keep_nodes([NodeId("n2")])
    assert (loads.lately()[API].queued, loads.over(API, 2.0).begun) == (1, 20)


# ---- whatever happens -----------------------------------------------------------------------------------------------

happenings = st.lists(st.sampled_from(["work", "restart", "end", "start", "agent", "unread"]), min_size=1, max_size=40)


@given(happenings, st.integers(0, 5))
def test_nothing_that_was_read_is_lost_and_nothing_is_negative(schedule, before):
    loads, truth, agent, begun = Loads(), 0, 0, 0
    running: dict[str, list[int]] = {"0": [1, before, 0]}
    now_s, born = 0.0, 1
    told = 0
    loads.take(read(0.0, replica(0.0, name="0", ended=before, cpu_s=before / 10), door(begun), agent="0"))
    for event in schedule:
        now_s += 0.5
        if event == "restart":
            running = {name: [attempt + 1, 0, int(now_s * 1000)] for name, (attempt, _, _) in running.items()}
        elif event == "end" and running:
            del running[min(running)]
        elif event == "start":
            running[str(born)] = [1, 0, int(now_s * 1000)]
            born += 1
        elif event == "agent":
            agent, begun = agent + 1, 0
        for state in running.values():
            state[1] += 3
            truth += 3
        begun += 7
        told += 7
        if event == "unread":
            continue
        parts = [
            replica(now_s, name=name, attempt=attempt, ended=ended, ready_s=ready_ms / 1000, cpu_s=ended / 10)
            for name, (attempt, ended, ready_ms) in running.items()
        ]
        loads.take(read(now_s, *parts, door(begun), agent=str(agent)))
        window = loads.over(API, LONGEST_S)
        assert window.ended <= truth
        assert window.begun <= told
        assert min(window.ended, window.begun, window.cpu_s, window.ready_s, window.ended_s) >= 0
        if "unread" not in schedule:
            assert (window.ended, window.begun) == (truth, told)
            assert window.cpu_s == pytest.approx(truth / 10)
