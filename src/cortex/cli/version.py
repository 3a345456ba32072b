"""`cortex version`: of this command, and of the control plane if one runs."""

from __future__ import annotations

from cortex.cli import text
from cortex.cli.boundary import DONE
from cortex.cli.command import Command, environment, print_json
from cortex.cli.parameters import output_option
from cortex.cli.terminal import Terminal
from cortex.errors import CortexError
from cortex.settings import Settings
from cortex.version import __version__

ASK_TIMEOUT_S = 2.0


def version(terminal: Terminal, settings: Settings, *, output: str) -> int:
    import platform

    found = {"cortex": __version__, "control_plane": _running(terminal, settings), "python": platform.python_version()}
    if output == "json":
        print_json(terminal, found)
        return DONE
    rows = [(name.replace("_", " "), value or "not running") for name, value in found.items()]
    for line in text.pairs(rows):
        terminal.out(line)
    return DONE


def _running(terminal: Terminal, settings: Settings) -> str | None:
    """The version that runs; asks, but starts nothing."""
    try:
        return environment(terminal, settings).connect().info(timeout_s=ASK_TIMEOUT_S).version
    except CortexError:
        return None


COMMAND = Command(
    "version",
    version,
    summary="Show versions: of this command, of what runs, of Python.",
    parameters=(output_option(),),
    examples=(("cortex version", "all of them"), ("cortex --version", "the number alone")),
)
