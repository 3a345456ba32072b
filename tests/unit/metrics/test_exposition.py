"""Tests of `cortex.metrics.exposition`. The page is read with the parsers of `prometheus_client`."""

import re

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_strictly
from prometheus_client.parser import text_string_to_metric_families as parse

from cortex.ids import ApiKey
from cortex.metrics.counts import Counts, Lifetime
from cortex.metrics.exposition import (
    DURATION_BOUNDS_S,
    METRICS,
    REST,
    Exposed,
    FetchCounts,
    PlannerCounts,
    exposition,
)
from cortex.testing.builders import a_build, a_replica
from cortex.wire.build import Resources
from cortex.wire.operator import ApiStatus, ReplicaCounts, ScalingStatus, Status
from cortex.wire.reports import AgentReport, IngressReport, Node, Phase
from cortex.wire.stats import bucket_of

API = ApiKey("iris/sklearn")
LABELS = {"deployment": "iris", "api": "sklearn"}


def a_status(**changes) -> ApiStatus:
    facts = {
        "deployment": "iris",
        "name": "sklearn",
        "status": Status.LIVE,
        "endpoint": "http://127.0.0.1:8880/iris/sklearn",
        "version": "3fa1c09d",
        "last_updated": None,
        "replicas": ReplicaCounts(requested=2, ready=2, up_to_date=1, stale=1),
        "crashes": 3,
    }
    return ApiStatus(**(facts | changes))


def an_agent(*replicas, **changes) -> AgentReport:
    facts = {
        "node": Node(node="local", cpu_millis=2000, mem_bytes=8 * 2**30, gpus=1),
        "serial": 1,
        "agent": "a",
        "epoch": 1,
        "pid": 1,
        "started_wall_s": 1_767_225_600.5,
        "replicas": replicas,
        "ingress": IngressReport(up=True, host="127.0.0.1", port=8880, restarts=2),
    }
    return AgentReport(**(facts | changes))


def everything() -> Exposed:
    """Something of every metric."""
    replica = msgspec.structs.replace(
        a_replica(a_build(resources=Resources(cpu_millis=500, mem_bytes=2**20, gpus=1)), in_flight=4),
        rss_bytes=1000,
        peak_rss_bytes=2000,
        cpu_s=1.5,
    )
    unlimited = msgspec.structs.replace(a_replica(ordinal=1), peak_rss_bytes=500)
    gone = a_replica(ordinal=2, phase=Phase.EXITED)
    counts = Counts(
        ok=5,
        client_error=1,
        server_error=2,
        refused_client_error=3,
        refused_server_error=4,
        abandoned=6,
        latency_sum_ms=1500.0,
        latency={bucket_of(0.2): 1, bucket_of(7.0): 4, bucket_of(1_000_000.0): 3},
        misses=7,
        numbers=2,
        number_sum=-3.5,
    )
    return Exposed(
        version="1.0",
        apis=(a_status(),),
        lifetimes={API: Lifetime(counts=counts, classes={"setosa": 9}, rest=2)},
        disagreements={API: 2},
        scaling={API: ScalingStatus(wanted=5, reason="as said", bound="maximum")},
        agents=(an_agent(replica, unlimited, gone),),
        planner=PlannerCounts(
            ticks=10, tick_s=0.5, failed_ticks=1, last_tick_wall_s=1_767_225_600.0, actions={"start_replica": 3}
        ),
        fetched=FetchCounts(objects=2, bytes=2**31),
    )


def families(observed: Exposed) -> dict[str, Metric]:
    return {family.name: family for family in parse(exposition(observed))}


def samples(observed: Exposed, name: str) -> dict[tuple[tuple[str, str], ...], float]:
    return {
        tuple(sample.labels.items()): sample.value
        for family in parse(exposition(observed))
        for sample in family.samples
        if sample.name == name
    }


def value(observed: Exposed, name: str, **labels: str) -> float:
    return samples(observed, name)[tuple(labels.items())]


def as_openmetrics(page: str) -> str:
    """The same samples in the format whose parser checks everything: counters are announced without `_total`."""
    return re.sub(r"(?m)^(# (?:HELP|TYPE) \w+)_total ", r"\1 ", page) + "# EOF\n"


# ---- the format -----------------------------------------------------------------------------------------------------


def test_the_page_reads_as_the_table_says():
    found = families(everything())
    for metric in METRICS:
        family = found.pop(metric.name.removesuffix("_total") if metric.type == "counter" else metric.name)
        assert (family.type, family.documentation) == (metric.type, metric.help)
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == set(metric.labels)
    assert found == {}


def test_a_strict_parser_finds_nothing_wrong():
    strict = list(parse_strictly(as_openmetrics(exposition(everything()))))
    assert len(strict) == len(METRICS)


def test_names_and_units_follow_the_conventions():
    for metric in METRICS:
        assert re.fullmatch(r"cortex_[a-z]+(_[a-z]+)*", metric.name)
        assert metric.name.endswith("_total") == (metric.type == "counter")
        if metric.unit:
            assert metric.unit in metric.name.removesuffix("_total").split("_")
        assert metric.help.endswith(".")
        assert "\n" not in metric.help
        assert "\\" not in metric.help


def test_each_metric_is_listed_once():
    assert len({metric.name for metric in METRICS}) == len(METRICS)


@given(name=st.text(max_size=30))
def test_any_class_name_comes_back_as_it_was(name):
    observed = Exposed(version="1", apis=(a_status(),), lifetimes={API: Lifetime(classes={name: 3}, rest=1)})
    found = samples(observed, "cortex_predictions_total")
    expected = {(*LABELS.items(), ("class", name)): 3.0, (*LABELS.items(), ("class", REST)): 1.0}
    if name == REST:
        expected = {(*LABELS.items(), ("class", REST)): 4.0}
    assert found == expected


def test_an_installation_without_apis_has_a_page():
    page = exposition(Exposed(version="1"))
    assert 'cortex_build_info{version="1"} 1\n' in page
    assert "cortex_planner_tick_duration_seconds_count 0\n" in page
    assert page.endswith("\n")
    list(parse_strictly(as_openmetrics(page)))


def test_series_do_not_grow_with_classes_or_versions():
    many = Lifetime(counts=Counts(latency=dict.fromkeys(range(-300, 900), 1)), classes={"a": 1}, rest=10**9)
    page = exposition(Exposed(version="1", apis=(a_status(),), lifetimes={API: many}))
    assert len([line for line in page.splitlines() if line.startswith("cortex_") and "sklearn" in line]) < 60


# ---- the numbers ----------------------------------------------------------------------------------------------------


def test_requests_are_shown_by_code_with_what_the_ingress_refused():
    observed = everything()
    assert samples(observed, "cortex_requests_total") == {
        (*LABELS.items(), ("code", "2xx")): 5.0,
        (*LABELS.items(), ("code", "4xx")): 4.0,
        (*LABELS.items(), ("code", "5xx")): 6.0,
    }
    assert value(observed, "cortex_ingress_refused_requests_total", **LABELS, code="5xx") == 4.0
    assert value(observed, "cortex_requests_abandoned_total", **LABELS) == 6.0


def test_predicted_numbers_may_be_negative():
    assert value(everything(), "cortex_predicted_values_total", **LABELS) == 2.0
    assert value(everything(), "cortex_predicted_values_added_up", **LABELS) == -3.5


def test_durations_are_a_cumulative_histogram_in_seconds():
    observed = everything()
    buckets = samples(observed, "cortex_request_duration_seconds_bucket")
    by_bound = {dict(labels)["le"]: count for labels, count in buckets.items()}
    assert list(by_bound) == [*(str(bound) for bound in DURATION_BOUNDS_S), "+Inf"]
    assert (by_bound["0.0005"], by_bound["0.005"], by_bound["0.01"]) == (1.0, 1.0, 5.0)
    assert (by_bound["300.0"], by_bound["+Inf"]) == (5.0, 8.0)
    assert value(observed, "cortex_request_duration_seconds_sum", **LABELS) == 1.5
    assert value(observed, "cortex_request_duration_seconds_count", **LABELS) == 8.0


@pytest.mark.parametrize("status", list(Status))
def test_exactly_one_status_is_true(status):
    found = samples(Exposed(version="1", apis=(a_status(status=status),)), "cortex_api_status")
    assert {dict(labels)["status"] for labels, shown in found.items() if shown == 1.0} == {status.value}
    assert len(found) == len(Status)


def test_replicas_are_counted_by_phase_and_the_gone_hold_nothing():
    observed = everything()
    assert value(observed, "cortex_replicas", **LABELS, state="ready") == 2.0
    assert value(observed, "cortex_replicas", **LABELS, state="exited") == 1.0
    assert value(observed, "cortex_replicas", **LABELS, state="loading") == 0.0
    assert value(observed, "cortex_replicas_requested", **LABELS) == 2.0
    assert value(observed, "cortex_replicas_up_to_date", **LABELS) == 1.0
    assert sorted(samples(observed, "cortex_replica_requests_in_flight").values()) == [0.0, 4.0]


def test_what_the_load_asks_for_is_shown_with_what_keeps_the_number_from_it():
    scaling = {API: ScalingStatus(wanted=5, reason="as said", bound="maximum")}
    observed = Exposed(version="1", apis=(a_status(),), scaling=scaling)
    assert value(observed, "cortex_replicas_wanted", **LABELS) == 5.0
    assert value(observed, "cortex_replicas_bound_info", **LABELS, bound="maximum") == 1.0
    free = Exposed(version="1", apis=(a_status(),), scaling={API: ScalingStatus(wanted=2, reason="as said")})
    assert samples(free, "cortex_replicas_bound_info") == {}


def test_replicas_of_an_api_that_is_on_its_way_out_are_still_counted():
    observed = Exposed(version="1", agents=(an_agent(a_replica(phase=Phase.DRAINING)),))
    assert value(observed, "cortex_replicas", **LABELS, state="draining") == 1.0


def test_a_node_shows_what_it_has_and_what_is_requested():
    observed = everything()
    assert value(observed, "cortex_node_cpu_cores", node="local") == 2.0
    assert value(observed, "cortex_node_cpu_requested_cores", node="local") == 0.7
    assert value(observed, "cortex_node_memory_requested_bytes", node="local") == 2**20 + 500
    assert value(observed, "cortex_node_gpus_requested", node="local") == 1.0
    assert value(observed, "cortex_ingress_up", node="local") == 1.0
    assert value(observed, "cortex_ingress_restarts_total", node="local") == 2.0


def test_a_tracker_that_counted_nothing_shows_no_predictions():
    found = families(Exposed(version="1", apis=(a_status(),)))
    assert not [name for name in found if name.startswith("cortex_predict")]


def test_an_api_in_which_no_rows_disagreed_says_so():
    assert value(everything(), "cortex_batching_disagreements_total", **LABELS) == 2
    quiet = msgspec.structs.replace(everything(), disagreements={})
    assert value(quiet, "cortex_batching_disagreements_total", **LABELS) == 0
