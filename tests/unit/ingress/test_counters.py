from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cortex.ids import ApiKey
from cortex.ingress.configuration import Refusal
from cortex.ingress.counters import REMEMBERED_INSTANCES, ApiRefusals, ApiTraffic, IngressCounters, IngressTraffic
from cortex.ingress.runtime import BackendRow, RefusalRow


def test_each_process_counts_for_itself_and_is_replaced_by_what_it_says_next():
    counters = IngressCounters()
    for instance, refused in (("1-1-a", 1), ("2-2-a", 5), ("1-1-a", 2)):
        counters.note(instance, [RefusalRow(api="d/a", counts={Refusal.TIMEOUT: refused})])
    assert {row.instance: row.counts for row in counters.rows()} == {
        "1-1-a": {Refusal.TIMEOUT: 2},
        "2-2-a": {Refusal.TIMEOUT: 5},
    }


def test_processes_that_ended_are_remembered_for_a_while():
    counters = IngressCounters()
    for n in range(REMEMBERED_INSTANCES + 2):
        counters.note(str(n), [RefusalRow(api="d/a", counts={Refusal.TIMEOUT: 1})])
    assert [row.instance for row in counters.rows()] == [str(n) for n in range(2, REMEMBERED_INSTANCES + 2)]


def test_faults_of_the_client_are_told_from_those_of_the_server():
    refused = ApiRefusals(instance="1", api=ApiKey("d/a"), counts=dict.fromkeys(Refusal, 1))
    assert (refused.client_error, refused.server_error) == (4, 5)
    assert refused.failed == 2, "a lost replica and a timeout"


A, B = ApiKey("d/a"), ApiKey("d/b")


def row(backend, begun, queued=0, **done):
    return BackendRow(backend=backend, requests=queued, begun=begun, queued=queued, done=done)


def traffic_of(traffic, *apis):
    return [(found.begun, found.done, found.queued) for found in traffic.rows(dict(enumerate(apis, 1)))]


def test_traffic_of_all_processes_is_added_up_and_an_ended_one_leaves_what_it_counted():
    traffic = IngressTraffic()
    traffic.note("door", [row(1, 5, queued=2, s=1)], {1: A})
    traffic.note("bulk", [row(1, 3, queued=1)], {1: A})
    traffic.note("door", [row(1, 9, queued=4, s=4)], {1: A})
    assert traffic.rows({1: A}) == (ApiTraffic(api=A, begun=12, done=3, queued=5, given=0),)
    traffic.forget("door")
    traffic.note("next", [row(1, 2, s=2)], {1: A})
    assert traffic_of(traffic, A) == [(14, 3, 1)]


def test_no_sum_falls_where_probes_were_taken_for_requests_at_one_look() -> None:
    traffic = IngressTraffic()
    for begun in (5, 9, 7, 8, 10):
        traffic.note("door", [row(1, begun)], {1: A})
        assert traffic_of(traffic, A)[0][0] in (5, 9, 10)
    assert traffic_of(traffic, A) == [(10, 0, 0)]


def test_what_a_backend_counted_for_the_api_before_is_not_counted_for_the_next():
    traffic = IngressTraffic()
    traffic.note("door", [row(1, 5)], {1: A})
    traffic.pass_over("door", [row(1, 8)])  # seen empty: 3 more came for the first before it left
    traffic.note("door", [row(1, 9)], {1: B})
    assert traffic_of(traffic, B) == [(1, 0, 0)]
    traffic.note("door", [row(2, 1)], {2: A})  # the first is back, elsewhere
    assert traffic.rows({2: A})[0].begun == 6


def test_what_a_process_that_was_found_running_had_counted_is_not_counted():
    traffic = IngressTraffic()
    traffic.pass_over("door", [row(1, 1000), row(2, 50)])
    assert traffic_of(traffic, A, B) == [(0, 0, 0), (0, 0, 0)]
    traffic.note("door", [row(1, 1004, queued=1, s=900)], {1: A})
    traffic.note("door", [row(1, 1005, s=903)], {1: A})
    assert traffic_of(traffic, A, B) == [(5, 3, 0), (0, 0, 0)]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 2), st.integers(0, 5), st.booleans()), max_size=40))
def test_no_sum_ever_falls_and_each_request_is_counted_once(steps):
    traffic, counted, came = IngressTraffic(), dict.fromkeys((A, B), 0), {}
    owners = {1: A, 2: B}
    generation = 0
    for process, backend, more, ends in steps:
        instance = f"{process}-{generation}"
        came[instance, backend] = came.get((instance, backend), 0) + more
        counted[owners[backend]] += more
        traffic.note(instance, [row(backend, came[instance, backend])], owners)
        if ends:
            traffic.forget(instance)
            generation += 1
        assert {found.api: found.begun for found in traffic.rows(owners)} == counted
