"""Array types that the signatures share."""

from typing import Any, Final

import numpy as np
import numpy.typing as npt

SQUARES_BLOCK: Final = 8192
"""Entries whose squares are summed at once."""

SMALL_BLOCK: Final = 4096
"""Entries up to which blocks are added up together, in a copy in float64."""

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


def totals(values_KOB: Floats, weights_K1B: Floats | None = None) -> Floats:
    """Return the sum of the entries of each of K blocks, accumulated in float64 whatever the array's own precision.

    How it is added up depends on a block's size, never on how many there are. Each entry is multiplied by its row's weight,
    if there are weights.
    """
    if weights_K1B is not None:
        values_KOB = np.multiply(values_KOB, weights_K1B, dtype=np.float64)
    blocks_KN = values_KOB.reshape(len(values_KOB), -1)
    if blocks_KN.shape[1] > SMALL_BLOCK:
        return np.array([np.add.reduce(block_N, dtype=np.float64) for block_N in blocks_KN])
    # Cast before it is added up: a cast within the sum goes by pieces that may span blocks.
    sums_K: Floats = np.add.reduce(blocks_KN.astype(np.float64), axis=1)
    return sums_K


def totals_and_squares(values_KOB: Floats, weights_K1B: Floats | None = None) -> Floats:
    """Return the sum and the sum of squares of the entries of each of K blocks (K, 2), likewise."""
    if weights_K1B is not None:
        squares_KOB = np.square(values_KOB, dtype=np.float64)
        return np.stack([totals(values_KOB, weights_K1B), totals(squares_KOB, weights_K1B)], axis=1)
    blocks_KN = values_KOB.reshape(len(values_KOB), -1)
    if blocks_KN.shape[1] > SMALL_BLOCK:
        return np.array([(np.add.reduce(block_N, dtype=np.float64), sum_of_squares(block_N)) for block_N in blocks_KN])
    both_K2N = np.empty((len(blocks_KN), 2, blocks_KN.shape[1]))
    both_K2N[:, 0] = blocks_KN
    np.square(both_K2N[:, 0], out=both_K2N[:, 1])
    sums_K2: Floats = np.add.reduce(both_K2N, axis=2)
    return sums_K2
