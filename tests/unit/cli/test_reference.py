"""`docs/cli.md` is what the commands say of themselves."""

from __future__ import annotations

from pathlib import Path

from cortex.cli.main import NAMES
from cortex.cli.reference import page

DOCS = Path(__file__).parents[3] / "docs" / "cli.md"


def test_the_page_is_up_to_date() -> None:
    assert DOCS.read_text() == page(), "run `python docs/generate.py`"


def test_every_command_is_on_the_page() -> None:
    assert [line for line in page().splitlines() if line.startswith("### ")] == [f"### cortex {name}" for name in NAMES]
