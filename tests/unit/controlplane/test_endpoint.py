"""The OpenAPI document of an api: it is one, and says of each sample what the replica will say."""

import jsonschema
import numpy as np
import orjson
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cortex.controlplane.endpoint import describe_endpoint, prediction_schema, sample_schema
from cortex.replica.tensors.conversion import Converter
from cortex.replica.tensors.mismatch import InputMismatch
from cortex.wire.operator import ApiStatus, Status
from cortex.wire.signature import Signature, TensorSpec

ROWS = Signature(
    (TensorSpec("features", "float32", ("N", 4)),),
    (TensorSpec("label", "int64", ("N",)), TensorSpec("scores", "float32", ("N", 3))),
)


def an_api(*, deployment="iris", name="a", spec=None, signature=ROWS):
    path = f"/{name}" if deployment == "default" else f"/{deployment}/{name}"
    return ApiStatus(
        deployment=deployment,
        name=name,
        status=Status.LIVE,
        endpoint=f"http://127.0.0.1:8880{path}",
        version="12345678",
        last_updated=None,
        spec=spec or {},
        signature=signature,
    )


def valid(schema, value):
    return jsonschema.Draft202012Validator(schema).is_valid(value)


def test_the_document_names_server_path_and_what_the_model_takes_and_gives():
    document = describe_endpoint(an_api(spec={"sample": [1, 2, 3, 4]}))
    assert document["servers"] == [{"url": "http://127.0.0.1:8880"}]
    (path,) = document["paths"]
    assert path == "/iris/a"
    post = document["paths"][path]["post"]
    body = post["requestBody"]["content"]["application/json"]
    assert body["example"] == [1, 2, 3, 4]
    assert valid(body["schema"], [[1, 2, 3, 4.5]])
    assert not valid(body["schema"], [[1, 2, 3]])
    answer = post["responses"]["200"]["content"]["application/json"]["schema"]
    assert valid(answer, [[2], [[0.1, 0.2, 0.7]]])
    assert not valid(answer, [2, [[0.1, 0.2, 0.7]]])
    assert {"400", "413", "415", "422", "500", "502", "503", "504"} <= post["responses"].keys()


def test_apis_of_the_default_deployment_have_a_path_of_one_part():
    document = describe_endpoint(an_api(deployment="default"))
    assert (document["servers"], list(document["paths"])) == ([{"url": "http://127.0.0.1:8880"}], ["/a"])


def test_with_a_handler_any_sample_and_any_answer_is_described():
    post = describe_endpoint(an_api(spec={"request_handler": "h.py"}))["paths"]["/iris/a"]["post"]
    assert post["requestBody"]["content"]["application/json"]["schema"] == {}
    assert "image/*" in post["requestBody"]["content"]
    assert post["responses"]["200"]["content"]["application/json"]["schema"] == {}
    assert "default" in post["responses"]


def test_an_api_whose_model_was_not_inspected_yet_is_described_too():
    post = describe_endpoint(an_api(signature=None))["paths"]["/iris/a"]["post"]
    assert post["requestBody"]["content"]["application/json"]["schema"] == {}


def test_outputs_by_name_may_come_without_their_batch():
    schema = prediction_schema(ROWS.outputs, by_name=True)
    assert valid(schema, {"label": [1], "scores": [0.1, 0.2, None]})
    assert valid(schema, {"label": [1, 2], "scores": [[0.1, 0.2, 0.7], [1, 0, 0]]})
    assert valid(schema, {"label": [], "scores": []})  # of no rows
    assert not valid(schema, {"label": [1]})


DTYPES = st.sampled_from(["float16", "float32", "float64", "bfloat16", "int8", "int64", "uint16", "bool", "string"])
SIZES = st.lists(st.sampled_from([1, 2, 3, "n", None]), max_size=3).filter(lambda dims: dims.count("n") <= 1)
"""Not with a name twice: that two sizes are the same JSON Schema has no words for."""
DIMS = SIZES.map(tuple) | st.none()
SPECS = st.builds(TensorSpec, name=st.just("x"), dtype=DTYPES, shape=DIMS, optional=st.booleans())
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-300, 300)
    | st.floats(-1e4, 1e4, allow_nan=False)
    | st.sampled_from(["a", 1e300, 2**40, {"b64": "YQ=="}, {"b64": 1}])
)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3), max_leaves=9)


@st.composite
def arrays(draw):
    """Lists of one shape, from no dimension to three."""
    shape = draw(st.lists(st.integers(0, 3), max_size=3).map(tuple))
    items = iter(draw(st.lists(SCALARS, min_size=27, max_size=27)))
    filled = np.empty(shape, object)
    for index in np.ndindex(*shape):
        filled[index] = next(items)
    return filled.tolist() if shape else next(items)


def shape_of(value):
    """None if the lists are ragged."""
    if not isinstance(value, list):
        return ()
    shapes = {shape_of(item) for item in value}
    if len(shapes) > 1 or None in shapes:
        return None
    return (len(value), *(shapes.pop() if shapes else ()))


@pytest.mark.slow
@given(SPECS, arrays() | VALUES, st.booleans())
@settings(max_examples=500, deadline=None)
def test_the_document_takes_what_the_replica_takes(spec, value, named):
    """But for ragged lists and for inputs of any shape, which JSON Schema has no words for."""
    value = orjson.loads(orjson.dumps({"x": value} if named else value))
    takes = valid(sample_schema((spec,)), value)
    try:
        Converter(Signature((spec,), ())).convert(value)
    except InputMismatch:
        inner = value["x"] if isinstance(value, dict) and "x" in value else value
        assume(shape_of(inner) is not None and spec.shape is not None)
        assert not takes
    else:
        assert takes


def test_several_inputs_are_an_object_of_which_the_optional_may_be_absent():
    schema = sample_schema((TensorSpec("a", "int64", ()), TensorSpec("b", "string", ("n",), optional=True)))
    assert valid(schema, {"a": 1})
    assert valid(schema, {"a": 1, "b": ["x"]})
    assert not valid(schema, {"a": 1, "b": ["x"], "more": None})
    assert not valid(schema, {"b": ["x"]})
    assert valid(schema, [1])  # for the only input that is needed
    two = sample_schema((TensorSpec("a", "int64", ()), TensorSpec("b", "string", ("n",))))
    assert not valid(two, [1])


@pytest.mark.parametrize("kind", ["sequence", "map"])
def test_what_json_schema_has_no_words_for_is_left_open(kind):
    spec = TensorSpec("x", "float32", (), kind=kind, key_dtype="int64" if kind == "map" else None)
    assert valid(sample_schema((spec,)), [[1.0], [2.0]])
