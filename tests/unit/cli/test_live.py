"""The moving part of a deploy, frame by frame."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from cortex.cli.live import PLAIN_PAUSE_S, MovingDisplay, PlainDisplay, display
from cortex.client.follow import Followed, Outcome
from cortex.wire.operator import Status, Waits


@pytest.fixture
def row(fakes: Any) -> Any:
    def build(name: str, outcome: Outcome = Outcome.WAITING, **fields: Any) -> Followed:
        status = fakes.api(name, **({"status": Status.CREATING} | fields))
        until_s = None if outcome is Outcome.WAITING else 52.5
        return Followed(name=name, outcome=outcome, since_s=50.0, until_s=until_s, status=status, had_to_wait=True)

    return build


@pytest.fixture
def terminal(cortex: Any) -> Any:
    cortex.environ = {"NO_COLOR": "1"}
    return cortex.terminal(tty=True)


def lines(shown: MovingDisplay) -> list[str]:
    return [line.rstrip() for line in shown.picture().plain.splitlines()]


def test_the_display_follows_the_terminal(cortex: Any) -> None:
    assert isinstance(display(cortex.terminal()), PlainDisplay)
    assert isinstance(display(cortex.terminal(tty=True)), MovingDisplay)
    cortex.environ = {"TERM": "dumb"}
    assert isinstance(display(cortex.terminal(tty=True)), PlainDisplay)


def test_steps_are_shown_once_they_take_longer_than_a_second(terminal: Any, cortex: Any) -> None:
    shown = MovingDisplay(terminal)
    shown.step("uploading", 3 * 2**20, 12 * 2**20, in_bytes=True)
    cortex.clock.monotonic += 0.9
    assert lines(shown) == []
    cortex.clock.monotonic += 0.2
    assert lines(shown) == ["⠙ uploading  ██████                    25 %  3.0 MiB of 12.0 MiB"]
    shown.step("sklearn: checked model and handler", 2, 4)
    assert lines(shown) == ["⠙ sklearn: checked model and handler  ████████████              50 %  2 of 4"]
    shown.step("checking models and handlers")
    assert lines(shown) == ["⠙ checking models and handlers"]


def test_each_api_has_a_line(terminal: Any, cortex: Any, row: Any) -> None:
    shown = MovingDisplay(terminal)
    with shown:
        shown.follow([row("sklearn", progress="importing handlers/sklearn.py"), row("raw")])
        cortex.clock.monotonic += 3.1
        assert lines(shown) == [
            "⠙ sklearn  creating      3s  importing handlers/sklearn.py",
            "⠙ raw      creating      3s",
        ]
        cortex.clock.monotonic += 70
        assert lines(shown)[1] == "⠙ raw      creating      1m"


@pytest.fixture
def waits(cortex: Any) -> Waits:
    begun_s = cortex.clock.wall_s()
    since, until = (
        datetime.fromtimestamp(moment_s, UTC).isoformat().replace("+00:00", "Z")
        for moment_s in (begun_s, begun_s + 300)
    )
    return Waits(replica="iris.a.11111111.0", doing="running on_start of h.py", since=since, until=until)


def test_until_when_a_replica_may_take_is_told_once_it_takes_long(
    terminal: Any, cortex: Any, row: Any, waits: Waits
) -> None:
    shown = MovingDisplay(terminal)
    with shown:
        shown.follow([row("a", progress="1 starting (running on_start of h.py)", waits=waits)])
        assert "ended" not in lines(shown)[0]
        cortex.clock.wall += 60.0
        assert lines(shown)[0].endswith("  1 starting (running on_start of h.py); ended in 4m if i…")


def test_plain_lines_tell_once_until_when_a_replica_may_take(cortex: Any, row: Any, waits: Waits) -> None:
    terminal = cortex.terminal()
    with PlainDisplay(terminal) as shown:
        for _ in range(6):
            shown.follow([row("a", progress="1 starting (importing h.py)", waits=waits)])
            cortex.clock.monotonic += PLAIN_PAUSE_S
            cortex.clock.wall += PLAIN_PAUSE_S
        shown.follow([row("a", Outcome.LIVE, status=Status.LIVE)])
    first, then, end = terminal.stderr.content.splitlines()
    assert first == "a: creating: 1 starting (importing h.py)"
    assert then == "a: creating: 1 starting (importing h.py); ended in 4m if it does not get on"
    assert end.startswith("a: live after")


def test_finished_apis_move_above(terminal: Any, cortex: Any, row: Any) -> None:
    shown = MovingDisplay(terminal)
    with shown:
        shown.follow([row("a"), row("b")])
        shown.follow([row("a", Outcome.LIVE, status=Status.LIVE), row("b")])
        assert lines(shown) == ["⠋ b  creating      0s"]
        shown.follow(
            [
                row("a", Outcome.LIVE, status=Status.LIVE),
                row("b", Outcome.FAILED, status=Status.UPDATE_FAILED),
                row("c", Outcome.STALLED),
            ]
        )
        assert lines(shown) == []
    talk = terminal.stderr.content
    assert talk.count("✓ a  live  2.5 s") == 1
    assert "✗ b  update failed  2.5 s" in talk
    assert "! c  creating, no progress  2.5 s" in talk


def test_long_progress_is_cut_and_made_harmless(terminal: Any, row: Any) -> None:
    shown = MovingDisplay(terminal)
    with shown:
        shown.follow([row("a", progress="x" * 200 + "\n\x1b[2J")])
        (line,) = lines(shown)
    assert len(line) <= 79
    assert line.endswith("x…")


def test_more_apis_than_lines_are_counted(terminal: Any, row: Any) -> None:
    shown = MovingDisplay(terminal)
    with shown:
        shown.follow([row(f"api-{number}") for number in range(40)])
        assert len(lines(shown)) == 22
        assert lines(shown)[-1] == "  … and 19 more"


def test_a_terminal_without_block_characters(cortex: Any, row: Any) -> None:
    terminal = cortex.terminal(tty=True, encoding="ascii")
    shown = MovingDisplay(terminal)
    with shown:
        shown.follow([row("a", Outcome.LIVE, status=Status.LIVE), row("b")])
        assert lines(shown) == ["| b  creating      0s"]
    assert "+ \x1b[0ma  " in terminal.stderr.content


def test_plain_lines_tell_what_changed_only(cortex: Any, row: Any) -> None:
    terminal = cortex.terminal()
    waiting = row("b", status=Status.COMPUTE_UNAVAILABLE, reason="no\nroom")
    with PlainDisplay(terminal) as shown:
        shown.step("uploading", 0, 2048, in_bytes=True)
        shown.step("uploading", 1024, 2048, in_bytes=True)
        shown.step("checking")
        shown.follow([row("a"), waiting])
        cortex.clock.monotonic += PLAIN_PAUSE_S
        shown.follow([row("a"), waiting])
        shown.follow([row("a"), row("b", Outcome.FAILED, status=Status.COMPUTE_UNAVAILABLE)])
        shown.follow([row("a", Outcome.STALLED), row("b", Outcome.FAILED, status=Status.COMPUTE_UNAVAILABLE)])
    assert terminal.stderr.content.splitlines() == [
        "uploading (2.0 KiB)",
        "checking",
        "a: creating",
        "b: compute unavailable: no room",
        "b: compute unavailable after 2.5 s",
        "a: creating, no progress any more after 2.5 s",
    ]


def test_plain_lines_leave_out_what_passes_quickly_but_not_what_lasts(cortex: Any, row: Any) -> None:
    terminal = cortex.terminal()
    with PlainDisplay(terminal) as shown:
        shown.follow([row("a", progress="1 about to start"), row("b")])
        cortex.clock.monotonic += 0.1
        shown.follow([row("a", progress="1 starting"), row("b", Outcome.LIVE, status=Status.LIVE)])
        for _ in range(5):  # looked at again and again, without news
            cortex.clock.monotonic += PLAIN_PAUSE_S
            shown.follow([row("a", progress="1 starting"), row("b", Outcome.LIVE, status=Status.LIVE)])
    assert terminal.stderr.content.splitlines() == ["b: live after 2.5 s", "a: creating: 1 starting"]
