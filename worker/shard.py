"""The shards that a worker holds: kept in memory as far as its limit allows, the others streamed."""

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import Final

import numpy as np

from worker.arrays import Floats, Integers
from worker.batch import Target
from worker.encoding import Encoding
from worker.keeping import choose_keeping
from worker.messages import SPLITS, Holding, Holdings, Setup, Split
from worker.order import ShardOrder
from worker.reading import Placed, ShardData, read_shards
from worker.rows import Rows, gather, pieces
from worker.segments import Handle
from worker.streaming import RowReader, StreamedShard

MOST_SHARED: Final = 256
"""Shards of a job up to which other processes can map rows that are kept: each takes two descriptors, of 1,024 in many places."""


class KeptShard:
    """A shard's training rows in memory.

    Attributes:
        rows: they.
    """

    def __init__(self, rows: Rows, order: ShardOrder) -> None:
        """Take the rows."""
        self.rows, self._order = rows, order
        self._window = -1, -1
        self._ranks: Integers = np.arange(0)

    def gather(self, epoch: int, first: int, last: int, x_BI: Floats, target: Target) -> None:
        """Copy the rows at places first..last-1 of the epoch's order to where a network reads them."""
        done = 0
        for window, begin, end in self._order.parts(first, last):
            if self._window != (epoch, window):
                self._ranks = self._order.ranks(epoch, window)
                self._window = epoch, window
            stop = done + end - begin
            gather(self.rows, self._ranks[begin:end], x_BI[done:stop], target.slice(done, stop))
            done = stop

    def evaluated(self) -> Iterator[Rows]:
        """Yield the rows in their order, in pieces as they are to be evaluated."""
        return pieces(self.rows)


@dataclass(frozen=True)
class KeptRows:
    """Rows to validate on in memory."""

    rows: Rows

    def evaluated(self) -> Iterator[Rows]:
        """Yield the rows in their order, in pieces as they are to be evaluated."""
        return pieces(self.rows)


@dataclass(frozen=True)
class Shard:
    """One shard: its rows to train on, and those to validate on."""

    training: KeptShard | StreamedShard
    validation: KeptRows | RowReader

    @property
    def rows(self) -> dict[Split, Rows]:
        """The rows of the splits that are kept in memory."""
        parts: dict[Split, KeptShard | StreamedShard | KeptRows | RowReader]
        parts = {"train": self.training, "validation": self.validation}
        return {split: part.rows for split, part in parts.items() if isinstance(part, KeptShard | KeptRows)}

    @property
    def handles(self) -> dict[Split, Handle]:
        """Where other processes find them."""
        segments = {split: rows.segment for split, rows in self.rows.items() if rows.segment is not None}
        return {split: segment.handle for split, segment in segments.items() if segment.handle is not None}


class Shards:
    """The shards of a worker.

    Attributes:
        held: they, by number.
    """

    def __init__(self, setup: Setup, encoding: Encoding, limit: int) -> None:
        """Hold none yet, and later as many bytes of rows in memory as the limit allows."""
        self._setup, self._encoding, self._limit = setup, encoding, limit
        self._raw: str | None = None
        self._thread = ThreadPoolExecutor(1, "isograd-reader")
        self.held: dict[int, Shard] = {}

    def hold(self, numbers: Iterable[int], tables: dict[int, list[Placed]], found: Mapping[Holding, Handle]) -> Holdings:
        """Hold these shards and let go of all others. Return where the rows are that are kept in memory.

        Args:
            numbers: of the shards.
            tables: the rows in the training dataset of those that have been read already; they are taken out.
            found: rows that other processes of this machine have, or had.

        Raises:
            DataError: rows can't be read or encoded.
        """
        # Those that are there already come first: they need not be read again.
        ordered = sorted(numbers, key=lambda number: (number not in self.held, number))
        keeping = choose_keeping(self._setup, self._encoding, ordered, self._limit)
        held = self.held if keeping.raw == self._raw else {}
        self.held = {number: shard for number, shard in held.items() if keeping.splits.get(number) == shard.rows.keys()}
        self._raw = keeping.raw
        lacking = {number: splits for number, splits in sorted(keeping.splits.items()) if number not in self.held}
        rows = self._attach(lacking, found)
        rows |= self._read(
            {number: frozenset(split for split in splits if (number, split) not in rows) for number, splits in lacking.items()},
            tables,
        )
        for number in lacking:
            self.held[number] = self._make(number, rows.get((number, "train")), rows.get((number, "validation")))
        return {(number, split): handle for number, shard in self.held.items() for split, handle in shard.handles.items()}

    def try_validation(self, numbers: Iterable[int]) -> None:
        """Read and encode shards' rows to validate on that are not kept. Raises DataError where it can't be done."""
        for number in numbers:
            if number not in self.held or "validation" not in self.held[number].rows:
                for _ in self._reader(number, "validation").evaluated():
                    pass

    def _attach(self, kept: Mapping[int, frozenset[Split]], found: Mapping[Holding, Handle]) -> dict[Holding, Rows]:
        """Return the rows that need not be read: none at all, or those that another process has in this form."""
        there: dict[Holding, Rows | None] = {}
        for holding in ((number, split) for number, splits in kept.items() for split in splits):
            reader, handle = self._reader(*holding), found.get(holding)
            if reader.data.split_rows == 0:
                there[holding] = reader.room(0)
            elif handle is not None and handle.raw == self._raw:
                there[holding] = reader.kept(self._raw, handle)
        return {holding: rows for holding, rows in there.items() if rows is not None}

    def _read(self, kept: Mapping[int, frozenset[Split]], tables: dict[int, list[Placed]]) -> dict[Holding, Rows]:
        """Return the rows of all splits of all shards that are to be kept, both splits of one dataset being read in one go."""
        found: dict[Holding, Rows] = {}
        together: list[tuple[Split, ...]] = [SPLITS] if self._setup.validation is None else [("train",), ("validation",)]
        for splits in together:
            wanted = [number for number in kept if not kept[number].isdisjoint(splits)]
            there = [number for number in wanted if splits[0] == "train" and number in tables]
            read = read_shards(self._setup, [number for number in wanted if number not in there], splits[0])
            for number, placed in chain(((number, tables.pop(number)) for number in there), read):
                readers = {split: self._reader(number, split) for split in splits if split in kept[number]}
                found |= {(number, split): rows for split, rows in _fill(readers, placed, self._raw).items()}
        return found

    def _make(self, number: int, training: Rows | None, validation: Rows | None) -> Shard:
        order = ShardOrder(self._setup.plan, number)
        return Shard(
            KeptShard(training, order) if training is not None else StreamedShard(self._reader(number, "train"), order),
            KeptRows(validation) if validation is not None else self._reader(number, "validation"),
        )

    def _reader(self, number: int, split: Split) -> RowReader:
        shared = self._setup.plan.shards <= MOST_SHARED
        return RowReader(ShardData(self._setup, number, split), self._encoding, self._setup.model.dtype, self._thread, shared)


def _fill(readers: Mapping[Split, RowReader], pieces: Iterable[Placed], raw: str | None) -> dict[Split, Rows]:
    """Return the rows of some splits, out of all rows of a shard."""
    rows = {split: made for split, reader in readers.items() if (made := reader.kept(raw)) is not None}
    done = dict.fromkeys(readers, 0)
    for piece in pieces:
        for split, reader in readers.items():
            chosen, first = reader.data.only(piece), done[split]
            if len(chosen):
                done[split] += len(chosen)
                reader.data.encode(chosen, reader.encoding, rows[split].slice(first, done[split]))
    return rows
