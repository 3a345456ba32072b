"""
The table of metrics in docs/metrics.md, from `exposition.METRICS`.

`python -m cortex.metrics.reference docs/metrics.md` writes it anew between its two marks.
"""

from __future__ import annotations

import sys
from pathlib import Path

from cortex.metrics.exposition import METRICS

BEGIN, END = "<!-- metrics: begin -->\n", "<!-- metrics: end -->\n"


def table() -> str:
    """One line for each metric."""
    lines = ["| metric | type | labels | what |", "|---|---|---|---|"]
    for metric in METRICS:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        lines.append(f"| `{metric.name}` | {metric.type} | {labels} | {metric.help} |")
    return "\n".join(lines) + "\n"


def with_table(page: str) -> str:
    """The page with its table up to date."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{table()}{END}{after}"


if __name__ == "__main__":
    file = Path(sys.argv[1])
    file.write_text(with_table(file.read_text()))
