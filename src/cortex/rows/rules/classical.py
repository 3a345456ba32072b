"""`ai.onnx.ml`: trees, linear models, encoders; and text."""

from __future__ import annotations

import dataclasses
from typing import Final

from cortex.rows.refusal import refuse
from cortex.rows.rules.registry import Call, Rounds, rule
from cortex.rows.sizes import NUMBER_OF_ROWS, Dim
from cortex.rows.values import Kind, Value, items, uniform
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


def _scores(call: Call, width: Dim) -> Value:
    x = _matrix(call.x)
    return dataclasses.replace(x.moved([x.known_shape[0], width], 0), dtype="float32")


def _label(call: Call, texts: str) -> Value:
    x = _matrix(call.x)
    return dataclasses.replace(
        x.moved([x.known_shape[0]], 0), dtype="string" if call.attributes.get(texts) else "int64"
    )


def _classes(call: Call, numbers: str, texts: str) -> Dim:
    return call.length(numbers) or call.length(texts) or call.fresh()


@rule("TreeEnsembleClassifier", domain=_ML, rounds=(Rounds.ELECTS, Rounds.VOTES))
def tree_classifier(call: Call) -> list[Value]:
    width = _classes(call, "classlabels_int64s", "classlabels_strings")
    return [_label(call, "classlabels_strings"), _scores(call, width)]


@rule("LinearClassifier", domain=_ML, rounds=(Rounds.ELECTS, Rounds.SUMS))
def linear_classifier(call: Call) -> list[Value]:
    width = _classes(call, "classlabels_ints", "classlabels_strings")
    return [_label(call, "classlabels_strings"), _scores(call, width)]


@rule("SVMClassifier", domain=_ML, rounds=(Rounds.ELECTS, Rounds.SUMS))
def support_vector_classifier(call: Call) -> list[Value]:
    return [_label(call, "classlabels_strings"), _scores(call, call.fresh())]


@rule("TreeEnsembleRegressor", "TreeEnsemble", domain=_ML, rounds=Rounds.VOTES)
def tree_regressor(call: Call) -> Value:
    found = _scores(call, call.integer("n_targets", 1))
    return found.typed(call.x.dtype) if call.operator == "TreeEnsemble" else found


@rule("LinearRegressor", domain=_ML, rounds=Rounds.SUMS)
def linear_regressor(call: Call) -> Value:
    return _scores(call, call.integer("targets", 1))


@rule("SVMRegressor", domain=_ML, rounds=Rounds.SUMS)
def support_vector_regressor(call: Call) -> Value:
    return _scores(call, 1)


@rule("Normalizer", domain=_ML, rounds=Rounds.SUMS)
def normalizer(call: Call) -> Value:
    return _matrix(call.x).typed("float32")


@rule("Scaler", domain=_ML, rounds=Rounds.SUMS)
def scaler(call: Call) -> Value:
    return _matrix(call.x).typed("float32")


@rule("Imputer", domain=_ML)
def imputer(call: Call) -> Value:
    return _matrix(call.x)


@rule("Binarizer", domain=_ML, rounds=Rounds.CHOOSES)
def binarizer(call: Call) -> Value:
    return call.x


@rule("LabelEncoder", domain=_ML, rounds=Rounds.CHOOSES)
def label_encoder(call: Call) -> Value:
    return call.x.typed(_encoded_dtype(call))


def _encoded_dtype(call: Call) -> str:
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


@rule("CategoryMapper", domain=_ML, rounds=Rounds.CHOOSES)
def category_mapper(call: Call) -> Value:
    return call.x.typed("int64" if call.x.dtype == "string" else "string")


@rule("OneHotEncoder", domain=_ML, rounds=Rounds.CHOOSES)
def one_hot_encoder(call: Call) -> Value:
    x = call.x
    width = call.length("cats_int64s") or call.length("cats_strings") or call.fresh()
    if not x.is_rows:
        return uniform((*x.known_shape, width), "float32")
    return x.moved([*x.known_shape, width], x.axis).typed("float32")


@rule("FeatureVectorizer", domain=_ML)
def feature_vectorizer(call: Call) -> Value:
    matrices = [_matrix(value) for value in call.given]
    if any(value.layout != matrices[0].layout for value in matrices):
        refuse("rows meet in different layouts")
    return matrices[0].moved([matrices[0].known_shape[0], call.fresh()], 0).typed("float32")


@rule("ZipMap", domain=_ML)
def zip_map(call: Call) -> Value:
    """A list with a map a row. Also of a vector, where there is one class."""
    x = call.x
    if not x.is_rows or x.axis != 0 or x.layout != (1, 1) or x.known_shape[0] != NUMBER_OF_ROWS or x.rank != 2:
        refuse("its input is not a matrix with a row for each row")
    return items()


# ---- text -------------------------------------------------------------------------------------------------------


@rule("StringNormalizer", since=10)
def string_normalizer(call: Call) -> Value:
    """Of a vector: onnxruntime takes a matrix for one row of words."""
    if call.has("stopwords") and call.length("stopwords") != 0:
        refuse("drops stop words, so that rows move up")
    if call.x.is_rows and call.x.rank != 1:
        refuse("its input is not a vector of texts")
    return call.x


@rule("Tokenizer", domain=_MICROSOFT)
def tokenizer(call: Call) -> Value:
    """Words of each text, filled up to as many as the text of the batch has that has most."""
    x = call.x
    if not x.is_rows:
        refuse("its input is not rows")
    shape = (*x.known_shape, call.fresh())
    return dataclasses.replace(x.moved(shape, x.axis), kind=Kind.PADDED, padding=call.text("pad_value"), dtype="string")


@rule("TfIdfVectorizer", takes={Kind.PADDED}, since=9)
def tf_idf(call: Call) -> Value:
    """Counts words and runs of words of each row; padding does not count where it is no word of its own."""
    x = call.x
    if x.is_uniform:
        return uniform(dtype="float32")
    if x.rank != 2 or x.axis != 0:
        refuse("its input is not a matrix with a row for each row")
    if x.kind is Kind.PADDED:
        if not call.has("pool_strings"):
            refuse("rows are padded to the longest of the batch")
        words = call.strings("pool_strings")
        if words.may_hold(x.padding) if isinstance(words, LongList) else x.padding in words:
            refuse("what fills rows up may be in its vocabulary")
    shape = [x.known_shape[0], call.fresh()]
    return dataclasses.replace(x.moved(shape, 0), kind=Kind.ROWS, padding="", dtype="float32")
