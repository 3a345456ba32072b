"""The one rule by which a float32 becomes a number that people see."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray


def shortest(array: NDArray[Any]) -> list[Any]:
    """
    Return floats whose text is the shortest that reads back as the elements: 0.1, not 0.10000000149011612, for float32.

    Args:
        array: of floats, any shape.

    Returns:
        Nested lists; None for NaN and infinities.
    """
    native = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
    floats: list[Any] = orjson.loads(orjson.dumps(native, None, orjson.OPT_SERIALIZE_NUMPY))
    return floats
