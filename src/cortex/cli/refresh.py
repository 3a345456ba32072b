"""`cortex refresh`: new versions of everything, whether or not something changed."""

from __future__ import annotations

import click

from cortex.cli.command import Command
from cortex.cli.deploy import options, run
from cortex.cli.terminal import Terminal
from cortex.settings import Settings


def refresh(
    terminal: Terminal,
    settings: Settings,
    *,
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
        wait=not no_wait,
        patience_s=timeout,
        output=output,
    )


COMMAND = Command(
    "refresh",
    refresh,
    summary="Deploy again with new versions of everything, even if nothing changed.",
    details="""
    Models are fetched and packages resolved again, replicas are replaced, statistics begin anew. PATH as for `deploy`.
    """,
    parameters=(click.Argument(["path"], required=False, type=click.Path()), *options()),
    examples=(("cortex refresh", "the nearest cortex.yaml"),),
)
