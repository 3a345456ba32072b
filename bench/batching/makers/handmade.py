"""
Models made node by node: the ways in which rows come to depend on one another, and patterns that only look like it.

    pip install onnx==1.23.2
    python bench/batching/makers/handmade.py FOLDER
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper, parser

HEADER = '<ir_version: 9, opset_import: ["": 18]>\n'
RANDOM = np.random.default_rng(7)


def weights(*shape: int) -> NDArray[np.float32]:
    return (RANDOM.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)


def integers(*values: int) -> NDArray[np.int64]:
    return np.array(values, np.int64)


ZERO, ONE = np.int64(0), np.int64(1)

MIXING: dict[str, tuple[str, Mapping[str, Any]]] = {
    # A word's label depends on its neighbours, and the words of one text are the first dimension.
    "tagger-time-first": (
        """tagger (int64[T] ids) => (int64[T] label) {
            words = Gather(embed, ids)
            channels = Transpose <perm = [1, 0]> (words)
            text = Unsqueeze(channels, zeros)
            seen = Conv <pads = [1, 1]> (text, kernel)
            back = Squeeze(seen, zeros)
            each = Transpose <perm = [1, 0]> (back)
            scores = MatMul(each, head)
            label = ArgMax <axis = 1, keepdims = 0> (scores)
        }""",
        {"embed": weights(50, 8), "kernel": weights(8, 8, 3), "head": weights(8, 4), "zeros": integers(0)},
    ),
    "tagger-lstm-time-first": (
        """tagger (float[T, 1, 6] x) => (float[T, 4] scores) {
            states, last, cell = LSTM <hidden_size = 4> (x, w, r)
            flat = Reshape(states, sizes)
            scores = MatMul(flat, head)
        }""",
        {"w": weights(1, 16, 6), "r": weights(1, 16, 4), "head": weights(4, 4), "sizes": integers(-1, 4)},
    ),
    # Each point of one object knows the object: a maximum over all points.
    "points-first": (
        """points (float[P, 3] points) => (float[P, 4] part) {
            each = MatMul(points, w)
            own = Relu(each)
            all = ReduceMax <keepdims = 1> (own, zeros)
            sizes = Shape(own)
            object = Expand(all, sizes)
            both = Concat <axis = 1> (own, object)
            part = MatMul(both, head)
        }""",
        {"w": weights(3, 8), "head": weights(16, 4), "zeros": integers(0)},
    ),
    # Turns until the largest of all rows is small.
    "early-stop": (
        """halving (float[N, 4] x) => (float[N, 4] y) {
            y = Loop (most, always, x) <body = turn (int64 i, bool go, float[N, 4] now) => (bool more, float[N, 4] next)
            {
                next = Mul(now, half)
                large = Abs(next)
                largest = ReduceMax <keepdims = 0> (large)
                more = Greater(largest, small)
            }>
        }""",
        {"most": np.int64(20), "always": np.bool_(True), "half": np.float32(0.5), "small": np.float32(0.1)},
    ),
    "squeeze-without-axes": (
        """squeezed (float[N, 4] x) => (float[M] y) {
            scores = MatMul(x, head)
            y = Squeeze(scores)
        }""",
        {"head": weights(4, 1)},
    ),
    "divided-by-rows": (
        """averaged (float[N, 4] x) => (float[N, 4] y) {
            sizes = Shape(x)
            rows = Gather <axis = 0> (sizes, zero)
            count = Cast <to = 1> (rows)
            y = Div(x, count)
        }""",
        {"zero": ZERO},
    ),
    "less-the-mean": (
        """centred (float[N, 4] x) => (float[N, 4] y) {
            mean = ReduceMean <keepdims = 1> (x, zeros)
            y = Sub(x, mean)
        }""",
        {"zeros": integers(0)},
    ),
    "less-the-first-row": (
        """relative (float[N, 4] x) => (float[N, 4] y) {
            first = Gather <axis = 0> (x, zeros)
            y = Sub(x, first)
        }""",
        {"zeros": integers(0)},
    ),
    "softmax-over-rows": (
        """share (float[N, 4] x) => (float[N, 4] y) { y = Softmax <axis = 0> (x) }""",
        {},
    ),
    "branch-on-any-row": (
        """either (float[N, 4] x) => (float[N, 4] y) {
            largest = ReduceMax <keepdims = 0> (x)
            is_large = Greater(largest, one)
            y = If (is_large) <
                then_branch = then () => (float[N, 4] negative) { negative = Neg(x) },
                else_branch = otherwise () => (float[N, 4] same) { same = Identity(x) }
            >
        }""",
        {"one": np.float32(1)},
    ),
    "cut-to-the-longest": (
        """cut (float[N, L] x, int64[N] lengths) => (float[N, 1] y) {
            longest = ReduceMax <keepdims = 1> (lengths)
            kept = Slice(x, zeros, longest, ones)
            y = ReduceMean <keepdims = 1> (kept, ones)
        }""",
        {"zeros": integers(0), "ones": integers(1)},
    ),
    "running-sum-of-rows": (
        """sums (float[N, 4] x) => (float[N, 4] y) { y = CumSum(x, zero) }""",
        {"zero": ZERO},
    ),
    "batch-normalised-in-training": (
        """training (float[N, 4] x) => (float[N, 4] y) {
            y, mean, variance = BatchNormalization <training_mode = 1> (x, scale, shift, start, spread)
        }""",
        {
            "scale": np.ones(4, np.float32),
            "shift": np.zeros(4, np.float32),
            "start": np.zeros(4, np.float32),
            "spread": np.ones(4, np.float32),
        },
    ),
    "attention-among-rows": (
        """among (float[N, 4] x) => (float[N, 4] y) {
            turned = Transpose <perm = [1, 0]> (x)
            near = MatMul(x, turned)
            share = Softmax <axis = 1> (near)
            y = MatMul(share, x)
        }""",
        {},
    ),
    "noise": (
        """noisy (float[N, 4] x) => (float[N, 4] y) {
            noise = RandomNormalLike <scale = 0.1> (x)
            y = Add(x, noise)
        }""",
        {},
    ),
    "heads-and-rows-swapped": (
        """swapped (float[N, L, 8] x) => (float[L, N, 8] y) {
            sizes = Shape(x)
            rows = Gather <axis = 0> (sizes, zeros)
            length = Gather <axis = 0> (sizes, ones)
            wanted = Concat <axis = 0> (length, rows, eight)
            y = Reshape(x, wanted)
        }""",
        {"zeros": integers(0), "ones": integers(1), "eight": integers(8)},
    ),
}
"""By name: a graph and its constants. In each an answer depends on the other rows, or on how many there are."""

ROWWISE: dict[str, tuple[str, Mapping[str, Any]]] = {
    "loop-over-time": (
        """recurrent (float[N, L, 4] x) => (float[N, 4] y) {
            sizes = Shape(x)
            length = Gather <axis = 0> (sizes, one)
            sums = ReduceSum <keepdims = 0> (x, ones)
            start = Mul(sums, none)
            y = Loop (length, always, start) <
                body = turn (int64 i, bool go, float[N, 4] now) => (bool more, float[N, 4] next) {
                seen = Gather <axis = 1> (x, i)
                moved = MatMul(now, w)
                both = Add(moved, seen)
                next = Tanh(both)
                more = Identity(go)
            }>
        }""",
        {"one": ONE, "ones": integers(1), "none": np.float32(0), "always": np.bool_(True), "w": weights(4, 4)},
    ),
    "branch-on-length": (
        """either (float[N, L] x) => (float[N, L] y) {
            sizes = Shape(x)
            length = Gather <axis = 0> (sizes, one)
            is_long = Greater(length, three)
            y = If (is_long) <
                then_branch = then () => (float[N, L] negative) { negative = Neg(x) },
                else_branch = otherwise () => (float[N, L] same) { same = Identity(x) }
            >
        }""",
        {"one": ONE, "three": np.int64(3)},
    ),
    "word-by-row-number": (
        """pooled (float[N, L, 4] x, int64[N, L] ids) => (float[N, 4] y) {
            sizes = Shape(x)
            rows = Gather <axis = 0> (sizes, zero)
            numbers = Range(zero, rows, one)
            places = ArgMax <axis = 1, keepdims = 0> (ids)
            a = Unsqueeze(numbers, last)
            b = Unsqueeze(places, last)
            both = Concat <axis = 1> (a, b)
            y = GatherND(x, both)
        }""",
        {"zero": ZERO, "one": ONE, "last": integers(1)},
    ),
    "heads-merged-with-rows": (
        """heads (float[N, L, 8] x) => (float[N, L, 8] y) {
            q = MatMul(x, w)
            sizes = Shape(x)
            rows = Gather <axis = 0> (sizes, zeros)
            length = Gather <axis = 0> (sizes, ones)
            four = Concat <axis = 0> (rows, length, twos, fours)
            split = Reshape(q, four)
            by_head = Transpose <perm = [0, 2, 1, 3]> (split)
            merged = Mul(rows, twos)
            three = Concat <axis = 0> (merged, length, fours)
            flat = Reshape(by_head, three)
            turned = Transpose <perm = [0, 2, 1]> (flat)
            near = MatMul(flat, turned)
            share = Softmax <axis = 2> (near)
            seen = MatMul(share, flat)
            again = Concat <axis = 0> (rows, twos, length, fours)
            apart = Reshape(seen, again)
            back = Transpose <perm = [0, 2, 1, 3]> (apart)
            whole = Concat <axis = 0> (rows, length, eights)
            y = Reshape(back, whole)
        }""",
        {
            "w": weights(8, 8),
            "zeros": integers(0),
            "ones": integers(1),
            "twos": integers(2),
            "fours": integers(4),
            "eights": integers(8),
        },
    ),
    "largest-three": (
        """top (float[N, 10] x) => (float[N, 3] value, int64[N, 3] place) {
            value, place = TopK <axis = 1> (x, threes)
        }""",
        {"threes": integers(3)},
    ),
}


def build(text: str, constants: Mapping[str, Any]) -> onnx.ModelProto:
    made = parser.parse_model(HEADER + text)
    made.graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items())
    onnx.checker.check_model(made)
    return made


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, (text, constants) in (MIXING | ROWWISE).items():
        onnx.save(build(text, constants), folder / f"handmade-{name}.onnx")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
