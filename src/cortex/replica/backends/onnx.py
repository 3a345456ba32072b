"""The ONNX backend: onnxruntime, the only place that imports it."""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from cortex.replica.backends import locales
from cortex.replica.backends.base import (
    BackendMissing,
    InferenceFailed,
    InputRefused,
    ModelError,
    ModelUnreadable,
    UnsupportedIrVersion,
    UnsupportedOperator,
    UnsupportedOpset,
    UnsupportedType,
    WeightsFileMissing,
    refused_for_its_size,
    runtime_text,
)
from cortex.replica.backends.cuda import LOOK_AT_THE_DRIVER, GpuUnusable, driver_problem
from cortex.replica.tensors.floats import shortest
from cortex.wire.onnx_proto import ModelHeader, ValueInfo, external_files, read_header
from cortex.wire.signature import Dim, Kind, Signature, TensorSpec

# Its import starts a thread that reports usage to its vendor, unless this is set before.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
try:
    import onnxruntime as ort
except ImportError as missing:
    raise BackendMissing("onnxruntime") from missing

__all__ = ["OnnxBackend", "Prediction", "external_files", "load"]

_SEVERITY_ERROR: Final = 3
_SEVERITY_FATAL: Final = 4
_BFLOAT16_ELEMENT_TYPE: Final = 16  # onnx.TensorProto.BFLOAT16
_CPU: Final = "CPUExecutionProvider"
_CUDA: Final = "CUDAExecutionProvider"

# It looks for devices as it is imported, and warns about what it does not find.
ort.set_default_logger_severity(_SEVERITY_ERROR)


class Prediction(list[Any]):
    """Outputs in model order, as numpy arrays (lists of dicts for maps); also indexed by output name."""

    __slots__ = ("_positions",)
    _positions: Mapping[str, int]

    @classmethod
    def of(cls, outputs: Iterable[Any], positions: Mapping[str, int]) -> Prediction:
        """With each output's place by its name. (`__init__` would take a quarter of a microsecond more.)"""
        prediction = cls(outputs)
        prediction._positions = positions
        return prediction

    def __getitem__(self, key: Any) -> Any:
        if type(key) is not str:
            return super().__getitem__(key)
        positions: Mapping[str, int] = getattr(self, "_positions", {})  # none in what a handler made of the class
        try:
            return super().__getitem__(positions[key])
        except KeyError:
            names = ", ".join(positions)
            raise KeyError(f'the model has no output "{key}"; it has {names}') from None


class OnnxBackend:
    """
    One ONNX model in one onnxruntime session. Prefer `load`.

    Args:
        session: an `onnxruntime.InferenceSession`.
        header: what the file declares; None if it could not be read apart from onnxruntime.
        runtime: as `Backend.runtime`.
    """

    takes_bytes: ClassVar[bool] = False

    def __init__(self, session: Any, header: ModelHeader | None = None, *, runtime: str = "") -> None:
        self.runtime = runtime
        self._session = session
        self.metadata_inputs: list[Any] = session.get_inputs()
        """onnxruntime's `NodeArg`s: `.name`, `.type`, `.shape`."""
        self.metadata_outputs: list[Any] = session.get_outputs()
        self.signature = _signature(
            self.metadata_inputs, self.metadata_outputs, header, session.get_overridable_initializers()
        )
        self._names = [output.name for output in self.metadata_outputs]
        self._positions = {name: index for index, name in enumerate(self._names)}
        given = {arg.name for arg in self.metadata_inputs}
        self._optional = [spec.name for spec in self.signature.inputs if spec.optional and spec.name in given]
        outputs = list(enumerate(self.signature.outputs))
        maps = [(place, spec) for place, spec in outputs if spec.kind in ("map", "sequence_of_maps")]
        self._maps_of_float32 = [place for place, spec in maps if spec.dtype == "float32"]
        self._maps_by_number = [place for place, spec in maps if spec.key_dtype == "int64"]
        # What a run reports it also raises, and then our log has it once, with the request's id.
        self._options = ort.RunOptions()
        self._options.log_severity_level = _SEVERITY_FATAL
        self._run = self._runner()

    def run(self, feeds: Mapping[str, Any]) -> Sequence[Any]:
        """
        Execute the model. See `Backend.run`.

        Returns:
            Outputs in model order: arrays (float32 for bfloat16, object arrays of str for text), lists of arrays for
            sequences, lists of dicts for sequences of maps.
        """
        try:
            return self._run(self._names, feeds, self._options)
        except Exception as error:
            raise _run_error(error) from error

    def present(self, outputs: Sequence[Any], feeds: Mapping[str, Any]) -> Prediction:
        """Return the outputs; in maps, floats with the digits of their float32, as tensors are written."""
        prediction = Prediction.of(outputs, self._positions)
        for place in self._maps_of_float32:
            prediction[place] = _in_maps(prediction[place], _shortened)
        return prediction

    def plain(self, prediction: Prediction) -> Prediction:
        """Return the prediction with text as keys of its maps."""
        if self._maps_by_number:
            prediction = Prediction.of(prediction, self._positions)
            for place in self._maps_by_number:
                prediction[place] = _in_maps(prediction[place], _with_text_keys)
        return prediction

    def close(self) -> None:
        self._session = None
        self._run = _closed

    def _runner(self) -> Callable[[list[str], Mapping[str, Any], Any], Sequence[Any]]:
        """
        Return what executes the session: names, feeds, options to outputs.

        `InferenceSession.run` checks names that we made ourselves, which is a fifth of a small model's time
        (bench/codec.py), so the object below it is called where it exists.
        """
        direct: Callable[[list[str], Any, Any], Sequence[Any]] = getattr(self._session, "_sess", self._session).run
        specs = (*self.signature.inputs, *self.signature.outputs)
        if any(spec.dtype == "bfloat16" for spec in specs):
            return self._run_bfloat16
        if self._optional:
            absent = dict.fromkeys(self._optional)
            return lambda names, feeds, options: direct(names, {**absent, **feeds}, options)
        return direct

    def _run_bfloat16(self, names: list[str], feeds: Mapping[str, Any], options: Any) -> list[Any]:
        """Run through `OrtValue`s, which hold what numpy has no type for. Tensors only."""
        types = {spec.name: spec.dtype for spec in self.signature.inputs}
        values = {name: _ort_value(feed, types[name]) for name, feed in feeds.items()}
        return [_from_ort_value(value) for value in self._session.run_with_ort_values(names, values, options)]


def load(path: str, *, threads: int = 1, gpu: bool = False, signature_key: str | None = None) -> OnnxBackend:
    """
    Load a model from a file; weights in other files are looked for beside it.

    Args:
        path: of the `.onnx` file.
        threads: for one run.
        gpu: whether to run on CUDA.
        signature_key: must be None: ONNX models have one signature.

    Raises:
        ModelUnreadable: missing, empty, cut off, or not ONNX at all.
        ExternalDataMissing: a file of weights is not there.
        UnsupportedOpset, UnsupportedIrVersion: too new for this onnxruntime; names both numbers.
        UnsupportedOperator: names an operator that onnxruntime does not have.
        UnsupportedType: an input or output that cannot be fed or read.
        BackendMissing: `gpu`, and onnxruntime-gpu is not installed.
        GpuUnusable: `gpu`, and CUDA does not work here; says why.
    """
    if signature_key is not None:
        raise ModelError("an ONNX model has no signature keys", hint="remove tf_signature_key")
    providers = _cuda_providers() if gpu else [_CPU]
    header, problem = _header(path)
    try:
        session = _session(path, _options(header, threads), providers)
    except Exception as error:
        failure = _CUDA_FAILURE.search(str(error)) if gpu else None
        if failure:
            raise GpuUnusable(_NAME, driver_problem() or failure[0], hint=LOOK_AT_THE_DRIVER) from error
        raise problem or _load_error(path, error) from error
    if providers[0] not in session.get_providers():
        raise _cuda_missing()
    device = "cuda" if gpu else "cpu"
    return OnnxBackend(session, header, runtime=runtime_text(_NAME, ort.__version__, device, threads))


def _session(path: str, options: Any, providers: list[str]) -> Any:
    """Load it, with locales that the machine lacks as far as there can be any. Raises whatever onnxruntime raises."""
    names = dict.fromkeys(locales.DEFAULT_NAMES)
    while True:
        try:
            with locales.standing_in(names):
                # Without a fallback: it would print what CUDA complains of and go on without, here and in runs.
                return ort.InferenceSession(path, options, providers=providers, enable_fallback=0)
        except Exception as error:
            missing = _MISSING_LOCALE.search(str(error))
            if missing is None or missing[1] in names or not locales.can_stand_in(missing[1]):
                raise
            names[missing[1]] = None


_MISSING_LOCALE: Final = re.compile(r"Failed to construct locale with name:(.*?):")


def _header(path: str) -> tuple[ModelHeader | None, ModelError | None]:
    """Return what the file declares, or what is wrong with it. onnxruntime has the last word on the latter."""
    try:
        return read_header(path), None
    except FileNotFoundError:
        raise ModelUnreadable(os.path.basename(path), "there is no such file") from None
    except OSError as error:
        raise ModelUnreadable(os.path.basename(path), error.strerror or str(error)) from error
    except ValueError as error:
        hint = "" if ":" in str(error) else "export the model again and deploy that file"
        return None, ModelUnreadable(os.path.basename(path), str(error), hint=hint)


def _options(header: ModelHeader | None, threads: int) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Spinning burns the cpu that neighbours on the machine were promised.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.log_severity_level = _SEVERITY_ERROR
    # onnxruntime keeps a memory plan for every combination of input shapes it has seen, and never lets one go.
    options.enable_mem_pattern = header is not None and all(
        value.shape is not None and all(isinstance(dim, int) for dim in value.shape) for value in header.inputs
    )
    return options


# ---- GPUs -----------------------------------------------------------------------------------------------------------

_NAME: Final = "onnxruntime"
_GPU_PACKAGE: Final = "onnxruntime-gpu"
_CUDA_FAILURE: Final = re.compile(r"\b(?:CUDA|CUDNN|CUBLAS|CUFFT)\w* failure \d+: .*?(?= ;|$)", re.MULTILINE)
"""How its CUDA calls fail. Source: onnxruntime/core/providers/cuda/cuda_call.cc."""


def _cuda_providers() -> list[str]:
    """CUDA first, with its libraries loaded from where pip puts them; what has no kernel there runs on the CPU."""
    if _CUDA not in ort.get_available_providers():
        try:
            metadata.version(_GPU_PACKAGE)
        except metadata.PackageNotFoundError:
            missing = BackendMissing(_GPU_PACKAGE, "gpu")
            missing.hint += f"; with a requirements.txt beside cortex.yaml, add {_GPU_PACKAGE}[cuda,cudnn] to that"
            raise missing from None
        raise GpuUnusable(
            _NAME,
            f"{_GPU_PACKAGE} is installed, but onnxruntime was installed over it",
            hint=f"pip install --force-reinstall --no-deps {_GPU_PACKAGE}",
        )
    if hasattr(ort, "preload_dlls"):
        with contextlib.redirect_stdout(io.StringIO()):  # of each library that is elsewhere, or not there
            ort.preload_dlls()
    return [_CUDA, _CPU]


def _cuda_missing() -> GpuUnusable:
    """Why a session came up without CUDA, which onnxruntime only logs."""
    reason = driver_problem()
    if reason is not None:
        return GpuUnusable(_NAME, reason, hint=LOOK_AT_THE_DRIVER)
    library = Path(ort.__file__).parent / "capi" / "libonnxruntime_providers_cuda.so"
    try:
        ctypes.CDLL(str(library))
        reason = "its CUDA provider did not come up"
    except OSError as error:
        reason = str(error).removeprefix(f"{library}: ")
    return GpuUnusable(_NAME, reason, hint=f'pip install "{_GPU_PACKAGE}[cuda,cudnn]", which brings CUDA and cuDNN')


def _load_error(path: str, error: Exception) -> ModelError:
    """Return what a user can do something about, out of what onnxruntime said."""
    text = str(error)
    name = os.path.basename(path)
    problem = _missing_weights(path, name)
    if problem is not None:
        return problem
    opset = re.search(r"Opset (\d+) is under development.*?support for domain (\S+) is till opset (\d+)", text, re.S)
    if opset:
        return UnsupportedOpset(opset[2], int(opset[1]), int(opset[3]))
    ir_version = re.search(r"Unsupported model IR version: (\d+), max supported IR version: (\d+)", text)
    if ir_version:
        return UnsupportedIrVersion(int(ir_version[1]), int(ir_version[2]))
    for pattern in _UNKNOWN_OPERATOR:
        found = pattern.search(text)
        if found:
            groups = found.groupdict()
            return UnsupportedOperator(groups["operator"], groups.get("domain") or "", groups["reason"].strip())
    short = re.search(r"External initializer: (\S+) .*out of bounds", text)
    if short:
        reason = f"the weights of {short[1]} reach beyond the end of their file"
        return ModelUnreadable(name, reason, hint=f"copy {name} and the files of its weights again, from one export")
    locale = _MISSING_LOCALE.search(text)
    if locale:
        return ModelUnreadable(
            name,
            f'it changes the case of text by the rules of the locale "{locale[1]}", which this machine lacks',
            hint=f"install it (on Debian and Ubuntu: apt-get install locales && localedef -i {locale[1].split('.')[0]} "
            f"-f UTF-8 {locale[1]}), or export the model with locale en_US",
        )
    unsupported = re.search(r"MLDataType for: (\S+) is not currently registered", text)
    if unsupported:
        return ModelUnreadable(name, f"it uses {unsupported[1]}, which onnxruntime has no support for")
    return ModelUnreadable(name, _reason(error), hint="check it with onnx.checker.check_model(path)")


_UNKNOWN_OPERATOR: Final = tuple(
    re.compile(pattern, re.S)
    for pattern in (
        r"Fatal error: (?P<domain>[^:\s]*):(?P<operator>\w+)\(.*is (?P<reason>not a registered function/op)",
        r'In Node, \("[^"]*", (?P<operator>\w+), "(?P<domain>[^"]*)".*(?P<reason>No (?:Op registered|opset import).*)',
        r"(?P<reason>Could not find an implementation for (?P<operator>\w+)\(.*)",
        r"(?P<reason>Type '[^']*' of input parameter \(.*\) of operator \((?P<operator>\w+)\).* is invalid)",
    )
)
"""What onnxruntime says of operators that it does not have, and of those that it has, but not for these types."""


def _missing_weights(path: str, name: str) -> ModelError | None:
    try:
        files = external_files(path)
    except ValueError as error:
        return ModelUnreadable(name, str(error))
    for file in files:
        if not Path(path).parent.joinpath(file).is_file():
            return WeightsFileMissing(name, file)
    return None


# ---- what onnxruntime says of a run ---------------------------------------------------------------------------------


def _run_error(error: Exception) -> InferenceFailed:
    """
    Tell what the caller can mend from what is a failure.

    Kernels that look at their input report INVALID_ARGUMENT. Most do not: they find a condition unmet that follows
    from sizes or values of the input, and report FAIL or RUNTIME_EXCEPTION, as for memory that they cannot get. Only
    the words tell those apart.

    Source:
        onnxruntime/core/common/common.h (ORT_ENFORCE, ORT_MAKE_STATUS), and what 1.32 was seen to say.
    """
    text = str(error)
    reason = _reason(error)
    wanted = _WANTED.search(text)
    too_large = refused_for_its_size(wanted["operator"] or "", int(wanted["size"])) if wanted is not None else None
    if too_large is not None:
        return too_large
    code = _CODE.match(text)
    if code is None or _FAILURE.search(text):
        return InferenceFailed(reason)
    if code[1] == "INVALID_ARGUMENT" or (code[1] in ("FAIL", "RUNTIME_EXCEPTION") and _OF_THE_INPUT.search(reason)):
        return InputRefused(_for_callers(reason))
    return InferenceFailed(reason)


def _for_callers(reason: str) -> str:
    """What is left of a reason for somebody who knows nothing of the graph, and of onnxruntime's source."""
    text = re.sub(r'\b(\w+) node(?: "[^"]*")?: ', r"\1: ", reason)
    text = re.sub(r"\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
    text = re.sub(r"[\w./-]+\.(?:h|hpp|cc|cpp|cu|cuh):\d+ (?:operator\(\)|[\w:~<>]+) ", "", text)
    text = re.sub(r"^((?:\w+: )*).* was false\. ?(?=\S)", r"\1", text)
    text = re.sub(r"((?:^|: )Cast: )(?:invalid )?sto\w+(?: argument)?$", r"\1a text is no number", text)
    text = re.sub(r"\b0x[0-9a-fA-F]{4,}\b", "…", text)
    return text if len(text) <= _CALLERS_CHARS else text[: _CALLERS_CHARS - 1] + "…"


_CALLERS_CHARS: Final = 300


_CODE: Final = re.compile(r"\[ONNXRuntimeError\] : \d+ : (\w+) :")
_WANTED: Final = re.compile(
    r"(?:running (?P<operator>\w+) node\..*)?Failed to allocate memory for requested buffer of size (?P<size>\d+)", re.S
)
_FAILURE: Final = re.compile(
    r"Failed to allocate|bad_alloc|out of memory|Missing Input|Unexpected input data type|Invalid input name|"
    r"not implemented|(?:CUDA|CUDNN|CUBLAS|CUFFT)\w* (?:failure|error)",
    re.IGNORECASE,
)
"""Of the machine, the model or us, whatever code it comes with."""
_OF_THE_INPUT: Final = re.compile(
    r"\b(?:shapes?|dims?|dimensions?|dimensionality|rank|axis|axes|broadcast\w*|indices|index|channels?|sizes?|lengths?|"
    r"elements?|negative|invalid|must|should|cannot|can't|out of (?:range|bounds?)|by zero|"
    r"stod|stof|stol|stoll|stoi)\b",
    re.IGNORECASE,
)


def _reason(error: Exception) -> str:
    """onnxruntime's message in one line, without its prefix, source files and C++ signatures."""
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", str(error).strip())
    text = re.sub(r"Load model from \S+ failed: ?", "", text)
    text = re.sub(r"/\S*onnxruntime\S*:\d+ (?:[\w:~<> ,&*\[\]=]+\([^)]*\)(?: const)?(?: \[with [^\]]*\])? )?", "", text)
    text = re.sub(
        r"Non-zero status code returned while running (\w+) node\. Name:'([^']*)' Status Message: ", _node, text
    )
    text = " ".join(text.split())
    return text if len(text) <= 500 else text[:499] + "…"


def _node(match: re.Match[str]) -> str:
    operator, name = match.groups()
    return f'{operator} node "{name}": ' if name else f"{operator} node: "


def _in_maps(maps: Any, change: Callable[[list[dict[Any, Any]]], list[dict[Any, Any]]]) -> Any:
    """A map, or a list with one a row, changed; what an optional output left out stays None."""
    if isinstance(maps, dict):
        return change([maps])[0]
    return change(maps) if isinstance(maps, list) else maps


def _shortened(maps: list[dict[Any, Any]]) -> list[dict[Any, Any]]:
    exact = [value for row in maps for value in row.values()]
    with np.errstate(over="ignore"):
        short = shortest(np.array(exact, np.float32))
    floats = iter([number if text is None else text for number, text in zip(exact, short, strict=True)])
    return [dict(zip(row, floats)) for row in maps]  # noqa: B905  # each row takes as many as it has keys


def _with_text_keys(maps: list[dict[Any, Any]]) -> list[dict[Any, Any]]:
    return [{str(key): value for key, value in row.items()} for row in maps]


def _closed(names: list[str], feeds: Mapping[str, Any], options: Any) -> Sequence[Any]:
    raise RuntimeError("it was closed")


class _Type(NamedTuple):
    """A type such as `optional(seq(tensor(float)))`, taken apart."""

    kind: Kind
    dtype: str
    optional: bool = False
    key_dtype: str | None = None


_DTYPES: Final = {
    "float": "float32", "double": "float64", "float16": "float16", "bfloat16": "bfloat16",
    "int8": "int8", "int16": "int16", "int32": "int32", "int64": "int64",
    "uint8": "uint8", "uint16": "uint16", "uint32": "uint32", "uint64": "uint64",
    "bool": "bool", "string": "string",
}  # fmt: skip
_TENSOR: Final = re.compile(r"tensor\((\w+)\)")
_SEQUENCE: Final = re.compile(r"seq\((.*)\)")
_OPTIONAL: Final = re.compile(r"optional\((.*)\)")
_MAP: Final = re.compile(r"map\((int64|string),tensor\((\w+)\)\)")
_FEEDABLE_MAP_VALUES: Final = ("float",)  # onnxruntime's Python API makes float maps only


def _parse_type(text: str, *, is_input: bool) -> _Type | None:
    """Return what an onnxruntime type name says; None if it has no form outside the model."""
    optional = _OPTIONAL.fullmatch(text)
    if optional:
        inner = _parse_type(optional[1], is_input=is_input)
        return inner and inner._replace(optional=True)
    tensor = _TENSOR.fullmatch(text)
    if tensor:
        return _Type("tensor", _DTYPES[tensor[1]]) if tensor[1] in _DTYPES else None
    mapping = _MAP.fullmatch(text)
    if mapping:
        if mapping[2] not in _DTYPES or (is_input and mapping[2] not in _FEEDABLE_MAP_VALUES):
            return None
        return _Type("map", _DTYPES[mapping[2]], key_dtype=mapping[1])
    sequence = _SEQUENCE.fullmatch(text)
    inner = _parse_type(sequence[1], is_input=is_input) if sequence else None
    if inner is None or inner.optional or inner.kind.startswith("sequence"):
        return None
    kind: Literal["sequence", "sequence_of_maps"] = "sequence" if inner.kind == "tensor" else "sequence_of_maps"
    if kind == "sequence_of_maps" and is_input:
        return None
    return inner._replace(kind=kind)


def _signature(
    inputs: Sequence[Any], outputs: Sequence[Any], header: ModelHeader | None, defaults: Sequence[Any] = ()
) -> Signature:
    """
    Describe a session.

    Args:
        inputs, outputs: `NodeArg`s.
        defaults: those of inputs that the model has a value for. What has no form outside the model is left out.
        header: what the file declares. onnxruntime shows an undeclared shape as `[]`, like a scalar's, and no shape at
            all for what is inside sequences.

    Raises:
        UnsupportedType: an input or output cannot be fed or read; names it.
    """

    def specs(args: Sequence[Any], declared: Iterable[ValueInfo], is_input: bool) -> Iterator[TensorSpec]:
        shapes = {info.name: info.shape for info in declared}
        for arg in args:
            found = _parse_type(arg.type, is_input=is_input)
            if found is None:
                raise UnsupportedType(arg.name, arg.type, is_input=is_input)
            shape: tuple[Dim, ...] | None = tuple(arg.shape)
            if found.kind == "sequence":
                shape = shapes.get(arg.name)
            elif found.kind == "tensor" and not shape:
                shape = shapes.get(arg.name, ())
            yield TensorSpec(arg.name, found.dtype, shape, found.optional, found.kind, found.key_dtype)

    signature = Signature(
        inputs=tuple(specs(inputs, () if header is None else header.inputs, True)),
        outputs=tuple(specs(outputs, () if header is None else header.outputs, False)),
    )
    _refuse_mixed_bfloat16(signature)
    with_default = [
        TensorSpec(arg.name, found.dtype, tuple(arg.shape), optional=True)
        for arg in defaults
        if (found := _parse_type(arg.type, is_input=True)) is not None
        and found.kind == "tensor"
        and found.dtype != "bfloat16"  # one would change how everything else is fed
    ]
    return msgspec.structs.replace(signature, inputs=(*signature.inputs, *with_default)) if with_default else signature


def _refuse_mixed_bfloat16(signature: Signature) -> None:
    """
    bfloat16 goes through `OrtValue`s, and those cannot be made of text, sequences or maps.

    Raises:
        UnsupportedType: the model has both; names the bfloat16 one, since a Cast there helps.
    """
    specs = [*signature.inputs, *signature.outputs]
    half = next((spec for spec in specs if spec.dtype == "bfloat16"), None)
    if half is None:
        return
    text = any(spec.dtype == "string" for spec in signature.inputs)
    if text or any(spec.kind != "tensor" or spec.optional for spec in specs):
        raise UnsupportedType(half.name, "tensor(bfloat16)", is_input=half in signature.inputs)


def _ort_value(array: NDArray[Any], dtype: str) -> Any:
    if dtype != "bfloat16":
        return ort.OrtValue.ortvalue_from_numpy(np.asarray(array, order="C"))
    upper = (np.asarray(array, np.float32, order="C").view(np.uint32) >> 16).astype(np.uint16)
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(upper, _BFLOAT16_ELEMENT_TYPE)


def _from_ort_value(value: Any) -> Any:
    if value.data_type() != "tensor(bfloat16)":
        return value.numpy()
    shape = tuple(value.shape())
    count = int(np.prod(shape, dtype=np.int64))
    raw = ctypes.string_at(value.data_ptr(), 2 * count)  # a copy: the OrtValue's memory goes with it
    return (np.frombuffer(raw, np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(shape)
