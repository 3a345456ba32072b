"""`ai.onnx.ml`: trees, linear models, encoders; and text."""

from __future__ import annotations

import dataclasses
from typing import Final

from cortex.rows.refusal import refuse
from cortex.rows.rules.registry import Op, Rounds, like, rule
from cortex.rows.sizes import NUMBER_OF_ROWS, Dim, equal
from cortex.rows.values import Kind, Value, items
from cortex.wire.graphs import LongList

_ML: Final = "ai.onnx.ml"
_MICROSOFT: Final = "com.microsoft"


def _matrix(value: Value) -> Value:
    """
    The value, if it is a matrix with the rows first.

    onnxruntime takes a vector for one row of as many features: rows would be features.

    Raises:
        NotProved: it is none.
    """
    if not value.is_rows or value.rank != 2 or value.axis != 0:
        refuse("its input is not a matrix with a row for each row")
    return value


def _elementwise(value: Value, dtype: str) -> Value:
    """Another value for each element."""
    return like(value, value.known_shape, value.axis).typed(dtype)


# ---- scores and labels ------------------------------------------------------------------------------------------


def _scores(call: Op, width: Dim) -> Value:
    x = _matrix(call.x)
    return x.moved([x.known_shape[0], width], 0).typed("float32")


def _labels(call: Op) -> Value:
    x = _matrix(call.x)
    return x.moved([x.known_shape[0]], 0).typed("string" if call.has("classlabels_strings") else "int64")


def _classes(call: Op, numbers: str) -> Dim:
    return call.length(numbers) or call.length("classlabels_strings") or call.fresh()


@rule("TreeEnsembleClassifier", domain=_ML, rounds=(Rounds.ELECTS, Rounds.VOTES), until=4)
def tree_classifier(call: Op) -> list[Value]:
    """
    Where a tree asks for a feature that rows do not have there is no answer.

    Source: onnxruntime, tree_ensemble_common.h, `ComputeAgg`: checked in the kernel since 1.13.
    """
    return [_labels(call), _scores(call, _classes(call, "classlabels_int64s"))]


@rule("TreeEnsembleRegressor", domain=_ML, rounds=Rounds.VOTES, until=4)
def tree_regressor(call: Op) -> Value:
    """As `tree_classifier`."""
    return _scores(call, call.integer("n_targets", 1))


@rule("TreeEnsemble", domain=_ML, rounds=Rounds.VOTES, since=5)
def tree_ensemble(call: Op) -> Value:
    """As `tree_classifier`."""
    return _scores(call, call.integer("n_targets", 1)).typed(call.x.dtype)


@rule("LinearClassifier", domain=_ML, rounds=(Rounds.ELECTS, Rounds.SUMS))
def linear_classifier(call: Op) -> list[Value]:
    count = call.length("intercepts") or call.fresh()
    width = 2 if count == 1 and _classes(call, "classlabels_ints") == 2 else count
    return [_labels(call), _scores(call, width)]


@rule("LinearRegressor", domain=_ML, rounds=Rounds.SUMS)
def linear_regressor(call: Op) -> Value:
    return _scores(call, call.integer("targets", 1))


def _must_fit(call: Op, vectors: int | None, classes: Dim) -> None:
    """
    Raises:
        NotProved: rows have another number of features than the support vectors: where each begins is counted in
            features of these. Or requests choose it, and it is not known how many these have.
    """
    size = _matrix(call.x).known_shape[1]
    values, count = (call.length("support_vectors"), vectors) if vectors else (call.length("coefficients"), classes)
    if values is not None and isinstance(count, int) and count:
        if not equal(size, values // count):
            refuse(f"{size} features for vectors of {values // count}")
    elif not isinstance(size, int):
        refuse("a number of features that requests choose")


@rule("SVMClassifier", domain=_ML, rounds=(Rounds.ELECTS, Rounds.SUMS))
def support_vector_classifier(call: Op) -> list[Value]:
    _must_fit(call, sum(call.integers("vectors_per_class", [])), _classes(call, "classlabels_ints"))
    return [_labels(call), _scores(call, call.fresh())]


@rule("SVMRegressor", domain=_ML, rounds=Rounds.SUMS)
def support_vector_regressor(call: Op) -> Value:
    _must_fit(call, call.integer("n_supports", 0), 1)
    if call.integer("one_class", 0):
        call.rounds = Rounds.ELECTS
    return _scores(call, 1)


# ---- features ---------------------------------------------------------------------------------------------------


@rule("Normalizer", domain=_ML, rounds=Rounds.SUMS)
def normalizer(call: Op) -> Value:
    return _matrix(call.x).typed("float32")


@rule("Scaler", domain=_ML, rounds=Rounds.SUMS)
def scaler(call: Op) -> Value:
    one_for_all = call.length("scale") == 1 == call.length("offset")
    return _elementwise(call.x if one_for_all else _matrix(call.x), "float32")


@rule("Imputer", domain=_ML, rounds=Rounds.CHOOSES)
def imputer(call: Op) -> Value:
    given = [name for name in ("imputed_value_floats", "imputed_value_int64s") if call.has(name)]
    one_for_all = len(given) == 1 and call.length(given[0]) == 1
    return _elementwise(call.x if one_for_all else _matrix(call.x), call.x.dtype)


@rule("Binarizer", domain=_ML, rounds=Rounds.CHOOSES)
def binarizer(call: Op) -> Value:
    return _elementwise(call.x, call.x.dtype)


@rule("LabelEncoder", domain=_ML, rounds=Rounds.CHOOSES)
def label_encoder(call: Op) -> Value:
    return _elementwise(call.x, _encoded_dtype(call))


def _encoded_dtype(call: Op) -> str:
    for name, dtype in (
        ("values_int64s", "int64"),
        ("values_strings", "string"),
        ("values_floats", "float32"),
        ("classes_strings", "int64" if call.x.dtype == "string" else "string"),
    ):
        if call.has(name):
            return dtype
    tensor = call.tensor("values_tensor")
    return tensor.dtype if tensor is not None else ""


@rule("CategoryMapper", domain=_ML)
def category_mapper(call: Op) -> Value:
    return _elementwise(call.x, "int64" if call.x.dtype == "string" else "string")


@rule("OneHotEncoder", domain=_ML, rounds=Rounds.CHOOSES)
def one_hot_encoder(call: Op) -> Value:
    width = call.length("cats_int64s") or call.length("cats_strings") or call.fresh()
    return like(call.x, [*call.x.known_shape, width], call.x.axis).typed("float32")


@rule("FeatureVectorizer", domain=_ML)
def feature_vectorizer(call: Op) -> Value:
    """Matrices side by side, each cut or filled up to the width that an attribute has for it."""
    first, *others = (_matrix(value) for value in call.given)
    if any(value.layout != first.layout for value in others):
        refuse("rows meet in different layouts")
    return first.moved([first.known_shape[0], sum(call.integers("inputdimensions"))], 0).typed("float32")


@rule("ZipMap", domain=_ML)
def zip_map(call: Op) -> Value:
    """A list with a map for each row."""
    x = _matrix(call.x)
    if x.layout != (1, 1) or x.known_shape[0] != NUMBER_OF_ROWS:
        refuse("its input is not a matrix with a row for each row")
    return items()


# ---- text -------------------------------------------------------------------------------------------------------


@rule("StringNormalizer", since=10)
def string_normalizer(call: Op) -> Value:
    """Of a vector: onnxruntime takes a matrix for one row of words."""
    if call.has("stopwords") and call.length("stopwords") != 0:
        refuse("drops stop words, so that rows move up")
    if call.x.is_rows and call.x.rank != 1:
        refuse("its input is not a vector of texts")
    return _elementwise(call.x, "string")


@rule("Tokenizer", domain=_MICROSOFT)
def tokenizer(call: Op) -> Value:
    """Words of each text, filled up to as many as the text of the batch has that has most."""
    if call.integer("mark", 0):
        refuse("marks where texts begin and end, unless all of the batch are empty")
    found = like(call.x, [*call.x.known_shape, call.fresh()], call.x.axis)
    return dataclasses.replace(found, kind=Kind.PADDED, padding=call.text("pad_value"), dtype="string")


@rule("TfIdfVectorizer", takes={Kind.PADDED}, since=9)
def tf_idf(call: Op) -> Value:
    """Counts words and runs of words of each row; padding does not count where it is no word of its own."""
    x = call.x
    if x.is_uniform or x.rank != 2 or x.axis != 0:
        refuse("its input is not a matrix with a row for each row")
    if x.kind is Kind.PADDED:
        words = call.strings("pool_strings")
        if not words:
            refuse("rows are padded to the longest of the batch")
        if words.may_hold(x.padding) if isinstance(words, LongList) else x.padding in words:
            refuse("what fills rows up may be in its vocabulary")
    places = call.attributes.get("ngram_indexes")
    width = max(call.integers("ngram_indexes")) + 1 if isinstance(places, tuple) and places else call.fresh()
    found = dataclasses.replace(x, kind=Kind.ROWS, padding="", dtype="float32")
    return found.moved([x.known_shape[0], width], 0)
