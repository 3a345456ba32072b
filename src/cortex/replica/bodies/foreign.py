"""
Results that are made of other libraries' types: as plain ones, or the line that makes them so.

Nothing is imported for it. What a value belongs to is told by what its class has, or by a library that the handler has
imported itself: without that there can be no value of it.
"""

from __future__ import annotations

import asyncio
import datetime
import inspect
import io
import json
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np

from cortex.replica.tensors.floats import shortest


class NoForm(TypeError):
    """
    A value that has no JSON form.

    Args:
        found: what it is, in words.
        hint: the line to write instead.
    """

    def __init__(self, found: str, hint: str) -> None:
        self.found, self.hint = found, hint
        super().__init__(found)


def is_missing(value: object) -> bool:
    """Whether it is pandas' `NaT` or `NA`, which are nothing, and to Python a time and an object."""
    kind = type(value)
    return kind.__name__ in ("NaTType", "NAType") and kind.__module__.partition(".")[0] == "pandas"


def opened(value: Any) -> Any:
    """
    Return what a value of another library holds, one level of it, as dict, list or None; keys as they are.

    A DataFrame is a list of records, without its index; a Series an object from index to value; a pydantic model its
    own JSON, by name of the field; of attrs and msgspec, an object of the fields; a table of polars or Arrow a list of
    records.

    Raises:
        NoForm: it is none of these, or cannot be written; says what to write.
    """
    if is_missing(value):
        return None
    kind = type(value)
    if "pandas" in sys.modules:
        pandas = sys.modules["pandas"]
        if isinstance(value, getattr(pandas, "DataFrame", ())):
            return _records(value)
        if isinstance(value, getattr(pandas, "Series", ())):
            return _by_index(value)
        if isinstance(value, (getattr(pandas, "Index", ()), _extension_array(pandas))):
            return _elements(value)
    if hasattr(kind, "__pydantic_serializer__") and hasattr(kind, "model_dump"):
        return _pydantic(value)
    if hasattr(kind, "__fields__") and hasattr(kind, "__config__") and hasattr(kind, "__validators__"):
        return _pydantic_1(value)
    if hasattr(kind, "__attrs_attrs__"):
        return {field.name: getattr(value, field.name) for field in kind.__attrs_attrs__}
    if hasattr(kind, "__struct_encode_fields__"):
        names = zip(kind.__struct_encode_fields__, kind.__struct_fields__, strict=True)
        return {shown: getattr(value, name) for shown, name in names}
    for rows in ("to_dicts", "to_pylist"):  # of polars and of Arrow
        if hasattr(kind, rows):
            return getattr(value, rows)()
    if isinstance(value, type) or not hasattr(kind, "__array__"):
        raise NoForm(f"object of type {kind.__name__}", advice(value))
    return np.asarray(value)


def key_text(key: Any) -> str | None:
    """Text for a key of a library that names things by values of its own; None for what is none of these."""
    if type(key).__module__.partition(".")[0] == "pandas":
        return str(key)
    return None


# ---- pandas ---------------------------------------------------------------------------------------------------------


def _records(frame: Any) -> list[dict[Any, Any]]:
    if not frame.columns.is_unique:
        twice = frame.columns[frame.columns.duplicated()][0]
        raise NoForm(f"a DataFrame with two columns {twice!r}", 'rename one: df.columns = ["…", …]')
    names = list(frame.columns)
    columns = [_elements(frame.iloc[:, place]) for place in range(len(names))]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _by_index(series: Any) -> dict[Any, Any]:
    if not series.index.is_unique:
        twice = series.index[series.index.duplicated()][0]
        raise NoForm(
            f"a Series whose index has {twice!r} twice",
            'series.tolist() for the values alone, series.reset_index().to_dict("records") for both',
        )
    return dict(zip(series.index, _elements(series), strict=True))


def _extension_array(pandas: Any) -> Any:
    extensions = getattr(getattr(pandas, "api", None), "extensions", None)
    return getattr(extensions, "ExtensionArray", ())


def _elements(series: Any) -> list[Any]:
    """The values of a column, an index or an array of pandas. Floats of 32 bits are those whose text is theirs."""
    dtype = series.dtype
    if isinstance(dtype, np.dtype) and dtype.kind == "f":
        return shortest(series.to_numpy())
    return list(series)


# ---- pydantic -------------------------------------------------------------------------------------------------------


def _pydantic(model: Any) -> Any:
    try:
        return model.model_dump(mode="json")
    except Exception:  # a field that pydantic cannot write, and we may
        return model.model_dump()


def _pydantic_1(model: Any) -> Any:
    try:
        return json.loads(model.json())
    except TypeError:
        return model.dict()


# ---- the rest -------------------------------------------------------------------------------------------------------


def advice(value: Any) -> str:
    """The line to write in place of a value that has no JSON form. Calls no code of the value."""
    for fits, line in _ADVICE:
        if fits(value):
            return line
    return "return what is wanted of it as text, numbers, lists or dicts"


def _of(*kinds: Any) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, kinds)


def _having(*names: str, module: str = "") -> Callable[[Any], bool]:
    def fits(value: Any) -> bool:
        kind = type(value)
        return kind.__module__.startswith(module) and all(hasattr(kind, name) for name in names)

    return fits


_ADVICE: Final[tuple[tuple[Callable[[Any], bool], str], ...]] = (
    (_of(type), "return an object of it, or its name: Class.__name__"),
    (_having("get_secret_value"), "return str(value), which masks it"),
    (
        _having("save", "tobytes", module="PIL."),
        'buffer = io.BytesIO(); image.save(buffer, "PNG"); return cortex.Response(buffer.getvalue(), '
        'media_type="image/png"), or {"image": buffer.getvalue()} for base64 in JSON, or numpy.asarray(image)',
    ),
    (
        _having("savefig"),
        'buffer = io.BytesIO(); figure.savefig(buffer, format="png"); return cortex.Response(buffer.getvalue(), '
        'media_type="image/png")',
    ),
    (_of(io.BytesIO, io.StringIO), "return what it holds: buffer.getvalue()"),
    (_of(io.IOBase), "return what it holds: file.read()"),
    (_having("read", "file"), "return what it holds: file.read()"),  # tempfile's
    (_of(pathlib.PurePath), "return str(path), or what the file holds: path.read_bytes()"),
    (_of(datetime.timedelta), "return its seconds: delta.total_seconds()"),
    (_of(np.timedelta64), 'return its seconds: delta / numpy.timedelta64(1, "s")'),
    (_of(asyncio.Future), "return what it comes to: await task"),
    (inspect.isawaitable, "return what it comes to: await value"),
    (inspect.isasyncgen, "return [item async for item in value]"),
    (_of(Iterator), "return list(value)"),
    (_of(BaseException), "return str(error), or raise cortex.RequestError(400, str(error))"),
    (inspect.isroutine, "call it: return function(…)"),
    (_of(type(sys)), "return something of that module"),
    (_having("detach", "cpu", "numpy"), "return tensor.detach().cpu().numpy()"),
    (_having("toarray"), "return matrix.toarray()"),
    (_having("DESCRIPTOR", "SerializeToString"), "return google.protobuf.json_format.MessageToDict(message)"),
    (_having("ngroups"), "return a result of it, e.g. groups.size() or groups.mean()"),
    (_having(module="pandas"), "return str(value)"),
    (_having("to_dicts"), "return frame.to_dicts()"),
    (_having("to_pylist"), "return table.to_pylist()"),
    (_having("to_dict"), "return value.to_dict()"),
    (_having("tolist"), "return value.tolist()"),
    (_having("__iter__"), "return list(value)"),
    (_having("limit_denominator"), "return float(value)"),
    (lambda value: hasattr(value, "__dict__"), "return its attributes: vars(value)"),
    (lambda value: any("__str__" in kind.__dict__ for kind in type(value).__mro__[:-1]), "return str(value)"),
)
"""The first that fits."""
