from __future__ import annotations

from cortex.ids import ApiKey
from cortex.ingress.configuration import Refusal
from cortex.ingress.counters import REMEMBERED_INSTANCES, ApiRefusals, IngressCounters
from cortex.ingress.runtime import RefusalRow


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
