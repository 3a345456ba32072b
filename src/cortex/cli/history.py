"""`cortex history`: the versions of an api."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import msgspec

from cortex.cli import text
from cortex.cli.boundary import DONE
from cortex.cli.command import Command, look, print_json
from cortex.cli.deploy import for_programs
from cortex.cli.parameters import api_argument, deployment_option, flag, full_api, output_option
from cortex.cli.terminal import Terminal, harmless
from cortex.client.addressing import ApiNotFound, deployment_here, find_api
from cortex.client.errors import OperatorFailed
from cortex.client.operator import OperatorClient
from cortex.settings import Settings
from cortex.wire.operator import HistoryLine, Receipt


def history(
    terminal: Terminal, settings: Settings, *, api: str, deployment: str | None, verbose: bool, output: str
) -> int:
    operator = look(terminal, settings)
    lines = _lines(operator, full_api(api, deployment), deployment_here(terminal.cwd))
    if output == "json":
        receipts = [for_programs(line.receipt) for line in lines]
        written = zip(msgspec.to_builtins(lines), receipts, strict=True)
        print_json(terminal, [{**line, "receipt": receipt} for line, receipt in written])
        return DONE
    now_s = terminal.clock.wall_s()
    rows = [
        [
            line.version[:8],
            text.ago(line.deployed, now_s),
            _one_line(line.outcome) or "under way",
            _one_line(_now(line)),
            _one_line(line.cause),
        ]
        for line in lines
    ]
    widest = terminal.width if terminal.shows_results else None
    columns = ["version", "deployed", "outcome", "now", "cause"]
    header, *shown = text.table(columns, rows, widest=widest, folds=("outcome", "now"))
    terminal.out(terminal.paint(header, "bold"))
    for told, line in zip(shown, lines, strict=True):
        terminal.out(told)
        if verbose and line.receipt is not None:
            for words in _proved(line.receipt):
                for part in text.sentence(words, widest, hang=" " * 10):
                    terminal.out(terminal.paint(part, "dim"))
    return DONE


def _proved(receipt: Receipt) -> Iterator[str]:
    yield f"  proved: {harmless(receipt.text)}"
    for example in receipt.examples:
        yield f"          {harmless(example)}"


def _lines(operator: OperatorClient, api: str, here: str | None) -> tuple[HistoryLine, ...]:
    """Also of an api that was deleted, which goes by its full name alone."""
    try:
        found = find_api(operator, api, here)
    except ApiNotFound:
        deployment, is_full, name = api.partition("/")
        with contextlib.suppress(OperatorFailed):
            if is_full and (lines := operator.history(deployment, name)):
                return lines
        raise
    return operator.history(found.deployment, found.name)


def _now(line: HistoryLine) -> str:
    """What is true of its version now."""
    words = [word for word, holds in (("serving", line.serving), ("wanted", line.wanted and not line.serving)) if holds]
    if line.obstacle and not words:
        words.append(f"cannot come back: {line.obstacle}")
    return ", ".join(words)


def _one_line(words: str) -> str:
    return " ".join(harmless(words).split())


COMMAND = Command(
    "history",
    history,
    summary="Show the versions of an api, what made them and how they ended.",
    parameters=(
        api_argument(),
        deployment_option(),
        flag("-v", "--verbose", help="Show the receipts of change-overs that were proved, too."),
        output_option(),
    ),
    details="""
    Each line is one time that a version was deployed or came back. `now` says which version serves, which one is wanted
    while it does not yet, and which ones cannot come back and why; all others can, with `cortex rollback`.

    With -v below each version what `cortex deploy --prove` saw of its change-over: requests of all the time, those that
    failed since it began, and how long both versions answered.
    """,
    examples=(
        ("cortex history sklearn", "newest first"),
        ("cortex history sklearn -v", "with what was proved"),
    ),
)
