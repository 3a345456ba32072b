"""
What `cortex init` writes, as text: a cortex.yaml, a handler and a sample for one model. Pure.

The three work as they are. What people will want to change is there as a comment.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from cortex.wire.launch import MadeUpSample
from cortex.wire.signature import Signature, TensorSpec

YAML_FILE = "cortex.yaml"
HANDLER_FILE = "handler.py"
SAMPLE_FILE = "sample.json"
IGNORE_FILE = ".cortexignore"

_PLAIN_YAML = re.compile(r"(?!-)[A-Za-z0-9_./][A-Za-z0-9_./+-]*")
_YAML_WORDS = frozenset(("null", "true", "false", "yes", "no", "on", "off", "y", "n"))
_LONGEST_LINE = 100


@dataclass(frozen=True, kw_only=True)
class Starter:
    """What is known of a project that is about to be written."""

    deployment: str
    api: str
    model: str
    """As cortex.yaml has it."""
    shown_model: str
    """File name, for people."""
    signature: Signature
    model_format: str | None = None
    """Only if it has to be said."""
    signature_key: str | None = None
    """Only if the model has several."""
    sample: MadeUpSample | None = None

    def files(self) -> dict[str, str]:
        """Text by file name; no sample if none could be made up."""
        texts = {YAML_FILE: self._cortex_yaml(), HANDLER_FILE: self._handler()}
        if self.sample is not None:
            texts[SAMPLE_FILE] = sample_text(self.sample.body)
        return texts

    def _cortex_yaml(self) -> str:
        lines = [
            f"# Serves {_one_line(self.shown_model)}. Edit this as you like, then run `cortex deploy`.",
            "",
            "- kind: deployment",
            f"  name: {yaml_scalar(self.deployment)} # the first part of the URL",
            "",
            "- kind: api",
            f"  name: {yaml_scalar(self.api)} # the second part",
            f"  model: {yaml_scalar(self.model)}",
        ]
        if self.model_format is not None:
            lines.append(f"  model_format: {self.model_format}")
        if self.signature_key is not None:
            lines.append(f"  tf_signature_key: {yaml_scalar(self.signature_key)}")
        lines.append(f"  request_handler: {HANDLER_FILE}")
        lines += self._sample_lines()
        lines += [
            "  # tracker: # counts what is predicted; `cortex get` shows it",
            f"  #   key: {yaml_scalar(self.signature.outputs[0].name) if self.signature.outputs else 'label'}"
            " # the part of the response that is counted, if the response is an object",
            "  #   model_type: classification # or regression",
            "  compute:",
            "    min_replicas: 1",
            "    cpu: 200m",
            "    # mem: 512Mi",
        ]
        return "\n".join(lines) + "\n"

    def _sample_lines(self) -> Iterator[str]:
        if self.sample is not None and self.sample.accepted:
            yield f"  sample: {SAMPLE_FILE} # a new version has to answer it before it replaces anything"
            return
        if self.sample is None:
            yield f"  # Put a request body that works into {SAMPLE_FILE}, and a new version has to answer it before it"
        else:
            yield f"  # The model took none of the inputs that were made up for it. Once {SAMPLE_FILE} holds one that"
            yield "  # works, take in the next line, and a new version has to answer it before it"
        yield "  # replaces anything:"
        yield f"  # sample: {SAMPLE_FILE}"

    def _handler(self) -> str:
        inputs, outputs = self.signature.inputs, self.signature.outputs
        lines = [
            '"""',
            f"What is done before and after {_in_docstring(self.shown_model)}. As it stands, nothing.",
            "",
            "Either function may be left out, may be `async`, and may take a third parameter, `request`. Other files",
            "of this folder can be imported. What is printed or logged is shown by `cortex logs`.",
            '"""',
            "",
            "",
            "def pre_inference(sample, metadata):",
            *_comment(_on_sample()),
            "    #",
            *_comment(_on_inputs(inputs)),
            *(f"    #   {line}" for line in described(inputs)),
            "    return sample",
            "",
            "",
            "def post_inference(prediction, metadata):",
            *_comment(_on_outputs(outputs)),
            *(f"    #   {line}" for line in described(outputs)),
            *_advice(outputs, keeps_batch=self.signature.key is None),
            *_returned(outputs),
        ]
        return "\n".join(lines) + "\n"


def described(specs: Iterable[TensorSpec]) -> list[str]:
    """Inputs or outputs, one a line: `"x": float32 [N, 4]`."""
    specs = tuple(specs)
    return [f"{_literal(spec.name)}: {type_text(spec)}{', may be left out' * spec.optional}" for spec in specs]


def type_text(spec: TensorSpec) -> str:
    """`float32 [N, 4]`; `float32, one value` for a scalar."""
    if spec.kind == "tensor" and spec.shape == ():
        return f"{spec.dtype}, one value"
    return _one_line(str(spec)).replace("[", " [", 1)


def sample_text(body: bytes) -> str:
    """A JSON body as it is nice to edit: the values of an object on lines of their own, arrays on one line."""
    value = json.loads(body)
    if not isinstance(value, dict) or not value:
        return json.dumps(value, ensure_ascii=False) + "\n"
    parts = [json.dumps({key: item}, ensure_ascii=False)[1:-1] for key, item in value.items()]
    return "{\n  " + ",\n  ".join(parts) + "\n}\n"


def ignore_text(reason: str) -> str:
    """A `.cortexignore` that leaves a handler alone with its model. `reason`: why not everything can be shipped."""
    sentence = _one_line(reason.splitlines()[0].partition(". ")[0]).rstrip(":.")
    return (
        f"# Everything here but the handler is left out, because {sentence}.\n"
        "# Take in what it needs, one line for each file or folder, as !/helpers.py\n"
        "/*\n"
        f"!/{HANDLER_FILE}\n"
    )


def yaml_scalar(text: str) -> str:
    """Text as it may stand behind a key."""
    if _PLAIN_YAML.fullmatch(text) and text.lower() not in _YAML_WORDS and not _reads_as_number(text):
        return text
    return json.dumps(text, ensure_ascii=not text.isprintable())


def _reads_as_number(text: str) -> bool:
    return re.fullmatch(r"[0-9+.][0-9A-Fa-f_.xobe+-]*", text) is not None


def _on_sample() -> list[str]:
    return [
        "`sample` is the request's body: a JSON value, or bytes for image/*, audio/* and application/octet-stream.",
        'To refuse it:  from cortex import RequestError;  raise RequestError(400, "what is wrong with it")',
    ]


def _on_inputs(inputs: tuple[TensorSpec, ...]) -> list[str]:
    if not inputs:
        return ["The model has no inputs; whatever is returned here is ignored."]
    if len(inputs) == 1:
        return ["What is returned goes into the model, as lists or a numpy array; `metadata` describes it too:"]
    return ["What is returned goes into the model, lists or numpy arrays by name; `metadata` describes them too:"]


def _on_outputs(outputs: tuple[TensorSpec, ...]) -> list[str]:
    what = "the model's output" if len(outputs) == 1 else "the model's outputs, by name"
    return [f"`prediction` holds {what}. What is returned is the response, as JSON."]


def _advice(outputs: tuple[TensorSpec, ...], *, keeps_batch: bool) -> list[str]:
    """
    How to get at what people mostly want, where the first output looks as if it had that.

    Args:
        keeps_batch: whether a prediction for one row still has the batch dimension; TensorFlow's have lost it.
    """
    if not outputs:
        return []
    first = outputs[0]
    place = f"prediction[{_literal(first.name)}]"
    width = first.shape[-1] if first.shape else None
    if first.kind == "sequence_of_maps":
        sentence = f"The likeliest key of the first row:  max({place}[0], key={place}[0].get)"
    elif first.kind != "tensor" or not first.shape:
        return []
    elif len(first.shape) == 1:
        sentence = f"The first row's alone:  {place}[0]"
    elif len(first.shape) == 2 and first.dtype.startswith("float") and isinstance(width, int) and width > 1:
        sentence = f"The number of the first row's highest score:  {place}{'[0]' if keeps_batch else ''}.argmax()"
    else:
        return []
    return ["    #", *_comment([sentence])]


def _returned(outputs: tuple[TensorSpec, ...]) -> list[str]:
    """The statement that passes everything on."""
    if not outputs:
        return ["    return prediction"]
    places = [(_literal(output.name), f"prediction[{_literal(output.name)}]") for output in outputs]
    if len(places) == 1:
        return [f"    return {places[0][1]}"]
    line = f"    return {{{', '.join(f'{name}: {place}' for name, place in places)}}}"
    if len(line) <= _LONGEST_LINE:
        return [line]
    return ["    return {", *(f"        {name}: {place}," for name, place in places), "    }"]


def _comment(lines: Iterable[str]) -> list[str]:
    return [f"    # {line}" for line in lines]


def _literal(name: str) -> str:
    """A name as Python source, in double quotes."""
    return json.dumps(name, ensure_ascii=not name.isprintable())


def _in_docstring(text: str) -> str:
    return _one_line(text).replace("\\", "/").replace('"', "'")


def _one_line(text: str) -> str:
    """Text of others without what would end a comment."""
    return "".join(character if character.isprintable() else "?" for character in text)
