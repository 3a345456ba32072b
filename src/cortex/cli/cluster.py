"""`cortex cluster`: what a cluster.yaml becomes for whoever makes the machines."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cortex.cli.boundary import DONE
from cortex.cli.command import Command
from cortex.cli.parameters import flag
from cortex.cli.problems import show_problems
from cortex.cli.terminal import Terminal
from cortex.errors import CortexError

if TYPE_CHECKING:
    from cortex.cluster.loading import Cluster

FILE = "cluster.yaml"
ACTIONS = ("export", "up")
LATER = ("down", "info", "scale")


class NoClusters(CortexError):
    """A cluster cannot be started yet: `--dry-run` says what it would become."""

    reference = "no-clusters-yet"
    hint = "`--dry-run` checks FILE and prints what would be handed over; `cortex up` starts Cortex on this machine"

    def __init__(self) -> None:
        super().__init__("this release does not start clusters yet")


class NoClusterFile(CortexError):
    """There is no cluster.yaml where it was looked for, or it cannot be read."""

    reference = "no-cluster-yaml"

    def __init__(self, path: str, reason: str, hint: str) -> None:
        self.path = path
        self.hint = hint
        super().__init__(f"{path}: {reason}")


class _Action(click.Choice[str]):
    """One of `ACTIONS`; of those that will follow it is said that they are not there yet."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value in LATER:
            self.fail(f"`cortex cluster {value}` is not there yet: this release does not start clusters", param, ctx)
        return str(super().convert(value, param, ctx))


def cluster(
    terminal: Terminal, *, action: str, file: str | None, nodes_min: int | None, nodes_max: int | None, dry_run: bool
) -> int:
    from cortex.cluster.export import export

    if action == "up" and not dry_run:
        raise NoClusters
    described = _described(terminal, file, (nodes_min, nodes_max))
    if described.notes:
        show_problems(terminal, described.notes, level="note")
    terminal.out(export(described).rstrip("\n"))
    return DONE


def _described(terminal: Terminal, file: str | None, flags: tuple[int | None, int | None]) -> Cluster:
    """Raises NoClusterFile, and Problems with all that is wrong with FILE."""
    from cortex.cluster.loading import SMALLEST_FILE, load

    shown = FILE if file is None else file
    path = terminal.cwd / shown
    if path.is_dir():
        path, shown = path / FILE, f"{shown.rstrip('/')}/{FILE}"
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        raise NoClusterFile(shown, "there is no such file", f"the smallest is, for example\n{SMALLEST_FILE}") from None
    except OSError as error:
        raise NoClusterFile(shown, (error.strerror or str(error)).lower(), "FILE is a cluster.yaml") from error
    return load(
        text,
        file=shown,
        environ=terminal.environ,
        python=f"{sys.version_info.major}.{sys.version_info.minor}",
        flags=flags,
        is_there=lambda name: (path.parent / Path(name).expanduser()).is_file(),
    )


def _bound(name: str, word: str) -> click.Option:
    variable = f"CORTEX_{name.removeprefix('--').replace('-', '_').upper()}"
    return click.Option(
        [name],
        type=click.IntRange(min=1),
        metavar="N",
        help=f"{word} nodes, the head among them; goes before {variable}, and that before FILE.",
    )


COMMAND = Command(
    "cluster",
    cluster,
    summary="Check a cluster.yaml, and print what it becomes.",
    details="""
    `export` prints, as YAML, what a cluster is for whoever makes its machines: the file of Ray's launcher for aws, gcp
    and azure, a RayCluster for kubernetes, and what is run over SSH for machines. `up --dry-run` prints the same. No
    cloud or cluster is asked, and neither credentials nor Ray are needed. All problems of FILE are shown at once.

    Clusters are not started yet. FILE is a cluster.yaml, or a folder with one (default: cluster.yaml here).
    """,
    parameters=(
        click.Argument(["action"], type=_Action(ACTIONS), metavar="export|up"),
        click.Argument(["file"], required=False, metavar="[FILE]"),
        _bound("--nodes-min", "Fewest"),
        _bound("--nodes-max", "Most"),
        flag("--dry-run", help="With up: start nothing, print what would be handed over."),
    ),
    examples=(
        ("cortex cluster export", "what cluster.yaml becomes"),
        ("cortex cluster up prod.yaml --dry-run", "the same, of another file"),
        ("cortex cluster export --nodes-max 20 > prod.yaml", "with more nodes than the file says"),
    ),
    needs_settings=False,
    variables=("CORTEX_NODES_MIN", "CORTEX_NODES_MAX"),
)
