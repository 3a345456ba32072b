"""`cortex up --foreground`: an environment that lives as long as this command, for containers and systemd units."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from cortex.cli.boundary import DONE, FAILED
from cortex.cli.command import StoppedByUser, local_environment
from cortex.cli.deploy import PATIENCE_S, run
from cortex.cli.down import DRAIN_S
from cortex.cli.following import follow_all, read_since
from cortex.cli.logs import line_printer
from cortex.cli.terminal import Terminal
from cortex.client.errors import OperatorDown
from cortex.settings import Settings


class Terminated(BaseException):
    """SIGTERM: not an error, and not to be caught by what handles errors."""


def run_here(terminal: Terminal, settings: Settings, *, path: str | None) -> int:
    """
    Start, deploy, print logs; stop everything at the end.

    Stopping, in this order: the signal ends whatever is going on here; requests under way are answered; processes end.

    Returns:
        0 after SIGTERM and after `cortex down` elsewhere, 1 if `path` did not go live.
    """
    place = local_environment(terminal, settings, "started")
    begin_wall_s = terminal.clock.wall_s()  # what was written before has been told by whoever ran here then
    with _terminable():
        try:
            try:
                operator = place.ensure(even_if_down=True)
                if path is not None:
                    code = _deploy(terminal, settings, path)
                    if code != DONE:
                        return code
                terminal.say(f"cortex is up: predictions at {operator.info().ingress}")
                follow_all(
                    terminal,
                    place,
                    operator,
                    deployment=None,
                    cursors={},
                    read=read_since(begin_wall_s),
                    show_of=lambda name: line_printer(terminal, prefix=name),
                )
            except Terminated:
                terminal.say("SIGTERM: stopping")
            except KeyboardInterrupt:
                raise StoppedByUser("everything here was stopped") from None
            except OperatorDown:
                terminal.say("`cortex down` was run: ending")
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough: draining has its own time limit
            place.stop(drain_timeout_s=DRAIN_S)
    return DONE


def _deploy(terminal: Terminal, settings: Settings, path: str) -> int:
    code = run(
        terminal,
        settings,
        path=path,
        dry_run=False,
        force=False,
        prune=False,
        refresh=False,
        wait=True,
        patience_s=PATIENCE_S,
        output="text",
    )
    return DONE if code == DONE else FAILED


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM raises `Terminated` in here. As process 1 of a container, also bury processes that lost their parent."""

    def terminate(_number: int, _frame: FrameType | None) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    if os.getpid() == 1:
        signal.signal(signal.SIGCHLD, _bury)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _bury(_number: int, _frame: FrameType | None) -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass
