"""What an api is, for Python users: typed figures, and a picture in a notebook."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from cortex.wire.operator import ApiStatus

MOST_CLASSES = 10
"""Shown in a notebook; the rest is one line."""
BAR_PX = 160
COLOURS = {"live": "#1a7f37", "asleep": "#57606a", "waking": "#57606a", "creating": "#9a6700", "updating": "#9a6700"}
OTHER_COLOUR = "#cf222e"
"""Of statuses that something is wrong with."""


class Classes(msgspec.Struct, frozen=True, kw_only=True):
    """What a tracker of a classification has counted, over the last 14 days of a version."""

    count: int
    missed: int
    """Answers without a class that could be counted."""
    classes: Mapping[str, int]
    """The most frequent ones, most frequent first."""
    other: int
    """Answers of all other classes."""
    approximate: bool
    """There are more than 10,000 classes."""


class Values(msgspec.Struct, frozen=True, kw_only=True):
    """What a tracker of a regression has seen, over the last 14 days of a version. None: nothing yet."""

    count: int
    missed: int
    min: float | None
    max: float | None
    mean: float | None


def tracked(status: ApiStatus) -> Classes | Values | None:
    """What is being predicted; None without a tracker."""
    tracker = status.tracker
    if tracker is None:
        return None
    count, missed = int(tracker.get("count", 0)), int(tracker.get("missed", 0))
    if tracker.get("model_type") == "regression":
        figures = {name: tracker.get(name) for name in ("min", "max", "mean")}
        return Values(count=count, missed=missed, **figures)
    return Classes(
        count=count,
        missed=missed,
        classes=dict(tracker.get("classes") or {}),
        other=int(tracker.get("other", 0)),
        approximate=bool(tracker.get("approximate", False)),
    )


def table_of(apis: Iterable[ApiStatus]) -> str:
    """A small table in HTML, an api a line; with nothing from elsewhere in it."""
    heads = ("api", "status", "version", "replicas", "2XX", "4XX", "5XX", "p50 ms", "p99 ms")
    lines = []
    for api in apis:
        latency = api.requests.latency_ms
        cells = (
            f"{api.deployment}/{api.name}",
            None,
            api.version[:8],
            f"{api.replicas.ready}/{api.replicas.requested}",
            f"{api.requests.ok:,}",
            f"{api.requests.client_error:,}",
            f"{api.requests.server_error:,}",
            _number(latency.p50),
            _number(latency.p99),
        )
        shown = [_status_cell(api) if cell is None else f"<td>{html.escape(cell)}</td>" for cell in cells]
        lines.append(f"<tr>{''.join(shown)}</tr>")
    head = "".join(f"<th>{name}</th>" for name in heads)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def picture_of(status: ApiStatus) -> str:
    """One api in HTML: its line, its endpoint, what it predicts."""
    parts = [table_of([status]), f"<div><code>POST {html.escape(status.endpoint)}</code></div>"]
    if status.reason:
        parts.append(f"<div>{html.escape(status.reason)}</div>")
    found = tracked(status)
    if isinstance(found, Classes):
        parts.append(_bars(found))
    elif found is not None:
        figures = ", ".join(f"{name} {_number(getattr(found, name))}" for name in ("min", "mean", "max"))
        parts.append(f"<div>{found.count:,} predictions: {figures}; {found.missed:,} missed</div>")
    return "".join(parts)


def _bars(found: Classes) -> str:
    rows: list[tuple[str, int]] = sorted(found.classes.items(), key=lambda item: (-item[1], item[0]))
    rest = found.other + sum(count for _, count in rows[MOST_CLASSES:])
    rows = [*rows[:MOST_CLASSES], *([("others", rest)] if rest else [])]
    most = max((count for _, count in rows), default=0) or 1
    lines = []
    for name, count in rows:
        bar = f'<div style="background:#54aeff;height:0.8em;width:{round(BAR_PX * count / most)}px"></div>'
        share = f"{100 * count / found.count:.1f} %" if found.count else ""
        lines.append(f"<tr><td>{html.escape(name)}</td><td>{bar}</td><td>{count:,}</td><td>{share}</td></tr>")
    missed = f"<div>{found.missed:,} missed</div>" if found.missed else ""
    return f"<table><tbody>{''.join(lines)}</tbody></table>{missed}"


def _status_cell(api: ApiStatus) -> str:
    colour = COLOURS.get(api.status.value, OTHER_COLOUR)
    return f'<td style="color:{colour}"><b>{html.escape(api.status.value)}</b></td>'


def _number(value: Any) -> str:
    return "" if value is None else f"{value:,.4g}"
