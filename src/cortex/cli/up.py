"""`cortex up`: start the environment, with everything that was deployed."""

from __future__ import annotations

import click

from cortex.cli import text
from cortex.cli.boundary import DONE
from cortex.cli.command import Command, local_environment, on_interrupt, print_json
from cortex.cli.parameters import flag, output_option
from cortex.cli.terminal import Terminal
from cortex.client.operator import OperatorClient
from cortex.processes import ControlPlaneRecord
from cortex.settings import LOCAL, Settings
from cortex.version import __version__
from cortex.wire import localnodes
from cortex.wire.operator import Info

LISTENS_WITHIN_S = 10.0
"""Usually a tenth of a second after the control plane answers."""
LOOK_AGAIN_S = 0.05


def up(
    terminal: Terminal, settings: Settings, *, foreground: bool, path: str | None, nodes: int | None, output: str
) -> int:
    if foreground:
        if nodes is not None:
            raise click.UsageError("--nodes does not go with --foreground")
        from cortex.cli.foreground import run_here

        return run_here(terminal, settings, path=path)
    if path is not None:
        raise click.UsageError("PATH goes with --foreground; `cortex deploy PATH` deploys")
    place = local_environment(terminal, settings, "started")
    before = place.control_plane()
    with on_interrupt("starting goes on; `cortex get` shows how far it is"):
        operator = place.ensure(even_if_down=True, nodes=nodes)
        info = _listening(terminal, operator)
    if output == "json":
        print_json(terminal, info)
        return DONE
    ran = before is not None and before.pid == info.pid
    several = f", on {len(info.nodes)} nodes" if len(info.nodes) > 1 else ""
    terminal.out(f"cortex {'was already' if ran else 'is'} up{several}: predictions at {info.ingress}")
    if info.apis:
        terminal.say(f"{text.count(info.apis, 'api')} deployed; `cortex get -a` shows how they are doing")
    else:
        terminal.say("nothing is deployed; `cortex deploy` in a folder with a cortex.yaml changes that")
    if not (info.ingress_up or info.notes):
        terminal.say("predictions are not listened for yet: `cortex info` shows when they are")
    for remark in remarks(settings, info, place.control_plane()):
        terminal.say(f"{terminal.paint_talk('note:', 'yellow')} {remark}")
    return DONE


def _listening(terminal: Terminal, operator: OperatorClient) -> Info:
    """What runs, once predictions are listened for or it is known why not: the URL that is told is asked next."""
    deadline_s = terminal.clock.monotonic_s() + LISTENS_WITHIN_S
    while True:
        info = operator.info()
        if info.ingress_up or info.notes or terminal.clock.monotonic_s() >= deadline_s:
            return info
        terminal.sleep(LOOK_AGAIN_S)


def remarks(settings: Settings, info: Info, record: ControlPlaneRecord | None = None) -> list[str]:
    """What differs between what runs, which `record` says where it listens, and what this command line would start."""
    told = list(info.notes)
    if info.version != __version__:
        told.append(
            f"the control plane that runs is version {info.version}, this is {__version__}: "
            "`cortex down`, then `cortex up` changes to it"
            if settings.environment == LOCAL
            else f"its control plane is version {info.version}, this is {__version__}"
        )
    if settings.environment != LOCAL:
        return told
    if settings.host_given and record is not None and record.host != settings.host:
        told.append(
            f"predictions listen at {record.host}, not at {settings.host}: `cortex down`, then `cortex up` moves them"
        )
    if settings.port_given and not info.ingress.endswith(f":{settings.port}"):
        told.append(
            f"predictions are at {info.ingress}, not at port {settings.port}: "
            "`cortex down`, then `cortex up` moves them"
        )
    if settings.operator_port_given and not info.operator.endswith(f":{settings.operator_port}"):
        told.append(
            f"the control plane is at {info.operator}, not at port {settings.operator_port}: "
            "`cortex down`, then `cortex up` moves it"
        )
    return told


COMMAND = Command(
    "up",
    up,
    summary="Start Cortex here, with everything that was deployed.",
    details="""
    `cortex deploy` does this by itself. After a reboot, or after `cortex down`, this restores what was deployed.
    With --foreground it stays here, for a container or a systemd unit: deploys PATH, prints the logs of all apis to
    stdout, and on SIGTERM drains and exits 0. It exits 1 if PATH cannot go live.
    """,
    parameters=(
        click.Argument(["path"], required=False, type=click.Path()),
        flag("--foreground", help="Stay here until SIGTERM or Ctrl-C, then stop everything."),
        click.Option(
            ["--nodes"],
            type=click.IntRange(1, localnodes.MOST),
            metavar="N",
            help="Have this machine be N nodes, as if it were so many machines: to try things. Remembered.",
        ),
        output_option(),
    ),
    examples=(
        ("cortex up", "start, and serve what was deployed"),
        ("cortex up --port 9000", "predictions at port 9000"),
        ("cortex up --foreground /app", "in a container: deploy /app and stay"),
        ("CORTEX_HOME=/srv/cortex cortex up", "a second one, with a home of its own"),
        ("cortex up --nodes 3", "three nodes on this machine: each has a door, and any of them serves all apis"),
    ),
)
