"""`cortex secret`: values for `env` that are in no file of a project."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from cortex.cli import text
from cortex.cli.boundary import DONE, FAILED
from cortex.cli.command import Command, hidden_value, print_json, reach
from cortex.cli.parameters import flag, output_option
from cortex.cli.terminal import Terminal
from cortex.settings import Settings

if TYPE_CHECKING:
    from cortex.wire.operator import SecretStatus

ACTIONS = ("set", "list", "delete")


class ValueOnCommandLine(click.UsageError):
    """A value was given where everyone can see it. It is not repeated here."""

    hint = "cortex secret set NAME asks for it; or pipe it in: cortex secret set NAME < FILE"

    def __init__(self) -> None:
        super().__init__(
            "the value of a secret is not taken from the command line, where `ps` and the shell's history show it"
        )


def secret(
    terminal: Terminal,
    settings: Settings,
    *,
    action: str,
    name: str | None,
    rest: tuple[str, ...],
    force: bool,
    output: str,
) -> int:
    if action == "list":
        if name is not None:
            raise click.UsageError("`cortex secret list` takes no NAME")
        return _list(terminal, settings, output)
    if rest:
        raise ValueOnCommandLine if action == "set" else click.UsageError(f"`cortex secret {action}` takes one NAME")
    if name is None:
        raise click.UsageError(f"say which: cortex secret {action} NAME")
    return _set(terminal, settings, name, output) if action == "set" else _delete(terminal, settings, name, force)


def _set(terminal: Terminal, settings: Settings, name: str, output: str) -> int:
    operator = reach(terminal, settings)
    value = hidden_value(terminal, f"value of {name}")
    if not value:
        terminal.say("nothing was set: the value is empty")
        return FAILED
    status = operator.set_secret(name, value)
    if output == "json":
        print_json(terminal, status)
        return DONE
    terminal.out(f"set {name}")
    if status.outdated_in:
        count = len(status.outdated_in)
        keep = "keeps the value it had" if count == 1 else "keep the value they had"
        terminal.say(f"{text.listed(status.outdated_in)} {keep} until `cortex refresh`")
    elif not status.used_by:
        terminal.say(f"a handler gets it with this line below `env:` in cortex.yaml\n  NAME: {{secret: {name}}}")
    return DONE


def _list(terminal: Terminal, settings: Settings, output: str) -> int:
    found = reach(terminal, settings).secrets()
    if output == "json":
        print_json(terminal, found)
        return DONE
    if not found:
        terminal.say("there are no secrets; `cortex secret set NAME` makes one")
        return DONE
    now_wall_s = terminal.clock.wall_s()
    rows = [(secret.name, text.ago(secret.updated, now_wall_s), _users(secret)) for secret in found]
    widest = terminal.width if terminal.shows_results else None
    header, *lines = text.table(("secret", "set", "used by"), rows, widest=widest)
    terminal.out(terminal.paint(header, "bold"))
    for line in lines:
        terminal.out(line)
    if any(secret.outdated_in for secret in found):
        terminal.say("* with an older value, until `cortex refresh`")
    return DONE


def _users(secret: SecretStatus) -> str:
    return ", ".join(f"{api}*" if api in secret.outdated_in else api for api in secret.used_by) or "-"


def _delete(terminal: Terminal, settings: Settings, name: str, force: bool) -> int:
    reach(terminal, settings).delete_secret(name, force=force)
    terminal.out(f"deleted {name}")
    return DONE


def _names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    from cortex.cli.parameters import secret_names

    return [name for name in secret_names(ctx) if name.startswith(incomplete)]


COMMAND = Command(
    "secret",
    secret,
    summary="Keep, list or delete values for `env` that are in no file.",
    details="""
    `set` asks for the value without showing it, or takes what is piped in, without a line end at its end. Values stay
    on this machine, readable by you alone, and are never shown again.

    A handler gets one by `env: {TOKEN: {secret: NAME}}` in cortex.yaml. A version keeps the value that it was made
    with, restarts of its replicas included: a changed value takes effect with the next new version, or with
    `cortex refresh`.
    """,
    parameters=(
        click.Argument(["action"], type=click.Choice(ACTIONS), metavar="set|list|delete"),
        click.Argument(["name"], required=False, shell_complete=_names),
        click.Argument(["rest"], nargs=-1, metavar=""),
        flag("--force", help="Delete it even though deployed apis get it."),
        output_option(),
    ),
    examples=(
        ("cortex secret set api-token", "asks for the value"),
        ("cortex secret set api-token < token.txt", "takes it from a file"),
        ("cortex secret list", "names, when they were set, who uses them"),
        ("cortex secret delete api-token", "unless an api still uses it"),
    ),
)
