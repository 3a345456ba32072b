"""
Metrics as Prometheus reads them. Pure: from what was observed to text.

`METRICS` lists every metric there is; nothing else is ever shown. Series are bounded: an api has about fifty, however
many classes it predicts and versions it had, plus four for each of its replicas.

Written here rather than by `prometheus_client`, whose import takes 0.14 s and starts a registry of the process; the
format is a page long. Tests read it with that package's parsers.

Source: Prometheus docs, "Exposition formats" (text format 0.0.4) and "Metric and label naming".
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Literal

import msgspec

from cortex.ids import ApiKey, api_key, split_api_key
from cortex.metrics.counts import Counts, Lifetime
from cortex.metrics.quantiles import bucket_middle
from cortex.wire.operator import ApiStatus, ScalingStatus, Status
from cortex.wire.reports import AgentReport, Phase

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
REST = "(other)"
"""Value of the label `class` for all classes that are not shown on their own."""
DURATION_BOUNDS_S = (
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
    300.0,
)
"""From a small model's answer to a long `timeout`. A request within 1 % of a bound may count on either side."""

MetricType = Literal["counter", "gauge", "histogram", "summary"]


class Metric(msgspec.Struct, frozen=True):
    """One row of the table of metrics."""

    name: str
    type: MetricType
    unit: str
    """`seconds`, `bytes`, `cores`, or empty for what is merely counted."""
    labels: tuple[str, ...]
    help: str


_API = ("deployment", "api")
METRICS: tuple[Metric, ...] = (
    Metric("cortex_build_info", "gauge", "", ("version",), "Always 1; the control plane's version as a label."),
    Metric("cortex_api_info", "gauge", "", (*_API, "version"), "Always 1; the wanted version, 8 digits, as a label."),
    Metric("cortex_api_status", "gauge", "", (*_API, "status"), "1 for the status the api has now, 0 for all others."),
    Metric("cortex_requests_total", "counter", "", (*_API, "code"), "Answered requests, 2xx, 4xx or 5xx."),
    Metric(
        "cortex_requests_abandoned_total", "counter", "", _API, "Requests whose caller went away before the answer."
    ),
    Metric(
        "cortex_request_duration_seconds",
        "histogram",
        "seconds",
        _API,
        "From a request's last byte to its answer, in the replica.",
    ),
    Metric("cortex_predictions_total", "counter", "", (*_API, "class"), "Predictions of a class the tracker counted."),
    Metric(
        "cortex_predictions_missed_total", "counter", "", _API, "Responses in which the tracker found nothing to count."
    ),
    Metric("cortex_predicted_values_total", "counter", "", _API, "Numbers that a regression model predicted."),
    # Not the _sum of a summary: numbers may be negative, and a summary's sum must not go down.
    Metric(
        "cortex_predicted_values_added_up",
        "gauge",
        "",
        _API,
        "Sum of all predicted numbers; its delta over their increase is the mean.",
    ),
    Metric("cortex_replicas", "gauge", "", (*_API, "state"), "Replicas in this phase of their life."),
    Metric("cortex_replicas_requested", "gauge", "", _API, "Replicas that the api should have."),
    Metric("cortex_replicas_wanted", "gauge", "", _API, "Replicas that the load asks for, whatever bounds them."),
    Metric(
        "cortex_replicas_bound_info",
        "gauge",
        "",
        (*_API, "bound"),
        "1 for what keeps the number of replicas from that: `maximum`, `window`, `processor`, and so on.",
    ),
    Metric("cortex_replicas_up_to_date", "gauge", "", _API, "Replicas that are ready and of the wanted revision."),
    Metric(
        "cortex_replica_crashes_total",
        "counter",
        "",
        _API,
        "Replicas of the wanted version that ended on their own since it was deployed.",
    ),
    Metric(
        "cortex_batching_disagreements_total",
        "counter",
        "",
        _API,
        "Replicas that saw a row answered differently alone and together; they and their like batch no more.",
    ),
    Metric("cortex_replica_requests_in_flight", "gauge", "", (*_API, "replica"), "Requests the replica holds now."),
    Metric("cortex_replica_memory_bytes", "gauge", "bytes", (*_API, "replica"), "Resident memory of the replica."),
    Metric(
        "cortex_replica_memory_peak_bytes",
        "gauge",
        "bytes",
        (*_API, "replica"),
        "The most resident memory the replica was seen to use.",
    ),
    Metric(
        "cortex_replica_cpu_seconds_total",
        "counter",
        "seconds",
        (*_API, "replica"),
        "Processor time of the replica since it started.",
    ),
    Metric("cortex_ingress_up", "gauge", "", ("node",), "1 while the node's ingress takes requests."),
    Metric("cortex_ingress_restarts_total", "counter", "", ("node",), "How often the agent had to start it again."),
    Metric(
        "cortex_ingress_refused_requests_total",
        "counter",
        "",
        (*_API, "code"),
        "Requests the ingress answered itself; part of cortex_requests_total.",
    ),
    Metric(
        "cortex_agent_start_time_seconds", "gauge", "seconds", ("node",), "When the agent started, in Unix seconds."
    ),
    Metric("cortex_node_cpu_cores", "gauge", "cores", ("node",), "Processor cores that replicas may request."),
    Metric("cortex_node_cpu_requested_cores", "gauge", "cores", ("node",), "Of those, requested by replicas."),
    Metric("cortex_node_memory_bytes", "gauge", "bytes", ("node",), "Memory that replicas may request."),
    Metric(
        "cortex_node_memory_requested_bytes",
        "gauge",
        "bytes",
        ("node",),
        "Of that, requested; replicas without a request count with their peak.",
    ),
    Metric("cortex_node_gpus", "gauge", "", ("node",), "GPUs that replicas may request."),
    Metric("cortex_node_gpus_requested", "gauge", "", ("node",), "Of those, requested by replicas."),
    Metric("cortex_planner_tick_duration_seconds", "summary", "seconds", (), "How long looking and acting took."),
    Metric("cortex_planner_failed_ticks_total", "counter", "", (), "Ticks that ended with an error."),
    Metric("cortex_planner_actions_total", "counter", "", ("action",), "Actions carried out."),
    Metric(
        "cortex_planner_last_tick_timestamp_seconds",
        "gauge",
        "seconds",
        (),
        "When the last tick ended well, in Unix seconds.",
    ),
    Metric("cortex_model_fetched_bytes_total", "counter", "bytes", (), "Bytes of models read from where they lie."),
    Metric("cortex_model_fetched_objects_total", "counter", "", (), "Objects of models read from where they lie."),
)
"""Every metric, in the order in which it is shown."""


class PlannerCounts(msgspec.Struct, frozen=True, kw_only=True):
    """What the control loop did since the control plane started."""

    ticks: int = 0
    tick_s: float = 0.0
    """All ticks together."""
    failed_ticks: int = 0
    last_tick_wall_s: float = 0.0
    actions: Mapping[str, int] = {}
    """Name of the action, e.g. `start_replica`, to how many."""


class FetchCounts(msgspec.Struct, frozen=True, kw_only=True):
    """What was read of remote models since the control plane started; asking whether they changed reads nothing."""

    objects: int = 0
    bytes: int = 0


class Exposed(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that is shown."""

    version: str
    """Of the control plane."""
    apis: tuple[ApiStatus, ...] = ()
    lifetimes: Mapping[ApiKey, Lifetime] = {}
    disagreements: Mapping[ApiKey, int] = {}
    """Of rows alone and together, by the api whose replica saw them."""
    scaling: Mapping[ApiKey, ScalingStatus] = {}
    agents: tuple[AgentReport, ...] = ()
    planner: PlannerCounts = PlannerCounts()
    fetched: FetchCounts = FetchCounts()


def exposition(observed: Exposed) -> str:
    """Return the page that Prometheus scrapes, to be sent as `CONTENT_TYPE`."""
    page = _Page()
    page.add("cortex_build_info", (observed.version,), 1)
    for status in observed.apis:
        _api(page, status)
        key = api_key(status.deployment, status.name)
        page.add("cortex_batching_disagreements_total", split_api_key(key), observed.disagreements.get(key, 0))
        if (scaling := observed.scaling.get(key)) is not None:
            page.add("cortex_replicas_wanted", split_api_key(key), scaling.wanted)
            if scaling.bound:
                page.add("cortex_replicas_bound_info", (*split_api_key(key), scaling.bound), 1)
        _lifetime(page, status, observed.lifetimes.get(key, Lifetime()))
    _replicas(page, observed)
    for agent in observed.agents:
        _node(page, agent)
    _planner(page, observed.planner)
    page.add("cortex_model_fetched_bytes_total", (), observed.fetched.bytes)
    page.add("cortex_model_fetched_objects_total", (), observed.fetched.objects)
    return page.text()


def _api(page: _Page, status: ApiStatus) -> None:
    api = (status.deployment, status.name)
    page.add("cortex_api_info", (*api, status.version), 1)
    for possible in Status:
        page.add("cortex_api_status", (*api, possible), int(status.status == possible))
    page.add("cortex_replicas_requested", api, status.replicas.requested)
    page.add("cortex_replicas_up_to_date", api, status.replicas.up_to_date)
    page.add("cortex_replica_crashes_total", api, status.crashes)


def _lifetime(page: _Page, status: ApiStatus, lifetime: Lifetime) -> None:
    api = (status.deployment, status.name)
    counts = lifetime.counts
    page.add("cortex_requests_total", (*api, "2xx"), counts.ok)
    page.add("cortex_requests_total", (*api, "4xx"), counts.client_error + counts.refused_client_error)
    page.add("cortex_requests_total", (*api, "5xx"), counts.server_error + counts.refused_server_error)
    page.add("cortex_requests_abandoned_total", api, counts.abandoned)
    page.add("cortex_ingress_refused_requests_total", (*api, "4xx"), counts.refused_client_error)
    page.add("cortex_ingress_refused_requests_total", (*api, "5xx"), counts.refused_server_error)
    _durations(page, api, counts)
    if lifetime.classes or lifetime.rest:
        for name, count in lifetime.classes.items():
            page.add("cortex_predictions_total", (*api, name), count)
        # A class may really be called like this.
        rest = lifetime.rest + lifetime.classes.get(REST, 0)
        page.add("cortex_predictions_total", (*api, REST), rest)
    if counts.numbers:
        page.add("cortex_predicted_values_total", api, counts.numbers)
        page.add("cortex_predicted_values_added_up", api, counts.number_sum)
    if lifetime.classes or lifetime.rest or counts.numbers or counts.misses:
        page.add("cortex_predictions_missed_total", api, counts.misses)


def duration_buckets(counts: Counts) -> list[tuple[float, int]]:
    """Bounds in seconds, the last one infinite, each with how many answers took no longer."""
    by_duration = sorted(counts.latency.items())
    buckets = []
    below, place = 0, 0
    for bound_s in (*DURATION_BOUNDS_S, math.inf):
        while place < len(by_duration) and bucket_middle(by_duration[place][0]) <= bound_s * 1000:
            below += by_duration[place][1]
            place += 1
        buckets.append((bound_s, below))
    return buckets


def _durations(page: _Page, api: tuple[str, str], counts: Counts) -> None:
    buckets = duration_buckets(counts)
    for bound_s, below in buckets:
        page.add("cortex_request_duration_seconds_bucket", (*api, _number(bound_s)), below)
    page.add("cortex_request_duration_seconds_sum", api, counts.latency_sum_ms / 1000)
    page.add("cortex_request_duration_seconds_count", api, buckets[-1][1])


def _replicas(page: _Page, observed: Exposed) -> None:
    phases = {api_key(status.deployment, status.name): Counter[Phase]() for status in observed.apis}
    for replica in (replica for agent in observed.agents for replica in agent.replicas):
        phases.setdefault(replica.api, Counter())[replica.phase] += 1
        if replica.phase is Phase.EXITED:
            continue
        labels = (*split_api_key(replica.api), replica.replica)
        page.add("cortex_replica_requests_in_flight", labels, replica.in_flight)
        page.add("cortex_replica_memory_bytes", labels, replica.rss_bytes)
        page.add("cortex_replica_memory_peak_bytes", labels, replica.peak_rss_bytes)
        page.add("cortex_replica_cpu_seconds_total", labels, replica.cpu_s)
    for key, counted in phases.items():
        for phase in Phase:
            page.add("cortex_replicas", (*split_api_key(key), phase), counted[phase])


def _node(page: _Page, agent: AgentReport) -> None:
    node = (agent.node.node,)
    running = [replica for replica in agent.replicas if replica.phase is not Phase.EXITED]
    cpu_millis = sum(replica.resources.cpu_millis for replica in running)
    mem_bytes = sum(
        replica.peak_rss_bytes if replica.resources.mem_bytes is None else replica.resources.mem_bytes
        for replica in running
    )
    page.add("cortex_agent_start_time_seconds", node, agent.started_wall_s)
    page.add("cortex_node_cpu_cores", node, agent.node.cpu_millis / 1000)
    page.add("cortex_node_cpu_requested_cores", node, cpu_millis / 1000)
    page.add("cortex_node_memory_bytes", node, agent.node.mem_bytes)
    page.add("cortex_node_memory_requested_bytes", node, mem_bytes)
    page.add("cortex_node_gpus", node, agent.node.gpus)
    page.add("cortex_node_gpus_requested", node, sum(replica.resources.gpus for replica in running))
    if agent.ingress is not None:
        page.add("cortex_ingress_up", node, int(agent.ingress.up))
        page.add("cortex_ingress_restarts_total", node, agent.ingress.restarts)


def _planner(page: _Page, planner: PlannerCounts) -> None:
    page.add("cortex_planner_tick_duration_seconds_sum", (), planner.tick_s)
    page.add("cortex_planner_tick_duration_seconds_count", (), planner.ticks)
    page.add("cortex_planner_failed_ticks_total", (), planner.failed_ticks)
    for action, count in planner.actions.items():
        page.add("cortex_planner_actions_total", (action,), count)
    page.add("cortex_planner_last_tick_timestamp_seconds", (), planner.last_tick_wall_s)


# ---- the format -----------------------------------------------------------------------------------------------------


class _Page:
    """Samples by metric: the format wants all of a metric together, each series once."""

    def __init__(self) -> None:
        self._samples: dict[str, dict[str, float]] = {}

    def add(self, sample: str, values: tuple[str, ...], value: float) -> None:
        """Show a value. `sample` is a metric's name, with a suffix for histograms and summaries."""
        metric, names = _SAMPLES[sample]
        labels = ",".join(f'{name}="{_escaped(text)}"' for name, text in zip(names, values, strict=True))
        self._samples.setdefault(metric, {})[f"{sample}{{{labels}}}" if labels else sample] = value

    def text(self) -> str:
        return "".join(self._lines())

    def _lines(self) -> Iterator[str]:
        for metric in METRICS:
            samples = self._samples.get(metric.name)
            if samples is None:
                continue
            yield f"# HELP {metric.name} {metric.help}\n# TYPE {metric.name} {metric.type}\n"
            for series, value in samples.items():
                yield f"{series} {_number(value)}\n"


def _samples_of(metric: Metric) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Names of a metric's samples, with their labels."""
    if metric.type in ("histogram", "summary"):
        yield f"{metric.name}_sum", metric.labels
        yield f"{metric.name}_count", metric.labels
        if metric.type == "histogram":
            yield f"{metric.name}_bucket", (*metric.labels, "le")
    else:
        yield metric.name, metric.labels


_SAMPLES = {sample: (metric.name, labels) for metric in METRICS for sample, labels in _samples_of(metric)}


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _number(value: float) -> str:
    if value == math.inf:
        return "+Inf"
    return str(value) if isinstance(value, int) else repr(float(value))
