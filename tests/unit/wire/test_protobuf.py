"""Tests of `cortex.wire.protobuf`, on bytes that are put together here."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex.wire.protobuf import BYTES, FIXED32, FIXED64, VARINT, Source, signed, tag_of

NUMBERS = st.integers(0, (1 << 64) - 1)


def varint(value):
    data = b""
    while value > 127:
        data += bytes([value & 127 | 128])
        value >>= 7
    return data + bytes([value])


def written(tag, value):
    """One field: a number for varints, else its bytes."""
    if tag & 7 == VARINT:
        return varint(tag) + varint(value)
    length = varint(len(value)) if tag & 7 == BYTES else b""
    return varint(tag) + length + value


FIELDS = st.lists(
    st.one_of(
        st.tuples(st.just(tag_of(1, VARINT)), NUMBERS),
        st.tuples(st.just(tag_of(2, FIXED32)), st.binary(min_size=4, max_size=4)),
        st.tuples(st.just(tag_of(3, FIXED64)), st.binary(min_size=8, max_size=8)),
        st.tuples(st.just(tag_of(4, BYTES)), st.binary(max_size=200)),
        st.tuples(st.just(tag_of(500, BYTES)), st.binary(max_size=20)),
    ),
    max_size=30,
)
RUNS = frozenset({tag_of(1, VARINT), tag_of(2, FIXED32), tag_of(3, FIXED64), tag_of(4, BYTES)})


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    path = tmp_path_factory.mktemp("protobuf") / "message"

    def open_source(content, **limits):
        path.write_bytes(content)
        return Source(path, **limits)

    return open_source


def elements(source, start, end):
    return [
        (tag, first if last is None else source.read(first, last - first))
        for tag, first, last in source.tagged(start, end)
    ]


@given(fields=FIELDS, copies=st.integers(1, 400))
def test_what_was_written_is_read_field_by_field(opened, fields, copies):
    with opened(b"".join(written(*field) for field in fields) * copies) as source:
        assert elements(source, 0, source.size) == fields * copies


@given(fields=FIELDS, copies=st.integers(1, 400))
def test_the_pieces_of_runs_hold_just_the_elements_that_were_written(opened, fields, copies):
    with opened(b"".join(written(*field) for field in fields) * copies) as source:
        found = []
        for tag, first, last in source.tagged(0, source.size, RUNS):
            if tag in RUNS:
                piece = elements(source, first, last)
                assert piece
                assert {inner for inner, _ in piece} == {tag}
                found += piece
            else:
                found.append((tag, source.read(first, last - first)))
        assert found == fields * copies


@pytest.mark.parametrize(
    "field",
    [
        (tag_of(1, VARINT), 300),
        (tag_of(1, VARINT), (1 << 64) - 1),
        (tag_of(2, FIXED32), b"abcd"),
        (tag_of(3, FIXED64), b"abcdefgh"),
        (tag_of(4, BYTES), b"BRANCH_LEQ"),
    ],
    ids=["numbers", "negative numbers", "floats", "doubles", "texts"],
)
def test_a_run_of_any_length_counts_as_few_fields(opened, field):
    with opened(written(*field) * 100_000, max_fields=30_000) as source:
        pieces = [(first, last) for _, first, last in source.tagged(0, source.size, RUNS)]
    assert len(pieces) < 200
    assert (pieces[0][0], pieces[-1][1]) == (0, source.size)


def test_more_fields_than_allowed_are_refused(opened):
    content = written(tag_of(1, VARINT), 1) * 101
    with opened(content, max_fields=101) as source:
        assert len(elements(source, 0, source.size)) == 101
    with opened(content, max_fields=100) as source, pytest.raises(ValueError, match="more than 100 protobuf fields"):
        elements(source, 0, source.size)


def test_texts_of_a_run_are_not_skipped_for_nothing(opened):
    with (
        opened(written(tag_of(4, BYTES), b"") * 100_000, max_fields=1000) as source,
        pytest.raises(ValueError, match="more than 1000 protobuf fields"),
    ):
        list(source.tagged(0, source.size, RUNS))


@given(content=st.binary(max_size=40))
def test_any_bytes_are_a_message_or_a_value_error(opened, content):
    for runs in ((), RUNS):
        with opened(content, format_name="recipe") as source:
            try:
                reason = f"{sum(1 for _ in source.tagged(0, source.size, runs))} fields are no recipe"
            except ValueError as error:
                reason = str(error)
            assert "no recipe" in reason or "was it copied whole?" in reason


@pytest.mark.parametrize("field", [(tag_of(1, VARINT), 1 << 40), (tag_of(2, FIXED32), b"abcd"), (34, b"abc")])
def test_a_run_that_is_cut_is_refused(opened, field):
    whole = written(*field) * 3
    with opened(whole[:-1]) as source, pytest.raises(ValueError, match="was it copied whole"):
        list(source.tagged(0, source.size, RUNS))


@pytest.mark.parametrize("field", [(34, b"abc"), (8, 300), (21, b"abcd")], ids=["text", "number", "float"])
def test_a_field_that_reaches_beyond_its_message_is_refused_though_the_file_goes_on(opened, field):
    content = written(*field)
    with opened(content + b"more") as source, pytest.raises(ValueError, match="no ONNX model"):
        list(source.tagged(0, len(content) - 1))


@pytest.mark.parametrize("tag", [tag_of(0, VARINT), tag_of(1, 3), tag_of(1, 4), tag_of(1, 6), tag_of(1 << 29, VARINT)])
def test_what_is_no_tag_is_refused(opened, tag):
    with opened(varint(tag) + b"\x01") as source, pytest.raises(ValueError, match="no ONNX model"):
        list(source.tagged(0, source.size))


@given(numbers=st.lists(NUMBERS, max_size=50), packed=st.lists(NUMBERS, max_size=50))
def test_integers_come_one_by_one_and_packed(opened, numbers, packed):
    content = b"".join(written(8, number) for number in numbers) + written(10, b"".join(map(varint, packed)))
    with opened(content) as source:
        assert source.integers([(0, source.size)]) == numbers + packed


def test_a_packed_list_that_ends_in_a_number_is_refused(opened):
    with opened(written(10, b"\x01\xff")) as source, pytest.raises(ValueError, match="in the middle of a number"):
        source.integers([(0, source.size)])


@given(value=st.integers(-(1 << 63), (1 << 63) - 1))
def test_negative_numbers_are_written_as_their_twos_complement(value):
    assert signed(struct.unpack("<Q", struct.pack("<q", value))[0]) == value


def test_a_name_that_is_no_text_is_shown_but_not_taken_for_a_name(opened):
    with opened(b"caf\xe9") as source:
        assert source.text(0, 4) == "caf�"
        with pytest.raises(ValueError, match="no UTF-8 at byte 0"):
            source.name(0, 4)


def test_a_file_that_becomes_shorter_while_it_is_read_is_refused(opened, tmp_path):
    path = tmp_path / "message"
    path.write_bytes(written(34, bytes(100)) * 1000)
    with Source(path) as source:
        fields = source.tagged(0, source.size)
        next(fields)
        path.write_bytes(b"")
        with pytest.raises(ValueError, match="became shorter"):
            list(fields)
