"""
Stores small models of our own makers for `tests/rows/test_named_models.py`: packed, each below 50 KB.

    python bench/batching/store.py FOLDER   # with the models of all makers in it, those of PyTorch too

Of SavedModels only the graph is kept, which is all that a proof reads.
"""

from __future__ import annotations

import gzip
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

STORED: Final = Path(__file__).resolve().parent.parent.parent / "tests" / "rows" / "models"
MAX_BYTES: Final = 50_000

PATTERNS: Final = (
    *(f"torch-{name}.onnx" for name in ("*-script", "*-dynamo", "encoder-dynamo-dynamic", "convolutions-dynamo-qdq")),
    "handmade-*.onnx",
    *(
        f"sklearn-{name}.onnx"
        for name in ("logistic", "logistic-maps", "forest", "boosting", "isolation", "svc", "knn")
    ),
    *(f"sklearn-{name}.onnx" for name in ("mlp", "multi-output", "columns-logistic", "columns-forest", "text-*")),
    "lightgbm-*.onnx",
    "xgboost-*.onnx",
    "catboost-*.onnx",
    *(f"keras-{name}" for name in ("mlp.*", "cnn.*", "unet.*", "lstm.*", "lstm-mask.*", "lstm-lengths.*")),
    *(f"keras-{name}" for name in ("gru.*", "gru-mask.*", "bidirectional.*", "transformer.*", "gpt.*", "vit.*")),
    *(f"keras-{name}" for name in ("transformer-mask.*", "transformer-embedding-mask.*", "batch-max.*")),
    *(f"keras-{name}" for name in ("time-distributed.*", "time-distributed-free.*")),
    *(f"keras-{name}.onnx" for name in ("mlp-qdq", "cnn-qdq", "mlp-qoperator", "mlp-dynamic", "lstm-dynamic")),
    "tensorflow-*.tf",
)


def store(models: Path) -> None:
    for path in chosen(models):
        name, content = f"{path.name}.gz", graph_of(path)
        packed = gzip.compress(content, mtime=0)
        if len(packed) > MAX_BYTES:
            raise SystemExit(f"error: {name} has {len(packed)} bytes")
        (STORED / name).write_bytes(packed)


def chosen(models: Path) -> Iterator[Path]:
    for pattern in PATTERNS:
        yield from sorted(models.glob(pattern))


def graph_of(path: Path) -> bytes:
    return (path if path.is_file() else path / "saved_model.pb").read_bytes()


if __name__ == "__main__":
    STORED.mkdir(exist_ok=True)
    store(Path(sys.argv[1]))
