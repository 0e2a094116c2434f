"""In which order a shard's training rows are used: a function of the job and the data, never of memory or of the workers.

A shard consists of pieces that can be read by themselves (a Parquet file's row groups). In each epoch its pieces come in another
order; the rows, in the order of their pieces, are cut into windows; and the rows of each window are shuffled. Who can't hold a
shard reads it a window at a time. The full shuffle is the same with a single piece and a single window, the whole shard.
"""

from bisect import bisect_right
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from worker.arrays import Integers
from worker.sharding import ShardPlan
from worker.streams import Purpose, stream


class Part(NamedTuple):
    """Rows of one window, by their places in its shuffled order."""

    window: int
    first: int
    last: int


class ShardOrder:
    """The order of one shard. Rows are told by their rank among the shard's training rows.

    Attributes:
        rows: training rows.
        window_rows: of each window; the last one may have fewer.
    """

    def __init__(self, plan: ShardPlan, shard: int) -> None:
        """Find the shard's pieces."""
        self._seed, self._shard = plan.seed, shard
        holdout = plan.holdout(shard)
        start, stop = plan.shard_range(shard)
        cuts: tuple[int, ...] = () if plan.window is None else plan.window.cuts
        inside = cuts[bisect_right(cuts, start) : bisect_right(cuts, stop - 1)]
        bounds = holdout.training_before(np.array([start, *inside, stop]) - start)
        pieces = np.stack([bounds[:-1], bounds[1:]], axis=1)
        self._pieces = pieces[pieces[:, 0] < pieces[:, 1]]
        self.rows = int(bounds[-1])
        self.window_rows = self.rows if plan.window is None else min(plan.window.rows, self.rows)

    @property
    def windows(self) -> int:
        """How many windows an epoch has."""
        return -(-self.rows // self.window_rows)

    def parts(self, first: int, last: int) -> Iterator[Part]:
        """Yield where in which window the rows at places first..last-1 of an epoch's order are."""
        while first < last:
            window, place = divmod(first, self.window_rows)
            end = min(last - first + place, self.window_rows)
            yield Part(window, place, end)
            first += end - place

    def window_range(self, window: int) -> tuple[int, int]:
        """Return the half-open range of places in the order of the pieces that a window has."""
        return window * self.window_rows, min((window + 1) * self.window_rows, self.rows)

    def ranges(self, epoch: int, first: int) -> Iterator[tuple[int, int]]:
        """Yield half-open ranges of ranks in the order of the epoch's pieces, from place `first` on."""
        pieces = self._pieces[stream(self._seed, Purpose.PIECES, epoch, self._shard).permutation(len(self._pieces))]
        ends = np.cumsum(pieces[:, 1] - pieces[:, 0])
        piece = int(np.searchsorted(ends, first, side="right"))
        for (begin, end), stop in zip(pieces[piece:].tolist(), ends[piece:].tolist(), strict=True):
            yield max(begin, end - (stop - first)), end

    def shuffled(self, epoch: int, window: int) -> Integers:
        """Return the shuffled order of a window's rows, by their places in it."""
        first, last = self.window_range(window)
        return stream(self._seed, Purpose.PERMUTATION, epoch, self._shard, part=window).permutation(last - first)

    def ranks(self, epoch: int, window: int) -> Integers:
        """Return the ranks of a window's rows in the order in which they are used."""
        first, last = self.window_range(window)
        found: list[Integers] = []
        for begin, end in self.ranges(epoch, first):
            found.append(np.arange(begin, min(end, begin + last - first)))
            first += len(found[-1])
            if first == last:
                break
        return np.concatenate(found)[self.shuffled(epoch, window)]
