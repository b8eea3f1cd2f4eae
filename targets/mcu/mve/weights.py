"""Weights that do not fit a byte, as sums of weights that do."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["halves"]

Array = NDArray[Any]


def halves(weights: Array) -> list[Array]:
    """Give as few int8 arrays as add up to integers of any width, by halving.

    >>> [h.tolist() for h in halves(np.array([127, -5]))]
    [[127, -5]]
    >>> [h.tolist() for h in halves(np.array([254, -5, -256]))]
    [[127, -3, -128], [127, -2, -128]]
    """
    if weights.min(initial=0) >= -128 and weights.max(initial=0) <= 127:
        return [weights.astype(np.int8)]
    half = weights >> 1
    return [*halves(half), *halves(weights - half)]
