"""`cortex simulate`: what the rules would do, tried on a model."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

import click

from cortex.cli import text
from cortex.cli.boundary import DONE
from cortex.cli.command import Command, print_json
from cortex.cli.parameters import DurationType, output_option
from cortex.cli.terminal import Terminal
from cortex.errors import CortexError
from cortex.ids import ApiKey, api_key
from cortex.settings import Settings

if TYPE_CHECKING:
    from cortex.planning.autoscale import Scalable
    from cortex.simulation.scaling import Moment, ScalingRun
    from cortex.simulation.tracefiles import LoadTrace
    from cortex.spec.models import ApiSpec, ProjectSpec

PLOT_WIDTH = 60
LONG_S, COARSE_STEP_S = 3600.0, 0.25
"""A trace that lasts longer is gone through in larger steps, so that it takes seconds and not minutes."""


class TraceUnreadable(CortexError):
    """The file of a trace cannot be read."""

    reference = "trace-unreadable"

    def __init__(self, name: str, reason: str) -> None:
        self.name = name
        self.hint = "a trace has a line for each change: seconds,requests_per_second"
        super().__init__(f"{name}: {reason}")


def simulate(
    terminal: Terminal,
    settings: Settings,
    *,
    what: str,
    trace: str,
    config: str | None,
    seat: float,
    cpu_time: float,
    seats: int | None,
    cores: float | None,
    start: float,
    seed: int,
    output: str,
) -> int:
    from cortex.simulation.queues import Work
    from cortex.simulation.scaling import STEP_S, ScalingRun, Served
    from cortex.simulation.tracefiles import parse

    assert what == "scaling"
    if seat <= 0:
        raise click.UsageError("--seat: a request takes more than no time")
    if cpu_time > seat:
        raise click.UsageError("--cpu-time is of the time in --seat, and no more than that")
    traces = parse(_text_of(terminal, trace), file=trace)
    spec = _project(terminal, config) if config is not None else None
    served = []
    for one in traces:
        found = _api(spec, one, trace, config or "")
        scalable = _scalable(found, one, spec, settings.downscale_window_s)
        in_one = seats or (found.compute.concurrency if found is not None else None) or 1
        work = Work(seat_s=seat, cpu_s=cpu_time, seats=in_one, start_s=start)
        served.append(Served(scalable=scalable, work=work, rate=one.rate))
    lasts_s = max(one.lasts_s for one in traces)
    step_s = STEP_S if lasts_s <= LONG_S else COARSE_STEP_S
    run = ScalingRun(served, cores=cores or float(os.cpu_count() or 1), seed=seed, step_s=step_s)
    moments = run.until(lasts_s)
    by_api = {one.scalable.api: [moment[one.scalable.api] for moment in moments] for one in served}
    if output == "json":
        print_json(terminal, {"cores": run.node.cores, "apis": [_as_json(api, by_api[api]) for api in by_api]})
        return DONE
    for api, own in by_api.items():
        _plot(terminal, _shown(api), own)
    _decisions(terminal, by_api)
    _advise(terminal, by_api)
    _sum_up(terminal, run, by_api)
    return DONE


# ---- what is asked --------------------------------------------------------------------------------------------------


def _text_of(terminal: Terminal, name: str) -> str:
    try:
        content = terminal.read_bytes() if name == "-" else (terminal.cwd / Path(name)).read_bytes()
        return content.decode()
    except UnicodeDecodeError:
        raise TraceUnreadable(name, "it is not UTF-8 text") from None
    except OSError as error:
        raise TraceUnreadable(name, error.strerror or str(error)) from error


def _project(terminal: Terminal, config: str) -> ProjectSpec:
    from cortex.client.project import load

    return load(terminal.cwd / Path(config), shown_file=config).spec


def _api(spec: ProjectSpec | None, trace: LoadTrace, file: str, config: str) -> ApiSpec | None:
    """
    The api that a trace is of; None without a cortex.yaml.

    Raises:
        BadTrace: cortex.yaml has no such api, or several and the trace names none.
    """
    from cortex.simulation.tracefiles import BadTrace

    if spec is None:
        return None
    names = [api.name for api in spec.apis]
    if not trace.api and len(names) != 1:
        raise BadTrace(file, trace.line, f"expected the api on each line, since {config} has {len(names)} apis")
    for api in spec.apis:
        if trace.api in ("", api.name):
            return api
    raise BadTrace(file, trace.line, f"expected an api of {config} ({', '.join(names)}), found {trace.api!r}")


def _scalable(found: ApiSpec | None, trace: LoadTrace, spec: ProjectSpec | None, window_s: float) -> Scalable:
    from cortex.planning.autoscale import Scalable
    from cortex.spec.models import ComputeSpec

    compute = found.compute if found is not None else ComputeSpec()
    name = found.name if found is not None else trace.api or "api"
    return Scalable(
        api=api_key(spec.deployment if spec is not None else "default", name),
        replicas=compute.init_replicas,
        min_replicas=compute.min_replicas,
        max_replicas=compute.max_replicas,
        cpu_millis=compute.cpu_millis,
        gpus=compute.gpu,
        target_cpu_utilization=compute.target_cpu_utilization,
        target_in_flight=compute.target_in_flight,
        downscale_window_s=window_s if compute.downscale_window_s is None else compute.downscale_window_s,
    )


# ---- what is shown --------------------------------------------------------------------------------------------------


def _plot(terminal: Terminal, name: str, moments: Sequence[Moment]) -> None:
    """Three lines of as many characters as fit, each for a part of time."""
    from cortex.simulation.promises import READ_S

    unicode = terminal.shows_results and terminal.unicode
    begun = [0, *(moment.begun for moment in moments)]
    rates = [(after - before) / READ_S for before, after in pairwise(begun)]
    width = min(PLOT_WIDTH, terminal.width - 24)
    lines = (
        ("requests/s", parts(rates, width, of=fmean)),
        ("replicas", parts([moment.replicas for moment in moments], width)),
        ("waiting", parts([moment.waiting for moment in moments], width)),
    )
    terminal.out(terminal.paint(name, "bold"))
    for title, values in lines:
        line = text.sparkline([round(100 * value) for value in values], unicode=unicode)
        terminal.out(f"{title:<10}  {line}  {max(values, default=0):.0f}")
    terminal.out()


def parts(values: Sequence[float], number: int, *, of: Callable[[Sequence[float]], float] = max) -> list[float]:
    """At most so many figures, each of a part of the values: its largest, unless something else is said."""
    number = min(number, len(values))
    edges = [round(part * len(values) / number) for part in range(number + 1)] if number else []
    return [of(values[first:last]) for first, last in pairwise(edges)]


def _decisions(terminal: Terminal, by_api: dict[ApiKey, list[Moment]]) -> None:
    from cortex.planning.scaling_words import reason
    from cortex.simulation.scaling import changes

    found = sorted(
        ((at_s, api, decision) for api, own in by_api.items() for at_s, decision in changes(own)),
        key=lambda one: (one[0], one[1]),
    )
    if not found:
        terminal.out("the number of replicas stays as it is")
        return
    rows = [
        (f"{at_s:.1f} s", _shown(api), f"{decision.asked.replicas} → {decision.replicas}", reason(decision))
        for at_s, api, decision in found
    ]
    widest = terminal.width if terminal.shows_results else None
    header, *lines = text.table(("at", "api", "replicas", "why"), rows, right=("at",), widest=widest)
    terminal.out(terminal.paint(header, "bold"))
    for line in lines:
        terminal.out(line)


def _advise(terminal: Terminal, by_api: dict[ApiKey, list[Moment]]) -> None:
    from cortex.planning.scaling_words import advice

    for api, own in by_api.items():
        said = next((line for moment in reversed(own) if (line := advice(moment.decision))), None)
        if said is not None:
            terminal.say(f"{_shown(api)}: {said}")


def _sum_up(terminal: Terminal, run: ScalingRun, by_api: dict[ApiKey, list[Moment]]) -> None:
    for api, own in by_api.items():
        last = own[-1]
        most = max(moment.replicas for moment in own)
        terminal.say(
            f"{_shown(api)}: {text.count(last.begun, 'request')}, {last.refused} refused, "
            f"at most {max(moment.waiting for moment in own)} waiting, at most {text.count(most, 'replica')}, "
            f"{text.cpus(round(run.node.cores * 1000))} cores"
        )


def _as_json(api: ApiKey, moments: Sequence[Moment]) -> dict[str, object]:
    from cortex.planning.scaling_words import reason
    from cortex.simulation.scaling import changes

    last = moments[-1]
    return {
        "api": _shown(api),
        "begun": last.begun,
        "ended": last.ended,
        "refused": last.refused,
        "decisions": [
            {
                "at_s": at_s,
                "before": decision.asked.replicas,
                "replicas": decision.replicas,
                "wanted": decision.wanted,
                "bound": decision.bound,
                "reason": reason(decision),
            }
            for at_s, decision in changes(moments)
        ],
        "moments": [
            {
                "at_s": moment.at_s,
                "replicas": moment.replicas,
                "ready": moment.ready,
                "begun": moment.begun,
                "waiting": moment.waiting,
            }
            for moment in moments
        ],
    }


def _shown(api: ApiKey) -> str:
    return api.removeprefix("default/")


COMMAND = Command(
    "simulate",
    simulate,
    summary="Try on a model what scaling would do to a load.",
    details="""
    Nothing is deployed and nothing runs: the rule that decides how many replicas there are is asked about replicas that
    are only computed, with requests that come by chance. The same TRACE, options and --seed give the same decisions.

    TRACE is a file, or `-` for what is piped in. Each line says from which second on how many requests come in a
    second: CSV as `seconds,requests_per_second`, or `seconds,requests_per_second,api` for several apis; or JSON objects
    with these keys, one on a line. A rate holds until the next line of its api, and the last one as long as the one
    before. Lines that begin with # are passed over.

    All replicas run on one machine with room for them all, and share its processors evenly. What is printed: requests,
    replicas and waiting requests over time, each change of the number with its reason, and what would help.
    """,
    parameters=(
        click.Argument(["what"], type=click.Choice(["scaling"]), metavar="scaling"),
        click.Argument(["trace"], metavar="TRACE"),
        click.Option(
            ["--config"], metavar="FILE", help="A cortex.yaml: bounds, targets and cpu of its apis are taken."
        ),
        click.Option(
            ["--seat"],
            type=DurationType(),
            default="50ms",
            metavar="TIME",
            help="How long a request takes up a replica, or one of its --seats (default: 50ms).",
        ),
        click.Option(
            ["--cpu-time"],
            type=DurationType(),
            default="5ms",
            metavar="TIME",
            help="How much of that it computes (default: 5ms); the rest is waiting.",
        ),
        click.Option(
            ["--seats"],
            type=click.IntRange(min=1),
            metavar="N",
            help="Requests that a replica works on at once (default: concurrency of cortex.yaml, or 1).",
        ),
        click.Option(
            ["--cores"],
            type=click.FloatRange(min=0.1),
            metavar="N",
            help="Processors of the machine (default: as many as this one has).",
        ),
        click.Option(
            ["--start"],
            type=DurationType(),
            default="0.2s",
            metavar="TIME",
            help="How long a replica takes until it is ready (default: 0.2s).",
        ),
        click.Option(
            ["--seed"], type=int, default=1, metavar="N", help="Another one gives other chances (default: 1)."
        ),
        output_option(),
    ),
    examples=(
        ("cortex simulate scaling trace.csv --seat 50ms --cpu-time 5ms", "what a load would do to an api"),
        ("cortex simulate scaling trace.csv --config cortex.yaml --cores 4", "with the bounds of your own apis"),
        ("cortex simulate scaling - -o json < trace.csv", "for programs"),
    ),
)
