"""For how long seats were taken: against a slow reference, while threads go on, and by which requests."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from time import perf_counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex.replica.calls import Call
from cortex.replica.prediction.seats import LoneSeat, SeatRow, Workload


class Watch:
    """A clock that is moved by hand; as that of a machine that has been up for a while."""

    def __init__(self) -> None:
        self.now_s = 1e6

    def __call__(self) -> float:
        return self.now_s


Interval = tuple[float, float]


def busy_s(taken: list[Interval]) -> float:
    return sum(end - begin for begin, end in taken)


def full_s(taken: list[Interval], seats: int) -> float:
    """Looks at each stretch in which nobody comes or goes."""
    instants = sorted({instant for interval in taken for instant in interval})
    return sum(
        later - earlier
        for earlier, later in itertools.pairwise(instants)
        if sum(begin <= earlier and later <= end for begin, end in taken) >= seats
    )


STEPS = st.lists(
    st.one_of(
        st.floats(0.0, 10.0),  # so much time passes
        st.just("take"),
        st.integers(0, 5),  # the seat that was taken so many turns ago, if it is, is left
        st.just("read"),
    ),
    max_size=60,
)


@given(steps=STEPS, seats=st.integers(1, 4))
def test_a_row_knows_at_any_instant_how_long_its_seats_were_taken_and_all_of_them_at_once(
    steps: list[float | int | str], seats: int
) -> None:
    watch = Watch()
    row = SeatRow(seats, watch)
    taken: list[float] = []
    over: list[Interval] = []

    def check() -> None:
        everything = [*over, *((since_s, watch.now_s) for since_s in taken)]
        assert row.read() == pytest.approx((busy_s(everything), full_s(everything, seats)), abs=1e-6)

    for step in steps:
        match step:
            case "take":
                if len(taken) < seats:
                    taken.append(row.take())
            case "read":
                check()
            case int():
                if step < len(taken):
                    since_s = taken.pop(step)
                    assert row.leave(since_s) == watch.now_s - since_s
                    over.append((since_s, watch.now_s))
            case float():
                watch.now_s += step
    check()


@given(steps=STEPS)
def test_a_lone_seat_is_as_full_as_it_is_busy(steps: list[float | int | str]) -> None:
    watch = Watch()
    seat = LoneSeat(watch)
    since_s: float | None = None
    over: list[Interval] = []
    for step in [*steps, "read"]:
        match step:
            case "take" if since_s is None:
                since_s = watch.now_s
                seat.take(since_s)
            case "read":
                everything = over if since_s is None else [*over, (since_s, watch.now_s)]
                assert seat.read() == pytest.approx((busy_s(everything),) * 2, abs=1e-6)
            case int():
                assert seat.leave(since_s or 0.0) == (0.0 if since_s is None else watch.now_s - since_s)
                over += [] if since_s is None else [(since_s, watch.now_s)]
                since_s = None
            case float():
                watch.now_s += step


def never_falls(read: Callable[[], tuple[float, float]], while_: Callable[[], bool], most: int) -> tuple[float, float]:
    """What was read last; neither figure may have fallen, or grown by more than all seats can."""
    began_s, last = perf_counter(), read()
    first = last
    while while_():
        now = read()
        assert now[0] >= last[0]
        assert now[1] >= last[1]
        last = now
    assert last[0] - first[0] <= most * (perf_counter() - began_s)
    return read()


def test_what_is_read_while_many_threads_come_and_go_never_falls_and_misses_nobody() -> None:
    row, threads = SeatRow(8), 8
    held_s = [0.0] * threads
    gate = threading.Barrier(threads + 1)

    def come_and_go(number: int) -> None:
        gate.wait()
        for _ in range(2000):
            since_s = row.take()
            held_s[number] += row.leave(since_s)

    running = [threading.Thread(target=come_and_go, args=(number,)) for number in range(threads)]
    for thread in running:
        thread.start()
    gate.wait()
    busy_s, full_s = never_falls(row.read, lambda: any(thread.is_alive() for thread in running), threads)
    # An instant that is noted after a reading has been made counts from that reading on.
    assert busy_s == pytest.approx(sum(held_s), rel=0.2)
    assert full_s <= busy_s / threads + 1e-6


def test_what_is_read_of_a_lone_seat_while_its_thread_goes_on_never_falls() -> None:
    seat = LoneSeat()
    held_s = [0.0]
    gate = threading.Barrier(2)

    def come_and_go() -> None:
        gate.wait()
        for _ in range(20_000):
            since_s = perf_counter()
            seat.take(since_s)
            held_s[0] += seat.leave(since_s)

    thread = threading.Thread(target=come_and_go)
    thread.start()
    gate.wait()
    busy_s, full_s = never_falls(seat.read, thread.is_alive, 1)
    assert busy_s == full_s == pytest.approx(held_s[0], abs=1e-4)


def a_call(*, handler_s: float, model_s: float = 0.0, started_s: float = 1e6) -> Call:
    call = Call()
    call.started_s, call.handler_s, call.model_s = started_s, handler_s, model_s
    return call


def test_requests_that_have_ended_are_counted_with_what_they_had() -> None:
    watch = Watch()
    workload = Workload(SeatRow(2, watch), LoneSeat(watch), watch)
    watch.now_s += 3.0
    workload.note_end(a_call(handler_s=1.0, model_s=0.25))
    workload.note_end(a_call(handler_s=0.5, started_s=watch.now_s - 2.0))
    assert (workload.ended, workload.ended_s) == (2, 5.0)
    assert (workload.ended_handler_s, workload.ended_model_s) == (1.5, 0.25)


def test_one_that_was_given_up_before_it_had_a_seat_makes_the_others_no_cheaper() -> None:
    workload = Workload(LoneSeat(), LoneSeat())
    workload.note_end(a_call(handler_s=0.0))
    assert (workload.ended, workload.ended_s) == (0, 0.0)
