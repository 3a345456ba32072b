"""Lines of apis as they are written: of one in this thread, of several by a thread each."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

from cortex.cli.terminal import Terminal
from cortex.client.environments import Environment
from cortex.client.errors import OperatorFailed
from cortex.client.operator import ALL_LINES, WATCH_S, OperatorClient
from cortex.client.reconnection import Reconnecting
from cortex.errors import CortexError
from cortex.wire.agent import LogLine, LogLines

FOLLOW_S = 5.0
"""How long to wait for a line before looking whether the api is still there."""

Read = Callable[[OperatorClient, str, str, str, float], LogLines]
"""Lines of (deployment, api) from a cursor on, waiting so many seconds for the first."""
Show = Callable[[LogLine], None]


def follow_one(
    terminal: Terminal, place: Environment, operator: OperatorClient, name: str, cursor: str, *, read: Read, show: Show
) -> None:
    """Print what an api, `DEPLOYMENT/NAME`, goes on writing; returns when it is deleted. Raises OperatorDown."""
    deployment, _, api = name.partition("/")
    calls = Reconnecting(place, operator, clock=terminal.clock, sleep=terminal.sleep)
    while True:
        try:
            at = cursor
            lines = calls.call(lambda client: read(client, deployment, api, at, FOLLOW_S))  # noqa: B023  # called at once
        except OperatorFailed as error:
            if error.status != 404:
                raise
            terminal.say(f"{name} is gone: it was deleted")
            return
        cursor = lines.cursor
        for line in lines.lines:
            show(line)


def follow_all(
    terminal: Terminal,
    place: Environment,
    operator: OperatorClient,
    *,
    deployment: str | None,
    cursors: Mapping[str, str],
    read: Read,
    show_of: Callable[[str], Show],
) -> None:
    """
    Print what all apis write, also those that come; returns when `deployment` is deleted.

    Args:
        deployment: only its apis; None: all, until something ends this.
        cursors: where reading stands, by `DEPLOYMENT/NAME`; others are read from what `read` begins with.
        show_of: makes what prints the lines of one api.

    Raises:
        OperatorDown
    """
    lock = threading.Lock()
    followed: set[str] = set()
    calls = Reconnecting(place, operator, clock=terminal.clock, sleep=terminal.sleep)
    token = ""

    def follow(name: str, show: Show) -> None:
        def alone(line: LogLine) -> None:
            with lock:
                show(line)

        try:
            follow_one(terminal, place, operator, name, cursors.get(name, ""), read=read, show=alone)
        except (CortexError, BrokenPipeError):
            return  # everything ends, or nobody reads any more

    while True:
        asked = token
        watched = calls.call(lambda client: client.watch(asked, timeout_s=WATCH_S, deployment=deployment))  # noqa: B023  # called at once
        token = watched.token
        names = {f"{api.deployment}/{api.name}" for api in watched.apis}
        for name in sorted(names - followed):
            threading.Thread(target=follow, args=(name, show_of(name)), daemon=True).start()
        followed = names
        if deployment is not None and not names:
            terminal.say(f"deployment {deployment} is gone: it was deleted")
            return


def read_since(wall_s: float) -> Read:
    """Reads what was written since then."""

    def read(client: OperatorClient, deployment: str, api: str, cursor: str, wait_s: float) -> LogLines:
        wait = wait_s if cursor else 0.0
        return client.logs(deployment, api, since_wall_s=wall_s, tail=ALL_LINES, cursor=cursor, wait_s=wait)

    return read
