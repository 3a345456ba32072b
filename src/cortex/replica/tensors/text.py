"""Inputs of text: strings, bytes, and serialised `tf.Example`s."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

import numpy as np

from cortex.replica.tensors.elements import Array, BadElement, Plan, TensorInput, stack
from cortex.replica.tensors.examples import serialise
from cortex.replica.tensors.mismatch import LISTS, InputMismatch, shown, wrong_names
from cortex.replica.tensors.shapes import Shape
from cortex.wire.signature import TensorSpec


class TextInput(TensorInput):
    """An input of strings: an object array of str, and of bytes where the backend takes them."""

    __slots__ = ("_takes_bytes",)

    def __init__(self, spec: TensorSpec, takes_bytes: bool) -> None:
        super().__init__(spec, np.dtype(object))
        self._takes_bytes = takes_bytes

    def __call__(self, value: object) -> Array:
        if self.filled_count == 1 and type(value) is str and value.isascii():
            result = np.empty(self.filled, dtype=object)
            result[...] = value
            return result
        if type(value) in LISTS:
            values = cast("Sequence[Any]", value)
            if len(values) and isinstance(values[0], np.ndarray) and values[0].ndim:
                return self._array(stack(self, values))
            shape, flat = self.flatten(values)
            return self._of(shape, flat, value)
        if not isinstance(value, str | bytes):
            array = self.array_of(value)
            if array is not None:
                return self._array(array)
        return self._of((), [value], value)

    def _array(self, array: Array) -> Array:
        if array.dtype.kind not in "OUST":
            raise self.mismatch(array, f"an array of {array.dtype} is no array of text")
        try:
            flat = array.ravel().tolist()
        except (ValueError, SystemError):  # four bytes a character, and some are none
            raise self.mismatch(array, "its characters are not Unicode") from None
        return self._of(array.shape, flat, array)

    def _of(self, shape: Shape, flat: list[Any], value: object) -> Array:
        target = self.fit(value, shape)
        result = np.empty(len(flat), dtype=object)
        for index, found in enumerate(flat):
            try:
                result[index] = self._element(found)
            except BadElement as bad:
                raise self.element_mismatch(value, shape, index, bad) from None
        return result.reshape(target)

    def _element(self, value: object) -> str | bytes:
        if isinstance(value, str):
            if not value.isascii():
                _refuse_lone_surrogates(value)
            return value
        if is_b64(value):
            value = _from_b64(cast("Mapping[str, object]", value)["b64"])
        if isinstance(value, bytes | bytearray | memoryview):
            return self._bytes(bytes(value))
        if value is None:
            raise BadElement("is null", 'send "" for an empty text')
        if isinstance(value, Mapping):
            raise BadElement("is an object", 'send text, or {"b64": "…"} for bytes')
        if isinstance(value, bool | np.bool_ | int | float | np.number):
            raise BadElement(f"is {shown(value)}, which is no text", f'put it in quotes: "{shown(value)}"')
        if type(value) in LISTS:
            raise BadElement("is a list where the others are not", "make all rows equally deep")
        raise BadElement(f"is of type {type(value).__name__}, which is no text")

    def _bytes(self, value: bytes) -> str | bytes:
        if self._takes_bytes:
            return value
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            raise BadElement("is bytes that are not UTF-8, and this model's text has to be UTF-8") from None


class ExampleInput(TextInput):
    """An input of serialised `tf.Example`s, which objects of their features are made into."""

    __slots__ = ("_features", "_known")

    def __init__(self, spec: TensorSpec, takes_bytes: bool, features: Sequence[tuple[TensorSpec, Plan]]) -> None:
        super().__init__(spec, takes_bytes)
        self._known = frozenset(feature.name for feature in spec.features)
        self._features = features

    def __call__(self, value: object) -> Array:
        if type(value) is list:
            return super().__call__([self._serialised(item) if _is_features(item) else item for item in value])
        if not _is_features(value):
            return super().__call__(value)
        features = cast("Mapping[Any, Any]", value)
        try:
            return super().__call__(self._serialised(features))
        except InputMismatch as error:
            rows = _rows(features)
            if rows is None:
                raise
            try:
                return super().__call__([self._serialised(row) for row in rows])
            except InputMismatch:
                raise error from None

    def _serialised(self, features: Mapping[Any, Any]) -> bytes:
        given: dict[str, Array] = {}
        for spec, plan in self._features:
            value = features.get(spec.name)
            if spec.name not in features and not spec.optional:
                raise self._wrong_names(features)
            if value is not None or not spec.optional:
                try:
                    given[spec.name] = plan(value)
                except InputMismatch as error:
                    error.input = f'{self.spec.name}["{error.input}"]'
                    raise
        if not self._known.issuperset(features):
            raise self._wrong_names(features)
        return serialise(given)

    def _wrong_names(self, features: Mapping[Any, Any]) -> InputMismatch:
        error = wrong_names(self.spec.features, features, noun="feature")
        error.input = f'{self.spec.name}["{error.input}"]' if error.input else ""
        return error


def _is_features(value: object) -> bool:
    return isinstance(value, Mapping) and not is_b64(value)


def _rows(columns: Mapping[Any, Any]) -> list[dict[Any, Any]] | None:
    """Columns of one length as rows; None if they are none."""
    lengths = {len(column) if type(column) in LISTS else -1 for column in columns.values()}
    if len(lengths) != 1 or -1 in lengths:
        return None
    return [{name: column[row] for name, column in columns.items()} for row in range(lengths.pop())]


def is_b64(value: object) -> bool:
    return isinstance(value, Mapping) and len(value) == 1 and "b64" in value


def _from_b64(text: object) -> bytes:
    """
    Bytes of base64 in any of its forms: with line breaks, url-safe, without padding, as a `data:` URL.

    Source:
        RFC 4648, sections 4 and 5; RFC 2045, section 6.8 (line breaks); RFC 2397 (`data:`).
    """
    if not isinstance(text, str):
        raise BadElement('has a "b64" that is no text')
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        pass
    if text[:5].lower() == "data:":
        head, comma, text = text.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise BadElement('has a "b64" that is a data: URL without ";base64,"', "encode the bytes as base64")
    plain = "".join(text.split()).translate(_URL_SAFE).rstrip("=")
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise BadElement('has a "b64" that is not base64') from None


_URL_SAFE: Final = str.maketrans("-_", "+/")


def _refuse_lone_surrogates(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise BadElement("has half a character (a lone surrogate)") from None
