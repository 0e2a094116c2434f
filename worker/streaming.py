"""Shards that are read again and again: a window of rows is in memory while it is used, and the next one is read meanwhile."""

from collections.abc import Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Final

import numpy as np

from worker.arrays import Floats, Integers
from worker.batch import Target
from worker.encoding import Encoding
from worker.order import ShardOrder
from worker.reading import Cutter, Placed, ShardData
from worker.rows import EVALUATION_ROWS, Rows, gather, pieces
from worker.segments import Handle

EVALUATED_BYTES: Final = 4 << 20
"""Rows to be evaluated that are read at once, about."""

WindowKey = tuple[int, int]
"""Epoch and window."""


@dataclass(frozen=True)
class RowReader:
    """Reads a split's rows of one shard as arrays.

    All reading is done by the one thread of `thread`, since a stream of rows is in one place at a time. `shared` tells whether
    rows that are kept can be mapped by other processes.
    """

    data: ShardData
    encoding: Encoding
    dtype: str
    thread: Executor
    shared: bool

    def room(self, rows: int) -> Rows:
        """Return memory for so many rows."""
        return Rows.room(rows, self.encoding, self.dtype)

    def kept(self, raw: str | None, found: Handle | None = None) -> Rows | None:
        """Return memory for all rows, one at least, or these rows where they are found, as `Rows.kept` does."""
        return Rows.kept(self.data.split_rows, self.encoding, self.dtype, raw, found, shared=self.shared)

    def fill(self, rows: Rows, pieces: Iterator[Placed]) -> Rows:
        """Write pieces of rows one after the other, and return them all. Raises DataError where they can't be encoded."""
        done = 0
        for piece in pieces:
            self.data.encode(piece, self.encoding, rows.slice(done, done + len(piece)))
            done += len(piece)
        assert done == len(rows), "as many rows as there is room for"
        return rows

    def evaluated(self) -> Iterator[Rows]:
        """Yield the rows in their order, in pieces as they are to be evaluated, while the next ones are being read."""
        chunks = self._chunks()
        ahead = self.thread.submit(next, chunks, None)
        while (rows := ahead.result()) is not None:
            ahead = self.thread.submit(next, chunks, None)
            yield from pieces(rows)

    def _chunks(self) -> Iterator[Rows]:
        cutter = Cutter(map(self.data.only, self.data.read(0, self.data.rows)))
        most = max(1, EVALUATED_BYTES // self.encoding.row_bytes(self.dtype) // EVALUATION_ROWS) * EVALUATION_ROWS
        for first in range(0, self.data.split_rows, most):
            rows = self.room(min(most, self.data.split_rows - first))
            yield self.fill(rows, cutter.take(len(rows)))


class StreamedShard:
    """A shard's training rows, a window at a time in memory."""

    def __init__(self, reader: RowReader, order: ShardOrder) -> None:
        """Read nothing yet."""
        self._reader, self._order = reader, order
        self._stream = _Stream(reader, order)
        self._current, self._spare = (reader.room(order.window_rows) for _ in range(2))
        self._key: WindowKey | None = None
        self._shuffled: Integers = np.arange(0)
        self._next: tuple[WindowKey, Future[Integers]] | None = None

    def gather(self, epoch: int, first: int, last: int, x_BI: Floats, target: Target) -> None:
        """Copy the rows at places first..last-1 of the epoch's order to where a network reads them."""
        done = 0
        for window, begin, end in self._order.parts(first, last):
            self._turn_to((epoch, window))
            stop = done + end - begin
            gather(self._current, self._shuffled[begin:end], x_BI[done:stop], target.slice(done, stop))
            done = stop

    def evaluated(self) -> Iterator[Rows]:
        """Yield the rows in their order in the data, in pieces as they are to be evaluated."""
        return self._reader.evaluated()

    def _turn_to(self, key: WindowKey) -> None:
        """Have a window in `_current`, and begin to read the one after it."""
        if self._key == key:
            return
        self._key = None  # should this fail
        expected, reading = self._next or (None, None)
        self._next = None
        if reading is not None:
            self._shuffled = reading.result()
        if expected != key:
            self._shuffled = self._read(key).result()
        self._current, self._spare, self._key = self._spare, self._current, key
        epoch, window = key
        after = (epoch, window + 1) if window + 1 < self._order.windows else (epoch + 1, 0)
        self._next = after, self._read(after)

    def _read(self, key: WindowKey) -> "Future[Integers]":
        """Begin to read a window into `_spare`; the result is the shuffled order of its rows."""
        return self._reader.thread.submit(self._fill, self._spare, *key)

    def _fill(self, rows: Rows, epoch: int, window: int) -> Integers:
        self._stream.fill(rows, epoch, window)
        return self._order.shuffled(epoch, window)


class _Stream:
    """Reads windows, most often one after the other."""

    def __init__(self, reader: RowReader, order: ShardOrder) -> None:
        self._reader, self._order = reader, order
        self._at: tuple[int, int] | None = None
        self._cutter = Cutter(iter(()))

    def fill(self, rows: Rows, epoch: int, window: int) -> None:
        """Write a window's rows, in the order of their pieces."""
        first, last = self._order.window_range(window)
        if self._at != (epoch, first):
            self._cutter = Cutter(self._pieces(epoch, first))
        self._at = None  # should this fail
        self._reader.fill(rows.slice(0, last - first), self._cutter.take(last - first))
        self._at = epoch, last

    def _pieces(self, epoch: int, first: int) -> Iterator[Placed]:
        data = self._reader.data
        for begin, end in self._order.ranges(epoch, first):
            start, stop = data.holdout.training_position(begin), data.holdout.training_position(end - 1) + 1
            yield from map(data.only, data.read(start, stop))
