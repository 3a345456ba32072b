"""`cortex get`: a table of apis, or one api with everything that is known of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import click
import msgspec

from cortex.cli import text
from cortex.cli.boundary import DONE
from cortex.cli.command import Command, environment, on_interrupt, print_json, print_json_line
from cortex.cli.eventlines import LinePrinter
from cortex.cli.live import patience
from cortex.cli.parameters import api_argument, deployment_option, flag, full_api, output_option
from cortex.cli.terminal import Paint, Terminal, harmless
from cortex.client.addressing import DeploymentNotFound, deployment_here, find, full_name
from cortex.client.operator import OperatorClient
from cortex.errors import Problem
from cortex.settings import Settings
from cortex.wire.operator import (
    AllVersions,
    ApiStatus,
    DeploymentStatus,
    RequestCounts,
    ScalingStatus,
    StartStatus,
    Status,
    Traffic,
)
from cortex.wire.signature import TensorSpec

REDRAW_S = 1.0
CLASSES_SHOWN = 20
_NO_LIMIT = 10_000
_VALUES_AT = len("endpoint") + len(text.GAP)
"""Column in which the values of an api's facts begin."""

COLOURS: dict[Status, str] = {
    Status.LIVE: "green",
    Status.ASLEEP: "cyan",
    Status.WAKING: "yellow",
    Status.CREATING: "yellow",
    Status.UPDATING: "yellow",
    Status.UPDATE_FAILED: "red",
    Status.CRASHING: "red",
    Status.ERROR: "red",
    Status.OUT_OF_MEMORY: "red",
    Status.COMPUTE_UNAVAILABLE: "red",
    Status.STOPPING: "dim",
}

_HOME, _CLEAR_LINE, _CLEAR_BELOW = "\x1b[H", "\x1b[K", "\x1b[J"
_OTHER_SCREEN, _MAIN_SCREEN = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"


class Frame(msgspec.Struct, frozen=True):
    """One look: what to print, as text and for programs."""

    lines: tuple[str, ...]
    talk: tuple[str, ...]
    json: Any


def get(
    terminal: Terminal,
    settings: Settings,
    *,
    api: str | None,
    deployment: str | None,
    all_deployments: bool,
    summary: bool,
    verbose: bool,
    watch: bool,
    output: str,
) -> int:
    if all_deployments and (api or deployment):
        raise click.UsageError("--all-deployments leaves nothing to choose: drop it, or API and --deployment")
    if summary and api:
        raise click.UsageError("--summary is about deployments, not about one api")
    here = deployment or (None if all_deployments else deployment_here(terminal.cwd))
    place = environment(terminal, settings)
    if not place.was_ever_up and not place.is_marked_down and api is None and not watch:
        talk = f"nothing is deployed: nothing was ever started in {settings.home}; `cortex deploy` changes that"
        return _show(terminal, Frame((), (talk,), []) if deployment is None else _nothing_yet(deployment), output)
    operator = place.look()

    def look(client: OperatorClient) -> Frame:
        if api is not None:
            found = find(client, full_api(api, deployment), here)
            if isinstance(found, ApiStatus):
                return _one_api(terminal, found, verbose=verbose, watch=watch)
            return _table(terminal, client, found, given=True)
        if summary:
            return _summary(terminal, client, here, given=deployment is not None)
        return _table(terminal, client, here, given=deployment is not None)

    if not watch:
        return _show(terminal, look(operator), output)
    with on_interrupt(""):
        from cortex.client.reconnection import Reconnecting

        calls = Reconnecting(place, operator, clock=terminal.clock, sleep=terminal.sleep)
        _watch(terminal, lambda: calls.call(look), output)
    return DONE


def _show(terminal: Terminal, frame: Frame, output: str) -> int:
    if output == "json":
        print_json(terminal, frame.json)
        return DONE
    for line in frame.lines:
        terminal.out(line)
    for line in frame.talk:
        terminal.say(line)
    return DONE


def _watch(terminal: Terminal, look: Callable[[], Frame], output: str) -> None:
    """Redraw every second until interrupted: on a terminal in place, on a screen of its own, without flicker."""
    in_place = terminal.shows_results and output != "json"
    frame = look()
    if in_place:
        terminal.stdout.write(_OTHER_SCREEN)
    try:
        while True:
            if output == "json":
                print_json_line(terminal, frame.json)
            elif in_place:
                lines = [*frame.lines, *frame.talk][: terminal.height - 1]
                terminal.stdout.write(_HOME + "".join(f"{line}{_CLEAR_LINE}\n" for line in lines) + _CLEAR_BELOW)
                terminal.stdout.flush()
            else:
                terminal.out("\n".join([*frame.lines, *frame.talk, ""]))
            terminal.sleep(REDRAW_S)
            frame = look()
    finally:
        if in_place:
            terminal.stdout.write(_MAIN_SCREEN)
            terminal.out("\n".join([*frame.lines, *frame.talk]))  # the last look stays


# ---- the list -------------------------------------------------------------------------------------------------------


def _table(terminal: Terminal, operator: OperatorClient, here: str | None, *, given: bool) -> Frame:
    apis = operator.apis(here)
    if not apis:
        return _empty(operator, here, given=given)
    shown = [listed(api) for api in apis]
    several = here is None and len({api.deployment for api in apis}) > 1
    lines = [*_rows(terminal, apis, with_deployment=here is None), *_remarks(terminal, apis, several=several)]
    return Frame(tuple(lines), (), shown)


def _rows(terminal: Terminal, apis: Sequence[ApiStatus], *, with_deployment: bool) -> list[str]:
    now_s = terminal.clock.wall_s()
    columns: dict[str, Callable[[ApiStatus], str]] = {
        "api": lambda api: api.name,
        "deployment": lambda api: api.deployment,
        "status": lambda api: str(api.status),
        "ready": lambda api: f"{api.replicas.ready}/{api.replicas.requested}",
        "latency": lambda api: text.milliseconds(api.requests.latency_ms.mean),
        "2XX": lambda api: str(api.requests.ok),
        "4XX": lambda api: str(api.requests.client_error),
        "5XX": lambda api: str(api.requests.server_error),
        "updated": lambda api: text.ago(api.last_updated, now_s),
    }
    if not with_deployment:
        del columns["deployment"]
    header, *rows = text.table(
        list(columns),
        [[cell(api) for cell in columns.values()] for api in apis],
        right=("ready", "latency", "2XX", "4XX", "5XX"),
        widest=terminal.width if terminal.shows_results else None,
        folds=("updated", "latency", ("2XX", "4XX", "5XX"), "deployment"),
    )
    paint = terminal.paint
    painted = [_with_status(row, api, paint) for row, api in zip(rows, apis, strict=True)]
    return "\n".join([paint(header, "bold"), *painted]).split("\n")


def _with_status(row: str, api: ApiStatus, paint: Paint) -> str:
    status = str(api.status)
    return row.replace(f"  {status}", f"  {paint(status, COLOURS[api.status])}", 1)


def _remarks(terminal: Terminal, apis: Sequence[ApiStatus], *, several: bool) -> list[str]:
    """Below the table: why a status is not live, and what is worth knowing beside it."""
    lines = []
    paint = terminal.paint
    common = {note for note, about in notes_of(apis).items() if len(about) > 1}
    for api in apis:
        name = full_name(api) if several else api.name
        notes = [note for note in api.notes if note not in common]
        waits = _waits(api, terminal.clock.wall_s())
        told = [harmless(remark) for remark in (_why(api), waits, *_replica_remarks(api), *notes) if remark]
        for remark in told:
            first, *rest = text.wrapped(remark, max(terminal.width - len(name) - 2, text.BAR_WIDTH))
            lines.append(f"{paint(name, 'bold')}: {first}")
            lines += [" " * (len(name) + 2) + line for line in rest]
    for note in sorted(common):
        lines += text.wrapped(harmless(note), terminal.width)
    return ["", *lines] if lines else []


def notes_of(apis: Iterable[ApiStatus]) -> dict[str, list[ApiStatus]]:
    """Each note once, with the apis that it is about."""
    about: dict[str, list[ApiStatus]] = {}
    for api in apis:
        for note in api.notes:
            about.setdefault(note, []).append(api)
    return about


def _replica_remarks(api: ApiStatus) -> list[str]:
    replicas = api.replicas
    told = [f"{text.count(replicas.failed, 'replica')} failed"] if replicas.failed else []
    if replicas.stale and api.status is not Status.UPDATING:
        told.append(f"{text.count(replicas.stale, 'replica')} of an older version")
    return [", ".join(told)] if told else []


def _why(api: ApiStatus) -> str:
    if api.status is Status.LIVE:
        return ""
    return (api.reason or api.progress).strip()


def _waits(api: ApiStatus, now_wall_s: float) -> str:
    """What it has waited for, if not only for a moment, and how long it still will."""
    found = patience(api.waits, now_wall_s)
    if api.waits is None or found is None:
        return ""
    age, left = found
    return f"{api.waits.replica}: {api.waits.doing}, for {age} now; {left}"


def _empty(operator: OperatorClient, here: str | None, *, given: bool) -> Frame:
    deployments = operator.deployments()
    names = tuple(deployment.name for deployment in deployments)
    if here is None or not names:
        return _nothing_yet(here if given else None)
    if here in names:
        return Frame((), (f'deployment "{here}" has no apis',), [])
    if given:
        raise DeploymentNotFound(here, names)
    talk = f'deployment "{here}" is not deployed: `cortex deploy` does that; `cortex get -a` shows the others'
    return Frame((), (talk,), [])


def _nothing_yet(deployment: str | None) -> Frame:
    if deployment is not None:
        raise DeploymentNotFound(deployment, ())
    return Frame((), ("nothing is deployed; `cortex deploy` in a folder with a cortex.yaml changes that",), [])


def _summary(terminal: Terminal, operator: OperatorClient, here: str | None, *, given: bool) -> Frame:
    deployments = [d for d in operator.deployments() if here in (None, d.name)]
    if not deployments:
        return _empty(operator, here, given=given)
    by_name: dict[str, Counter[str]] = {deployment.name: Counter() for deployment in deployments}
    for api in operator.apis(here):
        by_name.setdefault(api.deployment, Counter())[str(api.status)] += 1
    rows = [
        [d.name, d.status, _counted(by_name[d.name]), text.ago(d.last_updated, terminal.clock.wall_s())]
        for d in deployments
    ]
    widest = terminal.width if terminal.shows_results else None
    header, *lines = text.table(
        ["deployment", "status", "apis", "updated"], rows, widest=widest, folds=("updated", "apis")
    )
    shown = [_summarised(d, by_name[d.name]) for d in deployments]
    return Frame(tuple("\n".join([terminal.paint(header, "bold"), *lines]).split("\n")), (), shown)


def _counted(statuses: Counter[str]) -> str:
    order = [str(status) for status in Status]
    return ", ".join(f"{statuses[status]} {status}" for status in order if statuses[status]) or "none"


def _summarised(deployment: DeploymentStatus, statuses: Counter[str]) -> dict[str, Any]:
    return {**msgspec.to_builtins(deployment), "statuses": dict(sorted(statuses.items()))}


def listed(api: ApiStatus) -> dict[str, Any]:
    """An api in a list, for programs."""
    return {key: value for key, value in msgspec.to_builtins(api).items() if key not in _OF_ONE_API}


_OF_ONE_API = frozenset(("tracker", "traffic", "all_versions", "scaling", "start", "events", "spec", "signature"))


# ---- one api --------------------------------------------------------------------------------------------------------


def _one_api(terminal: Terminal, api: ApiStatus, *, verbose: bool, watch: bool) -> Frame:
    lines = text.pairs(_facts(terminal, api, with_start=verbose or watch))
    lines = [_painted_name(line, terminal.paint) for line in lines]
    if api.tracker is not None:
        lines += ["", *_tracker(terminal, api.tracker)]
        together = api.all_versions
        if together is not None and together.tracker not in (None, api.tracker):
            line = f"{_versions(together)}: {_tracked(together.tracker)}"
            lines += text.wrapped(line, terminal.width) if terminal.shows_results else [line]
    if api.problem is not None and not api.status.is_well:
        from cortex.cli.problems import rendered
        from cortex.client.follow import problem_of

        width = terminal.width if terminal.shows_results else None
        lines += ["", *rendered(problem_of(api), terminal.paint, width=width).split("\n")]
    if api.ends is not None and any(line not in _said(api.problem) for line in api.ends.last_lines):
        since = text.ago(api.ends.since, terminal.clock.wall_s())
        if api.status is Status.CRASHING:
            lines += ["", f"what it wrote last (it has been crashing since {since}):"]
        else:
            lines += ["", f"what the last replica that ended wrote ({since}):"]
        lines += [f"  {harmless(line)}" for line in api.ends.last_lines]
    if api.events:
        shown = LinePrinter(terminal, api.events, with_api=False, indent="  ")
        lines += ["", terminal.paint("events", "bold"), *(part for event in api.events for part in shown.lines(event))]
    if verbose:
        lines += ["", *_verbose(terminal, api)]
    return Frame(tuple(lines), (), msgspec.to_builtins(api))


def _said(problem: Problem | None) -> str:
    """What a replica that ends by a problem writes of it, which need not be shown twice."""
    return "" if problem is None else f"{problem.reference}: {problem.message}\n{problem.traceback}\n{problem.hint}"


def _facts(terminal: Terminal, api: ApiStatus, *, with_start: bool) -> list[tuple[str, str]]:
    replicas, requests = api.replicas, api.requests
    since = text.ago(api.last_updated, terminal.clock.wall_s())
    version = api.version if since == "-" else f"{api.version}, updated {since}"
    if api.serving and api.serving != api.version:
        version += f"; {api.serving} serves"
    status = terminal.paint(str(api.status), COLOURS[api.status], "bold")
    rows = [("api", full_name(api)), ("status", status)]
    room = terminal.width - _VALUES_AT if terminal.shows_results else _NO_LIMIT

    def fitted(value: str) -> str:
        return "\n".join(text.wrapped(value, room))

    told = [] if api.problem is not None else [harmless(_why(api))]
    told += [fitted(harmless(_waits(api, terminal.clock.wall_s())))]
    told += [fitted(harmless(note)) for note in api.notes]
    rows += [("", remark) for remark in told if remark]
    counts = [f"{replicas.ready} of {replicas.requested} ready"]
    counts += [f"{replicas.stale} of an older version"] * bool(replicas.stale)
    counts += [f"{replicas.failed} failed"] * bool(replicas.failed)
    counts += [] if api.parked is None else [f"1 of {api.parked.version} parked until {api.parked.until[11:16]} UTC"]
    counts += [text.count(api.crashes, "crash", "crashes")] * bool(api.crashes)
    latency = requests.latency_ms
    figures = {"mean": latency.mean, "p50": latency.p50, "p90": latency.p90, "p99": latency.p99}
    known = [f"{name} {text.milliseconds(value)}" for name, value in figures.items() if value is not None]
    return [
        *rows,
        ("replicas", ", ".join(counts)),
        *([("start", fitted(_start(api.start, terminal.clock.wall_s())))] if with_start and api.start else []),
        ("version", fitted(version)),
        ("requests", fitted(_requests(api))),
        ("latency", fitted(", ".join(known) or "-")),
        *([("traffic", _traffic(terminal, api.traffic))] if api.traffic is not None else []),
        ("endpoint", api.endpoint),
    ]


def _start(start: StartStatus, now_wall_s: float) -> str:
    """`starting 0.02 s, loading 1.20 s, warming for 0.4 s`."""
    parts = [f"{step.phase} {text.briefly(step.seconds)}" for step in start.steps]
    since_s = text.instant(start.since)
    if start.doing and since_s is not None:
        parts.append(f"{start.doing} for {text.briefly(max(0.0, now_wall_s - since_s))}")
    return ", ".join(parts)


def _requests(api: ApiStatus) -> str:
    lines = [_by_status(api.requests)]
    together = api.all_versions
    if together is not None and together.requests != api.requests:
        lines.append(f"{_by_status(together.requests)} of {_versions(together)}")
    return "\n".join(lines)


def _by_status(requests: RequestCounts) -> str:
    return f"{requests.ok} 2XX, {requests.client_error} 4XX, {requests.server_error} 5XX"


def _versions(together: AllVersions) -> str:
    if together.versions == 1:
        return "an earlier version, in 14 days"  # of this one there is nothing yet: else both were the same
    return f"all {together.versions} versions in 14 days"


def _traffic(terminal: Terminal, traffic: Traffic) -> str:
    if not any(traffic.minutes):
        return "none in the last hour"
    room = max(terminal.width - _VALUES_AT, 1) if terminal.shows_results else len(traffic.minutes)
    minutes = traffic.minutes[-room:]
    line = terminal.paint(text.sparkline(minutes, unicode=terminal.unicode), "cyan")
    rate = f"{traffic.per_second:.3g}" if traffic.per_second < 1000 else f"{traffic.per_second:.0f}"
    return f"{rate} a second; last {len(minutes)} minutes, at most {max(minutes)}:\n{line}"


def _painted_name(line: str, paint: Paint) -> str:
    name, gap, rest = line.partition(text.GAP)
    return f"{paint(name, 'dim')}{gap}{rest}" if gap and name.strip() else line


def _tracker(terminal: Terminal, tracker: dict[str, Any]) -> list[str]:
    if tracker.get("model_type") == "classification":
        lines = _classes(terminal, tracker)
    else:
        lines = _numbers(terminal, tracker)
    missed = tracker.get("missed") or 0
    if missed:
        lines.append(f"{text.count(missed, 'response')} without a value to track: see `cortex logs`")
    return lines


def _tracked(tracker: dict[str, Any]) -> str:
    """What a tracker counted, in one line."""
    count = tracker.get("count") or 0
    if tracker.get("model_type") != "classification":
        figures = ", ".join(f"{name} {_number(tracker.get(name))}" for name in ("min", "mean", "max"))
        return f"{text.count(count, 'number')}, {figures}"
    shares = [f"{_one_line(name)} {100 * n / count:.1f} %" for name, n in _ranked(tracker)[:CLASSES_SHOWN]]
    return f"{text.count(count, 'prediction')}" + (f": {', '.join(shares)}" if shares else "")


def _numbers(terminal: Terminal, tracker: dict[str, Any]) -> list[str]:
    quantiles = tracker.get("quantiles") or {}
    figures = {
        "count": tracker.get("count"),
        **{name: tracker.get(name) for name in ("min", "mean", "max")},
        **{name: value for name, value in quantiles.items() if value is not None},
    }
    room = terminal.width if terminal.shows_results else None
    header, *lines = text.table(
        list(figures),
        [[_number(value) for value in figures.values()]],
        right=list(figures),
        widest=room,
        folds=("p50", "p90", "p99"),
    )
    lines = "\n".join([terminal.paint(header, "bold"), *lines]).split("\n")
    bars = tracker.get("histogram") or []
    if len(bars) < 2:
        return lines
    rows = list(zip(_edges([bar["low"] for bar in bars]), [bar["count"] for bar in bars], strict=True))
    return [*lines, "", *_bars(terminal, "from", rows, name_to_the_right=True)]


def _edges(numbers: Sequence[float]) -> list[str]:
    """Numbers with as few digits as tell them apart."""
    for digits in (3, 4, 6, 9, 17):
        shown = [f"{number:.{digits}g}" for number in numbers]
        if len(set(shown)) == len(shown):
            break
    return shown


def _ranked(tracker: dict[str, Any]) -> list[tuple[str, int]]:
    """Classes by frequency."""
    return sorted((tracker.get("classes") or {}).items(), key=lambda item: (-item[1], item[0]))


def _one_line(name: str) -> str:
    return harmless(name).replace("\n", " ")


def _classes(terminal: Terminal, tracker: dict[str, Any]) -> list[str]:
    ranked = _ranked(tracker)
    rows = [(_one_line(name), number) for name, number in ranked[:CLASSES_SHOWN]]
    other = (tracker.get("other") or 0) + sum(number for _, number in ranked[CLASSES_SHOWN:])
    if other:
        rows.append(("all others", other))
    if not rows:
        return [terminal.paint("class   count", "bold"), "-           -"]
    remark = []
    if tracker.get("approximate"):
        bound = tracker.get("bound")
        by = f"by up to {bound}" if bound else "somewhat"
        remark = text.wrapped(f"there are very many classes: each count may be {by} too low", terminal.width)
    return [*_bars(terminal, "class", rows), *remark]


def _bars(
    terminal: Terminal, title: str, rows: Sequence[tuple[str, int]], *, name_to_the_right: bool = False
) -> list[str]:
    """A line each: name, count, share, and a bar as long as the share."""
    total = sum(number for _, number in rows)
    most = max(number for _, number in rows)
    numbers = [str(number) for _, number in rows]
    shares = [f"{100 * number / total:.1f} %" for _, number in rows]
    names = [name for name, _ in rows]
    room = terminal.width if terminal.shows_results else None
    if room is not None:
        fixed = max(map(len, [*numbers, "count"])) + max(map(len, shares)) + 3 * len(text.GAP) + text.BAR_WIDTH
        names = [text.cut(name, max(room - fixed, text.NARROWEST_NAME)) for name in names]
    cells = [list(row) for row in zip(names, numbers, shares, strict=True)]
    right = ("count", "share", *((title,) if name_to_the_right else ()))
    header, *lines = text.table([title, "count", "share"], cells, right=right)
    width = max(map(text.columns_of, lines))
    bar_width = text.BAR_WIDTH if room is None else min(max(room - width - len(text.GAP), 0), text.BAR_WIDTH)
    drawn = [text.bar(number / most, bar_width, unicode=terminal.unicode) for _, number in rows]
    body = [
        f"{text.padded(line, width)}{text.GAP}{terminal.paint(bar, 'cyan')}"
        for line, bar in zip(lines, drawn, strict=True)
    ]
    return [terminal.paint(header, "bold"), *(line.rstrip() for line in body)]


def _number(value: Any) -> str:
    return "-" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def _verbose(terminal: Terminal, api: ApiStatus) -> list[str]:
    from cortex.cli.curl import curl_command

    paint = terminal.paint
    lines = [paint("curl", "bold"), f"  {curl_command(api, terminal.cwd)}"]
    if api.signature is not None:
        for title, tensors in (("input", api.signature.inputs), ("output", api.signature.outputs)):
            lines += ["", *_tensors(f"model {title}", tensors, paint)]
    else:
        lines += ["", "the model's inputs are not known yet"]
    if api.batching is not None and api.batching.text not in api.notes:
        room = terminal.width if terminal.shows_results else _NO_LIMIT
        lines += ["", *text.wrapped(harmless(api.batching.text), room)]
    if api.scaling is not None:
        lines += ["", paint("scaling", "bold"), *_scaling(terminal, api.scaling)]
    return [*lines, "", paint("configuration", "bold"), *_configuration(api.spec)]


def _scaling(terminal: Terminal, scaling: ScalingStatus) -> list[str]:
    """Why there are as many replicas as there are."""
    room = terminal.width - 2 if terminal.shows_results else _NO_LIMIT
    remarks = [scaling.reason, scaling.advice]
    if scaling.changed is not None:
        remarks.append(f"last change {text.ago(scaling.changed, terminal.clock.wall_s())}: {scaling.change}")
    return [f"  {line}" for remark in remarks if remark for line in text.wrapped(harmless(remark), room)]


def _tensors(title: str, tensors: Sequence[TensorSpec], paint: Paint) -> list[str]:
    rows = []
    for tensor in tensors:
        rows.append([harmless(tensor.name), _dtype(tensor), _shape(tensor)])
        rows += [[f"  {harmless(feature.name)}", _dtype(feature), _shape(feature)] for feature in tensor.features]
    header, *lines = text.table([title, "type", "shape"], rows)
    return [paint(header, "bold"), *lines]


def _dtype(tensor: TensorSpec) -> str:
    plain = tensor.dtype if tensor.kind == "tensor" else str(tensor).partition("[")[0]
    return f"{plain}, optional" if tensor.optional else plain


def _shape(tensor: TensorSpec) -> str:
    from cortex.wire.signature import shape_text

    return "any" if tensor.shape is None else "scalar" if not tensor.shape else harmless(shape_text(tensor.shape))


def _configuration(spec: dict[str, Any], indent: str = "  ") -> list[str]:
    lines = []
    for key, value in spec.items():
        if value is None or value == {}:
            continue
        if isinstance(value, dict):
            lines += [f"{indent}{key}:", *_configuration(value, indent + "  ")]
        else:
            shown = value if isinstance(value, str) else msgspec.json.encode(value).decode()
            lines.append(f"{indent}{key}: {harmless(shown)}")
    return lines


COMMAND = Command(
    "get",
    get,
    summary="Show apis: status, replicas, latency, requests.",
    details="""
    Without API, or with the name of a deployment, a table: of that deployment, else of the nearest cortex.yaml's, or of
    everything where there is no cortex.yaml. With API, also what was predicted, the endpoint, why it is not live if it
    is not, and its last three events.
    """,
    parameters=(
        api_argument(required=False, deployments=True),
        deployment_option(),
        flag("-a", "--all-deployments", help="All deployments, wherever you are."),
        flag("-s", "--summary", help="One line for each deployment."),
        flag("-v", "--verbose", help="Also curl, batching, model inputs and outputs, the configuration."),
        flag("-w", "--watch", help="Show it again every second; of one api also how its replica starts."),
        output_option(),
    ),
    examples=(
        ("cortex get", "the deployment of this folder"),
        ("cortex get iris", "that of any deployment"),
        ("cortex get sklearn -v", "everything about one api"),
        ("cortex get iris/sklearn -o json", "the same, for programs"),
        ("cortex get -w", "keep looking; Ctrl-C ends it"),
    ),
)
