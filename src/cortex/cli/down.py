"""`cortex down`: end everything that runs, and stay down."""

from __future__ import annotations

import click

from cortex.cli import text
from cortex.cli.boundary import DONE, FAILED
from cortex.cli.command import Command, confirmed, local_environment, on_interrupt
from cortex.cli.parameters import DurationType, flag
from cortex.cli.terminal import Terminal
from cortex.settings import Settings

DRAIN_S = 30.0


def down(terminal: Terminal, settings: Settings, *, purge: bool, drain: float, yes: bool) -> int:
    place = local_environment(terminal, settings, "stopped")
    home = settings.home
    if purge and not yes:
        what = f"state, models, logs, secrets and tokens of {home}"
        if not confirmed(terminal, f"Stop everything and remove {what}?", f"this would remove {what}"):
            terminal.say("nothing was changed")
            return FAILED
    with on_interrupt("it may still be stopping; `cortex down` again waits for it, `cortex up` starts it"):
        if place.control_plane() is not None and terminal.shows_talk:
            terminal.say(f"stopping: requests under way get up to {drain:.0f} s")
        stopped = place.stop(drain_timeout_s=drain)
    if stopped.killed:
        pids = text.listed([str(pid) for pid in stopped.killed])
        terminal.say(f"{terminal.paint_talk('note:', 'yellow')} did not end by itself and was ended: pid {pids}")
    if not purge:
        terminal.out("cortex is down" if stopped.was_running else "cortex was not running")
        if stopped.was_running:
            terminal.say("`cortex up` starts it again with everything that was deployed")
        return DONE
    left = place.purge()
    terminal.out(f"cortex is down, and its files in {home} are removed")
    if left:
        terminal.say(f"left alone, because they are not of Cortex: {', '.join(left)}")
    return DONE


COMMAND = Command(
    "down",
    down,
    summary="Stop everything here; nothing starts again by itself.",
    details="""
    Replicas finish what they hold, then all processes end. What was deployed is remembered: `cortex up` brings it back.
    """,
    parameters=(
        flag(
            "--purge",
            help="Also remove state, models, logs, secrets and tokens. Asks on a terminal; without one it needs -y.",
        ),
        click.Option(
            ["--drain"],
            type=DurationType(),
            default=DRAIN_S,
            metavar="TIME",
            help="How long requests under way may take: 30s unless given.",
        ),
        flag("-y", "--yes", help="Do not ask."),
    ),
    examples=(
        ("cortex down", "stop; `cortex up` starts it again"),
        ("cortex down --purge", "also forget what was deployed"),
    ),
)
