"""`cortex deploy`: bring what runs to what a cortex.yaml says, and tell how that goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from cortex.cli import text
from cortex.cli.boundary import DONE, FAILED
from cortex.cli.command import Command, StoppedByUser, environment, on_interrupt, print_json
from cortex.cli.curl import proven_line
from cortex.cli.get import listed, notes_of
from cortex.cli.live import display
from cortex.cli.parameters import DurationType, flag, output_option
from cortex.cli.problems import show_problems
from cortex.cli.terminal import Paint, Terminal, harmless
from cortex.client.errors import OperatorFailed
from cortex.client.follow import Followed, Outcome, follow
from cortex.client.operator import OperatorClient
from cortex.client.project import Package, locate, prepare, upload
from cortex.client.reconnection import Reconnecting
from cortex.errors import Problem, Problems
from cortex.settings import LOCAL, Settings
from cortex.wire.operator import ApiChange, ChangeKind, DeployProgress, DeployResult, Receipt, Verdict

if TYPE_CHECKING:
    from cortex.spec.loading import Loaded

PATIENCE_S = 600.0

SIGNS: dict[ChangeKind, tuple[str, str]] = {
    ChangeKind.ADDED: ("+", "green"),
    ChangeKind.NEW_VERSION: ("~", "yellow"),
    ChangeKind.ROLLED: ("~", "yellow"),
    ChangeKind.SETTINGS: ("~", "cyan"),
    ChangeKind.REMOVED: ("-", "red"),
    ChangeKind.UNCHANGED: ("=", "dim"),
    ChangeKind.ROLLED_BACK: ("<", "yellow"),
    ChangeKind.LEFT: ("=", "yellow"),
}

NOTHING_CHANGED = "nothing was changed"
BROKEN_OFF = "the download was broken off; nothing was changed"
CALLED_OFF = "the deploy is called off; had it been accepted already, `cortex get` shows it"
GOES_ON = "the deploy goes on; `cortex get` shows it"
PROOF_GOES_ON = f"{GOES_ON}, and `cortex history -v` what was proved"
RECEIPT_WITHIN_S = 10.0
"""A version that goes back does so before the receipt is written."""
LOOK_EVERY_S = 0.1


def deploy(
    terminal: Terminal,
    settings: Settings,
    *,
    path: str | None,
    dry_run: bool,
    force: bool,
    prune: bool,
    prove: bool,
    yes: bool,
    no_wait: bool,
    timeout: float,
    output: str,
) -> int:
    if yes and not prove:
        raise click.UsageError("--yes goes with --prove: without it nothing is asked")
    return run(
        terminal,
        settings,
        path=path,
        dry_run=dry_run,
        force=force,
        prune=prune,
        prove=prove,
        even_unrepeatable=yes,
        refresh=False,
        wait=not no_wait,
        patience_s=timeout,
        output=output,
    )


def run(
    terminal: Terminal,
    settings: Settings,
    *,
    path: str | None,
    dry_run: bool,
    force: bool,
    prune: bool,
    prove: bool = False,
    even_unrepeatable: bool = False,
    refresh: bool,
    refresh_only: str | None = None,
    wait: bool,
    patience_s: float,
    output: str,
) -> int:
    """Deploy, follow, tell. Returns 0 only when every api is live, or for a dry run without problems."""
    with on_interrupt(NOTHING_CHANGED):
        file = locate(path, terminal.cwd)
        place = environment(terminal, settings)
        shown_file = text.shown_path(file, terminal.cwd)
        warnings: tuple[Problem, ...] = ()
        try:
            with prepare(
                file,
                shown_file=shown_file,
                home=settings.home,
                now_wall_s=terminal.clock.wall_s(),
                dry_run=dry_run,
                force=force,
                prune=prune,
                prove=prove,
                prove_unrepeatable=even_unrepeatable,
                refresh=refresh,
                refresh_only=refresh_only,
                environ=terminal.environ if settings.environment == LOCAL else None,
            ) as package:
                operator = place.ensure(even_if_down=not dry_run)
                calls = Reconnecting(place, operator, clock=terminal.clock, sleep=terminal.sleep, say=terminal.say)
                # Sent again, a deploy comes to the same: what it says is addressed by content.
                try:
                    result = calls.call(lambda client: _send(terminal, client, package))
                except Problems:  # what was odd before may be why
                    warnings = tuple(_placed(package.loaded, warning) for warning in package.warnings)
                    _show_warnings(terminal, warnings)
                    if warnings:
                        terminal.say()
                    raise
        except Problems as error:
            if output == "json":
                print_json(
                    terminal, _for_programs("", DeployResult(problems=error.problems, warnings=warnings), (), "refused")
                )
            raise
    loaded, deployment = package.loaded, package.request.deployment
    if output == "text":
        width = terminal.width if terminal.shows_results else None
        for line in changes_text(deployment, result.changes, terminal.paint, dry_run=dry_run, width=width):
            terminal.out(line)
    result = msgspec.structs.replace(
        result, warnings=tuple(_placed(loaded, warning) for warning in (*package.warnings, *result.warnings))
    )
    _show_warnings(terminal, result.warnings)
    if dry_run or not wait:
        if output == "json":
            outcome = "dry run" if dry_run else "not waited for"
            print_json(terminal, _for_programs(deployment, result, (), outcome))
        else:
            then = ", and `cortex history -v` what was proved" if prove else ""
            not_waiting = f"not waiting: `cortex get` shows how it goes{then}"
            terminal.say("dry run: nothing was changed" if dry_run else not_waiting)
        return DONE
    with on_interrupt(PROOF_GOES_ON if any(change.proved for change in result.changes) else GOES_ON):
        rows = follow_changes(terminal, calls, result.changes, deployment, patience_s)
        receipts = _receipts(terminal, calls, result.changes, deployment)
    return _conclude(terminal, loaded, file, deployment, result, rows, receipts, output=output, patience_s=patience_s)


def _show_warnings(terminal: Terminal, warnings: Sequence[Problem]) -> None:
    """Each once, however many places it is about."""
    places: dict[tuple[str, str, str, str], list[Problem]] = {}
    for warning in warnings:
        places.setdefault((warning.reference, warning.message, warning.hint, warning.traceback), []).append(warning)
    blocks: dict[str, list[Problem]] = {"note": [], "warning": []}
    for same in places.values():
        more = f" and {text.count(len(same) - 1, 'more place')}" if len(same) > 1 else ""
        level = "note" if same[0].reference == "flat-form" else "warning"
        blocks[level].append(msgspec.structs.replace(same[0], subject=same[0].subject + more))
    for level, told in blocks.items():
        if told:
            terminal.say()
            show_problems(terminal, told, level=level)


def _send(terminal: Terminal, operator: OperatorClient, package: Package) -> DeployResult:
    """Upload what is missing, then deploy. Raises Problems when the control plane refuses; then nothing changed."""
    with display(terminal) as shown:
        upload(operator, package, lambda done, total: shown.step("uploading", done, total, in_bytes=True))
        shown.step("checking models and handlers")
        is_fetching = False
        try:
            for event in operator.deploy(package.request):
                if isinstance(event, DeployProgress):
                    is_fetching = event.in_bytes
                    subject = f"{event.api}: " if event.api else ""
                    shown.step(f"{subject}{event.message}", event.done, event.total, in_bytes=event.in_bytes)
                else:
                    result = event
        except KeyboardInterrupt:
            raise StoppedByUser(BROKEN_OFF if is_fetching else CALLED_OFF) from None
        except OperatorFailed as error:
            if not error.problems:
                raise
            raise Problems(map(package.told, error.problems)) from error
    if result.problems:
        raise Problems(map(package.told, result.problems))
    return result


def _placed(loaded: Loaded, problem: Problem) -> Problem:
    """A problem of the control plane with its place in the file."""
    return loaded.place(problem) if problem.path and not problem.where else problem


def follow_changes(
    terminal: Terminal,
    calls: Reconnecting,
    changes: Sequence[ApiChange],
    deployment: str,
    patience_s: float,
) -> tuple[Followed, ...]:
    """Show how far each changed api is, until each is live, has failed or has made no progress for that long."""
    rows: tuple[Followed, ...] = ()
    with display(terminal) as shown:
        for rows in follow(
            lambda token, timeout_s: calls.call(
                lambda client: client.watch(token, timeout_s=timeout_s, deployment=deployment)
            ),
            changes,
            deployment=deployment,
            patience_s=patience_s,
            clock=terminal.clock,
        ):
            shown.follow(rows)
    return rows


def _receipts(
    terminal: Terminal, calls: Reconnecting, changes: Sequence[ApiChange], deployment: str
) -> dict[str, Receipt | None]:
    """Of each api whose change-over was proved what was seen; None where nothing is written of it."""
    found: dict[str, Receipt | None] = {}
    until_s = terminal.clock.monotonic_s() + RECEIPT_WITHIN_S
    for change in changes:
        if not change.proved:
            continue
        while True:
            lines = calls.call(lambda client, api=change.api: client.history(deployment, api))  # type: ignore[misc]
            line = next((line for line in lines if line.version[:8] == change.version[:8]), None)
            found[change.api] = line.receipt if line is not None else None
            if found[change.api] is not None or terminal.clock.monotonic_s() >= until_s:
                break
            terminal.sleep(LOOK_EVERY_S)
    return found


def _show_receipts(terminal: Terminal, changes: Sequence[ApiChange], receipts: Mapping[str, Receipt | None]) -> None:
    """What was proved, an api a line, with a few of the requests that show why not."""
    told: list[tuple[str, str]] = []
    for change in changes:
        receipt = receipts.get(change.api)
        if receipt is not None:
            told.append((change.api, receipt.text))
            told += [("", example) for example in receipt.examples]
        elif change.proved:
            told.append((change.api, "no receipt was written"))
        elif change.unproved:
            told.append((change.api, f"nothing to prove: {change.unproved}"))
    if told:
        terminal.out()
    width = max((len(name) for name, _ in told), default=0)
    for name, words in told:
        terminal.out(f"{'proved' if name else '':<6}  {name:<{width}}  {harmless(words)}")


def _conclude(
    terminal: Terminal,
    loaded: Loaded,
    file: Path,
    deployment: str,
    result: DeployResult,
    rows: Sequence[Followed],
    receipts: Mapping[str, Receipt | None],
    *,
    output: str,
    patience_s: float,
) -> int:
    failed = [row for row in rows if row.outcome is Outcome.FAILED]
    stalled = [row for row in rows if row.outcome is Outcome.STALLED]
    if failed:
        terminal.say()
        show_problems(terminal, [_of_row(loaded, row) for row in failed])
        for row in failed:
            serving = row.status.serving if row.status is not None else ""
            if serving and not row.replaced:
                terminal.say(f"\napi {row.name}: version {serving} goes on serving")
    if stalled:
        names = text.listed([row.name for row in stalled])
        terminal.say(f"\nno progress for {text.age(patience_s)}: {names}. {GOES_ON[0].upper()}{GOES_ON[1:]}")
    unproved = [api for api, receipt in receipts.items() if receipt is None or receipt.verdict is not Verdict.PASSED]
    if output == "json":
        outcome = "failed" if failed else "no progress" if stalled else "not proved" if unproved else "live"
        print_json(terminal, _for_programs(deployment, result, rows, outcome, receipts))
        return FAILED if failed or stalled or unproved else DONE
    _show_receipts(terminal, result.changes, receipts)
    samples = {api.name: api.sample for api in loaded.spec.apis}
    endpoints = {change.api: change.endpoint for change in result.changes}
    untried = {change.api for change in result.changes if change.sample_untried}
    for row in rows:
        if row.outcome is Outcome.LIVE and row.status is not None:
            endpoint = row.status.endpoint or endpoints.get(row.name, "")
            folder = None if row.name in untried else file.parent
            sample = None if row.name in untried else samples.get(row.name)
            line = proven_line(row.status, endpoint, sample, folder=folder, cwd=terminal.cwd)
            terminal.out(f"\n{terminal.paint(row.name, 'bold')}  {terminal.paint(endpoint, 'cyan')}\n  {line}")
            if row.status.sample_problem is not None:
                show_problems(terminal, [_placed(loaded, row.status.sample_problem)], level="warning")
    for note, apis in notes_of([row.status for row in rows if row.status is not None]).items():
        terminal.say(f"\n{terminal.paint_talk('note:', 'yellow')} {harmless(note)} ({', '.join(a.name for a in apis)})")
    live = sum(row.outcome is Outcome.LIVE for row in rows)
    if live < len(rows):
        terminal.say(
            f"\n{live} of {text.count(len(rows), 'api')} {'is' if 1 in (live, len(rows)) else 'are'} live as deployed"
        )
    return DONE if live == len(rows) and not unproved else FAILED


def _of_row(loaded: Loaded, row: Followed) -> Problem:
    return _placed(loaded, row.problem())


def changes_text(
    deployment: str,
    changes: Sequence[ApiChange],
    paint: Paint,
    *,
    dry_run: bool = False,
    width: int | None = None,
) -> list[str]:
    """What a deploy changes and why, as lines; sentences are broken between words to fit `width`."""
    quiet = [c for c in changes if c.kind is ChangeKind.UNCHANGED and not c.causes and not c.breaking]
    told = [change for change in changes if change not in quiet]
    heading = f"deployment {paint(deployment, 'bold')}"
    if not changes:
        return [f"{heading}: no apis"]
    if not told:
        return [f"{heading}: nothing changed ({text.count(len(quiet), 'api')})", *_notes(changes, paint, width)]
    lines = [f"{heading}{': would change' if dry_run else ''}"]
    name_width = max(len(change.api) for change in told)
    kind_width = max(len(change.kind) for change in told)
    for change in told:
        sign, colour = SIGNS[change.kind]
        kind = paint(f"{change.kind:<{kind_width}}", colour)
        head = f"  {paint(sign, colour)} {change.api:<{name_width}}  {kind}  {_versions(change)}"
        lines.append(head.rstrip())
        told_why = [harmless(cause) for cause in change.causes]
        told_why += [f"{paint('breaks callers:', 'red', 'bold')} {harmless(words)}" for words in change.breaking]
        lines += [line for words in told_why for line in text.sentence(f"      {words}", width, hang=" " * 8)]
    if quiet:
        lines.append(f"  {paint('=', 'dim')} unchanged: {', '.join(change.api for change in quiet)}")
    return [*lines, *_notes(changes, paint, width)]


def _versions(change: ApiChange) -> str:
    new, old = change.version[:8], change.previous[:8]
    if change.kind in (ChangeKind.NEW_VERSION, ChangeKind.ROLLED_BACK) and old:
        return f"{old} -> {new}"
    return old if change.kind is ChangeKind.REMOVED else new


def _notes(changes: Sequence[ApiChange], paint: Paint, width: int | None) -> list[str]:
    """Each note once, with the apis that it is about."""
    about: dict[str, list[str]] = {}
    for change in changes:
        for note in change.notes:
            about.setdefault(harmless(note), []).append(change.api)
    told = [f"  {paint('note:', 'yellow')} {note} ({', '.join(apis)})" for note, apis in about.items()]
    return [line for note in told for line in text.sentence(note, width, hang=" " * 8)]


def _for_programs(
    deployment: str,
    result: DeployResult,
    rows: Sequence[Followed],
    outcome: str,
    receipts: Mapping[str, Receipt | None] | None = None,
) -> dict[str, Any]:
    return {
        "deployment": deployment,
        "outcome": outcome,
        "committed": result.committed,
        "changes": msgspec.to_builtins(result.changes),
        "warnings": msgspec.to_builtins(result.warnings),
        "problems": msgspec.to_builtins(result.problems),
        "apis": [listed(row.status) for row in rows if row.status is not None],
        "receipts": {api: for_programs(receipt) for api, receipt in (receipts or {}).items()},
    }


def for_programs(receipt: Receipt | None) -> dict[str, Any] | None:
    """A receipt with its line."""
    return {**msgspec.to_builtins(receipt), "text": receipt.text} if receipt is not None else None


def options(
    force: str = "Accept a gap when there is no room for a new replica beside the old one.", *, what: str = "deploy"
) -> tuple[click.Option, ...]:
    """What commands have in common that bring versions: `force` is the help of that flag, `what` what is accepted."""
    return (
        flag("--force", help=force),
        flag("--no-wait", help=f"Return as soon as the {what} is accepted."),
        click.Option(
            ["--timeout"],
            type=DurationType(),
            default=PATIENCE_S,
            metavar="TIME",
            help="Stop following after this long without progress: 10m unless given.",
        ),
        output_option(),
    )


COMMAND = Command(
    "deploy",
    deploy,
    summary="Deploy a cortex.yaml and follow until its apis are live.",
    details="""
    PATH is a folder or a yaml file; without it, the nearest cortex.yaml at or above here. Says what changes and why.
    Starts Cortex if it does not run. Anything wrong with the file, a model or a handler: nothing is changed.
    Exit code 0 only when every api is live; an api that fails undoes no other, and its old version goes on serving.
    An api that was rolled back is left as it is until its part of the file, its model or the project changes.

    With --prove requests with the api's sample go through the ingress from before the new version takes over until
    after it is live, in no count. What came of them is printed, and kept for `cortex history -v`. If the change made
    one fail, the version before comes back, and the exit code is 1.
    """,
    parameters=(
        click.Argument(["path"], required=False, type=click.Path()),
        flag("--dry-run", help="Check everything and say what would change; change nothing."),
        flag("--prune", help="Let a deploy from another folder than the last one remove apis."),
        flag("--prove", help="Ask each api that changes for its sample throughout; go back if a request fails."),
        flag("--yes", help="With --prove: send the samples of apis with `retry: off` many times, too."),
        *options(
            "Accept a gap when there is no room for a new replica beside the old one, and deploy again what an api "
            "was rolled back from."
        ),
    ),
    examples=(
        ("cortex deploy", "the nearest cortex.yaml"),
        ("cortex deploy examples/iris --dry-run", "what would change?"),
        ("cortex deploy --prove", "does any request fail while the new version takes over?"),
        ("cortex deploy -o json", "for programs; talk is on stderr"),
    ),
)
