"""Array types that the signatures share."""

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]
Integers = npt.NDArray[np.integer[Any]]
AnyArray = npt.NDArray[Any]


def total(values: Floats) -> float:
    """Return the sum of all entries, accumulated in float64 whatever the array's own precision."""
    return float(np.add.reduce(values, axis=None, dtype=np.float64))
