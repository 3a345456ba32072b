"""
Models of scikit-learn, LightGBM, XGBoost and CatBoost, by the converters that their users take.

    pip install scikit-learn==1.9.1 pandas==3.1.1 skl2onnx==1.20.0 onnxmltools==1.16.0
    pip install lightgbm==4.7.0 xgboost-cpu==3.2.0 catboost==1.2.10
    python bench/batching/makers/classic.py FOLDER
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType, StringTensorType
from sklearn.base import is_classifier
from sklearn.feature_extraction.text import CountVectorizer

OPSETS = {"": 21, "ai.onnx.ml": 3}

TEXTS = np.array(
    [
        ["the cat sat on the mat"],
        ["a dog and a cat"],
        ["hello world"],
        ["the world of the dog"],
        ["what a day, a day!"],
        ["one two three four five six"],
        ["six five"],
        ["mat"],
    ]
)
KINDS = np.array([0, 0, 1, 1, 1, 0, 0, 1])


def numbers() -> tuple[Any, Any, Any]:
    from sklearn.datasets import make_classification

    x, y = make_classification(200, 8, n_informative=5, n_classes=3, random_state=0)
    return x.astype(np.float32), y, (x[:, 0] * 2 - x[:, 1] + y).astype(np.float32)


def scikit_learn() -> Iterator[tuple[str, onnx.ModelProto]]:
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.cluster import KMeans
    from sklearn.compose import ColumnTransformer, make_column_transformer
    from sklearn.decomposition import PCA, TruncatedSVD
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.ensemble import (
        AdaBoostClassifier,
        ExtraTreesRegressor,
        GradientBoostingClassifier,
        IsolationForest,
        RandomForestClassifier,
        VotingClassifier,
    )
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.feature_selection import SelectKBest
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LinearRegression, LogisticRegression, SGDClassifier
    from sklearn.mixture import GaussianMixture
    from sklearn.multioutput import MultiOutputClassifier
    from sklearn.naive_bayes import GaussianNB, MultinomialNB
    from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
    from sklearn.neural_network import MLPClassifier, MLPRegressor
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import (
        KBinsDiscretizer,
        Normalizer,
        OneHotEncoder,
        OrdinalEncoder,
        PolynomialFeatures,
        StandardScaler,
    )
    from sklearn.svm import SVC, SVR
    from sklearn.tree import DecisionTreeClassifier

    x, y, z = numbers()
    for name, model, target in (
        ("logistic", make_pipeline(StandardScaler(), LogisticRegression()), y),
        ("linear", LinearRegression(), z),
        ("sgd", SGDClassifier(loss="modified_huber", random_state=0), y),
        ("tree", DecisionTreeClassifier(max_depth=4, random_state=0), y),
        ("forest", RandomForestClassifier(n_estimators=6, max_depth=4, random_state=0), y),
        ("extra-trees", ExtraTreesRegressor(n_estimators=6, max_depth=4, random_state=0), z),
        ("boosting", GradientBoostingClassifier(n_estimators=6, random_state=0), y),
        ("adaboost", AdaBoostClassifier(n_estimators=4, random_state=0), y),
        ("isolation", IsolationForest(n_estimators=6, max_samples=32, random_state=0), None),
        ("svc", make_pipeline(StandardScaler(), SVC(probability=True, random_state=0)), y),
        ("svr", SVR(), z),
        ("knn", KNeighborsClassifier(3), y),
        ("knn-regressor", KNeighborsRegressor(3, weights="distance"), z),
        ("mlp", MLPClassifier(hidden_layer_sizes=(12, 6), max_iter=40, random_state=0), y),
        ("mlp-regressor", make_pipeline(PCA(4), MLPRegressor(hidden_layer_sizes=(8,), max_iter=40, random_state=0)), z),
        ("naive-bayes", GaussianNB(), y),
        ("lda", LinearDiscriminantAnalysis(), y),
        ("kmeans", KMeans(3, n_init=1, random_state=0), None),
        ("mixture", GaussianMixture(3, reg_covar=1e-2, random_state=0), None),
        ("gaussian-process", GaussianProcessRegressor(), z),
        ("calibrated", CalibratedClassifierCV(LogisticRegression(), cv=3), y),
        ("polynomial", make_pipeline(PolynomialFeatures(2), SelectKBest(k=10), LogisticRegression(max_iter=200)), y),
        ("bins", make_pipeline(KBinsDiscretizer(3, encode="ordinal"), LogisticRegression()), y),
        ("normalised", make_pipeline(Normalizer(), LogisticRegression()), y),
        (
            "voting",
            VotingClassifier(
                [("a", LogisticRegression()), ("b", DecisionTreeClassifier(max_depth=3, random_state=0))],
                voting="soft",
                flatten_transform=False,
            ),
            y,
        ),
        ("multi-output", MultiOutputClassifier(LogisticRegression()), np.stack([y, y == 1], 1)),
    ):
        try:
            yield name, to_onnx(model.fit(x, target), x[:1], target_opset=OPSETS, options=without_maps(model))
        except Exception as error:
            print(f"sklearn-{name}: {type(error).__name__}: {str(error)[:200]}", file=sys.stderr)
    # As it comes by default: a list of maps from label to probability.
    yield "logistic-maps", to_onnx(LogisticRegression().fit(x, y), x[:1], target_opset=OPSETS)
    yield (
        "float64",
        to_onnx(
            make_pipeline(StandardScaler(), LinearRegression()).fit(x.astype(float), z.astype(float)),
            x[:1].astype(float),
            target_opset=OPSETS,
        ),
    )

    for name, model in (
        ("tfidf", make_pipeline(TfidfVectorizer(), LogisticRegression())),
        ("tfidf-bigrams", make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression())),
        ("count", make_pipeline(CountVectorizer(), MultinomialNB())),
        (
            "count-binary",
            make_pipeline(CountVectorizer(binary=True, lowercase=False), TruncatedSVD(3), KMeans(2, n_init=1)),
        ),
        ("stop-words", make_pipeline(TfidfVectorizer(stop_words=["the", "a"]), LogisticRegression())),
        ("characters", make_pipeline(CountVectorizer(analyzer="char", ngram_range=(1, 2)), LogisticRegression())),
    ):
        fitted = model.fit(TEXTS.ravel(), KINDS)
        try:
            made = to_onnx(
                fitted,
                initial_types=[("text", StringTensorType([None, 1]))],
                target_opset=OPSETS,
                options=without_maps(model),
            )
        except Exception as error:
            print(f"sklearn-text-{name}: {type(error).__name__}: {str(error)[:200]}", file=sys.stderr)
            continue
        yield f"text-{name}", made

    import pandas

    table = pandas.DataFrame(
        {
            "age": [22.0, 38, None, 35, 28, 54, 2, 27],
            "fare": [7.2, 71.3, 7.9, 53.1, 8.0, 51.9, 21.1, 11.1],
            "sex": ["m", "f", "f", "f", "m", "m", "m", "f"],
            "port": ["S", "C", "S", "S", "Q", "S", "S", "C"],
        }
    )
    columns = ColumnTransformer(
        [
            ("numbers", make_pipeline(SimpleImputer(), StandardScaler()), ["age", "fare"]),
            ("kinds", OneHotEncoder(handle_unknown="ignore"), ["sex", "port"]),
        ]
    )
    types = [
        (name, FloatTensorType([None, 1]) if name in ("age", "fare") else StringTensorType([None, 1])) for name in table
    ]
    for name, head in (
        ("logistic", LogisticRegression()),
        ("forest", RandomForestClassifier(n_estimators=5, max_depth=3, random_state=0)),
    ):
        fitted = make_pipeline(columns, head).fit(table, KINDS)
        yield f"columns-{name}", to_onnx(fitted, initial_types=types, target_opset=OPSETS, options=without_maps(fitted))
    ordinal = make_column_transformer((OrdinalEncoder(), ["sex", "port"]), (SimpleImputer(), ["age", "fare"]))
    fitted = make_pipeline(ordinal, DecisionTreeClassifier(max_depth=3, random_state=0)).fit(table, KINDS)
    yield "columns-ordinal", to_onnx(fitted, initial_types=types, target_opset=OPSETS, options=without_maps(fitted))


def without_maps(model: Any) -> dict[int, dict[str, Any]]:
    """Options: probabilities as an array; text in the locale that every machine has, where the default needs en_US."""
    options: dict[int, dict[str, Any]] = {id(model): {"zipmap": False}} if is_classifier(model) else {}
    for _, step in getattr(model, "steps", ()):
        if isinstance(step, CountVectorizer):
            options[id(step)] = {"locale": "C"}
    return options


def lightgbm() -> Iterator[tuple[str, onnx.ModelProto]]:
    import lightgbm
    from onnxmltools import convert_lightgbm
    from onnxmltools.convert.common.data_types import FloatTensorType as Floats

    x, y, z = numbers()
    settings = {"n_estimators": 6, "num_leaves": 8, "verbose": -1}
    for name, model, target in (
        ("classifier", lightgbm.LGBMClassifier(**settings), y),
        ("binary", lightgbm.LGBMClassifier(**settings), (y == 1).astype(int)),
        ("regressor", lightgbm.LGBMRegressor(**settings), z),
        ("poisson", lightgbm.LGBMRegressor(objective="poisson", **settings), np.abs(z)),
    ):
        made = convert_lightgbm(
            model.fit(x, target), initial_types=[("x", Floats([None, 8]))], target_opset=15, zipmap=False
        )
        yield name, made


def xgboost() -> Iterator[tuple[str, onnx.ModelProto]]:
    import xgboost
    from onnxmltools import convert_xgboost
    from onnxmltools.convert.common.data_types import FloatTensorType as Floats

    x, y, z = numbers()
    for name, model, target in (
        ("classifier", xgboost.XGBClassifier(n_estimators=6, max_depth=3, base_score=0.5), y),
        ("binary", xgboost.XGBClassifier(n_estimators=6, max_depth=3, base_score=0.5), (y == 1).astype(int)),
        ("regressor", xgboost.XGBRegressor(n_estimators=6, max_depth=3, base_score=0.5), z),
    ):
        yield name, convert_xgboost(model.fit(x, target), initial_types=[("x", Floats([None, 8]))], target_opset=15)


def catboost(folder: Path) -> Iterator[tuple[str, onnx.ModelProto]]:
    import catboost

    x, y, z = numbers()
    settings = {"iterations": 6, "depth": 3, "verbose": False, "allow_writing_files": False}
    for name, model, target in (
        ("classifier", catboost.CatBoostClassifier(**settings), y),
        ("binary", catboost.CatBoostClassifier(**settings), (y == 1).astype(int)),
        ("regressor", catboost.CatBoostRegressor(**settings), z),
    ):
        path = folder / "catboost.tmp"
        model.fit(x, target).save_model(str(path), format="onnx")
        made = onnx.load(path)
        path.unlink()
        yield name, made


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore")
    for library, models in (
        ("sklearn", scikit_learn()),
        ("lightgbm", lightgbm()),
        ("xgboost", xgboost()),
        ("catboost", catboost(folder)),
    ):
        while True:
            try:
                name, made = next(models)
            except StopIteration:
                break
            except Exception as error:
                print(f"{library}: {type(error).__name__}: {str(error)[:300]}", file=sys.stderr)
                break
            onnx.save(made, folder / f"{library}-{name}.onnx")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
