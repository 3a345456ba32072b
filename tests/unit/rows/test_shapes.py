"""What changes shapes, and what is known of sizes."""

from __future__ import annotations

import numpy as np
from graph_builder import node, proved, refusal, rows


def test_an_empty_list_of_axes_squeezes_each_dimension_of_size_1_as_none_at_all_does() -> None:
    assert "the rows too" in refusal(node("Squeeze", "x", "axes"), x=rows(1), axes=np.zeros(0, "int64"))
    assert "the rows too" in refusal(node("Squeeze", "x", axes=()), x=rows(1), opsets={"": 11})
    assert proved(node("Squeeze", "x", "axes"), x=rows(1), axes=[1])
