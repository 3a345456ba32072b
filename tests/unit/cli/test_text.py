"""Words, tables, durations."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cortex.cli import text


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(-5, "0s"), (0, "0s"), (59.9, "59s"), (60, "1m"), (3599, "59m"), (3600, "1h"), (172799, "47h"), (172800, "2d")],
)
def test_ages_have_one_unit(seconds: float, shown: str) -> None:
    assert text.age(seconds) == shown


def test_ages_of_instants() -> None:
    assert text.ago("2027-01-15T07:52:00Z", 1_800_000_000.0) == "8m ago"
    assert text.ago("2027-01-15T08:52:00+01:00", 1_800_000_000.0) == "8m ago"
    assert text.ago("2027-01-15T07:52:00", 1_800_000_000.0) == "8m ago"
    assert text.ago(None, 0.0) == text.ago("", 0.0) == text.ago("yesterday", 0.0) == "-"


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.04, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (59.6, "1m 00s"), (125, "2m 05s")]
)
def test_durations_are_rounded_readably(seconds: float, shown: str) -> None:
    assert text.took(seconds) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "-"), (0.0, "0.00 ms"), (1.234, "1.23 ms"), (45.67, "45.7 ms"), (456.7, "457 ms"), (1234.5, "1.23 s")],
)
def test_latencies_have_three_digits(value: float | None, shown: str) -> None:
    assert text.milliseconds(value) == shown


@pytest.mark.parametrize(
    ("size_bytes", "shown"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (300 * 2**20, "300 MiB"), (2**42, "4.0 TiB")],
)
def test_sizes(size_bytes: int, shown: str) -> None:
    assert text.size(size_bytes) == shown


def test_lists_and_counts() -> None:
    assert [text.listed(["a", "b", "c"][:n]) for n in range(4)] == ["", "a", "a and b", "a, b and c"]
    assert (text.count(1, "api"), text.count(2, "api"), text.count(0, "crash", "crashes")) == (
        "1 api",
        "2 apis",
        "0 crashes",
    )


def test_wide_characters_take_two_columns() -> None:
    assert [text.columns_of(word) for word in ("abc", "日本", "e\u0301", "👍", "a\u200bb")] == [3, 4, 1, 2, 2]
    assert text.cut("日本語テキスト", 7) == "日本語…"
    assert text.cut("abc", 3) == "abc"
    assert text.cut("abcd", 3) == "ab…"
    assert text.padded("日本", 6) == "日本  "


def test_a_table_is_aligned_without_trailing_blanks() -> None:
    assert text.table(["api", "2XX"], [["a", "1"], ["long-name", "100"]], right=("2XX",)) == [
        "api         2XX",
        "a             1",
        "long-name   100",
    ]
    assert text.table(["a", "b"], [["x", ""]]) == ["a   b", "x"]


def test_a_table_that_is_too_wide_narrows_then_cuts_long_names_then_folds() -> None:
    header, rows = ["api", "status", "updated"], [["a-very-long-name-indeed", "live", "8m ago"]]
    shown = {width: text.table(header, rows, widest=width, folds=("updated",))[1] for width in (42, 40, 39, 36, 20)}
    assert shown == {
        42: "a-very-long-name-indeed   live     8m ago",
        40: "a-very-long-name-indeed  live    8m ago",
        39: "a-very-long-name-inde…  live    8m ago\n  api a-very-long-name-indeed",
        36: "a-very-long-name-in…  live\n  api a-very-long-name-indeed,\n  updated 8m ago",
        20: "a-very-long…  live\n  api\n  a-very-long-name-indeed,\n  updated 8m ago",
    }


def test_a_fold_takes_columns_together_and_leaves_out_what_is_not_known() -> None:
    header = ["api", "latency", "2XX", "5XX"]
    rows = [["sklearn-large", "1.2 ms", "14", "0"], ["raw", "-", "0", "0"]]
    folds = ("latency", ("2XX", "5XX"))
    assert text.table(header, rows, widest=24, folds=folds) == [
        "api            2XX  5XX",
        "sklearn-large  14   0\n  latency 1.2 ms",
        "raw            0    0",
    ]
    assert text.table(header, rows, widest=20, folds=folds) == [
        "api",
        "sklearn-large\n  latency 1.2 ms,\n  2XX 14, 5XX 0",
        "raw\n  2XX 0, 5XX 0",
    ]


def test_a_last_column_of_sentences_is_broken_between_words_below_itself() -> None:
    header, rows = (
        ["version", "cause"],
        [["3fa1c09d", "model changed (m.onnx changed), handler.py changed, cpu 1 -> 2"]],
    )
    assert text.table(header, rows, widest=44)[1].split("\n") == [
        "3fa1c09d  model changed (m.onnx changed),",
        "          handler.py changed, cpu 1 -> 2",
    ]
    assert text.table(header, rows)[1] == f"3fa1c09d   {rows[0][1]}", "in a pipe a row is a line"


@settings(deadline=None)
@given(
    st.lists(st.tuples(*[st.text("ab -日", min_size=1, max_size=30)] * 4), min_size=1, max_size=4),
    st.integers(40, 120),
)
def test_no_line_of_a_table_is_wider_than_the_terminal_and_every_word_is_there(
    rows: list[tuple[str, ...]], width: int
) -> None:
    header = ["api", "b", "c", "d"]
    shown = "\n".join(text.table(header, rows, widest=width, folds=("b", "c")))
    assert max(map(text.columns_of, shown.split("\n"))) <= width
    for row in rows:
        assert all(word in shown for cell in row for word in cell.split() if word.strip("-"))


def test_talk_is_broken_between_words_and_what_is_indented_is_meant_as_it_stands() -> None:
    assert text.sentence("one two three", 8) == ["one two", "three"]
    assert text.sentence("  cortex deploy somewhere", 8) == ["  cortex deploy somewhere"]
    assert text.sentence("  \x1b[33mnote:\x1b[0m one two", 12, hang="    ") == [
        "  \x1b[33mnote:\x1b[0m",
        "    one two",
    ]


def test_pairs_keep_further_lines_below_the_value() -> None:
    assert text.pairs([("status", "live"), ("x", "a\nb"), ("y", "")]) == [
        "status   live",
        "x        a",
        "         b",
        "y",
    ]


def test_wrapping_breaks_between_words_and_keeps_line_ends() -> None:
    assert text.wrapped("one two three\nfour", 9, indent="  ") == ["  one two", "  three", "  four"]
    assert text.wrapped("averylongword x", 5) == ["averylongword", "x"]
    assert text.wrapped("", 5) == [""]


def test_bars() -> None:
    assert text.bar(1.0, 4) == "████"
    assert text.bar(0.5, 4) == "██"
    assert text.bar(0.51, 4) == "██"
    assert text.bar(0.0001, 4) == "▏"
    assert text.bar(0.0, 4) == ""
    assert (text.bar(0.5, 4, unicode=False), text.bar(0.001, 4, unicode=False)) == ("##", "#")


def test_paths_are_shown_as_they_are_shortest() -> None:
    assert text.shown_path(Path("/a/b/c.yaml"), Path("/a")) == "b/c.yaml"
    assert text.shown_path(Path("/a/c.yaml"), Path("/a/b")) == "../c.yaml"
    assert text.shown_path(Path("/x/y.yaml"), Path("/a/b/c/d/e")) == "/x/y.yaml"
