"""`cortex delete`: remove a deployment, or one api of it."""

from __future__ import annotations

import click

from cortex.cli import text
from cortex.cli.boundary import DONE, FAILED
from cortex.cli.command import Command, flag, on_interrupt, output_option, print_json, reach
from cortex.cli.terminal import Terminal
from cortex.client.addressing import DeploymentNotFound, deployment_here, select
from cortex.client.operator import OperatorClient
from cortex.settings import Settings


def delete(
    terminal: Terminal, settings: Settings, *, deployment: str | None, api: str | None, yes: bool, output: str
) -> int:
    if api is not None and "/" in api:
        owner, _, api = api.partition("/")
        if deployment not in (None, owner):
            raise click.UsageError(f"--api names deployment {owner}, and the argument {deployment}")
        deployment = owner
    operator = reach(terminal, settings)
    target = deployment or deployment_here(terminal.cwd)
    if target is None:
        names = ", ".join(d.name for d in operator.deployments()) or "none"
        raise click.UsageError(f"say which deployment: there is no cortex.yaml here (deployed: {names})")
    doomed = _doomed(operator, target, api)
    if not yes and terminal.can_ask:
        what = f"api {target}/{api}" if api else f"deployment {target} ({_counted(doomed)})"
        if not terminal.ask(f"Delete {what}?"):
            terminal.say("nothing was deleted")
            return FAILED
    with on_interrupt("it may be deleted already; `cortex get -a` shows it"):
        removed = operator.remove(target, api)
    if output == "json":
        print_json(terminal, removed)
        return DONE
    for name in removed.apis:
        terminal.out(f"deleted {name}")
    if not removed.apis:
        terminal.out(f"deleted deployment {target}")
    if api is not None and deployment_here(terminal.cwd) == target:
        terminal.say("the next `cortex deploy` brings it back unless you take it out of cortex.yaml")
    return DONE


def _doomed(operator: OperatorClient, deployment: str, api: str | None) -> list[str]:
    names = tuple(d.name for d in operator.deployments())
    if deployment not in names:
        raise DeploymentNotFound(deployment, names)
    apis = operator.apis(deployment)
    return [a.name for a in apis] if api is None else [select(api, apis).name]


def _counted(names: list[str]) -> str:
    return f"{text.count(len(names), 'api')}: {text.listed(names)}" if names else "no apis"


COMMAND = Command(
    "delete",
    delete,
    summary="Remove a deployment, or one api of it.",
    details="""
    Without DEPLOYMENT, that of the nearest cortex.yaml. Requests that are under way are answered. Asks on a terminal.
    """,
    parameters=(
        click.Argument(["deployment"], required=False),
        click.Option(["--api"], metavar="API", help="Only this api."),
        flag("-y", "--yes", help="Do not ask."),
        output_option(),
    ),
    examples=(
        ("cortex delete iris", "the whole deployment"),
        ("cortex delete --api sklearn", "one api of the deployment here"),
    ),
)
