"""
Models of the kinds that people serve, by name: which are proved to be row by row, and what is in the way of the others.

Made by `bench/batching/makers` and packed by `bench/batching/store.py`. That the verdicts are true was found by asking
the models, alone and in batches: `bench/batching/models.py`, `docs/batching.md`.
"""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Final

import pytest

from cortex.rows import prove, prove_saved_model
from cortex.wire.batching import Proof, Rounding
from cortex.wire.onnx_proto import read_graph
from cortex.wire.saved_model_proto import read_graph as read_saved_model

STORED: Final = Path(__file__).parent / "models"

PROVED: Final[dict[Rounding, str]] = {
    "exact": """
        handmade-branch-on-length.onnx handmade-largest-three.onnx handmade-word-by-row-number.onnx
        tensorflow-labels.tf
    """,
    "rounding": """
        catboost-regressor.onnx handmade-heads-merged-with-rows.onnx handmade-loop-over-time.onnx
        keras-bidirectional.onnx keras-bidirectional.tf keras-cnn.onnx keras-cnn.tf keras-gpt.onnx keras-gpt.tf
        keras-gru-mask.onnx keras-gru-mask.tf keras-gru.onnx keras-gru.tf keras-lstm-lengths.onnx
        keras-lstm-lengths.tf keras-lstm-mask.onnx keras-lstm-mask.tf keras-lstm.onnx keras-lstm.tf
        keras-mlp.onnx keras-mlp.tf keras-time-distributed.onnx keras-time-distributed.tf
        keras-transformer-embedding-mask.onnx keras-transformer-embedding-mask.tf keras-transformer-mask.onnx
        keras-transformer-mask.tf keras-transformer.onnx keras-transformer.tf keras-unet.onnx keras-unet.tf
        keras-vit.onnx keras-vit.tf lightgbm-poisson.onnx lightgbm-regressor.onnx tensorflow-images.tf
        torch-attention-mask-dynamo.onnx torch-attention-mask-script.onnx torch-causal-dynamo.onnx
        torch-causal-script.onnx torch-convolutions-dynamo.onnx torch-convolutions-script.onnx
        torch-encoder-dynamo.onnx torch-encoder-mask-dynamo.onnx torch-encoder-mask-script.onnx
        torch-encoder-script.onnx torch-gru-dynamo.onnx torch-gru-lengths-script.onnx torch-gru-script.onnx
        torch-hf-bert-dynamo.onnx torch-hf-bert-script.onnx torch-hf-clip-text-dynamo.onnx
        torch-hf-clip-text-script.onnx torch-hf-distilbert-dynamo.onnx torch-hf-distilbert-script.onnx
        torch-hf-gpt2-dynamo.onnx torch-hf-gpt2-script.onnx torch-hf-llama-dynamo.onnx
        torch-hf-llama-script.onnx torch-hf-roberta-dynamo.onnx torch-hf-roberta-script.onnx
        torch-hf-t5-encoder-script.onnx torch-hf-vit-dynamo.onnx torch-hf-vit-script.onnx torch-lstm-dynamo.onnx
        torch-lstm-lengths-script.onnx torch-lstm-script.onnx torch-patches-dynamo.onnx
        torch-patches-script.onnx torch-points-dynamo.onnx torch-points-script.onnx torch-sound-dynamo.onnx
        torch-sound-script.onnx torch-unet-dynamo.onnx torch-unet-script.onnx torch-upscale-dynamo.onnx
        torch-upscale-script.onnx xgboost-regressor.onnx
    """,
    "labels": """
        catboost-binary.onnx catboost-classifier.onnx lightgbm-binary.onnx lightgbm-classifier.onnx
        sklearn-boosting.onnx sklearn-columns-forest.onnx sklearn-columns-logistic.onnx sklearn-forest.onnx
        sklearn-knn.onnx sklearn-logistic-maps.onnx sklearn-logistic.onnx sklearn-mlp.onnx sklearn-svc.onnx
        sklearn-text-characters.onnx sklearn-text-count.onnx sklearn-text-count-binary.onnx sklearn-text-stop-words.onnx
        sklearn-text-tfidf-bigrams.onnx sklearn-text-tfidf.onnx torch-classifier-dynamo.onnx
        torch-classifier-script.onnx xgboost-binary.onnx xgboost-classifier.onnx
    """,
    "steps": """
        keras-cnn-qdq.onnx keras-mlp-qdq.onnx keras-mlp-qoperator.onnx sklearn-isolation.onnx
        torch-convolutions-dynamo-qdq.onnx
    """,
}
"""Names of files, by what rounding may do to a row."""

REFUSED: Final = {
    "handmade-attention-among-rows.onnx": ("MatMul", "rows meet in different dimensions"),
    "handmade-batch-normalised-in-training.onnx": ("BatchNormalization", "normalises over the batch, as in training"),
    "handmade-branch-on-any-row.onnx": ("ReduceMax", "reduces over the rows"),
    "handmade-cut-to-the-longest.onnx": ("ReduceMax", "reduces over the rows"),
    "handmade-divided-by-rows.onnx": ("Div", "the number of rows used as data"),
    "handmade-early-stop.onnx": ("Loop", "reduces over the rows"),
    "handmade-heads-and-rows-swapped.onnx": ("Reshape", "[N, s1, 8] in the shape [s1, N, 8]: not provably whole rows"),
    "handmade-less-the-first-row.onnx": ("Gather", "chooses rows by their number"),
    "handmade-less-the-mean.onnx": ("ReduceMean", "reduces over the rows"),
    "handmade-noise.onnx": ("RandomNormalLike", "random numbers"),
    "handmade-points-first.onnx": ("ReduceMax", "reduces over the rows"),
    "handmade-running-sum-of-rows.onnx": ("CumSum", "works along the rows"),
    "handmade-softmax-over-rows.onnx": ("Softmax", "works along the rows"),
    "handmade-squeeze-without-axes.onnx": ("Squeeze", "drops each dimension of size 1, the rows too when there is one"),
    "handmade-tagger-lstm-time-first.onnx": ("LSTM", "rows are the steps, or the features"),
    "handmade-tagger-time-first.onnx": ("Conv", "rows are dimension 2, not 0"),
    "keras-batch-max.onnx": ("ReduceMax", "reduces over the rows"),
    "keras-batch-max.tf": ("Max", "reduces over the rows"),
    "keras-lstm-dynamic.onnx": ("DynamicQuantizeLSTM", "one scale for the whole tensor"),
    "keras-mlp-dynamic.onnx": ("DynamicQuantizeLinear", "one scale for the whole tensor"),
    "keras-time-distributed-free.onnx": ("Mul", "the number of rows used as data"),
    "keras-time-distributed-free.tf": ("While", "the number of rows used as data"),
    "sklearn-multi-output.onnx": ("", 'the output "probabilities" has no rows'),
    "tensorflow-counter.tf": ("AssignAddVariableOp", "it writes to what the model keeps from one request to the next"),
    "tensorflow-early-stop.tf": ("StatelessWhile", "reduces over the rows"),
    "tensorflow-ragged-dense.tf": ("Where", "its size depends on all rows"),
    "tensorflow-ragged-text.tf": ("StringSplitV2", "splits all rows into one list"),
    "tensorflow-random.tf": ("StatelessRandomGetKeyCounter", "random numbers"),
    "tensorflow-recorder.tf": ("AssignVariableOp", "it writes to what the model keeps from one request to the next"),
    "tensorflow-scale.tf": ("RealDiv", "the number of rows used as data"),
    "torch-averaged-dynamo.onnx": ("Div", "the number of rows used as data"),
    "torch-averaged-script.onnx": ("Div", "the number of rows used as data"),
    "torch-encoder-dynamo-dynamic.onnx": ("DynamicQuantizeLinear", "one scale for the whole tensor"),
    "torch-encoder-time-first-dynamo.onnx": ("MatMul", "rows meet in different dimensions"),
    "torch-encoder-time-first-script.onnx": ("Reshape", "rows are spread over dimensions"),
    "torch-one-cloud-dynamo.onnx": ("ReduceMax", "reduces over the rows"),
    "torch-one-cloud-script.onnx": ("ReduceMax", "reduces over the rows"),
    "torch-padded-dynamo.onnx": ("ReduceMax", "reduces over the rows"),
    "torch-padded-script.onnx": ("ReduceMax", "reduces over the rows"),
    "torch-squeezed-dynamo.onnx": ("Squeeze", "drops each dimension of size 1, the rows too when there is one"),
    "torch-squeezed-script.onnx": ("Squeeze", "drops each dimension of size 1, the rows too when there is one"),
    "torch-time-first-dynamo.onnx": ("Conv", "rows are dimension 2, not 0"),
    "torch-time-first-script.onnx": ("Conv", "rows are dimension 2, not 0"),
}
"""By name of the file: the kind of operator that is in the way first, and what the reason ends with."""


def proof_of(name: str, folder: Path) -> Proof:
    content = gzip.decompress((STORED / f"{name}.gz").read_bytes())
    if name.endswith(".tf"):
        (folder / "saved_model.pb").write_bytes(content)
        return prove_saved_model(read_saved_model(folder, None))
    (folder / "model.onnx").write_bytes(content)
    return prove(read_graph(folder / "model.onnx"))


@pytest.mark.parametrize(
    ("name", "rounding"), [(name, rounding) for rounding, names in PROVED.items() for name in names.split()]
)
def test_a_model_that_is_row_by_row_is_proved(name: str, rounding: Rounding, tmp_path: Path) -> None:
    proof = proof_of(name, tmp_path)
    assert (proof.proved, proof.rounding, proof.reason) == (True, rounding, "")


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_whose_rows_depend_on_each_other_is_refused_with_what_is_in_the_way(name: str, tmp_path: Path) -> None:
    proof = proof_of(name, tmp_path)
    operator, reason = REFUSED[name]
    assert not proof.proved
    assert proof.operator.partition(" ")[0] == operator
    assert proof.reason.endswith(reason)


def test_each_stored_model_has_a_verdict() -> None:
    named = [name for names in PROVED.values() for name in names.split()] + list(REFUSED)
    assert sorted(named) == sorted(path.stem for path in STORED.iterdir())
