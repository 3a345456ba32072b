from __future__ import annotations

import msgspec
from cases import Case, text_case
from mutants import WITHOUT_A_CASE, Mutant, killer, mutants, rule_functions, traced
from prover import graph_of, proof_of


def over_rows() -> Case:
    return text_case("", "g (float[N,4] x) => (float[N,4] y) { a = Constant<value = int64 {0}>() y = CumSum(x, a) }")


def of(function: str, text: str) -> Mutant:
    (found,) = [one for one in mutants() if one.function == function and one.text == text]
    return found


def killed(mutant: Mutant, case: Case) -> bool:
    return killer(msgspec.to_builtins(mutant), [("it", graph_of(case.model))]) == "it"


def test_without_its_check_a_rule_proves_what_mixes_rows() -> None:
    mutant = of("along", "if value.is_rows and axis_of(axis, value.rank) == value.axis")

    assert killed(mutant, over_rows())
    assert not proof_of(over_rows().model).proved


def test_a_rule_as_a_whole_is_taken_out_too() -> None:
    assert killed(of("cum_sum", "the rule as a whole"), over_rows())


def test_a_rule_that_does_not_round_is_noticed_where_rows_differ_by_bits() -> None:
    moving = text_case("", "g (float[N,4] x) => (float[N,4] y) { y = Softmax<axis=1>(x) }")
    graph = graph_of(moving.model)

    assert killer(msgspec.to_builtins(of("softmax", "rounds=Rounds.SUMS")), [], [("it", graph)]) == "it"
    assert killer(msgspec.to_builtins(of("cum_sum", "rounds=Rounds.SUMS")), [], [("it", graph)]) is None


def test_another_check_is_not_missed_there() -> None:
    assert not killed(of("_rows_reshaped", "if len(holders) != 1"), over_rows())


def test_functions_that_a_case_meets_and_those_that_refuse_it_are_known() -> None:
    found = traced(graph_of(over_rows().model))

    assert {"cortex.rows.rules.reductions:along", "cortex.rows.rules.reductions:cum_sum"} <= set(found.refused)
    assert set(found.refused) < set(found.ran)
    assert "cortex.rows.rules.shapes:constant" in found.ran


def test_each_rule_can_be_taken_out() -> None:
    assert rule_functions() <= {(mutant.module, mutant.function) for mutant in mutants()}


def test_only_rules_are_excused_from_having_a_case() -> None:
    assert set(WITHOUT_A_CASE) <= rule_functions()
