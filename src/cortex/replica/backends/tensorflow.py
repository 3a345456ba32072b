"""
The TensorFlow backend: SavedModels of TensorFlow 1 and 2. The only place that imports tensorflow.

A model runs in a session of TensorFlow 1, whichever version exported it: the graph, the variables, the tables and the
assets are those that every SavedModel has, and a call costs a tenth of what a `tf.function` costs
(bench/saved_model.py). Ops run in the calling thread; only inside an op may there be others.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from operator import itemgetter
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from cortex.replica.backends.base import (
    BackendMissing,
    InferenceFailed,
    InputRefused,
    ModelError,
    ModelUnreadable,
    UnsupportedType,
    refused_for_its_size,
    runtime_text,
)
from cortex.replica.backends.cuda import LOOK_AT_THE_DRIVER, GpuUnusable, driver_problem
from cortex.replica.backends.example_features import features_of
from cortex.replica.backends.made_up_feeds import accepted_feeds
from cortex.replica.backends.ragged_inputs import ragged_inputs
from cortex.replica.backends.signatures import Choice, NoSignature, SignatureDef, choose, natural_order
from cortex.replica.observation.tracebacks import one_line
from cortex.wire.signature import DTYPES, Dim, Signature, TensorSpec


def _broken(error: Exception) -> ModelError:
    return ModelError(
        f"tensorflow is installed, but cannot be imported: {one_line(error)}",
        hint='pip install --force-reinstall "cortex-serving[tensorflow]"',
    )


# What goes wrong in a run it also raises, and then our log has it once. A lower number in `env` brings the rest back.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
try:
    import tensorflow as tf  # type: ignore[import-not-found,import-untyped,unused-ignore]
    from google.protobuf import json_format, text_format  # type: ignore[import-not-found,import-untyped,unused-ignore]
    from google.protobuf.message import DecodeError  # type: ignore[import-not-found,import-untyped,unused-ignore]
    from tensorflow.core.protobuf import (  # type: ignore[import-not-found,import-untyped,unused-ignore]
        config_pb2,
        meta_graph_pb2,
        saved_model_pb2,
        struct_pb2,
    )
except ModuleNotFoundError as missing:
    if missing.name != "tensorflow":
        raise _broken(missing) from missing
    raise BackendMissing("tensorflow", "tensorflow") from missing
except Exception as error:
    raise _broken(error) from error

__all__ = ["TensorFlowBackend", "load"]

_BINARY: Final = "saved_model.pb"
_TEXT: Final = "saved_model.pbtxt"
_SERVE: Final = "serve"
_RESERVED: Final = "__saved_model_"
"""Start of the keys of signatures that are not for serving: `__saved_model_init_op` and its kin."""
_REASON_CHARS: Final = 500

_Array = NDArray[Any]


class TensorFlowBackend:
    """
    One signature of one SavedModel in one session. Prefer `load`.

    Args:
        session: a `tf.compat.v1.Session` that has loaded the model.
        signatures: all that are for serving, by key.
        choice: which of them is served.
        definition: the protobuf `SignatureDef` of that one.
        runtime: as `Backend.runtime`.
        ragged: keys of the parts of each ragged input, by its name.

    Raises:
        UnsupportedType: an input or output cannot be fed or read; names it.
    """

    takes_bytes: ClassVar[bool] = True

    def __init__(
        self,
        session: Any,
        signatures: Mapping[str, SignatureDef],
        choice: Choice,
        definition: Any,
        *,
        runtime: str = "",
        ragged: Mapping[str, Sequence[str]] = MappingProxyType({}),
    ) -> None:
        served, left_out = _readable(signatures[choice.key], definition)
        self.runtime = runtime
        self._session = session
        self.signature = Signature(
            inputs=tuple(served.inputs.values()), outputs=tuple(served.outputs.values()), key=choice.key
        )
        self._refuse_unsupported(definition)
        self.metadata_inputs = self.metadata_outputs = dict(signatures)
        """Every signature that is for serving, by key."""
        self.signature_keys = tuple(signatures)
        self.notes: tuple[str, ...] = (*((choice.note,) if choice.note else ()), *left_out)
        self._names = tuple(spec.name for spec in self.signature.outputs)
        self._rows = tuple(spec.name for spec in self.signature.inputs if _may_have_rows(spec))
        self._droppable = tuple(
            spec.name
            for spec in self.signature.outputs
            if spec.shape is None or (len(spec.shape) >= 2 and not isinstance(spec.shape[0], int))
        )
        self._row_by_row: tuple[str, ...] | None = None if self._rows and self._droppable else ()
        """Outputs whose dimension 0 was seen to be the batch; None as long as nothing could be seen."""
        self._of_one_row = tuple(
            spec.name for spec in self.signature.outputs if self._has_one_row(spec, definition.outputs[spec.name])
        )
        """Outputs whose dimension 0 is always 1."""
        self._scalars = tuple(spec.name for spec in self.signature.outputs if not spec.shape)
        """Outputs that have no dimension, or may have none."""

        parts = [(spec, ragged.get(spec.name, (spec.name,))) for spec in self.signature.inputs]
        fed = [definition.inputs[key].name for _, keys in parts for key in keys]
        given = [definition.outputs[spec.name].name for spec in self.signature.outputs]
        fetched = [name for name in dict.fromkeys(given) if name not in fed]
        # A signature of TensorFlow 1 may hand an input through, which a session refuses to fetch.
        places = {name: place for place, name in enumerate([*fetched, *fed])}
        self._hands_through = any(name in fed for name in given)
        self._feeders = tuple(
            _feeder(spec, definition) if spec.kind == "tensor" else _part_feeder(spec, place, definition.inputs[key])
            for spec, keys in parts
            for place, key in enumerate(keys)
        )
        self._takers = tuple(
            (places[name], _TAKERS.get(spec.dtype, np.array))
            for name, spec in zip(given, self.signature.outputs, strict=True)
        )
        self._call: Callable[..., Sequence[Any]] = _callable(session, fed, fetched)

    def run(self, feeds: Mapping[str, Any]) -> Sequence[Any]:
        """
        Execute the model. See `Backend.run`.

        Returns:
            Arrays in the order of the signature's outputs, the caller's own: float32 for bfloat16, for text object
            arrays of str, with bytes where they are not UTF-8.
        """
        try:
            given = [feed(feeds) for feed in self._feeders]
            values = self._call(*given)
        except Exception as error:
            raise _run_error(error) from error
        if self._hands_through:
            values = [*values, *given]
        return [take(values[place]) for place, take in self._takers]

    def present(self, outputs: Sequence[Any], feeds: Mapping[str, Any]) -> dict[str, Any]:
        """
        Return arrays by output name, as they are indexed in a handler.

        Of a single row those of two or more dimensions come without the batch dimension, also where the model fixes
        that to 1; an output without dimensions has one item.
        """
        prediction = dict(zip(self._names, outputs, strict=True))
        for name in self._scalars:
            if prediction[name].ndim == 0:
                prediction[name] = prediction[name].reshape(1)
        row_by_row = self._row_by_row
        if (row_by_row == () and not self._of_one_row) or not self._is_one_row(feeds):
            return prediction
        if row_by_row is None:
            row_by_row = self._row_by_row = self._look_for_rows(feeds)
        for name in (*self._of_one_row, *row_by_row):
            output = prediction[name]
            if output.ndim >= 2 and output.shape[0] == 1:
                prediction[name] = output[0]
        return prediction

    def plain(self, prediction: Mapping[str, Any]) -> Mapping[str, Any]:
        return prediction

    def probe_rows(self) -> None:
        """
        Find out which outputs have a row for each row that goes in, with made-up rows.

        A model that accepts none of them is looked at when it first gets a single row, before anyone sees the answer.
        """
        if self._row_by_row is None:
            feeds = accepted_feeds(self)
            if feeds is not None and self._is_one_row(feeds):
                self._row_by_row = self._look_for_rows(feeds)

    def close(self) -> None:
        self._call = _closed
        self._session.close()

    def _has_one_row(self, spec: TensorSpec, definition: Any) -> bool:
        """Whether an output of two or more dimensions has 1 as its first, by its signature or by its graph."""
        if spec.shape is not None and spec.shape[:1] and isinstance(spec.shape[0], int):
            return len(spec.shape) >= 2 and spec.shape[0] == 1
        shape = self._session.graph.get_tensor_by_name(definition.name).shape
        return shape.rank is not None and shape.rank >= 2 and shape[0] == 1

    def _is_one_row(self, feeds: Mapping[str, Any]) -> bool:
        """Whether all inputs that may have rows have exactly one."""
        return all(_is_one(feeds[name]) for name in self._rows)

    def _look_for_rows(self, feeds: Mapping[str, Any]) -> tuple[str, ...]:
        """Names of the outputs that have two rows when the one row of `feeds` goes in twice."""
        twice = {name: _twice(value) if name in self._rows else value for name, value in feeds.items()}
        try:
            outputs = dict(zip(self._names, self.run(twice), strict=True))
        except InferenceFailed:
            return ()
        return tuple(name for name in self._droppable if outputs[name].shape[:1] == (2,))

    def _refuse_unsupported(self, definition: Any) -> None:
        for specs, tensors, is_input in (
            (self.signature.inputs, definition.inputs, True),
            (self.signature.outputs, definition.outputs, False),
        ):
            for spec in specs:
                if (kind := _unsupported(spec, tensors[spec.name])) is not None:
                    raise UnsupportedType(spec.name, kind, is_input=is_input)


def _readable(signature: SignatureDef, definition: Any) -> tuple[SignatureDef, list[str]]:
    """A signature without the outputs that cannot be read, as long as others remain; and a note on each of those."""
    kinds = {name: _unsupported(spec, definition.outputs[name]) for name, spec in signature.outputs.items()}
    outputs = {name: spec for name, spec in signature.outputs.items() if kinds[name] is None}
    if not outputs:
        return signature, []  # which is refused
    notes = [
        f'output "{name}" is of type {kind}, which has no form outside the model: it is left out'
        for name, kind in kinds.items()
        if kind is not None
    ]
    return SignatureDef(signature.inputs, outputs, signature.method_name, signature), notes


def _unsupported(spec: TensorSpec, tensor: Any) -> str | None:
    """What a tensor is that cannot be fed or read; None if it can be."""
    return _composite(tensor) or (None if spec.dtype in DTYPES else spec.dtype)


def _composite(tensor: Any) -> str | None:
    """What a tensor of several parts is; None for a plain one."""
    encoding = tensor.WhichOneof("encoding")
    if encoding == "name":
        return None
    if encoding == "coo_sparse":
        return "a sparse tensor"
    of = tensor.composite_tensor.type_spec
    kind = struct_pb2.TypeSpecProto.TypeSpecClass.Name(of.type_spec_class)
    return {"RAGGED_TENSOR_SPEC": "a ragged tensor", "SPARSE_TENSOR_SPEC": "a sparse tensor"}.get(
        kind, "a composite tensor"
    )


def load(path: str, *, threads: int = 1, gpu: bool = False, signature_key: str | None = None) -> TensorFlowBackend:
    """
    Load a SavedModel.

    Args:
        path: of its folder.
        threads: for one op.
        gpu: whether to run on GPUs.
        signature_key: which signature; None leaves the choice to the rules in `signatures.choose`.

    Raises:
        ModelUnreadable: its graph is missing, cut off, or no SavedModel's; or the variables do not belong to it.
        SavedModelIncomplete: a file of variables or an asset is not there.
        NoSignature, UnknownSignature, AmbiguousSignature: which one to serve cannot be told.
        UnsupportedOperation: names an operation that this TensorFlow does not have.
        UnsupportedType: an input or output of the signature cannot be fed or read.
        GpuUnusable: `gpu`, and TensorFlow finds none; says why.
    """
    folder = Path(path)
    if gpu and not tf.config.list_physical_devices("GPU"):
        raise _no_gpu()
    graph = _meta_graph(_read(folder), gpu=gpu)
    signatures = {
        key: _described(graph, graph.signature_def[key])
        for key in sorted(graph.signature_def, key=natural_order)
        if _is_served(key, graph.signature_def[key])
    }
    if not signatures:
        raise NoSignature(signature_key, _composites(graph))
    choice = choose(signatures, signature_key)
    _check_files(graph, folder)
    session = tf.compat.v1.Session(graph=tf.Graph(), config=_config(threads, gpu))
    step = "graph"
    try:
        _import(session, graph, clear_devices=not gpu)
        step = "variables"
        _restore(session, graph, folder)
        step = "tables"
        _initialise(session, graph, folder)
        step = "graph"
        backend = TensorFlowBackend(
            session,
            signatures,
            choice,
            graph.signature_def[choice.key],
            runtime=runtime_text("tensorflow", tf.__version__, "cuda" if gpu else "cpu", threads),
            ragged={one.keys[0]: one.keys for one in ragged_inputs(graph, graph.signature_def[choice.key])},
        )
    except BaseException as error:
        session.close()
        if isinstance(error, ModelError | MemoryError) or not isinstance(error, Exception):
            raise
        raise _load_error(error, step, path) from error
    del graph  # with weights as constants inside, it may be large
    backend.probe_rows()
    return backend


class SavedModelIncomplete(ModelError):
    """
    A file that the graph needs is not there.

    Args:
        file: relative to the SavedModel's folder.
    """

    reference = "saved-model-incomplete"

    def __init__(self, file: str) -> None:
        self.file = file
        super().__init__(
            f"the SavedModel needs {file}, which is not there",
            hint="copy the whole folder that was exported, with everything in it",
        )


class UnsupportedOperation(ModelError):
    """
    The model uses an operation that this TensorFlow does not have, or not on this kind of device.

    Args:
        operation: its name.
        reason: TensorFlow's own words.
    """

    reference = "unsupported-operator"

    def __init__(self, operation: str, reason: str) -> None:
        self.operation, self.reason = operation, reason
        super().__init__(
            f"the model uses the operation {operation}, which TensorFlow {tf.__version__} does not run: {reason}",
            hint="libraries of custom operations are not loaded: export with operations of TensorFlow itself only",
        )


def _no_gpu() -> GpuUnusable:
    """Why TensorFlow finds no GPU, which it only logs."""
    if not tf.test.is_built_with_cuda():
        return GpuUnusable(
            _NAME,
            "tensorflow-cpu has no support for them",
            hint='pip uninstall -y tensorflow-cpu && pip install "tensorflow[and-cuda]"; '
            "with a requirements.txt beside cortex.yaml, add tensorflow[and-cuda] to that",
        )
    reason = driver_problem()
    if reason is not None:
        return GpuUnusable(_NAME, reason, hint=LOOK_AT_THE_DRIVER)
    return GpuUnusable(
        _NAME, "it cannot load CUDA's libraries", hint='pip install "tensorflow[and-cuda]", which brings CUDA and cuDNN'
    )


_NAME: Final = "TensorFlow"


def _is_one(value: Any) -> bool:
    return len(value) == 1 if isinstance(value, list) else value.shape[:1] == (1,)


def _twice(value: Any) -> Any:
    return value * 2 if isinstance(value, list) else np.concatenate([value] * 2)


def _may_have_rows(spec: TensorSpec) -> bool:
    shape = spec.shape
    return not spec.optional and (shape is None or (len(shape) > 0 and not isinstance(shape[0], int)))


# ---- reading what was exported --------------------------------------------------------------------------------------


def _read(folder: Path) -> Any:
    """Return the `SavedModel` protobuf. Raises ModelUnreadable."""
    saved_model = saved_model_pb2.SavedModel()
    name = _BINARY if (folder / _BINARY).is_file() or not (folder / _TEXT).is_file() else _TEXT
    try:
        content = (folder / name).read_bytes()
        if name == _BINARY:
            saved_model.ParseFromString(content)
        else:
            text_format.Parse(content.decode("utf-8"), saved_model)
    except FileNotFoundError:
        raise ModelUnreadable(_BINARY, "there is no such file", hint="name the folder that has it") from None
    except OSError as error:
        raise ModelUnreadable(name, error.strerror or str(error)) from error
    except (DecodeError, text_format.ParseError, UnicodeDecodeError) as error:
        raise ModelUnreadable(name, "it is cut off, or no SavedModel", hint=_EXPORT_AGAIN) from error
    if not saved_model.meta_graphs:
        raise ModelUnreadable(name, "there is no graph in it", hint=_EXPORT_AGAIN)
    return saved_model


_EXPORT_AGAIN: Final = "export the model again and deploy that folder"


def _meta_graph(saved_model: Any, *, gpu: bool) -> Any:
    """
    Return the graph to serve: the one tagged `serve` and nothing else, or the only one.

    Raises:
        ModelUnreadable: there are several others; lists their tags.
    """
    by_tags = {frozenset(graph.meta_info_def.tags): graph for graph in saved_model.meta_graphs}
    wanted = [frozenset({_SERVE})]
    if gpu:
        wanted.insert(0, frozenset({_SERVE, "gpu"}))
    for tags in wanted:
        if tags in by_tags:
            return by_tags[tags]
    if len(by_tags) == 1:
        return next(iter(by_tags.values()))
    listed = "; ".join(sorted(", ".join(sorted(tags)) or "nothing" for tags in by_tags))
    raise ModelUnreadable(
        _BINARY,
        f"it holds {len(by_tags)} graphs, tagged {listed}, and none is tagged {_SERVE} alone",
        hint=f'export the one to serve with the tag "{_SERVE}" alone',
    )


def _is_served(key: str, definition: Any) -> bool:
    """Whether a signature is for serving. What initialises a model, or trains it, is a signature too."""
    return not key.startswith(_RESERVED) and any(tensor.dtype for tensor in definition.outputs.values())


def _composites(graph: Any) -> dict[str, str]:
    """Of each signature that gives nothing but tensors of several parts, what it gives, in words."""
    return {
        key: ", ".join(f'"{name}", {_composite(tensor) or "nothing"}' for name, tensor in outputs.items())
        for key in sorted(graph.signature_def, key=natural_order)
        if not key.startswith(_RESERVED) and (outputs := graph.signature_def[key].outputs)
    }


def _described(graph: Any, definition: Any) -> SignatureDef:
    def specs(tensors: Any, optional: Collection[str] = ()) -> dict[str, TensorSpec]:
        return {
            name: TensorSpec(name, _dtype(tensors[name]), _shape(tensors[name].tensor_shape), name in optional)
            for name in sorted(tensors, key=natural_order)
        }

    inputs = specs(definition.inputs, optional=getattr(definition, "defaults", ()))
    for ragged in ragged_inputs(graph, definition):
        name, *parts = ragged.keys
        inputs[name] = TensorSpec(name, inputs[name].dtype, ragged.shape, kind="ragged", ragged_rank=ragged.rank)
        for part in parts:
            del inputs[part]
    for name, spec in inputs.items():
        if spec.dtype == "string" and spec.kind == "tensor":
            features = features_of(graph.graph_def, definition.inputs[name].name)
            inputs[name] = msgspec.structs.replace(spec, features=features)
    plain = json_format.MessageToDict(definition)
    return SignatureDef(inputs, specs(definition.outputs), definition.method_name, plain)


def _dtype(tensor: Any) -> str:
    try:
        return str(tf.as_dtype(tensor.dtype).base_dtype.name)
    except TypeError:
        return "nothing"


def _shape(shape: Any) -> tuple[Dim, ...] | None:
    if shape.unknown_rank:
        return None
    return tuple((dim.name or None) if dim.size < 0 else int(dim.size) for dim in shape.dim)


def _assets(graph: Any) -> dict[str, str]:
    """File names of assets by the tensor that takes the path. TensorFlow 1 noted them in a collection."""
    assets = list(graph.asset_file_def)
    if not assets and _ASSETS_COLLECTION in graph.collection_def:
        for packed in graph.collection_def[_ASSETS_COLLECTION].any_list.value:
            assets.append(meta_graph_pb2.AssetFileDef())
            packed.Unpack(assets[-1])
    return {asset.tensor_info.name: asset.filename for asset in assets}


_ASSETS_COLLECTION: Final = "saved_model_assets"


def _check_files(graph: Any, folder: Path) -> None:
    """Raises SavedModelIncomplete: names the first file that is missing."""
    needed = [f"assets/{name}" for name in _assets(graph).values()]
    if graph.saver_def.restore_op_name and graph.saver_def.version == graph.saver_def.V2:
        present = [path.name for path in folder.glob("variables/variables.data-?????-of-?????")]
        shards = max((int(name[-5:]) for name in present if name[-5:].isdigit()), default=1)
        needed += ["variables/variables.index"]
        needed += [f"variables/variables.data-{shard:05}-of-{shards:05}" for shard in range(shards)]
    for file in needed:
        if not (folder / file).is_file():
            raise SavedModelIncomplete(file)


# ---- a session ------------------------------------------------------------------------------------------------------


def _config(threads: int, gpu: bool) -> Any:
    config = tf.compat.v1.ConfigProto(
        inter_op_parallelism_threads=-1,  # in the thread that calls
        intra_op_parallelism_threads=threads,
        allow_soft_placement=True,
        device_count={} if gpu else {"GPU": 0},
    )
    config.gpu_options.allow_growth = True  # otherwise the first replica takes all the memory there is
    return config


def _import(session: Any, graph: Any, *, clear_devices: bool) -> None:
    """
    Lay out the graph in an empty session.

    With what follows these are the steps of `tf.compat.v1.saved_model.load` and of TensorFlow Serving. Taken one by one
    they parse nothing a second time, advise nobody to load models in another way, and tell which of them failed.
    """
    if clear_devices:  # those of the machine that exported it
        for node in graph.graph_def.node:
            node.device = ""
    info = graph.meta_info_def  # says which attributes the exporting version knew
    known = info.stripped_op_list if info.HasField("stripped_op_list") else None
    with session.graph.as_default():
        tf.import_graph_def(graph.graph_def, name="", producer_op_list=known)
    session.graph.finalize()


def _restore(session: Any, graph: Any, folder: Path) -> None:
    """Read the variables."""
    saver = graph.saver_def
    if saver.restore_op_name and (folder / "variables").is_dir():
        _execute(session, saver.restore_op_name, {saver.filename_tensor_name: folder / "variables" / "variables"})


def _initialise(session: Any, graph: Any, folder: Path) -> None:
    """Fill tables, from assets too."""
    operation = ""
    if _INIT_SIGNATURE in graph.signature_def:
        operation = graph.signature_def[_INIT_SIGNATURE].outputs[_INIT_SIGNATURE].name
    for collection in _INIT_COLLECTIONS:
        if not operation and collection in graph.collection_def:
            operation = next(iter(graph.collection_def[collection].node_list.value), "")
    if operation:
        _execute(session, operation, {tensor: folder / "assets" / file for tensor, file in _assets(graph).items()})


_INIT_SIGNATURE: Final = f"{_RESERVED}init_op"
_INIT_COLLECTIONS: Final = ("saved_model_main_op", "legacy_init_op")
"""Where the op that fills tables is noted: of TensorFlow 2, and the two of TensorFlow 1."""


def _execute(session: Any, operation: str, files: Mapping[str, Path]) -> None:
    """
    Run an operation once, with paths for the tensors that take them.

    Not by `Session.run` where there is another way: of an error it looks for names of nodes in the message, with an
    expression that can go on for ever over a damaged file.
    """
    paths = {tensor: np.array(os.fsencode(path), dtype=object) for tensor, path in files.items()}
    prepare = getattr(session, "_make_callable_from_options", None)
    if prepare is None:
        session.run(operation, paths)
    else:
        prepare(config_pb2.CallableOptions(feed=paths, target=[operation.partition(":")[0]]))(*paths.values())


def _callable(session: Any, fed: Sequence[str], fetched: Sequence[str]) -> Callable[..., Sequence[Any]]:
    """
    Return what executes the graph: arrays in the order of `fed` to values in the order of `fetched`.

    `Session.make_callable` checks and sorts its arguments in Python at each call, which takes several times as long as
    a small model (bench/saved_model.py), so what it is built on is used where it exists.
    """
    if not fetched:
        return lambda *values: ()
    prepare = getattr(session, "_make_callable_from_options", None)
    if prepare is None:
        tensor = session.graph.get_tensor_by_name
        prepare = partial(session.make_callable, feed_list=[tensor(name) for name in fed])
        run: Callable[..., Sequence[Any]] = prepare([tensor(name) for name in fetched])
    else:
        run = prepare(config_pb2.CallableOptions(feed=fed, fetch=fetched))
    return run


def _closed(*values: Any) -> Sequence[Any]:
    raise RuntimeError("it was closed")


def _feeder(spec: TensorSpec, definition: Any) -> Callable[[Mapping[str, Any]], Any]:
    """Return what gets an input's value out of feeds."""
    name = spec.name
    dtype = tf.bfloat16.as_numpy_dtype if spec.dtype == "bfloat16" else None
    if spec.optional:
        default = tf.make_ndarray(definition.defaults[name])
        return lambda feeds: np.asarray(feeds.get(name, default), dtype=dtype)
    if dtype is not None:
        return lambda feeds: np.asarray(feeds[name], dtype=dtype)
    return itemgetter(name)


def _part_feeder(spec: TensorSpec, place: int, info: Any) -> Callable[[Mapping[str, Any]], Any]:
    """
    Return what gets a part of a ragged input out of feeds: all values, or where the rows of one level begin.

    Args:
        place: 0 for the values, 1 for the outermost rows.
        info: the part's `TensorInfo`.
    """
    name, rank = spec.name, spec.ragged_rank
    dtype = tf.as_dtype(info.dtype).as_numpy_dtype

    def feed(feeds: Mapping[str, Any]) -> Any:
        level = feeds[name]
        for _ in range((place or rank) - 1):
            level = [item for row in level for item in row]
        if place:
            return np.concatenate([[0], np.cumsum([len(row) for row in level], dtype=np.int64)]).astype(dtype)
        inner = tuple(dim if isinstance(dim, int) else 0 for dim in (spec.shape or ())[rank + 1 :])
        return np.concatenate([np.empty((0, *inner), dtype), *level])

    return feed


# A number's array is copied by `np.array`: what a session returns may be the memory of a constant or a variable of the
# model, or of an input, and whoever writes into a prediction must not write there.


def _text(value: Any) -> _Array:
    """Text as str, bytes where they are not UTF-8."""
    array = np.asarray(value, dtype=object)
    result = np.empty(array.size, dtype=object)
    for index, element in enumerate(array.ravel().tolist()):
        result[index] = _decoded(element)
    return result.reshape(array.shape)


def _decoded(element: Any) -> Any:
    if isinstance(element, bytes):
        try:
            return element.decode("utf-8")
        except UnicodeDecodeError:
            pass
    return element


def _widened(value: Any) -> _Array:
    """float32 for bfloat16, which numpy has no type for."""
    return np.asarray(value).astype(np.float32)


_TAKERS: Final[Mapping[str, Callable[[Any], _Array]]] = {"string": _text, "bfloat16": _widened}


# ---- what TensorFlow says of errors ---------------------------------------------------------------------------------

_MISSING_OPERATION: Final = tuple(
    re.compile(pattern)
    for pattern in (
        r"(?P<reason>Op type not registered) '(?P<operation>[^']+)'",
        r"(?P<reason>No OpKernel was registered) to support Op '(?P<operation>[^']+)'",
        r"(?P<reason>Could not find device for node): \{\{node [^}]*\}\} = (?P<operation>\w+)",
        r"(?P<reason>No op named) (?P<operation>\S+) in defined operations",
    )
)


_MISSING_FUNCTION: Final = re.compile(r'Failed to find function "([^"]*)" in function library')


def _load_error(error: Exception, step: str, path: str) -> ModelError:
    """Return what a user can do something about, out of what TensorFlow said while it did a step of loading."""
    for pattern in _MISSING_OPERATION:
        found = pattern.search(str(error))
        if found:
            return UnsupportedOperation(found["operation"], found["reason"])
    function = _MISSING_FUNCTION.search(str(error))
    if function:
        return ModelUnreadable(_BINARY, f"it calls {function[1]}, which is not in it", hint=_EXPORT_AGAIN)
    reason = _reason(error).replace(f"{path.rstrip('/')}/", "")
    if step == "variables":
        return ModelUnreadable("variables/", reason, hint="copy the whole folder that was exported, from one export")
    if step == "tables":
        return ModelError(f"the SavedModel's tables cannot be filled: {reason}", hint=_EXPORT_AGAIN)
    return ModelUnreadable(_BINARY, reason, hint="see if tf.saved_model.load(folder) reads it")


def _run_error(error: Exception) -> InferenceFailed:
    """Tell what the caller can mend from what is a failure."""
    reason = _reason(error)
    wanted = _WANTED.search(reason) if isinstance(error, tf.errors.ResourceExhaustedError) else None
    if wanted is not None and (too_large := refused_for_its_size("", _bytes_of(wanted))) is not None:
        return too_large
    if isinstance(error, _REFUSALS) and not _EXPORTERS.search(_said(error)):
        return InputRefused(reason if len(reason) <= _CALLERS_CHARS else reason[: _CALLERS_CHARS - 1] + "…")
    return InferenceFailed(reason)


_WANTED: Final = re.compile(r"OOM when allocating tensor with shape\[(?P<shape>[\d,]*)\] and type (?P<type>\w+)")


def _bytes_of(wanted: re.Match[str]) -> int:
    sizes = [int(size) for size in wanted["shape"].split(",") if size]
    try:
        item_bytes = int(tf.dtypes.as_dtype(wanted["type"]).size)
    except TypeError:  # of a kind that only TensorFlow itself names
        item_bytes = 1
    return math.prod(sizes) * item_bytes


_REFUSALS: Final = (
    tf.errors.InvalidArgumentError,
    tf.errors.OutOfRangeError,
    tf.errors.DataLossError,
    UnicodeDecodeError,
)
"""
Of values that an operation does not take, of indices, and of bytes that are damaged. Memory, missing kernels and
variables without a value have other classes. A message that quotes bytes of the input which are no UTF-8 cannot become
an exception of TensorFlow's.

Source: tensorflow/core/protobuf/error_codes.proto, and what 2.21 was seen to raise.
"""
_EXPORTERS: Final = re.compile(
    r"You must feed a value for placeholder|Type mismatch: actual|No OpKernel was registered|Could not find device"
)
"""Called invalid arguments too, and the same for every input: the graph is wrong, or we are."""
_CALLERS_CHARS: Final = 300


def _said(error: Exception) -> str:
    """TensorFlow's message as it stands. It breaks off where it quotes a NUL of the input."""
    if isinstance(error, UnicodeDecodeError):
        return error.object.decode("utf-8", "backslashreplace")
    return str(getattr(error, "message", "") or error)


def _reason(error: Exception) -> str:
    """TensorFlow's message in one line, without the stacks of those who built the graph, and names of its nodes."""
    text = re.sub(r"^Graph execution error:\s+", "", _said(error))
    text = re.split(r"\nNode: '[^']*'\n", text)[-1]
    text = re.sub(r"(?s)^(Could not parse example input), value: '.*", r"\1: it is no serialized tf.Example", text)
    text = text.replace("Name: <unknown>, ", "")
    text = re.split(r"\n\s*(?:Original stack trace|Errors may have originated|Registered devices|Hint:)", text)[0]
    text = re.sub(r"\{\{(?:function_node|node) [^}]*\}\}", "", text)
    text = re.sub(r"\s\[\[[^\]]*\]\]\s*$", "", text)
    text = "".join(character if character.isprintable() else " " for character in text)
    text = re.sub(r"(?:[,:]? value)?: '[^']*$", "", " ".join(text.split()))  # a quotation that was broken off
    return text if len(text) <= _REASON_CHARS else text[: _REASON_CHARS - 1] + "…"
