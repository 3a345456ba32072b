"""`cortex completion`: scripts that complete commands, options and api names in a shell."""

from __future__ import annotations

import os
from typing import Any

import click

from cortex.cli.boundary import DONE
from cortex.cli.command import Command, Edge
from cortex.cli.terminal import Terminal
from cortex.errors import CortexError

SHELLS = ("bash", "zsh", "fish")
ASK_TIMEOUT_S = 0.5
"""Somebody waits for the Tab key."""

_ALIAS_LINES = {
    "bash": "complete -o nosort -F _cortex_completion cx",
    "zsh": "compdef _cortex_completion cx",
    "fish": "complete --command cx --wraps cortex",
}


def completion(terminal: Terminal, *, shell: str | None) -> int:
    from click.shell_completion import get_completion_class

    from cortex.cli.main import COMPLETE_VARIABLE, PROGRAM, CortexGroup

    chosen = shell or os.path.basename(terminal.environ.get("SHELL", ""))
    if chosen not in SHELLS:
        raise click.UsageError(f"say which shell: {', '.join(SHELLS)}")
    kind = get_completion_class(chosen)
    assert kind is not None
    script = kind(CortexGroup(), {}, PROGRAM, COMPLETE_VARIABLE)
    template = script.source_template % script.source_vars()
    terminal.out(f"{template.strip()}\n\n{_ALIAS_LINES[chosen]}")
    return DONE


def deployed_names(ctx: click.Context, *, apis: bool = True, deployments: bool = False) -> list[str]:
    """Names of what is deployed, for the shell; nothing when that cannot be known at once. Starts nothing."""
    from cortex.cli.command import environment
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
    from cortex.cli.command import environment

    edge = ctx.find_object(Edge)
    if edge is None:
        return []
    try:
        secrets = environment(edge.terminal, edge.settings()).connect().secrets(timeout_s=ASK_TIMEOUT_S)
    except CortexError:
        return []
    return [secret.name for secret in secrets]


COMMAND = Command(
    "completion",
    completion,
    summary="Print a script that completes commands in your shell.",
    details="""
    Completes commands, options and the names of deployed apis, for `cortex` and `cx`. Without SHELL, for the one that
    $SHELL names.
    """,
    parameters=(click.Argument(["shell"], type=click.Choice(SHELLS), required=False),),
    examples=(
        ("source <(cortex completion bash)", "in ~/.bashrc"),
        ("source <(cortex completion zsh)", "in ~/.zshrc, after compinit"),
        ("cortex completion fish | source", "in ~/.config/fish/config.fish"),
    ),
    needs_settings=False,
)
