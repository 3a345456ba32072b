"""`cortex up --foreground`: an environment that lives as long as this command, for containers and systemd units."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from cortex.cli.boundary import DONE, FAILED
from cortex.cli.command import Interrupted, local_environment
from cortex.cli.deploy import PATIENCE_S, run
from cortex.cli.down import DRAIN_S
from cortex.cli.logs import line_printer
from cortex.cli.terminal import Terminal
from cortex.client.addressing import full_name
from cortex.client.errors import OperatorDown
from cortex.client.local import LocalEnvironment
from cortex.client.operator import ALL_LINES, WATCH_S, OperatorClient
from cortex.client.reconnection import Reconnecting
from cortex.errors import CortexError
from cortex.settings import Settings
from cortex.wire.agent import LogLines
from cortex.wire.operator import ApiStatus


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
    with _terminable():
        try:
            try:
                operator = place.ensure(even_if_down=True)
                if path is not None:
                    code = _deploy(terminal, settings, path)
                    if code != DONE:
                        return code
                terminal.say(f"cortex is up: predictions at {operator.info().ingress}")
                _print_logs(terminal, place, operator)
            except Terminated:
                terminal.say("SIGTERM: stopping")
            except KeyboardInterrupt:
                raise Interrupted("everything here was stopped") from None
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


def _print_logs(terminal: Terminal, place: LocalEnvironment, operator: OperatorClient) -> None:
    """Print what the replicas of all apis write, until something ends this. Raises OperatorDown."""
    lock = threading.Lock()
    followed: set[str] = set()
    calls = _calls(terminal, place, operator)
    token = ""
    while True:
        asked = token
        watched = calls.call(lambda client: client.watch(asked, timeout_s=WATCH_S))  # noqa: B023  # called at once
        token = watched.token
        for api in watched.apis:
            if full_name(api) not in followed:
                followed.add(full_name(api))
                arguments = (terminal, _calls(terminal, place, operator), api, lock)
                threading.Thread(target=_follow, args=arguments, daemon=True).start()
        followed &= {full_name(api) for api in watched.apis}


def _calls(terminal: Terminal, place: LocalEnvironment, operator: OperatorClient) -> Reconnecting:
    return Reconnecting(place, operator, clock=terminal.clock, sleep=terminal.sleep)


def _follow(terminal: Terminal, calls: Reconnecting, api: ApiStatus, lock: threading.Lock) -> None:
    """One api's lines, from now on until it is deleted or everything ends."""
    show = line_printer(terminal, prefix=full_name(api))
    cursor = ""

    def read(client: OperatorClient) -> LogLines:
        return client.logs(api.deployment, api.name, tail=ALL_LINES, cursor=cursor, wait_s=WATCH_S if cursor else 0.0)

    try:
        while True:
            lines = calls.call(read)
            cursor = lines.cursor
            with lock:
                for line in lines.lines:
                    show(line)
    except (CortexError, BrokenPipeError):
        return  # it was deleted, or nobody reads any more
