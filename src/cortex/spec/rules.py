"""
Rules for single values of a cortex.yaml: each takes a value and returns it cleaned, or raises a refusal.

A refusal is a `PydanticCustomError` whose type is the reference of the problem; `explanation` makes a `Problem` of it.
"""

from __future__ import annotations

import math
import posixpath
import re
from collections.abc import Callable, Mapping
from typing import Any, LiteralString

from pydantic import ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from cortex.spec.locations import SCHEME, SCHEMES, masked_model
from cortex.spec.problems import found, nearest, quoted
from cortex.spec.quantities import Cpu, Duration, DurationError, QuantityError, Size

NAME_PATTERN = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"
MAX_NAME_CHARACTERS = 42
PROBE_NAMES = ("healthz", "readyz")
"""First names of paths that are the ingress's own."""
BELOW_ENDPOINTS = ("v2",)
"""Names below an endpoint that are a protocol's: at `/iris/v2` it speaks to the api `iris` of deployment `default`."""
SECRET_NAME_PATTERN = r"^[A-Za-z0-9_][-._A-Za-z0-9]*$"
OTHER_SOURCES = (".ipynb", ".pyc", ".pyi", ".pyx", ".js", ".ts", ".r", ".sh", ".txt", ".json", ".yaml", ".yml", ".md")
"""Endings of files: `handler.js` is none of a module's names, as `handlers.iris` is."""
MAX_SECRET_NAME_CHARACTERS = 128
ENV_NAME_PATTERN = r"^[A-Za-z_][A-Za-z0-9_]*$"
MAX_ENV_NAME_CHARACTERS = 255
RESERVED_ENV_PREFIX = "CORTEX_"
MAX_ENV_VALUE_BYTES = 127 * 1024
"""With the longest name still below Linux's MAX_ARG_STRLEN (128 KiB), beyond which no process starts."""
MAX_COUNT = 1_000_000
"""Upper bound of every integer field: far above any cluster, and a slipped finger is noticed."""
MAX_TEXT_CHARACTERS = 4096
"""Linux's PATH_MAX; object keys are shorter still."""
MAX_SAMPLE_DEPTH = 64

ON_SPELLINGS = (True, *(case(word) for word in ("on", "yes", "true") for case in (str, str.title, str.upper)))
OFF_SPELLINGS = (False, *(case(word) for word in ("off", "no", "false") for case in (str, str.title, str.upper)))
"""As YAML 1.1 had it; by YAML 1.2 all but true and false are strings."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_SCHEME_TYPO = re.compile(rf"({'|'.join(SCHEMES)}|http):/?(?!/)", re.IGNORECASE)
_MEANT_SCHEMES = {
    **dict.fromkeys(["s3a", "s3n"], "s3"),
    **dict.fromkeys(["gcs"], "gs"),
    **dict.fromkeys(["azure", "abfs", "abfss", "wasb", "wasbs"], "az"),
    "http": "https",
}
_LOCATIONS = "a model is a path, or begins with file://, s3://, gs://, az:// or https://"


def refusal(reference: LiteralString, message: str, *, hint: str = "", **facts: Any) -> PydanticCustomError:
    """
    Return the error by which a rule refuses a value.

    Args:
        facts: if the refused field is not in the file at all but at its default, `blame` (a field beside it),
            `message_by_default` and `hint_by_default` say it instead.
    """
    return PydanticCustomError(reference, "{message}", {"message": message, "hint": hint, **facts})


def wrong_type(expected: str) -> PydanticCustomError:
    """Return the refusal of a value of another type; `explanation` adds what was found, as it was written."""
    return PydanticCustomError("wrong-type", "expected {expected}", {"expected": expected})


def _out_of_range(side: str, nearest_: int) -> PydanticCustomError:
    return PydanticCustomError("out-of-range", "expected {bound}", {"bound": f"{side} {nearest_}", "nearest": nearest_})


def check_string(value: object) -> str:
    if not isinstance(value, str):
        raise wrong_type("a string")
    return value


def check_text(value: object) -> str:
    """A string that names something: not empty, one line, not longer than a path can be."""
    text = check_string(value)
    if not text.strip():
        raise refusal("bad-text", "expected a string that is not empty")
    if len(text) > MAX_TEXT_CHARACTERS:
        raise refusal("bad-text", f"expected at most {MAX_TEXT_CHARACTERS} characters, found {len(text)}")
    if _CONTROL.search(text):
        raise refusal("bad-text", f"{quoted(text)} has a control character", hint="delete it")
    return text


def check_at_least(minimum: int) -> Callable[[object], int]:
    """The rule of an integer field. Strict: neither `2.0`, `"2"` nor `true` is an integer."""

    def check(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise wrong_type("an integer")
        if value < minimum:
            raise _out_of_range("at least", minimum)
        if value > MAX_COUNT:
            raise _out_of_range("at most", MAX_COUNT)
        return value

    return check


def check_positive(value: object) -> float:
    """The rule of a number above 0. Strict: neither `"2"` nor `true` is a number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise wrong_type("a number")
    if not 0 < value <= MAX_COUNT:
        raise _out_of_range("above", 0) if value <= 0 else _out_of_range("at most", MAX_COUNT)
    return float(value)


def check_one_of(*words: str) -> Callable[[object], str]:
    """The rule of a field that takes one of a few words."""

    def check(value: object) -> str:
        text = check_string(value)
        if text not in words:
            raise PydanticCustomError("unknown-value", "expected one of {words}", {"words": words})
        return text

    return check


def check_switch(*words: str) -> Callable[[object], str]:
    """As `check_one_of`, for words of which some are `on` or `off`: these may also be yes, no, true and false."""

    def check(value: object) -> str:
        if isinstance(value, bool | str):
            text = "on" if value in ON_SPELLINGS else "off" if value in OFF_SPELLINGS else value
            if text in words:
                return str(text)
        raise PydanticCustomError("unknown-value", "expected one of {words}", {"words": words})

    return check


def check_parsed(kind: type[Cpu] | type[Size] | type[Duration]) -> Callable[[Any], Cpu | Size | Duration]:
    """The rule of a field that is spelled as a quantity or duration."""

    def check(value: Any) -> Cpu | Size | Duration:
        if isinstance(value, kind):
            return value
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise wrong_type("a duration" if issubclass(kind, Duration) else "a quantity")
        try:
            return kind.parse(value)
        except DurationError as error:
            raise refusal("bad-duration", str(error), hint=error.hint) from None
        except QuantityError as error:
            raise refusal("bad-quantity", str(error), hint=error.hint) from None

    return check


def check_name(value: object, kind: str = "api") -> str:
    """The name of an api, deployment or cluster; `kind` is put before one that begins with a digit."""
    name = check_string(value)
    meant = suggest_name(name, kind)
    hint = f'did you mean "{meant}"?' if meant and meant != name else 'such as "iris" or "iris-v2"'
    if len(name) > MAX_NAME_CHARACTERS:
        message = f"a name has at most {MAX_NAME_CHARACTERS} characters, {quoted(name)} has {len(name)}"
        raise refusal("bad-name", message, hint=hint)
    if re.fullmatch(NAME_PATTERN, name) is None:
        rule = "lower-case letters, digits and dashes, starts with a letter and does not end in a dash"
        raise refusal("bad-name", f"{quoted(name)} is not a name: a name has {rule}", hint=hint)
    return name


def check_deployment_name(value: object) -> str:
    """The name of a deployment, below which its apis are found."""
    name = check_name(value)
    if name in PROBE_NAMES:
        raise _reserved(name, "deployment")
    return name


def reserved_api_name(name: str, *, in_default: bool) -> PydanticCustomError | None:
    """Why an api may not have a name; None if it may. Those of deployment `default` have paths of one name."""
    taken = PROBE_NAMES if in_default else BELOW_ENDPOINTS
    return _reserved(name, "api") if name in taken else None


def _reserved(name: str, kind: str) -> PydanticCustomError:
    path = f"/{name}" if name in PROBE_NAMES else f"<endpoint>/{name}"
    owner = "the ingress itself" if name in PROBE_NAMES else "the Open Inference Protocol"
    message = f"no {kind} can be named {quoted(name)} here: {path} belongs to {owner}"
    return refusal("reserved-name", message, hint=f'choose another name, such as "{name}-{kind}"')


def suggest_name(text: str, kind: str = "api") -> str | None:
    """Return the nearest valid name, e.g. `iris-v2` for `Iris_V2`; None if nothing of it can be kept."""
    name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    if name[:1].isdigit():
        name = f"{kind}-{name}"
    return name[:MAX_NAME_CHARACTERS].rstrip("-") or None


def check_model(value: object) -> str:
    """The value of `model`. It is kept as it is: only whoever fetches it knows what else it means."""
    model = check_text(value)
    if model != model.strip():
        raise refusal(
            "bad-model", f"{quoted(masked_model(model))} begins or ends with a space", hint="delete the space"
        )
    scheme = SCHEME.match(model)
    if scheme is None:
        return _check_model_path(model)
    if scheme[1] not in SCHEMES:
        near = _MEANT_SCHEMES.get(scheme[1].lower()) or nearest(scheme[1], SCHEMES)
        hint = _did_you_mean(near, model[scheme.end() :])
        raise refusal("bad-model", f"{scheme[0]} is not supported: {_LOCATIONS}", hint=hint)
    first, _, path = model[scheme.end() :].partition("/")
    if scheme[1] == "file":
        if first in ("", "localhost") and path.strip("/"):
            return model
        message = f"{quoted(model)} is not the location of a file: file:// is followed by an absolute path"
        raise refusal("bad-model", message, hint="with three slashes, such as file:///home/me/model.onnx")
    if not (first and path.partition("?")[0].strip("/")):
        example = "https://example.com/model.onnx" if scheme[1] == "https" else f"{scheme[0]}my-bucket/model.onnx"
        raise refusal("bad-model", f"{quoted(masked_model(model))} names no file or folder", hint=f"such as {example}")
    return model


def _check_model_path(path: str) -> str:
    typo = _SCHEME_TYPO.match(path)
    if typo is not None:
        meant = _MEANT_SCHEMES.get(typo[1].lower(), typo[1].lower())
        hint = _did_you_mean(meant, ("/" if meant == "file" else "") + path[typo.end() :])
        raise refusal("bad-model", f"{typo[1]}: is not followed by two slashes", hint=hint)
    if path.startswith("~"):
        raise refusal("bad-model", f"{quoted(path)}: ~ has no meaning here", hint="write the path out")
    return path


def _did_you_mean(scheme: str | None, rest: str) -> str:
    return f"did you mean {quoted(masked_model(f'{scheme}://{rest}'))}?" if scheme else ""


def check_handler(value: object) -> str:
    """The value of `request_handler`, normalised: `./handler.py` is `handler.py`."""
    written = check_text(value)
    if "\\" in written:
        hint = f'did you mean "{written.replace(chr(92), "/")}"?'
        raise refusal("bad-handler", f"{quoted(written)} has backslashes", hint=hint)
    path = posixpath.normpath(written)
    if path.startswith(("/", "~")):
        message = f"{quoted(written)} is not relative to the folder of cortex.yaml"
        raise refusal("bad-handler", message, hint=f"such as {quoted(posixpath.basename(path))}")
    if path.split("/")[0] == "..":
        message = f"{quoted(written)} is outside the project, which is the folder of cortex.yaml"
        raise refusal("bad-handler", message, hint="move the file into the project")
    stem, ending = posixpath.splitext(path)
    if ending != ".py" or posixpath.basename(written) != posixpath.basename(path):
        is_module = re.fullmatch(r"\w+(\.\w+)+", path) and ending not in OTHER_SOURCES
        meant = f"{path.replace('.', '/') if is_module else stem}.py"
        hint = "such as handler.py" if stem.startswith(".") else f"did you mean {quoted(meant)}?"
        raise refusal("bad-handler", f"{quoted(written)} is not a Python file", hint=hint)
    return path


def check_env_name(value: object) -> str:
    name = check_string(value)
    if re.fullmatch(ENV_NAME_PATTERN, name) is None or len(name) > MAX_ENV_NAME_CHARACTERS:
        meant = re.sub(r"[^A-Za-z0-9_]", "_", name[:MAX_ENV_NAME_CHARACTERS])
        meant = f"_{meant}" if not meant or meant[0].isdigit() else meant
        rule = "letters, digits and underscores, and no digit first"
        message = f"{quoted(name)} is not the name of an environment variable: {rule}"
        raise refusal("bad-env-name", message, hint=f"did you mean {quoted(meant)}?")
    if name.startswith(RESERVED_ENV_PREFIX):
        message = f"names that begin with {RESERVED_ENV_PREFIX} are set by Cortex"
        raise refusal("reserved-env-name", message, hint="choose another name")
    return name


def check_env_value(value: object) -> str:
    """Numbers and booleans become text: an environment has nothing else, and `PORT: 8080` is what people write."""
    if not isinstance(value, str | bool | int | float):
        raise wrong_type("a string or {secret: <name>}")
    text = str(value).lower() if isinstance(value, bool) else str(value)
    if "\0" in text:
        raise refusal("bad-text", "the value has a NUL character, which no environment can hold", hint="delete it")
    size_bytes = len(text.encode("utf-8", "surrogatepass"))
    if size_bytes > MAX_ENV_VALUE_BYTES:
        message = f"expected at most {MAX_ENV_VALUE_BYTES} bytes, found {size_bytes}"
        raise refusal("bad-text", message, hint="put it into a file of the project")
    return text


def check_secret_name(value: object) -> str:
    name = check_text(value)
    if re.fullmatch(SECRET_NAME_PATTERN, name) is None or len(name) > MAX_SECRET_NAME_CHARACTERS:
        rule = f"letters, digits, dots, dashes and underscores, at most {MAX_SECRET_NAME_CHARACTERS}"
        message = f"{quoted(name)} is not the name of a secret: {rule}"
        raise refusal("bad-name", message, hint="the NAME of: cortex secret set NAME")
    return name


def check_json(value: object) -> Any:
    """Return a copy of a JSON value; refuses everything in it that JSON cannot express, each with its place."""
    errors: list[InitErrorDetails] = []
    copy = _json_copy(value, (), errors)
    if errors:
        raise ValidationError.from_exception_data("sample", errors)
    return copy


def _json_copy(value: object, path: tuple[str | int, ...], errors: list[InitErrorDetails]) -> Any:
    hint = ""
    if len(path) > MAX_SAMPLE_DEPTH:
        message = f"expected at most {MAX_SAMPLE_DEPTH} levels of nesting, found more"
        hint = "put it into a file of its own: sample: sample.json"
    elif value is None or isinstance(value, bool | str):
        return value
    elif isinstance(value, int):
        if -(2**63) <= value < 2**64:
            return value
        message, hint = "expected a number of at most 64 bits, found a larger one", "quote it if it is text"
    elif isinstance(value, float):
        if math.isfinite(value):
            return value
        message, hint = "JSON has only finite numbers", "write null for a missing number"
    elif isinstance(value, list | tuple):
        return [_json_copy(item, (*path, number), errors) for number, item in enumerate(value)]
    elif isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _json_copy(item, (*path, key), errors) for key, item in value.items()}
    else:
        message, hint = f"expected a JSON value, found {found(value)}", "keys are strings, values what JSON has"
    errors.append(InitErrorDetails(type=refusal("bad-sample", message, hint=hint), loc=path, input=value))
    return None


def drop_nulls(value: Any) -> Any:
    """Return a mapping without its nulls: an explicit null means the default, so it is as good as absent."""
    return {key: item for key, item in value.items() if item is not None} if isinstance(value, Mapping) else value
