"""`cortex events`: what was decided and what happened, in one time line."""

from __future__ import annotations

import click

from cortex.cli import text
from cortex.cli.boundary import DONE
from cortex.cli.command import Command, environment, on_interrupt, print_json, print_json_line
from cortex.cli.eventlines import LinePrinter
from cortex.cli.parameters import api_argument, deployment_option, flag, full_api, output_option
from cortex.cli.terminal import Terminal, harmless
from cortex.client.addressing import ApiNotFound, deployment_here, find
from cortex.client.environments import Environment
from cortex.client.errors import OperatorFailed
from cortex.client.operator import WATCH_S, OperatorClient
from cortex.client.reconnection import Reconnecting
from cortex.ids import DEFAULT_DEPLOYMENT
from cortex.settings import Settings
from cortex.wire.events import EventKind
from cortex.wire.operator import MOST_EVENTS, ApiStatus, EventPage

LAST_EVENTS = 50


def events(
    terminal: Terminal,
    settings: Settings,
    *,
    api: str | None,
    deployment: str | None,
    follow: bool,
    number: int,
    audit: bool,
    output: str,
) -> int:
    place = environment(terminal, settings)
    if audit and (api is not None or deployment is not None or follow):
        raise click.UsageError("--audit is about the whole control plane, and up to now: it takes -n and -o alone")
    operator = place.look()
    if audit:
        return _audit(terminal, operator, number, output)
    owner, name = (deployment, None) if api is None else _asked(terminal, operator, api, deployment)
    page = operator.events(deployment=owner, api=name, limit=number)
    show = LinePrinter(terminal, page.events, with_api=name is None)
    if output == "json" and not follow:
        print_json(terminal, page.events)
        return DONE
    if not page.events and not follow:
        terminal.say(f"nothing has happened{_of(owner, name)} in the last 14 days")
    with on_interrupt("no longer reading"):
        for line in page.events:
            print_json_line(terminal, line) if output == "json" else show(line)
        if follow:
            _follow(terminal, place, operator, page, owner, name, show=show, output=output)
    return DONE


def _audit(terminal: Terminal, operator: OperatorClient, number: int, output: str) -> int:
    found = operator.audit(limit=number)
    if output == "json":
        print_json(terminal, found)
        return DONE
    if not found:
        terminal.say("nobody has changed anything in the last 90 days")
    width = max((len(line.who) for line in found), default=0)
    now_s = terminal.clock.wall_s() if terminal.shows_results else None
    for line in found:
        when = text.local_time(text.instant(line.time) or 0.0, now_s)
        refused = line.status >= 400
        words = harmless(line.what) + (f": {harmless(line.detail)}" if line.detail else "")
        words += f" ({line.status})" if refused else ""
        who = text.padded(harmless(line.who) or "?", max(width, 1))
        painted = terminal.paint(words, "yellow") if refused else words
        terminal.out(
            f"{terminal.paint(when, 'dim')}  {terminal.paint(who, 'bold')}  {harmless(line.origin)}  {painted}"
        )
    return DONE


def _asked(
    terminal: Terminal, operator: OperatorClient, api: str, deployment: str | None
) -> tuple[str | None, str | None]:
    """The deployment, and the api unless all of it is meant; also one that was deleted lately."""
    name, here = full_api(api, deployment), deployment_here(terminal.cwd)
    try:
        found = find(operator, name, here)
    except ApiNotFound:
        owner, _, short_name = name.rpartition("/")
        owner = owner or here or DEFAULT_DEPLOYMENT
        try:
            operator.events(deployment=owner, api=short_name, limit=1)
        except OperatorFailed as error:
            if error.status != 404:
                raise
        else:
            return owner, short_name
        raise
    return (found.deployment, found.name) if isinstance(found, ApiStatus) else (str(found), None)


def _of(owner: str | None, name: str | None) -> str:
    return f" to {owner}/{name}" if name else f" in deployment {owner}" if owner else ""


def _follow(
    terminal: Terminal,
    place: Environment,
    operator: OperatorClient,
    page: EventPage,
    owner: str | None,
    name: str | None,
    *,
    show: LinePrinter,
    output: str,
) -> None:
    """Print what goes on to happen; returns when the api is deleted that it is about. Raises OperatorDown."""
    calls = Reconnecting(place, operator, clock=terminal.clock, sleep=terminal.sleep)
    cursor = page.cursor
    while True:
        at = cursor
        page = calls.call(
            lambda client: client.events(deployment=owner, api=name, limit=MOST_EVENTS, after=at, wait_s=WATCH_S)  # noqa: B023  # called at once
        )
        cursor = page.cursor
        for line in page.events:
            if output == "json":
                print_json_line(terminal, line)
            elif not line.count & (line.count - 1):  # what happens on and on is told ever more rarely
                show(line)
            if name is not None and line.kind == EventKind.DELETED:
                terminal.say(f"{owner}/{name} is gone: it was deleted")
                return


COMMAND = Command(
    "events",
    events,
    summary="Show what was decided and what happened.",
    details="""
    One time line of all apis, of a deployment's, or of one: deploys, rollbacks, replicas added and taken away and why,
    sleeping and waking, crashes with their last words, requests that are turned away, a machine that is full, damage
    and repairs, restarts of Cortex itself. Events are kept for 14 days, also those of an api that was deleted. What
    happens again and again is counted on one line.
    """,
    parameters=(
        api_argument(required=False, deployments=True),
        deployment_option(),
        flag("-f", "--follow", help="Go on with what happens; Ctrl-C ends it."),
        click.Option(
            ["-n", "--number"],
            type=click.IntRange(1, MOST_EVENTS),
            default=LAST_EVENTS,
            metavar="N",
            help=f"The last N events: {LAST_EVENTS} unless given.",
        ),
        flag("--audit", help="Who changed what and from where, for 90 days, instead of what happened."),
        output_option(),
    ),
    examples=(
        ("cortex events", "everything that happened lately"),
        ("cortex events sklearn -n 5", "the last events of one api"),
        ("cortex events iris -f", "of a deployment, and whatever happens next"),
        ("cortex events --audit", "who deployed, deleted, went back, set secrets, and from where"),
        ("cortex events -o json", "for programs"),
    ),
)
