"""`cortex delete`: remove a deployment, or one api of it."""

from __future__ import annotations

import click

from cortex.cli import text
from cortex.cli.boundary import DONE, FAILED
from cortex.cli.command import Command, confirmed, look, on_interrupt, print_json
from cortex.cli.parameters import ApiName, flag, output_option
from cortex.cli.terminal import Terminal
from cortex.client.addressing import ApiNotFound, DeploymentNotFound, deployment_here, full_name
from cortex.client.operator import OperatorClient
from cortex.settings import Settings


def delete(
    terminal: Terminal, settings: Settings, *, target: str | None, api: str | None, yes: bool, output: str
) -> int:
    deployment, api = _named(target, api)
    operator = look(terminal, settings)
    deployment = deployment or deployment_here(terminal.cwd)
    if deployment is None:
        names = ", ".join(d.name for d in operator.deployments()) or "none"
        raise click.UsageError(f"say which deployment: there is no cortex.yaml here (deployed: {names})")
    doomed = _doomed(operator, deployment, api)
    what = f"api {deployment}/{api}" if api else f"deployment {deployment} ({_counted(doomed)})"
    if not yes and not confirmed(terminal, f"Delete {what}?", f"this would delete {what}"):
        terminal.say("nothing was deleted")
        return FAILED
    with on_interrupt("it may be deleted already; `cortex get -a` shows it"):
        removed = operator.remove(deployment, api)
    if output == "json":
        print_json(terminal, removed)
        return DONE
    for name in removed.apis:
        terminal.out(f"deleted {name}")
    if not removed.apis:
        terminal.out(f"deleted deployment {deployment}")
    if api is not None and deployment_here(terminal.cwd) == deployment:
        terminal.say("the next `cortex deploy` brings it back unless you take it out of cortex.yaml")
    return DONE


def _named(target: str | None, api: str | None) -> tuple[str | None, str | None]:
    """Deployment and api of `DEPLOYMENT`, `DEPLOYMENT/API` and `--api API`; what is said twice has to agree."""
    deployment, _, name = (target or "").partition("/")
    owner, _, wanted = (api or "").rpartition("/")
    if owner and deployment not in ("", owner):
        raise click.UsageError(f"--api names deployment {owner}, and the argument {deployment}")
    if name and wanted not in ("", name):
        raise click.UsageError(f"--api names api {wanted}, and the argument {name}")
    return deployment or owner or None, name or wanted or None


def _doomed(operator: OperatorClient, deployment: str, api: str | None) -> list[str]:
    names = tuple(d.name for d in operator.deployments())
    if deployment not in names:
        owners = sorted(full_name(found) for found in operator.apis() if found.name == deployment)
        # No guess at what was meant: whoever follows it loses something.
        hint = f"an api is deleted by its full name: cortex delete {' or '.join(owners)}" if owners else ""
        raise DeploymentNotFound(deployment, names, hint=hint or f"deployed: {', '.join(names) or 'nothing'}")
    apis = operator.apis(deployment)
    if api is None:
        return [found.name for found in apis]
    if api not in {found.name for found in apis}:
        raise ApiNotFound(f"{deployment}/{api}", tuple(sorted(full_name(found) for found in apis)))
    return [api]


def _counted(names: list[str]) -> str:
    return f"{text.count(len(names), 'api')}: {text.listed(names)}" if names else "no apis"


COMMAND = Command(
    "delete",
    delete,
    summary="Remove a deployment, or one api of it.",
    details="""
    DEPLOYMENT is deleted with all its apis, DEPLOYMENT/API is one of them. Without either, the deployment of the
    nearest cortex.yaml. Requests that are under way are answered. Asks on a terminal; without one it needs -y.
    """,
    parameters=(
        click.Argument(
            ["target"], type=ApiName(deployments=True), required=False, metavar="[DEPLOYMENT or DEPLOYMENT/API]"
        ),
        click.Option(["--api"], type=ApiName(), metavar="API", help="Only this api."),
        flag("-y", "--yes", help="Do not ask."),
        output_option(),
    ),
    examples=(
        ("cortex delete iris", "the whole deployment"),
        ("cortex delete iris/sklearn", "one api of it"),
        ("cortex delete --api sklearn", "one api of the deployment here"),
    ),
)
