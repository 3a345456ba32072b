"""
A Grafana dashboard of the metrics in `exposition`: `python -m cortex.metrics.dashboard > docs/grafana.json`.

Source: Grafana documentation, "Dashboard JSON model".
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

_DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
_CHOSEN = 'deployment=~"$deployment",api=~"$api"'
_WIDTH = 24
"""Columns of Grafana's grid."""
_HEIGHT = 8


class _Board:
    """Panels from left to right, row by row."""

    def __init__(self) -> None:
        self.panels: list[dict[str, Any]] = []
        self._left, self._top = 0, 0

    def row(self, title: str) -> None:
        self._break()
        self._add("row", title, _WIDTH, 1, collapsed=False, panels=[])
        self._break()

    def graph(
        self,
        title: str,
        queries: Sequence[tuple[str, str]],
        *,
        unit: str = "short",
        width: int = 8,
        stacked: bool = False,
        about: str = "",
    ) -> None:
        """
        Lines over time.

        Args:
            queries: expression and legend of each.
        """
        custom = {"fillOpacity": 20, "stacking": {"mode": "normal"}} if stacked else {"fillOpacity": 0}
        self._add(
            "timeseries",
            title,
            width,
            _HEIGHT,
            description=about,
            datasource=_DATASOURCE,
            targets=_targets(queries),
            fieldConfig={"defaults": {"unit": unit, "min": 0, "custom": custom}, "overrides": []},
            options={"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        )

    def number(self, title: str, query: str, *, unit: str = "short", width: int = 4, about: str = "") -> None:
        """One figure, as it is now."""
        self._add(
            "stat",
            title,
            width,
            4,
            description=about,
            datasource=_DATASOURCE,
            targets=_targets([(query, "")]),
            fieldConfig={"defaults": {"unit": unit}, "overrides": []},
            options={"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "value", "graphMode": "area"},
        )

    def _add(self, kind: str, title: str, width: int, height: int, **facts: Any) -> None:
        if self._left + width > _WIDTH:
            self._break()
        place = {"x": self._left, "y": self._top, "w": width, "h": height}
        self.panels.append({"id": len(self.panels) + 1, "type": kind, "title": title, "gridPos": place, **facts})
        self._left += width

    def _break(self) -> None:
        if self._left:
            self._top += self.panels[-1]["gridPos"]["h"]
            self._left = 0


def _targets(queries: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    return [
        {"refId": chr(ord("A") + place), "datasource": _DATASOURCE, "expr": query, "legendFormat": legend}
        for place, (query, legend) in enumerate(queries)
    ]


def dashboard() -> dict[str, Any]:
    """The dashboard, as Grafana imports it."""
    board = _Board()
    _overview(board)
    _predictions(board)
    _replicas(board)
    _installation(board)
    return {
        "title": "Cortex",
        "uid": "cortex",
        "tags": ["cortex"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": _variables()},
        "panels": board.panels,
    }


def _overview(board: _Board) -> None:
    requests = f"rate(cortex_requests_total{{{_CHOSEN}}}[$__rate_interval])"
    failed = f'rate(cortex_requests_total{{{_CHOSEN},code="5xx"}}[$__rate_interval])'
    board.row("Requests")
    board.number("Requests a second", f"sum({requests})", unit="reqps")
    board.number("Failed (5xx)", f"sum({failed}) / sum({requests})", unit="percentunit")
    board.number("p99", f"histogram_quantile(0.99, sum by (le) ({_durations()}))", unit="s")
    board.number("Ready, up to date", f"sum(cortex_replicas_up_to_date{{{_CHOSEN}}})")
    board.number("Not live", f'sum(cortex_api_status{{{_CHOSEN},status!="live"}})')
    board.number("Crashes in an hour", f"sum(increase(cortex_replica_crashes_total{{{_CHOSEN}}}[1h]))")
    board.graph("Requests by api", [(f"sum by (deployment, api) ({requests})", "{{deployment}}/{{api}}")], unit="reqps")
    board.graph("Requests by status", [(f"sum by (code) ({requests})", "{{code}}")], unit="reqps", stacked=True)
    board.graph(
        "Latency",
        [(f"histogram_quantile({q}, sum by (le) ({_durations()}))", f"p{100 * q:.0f}") for q in (0.5, 0.9, 0.99)],
        unit="s",
        about="From a request's last byte to its answer, in the replica.",
    )
    board.graph(
        "p99 by api",
        [
            (
                f"histogram_quantile(0.99, sum by (deployment, api, le) ({_durations()}))",
                "{{deployment}}/{{api}}",
            )
        ],
        unit="s",
    )
    refused = f"rate(cortex_ingress_refused_requests_total{{{_CHOSEN}}}[$__rate_interval])"
    board.graph(
        "Refused by the ingress",
        [(f"sum by (deployment, api, code) ({refused})", "{{deployment}}/{{api}} {{code}}")],
        unit="reqps",
    )
    abandoned = f"rate(cortex_requests_abandoned_total{{{_CHOSEN}}}[$__rate_interval])"
    board.graph(
        "Callers that went away", [(f"sum by (deployment, api) ({abandoned})", "{{deployment}}/{{api}}")], unit="reqps"
    )


def _durations() -> str:
    return f"rate(cortex_request_duration_seconds_bucket{{{_CHOSEN}}}[$__rate_interval])"


def _predictions(board: _Board) -> None:
    predictions = f"increase(cortex_predictions_total{{{_CHOSEN}}}[$__rate_interval])"
    missed = f"rate(cortex_predictions_missed_total{{{_CHOSEN}}}[$__rate_interval])"
    values = f"increase(cortex_predicted_values_total{{{_CHOSEN}}}[$__rate_interval])"
    added_up = f"delta(cortex_predicted_values_added_up{{{_CHOSEN}}}[$__rate_interval])"
    board.row("Predictions")
    board.graph(
        "Classes",
        [(f"sum by (deployment, api, class) ({predictions})", "{{deployment}}/{{api}} {{class}}")],
        stacked=True,
        about="The most frequent classes of each api, and the rest as (other).",
    )
    board.graph(
        "Mean of predicted numbers",
        [(f"sum by (deployment, api) ({added_up}) / sum by (deployment, api) ({values})", "{{deployment}}/{{api}}")],
    )
    board.graph(
        "Nothing to track",
        [(f"sum by (deployment, api) ({missed})", "{{deployment}}/{{api}}")],
        unit="reqps",
        about="Responses in which the tracker found nothing to count: `cortex logs` says why.",
    )


def _replicas(board: _Board) -> None:
    board.row("Replicas")
    board.graph("Replicas by state", [(f"sum by (state) (cortex_replicas{{{_CHOSEN}}})", "{{state}}")], stacked=True)
    board.graph(
        "Requested and up to date",
        [
            (f"sum by (deployment, api) (cortex_replicas_requested{{{_CHOSEN}}})", "{{deployment}}/{{api}} requested"),
            (f"sum by (deployment, api) (cortex_replicas_up_to_date{{{_CHOSEN}}})", "{{deployment}}/{{api}} ready"),
        ],
    )
    board.graph(
        "Rows that disagreed",
        [(f"sum by (deployment, api) (cortex_batching_disagreements_total{{{_CHOSEN}}})", "{{deployment}}/{{api}}")],
        about="Replicas that saw a row answered differently alone and together: `cortex get` has the values.",
    )
    board.graph(
        "Requests in flight", [(f"cortex_replica_requests_in_flight{{{_CHOSEN}}}", "{{replica}}")], about="Now."
    )
    board.graph("Memory", [(f"cortex_replica_memory_bytes{{{_CHOSEN}}}", "{{replica}}")], unit="bytes")
    board.graph("Peak memory", [(f"cortex_replica_memory_peak_bytes{{{_CHOSEN}}}", "{{replica}}")], unit="bytes")
    board.graph(
        "Processor",
        [(f"rate(cortex_replica_cpu_seconds_total{{{_CHOSEN}}}[$__rate_interval])", "{{replica}}")],
        about="Cores in use.",
    )


def _installation(board: _Board) -> None:
    board.row("Nodes and control plane")
    board.graph(
        "Cores",
        [
            ("cortex_node_cpu_requested_cores", "{{node}} requested"),
            ("cortex_node_cpu_cores", "{{node}}"),
        ],
    )
    board.graph(
        "Memory of nodes",
        [
            ("cortex_node_memory_requested_bytes", "{{node}} requested"),
            ("cortex_node_memory_bytes", "{{node}}"),
        ],
        unit="bytes",
    )
    board.graph("GPUs", [("cortex_node_gpus_requested", "{{node}} requested"), ("cortex_node_gpus", "{{node}}")])
    board.graph(
        "Ingress", [("cortex_ingress_up", "{{node}} up"), ("cortex_ingress_restarts_total", "{{node}} restarts")]
    )
    board.graph("Agent's age", [("time() - cortex_agent_start_time_seconds", "{{node}}")], unit="s")
    tick = "cortex_planner_tick_duration_seconds"
    board.graph(
        "Planner's ticks",
        [
            (f"rate({tick}_sum[$__rate_interval]) / rate({tick}_count[$__rate_interval])", "mean"),
            ("time() - cortex_planner_last_tick_timestamp_seconds", "since the last"),
        ],
        unit="s",
    )
    board.graph(
        "Planner's actions",
        [("sum by (action) (increase(cortex_planner_actions_total[$__rate_interval]))", "{{action}}")],
        stacked=True,
    )
    board.graph(
        "Remote models: bytes fetched",
        [("rate(cortex_model_fetched_bytes_total[$__rate_interval])", "bytes")],
        unit="Bps",
    )
    board.graph(
        "Remote models: objects fetched",
        [("increase(cortex_model_fetched_objects_total[$__rate_interval])", "objects")],
    )
    board.graph("Failed ticks", [("increase(cortex_planner_failed_ticks_total[$__rate_interval])", "failed")])


def _variables() -> list[dict[str, Any]]:
    def choice(name: str, query: str) -> dict[str, Any]:
        return {
            "name": name,
            "type": "query",
            "datasource": _DATASOURCE,
            "query": {"query": query, "refId": name},
            "refresh": 2,
            "multi": True,
            "includeAll": True,
            "current": {"text": "All", "value": "$__all"},
        }

    return [
        {"name": "datasource", "type": "datasource", "query": "prometheus"},
        choice("deployment", "label_values(cortex_api_info, deployment)"),
        choice("api", 'label_values(cortex_api_info{deployment=~"$deployment"}, api)'),
    ]


def text() -> str:
    """The file that is committed."""
    return json.dumps(dashboard(), indent=1) + "\n"


if __name__ == "__main__":
    print(text(), end="")
