"""
What every backend promises, run on each of them.

To add one, write a class with the methods of `OnnxModels` and list it in `KITS`.
"""

import re
import threading
from collections.abc import Mapping

import numpy as np
import orjson
import pytest

from cortex.replica.backends import base
from cortex.replica.backends.base import InferenceFailed, ModelError
from cortex.replica.backends.made_up_feeds import accepted_feeds
from cortex.replica.bodies.results import encode
from cortex.replica.inspection.trial import try_rows
from cortex.replica.tensors.conversion import Converter


class OnnxModels:
    """Builds each model that the suite asks for, as a path to load, with the onnx package."""

    model_format = "onnx"
    needs = None

    def __init__(self, folder):
        self.folder = folder

    def doubling(self):
        """x: float32 [free, 3] → y = 2x, same shape."""
        return self._save([("Add", ["x", "x"], ["y"], {})], {"x": ("FLOAT", ["N", 3])}, {"y": ("FLOAT", ["N", 3])})

    def normalising(self):
        """x: float32 [free, 3] → y = softmax over all rows."""
        nodes = [("Softmax", ["x"], ["y"], {"axis": 0})]
        return self._save(nodes, {"x": ("FLOAT", ["N", 3])}, {"y": ("FLOAT", ["N", 3])})

    def named_columns(self):
        """age: float32 [free, 1] and city: string [free, 1] → older = age + age, same_city = city."""
        nodes = [("Add", ["age", "age"], ["older"], {}), ("Identity", ["city"], ["same_city"], {})]
        columns = {"age": ("FLOAT", ["N", 1]), "city": ("STRING", ["N", 1])}
        return self._save(nodes, columns, {"older": ("FLOAT", ["N", 1]), "same_city": ("STRING", ["N", 1])})

    def failing(self):
        """x: float32 [free, 3] → fails unless there are exactly 2 rows."""
        from onnx import numpy_helper

        shape = numpy_helper.from_array(np.array([3, 2]), "shape")
        nodes = [("Reshape", ["x", "shape"], ["y"], {})]
        return self._save(nodes, {"x": ("FLOAT", ["N", 3])}, {"y": ("FLOAT", [3, 2])}, initializer=[shape])

    def unreadable(self):
        """A path of this format's kind with nonsense in it."""
        path = self.folder / "nonsense.onnx"
        path.write_text("nonsense")
        return str(path)

    def _save(self, nodes, inputs, outputs, **graph):
        from onnx import TensorProto, helper, save

        def values(named):
            return [helper.make_tensor_value_info(n, getattr(TensorProto, t), s) for n, (t, s) in named.items()]

        protos = [helper.make_node(*node[:3], **node[3]) for node in nodes]
        made = helper.make_graph(protos, "g", values(inputs), values(outputs), **graph)
        path = self.folder / f"{len(list(self.folder.iterdir()))}.onnx"
        save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
        return str(path)


class TensorFlowModels:
    """The same models as SavedModels, as TensorFlow 2 exports them."""

    model_format = "tensorflow"
    needs = "tensorflow"

    def __init__(self, folder):
        self.folder = folder

    def doubling(self):
        return self._save(lambda x: {"y": x + x}, x=("float32", [None, 3]))

    def normalising(self):
        import tensorflow as tf

        return self._save(lambda x: {"y": tf.nn.softmax(x, axis=0)}, x=("float32", [None, 3]))

    def named_columns(self):
        import tensorflow as tf

        columns = {"age": ("float32", [None, 1]), "city": ("string", [None, 1])}
        return self._save(lambda age, city: {"older": age + age, "same_city": tf.identity(city)}, **columns)

    def failing(self):
        import tensorflow as tf

        return self._save(lambda x: {"y": tf.reshape(x, [3, 2])}, x=("float32", [None, 3]))

    def unreadable(self):
        path = self.folder / "nonsense"
        path.mkdir()
        (path / "saved_model.pb").write_text("nonsense")
        return str(path)

    def _save(self, function, **inputs):
        import tensorflow as tf

        path, module = str(self.folder / str(len(list(self.folder.iterdir())))), tf.Module()
        specs = [tf.TensorSpec(shape, dtype, name) for name, (dtype, shape) in inputs.items()]
        module.function = tf.function(function, input_signature=specs)
        tf.saved_model.save(module, path, signatures={"serving_default": module.function})
        return path


KITS = [OnnxModels, pytest.param(TensorFlowModels, marks=pytest.mark.takes("tensorflow"))]


@pytest.fixture(params=KITS, ids=lambda kit: kit.model_format)
def kit(request, tmp_path):
    if request.param.needs is not None:
        request.getfixturevalue(request.param.needs)  # skips where it is not installed
    return request.param(tmp_path)


@pytest.fixture
def load(kit):
    opened = []

    def load(name):
        backend = base.load(kit.model_format, getattr(kit, name)(), threads=1)
        opened.append(backend)
        return backend

    yield load
    for backend in opened:
        backend.close()


def feeds(backend, sample):
    return Converter(backend.signature, takes_bytes=backend.takes_bytes).convert(sample)


def answer(backend, sample):
    """What an api without a handler answers."""
    given = feeds(backend, sample)
    return orjson.loads(encode(backend.plain(backend.present(backend.run(given), given))))


def tried(backend, rounding):
    """What an inspection's trial shows; no time passes."""
    return try_rows(backend, rounding, sample=None, clock_s=lambda: 0.0)


def test_the_signature_says_names_types_and_shapes(load):
    signature = load("named_columns").signature
    assert {spec.name: spec.dtype for spec in signature.inputs} == {"age": "float32", "city": "string"}
    assert {spec.name: spec.dtype for spec in signature.outputs} == {"older": "float32", "same_city": "string"}
    (age,) = (spec for spec in signature.inputs if spec.name == "age")
    assert age.shape is not None
    assert not isinstance(age.shape[0], int)
    assert age.shape[1:] == (1,)


def test_outputs_come_in_model_order_as_arrays(load):
    backend = load("named_columns")
    outputs = backend.run(feeds(backend, {"age": 1.5, "city": "Zürich"}))
    by_name = dict(zip((spec.name for spec in backend.signature.outputs), outputs, strict=True))
    assert by_name["older"].tolist() == [[3.0]]
    assert by_name["older"].dtype == np.float32
    assert by_name["same_city"].tolist() == [["Zürich"]]


def test_a_prediction_is_reached_by_output_name_and_written_as_json(load):
    backend = load("named_columns")
    given = feeds(backend, {"age": [[1], [2]], "city": [["a"], ["b"]]})
    prediction = backend.present(backend.run(given), given)
    assert np.asarray(prediction["older"]).tolist() == [[2], [4]]
    assert np.asarray(prediction["same_city"]).tolist() == [["a"], ["b"]]
    if isinstance(prediction, Mapping):
        assert set(prediction) == {"older", "same_city"}
    assert orjson.loads(encode(backend.plain(prediction)))


def test_rows_in_are_rows_out(load):
    backend = load("doubling")
    for rows in (1, 2, 7):
        (output,) = backend.run({"x": np.ones((rows, 3), np.float32)})
        assert output.tolist() == [[2.0] * 3] * rows


def test_read_only_and_strided_arrays_are_taken(load):
    backend = load("doubling")
    frozen = np.frombuffer(np.ones(3, np.float32).tobytes(), np.float32).reshape(1, 3)
    strided = np.ones((2, 6), np.float32)[:, ::2]
    assert backend.run({"x": frozen})[0].tolist() == [[2.0] * 3]
    assert backend.run({"x": strided})[0].tolist() == [[2.0] * 3] * 2


def test_answers_do_not_change_when_the_next_request_runs(load):
    backend = load("doubling")
    first = backend.run({"x": np.ones((1, 3), np.float32)})[0]
    backend.run({"x": np.zeros((1, 3), np.float32)})
    assert first.tolist() == [[2.0] * 3]


def test_metadata_is_there_for_handlers(load):
    backend = load("doubling")
    assert backend.metadata_inputs is not None
    assert backend.metadata_outputs is not None


def test_the_runtime_is_named_with_version_device_and_threads(kit, load):
    library = {"onnx": "onnxruntime", "tensorflow": "tensorflow"}[kit.model_format]
    assert re.fullmatch(rf"{library} \d+\.\d+\.\S+, cpu, 1 thread", load("doubling").runtime)
    backend = base.load(kit.model_format, kit.doubling(), threads=2)
    assert backend.runtime.endswith(", cpu, 2 threads")
    backend.close()


def test_rows_that_do_not_depend_on_each_other_agree_in_a_trial(load):
    for name in ("doubling", "named_columns"):
        backend = load(name)
        found = tried(backend, "exact")
        assert found.disagreement is None
        assert found.rows > 8
        assert found.runtime == backend.runtime


def test_rows_that_depend_on_each_other_disagree_in_a_trial(load):
    found = tried(load("normalising"), "rounding").disagreement
    assert found is not None
    assert found.output == "y"
    assert found.difference > found.tolerance


def test_a_model_that_takes_nothing_made_up_is_not_tried(load):
    found = tried(load("failing"), "rounding")
    assert (found.rows, found.disagreement) == (0, None)


def test_a_failing_run_is_one_readable_line_and_the_next_run_works(load):
    backend = load("failing")
    with pytest.raises(InferenceFailed) as caught:
        backend.run({"x": np.ones((1, 3), np.float32)})
    assert caught.value.reason
    assert "\n" not in str(caught.value)
    assert np.asarray(backend.run({"x": np.ones((2, 3), np.float32)})[0]).shape == (3, 2)


def test_a_made_up_input_is_accepted(load):
    backend = load("named_columns")
    made_up = accepted_feeds(backend)
    assert made_up is not None
    assert made_up.keys() == {"age", "city"}
    assert accepted_feeds(load("failing")) is None


def test_threads_may_run_at_once(load):
    backend = load("doubling")
    wrong = []

    def ask(number):
        for _ in range(20):
            if backend.run({"x": np.full((1, 3), number, np.float32)})[0].tolist() != [[2.0 * number] * 3]:
                wrong.append(number)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_closing_twice_is_harmless_and_running_afterwards_fails_cleanly(load):
    backend = load("doubling")
    backend.close()
    backend.close()
    with pytest.raises(InferenceFailed):
        backend.run({"x": np.ones((1, 3), np.float32)})


def test_what_cannot_be_read_is_a_model_error(kit):
    with pytest.raises(ModelError) as caught:
        base.load(kit.model_format, kit.unreadable())
    assert caught.value.problem().reference == caught.value.reference


def test_json_in_json_out(load):
    found = answer(load("doubling"), [1, 2, 3])
    (output,) = found.values() if isinstance(found, dict) else found
    assert np.ravel(output).tolist() == [2, 4, 6]
