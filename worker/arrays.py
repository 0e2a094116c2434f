"""Array types that the signatures share."""

from typing import Any, Final

import numpy as np
import numpy.typing as npt

SQUARES_BLOCK: Final = 8192
"""Entries whose squares are summed at once."""

Floats = npt.NDArray[np.floating[Any]]
Integers = npt.NDArray[np.integer[Any]]
AnyArray = npt.NDArray[Any]


def sum_of_squares(values: Floats) -> float:
    """Return the sum of squares of all entries, accumulated in float64, where a float32's square can't overflow.

    In blocks of a fixed size, so that the copy in float64 stays small and the order of additions the same.
    """
    flat = values.reshape(-1)
    squares = 0.0
    for start in range(0, len(flat), SQUARES_BLOCK):
        block = flat[start : start + SQUARES_BLOCK].astype(np.float64, copy=False)
        squares += float(np.dot(block, block))
    return squares


def total(values: Floats) -> float:
    """Return the sum of all entries, accumulated in float64 whatever the array's own precision."""
    return float(np.add.reduce(values, axis=None, dtype=np.float64))
