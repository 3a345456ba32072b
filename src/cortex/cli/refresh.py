"""`cortex refresh`: new versions of everything, whether or not something changed."""

from __future__ import annotations

import click

from cortex.cli.command import Command
from cortex.cli.deploy import options, run
from cortex.cli.parameters import api_argument
from cortex.cli.terminal import Terminal
from cortex.settings import Settings


def refresh(
    terminal: Terminal,
    settings: Settings,
    *,
    api: str | None,
    path: str | None,
    force: bool,
    no_wait: bool,
    timeout: float,
    output: str,
) -> int:
    return run(
        terminal,
        settings,
        path=path,
        dry_run=False,
        force=force,
        prune=False,
        refresh=True,
        refresh_only=api,
        wait=not no_wait,
        patience_s=timeout,
        output=output,
    )


COMMAND = Command(
    "refresh",
    refresh,
    summary="Deploy again with new versions of everything, even if nothing changed.",
    details="""
    Models are fetched and packages resolved again, replicas are replaced, statistics begin anew: of API alone, or of
    all apis of the nearest cortex.yaml. Whatever else changed in the folder is deployed with it, as by `deploy`.
    """,
    parameters=(
        api_argument(required=False),
        click.Option(["--path"], metavar="PATH", help="A folder or a yaml file instead of the nearest cortex.yaml."),
        *options(),
    ),
    examples=(
        ("cortex refresh", "all apis of the nearest cortex.yaml"),
        ("cortex refresh sklearn", "one of them: a changed secret takes effect"),
        ("cortex refresh --path examples/iris", "those of another folder"),
    ),
)
