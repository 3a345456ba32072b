"""`cortex logs`: what an api's replicas wrote, in time order, and what they go on writing."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import click
import msgspec

from cortex.cli import text
from cortex.cli.boundary import DONE
from cortex.cli.command import Command, environment, on_interrupt, print_json_line
from cortex.cli.following import Read, follow_all, follow_one
from cortex.cli.parameters import DurationType, api_argument, deployment_option, full_api, output_option
from cortex.cli.terminal import Paint, Terminal, harmless
from cortex.client.addressing import deployment_here, find, full_name
from cortex.client.errors import OperatorFailed
from cortex.client.operator import ALL_LINES, OperatorClient
from cortex.ids import NodeId
from cortex.settings import Settings
from cortex.wire.agent import LogLine, LogLines
from cortex.wire.operator import CURRENT, ApiStatus, Status, rfc3339_ms

LAST_LINES = 100
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
    follow: bool,
    tail: int | None,
    since: float | None,
    replica: str | None,
    version: str | None,
    request: str | None,
    output: str,
) -> int:
    place = environment(terminal, settings)
    operator = place.look()
    found = find(operator, full_api(api, deployment), deployment_here(terminal.cwd))
    several = not isinstance(found, ApiStatus)
    apis = [found] if isinstance(found, ApiStatus) else [*operator.apis(found)]
    since_wall_s = None if since is None else terminal.clock.wall_s() - since
    chosen = since is not None or request is not None or replica is not None
    # Who asks for a time, a request or a replica wants it from whichever version it was.
    first_version = version or (None if chosen else CURRENT)
    number = tail if tail is not None else ALL_LINES if since is not None or request is not None else LAST_LINES

    absent = _Absent(terminal)

    def read(client: OperatorClient, owner: str, name: str, cursor: str, wait_s: float) -> LogLines:
        begins = not cursor
        found = client.logs(
            owner,
            name,
            since_wall_s=since_wall_s,
            replica=f"{owner}.{name}.{replica}" if replica is not None and replica.count(".") == 1 else replica,
            version=first_version if begins else version,
            request=request,
            tail=number if begins else ALL_LINES,
            cursor=cursor,
            wait_s=0.0 if begins else wait_s,
        )
        absent.are(found.missing)
        return found

    def show_of(name: str) -> Callable[[LogLine], None]:
        if output == "json":
            return lambda line: print_json_line(terminal, _for_programs(line))
        prefix = name.partition("/")[2] if several else ""
        return line_printer(terminal, prefix=prefix, of_one_request=request is not None)

    with on_interrupt("no longer reading; the api is not affected"):
        cursors = _show_first(operator, apis, read, show_of, number)
        if not follow:
            is_of_today = first_version == CURRENT and number > 0
            if not cursors.any_line and number > 0:
                about = full_name(apis[0]) if not several and apis else f"the apis of {found}"
                filtered = _filtered(since, replica, version, request)
                yet = _yet(terminal, operator, apis) if is_of_today and not filtered else ""
                terminal.say(f"nothing was written by {about}{filtered}{yet}")
            elif is_of_today:
                for api_ in apis:
                    _say_whose(terminal, operator, api_)
            return DONE
        if several:
            follow_all(
                terminal,
                place,
                operator,
                deployment=str(found),
                cursors=cursors.by_api,
                read=read,
                show_of=show_of,
            )
        else:
            name = full_name(apis[0])
            follow_one(terminal, place, operator, name, cursors.by_api[name], read=read, show=show_of(name))
        return DONE


def _say_whose(terminal: Terminal, operator: OperatorClient, api: ApiStatus) -> None:
    """Lines are of what is wanted and of what serves until that is live: say so where all are of the latter."""
    if api.serving and api.serving != api.version and not _last_line(operator, api, api.version):
        goes_on = "which goes on serving" if api.status is Status.UPDATE_FAILED else "which serves until then"
        note = f"version {api.version} of {full_name(api)} has written nothing yet, only {api.serving}, {goes_on}"
        terminal.say(f"{terminal.paint_talk('note:', 'yellow')} {note}")


def _yet(terminal: Terminal, operator: OperatorClient, apis: Sequence[ApiStatus]) -> str:
    """What to add to "nothing was written": where versions before this one did, how to see it."""
    last = [line.wall_s for api in apis for line in _last_line(operator, api)]
    if not last:
        return " yet"
    age_h = (terminal.clock.wall_s() - max(last)) / 3600
    reaches = next((hours for hours in (1, 24) if age_h < hours), 168)
    whose = f"version {apis[0].version}" if len(apis) == 1 else "the current versions"
    return f" in {whose} yet; --since {reaches}h shows what was before"


def _last_line(operator: OperatorClient, api: ApiStatus, version: str | None = None) -> Sequence[LogLine]:
    """The last line of a version, or of any; none where there is none, or the api is gone meanwhile."""
    try:
        return operator.logs(api.deployment, api.name, version=version, tail=1).lines
    except OperatorFailed:
        return ()


class _Absent:
    """Says which nodes do not answer, each once until it does."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._told: frozenset[NodeId] = frozenset()

    def are(self, nodes: Collection[NodeId]) -> None:
        """These are, and no others."""
        told, self._told = self._told, frozenset(nodes)
        for node in sorted(self._told - told):
            mark = self._terminal.paint_talk("note:", "yellow")
            self._terminal.say(f"{mark} node {node} does not answer: what was written there comes once it does")


class _Shown(msgspec.Struct, frozen=True):
    """Where reading stands after the first lines."""

    by_api: dict[str, str]
    any_line: bool


def _show_first(
    operator: OperatorClient,
    apis: Sequence[ApiStatus],
    read: Read,
    show_of: Callable[[str], Callable[[LogLine], None]],
    number: int,
) -> _Shown:
    """Print what there is, at most the last `number` lines of all apis together, in time order."""
    cursors: dict[str, str] = {}
    found: list[tuple[float, str, LogLine]] = []
    for api in apis:
        name = full_name(api)
        lines = read(operator, api.deployment, api.name, "", 0.0)
        told = list(lines.lines)
        while lines.more:
            lines = read(operator, api.deployment, api.name, lines.cursor, 0.0)
            told += lines.lines
        cursors[name] = lines.cursor
        found += [(line.wall_s, name, line) for line in told]
    found.sort(key=lambda each: each[0])
    shows = {name: show_of(name) for name in cursors}
    for _, name, line in found[max(len(found) - number, 0) :]:
        shows[name](line)
    return _Shown(cursors, bool(found) and number > 0)


def short_request(request: str) -> str:
    """`58a3c1…`: tells the requests on a screen apart, and can be asked for as it is."""
    return request if len(request) <= SHORT_REQUEST + 2 else f"{request[:SHORT_REQUEST]}…"


def line_printer(terminal: Terminal, *, prefix: str = "", of_one_request: bool = False) -> Callable[[LogLine], None]:
    """
    Prints log lines: time, `prefix` if there is one, replica, request, text. Ids are whole where stdout is no terminal,
    so that what is searched for is found; they name the api then.

    Args:
        of_one_request: whether all lines are of the same one, which then need not be said.
    """
    paint = terminal.paint
    colours: dict[str, str] = {}
    for_people = terminal.shows_results
    show_text = harmless if for_people else str

    def show(line: LogLine) -> None:
        colour = colours.setdefault(line.replica, REPLICA_COLOURS[len(colours) % len(REPLICA_COLOURS)])
        replica = text.short_replica(line.replica) if for_people else line.replica
        mark = paint(f"{prefix} {replica}".lstrip() if for_people else replica, colour)
        if line.request and not of_one_request:
            mark += " " + paint(harmless(short_request(line.request) if for_people else line.request), "dim")
        when = text.local_time(line.wall_s, terminal.clock.wall_s() if for_people else None)
        when = paint(when, "dim") + " " if when else ""
        for part in show_text(line.text).splitlines() or [""]:
            terminal.out(f"{when}{mark}  {_by_level(part, line.level, paint)}".rstrip())

    return show


def _by_level(text: str, level: str, paint: Paint) -> str:
    colour = LEVEL_COLOURS.get(level.upper())
    return paint(text, colour) if colour else text


def _for_programs(line: LogLine) -> ShownLine:
    return ShownLine(
        time=rfc3339_ms(line.wall_s),
        replica=line.replica,
        text=line.text,
        stream=line.stream,
        level=line.level,
        request=line.request,
    )


def _filtered(since: float | None, replica: str | None, version: str | None, request: str | None) -> str:
    filters = [
        "in that time" if since is not None else "",
        f"by replica {replica}" if replica else "",
        f"by version {version}" if version else "",
        f"for request {request}" if request else "",
    ]
    return "".join(f" {words}" for words in filters if words)


COMMAND = Command(
    "logs",
    logs,
    summary="Show what an api's replicas write, and follow it.",
    details="""
    The last 100 lines of the current version in time order, then what is written from now on, across redeploys, until
    the api is deleted. A deployment stands for all its apis. Each line begins with its time, its replica and, where a
    request caused it, that request's id: short ones on a terminal, whole ones elsewhere. --since, --replica and
    --request look through older versions as well.
    """,
    parameters=(
        api_argument(deployments=True),
        deployment_option(),
        click.Option(
            ["--follow/--no-follow", "-f/"], default=True, help="Go on with what is written (the default), or end."
        ),
        click.Option(["-n", "--tail"], type=click.IntRange(0), metavar="N", help="The last N lines: 100 unless given."),
        click.Option(["--since"], type=DurationType(), metavar="TIME", help="Everything that is younger, e.g. 10m."),
        click.Option(["--replica"], metavar="ID", help="One replica only."),
        click.Option(["--version"], metavar="V", help="One version only, as `cortex history` shows it."),
        click.Option(
            ["--request"], metavar="ID", help="Only what this request caused: its x-request-id, or `4f0c1d…` as shown."
        ),
        output_option(),
    ),
    examples=(
        ("cortex logs sklearn", "the last lines, then new ones; Ctrl-C ends it"),
        ("cortex logs iris -n 20", "of all apis of a deployment"),
        ("cortex logs sklearn --since 10m --no-follow", "ten minutes, then end"),
        ("cortex logs sklearn --request 4f0c1d…", "one request, with its traceback"),
    ),
)
