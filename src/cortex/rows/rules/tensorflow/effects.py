"""Operators of TensorFlow that do more than compute, and those that compute one thing out of all rows."""

from __future__ import annotations

from typing import Final

from cortex.rows.refusal import refuse
from cortex.rows.rules.registry import RULES, Op
from cortex.rows.rules.tensorflow.registry import DOMAIN, rule
from cortex.rows.values import Kind, Value

_ANY: Final = frozenset(Kind) - {Kind.MIXED}

CHECKS: Final = frozenset({"Assert", "NoOp"})
"""They have no output: whatever they are told, they let a run go on or end it."""

WRITES: Final = "it writes to what the model keeps from one request to the next"
RANDOM: Final = "random numbers"
_OUTSIDE: Final = "it acts on what is outside of the model"

_NOT_ONLY_COMPUTE: Final = (
    ("Assign", WRITES),
    ("BarrierInsert", WRITES),
    ("CountUpTo", WRITES),
    ("Destroy", WRITES),
    ("Enqueue", WRITES),
    ("InitializeTable", WRITES),
    ("LookupTableImport", WRITES),
    ("LookupTableInsert", WRITES),
    ("LookupTableRemove", WRITES),
    ("Queue", WRITES),
    ("ResourceApply", WRITES),
    ("ResourceScatter", WRITES),
    ("ResourceStridedSliceAssign", WRITES),
    ("ScatterAdd", WRITES),
    ("ScatterDiv", WRITES),
    ("ScatterMax", WRITES),
    ("ScatterMin", WRITES),
    ("ScatterMul", WRITES),
    ("ScatterNdAdd", WRITES),
    ("ScatterNdSub", WRITES),
    ("ScatterNdUpdate", WRITES),
    ("ScatterSub", WRITES),
    ("ScatterUpdate", WRITES),
    ("Stack", WRITES),
    ("Stage", WRITES),
    ("StridedSliceAssign", WRITES),
    ("Iterator", "it takes the next of a series"),
    ("EagerPyFunc", "it calls Python"),
    ("PyFunc", "it calls Python"),
    ("Placeholder", "the signature gives it no value"),
    ("Multinomial", RANDOM),
    ("ParameterizedTruncatedNormal", RANDOM),
    ("Random", RANDOM),
    ("Rng", RANDOM),
    ("StatefulRandom", RANDOM),
    ("StatefulStandardNormal", RANDOM),
    ("StatefulTruncatedNormal", RANDOM),
    ("StatefulUniform", RANDOM),
    ("StatelessMultinomial", RANDOM),
    ("StatelessRandom", RANDOM),
    ("StatelessSample", RANDOM),
    ("StatelessShuffle", RANDOM),
    ("StatelessTruncatedNormal", RANDOM),
    ("TruncatedNormal", RANDOM),
    ("Enter", "a loop of TensorFlow 1"),
    ("Exit", "a loop of TensorFlow 1"),
    ("LoopCond", "a loop of TensorFlow 1"),
    ("Merge", "a branch of TensorFlow 1"),
    ("NextIteration", "a loop of TensorFlow 1"),
    ("RefSwitch", "a branch of TensorFlow 1"),
    ("Switch", "a branch of TensorFlow 1"),
    ("TensorArray", "a list of TensorFlow 1"),
    ("Print", _OUTSIDE),
    ("ReadFile", _OUTSIDE),
    ("Restore", _OUTSIDE),
    ("Save", _OUTSIDE),
    ("ShardedFilename", _OUTSIDE),
    ("Timestamp", _OUTSIDE),
    ("WriteFile", _OUTSIDE),
)
"""By how their names begin; the first that fits."""


def more_than_computes(operator: str) -> str:
    """Why an operator may not run in a batch, whatever its inputs are; empty for those that have a rule."""
    if (DOMAIN, operator) in RULES or operator in CHECKS:
        return ""
    return next((why for start, why in _NOT_ONLY_COMPUTE if operator.startswith(start)), "no rule knows this operator")


MIXING: Final = {
    "Bincount": "counts over all rows",
    "CTCGreedyDecoder": "a list of what is in all rows",
    "CropAndResize": "boxes name rows",
    "DecodeAndCropJpeg": "a picture is no row",
    "DecodeBmp": "a picture is no row",
    "DecodeCSV": "no rule knows its columns",
    "DecodeGif": "a picture is no row",
    "DecodeImage": "a picture is no row",
    "DecodeJpeg": "a picture is no row",
    "DecodePng": "a picture is no row",
    "DecodeRaw": "its size depends on a text",
    "DecodeWav": "a recording is no row",
    "DynamicPartition": "drops rows",
    "DynamicStitch": "puts rows by their number",
    "ListDiff": "looks at all values",
    "NonMaxSuppression": "its size depends on all rows",
    "NonMaxSuppressionV2": "its size depends on all rows",
    "NonMaxSuppressionV3": "its size depends on all rows",
    "NonMaxSuppressionV4": "its size depends on all rows",
    "NonMaxSuppressionV5": "its size depends on all rows",
    "RaggedBincount": "rows of different length, which are one list",
    "RaggedGather": "rows of different length, which are one list",
    "RaggedRange": "rows of different length, which are one list",
    "RaggedTensorToSparse": "rows of different length, which are one list",
    "RaggedTensorToTensor": "padded to the longest row of the batch",
    "ScatterNd": "puts rows by their number",
    "SegmentMax": "rows by their number",
    "SegmentMean": "rows by their number",
    "SegmentMin": "rows by their number",
    "SegmentSum": "rows by their number",
    "SparseToDense": "puts rows by their number",
    "StringFormat": "one text out of all rows",
    "StringNGrams": "rows of different length, which are one list",
    "StringSplit": "splits all rows into one list",
    "StringSplitV2": "splits all rows into one list",
    "TensorListConcatV2": "joins along the rows",
    "TensorListElementShape": "a shape that may count the rows",
    "TensorScatterAdd": "puts rows by their number",
    "TensorScatterUpdate": "puts rows by their number",
    "UnicodeDecode": "rows of different length, which are one list",
    "UnicodeDecodeWithOffsets": "rows of different length, which are one list",
    "Unique": "looks at all values",
    "UniqueV2": "looks at all values",
    "UniqueWithCounts": "looks at all values",
    "UniqueWithCountsV2": "looks at all values",
    "UnsortedSegmentMax": "rows by their number",
    "UnsortedSegmentSum": "rows by their number",
    "Where": "its size depends on all rows",
}


@rule(*MIXING, takes=_ANY)
def mixing(call: Op) -> Value:
    refuse(MIXING[call.operator])
