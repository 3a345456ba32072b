"""Operators that mix rows, or whose result differs each time, with the reason."""

from __future__ import annotations

from typing import Final

from cortex.rows.refusal import refuse
from cortex.rows.rules.registry import Op, rule
from cortex.rows.values import Value

_RANDOM: Final = {
    "Bernoulli": "random numbers",
    "Multinomial": "random numbers",
    "RandomNormal": "random numbers",
    "RandomNormalLike": "random numbers",
    "RandomUniform": "random numbers",
    "RandomUniformLike": "random numbers",
}
_MIXING: Final = {
    "Compress": "drops rows",
    "Det": "a determinant, of which no rule knows the rows",
    "DynamicQuantizeLinear": "one scale for the whole tensor",
    "MaxRoiPool": "regions name rows",
    "MaxUnpool": "indices count over the whole tensor",
    "MeanVarianceNormalization": "normalises over the batch",
    "NegativeLogLikelihoodLoss": "reduces over the rows",
    "NonMaxSuppression": "its size depends on all rows",
    "NonZero": "its size depends on all rows",
    "RoiAlign": "regions name rows",
    "SoftmaxCrossEntropyLoss": "reduces over the rows",
    "StringSplit": "padded to the longest row",
    "Unique": "looks at all values",
}
_MIXING_MICROSOFT: Final = {
    "BeamSearch": "stops when every row has ended",
    "DynamicQuantizeLSTM": "one scale for the whole tensor",
    "DynamicQuantizeMatMul": "one scale for the whole tensor",
    "GreedySearch": "stops when every row has ended",
    "Sampling": "random numbers",
}


def _random(call: Op) -> Value:
    refuse(_RANDOM[call.operator])


def _mixing(call: Op) -> Value:
    refuse((_MIXING_MICROSOFT if call.domain else _MIXING)[call.operator])


rule(*_RANDOM, when_uniform=False)(_random)
rule(*_MIXING)(_mixing)
rule(*_MIXING_MICROSOFT, domain="com.microsoft", when_uniform=False)(_mixing)
