"""Random draws as pure functions of (seed, purpose, indices): nothing draws from ambient state."""

from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """What a stream of random numbers is for. The numbers are part of every result: never reuse one."""

    INITIAL_WEIGHTS = 1
    VALIDATION_ROWS = 2
    PERMUTATION = 3
    DROPOUT = 4
    PIECES = 5


def stream(seed: int, purpose: Purpose, *indices: int, part: int = 0) -> np.random.Generator:
    """Return the generator that belongs to (seed, purpose, indices), or to a part of what it is drawn for.

    The bits come from Philox4x64 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC'11),
    keyed through numpy's SeedSequence. Each part begins 2^128 draws after the one before.
    """
    bits = np.random.Philox(np.random.SeedSequence(seed, spawn_key=(purpose, *indices)))
    return np.random.Generator(bits.jumped(part) if part else bits)
