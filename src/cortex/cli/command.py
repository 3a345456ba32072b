"""How a command is declared: its plain function, its parameters and its help stand side by side in one file."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from cortex.cli.problems import show_problems
from cortex.cli.terminal import Terminal
from cortex.errors import CortexError
from cortex.settings import LOCAL, SETTINGS, Settings, without_effect

if TYPE_CHECKING:
    from cortex.client.environments import Environment
    from cortex.client.local import LocalEnvironment
    from cortex.client.operator import OperatorClient

PROGRAM = "cortex"
COMPLETE_VARIABLE = "_CORTEX_COMPLETE"

_SETTING_PREFIX = "setting_"
_METAVARS = {
    "home": "FOLDER",
    "port": "PORT",
    "operator_port": "PORT",
    "host": "ADDRESS",
    "environment": "NAME",
    "start_timeout_s": "SECONDS",
}


@dataclass
class Edge:
    """What the group hands to its commands."""

    terminal: Terminal
    flags: dict[str, str] = field(default_factory=dict)
    """Settings that were given as flags, by field."""

    def settings(self) -> Settings:
        from cortex.client.environments import settings_of

        return settings_of(self.terminal.environ, **self.flags)

    def take_flags(self, values: dict[str, Any]) -> None:
        """Move settings out of parsed parameters; the last flag given wins."""
        for setting in SETTINGS:
            value = values.pop(_SETTING_PREFIX + setting.field, None)
            if value:
                self.flags[setting.field] = value


class StoppedByUser(Exception):
    """Ctrl-C, with a sentence on what state things are in."""


@contextmanager
def on_interrupt(sentence: str) -> Iterator[None]:
    """What to tell when Ctrl-C hits inside this block."""
    try:
        yield
    except KeyboardInterrupt:
        raise StoppedByUser(sentence) from None


class Command(click.Command):
    """
    One command.

    Args:
        function: takes the `Terminal`, the `Settings` unless `needs_settings` is False, and the parameters by name;
            returns an exit code.
        summary: one line for the list of commands.
        details: the rest of the help; paragraphs are wrapped.
        examples: (command line, what it does).
        variables: that it reads beside those of settings.
    """

    def __init__(
        self,
        name: str,
        function: Callable[..., int],
        *,
        summary: str,
        details: str = "",
        parameters: Sequence[click.Parameter] = (),
        examples: Sequence[tuple[str, str]],
        needs_settings: bool = True,
        variables: Collection[str] = (),
    ) -> None:
        super().__init__(
            name,
            params=[*parameters, *(setting_options(hidden=True) if needs_settings else ())],
            help=f"{summary}\n\n{inspect.cleandoc(details)}".strip(),
            short_help=summary.rstrip("."),
            context_settings={"help_option_names": ["-h", "--help"]},
        )
        self.function = function
        self.examples = tuple(examples)
        self.needs_settings = needs_settings
        self.variables = frozenset(variables)
        self._help = help_option()

    def invoke(self, ctx: click.Context) -> int:
        edge = ctx.ensure_object(Edge)
        values = dict(ctx.params)
        edge.take_flags(values)
        if self.needs_settings or self.variables:
            _warn_of_variables(edge.terminal, self.variables)
        arguments = (edge.terminal, edge.settings()) if self.needs_settings else (edge.terminal,)
        try:
            return self.function(*arguments, **values)
        except CortexError as error:
            if values.get("output") == "json" and not edge.terminal.has_results:
                print_json_line(edge.terminal, {"problems": error.all_problems()})
            raise

    def get_help_option(self, ctx: click.Context) -> click.Option:
        return self._help

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        write_examples(formatter, self.examples)
        if self.needs_settings:
            formatter.write_paragraph()
            formatter.write_text("Flags for settings (`cortex --help`) may stand here too.")


def _warn_of_variables(terminal: Terminal, read: Collection[str]) -> None:
    """Once a command: whoever misspelt one waits in vain for what it should do."""
    told = without_effect(terminal.environ, also=read)
    if told:
        show_problems(terminal, told, level="warning")
        terminal.say()


def help_option() -> click.Option:
    """`-h`, `--help`: prints on the command's own terminal."""

    def show(ctx: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
        if wanted and not ctx.resilient_parsing:
            ctx.ensure_object(Edge).terminal.out(ctx.get_help())
            ctx.exit()

    return click.Option(
        ["-h", "--help"], is_flag=True, is_eager=True, expose_value=False, help="Show this.", callback=show
    )


def write_examples(formatter: click.HelpFormatter, examples: Sequence[tuple[str, str]]) -> None:
    with formatter.section("Examples"):
        formatter.write_dl([(f"$ {line}", meaning) for line, meaning in examples], col_max=46)


def setting_options(*, hidden: bool = False) -> list[click.Option]:
    """One flag for each row of the settings table."""
    return [
        click.Option(
            [setting.flag, _SETTING_PREFIX + setting.field],
            metavar=_METAVARS.get(setting.field, "VALUE"),
            help=f"{setting.help} [{setting.variable}; {setting.default}]",
            hidden=hidden,
        )
        for setting in SETTINGS
    ]


class NeedsYes(click.UsageError):
    """Nobody can be asked whether to remove something, and nobody said yes beforehand."""

    hint = "-y says yes beforehand"

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}, and without a terminal nobody can be asked")


def confirmed(terminal: Terminal, question: str, otherwise: str) -> bool:
    """
    Whether somebody says yes.

    Raises:
        NeedsYes: there is nobody to ask; `otherwise` says what is at stake.
    """
    if not terminal.can_ask:
        raise NeedsYes(otherwise)
    return terminal.ask(question)


def environment(terminal: Terminal, settings: Settings) -> Environment:
    """The environment that commands talk to. Raises UnknownEnvironment."""
    from cortex.client.environments import open_environment

    return open_environment(
        settings,
        environ=terminal.environ,
        say=terminal.say,
        clock=terminal.clock,
        sleep=terminal.sleep,
    )


def local_environment(terminal: Terminal, settings: Settings, what: str) -> LocalEnvironment:
    """
    The environment on this machine, for commands that start or end processes.

    Args:
        what: what they do to them, as `started`.

    Raises:
        NotOnThisMachine: another environment is talked to.
    """
    from cortex.client.environments import NotOnThisMachine
    from cortex.client.local import LocalEnvironment

    if settings.environment != LOCAL:
        raise NotOnThisMachine(settings.environment, what)
    place = environment(terminal, settings)
    assert isinstance(place, LocalEnvironment)
    return place


def reach(terminal: Terminal, settings: Settings) -> OperatorClient:
    """The control plane, started if it should run and does not. Raises OperatorDown after `cortex down`."""
    return environment(terminal, settings).ensure()


def look(terminal: Terminal, settings: Settings) -> OperatorClient:
    """As `reach`, for commands that make sense only where something was ever started. Raises NeverUp elsewhere."""
    return environment(terminal, settings).look()


def hidden_value(terminal: Terminal, question: str) -> str:
    """What somebody types, unseen; or all that is piped in, without the line end that `echo` adds."""
    if terminal.can_ask:
        return terminal.ask_hidden(f"{question} (it does not show): ")
    try:
        value = terminal.stdin.read()
        value.encode()
    except UnicodeError:
        raise click.UsageError("what was piped in is not UTF-8 text") from None
    return value.removesuffix("\n").removesuffix("\r")


def print_json(terminal: Terminal, value: object) -> None:
    """A result for programs: indented, keys in a stable order, no colour."""
    import msgspec

    terminal.out(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def print_json_line(terminal: Terminal, value: object) -> None:
    """One of many results for programs."""
    import msgspec

    terminal.out(msgspec.json.encode(value).decode())
