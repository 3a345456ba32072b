"""
The Open Inference Protocol v2 over REST, below an endpoint at `/v2`: tensors in, tensors out, for models without hooks.

Source:
    https://github.com/kserve/open-inference-protocol, `specification/protocol/inference_rest.md`, and Triton's
    extension for binary tensor data, `docs/protocol/extension_binary_data.md` of its server.
"""

from __future__ import annotations

import urllib.parse
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import orjson

from cortex.replica.bodies.codec import BadBody, Decoder, unpack
from cortex.replica.bodies.results import encode
from cortex.replica.protocols.request_view import RequestView
from cortex.replica.protocols.tensor_data import (
    DATATYPES,
    DataError,
    datatype_of,
    read_binary,
    read_json,
    read_shape,
    write_binary,
    write_json,
)
from cortex.replica.transport.faults import Fault
from cortex.replica.transport.http import JSON, Exchange, Message, MethodNotAllowed, PathNotFound
from cortex.version import __version__
from cortex.wire.signature import Signature, TensorSpec, shape_text

PATH: Final = b"/v2"
PLATFORMS: Final = {"onnx": "onnx_onnxv1", "tensorflow": "tensorflow_savedmodel"}
_BINARY: Final = b"application/octet-stream"
_ASKING: Final = b"GET, HEAD, OPTIONS"
_INFERRING: Final = b"POST, OPTIONS"
_REFUSED: Final = {
    "sequence_id": "sequences are not supported: each request stands for itself",
    "shared_memory_region": "shared memory is not supported: send the data",
    "classification": "classification is not supported: ask for the output itself",
}
"""Parameters whose absence nobody should have to find out from a wrong answer. Others are left unread."""


class Asked(NamedTuple):
    """What a request says besides its inputs."""

    id: str | None
    outputs: Sequence[tuple[int, bool]]
    """Places in the model's outputs, and whether each is to come as binary data."""


class OpenInference:
    """
    Reads tensors and writes tensors.

    Args:
        endpoint: path of the api.
        name, version: of the api, as they stand in paths.
        platform: what executes the model, in the protocol's words.
        signature: of the model.
        takes_bytes: as for `Converter`.
        has_hooks: whether a handler stands before or behind the model: then there is nothing here to infer.
    """

    takes_tensors = True

    def __init__(
        self,
        *,
        endpoint: str,
        name: str,
        version: str,
        platform: str,
        signature: Signature,
        takes_bytes: bool,
        has_hooks: bool,
    ) -> None:
        self._endpoint = endpoint
        self._name, self._version = name, version
        self._takes_bytes = takes_bytes
        self._inputs = {spec.name: spec for spec in signature.inputs if _is_tensor(spec)}
        self._outputs = signature.outputs
        self._places = {spec.name: place for place, spec in enumerate(signature.outputs)}
        self._usual = [place for place, spec in enumerate(signature.outputs) if _is_tensor(spec)]
        self._why_not = _why_not(signature, endpoint, has_hooks)
        self._metadata = {
            "name": name,
            "versions": [version],
            "platform": platform,
            "inputs": [_tensor_metadata(spec) for spec in self._inputs.values()],
            "outputs": [_tensor_metadata(signature.outputs[place]) for place in self._usual],
        }
        self._needed = [spec.name for spec in self._inputs.values() if not spec.optional]
        self._decode = Decoder(has_pre_inference=True).decode  # as for hooks: integers of any size are exact

    # ---- for the service ----------------------------------------------------------------------------------------

    def answer(self, exchange: Exchange) -> Message | None:
        below = exchange.path.decode("latin-1")[len(self._endpoint) :].strip("/")
        match [urllib.parse.unquote(part) for part in below.split("/")][1:]:
            case []:
                found: Any = {"name": "cortex", "version": __version__, "extensions": ["binary_tensor_data"]}
            case ["health", "live"]:
                found = {"live": True}
            case ["health", "ready"]:
                found = {"ready": True}
            case ["models", name, "versions", version, *rest]:
                found = self._about_model(name, version, rest)
            case ["models", name, *rest]:
                found = self._about_model(name, None, rest)
            case _:
                shown = exchange.path.decode("latin-1")[:200]
                raise PathNotFound(f"nothing of the Open Inference Protocol is at {shown}")
        allowed = _ASKING if found is not None else _INFERRING
        if exchange.method == b"OPTIONS":
            return Message(204, b"", b"", b"allow: %b\r\n" % allowed)
        if exchange.method.decode("latin-1") not in allowed.decode().split(", "):
            shown = exchange.method.decode("latin-1")
            raise MethodNotAllowed(f"{shown} is not allowed here, but {allowed.decode()}", allowed)
        if found is not None:
            return Message(200, JSON, orjson.dumps(found))
        if self._why_not:
            raise BadBody(self._why_not)
        exchange.below = "/v2/models/{model}/infer"
        return None

    def refuse(self, exchange: Exchange, fault: Fault) -> Message:
        hint = fault.facts.get("hint")
        text = f"{fault.message} ({hint})" if hint else fault.message
        # What is wrong with a tensor is a bad request here, as is a body of another kind.
        status = 400 if fault.status in (415, 422) else fault.status
        return Message(status, JSON, orjson.dumps({"error": text}), fault.headers)

    def _about_model(self, name: str, version: str | None, rest: Sequence[str]) -> Any:
        """What is told of the model; None: inference is asked for. Raises NotFound."""
        if name != self._name:
            raise PathNotFound(f'there is no model "{_start(name)}" here, but "{self._name}"')
        if version is not None and version != self._version:
            raise PathNotFound(f'model "{name}" has no version "{_start(version)}" here, but "{self._version}"')
        match rest:
            case []:
                return self._metadata
            case ["ready"]:
                return {"name": self._name, "ready": True}
            case ["infer"]:
                return None
            case _:
                raise PathNotFound(f'"{_start("/".join(rest))}" is nothing that a model is asked for here')

    # ---- for the pipeline ---------------------------------------------------------------------------------------

    def read(self, exchange: Exchange) -> dict[str, Any]:
        """
        Body to tensors by name.

        Raises:
            BadBody: it is no inference request, or none for this model.
            InputMismatch: an element is none of its type.
        """
        encoding = exchange.headers.get(b"content-encoding")
        if encoding is not None:
            exchange.take_body(unpack(exchange.body, encoding.decode("latin-1"), limit=exchange.max_body_bytes))
        body = exchange.body
        header_bytes = _header_bytes(exchange.headers.get(b"inference-header-content-length"), len(body))
        request = self._decode(body[:header_bytes])
        if not isinstance(request, dict):
            raise BadBody("an inference request is a JSON object")
        parameters = _parameters(request, "the request")
        exchange.asked = Asked(_id(request), self._asked_outputs(request, parameters.get("binary_data_output", False)))
        inputs = request.get("inputs")
        if not isinstance(inputs, list):
            raise BadBody('the request needs "inputs": a list of tensors')
        binary = memoryview(body)[header_bytes:]
        place = 0
        tensors: dict[str, Any] = {}
        for one in inputs:
            spec = self._input(one, tensors)
            shape = read_shape(spec.name, one.get("shape"))
            _check_shape(spec, shape)
            size = _parameters(one, f'input "{spec.name}"').get("binary_data_size")
            if size is None:
                if "data" not in one:
                    raise DataError(spec.name, 'has neither "data" nor "binary_data_size"')
                tensors[spec.name] = read_json(spec, shape, one["data"], header_bytes, self._takes_bytes)
                continue
            if not isinstance(size, int) or isinstance(size, bool) or size < 0:
                raise DataError(spec.name, f"has {size!r} for binary_data_size, which is no size")
            if "data" in one:
                raise DataError(spec.name, 'has both "data" and "binary_data_size"')
            if size > len(binary) - place:
                left = len(binary) - place
                raise DataError(spec.name, f"says that it has {size} bytes, and {left} are left behind the JSON")
            tensors[spec.name] = read_binary(spec, shape, binary[place : place + size])
            place += size
        for name in self._needed:
            if name not in tensors:
                raise BadBody(f'input "{name}" is missing')
        if place != len(binary):
            raise BadBody(f"behind the JSON are {len(binary)} bytes, and the inputs say that they have {place}")
        return tensors

    def read_again(self, exchange: Exchange) -> dict[str, Any]:
        return self.read(exchange)

    def exact(self, exchange: Exchange) -> None:
        return None

    def write(self, exchange: Exchange, outputs: Sequence[Any]) -> bytes | Message:
        """
        Outputs of the model as a response.

        Raises:
            BadBody: what is asked for has no form in the protocol.
        """
        asked: Asked = exchange.asked
        told: list[dict[str, Any]] = []
        chunks: list[bytes] = []
        for place, as_binary in asked.outputs:
            spec, array = self._outputs[place], outputs[place]
            datatype = datatype_of(spec, array) if isinstance(array, np.ndarray) else None
            if datatype is None:
                raise BadBody(f'output "{spec.name}" is no tensor of a type that the protocol has')
            one: dict[str, Any] = {"name": spec.name, "datatype": datatype, "shape": list(array.shape)}
            if as_binary:
                chunks.append(write_binary(datatype, array))
                one["parameters"] = {"binary_data_size": len(chunks[-1])}
            else:
                one["data"] = write_json(spec.name, array)
            told.append(one)
        named = {"model_name": self._name, "model_version": self._version}
        header = encode({**named, **({} if asked.id is None else {"id": asked.id}), "outputs": told})
        if not chunks:
            return header
        length = b"inference-header-content-length: %d\r\n" % len(header)
        return Message(200, _BINARY, b"".join([header, *chunks]), length)

    def view(self, exchange: Exchange) -> RequestView:
        return RequestView(exchange)

    def _input(self, one: Any, before: Mapping[str, Any]) -> TensorSpec:
        """What the model says of an input of the request. Raises BadBody."""
        name = _name(one, "input", self._inputs)
        spec = self._inputs[name]
        if name in before:
            raise DataError(name, "is there twice")
        datatype = one.get("datatype")
        if datatype != DATATYPES[spec.dtype]:
            raise DataError(name, f"is {DATATYPES[spec.dtype]}, and the request says {_start(str(datatype))}")
        return spec

    def _asked_outputs(self, request: Mapping[str, Any], binary: object) -> list[tuple[int, bool]]:
        """Raises BadBody."""
        wanted = request.get("outputs")
        if wanted is None or wanted == []:
            return [(place, _flag(binary, "binary_data_output")) for place in self._usual]
        if not isinstance(wanted, list):
            raise BadBody('"outputs" is a list')
        found: dict[int, bool] = {}
        for one in wanted:
            name = _name(one, "output", self._places)
            place = self._places[name]
            if place in found:
                raise BadBody(f'output "{name}" is asked for twice')
            if place not in self._usual:
                raise BadBody(f'output "{name}" is {self._outputs[place]}, which the protocol has no tensor for')
            parameters = _parameters(one, f'output "{name}"')
            found[place] = _flag(parameters.get("binary_data", binary), "binary_data")
        return list(found.items())


def _name(one: object, noun: str, known: Collection[str]) -> str:
    """Of a tensor that a request names. Raises BadBody."""
    name = one.get("name") if isinstance(one, dict) else None
    if not isinstance(name, str):
        raise BadBody(f"each {noun} is a JSON object with a name")
    if name not in known:
        names = ", ".join(f'"{other}"' for other in known)
        raise BadBody(f'the model has no {noun} "{_start(name)}"; it has {names}')
    return name


def _start(text: str) -> str:
    """As much of what a caller sent as is repeated to him."""
    return text[:60]


def _is_tensor(spec: TensorSpec) -> bool:
    return spec.kind == "tensor" and spec.dtype in DATATYPES


def _tensor_metadata(spec: TensorSpec) -> dict[str, Any]:
    """A free size is -1, and so is the only one of what has any number of dimensions."""
    shape = (None,) if spec.shape is None else spec.shape
    sizes = [size if isinstance(size, int) else -1 for size in shape]
    return {"name": spec.name, "datatype": DATATYPES[spec.dtype], "shape": sizes}


def _why_not(signature: Signature, endpoint: str, has_hooks: bool) -> str:
    """Why nothing can be inferred here; empty if it can."""
    if has_hooks:
        return f"this api has a handler, which takes samples, not tensors: POST a sample to {endpoint}"
    for spec in signature.inputs:
        if not spec.optional and not _is_tensor(spec):
            return f'input "{spec.name}" is {spec}, which the protocol has no tensor for: POST a sample to {endpoint}'
    if not any(map(_is_tensor, signature.outputs)):
        return f"the model gives nothing that the protocol has a tensor for: POST a sample to {endpoint}"
    return ""


def _header_bytes(value: bytes | None, body_bytes: int) -> int:
    """How long the JSON is. Raises BadBody."""
    if value is None:
        return body_bytes
    if not value.isdigit() or len(value) > 19:
        raise BadBody("inference-header-content-length is no number of bytes")
    if int(value) > body_bytes:
        raise BadBody(f"inference-header-content-length is {int(value)}, and the body has {body_bytes} bytes")
    return int(value)


def _parameters(holder: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """Raises BadBody."""
    parameters = holder.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise BadBody(f"the parameters of {where} are no JSON object")
    for name, why in _REFUSED.items():
        if parameters.get(name):
            raise BadBody(f"{where} has the parameter {name}: {why}")
    return parameters


def _flag(value: object, name: str) -> bool:
    if not isinstance(value, bool):
        raise BadBody(f"{name} is true or false")
    return value


def _id(request: Mapping[str, Any]) -> str | None:
    given = request.get("id")
    if given is not None and not isinstance(given, str):
        raise BadBody('the "id" of a request is a string')
    return given


def _check_shape(spec: TensorSpec, shape: tuple[int, ...]) -> None:
    """Raises DataError unless a shape is one of those that the model takes: nothing is reshaped here."""
    wanted = spec.shape
    if wanted is None:
        return
    if len(shape) != len(wanted) or any(
        isinstance(size, int) and size != given for size, given in zip(wanted, shape, strict=True)
    ):
        raise DataError(spec.name, f"has the shape {shape_text(wanted)}, and the request says {shape_text(shape)}")
