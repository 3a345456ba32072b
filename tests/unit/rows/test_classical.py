"""Classical models: onnxruntime takes a vector for one row, and rows for as long as an attribute says."""

from __future__ import annotations

from typing import Any

import pytest
from graph_builder import constant, microsoft, ml, model, node, proof, proved, refusal, result, results, rows, weights

from cortex.rows import prove
from cortex.rows.sizes import NUMBER_OF_ROWS as N
from cortex.rows.values import Kind
from cortex.wire.graphs import Attribute, GraphNode, LongList, Tensor

THIRD = {"ai.onnx.ml": 3}
"""The fifth set has trees of another kind."""
NO_MATRIX = "its input is not a matrix with a row for each row"
TREE: dict[str, Attribute] = {
    "nodes_treeids": (0, 0, 0),
    "nodes_nodeids": (0, 1, 2),
    "nodes_featureids": (1, 0, 0),
    "nodes_modes": ("BRANCH_LEQ", "LEAF", "LEAF"),
    "nodes_values": (0.5, 0.0, 0.0),
    "nodes_truenodeids": (1, 0, 0),
    "nodes_falsenodeids": (2, 0, 0),
}
LEAVES: dict[str, Attribute] = {
    "class_treeids": (0, 0),
    "class_nodeids": (1, 2),
    "class_ids": (0, 1),
    "class_weights": (1.0, 2.0),
}
TARGETS: dict[str, Attribute] = {
    "target_treeids": (0, 0),
    "target_nodeids": (1, 2),
    "target_ids": (0, 1),
    "target_weights": (1.0, 2.0),
}
FIFTH: dict[str, Attribute] = {
    "tree_roots": (0,),
    "nodes_featureids": (1,),
    "nodes_modes": Tensor("uint8", (1,), (0,)),
    "nodes_splits": Tensor("float32", (1,), (0.5,)),
    "nodes_truenodeids": (0,),
    "nodes_falsenodeids": (1,),
    "nodes_trueleafs": (1,),
    "nodes_falseleafs": (1,),
    "leaf_targetids": (0, 1),
    "leaf_weights": Tensor("float32", (2,), (1.0, 2.0)),
}
VECTORS: dict[str, Attribute] = {
    "kernel_type": "RBF",
    "kernel_params": (0.5, 0.0, 3.0),
    "coefficients": (1.0, -1.0),
    "rho": (0.1,),
    "support_vectors": (1.0, 0.0, 0.5, 0.0, 1.0, -0.5),
}
TREES = ml("TreeEnsembleClassifier", "x", to="l s", **TREE, **LEAVES, classlabels_int64s=(5, 6))
LINES = ml(
    "LinearClassifier",
    "x",
    to="l s",
    coefficients=(1.0, 2.0, -1.0, 0.5),
    intercepts=(0.1, 0.2),
    classlabels_ints=(5, 6),
)
SVC = ml("SVMClassifier", "x", to="l s", **VECTORS, vectors_per_class=(1, 1), classlabels_ints=(5, 6))
TREE_SUMS = ml("TreeEnsembleRegressor", "x", **TREE, **TARGETS, n_targets=2)
LINE_SUMS = ml("LinearRegressor", "x", coefficients=(1.0, 2.0), intercepts=(0.5,), targets=1)
SVR = ml("SVMRegressor", "x", **VECTORS, n_supports=2)
NORMED = ml("Normalizer", "x", norm="L2")
SCALED = ml("Scaler", "x", scale=(1.0, 2.0), offset=(0.0, 1.0))
IMPUTED = ml("Imputer", "x", imputed_value_floats=(1.0, 2.0), replaced_value_float=0.0)


def changed(operator: GraphNode, **attributes: Attribute) -> GraphNode:
    kept = {name: value for name, value in {**operator.attributes, **attributes}.items() if value is not None}
    return GraphNode(operator.operator, operator.inputs, operator.outputs, kept, domain=operator.domain)


# ---- scores and labels ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("classifier", "features"), [(TREES, 2), (LINES, 2), (SVC, 3)])
@pytest.mark.parametrize("labels", [(5, 6), ("a", "b")])
def test_each_row_has_a_label_and_scores(classifier: GraphNode, features: int, labels: tuple[Any, ...]) -> None:
    numbers = next(name for name in classifier.attributes if name.startswith("classlabels"))
    if isinstance(labels[0], str):
        classifier = changed(classifier, **{numbers: None, "classlabels_strings": labels})
    label, scores = results(classifier, outputs="l s", x=rows(features), opsets=THIRD)
    assert (label.shape, label.axis, label.dtype) == ((N,), 0, "string" if isinstance(labels[0], str) else "int64")
    assert (scores.axis, scores.dtype) == (0, "float32")
    assert scores.known_shape[1] == 2 or classifier.operator == "SVMClassifier"


@pytest.mark.parametrize(("regressor", "features", "width"), [(TREE_SUMS, 2, 2), (LINE_SUMS, 2, 1), (SVR, 3, 1)])
def test_each_row_has_its_values(regressor: GraphNode, features: int, width: int) -> None:
    values = result(regressor, x=rows(features), opsets=THIRD)
    assert (values.shape, values.axis, values.dtype) == ((N, width), 0, "float32")


def test_trees_of_the_fifth_set_have_values_of_the_type_of_their_features() -> None:
    operator = ml("TreeEnsemble", "x", **FIFTH, n_targets=2)
    assert (result(operator, x=rows(2)).shape, result(operator, x=rows(2)).dtype) == ((N, 2), "float32")
    assert result(operator, x=rows(2, dtype="float64")).dtype == "float64"
    assert not proved(operator, x=rows(2), opsets={"ai.onnx.ml": 4})
    assert not proved(TREE_SUMS, x=rows(2))
    assert not proved(TREES, outputs="s", x=rows(2))


@pytest.mark.parametrize("operator", [TREES, LINES, SVC, TREE_SUMS, LINE_SUMS, SVR, NORMED, SCALED, IMPUTED])
def test_only_a_matrix_has_a_row_for_each_row(operator: GraphNode) -> None:
    out = operator.outputs[-1]
    assert refusal(operator, outputs=out, x=rows(), opsets=THIRD) == NO_MATRIX
    assert refusal(operator, outputs=out, x=rows(2, 3), opsets=THIRD) == NO_MATRIX
    turn = node("Transpose", "t", to="x", perm=(1, 0))
    assert refusal(turn, operator, outputs=out, t=rows(2), opsets=THIRD) == NO_MATRIX


def test_labels_of_too_many_classes_to_read_are_of_an_unknown_number() -> None:
    trees = changed(TREES, classlabels_int64s=LongList("ints"))
    assert result(trees, outputs="s", x=rows(2), opsets=THIRD).known_shape[1] not in (2, 0)


@pytest.mark.parametrize(
    ("attributes", "width"),
    [
        ({"intercepts": (0.1,), "coefficients": (1.0, 2.0)}, 2),
        ({"intercepts": (0.1,), "coefficients": (1.0, 2.0), "classlabels_ints": None}, 1),
        ({"intercepts": (0.1, 0.2, 0.3), "coefficients": (1.0,) * 6, "classlabels_ints": (1, 2, 3)}, 3),
    ],
)
def test_one_line_has_scores_of_both_classes(attributes: dict[str, Attribute], width: int) -> None:
    assert result(changed(LINES, **attributes), outputs="s", x=rows(2)).known_shape[1] == width


def test_trees_vote_and_lines_are_summed() -> None:
    assert proof(TREES, outputs="s", x=rows(2), opsets=THIRD).rounding == "rounding"
    assert proof(LINES, outputs="s", x=rows(2), opsets=THIRD).rounding == "rounding"
    for classifier in (TREES, LINES, SVC):
        features = 3 if classifier is SVC else 2
        assert proof(classifier, outputs="l", x=rows(features), opsets=THIRD).rounding == "labels"
    assert proof(node("Exp", "f", to="x"), TREE_SUMS, f=rows(2), opsets=THIRD).rounding == "labels"


def test_one_class_is_a_label() -> None:
    assert proof(SVR, x=rows(3)).rounding == "rounding"
    assert proof(changed(SVR, one_class=1), x=rows(3)).rounding == "labels"


@pytest.mark.parametrize("operator", [SVC, SVR])
def test_support_vectors_have_as_many_features_as_rows(operator: GraphNode) -> None:
    out = operator.outputs[-1]
    assert refusal(operator, outputs=out, x=rows(4)) == "4 features for vectors of 3"
    (condition,) = proof(operator, outputs=out, x=rows(None)).sizes
    assert (condition.axis, condition.size) == (1, 3)
    long = changed(operator, support_vectors=LongList("floats"))
    assert prove(model(long, outputs=out, x=rows(3))).proved
    assert refusal(long, outputs=out, x=rows(None)) == "a number of features that requests choose"


def test_support_vectors_that_were_summed_up_have_as_many_features_as_rows() -> None:
    sums = {"support_vectors": None, "coefficients": (1.0, 2.0, 3.0, 4.0, 5.0, 6.0), "kernel_params": (0.0, 0.0, 0.0)}
    assert proved(changed(SVC, **sums, vectors_per_class=None), outputs="s", x=rows(3))
    assert not proved(changed(SVC, **sums, vectors_per_class=None), outputs="s", x=rows(6))
    assert proved(changed(SVR, **sums, n_supports=0), x=rows(6))
    assert not proved(changed(SVR, **sums, n_supports=0), x=rows(3))


# ---- features ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("operator", "rounding"),
    [(NORMED, "rounding"), (SCALED, "rounding"), (IMPUTED, "exact"), (ml("Binarizer", "x", threshold=0.5), "exact")],
)
def test_features_stay_where_they_are(operator: GraphNode, rounding: str) -> None:
    assert (result(operator, x=rows(2)).shape, proof(operator, x=rows(2)).rounding) == ((N, 2), rounding)


@pytest.mark.parametrize(
    "operator",
    [
        changed(SCALED, scale=(2.0,), offset=(1.0,)),
        changed(IMPUTED, imputed_value_floats=(1.0,)),
        ml("Binarizer", "x", threshold=0.5),
    ],
)
def test_one_constant_for_all_is_of_any_shape(operator: GraphNode) -> None:
    assert result(operator, x=rows()).shape == (N,)
    assert result(operator, x=rows(2, 3)).shape == (N, 2, 3)


@pytest.mark.parametrize(
    "operator",
    [
        changed(SCALED, scale=(2.0,)),
        changed(SCALED, offset=(2.0,)),
        changed(IMPUTED, imputed_value_int64s=(1,)),
        changed(IMPUTED, imputed_value_floats=LongList("floats")),
    ],
)
def test_several_constants_may_be_of_the_rows(operator: GraphNode) -> None:
    assert refusal(operator, x=rows()) == NO_MATRIX


def test_integers_are_imputed_as_integers() -> None:
    imputed = ml("Imputer", "x", imputed_value_int64s=(1,), replaced_value_int64=0)
    assert result(imputed, x=rows(2, dtype="int64")).dtype == "int64"


def jumps(operator: GraphNode) -> str:
    return proof(node("Exp", "f", to="x"), operator, f=rows(2)).rounding


def test_what_compares_jumps_at_its_borders() -> None:
    assert jumps(IMPUTED) == "labels"
    assert jumps(ml("Binarizer", "x")) == "labels"
    assert jumps(ml("LabelEncoder", "x", keys_floats=(0.5,), values_floats=(1.0,))) == "labels"
    assert jumps(ml("OneHotEncoder", "x", cats_int64s=(1, 2))) == "labels"


@pytest.mark.parametrize(
    ("given", "attributes", "dtype", "opset"),
    [
        ("int64", {"keys_int64s": (1, 2), "values_strings": ("a", "b")}, "string", 2),
        ("string", {"keys_strings": ("a", "b"), "values_int64s": (1, 2)}, "int64", 4),
        ("string", {"keys_strings": ("a", "b"), "values_floats": (1.0, 2.0)}, "float32", 4),
        ("string", {"classes_strings": ("a", "b")}, "int64", 1),
        ("int64", {"classes_strings": ("a", "b")}, "string", 1),
        (
            "int64",
            {
                "keys_tensor": Tensor("int64", (2,), (1, 2)),
                "values_tensor": Tensor("float64", (2,), (0.5, 1.5)),
                "default_tensor": Tensor("float64", (1,), (0.0,)),
            },
            "float64",
            4,
        ),
    ],
)
def test_labels_become_what_their_values_are(
    given: str, attributes: dict[str, Attribute], dtype: str, opset: int
) -> None:
    encoded = result(ml("LabelEncoder", "x", **attributes), x=rows(2, dtype=given), opsets={"ai.onnx.ml": opset})
    assert (encoded.shape, encoded.dtype) == ((N, 2), dtype)


def test_categories_become_numbers_and_back() -> None:
    mapper = ml("CategoryMapper", "x", cats_int64s=(1, 2), cats_strings=("a", "b"))
    assert result(mapper, x=rows(2, dtype="string")).dtype == "int64"
    assert result(mapper, x=rows(2, dtype="int64")).dtype == "string"


def test_an_encoded_constant_is_no_longer_known() -> None:
    encoded = ml("LabelEncoder", "c", to="shape", keys_int64s=(1, 2), values_int64s=(7, 8))
    assert result(encoded, outputs="shape", c=[1, 2]).elements is None
    assert not proved(encoded, node("Reshape", "x", "shape"), x=rows(2), c=[-1, 2])


def test_a_category_is_one_more_dimension() -> None:
    assert result(ml("OneHotEncoder", "x", cats_int64s=(1, 2, 3)), x=rows(2, dtype="int64")).shape == (N, 2, 3)
    assert result(ml("OneHotEncoder", "x", cats_strings=("a", "b")), x=rows(dtype="string")).shape == (N, 2)
    long = ml("OneHotEncoder", "x", cats_int64s=LongList("ints"))
    assert not isinstance(result(long, x=rows(2, dtype="int64")).known_shape[2], int)


def test_features_stand_side_by_side() -> None:
    side_by_side = ml("FeatureVectorizer", "a", "b", inputdimensions=(2, 4))
    assert result(side_by_side, a=rows(2), b=rows(3)).shape == (N, 6)
    assert refusal(side_by_side, a=rows(2), b=weights(1, 3)) == NO_MATRIX
    assert refusal(side_by_side, a=rows(), b=rows(3)) == NO_MATRIX


def test_features_of_another_order_do_not_stand_side_by_side() -> None:
    nodes = (
        node("Transpose", "a", to="t", perm=(1, 0, 2)),
        node("Reshape", "t", "shape", to="first"),
        node("Reshape", "b", "shape", to="second"),
        ml("FeatureVectorizer", "first", "second", inputdimensions=(2, 2)),
    )
    assert refusal(*nodes, a=rows(5, 2), b=rows(5, 2), shape=[-1, 2]) == "rows meet in different layouts"


ZIPPED = ml("ZipMap", "x", classlabels_int64s=(1, 2))


def test_a_list_has_a_map_for_each_row() -> None:
    assert result(ZIPPED, x=rows(2)).kind is Kind.ITEMS
    assert proof(node("Exp", "f", to="x"), ZIPPED, f=rows(2)).rounding == "rounding"


def test_a_list_of_maps_of_other_than_rows_is_refused() -> None:
    assert refusal(ZIPPED, x=rows()) == NO_MATRIX
    merged = node("Reshape", "m", "shape", to="x")
    assert refusal(merged, ZIPPED, m=rows(3, 2), shape=[-1, 2]) == NO_MATRIX


# ---- text -------------------------------------------------------------------------------------------------------

TEXTS = rows(dtype="string")
LOWER = node("StringNormalizer", "x", case_change_action="LOWER", is_case_sensitive=0, locale="C")


def words(text: str = "x", **attributes: Attribute) -> GraphNode:
    settings: dict[str, Attribute] = {"mark": 0, "mincharnum": 1, "pad_value": "#", "separators": (" ",)}
    return microsoft("Tokenizer", text, to="t", **{**settings, **attributes})


COUNTED = node(
    "TfIdfVectorizer",
    "t",
    mode="TF",
    min_gram_length=1,
    max_gram_length=2,
    max_skip_count=1,
    ngram_counts=(0, 2),
    ngram_indexes=(0, 1, 4),
    pool_strings=("a", "b", "b", "c"),
)
NUMBERS: dict[str, Attribute] = {"pool_strings": None, "pool_int64s": (1, 2, 2, 3)}


def test_words_of_each_text_are_counted() -> None:
    assert result(words(), COUNTED, x=TEXTS).shape == (N, 5)
    assert proof(words(), COUNTED, x=TEXTS).rounding == "exact"
    lower = node("StringNormalizer", "x", to="lower", **LOWER.attributes)
    assert proved(lower, words("lower"), COUNTED, x=TEXTS)


def test_what_fills_texts_up_may_be_no_word() -> None:
    def verdict(pool: Attribute, padding: str = "#") -> str:
        return refusal(words(pad_value=padding), changed(COUNTED, pool_strings=pool), x=TEXTS)

    reason = "what fills rows up may be in its vocabulary"
    assert verdict(COUNTED.attributes["pool_strings"], padding="b") == reason
    assert verdict(LongList("strings")) == reason
    assert verdict(LongList("strings", b"\x01#\x01a")) == reason
    assert verdict(LongList("strings", b"\x01b\x01a")) == ""


def test_marks_are_not_there_when_all_texts_of_a_batch_are_empty() -> None:
    assert refusal(words(mark=1), COUNTED, x=TEXTS).startswith("marks where texts begin and end")


def test_words_are_no_rows_for_others() -> None:
    assert refusal(words(), outputs="t", x=TEXTS) == 'the output "t" has no rows'
    assert refusal(words(), changed(COUNTED, **NUMBERS), x=TEXTS) == "rows are padded to the longest of the batch"


def test_words_of_a_matrix_of_texts_are_not_counted() -> None:
    assert refusal(words(), COUNTED, x=rows(2, dtype="string")) == NO_MATRIX


NUMBERED = changed(COUNTED, **NUMBERS)


def test_numbers_of_a_row_are_counted_as_words() -> None:
    assert result(NUMBERED, t=rows(6, dtype="int64")).shape == (N, 5)
    assert refusal(NUMBERED, t=rows(dtype="int64")) == NO_MATRIX
    turn = node("Transpose", "m", to="t", perm=(1, 0))
    assert refusal(turn, NUMBERED, m=rows(3, dtype="int64")) == NO_MATRIX
    long = changed(NUMBERED, ngram_indexes=LongList("ints"))
    assert not isinstance(result(long, t=rows(6, dtype="int64")).known_shape[1], int)


def test_texts_are_changed_one_by_one_where_they_are_a_vector() -> None:
    assert result(LOWER, x=TEXTS).shape == (N,)
    assert refusal(LOWER, x=rows(1, dtype="string")) == "its input is not a vector of texts"
    assert not proved(LOWER, x=TEXTS, opsets={"": 9})


@pytest.mark.parametrize("stop", [("the",), LongList("strings", b"\x03the")])
def test_stop_words_move_texts_up(stop: Attribute) -> None:
    assert refusal(changed(LOWER, stopwords=stop), x=TEXTS) == "drops stop words, so that rows move up"
    assert proved(changed(LOWER, stopwords=()), x=TEXTS)


def test_words_of_a_constant_are_not_rows() -> None:
    assert not proved(words("c"), COUNTED, x=TEXTS, c=constant(["a b"]))
