"""Tests of `cortex.spec.document`: values and places. What is wrong with texts is in `test_loading_errors.py`."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cortex.spec.document import MAX_DEPTH, MAX_VALUES, UnreadableError, parse

# Machines may be busy; the timeout of pytest ends what hangs.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def value(text: str | bytes):
    document = parse(text)
    assert document.flaws == ()
    return document.value()


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("null", None),
        ("~", None),
        ("a:", {"a": None}),
        ("true", True),
        ("FALSE", False),
        ("tRUE", "tRUE"),
        ("yes", "yes"),
        ("off", "off"),
        ("12", 12),
        ("-7", -7),
        ("012", 12),
        ("0o17", 15),
        ("0x1F", 31),
        ("1_000", "1_000"),
        ("1.5", 1.5),
        (".5", 0.5),
        ("1.", 1.0),
        ("1e3", 1000.0),
        ("-.inf", float("-inf")),
        ("2024-01-31", "2024-01-31"),
        ("12:30", "12:30"),
        ("'12'", "12"),
        ('"null"', "null"),
        ("!!str 12", "12"),
        ("! 12", "12"),
        ("!!int 12", 12),
        ("!!float 12", 12.0),
        ("!!null ''", None),
        ("!!seq [a]", ["a"]),
        ("!!map {a: b}", {"a": "b"}),
        ("|\n  a\n  b", "a\nb"),
        (">\n  a\n  b", "a b"),
        ('"\\ud83d\\ude00"', "😀"),
        ("{a: [1, {b: null}]}", {"a": [1, {"b": None}]}),
        ("{}", {}),
        ("", None),
        ("# nothing", None),
        ("%YAML 1.1\n---\nyes", "yes"),
    ],
)
def test_scalars_are_read_by_the_core_schema_of_yaml_1_2(text, read):
    assert value(text) == read
    assert type(value(text)) is type(read)


def test_not_a_number_is_a_float():
    assert str(value(".nan")) == "nan"


# A key without a question mark before it has at most 1024 characters in YAML; json.dumps makes up to 12 of one.
KEYS = st.text(max_size=80)


@unhurried
@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.text()
        | st.integers(-(10**50), 10**50)
        | st.floats(allow_nan=False, allow_infinity=False),
        lambda inner: st.lists(inner, max_size=5) | st.dictionaries(KEYS, inner, max_size=5),
        max_leaves=10,
    )
)
def test_json_is_read_as_what_it_is(data):
    assert value(json.dumps(data)) == data


def test_an_alias_repeats_its_anchor():
    assert value("- &a {x: 1}\n- *a\n- b: *a") == [{"x": 1}, {"x": 1}, {"b": {"x": 1}}]


def test_an_anchor_may_be_given_again():
    assert value("- &a 1\n- *a\n- &a 2\n- *a") == [1, 1, 2, 2]


def test_an_alias_may_be_a_key():
    assert value("a: &name x\n*name : 1") == {"a": "x", "x": 1}


def test_a_merge_gives_way_to_own_keys_and_to_earlier_merges():
    text = "- &a {x: 1, y: 1}\n- &b {y: 2, z: 2}\n- {<<: [*a, *b], z: 3}\n- {z: 3, <<: *b}"
    assert value(text)[2:] == [{"z": 3, "x": 1, "y": 1}, {"z": 3, "y": 2}]


def test_a_quoted_merge_key_is_a_key():
    assert value('{"<<": {a: 1}}') == {"<<": {"a": 1}}


@pytest.mark.parametrize("text", ["\ufeffa: 1", b"\xef\xbb\xbfa: 1", "a: 1\r\n", "a: 1\r", b"a: 1"])
def test_byte_order_marks_and_line_ends_of_other_systems_are_fine(text):
    assert value(text) == {"a": 1}


PLACES = "- &base\n  name: x\n  deep:\n    list: [1, 22, {k: v}]\n- *base\n- {<<: *base, own: 1}\n"


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ((), (1, 1)),
        ((0,), (1, 3)),
        ((0, "name"), (2, 3)),
        ((0, "deep", "list"), (4, 5)),
        ((0, "deep", "list", 1), (4, 15)),
        ((0, "deep", "list", 2, "k"), (4, 20)),
        ((1,), (5, 3)),
        ((1, "name"), (2, 3)),
        ((2, "own"), (6, 15)),
        ((2, "name"), (2, 3)),
        ((0, "gone"), (1, 3)),
        ((0, "deep", "gone", "further"), (3, 3)),
        ((0, "name", "gone"), (2, 3)),
        ((0, "deep", "list", 9), (4, 5)),
        ((-1,), (1, 1)),
        (("name",), (1, 1)),
    ],
)
def test_a_path_is_where_its_key_or_item_stands_or_else_the_nearest_above(path, place):
    assert parse(PLACES).locate(path) == place


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_lines_are_counted_whatever_ends_them(line_end):
    assert parse(f"a: 1{line_end}{line_end}b: 2{line_end}").locate(("b",)) == (3, 1)


def test_a_byte_order_mark_takes_no_column():
    assert parse("\ufeffa: {b: 1}").locate(("a", "b")) == (1, 5)


def test_columns_count_characters_as_editors_do():
    assert parse("{größe: 1, '😀': 2, c: 3}").locate(("c",)) == (1, 20)


def test_the_spelling_of_a_plain_scalar_is_known():
    document = parse("a: 1e3\nb: '2'\nc: [x]\nd: *e\n")
    assert document.written(("a",)) == "1e3"
    assert document.written(("b",)) is None
    assert document.written(("c",)) is None
    assert document.written(("z",)) is None


def test_numbers_and_booleans_can_be_had_as_written():
    data = parse("a: 1.10\nb: True\nc: x\nd: null\ne: [0x10]").value(lambda path, found: path != ("b",))
    assert data == {"a": "1.10", "b": True, "c": "x", "d": None, "e": ["0x10"]}


def test_a_document_can_be_wrapped_into_a_list():
    document = parse("# note\na: 1\na: 2\n").wrapped()
    assert document.value() == [{"a": 1}]
    assert document.locate((0, "a")) == (2, 1)
    assert document.locate((0,)) == (2, 1)
    assert [flaw.path for flaw in document.flaws] == [(0, "a")]


def test_the_first_of_two_equal_keys_is_kept():
    document = parse("a: 1\na: 2")
    assert document.value() == {"a": 1}
    assert [(flaw.reference, flaw.path) for flaw in document.flaws] == [("duplicate-key", ("a",))]


def test_flaws_are_collected_up_to_where_reading_ends():
    with pytest.raises(UnreadableError) as caught:
        parse("a: 1\na: 2\nb: [")
    assert [(line, column, flaw.reference) for line, column, flaw in caught.value.flaws] == [
        (2, 1, "duplicate-key"),
        (3, 5, "yaml-syntax"),
    ]


def test_nesting_is_allowed_up_to_the_limit():
    assert parse("[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1)).flaws == ()
    with pytest.raises(UnreadableError):
        parse("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1))


def test_values_are_allowed_up_to_the_limit():
    tenth = MAX_VALUES // 10
    most = "- &a [" + "1, " * (tenth - 1) + "]\n" + "- *a\n" * 8 + "- [" + "1, " * (tenth - 2) + "]\n"
    assert len(parse(most).value()) == 10
    with pytest.raises(UnreadableError):
        parse(most + "- 1\n")
