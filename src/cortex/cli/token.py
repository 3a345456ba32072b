"""`cortex token`: who else may call the control plane, and for what."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from cortex.cli import text
from cortex.cli.boundary import DONE
from cortex.cli.command import Command, confirmed, print_json, reach
from cortex.cli.parameters import flag, output_option
from cortex.cli.terminal import Terminal, harmless
from cortex.settings import Settings
from cortex.wire.operator import Role

if TYPE_CHECKING:
    from cortex.client.operator import OperatorClient

ACTIONS = ("create", "list", "delete")


def token(
    terminal: Terminal,
    settings: Settings,
    *,
    action: str,
    name: str | None,
    role: str | None,
    yes: bool,
    output: str,
) -> int:
    if role is not None and action != "create":
        raise click.UsageError("--role goes with create")
    if yes and action != "delete":
        raise click.UsageError("--yes goes with delete")
    if action == "list":
        if name is not None:
            raise click.UsageError("`cortex token list` takes no NAME")
        return _list(terminal, reach(terminal, settings), output)
    if name is None:
        raise click.UsageError(f"say which: cortex token {action} NAME")
    if action == "create":
        if role is None:
            raise click.UsageError(f"say what it may do: --role {' or '.join(Role)}")
        return _create(terminal, reach(terminal, settings), name, Role(role), output)
    operator = reach(terminal, settings)
    if not yes and not confirmed(terminal, f"Delete token {name}?", f"this would turn away whoever uses token {name}"):
        return DONE
    operator.delete_token(name)
    if output == "json":
        print_json(terminal, {"deleted": name})
    else:
        terminal.out(f"deleted {name}")
    return DONE


def _create(terminal: Terminal, operator: OperatorClient, name: str, role: Role, output: str) -> int:
    created = operator.create_token(name, role)
    if output == "json":
        print_json(terminal, created)
        return DONE
    terminal.out(created.token)
    terminal.say(f"this is the only time that it is shown; with the role {role}, {_MAY[role]}")
    terminal.say("elsewhere: cortex configure add URL NAME < FILE-WITH-THE-TOKEN")
    return DONE


def _list(terminal: Terminal, operator: OperatorClient, output: str) -> int:
    found = operator.tokens()
    if output == "json":
        print_json(terminal, found)
        return DONE
    if not found:
        terminal.say("there are no tokens but the home's own; `cortex token create NAME --role read` makes one")
        return DONE
    now_wall_s = terminal.clock.wall_s()
    rows = [(harmless(one.name), one.role.value, text.ago(one.created, now_wall_s)) for one in found]
    widest = terminal.width if terminal.shows_results else None
    header, *lines = text.table(("token", "role", "created"), rows, widest=widest)
    terminal.out(terminal.paint(header, "bold"))
    for line in lines:
        terminal.out(line)
    return DONE


_MAY = {
    Role.READ: "it may look at everything but secrets, and change nothing",
    Role.DEPLOY: "it may also deploy, delete, go back and set secrets",
    Role.ADMIN: "it may do everything",
}


COMMAND = Command(
    "token",
    token,
    summary="Make, list or delete tokens of operators.",
    details="""
    Whoever calls the control plane shows a token. The one in the home's file `token` may do everything; others are made
    here, each with a role: `read` looks at apis, logs, events and history, `deploy` also deploys, deletes, goes back
    and sets secrets, `admin` may do everything. `create` prints the token alone on stdout, once: only its digest is
    kept. A deleted one is turned away from the next call on.

    `cortex events --audit` shows who changed what.
    """,
    parameters=(
        click.Argument(["action"], type=click.Choice(ACTIONS), metavar="create|list|delete"),
        click.Argument(["name"], required=False),
        click.Option(["--role"], type=click.Choice([role.value for role in Role]), help="With create: what it may do."),
        flag("-y", "--yes", help="Do not ask."),
        output_option(),
    ),
    examples=(
        ("cortex token create ci --role deploy > ci-token", "for a pipeline that deploys"),
        ("cortex token list", "names, roles, when they were made"),
        ("cortex token delete ci -y", "turn it away"),
    ),
)
