"""
The blocks of a cortex.yaml as frozen models: every field, default and rule that one file can be checked against.

The models are what travels: `model_dump(mode="json")` of a `ProjectSpec` is validated again by the control plane. Fields
keep the user's own spelling, which is what `cortex get -v` shows; properties ending in a unit are what code computes with.
Explicit `null` means the default everywhere. Whether models, handlers and secrets exist is not looked at here.

`_refusal` is how a rule says no; `explanation` turns it into a `Problem`.
"""

from __future__ import annotations

import math
import posixpath
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, LiteralString, Self, TypeVar, cast
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    JsonValue,
    PlainSerializer,
    PlainValidator,
    Tag,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from cortex.ids import DEFAULT_DEPLOYMENT, DeploymentName
from cortex.spec.problems import nearest, quoted
from cortex.spec.quantities import DURATION_PATTERN, QUANTITY_PATTERN, Cpu, Duration, QuantityError, Size

ModelFormat = Literal["onnx", "tensorflow"]
ModelType = Literal["classification", "regression"]

NAME_PATTERN = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"
MAX_NAME_CHARACTERS = 42
ENV_NAME_PATTERN = r"^[A-Za-z_][A-Za-z0-9_]*$"
RESERVED_ENV_PREFIX = "CORTEX_"
SECRET_NAME_PATTERN = r"^[A-Za-z0-9_][-._A-Za-z0-9]*$"
MODEL_SCHEMES = ("file", "s3", "gs", "az", "https")
SAMPLE_SUFFIXES = frozenset(
    [".json", ".npy", ".txt", ".bin", ".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff"]
    + [".wav", ".mp3", ".flac", ".ogg", ".m4a"]
)
"""A `sample` that is a string with one of these endings is the path of a file."""

MAX_COUNT = 1_000_000
"""Upper bound of every integer field: far above any cluster, and a slipped finger is noticed."""
MAX_TEXT_CHARACTERS = 4096
"""Linux's PATH_MAX; object keys are shorter still."""
MAX_ENV_BYTES = 128 * 1024 - 1
"""`NAME=value`: Linux's MAX_ARG_STRLEN less the final NUL; beyond it a replica could not be started."""
MAX_SAMPLE_DEPTH = 64

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_SCHEME_TYPO = re.compile(rf"({'|'.join(MODEL_SCHEMES)}|https?):/?(?!/)", re.IGNORECASE)
_MEANT_SCHEMES = {"http": "https", "gcs": "gs", "azure": "az", "abfs": "az", "abfss": "az", "wasbs": "az", "s3a": "s3", "s3n": "s3"}
_ON_WORDS = ("on", "yes", "true")
_OFF_WORDS = ("off", "no", "false")

T = TypeVar("T")


def infer_format(model: str) -> ModelFormat | None:
    """
    Return the format that a model's name tells, without looking at it.

    None is a folder or a file of another name: what is in it decides. A name that ends in `.zip` says `tensorflow`, and
    what is inside has the last word there too.
    """
    path = urlsplit(model).path if _SCHEME.match(model) else model
    if path.lower().endswith(".onnx"):
        return "onnx"
    return "tensorflow" if path.lower().endswith(".zip") else None


def masked_model(model: str) -> str:
    """Return a model's location as it may be shown: without the query, user and password of an https URL."""
    scheme = _SCHEME.match(model)
    if scheme is None or scheme[1].lower() not in ("https", "http"):
        return model
    location, query, _ = model.partition("?")
    location = location.partition("#")[0]
    rest = location[scheme.end() :]
    host, slash, path = rest.partition("/")
    return f"{scheme[0]}{host.rpartition('@')[2]}{slash}{path}" + ("?***" if query else "")


def is_remote(model: str) -> bool:
    """Whether a model has to be fetched: `s3://`, `gs://`, `az://`, `https://`."""
    scheme = _SCHEME.match(model)
    return scheme is not None and scheme[1].lower() != "file"


def sample_path(sample: object) -> str | None:
    """Return `sample` if it is the path of a file rather than a value."""
    if not isinstance(sample, str) or "\n" in sample:
        return None
    return sample if posixpath.splitext(sample)[1].lower() in SAMPLE_SUFFIXES else None


def suggest_name(text: str) -> str | None:
    """Return the nearest valid name, e.g. `iris-v2` for `Iris_V2`; None if nothing of it can be kept."""
    name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    if name[:1].isdigit():
        name = f"api-{name}"
    name = name[:MAX_NAME_CHARACTERS].rstrip("-")
    return name or None


def _refusal(reference: LiteralString, message: str, *, hint: str = "", **facts: Any) -> PydanticCustomError:
    """
    Return the error by which a rule refuses a value.

    Args:
        facts: `blame` and `by_default` (field, message) replace place and message when the refused field is not in the
            file at all, but at its default.
    """
    return PydanticCustomError(reference, "{message}", {"message": message, "hint": hint, **facts})


def _wrong_type(expected: str) -> PydanticCustomError:
    return PydanticCustomError("wrong-type", "expected {expected}", {"expected": expected})


def _string(value: object) -> str:
    if not isinstance(value, str):
        raise _wrong_type("a string")
    return value


def _text(value: object) -> str:
    """A string that names something: not empty, on one line."""
    text = _string(value)
    if not text.strip():
        raise _refusal("bad-text", "expected a string, found an empty one", hint="delete the line to use the default")
    if len(text) > MAX_TEXT_CHARACTERS:
        raise _refusal("bad-text", f"expected at most {MAX_TEXT_CHARACTERS} characters, found {len(text)}")
    control = _CONTROL.search(text)
    if control is not None:
        raise _refusal("bad-text", f"{quoted(text)} has a control character at position {control.start() + 1}")
    return text


def _integer(minimum: int) -> Any:
    """The type of an integer field. Strict: neither `2.0`, `"2"` nor `true` is an integer."""

    def check(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise _wrong_type("an integer")
        if value < minimum:
            raise PydanticCustomError("out-of-range", "expected at least {bound}", {"bound": minimum, "side": "least"})
        if value > MAX_COUNT:
            raise PydanticCustomError("out-of-range", "expected at most {bound}", {"bound": MAX_COUNT, "side": "most"})
        return value

    return PlainValidator(check), WithJsonSchema({"type": "integer", "minimum": minimum, "maximum": MAX_COUNT})


def _word(*words: str) -> tuple[PlainValidator, WithJsonSchema]:
    """The type of a field that takes one of a few words."""

    def check(value: object) -> str:
        text = _string(value)
        if text not in words:
            raise PydanticCustomError("unknown-value", "expected one of {words}", {"words": words})
        return text

    return PlainValidator(check), WithJsonSchema({"type": "string", "enum": list(words)})


def _quantity(kind: type[T]) -> Any:
    """The type of a field that is spelled as a quantity or duration; dumped as the user spelled it."""
    parse = cast(Callable[[Any], T], getattr(kind, "parse"))  # noqa: B009

    def check(value: Any) -> T:
        if isinstance(value, kind):
            return value
        try:
            return parse(value)
        except QuantityError as error:
            if not isinstance(value, str | int | float) or isinstance(value, bool):
                expected = "a duration" if kind is Duration else "a quantity"
                raise PydanticCustomError("wrong-type", "{hint}", {"expected": expected, "hint": error.hint}) from None
            if kind is Duration:
                raise _refusal("bad-duration", str(error), hint=error.hint) from None
            raise _refusal("bad-quantity", str(error), hint=error.hint) from None

    return PlainValidator(check)


def _spelled(value: Cpu | Size | Duration) -> str:
    return value.text


_ABOVE_ZERO = r"(?=[0-9.]*[1-9])"
_QUANTITY_SCHEMA = {"type": ["string", "number"], "pattern": rf"^\+?{_ABOVE_ZERO}{QUANTITY_PATTERN}$", "exclusiveMinimum": 0}
_DURATION_SCHEMA = {
    "type": ["string", "number"],
    "pattern": rf"^(?=.*[1-9])({DURATION_PATTERN})$",
    "exclusiveMinimum": 0,
}

CpuField = Annotated[Cpu, _quantity(Cpu), PlainSerializer(_spelled, return_type=str), WithJsonSchema(_QUANTITY_SCHEMA)]
SizeField = Annotated[Size, _quantity(Size), PlainSerializer(_spelled, return_type=str), WithJsonSchema(_QUANTITY_SCHEMA)]
DurationField = Annotated[
    Duration, _quantity(Duration), PlainSerializer(_spelled, return_type=str), WithJsonSchema(_DURATION_SCHEMA)
]
