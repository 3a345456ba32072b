from __future__ import annotations

import msgspec
import pytest

from cortex.wire.logline import LoggedLine, parse_line


def test_a_record_survives_the_way_through_a_file() -> None:
    record = LoggedLine(wall_s=1.5, stream="log", attempt=2, request="r", level="INFO", text="a\nb")
    assert parse_line(msgspec.json.encode(record) + b"\n") == record


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (b"Segmentation fault\n", "Segmentation fault"),
        (b'{"t":1.5,"s":"out","m":"half', '{"t":1.5,"s":"out","m":"half'),
        (b'{"t":"no time"}', '{"t":"no time"}'),
        (b'{"other": "json"}', '{"other": "json"}'),
        (b'{"t":1,"m":"\xff"}', '{"t":1,"m":"\\xff"}'),
        (b"\xff\xfe", "\\xff\\xfe"),
        (b"", ""),
    ],
)
def test_any_other_line_is_raw_text(line: bytes, text: str) -> None:
    assert parse_line(line) == LoggedLine(text=text)


def test_fields_of_newer_versions_are_ignored() -> None:
    assert parse_line(b'{"t":1,"m":"a","new":[]}').text == "a"
