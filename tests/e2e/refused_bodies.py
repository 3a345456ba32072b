"""
Bodies that an api cannot use, one row each: name, path, headers, body. What is answered stands in
`golden/refused_bodies.txt`, in the same order.
"""

from __future__ import annotations

import gzip
import io
import json
from typing import Any, NamedTuple

import numpy as np


class Row(NamedTuple):
    """One request: what is wrong with it, where it goes, and what it is."""

    name: str
    path: str
    content_type: str | None
    body: bytes
    encoding: str | None = None
    chunked: bool = False

    @property
    def headers(self) -> dict[str, str]:
        given = {"content-type": self.content_type, "content-encoding": self.encoding}
        return {name: value for name, value in given.items() if value is not None}


def _npy(array: np.ndarray[Any, Any]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


JSON = "application/json"
NPY = "application/x-npy"
FORM = "multipart/form-data; boundary=b"
CURL = "application/x-www-form-urlencoded"
ROW = _json([1, 2, 3, 4])
TABLE = {"age": [40, 41], "height": [1.7, 1.8], "member": [True, False], "city": ["Bern", "Rom"]}
WHOLE = {"age": 40, "height": 1.7, "member": True, "city": "Bern"}

ROWS: tuple[Row, ...] = (
    # ---- not JSON
    Row("nothing", "/t/rows", JSON, b""),
    Row("white space", "/t/rows", JSON, b" \n "),
    Row("cut off", "/t/rows", JSON, b"[1, 2,"),
    Row("a comma too many", "/t/rows", JSON, b"[1, 2, 3, 4,]"),
    Row("single quotes", "/t/rows", JSON, b"{'features': [1, 2, 3, 4]}"),
    Row("a comment", "/t/rows", JSON, b"[1, 2, 3, 4] // four"),
    Row("NaN", "/t/rows", JSON, b"[1, NaN, 3, 4]"),
    Row("-Infinity", "/t/rows", JSON, b"[1, -Infinity, 3, 4]"),
    Row("Python's None", "/t/rows", JSON, b"[1, None, 3, 4]"),
    Row("Python's True", "/t/rows", JSON, b"[1,\n True, 3, 4]"),
    Row("two values", "/t/rows", JSON, b"[1, 2, 3, 4] [5]"),
    Row("a text without end", "/t/rows", JSON, b'{"features'),
    Row("a bad escape", "/t/rows", JSON, rb'"\x41"'),
    Row("a line break in a text", "/t/rows", JSON, b'"a\nb"'),
    Row("a leading zero", "/t/rows", JSON, b"[01, 2, 3, 4]"),
    Row("a number beyond floats", "/t/rows", JSON, b"[1e999, 2, 3, 4]"),
    Row("a byte that is not UTF-8", "/t/rows", JSON, b'{"a": "\xff"}'),
    Row("UTF-16 that nobody announced", "/t/rows", JSON, "[1, 2, 3, 4]".encode("utf-16")),
    Row("UTF-16 without a mark", "/t/rows", JSON, "[1, 2, 3, 4]".encode("utf-16-le")),
    Row("UTF-32 that nobody announced", "/t/rows", CURL, "[1, 2, 3, 4]".encode("utf-32")),
    Row("a hundred thousand brackets", "/t/rows", JSON, b"[" * 100_000),
    Row("XML", "/t/rows", JSON, b"<features>1</features>"),
    Row("a form as curl sends it", "/t/rows", CURL, b"features=1&features=2"),
    # ---- another kind of body
    Row("XML that says so", "/t/rows", "application/xml", b"<a/>"),
    Row("no kind at all", "/t/rows", "nonsense", b"[1]"),
    Row("a JPEG that nobody announced", "/t/rows", None, b"\xff\xd8\xff\xe0 picture"),
    Row("a PNG as curl sends it", "/t/rows", CURL, b"\x89PNG\r\n\x1a\n picture"),
    Row("a WAV that says it is something else", "/t/rows", "application/wav", b"RIFF\0\0\0\0WAVEfmt "),
    Row("an image without a handler", "/t/rows", "image/png", b"\x89PNG\r\n\x1a\n picture"),
    Row("bytes without a handler", "/t/rows", "application/octet-stream", b"\0\1"),
    Row("a character set that is none", "/t/rows", "application/json; charset=klingon", ROW),
    Row("text that is not UTF-8", "/t/fields", "text/plain", b"Z\xfcrich"),
    # ---- arrays
    Row("no array", "/t/rows", NPY, b"[1, 2, 3, 4]"),
    Row("an array cut off", "/t/rows", NPY, _npy(np.ones((1, 4), np.float32))[:-3]),
    Row("an array of objects", "/t/rows", NPY, _npy(np.array([None, {}], dtype=object))),
    Row("a structured array", "/t/rows", NPY, _npy(np.zeros(2, dtype=[("a", "f4"), ("b", "i4")]))),
    Row("an array of another shape", "/t/rows", NPY, _npy(np.ones((2, 3), np.float32))),
    Row("an array of text", "/t/rows", NPY, _npy(np.array([["a", "b", "c", "d"]]))),
    # ---- forms
    Row("a form without a boundary", "/t/rows", "multipart/form-data", b"--b\r\n"),
    Row("a form with another boundary", "/t/rows", FORM, b"--c\r\n\r\n--c--"),
    Row("a form cut off", "/t/rows", FORM, b'--b\r\ncontent-disposition: form-data; name="a"\r\n\r\n1'),
    Row("a part without a name", "/t/rows", FORM, b"--b\r\ncontent-type: text/plain\r\n\r\n1\r\n--b--"),
    # ---- packed
    Row("gzip that nobody announced", "/t/rows", None, gzip.compress(ROW, mtime=0)),
    Row("gzip that is none", "/t/rows", JSON, ROW, "gzip"),
    Row("gzip cut off", "/t/rows", JSON, gzip.compress(ROW, mtime=0)[:-4], "gzip"),
    Row("an encoding that is not read", "/t/rows", JSON, ROW, "br"),
    Row(
        "gzip that unpacks to too much", "/t/small", JSON, gzip.compress(b"[" + b" " * 10_000 + b"1]", mtime=0), "gzip"
    ),
    # ---- too large: the ingress sees a length, the replica counts chunks
    Row("over max_body by its length", "/t/small", JSON, b" " * 1025),
    Row("over max_body in chunks", "/t/small", JSON, b" " * 1025, chunked=True),
    # ---- not what the model takes: shapes
    Row("null", "/t/rows", JSON, b"null"),
    Row("a text", "/t/rows", JSON, b'"hello"'),
    Row("a number", "/t/rows", JSON, b"5"),
    Row("an empty list", "/t/picture", JSON, b"[]"),
    Row("a value too few", "/t/rows", JSON, b"[1, 2, 3]"),
    Row("a value too many", "/t/rows", JSON, b"[1, 2, 3, 4, 5]"),
    Row("rows of two lengths", "/t/rows", JSON, b"[[1, 2, 3, 4], [1, 2]]"),
    Row("rows of two depths", "/t/rows", JSON, b"[[1, 2, 3, 4], 5]"),
    Row("nested too deep", "/t/rows", JSON, b"[[[1, 2, 3, 4]]]"),
    Row("channels last", "/t/picture", JSON, _json(np.zeros((1, 4, 4, 3)).tolist())),
    Row("a list for a scalar", "/t/scalar", JSON, b"[1, 2]"),
    # ---- elements
    Row("a text among numbers", "/t/rows", JSON, b'[1, "2", 3, 4]'),
    Row("an object among numbers", "/t/rows", JSON, b'[1, {"x": 2}, 3, 4]'),
    Row("a number beyond float32", "/t/rows", JSON, b"[1e39, 2, 3, 4]"),
    Row("half an integer", "/t/fields", JSON, _json({**WHOLE, "age": 40.5})),
    Row("an integer beyond 64 bits", "/t/fields", JSON, _json({**WHOLE, "age": 2**63})),
    Row("null for an integer", "/t/fields", JSON, _json({**WHOLE, "age": None})),
    Row("two for a boolean", "/t/fields", JSON, _json({**WHOLE, "member": 2})),
    Row("a text for a boolean", "/t/fields", JSON, _json({**WHOLE, "member": "true"})),
    Row("a number for a text", "/t/fields", JSON, _json({**WHOLE, "city": 3011})),
    Row("bytes that are not base64", "/t/fields", JSON, _json({**WHOLE, "city": {"b64": "*"}})),
    # ---- names
    Row("another name", "/t/rows", JSON, b'{"x": [1, 2, 3, 4]}'),
    Row("a name misspelt", "/t/rows", JSON, b'{"featuers": [1, 2, 3, 4]}'),
    Row("a name too many", "/t/rows", JSON, b'{"features": [1, 2, 3, 4], "weights": [1]}'),
    Row("a name that nearly is an optional input's", "/t/scaled", JSON, b'{"x": [1, 2], "factr": [3]}'),
    Row("an envelope of another system", "/t/rows", JSON, b'{"data": [[1, 2, 3, 4]]}'),
    Row("a mistake in an envelope", "/t/rows", JSON, b'{"instances": [[1, 2, 3]]}'),
    Row("a list for several inputs", "/t/fields", JSON, b"[40, 1.7, true]"),
    Row("an input missing", "/t/fields", JSON, _json({k: v for k, v in WHOLE.items() if k != "height"})),
    Row("an input misspelt", "/t/fields", JSON, _json({"Age": 40, **{k: v for k, v in WHOLE.items() if k != "age"}})),
    # ---- inputs that do not go together
    Row("a row too few", "/t/fields", JSON, _json({**TABLE, "city": ["Bern"]})),
    Row("records of different keys", "/t/fields", JSON, _json([WHOLE, {"age": 1}])),
    Row(
        "a column too few in a table",
        "/t/fields",
        JSON,
        _json({"dataframe_split": {"columns": ["age"], "data": [[1]]}}),
    ),
    Row("another length than of its kin", "/t/words", JSON, b'{"ids": [[1, 2, 3]], "mask": [[1]]}'),
    # ---- what only the model knows
    Row("an index that is out of range", "/t/words", JSON, b'{"ids": [[999]], "mask": [[1]]}'),
    # ---- made by a handler
    Row("a handler's wrong shape", "/t/echo", JSON, b'{"feed": [1, 2, 3]}'),
    Row("a handler's refusal", "/t/echo", JSON, b'{"refuse": 409}'),
)
