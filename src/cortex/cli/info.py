"""`cortex info`: describe the environment."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cortex.cli import text
from cortex.cli.boundary import DONE
from cortex.cli.command import Command, look, print_json
from cortex.cli.parameters import output_option
from cortex.cli.terminal import Terminal
from cortex.cli.up import remarks
from cortex.settings import LOCAL, Settings
from cortex.wire.operator import Info, NodeInfo


def info(terminal: Terminal, settings: Settings, *, output: str) -> int:
    found = look(terminal, settings).info()
    if output == "json":
        print_json(terminal, found)
        return DONE
    paint = terminal.paint
    for line in text.pairs(_facts(found, settings, terminal.clock.wall_s())):
        name, gap, rest = line.partition(text.GAP)
        terminal.out(f"{paint(name, 'dim')}{gap}{rest}" if name.strip() else line)
    if len(found.nodes) > 1:
        terminal.out("")
        for line in _node_lines(found.nodes, terminal):
            terminal.out(line)
    for remark in remarks(settings, found):
        terminal.say(f"{terminal.paint_talk('note:', 'yellow')} {remark}")
    return DONE


def _facts(found: Info, settings: Settings, now_s: float) -> list[tuple[str, str]]:
    running = text.instant(found.started)
    age = f", up {text.age(now_s - running)}" if running is not None else ""
    ingress = found.ingress if found.ingress_up else f"{found.ingress} (does not answer)"
    if found.ingress_pid is not None:
        ingress += f" (pid {found.ingress_pid})"
    rows = [
        ("environment", settings.environment),
        ("home", found.home if settings.environment == LOCAL else f"{found.home}, on its machine"),
        ("predictions", ingress),
        ("control plane", f"{found.operator} (pid {found.pid}, version {found.version}{age})"),
        ("agent", f"pid {found.agent_pid}" if found.agent_pid is not None else "not running"),
        ("serving", f"{text.count(found.apis, 'api')}, {text.count(found.replicas, 'replica')}"),
        ("cpu", f"{text.cpus(found.requested_cpu_millis)} of {text.cpus(found.cpu_millis)} requested"),
        ("memory", f"{text.size(found.requested_mem_bytes)} of {text.size(found.mem_bytes)} requested"),
    ]
    if found.gpus:
        rows.append(("gpu", f"{found.requested_gpus} of {found.gpus} requested"))
    return rows


def _node_lines(nodes: Sequence[NodeInfo], terminal: Terminal) -> list[str]:
    """One line a node, the header first."""
    columns: dict[str, Callable[[NodeInfo], str]] = {
        "node": lambda node: node.name,
        "state": lambda node: node.state,
        "cpu": lambda node: f"{_number(node.requested.cpu)} of {node.cpu:g}",
        "memory": lambda node: f"{text.size(node.requested.mem or 0)} of {text.size(node.mem)}",
        "gpu": lambda node: f"{_number(node.requested.gpu)} of {node.gpu}",
        "replicas": lambda node: str(node.replicas),
        "predictions": lambda node: node.door or "-",
        "why": lambda node: node.why or "-",
    }
    if not any(node.gpu for node in nodes):
        del columns["gpu"]
    if not any(node.why for node in nodes):
        del columns["why"]
    header, *lines = text.table(
        list(columns),
        [[cell(node) for cell in columns.values()] for node in nodes],
        right=("replicas",),
        widest=terminal.width if terminal.shows_results else None,
        folds=("why", "predictions", "gpu"),
    )
    return [terminal.paint(header, "bold"), *lines]


def _number(amount: float | None) -> str:
    return "?" if amount is None else f"{amount:g}"


COMMAND = Command(
    "info",
    info,
    summary="Describe the environment: where it listens, what it has, what is used.",
    parameters=(output_option(),),
    examples=(("cortex info", "ports, processes, capacity"), ("cortex info -o json", "the same, for programs")),
)
