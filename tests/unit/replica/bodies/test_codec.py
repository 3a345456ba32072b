"""Tests of `cortex.replica.bodies.codec`."""

import gzip
import io
import json
import sys
import tracemalloc
import warnings
import zlib
from encodings.aliases import aliases

import httpx
import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cortex.replica.bodies import codec
from cortex.replica.bodies.codec import (
    ACCEPTED,
    BadArray,
    BadBody,
    BadCompression,
    BadJson,
    BadMultipart,
    BadText,
    BodyTooLarge,
    Decoder,
    UnsupportedContentType,
    UnsupportedEncoding,
    unpack,
)

PLAIN = Decoder(has_pre_inference=False)
HANDLED = Decoder(has_pre_inference=True)
FORM = "application/x-www-form-urlencoded"
JPEG, PNG, WAV = b"\xff\xd8\xff\xe0\x00", b"\x89PNG\r\n\x1a\n\x00", b"RIFF\x24\x00\x00\x00WAVEfmt "


def refused(error, body, content_type=None, decoder=PLAIN):
    with pytest.raises(error) as caught:
        decoder.decode(body, content_type)
    assert orjson.dumps(caught.value.facts)
    return caught.value


# ---- integers of more than 64 bits -----------------------------------------------------------------------------------

INTEGERS = st.one_of(
    st.integers(),
    st.integers(-(10**300), 10**300),
    st.sampled_from([2**63, 2**64 - 1, 2**64, 2**64 + 1, -(2**63), -(2**63) - 1, 10**19, -(10**18), 2**1000]),
)
VALUES = st.recursive(
    st.one_of(INTEGERS, st.floats(allow_nan=False, allow_infinity=False), st.text(), st.none(), st.booleans()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(VALUES, st.sampled_from([None, "application/json", "text/json", "application/x+json", "application/json;a=b"]))
@settings(deadline=None)
def test_handlers_get_every_digit_of_an_integer_at_any_depth(value, content_type):
    sample = HANDLED.decode(json.dumps(value).encode(), content_type)
    assert repr(sample) == repr(json.loads(json.dumps(value)))


@given(st.text(st.sampled_from("0123456789.eE-+, []"), max_size=60))
@settings(deadline=None)
def test_bodies_full_of_digits_are_read_as_they_were_or_exactly(text):
    body = text.encode()
    try:
        expected = orjson.loads(body)
    except orjson.JSONDecodeError:
        refused(BadJson, body, decoder=HANDLED)
        return
    exact = json.loads(body)
    found = HANDLED.decode(body)
    assert found in (expected, exact)
    assert repr(found) == repr(exact)


def test_a_number_with_too_many_digits_is_said_to_have_them():
    for digits in (400, 5000):
        assert "too large" in str(refused(BadJson, b"[" + b"9" * digits + b"]", decoder=HANDLED))


def test_an_integer_deeper_than_python_reads_is_exact_or_said_to_be_too_deep():
    """Which of the two depends on the version of Python."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(900)
    try:
        found = HANDLED.decode(b"[" * 1000 + b"1" * 25 + b"]" * 1000)  # orjson reads 1024
    except BadJson as error:
        found = error.reason
    finally:
        sys.setrecursionlimit(limit)
    while isinstance(found, list):
        (found,) = found
    assert found in (int("1" * 25), "an integer of more than 64 bits stands too deep")


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (b"[18446744073709551616, 1]", [2**64, 1]),
        (b"[-9223372036854775809]", [-(2**63) - 1]),
        (b"[9223372036854775807]", None),
        (b"[1.8446744073709551616]", None),
        (b"18446744073709551616 and more", None),
        (b"9" * 5000, None),
        (b"[" * 100_000 + b"18446744073709551616", None),
    ],
    ids=["of 65 bits", "below 64 bits", "of 64 bits", "a fraction", "no JSON", "too long", "too deep"],
)
def test_a_body_is_read_again_for_the_sake_of_long_integers_alone(body, found):
    assert codec.reread(body) == found


def test_a_model_that_needs_no_input_is_asked_with_nothing():
    decoder = Decoder(has_pre_inference=False, may_be_empty=True)
    for content_type in (None, "application/json", FORM, "text/plain", "application/octet-stream"):
        for body in (b"", b" \n"):
            assert decoder.decode(body, content_type) is None
    assert decoder.decode(b"{}") == {}
    refused(BadJson, b"", decoder=Decoder(has_pre_inference=True, may_be_empty=True))


# ---- JSON -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "",
        "application/json",
        "application/json; charset=utf-8",
        'Application/JSON;charset="UTF-8"',
        "text/json",
        "application/vnd.acme+json",
        FORM,
    ],
)
def test_json_is_read_whatever_it_is_called(content_type):
    assert PLAIN.decode('{"a": [1, "é"]}'.encode(), content_type) == {"a": [1, "é"]}


def test_a_byte_order_mark_and_other_character_sets_are_read():
    assert PLAIN.decode(b"\xef\xbb\xbf[1]") == [1]
    assert PLAIN.decode('["é"]'.encode("latin-1"), "application/json; charset=iso-8859-1") == ["é"]
    assert PLAIN.decode('["é"]'.encode("utf-16"), "application/json; charset=utf-16") == ["é"]


@pytest.mark.parametrize("charset", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("text", ["[1, 2]", '{"é": "日本"}', "7", "[1,"])
@pytest.mark.parametrize("content_type", [None, "application/json", "application/geo+json", "text/json"])
def test_json_in_another_encoding_of_unicode_is_told_which(charset, mark, text, content_type):
    with pytest.raises(BadJson) as caught:
        PLAIN.decode((mark + text).encode(charset), content_type)
    name = charset.upper().replace("-LE", "LE").replace("-BE", "BE")
    assert str(caught.value) == f"the body is not valid JSON: it is {name} at line 1, column 1"
    assert caught.value.facts == {
        "line": 1,
        "column": 1,
        "position": 0,
        "hint": "JSON is sent in UTF-8 (RFC 8259), or with its charset in the content type",
    }


@pytest.mark.parametrize("body", [b"\0", b"\0\0", b"\0\0\0\0", b"a\0b", b"\xff\xfea", b"[\0\x31"])
def test_what_only_has_zeros_in_it_is_not_taken_for_another_encoding(body):
    with pytest.raises(BadJson) as caught:
        PLAIN.decode(body, "application/json")
    assert "UTF-16" not in str(caught.value)
    assert "UTF-32" not in str(caught.value)


@pytest.mark.parametrize(
    ("body", "message", "hint", "place"),
    [
        (b"", "the body is not valid JSON: it is empty", "send a JSON value, e.g. -d '[1, 2, 3]'", (None, None, None)),
        (
            b" \n",
            "the body is not valid JSON: it is empty",
            "send a JSON value, e.g. -d '[1, 2, 3]'",
            (None, None, None),
        ),
        (b"[1, NaN]", "the body is not valid JSON: NaN is not JSON at line 1, column 5", "send null", (1, 5, 4)),
        # After a byte order mark, which stands nowhere in the text.
        (
            b"\xef\xbb\xbf[1, NaN]",
            "the body is not valid JSON: NaN is not JSON at line 1, column 5",
            "send null",
            (1, 5, 4),
        ),
        (
            b"[-Infinity]",
            "the body is not valid JSON: -Infinity is not JSON at line 1, column 3",
            "send null",
            (1, 3, 2),
        ),
        (
            b'{"a": Infinity}',
            "the body is not valid JSON: Infinity is not JSON at line 1, column 7",
            "send null",
            (1, 7, 6),
        ),
        (b"[1,\n True]", "the body is not valid JSON: True is not JSON at line 2, column 2", "send true", (2, 2, 5)),
        (b"None", "the body is not valid JSON: None is not JSON at line 1, column 1", "send null", (1, 1, 0)),
        (
            b"age=4&name=a",
            "the body is not valid JSON: it looks like a form's name=value at line 1, column 1",
            "send JSON, e.g. -d '[1, 2, 3]'",
            (1, 1, 0),
        ),
        (
            b'["\xc3\xa9",\n"\xff"]',
            "the body is not valid JSON: it is not UTF-8 at line 2, column 2",
            "JSON is sent in UTF-8 (RFC 8259), or with its charset in the content type",
            (2, 2, 8),
        ),
    ],
)
def test_json_errors_name_the_place_and_the_way_out(body, message, hint, place):
    error = refused(BadJson, body)
    assert (str(error), error.hint) == (message, hint)
    assert (error.line, error.column, error.position) == place


def test_single_quotes_are_recognised():
    assert "double quotes" in refused(BadJson, b"{'a': 1}").hint


@pytest.mark.parametrize(
    "body", [b"[" * 100_000, b'{"a":' * 5000, b"1e999", b"1" * 10_000, b'"\\ud800"', b"[1] 2", b"01"]
)
def test_hostile_json_is_an_error_like_any_other(body):
    assert refused(BadJson, body).line == 1


@given(st.binary(max_size=30))
def test_any_bytes_are_json_or_an_error(body):
    try:
        value = PLAIN.decode(body)
    except BadBody:
        return
    assert value == json.loads(body)


# ---- content types --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content_type", ["image/jpeg", "image/svg+xml", "audio/wav; x=1", "application/octet-stream"])
def test_raw_bytes_are_for_handlers(content_type):
    assert HANDLED.decode(b"\x00\xff", content_type) == b"\x00\xff"
    error = refused(UnsupportedContentType, b"\x00\xff", content_type)
    assert "pre_inference" in str(error)
    assert error.facts["accepted"] == list(codec.ACCEPTED)


@pytest.mark.parametrize("content_type", ["application/xml", "video/mp4", "nonsense", "text/html", "; charset"])
def test_other_types_are_refused_with_the_accepted_ones(content_type):
    if content_type == "; charset":
        refused(BadJson, b"<", content_type)
        return
    error = refused(UnsupportedContentType, b"<", content_type, HANDLED)
    assert all(name in str(error) for name in codec.ACCEPTED)


@pytest.mark.parametrize(
    ("body", "media_type"),
    [
        (JPEG, "image/jpeg"),
        (PNG, "image/png"),
        (WAV, "audio/wav"),
        (b"GIF89a", "image/gif"),
        (b"RIFF\0\0\0\0WEBP", "image/webp"),
        (b"\x93NUMPY", "application/x-npy"),
    ],
)
def test_bytes_that_look_like_something_name_the_header_to_add(body, media_type):
    line = f"add -H 'content-type: {media_type}'"
    for content_type in (None, "", FORM, "video/mp4"):
        assert line in refused(UnsupportedContentType, body, content_type, HANDLED).hint
    assert line in refused(BadJson, body, "application/json").hint


def test_a_body_that_looks_like_gzip_names_the_header_to_add():
    assert "-H 'content-encoding: gzip'" in refused(UnsupportedContentType, gzip.compress(b"[1]")).hint


@pytest.mark.parametrize(
    ("text", "content_type"),
    [
        ("é\n", "text/plain"),
        ("é", "text/plain; charset=utf-8"),
        ("é", "text/plain;charset=ISO-8859-1"),
        ("é", "text/plain; charset=windows-1252"),
        ("日本", "text/plain; charset=Shift_JIS"),
        ("日本", "text/plain; charset=utf-16"),
        ("", "text/plain"),
    ],
)
def test_text_is_read_in_its_character_set(text, content_type):
    charset = content_type.partition("=")[2] or "utf-8"
    assert PLAIN.decode(text.encode(charset), content_type) == text


def test_text_that_is_not_what_it_says_is_refused():
    assert "byte 1 is 0xff" in str(refused(BadText, b"a\xff", "text/plain"))


@pytest.mark.parametrize("charset", ["rot13", "idna", "punycode", "zip", "unicode_escape", "utf-7", "x" * 5000, "../x"])
def test_character_sets_that_are_none_are_never_looked_up(charset):
    error = refused(UnsupportedContentType, b"a", f"text/plain; charset={charset}")
    assert "not known" in str(error)
    assert len(str(error)) < 200


def test_a_character_set_that_is_known_is_what_python_knows_by_its_name():
    names = {name.replace("_", "-") for pair in aliases.items() for name in pair}
    known = []
    for name in sorted(names):
        try:
            assert PLAIN.decode("a".encode(name), f"text/plain; charset={name}") == "a"
        except (UnsupportedContentType, LookupError):
            continue
        known.append(name)
    assert len(known) > 50


@pytest.mark.parametrize(
    ("known", "unknown"),
    [
        ([f"windows-{number}" for number in range(1250, 1259)], ["windows-1249", "windows-1259"]),
        ([f"cp{number}" for number in range(1250, 1259)], ["cp1249", "cp1259"]),
        ([f"iso-8859-{part}" for part in range(1, 17) if part != 12], ["iso-8859-0", "iso-8859-12", "iso-8859-17"]),
    ],
)
def test_every_character_set_of_a_family_is_read(known, unknown):
    for name in known:
        letter = bytes([0xE4]).decode(name.replace("windows-", "cp"))
        assert PLAIN.decode(b"\xe4", f"text/plain; charset={name}") == letter
    for name in unknown:
        refused(UnsupportedContentType, b"a", f"text/plain; charset={name}")


# ---- arrays ---------------------------------------------------------------------------------------------------------


def npy(array, version=None):
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version)
    return file.getvalue()


def npy_with(header, data=b"", version=1):
    text = header.encode("latin-1")
    return b"\x93NUMPY" + bytes([version, 0]) + len(text).to_bytes(2 if version == 1 else 4, "little") + text + data


@given(
    hnp.arrays(
        hnp.scalar_dtypes().filter(lambda d: d.kind != "V" and d.itemsize),
        hnp.array_shapes(min_dims=0, min_side=0, max_side=3),
    ),
    st.sampled_from("CF"),
    st.sampled_from([(1, 0), (2, 0), (3, 0)]),
)
@settings(deadline=None)
def test_arrays_come_back_as_numpy_wrote_them(array, order, version):
    array = np.array(array, order=order)
    with warnings.catch_warnings(action="ignore"):  # numpy warns about versions 2 and 3
        body = npy(array, version)
    found = PLAIN.decode(body, "application/x-npy")
    assert (found.dtype, found.shape) == (array.dtype, array.shape)
    assert found.tobytes() == array.tobytes()


def npy_of_header(length):
    header = "{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }"
    return npy_with(header.ljust(length), b"\0" * 4)


def test_the_header_of_an_array_may_reach_as_far_as_numpy_lets_it():
    assert PLAIN.decode(npy_of_header(9_990), "application/x-npy").tolist() == [0.0]
    assert "longer than it may be" in str(refused(BadArray, npy_of_header(9_991), "application/x-npy"))


@pytest.mark.parametrize(("rank", "is_read"), [(31, True), (32, True), (33, False)])
def test_an_array_may_have_32_dimensions(rank, is_read):
    body = npy_with("{'descr': '<f4', 'fortran_order': False, 'shape': (" + "1, " * rank + "), }", b"\0" * 4)
    if is_read:
        assert PLAIN.decode(body, "application/x-npy").shape == (1,) * rank
    else:
        assert "no array can have" in str(refused(BadArray, body, "application/x-npy"))


def test_arrays_share_the_bodys_memory_unless_a_handler_may_write_to_them():
    body = npy(np.arange(3.0))
    assert not PLAIN.decode(body, "application/x-npy").flags.writeable
    assert HANDLED.decode(body, "application/x-npy").flags.writeable


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "no .npy file"),
        (b"[1, 2]", "no .npy file"),
        (b"\x93NUMPY\x01\x00\xff\xff{", "longer than it may be, or cut off"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff{", "longer than it may be, or cut off"),
        (b"\x93NUMPY\x09\x00\x01\x00{", "version 9"),
        (npy(np.arange(3.0))[:-1], "promises 24 bytes of float64[3], 23 follow"),
        (npy(np.arange(3.0)) + b"x", "promises 24 bytes of float64[3], 25 follow"),
        (npy(np.zeros(2, [("a", "f4")])), "structured"),
        (
            npy_with("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", b"cos\nsystem"),
            '"|O", which is not read',
        ),
        (
            npy_with("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }"),
            "promises 4000000000000 bytes",
        ),
        (npy_with("{'descr': '<f4', 'fortran_order': False, 'shape': (" + "9" * 5000 + ",), }"), "no array can have"),
        (npy_with("{'descr': '<f4', 'fortran_order': False, 'shape': (" + "1," * 60 + "), }"), "no array can have"),
        (npy_with("{'descr': '<f4', 'fortran_order': False, 'shape': (0, 9223372036854775807), }"), "header is wrong"),
        (npy_with("{'descr': '|S0', 'fortran_order': False, 'shape': (9,), }"), "not read"),
        (npy_with("{'descr': '<f3', 'fortran_order': False, 'shape': (1,), }"), "unknown type"),
        (npy_with("{'descr': '<f4', 'fortran_order': False}"), "cannot be read"),
        (npy_with("{'descr': '<f4', 'descr': '<f4', 'descr': '<f4'}"), "cannot be read"),
        (npy_with("__import__('os').abort()"), "cannot be read"),
        (npy_with("{'descr': '<f4', 'fortran_order': False, 'shape': (1 2,), }"), "no readable shape"),
        (npy_with("{'descr': '<U1', 'fortran_order': False, 'shape': (1,), }", b"\xff" * 4), "Unicode"),
    ],
)
def test_what_is_no_whole_npy_file_is_refused(body, words):
    assert words in str(refused(BadArray, body, "application/x-npy"))


def test_a_header_that_promises_a_terabyte_allocates_nothing():
    body = npy_with("{'descr': '<f8', 'fortran_order': False, 'shape': (137438953472,), }", b"1234")
    tracemalloc.start()
    refused(BadArray, body, "application/x-npy")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


@given(st.data())
@settings(deadline=None)
def test_a_damaged_npy_file_is_an_array_or_an_error(data):
    body = bytearray(npy(np.arange(6.0).reshape(2, 3)))
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = PLAIN.decode(bytes(body), "application/x-npy")
    except BadBody:
        return
    assert found.nbytes <= len(body)


# ---- forms ----------------------------------------------------------------------------------------------------------


def encoded_form(fields, files):
    request = httpx.Request("POST", "http://x", data=fields, files=files)
    return request.read(), request.headers["content-type"]


@given(
    st.dictionaries(st.text('abcé"%\\ ', min_size=1, max_size=5), st.text(max_size=10), max_size=3),
    st.dictionaries(st.text("xyz", min_size=1, max_size=3), st.binary(max_size=200), min_size=1, max_size=3),
)
@settings(deadline=None)
def test_forms_come_back_as_a_client_wrote_them(fields, files):
    body, content_type = encoded_form(fields, {name: ("a.bin", content) for name, content in files.items()})
    assert PLAIN.decode(body, content_type) == {**fields, **files}


def form(*parts):
    return b"".join(b"--B\r\n" + part + b"\r\n" for part in parts) + b"--B--\r\n"


MULTIPART = "multipart/form-data; boundary=B"
FIELD = b'Content-Disposition: form-data; name="a"\r\n\r\n'


def test_a_name_that_repeats_becomes_a_list():
    assert PLAIN.decode(form(FIELD + b"1", FIELD + b"2", FIELD + b"3"), MULTIPART) == {"a": ["1", "2", "3"]}


def test_what_makes_a_part_a_file():
    parts = [
        b'Content-Disposition: form-data; name="named"; filename="x"\r\n\r\n\xff',
        b"content-disposition: form-data; name=typed\r\nContent-Type: image/png\r\n\r\n\xff\r\n",
        b"Content-Disposition: form-data; name=text\r\nContent-Type: text/plain; charset=latin-1\r\n\r\n\xe9",
        b"Content-Disposition: form-data; name=b64; filename=x\r\nContent-Transfer-Encoding: base64\r\n\r\naGk=",
    ]
    body = b"preamble\r\n" + form(*parts) + b"epilogue"
    expected = {"named": b"\xff", "typed": b"\xff\r\n", "text": "é", "b64": b"hi"}
    assert PLAIN.decode(body, 'multipart/form-data; boundary="B"') == expected


def test_names_are_unescaped_as_browsers_escape_them():
    part = b'Content-Disposition: form-data; name="%22a%22%0D%0A100%25"\r\n\r\n1'
    assert PLAIN.decode(form(part), MULTIPART) == {'"a"\r\n100%25': "1"}


def test_a_boundary_may_be_followed_by_blanks_but_not_by_any_number():
    for blanks, is_read in ((254, True), (255, False)):
        body = b"--B" + b" \t" * (blanks // 2) + b" " * (blanks % 2) + b"\r\n" + FIELD + b"1\r\n--B--"
        if is_read:
            assert PLAIN.decode(body, MULTIPART) == {"a": "1"}
        else:
            assert "no end of a boundary line" in str(refused(BadMultipart, body, MULTIPART))


@pytest.mark.parametrize("parts", [1000, 1001])
def test_a_form_may_have_1000_parts(parts):
    body = form(*[FIELD + b"1"] * parts)
    if parts == 1000:
        assert PLAIN.decode(body, MULTIPART) == {"a": ["1"] * parts}
    else:
        refused(BadMultipart, body, MULTIPART)


@pytest.mark.parametrize("header_bytes", [8192, 8193])
def test_the_headers_of_a_part_may_have_8192_bytes(header_bytes):
    padding = b"X: " + b"y" * (header_bytes - len(FIELD) - len(b"X: \r\n")) + b"\r\n"
    body = form(padding + FIELD + b"1")
    if header_bytes == 8192:
        assert PLAIN.decode(body, MULTIPART) == {"a": "1"}
    else:
        assert "do not end" in str(refused(BadMultipart, body, MULTIPART))


def test_an_empty_form_is_empty():
    assert PLAIN.decode(b"--B--", MULTIPART) == {}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "is not in the body"),
        (b"--B", "no end of a boundary line"),
        (b"--Bx\r\n" + FIELD, "no end of a boundary line"),
        (b"--B\r\n" + FIELD + b"1", "no closing boundary"),
        (b"--B\r\n--B--", "do not end"),
        (form(b"\r\n1"), "has no headers"),
        (form(b"nonsense\r\n\r\n1"), "has no colon"),
        (form(b"Content-Type: text/plain\r\n\r\n1"), "has no name"),
        (form(b"Content-Disposition: attachment; name=a\r\n\r\n1"), "has no name"),
        (form(b"X: " + b"y" * 10_000 + b"\r\n" + FIELD), "do not end"),
        (form(FIELD + b"\xff"), "is not utf-8"),
        (form(b"Content-Transfer-Encoding: uuencode\r\n" + FIELD), "not known"),
        (form(b"Content-Transfer-Encoding: base64\r\n" + FIELD + b"a"), "not base64"),
        (form(*[FIELD] * 1001), "more than 1000 parts"),
    ],
)
def test_what_is_no_form_is_refused(body, words):
    assert words in str(refused(BadMultipart, body, MULTIPART))


@pytest.mark.parametrize("parameters", ["", "; boundary=", f"; boundary={'B' * 71}", '; boundary="é"'])
def test_a_form_needs_a_boundary(parameters):
    error = refused(BadMultipart, b"--B--", "multipart/form-data" + parameters)
    assert str(error) == "the content type names no boundary"


def test_a_boundary_may_have_70_characters():
    boundary = "B" * 70
    assert PLAIN.decode(f"--{boundary}--".encode(), f"multipart/form-data; boundary={boundary}") == {}


@given(
    st.lists(st.sampled_from([b"--B", b"\r\n", b"--", FIELD, b"x", b"Content-Disposition: form-data", b":"])).map(
        b"".join
    )
)
def test_any_bytes_are_a_form_or_an_error(body):
    try:
        assert isinstance(PLAIN.decode(body, MULTIPART), dict)
    except BadBody as error:
        assert isinstance(error, BadMultipart)  # noqa: PT017 (either outcome is right)


# ---- compression ----------------------------------------------------------------------------------------------------


@given(st.lists(st.binary(max_size=1000), min_size=1, max_size=4), st.sampled_from(["gzip", "x-gzip", " GZIP"]))
def test_gzip_is_unpacked_member_after_member(members, encoding):
    whole = b"".join(members)
    body = b"".join(gzip.compress(member) for member in members)
    assert unpack(body, encoding, limit=len(whole)) == whole
    assert unpack(body + b"\0" * 10, encoding, limit=len(whole)) == whole
    if whole:
        with pytest.raises(BodyTooLarge):
            unpack(body, encoding, limit=len(whole) - 1)


def test_a_large_body_is_unpacked_across_chunks():
    data = np.random.default_rng(0).bytes(500_000)
    assert unpack(gzip.compress(data, 1) + gzip.compress(b"tail"), "gzip", limit=10**6) == data + b"tail"


def test_without_compression_only_the_size_is_looked_at():
    body = b"x" * 10
    assert unpack(body, None, limit=10) is body
    assert unpack(body, "identity", limit=10) is body
    with pytest.raises(BodyTooLarge) as caught:
        unpack(body, None, limit=9)
    assert caught.value.facts == {"limit": 9, "hint": "raise max_body in cortex.yaml"}


def test_a_gzip_bomb_stops_at_the_limit():
    bomb = gzip.compress(b"\0" * 50_000_000)
    tracemalloc.start()
    with pytest.raises(BodyTooLarge):
        unpack(bomb, "gzip", limit=1_000_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000


def test_what_comes_after_a_member_that_fills_the_limit_is_not_unpacked():
    limit = 8_000_000
    body = gzip.compress(b"\0" * limit) + gzip.compress(b"\0" * 50_000_000)
    tracemalloc.start()
    with pytest.raises(BodyTooLarge):
        unpack(body, "gzip", limit=limit)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2.5 * limit


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "ends in the middle"),
        (b"[1, 2]", "not gzip"),
        (gzip.compress(b"[1]", mtime=0)[:-1], "ends in the middle"),
        (gzip.compress(b"[1]", mtime=0) + b"xy", "not gzip"),
        (gzip.compress(b"[1]", mtime=0) + b"\0xy", "not gzip"),
        (zlib.compress(b"[1]"), "not gzip"),
        (gzip.compress(b"", mtime=0) * 10_001, "more than 10000 gzip members"),
    ],
)
def test_what_is_no_whole_gzip_is_refused(body, words):
    with pytest.raises(BadCompression, match=words):
        unpack(body, "gzip", limit=1000)


@pytest.mark.parametrize("encoding", ["br", "deflate", "gzip, gzip", "zstd" * 100])
def test_other_encodings_are_refused(encoding):
    with pytest.raises(UnsupportedEncoding) as caught:
        unpack(b"x", encoding, limit=10)
    shown = encoding[:60]
    assert str(caught.value) == f'content encoding "{shown}" is not accepted'
    assert caught.value.hint == "send gzip, or no content-encoding"
    assert caught.value.facts == {"content_encoding": shown, "accepted": ["gzip"], "hint": caught.value.hint}


@pytest.mark.parametrize(
    ("error", "message", "facts"),
    [
        (BadJson("it is empty"), "the body is not valid JSON: it is empty", {}),
        (
            BadJson("what is this", line=1, column=2, position=0, hint="send null"),
            "the body is not valid JSON: what is this at line 1, column 2",
            {"line": 1, "column": 2, "position": 0, "hint": "send null"},
        ),
        (BadArray("no array"), "no array", {}),
        (
            BodyTooLarge(5),
            "the body is larger than 5 bytes",
            {"limit": 5, "hint": "raise max_body in cortex.yaml"},
        ),
        (
            UnsupportedContentType(None, "no content type", hint="send one"),
            "no content type",
            {"content_type": None, "accepted": list(ACCEPTED), "hint": "send one"},
        ),
        (
            UnsupportedContentType("x" * 61),
            f'content type "{"x" * 60}" is not accepted; accepted are {", ".join(ACCEPTED)}',
            {"content_type": "x" * 60, "accepted": list(ACCEPTED)},
        ),
    ],
)
def test_errors_say_in_words_and_in_facts_what_they_are(error, message, facts):
    assert (str(error), error.facts) == (message, facts)


def test_every_error_has_a_reference_of_its_own():
    kinds = [
        BadJson,
        BadArray,
        BadText,
        BadMultipart,
        BadCompression,
        BodyTooLarge,
        UnsupportedContentType,
        UnsupportedEncoding,
    ]
    assert len({kind.reference for kind in kinds}) == len(kinds)
