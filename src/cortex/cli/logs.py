"""`cortex logs`: what an api's replicas wrote, in time order, and what they go on writing."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import click
import msgspec

from cortex.cli.boundary import DONE
from cortex.cli.command import (
    Command,
    Duration,
    api_argument,
    deployment_option,
    environment,
    on_interrupt,
    output_option,
    print_json_line,
)
from cortex.cli.terminal import Paint, Terminal, harmless
from cortex.client.addressing import deployment_here, find_api, full_name
from cortex.client.errors import OperatorFailed
from cortex.client.operator import ALL_LINES, OperatorClient
from cortex.settings import Settings
from cortex.wire.agent import LogLine, LogLines
from cortex.wire.operator import ApiStatus

LAST_LINES = 100
FOLLOW_S = 5.0
"""How long to wait for a line before looking whether the api is still there."""
SHORT_REQUEST = 6
REPLICA_COLOURS = ("cyan", "magenta", "blue", "green", "yellow")
LEVEL_COLOURS = {"WARNING": "yellow", "ERROR": "red", "CRITICAL": "red"}


class ShownLine(msgspec.Struct, frozen=True, kw_only=True):
    """A log line for programs."""

    time: str
    replica: str
    text: str
    stream: str
    level: str
    request: str


def logs(
    terminal: Terminal,
    settings: Settings,
    *,
    api: str,
    deployment: str | None,
    no_follow: bool,
    since: float | None,
    replica: str | None,
    request: str | None,
    output: str,
) -> int:
    place = environment(terminal, settings)
    operator = place.ensure()
    found = find_api(operator, api, deployment or deployment_here(terminal.cwd))
    since_wall_s = None if since is None else terminal.clock.wall_s() - since
    everything = since is not None or request is not None
    wanted_replica = _full_replica(found, replica)

    def read(client: OperatorClient, cursor: str, wait_s: float) -> LogLines:
        return client.logs(
            found.deployment,
            found.name,
            since_wall_s=since_wall_s,
            replica=wanted_replica,
            request=request,
            tail=ALL_LINES if everything or cursor else LAST_LINES,
            cursor=cursor,
            wait_s=wait_s,
        )

    printer = (
        _json_printer(terminal) if output == "json" else line_printer(terminal, of_one_request=request is not None)
    )
    with on_interrupt("no longer reading; the api is not affected"):
        lines = read(operator, "", 0.0)
        nothing = not lines.lines
        for line in lines.lines:
            printer(line)
        while lines.more:
            lines = read(operator, lines.cursor, 0.0)
            nothing = nothing and not lines.lines
            for line in lines.lines:
                printer(line)
        if no_follow:
            if nothing:
                terminal.say(f"nothing was written by {full_name(found)}{_filtered(since, replica, request)}")
            return DONE
        from cortex.client.reconnection import Reconnecting

        calls = Reconnecting(place, operator, clock=terminal.clock, sleep=terminal.sleep)
        while True:
            try:
                cursor = lines.cursor
                lines = calls.call(lambda client: read(client, cursor, FOLLOW_S))  # noqa: B023  # called at once
            except OperatorFailed as error:
                if error.status != 404:
                    raise
                terminal.say(f"{full_name(found)} is gone: it was deleted")
                return DONE
            for line in lines.lines:
                printer(line)


def short_replica(replica: str) -> str:
    """`3fa1c09d.0`: what tells the replicas of one api apart."""
    return ".".join(replica.rsplit(".", 2)[-2:])


def _full_replica(api: ApiStatus, replica: str | None) -> str | None:
    """Replicas are shown by their short name, and may be asked for by it."""
    if replica is None or replica.count(".") != 1:
        return replica
    return f"{api.deployment}.{api.name}.{replica}"


def _json_printer(terminal: Terminal) -> Callable[[LogLine], None]:
    return lambda line: print_json_line(terminal, _for_programs(line))


def short_request(request: str) -> str:
    """`58a3c1…`: tells the requests on a screen apart, and can be asked for as it is."""
    return request if len(request) <= SHORT_REQUEST + 2 else f"{request[:SHORT_REQUEST]}…"


def line_printer(terminal: Terminal, *, prefix: str = "", of_one_request: bool = False) -> Callable[[LogLine], None]:
    """
    Prints log lines for people: time, `prefix` if there is one, replica, request, text.

    Args:
        of_one_request: whether all lines are of the same one, which then need not be said.
    """
    paint = terminal.paint
    colours: dict[str, str] = {}
    show_text = harmless if terminal.shows_results else str

    def show(line: LogLine) -> None:
        colour = colours.setdefault(line.replica, REPLICA_COLOURS[len(colours) % len(REPLICA_COLOURS)])
        mark = paint(f"{prefix} {short_replica(line.replica)}".lstrip(), colour)
        if line.request and not of_one_request:
            mark += " " + paint(harmless(short_request(line.request)), "dim")
        for part in show_text(line.text).splitlines() or [""]:
            terminal.out(f"{_clock_time(line, paint)}{mark}  {_by_level(part, line.level, paint)}".rstrip())

    return show


def _clock_time(line: LogLine, paint: Paint) -> str:
    if not line.wall_s:
        return ""
    return paint(f"{datetime.fromtimestamp(line.wall_s):%H:%M:%S}", "dim") + " "


def _by_level(text: str, level: str, paint: Paint) -> str:
    colour = LEVEL_COLOURS.get(level.upper())
    return paint(text, colour) if colour else text


def _for_programs(line: LogLine) -> ShownLine:
    return ShownLine(
        time=datetime.fromtimestamp(line.wall_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        replica=line.replica,
        text=line.text,
        stream=line.stream,
        level=line.level,
        request=line.request,
    )


def _filtered(since: float | None, replica: str | None, request: str | None) -> str:
    filters = [
        "in that time" if since is not None else "",
        f"by replica {replica}" if replica else "",
        f"for request {request}" if request else "",
    ]
    return "".join(f" {words}" for words in filters if words)


COMMAND = Command(
    "logs",
    logs,
    summary="Show what an api's replicas write, and follow it.",
    details="""
    The last 100 lines of all replicas in time order, then what they go on writing, across redeploys. Each line begins
    with its time, its replica and, where a request caused it, the beginning of that request's id.
    """,
    parameters=(
        api_argument(),
        deployment_option(),
        click.Option(["--no-follow"], is_flag=True, help="Show what there is, then end."),
        click.Option(["--since"], type=Duration(), metavar="TIME", help="Everything that is younger, e.g. 10m."),
        click.Option(["--replica"], metavar="ID", help="One replica only."),
        click.Option(
            ["--request"], metavar="ID", help="Only what this request caused: its x-request-id, or `4f0c1d…` as shown."
        ),
        output_option(),
    ),
    examples=(
        ("cortex logs sklearn", "the last lines, then new ones; Ctrl-C ends it"),
        ("cortex logs sklearn --since 10m --no-follow", "ten minutes, then end"),
        ("cortex logs sklearn --request 4f0c1d…", "one request, with its traceback"),
    ),
)
