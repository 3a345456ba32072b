"""Values chosen by index: which choices keep to a row."""

from __future__ import annotations

from graph_builder import constant, microsoft, ml, node, proved, refusal, result, rows, weights

from cortex.rows.sizes import NUMBER_OF_ROWS as N


def test_columns_of_rows_are_chosen_by_known_numbers_only() -> None:
    columns = ml("ArrayFeatureExtractor", "x", "index")
    assert result(columns, x=rows(4), index=constant([[0, 2], [3, 1]])).shape == (N, 4)
    assert refusal(columns, x=rows(4), index=constant([-1])) == "chooses rows by their number"
    assert refusal(columns, x=rows(4), index=weights(300, dtype="int64")) == "which columns is not known"


def test_entries_of_a_table_are_chosen_by_each_row() -> None:
    look_up = ml("ArrayFeatureExtractor", "table", "x", to="flat")
    back = node("Reshape", "flat", "shape")
    settings = {"table": weights(1, 9), "x": rows(2, dtype="int64"), "shape": constant([-1, 2])}
    assert proved(look_up, back, **settings)
    assert not proved(look_up, back, **{**settings, "table": weights(3, 9)})


def test_a_quantised_curve_of_a_constant_is_not_the_constant() -> None:
    curve = microsoft("QLinearSigmoid", "shape", "scale", "point", "scale", "point", to="wanted")
    settings = {"x": rows(4), "shape": constant([-1, 4]), "scale": constant(0.1), "point": constant(0)}
    assert refusal(curve, node("Reshape", "x", "wanted"), **settings) == "the new shape is not known"


def test_only_what_is_added_may_be_stretched_before_it_is_normalised() -> None:
    normalised = microsoft("SkipLayerNormalization", "x", "skip", "scale")
    assert proved(normalised, x=rows(3, 4), skip=weights(1, 3, 4), scale=weights(4))
    swapped = microsoft("SkipLayerNormalization", "skip", "x", "scale")
    assert refusal(swapped, x=rows(3, 4), skip=weights(1, 3, 4), scale=weights(4)) == "rows are added to a constant"
