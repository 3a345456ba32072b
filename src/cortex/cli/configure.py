"""`cortex configure`: environments beside the one on this machine, and which of them is talked to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
import msgspec

from cortex.cli import text
from cortex.cli.boundary import DONE, FAILED
from cortex.cli.command import Command, hidden_value, print_json
from cortex.cli.parameters import flag, output_option
from cortex.cli.terminal import Terminal
from cortex.settings import LOCAL, ControlLayout, Settings

if TYPE_CHECKING:
    from cortex.client.environments import Environments, Remote

ACTIONS = ("list", "add", "edit", "choose", "delete")
ASK_TIMEOUT_S = 5.0


class TokenOnCommandLine(click.UsageError):
    """A token was given where everyone can see it. It is not repeated here."""

    hint = "the token is asked for; or pipe it in: cortex configure add URL [NAME] < FILE"

    def __init__(self) -> None:
        super().__init__("a token is not taken from the command line, where `ps` and the shell's history show it")


def configure(
    terminal: Terminal,
    settings: Settings,
    *,
    action: str,
    words: tuple[str, ...],
    predictions: str | None,
    token: bool,
    output: str,
) -> int:
    from cortex.client import environments

    if predictions is not None and action not in ("add", "edit"):
        raise click.UsageError("--predictions goes with add and edit")
    if token and action != "edit":
        raise click.UsageError("--token goes with edit; `cortex configure add` asks for it anyway")
    layout = ControlLayout(settings.home)
    known = environments.read(layout.environments_file)
    if predictions:
        predictions = environments.checked_url(predictions)
    if action == "list":
        if words:
            raise click.UsageError("`cortex configure list` takes no NAME")
        return _list(terminal, settings, known, output)
    if action == "add":
        changed, name = _added(terminal, known, words, predictions)
    elif action == "edit":
        changed, name = _edited(terminal, known, words, predictions, token=token)
    elif action == "choose":
        name = _only(words, "choose")
        if name != LOCAL:
            known.remote(name)
        changed = msgspec.structs.replace(known, chosen=name)
    else:
        name = _only(words, "delete")
        changed = known.without(environments.deletable(name))
    if changed is None:
        terminal.say("nothing was changed: the token is empty")
        return FAILED
    layout.prepare()
    environments.write(layout.environments_file, changed)
    if output == "json":
        print_json(terminal, _for_programs(settings, changed))
    else:
        done = {"add": "added", "edit": "changed", "choose": "chosen:", "delete": "deleted"}[action]
        terminal.out(f"{done} {name}")
    if action in ("add", "edit"):
        _look(terminal, changed.remote(name))
    if action == "add":
        terminal.say(f"talk to it: cortex --env {name} get; always: cortex configure choose {name}")
    elif action == "choose":
        _tell_what_overrides(terminal, settings, name)
    elif action == "delete" and known.chosen == name:
        terminal.say(f"it was chosen; now {LOCAL} is")
    return DONE


def _added(
    terminal: Terminal, known: Environments, words: tuple[str, ...], predictions: str | None
) -> tuple[Environments | None, str]:
    from cortex.client import environments

    if not words:
        raise click.UsageError("say where its control plane answers: cortex configure add URL [NAME]")
    if len(words) > 2:
        raise TokenOnCommandLine
    url = environments.checked_url(words[0])
    name = environments.checked_name(words[1] if len(words) == 2 else environments.name_for(url))
    if name in known.names:
        raise click.UsageError(f'there is an environment "{name}" already: `cortex configure edit {name}` changes it')
    token = _token(terminal, name)
    if not token:
        return None, name
    remote = environments.Remote(name=name, operator=url, token=token, predictions=predictions or "")
    return known.with_remote(remote), name


def _edited(
    terminal: Terminal, known: Environments, words: tuple[str, ...], predictions: str | None, *, token: bool
) -> tuple[Environments | None, str]:
    from cortex.client import environments

    if not words:
        raise click.UsageError("say which: cortex configure edit NAME [URL]")
    if len(words) > 2:
        raise TokenOnCommandLine
    name = words[0]
    before = known.remote(environments.deletable(name))
    if len(words) == 1 and predictions is None and not token:
        raise click.UsageError(f"say what: cortex configure edit {name} with URL, --predictions or --token")
    changes: dict[str, str] = {}
    if len(words) == 2:
        changes["operator"] = environments.checked_url(words[1])
    if predictions is not None:
        changes["predictions"] = predictions
    if token:
        changes["token"] = _token(terminal, name)
        if not changes["token"]:
            return None, name
    return known.with_remote(msgspec.structs.replace(before, **changes)), name


def _token(terminal: Terminal, name: str) -> str:
    token = hidden_value(terminal, f"token of {name}").strip()
    if not (token.isascii() and token.isprintable() and " " not in token):
        raise click.UsageError("this is no token: it is one word of ASCII characters")
    return token


def _only(words: tuple[str, ...], action: str) -> str:
    if len(words) != 1:
        raise click.UsageError(f"say which one: cortex configure {action} NAME")
    return words[0]


def _look(terminal: Terminal, remote: Remote) -> None:
    """Ask the control plane once, so that a typing mistake shows now."""
    from cortex.client.environments import RemoteEnvironment, is_loopback, is_unprotected
    from cortex.errors import CortexError

    note = terminal.paint_talk("note:", "yellow")
    if is_unprotected(remote.operator):
        terminal.say(f"{note} {remote.operator} is not encrypted: whoever is on the way can read the token")
    try:
        info = RemoteEnvironment(remote).connect().info(timeout_s=ASK_TIMEOUT_S)
    except CortexError as error:
        terminal.say(f"{note} it was noted, but {error}")
        return
    terminal.say(f"it answers: cortex {info.version}, {text.count(info.apis, 'api')}, predictions at {info.ingress}")
    if is_loopback(_host(remote.operator)) and not remote.predictions:
        terminal.say(f"{note} if that is a tunnel, say with --predictions URL where predictions are reached from here")


def _host(url: str) -> str:
    from urllib.parse import urlsplit

    return urlsplit(url).hostname or ""


def _tell_what_overrides(terminal: Terminal, settings: Settings, name: str) -> None:
    by_variable = terminal.environ.get("CORTEX_ENV")
    if by_variable and by_variable != name:
        terminal.say(f"{terminal.paint_talk('note:', 'yellow')} CORTEX_ENV is {by_variable} here, which comes first")


def _list(terminal: Terminal, settings: Settings, known: Environments, output: str) -> int:
    from cortex.client.environments import masked

    if output == "json":
        print_json(terminal, _for_programs(settings, known))
        return DONE
    rows = [("*" if settings.environment == LOCAL else "", LOCAL, "this machine", "", "")]
    for remote in known.remotes:
        mark = "*" if settings.environment == remote.name else ""
        rows.append((mark, remote.name, remote.operator, remote.predictions or "as it says", masked(remote.token)))
    widest = terminal.width if terminal.shows_results else None
    header, *lines = text.table(
        ("", "environment", "control plane", "predictions", "token"),
        rows,
        widest=widest,
        folds=("token", "predictions"),
    )
    terminal.out(terminal.paint(header, "bold"))
    for line in lines:
        terminal.out(line)
    if settings.environment not in known.names:
        terminal.say(f'"{settings.environment}" is wanted here, by --env or CORTEX_ENV, and is none of these')
    elif settings.environment != known.chosen:
        terminal.say(f"* by --env or CORTEX_ENV; without them {known.chosen}")
    return DONE


def _for_programs(settings: Settings, known: Environments) -> list[dict[str, Any]]:
    from cortex.client.environments import masked

    local = {"name": LOCAL, "operator": None, "predictions": None, "token": None}
    remotes = [
        {"name": r.name, "operator": r.operator, "predictions": r.predictions or None, "token": masked(r.token)}
        for r in known.remotes
    ]
    return [{**each, "chosen": each["name"] == known.chosen} for each in (local, *remotes)]


COMMAND = Command(
    "configure",
    configure,
    summary="List, add, edit, choose or delete environments.",
    details="""
    An environment is one control plane with all that is deployed there. `local` is this machine and always there.
    Another one is the URL of its control plane and its token, which is in the file `token` of its home; the token is
    asked for without showing it, or taken from what is piped in. It is kept on this machine, readable by you alone, and
    shown masked. NAME is the first part of the host's name unless given.

    `--env NAME` chooses an environment for one command, CORTEX_ENV for a shell, `cortex configure choose NAME` for
    good. All commands but `up`, `down` and `init` work the same elsewhere: its processes are started and stopped on its
    own machine.

    A control plane listens on its own machine only. From elsewhere it is reached through a proxy with TLS, or through
    a tunnel: ssh -L 9881:localhost:8881 -L 9880:localhost:8880 HOST.
    """,
    parameters=(
        click.Argument(["action"], type=click.Choice(ACTIONS), default="list", metavar="[list|add|edit|choose|delete]"),
        click.Argument(["words"], nargs=-1, metavar="[URL] [NAME]"),
        click.Option(
            ["--predictions"],
            metavar="URL",
            help="Where its prediction APIs are reached from here, if not where it says itself.",
        ),
        flag("--token", help="With edit: take another token."),
        output_option(),
    ),
    examples=(
        ("cortex configure", "list them"),
        ("cortex configure add https://staging.example.com:8881", "asks for the token"),
        ("cortex configure add http://localhost:9881 gpu < token.txt", "a tunnel; the token from a file"),
        ("cortex configure edit gpu --predictions http://localhost:9880", "where the tunnel for predictions ends"),
        ("cortex configure edit gpu --token", "asks for a new token"),
        ("cortex configure choose gpu", "talk to it from now on"),
        ("cortex --env gpu deploy", "only once"),
    ),
)
