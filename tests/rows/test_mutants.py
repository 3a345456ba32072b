from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import msgspec
from cases import Case, text_case
from mutants import (
    ANSWERS_ONLY,
    Function,
    Known,
    Mutant,
    by_rule,
    killer,
    known_onnx,
    known_saved_models,
    mutants,
    rule_functions,
    traced,
    without,
)
from prover import graph_of, proof_of


def over_rows() -> Case:
    return text_case("", "g (float[N,4] x) => (float[N,4] y) { a = Constant<value = int64 {0}>() y = CumSum(x, a) }")


def of(function: str, text: str) -> Mutant:
    (found,) = [one for one in mutants() if (one.function, one.text) == (function, text) and not one.is_of_tensorflow]
    return found


def killed(mutant: Mutant, case: Case) -> bool:
    return killer(msgspec.to_builtins(mutant), [("it", graph_of(case.model))]) == "it"


def test_without_its_check_a_rule_proves_what_mixes_rows() -> None:
    mutant = of("along", "if value.is_rows and axis_of(axis, value.rank) == value.axis")

    assert killed(mutant, over_rows())
    assert not proof_of(over_rows().model).proved


def test_a_rule_as_a_whole_is_taken_out_too() -> None:
    assert killed(of("cum_sum", "the rule, instead of its first rows"), over_rows())


def test_a_rule_that_does_not_round_is_noticed_where_rows_differ_by_bits() -> None:
    moving = text_case("", "g (float[N,4] x) => (float[N,4] y) { y = Softmax<axis=1>(x) }")
    graph = graph_of(moving.model)

    assert killer(msgspec.to_builtins(of("softmax", "what rounds")), [], [("it", graph)]) == "it"
    assert killer(msgspec.to_builtins(of("cum_sum", "what rounds")), [], [("it", graph)]) is None


def test_another_check_is_not_missed_there() -> None:
    assert not killed(of("_rows_reshaped", "if len(holders) != 1"), over_rows())


def test_functions_that_a_case_meets_and_those_that_refuse_it_are_known() -> None:
    found = traced(graph_of(over_rows().model))

    assert {"cortex.rows.rules.reductions:along", "cortex.rows.rules.reductions:cum_sum"} <= set(found.refused)
    assert set(found.refused) < set(found.ran)
    assert "cortex.rows.rules.shapes:constant" in found.ran


# ---- each rule has a case -----------------------------------------------------------------------------------------


def unnoticed(functions: Collection[Function], cases: Sequence[Known]) -> dict[Function, str]:
    """Rules without which no rows mix, and of those that only answer the ones that nobody needs."""
    found = {function: notice.how if notice else "" for function, notice in by_rule(functions, cases).items()}
    return {one: how for one, how in found.items() if (not how if one in ANSWERS_ONLY else how != "wrong")}


def is_of_tensorflow(function: Function) -> bool:
    return function[0].startswith("cortex.rows.rules.tensorflow.")


def test_without_a_rule_of_onnx_some_case_mixes_rows() -> None:
    functions = {one for one in rule_functions() if not is_of_tensorflow(one)}

    assert len(functions) > 100
    assert unnoticed(functions, known_onnx()) == {}


def test_without_a_rule_of_tensorflow_some_case_mixes_rows(tensorflow: Any, tmp_path: Path) -> None:
    functions = {one for one in rule_functions() if is_of_tensorflow(one)}

    assert len(functions) > 100
    assert unnoticed(functions, known_saved_models(tensorflow, tmp_path)) == {}


def test_a_rule_that_no_case_needs_is_named() -> None:
    (function,) = {one for one in rule_functions() if one[1] == "cum_sum"}
    graph = graph_of(over_rows().model)

    assert unnoticed({function}, [Known("it", graph, "mixes")]) == {}
    assert unnoticed({function}, [Known("it", graph, "refused")]) == {function: "answer"}
    assert unnoticed({function}, []) == {function: ""}


def test_only_rules_are_said_to_be_right_by_themselves() -> None:
    assert set(ANSWERS_ONLY) <= rule_functions()


def test_the_prover_is_whole_again_after_a_check_was_missing() -> None:
    with without(of("along", "if value.is_rows and axis_of(axis, value.rank) == value.axis")):
        assert proof_of(over_rows().model).proved

    assert not proof_of(over_rows().model).proved
