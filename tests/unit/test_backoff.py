from __future__ import annotations

from cortex.backoff import Backoff, doubling_s


def pauses(backoff: Backoff, failures: int) -> list[float]:
    return [round(backoff.note_failure(100.0), 1) for _ in range(failures)]


def test_pauses_double_up_to_a_bound() -> None:
    assert pauses(Backoff(first_s=0.2, longest_s=5.0), 6) == [0.2, 0.4, 0.8, 1.6, 3.2, 5.0]
    assert [doubling_s(times, first_s=1.0, longest_s=3.0) for times in range(4)] == [0.0, 1.0, 2.0, 3.0]


def test_the_first_ones_may_be_free() -> None:
    expected = [0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    assert pauses(Backoff(first_s=0.1, longest_s=5.0, free=1), 9) == expected


def test_after_a_success_the_next_failure_is_the_first_again() -> None:
    backoff = Backoff(first_s=1.0, longest_s=8.0)
    pauses(backoff, 5)
    backoff.note_success()
    assert pauses(backoff, 1) == [1.0]


def test_what_is_left_of_a_pause_is_told() -> None:
    backoff = Backoff(first_s=4.0, longest_s=8.0)
    assert backoff.wait_s(0.0) == 0.0
    backoff.note_failure(10.0)
    assert (backoff.wait_s(11.0), backoff.wait_s(14.0), backoff.wait_s(15.0)) == (3.0, 0.0, 0.0)


def test_however_often_it_fails_the_pause_has_a_bound() -> None:
    assert doubling_s(10_000, first_s=0.5, longest_s=60.0) == 60.0
