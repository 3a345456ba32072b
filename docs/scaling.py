"""
Writes the traces of `scaling.md`: `python docs/scaling.py`, half a minute. A test holds some to what this writes.

Each is a run of the real rule on the model of `cortex.simulation`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from cortex.cli.simulate import parts
from cortex.cli.text import sparkline
from cortex.ids import ApiKey
from cortex.planning.autoscale import Scalable
from cortex.simulation import traces
from cortex.simulation.promises import READ_S
from cortex.simulation.queues import Work
from cortex.simulation.scaling import Moment, Rate, ScalingRun, Served, changes, reversals

PAGE = Path(__file__).resolve().parent / "scaling.md"
BEGIN, END = "<!-- made by docs/scaling.py -->\n", "<!-- end of what docs/scaling.py makes -->\n"
WIDTH = 72

WAITS = Work(seat_s=0.05, cpu_s=0.001)
COMPUTES = Work(seat_s=0.005, cpu_s=0.005)
ASYNC = Work(seat_s=0.2, cpu_s=0.002, seats=64)
LONG = Work(seat_s=10.0, cpu_s=0.01)
DAY_S = 240.0


@dataclass(frozen=True)
class Case:
    """One trace, and what it is tried on."""

    name: str
    what: str
    apis: Callable[[], Sequence[Served]]
    """The first ones are shown."""
    lasts_s: float = 600.0
    cores: float = 2.0
    shown: int = 1


def served(work: Work, rate: Rate, name: str = "api") -> Served:
    return Served(scalable=Scalable(api=ApiKey(name), replicas=1), work=work, rate=rate)


def times(work: Work, number: float) -> float:
    """So many times what one replica can keep up with."""
    return work.sustained * number


def _week(at_s: float) -> float:
    weekend = int(at_s / DAY_S) % 7 >= 5
    return traces.wave(5.0, 60.0 if weekend else 200.0, period_s=DAY_S)(at_s)


CASES = (
    Case(
        "Step",
        "From 0.3 to 10 times what one replica can keep up with; 13 are needed then.",
        lambda: [served(WAITS, traces.step(6, 200, at_s=60))],
        lasts_s=300,
    ),
    Case(
        "Diurnal",
        "A day in 20 minutes: from 5 to 200 requests a second and back.",
        lambda: [served(WAITS, traces.wave(5, 200, period_s=1200))],
        lasts_s=2400,
    ),
    Case(
        "Spike", "Ten times for 20 seconds.", lambda: [served(WAITS, traces.pulse(200, at_s=60, for_s=20, otherwise=6))]
    ),
    Case("Saw", "From 0 to 3 times, each minute.", lambda: [served(WAITS, traces.saw(60, period_s=60))], lasts_s=900),
    Case("Ramp", "From 0 to 10 times within 5 minutes.", lambda: [served(WAITS, traces.ramp(0, 200, over_s=300))]),
    Case("On and off", "8 times, every other half minute.", lambda: [served(WAITS, traces.on_off(160, each_s=30))]),
    Case(
        "Noise",
        "5 times, by chance half more or less each second.",
        lambda: [served(WAITS, traces.noise(100, part=0.5))],
    ),
    Case(
        "Flash crowd",
        "50 times for 10 seconds. Memory has to bound what comes of it; here there is enough.",
        lambda: [served(WAITS, traces.pulse(1000, at_s=60, for_s=10, otherwise=6))],
    ),
    Case(
        "Two apis in turn",
        "Each 8 times for a minute, while the other has nothing to do but keeps its replicas.",
        lambda: [
            served(WAITS, traces.on_off(160, each_s=60), "a"),
            served(WAITS, traces.on_off(160, each_s=60, first_on=False), "b"),
        ],
        shown=2,
    ),
    Case(
        "Twelve idle apis beside a busy one",
        "5 times, on a machine whose processors are requested by apis that do nothing.",
        lambda: [
            served(WAITS, traces.step(6, 100, at_s=60), "busy"),
            *(served(WAITS, traces.constant(0), f"idle-{number}") for number in range(12)),
        ],
        lasts_s=300,
    ),
    Case(
        "One that computes beside one that waits",
        "Ten times and, half a minute later, 6 times. The first fills the machine, and the second is not held by that.",
        lambda: [
            served(COMPUTES, traces.step(60, 2000, at_s=60), "computes"),
            served(WAITS, traces.step(6, 120, at_s=90), "waits"),
        ],
        lasts_s=300,
        shown=2,
    ),
    Case(
        "Silence after saturation",
        "Two that compute get ten times what the machine can do for a minute, and then one request a second.",
        lambda: [
            served(COMPUTES, traces.pulse(2000, at_s=60, for_s=60, otherwise=1), name) for name in ("first", "second")
        ],
        shown=2,
    ),
    Case(
        "Ten seconds a request",
        "One every two seconds; 7 replicas are needed.",
        lambda: [served(LONG, traces.step(0, 0.5, at_s=10))],
    ),
    Case(
        "64 at once",
        "An async handler, from 30 to 300 requests a second, on 4 processors.",
        lambda: [served(ASYNC, traces.step(30, 300, at_s=60))],
        lasts_s=300,
        cores=4.0,
    ),
    Case(
        "Weekly",
        "A week in 28 minutes: five days with a top of 200 a second, two with one of 60.",
        lambda: [served(WAITS, _week)],
        lasts_s=7 * DAY_S,
    ),
)

HEADER = (
    "| trace | api | most replicas | at the end | changes | back and forth | most waiting | refused |\n"
    "|---|---|--:|--:|--:|--:|--:|--:|\n"
)


def run(case: Case) -> dict[str, list[Moment]]:
    """The shown apis' moments."""
    apis = case.apis()
    moments = ScalingRun(apis, cores=case.cores).until(case.lasts_s)
    return {api.scalable.api: [moment[api.scalable.api] for moment in moments] for api in apis[: case.shown]}


def rows(case: Case, found: dict[str, list[Moment]]) -> str:
    return "".join(
        f"| {case.name} | {name} | {max(moment.replicas for moment in moments)} | {moments[-1].replicas} "
        f"| {len(changes(moments))} | {reversals(moments)} | {max(moment.waiting for moment in moments):,} "
        f"| {moments[-1].refused / moments[-1].begun:.0%} |\n"
        for name, moments in found.items()
    )


def plot(case: Case, found: dict[str, list[Moment]]) -> str:
    lines = []
    for name, moments in found.items():
        begun = [0, *(moment.begun for moment in moments)]
        rates = [(begun[number + 1] - begun[number]) / READ_S for number in range(len(moments))]
        lines += [
            _line(case, name, "requests/s", parts(rates, WIDTH, of=fmean)),
            _line(case, name, "replicas", parts([moment.replicas for moment in moments], WIDTH)),
            _line(case, name, "waiting", parts([moment.waiting for moment in moments], WIDTH)),
        ]
    drawn = "\n".join(lines)
    return f"### {case.name}\n\n{case.what} {case.lasts_s / 60:.0f} minutes.\n\n```text\n{drawn}\n```\n"


def _line(case: Case, name: str, title: str, values: Sequence[float]) -> str:
    label = f"{name} {title}" if case.shown > 1 else title
    return f"{label:<20}{sparkline([round(100 * value) for value in values])}  {max(values):,.0f}"


def section() -> str:
    """What stands between the two marks."""
    found = [(case, run(case)) for case in CASES]
    table = "".join(rows(case, moments) for case, moments in found)
    return HEADER + table + "\n" + "\n".join(plot(case, moments) for case, moments in found)


def main() -> None:
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}{section()}{END}{after}")
    print(f"wrote {PAGE.name}")


if __name__ == "__main__":
    main()
