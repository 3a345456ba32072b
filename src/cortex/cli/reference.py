"""The commands' own help as a page: `python docs/generate.py` writes it to docs/cli.md."""

from __future__ import annotations

import io
from pathlib import Path

import click

from cortex.cli.command import PROGRAM, Command, Edge
from cortex.cli.main import SECTIONS, CortexGroup
from cortex.cli.terminal import Terminal

WIDTH = 80

HEAD = """\
# The command line

This page is made from the commands' own help: `python docs/generate.py`.

Results go to stdout, everything else to stderr. `-o json` prints for programs, with stable keys; a command that fails
prints `{"problems": […]}` then, with `reference`, `message` and `hint` of each. Colours appear on a terminal only,
and not when `NO_COLOR` is set. API is `NAME` or `DEPLOYMENT/NAME`; `NAME` alone means the deployment of the nearest
`cortex.yaml`, else the only api of that name. Where several apis make sense, as for `get` and `logs`, the name of a
deployment stands for all of it. Tables fold on narrow terminals; in a pipe each row is one line. `cx` is short for
`cortex`; commands and flags are not abbreviated. A variable that begins with `CORTEX_` and does nothing, as it is
misspelt or of a later version, is a warning on stderr.

| exit code | means |
|---|---|
| 0 | done |
| 1 | failed, as explained |
| 2 | wrong usage |
| 3 | a fault of Cortex: a report is written, and it is said where |
| 130 | interrupted, with a sentence on what state things are in |
"""


def page() -> str:
    """The whole page."""
    group = CortexGroup()
    terminal = Terminal(
        stdin=io.StringIO(),
        stdout=io.StringIO(),
        stderr=io.StringIO(),
        environ={},
        cwd=Path("/"),
        fixed_width=WIDTH,
    )
    top = click.Context(group, info_name=PROGRAM, terminal_width=WIDTH, obj=Edge(terminal))
    parts = [HEAD, _block(group.get_help(top))]
    for title, names in SECTIONS:
        parts.append(f"## {title}\n")
        for name in names:
            command = group.get_command(top, name)
            assert isinstance(command, Command)
            context = click.Context(command, info_name=name, parent=top, terminal_width=WIDTH)
            parts.append(f"### {PROGRAM} {name}\n")
            parts.append(_block(command.get_help(context)))
    return "\n".join(parts)


def _block(text: str) -> str:
    return f"```text\n{text.rstrip()}\n```\n"
