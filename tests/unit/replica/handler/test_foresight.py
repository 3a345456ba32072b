"""Tests of `cortex.replica.handler.foresight`: what is told of a handler's source, and what is left alone."""

import ast
import base64
import json
import textwrap

import numpy as np
import pytest

from cortex.replica.handler.foresight import advice_for, sure_failures
from cortex.wire.signature import Signature, TensorSpec

ARRAY = np.array([1, 2], np.int64)
OUTPUTS = (
    TensorSpec("scores", "float32", (None, 3)),
    TensorSpec("ids", "int64", (None, 1)),
    TensorSpec("text", "string", (None, 1)),
    TensorSpec("any", "float32", None),
)
TENSORFLOW = Signature(inputs=(), outputs=OUTPUTS, key="predict")
ONNX = Signature(
    inputs=(),
    outputs=(
        TensorSpec("label", "int64", (None,)),
        TensorSpec("probabilities", "float32", (), kind="sequence_of_maps", key_dtype="int64"),
    ),
)


def told(body: str, signature: Signature = TENSORFLOW):
    source = "import base64, json\n\n\ndef post_inference(prediction, metadata):\n" + textwrap.indent(body, "    ")
    ast.parse(source)
    return sure_failures(source, signature, file="h.py")


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ("return prediction['scores'].index(max(prediction['scores']))", "prediction['scores'].tolist().index(max("),
        ("s = prediction['scores']\nreturn s.index(max(s))", "s.tolist().index(max(s))"),
        ("prediction.get('scores').append(1)", "prediction.get('scores').tolist().append(1)"),
        ("return json.dumps(prediction)", "json.dumps({k: v.tolist() for k, v in prediction.items()})"),
        ("return json.dumps(prediction['ids'], indent=2)", "json.dumps(prediction['ids'].tolist(), indent=2)"),
        ("return json.dumps({'a': [prediction['ids']]})", "json.dumps({'a': [prediction['ids'].tolist()]})"),
        ("s = prediction['any']\nreturn json.dumps({'a': s})", "json.dumps({'a': s.tolist()})"),
        ("return base64.b64decode(prediction['text'][0]).decode()", "write `prediction['text'][0]`"),
        ("return prediction['ids'][0] == '2'", "prediction['ids'][0] == 2"),
        ("return prediction['ids'][0] != 'x'", "prediction['ids'][0] != …"),
        ("if prediction['scores']:\n    return 1", "prediction['scores'].any()"),
        ("return not prediction['scores']", "len(prediction['scores']) > 0"),
        ("while prediction['scores']: pass", "prediction['scores'].any()"),
        ("return 1 if prediction['scores'] else 2", "prediction['scores'].any()"),
        ("for x in [1]:\n    with open('a') as f:\n        json.dump(prediction, f)", "prediction.items()}, f)"),
    ],
)
def test_what_an_array_cannot_do_comes_with_the_line_to_write(body, line):
    (problem,) = told(body)
    assert (problem.reference, problem.where.partition(":")[0]) == ("prediction-is-an-array", "h.py")
    assert line in problem.hint


def test_the_line_is_named():
    (problem,) = told("x = 1\n\nreturn prediction['scores'].index(x)")
    assert problem.where == "h.py:7"
    assert problem.message == "prediction['scores'] is a numpy array, which has no `index`"


@pytest.mark.parametrize(
    "body",
    [
        "return labels[int(prediction['ids'][0])]",
        "return prediction['scores'].tolist().index(1)",
        "return prediction['scores'].argmax()",
        "prediction = {k: v.tolist() for k, v in prediction.items()}\nreturn json.dumps(prediction)",
        "s = prediction['scores']\ns = s.tolist()\nreturn s.index(1)",
        "return json.dumps(prediction, default=str)",
        "return json.dumps(prediction['scores'], cls=Encoder)",
        "return json.dumps(prediction, **options)",
        "return json.dumps(prediction['scores'].tolist())",
        "return json.dumps({'label': labels[prediction['ids'][0]]})",
        "try:\n    return prediction['scores'].index(1)\nexcept AttributeError:\n    pass",
        "if isinstance(prediction['scores'], list):\n    return prediction['scores'].index(1)",
        "if hasattr(prediction['scores'], 'index'):\n    return prediction['scores'].index(1)",
        "if prediction['ids']:\n    return 1",
        "if prediction['any']:\n    return 1",
        "if prediction['text'] == 'a':\n    return 1",
        "return prediction['text'][0] == 'a'",
        "return prediction['none'].index(1)",
        "return prediction.pop('scores')",
        "return metadata['x'].index(1)",
        "return base64.b64encode(prediction['text'][0])",
        "def inner(prediction):\n    return prediction['scores'].index(1)\nreturn inner({})",
    ],
)
def test_what_works_or_may_work_is_left_alone(body):
    assert told(body) == []


@pytest.mark.parametrize(
    ("body", "count"),
    [
        ("return prediction[0].index(1)", 1),
        ("return prediction['label'].index(1)", 1),
        ("return json.dumps(prediction)", 1),
        ("return json.dumps(prediction[1])", 0),
        ("return prediction[1].index(1)", 0),
        ("return prediction['probabilities'].pop()", 0),
        ("return prediction.index(1)", 0),
        ("return prediction[0][0] == '2'", 0),
    ],
)
def test_outputs_of_onnx_models_go_by_number_and_name_and_maps_are_lists(body, count):
    assert len(told(body, ONNX)) == count


@pytest.mark.parametrize(
    "source",
    [
        "",
        "def post_inference(",
        "from x import post_inference",
        "def post_inference(*all): all[0]['scores'].index(1)",
        "\0",
    ],
)
def test_sources_without_such_a_function_are_left_alone(source):
    assert sure_failures(source, TENSORFLOW, file="h.py") == []


@pytest.mark.parametrize(
    ("fail", "line"),
    [
        (lambda: ARRAY.index(1), "`.tolist()` before `.index`"),
        (lambda: json.dumps(ARRAY), "json.dumps(value.tolist())"),
        (lambda: json.dumps(ARRAY[0]), "json.dumps(value.tolist())"),
        (lambda: bool(ARRAY), "value.any()"),
        (lambda: ["a", "b"][ARRAY], "value[0]"),
        (lambda: int(ARRAY), "value[0]"),
        (lambda: {1: 2}[ARRAY], "value.item()"),
        (lambda: base64.b64decode("a"), "leave the decoding out"),
        (lambda: {}["a"], None),
        (lambda: "a".no, None),
    ],
)
def test_what_failed_for_an_array_in_the_place_of_a_list_comes_with_the_line_to_write(fail, line):
    with pytest.raises(Exception) as caught:  # whatever it is
        fail()
    advice = advice_for(caught.value)
    assert line in advice if line else advice == ""


def test_an_error_without_words_gets_no_advice():
    class Mute(TypeError):
        def __str__(self):
            raise KeyboardInterrupt

    assert advice_for(Mute()) == ""


def test_a_handler_that_was_told_works_with_the_line_that_it_was_told():
    prediction = {"scores": np.array([0.1, 0.7, 0.2]), "ids": np.array([1]), "text": np.array(["a"]), "any": np.ones(1)}
    for body in (
        "return prediction['scores'].index(0.7)",
        "return json.dumps(prediction)",
        "return json.dumps([prediction['ids']])",
    ):
        (problem,) = told(body)
        line = problem.hint.split("`")[-2]
        assert eval(line, {"json": json, "prediction": prediction}) is not None
