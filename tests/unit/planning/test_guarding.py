"""Tests of `cortex.planning.guarding`, and of what `plan` makes of it."""

import msgspec
import pytest

from cortex.errors import Problem
from cortex.ids import ApiKey, NodeId
from cortex.planning.actions import OrderNode, RecordStop
from cortex.planning.assessment import assess
from cortex.planning.batching import BatchingRecord, BatchingStop, place_of
from cortex.planning.guarding import ToProve, to_prove
from cortex.planning.model import Desired
from cortex.planning.plan import plan
from cortex.testing.builders import (
    NODE,
    a_build,
    a_lease,
    a_replica,
    a_route,
    a_snapshot,
    a_wanted_api,
    an_agent_report,
)
from cortex.wire.batching import RULES, BatchingOrder, BatchingState, BatchingVerdict, Disagreement, Proof, Trial
from cortex.wire.build import Resources
from cortex.wire.orders import SetReplicaBatching, StartReplica
from cortex.wire.reports import Phase

ORT = "onnxruntime 1.32.0, cpu, 1 thread"
NEWER = "onnxruntime 1.33.0, cpu, 1 thread"
APART = Disagreement(output="y", alone="0.5", together="0.7")
PROOF = Proof(rules=RULES, proved=True, rounding="rounding", operators=5)
BUILD = a_build()
MODEL = BUILD.model_key
OTHER_API = ApiKey("other/a")
SAME_MODEL = a_build(api=OTHER_API, model="v1")
"""Another api's build of the same model."""
BATCH, ALONE = BatchingOrder(True), BatchingOrder()


def a_record(*runtimes, rules=RULES, stops=()):
    """The model is proved, and was tried on these runtimes, last on the first one."""
    record = BatchingRecord(model=MODEL, rules=rules, stops=stops)
    for runtime in reversed(runtimes or (ORT,)):
        verdict = BatchingVerdict(proof=PROOF, trial=Trial(runtime=runtime, rows=9))
        record = record.with_verdict(verdict, place_of(BUILD))
    return record


def says(*, runtime=ORT, disagreement=None, batches=True):
    return BatchingState(order=BatchingOrder(batches), runtime=runtime, disagreement=disagreement)


def a_stop(report, *, runtime=ORT):
    return BatchingStop(
        api=report.api,
        replica=report.replica,
        started_wall_s=report.started_wall_s,
        runtime=runtime,
        disagreement=APART,
        wall_s=0.0,
    )


def planned(*reports, wanted=None, records=(), settled=True):
    """Actions about batches, orders by replica."""
    apis = (a_wanted_api(BUILD, replicas=9, live=True),) if wanted is None else wanted
    desired = Desired(apis=apis, batching=tuple(records))
    actions = plan(assess(desired, a_snapshot(*reports, settled=settled))).actions
    orders = {
        action.order.replica: action.order.batches
        for action in actions
        if isinstance(action, OrderNode) and isinstance(action.order, SetReplicaBatching)
    }
    return [action for action in actions if isinstance(action, RecordStop)], orders


def with_mode(mode, build=BUILD):
    return msgspec.structs.replace(build, batching=mode != "off", trust_rows=mode == "on")


# ---- starting --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "records", "batches"),
    [
        ("auto", [], ALONE),
        ("auto", [a_record()], BATCH),
        ("auto", [a_record(rules=RULES + 1)], ALONE),
        ("auto", [a_record(stops=(a_stop(a_replica(BUILD)),))], ALONE),
        ("off", [a_record()], ALONE),
        ("on", [], BatchingOrder(True, "labels")),
    ],
)
def test_a_replica_starts_with_what_is_known_of_its_model(mode, records, batches):
    wanted = a_wanted_api(with_mode(mode))
    seen = a_snapshot(leases=(a_lease(wanted.build),))
    orders = [
        a.order
        for a in plan(assess(Desired(apis=(wanted,), batching=tuple(records)), seen)).actions
        if hasattr(a, "order")
    ]
    assert [order.batches for order in orders if isinstance(order, StartReplica)] == [batches]


# ---- telling those that run ------------------------------------------------------------------------------------------


def test_replicas_begin_to_batch_once_their_model_is_proved():
    report = a_replica(batches=False, batching=says(batches=False))
    assert planned(report) == ([], {})
    assert planned(report, records=[a_record()]) == ([], {report.replica: BATCH})


def test_what_a_replica_was_ordered_already_is_not_ordered_again():
    assert planned(a_replica(batches=True, batching=says()), records=[a_record()]) == ([], {})


def test_replicas_end_batching_when_other_rules_are_in_force():
    report = a_replica(batches=True, batching=says())
    assert planned(report, records=[a_record(rules=RULES + 1)]) == ([], {report.replica: ALONE})


def test_replicas_do_not_batch_on_a_runtime_that_their_model_was_not_tried_on():
    report = a_replica(batches=True, batching=says(runtime=NEWER))
    assert planned(report, records=[a_record()]) == ([], {report.replica: ALONE})
    assert planned(report, records=[a_record(ORT, NEWER)]) == ([], {})


def test_a_replica_that_has_not_said_what_it_runs_on_is_not_told_to_begin():
    silent = a_replica(batches=False, batching=says(runtime="", batches=False))
    unheard = a_replica(ordinal=1, phase=Phase.STARTING, batches=False)
    assert planned(silent, unheard, records=[a_record()]) == ([], {})


def test_a_replica_whose_agent_takes_no_such_orders_is_given_none():
    assert planned(a_replica(batches=None, batching=says()), records=[a_record()]) == ([], {})


def test_a_replica_that_has_ended_is_told_nothing():
    assert planned(a_replica(phase=Phase.EXITED, batches=False, batching=says()), records=[a_record()]) == ([], {})


# ---- disagreements ---------------------------------------------------------------------------------------------------


def test_a_disagreement_is_remembered_and_told_to_all_replicas_of_the_model():
    seer = a_replica(batches=True, batching=says(disagreement=APART))
    same_api = a_replica(ordinal=1, batches=True, batching=says())
    loading = a_replica(ordinal=2, phase=Phase.LOADING, batches=True)
    same_model = a_replica(SAME_MODEL, batches=True, batching=says())
    other_model = a_replica(a_build(api=OTHER_API, label="v2"), batches=True, batching=says())
    stops, orders = planned(seer, same_api, loading, same_model, other_model, records=[a_record()])
    assert stops == [
        RecordStop(
            model=MODEL,
            stop=BatchingStop(api=seer.api, replica=seer.replica, started_wall_s=0.0, runtime=ORT, disagreement=APART),
        )
    ]
    assert orders == {report.replica: ALONE for report in (seer, same_api, loading, same_model)}


def test_a_disagreement_comes_before_everything_else_in_a_plan():
    seer = a_replica(batches=True, batching=says(disagreement=APART))
    wanted = a_wanted_api(BUILD, replicas=3, live=True)
    actions = plan(assess(Desired(apis=(wanted,), batching=(a_record(),)), a_snapshot(seer))).actions
    assert isinstance(actions[0], RecordStop)
    assert isinstance(actions[1].order, SetReplicaBatching)
    assert len(actions) > 2


def test_a_disagreement_is_acted_on_while_some_node_has_not_reported():
    seer = a_replica(batches=True, batching=says(disagreement=APART))
    stops, orders = planned(seer, records=[a_record()], settled=False)
    assert (len(stops), orders) == (1, {seer.replica: ALONE})


def test_a_disagreement_that_is_remembered_changes_nothing_more():
    seer = a_replica(batches=False, batching=says(disagreement=APART, batches=False))
    wanted = a_wanted_api(BUILD, live=True)
    desired = Desired(apis=(wanted,), batching=(a_record(stops=(a_stop(seer),)),))
    assert plan(assess(desired, a_snapshot(seer, routes=(a_route(wanted, seer),)))).actions == ()


def test_a_disagreement_of_before_other_rules_is_not_taken_for_a_new_one():
    seer = a_replica(batches=False, batching=says(disagreement=APART))
    neighbour = a_replica(ordinal=1, batches=False, batching=says(batches=False))
    before = a_record(rules=RULES + 1, stops=(a_stop(seer),))
    stops, orders = planned(seer, neighbour, records=[before, a_record()])
    assert (stops, orders[neighbour.replica]) == ([], BATCH)


def test_a_replica_that_started_anew_and_disagrees_again_is_another_one():
    seer = msgspec.structs.replace(a_replica(batches=False, batching=says(disagreement=APART)), started_wall_s=8.0)
    stops, _orders = planned(seer, records=[a_record(stops=(a_stop(a_replica()),))])
    assert [stop.stop.started_wall_s for stop in stops] == [8.0]


def test_one_that_is_on_its_way_out_is_heard_and_told_as_well():
    seer = a_replica(SAME_MODEL, phase=Phase.DRAINING, batches=True, batching=says(disagreement=APART))
    stops, orders = planned(seer, wanted=(), records=[a_record()])
    assert ([stop.api for stop in stops], orders) == ([OTHER_API], {seer.replica: ALONE})


def test_a_disagreement_is_heard_of_a_replica_that_has_ended_since():
    stops, _orders = planned(a_replica(phase=Phase.EXITED, batches=True, batching=says(disagreement=APART)))
    assert len(stops) == 1


def test_replicas_on_every_node_are_told():
    seer = a_replica(batches=True, batching=says(disagreement=APART))
    elsewhere = a_replica(ordinal=1, batches=True, batching=says())
    seen = a_snapshot(seer)
    far = an_agent_report(NodeId("far"), replicas=(elsewhere,))
    actions = plan(
        assess(Desired(batching=(a_record(),)), msgspec.structs.replace(seen, nodes=(*seen.nodes, far)))
    ).actions
    told = [a.node for a in actions if isinstance(a, OrderNode) and isinstance(a.order, SetReplicaBatching)]
    assert told == [NODE, "far"]


# ---- what is to be proved --------------------------------------------------------------------------------------------


def proving(*reports, wanted=None, records=()):
    apis = (a_wanted_api(BUILD, live=True),) if wanted is None else wanted
    return to_prove(Desired(apis=apis, batching=tuple(records)), a_snapshot(*reports))


def test_a_model_that_nothing_is_known_of_is_to_be_proved():
    assert proving() == (ToProve(build=BUILD, model=BUILD.model_key, runtime="", rows="auto"),)
    assert proving(records=[a_record(rules=RULES + 1)]) == proving()


def test_where_there_is_no_model_there_is_nothing_to_be_proved():
    assert proving(wanted=(a_wanted_api(msgspec.structs.replace(BUILD, model=None), live=True),)) == ()


def test_what_is_known_need_not_be_proved_again():
    assert proving(a_replica(batches=True, batching=says()), records=[a_record()]) == ()
    assert proving(wanted=(a_wanted_api(with_mode("off")),)) == ()


def test_a_runtime_that_a_replica_says_it_has_and_the_model_was_not_tried_on_is_to_be_tried():
    report = a_replica(batches=False, batching=says(runtime=NEWER))
    assert proving(report, records=[a_record()]) == (
        ToProve(build=BUILD, model=BUILD.model_key, runtime=NEWER, rows="auto"),
    )


@pytest.mark.parametrize(
    "report",
    [
        a_replica(phase=Phase.EXITED, batches=False, batching=says(runtime=NEWER)),
        a_replica(phase=Phase.EXITED, batches=False),
        a_replica(phase=Phase.LOADING, batches=False),
        a_replica(batches=False, batching=says(runtime="")),
    ],
    ids=["ended", "ended in silence", "has said nothing", "does not know"],
)
def test_only_a_replica_that_runs_says_what_a_model_runs_on(report):
    assert proving(report, records=[a_record()]) == ()


def test_a_place_where_nothing_runs_yet_needs_no_trial():
    rolled = a_build(resources=Resources(cpu_millis=4000))
    assert proving(wanted=(a_wanted_api(rolled),), records=[a_record()]) == ()


def test_a_model_of_several_apis_is_proved_once():
    wanted = (a_wanted_api(BUILD, live=True), a_wanted_api(SAME_MODEL, live=True))
    assert proving(wanted=wanted) == (ToProve(build=BUILD, model=BUILD.model_key, runtime="", rows="auto"),)


def test_what_failed_is_not_proved_but_what_serves_in_its_place_is():
    failed = a_wanted_api(a_build("v2"), serving=BUILD)
    failed = msgspec.structs.replace(failed, failed=Problem(reference="x", message="boom"))
    assert [one.build for one in proving(wanted=(failed,))] == [BUILD]
