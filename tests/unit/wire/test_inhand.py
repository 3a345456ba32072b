"""Which requests a replica had in hand, read when it is gone."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from cortex.wire.inhand import PLACES, InHand, LeftInHand, left_in_hand


def test_what_was_taken_and_not_put_back_is_left(tmp_path: Path) -> None:
    file = str(tmp_path / "x")
    hand = InHand(file)
    assert left_in_hand(file) == LeftInHand()
    first, second = hand.take(b"late", 2.0), hand.take(b"early", 1.0)
    assert left_in_hand(file) == LeftInHand(("early", "late"))
    hand.put(first)
    assert left_in_hand(file) == LeftInHand(("early",), "early")
    hand.put(second)
    assert left_in_hand(file) == LeftInHand()


def test_where_one_runs_at_a_time_the_first_is_the_one_that_ran(tmp_path: Path) -> None:
    file = str(tmp_path / "x")
    hand = InHand(file)
    hand.one_at_a_time()
    hand.take(b"running", 1.0)
    hand.take(b"waiting", 2.0)
    assert left_in_hand(file) == LeftInHand(("running", "waiting"), "running")


def test_it_outlives_a_process_that_is_killed(tmp_path: Path) -> None:
    file = str(tmp_path / "x")
    child = os.fork()
    if child == 0:
        InHand(file).take(b"poison-1", 1.0)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert left_in_hand(file) == LeftInHand(("poison-1",), "poison-1")


def test_more_than_there_are_places_for_is_no_error_and_places_are_used_again(tmp_path: Path) -> None:
    file = str(tmp_path / "x")
    hand = InHand(file)
    places = [hand.take(b"%d" % number, 1.0 + number) for number in range(PLACES + 2)]
    assert places[-2:] == [0, 0]
    assert len(left_in_hand(file).requests) == PLACES
    hand.put(places[0])
    assert hand.take(b"next", 1.0) == places[0]


def test_nothing_is_known_of_a_file_that_is_missing_or_cut_short(tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(b"\1abc")
    assert left_in_hand(tmp_path / "short") == left_in_hand(tmp_path / "none") == LeftInHand()


def test_where_no_file_can_be_made_requests_are_taken_all_the_same(tmp_path: Path) -> None:
    for path in (str(tmp_path / "no" / "folder"), ""):
        hand = InHand(path)
        hand.put(hand.take(b"x", 1.0))
