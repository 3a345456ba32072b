from __future__ import annotations

import onnx
from cases import text_case
from minimising import smallest


def test_what_is_not_needed_is_taken_out() -> None:
    model = text_case(
        "",
        """g (float[N,4] x) => (float[N,4] y, float[N,4] z) {
            a = Relu(x) b = Softmax<axis=0>(a) c = Tanh(b) d = Exp(c) y = Neg(d) z = Abs(x) }""",
    ).model

    def has_softmax(smaller: onnx.ModelProto) -> bool:
        return any(node.op_type == "Softmax" for node in smaller.graph.node)

    found = smallest(model, has_softmax)

    assert [node.op_type for node in found.graph.node] == ["Softmax"]
    assert list(found.graph.node[0].input) == ["x"]
    assert [output.name for output in found.graph.output] == ["b"]


def test_what_is_needed_stays() -> None:
    model = text_case("", "g (float[N,4] x) => (float[N,4] y) { a = Relu(x) y = Tanh(a) }").model

    assert smallest(model, lambda smaller: len(smaller.graph.node) == 2) == model
