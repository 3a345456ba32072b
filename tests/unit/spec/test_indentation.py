"""Tests of `cortex.spec.indentation`: fields that lost the two spaces before them get them back."""

from hypothesis import given
from hypothesis import strategies as st

from cortex.spec.document import parse
from cortex.spec.indentation import mended

KEYS = st.sampled_from(["name", "model", "cpu", "tracker", "sample", "timeout"])
BELOW = st.sampled_from(["", " 1", " text", "\n    deeper: 1", "\n    - item", " {a: 1}", " # why"])
RESOURCE = st.lists(st.tuples(KEYS, BELOW), min_size=1, unique_by=lambda pair: pair[0]).map(
    lambda fields: "- kind: api\n" + "\n".join(f"  {key}:{value}" for key, value in fields)
)
FILES = st.lists(RESOURCE, min_size=1, max_size=4).map("\n\n# next\n".join)


@given(FILES)
def test_a_file_whose_resources_lost_two_columns_is_what_it_was(text):
    lost = "\n".join(line.removeprefix("  ") for line in text.splitlines())
    found = mended(lost)
    assert found is not None
    assert parse(found.text).value() == parse(text).value()


def test_fields_at_the_edge_below_indented_ones_are_moved_with_what_is_below_them():
    found = mended("- kind: api\n  name: a\nmodel: m\ncompute:\n    cpu: 1\n")
    assert found.text == "- kind: api\n  name: a\n  model: m\n  compute:\n      cpu: 1"
    assert found.hint.splitlines()[0] == "indent lines 3 to 5 by two spaces:"


def test_a_field_at_the_edge_between_indented_ones_is_moved_alone():
    found = mended("- kind: api\nname: a\n  model: m\n")
    assert found.text == "- kind: api\n  name: a\n  model: m"
    assert found.hint.splitlines()[0] == "indent line 2 by two spaces:"


def test_what_is_no_resource_is_not_mended():
    assert mended("kind: api\nname: a\n") is None
    assert mended("- kind: api\n name: a\n") is None
    assert mended("") is None


def test_a_long_file_is_shown_in_part_with_all_its_lines_named():
    text = "\n".join(["- kind: api", *(f"key{number}: 1" for number in range(100))])
    first, *shown = mended(text).hint.splitlines()
    assert first == "indent lines 2 to 101 by two spaces:"
    assert (len(shown), shown[-1]) == (61, "…")
