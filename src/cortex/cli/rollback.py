"""`cortex rollback`: an older version of an api comes back as it ran."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import click
import msgspec

from cortex.cli import text
from cortex.cli.boundary import DONE, FAILED
from cortex.cli.command import Command, environment, on_interrupt, print_json
from cortex.cli.deploy import changes_text, follow_changes, options
from cortex.cli.get import listed
from cortex.cli.parameters import api_argument, deployment_option, full_api
from cortex.cli.problems import show_problems
from cortex.cli.terminal import Terminal
from cortex.client.addressing import ApiNotFound, deployment_here, find_api
from cortex.client.errors import OperatorFailed
from cortex.client.follow import Followed, Outcome
from cortex.client.operator import OperatorClient
from cortex.client.reconnection import Reconnecting
from cortex.errors import CortexError
from cortex.settings import Settings
from cortex.wire.operator import ApiStatus, RollbackRequest, RollbackResult

GOES_ON = "the rollback goes on; `cortex get` shows it"


class ApiDeleted(CortexError):
    """An api that was deleted cannot be rolled back: its versions went with it, only text is left."""

    reference = "api-deleted"

    def __init__(self, name: str) -> None:
        self.name = name
        self.hint = f"`cortex deploy` brings it back as the file has it; `cortex history {name}` shows what it was"
        super().__init__(f'api "{name}" was deleted, and its versions with it')


def rollback(
    terminal: Terminal,
    settings: Settings,
    *,
    api: str,
    version: str,
    deployment: str | None,
    force: bool,
    no_wait: bool,
    timeout: float,
    output: str,
) -> int:
    place = environment(terminal, settings)
    operator = place.look()
    found = _known(operator, full_api(api, deployment), deployment_here(terminal.cwd))
    # Not sent again: without a VERSION, that would be one version further back.
    with on_interrupt("the rollback may have begun; `cortex get` shows it"):
        result = operator.roll_back(found.deployment, found.name, RollbackRequest(version=version, force=force))
    if output == "text":
        for line in _said(terminal, found.deployment, result):
            terminal.out(line)
    rows: tuple[Followed, ...] = ()
    if not no_wait:
        calls = Reconnecting(place, operator, clock=terminal.clock, sleep=terminal.sleep, say=terminal.say)
        with on_interrupt(GOES_ON):
            rows = follow_changes(terminal, calls, (result.change,), found.deployment, timeout)
    elif output == "text":
        terminal.say("not waiting: `cortex get` shows how it goes")
    return _conclude(terminal, found.deployment, result, rows, output=output, patience_s=timeout)


def _known(operator: OperatorClient, api: str, here: str | None) -> ApiStatus:
    """Raises ApiNotFound, or ApiDeleted where there is text of it."""
    try:
        return find_api(operator, api, here)
    except ApiNotFound:
        deployment, is_full, name = api.partition("/")
        if not is_full:
            deployment, name = here or "", api
        with contextlib.suppress(OperatorFailed):
            if deployment and operator.history(deployment, name):
                raise ApiDeleted(f"{deployment}/{name}") from None
        raise


def _said(terminal: Terminal, deployment: str, result: RollbackResult) -> list[str]:
    change = result.change
    if result.already:
        return [f"{deployment}/{change.api}: {change.version[:8]} is the version that is wanted already"]
    width = terminal.width if terminal.shows_results else None
    return changes_text(deployment, (change,), terminal.paint, width=width)


def _conclude(
    terminal: Terminal,
    deployment: str,
    result: RollbackResult,
    rows: Sequence[Followed],
    *,
    output: str,
    patience_s: float,
) -> int:
    outcome = "not waited for"
    for row in rows:
        outcome = {Outcome.FAILED: "failed", Outcome.STALLED: "no progress"}.get(row.outcome, "live")
        if row.outcome is Outcome.FAILED:
            terminal.say()
            show_problems(terminal, [row.problem()])
            if row.status is not None and row.status.serving:
                terminal.say(f"\napi {row.name}: version {row.status.serving} goes on serving")
        elif row.outcome is Outcome.STALLED:
            terminal.say(f"\nno progress for {text.age(patience_s)}. {GOES_ON[0].upper()}{GOES_ON[1:]}")
        elif output == "text":
            terminal.say(f"{deployment}/{row.name}: every request gets {result.change.version[:8]}")
    if output == "json":
        print_json(terminal, _for_programs(deployment, result, rows, outcome))
    return FAILED if outcome in ("failed", "no progress") else DONE


def _for_programs(deployment: str, result: RollbackResult, rows: Sequence[Followed], outcome: str) -> dict[str, Any]:
    return {
        "deployment": deployment,
        "outcome": outcome,
        "already": result.already,
        "change": msgspec.to_builtins(result.change),
        "apis": [listed(row.status) for row in rows if row.status is not None],
    }


COMMAND = Command(
    "rollback",
    rollback,
    summary="Have an older version of an api serve again.",
    details="""
    It comes back as it ran: model, project, packages, env, the values of secrets that it had, sample, cpu, mem, gpu and
    concurrency; nothing is fetched or looked at again. Number of replicas, bounds, timeout, max_body and retry stay.
    Returns once every request gets it.

    VERSION is one of `cortex history`, or its first digits. Without it: the version that was live before the one that
    serves, again one further back; while a new one is on its way, or has failed, the one that serves.

    The api stays so: deploys of the same files leave it alone and say so. Other files, or --force, bring it forward.
    """,
    parameters=(
        api_argument(),
        click.Argument(["version"], required=False, default=""),
        deployment_option(),
        *options(what="rollback"),
    ),
    examples=(
        ("cortex rollback sklearn", "to the version before"),
        ("cortex rollback sklearn 3fa1c09d", "to this one"),
    ),
)
