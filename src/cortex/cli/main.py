"""`cortex` and `cx`: the group, and the one place where a command's end becomes an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

import click

from cortex.cli import boundary
from cortex.cli.command import COMPLETE_VARIABLE, PROGRAM, Command, Edge, help_option, setting_options, write_examples
from cortex.cli.terminal import Terminal
from cortex.version import __version__

WIDEST_HELP = 100

SECTIONS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "Deploy and look",
        ("init", "deploy", "get", "logs", "events", "predict", "history", "rollback", "refresh", "delete"),
    ),
    ("Environment", ("up", "down", "info", "secret", "token", "configure", "cluster")),
    ("Other", ("simulate", "completion", "schema", "version")),
)
"""Every command, as `cortex --help` groups them; each is `COMMAND` in the module of its name."""

NAMES = tuple(name for _, names in SECTIONS for name in names)

EXAMPLES = (
    ("cortex init model.onnx", "write what it takes to deploy a model"),
    ("cortex deploy", "deploy the nearest cortex.yaml"),
    ("cortex get", "see what is deployed and how it is doing"),
    ("cortex predict sklearn sample.json", "ask an api something"),
)


class UnknownCommand(click.UsageError):
    """No command begins like that; `hint` says which one was probably meant."""

    def __init__(self, name: str, hint: str, ctx: click.Context) -> None:
        self.hint = hint
        super().__init__(f'there is no command "{name}"', ctx)


class CortexGroup(click.Group):
    """
    Imports a command's module when it is used.

    A command is its whole name: `cortex do` may have been meant as anything, and would stop all that runs; what is
    unique today is taken for another command tomorrow.
    """

    def __init__(self) -> None:
        super().__init__(
            PROGRAM,
            params=[*setting_options(), _version_option()],
            help="Serves trained models as HTTP APIs.",
            callback=_begin,
            invoke_without_command=True,
            subcommand_metavar="COMMAND …",
            context_settings={"help_option_names": ["-h", "--help"]},
        )
        self._help = help_option()

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(NAMES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> Command | None:
        if cmd_name not in NAMES:
            return None
        command = import_module(f"cortex.cli.{cmd_name}").COMMAND
        assert isinstance(command, Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        given = args[0]
        if given in NAMES:
            return given, self.get_command(ctx, given), args[1:]
        from cortex.cli.suggestion import command_hint

        hint = command_hint(given, NAMES)
        raise UnknownCommand(given, hint or "`cortex --help` lists all commands", ctx)

    def invoke(self, ctx: click.Context) -> int:
        code = super().invoke(ctx)
        return code if isinstance(code, int) else boundary.DONE

    def get_help_option(self, ctx: click.Context) -> click.Option:
        return self._help

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, names in SECTIONS:
            with formatter.section(title):
                commands = [(name, self.get_command(ctx, name)) for name in names]
                formatter.write_dl([(name, command.short_help or "") for name, command in commands if command])
        with formatter.section("Settings, also by environment variable"):
            options = [parameter for parameter in self.params if isinstance(parameter, click.Option)]
            formatter.write_dl([record for option in options if (record := option.get_help_record(ctx))])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        write_examples(formatter, EXAMPLES)
        formatter.write_paragraph()
        formatter.write_text(
            "`cortex COMMAND --help` says more. Exit codes: 0 done, 1 failed as explained, 2 wrong usage, "
            "3 a fault of Cortex (a report is written), 130 interrupted."
        )


def run() -> NoReturn:
    """Run the process's command line. `entry` calls it."""
    terminal = Terminal.of_process()
    code = main(sys.argv[1:], terminal)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (BrokenPipeError, ValueError):  # whoever read has gone: the interpreter must not complain at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(code)


def main(argv: Sequence[str], terminal: Terminal) -> int:
    """Run one command line. Returns the exit code and raises nothing."""
    try:
        if COMPLETE_VARIABLE in terminal.environ:
            from click.shell_completion import shell_complete

            edge = {"obj": Edge(terminal)}
            return shell_complete(CortexGroup(), edge, PROGRAM, COMPLETE_VARIABLE, terminal.environ[COMPLETE_VARIABLE])
        return dispatch(argv, terminal)
    except BaseException as error:
        return boundary.handle(error, terminal, argv)


def dispatch(argv: Sequence[str], terminal: Terminal) -> int:
    """Parse a command line and call its command. Raises whatever the command raises."""
    group = CortexGroup()
    try:
        with group.make_context(
            PROGRAM, list(argv), obj=Edge(terminal), terminal_width=min(terminal.width, WIDEST_HELP)
        ) as context:
            return group.invoke(context)
    except click.exceptions.Exit as leaving:
        return leaving.exit_code


@click.pass_context
def _begin(ctx: click.Context, /, **values: str | None) -> None:
    """Runs before each command; without one, shows the help."""
    edge = ctx.ensure_object(Edge)
    edge.take_flags(values)
    if ctx.invoked_subcommand is None:
        edge.terminal.out(ctx.get_help())


def _version_option() -> click.Option:
    def show(ctx: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
        if wanted and not ctx.resilient_parsing:
            ctx.ensure_object(Edge).terminal.out(__version__)
            ctx.exit()

    return click.Option(
        ["--version"], is_flag=True, is_eager=True, expose_value=False, help="Show the version.", callback=show
    )


if __name__ == "__main__":
    run()
