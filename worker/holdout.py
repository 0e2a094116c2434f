"""Which rows of a shard are held out for validation: a bit each, so that they can be told of a shard of any size."""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Final

import numpy as np

from worker.arrays import AnyArray, Integers
from worker.streams import Purpose, stream

BLOCK_ROWS: Final = 1 << 20
"""Rows among which those to hold out are drawn at once. Part of the result."""


@dataclass(frozen=True, eq=False)
class Holdout:
    """The rows of a shard that are held out; all others are trained on.

    Attributes:
        rows: of the shard.
        bits: of each block of `BLOCK_ROWS` rows, eight rows a byte; None where no row of the shard is held out.
    """

    rows: int
    bits: tuple[AnyArray, ...] | None

    def mask(self, first: int, last: int) -> AnyArray:
        """Return which of the rows at positions first..last-1 are held out."""
        if self.bits is None:
            return np.zeros(last - first, np.bool_)
        parts = [
            self._block(number)[max(0, first - start) : max(0, last - start)]
            for number, start in enumerate(_bounds(self.rows)[:-1])
            if start < last and start + BLOCK_ROWS > first
        ]
        return np.concatenate(parts) if parts else np.zeros(0, np.bool_)

    @property
    def training_rows(self) -> int:
        """How many rows are trained on."""
        return int(self.training_before(np.array([self.rows]))[0])

    def training_before(self, positions_N: Integers) -> Integers:
        """Return how many of the rows before each of some positions are trained on."""
        if self.bits is None:
            return positions_N
        blocks_N = np.minimum(positions_N // BLOCK_ROWS, len(self.bits) - 1)
        before_N = np.empty_like(positions_N)
        for number in np.unique(blocks_N).tolist():
            here_N = blocks_N == number
            counts = np.cumsum(~self._block(number), dtype=np.int64)
            before_N[here_N] = self._before[number] + np.append(0, counts)[positions_N[here_N] - number * BLOCK_ROWS]
        return before_N

    def training_position(self, rank: int) -> int:
        """Return the position of a row that is trained on, by how many such rows there are before it."""
        if self.bits is None:
            return rank
        number = int(np.searchsorted(self._before, rank, side="right")) - 1
        place = np.flatnonzero(~self._block(number))[rank - self._before[number]]
        return number * BLOCK_ROWS + int(place)

    def split(self) -> tuple[Integers, Integers]:
        """Return the (training, validation) rows as ascending positions within the shard."""
        mask_N = self.mask(0, self.rows)
        return np.flatnonzero(~mask_N), np.flatnonzero(mask_N)

    def _block(self, number: int) -> AnyArray:
        assert self.bits is not None
        rows = min(BLOCK_ROWS, self.rows - number * BLOCK_ROWS)
        return np.unpackbits(self.bits[number], count=rows).view(np.bool_)

    @cached_property
    def _before(self) -> list[int]:
        """Training rows before each block, and altogether."""
        assert self.bits is not None
        sizes = [len(block) - int(np.count_nonzero(block)) for block in map(self._block, range(len(self.bits)))]
        before: list[int] = np.cumsum([0, *sizes]).tolist()
        return before[:-1]


@lru_cache(maxsize=256)
def draw(seed: int, shard: int, rows: int, held_out: int) -> Holdout:
    """Draw so many of a shard's rows from (seed, shard), spread over its blocks as evenly as can be."""
    if held_out == 0:
        return Holdout(rows, None)
    blocks: list[AnyArray] = []
    for number, (first, last) in enumerate(pairwise(_bounds(rows))):
        order = stream(seed, Purpose.VALIDATION_ROWS, shard, part=number).permutation(last - first)
        out_N = np.zeros(last - first, np.bool_)
        out_N[order[len(order) - (last * held_out // rows - first * held_out // rows) :]] = True
        blocks.append(np.packbits(out_N))
    return Holdout(rows, tuple(blocks))


def _bounds(rows: int) -> list[int]:
    """Return where the blocks of a shard begin, and where the last one ends."""
    return [*range(0, rows, BLOCK_ROWS), rows]
