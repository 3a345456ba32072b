"""Parameters that several commands take: how their values are read, and how a shell completes them."""

from __future__ import annotations

from typing import Any

import click

from cortex.cli.command import Edge, environment
from cortex.errors import CortexError

ASK_TIMEOUT_S = 0.5
"""Somebody waits for the Tab key."""


class DurationType(click.ParamType):  # type: ignore[type-arg]  # not generic before click 8.5
    """`30s`, `10m`, `1h30m`, or seconds; the value is seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        from cortex.spec.quantities import QuantityError, parse_duration

        try:
            return parse_duration(value)
        except QuantityError as error:
            self.fail(f"{error}\n{error.hint}".strip(), param, ctx)


class ApiName(click.ParamType):  # type: ignore[type-arg]
    """
    `NAME` or `DEPLOYMENT/NAME`; completed in the shell from what is deployed.

    Args:
        deployments: whether a deployment may be named as well.
        apis: whether apis may be; else only deployments.
    """

    name = "api"

    def __init__(self, *, apis: bool = True, deployments: bool = False) -> None:
        self._apis = apis
        self._deployments = deployments

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value).strip("/")
        if not self._apis:
            if not text or "/" in text:
                self.fail(f"{value!r} is no name of a deployment", param, ctx)
        elif not text or text.count("/") > 1 or text.startswith(".") or "//" in str(value):
            self.fail(f"{value!r} is neither NAME nor DEPLOYMENT/NAME", param, ctx)
        return text

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
        from click.shell_completion import CompletionItem

        names = deployed_names(ctx, apis=self._apis, deployments=self._deployments or not self._apis)
        return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def api_argument(*, required: bool = True, deployments: bool = False) -> click.Argument:
    """`API`; with `deployments` a deployment's name stands for all its apis."""
    metavar = "API or DEPLOYMENT" if deployments else "API"
    return click.Argument(
        ["api"],
        type=ApiName(deployments=deployments),
        required=required,
        metavar=metavar if required else f"[{metavar}]",
    )


def deployment_option() -> click.Option:
    return click.Option(
        ["-d", "--deployment"], type=ApiName(apis=False), metavar="NAME", help="Look in this deployment."
    )


def full_api(api: str, deployment: str | None) -> str:
    """
    API, looked for in the deployment of `-d` if that is given.

    Raises:
        UsageError: API names another deployment.
    """
    owner = api.rpartition("/")[0]
    if deployment and owner not in ("", deployment):
        raise click.UsageError(f"API names deployment {owner}, and -d {deployment}")
    return api if owner or not deployment else f"{deployment}/{api}"


def output_option() -> click.Option:
    return click.Option(
        ["-o", "--output"],
        type=click.Choice(["text", "json"]),
        default="text",
        metavar="FORMAT",
        help="text (the default) or json.",
    )


def flag(*names: str, help: str) -> click.Option:
    return click.Option(list(names), is_flag=True, help=help)


def deployed_names(ctx: click.Context, *, apis: bool = True, deployments: bool = False) -> list[str]:
    """Names of what is deployed, for the shell; nothing when that cannot be known at once. Starts nothing."""
    from cortex.client.addressing import deployment_here, full_name

    edge = ctx.find_object(Edge)
    if edge is None:
        return []
    try:
        operator = environment(edge.terminal, edge.settings()).connect()
        found: tuple[Any, ...] = operator.apis(timeout_s=ASK_TIMEOUT_S)
    except CortexError:
        return []
    here = deployment_here(edge.terminal.cwd)
    near = [api.name for api in found if api.deployment == here]
    groups = sorted({api.deployment for api in found}) if deployments else []
    return [*groups, *([*near, *(full_name(api) for api in found)] if apis else [])]


def secret_names(ctx: click.Context) -> list[str]:
    """Names of secrets, for the shell; as `deployed_names`."""

    edge = ctx.find_object(Edge)
    if edge is None:
        return []
    try:
        secrets = environment(edge.terminal, edge.settings()).connect().secrets(timeout_s=ASK_TIMEOUT_S)
    except CortexError:
        return []
    return [secret.name for secret in secrets]
