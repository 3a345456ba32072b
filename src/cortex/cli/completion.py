"""`cortex completion`: scripts that complete commands, options and api names in a shell."""

from __future__ import annotations

import os

import click

from cortex.cli.boundary import DONE
from cortex.cli.command import COMPLETE_VARIABLE, PROGRAM, Command
from cortex.cli.terminal import Terminal

SHELLS = ("bash", "zsh", "fish")

_ALIAS_LINES = {
    "bash": "complete -o nosort -F _cortex_completion cx",
    "zsh": "compdef _cortex_completion cx",
    "fish": "complete --command cx --wraps cortex",
}


def completion(terminal: Terminal, *, shell: str | None) -> int:
    from click.shell_completion import get_completion_class

    chosen = shell or os.path.basename(terminal.environ.get("SHELL", ""))
    if chosen not in SHELLS:
        raise click.UsageError(f"say which shell: {', '.join(SHELLS)}")
    kind = get_completion_class(chosen)
    assert kind is not None
    script = kind(click.get_current_context().find_root().command, {}, PROGRAM, COMPLETE_VARIABLE)
    template = script.source_template % script.source_vars()
    terminal.out(f"{template.strip()}\n\n{_ALIAS_LINES[chosen]}")
    return DONE


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
