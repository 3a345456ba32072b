"""What executes a model, as the rest of a replica sees it; and what can be wrong with a model."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol, cast

from cortex.errors import CortexError
from cortex.wire.build import Runtime
from cortex.wire.launch import ReplicaSpec
from cortex.wire.signature import Signature


class Backend(Protocol):
    """
    One loaded model. `run` may be called from several threads at once; nothing else may.

    Implementations pass the suite in `tests/contract/test_backends.py`.
    """

    takes_bytes: ClassVar[bool]
    """Whether text inputs may hold bytes that are not UTF-8; for `tensors.Converter`."""

    signature: Signature
    """Inputs and outputs, in model order."""
    metadata_inputs: Any
    """What `pre_inference` gets as `metadata`."""
    metadata_outputs: Any
    """What `post_inference` gets as `metadata`."""
    runtime: str
    """What executes it, e.g. `onnxruntime 1.32.0, cpu, 2 threads`: another may round otherwise."""

    def run(self, feeds: Mapping[str, Any]) -> Sequence[Any]:
        """
        Execute the model.

        Args:
            feeds: value by input name, as `tensors.Converter.convert` makes them, of one request; of several, stacked
                along dimension 0, where their rows do not depend on each other.

        Returns:
            Outputs in model order.

        Raises:
            InputRefused: the runtime says that the values are no input for this model.
            InferenceFailed: the model failed on them.
        """
        ...

    def present(self, outputs: Sequence[Any], feeds: Mapping[str, Any]) -> Any:
        """
        Return the prediction as handlers see it.

        Args:
            outputs: of one request: what `run` returned, or that request's rows of it.
            feeds: of that request.
        """
        ...

    def plain(self, prediction: Any) -> Any:
        """Return what is answered when there is no `post_inference`: a prediction that `results.encode` takes."""
        ...

    def close(self) -> None:
        """Release the model. Idempotent; `run` raises `InferenceFailed` afterwards."""
        ...


def runtime_text(library: str, version: str, device: str, threads: int) -> str:
    """`Backend.runtime`, in the form that all backends have it."""
    return f"{library} {version}, {device}, {threads} thread{'s' * (threads != 1)}"


def preload(runtime: Runtime) -> None:
    """
    Import what a runtime stands on, so that forked processes need not.

    Raises:
        BackendMissing: its library is not installed.
    """
    importlib.import_module(f"{__package__}.{runtime}")


def load(
    runtime: Runtime, path: str, *, threads: int = 1, gpu: bool = False, signature_key: str | None = None
) -> Backend:
    """
    Load a model.

    Args:
        runtime: which backend.
        path: of the model file or folder.
        threads: for one run.
        gpu: whether to run on a GPU.
        signature_key: which signature, for formats that have several.

    Raises:
        ModelError: the subclass says what is wrong with the model, and how to mend it.
    """
    adapter = importlib.import_module(f"{__package__}.{runtime}")
    return cast("Backend", adapter.load(path, threads=threads, gpu=gpu, signature_key=signature_key))


def load_for(spec: ReplicaSpec) -> Backend:
    """Load the model that a replica is to serve; raises as `load` does."""
    if spec.model_path is None:
        raise ModelError(f"what runs as `{spec.runtime}` needs a model, and there is none")
    return load(
        spec.runtime,
        spec.model_path,
        threads=spec.threads,
        gpu=spec.resources.gpus > 0,
        signature_key=spec.signature_key,
    )


class ModelError(CortexError):
    """A model that cannot be served as it is. Found when it is loaded, so a deploy fails with it."""

    reference = "model-error"

    def __init__(self, message: str, *, hint: str = "") -> None:
        self.hint = hint
        super().__init__(message)


class ModelUnreadable(ModelError):
    """
    The file is no model, or not a whole one.

    Args:
        path: of the model, as the user knows it.
        reason: what is wrong with it, in words that follow "cannot be read:".
        hint: what to do about it.
    """

    reference = "model-unreadable"

    def __init__(self, path: str, reason: str, *, hint: str = "") -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"{path} cannot be read: {reason}", hint=hint)


class WeightsFileMissing(ModelError):
    """
    A file of weights that the model names is not beside it.

    Args:
        model: file name of the model.
        file: name of the missing file, relative to the model's folder.
    """

    reference = "external-data-missing"

    def __init__(self, model: str, file: str) -> None:
        self.model = model
        self.file = file
        super().__init__(
            f"{model} needs {file} beside it",
            hint=f"copy {file} into the folder of {model}, or export with all weights inside the .onnx file",
        )


class UnsupportedOpset(ModelError):
    """
    The model was exported for a newer operator set than this runtime knows.

    Args:
        domain: of the operators; `ai.onnx` is the standard.
        found: the model's opset.
        supported: the newest one that can be run.
    """

    reference = "unsupported-opset"

    def __init__(self, domain: str, found: int, supported: int) -> None:
        self.domain, self.found, self.supported = domain, found, supported
        export = (
            f"export with opset {supported} or lower: torch.onnx.export(…, opset_version={supported}), "
            f"tf2onnx --opset {supported}, or onnx.version_converter.convert_version(model, {supported})"
            if domain == "ai.onnx"
            else f'export with {domain} {supported} or lower, e.g. skl2onnx target_opset={{"{domain}": {supported}}}'
        )
        super().__init__(
            f"the model uses opset {found} of {domain}, and this onnxruntime runs up to {supported}", hint=export
        )


class UnsupportedIrVersion(ModelError):
    """
    The file format is newer than this runtime reads.

    Args:
        found: the model's IR version.
        supported: the newest one that can be read.
    """

    reference = "unsupported-ir-version"

    def __init__(self, found: int, supported: int) -> None:
        self.found, self.supported = found, supported
        super().__init__(
            f"the model has ONNX IR version {found}, and this onnxruntime reads up to {supported}",
            hint=f"m = onnx.load(path); m.ir_version = {supported}; onnx.save(m, path), or export with an older onnx",
        )


class UnsupportedOperator(ModelError):
    """
    The model uses an operator that this runtime does not have, or not for the types it is used with.

    Args:
        operator: its name.
        domain: where it comes from; empty for the standard one.
        reason: the runtime's own words.
    """

    reference = "unsupported-operator"

    def __init__(self, operator: str, domain: str, reason: str) -> None:
        self.operator, self.domain, self.reason = operator, domain, reason
        name = f"{domain}:{operator}" if domain else operator
        super().__init__(
            f"the model uses the operator {name}, which this onnxruntime does not run: {reason}",
            hint="custom operator libraries are not loaded: export with standard ONNX operators only"
            if domain and domain != "ai.onnx.ml"
            else "export with another opset_version, or replace the operator in the model before exporting",
        )


class UnsupportedType(ModelError):
    """
    An input or output has a type that cannot be fed or read.

    Args:
        name: of the input or output.
        type: as the model declares it, e.g. `tensor(float8e4m3fn)`.
        is_input: which of the two.
    """

    reference = "unsupported-type"

    def __init__(self, name: str, type: str, *, is_input: bool) -> None:
        self.name, self.type, self.is_input = name, type, is_input
        where, fix = ("input", "begin") if is_input else ("output", "end")
        super().__init__(
            f'the {where} "{name}" is of type {type}, which has no form outside the model',
            hint=f"let the model {fix} with a Cast: float32 for the outside world, {type} inside",
        )


class BackendMissing(ModelError):
    """
    The library that runs this kind of model is not installed, or lacks what was asked of it.

    Args:
        package: that is missing.
        extra: of our distribution that brings it; empty for what it always brings.
    """

    reference = "backend-missing"

    def __init__(self, package: str, extra: str = "") -> None:
        self.package, self.extra = package, extra
        wanted = f'"cortex-serving[{extra}]"' if extra else package
        super().__init__(f"{package} is not available", hint=f"pip install {wanted}")


class InferenceFailed(CortexError):
    """
    The model failed on an input that matches its signature.

    Args:
        reason: the runtime's words, in one line.
    """

    reference = "inference-failed"

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"the model failed: {reason}")


class InputRefused(InferenceFailed):
    """
    What the runtime calls an invalid argument: an index that is out of range, sizes that do not go together, bytes that
    are no image. Whoever made the input can do something about it.
    """


def machines_memory_bytes() -> int:
    """All of it, used or not."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def refused_for_its_size(operation: str, wanted_bytes: int) -> InputRefused | None:
    """
    What it means that a runtime got no memory for one tensor: more than the machine has is what the input asks for, be
    it by a number that is taken for a size or by its own; less may be there for the same input a moment later (None).

    Args:
        operation: of the graph, for the message; empty if it is not known.
    """
    if wanted_bytes <= machines_memory_bytes():
        return None
    amount, unit = wanted_bytes / 2**30, "GiB"
    for larger in ("TiB", "PiB", "EiB"):
        if amount >= 1024:
            amount, unit = amount / 1024, larger
    asked = f"a result of {amount:,.0f} {unit} is asked for, which is more memory than there is"
    why = "a number in the input is taken for a size, or there are too many values"
    return InputRefused(f"{operation}: {asked}; {why}" if operation else f"{asked}; {why}")
