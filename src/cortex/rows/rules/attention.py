"""
Attention: queries meet keys of the same row.

onnxruntime finds a row's queries, keys and masks by the sizes of other operands: all sizes have to be proved to fit.
"""

from __future__ import annotations

from typing import Final

from cortex.rows.refusal import refuse
from cortex.rows.rules.registry import Op, Rounds, like, must_be_constant, must_have_rows_first, rule
from cortex.rows.sizes import Dim, divided, equal, times
from cortex.rows.values import Value

_MICROSOFT: Final = "com.microsoft"


def _must_be_same_rows(first: Value, *others: Value) -> None:
    """
    Raises:
        NotProved: rows are not dimension 0 of all, or not in the same order.
    """
    for value in (first, *others):
        must_have_rows_first(value)
        if value.layout != first.layout:
            refuse("rows meet in different layouts")


def _must_be(value: Value, *sizes: Dim | None) -> None:
    """
    Raises:
        NotProved: the dimensions after the rows are not of these sizes. None: any.
    """
    if value.rank != len(sizes) + 1:
        refuse(f"{value.rank} dimensions for {len(sizes) + 1}")
    for size, wanted in zip(value.known_shape[1:], sizes, strict=True):
        if wanted is None or size == wanted:
            continue
        if 1 in (size, wanted) or not equal(size, wanted):  # a 1 is meant to be stretched: not to be supposed
            refuse(f"a size of {size} where {wanted} is wanted")


def _must_mask(mask: Value | None, queries: Value, heads: Dim, steps: Dim, keys: Dim) -> None:
    """
    Raises:
        NotProved: what is added to products of queries and keys is neither one for all rows nor one for each.
    """
    if mask is None:
        return
    if mask.is_uniform:
        if mask.rank > 3 and mask.known_shape[0] != 1:
            refuse("a constant mask for each of several rows")
        return
    _must_be_same_rows(queries, mask)
    _must_be(mask, 1 if mask.rank > 1 and mask.known_shape[1] == 1 else heads, steps, keys)


def _width(size: Dim, heads: int) -> Dim:
    """How wide one of several heads is."""
    found = divided(size, heads)
    return found if found is not None else refuse(f"{size} features for {heads} heads")


@rule("Attention", rounds=Rounds.SUMS, since=23)
def attention(call: Op) -> Value:
    queries, keys, values, mask = call.value(0), call.value(1), call.value(2), call.optional(3)
    if len(call.given) > (3 if mask is None else 4):
        refuse("keys and values of before")
    _must_be_same_rows(queries, keys, values)
    if queries.rank == 3:
        heads, key_heads = call.integer("q_num_heads"), call.integer("kv_num_heads")
        _, steps, features = queries.known_shape
        _must_be(keys, None, times(_width(features, heads), key_heads))
        _must_be(values, keys.known_shape[1], None)
        _must_mask(mask, queries, heads, steps, keys.known_shape[1])
        width = times(_width(values.known_shape[2], key_heads), heads)
        return like(queries, [*queries.known_shape[:2], width], 0)
    _must_be(queries, None, None, None)
    _, all_heads, steps, width = queries.known_shape
    _must_be(keys, None, None, width)
    _must_be(values, keys.known_shape[1], keys.known_shape[2], None)
    _must_mask(mask, queries, all_heads, steps, keys.known_shape[2])
    return like(queries, [*queries.known_shape[:3], values.known_shape[3]], 0)


@rule("RotaryEmbedding", rounds=Rounds.SUMS, since=23)
def rotary_embedding(call: Op) -> Value:
    x, cosines, sines, places = call.value(0), call.value(1), call.value(2), call.optional(3)
    if x.rank == 3:
        steps, width = x.known_shape[1], _width(x.known_shape[2], call.integer("num_heads", 0))
    else:
        _must_be(x, None, None, None)
        steps, width = x.known_shape[2], x.known_shape[3]
    if places is not None:
        must_be_constant(cosines, sines)
        _must_be_same_rows(x, places)
        _must_be(places, steps)
        return x
    half = _width(call.integer("rotary_embedding_dim", 0) or width, 2)
    _must_be_same_rows(x, cosines, sines)
    _must_be(cosines, steps, half)
    _must_be(sines, steps, half)
    return x


# ---- com.microsoft: what onnxruntime's transformer optimiser makes ------------------------------------------------


@rule("MultiHeadAttention", domain=_MICROSOFT, rounds=Rounds.SUMS)
def multi_head_attention(call: Op) -> Value:
    queries, keys, values = call.value(0), call.value(1), call.value(2)
    bias, padding, added = call.optional(3), call.optional(4), call.optional(5)
    if any(value is not None for value in call.inputs[6:]):
        refuse("keys and values of before")
    must_be_constant(bias)
    _must_be_same_rows(queries, keys, values)
    heads = call.integer("num_heads")
    _must_be(queries, None, None)
    _, steps, features = queries.known_shape
    _width(features, heads)
    _must_be(keys, None, features)
    count = keys.known_shape[1]
    _must_be(values, count, None)
    _width(values.known_shape[2], heads)
    if padding is not None:
        _must_be_same_rows(queries, padding)
        _must_be(padding, count)
    _must_mask(added, queries, heads, steps, count)
    return like(queries, [*queries.known_shape[:2], values.known_shape[2]], 0)


@rule("Attention", domain=_MICROSOFT, rounds=Rounds.SUMS)
def projecting_attention(call: Op) -> Value:
    """Attention of a value to itself, with the products before that make queries, keys and values of it."""
    x, weights, mask, added = call.value(0), call.value(1), call.optional(3), call.optional(5)
    if call.optional(4) is not None or call.optional(6) is not None or call.integer("do_rotary", 0):
        refuse("keys and values of before, or rotated ones")
    must_be_constant(weights, call.optional(2))
    must_have_rows_first(x)
    _must_be(x, None, weights.known_shape[0])
    heads, steps = call.integer("num_heads"), x.known_shape[1]
    shares = call.optional_integers("qkv_hidden_sizes")
    features = _width(weights.known_shape[1], 3) if shares is None else shares[-1]
    _width(features, heads)
    if mask is not None:
        _must_be_same_rows(x, mask)
        _must_be(mask, *[steps] * min(mask.rank - 1, 2))  # how many steps count, or which ones, or for each which ones
    _must_mask(added, x, heads, steps, steps)
    return like(x, [*x.known_shape[:2], features], 0)


@rule("EmbedLayerNormalization", domain=_MICROSOFT, rounds=(Rounds.SUMS, Rounds.NOTHING, Rounds.SUMS))
def embed_layer_normalization(call: Op) -> list[Value]:
    """
    Words, places and segments as vectors, added up and normalised.

    Outputs: the vectors, how many words of each row the mask leaves, and the vectors before they are normalised.
    """
    words, segments, mask, places = call.value(0), call.optional(1), call.optional(7), call.optional(8)
    must_be_constant(*call.inputs[2:7])
    must_have_rows_first(words)
    _must_be(words, None)
    steps = words.known_shape[1]
    for value in (segments, mask, places):
        if value is not None:
            _must_be_same_rows(words, value)
            _must_be(value, steps)
    table = call.value(2)
    vectors = words.moved([*words.known_shape, table.known_shape[1]], 0).typed(table.dtype)
    return [vectors, words.moved(words.known_shape[:1], 0).typed("int32"), vectors]
