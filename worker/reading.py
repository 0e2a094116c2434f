"""Reads shards piece by piece: as tables whose rows know their positions, and as encoded rows."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Self

import numpy as np
import pyarrow as pa

from worker.arrays import Integers
from worker.encoding import Encoding
from worker.holdout import Holdout
from worker.messages import Setup, Split
from worker.rows import Rows
from worker.sharding import part_range
from worker.sources import read_batches


@dataclass(frozen=True)
class Placed:
    """Rows as they are in the files, with their ascending positions in the shard."""

    table: pa.Table
    positions_N: Integers

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.positions_N)

    def slice(self, first: int, last: int) -> Self:
        """Return some of the rows."""
        return type(self)(self.table.slice(first, last - first), self.positions_N[first:last])

    def only(self, split: Split, holdout: Holdout) -> Self:
        """Return the rows that are a split's."""
        if holdout.bits is None:
            return self if split == "train" else self.slice(0, 0)
        first, last = self.positions_N[0], self.positions_N[-1] + 1
        out_N = holdout.mask(int(first), int(last))[self.positions_N - first]
        chosen_N = ~out_N if split == "train" else out_N
        return type(self)(self.table.filter(pa.array(chosen_N)), self.positions_N[chosen_N])


class ShardData:
    """A split's rows of one shard: of the training dataset, or of the validation dataset where that is one of its own.

    Attributes:
        rows: of the shard, those of the other split included.
        holdout: which of them are held out.
        split_rows: that are the split's.
    """

    def __init__(self, setup: Setup, number: int, split: Split) -> None:
        """Find the shard."""
        own = split == "validation" and setup.validation is not None
        self._source = setup.validation if own and setup.validation is not None else setup.train
        self.start, stop = part_range(self._source.rows, setup.plan.shards, number)
        self.rows = stop - self.start
        self.holdout = Holdout(self.rows, None) if own else setup.plan.holdout(number)
        self._split: Split = "train" if own else split
        training = self.holdout.training_rows
        self.split_rows = training if self._split == "train" else self.rows - training
        self._columns, self._dtype = setup.columns.needed, setup.model.dtype

    def read(self, first: int, last: int) -> Iterator[Placed]:
        """Yield the rows at positions first..last-1 of the shard. Raises DataError where they can't be read."""
        return _placed(read_batches(self._source, self.start + first, self.start + last, self._columns), first)

    def only(self, placed: Placed) -> Placed:
        """Return those of some rows that are the split's."""
        return placed.only(self._split, self.holdout)

    def where(self, position: int) -> str:
        """Return the file and row of a position in the shard, for an error."""
        return self._source.where(self.start + position)

    def encode(self, placed: Placed, encoding: Encoding, rows: Rows) -> None:
        """Write rows as arrays. Raises DataError where they can't be encoded."""
        where = partial(_where, self, placed.positions_N)
        fill = encoding.fill if rows.treatment is None else encoding.fill_raw
        fill(rows.features_NF, placed.table, where)
        rows.targets[...] = encoding.targets(placed.table, where, self._dtype)


def _where(data: ShardData, positions_N: Integers, row: int) -> str:
    return data.where(int(positions_N[row]))


def _placed(tables: Iterable[pa.Table], place: int) -> Iterator[Placed]:
    for table in tables:
        yield Placed(table, np.arange(place, place + table.num_rows))
        place += table.num_rows


class Cutter:
    """Hands out a stream of rows, so many at a time."""

    def __init__(self, pieces: Iterator[Placed]) -> None:
        """Begin with the first row."""
        self._pieces = pieces
        self._rest: Placed | None = None

    def take(self, rows: int) -> Iterator[Placed]:
        """Yield the next rows, to be taken to the end before the next ones are asked for."""
        while rows:
            piece, self._rest = self._rest if self._rest is not None else next(self._pieces), None
            if len(piece) > rows:
                piece, self._rest = piece.slice(0, rows), piece.slice(rows, len(piece))
            rows -= len(piece)
            if len(piece):
                yield piece


def read_shards(setup: Setup, shards: Iterable[int], split: Split = "train") -> Iterator[tuple[int, Iterator[Placed]]]:
    """Yield the numbers of shards with all their rows in a split's dataset, to be taken before those of the next.

    Neighbours are read in one go, so that a row group that they share is decoded once.
    """
    for run in consecutive(shards):
        data = [ShardData(setup, number, split) for number in run]
        first, last = data[0], data[-1]
        cutter = Cutter(first.read(0, last.start + last.rows - first.start))
        for number, shard in zip(run, data, strict=True):
            yield number, _moved(cutter.take(shard.rows), first.start - shard.start)


def _moved(pieces: Iterator[Placed], by: int) -> Iterator[Placed]:
    return (Placed(piece.table, piece.positions_N + by) for piece in pieces)


def consecutive(numbers: Iterable[int]) -> list[list[int]]:
    """Return the numbers in runs without a gap."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return runs
