"""How rules of TensorFlow's operators are kept: with those of ONNX, under a domain of their own."""

from __future__ import annotations

from functools import partial
from typing import Final

from cortex.rows.rules import registry

DOMAIN: Final = "tensorflow"

rule = partial(registry.rule, domain=DOMAIN)
"""As `registry.rule`."""

OUTPUTS: Final[dict[str, tuple[tuple[str, str], ...]]] = {
    "Case": (("output", "Tout"),),
    "CombinedNonMaxSuppression": (
        ("nmsed_boxes", ""),
        ("nmsed_scores", ""),
        ("nmsed_classes", ""),
        ("valid_detections", ""),
    ),
    "CudnnRNN": (("output", ""), ("output_h", ""), ("output_c", ""), ("reserve_space", "")),
    "CudnnRNNV2": (
        ("output", ""),
        ("output_h", ""),
        ("output_c", ""),
        ("reserve_space", ""),
        ("host_reserved", ""),
    ),
    "CudnnRNNV3": (
        ("output", ""),
        ("output_h", ""),
        ("output_c", ""),
        ("reserve_space", ""),
        ("host_reserved", ""),
    ),
    "FusedBatchNorm": (
        ("y", ""),
        ("batch_mean", ""),
        ("batch_variance", ""),
        ("reserve_space_1", ""),
        ("reserve_space_2", ""),
    ),
    "FusedBatchNormV2": (
        ("y", ""),
        ("batch_mean", ""),
        ("batch_variance", ""),
        ("reserve_space_1", ""),
        ("reserve_space_2", ""),
    ),
    "FusedBatchNormV3": (
        ("y", ""),
        ("batch_mean", ""),
        ("batch_variance", ""),
        ("reserve_space_1", ""),
        ("reserve_space_2", ""),
        ("reserve_space_3", ""),
    ),
    "IdentityN": (("output", "T"),),
    "If": (("output", "Tout"),),
    "LookupTableExportV2": (("keys", ""), ("values", "")),
    "MaxPoolWithArgmax": (("output", ""), ("argmax", "")),
    "ParseExample": (
        ("sparse_indices", "Nsparse"),
        ("sparse_values", "sparse_types"),
        ("sparse_shapes", "Nsparse"),
        ("dense_values", "Tdense"),
    ),
    "ParseExampleV2": (
        ("sparse_indices", "num_sparse"),
        ("sparse_values", "sparse_types"),
        ("sparse_shapes", "num_sparse"),
        ("dense_values", "Tdense"),
        ("ragged_values", "ragged_value_types"),
        ("ragged_row_splits", "ragged_split_types"),
    ),
    "PartitionedCall": (("output", "Tout"),),
    "ShapeN": (("output", "N"),),
    "Split": (("output", "num_split"),),
    "SplitV": (("output", "num_split"),),
    "StatefulPartitionedCall": (("output", "Tout"),),
    "StatelessCase": (("output", "Tout"),),
    "StatelessIf": (("output", "Tout"),),
    "StatelessWhile": (("output", "T"),),
    "TensorListPopBack": (("output_handle", ""), ("tensor", "")),
    "TopK": (("values", ""), ("indices", "")),
    "TopKV2": (("values", ""), ("indices", "")),
    "Unpack": (("output", "num"),),
    "While": (("output", "T"),),
}
"""
Outputs of operators that may have several: name, and the attribute that says how many are of that name, by its number
or by its length; one if there is none. Any other operator of a rule has one output, or none.

Source: TensorFlow's `OpDef`s, which a test compares with this.
"""
