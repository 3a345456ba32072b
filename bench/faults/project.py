"""The apis that are asked, and their files: good and bad versions of them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy
import onnx
from onnx import TensorProto, helper, numpy_helper
from world import IRIS_MODEL

DEPLOYMENT = "chaos"
LONE, MANY, ONCE, SLEEPER = "one", "three", "once", "naps"
"""One replica at most; several, whose bounds change; `retry: off`; `min_replicas: 0`."""
APIS = (LONE, MANY, ONCE, SLEEPER)
MODELLED = APIS
"""Those with a model file of their own."""
BOUNDS = (3, 6)
"""Fewest and most replicas of the one whose bounds change."""
IDLE_TIMEOUT_S = 1

YAML = """\
- kind: deployment
  name: chaos
- kind: api
  name: one
  model: models/one.onnx
  request_handler: handler.py
  sample: {{"tag": "sample", "features": [5.2, 3.6, 1.4, 0.3]}}
  timeout: {timeout}s
  compute: {{cpu: 100m, max_replicas: 1}}
- kind: api
  name: three
  model: models/three.onnx
  request_handler: handler.py
  sample: {{"tag": "sample", "features": [5.2, 3.6, 1.4, 0.3]}}
  timeout: {timeout}s
  env: {{MANY: "yes"}}
  compute: {{cpu: 100m, min_replicas: {least}, max_replicas: {most}, downscale_window: 5s}}
- kind: api
  name: once
  model: models/once.onnx
  request_handler: handler.py
  sample: {{"tag": "sample", "features": [5.2, 3.6, 1.4, 0.3]}}
  timeout: {timeout}s
  retry: off
  env: {{LEDGER: {ledger}}}
  compute: {{cpu: 100m, min_replicas: 2, max_replicas: 4}}
- kind: api
  name: naps
  model: models/naps.onnx
  request_handler: handler.py
  sample: {{"tag": "sample", "features": [5.2, 3.6, 1.4, 0.3]}}
  timeout: {timeout}s
  compute: {{cpu: 100m, min_replicas: 0, max_replicas: 3, idle_timeout: {idle}s}}
"""

HANDLER = """\
import os

NUMBER = {number}
LEDGER = os.environ.get("LEDGER")


def pre_inference(sample, metadata, request):
    request.state["tag"] = sample["tag"]
    if LEDGER:
        with open(LEDGER, "a") as ledger:
            ledger.write(f"{{sample['tag']}} {{os.getpid()}}\\n")
    return [sample["features"]]


def post_inference(prediction, metadata, request):
    build = f"h{{NUMBER}}m{{int(prediction['build'][0][0])}}"
    return {{"tag": request.state["tag"], "label": str(prediction["label"][0]), "build": build}}
"""

SECOND_FAILS = "cannot start twice"
"""Ready once, so that it takes the place of a replica, and then fails wherever else it is started."""
BAD_VERSIONS: Mapping[str, str] = {
    "fails at import": "import no_such_module_anywhere\n",
    "is no Python": "def pre_inference(sample, metadata:\n",
    "fails on its sample": "def pre_inference(sample, metadata):\n    raise ValueError('no')\n",
    "ends its process": "import os\n\n\ndef pre_inference(sample, metadata):\n    os._exit(7)\n",
    SECOND_FAILS: """\
if os.environ.get("MANY"):
    with open({mark!r}, "x"):
        pass
""",
}
"""How, and what is added to the handler."""
WRONG_SIGNATURE = "takes other inputs"
BAD_MODELS = (WRONG_SIGNATURE,)


def build_of(handler: int, model: int) -> str:
    """What a replica with this handler and this model says of itself."""
    return f"h{handler}m{model}"


class Project:
    """
    The folder that is deployed. Each write gives new numbers, which the answers show.

    Args:
        folder: empty.
        ledger: file into which the api with `retry: off` writes what reached it: a tag and its process.
    """

    def __init__(self, folder: Path, ledger: Path) -> None:
        self._folder = folder
        self._ledger = ledger
        self._last = 0
        self._handler = 0
        self._models: dict[str, int] = {}
        self._timeout_s = 600
        self.bounds = BOUNDS
        (folder / "models").mkdir()

    def builds(self) -> dict[str, str]:
        """By api, what these files come to."""
        return {api: build_of(self._handler, self._models[api]) for api in APIS}

    def new_handler(self, more: str = "") -> None:
        """Another handler, with `more` at its end."""
        self._last += 1
        self._handler = self._last
        mark = str(self._ledger.with_name(f"mark-{self._handler}"))
        text = HANDLER.format(number=self._handler) + ("\n\n" + more.replace("{mark!r}", repr(mark)) if more else "")
        (self._folder / "handler.py").write_text(text)

    def new_model(self, api: str, *, bad: bool = False) -> None:
        self._last += 1
        self._models[api] = self._last
        model = _other_inputs() if bad else numbered_iris(self._last)
        (self._folder / "models" / f"{api}.onnx").write_bytes(model)

    @contextlib.contextmanager
    def only_now(self) -> Iterator[None]:
        """What is written meanwhile is undone at the end."""
        handler, models = self._handler, dict(self._models)
        paths = [self._folder / "handler.py", *sorted((self._folder / "models").iterdir())]
        before = {path: path.read_bytes() for path in paths}
        try:
            yield
        finally:
            self._handler, self._models = handler, models
            for path, content in before.items():
                path.write_bytes(content)

    def new_settings(self) -> None:
        self._timeout_s += 1

    def write(self) -> None:
        """cortex.yaml, as the settings are now."""
        least, most = self.bounds
        (self._folder / "cortex.yaml").write_text(
            YAML.format(
                timeout=self._timeout_s,
                least=least,
                most=most,
                ledger=json.dumps(str(self._ledger)),
                idle=IDLE_TIMEOUT_S,
            )
        )


def numbered_iris(number: int) -> bytes:
    """The iris model with one output more, `build`: the number, for each row."""
    model = onnx.load(str(IRIS_MODEL))
    name = model.graph.input[0].name
    for constant, value in (
        ("nothing", numpy.zeros(1, numpy.float32)),
        ("columns", numpy.array([1], numpy.int64)),
        ("number", numpy.array([number], numpy.float32)),
    ):
        model.graph.initializer.append(numpy_helper.from_array(value, constant))
    model.graph.node.extend(
        [
            helper.make_node("Mul", [name, "nothing"], ["noughts"]),
            helper.make_node("ReduceSum", ["noughts", "columns"], ["nought"], keepdims=1),
            helper.make_node("Add", ["nought", "number"], ["build"]),
        ]
    )
    model.graph.output.append(helper.make_tensor_value_info("build", TensorProto.FLOAT, [None, 1]))
    return bytes(model.SerializeToString())


def _other_inputs() -> bytes:
    """A model that takes three columns where the handler gives four."""
    graph = helper.make_graph(
        [helper.make_node("Identity", ["input"], ["label"])],
        "other",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [None, 3])],
        [helper.make_tensor_value_info("label", TensorProto.FLOAT, [None, 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())
