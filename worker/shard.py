"""One shard held in memory: its rows as arrays, and slices of them gathered into reused buffers."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa

from worker.arrays import AnyArray, Floats, Integers
from worker.encoding import Encoding
from worker.messages import Setup, Split
from worker.sharding import shard_ranges
from worker.sources import Source, read_rows

EVALUATION_ROWS: Final = 1024
"""Rows evaluated at once. Fixed, since the shapes that BLAS sees must never depend on the workers."""


@dataclass(frozen=True)
class Rows:
    """Encoded rows. `targets` holds class numbers (N,) or values (N, O)."""

    features_NF: Floats
    targets: AnyArray

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.features_NF)


@dataclass(frozen=True)
class Shard:
    """The rows of one shard: those to train on, and those to validate on, by their place in `rows`."""

    number: int
    training: Rows
    training_order: Integers
    validation: Rows
    validation_order: Integers


def read_shards(setup: Setup, shards: Iterable[int], split: Split = "train") -> dict[int, pa.Table]:
    """Read shards of the training dataset, or of the validation dataset where that is one of its own.

    Neighbours are read in one go, so that a row group that they share is decoded once.
    """
    source = setup.train if split == "train" or setup.validation is None else setup.validation
    ranges = shard_ranges(source.rows, setup.plan.shards)
    tables: dict[int, pa.Table] = {}
    for run in consecutive(shards):
        start = ranges[run[0]][0]
        table = read_rows(source, start, ranges[run[-1]][1], setup.columns.needed)
        tables |= {shard: table.slice(ranges[shard][0] - start, ranges[shard][1] - ranges[shard][0]) for shard in run}
    return tables


def consecutive(numbers: Iterable[int]) -> list[list[int]]:
    """Return the numbers in runs without a gap."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return runs


def make_shard(setup: Setup, number: int, table: pa.Table, validation: pa.Table | None, encoding: Encoding) -> Shard:
    """Encode a shard that was read. Raises DataError for rows that can't be encoded.

    Args:
        setup: the run.
        number: of the shard.
        table: its rows of the training dataset.
        validation: its rows of the validation dataset; None where there is none of its own.
        encoding: how rows become arrays.
    """
    training, held_out = setup.plan.split(number)
    rows = _encode(setup, setup.train, number, table, encoding)
    if setup.validation is None or validation is None:
        return Shard(number, rows, training, rows, held_out)
    validation_rows = _encode(setup, setup.validation, number, validation, encoding)
    return Shard(number, rows, training, validation_rows, np.arange(len(validation_rows)))


def _encode(setup: Setup, source: Source, number: int, table: pa.Table, encoding: Encoding) -> Rows:
    start, _ = shard_ranges(source.rows, setup.plan.shards)[number]

    def where(row: int) -> str:
        return source.where(start + row)

    dtype = setup.model.dtype
    return Rows(encoding.features(table, where, dtype), encoding.targets(table, where, dtype))


class Gatherer:
    """Copies chosen rows of a shard into buffers that the next call overwrites."""

    def __init__(self, inputs: int, outputs: int, dtype: str) -> None:
        """Make room for rows of `inputs` features and `outputs` targets."""
        self._inputs, self._outputs = inputs, outputs
        self._x_BI: Floats = np.empty((0, inputs), dtype)
        self._t_BO: Floats = np.empty((0, outputs), dtype)
        self._places_B = np.empty(0, np.intp)

    def gather(self, rows: Rows, chosen_B: Integers) -> tuple[Floats, Floats]:
        """Return (inputs (B, I), targets (B, O)) of the chosen rows; a class becomes a row with one 1."""
        count = len(chosen_B)
        if count > len(self._x_BI):
            self._x_BI = np.empty((count, self._inputs), self._x_BI.dtype)
            self._t_BO = np.empty((count, self._outputs), self._t_BO.dtype)
            self._places_B = np.arange(count)
        x_BI, t_BO = self._x_BI[:count], self._t_BO[:count]
        # mode="clip" lets numpy write straight into `out`; the places are known to be inside.
        np.take(rows.features_NF, chosen_B, axis=0, out=x_BI, mode="clip")
        fill_targets(rows.targets, chosen_B, t_BO, self._places_B[:count])
        return x_BI, t_BO


def fill_targets(targets: AnyArray, chosen_B: Integers, t_BO: Floats, places_B: Integers) -> None:
    """Write the targets of the chosen rows into `t`: values as they are, a single output's class as 0 or 1, else one-hot."""
    if targets.ndim == 2:
        np.take(targets, chosen_B, axis=0, out=t_BO, mode="clip")
    elif t_BO.shape[1] == 1:
        t_BO[:, 0] = targets[chosen_B]
    else:
        t_BO.fill(0.0)
        t_BO[places_B, targets[chosen_B]] = 1.0


def split_of(shard: Shard, split: Split) -> tuple[Rows, Integers]:
    """Return a split's rows and which of them belong to it."""
    if split == "train":
        return shard.training, shard.training_order
    return shard.validation, shard.validation_order
