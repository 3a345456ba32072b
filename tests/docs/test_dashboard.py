"""`docs/grafana.json`, which is made in Grafana: what it shows is there."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from markdown import ROOT

from cortex.metrics.exposition import METRICS

BOARD = json.loads((ROOT / "docs" / "grafana.json").read_text())


def expressions() -> Iterator[tuple[str, str]]:
    """Title of a panel or variable, and what it asks Prometheus."""
    for panel in BOARD["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]
    for variable in BOARD["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["name"], variable["query"]["query"]


def sample_labels(sample: str) -> tuple[str, ...]:
    """Labels of the metric that has samples of this name, with a suffix if it is a histogram or summary."""
    labels = {metric.name: metric.labels for metric in METRICS}
    return labels[sample if sample in labels else sample.rpartition("_")[0]]


@pytest.mark.parametrize(("title", "expression"), list(expressions()))
def test_every_name_in_it_is_on_the_page_with_the_labels_that_it_is_asked_by(title, expression):
    samples = re.findall(r"cortex_\w+", expression)
    assert samples
    for sample in samples:
        labels = {*sample_labels(sample), "le"} if sample.endswith("_bucket") else set(sample_labels(sample))
        asked = re.findall(r"(\w+)(?:=~|!=|=)\"", expression)
        asked += [name for group in re.findall(r"by \(([^)]*)\)", expression) for name in group.split(", ")]
        assert set(asked) <= labels


def test_every_metric_is_shown_but_the_versions():
    shown = " ".join(expression for _, expression in expressions())
    hidden = [metric.name for metric in METRICS if metric.name not in shown]
    assert hidden == ["cortex_build_info"]


def test_legends_name_labels_that_are_there():
    named = [
        (label, re.findall(r"cortex_\w+", target["expr"]))
        for panel in BOARD["panels"]
        for target in panel.get("targets", ())
        for label in re.findall(r"{{(\w+)}}", target["legendFormat"])
    ]
    assert named
    assert [label for label, metrics in named if any(label not in sample_labels(name) for name in metrics)] == []


def test_panels_do_not_overlap_and_stay_on_the_grid():
    taken: set[tuple[int, int]] = set()
    for panel in BOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not taken & cells
        assert place["x"] + place["w"] <= 24
        taken |= cells


def test_ids_are_unique():
    ids: list[Any] = [panel["id"] for panel in BOARD["panels"]]
    assert len(set(ids)) == len(ids)
