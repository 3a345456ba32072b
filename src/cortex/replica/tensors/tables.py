"""
Samples as other systems take them: tables of records or columns, and what they are wrapped in. Pure.

Nothing of this is looked for before a sample did not fit the model as it is, so a sample that fits pays nothing and
always means what it says.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from cortex.replica.tensors.mismatch import LISTS, InputMismatch, quoted

_WRAPPERS: Final = ("instances", "inputs", "dataframe_split", "dataframe_records")
"""
Keys whose value is the sample, where the model has no input of that name.

Source:
    TensorFlow Serving, "RESTful API": `instances` (rows), `inputs` (columns). MLflow, "Inference server
    specification": `dataframe_split`, `dataframe_records`, and the first two.
"""
_SIGNATURE: Final = "signature_name"
"""May stand beside them, as TensorFlow Serving has it."""
_SPLIT: Final = frozenset({"columns", "data", "index"})
OTHER_WRAPPERS: Final = ("data", "ndarray", "samples", "records", "features")
"""Keys that elsewhere hold a sample: taken away for the sake of a hint, never for an answer."""


def unwrapped(sample: object, inputs: Sequence[str], signature_key: str | None) -> object:
    """
    Return what a sample is wrapped in an envelope for; the sample itself if it is in none.

    Args:
        inputs: names of the model's inputs: none of them is an envelope.
        signature_key: the one that is served; another one that the sample names is a mistake.

    Raises:
        InputMismatch: `dataframe_split` holds no table, or another signature than the served one is asked for.
    """
    if not isinstance(sample, Mapping) or not 1 <= len(sample) <= 2:
        return sample
    wrapper = next((name for name in _WRAPPERS if name in sample and name not in inputs), None)
    if wrapper is None:
        return sample
    if len(sample) == 2:
        if _SIGNATURE not in sample or _SIGNATURE in inputs:
            return sample
        if signature_key is None or sample[_SIGNATURE] != signature_key:
            serves = "the model has no signatures" if signature_key is None else f'this api serves "{signature_key}"'
            raise _no_table(f"{serves}, and the sample asks for another", f'leave "{_SIGNATURE}" out')
    inner = sample[wrapper]
    return _split(inner, inputs) if wrapper == "dataframe_split" else inner


def without_index(sample: object) -> object:
    """Columns as `DataFrame.to_json()` writes them, objects from index to value, as lists; the sample if it is none."""
    if not isinstance(sample, Mapping) or not all(isinstance(column, Mapping) for column in sample.values()):
        return sample
    indexes = [list(column) for column in sample.values()]
    if not indexes or not indexes[0] or indexes[0] == ["b64"] or any(index != indexes[0] for index in indexes):
        return sample
    return {name: list(column.values()) for name, column in sample.items()}


def column_hint(columns: Mapping[Any, Any]) -> str:
    """What to send to a model with one input in place of columns, none of which has its name."""
    if {"name", "shape", "data"} <= columns.keys():  # the Open Inference Protocol, as KServe and Triton have it
        return "send data itself, nested as shape says"
    for wrapper in _WRAPPERS:
        if wrapper in columns:
            return f'leave out what stands beside "{wrapper}"'
    return "the model knows no columns: send rows without names, [[…], …], in the order that it was trained with"


def columns_of(sample: object) -> dict[str, list[Any]] | None:
    """
    Return a list of records as columns; None for what is no list of records.

    Raises:
        InputMismatch: the records have different keys.
    """
    if type(sample) not in LISTS or not sample or not all(isinstance(record, Mapping) for record in sample):  # type: ignore[attr-defined]
        return None
    records: Sequence[Mapping[Any, Any]] = sample  # type: ignore[assignment]
    first = records[0]
    for index, record in enumerate(records):
        if record.keys() != first.keys():
            lacking = [str(key) for key in first if key not in record]
            further = [str(key) for key in record if key not in first]
            said = " and ".join(
                f"{verb} {quoted(keys)}" for verb, keys in (("lacks", lacking), ("has", further)) if keys
            )
            close = [match for key in further for match in difflib.get_close_matches(key, lacking, n=1)]
            raise _no_table(
                f"record [{index}] {said}, unlike record [0]",
                f'did you mean "{close[0]}"?' if close else "give all records the same keys, with null for nothing",
            )
    return {str(key): [record[key] for record in records] for key in first}


def _split(table: object, inputs: Collection[str]) -> object:
    """
    Return what `DataFrame.to_dict("split")` made: columns by name, or rows without names for a model with one input.

    Raises:
        InputMismatch: it is no table.
    """
    if not isinstance(table, Mapping) or not {"columns", "data"} <= table.keys() or not table.keys() <= _SPLIT:
        raise _no_table("dataframe_split is no object with columns and data", 'send {"columns": […], "data": [[…], …]}')
    columns, rows = table["columns"], table["data"]
    if type(columns) not in LISTS or type(rows) not in LISTS or not all(type(row) in LISTS for row in rows):
        raise _no_table(
            "columns of dataframe_split is no list, or data no list of rows", "send a list of lists as data"
        )
    names = [str(name) for name in columns]
    if len(set(names)) != len(names):
        raise _no_table("dataframe_split has two columns of one name", "rename one of them")
    for index, row in enumerate(rows):
        if len(row) != len(names):
            raise _no_table(
                f"row [{index}] of dataframe_split has {len(row)} values for {len(names)} columns",
                "give every row a value for each column",
            )
    if len(inputs) == 1 and names != list(inputs):
        return rows
    return {name: [row[place] for row in rows] for place, name in enumerate(names)}


def _no_table(reason: str, hint: str) -> InputMismatch:
    return InputMismatch(None, ("object", None), reason, hint)
