"""`docs/metrics.md` lists the metrics there are."""

from pathlib import Path

from cortex.metrics.exposition import METRICS
from cortex.metrics.reference import table, with_table

DOCS = Path(__file__).parents[3] / "docs" / "metrics.md"


def test_the_table_is_up_to_date():
    page = DOCS.read_text()
    assert page == with_table(page), "run `python -m cortex.metrics.reference docs/metrics.md`"


def test_every_metric_has_a_row():
    assert all(f"| `{metric.name}` | {metric.type} |" in table() for metric in METRICS)
