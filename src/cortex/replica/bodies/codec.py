"""
Request bodies to samples, by content type. Knows no HTTP: headers come in as text, errors go out as facts.

Everything in a body is hostile until proven otherwise: sizes are checked before anything is allocated for them,
compressed bodies stop unpacking at the limit, numbers of parts and lengths of headers are bounded, and nothing is
unpickled or evaluated.
"""

from __future__ import annotations

import binascii
import codecs
import json
import math
import re
import zlib
from collections.abc import Callable
from typing import Any, ClassVar, Final, TypeAlias

import numpy as np
import orjson
from numpy.typing import NDArray

from cortex.errors import CortexError

ACCEPTED: Final = (
    "application/json",
    "application/x-npy",
    "image/*",
    "audio/*",
    "application/octet-stream",
    "text/plain",
    "multipart/form-data",
)
"""What may stand in `content-type`, as errors name it."""

MAX_PARTS: Final = 1000
"""Parts of one multipart body. A form of a sample has a few; a thousand cost about 2 ms."""
_MAX_PART_HEADER_BYTES: Final = 8192
_MAX_BOUNDARY_CHARS: Final = 70  # RFC 2046, section 5.1.1
_MAX_NPY_HEADER_BYTES: Final = 10_000  # numpy.lib.format's own bound
_MAX_RANK: Final = 32  # numpy 1.x holds no more dimensions
_MAX_SIZE_DIGITS: Final = 19  # 2**63
_MAX_GZIP_MEMBERS: Final = 10_000
_UNPACK_CHUNK_BYTES: Final = 1 << 16
_SHOWN_CHARS: Final = 60


class BadBody(CortexError):
    """A body that cannot be read as what it says it is. Base of this module's errors."""

    reference: ClassVar[str] = "malformed-body"

    def __init__(self, message: str, *, hint: str = "") -> None:
        self.hint = hint
        super().__init__(message)

    @property
    def facts(self) -> dict[str, Any]:
        """Keys of the JSON error body, in order."""
        return {"hint": self.hint} if self.hint else {}


class BadJson(BadBody):
    """
    The body is no JSON.

    Args:
        reason: what the parser found.
        line, column: from 1, in characters; None if the body is empty.
        position: of the character from 0, or of the byte if the body is no UTF-8.
    """

    reference = "malformed-json"

    def __init__(
        self,
        reason: str,
        *,
        line: int | None = None,
        column: int | None = None,
        position: int | None = None,
        hint: str = "",
    ) -> None:
        self.reason = reason
        self.line, self.column, self.position = line, column, position
        where = "" if line is None else f" at line {line}, column {column}"
        super().__init__(f"the body is not valid JSON: {reason}{where}", hint=hint)

    @property
    def facts(self) -> dict[str, Any]:
        position = {"line": self.line, "column": self.column, "position": self.position}
        return {key: value for key, value in position.items() if value is not None} | super().facts


class BadArray(BadBody):
    """The body is no `.npy` file, or not a whole one."""

    reference = "malformed-array"


class BadText(BadBody):
    """The body is not in the character set that its content type names."""

    reference = "malformed-text"


class BadMultipart(BadBody):
    """The body is no multipart form, or one with too many parts."""

    reference = "malformed-multipart"


class BadCompression(BadBody):
    """The body is not what its content encoding says."""

    reference = "malformed-compression"


class BodyTooLarge(BadBody):
    """
    The body, or what it unpacks to, is larger than the api takes.

    Args:
        limit: the most bytes that it may have.
    """

    reference = "body-too-large"

    def __init__(self, limit: int) -> None:
        self.limit = limit
        super().__init__(f"the body is larger than {limit} bytes", hint="raise max_body in cortex.yaml")

    @property
    def facts(self) -> dict[str, Any]:
        return {"limit": self.limit, **super().facts}


class UnsupportedContentType(BadBody):
    """
    A content type that this api has no use for.

    Args:
        content_type: as sent, shortened; None if none was.
        message: what is wrong with it; by default that it is not accepted.
    """

    reference = "unsupported-content-type"

    def __init__(self, content_type: str | None, message: str = "", *, hint: str = "") -> None:
        shown = (content_type or "")[:_SHOWN_CHARS]
        self.content_type = None if content_type is None else shown
        default = f'content type "{shown}" is not accepted; accepted are {", ".join(ACCEPTED)}'
        super().__init__(message or default, hint=hint)

    @property
    def facts(self) -> dict[str, Any]:
        return {"content_type": self.content_type, "accepted": list(ACCEPTED), **super().facts}


class UnsupportedEncoding(BadBody):
    """A content encoding other than gzip."""

    reference = "unsupported-content-encoding"

    def __init__(self, encoding: str) -> None:
        self.encoding = encoding[:_SHOWN_CHARS]
        hint = "send gzip, or no content-encoding"
        super().__init__(f'content encoding "{self.encoding}" is not accepted', hint=hint)

    @property
    def facts(self) -> dict[str, Any]:
        return {"content_encoding": self.encoding, "accepted": ["gzip"], **super().facts}


_PLAIN_JSON: Final = frozenset(
    {
        "application/json",
        "application/json; charset=utf-8",
        "application/json; charset=UTF-8",
        "application/json;charset=utf-8",
        "application/json;charset=UTF-8",
        "application/x-www-form-urlencoded",
    }
)
"""What almost every request says, compared before anything is parsed."""


class Decoder:
    """
    Turns bodies into samples. Built once an api; safe to use from several threads.

    Args:
        has_pre_inference: whether a handler stands between the body and the model: only then raw bytes are of use,
            arrays are handed out writable, and integers are exact whatever their size. (A model's inputs have 64 bits.)
        may_be_empty: whether the model runs on nothing: then, without a handler, a body of nothing is null.
    """

    __slots__ = ("_has_pre_inference", "_may_be_empty")

    def __init__(self, *, has_pre_inference: bool, may_be_empty: bool = False) -> None:
        self._has_pre_inference = has_pre_inference
        self._may_be_empty = may_be_empty and not has_pre_inference

    def decode(self, body: bytes, content_type: str | None = None) -> Any:
        """
        Return the sample that a body holds.

        Args:
            body: as it is after `unpack`.
            content_type: the header's value; None if there is none.

        Returns:
            A JSON value, an array, bytes, str, or for forms a dict of str and bytes (lists of them where a name
            repeats).

        Raises:
            BadBody: the subclass says what is wrong.
        """
        if content_type is None or content_type in _PLAIN_JSON:
            try:
                sample = orjson.loads(body)
            except orjson.JSONDecodeError as error:
                if self._may_be_empty and not body.strip():
                    return None
                sample = _retry_json(body, content_type, error)
            return _exact(body, sample) if self._has_pre_inference and not _no_digit(body[_EACH_19TH]) else sample
        media_type, parameters = _media_type(content_type)
        if self._may_be_empty and not body.strip():
            return None
        read = _READERS.get(media_type)
        if read is not None:
            sample = read(body, content_type, parameters)
            return sample.copy() if self._has_pre_inference and isinstance(sample, np.ndarray) else sample
        if media_type.endswith("+json"):
            return _read_json(body, content_type, parameters)
        if media_type.startswith(("image/", "audio/")) or media_type == "application/octet-stream":
            if not self._has_pre_inference:
                raise UnsupportedContentType(
                    content_type,
                    f'a body of type "{media_type[:_SHOWN_CHARS]}" is for a pre_inference, and this api has none',
                    hint="add a request_handler with a pre_inference, or send JSON or application/x-npy",
                )
            return body
        raise UnsupportedContentType(content_type, hint=_header_hint(body))


def unpack(body: bytes, content_encoding: str | None, *, limit: int) -> bytes:
    """
    Return a body as it was before compression.

    Args:
        body: as it came.
        content_encoding: the header's value; None if there is none.
        limit: the most bytes the result may have; unpacking stops there.

    Raises:
        BodyTooLarge: the result would be larger than `limit`.
        BadCompression: not gzip, cut off, or followed by something else.
        UnsupportedEncoding: an encoding other than gzip.
    """
    encoding = "" if content_encoding is None else content_encoding.strip().lower()
    if encoding in ("", "identity"):
        if len(body) > limit:
            raise BodyTooLarge(limit)
        return body
    if encoding not in ("gzip", "x-gzip"):
        raise UnsupportedEncoding(content_encoding or "")
    return _gunzip(body, limit)


def _gunzip(body: bytes, limit: int) -> bytes:
    """
    Unpack gzip, member after member, never holding more than `limit` bytes and a chunk.

    Source:
        RFC 1952, section 2.2: a gzip file is a series of members.
    """
    parts: list[bytes] = []
    size = position = 0
    view = memoryview(body)
    for _ in range(_MAX_GZIP_MEMBERS):
        unpacker = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
        while not unpacker.eof:
            chunk = view[position : position + _UNPACK_CHUNK_BYTES]
            if not chunk:
                raise BadCompression("the body ends in the middle of its gzip data", hint="was it sent whole?")
            position += len(chunk)
            try:
                part = unpacker.decompress(chunk, limit + 1 - size)
            except zlib.error as error:
                raise BadCompression(f"the body is not gzip: {error}") from None
            size += len(part)
            if size > limit:
                raise BodyTooLarge(limit)
            parts.append(part)
        position -= len(unpacker.unused_data)
        if position == len(body) or (body[position] == 0 and not body[position:].strip(b"\0")):
            return b"".join(parts)  # what follows the last member may be padding
    raise BadCompression(f"the body has more than {_MAX_GZIP_MEMBERS} gzip members")


_Reader: TypeAlias = Callable[[bytes, str, dict[str, str]], Any]


def _media_type(content_type: str) -> tuple[str, dict[str, str]]:
    """
    Split `image/png; a=b` into type and parameters, both with names in lower case.

    Source:
        RFC 9110, section 5.6.6: parameters, quoted or not.
    """
    media_type, semicolon, rest = content_type.partition(";")
    media_type = media_type.strip().lower()
    parameters: dict[str, str] = {}
    if semicolon:
        for match in _PARAMETER.finditer(rest):
            name, token, quoted = match.groups()
            parameters.setdefault(name.lower(), token if quoted is None else re.sub(r"\\(.)", r"\1", quoted))
    return media_type, parameters


_PARAMETER: Final = re.compile(r"""\s*([!#$%&'*+.^_`|~0-9A-Za-z-]+)=(?:([^\s";]+)|"((?:[^"\\]|\\.)*)")\s*(?:;|$)""")


def _read_json(body: bytes, content_type: str, parameters: dict[str, str]) -> Any:
    charset = parameters.get("charset", "utf-8").lower()
    if charset not in ("utf-8", "utf8"):
        body = _decode_text(body, content_type, charset).encode("utf-8")
    try:
        sample = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        sample = _retry_json(body, content_type, error)
    return _exact(body, sample)


def _exact(body: bytes, sample: Any) -> Any:
    """
    Return `sample`, which orjson read from `body`, with all digits of integers that have more than 64 bits.

    orjson makes floats of those. To look for them takes up to 1.5 ms a MiB.

    Raises:
        BadJson: one has more digits, or stands deeper, than Python reads.
    """
    if _DIGITS not in body.translate(_AS_DIGITS) or not _LONG_INTEGER.search(body):
        return sample
    try:
        return json.loads(body)
    except RecursionError:
        raise BadJson("an integer of more than 64 bits stands too deep", hint="send it as text") from None
    except ValueError:
        raise BadJson("an integer has more digits than are read", hint="send it as text") from None


def reread(body: bytes) -> Any:
    """Return what JSON in `body` holds, long integers exact; None if it has none of over 64 bits, or is no JSON."""
    if not _LONG_INTEGER.search(body):
        return None
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


_FEWEST_DIGITS: Final = 19  # of an integer below -2**63
_EACH_19TH: Final = slice(_FEWEST_DIGITS - 1, None, _FEWEST_DIGITS)
"""So many digits in a row have one there: in a short text with few numbers there is mostly none."""
_no_digit: Final = frozenset(b"0123456789").isdisjoint
_DIGITS: Final = b"0" * _FEWEST_DIGITS
_AS_DIGITS: Final = bytes(48 if 48 <= byte < 58 else 32 for byte in range(256))
_LONG_INTEGER: Final = re.compile(rb"(?<![0-9.eE+-])(?:-[0-9]{19}|[0-9]{20})[0-9]*(?![0-9.eE])")
"""In a text it may be something else: then nothing is lost by reading again."""


def _retry_json(body: bytes, content_type: str | None, error: orjson.JSONDecodeError) -> Any:
    """
    Read JSON that begins with a byte order mark, which orjson refuses; explain everything else.

    Raises:
        BadJson: with line and column, and a hint.
        UnsupportedContentType: no content type said JSON, and the body is an image or a sound.
    """
    if body.startswith(codecs.BOM_UTF8):
        body = body[len(codecs.BOM_UTF8) :]
        try:
            return orjson.loads(body)
        except orjson.JSONDecodeError as again:
            error = again
    hint = _header_hint(body)
    if hint and (content_type is None or _media_type(content_type)[0] in _TAKEN_FOR_JSON):
        message = "the body is no JSON, and no content type says what it is"
        raise UnsupportedContentType(content_type, message, hint=hint)
    if not body.strip():
        raise BadJson("it is empty", hint="send a JSON value, e.g. -d '[1, 2, 3]'")
    encoding = _unicode_of(body)
    if encoding is not None:
        raise BadJson(f"it is {encoding}", line=1, column=1, position=0, hint=_SEND_UTF8)
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as bad:
        line_start = body.rfind(b"\n", 0, bad.start) + 1
        line = body.count(b"\n", 0, bad.start) + 1
        column = bad.start - line_start + 1
        hint = hint or _SEND_UTF8
        raise BadJson("it is not UTF-8", line=line, column=column, position=bad.start, hint=hint) from None
    reason, advice = _json_advice(text, error)
    raise BadJson(reason, line=error.lineno, column=error.colno, position=error.pos, hint=hint or advice) from None


_SEND_UTF8: Final = "JSON is sent in UTF-8 (RFC 8259), or with its charset in the content type"


def _unicode_of(body: bytes) -> str | None:
    """
    The encoding of a JSON text in one of Unicode's wide forms; None if it is in none of them.

    Source:
        RFC 4627, section 3: JSON begins with two ASCII characters, so NULs tell its encoding. Taken out of RFC 8259, as
        only UTF-8 is left.
    """
    nulls = [byte == 0 for byte in body[:4]]
    for name, mark, pattern in _WIDE:
        if body.startswith(mark) or nulls in (pattern, pattern[:2]):  # two bytes are all of one digit
            try:
                body.decode(name)
            except UnicodeDecodeError:
                continue
            return name
    return None


_WIDE: Final = (
    ("UTF-32LE", codecs.BOM_UTF32_LE, [False, True, True, True]),
    ("UTF-32BE", codecs.BOM_UTF32_BE, [True, True, True, False]),
    ("UTF-16LE", codecs.BOM_UTF16_LE, [False, True, False, True]),
    ("UTF-16BE", codecs.BOM_UTF16_BE, [True, False, True, False]),
)
"""Name, byte order mark, and which of the first four bytes are NUL. UTF-32 first: its mark begins like UTF-16's."""


def _json_advice(text: str, error: orjson.JSONDecodeError) -> tuple[str, str]:
    """Return what is wrong, and what to do about it."""
    before = max(error.pos - 1, 0)  # at "-Infinity" orjson stops behind the sign
    for word, advice in _NOT_JSON:
        if text.startswith(word, before if word.startswith("-") else error.pos):
            return f"{word} is not JSON", advice
    if text.startswith("'", error.pos):
        return error.msg, 'JSON takes double quotes: "text"'
    if _FORM_FIELD.match(text):
        return "it looks like a form's name=value", "send JSON, e.g. -d '[1, 2, 3]'"
    if "infinity" in error.msg:
        return "a number is too large for 64-bit floats", ""
    return error.msg, ""


_TAKEN_FOR_JSON: Final = ("", "application/x-www-form-urlencoded")
"""Content types that say nothing; the second is what `curl -d` sends unless told otherwise."""

_FORM_FIELD: Final = re.compile(r"[A-Za-z_][\w.%+-]*=")
"""What `curl -d name=value` sends."""

_NOT_JSON: Final = (
    ("-Infinity", "send null"),
    ("-inf", "send null"),
    ("-NaN", "send null"),
    ("NaN", "send null"),
    ("nan", "send null"),
    ("Infinity", "send null"),
    ("inf", "send null"),
    ("None", "send null"),
    ("True", "send true"),
    ("False", "send false"),
)


def _read_text(body: bytes, content_type: str, parameters: dict[str, str]) -> str:
    return _decode_text(body, content_type, parameters.get("charset", "utf-8").lower())


def _decode_text(body: bytes, content_type: str, charset: str) -> str:
    codec = _CHARSETS.get(charset.replace("_", "-"))
    if codec is None:
        raise UnsupportedContentType(
            content_type, f'the character set "{charset[:_SHOWN_CHARS]}" is not known', hint="send UTF-8"
        )
    try:
        return body.decode(codec)
    except UnicodeDecodeError as error:
        raise BadText(
            f"the body is not {charset}: byte {error.start} is 0x{body[error.start]:02x}",
            hint="name its character set, e.g. -H 'content-type: text/plain; charset=latin-1'",
        ) from None


def _charsets() -> dict[str, str]:
    """
    Character sets by every name they are sent under.

    A closed list: Python's registry keeps every name it is ever asked for, and has codecs that take quadratic time.
    """
    names = {
        "utf-8": "utf-8-sig", "utf8": "utf-8-sig",
        "ascii": "ascii", "us-ascii": "ascii",
        "latin-1": "latin-1", "latin1": "latin-1", "iso8859-1": "latin-1",
        "shift-jis": "shift_jis", "sjis": "shift_jis",
        "windows-31j": "cp932", "windows-874": "cp874",
    }  # fmt: skip
    for name in ("utf-16", "utf-16le", "utf-16be", "utf-16-le", "utf-16-be", "utf-32", "utf-32le", "utf-32be"):
        names[name] = name
    for name in ("koi8-r", "koi8-u", "euc-jp", "euc-kr", "iso-2022-jp", "gb2312", "gbk", "gb18030", "big5"):
        names[name] = name
    for number in range(1250, 1259):
        names[f"windows-{number}"] = names[f"cp{number}"] = f"cp{number}"
    for number in (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 14, 15, 16):
        names[f"iso-8859-{number}"] = f"iso8859_{number}"
    return names


_CHARSETS: Final = _charsets()


def _read_npy(body: bytes, content_type: str, parameters: dict[str, str]) -> NDArray[Any]:
    """
    Return the array of a `.npy` file, read-only, sharing memory with `body`.

    The header is matched, never evaluated, and says how many bytes follow before any array is made: a header that
    promises a terabyte costs nothing.

    Source:
        numpy.lib.format, "Format Version 1.0" to "3.0".
    """
    if body[:6] != b"\x93NUMPY" or len(body) < 10:
        raise BadArray("the body is no .npy file", hint="write it with numpy.save")
    major = body[6]
    if major not in (1, 2, 3):
        raise BadArray(f"the body is a .npy file of version {major}; 1 to 3 are known")
    prefix = 10 if major == 1 else 12
    start = prefix + int.from_bytes(body[8:prefix], "little")
    if start > min(len(body), _MAX_NPY_HEADER_BYTES):
        raise BadArray("the .npy header is longer than it may be, or cut off")
    # What is beyond ASCII stands in names of fields, UTF-8 in version 3, and an array that has those is not read.
    dtype, fortran_order, shape = _npy_header(body[prefix:start].decode("latin-1"))
    expected = math.prod(shape) * dtype.itemsize
    found = len(body) - start
    if expected != found:
        raise BadArray(f"the .npy header promises {expected} bytes of {dtype}{list(shape)}, {found} follow")
    try:
        flat: NDArray[Any] = np.frombuffer(body, dtype, offset=start) if found else np.empty(0, dtype)
        if dtype.kind == "U" and (flat.view(np.dtype(np.uint32).newbyteorder(dtype.byteorder)) > 0x10FFFF).any():
            raise BadArray("the .npy file holds characters that Unicode does not have")
        return flat.reshape(shape, order="F" if fortran_order else "C")
    except ValueError as error:
        raise BadArray(f"the .npy header is wrong: {error}") from None


_NPY_HEADER: Final = re.compile(
    r"""\{(?:\s*(?:
        'descr':\s*'(?P<descr>[<>|=]?[bBiufcSUOVmM?][0-9]{0,9}(?:\[[0-9a-zA-Z]{1,9}\])?)'
        |'fortran_order':\s*(?P<fortran>True|False)
        |'shape':\s*\((?P<shape>[0-9L,\s]*)\)
    )\s*,?){3}\s*\}\s*""",
    re.VERBOSE,
)


def _npy_header(header: str) -> tuple[np.dtype[Any], bool, tuple[int, ...]]:
    match = _NPY_HEADER.fullmatch(header)
    if match is None or None in match.groups():
        if "'descr': [" in header:
            raise BadArray("the .npy file holds a structured array", hint="send one array of one type")
        raise BadArray("the .npy header cannot be read", hint="write it with numpy.save")
    try:
        dtype = np.dtype(match["descr"])
    except (TypeError, ValueError):
        raise BadArray(f'the .npy file has the unknown type "{match["descr"]}"') from None
    if dtype.kind not in "biufcSUmM" or not dtype.itemsize:
        raise BadArray(
            f'the .npy file holds "{match["descr"]}", which is not read',
            hint="convert it to numbers or text first: objects would have to be unpickled",
        )
    sizes = [size.strip().rstrip("L") for size in match["shape"].split(",")]
    if len(sizes) > _MAX_RANK + 1 or any(len(size) > _MAX_SIZE_DIGITS for size in sizes):
        raise BadArray("the .npy header has a shape that no array can have")
    try:
        shape = tuple(int(size) for size in sizes if size)
    except ValueError:
        raise BadArray("the .npy header has no readable shape") from None
    return dtype, match["fortran"] == "True", shape


def _read_multipart(body: bytes, content_type: str, parameters: dict[str, str]) -> dict[str, Any]:
    """
    Return a form as a dict: files as bytes, other fields as str, a list where a name repeats.

    Written out here because `email`'s parser, the standard library's only one, splits binary files into lines and takes
    100 times as long. Content is copied once and never scanned but for the boundary.

    Source:
        RFC 7578 (multipart/form-data) and RFC 2046, section 5.1.1 (boundaries).
    """
    boundary = parameters.get("boundary", "")
    if not boundary or len(boundary) > _MAX_BOUNDARY_CHARS or not boundary.isascii():
        raise BadMultipart(
            "the content type names no boundary", hint="let the client set it: curl -F, or files= in requests"
        )
    dash_boundary = b"--" + boundary.encode("ascii")
    delimiter = b"\r\n" + dash_boundary
    position = 0 if body.startswith(dash_boundary) else body.find(delimiter) + 2
    if position == 1:
        raise BadMultipart(f'the boundary "{boundary}" is not in the body')
    position += len(dash_boundary)
    form: dict[str, Any] = {}
    repeated: set[str] = set()
    for _ in range(MAX_PARTS + 1):
        if body[position : position + 2] == b"--":
            return form
        line_end = body.find(b"\r\n", position, position + 256)
        if line_end < 0 or body[position:line_end].strip(b" \t"):
            raise BadMultipart(f"byte {position} is no end of a boundary line")
        end = body.find(delimiter, line_end)
        if end < 0:
            raise BadMultipart("the last part has no closing boundary", hint="was the body sent whole?")
        name, value = _part(body, line_end + 2, end)
        if name not in form:
            form[name] = value
        elif name in repeated:
            form[name].append(value)
        else:
            repeated.add(name)
            form[name] = [form[name], value]
        position = end + len(delimiter)
    raise BadMultipart(f"the form has more than {MAX_PARTS} parts")


def _part(body: bytes, start: int, end: int) -> tuple[str, bytes | str]:
    """Return name and value of the part between two boundaries."""
    if body[start : start + 2] == b"\r\n":
        raise BadMultipart(f"the part at byte {start} has no headers")
    blank = body.find(b"\r\n\r\n", start, min(end, start + _MAX_PART_HEADER_BYTES))
    if blank < 0:
        raise BadMultipart(f"the headers of the part at byte {start} do not end")
    headers: dict[str, str] = {}
    for line in body[start:blank].decode("utf-8", "replace").split("\r\n"):
        key, colon, value = line.partition(":")
        if not colon:
            raise BadMultipart(f'a part has the header "{line[:_SHOWN_CHARS]}", which has no colon')
        headers.setdefault(key.strip().lower(), value.strip())
    disposition, parameters = _media_type(headers.get("content-disposition", ""))
    name = parameters.get("name")
    if disposition != "form-data" or name is None:
        raise BadMultipart(f"the part at byte {start} has no name")
    content = _transfer_decoded(body[blank + 4 : end], headers.get("content-transfer-encoding", "").lower())
    media_type, content_parameters = _media_type(headers.get("content-type", "text/plain"))
    is_file = "filename" in parameters or "filename*" in parameters or not media_type.startswith("text/")
    # the three characters that browsers escape, and no others (WHATWG HTML, "multipart form data")
    name = name.replace("%22", '"').replace("%0D", "\r").replace("%0A", "\n") if "%" in name else name
    if is_file:
        return name, content
    charset = content_parameters.get("charset", "utf-8").lower()
    try:
        return name, _decode_text(content, media_type, charset)
    except BadText:
        raise BadMultipart(f'the field "{name[:_SHOWN_CHARS]}" is not {charset}') from None


def _transfer_decoded(content: bytes, encoding: str) -> bytes:
    if encoding in ("", "binary", "8bit", "7bit"):
        return content
    if encoding == "base64":
        try:
            return binascii.a2b_base64(content)
        except binascii.Error as error:
            raise BadMultipart(f"a part is not base64: {error}") from None
    raise BadMultipart(f'a part has the transfer encoding "{encoding[:_SHOWN_CHARS]}", which is not known')


_READERS: Final[dict[str, _Reader]] = {
    "": _read_json,
    "application/json": _read_json,
    "text/json": _read_json,
    "application/x-www-form-urlencoded": _read_json,
    "application/x-npy": _read_npy,
    "text/plain": _read_text,
    "multipart/form-data": _read_multipart,
}


def _header_hint(body: bytes) -> str:
    """Return the curl option for a body whose first bytes give it away, else an empty string."""
    if body.startswith(b"\x1f\x8b"):
        return "the body looks like gzip: add -H 'content-encoding: gzip'"
    if body.startswith(b"RIFF"):
        media_type = {b"WAVE": "audio/wav", b"WEBP": "image/webp"}.get(body[8:12], "")
    else:
        media_type = next((name for magic, name in _MAGIC if body.startswith(magic)), "")
    return f"the body looks like {media_type}: add -H 'content-type: {media_type}'" if media_type else ""


_MAGIC: Final = (
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"fLaC", "audio/flac"),
    (b"OggS", "audio/ogg"),
    (b"ID3", "audio/mpeg"),
    (b"\x93NUMPY", "application/x-npy"),
)
