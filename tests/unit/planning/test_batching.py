"""Tests of `cortex.planning.batching`."""

import msgspec
import pytest

from cortex.planning.batching import BatchingRecord, BatchingStop, Known, decide, disagreement_text, place_of
from cortex.testing.builders import API, a_build
from cortex.wire.batching import RULES, BatchingOrder, BatchingVerdict, Disagreement, Proof, SizeCondition, Trial
from cortex.wire.build import ModelKey, Resources

ORT = "onnxruntime 1.32.0, cpu, 1 thread"
CUDA = "onnxruntime 1.32.0, cuda, 1 thread"
APART = Disagreement(output="y", alone="0.5", together="0.7", difference=0.2, tolerance=1e-5)
PROVED = Proof(rules=RULES, proved=True, rounding="rounding", operators=1105)
REFUSED = Proof(rules=RULES, proved=False, operator="Conv conv_7", reason="rows are dimension 2, not 0", operators=9)
STEPS = Proof(rules=RULES, proved=True, rounding="steps", rounding_operator="QuantizeLinear q_3", operators=40)
TRIED = Trial(runtime=ORT, rows=24, worst=0.006)
BUILD = a_build()
MODEL = BUILD.model_key
OFF = BatchingOrder()


def a_stop(runtime=ORT):
    return BatchingStop(
        api=API, replica="iris.sklearn.0123abcd.0", started_wall_s=5.0, runtime=runtime, disagreement=APART, wall_s=9.0
    )


def a_record(proof=PROVED, *trials, model=MODEL, rules=RULES, **fields):
    return BatchingRecord(model=model, rules=rules, proof=proof, trials=trials, **fields)


def with_mode(mode, build=BUILD):
    return msgspec.structs.replace(build, batching=mode != "off", trust_rows=mode == "on")


def contradicting(runtime=ORT):
    return Trial(runtime=runtime, rows=24, disagreement=APART)


# ---- the decision ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "proof", "trial", "order", "text"),
    [
        (
            "auto",
            PROVED,
            TRIED,
            BatchingOrder(True, "rounding"),
            "batching: proved from 1,105 operators, sums may round; tried with 24 rows, worst 0.6 % of the tolerance",
        ),
        (
            "auto",
            Proof(rules=RULES, proved=True, operators=1),
            Trial(runtime=ORT, rows=1),
            BatchingOrder(True, "exact"),
            "batching: proved from 1 operator, every bit stays the same; tried with 1 row, no difference",
        ),
        (
            "auto",
            Proof(rules=RULES, proved=True, rounding="labels", operators=3),
            Trial(runtime=ORT, rows=0),
            BatchingOrder(True, "labels"),
            "batching: proved from 3 operators, sums may round, and ties fall the other way; not tried, as no input "
            "could be made up",
        ),
        ("auto", PROVED, None, OFF, "not batched yet: proved from 1,105 operators, sums may round, still to be tried"),
        (
            "auto",
            PROVED,
            contradicting(),
            OFF,
            'not batched: rows disagreed when they were tried (output "y" is 0.5 alone and 0.7 beside others, 0.2 '
            "apart where rounding explains 1e-05)",
        ),
        (
            "auto",
            REFUSED,
            None,
            OFF,
            'not batched: Conv conv_7: rows are dimension 2, not 0. "batching: on" if you know better',
        ),
        (
            "auto",
            STEPS,
            TRIED,
            OFF,
            "not batched: QuantizeLinear q_3: sums that round in another order may move a value by a whole step. "
            '"batching: on" if that does no harm',
        ),
        (
            "on",
            REFUSED,
            TRIED,
            BatchingOrder(True, "labels"),
            "batching: on your word, not proved (Conv conv_7: rows are dimension 2, not 0); tried with 24 rows, worst "
            "0.6 % of the tolerance",
        ),
        (
            "on",
            STEPS,
            None,
            BatchingOrder(True, "steps"),
            "batching: proved from 40 operators, a value may move by a whole step; not tried yet",
        ),
        (
            "on",
            REFUSED,
            contradicting(),
            OFF,
            'not batched: rows disagreed when they were tried (output "y" is 0.5 alone and 0.7 beside others, 0.2 '
            "apart where rounding explains 1e-05)",
        ),
        ("off", PROVED, TRIED, OFF, "not batched: batching is off in cortex.yaml"),
    ],
)
def test_what_is_proved_and_tried_decides(mode, proof, trial, order, text):
    decision = decide(mode, BatchingVerdict(proof=proof, trial=trial), None)
    assert (decision.order, decision.text) == (order, text)


def test_what_is_proved_for_some_sizes_is_ordered_for_these():
    sizes = (
        SizeCondition("ids", 1, at_most=512),
        SizeCondition("ids", 2, size=3),
        SizeCondition("mask", 1, other_input="ids", other_axis=1),
    )
    verdict = BatchingVerdict(proof=msgspec.structs.replace(PROVED, sizes=sizes), trial=TRIED)
    for mode in ("auto", "on"):
        decision = decide(mode, verdict, None)
        assert decision.order == BatchingOrder(True, "rounding", sizes)
        assert decision.text == (
            'batching: proved from 1,105 operators, sums may round, where dimension 1 of "ids" is at most 512 and '
            'dimension 2 of "ids" is 3 and dimension 1 of "mask" is dimension 1 of "ids"; tried with 24 rows, worst '
            "0.6 % of the tolerance"
        )


def test_while_nothing_is_known_only_the_users_word_batches():
    auto, on, off = (decide(mode, None, None) for mode in ("auto", "on", "off"))
    assert (auto.order, auto.text) == (
        OFF,
        "not batched yet: whether rows depend on each other is still to be found out",
    )
    assert (on.order, on.text) == (BatchingOrder(True, "labels"), "batching: on your word; not tried yet")
    assert off.order == OFF


@pytest.mark.parametrize("mode", ["auto", "on"])
@pytest.mark.parametrize("verdict", [BatchingVerdict(proof=PROVED, trial=TRIED), None])
def test_a_disagreement_that_was_seen_ends_batching_whatever_else_is_known(mode, verdict):
    decision = decide(mode, verdict, a_stop())
    assert decision.order == OFF
    assert decision.disagreement == APART
    assert decision.text == (
        'batching off: rows disagreed (output "y" is 0.5 alone and 0.7 beside others, 0.2 apart where rounding '
        "explains 1e-05)"
    )


def test_what_was_seen_with_another_mode_is_no_reason_where_nothing_would_be_batched_anyway():
    for proof in (REFUSED, STEPS):
        decision = decide("auto", BatchingVerdict(proof=proof, trial=contradicting()), a_stop())
        assert decision.disagreement is None
        assert decision.text == decide("auto", BatchingVerdict(proof=proof), None).text


def test_a_disagreement_without_numbers_has_words():
    shapes = Disagreement(output="y", alone="float32[1]", together="float32[]")
    assert disagreement_text(shapes) == 'output "y" is float32[1] alone and float32[] beside others'
    failed = Disagreement(output="", alone="an answer", together="it failed")
    assert disagreement_text(failed) == "an answer alone and it failed beside others"


# ---- what is known ---------------------------------------------------------------------------------------------------


def test_what_other_rules_have_proved_is_void():
    assert Known([a_record(PROVED, TRIED, rules=RULES - 1)]).decision(BUILD, ORT).order == OFF
    assert Known([a_record(PROVED, TRIED, rules=RULES - 1)], rules=RULES - 1).decision(BUILD, ORT).order.batches
    stopped = a_record(PROVED, TRIED, rules=RULES - 1, stops=(a_stop(),))
    assert Known([stopped, a_record(PROVED, TRIED)]).decision(BUILD, ORT).order.batches


def test_a_trial_says_nothing_about_another_runtime():
    known = Known([a_record(PROVED, TRIED, contradicting(CUDA))])
    assert known.decision(BUILD, ORT).order.batches
    assert not known.decision(BUILD, CUDA).order.batches
    untried = known.decision(BUILD, "onnxruntime 1.33.0, cpu, 1 thread")
    assert untried.text.endswith("still to be tried")


def test_a_disagreement_holds_for_the_runtime_that_it_was_seen_on():
    known = Known([a_record(PROVED, TRIED, msgspec.structs.replace(TRIED, runtime=CUDA), stops=(a_stop(CUDA),))])
    assert known.decision(BUILD, ORT).order.batches
    assert known.decision(BUILD, CUDA).stop == a_stop(CUDA)


def test_a_disagreement_of_a_replica_that_had_not_said_what_it_runs_on_holds_for_all():
    assert Known([a_record(PROVED, TRIED, stops=(a_stop(""),))]).decision(BUILD, ORT).stop == a_stop("")


def test_before_a_replica_says_what_it_runs_on_its_place_tells():
    record = a_record(PROVED, TRIED, contradicting(CUDA), runtimes={place_of(BUILD): ORT})
    assert Known([record]).decision(BUILD).order.batches
    assert Known([record]).decision(BUILD).runtime == ORT


def test_while_nobody_can_tell_the_runtime_everything_that_speaks_against_batches_counts():
    assert not Known([a_record(PROVED, TRIED)]).decision(BUILD).order.batches
    trusted = with_mode("on")
    assert Known([a_record(PROVED, TRIED)]).decision(trusted).order.batches
    assert not Known([a_record(PROVED, TRIED, contradicting(CUDA))]).decision(trusted).order.batches
    assert not Known([a_record(PROVED, TRIED, stops=(a_stop(CUDA),))]).decision(trusted).order.batches


def test_a_place_is_another_one_with_other_packages_threads_or_gpus():
    others = [
        a_build(resources=Resources(cpu_millis=4000)),
        a_build(resources=Resources(gpus=1)),
        msgspec.structs.replace(BUILD, packages="e" * 64),
    ]
    assert len({place_of(build) for build in (BUILD, *others)}) == 4
    assert place_of(a_build("v2")) == place_of(BUILD)


def test_a_disagreement_counts_for_whatever_may_be_the_same_signature():
    unnamed, named = ModelKey("tensorflow", "a" * 64, "."), ModelKey("tensorflow", "a" * 64, ".", "predict")
    other = ModelKey("tensorflow", "a" * 64, ".", "classify")
    known = Known([a_record(PROVED, model=named, stops=(a_stop(),))])
    assert [known.stop(model, ORT) is not None for model in (unnamed, named, other)] == [True, True, False]


# ---- what an inspection is asked -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "records", "asked"),
    [
        ("auto", [], "auto"),
        ("on", [], "on"),
        ("off", [], "off"),
        ("auto", [a_record(PROVED, TRIED)], "off"),
        ("auto", [a_record(PROVED, msgspec.structs.replace(TRIED, runtime=CUDA))], "auto"),
        ("auto", [a_record(REFUSED)], "off"),
        ("auto", [a_record(STEPS)], "off"),
        ("on", [a_record(REFUSED)], "on"),
        ("on", [a_record(REFUSED, TRIED)], "off"),
        ("auto", [a_record(PROVED, TRIED, rules=RULES - 1)], "auto"),
        ("auto", [a_record(None, stops=(a_stop(),))], "auto"),
    ],
)
def test_only_what_is_not_known_is_asked(mode, records, asked):
    assert Known(records).to_be_asked(with_mode(mode), ORT) == asked


def test_at_another_place_it_is_asked_again():
    record = a_record(PROVED).with_verdict(BatchingVerdict(proof=PROVED, trial=TRIED), place_of(BUILD))
    assert Known([record]).to_be_asked(BUILD) == "off"
    assert Known([record]).to_be_asked(a_build(resources=Resources(gpus=1))) == "auto"


# ---- records ---------------------------------------------------------------------------------------------------------


def test_a_record_keeps_one_trial_for_each_runtime():
    empty = BatchingRecord(model=MODEL, rules=RULES)
    again = Trial(runtime=ORT, rows=30)
    elsewhere = Trial(runtime=CUDA, rows=8)
    record = empty
    for trial, place in ((TRIED, "a"), (elsewhere, "b"), (again, "a")):
        record = record.with_verdict(BatchingVerdict(proof=PROVED, trial=trial), place)
    assert record == a_record(PROVED, elsewhere, again, runtimes={"a": ORT, "b": CUDA})


def test_a_verdict_without_a_trial_leaves_those_there_are():
    record = a_record(REFUSED, TRIED, runtimes={"a": ORT})
    assert record.with_verdict(BatchingVerdict(proof=PROVED), "b") == a_record(PROVED, TRIED, runtimes={"a": ORT})


def test_without_a_model_nothing_is_batched_or_asked():
    build = msgspec.structs.replace(BUILD, model=None)
    for mode in ("auto", "on", "off"):
        decision = Known([a_record(PROVED, TRIED)]).decision(with_mode(mode, build), ORT)
        assert (decision.order, decision.text, decision.mode) == (OFF, "not batched: there is no model", mode)
        assert Known(()).to_be_asked(with_mode(mode, build)) == "off"
