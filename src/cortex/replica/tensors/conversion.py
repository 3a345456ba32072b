"""
Values to tensors: one sample, from JSON or from a handler, becomes the arrays that a model takes.

What depends only on the model is worked out once, in `Converter`; a request then costs about a microsecond an
input. Each input is converted by the class for its kind: `numbers`, `text`, `composites`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, TypeAlias

import msgspec
import numpy as np

from cortex.replica.tensors.composites import MapInput, RaggedInput, SequenceInput
from cortex.replica.tensors.dimensions import Dimensions
from cortex.replica.tensors.elements import Plan
from cortex.replica.tensors.mismatch import InputMismatch, WrongNames, no_object, wrong_names
from cortex.replica.tensors.numbers import BFloat16Input, BoolInput, NumberInput
from cortex.replica.tensors.tables import OTHER_WRAPPERS, column_hint, columns_of, unwrapped, without_index
from cortex.replica.tensors.text import ExampleInput, TextInput, is_b64
from cortex.wire.signature import Signature, TensorSpec, shape_text

Feeds: TypeAlias = dict[str, Any]
"""
Value by input name: an array; a list of arrays for a sequence; a dict for a map; for a ragged tensor lists of lists, as
deep as its ragged rank, of arrays. Absent inputs have no key.
"""


class Converter:
    """
    Turns samples into what `Backend.run` takes. Built once a model; safe to use from several threads.

    Args:
        signature: of the model.
        takes_bytes: whether text inputs may hold bytes that are not UTF-8 (TensorFlow: yes, ONNX: no).
    """

    __slots__ = ("_dimensions", "_key", "_lone", "_names", "_only", "_only_name", "_plans", "_specs", "needs_value")

    def __init__(self, signature: Signature, *, takes_bytes: bool = False) -> None:
        self._specs = signature.inputs
        self._plans: tuple[tuple[TensorSpec, Plan], ...] = tuple(
            (spec, plan(spec, takes_bytes)) for spec in signature.inputs
        )
        self._names = tuple(spec.name for spec in signature.inputs)
        self._key = signature.key
        needed = [(spec.name, plan) for spec, plan in self._plans if not spec.optional]
        self.needs_value = bool(needed)
        """Whether there is an input that may not be left out."""
        self._lone = needed[0] if len(needed) == 1 else None
        """The input that a value without a name is for, beside others that may be left out."""
        dimensions = Dimensions(signature.inputs)
        self._dimensions = dimensions if dimensions.any else None
        # one input whose sizes need no comparing: the shortest way
        single = len(self._plans) == 1
        self._only: Plan | None = self._plans[0][1] if single and self._dimensions is None else None
        self._only_name = self._names[0] if single else ""

    def convert(self, sample: object, after: str | None = None) -> Feeds:
        """
        Return the model's feeds for one sample.

        Args:
            sample: a JSON value, or whatever a handler returned.
            after: `pre_inference` if a handler made the sample: then it is in no envelope.

        Returns:
            Arrays in native byte order, with the dtype and a shape that the model declares. They may be read-only
            and may share memory with the sample.

        Raises:
            WrongNames: an input is missing, or the model has none of a name.
            InputMismatch: names the input, what is expected, what was found, and a hint.
        """
        try:
            only = self._only
            if only is not None and type(sample) is list:
                return {self._only_name: only(sample)}
            return self._direct(sample)
        except InputMismatch as error:
            found = error
        try:
            return self._otherwise(sample, found, is_callers=after is None)
        except InputMismatch as error:
            error.after = after
            raise error from None

    def refused(self, feeds: Feeds, reason: str, after: str | None = None) -> InputMismatch:
        """
        The mismatch for feeds that fit the signature, and that the model refused to run on.

        Args:
            feeds: what `convert` returned.
            reason: the runtime's words.
            after: as for `convert`.
        """
        uneven = None if self._dimensions is None else self._dimensions.uneven_rows(feeds)
        if uneven is not None:
            uneven.reason += f"; the model says: {reason}"
            uneven.after = after
            return uneven
        given = [spec for spec in self._specs if spec.name in feeds]
        spec = _culprit(given, feeds, reason)
        reason = f"the model does not take these values: {reason}"
        if spec is None:
            listed = ", ".join(f'"{one.name}" {_fed_text(one, feeds[one.name])}' for one in given[:_MOST_LISTED])
            mismatch = InputMismatch(None, ("object", None), f"{reason}; it was given {listed or 'nothing'}")
        elif spec.kind == "tensor":
            mismatch = InputMismatch(spec, (spec.dtype, np.shape(feeds[spec.name])), reason)
        else:
            mismatch = InputMismatch(spec, (str(spec), None), reason)
        mismatch.after = after
        return mismatch

    def _direct(self, sample: object) -> Feeds:
        """The feeds of a sample that is in the model's own form."""
        feeds = self._single(sample, self._plans[0][1]) if len(self._plans) == 1 else self._several(sample)
        if self._dimensions is not None:
            self._dimensions.check(feeds)
        return feeds

    def _single(self, sample: object, plan: Plan) -> Feeds:
        spec = self._plans[0][0]
        value = sample
        if isinstance(sample, Mapping):
            if spec.name in sample:
                if len(sample) == 1:
                    value = sample[spec.name]
                elif spec.kind != "map":
                    raise wrong_names(self._specs, sample)
            elif spec.kind != "map" and not spec.features and not is_b64(sample):
                if spec.optional and not sample:
                    return {}
                raise wrong_names(self._specs, sample)
        if value is None and spec.optional:
            return {}
        return {spec.name: plan(value)}

    def _several(self, sample: object) -> Feeds:
        if not isinstance(sample, Mapping):
            return self._nameless(sample)
        feeds: Feeds = {}
        known = 0
        for spec, plan in self._plans:
            value = sample.get(spec.name, _MISSING)
            if value is _MISSING:
                if not spec.optional:
                    if self._lone is not None and is_b64(sample):
                        return self._nameless(sample)
                    raise wrong_names(self._specs, sample)
                continue
            known += 1
            if value is not None or not spec.optional:
                feeds[spec.name] = plan(value)
        if known != len(sample):
            raise wrong_names(self._specs, sample)
        return feeds

    def _nameless(self, sample: object) -> Feeds:
        """The feeds of a value that names no input."""
        if self._lone is not None:
            name, plan = self._lone
            return {name: plan(sample)}
        if not self._specs or (sample is None and all(spec.optional for spec in self._specs)):
            return {}  # a model without inputs answers to anything
        raise no_object(self._specs, sample)

    def _otherwise(self, sample: object, mismatch: InputMismatch, *, is_callers: bool) -> Feeds:
        """
        Read a sample that is not in the model's own form as a table, or as what another system would be sent.

        Raises:
            InputMismatch: of the form that is most likely meant; `mismatch` where that is the model's own.
        """
        form = sample
        if is_callers:
            form = without_index(unwrapped(sample, self._names, self._key))
            if form is not sample:
                try:
                    return self._direct(form)
                except InputMismatch as error:
                    mismatch = error
        columns = columns_of(form) if self._may_be_records(form) else None
        if columns is not None:
            try:
                return self._direct(columns)
            except InputMismatch as error:
                form, mismatch = columns, error
        if isinstance(mismatch, WrongNames) and isinstance(form, Mapping):
            mismatch.hint = self._tried_hint(form, mismatch)
        raise mismatch

    def _may_be_records(self, sample: object) -> bool:
        """Whether a list of objects can be meant as rows: where an input takes objects itself it is not."""
        if len(self._specs) != 1:
            return True
        spec = self._specs[0]
        if spec.kind not in ("tensor", "ragged") or type(sample) is not list or not sample:
            return False
        keys = _keys(sample[0])
        return spec.name in keys or (len(keys) > 0 and not spec.features and not is_b64(sample[0]))

    def _tried_hint(self, sample: Mapping[Any, Any], mismatch: WrongNames) -> str:
        """The hint of a mismatch of names, tried: who follows it is not told of the next mistake only then."""
        for wrapper in OTHER_WRAPPERS:
            if len(sample) == 1 and wrapper in sample:
                inner = sample[wrapper]
                if self._problem(columns_of(inner) if isinstance(inner, list) and columns_of(inner) else inner) is None:
                    return f'send what is in "{wrapper}", without the object around it'
        if mismatch.meant:
            renamed = {mismatch.meant.get(str(key), key): value for key, value in sample.items()}
            problem = self._problem(renamed)
            if problem is not None and not isinstance(problem, WrongNames):
                return f"{mismatch.hint} Its value does not fit either: {problem}"
        elif len(self._specs) == 1 and len(sample) > 1 and mismatch.input:
            return column_hint(sample)
        return mismatch.hint

    def _problem(self, sample: object) -> InputMismatch | None:
        try:
            self._direct(sample)
        except InputMismatch as error:
            return error
        return None


def _culprit(given: Sequence[TensorSpec], feeds: Feeds, reason: str) -> TensorSpec | None:
    """The input that a runtime's words are about: the only one, or the only one that holds the index they name."""
    if len(given) == 1:
        return given[0]
    index = _INDEX.search(reason)
    if index is None:
        return None
    value = int(index[1])
    holding = [
        spec
        for spec in given
        if isinstance(feeds[spec.name], np.ndarray)
        and feeds[spec.name].dtype.kind in "iu"
        and bool((feeds[spec.name] == value).any())
    ]
    return holding[0] if len(holding) == 1 else None


_INDEX: Final = re.compile(r"(?:\bidx=|\bindex = |\] = )(-?\d{1,19})\b")
"""How onnxruntime and TensorFlow name an index that is out of range."""
_MOST_LISTED: Final = 10


def _fed_text(spec: TensorSpec, value: Any) -> str:
    return f"{spec.dtype}{shape_text(value.shape)}" if isinstance(value, np.ndarray) else str(spec)


def _keys(record: object) -> Collection[Any]:
    return record.keys() if isinstance(record, Mapping) else ()


_MISSING: Final = object()


def plan(spec: TensorSpec, takes_bytes: bool) -> Plan:
    """How one input is converted."""
    if spec.kind.startswith("sequence"):
        one = msgspec.structs.replace(spec, kind="tensor" if spec.kind == "sequence" else "map")
        return SequenceInput(spec, plan(one, takes_bytes))
    if spec.kind == "map":
        return MapInput(spec, NumberInput(TensorSpec(spec.name, spec.dtype, ())))
    if spec.kind == "ragged":
        assert spec.shape is not None
        row = TensorSpec(spec.name, spec.dtype, (None, *spec.shape[spec.ragged_rank + 1 :]))
        return RaggedInput(spec, plan(row, takes_bytes))
    if spec.features:
        return ExampleInput(spec, takes_bytes, tuple((one, plan(one, takes_bytes)) for one in spec.features))
    if spec.dtype == "string":
        return TextInput(spec, takes_bytes)
    if spec.dtype == "bool":
        return BoolInput(spec)
    return BFloat16Input(spec) if spec.dtype == "bfloat16" else NumberInput(spec)
